r"""Li20, boosting tickets: find a lottery ticket by cheap adversarial training, go back to the first weights, train the ticket fast.

Li, Wang, Jia, Lu, Zhong, Carin, Jana: "Towards Practical Lottery Ticket Hypothesis for Adversarial Training", arXiv 2003.05733.
Cell: before training, one-shot, weights, global, LWM; FGSM to search, PGD adversarial training for the ticket.

1. Draw :math:`\theta_0`: convolutions :math:`\mathcal N(0, 2/(k^2 C_\mathrm{out}))`, norms 1 and 0, linear layers torch's uniform
   :math:`\pm 1/\sqrt{\mathrm{fan\_in}}`, all biases 0; in VGG-16 norms start at 0.5 and linear layers at
   :math:`\mathcal N(0, 0.01^2)` (code).
2. Search: train all weights on single-step adversarial images to :math:`\theta_T`. Rank :math:`n = |w| / \mathrm{mean}_l |w|`, the
   magnitude relative to its layer's mean, over the whole network, classifier and shortcuts included, and keep what lies strictly
   above the P-th percentile with linear interpolation: :math:`N - \lfloor (N - 1) P / 100 \rfloor - 1` weights. Nothing holds
   a layer open: one with few large weights can be emptied, first of all a small first layer. Scale and shift of a batch norm go where the
   layer before it (in the order of modules) keeps nothing of a filter.
3. Train :math:`\theta_0 \odot m`, statistics of norms included in what is put back, by PGD from the image itself. After every step a
   bias is multiplied by the share of its row of weights that is kept, so at high sparsity it never accumulates (code).

Attacks see the network in evaluation mode and start without noise (code). Constants (scripts of the authors, VGG-16, CIFAR-10):
100 and 100 epochs; SGD, momentum 0.9, weight decay 1e-4, batch 64; rate 0.01 in the search and 0.1 for the ticket, there
(t + 1)/10 of it in the first ten epochs, a tenth and a hundredth from one half and three quarters of the epochs on; FGSM with step
eps, PGD with 10 steps of eps/4; the last epoch is the result. Their ResNet-18 scripts, which are for natural training only, warm up
from 0.05 instead. The settings of the survey's ResNet-18 and SVHN runs are not known. They shift images by up to 8 pixels, here the
data set's own augmentation is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apnb.chance import normal, uniform
from apnb.masks import Masks, Target, percentile_counts
from apnb.mechanisms import FixedMasks, Params, Progress
from apnb.networks import VGG, bias_of, norms_behind
from apnb.training import bake_, milestones

if TYPE_CHECKING:
    from apnb.runner import Runner, Stage


@torch.no_grad()
def draw_(run: Runner, generator: torch.Generator) -> None:
    """Put new first weights into the network; statistics of norms start anew too."""
    params, vgg = run.params(), isinstance(run.net, VGG)
    for layer in run.layers:
        w = params[layer.name]
        if layer.kind == "conv":
            w.copy_(normal(w, generator) * (2 / (len(w) * w[0, 0].numel())) ** 0.5)
        elif vgg:
            w.copy_(normal(w, generator) * 0.01)
        else:
            w.copy_((2 * uniform(w, generator) - 1) / w.shape[1] ** 0.5)
        if (bias := bias_of(layer.name)) in params:
            params[bias].zero_()
    for name in run.norms:
        params[name].fill_(0.0 if name.endswith("bias") else 0.5 if vgg else 1.0)
    for module in run.net.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()


def relative(params: Params, target: Target) -> Params:
    """Magnitudes in units of their layer's mean magnitude; the same whatever a layer is scaled by."""
    size = {n: params[n].detach().abs() for n in target.sizes()}
    return {n: a / a.mean() for n, a in size.items()}


def target(run: Runner) -> Target:
    """One threshold for the network."""
    plain = run.target(run.recipe.sparsity)
    (drop,) = percentile_counts({"": sum(plain.sizes().values())}, plain.sparsity, at=True).values()
    return replace(plain, counts=drop, spare=False)


def with_norms(net: nn.Module, masks: Masks) -> Masks:
    """The masks, and those of the batch norms behind: False where nothing of the filter before is kept."""
    params, more = dict(net.named_parameters()), {}
    for weight, norm in norms_behind(net).items():
        alive = masks[weight].flatten(1).any(1)
        more |= {n: alive for n in (f"{norm}.weight", f"{norm}.bias") if n in params and params[n].shape == alive.shape}
    return masks | more


class Ticket(FixedMasks):
    """Fixed masks under which biases shrink: after each step by the share of their row of weights, (O,), that is kept."""

    constant = ("density",)

    def __init__(self, masks: Mapping[str, Tensor], params: Params):
        super().__init__(masks)
        self.density = {
            bias_of(n): m.flatten(1).float().mean(1) for n, m in self.masks.items() if m.ndim > 1 and bias_of(n) in params
        }

    def update(self, optimizer: Optimizer, at: Progress) -> None:
        optimizer.step()
        self.shrink_(at.params)

    @torch.no_grad()
    def shrink_(self, params: Params) -> None:
        """Multiply the biases."""
        for n, d in self.density.items():
            params[n].mul_(d)


def stages(run: Runner):
    """Draw, search and cut, train the ticket."""
    r, b, c = run.recipe, run.budget, run.constants
    chosen = target(run)

    def loss(s: Stage, key: str):
        return run.objective(key, s, start="image" if key == "pgd_at" else None)  # TRADES has no gradient at the image itself

    def initial(s: Stage):
        draw_(run, s.generator)
        yield from ()

    def prune(s: Stage):
        schedule = milestones(c["search_lr"], 0.5, 0.75)
        yield from run.fit(s, loss(s, r.pruning_step), epochs=b.search_epochs, lr=schedule)
        masks = with_norms(run.net, chosen.select(relative(run.params(), chosen)))
        yield run.pruned(masks, chosen)
        return masks

    def train(s: Stage):
        run.load(theta_0)
        ticket = Ticket(masks, run.params())
        bake_(run.net, ticket)
        ticket.shrink_(run.params())
        schedule = milestones(b.lr, 0.5, 0.75, warm=c["warmup"])
        yield from run.fit(s, loss(s, r.training_step), epochs=b.epochs, lr=schedule, mechanism=ticket)
        bake_(run.net, ticket)

    yield from run.stage("initial", initial, method=r.method)
    theta_0 = run.state()
    masks = yield from run.stage("pruning", prune)
    yield from run.stage("training", train)
    return masks
