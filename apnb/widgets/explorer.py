"""The survey's taxonomy to walk through: filter, cross two dimensions, read a method's card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import traitlets as t

from apnb import taxonomy
from apnb.errors import Invalid, choose
from apnb.presets import PRESETS
from apnb.taxonomy import Group, Method
from apnb.widgets.static import StaticWidget

HERE = Path(__file__).parent
DIMENSIONS = {
    "pipeline": ("pipeline", taxonomy.Pipeline),
    "objective": ("objective", taxonomy.Objective),
    "schedule": ("schedule", taxonomy.Schedule),
    "structure": ("structure", taxonomy.Structure),
    "locality": ("locality", taxonomy.Locality),
    "criterion": ("criterion", taxonomy.Criterion),
    "benchmarked": ("published", taxonomy.Group),
}
"""Filter of `taxonomy.methods` -> its name on the page, and its words."""
NOT_BENCHMARKED = "none"
_SHORT = {
    "fgsm": "FGSM", "fast_at": "fast AT", "pgd_at": "PGD AT", "trades": "TRADES", "mart": "MART", "kd": "distillation", "cni": "CNI",
    "robust_dataset": "robust data", "one_shot": "one-shot", "unspecified": "not specified",
}  # fmt: skip


def words_of(m: Method) -> dict[str, list[str]]:
    """Dimension -> the words that a method fits, by the rules of `apnb.taxonomy.methods`."""
    cell = taxonomy.cell_of(m)
    return {
        "pipeline": [str(m.pipeline)],
        "objective": sorted({str(w) for words in m.objectives.values() for w in words}),
        "schedule": [str(w) for w in cell["schedule"]] + (["both"] if m.schedule == "both" else []),
        "structure": [str(w) for w in m.structures],
        "locality": [str(w) for w in m.locality],
        "criterion": [str(m.criterion)],
        "benchmarked": [str(w) for w in m.benchmarked] or [NOT_BENCHMARKED],
    }


def _dimension(name: str) -> dict[str, Any]:
    title, words = DIMENSIONS[name]
    used = {w for m in taxonomy.methods() for w in words_of(m)[name]}
    told = [{"word": str(w), "label": _short(w), "text": f"{w.label}: {w.text}"} for w in words if w in used]
    if words is Group:
        told.append({"word": NOT_BENCHMARKED, "label": "none", "text": "The method has no row in the leaderboard."})
    return {"name": name, "title": title, "words": told}


def _short(word: taxonomy.Word) -> str:
    return word.upper() if isinstance(word, taxonomy.Criterion) else _SHORT.get(word, str(word))


def _here(m: Method) -> dict[str, Any]:
    """How a method runs in this package: the names of its presets, and the line of Python."""
    presets = [key for key, preset in PRESETS.items() if preset.survey == m.key]
    return {"presets": presets, "code": f'lab = apnb.Lab()\nlab.choose_method("{m.key}")\nlab'}


def _card(m: Method, idea: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that the page says about a method."""
    return {
        "key": m.key,
        "name": m.name,
        "in": words_of(m),
        "search": " ".join([m.key, m.name, m.title, m.first_author, str(m.year), m.venue or "", idea]).lower(),
        "reference": f"{m.first_author} et al.: {m.title}. {m.venue or m.year}",
        "year": m.year,
        "bibliography": str(m.bibliography),
        "paper": m.paper,
        "code": m.code,
        "idea": idea,
        "stages": [[stage.replace("_", " "), [w.label for w in words]] for stage, words in m.objectives.items()],
        "readings": [
            {
                "field": r.field.replace("_", " "),
                "scope": r.scope.label,
                "readings": list(r.readings.items()),
                "chosen": r.chosen if isinstance(r.chosen, str) else ", ".join(r.chosen),
                "reason": r.reason,
            }
            for r in m.readings
        ],
        "note": m.note,
        "results": results,
        "here": _here(m),
    }


