"""A comparison's runs: several cells with the same text, budget and order of data.

Everything but the cell is equal: the split, the vocabulary, the lanes and windows in
which the text is read. ``matching`` gives the models' shapes. Each cell is trained from
several seeds, so that a difference can be compared with the spread due to chance.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from charrnn import recipe
from charrnn.compute.device import recurs_in_bf16
from charrnn.config import ModelConfig
from charrnn.disk import write_json
from charrnn.errors import CheckpointError, CorpusError, NonFiniteError, RunFolderError
from charrnn.inference.baselines import uniform_nats
from charrnn.inference.evaluation import Interrupted, Scores, run_once, score
from charrnn.layout import LAST, LOG, PLAN
from charrnn.runs.comparability import (
    refuse_another_machine,
    refuse_another_shape,
    refuse_other_texts,
    refuse_taken,
    refuse_used,
    unequal_minutes,
)
from charrnn.runs.comparison import RunFailure, RunResult
from charrnn.runs.comparison_folder import TEXTS, name_moved, read_result, read_results
from charrnn.runs.comparison_plan import Plan
from charrnn.runs.events import Event, Finished
from charrnn.runs.matching import shapes, sizes
from charrnn.runs.resuming import resume
from charrnn.runs.run import Run
from charrnn.runs.starting import start
from charrnn.runs.training import train
from charrnn.storage.checkpoint import DamagedCheckpointError
from charrnn.storage.metrics import read_log
from charrnn.storage.reading import (
    divide,
    refuse_too_short,
)
from charrnn.storage.runfolder import RunFolder, checkpoints_in, has_state, remove_stale
from charrnn.storage.trained import chosen_in, load_model, trained_by
from charrnn.text.corpus import Part
from charrnn.text.files import embedded_corpus
from charrnn.text.not_text import Nameable
from charrnn.text.scanning import scan
from charrnn.text.vocabulary import Vocabulary
from charrnn.wording import shown


@dataclass(frozen=True)
class RunStarted:
    """A run begins or goes on; its events follow."""

    run: Run
    number: int
    """Its place among the comparison's runs, from 1."""
    total: int
    plan: Plan
    """The comparison's, with all that is known once the text has been read."""


#: What ``compare`` yields.
Happening = str | RunStarted | RunResult | RunFailure | Event


def compare(
    folder: Path,
    plan: Plan,
    *,
    begun: Plan | None = None,
    device: torch.device,
    command: str,
    should_stop: Callable[[], str | None] = lambda: None,
) -> Iterator[Happening]:
    """Do all runs of a comparison that are not finished yet.

    Args:
        folder: the comparison's.
        plan: what to compare; a new or extended plan is written to the folder with the first run.
        begun: None: the comparison begins here. Otherwise its plan from ``open_plan``, which
            ``plan`` may extend or give new names of texts.
        device: where to compute.
        command: the command line that goes on with the comparison, for locks and messages.
        should_stop: as for ``training.train``; a stopped comparison goes on by calling
            this again.

    Yields:
        Notes for the user; then for every run ``RunStarted``, its events and its outcome:
        ``RunResult``, or ``RunFailure`` where a number was not finite (--resume tries it again).
        For a run that was finished before, only ``RunResult``.

    Raises:
        CharrnnError: the text, the folder or a checkpoint is not usable.
    """
    return _Sitting(folder, plan, begun, device, command, should_stop).events()


