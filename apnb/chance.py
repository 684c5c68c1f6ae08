"""Randomness: generators of our own, seeded from words; and, where others draw from torch's global state, a turn at it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_TURN = threading.RLock()  # a network's factory may build networks itself


def generator(*parts: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A random generator whose seed is the SHA-256 of the parts' text: the same parts, the same numbers, on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator(device=device).manual_seed(seed)


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1), float32, in the shape and on the device of ``like``; drawn where the generator is."""
    return torch.rand(like.shape, generator=generator, device=generator.device).to(like.device)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, likewise."""
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like.device)


@contextmanager
def borrowed(device: str | torch.device = "cpu") -> Iterator[None]:
    """torch's global random state for code that insists on it: given back as it was, and used by one thread at a time."""
    device = torch.device(device)
    with _TURN, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
