"""Weights from a file into a network. A file is data: nothing in it is ever executed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apnb import networks
from apnb.errors import Invalid

WRAPPERS = ("state_dict", "net", "model")
"""Keys under which training scripts put the weights beside other things."""


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU: a safetensors file, or a PyTorch file that holds nothing but data.

    A ``state_dict`` may lie bare or under one of `WRAPPERS`; the prefix ``module.`` of a data-parallel network is taken off.

    Raises:
        Invalid: no such file, one that is damaged or something else, or a pickle that names code (which is not run).
    """
    path = Path(path)
    found = _loaded(path)
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        keys = ", ".join(map(repr, list(found)[:6])) if isinstance(found, Mapping) else ""
        told = f"the keys {keys}" if keys else "nothing" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise Invalid(f"{path} holds {told}, expected a state_dict: names and tensors, bare or under {', '.join(WRAPPERS)}")
    if all(str(name).startswith("module.") for name in found):
        return {name.removeprefix("module."): t for name, t in found.items()}
    return dict(found)


def _loaded(path: Path) -> Any:
    if not path.is_file():
        raise Invalid(f"there is no file {path}; give a checkpoint, a run's key or package:factory")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise Invalid(f"{path} is a safetensors file; install the package safetensors to read it") from None
    except pickle.UnpicklingError as error:
        text = str(error)
        named = text.split("GLOBAL ")[1].split(" ")[0] if "GLOBAL " in text else ""
        reason = f"names {named}, which is code" if named else "is no file of weights, or damaged"
        raise Invalid(
            f"{path} {reason}; nothing of it was run. Save the weights alone: torch.save(net.state_dict(), ...)"
        ) from None
    except Exception as error:  # torch, zipfile and safetensors fail in many ways on damaged files
        raise Invalid(f"{path} cannot be read as weights ({type(error).__name__}); it is damaged or something else") from None


def load(path: str | Path, network: str | nn.Module, *, channels: int, classes: int) -> nn.Module:
    """A network with the weights of a checkpoint, in evaluation mode.

    Args:
        network: as for `apnb.networks.build`: resnet18, vgg16, cnn, resnet8, "package:factory" or a module.

    Raises:
        Invalid: the weights are not those of this network; the sentence names what is missing, left over or of another shape.
    """
    state = read(path)
    net = networks.build(network, channels=channels, classes=classes)
    own = net.state_dict()
    wrong = [
        (f"{len(names)} {what} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})")
        for what, names in (
            ("missing", own.keys() - state.keys()),
            ("left over", state.keys() - own.keys()),
            ("of another shape", {n for n in own.keys() & state.keys() if own[n].shape != state[n].shape}),
        )
        if names
    ]
    if wrong:
        name = network if isinstance(network, str) else type(network).__name__
        raise Invalid(f"{path} does not fit the network {name!r}: {'; '.join(wrong)}; name the right one with --network")
    bad = [n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise Invalid(f"{path} holds NaN or infinite weights in {bad[0]}; a network with them cannot be evaluated")
    net.load_state_dict(state, strict=True)
    return net.eval()
