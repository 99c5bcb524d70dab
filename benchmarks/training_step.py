"""How long a training step takes, compared with torch.nn.

    python -m benchmarks.training_step [--quick] [--json FILE]

Without a CUDA device it first measures forward and backward of one layer at 16 lanes, with the
gradients of its weights and inputs. Then come whole updates (forward, loss, backward, clipping,
optimiser): charrnn's with Muon, captured as a graph on a CUDA device; torch.nn's with AdamW, as
tutorials write them. Both decay the weights, and neither uses dropout: `charrnn train` drops units
and weights only in runs of many passes, and torch.nn has no weight drop. Last, the speed of scoring
is compared with that of an update's forward pass. All candidates of a size take turns, so that a
busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, groupby
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.common import (
    TORCH_NN,
    UNREAD,
    Reference,
    ReferenceTraining,
    in_turns,
    results_file,
    times_in_turns,
    write_results,
)
from charrnn.compute.autograd import has_loop
from charrnn.compute.device import multiplies_bf16
from charrnn.compute.machine import machine
from charrnn.config import CELL_NAMES, CellName, ModelConfig, TrainConfig
from charrnn.inference.evaluation import score
from charrnn.limits import keep_freed_memory
from charrnn.network.capture import EAGER_UPDATES
from charrnn.network.cells import CELLS
from charrnn.network.model import CharModel, outline
from charrnn.network.optimiser import MuonAdamW
from charrnn.network.update import Update, window_loss
from charrnn.recipe import Choices, choose
from charrnn.text.scanning import scan
from charrnn.text.stream import Batch
from charrnn.text.vocabulary import Vocabulary

_LANES = 16
#: Characters of the text for scoring.
_SCORED = 100_000
#: Length of text that the recipe for our updates assumes, in characters.
_LEARNED = 1_000_000
_HIDDEN = (128, 256, 512)

_PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
#: What torch.nn's recurrences compute in on a GPU (``ReferenceTraining``); ours in what is named.
_TORCH_NN_ON_CUDA = {"bfloat16": "fp16", "float32": "TF32"}

Step = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """The size of a model whose whole updates are timed, and of its windows."""

    device: str
    lanes: int
    steps: int
    layers: int
    hidden: int
    vocabulary: int = 66


_ON_CUDA = (
    Size("cuda", lanes=64, steps=128, layers=2, hidden=512),
    # A GPU's defaults for LSTM and GRU, except that the vocabulary is as large as the embedding.
    Size("cuda", lanes=16, steps=128, layers=1, hidden=1024, vocabulary=72),
    Size("cuda", lanes=16, steps=128, layers=1, hidden=1536, vocabulary=72),
)
_ON_CPU = (Size("cpu", lanes=16, steps=128, layers=1, hidden=384),)


@dataclass(frozen=True)
class Row:
    """One cell of one implementation at one size."""

    what: str
    cell: CellName
    by: str
    ms: float
    characters_per_second: float
    gflops: float
    """Of the matrix products, forward and backward: 6 operations per weight and character. Where
    charrnn looks up W x of the lowest layer, it is 6 per weight of W and symbol, once a window."""
    over_torch_nn: float
    """Speed relative to torch.nn's same cell: the median of the rounds' ratios."""
    over_torch_nn_quartiles: tuple[float, float]
    """The lower and upper quartile of these ratios."""
    over_lstm: float
    """Speed relative to the LSTM of the same implementation."""


def finished(step: Step) -> Step:
    """Return the step followed by a wait for the device."""
    if not torch.cuda.is_available():
        return step

    def run() -> None:
        step()
        torch.cuda.synchronize()

    return run


def make_rows(
    what: str,
    steps: Mapping[tuple[CellName, str], Step],
    multiply_adds: Mapping[tuple[CellName, str], int],
    characters: int,
    rounds: int,
) -> list[Row]:
    """Time the steps of all cells and implementations and compare them.

    Args:
        what: what is timed, in words.
        steps: by cell and implementation.
        multiply_adds: of the matrix products in each step's forward pass.
        characters: per step.
        rounds: how often each step is timed.
    """
    times = times_in_turns([finished(step) for step in steps.values()], rounds)
    seconds = dict(zip(steps, times, strict=True))
    rows = []
    for (cell, by), own in seconds.items():
        elapsed = statistics.median(own)
        lower, middle, upper = statistics.quantiles(ratios(seconds[cell, "torch.nn"], own))
        rows.append(
            Row(
                what=what,
                cell=cell,
                by=by,
                ms=1e3 * elapsed,
                characters_per_second=characters / elapsed,
                gflops=6 * multiply_adds[cell, by] / elapsed / 1e9,
                over_torch_nn=middle,
                over_torch_nn_quartiles=(lower, upper),
                over_lstm=statistics.median(ratios(seconds["lstm", by], own)),
            )
        )
    return rows


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Return the ratio of their time to ours, round by round."""
    return [other / own for other, own in zip(theirs, ours, strict=True)]


