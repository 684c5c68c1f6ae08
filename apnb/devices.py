"""Where to compute, and what the hardware has."""

from __future__ import annotations

import torch

from apnb.errors import Invalid


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or CUDA if there is one, or the CPU.

    Raises:
        Invalid: a device that torch does not know or does not have.
    """
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise Invalid(f"no device {str(device)!r} here ({str(error).splitlines()[0]}); use cpu") from None
    return chosen


def bf16_units(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX on x86, bf16 on CUDA)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    known = [getattr(torch.cpu, f"_is_{unit}_supported", lambda: False) for unit in ("avx512_bf16", "amx_tile")]
    return any(probe() for probe in known)
