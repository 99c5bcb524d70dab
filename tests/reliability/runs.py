"""Tiny training runs, stopped and resumed in this process, and how they are compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from charrnn.config import TextChoices
from charrnn.recipe import Choices
from charrnn.runs.events import Event, Finished
from charrnn.runs.resuming import resume
from charrnn.runs.run import Run
from charrnn.runs.starting import start
from charrnn.runs.training import train
from charrnn.storage.checkpoint import load
from charrnn.storage.runfolder import RunFolder
from tests.conftest import log_of

CPU = torch.device("cpu")

#: Fields of the log and of a checkpoint's progress that depend on time.
CLOCKS = {"seconds", "validation_seconds", "vain_seconds", "chars_per_second"}

#: In float32, the arithmetic that every machine has.
TRAINING: dict[str, Any] = {
    "batch_size": 3, "bptt": 7, "validate_every": 6, "lr": 0.02, "precision": "fp32"
}  # fmt: skip
STEPS = 44

#: Returns whether to stop; called before every step, in validations and in samples.
Stop = Callable[[Run], bool]


def begin(
    folder: RunFolder,
    text: Path,
    *,
    cell: Any = "lstm",
    budget: dict[str, Any] | None = None,
    valid: Path | None = None,
    valid_share: float = 0.1,
    model: dict[str, Any] | None = None,
    **training: Any,
) -> Run:
    """Start a tiny run: 17 windows a pass, a validation every 6 steps, 44 steps."""
    choices = Choices(
        cell=cell,
        budget=budget or {"steps": STEPS},
        model={"hidden": 8, "embedding": 5, "layers": 2, **(model or {})},
        training={**TRAINING, **training},
    )
    beside = (str(valid),) if valid else ()
    texts = TextChoices(texts=(str(text),), valid=beside, valid_share=valid_share)
    return start(choices, texts, folder=folder, device=CPU)


def drive(run: Run, stop: Stop = lambda _run: False) -> list[Event]:
    """Train until the run is over or ``stop`` says so; return the events."""
    events = list(train(run, lambda: "the test" if stop(run) else None))
    assert isinstance(events[-1], Finished)
    return events


def straight(path: Path, text: Path, **choices: Any) -> Path:
    """Train a run from start to end without stopping."""
    with RunFolder.create(path) as folder:
        drive(begin(folder, text, **choices))
    return path


def stopped(path: Path, text: Path, stop: Stop, **choices: Any) -> int:
    """Train a new run until ``stop``; return the step at which it stopped."""
    with RunFolder.create(path) as folder:
        run = begin(folder, text, **choices)
        (*_, last) = drive(run, stop)
    assert last == Finished("the test", complete=False), "it was never stopped"
    return run.progress.step


def resumed(path: Path, stop: Stop = lambda _run: False, **changes: Any) -> Run:
    """Resume a stopped run as another process would."""
    torch.manual_seed(999)  # another process has another generator state
    torch.rand(7)
    with RunFolder.open_existing(path) as folder:
        run = resume(folder, device=None, changes=changes)
        drive(run, stop)
    return run


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the log's rows without the fields that depend on time."""
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in log_of(path)]


def whole_state(path: Path) -> dict[str, Any]:
    """Return everything that must agree in two equal runs: every tensor, every number, the log."""
    state: dict[str, Any] = {"log": rows(path)}
    for name in ("last", "best"):
        checkpoint = load(path / f"{name}.safetensors")
        for tensor_name, tensor in checkpoint.tensors.items():
            state[f"{name} {tensor_name}"] = tensor.view(-1).view(torch.uint8).numpy().tobytes()
        meta = json.loads(json.dumps(checkpoint.meta))
        for clock in CLOCKS & meta["progress"].keys():
            del meta["progress"][clock]
        state[f"{name} meta"] = meta
    return state


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the last checkpoint's weights, moments, hidden state and random generator state."""
    return dict(load(path / "last.safetensors").tensors)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether two sets of tensors are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())
