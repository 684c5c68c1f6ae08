"""A recipe carried out: stages in order, each stored when it ends; then the evaluation. As events, or as one call."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Generator, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apnb import datasets, methods, networks, pipelines
from apnb.datasets import Dataset
from apnb.errors import Invalid, choose
from apnb.evaluation import MODES, Evaluation, check_points, default_batch, evaluate_stream
from apnb.events import Done, Event, Waiting
from apnb.masks import Masks, Sparsity
from apnb.recipes import Recipe
from apnb.runner import Runner
from apnb.store import Damaged, Store, digest, load_tree, row_of, write_json

if TYPE_CHECKING:
    import pandas as pd


def stored_evaluation(
    store: Store,
    key: str,
    model: nn.Module,
    dataset: Dataset,
    *,
    n: int | None,
    attacks: str,
    subset: str,
    seed: int,
    device: torch.device,
    batch: int | None = None,
    parent: nn.Module | None = None,
    distances: bool | str = "none",
    precision: str = "fp32",
    engine: str = "apnb",
) -> Generator[Event, None, Evaluation]:
    """The evaluation of a run's network on a data set at its eps: from the store if it was made before, else made and stored.

    It is stored after every batch, so that one which was interrupted goes on, and one that another process makes is waited for.
    """
    attacks, subset = choose(attacks, MODES, "attack mode"), choose(subset, datasets.SUBSETS, "way to draw points")
    n = None if n == len(dataset.test) else n
    against = None if parent is None else networks.identity(parent)
    batch = default_batch(device) if batch is None else batch
    name = digest(
        {"data": dataset.fingerprint, "attacks": [attacks, *MODES[attacks]], "eps": dataset.eps, "n": n, "subset": subset, "seed": seed,
         "batch": batch, "parent": against, "distances": distances, "precision": precision, "engine": engine}
    )  # fmt: skip
    folder = store.run_folder(key) / "evaluations"
    place = folder / f"{name}.tensors"
    if (folder / f"{name}.json").exists():
        with contextlib.suppress(Invalid):
            return Evaluation.load(place)
    lock = store.ready().lock(f"evaluation-{key}-{name}")
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except TimeoutError:
            yield Waiting(stage="evaluate")
            time.sleep(0.2)
    try:
        try:
            if place.exists():
                load_tree(place)
        except Damaged:
            for path in (place, folder / f"{name}.json"):
                path.unlink(missing_ok=True)
        report = yield from evaluate_stream(
            model, dataset, n=n, attacks=attacks, subset=subset, seed=seed, batch=batch, device=device, parent=parent,
            distances=distances, precision=precision, engine=engine, save=place, key=name,
        )  # fmt: skip
        if not (folder / f"{name}.json").exists():
            write_json(folder / f"{name}.json", {"key": name, **report.summary()})
        return report
    finally:
        lock.release()


@dataclasses.dataclass(frozen=True)
class Run:
    """A recipe carried out. Tensors are read from the store when they are first asked for.

    Attributes:
        key: its name in the store. recipe. summary: what was recorded of it (budget, device, versions, seconds, ...).
        evaluation: the `Evaluation` asked for, or None. store: where it lies. network: the module it was made with, if one was given.
    """

    key: str
    recipe: Recipe
    summary: dict = dataclasses.field(repr=False)
    evaluation: Evaluation | None = None
    store: Store | None = dataclasses.field(default=None, repr=False, compare=False)
    network: nn.Module | None = dataclasses.field(default=None, repr=False, compare=False)

    @cached_property
    def _tree(self) -> dict:
        try:
            return load_tree(self.store.run_folder(self.key) / "network.tensors")
        except Damaged as error:
            raise Damaged(f"run {self.key} is damaged: {error}; remove it with 'apnb runs rm {self.key}'") from None

    @cached_property
    def model(self) -> nn.Module:
        """The plain network with zeros where it was pruned, on the CPU, in evaluation mode."""
        return _plain_network(self.network or self.summary["network"], self.summary, self._tree["net"])

    @property
    def masks(self) -> Masks:
        """Parameter name -> bool tensor of its shape, True = kept, as the method returned them."""
        return self._tree["masks"]

    @property
    def sparsity(self) -> Sparsity:
        """What was asked for and obtained."""
        stored = self.summary["sparsity"]
        return Sparsity(**{**stored, "collapsed": tuple(stored["collapsed"]), "empty": tuple(stored["empty"])})

    @cached_property
    def rows(self) -> list[dict]:
        """What happened, one dict for each epoch and each selection."""
        return self.store.history(self.key)

    @property
    def history(self) -> pd.DataFrame:
        """`rows` as a DataFrame: stage, kind, step, of, and what was measured."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def row(self) -> dict:
        """The run and its evaluation as one flat row of the table."""
        return row_of(self.summary, self.evaluation.summary() if self.evaluation else {})


