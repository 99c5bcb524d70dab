"""A model's recurrence over a text, with every state and gate exposed.

The model reads a window at once, and exposes neither its gates nor single states to autograd. So
the recurrence is computed here step by step, with the model's weights.

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
from charrnn.network.cells import Cell, State
from charrnn.network.model import CharModel, Hidden

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
    """Run a cell step by step (``Cell.step``).

    Weight drop is not applied: this is the cell in use, not in training.

    Args:
        cell: one layer.
        x_TBE: its inputs [T, B, E].
        state: the state before the first step, each part [B, H].
    """
    states: dict[str, list[Tensor]] = {name: [] for name in cell.states}
    gates: dict[str, list[Tensor]] = {name: [] for name in cell.gate_names}
    for input_BG in F.linear(x_TBE, cell.weight_input, cell.bias).unbind():
        state, values = cell.step(input_BG, state, cell.weight_recurrent)
        for name, after_BH in zip(cell.states, state, strict=True):
            states[name].append(after_BH)
        for name, value_BH in zip(cell.gate_names, values, strict=True):
            gates[name].append(value_BH)
    return Unrolled(states, gates)


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
