"""What came out of a comparison, and which differences chance could explain."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from charrnn.config import CellName, Record
from charrnn.nats import in_bits, perplexity
from charrnn.runs.comparison_plan import Plan
from charrnn.storage.metrics import LARGEST

#: Numbers of a result that others are divided by.
DIVISORS = ("parameters", "seconds", "train_chars_per_second", "characters")
#: Student's t, two-sided 95 %, for 1 to 10 degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


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
    def best_cell(self) -> CellResult:
        """The cell of the lowest mean loss."""
        return min(self.cells, key=lambda cell: cell.nats_per_char)

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
