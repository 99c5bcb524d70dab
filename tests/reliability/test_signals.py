"""R10: SIGINT and SIGTERM save and exit."""

from __future__ import annotations

import contextlib
import functools
import os
import pty
import random
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, BinaryIO

import pytest

import charrnn.cli
import charrnn.commands.stopping
import charrnn.inference.evaluation
import charrnn.runs.training
import charrnn.storage.checkpoint
import charrnn.storage.runfolder
from charrnn.commands.stopping import Stopped, StopSignals
from charrnn.storage.checkpoint import Checkpoint, load
from tests.conftest import ENVIRONMENT, PATIENCE, command, make_prose, run_cli, slowly
from tests.reliability.conftest import Promise
from tests.reliability.processes import finish, fork
from tests.reliability.runs import whole_state

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
NAMES = {number: number.name for number in CODES} | {signal.SIGINT: "Ctrl-C"}
HIDDEN, SHOWN = b"\x1b[?25l", b"\x1b[?25h"  # the cursor


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text to train on and one to validate on, of many windows."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "train.txt").write_text(make_prose(700))
    (folder / "valid.txt").write_text(make_prose(2000, seed=2))
    return folder


def options(book: Path, run: Path, *more: object) -> list[str]:
    words = [
        "train", book / "train.txt", "--valid", book / "valid.txt", "--run", run, "--steps", 130,
        "--hidden", 8, "--batch-size", 3, "--bptt", 7, "--validate-every", 5, "--dropout", 0.1,
        *more,
    ]  # fmt: skip
    return [str(word) for word in words]


def forked_cli(words: list[str], folder: Path, prepare: Callable[[], None] | None = None) -> int:
    """Run a command in a forked process, its streams in files; return its pid."""

    def work() -> None:
        sys.stdout = (folder / "out").open("w")
        sys.stderr = (folder / "err").open("w")
        # A shell that runs pytest in the background makes it ignore SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if prepare:
            prepare()
        code = charrnn.cli.run_command(words)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    return fork(work)


def wait_for(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.002)


def has_rows(run: Path) -> bool:
    log = run / "metrics.jsonl"
    return log.exists() and log.stat().st_size > 0


def is_closed(pipe: int) -> bool:
    """Return whether no process holds the other end of an empty pipe open."""
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def ended(pid: int) -> bool:
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return status is not None


def seeing_where(path: Path) -> Callable[[], None]:
    """Return a set-up that writes to a file which part of the loop the signal interrupts."""

    def prepare() -> None:
        note = charrnn.commands.stopping.StopSignals._note
        monkey = pytest.MonkeyPatch()

        def seen(
            self: charrnn.commands.stopping.StopSignals, number: int, frame: FrameType | None
        ) -> None:
            names = set()
            while frame is not None:
                names.add(frame.f_code.co_name)
                frame = frame.f_back
            for name in ("score", "_sample", "_save"):
                if name in names:
                    path.write_text(name)
            note(self, number, None)

        monkey.setattr(charrnn.commands.stopping.StopSignals, "_note", seen)

    return prepare


def signalled(
    book: Path, folder: Path, number: signal.Signals, delay: float, expected: dict[str, Any]
) -> str:
    """Stop a run by a signal and resume it as it says; return the part interrupted, or the flaw."""
    run, where = folder / "run", folder / "where"
    pid = forked_cli(options(book, run), folder, seeing_where(where))
    wait_for(lambda: has_rows(run) or ended(pid), "the first row")
    time.sleep(delay)
    os.kill(pid, number)
    code = finish(pid)
    if code == 0:
        return "too late"
    said = (folder / "err").read_text()
    if code != CODES[number] or f"stopped by {NAMES[number]} and saved after " not in said:
        return f"flaw: ended with {code}: {said}"
    step = load(run / "last.safetensors").require("step", int)
    if f"after {step:,} steps" not in said:
        return f"flaw: stopped where it said nothing was saved: {said}"
    go_on = re.search(r"^go on with: charrnn (.*)$", said, re.MULTILINE)
    if go_on is None:
        return f"flaw: did not say how to go on: {said}"
    went_on = run_cli(*shlex.split(go_on[1]))
    if went_on.code != 0:
        return f"flaw: did not go on: {went_on.err}"
    if whole_state(run) != expected:
        return "flaw: not saved at a step's edge"
    return where.read_text() if where.exists() else "update"


