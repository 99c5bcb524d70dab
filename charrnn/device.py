"""Where to compute, and what can be computed there."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import get_args

import torch

from charrnn.config import DeviceName
from charrnn.errors import UsageError
from charrnn.wording import counted

#: Numbers of glibc's ``mallopt`` (malloc.h), and the largest values that they take.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST_TRIM, MOST_MMAP = 2**31 - 1, 2**25
#: The first version of cuDNN whose recurrences torch uses in bf16: 9.13.
CUDNN_WITH_BF16 = 91300


def choose_device(name: str) -> torch.device:
    """Return the device to compute on.

    "auto" takes a CUDA GPU where there is one; but the CPU where this torch has no kernels for it,
    of which torch itself warns.

    Raises:
        UsageError: the device does not exist here, or torch cannot compute on it now.
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
    """Whether this machine has a device that torch can compute on: "cpu", "cuda" or "mps"."""
    # To ask for CUDA wakes the driver, which takes its time, and warns of one that is too old.
    return (
        name == "cpu"
        or (name == "cuda" and torch.cuda.is_available() and _cuda_refusal() is None)
        or (name == "mps" and torch.backends.mps.is_available())
    )


@cache
def _cuda_refusal() -> str | None:
    """Return why no small kernel runs on the GPU that torch sees, or None where one does.

    None runs where this build of torch has no kernels for the card, where another process holds the
    card alone, or where its memory is full.
    """
    try:
        torch.ones(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def in_words(device: torch.device) -> str:
    """Return a device with what tells it from others of its kind."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return kind_in_words(device.type, torch.get_num_threads(), name)


def kind_in_words(kind: str, threads: int, name: str = "") -> str:
    """Return a device as ``in_words`` does.

    Args:
        kind: "cpu", "cuda" or "mps".
        threads: that a CPU computes with.
        name: of a GPU; "": not known.
    """
    detail = counted(threads, "thread") if kind == "cpu" else name
    return f"{kind} ({detail})" if detail else kind


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bf16, at twice float32's speed."""
    if device.type == "cpu":
        return has_capability("avx512_bf16")
    # Older GPUs than Ampere compute bf16 as well, with float32's instructions and more.
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def recurs_in_bf16(device: torch.device) -> bool:
    """Whether a device has good recurrences in bf16; on a GPU they are cuDNN's.

    torch calls those only if it was built with version 9.13 or newer of cuDNN
    (``supportsBFloat16RNNWithCuDNN``, in ATen/cuda/detail/CUDAHooks.cpp). It tells Python the
    version that is loaded; in its wheels both are the same.
    """
    if device.type != "cuda" or not multiplies_bf16(device):
        return multiplies_bf16(device)
    try:
        version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    except RuntimeError:  # torch does not tell where another card is too old for it
        return False
    return version is not None and version >= CUDNN_WITH_BF16


def has_capability(name: str) -> bool:
    """Return whether the CPU has what torch calls so, such as "avx512_f"."""
    # Not in every torch that we take; without it nothing is promised.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get(name))


def keep_freed_memory() -> bool:
    """Make the C library keep what is freed for what is allocated next, up to 32 MiB a piece.

    An update frees all that it allocated, and the next one wants the same again. Memory that
    went back to the kernel meanwhile is cleared page by page when it is touched: with a large
    vocabulary, or a cell that keeps its gates, that is a quarter of an update's time
    (docs/diary.md). The most that the process takes is the same.

    Returns:
        Whether it was done; only glibc, on Linux, can.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Both, or none: each alone stops glibc from adapting the other.
    return all(
        mallopt(number, value)
        for number, value in ((M_MMAP_THRESHOLD, MOST_MMAP), (M_TRIM_THRESHOLD, MOST_TRIM))
    )
