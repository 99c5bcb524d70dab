"""The lock of a run's folder: one process at a time; a second one is told who holds it.

It is an advisory ``flock`` on a file: the kernel frees it when its process ends, however it
ends. The holder signs the file. A signature left behind shows that a folder without a
checkpoint is from a charrnn run.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from charrnn.disk import refusals
from charrnn.errors import RunFolderError
from charrnn.layout import LOCK
from charrnn.wording import reason, shown

#: Seconds to retry while another process may be making, signing or removing the lock.
PATIENCE = 1.0

#: The beginning of every signature in a lock.
_SIGNED = b'{"pid": '


@dataclass(frozen=True)
class Lock:
    """A lock file that this process holds."""

    fd: int
    made: bool
    """Whether this process made the file."""
    found: bytes
    """The file's contents before."""
    command: str
    """The command of this process, shown to others that want the lock."""

    @property
    def abandoned(self) -> bool:
        """Whether the last holder left its signature: it was killed, or saved nothing."""
        return bool(self.found)

    def sign(self) -> None:
        """Write to the file who holds the lock, and with what command."""
        me = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": self.command,
        }
        self._rewrite((json.dumps(me) + "\n").encode())

    def guards(self, folder: Path) -> bool:
        """Whether this is still the folder's lock: a lock on a removed file guards nothing."""
        return _is_at(self.fd, folder / LOCK)

    def put_back(self) -> None:
        """Restore the file's former contents."""
        self._rewrite(self.found)

    def clear(self) -> None:
        """Empty the file."""
        self._rewrite(b"")

    def close(self) -> None:
        """Release the lock."""
        os.close(self.fd)

    def _rewrite(self, content: bytes) -> None:
        # Not truncated first: on a full disk the old contents must not be lost.
        os.pwrite(self.fd, content, 0)
        os.ftruncate(self.fd, len(content))


def take_lock(folder: Path, command: str) -> Lock:
    """Take the lock of a run's folder, and sign it.

    Args:
        folder: the run's.
        command: the command of this process, shown to others that want the lock.

    Raises:
        FileNotFoundError: the folder is gone.
        RunFolderError: another process holds the lock, the file is not charrnn's, or the
            folder does not permit locking.
    """
    path = folder / LOCK
    end = time.monotonic() + PATIENCE
    while True:
        fd, made = _open(path)
        try:
            try:
                is_taken = _flock(fd, folder, made)
            except RunFolderError:
                if made:
                    path.unlink()
                raise
            if not is_taken:
                # Without a holder's name it was just taken, or just released: try again.
                if (holder := _holder(fd)) or time.monotonic() > end:
                    raise RunFolderError(
                        f"{shown(folder)}: in use by {holder or 'another process'}: "
                        "wait until it ends, or choose another folder"
                    )
            elif _is_at(fd, path):
                with refusals(folder, "cannot write to the run's folder"):
                    lock = Lock(fd, made, os.pread(fd, 65536, 0), command)
                    # A machine crash may leave zeros in place of the signature.
                    if lock.found.strip(b"\0") and not lock.found.startswith(_SIGNED):
                        raise RunFolderError(
                            f"{shown(folder)}: has a file named {LOCK} that is not charrnn's: "
                            "choose another folder with --run"
                        )
                    try:
                        lock.sign()
                    except OSError:
                        if made:
                            path.unlink()
                        raise
                return lock
            elif time.monotonic() > end:
                raise RunFolderError(
                    f"{shown(folder)}: its file system does not tell one file from another, so the "
                    "run's lock cannot be held: choose a folder elsewhere"
                )
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        time.sleep(0.01)


def _open(path: Path) -> tuple[int, bool]:
    """Return (descriptor of the lock file, whether it is new); errors as for ``take_lock``."""
    try:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), False
    except FileNotFoundError:
        raise
    except OSError:
        with refusals(path.parent, "cannot write to the run's folder"):
            raise


def _flock(fd: int, folder: Path, made: bool) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # SMB's error where another process holds the lock; a file made just now has no holder.
        if error.errno == errno.EACCES and not made:
            return False
        # Some network file systems have no locks.
        raise RunFolderError(
            f"{shown(folder)}: cannot lock the run's folder: {reason(error)}: "
            "choose a folder on a local disk"
        ) from error
    return True


def _is_at(fd: int, path: Path) -> bool:
    """Whether an open file is still the one at its path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.stat())
    return False


def _holder(fd: int) -> str | None:
    """Return who signed the lock, in words; None: nobody, or a dead process on this machine."""
    # On SMB only its holder can read it. RecursionError and OverflowError: it is not charrnn's.
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        who = json.loads(os.pread(fd, 65536, 0))
        pid, host, since, command = (who[key] for key in ("pid", "host", "since", "command"))
        if host != socket.gethostname() or alive(int(pid)):
            what = f" ({shown(str(command))})" if command else ""
            return f"process {int(pid)} on {shown(str(host))} since {shown(str(since))}{what}"
    return None


def alive(pid: int) -> bool:
    """Whether a process with this id exists on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
