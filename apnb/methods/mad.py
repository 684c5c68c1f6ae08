r"""MAD, masking adversarial damage: remove the weights that a second-order expansion of the attacked loss cares for least.

Lee, Kim, Ro: "Masking Adversarial Damage: Finding Adversarial Saliency for Robust and Sparse Network", CVPR 2022, arXiv 2204.02738.
Cell: after training, one-shot, weights, global (over the convolutions), LIS; PGD-AT, then MART's loss (code).

Per layer W is O x D, a column for each input of a row and a last one for the bias; u_{ns} in R^D is the input (a patch, 1 for the
bias) of image n at output position s, g_{ns} in R^O the gradient of the batch-mean cross entropy at the layer's output; N images,
S positions.

1. Train on the images as they are, then adversarially (PGD-AT).
2. For every batch, the network in evaluation mode and its weights frozen: attack the dense network; minimise
   :math:`\mathrm{CE}(f_{W \odot M}(x'), y)` over M = softplus(q), clamped to [1e-4, 1], from M = 1, by a few steps of Adam. Then,
   at the masked network and the true labels, with :math:`\delta = W - W \odot M` and the Kronecker factors of the Fisher information
   :math:`A = \frac{1}{N S^2}\sum_{ns} u u^\top`, :math:`G = N S \sum_{ns} g g^\top`,

   .. math:: dL_{oj} = \tfrac12\, G_{oo}\, \delta_{oj}\, (A\,\delta_o)_j .

   The saliency is the mean of dL over the batches. A row's sum is at least 0; a single entry may be negative.
3. Over all convolutions together (their biases too, where there are any) the int(p N) lowest go, and in each row of a linear layer
   the int(p D) lowest. Signed: the most negative go first. No layer is spared.
4. Fine-tune what is left under MART's loss with weight 0.5. Removed weights were set to 0 once and get no gradient, so decay and
   momentum leave them at exactly 0.

A is never formed. The layer, run with :math:`\delta` for its weights, responds with :math:`z_{ns,o} = u_{ns} \cdot \delta_o`, and
:math:`N S^2\, A\,\delta_o = \sum_{ns} z_{ns,o}\, u_{ns}` is z sent backward through it: exact for any stride, padding or groups.

Constants (code, the same for both data sets and networks): 200 epochs of natural training, 60 adversarial and 60 of fine-tuning; each
SGD 0.1, a tenth of it from half and again from three quarters of the epochs on, momentum 0.9, weight decay 2e-4, batch 128; 10 steps
of 0.23 eps, from a uniform start, in fine-tuning from 0.001 times normal noise; 20 steps of Adam at 0.1 for a mask, in one pass over
the augmented training images. Their eps is 0.03, here it is the data set's. They take the epoch that is best on test images,
attacked ones in adversarial training and clean ones in fine-tuning; here it is the best on attacked validation images both times.
Where the paper's own tables differ from the code is unknown: they could not be compared line by line.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from itertools import islice, repeat
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from apnb.attacks.pgd import ascend, uniform_start
from apnb.copies import full_precision
from apnb.events import Batch, Event
from apnb.masks import Masks, select
from apnb.mechanisms import FixedMasks, Group, Mechanism, Model, Params, Progress, through
from apnb.networks import Layer, bias_of
from apnb.objectives import evaluating
from apnb.training import bake_, fit, milestones

if TYPE_CHECKING:
    from apnb.runner import Runner, Stage

LOWEST, ONE = (math.log(math.expm1(m)) for m in (1e-4, 1.0))  # where softplus(q) is 1e-4 and 1: the clamp (code)


def names_of(layer: Layer, params: Params) -> tuple[str, ...]:
    """The layer's parameters: its weight and, where it has one, its bias."""
    bias = bias_of(layer.name)
    return (layer.name, bias) if bias in params else (layer.name,)


