"""The three recurrences over a chunk on a CPU, with their gradients by hand.

torch's LSTM on a CPU is one fused oneDNN primitive; its RNN and GRU are loops of small
operators, so that a GRU, with three quarters of an LSTM's products, takes twice its time.
The loops here win that back (an LSTM's own only where ``beats_onednn_lstm``):

- the input product of all time steps is one large product before the loop, the gradients
  of the weights and of the inputs are large products after it (in bf16 if the inputs are);
- the loop itself is compiled C (``native``) in float32. In float64, or where there is no
  compiler, RNN and GRU are numpy on the tensors' own memory: a call costs half of torch's
  there, and numpy's tanh a tenth of that of torch with MKL.

Axis letters: T time, B lanes, E inputs, H hidden, G the stacked gates' rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn import native
from charrnn.kernels import (
    has_avx512,
    multiplies_bf16,
    needs_gradient,
    product,
    refuse_second_derivative,
    step_product,
    weight_gradient,
)

__all__ = ["beats_onednn_lstm", "run_gru", "run_lstm", "run_rnn", "suits_lstm"]


def run_rnn(
    x_TBE: Tensor, h_BH: Tensor, weight_input: Tensor, weight_recurrent: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Run a plain RNN over a chunk, differentiably (once).

    Args:
        x_TBE: Inputs, T >= 1, on a CPU; float32 or float64 like all tensors here, or
            bfloat16 beside float32.
        h_BH: The state before.
        weight_input: W [H, E].
        weight_recurrent: U [H, H].
        bias: b [H].

    Returns:
        The outputs [T, B, H], of the inputs' type, and the state after the last step [B, H].
    """
    result: tuple[Tensor, Tensor] = _RNN.apply(  # type: ignore[no-untyped-call]
        x_TBE, h_BH, weight_input, weight_recurrent, bias
    )
    return result


_LSTM_LANES = 16
"""Fewest lanes in float32: fewer keep the threads of oneDNN's LSTM busier than the loop's."""


def suits_lstm(dtype: torch.dtype, lanes: int) -> bool:
    """Return whether an LSTM trains faster by ``run_lstm`` than by oneDNN, given a compiler.

    It does in bf16, because oneDNN's LSTM leaves AMX out in training, and in float32 without
    AVX-512; with it, oneDNN's is faster by a few hundredths where nothing else runs. Where much
    does, its threads lose half of its speed by waiting for each other at every time step
    (docs/performance.md).
    """
    if dtype == torch.bfloat16:
        return multiplies_bf16(torch.device("cpu"))
    return dtype == torch.float32 and lanes >= _LSTM_LANES and not has_avx512()


def beats_onednn_lstm(x_TBE: Tensor) -> bool:
    """Return whether ``run_lstm`` can be had for inputs on a CPU, and is the better one.

    What is not differentiated, in float32, needs no compiler.
    """
    narrow = x_TBE.dtype == torch.bfloat16
    if not (narrow or torch.is_grad_enabled()) or not suits_lstm(x_TBE.dtype, x_TBE.shape[1]):
        return False
    compiled = native.loops()
    return compiled is not None and (compiled.multiplies_bf16 or not narrow)


