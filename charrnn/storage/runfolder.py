"""A run's folder: its lock, checkpoints and log. All writing to it goes through this module.

::

    best.safetensors            the best by validation loss; used to sample and score
    last.safetensors            the newest; used by --resume
    step-00001200.safetensors   former ``last`` checkpoints, as many as asked for
    metrics.jsonl               one JSON object per line
    result.json                 the result of a finished run of a comparison
    lock                        held (flock) by the process that trains, and names it

The kernel frees the lock when its process ends, however it ends. Files are
replaced as a whole or not at all; while one is written it has a name such as
``.last.safetensors.4711-0a1b2c3d.tmp``. The next run in the folder removes
what a dead process left behind. Files with other names are never touched.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from charrnn.command_words import resume_command
from charrnn.disk import exists, followed, refusals, replacing, sync_folder, unfinished, write_json
from charrnn.errors import CheckpointError, RunFolderError, TakenFolderError
from charrnn.layout import BEST, LAST, LOCK, LOG, PLAN, RESULT, generation, step_of_generation
from charrnn.storage.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    load,
    read_description,
    save,
    write,
)
from charrnn.storage.lock import PATIENCE, Lock, alive, take_lock
from charrnn.storage.metrics import Log
from charrnn.wording import shown


class RunFolder:
    """A run's folder, held by this process until ``close``.

    Made by ``create`` (a new run) or ``open_existing`` (a run to resume); a
    context manager. One process at a time holds a folder.

    Attributes:
        path: the folder.
        keep: how many former ``last`` checkpoints to keep, 0 or more; 1 unless it is changed.
    """

    def __init__(self, path: Path, lock: Lock) -> None:
        """Take over a held lock; for ``create`` and ``open_existing`` only."""
        self.path = path
        self.keep = 1
        self._lock: Lock | None = lock
        self._log: Log | None = None
        # What ``close`` removes if nothing was saved, in this order: files, then folders.
        self._removable: list[Path] = []
        # Steps of the checkpoint files that this process wrote, or loaded and found intact.
        self._whole: dict[Path, int] = {}

    # Taking and leaving the folder ------------------------------------------

    @classmethod
    def create(cls, path: Path, command: str = "") -> Self:
        """Make a run's folder, with its parents, and hold it.

        An existing folder is taken if it holds no run; whatever else is in it
        stays as it is. If ``close`` is called before anything was saved, what
        was made here is removed again.

        Args:
            path: the folder.
            command: the command of this process, shown to others that want the lock.

        Raises:
            RunFolderError: it holds a run already, another process holds it, or it cannot be made.
        """
        made, lock = _make_and_lock(path, command)
        folder = cls(path, lock)
        folder._removable = [path / LOCK, *made] if lock.made else []
        try:
            remove_stale(path)
            folder._refuse_another_run(lock.abandoned)
            folder._removable = [path / LOG, path / LOCK, *made]
            folder._log = Log(path)
            folder._log.clear()  # rows of a run that ended before its first save
        except BaseException:
            folder._leave_as_found()
            raise
        return folder

    @classmethod
    def open_existing(cls, path: Path, command: str = "") -> Self:
        """Hold the folder of a run to resume; arguments as in ``create``.

        Raises:
            RunFolderError: there is no run in it, another process holds it, or it is not writable.
        """
        with refusals(path, "cannot read the run's folder"):
            if not (checkpoints_in(path) or exists(path / LOCK)):
                raise _nothing_to_resume(path)
        try:
            lock = take_lock(path, command)
        except FileNotFoundError:
            raise _nothing_to_resume(path) from None
        folder = cls(path, lock)
        try:
            remove_stale(path)
            if not checkpoints_in(path):
                raise _nothing_to_resume(path, is_abandoned=lock.abandoned)
            folder._log = Log(path)
        except BaseException:
            folder._leave_as_found()
            raise
        return folder

    def _leave_as_found(self) -> None:
        """Release the folder as it was found: this process has not taken it over."""
        assert self._lock is not None
        with suppress(OSError):
            # A signature would claim that the log is from a charrnn run.
            self._lock.put_back()
        self.close()

    def close(self) -> None:
        """Release the folder. A new run that saved nothing leaves nothing behind."""
        if self._lock is None:
            return
        if self._log is not None:
            self._log.close()
            self._log = None
        lock, self._lock = self._lock, None
        folders: list[Path] = []
        # Failing to tidy up must not hide the error that ended this run.
        try:
            with suppress(OSError, RunFolderError):
                # Without a checkpoint the signature stays: it shows that the log is charrnn's.
                if checkpoints_in(self.path):
                    lock.clear()
                is_ours = lock.guards(self.path)  # otherwise its files are another run's
                for path in self._removable if is_ours else ():
                    if path.is_dir():
                        folders.append(path)
                    else:
                        path.unlink(missing_ok=True)
        finally:
            lock.close()
        # Only now: NFS keeps a removed file that is open, under another name. A folder in which
        # someone else put something is not empty, and so stays.
        with suppress(OSError):
            for folder in folders:
                folder.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ensure_held(self) -> None:
        """Retake the lock if its file was removed; refuse if another run has been here since.

        Raises:
            TakenFolderError: another run has taken the folder.
            RunFolderError: the lock or the log cannot be checked or reopened.
        """
        assert self._lock is not None, "the folder is closed"
        with refusals(self.path, "cannot save"):
            if self._lock.guards(self.path):
                return
        lost = "was removed, or its lock was, while this run was going on"
        try:
            lock = take_lock(self.path, self._lock.command)
        except FileNotFoundError:
            return  # the folder is gone: writing will report that
        except RunFolderError as error:
            if error.__cause__ is not None:  # the system refused; no other process has taken it
                raise
            raise TakenFolderError(f"{error}; it {lost}") from error
        if not lock.made:
            lock.put_back()
            lock.close()
            raise TakenFolderError(
                f"{shown(self.path)}: {lost}, and another has been there since: nothing more of "
                "this one is saved"
            )
        self._lock.close()
        self._lock = lock
        # The log may have been removed with it.
        removed, self._log = self._held_log, Log(self.path)
        removed.close()

    # Checkpoints --------------------------------------------------------------

    def save_best(self, checkpoint: Checkpoint) -> Path:
        """Write ``best.safetensors``; return its path.

        Raises:
            TakenFolderError: another run has taken the folder since.
            RunFolderError: disk full or the like; the previous one stays.
        """
        self._ensure_held()
        best = self.path / BEST
        save(best, checkpoint)
        self._removable = []
        return best

    def save_last(self, checkpoint: Checkpoint) -> Path:
        """Write ``last.safetensors``; return its path.

        The previous one becomes ``step-XXXXXXXX.safetensors``. Once the new
        one is on disk, all but the ``keep`` newest intact ones of these are
        removed.

        Args:
            checkpoint: its ``meta`` has ``step``.

        Raises:
            CheckpointError: the previous one has another format or is unreadable.
            TakenFolderError: another run has taken the folder since.
            RunFolderError: disk full or the like; everything stays as it was.
        """
        self._ensure_held()
        last, step = self.path / LAST, checkpoint.require("step", int)
        earlier = self._step_if_whole(last)
        self._held_log.sync()  # the rows up to this step belong to what is saved
        with replacing(last) as file:
            write(file, checkpoint)
            if earlier is not None and earlier != step and self.keep > 0:
                kept = self.path / generation(earlier)
                _link(last, kept)
                self._whole[kept] = earlier
        self._whole[last] = step
        self._removable = []
        self._prune()
        return last

    def save_result(self, values: dict[str, Any]) -> None:
        """Write ``result.json``, the result of the finished run.

        Raises:
            TakenFolderError: another run has taken the folder since.
            RunFolderError: disk full or the like.
        """
        self._ensure_held()
        write_json(self.path / RESULT, values)

    def load_last(self) -> tuple[Checkpoint, list[str]]:
        """Return the newest intact checkpoint with state, and a note on each one passed over.

        Raises:
            DamagedCheckpointError: none is intact.
            CheckpointError: none has state, or a newer one has another format or is unreadable.
            RunFolderError: the folder cannot be read.
        """
        passed_over: list[str] = []
        damage: DamagedCheckpointError | None = None
        for path in (self.path / LAST, *_generations(self.path)):
            try:
                if not exists(path):
                    passed_over.append(f"{path.name}: missing")
                    continue
                checkpoint = load(path)
            except DamagedCheckpointError as error:
                passed_over.append(f"{path.name}: {error.flaw}")
                damage = damage or error
                continue
            step = checkpoint.require("step", int)
            self._whole[path] = step
            return checkpoint, [
                f"{flaw}: took {path.name} instead, step {step}" for flaw in passed_over
            ]
        instead = ": start anew, in another folder"
        if self._has_weights():
            instead = f"; {BEST} has weights to start from with --init-from, in another folder"
        if damage is None:
            raise CheckpointError(
                f"{shown(self.path)}: holds {BEST} only, which has no state to resume from{instead}"
            )
        flaw = f"{damage.flaw}, and no checkpoint is whole to resume from"
        raise DamagedCheckpointError(damage.path, flaw, instead) from damage

    def _has_weights(self) -> bool:
        """Whether the best checkpoint is there and whole."""
        with suppress(CheckpointError):
            load(self.path / BEST)
            return True
        return False

    def _step_if_whole(self, path: Path) -> int | None:
        """Return the step of a checkpoint file; None if there is none or it is damaged."""
        with refusals(path, "cannot save"):
            is_there = exists(path)
        if not is_there:
            self._whole.pop(path, None)  # someone has removed it since
        elif path not in self._whole:
            with suppress(DamagedCheckpointError):
                self._whole[path] = load(path).require("step", int)
        return self._whole.get(path)

    def _prune(self) -> None:
        """Remove all but the ``keep`` newest intact checkpoints beside ``last``."""
        kept = 0
        for path in _generations(self.path):
            try:
                whole = self._step_if_whole(path) is not None
            except CheckpointError:
                continue  # of another format, or unreadable: not ours to remove
            kept += whole
            if not whole or kept > self.keep:
                # A file that cannot be removed only takes space: the new one is safe.
                with suppress(OSError):
                    path.unlink()
                self._whole.pop(path, None)

    # The log ------------------------------------------------------------------

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to ``metrics.jsonl``; errors as for ``Log.append``."""
        self._held_log.append(row)

    def rewind_log(self, step: int, *, logged: bool = True, validated: bool = True) -> None:
        """Drop the rows after ``step`` from ``metrics.jsonl``, as ``Log.rewind`` does."""
        self._held_log.rewind(step, logged=logged, validated=validated)

    @property
    def _held_log(self) -> Log:
        assert self._log is not None, "the folder is closed"
        return self._log

    # What is in the folder already ---------------------------------------------

    def _refuse_another_run(self, abandoned: bool) -> None:
        """Raise RunFolderError if the folder holds a run; an abandoned one's log does not count."""
        if checkpoints_in(self.path):
            where = ""
            again = resume_command(self.path, texts=texts_to_name(self.path))
            go_on = (
                "continue it (a finished one with a larger --minutes, --epochs or --steps) with: "
                f"{again};"
            )
            try:
                checkpoint, _ = self.load_last()
                where = f" at step {checkpoint.require('step', int)}"
            except CheckpointError as error:
                if isinstance(error, DamagedCheckpointError) or not has_state(self.path):
                    go_on = (
                        f"{BEST} has weights for --init-from, but there is no whole state to go on "
                        f"from: keep it elsewhere, remove all *.safetensors and {LOG} here,"
                        if self._has_weights()
                        else "there is no whole checkpoint to go on from: remove its *.safetensors "
                        f"and {LOG},"
                    )
            raise RunFolderError(
                f"{shown(self.path)}: holds a run already{where}: {go_on} or choose another folder "
                "with --run"
            )
        if not abandoned and (self.path / LOG).exists():
            raise RunFolderError(
                f"{shown(self.path)}: holds a metrics.jsonl without a checkpoint: remove it, or "
                "choose another folder with --run"
            )


