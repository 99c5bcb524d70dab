"""The three recurrences: a plain RNN, an LSTM and a GRU, one layer each.

Each is here twice: one step by its equations, and a window by the fastest path there is.

A cell reads a window ``x_TBE`` (T time steps of B lanes, E inputs) starting from
a given state, and returns the outputs ``out_TBH`` and the state after the last
step. Nothing is kept between calls, and gradients flow through both states.

Every gate has its own rows of ``weight_input`` W [G*H, E], ``weight_recurrent``
U [G*H, H] and ``bias`` b [G*H] (sigma is the logistic function, * elementwise)::

    RNN   h' = tanh(W x + U h + b)                                Elman 1990
    LSTM  i, f, o = sigma(W x + U h + b)   g = tanh(W x + U h + b)
          c' = f * c + i * g               h' = o * tanh(c')      Gers et al. 2000
    GRU   r, z = sigma(W x + U h + b)
          n = tanh(W x + b + r * (U h + bias_recurrent))
          h' = (1 - z) * n + z * h                                Cho et al. 2014

The GRU's reset gate acts after the recurrent product, as in ``torch.nn.GRU``
and cuDNN (Cho et al. apply it before). Gates are stacked in ``torch.nn``'s
order: LSTM i, f, g, o; GRU r, z, n.

Axis letters: T time, B lanes, E inputs, H hidden, G gates. In names G stands for their stacked
rows: ``u_GH`` is [G*H, H].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.compute.autograd import has_loop, run_window
from charrnn.compute.device import has_capability
from charrnn.compute.kernels import dropout, linear
from charrnn.config import CELL_GATES, CellName

State = tuple[Tensor, ...]
"""What a cell carries from one character to the next: (h_BH,), or (h_BH, c_BH) for the LSTM."""

_WRONG_IN_TILES = 1024
"""Fewest units from which oneDNN's LSTM can give wrong gradients in bf16 in AMX's tiles: those of
inputs and state are then at right angles to the true ones (torch 2.13 and 2.15; with 1,025 units
they are right). In float32 they are right, and a window takes no longer there."""


class Cell(nn.Module, ABC):
    """One recurrent layer: the same weights at every time step.

    New weights are drawn from torch's global generator. Each gate's recurrent block is
    orthogonal, so that it preserves the norm of the state (Saxe, McClelland, Ganguli
    2014); input weights are normal with standard deviation 1/sqrt(E); biases are zero,
    except that of the gate that keeps the state.

    Args:
        inputs: E, the width of the inputs.
        hidden: H, the width of the state and of the output.
        weight_drop: Share of recurrent weights set to zero in training mode, the same
            ones for a whole call; the others are scaled by 1 / (1 - weight_drop)
            (DropConnect: Merity, Keskar, Socher 2018).

    Attributes:
        name: Which cell it is.
        gates: G, the number of blocks stacked in the weights.
        gate_names: The names of the gates whose values lie between 0 and 1, in the order of their
            blocks.
        states: The names of the state's tensors; the first, h, is also the output.
        keepers: For each state that has one, the gate that multiplies it, unit by unit, on its way
            to the next step: an open gate keeps the state.
        torch_operator: torch's own for a window.
        weight_input: W [G*H, E].
        weight_recurrent: U [G*H, H].
        bias: b [G*H].
        bias_recurrent: The second bias [H] of a GRU's candidate, added to U h before the reset gate
            scales it; None in the others.
    """

    name: ClassVar[CellName]
    gates: ClassVar[int]
    gate_names: ClassVar[tuple[str, ...]]
    states: ClassVar[tuple[str, ...]]
    keepers: ClassVar[dict[str, str]]
    torch_operator: ClassVar[Callable[..., tuple[Tensor, ...]]]
    bias_recurrent: nn.Parameter | None

    def __init__(self, inputs: int, hidden: int, weight_drop: float = 0.0) -> None:
        super().__init__()
        self.inputs = inputs
        self.hidden = hidden
        self.weight_drop = weight_drop
        rows = self.gates * hidden
        self.weight_input = nn.Parameter(torch.empty(rows, inputs))
        self.weight_recurrent = nn.Parameter(torch.empty(rows, hidden))
        self.bias = nn.Parameter(torch.zeros(rows))
        self.register_parameter("bias_recurrent", None)
        nn.init.normal_(self.weight_input, std=inputs**-0.5)
        for block_HH in self.weight_recurrent.detach().chunk(self.gates):
            nn.init.orthogonal_(block_HH)

    def initial_state(self, lanes: int) -> State:
        """Return the zero state of ``lanes`` lanes: a [B, H] tensor for each of ``states``."""
        return tuple(self.bias.new_zeros(lanes, self.hidden) for _ in self.states)

    def multiply_adds(self) -> int:
        """Return the multiply-adds of the matrix products for one character."""
        return self.weight_input.numel() + self.weight_recurrent.numel()

    def forward(
        self, x: Tensor, state: State, which_TB: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Read a window.

        Args:
            x: Inputs [T, B, E], T >= 1, or D distinct ones [D, E]. The products are computed in
                their type (bfloat16, say), and the weights are cast to it.
            state: The state before the window, [B, H] each.
            which_TB: Which of the D inputs each time step of a lane reads. Gives the same result
                as reading ``x[which_TB]``, but where the loops of ``charrnn.compute.autograd`` run,
                W x is computed only once for each distinct input.

        Returns:
            The outputs [T, B, H], in the inputs' type, and the state after the last
            step, in the type of ``state``.

        Raises:
            ValueError: the state has not as many tensors as ``states``, not as many lanes as the
                inputs, or not H units.
        """
        shape = (x if which_TB is None else which_TB).shape[1], self.hidden
        if len(state) != len(self.states):
            raise ValueError(f"the state must be {len(self.states)} tensors, not {len(state)}")
        for part_BH in state:
            if part_BH.shape != shape:  # C would read beyond its end, and so would oneDNN
                raise ValueError(
                    f"the state must be [lanes, units] = {list(shape)}, not {list(part_BH.shape)}"
                )
        u_GH: Tensor = self.weight_recurrent
        if self.training and self.weight_drop > 0:
            u_GH = dropout(u_GH, self.weight_drop)
        out_TBH, after = self._run(x, state, u_GH, which_TB)
        return out_TBH, tuple(a.to(s.dtype) for a, s in zip(after, state, strict=True))

    def _run(
        self, x: Tensor, state: State, u_GH: Tensor, which_TB: Tensor | None
    ) -> tuple[Tensor, State]:
        """Do what ``forward`` does, with U as it is given; the new state may be of any type."""
        if not x.is_cpu or not has_loop(self.name, x.dtype):
            return self._run_torch(x, state, u_GH, which_TB)
        dtype = torch.promote_types(x.dtype, torch.float32)  # the loops': float32 or float64
        projected = linear(x, self.weight_input.to(dtype), self.bias.to(dtype))
        before = [part_BH.to(dtype) for part_BH in state]
        second = self.bias_recurrent
        second_H = None if second is None else second.to(dtype)
        return run_window(self.name, projected, before, u_GH.to(dtype), second_H, which_TB)

    def _run_torch(
        self, x: Tensor, state: State, u_GH: Tensor, which_TB: Tensor | None
    ) -> tuple[Tensor, State]:
        """Do what ``_run`` does by torch's operator: cuDNN on CUDA, oneDNN's LSTM on a CPU.

        On CUDA a recurrence in bf16 needs cuDNN 9.13 or newer (``device.recurs_in_bf16``). With an
        older one torch runs the time steps one after another in its own kernels, which round an
        LSTM's memory cell at every step and sum the gradients of W and U in bf16.
        """
        narrow = x.is_cpu and x.dtype == torch.bfloat16  # on a CPU only an LSTM comes here
        is_wrong = narrow and self.hidden >= _WRONG_IN_TILES and has_capability("amx_bf16")
        wide = x.float() if is_wrong else x
        x_TBE = wide if which_TB is None else F.embedding(which_TB, wide)
        if self.bias_recurrent is None:
            second_G = torch.zeros_like(self.bias)
        else:  # torch's is added to U h of all gates; ours only to the last one's
            second_G = F.pad(self.bias_recurrent, (len(self.bias) - self.hidden, 0))
        weights = [self.weight_input, u_GH, self.bias, second_G]
        if x_TBE.is_cuda:
            allow_tensor_cores(x_TBE.dtype)
            # cuDNN wants its weights in one piece; otherwise torch warns and copies them at every
            # call. They are put together here, differentiably, because they may be cast or dropped.
            flat = torch.cat([weight.flatten().to(x_TBE.dtype) for weight in weights])
            pieces = torch.split_with_sizes(flat, [weight.numel() for weight in weights])
            weights = [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]
        else:
            weights = [weight.to(x_TBE.dtype) for weight in weights]
        cast = [s.to(x_TBE.dtype)[None] for s in state]
        before: Any = cast if len(cast) > 1 else cast[0]
        # cuDNN needs `train` whenever there will be a backward pass, even in evaluation mode.
        layers, drop, train = 1, 0.0, torch.is_grad_enabled()
        out_TBH, *after = self.torch_operator(
            x_TBE, before, weights, True, layers, drop, train, False, False
        )
        return out_TBH.to(x.dtype), tuple(s[0] for s in after)

    @abstractmethod
    def step(
        self, input_BG: Tensor, state: State, u_GH: Tensor
    ) -> tuple[State, tuple[Tensor, ...]]:
        """Make one step by the equations above.

        Args:
            input_BG: W x + b, [B, G*H].
            state: The state before, [B, H] each.
            u_GH: U, [G*H, H].

        Returns:
            The state after the step, and the values of the gates in ``gate_names``, [B, H] each.
        """


