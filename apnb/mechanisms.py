"""What a method adds to training: where the weights come from, what they cost, how they move.

A mechanism knows no data and no method. Five optional hooks: `groups`, `effective`, `penalty`, `update`, `between_epochs`.
`Model` is a network seen through one. The mechanisms here are the shared ones; what is peculiar to one published method stands in
its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from apnb.chance import normal
from apnb.masks import Masks, Target

Params = dict[str, Tensor]
Group = dict[str, Any]
Selector = Callable[..., Masks]


@dataclass
class Progress:
    """Where a training stage stands; written by the loop, read by everybody else. ``epoch`` counts epochs done."""

    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    lr: float = 0.0
    metrics: dict = field(default_factory=dict)
    params: Params = field(default_factory=dict)
    optimizer: Optimizer | None = None


class Mechanism:
    """The default adds nothing: every parameter learns, weights are themselves.

    Attributes are tensors, numbers, flags, other mechanisms, or dicts and lists of these: they are the mechanism's state, which
    a snapshot stores (names in ``constant`` are given at construction and are left out). Learnable tensors are `nn.Parameter`s,
    named like the parameter they belong to: ``scores["conv1.weight"]``.
    """

    stochastic = False  # True: `effective` draws noise and is called for every forward pass, attack steps included
    done = False  # between_epochs may set it: the stage is over
    ready = True  # False: this state may not be the stage's result; ``unready`` then says what is missing
    unready = ""
    constant: tuple[str, ...] = ()

    def groups(self, params: Params) -> list[Group]:
        """What this stage trains: optimizer groups. What is in no group is frozen. Option ``scale`` multiplies the rate."""
        return [{"params": list(params.values())}]

    def effective(self, params: Params) -> Params:
        """The weights the network runs with; same names and shapes, differentiable in whatever learns. Changes nothing."""
        return params

    def penalty(self, params: Params, at: Progress) -> Tensor | float:
        """Loss term that needs no data; added once a batch."""
        return 0.0

    def update(self, optimizer: Optimizer, at: Progress) -> None:
        """One step. Override to act just before or after it; gradients are in ``.grad``."""
        optimizer.step()

    def between_epochs(self, at: Progress) -> None:
        """Called with ``at.epoch`` = epochs done: 0 before the first, ``at.epochs`` after the last."""


def through(hard: Tensor, *soft: Tensor) -> Tensor:
    """Straight-through: the value of ``hard``, the gradient of the sum of ``soft``: hard + (soft - soft.detach())."""
    out = hard.detach()
    for s in soft:
        out = out + (s - s.detach())
    return out


class Model:
    """A plain network seen with given weights: ``model(x)`` is one functional call, the network itself is not rewritten.

    The weights are computed at first use, with gradients enabled and outside autocast (a statistics pass without gradients must
    not leave them without a graph), and kept; a stochastic mechanism computes them anew at each use. BN buffers are the
    network's own and move in train mode.
    """

    def __init__(self, net: nn.Module, params: Params, mechanism: Mechanism | None = None, device_type: str | None = None):
        self.net, self.params, self.mechanism = net, params, mechanism or Mechanism()
        self._device_type = device_type or next(iter(params.values())).device.type
        self._weights: Params | None = None

    @property
    def weights(self) -> Params:
        """Effective weights, name -> tensor, float32."""
        if self._weights is None or self.mechanism.stochastic:
            with torch.enable_grad(), torch.autocast(self._device_type, enabled=False):
                self._weights = self.mechanism.effective(self.params)
        return self._weights

    def __call__(self, x: Tensor) -> Tensor:
        return functional_call(self.net, self.weights, (x,))

    def frozen(self) -> Callable[[Tensor], Tensor]:
        """The same network with the same weights, detached: what an attack gets."""
        if self.mechanism.stochastic:
            return lambda x: functional_call(self.net, {n: w.detach() for n, w in self.weights.items()}, (x,))
        weights = {n: w.detach() for n, w in self.weights.items()}
        return lambda x: functional_call(self.net, weights, (x,))

    def features(self, x: Tensor, modules: list[nn.Module]) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the outputs of some of the network's modules, in the order asked for."""
        seen: dict[int, Tensor] = {}
        handles = [m.register_forward_hook(lambda m, _, out: seen.__setitem__(id(m), out)) for m in modules]
        try:
            logits = self(x)
        finally:
            for handle in handles:
                handle.remove()
        return logits, [seen[id(m)] for m in modules]


