r"""HARP: learn which weights matter and how many of them each layer needs, together.

Zhao, Wressnegger: "Holistic Adversarially Robust Pruning", ICLR 2023, arXiv 2412.14714.
Cell: after training, one-shot, weights or (input) channels, global, LIS; TRADES throughout (the code's default is PGD-AT).

HYDRA's scores s, and a number q for each layer that sets its share: :math:`k_l = k_{\min} + (1 - k_{\min})\,\mathrm{sigmoid}(q_l)`,
:math:`k_{\min} = \alpha K`, K the share kept of the whole network. With frozen weights

.. math:: \min_{s, q} L_\mathrm{robust}(w \odot m(s, k)) + \gamma_e L_\mathrm{size}, \qquad
          L_\mathrm{size} = \max(r / K - 1, 0), \quad r = \sum_l n_l k_l / \sum_l n_l,

m keeping in layer l the n_l - int((1 - k_l) n_l) largest |s|, in float32 as in the code. With
:math:`D = \partial L/\partial w_\mathrm{eff} \cdot w`: dL/ds = D sign(s), dL/dk_l = the sum of D over the whole layer.
:math:`\gamma_e = (e + 1)\,\gamma` in epoch e (from 0), until the end of an epoch at which L_size rounds to 0 (four digits); it stays
what it then was. The network goes on shrinking and growing around the budget, so the stage ends in its best epoch (by PGD accuracy on
validation images; the authors take test images) among those that end at most 2 % above the budget. (In the code all epochs from the
first that met it on are candidates, however large.) Then the kept weights are fine-tuned under fixed masks.

"Global" is this budget: |scores| of different layers are never compared. Norm parameters and statistics learn with the scores.

Channels: a score and a share for each layer's *input* channels, round(k_l C_in) of which stay. The budget counts operations: a layer
has H W C_out (2 h w C_in + 1) of them, with k_l for its inputs and the next layer's share for its outputs, and K of all channels leaves
about K^2. The shortcut of a residual block follows the share of the block's first convolution, with scores of its own. The first
scores are each channel's l1 norm over the largest one, times sqrt(6); that the code means this is our reading, see ``as_released``.
Here at least one channel stays in each layer and the image's channels are left alone; in the code neither is so.

Constants (README and code, CIFAR-10): 100, 20, 100 epochs; SGD 0.1, 0.1, 0.01 on a cosine, momentum 0.9, weight decay 5e-4, also on
scores and q; batch 128; gamma 0.01; alpha 0.1; every layer starts at a share of 0.1. A start below K would meet the budget
before anything is learnt, so then it is half-way between K and 1, which is our choice. How the survey's 50, 75 and 90 % of channels
translate to K is not documented; K = 1 - sparsity is the natural reading.

``as_released``: the code's candidates; in each step one further clean pass in training mode before the attack and one after the
loss, the cosine of HYDRA's code, which is one epoch late, and channel scores that sum rows of the weight reshaped to (C_in, -1),
which mixes channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from apnb.masks import Masks, Target, expand
from apnb.mechanisms import Group, Mechanism, Params, Progress, scaled, through
from apnb.networks import Layer
from apnb.pipelines import scored

if TYPE_CHECKING:
    from apnb.runner import Runner


def operations(layers: tuple[Layer, ...], inputs: list, outputs: list):
    """Multiplications, additions and one activation of all layers with these numbers of input and output channels.

    ``inputs`` and ``outputs``: one number (or scalar tensor) a layer, in channels of the layer's own weight.
    """
    total = 0.0
    for layer, i, o in zip(layers, inputs, outputs, strict=True):
        positions = layer.macs // math.prod(layer.shape)
        total = total + positions * o * (2 * math.prod(layer.shape[2:]) * i + 1)
    return total


def followers(names: Iterable[str]) -> dict[str, str]:
    """Shortcut convolution -> the first convolution of its residual block, whose share it takes over, if that has one."""
    names = set(names)
    heads = {n: n.split(".shortcut.")[0] + ".conv1.weight" for n in names if ".shortcut." in n}
    return {n: head for n, head in heads.items() if head in names}


class LearnedShares(Mechanism):
    """Scores as in `LearnedScores` and a share for each layer, under a growing penalty on the size of the whole.

    Args:
        target: layers, unit (weights or channels) and the sparsity of the whole; its counts are not used.
        alpha, start, gamma: the method's constants. released: the code's first scores of channels, and every epoch after the budget
            was met once is ready to be the result.
    """

    constant = ("target", "sizes", "norms", "lowest", "gamma", "kept", "follows", "full", "released")
    unready = (
        "the size never came down to the budget while shares were learnt: give more search_epochs (Budget) or a larger gamma"
    )

    def __init__(
        self,
        params: Params,
        target: Target,
        norms: tuple[str, ...],
        *,
        gamma: float,
        alpha: float,
        start: float,
        released: bool = False,
    ):
        self.target, self.sizes, self.norms, self.gamma = target, target.sizes(), norms, gamma
        self.kept = 1 - target.sparsity
        self.lowest = alpha * self.kept
        first = start if start >= self.kept * (1 - 1e-6) else (1 + self.kept) / 2
        u = min((first - self.lowest) / (1 - self.lowest), 0.99)
        self.scores = {n: nn.Parameter(s) for n, s in first_scores(params, target, mixed=released).items()}
        self.q = {n: nn.Parameter(s.new_tensor(math.log(u / (1 - u)))) for n, s in self.scores.items()}
        self.follows = followers(self.q) if target.structure == "channels" else {}
        self.full = self._full()
        self.released = released
        self.frozen: float | None = None
        self.ready = False

    def groups(self, params: Params) -> list[Group]:
        own = [q for n, q in self.q.items() if n not in self.follows]
        return [{"params": [*self.scores.values(), *own, *(params[n] for n in self.norms)]}]

    def shares(self) -> dict[str, Tensor]:
        """Layer -> its share k_l in (k_min, 1), differentiable in q."""
        return {n: self.lowest + (1 - self.lowest) * self.q[self.follows.get(n, n)].sigmoid() for n in self.q}

    def counts(self, shares: Mapping[str, Tensor]) -> dict[str, int]:
        """Units to drop in each layer."""
        k = dict(zip(self.sizes, torch.stack([shares[n].detach() for n in self.sizes]).cpu(), strict=True))
        if self.target.structure == "weights":
            return {n: min(int((1 - k[n]) * size), size - 1) for n, size in self.sizes.items()}
        return {n: size - max(1, round(float(k[n]) * size)) for n, size in self.sizes.items()}

    def masks(self) -> Masks:
        """The masks of the present scores and shares, in the weights' shapes."""
        return expand(self._units(self.shares()), self.target.structure, self.target.layers)

    def _units(self, shares: Mapping[str, Tensor]) -> Masks:
        scores = {n: s.detach().abs() for n, s in self.scores.items()}
        return replace(self.target, locality="local", counts=self.counts(shares)).rank(scores, check=False)

    def effective(self, params: Params) -> Params:
        shares = self.shares()
        units = self._units(shares)
        soft = {n: through(units[n].float(), s.abs(), shares[n]) for n, s in self.scores.items()}
        return params | {n: params[n].detach() * m for n, m in expand(soft, self.target.structure, self.target.layers).items()}

    def _full(self) -> float:
        if self.target.structure == "weights":
            return float(sum(self.sizes.values()))
        layers = self.target.layers
        few = lambda n: max(1, round(self.kept * n))  # noqa: E731 - one channel always stays
        ins = [few(layer.shape[1]) if layer.name in self.q else layer.shape[1] for layer in layers]
        outs = [few(layer.shape[0]) for layer in layers[:-1]] + [layers[-1].shape[0]]
        return operations(layers, ins, outs) / self.kept

    def size(self) -> Tensor:
        """What the present shares keep of the whole: r, or, for channels, K times their operations over those of the target."""
        shares = self.shares()
        if self.target.structure == "weights":
            return sum(k * self.sizes[n] for n, k in shares.items()) / self.full
        layers = self.target.layers
        ins = [shares.get(layer.name, 1.0) * layer.shape[1] for layer in layers]
        outs = [shares.get(after.name, 1.0) * layer.shape[0] for layer, after in pairwise(layers)]
        return operations(layers, ins, [*outs, layers[-1].shape[0]]) / self.full

    def excess(self) -> Tensor:
        """L_size = max(r / K - 1, 0)."""
        return (self.size() / self.kept - 1).clamp_min(0)

    def weight(self, epoch: int) -> float:
        """gamma_e, epoch counted from 0."""
        return (epoch + 1) * self.gamma if self.frozen is None else self.frozen

    def penalty(self, params: Params, at: Progress) -> Tensor:
        return self.weight(at.epoch) * self.excess()

    def between_epochs(self, at: Progress) -> None:
        excess = self.excess().item()
        if at.epoch and self.frozen is None and round(excess, 4) == 0:
            self.frozen = at.epoch * self.gamma
        self.ready = self.frozen is not None and (self.released or excess <= 0.02)


