"""The three recurrences: a plain RNN, an LSTM and a GRU, one layer each.

A cell reads a chunk ``x_TBE`` (T time steps of B lanes, E inputs) from an
explicit state and gives the outputs ``out_TBH`` and the state after the last
step. Nothing is kept between calls, and gradients flow through both states.

With ``i`` the gates' blocks of ``weight_input`` W [G*H, E], ``weight_recurrent``
U [G*H, H] and ``bias`` b [G*H] (sigma the logistic function, * elementwise)::

    RNN   h' = tanh(W x + U h + b)                                Elman 1990
    LSTM  i, f, o = sigma(W x + U h + b)   g = tanh(W x + U h + b)
          c' = f * c + i * g               h' = o * tanh(c')      Gers et al. 2000
    GRU   r, z = sigma(W x + U h + b)
          n = tanh(W x + b + r * (U h + bias_recurrent))
          h' = (1 - z) * n + z * h                                Cho et al. 2014

The GRU's reset gate acts after the recurrent product, as in ``torch.nn.GRU``
and cuDNN (Cho et al. apply it before). Gates are stacked in ``torch.nn``'s
order: LSTM i, f, g, o; GRU r, z, n.

Axis letters: T time, B lanes, E inputs, H hidden, G gates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.config import CellName

__all__ = ["CELLS", "GRU", "LSTM", "RNN", "Cell", "State"]

State = tuple[Tensor, ...]
"""What a cell carries from one character to the next: (h_BH,), or (h_BH, c_BH) for the LSTM."""


class Cell(nn.Module, ABC):
    """One recurrent layer: the same weights at every time step.

    Args:
        inputs: E, the width of what it reads.
        hidden: H, the width of its state and output.
        weight_drop: Share of recurrent weights set to zero, in training mode, for
            the whole of one call (DropConnect: Merity, Keskar, Socher 2018).

    Attributes:
        gates: G, the blocks stacked in the weights.
        states: The names of the state's tensors.
    """

    gates: ClassVar[int]
    states: ClassVar[tuple[str, ...]]

    def __init__(self, inputs: int, hidden: int, weight_drop: float = 0.0) -> None:
        super().__init__()
        self.inputs = inputs
        self.hidden = hidden
        self.weight_drop = weight_drop
        rows = self.gates * hidden
        self.weight_input = nn.Parameter(torch.empty(rows, inputs))
        self.weight_recurrent = nn.Parameter(torch.empty(rows, hidden))
        self.bias = nn.Parameter(torch.empty(rows))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from torch's global generator.

        Recurrent blocks are orthogonal, one by one, so that each gate keeps the
        size of the state (Saxe, McClelland, Ganguli 2014); input weights are
        normal with deviation 1/sqrt(E); biases are zero.
        """
        nn.init.normal_(self.weight_input, std=self.inputs**-0.5)
        for block_HH in self.weight_recurrent.detach().split(self.hidden):
            nn.init.orthogonal_(block_HH)
        nn.init.zeros_(self.bias)

    def initial_state(self, lanes: int) -> State:
        """Return the zero state of ``lanes`` lanes: a [B, H] tensor for each of ``states``."""
        return tuple(self.bias.new_zeros(lanes, self.hidden) for _ in self.states)

    def multiply_adds(self) -> int:
        """Return the multiply-adds of the matrix products for one character."""
        return self.weight_input.numel() + self.weight_recurrent.numel()

    def forward(self, x_TBE: Tensor, state: State) -> tuple[Tensor, State]:
        """Read a chunk.

        Args:
            x_TBE: Inputs, T >= 1.
            state: The state before the chunk, [B, H] each.

        Returns:
            The outputs [T, B, H] and the state after the last step.
        """
        weight_recurrent = F.dropout(self.weight_recurrent, self.weight_drop, self.training)
        return self._run(x_TBE, state, weight_recurrent)

    @abstractmethod
    def _run(self, x_TBE: Tensor, state: State, weight_recurrent: Tensor) -> tuple[Tensor, State]:
        """Do what ``forward`` promises, with the recurrent weights of this call."""

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return f"{self.inputs}, {self.hidden}, weight_drop={self.weight_drop}"


class RNN(Cell):
    """A plain recurrent layer with tanh (Elman 1990)."""

    gates = 1
    states = ("h",)

    def _run(self, x_TBE: Tensor, state: State, weight_recurrent: Tensor) -> tuple[Tensor, State]:
        weights = tuple(
            w.to(x_TBE.dtype)
            for w in (self.weight_input, weight_recurrent, self.bias, torch.zeros_like(self.bias))
        )
        out_TBH, h_1BH = torch.rnn_tanh(
            x_TBE, state[0][None], weights, True, 1, 0.0, self.training, False, False
        )
        return out_TBH, (h_1BH[0],)


class LSTM(Cell):
    """A long short-term memory with a forget gate (Gers, Schmidhuber, Cummins 2000)."""

    gates = 4
    states = ("h", "c")

    def reset_parameters(self) -> None:
        """Draw new weights; the forget gate starts open, with bias 1 (Jozefowicz et al. 2015)."""
        super().reset_parameters()
        nn.init.ones_(self.bias.detach()[self.hidden : 2 * self.hidden])

    def _run(self, x_TBE: Tensor, state: State, weight_recurrent: Tensor) -> tuple[Tensor, State]:
        weights = tuple(
            w.to(x_TBE.dtype)
            for w in (self.weight_input, weight_recurrent, self.bias, torch.zeros_like(self.bias))
        )
        out_TBH, h_1BH, c_1BH = torch.lstm(
            x_TBE,
            (state[0][None], state[1][None]),
            weights,
            True,
            1,
            0.0,
            self.training,
            False,
            False,
        )
        return out_TBH, (h_1BH[0], c_1BH[0])


class GRU(Cell):
    """A gated recurrent unit (Cho et al. 2014), the reset gate after the recurrent product.

    Attributes:
        bias_recurrent: The candidate's second bias [H], inside the product that the
            reset gate scales.
    """

    gates = 3
    states = ("h",)

    def __init__(self, inputs: int, hidden: int, weight_drop: float = 0.0) -> None:
        super().__init__(inputs, hidden, weight_drop)
        self.bias_recurrent = nn.Parameter(torch.zeros(hidden))

    def _run(self, x_TBE: Tensor, state: State, weight_recurrent: Tensor) -> tuple[Tensor, State]:
        bias_recurrent = F.pad(self.bias_recurrent, (2 * self.hidden, 0))
        weights = tuple(
            w.to(x_TBE.dtype)
            for w in (self.weight_input, weight_recurrent, self.bias, bias_recurrent)
        )
        out_TBH, h_1BH = torch.gru(
            x_TBE, state[0][None], weights, True, 1, 0.0, self.training, False, False
        )
        return out_TBH, (h_1BH[0],)


CELLS: dict[CellName, type[Cell]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
