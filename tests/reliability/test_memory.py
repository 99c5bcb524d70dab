"""R16: memory stays flat, however long the training and however large the text."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ENVIRONMENT, make_prose
from tests.reliability.conftest import Promise

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc"),
]

MB = 1_000_000

#: Runs the command line and notes the resident memory after each row of the log.
PROGRAM = textwrap.dedent(
    """
    import json, sys
    from charrnn import cli
    from charrnn.views import display

    def memory(name):
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

    class Measure(display.Display):
        resident = {}
        def show(self, event):
            if type(event).__name__ == "Logged":
                self.resident[event.row["step"]] = memory("VmRSS:")

    measure = Measure()
    display.open_display = lambda **_: measure
    code = cli.run_command(sys.argv[1:])
    print(json.dumps({"resident": measure.resident, "peak": memory("VmHWM:"), "code": code}))
    """
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for large texts, which are removed at the end."""
    folder = tmp_path_factory.mktemp("texts")
    yield folder
    for file in folder.iterdir():
        file.unlink()


def write_text(path: Path, size: int) -> None:
    """Write about ``size`` bytes of reshuffled lines, one in twenty of them not ASCII."""
    rng = random.Random(1)
    lines = make_prose(200_000).splitlines()
    lines = [line if rng.random() < 0.95 else f"{line} 中文 caf\u00e9 \u2014" for line in lines]
    with path.open("wb") as file:
        while file.tell() < size:
            rng.shuffle(lines)
            block = ("\n".join(lines) + "\n").encode()
            for start in range(8):  # the same lines, rotated
                cut = block.index(b"\n", start * len(block) // 9) + 1
                file.write(block[cut:] + block[:cut])


def measured(text: Path, run: Path, steps: int) -> dict[str, Any]:
    words = [
        "train", text, "--run", run, "--steps", steps, "--hidden", 16, "--batch-size", 32,
        "--bptt", 32, "--min-count", 5, "--validate-every", steps // 4,
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        env=ENVIRONMENT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["code"] == 0
    return result


def test_memory(texts: Path, tmp_path: Path, promise: Promise) -> None:
    small = texts / "50 MB"
    write_text(small, 50 * MB)
    long = measured(small, tmp_path / "long", 5000)
    resident = {int(step): size for step, size in long["resident"].items()}
    # The first validation, at step 1250, allocates its memory.
    early = max(size for step, size in resident.items() if step <= 1500)
    growth = max(resident.values()) - early
    what = f"growth from step 1,500 to 5,000 on 50 MB (of {early / MB:,.0f} MB)"
    promise("R16", what, f"{growth / MB:.1f} MB")
    assert growth < 7 * MB
    short = measured(small, tmp_path / "short", 400)
    small.unlink()

    large = texts / "1.3 GB"
    write_text(large, 1300 * MB)
    wide = measured(large, tmp_path / "wide", 400)
    more = wide["peak"] / short["peak"] - 1
    what = f"peak on 1.3 GB of text against 50 MB ({short['peak'] / MB:,.0f} MB), 400 steps"
    promise("R16", what, f"{100 * more:+.1f} %")
    assert more < 0.1
