"""HO-FMN: FMN whose learning rate and its companions are searched for, for each loss and optimiser (Mura et al. 2024).

`search` finds one configuration on points set aside for it; `apnb.evaluate(..., distances="hofmn")` runs the found and the untuned
ones on other points and keeps the smallest distance of all; `survey` repeats what the survey did, shortcuts included.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from apnb.attacks.fmn import Configuration, floor, fmn
from apnb.errors import Invalid

if TYPE_CHECKING:
    import optuna
    import pandas as pd

UNTUNED_LR = (1.0, 10.0)
"""Learning rates, in radii, that are always tried: the default, and one that ends every step on the surface of the ball. At the
survey's radius of 8/255 they are what it calls lr = 8/255 and lr = 1."""
LR = (8 / 255, 10.0)


def search(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: str = "dlr",
    optimizer: str = "sgd",
    schedule: str = "cosine",
    steps: int = 100,
    trials: int = 32,
    seed: int = 0,
    batch: int = 128,
    as_released: bool = False,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Configuration, pd.DataFrame]:
    """The configuration with the smallest median distance on the tuning points, found by a tree-structured Parzen estimator.

    Searched: lr, log-uniform in [8/255, 10]; weight_decay in [0, 1]; for SGD momentum in [0, 0.9] and dampening in [0, 0.2], else
    both betas in [0, 0.999]. The untuned settings are the first trials, so the result is never worse than they are here.

    Args:
        net: images -> logits, in evaluation mode. x: (N, C, H, W) in [0, 1], y: int64 (N,): the tuning points, which must not be
            evaluated afterwards; 256 or more, since a median over few points is noise.
        loss, optimizer, schedule: of the `Configuration`. steps: of each trial. trials: runs of FMN in all.
        seed: of the search; the attack itself draws nothing. batch: images attacked together; the result does not depend on it.
        as_released: the survey's search: `Configuration.as_released`, no untuned settings among the trials, weight_decay from
            0.01, the cosine ends at 0, and points that are wrong without any attack count as infinitely far in the median, as
            those do where no adversarial is found. Otherwise the median is over the points that are right.
        progress: called after each trial with its number from 1, ``trials``, and the best median so far.

    Returns:
        the configuration, with the ``steps`` of the search; a DataFrame with one row a trial: its parameters and its median.

    Raises:
        Invalid: optuna is not installed, too few trials, no tuning point that is right.

    Source: Mura et al. 2024; the ranges are those of its code.
    """
    base = Configuration(loss=loss, optimizer=optimizer, schedule=schedule, steps=steps, as_released=as_released)
    fixed = [] if as_released else [_parameters(dataclasses.replace(base, lr=lr)) for lr in UNTUNED_LR]
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < max(1, len(fixed)):
        raise Invalid(f"{trials!r} trials asked for, expected a whole number of at least {max(1, len(fixed))}")
    with torch.no_grad():
        right = torch.cat([net(part).argmax(1) for part in x.split(batch)]) == y
    if not right.any():
        raise Invalid(f"none of the {len(y)} tuning points is classified correctly, so no distance can be tuned; give others")
    if not as_released:
        x, y = x[right], y[right]
    study = _study(seed)
    for parameters in fixed:
        study.enqueue_trial(parameters)
    best, rows = (math.inf, base), []
    for number in range(1, trials + 1):
        trial = study.ask()
        configuration = _suggested(trial, base)
        _, distance = _attacked(net, x, y, configuration, batch)
        median = float(torch.where(distance == 0, math.inf, distance).median())
        study.tell(trial, median)
        rows.append({**_parameters(configuration), "median": median})
        if number == 1 or median < best[0]:
            best = median, configuration
        if progress is not None:
            progress(number, trials, best[0])
    import pandas as pd

    return best[1], pd.DataFrame(rows, index=pd.RangeIndex(1, trials + 1, name="trial"))


