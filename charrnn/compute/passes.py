"""``passes.c``, called with tensors: what an update on a CPU does besides products and loops.

Axis letters: N predictions, V vocabulary; G the stacked gates' rows, E input, H hidden; K bands of
all gates, R a band's rows, C columns of [W U].
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from charrnn.compute.library import Library, argument, compiled, refuse_misreadable

_TYPES = (torch.float32, torch.bfloat16)

_EACH = 1 << 15
"""Entries for each thread: to wake a thread takes longer than to work on fewer. torch's number."""


class Passes(Library):
    """The functions of ``passes.c``.

    Tensors must be contiguous and on a CPU; float32, or bf16 where that is said. Others raise a
    TypeError; sizes are not checked.
    """

    FILE = "passes.c"
    LONGS = ("loss_room",)

    def dropout(self, x: Tensor, seed: int, masks: int, least_kept: int, scale: float) -> Tensor:
        """Return x under one mask after the other, along its first axis.

        Args:
            x: a tensor of any shape, float32 or bf16.
            seed: gives each entry its level, see ``kernels.levels``; 64 bits.
            masks: how many there are, M. Mask m adds m / M of 2^16 to a level.
            least_kept: the lowest level that is kept.
            scale: by which entries that are kept are multiplied.
        """
        out = x.new_empty(masks * len(x), *x.shape[1:])
        self._call("dropout", x, x.numel(), masks, x, seed, least_kept, scale, out)
        return out

    def dropout_backward(
        self, d_out: Tensor, seed: int, masks: int, least_kept: int, scale: float
    ) -> Tensor:
        """Return the gradient of ``dropout``'s x."""
        d = d_out.new_empty(len(d_out) // masks, *d_out.shape[1:])
        self._call("dropout_backward", d, d.numel(), masks, d_out, seed, least_kept, scale, d)
        return d

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Overwrite logits with the gradient of their mean cross-entropy, and return that mean.

        Args:
            logits_NV: float32 or bf16.
            targets_N: int64.

        Returns:
            The mean over the predictions, in float64.
        """
        threads, (predictions, symbols) = torch.get_num_threads(), logits_NV.shape
        sums_N, margins_N = torch.empty(2, predictions, dtype=torch.float32)
        entries = self._library.loss_room(*map(ctypes.c_long, (threads, symbols)))
        room = torch.empty(entries, dtype=torch.float32)
        tensors = (logits_NV, targets_N, sums_N, margins_N, room)
        self._call("cross_entropy", logits_NV, predictions, symbols, *tensors)
        mean: Tensor = (sums_N.log_() + margins_N).mean(dtype=torch.float64)
        return mean

    def adam(
        self,
        grad: Tensor,
        mean: Tensor,
        square: Tensor,
        weight: Tensor,
        betas: tuple[float, float],
        correction: float,
        rate: float,
    ) -> None:
        """Move weights as ``optimiser.AdamW`` does, and update both running means.

        Args:
            grad: the gradient; like the others, of any shape.
            mean: its running mean.
            square: the running mean of its square.
            weight: the weights.
            betas: the rates at which the means decay.
            correction: by which the root of ``square`` is divided.
            rate: the learning rate, over the mean's own correction.
        """
        tensors = (grad, mean, square, weight)
        self._call("adam", None, grad.numel(), *tensors, *betas, correction, rate)

    def muon_gather(
        self,
        grads: Sequence[Tensor],
        means: Sequence[Tensor],
        height: int,
        momentum: float,
        cushion: float,
        dtype: torch.dtype,
    ) -> Tensor:
        """Update the running means of gradients; return Nesterov's means ahead, in bands.

        Args:
            grads: the gradients of W [G, E] and U [G, H].
            means: their running means.
            height: R; a gate's last band is padded with zeros.
            momentum: the rate at which the means decay.
            cushion: each band has a norm of 1 / cushion.
            dtype: the type to return, float32 or bf16.

        Returns:
            [W U] by gates and bands, [K, R, C].
        """
        gates, rows, inputs = self._sizes(grads)
        bands_KRC = torch.empty(gates * -(-rows // height), height, inputs + rows, dtype=dtype)
        room = torch.empty(torch.get_num_threads(), *bands_KRC.shape[1:], dtype=torch.float32)
        self._call(
            "muon_gather", bands_KRC, gates, rows, inputs, height, *grads, *means,
            momentum, cushion, room, bands_KRC,
        )  # fmt: skip
        return bands_KRC

    def muon_move(
        self,
        weights: Sequence[Tensor],
        grads: Sequence[Tensor] | None,
        moves_KRC: Tensor,
        rate: float,
    ) -> None:
        """Subtract ``rate * moves_KRC`` from W and U.

        Args:
            weights: W and U.
            grads: their gradients, if moves that do not have a gradient's sign are left out.
            moves_KRC: by gates and bands, as ``muon_gather`` returns them.
            rate: by which moves are multiplied.
        """
        sizes, height = self._sizes(weights), moves_KRC.shape[1]
        signs = grads or (None, None)
        self._call("muon_move", moves_KRC, *sizes, height, moves_KRC, *signs, rate, *weights)

    def _sizes(self, pair: Sequence[Tensor]) -> tuple[int, int, int]:
        """Return the gates, their rows and the inputs of W and U, or of tensors like them."""
        like_w, like_u = pair
        rows = like_u.shape[1]
        return len(like_u) // rows, rows, like_w.shape[1]

    def _call(
        self, name: str, typed: Tensor | None, *arguments: Tensor | int | float | None
    ) -> None:
        """Call a function of the library; None: it has no typed tensors."""
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        dtype = torch.float32 if typed is None else typed.dtype
        refuse_misreadable(*tensors, dtypes=(torch.float32, torch.int64, dtype))
        entries = max(tensor.numel() for tensor in tensors)
        first = [max(1, min(torch.get_num_threads(), -(-entries // _EACH)))]
        if typed is not None:
            first.append(_TYPES.index(typed.dtype))
        getattr(self._library, name)(
            *map(argument, first),
            *(
                ctypes.c_float(each) if isinstance(each, float) else argument(each)
                for each in arguments
            ),
        )


def passes(like: Tensor, dtypes: Sequence[torch.dtype] = _TYPES) -> Passes | None:
    """Return the compiled passes for tensors like this one; None: there are none.

    Args:
        like: one of them.
        dtypes: the types that the functions wanted can read.
    """
    return compiled(Passes) if like.device.type == "cpu" and like.dtype in dtypes else None
