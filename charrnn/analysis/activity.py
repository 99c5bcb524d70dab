"""What states, gates and units do along a text.

- pace: how slowly the states change, and how much of them the gates keep;
- gates: how often each is nearly open or nearly closed;
- units: which of them follow a property that a reader sees, and one unit's state along the text.

Layers and units are counted from 1. Axis letters: T time, B lanes, H hidden, U the units of all
layers' states, P properties, N observations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.analysis.properties import PROPERTIES
from charrnn.analysis.stretch import Stretch, warmed, windows_at
from charrnn.analysis.unrolled import observe, unroll_model
from charrnn.config import ModelConfig
from charrnn.errors import UsageError
from charrnn.inference.evaluation import WARM_UP
from charrnn.network.cells import CELLS
from charrnn.network.model import CharModel

#: Number of consecutive steps over which a gate's values are multiplied.
KEPT_OVER = 10
#: Characters whose activation is shown.
SHOWN = 1000
#: Time steps whose states are held in memory at a time.
_BLOCK = 256
#: A gate is nearly open above, nearly closed below (Karpathy, Johnson, Fei-Fei 2015, 4.2).
NEARLY_OPEN, NEARLY_CLOSED = 0.9, 0.1
#: Share of the text above which a gate counts as always open or closed.
ALWAYS = 0.9


@dataclass(frozen=True)
class Pace:
    """How slowly one layer's state changes along the text."""

    layer: int
    state: str
    autocorrelation: tuple[float, ...]
    """For each unit, Pearson's correlation of its state with its state one character before.
    NaN for a unit that does not vary."""
    mean: float
    """Mean of these over the units that vary; NaN if none does."""
    gate: str | None
    """The gate that keeps the state: an LSTM's forget gate for c, a GRU's update gate for h."""
    kept_mean: float | None
    """Product of that gate's values over ``KEPT_OVER`` consecutive steps, mean over units and
    places; None: no such gate, or the text is too short."""
    kept_median: float | None


@torch.inference_mode()
def pace(model: CharModel, stretch: Stretch) -> tuple[Pace, ...]:
    """Measure how slowly each state changes, and how much of it the gate on its way keeps.

    At an autocorrelation of 0.5 a unit's change per step is as large as its deviation from its
    mean (root mean squares); above that, it is smaller.
    """
    keepers = CELLS[model.config.cell].keepers
    sums: dict[tuple[int, str], NDArray[np.float64]] = {}
    before: dict[tuple[int, str], NDArray[np.float64]] = {}
    kept: dict[tuple[int, str], list[NDArray[np.floating]]] = {}
    count = 0
    for at_TB, layers in observe(model, stretch):
        # Characters with one before them: all but the first of each lane.
        count += at_TB.size - (0 if before else at_TB.shape[1])
        for number, layer in enumerate(layers, start=1):
            for name, steps in layer.states.items():
                key = (number, name)
                state_TBH = torch.stack(steps).cpu().double().numpy()
                if key in before:
                    state_TBH = np.concatenate([before[key][None], state_TBH])
                before[key] = state_TBH[-1]
                sums[key] = sums.get(key, 0) + _sums(state_TBH[:-1], state_TBH[1:])
                if gate := keepers.get(name):
                    kept.setdefault(key, []).append(_products(layer.gates[gate]))
    found = []
    for (number, name), sums_5H in sums.items():
        correlation_H = _pearson(count, sums_5H)
        varies_H = np.isfinite(correlation_H)
        products = np.concatenate(kept.get((number, name), [np.empty(0)]))
        found.append(
            Pace(
                layer=number,
                state=name,
                autocorrelation=tuple(correlation_H.tolist()),
                mean=float(correlation_H[varies_H].mean()) if varies_H.any() else math.nan,
                gate=keepers.get(name),
                kept_mean=float(products.mean()) if len(products) else None,
                kept_median=float(np.median(products)) if len(products) else None,
            )
        )
    return tuple(found)


