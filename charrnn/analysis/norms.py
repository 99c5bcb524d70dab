"""The gradient norms of a training and what clipping did to them, as its log tells.

Axis letter: R rows of a log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from charrnn.config import LOG_EVERY, TrainConfig


@dataclass(frozen=True)
class Period:
    """Some consecutive rows of a training's log."""

    first_step: int
    last_step: int
    low: float
    """10 % quantile of the gradient norms in the log, each of them a mean over a few updates."""
    median: float
    largest: float
    """Largest norm of a single update."""
    clipped_share: float
    """Share of the period's updates whose gradient was cut or scaled down."""


@dataclass(frozen=True)
class Clipping:
    """Gradient norms over a training."""

    clip_norm: float | None
    """The norm that gradients were scaled down to; None: they were not."""
    clip_value: float | None
    """The value that single entries were cut to; None: they were not."""
    scale_norm: float | None
    """The norm that every gradient was given; None: it was not."""
    steps: int
    """Updates in the log."""
    largest: float
    """Largest norm of an update."""
    clipped_share: float
    """Share of these updates whose gradient was cut or scaled down."""
    periods: tuple[Period, ...]
    """In order of time, with about the same number of rows each."""


def clipping(
    rows: Sequence[Mapping[str, Any]], training: TrainConfig, periods: int = 12
) -> Clipping | None:
    """Summarise the gradient norms in a training's log.

    Args:
        rows: rows of ``metrics.jsonl``; those on updates have ``gradient_norm``.
        training: how its gradients were to be clipped.
        periods: how many periods at most.

    Returns:
        None if no row is on updates.
    """
    rows = [row for row in rows if "gradient_norm" in row]
    if not rows:
        return None
    norm_R = np.array([row["gradient_norm"] for row in rows], dtype=np.float64)
    largest_R = np.array([row["largest_gradient_norm"] for row in rows])
    clipped_R = np.array([row["clipped_share"] for row in rows], dtype=np.float64)
    # A row covers the updates since the row before. Earlier ones are not in the log of a run that
    # was resumed from its checkpoint alone.
    before = (rows[0]["step"] - 1) // LOG_EVERY * LOG_EVERY
    after_R = np.array([before] + [row["step"] for row in rows])
    updates_R = np.diff(after_R)
    # Fewer periods where that makes them equal: 30 rows make 10 of 3, not 12 of 3 or 2.
    longest = -(-len(rows) // periods)
    pieces = []
    for piece in np.array_split(np.arange(len(rows)), -(-len(rows) // longest)):
        low, median = np.quantile(norm_R[piece], (0.1, 0.5)).tolist()
        pieces.append(
            Period(
                first_step=int(after_R[piece[0]]) + 1,
                last_step=int(after_R[piece[-1] + 1]),
                low=low,
                median=median,
                largest=float(largest_R[piece].max()),
                clipped_share=float(np.average(clipped_R[piece], weights=updates_R[piece])),
            )
        )
    return Clipping(
        clip_norm=training.clip_norm,
        clip_value=training.clip_value,
        scale_norm=training.scale_norm,
        steps=int(after_R[-1]) - before,
        largest=float(largest_R.max()),
        clipped_share=float(np.average(clipped_R, weights=updates_R)),
        periods=tuple(pieces),
    )
