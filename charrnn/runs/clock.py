"""The time that a run takes: wall-clock time, except while its process was stopped.

Under Ctrl-Z or SIGSTOP, or in a frozen container, nothing is computed; that is no slow training.
"""

from __future__ import annotations

import threading
import time
from typing import Self

#: Seconds between two readings by the thread.
BEAT = 0.25
#: If nobody read the clock for this many seconds, the process was stopped. In a running process a
#: thread may wait for a busy machine or another thread, but never this long.
LEAST = 5.0


class Clock:
    """A clock that stands still while its process is stopped.

    Inside its ``with`` block a thread reads it every ``BEAT`` seconds; a long gap between two
    readings means that the process was stopped, however long an update takes. A signal would not
    do: none reports every way to be stopped, or for how long.
    """

    def __init__(self) -> None:
        self.stopped = 0.0
        """Seconds for which the process was stopped since the clock was made."""
        self._looked = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def now(self) -> float:
        """Return the time in seconds; only differences are meaningful."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= LEAST:
                self.stopped += now - self._looked
            self._looked = now
            return now - self.stopped

    def _watch(self) -> None:
        while not self._over.wait(BEAT):
            self.now()
