"""How robust is it? Attacks, with every success checked again in full precision, and an interval beside every figure."""

from __future__ import annotations

import contextlib
import copy
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apnb import datasets
from apnb.attacks import autoattack as aa
from apnb.attacks.pgd import pgd
from apnb.chance import generator
from apnb.devices import pick_device
from apnb.errors import Invalid, choose
from apnb.events import Attacked, Event

if TYPE_CHECKING:
    import pandas as pd

MODES = {"standard": aa.STANDARD, "lite": aa.LITE, "pgd": ("pgd",)}
"""standard: AutoAttack. lite: its first two attacks, an upper bound of AutoAttack. pgd: PGD-50, a quick look, a looser bound."""
TOLERANCE = 1e-6
"""How far beyond eps float32 rounding may carry a pixel."""


def wilson(k: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval for k successes of n, as shares (Wilson 1927). It covers the sampling of the points, nothing else."""
    p = k / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return min(p, max(0.0, (centre - half) / scale)), max(p, min(1.0, (centre + half) / scale))  # rounding leaves p inside


@dataclass(frozen=True)
class Evaluation:
    """Verdicts on n test images. Robust accuracy is an upper bound, found by these attacks.

    Attributes:
        index: int64 (n,), positions in the test split. label, prediction: int64 (n,), the latter on clean images.
        robust: bool (n,), classified correctly and not broken by any attack; a broken point was verified.
        broken_by: for each point the attack's name, "clean" if it was wrong before any attack, "" if it stands.
        attacks: the mode (standard, lite, pgd). eps: radius of the ball, in the scale of images in [0, 1].
        examples: of up to 32 broken points: x, x_adv (k, C, H, W), label, before, after (k,), index.
        warnings: sentences. seconds: wall-clock time. subset, seed: how the points were drawn.
    """

    index: Tensor
    label: Tensor
    prediction: Tensor
    robust: Tensor
    broken_by: tuple[str, ...]
    attacks: str
    eps: float
    subset: str
    seed: int
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    examples: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def n(self) -> int:
        """Points evaluated."""
        return len(self.label)

    @property
    def clean_accuracy(self) -> float:
        """Share classified correctly, in [0, 1]."""
        return float((self.prediction == self.label).double().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share that stands after all attacks, in [0, 1]; never above `clean_accuracy`."""
        return float(self.robust.double().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `robust_accuracy`."""
        return wilson(int(self.robust.sum()), self.n)

    @property
    def clean_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `clean_accuracy`."""
        return wilson(int((self.prediction == self.label).sum()), self.n)

    def frame(self) -> pd.DataFrame:
        """One row a point: index, label, prediction, robust, broken_by."""
        import pandas as pd

        return pd.DataFrame(
            {
                "index": self.index.numpy(),
                "label": self.label.numpy(),
                "prediction": self.prediction.numpy(),
                "robust": self.robust.numpy(),
                "broken_by": list(self.broken_by),
            }
        )

    def summary(self) -> dict[str, Any]:
        """Plain numbers for a file or a table."""
        low, high = self.interval
        return {
            "clean": self.clean_accuracy,
            "robust": self.robust_accuracy,
            "low": low,
            "high": high,
            "n": self.n,
            "attacks": self.attacks,
            "eps": self.eps,
            "subset": self.subset,
            "seed": self.seed,
            "seconds": self.seconds,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        low, high = self.interval
        name = {"standard": "AutoAttack", "lite": "APGD-CE + APGD-T", "pgd": "PGD-50"}[self.attacks]
        return (
            f"clean {self.clean_accuracy:.1%}, robust at most {self.robust_accuracy:.1%} [{low:.1%}, {high:.1%}] "
            f"({name}, eps {self.eps:.4g}, n = {self.n})"
        )

    def to_tree(self) -> dict:
        """For the store: `from_tree` takes it back."""
        return {**vars(self), "broken_by": list(self.broken_by), "warnings": list(self.warnings)}

    @classmethod
    def from_tree(cls, tree: dict) -> Evaluation:
        """What `to_tree` gave."""
        return cls(**{**tree, "broken_by": tuple(tree["broken_by"]), "warnings": tuple(tree["warnings"])})


_TF32 = threading.Lock()
_USERS: list[int] = []
_BEFORE: list[bool] = []


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """float32 means float32: no autocast, no TF32."""
    with _TF32:  # a switch of the whole process: the first user turns it off, the last one puts it back
        if not _USERS:
            _BEFORE[:] = [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        _USERS.append(1)
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        with _TF32:
            _USERS.pop()
            if not _USERS:
                torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = _BEFORE


@torch.no_grad()
def verify(net: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, eps: float) -> Tensor:
    """Which candidates are adversarial: finite, in the box, in the ball, and misclassified twice in full precision.

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
        wrong = (net(safe).argmax(1) != y) & (net(safe).argmax(1) != y)
    return inside & wrong


def _checked(net: nn.Module, x: Tensor, classes: int) -> None:
    """Refuse what cannot be evaluated: images outside [0, 1], logits that are not logits, a network that draws random numbers."""
    if not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise Invalid(
            f"images must lie in [0, 1], these run from {float(x.min()):.3g} to {float(x.max()):.3g}; put normalisation inside the network"
        )
    try:
        with torch.no_grad(), full_precision():
            a, b = net(x[:32]), net(x[:32])
    except RuntimeError as error:
        shape, reason = ", ".join(map(str, x.shape[1:])), str(error).splitlines()[0]
        raise Invalid(f"the network cannot take images of shape (N, {shape}): {reason}") from None
    if not isinstance(a, Tensor) or a.ndim != 2 or a.shape[1] < 2:
        shape = tuple(a.shape) if isinstance(a, Tensor) else type(a).__name__
        raise Invalid(f"a network must return logits of shape (N, classes) with at least 2 classes, this one returned {shape}")
    if not a.isfinite().all():
        raise Invalid("the network returns NaN or infinite logits on clean images; it cannot be evaluated")
    if a.shape[1] < classes:
        raise Invalid(f"the network has {a.shape[1]} outputs but the labels name {classes} classes")
    if not torch.allclose(a, b, atol=1e-5, rtol=1e-4):
        raise Invalid(
            "the network gives different logits for the same images: it draws random numbers, and attacks that look once would "
            "overrate it; evaluate its deterministic form"
        )


def default_batch(device: torch.device) -> int:
    """Images attacked together when nobody says how many."""
    return 128 if device.type == "cpu" else 512


def check_points(n: int | None, dataset: datasets.Dataset) -> None:
    """Refuse a number of points that the test split cannot give."""
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(dataset.test)):
        raise Invalid(
            f"n = {n!r} points asked for, expected 1 to {len(dataset.test)}, the test images of {dataset.name}, or None for all"
        )


def evaluate_stream(
    model: nn.Module,
    data: Any,
    *,
    eps: float | None = None,
    n: int | None = None,
    attacks: str = "standard",
    subset: str = "stratified",
    seed: int = 0,
    batch: int | None = None,
    device: str | torch.device | None = None,
) -> Iterator[Event]:
    """`evaluate` as a stream: an `Attacked` event after every batch; the generator returns the `Evaluation`."""
    if not isinstance(model, nn.Module):
        raise Invalid(f"evaluate takes a torch.nn.Module, got {type(model).__name__}; of a run give run.model")
    attacks, subset = choose(attacks, MODES, "attack mode"), choose(subset, datasets.SUBSETS, "way to draw points")
    dataset = datasets.points(data, eps=eps)
    started = time.perf_counter()
    device = pick_device(device if device is not None else next((p.device for p in model.parameters()), "cpu"))
    check_points(n, dataset)
    index = torch.arange(len(dataset.test)) if n is None else datasets.subset(dataset.test, n, how=subset, seed=seed)
    x, y = dataset.test.images(index).to(device), dataset.test.y[index].to(device)
    net = copy.deepcopy(model).to(device).float().eval().requires_grad_(False)
    _checked(net, x, dataset.classes)
    if batch is None:
        batch = default_batch(device)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise Invalid(f"the batch is {batch!r} images, expected a whole number of at least 1")
    with torch.no_grad(), full_precision():
        logits = torch.cat([net(part) for part in x.split(batch)])
    if not logits.isfinite().all():
        raise Invalid("the network returns NaN or infinite logits on clean images; it cannot be evaluated")
    prediction = logits.argmax(1)
    robust = prediction == y
    broken_by = ["" if ok else "clean" for ok in robust.tolist()]
    total = len(y)
    yield Attacked(stage="evaluate", of=total, metrics={"attack": "clean", "robust": float(robust.float().mean()), "n": total})

    classes = logits.shape[1]
    names, notes = aa.attacks_for(MODES[attacks], classes)
    if attacks == "pgd":
        draw = generator(seed, "pgd", device=device)
        engine = {"pgd": lambda a, b: pgd(net, a, b, eps=dataset.eps, steps=50, generator=draw)}
    else:
        engine = aa.autoattack(net, eps=dataset.eps, classes=classes, seed=seed, device=device, notes=notes)
    kept: list[tuple[int, Tensor]] = []
    for name in names:
        todo = robust.nonzero().squeeze(1)
        done = 0
        while done < len(todo):
            part = todo[done : done + batch]
            try:
                with full_precision():
                    x_adv = engine[name](x[part], y[part])
                broken = part[verify(net, x[part], y[part], x_adv, dataset.eps)]
            except torch.cuda.OutOfMemoryError:
                if batch == 1:
                    raise Invalid("the GPU has no room for a single image; use --device cpu or a smaller network") from None
                torch.cuda.empty_cache()
                batch = max(1, batch // 2)
                notes.append(f"the GPU ran out of memory: attacked in batches of {batch}")
                continue
            robust[broken] = False
            where = {p: i for i, p in enumerate(part.tolist())}
            for i in broken.tolist():
                broken_by[i] = name
                if len(kept) < 32:
                    kept.append((i, x_adv[where[i]].clone()))
            done += len(part)
            yield Attacked(
                stage="evaluate",
                step=done,
                of=len(todo),
                metrics={"attack": name, "robust": float(robust.float().mean()), "n": total},
            )
    return Evaluation(
        index=index.cpu(),
        label=y.cpu(),
        prediction=prediction.cpu(),
        robust=robust.cpu(),
        broken_by=tuple(broken_by),
        attacks=attacks,
        eps=dataset.eps,
        subset="all" if n is None else subset,
        seed=seed,
        seconds=time.perf_counter() - started,
        warnings=tuple(notes),
        examples=_examples(net, x, y, prediction, index, kept),
    )


def _examples(net: nn.Module, x: Tensor, y: Tensor, prediction: Tensor, index: Tensor, kept: list) -> dict[str, Tensor]:
    if not kept:
        return {}
    at = torch.tensor([i for i, _ in kept], device=x.device)
    x_adv = torch.stack([a for _, a in kept])
    with torch.no_grad(), full_precision():
        after = net(x_adv).argmax(1)
    found = {
        "index": index.to(x.device)[at],
        "x": x[at],
        "x_adv": x_adv,
        "label": y[at],
        "before": prediction[at],
        "after": after,
    }
    return {k: v.cpu() for k, v in found.items()}


def evaluate(model: nn.Module, data: Any, **options: Any) -> Evaluation:
    """Attack a network and count what stands.

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, classes); evaluated as a frozen copy in evaluation mode, float32.
        data: "digits", "cifar10", "svhn", "folder:PATH", "npz:PATH", a `Dataset`, or a pair (x, y) of arrays,
            all of which is then attacked.
        eps: radius of the ball (default: the data set's own, 8/255 for colour images).
        n: number of test images, None for all; subset: how they are drawn: stratified, random or first. seed: of the draw and
            of the attacks.
        attacks: standard (AutoAttack), lite (APGD-CE and APGD-T, an upper bound of AutoAttack) or pgd (PGD-50, a quick look).
        batch: images attacked together; verdicts depend on it a little, since attacks draw random numbers for a batch.
        device: where to compute (default: where the model is).

    Returns:
        The `Evaluation`: verdicts, accuracies with n and a Wilson interval.

    Raises:
        Invalid: images outside [0, 1], no logits, a randomised network, too few points.

    Source: Croce and Hein 2020; checks as in the README, "What a verdict is".
    """
    stream = evaluate_stream(model, data, **options)
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value
