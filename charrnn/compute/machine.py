"""Which machine this is: its name, for measurements."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from charrnn.compute.device import cpu_facts
from charrnn.compute.recurrence import loops
from charrnn.wording import counted


def machine() -> str:
    """Return the machine and the software versions that measurements depend on, in one line."""
    made = loops()
    parts = [processor(), counted(os.cpu_count() or 1, "core")]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts += [
        f"{platform.system()} {platform.machine()}",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__} with {counted(torch.get_num_threads(), 'thread')}",
        "loops not compiled" if made is None else "loops compiled",
    ]
    if made is not None and made.flaw:
        parts[-1] += " for any processor"
    return ", ".join(parts)


def worker(name: str, threads: int) -> str:
    """Return a processor and the number of threads that compute on it, in words."""
    return f"{name} with {counted(threads, 'thread')}"


@cache
def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, with numbers that distinguish processors of the same name.

    Args:
        cpuinfo: where Linux describes it.
    """
    facts = cpu_facts(cpuinfo)
    called = facts.get("model name") or _apple_name() or platform.machine()
    if {"cpu family", "model"} <= facts.keys():
        return f"{called} (family {facts['cpu family']}, model {facts['model']})"
    # ARM processors have no name there.
    if {"CPU implementer", "CPU part"} <= facts.keys():
        return f"{called} (implementer {facts['CPU implementer']}, part {facts['CPU part']})"
    return called


def _apple_name() -> str | None:
    """Return macOS's name for the processor, such as "Apple M2"; None elsewhere."""
    if platform.system() != "Darwin":
        return None
    name = ctypes.create_string_buffer(128)
    size = ctypes.byref(ctypes.c_size_t(len(name)))
    with suppress(OSError, AttributeError):
        ask = ctypes.CDLL(None).sysctlbyname
        if ask(b"machdep.cpu.brand_string", name, size, None, ctypes.c_size_t(0)) == 0:
            return name.value.decode(errors="replace")
    return None
