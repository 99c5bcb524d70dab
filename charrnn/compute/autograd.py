"""The three recurrences over a window on a CPU, with hand-written gradients.

torch's LSTM on a CPU is one fused oneDNN primitive; its RNN and GRU are loops of small
operators, so a GRU, with three quarters of an LSTM's products, takes twice as long.
The loops here are faster, and so is the LSTM's where there is one (``has_loop``):

- the input product is computed before the loop, once for each distinct input: a window of
  2,048 characters has some 60 of them. The gradient of the recurrent weights is one large
  product after the loop (in bf16 if the inputs are);
- in float32 the loop itself is compiled C (``recurrence``). In float64, or without a compiler,
  RNN and GRU run in numpy on the tensors' own memory: a numpy call costs half as much as
  torch's, and numpy's tanh a tenth of torch's with MKL.

Axis letters: T time, B lanes, D distinct inputs, H hidden, G the stacked gates' rows (in TBGH the
gates themselves), N the columns of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from charrnn.compute import recurrence
from charrnn.compute.device import multiplies_bf16
from charrnn.compute.kernels import (
    needs_gradient,
    refuse_second_derivative,
    step_product,
    weight_gradient,
)
from charrnn.config import CellName


def has_loop(cell: CellName, dtype: torch.dtype) -> bool:
    """Return whether ``run_window`` can run a cell on this CPU for inputs of a type.

    It can always run an RNN or a GRU, and an LSTM in compiled C. Where it can, it is better than
    oneDNN's LSTM: in bf16, most of all with AMX, which oneDNN's LSTM does not use in training;
    where time steps share inputs, because oneDNN computes the input product for every step; and on
    a busy machine, where oneDNN's threads wait for each other at every time step (docs/diary.md).
    """
    if cell != "lstm":
        return True
    narrow = dtype == torch.bfloat16
    may_have = multiplies_bf16(torch.device("cpu")) if narrow else dtype == torch.float32
    if not may_have:
        return False  # before asking for the loops, which may compile them
    compiled = recurrence.loops()
    return compiled is not None and (compiled.multiplies_bf16 or not narrow)


def run_window(
    cell: CellName,
    projected: Tensor,
    state: Sequence[Tensor],
    weight_GH: Tensor,
    bias_H: Tensor | None = None,
    which_TB: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a cell over a window of T >= 1 time steps on a CPU; once differentiable.

    Args:
        cell: One that ``has_loop``.
        projected: W x + b of every time step, [T, B, G], or of D distinct x, [D, G]; contiguous.
            Its type is that of the other tensors, float32 or float64; or it is bfloat16 and
            they are float32.
        state: The state before, [B, H] each: h, and an LSTM's c.
        weight_GH: U.
        bias_H: A GRU's second bias.
        which_TB: Which of the D inputs each time step of a lane reads, int64, contiguous; None:
            each has its own.

    Returns:
        The outputs [T, B, H], in the type of ``projected``, and the state after the last step.
    """
    keep = needs_gradient(projected, *state, weight_GH, bias_H)
    out_TBH, *after = _Window.apply(cell, keep, projected, weight_GH, bias_H, which_TB, *state)
    return out_TBH, tuple(after)


