from __future__ import annotations

import html
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from charrnn import recipe
from charrnn.chance import differ, student
from charrnn.command_words import flag
from charrnn.commands.stopping import Stopped
from charrnn.compute.machine import machine
from charrnn.compute.processor import processor
from charrnn.config import CELL_NAMES, CellName, ModelConfig, PrecisionName
from charrnn.errors import CorpusError, RunFolderError, UsageError
from charrnn.inference.evaluation import Scores, score
from charrnn.network.cells import CELLS
from charrnn.network.model import CharModel
from charrnn.network.update import window_loss
from charrnn.runs import comparing
from charrnn.runs.comparability import unequal_minutes
from charrnn.runs.comparing import RunStarted
from charrnn.runs.comparison import CellResult, Comparison, RunFailure, RunResult
from charrnn.runs.comparison_folder import open_plan, read_result, read_results, refuse_comparison
from charrnn.runs.comparison_plan import Plan
from charrnn.runs.events import Finished
from charrnn.runs.matching import TOLERANCE, matched_hidden, shapes
from charrnn.storage.checkpoint import Checkpoint, load, read_description
from charrnn.storage.metrics import read_log
from charrnn.storage.reading import TextRecord
from charrnn.storage.runfolder import RunFolder
from charrnn.storage.trained import load_model
from charrnn.text.scanning import scan
from charrnn.wording import printable
from tests.conftest import (
    SHORT,
    Cli,
    documented_fields,
    make_prose,
    needs_raw_names,
    run_cli,
    slowly,
)
from tests.small import make_result

CPU = torch.device("cpu")
compare = partial(comparing.compare, device=CPU, command="charrnn compare it")
#: Fields that differ between two runs of the same plan.
TIMES = {
    "seconds",
    "validation_seconds",
    "chars_per_second",
    "train_chars_per_second",
    "checkpoint",
    "run",
}


def change_result(run: Path, **values: Any) -> None:
    """Change what a finished run's result says."""
    file = run / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def poison_losses(monkeypatch: pytest.MonkeyPatch, updates: Collection[int]) -> None:
    """Make the losses of these updates NaN; updates count from 1 over all runs."""
    losses = itertools.count(1)

    def poisoned(*window: Any, **named: Any) -> Any:
        loss, after = window_loss(*window, **named)
        return loss * (math.nan if next(losses) in updates else 1), after

    monkeypatch.setattr("charrnn.network.update.window_loss", poisoned)
    monkeypatch.setattr("charrnn.runs.training.SAVE_SHARE", 1e9)


def timeless(value: Any) -> Any:
    """Return results without the fields in ``TIMES``."""
    if isinstance(value, list):
        return [timeless(item) for item in value]
    if isinstance(value, dict):
        return {name: timeless(item) for name, item in value.items() if name not in TIMES}
    return value


class TestWidths:
    @pytest.mark.parametrize("vocabulary", [66, 257, 4001])
    @pytest.mark.parametrize("layers", [1, 2, 3])
    @pytest.mark.parametrize("hidden", [128, 301])
    def test_parameters_agree_within_one_percent(
        self, vocabulary: int, layers: int, hidden: int
    ) -> None:
        plan = Plan(texts=(), steps=1, layers=layers, hidden=hidden)
        found, _, notes = shapes(plan, vocabulary=vocabulary, characters=10**6, device="cpu")
        assert notes == []
        assert tuple(found) == CELL_NAMES
        assert found["lstm"].hidden == hidden
        wished = CharModel(found["lstm"]).parameter_count()
        for shape in found.values():
            assert CharModel(shape).parameter_count() == pytest.approx(wished, rel=0.01)
            assert (shape.layers, shape.vocabulary) == (layers, vocabulary)
            assert shape.embedding == found["lstm"].embedding
        assert found["rnn"].hidden > found["gru"].hidden > hidden

    @pytest.mark.parametrize("precision", ["bf16", "fp32"])
    def test_a_gpu_in_bf16_is_given_widths_that_its_tensor_cores_like(
        self, precision: PrecisionName
    ) -> None:
        """All but the LSTM's width, which the user may give."""
        plan = Plan(texts=(), steps=1, precision=precision, hidden=1001)
        found, _, notes = shapes(plan, vocabulary=66, characters=10**6, device="cuda")
        assert notes == []
        assert found["lstm"].hidden == 1001
        widths = [found["rnn"].hidden, found["gru"].hidden]
        assert all(hidden % 8 == 0 for hidden in widths) is (precision == "bf16")
        wished = recipe.parameter_count(found["lstm"])
        for shape in found.values():
            assert recipe.parameter_count(shape) == pytest.approx(wished, rel=TOLERANCE)

    @pytest.mark.parametrize("hidden", [30, 2**31 - 1])
    def test_such_widths_are_not_worth_other_parameters(self, hidden: int) -> None:
        """The search also ends where no width is large enough."""
        plan = Plan(texts=(), steps=1, precision="bf16", hidden=hidden, embedding=64)
        sizes: dict[str, Any] = {"vocabulary": 66, "characters": 10**6}
        assert shapes(plan, **sizes, device="cuda") == shapes(plan, **sizes, device="cpu")

    @pytest.mark.parametrize("wished", [1, 500, 12_345])
    def test_no_width_comes_closer(self, cell: CellName, wished: int) -> None:
        shape = ModelConfig(cell=cell, vocabulary=7, layers=2, hidden=1, embedding=5)

        def off(hidden: int) -> int:
            sized = ModelConfig(cell=cell, vocabulary=7, layers=2, hidden=hidden, embedding=5)
            return abs(CharModel(sized).parameter_count() - wished)

        assert off(matched_hidden(shape, wished)) == min(map(off, range(1, 90)))

    def test_what_cannot_be_matched_is_said(self) -> None:
        plan = Plan(texts=(), steps=1, hidden=4, embedding=3)
        found, _, notes = shapes(plan, vocabulary=7, characters=999, device="cpu")
        counts = {cell: CharModel(shape).parameter_count() for cell, shape in found.items()}
        assert counts["rnn"] / counts["lstm"] == pytest.approx(1 - 0.022, abs=5e-4)
        assert counts["gru"] / counts["lstm"] == pytest.approx(1 + 0.103, abs=5e-4)
        than = "parameters than the lstm; no width comes closer: give a larger --hidden"
        assert notes == [f"rnn: 2.2 % fewer {than}", f"gru: 10.3 % more {than}"]

    def test_a_width_that_nobody_gave_is_not_spoken_of(self) -> None:
        plan = Plan(texts=(), steps=1, cells=("rnn",))
        _, _, notes = shapes(plan, vocabulary=66, characters=10**6, device="cpu")
        assert notes == []

    def test_widths_can_be_equal_instead(self) -> None:
        plan = Plan(texts=(), steps=1, match="hidden", hidden=17, cells=("gru", "rnn"))
        found, training, notes = shapes(plan, vocabulary=66, characters=999, device="cpu")
        assert {cell: shape.hidden for cell, shape in found.items()} == {"gru": 17, "rnn": 17}
        assert notes == []
        assert set(training) == {"batch_size", "bptt", "precision"}

    @pytest.mark.parametrize(
        ("precision", "wider"), [(None, True), ("bf16", True), ("fp32", False)]
    )
    def test_precision_can_be_chosen(self, precision: PrecisionName | None, wider: bool) -> None:
        """With it, the default width is the same on every CPU; it is larger in bf16."""
        plan = Plan(texts=(), steps=1, precision=precision)
        sizes: dict[str, Any] = {"vocabulary": 66, "characters": 10**6, "device": "cpu"}
        with_bf16, without = (shapes(plan, **sizes, bf16=bf16)[0] for bf16 in (True, False))
        assert (with_bf16["lstm"].hidden == 384) is wider
        assert (without["lstm"].hidden == 384) is (precision == "bf16")
        assert plan.choices("rnn").training["precision"] == precision

    def test_what_is_dropped_is_each_cell_s_own_unless_it_is_given(self) -> None:
        plan = Plan(texts=(), epochs=500.0, hidden=128)
        sizes: dict[str, Any] = {"vocabulary": 66, "characters": 10**4, "device": "cpu"}
        by_rule, _, _ = shapes(plan, **sizes)
        assert by_rule["lstm"].weight_drop != by_rule["rnn"].weight_drop > 0
        given, _, _ = shapes(replace(plan, dropout=0.0, weight_drop=0.25), **sizes)
        assert {(one.dropout, one.weight_drop) for one in given.values()} == {(0.0, 0.25)}


def compared(losses: Mapping[CellName, Sequence[float]]) -> Comparison:
    """Return the comparison of cells whose runs, from seed 1 on, have these losses."""
    runs = [
        make_result(cell, seed, nats)
        for cell, of_cell in losses.items()
        for seed, nats in enumerate(of_cell, start=1)
    ]
    seeds = max(map(len, losses.values()))
    return Comparison.of(Plan(texts=(), steps=1, seeds=seeds, cells=tuple(losses)), runs)


def welch_tail(samples: Sequence[Sequence[float]]) -> float:
    """Return the chance of cells so far apart by Welch's analysis of variance (1951).

    F's tail is integrated: its density for 2 and f degrees of freedom is (1 + 2 x / f)^(-f/2 - 1).
    """
    k = len(samples)
    sizes = np.array([len(one) for one in samples])
    weights = sizes / np.array([np.var(one, ddof=1) for one in samples])
    means = np.array([np.mean(one) for one in samples])
    centre = np.average(means, weights=weights)
    shares = weights / weights.sum()
    unsure = np.sum((1 - shares) ** 2 / (sizes - 1))
    statistic = np.sum(weights * (means - centre) ** 2) / (k - 1)
    statistic /= 1 + 2 * (k - 2) / (k**2 - 1) * unsure
    freedom = (k**2 - 1) / (3 * unsure)
    # x from the statistic to infinity, as x = statistic / y with y from 1 to 0.
    y = (np.arange(200_000) + 0.5) / 200_000
    x = statistic / y
    return float(np.mean((1 + 2 * x / freedom) ** (-freedom / 2 - 1) * x / y))


