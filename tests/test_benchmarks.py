"""The benchmarks run and write what they print; their figures are for no test to judge."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_prose

ROOT = Path(__file__).parent.parent
BENCHMARKS = ("streaming", "training_step", "sampling", "time_to_quality")


def numbers(value: Any) -> Iterator[float]:
    """Yield all numbers in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("streaming", ["--big", "{folder}/prose.txt"]),
        ("training_step", []),
        ("sampling", []),
        ("time_to_quality", ["--text", "prose.txt", "--cell", "gru"]),
    ],
)
def test_runs(tmp_path: Path, name: str, options: list[str]) -> None:
    (tmp_path / "prose.txt").write_text(make_prose(20_000))
    command = [sys.executable, "-m", f"benchmarks.{name}", "--corpora", str(tmp_path), "--quick"]
    command += [option.format(folder=tmp_path) for option in options]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "out.json")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["machine"].split(",")[0] in done.stdout.replace("\n", " ")
    measured = list(numbers(written["results"]))
    assert measured
    assert all(math.isfinite(number) and number >= 0 for number in measured)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_asks_before_it_measures_whether_results_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    results = tmp_path / "missing" / "out.json"
    words = ["--corpora", str(tmp_path), "--quick", "--json", str(results)]
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit, match="2"):
        import_module(f"benchmarks.{name}").main()
    assert f"argument --json: {results}: cannot save: " in capsys.readouterr().err
