r"""FAB-T (Croce and Hein 2020, "Minimally distorted adversarial examples", algorithm 1), targeted, :math:`\ell_\infty`.

The numbers are those of the authors' program for AutoAttack. FAB draws nothing at random and knows no radius, so that its targets
are independent of each other: several are run side by side where one alone would leave the machine idle.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from apnb.errors import Invalid

Logits = Callable[[Tensor], Tensor]
ALPHA, ETA, BETA = 0.1, 1.05, 0.9  # largest pull towards the clean image, overshoot, share of the way kept after a success


@torch.no_grad()
def fab(
    net: Logits,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    targets: int = 9,
    steps: int = 100,
    all_targets: bool = False,
    room: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Walks along the decision boundary towards the nearest misclassified image, once for each target class.

    Args:
        net: images -> logits (N, classes), in evaluation mode; only the input's gradient is taken.
        x, y: float32 (N, C, H, W) in [0, 1] and int64 (N,). eps: radius of the :math:`\ell_\infty` ball, in the units of x.
        targets: how many classes: those ranked 2 to targets + 1 on clean images. steps: iterations for each.
        room: images in one forward pass, where memory is short; by itself as many as are worth it.
        all_targets: go on to the last target with points that are broken already, for the sake of ``closest``.

    Returns:
        x_adv: the image found for the first target that gives one within ``eps``, as AutoAttack returns it, and x where none does;
        closest: the nearest image found, however far away, and x where there is none. Both (N, C, H, W), not yet verified.

    Raises:
        Invalid: not fewer targets than classes.
    """
    logits = net(x)
    if not 1 <= targets < logits.shape[1]:
        raise Invalid(
            f"FAB-T got {targets} targets and {logits.shape[1]} classes; it needs 1 target or more, and fewer than classes"
        )
    x_adv, closest, least = x.clone(), x.clone(), torch.full((len(x),), math.inf, device=x.device)
    broken = logits.argmax(1) != y
    aims = logits.argsort(1)[:, -targets - 1 : -1].flip(1).T
    rows = (~broken).nonzero().squeeze(1)
    while len(rows) and len(aims):
        several = max(1, (room or worthwhile(x)) // len(rows))
        now, aims = aims[:several, rows], aims[several:]
        point = rows.repeat(len(now))
        found, distance = (t.unflatten(0, now.shape) for t in _walk(net, x[point], y[point], now.flatten(), steps))
        each = torch.arange(len(rows), device=x.device)
        nearest = distance.amin(0)
        nearer, hit = nearest < least[rows], (nearest <= eps) & ~broken[rows]
        closest[rows[nearer]] = found[distance.argmin(0), each][nearer]
        x_adv[rows[hit]] = found[(distance <= eps).int().argmax(0), each][hit]
        least[rows] = torch.minimum(nearest, least[rows])
        broken[rows] |= hit
        rows = rows if all_targets else rows[~hit]
    return x_adv, closest


def worthwhile(x: Tensor) -> int:
    """Images that are worth a forward pass together: as many as the caller took, or more where overhead would dominate."""
    return max(len(x), 512 if x.is_cuda else min(256, 2**16 // x[0].numel()))


def _walk(net: Logits, clean: Tensor, y: Tensor, target: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Each image towards its target: the nearest misclassified image met (the clean one if none) and its distance (or infinity)."""
    at, found, nearest = clean, clean, torch.full((len(clean),), math.inf, device=clean.device)
    for _ in range(steps):
        at = at.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = net(at)
            lead = logits.gather(1, y[:, None]) - logits.gather(1, target[:, None])
            (grad,) = torch.autograd.grad(-lead.sum(), at)
        at, w = at.detach(), grad.flatten(1)
        b = lead.detach().squeeze(1) + (w * at.flatten(1)).sum(1)
        move = project(torch.cat([at, clean]).flatten(1), w.repeat(2, 1), b.repeat(2))
        size_at, size_clean = move.abs().amax(1).clamp(min=1e-8).view(2, -1, 1, 1, 1)
        from_at, from_clean = move.view(2, *clean.shape)
        alpha = (size_at / (size_at + size_clean)).clamp(max=ALPHA)
        at = ((at + ETA * from_at) * (1 - alpha) + (clean + ETA * from_clean) * alpha).clamp(0, 1)
        wrong, delta = net(at).argmax(1) != y, at - clean
        distance = delta.flatten(1).abs().amax(1)
        nearer = wrong & (distance < nearest)
        found, nearest = torch.where(nearer.view(-1, 1, 1, 1), at, found), torch.where(nearer, distance, nearest)
        at = torch.where(wrong.view(-1, 1, 1, 1), clean + delta * BETA, at)
    return found, nearest


def project(t: Tensor, w: Tensor, b: Tensor) -> Tensor:
    r"""The smallest :math:`\ell_\infty` move from each point onto its hyperplane inside the box: Croce and Hein 2020, eq. 6.

    Every coordinate goes the same way :math:`\lambda` towards the plane, or to its wall of the box if that is nearer. How far this
    takes the point is piecewise linear in :math:`\lambda`, with a corner at each distance to a wall: these are sorted, and the
    piece on which the plane lies is found by bisection.

    Args:
        t: (N, D) in [0, 1]. w: (N, D) and b: (N,), the planes :math:`\langle w, \cdot\rangle = b`.

    Returns:
        (N, D): the move; where the plane does not meet the box, the one into the nearest corner.
    """
    short = b - (w * t).sum(1)
    side = torch.where(short <= 0, 1.0, -1.0)  # turned so that the point lies above the plane and has to come down
    w, short = w * side[:, None], short * side
    wall = torch.where(w < 0, 1 - t, t)
    slope = w.abs()
    deepest = -(slope * wall).sum(1)
    walls, order = wall.sort(1)
    walls, slopes = walls.flip(1), slope.gather(1, order.flip(1))  # from the farthest wall to the nearest
    s = slopes.cumsum(1)
    at_zero = (slopes * walls).cumsum(1) + deepest[:, None]  # each piece, continued to lambda = 0
    above = short[:, None] - (at_zero - s * walls) > 0  # the plane lies above this corner

    last = w.shape[1] - 1
    low, high = torch.zeros_like(order[:, :1]), torch.full_like(order[:, :1], last)
    for _ in range(math.ceil(math.log2(last + 1))):
        middle = (low + high) // 2
        here = above.gather(1, middle)
        low, high = torch.where(here, middle, low), torch.where(here, high, middle)
    piece = torch.where(above[:, -1:], last, low)
    way = ((short[:, None] - at_zero.gather(1, piece)) / -s.gather(1, piece)).clamp(min=0)
    meets = (short > deepest)[:, None] | above[:, -1:]
    return -w.sign() * torch.where(meets, torch.minimum(way, wall), wall)
