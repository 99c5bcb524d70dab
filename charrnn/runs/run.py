"""A training run: text, model, optimiser, lanes and folder, and how far it has come.

``starting`` and ``resuming`` build one, ``training.train`` drives it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from charrnn.command_words import command_line, options_again, resume_command, validating_on
from charrnn.compute.processor import processor
from charrnn.config import BUDGETS, ModelConfig, Record, TrainConfig
from charrnn.errors import NonFiniteError, TakenFolderError
from charrnn.inference.baselines import marks
from charrnn.network.model import CharModel
from charrnn.network.update import Update
from charrnn.storage.checkpoint import Checkpoint, load
from charrnn.storage.reading import TextRecord, most_learnt
from charrnn.storage.runfolder import RunFolder
from charrnn.storage.trained import prefixed
from charrnn.text.corpus import Part
from charrnn.text.stream import Lanes, Windows
from charrnn.text.vocabulary import Vocabulary
from charrnn.wording import shown


@dataclass
class Progress(Record):
    """How far a run has come: all of its state except the tensors."""

    step: int = 0
    """Updates done."""
    characters: int = 0
    """Predictions trained on."""
    learning_rate: float = 0.0
    """That of the latest update, for the recurrence's matrices."""
    seconds: float = 0.0
    """Time of training, validation and saving, over all sittings, by ``clock.Clock``."""
    validation_seconds: float = 0.0
    """The part spent on validations, each with the checkpoints and the sample after it."""
    vain_seconds: float = 0.0
    """The part of ``validation_seconds`` spent on validations that were interrupted."""
    validations: int = 0
    """Validations completed so far."""
    planned_steps: int | None = None
    """Updates of the whole run; None until a budget in minutes has been planned."""
    planned_at_step: int | None = None
    """Step at which the plan was made; None: validations have not been planned yet."""
    planned_at_seconds: float = 0.0
    """When the plan was made, in ``training_seconds``."""
    validate_every: int | None = None
    """Steps between validations."""
    validate_characters: int | None = None
    """Characters of the held-out part that a validation scores."""
    validated_step: int | None = None
    """Step of the latest validation."""
    best_nats: float | None = None
    """Lowest validation loss so far, nats per character."""
    best_step: int | None = None
    validations_since_best: int = 0
    clipped_steps: int = 0
    smooth_loss: float | None = None
    """Running mean of the training loss, nats per character."""
    latest_loss: float | None = None
    """Loss of the log's latest row; None: no row yet, or an older version saved the checkpoint."""
    spike_step: int | None = None
    """Step of the loss spike that was reported."""
    row_loss: float = 0.0
    """Nats of all predictions since the log's last row; the fields below are sums since it, too."""
    row_characters: int = 0
    row_norm: float = 0.0
    row_largest_norm: float = 0.0
    """Not a sum: the largest norm."""
    row_clipped: int = 0
    row_updates: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = {"validate_every": 1, "validate_characters": 2}.get(name, 0)
            if type(value) is int and value < least:
                raise ValueError(f"{name} is {value}, less than {least}")
        for name in ("seconds", "validation_seconds", "vain_seconds", "planned_at_seconds"):
            if not 0 <= getattr(self, name) < 1e10:
                raise ValueError(f"{name} is {getattr(self, name)}")
        if self.validation_seconds > self.seconds * (1 + 1e-9) + 1e-6:
            raise ValueError(f"validation_seconds is {self.validation_seconds}, more than seconds")
        if self.row_updates and not self.row_characters:
            raise ValueError("row_characters is 0")
        if (self.best_nats is None) != (self.best_step is None):
            raise ValueError(f"best_nats is {self.best_nats}, and best_step {self.best_step}")

    @property
    def training_seconds(self) -> float:
        """Seconds of everything except validations."""
        return self.seconds - self.validation_seconds

    @property
    def seconds_a_validation(self) -> float:
        """Mean time of a completed validation; 0 before the first."""
        return (self.validation_seconds - self.vain_seconds) / max(1, self.validations)


@dataclass(frozen=True)
class Change(Record):
    """An option that a resumed run was given anew."""

    step: int
    """Updates done before."""
    was: str
    """The option, as it is typed; empty: none had been given."""
    now: str

    def __post_init__(self) -> None:
        if self.step < 0:
            raise ValueError(f"step is {self.step}, less than 0")


def changes_in(checkpoint: Checkpoint) -> tuple[Change, ...]:
    """Return what a checkpoint's run was given anew, the earliest first.

    Raises:
        CheckpointError: the field is not usable.
    """
    return checkpoint.records("changes", Change) if "changes" in checkpoint.meta else ()


