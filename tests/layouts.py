"""Files as the ten surveyed methods with published checkpoints write them, and the logits that they stand for.

A second opinion for `apnb.checkpoints`: written from descriptions of the authors' code and of the survey's repository, with torch
alone, and without any code of apnb. Networks have their full size, weights are random, and the logits come from the stored tensors
by ``torch.nn.functional``.
"""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

KEYS = {
    "RADMM": ("RADMM_Ye2019Adversarial", ".pt"),
    "HYDRA": ("HYDRA_Sehwag2020Hydra", ".pth.tar"),
    "HARP": ("HARP_Zhao2023Holistic", ".pth.tar"),
    "PwoA": ("PwoA_Jian2022Pruning", ".pt"),
    "MAD": ("MAD_Lee2022Masking", ".t7"),
    "Li20": ("Li20_Li2020Towards", ".pth"),
    "RST": ("RST_Fu2021Drawing", ".pth"),
    "RobustBird": ("RobustBird_Chen2021Sparsity", ".tar"),
    "TwinRep": ("TwinRep_Li2023Learning", ".pt"),
    "FlyingBird": ("FlyingBird_Chen2021Sparsity", ".tar"),
}
"""The method in the survey's keys, and how its files end."""
NORMALISATION = {
    "MAD": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "RST": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),  # in the loader of the data, not in the network
    "RobustBird": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "FlyingBird": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
"""Mean and standard deviation of the channels, for CIFAR-10; the other methods take images in [0, 1] as they are."""
OTHER_CONSTANTS = ((0.43, 0.45, 0.47), (0.21, 0.22, 0.23))
"""Written as ``normalize.*`` where a file holds these: other values than above, so that a reader shows which it takes."""


@dataclass(frozen=True)
class Case:
    """One file: which checkpoint of the survey (``sparsity`` in per cent), in which form of layer, wrapped how."""

    method: str
    arch: str  # R18 or V16
    sparsity: int
    form: str = "plain"  # plain, weight_orig, mask_weight, popup_scores, k_score, scores or factors
    structure: str = "US"
    wrapper: str = "state_dict"  # the top-level key; empty: the tensors are at the top
    prefix: str = ""

    @property
    def key(self) -> str:
        return f"{KEYS[self.method][0]}_{self.arch}_CIFAR10_{self.structure}_{self.sparsity}"

    @property
    def kept(self) -> float:
        """The share kept, as its authors would type it."""
        return {50: 0.5, 90: 0.1, 95: 0.05, 99: 0.01}[self.sparsity]

    def __str__(self) -> str:
        return "-".join(
            filter(None, (self.method, self.arch, f"{self.structure}{self.sparsity}", self.form, self.wrapper, self.prefix))
        )


# Modules -----------------------------------------------------------------------------------------------------------------------

Module = tuple[str, str, tuple[int, ...], bool]
"""Kind (conv, linear, bn), name, shape of the weight, and whether there is a bias (for bn: an affine map)."""
VGG = {0: 64, 3: 64, 7: 128, 10: 128, 14: 256, 17: 256, 20: 256, 24: 512, 27: 512, 30: 512, 34: 512, 37: 512, 40: 512}
"""Index of a convolution in the sequence conv, BN, ReLU, ..., and its filters."""
VGG_PWOA = ("1.0", "1.1", "2.0", "2.1", "3.0", "3.1", "3.2", "4.0", "4.1", "4.2", "5.0", "5.1", "5.2")
VGG_POOLED = (3, 10, 20, 30)
"""After these follows a max-pool; after the last one (40) only where the method says so."""
BIRDS = ("RobustBird", "FlyingBird")
FIFTH_POOL = ("RADMM", "RST", "TwinRep", *BIRDS)


def blocks() -> Iterator[tuple[str, int, int]]:
    """Name, channels in, channels out of the eight blocks of ResNet18; the stride is their ratio."""
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for i in range(2):
            yield f"layer{stage}.{i}", channels, width
            channels = width


