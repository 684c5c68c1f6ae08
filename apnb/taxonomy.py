"""The survey as data: its words, its 26 methods, its published numbers.

The words are enums whose members know their full name (`label`) and one sentence about themselves (`text`). A `Method` is
one entry of the taxonomy: when it prunes, what it trains on, how it chooses; with the sources of every fact, and with both
readings where sources disagree. Nothing here knows how a method is run.

Source: Piras et al., "Adversarial Pruning: A Survey and Benchmark of Pruning Methods for Adversarial Robustness", arXiv
2409.01249, and its repository pralab/AdversarialPruningBenchmark at commit 0ae46e7; see data/README.md.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apnb.errors import Invalid, choose, nearest
from apnb.paths import data_path

if TYPE_CHECKING:
    import pandas as pd


class Word(StrEnum):
    """A word of the survey: a string that also has a full name (`label`) and a sentence of explanation (`text`)."""

    label: str
    text: str

    def __new__(cls, value: str, label: str, text: str) -> Word:
        member = str.__new__(cls, value)
        member._value_ = value
        member.label = label
        member.text = text
        return member


class Pipeline(Word):
    """When weights are removed."""

    after = "after", "pruning after training", "A trained network is pruned, then finetuned to recover what pruning cost."
    before = "before", "pruning before training", "A sparse subnetwork is found first, and only that subnetwork is trained."
    during = "during", "pruning during training", "One training run removes weights (and may bring them back) while it trains."


class Objective(Word):
    """What a training stage minimises."""

    natural = "natural", "natural training", "The network is trained on clean examples only."
    fgsm = (
        "fgsm",
        "FGSM adversarial training",
        "Training examples are attacked with one full step along the sign of the gradient.",
    )
    fast_at = "fast_at", "fast adversarial training", "One-step attacks from a random start, with a short cyclic learning rate."
    pgd_at = "pgd_at", "PGD adversarial training", "Training examples are attacked with several projected gradient steps."
    trades = "trades", "TRADES", "Clean accuracy is traded against the difference between clean and attacked predictions."
    mart = "mart", "MART", "Adversarial training that weighs examples by how badly the clean network predicts them."
    kd = "kd", "knowledge distillation", "The network imitates the outputs of a robust teacher, usually its own dense parent."
    cni = "cni", "channel-wise noise injection", "Trainable noise is added channel by channel while the network trains."
    robust_dataset = (
        "robust_dataset",
        "robust data set",
        "Natural training on images that keep only the features a robust network uses.",
    )
    none = "none", "no training", "Nothing is trained in this stage."
    unspecified = "unspecified", "not specified", "The survey does not say what this stage minimises."


class Schedule(Word):
    """In how many steps the wanted sparsity is reached."""

    one_shot = "one_shot", "one-shot", "Everything is removed in one step."
    iterative = "iterative", "iterative", "Weights are removed in rounds, with training in between."
    both = "both", "one-shot and iterative", "The method is described with either schedule."
    unspecified = "unspecified", "not specified", "The survey gives no schedule, as for every method that prunes during training."


class Structure(Word):
    """What is removed together."""

    weights = "weights", "single weights", "Each weight stands or falls alone (unstructured pruning)."
    filters = "filters", "filters", "A whole output filter of a layer is removed together."
    channels = "channels", "channels", "All weights that read one input channel of a layer are removed together."
    kernels = "kernels", "kernels", "The small kernel between one input and one output channel is removed together."


class Locality(Word):
    """Among which weights the least important are sought."""

    local = "local", "local", "Every layer loses the same share of its weights."
    global_ = "global", "global", "One budget for the whole network decides, so that layers lose different shares."
    unspecified = "unspecified", "not specified", "The survey does not say."


class Criterion(Word):
    """What makes a weight unimportant."""

    lwm = "lwm", "lowest weight magnitude", "The smallest absolute weights go."
    relwm = (
        "relwm",
        "regularization-based lowest weight magnitude",
        "A penalty shrinks weights in training; then the smallest go.",
    )
    solwm = (
        "solwm",
        "solver-based lowest weight magnitude",
        "A solver such as ADMM pulls weights to a sparse copy; then the smallest go.",
    )
    lis = "lis", "least importance score", "Every weight has an importance score, most often a learned one; the lowest scores go."
    hgm = "hgm", "highest gradient magnitude", "The weights through which an attack changes the loss most go."
    bcs = "bcs", "Bayesian connectivity sampling", "Connections are drawn from a posterior while the network trains."


class Group(Word):
    """The two halves of the leaderboard."""

    unstructured = "unstructured", "unstructured (US)", "Single weights are removed; published at 90, 95 and 99 % sparsity."
    structured = "structured", "structured (S)", "Filters or channels are removed; published at 50, 75 and 90 % sparsity."


class Bibliography(Word):
    """How sure title, author, year and venue are."""

    confirmed = "confirmed", "confirmed", "Seen in a public catalogue, in a publisher's page or in a repository."
    recalled = "recalled", "recalled", "From memory, not checked against a document."
    unknown = "unknown", "unknown", "Nobody has checked."


class Scope(Word):
    """Between whom a disagreement is."""

    within_survey = "within_survey", "within the survey's repository", "Files of the survey's own repository disagree."
    survey_against_code = (
        "survey_against_code",
        "survey against code",
        "The method's released code reads differently from the survey.",
    )
    survey_against_paper = "survey_against_paper", "survey against paper", "The method's paper reads differently from the survey."


STAGES: dict[Pipeline, tuple[str, ...]] = {
    Pipeline.after: ("pretraining", "finetuning"),
    Pipeline.before: ("pruning_step", "training_step"),
    Pipeline.during: ("training_step",),
}
"""Pipeline -> names of its training stages, in order."""

STAGE_NAMES = tuple(dict.fromkeys(stage for stages in STAGES.values() for stage in stages))
READABLE = (
    "name",
    "survey_key",
    "year",
    "paper",
    "pipeline",
    *STAGE_NAMES,
    "schedule",
    "structures",
    "locality",
    "criterion",
    "checkpoints",
)
"""What a `Reading` can be about."""

# The fields of a Method that hold one word, several words, and a text that may not be empty.
_ONE: dict[str, type[Word]] = {"pipeline": Pipeline, "schedule": Schedule, "criterion": Criterion, "bibliography": Bibliography}
_SEVERAL: dict[str, type[Word]] = {"structures": Structure, "locality": Locality, "benchmarked": Group}
_TEXT = ("key", "name", "title", "first_author")


@dataclass(frozen=True)
class Reading:
    """One disagreement between sources: what each says, which is chosen, and why.

    Within the survey's repository, the entry itself follows ``chosen``. Where a method's code or paper reads differently from the
    survey, the entry keeps the survey's word, and ``chosen`` is what a faithful preset follows; most often they are the same.

    Args:
        field: one of `READABLE`.
        scope: between whom the disagreement is.
        readings: source -> what it says, at least two.
        chosen: a word or a text; a tuple of words where the field is a set of words.
        reason: why.

    Raises:
        Invalid: an unknown field or scope, fewer than two readings, nothing chosen, no reason.
    """

    field: str
    scope: Scope
    readings: Mapping[str, str] = dataclasses.field(hash=False)
    chosen: str | tuple[str, ...]
    reason: str

    def __post_init__(self) -> None:
        choose(self.field, READABLE, "field of a reading")
        object.__setattr__(self, "scope", Scope(choose(self.scope, Scope, "scope")))
        if not isinstance(self.chosen, str):
            object.__setattr__(self, "chosen", tuple(self.chosen))
        if len(self.readings) < 2:
            raise Invalid(f"the reading of {self.field!r} has {len(self.readings)} source: a disagreement needs at least two")
        if not self.chosen or not self.reason.strip():
            raise Invalid(f"the reading of {self.field!r} must say what is chosen and why")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One entry of the survey's taxonomy, in the survey's words.

    Words may be given as plain strings; they become members of the enums. The mappings are to be read, not changed.

    Args:
        key: short name in lower case letters and digits, such as ``hydra``: how presets and tables call the method.
        name: as the survey prints it.
        title, first_author, year, venue: of the publication; `bibliography` says how sure they are.
        pipeline: when it prunes.
        objectives: stage -> what the stage minimises, for exactly the stages in ``STAGES[pipeline]``.
        schedule, criterion: one word each.
        structures, locality: one or more words.
        survey_key: ``Name_Author2020Titleword``, the first part of the survey's checkpoint keys.
        paper, code: links.
        benchmarked: the halves of the leaderboard in which the method has rows.
        sources: field (or stage) -> source -> what it says; the sources are explained by `sources`.
        readings: where sources disagree.
        note: anything else a reader should know.

    Raises:
        Invalid: one sentence with everything that is wrong.
    """

    key: str
    name: str
    title: str
    first_author: str
    year: int
    pipeline: Pipeline
    objectives: Mapping[str, tuple[Objective, ...]] = dataclasses.field(hash=False)
    schedule: Schedule
    structures: tuple[Structure, ...]
    locality: tuple[Locality, ...]
    criterion: Criterion
    survey_key: str | None = None
    venue: str | None = None
    bibliography: Bibliography = Bibliography.unknown
    paper: str | None = None
    code: str | None = None
    benchmarked: tuple[Group, ...] = ()
    sources: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict, hash=False)
    readings: tuple[Reading, ...] = ()
    note: str | None = None

    def __post_init__(self) -> None:
        problems = _problems({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})
        if problems:
            raise Invalid(_sentence(f"the taxonomy entry {self.key!r}", problems))
        for name, words in _ONE.items():
            object.__setattr__(self, name, words(choose(getattr(self, name), words, name)))
        for name, words in _SEVERAL.items():
            object.__setattr__(self, name, tuple(words(choose(w, words, name)) for w in getattr(self, name)))
        objectives = {s: tuple(Objective(choose(w, Objective, s)) for w in self.objectives[s]) for s in STAGES[self.pipeline]}
        object.__setattr__(self, "objectives", objectives)
        object.__setattr__(self, "readings", tuple(self.readings))


