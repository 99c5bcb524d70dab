"""Truncated and clipped gradients against the definition, one character at a time or in numpy."""

from __future__ import annotations

import math
import time
from dataclasses import astuple, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.analysis import gradients as module
from charrnn.analysis.gradients import SHARES, cuts, truncation
from charrnn.analysis.norms import clipping
from charrnn.config import CellName, TrainConfig
from charrnn.errors import UsageError
from charrnn.network.model import CharModel, Hidden, detach
from charrnn.network.update import window_loss
from charrnn.views.inspection_words import clipping_says
from tests import small

SYMBOLS = 7
LANES = 4


@pytest.fixture(autouse=True)
def few_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use half of the lanes, because the definition is slow."""
    monkeypatch.setattr(module, "LANES", LANES)


def make_model(cell: CellName) -> CharModel:
    return small.make_model(cell, hidden=5, embedding=3, vocabulary=SYMBOLS)


def make_ids(length: int) -> NDArray[np.int64]:
    return np.random.default_rng(3).integers(0, SYMBOLS, length)


def by_the_definition(
    model: CharModel, ids: NDArray[np.int64], *, skipped: int, length: int, window: int, last: int,
    lanes: range = range(LANES), head: bool = False,
) -> NDArray[np.float64]:  # fmt: skip
    """Return the gradient of the mean loss of some lanes, lane by lane and loss by loss.

    Each loss reaches back to the start of the window that counts it: the one that has it
    among its last ``last`` predictions.
    """
    weights = [w for name, w in model.named_parameters() if head or "head" not in name]
    total = np.zeros(sum(weight.numel() for weight in weights))
    lane_length = (len(ids) - 1) // LANES
    for lane in lanes:
        text = torch.from_numpy(ids[lane * lane_length :][: length + 1])
        for t in range(skipped, length):
            start = skipped + (t - skipped) // last * last + last - window
            hidden: Hidden = model.initial_hidden(1)
            for u in range(t + 1):
                if u == start:
                    hidden = detach(hidden)
                logits_11V, hidden = model(text[None, u : u + 1].clone(), hidden)
            loss = -torch.log_softmax(logits_11V[0, 0], dim=0)[text[t + 1]]
            parts = torch.autograd.grad(loss, weights)
            total += torch.cat([part.flatten() for part in parts]).numpy()
    result: NDArray[np.float64] = total / (len(lanes) * (length - skipped))
    return result


def degrees(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return math.degrees(math.acos(one @ other / np.linalg.norm(one) / np.linalg.norm(other)))


class TestTruncation:
    @pytest.mark.parametrize(
        ("windows", "last", "skipped"),
        [((1, 2), None, 2), ((1, 3, 8), None, 5), ((5, 4), 3, 7), ((9, 5), 4, 5)],
    )
    def test_equals_the_definition(
        self, cell: CellName, windows: tuple[int, ...], last: int | None, skipped: int
    ) -> None:
        """Losses count from the longest window's length into a lane on, if the text allows it."""
        model, ids = make_model(cell), make_ids(14 * LANES)  # one short of 14 predictions a lane
        length = 13
        found = truncation(model, ids, windows, loss_last=last, longest=11, weights="initial")
        assert found.weights == "initial"
        assert (found.lanes, found.characters) == (LANES, LANES * (length - skipped))
        assert (found.full.bptt, found.full.angle, found.full.size) == (length, 0, 1)

        def twin(window: int, last: int) -> NDArray[np.float64]:
            return by_the_definition(
                model, ids, skipped=skipped, length=length, window=window, last=last
            )

        full = twin(length, length - skipped)
        assert [(w.bptt, w.loss_last) for w in found.windows] == [(T, last) for T in windows]
        for window in found.windows:
            gradient = twin(window.bptt, last or window.bptt)
            assert window.angle == pytest.approx(degrees(gradient, full), abs=1e-5)
            assert window.size == pytest.approx(np.linalg.norm(gradient) / np.linalg.norm(full))

    def test_halves_are_the_first_lanes_and_the_others(self) -> None:
        """Equal halves of a text have an angle of 0 between them; other halves do not."""
        once = make_ids(9 * LANES // 2)
        twice = np.concatenate([once, once, once[:1]])
        same = truncation(make_model("gru"), twice, (3,), longest=8)
        assert same.between_halves == pytest.approx(0, abs=1e-5)
        model, ids = make_model("gru"), make_ids(9 * LANES + 1)
        first, others = (
            by_the_definition(model, ids, skipped=3, length=9, window=9, last=6, lanes=lanes)
            for lanes in (range(2), range(2, 4))
        )
        found = truncation(model, ids, (3,), longest=7).between_halves  # 6 are left in a lane
        assert found == pytest.approx(degrees(first, others)) != pytest.approx(0, abs=5)

    def test_what_is_kept_grows_with_the_window(self, cell: CellName) -> None:
        found = truncation(make_model(cell), make_ids(64 * LANES + 1), (16, 32, 64), longest=1)
        one, two, four = (window.bytes for window in found.windows)
        # In proportion, except the state before the window and what each call needs once.
        assert four - two == pytest.approx(2 * (two - one), rel=0.05)
        assert two - one > 16 * LANES * 2 * 5 * 8, "the states of both layers, float64"
        assert found.full.bytes == four

    def test_weights_are_kept_anyway(self, cell: CellName) -> None:
        model = small.make_model(cell, hidden=99, vocabulary=SYMBOLS)
        matrices = [layer.weight_recurrent for layer in model.layers()]
        (window,) = truncation(model, make_ids(LANES + 1), (1,)).windows
        assert window.bytes < min(matrix.nbytes for matrix in matrices)

    def test_copies_of_the_weights_are_not_counted_either(
        self, cell: CellName, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a GPU they are copied into one piece, and cuDNN keeps views of it."""
        model, ids = make_model(cell), make_ids(9 * LANES + 1)
        plain = truncation(model, ids, (3,)).windows

        class Kept(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, out_TBH: Tensor, *weights: Tensor) -> Tensor:
                ctx.save_for_backward(*weights)
                return out_TBH.view_as(out_TBH)

            @staticmethod
            def backward(ctx: Any, d_TBH: Tensor) -> tuple[Tensor | None, ...]:
                return (d_TBH, *[None] * len(ctx.saved_tensors))

        def copying(layer: Any, run: Any, x: Tensor, state: Any, u_GH: Tensor, which: Any) -> Any:
            weights = [layer.weight_input, u_GH, layer.bias]
            flat = torch.cat([weight.flatten() for weight in weights])
            pieces = torch.split_with_sizes(flat, [weight.numel() for weight in weights])
            weights = [a.view_as(weight) for a, weight in zip(pieces, weights, strict=True)]
            out_TBH, after = run(x, state, weights[1], which)
            return Kept.apply(out_TBH, *weights), after

        for layer in model.layers():
            monkeypatch.setattr(layer, "_run", partial(copying, layer, layer._run))
        copied = truncation(model, ids, (3,)).windows
        assert [window.bytes for window in copied] == [window.bytes for window in plain]

    def test_the_shortest_of_some_times_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter([10.0, 15.0, 20.0, 23.0, 30.0, 34.0] * 2)  # the full gradient, the window
        monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
        found = truncation(make_model("rnn"), make_ids(6 * LANES + 1), (3,))
        for window in (found.full, *found.windows):
            assert window.seconds_per_character == pytest.approx(3 / (3 * LANES))

    def test_only_what_counts_is_timed_of_the_full_gradient(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A window is timed over all its steps, even if it is as long as the full gradient."""
        timed: list[int] = []
        clock, real = iter(range(99)), window_loss

        def perf_counter() -> float:
            timed.append(0)
            return next(clock)

        def loss(model: CharModel, x_TB: torch.Tensor, *rest: Any) -> Any:
            if len(timed) % 2:
                timed[-1] += len(x_TB)
            return real(model, x_TB, *rest)

        monkeypatch.setattr(time, "perf_counter", perf_counter)
        monkeypatch.setattr(module, "window_loss", loss)
        truncation(make_model("rnn"), make_ids(9 * LANES + 1), (3,))
        assert timed == 6 * [6, 0], "six predictions after three steps, then two windows of three"
        timed.clear()
        found = truncation(make_model("rnn"), make_ids(9 * LANES + 1), (9,), loss_last=4)
        assert (found.full.bptt, found.full.loss_last) == (9, 4)
        assert timed == 3 * [4, 0] + 3 * [9, 0]

    def test_powers_of_2_if_nothing_is_given(self) -> None:
        found = truncation(make_model("rnn"), make_ids(20 * LANES + 1))
        assert [window.bptt for window in found.windows] == [1, 2, 4, 8]
        assert (found.full.bptt, found.full.loss_last) == (20, 12)
        shortest = truncation(make_model("rnn"), make_ids(LANES + 1))
        assert (shortest.full.bptt, shortest.windows) == (1, ())

    @pytest.mark.parametrize(
        ("last", "windows"), [(1, [1, 2, 4, 8]), (3, [4, 8]), (5, [8]), (12, [16])]
    )
    def test_powers_of_2_that_the_counted_end_fits_into(
        self, last: int, windows: list[int]
    ) -> None:
        found = truncation(make_model("rnn"), make_ids(20 * LANES + 1), loss_last=last)
        assert [(w.bptt, w.loss_last or w.bptt) for w in found.windows] == [
            (T, last) for T in windows
        ]
        assert found.full.bptt == 20
        counted = max(windows[-1], 20 - (windows[-1] - last) - windows[-1])
        assert found.characters == counted * LANES

    def test_a_longer_window_than_usual_is_compared(self) -> None:
        found = truncation(make_model("rnn"), make_ids(20 * LANES + 1), (3, 15), longest=9)
        assert (found.full.bptt, found.full.loss_last) == (20, 15)
        assert found.windows[1].angle > 0
        all_of_it = truncation(make_model("rnn"), make_ids(20 * LANES + 1), (3, 20), longest=9)
        assert (all_of_it.full.bptt, all_of_it.windows[1].angle) == (20, 0)

    def test_too_short_a_text(self) -> None:
        with pytest.raises(UsageError, match=rf"--bptt 21 .*--characters, of {21 * LANES + 1}$"):
            truncation(make_model("rnn"), make_ids(20 * LANES + 1), (5, 21))
        with pytest.raises(UsageError, match=r"^--loss-last 17 does not fit any window .*--bptt$"):
            truncation(make_model("rnn"), make_ids(20 * LANES + 1), loss_last=17)

    def test_small_angles_are_exact(self) -> None:
        one, other = torch.tensor([1.0, 0.0]).double(), torch.tensor([3.0, 3e-9]).double()
        assert module._degrees(one, other) == pytest.approx(math.degrees(1e-9))
        assert module._degrees(one, -one) == pytest.approx(180)
        assert module._degrees(one, torch.tensor([0.0, 2.0])) == pytest.approx(90)


class TestCuts:
    def test_equal_the_definition(self) -> None:
        model, ids = make_model("lstm"), make_ids(9 * LANES + 2)
        gradient = by_the_definition(model, ids, skipped=4, length=9, window=5, last=5, head=True)
        found = cuts(model, ids, 5)
        assert [cut.share for cut in found] == list(SHARES)
        for cut in found:
            clipped = gradient.clip(-cut.value, cut.value)
            norms = np.linalg.norm(clipped), np.linalg.norm(gradient)
            assert norms[0] / norms[1] == pytest.approx(cut.share)
            assert cut.by_norm == pytest.approx(0, abs=1e-6)
            assert cut.by_value == pytest.approx(degrees(clipped, gradient), abs=1e-5)
            assert cut.by_value > 1

    def test_both_are_cut_by_what_cuts_in_training(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "clip", lambda grads, *limits: grads[0].neg_())
        for cut in cuts(make_model("rnn"), make_ids(9 * LANES + 2), 6):
            assert (cut.by_norm, cut.by_value) == pytest.approx((180, 180))

    def test_a_short_text(self) -> None:
        model, ids = make_model("rnn"), make_ids(25 * LANES)  # one short of 25 a lane
        assert cuts(model, ids, 128) == cuts(model, ids, 24) != cuts(model, ids, 23)


class TestClipping:
    TRAINING = TrainConfig(batch_size=1, bptt=9, lr=0.1, lr_adam=0.1, warmup_steps=0, steps=1)

    def test_from_a_log(self) -> None:
        rows: list[dict[str, Any]] = [
            {"step": 10, "gradient_norm": 2.0, "largest_gradient_norm": 2, "clipped_share": 1.0},
            {"step": 20, "gradient_norm": 1.0, "largest_gradient_norm": 7, "clipped_share": 0.5},
            {"step": 20, "valid_nats_per_char": 1.5},
            {"step": 30, "gradient_norm": 0.5, "largest_gradient_norm": 0.5, "clipped_share": 0.0},
            {"step": 32, "gradient_norm": 0.3, "largest_gradient_norm": 0.4, "clipped_share": 0.0},
        ]
        found = clipping(rows, self.TRAINING, periods=2)
        assert found is not None
        assert (found.clip_norm, found.clip_value, found.scale_norm) == (1.0, None, None)
        assert (found.steps, found.largest) == (32, 7.0)
        assert found.clipped_share == pytest.approx(15 / 32)
        # First and last step, quantiles at 10 and 50 %, the largest, share clipped.
        first, second = (astuple(period) for period in found.periods)
        assert first == pytest.approx((1, 20, 1.1, 1.5, 7.0, 0.75))
        assert second == pytest.approx((21, 32, 0.32, 0.4, 0.5, 0.0))

    @pytest.mark.parametrize(
        ("how", "said"),
        [
            ({}, "Nothing was clipped."),
            ({"clip_norm": 1.5}, "Clipped to a norm of 1.5: 50.0 % of updates."),
            ({"clip_value": 0.25}, "Entries clipped to 0.25: 50.0 % of updates."),
            (
                {"scale_norm": 2.5},
                "Every gradient was scaled to a norm of 2.5, down in 50.0 % of updates.",
            ),
        ],
    )
    def test_says_what_was_done(self, how: dict[str, Any], said: str) -> None:
        row = {"step": 10, "gradient_norm": 2.0, "largest_gradient_norm": 2.0, "clipped_share": 0.5}
        found = clipping([row], replace(self.TRAINING, **{"clip_norm": None, **how}))
        assert found is not None
        assert clipping_says(found).endswith(f", the largest 2.00. {said}")

    def test_from_a_log_that_begins_late(self) -> None:
        """As of a run that was resumed from its checkpoint alone."""
        rows: list[dict[str, Any]] = [
            {"step": 210, "gradient_norm": 2.0, "largest_gradient_norm": 2, "clipped_share": 1.0},
            {"step": 215, "gradient_norm": 1.0, "largest_gradient_norm": 7, "clipped_share": 0.4},
        ]
        found = clipping(rows, self.TRAINING, periods=2)
        assert found is not None
        assert found.steps == 15
        assert found.clipped_share == pytest.approx(12 / 15)
        steps = [(period.first_step, period.last_step) for period in found.periods]
        assert steps == [(201, 210), (211, 215)]
        said = "over 15 updates from step 201 on, where the log begins, the largest 7.00."
        assert said in clipping_says(found)

    @pytest.mark.parametrize(
        ("rows", "lengths"),
        [
            (1, [10]),
            (12, [10] * 12),
            (13, [20] * 6 + [10]),
            (30, [30] * 10),
            (100, [90] * 4 + [80] * 8),
        ],
    )
    def test_periods_are_about_equally_long(self, rows: int, lengths: list[int]) -> None:
        log = [
            {"step": 10 * n, "gradient_norm": 1.0, "largest_gradient_norm": 1, "clipped_share": 0.0}
            for n in range(1, rows + 1)
        ]
        found = clipping(log, self.TRAINING)
        assert found is not None
        assert [p.last_step - p.first_step + 1 for p in found.periods] == lengths

    def test_without_updates(self) -> None:
        assert clipping([{"step": 1, "valid_nats_per_char": 1.0}], self.TRAINING) is None
