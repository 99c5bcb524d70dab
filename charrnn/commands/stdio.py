"""Read standard input, print messages on stderr, and print a path on stdout.

Rich, which wraps lines for a terminal, is imported only where it is needed.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from charrnn.command_words import command_line
from charrnn.commands.stopping import StopSignals
from charrnn.disk import FULL
from charrnn.errors import CorpusError, UsageError
from charrnn.wording import duration, reason, shown

if TYPE_CHECKING:
    import torch

    from charrnn.text.vocabulary import Vocabulary


class _Lossy(io.FileIO):
    def write(self, data: Any) -> int:
        """Write everything; drop what a full disk, or a file open for reading only, does not take.

        The system may write only a part, and the caller does not check how much.
        """
        whole = memoryview(data).cast("B")
        rest = whole
        try:
            # None: a non-blocking pipe is full.
            while rest and (taken := super().write(rest)):
                rest = rest[taken:]
        except OSError as error:
            if error.errno not in (*FULL, errno.EBADF):
                raise
        return len(whole)


def lossy(stream: TextIO) -> TextIO:
    """Return a stream that writes to the same file, and drops what that does not take.

    A training must not end because its progress cannot be written. A pipe whose reader has left
    still raises BrokenPipeError.
    """
    # No buffer: it would keep what a closed pipe refuses, and be refused again at the exit.
    raw: Any = _Lossy(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True)


def say(message: str, end: str = "\n") -> None:
    """Print a line on stderr, wrapped between words on a terminal.

    If it cannot be written, for example because its reader has left, it is lost: the work goes on.

    Args:
        message: the line, or a part of it if ``end`` is not a line feed.
        end: what follows.
    """
    message = shown(message)  # it may quote a file that somebody else has made
    with suppress(OSError):
        if end != "\n" or not sys.stderr.isatty():
            print(message, end=end, file=sys.stderr, flush=True)
            return

        from charrnn.views.terminal import Output, say_on

        say_on(Output(stderr=True), message)


class Meter:
    """Shows the progress of long work on stderr: on a terminal in a line that is redrawn.

    Args:
        name: what is worked on.
        characters: how many there are to do.
        quiet: show nothing.
    """

    #: Seconds until the first line on a terminal; between two there; for both elsewhere.
    FIRST, REDRAWN, PLAIN = 3.0, 0.25, 10.0

    def __init__(self, name: str, characters: int, *, quiet: bool) -> None:
        from charrnn.views.terminal import Output

        self._name = name
        self._characters = characters
        self._what, self._last = "", time.monotonic()
        self._is_drawn = False
        self._console = Output(stderr=True)
        self._is_quiet = quiet

    def __call__(self, what: str, done: int) -> None:
        """Show what was done with how many characters, if a line is due."""
        now = time.monotonic()
        # After & or bg the terminal belongs to the shell.
        is_screen = self._console.is_screen and self._console.is_in_foreground
        if what != self._what:
            self._what, self._started = what, self._last
            self._next = self._last + (self.FIRST if is_screen else self.PLAIN)
        self._last = now
        if self._is_quiet or now < self._next:
            return
        self._next = now + (self.REDRAWN if is_screen else self.PLAIN)
        to_go = duration((now - self._started) * (self._characters - done) / done)
        line = f"{done:,} of {self._characters:,} characters {what}, {to_go} to go: {self._name}"
        with suppress(OSError):  # as in ``say``
            if is_screen:
                self._draw(line)
            else:
                print(line, file=sys.stderr)

    def close(self) -> None:
        """Restore the terminal."""
        if self._is_drawn and self._console.is_in_foreground:
            with suppress(OSError):
                self._take_back()

    def _draw(self, line: str) -> None:
        from rich.text import Text

        if self._is_drawn:
            self._take_back()
        text = Text(line)
        text.truncate(self._console.width - 1, overflow="ellipsis")
        self._console.print(text, end="")  # the cursor stays visible, as Ctrl-Z may come
        self._is_drawn = True

    def _take_back(self) -> None:
        from rich.control import Control
        from rich.segment import ControlType

        self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))


def say_where(doing: str, device: torch.device) -> None:
    """Say on which device something is done, unless it is the CPU, as usual."""
    from charrnn.compute.device import in_words

    if device.type != "cpu":
        say(f"{doing} on {in_words(device)}")


def print_path(path: Path) -> None:
    """Print a path on stdout: byte for byte, for a shell to use; escaped for a terminal to show."""
    sys.stdout.flush()
    line = shown(path).encode() if sys.stdout.isatty() else os.fsencode(path)
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


@contextmanager
def spooled(texts: Iterable[str], stop: StopSignals) -> Iterator[Path | None]:
    """Yield a file with a copy of standard input if the texts name it, else None.

    Errors about the text say "standard input" instead of naming the file.

    Args:
        texts: as the user named them.
        stop: removes the file, at its end or when a second signal ends the command.

    Raises:
        CorpusError: standard input is empty or cannot be read, or its copy cannot be written.
    """

    def made(path: Path) -> None:
        stop.removed.append(path)
        stop.leave_at_once()

    if "-" not in texts:
        yield None
        return
    _await_input()
    # No signal may end the command between making the file and noting its name.
    stop.defer()
    path = spool(sys.stdin.buffer, made)
    try:
        yield path
    except CorpusError as error:
        raise CorpusError(str(error).replace(str(path), "standard input")) from None


def spool(stream: BinaryIO, made: Callable[[Path], object] = lambda path: None) -> Path:
    """Copy a stream that can be read only once into a temporary file.

    Args:
        stream: what to copy.
        made: called with the file's path before the copying begins.

    Returns:
        The file's path; the caller removes it.

    Raises:
        CorpusError: the stream is empty or cannot be read, or there is no temporary folder, or
            it is full or not writable.
    """
    try:
        with tempfile.NamedTemporaryFile(prefix="charrnn-", delete=False) as file:
            path = Path(file.name)
            try:
                made(path)
                for block in _blocks(stream):
                    file.write(block)
                size = file.tell()
            except BaseException:
                path.unlink()
                raise
    except OSError as error:
        folder = "a temporary folder"
        with suppress(FileNotFoundError):
            folder = shown(tempfile.gettempdir())
        raise CorpusError(
            f"cannot copy standard input to {folder}: {reason(error)}; make room there, set "
            "TMPDIR, or name a file"
        ) from None
    if size == 0:
        path.unlink()
        raise CorpusError("standard input is empty: pipe a text into it")
    return path


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    # A terminal reports its end only once: read, which goes on until it has enough, would ask the
    # user for a second one.
    read = getattr(stream, "read1", stream.read)
    try:
        while block := read(1 << 20):
            yield block
    except OSError as error:
        raise CorpusError(f"cannot read standard input: {reason(error)}") from None


def waits_unread() -> bool:
    """Whether standard input is a pipe with text in it, or a file at its beginning.

    Nothing is read from it. Schedulers and shells may leave a process an empty pipe, or the script
    that they are executing.
    """
    try:
        fd = sys.stdin.fileno()
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            return status.st_size > 0 == os.lseek(fd, 0, os.SEEK_CUR)
        if stat.S_ISFIFO(status.st_mode):
            return fcntl.ioctl(fd, termios.FIONREAD, bytes(4)) != bytes(4)
    except OSError:  # a stream without a file, say
        pass
    return False


def read_prompt(prompt: str, vocabulary: Vocabulary) -> str | bytes:
    """Return the text that --prompt stands for; "-" is standard input.

    Of a text that is a file's name, say that it is taken for itself.

    Args:
        prompt: as the user gave it.
        vocabulary: the model's; one of bytes takes any input, one of characters only utf-8.

    Raises:
        UsageError: standard input cannot be read, or is not valid utf-8.
    """
    if prompt != "-":
        name = prompt.removeprefix("FILE:")  # as nanoGPT has it
        if os.path.isfile(name):  # noqa: PTH113 - which never raises
            taken = f"--prompt - <{command_line([name])}"
            say(f"note: the prompt is the name of a file, not its text: for its text give {taken}")
        return prompt
    _await_input()
    try:
        data = sys.stdin.buffer.read()
    except OSError as error:
        raise UsageError(f"--prompt -: cannot read standard input: {reason(error)}") from error
    if vocabulary.is_bytes:
        return data
    try:
        return data.decode().removeprefix("\ufeff")  # a byte order mark is not text
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--prompt -: standard input is not valid utf-8 at byte {error.start}: convert it "
            "first, with iconv -f ENCODING -t utf-8"
        ) from None


def _await_input() -> None:
    """Let reads of standard input wait for it; tell a user who types a text how to end it.

    A program that had the terminal or the pipe before may have left it so that reads do not wait.
    What has not been written yet would then be missed.
    """
    with suppress(OSError):  # a stream without a file
        os.set_blocking(sys.stdin.fileno(), True)
    if sys.stdin.isatty():
        say("reading from the terminal: Ctrl-D at the beginning of a line ends it")
