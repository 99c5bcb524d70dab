"""Planning of runs that compute nothing, with a simulated clock.

The training loop is the real one, because a plan depends on when the loop asks for it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from charrnn import recipe
from charrnn.config import PrecisionName, TrainConfig
from charrnn.inference.evaluation import Interrupted, Scores
from charrnn.network.capture import UpdateResult
from charrnn.runs import planning, schedule, training
from charrnn.runs.events import Event, Finished, Logged, Paused, Planned, Validated
from charrnn.runs.planning import Planner
from charrnn.runs.run import Best, Progress, Run
from charrnn.runs.schedule import Schedule
from charrnn.runs.training import train

HELD_OUT = 600
#: Predictions in an update: the last 17 of 19 in each of 3 lanes.
AN_UPDATE = 51


@dataclass
class World:
    """How many seconds things take; doing them makes the simulated time pass."""

    update: float = 0.5
    validation: float = 0.1
    sample: float = 0.0
    """After each validation."""
    save: float = 0.0
    first: float = 0.0
    """Extra time of the first update."""
    changes: list[tuple[float, float]] = field(default_factory=list)
    """(start, factor): from then on everything takes ``factor`` times as long."""
    stalls: list[tuple[float, float]] = field(default_factory=list)
    """(start, seconds) when nothing gets done, as when a disk hangs."""
    pauses: list[tuple[float, float]] = field(default_factory=list)
    """(start, seconds) when the process is stopped."""
    now: float = 0.0
    stopped: float = 0.0
    """Seconds of all pauses so far."""
    begun: list[tuple[str, float]] = field(default_factory=list)
    """Each update and validation, and when it began."""

    def clock(self) -> Any:
        """Return the clock that the training loop sees."""
        return nullcontext(RunningClock(self))

    def spend(self, seconds: float) -> None:
        times = [times for start, times in self.changes if start <= self.now]
        self.now += seconds * (times[-1] if times else 1.0)
        while self.stalls and self.stalls[0][0] <= self.now:
            self.now += self.stalls.pop(0)[1]
        while self.pauses and self.pauses[0][0] <= self.now:
            pause = self.pauses.pop(0)[1]
            self.now += pause
            self.stopped += pause


@dataclass
class RunningClock:
    """Like ``clock.Clock``, which is made for one sitting and does not count earlier pauses."""

    world: World

    def __post_init__(self) -> None:
        self.before = self.world.stopped

    @property
    def stopped(self) -> float:
        return self.world.stopped - self.before

    def now(self) -> float:
        return self.world.now - self.stopped


class StubRun(Run):
    """A run without a model or a file."""

    world: World

    def save(self) -> Path:
        self.world.spend(self.world.save)
        self.saved = self.as_saved(Path("last"))
        return self.saved.path

    def save_best(self) -> None:
        pass


def stub_run(
    world: World, config: TrainConfig, progress: Progress, held_out: int, device: str
) -> Run:
    """Return a run whose parts compute nothing: an update and a save spend time of the world."""

    def update(_batch: object) -> object:
        world.begun.append(("update", world.now))
        world.spend(world.update + world.first * (progress.step == 0))
        return UpdateResult(torch.tensor(2.0), torch.tensor(1.0), torch.tensor(False))

    def batches(_step: int) -> Iterator[object]:
        while True:
            yield SimpleNamespace(characters=AN_UPDATE, unknown=0)

    update.optimiser = SimpleNamespace(set_rates=lambda *_: None)  # type: ignore[attr-defined]
    update.capture = SimpleNamespace(failure=None, forget=lambda: None)  # type: ignore[attr-defined]
    valid = SimpleNamespace(
        characters=held_out, first=lambda n: SimpleNamespace(characters=min(n, held_out))
    )
    stubs: dict[str, Any] = {
        "baselines": {"uniform": 5.0},
        "unknown_share": 0.0,
        "model": SimpleNamespace(
            compute_dtype=torch.float32,
            config=SimpleNamespace(
                dropout=0.0,
                weight_drop=0.0,
                vocabulary=65,
                cell="lstm",
                layers=1,
                hidden=9,
                embedding=9,
            ),
            device=SimpleNamespace(type=device),
        ),
        "vocabulary": SimpleNamespace(unknown_nats=1.0, encode=len, decode=str),
        "train": SimpleNamespace(characters=5000),
        "valid": valid if held_out else None,
        "text": SimpleNamespace(valid=(5000, 5000 + held_out) if held_out else None),
        "lanes": SimpleNamespace(
            batch_size=3, characters_per_step=AN_UPDATE, steps_per_epoch=98, batches=batches
        ),
        "update": update,
        "folder": SimpleNamespace(log=lambda _row: None, keep=1),
    }
    run = StubRun(config=config, progress=progress, notes=[], **stubs)
    run.world = world
    return run


@dataclass
class Told:
    """A finished run, and what it did in all its sittings."""

    run: Run
    events: list[tuple[float, Event]]
    """Each with the run's seconds when it came."""

    @property
    def seconds(self) -> float:
        return self.run.progress.seconds

    def only(self, kind: type[Any]) -> list[Any]:
        return [event for _, event in self.events if isinstance(event, kind)]


