"""An evaluation as one page that opens anywhere: the verdict in words, the curve, the images, and whether to believe it."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

from apnb import plots
from apnb.errors import Invalid

if TYPE_CHECKING:
    from apnb.evaluation import Evaluation

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 Helvetica, Arial, sans-serif; color: #222; max-width: 900px; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse; margin: 1em 0 }} td, th {{ padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: left;
vertical-align: top }} .verdict {{ font-size: 1.2em }} .bad {{ font-weight: bold }} .said {{ color: #666 }}
</style></head><body>
<h1>{title}</h1>
<p class="verdict">{verdict}</p>
<p class="said">{words}</p>
{warnings}
<h2>Where the points went</h2>
{counts}
<h2>Is it believable?</h2>
{believable}
<h2>Images that were broken</h2>
{examples}
<h2>Security curve</h2>
{curve}
<p class="said">{made}</p>
</body></html>
"""


def write(evaluation: Evaluation, path: str | Path, *, title: str = "Robustness evaluation") -> Path:
    """Write the page; about 5 MB, since everything is in it and nothing is fetched when it is opened.

    Raises:
        Invalid: a name that does not end in .html, or a place that cannot be written to.
    """
    path = plots.writable(path, (".html",))
    try:
        path.write_text(page(evaluation, title=title), encoding="utf-8")
    except OSError as error:
        raise Invalid(f"cannot write {path}: {error.strerror or error}; choose another place") from None
    return path


def page(e: Evaluation, *, title: str = "Robustness evaluation") -> str:
    """The page as text."""
    low, high = e.interval
    clean_low, clean_high = e.clean_interval
    words = (
        f"{e.clean_accuracy:.1%} [{clean_low:.1%}, {clean_high:.1%}] of {e.n} test images of {e.data} are classified correctly, and "
        f"{e.robust_accuracy:.1%} [{low:.1%}, {high:.1%}] stayed so under attack within {e.eps:.4g} ({e.eps * 255:.3g}/255) in every "
        "pixel. Robust accuracy is an upper bound, found by these attacks: a stronger one may lower it, none can raise it. Intervals "
        "are Wilson's at 95 % and cover the choice of images, nothing else."
    )
    names = ["", *dict.fromkeys(by for by in e.broken_by if by)]
    said = {"": "stand", "clean": "wrong before any attack"}
    counts = [[said.get(by, f"broken by {by}"), str(e.broken_by.count(by)), f"{e.broken_by.count(by) / e.n:.1%}"] for by in names]
    curve = "<p>The smallest perturbations were not asked for: distances=True, or --distances fmn, looks for them.</p>"
    examples = plots.examples(e).to_html(full_html=False, include_plotlyjs=True)
    if e.searched != "none":
        curve = plots.security_curve([e.curve()], eps=e.eps).to_html(full_html=False, include_plotlyjs=False)
    findings = [[f.indicator, f.verdict, f.meaning, f.advice] for f in e.diagnostics]
    made = (
        f"Points: {e.subset}, seed {e.seed}. Attacked in batches of {e.batch}, {e.precision}; every success checked again in float32. "
        f"Distances: {e.distances_by}. {e.seconds:.0f} s."
    )
    return PAGE.format(
        title=html.escape(title),
        verdict=html.escape(str(e)),
        words=html.escape(words),
        warnings="".join(f"<p class='bad'>{html.escape(w)}</p>" for w in e.warnings),
        counts=_table(["points", "how many", "share"], counts),
        believable=_table(["indicator", "verdict", "what was seen", "what to do"], findings)
        if findings
        else "<p>Diagnostics were not asked for.</p>",
        curve=curve,
        examples=examples,
        made=html.escape(made),
    )


def _table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
