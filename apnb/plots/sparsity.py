"""The robustness-sparsity curve: what pruning costs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from apnb.errors import Invalid
from apnb.plots.look import ATTACKS, BLACK, CLEAN, CRITERIA, GREY, PIPELINES, SPARE, STRUCTURES, titled

if TYPE_CHECKING:
    import pandas as pd


def robustness_sparsity(frame: pd.DataFrame, *, title: str | None = None, published: pd.DataFrame | None = None) -> go.Figure:
    """What pruning costs: robust and clean accuracy against sparsity, one line for each way of pruning.

    Args:
        frame: rows of ``Runs.frame()`` or `apnb.sweeps.table` (columns: `apnb.store.ROW`); rows without an evaluation are left
            out, and of a run evaluated several times the evaluation with most points counts.
        title: the headline; default: the network and the data.
        published: rows of `apnb.taxonomy.leaderboard` to show as points of their own, open and without lines: another protocol.

    Returns:
        A figure with both axes in percent; ``customdata`` of a point is the key of its (first) run.
        Robust accuracy is a line with markers, clean accuracy a thin dotted one of the same
        colour. A point of one seed has Wilson's 95 % interval as its bar; where a line has several seeds, its points are medians
        and the bars go from the lowest to the highest, which the legend says. Runs at sparsity 0 are horizontal lines.

    Raises:
        Invalid: nothing to show, or rows that one axis cannot carry: different eps, attacks or data sets.
    """
    frame = evaluated(frame)
    eps, attacks, data = (only(frame, column) for column in ("eps", "attacks", "data"))
    varying = [c for c in ("network", "budget", "train_eps") if frame[c].nunique() > 1]
    groups = sorted(frame.groupby(["label", *varying], sort=True), key=lambda g: (is_dense(g[0][0]), g[0]))
    lines = [(key, rows) for key, rows in groups if not is_dense(key[0])]
    dense = [(key, rows) for key, rows in groups if is_dense(key[0])]
    asked = sorted({float(s) for some in (frame, published) if some is not None for s in some["sparsity"] if s > 0})
    low, high = (asked[0] * 100 - 3, asked[-1] * 100 + 3) if asked else (0.0, 100.0)

    figure, used = go.Figure(), set()
    for key, rows in lines:
        for trace in _curve(_name(key, varying, rows), rows, style(rows.iloc[0], used)):
            figure.add_trace(trace)
    for i, (key, rows) in enumerate(dense):
        for trace in _reference(_name(key, varying, rows), rows, (low, high), (BLACK, *SPARE)[i % 4]):
            figure.add_trace(trace)
    for trace in _published(published) if published is not None else ():
        figure.add_trace(trace)
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="lines",
            name="thin and dotted: clean accuracy",
            line={"color": GREY, "width": 1.5, "dash": CLEAN},
        )
    )
    few, many = int(frame["n"].min()), int(frame["n"].max())
    n = f"{few}" if few == many else f"{few} to {many}"
    bars = "; bars: 95 % interval for the choice of images" if any(not seeds_of(rows) for _, rows in lines) else ""
    said = f"robust: upper bound, found by {ATTACKS.get(attacks, attacks)}<br>eps = {eps:.4g}, n = {n} test images{bars}"
    networks = " and ".join(sorted(frame["network"].astype(str).unique()))
    titled(
        figure,
        title or f"Accuracy under attack against sparsity: {networks} on {data}",
        said,
        xaxis={"title": {"text": "sparsity asked for (% of units removed)"}, "range": [low, high], "ticksuffix": " %"},
        yaxis={"title": {"text": "accuracy (% of test images)"}, "range": [-1, 101], "dtick": 20},
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0, "tracegroupgap": 0},
        margin={"t": 100, "b": 90 + 18 * (len(groups) // 2)},
        height=450 + 18 * (len(groups) // 2),
    )
    if asked and len(asked) <= 8 and all(b - a > 0.03 * (asked[-1] - asked[0]) for a, b in pairwise(asked)):
        figure.update_xaxes(tickvals=[s * 100 for s in asked], ticktext=[f"{s * 100:g} %" for s in asked], ticksuffix="")
    return figure


def evaluated(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows with an evaluation; for each run its largest, the newest among equals."""
    missing = {"label", "sparsity", "robust", "clean", "n", "eps", "attacks", "data"} - set(frame.columns)
    if missing:
        raise Invalid(
            f"the frame lacks the columns {', '.join(sorted(missing))}; take one from apnb.sweep(...).frame() or "
            "apnb.sweeps.table()"
        )
    frame = frame[frame["robust"].notna()]
    if frame.empty:
        raise Invalid(
            "there is no evaluated run to show; run apnb.sweep(recipes) first, with evaluate=True, and pass its .frame()"
        )
    return frame.sort_values("n", kind="stable").drop_duplicates(["key", "eps", "attacks"], keep="last").sort_index()


