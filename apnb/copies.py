"""Copies of a network: an exact one for verdicts, a fast one for attacks; and the precision in which each computes.

Nothing that makes an attack faster may bias it towards "robust": re-checking finds false successes, never misses. So a fast copy
is the same function up to rounding (frozen parameters, batch norm folded into convolutions, another memory layout), or, where it
is asked for by name, one whose body computes in bfloat16 while the first convolution and the classifier stay in float32.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from apnb import networks
from apnb.devices import bf16_units
from apnb.errors import Invalid

PRECISIONS = ("fp32", "bf16")
"""How attacks compute. fp32: exact up to the order of sums. bf16: a body in bfloat16; verdicts are still taken in float32."""

_TF32 = threading.Lock()
_USERS: list[int] = []
_BEFORE: list[tuple[Any, str, Any, Any]] = []


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 means float32: no autocast, no TF32."""
    with _TF32:  # a switch of the whole process: the first user turns it off, the last one puts it back
        if not _USERS:
            _BEFORE[:] = _switches()
            for where, name, _, off in _BEFORE:
                setattr(where, name, off)
        _USERS.append(1)
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        with _TF32:
            _USERS.pop()
            if not _USERS:
                for where, name, before, _ in _BEFORE:
                    setattr(where, name, before)


def _switches() -> list[tuple[Any, str, Any, Any]]:
    """TF32's switches: where, name, value now, value for off. Whoever has set the newer ones cannot read the older ones."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        return [(where, "allow_tf32", where.allow_tf32, False) for where in (matmul, cudnn)]
    except RuntimeError:
        return [(where, "fp32_precision", where.fp32_precision, "ieee") for where in (matmul, cudnn.conv, cudnn.rnn)]


@contextmanager
def bf16_body(net: nn.Module, ends: tuple[str, str], device_type: str, enabled: bool = True) -> Iterator[None]:
    """bfloat16 autocast inside the network, with the modules named in ``ends`` (stem, classifier) kept in float32.

    The ends matter: bfloat16 spacing near 1 is 2^-8, half of a perturbation of 8/255 would be rounded away at the input, and
    logits lose the differences that gradients are made of. What leaves the stem is rounded, so that a residual stream that
    starts there is carried in bfloat16 too. Only the network's own forward runs under autocast.
    """
    if not enabled:
        yield
        return
    stem, classifier = (net.get_submodule(name) for name in ends)
    with ExitStack() as undo:
        scopes: list[Any] = []

        def enter(on: bool):
            def hook(module: nn.Module, args: tuple) -> tuple:
                scope = torch.autocast(device_type, dtype=torch.bfloat16, enabled=on)
                scope.__enter__()
                scopes.append(scope)
                return args if on else tuple(a.float() if isinstance(a, Tensor) else a for a in args)

            return hook

        def leave(module: nn.Module, args: tuple, out: Tensor) -> Tensor | None:
            scopes.pop().__exit__(None, None, None)
            return out.bfloat16() if module is stem is not classifier and isinstance(out, Tensor) else None

        for module in dict.fromkeys((net, stem, classifier)):
            undo.callback(module.register_forward_pre_hook(enter(module is net)).remove)
            undo.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield


def exact(model: nn.Module, device: torch.device) -> nn.Module:
    """A frozen copy in evaluation mode and float32, on ``device``: the network whose word is a verdict.

    Raises:
        Invalid: a network that cannot be copied, whose parameters have no values (device "meta") or lie on several devices.
    """
    places = {t.device for t in [*model.parameters(), *model.buffers()]}
    if any(place.type == "meta" for place in places):
        raise Invalid("the network lies on the device 'meta', where parameters have no values; load its weights first")
    if len(places) > 1:
        told = ", ".join(sorted(map(str, places)))
        raise Invalid(f"the network lies on several devices ({told}); move it to one of them with model.to(...)")
    try:
        return networks.copied(model).to(device).float().eval().requires_grad_(False)
    except Invalid:
        raise
    except Exception as error:  # scripted, traced and lazy networks refuse one or the other
        raise Invalid(
            f"a {type(model).__name__} cannot be frozen ({str(error).splitlines()[0]}); give a plain torch.nn.Module"
        ) from None


def fast(net: nn.Module, sample: Tensor, precision: str = "fp32") -> nn.Module:
    """A copy of an exact network that attacks run faster on.

    Args:
        net: as `exact` returns it. sample: some of the images, (n, C, H, W): what the copy says of them must be what ``net`` says.
        precision: one of `PRECISIONS`.

    Returns:
        A frozen network. Batch norms that directly follow a convolution are folded into it where that leaves the logits as they
        were, up to the order of sums.

    Raises:
        Invalid: bf16 for hardware without bfloat16 units, or for a network whose first and last layer cannot be told.
    """
    if precision == "bf16":
        if not bf16_units(sample.device):
            raise Invalid(f"precision 'bf16' needs bfloat16 units, which this {sample.device.type} has not; use 'fp32'")
        found = networks.layers(net, sample[:2])
        half = _folded(net, sample).to(memory_format=torch.channels_last)
        return Half(half, (found[0].module, found[-1].module)).eval()
    folded = _folded(net, sample)
    return folded.to(memory_format=torch.channels_last) if sample.device.type == "cuda" else folded


class Half(nn.Module):
    """A network whose body computes in bfloat16; logits are float32."""

    def __init__(self, net: nn.Module, ends: tuple[str, str]):
        super().__init__()
        self.net, self.ends = net, ends

    def forward(self, x: Tensor) -> Tensor:
        with bf16_body(self.net, self.ends, x.device.type):
            return self.net(x.contiguous(memory_format=torch.channels_last)).float()


def _folded(net: nn.Module, sample: Tensor) -> nn.Module:
    """``net`` with batch norms folded into the convolutions before them and without poolings to the size that is there already,
    or a plain copy if that would change what it says."""
    plain = copy.deepcopy(net)
    pairs, idle = _superfluous(net, sample)
    folded = copy.deepcopy(net)
    for name in idle:
        folded.set_submodule(name, nn.Identity())
    for conv, norm in pairs:
        fused = fuse_conv_bn_eval(folded.get_submodule(conv), folded.get_submodule(norm)).requires_grad_(False)
        folded.set_submodule(conv, fused)
        folded.set_submodule(norm, nn.Identity())
    with torch.no_grad(), full_precision(), contextlib.suppress(Exception):  # a forward may look at what is gone
        before, after = net(sample), folded(sample)
        close = torch.allclose(before, after, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
        if close and torch.equal(before.argmax(1), after.argmax(1)):
            return folded
    return plain


def _superfluous(net: nn.Module, sample: Tensor) -> tuple[list[tuple[str, str]], list[str]]:
    """(convolution, batch norm): plain ones that run once a pass, the norm on what the convolution has just put out; and adaptive
    poolings whose output has the size of their input."""
    convolutions = {m: n for n, m in net.named_modules() if type(m) is nn.Conv2d and "weight" in m._parameters}
    norms = {m: n for n, m in net.named_modules() if type(m) is nn.BatchNorm2d and m.track_running_stats}
    pools = {m: n for n, m in net.named_modules() if type(m) in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)}
    calls: Counter[nn.Module] = Counter()
    outputs: dict[int, tuple[nn.Module, Tensor, int]] = {}
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def left(module: nn.Module, args: tuple, out: Tensor) -> None:
        calls[module] += 1
        outputs[id(out)] = (module, out, out._version)  # the tensor is kept, so that its id stays its own

    def entered(module: nn.Module, args: tuple) -> None:
        calls[module] += 1
        source, _, version = outputs.get(id(args[0]) if args else 0, (None, None, None))
        if source is not None and args[0]._version == version:  # not changed in place meanwhile
            pairs.append((source, module))

    def pooled(module: nn.Module, args: tuple, out: Tensor) -> None:
        if args[0].shape != out.shape:
            pools.pop(module, None)

    with ExitStack() as undo, torch.no_grad(), full_precision():
        for module in list(pools):
            undo.callback(module.register_forward_hook(pooled).remove)
        for module in convolutions:
            undo.callback(module.register_forward_hook(left).remove)
        for module in norms:
            undo.callback(module.register_forward_pre_hook(entered).remove)
        net(sample[:2])
    return [(convolutions[c], norms[b]) for c, b in pairs if calls[c] == calls[b] == 1], list(pools.values())
