"""What a training and a comparison do when what they show can no longer be written."""

from __future__ import annotations

import errno
import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, groupby
from pathlib import Path
from typing import Any

import pytest

from charrnn.commands import watching
from charrnn.commands.stopping import StopSignals
from charrnn.errors import NonFiniteError
from charrnn.inference.evaluation import Scores, score
from charrnn.runs.events import Event, Finished, Logged
from charrnn.runs.run import Run
from charrnn.storage.checkpoint import read_description
from charrnn.views.display import Display, _Notes
from tests.conftest import SHORT, Cli, Result, make_prose

OPTIONS = (*SHORT, "--device", "cpu")
#: For the errno of the first refusal: the exit code and the last words.
HOW_IT_ENDS = pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (errno.EPIPE, 128 + signal.SIGPIPE, ""),
        (errno.EIO, 1, "charrnn: cannot write the output: Input/output error\n"),
    ],
)
BOTH = pytest.mark.parametrize("words", [("train",), ("compare", "--cell", "rnn")])


class Refusing(Display):
    """Refuses the calls in ``refuses``, each with its errno."""

    def __init__(self) -> None:
        self.refuses: dict[type | str, int] = {}
        self.is_away = False
        self.done: list[str] = []

    def start(self, run: Run, title: str = "") -> None:
        assert signal.getsignal(signal.SIGTSTP) != signal.SIG_DFL, "a Ctrl-Z waits for away()"
        self.done.append("start")
        self._take("start")

    def show(self, event: Event) -> None:
        self._take(type(event))

    @contextmanager
    def away(self) -> Iterator[None]:
        self._take("away")
        self.is_away = True
        yield
        self.is_away = False

    def close(self) -> None:
        self.done.append("close")
        self._take("close")

    def _take(self, what: type | str) -> None:
        if number := self.refuses.get(what):
            raise OSError(number, os.strerror(number))


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Refusing:
    """Return the display that opens unless the command is quiet."""
    one = Refusing()
    monkeypatch.setattr(watching, "open_display", lambda quiet, **_: Display() if quiet else one)
    # Stdout is no file here.
    monkeypatch.setattr("charrnn.commands.outcome._forget_output", lambda: None)
    return one


@HOW_IT_ENDS
@BOTH
def test_the_first_refusal_ends_it_saved(
    cli: Cli, prose: Path, tmp_path: Path, display: Refusing, words: tuple[str, ...],
    number: int, code: int, says: str,
) -> None:  # fmt: skip
    display.refuses = {Logged: number, Finished: errno.ENOSPC}
    name, *options = words
    done = cli(name, prose, *options, "--run", tmp_path / "run", *OPTIONS)
    go_on = f"go on with: charrnn {name} --run {shlex.quote(str(tmp_path / 'run'))} --resume"
    if name == "train":
        why = "the run is saved" if says else "nobody reads the output any more"
        said = f"{why}; {go_on}\n{says}"
    else:
        said = says or f"{go_on} --device cpu\n"
    assert done.without_notes == Result(code, "", said)
    (last,) = tmp_path.rglob("last.safetensors")
    assert read_description(last).meta["step"] == 10
    assert not (last.parent / "result.json").exists()
    assert display.done == ["start", "close"]


@HOW_IT_ENDS
@BOTH
def test_before_its_first_step_there_is_nothing_to_save(
    cli: Cli, prose: Path, tmp_path: Path, display: Refusing, words: tuple[str, ...],
    number: int, code: int, says: str,
) -> None:  # fmt: skip
    display.refuses = {"start": number}
    name, *options = words
    done = cli(name, prose, *options, "--run", tmp_path / "run", *OPTIONS)
    assert (done.code, done.out) == (code, "")
    if name == "train":
        assert done.err == says
    else:
        assert done.err.endswith(says or "--resume --device cpu\n")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert display.done == ["start", "close"]


