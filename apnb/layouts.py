"""How the surveyed methods store a network, and what plain network a stored one stands for.

The survey publishes networks of ten methods. Their files differ in the names, in how the effective weights are put together (masks,
scores, factors beside the weights) and in the network itself. All three differences are data here; what comes out is a
plain network with the effective weights, whose logits are those of the published one.

Sources: the authors' code of each method and the loader of the survey's repository. No published file was at hand when this was
written: where the two leave open how a file is stored, every reading they allow is understood.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apnb import networks
from apnb.chance import borrowed
from apnb.errors import Invalid
from apnb.masks import select, truncated_counts

# ------------------------------------------------------------------------------------------------------------ what is published

_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_ONE_LAYER = {"hidden": (), "pool": 1}
_BIRD = {"resnet18": {"preact": True}, "vgg16": {**_ONE_LAYER, "fifth": True, "bias": True}}
_BIRD_NORM = {"cifar10": (_CIFAR_MEAN, (0.2470, 0.2435, 0.2616)), "svhn": (_CIFAR_MEAN, (0.2470, 0.2435, 0.2616))}


@dataclass(frozen=True)
class Published:
    """How one method's networks differ from the benchmark's.

    Attributes:
        forms: how its files put weights together (keys of `FORMS`).
        options: network -> options of its factory in `apnb.networks`.
        normalize: data -> (mean, std) that the published network takes off its images, where it does.
        convolutions: only these are pruned; else the linear layers are too.
    """

    forms: tuple[str, ...] = ("plain",)
    options: Mapping[str, Mapping[str, Any]] | None = None
    normalize: Mapping[str, tuple] | None = None
    convolutions: bool = False


PUBLISHED: dict[str, Published] = {
    "radmm": Published(options={"vgg16": {**_ONE_LAYER, "fifth": True, "bias": True}}, convolutions=True),
    "hydra": Published(forms=("plain", "popup_scores")),
    "harp": Published(forms=("plain", "k_score")),
    "pwoa": Published(options={"vgg16": {"bias": True}}, convolutions=True),
    "mad": Published(
        forms=("mask_weight",),
        options={"vgg16": _ONE_LAYER},
        normalize={  # constants of the network's class: no file holds them
            "cifar10": (_CIFAR_MEAN, (0.2023, 0.1994, 0.2010)),
            "svhn": ((0.43090966, 0.4302428, 0.44634357), (0.19759192, 0.20029082, 0.19811132)),
        },
    ),
    "li20": Published(options={"vgg16": {"hidden": (512,), "pool": 1, "head_norm": True}}),
    "rst": Published(
        forms=("scores",),
        options={
            "resnet18": {"affine": False, "bias": False},
            "vgg16": {**_ONE_LAYER, "fifth": True, "affine": False, "head_bias": False},
        },
        normalize={"cifar10": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)), "svhn": ((0.5,) * 3, (0.5,) * 3)},  # of its loader
    ),
    "robustbird": Published(forms=("plain", "weight_orig"), options=_BIRD, normalize=_BIRD_NORM),
    "twinrep": Published(forms=("plain", "factors"), options={"vgg16": {**_ONE_LAYER, "fifth": True}}),
    "flyingbird": Published(options=_BIRD, normalize=_BIRD_NORM),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- effective weights

Parts = dict[str, Tensor]
"""Tensors of one layer by their last name: weight, bias, popup_scores, ..."""


def _masked(layer: Parts, kept: float) -> Parts:
    weight, mask = layer.pop("weight_orig"), _binary(layer.pop("weight_mask"))
    return {**layer, "weight": weight * mask}


def _binary(mask: Tensor) -> Tensor:
    if not ((mask == 0) | (mask == 1)).all():
        raise Invalid("a mask (weight_mask) that holds other numbers than 0 and 1")
    return mask


def _softplus(layer: Parts, kept: float) -> Parts:
    """MAD keeps a mask variable q beside every weight and bias; what counts is w * softplus(q), and softplus(q) is 1 in its files."""
    soft = {name: F.softplus(layer.pop(f"mask_{name}")) for name in ("weight", "bias") if f"mask_{name}" in layer}
    return {name: t * soft[name] if name in soft else t for name, t in layer.items()}


def _top(weight: Tensor, scores: Tensor, drop: int) -> Tensor:
    if drop == 0:
        return weight
    if drop == scores.numel():
        return torch.zeros_like(weight)  # HARP's count of channels can reach all of them
    return weight * select({"": scores.abs()}, {"": drop})[""]


def _popup(name: str) -> Callable[[Parts, float], Parts]:
    """The int((1 - k) n) smallest |scores| of a layer are off (edge-popup; HYDRA and RST count so)."""

    def fold(layer: Parts, kept: float) -> Parts:
        scores = layer.pop(name)
        drop = truncated_counts({"": scores.numel()}, 1 - kept)[""]
        return {**layer, "weight": _top(layer["weight"], scores, drop)}

    return fold


def _rates(layer: Parts, kept: float) -> Parts:
    """HARP: a layer keeps k = K/10 + (1 - K/10) sigmoid(q) of its weights or, with one score a channel, of its input channels."""
    scores, q = layer.pop("popup_scores"), layer.pop("k_score").float()
    if q.numel() != 1:
        raise Invalid(f"a k_score of shape {tuple(q.shape)} where one number is expected")
    share = 0.1 * kept + (1 - 0.1 * kept) * q.reshape(()).sigmoid()
    n = scores.numel()
    drop = int((1 - share) * n) if scores.shape == layer["weight"].shape else n - int(torch.round(share * n))
    return {**layer, "weight": _top(layer["weight"], scores, drop)}


def _factors(layer: Parts, kept: float) -> Parts:
    """Twin-Rep: w * a; Channel-Rep: a (O, O) mixes the filters; then the mask, which is 1 where it is absent."""
    weight, aux, mask = layer.pop("weight"), layer.pop("aux_weight"), layer.pop("mask", torch.ones(()))
    product = weight * aux if aux.shape == weight.shape else (aux @ weight.flatten(1)).view_as(weight)
    return {**layer, "weight": product * _binary(mask)}


@dataclass(frozen=True)
class Form:
    """One way to store a layer.

    Attributes:
        needs: the tensors of a layer, the weight first; may: those it can have beside them.
        fold: what makes the effective weight of them, given the share of weights kept.
        share: whether that share must be known, because no file holds it.
        partly: whether a layer can be plain where others are not.
        meaning: the effective weight, in words.
    """

    needs: tuple[str, ...]
    fold: Callable[[Parts, float], Parts]
    meaning: str
    may: tuple[str, ...] = ()
    share: bool = False
    partly: bool = False

    @property
    def own(self) -> set[str]:
        """Names of tensors that a plain layer does not have."""
        return {*self.needs, *self.may} - {"weight"}


_HIGHEST = "weight where |{}| is among the highest of its layer"
FORMS: dict[str, Form] = {
    "weight_orig": Form(("weight_orig", "weight_mask"), _masked, "weight_orig * weight_mask", partly=True),
    "mask_weight": Form(("weight", "mask_weight"), _softplus, "weight * softplus(mask_weight)", may=("mask_bias",)),
    "k_score": Form(
        ("weight", "k_score", "popup_scores"), _rates, _HIGHEST.format("popup_scores") + ", as many as k_score says", share=True
    ),
    "popup_scores": Form(("weight", "popup_scores"), _popup("popup_scores"), _HIGHEST.format("popup_scores"), share=True),
    "scores": Form(("weight", "scores"), _popup("scores"), _HIGHEST.format("scores"), share=True),
    "factors": Form(("weight", "aux_weight"), _factors, "weight times its factor aux_weight, times mask", may=("mask",)),
    "plain": Form(("weight",), lambda layer, kept: layer, "the weights themselves"),
}
"""The first whose second tensor (of ``weight_orig`` either) a file holds is its form; what holds none is plain."""


def form_of(state: Mapping[str, Tensor]) -> str:
    """How the layers of a state are stored, by the last names of its tensors."""
    last = {name.rpartition(".")[2] for name in state}
    signs = {form: about.needs if form == "weight_orig" else about.needs[1:2] for form, about in FORMS.items()}
    return next((form for form, sign in signs.items() if last & {*sign}), "plain")


def fold(state: Mapping[str, Tensor], form: str, kept: float) -> dict[str, Tensor]:
    """The state with effective weights only.

    Args:
        state: names and tensors as stored, names without prefixes.
        form: a key of `FORMS`.
        kept: share of the units kept, in (0, 1], where the form asks for it.

    Raises:
        Invalid: a layer lacks what the others have, or holds it in another shape.
    """
    about, modules = FORMS[form], {}
    for name, tensor in state.items():
        module, _, last = name.rpartition(".")
        modules.setdefault(module, {})[last] = tensor
    result: dict[str, Tensor] = {}
    for module, parts in modules.items():
        layer = not about.partly and "weight" in parts and parts["weight"].ndim > 1
        if layer or about.own & parts.keys():
            missing = [name for name in about.needs if name not in parts]
            if about.needs[0] != "weight" and {"weight", about.needs[0]} <= parts.keys():
                raise Invalid(f"{module} has both a weight and a {about.needs[0]}")
            if missing:
                raise Invalid(f"{module} has no {missing[0]}, which the other tensors of the file ask for")
            _check_shapes(module, parts, about)
            try:
                parts = about.fold({n: t.float() if t.is_floating_point() else t for n, t in parts.items()}, kept)
            except Invalid as error:
                raise Invalid(f"{module} has {error}") from None
        result |= {f"{module}.{last}" if module else last: tensor for last, tensor in parts.items()}
    return result


def _check_shapes(module: str, parts: Parts, about: Form) -> None:
    weight = parts[about.needs[0]]
    if weight.ndim < 2:
        raise Invalid(f"{module}.{about.needs[0]} has shape {tuple(weight.shape)}, which is no layer's")
    whole, rows = tuple(weight.shape), (1, weight.shape[1], *[1] * (weight.ndim - 2))
    square = (len(weight), len(weight))
    fits = {
        "popup_scores": (whole, rows) if "k_score" in about.needs else (whole,),
        "aux_weight": (whole, square),
        "mask": (whole, (len(weight), *[1] * (weight.ndim - 1))),
        "mask_bias": (tuple(parts["bias"].shape),) if "bias" in parts else (),
    }
    for name in sorted(about.own & parts.keys()):
        part = parts[name]
        if name != "k_score" and tuple(part.shape) not in fits.get(name, (whole,)):
            raise Invalid(f"{module}.{name} has shape {tuple(part.shape)}, which does not fit a weight of shape {whole}")
        if "mask" not in (name, name.removeprefix("weight_")) and not part.is_floating_point():
            raise Invalid(f"{module}.{name} holds {str(part.dtype).removeprefix('torch.')}, expected floats")
        if not part.isfinite().all():
            raise Invalid(f"{module}.{name} holds NaN or infinite numbers")


# -------------------------------------------------------------------------------------------------------------------------- names

_STAGES = (2, 2, 3, 3, 3)  # convolutions between two max-pools of VGG-16


def _vgg_index(stage: int, block: int) -> int:
    """Where the convolution ``block`` of ``stage``, both from 0, stands in ``features``: three places each, one for a max-pool."""
    return 3 * (sum(_STAGES[:stage]) + block) + stage


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under the names of `apnb.networks`, whatever the method calls its modules.

    Raises:
        Invalid: two names of one tensor (Li20's VGG-16 is stored twice) that hold different numbers.
    """
    result: dict[str, Tensor] = {}
    wrapped = all(name.startswith("model.") for name in state)
    for name, tensor in state.items():
        new = _renamed(name.removeprefix("model.") if wrapped else name)
        if new in HEADS and tuple(tensor.shape[2:]) == (1, 1):
            tensor = tensor.flatten(1)  # RST's classifier is a 1x1 convolution
        if new in result and not (result[new].dtype == tensor.dtype and torch.equal(result[new], tensor)):
            raise Invalid(f"it holds {new} twice, and {name} says something else than the other; one of the two is damaged")
        result[new] = tensor
    return result


