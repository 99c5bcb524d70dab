"""Operations written by hand for a CPU: products, the head, the loss, dropout.

Products use oneDNN, but in float32 torch's own on Intel's processors: it is MKL's, which is as fast
there or faster, and half as fast on AMD's. Where oneDNN's would make gradients of weights in
float32, compiled C does (``recurrence``). A loop packs its recurrent weights once per call.

The loss overwrites the logits with their gradient: with thousands of symbols they are the largest
tensor of an update. It and dropout are in compiled C (``passes``); what is here of them runs where
there is no compiler, and in float64.

Axis letters: T time, B lanes, R both in one, D distinct inputs, K a product's inner axis, N its
columns; in the loss N predictions, R predictions of a block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from charrnn.compute import recurrence
from charrnn.compute.passes import passes
from charrnn.compute.processor import vendor

_ONEDNN = torch.ops.mkldnn
"""oneDNN's products with packed weights, as torch's own compiler calls them."""

_HAS_ONEDNN = hasattr(_ONEDNN, "_linear_pointwise") and hasattr(_ONEDNN, "_reorder_linear_weight")

_PACKED_STEPS = 8
"""Fewest time steps for which packing the recurrent weights (0.1 to 0.4 ms) pays off."""

_PACKED_SIZE = 2**15
"""Fewest recurrent weights for which oneDNN's faster product makes up for its slower call
(8 us, against 1 us for ``torch.mm``)."""


def _uses_onednn(x: Tensor) -> bool:
    """Return whether a product with this tensor uses oneDNN on a CPU."""
    here = x.device.type == "cpu" and _HAS_ONEDNN and bool(torch.backends.mkldnn.enabled)
    if x.dtype == torch.float32:
        return here and not mkl_is_fast()
    return here and x.dtype == torch.bfloat16 and _onednn_takes_bf16()


def mkl_is_fast() -> bool:
    """Return whether torch's own product in float32 is as fast here as oneDNN's, or faster."""
    return vendor() == "GenuineIntel"


@cache  # every product asks for it
def _onednn_takes_bf16() -> bool:
    """Return whether oneDNN multiplies bf16 on this CPU; torch's own product does on any."""
    return bool(_ONEDNN._is_mkldnn_bf16_supported())


