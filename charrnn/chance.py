"""How far chance may go: confidence intervals."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Least variance over the seeds that is taken for one: its inverse is a weight.
_LEAST_VARIANCE = 1e-24


@dataclass(frozen=True)
class Difference:
    """How far apart the losses of two cells, settings or models are."""

    better: str
    worse: str
    nats: float
    """Per character; 0 or above."""
    margin: float | None
    """Half the width of the 95 % confidence interval around ``nats``; None where nothing tells
    it."""
    supported: bool
    """Whether chance is an unlikely cause: 0 is outside the interval, and a test of all, if there
    is one, found that they differ."""


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


def paired_margin(differences: Sequence[float], tests: int) -> float:
    """Return half the width of the 95 % confidence interval around a mean of differences.

    Args:
        differences: of pairs, independent of each other; two or more.
        tests: how many such intervals are to hold together in 95 % (Bonferroni's correction).
    """
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return student(len(differences) - 1, 0.05 / tests) * error


def differences_of_means(samples: Mapping[str, Sequence[float]]) -> list[Difference]:
    """Return how far apart the means of each two samples are, the best first.

    Margins are Welch's (1947), which let each sample have its own spread; but where each has two
    values only, which hardly tell one, all are taken to spread alike (Student's). With up to three
    samples a difference is supported only if ``differ`` finds one, too: then chance makes some pair
    stand out in about 5 % of cases, rather than each pair in 5 %. With more the intervals are
    wider, so that they hold for all pairs together. The sizes must have been fixed beforehand.

    Args:
        samples: losses by name; one of a single value has no margin to any other.
    """
    several = {name: values for name, values in samples.items() if len(values) > 1}
    do_differ = len(several) > 3 or differ([*several.values()])
    tests = math.comb(len(several), 2) if len(several) > 3 else 1
    shared = _shared_squared_error([*several.values()])
    found = []
    ranked = sorted(samples.items(), key=lambda named: statistics.fmean(named[1]))
    for (better, a), (worse, b) in itertools.combinations(ranked, 2):
        nats = statistics.fmean(b) - statistics.fmean(a)
        margin = None
        if better in several and worse in several:
            if shared is None:
                margin = _welch_margin(a, b, tests)
            else:
                margin = student(len(several), 0.05 / tests) * math.sqrt(2 * shared)
        supported = do_differ and margin is not None and nats > margin
        found.append(Difference(better, worse, nats, margin, supported))
    return found


def differ(samples: Sequence[Sequence[float]]) -> bool:
    """Whether up to three samples of two values or more differ at all by more than chance.

    For three this is Welch's analysis of variance at 5 % (Welch 1951), or Fisher's where each has
    two values only. For two, the test of the pair alone does this.
    """
    if len(samples) < 3:
        return len(samples) == 2
    means = [statistics.fmean(values) for values in samples]
    shared = _shared_squared_error(samples)
    weights = [1 / (shared or _squared_error(values)) for values in samples]
    mean, whole = statistics.fmean(means, weights), sum(weights)
    ratio = sum(w * (m - mean) ** 2 for w, m in zip(weights, means, strict=True)) / 2
    freedom: float = len(samples)
    if shared is None:
        unsure = sum(
            (1 - w / whole) ** 2 / (len(values) - 1)
            for w, values in zip(weights, samples, strict=True)
        )
        ratio, freedom = ratio / (1 + unsure / 4), 8 / (3 * unsure)
    # F's tail for three samples, thus 2 and ``freedom`` degrees of freedom, has a closed form.
    tail: float = (1 + 2 * ratio / freedom) ** (-freedom / 2)
    return tail < 0.05


def _welch_margin(a: Sequence[float], b: Sequence[float], tests: int) -> float:
    """Return half the width of the 95 % confidence interval around a difference of two means.

    Args:
        a: one sample: two values or more.
        b: the other.
        tests: as in ``paired_margin``.
    """
    of_a, of_b = _squared_error(a), _squared_error(b)
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    return student(freedom, 0.05 / tests) * math.sqrt(of_a + of_b)


def _shared_squared_error(samples: Sequence[Sequence[float]]) -> float | None:
    """Return the squared standard error of each mean if all are of two values; else None.

    It has a degree of freedom for each sample.
    """
    if not samples or max(map(len, samples)) > 2:
        return None
    return statistics.fmean(map(_squared_error, samples))


def _squared_error(values: Sequence[float]) -> float:
    """Return the squared standard error of the mean of two or more values; never 0."""
    return max(statistics.stdev(values) ** 2, _LEAST_VARIANCE) / len(values)
