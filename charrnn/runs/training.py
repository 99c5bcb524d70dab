"""The training loop: a generator of events, readable in the order things happen.

Nothing here prints or catches a signal. The caller consumes the events and says,
through ``should_stop``, when to stop; the run then stops between two steps with its
complete state saved.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from charrnn.config import LOG_EVERY, SampleConfig
from charrnn.errors import CharrnnError, CorpusError, NonFiniteError, RunFolderError
from charrnn.inference.evaluation import Interrupted, score
from charrnn.inference.sampling import sample, unwarned
from charrnn.limits import join_pages
from charrnn.network.capture import UpdateResult
from charrnn.runs.clock import Clock
from charrnn.runs.events import (
    Event,
    Finished,
    Logged,
    Paused,
    Sampled,
    Saved,
    Spiked,
    Uncaptured,
    Validated,
    Validating,
)
from charrnn.runs.planning import Planner
from charrnn.runs.run import Run
from charrnn.text.stream import Batch

#: Seconds of a sitting before pages of memory are joined, when all has been allocated ...
SMALL_PAGES = 3.0
#: ... and that must be left, so that it pays.
LARGE_PAGES = 20.0
#: Seconds between checkpoints, apart from those that follow a validation.
SAVE_EVERY = 60.0
#: Saving may take at most this share of the time since the previous checkpoint.
SAVE_SHARE = 0.02
#: The running mean of the loss looks back about this many rows.
SMOOTHING = 20
#: A row's loss this many nats above the running mean, or above guessing early on, is a spike.
SPIKE = 1.0
#: Characters of the samples shown while training.
SHOWN_LENGTH = 240
#: Below 1: while a model still learns, its likelier characters show better what it has learned.
SHOWN_TEMPERATURE = 0.8


def train(run: Run, should_stop: Callable[[], str | None] = lambda: None) -> Iterator[Event]:
    """Train a run to the end of its budget.

    Args:
        run: from ``starting.start`` or ``resuming.resume``; its progress is kept up to date.
        should_stop: asked between steps and during validations; any answer but None stops the
            run there, with its state saved.

    Yields:
        What happens, in order; ``Finished`` last.

    Raises:
        NonFiniteError: the loss, a gradient or a weight is not finite; it was not saved, and such
            a loss or gradient changed no weight.
        CorpusError: the text changed; the state is saved before it is raised.
        CheckpointError: the run's last checkpoint is now of another format or unreadable.
        RunFolderError: a file could not be written; earlier ones are intact.
        Exception: anything unforeseen, such as running out of memory; a note on it says what is
            saved, if anything is.
    """
    try:
        with Clock() as clock:
            yield from _Loop(run, should_stop, clock).events()
    except Exception as error:
        told = _saying_how_to_go_on(run, error)
        if told is error:
            raise
        raise told from error


def _saying_how_to_go_on(run: Run, error: Exception) -> Exception:
    """Return an error that ended a run, with what is saved and how to go on from it."""
    is_foreseen = isinstance(error, CharrnnError)
    if is_foreseen and not isinstance(error, RunFolderError):
        return error  # its message already says how to go on
    if run.saved is None or not run.is_kept(error):
        return error
    saved = f"step {run.saved.progress.step:,} is saved whole: go on from it with: {run.command()}"
    if is_foreseen:
        return RunFolderError(f"{error}; {saved}")
    error.add_note(saved)
    return error


class _Loop:
    """One sitting of a run: from its start, or from where it is resumed, until it stops."""

    def __init__(self, run: Run, should_stop: Callable[[], str | None], clock: Clock) -> None:
        self.run = run
        self.should_stop = should_stop
        self.clock = clock
        self.ticked_at = clock.now()
        self.planner = Planner(run)
        self.row_from = (run.progress.characters, run.progress.seconds)
        #: Updates whose results nobody has looked at yet.
        self.pending: list[tuple[UpdateResult, Batch]] = []
        self.last_losses: deque[float] = deque(maxlen=5)
        self.saved_at = run.progress.seconds
        self.save_seconds = 0.0
        #: When to join pages of memory; None: that is over.
        self.joins_at: float | None = run.progress.seconds + SMALL_PAGES
        self.stop_reason: str | None = None

    def events(self) -> Iterator[Event]:
        """Yield what happens until the run is over or stopped."""
        run, was_finished = self.run, self.run.was_finished
        try:
            yield from self._updates()
        except CorpusError as error:
            # Texts are read between steps only, so what was learned so far is complete.
            yield self._save()
            raise CorpusError(
                f"{error}; the run is saved at step {run.progress.step:,}, and goes on with: "
                f"{run.command()}"
            ) from error
        if run.is_over and run.progress.row_updates:
            yield from self._log()  # the plan or patience ended the run between two rows
        if run.is_finished:
            run.adopt_better()
        # If nothing was left to do, a new setting, such as a rate, has had no effect: not saved.
        if not run.is_saved and not was_finished:
            yield self._save()
        # If the run was asked to stop after its last validation, it is finished nevertheless.
        if self.stop_reason is not None and not run.is_finished:
            yield Finished(self.stop_reason, complete=False)
        else:
            yield Finished(run.end, complete=True)

    def _updates(self) -> Iterator[Event]:
        run, progress = self.run, self.run.progress
        if run.was_finished:
            return  # out of patience; or any time left was too short for another update
        if progress.planned_steps is not None and progress.planned_at_step is None:
            yield self.planner.adopt(progress.planned_steps)
        if run.is_finished:
            return  # by what is given anew
        # A validation may be due before the minutes are planned, and all must score the same.
        self.planner.size_validations()
        batches = run.lanes.batches(progress.step)
        told_stopped, told_uncaptured = 0.0, False
        # Each turn: stop, if asked to; plan, as the plan says what is due; validate, before the
        # run may be over, as its last update is validated, too; end, or save; make an update; log.
        while True:
            self._tick()
            if (stopped := self.clock.stopped) > told_stopped:
                yield Paused(stopped - told_stopped)
                told_stopped = stopped
            self.stop_reason = self.should_stop()
            if self.stop_reason is not None:
                return
            # Nobody has waited for pending updates, so the time they take is not known.
            if not self.pending:
                if progress.planned_steps is None and self.planner.watch_speed():
                    yield from self._plan()
                    continue
                if self.planner.is_off():
                    yield self.planner.plan_again()
            if self._validation_due():
                yield from self._validate()
                continue  # if the last one took less time than planned, updates may follow
            if run.is_over:
                return
            if self._save_due():
                yield self._save()
            self._join_pages()
            self._update(next(batches))
            row_is_due = progress.step % LOG_EVERY == 0 or run.is_over
            # On a CPU every update is checked before the next; a GPU is not made to wait.
            if run.device.type != "cuda" or row_is_due:
                self._flush()
            if row_is_due:
                yield from self._log()
                if run.update.capture.failure and not told_uncaptured:
                    told_uncaptured = True
                    yield Uncaptured(run.update.capture.failure)

    def _update(self, batch: Batch) -> None:
        """Make one update; nobody has looked at its result yet."""
        run, progress = self.run, self.run.progress
        # Read the config each time: a plan may have replaced it.
        factor = self.planner.rate_factor()
        progress.learning_rate = run.config.lr * factor
        run.update.optimiser.set_rates(progress.learning_rate, run.config.lr_adam * factor)
        self.pending.append((run.update(batch), batch))
        progress.step += 1
        progress.characters += batch.characters

    def _join_pages(self) -> None:
        """Have large pages of memory for a run that lasts, once updates have allocated theirs."""
        if self.joins_at is None or self.run.progress.seconds < self.joins_at:
            return
        self.joins_at = None
        if self.run.device.type == "cpu" and self.planner.seconds_left() > LARGE_PAGES:
            join_pages()

    def _tick(self) -> None:
        """Add the time since the last tick to the run's clock."""
        now = self.clock.now()
        self.run.progress.seconds += now - self.ticked_at
        self.ticked_at = now

    def _plan(self) -> Iterator[Event]:
        """Turn the minutes left, less validations and saves, into a number of updates."""
        run, progress = self.run, self.run.progress
        self.planner.size_validations()
        # A validation's cost is known only once one has been made.
        if run.valid is not None and not progress.validations:
            yield from self._validate()
            if not progress.validations:
                return  # stopped meanwhile: it is planned when the run is resumed
        yield self.planner.plan()

    # -- what an update leaves behind ------------------------------------------------

    def _flush(self) -> None:
        """Check the results of the pending updates and add them up."""
        if not self.pending:
            return
        progress = self.run.progress
        results = [result for result, _ in self.pending]
        # All at once: a GPU has nothing to do while one number after another is fetched.
        losses = torch.stack([result.loss for result in results]).tolist()
        norms = torch.stack([result.norm for result in results]).tolist()
        clips = torch.stack([result.clipped for result in results]).tolist()
        first = progress.step - len(self.pending) + 1
        measured = zip(self.pending, losses, norms, clips, strict=True)
        for step, ((_, batch), loss, norm, clipped) in enumerate(measured, start=first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self._non_finite(step, loss, norm)
            progress.clipped_steps += clipped
            # How an unknown character is spelled cannot be learned, but every score charges
            # for it.
            spelling = batch.unknown * self.run.vocabulary.unknown_nats
            progress.row_loss += loss * batch.characters + spelling
            progress.row_characters += batch.characters
            progress.row_norm += norm
            progress.row_largest_norm = max(progress.row_largest_norm, norm)
            progress.row_clipped += clipped
            progress.row_updates += 1
            self.last_losses.append(loss)
        self.pending.clear()

    def _non_finite(self, step: int, loss: float, norm: float) -> NonFiniteError:
        run = self.run
        passed, window, character = run.lanes.position(step - 1)
        what = "gradient" if math.isfinite(loss) else "loss"
        losses = ", ".join(f"{loss:.4g}" for loss in self.last_losses) or "none"
        return NonFiniteError(
            f"the {what} is not finite at step {step:,} (pass {passed + 1}, window {window + 1}, "
            f"from character {character:,} of each lane on): loss {loss:g}, gradient norm "
            f"{norm:g}, losses before it {losses}; no weight was changed by it; {run.way_back()}"
        )

    def _row(self) -> dict[str, Any]:
        self._tick()
        progress = self.run.progress
        return {
            "step": progress.step,
            "epoch": progress.step / self.run.lanes.steps_per_epoch,
            "characters": progress.characters,
            "seconds": progress.seconds,
        }

    def _log(self) -> Iterator[Event]:
        """Write a row of the log on the updates since the last one."""
        progress = self.run.progress
        row = self._row()
        characters, seconds = self.row_from
        loss = progress.row_loss / progress.row_characters
        norm = progress.row_norm / progress.row_updates
        row |= {
            "train_nats_per_char": loss,
            "learning_rate": progress.learning_rate,
            "gradient_norm": norm,
            # A checkpoint of an older version, saved between two rows, has no largest norm.
            "largest_gradient_norm": max(norm, progress.row_largest_norm),
            "clipped_share": progress.row_clipped / progress.row_updates,
        }
        if progress.characters > characters:  # else all were done in an earlier sitting
            elapsed = max(1e-9, progress.seconds - seconds)
            row["chars_per_second"] = (progress.characters - characters) / elapsed
        progress.row_loss = progress.row_norm = progress.row_largest_norm = 0.0
        progress.row_characters = progress.row_clipped = progress.row_updates = 0
        self.run.folder.log(row)
        self.row_from = (progress.characters, progress.seconds)
        yield Logged(row, progress.planned_steps, self.planner.seconds_left())
        yield from self._follow(loss)

    def _follow(self, loss: float) -> Iterator[Spiked]:
        """Update the running mean of the loss; report the first row that is far above it."""
        progress = self.run.progress
        before, latest = progress.smooth_loss, progress.latest_loss
        progress.latest_loss = loss
        if before is None:
            progress.smooth_loss = loss
        else:
            rows = max(1.0, progress.step / LOG_EVERY)
            progress.smooth_loss = before + (loss - before) / min(rows, SMOOTHING)
        if progress.spike_step is not None:
            return
        mean = before if progress.step > 2 * self.run.config.warmup_steps else None
        limit = self.run.baselines["uniform"] if mean is None else mean
        # While it comes down after a jump the loss is above the mean, too: only a rise counts.
        if latest is not None and loss > max(latest, limit + SPIKE):
            progress.spike_step = progress.step
            yield Spiked(progress.step, mean, loss)

    # -- validation and saving -------------------------------------------------------

    def _validation_due(self) -> bool:
        run, progress = self.run, self.run.progress
        if run.valid is None or progress.validated_step == progress.step:
            return False
        if progress.step == 0:  # the weights of another model set the loss to improve on
            return run.config.init_from is not None
        every = run.config.validate_every or progress.validate_every
        return run.is_over or (every is not None and progress.step % every == 0)

    def _validate(self) -> Iterator[Event]:
        """Score the held-out part; training's hidden state and random numbers stay as they are."""
        run, progress = self.run, self.run.progress
        assert run.valid is not None
        assert progress.validate_characters is not None, "the planner has set it"
        yield Validating()
        self._flush()
        self._tick()
        started = progress.seconds
        part = run.valid.first(progress.validate_characters)
        try:
            scores = score(
                run.model, part, run.vocabulary,
                dtype=run.model.compute_dtype, should_stop=lambda: bool(self.should_stop()),
            )  # fmt: skip
        except Interrupted:
            self._tick()
            progress.validation_seconds += progress.seconds - started
            progress.vain_seconds += progress.seconds - started
            return
        nats = scores.nats_per_char
        if not math.isfinite(nats):
            raise NonFiniteError(
                f"the validation loss is not finite after step {progress.step:,}; {run.way_back()}"
            )
        if run.saved is None:
            # A run killed with a best checkpoint alone could be neither resumed nor begun again.
            yield self._save()
        progress.validated_step = progress.step
        best = run.count_validation(nats)
        row = self._row() | {"valid_nats_per_char": nats}
        scored = progress.seconds
        progress.validations += 1
        progress.validation_seconds += scored - started
        run.folder.log(row)
        yield Validated(row, scores, best)
        if self._save_due():
            yield self._save()
        yield from self._sample()
        self._tick()
        progress.validation_seconds += progress.seconds - scored
        # The next row's speed leaves this time out.
        self.row_from = (self.row_from[0], self.row_from[1] + progress.seconds - started)

    def _sample(self) -> Iterator[Sampled]:
        """Draw a sample to show; none if asked to stop meanwhile or if predictions are not finite.

        Whether that ends the run depends on the loss alone.
        """
        config = SampleConfig(
            length=SHOWN_LENGTH, temperature=SHOWN_TEMPERATURE, seed=self.run.config.seed
        )
        symbols: list[int] = []
        try:
            with unwarned():
                for _, drawn in sample(
                    self.run.model, self.run.vocabulary, None, config, compiled=False
                ):
                    if self.should_stop():
                        return
                    symbols += drawn
        except NonFiniteError:
            return
        yield Sampled(self.run.vocabulary.decode(symbols))

    def _save_due(self) -> bool:
        """Whether a checkpoint is worth its time: after a validation, or after a while."""
        progress = self.run.progress
        if self.run.is_saved:
            return False
        since = progress.seconds - self.saved_at
        wait = 0.0 if progress.validated_step == progress.step else SAVE_EVERY
        return since >= max(wait, self.save_seconds / SAVE_SHARE)

    def _save(self) -> Saved:
        self._flush()
        self._tick()
        started = self.clock.now()
        path = self.run.save()
        self.save_seconds = self.clock.now() - started
        self._tick()
        self.saved_at = self.run.progress.seconds
        return Saved(path, self.run.progress.step)
