"""What is compared: the plan of a comparison."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

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
from charrnn.errors import UsageError

#: A plan's fields that the model of every run is given ...
OF_MODEL = [field.name for field in fields(ModelConfig) if field.name not in ("cell", "vocabulary")]
#: ... and those that its training is given, beside seed and budget.
OF_TRAINING = (
    "dropout_masks", "loss_temperature", "batch_size", "bptt", "optimiser", "lr", "weight_decay",
    "clip_norm", "precision",
)  # fmt: skip


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
    """Of the matrix products; None (before the first run): bf16 where the hardware has it."""
    device: DeviceName | None = None
    """Where it began and has to go on; None before that is known."""
    fingerprint: str | None = None
    """The text's, as in ``Corpus``; None before it is read."""
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
