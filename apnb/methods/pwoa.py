r"""PwoA, pruning without adversarial examples: imitate a robust teacher on clean images under ADMM; one cut; imitate on.

Jian, Wang, Wang, Dy, Ioannidis: "Pruning Adversarially Robust Neural Networks without Adversarial Examples", ICDM 2022,
arXiv 2210.04311.
Cell: after training, one-shot, weights (the code has filters too), local, SOLWM; pretraining TRADES, then distillation.

1. Pretrain a robust network, by any means. It is the first student, and frozen, in evaluation mode, the teacher.
2. ADMM as in RADMM, on images as they are: descend :math:`\lambda D + \sum_i \frac{\rho}{2}\|W_i - Z_i + U_i\|_2^2` over everything,
   Z and U constant, from Z = Pi(W), U = 0. Every T epochs :math:`\rho \leftarrow \min(1, 1.35\rho),\ Z \leftarrow \Pi(W + U),\
   U \leftarrow W + U - Z`. With student s and teacher t (m images, C classes) and p, q their softmax at temperature T = 30,
   :math:`D = T^2 \frac{1}{mC}\sum_{n,c} q_{nc}\log(q_{nc} / p_{nc})`, the mean over all mC elements (code). No label is used.
   Pi zeroes in each layer the smallest ceil((n - 1) p) of n magnitudes, or floor((n - 1) p) + 1 of n filters (code: norms up to and
   including the 100 p-th percentile go).
3. Cut W = Pi(W) once, then fine-tune what is left: descend :math:`\lambda D + \sum_l \lambda_x \mathrm{HSIC}(h_l, x) - \lambda_y
   \mathrm{HSIC}(h_l, y)` over the hidden outputs h_l: what is inside should say less about the image and more about the label.
   :math:`\mathrm{HSIC}(a, b) = \mathrm{tr}(R_a R_b),\ R = \tilde K(\tilde K + 10^{-5} m I)^{-1},\ \tilde K = K(I - 11^\top / m)`, with
   :math:`K_{ij} = \exp(-\|a_i - a_j\|^2 / (2\sigma^2 d))`, d the dimension of a, and for labels K_ij = 1 where they agree, else 0.

After pretraining no attack is ever run to train, select or stop: where adversarial accuracy is reported (after a cut, at the end of a
stage) it is measured on validation images and read by nobody but the reader, and every stage ends with its last epoch.

Pruned are convolutions, the first one and shortcuts included, and linear layers whose name ends in "fc" (code: "fc.weight" in the
name); other classifiers stay dense, and with filters the last layer always does, whose filters are the classes. The hidden outputs
are those of the code: in a ResNet the stem, every block and the pooling; in a VGG the max-pools and the hidden layers of the
classifier; elsewhere, by analogy, every ReLU and the last pooling. The code's masks also freeze any other parameter that is exactly
zero at the cut, such as a fresh bias; here they name pruned layers only.

Constants (script of the authors, CIFAR-10, WRN-34-10): 50 epochs of ADMM, rate 0.01, a tenth and a hundredth of it in turn, T = 3,
rho 0.01 up to 1; 100 epochs of fine-tuning, rate 0.005 on a cosine; SGD, momentum 0.9, weight decay 1e-4, batch 128; lambda 10,
lambda_x 2e-5, lambda_y 1e-4, sigma 5. Their scripts leave HSIC and cross entropy out of stage 2; the paper may have HSIC in both. They
pick the best epoch by PGD on test images, which is not done here. They prune a published robust network; the survey's pretraining
epochs and all its settings are unknown.

``as_released``: Z is made anew as Pi(W), without U, at the start of every epoch, so that it is Pi(W + U) only in epochs that begin
with an update; and the rate is set after the step, so that the first batch of an epoch runs at the rate of the epoch before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apnb.errors import Invalid
from apnb.masks import Target, percentile_counts
from apnb.mechanisms import Admm, FixedMasks, Model, Progress
from apnb.networks import VGG, BasicBlock, ResNet
from apnb.objectives import Objective, evaluating
from apnb.training import Schedule, bake_, cosine, saw_tooth

if TYPE_CHECKING:
    from apnb.runner import Runner, Stage


class RestartedAdmm(Admm):
    """Z is made anew from the weights alone at the start of every epoch; epochs that update the dual then make it once more."""

    def between_epochs(self, at: Progress) -> None:
        if at.epoch < at.epochs:
            for n, z in self._project({n: at.params[n].detach() for n in self.Z}).items():
                self.Z[n].copy_(z)
        super().between_epochs(at)


def late(schedule: Schedule) -> Schedule:
    """A schedule of epochs, one batch late."""
    return lambda at: schedule(replace(at, epoch=max(at.step - 1, 0) * at.epochs // at.steps))


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(q || p) of logits (m, C) at temperature T, q the teacher, as the mean over all m * C elements."""
    p, q = (student / temperature).log_softmax(1), (teacher / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(p, q, log_target=True, reduction="none").mean()


def gaussian(a: Tensor, sigma: float) -> Tensor:
    """exp(-||a_i - a_j||^2 / (2 sigma^2 d)) for m vectors (m, ...) of dimension d: (m, m), float64."""
    a = a.flatten(1).float()
    a = a - a.mean(0).detach()  # changes no distance and saves digits
    squares = a.square().sum(1)
    distances = (squares[:, None] + squares - 2 * a @ a.T).double()
    return (-distances / (2 * sigma**2 * a.shape[1])).exp()


def agreement(y: Tensor) -> Tensor:
    """The linear kernel of one-hot labels: 1 where two of them (m,) agree, else 0; (m, m), float64."""
    return (y[:, None] == y).double()


def normalised(kernel: Tensor) -> Tensor:
    """K (K + 1e-5 m I)^-1 for kernels (..., m, m), float64, centred on both sides, which gives symmetric R and the same traces."""
    m = kernel.shape[-1]
    k = kernel - kernel.mean(-1, keepdim=True)
    k = k - k.mean(-2, keepdim=True)
    return torch.linalg.solve_ex(k + 1e-5 * m * torch.eye(m, dtype=k.dtype, device=k.device), k).result


def hsic(r_a: Tensor, r_b: Tensor) -> Tensor:
    """tr(R_a R_b) of symmetric matrices (..., m, m): how much a and b depend on each other."""
    return (r_a * r_b).sum((-2, -1))


def bottleneck(hidden: Sequence[Tensor], x: Tensor, y: Tensor, sigma: float, weight_x: float, weight_y: float) -> Tensor:
    """Sum over the hidden outputs h (m, ...) of weight_x HSIC(h, x) - weight_y HSIC(h, y)."""
    with torch.autocast(x.device.type, enabled=False):
        r = normalised(torch.stack([*(gaussian(a, sigma) for a in (*hidden, x)), agreement(y)]))
        return (weight_x * hsic(r[:-2], r[-2]) - weight_y * hsic(r[:-2], r[-1])).sum().float()


def imitation(teacher: nn.Module, numbers: Mapping[str, float], hidden: Sequence[nn.Module] = ()) -> Objective:
    """Distillation on images as they are, and the bottleneck on the outputs of the modules in ``hidden``, if there are any."""

    def loss(model: Model, x: Tensor, y: Tensor, at: Progress) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            soft = teacher(x)
        logits, outputs = model.features(x, list(hidden))
        value = numbers["distill"] * distillation(logits, soft, numbers["temperature"])
        if outputs:
            value = value + bottleneck(outputs, x, y, numbers["sigma"], numbers["hsic_x"], numbers["hsic_y"])
        return value, logits

    return loss


def hidden_modules(net: nn.Module, sample: Tensor) -> list[nn.Module]:
    """The modules whose outputs the bottleneck looks at; in networks that are not ours, those that run on ``sample`` images.

    Raises:
        Invalid: there is no ReLU among them.
    """
    if isinstance(net, ResNet):
        return [net.relu1, *(m.relu2 for m in net.modules() if isinstance(m, BasicBlock)), net.pool]
    if isinstance(net, VGG):
        return [m for m in net.features if isinstance(m, nn.MaxPool2d)] + [m for m in net.classifier if isinstance(m, nn.ReLU)]
    pools = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)
    ran: list[nn.Module] = []
    handles = [m.register_forward_hook(lambda m, *_: ran.append(m)) for m in net.modules() if isinstance(m, (nn.ReLU, *pools))]
    try:
        with torch.no_grad(), evaluating(net):
            net(sample.to(next(net.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    relus = list(dict.fromkeys(m for m in ran if isinstance(m, nn.ReLU)))
    if not relus:
        raise Invalid(
            f"PwoA looks at what nn.ReLU modules put out, and {type(net).__name__} has none; build it with nn.ReLU modules, or set "
            "hsic_x=0 and hsic_y=0 to do without"
        )
    return relus + [m for m in ran if isinstance(m, pools)][-1:]


def target(run: Runner) -> Target:
    """In each layer the ceil((n - 1) p) lowest of n weights go, or floor((n - 1) p) + 1 of n filters, but not an only one."""
    layers = tuple(layer for layer in run.layers if layer.kind == "conv" or "fc.weight" in layer.name)
    if not layers:
        raise Invalid(f"PwoA prunes convolutions, and {run.network_name} has none; give a network with nn.Conv2d modules")
    plain = replace(run.target(run.recipe.sparsity), layers=layers)
    return replace(plain, counts=percentile_counts(plain.sizes(), plain.sparsity, at=plain.structure == "filters"))


def stages(run: Runner):
    """Pretrain, ADMM and the cut on images as they are, fine-tune on images as they are."""
    r, b, c = run.recipe, run.budget, run.constants
    chosen = target(run)
    hidden = hidden_modules(run.net, run.dataset.sample()) if c["hsic_x"] or c["hsic_y"] else []

    def pretrain(s: Stage):
        yield from run.fit(s, r.pretraining, epochs=b.epochs, lr=cosine(b.lr))

    def prune(s: Stage):
        kind = RestartedAdmm if r.as_released else Admm
        mechanism = kind(
            run.params(), chosen, rho=b.rho, growth=b.rho_growth, period=b.dual_period, cap=c["rho_cap"], rescale=False
        )
        lr = saw_tooth(c["search_lr"], b.dual_period)
        yield from run.fit(
            s, imitation(teacher, c), epochs=b.search_epochs, lr=late(lr) if r.as_released else lr, mechanism=mechanism
        )
        masks = mechanism.masks(run.params())
        yield run.pruned(masks, chosen)
        bake_(run.net, FixedMasks(masks))
        return masks

    def finetune(s: Stage):
        yield from run.fit_masked(s, masks, imitation(teacher, c, hidden), epochs=b.finetune_epochs, lr=cosine(b.finetune_lr))

    yield from run.stage("pretraining", pretrain, method=r.method, objective=r.pretraining)
    teacher = run.copy_of(run.state()).requires_grad_(False)
    masks = yield from run.stage("pruning", prune)
    yield from run.stage("finetuning", finetune)
    return masks
