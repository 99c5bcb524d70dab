"""The promises, and the table of what a session measured, printed at its end.

This is a plugin because pytest-xdist's first process collects no tests, and so loads only the
outermost conftest.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

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
    "R10": "SIGINT and SIGTERM save and exit",
    "R11": "two writers cannot share a run",
    "R12": "any text or argument gives a result or one plain line",
    "R13": "unknown characters are explained",
    "R14": "changed text, vocabulary, model or format is refused on resume",
    "R15": "old checkpoints keep loading",
    "R16": "memory stays flat",
    "R17": "pruning never removes the only good one",
    "R18": "saved files obey the umask; equal state gives equal bytes",
}
#: A file that all tests of a promise need; without it they are skipped.
NEEDED = {"R2": Path("/proc/self/fd"), "R16": Path("/proc/self/status")}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that tells a session that it runs all tests."""
    parser.addoption(
        "--every-promise", action="store_true", help="fail if a promise is measured by no test"
    )


def figures_of(reporter: pytest.TerminalReporter) -> dict[str, dict[str, list[str]]]:
    """Return promise -> what was tried -> the figures, one for each case."""
    rows: dict[str, dict[str, list[str]]] = {number: {} for number in PROMISES}
    for outcome in ("passed", "failed"):
        for report in reporter.getreports(outcome):
            for key, value in getattr(report, "user_properties", ()):
                if key == "promise" and report.when == "call":
                    number, what, figure = value
                    mark = "" if outcome == "passed" else "FAILED "
                    rows[number].setdefault(what, []).append(mark + figure)
    return rows


def owed(reporter: pytest.TerminalReporter) -> list[str]:
    """Return the promises that ``--every-promise`` asks for but no test measured."""
    if not reporter.config.getoption("every_promise", default=False):
        return []
    return [
        number
        for number, figures in figures_of(reporter).items()
        if not figures and (number not in NEEDED or NEEDED[number].exists())
    ]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a session that owes a measurement: its test is gone, or not collected."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    # pytest-xdist's workers have no reporter.
    if reporter is not None and exitstatus == pytest.ExitCode.OK and owed(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Print the promises with the figures of this session."""
    rows = figures_of(terminalreporter)
    # A session that failed or was stopped does not also list what it did not reach.
    not_kept = owed(terminalreporter) if exitstatus == pytest.ExitCode.OK else []
    if not any(rows.values()) and not not_kept:
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
    if not_kept:
        terminalreporter.write_line(
            f"FAILED: all tests have run, and none has measured {', '.join(not_kept)}", red=True
        )
