"""Runs commands as a reader would type them, and keeps their answers.

bash runs every command exactly as the page prints it, in a folder laid out like the project's:
``corpora/`` holds the generator of the recall text and the reader's own text, if any; trained
models go to ``checkpoints/``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from charrnn.compute.machine import machine
from charrnn.errors import CorpusError
from charrnn.text.files import embedded_corpus
from charrnn.text.scanning import scan

ROOT = Path(__file__).parent.parent


class LessonError(Exception):
    """A command of the lesson failed, or the given text cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The numbers that decide how long the lesson takes.

    Trainings are measured in steps, so that models learn as much on a slow machine as on a
    fast one; only the comparison at equal time is in minutes.
    """

    hidden: int = 192
    """Units of the LSTM on the text; the other cells get as many parameters."""
    steps: int = 800
    """1.6 million characters: enough to learn words and indentation, too few for meaning."""
    minutes: float = 0.5
    """Enough to read clearly more than in ``steps``, even on a slow machine."""
    width_steps: int = 120
    """Few, because measuring speed at equal width needs no learning."""
    cell_seeds: int = 3
    """Runs of each cell in a comparison, to measure how much chance changes a loss. The cells
    take turns, because a machine's speed drifts."""
    least: int = 50_000
    """Fewest characters a text may have, so that its held-out tenth is long enough to inspect."""
    held_out: int = 200_000
    """Characters to validate on; as many after them, the test part, compare the cells."""
    inspected: int = 20_000
    """The last characters of the test part, which ``inspect`` reads."""
    lengths: tuple[int, ...] = (10, 1_000, 100_000)
    """Lengths of the texts scored for claim 1, in characters."""
    windows: tuple[int, ...] = (1, 4, 16, 32, 64, 108, 256, 512)
    """Windows of the truncated gradients of claim 3."""
    radii: tuple[float, ...] = (0.5, 0.9, 1.0, 1.1, 1.5)
    """Spectral radii of the recurrent matrix in claim 5."""
    distance: int = 16
    """K of the recall text. At 12 every window learns it in these steps, at 24 hardly any."""
    recall_hidden: int = 32
    recall_steps: int = 3000
    """With half as many, the LSTM is still learning at some windows of 16 and more."""
    recall_lanes: int = 960
    """Lanes times window, so that equal steps read equal characters, whatever the window."""
    recall_windows: tuple[int, ...] = (4, 8, 12, 24, 48)
    """Below and above K. With the state reset, a window sees a whole line only if it happens to
    begin before that line, so the longest window is much longer than K."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of the trainings in claims 4 and 7."""
    clip_hidden: int = 128
    clip_steps: int = 300
    clip_rates: tuple[float, ...] = (2.0, 5.0, 10.0)
    """At the lowest rate, training goes well without clipping."""
    plain_rates: tuple[float, ...] = (0.5, 2.0, 8.0, 32.0)
    """Rates of plain gradient descent in claim 7, for both cells: from ``scaled_rate`` to above
    the rate at which the LSTM learns most."""
    scaled_rate: float = 0.5
    """Rate of the scaled gradients in claim 7, at which both cells learn."""


