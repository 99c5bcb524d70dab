"""What the benchmarks share: whom to compare with, timing in turns, results as JSON."""

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

from charrnn.config import CellName
from charrnn.disk import check_replaceable, write_json
from charrnn.errors import RunFolderError
from charrnn.machine import machine

#: What the cells are compared with.
TORCH_NN: dict[CellName, Callable[..., nn.RNNBase]] = {
    "rnn": nn.RNN,
    "lstm": nn.LSTM,
    "gru": nn.GRU,
}
#: What --corpora says where it has no use.
UNREAD = "every benchmark takes it; this one reads nothing there"


class Reference(nn.Module):
    """A character model as tutorials write it: embedding, torch.nn's cell, head."""

    def __init__(
        self, cell: CellName, vocabulary: int, embedding: int, hidden: int, layers: int = 1
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.cell = TORCH_NN[cell](embedding, hidden, layers)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, x_TB: Tensor, state: object = None) -> tuple[Tensor, object]:
        """Return logits_TBV and the state after the window."""
        torch.backends.cudnn.allow_tf32 = True  # as torch has it, and ours does not
        out_TBH, state = self.cell(self.embedding(x_TB), state)
        return self.head(out_TBH), state


class ReferenceTraining:
    """Updates a reference window by window with AdamW, the state carried, the norm clipped.

    Args:
        model: on its device.
        rate: of AdamW.
        narrow: whether products are in bf16, by autocast; on CUDA that has recurrences in fp16,
            whatever is asked for (ATen/cudnn/AutocastRNN.cpp).
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
        """Make one update of the weights."""
        with self.autocast:
            logits_TBV, state = self.model(x_TB, self.state)
        self.state = detached(state)
        loss = F.cross_entropy(logits_TBV.float().flatten(0, 1), y_TB.flatten())
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()


def detached(state: object) -> object:
    """Cut a torch.nn state, a tensor or a pair of them, from its past."""
    if isinstance(state, tuple):
        return tuple(part.detach() for part in state)
    assert isinstance(state, Tensor)
    return state.detach()


def times_in_turns(
    functions: Sequence[Callable[[], object]], rounds: int, pause: float = 0
) -> list[list[float]]:
    """Return the seconds of each function's calls, one a round.

    Every round calls each function once, so that a busy spell of a shared machine falls
    on all of them and their ratios stand. Their order is drawn anew in each, so that none
    always finds its memory as the same one before it has left it. One round before them
    warms up. Before each call there may be a pause, in seconds.
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
    """Return the median seconds of a call of each function, as ``times_in_turns`` has them."""
    return [statistics.median(times) for times in times_in_turns(functions, rounds, pause)]


def results_file(name: str) -> Path:
    """Return where ``--json`` writes, once it is sure that it can: minutes of measuring follow.

    Raises:
        ArgumentTypeError: no file can be written there.
    """
    path = Path(name).resolve()  # what a link leads to is replaced, not the link
    try:
        check_replaceable(path)
    except RunFolderError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def write_results(path: Path, results: Any) -> None:
    """Write a benchmark's results, with the machine they are of.

    Raises:
        RunFolderError: disk full or the like.
    """
    write_json(path, {"machine": machine(), "results": results})
