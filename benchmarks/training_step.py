"""How long a training step takes, beside torch.nn's.

    python -m benchmarks.training_step [--quick] [--json FILE]

On a CPU: forward and backward of one layer, with the gradients of weights, inputs and
nothing else, at 16 lanes. On a CUDA device also whole updates of two layers (forward,
loss, backward, clipping, optimiser), ours captured as a graph, torch.nn's as a tutorial
would write them. All candidates of a size take turns, so that a busy machine slows all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import in_turns, machine, write_json
from charrnn.cells import CELLS
from charrnn.config import CELL_NAMES, CellName, ModelConfig, TrainConfig
from charrnn.model import CharModel
from charrnn.optimiser import MuonAdamW
from charrnn.stream import Chunk
from charrnn.update import EAGER_UPDATES, Update

_TORCH_NN: dict[CellName, Callable[..., nn.RNNBase]] = {
    "rnn": nn.RNN,
    "lstm": nn.LSTM,
    "gru": nn.GRU,
}
_LANES = 16
_HIDDEN = (128, 256, 512)

#: Of the whole updates on a GPU.
_GPU_LANES, _GPU_STEPS, _GPU_LAYERS, _GPU_HIDDEN, _GPU_VOCABULARY = 64, 128, 2, 512, 66

Step = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One candidate at one size."""

    what: str
    cell: str
    size: str
    who: str
    ms: float
    characters_per_second: float
    gflops: float
    """Of the matrix products: 6 operations a weight and character, forward and backward."""
    ratio: float
    """Speed over that of the row's reference, torch.nn in the same precision."""
    over_lstm: float
    """Speed over that of the LSTM of the same width by the same hand."""


def matrix_peaks() -> dict[str, float]:
    """Return the machine's speed at large square products, in GFLOP/s."""
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 1536)
    wide = torch.randn(size, size, device=device)
    narrow = wide.bfloat16()
    products: dict[str, Step] = {
        "torch.mm, float32": lambda: torch.mm(wide, wide),
        "torch.mm, bfloat16": lambda: torch.mm(narrow, narrow),
    }
    if device == "cpu":
        onednn = torch.ops.mkldnn._linear_pointwise
        products["oneDNN, float32"] = lambda: onednn(wide, wide, None, "none", [], "")
    seconds = in_turns([finished(product) for product in products.values()], 7)
    return {
        name: 2 * size**3 / elapsed / 1e9 for name, elapsed in zip(products, seconds, strict=True)
    }


def finished(step: Step) -> Step:
    """Return the step with a wait for the device at its end."""
    if not torch.cuda.is_available():
        return step

    def run() -> None:
        step()
        torch.cuda.synchronize()

    return run


def layer_steps(name: CellName, hidden: int, steps: int, lanes: int) -> list[Step]:
    """Return forward and backward of one layer: ours, torch.nn's."""
    ours = CELLS[name](hidden, hidden)
    theirs = _TORCH_NN[name](hidden, hidden)
    x_TBH = torch.randn(steps, lanes, hidden, requires_grad=True)
    d_out_TBH = torch.randn(steps, lanes, hidden)

    def step(run: Callable[[], Tensor], module: nn.Module) -> None:
        torch.autograd.grad(run(), [x_TBH, *module.parameters()], d_out_TBH)

    state = ours.initial_state(lanes)
    return [
        lambda: step(lambda: ours(x_TBH, state)[0], ours),
        lambda: step(lambda: theirs(x_TBH)[0], theirs),
    ]


def measure_layers(steps: int, rounds: int) -> list[Row]:
    rows = []
    for hidden in _HIDDEN:
        candidates = [
            finished(step)
            for name in CELL_NAMES
            for step in layer_steps(name, hidden, steps, _LANES)
        ]
        seconds = in_turns(candidates, rounds)
        lstm = 2 * CELL_NAMES.index("lstm")
        for index, name in enumerate(CELL_NAMES):
            multiply_adds = CELLS[name](hidden, hidden).multiply_adds()
            for column, who in enumerate(("charrnn", "torch.nn")):
                elapsed = seconds[2 * index + column]
                speed = steps * _LANES / elapsed
                rows.append(
                    Row(
                        what="layer, CPU",
                        cell=name,
                        size=f"1x{hidden}, {_LANES} x {steps}",
                        who=who,
                        ms=1e3 * elapsed,
                        characters_per_second=speed,
                        gflops=6 * multiply_adds * speed / 1e9,
                        ratio=seconds[2 * index + 1] / elapsed,
                        over_lstm=seconds[lstm + column] / elapsed,
                    )
                )
    return rows


