"""Seconds of FMN against the same algorithm as the survey's code runs it: torch.optim, ``backward``, parameters that gather gradients."""

from __future__ import annotations

import math
import statistics
import time

import torch
from torch import Tensor, nn

from apnb import datasets, networks
from apnb.attacks.fmn import Configuration, fmn


def plain_fmn(net: nn.Module, x: Tensor, y: Tensor, c: Configuration) -> Tensor:
    """FMN as HO-FMN's code runs it, written with torch alone; returns the distances, inf = none found."""
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamax": torch.optim.Adamax}[c.optimizer]
    own = {"momentum": c.momentum, "dampening": c.dampening} if c.optimizer == "sgd" else {"betas": c.betas}
    delta, x_adv = torch.zeros_like(x), x.clone()
    optimizer = kind([delta], lr=c.lr, weight_decay=c.weight_decay, **own)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.steps, eta_min=c.final * c.lr)
    worst = torch.maximum(x, 1 - x).flatten(1).max(1).values
    eps, best, found = torch.full_like(worst, math.inf), worst.clone(), torch.zeros_like(y, dtype=torch.bool)
    shape = (-1, 1, 1, 1)
    for i in range(c.steps):
        x_adv = x_adv.detach().requires_grad_(True)
        z = net(x_adv)
        own_logit = z.gather(1, y[:, None])[:, 0]
        margin = own_logit - z.masked_fill(nn.functional.one_hot(y, z.shape[1]).bool(), -math.inf).max(1).values
        if c.loss == "ll":
            loss = margin
        elif c.loss == "ce":
            loss = -nn.functional.cross_entropy(z, y, reduction="none")
        else:
            ordered = z.sort(1, descending=True).values
            loss = margin / (ordered[:, 0] - ordered[:, 2] + 1e-12)
        loss.sum().backward()
        norm = (x_adv.detach() - x).flatten(1).abs().max(1).values
        wrong = z.detach().argmax(1) != y
        best = torch.where(wrong & ((norm < best) | ~found), norm, best)
        found |= wrong
        gamma = 0.001 + (0.05 - 0.001) * (1 + math.cos(math.pi * i / c.steps)) / 2
        kept = torch.where(found, eps * (1 + gamma), torch.full_like(eps, math.inf))
        eps = torch.minimum(torch.where(wrong, torch.minimum(eps * (1 - gamma), best), kept), worst)
        delta.grad = x_adv.grad.sign()
        optimizer.step()
        if c.schedule == "cosine":
            cosine.step()
        x_adv = (x + torch.maximum(torch.minimum(delta, eps.view(shape)), -eps.view(shape))).clamp(0, 1)
        delta.copy_(x_adv - x)
    return torch.where(found, best, math.inf)


def measure(repeats: int = 5, steps: int = 10) -> dict:
    """Alternates the two, each on its own copy of the network; medians after one of warm-up.

    Returns, for resnet18 (batch 16, colour images of 32x32, random weights) and the digits CNN (batch 128, random weights):
    seconds of both, their ratio, the ratios one by one, and whether all distances are equal to the bit.
    """
    digits = datasets.load("digits").test
    colour = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    cases = {"resnet18": (colour, 3, steps), "cnn": (digits.images(slice(0, 128)), 1, 5 * steps)}
    report = {}
    for name, (x, channels, k) in cases.items():
        ours = networks.build(name, channels=channels, classes=10).eval().requires_grad_(False)
        peer = networks.build(name, channels=channels, classes=10).eval()
        with torch.no_grad():
            y = ours(x).argmax(1)
        c = Configuration(steps=k, as_released=True)
        seconds: dict[str, list[float]] = {"peer": [], "ours": []}
        equal = True
        for i in range(repeats + 1):
            start = time.perf_counter()
            theirs = plain_fmn(peer, x, y, c)
            middle = time.perf_counter()
            _, distance = fmn(ours, x, y, c)
            end = time.perf_counter()
            equal &= torch.equal(theirs, distance)
            if i:
                seconds["peer"].append(middle - start)
                seconds["ours"].append(end - middle)
        medians = {who: statistics.median(times) for who, times in seconds.items()}
        report[name] = {
            "batch": len(x),
            "steps": k,
            "threads": torch.get_num_threads(),
            **medians,
            "ratio": medians["peer"] / medians["ours"],
            "spread": [round(a / b, 2) for a, b in zip(seconds["peer"], seconds["ours"], strict=True)],
            "bit-equal": equal,
        }
    return report
