"""A method for the survey: the record of its evaluation, what is wrong with a contribution, and the text of the issue.

The survey's repository takes a new method as three things: a taxonomy entry, the evaluation of at least three networks (one
architecture, data set and structure at its three sparsities) under keys of its grammar, and an issue that holds both. The entry is
checked by `apnb.taxonomy.check_entry`; the record is made and checked here, and both become the issue.

Source: pralab/AdversarialPruningBenchmark at commit 0ae46e7, its README, its issue template "New AP method" and
taxonomy/taxonomy.json, whose field names and words `survey_form` follows.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from apnb import __version__, benchmark, taxonomy
from apnb.errors import Invalid, choose, field_problem, listed, nearest
from apnb.taxonomy import Method

FORMAT = 1
ARCHITECTURES = {"resnet18": "R18", "vgg16": "V16"}
DATA = {"cifar10": "CIFAR10", "svhn": "SVHN"}
SPARSITIES = {"US": ("90", "95", "99"), "S": ("50", "75", "90")}
"""Per cent at which the survey's tables have a column, for single weights (US) and for what goes together (S)."""
POINTS = benchmark.IMAGES
"""Test images that the survey attacks: the first ones of the split."""
EPS = (benchmark.EPS, 8 / 255)
"""The radius as the survey writes it for AutoAttack, and exactly."""
HOFMN_POINTS = 128
MOST = 100
"""Networks that a record may have; and sentences that are said of a file, which somebody else may have written."""


# ------------------------------------------------------------------------------------------------------------------------- keys


def model_key(survey_key: str, network: str, data: str, structure: str, sparsity: float) -> str:
    """The key of a network by the survey's grammar, ``AP_ARCH_DATASET_STRUCT_SPARSITY``.

    Args:
        survey_key: of the method, such as ``HARP_Zhao2023Holistic``.
        network: ``resnet18`` or ``vgg16``. data: ``cifar10`` or ``svhn``.
        structure: weights (US), or filters, channels, kernels (S). sparsity: share removed, as asked for.

    Raises:
        Invalid: the grammar has no word for it.
    """
    group = "US" if choose(structure, taxonomy.Structure, "structure") == taxonomy.Structure.weights else "S"
    architecture, name = ARCHITECTURES.get(network, str(network)), DATA.get(data, str(data))
    key = f"{survey_key}_{architecture}_{name}_{group}_{100 * sparsity:g}"
    problems = _key_problems(key)
    if problems:
        raise Invalid(problems[0])
    return key


def _key_problems(key: str) -> list[str]:
    """What the survey's grammar has against a key; nothing is said of a part behind one that cannot be found."""
    parts = key.rsplit("_", 4)
    if len(parts) < 5:
        return [f"the model key {key!r} must read NAME_AuthorYEARWord_ARCH_DATASET_STRUCT_SPARSITY, such as {_EXAMPLE}"]
    ap, architecture, data, group, share = parts
    problems = []
    if not re.fullmatch(r"[A-Za-z0-9]+_[A-Za-z]+\d{4}[A-Za-z0-9]+", ap):
        problems.append(f"{key}: {ap!r} must read like 'HYDRA_Sehwag2020Hydra', name, author with year and title word")
    for what, given, known in (
        ("architecture", architecture, ARCHITECTURES.values()), ("data set", data, DATA.values()), ("structure", group, SPARSITIES)
    ):  # fmt: skip
        if given not in known:
            problems.append(f"{key}: the {what} is {given!r}, but the survey has {' and '.join(known)}")
    if group in SPARSITIES and share not in SPARSITIES[group]:
        problems.append(f"{key}: the sparsity is {share!r}, but with {group} the survey has {listed(SPARSITIES[group])} per cent")
    return problems


_EXAMPLE = "HYDRA_Sehwag2020Hydra_R18_CIFAR10_US_90"


# ----------------------------------------------------------------------------------------------------------------------- records