class TestDifferences:
    def test_equal_the_computation_by_hand(self) -> None:
        found = compared({"rnn": (2.0, 2.2), "lstm": (1.5, 1.6), "gru": (1.48, 1.54)})
        spreads = [0.2 / math.sqrt(2), 0.1 / math.sqrt(2), 0.06 / math.sqrt(2)]
        assert [cell.spread for cell in found.cells] == pytest.approx(spreads)
        pairs = [(d.better, d.worse, round(d.nats, 6), d.supported) for d in found.differences]
        assert pairs == [
            ("gru", "lstm", 0.04, False),
            ("gru", "rnn", 0.59, True),
            ("lstm", "rnn", 0.55, True),
        ]
        # Squared errors of the means: 0.01, 0.0025 and 0.0009. Two values each hardly tell them
        # apart, so all get their mean; the table of Student's t has 3.182 for 3 degrees of freedom.
        margin = 3.182 * math.sqrt(2 * 0.0134 / 3)
        assert [d.margin for d in found.differences] == pytest.approx([margin] * 3, rel=1e-3)
        rows = found.to_list()
        assert {row["part"] for row in rows} == {"test"}
        on_valid = Comparison(replace(found.plan, test_share=0.0), found.cells)
        assert {row["part"] for row in on_valid.to_list()} == {"valid"}
        assert rows[0]["nats_per_char"] == pytest.approx(2.1)
        assert rows[0]["perplexity"] == pytest.approx(math.exp(2.1))

    def test_what_is_supported_is_a_row_s_own(self) -> None:
        found = compared({"rnn": (2.0, 2.2, 2.1), "lstm": (1.5, 1.6, 1.5), "gru": (1.5, 1.6, 1.5)})
        rows = {row["cell"]: row for row in found.to_list()}
        assert {cell: row["ahead_of"] for cell, row in rows.items()} == {
            "rnn": [], "lstm": ["rnn"], "gru": ["rnn"],
        }  # fmt: skip
        assert [one["worse"] for one in rows["lstm"]["differences"]] == ["gru", "rnn"]
        assert [one["worse"] for one in rows["gru"]["differences"]] == ["rnn"]
        assert rows["rnn"]["differences"] == []

    @pytest.mark.parametrize(("apart", "supported"), [(2.0, []), (3.2, []), (3.4, ["lstm"])])
    def test_three_cells_must_differ_at_all(self, apart: float, supported: list[str]) -> None:
        """Otherwise each of the three pairs would stand out by chance in 5 % of cases."""
        nats: dict[CellName, Sequence[float]]
        nats = {"gru": (0, 1, 2), "rnn": (1, 2, 3), "lstm": (apart, apart + 1, apart + 2)}
        found = compared(nats)
        assert differ([*nats.values()]) is (welch_tail([*nats.values()]) < 0.05)
        (row,) = (row for row in found.to_list() if row["cell"] == "gru")
        assert row["ahead_of"] == supported
        two = replace(found, cells=tuple(c for c in found.cells if c.cell != "rnn"))
        # Each variance is 1; 4 degrees of freedom. The table of Student's t has 2.776.
        (pair,) = two.differences
        assert pair.margin == pytest.approx(2.776 * math.sqrt(2 / 3), rel=1e-3)
        assert pair.supported is (apart > 2.776 * math.sqrt(2 / 3))

    def test_welch_s_analysis_against_its_twin(self) -> None:
        draw = np.random.default_rng(3)
        answers = []
        for _ in range(60):
            nats: dict[CellName, Sequence[float]] = {}
            for cell, n in zip(CELL_NAMES, (3, 5, 2), strict=True):
                mean, spread = 2 + len(nats) * draw.uniform(0, 0.03), draw.uniform(0.002, 0.02)
                nats[cell] = list(draw.normal(mean, spread, n))
            answers.append(differ([*nats.values()]))
            assert answers[-1] is (welch_tail([*nats.values()]) < 0.05)
        assert 10 < sum(answers) < 50

    def test_with_two_seeds_cells_must_differ_at_all_too(self) -> None:
        """Each variance is 2, so F is a third of the gap's square; its table has 9.552."""
        for apart, supported in ((5.3, False), (5.4, True)):
            assert differ([(0, 2), (0, 2), (apart, apart + 2)]) is supported
            assert supported is (apart**2 / 3 > 9.552)

    def test_two_seeds_tell_cells_that_spread_alike_apart(self) -> None:
        """In 5 % of comparisons by chance, as with more; by Welch's tests in 3 %."""
        draw = np.random.default_rng(1)
        found, seen, times = 0, 0, 1500
        for _ in range(times):
            a, b, c = draw.normal(0, 1, (3, 2)).tolist()
            found += any(
                pair.supported for pair in compared({"rnn": a, "lstm": b, "gru": c}).differences
            )
            c = [nats + 6 for nats in c]
            pairs = compared({"rnn": a, "lstm": b, "gru": c}).differences
            seen += all(pair.supported for pair in pairs if pair.worse == "gru")
        assert 0.04 < found / times < 0.065
        assert seen / times > 0.8

    @pytest.mark.parametrize("spreads", [(1, 1, 1), (1, 1, 3.5), (4, 13, 5)])
    @pytest.mark.parametrize("apart", [0, *slowly(1000)])
    def test_chance_supports_a_difference_in_one_comparison_of_twenty(
        self, spreads: tuple[float, ...], apart: float
    ) -> None:
        """However the cells spread; also where one of them is far from two equal ones."""
        draw = np.random.default_rng(1)
        found, times = 0, 1500
        for _ in range(times):
            nats: dict[CellName, Sequence[float]] = {
                cell: list(draw.normal(apart * (cell == "rnn"), spread, 3))
                for cell, spread in zip(CELL_NAMES, spreads, strict=True)
            }
            found += differ([*nats.values()]) and any(
                pair.supported and (not apart or "rnn" not in (pair.better, pair.worse))
                for pair in compared(nats).differences
            )
        assert 0.02 < found / times < 0.065

    def test_a_cell_with_one_run_left_says_nothing_of_the_others(self) -> None:
        found = compared({"rnn": (1.5,), "lstm": (1.0, 1.01, 1.0), "gru": (2.0, 2.01, 2.02)})
        assert [(d.worse, d.supported) for d in found.differences if d.better == "lstm"] == [
            ("rnn", False),
            ("gru", True),
        ]
        assert [d.margin is None for d in found.differences] == [True, False, True]

    def test_cells_without_spread_differ_if_their_means_do(self) -> None:
        """Welch's weights are divided by it."""
        found = compared({"rnn": (2.0, 2.0), "lstm": (1.0, 1.0), "gru": (1.0, 1.0)})
        assert [d.supported for d in found.differences] == [False, True, True]

    def test_what_differs_from_run_to_run_is_a_mean(self) -> None:
        names = (
            "nats_per_char", "valid_nats_per_char", "bits_per_byte", "seconds", "chars_per_second",
            "train_chars_per_second", "steps", "clipped_steps",
        )  # fmt: skip
        one, other = ({name: n + k for n, name in enumerate(names, 1)} for k in (0, 5))
        row = CellResult((make_result("gru", 1, **one), make_result("gru", 2, **other))).to_dict()
        assert {name: row[name] for name in names} == {
            name: n + 2.5 for n, name in enumerate(names, 1)
        }

    def test_one_seed_supports_nothing(self) -> None:
        found = compared({cell: (n,) for n, cell in enumerate(CELL_NAMES, 1)})
        assert [pair.margin for pair in found.differences] == [None] * 3
        assert [cell.spread for cell in found.cells] == [None] * 3
        assert not any(pair.supported for pair in found.differences)

    def test_failed_runs_leave_less_to_rest_on(self) -> None:
        results = [make_result("gru", seed, nats) for seed, nats in ((1, 2.0), (2, 2.2), (3, 2.1))]
        results += [make_result("lstm", seed, nats) for seed, nats in ((1, 1.5), (3, 1.6))]
        failures = [RunFailure("lstm", 2, "")] + [RunFailure("rnn", n, "") for n in (1, 2, 3)]
        found = Comparison.of(Plan(texts=(), steps=1, seeds=3), results, failures)
        assert [cell.cell for cell in found.cells] == ["lstm", "gru"]
        assert [row["failed_seeds"] for row in found.to_list()] == [[2], []]
        # Squared errors 0.0025 and 0.00333, with 1 and 2 degrees of freedom: 2.881 in all.
        (pair,) = found.differences
        assert pair.margin == pytest.approx(student(2.8824) * math.sqrt(0.0058333), rel=1e-3)

    @pytest.mark.parametrize("freedom", [1, 1.5, 2, 2.9, 3, 4.4, 10, 35.5, 1e4])
    def test_five_percent_of_student_s_t_are_outside(self, freedom: float) -> None:
        """Summed over t itself: its density is proportional to (1 + t^2 / f)^(-(f + 1) / 2)."""
        # t = tan(x), to reach infinity.
        edges = np.linspace(0, math.pi / 2, 2_000_001)
        middle = np.tan((edges[1:] + edges[:-1]) / 2)
        density = (1 + middle**2 / freedom) ** (-(freedom + 1) / 2) * (1 + middle**2)
        inside = density[middle < student(freedom)].sum() / density.sum()
        assert inside == pytest.approx(0.95, abs=2e-5)

    @pytest.mark.parametrize(
        ("freedom", "t"),
        [*zip(range(1, 6), (12.706, 4.303, 3.182, 2.776, 2.571), strict=True), (20, 2.086)],
    )
    def test_student_s_t_is_that_of_tables(self, freedom: int, t: float) -> None:
        assert student(freedom) == pytest.approx(t, abs=0.0005)

    def test_the_best_run_is_chosen_without_the_test_part(self) -> None:
        runs = (
            make_result("gru", 1, 1.0, valid_nats_per_char=2.0),
            make_result("gru", 2, 1.1, valid_nats_per_char=1.9),
        )
        assert CellResult(runs).best.seed == 2
        row = CellResult(runs).to_dict()
        assert row["valid_nats_per_char"] == pytest.approx(1.95)
        assert row["valid_bits_per_char"] == pytest.approx(1.95 / math.log(2))
        assert row["valid_perplexity"] == pytest.approx(math.exp(1.95))
        unvalidated = CellResult((make_result("gru", 3, valid_nats_per_char=None),))
        assert unvalidated.best.seed == 3
        none = unvalidated.to_dict()
        assert [
            none[f"valid_{name}"] for name in ("nats_per_char", "bits_per_char", "perplexity")
        ] == [None] * 3


