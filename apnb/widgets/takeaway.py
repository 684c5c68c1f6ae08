"""What somebody takes home from a lab on a machine that forgets: runs, table, recipes, code and figures, in pieces or as one ZIP."""

from __future__ import annotations

import csv as csv_
import io
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apnb.errors import Invalid, choose
from apnb.store import INSIDE, ROW, Store

if TYPE_CHECKING:
    import plotly.graph_objects as go

KINDS = ("html", "png", "svg")
CODE = """from pathlib import Path

import apnb

if __name__ == "__main__":
    for file in sorted(Path.cwd().glob("recipes*.json")):  # one for each network, data set, radius and way to evaluate
        runs = apnb.sweep(**apnb.sweeps.read_sweep(file))
        print(runs.frame().to_string())
        apnb.plots.save(apnb.plots.robustness_sparsity(runs.frame()), file.with_suffix(".html"))
"""
README = """Runs of apnb, the interactive companion to the survey of adversarial pruning.

runs.zip        the runs themselves: networks, masks, histories, verdicts    apnb runs import THE-WHOLE-ZIP (or runs.zip)
table.csv       one row for each evaluation; shares in [0, 1], times in seconds
recipes*.json   what was run, each file with its own way to evaluate         apnb sweep recipes.json
code.py         all of them in Python, run here: a table and a curve each    python code.py
figures/        open in a browser; no network needed, keep plotly.min.js beside them

Robust accuracies are upper bounds, found by the attacks that the table names.
"""


def csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows of runs as CSV in UTF-8, columns as in `apnb.store.ROW`."""
    text = io.StringIO()
    writer = csv_.DictWriter(text, ROW, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def sweep_files(rows: Sequence[Mapping[str, Any]], store: str | Path | Store | None = None) -> list[bytes]:
    """What was run, as files that ``apnb sweep FILE`` runs again: one for each network, data set, radius and way to evaluate.

    Rows of runs that are no longer in the store are left out.
    """
    store = store if isinstance(store, Store) else Store(store)
    there, files = set(store.keys()), {}
    for row in rows:
        if row["key"] not in there:
            continue
        summary = store.summary(row["key"])
        given = summary.get("given") or {}
        about = {"network": summary["network"], "data": given.get("data") or summary["data"], "eps": given.get("eps"),
                 "attacks": row["attacks"], "n": row["n"]}  # fmt: skip
        alike = [
            e for e in store.evaluations(row["key"]) if (e["attacks"], e["n"], e["eps"]) == (row["attacks"], row["n"], row["eps"])
        ]
        about["distances"] = max({e.get("searched", "none") for e in alike} - {"none"}, default=None)
        about = {name: value for name, value in about.items() if value is not None}
        recipes = files.setdefault(json.dumps(about), {**about, "recipes": []})["recipes"]
        if summary["recipe"] not in recipes:
            recipes.append(summary["recipe"])
    return [(json.dumps(file, indent=1) + "\n").encode() for file in files.values()]


def recipes(rows: Sequence[Mapping[str, Any]], store: str | Path | Store | None = None) -> bytes:
    """The one sweep file of these runs.

    Raises:
        Invalid: nothing to write, or runs that one file cannot describe.
    """
    files = sweep_files(rows, store)
    if not files:
        raise Invalid("there are no recipes to write: none of these runs is in the store")
    if len(files) > 1:
        raise Invalid(
            f"these runs need {len(files)} sweep files, since a file has one network, data set, radius and way to evaluate; take "
            "everything as a ZIP, which holds them all"
        )
    return files[0]


def figure(fig: go.Figure, kind: str = "html") -> bytes:
    """A figure as one file that needs no network: html (interactive, 5 MB), png or svg.

    Raises:
        Invalid: another kind, or no browser to draw a picture with.
    """
    from apnb import plots

    kind = choose(kind, KINDS, "kind of figure")
    with tempfile.TemporaryDirectory() as folder:
        return plots.save(fig, Path(folder) / f"figure.{kind}").read_bytes()


def bundle(
    rows: Sequence[Mapping[str, Any]],
    store: str | Path | Store | None = None,
    *,
    figures: Mapping[str, go.Figure] | None = None,
) -> bytes:
    """Everything as one ZIP: runs, table, recipes, code, figures, and a README that says what to do with them.

    Args:
        rows: as in `apnb.widgets.queue.Queue.rows`. store: where the runs are.
        figures: name of a file without its ending -> figure.

    Raises:
        Invalid: no rows, or none of them is in the store.
    """
    store = store if isinstance(store, Store) else Store(store)
    files = sweep_files(rows, store)
    if not files:
        raise Invalid("there is nothing to take away: none of these runs is in the store; run something first")
    there = set(store.keys())
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as z:
        store.export(Path(folder) / "runs.zip", [key for key in dict.fromkeys(r["key"] for r in rows) if key in there])
        z.write(Path(folder) / "runs.zip", INSIDE, zipfile.ZIP_STORED)  # it is packed already
        z.writestr("README.txt", README)
        z.writestr("table.csv", csv(rows))
        z.writestr("code.py", CODE)
        for i, file in enumerate(files):
            z.writestr(f"recipes{f'-{i + 1}' if i else ''}.json", file)
        for name, fig in (figures or {}).items():
            z.writestr(f"figures/{name}.html", fig.to_html(include_plotlyjs="directory"))
        if figures:
            from plotly.offline import get_plotlyjs

            z.writestr("figures/plotly.min.js", get_plotlyjs())
    return packed.getvalue()
