"""One character at a time on a CPU: the same recurrence, arranged for latency.

A step of one character is a handful of matrix-vector products, each of which reads a matrix
once: it is limited by memory bandwidth, and everything else is overhead. The lowest layer's input
product can take only V values, so it is computed once and looked up.

Steps run in C (``steps``); or, where nothing compiles or nobody wants to wait for a
compiler, in numpy, whose calls cost a fraction of torch's. There the logistic function is computed
from tanh of half the argument, so that one tanh call serves all gates of a step.

With bf16 weights, or int8 weights with one scale per row, C has less to read and is faster, if the
processor multiplies them. ``CharModel.forward`` is the readable twin that the tests compare
this with.

Axis letters: B texts, V vocabulary, H hidden, G the stacked gates' rows; K a product's inner axis,
N its columns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.compute.steps import Layer, Steps
from charrnn.config import CellName, WeightsName
from charrnn.network.cells import GRU, Cell
from charrnn.network.model import CharModel, Hidden

Array = NDArray[np.float32]
Product = Callable[[Array], Array]
"""``x_BK -> x @ weight.T``."""


class CompiledStepper:
    """Predicts the next character of B texts that grow by one character per step, in C.

    Args:
        compiled: the step in C.
        model: the model that predicts; its weights must not change.
        hidden: the state to start from, of B lanes, which is not changed.
        weights: the precision of the weights in the products. With bf16 or int8 weights a state is
            rounded before the product, too, to bf16 or to 15 bits (fewer above 1,024 units);
            sums, and the states that are carried on, stay in float32.

    Attributes:
        in_c: the step in C, which can also draw.
        step: reads one more character of every text, and returns logits_BV for the next one.
    """

    def __init__(
        self, compiled: Steps, model: CharModel, hidden: Hidden, weights: WeightsName
    ) -> None:
        def matrix(weight_NK: Tensor) -> Tensor:
            if weights == "int8" and compiled.multiplies_int8:
                return compiled.matrix(*_in_8_bits(weight_NK))
            if weights == "bf16" and compiled.multiplies_bf16:
                return compiled.matrix(weight_NK.bfloat16())
            return compiled.matrix(_rounded(weight_NK, weights))

        with torch.inference_mode():
            self._hidden = tuple(tuple(part.clone() for part in state) for state in hidden)
            layers = [
                Layer(
                    matrix(cell.weight_input) if index else None,
                    matrix(cell.weight_recurrent),
                    cell.bias if index else None,
                    cell.bias_recurrent,
                    *state,
                )
                for index, (cell, state) in enumerate(
                    zip(model.layers(), self._hidden, strict=True)
                )
            ]
            self.in_c = compiled.bind(
                model.config.cell, layers, _table(model), matrix(model.head.weight), model.head.bias
            )
        self.step = self.in_c.step

    def hidden(self) -> Hidden:
        """Return the state after the last step."""
        return tuple(tuple(part.clone() for part in state) for state in self._hidden)


class NumpyStepper:
    """``CompiledStepper`` in numpy, which rounds weights alone, and does not draw."""

    in_c = None

    def __init__(self, model: CharModel, hidden: Hidden, weights: WeightsName) -> None:
        layers = model.layers()
        with torch.inference_mode():
            layer = _LAYERS[model.config.cell]
            self._layers = [layer(cell, weights) for cell in layers]
            self._table_VG = _array(_table(model))
            self._inputs = [_input_product(cell, weights) for cell in layers[1:]]
            self._head = _product(model.head.weight, weights)
        self._states: list[list[Array]] = [[_array(part) for part in state] for state in hidden]
        self._head_bias_V = _array(model.head.bias)

    def step(self, symbols_B: NDArray[np.integer]) -> Array:
        """Read one more character of every text, and return logits_BV for the next one."""
        gates_BG: Array = self._table_VG[symbols_B]
        for index, layer in enumerate(self._layers):
            if index:
                gates_BG = self._inputs[index - 1](self._states[index - 1][0])
            self._states[index] = layer.step(gates_BG, self._states[index])
        logits_BV = self._head(self._states[-1][0])
        logits_BV += self._head_bias_V
        return logits_BV

    def hidden(self) -> Hidden:
        """Return the state after the last step."""
        return tuple(tuple(map(torch.from_numpy, state)) for state in self._states)


class _Layer:
    """One cell's recurrent weights, and its step."""

    def __init__(self, cell: Cell, weights: WeightsName) -> None:
        self._recurrent = _product(cell.weight_recurrent, weights)
        self._width = cell.hidden

    def step(self, gates_BG: Array, state: list[Array]) -> list[Array]:
        """Return the state after a step; ``gates_BG``, the input product, may be overwritten."""
        raise NotImplementedError


