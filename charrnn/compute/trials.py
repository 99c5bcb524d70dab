"""Which of several ways to compute the same is the fastest here and now, found by trial.

How many threads a step should have, and what they should share out, depends on the caches, which
differ from machine to machine, and on what else the machine does, which changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

_TRIAL = 0.03
"""Seconds of calls in a trial: several of the time slices that a busy system hands out."""

_PER_TRIAL, _MOST = 20, 60
"""How much time the fastest way gets for each second in which another one was tried, and the most
seconds. On a busy machine a single call may take a second in one way and much less in another."""


class Fastest:
    """Calls, of several functions that do the same, the one that has lately been the fastest.

    All are tried again and again. With each turn of a function, what it took before counts half as
    much, so that neither one slow call nor the past decides for long.

    Args:
        functions: what to choose from. What a call does must not depend on which one is called.
            Calls should do about equally much: a mean over all of them decides.
    """

    def __init__(self, functions: Sequence[Callable[..., object]]) -> None:
        self._functions = functions
        # Of each function: seconds and calls, halved at each turn; seconds of its latest trial.
        self._seconds = [0.0] * len(functions)
        self._calls = [0.0] * len(functions)
        self._trials = [0.0] * len(functions)
        # Whose trial it is, or after the last one the fastest's turn; who is called; seconds left.
        self._turn, self._now, self._left = 0, 0, _TRIAL

    def __call__(self, *arguments: Any) -> Any:
        """Call one of the functions, time it, and return what it returns."""
        start = perf_counter()
        result = self._functions[self._now](*arguments)
        took = perf_counter() - start
        self._seconds[self._now] += took
        self._calls[self._now] += 1
        self._left -= took
        if self._left <= 0:
            self._take_turns()
        return result

    def _take_turns(self) -> None:
        """After the trial of the last function, take the fastest; after that, begin again."""
        number = len(self._functions)
        if self._turn < number:
            self._trials[self._now] = _TRIAL - self._left
        self._turn = (self._turn + 1) % (number + 1)
        if self._turn < number:
            self._now, self._left = self._turn, _TRIAL
        else:
            means = [s / n for s, n in zip(self._seconds, self._calls, strict=True)]
            self._now = means.index(min(means))
            in_vain = sum(self._trials) - self._trials[self._now]
            self._left = min(_PER_TRIAL * in_vain, _MOST)
        self._seconds[self._now] /= 2
        self._calls[self._now] /= 2
