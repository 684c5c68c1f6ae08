"""What a pipeline or a method is written against: one recipe with its network, its data and its place in the store."""

from __future__ import annotations

import copy
import dataclasses
import platform
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apnb import __version__, datasets, networks
from apnb.attacks.pgd import pgd
from apnb.chance import generator
from apnb.copies import bf16_body
from apnb.datasets import Batches, Dataset, Split
from apnb.devices import bf16_units, pick_device
from apnb.errors import Invalid, choose
from apnb.events import Batch, Epoch, Event, Finished, Pruned, Restored, Resumed, Waiting
from apnb.masks import Masks, Target, account
from apnb.mechanisms import FixedMasks, Mechanism, Model, Params, Progress
from apnb.objectives import Objective, evaluating, objective
from apnb.recipes import Recipe
from apnb.store import FORMAT, Store, digest
from apnb.training import Schedule, accuracy, bake_, fit, sgd

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Stage:
    """What the body of a stage gets: batches in the stage's own order, its random generator, and a snapshot to go on from."""

    name: str
    data: Batches
    generator: torch.Generator
    resume: dict | None


Body = Callable[[Stage], Generator[Event, None, Any]]


class Runner:
    """Carries out one recipe: what a pipeline or a method is written against.

    Attributes:
        recipe, budget: what to do and how much. constants: numbers of a surveyed method's own, by name. net: the plain network,
            trained in place. layers: what can be pruned in it.
        device, dataset, eps: where and on what.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        network: str | nn.Module = "cnn",
        data: Any = "digits",
        eps: float | None = None,
        device: str | torch.device | None = None,
        store: str | Path | Store | None = None,
        precision: str = "auto",
        snapshot_every: float | None = None,
    ):
        self.recipe = recipe
        self.dataset: Dataset = datasets.load(data, eps=eps)
        self.eps = self.dataset.eps
        pixels = self.dataset.channels * self.dataset.size[0] * self.dataset.size[1]
        self.budget = recipe.numbers(pixels)
        self.constants = recipe.settings(pixels)
        self.device = pick_device(device)
        self.store = (store if isinstance(store, Store) else Store(store)).ready()
        self.net = networks.build(network, channels=self.dataset.channels, classes=self.dataset.classes, seed=recipe.seed)
        self.layers = networks.layers(self.net, self.dataset.sample(), self.dataset.classes)
        self.network_name = network if isinstance(network, str) else type(network).__name__
        self.parameters = sum(p.numel() for p in self.net.parameters())
        if recipe.method is None:
            self.target(recipe.sparsity).drop()  # refuse early what cannot be cut
        self.train = self._training_split()
        self.check = self._check_images()
        identity = {
            "format": FORMAT,
            "network": networks.identity(network, channels=self.dataset.channels, classes=self.dataset.classes),
            "data": [self.dataset.name, self.dataset.fingerprint, self.dataset.augment, self.dataset.classes],
            "eps": self.eps,
            "seed": recipe.seed,
            "budget": self.budget.training() | ({"check": self.budget.check} if recipe.method else {}),
        }
        self.key = digest([identity, recipe.to_dict() | {"budget": dataclasses.asdict(self.budget), **self._own_numbers()}])
        self._given = {"data": _spelled(data), "eps": eps}
        self._stage_key = digest(identity)
        self.rows: list[dict] = []
        self.seconds = 0.0
        self.precision = self._precision(precision)
        self.snapshot_every = (0.0 if self.device.type == "cuda" else 5.0) if snapshot_every is None else snapshot_every
        wide = self.precision == "bf16" or self.device.type == "cuda"
        self.net.to(self.device, memory_format=torch.channels_last if wide else torch.preserve_format)

    def _own_numbers(self) -> dict:
        """All constants of a method, given or not; nothing for a plain cell, whose names in the store know nothing of them."""
        return {"constants": self.constants} if self.recipe.method else {}

    def _check_images(self) -> tuple[Tensor, Tensor] | None:
        """Validation images on which a run measures itself, drawn from all classes; None if the budget wants none."""
        split, wanted = self.dataset.validation, min(self.budget.check, len(self.dataset.validation))
        if not wanted:
            return None
        chosen = split.at(datasets.subset(split, wanted, seed=0))
        return chosen.images().to(self.device), chosen.y.to(self.device)

    def _training_split(self) -> Split:
        split, wanted = self.dataset.train, self.budget.images
        if wanted is None or wanted >= len(split):
            return split
        return split.at(datasets.subset(split, wanted, how="stratified", seed=0))

    def _precision(self, wanted: str) -> str:
        """By itself bf16 is taken only where the hardware multiplies it and an image costs at least 50 M multiply-accumulates."""
        wanted = choose(wanted, PRECISIONS, "precision")
        if wanted != "auto":
            return wanted
        return "bf16" if bf16_units(self.device) and sum(layer.macs for layer in self.layers) >= 50e6 else "fp32"

    # --- what pipelines and methods use ----------------------------------------------------------------------------------------

    def target(self, sparsity: float) -> Target:
        """A selection by this recipe's structure and locality."""
        return Target(self.layers, self.recipe.units, self.recipe.locality, sparsity)

    def fit(
        self,
        stage: Stage,
        objective: str | Objective,
        *,
        epochs: int,
        lr: Schedule,
        mechanism: Mechanism | None = None,
        teacher: nn.Module | None = None,
        watch: Callable[[Model, Progress], dict] | None = None,
        **options: Any,
    ) -> Generator[Event, None, None]:
        """One call of the training loop in a stage.

        Args:
            objective: its name, or one that is made already. teacher: for distillation.
            watch: what is measured after each epoch (default `validate`).
            options: of `apnb.training.fit`.
        """
        yield from fit(
            self.net,
            stage.data,
            self.objective(objective, stage, teacher) if isinstance(objective, str) else objective,
            epochs=epochs,
            lr=lr,
            mechanism=mechanism,
            validate=watch or self.validate,
            resume=stage.resume,
            generator=stage.generator,
            **{"optimizer": self.optimizer, **options},
        )

    def fit_masked(self, stage: Stage, masks: Masks, objective: str | Objective, **options: Any) -> Generator[Event, None, None]:
        """The same under fixed masks; what it leaves in the network are the effective weights, zeros included."""
        mechanism = FixedMasks(masks)
        yield from self.fit(stage, objective, mechanism=mechanism, **options)
        bake_(self.net, mechanism)

    @cached_property
    def norms(self) -> tuple[str, ...]:
        """Names of the affine parameters of norm layers."""
        kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
        return tuple(
            f"{prefix}.{n}" if prefix else n
            for prefix, m in self.net.named_modules()
            if isinstance(m, kinds)
            for n, _ in m.named_parameters(recurse=False)
        )

    def params(self) -> Params:
        """The network's parameters by name; tensors are the network's own."""
        return dict(self.net.named_parameters())

    def state(self) -> dict[str, Tensor]:
        """A copy of everything in the network's ``state_dict``."""
        return {n: t.detach().clone() for n, t in self.net.state_dict().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put such a copy back."""
        self.net.load_state_dict(state)

    def copy_of(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Another network with this state, in evaluation mode: a teacher."""
        other = copy.deepcopy(self.net)
        other.load_state_dict(state)
        return other.eval()

    def objective(self, key: str, stage: Stage, teacher: nn.Module | None = None, **options: Any) -> Objective:
        """An objective for a stage, with this run's eps and the stage's own randomness; options as in `apnb.objectives.objective`."""
        numbers = {"eps": self.eps, "steps": self.budget.attack_steps, "generator": stage.generator}
        return objective(key, **numbers, teacher=teacher, **options)

    def optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        """SGD with momentum 0.9 and the budget's weight decay."""
        return sgd(groups, weight_decay=self.budget.weight_decay)

    def measure(self, model: Callable[[Tensor], Tensor], steps: int = 10) -> dict[str, float]:
        """Clean and PGD accuracy on some validation images, the same each time. Test images are never looked at here."""
        if self.check is None:
            return {}
        x, y = self.check
        draw = generator(self.recipe.seed, "measure", device=self.device)
        with evaluating(self.net):
            x_adv = pgd(model, x, y, eps=self.eps, steps=steps, generator=draw)
            return {"clean": accuracy(model, x, y), "pgd": accuracy(model, x_adv, y)}

    def validate(self, model: Model, at: Progress) -> dict[str, float]:
        """For `fit`: clean accuracy after each epoch, PGD accuracy too after the last."""
        if self.check is None:
            return {}
        frozen = model.frozen()
        if at.epoch + 1 == at.epochs:
            return {f"val_{k}": v for k, v in self.measure(frozen).items()}
        with evaluating(self.net):
            return {"val_clean": accuracy(frozen, *self.check)}

    def validate_attacked(self, model: Model, at: Progress, steps: int = 10) -> dict[str, float]:
        """For `fit` with ``select="val_pgd"``: clean and PGD accuracy after each epoch; nothing if the budget wants no images for it."""
        return {f"val_{k}": v for k, v in self.measure(model.frozen(), steps).items()}

    def pruned(self, masks: Masks, target: Target, *, step: int = 1, of: int = 1, mechanism: Mechanism | None = None) -> Pruned:
        """The event of a selection: what was asked for and obtained, and the accuracy right after the cut.

        Of many selections about ten are measured, and always the last. ``mechanism``: what the network runs through where its
        parameters under the masks are not its weights.
        """
        obtained = account(masks, self.layers, target.structure, target.sparsity, self.parameters)
        model = Model(self.net, self.params(), mechanism or FixedMasks(masks)).frozen()
        measured = self.measure(model) if step == of or step % max(1, of // 10) == 0 else {}
        return Pruned(metrics={**dataclasses.asdict(obtained), **measured}, step=step, of=of)

    def stage(self, name: str, body: Body, **uses: Any) -> Generator[Event, None, Any]:
        """Carry out a stage, or take it from the store; returns what the body returns.

        The network's state and the returned value are stored when the body ends. What the body draws comes from generators
        seeded by (seed, name), so a resumed run equals an uninterrupted one.

        Args:
            name: unique in the run. body: generator function of a `Stage`.
            uses: all that decides the result besides the network, the data, the budget, the seed and the stages before;
                without any, the whole recipe and the method's constants. Runs whose stages agree in all of it share them.
        """
        self._stage_key = key = digest(
            [
                self._stage_key,
                name,
                uses or {k: v for k, v in self.recipe.to_dict().items() if k != "budget"} | self._own_numbers(),
            ]
        )
        stored = self.store.stage(key, self.device)
        if stored is None:
            lock = self.store.lock(key)
            while True:
                try:
                    lock.acquire(timeout=0)
                    break
                except TimeoutError:
                    yield Waiting(stage=name)
                    time.sleep(0.2)
            try:
                stored = self.store.stage(key, self.device)
                if stored is None:
                    return (yield from self._compute(name, key, body))
            finally:
                lock.release()
        self.load(stored["net"])
        self.rows += stored["rows"]
        self.seconds += stored["seconds"]
        yield Restored(stage=name, metrics={"seconds": stored["seconds"]})
        return stored["value"]

    def _compute(self, name: str, key: str, body: Body) -> Generator[Event, None, Any]:
        partial = self.store.partial(key, self.device) or {"snapshot": None, "rows": [], "seconds": 0.0}
        snapshot, rows = partial["snapshot"], partial["rows"]
        data = Batches(
            self.train, self.budget.batch, seed=self.recipe.seed, stage=name, augment=self.dataset.augment, device=self.device
        )
        stage = Stage(name, data, generator(self.recipe.seed, name, device=self.device), snapshot)
        started = time.perf_counter() - partial["seconds"]
        stored = time.perf_counter()
        if snapshot:
            yield Resumed(stage=name, step=snapshot["epoch"])
        ends = tuple(layer.module for layer in (self.layers[0], self.layers[-1]))
        with ExitStack() as scope:
            scope.enter_context(bf16_body(self.net, ends, self.device.type, self.precision == "bf16"))
            events = body(stage)
            scope.callback(events.close)
            while True:
                try:
                    event = next(events)
                except StopIteration as end:
                    value = end.value
                    break
                except torch.cuda.OutOfMemoryError:
                    b = self.budget.batch
                    raise Invalid(
                        f"the GPU ran out of memory in {name!r} with batches of {b} images; batch norm depends on the batch, so it is "
                        f"not changed silently: try a Budget with batch={max(1, b // 2)}"
                    ) from None
                event = dataclasses.replace(event, stage=name)
                if not isinstance(event, Batch):
                    rows.append({"stage": name, "kind": event.kind, "step": event.step, "of": event.of, **event.metrics})
                if isinstance(event, Epoch) and time.perf_counter() - stored >= self.snapshot_every and event.step < event.of:
                    elapsed = time.perf_counter() - started
                    self.store.write_partial(key, {"snapshot": event.snapshot(), "rows": rows, "seconds": elapsed})
                    stored = time.perf_counter()
                yield event
        seconds = time.perf_counter() - started
        self.store.write_stage(key, {"net": self.net.state_dict(), "value": value, "rows": rows, "seconds": seconds})
        self.rows += rows
        self.seconds += seconds
        yield Finished(stage=name, metrics={"seconds": seconds})
        return value

    # --- the end of a run -------------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the run is in the store."""
        return (self.store.run_folder(self.key) / "summary.json").exists()

    def finish(self, masks: Masks) -> None:
        """Write the masked weights into the network and store the run."""
        bake_(self.net, FixedMasks(masks))
        self.store.write_run(self.key, self._summary(masks), {"net": self.net.state_dict(), "masks": masks}, self.rows)

    def _summary(self, masks: Masks) -> dict:
        obtained = account(masks, self.layers, self.recipe.units, self.recipe.sparsity, self.parameters)
        return {
            "format": FORMAT,
            "key": self.key,
            "label": self.recipe.label,
            "recipe": self.recipe.to_dict(),
            "budget": self.budget.name,
            "budget_numbers": dataclasses.asdict(self.budget),
            "network": self.network_name,
            "data": self.dataset.name,
            "given": self._given,
            "channels": self.dataset.channels,
            "classes": self.dataset.classes,
            "fingerprint": self.dataset.fingerprint,
            "eps": self.eps,
            "sparsity": dataclasses.asdict(obtained),
            "seconds": self.seconds,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.processor() or platform.machine(),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "versions": {"apnb": __version__, "torch": torch.__version__, "python": platform.python_version()},
        }  # fmt: skip


def _spelled(data: Any) -> str | None:
    """How to name the data in another process: a name as it is, a path made whole, nothing for objects."""
    if not isinstance(data, str):
        return None
    kind, colon, path = data.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if colon else data