def vgg_names(method: str) -> Iterator[tuple[int, str, str]]:
    """Index, name of the convolution and name of its BN."""
    root = "feature" if method in ("MAD", "Li20") else "features"
    for i, place in zip(VGG, VGG_PWOA, strict=True):
        yield (i, f"layer{place}.0", f"layer{place}.1") if method == "PwoA" else (i, f"{root}.{i}", f"{root}.{i + 1}")


def modules(method: str, arch: str) -> list[Module]:
    """Everything with weights, in the order of definition."""
    affine = method != "RST"
    if arch == "V16":
        channels, found = 3, []
        for i, conv, bn in vgg_names(method):
            found.append(("conv", conv, (VGG[i], channels, 3, 3), method in ("RADMM", "PwoA", *BIRDS)))
            found.append(("bn", bn, (VGG[i],), affine))
            channels = VGG[i]
        return found + _vgg_head(method)
    if method in BIRDS:  # BN and ReLU before the convolution
        found = [("conv", "conv1", (64, 3, 3, 3), False)]
        for name, a, b in blocks():
            found += [("bn", f"{name}.bn1", (a,), True), ("conv", f"{name}.conv1", (b, a, 3, 3), False)]
            found += [("bn", f"{name}.bn2", (b,), True), ("conv", f"{name}.conv2", (b, b, 3, 3), False)]
            found += [("conv", f"{name}.shortcut.0", (b, a, 1, 1), False)] if a != b else []
        return [*found, ("bn", "bn", (512,), True), ("linear", "linear", (10, 512), True)]
    found = [("conv", "conv1", (64, 3, 3, 3), False), ("bn", "bn1", (64,), affine)]
    for name, a, b in blocks():
        found += [("conv", f"{name}.conv1", (b, a, 3, 3), False), ("bn", f"{name}.bn1", (b,), affine)]
        found += [("conv", f"{name}.conv2", (b, b, 3, 3), False), ("bn", f"{name}.bn2", (b,), affine)]
        if a != b:
            found += [("conv", f"{name}.shortcut.0", (b, a, 1, 1), False), ("bn", f"{name}.shortcut.1", (b,), affine)]
    return [*found, ("conv", "fc", (10, 512, 1, 1), False) if method == "RST" else ("linear", "linear", (10, 512), True)]


def _vgg_head(method: str) -> list[Module]:
    match method:
        case "HYDRA" | "HARP" | "PwoA":
            names = ("layer6.0", "layer7.0", "layer8") if method == "PwoA" else ("classifier.0", "classifier.2", "classifier.4")
            return [("linear", n, s, True) for n, s in zip(names, ((256, 2048), (256, 256), (10, 256)), strict=True)]
        case "Li20":
            first = [("linear", "classifier.0", (512, 512), True), ("bn", "classifier.1", (512,), True)]
            return [*first, ("linear", "classifier.3", (10, 512), True)]
        case "RST":
            return [("conv", "classifier", (10, 512, 1, 1), False)]
    return [("linear", "classifier", (10, 512), True)]


# What a method stores ----------------------------------------------------------------------------------------------------------

Leaves = dict[str, Tensor]
"""The tensors of one layer by the last part of their names."""


def state(case: Case, seed: int = 0) -> dict[str, Tensor]:
    """The published state_dict, without the wrapper's prefix."""
    g = torch.Generator().manual_seed(seed)
    found = modules(case.method, case.arch)
    layers: dict[str, Leaves] = {}
    share = (
        case.kept if case.method in ("HYDRA", "HARP") else 1
    )  # their three linear layers have no BN to make up for the lost ones
    for kind, name, shape, bias in found:
        if kind != "bn":
            weight = torch.randn(shape, generator=g) * math.sqrt(2 / (math.prod(shape[1:]) * share))
            layers[name] = {"weight": weight} | ({"bias": 0.1 * torch.randn(shape[0], generator=g)} if bias else {})
    _prune(case, layers, g)
    if case.form == "plain":
        layers = {name: _fold(leaves, case.kept) for name, leaves in layers.items()}
    tensors = {}
    for kind, name, shape, affine in found:
        if kind == "bn":
            layers[name] = _batch_norm(shape[0], affine, g)
        tensors |= {f"{name}.{leaf}": tensor for leaf, tensor in layers[name].items()}
    if case.method == "FlyingBird" or case.form == "weight_orig":
        tensors |= {f"normalize.{n}": torch.tensor(v) for n, v in zip(("mean", "std"), OTHER_CONSTANTS, strict=True)}
    _take_statistics(case, tensors, g)
    return _li20_names(tensors, case.arch) if case.method == "Li20" else tensors