@dataclass
class _Sitting:
    """A comparison from where it begins or goes on until all runs are done, or it stops."""

    folder: Path
    plan: Plan
    """What is compared, with all that is known so far."""
    written: Plan | None
    """The plan in the folder."""
    device: torch.device
    command: str
    should_stop: Callable[[], str | None]

    def events(self) -> Iterator[Happening]:
        """Yield what ``compare`` yields."""
        begun = self.written
        refuse_taken(self.folder, self.plan, begun)
        results = read_results(self.folder, self.plan)
        done = [result for result in results if result is not None]
        is_done = len(done) == len(results)
        if begun is not None and not is_done:
            refuse_another_machine(begun, self.device)
        moved = [one for one in TEXTS if begun and getattr(begun, one) != getattr(self.plan, one)]
        if is_done and not moved:  # then neither the text nor the recipe's sizes matter
            yield from done
            return
        part = self._read_text(moved)
        yield from done if is_done else self._runs(part, done)

    def _read_text(self, moved: Sequence[str]) -> Part:
        """Return the training part; note in the plans which text it is, and where it has moved.

        Args:
            moved: fields of ``TEXTS`` with other names than in the folder's plan.
        """
        try:
            part, self.plan = _read_text(self.plan)
        except CorpusError as error:
            if self.written is None:
                raise
            raise CorpusError(f"{error}{name_moved(self.plan, self.command, moved)}") from error
        if self.written is not None and moved:
            self._write(replace(self.written, texts=self.plan.texts, valid=self.plan.valid))
        return part

    def _runs(self, part: Part, done: Sequence[RunResult]) -> Iterator[Happening]:
        """Do the runs that are not done; yield the results of all."""
        encoding, min_count = part.corpus.encoding, self.plan.min_count
        found, training, notes = shapes(
            self.plan,
            vocabulary=Vocabulary.from_counts(part.counts, encoding, min_count).size,
            characters=part.characters,
            device=self.device.type,
            bf16=recurs_in_bf16(self.device),
        )
        if self.written is None:
            self.plan = replace(self.plan, precision=training["precision"])
            yield from notes  # what they advise is too late for a comparison that has begun
        yield from unequal_minutes(self.plan, done, self.device)
        runs = [*self.plan.runs()]
        for number, (seed, cell) in enumerate(runs, start=1):
            path, shape = self.folder / self.plan.run_name(seed, cell), found[cell]
            result = read_result(path)
            if result is not None:
                refuse_another_shape(path, result.layers, result.hidden, result.parameters, shape)
                yield result
                continue
            choices = self.plan.choices(cell, seed, **sizes(shape))
            choices = replace(choices, training=choices.training | training)
            with self._open_run(path, choices, shape) as run:
                self._take_folder()
                yield RunStarted(run, number, len(runs), self.plan)
                outcome: RunResult | RunFailure | None
                try:
                    outcome = yield from _finish(run, self.should_stop)
                except NonFiniteError as error:
                    outcome = RunFailure(cell, seed, str(error))
            if outcome is None:
                return
            yield outcome

    @contextmanager
    def _open_run(self, path: Path, choices: recipe.Choices, shape: ModelConfig) -> Iterator[Run]:
        """Hold a run's folder; yield the run that goes on or begins there, with this shape."""
        plan, command, device = self.plan, self.command, self.device
        begun = checkpoints_in(path)
        hold = RunFolder.open_existing if begun else RunFolder.create
        with hold(path, command) as folder:
            if begun:
                with training_anew(path, None if has_state(path) else path / LAST):
                    run = resume(
                        folder, device=device, changes={}, texts=plan.texts, valid_texts=plan.valid
                    )
                has, parameters = run.model.config, run.model.parameter_count()
                refuse_another_shape(path, has.layers, has.hidden, parameters, shape)
            else:
                run = start(choices, plan.text(), folder=folder, device=device)
            refuse_other_texts(plan, run.train, run.valid)
            run.owner = command
            yield run

    def _take_folder(self) -> None:
        """Tidy the comparison's folder and write its plan, as a run in it is held."""
        remove_stale(self.folder)
        if self.written is None:  # while the text was read another may have begun here
            refuse_used(self.folder)
        if self.written != self.plan:
            self._write(self.plan)

    def _write(self, plan: Plan) -> None:
        """Write the folder's plan."""
        write_json(self.folder / PLAN, plan.to_dict())
        self.written = plan


def _read_text(plan: Plan) -> tuple[Part, Plan]:
    """Read a comparison's text, and check that it is the right one and no part is too short.

    Returns:
        The training part, and the plan with the text's fingerprints.
    """
    encoding = "utf-8" if plan.encoding is None else plan.encoding
    nameable: Nameable = "any" if plan.fingerprint is None else "none"
    corpus = scan(plan.texts or embedded_corpus(), encoding, nameable)
    train, valid, test = divide(corpus, plan.text(), nameable)
    if plan.fingerprint is not None:
        refuse_other_texts(plan, train, valid)
    refuse_too_short(train, plan.text())
    for name, share, held_out in (
        ("valid", plan.valid_share, valid),
        ("test", plan.test_share, test),
    ):
        if share and held_out is None:
            raise CorpusError(
                f"--{name}-share {share:g} of a text of length {corpus.characters:,} leaves fewer "
                "than 2 characters to compare on: give a longer text, a larger share, or 0"
            )
    other = valid.corpus.fingerprint if valid and plan.valid else None
    return train, replace(plan, fingerprint=corpus.fingerprint, valid_fingerprint=other)


