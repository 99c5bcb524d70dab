"""R3, R4, R5: resuming, validating, sampling and logging leave no trace in a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import charrnn.runs.training
from charrnn.runs.events import Finished, Logged, Validated
from charrnn.runs.resuming import resume
from charrnn.runs.run import Run
from charrnn.runs.training import train
from charrnn.storage.checkpoint import load
from charrnn.storage.runfolder import RunFolder
from tests.conftest import FakeClock
from tests.reliability.conftest import Promise
from tests.reliability.runs import (
    begin,
    drive,
    equal,
    resumed,
    rows,
    stopped,
    straight,
    tensors,
    whole_state,
)
from tests.small import needs_bf16

pytestmark = pytest.mark.usefixtures("short_samples")

CELLS = ("rnn", "lstm", "gru")
PASS = 17  # windows in a pass


def at(step: int) -> Callable[[Run], bool]:
    """Stop between two steps, before whatever is due there."""
    return lambda run: run.progress.step == step


def after_validation(step: int) -> Callable[[Run], bool]:
    return lambda run: run.progress.validated_step == step


class Inside:
    """Stops at a step, in the call numbered ``time`` from 0.

    Later calls can come from within the validation and the sample that are due there.
    """

    def __init__(self, step: int, time: int) -> None:
        self.step, self.time = step, time

    def __call__(self, run: Run) -> bool:
        if run.progress.step == self.step:
            self.time -= 1
        return run.progress.step == self.step and self.time < 0


STOPS: dict[str, tuple[int, Callable[[Run], bool]]] = {
    "step 1": (1, at(1)),
    "mid pass": (25, at(25)),
    "pass boundary": (2 * PASS, at(2 * PASS)),
    "after a validation": (24, after_validation(24)),
}


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resume_equals_never_stopping(
    tmp_path: Path, tale: Path, promise: Promise, cell: str, dropout: float
) -> None:
    choices: dict[str, Any] = {"cell": cell, "model": {"dropout": dropout}}
    expected = whole_state(straight(tmp_path / "straight", tale, **choices))
    differing = []
    for name, (step, stop) in STOPS.items():
        path = tmp_path / name
        assert stopped(path, tale, stop, **choices) == step
        resumed(path)
        if whole_state(path) != expected:
            differing.append(name)
    what = f"weights, losses and log equal after a stop at {', '.join(STOPS)}"
    promise("R3", what, f"{cell}, dropout {dropout:g}: {4 - len(differing)} of 4")
    assert not differing


def test_the_same_seed_gives_the_same_run(tmp_path: Path, tale: Path, cell: str) -> None:
    choices: dict[str, Any] = {"cell": cell, "model": {"dropout": 0.2, "weight_drop": 0.1}}
    first = whole_state(straight(tmp_path / "first", tale, **choices))
    torch.manual_seed(999)  # another generator state
    assert whole_state(straight(tmp_path / "again", tale, **choices)) == first
    assert whole_state(straight(tmp_path / "other", tale, seed=2, **choices)) != first


HARDER: dict[str, tuple[Callable[[Run], bool], dict[str, Any]]] = {
    "before a due validation": (at(24), {}),
    "inside a validation": (Inside(24, 1), {}),
    "inside the shown sample": (Inside(24, 9), {}),
    "before the first update": (at(0), {}),
    "before the last validation": (Inside(44, 1), {}),
    "between two rows of the log": (at(37), {}),
    "during the decay of the rate": (at(41), {}),
    "dropout and weight drop": (at(25), {"model": {"dropout": 0.2, "weight_drop": 0.3}}),
    "several masks": (at(25), {"model": {"dropout": 0.2}, "dropout_masks": 3}),
    "a temperature": (at(25), {"loss_temperature": 0.8}),
    "windows that overlap": (at(25), {"loss_last": 3, "budget": {"steps": 90}}),
    "a budget in epochs": (at(25), {"budget": {"epochs": 2.6}}),
    "gradients cut by value": (at(25), {"clip_value": 0.01}),
    "weight decay": (at(25), {"weight_decay": 0.1, "decay_embedding": True}),
    "AdamW for all weights": (at(25), {"optimiser": "adamw"}),
    "plain gradient descent": (at(25), {"optimiser": "sgd", "scale_norm": 0.5}),
    "a state that is not carried": (at(25), {"reset_state": True}),
    "products in bf16": (at(25), {"precision": "bf16"}),
}


#: Where a run stops; the other cases say how it trains.
PLACES = [case for case, (_, choices) in HARDER.items() if not choices]


@pytest.mark.parametrize(
    "case",
    [
        *PLACES,
        *(
            pytest.param(case, marks=[pytest.mark.slow, *([needs_bf16] if "bf16" in case else [])])
            for case in HARDER
            if case not in PLACES
        ),
    ],
)
def test_resume_equals_never_stopping_also(
    tmp_path: Path, tale: Path, promise: Promise, case: str
) -> None:
    stop, choices = HARDER[case]
    expected = whole_state(straight(tmp_path / "straight", tale, **choices))
    stopped(tmp_path / "run", tale, stop, **choices)
    resumed(tmp_path / "run")
    same = whole_state(tmp_path / "run") == expected
    promise("R3", "equal also", case)
    assert same


def test_resume_while_patience_counts(tmp_path: Path, tale: Path, promise: Promise) -> None:
    # At this rate validations soon get worse.
    choices: dict[str, Any] = {"patience": 3, "lr": 3.0, "budget": {"steps": 400}}
    with RunFolder.create(tmp_path / "straight") as folder:
        run = begin(folder, tale, **choices)
        assert drive(run)[-1] == Finished("patience", complete=True)
    over = run.progress.step
    assert run.progress.validations_since_best == 3
    expected = whole_state(tmp_path / "straight")
    stopped(tmp_path / "run", tale, after_validation(over - 6), **choices)
    counted = load(tmp_path / "run" / "last.safetensors").meta["progress"]
    assert counted["validations_since_best"] == 2
    resumed(tmp_path / "run")
    same = whole_state(tmp_path / "run") == expected
    promise("R3", "equal also", "while --patience counts")
    assert same


class ColdClock(FakeClock):
    """Advances by 10 ms whenever it is read; in a sitting's first ten updates by 30 ms."""

    def __init__(self) -> None:
        super().__init__(0.03)
        self.cold = 10

    def now(self) -> float:
        self.cold -= 1
        self.tick = 0.03 if self.cold >= 0 else 0.01
        return super().now()


