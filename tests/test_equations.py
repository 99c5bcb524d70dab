"""The written equations against the model, and against a step worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from charrnn.analysis import equations
from charrnn.analysis.equations import CHARACTERS, SHOWN, write_out
from charrnn.config import CellName
from charrnn.network.model import CharModel
from charrnn.text.vocabulary import Vocabulary
from tests import small

TEXT = "abacabadabacabae" * 20
VOCABULARY = Vocabulary("abcde", "utf-8", 1)


def make_model(cell: CellName, layers: int = 2, hidden: int = 6) -> CharModel:
    return small.make_model(cell, layers, hidden, vocabulary=6)


def ids(text: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return VOCABULARY.encode(text).astype(np.int64)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_equations_give_the_model_s_numbers(cell: CellName, layers: int) -> None:
    step = write_out(make_model(cell, layers), TEXT, ids(TEXT), VOCABULARY)
    assert step.read == "e"
    assert step.characters == CHARACTERS
    assert step.state_difference < 1e-10
    assert step.logits_difference < 1e-10
    assert step.written_nats == pytest.approx(step.model_nats, abs=1e-12)
    assert step.written_nats > 1
    names = {"rnn": "a h'", "lstm": "i f g o c' h'", "gru": "r z n h'"}[cell].split()
    found = [(quantity.layer, quantity.name) for quantity in step.quantities]
    assert found == [(n + 1, name) for n in range(layers) for name in names] + [
        (layers, name) for name in "yp"
    ]
    for quantity in step.quantities:
        assert len(quantity.units) == SHOWN
        assert (quantity.model is not None) == (quantity.name in ("h'", "c'", "y", "p"))
        if quantity.model:
            assert quantity.units == pytest.approx(quantity.model, abs=1e-10)


@pytest.mark.parametrize(("logits", "characters"), [(43, 7), (1, 2)])
def test_a_large_vocabulary_has_fewer_characters(
    monkeypatch: pytest.MonkeyPatch, logits: int, characters: int
) -> None:
    """Their logits would fill the memory."""
    monkeypatch.setattr(equations, "LOGITS", logits)
    step = write_out(make_model("gru"), TEXT, ids(TEXT), VOCABULARY)
    assert (step.characters, step.read) == (characters, "e")
    assert step.logits_difference < 1e-10


def test_a_difference_is_seen(cell: CellName, monkeypatch: pytest.MonkeyPatch) -> None:
    """A term that the equations lack makes the model differ from them."""
    model = make_model(cell)
    plain = CharModel.forward

    def forward(self: CharModel, x_TB: torch.Tensor) -> object:
        logits_TBV, hidden = plain(self, x_TB)
        return logits_TBV + 1e-3, tuple(tuple(part + 0.01 for part in s) for s in hidden)

    monkeypatch.setattr(CharModel, "forward", forward)
    step = write_out(model, TEXT, ids(TEXT), VOCABULARY)
    assert step.logits_difference == pytest.approx(1e-3)
    assert step.state_difference == pytest.approx(0.01)


def test_one_step_by_hand() -> None:
    model = make_model("rnn", layers=1, hidden=1)
    numbers = {"embedding": [0.5] * 4, "W": [0.1] * 4, "U": 2.0, "b": -0.3}
    with torch.no_grad():
        (cell,) = model.layers()
        model.embedding.weight.copy_(torch.tensor([numbers["embedding"]]).expand(6, 4))
        cell.weight_input.copy_(torch.tensor([numbers["W"]]))
        cell.weight_recurrent.fill_(2.0)
        cell.bias.fill_(-0.3)
        model.head.weight.fill_(3.0)
        model.head.bias.fill_(0.25)
    step = write_out(model, "ab", ids("ab"), VOCABULARY)
    first = math.tanh(0.2 - 0.3)
    second = 0.2 + 2.0 * first - 0.3
    a, h, y, p = step.quantities
    assert a.units == pytest.approx((second,))
    assert h.units == pytest.approx((math.tanh(second),))
    assert y.units == pytest.approx([3 * math.tanh(second) + 0.25] * SHOWN)
    assert p.units == pytest.approx([1 / 6] * SHOWN)
    assert step.likeliest == ("\N{REPLACEMENT CHARACTER}", "a", "b", "c")
    assert step.written_nats == pytest.approx(math.log(6))


@pytest.mark.parametrize(("cell", "names"), [("lstm", "ifgo"), ("gru", "rzn")])
def test_a_line_has_the_value_of_its_name(cell: CellName, names: str) -> None:
    """All weights are 0 except the biases: 1, 2, 3 and so on, in the order of the blocks."""
    model = small.zero_(make_model(cell, layers=1, hidden=1))
    with torch.no_grad():
        model.layers()[0].bias.copy_(torch.arange(1.0, len(names) + 1))
    step = write_out(model, "ab", ids("ab"), VOCABULARY)
    found = {quantity.name: quantity.units for quantity in step.quantities}
    for bias, name in enumerate(names, start=1):
        value = math.tanh(bias) if name in "gn" else 1 / (1 + math.exp(-bias))
        assert found[name] == pytest.approx((value,))


def test_a_step_ends_at_the_likeliest_next_characters() -> None:
    """In order, with probabilities over the whole vocabulary, which may have fewer than shown."""
    model = make_model("gru", layers=1)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 1.0, 3.0, 2.0, -1.0, 1000.0]))
    step = write_out(model, TEXT, ids(TEXT), VOCABULARY)
    y, p = step.quantities[-2:]
    assert step.likeliest == ("e", "b", "c", "a")
    assert y.units == y.model == (1000.0, 3.0, 2.0, 1.0)
    assert p.units == p.model == pytest.approx((1.0, 0.0, 0.0, 0.0))
    few = Vocabulary("ab", "utf-8", 1)
    model = small.make_model("rnn", 1, 3, vocabulary=few.size)
    assert len(write_out(model, "ab", np.array([1, 2]), few).likeliest) == 3


def test_the_lower_ids_of_equally_likely_ones_are_shown() -> None:
    """65 symbols, because even an unstable sort keeps the order of equals in a short list."""
    words = Vocabulary("".join(map(chr, range(256, 320))), "utf-8", 1)
    bias = np.random.default_rng(1).choice([1.0, 2.0], words.size).tolist()
    model = small.make_model("rnn", 1, 3, vocabulary=words.size)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor(bias))
    step = write_out(model, "\u0100\u0101", np.array([1, 2]), words)
    order = sorted(range(words.size), key=lambda symbol: (-bias[symbol], symbol))
    assert step.likeliest == tuple(words.decode([symbol]) for symbol in order[:SHOWN])