def _sentence(what: str, problems: list[str]) -> str:
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{what} has {count}: {'; '.join(problems)}"


def _problems(entry: Mapping[str, Any]) -> list[str]:
    """Everything wrong with the words of an entry. Absent fields and fields of a wrong type are somebody else's problem."""
    problems = []

    def check(given: object, words: type[Word], what: str) -> str | None:
        try:
            return choose(given, words, what)
        except Invalid as error:
            problems.append(str(error))
            return None

    def check_set(given: object, words: type[Word], what: str, may_be_empty: bool = False) -> None:
        if not isinstance(given, (list, tuple)):
            return
        known = [check(w, words, what) for w in given]
        if not known and not may_be_empty:
            problems.append(f"{what} is empty: name at least one of {', '.join(repr(str(w)) for w in words)}")
        if len(set(known)) < len(known) and None not in known:
            problems.append(f"{what} names a word twice: {', '.join(map(str, given))}")
        alone = {"none", "unspecified"} & set(known)
        if alone and len(known) > 1:
            problems.append(f"{what} has {alone.pop()!r} beside other words: it stands alone")

    for name in _TEXT:
        if isinstance(entry.get(name), str) and not entry[name].strip():
            problems.append(f"{name} is empty")
    key = entry.get("key")
    if isinstance(key, str) and key.strip() and not re.fullmatch(r"[a-z][a-z0-9]*", key):
        problems.append(f"the key {key!r} must be lower case letters and digits and begin with a letter, such as 'hydra'")
    survey_key = entry.get("survey_key")
    if isinstance(survey_key, str) and not re.fullmatch(r"[A-Za-z0-9]+_[A-Za-z]+\d{4}[A-Za-z0-9]+", survey_key):
        problems.append(
            f"the survey_key {survey_key!r} must read like 'HYDRA_Sehwag2020Hydra': name, author with year and title word"
        )
    year = entry.get("year")
    if isinstance(year, int) and not 1980 <= year <= 2100:
        problems.append(f"the year {year} must be a year of four digits, such as 2024")
    for name in ("paper", "code"):
        url = entry.get(name)
        if isinstance(url, str) and not re.match(r"https?://\S+$", url):
            problems.append(f"{name} must be a link that begins with https://, but is {url!r}")
    for name, words in _ONE.items():
        if isinstance(entry.get(name), str):
            check(entry[name], words, name)
    for name, words in _SEVERAL.items():
        check_set(entry.get(name), words, name, may_be_empty=name == "benchmarked")

    objectives = entry.get("objectives")
    if isinstance(objectives, Mapping):
        for stage, given in objectives.items():
            check_set(given, Objective, f"objective of {stage}")
        pipeline = str(entry.get("pipeline")).lower()
        if pipeline in list(Pipeline):
            stages = STAGES[Pipeline(pipeline)]
            if set(objectives) != set(stages):
                problems.append(
                    f"the stages of the objectives are {', '.join(map(repr, objectives)) or 'missing'}, "
                    f"but pruning {pipeline} training has {' and '.join(map(repr, stages))}"
                )
    return problems