class _Window(torch.autograd.Function):
    """``run_window`` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: CellName,
        keep: bool,
        projected: Tensor,
        weight_GH: Tensor,
        bias_H: Tensor | None,
        which_TB: Tensor | None,
        h_BH: Tensor,
        c_BH: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        states_TBH = _states(h_BH, projected, which_TB)
        cells_TBH = None if c_BH is None else _states(c_BH, projected, which_TB)
        typed_TBH, kept_TBGH = _loops(h_BH).forward(
            cell, weight_GH, projected, which_TB, states_TBH, cells_TBH, bias_H, keep
        )
        # An LSTM's states are needed again only for the gradient of U, which reads the typed ones.
        read_TBH = states_TBH if cells_TBH is None else None
        ctx.save_for_backward(weight_GH, read_TBH, cells_TBH, kept_TBGH, typed_TBH, which_TB)
        ctx.cell, ctx.count = cell, len(projected)
        after = [each[-1].clone() for each in (states_TBH, cells_TBH) if each is not None]
        return typed_TBH[1:].contiguous(), *after

    @staticmethod
    def backward(ctx: Any, d_out_TBH: Tensor, *d_last: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        weight_GH, states_TBH, cells_TBH, kept_TBGH, typed_TBH, which_TB = ctx.saved_tensors
        d_state = [d_BH.clone(memory_format=torch.contiguous_format) for d_BH in d_last]
        loops = _loops(d_state[0])
        d_TBG, d_n_TBH = loops.backward(
            ctx.cell, weight_GH, states_TBH, cells_TBH, kept_TBGH, d_out_TBH, *d_state
        )
        d_bias_H = None
        if d_n_TBH is not None:
            (d_bias_H,) = loops.sum_rows(d_TBG[..., -d_n_TBH.shape[2] :])
        d_projected, d_weight = _gradients(loops, d_TBG, typed_TBH, which_TB, ctx.count, d_n_TBH)
        return None, None, d_projected, d_weight, d_bias_H, None, *d_state


def _gradients(
    loops: recurrence.Loops | _NumpyLoops,
    d_TBG: Tensor,
    typed_TBH: Tensor,
    which_TB: Tensor | None,
    count: int,
    d_last_TBH: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the inputs W x + b and of U.

    Args:
        loops: The loops that made the gradients.
        d_TBG: The gradient of U h, typed; may be overwritten.
        typed_TBH: All states [T + 1, B, H], in the type of inputs and products.
        which_TB: Which of the inputs each time step reads; None: its own.
        count: How many inputs there are.
        d_last_TBH: The gradient of the inputs' last block, where it differs from U h's.

    Returns:
        The gradient of the inputs, in the type of ``typed_TBH``; U's in that of the weights.
    """
    typed_TBG = d_TBG.to(typed_TBH.dtype)
    d_weight = weight_gradient(typed_TBG, typed_TBH[:-1])
    d_weight = d_weight.to(torch.promote_types(d_weight.dtype, torch.float32))
    if which_TB is None:
        if d_last_TBH is not None:
            typed_TBG[..., -d_last_TBH.shape[2] :] = d_last_TBH
        return typed_TBG.contiguous(), d_weight
    blocks = [d_TBG]
    if d_last_TBH is not None:
        blocks = [d_TBG[..., : -d_last_TBH.shape[2]], d_last_TBH]
    d_DG = torch.cat([loops.sum_rows(block, which_TB, count) for block in blocks], 1)
    return d_DG.to(typed_TBH.dtype), d_weight


def _states(h_BH: Tensor, projected: Tensor, which_TB: Tensor | None) -> Tensor:
    """Return a tensor for all states, [T + 1, B, H], with the first one filled in."""
    steps = len(projected if which_TB is None else which_TB)
    states_TBH = h_BH.new_empty(steps + 1, *h_BH.shape)
    states_TBH[0] = h_BH
    return states_TBH


def _loops(h_BH: Tensor) -> recurrence.Loops | _NumpyLoops:
    """Return the loops for states of this type: compiled in float32 if possible, else numpy's."""
    compiled = recurrence.loops() if h_BH.dtype == torch.float32 else None
    return _NumpyLoops() if compiled is None else compiled


_Product = Callable[[Tensor], Tensor]
"""``x_BK -> x @ weight.T``: U h of a step, or the way back through U."""

#: Numpy need not warn of a NaN in a state: whoever looks at the loss sees it.
_quietly = np.errstate(all="ignore")


