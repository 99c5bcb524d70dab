"""Gradient flow: the size of the gradient of one character's loss, by how far back it reaches.

Layers are counted from 1. Axis letters: B places of the text, H hidden, K characters back,
L layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from charrnn.analysis.stretch import Stretch, warmed, windows_at
from charrnn.analysis.unrolled import unroll_model
from charrnn.config import ModelConfig, WeightsOrigin
from charrnn.errors import UsageError
from charrnn.inference.evaluation import WARM_UP
from charrnn.network.cells import RNN, Cell
from charrnn.network.model import CharModel

#: The farthest lag.
FARTHEST = 256
#: Places of the text whose gradient is followed back, and how many at a time.
PLACES, PLACES_AT_ONCE = 256, 32


@dataclass(frozen=True)
class Reach:
    """How the gradient of one character's loss fades along one layer's state."""

    layer: int
    state: str
    """``h``; ``c``: an LSTM's memory; ``linear``: the textbook picture of a plain RNN, where
    the gradient at lag 0 passes through the recurrent matrix alone, k times, as if tanh were
    linear and there were no layer above; ``forget``, ``update``: see ``GradientFlow.direct``."""
    size: float
    """Mean of ``|d loss(t) / d state(t)|``, the Euclidean norm over the units."""
    relative: tuple[float, ...]
    """Mean of ``|d loss(t) / d state(t-k)|`` as a share of ``size``, for k = 0 ... ``farthest``."""
    median: tuple[float, ...]
    """Median over the places, each relative to its own size at k = 0; NaN if no place has a
    gradient there. At a far lag a few places can make up most of the mean, but not the median."""
    halves_at: int | None
    """The first lag from which the mean stays below a half; None: not even at the last."""
    under_1_percent_at: int | None
    """The same for 1 %."""
    median_halves_at: int | None
    """As ``halves_at``, for the median."""
    median_under_1_percent_at: int | None
    """As ``under_1_percent_at``, for the median."""

    @property
    def farthest(self) -> int:
        """The farthest lag."""
        return len(self.relative) - 1


@dataclass(frozen=True)
class GradientFlow:
    """Gradient flow of a model with trained or initial weights."""

    weights: WeightsOrigin
    scaled_to: float | None
    """Spectral radius that the recurrent matrices were scaled to; None: as they are."""
    spectral_radii: tuple[tuple[float, ...], ...]
    """Largest absolute eigenvalue of each layer's recurrent matrices, one per gate."""
    tanh_slopes: tuple[float | None, ...]
    """Root mean square of tanh' = 1 - h² over units and steps, for each layer of a plain RNN;
    None for other cells. One step back scales a gradient of random direction by the matrix's
    factor times this."""
    places: int
    """Number of characters t whose loss was followed back."""
    reaches: tuple[Reach, ...]
    direct: tuple[Reach, ...] = ()
    """For each layer whose state a gate keeps (an LSTM's c, a GRU's h): the gradient at lag 0 times
    the gate's values at the k steps, unit by unit, which is the share of the path without a matrix.
    ``state`` is the gate's name."""

    @property
    def rows(self) -> list[Reach]:
        """Everything that was measured, layer by layer."""
        return sorted((*self.reaches, *self.direct), key=lambda reach: reach.layer)


def initial_model(config: ModelConfig, seed: int) -> CharModel:
    """Return a model as training with this seed starts it; torch's generators are not changed."""
    with torch.random.fork_rng(devices=[]):  # the model is made on the CPU
        torch.default_generator.manual_seed(seed)  # torch.manual_seed() would seed a GPU's, too
        return CharModel(config).eval()


