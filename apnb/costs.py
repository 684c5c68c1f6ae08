r"""What pruning saves, counted: parameters and multiply-accumulates of a network as it is, of its non-zero weights, and slimmed.

A mask saves nothing by itself: zeros are stored and multiplied like other numbers. Three counts, from what is there to what could be:

- *dense*: all parameters, and every multiplication that the layers make for one image;
- *nonzero*: zeros left out wherever they are, what an ideal sparse kernel would do (which also has to store where they are);
- *slim*: a smaller dense network. What goes is an output map of a layer with its bias, its entry in the batch norms behind it, and
  the input slices of all layers that read it.

What goes together is found by looking, not by rules for architectures: an output map is filled with NaN, and what turns NaN in the
inputs of later layers has read it (`reads`). Maps that meet in a sum, and the slices that read the sum, are one group: the sum of
a residual block keeps its shape, so that its maps go only if all that is added is gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from apnb.errors import Invalid
from apnb.masks import Masks
from apnb.networks import Layer, copied, layers

if TYPE_CHECKING:
    import pandas as pd

IMAGE, OUTPUT = "image", "output"
"""The names under which `reads` has what enters the network and what leaves it."""
Reads = dict[tuple[str, str], Tensor]


@dataclass(frozen=True)
class LayerCost:
    """One layer: its output maps, weights and multiply-accumulates for one image; dense, non-zero, and in the slimmed network."""

    layer: str
    maps: int
    maps_slim: int
    weights: int
    weights_nonzero: int
    weights_slim: int
    macs: int
    macs_nonzero: int
    macs_slim: int


@dataclass(frozen=True)
class Costs:
    """What `count` found.

    Attributes:
        layers: in execution order. parameters, parameters_nonzero, parameters_slim: of the whole network, norms and biases included.
        constants: maps left out of the slimmed network that give a non-zero constant, mostly a batch norm's shift, to a weight
            that is kept: the slimmed network equals the masked one only if these are none, or are added to biases.
    """

    layers: tuple[LayerCost, ...]
    parameters: int
    parameters_nonzero: int
    parameters_slim: int
    constants: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers (`Conv2d` and `Linear`) for one image; nothing else is counted."""
        return sum(c.macs for c in self.layers)

    @property
    def macs_nonzero(self) -> int:
        return sum(c.macs_nonzero for c in self.layers)

    @property
    def macs_slim(self) -> int:
        return sum(c.macs_slim for c in self.layers)

    def frame(self) -> pd.DataFrame:
        """One row a layer."""
        import pandas as pd

        return pd.DataFrame([vars(c) for c in self.layers])

    def table(self) -> pd.DataFrame:
        """Three rows, dense, non-zero and slim: parameters and multiply-accumulates, and both as a share of the dense network's."""
        import pandas as pd

        rows = {
            "dense": (self.parameters, self.macs),
            "only non-zero weights": (self.parameters_nonzero, self.macs_nonzero),
            "slimmed": (self.parameters_slim, self.macs_slim),
        }
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["parameters", "MACs"])
        return frame.assign(**{f"{c} (%)": (100 * frame[c] / frame[c].iloc[0]).round(1) for c in ("parameters", "MACs")})


