"""How far chance may go: confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """How far apart the losses of two cells or models are."""

    better: str
    worse: str
    nats: float
    """Per character; 0 or above."""
    margin: float | None
    """Half the width of the 95 % confidence interval around ``nats``; None where nothing tells
    it."""
    supported: bool
    """Whether chance is an unlikely cause: 0 is outside the interval, and no test before it found
    that nothing differs."""


def student(freedom: float) -> float:
    """Return Student's t, two-sided 95 %, for any degrees of freedom from 1 on.

    With t = sqrt(freedom) tan(x), the density of x is proportional to cos(x)^(freedom - 1).
    """
    ratio = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    peak = 2 / math.sqrt(math.pi) * math.exp(ratio)

    def inside(t: float) -> float:
        end, steps = math.atan(t / math.sqrt(freedom)), 64
        density: list[float] = [
            math.cos(step / steps * end) ** (freedom - 1) for step in range(steps + 1)
        ]
        # Simpson's rule.
        area = density[0] + 4 * sum(density[1::2]) + 2 * sum(density[2:-1:2]) + density[-1]
        return peak * end * area / (3 * steps)

    low, high = 1.95, 12.75
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 0.95 else (low, middle)
    return high


def paired_margin(differences: Sequence[float]) -> float:
    """Return half the width of the 95 % confidence interval around a mean of differences.

    Args:
        differences: of pairs, independent of each other; two or more.
    """
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return student(len(differences) - 1) * error
