"""Write files atomically, and turn every refusal of the system into a one-line error.

A file is written under a temporary name and renamed once it is on disk.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from charrnn.errors import RunFolderError
from charrnn.wording import reason, shown

#: Errors of a full disk, an exhausted quota or a file-size limit.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: errno values of a disk that failed, or is full.
_FAILED = (errno.EIO, *FULL)

#: A file's name until it is complete, as ``_temporary`` makes it.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-[0-9a-f]{8}\.tmp")


@contextmanager
def refusals(path: Path, what: str) -> Iterator[None]:
    """Turn an ``OSError`` into a one-line ``RunFolderError``.

    Args:
        path: the file or folder concerned.
        what: what could not be done.

    Raises:
        RunFolderError: the operating system refused a step (disk full, no permission).
    """
    try:
        yield
    except OSError as error:
        advice = "; free some space" if error.errno in FULL else ""
        raise RunFolderError(f"{shown(path)}: {what}: {reason(error)}{advice}") from error


def exists(path: Path) -> bool:
    """Whether a path exists.

    From Python 3.14 on, ``Path.exists`` returns False also where access is denied.

    Raises:
        OSError: access is denied, or the check fails.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return False
    return True


@contextmanager
def opened(path: Path) -> Iterator[io.FileIO]:
    """Yield a regular file, open for reading without a buffer.

    A pipe or a device, which may never end, is refused.

    Raises:
        OSError: it is none, or the system refuses.
    """
    with io.FileIO(path, "r", opener=without_waiting) as file:
        refuse_irregular(file.fileno())
        yield file


def without_waiting(path: str, flags: int) -> int:
    """Open a file, as the ``opener`` of Python's own functions: a named pipe not by waiting."""
    return os.open(path, flags | os.O_NONBLOCK)


def refuse_irregular(fd: int) -> None:
    """Raise OSError unless an open file is a regular one."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def followed(path: Path) -> Path:
    """Return a path with its links resolved; a link in a loop stays as it is.

    ``Path.resolve`` raises a RuntimeError for a loop before Python 3.13.
    """
    return Path(os.path.realpath(path))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file as ``becoming`` does; every refusal becomes a RunFolderError.

    Raises:
        RunFolderError: the operating system refused a step (disk full, no permission).
    """
    with refusals(path, "cannot save"), becoming(path) as file:
        yield file


@contextmanager
def becoming(
    path: Path, called: Callable[[Path], object] = lambda temporary: None
) -> Iterator[BinaryIO]:
    """Yield a file whose bytes become ``path`` all at once.

    The bytes go to a temporary file in the same folder. When the block ends
    they are flushed to disk, the file is renamed, and the folder is flushed
    too: a reader, or the next boot, finds the old file or the new one,
    whole. When anything fails the temporary is removed and the old file stays.
    Permissions follow the umask.

    Args:
        path: the file's final name.
        called: called with the temporary file's path.

    Raises:
        OSError: the operating system refused a step, or the block raised it.
    """
    temporary = _temporary(path)
    fd = _create(temporary)
    try:
        try:
            called(temporary)
            with os.fdopen(fd, "wb", closefd=False) as file:
                yield file
            sync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def check_replaceable(path: Path) -> None:
    """Check that ``replacing(path)`` could begin, before the long work whose result it saves.

    Raises:
        RunFolderError: the folder is missing or not writable, or ``path`` exists and is not a
            regular file.
    """
    temporary = _temporary(path)
    with refusals(path, "cannot save"):
        if exists(path) and not path.is_file():
            raise RunFolderError(
                f"{shown(path)}: cannot save: it exists and is not a regular file: give another"
            )
        os.close(_create(temporary))
        temporary.unlink()


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object; the file appears whole or not at all.

    Raises:
        RunFolderError: disk full or the like.
    """
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text in utf-8; the file is replaced as a whole or not at all.

    Lone surrogates, as in a file name that is not utf-8, are escaped as in JSON.

    Raises:
        RunFolderError: disk full or the like.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def unfinished(name: str) -> tuple[str, int] | None:
    """Return a temporary file's final name and process id; None for any other name."""
    match = _TEMPORARY.fullmatch(name)
    return (match["name"], int(match["pid"])) if match else None


def _temporary(path: Path) -> Path:
    """Return a file's name until it is complete, which ``unfinished`` recognises."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def sync(fd: int) -> None:
    """Flush an open file to disk; on macOS, fsync alone leaves it in the drive's cache."""
    os.fsync(fd)
    if (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None:
        try:
            fcntl.fcntl(fd, full)
        except OSError as error:  # not all file systems know it
            if error.errno in _FAILED:
                raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, where that is possible.

    Some network file systems cannot sync a folder, and an unreadable folder cannot be opened:
    there a rename is as durable as it gets.

    Raises:
        OSError: the disk failed, or is full.
    """
    try:
        fd = os.open(folder, os.O_RDONLY)
        try:
            sync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _FAILED:
            raise
