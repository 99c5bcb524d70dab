"""How far chance may go: confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: Least variance over the seeds that is taken for one: its inverse is a weight.
_LEAST_VARIANCE = 1e-24


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
    """Whether chance is an unlikely cause: 0 is outside the interval, and a test of all cells, if
    there is one, found that they differ."""


def student(freedom: float, outside: float = 0.05) -> float:
    """Return the t beyond which, on both sides, a share ``outside`` of Student's t lies.

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

    low, high = 0.0, 16.0
    while inside(high) < 1 - outside:
        high *= 2
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 1 - outside else (low, middle)
    return high


def paired_margin(differences: Sequence[float], tests: int = 1) -> float:
    """Return half the width of the 95 % confidence interval around a mean of differences.

    Args:
        differences: of pairs, independent of each other; two or more.
        tests: how many such intervals are to hold together in 95 % (Bonferroni's correction).
    """
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return student(len(differences) - 1, 0.05 / tests) * error


def squared_error(values: Sequence[float]) -> float:
    """Return the squared standard error of the mean of two or more values; never 0."""
    return max(statistics.stdev(values) ** 2, _LEAST_VARIANCE) / len(values)


def welch_margin(a: Sequence[float], b: Sequence[float], tests: int = 1) -> float:
    """Return half the width of the 95 % confidence interval around a difference of two means.

    Welch's t test (1947), which lets each sample have its own spread.

    Args:
        a: one sample: two values or more.
        b: the other.
        tests: as in ``paired_margin``.
    """
    of_a, of_b = squared_error(a), squared_error(b)
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    return student(freedom, 0.05 / tests) * math.sqrt(of_a + of_b)
