"""What a command says on standard error of a long work: on a terminal, and in a pipe."""

from __future__ import annotations

import errno
import io
import os
import signal
import threading
from contextlib import redirect_stderr
from types import SimpleNamespace

import pytest
import typer

from charrnn.errors import UsageError
from charrnn.outcome import outcome
from charrnn.stdio import Meter, lossy


class Screen(io.StringIO):
    """What passes for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal to say things on."""
    monkeypatch.setenv("COLUMNS", "60")
    return Screen()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes only where a test says so."""
    now = [100.0]
    monkeypatch.setattr("charrnn.stdio.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def work(clock: list[float], *, in_pipe: bool = True, quiet: bool = False) -> None:
    """Do 40 characters in 40 seconds."""
    progress = Meter("runs/[red]", 40, in_pipe=in_pipe, quiet=quiet)
    for done in range(1, 41):
        clock[0] += 1
        progress("read", done)
    progress.close()


def test_a_terminal_has_one_line_that_goes(screen: Screen, clock: list[float]) -> None:
    with redirect_stderr(screen):  # pytest has its own until the test begins
        work(clock)
    seen = screen.getvalue()
    assert "\n" not in seen
    assert seen.startswith("3 of 40"), "what is soon done says nothing"
    assert "\x1b[?25l" not in seen, "who stops it with Ctrl-Z has a cursor"
    assert "4 of 40 characters read, 36 s to go: runs/[red]" in seen
    assert seen.endswith("\x1b[2K"), "it is taken back in the end"


def test_a_terminal_that_has_gone_is_no_matter(screen: Screen, clock: list[float]) -> None:
    """As when its window is closed, and the work goes on in the background."""

    def gone(_text: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with redirect_stderr(screen):
        progress = Meter("run", 40, in_pipe=True, quiet=False)
        for done in range(1, 41):
            clock[0] += 1
            if done == 20:
                assert screen.getvalue()
                screen.write = gone  # type: ignore[method-assign]
            progress("read", done)
        progress.close()


@pytest.mark.parametrize("quiet", [False, True])
def test_a_pipe_has_a_line_now_and_then(
    clock: list[float], capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    work(clock, quiet=quiet)
    assert capsys.readouterr() == (
        "",
        ""
        if quiet
        else "10 of 40 characters read, 30 s to go: runs/[red]\n"
        "20 of 40 characters read, 20 s to go: runs/[red]\n"
        "30 of 40 characters read, 10 s to go: runs/[red]\n"
        "40 of 40 characters read, 0 s to go: runs/[red]\n",
    )


def test_beside_json_a_terminal_has_its_line(screen: Screen, clock: list[float]) -> None:
    with redirect_stderr(screen):
        work(clock, in_pipe=False)
    assert "4 of 40 characters read" in screen.getvalue()


def test_beside_json_a_pipe_has_nothing(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    work(clock, in_pipe=False)
    assert capsys.readouterr() == ("", "")


def test_a_long_message_is_written_whole() -> None:
    """A signal while a pipe is full: the system says how much it has taken until then."""
    reader, writer = os.pipe()
    interrupted, read = threading.Event(), bytearray()

    def read_all() -> None:
        interrupted.wait()
        while block := os.read(reader, 2**16):
            read.extend(block)

    thread = threading.Thread(target=read_all)
    thread.start()
    before = signal.signal(signal.SIGALRM, lambda *_: interrupted.set())
    try:
        with os.fdopen(writer, "w") as pipe:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            lossy(pipe).write("x" * 2**19 + "\n")
    finally:
        interrupted.set()
        signal.signal(signal.SIGALRM, before)
        thread.join()
        os.close(reader)
    assert len(read) == 2**19 + 1


def test_the_reason_of_a_failure_is_broken_between_words(screen: Screen) -> None:
    app, reason = typer.Typer(), "it is " + "said " * 30 + "in the end"

    @app.command()
    def fail(words: str) -> None:
        raise UsageError(words)

    with redirect_stderr(screen):
        assert outcome(app, [reason]) == 2
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(map(str.strip, lines)) == f"charrnn: {reason}"
