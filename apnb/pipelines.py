"""After, before, during: the survey's three pipelines as generators of stages, written against an `apnb.runner.Runner`.

And `scored`: what HYDRA and HARP do around the search that is their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from apnb.criteria import Criterion, Setting, criterion
from apnb.events import Event
from apnb.masks import Masks, Target, ramp
from apnb.mechanisms import Dynamic, Mechanism, Params, Within
from apnb.training import bake_, cosine, late_cosine, mean_statistic, one_cycle

if TYPE_CHECKING:
    from apnb.runner import Runner, Stage

Stages = Generator[Event, None, Masks]


def stages(run: Runner) -> Stages:
    """The stages of the recipe's pipeline; returns the masks."""
    return {"after": after, "before": before, "during": during}[run.recipe.pipeline](run)


def targets(run: Runner) -> tuple[float, ...]:
    """Sparsity after each round: the target itself, or a ramp that ends in it."""
    r = run.recipe
    return (r.sparsity,) if r.schedule == "one_shot" else ramp(r.sparsity, run.budget.rounds, r.ramp)


def share(total: int, rounds: int, i: int) -> int:
    """Epochs of round ``i`` (from 0) when ``total`` are spread over the rounds; at least one each."""
    return max(1, total // rounds + (i >= rounds - total % rounds))


def after(run: Runner) -> Stages:
    """Pretrain; each round: search from the current weights, select, fine-tune under the masks."""
    r, b = run.recipe, run.budget
    yield from run.stage(
        "pretraining", lambda s: run.fit(s, r.pretraining, epochs=b.epochs, lr=one_cycle(b.lr)), objective=r.pretraining
    )
    dense = run.state() if r.rewind or "kd" in (r.pruning_step, r.finetuning) else None
    teacher = run.copy_of(dense) if "kd" in (r.pruning_step, r.finetuning) else None
    masks: Masks | None = None
    rounds = targets(run)
    for i, s_i in enumerate(rounds):
        epochs = share(b.search_epochs, len(rounds), i) if r.trains_search else 0
        masks = yield from run.stage(f"round {i + 1}: prune", prune(run, s_i, epochs, masks, teacher))
        if r.rewind:
            run.load(dense)
        if r.finetuning != "none":
            body = tune(run, r.finetuning, share(b.finetune_epochs, len(rounds), i), b.finetune_lr, masks, teacher)
            yield from run.stage(f"round {i + 1}: finetuning", body)
    return masks


def before(run: Runner) -> Stages:
    """Remember theta_0; each round: search with the pruning objective, select, back to theta_0; then train what is left."""
    r, b = run.recipe, run.budget
    theta_0 = run.state()
    masks: Masks | None = None
    rounds = targets(run)
    for i, s_i in enumerate(rounds):
        epochs = 0 if r.pruning_step == "none" else share(b.search_epochs, len(rounds), i)
        masks = yield from run.stage(f"round {i + 1}: prune", prune(run, s_i, epochs, masks, None))
        if r.rewind:
            run.load(theta_0)
    if r.training_step != "none":
        yield from run.stage("training", tune(run, r.training_step, b.epochs, b.lr, masks, None))
    return masks


def during(run: Runner) -> Stages:
    """One training stage in which masks are selected anew between 10 % and 75 % of the steps, and stay fixed afterwards."""
    r, b = run.recipe, run.budget
    c = criterion(r.criterion, r.variant or "")

    def connectivity(s: Stage) -> Stages:
        target = run.target(r.sparsity)
        mechanism = c.search(setting(run, target, s.generator))
        yield from run.fit(s, r.training_step, epochs=b.epochs, lr=one_cycle(b.lr), mechanism=mechanism)
        masks = mechanism.masks(run.params())
        bake_(run.net, mechanism)
        yield run.pruned(masks, target)
        return masks

    def selected(s: Stage) -> Stages:
        plan = update_plan(run, b.epochs * len(s.data))
        selectors = {step: selector(c, run.target(share_), s) for step, share_ in plan.items()}
        search = c.search(setting(run, run.target(r.sparsity), s.generator)) or Mechanism()
        mechanism = Dynamic(selectors, search, c.statistic, tuple(run.target(r.sparsity).sizes()))
        shares = list(plan.values())
        told = s.resume["mechanism"]["selections"] if s.resume else 0
        for event in run.fit(s, r.training_step, epochs=b.epochs, lr=one_cycle(b.lr), mechanism=mechanism):
            yield event
            if mechanism.selections > told:
                told = mechanism.selections
                yield run.pruned(mechanism.masks, run.target(shares[told - 1]), step=told, of=len(shares))
        bake_(run.net, mechanism)
        return mechanism.masks

    return (yield from run.stage("training", connectivity if c.keeps_masks else selected))


def scored(run: Runner, prune: Callable[[Callable[..., Generator]], Stages]) -> Stages:
    """Pretrain; ``prune``, which gets `Runner.fit` with all but the mechanism said and returns the masks; fine-tune under them.

    Each stage has a cosine of its own. As released, every step makes a clean pass before the attack and one after the loss, and
    the cosine is one epoch late.
    """
    r, b = run.recipe, run.budget
    passes, schedule = (("before", "after"), late_cosine) if r.as_released else ((), cosine)

    def by(s: Stage, key: str, epochs: int, lr: float) -> dict:
        return {"objective": run.objective(key, s, passes=passes), "epochs": epochs, "lr": schedule(lr)}

    first = {"method": r.method, "objective": r.pretraining, "as_released": r.as_released}
    yield from run.stage("pretraining", lambda s: run.fit(s, **by(s, r.pretraining, b.epochs, b.lr)), **first)
    masks = yield from run.stage("pruning", lambda s: prune(partial(run.fit, s, **by(s, r.pruning_step, b.search_epochs, b.lr))))
    yield from run.stage(
        "finetuning", lambda s: run.fit_masked(s, masks, **by(s, r.finetuning, b.finetune_epochs, b.finetune_lr))
    )
    return masks


def update_plan(run: Runner, steps: int) -> dict[int, float]:
    """Step after which masks are selected -> sparsity then: between 10 % and 75 % of the steps, the last one the target."""
    first, last = max(1, math.ceil(0.1 * steps)), max(1, math.floor(0.75 * steps))
    n = max(1, min(run.budget.updates, last - first + 1))
    at = sorted({last - round((last - first) * i / max(n - 1, 1)) for i in range(n)})
    r = run.recipe
    shares = ramp(r.sparsity, len(at), r.ramp) if r.schedule == "iterative" else (r.sparsity,) * len(at)
    return dict(zip(at, shares, strict=True))


def selector(c: Criterion, target: Target, s: Stage):
    """How `Dynamic` selects masks at one of its steps."""

    def choose(weights: Params, search: Mechanism, mean: Params) -> Masks:
        return target.select(c.scores(weights, search, mean, s.generator))

    return choose


def setting(run: Runner, target: Target, generator, within: Masks | None = None) -> Setting:
    """What a criterion's search is made from."""
    return Setting(run.params(), target, run.budget, run.norms, generator, within)


def prune(run: Runner, sparsity: float, epochs: int, within: Masks | None, teacher: nn.Module | None):
    """The body of a pruning stage: search for ``epochs`` epochs if there are any, score, select. Returns the masks."""
    r, b = run.recipe, run.budget
    c = criterion(r.criterion, r.variant or "")
    target = run.target(sparsity)

    def body(s: Stage) -> Stages:
        search = c.search(setting(run, target, s.generator, within)) if epochs else None
        inner = search or Mechanism()
        mechanism = inner if within is None else Within(within, inner)
        if epochs:
            lr = one_cycle(b.lr) if r.pipeline == "before" or c.starts_anew else cosine(b.finetune_lr)
            yield from run.fit(s, r.pruning_step, epochs=epochs, lr=lr, mechanism=mechanism, teacher=teacher)
        mean = None
        if c.statistic is not None:
            key = "pgd_at" if r.pruning_step == "none" else r.pruning_step
            mean = mean_statistic(run.net, s.data(0), run.objective(key, s, teacher), c.statistic, mechanism)
        weights = {n: p.detach() for n, p in run.params().items()}
        masks = target.select(c.scores(weights, search, mean, s.generator), within)
        yield run.pruned(masks, target)
        return masks

    return body


def tune(run: Runner, key: str, epochs: int, lr: float, masks: Masks, teacher: nn.Module | None):
    """The body of a training stage under fixed masks."""
    schedule = one_cycle(lr) if run.recipe.pipeline == "before" else cosine(lr)
    return lambda s: run.fit_masked(s, masks, key, epochs=epochs, lr=schedule, teacher=teacher)
