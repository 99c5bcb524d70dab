"""Note signals that stop a training, so that its loop can check between steps."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """Ends the command at once: a signal came, or the reader of its output left."""


class StopSignals:
    """Handles SIGINT, SIGTERM and SIGHUP, so that they end a training in order.

    Before the training begins there is nothing to save, and a signal ends the command at
    once, or when its libraries are loaded (``loading``). After ``defer`` the first signal is only
    noted, for the loop to stop between steps. A second one, unless it is a SIGHUP, ends the process
    at once, even during a long matrix product or save: a thread watches for it, because Python's
    handlers wait until such a call returns.

    After ``defer_pauses``, SIGTSTP (Ctrl-Z) is likewise only noted, for ``pause``.
    """

    #: A terminal and a wrapper may both pass on the same Ctrl-C, and ``timeout`` sends its
    #: signal twice: signals within this many seconds count as one.
    SAME = 0.3

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        #: Files to remove at the end, or before a second signal ends the process.
        self.removed: list[Path] = []
        #: What else to do before a second signal ends the process.
        self.at_once: list[Callable[[], None]] = []
        self._deferred = self._is_loading = False
        self._before: dict[signal.Signals, Any] = {}
        self.pause_is_due = False
        """Whether a Ctrl-Z waits for ``pause``."""

    def __enter__(self) -> StopSignals:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._watcher = threading.Thread(target=self._leave_on_second, daemon=True)
        self._watcher.start()  # first: the system may refuse it
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks for
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()  # before a signal could end the process at once
        self._pause_at_once()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.write(self._writer, b"\0")  # no signal has this number
        self._watcher.join()
        os.close(self._reader)
        os.close(self._writer)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Only note the first signal as long as libraries are imported.

        Some of them swallow exceptions that are raised meanwhile, and go on with half of what they
        imported, or end the process.

        Raises:
            Stopped: it has come; raised at the end.
        """
        self._is_loading = True
        yield
        self._is_loading = False
        if self.received:
            raise Stopped(self.received)

    def defer(self) -> None:
        """From now on only note the first signal.

        Raises:
            Stopped: it has come already, but a library swallowed the exception.
        """
        if self.received and not self._deferred:
            raise Stopped(self.received)
        self._deferred = True

    def leave_at_once(self) -> None:
        """From now on let the first signal end the command again, as everything is saved.

        Raises:
            Stopped: it has come already.
        """
        self._deferred = False
        self._pause_at_once()
        if self.received:
            raise Stopped(self.received)

    def defer_pauses(self) -> None:
        """From now on only note a Ctrl-Z: the live display has to be erased first."""
        if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
            signal.signal(signal.SIGTSTP, self._note_pause)

    def pause(self) -> None:
        """Suspend the process, as the noted Ctrl-Z asked; return when it goes on."""
        self._pause_at_once()
        # Not SIGSTOP: the system ignores SIGTSTP if nobody could wake the process. Sent to this
        # thread: sent to the process, it could arrive when the handler is installed again.
        signal.pthread_kill(threading.get_ident(), signal.SIGTSTP)
        self.defer_pauses()

    def reason(self) -> str | None:
        """Return the name of the signal that came, if any."""
        return self.received.name if self.received else None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            return  # the command is ending already; if it takes long, the thread ends it
        self.received = signal.Signals(number)
        if not (self._deferred or self._is_loading):
            raise Stopped(number)

    def _note_pause(self, _number: int, _frame: FrameType | None) -> None:
        self.pause_is_due = True

    def _pause_at_once(self) -> None:
        self.pause_is_due = False
        if signal.getsignal(signal.SIGTSTP) == self._note_pause:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    def _leave_on_second(self) -> None:
        first = math.inf
        while (number := os.read(self._reader, 1)[0]) != 0:
            # A closing terminal and the shell in it send several SIGHUPs, at any interval; a system
            # that shuts down sends one after its SIGTERM. Neither means that the user is impatient.
            if number not in self._before or (number == signal.SIGHUP and first < math.inf):
                continue
            now = time.monotonic()
            first = min(first, now)
            if now - first > self.SAME:
                if sys.stderr.isatty():
                    os.write(2, b"\x1b[?25h\n")  # the live display had hidden the cursor
                for end in self.at_once:
                    end()
                self._remove()
                os._exit(128 + number)

    def _remove(self) -> None:
        for path in self.removed:
            with suppress(OSError):  # go on if one cannot be removed
                path.unlink()


@contextmanager
def compiling(
    names: Sequence[str], device: str, *, with_samples: bool = False
) -> Iterator[StopSignals]:
    """Handle signals, and compile meanwhile what a command will call, until the block ends.

    Args:
        names: the files, as for ``compiler.compiling``.
        device: where the user wants to compute.
        with_samples: whether the command also samples, as for a report.
    """
    from charrnn.compute import compiler

    called = (*names, *compiler.SAMPLING) if with_samples else names
    with StopSignals() as stop, compiler.compiling(called, device) as end:
        stop.at_once.append(end)
        yield stop