# Files -------------------------------------------------------------------------


def _nothing_to_resume(path: Path, *, is_abandoned: bool = False) -> RunFolderError:
    """Return the error for a folder without a checkpoint, or for what is no folder.

    Args:
        path: its path.
        is_abandoned: whether its log is from a run that was killed: a new one replaces that.
    """
    instead = "leave --resume out to start one there"
    if path.is_file():
        such = f", such as {shown(path.parent)}" if has_state(path.parent) else ""
        instead = f"it is a file; name the folder of a run{such}"
    elif not is_abandoned and exists(path / LOG):
        instead = f"it has {LOG} without a checkpoint: remove that, and {instead}"
    return RunFolderError(f"{shown(path)}: holds no run to resume: {instead}")


def _entries(folder: Path) -> list[Path]:
    with refusals(folder, "cannot read the run's folder"):
        return list(folder.iterdir())


def _generations(folder: Path) -> list[Path]:
    """Return the earlier checkpoints, newest first."""
    found = [
        (step, path)
        for path in _entries(folder)
        if (step := step_of_generation(path.name)) is not None
    ]
    return [path for _, path in sorted(found, reverse=True)]


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoint files of the run in a folder: newest first, then the best.

    The list is empty if there is no such folder.

    Raises:
        RunFolderError: the folder cannot be read.
    """
    with refusals(folder, "cannot read the run's folder"):
        if not exists(folder) or not folder.is_dir():
            return []
        named = [folder / LAST, *_generations(folder), folder / BEST]
        return [path for path in named if exists(path)]


def remove_stale(folder: Path) -> None:
    """Remove the temporary files of dead processes in the folder of a run, or of a comparison.

    This process has none there yet, and holds the run, or one of the comparison.

    Raises:
        RunFolderError: the folder cannot be read.
    """
    for path in _entries(folder):
        name, pid = unfinished(path.name) or ("", 0)
        ours = name in (BEST, LAST, LOG, RESULT, PLAN) or step_of_generation(name) is not None
        if ours and (pid == os.getpid() or not alive(pid)):
            with suppress(OSError):
                path.unlink()


def has_state(folder: Path) -> bool:
    """Whether a folder holds a run to resume: a checkpoint with its complete state.

    Raises:
        RunFolderError: the folder cannot be read.
    """
    return any(path.name != BEST for path in checkpoints_in(folder))


def texts_to_name(folder: Path) -> tuple[str, ...]:
    """Return the texts that a command must name to go on with the run in a folder.

    TEXT, if that read standard input; none, or where its newest checkpoint cannot be read.
    """
    with suppress(CheckpointError, RunFolderError, LookupError, TypeError):
        if "-" in read_description(checkpoints_in(folder)[0]).meta["text"]["texts"]:
            return ("TEXT",)
    return ()


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system has no hard links, copy it."""
    source = followed(source)  # systems differ in what a hard link to a symbolic link is
    with suppress(FileNotFoundError):
        if target.samefile(source):
            return
        target.unlink()
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        with source.open("rb") as old, replacing(target) as new:
            shutil.copyfileobj(old, new)


