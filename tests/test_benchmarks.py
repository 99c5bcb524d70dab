"""The benchmarks run and write what they print; no test judges their figures."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from benchmarks import sampling, training_step
from benchmarks.common import Reference, ReferenceTraining, detached, in_turns
from benchmarks.sampling import first_byte, losses
from benchmarks.time_to_quality import exact_loss
from benchmarks.training_step import (
    Size,
    make_rows,
    our_update,
    update_in_words,
    window_multiply_adds,
)
from charrnn.config import CellName
from charrnn.errors import CheckpointError
from charrnn.inference.evaluation import score
from charrnn.inference.stepper import NumpyStepper
from charrnn.network.capture import UpdateResult
from charrnn.storage.trained import load_model
from charrnn.text.scanning import scan
from tests.conftest import ROOT, make_prose

BENCHMARKS = ("streaming", "training_step", "sampling", "time_to_quality")


def numbers(value: Any) -> Iterator[float]:
    """Yield all numbers in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("streaming", ["--big", "{folder}/prose.txt"]),
        ("training_step", []),
        ("sampling", []),
        ("time_to_quality", ["--text", "prose.txt", "--cell", "gru"]),
    ],
)
def test_runs(tmp_path: Path, name: str, options: list[str]) -> None:
    (tmp_path / "prose.txt").write_text(make_prose(20_000))
    command = [sys.executable, "-m", f"benchmarks.{name}", "--corpora", str(tmp_path), "--quick"]
    command += [option.format(folder=tmp_path) for option in options]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "out.json")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["machine"].split(",")[0] in done.stdout.replace("\n", " ")
    measured = list(numbers(written["results"]))
    assert measured
    assert all(math.isfinite(number) and number >= 0 for number in measured)


def test_what_prints_nothing_has_no_first_byte() -> None:
    first_byte("echo", "a")
    with pytest.raises(RuntimeError, match="printed nothing: true"):
        first_byte("true")


def test_what_fewer_bits_cost_is_told_by_scores_as_evaluate_gives_them(
    trained: Path, tmp_path: Path
) -> None:
    """A byte order mark is no character, and an unknown character costs its spelling."""
    text = tmp_path / "text.txt"
    text.write_text("\ufeff" + make_prose(300, seed=2) + "\u2603", encoding="utf-8")
    model, vocabulary, _ = load_model(trained, torch.device("cpu"))
    scores = score(model, scan([str(text)]).whole, vocabulary, lanes=1)
    assert scores.unknown == 1
    bits = losses(trained, text)
    assert bits["fp32"] == pytest.approx(scores.bits_per_char, rel=1e-5)
    assert list(bits.values()) == pytest.approx([scores.bits_per_char] * len(bits), rel=0.01)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_what_fewer_bits_cost_is_of_the_steps_that_read_them_fast(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_compiled: bool
) -> None:
    """The compiled steps from the first character on or, without a compiler, numpy's."""
    text = tmp_path / "text.txt"
    text.write_text(make_prose(100, seed=2))
    numpy, compiled = mock.Mock(wraps=NumpyStepper), mock.Mock(wraps=NumpyStepper)
    steps = object() if is_compiled else None
    monkeypatch.setattr(sampling, "steps", lambda: steps)
    monkeypatch.setattr(sampling, "NumpyStepper", numpy)
    monkeypatch.setattr(
        sampling, "CompiledStepper", lambda step, *given: step is steps and compiled(*given)
    )
    bits = losses(trained, text)
    used, unused = (compiled, numpy) if is_compiled else (numpy, compiled)
    assert [call.args[2] for call in used.call_args_list] == list(bits)
    assert not unused.called


def test_asks_before_it_measures_whether_a_model_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = str(tmp_path / "missing")
    monkeypatch.setattr(sampling, "waits", lambda rounds: pytest.fail("measured first"))
    monkeypatch.setattr(sys, "argv", ["sampling", "--checkpoint", missing, "--text", missing])
    with pytest.raises(CheckpointError, match="missing"):
        sampling.main()


def test_an_update_of_ours_learns(cell: CellName) -> None:
    size = Size("cpu", lanes=2, steps=5, layers=2, hidden=8, vocabulary=7)
    torch.manual_seed(1)
    windows = torch.randint(size.vocabulary, (1, 2, size.steps, size.lanes))
    update = our_update(cell, size, windows, torch.float32)
    results = [update() for _ in range(40)]
    losses = [float(result.loss) for result in results if isinstance(result, UpdateResult)]
    assert losses[-1] < 0.9 * losses[0]