def is_dense(label: str) -> bool:
    return label.split("/")[0] == "dense"


def only(frame: pd.DataFrame, column: str) -> Any:
    values = sorted(frame[column].unique())
    if len(values) > 1:
        told = " and ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
        raise Invalid(f"one figure cannot compare different {column}: got {told}; select the rows of one of them")
    return values[0]


def seeds_of(rows: pd.DataFrame) -> int:
    """The largest number of seeds at one sparsity of a line, if it is more than one, else 0."""
    groups = rows.groupby([c for c in ("label", "sparsity", "network", "budget", "train_eps") if c in rows])
    runs, seeds = int(groups.size().max()), int(groups["seed"].nunique().max())
    if runs > seeds:
        raise Invalid(
            f"{rows['label'].iloc[0]} stands {runs} times at one sparsity with {seeds} seeds: the runs differ in something that the "
            "table does not name (numbers of a custom budget, say); give the budgets names, or draw them in separate figures"
        )
    return runs if runs > 1 else 0


def _name(key: tuple, varying: list[str], rows: pd.DataFrame) -> str:
    parts = [str(v) if c != "train_eps" else f"trained at eps {v:.4g}" for c, v in zip(varying, key[1:], strict=True)]
    seeds = seeds_of(rows)
    return ", ".join([str(key[0]), *parts, *([f"median of {seeds} seeds, bars lowest to highest"] if seeds else [])])


def style(row: Mapping, used: set) -> dict[str, str]:
    """Colour, marker and dash of a way of pruning; a spare colour if another line of this figure looks the same."""
    marker = STRUCTURES.get(row["structure"], "cross")
    marker += "-open" if row["locality"] == "local" else ""
    marker += "-dot" if row["schedule"] == "iterative" else ""
    dash = CRITERIA.get(row["criterion"], "solid")
    colours = (PIPELINES.get(row["pipeline"], BLACK), *SPARE)
    colour = next((c for c in colours if (c, marker, dash) not in used), colours[-1])
    used.add((colour, marker, dash))
    return {"color": colour, "marker": marker, "dash": dash}


def _curve(name: str, rows: pd.DataFrame, style: dict[str, str]) -> list[go.Scatter]:
    several = seeds_of(rows) > 0
    points = [point(s * 100, at, several) for s, at in rows.groupby("sparsity", sort=True)]
    colour, marker = style["color"], style["marker"]
    traces = []
    for what, width, size, dash in (("clean", 1.5, 5, CLEAN), ("robust", 2.5, 9, style["dash"])):
        y, up, down = zip(*(p[what] for p in points), strict=True)
        traces.append(
            go.Scatter(
                x=[p["x"] for p in points], y=list(y), name=name if what == "robust" else f"{name} (clean)",
                meta=what, legendgroup=name, showlegend=what == "robust", mode="lines+markers",
                line={"color": colour, "width": width, "dash": dash},
                marker={"symbol": marker, "size": size, "color": colour, "line": {"width": 1.5 if "open" in marker else 0.5}},
                error_y={"type": "data", "symmetric": False, "array": list(up), "arrayminus": list(down), "color": colour,
                         "thickness": 1.2 if what == "robust" else 0.7, "width": 4 if what == "robust" else 2},
                text=[p["text"] for p in points], customdata=[p["key"] for p in points],
                hovertemplate=f"<b>{name}</b><br>{what} %{{y:.1f}} %<br>%{{text}}<extra></extra>",
            )
        )  # fmt: skip
    return traces


