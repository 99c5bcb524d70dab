from __future__ import annotations

import math
import random
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from charrnn.config import CellName, ModelConfig
from charrnn.inference.dynamic import EPSILON, dynamic_prices
from charrnn.inference.evaluation import prices, total
from charrnn.network.model import CharModel
from charrnn.storage.trained import load_model
from charrnn.text.vocabulary import UNKNOWN, Vocabulary
from tests.conftest import make_part, make_prose
from tests.small import make_dropping_model, vocabulary_of

KNOWN = "abcdefgh \n"
VOCABULARY = vocabulary_of(KNOWN)

make_model = partial(make_dropping_model, vocabulary=VOCABULARY.size)


def naive_dynamic(
    model: CharModel, ids: list[int], window: int, rate: float, decay: float, epsilon: float
) -> list[float]:
    """Return -ln p of every symbol but the first, by the formulas, one weight at a time."""
    model.eval()
    trained = [weight.tolist() for weight in (w.detach().flatten() for w in model.parameters())]
    squares: list[list[list[float]]] = [[[] for _ in values] for values in trained]
    hidden = model.initial_hidden(1)
    found = []
    for start in range(0, len(ids) - 1, window):
        x, y = ids[start : start + window], ids[start + 1 : start + window + 1]
        x = x[: len(y)]
        losses = []
        for symbol, following in zip(x, y, strict=True):
            logits_TBV, hidden = model(torch.tensor([[symbol]]), hidden)
            losses.append(-torch.log_softmax(logits_TBV[0, 0], 0)[following])
        hidden = tuple(tuple(part.detach() for part in state) for state in hidden)
        found += [loss.item() for loss in losses]
        model.zero_grad()
        torch.stack(losses).mean().backward()
        sizes = []
        for number, weight in enumerate(model.parameters()):
            assert weight.grad is not None
            for seen, g in zip(squares[number], weight.grad.flatten().tolist(), strict=True):
                seen.append(g * g)
            sizes.append([math.sqrt(sum(seen) / len(seen)) for seen in squares[number]])
        every = [size for tensor in sizes for size in tensor]
        mean = sum(every) / len(every)
        with torch.no_grad():
            for number, weight in enumerate(model.parameters()):
                assert weight.grad is not None
                new = []
                for w, g, s, w0 in zip(
                    weight.flatten().tolist(),
                    weight.grad.flatten().tolist(),
                    sizes[number],
                    trained[number],
                    strict=True,
                ):
                    back = min(1, decay * s / mean) * (w0 - w)
                    new.append(w + back - rate * g / (s + epsilon))
                weight.copy_(torch.tensor(new, dtype=torch.float64).view_as(weight))
    return found


@pytest.mark.parametrize(("window", "decay"), [(7, 0.0), (5, 0.3), (100, 0.1)])
def test_equals_the_naive_loop(tmp_path: Path, cell: CellName, window: int, decay: float) -> None:
    text = "".join(random.Random(1).choices(KNOWN + "☃", k=38))
    part = make_part(tmp_path, text)
    stretches = list(
        dynamic_prices(make_model(cell), part, VOCABULARY, window=window, rate=0.05, decay=decay)
    )
    ids = VOCABULARY.encode(text).tolist()
    expected = naive_dynamic(make_model(cell), ids, window, 0.05, decay, EPSILON)
    spelt = [symbol == UNKNOWN for symbol in ids[1:]]
    assert any(spelt)
    found = np.concatenate([stretch.nats_T for stretch in stretches])
    assert found == pytest.approx(
        np.array(expected) + np.array(spelt) * VOCABULARY.unknown_nats, rel=1e-9
    )
    assert [stretch.position for stretch in stretches] == list(range(1, 38, window))
    assert sum(stretch.unknown for stretch in stretches) == sum(spelt)


def test_without_steps_the_prices_are_those_of_the_model(tmp_path: Path) -> None:
    part = make_part(tmp_path, make_prose(99))
    words = Vocabulary.from_counts(part.counts, "utf-8", 1)
    torch.manual_seed(1)
    model = CharModel(
        ModelConfig(cell="gru", vocabulary=words.size, layers=1, hidden=5, embedding=3)
    ).eval()
    still = dynamic_prices(model, part, words, window=10, rate=1e-30, decay=0.0)
    adapted = total(still, part)
    assert adapted.nats == pytest.approx(total(prices(model, part, words), part).nats, rel=1e-6)


def test_a_loss_without_a_gradient_moves_nothing(tmp_path: Path) -> None:
    """With only one symbol all gradients are 0, and so is the mean size to divide by."""
    torch.manual_seed(1)
    model = CharModel(ModelConfig(cell="gru", vocabulary=1, layers=1, hidden=5, embedding=3))
    part, words = make_part(tmp_path, "abcdefgh"), Vocabulary("", "utf-8", 1)
    found = list(dynamic_prices(model, part, words, window=3))
    nats = [stretch.nats_T.tolist() for stretch in found]
    assert nats == [[words.unknown_nats] * count for count in (3, 3, 1)]


def test_nothing_is_learned_where_nothing_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = mock.Mock(wraps=torch.autograd.grad)
    monkeypatch.setattr(torch.autograd, "grad", step)
    part = make_part(tmp_path, "abcdefgh" * 4)
    learned = [
        step.call_count for _ in dynamic_prices(make_model("gru"), part, VOCABULARY, window=10)
    ]
    assert learned == [0, 1, 2, 3]
    assert step.call_count == 3


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_is(tmp_path: Path, training: bool) -> None:
    part = make_part(tmp_path, "abcdefgh" * 9)
    model = make_model("lstm").train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    with torch.no_grad():  # whatever the caller's mode
        for _ in dynamic_prices(model, part, VOCABULARY):
            assert not torch.is_grad_enabled(), "the caller's mode is kept"
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(weight.grad is None for weight in model.parameters())


def test_a_text_that_repeats_itself_gets_cheaper(tmp_path: Path, trained: Path) -> None:
    text = "the stone sings cold, grey river runs under a bird.\n" * 60
    model, words, _ = load_model(trained, torch.device("cpu"))
    part = make_part(tmp_path, text)
    plain = total(prices(model, part, words), part)
    adapted = total(dynamic_prices(model, part, words, rate=1e-3), part)
    assert adapted.characters == plain.characters == len(text) - 1
    assert adapted.bytes == plain.bytes
    assert adapted.nats_per_char < plain.nats_per_char - 0.1
