"""What a CPU computes by hand: time-step loops of RNN and GRU, the head, the loss, dropout.

torch's LSTM on a CPU is one fused oneDNN primitive; its RNN and GRU are loops of
small operators, so that a GRU, with three quarters of an LSTM's products, would
take twice its time. The loops here win that back:

- the input product of all time steps is one large product before the loop, the
  gradients of the weights and of the inputs are large products after it;
- what the backward loop multiplies the arriving gradient with depends on the
  forward pass only, and is computed for all time steps at once: the loop is left
  with one product and two or three small operations a step;
- products go through oneDNN, with the recurrent weights packed once a call. On
  AMD's processors that is about twice as fast as MKL behind ``torch.mm``;
- the small operations of a step are numpy's, on the tensors' own memory: a call
  costs half of torch's, and numpy's tanh a tenth of that of torch with MKL.

Inputs in bf16 ask for products in bf16. The large ones, before and after the loop,
take half their time that way; the loop itself, where converting a step's arrays would
cost what its product saves, stays in float32, and so do the states in it.

The head's product goes the same way, and the loss turns the logits into their gradient
where they lie: with thousands of symbols they are the largest tensor of an update.
Dropout draws bits instead of numbers: torch's took a fifth of an update's time.

Axis letters: T time, B lanes, E inputs, H hidden, G the stacked gates' rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.grad import conv2d_weight

__all__ = ["dropout", "linear", "mean_cross_entropy", "multiplies_bf16", "run_gru", "run_rnn"]
__all__ += ["step_product"]

_ONEDNN = torch.ops.mkldnn
"""The operators that torch's own compiler uses for oneDNN's products with packed weights."""

_HAS_ONEDNN = hasattr(_ONEDNN, "_linear_pointwise") and hasattr(_ONEDNN, "_reorder_linear_weight")

_PACKED_STEPS = 8
"""Fewest time steps that pay for packing the recurrent weights (0.1 to 0.4 ms)."""

_PACKED_SIZE = 2**15
"""Fewest recurrent weights for which oneDNN's faster product pays for its slower call
(8 us against 1 us of ``torch.mm``)."""

#: A state that is no number is for whoever looks at the loss; numpy need not warn.
_quietly = np.errstate(all="ignore")


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bf16, at twice float32's speed."""
    if device.type == "cpu":
        # Not in every torch that we take; without it nothing is promised.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16"))
    return device.type == "cuda"


def _uses_onednn(x: Tensor) -> bool:
    known = x.dtype in (torch.float32, torch.bfloat16)
    return _HAS_ONEDNN and known and bool(torch.backends.mkldnn.enabled)


