"""What a training stage minimises: functions (model, x, y, progress) -> (scalar loss, logits on what was trained on).

Each is made for one stage by `objective`, with the stage's own random generator. The attack inside sees the network with its
parameters frozen and, unless a method is known to do otherwise, in evaluation mode; the loss sees it in the mode of the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apnb.attacks.pgd import ascend, cross_entropy, divergence_from, normal_start, uniform_start
from apnb.errors import Invalid, nearest

if TYPE_CHECKING:
    from apnb.mechanisms import Model

Objective = Callable[..., tuple[Tensor, Tensor]]

STARTS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "image": lambda x, eps, generator: x,
    "uniform": uniform_start,
    "unclipped": partial(uniform_start, clip=False),
    "normal": lambda x, eps, generator: normal_start(x, generator),
}
"""Where an attack starts: the image itself; uniform noise in the ball, clipped to [0, 1] or not; a little normal noise."""


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """The network in evaluation mode, put back as it was at the end, module by module."""
    modes = [(m, m.training) for m in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def objective(
    key: str,
    *,
    eps: float,
    steps: int,
    generator: torch.Generator,
    teacher: nn.Module | None = None,
    reach: float = 2.5,
    start: str | None = None,
    attack_bn: str = "eval",
    passes: tuple[str, ...] = (),
    beta: float | None = None,
) -> Objective:
    """The objective named ``key`` (one of `apnb.recipes.TRAINABLE`).

    Args:
        eps: radius of the training attack in the units of the images.
        steps: its gradient steps (FGSM and fast AT make one). A step is ``reach * eps / steps`` long.
        generator: source of random starts. start: one of `STARTS` for PGD, TRADES and MART (default: uniform, normal, normal).
        teacher: for ``kd``, the network to imitate.
        attack_bn: "eval", or "train" where a method attacks with the statistics of the batch, which moves the running ones at
            each of its forward passes.
        passes: further passes of the clean batch, for their effect on the running statistics alone: "before" the attack,
            "between" the attack and the loss, "after" the loss's own passes.
        beta: weight of the second term of TRADES (6) or MART (5).

    Raises:
        Invalid: an unknown key, or ``kd`` without a teacher.
    """
    step = reach * eps / max(steps, 1)

    def attacking(model: Model):
        return evaluating(model.net) if attack_bn == "eval" else nullcontext()

    def begin(x: Tensor, usual: str) -> Tensor:
        return STARTS[start or usual](x, eps, generator)

    def look(model: Model, x: Tensor, when: str) -> None:
        if when in passes:
            with torch.no_grad():
                model(x)

    def natural(model: Model, x: Tensor, y: Tensor, at) -> tuple[Tensor, Tensor]:
        """Cross entropy on the images as they are."""
        logits = model(x)
        return F.cross_entropy(logits, y), logits

    def on_attacked(attack: Callable[[Model, Tensor, Tensor], Tensor]) -> Objective:
        """Cross entropy on attacked images: the min-max objective of Madry et al. 2018, eq. 2.1."""

        def loss(model: Model, x: Tensor, y: Tensor, at) -> tuple[Tensor, Tensor]:
            with attacking(model):
                x_adv = attack(model.frozen(), x, y)
            look(model, x, "between")
            return natural(model, x_adv, y, at)

        return loss

    def fgsm(model: Model, x: Tensor, y: Tensor) -> Tensor:
        """One step of length eps from the image itself: Goodfellow et al. 2015, section 4."""
        return ascend(model, x, y, x, eps=eps, steps=1, step=eps)

    def fast(model: Model, x: Tensor, y: Tensor) -> Tensor:
        """One step of length 1.25 eps from a uniform start: Wong et al. 2020, algorithm 3."""
        return ascend(model, x, y, uniform_start(x, eps, generator), eps=eps, steps=1, step=1.25 * eps)

    def several(model: Model, x: Tensor, y: Tensor) -> Tensor:
        """PGD from a uniform start: Madry et al. 2018, section 2.1."""
        return ascend(model, x, y, begin(x, "uniform"), eps=eps, steps=steps, step=step)

    def trades(model: Model, x: Tensor, y: Tensor, at) -> tuple[Tensor, Tensor]:
        r""":math:`\mathrm{CE}(f(x), y) + \beta\,\mathrm{KL}(p(x)\,\|\,p(x'))`, Zhang et al. 2019, eq. 5; gradient through both."""
        with attacking(model):
            frozen = model.frozen()
            with torch.no_grad():
                clean = frozen(x)
            x_adv = ascend(frozen, x, y, begin(x, "normal"), eps=eps, steps=steps, step=step, loss=divergence_from(clean))
        look(model, x, "between")
        clean, attacked = model(x), model(x_adv)
        kl = F.kl_div(attacked.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="batchmean")
        return F.cross_entropy(clean, y) + (6.0 if beta is None else beta) * kl, attacked

    def mart(model: Model, x: Tensor, y: Tensor, at) -> tuple[Tensor, Tensor]:
        r"""Boosted cross entropy on x' plus :math:`\beta\,\mathrm{KL}(p(x)\|p(x'))(1 - p_y(x))`: Wang et al. 2020, eq. 12."""
        with attacking(model):
            x_adv = ascend(model.frozen(), x, y, begin(x, "normal"), eps=eps, steps=steps, step=step, loss=cross_entropy)
        look(model, x, "between")
        clean, attacked = model(x), model(x_adv)
        p, log_p, log_q = clean.softmax(1), clean.log_softmax(1), attacked.log_softmax(1)
        wrong = attacked.softmax(1).scatter(1, y[:, None], 0.0).amax(1)
        boosted = F.cross_entropy(attacked, y) - (1.0001 - wrong + 1e-12).log().mean()
        kl = (p * (log_p - log_q)).sum(1)
        unsure = 1.0000001 - p.gather(1, y[:, None]).squeeze(1)
        return boosted + (5.0 if beta is None else beta) * (kl * unsure).mean(), attacked

    def kd(model: Model, x: Tensor, y: Tensor, at, alpha: float = 0.9, temperature: float = 4.0) -> tuple[Tensor, Tensor]:
        r""":math:`\alpha T^2\,\mathrm{KL}(q_T\|p_T) + (1-\alpha)\,\mathrm{CE}`, q the teacher: Hinton et al. 2015, section 2."""
        with torch.no_grad():
            soft = (teacher(x) / temperature).log_softmax(1)
        logits = model(x)
        kl = F.kl_div((logits / temperature).log_softmax(1), soft, log_target=True, reduction="batchmean")
        return alpha * temperature**2 * kl + (1 - alpha) * F.cross_entropy(logits, y), logits

    if key == "kd":
        if teacher is None:
            raise Invalid("the objective 'kd' (knowledge distillation) needs a teacher network, and none was given")
        teacher.eval().requires_grad_(False)
    made = {
        "natural": natural,
        "fgsm": on_attacked(fgsm),
        "fast_at": on_attacked(fast),
        "pgd_at": on_attacked(several),
        "trades": trades,
        "mart": mart,
        "kd": kd,
    }
    if key not in made:
        raise Invalid(f"no objective {key!r} to train with; did you mean {nearest(key, made)}?")
    chosen = made[key]

    def around(model: Model, x: Tensor, y: Tensor, at) -> tuple[Tensor, Tensor]:
        look(model, x, "before")
        result = chosen(model, x, y, at)
        look(model, x, "after")
        return result

    return around if {"before", "after"} & set(passes) else chosen
