"""The time that a run takes: that of the wall, but for what its process was stopped.

Ctrl-Z, SIGSTOP, a frozen container: nothing is computed then, and it is no slowness.
"""

from __future__ import annotations

import threading
import time
from typing import Self

#: Seconds between two looks of the thread.
BEAT = 0.25
#: Where nobody looked for so many seconds, the process was stopped. A thread of a process that
#: runs waits for a busy machine or another thread, but never so long.
LEAST = 5.0


class Clock:
    """A clock that stands still while its process is stopped.

    As long as it is entered, a thread looks at it now and then. No signal tells of all ways to
    be stopped, and none how long it took; that nobody could look does, however long an update is.
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
        """Return the time in seconds; only differences mean something."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= LEAST:
                self.stopped += now - self._looked
            self._looked = now
            return now - self.stopped

    def _watch(self) -> None:
        while not self._over.wait(BEAT):
            self.now()
