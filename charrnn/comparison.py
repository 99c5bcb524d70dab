"""The same text, budget and order of data for several cells.

Everything but the cell is equal: the split, the vocabulary, the lanes and windows in
which the text is read, the number of layers, the embedding. Widths are solved for, so
that all models have the same number of parameters, or are equal too. Learning rates,
weight decay, dropout and weight drop follow the recipe's rules for each cell where they
are not given. Each cell is trained from several seeds, so that a difference can be held
against the spread that chance alone makes.

A comparison is a folder: ``comparison.json`` with its plan, and a run's folder for
every cell and seed, with the run's ``result.json`` once it is finished.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch

from charrnn import recipe
from charrnn.config import (
    BUDGETS,
    CELL_NAMES,
    CellName,
    ModelConfig,
    OptimiserName,
    Record,
    TextChoices,
)
from charrnn.corpus import Corpus, Part, scan, split
from charrnn.errors import CorpusError, RunFolderError, UsageError, shown
from charrnn.evaluation import Interrupted, Scores, perplexity, score
from charrnn.files import embedded_corpus
from charrnn.kernels import multiplies_bf16
from charrnn.model import outline
from charrnn.reading import refuse_another_text, refuse_too_short
from charrnn.run import Run, resume, start
from charrnn.runfolder import LOG, RESULT, RunFolder, has_state, read_metrics, write_json
from charrnn.trained import load_model
from charrnn.training import Event, Finished, train
from charrnn.vocabulary import Vocabulary

__all__ = [
    "CellResult",
    "Comparison",
    "Difference",
    "Note",
    "Plan",
    "RunResult",
    "RunScored",
    "RunStarted",
    "compare",
    "matched_hidden",
    "open_plan",
    "shapes",
]

R = TypeVar("R", bound=Record)

PLAN = "comparison.json"
#: The cell whose recipe gives the numbers that all cells share.
REFERENCE: CellName = "lstm"
#: Parameters are matched when they differ by no more than this share.
TOLERANCE = 0.01
#: Student's t, two-sided 95 %, for 1 to 10 degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, kw_only=True)
class Plan(Record):
    """What is compared: all that a comparison needs to begin or to go on."""

    texts: tuple[str, ...]
    """Absolute paths, folders or globs; none: the embedded corpus."""
    cells: tuple[CellName, ...] = CELL_NAMES
    match: Literal["parameters", "hidden"] = "parameters"
    """What all models have the same number of."""
    seeds: int = 1
    """Runs of each cell."""
    seed: int = 1
    """Of the first; the others follow."""
    minutes: float | None = None
    """Budget of each run; exactly one of the three."""
    epochs: float | None = None
    steps: int | None = None
    encoding: str | None = None
    valid_share: float = 0.1
    test_share: float = 0.1
    min_count: int | None = None
    layers: int | None = None
    """None leaves a number to the reference cell's recipe, or to each cell's own; so do those
    below."""
    hidden: int | None = None
    """H of the reference cell; the others' too where hidden is matched."""
    embedding: int | None = None
    dropout: float | None = None
    weight_drop: float | None = None
    batch_size: int | None = None
    bptt: int | None = None
    optimiser: OptimiserName | None = None
    lr: float | None = None
    """Of the recurrence's matrices; each cell's recipe has the ratio of the other rate to it."""
    weight_decay: float | None = None
    clip_norm: float | None = None
    """0: no clipping."""
    precision: Literal["fp32", "bf16"] | None = None
    """Of the products; None: bf16 where the hardware has it."""
    fingerprint: str | None = None
    """Of the text, as ``Corpus`` has it; None before it is read, and in older plans."""

    def __post_init__(self) -> None:
        if not self.cells:
            raise UsageError("--cell must name at least one cell")
        for cell in self.cells:
            if cell not in CELL_NAMES:
                raise UsageError(f"--cell must be one of {', '.join(CELL_NAMES)}, not {cell!r}")
            if self.cells.count(cell) > 1:
                raise UsageError(f"--cell {cell} is given twice")
        if not 1 <= self.seeds <= 1000:
            raise UsageError(f"--seeds must be a number from 1 to 1000, not {self.seeds}")
        if "-" in self.texts:
            raise UsageError("compare reads the text once a run: give a file, not -")
        if self.valid_share == 0 and self.test_share == 0:
            raise UsageError("--valid-share and --test-share are 0: nothing is left to compare on")
        # What the runs would refuse later is refused now.
        self.text()
        for seed, cell in itertools.product({self.seed, self.seed + self.seeds - 1}, self.cells):
            recipe.choose(self.choices(cell, seed), vocabulary=2, characters=2, device="cpu")

    def extended(self, seeds: int) -> Self:
        """Return the plan with more runs of each cell, after those that it has.

        Raises:
            UsageError: they would be fewer.
        """
        if seeds < self.seeds:
            raise UsageError(
                f"--seeds {seeds} is fewer than the {self.seeds} of this comparison: --resume can "
                "only add some"
            )
        return replace(self, seeds=seeds)

    def corpus(self) -> Corpus:
        """Read the text once, from end to end.

        Raises:
            CorpusError: it is not usable.
        """
        return scan(self.texts or embedded_corpus(), self.encoding or "utf-8")

    def text(self) -> TextChoices:
        """Return what every run reads."""
        return TextChoices(
            texts=self.texts,
            encoding=self.encoding,
            valid_share=self.valid_share,
            test_share=self.test_share,
            min_count=self.min_count,
        )

    def choices(self, cell: CellName, seed: int | None = None, **model: int) -> recipe.Choices:
        """Return what one run is told, beside the text.

        Args:
            cell: its recurrence.
            seed: its seed; None: the first.
            model: numbers of its shape that are known by now.
        """
        shape = {
            "layers": self.layers,
            "hidden": self.hidden,
            "embedding": self.embedding,
            "dropout": self.dropout,
            "weight_drop": self.weight_drop,
        }
        training = {
            "batch_size": self.batch_size,
            "bptt": self.bptt,
            "optimiser": self.optimiser,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "clip_norm": self.clip_norm,
            "precision": self.precision,
            "seed": self.seed if seed is None else seed,
        }
        return recipe.Choices(
            cell=cell,
            budget=recipe.given({name: getattr(self, name) for name in BUDGETS}),
            model={**shape, **model},
            training=training,
        )

    def runs(self) -> Iterator[tuple[int, CellName]]:
        """Yield seed and cell of every run, in order: each seed for all cells in turn."""
        return itertools.product(range(self.seed, self.seed + self.seeds), self.cells)


