r"""Square Attack (Andriushchenko et al. 2020, algorithms 1 and 2), :math:`\ell_\infty`, on the margin.

Proposals and random numbers are those of the authors' program for AutoAttack, and so are the images found. The proposals do not
depend on what was accepted: the list is drawn at once, and each point walks along it at its own pace. It passes over proposals
that would change none of its pixels and over those that it has rejected since it last accepted one (it would again), and looks at
several of the others together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from apnb.attacks.fab import worthwhile

Logits = Callable[[Tensor], Tensor]
SHRINK = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After each of these queries the share of pixels in a square, 0.8 at first, is halved."""


@torch.no_grad()
def square(net: Logits, x: Tensor, y: Tensor, *, eps: float, seed: int, queries: int = 5000, room: int | None = None) -> Tensor:
    r"""Squares of one colour at random places, each kept if it lowers the margin.

    Args:
        net: images -> logits (N, classes), in evaluation mode; no gradient is taken.
        x, y: float32 (N, C, H, W) in [0, 1] and int64 (N,). eps: radius of the :math:`\ell_\infty` ball, in the units of x.
        seed: of the start and the proposals, drawn on the CPU. queries: proposals, the same for all points.
        room: images in one forward pass, where memory is short; by itself as many as are worth it.

    Returns:
        (N, C, H, W): an image whose margin is no longer positive where there was one, not yet verified, and x elsewhere.
    """
    found = x.clone()
    row = (net(x).argmax(1) == y).nonzero().squeeze(1)
    if not len(row):
        return found
    room = room or worthwhile(x)
    x, y = x[row], y[row]
    generator = torch.Generator().manual_seed(seed)
    stripes = (2 * torch.rand(len(x), x.shape[1], 1, x.shape[3], generator=generator) - 1).sign().to(x.device)
    proposals = _Proposals.draw(queries, x, eps, generator)

    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    best = (x + eps * stripes).clamp(0, 1)
    margin = margins(net(best), y)
    at = torch.zeros_like(y)  # the next proposal of each point
    look = torch.ones_like(y)  # how many it looks at together: doubled until one is accepted
    rejected = torch.zeros(len(x), proposals.kinds + 1, dtype=torch.bool, device=x.device)
    while True:
        out = margin <= 0
        found[row[out]] = best[out]
        stay = ~out & (at < queries)
        if not stay.all():
            state = (row, y, low, high, best, margin, at, look, rejected)
            row, y, low, high, best, margin, at, look, rejected = (t[stay] for t in state)
        if not len(row):
            return found
        rejected[:, -1] = True  # what lies behind the end of the list
        most = max(1, room // len(row))
        span = 64 * most
        number = (at[:, None] + torch.arange(span, device=x.device)).clamp(max=queries)
        needed = ~rejected.gather(1, proposals.kind[number])
        count = needed.cumsum(1)
        point, ahead = (needed & (count <= look[:, None])).nonzero(as_tuple=True)
        q = number[point, ahead]
        rejected[point, proposals.kind[q]] = True
        new = (best[point] + proposals.patch(q)).clamp(low[point], high[point])
        changes = (new != best[point]).flatten(1).any(1)
        point, ahead, new = point[changes], ahead[changes], new[changes]
        first = torch.full_like(at, span)  # how far ahead the first improvement lies
        if len(point):
            reached = margins(net(new), y[point])
            lower = reached < margin[point]
            first.scatter_reduce_(0, point, torch.where(lower, ahead, span), "amin")
            taken = lower & (ahead == first[point])
            best[point[taken]], margin[point[taken]] = new[taken], reached[taken]
        accepted = first < span
        rejected &= ~accepted[:, None]
        at += torch.where(accepted, first, (count < look[:, None]).sum(1).clamp(max=span - 1)) + 1
        look = torch.where(accepted, 1, (2 * look).clamp(max=most))


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """How far the label's logit lies above the highest other one (N,): negative if misclassified, 0 for a tie."""
    own = y[:, None]
    return logits.gather(1, own).squeeze(1) - logits.scatter(1, own, -math.inf).amax(1)


@dataclass
class _Proposals:
    """The whole list, on the images' device: one entry, or row, a query."""

    rows: Tensor  # (queries, 1, H, 1): 1 inside the square
    columns: Tensor  # (queries, C, 1, W): 2 eps up or down inside the square
    kind: Tensor  # equal for equal proposals; one entry more, for the end of the list
    kinds: int

    @classmethod
    def draw(cls, queries: int, x: Tensor, eps: float, generator: torch.Generator) -> _Proposals:
        """In the order of the authors' program: row, column, and a sign for each channel of one query after the other."""
        c, h, w = x.shape[1:]
        sides = [min(max(round(math.sqrt(0.8 / 2**k * (c * h * w) / c)), 1), h, w) for k in range(len(SHRINK) + 1)]
        side = torch.tensor(sides)[torch.bucketize(torch.arange(queries), torch.tensor(SHRINK))]
        u = torch.rand(queries, 2 + c, generator=generator)
        top, left, sign = ((h - side) * u[:, 0]).long(), ((w - side) * u[:, 1]).long(), (2 * u[:, 2:] - 1).sign()
        kind = torch.cat([torch.stack([side, top, left], 1), sign.long()], 1).unique(dim=0, return_inverse=True)[1]
        kinds = int(kind.max()) + 1
        below, right = torch.arange(h) - top[:, None], torch.arange(w) - left[:, None]
        rows = ((below >= 0) & (below < side[:, None])).float()[:, None, :, None]
        columns = ((right >= 0) & (right < side[:, None]))[:, None, None, :] * (2.0 * eps * sign)[:, :, None, None]
        kind = torch.cat([kind, torch.tensor([kinds])])
        return cls(rows.to(x.device), columns.to(x.device), kind.to(x.device), kinds)

    def patch(self, q: Tensor) -> Tensor:
        """What these queries add to an image before clipping: (len(q), C, H, W)."""
        return self.rows[q] * self.columns[q]
