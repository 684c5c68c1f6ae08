"""Attacks: security curves, attacked images, what each attack leaves standing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apnb.errors import Invalid
from apnb.plots.look import ATTACKS, BAND, BLACK, BLUE, DIVERGING, LOOKS, ORANGE, levels, radius, rgba, titled

if TYPE_CHECKING:
    from apnb.curves import Distances
    from apnb.evaluation import Evaluation


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
        x=eps, y=1, yref="y domain", xanchor="left", yanchor="top", showarrow=False, text=f" eps = {radius(eps)}"
    )
    by = "the attacks that the legend names" if tell else curves[0].method
    titled(
        figure,
        title or f"Accuracy against the size of the perturbation{f' on {data[0]}' if data else ''}",
        f"upper bound, found by {by}<br>shade: 95 % interval for the choice of images, at each radius by itself",
        xaxis={"title": {"text": "radius of the perturbation (L-infinity, pixels in [0, 1])"}, "range": [0, limit]},
        yaxis={"title": {"text": "accuracy (% of test images)"}, "range": [-1, 101], "dtick": 20},
        legend={"orientation": "v", "y": -below / plot, "yanchor": "top", "x": 0, "tracegroupgap": 0},
        margin={"t": 110, "b": below + rows + 20, "r": 40, "autoexpand": False},
        height=110 + plot + below + rows + 20,
    )
    if levels(eps):
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
        told = f"name the radii {' and '.join(radius(e) for e in known)}" if known else "name no radius"
        raise Invalid(f"the distances {told}; give the one to mark, such as eps=8/255")
    return known[0]


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
    told = f"{curve.name}: at most {at:.1%} [{bottom:.1%}, {top:.1%}] at {radius(eps)}, n = {curve.n}"
    told += f"<br>found by {curve.method}" if tell else ""
    shared = {"legendgroup": "".join(look), "showlegend": False}
    return [
        go.Scatter(y=[100 * v for v in high], meta="high", **edge, **shared),
        go.Scatter(y=[100 * v for v in low], meta="low", **edge, **shared, fill="tonexty", fillcolor=f"rgba{rgba(colour, alpha)}"),
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
        return titled(figure, "Adversarial examples", height=240)
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
    return titled(
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


def attacks(stands: Mapping[str, Mapping[str, Any]], *, title: str | None = None) -> go.Figure:
    """What several attacks leave standing on the same points, each by itself, and what is left when all are taken together.

    Args:
        stands: network -> attack -> bool (n,), which points stand; the same attacks and points for each, up to seven networks.

    Returns:
        A marker each, in percent, with Wilson's 95 % interval; at "all of them" stand the points that no attack broke.

    Raises:
        Invalid: no network, more than seven, or networks with other attacks or points than the first.
    """
    import torch

    from apnb.verdicts import wilson

    if not 1 <= len(stands) <= len(LOOKS) or not all(stands.values()):
        raise Invalid(f"got {len(stands)} networks, expected 1 to {len(LOOKS)}, each with at least one attack")
    shapes = {(tuple(by), *(len(s) for s in by.values())) for by in stands.values()}
    if len(shapes) > 1 or len(set(next(iter(shapes))[1:])) > 1:
        raise Invalid("the networks were not attacked alike; give each the same attacks on the same points")
    n, names = next(iter(shapes))[1], [*next(iter(stands.values())), "<b>all of them</b>"]
    figure, step = go.Figure(), 0.9 / len(stands)
    for i, ((name, by), (colour, _, symbol)) in enumerate(zip(stands.items(), LOOKS, strict=False)):
        left = [int(s.sum()) for s in (*by.values(), torch.stack([torch.as_tensor(s) for s in by.values()]).all(0))]
        low, high = zip(*(wilson(k, n) for k in left), strict=True)
        figure.add_trace(
            go.Scatter(
                x=[at + (i - (len(stands) - 1) / 2) * step for at in range(len(names))], y=[100 * k / n for k in left], name=name,
                mode="markers+text", text=[f"{100 * k / n:.3g}" for k in left], textposition="middle right", textfont={"size": 10},
                marker={"color": colour, "symbol": symbol, "size": 8}, customdata=names, cliponaxis=False,
                error_y={"type": "data", "symmetric": False, "array": [100 * (h - k / n) for h, k in zip(high, left, strict=True)],
                         "arrayminus": [100 * (k / n - v) for v, k in zip(low, left, strict=True)], "thickness": 1.2, "width": 4},
                hovertemplate=f"<b>{name}</b>, %{{customdata}}<br>%{{y:.3g}} % of {n} points stand<extra></extra>",
            )
        )  # fmt: skip
    for at in range(0, len(names), 2):
        figure.add_vrect(x0=at - 0.5, x1=at + 0.5, fillcolor=BAND, line_width=0, layer="below")
    return titled(
        figure,
        title or "The same points under one attack after the other",
        f"each attack by itself on the same {n} points; all are upper bounds, the last is the lowest",
        xaxis={"title": {"text": "attack"}, "tickvals": list(range(len(names))), "ticktext": names, "range": [-0.5, len(names) - 0.45],
               "showgrid": False},
        yaxis={"title": {"text": "points still standing (%)"}, "range": [-2, 103], "dtick": 20},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        margin={"b": 110 if len(stands) > 1 else 70},
        height=460,
        showlegend=len(stands) > 1,
    )  # fmt: skip


def under_attack(image: Any, attacked: Any, probabilities: Any, label: int, *, eps: float, title: str | None = None) -> go.Figure:
    """One image, what was added to it, the sum, and how sure the network is of each class.

    Args:
        image, attacked: float (C, H, W) in [0, 1]. probabilities: (classes,), of the attacked image. label: the true class.
        eps: the perturbation at which the middle picture has full colour; at least the largest that is shown.

    Returns:
        Three pictures and a bar a class in percent, the true one in blue, the others orange.
    """
    shares = [round(100 * float(p), 1) for p in probabilities]
    says, change = max(range(len(shares)), key=lambda i: float(probabilities[i])), attacked - image
    grey = image.shape[0] == 1
    figure = make_subplots(
        rows=1, cols=4, column_widths=[0.2, 0.2, 0.2, 0.4], horizontal_spacing=0.05,
        subplot_titles=["the image", f"added, up to {float(change.abs().max()):.3g}", "the sum", "the network's answer (softmax)"],
    )  # fmt: skip
    for j, picture in enumerate((image, change / (2 * eps) + 0.5, attacked)):
        figure.add_trace(_picture(picture, "pixel", diverging=grey and j == 1, eps=eps), row=1, col=j + 1)
    figure.add_trace(
        go.Bar(x=list(range(len(shares))), y=shares, marker={"color": [BLUE if i == label else ORANGE for i in range(len(shares))]},
               hovertemplate="class %{x}: %{y:.1f} %<extra></extra>"), row=1, col=4,
    )  # fmt: skip
    for j in (1, 2, 3):
        figure.update_xaxes(visible=False, constrain="domain", row=1, col=j)
        figure.update_yaxes(visible=False, autorange="reversed", scaleanchor=f"x{j if j > 1 else ''}", row=1, col=j)
    figure.update_xaxes(title_text="class", dtick=1, row=1, col=4)
    figure.update_yaxes(ticksuffix=" %", dtick=25, range=[0, 102], side="right", row=1, col=4)
    figure.update_annotations(font_size=12)
    told = f"blue −{eps:.3g}, white 0, orange +{eps:.3g}" if grey else f"mid-grey is 0, each colour ±{eps:.3g}"
    return titled(
        figure,
        title or f"A {label}, and the network says {says}" + ("" if says == label else ": broken"),
        f"perturbation: {told}; blue bar: the true class",
        height=330,
        showlegend=False,
        margin={"t": 110, "l": 24, "r": 64},
    )