HEADS = ("classifier.weight", "linear.weight")


def _renamed(name: str) -> str:
    name = re.sub(r"^feature\.|^model\.0\.(?=\d)", "features.", name)
    name = re.sub(r"^model\.3\.(?=\d)", "classifier.", name)
    name = re.sub(r"^fc\.", "linear.", name)
    if found := re.match(r"layer([1-5])\.(\d)\.([01])\.(\w+)$", name):  # PwoA's VGG-16
        stage, block, part, last = found.groups()
        return f"features.{_vgg_index(int(stage) - 1, int(block)) + int(part)}.{last}"
    return re.sub(r"^(layer6\.0|layer7\.0|layer8)\.", lambda m: f"classifier.{'678'.index(m[1][5]) * 2}.", name)


# ----------------------------------------------------------------------------------------------------------------------- networks


def options(method: str, network: str) -> dict[str, Any]:
    """What the published network of a method gives to the factory of ``network``."""
    return dict((PUBLISHED[method].options or {}).get(network, {}))


Shapes = Mapping[str, tuple[int, ...]]


@cache
def shapes(method: str, network: str) -> Shapes:
    """Names and shapes in the state_dict of a method's network for CIFAR-10, as `apnb.networks` builds it."""
    with torch.device("meta"):
        net = networks.NETWORKS[network](channels=3, classes=10, **options(method, network))
    return {name: tuple(t.shape) for name, t in net.state_dict().items()}


