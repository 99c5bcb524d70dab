"""``step.c``, called with tensors: one more character of several texts, in two calls.

Axis letters: B texts, V vocabulary, H hidden, G gates, stacked as rows; K a product's inner axis,
N its columns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.compute.library import argument, compiled, refuse_misreadable
from charrnn.compute.products import IN_C, Multiplier, ways_to_share
from charrnn.compute.trials import Fastest
from charrnn.config import CellName

Step = Callable[[NDArray[np.integer]], NDArray[np.float32]]
"""Reads one more character of every text, symbols_B, and returns logits_BV for the next one."""

Draw = Callable[[NDArray[np.float32], NDArray[np.float64], float], NDArray[np.int64]]
"""Draws every text's next character, by logits_BV, points_B from 0 to 1 and a temperature above 0;
returns symbols_B."""

_TYPES = (torch.float32, torch.bfloat16, torch.int8)
"""Types of a matrix, in the order of the enum in ``products.h``."""


class Layer(NamedTuple):
    """A layer, with its fields in the order of ``step.c``'s struct.

    Its matrices are in the form that ``Steps.matrix`` returns.
    """

    inputs: Tensor | None
    """W; None in the lowest layer."""
    recurrent: Tensor
    """U."""
    bias_G: Tensor | None
    """b; None in the lowest layer."""
    second_bias_H: Tensor | None
    """A GRU's second bias; else None."""
    h_BH: Tensor
    """The state, which a step overwrites."""
    c_BH: Tensor | None = None
    """An LSTM's cell, which a step overwrites; else None."""


class Steps(Multiplier):
    """The functions of ``step.c``."""

    FILE = "step.c"
    SIZES = ("step_room",)

    def matrix(self, weight_NK: Tensor, scale_N: Tensor | None = None) -> Tensor:
        """Return a matrix in the layout that ``step.c`` reads.

        Args:
            weight_NK: float32; or bf16 or int8, if the processor multiplies that.
            scale_N: The scale of each row, float32; only with int8.
        """
        panels = self._panels(weight_NK.t())
        if scale_N is None:
            return panels
        scales = torch.nn.functional.pad(scale_N, (0, -len(scale_N) % self._width))
        return torch.cat([panels.flatten(), scales.view(torch.int8)])

    def bind(
        self,
        cell: CellName,
        layers: Sequence[Layer],
        table_VG: Tensor,
        head: Tensor,
        head_bias_V: Tensor,
    ) -> Step:
        """Return the step of a model.

        Args:
            cell: The type of all layers.
            layers: The layers, the lowest one first.
            table_VG: W x + b of the lowest layer, for every symbol.
            head: The head's matrix, in the same type as all others.
            head_bias_V: The head's bias.

        Raises:
            TypeError: C would misread a tensor (``refuse_misreadable``).
        """
        lanes, hidden = layers[0].h_BH.shape
        matrices = [
            matrix
            for layer in layers
            for matrix in (layer.inputs, layer.recurrent)
            if matrix is not None
        ]
        nbytes = sum(matrix.nbytes for matrix in (*matrices, head))
        ways = ways_to_share(lanes, nbytes, torch.get_num_threads())
        shape = (IN_C.index(cell), _TYPES.index(head.dtype), lanes, hidden, len(layers))
        sizes = (*shape, len(head_bias_V))
        room_sizes = [self._library.step_room(*map(ctypes.c_long, (*way, *sizes))) for way in ways]
        room = torch.empty(max(room_sizes), dtype=torch.float32)
        symbols_B = torch.zeros(lanes, dtype=torch.int64)
        logits_BV = torch.empty(lanes, len(head_bias_V), dtype=torch.float32)
        fields = [*chain(*layers)]
        addresses = (ctypes.c_void_p * len(fields))(*(argument(field).value for field in fields))
        rest = (table_VG, symbols_B, len(head_bias_V), head, head_bias_V, logits_BV, room)
        refuse_misreadable(*matrices, head, dtypes=(head.dtype,))
        refuse_misreadable(*chain(*(layer[2:] for layer in layers)), table_VG, head_bias_V)
        made = ctypes.c_int64(0)
        pointers = (ctypes.byref(made), addresses, *(argument(value) for value in rest))
        run = Fastest(
            [partial(self._library.step, *map(ctypes.c_long, (*way, *shape))) for way in ways]
        )
        read_B, written_BV = symbols_B.numpy(), logits_BV.numpy()

        # held: keeps alive the tensors whose addresses C has.
        def step(next_B: NDArray[np.integer], held: object = (fields, rest)) -> NDArray[np.float32]:
            read_B[:] = next_B
            run(*pointers)
            return written_BV.copy()

        return step

    def drawing(self, lanes: int, vocabulary: int) -> Draw:
        """Return the function that draws the next characters of so many texts."""
        logits_BV = np.empty((lanes, vocabulary), np.float32)
        points_B, sums_V = np.empty(lanes), np.empty(vocabulary)
        symbols_B = np.empty(lanes, np.int64)
        logits, *rest = (
            ctypes.c_void_p(array.ctypes.data) for array in (logits_BV, points_B, sums_V, symbols_B)
        )
        sizes = [ctypes.c_long(lanes), ctypes.c_long(vocabulary)]

        # held: as above.
        def draw(
            next_BV: NDArray[np.float32],
            at_B: NDArray[np.float64],
            temperature: float,
            held: object = sums_V,
        ) -> NDArray[np.int64]:
            logits_BV[:] = next_BV
            points_B[:] = at_B
            self._library.draw(*sizes, logits, ctypes.c_double(temperature), *rest)
            return symbols_B.copy()

        return draw


def steps() -> Steps | None:
    """Return the compiled step, or None if it cannot be compiled here."""
    return compiled(Steps)