@pytest.fixture
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charrnn.runs.training, "Clock", lambda: nullcontext(ColdClock()))


@pytest.mark.slow
@pytest.mark.usefixtures("fast_clock")
def test_resume_of_a_budget_in_minutes(tmp_path: Path, tale: Path, promise: Promise) -> None:
    """Once the minutes are planned as steps, a run resumes bit for bit.

    The first updates of each sitting are slow, by a tenth of the time after which the speed counts
    as known. That is no change of speed, and three such sittings do not miss the minutes.
    """
    choices: dict[str, Any] = {"budget": {"minutes": 0.3}, "validate_every": None}
    planned = stopped(
        tmp_path / "a", tale, lambda run: run.progress.planned_steps is not None, **choices
    )
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    run = resumed(tmp_path / "a")
    total = run.progress.planned_steps
    assert total is not None and total > planned + 30
    for step in (planned + 1, planned + 20, total - 1):
        resumed(tmp_path / "b", at(step))
    resumed(tmp_path / "b")
    same = whole_state(tmp_path / "a") == whole_state(tmp_path / "b")
    promise("R3", "equal also", f"--minutes, planned as {total} steps at step {planned}")
    assert same


@pytest.mark.usefixtures("fast_clock")
def test_minutes_are_planned_again_when_stopped_before(tmp_path: Path, tale: Path) -> None:
    choices: dict[str, Any] = {"budget": {"minutes": 0.1}, "validate_every": None}
    step = stopped(tmp_path / "run", tale, lambda run: run.progress.seconds > 0.5, **choices)
    assert step > 0
    run = resumed(tmp_path / "run")
    assert run.progress.planned_steps == run.progress.step
    assert 0.1 * 60 * 0.8 < run.progress.seconds < 0.1 * 60 * 1.1


def test_ten_stops_change_nothing(tmp_path: Path, tale: Path, promise: Promise) -> None:
    choices: dict[str, Any] = {"cell": "gru", "model": {"dropout": 0.2, "weight_drop": 0.2}}
    expected = whole_state(straight(tmp_path / "straight", tale, **choices))
    steps = [1, 2, 6, 11, 17, 18, 24, 30, 34, 43]
    stopped(tmp_path / "run", tale, at(steps[0]), **choices)
    for step in steps[1:]:
        resumed(tmp_path / "run", at(step))
    resumed(tmp_path / "run")
    same = whole_state(tmp_path / "run") == expected
    promise("R4", "10 stops and resumes against one straight run", "equal" if same else "differs")
    assert same


