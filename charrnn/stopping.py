"""Signals that stop a training become a question that its loop asks between steps."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType


class Stopped(BaseException):
    """A signal, or a reader who left, ends the command where it is."""


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP end a training in order.

    Before the training begins there is nothing to save, and the command ends where it
    is. From ``defer`` on the first signal is noted, for the loop to stop at a step's
    edge. A second one, but for a hang-up, leaves at once, however long a product or a save
    takes: a thread watches for it, because Python's handlers wait until such a call returns.

    From ``defer_pauses`` on SIGTSTP, a Ctrl-Z, waits in the same way, for ``pause``.
    """

    #: A terminal and a wrapper may both pass on the same Ctrl-C, and ``timeout`` sends its
    #: signal twice: what comes within this many seconds is one signal.
    SAME = 0.3

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        #: Removed at the end, and before a second signal leaves: files that nobody else removes.
        self.removed: list[Path] = []
        self._deferred = False
        self.pause_is_due = False
        """Whether a Ctrl-Z waits for ``pause``."""

    def __enter__(self) -> StopSignals:
        self._before = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN  # as nohup asks for
        }
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._leave_on_second, daemon=True)
        self._watcher.start()
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

    def defer(self) -> None:
        """From now on only note the first signal."""
        self._deferred = True

    def leave_at_once(self) -> None:
        """From now on the first signal ends the command again: all that counts is saved.

        Raises:
            Stopped: it has come.
        """
        self._deferred = False
        self._pause_at_once()
        if self.received:
            raise Stopped(self.received)

    def defer_pauses(self) -> None:
        """From now on only note a Ctrl-Z: what is drawn in place has to go first."""
        if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
            signal.signal(signal.SIGTSTP, self._note_pause)

    def pause(self) -> None:
        """Do what the Ctrl-Z that came asked for; return when the process goes on."""
        self._pause_at_once()
        # Not SIGSTOP: the system does not let a process sleep that nobody can wake. To this thread,
        # for to the process it could come after the handler is there again.
        signal.pthread_kill(threading.get_ident(), signal.SIGTSTP)
        self.defer_pauses()

    def reason(self) -> str | None:
        """Return the name of the signal that came, if any."""
        return self.received.name if self.received else None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            return  # the command is ending already; if it takes long, the thread ends it
        self.received = signal.Signals(number)
        if not self._deferred:
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
            # A terminal that closes, and the shell in it, send several hang-ups, at any distance;
            # a system that shuts down sends one after its SIGTERM. None asks for haste.
            if number not in self._before or (number == signal.SIGHUP and first < math.inf):
                continue
            now = time.monotonic()
            first = min(first, now)
            if now - first > self.SAME:
                if sys.stderr.isatty():
                    os.write(2, b"\x1b[?25h\n")  # the live display had hidden the cursor
                self._remove()
                os._exit(128 + number)

    def _remove(self) -> None:
        for path in self.removed:
            with suppress(OSError):  # one that stays keeps neither the others nor the end back
                path.unlink()
