"""The survey drawn: the taxonomy's grid, and the published numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from apnb.benchmark import SAID
from apnb.errors import Invalid
from apnb.plots.look import BLACK, GREY, LIGHT, PIPELINES, titled

if TYPE_CHECKING:
    import pandas as pd

COUNTS = ((0.0, "#FFFFFF"), (0.001, "#DCE8F2"), (1.0, "#1B3A57"))
"""White for none, and darker for more."""


def crossing(rows: str, columns: str) -> go.Figure:
    """How many surveyed methods have two words at once: a square for each pair of words.

    Args:
        rows, columns: two of pipeline, schedule, structure, locality, criterion.

    Returns:
        A heatmap; white squares with a dash are empty, and hovering names the methods. A method with two words counts in both;
        one for which the survey names none is in an extra row or column.

    Raises:
        Invalid: an unknown dimension, or one twice.
    """
    from apnb import taxonomy
    from apnb.errors import choose

    known = {
        "pipeline": taxonomy.Pipeline, "schedule": taxonomy.Schedule, "structure": taxonomy.Structure,
        "locality": taxonomy.Locality, "criterion": taxonomy.Criterion,
    }  # fmt: skip
    rows, columns = choose(rows, known, "dimension"), choose(columns, known, "dimension")
    if rows == columns:
        raise Invalid(f"both dimensions are {rows!r}; choose two of {', '.join(known)}")
    down, across = (
        [w for w in known[name] if w != "both" and taxonomy.methods(**{name: w})] for name in (rows, columns)
    )  # a method with both schedules has each of them
    found = [[[m.name for m in taxonomy.methods(**{rows: r, columns: c})] for c in across] for r in down]
    empty = sum(not names for line in found for names in line)
    most, i, j = max((len(names), i, j) for i, line in enumerate(found) for j, names in enumerate(line))
    figure = go.Figure(
        go.Heatmap(
            z=[[len(names) for names in line] for line in found],
            x=[_word(w) for w in across],
            y=[_word(w) for w in down],
            text=[[str(len(names)) if names else "–" for names in line] for line in found],
            customdata=[[", ".join(names) or "nobody" for names in line] for line in found],
            texttemplate="%{text}",
            textfont={"size": 15},
            hovertemplate="%{y} × %{x}<br>%{customdata}<extra></extra>",
            colorscale=COUNTS,
            zmin=0,
            zmax=16,
            showscale=False,
            xgap=3,
            ygap=3,
        )
    )
    said = f"{empty} of {len(down) * len(across)} squares are empty" if empty else "no square is empty"
    return titled(
        figure,
        f"{rows.capitalize()} by {columns}: {said}",
        f"numbers are methods; the fullest square, {_word(down[i])} × {_word(across[j])}, holds {most}",
        xaxis={"title": {"text": columns}, "type": "category", "showgrid": False, "ticks": ""},
        yaxis={
            "title": {"text": rows},
            "type": "category",
            "autorange": "reversed",
            "showgrid": False,
            "ticks": "",
            "automargin": True,
        },
        plot_bgcolor=LIGHT,
        height=400,
    )


def _word(word: Any) -> str:
    """A word of the survey as an axis says it."""
    from apnb import taxonomy

    if word == "unspecified":
        return "not said"
    return word.upper() if isinstance(word, taxonomy.Criterion) else str(word).replace("_", "-")


def atlas(named: Mapping[Any, Sequence[str]], possible: Mapping[Any, Sequence[str]]) -> go.Figure:
    """Every cell of the grammar and who lives there.

    Args:
        named: `apnb.Cell` -> names of the methods that the survey puts there by name. possible: the same, counting also those for
            which the survey leaves a word open that could be this cell's.

    Returns:
        Rows: pipeline, schedule, locality; columns: structure, criterion. Dark squares are inhabited (the number says by how many),
        pale ones only if the open word is read that way (a question mark); white ones are empty, grey ones are no valid cell.
    """
    from apnb.recipes import CRITERIA, LOCALITIES, PIPELINES, SCHEDULES, STRUCTURES, Cell

    down = [(p, s, l) for p in PIPELINES for s in SCHEDULES for l in LOCALITIES]
    across = [(u, c) for u in STRUCTURES for c in CRITERIA]
    z, text, names = [], [], []
    for p, s, l in down:
        cells = [Cell(p, s, u, l, c) for u, c in across]
        z.append([None if c not in possible else 2 if named.get(c) else 1 if possible[c] else 0 for c in cells])
        text.append([str(len(named[c])) if named.get(c) else "?" if possible.get(c) else "" for c in cells])
        names.append([", ".join(possible.get(c, ())) or ("nobody" if c in possible else "not a valid cell") for c in cells])
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=[[u for u, _ in across], [c.upper() for _, c in across]],
            y=[[p for p, _, _ in down], [f"{s.replace('_', '-')}, {l}" for _, s, l in down]],
            text=text,
            customdata=names,
            texttemplate="%{text}",
            textfont={"size": 13},
            hovertemplate="%{y} × %{x}<br>%{customdata}<extra></extra>",
            colorscale=((0, "#FFFFFF"), (0.5, "#BFD7EA"), (1, "#1B3A57")),
            zmin=0,
            zmax=2,
            showscale=False,
            xgap=2,
            ygap=2,
            hoverongaps=True,
        )
    )
    homes, perhaps = (sum(bool(v) for v in some.values()) for some in (named, possible))
    return titled(
        figure,
        f"Nobody lives in {len(possible) - perhaps} of the {len(possible)} cells",
        f"dark: {homes} cells with a method, and how many<br>pale, ?: {perhaps - homes} more, if a word that the survey leaves open is "
        "read so; grey: no valid cell",
        xaxis={"showgrid": False, "ticks": "", "tickangle": -90},
        yaxis={"showgrid": False, "ticks": "", "autorange": "reversed", "automargin": True, "title": {"text": ""}},
        plot_bgcolor="#C9C9C9",
        height=560,
        margin={"t": 110, "b": 90},
        meta={"least_width": 640},
    )


SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "pentagon", "triangle-down", "hexagram")


def _look(keys: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Method -> its name, the colour of its pipeline and a symbol of its own, the same in every figure of the leaderboard."""
    from apnb import taxonomy

    order = sorted(taxonomy.leaderboard()["method"].unique())
    known = {key: taxonomy.method(key) for key in keys}
    return {k: (m.name, PIPELINES[str(m.pipeline)], SYMBOLS[order.index(m.key) % len(SYMBOLS)]) for k, m in known.items()}