class _Standing:
    """Whether a run goes on, judged by its numbers alone."""

    config: TrainConfig
    progress: Progress
    text: TextRecord

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the last ``patience`` validations brought no new best."""
        patience = self.config.patience
        return patience is not None and self.progress.validations_since_best >= patience

    @property
    def is_used_up(self) -> bool:
        """Whether all planned updates are done."""
        step, planned = self.progress.step, self.progress.planned_steps
        return planned is not None and step >= planned

    @property
    def is_over(self) -> bool:
        """Whether there is no update left to do."""
        return self.is_out_of_patience or self.is_used_up

    @property
    def end(self) -> str:
        """Why there is no update left to do: "done", or "patience" if more were planned."""
        return "patience" if self.is_out_of_patience and not self.is_used_up else "done"

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do: no update, and no validation after the last."""
        is_validated = self.progress.validated_step == self.progress.step
        return self.is_over and (self.text.valid is None or is_validated)


@dataclass(frozen=True)
class RunSummary(_Standing):
    """What a run is and how far it has come, without its text and weights."""

    shape: ModelConfig
    parameters: int
    of_bytes: bool
    """Whether the model reads bytes; they are then counted as characters."""
    config: TrainConfig
    text: TextRecord
    files: int
    """Files of the text; 0: not known, as a checkpoint records neither one nor very many."""
    progress: Progress
    changes: tuple[Change, ...]

    @property
    def unit(self) -> str:
        """What the model reads one at a time."""
        return "byte" if self.of_bytes else "character"

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the training part.

        Raises:
            ValueError: the part is too short for the lanes.
        """
        config, characters = self.config, self.text.length("train")
        windows = Windows.of(characters, config.batch_size, config.bptt, config.loss_last)
        return windows.steps_per_epoch


class Best(NamedTuple):
    """A run's best validation."""

    nats: float
    """Its loss, nats per character."""
    step: int


@dataclass(frozen=True)
class SavedState(_Standing):
    """The last checkpoint that was written or read."""

    path: Path
    """Its file: an earlier checkpoint's if the last was damaged."""
    progress: Progress
    """As it is in that file, like the settings below, which may change when a run is resumed."""
    config: TrainConfig
    text: TextRecord
    keep: int
    """How many earlier checkpoints to keep."""
    device: str


