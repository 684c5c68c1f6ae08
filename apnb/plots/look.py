"""How figures look: one visual language, the same in all of them.

What a thing is decides how it looks: the pipeline gives the colour (Okabe and Ito's, told apart by colour-blind eyes), structure,
locality and schedule give the marker, the criterion gives the dash. So a line is recognised in grey, too.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

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


def titled(figure: go.Figure, title: str, subtitle: str = "", **layout: Any) -> go.Figure:
    figure.update_layout(template=TEMPLATE, title={"text": title, "subtitle": {"text": subtitle, "font": {"size": 12}}}, **layout)
    return figure


LOOKS = (
    (BLUE, "solid", "circle"), (RED, "9px,3px", "square"), (GREEN, "2px,3px", "diamond"), (PINK, "16px,4px", "triangle-up"),
    (ORANGE, "12px,3px,2px,3px", "cross"), (SKY, "5px,2px,2px,2px,2px,2px", "triangle-down"), (BLACK, "24px,6px", "x"),
)  # fmt: skip
"""Colour, dash and marker of lines that no word of the grammar tells apart (networks of a security curve, layers), in order."""


def levels(eps: float) -> bool:
    """Whether a radius is a whole number of 255ths."""
    return abs(255 * eps - round(255 * eps)) < 1e-6


def radius(eps: float) -> str:
    return f"{round(255 * eps)}/255" if levels(eps) else f"{eps:.4g}"


def rgba(colour: str, alpha: float) -> tuple[int, int, int, float]:
    return (*bytes.fromhex(colour[1:]), alpha)
