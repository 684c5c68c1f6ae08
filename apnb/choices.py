"""What can be chosen, and why something cannot: the grammar as a form, without any widget.

A *choice* is a dict: method, the five words of a cell, their options, objectives of the stages, network, data, budget, device, texts for
sparsities, seeds and eps. `complete` fills in what follows from the rest, `options` says for every word whether it could be chosen
now and, if not, why, and `recipes` makes the recipes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apnb import taxonomy
from apnb.errors import Invalid, listed
from apnb.presets import PRESETS
from apnb.recipes import (
    PIPELINES,
    RAMPS,
    STAGES,
    STRUCTURES,
    TRAINABLE,
    VARIANTS,
    Budget,
    Recipe,
    check_sparsity,
    recipe,
)

STAGE_NAMES = tuple(dict.fromkeys(stage for stages in STAGES.values() for stage in stages))
FOLLOWING = (*STAGE_NAMES, "variant", "ramp", "rewind", "as_released")
"""What belongs to a cell or a method and is chosen anew when that changes."""
CELL = ("pipeline", "schedule", "structure", "locality", "criterion")
OWN = ""
"""The method of a cell of one's own."""
WORDS: dict[str, dict[str, str]] = {
    "pipeline": {p: f"{p} training" for p in PIPELINES},
    "schedule": {"one_shot": "one cut", "iterative": "several cuts"},
    "structure": {s: s for s in STRUCTURES},
    "locality": {"local": "within each layer", "global": "across the network"},
    "criterion": {"lwm": "LWM: smallest |w|", "relwm": "RELWM: |w| after a penalty", "solwm": "SOLWM: ADMM",
                  "lis": "LIS: learned scores", "hgm": "HGM: gradients", "bcs": "BCS: connections"},
    "variant": {"l1": "penalty on weights", "group_lasso": "penalty on groups", "learned": "scores are learned",
                "saliency": "saliency |w dL/dw|"},
    "ramp": {r: r for r in RAMPS},
    "rewind": {"no": "go on from there", "yes": "rewind the weights"},
    "as_released": {"no": "as in the paper", "yes": "as in the authors' code"},
    "network": {n: n for n in ("cnn", "resnet8", "resnet18", "vgg16")},
    "data": {d: d for d in ("digits", "cifar10", "svhn")},
    "budget": {b: b for b in ("tiny", "quick", "standard", "paper")},
    "attacks": {"standard": "AutoAttack", "lite": "lite: first two", "pgd": "PGD: quick look"},
    "distances": {"no": "at eps only", "yes": "and security curves"},
    "device": {d: d for d in ("auto", "cpu", "cuda")},
}  # fmt: skip
"""Name of a choice -> the words it takes -> how they read on a page."""
SPARSITIES = (0.5, 0.75, 0.9, 0.95, 0.99)
SIZES = {"digits": 8, "cifar10": 32, "svhn": 32}
SMALLEST = {"cnn": 8, "resnet8": 8, "resnet18": 32, "vgg16": 16}
"""Side of the images of a data set, and of the smallest that a network takes."""
START: dict[str, Any] = {
    "method": OWN, "pipeline": "after", "schedule": "one_shot", "structure": "weights", "locality": "global", "criterion": "lwm",
    "sparsities": (0.5, 0.9), "network": "cnn", "data": "digits", "budget": "quick", "seeds": "0", "eps": "", "attacks": "standard",
    "distances": "no", "device": "auto",
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """A word that can be chosen; ``reason`` says why it cannot be now, empty if it can."""

    value: str
    text: str
    reason: str = ""


def complete(choice: Mapping[str, Any]) -> dict[str, Any]:
    """A choice in which nothing contradicts: a method brings its cell, and what a cell does not have is dropped.

    Raises:
        Invalid: a name or a word that does not exist.
    """
    unknown = [name for name in choice if name not in {*START, *WORDS, *STAGE_NAMES}]
    if unknown:
        raise Invalid(f"there is no choice {unknown[0]!r}; there are {', '.join([*START, *STAGE_NAMES])}")
    chosen = {**START, **choice}
    if chosen["method"]:
        chosen |= _cell_of(chosen)
    for name in (*CELL, "budget", "attacks", "distances", "device"):
        _known(name, chosen[name])
    for name in ("rewind", "as_released"):
        if chosen.get(name):
            _known(name, chosen[name])
    least, size = SMALLEST.get(chosen["network"], 0), SIZES.get(chosen["data"], math.inf)
    if size < least:
        raise Invalid(f"{chosen['network']} takes images of {least}x{least} and more, {chosen['data']} has {size}x{size}")
    if chosen["network"] not in SMALLEST and ":" not in str(chosen["network"]):
        raise Invalid(f"no network {chosen['network']!r}; choose {', '.join(SMALLEST)}, or package:factory")
    if chosen["device"] == "cuda" and not _has_cuda():
        raise Invalid("torch finds no CUDA device here; choose auto or cpu")
    made = _recipe(chosen, 0.9)
    if made.preset is None and chosen["method"] in PRESETS:
        chosen["method"] = OWN
    for name in ("variant", "ramp"):
        chosen[name] = getattr(made, name) or ""
    chosen["rewind"] = "yes" if made.rewind else "no"
    chosen["as_released"] = "yes" if made.as_released else "no"
    for stage in STAGE_NAMES:
        chosen[stage] = getattr(made, stage) or ""
    return chosen


def _known(name: str, value: Any) -> None:
    if value not in WORDS[name]:
        raise Invalid(f"no {name} {value!r}; choose {', '.join(WORDS[name])}")


def _cell_of(chosen: Mapping[str, Any]) -> dict[str, str]:
    """The words of a method's cell; of alternatives the chosen one if it is among them, else the first."""
    key = chosen["method"]
    if key in PRESETS:
        made = recipe(
            key, structure=chosen["structure"] if chosen["structure"] in PRESETS[key].units else next(iter(PRESETS[key].units))
        )
        return {name: getattr(made, name) for name in CELL}
    words = taxonomy.cell_of(key)
    cell = {}
    for name in CELL:
        open_to = [str(w) for w in words[name] if str(w) in WORDS[name]]
        cell[name] = chosen[name] if chosen[name] in open_to or not open_to else open_to[0]
    return cell


def chosen_with(choice: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The choice after one more click: a method brings its cell; a word outside a method's cell leaves the method.

    Raises:
        Invalid: a word that does not exist, or one that contradicts the others (see `options`).
    """
    if name == "sparsities":
        value = tuple(check_sparsity(s) for s in ([value] if isinstance(value, int | float) else value))
    changed = {**choice, name: value}
    if name == "method":
        changed = {k: v for k, v in changed.items() if k not in FOLLOWING}
        return complete(changed)
    if name in CELL:
        changed = {k: v for k, v in changed.items() if k not in FOLLOWING}
        if changed["method"] and _cell_of(changed)[name] != value:
            changed["method"] = OWN
    return complete(changed)


def _recipe(chosen: Mapping[str, Any], sparsity: float, seed: int = 0) -> Recipe:
    """The recipe of a choice; options that are absent or empty are the default."""
    given: dict[str, Any] = {name: chosen[name] for name in STAGE_NAMES if chosen.get(name)}
    given |= {"sparsity": sparsity, "seed": seed, "budget": chosen["budget"]}
    if chosen["method"] in PRESETS:
        return recipe(
            chosen["method"], structure=chosen["structure"], as_released=chosen.get("as_released") == "yes", **given
        )  # fmt: skip
    given |= {name: chosen[name] for name in ("variant", "ramp") if chosen.get(name)}
    if chosen.get("rewind"):
        given["rewind"] = chosen["rewind"] == "yes"
    return Recipe(**{name: chosen[name] for name in CELL}, **given)


def options(choice: Mapping[str, Any]) -> dict[str, list[Option]]:
    """Every word of every choice, with the reason for which it cannot be chosen now.

    Choices that do not exist for the cell (a ramp of a single cut), or leave nothing to choose, have no words at all.
    """
    chosen = complete(choice)
    found: dict[str, list[Option]] = {"method": [Option(OWN, "a cell of my own"), *_methods()]}
    for name in CELL:
        found[name] = [Option(w, text, _contradiction(chosen, name, w)) for w, text in WORDS[name].items()]
    made = _recipe(chosen, 0.9)
    variants = () if made.preset else VARIANTS.get(chosen["criterion"], ())
    found["variant"] = [Option(v, WORDS["variant"][v], _contradiction(chosen, "variant", v)) for v in variants]
    iterative = chosen["schedule"] == "iterative" and not made.preset
    found["ramp"] = [Option(r, r) for r in RAMPS] if iterative else []
    found["rewind"] = _tried(chosen, "rewind") if not made.preset else []
    found["as_released"] = _tried(chosen, "as_released") if made.preset and made.preset.released else []
    for stage in STAGE_NAMES:
        words = made.preset.objectives.get(stage, ()) if made.preset else (
            (*TRAINABLE, "none") if stage in STAGES[chosen["pipeline"]] else ())  # fmt: skip
        found[stage] = [Option(w, w, _contradiction(chosen, stage, w)) for w in words]
        if sum(not o.reason for o in found[stage]) < 2:
            found[stage] = []  # nothing to choose
    for name in ("network", "data", "budget", "attacks", "distances", "device"):
        found[name] = _tried(chosen, name)
    return found


def _tried(chosen: Mapping[str, Any], name: str) -> list[Option]:
    return [Option(w, text, _contradiction(chosen, name, w)) for w, text in WORDS[name].items()]


def _contradiction(chosen: Mapping[str, Any], name: str, value: str) -> str:
    try:
        chosen_with(chosen, name, value)
    except Invalid as error:
        return str(error)
    return ""


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _methods() -> list[Option]:
    runs = {p.survey: [k for k, q in PRESETS.items() if q.survey == p.survey] for p in PRESETS.values()}
    found = []
    for m in taxonomy.methods():
        for key in runs.get(m.key, [m.key]):
            name = PRESETS[key].name if key in PRESETS else f"{m.name} (its cell)"
            found.append(Option(key, f"{name}, {m.first_author} {m.year}"))
    return found


def neighbours(choice: Mapping[str, Any]) -> str:
    """Which published methods live in the chosen cell, in a sentence; an empty cell is called one."""
    chosen = complete(choice)
    living = []
    for m in taxonomy.methods():
        words = taxonomy.cell_of(m)
        if all(chosen[name] in map(str, words[name]) or "unspecified" in map(str, words[name]) for name in CELL):
            living.append(m.name)
    if not living:
        return "An empty cell: no surveyed method lives here."
    return f"{listed(living)} {'live' if len(living) > 1 else 'lives'} in this cell."


def seeds_of(text: str) -> tuple[int, ...]:
    """``0, 1, 2`` or ``0-4`` as numbers.

    Raises:
        Invalid: something else, or none.
    """
    found: list[int] = []
    for part in str(text).replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        numbers = first.isdecimal() and (last.isdecimal() or not dash) and len(part) <= 12
        if numbers:
            found += range(int(first), min(int(last or first), int(first) + 100) + 1)
        if not numbers or int(last or first) < int(first) or len(found) > 100:
            raise Invalid(f"seeds are up to 100 whole numbers such as 0 or 0, 1, 2 or 0-4; got {str(text)[:40]!r}")
    return tuple(dict.fromkeys(found))


def eps_of(text: str) -> float | None:
    """A radius as a number or as ``8/255``; None for the data set's own.

    Raises:
        Invalid: something else.
    """
    text = str(text).strip()
    if not text:
        return None
    over, slash, under = text.partition("/")
    try:
        eps = float(over) / float(under) if slash else float(over)
    except (ValueError, ZeroDivisionError):
        eps = 0.0
    if not 0 < eps <= 1:
        raise Invalid(
            f"eps is a share of the pixel range such as 8/255 or 0.15, or empty for the data set's own; got {text[:40]!r}"
        )
    return eps


def recipes(choice: Mapping[str, Any], budget: Budget | None = None) -> list[Recipe]:
    """The recipes of a choice, one for each sparsity and seed, without the dense network.

    Args:
        budget: takes the place of the chosen budget's name.

    Raises:
        Invalid: no sparsity, or texts that say no seeds.
    """
    chosen = complete(choice)
    if budget is not None:
        chosen["budget"] = budget
    shares = [check_sparsity(s) for s in chosen["sparsities"]]
    if not shares:
        raise Invalid("no sparsity is chosen; choose at least one")
    return [_recipe(chosen, s, seed) for seed in seeds_of(chosen["seeds"]) for s in sorted(set(shares))]


def code(
    recipes: Sequence[Recipe], network: object = "cnn", data: object = "digits", eps: float | None = None, **options: Any
) -> str:
    """The Python that runs recipes which differ in sparsity and seed only, the dense network with them, and draws the curve."""
    if not recipes:
        raise Invalid("there is nothing to write as code: choose at least one sparsity")
    shares, seeds = (tuple(dict.fromkeys(getattr(r, name) for r in recipes)) for name in ("sparsity", "seed"))
    marked = dataclasses.replace(recipes[0], sparsity=0.123456, **({"seed": 987654321} if len(seeds) > 1 else {}))
    call = marked.code(network, data).split("recipe = ", 1)[1].splitlines()[0].replace("sparsity=0.123456", "sparsity=s")
    call = call.replace("seed=987654321", "seed=seed")
    given = "".join(f", {k}={v!r}" for k, v in {"eps": eps, **options}.items() if v is not None)
    loops = f"for s in {shares}" + (f" for seed in {seeds}" if len(seeds) > 1 else "")
    return (
        f"import apnb\n\nrecipes = [{call}\n           {loops}]\n"
        f"runs = apnb.sweep(apnb.sweeps.with_dense(recipes), network={network!r}, data={data!r}{given})\n"
        "figure = apnb.plots.robustness_sparsity(runs.frame())\nfigure\n"
    )