def _sums(x_TBH: NDArray[np.float64], y_TBH: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums [5, H] of x, y, x², y² and x y over time and lanes."""
    x_NH, y_NH = (part.reshape(-1, part.shape[-1]) for part in (x_TBH, y_TBH))
    return np.array([part.sum(0) for part in (x_NH, y_NH, x_NH**2, y_NH**2, x_NH * y_NH)])


def _products(gate: list[Tensor]) -> NDArray[np.floating]:
    """Return the products of a gate's values over ``KEPT_OVER`` consecutive steps, flattened."""
    runs = len(gate) // KEPT_OVER
    gate_TBH = torch.stack(gate)[: runs * KEPT_OVER]
    product_NBH = gate_TBH.view(runs, KEPT_OVER, *gate_TBH.shape[1:]).prod(1)
    products: NDArray[np.floating] = product_NBH.flatten().cpu().numpy()
    return products


def _pearson(n: int, sums: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return Pearson's correlation from the sums of x, y, x², y² and x y over n observations.

    NaN where x or y is constant but for rounding.
    """
    x, y, xx, yy, xy = sums
    variance_x, variance_y = n * xx - x**2, n * yy - y**2
    vary = (variance_x > 1e-12 * n * xx) & (variance_y > 1e-12 * n * yy)
    return (n * xy - x * y) / np.sqrt(np.where(vary, variance_x * variance_y, np.nan))


@dataclass(frozen=True)
class GateUse:
    """How often one layer's gates of one kind are nearly open or nearly closed."""

    layer: int
    gate: str
    open_share: tuple[float, ...]
    """For each unit, the share of characters at which its gate is above ``NEARLY_OPEN``."""
    closed_share: tuple[float, ...]
    """For each unit, the share of characters at which its gate is below ``NEARLY_CLOSED``."""
    characters: int


@torch.inference_mode()
def gate_use(model: CharModel, stretch: Stretch) -> tuple[GateUse, ...]:
    """Measure how often each unit's gates are nearly open and nearly closed.

    After Karpathy, Johnson and Fei-Fei (2015), figure 3. Empty for a plain RNN, which has no gates.
    """
    opened: dict[tuple[int, str], Tensor] = {}
    closed: dict[tuple[int, str], Tensor] = {}
    characters = 0
    for at_TB, layers in observe(model, stretch):
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


@dataclass(frozen=True)
class Unit:
    """One number of a model's state."""

    layer: int
    unit: int
    state: str

    @classmethod
    def parse(cls, name: str, shape: ModelConfig) -> Self:
        """Return the unit that a name like 1.17 or 1.17c stands for; 17 means 1.17.

        Raises:
            UsageError: it is not such a name, or a model of this shape has no such unit.
        """
        match = re.fullmatch(r"(?:([0-9]{1,9})\.)?([0-9]{1,9})([hc]?)", name)
        if not match:
            raise UsageError(
                f"--unit must be layer.unit, like 1.17 (or 1.17c: an LSTM's memory), not {name!r}"
            )
        unit = cls(int(match[1] or 1), int(match[2]), match[3] or "h")
        if not 1 <= unit.layer <= shape.layers or not 1 <= unit.unit <= shape.hidden:
            raise UsageError(
                f"--unit {name}: the model's units go from 1.1 to {shape.layers}.{shape.hidden}"
            )
        if unit.state not in CELLS[shape.cell].states:
            raise UsageError(f"--unit {name}: only an LSTM has a memory c: leave out the c")
        return unit

    def __str__(self) -> str:
        return f"{self.layer}.{self.unit}{self.state.replace('h', '')}"


@dataclass(frozen=True)
class UnitFound:
    """The unit whose h, or whose c, follows a property best; found on half of the text."""

    property: str
    unit: Unit
    found: float
    """Correlation on the first half, where this unit's has the largest absolute value."""
    correlation: float
    """Correlation of the same unit on the second half."""
    mean: float
    """Mean of the property over both halves."""


@torch.inference_mode()
def units(model: CharModel, stretch: Stretch) -> tuple[UnitFound, ...]:
    """Find the unit that follows each visible property of the text best, separately for h and c.

    The measure is Pearson's correlation between the unit's state after a character and
    the property's value there. The best of many units is partly best by chance, so it is
    chosen on the first half of the text and judged by its correlation on the second.

    Returns:
        One finding per property and kind of state, grouped by property, in falling order of the
        absolute correlation on the second half; none for a property that does not vary in one of
        the halves.
    """
    value_TP = np.array([*stretch.properties.values()]).T
    names = [(n, s) for n, cell in enumerate(model.layers(), start=1) for s in cell.states]
    width = len(names) * model.config.hidden
    halves = [_Correlation(width, len(PROPERTIES)) for _ in range(2)]
    for at_TB, layers in observe(model, stretch):
        state_TBU = torch.cat([torch.stack(layers[n - 1].states[s]) for n, s in names], dim=2)
        lanes = at_TB.shape[1]
        for half, of_half in zip(halves, np.array_split(np.arange(lanes), 2), strict=True):
            half.add(
                state_TBU[:, of_half].flatten(0, 1).cpu().double().numpy(),
                value_TP[at_TB[:, of_half]].reshape(-1, len(PROPERTIES)).astype(np.float64),
            )
    first_UP, second_UP = (half.result() for half in halves)
    # A single best would hide how well an LSTM's c does wherever an h is slightly better.
    of_state_U = {
        state: np.repeat([s == state for _, s in names], model.config.hidden)
        for state in dict.fromkeys(s for _, s in names)
    }
    findings: list[list[UnitFound]] = []
    for number, name in enumerate(PROPERTIES):
        if any(half.is_constant(number) for half in halves):
            continue
        of_property = []
        for state, of_U in of_state_U.items():
            best = int(np.where(of_U, np.abs(first_UP[:, number]), -1).argmax())
            layer, _ = names[best // model.config.hidden]
            of_property.append(
                UnitFound(
                    property=name,
                    unit=Unit(layer, best % model.config.hidden + 1, state),
                    found=float(first_UP[best, number]),
                    correlation=float(second_UP[best, number]),
                    mean=sum(float(half.sum_P[number]) for half in halves)
                    / sum(half.count for half in halves),
                )
            )
        findings.append(sorted(of_property, key=_falling))
    findings.sort(key=lambda of_property: _falling(of_property[0]))
    return tuple(found for of_property in findings for found in of_property)


def _falling(found: UnitFound) -> float:
    return -abs(found.correlation)


class _Correlation:
    """Pearson's correlation of U variables with P others, from sums in float64."""

    def __init__(self, width: int, properties: int) -> None:
        self.count = 0
        self.sum_U, self.square_U = np.zeros(width), np.zeros(width)
        self.sum_P, self.square_P = np.zeros(properties), np.zeros(properties)
        self.product_UP = np.zeros((width, properties))

    def add(self, x_NU: NDArray[np.float64], y_NP: NDArray[np.float64]) -> None:
        """Add N observations."""
        self.count += len(x_NU)
        self.sum_U += x_NU.sum(0)
        self.square_U += (x_NU**2).sum(0)
        self.sum_P += y_NP.sum(0)
        self.square_P += (y_NP**2).sum(0)
        self.product_UP += x_NU.T @ y_NP

    def is_constant(self, number: int) -> bool:
        """Return whether a property had only one value."""
        # Exact: the values are small whole numbers.
        return bool(self.count * self.square_P[number] == self.sum_P[number] ** 2)

    def result(self) -> NDArray[np.float64]:
        """Return the correlations [U, P]; 0 where one of the two does not vary."""
        sums = (self.sum_U[:, None], self.sum_P, self.square_U[:, None], self.square_P)
        return np.nan_to_num(_pearson(self.count, (*sums, self.product_UP)))


@dataclass(frozen=True)
class Activation:
    """One unit's state along a text."""

    unit: Unit
    text: str
    values: tuple[float, ...]
    """The unit's state after each character of ``text``."""
    properties: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """What a reader of the whole stretch up to each character sees there."""

    def last(self) -> Activation:
        """Return it at the last ``SHOWN`` characters alone."""
        properties = {name: seen[-SHOWN:] for name, seen in self.properties.items()}
        text, values = self.text[-SHOWN:], self.values[-SHOWN:]
        return replace(self, text=text, values=values, properties=properties)

    @property
    def largest(self) -> float:
        """The largest absolute state, of those that are finite; 0 if none is."""
        return max((abs(value) for value in self.values if math.isfinite(value)), default=0.0)

    @property
    def shares(self) -> list[float]:
        """Each state as a share of the largest; 0 for one that is not finite."""
        largest = self.largest or 1.0
        return [value / largest if math.isfinite(value) else 0.0 for value in self.values]


@torch.inference_mode()
def activation(
    model: CharModel, stretch: Stretch, unit: Unit, characters: int = SHOWN
) -> Activation:
    """Return a unit's state at the last characters of the stretch.

    Args:
        model: in evaluation mode.
        stretch: the text; up to 256 characters before the last ones warm up the state.
        unit: one of the model's.
        characters: how many; at most three quarters of the stretch.
    """
    start = len(stretch) - min(characters, len(stretch) * 3 // 4)
    warm_up = min(WARM_UP, start)
    starts = np.array([start - warm_up])
    ids_TB = windows_at(stretch.ids, starts, len(stretch) - start + warm_up, model)
    hidden, values = warmed(model, ids_TB[:warm_up]), list[float]()
    for block_TB in ids_TB[warm_up:].split(_BLOCK):
        layers = unroll_model(model, block_TB, hidden)
        hidden = tuple(layer.last() for layer in layers)
        steps = layers[unit.layer - 1].states[unit.state]
        values += [float(state_BH[0, unit.unit - 1]) for state_BH in steps]
    properties = {
        name: tuple(seen_T[start:].tolist()) for name, seen_T in stretch.properties.items()
    }
    return Activation(unit, stretch.text[start:], tuple(values), properties)
