"""A run's status, from its checkpoint: what it is, how far it has come, how to go on.

No text is read.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from charrnn.command_words import resume_command
from charrnn.config import TrainConfig
from charrnn.errors import CheckpointError, RunFolderError
from charrnn.network.model import CharModel
from charrnn.runs.comparison_folder import going_on
from charrnn.runs.run import Progress, RunSummary, changes_in
from charrnn.storage.checkpoint import Checkpoint, DamagedCheckpointError, find, load
from charrnn.storage.reading import TextRecord
from charrnn.storage.runfolder import checkpoints_in
from charrnn.storage.trained import load_model
from charrnn.text.vocabulary import Vocabulary
from charrnn.wording import shown


@dataclass(frozen=True)
class RunStatus:
    """What a run is, how far it has come, and on what machine and versions."""

    path: Path
    """As the user named it: a checkpoint or a run's folder."""
    file: Path
    """The checkpoint; for a folder, the newest in it."""
    run: RunSummary
    device: str
    threads: int
    processor: str | None
    """None in older checkpoints."""
    versions: dict[str, str]
    """Of ``charrnn`` and ``torch``."""
    digest: str | None
    """The SHA-256 that the checkpoint has of itself, in hexadecimal."""
    is_state: bool
    """Whether the checkpoint has all that a run can go on from, and not just weights."""
    go_on: str | None
    """The command that goes on with the run; None: it is finished, or would not go on from this
    checkpoint."""
    newer: Path | None
    """The run's folder, if it holds a newer state than this; the file, if the newest is damaged."""

    @property
    def is_finished(self) -> bool | None:
        """Whether the run has nothing left to do; None: weights alone cannot tell."""
        return self.run.is_finished if self.is_state else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        run, text, progress = self.run, self.run.text, self.run.progress
        return {
            "checkpoint": str(self.file),
            "sha256": self.digest,
            "parameters": run.parameters,
            "model": run.shape.to_dict(),
            "training": run.config.to_dict(),
            "changes": [change.to_dict() for change in run.changes],
            "texts": text.texts,
            "valid_texts": text.valid_texts,
            "encoding": text.encoding,
            "fingerprint": text.fingerprint,
            "train_characters": text.length("train"),
            "valid_characters": text.length("valid"),
            "test_characters": text.length("test"),
            "device": self.device,
            "threads": self.threads,
            "processor": self.processor,
            "versions": self.versions,
            "step": progress.step,
            "planned_steps": progress.planned_steps,
            "epoch": progress.step / run.steps_per_epoch,
            "characters": progress.characters,
            "seconds": progress.seconds,
            "best_nats_per_char": progress.best_nats,
            "best_step": progress.best_step,
            "validate_characters": progress.validate_characters,
            "complete": self.is_finished,
            "go_on": self.go_on,
        }


def read_status(path: Path) -> RunStatus:
    """Read a run's status; the whole checkpoint is checked.

    Args:
        path: a checkpoint, or a run's folder (its newest checkpoint is read).

    Raises:
        CheckpointError: the file is not a whole checkpoint, or one of its fields is not usable.
    """
    file = _newest(path)
    model, vocabulary, checkpoint = load_model(file, torch.device("cpu"))
    run = summary_of(checkpoint, model, vocabulary)
    text = run.text
    try:
        _ = run.steps_per_epoch  # to be shown; here its error can name the file
    except ValueError as error:
        raise CheckpointError(f"{shown(file)}: the field 'text' is not usable: {error}") from error
    go_on, newer = None, None
    there = _names(file.parent)
    if file.name in there:
        before = there[: there.index(file.name)]
        newest = next((name for name in before if _counts(file.parent / name)), None)
        if newest is not None:
            newer = file.parent if newest == there[0] else file.parent / newest
        elif checkpoint.is_state and not run.is_finished:
            go_on = _command(file.parent, text)
    return RunStatus(
        path=path,
        file=file,
        run=run,
        device=checkpoint.require("device", str),
        threads=checkpoint.require("threads", int),
        processor=checkpoint.require("processor", str) if "processor" in checkpoint.meta else None,
        versions=checkpoint.versions,
        digest=checkpoint.digest,
        is_state=checkpoint.is_state,
        go_on=go_on,
        newer=newer,
    )


def summary_of(checkpoint: Checkpoint, model: CharModel, vocabulary: Vocabulary) -> RunSummary:
    """Return the summary of the run that a checkpoint is of.

    Args:
        checkpoint: the model's.
        model: what it holds.
        vocabulary: the model's.

    Raises:
        CheckpointError: one of its fields is not usable.
    """
    text = checkpoint.record("text", TextRecord)
    return RunSummary(
        shape=model.config,
        parameters=model.parameter_count(),
        of_bytes=vocabulary.is_bytes,
        config=checkpoint.record("training", TrainConfig),
        text=text,
        files=len(text.files),
        progress=checkpoint.record("progress", Progress),
        changes=changes_in(checkpoint),
    )


def _newest(path: Path) -> Path:
    """Return the checkpoint that a path names; for a run's folder, the newest."""
    with suppress(OSError):  # ``find`` reports it
        if path.is_dir() and (there := _names(path)):
            return path / there[0]
    return find(path)


def _counts(file: Path) -> bool:
    """Whether resuming looks at a checkpoint: a damaged one is passed over."""
    try:
        load(file)
    except DamagedCheckpointError:
        return False
    except CheckpointError:  # of another format, or unreadable: that is reported
        pass
    return True


def _names(folder: Path) -> list[str]:
    """Return the names of the checkpoints of the run in a folder, newest first."""
    with suppress(RunFolderError):  # it cannot be listed, but files in it may be readable
        return [path.name for path in checkpoints_in(folder)]
    return []


def _command(folder: Path, text: TextRecord) -> str:
    """Return the command that goes on with the run in a folder, or with its comparison."""
    with suppress(RunFolderError):  # an unusable plan is reported by the command itself
        return going_on(folder, text.to_name)
    return resume_command(folder, texts=text.to_name)