def signals(
    book: Path, folder: Path, count: int, seed: int, each: int = 0
) -> tuple[dict[str, int], list[str]]:
    """Send ``count`` signals; return (how many interrupted each part of the loop, flaws).

    Send more until at least ``each`` have interrupted a validation and a sample.
    """
    assert run_cli(*options(book, folder / "straight")).code == 0
    expected = whole_state(folder / "straight")
    duration = load(folder / "straight" / "last.safetensors").meta["progress"]["seconds"]
    rng = random.Random(seed)
    places = {"score": 0, "_sample": 0}
    flaws: list[str] = []
    turn = 0
    while (
        sum(places.values()) + len(flaws) < count or min(places["score"], places["_sample"]) < each
    ):
        turn += 1
        assert turn < 20 * count, (places, flaws)
        place = folder / str(turn)
        place.mkdir()
        number = (signal.SIGINT, signal.SIGTERM)[turn % 2]
        found = signalled(book, place, number, rng.uniform(0, 0.8 * duration), expected)
        if found == "too late":
            duration *= 0.9
            continue
        if found.startswith("flaw"):
            flaws.append(found)
        else:
            places[found] = places.get(found, 0) + 1
    return places, flaws


def test_some_signals(book: Path, tmp_path: Path) -> None:
    _, flaws = signals(book, tmp_path, 3, seed=1)
    assert not flaws


@pytest.mark.slow
def test_signals(book: Path, tmp_path: Path, promise: Promise) -> None:
    places, flaws = signals(book, tmp_path, 50, seed=2, each=3)
    came = ", ".join(f"{n} in {place.strip('_')}" for place, n in sorted(places.items()))
    kept = sum(places.values())
    figure = f"{kept} of {kept + len(flaws)}"
    promise("R10", f"signals at random times ({came}): saved, left, resumed", figure)
    assert not flaws


@pytest.mark.slow
def test_signals_from_the_start_of_a_process_to_its_end(
    book: Path, tmp_path: Path, process: Callable[..., subprocess.Popen[str]], promise: Promise
) -> None:
    """A run that has begun can go on; before that nothing is left, after its end it is whole."""
    count, kept, ends = 16, 0, Counter[int]()
    started = time.monotonic()
    assert process(*options(book, tmp_path / "straight")).wait(PATIENCE) == 0
    duration = time.monotonic() - started
    expected = whole_state(tmp_path / "straight")
    for turn in range(count):
        run = tmp_path / f"run{turn}"
        number = (signal.SIGINT, signal.SIGTERM)[turn % 2]
        popen = process(*options(book, run))
        time.sleep(duration * (turn + 0.5) / count)
        popen.send_signal(number)
        code = popen.wait(PATIENCE)
        # Before Python runs charrnn, and after the run's end, the signal's own default ends the
        # process; while Python starts, Python may fail.
        early = () if run.exists() else (1,)
        assert code in (0, CODES[number], -number, *early), code
        ends[code] += 1
        if not run.exists():
            kept += code != 0
            continue
        if code == CODES[number]:
            assert run_cli("train", "--run", run, "--resume").code == 0
        kept += whole_state(run) == expected
    came = ", ".join(f"{ends[code]} exit {code}" for code in sorted(ends))
    promise("R10", f"signals from a process's start to its end ({came})", f"{kept} of {count}")
    assert kept == count
    assert ends[CODES[signal.SIGINT]] and ends[CODES[signal.SIGTERM]]


