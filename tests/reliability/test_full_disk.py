"""R8: a full disk costs nothing already saved."""

from __future__ import annotations

import math
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest

import charrnn.runs.training
import charrnn.storage.checkpoint
import charrnn.storage.runfolder
from charrnn.errors import RunFolderError
from charrnn.storage.checkpoint import Checkpoint, load
from charrnn.storage.runfolder import RunFolder
from tests.conftest import log_of, names, run_cli
from tests.reliability.conftest import Promise
from tests.reliability.processes import finish, fork
from tests.reliability.runs import whole_state
from tests.reliability.test_damage import is_one_plain_line
from tests.small import make_state

ELEMENTS = 15_000  # 60 kB


state = partial(make_state, elements=ELEMENTS)


def new_run(path: Path) -> None:
    with RunFolder.create(path) as folder:
        for step in (1, 2):
            folder.log({"step": step})
            folder.save_last(state(step))
        folder.save_best(state(2))


def fail_to_save(folder: RunFolder, step: int) -> bool:
    """Return whether saving ``last`` and ``best`` both fail with one plain line."""
    saves: list[Callable[[], object]] = [
        lambda: folder.save_last(state(step)),
        lambda: folder.save_best(state(step)),
    ]
    plain = 0
    for save in saves:
        with pytest.raises(RunFolderError) as caught:
            save()
        message = str(caught.value)
        plain += is_one_plain_line(message) and message.endswith("; free some space")
    return plain == len(saves)


def unharmed(path: Path) -> bool:
    """Return whether the run is as ``new_run`` left it."""
    with RunFolder.open_existing(path) as folder:
        checkpoint, notes = folder.load_last()
        weight = checkpoint.tensors["model.weight"]
        rows = log_of(path)
        files = {*names(path)}
    steps = {"best.safetensors", "last.safetensors", "step-00000001.safetensors"}
    return (
        checkpoint.meta["step"] == 2
        and bool((weight == 2).all())
        and not notes
        and rows == [{"step": 1}, {"step": 2}]
        and files == steps | {"lock", "metrics.jsonl"}
    )


def limited(path: Path, limit: int) -> bool:
    """Save under a file-size limit in a child process; return whether nothing was harmed."""

    def work() -> None:
        with RunFolder.open_existing(path) as folder:
            folder.load_last()
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            assert fail_to_save(folder, 3)

    return finish(fork(work)) == 0 and unharmed(path)


def limits(run: Path, count: int) -> list[int]:
    """Return sizes from 0 to one byte less than a checkpoint's."""
    most = (run / "best.safetensors").stat().st_size - 1
    return [most * k // (count - 1) for k in range(count)]


def test_some_file_size_limits(tmp_path: Path) -> None:
    run = tmp_path / "run"
    new_run(run)
    assert all(limited(run, limit) for limit in limits(run, 5))


@pytest.mark.slow
def test_file_size_limits(tmp_path: Path, promise: Promise) -> None:
    run = tmp_path / "run"
    new_run(run)
    count = sum(limited(run, limit) for limit in limits(run, 50))
    promise(
        "R8", "file-size limits: old checkpoint loads, one line, no temporary", f"{count} of 50"
    )
    assert count == 50


def test_a_log_row_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    new_run(tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    before = log.read_bytes()
    row = {"step": 3, "train_nats_per_char": 1.25}

    def work() -> None:
        with RunFolder.open_existing(tmp_path / "run") as folder:
            for more in (0, 1, 20):
                limit = len(before) + more
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                with pytest.raises(RunFolderError, match=r"cannot write: .*; free some space"):
                    folder.log(row)
                assert log.read_bytes() == before

    assert finish(fork(work)) == 0
    assert log.read_bytes() == before


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB, if the machine lets us mount one."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    disk = tmp_path / "disk"
    disk.mkdir()
    if mount is None or umount is None or os.geteuid() != 0:
        pytest.skip("needs root to mount a file system")
    command = [mount, "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield disk
    finally:
        subprocess.run([umount, str(disk)], check=True)


def fill(filler: Path, left: int) -> None:
    """Fill a file system except for ``left`` bytes."""
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            file.truncate(file.tell() - left)


def test_a_full_file_system(tiny_disk: Path, promise: Promise) -> None:
    run = tiny_disk / "run"
    new_run(run)
    filler = tiny_disk / "filler"
    sizes = range(0, ELEMENTS * 4 - 4096, 4096)
    count = 0
    for left in sizes:
        with RunFolder.open_existing(run) as folder:
            folder.load_last()
            fill(filler, left)
            plain = fail_to_save(folder, 3)
        filler.unlink()
        count += plain and unharmed(run)
    promise("R8", "sizes left on a full file system", f"{count} of {len(sizes)}")
    assert count == len(sizes)

    # Once there is space again, the same run goes on.
    with RunFolder.open_existing(run) as folder:
        folder.load_last()
        folder.save_last(state(3))
        assert folder.load_last()[0].meta["step"] == 3


def test_a_training_on_a_disk_that_fills_up(
    tiny_disk: Path, tale: Path, promise: Promise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills while the command writes ``best``, or while it writes ``last``."""
    # Save after every validation.
    monkeypatch.setattr(charrnn.runs.training, "SAVE_SHARE", math.inf)
    words = ["--steps", 30, "--hidden", 8, "--batch-size", 3, "--bptt", 7, "--validate-every", 6]

    def train(name: str, *more: object) -> tuple[int, str]:
        done = run_cli("train", *more, "--run", tiny_disk / name, "--quiet").without_notes
        return done.code, done.err

    assert train("straight", tale, *words) == (0, "")
    expected = whole_state(tiny_disk / "straight")
    shutil.rmtree(tiny_disk / "straight")
    filler, write = tiny_disk / "filler", charrnn.storage.checkpoint.write
    fatal = {"best.safetensors": 4, "last.safetensors": 5}  # writes after the second validation
    kept = 0
    for name, number in fatal.items():
        calls = 0

        def writing(file: BinaryIO, checkpoint: Checkpoint) -> None:
            nonlocal calls
            calls += 1
            if calls == number:  # noqa: B023 - called within the iteration
                fill(filler, 4096)
            write(file, checkpoint)

        with monkeypatch.context() as patch:
            for module in (charrnn.storage.checkpoint, charrnn.storage.runfolder):
                patch.setattr(module, "write", writing)
            code, said = train("run", tale, *words)
        run = tiny_disk / "run"
        step = load(run / "last.safetensors").require("step", int)
        said = said.removesuffix("\n").replace(str(run), "run")
        plain = is_one_plain_line(said) and f"run/{name}: cannot save: " in said
        plain = plain and "; free some space; step 6 is saved whole: go on from it with: " in said
        filler.unlink()
        went_on, _ = train("run", "--resume")
        kept += code == 1 and plain and step == 6 and went_on == 0 and whole_state(run) == expected
        shutil.rmtree(run)
    what = "charrnn train: one line, exit 1, gone on with, equal to a straight run"
    promise("R8", what, f"{kept} of {len(fatal)}")
    assert kept == len(fatal)
