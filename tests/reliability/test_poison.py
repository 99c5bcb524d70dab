"""R9: NaN or inf never reaches weights or files."""

from __future__ import annotations

import math
import random
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import charrnn.network.update
import charrnn.runs.training
from charrnn.errors import NonFiniteError
from charrnn.inference.evaluation import Scores
from charrnn.inference.evaluation import score as real_score
from charrnn.network.model import CharModel, Hidden
from charrnn.network.optimiser import MuonAdamW
from charrnn.runs.events import Logged, Spiked
from charrnn.runs.resuming import resume
from charrnn.storage.checkpoint import load
from charrnn.storage.runfolder import RunFolder
from tests.conftest import Result, run_cli
from tests.reliability.conftest import Promise
from tests.reliability.runs import STEPS, begin, drive, rows, stopped

real_window_loss = charrnn.network.update.window_loss


class Poison:
    """Puts NaN or infinity into one update, at a chosen place.

    Replaces ``update.window_loss``; afterwards ``before`` holds the weights as they were when
    that update began, and ``model`` the model.
    """

    def __init__(self, step: int, place: str, number: float) -> None:
        self.step, self.place, self.number = step, place, number
        self.model: CharModel
        self.before: dict[str, Tensor] = {}

    def __call__(self, model: CharModel, *window: Any, **named: Any) -> tuple[Tensor, Hidden]:
        self.step -= 1
        if self.step != 0:
            return real_window_loss(model, *window, **named)
        self.model = model
        self.before = {name: weight.clone() for name, weight in model.state_dict().items()}
        if self.place == "loss":
            loss, after = real_window_loss(model, *window, **named)
            return loss * self.number, after
        if self.place == "gradient":
            model.head.weight.register_hook(self._poisoned)
            return real_window_loss(model, *window, **named)
        hook = model.embedding.register_forward_hook(lambda _m, _i, out: self._poisoned(out))
        try:
            return real_window_loss(model, *window, **named)
        finally:
            hook.remove()

    def _poisoned(self, values: Tensor) -> Tensor:
        values = values.clone()
        values.view(-1)[values.numel() // 2] = self.number
        return values

    @property
    def weights_are_untouched(self) -> bool:
        now = self.model.state_dict()
        return all(torch.equal(now[name], weight) for name, weight in self.before.items())


@pytest.fixture
def eager_saves(short_samples: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save a checkpoint after every validation, however long saving takes."""
    monkeypatch.setattr(charrnn.runs.training, "SAVE_SHARE", 1e9)


def is_whole(run: Path) -> bool:
    """Return whether no file in a run's folder holds NaN or infinity."""
    finite = [
        bool(torch.isfinite(tensor).all())
        for file in run.glob("*.safetensors")
        for tensor in load(file).tensors.values()
    ]
    text = (run / "metrics.jsonl").read_text().lower()
    return all(finite) and "nan" not in text and "inf" not in text


def options(text: Path, run: Path) -> list[object]:
    return [
        "train", text, "--run", run, "--steps", STEPS, "--hidden", 8, "--layers", 2,
        "--batch-size", 3, "--bptt", 7, "--validate-every", 6, "--quiet", "--lr", 0.02,
    ]  # fmt: skip


def poisoned(step: int, place: str, number: float, text: Path, run: Path) -> str | None:
    """Poison a run and resume it as its message advises; return what went wrong, if anything."""
    poison = Poison(step, place, number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charrnn.network.update, "window_loss", poison)
        result = run_cli(*options(text, run))
    if not poison.weights_are_untouched:
        return "weights were changed"
    if result.code != 1 or result.out or result.without_notes.err.count("\n") != 1:
        return f"ended with {result}"
    window = (step - 1) % 17
    place_in_text = f"step {step} (pass {(step - 1) // 17 + 1}, window {window + 1}, "
    place_in_text += f"from character {7 * window} of each lane on)"
    if not {"losses before it", "gradient norm"} <= set(re.findall(MEASURED, result.err)):
        return f"what was measured is not said: {result.err}"
    if place_in_text not in result.err:
        return f"{place_in_text} is not named: {result.err}"
    if step <= 6:
        ended = "nothing was saved before: start again with --lr 0.01"
        return None if ended in result.err and not run.exists() else f"left {result.err}"
    saved = (step - 1) // 6 * 6
    advice = re.search(
        r"the last good checkpoint is (.+) of step (\d+): go on .*: (.*)", result.err
    )
    if advice is None or advice[1] != str(run / "last.safetensors") or int(advice[2]) != saved:
        return f"the checkpoint of step {saved} is not named: {result.err}"
    if load(run / "last.safetensors").require("step", int) != saved or not is_whole(run):
        return "the files are not as they were"
    words = shlex.split(advice[3])
    if words != ["charrnn", "train", "--run", str(run), "--resume", "--lr", "0.01"]:
        return f"advised {words}"
    result = run_cli(*words[1:], "--quiet")
    if result.without_notes != Result(0, f"{run}\n", "") or rows(run)[-1]["step"] != STEPS:
        return f"did not go on: {result}"
    return None


MEASURED = "losses before it|gradient norm"
PLACES = ("loss", "gradient", "activation")
NUMBERS = (math.nan, math.inf, -math.inf)


@pytest.mark.usefixtures("eager_saves")
def test_poison(tmp_path: Path, tale: Path, promise: Promise) -> None:
    steps = [1, 7, *random.Random(5).sample(range(2, STEPS + 1), 18)]
    flaws = {}
    for number, step in enumerate(steps):
        # Activations get NaN only: a squashing function makes infinity finite, which is harmless.
        place = PLACES[number % 3]
        value = math.nan if place == "activation" else NUMBERS[number // 3 % 3]
        flaw = poisoned(step, place, value, tale, tmp_path / str(number))
        if flaw:
            flaws[step, place, value] = flaw
    figure = f"{20 - len(flaws)} of 20"
    promise("R9", "loss, gradient or activation poisoned, then resumed with a lower --lr", figure)
    assert not flaws


@pytest.mark.usefixtures("eager_saves")
def test_weights_that_overflow_are_not_saved(
    tmp_path: Path, tale: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the update itself makes a weight overflow, the loss shows it a step later."""
    real_step = MuonAdamW.step
    updates = 0

    def step(self: MuonAdamW) -> None:
        nonlocal updates
        updates += 1
        real_step(self)
        if updates == 12:  # a validation and a checkpoint come next
            next(iter(self._matrices.values())).data[1, 1] = math.inf

    monkeypatch.setattr(MuonAdamW, "step", step)
    run = tmp_path / "run"
    result = run_cli(*options(tale, run))
    assert result.code == 1 and result.without_notes.err.count("\n") == 1
    assert "not finite after step 12" in result.err
    assert "last.safetensors of step 6" in result.err
    assert load(run / "last.safetensors").require("step", int) == 6
    assert load(run / "best.safetensors").require("progress", dict)["step"] == 6
    assert is_whole(run)


def test_a_checkpoint_of_weights_that_are_none_is_refused(tmp_path: Path, tale: Path) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        run = begin(folder, tale)
        drive(run, lambda run: run.progress.step == 5)
        for name, save in (("last", run.save), ("best", run.save_best)):
            before = {file: file.read_bytes() for file in folder.path.iterdir()}
            with torch.no_grad():
                run.model.head.bias[2] = math.nan
            with pytest.raises(NonFiniteError, match=r"model\.head\.bias is not finite"):
                save()
            assert before == {file: file.read_bytes() for file in folder.path.iterdir()}, name


@pytest.mark.usefixtures("eager_saves")
def test_a_validation_that_is_none(
    tmp_path: Path, tale: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = 0

    def score(*arguments: Any, **named: Any) -> Scores:
        nonlocal times
        times += 1
        scores = real_score(*arguments, **named)
        nats = math.nan if times == 3 else scores.nats
        return Scores(nats, scores.characters, scores.unknown, scores.bytes, scores.seconds)

    monkeypatch.setattr(charrnn.runs.training, "score", score)
    result = run_cli(*options(tale, tmp_path / "run"))
    assert result.code == 1
    assert "the validation loss is not finite after step 18" in result.err
    assert load(tmp_path / "run" / "last.safetensors").require("step", int) == 12
    assert is_whole(tmp_path / "run")


def spiking(jumps: Mapping[int, float]) -> Callable[..., tuple[Tensor, Hidden]]:
    """Return a loss function that adds ``jumps``, {update: nats}."""
    updates = 0

    def window_loss(*window: Any, **named: Any) -> tuple[Tensor, Hidden]:
        nonlocal updates
        updates += 1
        loss, after = real_window_loss(*window, **named)
        return loss + jumps.get(updates, 0.0), after

    return window_loss


@pytest.mark.usefixtures("short_samples")
def test_a_loss_spike_is_told_once(
    tmp_path: Path, tale: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = dict.fromkeys((*range(121, 131), *range(151, 161)), 3.0)
    monkeypatch.setattr(charrnn.network.update, "window_loss", spiking(jumps))
    budget = {"steps": 200}
    with RunFolder.create(tmp_path / "run") as folder:
        events = drive(begin(folder, tale, budget=budget, validate_every=100))
    (spike,) = (event for event in events if isinstance(event, Spiked))
    assert spike.step == 130
    assert spike.before is not None
    assert spike.after > spike.before + 2


def test_a_jump_after_a_stop_is_told_as_well(
    tmp_path: Path, tale: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jumps are likeliest after a stop: the rate may be new, or rise again by a new plan."""
    monkeypatch.setattr(
        charrnn.network.update, "window_loss", spiking(dict.fromkeys(range(81, 91), 3.0))
    )
    stopped(tmp_path / "run", tale, lambda run: run.progress.step == 80, budget={"steps": 90})
    with RunFolder.open_existing(tmp_path / "run") as folder:
        events = drive(resume(folder, device=torch.device("cpu"), changes={}))
    assert [event.step for event in events if isinstance(event, Spiked)] == [90]


@pytest.mark.parametrize(("jump", "told"), [(0.8, []), (1.3, [90])])
def test_a_spike_is_a_jump_of_a_nat(
    tmp_path: Path, tale: Path, monkeypatch: pytest.MonkeyPatch, jump: float, told: list[int]
) -> None:
    """The rate is so low that the loss changes only by the jump."""
    monkeypatch.setattr(
        charrnn.network.update, "window_loss", spiking(dict.fromkeys(range(81, 91), jump))
    )
    with RunFolder.create(tmp_path / "run") as folder:
        events = drive(begin(folder, tale, budget={"steps": 90}, validate_every=100, lr=1e-9))
    assert [event.step for event in events if isinstance(event, Spiked)] == told


@pytest.mark.usefixtures("short_samples")
@pytest.mark.parametrize(("guessing", "told"), [(4.0, [40]), (99.0, [])])
def test_a_loss_that_falls_has_not_jumped(
    tmp_path: Path, tale: Path, monkeypatch: pytest.MonkeyPatch, guessing: float, told: list[int]
) -> None:
    """A loss that falls is not reported, though it is still far above its mean after a jump.

    At step 40 it is too early to compare with a mean, but a loss worse than guessing is reported.
    """
    jumps = dict.fromkeys(range(31, 41), 9.0) | dict.fromkeys(range(41, 51), 7.0)
    monkeypatch.setattr(charrnn.network.update, "window_loss", spiking(jumps))
    with RunFolder.create(tmp_path / "run") as folder:
        run = begin(folder, tale, budget={"steps": 200}, validate_every=100)
        run.baselines["uniform"] = guessing
        events = drive(run)
    losses = {e.row["step"]: e.row["train_nats_per_char"] for e in events if isinstance(e, Logged)}
    usual = sum(losses[step] for step in (10, 20, 30, 40)) / 4
    assert losses[50] > usual + charrnn.runs.training.SPIKE
    spikes = [event for event in events if isinstance(event, Spiked)]
    assert [(spike.step, spike.before) for spike in spikes] == [(step, None) for step in told]
