"""What an evaluation costs besides the network, and how soon it says something."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from torch import Tensor, nn

from apnb.evaluation import evaluate, evaluate_stream
from tests.benchmarks.oracle import digits, resnet

SPENT = {"model": 0.0}


class Timed(nn.Module):
    """A network that adds up the seconds of its forward and backward passes; copies add to the same sum."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        began = time.perf_counter()
        entered = x if not x.requires_grad else x * 1  # a tensor of its own, whose gradient is ready when the backward pass ends
        out = self.net(entered)
        SPENT["model"] += time.perf_counter() - began
        if out.requires_grad:
            since: list[float] = []
            out.register_hook(lambda g: since.append(time.perf_counter()))
            entered.register_hook(lambda g: SPENT.update(model=SPENT["model"] + time.perf_counter() - since[-1]))
        return out


def overhead(images: tuple[Tensor, Tensor], attacks: str = "lite", n: int = 16) -> dict:
    """Share of an evaluation's seconds spent outside the network: resnet18, small ball, so that points stand."""
    model, SPENT["model"], began = Timed(resnet()), 0.0, time.perf_counter()
    report = evaluate(model, (images[0][:n], images[1][:n]), eps=0.4 / 255, attacks=attacks, diagnostics=False)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "outside": 1 - SPENT["model"] / seconds, "robust": report.robust_accuracy}


FIRST = """
import sys, time, torch
torch.set_num_threads(1)
began = time.perf_counter()
from apnb import networks
from apnb.evaluation import evaluate_stream
net = networks.build("cnn", channels=1, classes=10)
stream = evaluate_stream(net, "digits", n=500)
event = next(stream)
print(event.metrics["attack"], time.perf_counter() - began)
"""


def first_figure(repeats: int = 5) -> float:
    """Seconds from the call, imports of this package and the images included, to the first event, in fresh interpreters that have
    loaded torch: the median."""
    told = [subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=True) for _ in range(repeats)]
    return statistics.median(float(t.stdout.split()[1]) for t in told)


def whole(n: int = 500) -> dict:
    """The robust digits CNN, AutoAttack on n test images: seconds, and when the first batch was attacked."""
    net, began, first = digits("pgd_at"), time.perf_counter(), None
    stream = evaluate_stream(net, "digits", n=n)
    while True:
        try:
            event = next(stream)
        except StopIteration as end:
            return {"report": end.value, "seconds": time.perf_counter() - began, "first batch": first}
        if first is None and event.metrics["attack"] == "apgd-ce":
            first = time.perf_counter() - began
