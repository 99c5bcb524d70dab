"""One character at a time on a CPU: the same recurrence, arranged for latency.

A step of one character is a handful of matrix-vector products, each of which
reads a matrix once: memory is the limit, and everything else is overhead. So the
step runs in numpy, whose calls cost a fraction of torch's, and the lowest layer's
input product, which can take only V values, is computed once and looked up.
``CharModel.forward`` is the readable twin that the tests hold this to.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn.cells import GRU, Cell
from charrnn.model import CharModel, Hidden

__all__ = ["Stepper"]

Array = NDArray[np.float32]


class Stepper:
    """Predicts the next character of B texts that grow by one character a step.

    Args:
        model: who predicts; its weights are read once, here.
        hidden: the state to start from, of B lanes.
    """

    def __init__(self, model: CharModel, hidden: Hidden) -> None:
        layers = model.layers()
        lowest = layers[0]
        with torch.inference_mode():
            table_VG = torch.addmm(lowest.bias, model.embedding.weight, lowest.weight_input.t())
        self._table_VG = _array(table_VG)
        self._layers = [_Layer(cell) for cell in layers]
        self._states: list[list[Array]] = [[_array(part) for part in state] for state in hidden]
        self._head_HV = _array(model.head.weight).T
        self._head_bias_V = _array(model.head.bias)

    def step(self, symbols_B: NDArray[np.integer]) -> Array:
        """Read one more character of every text.

        Args:
            symbols_B: the characters' ids.

        Returns:
            logits_BV for the character after it.
        """
        gates_BG = self._table_VG[symbols_B]
        for index, layer in enumerate(self._layers):
            state = self._states[index]
            if index:
                gates_BG = layer.project(self._states[index - 1][0])
            self._states[index] = layer.step(gates_BG, state)
        logits_BV: Array = self._states[-1][0] @ self._head_HV
        logits_BV += self._head_bias_V
        return logits_BV


class _Layer:
    """One cell's weights as numpy arrays, and its step."""

    def __init__(self, cell: Cell) -> None:
        # Views, transposed: the products read the rows as they lie in memory.
        self.input_EG = _array(cell.weight_input).T
        self.recurrent_HG = _array(cell.weight_recurrent).T
        self.bias_G = _array(cell.bias)
        self.bias_recurrent_H = (
            _array(cell.bias_recurrent) if isinstance(cell, GRU) else np.zeros(0, np.float32)
        )
        self.hidden = cell.hidden
        steps: dict[str, Callable[[Array, list[Array]], list[Array]]]
        steps = {"RNN": self._rnn, "LSTM": self._lstm, "GRU": self._gru}
        self.step = steps[type(cell).__name__]

    def project(self, below_BH: Array) -> Array:
        """Return the input product of a layer that reads another one's output."""
        gates_BG: Array = below_BH @ self.input_EG
        gates_BG += self.bias_G
        return gates_BG

    def _rnn(self, gates_BG: Array, state: list[Array]) -> list[Array]:
        return [np.tanh(gates_BG + state[0] @ self.recurrent_HG)]

    def _lstm(self, gates_BG: Array, state: list[Array]) -> list[Array]:
        h_BH, c_BH = state
        width = self.hidden
        gates_BG = gates_BG + h_BH @ self.recurrent_HG
        forget_in_B2H = _sigmoid(gates_BG[:, : 2 * width])
        out_BH = _sigmoid(gates_BG[:, 3 * width :])
        c_BH = forget_in_B2H[:, width:] * c_BH
        c_BH += forget_in_B2H[:, :width] * np.tanh(gates_BG[:, 2 * width : 3 * width])
        return [out_BH * np.tanh(c_BH), c_BH]

    def _gru(self, gates_BG: Array, state: list[Array]) -> list[Array]:
        (h_BH,) = state
        width = self.hidden
        recurrent_BG = h_BH @ self.recurrent_HG
        reset_update_B2H = _sigmoid(gates_BG[:, : 2 * width] + recurrent_BG[:, : 2 * width])
        candidate_BH = recurrent_BG[:, 2 * width :] + self.bias_recurrent_H
        candidate_BH *= reset_update_B2H[:, :width]
        candidate_BH += gates_BG[:, 2 * width :]
        np.tanh(candidate_BH, out=candidate_BH)
        return [candidate_BH + reset_update_B2H[:, width:] * (h_BH - candidate_BH)]


def _sigmoid(x: Array) -> Array:
    """Return the logistic function by way of tanh, which numpy vectorises."""
    y: Array = np.tanh(0.5 * x)
    y *= 0.5
    y += 0.5
    return y


def _array(tensor: torch.Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
