"""How much of the machine this process may use, and keeps: memory, processor time, threads.

A container, a scheduler or systemd may allow less than the machine has, through control groups.
Groups are nested, and the limits of all of them apply.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

#: Parameters of glibc's ``mallopt`` (malloc.h), and the largest value that it takes.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MOST_TRIM = 2**31 - 1
#: Advices of Linux's ``madvise`` (linux/mman.h).
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the most memory that this process may use, in bytes.

    Args:
        root: the folder of ``proc`` and ``sys``, where Linux shows the limits.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            # The file does not exist, or says "max".
            with suppress(OSError, ValueError):
                limits.append(int((group / name).read_text(encoding="utf-8")))
    return min(limits)


def allowed_cores(root: Path = Path("/")) -> int | None:
    """Return how many cores the allowed processor time keeps busy; None: all that there are.

    Rounded down, as a thread that waits for processor time holds up all the others; at least 1.

    Args:
        root: the folder of ``proc`` and ``sys``, where Linux shows the limits.
    """
    limits = []
    for group in _groups("cpu", root):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            # The file does not exist, or says "max", or -1.
            with suppress(OSError, ValueError):
                said = " ".join((group / name).read_text(encoding="utf-8") for name in names)
                quota, period = map(int, said.split())
                if quota > 0 and period > 0:
                    limits.append(max(1, quota // period))
    mine = cores()
    least = min(limits, default=mine)
    # A limit that allows all cores is none: left alone, torch skips each core's second thread.
    if least < mine:
        return least
    # On ARM torch (up to 2.13) counts all of the machine's, even if this process may not use them:
    # https://github.com/pytorch/pytorch/issues/193859
    is_fewer = platform.machine() == "aarch64" and mine < (os.cpu_count() or mine)
    return mine if is_fewer else None


def cores() -> int:
    """Return how many cores there are for this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def openmp(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what to set in the environment for OpenMP, which reads it when torch is loaded.

    Args:
        environ: the environment as it is.
    """
    # Torch splits its products for as many threads as it counts on. If OpenMP starts fewer, some
    # shares are never computed: the results are wrong, without an error, or it waits for ever.
    settings = {"OMP_DYNAMIC": "false"}
    if environ.get("OMP_MAX_ACTIVE_LEVELS", "").strip() == "0":
        settings["OMP_MAX_ACTIVE_LEVELS"] = "1"
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environ.keys():
        # A thread that waits for the next time step spins; if it spins for long while something
        # else wants its core, a step takes ten times as long. Spinning for less costs a quiet
        # machine too much (docs/diary.md).
        settings["GOMP_SPINCOUNT"] = "4000"
    # By default OpenMP starts a thread for each of the machine's cores; with fewer cores allowed,
    # they would wait for each other.
    asked = environ.get("OMP_NUM_THREADS")
    threads = allowed_cores() if asked is None else _whole(asked.partition(",")[0])
    if (most := _whole(environ.get("OMP_THREAD_LIMIT", ""))) is not None:
        threads = min(most, threads or cores())
        asked = None
    if threads is not None:
        if asked is None:
            settings["OMP_NUM_THREADS"] = str(threads)
        # With a variable of MKL's, torch counts on as many threads as that says.
        if {"MKL_NUM_THREADS", "MKL_DOMAIN_NUM_THREADS"} & environ.keys():
            settings["MKL_NUM_THREADS"] = str(threads)
    return settings


def _whole(word: str) -> int | None:
    """Return a number above 0; None for anything else."""
    with suppress(ValueError):  # of more digits than Python converts
        return int(word) or None if word.strip().isdecimal() else None
    return None


def keep_freed_memory() -> bool:
    """Make the C library keep freed blocks of any size for the next allocations.

    An update frees all that it allocated, and the next one allocates the same again. The kernel
    clears memory that it got back and gives out again, page by page: with a large vocabulary, or
    a cell that keeps its gates, that is a quarter of an update's time (docs/diary.md). The
    process's peak memory stays the same.

    Returns:
        Whether it worked; only glibc, on Linux, can do it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # A block that is a mapping of its own goes back when it is freed; so there are to be none.
    return all(mallopt(*setting) for setting in ((M_TRIM_THRESHOLD, MOST_TRIM), (M_MMAP_MAX, 0)))


def join_pages(root: Path = Path("/")) -> int:
    """Join the pages of the C library's heap to large ones, if Linux gives those on request.

    A processor remembers the addresses of only so many pages. With pages of 2 MB in place of 4 KB
    it looks up fewer of them, so that updates take less time (docs/diary.md). What the heap grows
    by later has small pages again. It takes some tenths of a second for 200 MB.

    Args:
        root: the folder of ``proc`` and ``sys``.

    Returns:
        How many large pages there are now; 0 where the system uses them by itself or not at all.
    """
    settings = root / "sys/kernel/mm/transparent_hugepage"
    try:
        if "[madvise]" not in (settings / "enabled").read_text(encoding="ascii"):
            return 0
        size = int((settings / "hpage_pmd_size").read_text(encoding="ascii"))
        mappings = (root / "proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError):
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    joined = 0
    for line in mappings.splitlines():
        if not line.endswith("[heap]"):
            continue
        start, end = (int(address, 16) for address in line.split()[0].split("-"))
        whole = range(-(-start // size) * size, end - size + 1, size)
        madvise(whole.start, len(whole) * size, MADV_HUGEPAGE)  # all that Linux before 6.1 knows
        # One by one: a page that cannot be joined now ends a call.
        joined += sum(madvise(page, size, MADV_COLLAPSE) == 0 for page in whole)
    return joined


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups, versions 2 and 1.

    In a container the mounted root may be the container's own group, while ``/proc`` names the
    group's path on the host, which does not exist here.
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
