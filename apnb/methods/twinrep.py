r"""TwinRep: train products of two factors, whose weight decay makes the products sparse, and cut them once on the way.

Li, Qiu, Zhang, Guo, Cheng: "Learning Adversarially Robust Sparse Networks via Weight Reparameterization", AAAI 2023,
doi 10.1609/aaai.v37i7.26027. Cell: during training, one-shot, weights or channels (here output filters), global, RELWM.

1. Every convolution and linear layer, the first and the shortcuts among them, runs on a product V of two factors that both learn:
   :math:`V = W \odot A` for weights; for filters :math:`V = A W`, A of shape (O, O) mixing the O output filters. Weight decay
   :math:`\lambda` on both is a lasso on V in disguise, :math:`\min_{wa=v} \frac{\lambda}{2}(w^2+a^2) = \lambda|v|`, and with filters
   a nuclear norm, :math:`\lambda\|V\|_*`.
2. Just before the training pass of epoch ``cut``, counted from 1, cut once over the whole network: of N weights the round(rN)
   smallest |V|; of the F filters of all convolutions the round(rF) of smallest :math:`\|V_p\|_2`, but no layer's largest. A layer may
   lose all of its weights, never all of its filters.
3. Go on under the masks M with both factors on :math:`V \odot M`: same optimizer and its momentum, same schedule.
4. What is left is a plain network with :math:`V \odot M` for its weights. A batch norm behind a removed filter still emits its shift.

W starts as the layer was made, A Kaiming-uniform with :math:`a = \sqrt 5` on its own shape; in PyTorch's usual start V then has the
standard deviation 1/(3 fan_in), which only batch norm can make up for (code).

Constants (code): 100 epochs, cut before the 10th; SGD 0.1, a tenth of it from epoch 0.7 E and a hundredth from 0.85 E on, counted
from 1, momentum 0.9, weight decay 2e-4 on everything; batch 128. PGD of 10 steps from a little normal noise, also for plain
adversarial training; their eps is 0.031 and their step 0.0078, here the data set's eps (8/255) and a quarter of it. TRADES with
beta 6 makes one further pass of the clean batch behind the loss. The paper's weight decay is not known, nor with which of the two
losses the survey's networks were trained. The authors keep the best epoch on test images; here the last one is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from apnb.errors import Invalid
from apnb.masks import Masks, Target, expand
from apnb.mechanisms import Group, Mechanism, Params, Progress
from apnb.training import Schedule, bake_, milestones

if TYPE_CHECKING:
    from apnb.runner import Runner, Stage


class Factors(Mechanism):
    """Weights that are products of a parameter and a second factor; cut once, by the size of the product.

    Args:
        target: what is cut; its structure also says which product it is. names: the parameters that are reparameterised.
        cut: the epoch, counted from 1, before which that happens; 1 or the last one where it lies outside.
        chance: what the second factors are drawn from.
    """

    constant = ("target", "cut")

    def __init__(self, params: Params, target: Target, names: tuple[str, ...], *, cut: int, chance: torch.Generator):
        self.target, self.cut = target, cut
        self.masks: Masks = {}
        self.factors = {n: self._second(params[n], chance) for n in names}

    def _second(self, w: Tensor, chance: torch.Generator) -> nn.Parameter:
        shape = w.shape if self.target.structure == "weights" else (len(w), len(w))
        a = nn.init.kaiming_uniform_(torch.empty(shape, device=chance.device), a=5**0.5, generator=chance)
        return nn.Parameter(a.to(w.device))

    def groups(self, params: Params) -> list[Group]:
        return [{"params": [*params.values(), *self.factors.values()]}]

    def product(self, w: Tensor, a: Tensor) -> Tensor:
        """V, in the shape of ``w`` (O, I, h, w) or (O, I)."""
        return w * a if self.target.structure == "weights" else (a @ w.flatten(1)).view(w.shape)

    def effective(self, params: Params) -> Params:
        v = {n: self.product(params[n], a) for n, a in self.factors.items()}
        return params | v | {n: v[n] * m for n, m in self.masks.items()}

    def between_epochs(self, at: Progress) -> None:
        if at.epoch + 1 == max(1, min(self.cut, at.epochs)):
            self.masks = smallest_cut({n: v.detach() for n, v in self.effective(at.params).items()}, self.target)


def smallest_cut(weights: Params, target: Target) -> Masks:
    """Masks without the smallest |v|, or without the filters of smallest norm but the largest of each layer."""
    if target.structure == "weights":
        return target.select({n: v.abs() for n, v in weights.items()})
    norms = {n: weights[n].flatten(1).norm(dim=1) for n in target.sizes()}
    kept = target.rank(norms)
    for n, k in kept.items():
        if not k.any():
            k[norms[n].argmax()] = True
    return expand(kept, target.structure, target.layers)


def target(run: Runner) -> Target:
    """Of the weights of all layers, or of the filters of all convolutions, the round(r N) smallest go.

    Raises:
        Invalid: nothing to cut, or nothing left of it.
    """
    r = run.recipe
    layers = run.layers if r.units == "weights" else tuple(layer for layer in run.layers if layer.kind == "conv")
    if not layers:
        raise Invalid(f"TwinRep removes filters of convolutions and {run.network_name} has none; choose structure='weights'")
    return Target(layers, r.units, "global", r.sparsity).unguarded()


def one_based(peak: float) -> Schedule:
    """A tenth of ``peak`` from epoch 0.7 E, a hundredth from epoch 0.85 E on, counted from 1."""
    rate = milestones(peak, 0.7, 0.85)
    return lambda at: rate(replace(at, epoch=at.epoch + 1))


def stages(run: Runner):
    """One stage: train the products, cut them on the way."""
    r, b = run.recipe, run.budget
    chosen = target(run)

    def training(s: Stage):
        options = {"passes": ("after",)} if r.training_step == "trades" else {"start": "normal"}
        loss = run.objective(r.training_step, s, **options)
        names = tuple(layer.name for layer in run.layers)
        mechanism = Factors(run.params(), chosen, names, cut=run.constants["cut"], chance=s.generator)
        told = bool(s.resume and s.resume["mechanism"]["masks"])
        for event in run.fit(s, loss, epochs=b.epochs, lr=one_based(b.lr), mechanism=mechanism):
            yield event
            if mechanism.masks and not told:
                told = True
                yield run.pruned(mechanism.masks, chosen, mechanism=mechanism)
        bake_(run.net, mechanism)
        return mechanism.masks

    return (yield from run.stage("training", training))
