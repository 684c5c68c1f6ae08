"""What a verdict is, and the work of reaching one for every point: attacks batch by batch, each success checked again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from apnb.attacks.autoattack import Attack
from apnb.attacks.square import margins
from apnb.copies import full_precision
from apnb.errors import Invalid
from apnb.events import Attacked, Event

TOLERANCE = 1e-6
"""How far beyond eps float32 rounding may carry a pixel."""
GLANCE = 16
"""Images of the first look, which is there within a second."""
EXAMPLES = 32
"""Broken points whose images are kept in any case."""


def wilson(k: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval for k successes of n, as shares (Wilson 1927). It covers the sampling of the points, nothing else."""
    p = k / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return min(p, max(0.0, (centre - half) / scale)), max(p, min(1.0, (centre + half) / scale))  # rounding leaves p inside


@torch.no_grad()
def verify(net: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, eps: float) -> Tensor:
    """Which candidates are adversarial: finite, in the box, in the ball, and misclassified twice in full precision.

    The second look has the images in reverse order, so that a verdict which hangs on an image's place in the batch does not count.

    Args:
        net: the network itself, in evaluation mode. x, x_adv: (N, C, H, W) float32; y: (N,).

    Returns:
        bool (N,).
    """
    flat = x_adv.flatten(1)
    inside = flat.isfinite().all(1) & (flat >= 0).all(1) & (flat <= 1).all(1)
    inside &= (flat - x.flatten(1)).abs().amax(1) <= eps + TOLERANCE
    safe = torch.where(inside[:, None, None, None], x_adv, x)
    with full_precision():
        wrong = (net(safe).argmax(1) != y) & (net(safe.flip(0)).argmax(1).flip(0) != y)
    return inside & wrong


def check_network(net: nn.Module, x: Tensor, classes: int) -> None:
    """Refuse what cannot be evaluated: images outside [0, 1], logits that are not logits, a network that draws random numbers."""
    if not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise Invalid(
            f"images must lie in [0, 1], these run from {float(x.min()):.3g} to {float(x.max()):.3g}; put normalisation inside the network"
        )
    some = x[:GLANCE]
    with torch.no_grad(), full_precision():
        try:
            looks = [net(some.clone()) for _ in range(5)]  # clones: a network may write into what it is given
            alone = net(some[:1].clone())
        except torch.cuda.OutOfMemoryError:
            raise Invalid(f"the GPU has no room for {len(some)} images; use --device cpu or a smaller network") from None
        except Exception as error:  # the network is the user's: it may raise anything
            shape, reason = ", ".join(map(str, x.shape[1:])), (str(error).splitlines() or [type(error).__name__])[0]
            raise Invalid(f"the network cannot take images of shape (N, {shape}), or not a single one: {reason}") from None
    first = looks[0]
    if not isinstance(first, Tensor) or first.ndim != 2 or first.shape[1] < 2:
        shape = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise Invalid(f"a network must return logits of shape (N, classes) with at least 2 classes, this one returned {shape}")
    if len(first) != len(some) or first.dtype != torch.float32 or alone.shape != first[:1].shape:
        raise Invalid(
            f"the network returned {first.dtype} of shape {tuple(first.shape)} for {len(some)} images and {tuple(alone.shape)} for one, "
            "expected a row of float32 logits for each; end its forward pass with logits.float(), and flatten, do not squeeze"
        )
    if not first.isfinite().all():
        raise Invalid("the network returns NaN or infinite logits on clean images; it cannot be evaluated")
    if first.shape[1] < classes:
        raise Invalid(f"the network has {first.shape[1]} outputs but the labels name {classes} classes")
    if any(not torch.allclose(first, other, atol=1e-5, rtol=1e-4) for other in looks[1:]):
        raise Invalid(
            "the network gives different logits for the same images: it draws random numbers, and attacks that look once would "
            "overrate it; evaluate its deterministic form"
        )
    if not torch.allclose(first[:1], alone, atol=1e-3 * max(1.0, float(first.abs().max())), rtol=1e-3):
        raise Invalid(
            "the network's answer for an image depends on the other images of its batch (batch norm without running statistics, say), "
            "so there is no verdict on a single image; give it fixed statistics"
        )