def misfit(found: Shapes, expected: Shapes) -> str:
    """What keeps a state from being that of a network: names missing, left over, of another shape; empty if it fits."""
    missing = {n for n in expected.keys() - found.keys() if not n.endswith("num_batches_tracked")}  # evaluation does not use it
    told = (
        ("missing", missing),
        ("left over", found.keys() - expected.keys()),
        ("of another shape", {n for n in expected.keys() & found.keys() if found[n] != expected[n]}),
    )
    return "; ".join(
        f"{len(names)} {what} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in told
        if names
    )


def skeleton(state: Mapping[str, Tensor], form: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what `effective` makes of a state, whatever its numbers are, ``normalize.*`` among them."""
    about, wrapped, found = FORMS[form], all(name.startswith("model.") for name in state), {}
    for name, tensor in state.items():
        module, dot, last = name.rpartition(".")
        if last in about.own and last != about.needs[0]:
            continue
        new = _renamed(f"{module}{dot}{'weight' if last == about.needs[0] else last}".removeprefix("model." if wrapped else ""))
        shape = tuple(tensor.shape)
        found[new] = shape[:2] if new in HEADS and shape[2:] == (1, 1) else shape
    return found


def candidates(state: Mapping[str, Tensor], form: str) -> dict[str, str]:
    """Method -> network, for the surveyed methods whose files hold such names and shapes, for CIFAR-10."""
    found = skeleton(state, form)
    norm = [found.pop(f"normalize.{part}", None) for part in ("mean", "std")]
    return {
        method: network
        for method, published in PUBLISHED.items()
        for network in ("resnet18", "vgg16")
        if form in published.forms
        and (norm == [None, None] or published.normalize)
        and not misfit(found, shapes(method, network))
    }


def effective(state: Mapping[str, Tensor], form: str, kept: float) -> tuple[dict[str, Tensor], tuple | None]:
    """What a stored state stands for: effective weights under the names of `apnb.networks`, see `fold` and `renamed`.

    Returns:
        The weights, and the mean and std that the file holds for its images (Robust Bird's and Flying Bird's do), else None.
    """
    state = renamed(fold(state, form, kept))
    norm = [state.pop(f"normalize.{part}") for part in ("mean", "std") if f"normalize.{part}" in state]
    if len(norm) < 2:
        return state, None
    if norm[0].numel() != norm[1].numel() or norm[0].numel() > 16:
        raise Invalid(
            f"normalize.mean of {norm[0].numel()} and normalize.std of {norm[1].numel()} numbers, expected one a channel"
        )
    mean, std = (tuple(float(v) for v in t.flatten()) for t in norm)
    if not all(map(math.isfinite, mean + std)):
        raise Invalid("NaN or infinite numbers in normalize.mean or normalize.std")
    return state, (mean, std)


def build(state: Mapping[str, Tensor], network: str | nn.Module, channels: int, classes: int, **variant: Any) -> nn.Module:
    """The network with these effective weights, in evaluation mode.

    Raises:
        Invalid: the state does not fit, or holds what no trained network holds: NaN, negative variances, numbers that are no floats.
    """
    if variant:
        with borrowed():
            net = networks.NETWORKS[network](channels=channels, classes=classes, **variant)
    else:
        net = networks.build(network, channels=channels, classes=classes)
    own = net.state_dict()
    if wrong := misfit(*({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (state, own))):
        raise Invalid(wrong)
    for name, tensor in state.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            raise Invalid(f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, expected floats")
        if not tensor.to(own[name].dtype).isfinite().all():
            raise Invalid(f"NaN or infinite weights in {name}; a network with them cannot be evaluated")
        if name.endswith("running_var") and (tensor < 0).any():
            raise Invalid(f"negative variances in {name}; its tensors are mixed up")
    net.load_state_dict({**own, **state}, strict=True)
    return net.eval()
