"""Characters sampled per second, compared with a loop over torch.nn's cells.

The loop is what a tutorial writes: for each character one call of torch.nn's cell, the head,
softmax and multinomial. charrnn is timed as a whole (``charrnn.inference.sampling.sample``, drawing
included): 1 stream and 64, with weights in float32, bf16 and 8 bits. A step without drawing is also
timed in C and in numpy, which makes the steps where there is no compiler. Before all that: with a
trained model and a text, the loss by kind of weights; then how long a user waits for the first
character, and how much of that is loading torch.
Run with::

    python -m benchmarks.sampling [--quick] [--json FILE] [--checkpoint RUN --text FILE]
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.common import TORCH_NN, UNREAD, in_turns, results_file, write_results
from charrnn.command_words import command_line
from charrnn.compute.machine import machine
from charrnn.compute.steps import steps
from charrnn.config import CELL_NAMES, CellName, ModelConfig, SampleConfig, WeightsName
from charrnn.inference.evaluation import (
    WINDOW,
    Prices,
    read_windows,
    symbol_prices,
    total,
    window_prices,
)
from charrnn.inference.sampling import sample
from charrnn.inference.stepper import CompiledStepper, NumpyStepper
from charrnn.network.model import CharModel
from charrnn.storage.trained import load_model
from charrnn.text.corpus import Part
from charrnn.text.scanning import scan
from charrnn.text.vocabulary import Vocabulary

#: Characters of a text to score, one at a time, with each kind of weights.
LOSS_CHARACTERS = 20_000
TEXT = "".join(map(chr, range(32, 32 + 64)))


@dataclass(frozen=True)
class Row:
    """Characters per second of one cell at one width."""

    cell: str
    layers: int
    hidden: int
    megabytes: float
    """Float32 weights that every character reads."""
    loop: float
    one: float
    """One stream, float32."""
    bf16: float
    """One stream, bf16."""
    int8: float
    """One stream, 8 bits per weight."""
    many: float
    """64 streams together, float32."""
    many_bf16: float
    many_int8: float


@dataclass(frozen=True)
class StepRow:
    """Seconds per step without drawing, in numpy and, if there is a compiler, in C."""

    cell: str
    layers: int
    hidden: int
    streams: int
    weights: str
    numpy: float
    c: float | None


def reference(cell: CellName, vocabulary: int, layers: int, hidden: int) -> Callable[[int], None]:
    """Return a function that samples with torch.nn, one call per character."""
    embedding, head = nn.Embedding(vocabulary, 64), nn.Linear(hidden, vocabulary)
    recurrence = TORCH_NN[cell](64, hidden, layers)

    @torch.inference_mode()
    def run(length: int) -> None:
        state, symbol_11 = None, torch.zeros(1, 1, dtype=torch.long)
        for _ in range(length):
            out_11H, state = recurrence(embedding(symbol_11), state)
            p_1V = head(out_11H[0]).softmax(-1)
            symbol_11 = torch.multinomial(p_1V, 1)

    return run


def make_model(cell: CellName, layers: int, hidden: int) -> CharModel:
    """Return an untrained model of ``TEXT``'s characters and the unknown symbol."""
    torch.manual_seed(1)
    shape = ModelConfig(
        cell=cell, vocabulary=len(TEXT) + 1, layers=layers, hidden=hidden, embedding=64
    )
    return CharModel(shape).eval()