def product(x_TBK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` [..., N], in the type of ``x``, [..., K]."""
    weight_NK = weight_NK.to(x_TBK.dtype)
    bias_N = None if bias_N is None else bias_N.to(x_TBK.dtype)
    if _uses_onednn(x_TBK):
        out_TBN: Tensor = _ONEDNN._linear_pointwise(x_TBK, weight_NK, bias_N, "none", [], "")
        return out_TBN
    return F.linear(x_TBK, weight_NK, bias_N)


def weight_gradient(d_TBN: Tensor, x_TBK: Tensor) -> Tensor:
    """Return the sum over time and lanes of the outer products ``d x``, [N, K], in their type.

    Where float32 would use oneDNN, compiled C makes it: oneDNN reads such factors more slowly.
    """
    d_RN, x_RK = d_TBN.flatten(0, 1), x_TBK.flatten(0, 1)
    if x_TBK.dtype != torch.float32 or not _uses_onednn(x_TBK):
        return d_RN.t() @ x_RK
    compiled = recurrence.loops()
    if compiled is not None:
        return compiled.weight_gradient(d_TBN, x_TBK)
    return product(d_RN.t().contiguous(), x_RK.t())


def step_product(weight_NK: Tensor, steps: int, lanes: int) -> Callable[[Tensor], Tensor]:
    """Return the function ``x_BK -> x @ weight.T``, prepared to be called ``steps`` times."""
    if _uses_onednn(weight_NK) and steps >= _PACKED_STEPS and weight_NK.numel() >= _PACKED_SIZE:
        packed = _ONEDNN._reorder_linear_weight(weight_NK, lanes)
        multiply = _ONEDNN._linear_pointwise.default
        return lambda x_BK: multiply(x_BK, packed, None, "none", [], "")
    weight_KN = weight_NK.t()
    return lambda x_BK: torch.mm(x_BK, weight_KN)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Return whether autograd records what is computed from these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor) -> Tensor:
    """Return ``x @ weight.T + bias``, once differentiable.

    Args:
        x: Inputs, [T, B, K] or [D, K]; the product is computed in their type.
        weight_NK: The weights, cast to the type of ``x``.
        bias_N: The bias, cast as well.
    """
    x_TBK = x if x.dim() == 3 else x[None]
    if x.device.type == "cpu" and needs_gradient(x, weight_NK, bias_N):
        out_TBN: Tensor = _Linear.apply(x_TBK, weight_NK, bias_N)
    else:
        out_TBN = product(x_TBK, weight_NK, bias_N)
    return out_TBN.view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """``linear`` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x_TBK: Tensor, weight_NK: Tensor, bias_N: Tensor) -> Tensor:
        ctx.save_for_backward(x_TBK, weight_NK)
        return product(x_TBK, weight_NK, bias_N)

    @staticmethod
    def backward(ctx: Any, d_TBN: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x_TBK, weight_NK = ctx.saved_tensors
        dx = product(d_TBN, weight_NK.t()) if ctx.needs_input_grad[0] else None
        d_weight = weight_gradient(d_TBN, x_TBK).to(weight_NK.dtype)
        return dx, d_weight, _column_sums(d_TBN).to(weight_NK.dtype)


def _column_sums(d_TBN: Tensor) -> Tensor:
    """Return the sums over time and lanes, [N], in float32 at least."""
    compiled = recurrence.loops() if d_TBN.dtype == torch.bfloat16 else None
    if compiled is not None:  # torch would first make everything float32
        return compiled.sum_rows(d_TBN.contiguous())[0]
    return d_TBN.sum((0, 1), dtype=torch.promote_types(d_TBN.dtype, torch.float32))


def mean_cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return the mean of -ln softmax(logits)[target], once differentiable.

    Do not use the logits afterwards: on a CPU their gradient, where one is needed, overwrites
    them, a block of rows at a time while the block is in the cache. So one tensor of this size
    is needed instead of four, and in bf16 if the logits are.

    Args:
        logits_NV: logits of N predictions; float32, float64 or bfloat16. The loss is computed in
            float32 at least.
        targets_N: the symbols that followed.
    """
    if logits_NV.device.type != "cpu":
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        return F.cross_entropy(logits_NV.to(wide), targets_N)
    result: Tensor = _MeanCrossEntropy.apply(logits_NV, targets_N)
    return result


_BLOCK_LOGITS = 1 << 18
"""Logits in a block that is turned into gradients: a MiB of float32."""


class _MeanCrossEntropy(torch.autograd.Function):
    """``mean_cross_entropy`` with its gradient, (softmax - one-hot of the target) / N."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        logits_NV = logits_NV.detach()  # the same memory, without the autograd history
        predictions, symbols = logits_NV.shape
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        compiled = passes(logits_NV) if ctx.needs_input_grad[0] else None
        if compiled is not None:
            ctx.save_for_backward(logits_NV)
            return compiled.cross_entropy(logits_NV, targets_N).to(wide)
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
        refuse_second_derivative()
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV if d_loss == 1 else gradient_NV * d_loss.to(gradient_NV.dtype), None


_LEVELS = 1 << 16
"""Levels between 0 and 1 that a share is rounded to: dropout draws 16 bits per entry."""


def dropout(x: Tensor, share: float, masks: int = 1) -> Tensor:
    """Set entries to zero at random and scale the others by 1 / (1 - share); once differentiable.

    On a CPU each entry draws one of 2^16 levels (``levels``), by a seed from torch's own generator,
    which would take two to four nanoseconds for each. The share is rounded to a multiple of 2^-16,
    and the scale is exact for the rounded share.

    On a CPU several masks share one draw, so that they differ as much as possible (systematic
    sampling): mask m adds m / M of 2^16 to a level, wrapping around, and drops the entry if the
    result is among the lowest levels. Each mask by itself is an ordinary dropout mask, and an entry
    is dropped by M times ``share`` of the M masks, rounded up or down. On other devices the masks
    are independent.

    Args:
        x: a tensor of any shape.
        share: the share of entries to drop, at least 0 and less than 1.
        masks: M, at least 1.

    Returns:
        x under one mask after the other, along its first axis.
    """
    if x.device.type != "cpu":
        return F.dropout(x.expand(masks, *x.shape), share).flatten(0, 1)
    result: Tensor = _Dropout.apply(x, share, masks)
    return result


def levels(seed: int, count: int) -> NDArray[np.int16]:
    """Return random int16s, four from each of the numbers that SplitMix64 gives for a seed.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    n = np.arange(1, -(-count // 4) + 1, dtype=np.uint64)
    x = np.uint64(seed % 2**64) + n * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    drawn: NDArray[np.int16] = (x ^ x >> np.uint64(31)).view(np.int16)[:count]
    return drawn


class _Dropout(torch.autograd.Function):
    """``dropout`` on a CPU, with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float, masks: int) -> Tensor:
        dropped = min(round(share * _LEVELS), _LEVELS - 1)
        seed = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
        ctx.how = seed, masks, dropped - _LEVELS // 2, _LEVELS / (_LEVELS - dropped)
        compiled = passes(x)
        if compiled is not None:
            return compiled.dropout(x.contiguous(), *ctx.how)
        *drawn, scale = ctx.how
        dropped_x: Tensor = (x * scale * _kept(x, *drawn)).flatten(0, 1)
        return dropped_x

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        compiled = passes(d_out)
        if compiled is not None:
            return compiled.dropout_backward(d_out.contiguous(), *ctx.how), None, None
        seed, masks, least_kept, scale = ctx.how
        d_of_masks = d_out.reshape(masks, -1, *d_out.shape[1:])
        d = (d_of_masks * _kept(d_of_masks[0], seed, masks, least_kept)).sum(0) * scale
        return d, None, None


def _kept(like: Tensor, seed: int, masks: int, least_kept: int) -> Tensor:
    """Return ones and zeros in the type of a tensor, one of its shape for each mask."""
    drawn = levels(seed, like.numel()).reshape(like.shape)
    shifts = (np.arange(masks) * _LEVELS // masks).astype(np.int16)
    kept = [drawn + shift >= least_kept for shift in shifts]  # sums of int16 wrap around
    return torch.from_numpy(np.stack(kept)).to(like.dtype)


def refuse_second_derivative() -> None:
    """Raise a RuntimeError if the current backward pass is to be differentiated itself."""
    if torch.is_grad_enabled():  # in a backward pass this means create_graph=True
        raise RuntimeError("what is computed by hand on a CPU has no second derivative")
