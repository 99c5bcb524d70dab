from __future__ import annotations

import copy
import errno
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from charrnn import recipe
from charrnn.analysis.flow import initial_model
from charrnn.compute import device, library
from charrnn.config import CellName, ModelConfig, SampleConfig, TextChoices, TrainConfig
from charrnn.errors import (
    CheckpointError,
    NonFiniteError,
    RunFolderError,
    TakenFolderError,
    UsageError,
)
from charrnn.inference.baselines import compressed_nats, uniform_nats, unigram_nats
from charrnn.inference.evaluation import Scores, prices, score
from charrnn.inference.sampling import Drawn, collect, sample
from charrnn.network.capture import Capture, UpdateResult
from charrnn.network.model import CharModel
from charrnn.network.optimiser import SGD, AdamW, MuonAdamW
from charrnn.network.update import Update
from charrnn.runs import resuming, training
from charrnn.runs.assembling import _slow_loops, refuse_too_large
from charrnn.runs.events import (
    Event,
    Finished,
    Logged,
    Planned,
    Sampled,
    Saved,
    Uncaptured,
    Validated,
    Validating,
)
from charrnn.runs.planning import Planner
from charrnn.runs.resuming import _other_machine, resume
from charrnn.runs.run import Best, Change, Progress, Run, changes_in
from charrnn.runs.schedule import Schedule
from charrnn.runs.starting import start
from charrnn.runs.training import train
from charrnn.storage.checkpoint import load, save
from charrnn.storage.runfolder import RunFolder
from charrnn.storage.trained import load_model
from charrnn.text.scanning import scan
from charrnn.text.stream import Batch, Lanes
from tests.conftest import (
    FakeClock,
    assert_one_line,
    documented_fields,
    log_of,
    make_prose,
    refusing,
)

CPU = torch.device("cpu")
POSITION = ["step", "epoch", "characters", "seconds"]
OF_TRAINING = [
    "train_nats_per_char",
    "learning_rate",
    "gradient_norm",
    "largest_gradient_norm",
    "clipped_share",
    "chars_per_second",
]
SMALL: dict[str, Any] = {"batch_size": 3, "bptt": 17, "precision": "fp32"}

StartRun = Callable[..., Run]


@pytest.fixture
def start_run(tmp_path: Path, prose: Path) -> Iterator[StartRun]:
    """A function that starts a small run in a folder of its own."""
    folders: list[RunFolder] = []

    def make(
        text: TextChoices | None = None,
        model: dict[str, Any] | None = None,
        cell: CellName | None = "lstm",
        init_from: Path | None = None,
        **options: Any,
    ) -> Run:
        budget: dict[str, float | int] = {
            name: options.pop(name) for name in ("minutes", "epochs", "steps") if name in options
        }
        folders.append(RunFolder.create(tmp_path / f"run{len(folders)}"))
        choices = recipe.Choices(
            cell=cell,
            budget=budget,
            model={"hidden": None if init_from else 9, **(model or {})},
            training={**SMALL, **options},
        )
        text = text or TextChoices(texts=(str(prose),))
        return start(choices, text, folder=folders[-1], device=CPU, init_from=init_from)

    yield make
    for folder in folders:
        folder.close()


