"""How long recipes will take, here: what they consist of, times what a step costs, which is measured and never assumed.

Work is counted in images: one image through one gradient step of an attack is one unit. `plan` walks through a recipe's stages
without carrying them out, by the same code that does, so that it knows which of them are stored or shared with other recipes.
`pace` times a few real steps of the real network on the real data. `estimate` multiplies the two.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from apnb import copies, datasets, methods, networks, pipelines
from apnb.attacks.apgd import apgd
from apnb.attacks.fab import fab
from apnb.attacks.fmn import Configuration
from apnb.attacks.pgd import ascend
from apnb.attacks.square import SHRINK
from apnb.chance import generator
from apnb.datasets import Batches, Dataset
from apnb.errors import Invalid, choose
from apnb.evaluation import MODES, default_batch
from apnb.mechanisms import Model
from apnb.objectives import evaluating, objective
from apnb.recipes import Recipe
from apnb.runner import Runner
from apnb.store import Store
from apnb.training import fit

LEARN, LOOK = 1.5, 0.3
"""A pass that learns and one without any gradient, in gradient steps of an attack; only where nothing was measured."""
STANDING = (0.2, 0.65, 0.9)
"""Share of the points that AutoAttack's later attacks still have to deal with: few, as expected, many."""
SPREAD = (0.8, 1.35)
"""From the lowest to the highest that training may take, as factors: machines have other things to do, mechanisms cost a little."""


class Walked(Store):
    """A store that says of every stage that it is there: a recipe walks through all its stages and computes nothing."""

    def __init__(self, root: str | Path | None):
        super().__init__(root)
        self.asked: list[str] = []
        self.net: dict[str, Tensor] = {}

    def ready(self) -> Walked:
        return self

    def stage(self, key: str, device: torch.device | str = "cpu") -> dict:
        self.asked.append(key)
        return {"net": self.net, "value": None, "rows": [], "seconds": 0.0}


@dataclass(frozen=True)
class Stage:
    """A part of a run that is stored by itself.

    Attributes:
        name: as in events. key: as in the store; recipes with equal keys share the stage.
        attacks: images times gradient steps of attacks. learns: images times passes that learn. epochs: 0 where nothing learns.
        stored: whether it is there already. objective: what it trains with, or None.
    """

    name: str
    key: str
    attacks: float = 0.0
    learns: float = 0.0
    epochs: int = 0
    stored: bool = False
    objective: str | None = None

    @property
    def units(self) -> float:
        """All of its work in gradient steps of an attack on one image; 0 if it is stored."""
        return 0.0 if self.stored else self.attacks + LEARN * self.learns


@dataclass(frozen=True)
class Plan:
    """A recipe as a list of stages, the evaluation last.

    Attributes:
        key: of the run. points: test images that will be attacked. attacks: attack -> gradient steps on a point that stands.
    """

    recipe: Recipe
    key: str
    stages: tuple[Stage, ...]
    points: int
    attacks: dict[str, float]


def plan(
    recipe: Recipe,
    network: str | nn.Module = "cnn",
    data: Any = "digits",
    *,
    store: str | Path | Store | None = None,
    attacks: str = "standard",
    n: int | None = None,
    distances: str = "none",
    eps: float | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
) -> Plan:
    """What a run consists of and what of it is stored; nothing is trained and nothing is written.

    Raises:
        Invalid: as `apnb.run` for whatever it refuses before it begins.
    """
    return _plan(_runner(recipe, network, datasets.load(data, eps=eps), store, device, precision), attacks, n, distances)


def _runner(recipe: Recipe, network: Any, data: Dataset, store: Any, device: Any, precision: str = "auto") -> Runner:
    walked = Walked(store.root if isinstance(store, Store) else store)
    runner = Runner(recipe, network=network, data=data, device=device, store=walked, precision=precision)
    walked.net = runner.net.state_dict()
    return runner


def _plan(runner: Runner, attacks: str, n: int | None, distances: str) -> Plan:
    r, walked, data = runner.recipe, runner.store, runner.dataset
    names = [event.stage for event in (methods if r.method else pipelines).stages(runner)]
    pixels = data.train.x[0].numel()
    finished, lengths = runner.finished, stage_lengths(r, pixels)
    stages = []
    for name, key in zip(names, walked.asked, strict=True):
        stored = finished or (walked.stages / f"{key}.stage").exists()
        attack, learn = _work_of(runner, name, *lengths[name])
        stages.append(Stage(name, key, attack, learn, lengths[name][1], stored, lengths[name][0]))
    wanted = runner.budget.points if n is None else n
    points = len(data.test) if wanted is None else min(wanted, len(data.test))
    subset = "all" if points == len(data.test) else "stratified"
    asked = {"attacks": attacks, "n": points, "subset": subset, "eps": data.eps}
    done = finished and any(
        all(e.get(k) == v for k, v in asked.items()) and e.get("searched", "none") == distances
        for e in walked.evaluations(runner.key)
    )
    steps = attack_steps(attacks, data.classes, tuple(data.train.x.shape[1:]), distances)
    work = points * sum(count * _facing(name, STANDING[1]) for name, count in steps.items())
    stages.append(Stage("evaluate", f"{runner.key} {attacks} {points} {subset} {distances}", work, stored=done))
    return Plan(r, runner.key, tuple(stages), points, steps)