FULL = Size()
QUICK = Size(
    hidden=16, steps=30, minutes=0.02, width_steps=10, cell_seeds=2, least=10_000, held_out=4_000,
    inspected=2_000, lengths=(10, 1_000), windows=(4, 108), recall_hidden=8, recall_steps=20,
    recall_windows=(8, 48), seeds=(1,), clip_hidden=16, clip_steps=20, clip_rates=(5.0,),
    plain_rates=(8.0,),
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    command: str
    code: int
    out: str
    error: str
    seconds: float

    @property
    def not_finite(self) -> int:
        """The number of trainings that stopped because a number was not finite."""
        return self.error.count(" is not finite ")

    def ended_early(self) -> LessonError:
        """Return the error to raise if a training ended early for any other reason."""
        return LessonError(f"{self.command}\na training ended early: {self.error.strip()}")


@dataclass
class Lab:
    """A folder to run the lesson's commands in.

    Args:
        folder: holds a subfolder for each combination of text, machine, program and size; answers
            already kept there are used again.
        text: the reader's own; None: the embedded corpus.
        size: how much is done.
        say: called with each command before it runs.

    Raises:
        LessonError: the text cannot be read as utf-8, or is too short.
    """

    folder: Path
    """After construction, the subfolder of this lesson."""
    text: Path | None
    size: Size
    say: Callable[[str], None]
    answers: dict[str, Answer] = field(default_factory=dict)
    """By command; several claims use the same ones."""

    def __post_init__(self) -> None:
        read = [str(self.text)] if self.text is not None else embedded_corpus()
        try:
            corpus = scan(read)
        except CorpusError as error:
            raise LessonError(f"{error} (here: only utf-8 is taken, so convert it first)") from None
        self.characters: int = corpus.characters
        """Length of the whole text."""
        if self.characters < self.size.least:
            raise LessonError(
                f"the text has {self.characters:,} characters: give one of at least "
                f"{self.size.least:,}"
            )
        name = self.text.name if self.text is not None else ""
        about = (name, corpus.fingerprint, machine(), _code(), self.size)
        self.folder /= hashlib.sha256(repr(about).encode()).hexdigest()[:16]
        for inside in ("checkpoints", "answers", "corpora"):
            (self.folder / inside).mkdir(parents=True, exist_ok=True)
        corpora = self.folder / "corpora"
        # Without its mode: a read-only copy could not be overwritten the next time.
        shutil.copyfile(ROOT / "corpora" / "recall.py", corpora / "recall.py")
        if self.text is not None:
            shutil.copyfile(self.text, corpora / self.name)

    @property
    def name(self) -> str:
        """The file name of the reader's text in commands, without characters special to a shell.

        It never equals the name of a file that the lesson itself writes.
        """
        assert self.text is not None
        return "own-" + re.sub(r"[^\w.-]+", "-", self.text.name)

    @property
    def words(self) -> str:
        """The argument that names the text to train on; empty for the embedded corpus."""
        return f" corpora/{self.name}" if self.text is not None else ""

    @property
    def valid_share(self) -> str:
        """The ``--valid-share`` that holds out about ``size.held_out`` characters; at most 0.1.

        In comparisons it is the ``--test-share``, too.
        """
        return f"{min(0.1, self.size.held_out / self.characters):.3g}"

    @property
    def held_out(self) -> int:
        """The least number of characters held out to validate on."""
        return int(float(self.valid_share) * self.characters)

    @property
    def seconds(self) -> float:
        """The wall-clock time of all commands."""
        return sum(answer.seconds for answer in self.answers.values())

    def do(self, command: str, check: Callable[[Answer], object] = lambda _: None) -> Answer:
        """Run a command, or return its kept answer.

        A command that was interrupted starts afresh; the runs that it left are removed.

        Args:
            command: as bash reads it.
            check: raises a LessonError if the answer is unusable; it is then not kept.

        Raises:
            LessonError: the command failed, or its answer is unusable.
        """
        kept = self.folder / "answers" / f"{hashlib.sha256(command.encode()).hexdigest()[:16]}.json"
        if kept.exists():
            answer = Answer(**json.loads(kept.read_text(encoding="utf-8")))
        else:
            self._remove_runs(command)
            self.say(command)
            answer = self._run(command)
            if answer.code:
                raise LessonError(f"{command}\nended with {answer.code}: {answer.error.strip()}")
            check(answer)
            _write(kept, json.dumps(asdict(answer)))
        self.answers[command] = answer
        return answer

    def json(self, command: str) -> Any:
        """Run a command that prints one JSON value, and return that value."""
        return json.loads(self.do(command).out)

    def _remove_runs(self, command: str) -> None:
        """Remove the folders that a command's ``--run`` names: in a loop, those of all turns."""
        for run in re.findall(r"--run (\S+)", command):
            for left in list(self.folder.glob(re.sub(r"\$\w+", "*", run))):
                shutil.rmtree(left)

    def _run(self, command: str) -> Answer:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        # bash lets what runs beside it, with &, ignore Ctrl-C.
        stopping = "trap 'kill $(jobs -pr) 2> /dev/null || true' EXIT"
        started = time.monotonic()
        with subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", f"{stopping}\n{command}"],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        ) as bash:
            try:
                out, error = bash.communicate()
            except BaseException:
                bash.terminate()  # and not kill, as subprocess.run does: the trap is to run
                raise
        return Answer(command, bash.returncode, out, error, time.monotonic() - started)


def _code() -> str:
    """Return a hash of the code that the answers depend on: charrnn and the recall text's."""
    digest = hashlib.sha256()
    package = ROOT / "charrnn"
    code = [path for kind in ("*.py", "*.c", "*.h") for path in package.rglob(kind)]
    for path in sorted([*code, ROOT / "corpora" / "recall.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _write(path: Path, text: str) -> None:
    """Write a file atomically, because the lesson may be stopped at any time."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