@dataclass
class Run(_Standing):
    """Everything that training needs to continue at ``progress.step``."""

    model: CharModel
    vocabulary: Vocabulary
    config: TrainConfig
    train: Part
    valid: Part | None
    lanes: Lanes
    update: Update
    progress: Progress
    folder: RunFolder
    text: TextRecord
    baselines: dict[str, float]
    """Nats per character of the held-out text without a network: uniform, unigram and bzip2, which
    gets at most its first ``baselines.MOST_COMPRESSED`` characters."""
    notes: list[str]
    """What the user should know, one sentence each."""
    unknown_share: float
    """Share of the held-out characters that the vocabulary lacks."""
    learnt_before: tuple[TextRecord, ...] = ()
    """The texts that the initial weights were trained on, the latest first, without names."""
    changes: tuple[Change, ...] = ()
    """What was given anew when it was resumed, the earliest first."""
    owner: str | None = None
    """The command that resumes the comparison this run belongs to; None: it belongs to none."""
    resumed: bool = False
    saved: SavedState | None = None
    """None: nothing has been saved."""
    better: Best | None = None
    """That of the best checkpoint on disk, as long as the run, resumed from before it, has neither
    come as far again nor found one as good."""

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    def as_saved(self, path: Path) -> SavedState:
        """Return what a checkpoint would have that is written to a path now."""
        progress, keep = replace(self.progress), self.folder.keep
        return SavedState(path, progress, self.config, self.text, keep, self.device.type)

    @property
    def is_saved(self) -> bool:
        """Whether the last checkpoint has all updates, rows, validations, the plan and settings."""
        if self.saved is None:
            return False
        saved, now = self.saved.progress, self.progress
        return (
            self.saved == replace(self.as_saved(self.saved.path), progress=saved)
            and saved.step == now.step
            and saved.row_updates == now.row_updates
            and saved.validated_step == now.validated_step
            and saved.planned_steps == now.planned_steps
        )

    @property
    def was_finished(self) -> bool:
        """Whether nothing is left to do, and was before: what is given anew has no effect then."""
        return self.is_finished and self.saved is not None and self.saved.is_finished

    @property
    def validates_on_learnt(self) -> bool:
        """Whether the initial weights were trained on some of what the run validates on."""
        return self.valid is not None and most_learnt(self.valid, self.learnt_before) != 0

    @property
    def summary(self) -> RunSummary:
        """What the run is, and how far it has come."""
        progress = replace(self.progress)
        if self.better is not None:
            progress.best_nats, progress.best_step = self.better
        return RunSummary(
            shape=self.model.config,
            parameters=self.model.parameter_count(),
            of_bytes=self.vocabulary.is_bytes,
            config=self.config,
            text=self.text,
            files=len(self.train.corpus.files),
            progress=progress,
            changes=self.changes,
        )

    def marks(self) -> dict[str, float]:
        """Return what the characters scored by validations cost without a network.

        Nats per character by name, as in ``baselines``, but of exactly the characters that the best
        validation scored: perhaps only the beginning of what is held out. bzip2 is left out where
        they are more than ``baselines.MOST_COMPRESSED``.

        Raises:
            CorpusError: the text changed since it was scanned.
        """
        assert self.valid is not None, "nothing is validated on"
        scored = self.valid.first(self.progress.validate_characters or self.valid.characters)
        return marks(self.train, scored.predicted, self.vocabulary, in_full=True)

    def command(self, *options: str) -> str:
        """Return the command line that resumes this run; an owner's command takes no options.

        It repeats what was given anew and is not saved yet.
        """
        if self.owner is not None:
            return self.owner
        texts = self.text.to_name
        if self.saved is not None:
            was, now = self.saved, self.as_saved(self.saved.path)
            fields = [*BUDGETS, "lr", "patience"]
            given = {name: getattr(now.config, name) for name in fields}
            given = {n: value for n, value in given.items() if value != getattr(was.config, n)}
            given |= {"keep": now.keep} if now.keep != was.keep else {}
            given |= {"device": now.device} if now.device != was.device else {}
            options += options_again(given, but=options)
            if now.text.valid_texts != was.text.valid_texts:
                options += validating_on(now.text.valid_texts)
            if now.text.texts != was.text.texts:
                texts = texts or now.text.texts
        return resume_command(self.folder.path, *options, texts=texts)

    def is_kept(self, error: Exception) -> bool:
        """Whether the saved state survives an error: the folder may be gone, or another run's."""
        if self.saved is None or isinstance(error, TakenFolderError):
            return False
        return os.path.exists(self.saved.path)  # noqa: PTH110 - which never raises

    def way_back(self) -> str:
        """Return what the user can do after a number was not finite."""
        lower = ("--lr", f"{min(self.config.lr / 2, 1):g}")  # no default is above 1
        # A run of a comparison keeps its rate, so going on would end the same way.
        anew = None if self.owner is None else "compare anew with a lower --lr"
        if self.saved is None:
            return f"nothing was saved before: {anew or f'start again with {command_line(lower)}'}"
        return (
            f"the last good checkpoint is {shown(self.saved.path)} of step "
            f"{self.saved.progress.step:,}: {anew or f'go on from it with: {self.command(*lower)}'}"
        )

    def reconfigure(self, config: TrainConfig) -> None:
        """Use ``config`` from the next update on: another decay, temperature or warm-up."""
        self.config = self.update.config = config
        self.update.optimiser.weight_decay = config.weight_decay
        self.update.capture.forget()  # a captured graph keeps the values it was captured with

    def save(self) -> Path:
        """Write the complete state as the run's last checkpoint; return its path.

        Raises:
            CheckpointError: the previous one is of another format or unreadable; it stays.
            NonFiniteError: the state holds a NaN or an infinity; nothing is written.
            RunFolderError: the file could not be written; earlier ones stay.
        """
        optimiser = self.update.optimiser.state()
        state = {f"optimiser.{name}": tensor for name, tensor in optimiser.items()}
        state |= self._hidden()
        state["generator.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            state["generator.cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            state["generator.mps"] = torch.mps.get_rng_state()
        checkpoint = self._checkpoint(state)
        # Stored outside the progress, too: RunFolder tells checkpoints apart by it alone.
        checkpoint.meta["step"] = self.progress.step
        path = self.folder.save_last(checkpoint)
        self.saved = self.as_saved(path)
        return path

    def save_names(self) -> None:
        """Save where a finished run's text lies now and how much it keeps, if either changed.

        Everything else in its last checkpoint stays: this device may be another one, and a changed
        rate has had no effect.

        Raises:
            CheckpointError: the last checkpoint is now gone, damaged or of another format.
            RunFolderError: as for ``save``.
        """
        assert self.saved is not None, "it goes on"
        named = replace(self.saved, text=self.text, keep=self.folder.keep)
        if named == self.saved:
            return
        checkpoint = load(self.saved.path)
        meta = checkpoint.meta | {"text": self.text.to_dict(), "keep": self.folder.keep}
        path = self.folder.save_last(replace(checkpoint, meta=meta))
        self.saved = replace(named, path=path)

    def count_validation(self, nats: float) -> bool:
        """Take note of a validation's loss; if it is the lowest so far, save the weights.

        A run resumed from before its best checkpoint counts as it did the first time, so that the
        same patience ends it at the same step. It keeps that checkpoint, though, unless it finds
        one as good: it may take another course this time. Once it has come as far again, that
        checkpoint is its best.

        Returns:
            Whether the best checkpoint now has these weights.

        Raises:
            NonFiniteError, RunFolderError: as in ``save_best``.
        """
        progress, better = self.progress, self.better
        is_lower = progress.best_nats is None or nats < progress.best_nats
        if is_lower:
            progress.best_nats, progress.best_step = nats, progress.step
        progress.validations_since_best = 0 if is_lower else progress.validations_since_best + 1
        if better is None or nats <= better.nats:
            self.better = None
            if is_lower:
                self.save_best()
            return is_lower
        if progress.step >= better.step:
            in_vain = max(1, progress.validations_since_best)
            progress.validations_since_best = 0 if progress.step == better.step else in_vain
            self.adopt_better()
        return False

    def adopt_better(self) -> None:
        """Count the best checkpoint on disk as this run's best, if it is better."""
        if self.better is not None:
            self.progress.best_nats, self.progress.best_step = self.better
            self.better = None

    def save_best(self) -> None:
        """Write the weights alone as the run's best checkpoint.

        Raises:
            NonFiniteError: a weight is a NaN or an infinity; nothing is written.
            RunFolderError: the file could not be written; the earlier one stays.
        """
        self.folder.save_best(self._checkpoint({}))

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the optimiser's state, the hidden state and the random number generators.

        Raises:
            ValueError: a tensor is missing or does not fit; the message names it.
        """
        self.update.optimiser.load_state(prefixed(tensors, "optimiser."))
        for name, part_BH in self._hidden().items():
            if name not in tensors:
                raise ValueError(f"{name} is missing")
            if tensors[name].shape != part_BH.shape:
                raise ValueError(
                    f"{name} is {list(tensors[name].shape)}, the run needs {list(part_BH.shape)}"
                )
            part_BH.copy_(tensors[name])
        try:
            # A checkpoint written on another kind of device has no state of this GPU's generator,
            # which then starts from the run's seed.
            torch.manual_seed(self.config.seed)
            torch.set_rng_state(tensors["generator.cpu"])
            if self.device.type == "cuda" and "generator.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["generator.cuda"], self.device)
            elif self.device.type == "mps" and "generator.mps" in tensors:
                torch.mps.set_rng_state(tensors["generator.mps"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"generator.cpu or that of the GPU: {error}") from error

    def _hidden(self) -> dict[str, Tensor]:
        """Return the tensors of the hidden state by their names in a checkpoint."""
        return {
            f"hidden.{layer}.{name}": part_BH
            for layer, (cell, state) in enumerate(
                zip(self.model.layers(), self.update.hidden, strict=True)
            )
            for name, part_BH in zip(cell.states, state, strict=True)
        }

    def _checkpoint(self, state: Mapping[str, Tensor]) -> Checkpoint:
        """Return a checkpoint of the model's weights and a state, after checking all are finite."""
        meta = {
            "model": self.model.config.to_dict(),
            "vocabulary": self.vocabulary.to_json(),
            "training": self.config.to_dict(),
            "text": self.text.to_dict(),
            "progress": self.progress.to_dict(),
            "keep": self.folder.keep,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "processor": processor(),
        }
        if self.device.type == "cuda":
            meta["gpu"] = torch.cuda.get_device_name(self.device)
        if self.learnt_before:
            meta["learnt_before"] = [one.to_dict() for one in self.learnt_before]
        if self.changes:
            meta["changes"] = [one.to_dict() for one in self.changes]
        weights = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        saved = {name: tensor.detach().cpu() for name, tensor in {**weights, **state}.items()}
        for name, tensor in saved.items():
            if not torch.isfinite(tensor).all():
                raise NonFiniteError(
                    f"{name} is not finite after step {self.progress.step:,}, and was not saved; "
                    f"{self.way_back()}"
                )
        return Checkpoint(saved, meta)