def run_lstm(
    x_TBE: Tensor,
    h_BH: Tensor,
    c_BH: Tensor,
    weight_input: Tensor,
    weight_recurrent: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run an LSTM over a chunk, differentiably (once); ``native.loops`` must be there.

    Args:
        x_TBE: Inputs, T >= 1, on a CPU; float32 like all tensors here, or bfloat16.
        h_BH: The state before.
        c_BH: The cell before.
        weight_input: W [4H, E], the blocks of i, f, g and o.
        weight_recurrent: U [4H, H].
        bias: b [4H].

    Returns:
        The outputs [T, B, H], of the inputs' type, and state and cell after the last step.
    """
    tensors = (x_TBE, h_BH, c_BH, weight_input, weight_recurrent, bias)
    keep = needs_gradient(*tensors)
    result: tuple[Tensor, Tensor, Tensor]
    result = _LSTM.apply(keep, *tensors)  # type: ignore[no-untyped-call]
    return result


def run_gru(
    x_TBE: Tensor,
    h_BH: Tensor,
    weight_input: Tensor,
    weight_recurrent: Tensor,
    bias: Tensor,
    bias_recurrent: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run a GRU over a chunk, differentiably (once).

    Args:
        x_TBE: Inputs, T >= 1, on a CPU; float32 or float64 like all tensors here, or
            bfloat16 beside float32.
        h_BH: The state before.
        weight_input: W [3H, E], the blocks of r, z and n.
        weight_recurrent: U [3H, H].
        bias: b [3H].
        bias_recurrent: The candidate's second bias [H].

    Returns:
        The outputs [T, B, H], of the inputs' type, and the state after the last step [B, H].
    """
    tensors = (x_TBE, h_BH, weight_input, weight_recurrent, bias, bias_recurrent)
    keep = needs_gradient(*tensors)
    result: tuple[Tensor, Tensor] = _GRU.apply(keep, *tensors)  # type: ignore[no-untyped-call]
    return result


class _RNN(torch.autograd.Function):
    """``run_rnn`` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TBE: Tensor,
        h_BH: Tensor,
        weight_input: Tensor,
        weight_recurrent: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        inputs_TBH = product(x_TBE, weight_input, bias).to(h_BH.dtype)
        states_TBH = _states(h_BH, len(x_TBE))
        narrow = x_TBE.dtype == torch.bfloat16
        _loops(h_BH).rnn_forward(narrow, weight_recurrent, inputs_TBH, states_TBH)
        typed_TBH = states_TBH.to(x_TBE.dtype)
        ctx.save_for_backward(x_TBE, weight_input, weight_recurrent, states_TBH, typed_TBH)
        return typed_TBH[1:], states_TBH[-1].clone()

    @staticmethod
    def backward(ctx: Any, d_out_TBH: Tensor, d_last_BH: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x_TBE, weight_input, weight_recurrent, states_TBH, typed_TBH = ctx.saved_tensors
        dtype = states_TBH.dtype
        dh_BH = d_last_BH.clone(memory_format=torch.contiguous_format)
        narrow = x_TBE.dtype == torch.bfloat16
        d_TBH = _loops(dh_BH).rnn_backward(
            narrow, weight_recurrent, states_TBH, d_out_TBH.to(dtype).contiguous(), dh_BH
        )
        wanted = weight_input if ctx.needs_input_grad[0] else None
        dx, *d_weights = _gradients(d_TBH, x_TBE, typed_TBH, wanted)
        return dx, dh_BH, *d_weights


class _LSTM(torch.autograd.Function):
    """``run_lstm`` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        keep: bool,
        x_TBE: Tensor,
        h_BH: Tensor,
        c_BH: Tensor,
        weight_input: Tensor,
        weight_recurrent: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs_TBG = product(x_TBE, weight_input, bias).to(h_BH.dtype)
        states_TBH, cells_TBH = _states(h_BH, len(x_TBE)), _states(c_BH, len(x_TBE))
        compiled, narrow = native.loops(), x_TBE.dtype == torch.bfloat16
        assert compiled is not None
        kept_TBGH = compiled.lstm_forward(
            narrow, weight_recurrent, inputs_TBG, states_TBH, cells_TBH, keep
        )
        typed_TBH = states_TBH.to(x_TBE.dtype)
        ctx.save_for_backward(
            x_TBE, weight_input, weight_recurrent, typed_TBH, cells_TBH, kept_TBGH
        )
        return typed_TBH[1:], states_TBH[-1].clone(), cells_TBH[-1].clone()

    @staticmethod
    def backward(
        ctx: Any, d_out_TBH: Tensor, d_last_BH: Tensor, d_cell_BH: Tensor
    ) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x_TBE, weight_input, weight_recurrent, typed_TBH, cells_TBH, kept_TBGH = ctx.saved_tensors
        dtype = cells_TBH.dtype
        dh_BH = d_last_BH.clone(memory_format=torch.contiguous_format)
        dc_BH = d_cell_BH.clone(memory_format=torch.contiguous_format)
        compiled, narrow = native.loops(), x_TBE.dtype == torch.bfloat16
        assert compiled is not None
        d_TBG = compiled.lstm_backward(
            narrow, weight_recurrent, cells_TBH, kept_TBGH, d_out_TBH.to(dtype).contiguous(),
            dh_BH, dc_BH,
        )  # fmt: skip
        wanted = weight_input if ctx.needs_input_grad[1] else None
        dx, *d_weights = _gradients(d_TBG, x_TBE, typed_TBH, wanted)
        return None, dx, dh_BH, dc_BH, *d_weights


class _GRU(torch.autograd.Function):
    """``run_gru`` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        keep: bool,
        x_TBE: Tensor,
        h_BH: Tensor,
        weight_input: Tensor,
        weight_recurrent: Tensor,
        bias: Tensor,
        bias_recurrent: Tensor,
    ) -> tuple[Tensor, Tensor]:
        inputs_TBG = product(x_TBE, weight_input, bias).to(h_BH.dtype)
        states_TBH = _states(h_BH, len(x_TBE))
        narrow = x_TBE.dtype == torch.bfloat16
        kept_TBGH = _loops(h_BH).gru_forward(
            narrow, weight_recurrent, inputs_TBG, bias_recurrent, states_TBH, keep
        )
        typed_TBH = states_TBH.to(x_TBE.dtype)
        ctx.save_for_backward(
            x_TBE, weight_input, weight_recurrent, states_TBH, typed_TBH, kept_TBGH
        )
        return typed_TBH[1:], states_TBH[-1].clone()

    @staticmethod
    def backward(ctx: Any, d_out_TBH: Tensor, d_last_BH: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x_TBE, weight_input, weight_recurrent, states_TBH, typed_TBH, kept_TBGH = ctx.saved_tensors
        dtype, hidden = states_TBH.dtype, states_TBH.shape[2]
        dh_BH = d_last_BH.clone(memory_format=torch.contiguous_format)
        narrow = x_TBE.dtype == torch.bfloat16
        d_TBG, d_n_TBH = _loops(dh_BH).gru_backward(
            narrow, weight_recurrent, states_TBH, kept_TBGH, d_out_TBH.to(dtype).contiguous(), dh_BH
        )
        d_bias_G, d_bias_n = d_TBG.sum((0, 1)), d_n_TBH.sum((0, 1))
        d_bias = torch.cat([d_bias_G[: 2 * hidden], d_bias_n])
        d_TBG = d_TBG.to(x_TBE.dtype)
        d_weight_recurrent = weight_gradient(d_TBG, typed_TBH[:-1])
        # From here on the gradient of the input product.
        d_TBG[..., 2 * hidden :] = d_n_TBH
        dx = product(d_TBG, weight_input.t()) if ctx.needs_input_grad[1] else None
        d_weight_input = weight_gradient(d_TBG, x_TBE)
        return (
            None,
            dx,
            dh_BH,
            d_weight_input.to(dtype),
            d_weight_recurrent.to(dtype),
            d_bias,
            d_bias_G[2 * hidden :],
        )


def _gradients(
    d_TBG: Tensor, x_TBE: Tensor, typed_TBH: Tensor, weight_input: Tensor | None
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Return the gradients of x, W, U and b in ``W x + U h + b`` from that of the sum.

    Args:
        d_TBG: That of the sum, of the weights' type.
        x_TBE: x; products are in its type.
        typed_TBH: All states [T + 1, B, H], in x's type.
        weight_input: W; None if x wants no gradient.
    """
    dtype, d_bias = d_TBG.dtype, d_TBG.sum((0, 1))
    d_TBG = d_TBG.to(x_TBE.dtype)
    dx = product(d_TBG, weight_input.t()) if weight_input is not None else None
    d_weight_input = weight_gradient(d_TBG, x_TBE).to(dtype)
    d_weight_recurrent = weight_gradient(d_TBG, typed_TBH[:-1]).to(dtype)
    return dx, d_weight_input, d_weight_recurrent, d_bias


def _states(h_BH: Tensor, steps: int) -> Tensor:
    """Return room for all states, [T + 1, B, H], the first one filled in."""
    states_TBH = h_BH.new_empty(steps + 1, *h_BH.shape)
    states_TBH[0] = h_BH
    return states_TBH


def _loops(h_BH: Tensor) -> native.Loops | _NumpyLoops:
    """Return who runs the loops of states of this type here."""
    compiled = native.loops() if h_BH.dtype == torch.float32 else None
    return _NumpyLoops() if compiled is None else compiled


#: A state that is no number is for whoever looks at the loss; numpy need not warn.
_quietly = np.errstate(all="ignore")


class _NumpyLoops:
    """``native.Loops`` of RNN and GRU with a numpy call for every small operation.

    Products are in the states' type, narrow or not: converting a step's arrays would cost
    what the product saves.
    """

    @_quietly
    def rnn_forward(
        self, narrow: bool, weight_HH: Tensor, inputs_TBH: Tensor, states_TBH: Tensor
    ) -> None:
        recurrent = step_product(weight_HH, *inputs_TBH.shape[:2])
        of_steps = zip(states_TBH[:-1], inputs_TBH.numpy(), states_TBH[1:].numpy(), strict=True)
        for h, x, h_next in of_steps:
            np.add(recurrent(h).numpy(), x, out=h_next)
            np.tanh(h_next, out=h_next)

    @_quietly
    def rnn_backward(
        self,
        narrow: bool,
        weight_HH: Tensor,
        states_TBH: Tensor,
        d_out_TBH: Tensor,
        dh_BH: Tensor,
    ) -> Tensor:
        recurrent = step_product(weight_HH.t(), *d_out_TBH.shape[:2])
        # tanh' = 1 - tanh^2; each step's factor becomes its gradient in place.
        d_TBH = 1 - states_TBH[1:].square()
        dh = dh_BH.numpy()
        of_steps = zip(d_TBH, d_TBH.numpy(), d_out_TBH.numpy(), strict=True)
        for d_tensor, d, above in reversed(list(of_steps)):
            dh += above
            d *= dh
            np.copyto(dh, recurrent(d_tensor).numpy())
        return d_TBH

    @_quietly
    def gru_forward(
        self,
        narrow: bool,
        weight_GH: Tensor,
        inputs_TBG: Tensor,
        bias_H: Tensor,
        states_TBH: Tensor,
        keep: bool,
    ) -> Tensor:
        steps, lanes, _ = inputs_TBG.shape
        recurrent = step_product(weight_GH, steps, lanes)
        gates_TBGH = inputs_TBG.view(steps, lanes, 3, -1).numpy()
        bias = bias_H.detach().numpy()
        kept_TBGH = inputs_TBG.new_empty(steps if keep else 1, lanes, 4, len(bias))
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

    @_quietly
    def gru_backward(
        self,
        narrow: bool,
        weight_GH: Tensor,
        states_TBH: Tensor,
        kept_TBGH: Tensor,
        d_out_TBH: Tensor,
        dh_BH: Tensor,
    ) -> tuple[Tensor, Tensor]:
        steps, lanes, hidden = d_out_TBH.shape
        recurrent = step_product(weight_GH.t(), steps, lanes)
        r, z, m, n = kept_TBGH.unbind(2)
        # The factors that turn a step's dh into the gradients before the gates'
        # nonlinearities (r, z), of m, and of n before its tanh; each becomes its
        # gradient in place.
        d_n = (1 - z) * (1 - n.square())
        d_r, d_z = d_n * m * r * (1 - r), (states_TBH[:-1] - n) * z * (1 - z)
        d_TBGH = torch.stack([d_r, d_z, d_n * r], 2)
        through: NDArray[Any] = np.empty((lanes, hidden), dh_BH.numpy().dtype)
        dh = dh_BH.numpy()
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
