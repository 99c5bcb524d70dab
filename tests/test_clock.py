from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from charrnn.runs import clock
from charrnn.runs.clock import Clock
from tests.conftest import ENVIRONMENT


class Wall:
    """A wall clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.time = 100.0
        self.looked = threading.Semaphore(0)

    def monotonic(self) -> float:
        self.looked.release()
        return self.time


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    wall = Wall()
    monkeypatch.setattr(clock, "time", wall)
    return wall


def test_stands_still_where_nobody_could_look(wall: Wall) -> None:
    ours = Clock()
    started = ours.now()
    for seconds, runs, stopped in (
        (3.0, 3.0, 0.0),
        (20.0, 3.0, 20.0),
        (4.9, 7.9, 20.0),
        (5.1, 7.9, 25.1),
    ):
        wall.time += seconds
        assert ours.now() - started == pytest.approx(runs)
        assert ours.stopped == pytest.approx(stopped)


def test_is_looked_at_as_long_as_it_is_entered(wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "BEAT", 0.001)
    with Clock() as ours:
        started = ours.now()
        for _ in range(5):  # a twenty-second update, which does not read the clock
            wall.time += 4
            while wall.looked.acquire(blocking=False):
                pass
            for _ in range(2):  # by the second reading it has used the first
                assert wall.looked.acquire(timeout=60)
        assert ours.now() - started == pytest.approx(20)
        assert ours.stopped == 0
    assert not ours._thread.is_alive()


def test_a_process_that_is_stopped() -> None:
    """By SIGSTOP, which it cannot handle."""
    program = (
        "from charrnn.runs import clock\n"
        "clock.LEAST = 1.0\n"
        "with clock.Clock() as ours:\n"
        "    print('ready', flush=True)\n"
        "    input()\n"
        "    ours.now()\n"
        "    print(ours.stopped)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        time.sleep(1.5)
        process.send_signal(signal.SIGCONT)
        stopped, _ = process.communicate(b"\n")
    assert float(stopped) >= 1.5