def count(net: nn.Module, sample: Tensor, masks: Mapping[str, Tensor] | None = None) -> Costs:
    """Parameters and multiply-accumulates: dense, of the non-zero weights, and of the slimmed network.

    A group of maps and slices (`reads`) leaves the slimmed network if no map in it depends on the image any more, or if no weight
    that is kept reads it; one removal may lead to the next. The outputs and the image stay, and so do the maps that a grouped
    convolution reads and writes (slimming it would need whole groups), and all parameters of modules other than convolutions,
    linear layers and batch norms. What is claimed can therefore be built as a plain dense network; a cleverer one may be smaller still.

    Args:
        net: anything that `apnb.networks.layers` takes; it is not changed.
        sample: images (N, C, H, W) of the size that counts.
        masks: parameter name -> bool tensor of the weight's shape, True = kept; a layer without one is dense. None: a weight is
            kept if it is not zero, as in `apnb.Run.model`.

    Returns:
        `Costs`, exact whole numbers; some two seconds for ResNet-18 on one core.

    Raises:
        Invalid: a network without layers to prune or that `reads` cannot trace, or a mask of another name or shape.
    """
    found = layers(net, sample)
    kept = _kept(net, found, masks)
    modules = dict(net.named_modules())
    norms = {n: m for n, m in modules.items() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    read = reads(net, sample, found)
    groups, number = _groups(found, read)
    stays = _stays(kept, found, read, groups, number)
    out = {layer.module: stays[groups[layer.module, "out"]] for layer in found}
    into = {layer.module: stays[groups[layer.module, "in"]] for layer in found}

    costs, parameters, nonzero, slim = [], *[sum(p.numel() for p in net.parameters())] * 3
    for layer in found:
        mask, weights = kept[layer.name], math.prod(layer.shape)
        inside = weights // layer.shape[0] // layer.shape[1]
        left = weights if layer.groups > 1 else int(out[layer.module].sum()) * int(into[layer.module].sum()) * inside
        ones, positions = int(mask.sum()), layer.macs // weights
        costs.append(
            LayerCost(
                layer.module, layer.shape[0], int(out[layer.module].sum()), weights, ones, left,
                layer.macs, positions * ones, positions * left,
            )
        )  # fmt: skip
        nonzero -= weights - ones
        slim -= weights - left
        if modules[layer.module].bias is not None:
            slim -= int((~out[layer.module]).sum())
    for name, norm in norms.items():
        if (name, "in") in groups:
            gone = int((~stays[groups[name, "in"]]).sum())
            slim -= gone * sum(p is not None for p in norm._parameters.values())
    return Costs(tuple(costs), parameters, nonzero, slim, _constants(net, sample, found, kept, out, into, groups))


def reads(net: nn.Module, sample: Tensor, found: Sequence[Layer] | None = None) -> Reads:
    """Who reads whom, with no other convolution or linear layer in between.

    The network's copy is run in evaluation mode with the outputs of all layers fixed to what they are on the first image. Maps are
    then filled with NaN by a code in which each has a number in the binary system, so that 512 maps take 18 passes; where a reader
    mixes several maps, which the code cannot tell, the maps of that layer are marked one by one. Whether NaN arrives wherever a
    number does is tried with two more passes.

    Args:
        found: the network's layers, if known.

    Returns:
        (writer, reader) -> bool (maps of the writer, inputs of the reader), pairs without any contact left out. Writers are the
        modules of layers and `IMAGE`; readers those of layers and batch norms, and `OUTPUT`. Inputs are the channels of a
        convolution or a norm, the columns of a linear layer, the logits of the output.

    Raises:
        Invalid: a forward pass that fails on NaN, or that replaces NaN by a number.
    """
    found = layers(net, sample) if found is None else found
    trace = _Trace(copied(net).eval(), sample[:1], found)
    contacts: Reads = {}
    for writer in (IMAGE, *(layer.module for layer in found)):
        maps = trace.maps(writer)
        code = _code(maps)
        seen = trace.seen_all(writer, code)
        sure = {reader: _decoded(s, code) for reader, s in seen.items()}
        if any(int(s.sum(0).max()) > 1 for s in sure.values()):
            sure = trace.seen_all(writer, torch.eye(maps, dtype=torch.bool))
        trace.hides(writer, sure)
        contacts |= {(writer, reader): s for reader, s in sure.items() if s.any()}
    trace.net = None  # its layers hold the trace: without this cut the copy would wait for the garbage collector
    return contacts


def _code(maps: int) -> Tensor:
    """bool (passes, maps): which maps are marked in which pass. Each digit of a map's number, and its complement, has one pass."""
    digits = (torch.arange(maps) >> torch.arange(max(1, (maps - 1).bit_length()))[:, None]) & 1
    return torch.cat([digits == 1, digits == 0])


def _decoded(seen: Tensor, code: Tensor) -> Tensor:
    """From what readers saw, (passes, inputs), the maps that it may come from, (maps, inputs); exact where it is one or none."""
    missed = code.T.float() @ (~seen).float()  # of the passes in which the map was marked
    return missed == 0


class _Trace:
    """A network whose layers do not compute any more: each gives a fixed output, or that with some maps replaced by NaN."""

    def __init__(self, net: nn.Module, image: Tensor, found: Sequence[Layer]):
        self.net: nn.Module | None = net
        modules = dict(net.named_modules())
        self.image = image.to(next(net.parameters()).device)
        self.linear = {layer.module for layer in found if layer.kind == "linear"}
        self.outputs: dict[str, Tensor] = {}
        self.marked: dict[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}
        hooks = [modules[layer.module].register_forward_hook(partial(self._store, layer.module)) for layer in found]
        self._run(self.image)
        for hook in hooks:
            hook.remove()
        for layer in found:
            modules[layer.module].forward = partial(self._answer, layer.module)
        for name, module in modules.items():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(partial(self._look, name))
        self.plain = self._pass({}, lambda reader, x: x.clone())

    def maps(self, writer: str) -> int:
        return self.image.shape[1] if writer == IMAGE else self.outputs[writer].shape[-1 if writer in self.linear else 1]

    def seen_all(self, writer: str, code: Tensor) -> dict[str, Tensor]:
        """Reader -> bool (passes, inputs), which inputs held NaN when those maps did."""
        rows: dict[str, list[Tensor]] = {}
        source = self._source(writer)
        for which in code.to(self.image.device):
            shape = (-1,) if writer in self.linear else (-1, *[1] * (source.ndim - 2))
            marked = {writer: source.masked_fill(which.view(shape), math.nan)}
            for reader, seen in self._pass(marked, lambda reader, x: x.isnan().any(1)).items():
                rows.setdefault(reader, []).append(seen.cpu())
        return {reader: torch.stack(seen) for reader, seen in rows.items()}

    def hides(self, writer: str, seen: Mapping[str, Tensor]) -> None:
        """Refuse a network in which numbers of ``writer`` arrive where NaN does not: such maps would be taken for unread."""
        source = self._source(writer)
        for sign in (1, -1):  # a hand-written ReLU passes one of the two
            moved = self._pass({writer: sign * (source.abs() + 1)}, lambda reader, x: (x != self.plain[reader]).any(1))
            for reader, changed in moved.items():
                if (changed.cpu() & ~seen[reader].any(0)).any():
                    raise Invalid(
                        f"{type(self.net).__name__} cannot be traced: between {writer} and {reader} it replaces NaN by numbers, as "
                        "torch.where, torch.sign or nan_to_num do; count a network with the activations of torch.nn"
                    )

    def _pass(self, marked: dict[str, Tensor], look: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """Reader -> what ``look(reader, x)`` makes of its inputs x (inputs, values), when ``marked`` outputs replace the stored ones."""
        self.marked, self.look, self.seen = marked, look, {}
        self._note(OUTPUT, self._run(marked.get(IMAGE, self.image)), last=True)
        return self.seen

    def _source(self, writer: str) -> Tensor:
        return self.image if writer == IMAGE else self.outputs[writer]

    def _run(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            try:
                return self.net(image.clone())
            except Exception as error:  # the network may be the user's: it may raise anything
                raise Invalid(
                    f"{type(self.net).__name__} cannot be traced: its forward pass fails on images with NaN ({error}); count a network "
                    "without such checks"
                ) from error

    def _store(self, name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.outputs[name] = output.clone()  # the network may go on to write into it

    def _answer(self, name: str, x: Tensor) -> Tensor:
        self._note(name, x, last=name in self.linear)
        return self.marked.get(name, self.outputs[name]).clone()

    def _look(self, name: str, module: nn.Module, args: tuple) -> None:
        self._note(name, args[0], last=False)

    def _note(self, name: str, x: Tensor, *, last: bool) -> None:
        self.seen[name] = self.look(name, x.movedim(-1 if last else 1, 0).flatten(1))


def _kept(net: nn.Module, found: Sequence[Layer], masks: Mapping[str, Tensor] | None) -> Masks:
    """A mask for every layer: the one given, all ones, or the weight's own zeros."""
    weights = dict(net.named_parameters())
    if masks is None:
        return {layer.name: weights[layer.name].detach().cpu() != 0 for layer in found}
    known = {layer.name: layer.shape for layer in found}
    for name, mask in masks.items():
        if name not in known:
            raise Invalid(f"there is a mask for {name!r}, which is no layer of this network; it has {', '.join(known)}")
        if tuple(mask.shape) != known[name]:
            raise Invalid(
                f"the mask of {name} has the shape {tuple(mask.shape)}, its weight {known[name]}; give one of that shape"
            )
    return {
        n: masks[n].detach().cpu().bool() if n in masks else torch.ones(shape, dtype=torch.bool) for n, shape in known.items()
    }


def _groups(found: Sequence[Layer], read: Reads) -> tuple[dict[tuple[str, str], Tensor], int]:
    """Maps and inputs that are in contact, directly or over others, share a number.

    Returns (module, "out" or "in") -> int64 (its maps or inputs,), and how many numbers there are.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sizes = {(layer.module, "out"): layer.shape[0] for layer in found}
    sizes |= {(layer.module, "in"): layer.shape[1] * layer.groups for layer in found}
    for (writer, reader), seen in read.items():
        sizes[writer, "out"], sizes[reader, "in"] = seen.shape
    *starts, total = accumulate(sizes.values(), initial=0)
    starts = dict(zip(sizes, starts, strict=True))
    edges = [
        seen.nonzero().T + torch.tensor([[starts[writer, "out"]], [starts[reader, "in"]]])
        for (writer, reader), seen in read.items()
    ]
    a, b = torch.cat(edges, dim=1).numpy()
    number, label = connected_components(coo_array(([1] * len(a), (a, b)), shape=(total, total)), directed=False)
    label = torch.from_numpy(label).long()
    return {key: label[start : start + sizes[key]] for key, start in starts.items()}, number


def _stays(kept: Masks, found: Sequence[Layer], read: Reads, groups: Mapping[tuple[str, str], Tensor], number: int) -> Tensor:
    """bool (number,): which groups are part of the slimmed network; the largest set that the rule of `count` leaves."""
    joined = {layer.module: kept[layer.name].flatten(2).any(2) if layer.kind == "conv" else kept[layer.name] for layer in found}
    pinned = torch.zeros(number, dtype=torch.bool)
    ends = [(IMAGE, "out"), (OUTPUT, "in")]
    ends += [(layer.module, side) for layer in found if layer.groups > 1 for side in ("in", "out")]
    for key in ends:
        if key in groups:
            pinned[groups[key]] = True
    for name, side in groups:  # inputs that no map and no image reaches: constants of the network's own
        reached = [seen.any(0) for (_, reader), seen in read.items() if reader == name]
        if side == "in":
            pinned[groups[name, "in"][~torch.stack(reached).any(0) if reached else slice(None)]] = True
    stays = torch.ones(number, dtype=torch.bool)
    while True:
        moves, wanted = torch.zeros_like(stays), torch.zeros_like(stays)
        for layer in (layer for layer in found if layer.groups == 1):
            into, out = groups[layer.module, "in"], groups[layer.module, "out"]
            alive = joined[layer.module] & stays[into] & stays[out][:, None]
            moves[out[alive.any(1)]] = True
            wanted[into[alive.any(0)]] = True
        fewer = stays & (pinned | (moves & wanted))
        if torch.equal(fewer, stays):
            return stays
        stays = fewer


def _constants(net, sample, found, kept, out, into, groups) -> int:
    """How many groups that went give a value other than zero to a weight that is kept, on the sample."""
    net = copied(net).eval()
    modules = dict(net.named_modules())
    told: set[int] = set()

    def look(layer: Layer, module: nn.Module, args: tuple) -> None:
        x = args[0].movedim(1 if layer.kind == "conv" else -1, 0).flatten(1)
        mask = kept[layer.name][out[layer.module]].transpose(0, 1).flatten(1).any(1)
        some = (x != 0).any(1).cpu() & ~into[layer.module] & mask
        told.update(groups[layer.module, "in"][some].tolist())

    with torch.no_grad():
        for layer in found:
            modules[layer.module].weight.mul_(kept[layer.name].to(modules[layer.module].weight.device))
            if layer.groups == 1:
                modules[layer.module].register_forward_pre_hook(partial(look, layer))
        net(sample.to(next(net.parameters()).device))
    return len(told)