Simulate = Callable[..., Told]


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """Train a stub run of ``seconds`` to its end, stopping and resuming it at ``stops``."""

    def begin(
        world: World,
        seconds: float | None = 60,
        *,
        held_out: int = HELD_OUT,
        device: str = "cpu",
        losses: Callable[[], float] = lambda: 2.0,
        stops: Sequence[float] = (),
        **options: Any,
    ) -> Told:
        def score(
            _model: object, part: Any, _vocabulary: object,
            should_stop: Callable[[], bool], **_more: object,
        ) -> Scores:  # fmt: skip
            world.begun.append(("validation", world.now))
            for _ in range(4):
                world.spend(world.validation / 4)
                if should_stop():
                    raise Interrupted
            return Scores(losses() * part.characters, part.characters, 0, part.characters, 0.1)

        def sample(*_: object, compiled: bool) -> list[object]:
            world.spend(world.sample)
            return []

        def asked(stop: float) -> str | None:
            return "stop" if world.now >= stop else None

        monkeypatch.setattr(training, "Clock", world.clock)
        monkeypatch.setattr(training, "score", score)
        monkeypatch.setattr(training, "sample", sample)
        if seconds is not None:
            options["minutes"] = seconds / 60
        config = TrainConfig(
            batch_size=3, bptt=19, lr=0.1, lr_adam=0.1, warmup_steps=5, precision="fp32", **options
        )
        told = Told(stub_run(world, config, Progress(), held_out, device), [])
        if config.steps is not None:
            told.run.progress.planned_steps = config.steps
        for stop in (*stops, math.inf):
            run = told.run
            for event in train(run, partial(asked, stop)):
                told.events.append((run.progress.seconds, event))
                assert run.progress.seconds < 1e4 + 50 * (seconds or 1e9), "it does not end"
            if event == Finished("stop", complete=False):
                progress = Progress.from_dict(run.progress.to_dict())
                told.run = stub_run(world, config, progress, held_out, device)
        reason = "done" if told.run.is_used_up else "patience"
        assert told.events[-1][1] == Finished(reason, complete=True)
        return told

    return begin


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("held_out", [HELD_OUT, 0])
def test_minutes_are_kept(simulate: Simulate, held_out: int, device: str) -> None:
    told = simulate(World(update=0.1), held_out=held_out, device=device)
    (planned,) = told.only(Planned)
    progress = told.run.progress
    assert progress.step == planned.total_steps == progress.planned_steps
    assert planned.validate_characters == progress.validate_characters == (held_out or None)
    assert 0.95 * 60 < told.seconds < 60
    assert progress.planned_at_step is not None
    assert device == "cpu" or progress.planned_at_step % 10 == 0, "it waits every ten updates"
    if held_out:
        assert progress.validated_step == progress.step


def test_weights_from_elsewhere_are_scored_as_those_that_follow(simulate: Simulate) -> None:
    """On as many characters as the minutes allow at the expected speed, then and later."""
    told = simulate(World(update=0.1), 6, held_out=900_000, init_from="a model")
    first, *others = told.only(Validated)
    assert first.row["step"] == 0
    assert others
    affordable = 6 * recipe.guessed_speed(65, "cpu", "fp32") / 10
    assert first.scores.characters == pytest.approx(affordable, rel=0.05)
    assert {event.scores.characters for event in others} == {first.scores.characters}
    assert told.run.progress.validate_characters == first.scores.characters
    assert 0.95 * 6 < told.seconds < 1.05 * 6