class FixedMasks(Mechanism):
    """w * m for every name in ``masks``: what is masked stays zero, whatever the optimizer does. The last stage of most methods."""

    def __init__(self, masks: Mapping[str, Tensor]):
        self.masks = dict(masks)

    def effective(self, params: Params) -> Params:
        return params | {n: params[n] * m for n, m in self.masks.items()}


class Within(Mechanism):
    """Another mechanism, inside masks from an earlier round: its effective weights times those masks."""

    constant = ("masks",)

    def __init__(self, masks: Mapping[str, Tensor], inner: Mechanism):
        self.masks, self.inner = dict(masks), inner

    def groups(self, params: Params) -> list[Group]:
        return self.inner.groups(params)

    def effective(self, params: Params) -> Params:
        weights = self.inner.effective(params)
        return weights | {n: weights[n] * m for n, m in self.masks.items()}

    def penalty(self, params: Params, at: Progress) -> Tensor | float:
        return self.inner.penalty(params, at)

    def update(self, optimizer: Optimizer, at: Progress) -> None:
        self.inner.update(optimizer, at)

    def between_epochs(self, at: Progress) -> None:
        self.inner.between_epochs(at)


class Regularised(Mechanism):
    r"""A sparsity-inducing penalty on the weights in scope.

    l1: :math:`\lambda\sum|w|` (Tibshirani 1996). Group lasso: :math:`\lambda\sum_g \sqrt{|g|}\,\|w_g\|_2` over the units g of the
    structure (Yuan and Lin 2006, eq. 2.1), which sends whole units to zero together.
    """

    constant = ("target",)

    def __init__(self, target: Target, kind: str, strength: float):
        self.target, self.kind, self.strength = target, kind, strength

    def penalty(self, params: Params, at: Progress) -> Tensor | float:
        total: Tensor | float = 0.0
        for name in self.target.sizes():
            w = params[name]
            total = total + (w.abs().sum() if self.kind == "l1" else self._groups_norm(name, w))
        return self.strength * total

    def _groups_norm(self, name: str, w: Tensor) -> Tensor:
        layer = next(layer for layer in self.target.layers if layer.name == name)
        if self.target.structure == "filters":
            g = w.flatten(1)
        elif self.target.structure == "kernels":
            g = w.flatten(2).flatten(0, 1)
        else:
            g = w.unflatten(1, (-1, layer.maps)).transpose(0, 1).flatten(1)
        return g.shape[1] ** 0.5 * (g.square().sum(1) + 1e-12).sqrt().sum()


class LearnedScores(Mechanism):
    r"""Learn which weights matter: descend the training loss over scores while the weights stay as they are.

    The network runs with :math:`w \odot m`, m the mask that the current scores select; backward treats the selection as the
    identity from |s| to m (straight-through), so dropped weights have a gradient too: dL/ds = dL/dw_eff * w * sign(s).
    Scores start as :math:`\sqrt{6/\mathrm{fan\_in}}\; w / \max|w|`, so that the first mask is the one of magnitude.
    The parameters named in ``norms`` learn with the scores; all others are frozen. ``start`` gives other first scores, name ->
    tensor of the weight's shape. Source: Sehwag et al. 2020 (HYDRA), section 4.
    """

    constant = ("target", "within", "norms")

    def __init__(
        self,
        params: Params,
        target: Target,
        norms: tuple[str, ...],
        within: Masks | None = None,
        start: Mapping[str, Tensor] | None = None,
    ):
        self.target, self.within, self.norms = target, within, norms
        first = start or {n: scaled(params[n].detach()) for n in target.sizes()}
        self.scores = {n: nn.Parameter(s) for n, s in first.items()}

    def groups(self, params: Params) -> list[Group]:
        return [{"params": [*self.scores.values(), *(params[n] for n in self.norms)]}]

    def effective(self, params: Params) -> Params:
        size = {n: s.abs() for n, s in self.scores.items()}
        masks = self.target.select({n: s.detach() for n, s in size.items()}, self.within, check=False)
        return params | {n: params[n].detach() * through(m.float(), size[n]) for n, m in masks.items()}


def scaled(w: Tensor) -> Tensor:
    r"""A weight as a first score: :math:`\sqrt{6/\mathrm{fan\_in}}\; w / \max|w|` (Sehwag et al. 2020, section 4.2)."""
    return (6 / w[0].numel()) ** 0.5 * w / w.abs().max().clamp_min(1e-12)