def images(n: int, seed: int) -> Tensor:
    """Smooth random images (n, 3, 32, 32) in [0, 1]; noise would look the same to a deep network, whatever its seed."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(32, 32), mode="bilinear")


def _batch_norm(n: int, affine: bool, g: torch.Generator) -> Leaves:
    return ({"weight": 0.5 + torch.rand(n, generator=g), "bias": 0.2 * torch.randn(n, generator=g)} if affine else {}) | {
        "running_mean": torch.zeros(n),
        "running_var": torch.ones(n),
        "num_batches_tracked": torch.tensor(0),
    }


def _take_statistics(case: Case, tensors: dict[str, Tensor], g: torch.Generator) -> None:
    """Running statistics that fit what comes in, or the signal would vanish after a few layers; then moved at random."""
    forward(case, _folded(tensors, case.kept), images(16, seed=1))
    for name, tensor in tensors.items():
        if name.endswith("running_mean"):
            tensor += 0.2 * tensors[name.replace("mean", "var")].sqrt() * torch.randn(tensor.shape, generator=g)
    for name, tensor in tensors.items():
        if name.endswith("running_var"):
            tensor *= 0.5 + torch.rand(tensor.shape, generator=g)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(78_200)


def _li20_names(tensors: dict[str, Tensor], arch: str) -> dict[str, Tensor]:
    """ResNet18 sits in a wrapper; VGG16 holds its parts once by name and once in a sequence (parts, pool, flatten, classifier)."""
    if arch == "R18":
        return {f"model.{name}": tensor for name, tensor in tensors.items()}
    place = {"feature": "model.0", "classifier": "model.3"}
    return tensors | {f"{place[root]}.{rest}": t for name, t in tensors.items() for root, rest in [name.split(".", 1)]}


def _prune(case: Case, layers: dict[str, Leaves], g: torch.Generator) -> None:
    """Puts zeros, masks or scores into the layers as the method leaves them; BN and biases stay, MAD's biases excepted."""
    p, kept, structured = case.sparsity / 100, case.kept, case.structure == "S"
    weights = {name: leaves["weight"] for name, leaves in layers.items()}
    convs = {name: w for name, w in weights.items() if w.ndim == 4}
    match case.method:
        case "RADMM" | "PwoA":  # each convolution by itself: weights, or whole filters
            for name, w in convs.items():
                units = _norms(w) if structured else w.abs()
                layers[name]["weight"] = w * _largest(units, units.numel() - math.ceil((units.numel() - 1) * p))
        case "HYDRA" | "RST":
            for name, w in weights.items():
                if case.method == "RST":
                    layers[name]["weight"] = w.sign() * math.sqrt(2 / w[0].numel())
                layers[name]["scores" if case.method == "RST" else "popup_scores"] = _scores(w.shape, g)
        case "HARP":  # of weights, or of the channels that come in
            low, high = (0.7, 1.3) if structured else (0.5, 2.0)
            draws: dict[str, Tensor] = {}
            for name in weights:  # a shortcut's is never trained: a copy
                source = name.replace("shortcut.0", "conv1")
                draws[name] = draws[source] if source in draws else low + (high - low) * torch.rand((), generator=g)
            mean = sum(w.numel() * draws[name] for name, w in weights.items()) / sum(w.numel() for w in weights.values())
            for name, w in weights.items():
                shape = (1, w.shape[1], *[1] * (w.ndim - 2)) if structured else w.shape
                share = (kept * draws[name] / mean - 0.1 * kept) / (1 - 0.1 * kept)
                layers[name] |= {"popup_scores": _scores(shape, g), "k_score": (share / (1 - share)).log()}
        case "MAD":  # convolutions together, the classifier row by row with its bias as a last column
            saliency = {name: torch.rand(w.shape, generator=g) for name, w in convs.items()}
            n = sum(w.numel() for w in convs.values())
            for name, mask in _largest_of_all(saliency, n - int(p * n)).items():
                layers[name]["weight"] = weights[name] * mask
            (last,) = weights.keys() - convs.keys()
            columns = weights[last].shape[1] + 1
            rows = [_largest(torch.rand(columns, generator=g), columns - int(p * columns)) for _ in weights[last]]
            mask = torch.stack(rows)
            layers[last] |= {"weight": weights[last] * mask[:, :-1], "bias": layers[last]["bias"] * mask[:, -1]}
            for leaves in layers.values():
                leaves |= {f"mask_{leaf}": torch.full_like(t, math.log(math.e - 1)) for leaf, t in leaves.items()}
        case "Li20":  # magnitudes in units of the layer's mean, all together
            n = sum(w.numel() for w in weights.values())
            relative = {name: w.abs() / w.abs().mean() for name, w in weights.items()}
            for name, mask in _largest_of_all(relative, n - math.floor((n - 1) * p) - 1).items():
                layers[name]["weight"] = weights[name] * mask
        case "RobustBird":
            n = sum(w.numel() for w in weights.values())
            masks = _largest_of_all({name: w.abs() for name, w in weights.items()}, n - round(p * n))
            for name, mask in masks.items():
                layers[name] |= {"weight_orig": layers[name].pop("weight"), "weight_mask": mask.float()}
        case "FlyingBird":
            for name, w in weights.items():
                layers[name]["weight"] = w * _largest(torch.rand(w.shape, generator=g), round(kept * w.numel()))
        case "TwinRep":  # the weight is W times A elementwise, or A mixes the filters of W
            for name, w in weights.items():
                shape = (len(w), len(w)) if structured else w.shape
                layers[name]["aux_weight"] = torch.randn(shape, generator=g) / (math.sqrt(len(w)) if structured else 1)
                layers[name]["mask"] = torch.ones_like(w)
            products = {name: _fold(leaves, kept)["weight"] for name, leaves in layers.items()}
            units = (
                {n: _norms(v) for n, v in products.items() if v.ndim == 4}
                if structured
                else {n: v.abs() for n, v in products.items()}
            )
            n = sum(u.numel() for u in units.values())
            for name, mask in _largest_of_all(units, n - round(p * n)).items():
                survivors = mask if mask.any() else _largest(units[name], 1)
                layers[name]["mask"] = layers[name]["mask"] * survivors