def planner_at_the_start(
    minutes: float, hidden: int = 9, device: str = "cpu", precision: PrecisionName = "fp32"
) -> Planner:
    """Return the planner of a new run, whose speed is guessed."""
    config = TrainConfig(
        batch_size=3, bptt=19, lr=0.1, lr_adam=0.1, warmup_steps=5, minutes=minutes,
        precision=precision,
    )  # fmt: skip
    run = stub_run(World(), config, Progress(), 900_000, device)
    cast(Any, run.model.config).hidden = hidden
    return Planner(run)


def validated(minutes: float, **options: Any) -> int:
    """Return how many characters a validation is to score before the speed is known."""
    planner = planner_at_the_start(minutes, **options)
    planner.size_validations()
    characters = planner.run.progress.validate_characters
    assert characters is not None
    return characters


def test_fewer_characters_are_scored_of_weights_that_are_many() -> None:
    assert validated(1, hidden=2000) < validated(1) / 5


def test_fewer_characters_are_scored_on_a_gpu_that_trains_in_float32() -> None:
    assert validated(1, device="cuda") < validated(1, device="cuda", precision="bf16") / 2


def test_what_a_kept_best_was_scored_on_stays() -> None:
    """The best checkpoint may be from a validation after the checkpoint resumed from."""
    planner = planner_at_the_start(1)
    planner.run.progress.validate_characters = 12_345
    planner.size_validations()
    assert planner.run.progress.validate_characters != 12_345, "it was a guess"
    planner.run.progress.validate_characters = 12_345
    planner.run.better = Best(1.0, 1)
    planner.size_validations()
    assert planner.run.progress.validate_characters == 12_345


def test_any_minutes_can_be_planned() -> None:
    assert validated(1e38) == 900_000


def test_a_warm_up_is_of_the_updates_that_are_planned(simulate: Simulate) -> None:
    """Otherwise a run slower than expected would end before it has warmed up."""
    told = simulate(World(update=4.0))
    (planned,) = told.only(Planned)
    assert planned.total_steps == 14
    assert told.run.config.warmup_steps == 4, "it was 5; the plan came after 4 updates"
    assert simulate(World(update=0.2)).run.config.warmup_steps == 5, "the warm-up was over"


def test_updates_that_take_no_time_by_the_clock_are_planned(simulate: Simulate) -> None:
    """As when the clock stands still, or all of the time went into a validation."""
    run = simulate(World()).run
    planner = Planner(run)
    planner._speed_from = replace(run.progress, step=run.progress.step - 1)
    assert planner.plan().total_steps > run.progress.step


@pytest.mark.parametrize("times", [1.0, 1.05, 1.1, 2.5, 0.4, 10, 0.1])
def test_minutes_are_kept_when_the_speed_changes(simulate: Simulate, times: float) -> None:
    told = simulate(World(update=0.2, changes=[(15, times)]))
    planned = told.only(Planned)
    assert (len(planned) > 1) == (times not in (1.0, 1.05))
    assert [plan.before for plan in planned] == [None, *(plan.total_steps for plan in planned[:-1])]
    assert told.run.progress.step == planned[-1].total_steps == told.run.progress.planned_steps
    assert 0.95 * 60 < told.seconds < 1.05 * 60
    rates = [event.row["learning_rate"] for event in told.only(Logged)]
    assert max(rates) == told.run.config.lr
    assert rates[-1] < 0.1 * told.run.config.lr
    first, *_, last = told.only(Logged)
    for row, update in (first.row, 0.2), (last.row, 0.2 * times):
        assert row["chars_per_second"] == pytest.approx(AN_UPDATE / update)


