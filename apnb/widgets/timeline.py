"""A recipe as a picture: its stages in a row, as long as their epochs, and the cuts. Plain SVG that takes the page's colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from apnb.recipes import Recipe

NAMES = {
    "natural": "natural",
    "fgsm": "FGSM",
    "fast_at": "fast AT",
    "pgd_at": "PGD-AT",
    "trades": "TRADES",
    "mart": "MART",
    "kd": "KD",
}
"""Objective -> its name in a box, where there is room for few letters."""
TOP, BAR, LINE = 16, 30, 17
"""Heights in pixels: of the marks above the boxes, of the boxes, of a line of text below."""
NARROWEST, ATTACK = 4.0, 14.0
"""Widths in percent: the least of a box, and that of the box of the attacks, which have no epochs."""
MARKS = 12
"""Marks that stand for many cuts."""


def svg(recipe: Recipe, pixels: int = 64, seconds: float | None = None, sparsities: Sequence[float] = ()) -> str:
    """The stages of a recipe as an SVG as wide as its place, legible from 320 pixels on.

    Boxes are as wide as their epochs are many (but never too narrow to see), full where the network trains and pale where it
    searches for a mask. A triangle is a cut; where there are very many, twelve stand for them. Colours: the
    pipeline's, and the text's own for everything else, so that it suits light and dark pages.

    Args:
        recipe: what to draw. pixels: values in an image, which decides what a budget's name means.
        seconds: how long all of it takes, as by `apnb.estimate.estimate`, to be said below.
        sparsities: of the runs that the picture is for, which differ in nothing else; none: that of ``recipe``.
    """
    from apnb.estimate import duration, stage_lengths
    from apnb.plots import PIPELINES

    stages = {name: length for name, length in stage_lengths(recipe, pixels).items() if name != "initial"}
    widths = _widths([epochs for _, epochs in stages.values()])
    colour, boxes, marks, said, x = PIPELINES[recipe.pipeline], [], [], [], 0.0
    for (name, (objective, epochs)), width in zip(stages.items(), widths, strict=True):
        told = (
            f"{name}, {epochs} epoch{'s' * (epochs > 1)}, {NAMES[objective or 'natural']}" if epochs else f"{name}, no training"
        )
        cuts = _cuts(recipe, name, epochs, pixels)
        told += {0: "", 1: ", cut", MARKS: ", many cuts"}.get(len(cuts), f", {len(cuts)} cuts")
        said.append(told)
        if epochs:
            pale = name.endswith(("prune", "pruning"))
            boxes.append(_box(x, width, told, NAMES[objective or "natural"], colour, pale))
        marks += [_mark(x + width * at, told, through=len(cuts) == 1) for at in cuts]
        x += width
    said.append("attack")
    boxes.append(
        f'<g><title>attack: the test images, after training</title><rect x="{x + 0.4:.2f}%" y="{TOP}" width="{100 - x - 0.8:.2f}%" '
        f'height="{BAR}" rx="3" fill="none" stroke="currentColor" stroke-dasharray="3 3"/>{_text(x, 100 - x, "attack")}</g>'
    )
    share = f"{_shares(sparsities or [recipe.sparsity])} of {recipe.units}"
    lines = _legend(recipe, stages, share, pixels)
    lines += [f"about {duration(seconds)} in all"] if seconds is not None else []
    height = TOP + BAR + 6 + LINE * len(lines)
    below = "".join(
        f'<text x="0" y="{TOP + BAR + 2 + LINE * (i + 1)}" fill="currentColor">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    title = f"Stages of {recipe.label}" + (f", {share} cut" if recipe.sparsity else "")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="100%" height="{height}" role="img" font-family="Helvetica, Arial, sans-serif" '
        f'font-size="12" style="display:block"><title>{escape(title)}</title><desc>{escape("; ".join(said))}</desc>'
        f"{''.join(boxes)}{''.join(marks)}{below}</svg>"
    )


def _shares(sparsities: Sequence[float]) -> str:
    """ "90 %", "50 and 90 %" or "50 to 99 %"."""
    first, *more = [f"{100 * s:.4g}" for s in sorted({*sparsities})]
    return " ".join([first, *(["and" if len(more) == 1 else "to", more[-1]] if more else []), "%"])


def _widths(epochs: list[int]) -> list[float]:
    """Percent of the width for each stage: proportional, but with a least width; a stage without epochs has none."""
    room = 100 - ATTACK
    narrow = min(NARROWEST, 0.4 * room / max(len(epochs), 1))
    shared = room - narrow * sum(e > 0 for e in epochs)
    return [narrow + shared * e / max(sum(epochs), 1) if e else 0.0 for e in epochs]


def _box(x: float, width: float, told: str, label: str, colour: str, pale: bool) -> str:
    look = f'fill-opacity="0.25" stroke="{colour}"' if pale else ""
    ink = "currentColor" if pale else "white" if colour == "#0072B2" else "black"  # legible on each of the three
    return (
        f'<g><title>{escape(told)}</title><rect x="{x + 0.2:.2f}%" y="{TOP}" width="{max(width - 0.4, 0.2):.2f}%" height="{BAR}" rx="3" '
        f'fill="{colour}" {look}/>{_text(x, width, label, ink)}</g>'
    )


def _text(x: float, width: float, label: str, ink: str = "currentColor") -> str:
    """A label in the middle of a box, if it has room when the picture is 320 pixels wide."""
    if 3.2 * width < 7 * len(label):
        return ""
    return f'<text x="{x + width / 2:.2f}%" y="{TOP + BAR / 2 + 4}" text-anchor="middle" fill="{ink}">{escape(label)}</text>'


def _mark(x: float, told: str, through: bool) -> str:
    """A cut: a triangle that points at the bar; a single one goes through it, many would hide the label."""
    line = f'<path d="M0 12V{TOP + BAR + 2}" stroke="currentColor" stroke-width="1.5"/>' if through else ""
    return (
        f'<svg x="{x:.2f}%" overflow="visible"><title>{escape(told)}</title>'
        f'<path d="M-5 4h10l-5 9z" fill="currentColor"/>{line}</svg>'
    )


def _cuts(recipe: Recipe, stage: str, epochs: int, pixels: int) -> tuple[float, ...]:
    """Where in a stage something is removed, as shares of its length."""
    if not recipe.sparsity:
        return ()
    if stage.endswith(("prune", "pruning")):
        return (1.0,)
    if recipe.pipeline != "during" or stage != "training":
        return ()
    if "cut" in (own := recipe.settings(pixels)):
        return ((own["cut"] - 1) / epochs,)
    anywhere = recipe.method or recipe.criterion == "bcs"
    n = MARKS if anywhere else min(MARKS, recipe.numbers(pixels).updates)
    first, last = (0.04, 0.96) if anywhere else (0.1, 0.75)
    return tuple(last - (last - first) * i / max(n - 1, 1) for i in reversed(range(n)))


def _legend(recipe: Recipe, stages: dict[str, tuple[str | None, int]], share: str, pixels: int) -> list[str]:
    """One line for each kind of stage; the rounds of an iterative schedule together."""
    kinds: dict[str, list[tuple[str | None, int]]] = {}
    for name, length in stages.items():
        kinds.setdefault(name.split(": ")[-1], []).append(length)
    lines = []
    for kind, lengths in kinds.items():
        epochs, rounds = sum(e for _, e in lengths), f", {len(lengths)} rounds" if len(lengths) > 1 else ""
        trained = f"{epochs} epoch{'s' * (epochs > 1)} {NAMES[lengths[0][0] or 'natural']}{rounds}" if epochs else ""
        cut = f"\u25bc {share}{rounds if not trained else ''}" if _cuts(recipe, kind, epochs or 1, pixels) else ""
        lines.append(f"{kind}: {', '.join(part for part in (trained, cut) if part) or 'nothing is removed'}")
    return lines