def _finish(
    run: Run, should_stop: Callable[[], str | None]
) -> Generator[Event, None, RunResult | None]:
    """Train a run to its end, and save its result; return None if it was stopped before that."""
    for event in train(run, should_stop):
        yield event
        if isinstance(event, Finished) and not event.complete:
            return None
    speed = _median_speed(run.folder.path)
    try:
        result = _measure(run, speed, should_stop)
        run.folder.save_result(result.to_dict())
    except Interrupted:
        return None
    except (CorpusError, RunFolderError) as error:
        if not run.is_kept(error):
            raise
        raise type(error)(
            f"{error}; the run is trained and saved, and the comparison goes on with: {run.owner}"
        ) from error
    return result


@contextmanager
def training_anew(run: Path, needed: Path | None = None) -> Iterator[None]:
    """Say in an error about a lost checkpoint what to do: to train its run anew.

    Args:
        run: the folder of a comparison's run.
        needed: the checkpoint that may be missing; None: it is there.

    Raises:
        CheckpointError: the checkpoint is damaged or missing, with what to do; or it may be whole.
    """
    try:
        yield
    except CheckpointError as error:
        if isinstance(error, DamagedCheckpointError):
            lost = f"{shown(error.path)}: {error.flaw}"
        elif needed is not None and not os.path.exists(needed):  # noqa: PTH110 - never raises
            lost = f"{shown(needed)}: missing"
        else:
            raise
        raise CheckpointError(
            f"{lost}; to train this run anew, remove {shown(run)}, and go on with the comparison"
        ) from error


def _measure(run: Run, speed: float, should_stop: Callable[[], str | None]) -> RunResult:
    """Score the best checkpoint of a finished run on what was held out."""
    path, progress = run.folder.path, run.progress
    # Only the checkpoint that training chose: if it is gone, the last one must not replace it.
    chosen = chosen_in(path, validated=progress.best_step is not None)
    with training_anew(path, chosen):
        model, vocabulary, checkpoint = load_model(chosen, run.device)
    run_once(model)

    def score_part(part: Part) -> Scores:
        scores = score(
            model, part, vocabulary,
            dtype=run.model.compute_dtype, should_stop=lambda: bool(should_stop()),
        )  # fmt: skip
        # Finite weights can still be too large to compute with.
        if not math.isfinite(scores.nats_per_char):
            raise NonFiniteError(
                f"the loss of its model on what was held out is not finite after step "
                f"{progress.step:,}: compare anew with a lower --lr"
            )
        return scores

    part = run.train.corpus.part(*run.text.test) if run.text.test else run.valid
    assert part is not None, "a plan without any held-out part is refused"
    valid = score_part(run.valid) if run.valid else None
    scores = valid if valid and part is run.valid else score_part(part)
    return RunResult(
        run=str(path),
        cell=model.config.cell,
        seed=run.config.seed,
        layers=model.config.layers,
        hidden=model.config.hidden,
        parameters=model.parameter_count(),
        multiply_adds=model.multiply_adds(),
        steps=progress.step,
        clipped_steps=progress.clipped_steps,
        trained_characters=progress.characters,
        seconds=progress.seconds,
        validation_seconds=progress.validation_seconds,
        uniform_nats=uniform_nats(part.predicted.counts, vocabulary),
        train_chars_per_second=speed,
        valid_nats_per_char=valid.nats_per_char if valid else None,
        nats_per_char=scores.nats_per_char,
        bits_per_byte=scores.bits_per_byte if scores.bytes else None,
        characters=scores.characters,
        unknown=scores.unknown,
        chars_per_second=scores.chars_per_second,
        trained_by=trained_by(path),  # by the last checkpoint: the best's may have been another
        versions=checkpoint.versions,
        model=model.config.to_dict(),
        training=run.config.to_dict(),
    )


def _median_speed(run: Path) -> float:
    """Return the median of the speeds in the log of a run's folder, in characters per second."""
    found = [row.get("chars_per_second") for row in read_log(run)]
    speeds = [float(speed) for speed in found if isinstance(speed, int | float) and speed > 0]
    if not speeds:
        raise RunFolderError(
            f"{shown(run / LOG)}: the rows on its updates are gone: remove the run's folder to "
            "train anew"
        )
    return statistics.median(speeds)
