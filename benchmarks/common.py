"""What the benchmarks share: whom to compare with, the machine, timing in turns, JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from charrnn.config import CellName
from charrnn.machine import processor
from charrnn.native import loops

__all__ = ["TORCH_NN", "UNREAD", "in_turns", "machine", "write_json"]

#: What the cells are compared with.
TORCH_NN: dict[CellName, Callable[..., nn.RNNBase]] = {
    "rnn": nn.RNN,
    "lstm": nn.LSTM,
    "gru": nn.GRU,
}
#: What --corpora says where it has no use.
UNREAD = "every benchmark takes it; this one reads nothing there"


def machine() -> str:
    """Return the machine and the versions that figures depend on, in one line."""
    parts = [processor(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts += [
        f"{platform.system()} {platform.machine()}",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__} with {torch.get_num_threads()} threads",
        "loops compiled" if loops() else "loops in numpy",
    ]
    return ", ".join(parts)


def in_turns(functions: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Return the median seconds of a call of each function.

    Every round calls each function once, so that a busy spell of a shared machine falls
    on all of them and their ratios stand. One round before them warms up.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 1):
        for times, function in zip(seconds, functions, strict=True):
            start = time.perf_counter()
            function()
            if number:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def write_json(path: Path, results: Any) -> None:
    """Write a benchmark's results, with the machine they are of."""
    content = {"machine": machine(), "results": results}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
