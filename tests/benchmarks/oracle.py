"""Verdicts and seconds of AutoAttack: the authors' package as it is, the same made fast from outside, and our own engine.

Every column attacks the same points in the same batches with the same seed; seconds are those of the processor, on one thread. The
oracle is the package on the plain network, whose parameters ask for gradients as they do for everybody. A verdict differs if a point
stands in one column and not in the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apnb import datasets, networks
from apnb.attacks.autoattack import STANDARD, apnb, official
from apnb.copies import exact, fast
from apnb.datasets import Batches
from apnb.devices import bf16_units
from apnb.objectives import objective
from apnb.training import fit, one_cycle
from apnb.verdicts import Counted, Work

FULL = {"steps": 100, "targets": 9, "queries": 5000}
SMALL = {"steps": 20, "targets": 3, "queries": 200}
HALF = 0.9 / 255
"""A radius at which about half of the points of that ResNet-18 break."""
CPU = torch.device("cpu")


def digits(kind: str, epochs: int = 20, seed: int = 0) -> nn.Module:
    """The CNN trained on digits, with PGD-7 at eps 0.15 or naturally."""
    data = datasets.load("digits")
    net = networks.build("cnn", channels=1, classes=10, seed=seed)
    loss = objective(kind, eps=0.15, steps=7, generator=torch.Generator().manual_seed(seed))
    list(fit(net, Batches(data.train, 64, seed=seed, stage="bench"), loss, epochs=epochs, lr=one_cycle(0.2)))
    return net


def resnet() -> nn.Module:
    """ResNet-18, trained naturally on CIFAR-10 by AutoAttack's authors: the weights that come with their package."""
    import pyautoattack

    net = networks.build("resnet18", channels=3, classes=10)
    path = Path(pyautoattack.__file__).parent / "examples" / "model_test.pt"
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net


def cascade(
    net: nn.Module, x: Tensor, y: Tensor, engine: Any, attacked: nn.Module, *, eps: float, batch: int, seed: int, budget: dict
) -> dict:
    """All four attacks on the clean-correct points; which one broke each point, and the seconds of the attacks."""
    work = Work(net, x, y, torch.arange(len(y)), eps=eps, batch=batch, keep=False, notes=[])
    work.fast = attacked if isinstance(attacked, Counted) else Counted(attacked)
    list(work.each("clean", lambda: work.order, work.look))
    made = {id(n): engine(n, eps=eps, classes=10, seed=seed, device=CPU, notes=[], **budget) for n in (work.fast, net)}
    seconds, each = 0.0, []
    for name in STANDARD:
        began = time.process_time()
        list(work.each(name, work.standing, partial(work.attack, name, lambda of: made[id(of)])))
        each.append(time.process_time() - began)
        seconds += each[-1]
    return {"broken_by": work.state["broken_by"], "seconds": seconds, "each": each, "doubted": work.state["doubted"]}


def columns(model: nn.Module, x: Tensor, half: bool) -> dict[str, tuple[Any, nn.Module]]:
    """Name -> (engine, the network it attacks)."""
    net = exact(model, CPU)
    plain = networks.copied(model).eval().requires_grad_(True)
    found = {"package": (official, plain), "package, fast copy": (official, fast(net, x[:16])), "apnb": (apnb, fast(net, x[:16]))}
    if half and bf16_units(CPU):
        found["package, bf16 body"] = (official, fast(net, x[:16], "bf16"))
        found["apnb, bf16 body"] = (apnb, fast(net, x[:16], "bf16"))
    return found


def table(images: tuple[Tensor, Tensor] | None, small: bool = True, seeds: tuple[int, ...] = (0, 1)) -> Iterator[dict]:
    """The rows: network, column, robust count, differing verdicts and attacks, seconds, and the ratio to the oracle.

    ``small``: with the digits networks; ``images``: with ResNet-18 on them.
    """
    data = datasets.load("digits")
    rows: list[tuple] = []
    if small:
        x, y = data.test.images(slice(0, 128)), data.test.y[:128]
        for kind, eps in (("pgd_at", 0.15), ("pgd_at", 0.18), ("natural", 0.1)):
            rows.append((f"digits cnn, {kind}", digits(kind), x, y, eps, 128, FULL, seeds, False))
    if images is not None:
        x, y = images
        rows += [
            ("resnet18, natural", resnet(), x[:32], y[:32], HALF, 32, SMALL, seeds, True),
            ("resnet18, natural", resnet(), x[:8], y[:8], HALF, 8, FULL, seeds[:1], False),
        ]
    for name, model, x, y, eps, batch, budget, tried, half in rows:
        net = exact(model, CPU)
        for seed in tried:
            oracle = None
            for column, (engine, attacked) in columns(model, x, half).items():
                found = cascade(net, x, y, engine, attacked, eps=eps, batch=batch, seed=seed, budget=budget)
                oracle = oracle or found
                stands, expected = [[b == "" for b in f["broken_by"]] for f in (found, oracle)]
                yield {
                    "network": name, "eps": eps, "n": len(y), "budget": "full" if budget is FULL else "20/3/200", "seed": seed,
                    "column": column, "robust": sum(stands), "differ": sum(a != b for a, b in zip(stands, expected, strict=True)),
                    "missed": sum(a and not b for a, b in zip(stands, expected, strict=True)),
                    "by another": sum(a != b for a, b in zip(found["broken_by"], oracle["broken_by"], strict=True)),
                    "doubted": found["doubted"], "seconds": found["seconds"], "ratio": oracle["seconds"] / found["seconds"],
                    "each": [round(a / b, 2) if b > 0.01 else None for a, b in zip(oracle["each"], found["each"], strict=True)],
                }  # fmt: skip


def cifar(place: str | None) -> tuple[Tensor, Tensor] | None:
    """CIFAR-10 test images: an .npz with x and y, or the official files where they are on disk; else None."""
    if place:
        with np.load(place) as file:
            return torch.from_numpy(file["x"][:64]).float() / 255, torch.from_numpy(file["y"][:64]).long()
    try:
        data = datasets.load("cifar10")
    except datasets.Invalid:
        return None
    return data.test.images(slice(0, 64)), data.test.y[:64]
