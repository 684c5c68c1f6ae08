r"""Fast minimum norm: the smallest :math:`\ell_\infty` perturbation that changes the verdict, point by point.

FMN (Pintor et al. 2021) walks along the boundary: while the image is classified correctly the radius grows, once it is not the
radius shrinks, and the perturbation follows a loss inside it. HO-FMN (Mura et al. 2024) leaves open which loss, optimiser and
schedule follow it, and moves by the sign of the gradient: a `Configuration` names one such choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn

from apnb.errors import Invalid, choose

LOSSES = ("dlr", "ce", "ll")
OPTIMIZERS = ("sgd", "adam", "adamax")
SCHEDULES = ("cosine", "none")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One way to run FMN.

    Attributes:
        loss: dlr (difference of logits ratio), ce (cross entropy) or ll (difference of logits). Fewer than three classes have no
            DLR: LL is taken there. CE pulls away from all competitors at once, so it may end beyond the nearest one.
        optimizer: sgd, adam or adamax, of the perturbation. They see signs, whose squares are 1: without weight_decay Adam and
            Adamax are the same moving average. schedule: of ``lr``, a cosine or none.
        steps: forward passes; one backward pass fewer, since nothing follows the last.
        lr: of the first step, in radii: the perturbation of a point moves by ``lr`` times its current radius, so the attack is the
            same whether distances are 0.2 or 0.0002. final: where the cosine ends, as a share of ``lr``.
        momentum, dampening: of SGD. betas: of Adam and Adamax. weight_decay: of all three, on the perturbation in radii.
        as_released: the algorithm of the survey's code. The radius starts at the largest perturbation that the box allows and only
            shrinks by its own factor, so no distance below `floor` of it can be found; ``lr`` and ``weight_decay`` are in the units
            of the image; the gradient of CE is that of CE itself, which underflows.

    Raises:
        Invalid: a name that is none of these, a number outside its range.
    """

    loss: str = "dlr"
    optimizer: str = "sgd"
    schedule: str = "cosine"
    steps: int = 200
    lr: float = 1.0
    final: float = 0.01
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    as_released: bool = False

    def __post_init__(self):
        for field, known in (("loss", LOSSES), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            object.__setattr__(self, field, choose(getattr(self, field), known, f"{field} of FMN"))
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 2:
            raise Invalid(f"FMN was given {self.steps!r} steps, expected a whole number of at least 2")
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise Invalid(f"betas of FMN are {self.betas!r}, expected two numbers from 0 up to, not including, 1")
        object.__setattr__(self, "betas", tuple(self.betas))
        below_one = math.nextafter(1, 0)
        for field, value, low, high in (
            ("lr", self.lr, math.ulp(0.0), math.inf),
            ("final", self.final, 0, 1),
            ("momentum", self.momentum, 0, below_one),
            ("dampening", self.dampening, 0, 1),
            ("weight_decay", self.weight_decay, 0, math.inf),
            ("betas", self.betas[0], 0, below_one),
            ("betas", self.betas[1], 0, below_one),
        ):
            if isinstance(value, bool) or not isinstance(value, Real) or not (low <= value <= high and value < math.inf):
                span = {math.inf: f"above {'' if low else 'or equal to '}0", 1: "from 0 to 1"}
                raise Invalid(
                    f"{field} of FMN is {value!r}, expected a number {span.get(high, 'from 0 up to, not including, 1')}"
                )

    @property
    def name(self) -> str:
        """As in HO-FMN's tables: "DLR-SGD-cosine"."""
        optimizer = {"sgd": "SGD", "adam": "Adam", "adamax": "Adamax"}[self.optimizer]
        return f"{self.loss.upper()}-{optimizer}" + ("" if self.schedule == "none" else f"-{self.schedule}")


def fmn(net: nn.Module, x: Tensor, y: Tensor, configuration: Configuration | None = None) -> tuple[Tensor, Tensor]:
    r"""The closest adversarial image found for each point.

    The radius of a point (:math:`\varepsilon`), its perturbation's norm being :math:`n`, its loss :math:`L` with gradient
    :math:`g`, and :math:`\gamma` falling from 0.05 to 0.001:

    - no adversarial yet: the larger of :math:`(1+\gamma)\varepsilon` and :math:`n + |L| / \|g\|_1`, where the boundary would be
      if the network were linear (Pintor et al., section 2);
    - only adversarials since the first: the boundary of the linear network inwards, :math:`n - |L| / \|g\|_1`, at least
      :math:`n/2` and at most :math:`(1-\gamma)\varepsilon`;
    - both seen since: :math:`(1-\gamma)\varepsilon` after an adversarial, :math:`(1+\gamma)\varepsilon` after a miss.

    It never exceeds what the box allows, nor the best distance while adversarial. The second rule is not in the paper: where the
    first estimate is far too large (saturated outputs, say a softmax), the third alone would need hundreds of steps to come back,
    and distances below :math:`\prod(1-\gamma_i)` of the start could not be found in ``steps``. With it that floor is gone.

    Points do not influence each other. Nothing is drawn at random, no parameter gets a gradient, and the device is never waited for.

    Args:
        net: images -> logits (N, classes), in evaluation mode; frozen parameters save memory.
        x: float (N, C, H, W) in [0, 1]. y: int64 (N,), on the same device.
        configuration: default DLR, SGD, cosine, 200 steps.

    Returns:
        adversarial (N, C, H, W): in [0, 1], misclassified; ``x`` where none was found or needed.
        distance (N,), of the type of x: :math:`\|adversarial - x\|_\infty`, to the bit; 0 where x is misclassified, inf where no
        adversarial was found.

    Source: Pintor et al. 2021, algorithm 1; signs, losses and optimisers as in Mura et al. 2024.
    """
    c = configuration or Configuration()
    direction, objective = _DIRECTIONS[c.optimizer](c), _OBJECTIVES[c.loss]
    worst = torch.maximum(x, 1 - x).flatten(1).amax(1)
    eps = worst if c.as_released else torch.zeros_like(worst)
    adversarial, distance = x, torch.full_like(worst, math.inf)
    found = bracketed = torch.zeros_like(y, dtype=torch.bool)
    x_adv = x
    for i in range(c.steps):
        x_adv = x_adv.detach().requires_grad_()
        with torch.enable_grad():
            logits = net(x_adv)
            loss = objective(logits, y, c.as_released)
        wrong, norm = logits.argmax(1) != y, _norm(x_adv.detach() - x)
        closer = wrong & (norm < distance)
        adversarial, distance = torch.where(_over(closer, x), x_adv.detach(), adversarial), torch.where(closer, norm, distance)
        bracketed, found = bracketed | (found & ~wrong), found | wrong
        if i == c.steps - 1:
            break
        g = _gradient(loss, x_adv)
        gamma = _gamma(i, c.steps)
        inwards = torch.minimum(eps * (1 - gamma), distance)
        if c.as_released:
            outwards = worst
        else:
            reach = (loss.detach().abs() / g.flatten(1).abs().sum(1)).nan_to_num(0).clamp_min(torch.finfo(x.dtype).eps)
            outwards = torch.maximum(eps * (1 + gamma), norm + reach)
            inwards = torch.where(bracketed, inwards, torch.minimum(inwards, torch.maximum(norm - reach, norm / 2)))
        eps = torch.where(wrong, inwards, torch.where(found, eps * (1 + gamma), outwards)).minimum(worst)
        unit = 1.0 if c.as_released else _over(eps.clamp_min(torch.finfo(x.dtype).tiny), x)
        delta = x_adv.detach() - x
        delta = delta - _rate(c, i) * unit * direction(g.sign() + c.weight_decay * delta / unit)
        x_adv = (x + delta.clamp(_over(-eps, x), _over(eps, x))).clamp(0, 1)
    return adversarial, distance


def floor(steps: int) -> float:
    r"""The smallest distance that FMN ``as_released`` can find in so many steps with ``lr`` of 1 or more, as a share of the
    largest perturbation that the box allows: :math:`\prod_{i=1}^{K-2} (1 - \gamma_i)`, 0.076 for 100 steps.
    """
    return math.prod(1 - _gamma(i, steps) for i in range(1, steps - 1))


# ------------------------------------------------------------------------------------------------- what is descended, and how


def _margin(logits: Tensor, y: Tensor, as_released: bool = False) -> Tensor:
    r"""LL: :math:`z_y - \max_{j \ne y} z_j`, (N,)."""
    own, others = _split(logits, y)
    return own - others.amax(1)


def _log_odds(logits: Tensor, y: Tensor, as_released: bool) -> Tensor:
    r"""CE as :math:`\log p_y - \log(1 - p_y) = z_y - \log\sum_{j \ne y} e^{z_j}`, (N,).

    It falls strictly as cross entropy rises, so their gradients have opposite signs; but this one does not vanish where the network
    is sure, and its zero is near the boundary, so that its linear extrapolation means something.
    """
    if as_released:
        return logits.log_softmax(1).gather(1, y[:, None]).squeeze(1)
    own, others = _split(logits, y)
    return own - others.logsumexp(1)


def _dlr(logits: Tensor, y: Tensor, as_released: bool) -> Tensor:
    r"""DLR: :math:`(z_y - \max_{j \ne y} z_j) / (z_{(1)} - z_{(3)})`, (N,), :math:`z_{(k)}` the k-th highest.

    It is constant where y ranks third or lower: there LL takes its place, as it does for fewer than three classes.
    """
    margin = _margin(logits, y)
    if logits.shape[1] < 3:
        return margin
    first, second, third = logits.topk(3, dim=1).values.unbind(1)
    ratio = margin / (first - third + 1e-12)
    return ratio if as_released else torch.where(margin < second - first, margin, ratio)


_OBJECTIVES: dict[str, Callable[[Tensor, Tensor, bool], Tensor]] = {"dlr": _dlr, "ce": _log_odds, "ll": _margin}


def _sgd(c: Configuration) -> Callable[[Tensor], Tensor]:
    """b <- momentum b + (1 - dampening) d; the first d is not damped."""
    b = None

    def direction(d: Tensor) -> Tensor:
        nonlocal b
        b = d if b is None else c.momentum * b + (1 - c.dampening) * d
        return b

    return direction


def _adam(c: Configuration) -> Callable[[Tensor], Tensor]:
    """Kingma and Ba 2015, algorithm 1."""
    m = v = t = 0

    def direction(d: Tensor) -> Tensor:
        nonlocal m, v, t
        (one, two), t = c.betas, t + 1
        m, v = one * m + (1 - one) * d, two * v + (1 - two) * d * d
        return m / (1 - one**t) / ((v / (1 - two**t)).sqrt() + 1e-8)

    return direction


def _adamax(c: Configuration) -> Callable[[Tensor], Tensor]:
    """Kingma and Ba 2015, algorithm 2."""
    m, u, t = 0, None, 0

    def direction(d: Tensor) -> Tensor:
        nonlocal m, u, t
        (one, two), t, size = c.betas, t + 1, d.abs() + 1e-8
        m, u = one * m + (1 - one) * d, size if u is None else torch.maximum(two * u, size)
        return m / (1 - one**t) / u

    return direction


_DIRECTIONS: dict[str, Callable[[Configuration], Callable[[Tensor], Tensor]]] = {"sgd": _sgd, "adam": _adam, "adamax": _adamax}


# ------------------------------------------------------------------------------------------------------------------ small parts


def _cosine(i: int, steps: int) -> float:
    """From 1 at the first step towards 0 at the end."""
    return (1 + math.cos(math.pi * i / steps)) / 2


def _gamma(i: int, steps: int) -> float:
    """By what share the radius changes after step i."""
    return 0.001 + 0.049 * _cosine(i, steps)


def _rate(c: Configuration, i: int) -> float:
    return c.lr if c.schedule == "none" else c.lr * (c.final + (1 - c.final) * _cosine(i, c.steps))


def _gradient(loss: Tensor, x: Tensor) -> Tensor:
    """Of each point's loss by its own image; 0 where the logits do not depend on the images, or overflow."""
    if not loss.requires_grad:
        return torch.zeros_like(x)
    (g,) = torch.autograd.grad(loss, x, torch.ones_like(loss), materialize_grads=True)
    return g.nan_to_num(0)


def _split(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of the label, (N,), and all logits with that one at -inf."""
    return logits.gather(1, y[:, None]).squeeze(1), logits.scatter(1, y[:, None], -math.inf)


def _norm(delta: Tensor) -> Tensor:
    return delta.flatten(1).abs().amax(1)


def _over(values: Tensor, x: Tensor) -> Tensor:
    """One value a point, broadcast over its image."""
    return values.view(-1, *[1] * (x.ndim - 1))
