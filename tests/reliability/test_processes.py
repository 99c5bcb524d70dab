"""R1, R3 and R11 with real commands: processes killed, and two processes in one folder."""

from __future__ import annotations

import random
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from charrnn.config import TextChoices
from charrnn.errors import CheckpointError
from charrnn.recipe import Choices
from charrnn.runs.starting import start
from charrnn.storage.checkpoint import load, read_description
from charrnn.storage.runfolder import RunFolder
from tests.conftest import ENVIRONMENT, command, make_prose, run_cli
from tests.reliability.conftest import Promise
from tests.reliability.processes import finish, kill
from tests.reliability.runs import CPU, drive, resumed, rows, whole_state
from tests.reliability.test_signals import ended, forked_cli, has_rows, wait_for


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(make_prose(1200))
    return path


MODEL = {"hidden": 8, "dropout": 0.1}
TRAINING = {"batch_size": 3, "bptt": 7, "validate_every": 20}
ENDLESS = 10**9


def options(text: Path, run: Path, steps: int = ENDLESS) -> list[str]:
    words: list[object] = ["train", text, "--run", run, "--steps", steps, "--quiet"]
    for name, value in {**MODEL, **TRAINING}.items():
        words += ["--" + name.replace("_", "-"), value]
    return [str(word) for word in words]


def saved_step(run: Path, name: str = "last") -> int:
    """Return the current step of one of a run's checkpoints; 0 if there is none."""
    with suppress(CheckpointError):
        progress = read_description(run / f"{name}.safetensors").meta["progress"]
        return int(progress["step"])
    return 0


def killed_in_a_row(text: Path, run: Path, kills: int, seed: int) -> int:
    """Start a run, kill it, resume it, kill it, ...; return how many resumed properly."""
    rng = random.Random(seed)
    went_on = 0
    for number in range(kills):
        before = saved_step(run)
        words = ["train", "--run", str(run), "--resume"] if number else options(text, run)
        log = run.with_suffix(".log")
        with (
            log.open("wb") as said,
            subprocess.Popen(command(*words), env=ENVIRONMENT, stdout=said, stderr=said) as popen,
        ):
            try:
                wait_for(lambda: saved_step(run) != before or popen.poll() is not None, "a save")  # noqa: B023
                assert popen.poll() is None, log.read_text()
                first = saved_step(run)
                time.sleep(rng.uniform(0, 0.6))
            finally:
                popen.kill()
        # A run that started afresh would have saved an early step first.
        went_on += before < first <= saved_step(run)
    return went_on


@pytest.mark.slow
def test_killed_trainings_go_on(text: Path, tmp_path: Path, promise: Promise) -> None:
    """There are two chains of ten kills; each ends in the state of a run that was never killed."""
    runs = [tmp_path / "one", tmp_path / "two"]
    with ThreadPoolExecutor(2) as pool:
        went_on = sum(pool.map(lambda i: killed_in_a_row(text, runs[i], 10, seed=i), range(2)))
    promise("R1", "real `charrnn train` processes killed, and gone on with", f"{went_on} of 20")
    assert went_on == 20
    equal = 0
    for run in runs:
        # On a busy machine saves are rare, and best may be much newer than last.
        end = max(saved_step(run), saved_step(run, "best")) + 50
        resumed(run, lambda run: run.progress.step == end)  # noqa: B023
        with RunFolder.create(tmp_path / f"{run.name}-straight") as folder:
            choices = Choices(budget={"steps": ENDLESS}, model=MODEL, training=TRAINING)
            straight = start(choices, TextChoices(texts=(str(text),)), folder=folder, device=CPU)
            drive(straight, lambda run: run.progress.step == end)  # noqa: B023
        equal += whole_state(folder.path) == whole_state(run)
    promise("R1", "chains of 10 killed processes equal to one that nobody killed", f"{equal} of 2")
    assert equal == 2


