"""Networks: the two of the benchmark, two small ones, and any network of the user's own.

`resnet18` and `vgg16` are the benchmark's base networks: same state_dict keys and shapes, so a published checkpoint loads with
``strict=True``. In all four, every ReLU, pooling and flattening is a module of its own that runs once per forward pass (none has
state, so the keys do not show them): whatever wants to see hidden outputs can hook them. Normalisation, if any, is part of the
network and never of the data: inputs are float images (N, C, H, W) in [0, 1].

`layers` says what can be pruned in a network, in the order in which it is executed.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .chance import borrowed
from .errors import Invalid, nearest

# ---------------------------------------------------------------------------------------------------------- building blocks


class Normalize(nn.Module):
    """(x - mean) / std per channel. Mean and std are non-persistent buffers: the state_dict does not hold them."""

    def __init__(self, mean: Iterable[float], std: Iterable[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(tuple(mean), dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std), dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def _normalize(mean, std, channels: int) -> nn.Module:
    if mean is None and std is None:
        return nn.Identity()
    mean = (0.0,) * channels if mean is None else tuple(mean)
    std = (1.0,) * channels if std is None else tuple(std)
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise Invalid(f"mean {mean} and std {std} do not fit {channels} channel(s); give one number a channel, std above 0")
    return Normalize(mean, std)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, affine: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs, affine=affine)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, affine=affine)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs, affine=affine)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))


class PreactBlock(nn.Module):
    """A block whose norms and ReLUs come before its convolutions; the 1x1 shortcut takes what the first convolution takes."""

    def __init__(self, inputs: int, outputs: int, stride: int, affine: bool = True):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs, affine=affine)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, affine=affine)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(x))
        raw = self.shortcut(out) if len(self.shortcut) else x
        return self.conv2(self.relu2(self.bn2(self.conv1(out)))) + raw


class ResNet(nn.Module):
    """3x3 stem without max-pool, one stage per entry of ``widths`` with ``blocks`` blocks each, average pool, linear.

    ``preact``: pre-activation blocks, and one norm ``bn`` before the pool instead of ``bn1`` behind the stem. ``affine``: norms with
    scale and shift. ``bias``: of the linear layer.
    """

    def __init__(
        self, widths: tuple[int, ...], blocks: int, pool: nn.Module, channels: int, classes: int, mean, std,
        preact: bool = False, affine: bool = True, bias: bool = True,
    ):  # fmt: skip
        super().__init__()
        block = PreactBlock if preact else BasicBlock
        self.normalize = _normalize(mean, std, channels)
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        if not preact:
            self.bn1 = nn.BatchNorm2d(widths[0], affine=affine)
            self.relu1 = nn.ReLU()
        inputs, self.stages = widths[0], len(widths)
        for i, width in enumerate(widths):
            strides = [1 if i == 0 else 2] + [1] * (blocks - 1)
            stage = nn.Sequential(*(block(inputs if j == 0 else width, width, s, affine) for j, s in enumerate(strides)))
            self.add_module(f"layer{i + 1}", stage)
            inputs = width
        if preact:
            self.bn = nn.BatchNorm2d(inputs, affine=affine)
            self.relu = nn.ReLU()
        self.preact = preact
        self.pool = pool
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(inputs, classes, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.normalize(x))
        if not self.preact:
            x = self.relu1(self.bn1(x))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        if self.preact:
            x = self.relu(self.bn(x))
        return self.linear(self.flatten(self.pool(x)))


class VGG(nn.Module):
    """VGG-16 with batch normalisation, four max-pools, average pool and a classifier without dropout.

    ``hidden``: widths of the classifier's hidden layers; without any, ``classifier`` is the linear layer itself. ``pool``: side of the
    maps that the average pool leaves. ``fifth``: a max-pool behind the last convolution too. ``bias``: of the convolutions; ``affine``:
    norms with scale and shift; ``head_bias``: of the last layer; ``head_norm``: norms in the classifier.
    """

    plan = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)

    def __init__(
        self, channels: int, classes: int, mean, std, hidden: tuple[int, ...] = (256, 256), pool: int = 2, fifth: bool = False,
        bias: bool = False, affine: bool = True, head_bias: bool = True, head_norm: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.normalize = _normalize(mean, std, channels)
        features, inputs = [], channels
        for width in (*self.plan, "M") if fifth else self.plan:
            if width == "M":
                features.append(nn.MaxPool2d(2))
            else:
                conv = nn.Conv2d(inputs, width, 3, padding=1, bias=bias)
                features += [conv, nn.BatchNorm2d(width, affine=affine), nn.ReLU()]
                inputs = width
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.flatten = nn.Flatten()
        head, inputs = [], pool * pool * inputs
        for width in hidden:
            head += [nn.Linear(inputs, width), *([nn.BatchNorm1d(width)] if head_norm else []), nn.ReLU()]
            inputs = width
        last = nn.Linear(inputs, classes, head_bias)
        self.classifier = nn.Sequential(*head, last) if head else last

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.pool(self.features(self.normalize(x)))))


class CNN(nn.Module):
    """Three 3x3 convolutions (16, 32, 64; stride 1, 2, 2) with batch normalisation, 2x2 average pool, linear."""

    def __init__(self, channels: int, classes: int, mean, std):
        super().__init__()
        self.normalize = _normalize(mean, std, channels)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(64)
        self.relu3 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(self.normalize(x))))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)))
        return self.linear(self.flatten(self.pool(x)))


# ----------------------------------------------------------------------------------------------------------------- factories
# mean, std: one number per channel, in the scale of images in [0, 1]; None means that the images are taken as they are.


def resnet18(*, channels: int = 3, classes: int = 10, mean=None, std=None, **variant) -> nn.Module:
    """The benchmark's CIFAR ResNet-18 for images of 32x32: 11 173 962 parameters at 3 channels and 10 classes.

    ``variant``: options of `ResNet` (preact, affine, bias), for the published networks that differ from the benchmark's own.
    """
    return ResNet((64, 128, 256, 512), 2, nn.AvgPool2d(4), channels, classes, mean, std, **variant)


def vgg16(*, channels: int = 3, classes: int = 10, mean=None, std=None, **variant) -> nn.Module:
    """The benchmark's VGG-16 with BN for images of 16x16 or more: 15 311 818 parameters at 3 channels and 10 classes.

    ``variant``: options of `VGG` (hidden, pool, fifth, bias, affine, head_bias, head_norm), likewise.
    """
    return VGG(channels, classes, mean, std, **variant)


def cnn(*, channels: int = 3, classes: int = 10, mean=None, std=None) -> nn.Module:
    """A plain network for the embedded data set: about 26 thousand parameters, images of any size from 8x8."""
    return CNN(channels, classes, mean, std)


def resnet8(*, channels: int = 3, classes: int = 10, mean=None, std=None) -> nn.Module:
    """A small residual network (16, 32, 64; one block each): about 77 thousand parameters, images of any size from 8x8."""
    return ResNet((16, 32, 64), 1, nn.AdaptiveAvgPool2d(1), channels, classes, mean, std)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"cnn": cnn, "resnet8": resnet8, "resnet18": resnet18, "vgg16": vgg16}


def build(network: str | nn.Module, *, channels: int, classes: int, seed: int = 0) -> nn.Module:
    """A fresh network, in training mode, on the CPU unless the user's own lies elsewhere.

    ``network`` is a name in `NETWORKS`, or "package:factory" (imported; called with ``channels=`` and ``classes=`` where its
    signature has them, else with nothing), or an `nn.Module`, of which a deep copy with its own weights is returned.
    Initial weights depend on ``seed`` alone, and the caller's random state is left as it was.

    Raises `Invalid` for an unknown name, a failing import or factory, and anything that is not a network.
    """
    if isinstance(network, nn.Module):
        return copied(network)
    if isinstance(network, type) and issubclass(network, nn.Module):
        raise Invalid(f"{network.__name__} is a class, not a network; give an instance, {network.__name__}(...)")
    if not isinstance(network, str):
        raise Invalid(
            f"a network cannot be {network!r}; give a torch.nn.Module, 'package:factory', or one of {', '.join(NETWORKS)}"
        )
    if channels < 1 or classes < 2:
        raise Invalid(f"a network needs at least 1 channel and 2 classes; got {channels} and {classes}")
    with borrowed():
        torch.default_generator.manual_seed(int(seed))  # torch.manual_seed would also seed the caller's GPU
        if ":" in network:
            return _call(network, channels, classes).train()
        if network not in NETWORKS:
            raise Invalid(
                f"no network {network!r}; did you mean {nearest(network, NETWORKS)}? A network of your own is given as "
                "'package:factory' or as a torch.nn.Module"
            )
        return NETWORKS[network](channels=channels, classes=classes)


def _call(name: str, channels: int, classes: int) -> nn.Module:
    """The network that "package:factory" makes."""
    package, _, attribute = name.partition(":")
    try:
        factory = importlib.import_module(package)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except Exception as error:  # the module is the user's: its import may raise anything
        raise Invalid(f"{name!r} cannot be imported ({_short(error)}); expected 'package:factory' on Python's path") from error
    if isinstance(factory, nn.Module):
        raise Invalid(f"{name!r} is a network, not a function that makes one; give the object itself, or a factory")
    if not callable(factory):
        raise Invalid(f"{name!r} is a {type(factory).__name__}, not a function that makes a network")
    try:
        takes = inspect.signature(factory).parameters
        net = factory(**{k: v for k, v in {"channels": channels, "classes": classes}.items() if k in takes})
    except Exception as error:
        raise Invalid(
            f"{name!r} failed ({_short(error)}); a factory is called with channels= and classes= if it takes them, "
            "and with nothing else"
        ) from error
    if not isinstance(net, nn.Module):
        given = f"the class {net.__name__}" if isinstance(net, type) else type(net).__name__
        raise Invalid(f"{name!r} returned {given}, expected an instance of torch.nn.Module")
    return net


def identity(network: str | nn.Module, *, channels: int = 3, classes: int = 10) -> str | dict:
    """What a network is, as JSON, for the key of a stored run.

    A name in `NETWORKS` stands for itself. "package:factory" and a module come with a SHA-256 over the structure of the network
    (for a factory: as made with ``channels``, ``classes`` and seed 0), the source of the classes it is made of, and the names,
    shapes and bytes of its parameters and buffers: another stride, activation or ``forward``, or other weights, make another
    network. What a ``forward`` calls outside its class is not seen.
    """
    if isinstance(network, str) and network in NETWORKS:
        return network
    if isinstance(network, nn.Module):
        kind = type(network)
        return {"class": f"{kind.__module__}.{kind.__qualname__}", "sha256": _digest(network)}
    return {"factory": network, "sha256": _digest(build(network, channels=channels, classes=classes))}


def _digest(net: nn.Module) -> str:
    digest = hashlib.sha256(re.sub(r"0x[0-9a-fA-F]+", "", repr(net)).encode())  # the repr of a function holds its address
    tensors = dict(net.state_dict())
    tensors.update(net.named_buffers())  # normalisation is in no state_dict, yet belongs to the network
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for kind in dict.fromkeys(type(module) for module in net.modules()):
        if not kind.__module__.startswith("torch."):
            digest.update(_source(kind))
    return digest.hexdigest()


def _source(kind: type) -> bytes:
    """What a class does: its source, or, where that cannot be had, the code of its forward pass."""
    try:
        return inspect.getsource(kind).encode()
    except (OSError, TypeError):
        code = getattr(kind.forward, "__code__", None)
        return code.co_code + repr(code.co_consts).encode() if code else kind.__qualname__.encode()


# -------------------------------------------------------------------------------------------------------------------- layers


@dataclass(frozen=True)
class Layer:
    """One prunable layer: a 2-d convolution or a linear layer with a weight of its own."""

    name: str  # of the parameter, as in named_parameters(): "layer1.0.conv1.weight"
    module: str  # of the module, as in named_modules(): "layer1.0.conv1"
    kind: str  # "conv" or "linear"
    shape: tuple[int, ...]  # of the weight: (out, in / groups, height, width) or (out, in)
    first: bool  # the first one executed
    last: bool  # the last one executed
    maps: int  # consecutive input columns that belong to one feature map: 1 but for a linear layer behind a flattening
    macs: int  # multiply-accumulates for one image
    groups: int  # of the convolution; 1 for a linear layer


def layers(net: nn.Module, sample: Tensor, classes: int = 2) -> tuple[Layer, ...]:
    """The layers of ``net`` that can be pruned, in execution order.

    ``sample``: float images (N, C, H, W) of the size that the network is meant for; two are enough. A copy of the network is run
    on them once, in evaluation mode and without gradients, so ``net`` and the random state stay as they are. Every nn.Conv2d and
    nn.Linear counts; other layers with weights (1-d, 3-d and transposed convolutions, normalisation) stay dense.

    Raises `Invalid` where pruning would be ill-defined: nothing to prune, a module with weights called twice or never, a
    parameter under two names, a computed weight, a forward pass that fails or whose output is not (N, ``classes`` or more).
    """
    if sample.ndim != 4 or len(sample) == 0:
        raise Invalid(f"a sample of shape {tuple(sample.shape)} is no batch of images; expected (N, C, H, W)")
    net = copied(net).eval()
    names: dict[int, str] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if nn.parameter.is_lazy(parameter):
            raise Invalid(f"{name} has no shape yet (a lazy layer); run one batch through the network before giving it")
        if names.setdefault(id(parameter), name) != name:
            raise Invalid(f"{names[id(parameter)]} and {name} are one parameter (tied weights); give each layer its own")

    modules = {name: module for name, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    if not modules:
        raise Invalid(f"{type(net).__name__} has no convolution (Conv2d) and no linear layer: there is nothing to prune")
    for name, module in modules.items():
        if "weight" not in module._parameters:
            raise Invalid(f"{name}.weight is computed from other parameters; remove the parametrization before pruning")

    calls: dict[str, int] = {}
    positions: dict[str, int] = {}  # per image, how many times the weight is applied
    maps: dict[str, int] = {}
    watch = _Flattenings()

    def before(name: str):
        def hook(module, args):
            calls[name] = calls.get(name, 0) + 1
            if isinstance(module, nn.Linear) and args and isinstance(args[0], Tensor):
                maps[name] = watch.maps(args[0])

        return hook

    def after(name: str):
        def hook(module, args, output):
            positions[name] = output.numel() // (module.weight.shape[0] * len(sample))

        return hook

    for name, module in net.named_modules():
        if any(p is not None for p in module._parameters.values()):
            module.register_forward_pre_hook(before(name))
        if name in modules:
            module.register_forward_hook(after(name))

    device = next(net.parameters()).device
    with torch.no_grad(), borrowed(device):
        try:
            with watch:
                output = net(sample.to(device))
        except Exception as error:  # the network may be the user's: it may raise anything
            raise Invalid(f"{type(net).__name__} cannot take images of shape {tuple(sample.shape)} ({_short(error)})") from error

    for name, count in calls.items():
        if count > 1:
            raise Invalid(
                f"{name or type(net).__name__} has weights and is called {count} times in one forward pass; "
                "give each place a module of its own"
            )
    for name in modules:
        if name not in calls:
            raise Invalid(f"{name} is never used in a forward pass, so its weights cannot be scored; remove it from the network")
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(sample) or output.shape[1] < classes:
        raise Invalid(f"{type(net).__name__} returns {shape}, expected logits (N, classes) = ({len(sample)}, {classes} or more)")

    found = []
    order = [name for name in calls if name in modules]
    for i, name in enumerate(order):
        module = modules[name]
        conv = isinstance(module, nn.Conv2d)
        found.append(
            Layer(
                name=f"{name}.weight" if name else "weight",
                module=name,
                kind="conv" if conv else "linear",
                shape=tuple(module.weight.shape),
                first=i == 0,
                last=i == len(order) - 1,
                maps=maps.get(name, 1),
                macs=module.weight.numel() * positions[name],
                groups=module.groups if conv else 1,
            )
        )
    return tuple(found)


def norms_behind(net: nn.Module) -> dict[str, str]:
    """Weight of a convolution or linear layer -> name of the batch norm that follows it, in the order in which modules are defined."""
    behind: dict[str, str] = {}
    last = None
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            last = f"{name}.weight"
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and last is not None:
            behind[last], last = name, None
    return behind


def bias_of(weight: str) -> str:
    """Name of a layer's bias, from that of its weight."""
    return weight.removesuffix("weight") + "bias"


class _Flattenings(TorchFunctionMode):
    """Sees each (N, C, H, W) become (N, C*H*W), whether by nn.Flatten, flatten, view or reshape, up to the next linear layer."""

    def __init__(self):
        super().__init__()
        self.last: tuple[int, int] | None = None  # columns, and how many of them belong to one map

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        given = args[0] if args else None
        if isinstance(given, Tensor) and isinstance(output, Tensor) and given.ndim == 4 and output.ndim == 2:
            n, c, h, w = given.shape
            if output.shape == (n, c * h * w):
                self.last = (c * h * w, h * w)
        return output

    def maps(self, inputs: Tensor) -> int:
        """Columns per feature map in the input of a linear layer; the first one behind a flattening uses it up."""
        columns, maps = self.last or (0, 1)
        self.last = None
        return maps if inputs.ndim == 2 and inputs.shape[1] == columns else 1


def copied(net: nn.Module) -> nn.Module:
    """A deep copy; `Invalid` for a network that cannot be copied."""
    try:
        return copy.deepcopy(net)
    except Exception as error:
        raise Invalid(f"{type(net).__name__} cannot be copied ({_short(error)}); copy.deepcopy must take a network") from error


def _short(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