class Admm(Mechanism):
    r"""Pull the weights towards a sparse copy of themselves: the alternating direction method of multipliers.

    :math:`\min_W L(W) + \frac{\rho}{2}\|W - Z + U\|^2`; every ``period`` epochs :math:`Z = \Pi(W + U)`, the projection onto the
    wanted sparsity (the same selection as everywhere, by magnitude), :math:`U \leftarrow W + U - Z`, and rho grows by ``growth``, by
    which the scaled dual U is then divided (``rescale``). The duals are constants in the penalty. A unit's magnitude is its
    :math:`\ell_2` norm. Source: Boyd et al. 2011, sections 3.4.1 and 9.1 (textbook form); in pruning Zhang et al. 2018, Ye et al. 2019.

    Args:
        cap: rho does not grow beyond it. rescale: False where a method keeps U as it is when rho grows.
    """

    constant = ("target", "within", "rescale", "cap")

    def __init__(
        self,
        params: Params,
        target: Target,
        *,
        rho: float,
        growth: float,
        period: int = 1,
        within: Masks | None = None,
        cap: float = float("inf"),
        rescale: bool = True,
    ):
        self.target, self.within, self.cap, self.rescale = target, within, cap, rescale
        self.rho, self.growth, self.period = rho, growth, period
        self.U = {n: torch.zeros_like(params[n]) for n in target.sizes()}
        self.Z = {n: w.clone() for n, w in self._project({n: params[n].detach() for n in self.U}).items()}

    def masks(self, v: Params) -> Masks:
        """What the projection of ``v`` keeps; of the network's parameters, it is the final cut."""
        size = Tensor.abs if self.target.structure == "weights" else Tensor.square
        return self.target.select({n: size(v[n].detach()) for n in self.target.sizes()}, self.within)

    def _project(self, v: Params) -> Params:
        masks = self.masks(v)
        return {n: x * masks[n] for n, x in v.items()}

    def penalty(self, params: Params, at: Progress) -> Tensor:
        return self.rho / 2 * sum((params[n] - z + self.U[n]).square().sum() for n, z in self.Z.items())

    def between_epochs(self, at: Progress) -> None:
        if not 0 < at.epoch < at.epochs or at.epoch % self.period:
            return
        before, self.rho = self.rho, min(self.cap, self.rho * self.growth)
        v = {n: at.params[n].detach() + u for n, u in self.U.items()}
        for n, z in self._project(v).items():
            self.Z[n].copy_(z)
            self.U[n].copy_((v[n] - z) / (self.rho / before if self.rescale and before else 1.0))


class Dynamic(Mechanism):
    r"""Masks that are selected anew while the weights train, and fixed at the end: pruning during training.

    Between ``first`` and ``last`` steps, every few steps, ``choose`` reads scores off the weights (and off the search mechanism or
    the running mean of a gradient statistic) and selects masks. The network runs with w * m while backward sees w
    (straight-through), so dormant weights keep a gradient and can return. After the last selection the masks stay as they are,
    the search is over and dormant weights are out of the graph.

    Args:
        plan: step (1-based, optimizer steps done) -> selector, which gets (params, search, mean statistic) and returns masks.
        search: the criterion's own mechanism, active until the last selection.
        statistic: (weight, gradient) -> tensor, averaged over the steps since the last selection; None where no score needs it.
    """

    constant = ("plan", "statistic", "last")

    def __init__(self, plan: Mapping[int, Selector], search: Mechanism, statistic: Callable | None, names: tuple[str, ...]):
        self.plan, self.search, self.statistic = dict(plan), search, statistic
        self.last = max(self.plan)
        self.names = list(names)
        self.masks: Masks = {}
        self.sums: dict[str, Tensor] = {}
        self.seen = 0
        self.selections = 0
        self.fixed = False

    def groups(self, params: Params) -> list[Group]:
        own = {id(p) for p in params.values()}
        extra = [p for g in self.search.groups(params) for p in g["params"] if id(p) not in own]
        return [{"params": list(params.values())}] + ([{"params": extra}] if extra else [])

    def effective(self, params: Params) -> Params:
        if self.fixed:
            return params | {n: params[n] * m for n, m in self.masks.items()}
        scores = getattr(self.search, "scores", {})
        weights = {}
        for n in self.names:
            w = params[n]
            hard = w * self.masks[n] if self.masks else w
            soft = [w, w.detach() * scores[n].abs()] if n in scores else [w]
            weights[n] = through(hard, *soft)
        return params | weights

    def penalty(self, params: Params, at: Progress) -> Tensor | float:
        return 0.0 if self.fixed else self.search.penalty(params, at)

    def _calm(self, params: Params) -> None:
        """Scale the dormant entries' gradient so that its root mean square in a tensor does not exceed that of the kept ones.

        A filter that is removed whole feeds zeros into its batch norm, whose backward then multiplies by 1/sqrt(1e-5): without
        this, dormant filters would be thrown about by gradients some hundred times too large, and a gradient statistic (read after
        this) would compare the two kinds on unequal terms.
        """
        for n, m in self.masks.items():
            g = params[n].grad
            squares, kept = g.square(), m.sum()
            active = (squares * m).sum() / kept
            dormant = (squares * ~m).sum() / (m.numel() - kept).clamp_min(1)
            g.mul_(torch.where(m, 1.0, (active / dormant.clamp_min(1e-30)).sqrt().clamp(max=1.0)))

    def update(self, optimizer: Optimizer, at: Progress) -> None:
        if self.masks and not self.fixed:
            self._calm(at.params)
        if self.statistic is not None and not self.fixed:
            for n in self.names:
                value = self.statistic(at.params[n].detach(), at.params[n].grad)
                self.sums[n] = self.sums[n] + value if n in self.sums else value.contiguous()
            self.seen += 1
        optimizer.step()
        if (done := at.step + 1) in self.plan:
            mean = {n: s / self.seen for n, s in self.sums.items()}
            weights = {n: p.detach() for n, p in at.params.items()}
            self.masks = self.plan[done](weights, self.search, mean)
            self.sums, self.seen = {}, 0
            self.selections += 1
            self.fixed = done == self.last

    def between_epochs(self, at: Progress) -> None:
        if not self.fixed:
            self.search.between_epochs(at)