def _build(entry: Mapping[str, Any]) -> Method:
    return Method(**{**entry, "readings": tuple(Reading(**r) for r in entry.get("readings", ()))})


@cache
def _document() -> dict[str, Any]:
    document = json.loads(data_path("taxonomy.json").read_text("utf-8"))
    if document.get("schema") != 1:
        raise Invalid(f"taxonomy.json has schema {document.get('schema')!r}, but this version reads schema 1: install it again")
    return document


@cache
def _all() -> tuple[Method, ...]:
    return tuple(_build(entry) for entry in _document()["methods"])


def sources() -> dict[str, str]:
    """Name of a source -> what it is and, where it has one address for all methods, where."""
    return {k: f"{s['what']}: {s['where']}" if s["where"] else s["what"] for k, s in _document()["sources"].items()}


def methods(
    pipeline: str | Iterable[str] | None = None,
    objective: str | Iterable[str] | None = None,
    schedule: str | Iterable[str] | None = None,
    structure: str | Iterable[str] | None = None,
    locality: str | Iterable[str] | None = None,
    criterion: str | Iterable[str] | None = None,
    benchmarked: str | Iterable[str] | bool | None = None,
) -> tuple[Method, ...]:
    """The surveyed methods, in the survey's order; with filters, those that pass all of them.

    A filter is a word or several words; of several, one must fit. An objective fits if any stage has it. A method with the
    schedule ``both`` fits ``one_shot`` and ``iterative`` too; what the survey leaves open fits ``unspecified`` only.
    ``benchmarked`` takes the leaderboard's ``unstructured`` or ``structured``, or True (any row) or False (none).

    Raises:
        Invalid: an unknown word; the nearest ones are offered.
    """
    filters = (
        (_words(pipeline, Pipeline, "pipeline"), lambda m: {m.pipeline}),
        (_words(objective, Objective, "objective"), lambda m: {w for words in m.objectives.values() for w in words}),
        (_words(schedule, Schedule, "schedule"), lambda m: set(_schedules(m))),
        (_words(structure, Structure, "structure"), lambda m: set(m.structures)),
        (_words(locality, Locality, "locality"), lambda m: set(m.locality)),
        (_words(criterion, Criterion, "criterion"), lambda m: {m.criterion}),
    )
    found = [m for m in _all() if all(wanted is None or wanted & having(m) for wanted, having in filters)]
    if isinstance(benchmarked, bool):
        found = [m for m in found if bool(m.benchmarked) == benchmarked]
    elif benchmarked is not None:
        groups = _words(benchmarked, Group, "leaderboard group")
        found = [m for m in found if groups & set(m.benchmarked)]
    return tuple(found)