def stage_lengths(recipe: Recipe, pixels: int = 64) -> dict[str, tuple[str | None, int]]:
    """Stage -> its objective and its epochs, the evaluation left out; budgets for images of ``pixels`` values."""
    r, b = recipe, recipe.numbers(pixels)
    if r.preset:
        numbers = {**vars(b), **r.settings(pixels)}
        of = {"pretraining": r.pretraining, "pruning": r.pruning_step, "finetuning": r.finetuning, "training": r.training_step}
        return {name: (of.get(name) or "natural", numbers.get(number, 0)) for name, number in r.preset.stages.items()}
    rounds = b.rounds if r.schedule == "iterative" else 1
    searches = r.trains_search or (r.pipeline == "before" and r.pruning_step != "none")
    found: dict[str, tuple[str | None, int]] = {"pretraining": (r.pretraining, b.epochs)} if r.pipeline == "after" else {}
    for i in range(rounds if r.pipeline != "during" else 0):
        epochs = pipelines.share(b.search_epochs, rounds, i) if searches else 0
        found[f"round {i + 1}: prune"] = (r.pruning_step, epochs)
        if r.pipeline == "after" and r.finetuning != "none":
            found[f"round {i + 1}: finetuning"] = (r.finetuning, pipelines.share(b.finetune_epochs, rounds, i))
    if r.pipeline != "after" and r.training_step != "none":
        found["training"] = (r.training_step, b.epochs)
    return found


def _work_of(runner: Runner, stage: str, key: str | None, epochs: int) -> tuple[float, float]:
    """A training stage's work: images times gradient steps of attacks, and images times passes that learn."""
    r, b = runner.recipe, runner.budget
    images, check = len(runner.train), 0 if runner.check is None else len(runner.check[1])
    steps = b.attack_steps
    attack, learn = {
        "natural": (0, 1), "fgsm": (1, 1), "fast_at": (1, 1), "pgd_at": (steps, 1), "trades": (steps + LOOK, 2), "mart": (steps, 2),
        "kd": (LOOK, 1),
    }.get(key or "none", (steps, 1))  # fmt: skip
    passes = epochs + (r.reads_gradients and stage.endswith("prune"))
    watched = r.preset is not None and stage in r.preset.watched  # attacked with ten steps after every epoch
    measured = epochs * (10 if watched else LOOK) + (10 if epochs else 0)
    if stage.endswith(("prune", "pruning")) or r.pipeline == "during":
        measured += 10 * (11 if r.pipeline == "during" and not r.preset else 1)
    return passes * images * attack + check * measured, passes * images * learn


def attack_steps(mode: str, classes: int, shape: tuple[int, ...], distances: str = "none") -> dict[str, float]:
    """Attack (and search for distances) -> gradient steps on a point that withstands it, for images of ``shape`` (C, H, W).

    Square makes 5000 queries of one forward pass, but never asks twice: small images have few different squares. What HO-FMN spends
    on its search is not counted.
    """
    c, h, w = shape
    targets = min(9, classes - 1)
    sides = {min(max(round((0.8 / 2**k * h * w) ** 0.5), 1), h, w) for k in range(len(SHRINK) + 1)}
    squares = min(5000, 3 * sum((h - s + 1) * (w - s + 1) * 2**c for s in sides))
    costs = {"apgd-ce": 101.0, "apgd-t": 101.0 * targets, "fab-t": 150.0 * targets, "square": LOOK * squares, "pgd": 51.0}
    found = {name: costs[name] for name in MODES[mode] if name != "apgd-t" or classes >= 4}
    if distances != "none":
        losses = ("dlr", "ce", "ll") if classes > 2 else ("ce", "ll")
        found |= {f"FMN {c.name}": float(c.steps) for c in (Configuration(loss=loss) for loss in losses)}
    return found


def _facing(name: str, standing: float) -> float:
    """The share of the points that an attack has to deal with, if so many stand in the end; distances are looked for on all."""
    return 1.0 if name.startswith("FMN") else (1 + standing) / 2 if name in ("apgd-ce", "pgd") else standing