def _place(row: Mapping, *, sparsity: bool = False) -> str:
    told = f"{SAID.get(row['data'], row['data'])}, {SAID.get(row['network'], row['network'])}, {row['structure_group']}"
    return f"{told}, {row['sparsity']:.0%}" if sparsity else told


def _spread(values: Sequence[float], least: float) -> list[float]:
    """Places for labels, as close to the values as they can be when neighbours need a distance of ``least``."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    places = [values[i] for i in order]
    for _ in range(200):
        for a in range(len(places) - 1):
            if (lack := least - (places[a + 1] - places[a])) > 1e-6:
                places[a], places[a + 1] = places[a] - lack / 2, places[a + 1] + lack / 2
    return [places[order.index(i)] for i in range(len(values))]


def published_sparsity(rows: pd.DataFrame) -> go.Figure:
    """What sparsity costs in the published tables: robust accuracy at each published sparsity, a line for each method.

    Args:
        rows: of `apnb.taxonomy.leaderboard`, of one data set, network and half of the tables.

    Returns:
        A figure with accuracy in percent, on one scale for all tables; colour: pipeline.

    Raises:
        Invalid: rows of several tables, or none; no method with a row at both ends.
    """
    from apnb import taxonomy

    _one_table(rows, ("data", "network", "structure_group"))
    shares = sorted(rows["sparsity"].unique())
    looks = _look(sorted(rows["method"].unique()))
    figure, ends, lost = go.Figure(), [], {}
    for key, some in rows.sort_values("sparsity").groupby("method"):
        name, colour, symbol = looks[key]
        x, y = [shares.index(s) for s in some["sparsity"]], list(some["robust"])
        figure.add_trace(
            go.Scatter(x=x, y=y, mode="lines+markers", name=name, line={"color": colour, "width": 2}, showlegend=False,
                       marker={"symbol": symbol, "size": 9},
                       hovertemplate=f"<b>{name}</b><br>robust %{{y:.2f}} %<extra></extra>")
        )  # fmt: skip
        ends.append((x[-1], y[-1], name, colour))
        if (x[0], x[-1]) == (0, len(shares) - 1):
            lost[name] = y[0] - y[-1]
    _end_labels(figure, ends, 1.9)
    board = taxonomy.leaderboard()["robust"]
    if not lost:
        raise Invalid(
            f"no method has a row at both {shares[0]:.0%} and {shares[-1]:.0%}, so nothing is lost or gained; give more rows"
        )
    worst, best = max(lost, key=lost.get), min(lost, key=lost.get)
    gains = f"gains {-lost[best]:.1f}" if lost[best] < 0 else f"loses {lost[best]:.1f}"
    return titled(
        figure,
        f"{_place(rows.iloc[0])}: {worst} loses {lost[worst]:.1f} points, {best} {gains}",
        f"from {shares[0]:.0%} to {shares[-1]:.0%} of the {'weights' if rows.iloc[0]['structure_group'] == 'unstructured' else 'units'}; "
        "blue: pruned after training, red: before, green: during",
        xaxis={"title": {"text": "sparsity"}, "tickvals": list(range(len(shares))), "ticktext": [f"{s:.0%}" for s in shares],
               "range": [-0.1, len(shares) - 0.65]},
        yaxis={"title": {"text": "robust accuracy (% of 10,000 images)"}, "range": [board.min() - 4, board.max() + 3]},
        height=520,
    )  # fmt: skip


def _end_labels(figure: go.Figure, ends: Sequence[tuple[float, float, str, str]], least: float) -> None:
    """A name at the end of each line, none over another."""
    for at in {x for x, *_ in ends}:
        here = [e for e in ends if e[0] == at]
        for (x, _, name, colour), y in zip(here, _spread([e[1] for e in here], least), strict=True):
            figure.add_annotation(
                x=x, y=y, text=f" {name}", xanchor="left", xshift=6, showarrow=False,
                font={"color": colour, "size": 12}, bgcolor="rgba(255,255,255,0.75)", borderpad=0,
            )  # fmt: skip


def _one_table(rows: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse rows of no table or of several."""
    several = [c for c in columns if rows[c].nunique() != 1]
    if several:
        raise Invalid(f"the rows have {rows[several[0]].nunique()} different {several[0]}; select those of one")


