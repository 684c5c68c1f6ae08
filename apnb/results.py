"""Runs that come with the package: computed once by a command, so that a notebook can compare many without computing any.

``data/results/NAME.toml`` says what was run (a sweep file), ``NAME.csv`` beside it what came of it, ``NAME-masks.safetensors`` some of
the masks. `make` computes them again; only it writes there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apnb.errors import Invalid, choose
from apnb.paths import data_path
from apnb.recipes import Recipe

if TYPE_CHECKING:
    import pandas as pd

    from apnb.masks import Masks
    from apnb.store import Store

NAMES = ("digits/criteria", "digits/methods")
MASKS = {"digits/criteria": {"sparsity": 0.9, "seed": 0}}
"""The runs of which masks are kept, by the columns of their rows."""
MORE = ("recipe", "device", "precision", "versions")
"""Columns beside `apnb.store.ROW`: the recipe as JSON, what it was computed on and with."""


def _file(name: str, ending: str) -> Path:
    try:
        return data_path(f"results/{choose(name, NAMES, 'stored result')}{ending}")
    except Invalid as error:
        raise Invalid(f"{error}; or compute the stored runs with: make results") from None


@cache
def _read(name: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(_file(name, ".csv"), dtype={"key": str, "variant": object, "versions": str}, encoding="utf-8")


def frame(name: str) -> pd.DataFrame:
    """One row a run: the columns of `apnb.store.ROW` and `MORE`; what `apnb.plots.robustness_sparsity` draws.

    Args:
        name: digits/criteria (six criteria and random scores, three seeds) or digits/methods (the implemented methods, one seed).

    Raises:
        Invalid: another name.
    """
    return _read(name).copy()


def recipe_of(row: Mapping[str, Any]) -> Recipe:
    """The recipe of a row of `frame`: `apnb.run` makes the run again."""
    return Recipe.from_dict(json.loads(row["recipe"]))


def masks(name: str) -> dict[str, Masks]:
    """Key of a run -> its masks (parameter name -> bool tensor, True is kept), of the runs that `MASKS` names.

    Raises:
        Invalid: no masks are kept of this name.
    """
    from safetensors.torch import load_file

    if choose(name, NAMES, "stored result") not in MASKS:
        raise Invalid(f"no masks are kept of {name!r}; there are masks of {', '.join(MASKS)}")
    found: dict[str, Masks] = {}
    for path, mask in load_file(_file(name, "-masks.safetensors")).items():
        key, parameter = path.split("/", 1)
        found.setdefault(key, {})[parameter] = mask
    return {key: found[key] for key in frame(name)["key"] if key in found}


def make(
    name: str,
    *,
    workers: int = 2,
    store: str | Path | Store | None = None,
    progress: Callable[..., None] | None = None,
) -> int:
    """Carry out the sweep file of ``name`` and write table and masks beside it, as `write` does."""
    return write(_file(name, ".toml"), MASKS.get(name), workers=workers, store=store, progress=progress)


def write(
    sweep: Path,
    keep: Mapping[str, Any] | None = None,
    *,
    workers: int = 2,
    store: str | Path | Store | None = None,
    progress: Callable[..., None] | None = None,
) -> int:
    """Carry out a sweep file and write ``NAME.csv`` (and ``NAME-masks.safetensors``) beside it; what the store has is not computed again.

    Args:
        sweep: ``NAME.toml``, as `apnb.sweeps.read_sweep` reads it.
        keep: the masks of which runs are kept: column of the table -> value; None: of none.
        workers: processes, of one thread each. progress: as for `apnb.sweep`.

    Returns:
        How many runs the table has.

    Raises:
        Invalid: a run failed: which and why; nothing is written then.
    """
    from safetensors.torch import save_file

    from apnb import sweeps
    from apnb.store import atomic

    given = sweeps.read_sweep(sweep)
    with sweeps.workers(workers) as pool:
        runs = sweeps.sweep(given.pop("recipes"), pool, store=store, progress=progress, **given)
    if runs.failed:
        recipe, why = next(iter(runs.failed.items()))
        raise Invalid(f"{len(runs.failed)} runs of {sweep.name} failed, the first ({recipe.label}, {recipe.sparsity:.0%}): {why}")
    table = runs.frame()
    about = [run.summary for run in runs]
    table["recipe"] = [json.dumps(a["recipe"]) for a in about]
    table["device"], table["precision"] = [a["device"] for a in about], [a["precision"] for a in about]
    table["versions"] = [", ".join(f"{package} {version}" for package, version in a["versions"].items()) for a in about]
    if keep is not None:
        kept = [run for run, row in zip(runs, table.to_dict("records"), strict=True) if row.items() >= keep.items()]
        tensors = {f"{run.key}/{parameter}": mask.bool().contiguous() for run in kept for parameter, mask in run.masks.items()}
        atomic(sweep.with_name(f"{sweep.stem}-masks.safetensors"), lambda path: save_file(tensors, path))
    atomic(sweep.with_suffix(".csv"), lambda path: table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n"))
    return len(table)
