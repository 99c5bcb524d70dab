"""Copies of standard input, and the progress of long work on standard error."""

from __future__ import annotations

import errno
import io
import os
import signal
import tempfile
import threading
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from charrnn.commands.outcome import outcome
from charrnn.commands.stdio import Meter, lossy, spool
from charrnn.errors import CorpusError, UsageError
from charrnn.views.terminal import Output
from tests.conftest import assert_one_line, refusing


class Screen(io.StringIO):
    """A stream that passes for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal of 60 columns."""
    monkeypatch.setenv("COLUMNS", "60")
    return Screen()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes only when a test says so."""
    now = [100.0]
    monkeypatch.setattr("charrnn.commands.stdio.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def work(clock: list[float], *, quiet: bool = False) -> None:
    """Process 40 characters in 40 seconds."""
    progress = Meter("runs/[red]", 40, quiet=quiet)
    for done in range(1, 41):
        clock[0] += 1
        progress("read", done)
    progress.close()


def test_a_terminal_has_one_line_that_goes(screen: Screen, clock: list[float]) -> None:
    with redirect_stderr(screen):  # pytest has its own until the test begins
        work(clock)
    seen = screen.getvalue()
    assert "\n" not in seen
    assert seen.startswith("3 of 40"), "the first two seconds say nothing"
    assert "\x1b[?25l" not in seen, "the cursor stays, for Ctrl-Z"
    assert "4 of 40 characters read, 36 s to go: runs/[red]" in seen
    assert seen.endswith("\x1b[2K"), "the line is erased at the end"


def test_a_terminal_that_has_gone_is_no_matter(screen: Screen, clock: list[float]) -> None:
    """As when its window is closed while the work goes on in the background."""

    def gone(_text: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with redirect_stderr(screen):
        progress = Meter("run", 40, quiet=False)
        for done in range(1, 41):
            clock[0] += 1
            if done == 20:
                assert screen.getvalue()
                screen.write = gone  # type: ignore[method-assign]
            progress("read", done)
        progress.close()


def test_a_shell_that_has_the_terminal_gets_plain_lines(
    screen: Screen, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after & or bg: drawing in place would overwrite the shell's prompt."""
    in_foreground = True
    monkeypatch.setattr(Output, "is_in_foreground", property(lambda _: in_foreground))
    with redirect_stderr(screen):
        progress = Meter("run", 40, quiet=False)
        for done in range(1, 41):
            clock[0] += 1
            if done == 20:
                in_foreground, before = False, screen.getvalue()
            progress("read", done)
        progress.close()
    assert "\x1b[2K" in before
    assert screen.getvalue() == before + (
        "20 of 40 characters read, 20 s to go: run\n"
        "30 of 40 characters read, 10 s to go: run\n"
        "40 of 40 characters read, 0 s to go: run\n"
    )


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


def test_a_long_message_is_written_whole() -> None:
    """A signal interrupts the write to a full pipe: the system has taken only a part by then."""
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


class TestSpool:
    def test_keeps_every_byte(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        content = bytes(range(256)) * 5000
        path = spool(io.BytesIO(content))
        assert path.read_bytes() == content
        assert path.parent == tmp_path

    def test_tells_where_before_it_copies(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        told: list[Path] = []

        class Stream(io.BytesIO):
            def read1(self, size: int | None = -1) -> bytes:
                assert told[0].exists()
                return super().read1(size)

        assert [spool(Stream(b"text"), told.append)] == told

    def test_a_terminal_is_asked_once_for_its_end(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Reading on after its end would give more."""

        class Terminal(io.RawIOBase):
            def __init__(self) -> None:
                self.typed = [b"one line\n", b"another\n", b"", b"too late\n"]

            def readable(self) -> bool:
                return True

            def readinto(self, buffer: Any) -> int:
                line = self.typed.pop(0)
                buffer[: len(line)] = line
                return len(line)

        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        path = spool(io.BufferedReader(Terminal()))
        assert path.read_bytes() == b"one line\nanother\n"

    def test_nothing_to_read(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(CorpusError) as error:
            spool(io.BytesIO())
        assert_one_line(error, "standard input is empty")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "failure", [OSError(errno.EISDIR, "Is a directory"), KeyboardInterrupt()]
    )
    def test_failure_leaves_nothing(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: BaseException
    ) -> None:
        class Failing(io.BytesIO):
            def read1(self, size: int | None = -1) -> bytes:
                if self.tell():
                    raise failure
                return super().read1(1)

        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        expected = CorpusError if isinstance(failure, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as error:
            spool(Failing(b"abc"))
        assert list(tmp_path.iterdir()) == []
        if isinstance(error.value, CorpusError):
            assert str(error.value) == "cannot read standard input: Is a directory"

    def test_a_full_folder_and_no_folder_are_told(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        advice = "; make room there, set TMPDIR, or name a file"
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with monkeypatch.context() as patch, pytest.raises(CorpusError) as error:
            patch.setattr(tempfile, "NamedTemporaryFile", refusing(errno.ENOSPC))
            spool(io.BytesIO(b"abc"))
        assert_one_line(error, f"input to {tmp_path}: No space left on device{advice}")
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
        with pytest.raises(CorpusError) as error:
            spool(io.BytesIO(b"abc"))
        assert_one_line(error, "input to a temporary folder: No usable temporary directory found")
        assert str(error.value).endswith(advice)
