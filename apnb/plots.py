"""Figures: data in, plotly figure out. Nothing global is changed, except by `renderer`, which a notebook calls for itself.

What a thing is decides how it looks, in every figure: the pipeline gives the colour (Okabe and Ito's, told apart by colour-blind
eyes), structure, locality and schedule give the marker, the criterion gives the dash. So a line is recognised in grey, too.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apnb.errors import Invalid

if TYPE_CHECKING:
    import pandas as pd

    from apnb.curves import Distances
    from apnb.evaluation import Evaluation
    from apnb.masks import Sparsity
    from apnb.runs import Run

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY, LIGHT, BAND = "#666666", "#E3E3E3", "#F3F3F3"
PIPELINES = {"after": BLUE, "before": RED, "during": GREEN}
STRUCTURES = {"weights": "circle", "filters": "square", "channels": "diamond", "kernels": "triangle-up"}
CRITERIA = {
    "lwm": "solid", "relwm": "dash", "solwm": "longdash", "lis": "dashdot", "hgm": "longdashdot", "bcs": "12px,3px,3px,3px",
    "random": "2px,6px",
}  # fmt: skip
CLEAN = "dot"
"""The dash of clean accuracy, which no criterion has."""
SPARE = (ORANGE, PINK, SKY)
"""Colours for lines that the grammar would draw alike (two networks, two variants)."""
DIVERGING = ((0.0, BLUE), (0.5, "#FFFFFF"), (1.0, ORANGE))
ATTACKS = {
    "standard": "AutoAttack",
    "lite": "APGD-CE + APGD-T, the first two attacks of AutoAttack",
    "pgd": "PGD-50, weaker than AutoAttack",
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 13, "color": "#222222"},
        "title": {"x": 0, "xref": "paper", "xanchor": "left", "y": 0.97, "yanchor": "top", "font": {"size": 16}},
        "margin": {"l": 64, "r": 24, "t": 84, "b": 56},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": [BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK],
        "xaxis": {
            "gridcolor": LIGHT,
            "linecolor": GREY,
            "ticks": "outside",
            "zeroline": False,
            "title": {"standoff": 8, "font": {"size": 13}},
        },
        "yaxis": {
            "gridcolor": LIGHT,
            "linecolor": GREY,
            "ticks": "outside",
            "zeroline": False,
            "title": {"standoff": 8, "font": {"size": 13}},
        },
        "hoverlabel": {"align": "left", "font": {"size": 12}},
        "legend": {"font": {"size": 12}, "bgcolor": "rgba(255,255,255,0.8)"},
    }
)


def _titled(figure: go.Figure, title: str, subtitle: str = "", **layout: Any) -> go.Figure:
    figure.update_layout(template=TEMPLATE, title={"text": title, "subtitle": {"text": subtitle, "font": {"size": 12}}}, **layout)
    return figure


# --- the robustness-sparsity curve ------------------------------------------------------------------------------------------


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
    frame = _evaluated(frame)
    eps, attacks, data = (_only(frame, column) for column in ("eps", "attacks", "data"))
    varying = [c for c in ("network", "budget", "train_eps") if frame[c].nunique() > 1]
    groups = sorted(frame.groupby(["label", *varying], sort=True), key=lambda g: (_is_dense(g[0][0]), g[0]))
    lines = [(key, rows) for key, rows in groups if not _is_dense(key[0])]
    dense = [(key, rows) for key, rows in groups if _is_dense(key[0])]
    asked = sorted({float(s) for some in (frame, published) if some is not None for s in some["sparsity"] if s > 0})
    low, high = (asked[0] * 100 - 3, asked[-1] * 100 + 3) if asked else (0.0, 100.0)

    figure, used = go.Figure(), set()
    for key, rows in lines:
        for trace in _curve(_name(key, varying, rows), rows, _style(rows.iloc[0], used)):
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
    bars = "; bars: 95 % interval for the choice of images" if any(not _seeds(rows) for _, rows in lines) else ""
    said = f"robust: upper bound, found by {ATTACKS.get(attacks, attacks)}<br>eps = {eps:.4g}, n = {n} test images{bars}"
    networks = " and ".join(sorted(frame["network"].astype(str).unique()))
    _titled(
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


def _evaluated(frame: pd.DataFrame) -> pd.DataFrame:
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


def _is_dense(label: str) -> bool:
    return label.split("/")[0] == "dense"


def _only(frame: pd.DataFrame, column: str) -> Any:
    values = sorted(frame[column].unique())
    if len(values) > 1:
        told = " and ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
        raise Invalid(f"one figure cannot compare different {column}: got {told}; select the rows of one of them")
    return values[0]


def _seeds(rows: pd.DataFrame) -> int:
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
    seeds = _seeds(rows)
    return ", ".join([str(key[0]), *parts, *([f"median of {seeds} seeds, bars lowest to highest"] if seeds else [])])


def _style(row: Mapping, used: set) -> dict[str, str]:
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
    several = _seeds(rows) > 0
    points = [_point(s * 100, at, several) for s, at in rows.groupby("sparsity", sort=True)]
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


def _point(x: float, rows: pd.DataFrame, several: bool) -> dict[str, Any]:
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


# --- one run ----------------------------------------------------------------------------------------------------------------


def history(run: Run | pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """How the training went, over all stages: loss above, accuracies below, cuts as vertical lines.

    Args:
        run: an `apnb.Run` or its ``history`` (columns stage, kind, step, loss, accuracy, val_clean, val_pgd, clean, pgd, asked).

    Returns:
        A figure; x counts the epochs of all stages, losses are in nats, accuracies in percent. Accuracies right after a cut are
        open markers on its line.

    Raises:
        Invalid: a history without any epoch.
    """
    import pandas as pd

    rows = run if isinstance(run, pd.DataFrame) else run.history
    if rows.empty or not (rows["kind"] == "epoch").any():
        raise Invalid("this history has no epoch to draw; pass an apnb.Run that was trained, or its .history")
    rows = rows.assign(epoch=(rows["kind"] == "epoch").cumsum())
    epochs, cuts = rows[rows["kind"] == "epoch"], rows[rows["kind"] == "pruned"]
    cuts = cuts.assign(epoch=cuts["epoch"] + 0.5)  # after one epoch's mark and before the next one's
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.4, 0.6], vertical_spacing=0.06)
    figure.add_trace(
        go.Scatter(x=list(epochs["epoch"]), y=list(epochs["loss"]), name="training loss", mode="lines+markers",
                   line={"color": BLACK, "width": 2}, marker={"size": 4}, text=list(epochs["stage"]),
                   hovertemplate="%{text}<br>loss %{y:.3f}<extra></extra>"), row=1, col=1,
    )  # fmt: skip
    series = (
        ("accuracy", "training batches, as trained on", BLUE, "circle", "solid", "lines+markers"),
        ("val_clean", "validation images", GREEN, "square", CLEAN, "lines+markers"),
        ("val_pgd", "validation images under PGD, end of a stage", RED, "diamond", "solid", "markers"),
    )
    for column, name, colour, symbol, dash, mode in series:
        known = epochs[epochs[column].notna()] if column in epochs else epochs[:0]
        if len(known):
            figure.add_trace(
                go.Scatter(x=list(known["epoch"]), y=list(100 * known[column]), name=name, mode=mode,
                           line={"color": colour, "dash": dash}, text=list(known["stage"]),
                           marker={"symbol": symbol, "size": 10 if mode == "markers" else 5},
                           hovertemplate="%{text}<br>%{y:.1f} %<extra></extra>"), row=2, col=1,
            )  # fmt: skip
    for column, name, colour, symbol in (
        ("clean", "validation images, right after a cut", GREEN, "square-open"),
        ("pgd", "validation images under PGD, right after a cut", RED, "diamond-open"),
    ):
        known = cuts[cuts[column].notna()] if column in cuts else cuts[:0]
        if len(known):
            figure.add_trace(
                go.Scatter(x=list(known["epoch"]), y=list(100 * known[column]), name=name, mode="markers",
                           marker={"symbol": symbol, "size": 10, "color": colour, "line": {"width": 2}},
                           text=[f"right after a cut: sparsity {s:.1%}" for s in known["asked"]],
                           hovertemplate="%{text}<br>%{y:.1f} %<extra></extra>"),
                row=2, col=1,
            )  # fmt: skip
    _mark_stages(figure, epochs, cuts)
    last = int(epochs["epoch"].max())
    told = "" if isinstance(run, pd.DataFrame) else f": {run.recipe.label}, sparsity {run.recipe.sparsity:.0%}"
    _titled(
        figure,
        title or f"Training and cutting{told}",
        "dashed lines are cuts; accuracies in training are measured on attacked images where the objective attacks",
        legend={"orientation": "h", "y": -0.16, "yanchor": "top", "x": 0},
        height=560,
        margin={"t": 104, "b": 140},
    )
    figure.update_xaxes(range=[0, last + 1])
    figure.update_xaxes(title_text="epoch, all stages together", row=2, col=1)
    figure.update_yaxes(title_text="loss (nats)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="accuracy (%)", range=[-2, 102], row=2, col=1)
    return figure


def _mark_stages(figure: go.Figure, epochs: pd.DataFrame, cuts: pd.DataFrame) -> None:
    """Every other stage shaded, each named above the figure; a dashed line for each cut."""
    last = int(epochs["epoch"].max())
    for i, (stage, at) in enumerate(epochs.groupby("stage", sort=False)["epoch"]):
        first, end = int(at.min()) - 0.5, int(at.max()) + 0.5
        if i % 2 == 0:
            figure.add_vrect(x0=first, x1=end, fillcolor=BAND, line_width=0, layer="below")
        wide = (end - first) / (last + 1) > 0.012 * len(stage)
        label = stage if wide else stage.replace("round ", "").replace("finetuning", "ft")
        figure.add_annotation(x=(first + end) / 2, y=1.0, xref="x", yref="paper", yanchor="bottom", text=label, showarrow=False,
                              font={"size": 11, "color": GREY}, textangle=0 if wide else -30)  # fmt: skip
    for x, asked in zip(cuts["epoch"], cuts["asked"] if "asked" in cuts else [math.nan] * len(cuts), strict=True):
        figure.add_vline(x=float(x), line={"color": BLACK, "width": 1.2, "dash": "5px,4px"})
        if len(cuts) <= 4 and asked == asked:
            figure.add_annotation(x=float(x), y=0.0, xref="x", yref="y domain", yanchor="bottom", xanchor="left", showarrow=False,
                                  text=f" sparsity {asked:.3g}", font={"size": 11})  # fmt: skip


def layers(run: Run | Sparsity, *, title: str | None = None) -> go.Figure:
    """What is left of each layer, the first one on top.

    Args:
        run: an `apnb.Run` or its ``sparsity``.

    Returns:
        Horizontal bars, share of the layer's weights kept in percent; a logarithmic axis if a layer keeps less than 2 %. Hatched:
        layers held open by their last unit ("collapsed") or empty.
    """
    sparsity = getattr(run, "sparsity", run)
    names, kept = list(sparsity.per_layer), [100 * v for v in sparsity.per_layer.values()]
    log = any(0 < k < 2 for k in kept)
    marks = {n: "one unit left" for n in sparsity.collapsed} | {n: "empty" for n in sparsity.empty}
    figure = go.Figure(
        go.Bar(
            y=[n.removesuffix(".weight") for n in names],
            x=kept,
            orientation="h",
            marker={
                "color": [ORANGE if n in marks else BLUE for n in names],
                "pattern": {"shape": ["/" if n in marks else "" for n in names]},
            },
            text=[f"{k:.3g} %" + (f", {marks[n]}" if n in marks else "") for n, k in zip(names, kept, strict=True)],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.3g} % kept<extra></extra>",
        )
    )
    told = f": {run.recipe.label}, sparsity {run.recipe.sparsity:.0%}" if hasattr(run, "recipe") else ""
    lowest = min((k for k in kept if k > 0), default=1.0)
    scale = (
        {"type": "log", "range": [math.floor(math.log10(lowest / 2)), 2.3], "dtick": 1}
        if log
        else {"range": [0, 115], "dtick": 20}
    )
    return _titled(
        figure,
        title or f"What is left of each layer{told}",
        f"{1 - sparsity.weights:.2%} of all prunable weights are kept" + (", logarithmic axis" if log else ""),
        xaxis={"title": {"text": "weights kept (% of the layer)"}, **scale},
        yaxis={"autorange": "reversed", "automargin": True, "title": {"text": "layer"}},
        height=170 + 30 * max(len(names), 3),
        showlegend=False,
    )


def masks(run: Run, *, cells: int = 96, title: str | None = None) -> go.Figure:
    """The masks themselves: a row for each filter, a column for each of the weights that it reads.

    Args:
        run: an `apnb.Run`. cells: most rows and columns of one picture; where a layer has more, a cell is the share kept of several.

    Returns:
        Up to twelve layers, in the network's order (of more, the largest); dark is kept, white is gone.
    """
    import torch.nn.functional as F

    found = {name: mask.flatten(1).float() for name, mask in run.masks.items()}
    if len(found) > 12:
        largest = sorted(found, key=lambda name: -found[name].numel())[:12]
        found = {name: found[name] for name in found if name in largest}
    columns = 3 if len(found) > 4 else 2 if len(found) > 1 else 1
    rows = max(1, math.ceil(len(found) / columns))
    titles = [f"{name.removesuffix('.weight')}: {mask.mean():.3g} kept" for name, mask in found.items()]
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=titles, vertical_spacing=0.14 / rows * 2, horizontal_spacing=0.06
    )
    for i, mask in enumerate(found.values()):
        size = tuple(min(cells, n) for n in mask.shape)
        shares = F.adaptive_avg_pool2d(mask[None], size)[0]
        trace = go.Heatmap(
            z=shares.numpy().round(3).tolist(), zmin=0, zmax=1, colorscale=[[0, "white"], [1, "#1b3a57"]], showscale=False,
            hovertemplate="filter %{y}, weight %{x}<br>share kept %{z:.2f}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(trace, row=i // columns + 1, col=i % columns + 1)
    figure.update_xaxes(showticklabels=False, ticks="", showline=True, mirror=True)
    figure.update_yaxes(showticklabels=False, ticks="", showline=True, mirror=True, autorange="reversed")
    figure.update_annotations(font_size=11)
    told = f": {run.recipe.label}, sparsity {run.recipe.sparsity:.0%}"
    return _titled(
        figure,
        title or f"The masks{told}",
        "rows: filters, columns: the weights they read; dark is kept",
        height=120 + 190 * rows,
    )


# --- security curves ----------------------------------------------------------------------------------------------------------

LOOKS = (
    (BLUE, "solid", "circle"), (RED, "9px,3px", "square"), (GREEN, "2px,3px", "diamond"), (PINK, "16px,4px", "triangle-up"),
    (ORANGE, "12px,3px,2px,3px", "cross"), (SKY, "5px,2px,2px,2px,2px,2px", "triangle-down"), (BLACK, "24px,6px", "x"),
)  # fmt: skip
"""Colour, dash and marker of the networks of a security curve, in order."""


def security_curve(curves: Distances | Sequence[Distances], *, eps: float | None = None, title: str | None = None) -> go.Figure:
    """How accuracy falls as the perturbation grows: a step line for each network, exact at every distance.

    Args:
        curves: `apnb.curves.Distances`, or up to seven of them, on one data set.
        eps: the radius of reference, a vertical line; default: the one that the distances name.
        title: the headline; default: with the data set, if the distances name it.

    Returns:
        A figure with accuracy in percent over the radius, up to five times ``eps``. The value at a radius is the share of points
        with a larger distance; the shade is Wilson's 95 % interval, radius by radius; a marker stands at ``eps``, for which the
        legend tells value, interval and n. Where ``eps`` is a whole number of 255ths, the axis counts them, too.

    Raises:
        Invalid: nothing to draw, more than seven curves, different data sets, or no common ``eps``.
    """
    from apnb.curves import Distances

    curves = [curves] if isinstance(curves, Distances) else list(curves)
    if not 1 <= len(curves) <= len(LOOKS) or not all(isinstance(c, Distances) for c in curves):
        raise Invalid(
            f"got {len(curves)} curves, expected 1 to {len(LOOKS)} apnb.curves.Distances; apnb.curves.read makes one of a file"
        )
    data = sorted({c.data for c in curves if c.data})
    if len(data) > 1:
        raise Invalid(f"one figure cannot compare different data: got {' and '.join(data)}; draw one figure for each")
    eps = common_eps(curves) if eps is None else eps
    if not isinstance(eps, Real) or not 0 < eps <= 1:
        raise Invalid(f"eps is {eps!r}, expected a share of the pixel range above 0 and up to 1, such as 8/255")
    found = [d for c in curves for d in c.value.tolist() if d < math.inf]
    limit = max(1.5 * eps, min(5 * eps, 1.05 * max(found, default=0.0)))
    methods = {c.method for c in curves}
    tell, plot, below = len(methods) > 1, 340, 85  # pixels: the plot, and its axis with a title of one line and ticks of two
    rows = (40 if tell else 23) * len(curves)

    figure = go.Figure()
    for curve, look in zip(curves, LOOKS, strict=False):
        for trace in _steps(curve, eps, limit, look, alpha=min(0.13, 0.4 / len(curves)), tell=tell):
            figure.add_trace(trace)
    reference = {"color": BLACK, "width": 1.2, "dash": "5px,4px"}
    figure.add_shape(type="line", x0=eps, x1=eps, y0=-1, y1=101, line=reference, layer="between")
    figure.add_annotation(
        x=eps, y=1, yref="y domain", xanchor="left", yanchor="top", showarrow=False, text=f" eps = {_radius(eps)}"
    )
    by = "the attacks that the legend names" if tell else curves[0].method
    _titled(
        figure,
        title or f"Accuracy against the size of the perturbation{f' on {data[0]}' if data else ''}",
        f"upper bound, found by {by}<br>shade: 95 % interval for the choice of images, at each radius by itself",
        xaxis={"title": {"text": "radius of the perturbation (L-infinity, pixels in [0, 1])"}, "range": [0, limit]},
        yaxis={"title": {"text": "accuracy (% of test images)"}, "range": [-1, 101], "dtick": 20},
        legend={"orientation": "v", "y": -below / plot, "yanchor": "top", "x": 0, "tracegroupgap": 0},
        margin={"t": 110, "b": below + rows + 20, "r": 40, "autoexpand": False},
        height=110 + plot + below + rows + 20,
    )
    if _levels(eps):
        step = next(k for k in (1, 2, 4, 8, 16, 32, 64) if 255 * limit / k <= 12)
        ticks = range(0, int(255 * limit) + 1, step)
        figure.update_xaxes(
            tickvals=[k / 255 for k in ticks], ticktext=[f"{k}/255<br>{k / 255:.3f}" if k else "0" for k in ticks]
        )
    return figure


def common_eps(curves: Sequence[Distances]) -> float:
    """The radius that the distances name; `Invalid` if they name none, or several."""
    known = sorted({c.eps for c in curves if c.eps is not None})
    if len(known) != 1:
        told = f"name the radii {' and '.join(_radius(e) for e in known)}" if known else "name no radius"
        raise Invalid(f"the distances {told}; give the one to mark, such as eps=8/255")
    return known[0]


def _levels(eps: float) -> bool:
    """Whether a radius is a whole number of 255ths."""
    return abs(255 * eps - round(255 * eps)) < 1e-6


def _radius(eps: float) -> str:
    return f"{round(255 * eps)}/255" if _levels(eps) else f"{eps:.4g}"


def _steps(
    curve: Distances, eps: float, limit: float, look: tuple[str, str, str], *, alpha: float, tell: bool
) -> list[go.Scatter]:
    """The upper and the lower edge of the shade, the line, and the marker at ``eps``, which carries the legend."""
    from apnb.verdicts import wilson

    colour, dash, symbol = look
    x, share = (values.tolist() for values in curve.steps(limit))
    standing = [round(s * curve.n) for s in share]
    low, high = zip(*(wilson(k, curve.n) for k in standing), strict=True)
    edge = {"x": x, "mode": "lines", "line": {"shape": "hv", "width": 0}, "hoverinfo": "skip"}
    text = [
        f"radius {e:.5f} = {255 * e:.2f}/255<br>{s:.1%} [{a:.1%}, {b:.1%}], {k} of {curve.n} points stand"
        for e, s, a, b, k in zip(x, share, low, high, standing, strict=True)
    ]
    (bottom, top), at = curve.interval(eps), curve.accuracy(eps)
    told = f"{curve.name}: at most {at:.1%} [{bottom:.1%}, {top:.1%}] at {_radius(eps)}, n = {curve.n}"
    told += f"<br>found by {curve.method}" if tell else ""
    shared = {"legendgroup": "".join(look), "showlegend": False}
    return [
        go.Scatter(y=[100 * v for v in high], meta="high", **edge, **shared),
        go.Scatter(y=[100 * v for v in low], meta="low", **edge, **shared, fill="tonexty", fillcolor=f"rgba{_rgba(colour, alpha)}"),
        go.Scatter(
            x=x, y=[100 * s for s in share], name=curve.name, meta="curve", mode="lines", text=text, **shared,
            line={"shape": "hv", "color": colour, "width": 2.5, "dash": dash},
            hovertemplate="<b>%{fullData.name}</b><br>%{text}<extra></extra>",
        ),
        go.Scatter(
            x=[eps], y=[100 * at], name=told, meta="eps", mode="lines+markers", legendgroup="".join(look), hoverinfo="skip",
            line={"color": colour, "width": 2.5, "dash": dash},
            marker={"symbol": symbol, "size": 10, "color": colour, "line": {"color": "white", "width": 1}},
        ),
    ]  # fmt: skip


def _rgba(colour: str, alpha: float) -> tuple[int, int, int, float]:
    return (*bytes.fromhex(colour[1:]), alpha)


def examples(evaluation: Evaluation, k: int = 6) -> go.Figure:
    """Images that an attack broke: the image, the perturbation (scaled so that eps is full colour), and the attacked image.

    Args:
        evaluation: its ``examples`` hold up to 32 of them. k: how many to show.

    Returns:
        One column for each example, titled with its label and what the network said before and after; a figure with a sentence
        if nothing was broken.

    Raises:
        Invalid: k below 1.
    """
    if k < 1:
        raise Invalid(f"k must be at least 1, got {k}: the number of examples to show")
    found, eps = evaluation.examples, evaluation.eps
    if not found or not len(found["label"]):
        figure = go.Figure()
        figure.add_annotation(
            text=f"No point was broken by the attacks: {evaluation.n} test images, eps {eps:.4g}", showarrow=False
        )
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False)
        return _titled(figure, "Adversarial examples", height=240)
    k = min(k, len(found["label"]))
    label, before, after, index = (found[n][:k].tolist() for n in ("label", "before", "after", "index"))
    figure = make_subplots(
        rows=3, cols=k, column_titles=[f"label {y}<br>{b} → {a}" for y, b, a in zip(label, before, after, strict=True)],
        horizontal_spacing=0.012, vertical_spacing=0.02,
    )  # fmt: skip
    grey = found["x"].shape[1] == 1
    for j in range(k):
        x, x_adv = found["x"][j], found["x_adv"][j]
        told = f"test image {index[j]}"
        for row, picture in ((1, x), (2, (x_adv - x) / (2 * eps) + 0.5), (3, x_adv)):
            figure.add_trace(_picture(picture, told, diverging=grey and row == 2, eps=eps), row=row, col=j + 1)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed")
    for i in ["", *range(2, 3 * k + 1)]:
        figure.layout[f"yaxis{i}"].update(scaleanchor=f"x{i}", constrain="domain")
        figure.layout[f"xaxis{i}"].update(constrain="domain")
    scale = f"blue −{eps:.3g}, white 0, orange +{eps:.3g}" if grey else f"mid-grey is 0, each colour ±{eps:.3g}"
    for y, name in ((0.845, "image"), (0.5, "perturbation"), (0.155, "attacked")):
        figure.add_annotation(x=0, y=y, xref="paper", yref="paper", xanchor="right", text=f"{name} ", showarrow=False)
    return _titled(
        figure,
        "Images that the attack broke: what the network said before → after",
        f"perturbation: {scale}; found by {ATTACKS.get(evaluation.attacks, evaluation.attacks)}",
        height=480,
        width=120 + 125 * max(k, 4),
        margin={"l": 100, "t": 120, "b": 20, "r": 20},
        showlegend=False,
    )


def _picture(image: Any, told: str, *, diverging: bool, eps: float) -> go.Heatmap | go.Image:
    """An image (C, H, W) with values in [0, 1] as a trace; one channel in grey, or as a signed map of [-eps, eps]."""
    if image.shape[0] == 1:
        z = image[0].double()
        z = (z - 0.5) * 2 * eps if diverging else z
        scale, low, high = (DIVERGING, -eps, eps) if diverging else ("gray", 0, 1)
        return go.Heatmap(z=z.numpy().round(4), zmin=low, zmax=high, colorscale=scale, showscale=False,
                          hovertemplate=told + "<br>%{z:.3f}<extra></extra>")  # fmt: skip
    rgb = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    return go.Image(z=(rgb.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy(), hovertemplate=told + "<extra></extra>")


# --- figures that move --------------------------------------------------------------------------------------------------------


def movable(figures: Mapping[Any, go.Figure], *, label: str, start: Any = None, title: str | None = None) -> go.Figure:
    """Several figures of one kind as one figure with a slider: it moves without a kernel, too.

    Args:
        figures: what the slider says -> the figure shown there, in the slider's order; at least two.
        label: what is moved, said before the slider's word ("sparsity").
        start: the word shown first; default: the first.
        title: of all; default: each figure keeps its own, and the slider changes it.

    Returns:
        The first figure's layout with the traces of all of them, those of one word visible; axes that differ between the figures (ranges,
        types, ticks) change with the slider, as do titles and annotations.

    Raises:
        Invalid: fewer than two figures, or a start that is none of the words.
    """
    words = [str(word) for word in figures]
    if len(words) < 2:
        raise Invalid(f"a movable figure needs at least two figures, got {len(words)}")
    start = words[0] if start is None else str(start)
    if start not in words:
        raise Invalid(f"start is {start!r}, but the slider has {', '.join(words)}")
    drawn = list(figures.values())
    moving = sorted({name for figure in drawn for name in figure.layout.to_plotly_json() if name[:5] in ("xaxis", "yaxis")})
    counts = [len(figure.data) for figure in drawn]
    base = drawn[words.index(start)]
    whole = go.Figure(layout=base.layout)
    steps = []
    for i, (word, figure) in enumerate(zip(words, drawn, strict=True)):
        for trace in figure.data:
            whole.add_trace(trace).data[-1].visible = word == start
        layout = figure.layout.to_plotly_json()
        change = {name: layout.get(name, {}) for name in moving} | {"annotations": layout.get("annotations", [])}
        change |= {"shapes": layout.get("shapes", [])}
        if title is None:
            change["title"] = layout.get("title", {})
        shown = [at == i for at, n in enumerate(counts) for _ in range(n)]
        steps.append({"label": word, "method": "update", "args": [{"visible": shown}, change]})
    bottom = base.layout.margin.b or TEMPLATE.layout.margin.b
    height = base.layout.height or 450
    slider = {
        "active": words.index(start), "steps": steps, "currentvalue": {"prefix": f"{label}: ", "font": {"size": 13}},
        "x": 0, "len": 1, "y": 0, "yanchor": "top", "pad": {"t": bottom - 6, "b": 8}, "minorticklen": 0,
    }  # fmt: skip
    whole.update_layout(sliders=[slider], margin={"b": bottom + 86}, height=height + 86)
    if title is not None:
        whole.update_layout(title={"text": title})
    return whole


# --- showing and saving -----------------------------------------------------------------------------------------------------


def _browser() -> bool:
    """Whether kaleido is installed and finds a Chromium or Chrome to draw with."""
    try:
        import kaleido  # noqa: F401
        from choreographer.browsers.chromium import Chromium
    except ImportError:
        return False
    return bool(Chromium.find_browser(skip_local=False))


def renderer() -> str:
    """How this notebook shows figures: interactive, plus a PNG where a browser can draw one (GitHub shows only the PNG).

    Sets plotly's default renderer, so that a notebook says it once; returns its name.
    """
    import plotly.io as pio

    pio.renderers.default = "plotly_mimetype"
    if _browser():
        import kaleido

        kaleido.start_sync_server(silence_warnings=True)  # one browser for all pictures instead of one each
        warnings.filterwarnings("ignore", message="The kopts argument is ignored if using a server")
        pio.renderers.default = "plotly_mimetype+png"
    return pio.renderers.default


def writable(path: str | Path, kinds: tuple[str, ...] = (".html", ".png", ".svg")) -> Path:
    """A path that a figure (or another of ``kinds``) can be written to, checked before the work that leads to it.

    Raises:
        Invalid: another ending, no such folder, a folder itself, or no permission.
    """
    path = Path(path)
    if path.suffix.lower() not in kinds:
        what = "a figure" if len(kinds) > 1 else "this"
        raise Invalid(
            f"cannot write {what} as {path.name!r}; give a name that ends in {', '.join(kinds).replace(', .svg', ' or .svg')}"
        )
    if not path.parent.is_dir():
        raise Invalid(f"there is no folder {path.parent}; make it first")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise Invalid(f"cannot write {path}: {'it is a folder' if path.is_dir() else 'no permission'}; choose another place")
    return path


def save(figure: go.Figure, path: str | Path, *, plotlyjs: bool | str = True) -> Path:
    """Write a figure: .html (interactive), .png or .svg.

    Args:
        path: its ending says what to write.
        plotlyjs: for .html: True, everything in one file of 5 MB that needs no network; "directory", a small file that reads
            plotly.min.js beside it, written there if it is missing.

    Raises:
        Invalid: another ending, a folder that does not exist, or no browser to draw a picture with.
    """
    path = writable(path)
    kind = path.suffix.lower()
    if kind == ".html":
        try:
            figure.write_html(path, include_plotlyjs=plotlyjs)
        except OSError as error:
            raise Invalid(f"cannot write {path}: {error.strerror or error}; choose another place") from None
        return path
    if not _browser():
        raise Invalid(
            f"cannot draw {path.name}: a {kind[1:].upper()} needs the package kaleido (pip install 'apnb[image]') and a Chromium "
            "or Chrome; save as .html instead"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # plotly's, about a kaleido server that `renderer` has started
            figure.write_image(path, scale=2 if kind == ".png" else 1)
    except Exception as error:  # kaleido and the browser fail in many ways, none of which the reader can take apart
        reason = (str(error).splitlines() or [""])[0]
        raise Invalid(
            f"the browser could not draw {path.name} ({type(error).__name__}: {reason}); save as .html instead"
        ) from None
    return path
