"""What the recurrence of a model does on a text, measured.

The measurements of a model on a stretch of text, and that of its training's log:

- the step: the printed equations in plain numbers, against the model (``equations``);
- gradient flow: how far back the loss of one character reaches, by size;
- memory: what a reset of the state costs, by the number of characters since;
- pace: how slowly the states change, and what gates keep of one;
- gates: how often each is nearly open or nearly closed;
- units: which of them follow a property that a reader sees;
- clipping: the gradient norms of a training's log, and how far a cut turns a gradient
  (``gradients``);
- truncation: what windows make of the full gradient (``gradients``).

The library's cells do not show their gates, nor their states to autograd. So the
recurrence is written out here step by step, with the model's own weights (``unroll``).

Layers and units are counted from 1. Axis letters: T time, B lanes, V vocabulary,
H hidden, G gates, K characters back, P properties.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from charrnn.cells import GRU, LSTM, RNN, Cell, State
from charrnn.config import InspectConfig, ModelConfig
from charrnn.corpus import Part
from charrnn.equations import Step, write_out
from charrnn.errors import CorpusError, UsageError
from charrnn.evaluation import symbol_prices
from charrnn.gradients import Clipping, Cut, Truncation, cuts, truncation
from charrnn.model import CharModel, Hidden, detach
from charrnn.properties import PROPERTIES
from charrnn.vocabulary import UNKNOWN, Vocabulary

__all__ = [
    "Activation",
    "GateUse",
    "GradientFlow",
    "Inspection",
    "Memory",
    "Pace",
    "Reach",
    "Stretch",
    "Unit",
    "UnitFound",
    "Unrolled",
    "activation",
    "gate_use",
    "gradient_flow",
    "initial_model",
    "inspect",
    "memory",
    "pace",
    "read_stretch",
    "units",
    "unroll",
    "unroll_model",
    "with_spectral_radius",
]

#: Names of the gates whose values lie between 0 and 1, in the order of the weights' blocks.
GATES: dict[type[Cell], tuple[str, ...]] = {
    RNN: (),
    LSTM: ("input", "forget", "output"),
    GRU: ("reset", "update"),
}

#: The gate that a state is multiplied by on its way to the next step, unit by unit.
KEEPERS: dict[type[Cell], dict[str, str]] = {
    RNN: {},
    LSTM: {"c": "forget"},
    GRU: {"h": "update"},
}

#: Fewest characters that can be inspected.
LEAST_CHARACTERS = 100
#: Characters read before anything is measured, so that the state is a usual one.
WARM_UP = 256
#: Lags of the gradient flow, and the least number of characters of context for the memory.
FARTHEST = 256
#: Places of the text whose gradient is followed back, and how many at a time.
PLACES, PLACES_AT_ONCE = 128, 32
#: Resets of the state: as many as make this many multiply-adds, within the bounds.
RESET_WORK, FEWEST_RESETS, MOST_RESETS = 2e11, 200, 2000
#: Stretches that are read side by side for gates and units.
LANES = 8
#: Time steps whose states and gates are held at a time.
BLOCK = 64
#: Steps in a row over which the values of such a gate are multiplied.
KEPT_OVER = 10
#: Logits that are held at a time.
LOGITS = 1 << 22
#: Characters whose activation is shown.
SHOWN = 1000
#: Window of the gradient that is cut, where a checkpoint does not say its own.
CUT = 128

#: A gate is nearly open above, nearly closed below (Karpathy, Johnson, Fei-Fei 2015, 4.2).
NEARLY_OPEN, NEARLY_CLOSED = 0.9, 0.1
#: Nats per character that a context may cost and still count as enough.
TOLERANCE = 0.01


# The recurrence, step by step ---------------------------------------------------


@dataclass(frozen=True)
class Unrolled:
    """One layer over T time steps, each step's tensors a node of the graph of its own."""

    states: dict[str, list[Tensor]]
    """State name -> [B, H] after each step."""
    gates: dict[str, list[Tensor]]
    """Gate name -> [B, H] at each step."""

    def last(self) -> State:
        """Return the state after the last step."""
        return tuple(steps[-1] for steps in self.states.values())