class _NumpyLoops:
    """The loops of ``recurrence.Loops`` for RNN and GRU, with a numpy call for every operation.

    Products are in the states' type even for inputs in bf16, and so are the gradients returned:
    converting the arrays at every step would cost as much as bf16 saves.
    """

    @_quietly
    def forward(
        self,
        cell: CellName,
        weight_GH: Tensor,
        projected: Tensor,
        which_TB: Tensor | None,
        states_TBH: Tensor,
        cells_TBH: Tensor | None,
        bias_H: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None]:
        assert cell != "lstm"  # it has no loop here
        wide = projected.to(states_TBH.dtype)
        projected_TBG = wide if which_TB is None else wide[which_TB]
        recurrent = step_product(weight_GH, *projected_TBG.shape[:2])
        kept_TBGH = None
        if cell == "rnn":
            _rnn_forward(recurrent, projected_TBG, states_TBH)
        else:
            assert bias_H is not None
            kept_TBGH = _gru_forward(recurrent, projected_TBG, bias_H, states_TBH, keep)
        return states_TBH.to(projected.dtype), kept_TBGH

    @_quietly
    def backward(
        self,
        cell: CellName,
        weight_GH: Tensor,
        states_TBH: Tensor,
        cells_TBH: Tensor | None,
        kept_TBGH: Tensor | None,
        d_out_TBH: Tensor,
        dh_BH: Tensor,
        dc_BH: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        recurrent = step_product(weight_GH.t(), *d_out_TBH.shape[:2])
        d_out_TBH = d_out_TBH.to(states_TBH.dtype)
        if cell == "rnn":
            return _rnn_backward(recurrent, states_TBH, d_out_TBH, dh_BH), None
        assert kept_TBGH is not None
        return _gru_backward(recurrent, states_TBH, kept_TBGH, d_out_TBH, dh_BH)

    def sum_rows(self, x_TBN: Tensor, which_TB: Tensor | None = None, count: int = 1) -> Tensor:
        if which_TB is None:
            return x_TBN.sum((0, 1))[None]
        sums_DN = x_TBN.new_zeros(count, x_TBN.shape[2])
        return sums_DN.index_add_(0, which_TB.flatten(), x_TBN.flatten(0, 1))


def _rnn_forward(recurrent: _Product, projected_TBH: Tensor, states_TBH: Tensor) -> None:
    of_steps = zip(states_TBH[:-1], projected_TBH.numpy(), states_TBH[1:].numpy(), strict=True)
    for h, x, h_next in of_steps:
        np.add(recurrent(h).numpy(), x, out=h_next)
        np.tanh(h_next, out=h_next)


def _rnn_backward(
    recurrent: _Product, states_TBH: Tensor, d_out_TBH: Tensor, dh_BH: Tensor
) -> Tensor:
    # tanh' = 1 - tanh^2; each step's factor becomes its gradient in place.
    d_TBH = 1 - states_TBH[1:].square()
    dh = dh_BH.numpy()
    of_steps = zip(d_TBH, d_TBH.numpy(), d_out_TBH.numpy(), strict=True)
    for d_tensor, d, above in reversed(list(of_steps)):
        dh += above
        d *= dh
        np.copyto(dh, recurrent(d_tensor).numpy())
    return d_TBH


def _gru_forward(
    recurrent: _Product, projected_TBG: Tensor, bias_H: Tensor, states_TBH: Tensor, keep: bool
) -> Tensor:
    steps, lanes, _ = projected_TBG.shape
    gates_TBGH = projected_TBG.view(steps, lanes, 3, -1).numpy()
    bias = bias_H.detach().numpy()
    kept_TBGH = projected_TBG.new_empty(steps if keep else 1, lanes, 4, len(bias))
    each_TBGH = kept_TBGH.expand(steps, -1, -1, -1)
    of_steps = zip(
        states_TBH[:-1], states_TBH.numpy(), states_TBH[1:].numpy(), gates_TBGH,
        each_TBGH[:, :, :2], each_TBGH.numpy(), strict=False,
    )  # fmt: skip
    for h_tensor, h, h_next, x, rz_tensor, step in of_steps:
        sums = recurrent(h_tensor).numpy().reshape(x.shape)
        r, z, m, n = (step[:, gate] for gate in range(4))
        np.add(sums[:, :2], x[:, :2], out=step[:, :2])
        rz_tensor.sigmoid_()
        np.add(sums[:, 2], bias, out=m)
        np.multiply(r, m, out=n)
        np.add(n, x[:, 2], out=n)
        np.tanh(n, out=n)
        np.subtract(h, n, out=h_next)
        np.multiply(h_next, z, out=h_next)
        np.add(h_next, n, out=h_next)  # n + z (h - n)
    return kept_TBGH


def _gru_backward(
    recurrent: _Product, states_TBH: Tensor, kept_TBGH: Tensor, d_out_TBH: Tensor, dh_BH: Tensor
) -> tuple[Tensor, Tensor]:
    r, z, m, n = kept_TBGH.unbind(2)
    # The factors that turn a step's dh into the gradients of r and z before their
    # sigmas, of m, and of n before its tanh; each becomes that gradient in place.
    d_n = (1 - z) * (1 - n.square())
    d_r, d_z = d_n * m * r * (1 - r), (states_TBH[:-1] - n) * z * (1 - z)
    d_TBGH = torch.stack([d_r, d_z, d_n * r], 2)
    dh = dh_BH.numpy()
    through = np.empty_like(dh)
    of_steps = zip(
        d_TBGH.flatten(2), d_TBGH.numpy(), d_n.numpy(), z.numpy(), d_out_TBH.numpy(),
        strict=True,
    )  # fmt: skip
    for d_tensor, d_gates, dn, z_t, above in reversed(list(of_steps)):
        dh += above
        d_gates *= dh[:, None]
        dn *= dh
        np.multiply(dh, z_t, out=through)
        np.add(recurrent(d_tensor).numpy(), through, out=dh)
    return d_TBGH.flatten(2), d_n