class Counted(nn.Module):
    """A network that counts the images passed through it.

    Logits that do not depend on the images by anything differentiable get a gradient of zero, so that gradient attacks run on to
    no avail instead of stopping; `apnb.diagnostics` tells it.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.images = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        logits = self.net(x)
        if x.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            logits = logits + 0 * x.flatten(1).sum(1, keepdim=True)
        return logits


class Work:
    """An evaluation under way: the network, the points in the order of their index, and what is known of them.

    ``state`` is all that has to survive an interruption: numbers, words and tensors on the CPU. A step (the clean images, an
    attack, a search for distances) goes through its points batch by batch in `each`, which counts, saves and tells.
    """

    def __init__(
        self, net: nn.Module, x: Tensor, y: Tensor, order: Tensor, *, eps: float, batch: int, keep: bool, notes: list[str]
    ):
        self.net, self.x, self.y, self.order, self.eps = net, x, y, order, eps
        self.fast = self.near = net  # what attacks run on, and what distances are looked for on: copies, once there are any
        self.counted: list[Counted] = []
        self.save = lambda: None
        self.before, self.started = 0.0, time.perf_counter()
        n = len(y)
        self.state: dict[str, Any] = {
            "step": 0, "todo": None, "done": 0, "batch": batch, "shrunk": False, "notes": notes, "elapsed": 0.0, "doubted": 0,
            "prediction": torch.full((n,), -1), "broken_by": [""] * n, "margin": torch.full((n,), math.nan),
            "norm": torch.full((n,), math.inf), "distances": torch.full((n,), math.inf), "distance_by": [""] * n,
            "forwards": torch.zeros(n), "spent": torch.zeros(n), "tuned": [], "kept": [],
            "adversarial": x.cpu().clone() if keep else None,
        }  # fmt: skip

    def resume(self, state: dict) -> None:
        """Go on from a stored state."""
        self.state, self.before = state, state["elapsed"]

    @property
    def stands(self) -> Tensor:
        """bool (n,)"""
        return torch.tensor([by == "" for by in self.state["broken_by"]])

    def standing(self) -> Tensor:
        """Positions of the points that stand, in the order in which they are attacked."""
        return self.order[self.stands[self.order]]

    def right(self) -> Tensor:
        """Positions of the points whose clean image is classified correctly, in the same order."""
        return self.order[(self.state["prediction"] == self.y.cpu())[self.order]]

    def event(self, name: str, step: int, of: int, seen: Tensor | None = None, robust: Tensor | None = None) -> Attacked:
        """What can be said now: the share of all points that stand, and an estimate from the points seen so far."""
        stands = self.stands
        told = (stands if seen is None else stands[seen]) if robust is None else robust
        k, m = int(told.sum()), len(told)
        low, high = wilson(k, m)
        metrics = {"attack": name, "robust": float(stands.double().mean()), "n": len(self.y), "estimate": k / m, "low": low,
                   "high": high, "seen": m}  # fmt: skip
        return Attacked(stage="evaluate", step=step, of=of, metrics=metrics)

    def each(self, name: str, pick: Callable[[], Tensor], work: Callable[[Tensor], None], first: bool = False) -> Iterator[Event]:
        """One step: ``work(positions)`` batch by batch over the points that ``pick`` gives when the step begins."""
        s = self.state
        if s["todo"] is None:
            s["todo"], s["done"] = pick(), 0
        todo = s["todo"]
        rank = torch.empty_like(self.order)
        rank[self.order] = torch.arange(len(self.order))
        while s["done"] < len(todo):
            part = todo[s["done"] : s["done"] + s["batch"]]
            passed, began = sum(c.images for c in self.counted), time.perf_counter()
            try:
                work(part)
            except torch.cuda.OutOfMemoryError:
                if s["batch"] == 1:
                    raise Invalid("the GPU has no room for a single image; use --device cpu or a smaller network") from None
                torch.cuda.empty_cache()
                s["batch"], s["shrunk"] = max(1, min(s["batch"], len(part)) // 2), True
                s["notes"].append(f"the GPU ran out of memory: attacked in batches of {s['batch']}")
                continue
            s["forwards"][part] += (sum(c.images for c in self.counted) - passed) / len(part)
            s["spent"][part] += (time.perf_counter() - began) / len(part)
            s["done"] += len(part)
            s["elapsed"] = self.before + time.perf_counter() - self.started
            self.save()
            part_way = first and s["done"] < len(todo)
            yield self.event(name, s["done"], len(todo), self.order[: rank[part[-1]] + 1] if part_way else None)
        s["step"], s["todo"] = s["step"] + 1, None

    # --- what a step does with a batch ------------------------------------------------------------------------------------------

    def look(self, part: Tensor) -> None:
        """The clean images: what is wrong already is not attacked."""
        with torch.no_grad(), full_precision():
            logits = self.net(self.x[part])
        if not logits.isfinite().all():
            raise Invalid("the network returns NaN or infinite logits on clean images; it cannot be evaluated")
        s = self.state
        s["prediction"][part], s["margin"][part] = logits.argmax(1).cpu(), margins(logits, self.y[part]).cpu()
        for i in part[(logits.argmax(1) != self.y[part]).cpu()].tolist():
            s["broken_by"][i] = s["distance_by"][i] = "clean"
            s["norm"][i] = s["distances"][i] = 0.0

    def attack(self, name: str, attacks: Callable[[nn.Module], Mapping[str, Attack]], part: Tensor) -> None:
        """Candidates of the fast copy, each judged by the network itself; where the two disagree, the network itself is attacked."""
        x, y = self.x[part], self.y[part]
        with full_precision():
            x_adv, closest = attacks(self.fast)[name](x, y)
        broken = verify(self.net, x, y, x_adv, self.eps)
        doubted = (x_adv != x).flatten(1).any(1) & ~broken
        if doubted.any():
            self.state["doubted"] += int(doubted.sum())
            with full_precision():
                again, _ = attacks(self.net)[name](x[doubted], y[doubted])
            x_adv[doubted], broken[doubted] = again, verify(self.net, x[doubted], y[doubted], again, self.eps)
        if closest is not None:
            self.closer(part, "fab-t", closest)
        if broken.any():
            self.broke(part[broken.cpu()], name, x_adv[broken])

    def broke(self, at: Tensor, name: str, x_adv: Tensor) -> None:
        """Verified adversarial images ``x_adv`` of the points ``at``."""
        s, x, y = self.state, self.x[at], self.y[at]
        with torch.no_grad(), full_precision():
            logits = self.net(x_adv)
        s["norm"][at], s["margin"][at] = (x_adv - x).flatten(1).abs().amax(1).cpu(), margins(logits, y).cpu()
        for i, image, after in zip(at.tolist(), x_adv.cpu(), logits.argmax(1).tolist(), strict=True):
            s["broken_by"][i] = name
            if s["adversarial"] is not None:
                s["adversarial"][i] = image
            if len(s["kept"]) < EXAMPLES:
                s["kept"].append([i, after, image.clone()])
        self.nearer(at, name, s["norm"][at].clamp(max=self.eps))  # what rounding added may not put a point outside the ball

    def closer(self, part: Tensor, name: str, images: Tensor) -> Tensor:
        """Images that may be adversarial at some distance: those that are, are measured. Which ones turned out not to be."""
        x, y = self.x[part], self.y[part]
        found = verify(self.net, x, y, images, 1.0)
        self.nearer(part, name, torch.where(found, (images - x).flatten(1).abs().amax(1), math.inf).cpu())
        return ((images != x).flatten(1).any(1) & ~found).cpu()

    def nearer(self, at: Tensor, name: str, distance: Tensor) -> None:
        s = self.state
        better = distance < s["distances"][at]
        s["distances"][at[better]] = distance[better]
        for i in at[better].tolist():
            s["distance_by"][i] = name

    def measure(self, name: str, nearest: Callable[[nn.Module, Tensor, Tensor], Tensor], part: Tensor) -> None:
        """A minimum-norm attack: how far is it to the nearest adversarial image that it finds?"""
        with full_precision():
            images = nearest(self.near, self.x[part], self.y[part])
        if (doubted := self.closer(part, name, images)).any():
            again = part[doubted]
            with full_precision():
                images = nearest(self.net, self.x[again], self.y[again])
            self.closer(again, name, images)

    # --- the end ------------------------------------------------------------------------------------------------------------------

    def examples(self, index: Tensor) -> dict[str, Tensor]:
        """Up to `EXAMPLES` broken points with their images."""
        s = self.state
        if not s["kept"]:
            return {}
        at = torch.tensor([i for i, _, _ in s["kept"]])
        return {
            "index": index[at],
            "x": self.x[at].cpu(),
            "x_adv": torch.stack([image for _, _, image in s["kept"]]),
            "label": self.y[at].cpu(),
            "before": s["prediction"][at],
            "after": torch.tensor([after for _, after, _ in s["kept"]]),
        }