def layer_steps(cell: CellName, hidden: int, length: int) -> dict[tuple[CellName, str], Step]:
    """Return steps of forward and backward through one layer, ours and torch.nn's."""
    ours = CELLS[cell](hidden, hidden)
    theirs = TORCH_NN[cell](hidden, hidden)
    x_TBH = torch.randn(length, _LANES, hidden, requires_grad=True)
    d_out_TBH = torch.randn(length, _LANES, hidden)
    state = ours.initial_state(_LANES)

    def step(run: Callable[[], Tensor], module: nn.Module) -> None:
        torch.autograd.grad(run(), [x_TBH, *module.parameters()], d_out_TBH)

    return {
        (cell, "charrnn"): lambda: step(lambda: ours(x_TBH, state)[0], ours),
        (cell, "torch.nn"): lambda: step(lambda: theirs(x_TBH)[0], theirs),
    }


def measure_layers(length: int, rounds: int) -> list[Row]:
    rows = []
    for hidden in _HIDDEN:
        steps: dict[tuple[CellName, str], Step] = {}
        for cell in CELL_NAMES:
            steps |= layer_steps(cell, hidden, length)
        characters = _LANES * length
        multiply_adds = {
            (cell, by): CELLS[cell](hidden, hidden).multiply_adds() * characters
            for cell, by in steps
        }
        what = f"layer of {hidden}, {_LANES} lanes x {length}, CPU, float32"
        rows += make_rows(what, steps, multiply_adds, characters, rounds)
    return rows


def reference_update(cell: CellName, size: Size, windows: Tensor, dtype: torch.dtype) -> Step:
    """Return an eager update of torch.nn's layers on the next window; bfloat16 by autocast."""
    model = Reference(cell, size.vocabulary, size.vocabulary, size.hidden, size.layers)
    narrow = dtype == torch.bfloat16
    training = ReferenceTraining(model.to(size.device), rate=0.001, narrow=narrow)
    following = cycle(windows)
    return lambda: training.update(*next(following))


def our_numbers(cell: CellName, size: Size) -> tuple[ModelConfig, TrainConfig]:
    """Return the config of a model shaped like ``Reference``, without dropout, and its recipe."""
    choices = Choices(
        cell=cell,
        budget={"steps": 1},
        model={
            "layers": size.layers,
            "hidden": size.hidden,
            "embedding": size.vocabulary,
            "dropout": 0.0,
            "weight_drop": 0.0,
        },
        training={"batch_size": size.lanes, "bptt": size.steps},
    )
    return choose(choices, vocabulary=size.vocabulary, characters=_LEARNED, device=size.device)


