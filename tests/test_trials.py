"""Which of several ways is found to be the fastest."""

from collections.abc import Callable

import pytest

from charrnn import trials
from charrnn.trials import Fastest, choices


def test_the_way_that_was_fastest_when_last_tried_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trials, "_TRIAL", 4)
    chosen = choices(3)
    way, taken = next(chosen), []
    for seconds in ({0: 2, 1: 1, 2: 3}, {0: 0.5, 1: 1, 2: 3}):
        for _ in range(200):
            taken.append(way)
            way = chosen.send(seconds[way])
            if way == 0 != taken[-1]:
                break
    # Two of three ways were tried for nothing, 4 s each: so the fastest gets 20 x 2 x 4 s.
    assert taken == [0] * 2 + [1] * 4 + [2] * 2 + [1] * 160 + [0] * 8 + [1] * 4 + [2] * 2


def test_a_single_way_is_always_taken() -> None:
    chosen = choices(1)
    assert [next(chosen), *(chosen.send(1) for _ in range(5))] == [0] * 6


def test_calls_are_timed_and_get_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = 0.0, []

    def make(seconds: float) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            nonlocal now
            now += seconds
            calls.append((seconds, *arguments))

        return call

    monkeypatch.setattr(trials, "perf_counter", lambda: now)
    fastest = Fastest([make(5), make(2), make(3)])
    for argument in "abcde":
        fastest(argument, 7)
    assert calls == [(s, c, 7) for s, c in zip((5, 2, 3, 2, 5), "abcde", strict=True)]
