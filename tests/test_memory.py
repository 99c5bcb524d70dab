"""Memory, against a loop over resets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charrnn.analysis.memory import _needed, _never_rising, memory
from charrnn.config import CellName
from charrnn.network.model import CharModel
from charrnn.text.vocabulary import UNKNOWN
from tests.small import ALPHABET, VOCABULARY, make_model, make_stretch, stretch_of, zero_


def price(model: CharModel, context: Sequence[int], symbol: int) -> float:
    """Return -ln p of a symbol, having read the context from the zero state."""
    logits_V = model.head.bias
    if len(context):
        logits_V = model(torch.tensor(context)[:, None])[0][-1, 0]
    return -float(torch.log_softmax(logits_V, dim=0)[symbol])


@pytest.mark.parametrize(("at_one", "widths"), [(63, {1, 7}), (62, {1, 6})])
@torch.no_grad()
def test_equals_a_loop_over_resets(
    cell: CellName, monkeypatch: pytest.MonkeyPatch, at_one: int, widths: set[int]
) -> None:
    monkeypatch.setattr("charrnn.analysis.memory.LOGITS", 300)
    monkeypatch.setattr("charrnn.analysis.memory.LOGITS_AT_ONE", at_one)
    monkeypatch.setattr("charrnn.analysis.memory.BLOCKS", 3)
    model, stretch = make_model(cell), make_stretch(101, ALPHABET + "é")
    ids = stretch.ids.tolist()
    shapes: set[torch.Size] = set()
    with model.register_forward_hook(lambda _model, _given, out: shapes.add(out[0].shape)):
        found = memory(model, stretch, VOCABULARY, farthest=9, resets=7, bptt=4)
    assert {width for _, width, _ in shapes} == widths
    for lanes in widths:
        steps = max(length for length, width, _ in shapes if width == lanes)
        assert steps == 300 // (lanes * 9), "as many logits at a time as are allowed"
    starts = np.linspace(9, 91, 7).astype(int).tolist()
    for k in range(10):
        excess = [
            price(model, ids[s : s + k], ids[s + k]) - price(model, ids[: s + k], ids[s + k])
            for s in starts
        ]
        assert found.excess_nats[k] == pytest.approx(np.mean(excess), abs=1e-12)
        means = [np.mean(block) for block in (excess[:3], excess[3:5], excess[5:])]
        error = np.std(means, ddof=1) / math.sqrt(3)
        assert found.standard_error[k] == pytest.approx(error, abs=1e-12)
    assert len(found.excess_nats) == len(found.standard_error) == 10
    full = [price(model, ids[:t], ids[t]) for t in range(9, 101)]
    full = [
        p + VOCABULARY.unknown_nats * (i == UNKNOWN) for p, i in zip(full, ids[9:], strict=True)
    ]
    assert found.full_nats == pytest.approx(np.mean(full))
    assert found.nats(3) == found.full_nats + found.excess_nats[3]
    assert (found.windows, found.bptt) == (7, 4)


def test_of_a_model_that_needs_one_character() -> None:
    """It knows that b follows a and a follows b, and has no recurrence."""
    model = zero_(make_model("rnn", layers=1))
    a, b = (int(VOCABULARY.encode(c)[0]) for c in "ab")
    with torch.no_grad():
        for weight in (model.embedding.weight, model.head.weight, model.head.bias):
            weight.zero_()
        model.embedding.weight[a, 0], model.embedding.weight[b, 0] = 1, -1
        model.layers()[0].weight_input[0, 0] = 9
        model.head.weight[b, 0], model.head.weight[a, 0] = 9, -9
    found = memory(model, stretch_of("ab" * 60), VOCABULARY, bptt=9)
    assert found.needed == 1
    assert found.excess_nats[0] == pytest.approx(math.log(9), abs=0.01)
    assert found.excess_nats[1:] == pytest.approx([0.0] * (len(found.excess_nats) - 1))
    assert found.full_nats == pytest.approx(0.0, abs=0.01)


def test_a_short_text_has_no_place_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, stretch = make_model("gru"), make_stretch(22)
    found = memory(model, stretch, VOCABULARY, bptt=9, resets=99)
    assert (len(found.excess_nats), found.windows) == (5 + 1, 22 - 2 * 5)
    monkeypatch.setattr("charrnn.analysis.memory.LOGITS", 1)  # fewer than one character needs
    slow = memory(model, stretch, VOCABULARY, bptt=9, resets=99)
    assert slow.excess_nats == pytest.approx(found.excess_nats, abs=1e-12)


@pytest.mark.parametrize(("fewest", "most", "resets"), [(5, 40, 17), (20, 40, 20), (5, 13, 13)])
def test_resets_are_as_many_as_their_work_allows(
    fewest: int, most: int, resets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("lstm")
    monkeypatch.setattr("charrnn.analysis.memory.RESET_WORK", 17 * 9 * model.multiply_adds())
    monkeypatch.setattr("charrnn.analysis.memory.FEWEST_RESETS", fewest)
    monkeypatch.setattr("charrnn.analysis.memory.MOST_RESETS", most)
    found = memory(model, make_stretch(120), VOCABULARY, farthest=9, bptt=4)
    assert found.windows == resets


@pytest.mark.parametrize(
    ("excess", "needed"),
    [
        ([-0.07, 0.04, 0.02, 0.0], 3),  # the bias alone beats the state after few characters
        ([-0.07, 0.0, 0.0], 0),
        ([0.5, 0.0, 0.0], 1),
        ([-0.07, 0.5, 0.5], None),
        ([0.5, -0.1, 0.04, 0.04], 1),
    ],
)
def test_a_state_of_few_characters_may_be_worse_than_none(
    excess: list[float], needed: int | None
) -> None:
    assert _needed(np.array(excess), 0.01) == needed


def test_not_enough() -> None:
    found = memory(make_model("rnn"), make_stretch(120), VOCABULARY, bptt=9, tolerance=-9.0)
    assert found.needed is None
    assert found.needed_between == (None, None)


def test_what_is_enough_is_told_within_one_standard_error(cell: CellName) -> None:
    model, stretch = make_model(cell), make_stretch(300)
    for tolerance in (-0.02, -0.001, 0.0, 0.001, 0.02):
        found = memory(model, stretch, VOCABULARY, bptt=9, tolerance=tolerance)
        excess_K, error_K = np.array(found.excess_nats), np.array(found.standard_error)
        assert min(error_K[:9]) > 0  # later ones may be 0: a plain RNN forgets to the last bit
        assert found.needed == _needed(excess_K, tolerance)
        assert found.needed_between == (
            _needed(excess_K - error_K, tolerance), _needed(excess_K + error_K, tolerance)
        )  # fmt: skip


@pytest.mark.parametrize(("bptt", "farthest"), [(100, 256), (200, 400)])
def test_looks_beyond_the_window_of_the_training(bptt: int, farthest: int) -> None:
    model = make_model("rnn", layers=1)
    found = memory(model, make_stretch(1700), VOCABULARY, bptt=bptt, resets=2)
    assert len(found.excess_nats) == farthest + 1


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=12))
def test_fit_never_rises(values: list[int]) -> None:
    """Against the min-max formula of isotonic regression."""
    n = len(values)
    expected = [
        min(max(np.mean(values[a : b + 1]) for b in range(i, n)) for a in range(i + 1))
        for i in range(n)
    ]
    assert _never_rising(np.array(values, float)) == pytest.approx(expected)
