r"""Projected gradient descent in the :math:`\ell_\infty` ball (Madry et al. 2018, eq. 3): in training, and as a quick look."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from apnb.chance import normal, uniform

Logits = Callable[[Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Summed over the batch: each image's gradient is then its own, whatever the batch."""
    return F.cross_entropy(logits, y, reduction="sum")


def divergence_from(clean: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    r""":math:`\sum \mathrm{KL}(p(x)\,\|\,p(x'))` for given clean logits (N, classes): what TRADES ascends."""
    p = clean.detach().log_softmax(1)
    return lambda logits, _: F.kl_div(logits.log_softmax(1), p, log_target=True, reduction="sum")


def uniform_start(x: Tensor, eps: float, generator: torch.Generator, *, clip: bool = True) -> Tensor:
    """x plus uniform noise in [-eps, eps], clipped to [0, 1] unless ``clip`` is False."""
    start = x + (2 * uniform(x, generator) - 1) * eps
    return start.clamp(0, 1) if clip else start


def normal_start(x: Tensor, generator: torch.Generator, std: float = 1e-3) -> Tensor:
    """x plus a little normal noise, unclipped: where TRADES starts, since its gradient is zero at x itself."""
    return x + std * normal(x, generator)


def project(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest point in the ball of radius ``eps`` around ``x`` and in the box [0, 1]."""
    return torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)


def ascend(
    model: Logits, x: Tensor, y: Tensor, start: Tensor, *, eps: float, steps: int, step: float, loss: Callable = cross_entropy
) -> Tensor:
    """``steps`` signed gradient steps of size ``step`` from ``start``; returns the last iterate, detached.

    Args:
        model: images -> logits. Only the input's gradient is taken: parameters get none.
        x, start: (N, C, H, W) in [0, 1]; y: int64 (N,); eps, step: in the units of x.
    """
    x_adv = start.detach()
    with torch.enable_grad():
        for _ in range(steps):
            x_adv.requires_grad_(True)
            (g,) = torch.autograd.grad(loss(model(x_adv), y), x_adv)
            x_adv = project(x_adv.detach() + step * g.sign(), x, eps)
    return x_adv.detach()


def pgd(model: Logits, x: Tensor, y: Tensor, *, eps: float, steps: int = 20, generator: torch.Generator) -> Tensor:
    """An attack for evaluation: any misclassified iterate counts, and broken images are not attacked further.

    Steps of size ``2.5 * eps / steps`` from a uniform start. Returns (N, C, H, W): an adversarial image where one was found,
    ``x`` itself elsewhere. Source: Madry et al. 2018, section 5.
    """
    found = x.detach().clone()
    todo = torch.arange(len(x), device=x.device)
    x_adv = uniform_start(x, eps, generator)
    for _ in range(steps + 1):
        with torch.enable_grad():
            x_adv.requires_grad_(True)
            logits = model(x_adv)
            (g,) = torch.autograd.grad(cross_entropy(logits, y[todo]), x_adv)
        x_adv = x_adv.detach()
        broken = logits.argmax(1) != y[todo]
        found[todo[broken]] = x_adv[broken]
        todo, x_adv, g = todo[~broken], x_adv[~broken], g[~broken]
        if not len(todo):
            break
        x_adv = project(x_adv + 2.5 * eps / steps * g.sign(), x[todo], eps)
    return found
