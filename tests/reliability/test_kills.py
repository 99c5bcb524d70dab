"""R1 and R2: what is saved stays saved, whenever the process or the machine stops."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from charrnn.storage.checkpoint import Checkpoint, load
from charrnn.storage.runfolder import RunFolder
from tests.conftest import log_of
from tests.reliability.conftest import Promise
from tests.reliability.processes import finish, fork, kill

ELEMENTS = 150_000  # 600 kB: saving takes long enough that most kills interrupt it


def state(step: int, elements: int = ELEMENTS) -> Checkpoint:
    """Return a checkpoint whose every tensor shows its step."""
    tensors = {
        "model.weight": torch.full((elements,), float(step)),
        "generator.cpu": torch.full((97,), step % 251, dtype=torch.uint8),
    }
    return Checkpoint(tensors, {"step": step, "twice": 2 * step})


def is_state(checkpoint: Checkpoint, step: int) -> bool:
    """Return whether every part of a checkpoint is from this step."""
    return (
        checkpoint.meta == {"step": step, "twice": 2 * step}
        and bool((checkpoint.tensors["model.weight"] == step).all())
        and bool((checkpoint.tensors["generator.cpu"] == step % 251).all())
    )


def save_for_ever(path: Path, report: int) -> None:
    """Resume the run in ``path`` and save step after step, reporting each finished save."""
    with RunFolder.open_existing(path) as folder:
        folder.keep = 2
        checkpoint, _ = folder.load_last()
        step = checkpoint.require("step", int)
        folder.rewind_log(step)
        while True:
            step += 1
            folder.log({"step": step})
            folder.save_last(state(step))
            os.write(report, step.to_bytes(8, "little"))


def killed_savers(path: Path, kills: int) -> tuple[int, int]:
    """Kill ``kills`` savers in one run's folder; return (finished saves lost, saves cut short)."""
    rng = random.Random(1)
    with RunFolder.create(path) as folder:
        folder.keep = 2
        folder.save_last(state(0))
    lost = cut = 0
    for _ in range(kills):
        before = load(path / "last.safetensors").require("step", int)
        reader, writer = os.pipe()
        pid = fork(lambda writer=writer: save_for_ever(path, writer))  # type: ignore[misc]
        os.close(writer)
        finished = int.from_bytes(os.read(reader, 8), "little")  # the first save is done
        time.sleep(rng.uniform(0, 0.02))
        kill(pid)
        while report := os.read(reader, 8):
            finished = int.from_bytes(report, "little")
        os.close(reader)
        cut += any(path.glob(".*.tmp"))

        with RunFolder.open_existing(path) as folder:  # the lock is free again
            folder.keep = 2
            checkpoint, notes = folder.load_last()
            step = checkpoint.require("step", int)
            folder.rewind_log(step)
        # The save under way may have finished without being reported.
        whole = step in (finished, finished + 1) and is_state(checkpoint, step) and not notes
        rows = [row["step"] for row in log_of(path)]
        names = {file.name for file in path.iterdir() if not file.name.startswith("step-")}
        tidy = names == {"last.safetensors", "lock", "metrics.jsonl"}
        lost += not (whole and tidy and step > before and rows == list(range(1, step + 1)))
    return lost, cut


def test_some_killed_savers_lose_nothing(tmp_path: Path) -> None:
    lost, _ = killed_savers(tmp_path / "run", kills=10)
    assert lost == 0


@pytest.mark.slow
def test_killed_savers_lose_nothing(tmp_path: Path, promise: Promise) -> None:
    lost, cut = killed_savers(tmp_path / "run", kills=200)
    promise("R1", f"savers killed at random moments ({cut} amid a save)", f"{lost} of 200 lost")
    assert lost == 0
    assert cut > 20, "too few kills hit a save to show anything"


CALLS = ("open", "write", "fsync", "close", "link", "replace", "unlink", "ftruncate")


def watched(patch: pytest.MonkeyPatch, watch: Callable[[str, tuple[Any, ...]], None]) -> None:
    """Call ``watch`` before each system call that a save makes."""
    for name in CALLS:
        real = getattr(os, name)

        def call(*args: Any, _name: str = name, _real: Any = real, **named: Any) -> Any:
            watch(_name, args)
            return _real(*args, **named)

        patch.setattr(os, name, call)


def test_kill_before_each_system_call_of_a_save(tmp_path: Path, promise: Promise) -> None:
    def saver(path: Path, fatal: int) -> None:
        with RunFolder.open_existing(path) as folder, pytest.MonkeyPatch.context() as patch:
            folder.load_last()
            calls = 0

            def watch(name: str, args: tuple[Any, ...]) -> None:
                nonlocal calls
                if calls == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls += 1

            watched(patch, watch)
            folder.save_last(state(3, elements=5))

    whole = moments = 0  # the last round has no further call, so it is not killed
    ended = -signal.SIGKILL
    while ended == -signal.SIGKILL:
        path = tmp_path / str(moments)
        with RunFolder.create(path) as folder:
            folder.save_last(state(1, elements=5))
            folder.save_last(state(2, elements=5))
        ended = finish(fork(lambda: saver(path, moments)))  # noqa: B023 - ends within the iteration
        with RunFolder.open_existing(path) as folder:
            checkpoint, notes = folder.load_last()
            step = checkpoint.require("step", int)
            whole += step in (2, 3) and is_state(checkpoint, step) and not notes
            assert not list(path.glob(".*"))
            folder.save_last(state(step + 1, elements=5))
            assert is_state(load(path / f"step-{step:08d}.safetensors"), step)
        moments += 1
    assert ended == 0
    assert step == 3
    figure = f"{moments - whole} of {moments - 1} lost"
    promise("R1", "savers killed before each system call of a save", figure)
    assert whole == moments > len(CALLS)


def test_a_save_reaches_the_disk_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promise: Promise
) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for step in (1, 2):
        folder.save_last(state(step, elements=5))
    done: list[str] = []

    def name(target: Any) -> str:
        if isinstance(target, int):
            target = Path(f"/proc/self/fd/{target}").readlink()
        return "temporary" if str(target).endswith(".tmp") else Path(target).name

    def watch(call: str, args: tuple[Any, ...]) -> None:
        if call in ("write", "fsync", "link", "replace", "unlink"):
            what = f"{call} {name(args[0])}"
            if not done or done[-1] != what:
                done.append(what)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name open files")
    watched(monkeypatch, watch)
    folder.log({"step": 3})
    folder.save_last(state(3, elements=5))
    monkeypatch.undo()
    folder.close()
    unlinked = [what for what in done if what != "unlink step-00000002.safetensors"]
    order = [
        "write metrics.jsonl",
        "fsync metrics.jsonl",
        "write temporary",
        "link last.safetensors",
        "fsync temporary",
        "replace temporary",
        "fsync run",
        "unlink step-00000001.safetensors",
    ]
    kept = unlinked == order
    promise("R2", "write, fsync file, replace, fsync folder, then prune", "kept" if kept else "no")
    assert unlinked == order
