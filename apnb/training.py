"""The one training loop, a generator of events. It knows objectives and mechanisms, and no method."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from apnb.errors import Invalid
from apnb.events import Batch, Epoch, Event
from apnb.mechanisms import Mechanism, Model, Params, Progress, load_state, state_of
from apnb.objectives import Objective, evaluating

Schedule = Callable[[Progress], float]


def sgd(groups: list[dict], weight_decay: float = 5e-4) -> Optimizer:
    """SGD with momentum 0.9, what most of the surveyed methods train with; a group may set options of its own."""
    return SGD([dict(g) for g in groups], lr=0.0, momentum=0.9, weight_decay=weight_decay)


def cosine(peak: float) -> Schedule:
    """From ``peak`` to zero on half a cosine, step by step."""
    return lambda at: peak * 0.5 * (1 + math.cos(math.pi * at.step / max(at.steps, 1)))


def late_cosine(peak: float) -> Schedule:
    """The cosine of HYDRA's and HARP's code: one value an epoch, one epoch late, so that epochs 0 and 2 are alike."""
    return lambda at: peak * 0.5 * (1 + math.cos(math.pi * (at.epoch - 1) / at.epochs))


def one_cycle(peak: float, warm: float = 0.2) -> Schedule:
    """Linearly up to ``peak`` over the first ``warm`` share of the steps, then linearly towards zero; read at mid-step."""

    def lr(at: Progress) -> float:
        t = (at.step + 0.5) / max(at.steps, 1)
        return peak * min(t / warm, (1 - t) / (1 - warm))

    return lr


def milestones(peak: float, *shares: float, warm: int = 0) -> Schedule:
    """``peak``, a tenth of it from epoch ceil(share * epochs) on for each of ``shares``; the same throughout an epoch.

    With ``warm`` epochs of warm-up, epoch t of them (from 0) has peak * (t + 1) / warm.
    """

    def lr(at: Progress) -> float:
        if at.epoch < warm:
            return peak * (at.epoch + 1) / warm
        return peak * 0.1 ** sum(at.epoch >= math.ceil(share * at.epochs) for share in shares)

    return lr


def saw_tooth(peak: float, period: int) -> Schedule:
    """``peak``, a tenth and a hundredth of it in the thirds of every ``period`` epochs: what the surveyed ADMM methods train with."""
    return lambda at: peak * 0.1 ** math.floor(3 * (at.epoch % period) / period)


def fit(
    net: nn.Module,
    data: Callable[[int], Iterator[tuple[Tensor, Tensor]]],
    objective: Objective,
    *,
    epochs: int,
    lr: Schedule,
    mechanism: Mechanism | None = None,
    optimizer: Callable[[list[dict]], Optimizer] = sgd,
    bn: str = "train",
    validate: Callable[[Model, Progress], dict] | None = None,
    select: str | None = None,
    resume: dict | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Event]:
    """Train ``net`` in place and say what happens.

    Args:
        data: epoch -> iterator of batches x (N, C, H, W) float32 in [0, 1] and y int64 (N,), on the network's device; has a
            length, the steps of an epoch.
        objective: see `apnb.objectives`.
        lr: progress -> learning rate, set before each step (times a group's ``scale``).
        mechanism: see `apnb.mechanisms`; the weights are not written back: what a stage leaves in the network are its
            parameters, and whoever wants the effective weights there calls `bake_`.
        bn: "train", or "eval" to leave running statistics alone.
        validate: (model, progress) -> metrics, called after each epoch.
        select: the metric whose highest value says which epoch's end is the result: network and mechanism go back there when the
            stage ends; of equals the last, and where it is not measured the last of all. Only ends at which the mechanism is
            ``ready`` count, so a mechanism that never was is an error even where nothing is selected.
        resume: a snapshot of an `Epoch` event; the stage goes on there, bit-identical on a CPU.
        generator: the generator that the objective draws from; its state is part of the snapshot.

    Yields:
        `Batch` after each step and `Epoch` after each epoch. Closing the generator puts gradient flags and modes back.

    Raises:
        Invalid: the loss is no longer finite, or the mechanism was at no end of an epoch ready to be the result.
    """
    mechanism = mechanism or Mechanism()
    params: Params = dict(net.named_parameters())
    at = Progress(epochs=epochs, steps=epochs * len(data), params=params)
    flags = {n: p.requires_grad for n, p in params.items()}
    modes = [(m, m.training) for m in net.modules()]
    device = next(iter(params.values())).device
    rarely = 1 if device.type == "cpu" else 50
    try:
        groups = [g for g in mechanism.groups(params) if g["params"]]
        learning = {id(p) for g in groups for p in g["params"]}
        for p in params.values():
            p.requires_grad_(id(p) in learning)
        at.optimizer = opt = optimizer(groups)
        first = _restore(resume, at, net, opt, mechanism, generator) if resume else 0
        best = resume.get("best") if resume else None
        for at.epoch in range(first, epochs + 1):
            mechanism.between_epochs(at)
            if select and at.epoch and mechanism.ready and (best is None or at.metrics.get(select, 0.0) >= best["value"]):
                best = {"value": at.metrics.get(select, 0.0), "net": _state(net), "mechanism": state_of(mechanism)}
            if mechanism.done or at.epoch == epochs:
                break
            net.train(bn == "train")
            losses, right, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
            for x, y in data(at.epoch):
                at.lr = lr(at)
                for g in opt.param_groups:
                    g["lr"] = at.lr * g.get("scale", 1.0)
                model = Model(net, params, mechanism)
                loss, logits = objective(model, x, y, at)
                loss = loss + mechanism.penalty(params, at)
                opt.zero_grad(set_to_none=True)
                loss.backward()
                mechanism.update(opt, at)
                at.step += 1
                with torch.no_grad():
                    losses += loss.detach() * len(y)
                    right += (logits.argmax(1) == y).sum()
                    seen += len(y)
                told = {"loss": float(loss.detach())} if at.step % rarely == 0 else {}
                yield Batch(step=at.step, of=at.steps, metrics={"lr": at.lr, **told})
            at.metrics = {"loss": float(losses) / seen, "accuracy": float(right) / seen, "lr": at.lr}
            if not math.isfinite(at.metrics["loss"]):
                raise Invalid(
                    f"training diverged: the loss of epoch {at.epoch + 1} is {at.metrics['loss']}; lower the learning rate "
                    "(Budget.lr) or the strength of the penalty (Budget.strength)"
                )
            if validate:
                at.metrics |= validate(Model(net, params, mechanism), at)
            done = at.epoch + 1
            yield Epoch(
                step=done,
                of=epochs,
                metrics=dict(at.metrics),
                snapshot=lambda done=done, best=best: _snapshot(done, at, net, opt, mechanism, generator) | {"best": best},
            )
        if best is not None:
            net.load_state_dict(best["net"])
            load_state(mechanism, best["mechanism"])
        elif not mechanism.ready:
            raise Invalid(mechanism.unready)
    finally:
        for n, p in params.items():
            p.requires_grad_(flags[n])
            p.grad = None
        for m, training in modes:
            m.training = training


def _snapshot(epoch: int, at: Progress, net: nn.Module, opt: Optimizer, mechanism: Mechanism, generator) -> dict:
    return {
        "epoch": epoch,
        "step": at.step,
        "metrics": dict(at.metrics),
        "net": _state(net),
        "optimizer": copy.deepcopy(opt.state_dict()),
        "mechanism": state_of(mechanism),
        "generator": generator.get_state() if generator is not None else None,
    }


def _state(net: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in net.state_dict().items()}


@torch.no_grad()
def _restore(snapshot: dict, at: Progress, net: nn.Module, opt: Optimizer, mechanism: Mechanism, generator) -> int:
    own = net.state_dict()
    for n, t in snapshot["net"].items():
        own[n].copy_(t)
    opt.load_state_dict(copy.deepcopy(snapshot["optimizer"]))
    load_state(mechanism, snapshot["mechanism"])
    if generator is not None and snapshot["generator"] is not None:
        generator.set_state(snapshot["generator"].cpu())
    at.step, at.metrics = snapshot["step"], dict(snapshot["metrics"])
    return snapshot["epoch"]


@torch.no_grad()
def bake_(net: nn.Module, mechanism: Mechanism) -> None:
    """Write the effective weights into the network: a plain ``state_dict`` with zeros in it."""
    params = dict(net.named_parameters())
    weights = {n: w.detach().clone() for n, w in Model(net, params, mechanism).weights.items()}
    for n, p in params.items():
        p.copy_(weights[n])


def mean_statistic(
    net: nn.Module,
    data: Iterator[tuple[Tensor, Tensor]],
    objective: Objective,
    statistic: Callable[[Tensor, Tensor], Tensor],
    mechanism: Mechanism | None = None,
) -> Params:
    """One pass without training: the mean over batches of ``statistic(weight, gradient)`` at the effective weights.

    The network is in evaluation mode; the gradient is that of ``objective`` (so of the attacked loss, for an adversarial one)
    with respect to the weights the network runs with, hence defined for masked weights too.
    """
    params = dict(net.named_parameters())
    effective = (mechanism or Mechanism()).effective(params)
    leaves = {n: w.detach().clone().requires_grad_(True) for n, w in effective.items()}
    sums: Params = {}
    count = 0
    with evaluating(net):
        for x, y in data:
            loss, _ = objective(Model(net, leaves), x, y, Progress())
            grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for (n, w), g in zip(leaves.items(), grads, strict=True):
                value = statistic(w.detach(), torch.zeros_like(w) if g is None else g)
                sums[n] = sums[n] + value if n in sums else value
            count += 1
    return {n: s / count for n, s in sums.items()}


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, batch: int = 500) -> float:
    """Share of images classified correctly."""
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(batch), y.split(batch), strict=True))
    return right / len(y)
