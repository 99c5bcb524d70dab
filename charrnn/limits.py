"""What of the machine this process may have: memory and processor time.

A container, a scheduler or systemd may allow less than there is, by control groups. Each of these
is in another one, and all of them count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory that processes here can have, in bytes.

    Args:
        root: where Linux shows the limits, below ``proc`` and ``sys``.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            # There is no such file, or it says "max".
            with suppress(OSError, ValueError):
                limits.append(int((group / name).read_text(encoding="utf-8")))
    return min(limits)


def allowed_cores(root: Path = Path("/")) -> int | None:
    """Return how many cores the processor time allowed here keeps busy; None: all that there are.

    Rounded down, as a thread that has to wait for its time holds up all the others; at least 1.

    Args:
        root: where Linux shows the limits, below ``proc`` and ``sys``.
    """
    limits = []
    for group in _groups("cpu", root):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            # There is no such file, or it says "max", or -1.
            with suppress(OSError, ValueError):
                said = " ".join((group / name).read_text(encoding="utf-8") for name in names)
                quota, period = map(int, said.split())
                if quota > 0 and period > 0:
                    limits.append(max(1, quota // period))
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    least = min(limits, default=None)
    # As many as there are is no limit: torch leaves out those that are one core's second thread.
    return None if least is None or (there is not None and least >= there) else least


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the control groups that this process is in, of version 2 and 1.

    In a container the outermost may be its own, and the path that names it that of the host, which
    is not there.
    """
    mount = root / "sys/fs/cgroup"
    lines = ["0::/", f"1:{controller}:/"]
    with suppress(OSError):
        named = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
        lines += named.split("\n")
    for line in lines:
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        inner = Path(path.lstrip("/"))
        for group in (inner, *inner.parents):
            yield (mount / controller if controllers else mount) / group