def record(
    evaluations: Mapping[str, Any],
    *,
    entry: str | Path | Mapping[str, Any] | None = None,
    hofmn: Mapping[str, Any] | None = None,
    models: Mapping[str, tuple[str, str]] | None = None,
    distances: Mapping[str, tuple[str, str]] | None = None,
    architecture: str = "",
    normalization: str = "",
) -> dict[str, Any]:
    """The evaluation record of a contribution, as plain JSON; `check` says what is missing, `write` puts it into a file.

    Args:
        evaluations: key of the model (see `model_key`) -> its `apnb.Evaluation`, or a row of a run's table.
        entry: the method's taxonomy entry, or its file; it is kept in the record.
        hofmn: key -> an `apnb.curves.Distances` (of `apnb.evaluation.survey_protocol`, say), where the evaluation itself did not
            look for distances with ``"hofmn"``.
        models, distances: key -> (Google Drive id, extension) of the network's file and of its distances, once they are uploaded.
        architecture: whether, and why, the files do not load into the plain ResNet18 or VGG16.
        normalization: which models normalise their images, and how.

    Returns:
        ``record`` (the format), ``apnb``, ``entry``, ``architecture``, ``normalization`` and ``models``: of each its key, accuracies
        in per cent with two decimals (``hofmn`` None where it was not measured), files, and how the numbers were made.

    Raises:
        Invalid: an evaluation of another kind, or files and distances for keys that have none.
    """
    for what, given in (("HO-FMN distances", hofmn), ("model files", models), ("files of distances", distances)):
        if left := set(given or ()) - set(evaluations):
            raise Invalid(
                f"{what} are given for {min(left)!r}, which has no evaluation; did you mean {nearest(min(left), evaluations)}?"
            )
    rows = [
        {
            "key": key,
            **_measured(key, given, (hofmn or {}).get(key)),
            "model_file": list((models or {}).get(key, ("", ""))),
            "distances_file": list((distances or {}).get(key, ("", ""))),
        }
        for key, given in evaluations.items()
    ]
    entry = None if entry is None else dict(_content(entry))
    texts = {"architecture": architecture, "normalization": normalization}
    return {"record": FORMAT, "apnb": __version__, "entry": entry, **texts, "models": rows}


def _measured(key: str, given: Any, searched: Any) -> dict[str, Any]:
    """Accuracies of a model in per cent, and how they were made."""
    row = given.summary() if hasattr(given, "summary") else dict(given) if isinstance(given, Mapping) else {}
    needed = ("clean", "robust", "n", "eps", "attacks")
    if missing := [name for name in needed if row.get(name) is None or row[name] != row[name]]:  # NaN: not evaluated
        raise Invalid(
            f"the evaluation of {key!r} is of type {type(given).__name__}, without {missing[0]}; give what apnb.evaluate returned"
        )
    how = {"n": int(row["n"]), "eps": float(row["eps"]), "attacks": str(row["attacks"])}
    how |= {name: str(row.get(name) or "") for name in ("subset", "data", "engine", "precision")}
    how["warnings"] = [str(sentence) for sentence in row.get("warnings") or ()]
    curve = searched
    if curve is None and hasattr(given, "curve") and given.searched == "hofmn":
        curve = given
    curve = curve.curve() if hasattr(curve, "curve") else curve
    found: dict[str, Any] = {"clean": round(100 * row["clean"], 2), "aa": round(100 * row["robust"], 2), "hofmn": None}
    made: dict[str, Any] = {"aa": how, "hofmn": None}
    if curve is not None:
        radius = EPS[1] if curve.eps is None else curve.eps
        found["hofmn"] = round(100 * curve.accuracy(radius), 2)
        made["hofmn"] = {"n": curve.n, "eps": radius, "how": curve.method}
    return {**found, "made": made}


