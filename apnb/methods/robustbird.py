r"""Robust Bird: train until the mask of the smallest magnitudes no longer changes, prune once, train the sparse network robustly.

Chen, Zhang, Wang, Balachandra, Ma, Wang, Wang: "Sparsity Winning Twice: Better Robust Generalization from More Efficient Training",
ICLR 2022, arXiv 2202.09844. Cell: before training, iterative, weights, global, LWM; PGD adversarial training.

1. Train the dense network, by default on the images as they are (command of the authors). After each epoch form the mask that a global
   cut at sparsity p would give to the convolutions, :math:`m = 1[|w| > t]`, t the int(N p)-th of their N sorted magnitudes (from 0), and
   keep the last five. When the newest differs from each of the other four in at most 8 % of the N entries, the ticket is found:
   epoch 5 at the earliest. If that never happens the last epoch is pruned.
2. Remove the round(p N) smallest magnitudes of all convolutions and linear layers, first layer, shortcuts and classifier included.
   This is not the mask that was compared. Nothing holds a layer open, so one of small weights can be emptied.
3. Train on from the weights reached, without going back, with the optimizer and the learning rate started anew and the mask fixed;
   the result is the epoch with the best PGD accuracy on validation images.

Two masks that keep K of N entries differ in at most 2 K of them, so from p = 0.96 on the comparison always agrees and the first
stage lasts five epochs. A network without convolutions is watched in all its layers, which is ours.

Constants (code and README of the authors, CIFAR-10): at most 200 epochs and then 200; SGD 0.1, momentum 0.9, weight decay 5e-4, batch
128; PGD with 10 steps of eps/4 from a random start, in training mode, so that attacks move the running statistics; 20 steps in
validation. The rate falls to a tenth at 100 and to a hundredth at 150 epochs (main script of the same repository; the paper is said
to do so, which is not checked). Their FGSM search runs on a cyclic rate of its own and attacks in evaluation mode; here a search on
attacked images keeps the schedule and the training mode. With which objective the survey searched beyond its word AT is not known.

``as_released``: the rate falls at a quarter and three quarters of the epochs, the defaults of the code (50 and 150 of 200).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apnb.mechanisms import Mechanism, Params, Progress
from apnb.training import milestones

if TYPE_CHECKING:
    from apnb.runner import Runner, Stage


class EarlyBird(Mechanism):
    """Plain training that ends when the masks of the last ``window`` epochs differ in no more than ``threshold`` of their entries.

    ``names`` are the weights looked at, together N; ``queue`` holds at most ``window`` bool masks (N,), the newest last.
    """

    constant = ("names", "sparsity", "window", "threshold")

    def __init__(self, names: tuple[str, ...], sparsity: float, *, window: int, threshold: float):
        self.names, self.sparsity, self.window, self.threshold = names, sparsity, window, threshold
        self.queue: list[Tensor] = []

    def mask(self, params: Params) -> Tensor:
        """True above the threshold, (N,): N - int(N p) - 1 entries if no two magnitudes are equal."""
        size = torch.cat([params[n].detach().abs().flatten() for n in self.names])
        return size > size.kthvalue(int(len(size) * self.sparsity) + 1).values

    def distances(self) -> list[float]:
        """Share of entries in which the newest mask differs from each of the older ones."""
        *older, newest = self.queue
        return [int((newest ^ m).sum()) / len(newest) for m in older]

    def between_epochs(self, at: Progress) -> None:
        if at.epoch:
            self.queue = [*self.queue, self.mask(at.params)][-self.window :]
            self.done = len(self.queue) == self.window and max(self.distances(), default=0.0) <= self.threshold


def stages(run: Runner):
    """Wait for the early bird and cut, train what is left."""
    r, b, c = run.recipe, run.budget, run.constants
    chosen = run.target(r.sparsity).unguarded()
    schedule = milestones(b.lr, 0.25 if r.as_released else 0.5, 0.75)

    def loss(s: Stage, key: str):
        return run.objective(key, s, attack_bn="train")

    def prune(s: Stage):
        watched = tuple(layer.name for layer in run.layers if layer.kind == "conv") or tuple(layer.name for layer in run.layers)
        bird = EarlyBird(watched, r.sparsity, window=c["window"], threshold=c["threshold"])
        yield from run.fit(s, loss(s, r.pruning_step), epochs=b.search_epochs, lr=schedule, mechanism=bird)
        masks = chosen.select({n: p.detach().abs() for n, p in run.params().items()})
        yield run.pruned(masks, chosen)
        return masks

    def train(s: Stage):
        watch = lambda model, at: run.validate_attacked(model, at, steps=c["val_steps"])  # noqa: E731
        yield from run.fit_masked(s, masks, loss(s, r.training_step), epochs=b.epochs, lr=schedule, watch=watch, select="val_pgd")

    masks = yield from run.stage("pruning", prune)
    yield from run.stage("training", train)
    return masks
