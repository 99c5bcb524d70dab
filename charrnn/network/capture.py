"""An update captured as a CUDA graph: recorded once, then replayed in one call.

Replaying saves launching some hundred small kernels. The update itself is in ``update``; of it
this module knows only what it takes and returns.

Axis letters: T time, B lanes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Updates that run on a CUDA device before the capture; they train like any other.
EAGER_UPDATES = 3


@dataclass(frozen=True)
class UpdateResult:
    """What one update measured, still on the device."""

    loss: Tensor
    """Mean nats of the window's counted predictions, with dropout and loss temperature."""
    norm: Tensor
    """Norm of the gradient of all weights together, before clipping."""
    clipped: Tensor
    """Whether the gradient was clipped."""


Eager = Callable[[Tensor, Tensor, int], UpdateResult]
"""Makes an update on a window: x_TB, y_TB, and how many of its time steps count."""


class Capture:
    """Makes updates on windows of one shape, from the fourth on as a graph.

    It keeps no reference to what makes them: a cycle would keep the model's memory alive.

    Attributes:
        failure: why the update is not captured, or None.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._side: torch.cuda.Stream | None = None
        self._eager_updates = 0

    def forget(self) -> None:
        """Drop the graph, to capture it anew: needed when the update computes something else."""
        self._graph = None
        self._eager_updates = 0

    def __call__(self, update: Eager, x_TB: Tensor, y_TB: Tensor, counted: int) -> UpdateResult:
        """Make an update, the same one in every call; the tensors are on the device."""
        if self._graph is None and self.failure is None:
            if self._eager_updates < EAGER_UPDATES:
                # Libraries choose and load their kernels now; they cannot during a capture.
                self._eager_updates += 1
                # One side stream for all: freed memory is reused only on its own stream.
                side = self._side = self._side or torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    result = update(x_TB, y_TB, counted)
                torch.cuda.current_stream().wait_stream(side)
                return result
            self._record(update, x_TB, y_TB, counted)
        if self._graph is None:
            return update(x_TB, y_TB, counted)
        self._x_TB.copy_(x_TB)
        self._y_TB.copy_(y_TB)
        self._graph.replay()
        held = self._result
        return UpdateResult(held.loss.clone(), held.norm.clone(), held.clipped.clone())

    def _record(self, update: Eager, x_TB: Tensor, y_TB: Tensor, counted: int) -> None:
        """Record one update as a graph, without running it.

        It records on the stream of the eager updates, for which cuBLAS has its work space by now.
        One allocated during a capture would lie in the graph's own memory, and torch would use it
        for later graphs as well, even once the first is gone.

        A capture that fails at its end may keep its memory: torch releases the memory pool only of
        a capture that has ended (``CUDAGraph::reset``, in ATen/cuda/CUDAGraph.cpp).
        """
        gc.collect()  # what is found to be garbage during a capture would be released within it
        self._x_TB, self._y_TB = x_TB.clone(), y_TB.clone()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, stream=self._side):
                self._result = update(self._x_TB, self._y_TB, counted)
        except RuntimeError as error:
            # A capture that fails at its end leaves its own stream as the current one and, in
            # torch 2.11, a random generator that only a capture can draw from.
            torch.cuda.set_stream(stream)
            generator = torch.cuda.default_generators[x_TB.device.index]
            generator.graphsafe_set_state(generator.clone_state())
            # The outer error says only that the capture failed, its context why. (Do not keep the
            # context in a local variable: a reference cycle would keep a window's memory alive.)
            self.failure = (str(error.__context__ or error).splitlines() or ["no reason given"])[0]
        else:
            self._graph = graph