def write(path: str | Path, record: Mapping[str, Any]) -> Path:
    """Put a record (or an entry) into a JSON file.

    Raises:
        Invalid: the file cannot be written.
    """
    from apnb.store import atomic

    path = Path(path)
    atomic(path, lambda beside: beside.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"))
    return path


def _content(what: str | Path | Mapping[str, Any]) -> Any:
    """What a JSON file holds; content that is given as such is returned as it is."""
    return what if isinstance(what, Mapping) else taxonomy.read_json(Path(what), "a taxonomy entry or an evaluation record")


# ---------------------------------------------------------------------------------------------------------------------- checking


@dataclass(frozen=True)
class Checked:
    """What there is to say of a file.

    Attributes:
        kind: ``taxonomy entry`` or ``evaluation record``. about: whose, in words.
        problems: a sentence for each thing that keeps it from being contributed. warnings: for what a reader of the numbers should know.
        entry: the method, if its entry is valid.
    """

    kind: str
    about: str
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    entry: Method | None = None

    def __str__(self) -> str:
        told = f"not yet a valid {self.kind}" if self.problems else f"a valid {self.kind} {self.about}"
        return "\n".join([told, *(f"  problem: {p}" for p in self.problems), *(f"  note: {w}" for w in self.warnings)])


def check(what: str | Path | Mapping[str, Any], entry: str | Path | Mapping[str, Any] | None = None) -> Checked:
    """Everything that is wrong with a taxonomy entry or an evaluation record; its fields tell which of the two it is.

    Args:
        what: a JSON file, or its content. entry: the entry that a record belongs to; default: the one it holds.

    Raises:
        Invalid: the file cannot be read or is no JSON object.
    """
    content = _content(what)
    if not isinstance(content, Mapping):
        raise Invalid(
            f"{str(what)!r} holds a {type(content).__name__}, expected one JSON object: a taxonomy entry or an evaluation record"
        )
    if "models" in content or "record" in content:
        return _check_record(dict(content), entry)
    try:
        method = taxonomy.check_entry(content)
    except Invalid as error:
        return Checked("taxonomy entry", "", _sentences([str(error)]))
    return Checked("taxonomy entry", f"for {method.name} ({method.pipeline}, {method.criterion})", entry=method)


def _check_record(content: dict[str, Any], entry: Any) -> Checked:
    problems, warnings, method = [], [], None
    shape = _shape_problems(content)
    inside = content.get("entry")  # of a record that somebody sent: never a path to be opened
    entry = (inside if isinstance(inside, Mapping) else None) if entry is None else entry
    if entry is None:
        warnings.append("the record has no taxonomy entry with it, so its keys could not be compared with one")
    else:
        told = check(entry)
        problems += (
            told.problems if told.kind == "taxonomy entry" else ["the entry of the record is a record, not a taxonomy entry"]
        )
        method = told.entry
    if shape:
        return Checked("evaluation record", "", _sentences([*problems, *shape]), _sentences(warnings))
    models = content["models"]
    problems += [p for m in models for p in _key_problems(m["key"])]
    problems += _together(models, method)
    for model in models:
        wrong, odd = _numbers(model)
        problems += wrong
        warnings += odd
        wrong, odd = _files(model)
        problems += wrong
        warnings += odd
    for name in ("architecture", "normalization"):
        if not content.get(name, "").strip():
            warnings.append(f"the {name} is not described; the issue asks for it, if only to say that there is nothing to tell")
    keys = sorted({m["key"].rsplit("_", 4)[0] for m in models})
    known = {m.survey_key for m in taxonomy.methods()}
    warnings += [f"{key} is a method that the survey lists already" for key in keys if key in known]
    about = f"of {len(models)} networks of {listed(keys or ['nobody'])}"
    return Checked("evaluation record", about, _sentences(problems), _sentences(warnings), method)


def _sentences(found: list[str]) -> tuple[str, ...]:
    """Each once, not too many, and without characters that a terminal obeys."""
    plain = [re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda c: repr(c[0])[1:-1], sentence) for sentence in dict.fromkeys(found)]
    return (*plain[:MOST], f"and {len(plain) - MOST} more") if len(plain) > MOST else tuple(plain)