def clean_robust(rows: pd.DataFrame) -> go.Figure:
    """Clean against robust accuracy in one column of the published tables, and who is not beaten on both.

    Args:
        rows: of `apnb.taxonomy.leaderboard`, of one column (`apnb.benchmark.COLUMN`).

    Returns:
        A figure in percent, on one scale for all columns; filled markers are the front, a dotted line joins them.

    Raises:
        Invalid: rows of several columns, or none.
    """
    from apnb import benchmark, taxonomy

    _one_table(rows, benchmark.COLUMN)
    front = benchmark.pareto(rows)
    looks, board = _look(list(rows["method"])), taxonomy.leaderboard()
    figure = go.Figure(
        go.Scatter(x=list(front["clean"]), y=list(front["robust"]), mode="lines", line={"color": GREY, "dash": "dot", "width": 1.5},
                   hoverinfo="skip", showlegend=False)
    )  # fmt: skip
    for index, row in sorted(rows.iterrows(), key=lambda r: r[0] not in front.index):  # filled markers under the open ones
        name, colour, symbol = looks[row["method"]]
        figure.add_trace(
            go.Scatter(x=[row["clean"]], y=[row["robust"]], mode="markers", name=name,
                       marker={"symbol": symbol if index in front.index else f"{symbol}-open", "size": 12, "color": colour,
                               "opacity": 0.7 if index in front.index else 1,
                               "line": {"width": 1.8, "color": colour}},
                       hovertemplate=f"<b>{name}</b><br>clean %{{x:.2f}} %, robust %{{y:.2f}} %<extra></extra>")
        )  # fmt: skip
    names = [looks[m][0] for m in front["method"]]
    told = (
        f"{names[0]} beats all others on both"
        if len(names) == 1
        else f"nobody beats {', '.join(names[:-1])} or {names[-1]} on both"
    )
    return titled(
        figure,
        f"{_place(rows.iloc[0], sparsity=True)}:<br>{told}",
        "filled: nobody is at least as good in both and better in one; blue: after training, red: before, green: during",
        xaxis={"title": {"text": "clean accuracy (%)"}, "range": [board["clean"].min() - 3, board["clean"].max() + 3]},
        yaxis={"title": {"text": "robust accuracy (%)"}, "range": [board["robust"].min() - 3, board["robust"].max() + 3]},
        height=540,
        margin={"t": 112},
    )


