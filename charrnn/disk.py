"""Files on disk: they appear whole or not at all, and every refusal is one line.

A file is written under a temporary name and renamed once it is on disk.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from charrnn.errors import RunFolderError
from charrnn.wording import reason, shown

#: What a disk, or a user's share of it, refuses with that is full.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

#: What a file is called until it is whole, as ``_temporary`` gives it.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-[0-9a-f]{8}\.tmp")


@contextmanager
def refusals(path: Path, what: str) -> Iterator[None]:
    """Turn an operating system's refusal into one line.

    Args:
        path: of what it refused to do something with.
        what: could not be done.

    Raises:
        RunFolderError: the operating system refused a step (disk full, no permission).
    """
    try:
        yield
    except OSError as error:
        advice = "; free some space" if error.errno in FULL else ""
        raise RunFolderError(f"{shown(path)}: {what}: {reason(error)}{advice}") from error


def exists(path: Path) -> bool:
    """Whether there is something at a path.

    ``Path.exists`` says no to what may not be looked at, too, from Python 3.14 on.

    Raises:
        OSError: it may not be looked at, or cannot be.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return False
    return True


def followed(path: Path) -> Path:
    """Return where a path leads through links; one that leads round in a circle stays itself.

    ``Path.resolve`` raises a RuntimeError for that before Python 3.13.
    """
    return Path(os.path.realpath(path))


@contextmanager
def replacing(path: Path) -> Iterator[int]:
    """Yield a file descriptor as ``becoming`` does; every refusal is one line.

    Raises:
        RunFolderError: the operating system refused a step (disk full, no permission).
    """
    with refusals(path, "cannot save"), becoming(path) as fd:
        yield fd


@contextmanager
def becoming(
    path: Path, called: Callable[[Path], object] = lambda temporary: None
) -> Iterator[int]:
    """Yield a file descriptor whose bytes become ``path`` all at once.

    The bytes go to a temporary file in the same folder. When the block ends
    they are brought to disk, the file takes its name, and the name is brought
    to disk: a reader, or the next boot, finds the old file or the new one,
    whole. When anything fails the temporary is removed and the old file stays.
    Permissions follow the umask.

    Args:
        path: what they become.
        called: is told the temporary's name.

    Raises:
        OSError: the operating system refused a step, or what the block did fails so.
    """
    temporary = _temporary(path)
    fd = _create(temporary)
    try:
        try:
            called(temporary)
            yield fd
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
    """See that ``replacing(path)`` could begin, before long work for what is written then.

    Raises:
        RunFolderError: the folder is missing or not writable, or ``path`` is there and no file.
    """
    if path.exists() and not path.is_file():
        raise RunFolderError(
            f"{shown(path)}: cannot save: it exists and is not a regular file: give another"
        )
    temporary = _temporary(path)
    with refusals(path, "cannot save"):
        os.close(_create(temporary))
        temporary.unlink()


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object; the file appears whole or not at all.

    Raises:
        RunFolderError: disk full or the like.
    """
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text in utf-8; the file appears, or changes, whole or not at all.

    What is not a character, as in a file's name that is not utf-8, is escaped as JSON escapes it.

    Raises:
        RunFolderError: disk full or the like.
    """
    with replacing(path) as fd, os.fdopen(fd, "wb", closefd=False) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def unfinished(name: str) -> tuple[str, int] | None:
    """Return what a temporary was to be called, and its process's number; None if it is not one."""
    match = _TEMPORARY.fullmatch(name)
    return (match["name"], int(match["pid"])) if match else None


def _temporary(path: Path) -> Path:
    """Return what a file is called until it is whole; ``unfinished`` knows it by this name."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def sync(fd: int) -> None:
    """Bring an open file to disk: on macOS out of the drive's cache too, where fsync leaves it."""
    os.fsync(fd)
    if (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None:
        with suppress(OSError):  # not all file systems know it
            fcntl.fcntl(fd, full)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to disk, where that can be done.

    Some network file systems cannot sync a folder, and one that may not be listed cannot be
    opened: there a rename is as durable as it gets.

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
        if error.errno in (errno.EIO, *FULL):
            raise
