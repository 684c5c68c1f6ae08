r"""Flying Bird and Flying Bird+: adversarial training of a sparse network whose connections are rewired all the while.

Chen, Zhang, Wang, Balachandra, Ma, Wang, Wang: "Sparsity Winning Twice: Better Robust Generalization from More Efficient Training",
ICLR 2022, arXiv 2202.09844. Cell: during training, iterative, weights, global, LWM; PGD adversarial training.

1. Draw the masks. Layer l, with :math:`n_l` weights, lacks :math:`\lfloor(1-d_l)n_l\rfloor` of them, uniformly drawn;
   :math:`d_l = 1/(1+f n_l)` with one f for the network ("ideal gas quotas"), so small layers stay almost dense (code).
2. Train on :math:`w \odot m`: after every step weights and momentum of inactive entries are set to zero, while the gradient, that of
   the network as it is, is dense. The attack sees the statistics of the batch and moves the running ones (code).
3. Every ``interval`` steps, ``interval_late`` once the epoch's index (from 0) exceeds half the epochs, rewire each layer by itself:
   of its a active weights the :math:`q = \lceil\rho a\rceil` smallest die, and the q inactive ones with the largest
   :math:`|\partial L/\partial w|` of the adversarial loss of the step are born, at 0 and without momentum; those that have just died
   may be born again and then keep both. :math:`\rho_t = \rho_T + (\rho_0-\rho_T)(1+\cos(\pi t/T))/2`, t of T steps done. A layer
   without inactive weights is left alone. This goes on to the end, so the last newborns may still be exactly zero: they count as kept.
4. The result is the epoch's end with the best validation accuracy under attack, network and masks of that moment.

Flying Bird+ lets the size move in the epochs from ``begin`` on. Over the last ``window`` changes from one epoch to the next, P is
the share in which the robust generalisation gap (training minus validation accuracy, both attacked) grew, G the share in which the
attacked validation loss did not fall. If P reaches ``agreement``, :math:`\lceil 0.4\rho a\rceil` (``more_death``) more die in every
layer, which are not replaced; if G does, int(1.05 q) (``more_growth``) are born instead of q. Both may hold. Before there are as
many changes, which a long run has by then, it is Flying Bird; what the code does then is not known. There is no target size.

Constants (code, CIFAR-10): 200 epochs, SGD 0.1, a tenth of it from half and a hundredth from three quarters of the epochs on,
momentum 0.9, weight decay 5e-4, batch 128, PGD of 10 steps of eps/4 in training and twice as many on validation images, of which
the code has 5000. The paper's own interval and percentages are not known. Which of the two made the survey's networks is not either.

The counts are exact, and among equals the earlier positions die and are born first; the code compares with a threshold, so ties
at it (zeros above all) die together and are replaced by as many. As written it stops at its first rewiring, for want of an option.

``as_released``: every inactive weight is born with the probability q/(number of inactive weights), so counts hold on average only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from apnb.attacks.pgd import ascend, uniform_start
from apnb.chance import generator, uniform
from apnb.errors import Invalid
from apnb.masks import Masks
from apnb.mechanisms import Mechanism, Model, Params, Progress
from apnb.objectives import evaluating
from apnb.training import milestones

if TYPE_CHECKING:
    from apnb.runner import Runner, Stage


def ideal_gas(sizes: Mapping[str, int], sparsity: float) -> dict[str, int]:
    """How many of its ``sizes`` weights each layer lacks at first, never all; together ``sparsity`` of them, but for rounding.

    f is found by bisection on [0, 1e20], until the total is met to within one weight.
    """
    total = sum(sizes.values())
    low, high = 0.0, 1e20
    while True:
        f = (low + high) / 2
        lacks = {name: (1 - 1 / (1 + f * n)) * n for name, n in sizes.items()}
        excess = sum(lacks.values()) / total - sparsity
        if abs(excess) < 1 / total:
            return {name: min(int(x), sizes[name] - 1) for name, x in lacks.items()}
        low, high = (low, f) if excess > 0 else (f, high)


def random_masks(params: Params, lacks: Mapping[str, int], chance: torch.Generator) -> Masks:
    """Masks that lack that many entries of each parameter, drawn uniformly."""
    masks = {}
    for name, k in lacks.items():
        w = params[name]
        masks[name] = (torch.randperm(w.numel(), generator=chance, device=chance.device) >= k).view(w.shape).to(w.device)
    return masks


def without_smallest(mask: Tensor, size: Tensor, k: int) -> Tensor:
    """The mask without its ``k`` entries of smallest ``size``; among equals the earlier go."""
    order = size.masked_fill(~mask, torch.inf).flatten().argsort(stable=True)
    return mask.flatten().scatter(0, order[:k], False).view_as(mask)


def with_largest(mask: Tensor, size: Tensor, k: int) -> Tensor:
    """The mask and the ``k`` entries outside it of largest ``size``; among equals the earlier come."""
    order = size.masked_fill(mask, -torch.inf).flatten().argsort(descending=True, stable=True)
    return mask.flatten().scatter(0, order[:k], True).view_as(mask)


class FlyingBird(Mechanism):
    """Weights that are zero in place, and rewired as they train. ``effective`` is the identity, so gradients are dense.

    Args:
        masks: the first ones; the parameters are masked at once.
        numbers: interval, interval_late, death, death_last.
        chance: source of random growth; None for growth by gradient.
    """

    constant = ("numbers", "chance")

    def __init__(self, params: Params, masks: Masks, numbers: Mapping[str, float], chance: torch.Generator | None = None):
        self.masks, self.numbers, self.chance = dict(masks), numbers, chance
        self.rewirings = 0
        self._zero(params)

    def due(self, step: int, epoch: int, epochs: int) -> bool:
        """Whether to rewire after ``step`` steps, the last of them in ``epoch`` (from 0) of ``epochs``."""
        return step % self.numbers["interval_late" if epoch > epochs / 2 else "interval"] == 0

    def rate(self, step: int, steps: int) -> float:
        """The share of a layer's active weights that dies after ``step`` of ``steps`` steps."""
        first, last = self.numbers["death"], self.numbers["death_last"]
        return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2

    def turnover(self, active: int, rate: float, at: Progress) -> tuple[int, float]:
        """How many of a layer's active weights die, and how many are born."""
        q = min(math.ceil(rate * active), active)
        return q, q

    def update(self, optimizer: Optimizer, at: Progress) -> None:
        optimizer.step()
        self._zero(at.params, optimizer)
        if self.due(at.step + 1, at.epoch, at.epochs):
            self._rewire(at)
            self._zero(at.params, optimizer)
            self.rewirings += 1

    @torch.no_grad()
    def _zero(self, params: Params, optimizer: Optimizer | None = None) -> None:
        for name, mask in self.masks.items():
            params[name].mul_(mask)
            momentum = optimizer.state[params[name]].get("momentum_buffer") if optimizer else None
            if momentum is not None:
                momentum.mul_(mask)

    @torch.no_grad()
    def _rewire(self, at: Progress) -> None:
        rate = self.rate(at.step + 1, at.steps)
        for name, mask in self.masks.items():
            w, n, active = at.params[name], mask.numel(), int(mask.sum())
            if active == n:
                continue
            dying, born = self.turnover(active, rate, at)
            left = without_smallest(mask, w.abs(), dying)
            if self.chance is None:
                self.masks[name] = with_largest(left, w.grad.abs(), int(born))
            else:
                self.masks[name] = left | (uniform(mask, self.chance) < born / (n - active + dying))