class Connectivity(Mechanism):
    r"""Bayesian connectivity sampling: a fixed number of connections, rewired at every step.

    Each possible connection has a sign s that never changes and a strength :math:`\theta`; it exists iff :math:`\theta > 0`, and
    the network runs with :math:`W = s\,\theta\,1[\theta > 0]`. A step decays all parameters (decoupled from the rate), makes the
    SGD step (in which leftover momentum revives no dormant connection, unlike in the authors' code, so that the budget holds at
    every step), adds noise :math:`\mathrm{lr}\cdot\xi,\ \xi \sim N(0, (10^{-6})^2)` to the connections that existed, and switches
    on as many dormant ones as died, drawn uniformly, with :math:`\theta = 10^{-12}`. Dormant strengths have exactly zero gradient.
    Torch's momentum multiplies by the current rate, the authors' folds it in: the buffer is rescaled at every change of rate.

    Here the budget is met from the first step on, with the same share in every layer; globally, layers then drift (a draw falls on
    a layer in proportion to its size), locally each layer keeps its own number. A reborn connection keeps its old momentum.

    Source: Özdenizci and Legenstein 2021 (BCS-P), section 3; rewiring as in DEEP R (Bellec et al. 2018).
    """

    constant = ("target", "generator", "signs")

    def __init__(self, params: Params, target: Target, *, decay: float, generator: torch.Generator):
        self.target, self.decay, self.generator = target, decay, generator
        self.lr = 0.0
        sizes, drop = target.sizes(), target.drop()
        keep = _spread(sizes, drop) if isinstance(drop, int) else {n: sizes[n] - drop[n] for n in sizes}
        self.keep = keep if target.locality == "local" else {"": sum(keep.values())}
        self.signs = {}
        for n, k in keep.items():
            w = params[n]
            self.signs[n] = torch.where(normal(w, generator) < 0, -1.0, 1.0)
            strength = (normal(w, generator).clamp(-2, 2).abs() * (2 / w[0].numel()) ** 0.5).clamp_min(1e-12)
            alive = torch.zeros(w.numel(), dtype=torch.bool, device=w.device)
            alive[self._draw(w.numel(), k, w.device)] = True
            with torch.no_grad():
                w.copy_(strength * alive.view_as(w))

    def _draw(self, n: int, k: int, device: torch.device) -> Tensor:
        """k of n positions, uniformly, without replacement."""
        return torch.randperm(n, generator=self.generator, device=self.generator.device)[:k].to(device)

    def groups(self, params: Params) -> list[Group]:
        return [{"params": list(params.values()), "weight_decay": 0.0}]

    def masks(self, params: Params) -> Masks:
        """True where a connection exists; newborns of strength 1e-12 count."""
        return {n: params[n].detach() > 0 for n in self.signs}

    def effective(self, params: Params) -> Params:
        return params | {n: s * params[n] * (params[n] > 0) for n, s in self.signs.items()}

    @torch.no_grad()
    def update(self, optimizer: Optimizer, at: Progress) -> None:
        if self.lr and at.lr != self.lr:
            for state in optimizer.state.values():
                if state.get("momentum_buffer") is not None:
                    state["momentum_buffer"].mul_(self.lr / at.lr if at.lr else 1.0)
        self.lr = at.lr
        alive = self.masks(at.params)
        for p in at.params.values():
            p.mul_(1 - self.decay)
        optimizer.step()
        for n, was in alive.items():
            at.params[n].copy_(torch.where(was, at.params[n], at.params[n].clamp_max(0)))  # momentum revives nothing
            at.params[n].add_(normal(at.params[n], self.generator) * was, alpha=1e-6 * at.lr)
        self._rewire(at.params)

    def _rewire(self, params: Params) -> None:
        alive = self.masks(params)
        if "" in self.keep:
            missing = self.keep[""] - sum(int(m.sum()) for m in alive.values())
            wanted = self._share(
                missing, {n: m.numel() for n, m in alive.items()}, {n: int((~m).sum()) for n, m in alive.items()}
            )
        else:
            wanted = {n: self.keep[n] - int(m.sum()) for n, m in alive.items()}
        for n, k in wanted.items():
            if k > 0:
                dormant = (~alive[n]).flatten().nonzero().squeeze(1)
                born = dormant[self._draw(len(dormant), k, dormant.device)]
                params[n][torch.unravel_index(born, params[n].shape)] = 1e-12  # in any memory format

    def _share(self, missing: int, sizes: dict[str, int], room: dict[str, int]) -> dict[str, int]:
        """Draw a layer for each missing connection in proportion to the layers' sizes; what finds no room is drawn again elsewhere."""
        wanted = dict.fromkeys(sizes, 0)
        while missing > 0:
            open_ = [n for n in sizes if wanted[n] < room[n]]
            weight = torch.tensor([float(sizes[n]) for n in open_])
            drawn = torch.multinomial(
                weight.to(self.generator.device), missing, replacement=True, generator=self.generator
            ).bincount(minlength=len(open_))
            for n, k in zip(open_, drawn.tolist(), strict=True):
                taken = min(k, room[n] - wanted[n])
                wanted[n] += taken
                missing -= taken
        return wanted


