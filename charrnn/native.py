"""The time-step loops of ``recurrence.c``, called with tensors.

Without a C compiler that has OpenMP, ``loops`` returns None: RNN and GRU then run in numpy, an LSTM
in torch.

Axis letters: T time, B lanes, D distinct inputs, H hidden, G gates, as an axis of their own (GH) or
stacked as rows (G); K a product's inner axis, N its columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from charrnn.compiler import LEAST_LANES, Library, argument, compiled, refuse_misreadable
from charrnn.config import CELL_NAMES


class Loops(Library):
    """The functions of ``recurrence.c``, on tensors.

    All tensors are float32 (``which_TB`` int64), contiguous and on a CPU. Their sizes and the
    indices in ``which_TB`` are not checked. Tensors that are returned are allocated here. In all
    functions

    - ``narrow`` asks for recurrent products in bf16; a processor without it computes them in
      float32;
    - ``weight_GH`` or ``weight_HH`` is U;
    - ``projected`` is W x + b of every time step, [T, B, G], or of D distinct x, [D, G], and
      ``which_TB`` says which of these each step reads (None: its own);
    - ``states_TBH`` and ``cells_TBH`` hold all states and cells, [T + 1, B, H]; a forward loop
      is given the first and fills in the rest;
    - ``kept_TBGH`` holds what the backward loop needs of the forward one, which returns it if
      ``keep``;
    - ``d_out_TBH`` is the gradient of the outputs; ``dh_BH`` and ``dc_BH`` are the gradients of the
      last state and cell, and are overwritten with those of the first.
    """

    FILE = "recurrence.c"
    FUNCTIONS = ("forward", "rnn_backward", "lstm_backward", "gru_backward")

    def rnn_forward(
        self,
        narrow: bool,
        weight_HH: Tensor,
        projected: Tensor,
        which_TB: Tensor | None,
        states_TBH: Tensor,
    ) -> None:
        """Fill in the states."""
        tensors = (projected, which_TB, None, states_TBH, None, None)
        self._run("forward", narrow, weight_HH.t(), states_TBH, CELL_NAMES.index("rnn"), *tensors)

    def rnn_backward(
        self,
        narrow: bool,
        weight_HH: Tensor,
        states_TBH: Tensor,
        d_out_TBH: Tensor,
        dh_BH: Tensor,
    ) -> Tensor:
        """Return the gradient before each tanh, [T, B, H]."""
        d_TBH = torch.empty_like(d_out_TBH)
        tensors = (states_TBH, d_out_TBH, dh_BH, d_TBH)
        self._run("rnn_backward", narrow, weight_HH, states_TBH, *tensors)
        return d_TBH

    def lstm_forward(
        self,
        narrow: bool,
        weight_GH: Tensor,
        projected: Tensor,
        which_TB: Tensor | None,
        states_TBH: Tensor,
        cells_TBH: Tensor,
        keep: bool,
    ) -> Tensor | None:
        """Fill in states and cells; return i, f, g, o and tanh(c), [T, B, 5, H], if ``keep``."""
        kept_TBGH = _room_to_keep(states_TBH, 5, keep)
        tensors = (projected, which_TB, None, states_TBH, cells_TBH, kept_TBGH)
        self._run("forward", narrow, weight_GH.t(), states_TBH, CELL_NAMES.index("lstm"), *tensors)
        return kept_TBGH

    def lstm_backward(
        self,
        narrow: bool,
        weight_GH: Tensor,
        cells_TBH: Tensor,
        kept_TBGH: Tensor,
        d_out_TBH: Tensor,
        dh_BH: Tensor,
        dc_BH: Tensor,
    ) -> Tensor:
        """Return the gradients of i, f, g and o before their functions, [T, B, 4H]."""
        d_TBG = d_out_TBH.new_empty(*d_out_TBH.shape[:2], len(weight_GH))
        tensors = (cells_TBH, kept_TBGH, d_out_TBH, dh_BH, dc_BH, d_TBG)
        self._run("lstm_backward", narrow, weight_GH, cells_TBH, *tensors)
        return d_TBG

    def gru_forward(
        self,
        narrow: bool,
        weight_GH: Tensor,
        projected: Tensor,
        which_TB: Tensor | None,
        bias_H: Tensor,
        states_TBH: Tensor,
        keep: bool,
    ) -> Tensor | None:
        """Fill in the states; return r, z, m and n, [T, B, 4, H], if ``keep``.

        Here ``n = tanh(W x + b + r * m)``, and ``m = U h + bias``.
        """
        kept_TBGH = _room_to_keep(states_TBH, 4, keep)
        tensors = (projected, which_TB, bias_H, states_TBH, None, kept_TBGH)
        self._run("forward", narrow, weight_GH.t(), states_TBH, CELL_NAMES.index("gru"), *tensors)
        return kept_TBGH

    def gru_backward(
        self,
        narrow: bool,
        weight_GH: Tensor,
        states_TBH: Tensor,
        kept_TBGH: Tensor,
        d_out_TBH: Tensor,
        dh_BH: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of r and z before their sigmas and of m, [T, B, 3H]; and of n."""
        d_n_TBH = torch.empty_like(d_out_TBH)
        d_TBG = d_n_TBH.new_empty(*d_n_TBH.shape[:2], len(weight_GH))
        tensors = (states_TBH, kept_TBGH, d_out_TBH, dh_BH, d_TBG, d_n_TBH)
        self._run("gru_backward", narrow, weight_GH, states_TBH, *tensors)
        return d_TBG, d_n_TBH

    def _run(
        self,
        name: str,
        narrow: bool,
        weight_KN: Tensor,
        like_TBH: Tensor,
        *rest: Tensor | int | None,
    ) -> None:
        """Call a function of the library, with the sizes of one of its tensors, [T + 1, B, H]."""
        states, lanes, hidden = like_TBH.shape
        threads = max(1, min(torch.get_num_threads(), lanes // LEAST_LANES))
        narrow = narrow and self.multiplies_bf16
        refuse_misreadable(*rest)
        assert weight_KN.dtype == torch.float32, f"they must be float32: {weight_KN.dtype}"
        panels = self._panels(weight_KN.bfloat16() if narrow else weight_KN)
        # room_of in recurrence.c: the sums, and the factors in bf16.
        columns = len(panels) * self._width
        room = like_TBH.new_empty(lanes * (columns + panels.numel() // columns))
        function: Callable[..., None] = getattr(self._library, name)
        sizes = (threads, narrow, states - 1, lanes, hidden)
        function(*map(argument, (*sizes, panels, *rest, room)))


def _room_to_keep(states_TBH: Tensor, gates: int, keep: bool) -> Tensor | None:
    states, lanes, hidden = states_TBH.shape
    return states_TBH.new_empty(states - 1, lanes, gates, hidden) if keep else None


def loops() -> Loops | None:
    """Return the compiled loops, or None if they cannot be compiled here."""
    return compiled(Loops)
