"""One update of the weights: forward, loss, backward, clip, optimiser.

On a CPU the steps run one after another and a loss or gradient that is no
number is caught before the optimiser sees it. On a CUDA device the whole update
is captured once as a graph and replayed, which removes the launch of some
hundred small kernels; the guard is then part of the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from charrnn.config import TrainConfig
from charrnn.kernels import mean_cross_entropy
from charrnn.model import CharModel, Hidden, detach
from charrnn.optimiser import Optimiser
from charrnn.stream import Batch

#: Updates that run on a CUDA device before one is captured; they train like any other.
EAGER_UPDATES = 3
#: A gradient below this norm counts as zero: near it the squares of its entries leave the range
#: of float32.
LEAST_NORM = 1e-15


@dataclass(frozen=True)
class UpdateResult:
    """What one update measured, still on the device."""

    loss: Tensor
    """Mean nats over the counted predictions of the window, with dropout and loss temperature."""
    norm: Tensor
    """Norm of the gradient of all weights together, before clipping."""
    clipped: Tensor
    """Whether the gradient was cut."""


def window_loss(
    model: CharModel,
    x_TB: Tensor,
    y_TB: Tensor,
    hidden: Hidden,
    counted: int,
    masks: int = 1,
    temperature: float = 1.0,
) -> tuple[Tensor, Hidden]:
    """Return a window's loss and the state that the next window starts from.

    Where only the last N of T predictions count, the window moves by N characters,
    so the next one starts from the state after the first N of this one.

    With several masks of dropout before the head the loss is their mean (Inoue 2019,
    arXiv:1905.09788): the same expectation, and a gradient with less noise.

    Args:
        model: the one that predicts.
        x_TB: the window.
        y_TB: the character after each of ``x_TB``.
        hidden: the state before the window.
        counted: N, at most T.
        masks: of dropout.
        temperature: divides the logits. What is learned at one below 1 is used at 1, where its
            predictions are flatter: temperature scaling (Guo, Pleiss, Sun, Weinberger 2017,
            arXiv:1706.04599), but by a number chosen beforehand, which needs no held-out text.

    Returns:
        The mean nats of the counted predictions, and the detached state.
    """
    out_TBH, after = model.read(x_TB[:counted], hidden)
    if counted < len(x_TB):
        rest_TBH, _ = model.read(x_TB[counted:], after)
        # The last N of both parts; the head reads no other.
        out_TBH = torch.cat([out_TBH[len(rest_TBH) :], rest_TBH[-counted:]])
    logits_NV = model.predict(out_TBH, masks, temperature).flatten(0, 1)
    targets_N = y_TB[-counted:].flatten()
    targets_N = targets_N.repeat(len(logits_NV) // len(targets_N))
    return mean_cross_entropy(logits_NV, targets_N), detach(after)


def clip(
    grads: list[Tensor],
    clip_norm: float | None,
    clip_value: float | None,
    scale_norm: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Bound the gradient in place, or give it a norm.

    By norm (Pascanu, Mikolov, Bengio 2013, algorithm 1) the whole gradient is scaled
    and keeps its direction; by value every entry is cut by itself and it does not.

    Args:
        grads: the gradients of all weights.
        clip_norm: the largest norm of all together, or None.
        clip_value: the largest size of an entry, or None.
        scale_norm: the norm of all together, whatever it was, or None; what is below
            ``LEAST_NORM`` stays as it is.

    Returns:
        The norm before, and whether anything was cut.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    if scale_norm is not None:
        factor = (scale_norm / norm).clamp(max=torch.finfo(norm.dtype).max)
        torch._foreach_mul_(grads, torch.where(norm < LEAST_NORM, 1.0, factor))
        return norm, norm > scale_norm
    if clip_norm is not None:
        torch._foreach_mul_(grads, (clip_norm / norm).clamp(max=1.0))
        return norm, norm > clip_norm
    if clip_value is not None:
        largest = torch.stack([grad.abs().max() for grad in grads]).max()
        for grad in grads:
            grad.clamp_(-clip_value, clip_value)
        return norm, largest > clip_value
    return norm, torch.zeros_like(norm, dtype=torch.bool)


class Update:
    """Updates a model window by window and carries its hidden state.

    Args:
        model: whose weights are updated; on its device, in training mode.
        optimiser: of that model.
        config: of the training; rates and budget do not matter here.

    Attributes:
        hidden: the state after the last window, which the next one starts from; but where a
            pass begins, or the config says so, that one starts from zero.
    """

    def __init__(self, model: CharModel, optimiser: Optimiser, config: TrainConfig) -> None:
        self.model = model
        self.optimiser = optimiser
        self.config = config
        self.device = model.head.weight.device
        self.hidden = model.initial_hidden(config.batch_size)
        #: Why the update is not captured on a CUDA device, or None.
        self.capture_failure: str | None = None
        self._weights = list(model.parameters())
        self._graph: torch.cuda.CUDAGraph | None = None
        self._side: torch.cuda.Stream | None = None
        self._eager_updates = 0
        #: 1 until a loss or gradient was not finite, then 0 for good.
        self._alive = torch.ones((), device=self.device)

    def __call__(self, batch: Batch) -> UpdateResult:
        """Update the weights on one window.

        After a loss or gradient that is not finite, no call changes the weights any
        more; the result shows the number.
        """
        x_TB = batch.x_TB.to(self.device, non_blocking=True)
        y_TB = batch.y_TB.to(self.device, non_blocking=True)
        if batch.first or self.config.reset_state:
            for state in self.hidden:
                for part_BH in state:
                    part_BH.zero_()
        counted = batch.characters // x_TB.shape[1]
        # A graph holds one shape; a pass's last, shorter window runs without it.
        if self.device.type == "cuda" and len(x_TB) == self.config.bptt:
            return self._captured_update(x_TB, y_TB, counted)
        return self._update(x_TB, y_TB, counted)

    def forget_capture(self) -> None:
        """Capture anew, after some windows: what the model does in training has changed."""
        self._graph = None
        self._eager_updates = 0

    def _update(self, x_TB: Tensor, y_TB: Tensor, counted: int) -> UpdateResult:
        for weight in self._weights:
            weight.grad = None
        config = self.config
        loss, after = window_loss(
            self.model, x_TB, y_TB, self.hidden, counted,
            config.dropout_masks, config.loss_temperature,
        )  # fmt: skip
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [weight.grad for weight in self._weights if weight.grad is not None]
        norm, clipped = clip(grads, config.clip_norm, config.clip_value, config.scale_norm)
        self._alive.mul_(torch.isfinite(loss.detach()) & torch.isfinite(norm))
        if self.device.type == "cuda":
            # Guarded without a look from the host: zero rates move no weight.
            for grad in grads:
                grad.nan_to_num_(0.0, 0.0, 0.0)
            self.optimiser.lr.mul_(self._alive)
            self.optimiser.lr_adam.mul_(self._alive)
            self.optimiser.step()
        elif self._alive:
            self.optimiser.step()
        for state, new in zip(self.hidden, after, strict=True):
            for part_BH, new_BH in zip(state, new, strict=True):
                part_BH.copy_(new_BH)
        return UpdateResult(loss.detach(), norm, clipped)

    def _captured_update(self, x_TB: Tensor, y_TB: Tensor, counted: int) -> UpdateResult:
        if self._graph is None and self.capture_failure is None:
            if self._eager_updates < EAGER_UPDATES:
                # Libraries choose and load their kernels now; a capture cannot.
                self._eager_updates += 1
                # One side stream for all: freed memory is kept for the stream it was of.
                side = self._side = self._side or torch.cuda.Stream()  # type: ignore[no-untyped-call]
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    result = self._update(x_TB, y_TB, counted)
                torch.cuda.current_stream().wait_stream(side)
                return result
            self._capture(x_TB, y_TB, counted)
        if self._graph is None:
            return self._update(x_TB, y_TB, counted)
        self._x_TB.copy_(x_TB)
        self._y_TB.copy_(y_TB)
        self._graph.replay()
        held = self._result
        return UpdateResult(held.loss.clone(), held.norm.clone(), held.clipped.clone())

    def _capture(self, x_TB: Tensor, y_TB: Tensor, counted: int) -> None:
        """Record one update; nothing runs while it is recorded.

        A capture that fails at its end may keep the memory that it took: torch gives back the pool
        of one that has ended only (``CUDAGraph::reset``, in ATen/cuda/CUDAGraph.cpp).
        """
        self._x_TB, self._y_TB = x_TB.clone(), y_TB.clone()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                self._result = self._update(self._x_TB, self._y_TB, counted)
        except RuntimeError as error:
            # A capture that fails at its end leaves its own stream the current one and, in
            # torch 2.11, a generator that only a capture can draw from.
            torch.cuda.set_stream(stream)
            generator = torch.cuda.default_generators[self.device.index]
            generator.graphsafe_set_state(generator.clone_state())
            # The outer error says only that the capture failed, its context why. (Kept under a name
            # of this frame the context would keep the frame, and with it a window's memory.)
            self.capture_failure = (
                str(error.__context__ or error).splitlines() or ["no reason given"]
            )[0]
        else:
            self._graph = graph