def test_a_stop_at_every_step(tmp_path: Path, tale: Path, promise: Promise) -> None:
    expected = whole_state(straight(tmp_path / "straight", tale))
    stopped(tmp_path / "run", tale, at(0))
    for step in range(1, 44):
        resumed(tmp_path / "run", at(step))
    resumed(tmp_path / "run")
    same = whole_state(tmp_path / "run") == expected
    promise("R4", "a stop at each of 44 steps", "equal" if same else "differs")
    assert same


def test_a_killed_repetition_of_a_validation_is_logged_once(tmp_path: Path, tale: Path) -> None:
    """The run is stopped right before a validation, resumed, killed right after it, resumed."""
    expected = whole_state(straight(tmp_path / "straight", tale))
    stopped(tmp_path / "run", tale, at(24))
    with RunFolder.open_existing(tmp_path / "run") as folder:
        run = resume(folder, device=None, changes={})
        events = train(run)
        while not isinstance(next(events), Validated):
            pass
    assert [row["step"] for row in rows(tmp_path / "run")].count(24) == 1
    resumed(tmp_path / "run")
    assert whole_state(tmp_path / "run") == expected


def test_so_is_a_killed_repetition_of_a_row(tmp_path: Path, tale: Path) -> None:
    """The run is stopped at a row and between two, cut to 25 steps, killed after its last row."""
    run = tmp_path / "run"
    stopped(run, tale, at(20))
    resumed(run, at(25))
    with RunFolder.open_existing(run) as folder:
        events = train(resume(folder, device=None, changes={"steps": 25}))
        while not isinstance(next(events), Logged):
            pass
    resumed(run, steps=25)
    assert [row["step"] for row in rows(run) if "gradient_norm" in row] == [10, 20, 25]


@pytest.mark.parametrize(
    ("cell", "precision"),
    [*((cell, "fp32") for cell in CELLS), pytest.param("lstm", "bf16", marks=needs_bf16)],
)
def test_validating_does_not_touch_training(
    tmp_path: Path, tale: Path, promise: Promise, cell: str, precision: str
) -> None:
    valid = tmp_path / "valid.txt"
    valid.write_text(tale.read_text()[:97])
    choices: dict[str, Any] = {
        "cell": cell,
        "precision": precision,
        "model": {"dropout": 0.2, "weight_drop": 0.2},
    }
    runs = [
        straight(tmp_path / str(every), tale, validate_every=every, valid=valid, **choices)
        for every in (1, 10, 10**6)
    ]
    runs.append(straight(tmp_path / "never", tale, validate_every=None, valid_share=0.0, **choices))
    validations = [sum("valid_nats_per_char" in row for row in rows(run)) for run in runs]
    assert validations == [44, 5, 1, 0]
    same = all(equal(tensors(run), tensors(runs[0])) for run in runs[1:])
    what = "equal weights and generators, validated every 1, every 10 steps, at the end, never"
    promise("R5", what, f"{cell} in {precision}")
    assert same
    losses = [
        [row["train_nats_per_char"] for row in rows(run) if "learning_rate" in row] for run in runs
    ]
    assert all(each == losses[0] for each in losses)


def test_sampling_and_logging_do_not_touch_training(
    tmp_path: Path, tale: Path, promise: Promise, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices: dict[str, Any] = {"model": {"dropout": 0.2, "weight_drop": 0.2}}
    expected = tensors(straight(tmp_path / "straight", tale, **choices))
    monkeypatch.setattr(charrnn.runs.training, "LOG_EVERY", 1)
    monkeypatch.setattr(charrnn.runs.training, "SHOWN_LENGTH", 3)
    monkeypatch.setattr(charrnn.runs.training, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(charrnn.runs.training, "SAVE_SHARE", 1e9)
    with RunFolder.create(tmp_path / "changed") as folder:
        names = [type(event).__name__ for event in drive(begin(folder, tale, **choices))]
    assert names.count("Saved") >= names.count("Logged") == 44
    changed = tensors(tmp_path / "changed")
    promise("R5", "a row and a checkpoint every step, samples of 3 characters", "equal weights")
    assert equal(changed, expected)
