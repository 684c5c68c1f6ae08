r"""RST, robust scratch tickets: a random network whose weights never change holds a robust subnetwork; find it.

Fu, Yu, Zhang, Wu, Ouyang, Cox, Lin: "Drawing Robust Scratch Tickets: Subnetworks with Inborn Robustness Are Found within Randomly
Initialized Networks", NeurIPS 2021, arXiv 2110.14068.
Cell: before training, one-shot, weights, local, LIS; PGD-AT for the search, no training after it.

1. Weights are signed constants, :math:`W = \sigma\,\mathrm{sign}(W_0)`, :math:`\sigma = \sqrt{2/\mathrm{fan\_in}}` (code's default; no
   rescaling by the share kept), W_0 the network's own random start.
2. :math:`\min_S \mathbb{E} \max_{\|\delta\|_\infty \le \epsilon} \mathrm{CE}(f(x + \delta; W \odot m(S)), y)`, m keeping in each layer
   the n - int((1 - k) n) entries of largest |S|; backward takes the selection for the identity,
   :math:`\partial L/\partial S = \mathrm{sign}(S)\,W\,\partial L/\partial W_\mathrm{eff}` for kept and dropped entries. Scores start
   uniform on :math:`\pm 1/\sqrt{\mathrm{fan\_in}}`. Every convolution and linear layer takes part, the first and the last too.

Scores are all that learns: norms have no scale and shift in the code and the classifier no bias, so they are set to 1 and 0 here and
frozen; whatever else a network has stays as it was drawn. Running statistics move, in the attack's passes too, which run in training
mode (code).

Constants (configuration files of the authors): 160 epochs, SGD 0.1, a tenth of it from half and again from three quarters of the
epochs on, momentum 0.9, weight decay 5e-4 on the scores, batch 256; 7 steps of 2/255 at eps 8/255 from a uniform start. They pick the
epoch that is best under PGD-20 on test images, every third of them; here it is the best of all under PGD-10 on validation images.
Inputs are normalised in their loader; here that is the network's business, if it is wanted. Whether the survey's odd figures
(CIFAR-10, ResNet-18) come from that normalisation is unknown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from apnb.chance import uniform
from apnb.masks import truncated_counts
from apnb.mechanisms import LearnedScores, Params
from apnb.networks import bias_of
from apnb.training import bake_, milestones

if TYPE_CHECKING:
    from apnb.runner import Runner, Stage


@torch.no_grad()
def sign_constants_(params: Params, names: tuple[str, ...], norms: tuple[str, ...]) -> None:
    """The weights in ``names`` to +-sqrt(2 / fan_in) by their sign and their biases to 0, ``norms`` to 1 and 0; the rest stays."""
    for n in names:
        params[n].copy_(torch.where(params[n] < 0, -1.0, 1.0) * (2 / params[n][0].numel()) ** 0.5)
        if (bias := bias_of(n)) in params:
            params[bias].zero_()
    for n in norms:
        params[n].fill_(1.0 if n.endswith("weight") else 0.0)


def first_scores(params: Params, names: tuple[str, ...], generator: torch.Generator) -> Params:
    """Uniform on +-1/sqrt(fan_in), the shape of the weights."""
    return {n: (2 * uniform(params[n], generator) - 1) / params[n][0].numel() ** 0.5 for n in names}


def stages(run: Runner):
    """The search is all there is."""
    r, b = run.recipe, run.budget
    plain = run.target(r.sparsity)
    chosen = replace(plain, counts=truncated_counts(plain.sizes(), r.sparsity))

    def prune(s: Stage):
        params, names = run.params(), tuple(chosen.sizes())
        sign_constants_(params, names, run.norms)
        mechanism = LearnedScores(params, chosen, norms=(), start=first_scores(params, names, s.generator))
        objective = run.objective(r.pruning_step, s, attack_bn="train", reach=run.constants["reach"])
        yield from run.fit(
            s, objective, epochs=b.search_epochs, lr=milestones(b.lr, 0.5, 0.75), mechanism=mechanism,
            watch=run.validate_attacked, select="val_pgd",
        )  # fmt: skip
        masks = chosen.select({n: score.detach().abs() for n, score in mechanism.scores.items()})
        yield run.pruned(masks, chosen)
        bake_(run.net, mechanism)
        return masks

    return (yield from run.stage("pruning", prune))
