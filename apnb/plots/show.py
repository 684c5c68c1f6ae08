"""Showing and saving: figures that move without a kernel, how a notebook draws, files."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from apnb.errors import Invalid
from apnb.plots.look import TEMPLATE


def movable(figures: Mapping[Any, go.Figure], *, label: str, start: Any = None, title: str | None = None) -> go.Figure:
    """Several figures of one kind as one figure with a slider: it moves without a kernel, too.

    Args:
        figures: what the slider says -> the figure shown there, in the slider's order; at least two.
        label: what is moved, said before the slider's word ("sparsity").
        start: the word shown first; default: the first.
        title: of all; default: each figure keeps its own, and the slider changes it.

    Returns:
        The layout of ``start`` with the traces of all figures, those of one word shown. Axes, titles, annotations and shapes change with
        the slider; legend and margins are those of ``start``, the height is the largest.

    Raises:
        Invalid: fewer than two figures, two words that read alike, or a start that is none of them.
    """
    words = [str(word) for word in figures]
    if len(set(words)) < max(2, len(words)):
        raise Invalid(f"a movable figure needs at least two figures with different words, got {', '.join(words) or 'none'}")
    start = words[0] if start is None else str(start)
    if start not in words:
        raise Invalid(f"start is {start!r}, but the slider has {', '.join(words)}")
    drawn = list(figures.values())
    moving = sorted({name for figure in drawn for name in figure.layout.to_plotly_json() if name[:5] in ("xaxis", "yaxis")})
    visible = [trace.visible if trace.visible is not None else True for figure in drawn for trace in figure.data]
    owners = [i for i, figure in enumerate(drawn) for _ in figure.data]
    base = drawn[words.index(start)]
    whole = go.Figure(layout=base.layout)
    whole.add_traces([trace for figure in drawn for trace in figure.data])
    steps = []
    for i, (word, figure) in enumerate(zip(words, drawn, strict=True)):
        layout = figure.layout.to_plotly_json()
        change = {name: layout.get(name, {}) for name in moving} | {"annotations": layout.get("annotations", [])}
        change |= {"shapes": layout.get("shapes", [])}
        if title is None:
            change["title"] = layout.get("title", {})
        shown = [own if owner == i else False for own, owner in zip(visible, owners, strict=True)]
        steps.append({"label": word, "method": "update", "args": [{"visible": shown}, change]})
    for trace, shown in zip(whole.data, steps[words.index(start)]["args"][0]["visible"], strict=True):
        trace.visible = shown
    bottom = base.layout.margin.b or TEMPLATE.layout.margin.b
    height = max(figure.layout.height or 450 for figure in drawn)
    slider = {
        "active": words.index(start), "steps": steps, "currentvalue": {"prefix": f"{label}: ", "font": {"size": 13}},
        "x": 0, "len": 1, "y": 0, "yanchor": "top", "pad": {"t": bottom - 6, "b": 8}, "minorticklen": 0,
    }  # fmt: skip
    whole.update_layout(sliders=[slider], margin={"b": bottom + 86}, height=height + 86)
    if title is not None:
        whole.update_layout(title={"text": title})
    return whole


def _browser() -> bool:
    """Whether kaleido is installed and finds a Chromium or Chrome to draw with."""
    try:
        import kaleido  # noqa: F401
        from choreographer.browsers.chromium import Chromium
    except ImportError:
        return False
    return bool(Chromium.find_browser(skip_local=False))


def renderer() -> None:
    """How this notebook shows figures: interactive, plus a PNG where a browser can draw one (GitHub shows only the PNG).

    Sets plotly's default renderer, so that a notebook says it once. JupyterLab, Notebook 7 and VS Code draw
    figures by their type; Colab does not and gets its own kind; where neither shows (the old nbclassic), PLOTLY_RENDERER decides.
    """
    import plotly.io as pio

    asked = os.environ.get("PLOTLY_RENDERER") or ("colab" if "google.colab" in sys.modules else None)
    pio.renderers.default = asked or "plotly_mimetype"
    if not asked and _browser():
        import kaleido

        kaleido.start_sync_server(silence_warnings=True)  # one browser for all pictures instead of one each
        warnings.filterwarnings("ignore", message="The kopts argument is ignored if using a server")
        pio.renderers.default = "plotly_mimetype+png"


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