def with_spectral_radius(model: CharModel, radius: float) -> CharModel:
    """Return a copy in which every gate's recurrent matrix has this spectral radius.

    Raises:
        UsageError: one of them has a radius of zero.
    """
    scaled = copy.deepcopy(model)
    for cell in scaled.layers():
        blocks = cell.weight_recurrent.detach().chunk(cell.gates)
        for block_HH, was in zip(blocks, _spectral_radii(cell), strict=True):
            if not was:
                raise UsageError(
                    f"--spectral-radius {radius:g}: a recurrent matrix has a radius of 0, which no "
                    "factor changes"
                )
            block_HH.mul_(radius / was)
    return scaled


def _spectral_radii(cell: Cell) -> tuple[float, ...]:
    blocks = cell.weight_recurrent.detach().cpu().double().chunk(cell.gates)
    return tuple(float(torch.linalg.eigvals(block_HH).abs().max()) for block_HH in blocks)


def gradient_flow(
    model: CharModel,
    stretch: Stretch,
    *,
    weights: WeightsOrigin = "trained",
    scaled_to: float | None = None,
    farthest: int = FARTHEST,
    places: int = PLACES,
) -> GradientFlow:
    """Measure the size of ``d loss(t) / d state(t-k)`` for k = 0 ... ``farthest``, over many t.

    These are total derivatives by backpropagation through time, untruncated up to the
    farthest lag: all paths from a layer's state at t-k to the loss at t count, including those
    through the layers above. An LSTM's two states count as independent variables: the
    derivative by h at t-k holds c at t-k fixed; that by c includes the paths through h.

    Args:
        model: in evaluation mode.
        stretch: the text from which the characters t are taken, evenly spaced.
        weights: where the model's weights come from, for the record.
        scaled_to: measure a copy with recurrent matrices of this spectral radius.
        farthest: the largest lag; less on a short text.
        places: how many t; fewer on a short text.

    Raises:
        UsageError: a matrix cannot be scaled.
    """
    if scaled_to is not None:
        model = with_spectral_radius(model, scaled_to)
    farthest = min(farthest, len(stretch) // 4)
    first = farthest + min(WARM_UP, len(stretch) // 4)
    last = len(stretch) - 2  # its loss is the price of the character after it
    at_B = np.linspace(first, last, min(places, last - first + 1)).astype(np.int64)
    sizes: dict[tuple[int, str], list[NDArray[np.float64]]] = {}
    slopes: list[NDArray[np.float64]] = []
    for start in range(0, len(at_B), PLACES_AT_ONCE):
        some_B = at_B[start : start + PLACES_AT_ONCE]
        found, squares_L = _follow(model, stretch, some_B, farthest)
        for name, size_KB in found.items():
            sizes.setdefault(name, []).append(size_KB.numpy())
        slopes.append(squares_L * len(some_B) / len(at_B))
    slope_L = np.sqrt(np.sum(slopes, axis=0))
    keepers = {gate for cell in model.layers() for gate in cell.keepers.values()}
    measured = [
        _reach(layer, state, np.concatenate(parts, axis=1))
        for (layer, state), parts in sizes.items()
    ]
    return GradientFlow(
        weights=weights,
        scaled_to=scaled_to,
        spectral_radii=tuple(_spectral_radii(cell) for cell in model.layers()),
        tanh_slopes=tuple(None if math.isnan(slope) else float(slope) for slope in slope_L),
        places=len(at_B),
        reaches=tuple(reach for reach in measured if reach.state not in keepers),
        direct=tuple(reach for reach in measured if reach.state in keepers),
    )


def _follow(
    model: CharModel, stretch: Stretch, at_B: NDArray[np.int64], farthest: int
) -> tuple[dict[tuple[int, str], Tensor], NDArray[np.float64]]:
    """Return (layer, state) -> norms [K, B] of the gradient at t-k, for the t in ``at_B``.

    Also return each layer's mean square of 1 - h² over the same steps; NaN unless a plain RNN's.

    The windows that end at these places form one batch; since lanes do not affect each
    other, one backward pass from the sum of their last losses serves them all.
    """
    warm_up = min(WARM_UP, int(at_B.min()) - farthest)
    ids_TB = windows_at(stretch.ids, at_B - farthest - warm_up, warm_up + farthest + 2, model)
    hidden = warmed(model, ids_TB[:warm_up])
    # Make autograd follow the states even if no weight requires a gradient.
    hidden = tuple(tuple(s.requires_grad_() for s in state) for state in hidden)
    layers = unroll_model(model, ids_TB[warm_up:-1], hidden)
    logits_BV = model.head(layers[-1].states["h"][-1])
    loss = F.cross_entropy(logits_BV, ids_TB[-1], reduction="sum")
    states = {
        (number, name): steps
        for number, layer in enumerate(layers, start=1)
        for name, steps in layer.states.items()
    }
    nodes = [node for steps in states.values() for node in steps]
    gradients = torch.autograd.grad(loss, nodes)
    lags = farthest + 1
    sizes = {}
    for (number, name), i in zip(states, range(0, len(nodes), lags), strict=True):
        back = gradients[i : i + lags][::-1]
        sizes[number, name] = _norms(back)
        cell = model.layers()[number - 1]
        if isinstance(cell, RNN):
            sizes[number, "linear"] = _norms(_through_matrix(back[0], cell, farthest))
        if gate := cell.keepers.get(name):
            sizes[number, gate] = _norms(_through_gate(back[0], layers[number - 1].gates[gate]))
    squares = [
        _square_slope(layer.states["h"]) if isinstance(cell, RNN) else math.nan
        for cell, layer in zip(model.layers(), layers, strict=True)
    ]
    return sizes, np.array(squares)


def _square_slope(steps: Sequence[Tensor]) -> float:
    """Return the mean square of 1 - h², which is tanh' where h is a tanh."""
    return float((1 - torch.stack(list(steps)).detach().cpu().double() ** 2).square().mean())


def _norms(gradients: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norms [K, B] of gradients [B, H]."""
    return torch.stack([g_BH.cpu().double().norm(dim=1) for g_BH in gradients])


def _through_matrix(g_BH: Tensor, cell: Cell, farthest: int) -> list[Tensor]:
    """Return a gradient after 0, 1, ... passes backwards through the recurrent matrix alone."""
    matrix_HH = cell.weight_recurrent.detach().cpu().double()
    passed = [g_BH.cpu().double()]
    for _ in range(farthest):
        passed.append(passed[-1] @ matrix_HH)
    return passed


def _through_gate(g_BH: Tensor, gate: Sequence[Tensor]) -> list[Tensor]:
    """Return a gradient after 0, 1, ... passes backwards through the last values [B, H] of a gate.

    The first of the values leads to a state before all of these.
    """
    passed = [g_BH.cpu().double()]
    for value_BH in gate[:0:-1]:
        passed.append(passed[-1] * value_BH.detach().cpu().double())
    return passed


def _reach(layer: int, state: str, size_KB: NDArray[np.float64]) -> Reach:
    size_K = size_KB.mean(axis=1)
    share_KB = size_KB[:, size_KB[0] > 0]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        relative_K = size_K / size_K[0]
        share_KB = share_KB / share_KB[0]
    none = not share_KB.size
    median_K = np.full(len(size_K), np.nan) if none else np.median(share_KB, axis=1)
    return Reach(
        layer=layer,
        state=state,
        size=float(size_K[0]),
        relative=tuple(relative_K.tolist()),
        median=tuple(median_K.tolist()),
        halves_at=_from_which_on(relative_K < 0.5),
        under_1_percent_at=_from_which_on(relative_K < 0.01),
        median_halves_at=_from_which_on(median_K < 0.5),
        median_under_1_percent_at=_from_which_on(median_K < 0.01),
    )


def _from_which_on(holds_K: NDArray[np.bool_]) -> int | None:
    """Return the first index from which something holds to the end; None: not even at the last."""
    first = int(np.flatnonzero(~holds_K).max(initial=-1)) + 1
    return first if first < len(holds_K) else None
