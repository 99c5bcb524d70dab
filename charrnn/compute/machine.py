"""Which machine this is: its name, for measurements."""

from __future__ import annotations

import os
import platform

import torch

from charrnn.compute.processor import processor
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
