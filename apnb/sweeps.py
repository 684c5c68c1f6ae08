"""Many recipes at once: one after the other, or on any executor with the interface of `concurrent.futures`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apnb.errors import Invalid, field_problem
from apnb.recipes import Recipe
from apnb.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from apnb.runs import Run


@dataclass(frozen=True)
class Runs(Sequence):
    """The runs of a sweep, in the order of its recipes.

    Attributes:
        runs: those that finished. failed: recipe -> the sentence that says why, for those that did not.
    """

    runs: tuple[Run, ...]
    failed: dict[Recipe, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, i):
        return self.runs[i]

    def frame(self) -> pd.DataFrame:
        """One row a run; columns as in the table of the store (see `apnb.store.row_of`)."""
        return frame_of([run.row() for run in self.runs])


def frame_of(rows: list[dict]) -> pd.DataFrame:
    """Flat rows as a DataFrame with the table's columns, also when there are none."""
    import pandas as pd

    from apnb.store import ROW

    return pd.DataFrame(rows, columns=list(ROW))


def table(store: str | Path | Store | None = None) -> pd.DataFrame:
    """All runs of a store as one DataFrame, one row for each evaluation; damaged runs are left out with a warning each."""
    import warnings

    rows, damaged = (store if isinstance(store, Store) else Store(store)).table()
    for sentence in damaged:
        warnings.warn(sentence, stacklevel=2)
    return frame_of(rows)


def set_threads(n: int) -> None:
    """How many cores torch may use in this process. The command line, the lab and workers call it; the core never does."""
    import torch

    torch.set_num_threads(max(1, n))


def workers(n: int = 2, threads: int = 1) -> Executor:
    """A pool of ``n`` fresh processes with ``threads`` torch threads each. Use it as a context manager.

    Raises:
        Invalid: fewer than one process.
    """
    from multiprocessing import get_context

    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise Invalid(f"workers must be a whole number of at least 1, got {n!r}")
    return _Workers(n, mp_context=get_context("spawn"), initializer=_settle, initargs=(threads,))


class _Workers(ProcessPoolExecutor):
    """Its processes are deaf to Ctrl-C until `_settle`: in the middle of an import Python would answer it with a traceback."""

    def submit(self, *args: Any, **kwargs: Any) -> Future:  # it starts the processes, which inherit what is blocked here
        if not hasattr(signal, "pthread_sigmask"):
            return super().submit(*args, **kwargs)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _settle(threads: int) -> None:
    """A worker's first act. Ctrl-C or the end of its parent end it at once: what it has finished is stored, nothing by halves."""
    import os
    from multiprocessing import parent_process
    from threading import Thread

    def leave_with(parent: Any) -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if (parent := parent_process()) is not None:
        Thread(target=leave_with, args=(parent,), daemon=True).start()
    set_threads(threads)


def carry_out(recipe: Recipe, network: Any, data: Any, options: dict) -> dict:
    """What a worker does with one recipe: run it into the store. Returns {"key"} or {"error": a sentence}."""
    from apnb.runs import run

    try:
        finished = run(recipe, network, data, **options)
    except Invalid as error:
        return {"error": str(error)}
    except Exception as error:  # a network of one's own may fail in any way: that is this run's failure, not the sweep's
        return {"error": f"failed unexpectedly with {type(error).__name__}: {error}"}
    return {"key": finished.key}


