"""Shared by several tests: small texts, one small trained run, the command line."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import random
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NoReturn
from unittest import mock

import hypothesis
import pytest
import torch
import typer.main

from charrnn.compute import compiler, library, recurrence
from charrnn.compute.device import has_capability
from charrnn.config import CELL_NAMES, CellName
from charrnn.errors import CharrnnError, RunFolderError
from charrnn.text.corpus import Part
from charrnn.text.scanning import scan
from tests import promises

# A test run started in the background or under nohup ignores these signals, and so
# would every process that it starts; but the tests send them.
for number, action in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, action)

# The same examples in every run, and no deadline on a slow machine: no flaky tests.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("same")

# Small tensors on busy cores: a second thread costs more than it gives.
torch.set_num_threads(1)

# The tests must not depend on what the caller's terminal, CI or shell sets.
for name in (
    "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE",
    "CHARRNN_TRACEBACK", "CHARRNN_NATIVE", "COLORTERM", "JPY_PARENT_PID", "MPLBACKEND",
    "CI",
):  # fmt: skip
    os.environ.pop(name, None)
os.environ["TERM"] = "xterm-256color"  # in an editor, or without a terminal, it may be "dumb"

ROOT = Path(__file__).parent.parent
#: Checkpoints of earlier formats, and the text of their scores.
GOLDEN_DATA = ROOT / "tests" / "data"

#: Number of Unicode characters: all code points but the surrogates.
UNICODE = 0x110000 - 0x800

#: Seconds after which a test gives up on a process, however busy the machine.
PATIENCE = 60.0


def takes_raw_names() -> bool:
    """Return whether a file name may be invalid utf-8; macOS refuses such names."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OSError):
        (Path(folder) / "\udcff").touch()
        return True
    return False


needs_raw_names = pytest.mark.skipif(
    not takes_raw_names(), reason="names of files must be utf-8 here"
)
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")

#: The environment of processes that tests start.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONWARNINGS": "error"}
# Buffer as for a user: how a command ends includes flushing what is left in the buffer.
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)


@pytest.fixture
def threads() -> Iterator[None]:
    """Let a test set the number of torch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def slowly(*values: Any) -> list[Any]:
    """Return values for ``pytest.mark.parametrize`` that only ``scripts/test --all`` tries."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def pytest_configure(config: pytest.Config) -> None:
    """Report the promises at the end of the session, and hide GPUs from all but the GPU tests.

    GPUs are also hidden from processes that tests start: tests expect the results of a CPU, and
    a forked process cannot use CUDA once its parent has.
    """
    if config.option.markexpr != "gpu":
        # Before anything asks torch for a GPU; pytest-xdist's workers inherit it.
        os.environ["CUDA_VISIBLE_DEVICES"] = ENVIRONMENT["CUDA_VISIBLE_DEVICES"] = ""
    if not config.pluginmanager.is_registered(promises):  # by -p
        config.pluginmanager.register(promises)


def pytest_collection_finish() -> None:
    """Spare the garbage collector the tests: it would go through all of them again and again."""
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip GPU tests if no GPU is visible."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and -m gpu")