def methods_data() -> dict[str, Any]:
    """The dimensions with their words, and a card for each method: plain JSON."""
    ideas = json.loads((HERE / "ideas.json").read_text("utf-8"))
    results: dict[str, list] = {}
    for row in taxonomy.leaderboard().to_dict("records"):
        results.setdefault(row["method"], []).append(
            {k: row[k] for k in ("data", "structure_group", "network", "sparsity", "clean", "robust")}
        )
    return {
        "dimensions": [_dimension(name) for name in DIMENSIONS],
        "methods": [_card(m, ideas[m.key], results.get(m.key, [])) for m in taxonomy.methods()],
    }


class TaxonomyExplorer(StaticWidget):
    """The 26 surveyed methods: filter by every word of the taxonomy, see which cells nobody has published, read a method's card.

    Works without a kernel, too. All state is in traits, so that Python reads what was clicked and sets what is shown.

    Args:
        lab: an `apnb.Lab`; "open in the lab" on a card then calls its ``choose_method(key)``.
        state: first values of the traits below.

    Attributes:
        filters: dimension -> the words of which one must fit; dimensions are those of `apnb.taxonomy.methods`.
        text: every word of it must occur in name, title, author, year, venue or idea.
        axes: the two dimensions of the grid, rows and columns.
        selected: key of the method whose card is shown, or "". opened: key of the method last opened in the lab.
        problem: why the lab could not open it, or "".

    Raises:
        Invalid: an unknown dimension, word or method in a trait.

    Examples:
        ``explorer = apnb.TaxonomyExplorer()``; click; then ``apnb.taxonomy.frame(explorer.methods)``.
    """

    _esm = HERE / "explorer.js"
    kind = t.Unicode("taxonomy").tag(sync=True)
    data = t.Dict().tag(sync=True)
    filters = t.Dict().tag(sync=True)
    text = t.Unicode().tag(sync=True)
    axes = t.List(t.Unicode(), ["pipeline", "criterion"], minlen=2, maxlen=2).tag(sync=True)
    selected = t.Unicode().tag(sync=True)
    opened = t.Unicode().tag(sync=True)
    problem = t.Unicode().tag(sync=True)

    def __init__(self, lab: Any = None, **state: Any):
        self.lab = lab
        super().__init__(data={**methods_data(), "lab": lab is not None}, **state)

    def fallback(self) -> str:
        """The methods as a table."""
        columns = ("pipeline", "structure", "locality", "criterion")
        label = {d["name"]: {w["word"]: w["label"] for w in d["words"]} for d in self.data["dimensions"]}
        rows = [
            [m["name"], *(", ".join(label[name][word] for word in m["in"][name]) for name in columns)]
            for m in self.data["methods"]
        ]
        return self.table(f"The {len(rows)} surveyed methods", ["method", *columns], rows)

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that pass filters and text, in the survey's order."""
        wanted = self.text.lower().split()
        return tuple(
            taxonomy.method(m["key"])
            for m in self.data["methods"]
            if all(not words or set(words) & set(m["in"][name]) for name, words in self.filters.items())
            and all(word in m["search"] for word in wanted)
        )

    @t.validate("filters")
    def _check_filters(self, proposal: dict) -> dict:
        checked = {}
        for name, words in proposal["value"].items():
            name = choose(name, DIMENSIONS, "dimension")
            known = [*DIMENSIONS[name][1], *([NOT_BENCHMARKED] if name == "benchmarked" else [])]
            checked[name] = [choose(w, known, name) for w in ([words] if isinstance(words, str) else words)]
        return checked

    @t.validate("axes")
    def _check_axes(self, proposal: dict) -> list[str]:
        first, second = (choose(name, DIMENSIONS, "dimension") for name in proposal["value"])
        if first == second:
            raise Invalid(f"both axes of the grid are {first!r}; choose two dimensions among {', '.join(DIMENSIONS)}")
        return [first, second]

    @t.validate("selected", "opened")
    def _check_method(self, proposal: dict) -> str:
        return taxonomy.method(proposal["value"]).key if proposal["value"] else ""

    @t.observe("opened")
    def _open(self, change: dict) -> None:
        self.problem = ""
        if self.lab is not None and change["new"]:
            try:
                self.lab.choose_method(change["new"])
            except Invalid as error:
                self.problem = str(error)