def _norms(w: Tensor) -> Tensor:
    """Of the filters, (O, 1, 1, 1)."""
    return w.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def _scores(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """Of both signs; no two have the same magnitude, so that the mask does not depend on how ties are broken."""
    n = math.prod(shape)
    sign = 1 - 2 * torch.randint(2, (n,), generator=g)
    return (sign * (torch.randperm(n, generator=g) + 1) / n).view(shape)


def _largest(values: Tensor, n: int) -> Tensor:
    """bool, the shape of ``values``: the ``n`` largest."""
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[values.flatten().topk(n, sorted=False).indices] = True
    return mask.view(values.shape)


def _largest_of_all(values: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    flat = _largest(torch.cat([v.flatten() for v in values.values()]), n)
    parts = flat.split([v.numel() for v in values.values()])
    return {name: part.view(v.shape) for (name, v), part in zip(values.items(), parts, strict=True)}


# What the stored tensors mean --------------------------------------------------------------------------------------------------


def effective(case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that the published network computes with, by the names of a network without masks or scores."""
    if case.method == "Li20":  # of the doubled tensors the wrapper's are read last and win
        tensors = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        if case.arch == "V16":
            place = {"0": "feature", "3": "classifier"}
            tensors = {f"{place[root]}.{rest}": t for name, t in tensors.items() for root, rest in [name.split(".", 1)]}
    return _folded(tensors, case.kept)


def _folded(tensors: dict[str, Tensor], kept: float) -> dict[str, Tensor]:
    layers: dict[str, Leaves] = defaultdict(dict)
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        layers[layer][leaf] = tensor
    return {f"{name}.{leaf}": t for name, leaves in layers.items() for leaf, t in _fold(leaves, kept).items()}


def _fold(leaves: Leaves, kept: float) -> Leaves:
    """Weight and bias of one layer; BN comes back as it is."""
    match leaves:
        case {"weight_orig": weight, "weight_mask": mask, **rest}:
            return {"weight": weight * mask, **rest}
        case {"weight": weight, "mask_weight": mask, "bias": bias, "mask_bias": mask_bias}:
            return {"weight": weight * F.softplus(mask), "bias": bias * F.softplus(mask_bias)}
        case {"weight": weight, "mask_weight": mask}:
            return {"weight": weight * F.softplus(mask)}
        case {"weight": weight, "popup_scores": scores, "k_score": score, **rest}:
            rate = 0.1 * kept + (1 - 0.1 * kept) * torch.sigmoid(
                score
            )  # float32, as there: a count may differ by one from float64
            n = scores.numel()
            count = n - int((1 - rate) * n) if scores.shape == weight.shape else int(torch.round(rate * n))
            return {"weight": weight * _largest(scores.abs(), count), **rest}
        case {"weight": weight, "popup_scores": scores, **rest} | {"weight": weight, "scores": scores, **rest}:
            return {"weight": weight * _largest(scores.abs(), scores.numel() - int((1 - kept) * scores.numel())), **rest}
        case {"weight": weight, "aux_weight": factor, "mask": mask, **rest}:
            product = weight * factor if weight.shape == factor.shape else (factor @ weight.flatten(1)).view(weight.shape)
            return {"weight": product * mask, **rest}
    return leaves


def forward(case: Case, plain: dict[str, Tensor], images: Tensor) -> Tensor:
    """Logits (N, 10) of images (N, 3, 32, 32) in [0, 1]; ``normalize.*`` among the tensors come before the method's constants."""
    mean, std = NORMALISATION.get(case.method, ((0.0,) * 3, (1.0,) * 3))
    mean, std = plain.get("normalize.mean", torch.tensor(mean)), plain.get("normalize.std", torch.tensor(std))
    x = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    if case.arch == "V16":
        return _vgg(case.method, plain, x)
    x = _resnet_before(plain, x) if case.method in BIRDS else _resnet(plain, x)
    x = F.avg_pool2d(x, 4)
    return _conv(plain, "fc", x).flatten(1) if case.method == "RST" else _linear(plain, "linear", x.flatten(1))


def logits(case: Case, tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    """Of the published model, from the tensors that its file holds."""
    return forward(case, effective(case, tensors), images)


def _conv(t: dict[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = t[f"{name}.weight"]
    return F.conv2d(x, weight, t.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)


def _bn(t: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A layer that has seen no batch yet takes its statistics from ``x``, in place."""
    statistics, new = (t[f"{name}.running_mean"], t[f"{name}.running_var"]), not t[f"{name}.num_batches_tracked"]
    return F.batch_norm(x, *statistics, t.get(f"{name}.weight"), t.get(f"{name}.bias"), training=new, momentum=1.0)


def _linear(t: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])


def _resnet(t: dict[str, Tensor], x: Tensor) -> Tensor:
    x = F.relu(_bn(t, "bn1", _conv(t, "conv1", x)))
    for name, a, b in blocks():
        y = F.relu(_bn(t, f"{name}.bn1", _conv(t, f"{name}.conv1", x, b // a)))
        y = _bn(t, f"{name}.bn2", _conv(t, f"{name}.conv2", y))
        if a != b:
            x = _bn(t, f"{name}.shortcut.1", _conv(t, f"{name}.shortcut.0", x, b // a))
        x = F.relu(x + y)
    return x


def _resnet_before(t: dict[str, Tensor], x: Tensor) -> Tensor:
    x = _conv(t, "conv1", x)
    for name, a, b in blocks():
        h = F.relu(_bn(t, f"{name}.bn1", x))
        y = _conv(t, f"{name}.conv1", h, b // a)
        y = _conv(t, f"{name}.conv2", F.relu(_bn(t, f"{name}.bn2", y)))
        x = y + (_conv(t, f"{name}.shortcut.0", h, b // a) if a != b else x)
    return F.relu(_bn(t, "bn", x))


def _vgg(method: str, t: dict[str, Tensor], x: Tensor) -> Tensor:
    for i, conv, bn in vgg_names(method):
        x = F.relu(_bn(t, bn, _conv(t, conv, x)))
        if i in VGG_POOLED or (i == 40 and method in FIFTH_POOL):
            x = F.max_pool2d(x, 2)
    if method in ("MAD", "Li20"):
        x = F.avg_pool2d(x, 2)
    if method == "RST":
        return _conv(t, "classifier", x).flatten(1)
    x = x.flatten(1)
    if method == "Li20":
        return _linear(t, "classifier.3", F.relu(_bn(t, "classifier.1", _linear(t, "classifier.0", x))))
    *hidden, last = [name for _, name, _, _ in _vgg_head(method)]
    for name in hidden:
        x = F.relu(_linear(t, name, x))
    return _linear(t, last, x)


# Files -------------------------------------------------------------------------------------------------------------------------


def write(path: Path, case: Case, tensors: dict[str, Tensor], *, zipped: bool = True) -> None:
    """As the authors' scripts save: an OrderedDict with the versions of its modules, and what they put beside it.

    Args:
        zipped: whether in the format of torch 1.6 and later or in the one before.
    """
    held = OrderedDict((case.prefix + name, tensor) for name, tensor in tensors.items())
    held._metadata = OrderedDict({"": {"version": 1}})
    content = {case.wrapper: held} | _beside(case, tensors) if case.wrapper else held
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


def _beside(case: Case, tensors: dict[str, Tensor]) -> dict:
    weight = torch.ones(3, requires_grad=True)
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.sum().backward()
    sgd.step()
    optimizer = sgd.state_dict()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(sgd, [100, 150]).state_dict()
    match case.method:
        case "HYDRA" | "HARP":
            return {"epoch": 100, "arch": "ResNet18", "best_prec1": np.float64(47.7), "optimizer": optimizer}
        case "MAD":
            args = argparse.Namespace(dataset="cifar10", network="resnet", depth=18, percent=0.9, eps=0.03)
            return {"acc": 73.67, "epoch": 59, "loss": np.float32(1.2), "args": args}
        case "RST":
            best = {f"best_{name}": np.float64(60.92) for name in ("acc1", "acc5", "train_acc1", "train_acc5")}
            current = {"natural_acc1_at_best_robustness": np.float64(60.9), "curr_acc1": np.float64(60.9), "curr_acc5": 95.1}
            return {"epoch": 160, "arch": "cResNet18", "optimizer": optimizer} | best | current
        case "RobustBird" | "FlyingBird":
            result = {name: [np.float64(0.5), np.float64(0.6)] for name in ("train_ta", "val_ra", "test_ra")}
            beside = {"best_sa": np.float64(80.1), "best_ra": np.float64(47.1), "epoch": 200, "optimizer": optimizer}
            beside |= {"scheduler": scheduler, "result": result}
            return beside if case.method == "RobustBird" else beside | {"iter_step": 70_400, "mask_info": _mask_info(tensors)}
    return {}


def _mask_info(tensors: dict[str, Tensor]) -> dict:
    pruned = {name: t for name, t in tensors.items() if t.ndim > 1}
    masks = {f"{name}_{i}": (t != 0).float() for i, (name, t) in enumerate(pruned.items())}
    rates = {name: np.float64(0.005) for name in masks}
    empty = {name: [] for name in ("lossinfo", "train_val_diff", "prune_epochs", "growth_epochs")}
    return {"masks": masks, "name2death_rate": rates, "decay": np.float64(0.005)} | empty