@dataclass(frozen=True)
class Result:
    """A command's exit code and output."""

    code: int
    out: str
    err: str

    @property
    def without_notes(self) -> Result:
        """The same result without notes on stderr, such as the one about a missing compiler."""
        said = self.err.splitlines(keepends=True)
        return replace(self, err="".join(one for one in said if not one.startswith("note: ")))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The JSON lines on stdout."""
        return [json.loads(line) for line in self.out.split("\n") if line]


Cli = Callable[..., Result]

#: Sizes of a model and of its steps that take a moment.
SIZES = ("--hidden", 5, "--batch-size", 2, "--bptt", 9)
#: Options of a training run that is over in a moment.
QUICK = ("--steps", 3, *SIZES)
#: Options of a run that logs twice.
SHORT = ("--steps", 20, "--hidden", 9, "--batch-size", 3, "--bptt", 11)

#: Typer makes all commands and their options anew for every command line, which takes longer than
#: many of the commands that tests give.
commands_of = cache(typer.main.get_command)


def run_cli(*arguments: object, stdin: bytes = b"") -> Result:
    """Run a command in this process, with its own streams, which are no terminal."""
    from charrnn.cli import run_command

    words = [str(argument) for argument in arguments]
    out, err = io.BytesIO(), io.BytesIO()
    with contextlib.ExitStack() as stack:
        for name, stream in (
            ("stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8")),
            ("stdout", text_out := io.TextIOWrapper(out, "utf-8")),
            ("stderr", text_err := io.TextIOWrapper(err, "utf-8", errors="backslashreplace")),
        ):
            stack.enter_context(mock.patch.object(sys, name, stream))
        stack.enter_context(mock.patch.object(sys, "argv", ["charrnn", *words]))
        stack.enter_context(mock.patch.dict(os.environ, {"COLUMNS": "100"}))
        stack.enter_context(mock.patch.object(typer.main, "get_command", commands_of))
        code = run_command(words)
        text_out.flush()
        text_err.flush()
    return Result(code, out.getvalue().decode("utf-8", "surrogateescape"), err.getvalue().decode())


def command(*arguments: object) -> list[str]:
    """Return the command line that runs a command in a process of its own."""
    return [sys.executable, "-m", "charrnn", *map(str, arguments)]


def run_process(*arguments: object, stdin: bytes = b"", folder: Path | None = None) -> Result:
    """Run a command in a process of its own."""
    return _finished(command(*arguments), input=stdin, cwd=folder)


def run_code(code: str, *arguments: object, environment: Mapping[str, str] = ENVIRONMENT) -> Result:
    """Run a Python program in a process of its own."""
    return _finished([sys.executable, "-c", code, *map(str, arguments)], env=environment)


def _finished(words: list[str], **options: Any) -> Result:
    done = subprocess.run(words, capture_output=True, **{"env": ENVIRONMENT, **options})
    return Result(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode())


def run_unread(*arguments: object) -> tuple[int, str]:
    """Run a command in a process whose stdout is closed; return its exit code and stderr."""
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read().decode()
        return process.wait(timeout=PATIENCE), said


def read_until(process: subprocess.Popen[bytes], stream: IO[bytes], *starts: bytes) -> bytes:
    """Return the next line of a process's stream that begins with one of ``starts``.

    A process that is silent for too long is killed, so that the test fails instead of hanging.
    """
    line = b""
    while True:
        if not select.select([stream], [], [], PATIENCE)[0]:
            process.kill()
            pytest.fail(f"waited in vain for a line that begins with one of {starts}")
        byte = os.read(stream.fileno(), 1)  # one byte: what follows the line stays in the pipe
        assert byte, f"it ended before a line that begins with one of {starts}"
        line += byte
        if byte == b"\n":
            if line.startswith(starts):
                return line
            line = b""


def make_prose(length: int, seed: int = 1) -> str:
    """Return a text of words, sentences and lines that a model soon learns a little of."""
    chance = random.Random(seed)
    words = ["the", "a", "river", "stone", "bird", "and", "runs", "sings", "under", "grey", "cold"]
    text = ""
    while len(text) < length:
        line = " ".join(chance.choices(words, k=chance.randint(3, 8)))
        text += line.capitalize() + chance.choice((".", "!", "?", ",")) + "\n"
    return text[:length]


def make_text(length: int, alphabet: str = "abcdefgh \r\n紅樓夢é☃\U0001f600") -> str:
    """Return random characters, the same for the same length and alphabet."""
    return "".join(random.Random(length).choices(alphabet, k=length))


def skip_without(machine: str) -> None:
    """Skip the test if C for gcc's ``-march=machine`` cannot be compiled or run here."""
    needs = {"x86-64-v2": "sse4_2", "x86-64-v3": "avx2", "x86-64-v4": "avx512_bw"}.get(machine)
    if needs and not has_capability(needs):
        pytest.skip(f"the processor has no {needs}")
    if not compiles(f"-march={machine}"):
        pytest.skip("no C compiler with OpenMP that knows it")


def compiler_of(*, tiles: bool) -> list[str]:
    """Return the compiler, told not to use AMX's tiles where there might be any and none should."""
    option = "-mno-amx-bf16"
    return [*compiler.find_compiler(), *([option] if not tiles and compiles(option) else [])]


@cache
def loops_for(machine: str, *, tiles: bool = True) -> recurrence.Loops:
    """Return loops compiled for ``-march=machine``, or skip the test if they cannot run here."""
    skip_without(machine)
    loops = library.compile_library(recurrence.Loops, compiler_of(tiles=tiles), machine)
    assert isinstance(loops, recurrence.Loops), loops
    return loops


@cache
def compiles(*options: str) -> bool:
    """Return whether a C compiler with OpenMP takes these options and its output loads here.

    clang does not count: its OpenMP is not torch's.
    """
    command = compiler.find_compiler()
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "a.c", Path(folder) / "a.so"
        source.write_text(
            "#ifdef __clang__\n#error\n#endif\n"
            "#include <omp.h>\nint threads(void) { return omp_get_max_threads(); }\n"
        )
        flags = ("-fopenmp", "-fPIC", "-shared")
        words = [*command, *flags, *options, str(source), "-o", str(library)]
        try:
            if not command or subprocess.run(words, capture_output=True).returncode:
                return False
            ctypes.CDLL(str(library))
        except OSError:
            return False
    return True


needs_compiler = pytest.mark.skipif(not compiles(), reason="no C compiler with OpenMP")


