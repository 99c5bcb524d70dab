"""What is compared, and what came out of it: the plan, the results, what chance makes of them.

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
from charrnn.files import PLAN, RESULT, absolute_names
from charrnn.metrics import LARGEST
from charrnn.nats import in_bits, perplexity
from charrnn.wording import command_line, reason, shown

R = TypeVar("R", bound=Record)

#: Parameters are matched when they differ by no more than this share.
TOLERANCE = 0.01
#: What a plan names texts in, and what names them on a command line.
TEXTS = {"texts": "TEXT", "valid": "--valid TEXT"}
#: What a plan tells every run of its model ...
OF_MODEL = [field.name for field in fields(ModelConfig) if field.name not in ("cell", "vocabulary")]
#: ... and of its training, beside seed and budget.
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
    valid: tuple[str, ...] = ()
    """Absolute paths of texts to validate on, instead of a share of ``texts``."""
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
    dropout_masks: int | None = None
    loss_temperature: float | None = None
    batch_size: int | None = None
    bptt: int | None = None
    optimiser: OptimiserName | None = None
    lr: float | None = None
    """Of the recurrence's matrices; each cell's recipe has the ratio of the other rate to it."""
    weight_decay: float | None = None
    clip_norm: float | None = None
    """0: no clipping."""
    precision: PrecisionName | None = None
    """Of the products; None, before the first run and in older plans: bf16 where the hardware has
    it."""
    device: DeviceName | None = None
    """Where it began, and goes on; None in older plans."""
    fingerprint: str | None = None
    """Of the text, as ``Corpus`` has it; None before it is read, and in older plans."""
    valid_fingerprint: str | None = None
    """Of the text to validate on, if it is another."""

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
        """The texts that this part is of; none: the embedded corpus."""
        return self.valid if self.valid and self.compared_on == "valid" else self.texts

    def moved(self, texts: Sequence[str], valid: Sequence[str]) -> Self:
        """Return the plan with the names of texts that have moved.

        Args:
            texts: absolute names; none: they have not.
            valid: those of the texts to validate on.

        Raises:
            UsageError: there are no such texts.
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
        """Return what one run is told, beside the text.

        Args:
            cell: its recurrence.
            seed: its seed; None: the first.
            model: numbers of its shape that are known by now.
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
        """Yield seed and cell of every run, in order: each seed for all cells in turn."""
        return itertools.product(range(self.seed, self.seed + self.seeds), self.cells)

    @staticmethod
    def run_name(seed: int, cell: CellName) -> str:
        """Return the name of a run's folder in that of the comparison."""
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
    """Of the matrix products, for one character read."""
    steps: int
    clipped_steps: int
    trained_characters: int
    seconds: float
    """Wall-clock time of training, validation and saving."""
    train_chars_per_second: float
    """Median of the log's rows, which leave validations out."""
    valid_nats_per_char: float | None
    """Of the best checkpoint by validation, on all of the validation part; None without one."""
    nats_per_char: float
    """Of the same, the last where nothing was validated, on the test part; on the validation
    part if there is none."""
    bits_per_byte: float | None
    """None where the predicted characters have no byte of their own (see ``Scores``)."""
    characters: int
    """Predictions scored there."""
    unknown: int
    """Those of them that are charged with their spelling besides."""
    chars_per_second: float
    """Speed of that scoring."""
    validation_seconds: float
    """Those of ``seconds`` that were validations', each with the checkpoint and the sample after
    it."""
    uniform_nats: float
    """What guessing costs there, nats per character."""

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
    """A run that nothing came out of: a loss, gradient or weight of it was not finite."""

    cell: CellName
    seed: int
    reason: str


@dataclass(frozen=True)
class CellResult:
    """One cell's runs, all seeds that came to their end: at least one."""

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
    """How far two cells are apart."""

    better: CellName
    worse: CellName
    nats: float
    """0 or above."""
    supported: bool
    """Whether it is more than the spread makes by chance: above the least significant difference
    of cells that differ at all."""