def only(events: Sequence[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_events_come_in_order_and_the_state_is_saved_at_the_end(start_run: StartRun) -> None:
    run = start_run(steps=25, validate_every=10)
    events = list(train(run))
    assert isinstance(events[0], Planned)
    assert events[0].total_steps == 25
    assert events[-1] == Finished("done", complete=True)
    assert only(events, Saved)[-1] == Saved(run.folder.path / "last.safetensors", 25)
    assert [event.row["step"] for event in only(events, Logged)] == [10, 20, 25]
    assert [event.row["step"] for event in only(events, Validated)] == [10, 20, 25]
    # Saves are left out: they come whenever they are worth their time.
    for validated, sampled in pairwise(e for e in events if not isinstance(e, Saved)):
        assert isinstance(validated, Validating) == isinstance(sampled, Validated)
        if isinstance(validated, Validated):
            assert isinstance(sampled, Sampled)
            assert len(sampled.text) > 100
    # The state is saved before the first best: else a killed run might have a best but no last.
    first = next(number for number, event in enumerate(events) if isinstance(event, Validated))
    assert isinstance(events[first - 1], Saved)


@pytest.mark.parametrize(("left", "times"), [(-1.0, 1), (1e6, 0)])
def test_pages_of_memory_are_joined_once_if_the_run_lasts(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch, left: float, times: int
) -> None:
    joined: list[int] = []
    run = start_run(steps=25)
    monkeypatch.setattr(training, "Clock", lambda: nullcontext(FakeClock(0.5)))
    monkeypatch.setattr(training, "LARGE_PAGES", left)
    monkeypatch.setattr(training, "join_pages", lambda: joined.append(run.progress.step))
    list(train(run))
    assert len(joined) == times
    assert all(0 < step < 25 for step in joined)  # not before updates have allocated


def test_it_begins_with_the_weights_of_its_seed(start_run: StartRun) -> None:
    """Whatever was drawn before; ``inspect`` makes the same weights again."""
    for seed in (5, 1, 5):
        run = start_run(steps=1, seed=seed)
        initial = initial_model(run.model.config, seed)
        for one, other in zip(run.model.parameters(), initial.parameters(), strict=True):
            assert torch.equal(one, other)


def weights_by_hand(run: Run, options: dict[str, Any]) -> list[Tensor]:
    """Return the weights after three updates by a run's parts, without the training loop."""
    model, config = copy.deepcopy(run.model), replace(run.config, **options)
    model.set_dropout(0.3, 0.2)
    rules = {"muon": MuonAdamW, "adamw": AdamW, "sgd": SGD}
    rule = rules[options.get("optimiser", "muon")](
        model, weight_decay=config.weight_decay, decay_embedding=config.decay_embedding
    )
    update = Update(model, rule, config)
    lanes = Lanes(run.train, run.vocabulary, 3, 17, options.get("loss_last"))
    torch.manual_seed(9)
    for step, batch in enumerate(islice(lanes.batches(), 3)):
        factor = Schedule(2, 20).factor(step)  # the warm-up is a tenth of 20 updates
        rule.set_rates(config.lr * factor, config.lr_adam * factor)
        update(batch)
    return list(model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimiser": "adamw"},
        {"optimiser": "sgd"},
        {"decay_embedding": True},
        {"loss_last": 11},
        {"reset_state": True},
        {"clip_norm": 0.1},
        {"clip_value": 1e-3},
        {"scale_norm": 0.5},
        {"dropout_masks": 3},
        {"loss_temperature": 0.8},
    ],
)
def test_a_run_is_its_parts_put_together_by_hand(
    start_run: StartRun, options: dict[str, Any]
) -> None:
    begin = partial(start_run, steps=20, model={"dropout": 0.3, "weight_drop": 0.2})
    run = begin(**options)
    expected = weights_by_hand(run, options)
    torch.manual_seed(9)
    list(train(run, lambda: "stop" if run.progress.step == 3 else None))
    assert all(map(torch.equal, run.model.parameters(), expected))
    plain = weights_by_hand(begin(), {})
    assert all(map(torch.equal, plain, expected)) == (options == {}), "each has an effect"


def test_the_mean_loss_is_that_of_all_rows_while_they_are_few_and_then_of_the_latest(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SMOOTHING", 3)
    run = start_run(steps=57)
    losses = [event.row["train_nats_per_char"] for event in only(list(train(run)), Logged)]
    assert len(losses) == 6
    mean = sum(losses[:3]) / 3
    for loss in losses[3:]:
        mean = (2 * mean + loss) / 3
    assert run.progress.smooth_loss == pytest.approx(mean)


def test_the_log_has_the_rows_and_names_that_were_promised(start_run: StartRun) -> None:
    run = start_run(steps=25, validate_every=10)
    events = list(train(run))
    assert log_of(run.folder.path) == [e.row for e in events if isinstance(e, Logged | Validated)]
    # The row on updates comes before the row on their validation, also at the end.
    order = [(row["step"], "valid_nats_per_char" in row) for row in log_of(run.folder.path)]
    assert order == [(step, validated) for step in (10, 20, 25) for validated in (False, True)]
    for row in log_of(run.folder.path):
        valid = "valid_nats_per_char" in row
        assert list(row) == POSITION + (["valid_nats_per_char"] if valid else OF_TRAINING)
        assert all(math.isfinite(value) for value in row.values())
        assert row["epoch"] == pytest.approx(row["step"] / run.lanes.steps_per_epoch)
        # Every window but a pass's last has 3 lanes of 17.
        assert row["characters"] <= row["step"] * 3 * 17
    assert documented_fields("## The log", 1) == {*OF_TRAINING, "valid_nats_per_char"}
    seconds = [row["seconds"] for row in log_of(run.folder.path)]
    assert seconds == sorted(seconds)
    assert run.progress.characters == log_of(run.folder.path)[-1]["characters"]


def test_the_training_loss_charges_unknown_characters_as_a_score_does(
    start_run: StartRun, prose: Path
) -> None:
    text = TextChoices(texts=(str(prose),), min_count=60)
    run = start_run(text, epochs=1, lr=1e-9, loss_last=11)
    exact = score(run.model, run.train, run.vocabulary)
    assert exact.unknown / exact.characters > 0.02
    list(train(run))
    updates = [row for row in log_of(run.folder.path) if "train_nats_per_char" in row]
    losses, characters = zip(
        *((row["train_nats_per_char"], row["characters"]) for row in updates), strict=True
    )
    counted = np.diff(characters, prepend=0)
    assert np.average(losses, weights=counted) == pytest.approx(exact.nats_per_char, rel=0.01)


def test_knows_what_share_of_the_held_out_text_is_unknown(
    start_run: StartRun, prose: Path, tmp_path: Path
) -> None:
    strange = tmp_path / "strange"
    strange.write_text("\N{SNOWMAN}" + "ab" * 9 + "\N{SNOWMAN}" * 6, encoding="utf-8")
    text = TextChoices(texts=(str(prose),), valid=(str(strange),))
    assert start_run(text, steps=1).unknown_share == 0.25  # the first character is not predicted
    without = TextChoices(texts=(str(prose),), valid_share=0)
    assert start_run(without, steps=1).unknown_share == 0


def test_a_row_sums_up_the_updates_since_the_last(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsal = only(list(train(start_run(steps=23, clip_norm=1000.0))), Logged)
    # The middle norm: some updates will be clipped, some not.
    limit = sorted(event.row["gradient_norm"] for event in rehearsal)[1]
    run = start_run(steps=23, clip_norm=limit)
    seen: list[tuple[UpdateResult, int, float]] = []
    original = Update.__call__

    def watched(self: Update, batch: Batch) -> UpdateResult:
        rate = self.optimiser.lr.item()
        seen.append((original(self, batch), batch.characters, rate))
        return seen[-1][0]

    monkeypatch.setattr(Update, "__call__", watched)
    logged = [event.row for event in only(list(train(run)), Logged)]
    assert [row["step"] for row in logged] == [10, 20, 23]
    for row, part in zip(logged, (seen[:10], seen[10:20], seen[20:]), strict=True):
        characters = sum(n for _, n, _ in part)
        loss = sum(result.loss.item() * n for result, n, _ in part) / characters
        assert row["train_nats_per_char"] == pytest.approx(loss)
        norms = [result.norm.item() for result, _, _ in part]
        assert row["gradient_norm"] == pytest.approx(sum(norms) / len(part))
        assert row["largest_gradient_norm"] == pytest.approx(max(norms))
        assert row["clipped_share"] == pytest.approx(sum(n > limit for n in norms) / len(part))
        assert row["learning_rate"] == pytest.approx(part[-1][2]), "the rate of the last update"
    assert 0 < run.progress.clipped_steps < 23
    for step, (_, _, rate) in enumerate(seen):
        assert rate == pytest.approx(run.config.lr * Schedule(3, 23).factor(step))


def test_what_it_starts_from_is_the_checkpoint_itself(start_run: StartRun, trained: Path) -> None:
    run = start_run(init_from=trained, steps=1)
    model, _, _ = load_model(trained, CPU)
    own = dict(run.model.named_parameters())
    for name, weight in model.named_parameters():
        assert torch.equal(weight, own[name]), name
    assert run.progress.step == 0
    assert not any(tensor.any() for tensor in run.update.optimiser.state().values())


@pytest.mark.parametrize("given", [{}, {"dropout": 0.25}])
def test_what_is_dropped_follows_from_the_new_text_and_budget(
    start_run: StartRun, trained: Path, given: dict[str, float]
) -> None:
    run = start_run(init_from=trained, epochs=200, model=given)
    weights = recipe.matrix_weights(run.model.config)
    pressure = recipe.pressure(200, weights, run.train.characters)
    expected = recipe.dropout_and_weight_drop("lstm", pressure, run.train.characters)
    before, _, _ = load_model(trained, CPU)
    assert before.config.dropout + 0.1 < expected[0]
    assert run.model.config.dropout == given.get("dropout", expected[0])
    assert run.model.config.weight_drop == expected[1]


def test_the_weights_that_training_starts_from_are_what_it_has_to_improve_on(
    start_run: StartRun, trained: Path
) -> None:
    run = start_run(init_from=trained, steps=12, validate_every=6, lr=9.0)  # too high
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    assert run.valid is not None
    nats = score(run.model, run.valid, run.vocabulary).nats_per_char
    first, *others = only(list(train(run)), Validated)
    assert first.row["step"] == 0
    assert first.row["valid_nats_per_char"] == log_of(run.folder.path)[0]["valid_nats_per_char"]
    assert first.row["valid_nats_per_char"] == pytest.approx(nats)
    assert first.best
    assert [event.best for event in others] == [False, False]
    best = load(run.folder.path / "best.safetensors")
    assert best.record("progress", Progress).best_step == 0
    config = best.record("training", TrainConfig)
    assert config.init_from == str(trained)
    assert config.init_sha256 == load(trained / "best.safetensors").digest
    assert all(torch.equal(best.tensors[f"model.{name}"], kept) for name, kept in before.items())


def test_a_run_that_stops_before_its_starting_weights_are_scored_goes_on_with_that(
    start_run: StartRun, trained: Path
) -> None:
    straight = start_run(init_from=trained, steps=4)
    list(train(straight))
    stopped = start_run(init_from=trained, steps=4)
    list(train(stopped, lambda: "stop"))
    assert stopped.progress.step == 0
    assert not log_of(stopped.folder.path)
    again = resume(stopped.folder, device=CPU, changes={})
    list(train(again))
    rows, others = (
        [row | {"seconds": 0, "chars_per_second": 0} for row in log_of(run.folder.path)]
        for run in (straight, again)
    )
    assert rows == others
    assert rows[0]["step"] == 0


def test_the_best_checkpoint_is_the_best_validation(start_run: StartRun) -> None:
    run = start_run(steps=24, validate_every=3, lr=9.0)  # too high: the loss goes up and down
    events = only(list(train(run)), Validated)
    prices = [event.scores.nats_per_char for event in events]
    assert prices != sorted(prices, reverse=True)
    lowest = min(prices)
    assert [event.best for event in events] == [
        price == min(prices[: index + 1]) for index, price in enumerate(prices)
    ]
    assert run.progress.best_nats == lowest
    assert run.progress.best_step == 3 * (prices.index(lowest) + 1)
    model, vocabulary, best = load_model(run.folder.path, CPU)
    assert best.meta["progress"]["step"] == run.progress.best_step
    assert run.valid is not None
    assert score(model, run.valid, vocabulary).nats_per_char == pytest.approx(lowest, rel=1e-6)
    assert load(run.folder.path / "last.safetensors").meta["progress"]["step"] == 24


@pytest.fixture
def scripted_scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Validation losses to come, nats per character."""
    script: list[float] = []

    def scripted(*_: object, **__: object) -> Scores:
        return Scores(script.pop(0) * 100, 100, 0, 100, 0.1)

    monkeypatch.setattr(training, "score", scripted)
    return script


def test_patience_counts_validations_without_a_new_best(
    start_run: StartRun, scripted_scores: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SHARE", math.inf)  # saves after every validation
    scripted_scores += [3.0, 3.1, 2.9, 2.9, 3.0, 2.95, 1.0]
    run = start_run(steps=999, validate_every=2, patience=3)
    events = list(train(run))
    assert events[-1] == Finished("patience", complete=True)
    assert [event.best for event in only(events, Validated)] == [True, False, True, *3 * [False]]
    assert run.progress.step == 12
    assert run.progress.best_step == 6
    assert run.progress.best_nats == pytest.approx(2.9)
    assert only(events, Saved)[-1].step == 12
    # The updates after step 10 have a row, too, and resuming does not repeat it.
    assert [event.row["step"] for event in only(events, Logged)] == [10, 12]
    log = log_of(run.folder.path)
    assert load(run.folder.path / "last.safetensors").meta["progress"]["row_updates"] == 0
    assert list(train(resume(run.folder, device=CPU, changes={})))[-1] == events[-1]
    assert log_of(run.folder.path) == log


def test_a_large_held_out_part_is_scored_on_its_beginning(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.runs.planning.validation_length", lambda *_: 100)
    run = start_run(steps=1)
    planned, *events = train(run)
    assert planned == Planned(1, 1, 100, weight_decay=0.1)
    (event,) = only(events, Validated)
    assert run.valid is not None
    part = run.valid.corpus.part(run.valid.start, run.valid.start + 100)
    assert event.scores.characters == 99
    exact = score(run.model, part, run.vocabulary)
    assert event.scores.nats == pytest.approx(exact.nats)


def test_a_run_in_bf16_goes_on_in_fp32_where_there_is_none(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("multiplies_bf16", "recurs_in_bf16"):
        monkeypatch.setattr(f"charrnn.runs.starting.{name}", lambda device: True)
    run = start_run(steps=20, precision=None)
    assert run.config.precision == "bf16"
    list(train(run, lambda: "the test" if run.progress.step == 3 else None))
    for able in (True, False):
        monkeypatch.setattr("charrnn.runs.resuming.multiplies_bf16", lambda device, able=able: able)
        again = resume(run.folder, device=None, changes={})
        assert again.config.precision == ("bf16" if able else "fp32")
        assert [note for note in again.notes if "precision" in note] == (
            [] if able else ["precision fp32 (was bf16, which this device has no instructions for)"]
        )
        old, new = run.update.hidden[0][0], again.update.hidden[0][0]
        assert torch.equal(new, old)


def test_validations_are_in_the_precision_of_the_training(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.runs.starting.multiplies_bf16", lambda device: True)
    run = start_run(steps=2, precision="bf16")
    *_, event = only(list(train(run)), Validated)
    assert run.valid is not None
    wide, narrow = (
        score(run.model, run.valid, run.vocabulary, dtype=dtype).nats_per_char
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert event.row["valid_nats_per_char"] == narrow != wide


def test_bf16_without_its_recurrences_is_for_who_asks_for_it(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.runs.starting.multiplies_bf16", lambda device: True)
    monkeypatch.setattr("charrnn.runs.starting.recurs_in_bf16", lambda device: False)
    assert start_run(steps=1, precision=None).config.precision == "fp32"
    assert start_run(steps=1, precision="bf16").config.precision == "bf16"


def test_a_run_in_fp32_goes_on_so_without_a_word(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(steps=20)
    list(train(run, lambda: "the test" if run.progress.step == 3 else None))
    monkeypatch.setattr("charrnn.runs.resuming.multiplies_bf16", lambda device: False)
    monkeypatch.setattr("charrnn.runs.assembling.loops", lambda: mock.Mock(flaw=None))
    again = resume(run.folder, device=CPU, changes={})
    assert again.config == run.config
    assert again.notes == []


def test_a_run_that_goes_on_on_another_gpu_says_so(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(Run, "device", gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Abacus 3")
    checkpoint = start_run(steps=1)._checkpoint({})
    assert _other_machine(checkpoint, gpu) == []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Abacus 4")
    (note,) = _other_machine(checkpoint, gpu)
    assert note == "GPU Abacus 4 (was Abacus 3): results may differ in the last bits"
    (note,) = _other_machine(checkpoint, CPU)
    assert note.startswith("device cpu (was cuda): ")
    del checkpoint.meta["gpu"]  # as in older checkpoints
    assert _other_machine(checkpoint, gpu) == []


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_run_that_goes_on_keeps_its_plan(start_run: StartRun, share: float, prose: Path) -> None:
    run = start_run(TextChoices(texts=(str(prose),), valid_share=share), steps=20)
    first = list(train(run, lambda: "the test" if run.progress.step == 7 else None))
    again = resume(run.folder, device=None, changes={})
    then = list(train(again))
    assert [len(only(events, Planned)) for events in (first, then)] == [1, 0]
    assert again.progress.planned_at_step == 0
    assert again.progress.step == 20


def test_a_warm_up_is_a_tenth_of_few_updates(start_run: StartRun, tmp_path: Path) -> None:
    """Also for a budget in epochs, or a text too short for the recipe's lanes and windows."""
    path = tmp_path / "short"
    path.write_text(make_prose(203))
    texts = TextChoices(texts=(str(path),))
    for run in (start_run(epochs=0.25), start_run(texts, steps=37, batch_size=16, bptt=128)):
        planned = run.progress.planned_steps
        assert planned is not None
        assert planned < 500
        assert run.config.warmup_steps == -(-planned // 10)


@pytest.mark.parametrize(("done", "warm_up"), [(0, 9), (7, 4)])
def test_a_new_budget_leaves_a_warm_up_that_has_begun(
    start_run: StartRun, done: int, warm_up: int
) -> None:
    run = start_run(steps=40)
    assert run.config.warmup_steps == 4
    list(train(run, lambda: "stop" if run.progress.step == done else None))
    again = resume(run.folder, device=CPU, changes={"steps": 90})
    assert (again.progress.step, again.progress.planned_steps) == (done, 90)
    assert again.config.warmup_steps == warm_up
    assert (again.lanes.batch_size, again.lanes.bptt) == (3, 17)


@pytest.mark.parametrize("budget", [{"steps": 20}, {"epochs": 0.19}])
def test_a_smaller_budget_ends_a_warm_up_that_is_longer_than_its_own(
    start_run: StartRun, budget: dict[str, float]
) -> None:
    run = start_run(steps=1000)
    assert run.config.warmup_steps == 50
    list(train(run, lambda: "stop" if run.progress.step == 5 else None))
    again = resume(run.folder, device=CPU, changes=budget)
    list(train(again))
    assert (again.progress.step, again.config.warmup_steps) == (20, 5)
    log = [row for row in log_of(run.folder.path) if "learning_rate" in row]
    (rate,) = (row["learning_rate"] for row in log if row["step"] == 10)
    assert rate == pytest.approx(again.config.lr * Schedule(5, 20).factor(9))


@pytest.mark.parametrize("many_symbols", [False, True])
def test_what_decays_is_what_the_recipe_says(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch, many_symbols: bool
) -> None:
    """With gradients of zero, only decay changes a weight."""
    if many_symbols:
        monkeypatch.setitem(recipe.RULES, "lstm", recipe.RULES["lstm"]._replace(many_symbols=2))
    run = start_run(steps=3, optimiser="adamw", weight_decay=0.25)
    before = {name: weight.clone() for name, weight in run.model.named_parameters()}
    for weight in run.model.parameters():
        weight.grad = torch.zeros_like(weight)
    run.update.optimiser.set_rates(0.5, 0.5)
    run.update.optimiser.step()
    decayed = {name for name, weight in run.model.named_parameters() if weight.dim() == 2}
    if not many_symbols:
        decayed -= {"embedding.weight", "head.weight"}
    for name, weight in run.model.named_parameters():
        assert torch.equal(weight, before[name] * (0.875 if name in decayed else 1)), name


MAY_DROP = {"dropout_masks": 3, "dropout_by_plan": True}


@pytest.mark.parametrize(
    ("shape", "config", "where", "megabytes"),
    [
        # 3 lanes x 20,000 predictions x 1,000 logits of 4 bytes; in bf16 of 2; off the CPU each has
        # a gradient besides, and on CUDA all that twice; or only 2,000 predictions.
        ({"vocabulary": 1000}, {"bptt": 20_000}, "cpu", 241),
        ({"vocabulary": 1000}, {"bptt": 20_000, "precision": "bf16"}, "cpu", 121),
        ({"vocabulary": 1000}, {"bptt": 20_000}, "mps", 481),
        ({"vocabulary": 1000}, {"bptt": 20_000}, "cuda", 962),
        ({"vocabulary": 1000}, {"bptt": 20_000, "loss_last": 2000}, "cpu", 24.8),
        ({"vocabulary": 1000}, {"bptt": 20_000, "dropout_masks": 3}, "cpu", 241),
        ({"vocabulary": 1000, "dropout": 0.5}, {"bptt": 20_000, "dropout_masks": 3}, "cpu", 721),
        # A model that may get dropout needs as much as with dropout; a plain RNN never gets any.
        ({"cell": "gru", "vocabulary": 1000}, {"bptt": 20_000, **MAY_DROP}, "cpu", 723),
        ({"vocabulary": 1000}, {"bptt": 20_000, **MAY_DROP}, "cpu", 241),
        # 3 lanes x 1,000 characters x 50 masks x 100 outputs of 4 bytes, in bf16 of 2, and 7 MB of
        # others; off the CPU also the masks.
        ({"hidden": 100, "dropout": 0.5}, {"bptt": 1000, "dropout_masks": 50}, "cpu", 67),
        (
            {"hidden": 100, "dropout": 0.5},
            {"bptt": 1000, "dropout_masks": 50, "precision": "bf16"},
            "cpu",
            35,
        ),
        ({"hidden": 100, "dropout": 0.5}, {"bptt": 1000, "dropout_masks": 50}, "mps", 128),
        # 3 lanes x 1,000 characters x 5 layers x 300 units x 6 floats: 108 MB; and
        # 4 x 300 x 2,701 + 602 weights of 20 bytes.
        ({"cell": "lstm", "layers": 5, "hidden": 300}, {"bptt": 1000}, "cpu", 173),
        # A plain RNN keeps 1 float: 18 MB. With dropout it keeps 3: 54 MB, and 4 MB of outputs. Its
        # 300 x 2,701 + 602 weights take 20 bytes each, without moments 12.
        ({"layers": 5, "hidden": 300}, {"bptt": 1000}, "cpu", 34.5),
        ({"layers": 5, "hidden": 300, "dropout": 0.5}, {"bptt": 1000}, "cpu", 74.1),
        ({"layers": 5, "hidden": 300}, {"bptt": 1000, "optimiser": "sgd"}, "cpu", 28.0),
        ({"layers": 1000}, {"bptt": 1}, "cpu", 50),
        # The worked figure of docs/defaults.md.
        (
            {"cell": "lstm", "vocabulary": 158, "hidden": 512, "embedding": 158},
            {"batch_size": 16, "bptt": 128, "precision": "bf16"},
            "cpu",
            55.4,
        ),
    ],
)
def test_what_a_training_needs_is_known_before(
    shape: dict[str, Any], config: dict[str, Any], where: str, megabytes: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sizes = {"cell": "rnn", "vocabulary": 2, "layers": 1, "hidden": 1, "embedding": 1, **shape}
    model = ModelConfig.from_dict(sizes)
    training = TrainConfig(
        **{"batch_size": 3, "precision": "fp32", "steps": 1, "lr": 0.1, "lr_adam": 0.1,
           "warmup_steps": 1, **config},
    )  # fmt: skip
    for share in (0.97, 1.03):
        there = round(share * 1e6 * megabytes)
        asked = mock.Mock(return_value=(0, there) if where == "cuda" else there)
        name = (
            "torch.cuda.mem_get_info" if where == "cuda" else "charrnn.runs.assembling.memory_bytes"
        )
        monkeypatch.setattr(name, asked)
        with nullcontext() if share > 1 else pytest.raises(UsageError, match="needs about"):
            refuse_too_large(model, training, torch.device(where), "wait")


def test_dropout_that_a_plan_has_ruled_out_needs_no_memory(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def watched(*args: Any, is_planned: bool) -> None:
        asked.append(is_planned)
        refuse_too_large(*args, is_planned=is_planned)

    for module in "starting", "resuming":
        monkeypatch.setattr(f"charrnn.runs.{module}.refuse_too_large", watched)
    start_run(minutes=1)
    run = start_run(steps=9)
    list(train(run, lambda: "stop" if run.progress.step == 3 else None))
    for changes in {}, {"steps": 10}, {"minutes": 1.0}:
        resume(run.folder, device=CPU, changes=changes)
    assert asked == [False, True, True, False, False]
    shape = replace(run.model.config, dropout=0.0, vocabulary=1000)
    config = replace(run.config, dropout_masks=3, bptt=20_000)
    monkeypatch.setattr("charrnn.runs.assembling.memory_bytes", lambda: 400_000_000)
    refuse_too_large(shape, config, CPU, "wait", is_planned=True)
    with pytest.raises(UsageError, match="needs about"):
        refuse_too_large(shape, config, CPU, "wait")


def test_what_is_too_large_is_said_in_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ModelConfig(cell="gru", vocabulary=100, layers=1, hidden=8000, embedding=1)
    monkeypatch.setattr("charrnn.runs.assembling.memory_bytes", lambda: 2_900_000_000)
    run = TrainConfig(
        batch_size=1, bptt=1, precision="fp32", steps=1, lr=0.1, lr_adam=0.1, warmup_steps=1
    )
    said = "^training needs about 3.9 GB of memory, more than the 2.9 GB available: wait$"
    with pytest.raises(UsageError, match=said):
        refuse_too_large(shape, run, CPU, "wait")


def test_a_budget_of_less_than_an_update_makes_one(start_run: StartRun) -> None:
    assert start_run(epochs=1e-9).progress.planned_steps == 1


def test_epochs_without_end_can_be_gone_on_with(start_run: StartRun) -> None:
    run = start_run(epochs=1e30)
    assert Progress.from_dict(run.progress.to_dict()).planned_steps == 2**62


def test_the_marks_to_beat_are_of_what_validations_predict(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a new run and in a resumed one; of a long text only the beginning is compressed."""
    monkeypatch.setattr("charrnn.inference.baselines.MOST_COMPRESSED", 101)
    run = start_run(steps=3)
    assert run.valid is not None
    predicted = run.valid.predicted
    held_out, first = predicted.counts, predicted.start
    expected = {
        "uniform": uniform_nats(held_out, run.vocabulary),
        "unigram": unigram_nats(run.train.counts, held_out, run.vocabulary),
        "bzip2": compressed_nats(run.valid.corpus.part(first, first + 101), "bzip2"),
    }
    assert run.baselines == expected
    list(train(run, lambda: "stop"))
    assert resume(run.folder, device=CPU, changes={}).baselines == expected


def test_a_changed_rate_moves_both(start_run: StartRun) -> None:
    run = start_run(steps=7, lr=0.02)
    list(train(run, lambda: "stop"))
    again = resume(run.folder, device=CPU, changes={"lr": 0.06})
    assert again.config.lr == 0.06
    assert again.config.lr_adam == pytest.approx(3 * run.config.lr_adam)
    assert "--lr 0.06 (was 0.02) from step 0 on" in again.notes


def test_nothing_that_counts_validations_is_added_to_a_run_without_any(
    start_run: StartRun, prose: Path
) -> None:
    run = start_run(TextChoices(texts=(str(prose),), valid_share=0.0), steps=7)
    list(train(run, lambda: "stop"))
    for change in ("patience", "validate_every"):
        with pytest.raises(UsageError, match="nothing is held out"):
            resume(run.folder, device=CPU, changes={change: 2})


def test_a_run_that_comes_from_another_device_draws_of_its_seed(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(steps=1, seed=5)
    state = torch.get_rng_state()
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    run.restore(load(run.save()).tensors)
    assert seeded == [5]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_random_numbers_of_a_gpu_are_kept(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run, state = start_run(steps=1), torch.arange(16, dtype=torch.uint8)
    put_back: list[Tensor] = []
    gpu = getattr(torch, kind)
    monkeypatch.setattr(gpu, "get_rng_state", lambda *_: state)
    monkeypatch.setattr(gpu, "set_rng_state", lambda tensor, *_: put_back.append(tensor))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU")
    monkeypatch.setattr(Run, "device", SimpleNamespace(type=kind))
    run.restore(load(run.save()).tensors)
    (found,) = put_back
    assert torch.equal(found, state)


def test_what_a_resumed_run_changes_is_kept_if_it_stops_at_once(start_run: StartRun) -> None:
    run = start_run(steps=7)
    list(train(run, lambda: "stop" if run.progress.step == 3 else None))
    for change in ({"lr": 0.125}, {}):
        again = resume(run.folder, device=CPU, changes=change)
        assert again.config.lr == 0.125
        list(train(again, lambda: "stop"))


def test_a_run_records_what_it_was_given_anew_and_when(start_run: StartRun) -> None:
    def stop_after(step: int, run: Run) -> str | None:
        return "stop" if run.progress.step > step else None

    run = start_run(steps=7, lr=0.5)
    list(train(run, lambda: "stop" if run.progress.step == 3 else None))
    assert "changes" not in load(run.save()).meta
    kept: list[Change] = []
    for change, *new in (
        ({"lr": 0.125, "patience": 9}, ("--lr 0.5", "--lr 0.125"), ("", "--patience 9")),
        ({},),
        ({"lr": 0.125},),  # as it is
        ({"minutes": 1.5}, ("--steps 7", "--minutes 1.5")),
        ({"minutes": 1.5, "lr": 1 / 3}, ("--lr 0.125", "--lr 0.3333333333333333")),
    ):
        again = resume(run.folder, device=CPU, changes=change)
        kept += [Change(again.progress.step, was, now) for was, now in new]
        assert list(again.changes) == list(again.summary.changes) == kept
        list(train(again, partial(stop_after, again.progress.step, again)))
        assert list(changes_in(load(run.folder.path / "last.safetensors"))) == kept
    assert [change.step for change in kept] == [3, 3, 6, 7]


def test_what_was_changed_again_before_any_update_is_not_recorded(start_run: StartRun) -> None:
    run = start_run(steps=7, lr=0.5)
    list(train(run, lambda: "stop" if run.progress.step == 3 else None))
    kept = []
    for change in ({"lr": 0.125, "patience": 5}, {"lr": 0.25}, {"lr": 0.5}, {"steps": 9}):
        again = resume(run.folder, device=CPU, changes=change)
        list(train(again, lambda: "stop"))
        kept.append(changes_in(load(run.folder.path / "last.safetensors")))
    patience, budget = Change(3, "", "--patience 5"), Change(3, "--steps 7", "--steps 9")
    assert kept[1:] == [
        (patience, Change(3, "--lr 0.5", "--lr 0.25")), (patience,), (patience, budget)
    ]  # fmt: skip


def test_a_patience_that_ends_a_run_at_once_is_recorded(start_run: StartRun) -> None:
    run = start_run(steps=30, validate_every=5, lr=1e-30)  # nothing improves
    list(train(run, lambda: "stop" if run.progress.validations_since_best == 2 else None))
    again = resume(run.folder, device=CPU, changes={"patience": 1})
    assert again.is_finished
    list(train(again))
    (change,) = changes_in(load(run.folder.path / "last.safetensors"))
    assert (change.was, change.now) == ("", "--patience 1")


@pytest.mark.parametrize("changes", [None, [3], [{"step": -1, "was": "", "now": ""}]])
def test_odd_changes_are_refused_before_the_log_is_touched(
    start_run: StartRun, changes: object
) -> None:
    run = start_run(steps=20)
    list(train(run, lambda: "stop" if run.progress.step == 3 else None))
    path, log = run.folder.path / "last.safetensors", run.folder.path / "metrics.jsonl"
    checkpoint = load(path)
    list(train(run))
    rows = log.read_text()
    save(path, replace(checkpoint, meta=checkpoint.meta | {"changes": changes}))
    with pytest.raises(CheckpointError, match="'changes'"):
        resume(run.folder, device=CPU, changes={})
    assert log.read_text() == rows


def test_a_finished_run_is_not_changed_by_what_is_given_anew(start_run: StartRun) -> None:
    run = start_run(steps=3)
    list(train(run))
    assert resume(run.folder, device=CPU, changes={"lr": 0.125}).changes == ()


def test_that_a_run_went_on_without_bf16_is_recorded(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(steps=7, precision="bf16")
    list(train(run, lambda: "stop" if run.progress.step == 3 else None))
    monkeypatch.setattr(resuming, "multiplies_bf16", lambda _device: False)
    again = resume(run.folder, device=CPU, changes={})
    assert again.changes == (Change(3, "--precision bf16", "--precision fp32"),)


def test_where_its_text_lies_and_what_it_keeps_are_kept_too(
    start_run: StartRun, prose: Path, tmp_path: Path
) -> None:
    run = start_run(steps=7)
    list(train(run, lambda: "stop" if run.progress.step == 3 else None))
    moved = tmp_path / "moved"
    moved.write_bytes(prose.read_bytes())
    again = resume(run.folder, device=CPU, changes={}, texts=[str(moved)], keep=0)
    list(train(again, lambda: "stop"))
    run.folder.keep = 1  # as in a folder just opened
    third = resume(run.folder, device=CPU, changes={})
    assert third.is_saved
    assert (third.text.texts, third.folder.keep) == ((str(moved),), 0)


@pytest.fixture
def killed(
    start_run: StartRun, scripted_scores: list[float], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    """Return a run of given losses, killed after its third validation, at step 6.

    It saved its state at step 2, and then no more: that is done less often than the best weights.
    """

    def kill(losses: Sequence[float], **options: Any) -> Run:
        monkeypatch.setattr(training, "SAVE_SHARE", math.inf)
        scripted_scores[:] = losses
        run = start_run(validate_every=2, **options)
        for event in train(run):
            if isinstance(event, Sampled):  # what follows the first validation is saved
                monkeypatch.setattr(training, "SAVE_SHARE", 1e-9)
            if isinstance(event, Validated) and run.progress.step == 6:
                break
        return run

    return kill


def test_a_better_best_checkpoint_outlives_a_run_that_went_back(
    killed: Callable[..., Run], scripted_scores: list[float]
) -> None:
    """The resumed run takes another course."""
    run = killed([3.0, 2.0, 2.5], steps=12)
    scripted_scores += [2.6, 2.4, 1.5, 1.25, 1.75]
    again = resume(run.folder, device=CPU, changes={"lr": 0.001})
    assert again.progress.step == 2
    assert "best.safetensors has 2.0000 nats, of step 4: it stays" in again.notes[-1]
    found = [
        (
            event.best,
            load(run.folder.path / "best.safetensors").meta["progress"]["best_nats"],
            (again.progress.best_nats, again.progress.best_step),
            again.progress.validations_since_best,
        )
        for event in train(again)
        if isinstance(event, Validated)
    ]
    assert found == [
        (False, 2.0, (2.0, 4), 0),
        (False, 2.0, (2.0, 4), 1),
        (True, 1.5, (1.5, 8), 0),
        (True, 1.25, (1.25, 10), 0),
        (False, 1.25, (1.25, 10), 1),
    ]


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        # The same course again: nothing tells the end from that of a run that never stopped.
        ([2.5, 2.0, 2.25, 2.125], [(False, 0), (True, 0), (False, 1), (False, 2)]),
        # Nearly the same, as on a GPU; the patience is the same.
        ([2.5, 2.001, 2.25, 2.125], [(False, 0), (False, 0), (False, 1), (False, 2)]),
        # Another, which finds nothing better.
        ([2.75, 3.5, 2.25, 2.125], [(False, 0), (False, 0), (False, 1), (False, 2)]),
    ],
)
def test_a_run_that_went_back_counts_as_at_first_until_it_has_come_as_far(
    killed: Callable[..., Run],
    scripted_scores: list[float],
    losses: list[float],
    found: list[tuple[bool, int]],
) -> None:
    run = killed([3.0, 2.5, 2.0], steps=10, patience=2)
    scripted_scores[:] = losses
    again = resume(run.folder, device=CPU, changes={})
    assert found == [
        (event.best, again.progress.validations_since_best)
        for event in train(again)
        if isinstance(event, Validated)
    ]
    assert (again.progress.best_nats, again.progress.best_step) == (2.0, 6)


@pytest.mark.parametrize(("changes", "ends"), [({"steps": 2}, 2), ({"steps": 4}, 4), ({}, 3)])
def test_a_run_that_ends_before_its_best_checkpoint_reports_that(
    killed: Callable[..., Run], scripted_scores: list[float], changes: dict[str, int], ends: int
) -> None:
    """With a smaller budget, at once or after another validation; or stopped."""
    run = killed([3.0, 2.5, 2.0], steps=10)
    scripted_scores[:] = [2.5]
    again = resume(run.folder, device=CPU, changes=changes)
    list(train(again, lambda: "stop" if again.progress.step == ends else None))
    shown = again.summary.progress
    assert (again.progress.step, shown.best_nats, shown.best_step) == (ends, 2.0, 6)


@pytest.mark.parametrize("damage", [True, False])
@pytest.mark.parametrize(("stop", "best"), [(5, [True, False]), (8, [True])])
def test_a_best_checkpoint_that_is_lost_is_made_again(
    start_run: StartRun, scripted_scores: list[float], stop: int, best: list[bool], damage: bool
) -> None:
    """By the next validation, even if worse than the lost one, and even if no update is left."""
    scripted_scores += [1.0, 3.0, 3.0]
    run = start_run(steps=8, validate_every=2)
    list(train(run, lambda: "stop" if run.progress.step == stop else None))
    path = run.folder.path / "best.safetensors"
    if damage:
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    scripted_scores[:] = [2.0, 2.5]
    again = resume(run.folder, device=CPU, changes={})
    assert again.better is None
    flaw = "damaged" if damage else "missing"
    assert again.notes[-1].startswith(f"best.safetensors: {flaw}")
    assert again.notes[-1].endswith(": the best of the validations to come takes its place")
    assert [event.best for event in train(again) if isinstance(event, Validated)] == best
    assert load(path).meta["progress"]["best_nats"] == 2.0


@pytest.mark.parametrize(("step", "best"), [(1, None), (1, 0.5), (3, None), (3, 0.5)])
def test_a_new_budget_keeps_what_losses_are_measured_on(
    start_run: StartRun, step: int, best: float | None
) -> None:
    """Only if there is a loss to compare with, such as that of a best checkpoint saved later."""
    run = start_run(steps=9, validate_every=2)
    list(train(run, lambda: "stop" if run.progress.step == step else None))
    run.progress.validate_characters = 17
    run.save()
    if best is not None:
        run.progress.best_nats, run.progress.best_step = best, 4
        run.save_best()
    again = resume(run.folder, device=CPU, changes={"steps": 11})
    assert (again.better.nats if again.better else None) == best
    next(train(again))
    assert (again.progress.validate_characters == 17) == (step == 3 or best is not None)


@pytest.mark.parametrize("more", [0, 1])
def test_a_best_by_another_length_of_the_text_is_not_compared(
    start_run: StartRun, more: int
) -> None:
    run = start_run(steps=7, validate_every=2)
    list(train(run, lambda: "stop" if run.progress.step == 3 else None))
    assert resume(run.folder, device=CPU, changes={}).better is None, "the run knows this best"
    best = load(run.folder.path / "best.safetensors")
    progress = best.meta["progress"]
    progress |= {"best_nats": 0.5, "validate_characters": 601 + more}
    save(run.folder.path / "best.safetensors", best)
    assert (resume(run.folder, device=CPU, changes={}).better is None) == bool(more)


def test_more_names_than_a_checkpoint_holds(
    start_run: StartRun, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TextChoices(texts=(str(prose),), valid=(str(prose),))
    start_run(text, steps=1)
    monkeypatch.setattr("charrnn.storage.reading.MAX_HEADER", 2 * len(str(prose)))
    with pytest.raises(UsageError, match="2 names of texts are more than a checkpoint can hold"):
        start_run(text, steps=1)


def test_a_folder_that_another_run_has_taken_is_none_to_go_on_in(start_run: StartRun) -> None:
    """It now holds the other run, which the resume command would continue."""
    run = start_run(steps=25, validate_every=5)
    path, others = run.folder.path, list[RunFolder]()
    with pytest.raises(TakenFolderError) as caught:
        for event in train(run):
            if isinstance(event, Validated) and not others:
                run.saved = run.as_saved(path / "last.safetensors")
                shutil.rmtree(path)
                others.append(RunFolder.create(path))
    assert str(caught.value).endswith(
        "it was removed, or its lock was, while this run was going on"
    )
    others[0].close()


def test_more_names_than_a_checkpoint_holds_where_a_text_has_moved(
    start_run: StartRun, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused at once, not at the next save."""
    run = start_run(steps=1)
    list(train(run))
    monkeypatch.setattr("charrnn.storage.reading.MAX_HEADER", 2 * len(str(prose)))
    with pytest.raises(UsageError, match="2 names of texts are more than a checkpoint can hold"):
        resume(run.folder, device=CPU, changes={}, texts=[str(prose), str(prose)])


@pytest.mark.parametrize(("takes", "wait"), [(0.0, 60), (3.0, 150)])
def test_a_checkpoint_is_written_every_minute_or_at_2_percent(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch, takes: float, wait: float
) -> None:
    clock, save = FakeClock(0.0), Run.save
    monkeypatch.setattr(training, "Clock", lambda: nullcontext(clock))

    def slow(run: Run) -> Path:
        clock.time += takes
        return save(run)

    def an_update_later() -> None:
        clock.time += 5

    monkeypatch.setattr(Run, "save", slow)
    run = start_run(steps=120, validate_every=10**6)
    at = [run.progress.seconds for e in train(run, an_update_later) if isinstance(e, Saved)]
    gaps = [after - before for before, after in pairwise(at[:-1])]  # the last is the one at the end
    assert len(gaps) >= 2
    assert all(wait <= gap < 1.2 * wait for gap in gaps), gaps


def test_epochs_are_passes(start_run: StartRun) -> None:
    run = start_run(epochs=2)
    list(train(run))
    assert run.progress.step == 2 * run.lanes.steps_per_epoch
    of_a_pass = islice(run.lanes.batches(), run.lanes.steps_per_epoch)
    assert run.progress.characters == 2 * sum(batch.characters for batch in of_a_pass)
    assert log_of(run.folder.path)[-1]["epoch"] == 2


def test_a_plan_sets_rate_dropout_and_decay(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "Clock", lambda: nullcontext(FakeClock(0.03)))
    run = start_run(minutes=0.2, model={"hidden": 20})
    guessed, decay_guessed = run.model.config.dropout, run.config.weight_decay
    run.reconfigure(replace(run.config, loss_temperature=0.5))
    events = list(train(run))
    planned = only(events, Planned)[-1]
    assert run.progress.step == planned.total_steps == run.progress.planned_steps
    assert 0.8 * 12 < run.progress.seconds < 1.2 * 12
    rates = [row["learning_rate"] for row in log_of(run.folder.path) if "learning_rate" in row]
    assert max(rates) > 0.9 * run.config.lr
    assert rates[-1] < 0.1 * run.config.lr
    shape = run.model.config
    passes = planned.total_steps / run.lanes.steps_per_epoch
    pressure = recipe.pressure(passes, recipe.matrix_weights(shape), run.train.characters)
    assert (shape.dropout, shape.weight_drop) == recipe.dropout_and_weight_drop(
        shape.cell, pressure, run.train.characters
    )
    assert shape.dropout < guessed, "the plan has fewer passes than expected"
    assert {cell.weight_drop for cell in run.model.layers()} == {shape.weight_drop}
    decay = recipe.weight_decay(shape.cell, pressure, run.train.characters)
    assert decay == planned.weight_decay < decay_guessed
    assert run.config.weight_decay == run.update.optimiser.weight_decay == planned.weight_decay
    temperature = recipe.loss_temperature(shape.vocabulary, pressure)
    assert temperature == planned.loss_temperature < 1
    assert run.config.loss_temperature == planned.loss_temperature
    assert run.update.config == run.config
    wide = start_run(minutes=0.0001, model={"hidden": 60})
    assert wide.model.config.weight_drop == 0
    longer, shape = Planner(wide).adopt(50_000), wide.model.config
    assert (longer.dropout, longer.weight_drop) == (shape.dropout, shape.weight_drop)
    assert 0 < shape.weight_drop < shape.dropout, "the event tells both"
    assert {cell.weight_drop for cell in wide.model.layers()} == {shape.weight_drop}


@pytest.mark.parametrize(
    ("model", "options", "forgotten"),
    [
        ({}, {}, True),
        ({"dropout": 0.1}, {}, True),
        ({}, {"weight_decay": 0.1}, True),
        ({"dropout": 0.1}, {"weight_decay": 0.1}, True),
        ({"dropout": 0.1}, {"weight_decay": 0.1, "loss_temperature": 0.7}, False),
    ],
)
def test_what_is_by_plan_is_captured_anew(
    start_run: StartRun,
    monkeypatch: pytest.MonkeyPatch,
    model: dict[str, float],
    options: dict[str, float],
    forgotten: bool,
) -> None:
    """A graph captured earlier would go on with the old dropout, for example."""
    forgets: list[Capture] = []
    monkeypatch.setattr(Capture, "forget", lambda capture: forgets.append(capture))
    run = start_run(minutes=1, model=model, **options)
    assert forgets == []
    planned = Planner(run).adopt(500)
    assert bool(forgets) == forgotten
    for name, value in model.items():
        assert getattr(planned, name) == value
    for name, value in options.items():
        assert getattr(planned, name) == getattr(run.config, name) == value
    assert run.update.optimiser.weight_decay == run.config.weight_decay
    forgets.clear()
    run.reconfigure(run.config)
    assert forgets == [run.update.capture], "reconfiguring always forgets it"


def test_a_plan_that_is_made_again_leaves_what_was_chosen(start_run: StartRun) -> None:
    """Dropout slows updates down, so it might come and go from plan to plan."""
    run = start_run(minutes=1)
    first = Planner(run).adopt(5000)
    assert 0 < first.dropout < 0.5
    before = 5000
    for updates in (5100, 50_000, 500):
        again = Planner(run).adopt(updates)
        assert again.total_steps == updates
        assert replace(first, total_steps=updates, before=before) == replace(
            again, validate_every=first.validate_every
        )
        before = updates


def test_a_budget_of_another_kind_is_planned_anew(start_run: StartRun) -> None:
    """Its number of updates is known in advance, and differs from the old plan's."""
    run = start_run(minutes=1, model={"hidden": 20})
    few = Planner(run).adopt(500)
    # As after resuming with --steps instead.
    run.progress.planned_steps, run.progress.planned_at_step = 50_000, None
    many = Planner(run).adopt(50_000)
    assert many.dropout > few.dropout
    assert many.weight_decay > few.weight_decay


CHOSEN = ("dropout", "weight_drop", "weight_decay", "loss_temperature")


def chosen(run: Run) -> dict[str, float]:
    has = {**run.model.config.to_dict(), **run.config.to_dict()}
    return {name: has[name] for name in CHOSEN}


@pytest.mark.parametrize("budget", [{"steps": 61}, {"epochs": 33.3}, {"epochs": 7.3}])
@pytest.mark.parametrize("options", [{}, {"bptt": 1000}, {"loss_last": 3}, {"batch_size": 500}])
def test_a_run_of_steps_trains_with_what_was_chosen_before_the_first(
    start_run: StartRun, budget: dict[str, float], options: dict[str, int]
) -> None:
    """Passes are counted alike, even if a pass has few windows, or a short last one."""
    run = start_run(model={"hidden": 31}, **budget, **options)
    before, config, total = chosen(run), run.config, run.progress.planned_steps
    assert total is not None
    assert Planner(run).adopt(total).before is None
    assert (chosen(run), run.config) == (before, config)


@pytest.mark.parametrize(
    "given", [{}, {"model": {"dropout": 0.2, "weight_drop": 0.1}, "weight_decay": 0.3}]
)
def test_a_run_that_is_given_more_passes_has_what_the_rules_give_for_all(
    start_run: StartRun, given: dict[str, Any]
) -> None:
    few, many = start_run(epochs=0.1, **given), start_run(epochs=60, **given)
    assert chosen(few) != chosen(many)
    list(train(few))
    again = resume(few.folder, device=CPU, changes={"minutes": 9.0})
    assert again.progress.planned_at_step is None, "the rules apply at the next plan"
    assert again.progress.validate_every is None, "nor does it validate as often as before"
    again = resume(few.folder, device=CPU, changes={"epochs": 60})
    assert again.notes[-1] == (
        "the schedule is planned anew for --epochs 60, what was done before included (it was "
        "--epochs 0.1)"
    )
    planned = next(train(again))
    assert isinstance(planned, Planned)
    assert {name: getattr(planned, name) for name in CHOSEN} == chosen(again) == chosen(many)


def test_a_run_of_an_earlier_version_keeps_what_was_chosen_for_its_first_steps(
    start_run: StartRun,
) -> None:
    few = start_run(epochs=0.1)
    few.reconfigure(
        replace(few.config, dropout_by_plan=False, decay_by_plan=False, temperature_by_plan=False)
    )
    before = chosen(few)
    list(train(few))
    again = resume(few.folder, device=CPU, changes={"epochs": 60})
    next(train(again))
    assert chosen(again) == before


@pytest.fixture
def unwaited(start_run: StartRun, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """A function that starts a run whose 14th loss is NaN, and that does not wait for updates."""

    def make(**options: Any) -> Run:
        run, real = start_run(steps=35, **options), Update.__call__

        def poisoned(update: Update, batch: Batch) -> UpdateResult:
            result, is_14th = real(update, batch), run.progress.step == 13
            return replace(result, loss=result.loss * math.nan) if is_14th else result

        monkeypatch.setattr(Update, "__call__", poisoned)
        monkeypatch.setattr(Run, "device", SimpleNamespace(type="cuda"))
        return run

    return make


def test_the_update_that_is_not_finite_is_named_though_nobody_waited_for_it(
    unwaited: Callable[..., Run],
) -> None:
    """On a GPU ten updates are checked together."""
    run = unwaited(validate_every=30)
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 14 "):
        list(train(run))
    assert run.progress.step == 20


def test_nothing_is_scored_of_updates_that_nobody_has_looked_at(
    unwaited: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, scored = unwaited(validate_every=15), mock.Mock(wraps=score)
    monkeypatch.setattr(training, "score", scored)
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 14 "):
        list(train(run))
    assert run.progress.step == 15
    scored.assert_not_called()


def test_nothing_is_saved_of_updates_that_nobody_has_looked_at(
    unwaited: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, saved = unwaited(validate_every=30), mock.Mock(return_value=Path("last"))
    monkeypatch.setattr(Run, "save", saved)
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 14 "):
        list(train(run, lambda: "the test" if run.progress.step == 15 else None))
    saved.assert_not_called()


def test_losses_before_one_that_is_not_finite_are_short(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = start_run(steps=9), Update.__call__
    times = iter((1.0, 1e28, math.nan))

    def growing(update: Update, batch: Batch) -> UpdateResult:
        result = real(update, batch)
        return replace(result, loss=result.loss * next(times))

    monkeypatch.setattr(Update, "__call__", growing)
    with pytest.raises(NonFiniteError, match=r"losses before it [\d.]{1,5}, [\d.]{1,5}e\+28; "):
        list(train(run))


def test_a_sample_that_cannot_be_drawn_ends_no_training(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses are finite; only the sample's predictions are not."""
    run = start_run(steps=9, validate_every=3)

    def drawn(model: CharModel, *of: Any, compiled: bool) -> Iterator[Drawn]:
        if run.progress.step == 6:
            model = CharModel(model.config)
            for weight in model.state_dict().values():
                weight.copy_(weight.sign() * 3e38)
        return sample(model, *of, compiled=compiled)

    monkeypatch.setattr(training, "sample", drawn)
    *events, finished = train(run)
    assert finished == Finished("done", complete=True)
    assert len(only(events, Validated)) == 3
    assert len(only(events, Sampled)) == 2


def test_an_update_that_is_not_captured_is_told_once(start_run: StartRun) -> None:
    run = start_run(steps=35)
    run.update.capture.failure = "out of memory"
    assert only(list(train(run)), Uncaptured) == [Uncaptured("out of memory")]


def test_a_full_disk_is_told_with_what_is_saved(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for saved in (0, 1):
        run = start_run(steps=4, validate_every=2)
        with monkeypatch.context() as patch, pytest.raises(RunFolderError) as caught:
            for event in train(run):
                if saved == isinstance(event, Saved):
                    patch.setattr(os, "fsync", refusing(errno.ENOSPC))
        said = f"; step 2 is saved whole: go on from it with: {run.command()}"
        assert_one_line(caught, "free some space")
        assert str(caught.value).endswith(said if saved else "; free some space")


def test_what_nobody_foresees_has_a_note_of_what_is_saved(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a validation runs out of memory; an error whose message says it gets no note."""
    for error in (MemoryError(), NonFiniteError("not finite")):
        run = start_run(steps=4, validate_every=2)
        with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
            for event in train(run):
                if isinstance(event, Saved):
                    patch.setattr(training, "score", mock.Mock(side_effect=error))
        said = f"step 2 is saved whole: go on from it with: {run.command()}"
        notes = [said] if isinstance(error, MemoryError) else []
        assert getattr(caught.value, "__notes__", []) == notes
    monkeypatch.setattr(training, "score", mock.Mock(side_effect=MemoryError()))
    with pytest.raises(MemoryError) as caught:
        list(train(start_run(steps=4, validate_every=2)))
    assert not hasattr(caught.value, "__notes__"), "nothing was saved"


def test_an_earlier_checkpoint_that_was_gone_on_from_is_what_is_named(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one is damaged; the run resumes from the one before, and cannot save."""
    monkeypatch.setattr(training, "SAVE_SHARE", math.inf)  # saves after every validation
    run = start_run(steps=9, validate_every=2)
    list(train(run, lambda: "stop" if run.progress.step == 5 else None))
    run.folder.close()
    last, earlier = (run.folder.path / f"{name}.safetensors" for name in ("last", "step-00000004"))
    for gone in (False, True):
        last.write_bytes(b"damaged")
        with RunFolder.open_existing(run.folder.path) as folder, monkeypatch.context() as patch:
            again = resume(folder, device=CPU, changes={})
            assert again.way_back().startswith(
                f"the last good checkpoint is {earlier} of step 4: go on from it with: "
            )
            patch.setattr(os, "fsync", refusing(errno.ENOSPC))
            if gone:
                last.unlink()
            with pytest.raises(RunFolderError) as caught:
                list(train(again))
            assert "; step 4 is saved whole: go on from it with: " in str(caught.value)
    with RunFolder.open_existing(run.folder.path) as folder:
        again = resume(folder, device=CPU, changes={})
        list(train(again, lambda: "stop" if again.progress.step == 5 else None))
        assert f"checkpoint is {last} of step 5" in again.way_back()


def test_what_was_saved_and_is_gone_is_not_spoken_of(start_run: StartRun) -> None:
    run = start_run(steps=4, validate_every=2)
    with pytest.raises(RunFolderError) as caught:
        for event in train(run):
            if isinstance(event, Saved):
                shutil.rmtree(run.folder.path)
    assert_one_line(caught, "cannot save: No such file or directory")
    assert "is saved whole" not in str(caught.value)


def test_a_run_that_is_to_stop_when_all_is_done_is_done(start_run: StartRun) -> None:
    run = start_run(steps=4, validate_every=2)
    # The request comes after the last validation, while its sample is drawn.
    events = list(train(run, lambda: "stop" if run.progress.validated_step == 4 else None))
    whole = [training.SHOWN_LENGTH]
    assert [len(event.text) for event in only(events, Sampled)] == whole, "none is cut off"
    *_, saved, finished = events
    assert finished == Finished("done", complete=True)
    assert saved == Saved(run.folder.path / "last.safetensors", 4)


def test_the_sample_shown_is_that_of_the_seed(start_run: StartRun) -> None:
    run = start_run(steps=2, seed=7)
    *_, shown = only(list(train(run)), Sampled)
    config = SampleConfig(length=training.SHOWN_LENGTH, temperature=0.8, seed=7)
    steps = sample(run.model, run.vocabulary, None, config, compiled=False)
    assert shown.text == run.vocabulary.decode(collect(1, steps)[0])


def test_a_run_whose_patience_is_over_when_it_goes_on_is_done(start_run: StartRun) -> None:
    """It was stopped between two rows: the updates since get one row, without a speed."""
    run = start_run(steps=40, validate_every=6)

    def stop() -> str | None:
        if run.progress.step != 33:
            return None
        # As if an earlier validation had been better than any other can be.
        run.progress.best_nats, run.progress.validations_since_best = 0.0, 1
        return "stop"

    list(train(run, stop))
    assert run.progress.row_updates == 3
    for killed in (True, False):
        if killed:  # between the row and the checkpoint
            run.folder.log({"step": 33, "learning_rate": 0.0})
        again = resume(run.folder, device=CPU, changes={"patience": 1, "steps": 2000})
        assert list(train(again))[-1] == Finished("patience", complete=True)
        updates = [row for row in log_of(run.folder.path) if "learning_rate" in row]
        assert [row["step"] for row in updates] == [10, 20, 30, 33]
        assert ["chars_per_second" in row for row in updates] == [True, True, True, False]


@pytest.mark.parametrize("text", ["ab", "aaaa", "abcdefgh", "a\nb\n" * 9])
def test_tiny_texts_train(tmp_path: Path, start_run: StartRun, text: str) -> None:
    path = tmp_path / "tiny"
    path.write_text(text)
    run = start_run(TextChoices(texts=(str(path),), valid_share=0.0), steps=12, loss_last=9)
    *_, finished = train(run)
    assert finished == Finished("done", complete=True)
    assert run.config.loss_last == min(9, len(text) - 1)
    assert run.lanes.batch_size * run.lanes.bptt <= len(text) - 1
    assert any(
        note.startswith("only ") and "characters to train on: " in note for note in run.notes
    )


def test_the_unknown_symbol_is_learned_where_the_text_has_none(
    tmp_path: Path, start_run: StartRun
) -> None:
    once = "".join(map(chr, range(0x4E00, 0x4E00 + 40)))
    prose, path, strange = make_prose(6000), tmp_path / "text", tmp_path / "strange"
    text = "".join(one + prose[150 * i : 150 * (i + 1)] for i, one in enumerate(once))
    path.write_text(text, encoding="utf-8")
    run = start_run(TextChoices(texts=(str(path),), valid_share=0.0), steps=238)
    assert run.vocabulary.min_count == 1
    assert run.vocabulary.unknown_among(run.train.counts) == {}
    list(train(run))
    assert run.progress.step == 2 * run.lanes.steps_per_epoch  # each rare one is unknown once
    strange.write_text(make_prose(70, seed=2) + "\N{SNOWMAN}", encoding="utf-8")
    corpus = scan([str(strange)])
    *_, last = prices(run.model.eval(), corpus.part(0, 71), run.vocabulary)
    # Half of 40 in 6,040 characters: ln(302) = 5.7 nats. If never seen, it would now cost 7.7.
    assert last.nats_T[-1] - run.vocabulary.unknown_nats < 7.0


def test_both_rates_follow_the_schedule(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(steps=20)
    rates: list[tuple[float, float]] = []
    monkeypatch.setattr(run.update.optimiser, "set_rates", lambda *both: rates.append(both))
    list(train(run))
    factors = [Schedule(2, 20).factor(step) for step in range(20)]
    assert rates == [(run.config.lr * f, run.config.lr_adam * f) for f in factors]
    assert max(factors) > 10 * factors[-1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_missing_compiler_is_told_on_a_cpu(
    cell: CellName, precision: str, start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_made", {})
    monkeypatch.setattr(library, "find_compiler", list)
    monkeypatch.setattr(library, "why_no_compiler", lambda: "gcc is on leave")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(device, "has_capability", lambda name: True)
    run = start_run(cell=cell, steps=2, precision=precision)
    said = [note for note in run.notes if "compiler" in note]
    note = "training is faster with a C compiler that has OpenMP, such as gcc: gcc is on leave"
    assert said == [note]
    assert list(train(run))[-1] == Finished("done", complete=True)
    again = resume(run.folder, device=None, changes={"steps": 3})
    assert [said for said in again.notes if "compiler" in said] == [note]


def test_no_compiler_is_missed_where_there_is_one_or_none_is_used(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.runs.assembling.loops", lambda: mock.Mock(flaw=None))
    run = start_run(steps=1)
    list(train(run))
    again = resume(run.folder, device=None, changes={"steps": 2})
    assert not [said for said in run.notes + again.notes if "compiler" in said]
    monkeypatch.setattr("charrnn.runs.assembling.loops", lambda: None)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert not _slow_loops(run.model), "what gcc gains there is not known"
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert _slow_loops(run.model)
    assert not _slow_loops(run.model.to("meta"))  # not a CPU


@pytest.mark.slow
def test_three_hundred_steps_of_real_training_learn_words(tmp_path: Path) -> None:
    """With the defaults on Python's own sources, which differ by Python's version.

    The loss is far below the unigram baseline, and many words of the samples are the text's: of
    their characters in random order, hardly any.
    """

    def words(text: str) -> list[str]:
        return re.findall("[A-Za-z]{4,}", text)

    with RunFolder.create(tmp_path / "run") as folder:
        choices = recipe.Choices(budget={"steps": 300})
        run = start(choices, TextChoices(texts=()), folder=folder, device=CPU)
        list(train(run))
    assert run.progress.best_nats is not None
    assert run.progress.best_nats < 0.8 * run.baselines["unigram"]
    known = {*words(b"".join(run.train.encoded()).decode())}
    steps = sample(run.model, run.vocabulary, np.array([1]), SampleConfig(length=3000, count=8))
    text = "".join(run.vocabulary.decode(symbols) for symbols in collect(8, steps))
    shuffled = "".join(np.random.default_rng(1).permutation(list(text)))
    found, by_chance = (sum(word in known for word in words(drawn)) for drawn in (text, shuffled))
    assert found > 0.2 * len(words(text)), text
    assert found > 100 + 10 * by_chance, text


def test_a_validation_that_beats_no_best_on_disk_is_in_vain(start_run: StartRun) -> None:
    """It is the best of a sitting that went on from before the best."""
    run = start_run(steps=40, patience=1)
    run.better = Best(1.0, 10)
    run.progress.step, run.progress.best_nats, run.progress.best_step = 15, 3.0, 5
    assert not run.count_validation(2.0)
    assert (run.progress.best_nats, run.progress.best_step) == (1.0, 10)
    assert run.is_out_of_patience