def measure(cell: CellName, layers: int, hidden: int, length: int, rounds: int) -> Row:
    """Time the loop, one stream and 64 streams in turns."""
    vocabulary = Vocabulary.from_counts({ord(c): 2 for c in TEXT}, "utf-8")
    model = make_model(cell, layers, hidden)
    prompt = np.ones(1, dtype=np.int64)
    slow = reference(cell, vocabulary.size, layers, hidden)

    def draw(count: int, weights: WeightsName = "fp32") -> None:
        steps = length if count == 1 else length // 4
        for _ in sample(
            model, vocabulary, prompt, SampleConfig(length=steps, count=count, weights=weights)
        ):
            pass

    shorter = length // 40  # the loop is slow
    ours: list[tuple[int, WeightsName]] = [
        (count, weights) for count in (1, 64) for weights in get_args(WeightsName)
    ]
    loop, *seconds = in_turns(
        [lambda: slow(shorter), *(partial(draw, *which) for which in ours)], rounds
    )
    drawn = [length if count == 1 else 64 * (length // 4) for count, _ in ours]
    speeds = [characters / taken for characters, taken in zip(drawn, seconds, strict=True)]
    recurrent = [cell.weight_recurrent.numel() for cell in model.layers()]
    above = [cell.weight_input.numel() for cell in model.layers()[1:]]
    read = 4 * (sum(recurrent) + sum(above) + model.head.weight.numel())
    return Row(cell, layers, hidden, read / 1e6, shorter / loop, *speeds)


def make_steps(
    stepper: NumpyStepper | CompiledStepper, symbols_B: NDArray[np.integer], number: int
) -> None:
    """Make ``number`` steps that all read the same symbols."""
    for _ in range(number):
        stepper.step(symbols_B)


def measure_steps(cell: CellName, layers: int, hidden: int, rounds: int) -> Iterator[StepRow]:
    """Time steps in numpy and C in turns, for 1 and 64 streams and each kind of weights."""
    model, compiled = make_model(cell, layers, hidden), steps()
    for streams in (1, 64):
        state, symbols_B = model.initial_hidden(streams), np.arange(streams) % len(TEXT)
        for weights in get_args(WeightsName):
            steppers: list[NumpyStepper | CompiledStepper] = [NumpyStepper(model, state, weights)]
            if compiled is not None:
                steppers.append(CompiledStepper(compiled, model, state, weights))
            # Enough that waking threads and trying ways to share the work (0.03 s) hardly count.
            number = min(5000, max(20, 4_000_000_000 // (hidden * hidden * streams)))
            # A pause before each: numpy's threads go on spinning for a while and slow others.
            one, *other = in_turns(
                [partial(make_steps, stepper, symbols_B, number) for stepper in steppers],
                rounds,
                pause=0.3,
            )
            c = other[0] / number if other else None
            yield StepRow(cell, layers, hidden, streams, weights, one / number, c)


def read_speed(megabytes: float) -> float:
    """Return the GB/s at which all threads together reread an array of this size."""
    array = torch.ones(int(megabytes * 1e6 / 4))
    (seconds,) = in_turns([array.sum], 20)
    return megabytes / 1e3 / seconds


def losses(checkpoint: Path, text: Path) -> dict[WeightsName, float]:
    """Return the bits per character on a text's beginning with each kind of weights."""
    model, vocabulary, _ = load_model(checkpoint, torch.device("cpu"))
    part = scan([str(text)], vocabulary.encoding).whole.first(LOSS_CHARACTERS)
    return {
        weights: total(stepped_prices(model, part, vocabulary, weights), part).bits_per_char
        for weights in get_args(WeightsName)
    }


def stepped_prices(
    model: CharModel, part: Part, vocabulary: Vocabulary, weights: WeightsName
) -> Iterator[Prices]:
    """Price a text like ``evaluation.prices``, with the steps of a sample.

    Those in C round the state, too, and not only the weights.
    """
    hidden, compiled = model.initial_hidden(1), steps()
    stepper = (
        NumpyStepper(model, hidden, weights)
        if compiled is None
        else CompiledStepper(compiled, model, hidden, weights)
    )
    for position, x_TB, y_TB in read_windows(part, vocabulary, WINDOW):
        logits_TBV = torch.from_numpy(np.stack([stepper.step(x_B) for x_B in x_TB.numpy()]))
        yield window_prices(position, symbol_prices(logits_TBV, y_TB)[:, 0], y_TB, vocabulary)


def first_byte(*command: str) -> None:
    """Wait for the first byte that a command prints, then kill the command.

    Raises:
        RuntimeError: it printed nothing.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        byte = process.stdout.read(1)
        process.kill()
    if not byte:
        raise RuntimeError(f"printed nothing: {command_line(command)}")


def waits(rounds: int) -> tuple[float, float]:
    """Return the seconds to load torch, and until ``sample`` prints its first character."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        charrnn = [sys.executable, "-m", "charrnn"]
        training = [
            *charrnn, "train", __file__, "--hidden", "128", "--steps", "1", "--run", str(run),
        ]  # fmt: skip
        subprocess.run(training, check=True, capture_output=True)

        torch_alone, first = in_turns(
            [
                lambda: first_byte(sys.executable, "-c", "import torch; print(1, flush=True)"),
                lambda: first_byte(*charrnn, "sample", str(run)),
            ],
            rounds,
        )
    return torch_alone, first


def show(
    rows: Sequence[Row],
    step_rows: Sequence[StepRow],
    seconds: tuple[float, float],
    speeds: Mapping[str, float],
    bits: Mapping[WeightsName, float],
) -> None:
    table = Table(title=f"characters sampled per second, CPU\n{machine()}")
    for name in (
        "cell", "size", "MB", "loop", "one", "/ loop", "GB/s", "bf16", "/ loop", "int8", "/ fp32",
        "64", "/ one", "64, bf16", "/ one", "64, int8",
    ):  # fmt: skip
        table.add_column(name, justify="left" if name == "cell" else "right")
    for row in rows:
        table.add_row(
            row.cell, f"{row.layers}x{row.hidden}", f"{row.megabytes:.1f}", f"{row.loop:,.0f}",
            f"{row.one:,.0f}", f"{row.one / row.loop:.1f}", f"{row.one * row.megabytes / 1e3:.0f}",
            f"{row.bf16:,.0f}", f"{row.bf16 / row.loop:.1f}",
            f"{row.int8:,.0f}", f"{row.int8 / row.one:.1f}",
            f"{row.many:,.0f}", f"{row.many / row.one:.1f}",
            f"{row.many_bf16:,.0f}", f"{row.many_bf16 / row.bf16:.1f}", f"{row.many_int8:,.0f}",
        )  # fmt: skip
    console = Console(width=156, highlight=False)
    console.print(table)
    console.print(steps_table(step_rows))
    torch_alone, first = seconds
    console.print(f"First character after {first:.2f} s, of which torch {torch_alone:.2f}")
    console.print(
        "Reading an array again and again, GB/s: "
        + "; ".join(f"{size}: {speed:.0f}" for size, speed in speeds.items())
    )
    for weights, value in bits.items():
        console.print(f"{weights}: {value:.4f} bits per character")


def steps_table(rows: Sequence[StepRow]) -> Table:
    """Return a table of the steps: a row per cell, width and number of streams."""
    table = Table(title="a step without the drawing, microseconds: numpy, C")
    for name in ("cell", "size", "streams", *get_args(WeightsName)):
        table.add_column(name, justify="left" if name == "cell" else "right")
    for (cell, layers, hidden, streams), group in itertools.groupby(
        rows, key=lambda row: (row.cell, row.layers, row.hidden, row.streams)
    ):
        times = [
            f"{1e6 * row.numpy:,.0f}, {'-' if row.c is None else f'{1e6 * row.c:,.0f}'}"
            for row in group
        ]
        table.add_row(cell, f"{layers}x{hidden}", str(streams), *times)
    return table


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sampling",
        description="Measure characters sampled per second beside a loop over torch.nn's cells.",
    )
    parser.add_argument("--corpora", type=Path, help=UNREAD)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, 2 x 128 only")
    parser.add_argument("--checkpoint", type=Path, help="of a trained model, for what bits cost")
    parser.add_argument("--text", type=Path, help="that it did not learn from")
    parser.add_argument("--json", type=results_file, help="write the results here")
    chosen = parser.parse_args()
    if (chosen.checkpoint is None) != (chosen.text is None):
        parser.error("--checkpoint and --text go together: give both")
    rounds = 1 if chosen.quick else 3
    lengths = {128: 40_000, 512: 24_000, 1024: 4_000}
    sizes = [(cell, hidden) for hidden in (128, 512) for cell in CELL_NAMES] + [("lstm", 1024)]
    if chosen.quick:
        sizes = sizes[: len(CELL_NAMES)]
    # First, so that an unreadable file is reported before minutes of measuring.
    bits = losses(chosen.checkpoint, chosen.text) if chosen.checkpoint else {}
    torch_alone, first = waits(rounds)
    rows = [measure(cell, 2, hidden, lengths[hidden], rounds) for cell, hidden in sizes]
    step_rows = [
        row for cell, hidden in sizes for row in measure_steps(cell, 2, hidden, 2 * rounds - 1)
    ]
    speeds = {
        f"{size} MB": read_speed(size) for size in ((4, 13) if chosen.quick else (4, 13, 50, 500))
    }
    show(rows, step_rows, (torch_alone, first), speeds, bits)
    if chosen.json:
        results = {
            "seconds": {"torch": torch_alone, "first_character": first},
            "rows": [asdict(row) for row in rows],
            "steps": [asdict(row) for row in step_rows],
            "read_gb_per_second": speeds,
            "bits": bits,
        }
        write_results(chosen.json, results)


if __name__ == "__main__":
    main()