@pytest.fixture(scope="session", autouse=True)
def remembering_compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let processes that tests start compile the same C with the same options only once."""
    if found := compiler.find_compiler():
        script, kept = ROOT / "tests" / "remembering-cc", tmp_path_factory.mktemp("compiled")
        with mock.patch.dict(ENVIRONMENT, CC=shlex.join(["sh", str(script), str(kept), *found])):
            yield
    else:
        yield


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """Do not wait for the disk in this process: no test cuts the power. Other processes do wait."""
    with mock.patch.object(os, "fsync", os.fstat):  # which refuses what is no open file, too
        yield


@pytest.fixture
def cli() -> Cli:
    return run_cli


@pytest.fixture(params=CELL_NAMES)
def cell(request: pytest.FixtureRequest) -> CellName:
    name: CellName = request.param
    return name


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of 6,007 ASCII characters."""
    path = tmp_path_factory.mktemp("texts") / "prose.txt"
    text = make_prose(6007)
    path.write_text(text, encoding="utf-8", newline="")
    yield path
    assert path.read_text(encoding="utf-8") == text, "a test has changed the shared text"


@pytest.fixture(scope="session")
def trained(prose: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small LSTM trained until it knows some words. Read only."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    result = run_cli(
        "train", prose, "--run", run, "--steps", 150, "--hidden", 32, "--batch-size", 8,
        "--bptt", 32, "--precision", "fp32", "--quiet",
    )  # fmt: skip
    assert result.without_notes == Result(0, f"{run}\n", "")
    return run


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, in which the test must leave nothing."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.rglob("*")) == []


def text_of(part: Part, start: int = 0, block_bytes: int = 1 << 18) -> str:
    """Return a part's text, from what ``codes`` yields."""
    blocks = list(part.codes(start, block_bytes=block_bytes))
    assert all(map(len, blocks)), "no block is empty"
    return "".join(codes.astype("<u4").tobytes().decode("utf-32-le") for codes in blocks)


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return str(path)


def make_part(
    folder: Path, content: str | bytes, encoding: str = "utf-8", name: str = "text"
) -> Part:
    """Write a text to a file and return all of it as a part."""
    return scan([write(folder / name, content, encoding)], encoding).whole


def make_framed_part(folder: Path, text: str, files: int = 3) -> Part:
    """Return a text split over files, as a part without the character added at either end."""
    framed = f"<{text}>"
    cuts = [len(framed) * i // files for i in range(files + 1)]
    pieces = (framed[start:stop] for start, stop in pairwise(cuts))
    names = [write(folder / f"{i}.txt", piece) for i, piece in enumerate(pieces)]
    return scan(names, block_bytes=64).part(1, len(framed) - 1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def one_line(result: Result) -> str:
    """Check that a failed command printed one line, on stderr only; return it."""
    assert result.out == ""
    assert result.err.startswith("charrnn: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    assert result.err[:-1].isprintable()
    return result.err


def on_a_full_disk(*words: object) -> tuple[int, str]:
    """Run a command in a process whose stdout is full; return its exit code and stderr."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command(*words), stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT)
    return done.returncode, done.stderr.decode()


def documented_fields(start: str, column: int = 0) -> set[str]:
    """Return the field names in a column of the first table after ``start`` in docs/cli.md."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    table = page.partition(f"\n{start}")[2].partition("|---|")[2].partition("\n\n")[0]
    cells = [row.split("|")[1:][column] for row in table.splitlines()[1:]]
    # Parentheses hold the option without which the field is missing.
    return {name for cell in cells for name in re.findall(r"\w+", re.sub(r"\(.*?\)", "", cell))}


def assert_one_line(error: pytest.ExceptionInfo[CharrnnError], *words: str) -> None:
    message = str(error.value)
    assert message.isprintable()
    for word in words:
        assert word in message


def said(action: Callable[[], object]) -> str:
    """Return the one-line message of the RunFolderError that an action raises."""
    with pytest.raises(RunFolderError) as caught:
        action()
    assert str(caught.value).isprintable()
    return str(caught.value)


def give_memory(monkeypatch: pytest.MonkeyPatch, megabytes: int) -> None:
    """Make the machine appear to have this much memory."""
    sysconf, pages = os.sysconf, megabytes * 1_000_000 // os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(os, "sysconf", lambda n: pages if n == "SC_PHYS_PAGES" else sysconf(n))


class FakeClock:
    """A clock for the training loop that advances by ``tick`` seconds whenever it is read."""

    def __init__(self, tick: float) -> None:
        self.time, self.tick, self.stopped = 0.0, tick, 0.0

    def now(self) -> float:
        self.time += self.tick
        return self.time


def refusing(number: int) -> Callable[..., NoReturn]:
    """Return a function that fails like a system call, with this errno."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run trained on bytes that are not text."""
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "noise").write_bytes(bytes(range(256)) * 8)
    run = folder / "run"
    arguments = ("train", folder / "noise", "--encoding", "bytes", "--run", run, *QUICK)
    assert run_cli(*arguments).code == 0
    return run
