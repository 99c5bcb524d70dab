"""R17 and R18: what pruning leaves, who may read a file, equal files for equal states."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import charrnn.runs.training
from charrnn.errors import CheckpointError
from charrnn.storage.checkpoint import Checkpoint, load, save
from charrnn.storage.runfolder import RunFolder
from tests.conftest import run_cli
from tests.reliability.conftest import Promise
from tests.reliability.processes import finish, fork
from tests.reliability.runs import stopped, straight, whole_state
from tests.small import make_state

HOWS = ("one bit", "cut", "emptied", "zeroed", "removed")


def damage(path: Path, how: str) -> None:
    """Damage a checkpoint without touching other hard links to the same file."""
    content = bytearray(path.read_bytes())
    path.unlink()
    match how:
        case "one bit":
            content[-5] ^= 4
        case "cut":
            del content[len(content) // 2 :]
        case "emptied":
            content.clear()
        case "zeroed":
            content[:] = bytes(len(content))
        case "removed":
            return
    path.write_bytes(content)


def resumes_from_the_one_before(run: Path, how: str, keep: int) -> bool:
    """Damage the newest; return whether the one before is loaded, named, and kept by a save."""
    with RunFolder.create(run) as folder:
        folder.keep = keep
        for step in (10, 20, 30, 40, 50):
            folder.save_last(make_state(step))
    damage(run / "last.safetensors", how)
    with RunFolder.open_existing(run) as folder:
        folder.keep = keep
        checkpoint, notes = folder.load_last()
        taken = "took step-00000040.safetensors instead, step 40"
        said = notes[0].startswith("last.safetensors: ") and notes[0].endswith(taken)
        folder.save_last(make_state(45))
    steps = [load(path).meta["step"] for path in sorted(run.glob("*.safetensors"))]
    return checkpoint.meta["step"] == 40 and said and steps == [45, *(20, 30, 40)[-keep:]]


def test_the_one_before_is_taken_and_kept(tmp_path: Path, promise: Promise) -> None:
    tried = list(itertools.product(HOWS, (1, 2, 3)))
    count = 0
    for how, keep in tried:
        count += resumes_from_the_one_before(tmp_path / f"{how} {keep}", how, keep)
    what = "ways to damage the newest, --keep 1 to 3: the one before taken, named, kept"
    promise("R17", what, f"{count} of {len(tried)}")
    assert count == len(tried)


@pytest.mark.usefixtures("short_samples")
def test_a_training_goes_on_from_the_one_before(
    tmp_path: Path, tale: Path, monkeypatch: pytest.MonkeyPatch, promise: Promise
) -> None:
    """The command names the checkpoint it takes, and ends as if nothing had been damaged."""
    # Save after every validation.
    monkeypatch.setattr(charrnn.runs.training, "SAVE_SHARE", math.inf)
    expected = whole_state(straight(tmp_path / "straight", tale))
    run = tmp_path / "run"
    assert stopped(run, tale, lambda run: run.progress.step == 25) == 25
    damage(run / "last.safetensors", "one bit")
    result = run_cli("train", "--run", run, "--resume")
    same = whole_state(run) == expected
    figure = "equal" if same else "differs"
    promise("R17", "train --resume after the newest was damaged, against a straight run", figure)
    assert result.code == 0, result.err
    assert "note: last.safetensors: damaged: " in result.err
    assert "took step-00000024.safetensors instead, step 24\n" in result.err
    assert same


def test_damaged_generations_do_not_push_out_whole_ones(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunFolder.create(run) as folder:
        folder.keep = 2
        for step in (10, 20, 30, 40):
            folder.save_last(make_state(step))
    damage(run / "last.safetensors", "cut")
    damage(run / "step-00000030.safetensors", "one bit")
    with RunFolder.open_existing(run) as folder:
        folder.keep = 1
        checkpoint, notes = folder.load_last()
        assert checkpoint.meta["step"] == 20
        assert [note.split(":")[0] for note in notes] == [
            "last.safetensors",
            "step-00000030.safetensors",
        ]
        folder.save_last(make_state(25))
    assert load(run / "last.safetensors").meta["step"] == 25
    assert [file.name for file in run.glob("step-*")] == ["step-00000020.safetensors"]


def walk(run: Path, turns: int) -> int:
    """Save, damage some files and resume at random; return how often a state was lost."""
    rng = random.Random(5)
    step = lost = 0
    with RunFolder.create(run) as folder:
        folder.keep = 2
        folder.save_last(make_state(0))
    for _ in range(turns):
        with RunFolder.open_existing(run) as folder:
            folder.keep = rng.choice([1, 2, 3])
            checkpoint, _ = folder.load_last()
            lost += checkpoint.meta["step"] < step
            step = checkpoint.meta["step"]
            for _ in range(rng.randrange(4)):
                step += rng.choice([1, 7, 10**9])
                folder.save_last(make_state(step))
        files = [
            run / "last.safetensors",
            *sorted(run.glob("step-*"), key=generation, reverse=True),
        ]
        whole = [file for file in files if is_whole(file)]
        spared = rng.randrange(len(whole))
        for file in whole[:spared]:
            damage(file, rng.choice(HOWS))
        step = load(whole[spared]).meta["step"]
    return lost


def generation(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def is_whole(path: Path) -> bool:
    try:
        load(path)
    except CheckpointError:
        return False
    return True


def test_a_random_walk_of_damage(tmp_path: Path, promise: Promise) -> None:
    lost = walk(tmp_path / "run", turns=100)
    promise(
        "R17", "times damaged and resumed at random", f"{lost} of 100 lost the newest whole one"
    )
    assert lost == 0


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_is_obeyed(tmp_path: Path, umask: int, mode: int, promise: Promise) -> None:
    run = tmp_path / "run"

    def work() -> None:
        os.umask(umask)
        with RunFolder.create(run) as folder:
            for step in (1, 2):
                folder.log({"step": step})
                folder.save_last(make_state(step))
            folder.save_best(make_state(2))
            folder.rewind_log(1)

    assert finish(fork(work)) == 0
    modes = {file.name: file.stat().st_mode & 0o777 for file in run.iterdir()}
    obeyed = sum(found == mode for found in modes.values())
    promise("R18", f"files of mode {mode:03o} under umask {umask:03o}", f"{obeyed} of {len(modes)}")
    assert set(modes.values()) == {mode}
    assert run.stat().st_mode & 0o777 == 0o777 & ~umask


PROGRAM = textwrap.dedent(
    """
    import sys
    from pathlib import Path

    import torch
    from charrnn.storage.checkpoint import Checkpoint, save

    torch.manual_seed(1)
    tensors = {f"model.{name}": torch.randn(17, 5) for name in "abcdefgh"}
    meta = {"vocabulary": "abc\\u4e2d", "valid": 0.1 + 0.2, "model": {"layers": 2, "cell": "gru"}}
    if int(sys.argv[2]) % 2:
        tensors = dict(reversed(tensors.items()))
        meta = dict(reversed(meta.items()))
    save(Path(sys.argv[1]), Checkpoint(tensors, meta))
    """
)


@pytest.mark.slow
def test_four_processes_write_the_same_bytes(tmp_path: Path, promise: Promise) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / f"{k}.safetensors"), str(k)],
            env={**os.environ, "PYTHONHASHSEED": str(k)},
        )
        for k in range(4)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    promise("R18", "hashes from four processes with one state", str(len(hashes)))
    assert len(hashes) == 1


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    tensors = {"model.b": torch.ones(3), "model.a": torch.zeros(5), "hidden.c": torch.ones(2)}
    meta = {"b": {"y": 1, "x": 0.1}, "a": [1, None, True]}
    save(tmp_path / "1", Checkpoint(tensors, meta))
    save(tmp_path / "2", Checkpoint(dict(reversed(tensors.items())), dict(reversed(meta.items()))))
    save(tmp_path / "3", load(tmp_path / "1"))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()
