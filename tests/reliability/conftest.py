"""Fixtures for the tests of promises; ``tests/promises.py`` prints the table of their figures.

A test takes the ``promise`` fixture and calls it as soon as it knows its figure,
before it asserts on it::

    def test_flips(promise: Promise) -> None:
        ...
        promise("R6", "bit flips refused in one line", f"{refused} of {flips}")
        assert refused == flips

A test that counts nothing calls it at its end, after all of its assertions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from charrnn.runs import training
from charrnn.storage import lock, runfolder
from tests.conftest import PATIENCE, make_prose
from tests.promises import PROMISES

Promise = Callable[[str, str, str], None]


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Promise:
    """Return a function that records (promise, what was tried, figure) for the final table."""

    def record(number: str, what: str, figure: str) -> None:
        assert number in PROMISES, f"{number} is no promise"
        # Sent with the test's report, also by pytest-xdist's workers.
        request.node.user_properties.append(("promise", (number, what, figure)))

    return record


@pytest.fixture(scope="session")
def tale(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 400 characters: 360 to train on, 17 windows a pass, 40 to validate on."""
    path = tmp_path_factory.mktemp("texts") / "tale.txt"
    path.write_text(make_prose(400))
    return path


@pytest.fixture
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a training show samples of 20 characters, still enough to be stopped in one."""
    monkeypatch.setattr(training, "SHOWN_LENGTH", 20)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the second process wait until the first has signed the lock, however long it takes."""
    for module in (lock, runfolder):
        monkeypatch.setattr(module, "PATIENCE", PATIENCE)
