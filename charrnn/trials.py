"""Which of several ways to compute the same is the fastest here and now, found by trial.

How many threads a step should have, and what they should share out, depends on the caches, which
differ from machine to machine, and on what else the machine does, which changes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from time import perf_counter
from typing import Any

_TRIAL = 0.03
"""Seconds of calls in a trial: several of the time slices that a busy system hands out."""

_PER_TRIAL = 20
"""How much time the fastest way gets for each second in which another one was tried."""


class Fastest:
    """Calls, of several functions that do the same, the one that has lately been the fastest.

    Args:
        functions: what to choose from. What a call does must not depend on which one is called.
    """

    def __init__(self, functions: Sequence[Callable[..., object]]) -> None:
        self._functions = functions
        self._choices = choices(len(functions))
        self._way = next(self._choices)

    def __call__(self, *arguments: Any) -> None:
        """Call one of the functions, and time it."""
        start = perf_counter()
        self._functions[self._way](*arguments)
        self._way = self._choices.send(perf_counter() - start)


def choices(ways: int) -> Generator[int, float, None]:
    """Decide which of several ways each call takes: the one whose calls took least time on average.

    Every way is tried again and again, and what it took the last time counts half as much.

    Yields:
        The number of a way, from 0; send back the seconds that the call took.
    """
    seconds, calls = [0.0] * ways, [0.0] * ways

    def spend(way: int, left: float) -> Generator[int, float, None]:
        seconds[way], calls[way] = seconds[way] / 2, calls[way] / 2
        while left > 0:
            took = yield way
            left -= took
            seconds[way] += took
            calls[way] += 1

    while True:
        for way in range(ways):
            yield from spend(way, _TRIAL)
        fastest = min(range(ways), key=lambda way: seconds[way] / calls[way])
        yield from spend(fastest, _PER_TRIAL * _TRIAL * (ways - 1))
