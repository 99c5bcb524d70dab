"""Characters sampled per second: ours beside a loop over torch.nn's cells, in turns.

The loop is what a tutorial writes: for each character one call of torch.nn's cell, the
head, softmax and multinomial. Ours is the whole of ``charrnn.sampling.sample``, drawing
included. Run with::

    python -m benchmarks.sampling [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.common import in_turns, machine, write_json
from charrnn.config import CELL_NAMES, CellName, ModelConfig, SampleConfig
from charrnn.model import CharModel
from charrnn.sampling import sample
from charrnn.vocabulary import Vocabulary

REFERENCES = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
TEXT = "".join(map(chr, range(32, 32 + 64)))


@dataclass(frozen=True)
class Row:
    """Characters per second of one cell and width."""

    cell: str
    layers: int
    hidden: int
    megabytes: float
    """Of float32 weights that every character reads."""
    loop: float
    one: float
    """One stream, the whole of ``sample``."""
    many: float
    """64 streams together."""


def reference(cell: CellName, vocabulary: int, layers: int, hidden: int) -> Callable[[int], None]:
    """Return a function that samples some characters with torch.nn, called once a character."""
    embedding, head = nn.Embedding(vocabulary, 64), nn.Linear(hidden, vocabulary)
    recurrence = REFERENCES[cell](64, hidden, layers)

    @torch.inference_mode()
    def run(length: int) -> None:
        state, symbol_11 = None, torch.zeros(1, 1, dtype=torch.long)
        for _ in range(length):
            out_11H, state = recurrence(embedding(symbol_11), state)
            p_1V = head(out_11H[0]).softmax(-1)
            symbol_11 = torch.multinomial(p_1V, 1)

    return run


def measure(cell: CellName, layers: int, hidden: int, length: int, rounds: int) -> Row:
    """Time the loop, one stream and 64 streams in turns."""
    torch.manual_seed(1)
    vocabulary = Vocabulary.from_counts({ord(c): 2 for c in TEXT}, "utf-8")
    shape = ModelConfig(
        cell=cell, vocabulary=vocabulary.size, layers=layers, hidden=hidden, embedding=64
    )
    model = CharModel(shape).eval()
    prompt = np.ones(1, dtype=np.int64)
    slow = reference(cell, vocabulary.size, layers, hidden)

    def draw(count: int) -> None:
        for _ in sample(model, vocabulary, prompt, SampleConfig(length=length, count=count)):
            pass

    shorter = max(1, length // 10)
    seconds = in_turns([lambda: slow(shorter), lambda: draw(1), lambda: draw(64)], rounds)
    recurrent = [cell.weight_recurrent.numel() for cell in model.layers()]
    above = [cell.weight_input.numel() for cell in model.layers()[1:]]
    read = 4 * (sum(recurrent) + sum(above) + model.head.weight.numel())
    return Row(
        cell, layers, hidden, read / 1e6,
        shorter / seconds[0], length / seconds[1], 64 * length / seconds[2],
    )  # fmt: skip


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, prog="benchmarks.sampling")
    parser.add_argument("--corpora", type=Path, help="taken for symmetry; no text is read")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="write the results here")
    chosen = parser.parse_args()
    length, rounds = (200, 3) if chosen.quick else (2000, 5)
    rows = [
        measure(cell, 2, hidden, length, rounds) for hidden in (128, 512) for cell in CELL_NAMES
    ]
    table = Table(title=f"characters sampled per second, CPU\n{machine()}")
    for name in (
        "cell",
        "size",
        "MB",
        "loop",
        "one stream",
        "ratio",
        "GB/s",
        "64 streams",
        "ratio",
    ):
        table.add_column(name, justify="left" if name == "cell" else "right")
    for row in rows:
        table.add_row(
            row.cell, f"{row.layers}x{row.hidden}", f"{row.megabytes:.1f}", f"{row.loop:,.0f}",
            f"{row.one:,.0f}", f"{row.one / row.loop:.1f}", f"{row.one * row.megabytes / 1e3:.0f}",
            f"{row.many:,.0f}", f"{row.many / row.one:.1f}",
        )  # fmt: skip
    Console().print(table)
    if chosen.json:
        write_json(chosen.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