def unroll(cell: Cell, x_TBE: Tensor, state: State) -> Unrolled:
    """Run a cell as its equations are printed (see ``charrnn.cells``), step by step.

    Weight drop does not act: this is the cell as it is used, not as it is trained.

    Args:
        cell: one layer.
        x_TBE: what it reads [T, B, E].
        state: before the first step, each part [B, H].
    """
    names = GATES[type(cell)]
    states: dict[str, list[Tensor]] = {name: [] for name in cell.states}
    gates: dict[str, list[Tensor]] = {name: [] for name in names}
    for input_BG in F.linear(x_TBE, cell.weight_input, cell.bias).unbind():
        state, values = _step(cell, input_BG, state)
        for name, after_BH in zip(cell.states, state, strict=True):
            states[name].append(after_BH)
        for name, value_BH in zip(names, values, strict=True):
            gates[name].append(value_BH)
    return Unrolled(states, gates)


def _step(cell: Cell, input_BG: Tensor, state: State) -> tuple[State, tuple[Tensor, ...]]:
    """Return the state after one step, and the values of the cell's gates."""
    h_BH = state[0]
    recurrent_BG = h_BH @ cell.weight_recurrent.t()
    if isinstance(cell, LSTM):
        i, f, g, o = (input_BG + recurrent_BG).chunk(4, dim=1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c_BH = f * state[1] + i * g
        return (o * c_BH.tanh(), c_BH), (i, f, o)
    if isinstance(cell, GRU):
        (wx_r, wx_z, wx_n), (uh_r, uh_z, uh_n) = input_BG.chunk(3, 1), recurrent_BG.chunk(3, 1)
        r, z = (wx_r + uh_r).sigmoid(), (wx_z + uh_z).sigmoid()
        n = (wx_n + r * (uh_n + cell.bias_recurrent)).tanh()
        return ((1 - z) * n + z * h_BH,), (r, z)
    return ((input_BG + recurrent_BG).tanh(),), ()


def unroll_model(model: CharModel, x_TB: Tensor, hidden: Hidden) -> tuple[Unrolled, ...]:
    """Do what ``model(x_TB, hidden)`` does in evaluation, up to the head, step by step.

    Args:
        model: dropout and weight drop do not act.
        x_TB: symbols [T, B].
        hidden: of every layer, before the first step, each part [B, H].

    Returns:
        Every layer unrolled. The logits at t are the head of the last one's h at t.
    """
    out_TBH: Tensor = model.embedding(x_TB)
    layers = []
    for cell, state in zip(model.layers(), hidden, strict=True):
        layers.append(unroll(cell, out_TBH, state))
        out_TBH = torch.stack(layers[-1].states["h"])
    return tuple(layers)


# The text ------------------------------------------------------------------------


@dataclass(frozen=True)
class Stretch:
    """The text that is looked at, in memory."""

    text: str
    """A character a symbol; a byte that is not ASCII stands as U+FFFD."""
    ids: NDArray[np.int64]
    """The same as the model's symbols."""

    def __len__(self) -> int:
        return len(self.ids)


def read_stretch(part: Part, vocabulary: Vocabulary) -> Stretch:
    """Read a part of a text, all of it.

    Raises:
        CorpusError: it has fewer than ``LEAST_CHARACTERS`` characters, or changed.
    """
    if part.characters < LEAST_CHARACTERS:
        raise CorpusError(
            f"{part.characters} characters are too few to inspect: give a text, and --characters, "
            f"of at least {LEAST_CHARACTERS}"
        )
    codes = np.concatenate([block.astype(np.uint32) for block in part.codes()])
    if vocabulary.is_bytes:
        text = codes.astype(np.uint8).tobytes().decode("ascii", "replace")
        return Stretch(text, codes.astype(np.int64))
    text = codes.astype("<u4").tobytes().decode("utf-32-le")
    return Stretch(text, vocabulary.encode_codes(codes).astype(np.int64))


# Gradient flow ---------------------------------------------------------------------


@dataclass(frozen=True)
class Reach:
    """How the gradient of one character's loss fades along one layer's state."""

    layer: int
    state: str
    """``h``; ``c``: the memory of an LSTM; ``linear``: the textbook's picture of a plain RNN,
    where the gradient at lag 0 passes through the recurrent matrix alone, k times, as if
    tanh were a straight line and no layer lay above."""
    size: float
    """Mean of ``|d loss(t) / d state(t)|``, the Euclidean norm over the units."""
    relative: tuple[float, ...]
    """Mean of ``|d loss(t) / d state(t-k)|`` over that, for k = 0, 1, ..., the farthest lag."""
    halves_at: int | None
    """First lag at which less than half is left; None: none of them."""
    under_1_percent_at: int | None
    """First lag at which less than 1 % is left; None: none of them."""

    @property
    def farthest(self) -> int:
        """The farthest lag."""
        return len(self.relative) - 1


@dataclass(frozen=True)
class GradientFlow:
    """Gradient flow of a model with some weights."""

    weights: Literal["trained", "initial"]
    scaled_to: float | None
    """Spectral radius that the recurrent matrices were scaled to; None: as they are."""
    spectral_radii: tuple[tuple[float, ...], ...]
    """Largest absolute eigenvalue of each layer's recurrent matrices, one a gate's block."""
    places: int
    """Characters t whose loss was followed back."""
    reaches: tuple[Reach, ...]


def initial_model(config: ModelConfig, seed: int) -> CharModel:
    """Return a model as a training with this seed begins it; torch's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):  # it is made on the CPU
        torch.manual_seed(seed)
        return CharModel(config).eval()


def with_spectral_radius(model: CharModel, radius: float) -> CharModel:
    """Return a copy whose recurrent matrices, each gate's block, have this spectral radius."""
    scaled = copy.deepcopy(model)
    for cell in scaled.layers():
        blocks = cell.weight_recurrent.detach().chunk(cell.gates)
        for block_HH, was in zip(blocks, _spectral_radii(cell), strict=True):
            block_HH.mul_(radius / was)
    return scaled


def _spectral_radii(cell: Cell) -> tuple[float, ...]:
    blocks = cell.weight_recurrent.detach().cpu().double().chunk(cell.gates)
    return tuple(float(torch.linalg.eigvals(block_HH).abs().max()) for block_HH in blocks)


def gradient_flow(
    model: CharModel,
    stretch: Stretch,
    *,
    weights: Literal["trained", "initial"] = "trained",
    scaled_to: float | None = None,
    farthest: int = FARTHEST,
    places: int = PLACES,
) -> GradientFlow:
    """Measure ``d loss(t) / d state(t-k)`` for k = 0 ... ``farthest``, means over many t.

    These are total derivatives by backpropagation through time, untruncated up to the
    farthest lag: all ways from a layer's state at t-k to the loss at t count, those through
    the layers above too. An LSTM's two states count as independent variables: the way
    from h to the loss does not include the memory before it, that from c includes all.

    Args:
        model: dropout does not act.
        stretch: where the characters t are taken from, evenly.
        weights: what the model's weights are, for the record.
        scaled_to: measure a copy with recurrent matrices of this spectral radius.
        farthest: the largest lag; less on a short text.
        places: how many t; fewer on a short text.
    """
    if scaled_to is not None:
        model = with_spectral_radius(model, scaled_to)
    farthest = min(farthest, len(stretch) // 4)
    first = farthest + min(WARM_UP, len(stretch) // 4)
    last = len(stretch) - 2  # its loss is the price of the character after it
    at_B = np.unique(np.linspace(first, last, min(places, last - first + 1)).astype(np.int64))
    sizes: dict[tuple[int, str], NDArray[np.float64]] = {}
    for start in range(0, len(at_B), PLACES_AT_ONCE):
        for name, size_KB in _gradient_sizes(
            model, stretch, at_B[start : start + PLACES_AT_ONCE], farthest
        ).items():
            sizes[name] = sizes.get(name, 0) + size_KB.sum(dim=1).numpy() / len(at_B)
    return GradientFlow(
        weights=weights,
        scaled_to=scaled_to,
        spectral_radii=tuple(_spectral_radii(cell) for cell in model.layers()),
        places=len(at_B),
        reaches=tuple(_reach(layer, state, size_K) for (layer, state), size_K in sizes.items()),
    )


def _gradient_sizes(
    model: CharModel, stretch: Stretch, at_B: NDArray[np.int64], farthest: int
) -> dict[tuple[int, str], Tensor]:
    """Return (layer from 0, state) -> norms [K, B] of the gradient at t-k, t = ``at_B``.

    The windows that end at the places are lanes of one batch; since lanes do not touch
    each other, one backward pass from the sum of their last losses serves them all.
    """
    warm_up = min(WARM_UP, int(at_B.min()) - farthest)
    ids_TB = _windows(stretch, at_B - farthest - warm_up, warm_up + farthest + 2, model)
    hidden = _warmed(model, ids_TB[:warm_up])
    # Whatever the weights require: the states are to be followed.
    hidden = tuple(tuple(s.requires_grad_() for s in state) for state in hidden)
    with torch.enable_grad():
        layers = unroll_model(model, ids_TB[warm_up:-1], hidden)
        logits_BV = model.head(layers[-1].states["h"][-1])
        loss = F.cross_entropy(logits_BV, ids_TB[-1], reduction="sum")
        names = [(number, name) for number, layer in enumerate(layers) for name in layer.states]
        nodes = [node for number, name in names for node in layers[number].states[name]]
        gradients = torch.autograd.grad(loss, nodes)
    steps = farthest + 1
    sizes = {}
    for (number, name), i in zip(names, range(0, len(nodes), steps), strict=True):
        back = [g.detach() for g in reversed(gradients[i : i + steps])]
        sizes[number, name] = _norms(back)
        cell = model.layers()[number]
        if isinstance(cell, RNN):
            sizes[number, "linear"] = _norms(_through_matrix(back[0], cell, farthest))
    return sizes


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


def _reach(layer: int, state: str, size_K: NDArray[np.float64]) -> Reach:
    with np.errstate(invalid="ignore"):
        relative_K = size_K / size_K[0]
    return Reach(
        layer=layer + 1,
        state=state,
        size=float(size_K[0]),
        relative=tuple(relative_K.tolist()),
        halves_at=_first(relative_K < 0.5),
        under_1_percent_at=_first(relative_K < 0.01),
    )


# Memory ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """What is lost when the state is reset some characters before the one that is scored."""

    full_nats: float
    """Nats per character with the state carried on from the start of the stretch."""
    excess_nats: tuple[float, ...]
    """Nats per character more, with a context of k = 0, 1, ... characters. k = 0: none but
    the head's bias."""
    standard_error: tuple[float, ...]
    """Of each excess, over the windows."""
    windows: int
    """Resets that each mean is over."""
    tolerance: float
    needed: int | None
    """Fewest characters of context within the tolerance; None: more than were tried. Read
    off a fit to the excess that never rises, since single figures scatter."""
    bptt: int | None
    """Window of the gradient that the model was trained with, if its checkpoint says it."""

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
    bptt: int | None = None,
    farthest: int | None = None,
    windows: int | None = None,
    tolerance: float = TOLERANCE,
) -> Memory:
    """Measure the loss against the number of characters since a reset of the state.

    The state is reset at many places, evenly over the stretch. The k-th character after
    each has a context of k characters, so one reading of each window serves all k. Every
    price is compared to that of the same character under the full state, which makes
    the differences far less noisy than the prices.

    Args:
        model: dropout does not act.
        stretch: the text.
        vocabulary: prices unknown characters, as ``evaluation`` does.
        bptt: the window of the training.
        farthest: the longest context; None: twice the window, at least ``FARTHEST``. Less
            on a short text.
        windows: how many resets; None: as many as the size of the model allows. Fewer on a
            short text.
        tolerance: nats per character that count as nothing.
    """
    farthest = min(farthest or max(FARTHEST, 2 * (bptt or 0)), len(stretch) // 4)
    price_T = _full_prices(model, stretch)
    # The full state has read at least as much again before a window as the window has.
    first, last = farthest, len(stretch) - 1 - farthest
    if windows is None:
        affordable = RESET_WORK / (model.multiply_adds() * farthest)
        windows = round(min(MOST_RESETS, max(FEWEST_RESETS, affordable)))
    windows = min(windows, last - first + 1)
    starts_B = np.linspace(first, last, windows).astype(np.int64)
    ids_KB = _windows(stretch, starts_B, farthest + 1, model)
    hidden = model.initial_hidden(windows)
    at_once = max(1, LOGITS // (windows * model.config.vocabulary))
    alone = F.log_softmax(model.head.bias, dim=0)
    price_KB = [-alone[ids_KB[:1]]]
    for start in range(0, farthest, at_once):
        x_TB, y_TB = ids_KB[start:-1][:at_once], ids_KB[start + 1 :][:at_once]
        logits_TBV, hidden = model(x_TB, hidden)
        price_KB.append(symbol_prices(logits_TBV, y_TB))
    context_K = np.arange(farthest + 1)
    full_KB = price_T[starts_B[None] + context_K[:, None]]
    excess_KB = torch.cat(price_KB).cpu().double().numpy() - full_KB
    excess_K = excess_KB.mean(axis=1)
    scored_T = stretch.ids[first:]
    unknown = float((scored_T == UNKNOWN).mean()) if vocabulary.has_unknown else 0.0
    return Memory(
        full_nats=float(price_T[first:].mean()) + unknown * vocabulary.unknown_nats,
        excess_nats=tuple(excess_K.tolist()),
        standard_error=tuple((excess_KB.std(axis=1, ddof=1) / windows**0.5).tolist()),
        windows=windows,
        tolerance=tolerance,
        needed=_first(_never_rising(excess_K) <= tolerance),
        bptt=bptt,
    )


def _full_prices(model: CharModel, stretch: Stretch) -> NDArray[np.float64]:
    """Return -ln p of every character under the state carried on; NaN for the first."""
    ids_T1 = torch.from_numpy(stretch.ids)[:, None].to(model.head.weight.device)
    hidden = model.initial_hidden(1)
    prices = [torch.full((1, 1), torch.nan)]
    at_once = max(1, LOGITS // model.config.vocabulary)
    for start in range(0, len(stretch) - 1, at_once):
        x_T1, y_T1 = ids_T1[start:-1][:at_once], ids_T1[start + 1 :][:at_once]
        logits_T1V, hidden = model(x_T1, hidden)
        prices.append(symbol_prices(logits_T1V, y_T1).cpu())
    return torch.cat(prices)[:, 0].cpu().double().numpy()


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


# Pace --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """How slowly one layer's state changes along the text."""

    layer: int
    state: str
    autocorrelation: tuple[float, ...]
    """Of each unit, at lag 1: Pearson's correlation of its state with that one character
    before. NaN for a unit that does not vary."""
    mean: float
    """Of these, over the units that vary; NaN if none does."""
    gate: str | None
    """That keeps the state: an LSTM's forget gate for c, a GRU's update gate for h."""
    kept_mean: float | None
    """Product of that gate's values at ``KEPT_OVER`` steps in a row, mean over units and
    places; None: no such gate, or too short a text."""
    kept_median: float | None


@torch.inference_mode()
def pace(model: CharModel, stretch: Stretch) -> tuple[Pace, ...]:
    """Measure how slowly each state changes, and how much of it the gate on its way keeps.

    At an autocorrelation of 0.5 a step changes a unit by as much as its state differs from
    its mean (root mean squares): above that it changes more slowly than it varies.
    """
    cells = model.layers()
    sums: dict[tuple[int, str], NDArray[np.float64]] = {}
    before: dict[tuple[int, str], NDArray[np.float64]] = {}
    kept: dict[tuple[int, str], list[NDArray[np.float64]]] = {}
    count = 0
    for at_TB, layers in _observe(model, stretch):
        count += at_TB.size - (0 if before else at_TB.shape[1])
        whole = len(at_TB) // KEPT_OVER * KEPT_OVER
        for number, layer in enumerate(layers, start=1):
            for name, steps in layer.states.items():
                key = (number, name)
                state_TBH = torch.stack(steps).cpu().double().numpy()
                if key in before:
                    state_TBH = np.concatenate([before[key][None], state_TBH])
                before[key] = state_TBH[-1]
                x_NH, y_NH = (part.reshape(-1, part.shape[-1])
                              for part in (state_TBH[:-1], state_TBH[1:]))  # fmt: skip
                of_block = [x_NH, y_NH, x_NH**2, y_NH**2, x_NH * y_NH]
                sums[key] = sums.get(key, 0) + np.array([part.sum(0) for part in of_block])
                gate = KEEPERS[type(cells[number - 1])].get(name)
                if gate is not None and whole:
                    gate_TBH = torch.stack(layer.gates[gate][:whole])
                    product_NBH = gate_TBH.view(-1, KEPT_OVER, *gate_TBH.shape[1:]).prod(1)
                    kept.setdefault(key, []).append(product_NBH.flatten().cpu().numpy())
    found = []
    for (number, name), sums_5H in sums.items():
        correlation_H = _autocorrelation(sums_5H / count)
        varies_H = np.isfinite(correlation_H)
        products = np.concatenate(kept.get((number, name), [np.empty(0)]))
        found.append(
            Pace(
                layer=number,
                state=name,
                autocorrelation=tuple(correlation_H.tolist()),
                mean=float(correlation_H[varies_H].mean()) if varies_H.any() else math.nan,
                gate=KEEPERS[type(cells[number - 1])].get(name),
                kept_mean=float(products.mean()) if len(products) else None,
                kept_median=float(np.median(products)) if len(products) else None,
            )
        )
    return tuple(found)


def _autocorrelation(mean_5H: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Pearson's correlation [H] from the means of x, y, x², y² and x y."""
    x_H, y_H, xx_H, yy_H, xy_H = mean_5H
    variance_2H = np.array([xx_H - x_H**2, yy_H - y_H**2])
    # A unit that is constant but for rounding does not vary.
    variance_2H[variance_2H <= 1e-12 * np.array([xx_H, yy_H])] = np.nan
    result: NDArray[np.float64] = (xy_H - x_H * y_H) / np.sqrt(variance_2H.prod(0))
    return result


# Gates -------------------------------------------------------------------------------


@dataclass(frozen=True)
class GateUse:
    """How far one layer's gates of one kind are open."""

    layer: int
    gate: str
    open_share: tuple[float, ...]
    """Of each unit: the share of characters at which its gate is above 0.9."""
    closed_share: tuple[float, ...]
    """Of each unit: the share of characters at which its gate is below 0.1."""
    characters: int


@torch.inference_mode()
def gate_use(model: CharModel, stretch: Stretch) -> tuple[GateUse, ...]:
    """Measure how often each unit's gates are nearly open and nearly closed.

    After Karpathy, Johnson and Fei-Fei (2015), figure 3. A plain RNN has no gates: ().
    """
    opened: dict[tuple[int, str], Tensor] = {}
    closed: dict[tuple[int, str], Tensor] = {}
    characters = 0
    for at_TB, layers in _observe(model, stretch):
        characters += at_TB.size
        for number, layer in enumerate(layers, start=1):
            for gate, steps in layer.gates.items():
                value = torch.stack(steps).flatten(0, 1)
                key = (number, gate)
                opened[key] = opened.get(key, 0) + (value > NEARLY_OPEN).sum(0)
                closed[key] = closed.get(key, 0) + (value < NEARLY_CLOSED).sum(0)
    return tuple(
        GateUse(
            layer=layer,
            gate=gate,
            open_share=tuple((opened[layer, gate] / characters).tolist()),
            closed_share=tuple((closed[layer, gate] / characters).tolist()),
            characters=characters,
        )
        for layer, gate in opened
    )


# Units -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """One number of a model's state."""

    layer: int
    unit: int
    state: str

    @classmethod
    def parse(cls, name: str, model: CharModel) -> Self:
        """Return the unit that a name like 1.17 or 1.17c means; 17 is 1.17.

        Raises:
            UsageError: it is no such name, or the model has no such unit.
        """
        match = re.fullmatch(r"(?:([0-9]{1,9})\.)?([0-9]{1,9})([hc]?)", name)
        if not match:
            raise UsageError(
                f"--unit must be layer.unit, like 1.17 (or 1.17c: an LSTM's memory), not {name!r}"
            )
        unit = cls(int(match[1] or 1), int(match[2]), match[3] or "h")
        cells = model.layers()
        if not 1 <= unit.layer <= len(cells) or not 1 <= unit.unit <= model.config.hidden:
            raise UsageError(
                f"--unit {name}: the model's units go from 1.1 to "
                f"{len(cells)}.{model.config.hidden}"
            )
        if unit.state not in cells[0].states:
            raise UsageError(f"--unit {name}: only an LSTM has a memory c: leave out the c")
        return unit

    def __str__(self) -> str:
        return f"{self.layer}.{self.unit}{self.state.replace('h', '')}"


@dataclass(frozen=True)
class UnitFound:
    """The unit that follows a property best, found on one half of the text."""

    property: str
    unit: Unit
    found: float
    """Correlation on the first half, where this unit's was the largest by size."""
    correlation: float
    """Correlation of the same unit on the second half."""
    mean: float
    """Of the property, over both halves."""


@torch.inference_mode()
def units(model: CharModel, stretch: Stretch) -> tuple[UnitFound, ...]:
    """Find the unit that follows each visible property of the text best.

    The measure is Pearson's correlation between the unit's state after a character and
    the property's value at it. The best of many units is best by chance too: so it is
    found on the first half of the text, and its correlation reported on the second.

    Returns:
        Findings by falling size of the correlation on the second half; none for a
        property that does not vary in one of the halves.
    """
    value_TP = np.array([measure(stretch.text) for measure in PROPERTIES.values()]).T
    names: list[tuple[int, str]] = []
    halves: list[_Correlation] = []
    for at_TB, layers in _observe(model, stretch):
        if not halves:
            names = [(n, s) for n, layer in enumerate(layers, start=1) for s in layer.states]
            width = len(names) * model.config.hidden
            halves = [_Correlation(width, len(PROPERTIES)) for _ in range(2)]
        state_TBU = torch.cat([torch.stack(layers[n - 1].states[s]) for n, s in names], dim=2)
        lanes = at_TB.shape[1]
        for half, of_half in zip(halves, np.array_split(np.arange(lanes), 2), strict=True):
            half.add(
                state_TBU[:, of_half].flatten(0, 1).cpu().double().numpy(),
                value_TP[at_TB[:, of_half]].reshape(-1, len(PROPERTIES)),
            )
    first_UP, second_UP = (half.result() for half in halves)
    findings = []
    for number, name in enumerate(PROPERTIES):
        if any(half.is_constant(number) for half in halves):
            continue
        best = int(np.abs(first_UP[:, number]).argmax())
        layer, state = names[best // model.config.hidden]
        findings.append(
            UnitFound(
                property=name,
                unit=Unit(layer, best % model.config.hidden + 1, state),
                found=float(first_UP[best, number]),
                correlation=float(second_UP[best, number]),
                mean=sum(float(half.sum_P[number]) for half in halves)
                / sum(half.count for half in halves),
            )
        )
    return tuple(sorted(findings, key=lambda found: -abs(found.correlation)))


class _Correlation:
    """Pearson's correlation of U variables with P others, from sums in float64."""

    def __init__(self, width: int, properties: int) -> None:
        self.count = 0
        self.sum_U, self.square_U = np.zeros(width), np.zeros(width)
        self.sum_P, self.square_P = np.zeros(properties), np.zeros(properties)
        self.product_UP = np.zeros((width, properties))

    def add(self, x_NU: NDArray[np.float64], y_NP: NDArray[np.float64]) -> None:
        """Take N observations in."""
        self.count += len(x_NU)
        self.sum_U += x_NU.sum(0)
        self.square_U += (x_NU**2).sum(0)
        self.sum_P += y_NP.sum(0)
        self.square_P += (y_NP**2).sum(0)
        self.product_UP += x_NU.T @ y_NP

    def is_constant(self, number: int) -> bool:
        """Whether a property had one value only."""
        # Exact: the values are small whole numbers.
        return bool(self.count * self.square_P[number] == self.sum_P[number] ** 2)

    def result(self) -> NDArray[np.float64]:
        """Return the correlations [U, P]; 0 where one of both does not vary."""
        n = self.count
        covariance_UP = n * self.product_UP - np.outer(self.sum_U, self.sum_P)
        variance_U = n * self.square_U - self.sum_U**2
        variance_P = n * self.square_P - self.sum_P**2
        # A unit that is constant but for rounding follows nothing.
        variance_U[variance_U <= 1e-12 * n * self.square_U] = np.inf
        variance_P[variance_P <= 0] = np.inf
        result: NDArray[np.float64] = covariance_UP / np.sqrt(np.outer(variance_U, variance_P))
        return result


@dataclass(frozen=True)
class Activation:
    """One unit's state along a text."""

    unit: Unit
    text: str
    values: tuple[float, ...]
    """The unit's state after each character of ``text``."""


@torch.inference_mode()
def activation(
    model: CharModel, stretch: Stretch, unit: Unit, characters: int = SHOWN
) -> Activation:
    """Return a unit's state at the last characters of the stretch.

    Args:
        model: dropout does not act.
        stretch: the text; what is before those characters is read first.
        unit: which one of the model's.
        characters: how many; at most three quarters of the stretch.
    """
    start = len(stretch) - min(characters, len(stretch) * 3 // 4)
    warm_up = min(WARM_UP, start)
    starts = np.array([start - warm_up])
    ids_TB = _windows(stretch, starts, len(stretch) - start + warm_up, model)
    layers = unroll_model(model, ids_TB[warm_up:], _warmed(model, ids_TB[:warm_up]))
    steps = layers[unit.layer - 1].states[unit.state]
    values = tuple(float(state_BH[0, unit.unit - 1]) for state_BH in steps)
    return Activation(unit, stretch.text[start:], values)


# All of it ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Inspection:
    """The measurements of a model on a stretch of text; one that was not asked for is empty."""

    characters: int
    """Length of the stretch."""
    step: Step | None
    """The equations at its end."""
    gradient_flow: tuple[GradientFlow, ...]
    """Trained and initial weights; then each scaled to each of the radii asked for."""
    memory: Memory | None
    pace: tuple[Pace, ...]
    gates: tuple[GateUse, ...]
    units: tuple[UnitFound, ...]
    activation: Activation | None
    """Of the unit asked for."""
    clipping: Clipping | None
    """None where there is no log."""
    cuts: tuple[Cut, ...]
    """Trained and initial weights."""
    truncation: tuple[Truncation, ...]
    """Trained and initial weights."""


def inspect(
    model: CharModel,
    stretch: Stretch,
    vocabulary: Vocabulary,
    config: InspectConfig,
    *,
    unit: Unit | None = None,
    seed: int = 1,
    bptt: int | None = None,
    history: Clipping | None = None,
) -> Inspection:
    """Measure what the user chose.

    Args:
        model: trained, in evaluation mode.
        stretch: the text, held out if the figures are to mean what they seem to.
        vocabulary: the model's.
        config: what the user chose.
        unit: the one that ``config`` names, whose activation is asked for.
        seed: of the initial weights, unless the user chose one.
        bptt: the window that the model was trained with.
        history: of the training's gradient norms.

    Raises:
        UsageError: the stretch is too short for a window of ``config``; nothing was measured.
    """
    initial = initial_model(model.config, seed if config.seed is None else config.seed)
    initial.to(model.head.weight)
    wanted = config.measured
    # First, for it may refuse.
    truncations = tuple(
        truncation(weighted, stretch.ids, config.bptt, loss_last=config.loss_last, weights=weights)
        for weights, weighted in _trained_and(initial, model)
        if "truncation" in wanted
    )
    return Inspection(
        characters=len(stretch),
        step=write_out(model, stretch.text, stretch.ids) if "step" in wanted else None,
        gradient_flow=tuple(
            gradient_flow(weighted, stretch, weights=weights, scaled_to=radius)
            for radius in (None, *config.spectral_radius)
            for weights, weighted in _trained_and(initial, model)
            if "flow" in wanted
        ),
        memory=memory(model, stretch, vocabulary, bptt=bptt) if "memory" in wanted else None,
        pace=pace(model, stretch) if "pace" in wanted else (),
        gates=gate_use(model, stretch) if "gates" in wanted else (),
        units=units(model, stretch) if "units" in wanted else (),
        activation=activation(model, stretch, unit) if unit else None,
        clipping=history,
        cuts=tuple(
            cut
            for weights, weighted in _trained_and(initial, model)
            if "clipping" in wanted
            for cut in cuts(weighted, stretch.ids, bptt or CUT, weights=weights)
        ),
        truncation=truncations,
    )


def _trained_and(
    initial: CharModel, trained: CharModel
) -> tuple[tuple[Literal["trained", "initial"], CharModel], ...]:
    return ("trained", trained), ("initial", initial)


# What several of them need -----------------------------------------------------------


def _first(holds: NDArray[np.bool_]) -> int | None:
    return int(holds.argmax()) if holds.any() else None


def _windows(
    stretch: Stretch, starts_B: NDArray[np.int64], length: int, model: CharModel
) -> Tensor:
    """Return the symbols of windows that begin at these characters, [length, B]."""
    ids_TB = stretch.ids[starts_B[None] + np.arange(length)[:, None]]
    return torch.from_numpy(ids_TB).to(model.head.weight.device)


@torch.no_grad()
def _warmed(model: CharModel, ids_TB: Tensor) -> Hidden:
    """Return the state after some symbols, from zero."""
    hidden = model.initial_hidden(ids_TB.shape[1])
    return detach(model(ids_TB, hidden)[1]) if len(ids_TB) else hidden


def _observe(
    model: CharModel, stretch: Stretch
) -> Iterator[tuple[NDArray[np.int64], tuple[Unrolled, ...]]]:
    """Read the stretch in ``LANES`` lanes, each warmed on the characters before it.

    Yields:
        The characters' places in the stretch [T, B], lane after lane in order of the
        text, and every layer unrolled over them.
    """
    warm_up = min(WARM_UP, len(stretch) // 4)
    length = (len(stretch) - warm_up) // LANES
    starts_B = warm_up + length * np.arange(LANES)
    hidden = _warmed(model, _windows(stretch, starts_B - warm_up, warm_up, model))
    for start in range(0, length, BLOCK):
        steps = min(BLOCK, length - start)
        ids_TB = _windows(stretch, starts_B + start, steps, model)
        layers = unroll_model(model, ids_TB, hidden)
        hidden = tuple(layer.last() for layer in layers)
        yield starts_B[None] + start + np.arange(steps)[:, None], layers