@dataclass(frozen=True)
class Comparison:
    """What came out of all runs."""

    plan: Plan
    cells: tuple[CellResult, ...]
    """In the order of the plan, without those of which every run failed."""
    failures: tuple[RunFailure, ...] = ()

    @classmethod
    def of(
        cls, plan: Plan, results: Sequence[RunResult], failures: Sequence[RunFailure] = ()
    ) -> Self:
        """Return the comparison of a plan whose runs are all over, one with a result at least."""
        runs = [tuple(result for result in results if result.cell == cell) for cell in plan.cells]
        return cls(plan, tuple(map(CellResult, filter(None, runs))), tuple(failures))

    @property
    def least_difference(self) -> float | None:
        """The difference in nats from which on chance is no likely cause.

        None where a cell has one run.

        Fisher's least significant difference: with n seeds and s the standard deviation
        pooled over the C cells, t s sqrt(2 / n), where t is Student's two-sided 95 % for
        C (n - 1) degrees of freedom. It is for each pair by itself (see ``differ``). Where runs
        failed, n is that of the cell with the fewest left.
        """
        fewest = min(len(cell.runs) for cell in self.cells)
        if fewest < 2:
            return None
        return _student(self._freedom) * math.sqrt(2 * self._variance / fewest)

    @property
    def differ(self) -> bool:
        """Whether the cells differ at all by more than chance: False for one seed.

        Of three cells by an analysis of variance (F test) at 5 %: with it before the least
        significant difference, Fisher's protected one, chance makes a pair of up to three cells
        stand out in 5 % of comparisons, and not each pair in 5 %. Of two the least difference says
        the same by itself. Both hold for cells that spread alike, from as many seeds as were fixed
        beforehand.
        """
        if self.least_difference is None:
            return False
        if len(self.cells) < 3:
            return True
        runs = [len(cell.runs) for cell in self.cells]
        means = [cell.nats_per_char for cell in self.cells]
        mean = statistics.fmean(means, weights=runs)
        between = sum(n * (m - mean) ** 2 for n, m in zip(runs, means, strict=True)) / 2
        # The quantile of F for 2 and f degrees of freedom has a closed form, for no other number.
        f = self._freedom
        least_ratio: float = f / 2 * (0.05 ** (-2 / f) - 1)
        return between > least_ratio * self._variance

    @property
    def _freedom(self) -> int:
        """Degrees of freedom of the variance: C (n - 1)."""
        return sum(len(cell.runs) - 1 for cell in self.cells)

    @property
    def _variance(self) -> float:
        """Of the nats per character over the seeds of a cell, pooled over the cells."""
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
        """Return a JSON list, an object a cell that a run of came to its end."""
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
    """Return Student's t, two-sided 95 %, to 0.1 %."""
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
        RunFolderError: it is no folder, there is none in it, or it is not usable.
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
    """Return how a comparison goes on.

    Args:
        folder: the comparison's.
        seeds: runs of each cell; None: as many as before.
        texts: where its text is now; none: where it was.
        valid: the same of the text to validate on.

    Returns:
        Its plan from now on; the plan in the folder; the words of a command line that make the
        one of the other.

    Raises:
        RunFolderError: as of ``open_plan``.
        UsageError: the plan allows no such change.
    """
    begun = open_plan(folder)
    plan = begun if seeds is None else begun.extended(seeds)
    plan = plan.moved(absolute_names(texts), absolute_names(valid))
    words: list[str | Path] = []
    if plan.texts != begun.texts:
        words += map(Path, texts)  # one with a dash before it is no option
    if plan.valid != begun.valid:
        words += [word for name in valid for word in ("--valid", name)]
    if seeds is not None:
        words += ["--seeds", str(plan.seeds)]
    return plan, begun, words


def refuse_comparison(run: Path) -> None:
    """Refuse to train in a comparison's folder, or a run that it measures beside others.

    Raises:
        RunFolderError: the folder is that of a comparison or of one of its runs, or it lies in
            that of a comparison whose plan is not usable.
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
    """Return the folder of the comparison that the run in a folder is part of; None: of none.

    Raises:
        RunFolderError: it lies in that of a comparison whose plan is not usable.
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
    """Return what follows the reason why a comparison's text cannot be read; "" for Python's own.

    Args:
        plan: the comparison's.
        command: the line that goes on with it.
        named: fields of ``TEXTS`` whose texts it names already.
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
        why = reason(error) if isinstance(error, OSError) else error
        raise RunFolderError(f"{shown(file)}: not usable: {why}{advice}") from error
