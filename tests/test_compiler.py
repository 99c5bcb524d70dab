"""How C is compiled: by whom, when, and what is said where it cannot be."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from charrnn.compute import compiler, library, products, recurrence, steps
from charrnn.compute.library import compile_library
from charrnn.compute.machine import machine
from tests.conftest import PATIENCE, QUICK, Cli, needs_compiler


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Provide the folder for temporary files, and check that nothing is left in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield folder
    assert list(folder.iterdir()) == []


def script(path: Path, text: str) -> list[str]:
    """Write a shell script and return the command that runs it."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return [str(path)]


@pytest.fixture
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget during the test what this process has compiled."""
    monkeypatch.setattr(library, "_made", {})
    monkeypatch.setattr(compiler, "_taken", set())
    monkeypatch.setattr(compiler, "_has_second_core", lambda: True)


@pytest.mark.usefixtures("temporary", "asked_anew")
def test_without_a_compiler_there_are_no_loops_and_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = str(tmp_path / "none")
    assert compile_library(recurrence.Loops, ["false", "\n"]) == "false '\\n' does not compile it"
    assert compile_library(recurrence.Loops, [missing]) == (
        f"{missing} cannot be used: [Errno 2] No such file or directory: {missing!r}"
    )
    monkeypatch.setenv("CC", "ccache gcc-99")
    assert compiler.find_compiler() == ["ccache", "gcc-99"]
    monkeypatch.setenv("CC", "gcc '-O3")
    assert compiler.find_compiler() == [], "a quote that is never closed names no compiler"
    assert compiler.why_no_compiler() == "CC names none"
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert compiler.find_compiler() == []
    for ask, kind in ((recurrence.loops, recurrence.Loops), (steps.steps, steps.Steps)):
        assert (ask(), products.why_none(kind)) == (None, "none is found here")


def test_on_macos_the_newest_gcc_is_taken_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS plain gcc is Apple's clang, without OpenMP."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("gcc", "cc", "gcc-10"):
        script(tmp_path / name, "exit 1")
    monkeypatch.setattr("sys.platform", "linux")
    assert compiler.find_compiler() == [str(tmp_path / "gcc")]
    monkeypatch.setattr("sys.platform", "darwin")
    assert compiler.find_compiler() == []
    for name in ("gcc-11", "gcc-14"):
        script(tmp_path / name, "exit 1")
        assert compiler.find_compiler() == [str(tmp_path / name)]


@pytest.mark.usefixtures("temporary")
def test_the_compiler_s_own_reason_is_told(tmp_path: Path) -> None:
    """The reason is from the last attempt, which passes the fewest options."""
    wished = 'case "$*" in *-march*) echo "cc: error: no -march" >&2; exit 1;; esac'
    says = r"printf 'In file included\nwarning: old\ncc: error: no \001omp.h\ncc: error: 2\n' >&2"
    command = script(tmp_path / "cc", f"{wished}\n{says}\nexit 1")
    said = f"{command[0]} does not compile it: cc: error: no \\x01omp.h"
    assert compile_library(recurrence.Loops, command) == said
    assert compile_library(steps.Steps, command) == said


@needs_compiler
@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("kind", [recurrence.Loops, steps.Steps])
def test_clang_is_refused(kind: type[library.Library]) -> None:
    command = [*compiler.find_compiler(), "-D__clang__"]
    said = compile_library(kind, command)
    assert isinstance(said, str)
    assert said.startswith(f"{shlex.join(command)} does not compile it: ")
    assert said.endswith("error \"clang's OpenMP would be a second one beside torch's: take gcc\"")


@needs_compiler
@pytest.mark.usefixtures("temporary")
def test_a_compiler_that_would_not_round_exponentials_is_refused() -> None:
    """gcc defines this from version 12 on, with -fassociative-math and what includes it."""
    said = compile_library(recurrence.Loops, [*compiler.find_compiler(), "-D__ASSOCIATIVE_MATH__"])
    assert isinstance(said, str)
    assert said.endswith(
        'error "sums must stay in order: leave -fassociative-math, -funsafe-math-optimizations '
        'out of CC"'
    )


@needs_compiler
@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("option", ["-ffast-math", "-ffinite-math-only"])
def test_a_compiler_that_would_lose_nan_is_refused(option: str) -> None:
    said = compile_library(recurrence.Loops, [*compiler.find_compiler(), option])
    assert isinstance(said, str)
    assert said.endswith('error "NaN must stay NaN: leave -ffast-math out of CC"')


@pytest.mark.usefixtures("temporary")
def test_the_linker_s_reason_is_told(tmp_path: Path) -> None:
    says = "/usr/bin/ld: libgomp.a: no shared object", "collect2: error: ld returned 1 exit status"
    command = script(tmp_path / "cc", f"printf '{says[0]}\\n{says[1]}\\n' >&2\nexit 1")
    said = f"{command[0]} does not compile it: {says[0]}"
    assert compile_library(recurrence.Loops, command) == said
    missing = "collect2: fatal error: cannot find 'ld'"
    command = script(tmp_path / "cc", f'echo "{missing}" >&2\nexit 1')
    said = f"{command[0]} does not compile it: {missing}"
    assert compile_library(recurrence.Loops, command) == said


@needs_compiler
@pytest.mark.usefixtures("temporary")
def test_without_a_path_the_linker_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service may start a command with an empty environment."""
    command = compiler.find_compiler()
    monkeypatch.delenv("PATH")
    assert isinstance(compile_library(recurrence.Loops, command), recurrence.Loops)


