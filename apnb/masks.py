"""Scores -> groups -> threshold -> masks: three small pure functions, and the accounting of what was removed.

Words: a *unit* is what is removed together (one weight, one filter, one input channel, one kernel); a *score* says how much a
unit matters, and a high score is kept; a *mask* is a bool tensor of a weight's own shape, True where the weight is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apnb.errors import Invalid

if TYPE_CHECKING:
    from apnb.networks import Layer

Scores = Mapping[str, Tensor]
Masks = dict[str, Tensor]


def in_scope(layers: Sequence[Layer], structure: str) -> tuple[Layer, ...]:
    """The layers that a structure can remove units from, in execution order.

    weights: every conv and linear. filters: all but the last layer, whose outputs are the classes. channels: all but the
    first layer, whose inputs are the image. kernels: convolutions.

    Raises:
        Invalid: the network has no such layer, or channels are asked for where a grouped convolution hides them.
    """
    if structure == "weights":
        chosen = tuple(layers)
    elif structure == "filters":
        chosen = tuple(layer for layer in layers if not layer.last)
    elif structure == "channels":
        chosen = tuple(layer for layer in layers if not layer.first)
        grouped = [layer.name for layer in chosen if layer.groups > 1]
        if grouped:
            raise Invalid(
                f"structure 'channels' needs ungrouped convolutions, but {grouped[0]} has groups; choose filters, kernels or weights"
            )
    elif structure == "kernels":
        chosen = tuple(layer for layer in layers if layer.kind == "conv")
    else:
        raise Invalid(f"no structure {structure!r}; choose weights, filters, channels or kernels")
    if not chosen:
        raise Invalid(f"this network has no layer with {structure} to remove; choose another structure")
    return chosen


def group(scores: Scores, structure: str, layers: Sequence[Layer]) -> dict[str, Tensor]:
    r"""The score of a unit: the mean of its entries' scores.

    Args:
        scores: parameter name -> score of every weight, in the weight's shape (O, I, h, w) or (O, I).
        structure: weights, filters, channels or kernels.
        layers: the network's prunable layers; those outside the structure's scope are left out of the result.

    Returns:
        Name -> unit scores: the weight's shape (weights), (O,) (filters), (I,) or, behind a flattening, one for each feature
        map (channels), (O, I) (kernels).

    Source: survey, "Specifics": structure; definitions of the units in the README.
    """
    units = {}
    for layer in in_scope(layers, structure):
        s = scores[layer.name]
        if structure == "weights":
            units[layer.name] = s
        elif structure == "filters":
            units[layer.name] = s.flatten(1).mean(1)
        elif structure == "kernels":
            units[layer.name] = s.flatten(2).mean(2)
        else:
            units[layer.name] = s.unflatten(1, (-1, layer.maps)).transpose(0, 1).flatten(1).mean(1)
    return units


def expand(units: Mapping[str, Tensor], structure: str, layers: Sequence[Layer]) -> Masks:
    """Unit masks (as shaped by `group`) -> masks in the weights' own shapes; layers outside the scope are absent (kept whole)."""
    masks = {}
    for layer in in_scope(layers, structure):
        m, shape = units[layer.name], layer.shape
        if structure == "filters":
            m = m.reshape(-1, *[1] * (len(shape) - 1))
        elif structure == "kernels":
            m = m.reshape(*shape[:2], *[1] * (len(shape) - 2))
        elif structure == "channels":
            m = m.repeat_interleave(layer.maps).reshape(1, -1, *[1] * (len(shape) - 2))
        masks[layer.name] = m.expand(shape).contiguous()
    return masks


def drop_counts(sizes: Mapping[str, int], sparsity: float, locality: str) -> int | dict[str, int]:
    """How many units to remove: a number for each layer (local) or one for all together (global).

    Local: ``min(round(s * n), n - 1)`` in each layer. Global: ``round(s * N)`` in all. ``round`` is Python's (half to even).

    Raises:
        Invalid: a global sparsity that would leave fewer units than layers.
    """
    if locality == "local":
        return {name: min(round(sparsity * n), n - 1) for name, n in sizes.items()}
    total = sum(sizes.values())
    drop = round(sparsity * total)
    if total - drop < len(sizes):
        raise Invalid(
            f"a sparsity of {sparsity:g} leaves {total - drop} of {total} units for {len(sizes)} layers, and a network needs one "
            f"in each; the highest possible here is {math.floor((1 - len(sizes) / total) * 1e4) / 1e4:g}"
        )
    return drop


def truncated_counts(sizes: Mapping[str, int], sparsity: float) -> dict[str, int]:
    """int((1 - k) n) units of each layer, k = 1 - sparsity the share kept: how edge-popup and its descendants count."""
    kept = round(1 - sparsity, 12)
    return {name: int((1 - kept) * n) for name, n in sizes.items()}