class FlyingBirdPlus(FlyingBird):
    """Flying Bird whose size moves with the validation figures of the epochs before.

    Args:
        numbers: also begin, window, agreement, more_death and more_growth.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gaps: list[float] = []  # training minus validation accuracy, of the last epochs
        self.losses: list[float] = []  # attacked validation loss, of the same

    def between_epochs(self, at: Progress) -> None:
        if at.epoch:
            last = -self.numbers["window"] - 1
            self.gaps = [*self.gaps, at.metrics["accuracy"] - at.metrics["val_pgd"]][last:]
            self.losses = [*self.losses, at.metrics["val_loss"]][last:]

    def turnover(self, active: int, rate: float, at: Progress) -> tuple[int, float]:
        dying, born = super().turnover(active, rate, at)
        if at.epoch >= self.numbers["begin"] * at.epochs:
            if self._agree([b > a for a, b in pairwise(self.gaps)]):
                dying = min(dying + math.ceil(rate * self.numbers["more_death"] * active), active)
            if self._agree([b >= a for a, b in pairwise(self.losses)]):
                born = born * (1 + self.numbers["more_growth"])
        return dying, born

    def _agree(self, changes: list[bool]) -> bool:
        window = self.numbers["window"]
        return len(changes) == window > 0 and sum(changes) >= self.numbers["agreement"] * window


def attacked_loss(run: Runner, model: Model, steps: int) -> float:
    """Mean cross entropy (nats) on the validation images after ``steps`` steps of PGD on each, the same start each time."""
    x, y = run.check
    network, draw = model.frozen(), generator(run.recipe.seed, "attacked loss", device=run.device)
    with evaluating(run.net):
        start = uniform_start(x, run.eps, draw)
        x_adv = ascend(network, x, y, start, eps=run.eps, steps=steps, step=2.5 * run.eps / steps)
        with torch.no_grad():
            return float(F.cross_entropy(network(x_adv), y))


def stages(run: Runner):
    """One stage: train and rewire; returns the masks of the best epoch."""
    r, b, c = run.recipe, run.budget, run.constants
    plus = r.method.endswith("+")
    if plus and run.check is None:
        raise Invalid(
            "Flying Bird+ decides by validation images and there are none; take a budget with check above 0, or flyingbird"
        )
    steps = 2 * b.attack_steps

    def watch(model: Model, at: Progress) -> dict[str, float]:
        seen = run.validate_attacked(model, at, steps)
        return seen | {"val_loss": attacked_loss(run, model, steps)} if plus else seen

    def training(s: Stage):
        params, chosen = run.params(), run.target(r.sparsity)
        masks = random_masks(params, ideal_gas(chosen.sizes(), r.sparsity), s.generator)
        mechanism = (FlyingBirdPlus if plus else FlyingBird)(params, masks, c, s.generator if r.as_released else None)
        length = len(s.data)
        of = max(1, sum(mechanism.due(t + 1, t // length, b.epochs) for t in range(b.epochs * length)))
        told = s.resume["mechanism"]["rewirings"] if s.resume else 0
        loss = run.objective(r.training_step, s, attack_bn="train")
        rate = milestones(b.lr, 0.5, 0.75)
        for event in run.fit(s, loss, epochs=b.epochs, lr=rate, mechanism=mechanism, watch=watch, select="val_pgd"):
            yield event
            if told < mechanism.rewirings < of:
                told = mechanism.rewirings
                if told % max(1, of // 10) == 0:  # about ten of them are told, and measured
                    yield run.pruned(mechanism.masks, chosen, step=told, of=of)
        yield run.pruned(mechanism.masks, chosen, step=of, of=of)
        return mechanism.masks

    return (yield from run.stage("training", training))
