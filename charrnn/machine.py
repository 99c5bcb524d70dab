"""What this machine is called, beside figures that depend on it."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import torch

from charrnn.native import loops
from charrnn.wording import counted

__all__ = ["machine", "processor"]


def machine() -> str:
    """Return the machine and the versions that figures depend on, in one line."""
    parts = [processor(), counted(os.cpu_count() or 1, "core")]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts += [
        f"{platform.system()} {platform.machine()}",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__} with {counted(torch.get_num_threads(), 'thread')}",
        "loops compiled" if loops() else "loops in numpy",
    ]
    return ", ".join(parts)


@cache
def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, with the numbers that tell apart those of one name.

    Args:
        cpuinfo: where Linux describes it.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    called = facts.get("model name", platform.machine())
    if not {"cpu family", "model"} <= facts.keys():
        return called
    return f"{called} (family {facts['cpu family']}, model {facts['model']})"