def test_the_reference_learns_and_carries_its_state(cell: CellName) -> None:
    torch.manual_seed(1)
    model = Reference(cell, vocabulary=7, embedding=3, hidden=8)
    x_TB, y_TB = torch.randint(7, (2, 5, 2))
    training = ReferenceTraining(model, rate=0.02, narrow=False)
    for _ in range(2):
        _, state = model(x_TB, training.state)
        training.update(x_TB, y_TB)
        torch.testing.assert_close(training.state, detached(state), rtol=0, atol=0)

    @torch.no_grad()
    def loss() -> float:
        logits_TBV, _ = model(x_TB, training.state)
        return float(F.cross_entropy(logits_TBV.flatten(0, 1), y_TB.flatten()))

    before = loss()
    for _ in range(40):
        training.update(x_TB, y_TB)
    assert loss() < 0.9 * before


def test_the_reference_is_scored_whole_in_one_lane() -> None:
    """The state carries over between its windows, and no character is left out."""
    torch.manual_seed(1)
    model = Reference("rnn", vocabulary=7, embedding=3, hidden=8)
    ids = torch.randint(7, (4096 + 9,))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # so that the state matters
        logits_TBV, _ = model(ids[:-1, None])
    whole = float(F.cross_entropy(logits_TBV[:, 0], ids[1:]))
    assert exact_loss(model, ids) == pytest.approx(whole, rel=1e-6)


def test_products_are_counted_as_they_are_made() -> None:
    """On a CPU, the lowest layer's W is multiplied once per symbol, not once per character."""
    on_cpu = Size("cpu", lanes=2, steps=50, layers=2, hidden=3, vocabulary=7)
    w, others = 3 * 7, 3 * 3 + (3 * 3 + 3 * 3) + 7 * 3
    theirs = 100 * (w + others)
    for size, ours in ((on_cpu, 7 * w + 100 * others), (replace(on_cpu, device="cuda"), theirs)):
        counted = window_multiply_adds("rnn", size, torch.float32)
        assert counted == {("rnn", "charrnn"): ours, ("rnn", "torch.nn"): theirs}


def test_ratios_are_of_times_in_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy spell that slows both changes no ratio."""
    busy = [1, 1, 8, 8, 1]
    times = [[2 * spell for spell in busy], [*busy]]
    monkeypatch.setattr(training_step, "times_in_turns", lambda functions, rounds: times)
    keys: list[tuple[CellName, str]] = [("lstm", "charrnn"), ("lstm", "torch.nn")]
    ours, theirs = make_rows(
        "x", dict.fromkeys(keys, lambda: None), dict.fromkeys(keys, 5), characters=3, rounds=5
    )
    assert (ours.over_torch_nn, ours.over_torch_nn_quartiles) == (0.5, (0.5, 0.5))
    assert (theirs.over_torch_nn, theirs.over_lstm) == (1, 1)
    assert (ours.ms, theirs.ms) == (2000, 1000)
    times[1][-1] = 4  # ratios 0.5, 0.5, 0.5, 0.5, 2
    ours, _ = make_rows(
        "x", dict.fromkeys(keys, lambda: None), dict.fromkeys(keys, 5), characters=3, rounds=5
    )
    assert (ours.over_torch_nn, ours.over_torch_nn_quartiles) == (0.5, (0.5, 1.25))


class TestInTurns:
    def test_medians_are_each_functions_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 0

        def spend(seconds: int) -> None:
            nonlocal now
            now += seconds

        monkeypatch.setattr(time, "perf_counter", lambda: now)
        assert in_turns([partial(spend, seconds) for seconds in (1, 4, 2)], 5) == [1, 4, 2]

    def test_every_round_has_an_order_of_its_own(self) -> None:
        called: list[int] = []
        in_turns([partial(called.append, index) for index in range(4)], 30)
        rounds = [called[start : start + 4] for start in range(0, len(called), 4)]
        assert len(rounds) == 1 + 30
        assert all(sorted(order) == [0, 1, 2, 3] for order in rounds)
        # Each function comes after every function, itself included, at some time.
        assert len(set(pairwise(called))) == 4 * 4


@pytest.mark.parametrize("name", BENCHMARKS)
def test_asks_before_it_measures_whether_results_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    results = tmp_path / "missing" / "out.json"
    words = ["--corpora", str(tmp_path), "--quick", "--json", str(results)]
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit, match="2"):
        import_module(f"benchmarks.{name}").main()
    assert f"argument --json: {results}: cannot save: " in capsys.readouterr().err


def test_updates_on_a_gpu_are_named_with_what_torch_nn_computes_in() -> None:
    size = Size("cuda", lanes=3, steps=5, layers=2, hidden=7)
    assert update_in_words(size, "float32") == (
        "update of 2 x 7, 3 lanes x 5, CUDA, float32 (torch.nn's recurrences in TF32)"
    )
    assert update_in_words(size, "bfloat16").endswith(" (torch.nn's recurrences in fp16)")