@dataclass(frozen=True, kw_only=True)
class RunResult(Record):
    """What came out of training one cell from one seed."""

    run: str
    """The run's folder."""
    cell: CellName
    seed: int
    layers: int
    hidden: int
    parameters: int
    multiply_adds: int
    """Of the matrix products, for one character read."""
    steps: int
    clipped_steps: int
    trained_characters: int
    seconds: float
    """Wall-clock time of training, validation and saving."""
    train_chars_per_second: float
    """Median over the run, validation and saving left out."""
    valid_nats_per_char: float | None
    """Of the best checkpoint by validation, on all of the validation part; None without one."""
    nats_per_char: float
    """Of the same, the last where nothing was validated, on the test part; on the validation
    part if there is none."""
    bits_per_byte: float
    characters: int
    """Predictions scored there."""
    unknown: int
    """Those of them that are charged with their spelling besides."""
    chars_per_second: float
    """Speed of that scoring."""


@dataclass(frozen=True)
class CellResult:
    """One cell's runs, all seeds."""

    runs: tuple[RunResult, ...]

    @property
    def cell(self) -> CellName:
        """Which recurrence."""
        return self.runs[0].cell

    @property
    def best(self) -> RunResult:
        """The run with the lowest validation loss, which needs no look at the test part.

        The first where nothing is held out to validate.
        """
        return min(self.runs, key=lambda run: run.valid_nats_per_char or 0.0)

    @property
    def nats_per_char(self) -> float:
        """Mean over the seeds."""
        return self.mean("nats_per_char")

    @property
    def spread(self) -> float | None:
        """Standard deviation of the nats per character over the seeds; None for one."""
        if len(self.runs) < 2:
            return None
        return statistics.stdev(run.nats_per_char for run in self.runs)

    def mean(self, name: str) -> float:
        """Return the mean over the seeds of a number of ``RunResult``."""
        return statistics.fmean(getattr(run, name) for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object: numbers that differ from seed to seed are means."""
        best, nats = self.best, self.nats_per_char
        valid = None if best.valid_nats_per_char is None else self.mean("valid_nats_per_char")
        return {
            "checkpoint": best.run,
            "cell": self.cell,
            "layers": best.layers,
            "hidden": best.hidden,
            "parameters": best.parameters,
            "characters": best.characters,
            "unknown": best.unknown,
            "nats_per_char": nats,
            "bits_per_char": nats / math.log(2),
            "bits_per_byte": self.mean("bits_per_byte"),
            "perplexity": perplexity(nats),
            "chars_per_second": self.mean("chars_per_second"),
            "seconds": self.mean("seconds"),
            "spread": self.spread,
            "valid_nats_per_char": valid,
            "multiply_adds": best.multiply_adds,
            "train_chars_per_second": self.mean("train_chars_per_second"),
            "steps": self.mean("steps"),
            "clipped_steps": self.mean("clipped_steps"),
            "runs": [asdict(run) for run in self.runs],
        }


@dataclass(frozen=True)
class Difference:
    """How far two cells are apart."""

    better: CellName
    worse: CellName
    nats: float
    """0 or above."""
    supported: bool
    """Whether it is more than the spread makes by chance."""


@dataclass(frozen=True)
class Comparison:
    """What came out of all runs."""

    plan: Plan
    cells: tuple[CellResult, ...]
    """In the order of the plan."""

    @classmethod
    def of(cls, plan: Plan, results: Sequence[RunResult]) -> Self:
        """Return the comparison of a plan whose runs are all finished."""
        return cls(
            plan,
            tuple(
                CellResult(tuple(result for result in results if result.cell == cell))
                for cell in plan.cells
            ),
        )

    @property
    def least_difference(self) -> float | None:
        """The difference in nats from which on chance is no likely cause; None for one seed.

        Fisher's least significant difference: with n seeds and s the standard deviation
        pooled over the C cells, t s sqrt(2 / n), where t is Student's two-sided 95 % for
        C (n - 1) degrees of freedom. It is for each pair by itself.
        """
        n = len(self.cells[0].runs)
        if n < 2:
            return None
        variance = statistics.fmean((cell.spread or 0.0) ** 2 for cell in self.cells)
        return _student(len(self.cells) * (n - 1)) * math.sqrt(2 * variance / n)

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Every pair of cells, the better one first."""
        ranked = sorted(self.cells, key=lambda cell: cell.nats_per_char)
        least = self.least_difference
        return tuple(
            Difference(a.cell, b.cell, nats, least is not None and nats > least)
            for a, b in itertools.combinations(ranked, 2)
            for nats in [b.nats_per_char - a.nats_per_char]
        )

    def to_list(self) -> list[dict[str, Any]]:
        """Return a JSON list, an object a cell."""
        ahead = {
            cell.cell: [d.worse for d in self.differences if d.supported and d.better == cell.cell]
            for cell in self.cells
        }
        return [cell.to_dict() | {"ahead_of": ahead[cell.cell]} for cell in self.cells]


def _student(freedom: int) -> float:
    """Return Student's t, two-sided 95 %, to 0.1 %."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    # Cornish-Fisher: Abramowitz and Stegun 26.7.5, two terms.
    return (
        z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom * freedom)
    )


# Shapes ------------------------------------------------------------------------------


def matched_hidden(shape: ModelConfig, parameters: int) -> int:
    """Return the width at which a model comes closest to a number of parameters.

    Args:
        shape: of the model, but for its width.
        parameters: wished for.
    """

    def count(hidden: int) -> int:
        return outline(replace(shape, hidden=hidden)).parameter_count()

    # Parameters grow with the width: halve the interval in which they pass the wish.
    low, high = 1, 2
    while count(high) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    return min((low, high), key=lambda hidden: abs(count(hidden) - parameters))


def shapes(
    plan: Plan, *, vocabulary: int, characters: int, device: str, bf16: bool = False
) -> tuple[dict[CellName, ModelConfig], dict[str, int], list[str]]:
    """Return every cell's shape, and the training numbers that all share.

    Args:
        plan: what is compared.
        vocabulary: V.
        characters: of the training part.
        device: "cpu", "cuda" or "mps".
        bf16: whether the device has instructions for products in bf16.

    Returns:
        The shapes; lanes and window; sentences on what could not be matched.
    """
    choose = partial(
        recipe.choose, vocabulary=vocabulary, characters=characters, device=device, bf16=bf16
    )
    reference, training = choose(plan.choices(REFERENCE))
    wished = outline(reference).parameter_count()
    found: dict[CellName, ModelConfig] = {}
    notes = []
    for cell in plan.cells:
        shape, _ = choose(plan.choices(cell, **_sizes(reference)))
        if plan.match == "parameters":
            shape = replace(shape, hidden=matched_hidden(shape, wished))
            off = outline(shape).parameter_count() / wished - 1
            if abs(off) > TOLERANCE:
                notes.append(
                    f"{cell}: {abs(off):.1%} {'more' if off > 0 else 'fewer'} parameters than "
                    f"the {REFERENCE}; no width comes closer: give a larger --hidden"
                )
        found[cell] = shape
    return found, {"batch_size": training.batch_size, "bptt": training.bptt}, notes


def _sizes(shape: ModelConfig) -> dict[str, int]:
    """Return what a run is told of its shape."""
    return {"layers": shape.layers, "hidden": shape.hidden, "embedding": shape.embedding}


# The runs ----------------------------------------------------------------------------


@dataclass(frozen=True)
class RunStarted:
    """A run begins or goes on; its events follow."""

    run: Run
    number: int
    """Of the comparison's runs, from 1."""
    total: int


@dataclass(frozen=True)
class RunScored:
    """A run is finished, now or in an earlier sitting."""

    result: RunResult


@dataclass(frozen=True)
class Note:
    """A sentence that the user should read."""

    text: str


def open_plan(folder: Path) -> Plan:
    """Return the plan of the comparison in a folder.

    Raises:
        RunFolderError: there is none, or it is not usable.
    """
    plan = _read(folder / PLAN, Plan)
    if plan is None:
        raise RunFolderError(
            f"{shown(folder)}: holds no comparison to resume: leave --resume out to start one"
        )
    return plan


def compare(
    folder: Path,
    plan: Plan,
    *,
    new: bool,
    device: torch.device,
    command: str | None = None,
    should_stop: Callable[[], str | None] = lambda: None,
) -> Iterator[RunStarted | RunScored | Note | Event]:
    """Do all runs of a comparison that are not finished yet.

    Args:
        folder: the comparison's.
        plan: what to compare; for a comparison that goes on, from ``open_plan``, perhaps extended.
        new: whether it begins here. The plan of a new or extended one is put into the folder with
            the first run.
        device: where to compute.
        command: the command line that goes on with the comparison, for messages.
        should_stop: as for ``training.train``; a stopped comparison goes on by calling
            this again.

    Yields:
        For every run ``RunStarted``, its events and ``RunScored``; for one that was
        finished before only the last.

    Raises:
        CharrnnError: the text, the folder or a checkpoint is not usable, or a loss is
            not finite.
    """
    if new and (folder / PLAN).exists():
        raise RunFolderError(
            f"{shown(folder)}: holds a comparison already: go on with it with --resume, or choose "
            "another folder with --run"
        )
    runs = [(seed, cell, folder / f"{cell}-seed{seed}") for seed, cell in plan.runs()]
    known = 0 if new else open_plan(folder).seeds
    for seed, _, path in runs:
        added = seed >= plan.seed + known
        if added and ((path / RESULT).exists() or has_state(path)):
            raise RunFolderError(
                f"{shown(path)}: holds a run already, of no comparison that is known here: "
                + ("choose another folder with --run" if new else "move it elsewhere")
            )
    if not new and all(there := [_read_result(path) for _, _, path in runs]):
        # Nothing is left to train: neither the text nor what the rules give here matters.
        yield from (RunScored(result) for result in there if result)
        return
    part = _part_to_train_on(plan)
    plan = replace(plan, fingerprint=part.corpus.fingerprint)
    found, training, notes = shapes(
        plan,
        vocabulary=Vocabulary.from_counts(part.counts(), part.corpus.encoding, plan.min_count).size,
        characters=part.characters,
        device=device.type,
        bf16=multiplies_bf16(device),
    )
    yield from map(Note, notes)
    for number, (seed, cell, path) in enumerate(runs, start=1):
        shape, result = found[cell], _read_result(path)
        if result is not None:
            _refuse_another_shape(path, (result.layers, result.hidden), shape)
        else:
            choices = plan.choices(cell, seed, **_sizes(shape))
            choices = replace(choices, training={**choices.training, **training})
            with _open_run(path) as (held, begun):
                if begun:
                    run = resume(held, device=device, changes={})
                    has = run.model.config
                    _refuse_another_shape(path, (has.layers, has.hidden), shape)
                else:
                    run = start(choices, plan.text(), folder=held, device=device)
                _refuse_another_text(plan, run.train.corpus)
                run.owner = command
                if known < plan.seeds:
                    write_json(folder / PLAN, plan.to_dict())
                    known = plan.seeds
                yield RunStarted(run, number, len(runs))
                result = yield from _finish(run, should_stop)
                if result is None:
                    return
                held.save_result(result.to_dict())
        yield RunScored(result)


def _part_to_train_on(plan: Plan) -> Part:
    """Read a comparison's text, and see that it is the one and leaves something for all parts."""
    corpus = plan.corpus()
    if plan.fingerprint is not None:
        _refuse_another_text(plan, corpus)
    train, valid, test = split(corpus, plan.valid_share, plan.test_share)
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
    return train


def _refuse_another_text(plan: Plan, corpus: Corpus) -> None:
    refuse_another_text(
        corpus,
        plan.fingerprint,
        of="this comparison",
        instead="compare anew in another folder with --run",
    )


def _refuse_another_shape(path: Path, has: tuple[int, int], shape: ModelConfig) -> None:
    """Refuse to go on where the rules give other sizes than the runs so far have."""
    wanted = (shape.layers, shape.hidden)
    if has != wanted:
        raise UsageError(
            f"{shown(path)} has {has[0]} x {has[1]} units, and here it would be {wanted[0]} x "
            f"{wanted[1]}: go on with the comparison on the machine and --device it began on"
        )


@contextmanager
def _open_run(path: Path) -> Iterator[tuple[RunFolder, bool]]:
    """Hold a run's folder; say whether there is something in it to go on from."""
    begun = has_state(path)
    # Killed between its first validation and its first save, it begins again.
    held = RunFolder.open_existing(path) if begun else RunFolder.create(path, over_best=True)
    with held as folder:
        yield folder, begun


def _finish(
    run: Run, should_stop: Callable[[], str | None]
) -> Generator[Event, None, RunResult | None]:
    """Train a run to its end and score it; return None if it was stopped before."""
    for event in train(run, should_stop):
        yield event
        if isinstance(event, Finished) and not event.complete:
            return None
    try:
        return _measure(run, should_stop)
    except Interrupted:
        return None


def _measure(run: Run, should_stop: Callable[[], str | None]) -> RunResult:
    """Score the best checkpoint of a finished run on what was held out."""
    path, progress = run.folder.path, run.progress
    model, vocabulary, _ = load_model(path, run.device)

    def score_part(part: Part) -> Scores:
        return score(model, part, vocabulary, should_stop=lambda: bool(should_stop()))

    valid = score_part(run.valid) if run.valid else None
    test = score_part(run.train.corpus.part(*run.text.test)) if run.text.test else valid
    assert test is not None, "a plan without any held-out part is refused"
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
        train_chars_per_second=_median_speed(path / LOG),
        valid_nats_per_char=valid.nats_per_char if valid else None,
        nats_per_char=test.nats_per_char,
        bits_per_byte=test.bits_per_byte,
        characters=test.characters,
        unknown=test.unknown,
        chars_per_second=test.chars_per_second,
    )


def _median_speed(log: Path) -> float:
    """Return the median of the speeds in a run's log, in characters per second."""
    rows = read_metrics(log)
    speeds = [float(row["chars_per_second"]) for row in rows if "chars_per_second" in row]
    if not speeds:
        raise RunFolderError(
            f"{shown(log)}: the rows on its updates are gone: remove the run's folder to train anew"
        )
    return statistics.median(speeds)


def _read_result(path: Path) -> RunResult | None:
    """Return the result of a finished run; None for one that is not finished.

    Its folder is the one it is found in: it was perhaps written in another place.

    Raises:
        RunFolderError: the file is not usable.
    """
    result = _read(path / RESULT, RunResult, ": remove it to score the run again")
    return None if result is None else replace(result, run=str(path))


def _read(file: Path, kind: type[R], advice: str = "") -> R | None:
    """Return the record in a JSON file; None if there is no such file.

    Raises:
        RunFolderError: it is not usable.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        return kind.from_dict(values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, UsageError) as error:
        raise RunFolderError(f"{shown(file)}: not usable: {error}{advice}") from error