def _together(models: list[dict], method: Method | None) -> list[str]:
    """What is wrong with the keys as a set: doubles, several methods, another method than the entry's, no three sparsities."""
    keys = [m["key"] for m in models]
    problems = [
        f"the model key {key} stands there {n} times; give each network once" for key, n in Counter(keys).items() if n > 1
    ]
    sound = [key.rsplit("_", 4) for key in dict.fromkeys(keys) if not _key_problems(key)]
    names = sorted({key[0] for key in sound})
    if len(names) > 1:
        problems.append(f"the keys name {listed(names)}; a record has the networks of one method")
    if method is not None:
        if method.survey_key is None:
            problems.append(
                f"the entry of {method.name} has no survey_key; give the first part of the keys, {listed(names or ['...'])}"
            )
        problems += [f"the keys begin with {n}, but the entry's survey_key is {method.survey_key}" for n in names
                     if method.survey_key not in (None, n)]  # fmt: skip
        groups = {"US" if s is taxonomy.Structure.weights else "S" for s in method.structures}
        problems += [f"{'_'.join(key)} says {key[3]}, but the entry has the structure {listed(method.structures)}" for key in sound
                     if key[3] not in groups]  # fmt: skip
    columns: dict[tuple, set[str]] = {}
    for _, architecture, data, group, share in sound:
        columns.setdefault((architecture, data, group), set()).add(share)
    lacking = {c: [s for s in SPARSITIES[c[2]] if s not in have] for c, have in columns.items()}
    if not columns or all(lacking.values()):
        told = "; ".join(f"{' '.join(c)} lacks {listed(missing)}" for c, missing in lacking.items()) or "there is no sound key"
        problems.append(
            f"at least three networks are asked for, one architecture, data set and structure at its three sparsities: {told}"
        )
    return problems


def _numbers(model: dict) -> tuple[list[str], list[str]]:
    """Problems and warnings of one model's accuracies and of how they were made."""
    key, aa, search = model["key"], model["made"]["aa"], model["made"].get("hofmn")
    wrong, odd = [], []
    accuracies = {
        "clean accuracy": model["clean"],
        "robust accuracy (AA)": model["aa"],
        "robust accuracy (HO-FMN)": model["hofmn"],
    }
    if model["hofmn"] is None or search is None:
        wrong.append(f"{key}: the robust accuracy by HO-FMN is missing; apnb.evaluation.survey_protocol(model, data) measures it")
    for name, value in accuracies.items():
        if value is not None and not (math.isfinite(value) and 0 <= value <= 100):
            wrong.append(f"{key}: the {name} is {value:g}, expected per cent from 0 to 100")
        elif value is not None and value > model["clean"]:
            told = f"{key}: the {name}, {value:.2f}, is above the clean accuracy, {model['clean']:.2f}"
            if name == "robust accuracy (AA)" or (search and search["n"] == aa["n"]):
                wrong.append(f"{told}, which cannot be")
            else:
                odd.append(f"{told}; it is of other, fewer images")
    if 0 < model["clean"] <= 1:
        wrong.append(f"{key}: a clean accuracy of {model['clean']:g} per cent looks like a share; multiply by 100")
    if aa["attacks"] != "standard":
        wrong.append(f"{key}: the robust accuracy is of attacks={aa['attacks']!r}; AutoAttack is attacks='standard'")
    for what, made in (("AutoAttack", aa), ("HO-FMN", search)):
        if made is not None and not EPS[0] - benchmark.EPS_TOLERANCE <= made["eps"] <= EPS[1] + benchmark.EPS_TOLERANCE:
            wrong.append(f"{key}: {what} at eps {made['eps']:g}, but the survey's tables are at 0.031 or 8/255 (0.03137)")
    if abs(aa["eps"] - EPS[0]) > 1e-9 and not wrong:
        odd.append(f"{key}: AutoAttack at eps {aa['eps']:.5f}; the survey's code has {EPS[0]}")
    _, _, data, _, _ = key.rsplit("_", 4) if key.count("_") >= 4 else ("",) * 5
    if aa["data"] and DATA.get(aa["data"], aa["data"]) != data:
        wrong.append(f"{key}: the key says {data or 'no data set'}, but the network was evaluated on {aa['data']}")
    if aa["n"] != POINTS:
        odd.append(f"{key}: {aa['n']} test images were attacked; the survey attacks the first {POINTS}")
    elif data == "SVHN" and aa["subset"] != "first":
        odd.append(f"{key}: the {POINTS} test images are not the first ones, which the survey attacks")
    if search is not None and search["n"] != HOFMN_POINTS:
        odd.append(f"{key}: HO-FMN on {search['n']} points; the survey takes {HOFMN_POINTS}")
    odd += [f"{key}: the evaluation warned: {sentence}" for sentence in aa["warnings"]]
    return wrong, odd


