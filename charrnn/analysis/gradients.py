"""What truncation and clipping do to a gradient: direction, size, time and memory.

Training never sees the gradient of a whole text. It sees one window at a time, with the
state carried into it as a constant (``update``), and clips a gradient that is too large.
Here the full gradient of a stretch is computed too, by backpropagation through all of its
time steps, and compared with what training makes of it.

The head's gradient passes through no time step and is the same whatever the window, so the
comparison of windows leaves it out: it covers the embedding and all cells' weights.

Axis letters: T time, B lanes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.analysis.stretch import warmed, windows_at
from charrnn.compute.device import synchronise
from charrnn.config import WeightsOrigin
from charrnn.errors import UsageError
from charrnn.network.model import CharModel, Hidden
from charrnn.network.update import clip, window_loss

#: Places of the text read side by side.
LANES = 8
#: Predictions per lane whose loss counts: the full gradient keeps them all in memory.
LONGEST = 1024
#: How often a gradient is computed to time it; the fastest counts.
REPEATS = 3
#: Shares of its own norm that a gradient is clipped to.
SHARES = (0.5, 0.1, 0.01)


@dataclass(frozen=True)
class Window:
    """A gradient computed in windows of one length, compared with the full gradient."""

    bptt: int
    """T, characters per window."""
    loss_last: int | None
    """Only the last N predictions of each window count, and windows advance by N; None: all."""
    angle: float
    """Degrees between the sum of the windows' gradients and the full gradient."""
    size: float
    """Norm of the sum, as a share of the full gradient's."""
    seconds_per_character: float
    """Forward and backward pass, per prediction whose loss counts. The full gradient is timed over
    these predictions alone, without the steps that the measurement adds before them."""
    bytes: int
    """Memory kept for the backward pass of one window in all lanes, without the weights."""


@dataclass(frozen=True)
class Truncation:
    """What windows make of the gradient of a model with trained or initial weights."""

    weights: WeightsOrigin
    lanes: int
    characters: int
    """Number of predictions in all lanes whose loss counts."""
    full: Window
    """All time steps at once."""
    between_halves: float
    """Degrees between the full gradients of the two halves of the lanes: how much another piece
    of the same text changes."""
    windows: tuple[Window, ...]


