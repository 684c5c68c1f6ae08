"""A run from inside: its training, its cuts, its layers and masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apnb.errors import Invalid
from apnb.plots.look import BAND, BLACK, BLUE, CLEAN, GREEN, GREY, ORANGE, RED, STRUCTURES, titled

if TYPE_CHECKING:
    import pandas as pd

    from apnb.masks import Sparsity
    from apnb.runs import Run


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
    titled(
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
    return titled(
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
    return titled(
        figure,
        title or f"The masks{told}",
        "rows: filters, columns: the weights they read; dark is kept",
        height=120 + 190 * rows,
    )


def ramps(sparsity: float, rounds: int, *, title: str | None = None) -> go.Figure:
    """One cut against several: what is gone after each round, and which share of what was left each cut takes.

    Args:
        sparsity: of the end, in (0, 1). rounds: of an iterative schedule, at least 2.

    Returns:
        Above, the sparsity after each round in percent, for one cut before the first round, the linear and the cubic ramp of
        `apnb.masks.ramp`; below, for each cut the units it removes in percent of those that were left.

    Raises:
        Invalid: a sparsity outside (0, 1), or fewer than two rounds.
    """
    from apnb.masks import ramp
    from apnb.recipes import check_sparsity

    if not check_sparsity(sparsity) or not isinstance(rounds, int) or rounds < 2:
        raise Invalid(f"ramps compare schedules of at least 2 rounds above sparsity 0, got {rounds} rounds to {sparsity:g}")
    kinds = (
        ("one cut", (sparsity,), GREY, "square", "5px,4px"),
        ("linear ramp", ramp(sparsity, rounds, "linear"), ORANGE, "triangle-up", "solid"),
        ("cubic ramp", ramp(sparsity, rounds, "cubic"), BLUE, "circle", "solid"),
    )
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.55, 0.45], vertical_spacing=0.09)
    last = {}
    for name, shares, colour, symbol, dash in kinds:
        taken = [(after - before) / (1 - before) for before, after in pairwise((0.0, *shares))]
        last[name] = taken[-1]
        x = list(range(1, len(shares) + 1))
        held = [*shares, *[sparsity] * (rounds - len(shares))]
        figure.add_trace(
            go.Scatter(x=list(range(rounds + 1)), y=[0.0, *(100 * s for s in held)], name=name, mode="lines+markers", legendgroup=name,
                       line={"color": colour, "shape": "vh", "dash": dash, "width": 2.2}, marker={"symbol": symbol, "size": 8},
                       hovertemplate=f"{name}<br>after round %{{x}}: %{{y:.2f}} % gone<extra></extra>"), row=1, col=1,
        )  # fmt: skip
        figure.add_trace(
            go.Bar(x=x, y=[100 * t for t in taken], name=name, legendgroup=name, showlegend=False,
                   marker={"color": colour, "pattern": {"shape": "/" if name == "linear ramp" else ""}},
                   hovertemplate=f"{name}<br>cut %{{x}} takes %{{y:.1f}} % of what is left<extra></extra>"), row=2, col=1,
        )  # fmt: skip
    figure.update_xaxes(range=[-0.2, rounds + 0.6], dtick=1 if rounds <= 12 else 2)
    figure.update_xaxes(title_text="round", row=2, col=1)
    figure.update_yaxes(title_text="gone (% of units)", range=[-3, 104], row=1, col=1)
    figure.update_yaxes(title_text="taken by the cut<br>(% of what was left)", range=[0, 104], row=2, col=1)
    return titled(
        figure,
        title or f"{rounds} rounds to {sparsity:.4g}: the last cut takes {last['linear ramp']:.0%} (linear) or "
        f"{last['cubic ramp']:.0%} (cubic) of what is left",
        "the lines end at the same sparsity; what differs is how much a single cut asks of the network",
        legend={"orientation": "h", "y": -0.17, "yanchor": "top", "x": 0}, height=520, margin={"b": 92}, barmode="group",
    )  # fmt: skip


def recovery(runs: Sequence[Run], *, title: str | None = None) -> go.Figure:
    """What a cut costs and what training on gives back: accuracy under PGD before the first cut, after each cut, and at the end.

    Args:
        runs: of pipeline ``after``, with fine-tuning; each is a column.

    Returns:
        For each run a filled circle (the dense network), an open diamond for each cut (right after it) and a filled diamond for the
        end of the fine-tuning behind it, joined by a line; accuracy in percent of the validation images.

    Raises:
        Invalid: no run, another pipeline, a run without fine-tuning, or accuracies that were not measured (budget: check=0).
    """
    if not runs or any(r.recipe.pipeline != "after" or r.recipe.finetuning in (None, "none") for r in runs):
        raise Invalid("recovery draws runs of pipeline 'after' that are fine-tuned; give at least one, and no others")
    figure, words = go.Figure(), []
    looks = {"dense": ("circle", BLACK, 10), "cut": ("diamond-open", RED, 12), "end": ("diamond", BLUE, 12)}
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in looks}
    for i, run in enumerate(runs):
        rounds = [*_rounds(run)]
        if any(y is None for _, y in rounds):
            raise Invalid(f"{run.recipe.label}: accuracies after its cuts were not measured; give its budget a check above 0")
        step = 0.5 / max(len(rounds) - 1, 1)
        xs = [i - 0.25 + step * k for k in range(len(rounds))]
        ys = [100 * y for _, y in rounds]
        figure.add_trace(
            go.Scatter(x=xs, y=ys, mode="lines", line={"color": GREY, "width": 1.5}, showlegend=False, hoverinfo="skip")
        )
        for (what, _), x, y in zip(rounds, xs, ys, strict=True):
            points[what].append((x, y))
        kind = "one cut" if run.recipe.schedule == "one_shot" else f"{sum(w == 'cut' for w, _ in rounds)} cuts, {run.recipe.ramp}"
        words.append(f"{run.recipe.sparsity:.4g}<br>{kind}")
    names = {"dense": "dense, before any cut", "cut": "right after a cut", "end": "fine-tuned after it"}
    for what, (symbol, colour, size) in looks.items():
        figure.add_trace(
            go.Scatter(x=[x for x, _ in points[what]], y=[y for _, y in points[what]], mode="markers", name=names[what], meta=what,
                       marker={"symbol": symbol, "color": colour, "size": size, "line": {"width": 2}},
                       hovertemplate=names[what] + ": %{y:.1f} %<extra></extra>")
        )  # fmt: skip
    n = runs[0].summary["budget_numbers"]["check"]
    return titled(
        figure,
        title or "What a cut costs, and what fine-tuning gives back",
        f"accuracy under PGD on {n} validation images, measured while the recipe runs",
        xaxis={"title": {"text": "sparsity, cuts"}, "tickvals": list(range(len(runs))), "ticktext": words, "showgrid": False},
        yaxis={"title": {"text": "accuracy under PGD (%)"}, "range": [-2, 102]},
        legend={"orientation": "h", "y": -0.24, "yanchor": "top", "x": 0}, height=430, margin={"b": 110},
    )  # fmt: skip


def _rounds(run: Run) -> list[tuple[str, float | None]]:
    """("dense" | "cut" | "end", accuracy under PGD as a share or None) in order: the rows of a history that measured one."""
    found: list[tuple[str, float | None]] = []
    for row in run.rows:
        if row["kind"] == "pruned":
            found.append(("cut", row.get("pgd")))
        elif row["kind"] == "epoch" and row["step"] == row["of"] and not row["stage"].endswith("prune"):
            found.append(("dense" if row["stage"] == "pretraining" else "end", row.get("val_pgd")))
    return found


def units(masks: Mapping[str, Any], *, inputs: int = 16, title: str | None = None) -> go.Figure:
    """One convolution under several masks, each small square one weight: what goes together, seen.

    Args:
        masks: name (the structure) -> bool (O, I, h, w), of one layer; up to four. inputs: at most so many of its inputs are drawn.

    Returns:
        A picture for each: a row of kernels for each filter, a column of kernels for each input; dark is kept, white is gone.

    Raises:
        Invalid: no mask, more than four, or one that is no convolution's.
    """
    import torch

    if not 1 <= len(masks) <= 4 or any(m.ndim != 4 for m in masks.values()):
        raise Invalid(f"got {len(masks)} masks, expected 1 to 4 of one convolution, each (O, I, h, w)")
    figure = make_subplots(
        rows=1, cols=len(masks), subplot_titles=[f"{name}: {100 * float(m.float().mean()):.3g} % kept" for name, m in masks.items()],
        horizontal_spacing=0.03,
    )  # fmt: skip
    for j, mask in enumerate(masks.values(), 1):
        part = torch.nn.functional.pad(mask[:, :inputs].float(), (0, 1, 0, 1), value=0.5)  # a line between kernels
        o, i, h, w = part.shape
        z = part.permute(0, 2, 1, 3).reshape(o * h, i * w)[:-1, :-1]
        figure.add_trace(
            go.Heatmap(z=(2 * z).to(torch.uint8).numpy(), zmin=0, zmax=2, showscale=False, hoverinfo="skip",
                       colorscale=[[0, "white"], [0.5, "#B9C6D2"], [1, "#1b3a57"]]), row=1, col=j,
        )  # fmt: skip
    shown = next(iter(masks.values()))
    some = f"the first {inputs} of {shown.shape[1]} inputs" if shown.shape[1] > inputs else f"{shown.shape[1]} inputs"
    figure.update_xaxes(showticklabels=False, ticks="", showline=True, mirror=True, title_text="inputs")
    figure.update_yaxes(showticklabels=False, ticks="", showline=True, mirror=True, autorange="reversed")
    figure.update_yaxes(title_text="filters", col=1)
    figure.update_annotations(font_size=12)
    return titled(
        figure,
        title or "What goes together",
        f"{shown.shape[0]} filters (rows) and {some} (columns); each box is a kernel, dark is kept",
        height=470,
        margin={"t": 110, "b": 40},
    )


def after_cut(frame: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Accuracy right after a cut against sparsity: clean on the left, under attack on the right.

    Args:
        frame: columns structure, locality, sparsity, clean and robust, the last three as shares; n, if all rows have the same.

    Returns:
        One line for each structure (colour and marker) and locality (dash: global solid, local dashed), in percent.

    Raises:
        Invalid: no row.
    """
    if frame.empty:
        raise Invalid("there is no cut to show; give a row for each structure, locality and sparsity")
    figure = make_subplots(
        rows=1, cols=2, subplot_titles=["clean images", "under attack"], shared_yaxes=True, horizontal_spacing=0.05
    )
    colours = dict(zip(STRUCTURES, (BLUE, RED, GREEN, ORANGE), strict=True))
    for (structure, locality), rows in frame.groupby(["structure", "locality"], sort=False):
        rows, solid = rows.sort_values("sparsity"), locality == "global"
        for col, what in ((1, "clean"), (2, "robust")):
            figure.add_trace(
                go.Scatter(
                    x=[100 * s for s in rows["sparsity"]], y=[round(100 * v, 2) for v in rows[what]], mode="lines+markers",
                    name=f"{structure}, {locality}", legendgroup=f"{structure} {locality}", showlegend=col == 1,
                    line={"color": colours[structure], "width": 2, "dash": "solid" if solid else "6px,4px"},
                    marker={"symbol": STRUCTURES[structure] + ("" if solid else "-open"), "size": 8, "line": {"width": 1.5}},
                    hovertemplate=f"<b>{structure}, {locality}</b><br>%{{y:.1f}} % at %{{x:.3g}} %<extra></extra>",
                ), row=1, col=col,
            )  # fmt: skip
    figure.update_xaxes(title_text="units removed (%)", range=[-2, 102])
    figure.update_yaxes(range=[-1, 101], dtick=20)
    figure.update_yaxes(title_text="accuracy (% of test images)", row=1, col=1)
    figure.update_annotations(font_size=13)
    n = f", n = {int(frame['n'].iloc[0])}" if "n" in frame and frame["n"].nunique() == 1 else ""
    return titled(
        figure,
        title or "What is left right after the cut, before any fine-tuning",
        f"under attack: an upper bound{n}",
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        height=460,
        margin={"t": 110, "b": 110},
    )
