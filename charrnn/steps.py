"""``step.c``, on tensors: a character more of texts that grow side by side, in one call.

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

from charrnn.compiler import LEAST_LANES, Library, argument, compiled, refuse_misreadable
from charrnn.config import CELL_NAMES, CellName

Step = Callable[[NDArray[np.integer]], NDArray[np.float32]]
"""Reads one more character of every text, symbols_B, and returns logits_BV for the one after it."""

_TYPES = (torch.float32, torch.bfloat16, torch.int8)
"""What matrices are made of, in the order in which ``products.h`` counts them."""

_LEAST_BYTES = 1 << 21
"""Fewest bytes of matrices that are worth a thread where threads wait for each other: half of it is
faster on a quiet machine, and on a busy one ten times as slow as one thread."""


class Layer(NamedTuple):
    """A layer, in the order of ``step.c``'s; its matrices as ``Steps.matrix`` returns them."""

    inputs: Tensor | None
    """W; the lowest layer has none."""
    recurrent: Tensor
    """U."""
    bias_G: Tensor | None
    """b; the lowest layer has none."""
    second_bias_H: Tensor | None
    """A GRU's."""
    h_BH: Tensor
    """A step replaces what it holds, and ``c_BH``."""
    c_BH: Tensor | None = None
    """An LSTM's."""


class Steps(Library):
    """The functions of ``step.c``."""

    FILE = "step.c"
    FUNCTIONS = ("step",)

    def __init__(self, library: ctypes.CDLL, *, tiles: bool) -> None:
        super().__init__(library, tiles=tiles)
        library.step_room.restype = ctypes.c_long

    def matrix(self, weight_NK: Tensor, scale_N: Tensor | None = None) -> Tensor:
        """Return a matrix as ``step.c`` reads it.

        Args:
            weight_NK: float32; or bf16 or int8, where the processor multiplies that.
            scale_N: What the rows of int8 are in units of, float32.
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
            cell: What all layers are.
            layers: The lowest one first.
            table_VG: W x + b of the lowest layer, for every symbol.
            head: A matrix of the type of all others.
            head_bias_V: Its bias.
        """
        lanes, hidden = layers[0].h_BH.shape
        matrices = [
            matrix
            for layer in layers
            for matrix in (layer.inputs, layer.recurrent)
            if matrix is not None
        ]
        nbytes = sum(matrix.nbytes for matrix in (*matrices, head))
        threads, apart = _threads_for(lanes, nbytes, torch.get_num_threads())
        kinds = (CELL_NAMES.index(cell), _TYPES.index(head.dtype))
        room_for = (threads, apart, *kinds, lanes, hidden, len(head_bias_V))
        room_size = self._library.step_room(*map(ctypes.c_long, room_for))
        room = torch.empty(room_size, dtype=torch.float32)
        symbols_B = torch.zeros(lanes, dtype=torch.int64)
        logits_BV = torch.empty(lanes, len(head_bias_V), dtype=torch.float32)
        fields = [*chain(*layers)]
        addresses = (ctypes.c_void_p * len(fields))(*(argument(field).value for field in fields))
        rest = (table_VG, symbols_B, len(head_bias_V), head, head_bias_V, logits_BV, room)
        refuse_misreadable(*matrices, head, dtypes=(head.dtype,))
        refuse_misreadable(*chain(*(layer[2:] for layer in layers)), table_VG, head_bias_V)
        sizes = (threads, apart, *kinds, lanes, hidden, len(layers))
        arguments = (*map(ctypes.c_long, sizes), addresses, *(argument(value) for value in rest))
        run = partial(self._library.step, *arguments)
        read_B, written_BV = symbols_B.numpy(), logits_BV.numpy()

        # Held: what C has the addresses of.
        def step(next_B: NDArray[np.integer], held: object = (fields, rest)) -> NDArray[np.float32]:
            read_B[:] = next_B
            run()
            return written_BV.copy()

        return step


def _threads_for(lanes: int, nbytes: int, most: int) -> tuple[int, bool]:
    """Return how many threads make a step, and whether each has lanes of its own.

    Those need not wait for each other; they share the units where that employs more of them.

    Args:
        lanes: texts side by side.
        nbytes: of the matrices.
        most: threads that there are.
    """
    by_lanes, by_units = lanes // LEAST_LANES, nbytes // _LEAST_BYTES
    apart = by_lanes >= 2 and by_lanes >= min(most, by_units)
    return max(1, min(most, by_lanes if apart else by_units)), apart


def steps() -> Steps | None:
    """Return the compiled step, or None where there is no compiler for it."""
    return compiled(Steps)