class Reference(nn.Module):
    """A character model as tutorials write it."""

    def __init__(self, name: CellName) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_GPU_VOCABULARY, _GPU_VOCABULARY)
        self.layers = _TORCH_NN[name](_GPU_VOCABULARY, _GPU_HIDDEN, _GPU_LAYERS)
        self.head = nn.Linear(_GPU_HIDDEN, _GPU_VOCABULARY)

    def forward(self, x_TB: Tensor) -> Tensor:
        """Return the logits after each character, from a zero state."""
        logits_TBV: Tensor = self.head(self.layers(self.embedding(x_TB))[0])
        return logits_TBV


def reference_update(name: CellName, x_TB: Tensor, y_TB: Tensor, dtype: torch.dtype) -> Step:
    """Return an eager update of torch.nn's layers, bfloat16 by autocast."""
    model = Reference(name).cuda()
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)

    def update() -> None:
        optimiser.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(model(x_TB).flatten(0, 1), y_TB.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return update


def our_update(name: CellName, x_TB: Tensor, y_TB: Tensor, dtype: torch.dtype) -> Step:
    """Return an update as ``charrnn train`` makes them, past its eager beginning."""
    config = ModelConfig(
        cell=name, vocabulary=_GPU_VOCABULARY, layers=_GPU_LAYERS, hidden=_GPU_HIDDEN,
        embedding=_GPU_VOCABULARY,
    )  # fmt: skip
    model = CharModel(config).cuda()
    model.compute_dtype = dtype
    training = TrainConfig(
        batch_size=_GPU_LANES, bptt=_GPU_STEPS, lr=0.01, lr_adam=0.001, warmup_steps=0, steps=1,
    )  # fmt: skip
    update = Update(model, MuonAdamW(model), training)
    chunk = Chunk(x_TB, y_TB, False, 0, 0, x_TB.numel())
    for _ in range(EAGER_UPDATES + 1):
        update(chunk)
    if update.capture_failure:
        raise RuntimeError(f"no CUDA graph for {name}: {update.capture_failure}")
    return lambda: update(chunk)


def measure_updates(rounds: int) -> list[Row]:
    """Compare whole updates of two layers on a GPU."""
    x_TB, y_TB = torch.randint(_GPU_VOCABULARY, (2, _GPU_STEPS, _GPU_LANES), device="cuda")
    precisions = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    makers = {"charrnn": our_update, "torch.nn": reference_update}
    labels = [(name, p, who) for name in CELL_NAMES for p in precisions for who in makers]
    candidates = [finished(makers[who](name, x_TB, y_TB, precisions[p])) for name, p, who in labels]
    seconds = dict(zip(labels, in_turns(candidates, rounds), strict=True))
    rows = []
    for (name, precision, who), elapsed in seconds.items():
        config = ModelConfig(
            cell=name, vocabulary=_GPU_VOCABULARY, layers=_GPU_LAYERS, hidden=_GPU_HIDDEN,
            embedding=_GPU_VOCABULARY,
        )  # fmt: skip
        speed = x_TB.numel() / elapsed
        rows.append(
            Row(
                what=f"update, GPU, {precision}",
                cell=name,
                size=f"{_GPU_LAYERS}x{_GPU_HIDDEN}, {_GPU_LANES} x {_GPU_STEPS}",
                who=who,
                ms=1e3 * elapsed,
                characters_per_second=speed,
                gflops=6 * CharModel(config).multiply_adds() * speed / 1e9,
                ratio=seconds[name, precision, "torch.nn"] / elapsed,
                over_lstm=seconds["lstm", precision, who] / elapsed,
            )
        )
    return rows


def show(rows: Sequence[Row], peaks: dict[str, float], console: Console) -> None:
    limits = "; ".join(f"{name} {peak:,.0f} GFLOP/s" for name, peak in peaks.items())
    table = Table(title="A training step", caption=f"{machine()}\nmatrix peaks: {limits}")
    for column in ("what", "cell", "layers, lanes x characters", "by"):
        table.add_column(column)
    for column in ("ms", "char/s", "GFLOP/s", "/ torch.nn", "/ LSTM"):
        table.add_column(column, justify="right")
    size = ""
    for row in rows:
        if row.size != size:
            table.add_section()
        size = row.size
        table.add_row(
            row.what,
            row.cell,
            row.size,
            row.who,
            f"{row.ms:.2f}",
            f"{row.characters_per_second:,.0f}",
            f"{row.gflops:,.0f}",
            f"{row.ratio:.2f}",
            f"{row.over_lstm:.2f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_step",
        description="Measure training steps beside torch.nn's.",
    )
    parser.add_argument("--corpora", type=Path, help="not needed: random characters do")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, windows of 64 only")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.manual_seed(1)
    rounds = 15 if options.quick else 60
    rows = []
    for steps in (64,) if options.quick else (64, 128):
        rows += measure_layers(steps, rounds)
    if torch.cuda.is_available():
        rows += measure_updates(rounds)
    peaks = matrix_peaks()
    show(rows, peaks, Console())
    if options.json:
        write_json(options.json, {"peaks": peaks, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