def truncation(
    model: CharModel,
    ids: NDArray[np.int64],
    windows: Sequence[int] = (),
    *,
    loss_last: int | None = None,
    weights: WeightsOrigin = "trained",
    longest: int = LONGEST,
) -> Truncation:
    """Compare the gradient by windows, as training computes it, with the full gradient.

    Both are over the same predictions, with the same weights. Each window starts from the
    state that the text before it leaves, so only the gradient is truncated and the losses are
    equal. The predictions start as far into a lane as the longest window is long, if the text
    allows it: otherwise the first window of each lane would have nothing to truncate.

    Args:
        model: in evaluation mode.
        ids: the text's symbols, [T].
        windows: lengths to compare; none: powers of 2.
        loss_last: count the loss on the last N characters of each window only.
        weights: where the model's weights come from, for the record.
        longest: most predictions per lane whose loss counts, unless a window is longer.

    Raises:
        UsageError: the text is too short for a window.
    """
    length = (len(ids) - 1) // LANES
    compared = _windows(windows, length, loss_last, longest)
    # Skip what any window reads before the first prediction that counts; then up to as much as the
    # longest window again, so that there is something to truncate.
    most = max((T for T, _ in compared), default=1)
    skipped = max((T - last for T, last in compared), default=0)
    skipped += min(most, max(0, length - skipped - most))
    counted = min(max(longest, most), length - skipped)
    x_TB, y_TB = _lanes(model, ids, skipped + counted)

    def gradient(bptt: int, last: int, lanes: slice = slice(None)) -> Callable[[], Tensor]:
        """Return what computes the gradient of the predictions that count, by windows."""
        before = warmed(model, x_TB[: skipped + last - bptt, lanes])  # not timed
        read = x_TB[:, lanes], y_TB[:, lanes]
        return partial(_by_windows, model, *read, before, skipped, bptt, last)

    def measured(bptt: int, last: int, found: Tensor, seconds: float) -> Window:
        return Window(
            bptt=bptt,
            loss_last=last if last < bptt else None,
            angle=_degrees(found, full),
            size=float(found.norm() / full.norm()),
            seconds_per_character=seconds / (counted * LANES),
            bytes=_kept(model, x_TB[:bptt], y_TB[:bptt], last),
        )

    at_once = (skipped + counted, counted)  # a window of all time steps; what counts
    full = gradient(*at_once)()
    _, seconds = _timed(gradient(counted, counted), model)
    halves = (slice(0, LANES // 2), slice(LANES // 2, LANES))
    return Truncation(
        weights=weights,
        lanes=LANES,
        characters=counted * LANES,
        full=measured(*at_once, full, seconds),
        between_halves=_degrees(*(gradient(*at_once, half)() for half in halves)),
        windows=tuple(measured(T, last, *_timed(gradient(T, last), model)) for T, last in compared),
    )


def _windows(
    wished: Sequence[int], length: int, loss_last: int | None, longest: int
) -> list[tuple[int, int]]:
    """Return the windows to compare on a lane: how long each is, and how much of its end counts.

    Arguments are those of ``truncation``, and the lane's length.
    """
    if max(wished, default=1) > length:
        raise UsageError(
            f"--bptt {max(wished)} is longer than what is inspected: {LANES} lanes of {length:,} "
            f"characters; it takes a text, and --characters, of {LANES * max(wished) + 1:,}"
        )
    lengths = wished or _powers(min(longest, length), loss_last or 0)
    if loss_last and not lengths:
        raise UsageError(
            f"--loss-last {loss_last} does not fit any window of the inspected text, {LANES} "
            f"lanes of {length:,} characters: give a smaller one, or a window with --bptt"
        )
    return [(T, loss_last or T) for T in lengths]


def _powers(length: int, last: int) -> list[int]:
    """Return the powers of 2 to compare on a lane, no shorter than ``last``.

    A window of T skips T - ``last`` predictions and leaves at least T to count.
    """
    powers = (1 << n for n in range(length.bit_length()))
    return [T for T in powers if last <= T and 2 * T - last <= length]


def _lanes(model: CharModel, ids: NDArray[np.int64], length: int) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets [length, B] of lanes spaced evenly over the text."""
    starts_B = (len(ids) - 1) // LANES * np.arange(LANES)
    ids_TB = windows_at(ids, starts_B, length + 1, model)
    return ids_TB[:-1], ids_TB[1:]


def _by_windows(
    model: CharModel,
    x_TB: Tensor,
    y_TB: Tensor,
    hidden: Hidden,
    skipped: int,
    bptt: int,
    last: int,
    *,
    head: bool = False,
) -> Tensor:
    """Return the gradient of the mean loss from ``skipped`` on, added up window by window.

    The first window starts from the state ``hidden`` and ends ``last`` predictions after
    ``skipped``; each window ends ``last`` after the one before and counts its final ``last``
    predictions. The last window is as short as what remains.
    """
    length = len(x_TB)
    named = model.named_parameters()
    weights = [weight for name, weight in named if head or not name.startswith("head.")]
    total = [torch.zeros_like(weight) for weight in weights]
    start = skipped + last - bptt
    while start + bptt - last < length:
        window = slice(start, min(start + bptt, length))
        counted = window.stop - (start + bptt - last)
        loss, hidden = window_loss(model, x_TB[window], y_TB[window], hidden, counted)
        gradient = torch.autograd.grad(loss * (counted / (length - skipped)), weights)
        torch._foreach_add_(total, gradient)
        start += last
    return torch.cat([part.flatten() for part in total])


def _degrees(one: Tensor, other: Tensor) -> float:
    """Return the angle between two vectors, accurate for small angles too, unlike a cosine."""
    one, other = one.cpu().double(), other.cpu().double()
    one, other = one / one.norm(), other / other.norm()
    return math.degrees(2 * math.atan2(float((one - other).norm()), float((one + other).norm())))


def _timed(work: Callable[[], Tensor], model: CharModel) -> tuple[Tensor, float]:
    """Return a call's result and its shortest time in seconds."""
    took = []
    for _ in range(REPEATS):
        synchronise(model.device)
        started = time.perf_counter()
        result = work()
        synchronise(model.device)
        took.append(time.perf_counter() - started)
    return result, min(took)


def _kept(model: CharModel, x_TB: Tensor, y_TB: Tensor, counted: int) -> int:
    """Return the bytes that autograd keeps between the forward and backward pass of a window."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    biases = {cell.bias.shape for cell in model.layers()}
    kept: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        # On CUDA a cell's weights are copied into one flat tensor (``Cell._run_torch``). A float
        # vector with a bias's shape can only be a view of it.
        if saved.is_floating_point() and saved.shape in biases:
            weights.add(storage.data_ptr())
        return saved

    hidden = model.initial_hidden(x_TB.shape[1])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        # While the loss is alive, so is everything saved, and no address is used twice.
        loss, _ = window_loss(model, x_TB, y_TB, hidden, counted)
    del loss
    return sum(size for at, size in kept.items() if at not in weights)


# Clipping ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """A gradient clipped by its norm, and by the values of its entries."""

    weights: WeightsOrigin
    share: float
    """Norm after clipping, as a share of the norm before."""
    by_norm: float
    """Degrees between the gradient before and after it is scaled down as a whole."""
    value: float
    """The limit on the size of entries that leaves the same norm."""
    by_value: float
    """Degrees between the gradient before and after its entries are cut to that limit."""


def cuts(
    model: CharModel,
    ids: NDArray[np.int64],
    bptt: int,
    *,
    weights: WeightsOrigin = "trained",
) -> tuple[Cut, ...]:
    """Measure how far clipping turns a gradient, by norm and by value to the same norm.

    The gradient is that of all weights, as training clips it, over one window per lane. The
    state before the window is warmed up on as many characters, if the text has them.

    Args:
        model: in evaluation mode.
        ids: the text's symbols, [T].
        bptt: the window; less on a short text.
        weights: where the model's weights come from, for the record.
    """
    length = (len(ids) - 1) // LANES
    bptt = min(bptt, length)
    before = min(bptt, length - bptt)
    x_TB, y_TB = _lanes(model, ids, before + bptt)
    hidden = warmed(model, x_TB[:before])
    gradient = _by_windows(model, x_TB, y_TB, hidden, before, bptt, bptt, head=True)
    return tuple(_cut(gradient, share, weights) for share in SHARES)


def _cut(gradient: Tensor, share: float, weights: WeightsOrigin) -> Cut:
    norm = float(gradient.norm())
    low, high = 0.0, float(gradient.abs().max())
    # The norm grows with the limit: bisect for the limit that gives the wanted norm.
    for _ in range(60):
        value = (low + high) / 2
        too_small = float(gradient.clamp(-value, value).norm()) < share * norm
        low, high = (value, high) if too_small else (low, value)
    scaled, entries = gradient.clone(), gradient.clone()
    clip([scaled], share * norm, None)
    clip([entries], None, high)
    return Cut(weights, share, _degrees(scaled, gradient), high, _degrees(entries, gradient))
