"""The device to compute on, and what it can do."""

from __future__ import annotations

from functools import cache
from typing import get_args

import torch

from charrnn.config import DeviceName, PrecisionName
from charrnn.errors import UsageError
from charrnn.wording import counted

#: The type of the products in each precision.
DTYPES: dict[PrecisionName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: The first cuDNN version whose recurrences torch uses in bf16: 9.13.
CUDNN_WITH_BF16 = 91300


def choose_device(name: str) -> torch.device:
    """Return the device to compute on.

    "auto" takes a CUDA GPU if there is one, but the CPU if this build of torch has no kernels for
    the GPU; torch itself then prints a warning.

    Raises:
        UsageError: the name is unknown, there is no such device here, or torch cannot compute on
            it now.
    """
    if name not in ("auto", *get_args(DeviceName)):
        raise UsageError(f"--device must be auto, cpu, cuda or mps, not {name!r}")
    if name in ("auto", "cuda") and torch.cuda.is_available():
        why = _cuda_refusal()
        if name == "auto" and why and "no kernel image" in why:
            return torch.device("cpu")
        if why:
            raise UsageError(f"the GPU cannot compute: {why}; --device cpu works")
        return torch.device("cuda")
    if name == "auto":
        return torch.device("cpu")
    if not is_here(name):
        raise UsageError(f"--device {name}: there is no such device here; --device cpu works")
    return torch.device(name)


def is_here(name: str) -> bool:
    """Return whether torch can compute on this device here: "cpu", "cuda" or "mps"."""
    # CUDA only if it is named: asking wakes the driver, which takes time, and warns of an old one.
    return (
        name == "cpu"
        or (name == "cuda" and torch.cuda.is_available() and _cuda_refusal() is None)
        or (name == "mps" and torch.backends.mps.is_available())
    )


@cache
def _cuda_refusal() -> str | None:
    """Return why a small kernel fails on the GPU that torch sees, or None if it runs.

    It fails if this build of torch has no kernels for the GPU, if another process has exclusive
    use of the GPU, or if the GPU's memory is full.
    """
    try:
        torch.ones(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def in_words(device: torch.device) -> str:
    """Return a device in words: its kind, and its threads or its name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return kind_in_words(device.type, torch.get_num_threads(), name)


def kind_in_words(kind: str, threads: int, name: str = "") -> str:
    """Return what ``in_words`` says of a device.

    Args:
        kind: "cpu", "cuda" or "mps".
        threads: how many threads a CPU computes with.
        name: the GPU's name; "" if it is not known.
    """
    detail = counted(threads, "thread") if kind == "cpu" else name
    return f"{kind} ({detail})" if detail else kind


def synchronise(device: torch.device) -> None:
    """Wait until a device has finished its queued work; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether a device has instructions for bf16 products, at twice float32's speed."""
    if device.type == "cpu":
        return has_capability("avx512_bf16")
    # GPUs older than Ampere only emulate bf16, with more instructions than float32 takes.
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def recurs_in_bf16(device: torch.device) -> bool:
    """Return whether a device runs recurrences well in bf16; on a GPU they are cuDNN's.

    torch calls cuDNN's only if it was built with version 9.13 or newer of it
    (``supportsBFloat16RNNWithCuDNN``, in ATen/cuda/detail/CUDAHooks.cpp). Python can ask only for
    the version that is loaded; in torch's wheels both are the same.
    """
    if not multiplies_bf16(device):
        return False
    if device.type != "cuda":
        return True
    try:
        version: int | None = torch.backends.cudnn.version()
    except RuntimeError:  # torch raises it if another GPU here is too old for this cuDNN
        return False
    return version is not None and version >= CUDNN_WITH_BF16


def has_capability(name: str) -> bool:
    """Return whether the CPU has a capability, by torch's name for it, such as "avx512_f"."""
    return bool(torch.cpu.get_capabilities().get(name))