def percentile_counts(sizes: Mapping[str, int], sparsity: float, *, at: bool = False) -> dict[str, int]:
    """How many of n different values lie below their 100 p-th percentile (linearly interpolated), p the sparsity as it is written.

    ceil((n - 1) p) of each layer; with ``at``, those at it too: floor((n - 1) p) + 1, though never all.
    """
    p = Fraction(str(sparsity))
    below = {name: (n - 1) * p for name, n in sizes.items()}
    return {name: min(math.floor(x) + 1, sizes[name] - 1) if at else math.ceil(x) for name, x in below.items()}


def _drop_lowest(flat: Tensor, drop: int) -> Tensor:
    """Bool mask that removes the ``drop`` lowest of a vector; among equals the earlier go first. No host synchronisation."""
    if drop == 0:
        return torch.ones_like(flat, dtype=torch.bool)
    threshold = flat.kthvalue(drop).values
    ties = flat == threshold
    tied_drops = drop - (flat < threshold).sum()
    return (flat > threshold) | (ties & (ties.cumsum(0) > tied_drops))


def select(scores: Scores, drop: int | Mapping[str, int], *, check: bool = True, spare: bool = True) -> Masks:
    r"""Keep the highest-scoring units.

    Drops exactly ``drop`` units over all tensors together (a number: global) or as many as named for each (a mapping: local).
    A threshold comparison would be shorter and wrong at ties; here, among equal scores, the earlier positions go, so the count
    obtained is the count asked for and the same scores always give the same mask. With one number each tensor's best unit is
    kept and the next lowest elsewhere goes instead: no layer is emptied and the total stays exact.

    Args:
        scores: name -> importance of its units, any shape; comparable across names if ``drop`` is one number.
        drop: units to remove; a method computes it from the sparsity by its own rounding.
        check: look for NaN, which makes a GPU wait; a mechanism that selects in every batch leaves it to the loss.
        spare: with one number, keep each tensor's best unit. False where a method is known for ranking without it: a layer may
            then be emptied.

    Returns:
        Same names and shapes, bool, True = kept.

    Raises:
        Invalid: more units to drop than may go, or scores that cannot be ranked.

    Source: survey, "Specifics": locality.
    """
    for name, s in scores.items() if check else ():
        if s.isnan().any():
            raise Invalid(f"the scores of {name} hold NaN, so nothing can be ranked; the training before the cut has diverged")
    if isinstance(drop, Mapping):
        for name, s in scores.items():
            if not 0 <= drop[name] < s.numel():
                raise Invalid(f"cannot drop {drop[name]} of the {s.numel()} units of {name}: a layer keeps at least one")
        return {name: _drop_lowest(s.flatten(), drop[name]).view_as(s) for name, s in scores.items()}
    total = sum(s.numel() for s in scores.values())
    if not 0 <= drop <= total - (len(scores) if spare else 1):
        raise Invalid(
            f"cannot drop {drop} of {total} units in {len(scores)} layers: a {'layer' if spare else 'network'} keeps at least one"
        )
    guarded = []
    for s in scores.values():
        flat = s.flatten().clamp(max=torch.finfo(s.dtype).max)  # an infinite score must not tie with the guard
        guarded.append(flat.scatter(0, s.argmax().view(1), torch.inf) if spare else flat)
    kept = _drop_lowest(torch.cat(guarded), drop).split([g.numel() for g in guarded])
    return {name: part.view_as(s) for (name, s), part in zip(scores.items(), kept, strict=True)}


@dataclass(frozen=True)
class Target:
    """What a selection has to meet: which layers, which units, ranked within a layer or across, and the share to remove.

    ``counts`` are the numbers to drop where a method rounds in its own way (default: `drop_counts`); ``spare`` as in `select`.
    """

    layers: tuple[Layer, ...]
    structure: str
    locality: str
    sparsity: float
    counts: int | Mapping[str, int] | None = None
    spare: bool = True

    def sizes(self) -> dict[str, int]:
        """Units in each layer in scope."""
        return unit_counts(self.layers, self.structure)

    def drop(self) -> int | Mapping[str, int]:
        """The number of units to remove, see `drop_counts`."""
        return self.counts if self.counts is not None else drop_counts(self.sizes(), self.sparsity, self.locality)

    def units(self, scores: Scores, within: Masks | None = None, *, check: bool = True) -> Masks:
        """Unit masks from the scores of all weights; with ``within``, what was removed before stays removed."""
        grouped = group(scores, self.structure, self.layers)
        if within is not None:
            before = group({n: m.float() for n, m in within.items()}, self.structure, self.layers)
            grouped = {n: s.masked_fill(before[n] == 0, -torch.inf) for n, s in grouped.items()}
        return self.rank(grouped, check=check)

    def rank(self, units: Scores, *, check: bool = True) -> Masks:
        """Unit masks from the scores of units."""
        return select(units, self.drop(), check=check, spare=self.spare)

    def select(self, scores: Scores, within: Masks | None = None, *, check: bool = True) -> Masks:
        """Masks in the weights' shapes: ``expand(select(group(scores), drop))``."""
        return expand(self.units(scores, within, check=check), self.structure, self.layers)

    def unguarded(self) -> Target:
        """The same with ``round(s * N)`` of all N units together to remove, wherever they are: a layer may be emptied.

        Raises:
            Invalid: nothing would be left of the network.
        """
        total = sum(self.sizes().values())
        drop = round(self.sparsity * total)
        if drop == total:
            raise Invalid(f"a sparsity of {self.sparsity:g} leaves none of {total} {self.structure}; choose a lower one")
        return replace(self, counts=drop, spare=False)


