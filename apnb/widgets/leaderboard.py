"""The survey's leaderboard to sort, filter and look at, with a reader's own results laid over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import traitlets as t

from apnb import benchmark, taxonomy
from apnb.errors import Invalid, choose
from apnb.evaluation import NAMES
from apnb.taxonomy import Criterion, Group, Pipeline
from apnb.widgets.static import StaticWidget

VIEWS = ("table", "sparsity", "front", "ranks")
SORTABLE = ("label", "data", "structure_group", "network", "sparsity", "pipeline", "criterion", "clean", "robust")
_TITLES = {
    "source": "whose",
    "data": "data",
    "structure_group": "structure",
    "network": "network",
    "sparsity": "sparsity",
    "pipeline": "pipeline",
    "criterion": "criterion",
    "label": "method",
}
_WORDS: dict[str, type[taxonomy.Word]] = {"structure_group": Group, "pipeline": Pipeline, "criterion": Criterion}
_SAID = {
    "published": "published",
    "run": "my runs",
    "evaluation": "my networks",
    **benchmark.SAID,
}


def _plain(value: Any) -> Any:
    """NaN and None become null, numbers of pandas and enums become JSON's."""
    if value is None or value != value:
        return None
    return value if isinstance(value, bool | int | float) else str(value)


def leaderboard_data(runs: Any = None, evaluations: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Rows (published and own), which of them are on a front, dimensions with their words, rank agreements: plain JSON."""
    rows = []
    published = benchmark.published()
    front = set(benchmark.pareto(published).index)
    for i, row in enumerate([*published.to_dict("records"), *benchmark.overlay(runs, evaluations).to_dict("records")]):
        mine = row["source"] != "published"
        n = f"{row['n']:,}".replace(",", " ")
        how = f"{NAMES.get(row['attacks'], row['attacks'])}, eps {row['eps']:.4g}, {n} images"
        on_front = not mine and i in front
        rows.append({**{k: _plain(v) for k, v in row.items()}, "id": f"r{i}", "mine": mine, "front": on_front, "how": how})
    dimensions = []
    for name, title in _TITLES.items():
        known = list(dict.fromkeys(str(w) for w in _WORDS.get(name, ())))
        found = {row[name] for row in rows if row[name] not in (None, "")}
        order = sorted(found, key=lambda w: (known.index(w) if w in known else len(known), w))
        words = [{"word": w, "label": _said(name, w), "text": _text(name, w)} for w in order]
        if len(words) > 1:
            dimensions.append({"name": name, "title": title, "words": words})
    agreement = [{k: _plain(v) for k, v in row.items()} for row in benchmark.agreement().to_dict("records")]
    return {"rows": rows, "dimensions": dimensions, "agreement": agreement, "protocol": benchmark.PROTOCOL, "said": _SAID}


def _said(name: str, word: Any) -> str:
    if name == "sparsity":
        return f"{100 * word:g} %"
    return _SAID.get(word, word.upper() if name == "criterion" else str(word))


def _text(name: str, word: Any) -> str:
    words = _WORDS.get(name)
    return words(word).label if words and word in list(words) else ""


class Leaderboard(StaticWidget):
    """The four published tables in one: sort, filter, see what sparsity costs, who is on the clean-robust front, how ranks change.

    Works without a kernel, too. Own results are drawn over the published ones with interval and n; those made with another attack,
    eps, data set or network are marked and never ranked.

    Args:
        runs, evaluations: own results, as for `apnb.benchmark.overlay`.
        state: first values of the traits below.

    Attributes:
        view: ``table``, ``sparsity`` (robustness against sparsity), ``front`` (clean against robust), ``ranks``.
        filters: column -> the words of which one must fit. sort: column and ``asc`` or ``desc``.
        selected: the label that stands out, or "".

    Raises:
        Invalid: something else was given as runs, or an unknown word in a trait.
    """

    _esm = Path(__file__).parent / "explorer.js"
    kind = t.Unicode("leaderboard").tag(sync=True)
    data = t.Dict().tag(sync=True)
    view = t.Unicode("table").tag(sync=True)
    filters = t.Dict().tag(sync=True)
    sort = t.List(t.Unicode(), ["robust", "desc"], minlen=2, maxlen=2).tag(sync=True)
    selected = t.Unicode().tag(sync=True)

    def __init__(self, runs: Any = None, evaluations: Mapping[str, Any] | None = None, **state: Any):
        super().__init__(data=leaderboard_data(runs, evaluations), **state)

    def fallback(self) -> str:
        """The best published method of each column, as a table."""
        columns = ("data", "structure_group", "network", "sparsity")
        best: dict[tuple, dict[str, Any]] = {}
        for row in sorted((r for r in self.data["rows"] if not r["mine"]), key=lambda r: -r["robust"]):
            best.setdefault(tuple(row[name] for name in columns), row)
        order = sorted(best.values(), key=lambda r: [r[name] for name in columns])
        rows = [[*(_said(n, r[n]) for n in columns), r["label"], f"{r['clean']:.2f}", f"{r['robust']:.2f}"] for r in order]
        titles = [*(_TITLES[name] for name in columns), "best method", "clean accuracy (%)", "robust accuracy (%)"]
        return self.table(f"The most robust of the published methods. {self.data['protocol']}", titles, rows)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows that pass the filters, columns as in `apnb.benchmark.ROW`."""
        fit = [r for r in self.data["rows"] if all(not words or r[name] in words for name, words in self.filters.items())]
        return [{k: r[k] for k in benchmark.ROW} for r in fit]

    @t.validate("view")
    def _check_view(self, proposal: dict) -> str:
        return choose(proposal["value"], VIEWS, "view")

    @t.validate("sort")
    def _check_sort(self, proposal: dict) -> list[str]:
        column, order = proposal["value"]
        return [choose(column, SORTABLE, "column to sort by"), choose(order, ("asc", "desc"), "order")]

    @t.validate("filters")
    def _check_filters(self, proposal: dict) -> dict:
        for name, words in proposal["value"].items():
            known = {d["name"]: [w["word"] for w in d["words"]] for d in self.data["dimensions"]}
            choose(name, known, "column to filter by")
            if isinstance(words, str) or any(w not in known[name] for w in words):
                raise Invalid(f"the filter {name!r} is {words!r}; give a list of words among {', '.join(map(str, known[name]))}")
        return proposal["value"]
