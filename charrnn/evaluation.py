"""Exact scores of a text under a model.

A text of n characters has n - 1 predictions (the first character has nothing to
be predicted from), and all sums are divided by exactly that number. A character
outside the vocabulary costs the model's price of the unknown symbol plus the
price of spelling it out, ln(number of code points outside the vocabulary), so
that bits per character compare across vocabularies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from charrnn.corpus import Part
from charrnn.model import CharModel, Hidden
from charrnn.stream import Reader
from charrnn.vocabulary import UNKNOWN, Vocabulary

__all__ = ["Interrupted", "Scores", "score"]

#: Characters that a lane reads before its first prediction counts.
WARM_UP = 256
#: A lane shorter than this would spend too much of its time on its warm-up.
SHORTEST_LANE = 16 * WARM_UP
#: Lanes that keep each kind of device busy.
MOST_LANES = {"cpu": 32, "cuda": 512, "mps": 128}
WINDOW = 128


class Interrupted(Exception):  # noqa: N818 - no error: the caller asked to stop
    """Scoring was asked to stop before its end."""


@dataclass(frozen=True)
class Scores:
    """The price of a text under a model."""

    nats: float
    """Sum over all predictions of -ln p(character)."""
    characters: int
    """Number of predictions."""
    unknown: int
    """Predicted characters outside the vocabulary."""
    bytes: int
    """Encoded size of the predicted characters."""
    seconds: float
    """Wall-clock time the scoring took."""

    @property
    def nats_per_char(self) -> float:
        """Mean -ln p."""
        return self.nats / self.characters

    @property
    def bits_per_char(self) -> float:
        """Mean -log2 p."""
        return self.nats_per_char / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Total bits over total bytes: the figure that no vocabulary flatters."""
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """Exponential of the nats per character; infinite beyond the largest float."""
        try:
            return math.exp(self.nats_per_char)
        except OverflowError:
            return math.inf

    @property
    def chars_per_second(self) -> float:
        """Predictions made per second of wall-clock time."""
        return self.characters / self.seconds


@torch.inference_mode()
def score(
    model: CharModel,
    part: Part,
    vocabulary: Vocabulary,
    *,
    lanes: int | None = None,
    window: int = WINDOW,
    should_stop: Callable[[], bool] = lambda: False,
) -> Scores:
    """Score a part of a text, dropout off, state carried from its first character on.

    With several lanes each one predicts a stretch of its own and is warmed on the
    ``WARM_UP`` characters before it; a single lane is exact. The result does not
    depend on the window. Training is not touched: the state is the call's own, no
    random number is drawn, and the model's mode is put back.

    Args:
        model: who predicts.
        part: the text; at least 2 characters.
        vocabulary: the model's.
        lanes: stretches scored side by side; None: as many as the device and the
            text's length make worth while; 1: exact.
        window: characters of a lane given to the model at a time.
        should_stop: asked before every window.

    Raises:
        CorpusError: the text changed while it was read.
        Interrupted: ``should_stop`` said so.
    """
    started = time.perf_counter()
    predictions = part.characters - 1
    assert predictions >= 1, "a text of one character has nothing to score"
    device = model.head.weight.device
    if lanes is None:
        lanes = min(MOST_LANES.get(device.type, 32), predictions // SHORTEST_LANE)
    length = math.ceil(predictions / max(1, lanes))
    lanes = math.ceil(predictions / length)
    lengths = [min(length, predictions - lane * length) for lane in range(lanes)]
    warm_up = min(WARM_UP, length)

    was_training = model.training
    model.eval()
    readers: list[Reader] = []
    try:
        hidden = model.initial_hidden(lanes)
        readers = [
            Reader(part, vocabulary, lane * length - (warm_up if lane else 0))
            for lane in range(lanes)
        ]
        if lanes > 1:
            warm = np.stack([reader.read(warm_up) for reader in readers[1:]], axis=1)
            _, warmed = model(torch.from_numpy(warm.astype(np.int64)).to(device))
            hidden = _with_zero_lane(hidden, warmed)

        nats = torch.zeros((), dtype=torch.float64, device=device)
        unknown = 0
        last_B = np.array([reader.read(1)[0] for reader in readers], dtype=np.int64)
        for start in range(0, length, window):
            if should_stop():
                raise Interrupted
            wanted = [max(0, min(window, have - start)) for have in lengths]
            ids_TB = np.zeros((max(wanted) + 1, lanes), dtype=np.int64)
            counted_TB = np.zeros((max(wanted), lanes), dtype=bool)
            ids_TB[0] = last_B
            for lane, (reader, count) in enumerate(zip(readers, wanted, strict=True)):
                if count:
                    ids_TB[1 : count + 1, lane] = reader.read(count)
                    counted_TB[:count, lane] = True
            last_B = ids_TB[-1]
            if vocabulary.has_unknown:
                unknown += int(((ids_TB[1:] == UNKNOWN) & counted_TB).sum())
            text_TB = torch.from_numpy(ids_TB).to(device)
            logits_TBV, hidden = model(text_TB[:-1], hidden)
            nats += _price(logits_TBV, text_TB[1:], torch.from_numpy(counted_TB).to(device))
    finally:
        model.train(was_training)
        for reader in readers:
            reader.close()
    return Scores(
        nats=float(nats) + unknown * vocabulary.unknown_nats,
        characters=predictions,
        unknown=unknown,
        bytes=part.corpus.part(part.start + 1, part.stop).bytes,
        seconds=time.perf_counter() - started,
    )


def _with_zero_lane(zero: Hidden, warmed: Hidden) -> Hidden:
    """Put the first lane of ``zero`` before the lanes of ``warmed``."""
    return tuple(
        tuple(torch.cat([a_BH[:1], b_BH]) for a_BH, b_BH in zip(state, warm, strict=True))
        for state, warm in zip(zero, warmed, strict=True)
    )


def _price(logits_TBV: Tensor, y_TB: Tensor, counted_TB: Tensor) -> Tensor:
    """Return the sum of -ln p over the counted positions, in float64."""
    if logits_TBV.dtype in (torch.bfloat16, torch.float16):
        logits_TBV = logits_TBV.float()
    price = F.cross_entropy(logits_TBV.flatten(0, 1), y_TB.flatten(), reduction="none")
    return (price * counted_TB.flatten()).sum(dtype=torch.float64)