@pytest.mark.parametrize(
    ("budget", "cost", "number"), [(30.0, 2.5, 2), (18.0, 4.0, 2), (60.0, 1.5, 4), (60.0, 8.0, 2)]
)
@pytest.mark.parametrize("sampling", [0.0, 0.8])
def test_minutes_are_kept_when_validations_are_dear(
    simulate: Simulate, budget: float, cost: float, number: int, sampling: float
) -> None:
    """Validations and their samples do not count towards the time of updates."""
    world = World(update=0.06, validation=(1 - sampling) * cost, sample=sampling * cost)
    told = simulate(world, budget)
    assert len(told.only(Planned)) == 1
    assert 0.95 * budget < told.seconds < 1.05 * budget
    assert len(told.only(Validated)) == told.run.progress.validations == number
    assert told.run.progress.validation_seconds == pytest.approx(cost * number)
    speeds = [event.row["chars_per_second"] for event in told.only(Logged)]
    assert min(speeds) > 0.5 * max(speeds), "the speed shown is that of updates alone"


def test_validations_that_are_dear_and_many_leave_time_for_updates(simulate: Simulate) -> None:
    """With --validate-every 1, an update and its validation take 3.2 seconds: 60 allow 18."""
    told = simulate(World(update=0.2, validation=3.0), validate_every=1)
    assert told.run.progress.step == told.run.progress.validations == 18
    at, *_ = [seconds for seconds, event in told.events if isinstance(event, Planned)]
    assert at < 0.3 * 60, "a fifth of all time, not of time for updates"


@pytest.mark.parametrize("stall", [(9.0, 40), (13.0, 40), (20.0, 25), (58.8, 7)])
def test_a_stall_is_no_change_of_speed(simulate: Simulate, stall: tuple[float, float]) -> None:
    """Whether before or after the first plan: the time that is left is used."""
    told = simulate(World(update=0.1, stalls=[stall]))
    assert 0.9 * 60 < told.seconds < 1.1 * 60
    assert told.run.progress.validated_step == told.run.progress.step


@pytest.mark.parametrize("pause", [(3.0, 80), (9.0, 80), (12.8, 80), (20.0, 25), (55.0, 7)])
def test_a_pause_takes_no_time(simulate: Simulate, pause: tuple[float, float]) -> None:
    """Ctrl-Z at the start, in the speed measurement, in a validation or later changes nothing."""
    world = World(update=0.1, validation=1.0, save=0.2)
    without = simulate(replace(world))
    told = simulate(replace(world, pauses=[pause]))
    assert told.only(Paused) == [Paused(pause[1])]
    assert told.seconds == pytest.approx(without.seconds)
    others = [event for _, event in told.events if not isinstance(event, Paused)]
    assert len(others) == len(without.events)
    for event, (_, expected) in zip(others, without.events, strict=True):
        assert type(event) is type(expected)
        if isinstance(event, Logged) and isinstance(expected, Logged):
            assert event.row == pytest.approx(expected.row)


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(World(stalls=[(3.0, 80)]), id="a stall at the start"),
        pytest.param(World(stalls=[(8.0, 80)]), id="a stall while the speed is measured"),
        pytest.param(World(stalls=[(13.0, 80)]), id="a stall after the plan"),
        pytest.param(World(stalls=[(55.0, 80)]), id="a stall near the end"),
        pytest.param(World(validation=80), id="a validation"),
        pytest.param(World(first=80), id="the first update"),
        pytest.param(World(changes=[(20, 100)]), id="slowness"),
        pytest.param(World(update=70), id="every update"),
    ],
)
def test_a_run_that_is_late_ends(simulate: Simulate, world: World) -> None:
    """Once the time is over, at most one update, to know the speed, and one validation begin."""
    told = simulate(world)
    late = [what for what, begun in world.begun if begun > 1.1 * 60]
    assert late in ([], ["update"], ["validation"], ["update", "validation"])
    assert told.run.progress.validated_step == told.run.progress.step
    assert sum(event.row["step"] == told.run.progress.step for event in told.only(Logged)) == 1


def test_slow_updates_are_watched_one_by_one(simulate: Simulate) -> None:
    """Ten of them, a row of the log, take half of the budget."""
    told = simulate(World(update=3.0, changes=[(31, 3.0)]))
    assert told.seconds < 1.1 * 60
    assert told.only(Planned)[-1].before


