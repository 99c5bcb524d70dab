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
from functools import partial
from pathlib import Path

import torch

from charrnn import recipe
from charrnn.command_words import comparison_command
from charrnn.compute.device import multiplies_bf16, recurs_in_bf16
from charrnn.compute.machine import worker
from charrnn.compute.processor import processor
from charrnn.config import ModelConfig
from charrnn.disk import write_json
from charrnn.errors import CheckpointError, CorpusError, NonFiniteError, RunFolderError, UsageError
from charrnn.inference.baselines import uniform_nats
from charrnn.inference.evaluation import Interrupted, Scores, run_once, score
from charrnn.layout import BEST, LOCK, LOG, PLAN, RESULT
from charrnn.runs.comparison import RunFailure, RunResult
from charrnn.runs.comparison_folder import TEXTS, going_on, name_moved, read_result, read_results
from charrnn.runs.comparison_plan import Plan
from charrnn.runs.events import Event, Finished
from charrnn.runs.matching import shapes, sizes
from charrnn.runs.resuming import resume
from charrnn.runs.run import Run
from charrnn.runs.starting import start
from charrnn.runs.training import train
from charrnn.storage.checkpoint import DamagedCheckpointError
from charrnn.storage.metrics import read_metrics
from charrnn.storage.reading import (
    divide,
    refuse_another_text,
    refuse_text_within,
    refuse_too_short,
)
from charrnn.storage.runfolder import RunFolder, has_state, remove_stale
from charrnn.storage.trained import chosen_in, load_model, trained_by
from charrnn.text.corpus import Part
from charrnn.text.files import embedded_corpus
from charrnn.text.not_text import Nameable
from charrnn.text.scanning import scan
from charrnn.text.vocabulary import Vocabulary
from charrnn.wording import joined, shown


@dataclass(frozen=True)
class RunStarted:
    """A run begins or goes on; its events follow."""

    run: Run
    number: int
    """Its place among the comparison's runs, from 1."""
    total: int
    plan: Plan
    """The comparison's, with all that is known once the text has been read."""


def compare(
    folder: Path,
    plan: Plan,
    *,
    begun: Plan | None = None,
    device: torch.device,
    command: str | None = None,
    should_stop: Callable[[], str | None] = lambda: None,
) -> Iterator[str | RunStarted | RunResult | RunFailure | Event]:
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
    _refuse_taken(folder, plan, begun)
    done = [] if begun is None else [one for one in read_results(folder, plan) if one]
    runs = [*plan.runs()]
    left = len(runs) - len(done)
    if begun is not None and left:
        _refuse_another_machine(begun, device)
    kept = begun  # the plan in the folder
    moved = [name for name in TEXTS if kept and getattr(kept, name) != getattr(plan, name)]
    if not left and not moved:  # then neither the text nor the recipe's sizes matter
        yield from done
        return
    try:
        part, plan = _read_text(plan)
    except CorpusError as error:
        if kept is None or command is None:
            raise
        raise CorpusError(f"{error}{name_moved(plan, command, moved)}") from error
    if kept is not None and moved:
        kept = replace(kept, texts=plan.texts, valid=plan.valid)
        write_json(folder / PLAN, kept.to_dict())
    if not left:
        yield from done
        return
    found, training, notes = shapes(
        plan,
        vocabulary=Vocabulary.from_counts(part.counts, part.corpus.encoding, plan.min_count).size,
        characters=part.characters,
        device=device.type,
        bf16=recurs_in_bf16(device),
    )
    if begun is None:
        plan = replace(plan, precision=training["precision"])
    # What the shapes' notes advise is too late for a comparison that has begun.
    yield from [*(notes if begun is None else []), *_unequal_minutes(plan, done, device)]
    for number, (seed, cell) in enumerate(runs, start=1):
        path = folder / plan.run_name(seed, cell)
        shape, result = found[cell], read_result(path)
        if result is not None:
            _refuse_another_shape(path, result.layers, result.hidden, result.parameters, shape)
            yield result
            continue
        choices = plan.choices(cell, seed, **sizes(shape))
        choices = replace(choices, training={**choices.training, **training})
        with _open_run(path, choices, plan, shape, device, command) as run:
            remove_stale(folder)
            if plan != kept:
                if kept is None:  # while the text was read another may have begun here
                    _refuse_used(folder)
                write_json(folder / PLAN, plan.to_dict())
                kept = plan
            yield RunStarted(run, number, len(runs), plan)
            try:
                result = yield from _finish(run, should_stop)
            except NonFiniteError as error:
                yield RunFailure(cell, seed, str(error))
                continue
            if result is None:
                return
            with _going_on(run):
                run.folder.save_result(result.to_dict())
        yield result


def _refuse_another_machine(plan: Plan, device: torch.device) -> None:
    """Refuse to train the other runs of a comparison on another device, or without its bf16."""
    if plan.precision == "bf16" and not multiplies_bf16(device):
        raise UsageError(
            "the comparison began in bf16, which this device has no instructions for: go on with "
            "it where there are, or compare anew in another folder with --run"
        )
    if plan.device is not None and device.type != plan.device:
        raise UsageError(
            f"--device {device.type}: the comparison began on {plan.device}, and runs on two "
            "devices do not compare: leave it out, or compare anew in another folder with --run"
        )


