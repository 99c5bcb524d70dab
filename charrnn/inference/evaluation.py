"""Scoring a text under a model.

A text of n characters has n - 1 predictions, since nothing precedes the first character;
all means divide by n - 1. A price is -ln p, the negative log-likelihood (or surprisal) of
the character that came. A character outside the vocabulary costs the price of the unknown
symbol plus the price of spelling it out, ln(number of code points outside the vocabulary),
so that bits per character are comparable across vocabularies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from charrnn.nats import in_bits, perplexity
from charrnn.network.model import CharModel, Hidden
from charrnn.text.corpus import Part
from charrnn.text.stream import Reader
from charrnn.text.vocabulary import Vocabulary

#: Characters read before the first prediction counts, to replace the zero state by a typical one.
WARM_UP = 256
#: A lane shorter than this would spend too much of its time warming up.
SHORTEST_LANE = 4 * WARM_UP
#: Number of lanes that keeps each kind of device busy.
MOST_LANES = {"cpu": 32, "cuda": 512, "mps": 128}
#: Characters of a lane given to a model at a time, at most.
WINDOW = 128
#: Most predictions that ``score_by_position`` holds in memory at once, 100 MB, unless a single
#: stretch has more.
MOST_PREDICTIONS = 1 << 22
#: Blocks that a text's price is also added up in, at most, and the shortest. What one model finds
#: harder than another does goes on for thousands of characters; only longer blocks are independent.
MOST_BLOCKS, SHORTEST_BLOCK = 16, 2048
#: Most logits in a window, T x B x V: a large vocabulary needs a shorter window. Each takes 8 bytes
#: (in float32, and as a log-probability), so on a GPU this is 1.1 GB.
MOST_LOGITS = {"cpu": 1 << 26, "cuda": 1 << 27, "mps": 1 << 27}


class Interrupted(Exception):  # noqa: N818 - no error: the caller asked to stop
    """Scoring was stopped before its end."""


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
    nats_N: tuple[float, ...] = ()
    """``nats`` by blocks: consecutive stretches of the text, equally long to within a character."""

    @property
    def nats_per_char(self) -> float:
        """Mean -ln p."""
        return self.nats / self.characters

    @property
    def bits_per_char(self) -> float:
        """Mean -log2 p."""
        return in_bits(self.nats_per_char)

    @property
    def bits_per_byte(self) -> float:
        """Total bits over total bytes: the figure that no choice of vocabulary can flatter.

        Infinite where the predicted characters have no bytes of their own (Big5-HKSCS writes some
        pairs of characters as one).
        """
        return in_bits(self.nats) / self.bytes if self.bytes else math.inf

    @property
    def perplexity(self) -> float:
        """Perplexity per character: e to the mean -ln p."""
        return perplexity(self.nats_per_char)

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
    dtype: torch.dtype = torch.float32,
    should_stop: Callable[[], bool] = lambda: False,
    tell: Callable[[int], None] = lambda done: None,
) -> Scores:
    """Score a part of a text with dropout off, carrying the state from its first character on.

    With several lanes, each predicts its own stretch of the text after a warm-up on the
    ``WARM_UP`` characters before it; a single lane is exact. The result does not depend on
    the window, except for rounding. Scoring does not disturb training: it keeps its own state,
    draws no random numbers and restores the model's mode.

    Args:
        model: the model that predicts.
        part: the text; at least 2 characters.
        vocabulary: the model's.
        lanes: stretches scored side by side; None: as many as suit the device and the
            length of the text; 1: exact.
        window: characters of a lane given to the model at a time; reduced for a large
            vocabulary, whose logits would fill the memory.
        dtype: type of the products; bfloat16 changes the loss by some 0.0001 nats, and is for
            models trained in it.
        should_stop: asked before every window.
        tell: called after every window with the number of characters scored so far.

    Raises:
        CorpusError: the text changed while it was read.
        Interrupted: ``should_stop`` returned True.
    """
    predictions = part.characters - 1
    assert predictions >= 1, "a text of one character has nothing to score"
    device = model.device
    if lanes is None:
        lanes = min(MOST_LANES[device.type], predictions // SHORTEST_LANE)
    length = math.ceil(predictions / max(1, lanes))
    lanes = math.ceil(predictions / length)
    lengths = [min(length, predictions - lane * length) for lane in range(lanes)]
    warm_up = min(WARM_UP, length)
    window = _affordable(window, lanes, vocabulary, device)
    started = time.perf_counter()
    nats_N = _wide(torch.zeros(_blocks(predictions), device=device))
    unknown_N, done = np.zeros(len(nats_N), dtype=np.int64), 0
    with _evaluating(model, dtype):
        readers = [
            Reader(part, vocabulary, lane * length - (warm_up if lane else 0))
            for lane in range(lanes)
        ]
        hidden = _warmed(model, readers, warm_up, window)
        for ids_TB, counted_TB, place_TB in _lane_windows(readers, lengths, window):
            if should_stop():
                raise Interrupted
            block_TB = _block_of(place_TB, predictions)
            unknown_TB = vocabulary.is_unknown(ids_TB[1:]) & counted_TB
            unknown_N += np.bincount(block_TB[unknown_TB], minlength=len(nats_N))
            text_TB = torch.from_numpy(ids_TB).to(device)
            logits_TBV, hidden = model(text_TB[:-1], hidden)
            price_TB = symbol_prices(logits_TBV, text_TB[1:])
            price_TB = _wide(price_TB * torch.from_numpy(counted_TB).to(device))
            nats_N += _sums_by_block(price_TB, block_TB, len(nats_N))
            done += int(counted_TB.sum())
            tell(done)
    spelled_N = nats_N.cpu().numpy() + unknown_N * vocabulary.unknown_nats
    return _scores(part, spelled_N, int(unknown_N.sum()), time.perf_counter() - started)


def _scores(part: Part, nats_N: NDArray[np.float64], unknown: int, seconds: float) -> Scores:
    """Return the scores of a text, from its price by blocks."""
    return Scores(
        nats=float(nats_N.sum()),
        characters=part.characters - 1,
        unknown=unknown,
        bytes=part.predicted.encoded_size(),
        seconds=seconds,
        nats_N=tuple(nats_N.tolist()),
    )


@contextmanager
def _evaluating(model: CharModel, dtype: torch.dtype) -> Iterator[None]:
    """Temporarily turn a model's dropout off and compute in ``dtype``."""
    was_training, trained_in = model.training, model.compute_dtype
    model.eval()
    model.compute_dtype = dtype
    try:
        yield
    finally:
        model.train(was_training)
        model.compute_dtype = trained_in


