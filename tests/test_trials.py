"""Which of several ways is found to be the fastest."""

from collections.abc import Callable

import pytest

from charrnn.compute import trials
from charrnn.compute.trials import Fastest


class Ways:
    """Functions that take as many seconds of a clock of their own as ``seconds`` says."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.called: list[int] = []
        self.now = 0.0

    def function(self, way: int) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            assert arguments == ("a", 7)
            self.now += self.seconds[way]
            self.called.append(way)

        return call


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    ways = Ways(2, 1, 4)
    monkeypatch.setattr(trials, "perf_counter", lambda: ways.now)
    monkeypatch.setattr(trials, "_TRIAL", 4)
    monkeypatch.setattr(trials, "_PER_TRIAL", 5)
    return ways


def call(fastest: Fastest, times: int) -> None:
    for _ in range(times):
        fastest("a", 7)


def test_the_way_that_was_fastest_is_taken_between_trials(ways: Ways) -> None:
    fastest = Fastest([ways.function(way) for way in range(3)])
    call(fastest, 47 + 8)
    # Two of three ways are tried for nothing, 4 s each: so the fastest gets 5 x 2 x 4 s.
    assert ways.called[:47] == [0] * 2 + [1] * 4 + [2] + [1] * 40
    assert ways.called[47:] == [0] * 2 + [1] * 4 + [2] + [1]


@pytest.mark.parametrize(
    ("seconds", "calls", "fewest"),
    [
        (0.25, 16, 160),
        # In a trial of 4 s; with half of what it took before, (2 + 4.5) / (1 + 6) s a call.
        (0.75, 6, 10),
    ],
)
def test_a_way_that_has_become_faster_is_taken_from_the_next_trials_on(
    ways: Ways, seconds: float, calls: int, fewest: int
) -> None:
    fastest = Fastest([ways.function(way) for way in range(3)])
    call(fastest, 47)
    ways.seconds = [seconds, 1, 4]
    call(fastest, calls + 4 + 1 + fewest)
    assert ways.called[47:] == [0] * calls + [1] * 4 + [2] + [0] * fewest


def test_one_slow_call_does_not_decide_for_long(ways: Ways) -> None:
    fastest = Fastest([ways.function(way) for way in range(3)])
    call(fastest, 47 + 2)
    ways.seconds[1] = 7  # one call of seven seconds ends the trial
    call(fastest, 1)
    ways.seconds[1] = 1
    call(fastest, 1 + 10)
    # (1 x 40 + 7) / 2 calls of about a second each
    assert ways.called[47:] == [0] * 2 + [1] + [2] + [1] * 10


@pytest.mark.parametrize(("slow", "calls"), [(4, 20), (10, 50), (12, 60), (100, 60)])
def test_the_longer_a_trial_took_the_later_is_the_next(ways: Ways, slow: float, calls: int) -> None:
    """As beside other processes, where a single call may take that long; but not for ever."""
    ways.seconds = [1, slow]
    call(Fastest([ways.function(way) for way in range(2)]), 4 + 1 + calls + 1 + 3 + 1)
    assert ways.called == [0] * 4 + [1] + [0] * (calls + 4) + [1]


def test_a_single_way_is_always_taken(ways: Ways) -> None:
    call(Fastest([ways.function(2)]), 7)
    assert ways.called == [2] * 7


def test_an_interrupted_call_leaves_no_trace(ways: Ways) -> None:
    """As in a notebook, where the loops are called again after a Ctrl-C."""

    def interrupted(*arguments: object) -> None:
        ways.function(0)(*arguments)
        if len(ways.called) == 1:
            raise KeyboardInterrupt

    fastest = Fastest([interrupted, ways.function(1)])
    with pytest.raises(KeyboardInterrupt):
        call(fastest, 1)
    call(fastest, 2 + 4 + 20)
    assert ways.called == [0] + [0] * 2 + [1] * 4 + [1] * 20