def _plain_network(network: Any, summary: Mapping, state: Mapping[str, Tensor]) -> nn.Module:
    """A fresh network with a stored state; raises Invalid if the two do not fit."""
    net = networks.build(network, channels=summary["channels"], classes=summary["classes"])
    try:
        net.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise Invalid(
            f"run {summary['key']} does not fit network {summary['network']!r}: {str(error).splitlines()[-1].strip()}"
        ) from None
    return net.eval()


def open_run(key: str, *, network: nn.Module | None = None, store: str | Path | Store | None = None) -> Run:
    """A finished run from the store, with its newest evaluation.

    Args:
        key: its key or the beginning of it. network: the module, for runs of a network given as an object; else found by name.

    Raises:
        Invalid: no such run, or a damaged one.
    """
    store = store if isinstance(store, Store) else Store(store)
    summary = store.summary(key)
    run_ = Run(summary["key"], Recipe.from_dict(summary["recipe"]), summary, None, store, network)
    run_.rows, run_._tree  # noqa: B018 - a damaged run is noticed here, not later
    report = None
    for found in reversed(store.evaluations(run_.key)):
        try:
            report = Evaluation.load(store.run_folder(run_.key) / "evaluations" / f"{found['key']}.tensors")
            break
        except Invalid:  # damaged, or not finished after all: it can be made again
            continue
    return dataclasses.replace(run_, evaluation=report)


def stream(
    recipe: Recipe,
    network: str | nn.Module = "cnn",
    data: Any = "digits",
    *,
    eps: float | None = None,
    device: str | torch.device | None = None,
    store: str | Path | Store | None = None,
    precision: str = "auto",
    evaluate: bool = True,
    attacks: str = "standard",
    distances: str = "none",
    n: int | None = None,
    subset: str = "stratified",
    snapshot_every: float | None = None,
) -> Iterator[Event]:
    """Carry out a recipe and say what happens; the last event, `Done`, holds the finished run. Closing the generator stops it.

    What is finished is stored, so a second call goes on where the first one ended; arguments as for `run`.
    """
    if not isinstance(recipe, Recipe):
        raise Invalid(f"expected an apnb.Recipe, got {type(recipe).__name__}; make one with apnb.Recipe(pipeline=..., ...)")
    attacks, subset = choose(attacks, MODES, "attack mode"), choose(subset, datasets.SUBSETS, "way to draw points")
    runner = Runner(
        recipe,
        network=network,
        data=data,
        eps=eps,
        device=device,
        store=store,
        precision=precision,
        snapshot_every=snapshot_every,
    )
    check_points(n, runner.dataset)
    if not runner.finished:
        runner.finish((yield from (methods if recipe.method else pipelines).stages(runner)))
    finished = _reopened(runner, network if isinstance(network, nn.Module) else None)
    report = None
    if evaluate:
        wanted, points = runner.budget.points if n is None else n, len(runner.dataset.test)
        report = yield from stored_evaluation(
            runner.store, runner.key, runner.net, runner.dataset, n=None if wanted is None else min(wanted, points), attacks=attacks,
            distances=distances, subset=subset, seed=0, device=runner.device,
        )  # fmt: skip
    yield Done(stage="done", run=dataclasses.replace(finished, recipe=recipe, evaluation=report))


def _reopened(runner: Runner, network: nn.Module | None) -> Run:
    """The stored run; one that turns out to be damaged is removed, and the next call computes it again."""
    try:
        run_ = open_run(runner.key, network=network, store=runner.store)
    except Damaged as error:
        runner.store.remove(runner.key)
        raise Invalid(f"{error}; the damaged run was removed, run it again") from None
    runner.load(run_.model.state_dict())
    return run_


def run(recipe: Recipe, network: str | nn.Module = "cnn", data: Any = "digits", *, progress: Any = None, **options: Any) -> Run:
    """Carry out a recipe: train, prune, attack. Cached: the same call again comes back at once, an interrupted one goes on.

    Args:
        recipe: what to do.
        network: cnn, resnet8, resnet18, vgg16, "package:factory", or a module (copied, never changed).
        data: digits, cifar10, svhn, "folder:PATH", "npz:PATH", a `Dataset` or a pair of arrays.
        eps: radius of training attack and evaluation (default: the data set's own).
        device: default CUDA if there is one. precision: auto, fp32 or bf16 (stem and classifier stay in float32).
        store: folder of runs (default ``APNB_HOME``, else the user's data folder).
        evaluate, attacks, n, subset: whether and how to evaluate; n defaults to the budget's points. distances: ``fmn`` or ``hofmn``
            also look for the smallest perturbation of each point: a security curve.
        progress: a function called with every event (default: none).

    Returns:
        The `Run`: model, masks, history, evaluation.

    Raises:
        Invalid: with one sentence, for whatever cannot work.
    """
    result = None
    for event in stream(recipe, network, data, **options):
        if progress is not None:
            progress(event)
        if isinstance(event, Done):
            result = event.run
    return result
