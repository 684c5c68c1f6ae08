r"""HYDRA: learn by robust training which weights matter, then fine-tune those.

Sehwag, Wang, Mittal, Jana: "HYDRA: Pruning Adversarially Robust Neural Networks", NeurIPS 2020, arXiv 2002.10509.
Cell: after training, one-shot, weights, local, LIS; TRADES throughout.

1. Pretrain: :math:`\min_w L_\mathrm{robust}(w)`.
2. Prune: with the weights frozen, descend the robust loss over scores,
   :math:`\min_s L_\mathrm{robust}(w \odot m(s))`, m keeping in each layer the n - int((1 - k) n) entries of largest |s|, k the
   share kept. Backward takes the selection for the identity from |s| to m: :math:`\partial L/\partial s = \partial L/\partial
   w_\mathrm{eff} \cdot w \cdot \mathrm{sign}(s)` for kept and dropped entries alike. Scores start as
   :math:`\sqrt{6/\mathrm{fan\_in}}\,w/\max|w|` (section 4.2), so the first mask is the one of magnitude. Norm parameters and
   statistics learn along, although the text says that only scores do (code).
3. Fine-tune the kept weights from their pretrained values under the last mask.

Constants (script of the authors, CIFAR-10): 100, 20 and 100 epochs; SGD 0.1, 0.1 and 0.01 on a cosine, momentum 0.9, weight decay
1e-4, also on scores; batch 128; TRADES with beta 6 and 10 steps. Their eps is 0.031 and their step 0.0078, here the data set's eps
(8/255) and a quarter of it. The authors' CIFAR-10 results use 500 000 further images, which are not used here; that the survey did
not either is not known. Each stage starts from the last epoch of the one before, as in their script.

``as_released``: in each step one further clean pass in training mode before the attack and one after the loss (the code makes them
for its log and its KL), and the rate of epoch e is 0.5 (1 + cos(pi (e - 1) / E)), e from 0, which peaks at epoch 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from apnb.masks import Target, truncated_counts
from apnb.mechanisms import LearnedScores
from apnb.pipelines import scored

if TYPE_CHECKING:
    from apnb.runner import Runner


def target(run: Runner) -> Target:
    """In every layer, the first one and the classifier included, the int((1 - k) n) lowest go."""
    plain = run.target(run.recipe.sparsity)
    return replace(plain, counts=truncated_counts(plain.sizes(), plain.sparsity))


def stages(run: Runner):
    """Pretrain, learn the scores, fine-tune."""

    def prune(fit: Callable):
        chosen = target(run)
        mechanism = LearnedScores(run.params(), chosen, run.norms)
        yield from fit(mechanism=mechanism)
        masks = chosen.select({n: score.detach().abs() for n, score in mechanism.scores.items()})
        yield run.pruned(masks, chosen)
        return masks

    return scored(run, prune)