def _product(x_TBK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` for all time steps, [T, B, N], in the type of ``x``."""
    weight_NK = weight_NK.to(x_TBK.dtype)
    bias_N = None if bias_N is None else bias_N.to(x_TBK.dtype)
    if _uses_onednn(x_TBK):
        out_TBN: Tensor = _ONEDNN._linear_pointwise(x_TBK, weight_NK, bias_N, "none", [], "")
        return out_TBN
    return torch.nn.functional.linear(x_TBK, weight_NK, bias_N)


def _weight_gradient(d_TBN: Tensor, x_TBK: Tensor) -> Tensor:
    """Return the sum over time and lanes of the outer products ``d x``, [N, K], in their type.

    As the weight gradient of a 1 x 1 convolution over the T x B "pixels", which is
    how oneDNN can be had without copying or transposing anything.
    """
    if not _uses_onednn(x_TBK):
        return d_TBN.flatten(0, 1).t() @ x_TBK.flatten(0, 1)
    size = (d_TBN.shape[-1], x_TBK.shape[-1], 1, 1)
    x_1KTB, d_1NTB = (a[None].permute(0, 3, 1, 2) for a in (x_TBK, d_TBN))
    gradient: Tensor = conv2d_weight(x_1KTB, size, d_1NTB)  # type: ignore[no-untyped-call]
    return gradient[:, :, 0, 0]


def step_product(weight_NK: Tensor, steps: int, lanes: int) -> Callable[[Tensor], Tensor]:
    """Return ``x_BK -> x @ weight.T``, made for being called ``steps`` times."""
    if _uses_onednn(weight_NK) and steps >= _PACKED_STEPS and weight_NK.numel() >= _PACKED_SIZE:
        packed = _ONEDNN._reorder_linear_weight(weight_NK, lanes)
        product = _ONEDNN._linear_pointwise.default
        return lambda x_BK: product(x_BK, packed, None, "none", [], "")
    weight_KN = weight_NK.t()
    return lambda x_BK: torch.mm(x_BK, weight_KN)


def _step_product(weight_NK: Tensor, steps: int, lanes: int) -> Callable[[Tensor], NDArray[Any]]:
    """Return ``step_product`` that gives a numpy array on the result's memory."""
    product = step_product(weight_NK, steps, lanes)
    return lambda x_BK: product(x_BK).numpy()


def _states(h_BH: Tensor, steps: int) -> Tensor:
    """Return room for all states, [T + 1, B, H], the first one filled in."""
    states_TBH = h_BH.new_empty(steps + 1, *h_BH.shape)
    states_TBH[0] = h_BH
    return states_TBH


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def linear(x_TBK: Tensor, weight_NK: Tensor, bias_N: Tensor) -> Tensor:
    """Return ``x @ weight.T + bias``, differentiably (once), [T, B, N]; on a CPU by oneDNN.

    Args:
        x_TBK: Inputs; their type is that of the arithmetic.
        weight_NK: Cast to it, like the bias.
        bias_N: The bias.
    """
    if x_TBK.device.type != "cpu" or not _uses_onednn(x_TBK):
        dtype = x_TBK.dtype
        return torch.nn.functional.linear(x_TBK, weight_NK.to(dtype), bias_N.to(dtype))
    if _needs_gradient(x_TBK, weight_NK, bias_N):
        result: Tensor = _Linear.apply(x_TBK, weight_NK, bias_N)  # type: ignore[no-untyped-call]
        return result
    return _product(x_TBK, weight_NK, bias_N)


class _Linear(torch.autograd.Function):
    """``linear`` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x_TBK: Tensor, weight_NK: Tensor, bias_N: Tensor) -> Tensor:
        ctx.save_for_backward(x_TBK, weight_NK)
        return _product(x_TBK, weight_NK, bias_N)

    @staticmethod
    def backward(ctx: Any, d_TBN: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x_TBK, weight_NK = ctx.saved_tensors
        dx = _product(d_TBN, weight_NK.t()) if ctx.needs_input_grad[0] else None
        d_weight = _weight_gradient(d_TBN, x_TBK).to(weight_NK.dtype)
        return dx, d_weight, d_TBN.sum((0, 1), dtype=weight_NK.dtype)


def mean_cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return the mean of -ln softmax(logits)[target], differentiably (once), on a CPU.

    The logits are used up: where a gradient is wanted it takes their place, a block of
    rows at a time, while the block is in the cache. So one tensor of this size is needed,
    not four, and in bf16 if the logits are.

    Args:
        logits_NV: of N predictions; float32, float64 or bfloat16, computed in float32 at least.
        targets_N: the symbols that came.
    """
    result: Tensor = _MeanCrossEntropy.apply(logits_NV, targets_N)  # type: ignore[no-untyped-call]
    return result


_BLOCK_LOGITS = 1 << 18
"""Logits that are turned into gradients at a time: a MiB of float32."""


class _MeanCrossEntropy(torch.autograd.Function):
    """``mean_cross_entropy`` with its gradient, (softmax - one-hot of the target) / N."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        logits_NV = logits_NV.detach()  # its memory, without its past
        predictions, symbols = logits_NV.shape
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        total = torch.zeros((), dtype=torch.float64)
        rows = max(1, _BLOCK_LOGITS // symbols)
        blocks = zip(torch.split(logits_NV, rows), torch.split(targets_N, rows), strict=True)
        for block_RV, target_R in blocks:
            log_p_RV = block_RV.to(wide).log_softmax(1)
            total -= log_p_RV.gather(1, target_R[:, None]).sum(dtype=torch.float64)
            if ctx.needs_input_grad[0]:
                p_RV = log_p_RV.exp_()
                p_RV[torch.arange(len(target_R)), target_R] -= 1
                block_RV.copy_(p_RV.div_(predictions))
        ctx.save_for_backward(logits_NV)
        return (total / predictions).to(wide)

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV if d_loss == 1 else gradient_NV * d_loss.to(gradient_NV.dtype), None


_LEVELS = 1 << 16
"""Shares that dropout can drop: 16 bits are drawn for an entry."""


def dropout(x: Tensor, share: float) -> Tensor:
    """Set entries to zero by chance and let the others grow by 1 / (1 - share).

    Of torch's own generator. On a CPU torch draws one number after the other, two to four
    nanoseconds each; here one draw of 64 bits serves four entries. The share is rounded to a
    multiple of 2^-16, and what is left grows by exactly what that takes.

    Args:
        x: of any shape.
        share: of the entries, at least 0 and less than 1.
    """
    if x.device.type != "cpu":
        return torch.nn.functional.dropout(x, share)
    dropped = min(round(share * _LEVELS), _LEVELS - 1)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = levels >= dropped - _LEVELS // 2
    return torch.where(kept, x * (_LEVELS / (_LEVELS - dropped)), x.new_zeros(()))


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():  # in a backward pass: create_graph was asked for
        raise RuntimeError("what is computed by hand on a CPU has no second derivative")


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
    tensors = (x_TBE, h_BH, weight_input, weight_recurrent, bias)
    if _needs_gradient(*tensors):
        result: tuple[Tensor, Tensor] = _RNNLoop.apply(*tensors)  # type: ignore[no-untyped-call]
        return result
    states_TBH = _rnn_loop(*tensors)
    return states_TBH[1:].to(x_TBE.dtype), states_TBH[-1].clone()


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
    if _needs_gradient(*tensors):
        result: tuple[Tensor, Tensor] = _GRULoop.apply(*tensors)  # type: ignore[no-untyped-call]
        return result
    states_TBH, _, _ = _gru_loop(*tensors, keep=False)
    return states_TBH[1:].to(x_TBE.dtype), states_TBH[-1].clone()


@_quietly
def _rnn_loop(
    x_TBE: Tensor, h_BH: Tensor, weight_input: Tensor, weight_recurrent: Tensor, bias: Tensor
) -> Tensor:
    """Run a plain RNN over a chunk; return its states [T + 1, B, H], the first the given one."""
    steps, lanes, _ = x_TBE.shape
    recurrent = _step_product(weight_recurrent, steps, lanes)
    inputs_TBH = _product(x_TBE, weight_input, bias).to(h_BH.dtype)
    states_TBH = _states(h_BH, steps)
    of_steps = zip(
        states_TBH[:-1].unbind(), inputs_TBH.numpy(), states_TBH[1:].numpy(), strict=True
    )
    for h, x, h_next in of_steps:
        np.add(recurrent(h), x, out=h_next)
        np.tanh(h_next, out=h_next)
    return states_TBH


class _RNNLoop(torch.autograd.Function):
    """``_rnn_loop`` with its gradient: (x, h, weights, bias) -> (out_TBH, h_BH)."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TBE: Tensor,
        h_BH: Tensor,
        weight_input: Tensor,
        weight_recurrent: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        states_TBH = _rnn_loop(x_TBE, h_BH, weight_input, weight_recurrent, bias)
        ctx.save_for_backward(x_TBE, weight_input, weight_recurrent, states_TBH)
        return states_TBH[1:].to(x_TBE.dtype), states_TBH[-1].clone()

    @staticmethod
    @_quietly
    def backward(ctx: Any, d_out_TBH: Tensor, d_last_BH: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x_TBE, weight_input, weight_recurrent, states_TBH = ctx.saved_tensors
        steps, lanes, _ = x_TBE.shape
        recurrent = _step_product(weight_recurrent.t(), steps, lanes)
        # tanh' = 1 - tanh^2; each step's factor becomes its gradient in place.
        d_TBH = 1 - states_TBH[1:].square()
        d_out_TBH = d_out_TBH.to(d_TBH.dtype)
        dh = (d_out_TBH[-1] + d_last_BH).numpy()
        d_before = (np.zeros_like(dh), *d_out_TBH[:-1].numpy())
        of_steps = zip(d_TBH.unbind(), d_TBH.numpy(), d_before, strict=True)
        for d_tensor, d, before in reversed(list(of_steps)):
            d *= dh
            dh = recurrent(d_tensor)
            dh += before
        d_bias = d_TBH.sum((0, 1))
        dtype, d_TBH = d_TBH.dtype, d_TBH.to(x_TBE.dtype)
        dx = _product(d_TBH, weight_input.t()) if ctx.needs_input_grad[0] else None
        d_weight_input = _weight_gradient(d_TBH, x_TBE).to(dtype)
        d_weight_recurrent = _weight_gradient(d_TBH, states_TBH[:-1].to(x_TBE.dtype)).to(dtype)
        return dx, torch.from_numpy(dh), d_weight_input, d_weight_recurrent, d_bias


@_quietly
def _gru_loop(
    x_TBE: Tensor,
    h_BH: Tensor,
    weight_input: Tensor,
    weight_recurrent: Tensor,
    bias: Tensor,
    bias_recurrent: Tensor,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a GRU over a chunk.

    Returns the states [T + 1, B, H], the first the given one. With ``keep``, also what
    the gradient needs: r, z and m one after another [T, 3, B, H], and n [T, B, H], where
    ``n = tanh(W x + b + r * m)`` and ``m = U h + bias_recurrent``; without, one step's
    room serves all steps.
    """
    steps, lanes, _ = x_TBE.shape
    hidden = h_BH.shape[1]
    recurrent = _step_product(weight_recurrent, steps, lanes)
    inputs_TBG = _product(x_TBE, weight_input, bias).to(h_BH.dtype)
    inputs_TBGH = inputs_TBG.view(steps, lanes, 3, hidden)
    # What the recurrent product is added to: the inputs of r and z, but only the
    # recurrent bias for m.
    inputs_n_TBH = inputs_TBGH[:, :, 2].clone()
    inputs_TBGH[:, :, 2] = bias_recurrent
    room = steps if keep else 1
    gates_TGBH = h_BH.new_empty(room, 3, lanes, hidden).expand(steps, -1, -1, -1)
    n_TBH = h_BH.new_empty(room, lanes, hidden).expand(steps, -1, -1)
    states_TBH = _states(h_BH, steps)
    of_steps = zip(
        states_TBH[:-1].unbind(),
        states_TBH[:-1].numpy(),
        states_TBH[1:].numpy(),
        inputs_TBGH.numpy(),
        inputs_n_TBH.numpy(),
        gates_TGBH.transpose(1, 2).numpy(),
        gates_TGBH[:, :2].unbind(),
        *(gate_TBH.numpy() for gate_TBH in gates_TGBH.unbind(1)),
        n_TBH.numpy(),
        strict=True,
    )
    for h_tensor, h, h_next, x, x_n, gates_BGH, rz_tensor, r, z, m, n in of_steps:
        np.add(recurrent(h_tensor).reshape(x.shape), x, out=gates_BGH)
        rz_tensor.sigmoid_()
        np.multiply(r, m, out=n)
        np.add(n, x_n, out=n)
        np.tanh(n, out=n)
        np.subtract(h, n, out=h_next)
        np.multiply(h_next, z, out=h_next)
        np.add(h_next, n, out=h_next)  # n + z (h - n)
    return states_TBH, gates_TGBH, n_TBH


class _GRULoop(torch.autograd.Function):
    """``_gru_loop`` with its gradient: (x, h, weights, biases) -> (out_TBH, h_BH)."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TBE: Tensor,
        h_BH: Tensor,
        weight_input: Tensor,
        weight_recurrent: Tensor,
        bias: Tensor,
        bias_recurrent: Tensor,
    ) -> tuple[Tensor, Tensor]:
        states_TBH, gates_TGBH, n_TBH = _gru_loop(
            x_TBE, h_BH, weight_input, weight_recurrent, bias, bias_recurrent, keep=True
        )
        ctx.save_for_backward(x_TBE, weight_input, weight_recurrent, states_TBH, gates_TGBH, n_TBH)
        return states_TBH[1:].to(x_TBE.dtype), states_TBH[-1].clone()

    @staticmethod
    @_quietly
    def backward(ctx: Any, d_out_TBH: Tensor, d_last_BH: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x_TBE, weight_input, weight_recurrent, states_TBH, gates_TGBH, n_TBH = ctx.saved_tensors
        steps, lanes, hidden = n_TBH.shape
        recurrent = _step_product(weight_recurrent.t(), steps, lanes)
        r, z, m = gates_TGBH.unbind(1)
        # The factors that turn a step's dh into the gradients before the gates'
        # nonlinearities (r, z), of m, and of n before its tanh; each becomes its
        # gradient in place.
        d_TBGH = n_TBH.new_empty(steps, lanes, 3, hidden)
        d_r, d_z, d_m = d_TBGH.unbind(2)
        d_n = torch.ops.aten.tanh_backward(1 - z, n_TBH)
        torch.mul(d_n, r, out=d_m)
        torch.ops.aten.sigmoid_backward(d_n * m, r, grad_input=d_r)
        torch.ops.aten.sigmoid_backward(states_TBH[:-1] - n_TBH, z, grad_input=d_z)
        d_TBG = d_TBGH.flatten(2)
        d_out_TBH = d_out_TBH.to(d_TBG.dtype)
        dh = (d_out_TBH[-1] + d_last_BH).numpy()
        d_before = (np.zeros_like(dh), *d_out_TBH[:-1].numpy())
        of_steps = zip(
            d_TBG.unbind(), d_TBGH.numpy(), d_n.numpy(), z.numpy(), d_before, strict=True
        )
        through = np.empty_like(dh)
        for d_tensor, d_gates, dn, z_t, before in reversed(list(of_steps)):
            d_gates *= dh[:, None]
            dn *= dh
            np.multiply(dh, z_t, out=through)
            dh = recurrent(d_tensor)
            dh += through
            dh += before
        d_bias_recurrent, d_bias_n = d_m.sum((0, 1)), d_n.sum((0, 1))
        d_bias = torch.cat([d_TBG[..., : 2 * hidden].sum((0, 1)), d_bias_n])
        dtype, d_TBG = d_TBG.dtype, d_TBG.to(x_TBE.dtype)
        d_weight_recurrent = _weight_gradient(d_TBG, states_TBH[:-1].to(x_TBE.dtype))
        # From here on the gradient of the input product.
        d_TBG[..., 2 * hidden :] = d_n
        dx = _product(d_TBG, weight_input.t()) if ctx.needs_input_grad[0] else None
        d_weight_input = _weight_gradient(d_TBG, x_TBE)
        return (
            dx,
            torch.from_numpy(dh),
            d_weight_input.to(dtype),
            d_weight_recurrent.to(dtype),
            d_bias,
            d_bias_recurrent,
        )