def _unequal_minutes(plan: Plan, done: Sequence[RunResult], device: torch.device) -> Iterator[str]:
    """Yield a note if other processors, threads or GPUs trained the finished runs of minutes."""
    if plan.minutes is None or plan.device not in ("cpu", "cuda"):
        return
    here = worker(processor(), torch.get_num_threads())
    if device.type == "cuda":
        here = torch.cuda.get_device_name(device)
    by = dict.fromkeys(result.trained_by for result in done)
    others = [shown(one) for one in by if one is not None and one != here]
    if others:
        yield (
            f"finished runs were trained by {joined(others, 'and')}, and the others are by {here}: "
            "equal minutes are not equal work: go on where they were, or compare anew in another "
            "folder with --run"
        )


def _refuse_used(folder: Path) -> None:
    """Refuse to begin a comparison where there is one already, or a run."""
    if folder.is_file():
        raise RunFolderError(f"{shown(folder)}: is a file: choose a folder with --run")
    if has_state(folder):
        holds = f"a run already: go on with it with: {going_on(folder)}; or choose"
    elif (folder / LOCK).exists():
        holds = "a run that has saved nothing yet, or was killed before it did: choose"
    elif (folder / PLAN).exists():
        go_on = comparison_command(folder)
        holds = f"a comparison already: go on with it with: {go_on}; or choose"
    else:
        return
    raise RunFolderError(f"{shown(folder)}: holds {holds} another folder with --run")


def _refuse_taken(folder: Path, plan: Plan, begun: Plan | None) -> None:
    """Refuse to begin a comparison, or a run of it, where there is another's work already."""
    if begun is None:
        _refuse_used(folder)
        refuse_text_within(plan.text(), folder, "a comparison")
        known, instead = 0, "choose another folder with --run"
    else:
        known, instead = begun.seeds, "move it elsewhere"
    added = [one for one in plan.runs() if one[0] >= plan.seed + known]
    for path in (folder / plan.run_name(seed, cell) for seed, cell in added):
        if (path / RESULT).exists() or (path / BEST).exists() or has_state(path):
            raise RunFolderError(
                f"{shown(path)}: holds a run already, that does not belong to this comparison: "
                f"{instead}"
            )


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
        _refuse_another_text(plan, train, valid)
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


def _refuse_another_text(plan: Plan, train: Part, valid: Part | None) -> None:
    """Refuse texts other than those that a comparison began with."""
    refuse = partial(
        refuse_another_text,
        of="this comparison",
        instead=", or compare anew in another folder with --run",
    )
    refuse(train.corpus, plan.fingerprint, plan.texts)
    if plan.valid and valid is not None:
        refuse(valid.corpus, plan.valid_fingerprint, plan.valid, "the validation text")


def _refuse_another_shape(
    path: Path, layers: int, hidden: int, parameters: int, shape: ModelConfig
) -> None:
    """Refuse to go on if the recipe now gives other sizes than a run has."""
    wanted = (shape.layers, shape.hidden, recipe.parameter_count(shape))
    if (layers, hidden, parameters) != wanted:
        raise UsageError(
            f"{shown(path)} has {layers} x {hidden} units and {parameters:,} parameters, and now "
            f"it would be {wanted[0]} x {wanted[1]} and {wanted[2]:,}: the defaults have changed "
            "since: go on with the version of charrnn that began it, or compare anew in another "
            "folder with --run"
        )


@contextmanager
def _open_run(
    path: Path,
    choices: recipe.Choices,
    plan: Plan,
    shape: ModelConfig,
    device: torch.device,
    command: str | None,
) -> Iterator[Run]:
    """Hold a run's folder; yield the run that goes on or begins there, with this shape and text."""
    begun = has_state(path)
    # A run killed between its first validation and its first save begins again.
    if begun:
        held = RunFolder.open_existing(path, command=command or "")
    else:
        held = RunFolder.create(path, command=command or "", over_best=True)
    with held as folder:
        if begun:
            with training_anew(path):
                run = resume(
                    folder, device=device, changes={}, texts=plan.texts, valid_texts=plan.valid
                )
            has, parameters = run.model.config, run.model.parameter_count()
            _refuse_another_shape(path, has.layers, has.hidden, parameters, shape)
        else:
            run = start(choices, plan.text(), folder=folder, device=device)
        _refuse_another_text(plan, run.train, run.valid)
        run.owner = command
        yield run


def _finish(
    run: Run, should_stop: Callable[[], str | None]
) -> Generator[Event, None, RunResult | None]:
    """Train a run to its end and score it; return None if it was stopped before that."""
    for event in train(run, should_stop):
        yield event
        if isinstance(event, Finished) and not event.complete:
            return None
    speed = _median_speed(run.folder.path / LOG)
    try:
        with _going_on(run):
            return _measure(run, speed, should_stop)
    except Interrupted:
        return None


@contextmanager
def _going_on(run: Run) -> Iterator[None]:
    """Add to an error after a run's training that nothing of the run is lost, where that is so."""
    try:
        yield
    except (CorpusError, RunFolderError) as error:
        if run.owner is None or not run.is_kept(error):
            raise
        raise type(error)(
            f"{error}; the run is trained and saved, and the comparison goes on with: {run.owner}"
        ) from error


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
        scores = score(model, part, vocabulary, should_stop=lambda: bool(should_stop()))
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


def _median_speed(log: Path) -> float:
    """Return the median of the speeds in a run's log, in characters per second."""
    found = [row.get("chars_per_second") for row in read_metrics(log)]
    speeds = [float(speed) for speed in found if isinstance(speed, int | float) and speed > 0]
    if not speeds:
        raise RunFolderError(
            f"{shown(log)}: the rows on its updates are gone: remove the run's folder to train anew"
        )
    return statistics.median(speeds)
