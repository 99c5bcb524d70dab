"""Models and texts small enough to inspect."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from charrnn.analysis.stretch import Stretch
from charrnn.compute.device import multiplies_bf16
from charrnn.config import CellName, ModelConfig
from charrnn.network.model import CharModel
from charrnn.runs.comparison import RunResult
from charrnn.storage.checkpoint import Checkpoint
from charrnn.text.vocabulary import Vocabulary

ALPHABET = "abcd ()\n"
needs_bf16 = pytest.mark.skipif(
    not multiplies_bf16(torch.device("cpu")), reason="no CPU with AVX512-BF16"
)


def vocabulary_of(text: str, min_count: int | None = 1) -> Vocabulary:
    """Return the vocabulary of a text, by default with every character in it."""
    return Vocabulary.from_counts(Counter(map(ord, text)), "utf-8", min_count)


VOCABULARY = vocabulary_of(ALPHABET)


def stretch_of(text: str) -> Stretch:
    return Stretch(text, VOCABULARY.encode(text).astype(np.int64))


def make_stretch(length: int, alphabet: str = ALPHABET, seed: int = 5) -> Stretch:
    return stretch_of("".join(random.Random(seed).choices(alphabet, k=length)))


def make_model(
    cell: CellName,
    layers: int = 2,
    hidden: int = 3,
    embedding: int = 4,
    vocabulary: int = len(ALPHABET) + 1,
    dropout: float = 0.5,
    weight_drop: float = 0.5,
) -> CharModel:
    """Return a float64 model with large weights and non-zero biases."""
    torch.manual_seed(7)
    config = ModelConfig(
        cell=cell, vocabulary=vocabulary, layers=layers, hidden=hidden, embedding=embedding,
        dropout=dropout, weight_drop=weight_drop,
    )  # fmt: skip
    model = CharModel(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5).add_(torch.randn_like(weight) / 4)
    return model


def make_dropping_model(cell: CellName = "lstm", *, vocabulary: int) -> CharModel:
    """Return a model in training mode, so that dropout acts unless scoring turns it off."""
    return make_model(cell, hidden=6, vocabulary=vocabulary).train()


def zero_(model: CharModel) -> CharModel:
    """Set every weight of the recurrence to zero."""
    with torch.no_grad():
        for cell in model.layers():
            for weight in cell.parameters():
                weight.zero_()
    return model


def make_state(step: int, elements: int = 3) -> Checkpoint:
    """Return a checkpoint that shows its step in its weights and in its description."""
    return Checkpoint({"model.weight": torch.full((elements,), float(step))}, {"step": step})


def make_result(
    cell: CellName = "lstm", seed: int = 1, nats: float = 2.0, **changes: Any
) -> RunResult:
    """Return a made-up result of one run of a comparison."""
    made = RunResult(
        run=f"runs/{cell}-seed{seed}", cell=cell, seed=seed, layers=1, hidden=3, parameters=900,
        multiply_adds=567, steps=20, clipped_steps=seed, trained_characters=660, seconds=7.0,
        train_chars_per_second=1000.0, valid_nats_per_char=nats, nats_per_char=nats,
        bits_per_byte=nats / math.log(2), characters=999, unknown=0, chars_per_second=5000.0,
        validation_seconds=0.0, uniform_nats=9.0, trained_by=None,
        versions={"charrnn": "0.1.0", "torch": "2.13.0"}, model={}, training={},
    )  # fmt: skip
    return replace(made, **changes)
