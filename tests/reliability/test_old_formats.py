"""R15: old checkpoints keep loading; scripts/golden-checkpoint made each format's files once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from charrnn.storage.checkpoint import FORMAT, load
from tests.conftest import GOLDEN_DATA, Result, run_cli
from tests.reliability.conftest import Promise
from tests.reliability.runs import rows

GOLDEN: dict[str, dict[str, Any]] = {
    name: {**golden, "charrnn": made["charrnn"], "format": made["format"]}
    for file in sorted(GOLDEN_DATA.glob("format-*.json"))
    for made in [json.loads(file.read_text())]
    for name, golden in made["checkpoints"].items()
}


def test_every_format_has_its_checkpoints() -> None:
    formats = [golden["format"] for golden in GOLDEN.values()]
    assert sorted(formats) == [n for n in range(1, FORMAT + 1) for _ in range(3)]


@pytest.mark.parametrize("name", GOLDEN)
def test_an_old_checkpoint(name: str, tmp_path: Path, promise: Promise) -> None:
    golden = GOLDEN[name]
    file = GOLDEN_DATA / name
    assert load(file).versions["charrnn"] == golden["charrnn"]

    length = len(golden["sample"])
    options = ["--prompt", golden["prompt"], "--length", length, "--temperature", 0]
    sampled = run_cli("sample", file, *options)
    assert (sampled.code, sampled.out) == (0, golden["sample"])

    scored = run_cli("evaluate", file, "--text", GOLDEN_DATA / "tale.txt", "--json")
    (row,) = json.loads(scored.out)
    assert row["nats_per_char"] == pytest.approx(golden["nats_per_char"], abs=1e-4)

    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(file, run / "last.safetensors")
    text = GOLDEN_DATA / "tale.txt"
    more = ["--steps", golden["step"] + 20, "--lr", golden["resumed"]["lr"], "--quiet"]
    resumed = run_cli("train", text, "--run", run, "--resume", *more)
    assert resumed.without_notes == Result(0, f"{run}\n", "")
    updates = [row for row in rows(run) if "train_nats_per_char" in row]
    assert [row["step"] - golden["step"] for row in updates] == [10, 20]
    # Without the hidden state the first is off by > 0.012; without moments the second by 0.010.
    losses = [row["train_nats_per_char"] for row in updates]
    assert losses == pytest.approx(golden["resumed"]["train_nats_per_char"], abs=1e-3)
    promise("R15", f"{name}: loaded, sampled to its golden string, scored, resumed", "yes")
