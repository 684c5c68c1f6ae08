r"""RADMM: adversarial training under ADMM, which pulls each convolution towards a sparse copy of itself; one cut; fine-tuning.

Ye, Xu, Liu, Cheng, Lambrechts, Zhang, Zhou, Ma, Wang, Lin: "Adversarial Robustness vs. Model Compression, or Both?", ICCV 2019,
arXiv 1903.12561.
Cell: after training, one-shot, weights or filters, local, SOLWM; PGD-AT throughout.

1. Pretrain: :math:`\min_W A(W) = \mathbb{E} \max_{\|\delta\|_\infty \le \epsilon} \mathrm{CE}(f(x + \delta; W), y)`.
2. ADMM for :math:`\min_W A(W)` subject to a share p of each convolution's units being zero: descend
   :math:`A(W) + \sum_i \frac{\rho}{2}\|W_i - Z_i + U_i\|_2^2` over everything, Z and U constant and W dense, from Z = Pi(W), U = 0.
   Every T epochs: :math:`\rho \leftarrow 1.3\rho,\ Z \leftarrow \Pi(W + U),\ U \leftarrow W + U - Z`. Pi zeroes the smallest
   :math:`\lceil (n - 1) p \rceil` of a layer's n magnitudes (of filters: of their L2 norms), those below its 100 p-th percentile
   (code). The rate is lr, lr / 10 and lr / 100 in the thirds of a period.
3. Cut W = Pi(W) once, then fine-tune what is left: :math:`\min_W A(W \odot m)`. The code's mask leaves out an entry equal to the
   percentile, which its weight keeps; here the mask is what the weight keeps.

The attack runs in training mode from a uniform start that is not clipped to [0, 1], and a clean pass follows it, so a batch moves the
running statistics steps + 2 times (code). Every convolution is pruned, the first one and shortcuts included, at the same share; the
classifier, biases and norms stay dense (configuration files).

Constants (configuration files of the authors, CIFAR-10): 200 epochs each; SGD, momentum 0.9, weight decay 1e-4, batch 128; rate 0.1 on
a cosine, then 0.01 in the thirds of a period, then 0.01 with a tenth of it from 80 and a hundredth from 150 of 200 epochs on; rho 0.001,
T = 20; 10 steps of 2/255 at eps 8/255. Stages 1 and 3 end with the epoch of the lowest mean of clean and adversarial loss on test
images in the code, here with that of the highest mean of clean and PGD accuracy on validation images (the last one if a budget has
none); stage 2 with its last. No settings for SVHN were released, and the survey's epochs are unknown.

``as_released``: the code's U carries its graph. After k updates :math:`\partial U / \partial W = k`, so that the penalty's gradient on
W is (1 + k) rho (W - Z + U).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from apnb.errors import Invalid
from apnb.masks import Target, percentile_counts
from apnb.mechanisms import Admm, FixedMasks, Model, Params, Progress, through
from apnb.training import bake_, cosine, milestones, saw_tooth

if TYPE_CHECKING:
    from apnb.runner import Runner, Stage


class GraphAdmm(Admm):
    """The penalty with a dual that carries its graph: same value, and after k updates (1 + k) times the gradient."""

    def penalty(self, params: Params, at: Progress) -> Tensor:
        k = at.epoch // self.period
        gaps = (params[n] - z + through(self.U[n], k * params[n]) for n, z in self.Z.items())
        return self.rho / 2 * sum(gap.square().sum() for gap in gaps)


def target(run: Runner) -> Target:
    """In every convolution the ceil((n - 1) p) lowest of n go."""
    convolutions = tuple(layer for layer in run.layers if layer.kind == "conv")
    if not convolutions:
        raise Invalid(f"RADMM prunes convolutions, and {run.network_name} has none; give a network with nn.Conv2d modules")
    plain = replace(run.target(run.recipe.sparsity), layers=convolutions)
    return replace(plain, counts=percentile_counts(plain.sizes(), plain.sparsity))


def stages(run: Runner):
    """Pretrain, ADMM and the cut, fine-tune."""
    r, b = run.recipe, run.budget
    chosen = target(run)

    def loss(s: Stage, key: str):
        return run.objective(key, s, attack_bn="train", start="unclipped", passes=("between",))

    def both(model: Model, at: Progress) -> dict[str, float]:
        found = run.validate_attacked(model, at)
        return found | {"val_mean": sum(found.values()) / 2} if found else {}

    best = {"watch": both, "select": "val_mean"}

    def pretrain(s: Stage):
        yield from run.fit(s, loss(s, r.pretraining), epochs=b.epochs, lr=cosine(b.lr), **best)

    def prune(s: Stage):
        kind = GraphAdmm if r.as_released else Admm
        mechanism = kind(run.params(), chosen, rho=b.rho, growth=b.rho_growth, period=b.dual_period, rescale=False)
        lr = saw_tooth(run.constants["search_lr"], b.dual_period)
        yield from run.fit(s, loss(s, r.pruning_step), epochs=b.search_epochs, lr=lr, mechanism=mechanism)
        masks = mechanism.masks(run.params())
        yield run.pruned(masks, chosen)
        bake_(run.net, FixedMasks(masks))
        return masks

    def finetune(s: Stage):
        lr = milestones(b.finetune_lr, 0.4, 0.75)
        yield from run.fit_masked(s, masks, loss(s, r.finetuning), epochs=b.finetune_epochs, lr=lr, **best)

    yield from run.stage("pretraining", pretrain, method=r.method, objective=r.pretraining)
    masks = yield from run.stage("pruning", prune)
    yield from run.stage("finetuning", finetune)
    return masks