def our_update(cell: CellName, size: Size, windows: Tensor, dtype: torch.dtype) -> Step:
    """Return an update as ``charrnn train`` makes it after its first, eager ones.

    It trains on the next window with the recipe's peak learning rates and weight decay, but
    without dropout or weight drop.
    """
    shape, config = our_numbers(cell, size)
    model = CharModel(shape).to(size.device)
    model.compute_dtype = dtype
    optimiser = MuonAdamW(model, weight_decay=config.weight_decay)
    optimiser.set_rates(config.lr, config.lr_adam)
    update = Update(model, optimiser, config)
    batches = cycle([Batch(x_TB, y_TB, False, len(x_TB), unknown=0) for x_TB, y_TB in windows])
    for _ in range(EAGER_UPDATES + 1):
        update(next(batches))
    if update.capture.failure:
        raise RuntimeError(f"no CUDA graph for {cell}: {update.capture.failure}")
    return lambda: update(next(batches))


def window_multiply_adds(
    cell: CellName, size: Size, dtype: torch.dtype
) -> dict[tuple[CellName, str], int]:
    """Return the multiply-adds of a window's matrix products, ours and torch.nn's.

    On a CPU, charrnn multiplies W of the lowest layer by each symbol once per window instead of
    by each character, except where an LSTM has no compiled loop and is torch's. All symbols are
    taken to occur in every window.
    """
    model, characters = outline(our_numbers(cell, size)[0]), size.lanes * size.steps
    whole = characters * model.multiply_adds()
    looks_up = size.device == "cpu" and has_loop(cell, dtype)
    repeated = characters - size.vocabulary if looks_up else 0
    ours = whole - repeated * model.layers()[0].weight_input.numel()
    return {(cell, "charrnn"): ours, (cell, "torch.nn"): whole}


def update_in_words(size: Size, precision: str) -> str:
    """Return what is timed, in words."""
    shape = f"{size.layers} x {size.hidden}, {size.lanes} lanes x {size.steps}"
    theirs = ""
    if size.device == "cuda":
        theirs = f" (torch.nn's recurrences in {_TORCH_NN_ON_CUDA[precision]})"
    return f"update of {shape}, {size.device.upper()}, {precision}{theirs}"


def measure_updates(size: Size, rounds: int) -> list[Row]:
    # A single repeated window would soon be memorised and leave no gradient.
    windows = torch.randint(
        size.vocabulary, (rounds, 2, size.steps, size.lanes), device=size.device
    )
    rows = []
    for precision, dtype in _PRECISIONS.items():
        if dtype == torch.bfloat16 and not multiplies_bf16(torch.device(size.device)):
            continue
        steps: dict[tuple[CellName, str], Step] = {}
        multiply_adds: dict[tuple[CellName, str], int] = {}
        for cell in CELL_NAMES:
            steps[cell, "charrnn"] = our_update(cell, size, windows, dtype)
            steps[cell, "torch.nn"] = reference_update(cell, size, windows, dtype)
            multiply_adds |= window_multiply_adds(cell, size, dtype)
        rows += make_rows(
            update_in_words(size, precision), steps, multiply_adds, size.lanes * size.steps, rounds
        )
    return rows


