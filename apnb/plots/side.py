"""Criteria and methods side by side: scores, masks, layers, accuracies with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from apnb.errors import Invalid
from apnb.plots.look import ATTACKS, BLACK, GREY, LOOKS, PIPELINES, titled
from apnb.plots.sparsity import evaluated, is_dense, only, point, seeds_of, style

if TYPE_CHECKING:
    import pandas as pd


def overlap(selections: Mapping[str, Mapping[str, Any]], *, title: str | None = None) -> go.Figure:
    """Which selections keep the same weights: each pair's `apnb.masks.overlap`, and what the layers alone would give.

    Args:
        selections: name -> masks (parameter name -> bool tensor) of one network, of about the same density.

    Returns:
        A heatmap in percent of the row's kept weights; hovering says what two selections with the same number in each layer, but at
        random there, would share.

    Raises:
        Invalid: fewer than two selections.
    """
    from apnb.masks import chance_overlap
    from apnb.masks import overlap as shared

    if len(selections) < 2:
        raise Invalid(f"an overlap needs at least two selections, got {len(selections)}")
    names = list(selections)
    z = [[100 * shared(selections[a], selections[b]) for b in names] for a in names]
    chance = [[100 * chance_overlap(selections[a], selections[b]) for b in names] for a in names]
    density = [_density(m) for m in selections.values()]
    figure = go.Figure(
        go.Heatmap(
            x=names, y=names, z=[[round(v, 2) for v in row] for row in z], zmin=0, zmax=100, colorscale=[[0, "white"], [1, "#1b3a57"]],
            text=[[f"{v:.0f}" for v in row] for row in z], texttemplate="%{text}", customdata=[[round(v, 1) for v in r] for r in chance],
            colorbar={"title": {"text": "shared (%)"}, "thickness": 14}, xgap=1, ygap=1,
            hovertemplate="of what %{y} keeps,<br>%{x} keeps %{z:.1f} % too;<br>as many in each layer at random: %{customdata} %"
                          "<extra></extra>",
        )
    )  # fmt: skip
    return titled(
        figure,
        title or "Who keeps the same weights?",
        f"shared, in % of the row's kept weights; at random it would be {100 * min(density):.2g} %"
        + (f" to {100 * max(density):.2g} %" if max(density) - min(density) > 0.005 else ""),
        yaxis={"autorange": "reversed", "automargin": True},
        xaxis={"automargin": True, "tickangle": -30},
        margin={"b": 90},
        height=200 + 42 * len(names),
        width=260 + 66 * len(names),
    )


def _density(selection: Mapping[str, Any]) -> float:
    return sum(int(m.sum()) for m in selection.values()) / sum(m.numel() for m in selection.values())


def layer_shares(selections: Mapping[str, Mapping[str, Any]], *, title: str | None = None) -> go.Figure:
    """How much of each layer several selections keep, side by side.

    Args:
        selections: name -> masks of one network, up to seven of them.

    Returns:
        A marker a layer and selection, share kept in percent, joined by lines; a layer of which nothing is left stands at 0. The grey
        line is the share that the first selection keeps of all weights.

    Raises:
        Invalid: no selection, more than seven, or a layer without weights.
    """
    if any(mask.numel() == 0 for masks_ in selections.values() for mask in masks_.values()):
        raise Invalid("a layer has no weights, so there is no share of it; leave it out")
    if not 1 <= len(selections) <= len(LOOKS):
        raise Invalid(f"got {len(selections)} selections, expected 1 to {len(LOOKS)}; draw the others in a figure of their own")
    figure = go.Figure()
    for (name, masks_), (colour, dash, symbol) in zip(selections.items(), LOOKS, strict=False):
        layers_ = [n.removesuffix(".weight") for n in masks_]
        left = [int(m.sum()) for m in masks_.values()]
        of = [m.numel() for m in masks_.values()]
        figure.add_trace(
            go.Scatter(
                x=[f"{n}<br>{k} weights" for n, k in zip(layers_, of, strict=True)], name=name, mode="lines+markers",
                y=[round(100 * k / n, 2) for k, n in zip(left, of, strict=True)],
                text=[f"{k} of {n}" for k, n in zip(left, of, strict=True)],
                line={"color": colour, "dash": dash, "width": 2}, marker={"symbol": symbol, "size": 9},
                hovertemplate=f"<b>{name}</b>, %{{x}}<br>%{{text}} weights kept, %{{y:.2f}} %<extra></extra>",
            )
        )  # fmt: skip
    figure.add_hline(y=100 * _density(next(iter(selections.values()))), line={"color": GREY, "width": 1, "dash": "5px,4px"})
    return titled(
        figure,
        title or "How much of each layer is kept",
        "dashed and grey: the same share in every layer",
        xaxis={"title": {"text": "layer, from the image to the classes"}},
        yaxis={"title": {"text": "weights kept (% of the layer)"}, "range": [-3, 103]},
        legend={"orientation": "h", "y": -0.28, "yanchor": "top", "x": 0},
        margin={"b": 130},
        height=470,
    )


def ranks(scores: Mapping[str, Any], *, sparsity: float = 0.9, bins: int = 20, title: str | None = None) -> go.Figure:
    """Where the weights of each layer stand in the ranking of the whole network.

    Args:
        scores: parameter name -> score of every weight (`apnb.criteria`), high is kept; up to seven layers.
        sparsity: where the cut of a global selection lies. bins: of the ranking.

    Returns:
        A line a layer: the share of its weights (in percent) in each part of the ranking, lowest scores on the left. A layer like
        the whole network is flat.

    Raises:
        Invalid: no layer or more than seven.
    """
    import torch

    if not 1 <= len(scores) <= len(LOOKS):
        raise Invalid(f"got the scores of {len(scores)} layers, expected 1 to {len(LOOKS)}; leave some out")
    sizes = [s.numel() for s in scores.values()]
    flat = torch.cat([s.flatten() for s in scores.values()])
    place = flat.argsort(stable=True).argsort().double() / len(flat)
    x = [100 * (i + 0.5) / bins for i in range(bins)]
    figure = go.Figure()
    for name, at, (colour, dash, symbol) in zip(scores, place.split(sizes), LOOKS, strict=False):
        share = 100 * torch.histc(at, bins, 0, 1) / len(at)
        name = name.removesuffix(".weight")
        figure.add_trace(
            go.Scatter(
                x=x, y=[round(v, 2) for v in share.tolist()], name=f"{name} ({len(at)} weights)", mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2}, marker={"symbol": symbol, "size": 6},
                hovertemplate=f"<b>{name}</b><br>%{{y:.1f}} % of its weights around rank %{{x:.1f}} %<extra></extra>",
            )
        )  # fmt: skip
    figure.add_hline(y=100 / bins, line={"color": GREY, "width": 1, "dash": "5px,4px"})
    figure.add_vline(x=100 * sparsity, line={"color": BLACK, "width": 1.2})
    figure.add_annotation(x=100 * sparsity, y=1, yref="paper", yanchor="top", xanchor="right", showarrow=False,
                          text=f"goes at {sparsity:.0%} ", font={"size": 11})  # fmt: skip
    return titled(
        figure,
        title or "Where each layer stands in the ranking of the whole network",
        f"dashed and grey: a layer like the whole network, {100 / bins:.3g} % of its weights in each step",
        xaxis={"title": {"text": "rank among all weights (%), lowest score first"}, "range": [0, 100]},
        yaxis={"title": {"text": "weights of the layer (%)"}, "rangemode": "tozero"},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        margin={"b": 100},
        height=450,
    )


def highlight(frame: pd.DataFrame, label: str, *, title: str | None = None) -> go.Figure:
    """One way of pruning among all others: robust accuracy against sparsity, this one in its pipeline's colour, the others grey.

    Args:
        frame: as for `robustness_sparsity`. label: the word of its column ``label`` to bring out.

    Returns:
        A small figure of two traces. Of one seed the bars are Wilson's 95 % intervals; of several, points are medians and bars go from the
        lowest to the highest.

    Raises:
        Invalid: no row with this label, or rows that one axis cannot carry.
    """
    frame = evaluated(frame)
    eps, attacks, data = (only(frame, column) for column in ("eps", "attacks", "data"))
    cut = frame[~frame["label"].map(is_dense)]
    if label not in set(cut["label"]):
        raise Invalid(f"no run is labelled {label!r}; the frame has {', '.join(sorted(set(cut['label'])))}")
    lines = {
        name: [point(100 * s, at, seeds_of(rows) > 0) for s, at in rows.groupby("sparsity")]
        for name, rows in cut.groupby("label")
    }
    grey: dict[str, list] = {"x": [], "y": [], "text": []}
    for name, points in lines.items():
        if name != label:  # a gap behind each: all of them are one trace
            grey["x"] += [*(f"{p['x']:g} %" for p in points), None]
            grey["y"] += [*(round(p["robust"][0], 1) for p in points), None]
            grey["text"] += [*([name] * len(points)), None]
    ours, several = cut[cut["label"] == label], seeds_of(cut[cut["label"] == label])
    look, (y, up, down) = style(ours.iloc[0], set()), zip(*(p["robust"] for p in lines[label]), strict=True)
    figure = go.Figure(
        [
            go.Scatter(
                **grey, name="the others", mode="lines+markers", line={"color": "#BDBDBD", "width": 1.2}, marker={"size": 4},
                hovertemplate="<b>%{text}</b><br>at %{x}: robust %{y:.1f} %<extra></extra>",
            ),
            go.Scatter(
                x=[f"{p['x']:g} %" for p in lines[label]], y=[round(v, 1) for v in y], name=label,
                mode="lines+markers", line={"color": look["color"], "width": 3, "dash": look["dash"]},
                marker={"symbol": look["marker"], "size": 9},
                error_y={"type": "data", "symmetric": False, "thickness": 1.4, "width": 4,
                         "array": [round(v, 1) for v in up], "arrayminus": [round(v, 1) for v in down]},
                text=[p["text"] for p in lines[label]],
                hovertemplate=f"<b>{label}</b><br>at %{{x}}: robust %{{y:.1f}} %<br>%{{text}}<extra></extra>",
            ),
        ]
    )  # fmt: skip
    asked = [f"{100 * float(s):g} %" for s in sorted(cut["sparsity"].unique())]
    titled(
        figure,
        title or f"{label} among the others on {data}",
        f"at most; {attacks} attacks, eps = {eps:.4g}, n = {int(frame['n'].min())}; "
        + ("bars: 95 % interval" if not several else f"median of {several} seeds, bars lowest to highest"),
        xaxis={"title": {"text": "sparsity asked for"}, "type": "category", "categoryorder": "array", "categoryarray": asked},
        yaxis={"title": {"text": "robust (%)"}, "range": [-1, 101], "dtick": 25},
        legend={"orientation": "v", "x": 0.02, "y": 0.04, "yanchor": "bottom"},
        margin={"t": 66, "b": 46},
        height=250,
        width=500,
    )
    return figure


SHAPES = {"after": "circle", "before": "square", "during": "diamond"}
"""Markers of the pipelines where a marker does not tell the structure."""


def intervals(frame: pd.DataFrame, sparsity: float, *, title: str | None = None) -> go.Figure:
    """Ways of pruning at one sparsity, best on top: robust accuracy with the interval of its measurement.

    Args:
        frame: as for `robustness_sparsity`, one seed. sparsity: which of its sparsities.

    Returns:
        A row for each label: robust accuracy in the pipeline's colour with Wilson's 95 % interval, clean accuracy as an open marker.

    Raises:
        Invalid: no evaluated run at this sparsity, or several of one label.
    """
    frame = evaluated(frame)
    frame = frame[(frame["sparsity"] - sparsity).abs() < 1e-9]
    if frame.empty or frame["label"].duplicated().any():
        raise Invalid(
            f"got {len(frame)} runs of {frame['label'].nunique()} labels at a sparsity of {sparsity:g}; expected one each"
        )
    eps, attacks, data = (only(frame, column) for column in ("eps", "attacks", "data"))
    rows = frame.sort_values(["robust", "label"])
    figure = go.Figure()
    for pipeline, some in rows.groupby("pipeline", sort=True):
        figure.add_trace(
            go.Scatter(
                x=[100 * r for r in some["robust"]], y=list(some["label"]), mode="markers", name=f"{pipeline} training",
                marker={"color": PIPELINES[pipeline], "size": 10, "symbol": SHAPES[pipeline]},
                error_x={"type": "data", "symmetric": False, "thickness": 1.6, "width": 5, "color": PIPELINES[pipeline],
                         "array": [100 * (h - r) for h, r in zip(some["high"], some["robust"], strict=True)],
                         "arrayminus": [100 * (r - low) for low, r in zip(some["low"], some["robust"], strict=True)]},
                text=[f"{low:.1%} to {high:.1%}" for low, high in zip(some["low"], some["high"], strict=True)],
                hovertemplate="<b>%{y}</b><br>robust %{x:.1f} % (95 %: %{text})<extra></extra>",
            )
        )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=[100 * c for c in rows["clean"]], y=list(rows["label"]), mode="markers", name="clean",
            marker={"color": GREY, "size": 7, "symbol": "circle-open"},
            hovertemplate="<b>%{y}</b><br>clean %{x:.1f} %<extra></extra>",
        )
    )  # fmt: skip
    return titled(
        figure,
        title or f"At {100 * sparsity:g} % sparsity on {data}",
        f"robust: upper bound, found by {ATTACKS.get(attacks, attacks)}<br>eps = {eps:.4g}, n = {int(rows['n'].min())}; "
        "bars: 95 % interval for the choice of images",
        xaxis={"title": {"text": "accuracy (% of test images)"}, "range": [-2, 102], "dtick": 20},
        yaxis={"categoryorder": "array", "categoryarray": list(rows["label"]), "automargin": True},
        legend={"orientation": "h", "y": -0.18, "yanchor": "top", "x": 0},
        margin={"t": 100, "b": 100},
        height=240 + 26 * len(rows),
    )


def seeds(frame: pd.DataFrame, sparsity: float, *, title: str | None = None) -> go.Figure:
    """How far seeds spread beside how far ways of pruning lie apart, at one sparsity: each run a marker.

    Args:
        frame: as for `robustness_sparsity`; labels that differ in pipeline or criterion. sparsity: one of its own.

    Returns:
        A column for each label, best median on the left: robust accuracy of each seed, joined by a line, with the median as a dash.

    Raises:
        Invalid: no evaluated run at this sparsity, or two labels of one pipeline and criterion, which would share a column.
    """
    frame = evaluated(frame)
    frame = frame[(frame["sparsity"] - sparsity).abs() < 1e-9]
    if frame.empty:
        raise Invalid(f"there is no evaluated run at a sparsity of {sparsity:g}; choose one that the frame has")
    if (frame.groupby(["pipeline", "criterion"])["label"].nunique() > 1).any():
        raise Invalid("two labels of one pipeline and criterion would share a column; draw structures and localities apart")
    eps, attacks, data = (only(frame, column) for column in ("eps", "attacks", "data"))
    order = frame.groupby("label")["robust"].median().sort_values(ascending=False, kind="stable")
    figure, told = go.Figure(), set()
    for label, middle in order.items():
        rows = frame[frame["label"] == label].sort_values("robust")
        row, values = rows.iloc[0], [100 * r for r in rows["robust"]]
        x, colour = f"{str(row['criterion']).upper()}<br>{row['pipeline']}", PIPELINES.get(row["pipeline"], BLACK)
        shared = {"legendgroup": row["pipeline"], "showlegend": False}
        figure.add_trace(
            go.Scatter(
                x=[x] * len(values), y=values, mode="lines+markers", name=f"{row['pipeline']} training: a seed each",
                line={"color": colour, "width": 1.2}, marker={"color": colour, "size": 8, "symbol": "circle-open", "line": {"width": 2}},
                text=[f"seed {s}" for s in rows["seed"]], hovertemplate=f"<b>{label}</b><br>%{{text}}: %{{y:.1f}} %<extra></extra>",
                **shared | {"showlegend": row["pipeline"] not in told},
            )
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=[x], y=[100 * middle], mode="markers", marker={"symbol": "line-ew", "size": 22, "line": {"width": 3, "color": colour}},
                hovertemplate=f"<b>{label}</b><br>median %{{y:.1f}} %<extra></extra>", **shared,
            )
        )  # fmt: skip
        told.add(row["pipeline"])
    return titled(
        figure,
        title or f"Each seed at {100 * sparsity:g} % sparsity on {data}",
        f"robust: upper bound, found by {ATTACKS.get(attacks, attacks)}; eps = {eps:.4g}, n = {int(frame['n'].min())}<br>"
        "a circle is a training, the dash the median",
        xaxis={"title": {"text": "criterion and pipeline"}},
        yaxis={"title": {"text": "robust accuracy (%)"}, "range": [-1, 101], "dtick": 20},
        legend={"orientation": "h", "y": -0.3, "yanchor": "top", "x": 0},
        margin={"t": 100, "b": 110},
        height=440,
    )
