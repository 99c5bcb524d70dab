"""One update of the weights: forward, loss, backward, clip, optimiser.

On a CPU the steps run one after another, and a loss or gradient that is not finite
is caught before it reaches the optimiser. On a CUDA device the whole update is
captured as a graph (``capture``); the check is then part of the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from charrnn.compute.kernels import mean_cross_entropy
from charrnn.config import TrainConfig
from charrnn.network.capture import Capture, UpdateResult
from charrnn.network.model import CharModel, Hidden, detach
from charrnn.network.optimiser import Optimiser
from charrnn.text.stream import Batch

#: A gradient with a norm below this counts as zero: near it the squares of its entries begin to
#: underflow float32.
LEAST_NORM = 1e-15


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

    If only the last N of T predictions count, the window moves by N characters,
    so the next one starts from the state after the first N characters of this one.

    With several dropout masks before the head, the loss is the mean over the masks (Inoue
    2019, arXiv:1905.09788): the same expectation, and a gradient with less noise.

    Args:
        model: the model that predicts.
        x_TB: the window.
        y_TB: the character after each of ``x_TB``.
        hidden: the state before the window.
        counted: N, at most T.
        masks: how many dropout masks.
        temperature: divides the logits. A model trained below 1 predicts at 1, so its
            predictions become flatter: temperature scaling (Guo, Pleiss, Sun, Weinberger 2017,
            arXiv:1706.04599), but with a number chosen beforehand, which needs no held-out text.

    Returns:
        The mean nats of the counted predictions, and the detached state.
    """
    out_TBH, after = model.read(x_TB[:counted], hidden)
    if counted < len(x_TB):
        rest_TBH, _ = model.read(x_TB[counted:], after)
        # The last N time steps of the window; the head needs no others.
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
    """Clip the gradient in place, or scale it to a given norm.

    Clipping by norm (Pascanu, Mikolov, Bengio 2013, algorithm 1) scales the whole gradient
    and keeps its direction; clipping by value limits each entry and changes the direction.

    Args:
        grads: the gradients of all weights.
        clip_norm: the largest norm of all gradients together, or None.
        clip_value: the largest absolute value of an entry, or None.
        scale_norm: the norm to scale all gradients together to, up or down, or None. A
            gradient with a norm below ``LEAST_NORM`` is left as it is.

    Returns:
        The norm before, and whether the gradient was made smaller.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    if scale_norm is not None:
        factor = (scale_norm / norm).clamp(max=torch.finfo(norm.dtype).max)
        torch._foreach_mul_(grads, torch.where(norm < LEAST_NORM, 1.0, factor))
        return norm, norm > scale_norm
    if clip_norm is not None:
        # A GPU multiplies by 1 rather than be asked whether it need not multiply.
        if norm.device.type != "cpu" or norm > clip_norm:
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
        model: the model to train, on its device and in training mode.
        optimiser: the model's optimiser.
        config: how to train; learning rates and budget are not used here.

    Attributes:
        config: as given; it may be replaced between updates.
        hidden: the state that the next window starts from, unless that window begins a pass
            or the config resets the state: then it starts from zero.
        capture: the update as a CUDA graph; to be forgotten if the config is replaced.
    """

    def __init__(self, model: CharModel, optimiser: Optimiser, config: TrainConfig) -> None:
        self.model = model
        self.optimiser = optimiser
        self.config = config
        self.device = model.device
        self.hidden = model.initial_hidden(config.batch_size)
        self._weights = list(model.parameters())
        self.capture = Capture()
        #: 1 until a loss or gradient is not finite, then 0 for good.
        self._alive = torch.ones((), device=self.device)

    def __call__(self, batch: Batch) -> UpdateResult:
        """Update the weights on one window.

        Once a loss or gradient is not finite, neither this call nor any later one changes
        the weights; the result shows the value.
        """
        x_TB = batch.x_TB.to(self.device, non_blocking=True)
        y_TB = batch.y_TB.to(self.device, non_blocking=True)
        if batch.begins_epoch or self.config.reset_state:
            for state in self.hidden:
                for part_BH in state:
                    part_BH.zero_()
        # A graph has fixed shapes; a pass's last, shorter window runs without it.
        if self.device.type == "cuda" and len(x_TB) == self.config.bptt:
            return self.capture(self._update, x_TB, y_TB, batch.counted)
        return self._update(x_TB, y_TB, batch.counted)

    def _update(self, x_TB: Tensor, y_TB: Tensor, counted: int) -> UpdateResult:
        for weight in self._weights:
            weight.grad = None
        config = self.config
        loss, after = window_loss(
            self.model, x_TB, y_TB, self.hidden, counted,
            config.dropout_masks, config.loss_temperature,
        )  # fmt: skip
        loss.backward()
        grads = [weight.grad for weight in self._weights if weight.grad is not None]
        norm, clipped = clip(grads, config.clip_norm, config.clip_value, config.scale_norm)
        self._alive.mul_(torch.isfinite(loss.detach()) & torch.isfinite(norm))
        if self.device.type == "cuda":
            # A guard that needs no synchronisation with the host: zero rates move no weight.
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
