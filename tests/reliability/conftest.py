"""The promises, and the table of what was measured that ends the session.

A test takes the ``promise`` fixture and calls it once it knows its figure,
before it asserts on it::

    def test_flips(promise: Promise) -> None:
        ...
        promise("R6", "bit flips refused in one line", f"{refused} of {flips}")
        assert refused == flips
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from charrnn import lock, runfolder
from tests.conftest import PATIENCE

Promise = Callable[[str, str, str], None]

#: What charrnn promises; docs/reliability.md has the same rows.
PROMISES = {
    "R1": "kill -9 at any moment loses no finished checkpoint",
    "R2": "when a save returns, data and name are on disk",
    "R3": "resume equals never stopping, bit for bit",
    "R4": "resuming ten times changes nothing",
    "R5": "validating, sampling and logging do not touch training",
    "R6": "a damaged checkpoint is named as damaged, never used",
    "R7": "a hostile file runs nothing",
    "R8": "a full disk costs nothing already saved",
    "R9": "NaN or inf never reaches weights or files",
    "R10": "SIGINT and SIGTERM save and leave",
    "R11": "two writers cannot share a run",
    "R12": "any text or argument gives a result or one plain line",
    "R13": "unknown characters are explained",
    "R14": "changed text, vocabulary, model or format is refused on resume",
    "R15": "old checkpoints keep loading",
    "R16": "memory stays flat",
    "R17": "pruning never removes the only good one",
    "R18": "saved files obey the umask; equal state gives equal bytes",
}


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Promise:
    """Record (promise, what was tried, figure) for the table at the end."""

    def record(number: str, what: str, figure: str) -> None:
        assert number in PROMISES, f"{number} is no promise"
        # Travels with the test's report, from pytest-xdist's workers too.
        request.node.user_properties.append(("promise", (number, what, figure)))

    return record


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let who comes second wait until the first has signed, however slow the machine."""
    for module in (lock, runfolder):
        monkeypatch.setattr(module, "PATIENCE", PATIENCE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print every promise with the figures of this session."""
    # What was tried with several cases has one line, with the figure of each.
    rows: dict[str, dict[str, list[str]]] = {number: {} for number in PROMISES}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for key, value in getattr(report, "user_properties", ()):
                if key == "promise" and report.when == "call":
                    number, what, figure = value
                    mark = "" if outcome == "passed" else "FAILED "
                    rows[number].setdefault(what, []).append(mark + figure)
    if not any(rows.values()):
        return
    terminalreporter.section("promises")
    for number, figures in rows.items():
        if figures:
            terminalreporter.write_line(f"{number:4} {PROMISES[number]}")
        for what, each in figures.items():
            terminalreporter.write_line(f"     {what}: {', '.join(dict.fromkeys(each))}")
    missing = [number for number, figures in rows.items() if not figures]
    if missing:
        terminalreporter.write_line(f"not measured in this session: {', '.join(missing)}")