def _words(given: str | Iterable[str] | None, words: type[Word], what: str) -> set[Word] | None:
    if given is None:
        return None
    return {words(choose(w, words, what)) for w in ([given] if isinstance(given, str) else given)}


def _schedules(m: Method) -> tuple[Schedule, ...]:
    return (Schedule.both, Schedule.one_shot, Schedule.iterative) if m.schedule is Schedule.both else (m.schedule,)


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def method(key: str) -> Method:
    """The surveyed method with this key, name or survey key; upper and lower case, blanks, dashes and underscores do not matter.

    Raises:
        Invalid: no such method; the nearest names are offered.
    """
    named = {_folded(name): m for m in _all() for name in (m.key, m.name, m.survey_key) if name}
    try:
        return named[_folded(str(key))]
    except KeyError:
        known = [m.key for m in _all()] + [m.survey_key for m in _all()] + [m.name for m in _all()]
        raise Invalid(f"no method {str(key)!r}; did you mean {nearest(str(key), known)}?") from None


def cell_of(m: Method | str) -> dict[str, tuple[Word, ...]]:
    """Where a method lies in the grammar: pipeline, schedule, structure, locality, criterion -> the words the survey gives it.

    Several words are alternatives, so that a method with two structures lies in two cells. ``both`` is spelled out as its two
    schedules; ``unspecified`` stays, for a preset to fill.
    """
    m = method(m) if isinstance(m, str) else m
    schedules = tuple(s for s in _schedules(m) if s is not Schedule.both)
    return {
        "pipeline": (m.pipeline,),
        "schedule": schedules,
        "structure": m.structures,
        "locality": m.locality,
        "criterion": (m.criterion,),
    }