def sweep(
    recipes: Iterable[Recipe],
    executor: Executor | None = None,
    *,
    network: Any = "cnn",
    data: Any = "digits",
    store: str | Path | Store | None = None,
    progress: Callable[[int, int, Recipe, str], None] | None = None,
    **options: Any,
) -> Runs:
    """Carry out recipes and gather the runs. What is stored already comes back at once; what fails does not stop the rest.

    Args:
        recipes: in any order; recipes that share a beginning (the dense network) are spread so that workers do not all wait for it.
        executor: anything whose ``submit`` gives futures of `concurrent.futures` (processes, dask's ``get_executor``); workers must see
            the same store. None: one by one, here.
        progress: called with (done, total, recipe, "" or the sentence of a failure) after each run.
        options: as for `apnb.run`.

    Returns:
        `Runs`; ``.frame()`` is the table, ``.failed`` what went wrong.
    """
    from apnb import datasets
    from apnb.runs import run

    recipes = list(recipes)
    for r in recipes:
        if not isinstance(r, Recipe):
            raise Invalid(f"a sweep takes apnb.Recipe objects, got {type(r).__name__}")
    place = (store if isinstance(store, Store) else Store(store)).ready()
    options["store"] = str(place.root.resolve())
    order = _spread(recipes)
    results: dict[int, dict] = {}

    def note(i: int, result: dict) -> None:
        results[i] = result
        if progress:
            progress(len(results), len(recipes), recipes[i], result.get("error", ""))

    if executor is None:
        for i in order:
            note(i, carry_out(recipes[i], network, data, options))
    else:
        futures = {}
        for i in order:
            try:
                futures[executor.submit(carry_out, recipes[i], network, data, options)] = i
            except Exception as error:  # a pool that has lost a worker takes no more work
                note(i, {"error": f"no worker took it: {type(error).__name__}: {error}"})
        for future in as_completed(futures):
            try:
                note(futures[future], future.result())
            except Exception as error:  # the worker died (with it, a process pool gives up the rest) or could not be reached
                note(futures[future], {"error": f"the worker failed: {type(error).__name__}: {error}"})
    runs, failed, loaded = [], {}, None
    for i, r in enumerate(recipes):
        if "error" in results[i]:
            failed[r] = results[i]["error"]
            continue
        loaded = loaded or datasets.load(data)
        runs.append(run(r, network, loaded, **options))  # all of it is in the store now
    return Runs(tuple(runs), failed)


def _spread(recipes: list[Recipe]) -> list[int]:
    """Positions, the first of each family that shares its first stage first, then the others."""
    seen, first, rest = set(), [], []
    for i, r in enumerate(recipes):
        family = (r.method, r.pipeline, r.pretraining, r.seed, r.budget) if r.pipeline == "after" else i
        (rest if family in seen else first).append(i)
        seen.add(family)
    return first + rest


def with_dense(recipes: Iterable[Recipe]) -> list[Recipe]:
    """The recipes, preceded by the dense network of each seed and budget: the reference line of a curve."""
    recipes = list(recipes)
    dense: dict[tuple, Recipe] = {}
    for r in recipes:
        objective = r.pretraining or r.training_step
        objective = "pgd_at" if objective in (None, "none") else objective
        dense.setdefault(
            (r.seed, r.budget, objective),
            Recipe(pipeline="after", sparsity=0.0, pretraining=objective, finetuning="none", seed=r.seed, budget=r.budget),
        )
    return [*dense.values(), *recipes]


def read_sweep(path: str | Path) -> dict:
    """A sweep written by a person, as TOML or JSON.

    Fields: ``recipes`` (a list of recipes; ``sparsity`` and ``seed`` may be lists, then all combinations are meant), and
    optionally ``network``, ``data``, ``eps``, ``attacks``, ``distances``, ``n``.

    Returns:
        {"recipes": [Recipe, ...], and the other fields that were given}.

    Raises:
        Invalid: the file is missing or no such file, or one sentence about each thing that is wrong in it.
    """
    import tomllib

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror or error}; give a sweep file in TOML or JSON") from None
    except ValueError as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise Invalid(f"{path} is no {kind} file ({error}); a sweep file is TOML (.toml) or JSON") from None
    try:
        from pydantic import BaseModel, ConfigDict, ValidationError
    except ImportError:
        raise Invalid("reading a sweep file needs the package pydantic; install it with: pip install pydantic") from None

    class SweepFile(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        recipes: list[dict[str, Any]]
        network: str = "cnn"
        data: str = "digits"
        eps: float | None = None
        attacks: str = "standard"
        distances: str = "none"
        n: int | None = None

    try:
        file = SweepFile.model_validate(raw)
    except ValidationError as error:
        raise Invalid(f"{path}: " + "; ".join(field_problem(e, SweepFile.model_fields) for e in error.errors())) from None
    recipes, problems = [], []
    for i, entry in enumerate(file.recipes, 1):
        for sparsity in entry.get("sparsity") if isinstance(entry.get("sparsity"), list) else [entry.get("sparsity", 0.9)]:
            for seed in entry.get("seed") if isinstance(entry.get("seed"), list) else [entry.get("seed", 0)]:
                try:
                    recipes.append(Recipe.from_dict({**entry, "sparsity": sparsity, "seed": seed}))
                except Invalid as error:
                    problems.append(f"recipe {i}: {error}")
    if problems or not recipes:
        raise Invalid(f"{path}: " + ("; ".join(dict.fromkeys(problems)) or "it lists no recipes"))
    return {**{k: getattr(file, k) for k in file.model_fields_set if k != "recipes"}, "recipes": recipes}