def _files(model: dict) -> tuple[list[str], list[str]]:
    wrong, odd = [], []
    for what, name in (("network", "model_file"), ("distances", "distances_file")):
        drive, extension = model[name]
        if not drive:
            odd.append(f"{model['key']}: the file with the {what} is not uploaded yet: its Google Drive id is empty")
        elif not re.fullmatch(r"[A-Za-z0-9_-]{20,60}", drive):
            wrong.append(
                f"{model['key']}: {drive!r} is no Google Drive id; give the part of the link between /d/ and /view, "
                "33 letters, digits, dashes and underscores"
            )
        if drive and not re.fullmatch(r"(\.[A-Za-z0-9]+)+", extension):
            wrong.append(
                f"{model['key']}: the extension of the file with the {what} is {extension!r}, expected one such as '.pt'"
            )
    return wrong, odd


def _shape_problems(content: dict[str, Any]) -> list[str]:
    """Missing and unknown fields, and values of a wrong type."""
    try:
        from pydantic import ValidationError
    except ImportError:
        raise Invalid(
            "checking an evaluation record needs pydantic, which is not installed: run 'pip install pydantic'"
        ) from None
    if content.get("record") not in (None, FORMAT):
        return [f"the record has format {content['record']!r}, this version of apnb reads {FORMAT}"]
    try:
        _record_model().model_validate(content)
    except ValidationError as failure:
        return [field_problem(error) for error in failure.errors(include_url=False)]
    return []


@cache
def _record_model() -> Any:
    from pydantic import BaseModel, ConfigDict, Field

    class Part(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)

    class Attacked(Part):
        n: int = Field(ge=1)
        eps: float
        attacks: str
        subset: str
        data: str
        engine: str
        precision: str
        warnings: list[str]

    class Searched(Part):
        n: int = Field(ge=1)
        eps: float
        how: str

    class Made(Part):
        aa: Attacked
        hofmn: Searched | None

    class Model(Part):
        key: str
        clean: float
        aa: float
        hofmn: float | None
        model_file: list[str] = Field(min_length=2, max_length=2)
        distances_file: list[str] = Field(min_length=2, max_length=2)
        made: Made

    class RecordFile(Part):
        record: int
        apnb: str
        entry: dict[str, Any] | None = None
        architecture: str = ""
        normalization: str = ""
        models: list[Model] = Field(min_length=1, max_length=MOST)

    return RecordFile


# ------------------------------------------------------------------------------------------------------------------ the issue

_FORM: dict[str, dict[str, str]] = {
    "pipeline": {p: f"{p[0].upper()}-Methods {p.label.title()}" for p in taxonomy.Pipeline},
    "objective": {
        "natural": "Natural Training (NT)", "pgd_at": "Adversarial Training (AT) PGD", "trades": "Adversarial Training (AT) TRADES",
        "kd": "Knowledge Distillation (KD)", "none": "None", "unspecified": "Not Specified",
    },
    "schedule": {"one_shot": "1S", "iterative": "IT", "both": "1S, IT", "unspecified": "Not Specified"},
    "structures": {
        "weights": "Unstructured (US)", "filters": "Structured (S) filters", "channels": "Structured (S) channels",
        "kernels": "Structured (S) Kernel",
    },
    "locality": {"global": "Global Pruning (G)", "local": "Local Pruning (L)", "unspecified": "Not Specified"},
    "criterion": {
        "lwm": "Lowest Weight Magnitude LWM", "relwm": "Sparsity Based LWM (SPALWM)", "solwm": "Solver Based LWM (SOLWM)",
        "lis": "Least Importance Score (LIS)", "hgm": "Highest Gradient Magnitude (HGM)", "bcs": "Bayesian Connectivity Sampling (BCS)",
    },
}  # fmt: skip
_STAGE_FIELDS = {
    ("after", "pretraining"): "A: Pretraining ", ("after", "finetuning"): "A: Finetuning",
    ("before", "pruning_step"): "B: Pruning step ", ("before", "training_step"): "B: Training step ",
    ("during", "training_step"): "D: Training step ",
}  # fmt: skip


