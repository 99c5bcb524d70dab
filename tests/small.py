"""Models and texts that are small enough to look into."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from charrnn.config import CELL_NAMES, CellName, ModelConfig
from charrnn.model import CharModel
from charrnn.unrolled import Stretch
from charrnn.vocabulary import Vocabulary

ALPHABET = "abcd ()\n"
each_cell = pytest.mark.parametrize("cell", CELL_NAMES)


def vocabulary() -> Vocabulary:
    return Vocabulary.from_counts(dict.fromkeys(map(ord, ALPHABET), 1), "utf-8", 1)


def stretch_of(text: str) -> Stretch:
    return Stretch(text, vocabulary().encode(text).astype(np.int64))


def make_stretch(length: int, alphabet: str = ALPHABET, seed: int = 5) -> Stretch:
    return stretch_of("".join(random.Random(seed).choices(alphabet, k=length)))


def make_model(
    cell: CellName,
    layers: int = 2,
    hidden: int = 3,
    embedding: int = 4,
    vocabulary: int = len(ALPHABET) + 1,
) -> CharModel:
    """Return a model in float64 whose weights are large and whose biases are no zeros."""
    torch.manual_seed(7)
    config = ModelConfig(
        cell=cell, vocabulary=vocabulary, layers=layers, hidden=hidden, embedding=embedding,
        dropout=0.5, weight_drop=0.5,
    )  # fmt: skip
    model = CharModel(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5).add_(torch.randn_like(weight) / 4)
    return model


def zero_(model: CharModel) -> CharModel:
    """Set every weight of the recurrence to zero."""
    with torch.no_grad():
        for cell in model.layers():
            for weight in cell.parameters():
                weight.zero_()
    return model
