"""The time-step loops of ``recurrence.c``, and what comes after them, called with tensors.

Without a C compiler that has OpenMP, ``loops`` returns None: RNN and GRU then run in numpy, an LSTM
in torch.

Axis letters: T time, B lanes, D distinct inputs, H hidden, G the stacked gates' rows (in TBGH and
GHH the gates themselves), K a product's inner axis, N its columns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable
from functools import partial

import torch
from torch import Tensor

from charrnn.compute.library import argument, compiled, refuse_misreadable
from charrnn.compute.products import IN_C, Multiplier, ways_to_share
from charrnn.compute.trials import Fastest
from charrnn.config import CellName

_TYPES = (torch.float32, torch.bfloat16)
"""Types of typed tensors: without and with products in bf16."""

_KEPT: dict[CellName, int] = {"rnn": 0, "lstm": 5, "gru": 4}
"""How many numbers a unit's step keeps for the backward loop: of an LSTM i, f, g, o and tanh(c); of
a GRU r, z, m and n, where ``n = tanh(W x + b + r * m)`` and ``m = U h + bias``."""


class Loops(Multiplier):
    """The functions of ``recurrence.c``, on tensors.

    All tensors are float32 (``which_TB`` int64), contiguous and on a CPU. But inputs and the
    gradient of outputs may be bf16: then the recurrent products are in bf16 too, if the processor
    has them. Sizes and the indices in ``which_TB`` are not checked. Tensors that are returned are
    allocated here. In all functions

    - ``weight_GH`` is U;
    - ``projected`` is W x + b of every time step, [T, B, G], or of D distinct x, [D, G], and
      ``which_TB`` says which of these each step reads (None: its own);
    - ``states_TBH`` and, of an LSTM, ``cells_TBH`` hold all states and cells, [T + 1, B, H]; the
      forward loop is given the first and fills in the rest;
    - ``bias_H`` is a GRU's second bias;
    - ``kept_TBGH`` holds what else the backward loop needs of the forward one, [T, B, numbers of a
      unit, H] (``_KEPT``);
    - ``d_out_TBH`` is the gradient of the outputs; ``dh_BH`` and, of an LSTM, ``dc_BH`` are those
      of the last state and cell, and are overwritten with those of the first;
    - what is returned "typed" is in the products' type, as they read it.

    All raise TypeError for tensors that C would misread (``refuse_misreadable``).
    """

    FILE = "recurrence.c"
    LONGS = ("gradient_room",)

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(library)
        #: The ways of making a loop, by its function, the shape of its panels, and its sizes.
        self._fastest: dict[Hashable, Fastest] = {}

    def forward(
        self,
        cell: CellName,
        weight_GH: Tensor,
        projected: Tensor,
        which_TB: Tensor | None,
        states_TBH: Tensor,
        cells_TBH: Tensor | None = None,
        bias_H: Tensor | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Fill in the states; return them in the type of ``projected``, and what is kept.

        That is None unless ``keep``. Each gate's columns of U transposed get panels of their own.
        """
        hidden = weight_GH.shape[1]
        kept_TBGH = _room_to_keep(states_TBH, _KEPT[cell], keep)
        if more := -hidden % self._width:
            by_gate_GHH = weight_GH.view(-1, hidden, hidden)
            weight_GH = torch.nn.functional.pad(by_gate_GHH, (0, 0, 0, more)).flatten(0, 1)
        narrow = self._is_narrow(projected)
        wide = projected.float() if projected.dtype == torch.bfloat16 else projected
        typed_TBH = self._room_for(narrow, states_TBH, hidden) if narrow else states_TBH
        tensors = (wide, which_TB, bias_H, states_TBH, typed_TBH, cells_TBH, kept_TBGH)
        self._run("forward", cell, narrow, weight_GH.t(), states_TBH[1:], *tensors)
        return typed_TBH[..., :hidden].to(projected.dtype), kept_TBGH

    def backward(
        self,
        cell: CellName,
        weight_GH: Tensor,
        states_TBH: Tensor | None,
        cells_TBH: Tensor | None,
        kept_TBGH: Tensor | None,
        d_out_TBH: Tensor,
        dh_BH: Tensor,
        dc_BH: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of U h, [T, B, G], and of a GRU's n before its tanh, [T, B, H].

        Both are typed. An LSTM's states are not read.
        """
        narrow = self._is_narrow(d_out_TBH)
        d_out_TBH = d_out_TBH.to(_TYPES[narrow]).contiguous()
        d_TBG = self._room_for(narrow, d_out_TBH, len(weight_GH))
        d_n_TBH = torch.empty_like(d_out_TBH) if cell == "gru" else None
        given = (states_TBH, cells_TBH, kept_TBGH, d_out_TBH)
        tensors = (*given, dh_BH, dc_BH, d_TBG, d_n_TBH)
        self._run("backward", cell, narrow, weight_GH, d_out_TBH, *tensors)
        return d_TBG[..., : len(weight_GH)], d_n_TBH

    def sum_rows(self, x_TBN: Tensor, which_TB: Tensor | None = None, count: int = 1) -> Tensor:
        """Return sums over time and lanes, [D, N], in float32.

        Args:
            x_TBN: float32 or bf16; its last axis may be a part of a longer one.
            which_TB: which of the sums each row belongs to; None: all to the first.
            count: D.
        """
        narrow, columns = _TYPES.index(x_TBN.dtype), x_TBN.shape[2]
        rows = x_TBN.flatten(0, 1)
        if rows.data_ptr() != x_TBN.data_ptr() or rows.stride(1) != 1:
            raise TypeError("rows for C must be evenly spaced, and each contiguous")
        sums_DN = torch.zeros(count, columns, dtype=torch.float32)
        refuse_misreadable(which_TB, sums_DN)
        sizes = (torch.get_num_threads(), narrow, len(rows), columns)
        arguments = (*sizes, rows, rows.stride(0), which_TB, sums_DN)
        self._library.sum_rows(*map(argument, arguments))
        return sums_DN

    def weight_gradient(self, d_TBN: Tensor, x_TBK: Tensor) -> Tensor:
        """Return the sum over time and lanes of the outer products ``d x``, [N, K], in float32."""
        d, x = d_TBN.flatten(0, 1).contiguous(), x_TBK.flatten(0, 1).contiguous()
        threads, (count, outputs), inputs = torch.get_num_threads(), d.shape, x.shape[1]
        gradient_NK = d.new_zeros(outputs, inputs)  # of no rows C writes nothing
        room = d.new_empty(self._library.gradient_room(*map(argument, (threads, outputs))))
        refuse_misreadable(d, x)
        tensors = (d, x, gradient_NK, room)
        arguments: tuple[Tensor | int, ...] = (threads, count, outputs, inputs, *tensors)
        self._library.weight_gradient(*map(argument, arguments))
        return gradient_NK

    def _is_narrow(self, x: Tensor) -> bool:
        """Whether products are in bf16 for such inputs, or such gradients of outputs."""
        return self.multiplies_bf16 and x.dtype == torch.bfloat16

    def _room_for(self, narrow: bool, like_TBH: Tensor, columns: int) -> Tensor:
        """Return a typed tensor to be written, [T, B, columns], in bf16 padded for the product."""
        dtype = _TYPES[narrow]
        padded = columns + -columns % self._depths[dtype]
        return like_TBH.new_empty(*like_TBH.shape[:2], padded, dtype=dtype)

    def _run(
        self,
        name: str,
        cell: CellName,
        narrow: bool,
        weight_KN: Tensor,
        like_TBH: Tensor,
        *rest: Tensor | None,
    ) -> None:
        """Call a function of the library, with the sizes of a tensor like ``like_TBH``.

        ``narrow`` is set only if the library has products in bf16.
        """
        steps, lanes, hidden = like_TBH.shape
        refuse_misreadable(*rest, dtypes=(*_TYPES, torch.int64))
        if weight_KN.dtype != torch.float32:
            raise TypeError(f"weights for C must be float32, not {weight_KN.dtype}")
        panels = self._panels(weight_KN.bfloat16() if narrow else weight_KN)
        ways = ways_to_share(lanes, panels.nbytes, torch.get_num_threads())
        most = max(threads for threads, _ in ways)
        entries = lanes * len(panels) * self._width + most * 4 * hidden
        room = torch.empty(entries, dtype=torch.float32)
        sizes = (narrow, steps, lanes, hidden)
        key = (name, panels.shape, *sizes, *ways)
        if key not in self._fastest:
            function: Callable[..., None] = getattr(self._library, name)
            self._fastest[key] = Fastest([partial(function, *map(argument, way)) for way in ways])
        arguments = (*sizes, panels, IN_C.index(cell), *rest, room)
        self._fastest[key](*map(argument, arguments))


def _room_to_keep(states_TBH: Tensor, gates: int, keep: bool) -> Tensor | None:
    states, lanes, hidden = states_TBH.shape
    return states_TBH.new_empty(states - 1, lanes, gates, hidden) if keep else None


def loops() -> Loops | None:
    """Return the compiled loops, or None if they cannot be compiled here."""
    return compiled(Loops)
