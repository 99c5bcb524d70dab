from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from corpora import recall as module
from corpora.recall import KEYS, NOISE, recall_text
from tests.conftest import needs_full


def run(*arguments: str, stdout: int | None = subprocess.PIPE) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, module.__file__, *arguments],
        stdout=stdout, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout or "", done.stderr


@pytest.mark.parametrize("distance", [2, 3, 16])
def test_the_key_comes_again_at_the_distance(distance: int) -> None:
    text = recall_text(distance, 1000)
    lines = text.splitlines(keepends=True)
    assert 1000 - (distance + 2) < len(text) <= 1000
    for line in lines:
        assert len(line) == distance + 2
        assert line[0] in KEYS
        assert set(line[1 : distance - 1]) <= set(NOISE)
        assert line[distance - 1 :] == f"={line[0]}\n"
    assert {line[0] for line in lines} == set(KEYS)


def test_the_same_seed_gives_the_same_text() -> None:
    assert recall_text(16, 500, seed=3) == recall_text(16, 500, seed=3) != recall_text(16, 500)


def test_prints_it() -> None:
    assert run("--distance", "5", "--characters", "70") == (0, recall_text(5, 70), "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--distance 1", "at least 2, not 1"),
        ("--distance -3", "at least 2, not -3"),
        ("--distance far", "invalid int"),
        ("--characters 17", "a line has 18 characters"),
    ],
)
def test_what_makes_no_sense(words: str, says: str) -> None:
    code, out, err = run(*words.split())
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


@needs_full
def test_a_full_disk_is_named() -> None:
    with Path("/dev/full").open("wb") as full:
        code, _, err = run(stdout=full.fileno())
    assert (code, err) == (1, "recall.py: cannot write the text: No space left on device\n")


def test_a_reader_may_leave() -> None:
    with subprocess.Popen(
        [sys.executable, module.__file__], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
