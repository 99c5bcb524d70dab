"""``step.c``, called with tensors: more characters of several texts, in one call.

Axis letters: S steps, B texts, V vocabulary, H hidden, G gates, stacked as rows; K a product's
inner axis, N its columns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
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
from charrnn.config import CellName, SampleConfig

MOST_STEPS = 64
"""Most steps that one call makes."""

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
    LONGS = ("step_room", "step")

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
    ) -> BoundSteps:
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
        return BoundSteps(self._library, cell, layers, table_VG, head, head_bias_V)


class _Task(ctypes.Structure):
    """What C works on, with its fields in the order of ``step.c``'s struct."""

    _fields_ = (
        ("cell", ctypes.c_long),
        ("type", ctypes.c_long),
        ("lanes", ctypes.c_long),
        ("hidden", ctypes.c_long),
        ("depth", ctypes.c_long),
        ("vocabulary", ctypes.c_long),
        ("layers", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("head", ctypes.c_void_p),
        ("head_bias", ctypes.c_void_p),
        ("symbols", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("room", ctypes.c_void_p),
        ("points", ctypes.c_void_p),
        ("drawn", ctypes.c_void_p),
        ("temperature", ctypes.c_double),
        ("top_p", ctypes.c_double),
        ("top_k", ctypes.c_int64),
        ("never", ctypes.c_int64),
        ("made", ctypes.c_int64),
    )


#: Made once, as making one takes as long as passing it.
_COUNTS = [ctypes.c_long(count) for count in range(MOST_STEPS + 1)]


class BoundSteps:
    """The step of a model, made by ``Steps.bind``, which can also draw what comes next.

    Attributes:
        logits_BV: The logits of the latest step; the next one overwrites them.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        cell: CellName,
        layers: Sequence[Layer],
        table_VG: Tensor,
        head: Tensor,
        head_bias_V: Tensor,
    ) -> None:
        lanes, hidden = layers[0].h_BH.shape
        vocabulary = len(head_bias_V)
        matrices = [
            matrix
            for layer in layers
            for matrix in (layer.inputs, layer.recurrent)
            if matrix is not None
        ]
        refuse_misreadable(*matrices, head, dtypes=(head.dtype,))
        refuse_misreadable(*chain(*(layer[2:] for layer in layers)), table_VG, head_bias_V)
        fields = [*chain(*layers)]
        addresses = (ctypes.c_void_p * len(fields))(*(argument(field).value for field in fields))
        self.logits_BV = np.empty((lanes, vocabulary), np.float32)
        self._symbols_B = np.zeros(lanes, np.int64)
        self._points_SB = np.empty((MOST_STEPS, lanes))
        self._drawn_SB = np.empty((MOST_STEPS, lanes), np.int64)
        self._task = _Task(
            cell=IN_C.index(cell),
            type=_TYPES.index(head.dtype),
            lanes=lanes,
            hidden=hidden,
            depth=len(layers),
            vocabulary=vocabulary,
            layers=ctypes.addressof(addresses),
            table=table_VG.data_ptr(),
            head=head.data_ptr(),
            head_bias=head_bias_V.data_ptr(),
            symbols=self._symbols_B.ctypes.data,
            logits=self.logits_BV.ctypes.data,
            points=self._points_SB.ctypes.data,
            drawn=self._drawn_SB.ctypes.data,
        )
        self._at = ctypes.byref(self._task)
        nbytes = sum(matrix.nbytes for matrix in (*matrices, head))
        ways = [
            (*map(ctypes.c_long, way),)
            for way in ways_to_share(lanes, nbytes, torch.get_num_threads())
        ]
        room = np.empty(max(library.step_room(*way, self._at) for way in ways), np.float32)
        self._task.room = room.ctypes.data
        functions = [partial(library.step, *way) for way in ways]
        self._run = Fastest(functions) if len(ways) > 1 else functions[0]
        self._draw = library.draw
        #: Keeps alive what C has the addresses of.
        self._held = (addresses, fields, table_VG, head, head_bias_V, room)

    def step(self, symbols_B: NDArray[np.integer]) -> NDArray[np.float32]:
        """Read one more character of every text, and return logits_BV for the next one."""
        self._symbols_B[:] = symbols_B
        self._run(_COUNTS[0], self._at)
        return self.logits_BV.copy()

    def set_draws(self, config: SampleConfig, never: int) -> None:
        """Say how to draw: by temperature, top-k and top-p, and which symbol never (-1: none)."""
        task = self._task
        task.temperature, task.never = config.temperature, never
        task.top_k = task.vocabulary if config.top_k is None else config.top_k
        if config.temperature == 0:
            task.top_k = 1
        task.top_p = 1 if config.top_p is None else config.top_p

    def read_next(self, symbols_B: NDArray[np.integer]) -> None:
        """Say what ``next`` reads first, where that is not what was drawn last."""
        self._symbols_B[:] = symbols_B

    def next(self, points_SB: NDArray[np.float64]) -> NDArray[np.int64]:
        """Read the latest character of every text and draw the next one, S times.

        The draw of a text with a logit that is no number, or with none above -inf, is 0. So it
        ends early with the first time that a 0 is drawn.

        Args:
            points_SB: Where each draw is in the cumulative distribution, from 0 to 1 exclusively;
                1 <= S <= MOST_STEPS.

        Returns:
            What is drawn, [S, B] or fewer times; the next call overwrites it.
        """
        most = len(points_SB)
        self._points_SB[:most] = points_SB
        return self._drawn_SB[: self._run(_COUNTS[most], self._at)]

    def draw(
        self, logits_BV: NDArray[np.float32], points_B: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Draw as ``next`` does, once, by logits that were computed elsewhere; return symbols_B."""
        self.logits_BV[:] = logits_BV
        self._points_SB[0] = points_B
        self._draw(self._at)
        return self._symbols_B.copy()


def steps() -> Steps | None:
    """Return the compiled step, or None if it cannot be compiled here."""
    return compiled(Steps)
