from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.runs.schedule import Schedule, validation_interval, validation_length

WARMUPS = st.integers(0, 1000)
TOTALS = st.integers(1, 10**6)


class TestSchedule:
    def test_by_hand(self) -> None:
        """A ramp to the peak; a cosine from the end of the hold to the floor."""
        assert [Schedule(4, None).factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
        found = [Schedule(0, 1000).factor(step) for step in (0, 200, 400, 600, 800, 1000)]
        cosines = [1, 1, math.cos(math.pi / 4), 0, -math.cos(math.pi / 4), -1]
        floor = Schedule.FLOOR
        assert found == pytest.approx([floor + (1 - floor) * (1 + c) / 2 for c in cosines])

    @given(warmup=WARMUPS, total=TOTALS, step=st.integers(0, 10**6))
    def test_is_a_share_of_the_peak(self, warmup: int, total: int, step: int) -> None:
        assert 0 < Schedule(warmup, total).factor(step) <= 1

    @given(warmup=st.integers(1, 300), total=st.none() | TOTALS)
    def test_rises_then_holds_then_falls(self, warmup: int, total: int | None) -> None:
        schedule = Schedule(warmup, total)
        end = min(total or 2000, 2000)
        factors = [schedule.factor(step) for step in range(end)]
        top = factors.index(max(factors))
        assert all(a <= b for a, b in pairwise(factors[: top + 1]))
        assert all(a >= b for a, b in pairwise(factors[top:]))

    @given(warmup=WARMUPS)
    def test_reaches_the_peak_and_stays_until_there_is_a_plan(self, warmup: int) -> None:
        unplanned = Schedule(warmup, None)
        assert {unplanned.factor(step) for step in (warmup, warmup + 1, 10**9)} == {1.0}
        # A plan made during the hold leaves the rates so far as they were.
        total = 10 * warmup + 10
        planned = Schedule(warmup, total)
        for step in range(int(Schedule.HOLD * total)):
            assert planned.factor(step) == unplanned.factor(step)

    @given(total=st.integers(100, 10**6))
    def test_ends_low_and_stays_there(self, total: int) -> None:
        schedule = Schedule(0, total)
        assert schedule.factor(total - 1) < Schedule.FLOOR + 0.01
        assert schedule.factor(total + 5) == pytest.approx(Schedule.FLOOR)


@given(total=TOTALS, per_step=st.integers(1, 10**5), held_out=st.integers(2, 10**10))
def test_validations_are_some_and_cost_little(total: int, per_step: int, held_out: int) -> None:
    every = validation_interval(total, per_step, held_out)
    characters = validation_length(total, per_step, held_out)
    assert 1 <= every <= total
    assert total // every <= 20
    assert 2 <= characters <= held_out
    number = -(-total // every)  # including the one at the end
    assert number >= (2 if total == 4 else min(total, 3))  # of 4 steps, every second one
    # In all at most a tenth of the trained characters, unless that is too few to tell anything.
    assert total // every * characters <= max(20 * 200_000, total * per_step / 10)


@pytest.mark.parametrize(
    ("total", "held_out", "expected"),
    [
        (10_000, 600, (500, 600)),
        (10_000, 10**7, (3334, 682_666)),  # a third of a tenth of 20,480,000
        (100, 10**7, (34, 200_000)),
    ],
)
def test_validations_share_a_tenth(total: int, held_out: int, expected: tuple[int, int]) -> None:
    functions = (validation_interval, validation_length)
    assert tuple(function(total, 2048, held_out) for function in functions) == expected


@given(total=TOTALS, per_step=st.integers(1, 10**5), cost=st.floats(0.01, 10**6))
def test_dear_validations_are_few(total: int, per_step: int, cost: float) -> None:
    every = validation_interval(total, per_step, 1000, cost)
    assert every >= validation_interval(total, per_step, 1000)
    number = -(-total // every)
    # The one at the end is made whatever it costs.
    assert number == 1 or number * cost <= total / 10