class TestRun:
    @pytest.mark.parametrize(("number", "code"), [(errno.EPIPE, 0), (errno.EIO, 1)])
    def test_at_its_end_it_is_whole(
        self, cli: Cli, prose: Path, tmp_path: Path, display: Refusing, number: int, code: int
    ) -> None:
        display.refuses = {Finished: number}
        run = tmp_path / "run"
        done = cli("train", prose, "--run", run, *OPTIONS)
        assert (done.code, done.out) == (code, "")
        assert read_description(run / "last.safetensors").meta["step"] == 20

    def test_quiet_says_what_goes_on_with_it(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        show = _Notes.show

        def signalled(self: _Notes, event: Event) -> None:
            if isinstance(event, Logged):
                signal.raise_signal(signal.SIGINT)
            show(self, event)

        monkeypatch.setattr(_Notes, "show", signalled)
        run = tmp_path / "run"
        done = cli("train", prose, "--run", run, "--quiet", *OPTIONS)
        go_on = f"go on with: charrnn train --run {shlex.quote(str(run))} --resume\n"
        assert done.without_notes == Result(130, "", go_on)


class TestComparison:
    def test_nothing_is_said_beside_an_open_display(
        self, cli: Cli, prose: Path, tmp_path: Path, display: Refusing,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """The lines would land where a live display draws."""
        parts = count(1)

        def scored(*of: Any, **how: Any) -> Scores:
            if next(parts) > 2:  # the first run scores two parts
                raise NonFiniteError("it has no number")
            return score(*of, **how)

        monkeypatch.setattr("charrnn.runs.comparing.score", scored)
        monkeypatch.setattr(watching, "say", lambda line: display.done.append(line.split(":")[0]))
        words = ("--cell", "rnn", "--cell", "gru", "--run", tmp_path / "all")
        assert cli("compare", prose, *words, *OPTIONS).code == 1
        note, *done = (what for what, _ in groupby(display.done))
        assert note == "note"
        assert done == ["start", "close", "start", "close", "gru, seed 1, is left out", "close"]


def test_of_each_run_of_a_comparison_what_is_new_is_told(
    cli: Cli, prose: Path, tmp_path: Path
) -> None:
    words = ("--cell", "rnn", "--cell", "gru", "--seeds", 2, "--run", tmp_path / "all", *OPTIONS)
    lines = cli("compare", prose, *words).err.splitlines()
    labels = [line.split()[0] for line in lines]
    of_each = ("update", "run", "done")
    assert {labels.count(label) for label in of_each} == {4}
    assert {labels.count(label) for label in ("text", "data", "device", "to")} == {1}
    assert labels.count("model") == 4, "it differs from that of the run before"
    titles = [line for line in lines if line.startswith("--- ")]
    assert titles == [f"--- run {number} of 4" for number in (1, 2, 3, 4)]


def test_a_quiet_comparison_says_the_notes_of_its_runs_once(cli: Cli, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(make_prose(2999).replace("\n", "\r\n"), newline="")
    words = ("--cell", "rnn", "--cell", "gru", "--run", tmp_path / "all", "--quiet", *OPTIONS)
    done = cli("compare", text, *words)
    assert done.code == 0
    assert done.err.count("note: ") == len(done.err.splitlines())
    assert done.err.count("line ends are CRLF") == 1


@pytest.mark.parametrize("hung_up", [False, True])
@BOTH
def test_a_signal_that_ends_the_reader_too_is_what_counts(
    cli: Cli, prose: Path, tmp_path: Path, display: Refusing, monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...], hung_up: bool,
) -> None:  # fmt: skip
    """As Ctrl-C does if the output goes to tee, and as closing the terminal does."""
    show = display.show

    def signalled(event: Event) -> None:
        if isinstance(event, Logged):
            signal.raise_signal(signal.SIGINT)
        show(event)

    display.refuses = {Logged: errno.EPIPE, **({"close": errno.EIO} if hung_up else {})}
    monkeypatch.setattr(display, "show", signalled)
    name, *options = words
    assert cli(name, prose, *options, "--run", tmp_path / "run", *OPTIONS).code == 130


class TestPause:
    def test_it_waits_until_the_terminal_is_free(
        self, display: Refusing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop, was_away = StopSignals(), []
        monkeypatch.setattr(stop, "pause", lambda: was_away.append(display.is_away))
        reader = watching._Reader(stop, display)
        assert reader.reason_to_stop() is None
        assert was_away == []
        stop.pause_is_due = True
        assert reader.reason_to_stop() is None
        assert was_away == [True]
        display.refuses = {"away": errno.EIO}
        assert reader.reason_to_stop() == "a closed output"
        stop.received = signal.SIGTERM
        assert watching._Reader(stop, Display()).reason_to_stop() == "SIGTERM"
