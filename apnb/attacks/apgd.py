r"""APGD (Croce and Hein 2020, algorithm 1), on the cross entropy and on the targeted DLR loss, :math:`\ell_\infty`.

Steps, checkpoints and random numbers are those of the authors' program, so that verdicts are equal; broken points leave early.
One of its oddities is kept: the loss at the start counts as 0 where the rises of the loss are counted, whatever it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from apnb.errors import Invalid

Logits = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LEAVE = 4
"""Every so many steps broken points are dropped: asking whether there are any makes a GPU wait."""


@torch.no_grad()
def apgd(
    net: Logits,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    seed: int,
    targets: int | None = None,
    steps: int = 100,
    warn: Callable[[str], None] | None = None,
) -> Tensor:
    r"""Steps along the sign of the gradient with momentum, halved in length where the loss stops rising.

    Args:
        net: images -> logits (N, classes), in evaluation mode; only the input's gradient is taken.
        x, y: float32 (N, C, H, W) in [0, 1] and int64 (N,). eps: radius of the :math:`\ell_\infty` ball, in the units of x.
        seed: of the random starts, drawn on the CPU for all points that stand.
        targets: None for APGD-CE; k for APGD-T, which drives the DLR loss towards the classes ranked 2 to k + 1 on clean images,
            one after the other; a point that is broken is not run on later targets.
        steps: gradient steps a run, at least 1.
        warn: called with a sentence if a gradient of the DLR loss is exactly zero at the start.

    Returns:
        (N, C, H, W): a misclassified iterate where there was one, not yet verified, and x elsewhere.

    Raises:
        Invalid: APGD-T with fewer than 4 classes, or not fewer targets than classes.
    """
    logits = net(x)
    classes = logits.shape[1]
    if targets is not None and not (classes >= 4 and 1 <= targets < classes):
        raise Invalid(
            f"APGD-T got {targets} targets and {classes} classes; it needs 4 classes or more, and fewer targets than classes"
        )
    ranked = logits.argsort(1)
    aims = (y,) if targets is None else tuple(ranked[:, -k] for k in range(2, targets + 2))
    found, broken = x.clone(), logits.argmax(1) != y
    generator = torch.Generator().manual_seed(seed)
    for aim in aims:
        rows = (~broken).nonzero().squeeze(1)
        if not len(rows):
            break
        t = 2 * torch.rand((len(rows), *x.shape[1:]), generator=generator).to(x.device) - 1
        t = t / (wide(t.flatten(1).abs().amax(1)) + 1e-12)
        start = (x[rows] + eps * t).clamp(0, 1)
        loss = cross_entropy if targets is None else dlr
        found[rows], broken[rows] = _run(net, loss, x[rows], y[rows], aim[rows], start, eps, steps, warn)
    return found


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Of the label; the target plays no part. (N,)."""
    return F.cross_entropy(logits, y, reduction="none")


def dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    r""":math:`-(z_y - z_t) / (z_{(1)} - (z_{(3)} + z_{(4)})/2 + 10^{-12})`, z sorted downwards: Croce and Hein 2020, eq. 7. (N,)."""
    z = logits.sort(1).values
    gap = logits.gather(1, y[:, None]) - logits.gather(1, target[:, None])
    return -gap.squeeze(1) / (z[:, -1] - 0.5 * (z[:, -3] + z[:, -4]) + 1e-12)


def wide(t: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1)."""
    return t.view(-1, 1, 1, 1)


@dataclass
class _Points:
    """What a run knows of the points that it still works on: a row each in every tensor."""

    row: Tensor  # where the point lies among those that the run began with
    y: Tensor
    target: Tensor
    low: Tensor  # the ball and the box together
    high: Tensor
    x: Tensor  # the iterate, the one before it, and the gradient to go on with
    before: Tensor
    grad: Tensor
    best: Tensor  # the iterate of highest loss
    best_grad: Tensor
    best_loss: Tensor
    loss: Tensor  # of the last iterate
    rises: Tensor  # how often the loss has risen since the last checkpoint
    step: Tensor
    halved: Tensor  # at the last checkpoint; at the first one it counts as if
    best_then: Tensor  # the highest loss at the last checkpoint
    found: Tensor  # the last misclassified iterate
    broken: Tensor

    def at(self, rows: Tensor) -> _Points:
        return _Points(*(t[rows] for t in vars(self).values()))


def _run(
    net: Logits, loss_of: Loss, x: Tensor, y: Tensor, target: Tensor, start: Tensor, eps: float, steps: int, warn: Callable | None
) -> tuple[Tensor, Tensor]:
    """One run: a misclassified iterate of each point (x where there was none), and whether there was one."""

    def look(at: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at = at.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = net(at)
            loss = loss_of(logits, y, target)
            (grad,) = torch.autograd.grad(loss.sum(), at)
        return loss.detach(), grad, logits.detach().argmax(1) != y

    loss, grad, wrong = look(start, y, target)
    if warn and loss_of is dlr and (flat := int((grad.flatten(1) == 0).all(1).sum())):
        warn(
            f"APGD-T starts with a gradient of exactly zero on {flat} of {len(x)} points: masked, or nothing depends on the input"
        )
    p = _Points(
        row=torch.arange(len(x), device=x.device), y=y, target=target, low=(x - eps).clamp(min=0), high=(x + eps).clamp(max=1),
        x=start, before=start, grad=grad, best=start, best_grad=grad, best_loss=loss, loss=torch.zeros_like(loss),
        rises=torch.zeros_like(y), step=wide(torch.full_like(loss, 2 * eps)), halved=torch.ones_like(wrong), best_then=loss,
        found=torch.where(wide(wrong), start, x), broken=wrong,
    )  # fmt: skip
    found, broken = x.clone(), torch.zeros_like(wrong)

    window, least, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    checkpoint = window
    for i in range(1, steps + 1):
        a = 1.0 if i == 1 else 0.75
        ahead = (p.x + p.step * p.grad.sign()).clamp(p.low, p.high)
        p.x, p.before = (p.x + (ahead - p.x) * a + (p.x - p.before) * (1 - a)).clamp(p.low, p.high), p.x
        loss, p.grad, wrong = look(p.x, p.y, p.target)
        p.found, p.broken = torch.where(wide(wrong), p.x, p.found), p.broken | wrong
        p.rises, p.loss = p.rises + (loss > p.loss), loss
        up = loss > p.best_loss
        p.best_loss = torch.where(up, loss, p.best_loss)
        p.best, p.best_grad = torch.where(wide(up), p.x, p.best), torch.where(wide(up), p.grad, p.best_grad)
        if i == checkpoint:
            p.halved = (p.rises <= 0.75 * window) | (~p.halved & (p.best_then >= p.best_loss))
            back = wide(p.halved)
            p.step = torch.where(back, p.step / 2, p.step)
            p.x, p.grad = torch.where(back, p.best, p.x), torch.where(back, p.best_grad, p.grad)
            p.best_then, p.rises = p.best_loss, torch.zeros_like(p.rises)
            window = max(window - shrink, least)
            checkpoint = i + window
        if (i % LEAVE == 0 or i == steps) and p.broken.any():
            found[p.row[p.broken]], broken[p.row[p.broken]] = p.found[p.broken], True
            p = p.at(~p.broken)
            if not len(p.row):
                break
    return found, broken
