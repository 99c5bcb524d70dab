"""How much of the machine a process may use, as Linux shows it below /proc and /sys, and keeps."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from charrnn.limits import allowed_cores, join_pages, memory_bytes, openmp
from tests.conftest import run_code

WHOLE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

#: Of a process in the group "a/b", in cgroup versions 1 and 2; "/elsewhere" limits neither
#: memory nor processor time.
GROUPS = "no group\n12:pids:/elsewhere\n5:memory:/a/b\n4:cpu,cpuacct:/a/b\n0::/a/b\n"


def limit(root: Path, group: str, **said: str) -> None:
    """Write a group's files; the first _ of each name stands for a dot."""
    folder = root / "sys/fs/cgroup" / group
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in said.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{value}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root folder in which Linux shows a process's groups, none of which has a limit."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(GROUPS)
    limit(tmp_path, "a/b", memory_max="max", cpu_max="max 100000")
    limit(tmp_path, "memory/a/b", memory_limit_in_bytes=str(2**63))
    limit(tmp_path, "cpu/a/b", cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    return tmp_path


each_group = pytest.mark.parametrize("group", ["", "a", "a/b"])


@each_group
@pytest.mark.parametrize("name", ["memory_max", "memory_limit_in_bytes"])
def test_memory_is_what_the_strictest_group_has(root: Path, group: str, name: str) -> None:
    assert memory_bytes(root) == WHOLE
    version = "" if name == "memory_max" else "memory/"
    limit(root, version + group, **{name: "1234567"})
    assert memory_bytes(root) == 1_234_567
    limit(root, version + "elsewhere", **{name: "99"})
    assert memory_bytes(root) == 1_234_567, "the group of another controller"


@pytest.mark.parametrize(
    ("machine", "there", "said"), [("aarch64", 64, 5), ("aarch64", 5, None), ("x86_64", 64, None)]
)
def test_on_arm_cores_that_others_use_are_not_counted(
    root: Path, machine: str, there: int, said: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere torch sees to that itself."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: there)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert allowed_cores(root) == said
    limit(root, "a", cpu_max="300000 100000")
    assert allowed_cores(root) == 3


@each_group
@pytest.mark.parametrize("version", [1, 2])
def test_processor_time_is_so_many_whole_cores(
    root: Path, group: str, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    assert allowed_cores(root) is None
    for quota, cores in ((200_000, 2), (290_000, 2), (30_000, 1), (500_000, None)):
        if version == 2:
            limit(root, group, cpu_max=f"{quota} 100000")
        else:
            said = {"cpu_cfs_quota_us": str(quota), "cpu_cfs_period_us": "100000"}
            limit(root, f"cpu/{group}", **said)
        assert allowed_cores(root) == cores


@pytest.mark.parametrize(
    ("environ", "threads"),
    [
        ({}, None),
        ({"OMP_THREAD_LIMIT": "3"}, "3"),
        ({"OMP_THREAD_LIMIT": "9"}, "5"),
        ({"OMP_THREAD_LIMIT": "3", "OMP_NUM_THREADS": "2,4"}, "2"),
        ({"OMP_THREAD_LIMIT": "3", "OMP_NUM_THREADS": "4"}, "3"),
        ({"OMP_THREAD_LIMIT": "3", "OMP_NUM_THREADS": "many"}, "3"),
        ({"OMP_THREAD_LIMIT": "none", "OMP_NUM_THREADS": "4"}, None),
        ({"OMP_THREAD_LIMIT": "0"}, None),
        ({"OMP_THREAD_LIMIT": "3", "OMP_NUM_THREADS": "9" * 5000}, "3"),
        ({"OMP_NUM_THREADS": "4"}, None),
    ],
)
def test_no_more_threads_than_openmp_will_start(
    environ: dict[str, str], threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.limits.allowed_cores", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    settings = openmp(environ)
    assert settings.get("OMP_NUM_THREADS") == threads
    assert settings["OMP_DYNAMIC"] == "false"
    assert not {"OMP_MAX_ACTIVE_LEVELS", "MKL_NUM_THREADS"} & settings.keys()
    assert openmp({"OMP_MAX_ACTIVE_LEVELS": " 0"})["OMP_MAX_ACTIVE_LEVELS"] == "1"


@pytest.mark.parametrize("name", ["MKL_NUM_THREADS", "MKL_DOMAIN_NUM_THREADS"])
@pytest.mark.parametrize(
    ("environ", "threads"),
    [({"OMP_NUM_THREADS": "4,2"}, "4"), ({"OMP_THREAD_LIMIT": "3"}, "3"), ({}, None)],
)
def test_torch_counts_on_no_more_threads_for_mkl_s_variables(
    name: str, environ: dict[str, str], threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.limits.allowed_cores", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    assert openmp({**environ, name: "7"}).get("MKL_NUM_THREADS") == threads


def test_a_container_s_own_group_is_the_outermost(root: Path) -> None:
    """Its path is the one on the host, which the container cannot see."""
    (root / "proc/self/cgroup").write_bytes(b"5:memory:/docker/caf\xe9\n0::/../docker\n")
    limit(root, "", memory_max="77")
    assert memory_bytes(root) == 77


def test_where_nothing_is_said_there_is_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    assert memory_bytes(tmp_path) == WHOLE
    assert allowed_cores(tmp_path) is None
    limit(tmp_path, "", memory_max="77", cpu_max="200000 100000")
    assert memory_bytes(tmp_path) == 77
    assert allowed_cores(tmp_path) == 2


#: A program that allocates and frees tensors as updates do; prints how many pages were cleared as
#: usual, and how many once freed memory is kept: in one process, as torch takes long to import.
_UPDATES = """
import resource
import torch
from charrnn.limits import keep_freed_memory

def update():
    tensors = [torch.ones(megabytes << 18) for megabytes in (50, 30, 25, 20, 15)]
    return sum(float(tensor[-1]) for tensor in tensors)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def cleared_pages():
    update()
    before = faults()
    for _ in range(10):
        update()
    return faults() - before

print(cleared_pages())
assert keep_freed_memory()
print(cleared_pages())
"""


#: glibc's initial threshold, fixed: otherwise glibc adapts it to the order in which blocks are
#: freed, and results differ by a factor of two from run to run.
_MAP_EACH_PIECE = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}


#: If the system uses large pages by itself, few are cleared either way.
_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    _LARGE_PAGES.exists() and "[always]" in _LARGE_PAGES.read_text(encoding="ascii"),
    reason="pages are large here",
)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to")
@pytest.mark.skipif(platform.machine() == "aarch64", reason="torch allocates by itself there")
def test_memory_of_one_update_serves_the_next() -> None:
    # 140 MiB ten times over: 358,400 pages, where a page has 4 KiB.
    done = run_code(_UPDATES, environment=os.environ | _MAP_EACH_PIECE)
    assert done.code == 0, done.err
    usual, kept = map(int, done.out.split())
    assert kept < usual / 10


#: A program that has 100 MiB on its heap; prints how many large pages there are once its pages
#: were joined, once more, and how many bytes of it Linux then shows in such pages.
_JOIN = """
import numpy
from charrnn.limits import join_pages, keep_freed_memory

assert keep_freed_memory()
held = numpy.arange(50 << 18)
print(join_pages(), join_pages())
with open("/proc/self/smaps_rollup") as rollup:
    print(next(int(line.split()[1]) << 10 for line in rollup if line.startswith("AnonHuge")))
assert (held == numpy.arange(50 << 18)).all()
"""


@pytest.mark.skipif(
    not _LARGE_PAGES.exists() or "[madvise]" not in _LARGE_PAGES.read_text(encoding="ascii"),
    reason="here pages are large by themselves, or never",
)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to")
@pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (6, 1),
    reason="before Linux 6.1 pages are joined in the background",
)
def test_small_pages_become_large_ones() -> None:
    done = run_code(_JOIN)
    assert done.code == 0, done.err
    first, again, shown = map(int, done.out.split())
    size = int((_LARGE_PAGES.parent / "hpage_pmd_size").read_text(encoding="ascii"))
    # The array's 100 MiB, less what reaches into its first and last page; a page may fail.
    assert again * size > 90 << 20
    assert shown >= first * size * 9 // 10 > 80 << 20


@pytest.mark.parametrize("enabled", ["[always] madvise never", "always madvise [never]", None])
def test_pages_stay_as_the_system_has_them_unless_it_asks(
    enabled: str | None, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def libc(_: None) -> None:
        raise AssertionError

    monkeypatch.setattr("ctypes.CDLL", libc)
    (root / "proc/self/maps").write_text("200000-a00000 rw-p 00000000 00:00 0          [heap]\n")
    settings = root / "sys/kernel/mm/transparent_hugepage"
    settings.mkdir(parents=True)
    (settings / "hpage_pmd_size").write_text("2097152\n")
    if enabled is not None:
        (settings / "enabled").write_text(f"{enabled}\n")
    assert join_pages(root) == 0


def test_only_whole_large_pages_of_the_heap_are_joined(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []

    def madvise(start: int, length: int, advice: int) -> int:
        asked.append((start, length, advice))
        return -1 if start == 0x600000 and advice == 25 else 0

    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(madvise=madvise))
    maps = "200000-a00000 rw-p 00000000 00:00 0\n3ff000-9ff000 rw-p 00000000 00:00 0      [heap]\n"
    (root / "proc/self/maps").write_text(maps)
    settings = root / "sys/kernel/mm/transparent_hugepage"
    settings.mkdir(parents=True)
    (settings / "enabled").write_text("always [madvise] never\n")
    (settings / "hpage_pmd_size").write_text("2097152\n")
    assert join_pages(root) == 1
    assert asked == [
        (0x400000, 0x400000, 14), (0x400000, 0x200000, 25), (0x600000, 0x200000, 25),
    ]  # fmt: skip