def frame(methods: Iterable[Method] | None = None) -> pd.DataFrame:
    """One row a method, for printing: words as text, several joined by commas; ``readings`` counts disagreements of the sources.

    Columns: key, name, year, pipeline, objectives, schedule, structures, locality, criterion, benchmarked, readings, title,
    venue, paper, code.
    """
    import pandas as pd

    rows = [
        {
            "key": m.key,
            "name": m.name,
            "year": m.year,
            "pipeline": str(m.pipeline),
            "objectives": "; ".join(f"{stage}: {' + '.join(words)}" for stage, words in m.objectives.items()),
            "schedule": str(m.schedule),
            "structures": ", ".join(m.structures),
            "locality": ", ".join(m.locality),
            "criterion": str(m.criterion),
            "benchmarked": ", ".join(m.benchmarked),
            "readings": len(m.readings),
            "title": m.title,
            "venue": m.venue or "",
            "paper": m.paper or "",
            "code": m.code or "",
        }
        for m in (_all() if methods is None else methods)
    ]
    columns = "key name year pipeline objectives schedule structures locality criterion benchmarked readings"
    return pd.DataFrame(rows, columns=[*columns.split(), "title", "venue", "paper", "code"])


def leaderboard() -> pd.DataFrame:
    """The survey's 154 published results, one row a cell of its four tables.

    Columns: data (``cifar10``, ``svhn``), structure_group (``unstructured``, ``structured``), network (``resnet18``,
    ``vgg16``), sparsity (share removed), method (our key), clean and robust (accuracy in per cent; robust against AutoAttack,
    l_inf), bold (marked in the source), checkpoint_key (for every cell), checkpoint_id and checkpoint_extension (empty where no
    file is listed), distances_key and distances_id (likewise), note. A cell the source leaves out is an absent row.
    """
    return _table("leaderboard.csv").copy()


def leaderboard_history() -> pd.DataFrame:
    """What changed in the survey's tables from one version to the next: values, bold marks, rows added and removed (27 rows)."""
    return _table("leaderboard_history.csv").copy()


def networks() -> pd.DataFrame:
    """The conv and linear layers of the two base networks in order of execution: 21 of ResNet18, 16 of VGG16.

    Columns: network, index, layer (name in the state_dict), kind (``conv``, ``linear``), weight_shape (tuple), weights, bias
    (their numbers), input_size, output_size (tuples, without the batch), macs (multiply-accumulates for one 3 x 32 x 32 image).
    """
    table = _table("networks.csv").copy()
    for column in ("weight_shape", "input_size", "output_size"):
        table[column] = [tuple(int(n) for n in str(size).split("x")) for size in table[column]]
    return table


@cache
def _table(name: str) -> pd.DataFrame:
    import pandas as pd

    numeric = {f"{n}{when}" for n in ("sparsity", "clean", "robust") for when in ("", "_before", "_after")}
    numeric |= {"index", "weights", "bias", "macs"}
    path = data_path(name)
    columns = path.read_text("utf-8").split("\n", 1)[0].split(",")
    table = pd.read_csv(path, keep_default_na=False, dtype={c: str for c in columns}, encoding="utf-8")
    for column in numeric & set(columns):
        table[column] = pd.to_numeric(table[column].replace("", None))
    if "bold" in columns:
        table["bold"] = table["bold"] == "true"
    return table