def measure_scoring(rounds: int) -> dict[str, float]:
    """Return the characters per second of scoring and of an update's forward pass.

    The model is an LSTM of 384 units with an embedding of 64; the text is random letters.
    """
    symbols = "".join(map(chr, range(32, 32 + 64)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "letters.txt")
        path.write_text("".join(random.Random(1).choices(symbols, k=_SCORED)))
        corpus = scan([str(path)])
        part = corpus.whole
        vocabulary = Vocabulary.from_counts(corpus.counts, corpus.encoding)
        shape = ModelConfig(
            cell="lstm", vocabulary=vocabulary.size, layers=1, hidden=384, embedding=64
        )
        model = CharModel(shape).to(device)
        x_TB, y_TB = torch.randint(1, vocabulary.size, (2, 128, _LANES), device=device)

        def forward(dtype: torch.dtype) -> Step:
            def run() -> None:
                model.compute_dtype = dtype
                window_loss(model, x_TB, y_TB, model.initial_hidden(_LANES), len(x_TB))

            return finished(run)

        steps: dict[str, Step] = {}
        for precision, dtype in _PRECISIONS.items():
            if dtype == torch.float32 or multiplies_bf16(device):
                steps[f"scoring, {precision}"] = partial(
                    score, model, part, vocabulary, dtype=dtype
                )
                steps[f"forward part of an update, {precision}"] = forward(dtype)
        seconds = in_turns([*steps.values()], rounds)
    read = [part.characters, x_TB.numel()] * (len(steps) // 2)
    return {name: n / each for name, n, each in zip(steps, read, seconds, strict=True)}


def matrix_peaks() -> dict[str, float]:
    """Return the device's GFLOP/s on large square matrix products."""
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 1536)
    wide = torch.randn(size, size, device=device)
    narrow = wide.bfloat16()
    products: dict[str, Step] = {
        "torch.mm, float32": lambda: torch.mm(wide, wide),
        "torch.mm, bfloat16": lambda: torch.mm(narrow, narrow),
    }
    if device == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        onednn = torch.ops.mkldnn._linear_pointwise
        products["oneDNN, float32"] = lambda: onednn(wide, wide, None, "none", [], "")
    seconds = in_turns([finished(product) for product in products.values()], 7)
    return {
        name: 2 * size**3 / elapsed / 1e9 for name, elapsed in zip(products, seconds, strict=True)
    }


def show(rows: Sequence[Row], reading: Mapping[str, float], peaks: Mapping[str, float]) -> None:
    console = Console(width=100, highlight=False)
    for what, group in groupby(rows, lambda row: row.what):
        table = Table(title=what)
        for column in ("cell", "by"):
            table.add_column(column)
        for column in ("ms", "char/s", "GFLOP/s", "over torch.nn", "quartiles", "over LSTM"):
            table.add_column(column, justify="right")
        for row in group:
            quartiles = "{:.2f} to {:.2f}".format(*row.over_torch_nn_quartiles)
            table.add_row(
                row.cell, row.by, f"{row.ms:.2f}", f"{row.characters_per_second:,.0f}",
                f"{row.gflops:,.0f}", f"{row.over_torch_nn:.2f}",
                quartiles if row.by != "torch.nn" else "", f"{row.over_lstm:.2f}",
            )  # fmt: skip
        console.print(table)
    console.print(
        "Characters/s of an LSTM of 384: "
        + "; ".join(f"{name} {speed:,.0f}" for name, speed in reading.items())
    )
    limits = "; ".join(f"{name} {peak:,.0f}" for name, peak in peaks.items())
    console.print(f"Matrix peak, GFLOP/s: {limits}\n{machine()}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_step",
        description="Measure training steps beside torch.nn's.",
    )
    parser.add_argument("--corpora", type=Path, help=UNREAD)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, windows of 64 only")
    parser.add_argument("--json", type=results_file, help="write the figures to this file")
    options = parser.parse_args()
    torch.manual_seed(1)
    keep_freed_memory()  # as `charrnn train` does
    rounds, lengths = (10, (64,)) if options.quick else (80, (64, 128))
    on_cuda, rows = torch.cuda.is_available(), []
    if not on_cuda:
        rows += [row for length in lengths for row in measure_layers(length, rounds)]
    for size in _ON_CUDA if on_cuda else _ON_CPU:
        rows += measure_updates(size, rounds)
    reading, peaks = measure_scoring(rounds // 4), matrix_peaks()
    show(rows, reading, peaks)
    if options.json:
        results = {
            "matrix_peaks": peaks,
            "chars_per_second": reading,
            "rows": [asdict(row) for row in rows],
        }
        write_results(options.json, results)


if __name__ == "__main__":
    main()
