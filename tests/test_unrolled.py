"""The unrolled recurrence, and the stretch of text it is inspected on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from charrnn.analysis.stretch import read_stretch
from charrnn.analysis.unrolled import unroll_model
from charrnn.config import CellName
from charrnn.errors import CorpusError
from charrnn.text.scanning import scan
from charrnn.text.vocabulary import Vocabulary
from tests.small import ALPHABET, VOCABULARY, make_model


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_unrolled_model_is_the_model(cell: CellName, layers: int) -> None:
    model = make_model(cell, layers)
    x_TB = torch.randint(0, len(ALPHABET), (7, 5))
    hidden = tuple(
        tuple(torch.randn(5, 3, dtype=torch.float64) for _ in c.states) for c in model.layers()
    )
    unrolled = unroll_model(model, x_TB, hidden)
    for t in range(7):
        expected_1BV, hidden = model(x_TB[t : t + 1], hidden)
        logits_BV = model.head(unrolled[-1].states["h"][t])
        torch.testing.assert_close(logits_BV, expected_1BV[0])
        for layer, state in zip(unrolled, hidden, strict=True):
            for steps, part_BH in zip(layer.states.values(), state, strict=True):
                torch.testing.assert_close(steps[t], part_BH)
    assert len(unrolled) == layers
    for layer, c in zip(unrolled, model.layers(), strict=True):
        assert tuple(layer.gates) == c.gate_names
        assert all(len(steps) == 7 for steps in layer.gates.values())


class TestStretch:
    def test_text_and_symbols(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("(é☃) " * 50, encoding="utf-8")
        corpus = scan([str(tmp_path / "text")])
        stretch = read_stretch(corpus.part(3, 250), VOCABULARY)
        assert stretch.text == ("(é☃) " * 50)[3:]
        assert len(stretch) == 247
        assert stretch.ids.tolist() == VOCABULARY.encode(stretch.text).tolist()

    def test_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_bytes("aé".encode() * 50)
        corpus = scan([str(tmp_path / "data")], "bytes")
        stretch = read_stretch(corpus.part(0, 150), Vocabulary.of_bytes())
        assert stretch.text == "a\ufffd\ufffd" * 50
        assert stretch.ids.tolist() == list("aé".encode() * 50)

    def test_too_short(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("a" * 99)
        corpus = scan([str(tmp_path / "text")])
        with pytest.raises(CorpusError, match=r"^a text of 99 characters .* at least 100$"):
            read_stretch(corpus.part(0, 99), VOCABULARY)
