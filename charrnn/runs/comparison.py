"""What is compared and what came out: the plan, the results, and what chance could explain.

A comparison is a folder: ``comparison.json`` with its plan, and a run's folder for
every cell and seed, with the run's ``result.json`` once it is finished. ``comparing``
does the runs.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from charrnn import recipe
from charrnn.config import (
    BUDGETS,
    CELL_NAMES,
    CellName,
    DeviceName,
    MatchName,
    ModelConfig,
    OptimiserName,
    PartName,
    PrecisionName,
    Record,
    TextChoices,
)
from charrnn.disk import followed
from charrnn.errors import RunFolderError, UsageError
from charrnn.nats import in_bits, perplexity
from charrnn.storage.metrics import LARGEST
from charrnn.text.files import PLAN, RESULT, absolute_names
from charrnn.wording import command_line, reason, shown

R = TypeVar("R", bound=Record)

#: Parameters count as matched if they differ by no more than this share.
TOLERANCE = 0.01
#: A plan's fields that name texts -> how a command line names them.
TEXTS = {"texts": "TEXT", "valid": "--valid TEXT"}
#: A plan's fields that the model of every run is given ...
OF_MODEL = [field.name for field in fields(ModelConfig) if field.name not in ("cell", "vocabulary")]
#: ... and those that its training is given, beside seed and budget.
OF_TRAINING = (
    "dropout_masks", "loss_temperature", "batch_size", "bptt", "optimiser", "lr", "weight_decay",
    "clip_norm", "precision",
)  # fmt: skip
#: Numbers of a result that others are divided by.
DIVISORS = ("parameters", "seconds", "train_chars_per_second", "characters")
#: Student's t, two-sided 95 %, for 1 to 10 degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, kw_only=True)
class Plan(Record):
    """What is compared: all that a comparison needs to begin or to go on.

    Raises:
        UsageError: a number or a combination makes no sense for one of its runs.
    """

    texts: tuple[str, ...]
    """Absolute paths, folders or globs; none: the embedded corpus."""
    cells: tuple[CellName, ...] = CELL_NAMES
    match: MatchName = "parameters"
    """What all models have the same number of: parameters, or hidden units."""
    seeds: int = 1
    """Runs of each cell."""
    seed: int = 1
    """Seed of each cell's first run; the others follow."""
    minutes: float | None = None
    """Budget of each run; exactly one of these three."""
    epochs: float | None = None
    steps: int | None = None
    encoding: str | None = None
    valid: tuple[str, ...] = ()
    """Absolute paths of texts to validate on, instead of a share of ``texts``."""
    valid_share: float = 0.1
    test_share: float = 0.1
    min_count: int | None = None
    layers: int | None = None
    """Here and below, None leaves a number to the reference cell's recipe, or to each cell's
    own."""
    hidden: int | None = None
    """H of the reference cell; of all cells if hidden is matched."""
    embedding: int | None = None
    dropout: float | None = None
    weight_drop: float | None = None
    dropout_masks: int | None = None
    loss_temperature: float | None = None
    batch_size: int | None = None
    bptt: int | None = None
    optimiser: OptimiserName | None = None
    lr: float | None = None
    """For the recurrence's matrices; each cell's recipe sets the other rate in proportion."""
    weight_decay: float | None = None
    clip_norm: float | None = None
    """0: no clipping."""
    precision: PrecisionName | None = None
    """Of the matrix products; None (before the first run, and in older plans): bf16 where the
    hardware has it."""
    device: DeviceName | None = None
    """Where it began and has to go on; None in older plans."""
    fingerprint: str | None = None
    """The text's, as in ``Corpus``; None before it is read, and in older plans."""
    valid_fingerprint: str | None = None
    """That of the text to validate on, if it is a separate one."""

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
        if not any(getattr(self, name) is not None for name in BUDGETS):
            raise UsageError("a budget is missing: one of minutes, epochs, steps")
        if "-" in self.texts:
            raise UsageError("compare reads the text once a run: give a file, not -")
        if not self.valid and self.valid_share == 0 and self.test_share == 0:
            raise UsageError("--valid-share and --test-share are 0: nothing is left to compare on")
        # What the runs would refuse later is refused now.
        self.text()
        for seed, cell in itertools.product({self.seed, self.seed + self.seeds - 1}, self.cells):
            recipe.refuse_nonsense(self.choices(cell, seed))

    def extended(self, seeds: int) -> Self:
        """Return the plan with more runs of each cell, after those that it has.

        Raises:
            UsageError: they would be fewer, or too many.
        """
        if seeds < self.seeds:
            raise UsageError(
                f"--seeds {seeds} is fewer than the {self.seeds} of this comparison: --resume can "
                "only add some"
            )
        return replace(self, seeds=seeds)

    @property
    def compared_on(self) -> PartName:
        """The part of the text that the cells are compared on."""
        return "test" if self.test_share else "valid"

    @property
    def compared_texts(self) -> tuple[str, ...]:
        """The texts that this part belongs to; none: the embedded corpus."""
        return self.valid if self.valid and self.compared_on == "valid" else self.texts

    def moved(self, texts: Sequence[str], valid: Sequence[str]) -> Self:
        """Return the plan with new names for texts that have moved.

        Args:
            texts: absolute names; none: they have not moved.
            valid: the same for the texts to validate on.

        Raises:
            UsageError: there is no separate text to validate on.
        """
        if valid and not self.valid:
            raise UsageError(
                "--valid: this comparison has no separate text to validate on: leave it out"
            )
        return replace(self, texts=tuple(texts) or self.texts, valid=tuple(valid) or self.valid)

    def text(self) -> TextChoices:
        """Return what every run reads."""
        return TextChoices(
            texts=self.texts,
            encoding=self.encoding,
            valid=self.valid,
            valid_share=self.valid_share,
            test_share=self.test_share,
            min_count=self.min_count,
        )

    def choices(self, cell: CellName, seed: int | None = None, **model: int) -> recipe.Choices:
        """Return the choices for one run, without the text.

        Args:
            cell: its recurrence.
            seed: its seed; None: the first.
            model: sizes of its shape that are already known.
        """
        shape = {name: getattr(self, name) for name in OF_MODEL}
        training = {name: getattr(self, name) for name in OF_TRAINING}
        return recipe.Choices(
            cell=cell,
            budget=recipe.given({name: getattr(self, name) for name in BUDGETS}),
            model={**shape, **model},
            training={**training, "seed": self.seed if seed is None else seed},
        )

    def runs(self) -> Iterator[tuple[int, CellName]]:
        """Yield the seed and cell of every run, in order: all cells for one seed, then the next."""
        return itertools.product(range(self.seed, self.seed + self.seeds), self.cells)

    @staticmethod
    def run_name(seed: int, cell: CellName) -> str:
        """Return the name of a run's folder within the comparison's folder."""
        return f"{cell}-seed{seed}"


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
    """In the matrix products, per character read."""
    steps: int
    clipped_steps: int
    trained_characters: int
    seconds: float
    """Wall-clock time of training, validation and saving."""
    train_chars_per_second: float
    """Median over the log's rows, which leave out validations."""
    valid_nats_per_char: float | None
    """Of the checkpoint chosen by validation, on the whole validation part; None without one."""
    nats_per_char: float
    """Of the same checkpoint, or the last if nothing was validated, on the test part; on the
    validation part if there is no test part."""
    bits_per_byte: float | None
    """None where the predicted characters have no bytes of their own (see ``Scores``)."""
    characters: int
    """Predictions in that part."""
    unknown: int
    """How many of them are unknown characters, which also cost their spelling."""
    chars_per_second: float
    """Speed of that scoring."""
    validation_seconds: float
    """The part of ``seconds`` spent on validations, including the checkpoint and sample after
    each."""
    uniform_nats: float
    """What guessing costs in that part, in nats per character."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            is_huge = isinstance(value, float) and abs(value) >= LARGEST
            if is_huge or (name in DIVISORS and value <= 0):
                raise ValueError(f"{name!r} cannot be {value}")

    @property
    def is_worse_than_guessing(self) -> bool:
        """Whether ``nats_per_char`` is above ``uniform_nats``."""
        return self.nats_per_char > self.uniform_nats


@dataclass(frozen=True)
class RunFailure:
    """A run without a result: its loss, a gradient or a weight was not finite."""

    cell: CellName
    seed: int
    reason: str


@dataclass(frozen=True)
class CellResult:
    """One cell's finished runs: at least one."""

    runs: tuple[RunResult, ...]

    @property
    def cell(self) -> CellName:
        """Which recurrence."""
        return self.runs[0].cell

    @property
    def best(self) -> RunResult:
        """The run with the lowest validation loss: the choice does not use the test part.

        The first run if nothing is held out to validate on.
        """
        return min(self.runs, key=lambda run: run.valid_nats_per_char or 0.0)

    @property
    def nats_per_char(self) -> float:
        """Mean over the seeds."""
        return self.mean("nats_per_char")

    @property
    def spread(self) -> float | None:
        """Standard deviation of the nats per character over the seeds; None for a single one."""
        if len(self.runs) < 2:
            return None
        return statistics.stdev(run.nats_per_char for run in self.runs)

    def mean(self, name: str) -> float:
        """Return the mean over the seeds of a number in ``RunResult``."""
        return statistics.fmean(getattr(run, name) for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object; numbers that differ from seed to seed are means."""
        best, nats = self.best, self.nats_per_char
        valid = None if best.valid_nats_per_char is None else self.mean("valid_nats_per_char")
        by_byte = None if best.bits_per_byte is None else self.mean("bits_per_byte")
        return {
            "checkpoint": best.run,
            "cell": self.cell,
            "layers": best.layers,
            "hidden": best.hidden,
            "parameters": best.parameters,
            "characters": best.characters,
            "unknown": best.unknown,
            "nats_per_char": nats,
            "bits_per_char": in_bits(nats),
            "bits_per_byte": by_byte,
            "perplexity": perplexity(nats),
            "chars_per_second": self.mean("chars_per_second"),
            "seconds": self.mean("seconds"),
            "validation_seconds": self.mean("validation_seconds"),
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
    """How far apart two cells are."""

    better: CellName
    worse: CellName
    nats: float
    """0 or above."""
    supported: bool
    """Whether chance is an unlikely cause: the cells differ at all, and these two by more than the
    least significant difference."""


@dataclass(frozen=True)
class Comparison:
    """What came out of all runs."""

    plan: Plan
    cells: tuple[CellResult, ...]
    """In the order of the plan, without cells whose runs all failed."""
    failures: tuple[RunFailure, ...] = ()

    @classmethod
    def of(
        cls, plan: Plan, results: Sequence[RunResult], failures: Sequence[RunFailure] = ()
    ) -> Self:
        """Return the comparison of a plan whose runs are all over; at least one has a result."""
        runs = [tuple(result for result in results if result.cell == cell) for cell in plan.cells]
        return cls(plan, tuple(map(CellResult, filter(None, runs))), tuple(failures))

    @property
    def least_difference(self) -> float | None:
        """The difference in nats above which chance is an unlikely cause.

        None where a cell has only one run.

        Fisher's least significant difference: with n seeds and s the standard deviation
        pooled over the C cells, t s sqrt(2 / n), where t is Student's two-sided 95 % for
        C (n - 1) degrees of freedom. It holds for each pair by itself (see ``differ``). Where
        runs failed, n is that of the cell with the fewest left.
        """
        fewest = min(len(cell.runs) for cell in self.cells)
        if fewest < 2:
            return None
        return _student(self._freedom) * math.sqrt(2 * self._variance / fewest)

    @property
    def differ(self) -> bool:
        """Whether the cells differ at all by more than chance; False for one seed.

        For three cells this is an analysis of variance (F test) at 5 %. With this test before the
        least significant difference (Fisher's protected one), chance makes some pair stand out in
        5 % of comparisons, rather than each pair in 5 %; that holds for up to three cells. For two,
        the least difference alone does this. Both tests assume cells of equal spread, and a number
        of seeds fixed beforehand.
        """
        if self.least_difference is None:
            return False
        if len(self.cells) < 3:
            return True
        runs = [len(cell.runs) for cell in self.cells]
        means = [cell.nats_per_char for cell in self.cells]
        mean = statistics.fmean(means, weights=runs)
        between = sum(n * (m - mean) ** 2 for n, m in zip(runs, means, strict=True)) / 2
        # For three cells, thus 2 and f degrees of freedom, F's quantile has a closed form.
        f = self._freedom
        least_ratio: float = f / 2 * (0.05 ** (-2 / f) - 1)
        return between > least_ratio * self._variance

    @property
    def _freedom(self) -> int:
        """Degrees of freedom of the variance: C (n - 1) if no run failed."""
        return sum(len(cell.runs) - 1 for cell in self.cells)

    @property
    def _variance(self) -> float:
        """Variance of the nats per character over a cell's seeds, pooled over the cells."""
        squares = ((len(cell.runs) - 1) * (cell.spread or 0.0) ** 2 for cell in self.cells)
        return sum(squares) / self._freedom

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Every pair of cells, the better one first."""
        ranked = sorted(self.cells, key=lambda cell: cell.nats_per_char)
        least = self.least_difference if self.differ else None
        return tuple(
            Difference(a.cell, b.cell, nats, least is not None and nats > least)
            for a, b in itertools.combinations(ranked, 2)
            for nats in [b.nats_per_char - a.nats_per_char]
        )

    def to_list(self) -> list[dict[str, Any]]:
        """Return a JSON list, with one object per cell that has a finished run."""
        ahead = {
            cell.cell: [d.worse for d in self.differences if d.supported and d.better == cell.cell]
            for cell in self.cells
        }
        of_all = {
            "texts": self.plan.texts,
            "valid_texts": self.plan.valid,
            "part": self.plan.compared_on,
            "least_difference": self.least_difference,
        }
        return [
            cell.to_dict()
            | of_all
            | {
                "ahead_of": ahead[cell.cell],
                "failed_seeds": [one.seed for one in self.failures if one.cell == cell.cell],
            }
            for cell in self.cells
        ]


def _student(freedom: int) -> float:
    """Return Student's t, two-sided 95 %, accurate to 0.1 %."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    # Cornish-Fisher: Abramowitz and Stegun 26.7.5, two terms.
    return (
        z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom * freedom)
    )


# The files ---------------------------------------------------------------------------


def open_plan(folder: Path) -> Plan:
    """Return the plan of the comparison in a folder.

    Raises:
        RunFolderError: it is not a folder, or holds no plan or one that is not usable.
    """
    if folder.is_file():
        raise RunFolderError(f"{shown(folder)}: is a file: name a comparison's folder")
    plan = _read(folder / PLAN, Plan)
    if plan is None:
        raise RunFolderError(
            f"{shown(folder)}: holds no comparison to resume: leave --resume out to start one"
        )
    return plan


def take_up(
    folder: Path, seeds: int | None, texts: Sequence[str], valid: Sequence[str]
) -> tuple[Plan, Plan, list[str | Path]]:
    """Return the plan by which a comparison goes on.

    Args:
        folder: the comparison's.
        seeds: runs of each cell; None: as many as before.
        texts: where its text is now; none: where it was.
        valid: the same for the text to validate on.

    Returns:
        The plan from now on; the plan in the folder; the words on a command line that turn the
        latter into the former.

    Raises:
        RunFolderError: as in ``open_plan``.
        UsageError: the plan allows no such change.
    """
    begun = open_plan(folder)
    plan = begun if seeds is None else begun.extended(seeds)
    plan = plan.moved(absolute_names(texts), absolute_names(valid))
    words: list[str | Path] = []
    if plan.texts != begun.texts:
        words += map(Path, texts)  # as paths, so that a leading dash does not make an option
    if plan.valid != begun.valid:
        words += [word for name in valid for word in ("--valid", name)]
    if seeds is not None:
        words += ["--seeds", str(plan.seeds)]
    return plan, begun, words


def refuse_comparison(run: Path) -> None:
    """Refuse to train in the folder of a comparison, or of one of its runs.

    Raises:
        RunFolderError: it is such a folder, or lies in that of a comparison whose plan is not
            usable.
    """
    run = followed(run)
    if (run / PLAN).exists():
        raise RunFolderError(
            f"{shown(run)}: holds a comparison: go on with it with: "
            f"{command_line(resume_words(run))}; or choose another folder with --run"
        )
    if (comparison := comparison_of(run)) is not None:
        raise RunFolderError(
            f"{shown(run)}: is a run of a comparison, whose runs have one budget: go on with them "
            f"with: {command_line(resume_words(comparison))}; or start from its weights with "
            "--init-from, in another folder"
        )


def comparison_of(run: Path) -> Path | None:
    """Return the folder of the comparison that the run in a folder belongs to; None if to none.

    Raises:
        RunFolderError: it lies in the folder of a comparison whose plan is not usable.
    """
    run = followed(run)
    if not (run.parent / PLAN).exists():
        return None
    plan = open_plan(run.parent)
    return run.parent if run.name in {plan.run_name(*one) for one in plan.runs()} else None


def resume_words(folder: Path) -> list[str | Path]:
    """Return the words of the command that goes on with a folder's comparison."""
    return ["charrnn", "compare", "--run", folder, "--resume"]


def name_moved(plan: Plan, command: str, named: Collection[str] = ()) -> str:
    """Return advice for when a comparison's text cannot be read; "" for the embedded corpus.

    Args:
        plan: the comparison's.
        command: the command line that goes on with it.
        named: fields of ``TEXTS`` whose texts that already names.
    """
    words = [word for name, word in TEXTS.items() if getattr(plan, name) and name not in named]
    if not words:
        return ""
    return f"; if the text has moved, name it: {command} {' '.join(words)}"


def read_results(folder: Path, plan: Plan) -> list[RunResult | None]:
    """Return the result of each run of a comparison, in order; None where it is not finished.

    Raises:
        RunFolderError: one of them is not usable.
    """
    return [read_result(folder / plan.run_name(*one)) for one in plan.runs()]


def read_result(path: Path) -> RunResult | None:
    """Return the result of a finished run; None for one that is not finished.

    Its ``run`` is the folder where it was found, which may have moved since it was written.

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
        why = reason(error) if isinstance(error, OSError) else error
        raise RunFolderError(f"{shown(file)}: not usable: {why}{advice}") from error