class TestPlan:
    @pytest.mark.parametrize(
        ("values", "says"),
        [
            ({"cells": ()}, "--cell"),
            ({"cells": ("gru", "gru")}, "twice"),
            ({"seeds": 0}, "--seeds"),
            ({"texts": ("-",)}, "not -"),
            ({"valid": ("-",)}, "--valid"),
            ({"valid_share": 0.0, "test_share": 0.0}, "nothing is left"),
            ({"hidden": 0}, "--hidden"),
            ({"epochs": 1.0}, "one budget"),
            ({"bptt": 0}, "--bptt"),
            ({"lr": 0.0}, "--lr"),
            ({"weight_decay": -0.1}, "--weight-decay"),
            ({"clip_norm": -1.0}, "--clip-norm"),
            ({"seed": -1, "seeds": 2}, "--seed"),
            ({"seed": (1 << 63) - 1, "seeds": 2}, "--seed"),
        ],
    )
    def test_refuses_what_no_run_could_do(self, values: dict[str, Any], says: str) -> None:
        with pytest.raises(UsageError, match=says):
            Plan(**{"texts": (), "steps": 1, **values})

    def test_survives_its_file(self) -> None:
        plan = Plan(texts=("a", "b"), cells=("gru",), epochs=0.5, seeds=3, hidden=7)
        assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.fixture(scope="module")