def unit_counts(layers: Sequence[Layer], structure: str) -> dict[str, int]:
    """Units in each layer in the structure's scope."""
    counts = {}
    for layer in in_scope(layers, structure):
        o, i = layer.shape[:2]
        counts[layer.name] = {
            "weights": math.prod(layer.shape),
            "filters": o,
            "channels": i // layer.maps,
            "kernels": o * i,
        }[structure]
    return counts


@dataclass(frozen=True)
class Sparsity:
    """What was asked for and what was obtained.

    Attributes:
        asked: share of the structure's units to remove, in [0, 1).
        units: share of them removed, ``dropped / total``.
        weights: zeros over all conv and linear weights; effects in the next layer are not counted.
        parameters: zeros over all parameters of the network (norms and biases included).
        kept, total: units kept, and units there were.
        per_layer: parameter name -> share of its weights kept (1.0 for layers outside the structure's scope).
        collapsed: layers left with a single unit although they had more: the guard that keeps the best unit held them open.
        empty: layers with nothing left (only a method that keeps its own count can get there).
    """

    asked: float
    units: float
    weights: float
    parameters: float
    kept: int
    total: int
    per_layer: dict[str, float]
    collapsed: tuple[str, ...]
    empty: tuple[str, ...]


def account(masks: Mapping[str, Tensor], layers: Sequence[Layer], structure: str, asked: float, parameters: int) -> Sparsity:
    """Count what ``masks`` (in the weights' shapes) remove from a network with ``parameters`` parameters in all.

    Units are those of the layers that the masks name: a method that leaves a layer dense by its own rule is measured on the rest.
    """
    named = [layer for layer in layers if layer.name in masks]
    counts = unit_counts(named, structure)
    units = group({n: masks[n].float() for n in counts}, structure, named)
    kept = {n: int((u > 0).sum()) for n, u in units.items()}
    zeros = {n: int(m.numel() - m.sum()) for n, m in masks.items()}
    weights = {layer.name: math.prod(layer.shape) for layer in layers}
    return Sparsity(
        asked=asked,
        units=1 - sum(kept.values()) / sum(counts.values()),
        weights=sum(zeros.get(n, 0) for n in weights) / sum(weights.values()),
        parameters=sum(zeros.values()) / parameters,
        kept=sum(kept.values()),
        total=sum(counts.values()),
        per_layer={n: 1 - zeros.get(n, 0) / w for n, w in weights.items()},
        collapsed=tuple(n for n, k in kept.items() if k == 1 < counts[n]),
        empty=tuple(n for n, k in kept.items() if k == 0),
    )


def ramp(sparsity: float, rounds: int, kind: str = "cubic") -> tuple[float, ...]:
    r"""Sparsities of an iterative schedule, the last of them exactly ``sparsity``.

    Linear: :math:`s_t = s\,t/T`. Cubic: :math:`s_t = s\,(1 - (1 - t/T)^3)` (Zhu and Gupta 2017, eq. 1, from zero), which removes
    most early, while the network is still redundant; t = 1 ... T.
    """
    if kind not in ("linear", "cubic"):
        raise Invalid(f"no ramp {kind!r}; choose linear or cubic")
    shares = [t / rounds if kind == "linear" else 1 - (1 - t / rounds) ** 3 for t in range(1, rounds)]
    return (*(sparsity * share for share in shares), sparsity)


def overlap(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    r"""How much of what one selection keeps another keeps too, :math:`|a \cap b| / |a|`; for equal counts it is the same both ways.

    Args:
        first, second: parameter name -> bool tensor; only names that both have are looked at.

    Returns:
        A share in [0, 1]. A second selection drawn at random would give its density.

    Raises:
        Invalid: no common name, different shapes, or nothing kept by the first.
    """
    names = _common(first, second)
    kept = sum(int(first[n].sum()) for n in names)
    return sum(int((first[n] & second[n]).sum()) for n in names) / kept


def chance_overlap(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    r"""The `overlap` to be expected if both kept as many in each layer as they do, but at random there.

    :math:`\sum_l a_l b_l / n_l \,/\, \sum_l a_l` for a layer of n weights of which they keep a and b. What lies above it is agreement
    about weights; what this lies above the density is agreement about layers.

    Raises:
        Invalid: as `overlap`.
    """
    names = _common(first, second)
    kept = sum(int(first[n].sum()) for n in names)
    return sum(int(first[n].sum()) * float(second[n].float().mean()) for n in names) / kept


def _common(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    names = [n for n in first if n in second]
    if not names or any(first[n].shape != second[n].shape for n in names):
        raise Invalid("the two selections have no layer in common, or layers of different shapes; compare masks of one network")
    if not any(first[n].any() for n in names):
        raise Invalid("the first selection keeps nothing, so there is no share of it; compare masks that keep something")
    return names
