"""Where to compute, and what can be computed there."""

from __future__ import annotations

import torch

from charrnn.errors import UsageError
from charrnn.kernels import multiplies_bf16

__all__ = ["can_use_bf16", "choose_device"]


def choose_device(name: str) -> torch.device:
    """Return the device to compute on; "auto" takes a GPU where there is one.

    Raises:
        UsageError: the device does not exist here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name not in available:
        raise UsageError(f"--device must be auto, cpu, cuda or mps, not {name!r}")
    if not available[name]:
        raise UsageError(f"--device {name}: there is no such device here; --device cpu works")
    return torch.device(name)


def can_use_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies matrices in bf16 faster than in float32."""
    return device.type != "cpu" or multiplies_bf16(device)