def uninterrupted(prose: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished comparison. Read only."""
    folder = tmp_path_factory.mktemp("comparisons") / "whole"
    done = run_cli("compare", prose, "--run", folder, "--seeds", 2, "--quiet", *SHORT)
    assert done.code == 0
    return folder


def refuse_to_save(path: Path, _values: object) -> None:
    raise RunFolderError(f"{path}: cannot save")


class TestCompare:
    def test_every_run_reads_the_same(self, uninterrupted: Path) -> None:
        models = {
            path.name: load_model(path, CPU) for path in uninterrupted.iterdir() if path.is_dir()
        }
        assert set(models) == {f"{cell}-seed{seed}" for cell in CELL_NAMES for seed in (1, 2)}
        same = ("batch_size", "bptt", "steps", "loss_last", "weight_decay", "clip_norm")
        metas = [checkpoint.meta for *_, checkpoint in models.values()]
        assert len({str(meta["text"]) for meta in metas}) == 1
        assert len({str([meta["training"][name] for name in same]) for meta in metas}) == 1
        assert len({vocabulary for _, vocabulary, _ in models.values()}) == 1
        for name, (model, _, checkpoint) in models.items():
            assert name == f"{model.config.cell}-seed{checkpoint.meta['training']['seed']}"
            assert type(model.layers()[0]) is CELLS[model.config.cell]

    def test_scores_are_those_of_evaluate(self, cli: Cli, uninterrupted: Path) -> None:
        path = uninterrupted / "gru-seed2"
        saved = json.loads((path / "result.json").read_text())
        for part, name in (("valid", "valid_nats_per_char"), ("test", "nats_per_char")):
            row = json.loads(cli("evaluate", path, "--part", part, "--json").out)[0]
            assert row["nats_per_char"] == saved[name]
            assert row["parameters"] == saved["parameters"]
        for name in ("characters", "unknown", "bits_per_byte"):
            assert row[name] == saved[name], "on the test part"

    def test_guessing_is_priced_on_what_is_compared(self, cli: Cli, tmp_path: Path) -> None:
        """Here the test part has only characters that the rest of the text lacks."""
        text, folder = tmp_path / "text", tmp_path / "compared"
        text.write_text(make_prose(1800) + "\u20ac" * 200, encoding="utf-8")
        done = cli("compare", text, "--run", folder, "--cell", "gru", "--json", *SHORT)
        (run,) = json.loads(done.out)[0]["runs"]
        scored = cli("evaluate", run["run"], "--part", "test", "--baselines", "--json")
        uniform = json.loads(scored.out)[0]["baselines"][0]
        assert (uniform["name"], uniform["nats_per_char"]) == ("uniform", run["uniform_nats"])

    @pytest.mark.parametrize(("text", "run"), [("*.txt", "."), (".", "."), (".", "books")])
    def test_a_folder_that_holds_the_text_is_refused(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, run: str
    ) -> None:
        """From the second run on, the text would be skipped as something that a run has written."""
        monkeypatch.chdir(tmp_path)
        Path("books").mkdir()
        for name in ("a.txt", "books/b.txt"):
            Path(name).write_text(make_prose(300))
        done = cli("compare", text, "--run", run, *SHORT, "--quiet")
        assert (done.code, done.out) == (1, "")
        held = tmp_path / ("a.txt" if run == "." else "books/b.txt")
        assert done.err == (
            f"charrnn: {run}: {held} is in it, and a comparison's folder is not read as text: "
            "choose another folder with --run\n"
        )
        assert sorted(map(str, Path().rglob("*"))) == ["a.txt", "books", "books/b.txt"]

    @pytest.mark.parametrize("text", ["books", "books/*.txt", "a.txt"])
    def test_a_folder_above_the_text_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("books").mkdir()
        for name in ("a.txt", "books/b.txt"):
            Path(name).write_text(make_prose(300))
        plan = Plan(texts=(text,), cells=("gru",), seeds=2, steps=1, hidden=5, precision="fp32")
        events = compare(Path(), plan)
        assert sum(isinstance(event, RunResult) for event in events) == 2

    def test_its_folder_is_named_by_the_words_that_were_typed(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folders: list[Path] = []

        def watch(folder: Path, *_: object, **__: object) -> None:
            folders.append(folder)
            raise UsageError("it is seen")

        monkeypatch.setattr("charrnn.commands.watching.watch_comparison", watch)
        (tmp_path / "v[1]").mkdir()
        monkeypatch.chdir(tmp_path / "v[1]")
        cli("compare", "poems-*.txt", *SHORT)
        assert folders == [Path("checkpoints/poems-compare")]

    def test_what_has_no_byte_of_its_own_has_no_bits_a_byte(self, cli: Cli, tmp_path: Path) -> None:
        """Big5-HKSCS encodes some pairs of characters as one; evaluate says null, too."""
        text, folder = tmp_path / "text", tmp_path / "compared"
        text.write_bytes(b"ab" * 19 + b"\x88\x62")
        shares = ("--valid-share", 0.2, "--test-share", 0.05, "--encoding", "big5hkscs")
        words = ("--cell", "gru", "--run", folder, *shares, *SHORT, "--json")
        done = cli("compare", text, *words)
        again = cli("compare", "--run", folder, "--resume", "--json")
        assert (done.code, again.code, again.out) == (0, 0, done.out)
        (row,) = json.loads(done.out)
        assert (row["characters"], row["bits_per_byte"]) == (1, None)
        assert row["runs"][0]["bits_per_byte"] is None
        scored = cli("evaluate", folder / "gru-seed1", "--part", "test", "--json")
        assert json.loads(scored.out)[0]["bits_per_byte"] is None

    def test_who_comes_second_learns_what_compares_there(self, prose: Path, tmp_path: Path) -> None:
        plan = Plan(texts=(str(prose),), cells=("rnn",), steps=1, hidden=5, precision="fp32")
        resumed = []
        for goes_on in (False, True):
            begun = open_plan(tmp_path) if goes_on else None
            for event in compare(tmp_path, plan, begun=begun, should_stop=lambda: "SIGINT"):
                if isinstance(event, RunStarted):
                    resumed.append(event.run.resumed)
                    with pytest.raises(RunFolderError, match=r" in use .* \(charrnn compare it\)"):
                        RunFolder.create(event.run.folder.path)
        assert resumed == [False, True]

    def test_every_cell_reads_the_same_lanes_and_windows(self, prose: Path, tmp_path: Path) -> None:
        """They are the LSTM's, whose parameters the widths match, though it is not compared."""
        plan = Plan(texts=(str(prose),), cells=("rnn", "gru"), steps=1, hidden=5, precision="fp32")
        _, sizes, _ = shapes(plan, vocabulary=50, characters=5000, device="cpu")
        begun = [event.run for event in compare(tmp_path, plan) if isinstance(event, RunStarted)]
        assert [run.model.config.cell for run in begun] == ["rnn", "gru"]
        for run in begun:
            assert {name: getattr(run.config, name) for name in sizes} == sizes

    def test_sizes_follow_from_text_and_machine(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: dict[str, Any] = {}

        def refuse(plan: Plan, **of: Any) -> None:
            given.update(of)
            raise UsageError("they are seen")

        monkeypatch.setattr("charrnn.runs.comparing.shapes", refuse)
        monkeypatch.setattr("charrnn.runs.comparing.recurs_in_bf16", lambda _device: True)
        (tmp_path / "text").write_text("abcab" * 20)
        plan = Plan(texts=(str(tmp_path / "text"),), steps=1, min_count=20)
        with pytest.raises(UsageError, match="they are seen"):
            list(compare(tmp_path / "all", plan))
        # There are 80 characters to train on. c occurs 16 times in them, so it is unknown.
        assert given == {"vocabulary": 3, "characters": 80, "device": "cpu", "bf16": True}

    def test_a_result_is_that_of_its_run(self, prose: Path, tmp_path: Path) -> None:
        plan = Plan(
            texts=(str(prose),), cells=("gru",), steps=33, hidden=5, batch_size=3, bptt=11,
            clip_norm=0.5,
        )  # fmt: skip
        events = list(compare(tmp_path, plan))
        run = tmp_path / "gru-seed1"
        found = json.loads((run / "result.json").read_text(encoding="utf-8"))
        meta = load(run / "last.safetensors").meta
        progress = meta["progress"]
        assert 0 < progress["clipped_steps"] < 33
        for name, field in (
            ("steps", "step"), ("clipped_steps", "clipped_steps"),
            ("trained_characters", "characters"),
        ):  # fmt: skip
            assert found[name] == progress[field], name
        (ended,) = (event.run for event in events if isinstance(event, RunStarted))
        assert 0 < found["validation_seconds"] < found["seconds"]
        assert found["validation_seconds"] == ended.progress.validation_seconds
        assert found["seconds"] == ended.progress.seconds
        assert found["uniform_nats"] == ended.baselines["uniform"]
        model = CharModel(ModelConfig.from_dict(meta["model"]))
        counted = (found["parameters"], found["multiply_adds"])
        assert counted == (model.parameter_count(), model.multiply_adds())
        speeds = [row["chars_per_second"] for row in read_log(run) if "chars_per_second" in row]
        assert len(speeds) == 4
        assert found["train_chars_per_second"] == statistics.median(speeds)

    def test_without_a_test_part_the_validation_part_is_scored_once(
        self, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted = []

        def timed(*of: Any, **how: Any) -> Scores:
            counted.append(replace(score(*of, **how), seconds=0.5))
            return counted[-1]

        monkeypatch.setattr("charrnn.runs.comparing.score", timed)
        plan = Plan(
            texts=(str(prose),), cells=("gru",), steps=2, seed=3, layers=2, hidden=5, batch_size=3,
            bptt=11, test_share=0.0, match="hidden",
        )  # fmt: skip
        events = compare(tmp_path, plan)
        (result,) = (event for event in events if isinstance(event, RunResult))
        (scores,) = counted
        assert result.nats_per_char == result.valid_nats_per_char == scores.nats_per_char
        assert (result.characters, result.chars_per_second) == (600, 1200.0)
        assert (result.seed, result.layers, result.hidden) == (3, 2, 5)

    def test_a_run_that_is_stopped_while_it_is_scored_is_scored_later(
        self, prose: Path, tmp_path: Path
    ) -> None:
        plan = Plan(texts=(str(prose),), cells=("rnn",), steps=2, hidden=5, batch_size=3, bptt=11)
        signals: list[str] = []

        def signalled() -> str | None:
            return signals[0] if signals else None

        for event in compare(tmp_path, plan, should_stop=signalled):
            if isinstance(event, Finished):
                assert event.complete
                signals.append("SIGTERM")
        assert signals
        assert read_result(tmp_path / "rnn-seed1") is None
        *_, last = compare(tmp_path, plan, begun=open_plan(tmp_path))
        assert isinstance(last, RunResult)
        assert last.steps == 2

    def test_finished_runs_are_not_done_again(self, cli: Cli, uninterrupted: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
        done = cli("compare", "--run", uninterrupted, "--resume", "--json")
        assert (done.code, done.err) == (0, "")
        rows = json.loads(done.out)
        assert [row["cell"] for row in rows] == list(CELL_NAMES)
        assert [len(row["runs"]) for row in rows] == [2, 2, 2]
        assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before

    def test_paths_are_those_of_the_folder_it_is_in_now(
        self, cli: Cli, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(uninterrupted, tmp_path / "moved")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        rows = json.loads(cli("compare", "--run", "../moved", "--resume", "--json").out)
        for row in rows:
            paths = [row["checkpoint"], *(run["run"] for run in row["runs"])]
            assert {Path(path).parent for path in paths} == {Path("../moved")}
            assert all(Path(path).is_dir() for path in paths)

    def test_a_finished_one_needs_neither_its_text_nor_its_machine(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text, folder = tmp_path / "text", tmp_path / "comparison"
        text.write_bytes(prose.read_bytes())
        words = ("--steps", 2, "--batch-size", 3, "--bptt", 11, "--cell", "rnn", "--cell", "gru")
        monkeypatch.setattr("charrnn.runs.comparing.recurs_in_bf16", lambda device: False)
        first = cli("compare", text, "--run", folder, *words, "--json")
        text.unlink()
        monkeypatch.setattr("charrnn.runs.comparing.recurs_in_bf16", lambda device: True)
        again = cli("compare", "--run", folder, "--resume", "--json")
        assert (again.code, again.err) == (0, "")
        assert timeless(json.loads(again.out)) == timeless(json.loads(first.out))

    def test_a_share_that_holds_nothing_out_is_refused(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        for name in ("valid", "test"):
            words = ("--run", tmp_path / "run", f"--{name}-share", 0.0001, *SHORT)
            result = cli("compare", prose, *words)
            assert (result.code, result.err.count("\n")) == (1, 1)
            assert f"--{name}-share 0.0001 of a text of length 6,007 leaves" in result.err
            assert not (tmp_path / "run").exists()

    def test_json_says_how_it_goes_unless_it_is_quiet(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        for number, (more, says) in enumerate([((), True), (("--quiet",), False)]):
            words = ("--cell", "rnn", "--run", tmp_path / str(number), "--json", *SHORT, *more)
            done = cli("compare", prose, *words)
            assert len(json.loads(done.out)) == 1
            assert ("--- run 1 of 1\ntext " in done.err) == says

    def test_json_has_the_promised_names(self, cli: Cli, uninterrupted: Path) -> None:
        rows = json.loads(cli("compare", "--run", uninterrupted, "--resume", "--json").out)
        promised = (
            "checkpoint", "cell", "layers", "hidden", "parameters", "characters", "unknown",
            "nats_per_char", "bits_per_char", "bits_per_byte", "perplexity", "chars_per_second",
            "seconds",
        )  # fmt: skip
        for row in rows:
            assert tuple(row)[: len(promised)] == promised
            assert row.keys() == {*promised} | documented_fields("`compare`: a list")
            assert Path(row["checkpoint"]).parent == uninterrupted
            assert row["bits_per_char"] == pytest.approx(row["nats_per_char"] / math.log(2))
        said = cli("compare", "--run", uninterrupted, "--resume").out
        pairs = [pair for row in rows for pair in row["differences"]]
        assert len(pairs) == 3
        for pair in pairs:
            apart = f"{pair['nats']:.4f} ± {pair['margin']:.4f}"
            assert f"{pair['better']} is {apart} nats ahead of {pair['worse']}: " in said
        for row in rows:
            assert row["texts"] == list(open_plan(uninterrupted).texts)
            assert row["valid_texts"] == []

    def test_json_says_what_was_compared_where_and_by_what(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        words = ("--cell", "gru", "--run", tmp_path / "all", *SHORT, "--precision", "fp32")
        (row,) = json.loads(cli("compare", prose, *words, "--json").out)
        assert row["plan"] == json.loads((tmp_path / "all" / "comparison.json").read_text())
        assert [row["plan"][name] for name in ("steps", "device", "precision")] == [
            20, "cpu", "fp32"
        ]  # fmt: skip
        scored = json.loads(
            cli("evaluate", tmp_path / "all" / "gru-seed1", "--part", "test", "--json").out
        )
        (run,) = row["runs"]
        assert row["fingerprint"] == scored[0]["fingerprint"]
        assert run["versions"] == scored[0]["versions"]
        assert run["trained_by"] == f"{processor()} with 1 thread"
        status = json.loads(cli("inspect", tmp_path / "all" / "gru-seed1", "--json").out)
        assert (run["model"], run["training"]) == (status["model"], status["training"])
        assert row["plan"]["lr"] is None and run["training"]["lr"] > 0, "by rule"

    def test_the_table_says_what_the_spread_supports(self, cli: Cli, uninterrupted: Path) -> None:
        done = cli("compare", "--run", uninterrupted, "--resume")
        lines = done.out.splitlines()
        for name in (
            "layers x width",
            "multiply-adds",
            "µs/char",
            "clipped steps",
            "valid nats",
            "valid perplexity",
            "spread",
        ):
            assert name in lines[0]
        assert "ppl" not in lines[0]
        assert [line.split()[0] for line in lines[1:4]] == list(CELL_NAMES)
        assert "Matched by parameters; 20 steps a run, mean of 2 seeds" in done.out
        assert done.out.count("nats ahead of") == 3
        assert "95 %" in lines[-2]
        assert lines[-1].startswith("Sample from the best with: charrnn sample ")
        assert re.fullmatch(r"\w+-seed[12]", Path(shlex.split(lines[-1])[-1]).name)

    @pytest.mark.parametrize(("run", "step"), [(1, 0), (2, 13), (5, 20)])
    def test_interrupted_and_resumed_is_as_if_it_never_was(
        self, cli: Cli, uninterrupted: Path, tmp_path: Path, run: int, step: int
    ) -> None:
        """It is stopped in a run: before the first update, between two, or after the last."""
        folder = tmp_path / "stopped"
        begun: RunStarted | None = None

        def should_stop() -> str | None:
            is_there = begun and begun.number == run and begun.run.progress.step >= step
            return "SIGINT" if is_there else None

        plan = open_plan(uninterrupted)
        for event in compare(folder, plan, should_stop=should_stop):
            if isinstance(event, RunStarted):
                begun = event
        assert begun
        assert (begun.number, begun.run.progress.step) == (run, step)
        assert len(list(folder.glob("*/result.json"))) == run - 1
        done = cli("compare", "--run", folder, "--resume", "--device", "cpu", "--json")
        assert done.code == 0
        whole = cli("compare", "--run", uninterrupted, "--resume", "--json")
        assert timeless(json.loads(done.out)) == timeless(json.loads(whole.out))

    @pytest.mark.parametrize(("failing", "code"), [({2}, 1), (set(), 0)])
    def test_a_run_left_out_counts_though_nobody_reads_of_it(
        self,
        cli: Cli,
        prose: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        failing: set[int],
        code: int,
    ) -> None:
        poison_losses(monkeypatch, failing)
        unread = Mock(side_effect=BrokenPipeError)
        monkeypatch.setattr("charrnn.views.score_view.print_comparison", unread)
        words = ("--cell", "rnn", "--cell", "gru", "--device", "cpu", *SHORT, "--quiet")
        assert cli("compare", prose, *words, "--run", tmp_path / "comparison").code == code
        assert unread.called

    @pytest.mark.parametrize("step", [2, 14])
    def test_the_others_go_on_without_a_run_that_goes_wrong(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        """A loss is NaN before or after the first save; --lr cannot change when it is resumed."""
        folder = tmp_path / "comparison"
        poison_losses(monkeypatch, {step})
        words = ("--cell", "rnn", "--cell", "gru", "--device", "cpu", "--run", folder, *SHORT)
        done = cli("compare", prose, *words, "--quiet", "--report", tmp_path / "page.html")
        assert done.code == 1
        (said,) = [line for line in done.err.splitlines() if "left out: " in line]
        assert said.startswith("rnn, seed 1, is left out: ")
        assert f"the loss is not finite at step {step} " in said
        saved = "the last good checkpoint" if step == 14 else "nothing was saved before"
        assert saved in said
        assert said.endswith(": compare anew with a lower --lr")
        assert "\ngru" in done.out
        assert "rnn is left out: a loss was not finite; a lower --lr may help." in done.out
        page = (tmp_path / "page.html").read_text("utf-8")
        assert "GRU predicts the test part: " in page
        assert " Left out: 1 run whose loss was not finite." in page

        go_on = ("compare", "--run", folder, "--resume", "--device", "cpu", "--json")
        again = cli(*go_on)
        assert again.code == 0
        assert [(row["cell"], row["failed_seeds"]) for row in json.loads(again.out)] == [
            ("rnn", []),
            ("gru", []),
        ]

    def test_so_they_do_without_one_whose_model_scores_no_number(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With nothing held out to validate, only scoring notices a last update gone wrong."""
        folder, first = tmp_path / "comparison", iter([math.inf])

        def poisoned(*of: Any, **how: Any) -> Scores:
            scores = score(*of, **how)
            return replace(scores, nats=next(first, scores.nats))

        monkeypatch.setattr("charrnn.runs.comparing.score", poisoned)
        words = ("--cell", "rnn", "--cell", "gru", "--valid-share", 0, "--run", folder, *SHORT)
        done = cli("compare", prose, *words, "--device", "cpu", "--json")
        assert done.code == 1
        assert [row["cell"] for row in json.loads(done.out)] == ["gru"]
        said = "rnn, seed 1, is left out: the loss of its model on what was held out is not finite"
        assert f"{said} after step 20: compare anew with a lower --lr\n" in done.err
        again = cli("compare", "--run", folder, "--resume", "--device", "cpu", "--json")
        assert (again.code, len(json.loads(again.out))) == (0, 2)

    def test_it_goes_on_where_its_text_has_moved_to(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        text, folder = tmp_path / "old.txt", tmp_path / "all"
        text.write_bytes(prose.read_bytes())
        words = ("--cell", "rnn", "--cell", "gru", "--run", folder, *SHORT, "--quiet")
        assert cli("compare", text, *words).code == 0
        (folder / "gru-seed1" / "result.json").unlink()  # trained, but not scored
        shutil.rmtree(folder / "rnn-seed1")
        moved = text.rename(tmp_path / "new.txt")
        again = ("compare", "--run", folder, "--resume", "--json")
        refused = cli(*again)
        assert (refused.code, refused.err.count("\n")) == (1, 1)
        go_on = shlex.join(["charrnn", "compare", "--run", str(folder), "--resume"])
        assert refused.err.endswith(f"; if the text has moved, name it: {go_on} TEXT\n")
        other = cli(*again, __file__)
        assert "is not the one this comparison was started on" in other.err
        assert open_plan(folder).texts == (str(text),)
        page = tmp_path / "page.html"
        page.touch()
        done = cli(*again, moved, "--report", page)
        assert (done.code, len(json.loads(done.out))) == (0, 2)
        assert open_plan(folder).texts == (str(moved),)
        # Also when all runs are done.
        last = moved.rename(tmp_path / "last.txt")
        refused = cli(*again, "--report", page)
        assert refused.code == 1
        named = (
            f"if the text has moved, name it: {go_on} {shlex.join(['--report', str(page)])} TEXT"
        )
        assert refused.err.endswith(
            f"its run read: there is no file {moved}: check its name; {named}\n"
        )
        assert cli(*again, __file__).code == 1
        assert open_plan(folder).texts == (str(moved),)
        assert cli(*again, last, "--report", page).code == 0
        assert open_plan(folder).texts == (str(last),)

    def test_cells_can_be_validated_on_another_text(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        valid, folder, page = tmp_path / "out.html", tmp_path / "all", tmp_path / "page.html"
        valid.write_text(make_prose(501, seed=3))
        words = ("--valid", valid, "--test-share", 0, "--cell", "rnn", "--cell", "gru", *SHORT)
        refused = cli("compare", prose, *words, "--run", folder, "--report", valid)
        assert (refused.code, refused.out) == (2, "")
        assert f"--report {valid} would overwrite what is read" in refused.err
        matches = (*words, "--valid", tmp_path / "*.html", "--run", tmp_path)
        inside = cli("compare", prose, *matches)
        assert f"{valid} is in it" in inside.err
        done = cli("compare", prose, *words, "--run", folder, "--report", page, "--quiet")
        assert done.code == 0
        assert " on the 500 predictions of the validation text, which flatters it" in done.out
        assert "predicts the validation text" in page.read_text("utf-8")
        plan = open_plan(folder)
        run = plan.run_name(1, "gru")
        (scored,) = json.loads(cli("evaluate", folder / run, "--text", valid, "--json").out)
        found = read_results(folder, plan)
        assert all(result and result.characters == 500 for result in found)
        assert found[1] and found[1].nats_per_char == pytest.approx(scored["nats_per_char"])
        record = read_description(folder / run / "last.safetensors").record("text", TextRecord)
        assert record.train == (0, record.characters), "nothing of the text is held out"

    def test_that_text_may_move_and_may_not_change(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        valid, folder = tmp_path / "old.txt", tmp_path / "all"
        valid.write_text(make_prose(501, seed=3))
        words = ("--valid", valid, "--cell", "rnn", "--cell", "gru", "--run", folder, *SHORT)
        assert cli("compare", prose, *words, "--quiet").code == 0
        shutil.rmtree(folder / "gru-seed1")
        moved = valid.rename(tmp_path / "new.txt")
        again = ("compare", "--run", folder, "--resume", "--json")
        gone = cli(*again)
        go_on = shlex.join(["charrnn", "compare", "--run", str(folder), "--resume"])
        assert gone.err.endswith(f"name it: {go_on} TEXT --valid TEXT\n")
        other = cli(*again, "--valid", __file__)
        assert other.err.startswith(f"charrnn: the validation text ({__file__}) is not the one ")
        assert cli(*again, "--valid", moved, "--valid-share", 0.1).code == 2
        assert not (folder / "gru-seed1").exists()
        (folder / "rnn-seed1" / "result.json").unlink()  # to be scored on it again
        done = cli(*again, "--valid", moved)
        assert (done.code, len(json.loads(done.out))) == (0, 2)
        assert (open_plan(folder).texts, open_plan(folder).valid) == ((str(prose),), (str(moved),))

    def test_there_must_be_such_a_text_to_say_where_it_is(
        self, cli: Cli, uninterrupted: Path, prose: Path
    ) -> None:
        refused = cli("compare", "--run", uninterrupted, "--resume", "--valid", prose)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert "this comparison has no separate text to validate on" in refused.err

    def test_it_goes_on_in_the_precision_that_it_began_in(
        self, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("charrnn.runs.comparing.recurs_in_bf16", lambda _device: True)
        monkeypatch.setattr("charrnn.runs.starting.multiplies_bf16", lambda _device: True)
        cells: tuple[CellName, ...] = ("rnn", "gru")
        plan = Plan(texts=(str(prose),), cells=cells, steps=3, hidden=5, batch_size=2, bptt=9)
        events = compare(tmp_path / "all", plan)
        result = next(event for event in events if isinstance(event, RunResult))
        events.close()  # type: ignore[attr-defined]
        plan = open_plan(tmp_path / "all")
        assert plan.precision == "bf16"
        model, vocabulary, _ = load_model(result.run, "cpu")
        whole = scan([str(prose)]).whole
        tested = whole.corpus.part(whole.stop - result.characters - 1, whole.stop)
        wide, narrow = (
            score(model, tested, vocabulary, dtype=dtype).nats_per_char
            for dtype in (torch.float32, torch.bfloat16)
        )
        assert result.nats_per_char == narrow != wide
        for module in ("comparability", "starting", "resuming"):
            monkeypatch.setattr(f"charrnn.runs.{module}.multiplies_bf16", lambda _device: False)
        (tmp_path / "all" / "rnn-seed1" / "result.json").unlink()
        with pytest.raises(UsageError, match="the comparison began in bf16, which this device"):
            list(compare(tmp_path / "all", plan, begun=open_plan(tmp_path / "all")))

    def test_a_device_that_is_gone_is_said_to_be_the_comparison_s(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        """The user did not give it."""
        words = ("--cell", "rnn", "--run", tmp_path / "all", *SHORT, "--quiet")
        assert cli("compare", prose, *words, "--device", "cpu").code == 0
        plan = tmp_path / "all" / "comparison.json"
        plan.write_text(json.dumps(json.loads(plan.read_text()) | {"device": "cuda"}))
        refused = cli("compare", "--run", tmp_path / "all", "--resume", "--seeds", 2)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert "charrnn: the comparison began on cuda, and there is none here: go on" in refused.err

    def test_what_fails_once_a_run_is_trained_says_how_to_go_on(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ("--cell", "rnn", "--run", tmp_path / "all", *SHORT, "--quiet")
        with monkeypatch.context() as patch:
            patch.setattr("charrnn.storage.runfolder.write_json", refuse_to_save)
            failed = cli("compare", prose, *words)
        go_on = shlex.join(["charrnn", "compare", "--run", f"{tmp_path}/all", "--resume"])
        assert failed.err.endswith(
            "result.json: cannot save; the run is trained and saved, and the comparison goes on "
            f"with: {go_on}\n"
        )
        assert cli("compare", "--run", tmp_path / "all", "--resume").code == 0

    @pytest.mark.parametrize("how", ["gone", *slowly("damaged")])
    @pytest.mark.parametrize(
        ("lost", "is_scored"), [("best", True), ("best", False), ("last", False)]
    )
    def test_a_run_that_lost_a_checkpoint_is_trained_anew(
        self, cli: Cli, prose: Path, tmp_path: Path, how: str, lost: str, is_scored: bool
    ) -> None:
        """What trains it alone, --init-from or another of its checkpoints, is of no use here.

        Nor may the last weights pass for the best.
        """
        run = tmp_path / "all" / "rnn-seed1"
        words = ("--cell", "rnn", "--run", run.parent, *SHORT, "--quiet")
        assert cli("compare", prose, *words).code == 0
        if not is_scored:
            (run / "result.json").unlink()
        if lost == "last":  # of a run that was stopped
            for earlier in run.glob("step-*"):
                earlier.unlink()
        file = run / f"{lost}.safetensors"
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-1])
        again = ("compare", "--run", run.parent, "--resume", "--report", tmp_path / "page.html")
        tried = cli(*again, "--quiet")
        line = tried.err.splitlines()[-1]
        assert tried.code == 1
        assert (tried.out != "") == is_scored
        assert line.startswith(f"charrnn: {file}: {'missing' if how == 'gone' else 'damaged'}")
        assert line.endswith(
            f"; to train this run anew, remove {run}, and go on with the comparison"
        )
        assert "--init-from" not in line
        assert "take another" not in line
        shutil.rmtree(run)
        tried = cli(*again, "--quiet")
        assert tried.code == 0

    def test_an_error_says_that_no_run_came_to_its_end(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        poison_losses(monkeypatch, set(range(99)))
        words = ("--cell", "rnn", "--cell", "gru", "--device", "cpu", "--run", tmp_path / "run")
        done = cli("compare", prose, *words, *SHORT, "--quiet")
        assert (done.code, done.out) == (1, "")
        lines = done.err.splitlines()
        assert [line.split(":")[0] for line in lines[-3:]] == [
            "rnn, seed 1, is left out",
            "gru, seed 1, is left out",
            "charrnn",
        ]
        assert "no run was finished" in lines[-1]

    def test_every_option_reaches_the_plan_and_the_runs(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        model = {"layers": 2, "hidden": 13, "embedding": 5, "dropout": 0.25, "weight_drop": 0.125}
        training = {
            "batch_size": 3, "bptt": 11, "optimiser": "adamw", "lr": 0.03, "weight_decay": 0.07,
            "clip_norm": 0.5, "dropout_masks": 3, "loss_temperature": 0.75, "precision": "fp32",
            "seed": 7,
        }  # fmt: skip
        others = {
            "match": "hidden", "seeds": 2, "epochs": 0.01, "encoding": "latin-1", "min_count": 4,
            "valid_share": 0.3, "test_share": 0.2,
        }  # fmt: skip
        given = model | training | others
        words = [word for name, value in given.items() for word in (flag(name), value)]
        done = cli("compare", prose, "--cell", "gru", "--run", tmp_path / "all", *words)
        assert done.code == 0
        plan = open_plan(tmp_path / "all")
        has = plan.to_dict()
        told = {"texts", "cells", "minutes", "steps", "fingerprint", "device"}
        told |= {"valid", "valid_fingerprint"}  # not with --valid-share
        assert has.keys() - given.keys() == told
        assert plan.device == "cpu"
        assert {name: has[name] for name in given} == given
        assert (plan.texts, plan.cells) == ((str(prose),), ("gru",))
        assert plan.minutes is plan.steps is None
        for seed in (7, 8):
            meta = read_description(tmp_path / "all" / f"gru-seed{seed}" / "last.safetensors").meta
            assert {name: meta["model"][name] for name in model} == model
            expected = training | {"seed": seed, "epochs": 0.01}
            assert {name: meta["training"][name] for name in expected} == expected
            vocabulary, text = meta["vocabulary"], meta["text"]
            assert (vocabulary["encoding"], vocabulary["min_count"]) == ("iso8859-1", 4)
            assert (text["train"], text["valid"]) == ([0, 3003], [3003, 4805])

    def test_it_goes_on_where_it_began(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "all"
        words = ("--cell", "rnn", "--run", folder, "--steps", 2, "--hidden", 5)
        assert cli("compare", prose, *words, "--device", "cpu").code == 0
        asked: list[str] = []

        def choose(name: str) -> torch.device:
            asked.append(name)
            return CPU

        monkeypatch.setattr("charrnn.compute.device.choose_device", choose)
        file = folder / "comparison.json"
        began = json.loads(file.read_text()) | {"device": "mps"}
        again = ("compare", "--run", folder, "--resume")
        for plan, more, names in (
            (began, (), []),  # with nothing left to train, the device does not matter
            ({**began, "device": "cpu"}, ("--seeds", 2), ["cpu"]),
            ({**began, "device": None, "seeds": 2}, ("--seeds", 3), ["auto"]),
        ):
            file.write_text(json.dumps(plan))
            asked.clear()
            assert cli(*again, *more).code == 0
            assert asked == names
        file.write_text(json.dumps({**began, "seeds": 3}))
        refused = cli(*again, "--seeds", 4, "--device", "cpu")
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert "--device cpu: the comparison began on mps, and runs on two devices" in refused.err
        assert not (folder / "rnn-seed4").exists()

    def test_seeds_can_be_added(self, cli: Cli, prose: Path, tmp_path: Path) -> None:
        """The results are as if all had been planned at once, even after a stop in an added run."""
        words = (prose, "--cell", "rnn", "--device", "cpu", *SHORT)
        whole = cli("compare", *words, "--seeds", 3, "--run", tmp_path / "whole", "--json")
        folder = tmp_path / "grown"
        begun: RunStarted | None = None

        def should_stop() -> str | None:
            return "SIGINT" if begun else None

        assert cli("compare", *words, "--run", folder, "--quiet").code == 0
        first = (folder / "rnn-seed1" / "result.json").stat().st_mtime_ns
        plan = open_plan(folder)
        more = plan.extended(3)
        for event in compare(folder, more, begun=open_plan(folder), should_stop=should_stop):
            if isinstance(event, RunStarted):
                begun = event
        assert begun
        assert (begun.number, begun.total) == (2, 3)
        assert open_plan(folder) == more
        grown = cli("compare", "--run", folder, "--resume", "--device", "cpu", "--json")
        assert timeless(json.loads(grown.out)) == timeless(json.loads(whole.out))
        assert (folder / "rnn-seed1" / "result.json").stat().st_mtime_ns == first

    def test_says_how_long_it_takes_and_whose_width_was_given(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        options = ("--minutes", 0.01, "--seeds", 2, "--hidden", 16, "--run", tmp_path / "all")
        done = cli("compare", prose, "--cell", "rnn", *options)
        assert done.code == 0
        assert "\n2 runs of 0.01 minutes: 1 s, and what scoring takes\n--- run 1 of 2" in done.err
        note = "--hidden 16 is the lstm's, to whose parameters widths are matched: rnn "
        (widths,) = re.findall(re.escape(note) + r"(\d+) units\n", done.err)
        assert f"RNN 1 x {widths}," in done.err
        assert int(widths) > 16
        again = cli("compare", "--run", tmp_path / "all", "--resume", "--seeds", 3)
        assert "--- run 3 of 3" in again.err
        assert "what scoring takes" not in again.err
        assert note not in again.err, "it comes too late"

    @pytest.mark.parametrize("budget", [("--minutes", 0.01), ("--steps", 2)])
    def test_says_that_minutes_on_another_processor_are_others(
        self, cli: Cli, prose: Path, tmp_path: Path, budget: tuple[str, float]
    ) -> None:
        folder, page = tmp_path / "all", tmp_path / "page.html"
        words = ("--cell", "rnn", "--seeds", 2, "--hidden", 8, "--run", folder)
        assert cli("compare", prose, *words, *budget).code == 0
        more = ("compare", "--run", folder, "--resume", "--seeds")
        assert "minutes are not equal work" not in cli(*more, 3).err
        change_result(folder / "rnn-seed2", trained_by="Abacus <1>\x1b with 10 threads")
        said = (
            "finished runs were trained by Abacus <1>\\x1b with 10 threads, and the others are by "
            f"{processor()} with 1 thread: equal minutes are not equal work: go on where they were"
        )
        assert (said in cli(*more, 4).err) == ("--minutes" in budget)
        change_result(folder / "rnn-seed3", trained_by=None)  # which is not named
        assert cli(*more, 4, "--report", page).code == 0
        here = f"{processor()} with 1 thread"
        both = f"cpu: {here} and Abacus <1>\x1b with 10 threads; this page was made on {machine()}"
        assert html.escape(printable(both)) in page.read_text()

    def test_says_that_minutes_on_another_gpu_are_others(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ("--cell", "rnn", "--seeds", 3, "--hidden", 8, "--minutes", 0.01)
        assert cli("compare", prose, *words, "--run", tmp_path).code == 0
        for seed, gpu in ((1, "Abacus 3"), (2, "Abacus 4"), (3, None)):
            change_result(tmp_path / f"rnn-seed{seed}", trained_by=gpu)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Abacus 4")
        plan = replace(open_plan(tmp_path), device="cuda")
        done = [result for result in read_results(tmp_path, plan) if result]
        (said,) = unequal_minutes(plan, done, torch.device("cuda"))
        trained = "finished runs were trained by Abacus 3, and the others are by Abacus 4: equal"
        assert said.startswith(trained)

    def test_no_run_of_it_is_trained_further(
        self, cli: Cli, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its result would no longer fit its weights, nor its budget that of the other runs."""
        monkeypatch.chdir(uninterrupted / "rnn-seed1")
        refused = cli("train", "--run", ".", "--resume", "--steps", 99)
        assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
        run = shlex.quote(str(uninterrupted))
        advice = f"go on with them with: charrnn compare --run {run} --resume; or start"
        assert f"{uninterrupted}/rnn-seed1: is a run of a comparison" in refused.err
        assert advice in refused.err
        # A folder that is not in the plan is not one of its runs.
        refuse_comparison(uninterrupted / "rnn-seed9")
        (tmp_path / "comparison.json").write_text("{}")
        with pytest.raises(RunFolderError, match=r"comparison\.json: not usable"):
            refuse_comparison(tmp_path / "rnn-seed1")

    @pytest.mark.parametrize("resume", [[], ["--resume"]])
    def test_nothing_is_trained_in_its_folder(
        self, cli: Cli, prose: Path, uninterrupted: Path, resume: list[str]
    ) -> None:
        before = sorted(uninterrupted.iterdir())
        text = [] if resume else [prose]
        refused = cli("train", *text, "--run", uninterrupted, "--steps", 2, *resume)
        assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
        assert (
            f"continue it with: charrnn compare --run {shlex.quote(str(uninterrupted))} --resume"
            in refused.err
        )
        assert sorted(uninterrupted.iterdir()) == before

    @pytest.mark.parametrize("left", ["lock", "best.safetensors", "last.safetensors"])
    def test_it_does_not_begin_in_a_run_s_folder(
        self, cli: Cli, prose: Path, tmp_path: Path, left: str
    ) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / left).touch()
        refused = cli("compare", prose, "--run", tmp_path / "run", *SHORT)
        assert (refused.code, refused.out) == (1, "")
        go_on = f"charrnn train --run {shlex.quote(str(tmp_path / 'run'))} --resume"
        holds = f"a run already: continue it with: {go_on}; or choose"
        if left == "lock":
            holds = "a run that has saved nothing yet, or was killed before it did: choose"
        if left == "best.safetensors":
            holds = f"{left} of a run: choose"
        assert refused.err.endswith(f"run: holds {holds} another folder with --run\n")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [left]
        if left == "last.safetensors":
            refused = cli("compare", "--run", tmp_path / "run", "--resume")
            assert (refused.code, refused.out) == (1, "")
            assert refused.err.endswith(
                f"holds no comparison to resume: it holds a run: continue it with: {go_on}\n"
            )

    def test_a_run_is_no_comparison(
        self, cli: Cli, prose: Path, tmp_path: Path, uninterrupted: Path
    ) -> None:
        """One on standard input needs its text; one of a comparison goes on with all of that."""
        alone, one_of_several = tmp_path / "run", uninterrupted / "gru-seed1"
        assert cli("train", "-", "--run", alone, *SHORT, stdin=prose.read_bytes()).code == 0
        itself = f"train TEXT --run {shlex.quote(str(alone))} --resume"
        all_of_them = f"compare --run {shlex.quote(str(uninterrupted))} --resume"
        taken, none = "holds a run already", "holds no comparison to resume: it holds a run"
        for words, run, said, go_on in (
            (("compare", prose, *SHORT), alone, taken, itself),
            (("compare", "--resume"), alone, none, itself),
            (("train", prose, *SHORT), alone, f"{taken} at step 20", itself),
            (("compare", prose, *SHORT), one_of_several, taken, all_of_them),
            (("compare", "--resume"), one_of_several, none, all_of_them),
        ):
            refused = cli(*words, "--run", run)
            assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
            larger = " (a finished one with a larger --minutes, --epochs or --steps)"
            larger = larger if words[0] == "train" else ""
            assert f"{run}: {said}: continue it{larger} with: charrnn {go_on}" in refused.err

    def test_a_file_is_no_folder(self, cli: Cli, prose: Path) -> None:
        refused = cli("compare", prose, "--run", prose, *SHORT)
        assert (refused.code, refused.err.count("\n")) == (1, 1)
        assert f"{prose}: is a file: choose a folder with --run" in refused.err
        again = cli("compare", "--run", prose, "--resume")
        assert (again.code, again.err.count("\n")) == (1, 1)
        assert f"{prose}: is a file: name a comparison's folder" in again.err

    def test_seeds_are_not_taken_away(self, cli: Cli, uninterrupted: Path) -> None:
        done = cli("compare", "--run", uninterrupted, "--resume", "--seeds", 1)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "--seeds 1 is fewer than the 2 of this comparison" in done.err
        assert cli("compare", "--run", uninterrupted, "--resume", "--seeds", 2).code == 0

    def test_an_added_seed_takes_no_unknown_run_over(
        self, cli: Cli, uninterrupted: Path, tmp_path: Path
    ) -> None:
        folder = shutil.copytree(uninterrupted, tmp_path / "copy")
        shutil.copytree(folder / "gru-seed2", folder / "gru-seed3")
        done = cli("compare", "--run", folder, "--resume", "--seeds", 3)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert "gru-seed3: holds a run already, that does not belong" in done.err
        assert not (folder / "rnn-seed3").exists()
        assert open_plan(folder).seeds == 2

    def test_a_stop_before_the_first_added_run_names_the_seeds(
        self, cli: Cli, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*_: object) -> None:
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr("charrnn.runs.comparing.divide", stop)
        done = cli("compare", "--run", uninterrupted, "--resume", "--seeds", 3)
        assert done.code == 130
        run = shlex.quote(str(uninterrupted))
        assert f"go on with: charrnn compare --run {run} --resume --seeds 3\n" in done.err

    def test_a_text_that_has_moved_to_a_name_with_a_dash_is_given_as_no_option(
        self,
        cli: Cli,
        uninterrupted: Path,
        prose: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "-t.txt").write_bytes(prose.read_bytes())
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("charrnn.runs.comparing.divide", Mock(side_effect=Stopped(2)))
        done = cli("compare", "--run", uninterrupted, "--resume", "--seeds", 3, "--", "-t.txt")
        assert done.code == 130
        run = shlex.quote(str(uninterrupted))
        assert f"go on with: charrnn compare --run {run} --resume ./-t.txt --seeds 3\n" in done.err

    @pytest.mark.parametrize(
        ("text", "shares"),
        [
            ("a", ()), ("ab", ()), ("abc", ()), ("abcdefghij", ()),
            ("abcdefghij", ("--valid-share", 0.45, "--test-share", 0.45)),
        ],
    )  # fmt: skip
    def test_too_short_a_text_is_refused_before_any_run(
        self, cli: Cli, tmp_path: Path, text: str, shares: tuple[object, ...]
    ) -> None:
        (tmp_path / "text").write_text(text)
        words = ("--run", tmp_path / "run", "--steps", 2, "--hidden", 5, *shares)
        result = cli("compare", tmp_path / "text", *words)
        assert result.code == 1
        assert f"a text of length {len(text)} leaves" in result.err
        assert len(result.err.splitlines()) == 1
        assert not (tmp_path / "run").exists()

    @needs_raw_names
    def test_a_name_that_is_no_utf_8(self, cli: Cli, prose: Path, tmp_path: Path) -> None:
        name = tmp_path / "caf\udce9.txt"
        name.write_bytes(prose.read_bytes())
        words = ("compare", "--run", tmp_path / "run", "--cell", "rnn")
        assert cli(*words, name, *SHORT).code == 0
        assert cli("compare", "--run", tmp_path / "run", "--resume").code == 0

    def test_other_sizes_are_not_mixed_in(self, prose: Path, tmp_path: Path) -> None:
        plan = Plan(texts=(str(prose),), cells=("rnn", "gru"), steps=3, hidden=5, batch_size=2)
        folder = tmp_path / "comparison"
        events = compare(folder, plan)
        next(event for event in events if isinstance(event, RunResult))
        events.close()  # type: ignore[attr-defined]
        with pytest.raises(UsageError, match=r"1 x 12 units and .* now it would be 1 x 16 and "):
            list(compare(folder, replace(plan, hidden=7), begun=open_plan(folder)))

    @pytest.mark.parametrize("change", [{"hidden": 7}, {"embedding": 4}])
    def test_nor_where_the_first_run_was_begun(
        self, prose: Path, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        plan = Plan(
            texts=(str(prose),), cells=("gru",), match="hidden", steps=9, hidden=5, batch_size=2,
            bptt=9,
        )  # fmt: skip
        begun: RunStarted | None = None

        def should_stop() -> str | None:
            return "SIGINT" if begun and begun.run.progress.step >= 3 else None

        for event in compare(tmp_path, plan, should_stop=should_stop):
            if isinstance(event, RunStarted):
                begun = event
        with pytest.raises(UsageError, match="parameters, and now it would be"):
            list(compare(tmp_path, replace(plan, **change), begun=open_plan(tmp_path)))

    @pytest.mark.parametrize("when", ["resumed", "between two runs"])
    def test_other_texts_are_not_mixed_in(self, prose: Path, tmp_path: Path, when: str) -> None:
        text, folder = tmp_path / "text", tmp_path / "comparison"
        text.write_text(prose.read_text())
        plan = Plan(texts=(str(text),), cells=("rnn", "gru"), steps=3, hidden=5, batch_size=2)
        events = compare(folder, plan)
        next(event for event in events if isinstance(event, RunResult))
        if when == "resumed":
            events.close()  # type: ignore[attr-defined]
            events = compare(folder, open_plan(folder), begun=open_plan(folder))
        text.write_text(prose.read_text().replace("river", "riv re", 1))
        with pytest.raises(CorpusError, match="not the one this comparison was started on"):
            list(events)
        assert not (folder / "gru-seed1").exists()
        text.write_text(prose.read_text())
        events = compare(folder, open_plan(folder), begun=open_plan(folder))
        assert sum(isinstance(event, RunResult) for event in events) == 2

    def test_a_plan_without_a_fingerprint_goes_on(self, prose: Path, tmp_path: Path) -> None:
        plan = Plan(texts=(str(prose),), cells=("rnn", "gru"), steps=3, hidden=5, batch_size=2)
        events = compare(tmp_path, plan)
        next(event for event in events if isinstance(event, RunResult))
        events.close()  # type: ignore[attr-defined]
        events = compare(tmp_path, plan, begun=open_plan(tmp_path))
        assert sum(isinstance(event, RunResult) for event in events) == 2

    @pytest.mark.parametrize("left", ["result.json", "last.safetensors", "best.safetensors"])
    def test_runs_of_an_unknown_comparison_are_not_taken_over(
        self, cli: Cli, prose: Path, tmp_path: Path, left: str
    ) -> None:
        """Even one in the folder of the last run is refused before anything is trained."""
        (tmp_path / "gru-seed1").mkdir()
        (tmp_path / "gru-seed1" / left).write_text("{}")
        done = cli("compare", prose, "--run", tmp_path, *SHORT)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert f"{tmp_path}/gru-seed1: holds a run already" in done.err
        assert list(tmp_path.iterdir()) == [tmp_path / "gru-seed1"]

    def test_a_folder_is_compared_in_once(self, cli: Cli, prose: Path, uninterrupted: Path) -> None:
        """A refusal needs no word on how long the runs would have taken."""
        for budget in (SHORT, ("--minutes", 1)):
            done = cli("compare", prose, "--run", uninterrupted, *budget)
            assert (done.code, done.err.count("\n")) == (1, 1)
            assert "holds a comparison already" in done.err

    def test_of_two_that_begin_at_once_one_is_refused(self, prose: Path, tmp_path: Path) -> None:
        plan = Plan(texts=(str(prose),), cells=("rnn",), steps=3, hidden=5)
        late = compare(tmp_path, replace(plan, cells=("gru",)))
        assert isinstance(next(late), str), "it has checked the folder and read the text"
        early = list(compare(tmp_path, plan))
        with pytest.raises(RunFolderError, match="holds a comparison already"):
            list(late)
        assert isinstance(early[-1], RunResult)
        assert open_plan(tmp_path).cells == ("rnn",)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.json", "rnn-seed1"]

    def test_a_plan_that_was_never_finished_is_removed(self, prose: Path, tmp_path: Path) -> None:
        """A kill while it is written leaves a file that nothing else would ever remove."""
        plan = Plan(texts=(str(prose),), cells=("rnn",), steps=3, hidden=5)
        left = tmp_path / f".comparison.json.{os.getpid()}-0a1b2c3d.tmp"  # a dead process had it
        alive = tmp_path / f".comparison.json.{os.getppid()}-0a1b2c3d.tmp"
        for more, begun in ((plan, None), (plan.extended(2), plan)):
            left.touch()
            alive.touch()
            list(compare(tmp_path, more, begun=begun and open_plan(tmp_path)))
            assert alive.exists() and not left.exists()

    def test_a_run_in_use_is_left_alone(self, prose: Path, tmp_path: Path) -> None:
        plan = Plan(texts=(str(prose),), cells=("rnn",), steps=3, hidden=5)
        with RunFolder.create(tmp_path / "comparison" / "rnn-seed1") as held:
            best = held.save_best(Checkpoint({"weight": torch.ones(3)}, {}))
            with pytest.raises(RunFolderError, match="holds a run already"):
                list(compare(tmp_path / "comparison", plan))
            assert best.exists()

    @pytest.mark.parametrize(
        ("words", "code", "says"),
        [
            ("--resume", 2, "--run DIR"),
            ("{text} --resume --run {tmp}", 1, "no comparison to resume"),
            ("--resume --run {tmp} --hidden 2", 2, "give only --run DIR"),
            (
                "--resume --run {tmp} --seeds 2 --steps 9",
                2,
                "--seeds to add runs, and TEXT or --valid if",
            ),
            ("--resume --run {tmp} --seeds 2", 1, "no comparison to resume"),
            ("--resume --run {tmp}", 1, "no comparison to resume"),
            ("{text} --cell elman", 2, "--cell must be one of rnn, lstm, gru, not 'elman'"),
            ("{text} --steps 1 --epochs 1", 2, "one budget"),
            ("{text} --weight-drop 1", 2, "--weight-drop must be a number from 0"),
            ("- --steps 1", 2, "not -"),
            ("{tmp}/missing --steps 1 --run {tmp}/run", 1, "there is no file"),
        ],
    )
    def test_mistakes_are_one_line_and_leave_nothing(
        self, cli: Cli, prose: Path, tmp_path: Path, words: str, code: int, says: str
    ) -> None:
        done = cli("compare", *(word.format(text=prose, tmp=tmp_path) for word in words.split()))
        assert (done.code, done.out) == (code, "")
        assert says in done.err
        assert done.err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "log",
        [
            "",
            '{"step": 10, "chars_per_second": "fast"}\n',
            '{"step": 10, "chars_per_second": 0.0}\n',
        ],
    )
    def test_a_run_whose_log_is_gone_is_named(
        self, cli: Cli, prose: Path, tmp_path: Path, log: str
    ) -> None:
        words = ("compare", "--run", tmp_path, "--device", "cpu")
        assert cli(*words, prose, "--cell", "rnn", *SHORT).code == 0
        (tmp_path / "rnn-seed1" / "result.json").unlink()
        (tmp_path / "rnn-seed1" / "metrics.jsonl").write_text(log)
        done = cli(*words, "--resume", "--quiet")
        said = done.without_notes.err
        assert (done.code, said.startswith("charrnn: "), said.count("\n")) == (1, True, 1)
        assert "rnn-seed1/metrics.jsonl: the rows on its updates are gone" in said

    @pytest.mark.parametrize(
        "content",
        [
            "{}", "[]", "no json", '{"texts": [], "steps": 0}', '{"texts": []}',
            pytest.param("[" * 100_000, id="nested"),
        ],
    )  # fmt: skip
    def test_a_damaged_plan_is_named(self, cli: Cli, tmp_path: Path, content: str) -> None:
        (tmp_path / "comparison.json").write_text(content)
        done = cli("compare", "--run", tmp_path, "--resume")
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert "comparison.json: not usable" in done.err
        anew = "put an earlier copy back, or compare anew in another folder with --run"
        assert done.err.endswith(f": {anew}\n")

    def test_a_plan_that_cannot_be_read_is_named_once(self, tmp_path: Path) -> None:
        (tmp_path / "comparison.json").mkdir()
        with pytest.raises(RunFolderError) as raised:
            open_plan(tmp_path)
        assert str(raised.value) == f"{tmp_path}/comparison.json: not usable: Is a directory"
        (tmp_path / "comparison.json").rmdir()
        os.mkfifo(tmp_path / "comparison.json")
        with pytest.raises(RunFolderError, match=r"comparison\.json: not usable: not a regular fi"):
            open_plan(tmp_path)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("parameters", 0),
            ("seconds", 0.0),
            ("train_chars_per_second", 0),
            ("characters", 0),
            ("nats_per_char", 1e300),
        ],
    )
    def test_a_result_of_no_run_is_named(self, tmp_path: Path, name: str, value: float) -> None:
        """Nothing can be computed from such numbers."""
        changed = make_result().to_dict() | {name: value}
        (tmp_path / "result.json").write_text(json.dumps(changed))
        with pytest.raises(RunFolderError) as raised:
            read_result(tmp_path)
        assert str(raised.value) == (
            f"{tmp_path}/result.json: not usable: {name!r} cannot be {value}: remove it to score "
            "the run again"
        )
