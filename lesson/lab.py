"""Runs commands as a reader would type them, and keeps what they answer.

Every command of the page is run by bash, as it is printed there, in a folder that looks like
the project's: ``corpora/`` holds the generator of the recall text, and a reader's own text;
trained models go to ``checkpoints/``.
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

from charrnn.corpus import scan
from charrnn.errors import CorpusError
from charrnn.files import embedded_corpus
from charrnn.machine import machine

ROOT = Path(__file__).parent.parent


class LessonError(Exception):
    """A command of the lesson failed, or the lesson cannot be made of what is given."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The numbers that decide how long the lesson takes.

    Trainings are counted in steps, so that a slow machine learns as much as a fast one; only
    the comparison at equal time is in minutes.
    """

    hidden: int = 192
    """H of the LSTM on the text; the other cells get as many parameters."""
    steps: int = 1200
    """2.5 million characters: enough for words and indentation, too few for sense."""
    minutes: float = 1.0
    width_steps: int = 200
    """For speeds at equal width, nothing has to be learnt."""
    cell_seeds: int = 3
    """Runs of each cell in a comparison, so that it can tell what chance makes of a loss. The
    cells take turns, because a machine's own pace drifts."""
    least: int = 50_000
    """Characters of a text whose held-out tenth is long enough to look into."""
    held_out: int = 200_000
    """Characters to validate on, and as many after those to compare the cells on."""
    inspected: int = 20_000
    """Characters of the latter that ``inspect`` looks into, the last ones."""
    lengths: tuple[int, ...] = (10, 1_000, 100_000)
    """Characters that are scored, at claim 1."""
    windows: tuple[int, ...] = (1, 4, 16, 32, 64, 108, 256, 512)
    """Of the gradient, at claim 3."""
    radii: tuple[float, ...] = (0.5, 0.9, 1.0, 1.1, 1.5)
    """Spectral radii of the recurrent matrix, at claim 5."""
    distance: int = 16
    """K of the recall text. At 12 every window learns it within the steps, at 24 hardly any."""
    recall_hidden: int = 32
    recall_steps: int = 3000
    """At half as many the LSTM is still on its way at some windows of 16 and more."""
    recall_lanes: int = 960
    """Lanes times window: equal steps are then equal characters, whatever the window."""
    recall_windows: tuple[int, ...] = (4, 8, 12, 24, 48)
    """Below and above K. With a state that is not carried a window shows a whole line only
    where it happens to begin before it, so that the longest is much longer."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of the trainings at claims 4 and 7."""
    clip_hidden: int = 128
    clip_steps: int = 300
    clip_rates: tuple[float, ...] = (2.0, 5.0, 10.0)
    """The lowest needs no clipping."""
    plain_rates: tuple[float, ...] = (0.5, 2.0, 8.0, 32.0)
    """Of plain descent at claim 7, for both cells: from that of the scaled gradients to above the
    one at which the LSTM learns most."""
    scaled_rate: float = 0.5
    """Of the scaled gradients, at which both cells learn."""


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
        """Trainings that stopped because a number was not finite."""
        return self.error.count(" is not finite ")

    def ended_early(self) -> LessonError:
        """Return what is raised where a training ended early for another reason."""
        return LessonError(f"{self.command}\na training ended early: {self.error.strip()}")


@dataclass
class Lab:
    """A folder to run the lesson's commands in.

    Args:
        folder: in it there is one for each lesson; answers of the same one that are there already
            are not asked for again. The same has the same text, machine, program and size.
        text: a reader's own; None: the embedded corpus.
        size: how much is done.
        say: called with each command before it runs.

    Raises:
        LessonError: the text cannot be read as one in utf-8, or is too short.
    """

    folder: Path
    """Once it is made, this lesson's own."""
    text: Path | None
    size: Size
    say: Callable[[str], None]
    answers: dict[str, Answer] = field(default_factory=dict)
    """By command: several claims ask for the same ones."""

    def __post_init__(self) -> None:
        read = [str(self.text)] if self.text is not None else embedded_corpus()
        try:
            corpus = scan(read)
        except CorpusError as error:
            raise LessonError(f"{error} (here: only utf-8 is taken, so convert it first)") from None
        self.characters: int = corpus.characters
        """Of the text, all of it."""
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
        # Without its mode: a copy that may not be written could not be copied again.
        shutil.copyfile(ROOT / "corpora" / "recall.py", corpora / "recall.py")
        if self.text is not None:
            shutil.copyfile(self.text, corpora / self.name)

    @property
    def name(self) -> str:
        """What a reader's text is called in commands: nothing in it that a shell would read.

        Nor is it the name of a file that the lesson itself writes.
        """
        assert self.text is not None
        return "own-" + re.sub(r"[^\w.-]+", "-", self.text.name)

    @property
    def words(self) -> str:
        """What names the text to train on in a command: nothing for the embedded corpus."""
        return f" corpora/{self.name}" if self.text is not None else ""

    @property
    def valid_share(self) -> str:
        """What ``--valid-share`` is to be, for some held-out characters but never above 0.1.

        In comparisons ``--test-share``, too.
        """
        return f"{min(0.1, self.size.held_out / self.characters):.3g}"

    @property
    def held_out(self) -> int:
        """Characters that are held out to validate on, at least."""
        return int(float(self.valid_share) * self.characters)

    @property
    def seconds(self) -> float:
        """Wall-clock time of all commands."""
        return sum(answer.seconds for answer in self.answers.values())

    def do(self, command: str, check: Callable[[Answer], object] = lambda _: None) -> Answer:
        """Run a command, or return what it answered before.

        One that was stopped is begun anew, without the runs that it left.

        Args:
            command: as bash reads it.
            check: raises a LessonError where the answer is of no use, which is then not kept.

        Raises:
            LessonError: it failed, or its answer is of no use.
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
        """Run a command that prints one JSON value, and return that."""
        return json.loads(self.do(command).out)

    def _remove_runs(self, command: str) -> None:
        """Remove the folders that a command's ``--run`` names, in a loop those of every turn."""
        for run in re.findall(r"--run (\S+)", command):
            for left in list(self.folder.glob(re.sub(r"\$\w+", "*", run))):
                shutil.rmtree(left)

    def _run(self, command: str) -> Answer:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        started = time.monotonic()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        took = time.monotonic() - started
        return Answer(command, done.returncode, done.stdout, done.stderr, took)


def _code() -> str:
    """Return what tells this code from any other: that of the product, and of the recall text."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "charrnn").glob("*.[pch]*"), ROOT / "corpora" / "recall.py"]):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _write(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all: the lesson may be stopped at any time."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
