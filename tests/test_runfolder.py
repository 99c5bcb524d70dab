"""A run's folder: taking it, what it holds, and what is left in it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import resource
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from charrnn.errors import CheckpointError, RunFolderError
from charrnn.storage import lock, runfolder
from charrnn.storage.checkpoint import find, load, save
from charrnn.storage.lock import alive
from charrnn.storage.metrics import read_log
from charrnn.storage.runfolder import RunFolder, files_of_run, has_state
from tests.conftest import names, open_files, refusing, said
from tests.reliability.processes import finish, fork
from tests.small import make_state

# Taking the folder ---------------------------------------------------------------


def test_a_run_that_saved_nothing_leaves_nothing(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "a" / "b" / "run") as folder:
        folder.log({"step": 1})
        assert names(folder.path) == ["lock", "metrics.jsonl"]
    assert names(tmp_path) == []


def test_nor_where_a_removed_file_stays_until_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS keeps it under another name until then."""
    run = tmp_path / "a" / "run"
    left, unlink, close = run / ".nfs1", Path.unlink, os.close

    def unlink_(path: Path, missing_ok: bool = False) -> None:
        path.rename(left) if path.name == "lock" else unlink(path, missing_ok)

    def close_(fd: int) -> None:
        is_last = left.exists() and os.path.samestat(os.fstat(fd), left.stat())
        close(fd)
        if is_last:
            unlink(left)

    folder = RunFolder.create(run)
    monkeypatch.setattr(Path, "unlink", unlink_)
    monkeypatch.setattr(os, "close", close_)
    folder.close()
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_the_names_of_folders_that_it_makes_are_brought_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(runfolder, "sync_folder", synced.append)
    with RunFolder.create(tmp_path / "a" / "run"):
        assert synced == [tmp_path, tmp_path / "a"]


def test_a_run_that_saved_nothing_leaves_what_others_put_there(tmp_path: Path) -> None:
    run = tmp_path / "a" / "run"
    with RunFolder.create(run):
        (run / "notes.txt").write_text("mine")
    assert names(run) == ["notes.txt"]
    with RunFolder.create(run):
        pass
    assert names(run) == ["notes.txt"]


@pytest.mark.parametrize("what", ["last", "best"])
def test_a_run_that_saved_something_stays(tmp_path: Path, what: str) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        path = (
            folder.save_last(make_state(1)) if what == "last" else folder.save_best(make_state(1))
        )
        assert path == tmp_path / "run" / f"{what}.safetensors"
    assert names(tmp_path / "run") == [f"{what}.safetensors", "lock", "metrics.jsonl"]
    assert (tmp_path / "run" / "lock").read_text() == ""