def survey(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    trials: int = 32,
    tuning: int = 64,
    first: int = 2048,
    points: int = 128,
    batch: int = 128,
) -> tuple[Tensor, Tensor, Configuration, list[str]]:
    """Distances by the survey's own protocol, for comparison with its figures, which its shortcuts make differ from an evaluation's.

    DLR, SGD and the cosine; 32 trials of 100 steps on the first 64 test points, then 200 steps on the points 2048 to 2175.

    Args:
        net: images -> logits, in evaluation mode. images (N, C, H, W) in [0, 1], labels int64 (N,): the whole test split, in order.
        seed: of the search. trials, tuning, first, points: the survey's numbers. batch: images attacked together.

    Returns:
        distance (points,), 0 where the point is misclassified or no adversarial was found; index int64 (points,), in the split;
        the configuration found; and sentences that say how this differs from an evaluation.

    Raises:
        Invalid: fewer images than the protocol needs, and as `search`.

    Source: Piras et al. 2024 and the code of its evaluation.
    """
    if len(images) < first + points:
        raise Invalid(
            f"the survey evaluates the test points {first} to {first + points - 1}, and {len(images)} were given; "
            f"give the whole test split, at least {first + points} images, or use apnb.evaluate with distances='hofmn'"
        )
    tuned, _ = search(net, images[:tuning], labels[:tuning], trials=trials, seed=seed, batch=batch, as_released=True)
    tuned = dataclasses.replace(tuned, steps=200)
    index = torch.arange(first, first + points, device=images.device)
    x, y = images[index], labels[index]
    _, distance = _attacked(net, x, y, tuned, batch)
    lost = distance.isinf()
    notes = [
        f"Survey's protocol: {points} test points, {first} to {first + points - 1}, neither random nor stratified; the sampling error "
        f"is up to {98 / math.sqrt(points):.1f} points at 95 %.",
        f"Tuned on the first {tuning} test points, {trials} trials of 100 steps; a tree-structured Parzen estimator stands for the "
        "survey's Bayesian optimisation.",
        f"Points where no adversarial was found have distance 0, as if misclassified: {int(lost.sum())} of {points} here.",
        f"The radius starts at the largest perturbation and shrinks by its own factor: with a large learning rate no distance "
        f"below {floor(tuned.steps):.4f} of it can be found (here lr = {tuned.lr:.3g}).",
        "One loss and one optimiser: no minimum over several, over untuned runs or over other attacks.",
    ]
    return distance.masked_fill(lost, 0), index, tuned, notes


def _attacked(net: nn.Module, x: Tensor, y: Tensor, configuration: Configuration, batch: int) -> tuple[Tensor, Tensor]:
    """`fmn` batch by batch."""
    parts = [fmn(net, a, b, configuration) for a, b in zip(x.split(batch), y.split(batch), strict=True)]
    adversarial, distance = zip(*parts, strict=True)
    return torch.cat(adversarial), torch.cat(distance)


def _parameters(c: Configuration) -> dict[str, float]:
    """What is searched for, by the names of the search."""
    own = (
        {"momentum": c.momentum, "dampening": c.dampening} if c.optimizer == "sgd" else {"beta1": c.betas[0], "beta2": c.betas[1]}
    )
    return {"lr": c.lr, "weight_decay": c.weight_decay, **own}


def _suggested(trial: optuna.Trial, base: Configuration) -> Configuration:
    found = {
        "lr": trial.suggest_float("lr", *LR, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 0.01 if base.as_released else 0.0, 1.0),
        "final": 0.0 if base.as_released else base.final,
    }
    if base.optimizer == "sgd":
        found |= {k: trial.suggest_float(k, 0.0, high) for k, high in (("momentum", 0.9), ("dampening", 0.2))}
    else:
        found["betas"] = tuple(trial.suggest_float(k, 0.0, 0.999) for k in ("beta1", "beta2"))
    return dataclasses.replace(base, **found)


def _study(seed: int) -> optuna.Study:
    """A study in memory. optuna logs its making at a level that is printed by default, and nothing when trials are asked and told."""
    try:
        import optuna
    except ImportError:
        raise Invalid("the search for FMN's settings needs optuna, which is not installed; pip install optuna") from None
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    finally:
        logger.setLevel(level)
