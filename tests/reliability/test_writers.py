"""R11: two writers cannot share a run."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import torch

from charrnn.errors import RunFolderError
from charrnn.storage.checkpoint import Checkpoint
from charrnn.storage.runfolder import RunFolder
from tests.reliability.conftest import Promise
from tests.reliability.processes import finish, fork, kill

pytestmark = pytest.mark.usefixtures("patient")

STATE = Checkpoint({"model.weight": torch.zeros(3)}, {"step": 1})


def race(path: Path, resume: bool) -> bool:
    """Start two writers at once; return whether one got the run and the other named it."""
    start_reader, start_writer = os.pipe()
    said_reader, said_writer = os.pipe()

    def writer() -> None:
        os.read(start_reader, 1)
        take = RunFolder.open_existing if resume else RunFolder.create
        try:
            folder = take(path, command="charrnn train tale.txt")
        except RunFolderError as error:
            os.write(said_writer, f"{os.getpid()} refused {error}\n".encode())
            return
        folder.save_last(STATE)
        os.write(said_writer, f"{os.getpid()} writes\n".encode())
        signal.pause()

    pids = {fork(writer), fork(writer)}
    os.close(said_writer)
    os.write(start_writer, b"ab")
    with os.fdopen(said_reader) as said:
        lines = [said.readline(), said.readline()]
    winners = [int(line.split()[0]) for line in lines if line.endswith(" writes\n")]
    refusals = [line for line in lines if " refused " in line]
    fair = len(winners) == 1 and len(refusals) == 1
    if fair:
        named = re.search(
            r"in use by process (\d+) on \S+ since \S+ \S+ \(charrnn train tale\.txt\)", refusals[0]
        )
        fair = named is not None and int(named[1]) == winners[0]
    for pid in winners:
        kill(pid)
    for pid in pids - set(winners):
        fair = finish(pid) == 0 and fair
    for fd in (start_reader, start_writer):
        os.close(fd)
    with RunFolder.open_existing(path) as folder:  # free, though its holder was killed
        # And the dead holder's signature is gone.
        with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()} on "):
            RunFolder.open_existing(path)
        return fair and folder.load_last()[0].meta["step"] == 1


def test_some_pairs_of_writers(tmp_path: Path) -> None:
    assert race(tmp_path / "run", resume=False)
    assert race(tmp_path / "run", resume=True)


@pytest.mark.slow
def test_pairs_of_writers(tmp_path: Path, promise: Promise) -> None:
    count = 0
    for pair in range(10):
        run = tmp_path / str(pair)
        count += race(run, resume=False)
        count += race(run, resume=True)
    promise(
        "R11", "pairs of writers: one writes, one names it, free after kill -9", f"{count} of 20"
    )
    assert count == 20