def _warmed(model: CharModel, readers: list[Reader], warm_up: int, window: int) -> Hidden:
    """Return the state before each lane: zero for the first, warmed up for the others."""
    first = model.initial_hidden(1)
    if len(readers) == 1:
        return first
    ids_TB = np.stack([reader.read(warm_up) for reader in readers[1:]], axis=1)
    text_TB = torch.from_numpy(ids_TB.astype(np.int64)).to(model.device)
    others = model.initial_hidden(len(readers) - 1)
    for start in range(0, warm_up, window):
        _, others = model.read(text_TB[start : start + window], others)
    return tuple(
        tuple(torch.cat(parts) for parts in zip(*states, strict=True))
        for states in zip(first, others, strict=True)
    )


def _blocks(predictions: int) -> int:
    """Return the number of blocks of a text with this many predictions."""
    return max(1, min(MOST_BLOCKS, predictions // SHORTEST_BLOCK))


def _block_of(place_N: NDArray[np.int64], predictions: int) -> NDArray[np.int64]:
    """Return the block of each of a text's predictions, given their numbers counted from 0."""
    return np.minimum(place_N, predictions - 1) * _blocks(predictions) // predictions


def _sums_by_block(price_TB: Tensor, block_TB: NDArray[np.int64], blocks: int) -> Tensor:
    """Return the sum of the prices in each block, sum_N, on the device of the prices."""
    # Not by index_add_, which adds in any order on a GPU.
    device = price_TB.device
    priced_in_TB = torch.from_numpy(block_TB.astype(np.uint8)).to(device)
    block_N = torch.arange(blocks, dtype=torch.uint8, device=device)
    in_block_NTB = priced_in_TB == block_N[:, None, None]
    return torch.where(in_block_NTB, price_TB, 0.0).flatten(1).sum(1)


def _lane_windows(
    readers: list[Reader], lengths: list[int], window: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]]:
    """Yield what the lanes read, window by window, until the longest has ended.

    Args:
        readers: one per lane, at the character before the lane's first prediction.
        lengths: predictions of each lane.
        window: predictions at a time.

    Yields:
        The symbols [T + 1, B], starting with the last ones of the window before; a mask [T, B] of
        the predictions that lie within their lane; and the predictions' numbers in the text.
    """
    first_B = np.cumsum([0, *lengths[:-1]])
    last_B = np.array([reader.read(1)[0] for reader in readers], dtype=np.int64)
    for start in range(0, max(lengths), window):
        wanted = [max(0, min(window, length - start)) for length in lengths]
        ids_TB = np.zeros((max(wanted) + 1, len(readers)), dtype=np.int64)
        counted_TB = np.zeros((max(wanted), len(readers)), dtype=bool)
        ids_TB[0] = last_B
        for lane, (reader, count) in enumerate(zip(readers, wanted, strict=True)):
            ids_TB[1 : count + 1, lane] = reader.read(count)
            counted_TB[:count, lane] = True
        last_B = ids_TB[-1]
        yield ids_TB, counted_TB, first_B + np.arange(start, start + len(counted_TB))[:, None]


@dataclass(frozen=True)
class Prices:
    """The price of every character in a stretch of text."""

    position: int
    """Position of the first of them in the text, counted from 0."""
    nats_T: NDArray[np.float64]
    """-ln p of each character, including the spelling of an unknown one."""
    unknown: int
    """How many of them are outside the vocabulary."""


@torch.no_grad()
def prices(
    model: CharModel, part: Part, vocabulary: Vocabulary, *, window: int = WINDOW
) -> Iterator[Prices]:
    """Price a text character by character, in one lane from start to end, with dropout off.

    Args:
        model: the model that predicts; in evaluation mode, as ``load_model`` returns it.
        part: the text; at least 2 characters. All but the first are priced.
        vocabulary: the model's.
        window: characters given to the model at a time; the prices do not depend on it.

    Yields:
        The prices of consecutive stretches.

    Raises:
        CorpusError: the text changed while it was read.
    """
    assert not model.training
    device = model.device
    hidden = model.initial_hidden(1)
    window = _affordable(window, 1, vocabulary, device)
    for position, x_TB, y_TB in read_windows(part, vocabulary, window):
        logits_TBV, hidden = model(x_TB.to(device), hidden)
        yield window_prices(
            position, symbol_prices(logits_TBV, y_TB.to(device))[:, 0], y_TB, vocabulary
        )


@torch.no_grad()
def run_once(model: CharModel) -> None:
    """Read one character, so that timings exclude what the first pass compiles or sets up."""
    character_TB = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    model(character_TB)


def total(
    stretches: Iterable[Prices], part: Part, watchers: Sequence[Callable[[Prices], None]] = ()
) -> Scores:
    """Return the scores that the prices of a part add up to.

    Args:
        stretches: the prices in order; the time of the scores is the time spent iterating.
        part: the whole text that they cover.
        watchers: each is called with every stretch; their time does not count.

    Raises:
        CorpusError: the text changed while it was read.
    """
    predictions = part.characters - 1
    nats_N, unknown, seconds = np.zeros(_blocks(predictions)), 0, 0.0
    started = time.perf_counter()
    for stretch in stretches:
        seconds += time.perf_counter() - started
        place_T = stretch.position - 1 + np.arange(len(stretch.nats_T))  # the first has no price
        block_T = _block_of(place_T, predictions)
        nats_N += np.bincount(block_T, weights=stretch.nats_T, minlength=len(nats_N))
        unknown += stretch.unknown
        for watcher in watchers:
            watcher(stretch)
        started = time.perf_counter()
    seconds += time.perf_counter() - started
    return _scores(part, nats_N, unknown, seconds)


def read_windows(
    part: Part, vocabulary: Vocabulary, length: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield a text as windows of a single lane (B = 1): (position of the first y, x_TB, y_TB).

    Raises:
        CorpusError: the text changed while it was read.
    """
    reader = Reader(part, vocabulary)
    ids = reader.read(1)
    while True:
        position = reader.position
        ids = np.concatenate([ids[-1:], reader.read(length)])
        if len(ids) == 1:
            return
        text_TB = torch.from_numpy(ids.astype(np.int64))[:, None]
        yield position, text_TB[:-1], text_TB[1:]


def symbol_prices(logits_TBV: Tensor, y_TB: Tensor) -> Tensor:
    """Return price_TB, -ln p of the symbol at every position, in float32 or wider."""
    wide = torch.promote_types(logits_TBV.dtype, torch.float32)
    logits_NV = logits_TBV.to(wide).flatten(0, 1)
    price_N = F.cross_entropy(logits_NV, y_TB.flatten(), reduction="none")
    return price_N.view(y_TB.shape)


def window_prices(position: int, nats_T: Tensor, y_TB: Tensor, vocabulary: Vocabulary) -> Prices:
    """Return the prices of one lane's window, with the spelling of unknown characters added.

    Args:
        position: position in the text of the window's first predicted character.
        nats_T: -ln p of each symbol.
        y_TB: the symbols; B is 1.
        vocabulary: the vocabulary of the symbols.
    """
    priced_T = nats_T.detach().cpu().double().numpy()
    unknown_T = vocabulary.is_unknown(y_TB.flatten().cpu().numpy())
    priced_T = priced_T + unknown_T * vocabulary.unknown_nats
    return Prices(position, priced_T, int(unknown_T.sum()))


@dataclass(frozen=True)
class PositionScores:
    """The price of a character by the number of characters read since the zero state."""

    nats_T: NDArray[np.float64]
    """Mean price of a character predicted from 1, 2, ... characters of context."""
    stretches: int
    """Number of stretches averaged over, each read from the zero state."""


@torch.inference_mode()
def score_by_position(
    model: CharModel,
    part: Part,
    vocabulary: Vocabulary,
    length: int,
    tell: Callable[[int], None] = lambda done: None,
) -> PositionScores:
    """Score consecutive stretches of a text, each from the zero state.

    Stretches overlap by one character: the first character of a stretch is only read here,
    and priced as the last one of the stretch before.

    Args:
        model: the model that predicts; in evaluation mode.
        part: the text.
        vocabulary: the model's.
        length: predictions per stretch. A remainder at the end of the text is not scored; a
            text shorter than this makes one shorter stretch.
        tell: called from time to time with the number of characters scored so far.

    Raises:
        CorpusError: the text changed while it was read.
    """
    assert not model.training
    device = model.device
    length = min(length, part.characters - 1)
    stretches = (part.characters - 1) // length
    nats_T = np.zeros(length)
    reader = Reader(part, vocabulary)
    last = reader.read(1)
    most = min(MOST_LANES[device.type], max(1, MOST_PREDICTIONS // length))
    at_once = _affordable(WINDOW, most, vocabulary, device)
    for start in range(0, stretches, most):
        lanes = min(most, stretches - start)
        ids = np.concatenate([last, reader.read(lanes * length)]).astype(np.int64)
        last = ids[-1:]
        x_TB = torch.from_numpy(ids[:-1]).view(lanes, length).t().contiguous().to(device)
        y_TB = torch.from_numpy(ids[1:]).view(lanes, length).t().contiguous().to(device)
        hidden = model.initial_hidden(lanes)
        for first in range(0, length, at_once):
            logits_TBV, hidden = model(x_TB[first : first + at_once], hidden)
            price_TB = _wide(symbol_prices(logits_TBV, y_TB[first : first + at_once]))
            nats_T[first : first + at_once] += price_TB.sum(1).cpu().numpy()
        unknown_TB = vocabulary.is_unknown(ids[1:].reshape(lanes, length).T)
        nats_T += unknown_TB.sum(1) * vocabulary.unknown_nats
        tell((start + lanes) * length)
    return PositionScores(nats_T / stretches, stretches)


def _affordable(window: int, lanes: int, vocabulary: Vocabulary, device: torch.device) -> int:
    """Return a window whose logits fit in a device's memory."""
    return max(1, min(window, MOST_LOGITS[device.type] // (lanes * vocabulary.size)))


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on the host for Apple's GPUs, which have no float64."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()
