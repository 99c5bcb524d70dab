"""What came out of a comparison, and which differences chance could explain."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from charrnn.chance import Difference, differences_of_means
from charrnn.config import CellName, Record
from charrnn.nats import in_bits, perplexity
from charrnn.runs.comparison_plan import Plan
from charrnn.storage.metrics import LARGEST

#: Numbers of a result that others are divided by.
DIVISORS = ("parameters", "seconds", "train_chars_per_second", "characters")


#: A field of a config, as JSON has it.
_Value = str | int | float | bool | None


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
    """The part of ``seconds`` spent on validations, including the checkpoint and sample that come
    with each."""
    uniform_nats: float
    """What guessing costs in that part, in nats per character."""
    trained_by: str | None
    """What trained it last: a processor with its threads, or a GPU; None: its last checkpoint was
    gone."""
    versions: dict[str, str]
    """Of ``charrnn`` and ``torch`` when the checkpoint that is scored was saved."""
    model: dict[str, _Value]
    """Its ``ModelConfig``, with all that the rules chose."""
    training: dict[str, _Value]
    """The same of its ``TrainConfig``."""

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
        return statistics.stdev(self.losses)

    @property
    def losses(self) -> tuple[float, ...]:
        """Nats per character of each run."""
        return tuple(run.nats_per_char for run in self.runs)

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
            "valid_bits_per_char": None if valid is None else in_bits(valid),
            "valid_perplexity": None if valid is None else perplexity(valid),
            "multiply_adds": best.multiply_adds,
            "train_chars_per_second": self.mean("train_chars_per_second"),
            "steps": self.mean("steps"),
            "clipped_steps": self.mean("clipped_steps"),
            "runs": [asdict(run) for run in self.runs],
        }


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
    def is_validated(self) -> bool:
        """Whether the checkpoints were chosen by validation."""
        return self.cells[0].best.valid_nats_per_char is not None

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Every pair of cells, the better one first."""
        return tuple(differences_of_means({cell.cell: cell.losses for cell in self.cells}))

    def to_list(self) -> list[dict[str, Any]]:
        """Return a JSON list, with one object per cell that has a finished run."""
        differences = self.differences
        of_all = {
            "texts": self.plan.texts,
            "valid_texts": self.plan.valid,
            "part": self.plan.compared_on,
            "fingerprint": self.plan.fingerprint,
            "plan": self.plan.to_dict(),
        }
        return [
            cell.to_dict()
            | of_all
            | {
                "ahead_of": [
                    one.worse for one in differences if one.supported and one.better == cell.cell
                ],
                "differences": [asdict(one) for one in differences if one.better == cell.cell],
                "failed_seeds": [one.seed for one in self.failures if one.cell == cell.cell],
            }
            for cell in self.cells
        ]
