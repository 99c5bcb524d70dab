"""What tests of the promises share; ``tests/promises.py`` has the table of what they measured.

A test takes the ``promise`` fixture and calls it once it knows its figure,
before it asserts on it::

    def test_flips(promise: Promise) -> None:
        ...
        promise("R6", "bit flips refused in one line", f"{refused} of {flips}")
        assert refused == flips

One that counts nothing calls it at its end, when all that it asserts has held.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from charrnn import lock, runfolder
from tests.conftest import PATIENCE
from tests.promises import PROMISES

Promise = Callable[[str, str, str], None]


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