def _spread(sizes: Mapping[str, int], drop: int) -> dict[str, int]:
    """The same share of every layer, at least one in each, summing exactly to the total minus ``drop`` (largest remainder)."""
    total = sum(sizes.values())
    budget = total - drop
    exact = {n: 1 + (budget - len(sizes)) * (k - 1) / max(total - len(sizes), 1) for n, k in sizes.items()}
    keep = {n: int(e) for n, e in exact.items()}
    for n in sorted(sizes, key=lambda n: keep[n] - exact[n])[: budget - sum(keep.values())]:
        keep[n] += 1
    return keep


def state_of(mechanism: Mechanism) -> dict:
    """The mechanism's state: its attributes except those given at construction; nested mechanisms as nested dicts."""
    state = {}
    for name, value in _attributes(mechanism):
        state[name] = {"mechanism": state_of(value)} if isinstance(value, Mechanism) else _plain(value)
    return state


@torch.no_grad()
def load_state(mechanism: Mechanism, state: Mapping) -> None:
    """Put a state back. Learnable tensors are copied into, since the optimizer holds them."""
    for name, value in state.items():
        mine = getattr(mechanism, name)
        if isinstance(mine, Mechanism):
            load_state(mine, value["mechanism"])
        else:
            setattr(mechanism, name, _into(mine, value))


def _attributes(mechanism: Mechanism) -> Iterator[tuple[str, Any]]:
    yield from ((n, v) for n, v in vars(mechanism).items() if n not in mechanism.constant)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _into(mine: Any, stored: Any) -> Any:
    if isinstance(mine, Tensor) and isinstance(stored, Tensor) and mine.shape == stored.shape:
        mine.copy_(stored)
        return mine
    if isinstance(mine, Mapping) and isinstance(stored, Mapping) and mine.keys() == stored.keys():
        return {k: _into(mine[k], v) for k, v in stored.items()}
    return _plain(stored)