def test_killed_before_its_first_save_it_begins_anew(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pid = forked_cli([*options(text, run), "--validate-every", "100000"], tmp_path)
    wait_for(lambda: has_rows(run), "the first row")
    kill(pid)
    assert saved_step(run) == 0
    assert "holds no run to resume" in run_cli("train", "--run", run, "--resume").err
    assert run_cli(*options(text, run, steps=40)).code == 0
    assert [row["step"] for row in rows(run)] == [10, 20, 20, 30, 40, 40]


def meeting(text: Path, folder: Path, *, resume: bool) -> str | None:
    """Start two trainings in one folder together; return what went wrong, if anything."""
    run = folder / "run"
    words = options(text, run)
    if resume:
        assert run_cli(*options(text, run, steps=3)).code == 0
        words = ["train", "--run", str(run), "--resume", "--steps", str(ENDLESS), "--quiet"]
    before = saved_step(run)
    pids = {}
    for name in ("a", "b"):
        (folder / name).mkdir()
        pids[name] = forked_cli(words, folder / name)
    try:
        wait_for(lambda: any(ended(pid) for pid in pids.values()), "one to give way")
        loser, winner = sorted(pids, key=lambda name: not ended(pids[name]))
        said = (folder / loser / "err").read_text()
        if finish(pids.pop(loser)) != 1 or said.count("\n") != 1:
            return f"the second comer said {said}"
        holder = re.search(r"in use by process (\d+) on \S+ since [\d-]+ [\d:]+ \(.*\)", said)
        if holder is None or int(holder[1]) != pids[winner]:
            return f"the holder is {pids[winner]}, named is {said}"
        wait_for(lambda: saved_step(run) > before, "a save")
        if ended(pids[winner]):
            return "both gave way"
    finally:
        for pid in pids.values():
            if not ended(pid):
                kill(pid)
    result = run_cli("train", "--run", run, "--resume", "--steps", saved_step(run) + 1, "--quiet")
    return None if result.code == 0 else f"not free after kill -9: {result}"


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("resume", [False, True])
def test_a_pair_of_trainings(text: Path, tmp_path: Path, resume: bool) -> None:
    assert meeting(text, tmp_path, resume=resume) is None


@pytest.mark.usefixtures("patient")
@pytest.mark.slow
def test_pairs_of_trainings(text: Path, tmp_path: Path, promise: Promise) -> None:
    flaws = []
    for pair in range(20):
        (tmp_path / str(pair)).mkdir()
        if flaw := meeting(text, tmp_path / str(pair), resume=pair % 2 == 1):
            flaws.append(flaw)
    what = "pairs of `charrnn train`: one trains, one names it and leaves, free after kill -9"
    promise("R11", what, f"{20 - len(flaws)} of 20")
    assert not flaws


@pytest.mark.slow
def test_a_model_of_usual_size_on_two_threads(tmp_path: Path, promise: Promise, cell: str) -> None:
    """As users train: products split over two threads give the same bits every time."""
    text = tmp_path / "text.txt"
    text.write_text(make_prose(100_000))
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "2"}
    options = ["--cell", cell, "--steps", "200", "--dropout", "0.1", "--keep", "0"]

    def train(*words: object, stop: bool = False) -> int:
        with subprocess.Popen(
            command("train", *words), env=environment, stderr=subprocess.PIPE, text=True
        ) as popen:
            assert popen.stderr is not None
            for line in popen.stderr:
                if stop and line.startswith("step 10 "):
                    popen.terminate()
        return popen.returncode

    assert train(text, "--run", tmp_path / "straight", *options) == 0
    assert train(text, "--run", tmp_path / "stopped", *options, stop=True) == 143
    assert 10 <= saved_step(tmp_path / "stopped") < 200
    assert train("--run", tmp_path / "stopped", "--resume") == 0
    assert load(tmp_path / "stopped" / "last.safetensors").meta["threads"] == 2
    same = whole_state(tmp_path / "stopped") == whole_state(tmp_path / "straight")
    promise("R3", "the model of a user without options, two threads, two processes: equal", cell)
    assert same