def allow_tensor_cores(dtype: torch.dtype) -> None:
    """Let cuDNN's recurrences use tensor cores, except that float32 must not be rounded to TF32.

    By default cuDNN rounds float32 factors to TF32's 10 bits, which torch's own products do not.
    But forbidding TF32 makes torch ask cuDNN for plain multiply-adds in bf16 too
    (``RNNDescriptor``, in ATen/cudnn/Descriptors.h). A backward pass reads the setting again.
    """
    torch.backends.cudnn.allow_tf32 = dtype != torch.float32


class RNN(Cell):
    """A plain recurrent layer with tanh (Elman 1990)."""

    name = "rnn"
    gates = CELL_GATES["rnn"]
    gate_names = ()
    states = ("h",)
    keepers: ClassVar[dict[str, str]] = {}
    torch_operator = torch.rnn_tanh

    def step(
        self, input_BG: Tensor, state: State, u_GH: Tensor
    ) -> tuple[State, tuple[Tensor, ...]]:
        """See ``Cell.step``."""
        (h_BH,) = state
        return ((input_BG + h_BH @ u_GH.t()).tanh(),), ()


class LSTM(Cell):
    """A long short-term memory with a forget gate (Gers, Schmidhuber, Cummins 2000).

    The forget gate starts open, with bias 1 (Jozefowicz, Zaremba, Sutskever 2015).
    """

    name = "lstm"
    gates = CELL_GATES["lstm"]
    gate_names = ("input", "forget", "output")
    states = ("h", "c")
    keepers: ClassVar[dict[str, str]] = {"c": "forget"}
    torch_operator = torch.lstm

    def __init__(self, inputs: int, hidden: int, weight_drop: float = 0.0) -> None:
        super().__init__(inputs, hidden, weight_drop)
        nn.init.ones_(self.bias.detach()[hidden : 2 * hidden])

    def step(
        self, input_BG: Tensor, state: State, u_GH: Tensor
    ) -> tuple[State, tuple[Tensor, ...]]:
        """See ``Cell.step``."""
        h_BH, c_BH = state
        i, f, g, o = (input_BG + h_BH @ u_GH.t()).chunk(4, dim=1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c_BH = f * c_BH + i * g
        return (o * c_BH.tanh(), c_BH), (i, f, o)


class GRU(Cell):
    """A gated recurrent unit (Cho et al. 2014), with the reset gate after the recurrent product.

    The update gate starts with bias 1 and so keeps most of the state, like an LSTM's forget
    gate (docs/diary.md).
    """

    name = "gru"
    gates = CELL_GATES["gru"]
    gate_names = ("reset", "update")
    states = ("h",)
    keepers: ClassVar[dict[str, str]] = {"h": "update"}
    torch_operator = torch.gru
    bias_recurrent: nn.Parameter

    def __init__(self, inputs: int, hidden: int, weight_drop: float = 0.0) -> None:
        super().__init__(inputs, hidden, weight_drop)
        self.bias_recurrent = nn.Parameter(torch.zeros(hidden))
        nn.init.ones_(self.bias.detach()[hidden : 2 * hidden])

    def step(
        self, input_BG: Tensor, state: State, u_GH: Tensor
    ) -> tuple[State, tuple[Tensor, ...]]:
        """See ``Cell.step``."""
        (h_BH,) = state
        recurrent_BG = h_BH @ u_GH.t()
        (wx_r, wx_z, wx_n), (uh_r, uh_z, uh_n) = input_BG.chunk(3, 1), recurrent_BG.chunk(3, 1)
        r, z = (wx_r + uh_r).sigmoid(), (wx_z + uh_z).sigmoid()
        n = (wx_n + r * (uh_n + self.bias_recurrent)).tanh()
        return ((1 - z) * n + z * h_BH,), (r, z)


CELLS: dict[CellName, type[Cell]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