class SoftMasks(Mechanism):
    r"""Learn by how much each weight should shrink, :math:`W \odot \mathrm{softplus}(q)` with a factor in [1e-4, 1], and nothing else.

    At the upper clamp the factor is exactly 1, where softplus itself may be a rounding error short of it.
    """

    def __init__(self, params: Params, names: tuple[str, ...]):
        self.q = {n: nn.Parameter(torch.full_like(params[n], ONE)) for n in names}

    def groups(self, params: Params) -> list[Group]:
        return [{"params": [*self.q.values()]}]

    def factors(self) -> Params:
        """Name -> M."""
        soft = {n: F.softplus(q) for n, q in self.q.items()}
        return {n: through(m.masked_fill(self.q[n] >= ONE, 1.0), m) for n, m in soft.items()}

    def effective(self, params: Params) -> Params:
        return params | {n: params[n].detach() * m for n, m in self.factors().items()}

    @torch.no_grad()
    def update(self, optimizer: Optimizer, at: Progress) -> None:
        optimizer.step()
        for q in self.q.values():
            q.clamp_(LOWEST, ONE)


class Repeated:
    """One batch, several times: the data of an optimisation on that batch alone."""

    def __init__(self, x: Tensor, y: Tensor, times: int):
        self.x, self.y, self.times = x, y, times

    def __len__(self) -> int:
        return self.times

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return repeat((self.x, self.y), self.times)


def damage(model: Model, delta: Params, layers: tuple[Layer, ...], x: Tensor, y: Tensor) -> Params:
    r""":math:`\tfrac12\,\mathrm{diag}(G)\,\delta\,(A\,\delta)` on one batch.

    Args:
        model: the masked network. delta: what its masks took away, name -> tensor of the parameter's shape, for all ``layers``.
        x: attacked images (N, C, H, W). y: labels (N,).

    Returns:
        Name -> dL, the shapes of ``delta``. The passes through the network have the precision of its stage, the rest has full
        precision.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> Tensor:
            probe = torch.zeros_like(out, requires_grad=True)  # its gradient is the output's
            seen[name] = (*args, *kwargs.values())[0], probe
            return out + probe

        return hook

    with ExitStack() as undo:
        undo.enter_context(evaluating(model.net))
        for layer in layers:
            module = model.net.get_submodule(layer.module)
            undo.callback(module.register_forward_hook(watch(layer.module), with_kwargs=True).remove)
        loss = F.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, [probe for _, probe in seen.values()], materialize_grads=True)
    g = dict(zip(seen, gradients, strict=True))
    found: Params = {}
    for layer in layers:
        names = names_of(layer, delta)
        module = model.net.get_submodule(layer.module)
        found |= zip(names, of_layer(module, [delta[n] for n in names], seen[layer.module][0], g[layer.module]), strict=True)
    return found


def of_layer(module: nn.Module, delta: list[Tensor], u: Tensor, g: Tensor) -> list[Tensor]:
    """dL of a layer's weight and, if it has one, bias, from its input (N, ...) and the gradient (N, O, h, w) or (N, ..., O)."""
    conv = isinstance(module, nn.Conv2d)
    delta = [d.detach().requires_grad_() for d in delta]
    u, g = (t.detach().to(delta[0].dtype) for t in (u, g))
    g = (g.movedim(1, -1) if conv else g).flatten(0, -2)  # (N S, O)
    n, s = len(u), len(g) // len(u)
    G = n * s * g.square().sum(0)
    with torch.enable_grad(), full_precision():
        z = (module._conv_forward if conv else F.linear)(u, delta[0], delta[1] if len(delta) > 1 else None)
        A_delta = [t / (n * s**2) for t in torch.autograd.grad(z, delta, grad_outputs=z.detach())]
    return [0.5 * G.view(-1, *[1] * (d.ndim - 1)) * d.detach() * a for d, a in zip(delta, A_delta, strict=True)]


