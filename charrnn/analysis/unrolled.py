"""A model's recurrence over a text, with every state and gate exposed.

The model's own cells do not expose their gates, nor single states to autograd. So the
recurrence is written out here step by step, with the model's weights.

Axis letters: T time, B lanes, E inputs, H hidden, G gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from charrnn.analysis.stretch import Stretch, warmed, windows_at
from charrnn.inference.evaluation import WARM_UP
from charrnn.network.cells import GRU, LSTM, RNN, Cell, State
from charrnn.network.model import CharModel, Hidden

#: Names of the gates whose values lie between 0 and 1, in the order of the weights' blocks.
GATES: dict[type[Cell], tuple[str, ...]] = {
    RNN: (),
    LSTM: ("input", "forget", "output"),
    GRU: ("reset", "update"),
}

#: For each state, the gate that multiplies it, unit by unit, on its way to the next step.
KEEPERS: dict[type[Cell], dict[str, str]] = {
    RNN: {},
    LSTM: {"c": "forget"},
    GRU: {"h": "update"},
}

#: Places of the text that ``observe`` reads side by side.
LANES = 8
#: Time steps whose states and gates are held in memory at a time.
BLOCK = 64


@dataclass(frozen=True)
class Unrolled:
    """One layer over T time steps; each step's tensors are their own nodes of autograd's graph."""

    states: dict[str, list[Tensor]]
    """State name -> [B, H] after each step."""
    gates: dict[str, list[Tensor]]
    """Gate name -> [B, H] at each step."""

    def last(self) -> State:
        """Return the state after the last step."""
        return tuple(steps[-1] for steps in self.states.values())


def unroll(cell: Cell, x_TBE: Tensor, state: State) -> Unrolled:
    """Run a cell step by step, by the equations in ``charrnn.network.cells``.

    Weight drop is not applied: this is the cell in use, not in training.

    Args:
        cell: one layer.
        x_TBE: its inputs [T, B, E].
        state: the state before the first step, each part [B, H].
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
    """Compute step by step what ``model(x_TB, hidden)`` does in evaluation mode, up to the head.

    Args:
        model: its dropout and weight drop are not applied.
        x_TB: symbols [T, B].
        hidden: every layer's state before the first step, each part [B, H].

    Returns:
        Every layer unrolled. The logits at t are the head applied to the last layer's h at t.
    """
    out_TBH: Tensor = model.embedding(x_TB)
    layers = []
    for cell, state in zip(model.layers(), hidden, strict=True):
        layers.append(unroll(cell, out_TBH, state))
        out_TBH = torch.stack(layers[-1].states["h"])
    return tuple(layers)


def observe(
    model: CharModel, stretch: Stretch
) -> Iterator[tuple[NDArray[np.int64], tuple[Unrolled, ...]]]:
    """Read the stretch in ``LANES`` lanes, each warmed up on the characters before it.

    Yields:
        The characters' positions in the stretch [T, B], with the lanes in the order of the
        text, and every layer unrolled over them.
    """
    warm_up = min(WARM_UP, len(stretch) // 4)
    length = (len(stretch) - warm_up) // LANES
    starts_B = warm_up + length * np.arange(LANES)
    hidden = warmed(model, windows_at(stretch.ids, starts_B - warm_up, warm_up, model))
    for start in range(0, length, BLOCK):
        steps = min(BLOCK, length - start)
        ids_TB = windows_at(stretch.ids, starts_B + start, steps, model)
        layers = unroll_model(model, ids_TB, hidden)
        hidden = tuple(layer.last() for layer in layers)
        yield starts_B[None] + start + np.arange(steps)[:, None], layers