def test_lateness_is_seen_where_updates_take_little_of_the_time(simulate: Simulate) -> None:
    """Updates take under a tenth of the minutes: too short a stretch to show that they are slow."""
    world = World(update=0.16, validation=1.4, first=3, changes=[(16, 0.5), (45, 4.0)])
    assert simulate(world, validate_every=1).seconds < 1.2 * 60


def test_no_update_more_is_done_where_none_fits(simulate: Simulate) -> None:
    """The last validation takes more than is left, so the plan's last update stays the last."""
    world = World(update=2.5, validation=33)
    told = simulate(world, held_out=15_000, validate_every=3)
    assert len(told.only(Planned)) == 1
    assert told.run.progress.validations == 2


def test_time_that_a_validation_left_is_used(simulate: Simulate) -> None:
    """Once the last planned validation is over, the time left goes into updates."""
    told = simulate(World(update=0.7, validation=1.59, save=1.3, first=7.4), validate_every=10)
    assert told.seconds > 60


def test_a_run_out_of_patience_is_not_planned_again(simulate: Simulate) -> None:
    """Not even if a stall within the last validation left no time for the plan."""
    losses = iter([2.0, 3.0])
    told = simulate(
        World(update=0.1, validation=1.0, stalls=[(21.5, 30)]),
        losses=lambda: next(losses),
        patience=1,
        validate_every=200,
    )
    assert told.run.is_out_of_patience
    assert len(told.only(Planned)) == 1


def test_an_update_more_shows_that_a_stall_was_no_slowness(simulate: Simulate) -> None:
    """The stall is in the first update after the plan: judged by that one, none would fit."""
    told = simulate(World(update=1.7, stalls=[(15, 32)]))
    assert 0.95 * 60 < told.seconds < 1.05 * 60


def test_a_last_validation_that_takes_less_leaves_time(simulate: Simulate) -> None:
    """After a stall within the first one, the others are expected to take as long."""
    told = simulate(World(update=0.1, validation=1.0, stalls=[(12.8, 20)]))
    assert 0.9 * 60 < told.seconds < 1.1 * 60


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [(13.0, 2.5)],
        [(13.0, 0.2)],
        [(13.3, 5.0), (14.0, 1.0)],
        [(13.3, 5.0), (14.3, 0.5), (15.1, 1.0)],
    ],
)
def test_the_time_that_is_left_is_that_of_the_plan(
    simulate: Simulate, changes: list[tuple[float, float]]
) -> None:
    """It does not go by the speed of the first updates after it, which may be untypical."""
    told = simulate(World(update=0.1, validation=1.0, changes=changes))
    known = max(seconds for seconds, event in told.events if isinstance(event, Planned))
    left = [
        (seconds, event.eta)
        for seconds, event in told.events
        if isinstance(event, Logged) and seconds > known
    ]
    assert len(left) > 5
    for seconds, eta in left:
        assert eta is not None
        assert seconds + eta == pytest.approx(told.seconds, abs=0.1 * 60)


def test_the_time_that_is_left_counts_validations_before_the_first(simulate: Simulate) -> None:
    """Until then each is expected to read twice as fast as training does."""
    told = simulate(World(update=0.5, validation=0.5 * HELD_OUT / AN_UPDATE / 2), None, steps=90)
    for seconds, event in told.events:
        if isinstance(event, Logged):
            assert event.eta == pytest.approx(told.seconds - seconds)


def test_no_time_is_left_where_none_is_needed(simulate: Simulate) -> None:
    """Never negative, when the minutes are over or the budget was cut to less than is done."""
    for world in World(stalls=[(4.3, 80)]), World(changes=[(20, 100)]):
        assert min(event.eta for event in simulate(world).only(Logged)) == 0
    impatient = simulate(World(), None, steps=90, patience=1).run
    assert impatient.progress.step < 90
    assert Planner(impatient).seconds_left() == 0
    # A validation is still due when patience has ended, at the very step of the plan.
    impatient.progress.planned_at_step = impatient.progress.step
    impatient.progress.planned_at_seconds = impatient.progress.training_seconds
    impatient.progress.validated_step = impatient.progress.step - 1
    assert not impatient.is_finished
    assert Planner(impatient).seconds_left() == impatient.progress.seconds_a_validation > 0
    run = simulate(World(), None, steps=90).run
    progress = run.progress
    progress.step = progress.planned_at_step = 93
    assert Planner(run).seconds_left() == progress.seconds_a_validation > 0


