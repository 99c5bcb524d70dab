"""The training loop: a generator of events, readable in the order things happen.

Nothing here prints or catches a signal. The caller consumes the events and says,
through ``should_stop``, when to leave; the run then stops at the edge of a step
with its complete state saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charrnn.config import SampleConfig
from charrnn.errors import NonFiniteError
from charrnn.evaluation import Interrupted, Scores, score
from charrnn.recipe import Schedule, plan_validations
from charrnn.run import Run
from charrnn.sampling import sample
from charrnn.update import UpdateResult

__all__ = ["Event", "Finished", "Logged", "Planned", "Sampled", "Saved", "Spiked", "Validated"]
__all__ += ["train"]

#: Updates between rows of the log.
LOG_EVERY = 10
#: Seconds between checkpoints, beside those that follow a validation.
SAVE_EVERY = 60.0
#: A checkpoint may take this share of the time since the one before.
SAVE_SHARE = 0.02
#: The running mean of the loss looks back about this many rows.
SMOOTHING = 20
#: A row's loss this far above the running mean is a spike, in nats.
SPIKE = 1.0
#: Characters of the samples shown while training.
SHOWN_LENGTH = 240


@dataclass(frozen=True)
class Planned:
    """A budget became a number of updates."""

    total_steps: int
    validate_every: int | None
    validate_characters: int | None


@dataclass(frozen=True)
class Logged:
    """Some updates were done; ``row`` is what metrics.jsonl got."""

    row: dict[str, Any]
    total_steps: int | None
    """Planned updates of the whole run."""
    eta: float | None
    """Seconds to go by the plan."""


@dataclass(frozen=True)
class Validated:
    """The held-out part was scored."""

    row: dict[str, Any]
    scores: Scores
    best: bool
    """Whether this is the lowest loss so far."""


@dataclass(frozen=True)
class Sampled:
    """A text drawn from the model as it is now."""

    text: str


@dataclass(frozen=True)
class Saved:
    """The complete state is on disk."""

    path: Path
    step: int


@dataclass(frozen=True)
class Spiked:
    """The loss jumped; told once a run."""

    step: int
    before: float
    after: float


@dataclass(frozen=True)
class Finished:
    """The loop is over; nothing follows."""

    reason: str
    """"done", "patience", or what ``should_stop`` said."""
    complete: bool
    """Whether the budget was used up or patience ran out."""


Event = Planned | Logged | Validated | Sampled | Saved | Spiked | Finished


def train(run: Run, should_stop: Callable[[], str | None] = lambda: None) -> Iterator[Event]:
    """Train a run to the end of its budget.

    Args:
        run: from ``run.start`` or ``run.resume``; its progress is kept up to date.
        should_stop: asked at every step's edge and within validations; anything but
            None stops the run there, with its state saved.

    Yields:
        What happens, in order; ``Finished`` last.

    Raises:
        NonFiniteError: the loss or a gradient is no number; no weight was changed
            by it and no file written.
        CorpusError: the text changed; the state is saved before it is raised.
        RunFolderError: a file could not be written; earlier ones are whole.
    """
    yield from _Loop(run, should_stop).events()


class _Loop:
    """One sitting of a run."""

    def __init__(self, run: Run, should_stop: Callable[[], str | None]) -> None:
        self.run = run
        self.should_stop = should_stop
        self.clock = time.monotonic()
        #: Where the measurement of the speed begins: (step, seconds).
        self.speed_from: tuple[int, float] | None = None
        self.row_from = (run.progress.characters, run.progress.seconds)
        self.pending: list[tuple[UpdateResult, int]] = []
        self.saved_at = run.progress.seconds
        self.saved_step: int | None = run.progress.step if run.resumed else None
        self.save_seconds = 0.0
        self.stop_reason: str | None = None

    def events(self) -> Iterator[Event]:
        """Yield what happens until the run is over or stopped."""
        progress, config = self.run.progress, self.run.config
        if progress.planned_steps is not None and progress.validate_characters is None:
            yield self._plan_validations()
        chunks = self.run.lanes.chunks(progress.step)
        while True:
            self._tick()
            if self._stopping():
                break
            if progress.planned_steps is None and self._speed_is_known():
                yield from self._plan()
                continue
            if self._validation_due():
                yield from self._validate()
                if self._stopping():
                    break
            if self._is_over():
                break
            if self._save_due():
                yield self._save()
            try:
                chunk = next(chunks)
            except Exception:
                # The text changed or vanished: what was learnt from it is safe.
                self._flush()
                self._save()
                raise
            factor = self.run.schedule().factor(progress.step)
            self.run.update.optimiser.set_rates(config.lr * factor, config.lr_adam * factor)
            self.pending.append((self.run.update(chunk), chunk.characters))
            progress.step += 1
            progress.characters += chunk.characters
            # On a CPU every update is looked at before the next; a GPU is not made to wait.
            if self.run.device.type != "cuda" or progress.step % LOG_EVERY == 0:
                self._flush()
            if progress.step % LOG_EVERY == 0:
                yield from self._log()
        if self.saved_step != progress.step:
            yield self._save()
        if self.stop_reason is not None:
            yield Finished(self.stop_reason, complete=False)
        else:
            yield Finished("patience" if self._out_of_patience() else "done", complete=True)

    def _tick(self) -> None:
        """Add the time since the last tick to the run's clock."""
        now = time.monotonic()
        self.run.progress.seconds += now - self.clock
        self.clock = now

    def _stopping(self) -> bool:
        self.stop_reason = self.stop_reason or self.should_stop()
        if self.stop_reason is not None:
            self._flush()
        return self.stop_reason is not None

    def _is_over(self) -> bool:
        progress = self.run.progress
        planned = progress.planned_steps
        return (planned is not None and progress.step >= planned) or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        patience = self.run.config.patience
        return patience is not None and self.run.progress.validations_since_best >= patience

    # -- the plan ------------------------------------------------------------------

    def _speed_is_known(self) -> bool:
        """Whether a budget in minutes has come to the end of the part that holds the rate.

        The speed is that of the second half of this part: the first updates warm up
        caches and pools, and on a GPU they are not captured yet.
        """
        progress, minutes = self.run.progress, self.run.config.minutes
        assert minutes is not None, "a budget in epochs or steps is planned at the start"
        half = Schedule.HOLD * minutes * 60 / 2
        if progress.step == 0 or self.pending:
            return False
        if self.speed_from is None:
            if progress.seconds >= half:
                self.speed_from = (progress.step, progress.seconds)
            return False
        step, seconds = self.speed_from
        return progress.step > step and progress.seconds >= seconds + half

    def _measured_speed(self) -> float:
        """Return updates per second since ``speed_from``."""
        assert self.speed_from is not None
        step, seconds = self.speed_from
        return (self.run.progress.step - step) / (self.run.progress.seconds - seconds)

    def _plan(self) -> Iterator[Event]:
        """Turn the minutes that are left into updates, validations and saves taken off."""
        progress, minutes = self.run.progress, self.run.config.minutes
        assert minutes is not None
        speed = self._measured_speed()
        left = minutes * 60 - progress.seconds
        estimate = progress.step + max(1, int(left * speed))
        progress.planned_steps = estimate
        planned = self._plan_validations()
        if progress.validate_every is not None:
            before = progress.seconds
            yield from self._validate()
            if self._stopping():
                # Planned again when the run goes on: this plan has not been used yet.
                progress.planned_steps = progress.validate_every = None
                progress.validate_characters = None
                return
            self._tick()
            cost = progress.seconds - before
            number = math.ceil(estimate / progress.validate_every)
            left = minutes * 60 - progress.seconds - number * cost
        progress.planned_steps = progress.step + max(1, int(left * speed * 0.98))
        yield Planned(progress.planned_steps, planned.validate_every, planned.validate_characters)

    def _plan_validations(self) -> Planned:
        progress, config = self.run.progress, self.run.config
        assert progress.planned_steps is not None
        if self.run.valid is not None:
            every, characters = plan_validations(
                progress.planned_steps,
                config.batch_size * (config.loss_last or config.bptt),
                self.run.valid.characters,
            )
            progress.validate_every = config.validate_every or every
            progress.validate_characters = characters
        return Planned(
            progress.planned_steps, progress.validate_every, progress.validate_characters
        )

    # -- what an update leaves behind ------------------------------------------------

    def _flush(self) -> None:
        """Read the results of the updates since the last flush and add them up."""
        progress = self.run.progress
        first = progress.step - len(self.pending) + 1
        for step, (result, characters) in enumerate(self.pending, start=first):
            loss, norm = float(result.loss), float(result.norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self._non_finite(step, loss, norm)
            clipped = bool(result.clipped)
            progress.clipped_steps += clipped
            progress.sums["loss"] += loss * characters
            progress.sums["characters"] += characters
            progress.sums["norm"] += norm
            progress.sums["clipped"] += clipped
        self.pending.clear()

    def _non_finite(self, step: int, loss: float, norm: float) -> NonFiniteError:
        run = self.run
        passed, chunk, character = run.lanes.position(step - 1)
        what = "loss" if not math.isfinite(loss) else "gradient"
        recent = "none" if run.progress.smooth_loss is None else f"{run.progress.smooth_loss:.4f}"
        safe = run.folder.path / "last.safetensors"
        go_on = (
            f"the last good checkpoint is {safe}; go on from it with "
            f"--resume --lr {run.config.lr / 2:g} --run {run.folder.path}"
            if safe.exists()
            else f"nothing was saved before; start again with --lr {run.config.lr / 2:g}"
        )
        return NonFiniteError(
            f"the {what} is no number at step {step} (pass {passed + 1}, window {chunk + 1}, "
            f"character {character:,} of each lane): loss {loss:g}, gradient norm {norm:g}, "
            f"recent mean loss {recent}; the weights were not touched; {go_on}"
        )

    def _row(self) -> dict[str, Any]:
        self._tick()
        progress = self.run.progress
        return {
            "step": progress.step,
            "epoch": progress.step / self.run.lanes.chunks_per_pass,
            "characters": progress.characters,
            "seconds": progress.seconds,
        }

    def _log(self) -> Iterator[Event]:
        """Write a row on the updates since the last one."""
        progress, config = self.run.progress, self.run.config
        sums, updates = progress.sums, LOG_EVERY
        row = self._row()
        characters, seconds = self.row_from
        elapsed = max(1e-9, progress.seconds - seconds)
        loss = sums["loss"] / sums["characters"]
        row |= {
            "train_nats_per_char": loss,
            "learning_rate": config.lr * self.run.schedule().factor(progress.step - 1),
            "gradient_norm": sums["norm"] / updates,
            "clipped_share": sums["clipped"] / updates,
            "chars_per_second": (progress.characters - characters) / elapsed,
        }
        progress.sums = {"loss": 0.0, "characters": 0, "norm": 0.0, "clipped": 0}
        before = progress.smooth_loss
        if before is None:
            progress.smooth_loss = loss
        else:
            progress.smooth_loss = before + (loss - before) / min(
                progress.step / LOG_EVERY, SMOOTHING
            )
        self.run.folder.log(row)
        self.row_from = (progress.characters, progress.seconds)
        yield Logged(row, progress.planned_steps, self._eta())
        warm = progress.step > 2 * config.warmup_steps
        if before is not None and warm and loss > before + SPIKE and progress.spike_step is None:
            progress.spike_step = progress.step
            yield Spiked(progress.step, before, loss)

    def _eta(self) -> float | None:
        progress, minutes = self.run.progress, self.run.config.minutes
        if progress.planned_steps is None:
            return None if minutes is None else max(0.0, minutes * 60 - progress.seconds)
        if progress.step == 0:
            return None
        return (progress.planned_steps - progress.step) * progress.seconds / progress.step

    # -- validation and saving -------------------------------------------------------

    def _validation_due(self) -> bool:
        progress = self.run.progress
        every = self.run.config.validate_every or progress.validate_every
        if self.run.valid is None or progress.step == 0:
            return False
        if progress.validated_step == progress.step:
            return False
        return self._is_over() or (every is not None and progress.step % every == 0)

    def _validate(self) -> Iterator[Event]:
        """Score the held-out part; training's state and random numbers stay as they are."""
        run, progress = self.run, self.run.progress
        assert run.valid is not None
        self._flush()
        limit = progress.validate_characters or run.valid.characters
        part = run.valid.corpus.part(run.valid.start, min(run.valid.stop, run.valid.start + limit))
        try:
            scores = score(
                run.model, part, run.vocabulary, should_stop=lambda: bool(self.should_stop())
            )
        except Interrupted:
            return
        best = progress.best_nats is None or scores.nats_per_char < progress.best_nats
        if best:
            progress.best_nats, progress.best_step = scores.nats_per_char, progress.step
            progress.validations_since_best = 0
        else:
            progress.validations_since_best += 1
        progress.validated_step = progress.step
        if best:
            run.save_best()
        row = self._row() | {"valid_nats_per_char": scores.nats_per_char}
        run.folder.log(row)
        yield Validated(row, scores, best)
        yield Sampled(self._sample())
        self._tick()
        # Not the updates' time: the next row's speed leaves it out.
        self.row_from = (self.row_from[0], self.row_from[1] + progress.seconds - row["seconds"])

    def _sample(self) -> str:
        config = SampleConfig(length=SHOWN_LENGTH, temperature=0.8, seed=self.run.config.seed)
        empty = self.run.vocabulary.encode("")
        pieces = sample(self.run.model, self.run.vocabulary, empty, config)
        return self.run.vocabulary.decode([piece.symbol for piece in pieces])

    def _save_due(self) -> bool:
        """Whether a checkpoint is worth its time: after a validation, or after a while."""
        progress = self.run.progress
        if self.saved_step == progress.step:
            return False
        since = progress.seconds - self.saved_at
        wait = 0.0 if progress.validated_step == progress.step else SAVE_EVERY
        return since >= max(wait, self.save_seconds / SAVE_SHARE)

    def _save(self) -> Saved:
        self._flush()
        self._tick()
        started = time.monotonic()
        path = self.run.save()
        self.save_seconds = time.monotonic() - started
        self._tick()
        self.saved_at = self.run.progress.seconds
        self.saved_step = self.run.progress.step
        return Saved(path, self.run.progress.step)