class _RNN(_Layer):
    def step(self, gates_BG: Array, state: list[Array]) -> list[Array]:
        gates_BG += self._recurrent(state[0])
        return [np.tanh(gates_BG, out=gates_BG)]


class _LSTM(_Layer):
    def __init__(self, cell: Cell, weights: WeightsName) -> None:
        super().__init__(cell, weights)
        # sigma(x) = tanh(x / 2) / 2 + 1 / 2; the third block, the candidate, is a plain tanh.
        self._halves_G = np.repeat(np.array([0.5, 0.5, 1, 0.5], np.float32), cell.hidden)
        self._rest_G = 1 - self._halves_G

    def step(self, gates_BG: Array, state: list[Array]) -> list[Array]:
        gates_BG += self._recurrent(state[0])
        gates_BG *= self._halves_G
        np.tanh(gates_BG, out=gates_BG)
        gates_BG *= self._halves_G
        gates_BG += self._rest_G
        in_BH, forget_BH, candidate_BH, out_BH = _blocks(gates_BG, 4, self._width)
        c_BH: Array = forget_BH * state[1]
        c_BH += np.multiply(in_BH, candidate_BH, out=candidate_BH)
        h_BH = np.tanh(c_BH)
        h_BH *= out_BH
        return [h_BH, c_BH]


class _GRU(_Layer):
    def __init__(self, cell: Cell, weights: WeightsName) -> None:
        super().__init__(cell, weights)
        assert isinstance(cell, GRU)
        self._bias_recurrent_H = _array(cell.bias_recurrent)

    def step(self, gates_BG: Array, state: list[Array]) -> list[Array]:
        (h_BH,) = state
        recurrent_BG = self._recurrent(h_BH)
        *_, candidate_BH = _blocks(recurrent_BG, 3, self._width)
        *_, input_BH = _blocks(gates_BG, 3, self._width)
        reset_update_B2H = recurrent_BG[:, : 2 * self._width]
        reset_update_B2H += gates_BG[:, : 2 * self._width]
        reset_update_B2H *= 0.5
        np.tanh(reset_update_B2H, out=reset_update_B2H)
        reset_update_B2H *= 0.5
        reset_update_B2H += 0.5
        reset_BH, update_BH = _blocks(reset_update_B2H, 2, self._width)
        candidate_BH += self._bias_recurrent_H
        candidate_BH *= reset_BH
        candidate_BH += input_BH
        np.tanh(candidate_BH, out=candidate_BH)
        after_BH: Array = h_BH - candidate_BH
        after_BH *= update_BH
        after_BH += candidate_BH
        return [after_BH]


_LAYERS: dict[CellName, type[_Layer]] = {"rnn": _RNN, "lstm": _LSTM, "gru": _GRU}


def _table(model: CharModel) -> Tensor:
    """Return the lowest layer's input product, bias included, for every symbol, table_VG."""
    lowest = model.layers()[0]
    return torch.addmm(lowest.bias, model.embedding.weight, lowest.weight_input.t())


def _blocks(gates_BG: Array, count: int, width: int) -> list[Array]:
    return [gates_BG[:, n * width : (n + 1) * width] for n in range(count)]


def _input_product(cell: Cell, weights: WeightsName) -> Product:
    """Return the input product, bias included, of a layer above the lowest."""
    product = _product(cell.weight_input, weights)
    bias_G = _array(cell.bias)

    def run(below_BH: Array) -> Array:
        gates_BG = product(below_BH)
        gates_BG += bias_G
        return gates_BG

    return run


def _product(weight_NK: Tensor, weights: WeightsName) -> Product:
    """Return the product with a matrix."""
    # A transposed view: the product reads the rows in the order of memory.
    weight_KN = _array(_rounded(weight_NK.detach().float(), weights)).T
    return lambda x_BK: x_BK @ weight_KN


def _rounded(weight_NK: Tensor, weights: WeightsName) -> Tensor:
    """Return a float32 matrix with its weights rounded to this precision."""
    if weights == "int8":
        whole_NK, scale_N = _in_8_bits(weight_NK)
        return whole_NK * scale_N[:, None]
    return weight_NK.bfloat16().float() if weights == "bf16" else weight_NK


def _in_8_bits(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix in int8, and each row's scale.

    The error of a weight is at most half of 1/127 of the row's largest absolute weight.
    """
    scale_N = weight_NK.abs().amax(1).clamp(min=127 * torch.finfo(torch.float32).tiny) / 127
    return (weight_NK / scale_N[:, None]).round().to(torch.int8), scale_N


def _array(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