def test_few_minutes_are_not_spent_on_validation(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "LEAST_TIMED", 50)
    told = simulate(World(update=0.1), 5)  # 50 updates or somewhat fewer
    assert told.run.progress.validate_characters == pytest.approx(50 * AN_UPDATE / 10, rel=0.1)


def test_all_validations_score_the_same_characters(simulate: Simulate) -> None:
    """Losses on different characters cannot be compared, so there would be no best."""
    world = World(update=0.1, changes=[(14, 0.1)])
    told = simulate(world, held_out=20_000)
    assert len(told.only(Planned)) > 1
    assert len(told.only(Validated)) > 1
    scored = {event.scores.characters for event in told.only(Validated)}
    assert scored == {planning.LEAST_TIMED}
    kinds = [type(event) for _, event in told.events]
    assert kinds[: kinds.index(Planned)].count(Validated) == 1, "it shows what one costs"


@pytest.mark.parametrize("stops", [[], [1.0, 9.0], [4.0]])
def test_validations_at_steps_that_are_given_do_not_wait_for_the_plan(
    simulate: Simulate, stops: list[float]
) -> None:
    """Even though the speed, and so what the minutes allow, is known only then; also if stopped."""
    told = simulate(World(update=0.1), 60, held_out=900_000, validate_every=30, stops=stops)
    validated = told.only(Validated)
    steps = [event.row["step"] for event in validated]
    assert steps[:-1] == [*range(30, steps[-2] + 1, 30)]
    kinds = [type(event) for _, event in told.events]
    assert kinds[: kinds.index(Planned)].count(Validated) >= 3
    # As many as the expected speed allows.
    assert {event.scores.characters for event in validated} == {schedule.LEAST_SCORED}
    assert 0.95 * 60 < told.seconds < 1.05 * 60


def test_where_the_plan_comes_first_they_are_sized_by_it(simulate: Simulate) -> None:
    told = simulate(World(update=0.1), 60, held_out=900_000, validate_every=500)
    first, *others = told.only(Validated)
    assert first.row["step"] < 150
    assert {event.scores.characters for event in (first, *others)} == {planning.LEAST_TIMED}


def test_they_are_sized_when_a_run_goes_on_with_other_minutes(simulate: Simulate) -> None:
    """Stopped before its first, a run forgets how many characters that would have scored."""
    world = World(update=0.1)
    config = replace(simulate(world).run.config, minutes=2.0, validate_every=30)
    early = stub_run(world, config, Progress(step=20, seconds=2.0), 900_000, "cpu")
    first = next(event for event in train(early) if isinstance(event, Validated))
    assert first.row["step"] == 30
    affordable = 2 * 60 * recipe.guessed_speed(65, "cpu", config.precision) / 10
    assert first.scores.characters == pytest.approx(affordable / 3, rel=0.05)


def test_so_they_do_where_the_minutes_are_fewer_when_it_goes_on(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "LEAST_TIMED", 50)
    told = simulate(World(update=0.1), held_out=20_000, validate_every=3, patience=1)
    run, before = told.run, told.run.progress.validate_characters
    run.config = replace(run.config, minutes=0.5, patience=None)
    run.progress.planned_steps = run.progress.planned_at_step = None
    events = list(train(run))
    assert Planned in map(type, events)
    scored = [event.scores.characters for event in events if isinstance(event, Validated)]
    assert set(scored) == {before}


def test_a_run_that_goes_on_keeps_its_plan(simulate: Simulate) -> None:
    """Also when it was stopped in a validation, whose time was lost."""
    world = World(update=0.2, validation=3.0)
    whole = simulate(replace(world, begun=[]))
    ends = [seconds for seconds, event in whole.events if isinstance(event, Validated)]
    assert len(ends) == 2
    told = simulate(world, stops=[ends[0] + 5, ends[1] - 1])
    assert len(told.only(Finished)) == 3
    assert len(told.only(Planned)) == 1
    assert told.run.progress.step == whole.run.progress.step
    in_vain = told.run.progress.validation_seconds - whole.run.progress.validation_seconds
    assert in_vain == pytest.approx(2.25)
    # Only completed validations count in the time of one, which the plan goes by.
    assert told.run.progress.seconds_a_validation == pytest.approx(3.0)
    assert whole.run.progress.seconds_a_validation == pytest.approx(3.0)


