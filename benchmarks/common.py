"""Shared by the benchmarks: the torch.nn reference, timing in turns, results as JSON."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.compute.machine import machine
from charrnn.config import CellName
from charrnn.disk import check_replaceable, write_json
from charrnn.errors import RunFolderError

#: The torch.nn modules that the cells are compared with.
TORCH_NN: dict[CellName, Callable[..., nn.RNNBase]] = {
    "rnn": nn.RNN,
    "lstm": nn.LSTM,
    "gru": nn.GRU,
}
#: The help of --corpora in benchmarks that do not use it.
UNREAD = "every benchmark takes it; this one reads nothing there"


class Reference(nn.Module):
    """A character model as tutorials write it: an embedding, a torch.nn cell, a head."""

    def __init__(
        self, cell: CellName, vocabulary: int, embedding: int, hidden: int, layers: int = 1
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.cell = TORCH_NN[cell](embedding, hidden, layers)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, x_TB: Tensor, state: object = None) -> tuple[Tensor, object]:
        """Return logits_TBV and the state after the window."""
        torch.backends.cudnn.allow_tf32 = True  # torch's default; charrnn has it off in float32
        out_TBH, state = self.cell(self.embedding(x_TB), state)
        return self.head(out_TBH), state


class ReferenceTraining:
    """Trains a reference with AdamW; the state is carried on and the gradient norm clipped.

    Args:
        model: already on its device.
        rate: AdamW's learning rate.
        narrow: whether to multiply in bf16, by autocast; on CUDA, autocast runs recurrences in
            fp16 whatever dtype is asked for (ATen/cudnn/AutocastRNN.cpp).
    """

    def __init__(self, model: Reference, rate: float, narrow: bool) -> None:
        self.model = model
        device = model.head.weight.device.type
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=rate, betas=(0.9, 0.99), fused=True
        )
        self.state: object = None
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=narrow)

    def update(self, x_TB: Tensor, y_TB: Tensor) -> None:
        """Make one update on a window."""
        with self.autocast:
            logits_TBV, state = self.model(x_TB, self.state)
        self.state = detached(state)
        loss = F.cross_entropy(logits_TBV.float().flatten(0, 1), y_TB.flatten())
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()


def detached(state: object) -> object:
    """Detach a torch.nn state: a tensor, or a pair of them."""
    if isinstance(state, tuple):
        return tuple(part.detach() for part in state)
    assert isinstance(state, Tensor)
    return state.detach()


def times_in_turns(
    functions: Sequence[Callable[[], object]], rounds: int, pause: float = 0
) -> list[list[float]]:
    """Return the seconds of each function's calls, one per round.

    Every round calls each function once, so that a busy spell on a shared machine slows all
    of them and their ratios stay right. The order is shuffled every round, so that no function
    always runs with the caches left by the same predecessor. A first, untimed round warms up.
    ``pause`` is in seconds, before each call.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    chance = random.Random(1)
    for number in range(rounds + 1):
        for index in chance.sample(range(len(functions)), len(functions)):
            time.sleep(pause)
            start = time.perf_counter()
            functions[index]()
            if number:
                seconds[index].append(time.perf_counter() - start)
    return seconds


def in_turns(
    functions: Sequence[Callable[[], object]], rounds: int, pause: float = 0
) -> list[float]:
    """Return each function's median seconds per call, timed by ``times_in_turns``."""
    return [statistics.median(times) for times in times_in_turns(functions, rounds, pause)]


def results_file(name: str) -> Path:
    """Return the path for ``--json``, checked now because minutes of measuring follow.

    Raises:
        ArgumentTypeError: no file can be written there.
    """
    path = Path(name).resolve()  # replace a link's target, not the link
    try:
        check_replaceable(path)
    except RunFolderError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def write_results(path: Path, results: Any) -> None:
    """Write a benchmark's results and the machine they were measured on.

    Raises:
        RunFolderError: the file cannot be written, for example because the disk is full.
    """
    write_json(path, {"machine": machine(), "results": results})