def survey_form(entry: Method | str | Path | Mapping[str, Any]) -> dict[str, str]:
    """A taxonomy entry in the fields and words of the survey's own taxonomy.json, stray blanks and colons of its names included.

    Objectives for which that file has no settled word get their full name here; several words are joined.

    Raises:
        Invalid: as `apnb.taxonomy.check_entry`.
    """
    m = entry if isinstance(entry, Method) else taxonomy.check_entry(entry)
    said = lambda kind, word: _FORM[kind].get(str(word), getattr(word, "label", str(word)))  # noqa: E731
    letter = m.pipeline[0].upper()
    found = {"link_to_paper": m.paper or "", "ap_key": m.survey_key or "", "Type of Pipeline:": said("pipeline", m.pipeline)}
    for stage, words in m.objectives.items():
        found[_STAGE_FIELDS[m.pipeline, stage]] = " + ".join(said("objective", w) for w in words)
    if m.pipeline is not taxonomy.Pipeline.during:
        found[f"{letter}: OneShot (1S) vs Iterative (IT)"] = said("schedule", m.schedule)
    in_order: Callable[[str, Any], str] = lambda kind, words: ", ".join(  # noqa: E731
        said(kind, w) for w in sorted(words, key=lambda w: list(_FORM[kind]).index(str(w)))
    )
    found["Pruning structure"] = in_order("structures", m.structures)
    found["Pruning locality"] = in_order("locality", m.locality)
    found["Pruning criterion"] = said("criterion", m.criterion)
    return found


def issue_text(entry: str | Path | Mapping[str, Any] | None, record: str | Path | Mapping[str, Any]) -> str:
    """The text of the issue by which a method is contributed, in Markdown, to be pasted and read once more.

    Args:
        entry: the taxonomy entry; None: the one in the record. record: the evaluation record.

    Raises:
        Invalid: there is no entry, or `check` has something against one of the two; the sentence holds all of it.
    """
    content = _content(record)
    told = check(content, entry)
    if told.kind != "evaluation record" or told.problems or told.entry is None:
        why = "; ".join(told.problems) or f"it needs a record and an entry, and got {told.kind} {told.about}"
        raise Invalid(f"there is no issue to write yet: {why}")
    lines = [
        "# Loading Section",
        "",
        "## JSON Entry",
        "",
        "```json",
        json.dumps(survey_form(told.entry), indent=2, ensure_ascii=False),
    ]
    lines += ["```", "", "These are the fields of the taxonomy file; the reply of the form takes their place if it differs.", ""]
    for i, m in enumerate(content["models"], 1):
        files = [f'"{m["key"]}" : {json.dumps(m[name])}' for name in ("model_file", "distances_file")]
        lines += [
            f"## Evaluation Results of Model n°{i}", "", f"_Model GDrive:_ {files[0]}", f"_Distances GDrive:_ {files[1]}", "",
            f"_Clean Accuracy:_ {m['clean']:.2f}", f"_Robust Accuracy (AA):_ {m['aa']:.2f}",
            f"_Robust Accuracy (HO-FMN):_ {m['hofmn']:.2f}", "",
        ]  # fmt: skip
    lines += ["## Architecture details and normalization", ""]
    lines += [content.get(name, "").strip() or f"({name}: nothing was said)" for name in ("architecture", "normalization")]
    lines += ["", "## How the numbers were made", "", f"With apnb {content['apnb']}."]
    for m in content["models"]:
        aa, search = m["made"]["aa"], m["made"]["hofmn"]
        lines.append(
            f"- {m['key']}: AutoAttack at eps {aa['eps']:.5f} on {aa['n']} test images; {search['how']} at eps {search['eps']:.5f} "
            f"on {search['n']} points"
        )
    lines += [f"- {sentence}" for sentence in told.warnings]
    return "\n".join(lines) + "\n"