# --- what a step costs here ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """Seconds that an image takes, measured here.

    Attributes:
        attack: one gradient step of the training attack. learn: a training step around the attack.
        look: one gradient step of an evaluation. walk: one iteration of FAB.
        batch: images in a training batch. threads, device: on what it was measured.
    """

    attack: float
    learn: float
    look: float
    walk: float
    batch: int
    threads: int
    device: str


class Stopped(Exception):
    """Whoever asked no longer wants to know."""


_PACES: dict[tuple, Pace] = {}
_ONE = threading.Lock()  # two probes at once would time each other


def pace(runner: Runner, *, limit: float = 1.0, stop: Callable[[], bool] | None = None) -> Pace:
    """Time a few training steps, with and without the attack of the budget, and a few steps of the attacks of an evaluation.

    Everything runs on copies with random numbers of their own. Takes about ``limit`` seconds; of a large network a few images are
    taken instead of a batch. Measured once for each network, data set, device, batch, number of attack steps and of threads.

    Raises:
        Stopped: ``stop()`` said so, which is asked between two steps.
    """
    b, data = runner.budget, runner.dataset
    name = networks.identity(runner.network_name if runner.network_name in networks.NETWORKS else runner.net)
    threads = torch.get_num_threads()
    points = min(b.points or len(data.test), len(data.test), default_batch(runner.device))
    key = (str(name), data.fingerprint, str(runner.device), runner.precision, b.batch, b.attack_steps, points, threads)
    with _ONE:
        if key not in _PACES:
            _PACES[key] = _measure(runner, points, limit / 4, stop or (lambda: False))
        return _PACES[key]


def _measure(runner: Runner, points: int, limit: float, stop: Callable[[], bool]) -> Pace:
    b, device, classes = runner.budget, runner.device, runner.dataset.classes
    net = networks.copied(runner.net)
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # it would draw from torch's global generator
    exact = copies.exact(net, device)
    test = runner.dataset.test.images(slice(0, points)).to(device)
    few = _few(exact, test, max(b.batch, points), limit, stop)

    size = min(max(few, 16), b.batch, len(runner.train))  # some at least, since what a step costs besides is shared by the batch
    split = runner.train.at(torch.arange(min(len(runner.train), 4 * size)))
    batches = Batches(split, size, seed=0, stage="estimate", augment=runner.dataset.augment, device=device)
    loss = objective("natural", eps=runner.eps, steps=1, generator=generator("estimate", device=device))
    x, y = next(batches(0))
    attack = {"eps": runner.eps, "steps": b.attack_steps if few >= size else min(2, b.attack_steps), "step": runner.eps / 4}
    ends = tuple(layer.module for layer in (runner.layers[0], runner.layers[-1]))
    with copies.bf16_body(net, ends, device.type, runner.precision == "bf16"):
        events = fit(net, batches, loss, epochs=10**6, lr=lambda at: 0.0)
        try:
            learn = _seconds(lambda: next(e for e in events if e.kind == "batch"), device, limit, stop)
        finally:
            events.close()
        with evaluating(net):
            model = Model(net, dict(net.named_parameters())).frozen()
            climb = _seconds(lambda: ascend(model, x, y, x, **attack), device, limit, stop)

    some = test[: min(few, max(1, round(STANDING[1] * len(test))))]
    fast = copies.fast(exact, some)
    with torch.no_grad():
        label = fast(some).argmax(1)
    targets = min(9, classes - 1) if few >= points else 1
    aimed = targets if classes >= 4 else None
    with copies.full_precision():  # with a radius of 0, or less, nobody falls: every step is made on every image
        look = _seconds(lambda: apgd(fast, some, label, eps=0.0, seed=0, steps=2, targets=aimed), device, limit, stop)
        walk = _seconds(lambda: fab(fast, some, label, eps=-1.0, targets=targets, steps=2), device, limit, stop)
    return Pace(
        attack=climb / (len(x) * attack["steps"]), learn=learn / size, look=look / (len(some) * 3 * (aimed or 1)),
        walk=walk / (len(some) * 2 * targets), batch=b.batch, threads=torch.get_num_threads(), device=str(device),
    )  # fmt: skip


def _few(net: nn.Module, x: Tensor, wanted: int, limit: float, stop: Callable[[], bool]) -> int:
    """How many images a probe can afford: all that are ``wanted``, or as many as take ten gradient steps in ``limit`` seconds."""
    some = x[:8]

    def step() -> None:
        at = some.clone().requires_grad_(True)
        torch.autograd.grad(net(at).sum(), at)

    each = _seconds(step, x.device, limit / 10, stop) / len(some)
    return wanted if 10 * each * wanted <= 4 * limit else max(4, min(wanted, int(limit / (10 * each))))


def _seconds(act: Callable[[], Any], device: torch.device, limit: float, stop: Callable[[], bool]) -> float:
    """The median time of a call, of as many as fit into ``limit`` seconds, two at least; the first one, which warms up, is left out."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 2 or (time.perf_counter() - began < limit and len(times) < 30):
        if stop():
            raise Stopped
        start = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[1:])