@pytest.mark.usefixtures("temporary")
def test_where_nothing_may_be_run_the_way_out_is_told(tmp_path: Path) -> None:
    """A file that is no library fails to load like one in a folder mounted noexec."""
    command = script(tmp_path / "cc", 'while [ "$1" != -o ]; do shift; done; echo "" >"$2"')
    said = compile_library(recurrence.Loops, command)
    assert isinstance(said, str)
    assert said.startswith(f"what {command[0]} made cannot be loaded: ")
    assert said.endswith("; TMPDIR names its folder")


@needs_compiler
@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
@pytest.mark.usefixtures("temporary")
def test_a_compiler_of_c_plus_plus_compiles_c() -> None:
    assert isinstance(compile_library(recurrence.Loops, ["g++"]), recurrence.Loops)


@pytest.mark.usefixtures("asked_anew")
def test_no_compiler_is_run_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARRNN_NATIVE", "0")
    monkeypatch.setattr(library, "compile_library", None)
    assert compiler.find_compiler() == []
    assert recurrence.loops() is None
    assert products.why_none(recurrence.Loops) == "CHARRNN_NATIVE=0 asks for none"


@pytest.mark.usefixtures("temporary", "asked_anew")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_command_does_without_c_where_none_is_wanted(
    cell: str, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARRNN_NATIVE", "0")
    monkeypatch.setenv("CC", shlex.join(script(tmp_path / "cc", 'touch "$0 ran"; exit 1')))
    run = tmp_path / "run"
    for words in (
        ("train", prose, "--run", run, "--cell", cell, *QUICK),
        ("evaluate", run, "--part", "valid", "--exact", "--dynamic"),
        ("inspect", run, "--part", "valid"),
        ("sample", run, "--length", 9),
    ):
        result = cli(*words)
        assert result.code == 0, result.err
    assert not (tmp_path / "cc ran").exists()


def test_without_a_folder_there_are_no_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    said = compile_library(recurrence.Loops, script(tmp_path / "cc", f"touch {tmp_path}/ran"))
    assert isinstance(said, str) and "No such file or directory" in said
    assert not (tmp_path / "ran").exists()


@needs_compiler
@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("refused", ["-mprefer-vector-width", "-march"])
def test_a_compiler_may_refuse_what_is_only_wished(refused: str, tmp_path: Path) -> None:
    usual = shlex.join(compiler.find_compiler())
    refuse = f'case "$*" in *{refused}*) exit 1;; esac'
    command = script(tmp_path / "cc", f'{refuse}\nexec {usual} "$@"')
    assert isinstance(compile_library(recurrence.Loops, command), recurrence.Loops)


@needs_compiler
@pytest.mark.usefixtures("temporary", "asked_anew")
def test_loops_for_any_processor_are_told(
    tmp_path: Path, cli: Cli, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are slower, and may differ in the last bits, as after a compiler killed for memory."""
    usual = shlex.join(compiler.find_compiler())
    says = 'case "$*" in *-march*) echo "Error: no such instruction" >&2; exit 1;; esac'
    monkeypatch.setenv("CC", shlex.join(script(tmp_path / "cc", f'{says}\nexec {usual} "$@"')))
    monkeypatch.setattr("platform.system", lambda: "Linux")  # on macOS it is not told
    said = cli("train", prose, "--run", tmp_path / "run", *QUICK).err
    assert (
        f"note: training is slower than it could be: {tmp_path / 'cc'} does not compile for this "
        "processor: Error: no such instruction\n"
    ) in said
    assert machine().endswith(", loops compiled for any processor")
    monkeypatch.setattr(library, "_made", {})
    monkeypatch.delenv("CC")
    assert machine().endswith(", loops compiled")


@pytest.mark.parametrize(
    ("features", "hidden"), [("fp asimd sve sve2", False), ("fp asimd", False), ("fp sve2", True)]
)
def test_sve_that_a_virtual_machine_hides_is_not_used(
    features: str, hidden: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor: 0\nFeatures\t: {features}\n")
    assert compiler._hides_sve(tmp_path / "cpuinfo") is hidden
    monkeypatch.setattr(compiler, "_hides_sve", lambda: hidden)
    command = script(tmp_path / "cc", f'echo "$*" >>{tmp_path}/runs\nexit 1')
    assert isinstance(compile_library(recurrence.Loops, command), str)
    assert ("-march=native" in (tmp_path / "runs").read_text()) is not hidden


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_compiler_that_does_not_end_is_ended_with_all_it_started(
    interrupted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives = tmp_path / "lives"  # a pipe that every started process holds open
    os.mkfifo(lives)
    reader = os.open(lives, os.O_RDONLY | os.O_NONBLOCK)
    started = f'exec 9>{lives}\necho >>{tmp_path}/runs\ntouch "$TMPDIR/ccX.s"\nsleep 30 &\n'

    wait = subprocess.Popen.wait

    def waiting(child: subprocess.Popen[bytes], seconds: float | None = None) -> int:
        # On a busy machine the compiler may run before Popen returns, or long after.
        end = time.monotonic() + 60
        while not (tmp_path / "runs").exists() and time.monotonic() < end:
            time.sleep(0.01)
        (tmp_path / "waiting").touch()
        return wait(child, seconds)

    monkeypatch.setattr(subprocess.Popen, "wait", waiting)
    if interrupted:
        started += f"until [ -e {tmp_path}/waiting ]; do sleep 0.01; done\n"
        previous = signal.signal(signal.SIGALRM, Mock(side_effect=KeyboardInterrupt))
        try:
            with pytest.raises(KeyboardInterrupt):
                compile_library(
                    recurrence.Loops, script(tmp_path / "cc", f"{started}kill -ALRM $PPID\nwait")
                )
        finally:
            signal.signal(signal.SIGALRM, previous)
    else:
        monkeypatch.setattr(compiler, "_COMPILE_SECONDS", 2)
        command = script(tmp_path / "cc", f"{started}wait")
        assert compile_library(recurrence.Loops, command) == f"{command[0]} took more than 2 s"
    assert (tmp_path / "runs").read_text() == "\n", "it is not tried twice"
    assert select.select([reader], [], [], 10)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Refuse to compile; return what gives the files that were tried, each once."""
    log = tmp_path / "tried"
    note = f'for word; do case $word in */*.c) echo "${{word##*/}}" >>{log};; esac; done; exit 1'
    monkeypatch.setenv("CC", shlex.join(script(tmp_path / "noting", note)))

    def tried() -> list[str]:
        return [*dict.fromkeys(log.read_text().split())] if log.exists() else []

    return tried


@pytest.mark.usefixtures("temporary", "asked_anew")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train {prose} --run {run}", compiler.TRAINING),
        ("train {prose} --run {run} --device cuda", ()),
        ("compare {prose} --run {run} --cell gru --seeds 1", compiler.TRAINING),
        (
            "compare {prose} --run {run} --cell gru --seeds 1 --report {run}.html",
            (*compiler.TRAINING, *compiler.SAMPLING),
        ),
        ("inspect {trained} --part valid", compiler.TRAINING),
        ("inspect {trained}", ()),
        ("evaluate {trained} --part valid", compiler.SCORING),
        (
            "evaluate {trained} --part valid --report {run}.html",
            (*compiler.SCORING, *compiler.SAMPLING),
        ),
        ("sample {trained} --length 2", compiler.SAMPLING),
    ],
)
def test_a_command_compiles_ahead_all_that_it_calls_and_no_more(
    words: str,
    expected: tuple[str, ...],
    cli: Cli,
    prose: Path,
    trained: Path,
    tmp_path: Path,
    noted: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was begun is waited for; nothing is compiled while somebody waits."""
    monkeypatch.setattr(library, "compile_library", None)
    command, *rest = words.format(prose=prose, trained=trained, run=tmp_path / "run").split()
    makes = QUICK if command in {"train", "compare"} else ()
    result = cli(command, *rest, *makes)
    assert result.code == (2 if "cuda" in words else 0), result.err
    assert noted() == [*expected]
    assert {*expected} == compiler._taken


@needs_compiler
@pytest.mark.usefixtures("asked_anew")
def test_what_is_compiled_ahead_is_loaded_once_and_removed_then(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "compile_library", None)
    with compiler.compiling(compiler.SAMPLING, "auto"):
        made = steps.steps()
        assert made is not None
        assert not [*temporary.iterdir()]
        assert made.matrix(torch.zeros(7, 3)).shape[1] == 3
        with compiler.compiling(compiler.SAMPLING, "cpu"):
            assert not compiler._ahead, "this process has it already"
    assert steps.steps() is made


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.usefixtures("asked_anew")
def test_what_nobody_waits_for_is_ended_with_the_command(
    at_once: bool, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what would have been compiled next never begins."""
    lives = tmp_path / "lives"
    os.mkfifo(lives)
    reader = os.open(lives, os.O_RDONLY | os.O_NONBLOCK)
    says = f"exec 9>{lives}\necho >>{tmp_path}/runs\nexec sleep 60"
    monkeypatch.setenv("CC", shlex.join(script(tmp_path / "cc", says)))
    began = time.monotonic()
    with compiler.compiling(compiler.TRAINING, "auto") as end:
        while not (tmp_path / "runs").exists():
            assert time.monotonic() < began + PATIENCE
            time.sleep(0.01)
        if at_once:  # as before a second signal ends the process
            end()
            assert (os.read(reader, 1), [*temporary.iterdir()]) == (b"", [])
    assert time.monotonic() < began + PATIENCE
    assert (tmp_path / "runs").read_text() == "\n"
    assert not compiler._ahead
    assert os.read(reader, 1) == b"", "no process holds the other end"
    os.close(reader)


@pytest.mark.usefixtures("temporary")
def test_nothing_is_begun_where_torch_would_have_to_share_the_only_core(
    noted: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "_taken", set())
    for allowed, mine in ((1, 8), (None, 1)):
        monkeypatch.setattr(compiler, "allowed_cores", lambda allowed=allowed: allowed)
        monkeypatch.setattr(compiler, "cores", lambda mine=mine: mine)
        with compiler.compiling(compiler.TRAINING, "auto"):
            assert not compiler._ahead
    assert noted() == []
