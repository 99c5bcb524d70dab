"""What this machine is called, beside figures that depend on it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

__all__ = ["processor"]


@cache
def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, with the numbers that tell apart those of one name.

    Args:
        cpuinfo: where Linux describes it.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
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