def _make_and_lock(path: Path, command: str) -> tuple[list[Path], Lock]:
    """Make a run's folder; return the folders that were made, innermost first, and the lock.

    Raises:
        RunFolderError: the folder cannot be made or locked; what was made is removed again.
    """
    made: list[Path] = []
    end = time.monotonic() + PATIENCE
    try:
        with refusals(path, "cannot make the run's folder"):
            while True:
                try:
                    _make(path, made)
                    return made, take_lock(path, command)
                except (FileNotFoundError, FileExistsError):
                    # Another run that saved nothing may be removing the folder at this moment.
                    if time.monotonic() > end:
                        raise
                time.sleep(0.01)
    except BaseException:
        for folder in made:
            with suppress(OSError):  # someone else may have put something there
                folder.rmdir()
        raise


def _make(path: Path, made: list[Path]) -> None:
    """Make a folder and its parents; put the new ones into ``made``, innermost first."""
    for folder in [*reversed(path.parents), path]:
        try:
            folder.mkdir()
        except OSError:  # for a folder that exists, a read-only file system may say EROFS
            if folder.is_dir():
                continue
            if folder.is_file():
                raise NotADirectoryError(errno.ENOTDIR, f"{shown(folder)} is a file") from None
            raise
        else:
            made.insert(0, folder)
            sync_folder(folder.parent)


def files_of_run(checkpoint: Path) -> list[Path]:
    """Return a checkpoint's file and its run's files beside it; some may not exist."""
    folder = checkpoint.parent
    others = [folder / name for name in (LOG, RESULT, LOCK)]
    return [checkpoint, *folder.glob("*.safetensors"), *others]