def check_entry(entry: str | Path | Mapping[str, Any]) -> Method:
    """Read a taxonomy entry that a person wrote: a JSON file with one object, or that object; the fields are those of `Method`.

    Raises:
        Invalid: the file is not there or is not JSON, or one sentence with every problem found in the entry.
    """
    if isinstance(entry, Mapping):
        what = "the taxonomy entry"
    else:
        what, entry = f"the taxonomy entry {str(entry)!r}", read_json(Path(entry))
        if not isinstance(entry, dict):
            raise Invalid(f"{what} holds a {type(entry).__name__}, but one method is one JSON object with fields such as 'key'")
    entry = dict(entry)
    problems = _shape_problems(entry) + _problems(entry)
    readings = entry.get("readings")
    for number, reading in enumerate(readings if isinstance(readings, list) else ()):
        try:
            Reading(**reading)
        except Invalid as error:
            problems.append(f"readings.{number}: {error}")
        except (TypeError, AttributeError):  # a missing field or a wrong type: told above
            pass
    if problems:
        raise Invalid(_sentence(what, problems))
    return _build(entry)


def read_json(path: Path, what: str = "one taxonomy entry") -> Any:
    """What a JSON file that a person wrote holds.

    Raises:
        Invalid: no such file, one that cannot be read, or no JSON: where; ``what`` is said to be expected.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise Invalid(f"there is no file {str(path)!r}: give the path of a JSON file with {what}") from None
    except OSError as error:
        raise Invalid(f"{str(path)!r} cannot be read ({error.strerror}): give a JSON file with {what}") from None
    except UnicodeDecodeError:
        raise Invalid(f"{str(path)!r} is not a text file in UTF-8: give a JSON file with {what}") from None
    except json.JSONDecodeError as error:
        raise Invalid(f"{str(path)!r} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except (RecursionError, ValueError):
        raise Invalid(
            f"{str(path)!r} is nested too deeply or holds a number of thousands of digits: give a JSON file with {what}"
        ) from None


def _shape_problems(entry: dict[str, Any]) -> list[str]:
    """Missing and unknown fields, and values of a wrong type."""
    try:
        from pydantic import ValidationError
    except ImportError:
        raise Invalid("checking a taxonomy entry needs pydantic, which is not installed: run 'pip install pydantic'") from None
    model, reading = _entry_models()
    try:
        model.model_validate(entry)
    except ValidationError as failure:
        return [_told(error, model, reading) for error in failure.errors(include_url=False)]
    return []


def _told(error: Mapping[str, Any], model: Any, reading: Any) -> str:
    *place, name = error["loc"]
    where = ".".join(map(str, error["loc"]))
    inside = f" in {'.'.join(map(str, place))}" if place else ""
    if error["type"] == "extra_forbidden":
        known = (reading if place else model).model_fields
        return f"no field {name!r}{inside}; did you mean {nearest(str(name), known)}?"
    if error["type"] == "missing":
        return f"the field {name!r}{inside} is missing"
    message = error["msg"].replace("Input should be", "must be").replace("instance of str", "text")
    return f"{where} {message}, but is {error['input']!r}"


@cache
def _entry_models() -> tuple[Any, Any]:
    from pydantic import BaseModel, ConfigDict

    class ReadingFile(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        field: str
        scope: str
        readings: dict[str, str]
        chosen: str | list[str]
        reason: str

    class MethodFile(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        key: str
        name: str
        title: str
        first_author: str
        year: int
        pipeline: str
        objectives: dict[str, list[str]]
        schedule: str
        structures: list[str]
        locality: list[str]
        criterion: str
        survey_key: str | None = None
        venue: str | None = None
        bibliography: str = "unknown"
        paper: str | None = None
        code: str | None = None
        benchmarked: list[str] = []
        sources: dict[str, dict[str, str]] = {}
        readings: list[ReadingFile] = []
        note: str | None = None

    return MethodFile, ReadingFile