def test_a_run_is_not_started_over_another(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunFolder.create(run) as folder:
        folder.log({"step": 7})
        folder.save_last(make_state(7))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert said(lambda: RunFolder.create(run)) == (
        f"{run}: holds a run already at step 7: continue it (a finished one with a larger "
        f"--minutes, --epochs or --steps) with: charrnn train --run {run} --resume; or choose "
        "another folder with --run"
    )
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("name", ["last", "step-00000012"])
def test_nor_over_a_copy_of_one(tmp_path: Path, name: str) -> None:
    save(tmp_path / f"{name}.safetensors", make_state(12))
    assert said(lambda: RunFolder.create(tmp_path)).startswith(
        f"{tmp_path}: holds a run already at step 12: continue it"
    )
    assert names(tmp_path) == [f"{name}.safetensors"]


@pytest.mark.parametrize(
    ("ruined", "whole"),
    [
        (["best"], []),
        (["last"], []),
        (["last", "step-00000012", "best"], []),
        ([], ["best"]),
        (["last"], ["best"]),
    ],
)
def test_nor_over_what_no_run_can_go_on_from(
    tmp_path: Path, ruined: list[str], whole: list[str]
) -> None:
    """The first advice is one that works: to go on with such a run would be refused, too."""
    for name in ruined:
        file = tmp_path / f"{name}.safetensors"
        save(file, make_state(12))
        data = bytearray(file.read_bytes())
        data[-1] ^= 1  # in a tensor: the header is whole
        file.write_bytes(data)
    advice = (
        "there is no whole checkpoint to go on from: remove its *.safetensors and metrics.jsonl"
    )
    for name in whole:
        save(tmp_path / f"{name}.safetensors", make_state(1))
        advice = (
            "best.safetensors has weights for --init-from, but there is no whole state to go on "
            "from: keep it elsewhere, remove all *.safetensors and metrics.jsonl here"
        )
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    before = names(tmp_path)
    assert said(lambda: RunFolder.create(tmp_path)) == (
        f"{tmp_path}: holds a run already: {advice}, or choose another folder with --run"
    )
    assert names(tmp_path) == before
    for file in (*tmp_path.glob("*.safetensors"), tmp_path / "metrics.jsonl"):
        file.unlink()
    RunFolder.create(tmp_path).close()


@pytest.mark.parametrize("is_locked", [False, True])
def test_nor_over_a_log_without_a_checkpoint(tmp_path: Path, is_locked: bool) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n')
    if is_locked:
        (tmp_path / "lock").touch()
    before = names(tmp_path)
    assert said(lambda: RunFolder.create(tmp_path)) == (
        f"{tmp_path}: holds a metrics.jsonl without a checkpoint: remove it, or choose another "
        "folder with --run"
    )
    assert said(lambda: RunFolder.open_existing(tmp_path)) == (
        f"{tmp_path}: holds no run to resume: it has metrics.jsonl without a checkpoint: remove "
        "that, and leave --resume out to start one there"
    )
    assert names(tmp_path) == before


@pytest.mark.parametrize("first", [RunFolder.create, RunFolder.open_existing])
def test_a_refused_attempt_does_not_make_the_next_one_succeed(
    tmp_path: Path, first: Callable[[Path], RunFolder]
) -> None:
    """A run's checkpoints were removed, and only its log is left."""
    (tmp_path / "lock").touch()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    for take in (first, RunFolder.create, RunFolder.create):
        said(lambda take=take: take(tmp_path))  # type: ignore[misc]
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
        assert (tmp_path / "lock").read_bytes() == b""


@pytest.mark.parametrize("take", [RunFolder.create, RunFolder.open_existing])
def test_a_lock_of_somebody_else_is_not_touched(
    tmp_path: Path, take: Callable[[Path], RunFolder]
) -> None:
    (tmp_path / "lock").write_text("precious")
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n')
    assert said(lambda: take(tmp_path)) == (
        f"{tmp_path}: has a file named lock that is not charrnn's: choose another folder with --run"
    )
    assert (tmp_path / "lock").read_text() == "precious"
    assert (tmp_path / "metrics.jsonl").read_text() == '{"loss": 1}\n'


@pytest.mark.parametrize("left", [b"\0" * 99, b'{"pid": 4711, "ho'])
def test_a_signature_that_a_crash_spoilt_is_still_ours(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "lock").write_bytes(left)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with RunFolder.create(tmp_path) as folder:
        assert (tmp_path / "metrics.jsonl").read_bytes() == b""
        folder.save_last(make_state(1))


def test_a_folder_that_is_gone_hides_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunFolder.create(tmp_path / "run") as folder:
        shutil.rmtree(folder.path)
        raise ZeroDivisionError
    with RunFolder.create(tmp_path / "run"):
        pass  # nobody holds it


def test_a_folder_that_another_run_has_taken_is_let_alone(tmp_path: Path) -> None:
    """The lock of a removed folder does not guard a new folder of the same name."""
    for saves in (True, False):
        run = tmp_path / str(saves)
        with RunFolder.create(run) as folder:
            shutil.rmtree(run)
            with RunFolder.create(run) as other:
                assert said(lambda: folder.save_last(make_state(1))).startswith(f"{run}: in use by")
                if saves:
                    other.save_last(make_state(2))
            if saves:
                there = {path.name: path.read_bytes() for path in run.iterdir()}
                lost = (
                    f"{run}: was removed, or its lock was, while this run was going on, and another"
                )
                for save_it in (
                    lambda: folder.save_last(make_state(1)),
                    lambda: folder.save_best(make_state(1)),
                    lambda: folder.save_result({}),
                ):
                    assert said(save_it).startswith(lost)
                assert {path.name: path.read_bytes() for path in run.iterdir()} == there
            else:
                kept = RunFolder.create(run)
        if not saves:
            assert names(run) == ["lock", "metrics.jsonl"], "they are the other run's"
            kept.close()
        else:
            assert {path.name: path.read_bytes() for path in run.iterdir()} == there


def test_a_lock_that_was_removed_is_taken_again(tmp_path: Path) -> None:
    """Somebody may have tidied up old files; no other run has taken the folder."""
    with RunFolder.create(tmp_path / "run", command="mine") as folder:
        (folder.path / "lock").unlink()
        folder.save_last(make_state(1))
        assert "mine" in said(lambda: RunFolder.open_existing(folder.path))
        folder.save_last(make_state(2))
    with RunFolder.open_existing(folder.path) as folder:
        assert folder.load_last()[0].meta["step"] == 2


def test_a_log_that_was_removed_with_it_is_begun_again(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        folder.log({"step": 1})
        for name in ("lock", "metrics.jsonl"):
            (folder.path / name).unlink()
        folder.save_last(make_state(1))
        folder.log({"step": 2})
    assert read_log(folder.path) == ({"step": 2},)


@pytest.mark.parametrize("name", ["lock", "last.safetensors"])
def test_a_folder_that_may_no_longer_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        last, stat = folder.save_last(make_state(1)), Path.stat

        def stat_(path: Path, **options: Any) -> os.stat_result:
            return refusing(errno.EACCES)() if path.name == name else stat(path, **options)

        monkeypatch.setattr(Path, "stat", stat_)
        line = said(lambda: folder.save_last(make_state(2)))
        monkeypatch.undo()
    where = last if name == last.name else folder.path
    assert line == f"{where}: cannot save: Permission denied"
    assert load(last).meta["step"] == 1


def test_a_last_that_is_a_link_to_an_earlier_one_is_kept(tmp_path: Path) -> None:
    """Somebody went back with ``ln -sf``: the checkpoint behind the link must not be lost."""
    with RunFolder.create(tmp_path / "run") as folder:
        folder.keep = 3
        for step in (1, 2, 3):
            folder.save_last(make_state(step))
    last = folder.path / "last.safetensors"
    last.unlink()
    last.symlink_to("step-00000001.safetensors")
    with RunFolder.open_existing(folder.path) as folder:
        folder.keep = 3
        assert folder.load_last()[0].meta["step"] == 1
        folder.save_last(make_state(9))
    assert load(folder.path / "step-00000001.safetensors").meta["step"] == 1
    assert load(last).meta["step"] == 9
    assert not last.is_symlink()


def test_a_run_killed_before_its_first_save_may_start_again(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def die() -> None:
        RunFolder.create(run).log({"step": 1})
        os._exit(9)

    assert finish(fork(die)) == 9
    assert said(lambda: RunFolder.open_existing(run)) == (
        f"{run}: holds no run to resume: leave --resume out to start one there"
    )
    with RunFolder.create(run) as folder:
        assert (run / "metrics.jsonl").read_bytes() == b""
        folder.save_last(make_state(1))


@pytest.mark.parametrize("path", ["missing", "file/run", "empty"])
def test_there_is_nothing_to_resume(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert said(lambda: RunFolder.open_existing(tmp_path / path)) == (
        f"{tmp_path / path}: holds no run to resume: leave --resume out to start one there"
    )
    assert names(tmp_path) == ["empty", "file"]
    assert names(tmp_path / "empty") == []


def test_nor_in_a_folder_that_is_removed_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with RunFolder.create(run) as folder:
        folder.save_last(make_state(1))

    def too_late(path: Path, command: str) -> lock.Lock:
        shutil.rmtree(path)
        return lock.take_lock(path, command)

    monkeypatch.setattr(runfolder, "take_lock", too_late)
    assert said(lambda: RunFolder.open_existing(run)).startswith(f"{run}: holds no run to resume")


def test_checkpoints_that_were_copied_without_their_lock_are_gone_on_with(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        last = folder.save_last(make_state(1))
    (tmp_path / "copy").mkdir()
    shutil.copy(last, tmp_path / "copy")
    with RunFolder.open_existing(tmp_path / "copy") as folder:
        assert folder.load_last()[0].meta["step"] == 1
        assert "in use by process" in said(lambda: RunFolder.open_existing(tmp_path / "copy"))


def test_a_checkpoint_is_no_folder_to_resume(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        last = folder.save_last(make_state(1))
    assert said(lambda: RunFolder.open_existing(last)) == (
        f"{last}: holds no run to resume: it is a file; name the folder of a run, such as "
        f"{tmp_path / 'run'}"
    )
    (tmp_path / "text").touch()
    assert said(lambda: RunFolder.open_existing(tmp_path / "text")) == (
        f"{tmp_path / 'text'}: holds no run to resume: it is a file; name the folder of a run"
    )


@pytest.mark.parametrize("path", ["file", "file/run"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    assert said(lambda: RunFolder.create(tmp_path / path)) == (
        f"{tmp_path / path}: cannot make the run's folder: {tmp_path / 'file'} is a file"
    )


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
def test_a_folder_that_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runfolder, "PATIENCE", 0.05)
    line = said(lambda: RunFolder.create(Path("/proc/run")))
    assert line.startswith("/proc/run: cannot make the run's folder: ")


def test_a_lock_whose_file_is_never_the_one_at_its_path_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system that numbers its files anew."""
    monkeypatch.setattr(lock, "_is_at", lambda fd, path: False)
    monkeypatch.setattr(lock, "PATIENCE", 0.05)
    line = said(lambda: RunFolder.create(tmp_path / "run"))
    assert line.startswith(f"{tmp_path / 'run'}: its file system does not tell one file from ")


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", refusing(errno.EACCES))
    assert said(lambda: RunFolder.create(tmp_path)) == (
        f"{tmp_path}: cannot write to the run's folder: Permission denied"
    )


def without_room(work: Callable[[], object]) -> str:
    """Return the error message of an action that cannot write a byte to any file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        return said(work)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_room_for_a_signature_leaves_nothing(tmp_path: Path) -> None:
    run = tmp_path / "a" / "run"
    assert without_room(lambda: RunFolder.create(run)) == (
        f"{run}: cannot write to the run's folder: File too large; free some space"
    )
    assert names(tmp_path) == []


def test_nor_takes_away_the_one_that_is_there(tmp_path: Path) -> None:
    """It shows that the log is from a run killed before its first save."""
    signature = b'{"pid": 4711, "host": "elsewhere", "since": "", "command": ""}\n'
    (tmp_path / "lock").write_bytes(signature)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert "File too large" in without_room(lambda: RunFolder.create(tmp_path))
    assert (tmp_path / "lock").read_bytes() == signature
    with RunFolder.create(tmp_path):
        pass


def test_a_folder_of_which_only_the_parents_can_be_made(tmp_path: Path) -> None:
    run = tmp_path / "a" / "b" / ("x" * 300)
    assert said(lambda: RunFolder.create(run)).endswith(
        ": cannot make the run's folder: File name too long"
    )
    assert names(tmp_path) == []


def test_a_place_that_may_not_be_entered(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    def ask() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)
        else:
            tmp_path.chmod(0)
        for take in (RunFolder.create, RunFolder.open_existing):
            assert said(lambda take=take: take(tmp_path / "run")).endswith(": Permission denied")  # type: ignore[misc]
        assert said(lambda: has_state(tmp_path / "run")).endswith(": Permission denied")
        with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
            find(tmp_path / "run")
        with pytest.raises(CheckpointError, match="cannot read the checkpoint: Permission denied"):
            load(tmp_path / "best.safetensors")

    try:
        assert finish(fork(ask)) == 0
    finally:
        tmp_path.chmod(0o700)


def test_a_checkpoint_that_leads_to_itself(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").symlink_to(tmp_path / "best.safetensors")
    for take in (RunFolder.create, RunFolder.open_existing):
        line = said(lambda take=take: take(tmp_path))  # type: ignore[misc]
        assert line.startswith(f"{tmp_path}: cannot read the run's folder: Too many levels")


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "victim")
    assert "cannot write to the run's folder: " in said(lambda: RunFolder.create(tmp_path / "run"))
    (tmp_path / "victim").write_text("precious")
    assert "cannot write to the run's folder: " in said(lambda: RunFolder.create(tmp_path / "run"))
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_log_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    """A folder from elsewhere may have one: the last line of what it leads to would be cut off."""
    with RunFolder.create(tmp_path / "run") as folder:
        folder.save_last(make_state(1))
    log, victim = tmp_path / "run" / "metrics.jsonl", tmp_path / "victim"
    log.unlink()
    log.symlink_to(victim)
    for text in (None, "precious, and without a line break"):
        if text is not None:
            victim.write_text(text)
        line = said(lambda: RunFolder.open_existing(tmp_path / "run"))
        assert line == f"{log}: cannot write: it is a link: put the file itself in its place"
        assert (victim.read_text() if victim.exists() else None) == text
    log.unlink()
    os.mkfifo(log)
    line = said(lambda: RunFolder.open_existing(tmp_path / "run"))
    assert line == f"{log}: cannot write: not a regular file"


def test_what_a_checkpoint_says_cannot_steer_the_terminal(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        folder.save_last(make_state(1))
    file = tmp_path / "run" / "last.safetensors"
    save(file, replace(load(file), meta={"step": "\x1b[2J"}))
    line = said(lambda: RunFolder.create(tmp_path / "run"))
    assert line.startswith(
        f"{tmp_path}/run: holds a run already: continue it (a finished one with "
    )


# The lock --------------------------------------------------------------------------


def test_the_second_comer_learns_who_holds_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunFolder.create(run, command="charrnn train a\nb.txt"):
        for take in (RunFolder.create, RunFolder.open_existing):
            line = said(lambda take=take: take(run))  # type: ignore[misc]
            assert re.fullmatch(
                re.escape(f"{run}: in use by process {os.getpid()} on {socket.gethostname()} ")
                + r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(charrnn train a\\nb\.txt\): "
                "wait until it ends, or choose another folder",
                line,
            )


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", '{"pid": 1}', '{"pid": "x"}', "\0" * 99,
        pytest.param("[" * 60_000, id="nested"),
        '{"pid": Infinity, "host": "elsewhere", "since": "noon", "command": ""}',
    ],
)  # fmt: skip
def test_a_holder_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.05)
    with RunFolder.create(tmp_path / "run") as folder:
        (folder.path / "lock").write_text(content)
        line = said(lambda: RunFolder.create(folder.path))
    assert line.startswith(f"{folder.path}: in use by another process: wait until it ends")


def test_a_holder_that_has_yet_to_sign_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunFolder.create(tmp_path) as folder:
        signature = (tmp_path / "lock").read_text()
        (tmp_path / "lock").write_text("")
        monkeypatch.setattr(time, "sleep", lambda _: (tmp_path / "lock").write_text(signature))
        line = said(lambda: RunFolder.create(folder.path))
    assert line.startswith(f"{tmp_path}: in use by process {os.getpid()} on ")


def test_a_lock_that_is_just_let_go_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    monkeypatch.setattr(time, "sleep", lambda _: os.close(holder))
    with RunFolder.create(tmp_path):
        assert "in use by process" in said(lambda: RunFolder.create(tmp_path))


@pytest.mark.parametrize("another", [False, True])
def test_a_lock_that_was_removed_before_it_was_taken_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another: bool
) -> None:
    flock = fcntl.flock

    def removed_meanwhile(fd: int, how: int) -> None:
        monkeypatch.undo()
        (tmp_path / "lock").unlink()
        if another:
            (tmp_path / "lock").touch()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with RunFolder.create(tmp_path):
        assert "in use by process" in said(lambda: RunFolder.create(tmp_path))


@pytest.mark.parametrize("here", [True, False])
def test_a_holder_that_is_dead_here_may_live_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    """Until its new holder signs it, a lock still names the one that was killed."""
    monkeypatch.setattr(lock, "PATIENCE", 0.05)
    dead = fork(lambda: None)
    finish(dead)
    host = socket.gethostname() if here else "elsewhere"
    who = {"pid": dead, "host": host, "since": "noon", "command": ""}
    with RunFolder.create(tmp_path):
        (tmp_path / "lock").write_text(json.dumps(who))
        line = said(lambda: RunFolder.create(tmp_path))
    holder = "another process" if here else f"process {dead} on elsewhere since noon"
    assert line.startswith(f"{tmp_path}: in use by {holder}: wait")


def test_a_killed_holder_s_signature_makes_way_for_the_next(tmp_path: Path) -> None:
    dead = fork(lambda: RunFolder.create(tmp_path, command="charrnn train a.txt").log({"step": 1}))
    assert finish(dead) == 0
    assert f'"pid": {dead}' in (tmp_path / "lock").read_text()
    with RunFolder.create(tmp_path):
        assert f"in use by process {os.getpid()} on " in said(lambda: RunFolder.create(tmp_path))


def test_whoever_gets_no_lock_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.05)
    with RunFolder.create(tmp_path):
        (tmp_path / "lock").write_text("")
        before = open_files()
        said(lambda: RunFolder.create(tmp_path))
        assert open_files() == before


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EACCES, errno.EPERM])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    assert said(lambda: RunFolder.create(tmp_path / "run")) == (
        f"{tmp_path / 'run'}: cannot lock the run's folder: {os.strerror(number)}: "
        "choose a folder on a local disk"
    )
    assert names(tmp_path) == [], "what was made is removed again"


def test_a_lock_that_others_hold_on_smb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the holder can read it; others are refused as if permission were denied."""
    monkeypatch.setattr(lock, "PATIENCE", 0.05)
    with RunFolder.create(tmp_path):
        monkeypatch.setattr(fcntl, "flock", refusing(errno.EACCES))
        assert "in use by process" in said(lambda: RunFolder.create(tmp_path))
        monkeypatch.setattr(os, "pread", refusing(errno.EACCES))
        assert said(lambda: RunFolder.create(tmp_path)).startswith(
            f"{tmp_path}: in use by another process: wait until it ends"
        )
        monkeypatch.undo()


def test_makers_and_removers_of_one_folder_never_hold_it_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that end before a save remove the folder and the lock that others are waiting for."""
    run = tmp_path / "a" / "run"
    for module in (lock, runfolder):
        monkeypatch.setattr(module, "PATIENCE", 60)  # a busy machine may stop one of them for long

    def take_and_leave() -> None:
        for _ in range(150):
            try:
                folder = RunFolder.create(run)
            except RunFolderError as error:
                assert "in use by process" in str(error)
                continue
            with folder:
                (tmp_path / "held").mkdir()  # fails if another holder is inside
                (tmp_path / "held").rmdir()

    pids = [fork(take_and_leave) for _ in range(3)]
    assert [finish(pid) for pid in pids] == [0, 0, 0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# Stale temporaries --------------------------------------------------------------------


def test_only_our_stale_temporaries_are_removed(tmp_path: Path) -> None:
    dead = fork(lambda: None)
    finish(dead)
    ours = [
        f".last.safetensors.{dead}-0a1b2c3d.tmp",
        f".best.safetensors.{dead}-ffffffff.tmp",
        f".step-00001200.safetensors.{dead}-00000000.tmp",
        f".metrics.jsonl.{dead}-12345678.tmp",
        f".result.json.{dead}-12345678.tmp",
        f".last.safetensors.{os.getpid()}-0a1b2c3d.tmp",  # of an earlier process with this id
    ]
    others = [
        f".last.safetensors.{os.getppid()}-0a1b2c3d.tmp",  # alive
        f".last.safetensors.{dead}.tmp",
        f".notes.txt.{dead}-0a1b2c3d.tmp",
        f"last.safetensors.{dead}-0a1b2c3d.tmp",
        ".last.safetensors.swp",
        "notes.tmp",
    ]
    for name in ours + others:
        (tmp_path / name).touch()
    with RunFolder.create(tmp_path):
        assert set(names(tmp_path)) == {*others, "lock", "metrics.jsonl"}
    assert set(names(tmp_path)) == set(others)


# Checkpoints ---------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "kept"), [(0, []), (1, [30]), (2, [20, 30]), (5, [10, 20, 30])])
def test_as_many_earlier_checkpoints_as_asked_for(
    tmp_path: Path, keep: int, kept: list[int]
) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        folder.keep = keep
        for step in (10, 20, 30, 40):
            folder.save_last(make_state(step))
            folder.save_best(make_state(-step))
    assert load(tmp_path / "run" / "best.safetensors").meta == {"step": -40}
    assert load(tmp_path / "run" / "last.safetensors").meta == {"step": 40}
    found = sorted((tmp_path / "run").glob("step-*"))
    assert [path.name for path in found] == [f"step-000000{step}.safetensors" for step in kept]
    assert [load(path).meta["step"] for path in found] == kept


@pytest.mark.parametrize(
    ("saved", "kept"),
    [
        pytest.param((10, 20, 20, 20), ["00000010"], id="one saved again is no earlier one"),
        pytest.param((99_999_998, 99_999_999, 100_000_000, 1_000_000_000),
                     ["100000000", "99999999"], id="large ones stay in order"),
    ],
)  # fmt: skip
def test_which_steps_are_the_earlier_ones(
    tmp_path: Path, saved: tuple[int, ...], kept: list[str]
) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        folder.keep = 2
        for step in saved:
            folder.save_last(make_state(step))
    found = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert found == [f"step-{step}.safetensors" for step in kept]


def test_a_last_that_somebody_removed_is_missed_by_nobody(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        folder.save_last(make_state(1)).unlink()
        folder.save_last(make_state(2))
    assert load(tmp_path / "run" / "last.safetensors").meta["step"] == 2
    assert names(tmp_path / "run") == ["last.safetensors", "lock", "metrics.jsonl"]


def test_earlier_checkpoints_take_no_space_of_their_own(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        inode = folder.save_last(make_state(1)).stat().st_ino
        folder.save_last(make_state(2))
        assert (folder.path / "step-00000001.safetensors").stat().st_ino == inode


def test_without_hard_links_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    with RunFolder.create(tmp_path / "run") as folder:
        for step in (1, 2, 3):
            folder.save_last(make_state(step))
    assert load(tmp_path / "run" / "step-00000002.safetensors").meta["step"] == 2
    assert len(names(tmp_path / "run")) == 4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_has_no_room_for_a_name_is_not_copied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        folder.save_last(make_state(1))
        monkeypatch.setattr(os, "link", refusing(number))
        line = said(lambda: folder.save_last(make_state(2)))
    assert os.strerror(number) in line
    assert names(tmp_path / "run") == ["last.safetensors", "lock", "metrics.jsonl"]
    assert load(tmp_path / "run" / "last.safetensors").meta["step"] == 1


@pytest.mark.parametrize("best_is_whole", [False, True])
def test_all_damaged(tmp_path: Path, best_is_whole: bool) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        for step in (1, 2):
            folder.save_last(make_state(step))
    for path in (tmp_path / "run").glob("*.safetensors"):
        os.truncate(path, 100)
    with RunFolder.open_existing(tmp_path / "run") as folder:
        if best_is_whole:
            folder.save_best(make_state(1))
        with pytest.raises(CheckpointError) as error:
            folder.load_last()
    said = str(error.value)
    assert "last.safetensors: damaged: a header of" in said
    assert "no checkpoint is whole to resume from" in said
    instead = "; best.safetensors has weights to start from with --init-from, in another folder"
    assert said.endswith(instead if best_is_whole else ": start anew, in another folder")


def test_only_the_best_is_there(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        folder.save_best(make_state(1))
    with (
        RunFolder.open_existing(tmp_path / "run") as folder,
        pytest.raises(CheckpointError, match=r"run: holds best\.safetensors only"),
    ):
        folder.load_last()


def test_what_we_may_not_judge_is_neither_passed_over_nor_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint in a newer format is intact: resuming from an older one would lose it."""
    run = tmp_path / "run"
    with RunFolder.create(run) as folder:
        for step in (1, 2):
            folder.save_last(make_state(step))
    with monkeypatch.context() as patch:
        patch.setattr("charrnn.storage.checkpoint.FORMAT", 2)
        save(run / "last.safetensors", make_state(3))
        save(run / "step-00000000.safetensors", make_state(0))
    with RunFolder.open_existing(run) as folder:
        with pytest.raises(CheckpointError, match="use the version that wrote it"):
            folder.load_last()
        (run / "last.safetensors").unlink()
        checkpoint, notes = folder.load_last()
        assert checkpoint.meta["step"] == 1
        assert notes == [
            "last.safetensors: missing: took step-00000001.safetensors instead, step 1"
        ]
        folder.save_last(make_state(4))
    assert "step-00000000.safetensors" in names(run)


def test_the_files_of_a_run_are_all_but_what_others_put_there(tmp_path: Path) -> None:
    ours = {"best.safetensors", "step-00000010.safetensors", "metrics.jsonl", "result.json", "lock"}
    for name in (*ours, "notes.txt"):
        (tmp_path / name).touch()
    assert {path.name for path in files_of_run(tmp_path / "best.safetensors")} == ours


# The log ---------------------------------------------------------------------------------


def test_the_log_of_a_run_that_goes_on(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        folder.log({"step": 1})
        folder.save_last(make_state(1))
        folder.log({"step": 2})
    with RunFolder.open_existing(tmp_path / "run") as folder:
        folder.rewind_log(1)
        folder.log({"step": 3})
    assert read_log(tmp_path / "run") == ({"step": 1}, {"step": 3})


def test_a_process_of_another_user_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr("os.kill", refused)
    assert alive(4711)
