"""The processor: its name, its maker, and what the system says of it."""

from __future__ import annotations

import ctypes
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path


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


@cache
def vendor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the processor's vendor, such as "GenuineIntel"; None if it is not known.

    Args:
        cpuinfo: where Linux describes it.
    """
    return cpu_facts(cpuinfo).get("vendor_id")


def cpu_facts(cpuinfo: Path) -> dict[str, str]:
    """Return the fields of the first processor in ``cpuinfo``."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    return facts