def test_a_run_that_was_stopped_before_its_plan_is_planned_when_it_goes_on(
    simulate: Simulate,
) -> None:
    """Stopped at the start, while the speed is measured, and within the first validation."""
    told = simulate(World(update=0.2, validation=3.0), stops=[4, 12, 22])
    kinds = [type(event) for _, event in told.events]
    assert kinds.count(Finished) == 4
    assert kinds.count(Planned) == kinds[kinds.index(Planned) :].count(Finished) == 1
    assert 0.95 * 60 < told.seconds < 1.05 * 60


@pytest.mark.parametrize(("stops", "at"), [([], 12), ([10], 20), ([10, 15], 24)])
def test_the_speed_is_measured_for_a_fifth_of_the_time_that_is_left(
    simulate: Simulate, stops: list[float], at: float
) -> None:
    """In a new run, in one that was stopped before its plan, and in one given more minutes."""
    told = simulate(World(update=0.1), stops=stops)
    (planned,) = [seconds for seconds, event in told.events if isinstance(event, Planned)]
    assert planned == pytest.approx(at, abs=0.5)
    run = told.run
    run.config = replace(run.config, minutes=3)
    run.progress.planned_steps = run.progress.planned_at_step = None
    before, more = run.progress.seconds, train(run)
    while not isinstance(next(more), Planned):
        pass
    assert run.progress.seconds == pytest.approx(before + (180 - before) / 5, abs=0.5)


def test_the_rate_of_a_run_that_is_given_more_minutes_is_that_of_all(simulate: Simulate) -> None:
    """From the first update on, before its speed is known."""
    run = simulate(World(update=0.1)).run
    run.config, before = replace(run.config, minutes=1.2), run.progress.seconds
    run.progress.planned_steps = run.progress.planned_at_step = None
    rows = [event.row for event in train(run) if isinstance(event, Logged)]
    assert 11 < 72 - before < 14, "what is left is a sixth of the whole"
    expected = Schedule(0, 7200).factor(round(100 * rows[0]["seconds"]))
    rates = [row["learning_rate"] / run.config.lr for row in rows]
    assert rates[0] == pytest.approx(expected, abs=0.01)
    assert rates[0] < 0.14
    assert all(later < earlier + 0.01 for earlier, later in pairwise(rates))


def test_the_rate_falls_in_a_run_of_many_sittings(simulate: Simulate) -> None:
    """Each is too short for a plan: the speed is measured for a fifth of the time left."""
    told = simulate(World(update=0.1), stops=range(6, 36, 6))
    at, *_ = [seconds for seconds, event in told.events if isinstance(event, Planned)]
    assert at > 35
    rows = [(event.row["seconds"], event.row["learning_rate"]) for event in told.only(Logged)]
    assert len(rows) > 50
    for seconds, rate in rows:
        expected = Schedule(0, 6000).factor(round(100 * seconds)) * told.run.config.lr
        assert rate == pytest.approx(expected, abs=0.03 * told.run.config.lr)
        assert rate == told.run.config.lr or seconds > 0.2 * 60


@pytest.mark.parametrize("stall", [(3.0, 20), (8.0, 50)])
def test_a_new_run_holds_its_rate_until_its_plan(
    simulate: Simulate, stall: tuple[float, float]
) -> None:
    told = simulate(World(update=0.1, stalls=[stall], validation=9.0))
    kinds = [type(event) for _, event in told.events]
    first = [event for _, event in told.events[: kinds.index(Planned)] if isinstance(event, Logged)]
    assert first[-1].row["seconds"] > 20 or stall[0] == 8.0
    assert {event.row["learning_rate"] for event in first} == {told.run.config.lr}


@pytest.mark.parametrize(
    ("step", "seconds", "total"),
    [(7, 0.0, None), (7, 12.0, None), (7, 14.0, 30), (7, 59.0, 8), (7, 90.0, 8), (1, 30.0, 2)],
)
def test_the_clock_tells_how_many_updates_there_will_be(
    step: int, seconds: float, total: int | None
) -> None:
    run = planner_at_the_start(1).run
    run.progress = Progress(step=step, seconds=seconds)
    assert Planner(run).rate_factor() == Schedule(5, total).factor(step)