def in_validation(stop: Callable[[], Any]) -> Callable[[], None]:
    """Return a set-up that calls ``stop`` in the middle of a validation."""

    def prepare() -> None:
        real = charrnn.inference.evaluation.score
        monkey = pytest.MonkeyPatch()

        def score(*arguments: Any, should_stop: Callable[[], bool], **named: Any) -> Any:
            asked = 0

            def asking() -> bool:
                nonlocal asked
                asked += 1
                if asked == 3:
                    stop()
                return should_stop()

            return real(*arguments, should_stop=asking, **named)

        monkey.setattr(charrnn.runs.training, "score", score)

    return prepare


@pytest.mark.parametrize("number", CODES)
def test_a_signal_in_a_validation(book: Path, tmp_path: Path, number: signal.Signals) -> None:
    pid = forked_cli(
        options(book, tmp_path / "run"),
        tmp_path,
        in_validation(lambda: os.kill(os.getpid(), number)),
    )
    assert finish(pid) == CODES[number]
    saved = load(tmp_path / "run" / "last.safetensors").meta["progress"]
    assert saved["step"] == 5
    assert saved["validated_step"] is None


@pytest.mark.parametrize("number", [signal.SIGINT, *slowly(signal.SIGTERM, signal.SIGHUP)])
def test_a_signal_in_a_save(
    book: Path, tmp_path: Path, number: signal.Signals, promise: Promise
) -> None:
    """Signals at random times rarely interrupt a save."""

    def prepare() -> None:
        write, monkey = charrnn.storage.checkpoint.write, pytest.MonkeyPatch()

        def signalling(file: BinaryIO, checkpoint: Checkpoint) -> None:
            monkey.undo()
            os.kill(os.getpid(), number)
            write(file, checkpoint)

        monkey.setattr(charrnn.storage.runfolder, "write", signalling)

    assert run_cli(*options(book, tmp_path / "straight")).code == 0
    run = tmp_path / "run"
    code = finish(forked_cli(options(book, run), tmp_path, prepare))
    resumed = run_cli("train", "--run", run, "--resume")
    same = whole_state(run) == whole_state(tmp_path / "straight")
    promise("R10", "a signal in a save: saved, left, resumed", "equal" if same else "differs")
    assert (code, resumed.code) == (CODES[number], 0)
    assert same


def test_a_key_press_that_arrives_twice_is_one(book: Path, tmp_path: Path) -> None:
    """A terminal signals the whole process group, and some wrappers pass the signal on again."""

    def twice() -> None:
        charrnn.commands.stopping.StopSignals.SAME = PATIENCE  # however slow the machine
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    pid = forked_cli(options(book, tmp_path / "run"), tmp_path, in_validation(twice))
    assert finish(pid) == 130
    assert load(tmp_path / "run" / "last.safetensors").require("step", int) == 5