def first_scores(params: Params, target: Target, mixed: bool = False) -> Params:
    """Weights: those of HYDRA. Channels: their l1 norms over the largest, times sqrt(6); ``mixed`` as the code reshapes."""
    if target.structure == "weights":
        return {n: scaled(params[n].detach()) for n in target.sizes()}

    def of_channels(w: Tensor, channels: int) -> Tensor:
        rows = w.reshape(channels, -1) if mixed else w.unflatten(1, (channels, -1)).transpose(0, 1).flatten(1)
        size = rows.abs().sum(1)
        return 6**0.5 * size / size.max().clamp_min(1e-12)

    return {n: of_channels(params[n].detach(), channels) for n, channels in target.sizes().items()}


def stages(run: Runner):
    """Pretrain, learn scores and shares, fine-tune."""
    c, target = run.constants, run.target(run.recipe.sparsity)
    target.sizes()  # refuses at once what has no such units

    def prune(fit: Callable):
        numbers = {"gamma": c["gamma"], "alpha": c["alpha"], "start": c["start"], "released": run.recipe.as_released}
        mechanism = LearnedShares(run.params(), target, run.norms, **numbers)
        watch = lambda model, at: run.validate_attacked(model, at) | {"size": mechanism.size().item()}  # noqa: E731
        yield from fit(mechanism=mechanism, watch=watch, select="val_pgd")
        masks = mechanism.masks()
        yield run.pruned(masks, target)
        return masks

    return scored(run, prune)