def by_trait(trait: str, rows: pd.DataFrame | None = None) -> go.Figure:
    """The methods of the unstructured tables, sorted by a word of the survey: how few stand behind each word's mean.

    Args:
        trait, rows: as for `apnb.benchmark.gap_by_chance`, whose result is in the title.

    Returns:
        A figure in points above or below the mean of the columns; a dot is a method, a bar the mean of a word's methods.
    """
    from apnb import benchmark, taxonomy

    test = benchmark.gap_by_chance(trait, rows)
    rows = taxonomy.leaderboard() if rows is None else rows
    level = benchmark.levels(rows[rows["structure_group"] == "unstructured"])
    looks = _look(list(level.index))
    words = level.groupby([str(taxonomy.cell_of(m)[trait][0]) for m in level.index])
    order = list(words.mean().sort_values(ascending=False).index)
    figure, ends = go.Figure(), []
    for x, word in enumerate(order):
        some = words.get_group(word)
        figure.add_shape(type="line", x0=x - 0.25, x1=x - 0.06, y0=some.mean(), y1=some.mean(), line={"color": BLACK, "width": 3})
        for key, value in some.items():
            name, colour, symbol = looks[key]
            figure.add_trace(
                go.Scatter(x=[x], y=[value], mode="markers", name=name, marker={"symbol": symbol, "size": 11, "color": colour},
                           showlegend=False, hovertemplate=f"<b>{name}</b><br>%{{y:+.1f}} points<extra></extra>")
            )  # fmt: skip
            ends.append((x, value, name, colour))
    _end_labels(figure, [(x + 0.05, *rest) for x, *rest in ends], 1.5)
    figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dot"})
    labels = [f"{_word(getattr(taxonomy, trait.capitalize())(w))}<br>{len(words.get_group(w))} of {len(level)}" for w in order]
    return titled(
        figure,
        f"{trait.capitalize()}: {test['gap']:.1f} points apart; chance does as well in {test['share']:.0%} of {test['ways']:,} deals",
        "a dot is a method (blue: after training, red: before, green: during), a bar the mean of its word",
        xaxis={"title": {"text": trait}, "tickvals": list(range(len(order))), "ticktext": labels,
               "range": [-0.4, len(order) - 0.3], "showgrid": False},
        yaxis={"title": {"text": "robust accuracy above the column's mean (points)"}},
        height=500,
        margin={"b": 76},
    )  # fmt: skip


def first_and_second(table: pd.DataFrame) -> go.Figure:
    """By how much the best of each column leads, beside two standard errors of a difference.

    Args:
        table: of `apnb.benchmark.separable`.

    Returns:
        A bar for each column, in points, in the colour of the first; white where the lead is within the bound, a black tick.
    """
    table = table.sort_values("gap", ascending=False, kind="stable")
    looks = _look(list({*table["first"], *table["second"]}))
    labels = [_place(row, sparsity=True) for row in table.to_dict("records")]
    figure = go.Figure(
        go.Bar(
            y=labels,
            x=list(table["gap"]),
            orientation="h",
            marker={
                "color": [looks[m][1] if apart else "#FFFFFF" for m, apart in zip(table["first"], table["apart"], strict=True)],
                "line": {"color": [looks[m][1] for m in table["first"]], "width": 1.5},
            },
            hovertemplate="%{y}<br>%{x:.2f} points<extra></extra>",
            showlegend=False,
        )
    )
    figure.add_trace(
        go.Scatter(x=list(table["bound"]), y=labels, mode="markers", name="two standard errors",
                   marker={"symbol": "line-ns", "size": 12, "line": {"width": 2.5, "color": BLACK}}, hoverinfo="skip",
                   showlegend=False)
    )  # fmt: skip
    for label, row in zip(labels, table.to_dict("records"), strict=True):
        figure.add_annotation(
            x=max(row["gap"], row["bound"]), y=label, xanchor="left", xshift=6, showarrow=False, font={"size": 11},
            text=f"{looks[row['first']][0]} over {looks[row['second']][0]}",
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed", automargin=True, tickfont={"size": 11}, showgrid=False)
    return titled(
        figure,
        f"In {int((~table['apart']).sum())} of {len(table)} columns the lead is within its error bar",
        "black ticks: two standard errors of a difference<br>on 10,000 images; white: the lead is smaller; "
        "blue: the first prunes after training, green: during",
        xaxis={
            "title": {"text": "lead of the first over the second (points of robust accuracy)"},
            "range": [0, table["gap"].max() + 1.6],
        },
        height=180 + 22 * len(table),
        margin={"t": 110},
        meta={"least_width": 640},
    )