def crawling(write: Callable[..., None], file: BinaryIO, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as slowly as if the disk took a minute."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as pipe:
        pid = fork(functools.partial(write, pipe, checkpoint))
    while data := os.read(reader, 256):
        os.write(file.fileno(), data)
        time.sleep(0.5)
    finish(pid)


def test_a_second_signal_leaves_at_once_in_a_save(
    book: Path, tmp_path: Path, promise: Promise
) -> None:
    run = tmp_path / "run"
    assert run_cli(*options(book, run), "--steps", 20).code == 0
    before = (run / "last.safetensors").read_bytes()

    def slow_disk() -> None:
        charrnn.commands.stopping.StopSignals.SAME = 0.0  # however fast the machine
        write = functools.partial(crawling, charrnn.storage.checkpoint.write)
        pytest.MonkeyPatch().setattr(charrnn.storage.runfolder, "write", write)

    words = ["train", "--run", str(run), "--resume", "--steps", "100000"]
    pid = forked_cli(words, tmp_path, slow_disk)
    wait_for(lambda: list(run.glob(".last*.tmp")), "the save")
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
    assert not ended(pid)
    assert list(run.glob(".last*.tmp"))
    started = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert finish(pid) == 143
    took = time.monotonic() - started
    promise("R10", "a second signal in the midst of a save", f"left after {took:.2f} s")
    assert took < 1
    assert (run / "last.safetensors").read_bytes() == before
    assert run_cli(*words[:-1], 40).code == 0
    assert not list(run.glob(".*"))


@pytest.mark.parametrize("number", CODES)
def test_a_signal_while_prices_are_written_leaves_the_file_of_before(
    trained: Path, tmp_path: Path, number: signal.Signals
) -> None:
    text, prices = tmp_path / "text", tmp_path / "prices"
    text.write_text(make_prose(200_000))
    prices.write_text("of before")
    words = ["evaluate", trained, "--text", text, "--dynamic", "--per-char", prices]
    pid = forked_cli([str(word) for word in words], tmp_path)
    wait_for(lambda: any(file.stat().st_size for file in tmp_path.glob(".prices.*")), "a price")
    os.kill(pid, number)
    assert finish(pid) == CODES[number]
    assert prices.read_text() == "of before"
    assert not list(tmp_path.glob(".prices.*"))


def test_a_second_signal_leaves_no_temporary_of_the_prices(trained: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def compressing(*_: object) -> None:
        begun.touch()
        while True:  # like a library, which notices no signal until it is done
            with contextlib.suppress(Stopped):
                time.sleep(PATIENCE)

    def slow() -> None:
        charrnn.commands.stopping.StopSignals.SAME = 0.0  # however fast the machine
        pytest.MonkeyPatch().setattr("charrnn.commands.watching.price_baselines", compressing)

    words = ["evaluate", trained, "--part", "train", "--baselines", "--per-char", tmp_path / "p"]
    pid = forked_cli([str(word) for word in words], tmp_path, slow)
    wait_for(begun.exists, "the baselines")
    assert list(tmp_path.glob(".p.*.tmp"))
    time.sleep(0.2)  # until it is working on them
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
    assert not ended(pid)
    os.kill(pid, signal.SIGTERM)
    assert finish(pid) == 143
    assert not list(tmp_path.glob(".p.*"))


@pytest.fixture
def process(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts a command as a process, killed at the test's end if it runs."""

    def begin(*arguments: object, ignore: tuple[int, ...] = ()) -> subprocess.Popen[str]:
        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            for number in ignore:
                signal.signal(number, signal.SIG_IGN)

        popen = subprocess.Popen(
            command(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**ENVIRONMENT, "TMPDIR": str(tmp_path)},
            preexec_fn=prepare,
        )

        def end() -> None:
            popen.kill()
            popen.wait()
            for stream in (popen.stdin, popen.stdout, popen.stderr):
                assert stream is not None
                stream.close()

        request.addfinalizer(end)
        return popen

    return begin


def until(stream: Any, start: str) -> list[str]:
    """Read lines up to one that begins with ``start``."""
    lines = [stream.readline()]
    while lines[-1] and not lines[-1].startswith(start):
        lines.append(stream.readline())
    assert lines[-1], f"no line begins with {start!r}: {''.join(lines)}"
    return lines


@pytest.mark.slow
def test_a_second_signal_leaves_at_once_in_a_long_update(
    tmp_path: Path, process: Callable[..., subprocess.Popen[str]], promise: Promise
) -> None:
    """Python's own signal handlers would run only after the matrix product."""
    (tmp_path / "long.txt").write_text(make_prose(60_000))
    popen = process(
        "train", "long.txt", "--run", "run", "--steps", 50, "--hidden", 900, "--layers", 2,
        "--batch-size", 64, "--bptt", 512, "--precision", "fp32",
    )  # fmt: skip
    until(popen.stderr, "run ")
    time.sleep(1)
    popen.send_signal(signal.SIGINT)
    time.sleep(0.6)
    assert popen.poll() is None, "the update is too short to show anything"
    started = time.monotonic()
    popen.send_signal(signal.SIGINT)
    assert popen.wait(PATIENCE) == 130
    took = time.monotonic() - started
    promise("R10", "a second signal in an update of many seconds", f"left after {took:.2f} s")
    assert took < 1


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
def test_a_real_process_stops_and_goes_on_as_it_says(
    book: Path,
    tmp_path: Path,
    process: Callable[..., subprocess.Popen[str]],
    number: signal.Signals,
) -> None:
    """The printed command is pasted into a shell; the folder's name needs quotes."""
    popen = process(*options(book, Path("my run's folder")), "--keep", 3)
    until(popen.stderr, "step 5 ")
    popen.send_signal(number)
    _, said = popen.communicate(timeout=PATIENCE)
    assert popen.returncode == CODES[number]
    go_on = re.search(r"^go on with: charrnn (train .*)$", said, re.MULTILINE)
    assert go_on is not None
    pasted = f"{shlex.join(command())} {go_on[1]}"
    done = subprocess.run(
        pasted, shell=True, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout == "my run's folder\n"
    assert run_cli(*options(book, tmp_path / "straight"), "--keep", 3).code == 0
    assert whole_state(tmp_path / "my run's folder") == whole_state(tmp_path / "straight")


@pytest.mark.slow
def test_a_signal_before_the_training_leaves_nothing(
    tmp_path: Path, process: Callable[..., subprocess.Popen[str]]
) -> None:
    """The command is still copying standard input to a temporary file."""
    for number, code in CODES.items():
        popen = process("train", "-", "--run", "run")
        assert popen.stdin is not None
        popen.stdin.write("abc" * 1000)
        popen.stdin.flush()
        wait_for(lambda: list(tmp_path.glob("charrnn-*")), "the temporary file")
        time.sleep(0.2)  # until it waits for more
        popen.send_signal(number)
        assert popen.wait(PATIENCE) == code
        popen.stdin.close()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ignored_signals_stay_ignored(
    book: Path, tmp_path: Path, process: Callable[..., subprocess.Popen[str]]
) -> None:
    """nohup ignores SIGHUP for its command, and a shell SIGINT for background jobs."""
    ignore = (signal.SIGINT, signal.SIGHUP)
    popen = process(*options(book, Path("run")), ignore=ignore)
    until(popen.stderr, "step 5 ")
    for number in ignore:
        popen.send_signal(number)
    popen.communicate(timeout=PATIENCE)
    assert popen.returncode == 0
    assert load(tmp_path / "run" / "last.safetensors").require("step", int) == 130


def test_two_signals_before_training_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second must not interrupt the clean-up after the first."""
    monkeypatch.setattr(charrnn.commands.stopping.StopSignals, "SAME", 1e9)
    with charrnn.commands.stopping.StopSignals() as stop:
        with pytest.raises(charrnn.commands.stopping.Stopped):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM


SECOND_SIGNAL = """
import signal, sys, time
from pathlib import Path
from charrnn.commands.stopping import StopSignals

StopSignals.SAME = 0
with StopSignals() as stop:
    stop.removed.append(Path(sys.argv[1]))
    stop.defer()
    for _ in range(2):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.05)
    time.sleep(60)
"""


def test_a_second_signal_removes_what_nobody_else_would(tmp_path: Path) -> None:
    left = tmp_path / "copy of standard input"
    left.touch()
    words = [sys.executable, "-c", SECOND_SIGNAL, str(left)]
    assert subprocess.run(words, env=ENVIRONMENT, timeout=PATIENCE).returncode == 130
    assert not left.exists()


def test_what_cannot_be_removed_keeps_no_other_file_and_no_error(tmp_path: Path) -> None:
    left = tmp_path / "copy of standard input"
    left.touch()
    with StopSignals() as stop:
        # The first is a folder, which unlink cannot remove.
        stop.removed += [tmp_path, left]
    assert not left.exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture
def endless_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Let processes compile for ever; give a pipe whose other end their compilers hold open."""
    compiler, lives = tmp_path / "cc", tmp_path / "lives"
    os.mkfifo(lives)
    reader = os.open(lives, os.O_RDONLY | os.O_NONBLOCK)
    compiler.write_text(f"#!/bin/sh\nexec 9>{lives}\ntouch {tmp_path}/begun\nexec sleep 60\n")
    compiler.chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "CC", str(compiler))
    yield reader
    os.close(reader)


@pytest.mark.parametrize(
    "words",
    [
        *slowly(
            ("train", "--resume", "--steps", "200", "--run"),
            ("evaluate", "--part", "valid"),
            ("inspect", "--part", "train", "--only", "pace"),
        ),
        ("sample", "--length", "0"),
    ],
    ids=lambda words: words[0],
)
def test_a_signal_while_c_is_compiled_leaves_nothing(
    words: tuple[str, ...],
    trained: Path,
    tmp_path: Path,
    process: Callable[..., subprocess.Popen[str]],
    endless_compiler: int,
) -> None:
    command, *options = words
    popen = process(command, *([*options, trained] if "--run" in options else [trained, *options]))
    wait_for((tmp_path / "begun").exists, "the compiler")
    popen.send_signal(signal.SIGTERM)
    assert popen.wait(PATIENCE) == 143
    assert not list(tmp_path.glob("charrnn-*"))
    # Also what it has started, which nobody waits for.
    wait_for(lambda: is_closed(endless_compiler), "the end of the compiler")


def test_a_signal_while_libraries_are_loaded_is_not_lost() -> None:
    """Whatever they do with exceptions: none is raised before they are there."""
    swallowed = 0
    with pytest.raises(Stopped), StopSignals() as stop, stop.loading():
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:  # as torch does while it imports numpy
            swallowed += 1
    assert (swallowed, stop.received) == (0, signal.SIGTERM)
    with StopSignals() as stop:
        with stop.loading():
            pass
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("words", [("sample", "--length", "0"), ("evaluate", "--part", "valid")])
def test_a_signal_from_a_command_s_start_on_ends_it_and_leaves_nothing(
    words: tuple[str, ...],
    trained: Path,
    tmp_path: Path,
    process: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While it imports torch, C is compiled, or it has just begun; by the real compiler."""
    monkeypatch.delitem(ENVIRONMENT, "CC")
    command, *options = words
    codes: Counter[int] = Counter()
    for moment in range(15):
        popen = process(command, trained, *options)
        time.sleep(0.15 + moment / 9)
        popen.send_signal(signal.SIGTERM)
        codes[popen.wait(PATIENCE)] += 1
        # One that came before the handlers were there began nothing.
        assert not list(tmp_path.glob("charrnn-*"))
    # An evaluation may be over before.
    assert codes.keys() <= {143, -signal.SIGTERM} | ({0} if command == "evaluate" else set())
    assert codes[143]


def test_a_second_signal_while_c_is_compiled_leaves_nothing(
    trained: Path,
    tmp_path: Path,
    process: Callable[..., subprocess.Popen[str]],
    endless_compiler: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library that takes long to load keeps the first one waiting."""
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "numpy.py").write_text("import time\nwhile True:\n    time.sleep(9)\n")
    path = os.pathsep.join([str(slow), *filter(None, [ENVIRONMENT.get("PYTHONPATH")])])
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", path)
    popen = process("evaluate", trained, "--part", "valid")
    wait_for((tmp_path / "begun").exists, "the compiler")
    popen.send_signal(signal.SIGINT)
    time.sleep(2 * StopSignals.SAME)
    assert popen.poll() is None, "the first is only noted"
    popen.send_signal(signal.SIGINT)
    assert popen.wait(PATIENCE) == 130
    assert not list(tmp_path.glob("charrnn-*"))
    wait_for(lambda: is_closed(endless_compiler), "the end of the compiler")


def test_a_signal_whose_exception_is_swallowed_ends_the_command_before_the_training() -> None:
    with StopSignals() as stop:
        with contextlib.suppress(Stopped):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped) as stopped:
            stop.defer()
    assert stopped.value.args == (signal.SIGTERM,)


@pytest.mark.parametrize(
    ("first", "second", "apart", "code"),
    [
        (signal.SIGINT, signal.SIGINT, 0.29, 7),
        (signal.SIGINT, signal.SIGINT, 0.31, 130),
        (signal.SIGHUP, signal.SIGTERM, 0.31, 143),
        *((first, signal.SIGHUP, 1e9, 7) for first in CODES),
    ],
)
def test_which_signal_is_a_second_one(
    first: signal.Signals, second: signal.Signals, apart: float, code: int
) -> None:
    """Not one within a moment, and no SIGHUP however late.

    A shell sends its jobs SIGHUP, and the system sends another when the shell is gone. One may also
    follow Ctrl-C when the window is closed, or SIGTERM at a shutdown.
    """

    def leave() -> None:
        clock = SimpleNamespace(monotonic=iter([0.0, apart]).__next__)
        pytest.MonkeyPatch().setattr(charrnn.commands.stopping, "time", clock)
        with StopSignals() as stop:
            stop.defer()
            for number in (first, second):
                signal.raise_signal(number)
        # Both have been looked at: the thread that does so has ended.
        os._exit(7 if stop.received == first else 1)

    assert finish(fork(leave)) == code


@pytest.mark.parametrize(
    ("name", "number"), [("evaluate", signal.SIGTERM), ("inspect", signal.SIGHUP)]
)
def test_a_signal_leaves_no_copy_of_standard_input(
    trained: Path,
    tmp_path: Path,
    process: Callable[..., subprocess.Popen[str]],
    name: str,
    number: signal.Signals,
) -> None:
    popen = process(name, trained, "--text", "-")
    wait_for(lambda: list(tmp_path.glob("charrnn-*")), "the copy")
    popen.send_signal(number)
    assert popen.wait(PATIENCE) == CODES[number]
    assert not list(tmp_path.glob("charrnn-*"))


def test_ctrl_z_leaves_the_terminal_as_it_was(tmp_path: Path, book: Path) -> None:
    """The shell has job control, as users' shells have; the live display is cleared first."""
    words = shlex.join(command(*options(book, tmp_path / "run"), "--steps", 100_000))
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover
        shell = f"set -m; {words}; echo; echo '<left>'; sleep 1; echo '<back>'; fg; exit"
        os.execvpe("bash", ["bash", "--norc", "-c", shell], ENVIRONMENT | {"TERM": "xterm"})
    seen = b""

    def until_shown(what: bytes) -> bytes:
        """Return what is shown before ``what`` appears."""
        nonlocal seen
        end = time.monotonic() + PATIENCE
        while what not in seen:
            ready, *_ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"waited in vain for {what!r}"
            seen += os.read(terminal, 4096)
        shown, _, seen = seen.partition(what)
        return shown

    until_shown(HIDDEN)
    until_shown(b"chars/s")
    os.write(terminal, b"\x1a")
    left = until_shown(b"<left>")
    assert SHOWN in left
    assert HIDDEN not in left.rpartition(SHOWN)[2]
    assert b"\x1b" not in until_shown(b"<back>"), "nothing is drawn while it is stopped"
    up = b"\x1b[1A"
    assert up not in until_shown(HIDDEN), "what the shell wrote is not drawn over"
    drawn = until_shown(b"chars/s")
    assert up not in drawn.partition(b"step ")[0]
    os.write(terminal, b"\x03")
    until_shown(b"stopped by Ctrl-C")
    with contextlib.suppress(OSError):  # Linux has no end of file for terminals
        while more := os.read(terminal, 4096):
            seen += more
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