def saliency(run: Runner, s: Stage) -> Generator[Event, None, Params]:
    """Mean damage over the batches, name -> tensor of the parameter's shape; the network is left as it was."""
    net, params, constants = run.net, run.params(), run.constants
    names = tuple(n for layer in run.layers for n in names_of(layer, params))
    count = min(constants["batches"] or len(s.data), len(s.data))
    steps = run.budget.attack_steps
    attack = {"eps": run.eps, "steps": steps, "step": constants["reach"] * run.eps / steps}
    total = {n: torch.zeros_like(params[n]) for n in names}
    for i, (x, y) in enumerate(islice(s.data(0), count), 1):
        with evaluating(net):
            x_adv = ascend(Model(net, params).frozen(), x, y, uniform_start(x, run.eps, s.generator), **attack)
        mechanism = SoftMasks(params, names)
        for _ in fit(
            net, Repeated(x_adv, y, constants["mask_steps"]), run.objective("natural", s), epochs=1, lr=lambda at: constants["mask_lr"],
            mechanism=mechanism, optimizer=Adam, bn="eval",
        ):  # fmt: skip
            pass
        masked = {n: w.detach() for n, w in mechanism.effective(params).items()}
        delta = {n: params[n].detach() - masked[n] for n in names}
        for n, d in damage(Model(net, masked), delta, run.layers, x_adv, y).items():
            total[n] += d / count
        yield Batch(step=i, of=count)
    return total


def cut(scores: Params, layers: tuple[Layer, ...], sparsity: float) -> Masks:
    """Masks that remove the int(p N) lowest of all convolutions together and the int(p D) lowest in each row of a linear layer."""
    names = {layer: names_of(layer, scores) for layer in layers}
    pool = {n: scores[n] for layer in layers if layer.kind == "conv" for n in names[layer]}
    masks = select(pool, int(sparsity * sum(s.numel() for s in pool.values())), spare=False) if pool else {}
    for own in (names[layer] for layer in layers if layer.kind == "linear"):
        rows = torch.cat([scores[n].reshape(len(scores[n]), -1) for n in own], 1)  # O x D, the bias last
        lowest = rows.argsort(dim=1, stable=True)[:, : int(sparsity * rows.shape[1])]
        kept = torch.ones_like(rows, dtype=torch.bool).scatter(1, lowest, False)
        parts = kept.split([scores[n][0].numel() for n in own], 1)
        masks |= {n: part.reshape(scores[n].shape).contiguous() for n, part in zip(own, parts, strict=True)}
    return masks


def stages(run: Runner):
    """Train naturally, then adversarially; find the saliency and cut; fine-tune."""
    r, b, constants = run.recipe, run.budget, run.constants
    best = {"watch": run.validate_attacked, "select": "val_pgd"}

    def train(s: Stage):
        yield from run.fit(s, "natural", epochs=constants["natural_epochs"], lr=milestones(b.lr, 0.5, 0.75))

    def pretrain(s: Stage):
        objective = run.objective(r.pretraining, s, reach=constants["reach"])
        schedule = milestones(b.lr, 0.5, 0.75)
        yield from run.fit(s, objective, epochs=b.epochs, lr=schedule, **best)

    def prune(s: Stage):
        masks = cut((yield from saliency(run, s)), run.layers, r.sparsity)
        bake_(run.net, FixedMasks(masks))
        yield run.pruned(masks, run.target(r.sparsity))
        return masks

    def finetune(s: Stage):
        beta = constants["margin"] if r.finetuning == "mart" else None
        objective = run.objective(r.finetuning, s, reach=constants["reach"], beta=beta)
        schedule = milestones(b.finetune_lr, 0.5, 0.75)
        yield from run.fit_masked(s, masks, objective, epochs=b.finetune_epochs, lr=schedule, **best)

    yield from run.stage("natural", train, method=r.method, epochs=constants["natural_epochs"])
    yield from run.stage("pretraining", pretrain, method=r.method, objective=r.pretraining, reach=constants["reach"])
    masks = yield from run.stage("pruning", prune)
    yield from run.stage("finetuning", finetune)
    return masks
