"""Images per second of PGD-10 adversarial training: the package's loop against a plain float32 loop written with torch alone."""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F

from apnb import networks
from apnb.chance import generator
from apnb.copies import bf16_body
from apnb.datasets import Batches, Split
from apnb.devices import bf16_units
from apnb.masks import Target
from apnb.mechanisms import FixedMasks
from apnb.objectives import objective
from apnb.training import fit, sgd

EPS, STEPS = 8 / 255, 10


def plain_step(net, optimizer, x, y) -> None:
    """What a page of PyTorch would do: PGD in evaluation mode, one optimizer step in training mode, float32."""
    net.eval()
    x_adv = (x + (2 * torch.rand_like(x) - 1) * EPS).clamp(0, 1)
    for _ in range(STEPS):
        x_adv.requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(net(x_adv), y), x_adv)
        x_adv = torch.minimum(torch.maximum(x_adv.detach() + EPS / 4 * g.sign(), x - EPS), x + EPS).clamp(0, 1)
    net.train()
    optimizer.zero_grad()
    F.cross_entropy(net(x_adv), y).backward()
    optimizer.step()


def step_ratio(repeats: int = 5, batch: int = 128, network: str = "resnet18", device: str = "cpu") -> dict:
    """Alternate the two loops; medians of ``repeats`` steps each, after one of warm-up."""
    x, y = torch.rand(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    plain = networks.build(network, channels=3, classes=10).to(device)
    ours = networks.build(network, channels=3, classes=10)
    layers = networks.layers(ours, x[:2])
    scores = {n: p.detach().abs() for n, p in ours.named_parameters()}
    masks = Target(layers, "weights", "global", 0.9).select(scores)
    fast = bf16_units(device)
    ours.to(device, memory_format=torch.channels_last if fast else torch.preserve_format)
    masks = {n: m.to(device) for n, m in masks.items()}
    with torch.no_grad():
        for n, p in plain.named_parameters():  # the peer trains a pruned network too, by the cheapest means: zeros in place
            p.mul_(masks.get(n, torch.ones((), device=device)))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    draw = generator("bench", device=device)
    data = Batches(Split(x, y), batch, seed=0, stage="bench", device=device)
    loss = objective("pgd_at", eps=EPS, steps=STEPS, generator=draw)
    xd, yd = x.to(device), y.to(device)
    times: dict[str, list[float]] = {"plain": [], "apnb": []}

    def timed(work) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    with bf16_body(ours, (layers[0].module, layers[-1].module), device, fast):
        events = fit(
            ours, data, loss, epochs=repeats + 1, lr=lambda at: 0.01, mechanism=FixedMasks(masks), optimizer=sgd, generator=draw
        )
        batches = (e for e in events if e.kind == "batch")
        for i in range(repeats + 1):
            a, b = timed(lambda: plain_step(plain, optimizer, xd, yd)), timed(lambda: next(batches))
            if i:
                times["plain"].append(a)
                times["apnb"].append(b)
        events.close()
    medians = {k: batch / statistics.median(v) for k, v in times.items()}
    return {
        "network": network,
        "device": device,
        "threads": torch.get_num_threads(),
        "bf16": fast,
        "plain images/s": medians["plain"],
        "apnb images/s": medians["apnb"],
        "ratio": medians["apnb"] / medians["plain"],
        "spread": [round(a / b, 2) for a, b in zip(times["plain"], times["apnb"], strict=True)],
    }