# --- both together ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One recipe's share: seconds of training and of attacks that are still to come, as expected, and the range of both together."""

    recipe: Recipe
    training: float
    attacks: float
    low: float
    high: float

    @property
    def seconds(self) -> float:
        """Training and attacks."""
        return self.training + self.attacks


@dataclass(frozen=True)
class Estimate:
    """What recipes will take.

    Attributes:
        parts: one for each recipe, in order; what several share counts for the first. pace: None if everything is stored.
    """

    parts: tuple[Part, ...]
    pace: Pace | None

    @property
    def seconds(self) -> float:
        """In all, as expected."""
        return sum(p.seconds for p in self.parts)

    @property
    def low(self) -> float:
        """In all, at least."""
        return sum(p.low for p in self.parts)

    @property
    def high(self) -> float:
        """In all, at most."""
        return sum(p.high for p in self.parts)

    def __str__(self) -> str:
        if self.pace is None:
            return "at once: all of it is stored"
        p = self.pace
        where = f"{p.threads} thread{'s' * (p.threads > 1)}" if p.device == "cpu" else p.device
        return (
            f"about {duration(self.seconds)}, between {duration(self.low)} and {duration(self.high)} (measured: "
            f"{_short(p.batch * p.learn)} a training step and {_short(p.batch * p.attack)} for each of its attack steps, on {where})"
        )


def _short(seconds: float) -> str:
    """Two figures: "3.1 ms", "5.6 s"."""
    value, unit = (seconds, "s") if seconds >= 1 else (1000 * seconds, "ms")
    return f"{float(f'{value:.2g}'):g} {unit}"


def duration(seconds: float) -> str:
    """A time for people, with two figures at most: "40 seconds", "2.5 minutes", "3 hours"."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * size:
            count = f"{seconds / size:.0f}" if seconds >= 10 * size else f"{round(2 * seconds / size) / 2:g}"
            return f"{count} {unit}s"
    count = max(1, round(seconds))
    count = count if count < 20 else 5 * round(count / 5)
    return f"{count} second{'s' * (count > 1)}"


def estimate(
    recipes: Iterable[Recipe],
    network: str | nn.Module = "cnn",
    data: Any = "digits",
    *,
    device: str | torch.device | None = None,
    attacks: str = "standard",
    n: int | None = None,
    distances: str = "none",
    store: str | Path | Store | None = None,
    eps: float | None = None,
    measured: Pace | None = None,
    stop: Callable[[], bool] | None = None,
) -> Estimate | None:
    """How long these recipes will take on this machine, one after the other, from what is stored and a measurement of about a second.

    Args:
        recipes: as for `apnb.sweep`; the others as for `apnb.run`.
        measured: the pace to go by; by default it is measured now, or was before.
        stop: asked now and then; once it says True the answer is None.

    Raises:
        Invalid: a recipe that cannot run on this network and these data.
    """
    attacks = choose(attacks, MODES, "attack mode")
    dataset = datasets.load(data, eps=eps)
    seen: set[str] = set()
    parts: list[Part] = []
    used: Pace | None = None
    for recipe in recipes:
        if not isinstance(recipe, Recipe):
            raise Invalid(f"an estimate takes apnb.Recipe objects, got {type(recipe).__name__}")
        if stop and stop():
            return None
        runner = _runner(recipe, network, dataset, store, device)
        planned = _plan(runner, attacks, n, distances)
        new = [s for s in planned.stages if not s.stored and s.key not in seen]
        seen |= {s.key for s in new}
        if new:
            try:
                used = measured or pace(runner, stop=stop)
            except Stopped:
                return None
        parts.append(_part(planned, new, used) if new else Part(recipe, 0.0, 0.0, 0.0, 0.0))
    return Estimate(tuple(parts), used)


def _part(planned: Plan, stages: list[Stage], p: Pace) -> Part:
    training = sum(s.attacks * p.attack + s.learns * p.learn for s in stages if s.name != "evaluate")
    low, middle, high = 0.0, 0.0, 0.0
    if stages[-1].name == "evaluate":
        costs = {name: n * (p.walk / 1.5 if name == "fab-t" else p.look) for name, n in planned.attacks.items()}
        low, middle, high = (planned.points * sum(c * _facing(name, s) for name, c in costs.items()) for s in STANDING)
    return Part(planned.recipe, training, middle, SPREAD[0] * training + low, SPREAD[1] * training + high)
