"""Memory: what a reset of the state costs, by the number of characters since.

Axis letters: T time, B resets, V vocabulary, K characters since a reset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from charrnn.analysis.stretch import Stretch, windows_at
from charrnn.inference.evaluation import symbol_prices
from charrnn.network.model import CharModel
from charrnn.text.vocabulary import Vocabulary

#: The longest context tried is at least this, if the text is long enough.
LONGEST = 256
#: Number of resets: what this many multiply-adds allow, within these bounds.
RESET_WORK, FEWEST_RESETS, MOST_RESETS = 2e11, 200, 2000
#: Logits held in memory at a time; and the most for one character of all lanes, with more than
#: which lanes take turns. A vocabulary of 16,000 symbols or less needs no turns.
LOGITS, LOGITS_AT_ONE = 1 << 22, 1 << 25
#: Pieces of the stretch whose means give a standard error.
BLOCKS = 20
#: Nats per character that a shorter context may cost and still count as enough.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Memory:
    """What is lost when the state is reset some characters before the one that is scored."""

    full_nats: float
    """Nats per character with the state carried on from the start of the stretch."""
    excess_nats: tuple[float, ...]
    """Additional nats per character with a context of k = 0, 1, ... characters. At k = 0 the
    head's bias alone predicts."""
    standard_error: tuple[float, ...]
    """Of each excess, from the means of ``BLOCKS`` pieces of the stretch, as neighbouring resets
    are seldom independent."""
    windows: int
    """Number of resets that each mean is over."""
    tolerance: float
    """Excess in nats per character that counts as nothing."""
    needed: int | None
    """Fewest characters of context within the tolerance; None: more than were tried. Read
    off a never-rising fit to the excess, since single values scatter."""
    needed_between: tuple[int | None, int | None]
    """The same if every excess were one standard error lower, and one higher."""
    bptt: int
    """Characters per window in the model's training."""
    reset_state: bool = False
    """Whether each training window began at the zero state."""

    @property
    def longest(self) -> int:
        """The longest context that was tried, in characters."""
        return len(self.excess_nats) - 1

    def nats(self, context: int) -> float:
        """Return the nats per character with a context of that many characters."""
        return self.full_nats + self.excess_nats[context]


@torch.inference_mode()
def memory(
    model: CharModel,
    stretch: Stretch,
    vocabulary: Vocabulary,
    *,
    bptt: int,
    reset_state: bool = False,
    farthest: int | None = None,
    resets: int | None = None,
    tolerance: float = TOLERANCE,
) -> Memory:
    """Measure the loss against the number of characters since a reset of the state.

    The state is reset at many places, spaced evenly over the stretch. The k-th character after
    a reset has a context of k characters, so reading each window once serves all k. Every price
    is compared with that of the same character under the full state: these differences are
    far less noisy than the prices.

    Args:
        model: in evaluation mode.
        stretch: the text.
        vocabulary: prices unknown characters, as in ``evaluation``.
        bptt: characters per window in the model's training.
        reset_state: whether each of these windows began at the zero state.
        farthest: the longest context; None: twice the window, at least ``LONGEST``. Less
            on a short text.
        resets: how many; None: as many as the size of the model allows. Fewer on a
            short text.
        tolerance: excess in nats per character that counts as nothing.
    """
    farthest = min(farthest or max(LONGEST, 2 * bptt), len(stretch) // 4)
    # The first character has no price, and no window starts there.
    full_T1 = _prices(model, windows_at(stretch.ids, np.array([0]), len(stretch), model))
    price_T = np.concatenate([[np.nan], full_T1[:, 0]])
    # Before a window, the full state has read at least as many characters as the window has.
    first, last = farthest, len(stretch) - 1 - farthest
    if resets is None:
        affordable = RESET_WORK / (model.multiply_adds() * farthest)
        resets = round(min(MOST_RESETS, max(FEWEST_RESETS, affordable)))
    resets = min(resets, last - first + 1)
    starts_B = np.linspace(first, last, resets).astype(np.int64)
    ids_KB = windows_at(stretch.ids, starts_B, farthest + 1, model)
    alone_1B = -F.log_softmax(model.head.bias, dim=0)[ids_KB[:1]]
    price_KB = np.concatenate([alone_1B.cpu().double().numpy(), _prices(model, ids_KB)])
    context_K = np.arange(farthest + 1)
    excess_KB = price_KB - price_T[starts_B[None] + context_K[:, None]]
    excess_K = excess_KB.mean(axis=1)
    blocks = np.array_split(excess_KB, min(BLOCKS, resets), axis=1)
    mean_KN = np.stack([block_KB.mean(axis=1) for block_KB in blocks], axis=1)
    error_K = mean_KN.std(axis=1, ddof=1) / len(blocks) ** 0.5
    unknown = float(vocabulary.is_unknown(stretch.ids[first:]).mean())
    return Memory(
        full_nats=float(price_T[first:].mean()) + unknown * vocabulary.unknown_nats,
        excess_nats=tuple(excess_K.tolist()),
        standard_error=tuple(error_K.tolist()),
        windows=resets,
        tolerance=tolerance,
        needed=_needed(excess_K, tolerance),
        needed_between=(
            _needed(excess_K - error_K, tolerance),
            _needed(excess_K + error_K, tolerance),
        ),
        bptt=bptt,
        reset_state=reset_state,
    )


def _prices(model: CharModel, ids_TB: Tensor) -> NDArray[np.float64]:
    """Return -ln p of every symbol [T, B] but the first, read from the zero state on."""
    lanes = ids_TB.shape[1]
    most = max(1, LOGITS_AT_ONE // model.config.vocabulary)
    if lanes > most:
        return np.concatenate([_prices(model, some_TB) for some_TB in ids_TB.split(most, 1)], 1)
    hidden = model.initial_hidden(lanes)
    at_once = max(1, LOGITS // (lanes * model.config.vocabulary))
    prices = []
    for start in range(0, len(ids_TB) - 1, at_once):
        x_TB, y_TB = ids_TB[start:-1][:at_once], ids_TB[start + 1 :][:at_once]
        logits_TBV, hidden = model(x_TB, hidden)
        prices.append(symbol_prices(logits_TBV, y_TB))
    found: NDArray[np.float64] = torch.cat(prices).cpu().double().numpy()
    return found


def _needed(excess_K: NDArray[np.float64], tolerance: float) -> int | None:
    """Return the fewest characters of context within a tolerance; None: more than were tried.

    Without context the head's bias alone predicts. That may be better than the state after a few
    characters, but counts as enough only if one character of context is enough too.
    """
    enough_K = _never_rising(excess_K[1:]) <= tolerance
    if not enough_K.any():
        return None
    needed = int(enough_K.argmax()) + 1
    return 0 if needed == 1 and excess_K[0] <= tolerance else needed


def _never_rising(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the least-squares fit that never rises (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []  # mean and length of each flat piece
    for value in values.tolist():
        mean, length = value, 1
        while pools and pools[-1][0] < mean:
            before, more = pools.pop()
            mean = (before * more + mean * length) / (more + length)
            length += more
        pools.append((mean, length))
    return np.concatenate([np.full(length, mean) for mean, length in pools])
