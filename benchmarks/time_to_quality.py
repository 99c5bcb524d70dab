"""Loss after a number of minutes: ``charrnn train`` and a plain reference, in turns.

The reference is what a good tutorial builds: a torch.nn cell, one layer of 256 units,
32 lanes x 64 characters, AdamW with a warm-up and a cosine decay over the time, the gradient
clipped at norm 1, the state carried on, in float32 or bf16, whichever is faster. Its learning
rate of 6e-3 is the best of 3e-3, 6e-3 and 1e-2 for each cell in 2 minutes of tinyshakespeare.
It gets the same minutes, text and split, and is also scored in one lane. Run with::

    python -m benchmarks.time_to_quality --corpora DIR [--text NAME] [--minutes 2 ...]
        [--cell lstm ...] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import Reference, ReferenceTraining, in_turns, results_file, write_results
from charrnn.compute.device import choose_device, multiplies_bf16, synchronise
from charrnn.compute.machine import machine
from charrnn.config import CELL_NAMES, CellName
from charrnn.limits import keep_freed_memory, openmp

#: The reference's peak learning rate, its updates of warm-up, and the share of the rate that is
#: left at the end.
RATE, WARM_UP, LEFT = 6e-3, 50, 0.02
#: The reference's lanes, and the characters per window.
LANES, WINDOW = 32, 64


@dataclass(frozen=True)
class Outcome:
    """The result of one training."""

    who: str
    cell: str
    minutes: float
    nats_per_char: float
    chars_per_second: float
    characters: int
    seconds: float


def ours(text: Path, cell: CellName, minutes: float, folder: Path) -> Outcome:
    """Train with charrnn's defaults; only the cell and the minutes are given."""
    run = folder / f"ours-{cell}-{time.monotonic_ns()}"

    def charrnn(*words: object) -> str:
        command = [sys.executable, "-m", "charrnn", *map(str, words), "--json"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    trained = charrnn("train", text, "--cell", cell, "--minutes", minutes, "--run", run)
    end = json.loads(trained.splitlines()[-1])
    # Scored anew: on a large text, validations score only the beginning of the held-out part.
    checkpoint = run / "last.safetensors"
    (scores,) = json.loads(charrnn("evaluate", checkpoint, "--part", "valid", "--exact"))
    return Outcome(
        "charrnn",
        cell,
        minutes,
        scores["nats_per_char"],
        end["characters"] / end["seconds"],
        end["characters"],
        end["seconds"],
    )


def plain(cell: CellName, vocabulary: int, device: torch.device, narrow: bool) -> ReferenceTraining:
    """Return the untrained reference."""
    torch.manual_seed(1)
    model = Reference(cell, vocabulary, embedding=64, hidden=256).to(device)
    return ReferenceTraining(model, RATE, narrow)


def narrow_is_faster(
    cell: CellName, vocabulary: int, x_TB: Tensor, y_TB: Tensor, device: torch.device
) -> bool:
    """Return whether the reference trains faster in bf16, by timing some updates in turns."""
    if not multiplies_bf16(device):
        return False

    def update(training: ReferenceTraining) -> None:
        training.update(x_TB, y_TB)
        synchronise(device)

    trainings = [plain(cell, vocabulary, device, narrow) for narrow in (False, True)]
    wide, narrow = in_turns([partial(update, training) for training in trainings], 25)
    return narrow < wide


def reference(text: Path, cell: CellName, minutes: float, device: torch.device) -> Outcome:
    """Train the plain reference for the same time on the same split.

    It trains in float32 or bf16, whichever is faster. Like charrnn, it is timed from when the
    text has been read. It makes no validations or checkpoints; charrnn's time includes both.
    """
    characters = text.read_bytes().decode().removeprefix("\ufeff")
    symbols = {character: index for index, character in enumerate(sorted(set(characters)))}
    ids = torch.from_numpy(np.array([symbols[character] for character in characters]))
    train, valid = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    length = (len(train) - 1) // LANES
    x_TB = train[: LANES * length].view(LANES, length).t().contiguous().to(device)
    y_TB = train[1 : LANES * length + 1].view(LANES, length).t().contiguous().to(device)
    narrow = narrow_is_faster(cell, len(symbols), x_TB[:WINDOW], y_TB[:WINDOW], device)
    training = plain(cell, len(symbols), device, narrow)
    budget, step = minutes * 60, 0
    started = time.monotonic()
    while (elapsed := time.monotonic() - started) < budget:
        start = step * WINDOW % (length - WINDOW)
        if start < WINDOW:  # a pass begins, though not always at 0
            training.state = None
        decay = LEFT + (1 - LEFT) * 0.5 * (1 + math.cos(math.pi * elapsed / budget))
        for group in training.optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP) * decay
        training.update(x_TB[start : start + WINDOW], y_TB[start : start + WINDOW])
        step += 1
    synchronise(device)
    seconds, read = time.monotonic() - started, step * LANES * WINDOW
    return Outcome(
        f"plain {'bf16' if narrow else 'fp32'}",
        cell,
        minutes,
        exact_loss(training.model, valid.to(device)),
        read / seconds,
        read,
        seconds,
    )


@torch.inference_mode()
def exact_loss(model: Reference, ids: Tensor) -> float:
    """Return the nats per character of a text in one lane, with the state carried on."""
    total, state = 0.0, None
    for start in range(0, len(ids) - 1, 4096):
        x_TB = ids[start : start + 4096][: len(ids) - 1 - start, None]
        y_T = ids[start + 1 : start + 1 + len(x_TB)]
        logits_TBV, state = model(x_TB, state)
        total += float(F.cross_entropy(logits_TBV[:, 0], y_T, reduction="sum"))
    return total / (len(ids) - 1)


def show(text: str, outcomes: Sequence[Outcome]) -> None:
    table = Table(title=f"{text}: loss on the last tenth after a time\n{machine()}")
    for name in ("cell", "minutes", "who", "nats/char", "chars/s", "characters", "seconds"):
        table.add_column(name, justify="left" if name in ("cell", "who") else "right")
    for o in outcomes:
        table.add_row(
            o.cell, f"{o.minutes:g}", o.who, f"{o.nats_per_char:.4f}",
            f"{o.chars_per_second:,.0f}", f"{o.characters:,}", f"{o.seconds:.0f}",
        )  # fmt: skip
    Console().print(table)


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.time_to_quality",
        description="Measure the loss after some minutes of training beside a plain reference.",
    )
    parser.add_argument("--corpora", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--text", default="tinyshakespeare.txt", help="file in it")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0])
    parser.add_argument("--cell", nargs="+", choices=CELL_NAMES, default=CELL_NAMES)
    parser.add_argument("--quick", action="store_true", help="six seconds each")
    parser.add_argument("--json", type=results_file, help="write the results here")
    chosen = parser.parse_args()
    text = chosen.corpora / chosen.text
    # As `charrnn train` does; for the reference, too.
    keep_freed_memory()
    if threads := openmp(os.environ).get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    device = choose_device("auto")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in [0.1] if chosen.quick else chosen.minutes:
            for cell in chosen.cell:
                both = [
                    partial(reference, text, cell, minutes, device),
                    partial(ours, text, cell, minutes, Path(folder)),
                ]
                # They take turns at going first: a machine may be fast only for a while.
                if len(outcomes) % 4:
                    both.reverse()
                outcomes += [train() for train in both]
    show(text.name, outcomes)
    if chosen.json:
        write_results(chosen.json, [asdict(outcome) for outcome in outcomes])


if __name__ == "__main__":
    main()
