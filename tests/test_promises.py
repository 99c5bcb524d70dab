"""A session of all tests fails if none of them measured some promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.promises import PROMISES

TESTS = """
import pytest

@pytest.mark.parametrize("number", {numbers})
def test_kept(number, request):
    request.node.user_properties.append(("promise", (number, "tried", "1 of 1")))
"""


def session(folder: Path, numbers: list[str], *options: str) -> tuple[int, str]:
    """Run a project whose tests measure these promises; return the exit code and the output."""
    (folder / "checks").mkdir(exist_ok=True)
    (folder / "checks" / "test_all.py").write_text(TESTS.format(numbers=numbers))
    (folder / "pytest.ini").write_text("[pytest]\ntestpaths = checks\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "tests.promises", *options],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "PYTEST_ADDOPTS": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the other plugins take a second to import
        },
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


ALL = "--every-promise"


@pytest.mark.parametrize("processes", ["0", "2"])
def test_each_is_measured_by_all_tests(tmp_path: Path, processes: str) -> None:
    measured = [number for number in PROMISES if number != "R4"]
    code, said = session(tmp_path, measured, ALL, "-n", processes)
    assert "R3   resume equals never stopping, bit for bit\n     tried: 1 of 1\n" in said
    assert "FAILED: all tests have run, and none has measured R4\n" in said
    assert code == pytest.ExitCode.TESTS_FAILED


def test_some_tests_need_not_measure_each(tmp_path: Path) -> None:
    code, said = session(tmp_path, ["R1", "R3"], "-n", "0")
    assert "not measured in this session: R2, R4, " in said
    assert (code, "FAILED" in said) == (pytest.ExitCode.OK, False)


def test_a_failure_is_not_blamed_for_what_was_not_reached(tmp_path: Path) -> None:
    (tmp_path / "checks").mkdir()
    (tmp_path / "checks" / "test_a.py").write_text("def test_fails():\n    assert False\n")
    code, said = session(tmp_path, ["R1"], ALL, "-n", "0", "-x")
    assert (code, "none has measured" in said) == (pytest.ExitCode.TESTS_FAILED, False)


def test_what_cannot_be_measured_here_is_named_and_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from pathlib import Path\nfrom tests import promises\n"
        "promises.NEEDED['R2'] = Path('/no/such')\n"
    )
    measured = [number for number in PROMISES if number != "R2"]
    code, said = session(tmp_path, measured, ALL, "-n", "0")
    assert (code, "FAILED" in said) == (pytest.ExitCode.OK, False)
    assert said.count("not measured in this session: R2\n") == 1