def point(x: float, rows: pd.DataFrame, several: bool) -> dict[str, Any]:
    """A marker: for robust and clean (value, up, down) in percent, what hovering says, and the key of its first run."""
    point: dict[str, Any] = {"x": x, "text": _hover(rows), "key": str(rows.iloc[0]["key"])}
    for what in ("robust", "clean"):
        middle = float(rows[what].median())
        low, high = (float(rows[what].min()), float(rows[what].max())) if several else _interval(rows.iloc[0], what)
        point[what] = (100 * middle, 100 * max(0.0, high - middle), 100 * max(0.0, middle - low))
    return point


def _interval(row: Mapping, what: str) -> tuple[float, float]:
    from apnb.verdicts import wilson

    return (float(row["low"]), float(row["high"])) if what == "robust" else wilson(round(row["clean"] * row["n"]), int(row["n"]))


def _hover(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    lines = [f"asked {row['sparsity']:.2%}, zeros in all prunable weights {row['weights']:.2%}"]
    if len(rows) == 1:
        robust, clean = (" to ".join(f"{v:.1%}" for v in _interval(row, what)) for what in ("robust", "clean"))
        lines += [f"95 % intervals: robust {robust}, clean {clean}", f"run {row['key']}"]
    else:
        lines += [f"{len(rows)} seeds: robust {rows['robust'].min():.1%} to {rows['robust'].max():.1%}",
                  "runs " + ", ".join(str(k)[:8] for k in rows["key"])]  # fmt: skip
    lines.append(f"{ATTACKS.get(row['attacks'], row['attacks'])}, eps {row['eps']:.4g}, n = {int(row['n'])}")
    return "<br>".join(lines)


def _published(rows: pd.DataFrame) -> list[go.Scatter]:
    """Robust accuracies of the survey's tables, one trace a method: the pipeline's colour, open markers."""
    from apnb import taxonomy

    symbols = (
        "circle-open",
        "square-open",
        "diamond-open",
        "cross-open",
        "x-open",
        "triangle-up-open",
        "star-open",
        "pentagon-open",
    )
    traces = []
    for i, (key, some) in enumerate(rows.groupby("method", sort=True)):
        method = taxonomy.method(key)
        traces.append(
            go.Scatter(
                x=[100 * s for s in some["sparsity"]], y=list(some["robust"]), mode="markers", name=f"{method.name} (published)",
                meta="published",
                marker={"symbol": symbols[i % len(symbols)], "size": 8, "color": PIPELINES[str(method.pipeline)], "line": {"width": 1.5}},
                hovertemplate=f"<b>{method.name}</b>, published<br>robust %{{y:.2f}} %<br>AutoAttack, eps 0.031, 10 000 test images"
                              "<extra></extra>",
            )
        )  # fmt: skip
    return traces


def _reference(name: str, rows: pd.DataFrame, span: tuple[float, float], colour: str) -> list[go.Scatter]:
    """The dense network as two horizontal lines."""
    text = _hover(rows)
    traces = []
    for what, width, dash in (("clean", 1.5, CLEAN), ("robust", 2.0, "6px,3px")):
        y = 100 * float(rows[what].median())
        traces.append(
            go.Scatter(
                x=list(span), y=[y, y], mode="lines", name=name if what == "robust" else f"{name} (clean)", meta=what,
                legendgroup=name, showlegend=what == "robust", line={"color": colour, "width": width, "dash": dash},
                text=[text] * 2, customdata=[str(rows.iloc[0]["key"])] * 2,
                hovertemplate=f"<b>{name}</b><br>{what} %{{y:.1f}} %<br>%{{text}}<extra></extra>",
            )
        )  # fmt: skip
    return traces
