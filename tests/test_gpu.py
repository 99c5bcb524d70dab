"""Whole commands on a GPU; skipped if there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from charrnn.config import CellName
from charrnn.layout import LAST
from charrnn.recipe import RULES
from charrnn.storage.checkpoint import load
from tests.conftest import Cli, Result, make_prose

pytestmark = pytest.mark.gpu
#: With these a pass of ``prose`` is 21 windows and a shorter one.
SMALL = ("--hidden", 64, "--layers", 2, "--batch-size", 8, "--bptt", 32, "--validate-every", 30)
#: Characters in a text long enough for the default width on a GPU.
LONG = 700_000


def trained(result: Result) -> Result:
    """Return a training's result after checking that it finished and its updates were captured."""
    assert result.code == 0, result.err
    assert "uncaptured" not in [row["event"] for row in result.rows]
    assert result.rows[-1]["event"] == "finished"
    return result


def test_gpu_trains_by_the_defaults(cli: Cli, tmp_path: Path, cell: CellName) -> None:
    """A layer of the default width is computed by other kernels than a small one."""
    text = tmp_path / "long.txt"
    text.write_text(make_prose(LONG), encoding="utf-8", newline="")
    words = ("train", text, "--run", tmp_path / "run", "--device", "cuda", "--cell", cell)
    result = trained(cli(*words, "--steps", 30, "--json"))
    losses = [row["train_nats_per_char"] for row in result.rows if row["event"] == "logged"]
    assert losses[-1] < losses[0] - 0.3
    started = result.rows[0]
    assert started["device"] == "cuda"
    if started["training"]["precision"] == "bf16":
        assert started["model"]["hidden"] == RULES[cell].gpu_units[0]


@pytest.mark.parametrize("options", [(), ("--hidden", 113, "--loss-last", 8)])
def test_gpu_learns_what_a_cpu_does(
    cli: Cli, prose: Path, tmp_path: Path, cell: CellName, options: tuple[object, ...]
) -> None:
    """cuDNN has failed at parts of a GRU's outputs where its width is odd (torch issue 54307)."""
    losses = {}
    for device in ("cpu", "cuda"):
        result = cli(
            "train", prose, "--run", tmp_path / device, "--device", device, "--cell", cell,
            "--steps", 60, "--dropout", 0, "--weight-drop", 0, "--precision", "fp32", *SMALL,
            *options, "--json",
        )  # fmt: skip
        logged = [row for row in trained(result).rows if row["event"] == "logged"]
        losses[device] = [row["train_nats_per_char"] for row in logged]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.02)


def test_gpu_a_run_goes_on_with_the_next_random_numbers(
    cli: Cli, prose: Path, tmp_path: Path, cell: CellName
) -> None:
    """In the default precision; every replay of the graph draws new numbers."""

    def train(run: str, steps: int, *options: object) -> torch.Tensor:
        words = ("train", "--run", tmp_path / run, "--device", "cuda", "--steps", steps, "--json")
        trained(cli(*words, *options))
        return load(tmp_path / run / LAST).tensors["generator.cuda"]

    new = (prose, "--cell", cell, "--dropout", 0.3, "--weight-drop", 0.2, "--dropout-masks", 3)
    whole = train("whole", 47, *new, *SMALL)
    assert not torch.equal(train("parts", 24, *new, *SMALL), whole)
    assert torch.equal(train("parts", 47, "--resume"), whole)


def test_gpu_plans_minutes(cli: Cli, prose: Path, tmp_path: Path) -> None:
    words = ("train", prose, "--run", tmp_path / "run", "--device", "cuda", "--minutes", 0.05)
    result = trained(cli(*words, *SMALL, "--json"))
    assert "planned" in [row["event"] for row in result.rows]


def test_gpu_every_command_ends_well(cli: Cli, prose: Path, tmp_path: Path, cell: CellName) -> None:
    """A warning would be an error here."""
    run = tmp_path / "run"
    new = ("train", prose, "--run", run, "--device", "cuda", "--cell", cell, "--steps", 60)
    trained(cli(*new, "--loss-last", 16, "--optimiser", "adamw", *SMALL, "--json"))
    commands: tuple[tuple[object, ...], ...] = (
        ("evaluate", run, "--part", "valid", "--exact", "--dynamic", "--by-position", 20),
        ("inspect", run, "--part", "valid", "--bptt", 8, "--unit", 1.17),
        ("sample", run, "--count", 3, "--length", 50),
    )
    for words in commands:
        result = cli(*words, "--device", "cuda")
        assert result.code == 0, result.err
    scores = [
        json.loads(cli("evaluate", run, "--part", "valid", "--device", device, "--json").out)[0]
        for device in ("cpu", "cuda")
    ]
    assert [row["device"] for row in scores] == ["cpu", "cuda"]
    scored = cli("evaluate", run, "--part", "valid")
    assert scored.err.endswith(f"scoring on cuda ({torch.cuda.get_device_name()})\n"), "auto"
    assert scores[1]["nats_per_char"] == pytest.approx(scores[0]["nats_per_char"], rel=1e-4)
