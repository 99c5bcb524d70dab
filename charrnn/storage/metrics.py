"""A run's log, ``metrics.jsonl``: one JSON object per line, appended to and rewound."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from charrnn.disk import opened, refusals, refuse_irregular, replacing, sync
from charrnn.errors import RunFolderError
from charrnn.layout import LOG
from charrnn.wording import shown

#: Above every finite float32, which training computes with: no number in a row is as large.
LARGEST = 1e39

#: Bytes read at a time to find the end of the last complete line.
_BLOCK = 1 << 16


class Log:
    """The log in a run's folder, open for appending until ``close``.

    An incomplete last line, left by a crash, is removed.

    Raises:
        RunFolderError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG
        self._fd = self._open()

    def _open(self) -> int:
        with refusals(self.path, "cannot write"):
            if self.path.is_symlink():  # in a folder from elsewhere it may lead to any file
                raise OSError(errno.ELOOP, "it is a link: put the file itself in its place")
            how = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(self.path, how, 0o666)
            try:
                refuse_irregular(fd)
                _remove_cut_line(fd)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def append(self, row: dict[str, Any]) -> None:
        """Append a row as one line, in one write.

        Raises:
            RunFolderError: it cannot be written; no part of the row is left in the file.
            ValueError: a value is NaN or infinite.
        """
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        line = (text + "\n").encode("utf-8", "backslashreplace")
        with refusals(self.path, "cannot write"):
            size = os.fstat(self._fd).st_size
            try:
                if os.write(self._fd, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except BaseException:
                os.ftruncate(self._fd, size)
                raise

    def rewind(self, step: int, *, logged: bool = True, validated: bool = True) -> None:
        """Drop the rows after ``step``, and lines that are not rows.

        Args:
            step: step of the checkpoint that the run resumes from.
            logged: whether that checkpoint was written after the row on the updates up to its
                step; if not, that row is dropped too, as it will be repeated.
            validated: the same for the row on a validation.

        Raises:
            RunFolderError: it cannot be written; the log stays as it was.
        """
        with refusals(self.path, "cannot write"):
            with self.path.open("rb") as old, replacing(self.path) as new:
                for line in old:
                    row = _row(line)
                    if row and _is_sound(row, 0) and _belongs(row, step, logged, validated):
                        new.write(line)
            replaced, self._fd = self._fd, self._open()
            os.close(replaced)

    def clear(self) -> None:
        """Drop all rows.

        Raises:
            RunFolderError: it cannot be written.
        """
        with refusals(self.path, "cannot write"):
            os.ftruncate(self._fd, 0)

    def sync(self) -> None:
        """Flush the rows to disk.

        Raises:
            RunFolderError: disk full or the like.
        """
        with refusals(self.path, "cannot save"):
            sync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def read_log(run: Path) -> tuple[dict[str, Any], ...]:
    """Read the log in a run's folder; without one there are no rows.

    Its numbers are finite, its steps and counts not negative, and the steps of the rows on
    updates increase.

    Raises:
        RunFolderError: it cannot be read, or a line is not a valid row.
    """
    path = run / LOG
    rows: list[dict[str, Any]] = []
    updated = 0
    with (
        refusals(path, "cannot read"),
        suppress(FileNotFoundError),
        opened(path) as raw,
        io.BufferedReader(raw) as file,
    ):
        for number, line in enumerate(file, start=1):
            # An incomplete last line, left by a crash or just being written, does not count.
            if not line.endswith(b"\n"):
                break
            row = _row(line)
            if row is None or not _is_sound(row, updated):
                raise RunFolderError(
                    f"{shown(path)}: line {number} is not a row of a run's log: remove the line"
                )
            if "gradient_norm" in row:
                updated = row["step"]
            # A long log has millions of names, and only some ten different ones.
            rows.append({sys.intern(name): value for name, value in row.items()})
    return tuple(rows)


def _remove_cut_line(fd: int) -> None:
    """Truncate a file to the end of its last complete line; only what is beyond that is read."""
    size = end = os.fstat(fd).st_size
    complete = 0
    while end > 0 and not complete:
        start = max(0, end - _BLOCK)
        if found := os.pread(fd, end - start, start).rfind(b"\n") + 1:
            complete = start + found
        end = start
    if complete < size:
        os.ftruncate(fd, complete)


def _belongs(row: dict[str, Any], step: int, logged: bool, validated: bool) -> bool:
    """Whether a row is from before the checkpoint at ``step``; arguments as in ``Log.rewind``."""
    at: float = row["step"]
    with_its_own = validated if "valid_nats_per_char" in row else logged
    return at <= step if with_its_own else at < step


def _is_sound(row: dict[str, Any], updated: int) -> bool:
    """Whether an object is a valid row of a log.

    Args:
        row: the object.
        updated: step of the previous row on updates; 0: there is none.
    """
    numbers: dict[str, float] = {
        name: value for name, value in row.items() if type(value) in (int, float)
    }
    if not all(abs(value) < LARGEST for value in numbers.values()):  # also refuses NaN
        return False
    if "gradient_norm" in row:
        sizes = ("gradient_norm", "largest_gradient_norm", "clipped_share")
        if min(numbers.get(name, -1) for name in sizes) < 0 or numbers.get("step", 0) <= updated:
            return False
    return min(numbers.get("step", -1), numbers.get("characters", 0)) >= 0


def _row(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a line of the log; None if there is none."""
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
        return row if isinstance(row, dict) else None
    return None