def test_a_row_of_a_sitting_before_has_the_rate_of_then(simulate: Simulate) -> None:
    """Whatever budget and rate the run has now."""
    run = simulate(World(update=0.1)).run
    run.progress = Progress(
        step=303, seconds=30.3, learning_rate=0.0625, row_updates=3, row_characters=9
    )
    run.config = replace(run.config, minutes=None, steps=303)
    run.progress.planned_steps = 303
    (row,) = [event.row for event in train(run) if isinstance(event, Logged)]
    assert row["learning_rate"] == 0.0625


def test_a_run_that_is_finished_is_not_planned_again(simulate: Simulate) -> None:
    """Not even by an earlier version, which left more time unused."""
    run = simulate(World()).run
    before = run.progress.step
    run.progress.seconds -= 20
    *_, finished = train(run)
    assert finished == Finished("done", complete=True)
    assert run.progress.step == before


def scenario(chance: random.Random) -> tuple[World, dict[str, Any]]:
    """Draw what may happen to a run of 60 seconds."""

    def size(least: float, most: float) -> float:
        return math.exp(chance.uniform(math.log(least), math.log(most)))

    def some(most: int) -> range:
        return range(chance.choice([0, 0, chance.randint(1, most)]))

    update = 60 / size(*chance.choice([(40, 400), (1, 40)]))
    world = World(
        update=update,
        validation=chance.choice([update * size(0.1, 10), size(1, 90)]),
        save=update * size(0.01, 3),
        first=chance.choice([0, 0, size(3, 90)]),
        changes=sorted((60 * chance.random(), size(0.1, 10)) for _ in some(3)),
        stalls=sorted((60 * chance.random(), size(3, 120)) for _ in some(2)),
    )
    options = {
        "held_out": chance.choice([0, HELD_OUT, HELD_OUT, 15_000]),
        "device": chance.choice(["cpu", "cpu", "cuda"]),
        "losses": lambda: chance.uniform(1, 2),
        "stops": sorted(60 * chance.random() for _ in some(3)),
    }
    if options["held_out"]:
        options["validate_every"] = chance.choice([None, None, None, 1, 3, 10])
        options["patience"] = chance.choice([None, None, None, 3])
    return world, options


def test_whatever_happens_a_plan_is_kept_as_far_as_possible(simulate: Simulate) -> None:
    budget, chance = 60, random.Random(5)
    for number in range(150):
        world, options = scenario(chance)
        told = simulate(world, budget, **options)
        progress = told.run.progress
        if options["held_out"]:
            assert progress.validated_step == progress.step, number
        validated = [event.row["step"] for event in told.only(Validated)]
        assert len(set(validated)) == len(validated), number
        assert len({event.scores.characters for event in told.only(Validated)}) <= 1, number
        # Nothing is begun in vain when the time is over; on a GPU, ten updates are begun together.
        late = [what for what, begun in world.begun if begun > 1.1 * budget]
        at_once = 10 if options["device"] == "cuda" else 1
        assert late.count("update") < 2 * at_once, number
        in_vain = len(options["stops"]) + (options.get("validate_every") is not None)
        assert late.count("validation") <= 1 + in_vain, number
        # No time is left that would be enough for something.
        slowest = max(1, *(times for _, times in world.changes), 1)
        if max(world.update * at_once, world.validation) * slowest < 0.03 * budget:
            assert told.run.is_out_of_patience or told.seconds > 0.89 * budget, number
        # It is planned again only after a stretch long enough to measure the speed.
        plans = [(at, event) for at, event in told.events if isinstance(event, Planned)]
        for (before, old), (at, new) in pairwise(plans):
            assert new.before
            is_early = at - before < 0.099 * budget
            is_forced = new.total_steps > old.total_steps or at > budget
            assert not is_early or is_forced, number


def test_each_pause_is_told_by_itself(simulate: Simulate) -> None:
    told = simulate(World(update=0.1, pauses=[(3.0, 80), (120.0, 25)]))
    assert told.only(Paused) == [Paused(80), Paused(25)]
