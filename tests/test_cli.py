from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import io
import json
import math
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import typer

from charrnn import __version__, compiler, recipe, training
from charrnn.baselines import COMPRESSORS
from charrnn.checkpoint import load, read_description, save
from charrnn.cli import app
from charrnn.comparison import Plan
from charrnn.config import TextChoices, TextSource, TrainConfig
from charrnn.corpus import Corpus, _scan_file, scan
from charrnn.errors import NonFiniteError, UsageError
from charrnn.evaluation import score
from charrnn.reading import TextRecord
from charrnn.runfolder import RunFolder
from charrnn.sample_view import print_as_made, print_samples
from charrnn.sampling import Piece
from charrnn.stdio import lossy, read_prompt, waits_unread
from charrnn.stepper import Stepper
from charrnn.steps import steps
from charrnn.subject import load_subjects
from charrnn.trained import load_model
from charrnn.vocabulary import Vocabulary
from tests.conftest import (
    ENVIRONMENT,
    PATIENCE,
    Cli,
    Result,
    command,
    documented_fields,
    log_of,
    make_prose,
    needs_full,
    needs_raw_names,
    read_until,
    refusing,
    run_cli,
    run_unread,
)

COMMANDS = tuple(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
#: Options of ``train`` and ``compare`` that say where and how to run, not what to train, or that
#: are turned into something else.
NOT_OF_THE_RUN = {
    "texts", "cell", "valid", "run", "resume", "init_from", "keep", "device", "report", "as_json",
    "quiet",
}  # fmt: skip
#: Options of a training run that is over in a moment.
QUICK = ("--steps", 3, "--hidden", 5, "--batch-size", 2, "--bptt", 9)


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


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run trained on bytes that are not text."""
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "noise").write_bytes(bytes(range(256)) * 8)
    run = folder / "run"
    arguments = ("train", folder / "noise", "--encoding", "bytes", "--run", run, *QUICK)
    assert run_cli(*arguments).code == 0
    return run


class TestHelp:
    @pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
    def test_names_every_command(self, cli: Cli, arguments: tuple[str, ...]) -> None:
        result = cli(*arguments)
        assert (result.code, result.err) == (0, "")
        for name in COMMANDS:
            assert f"  {name} " in result.out
        commands = result.out.partition("Commands:")[2]
        assert "..." not in commands, "a command's line is cut off"

    @pytest.mark.parametrize("name", COMMANDS)
    def test_of_a_command(self, cli: Cli, name: str) -> None:
        result = cli(name, "--help")
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith(f"Usage: charrnn {name} ")
        assert "[[" not in result.out.splitlines()[0]

    @pytest.mark.parametrize("name", COMMANDS)
    def test_shows_options_in_groups(self, cli: Cli, name: str) -> None:
        """Each option is in one; an option without a group would appear in the last."""
        out = cli(name, "--help").out.partition("\nArguments:\n")[2]
        known = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        flags = [param.opts[0] for param in known.params if param.param_type_name == "option"]
        shown = re.findall(r"^  (--[a-z-]+)", out, re.M)
        assert sorted(shown) == sorted(flags)
        assert len(re.findall(r"^[A-Z][a-z ]+:$", out, re.M)) >= 3
        last = re.findall(r"^  (?:-h, )?(--[a-z-]+)", out.rpartition("Device and output:")[2], re.M)
        assert last[0] in ("--device", "--weights")
        assert last[-1] == "--help"
        assert {*last[1:-1]} <= {
            "--device", "--precision", "--show", "--report", "--per-char", "--json", "--quiet",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("given", "spins"),
        [({}, "4000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    )
    def test_waiting_threads_spin_for_a_while(self, given: dict[str, str], spins: str) -> None:
        """The variable is set before torch is loaded, unless the environment says otherwise."""
        code = (
            "import os, sys\nfrom charrnn import cli\nsys.argv[1:] = ['--version']\n"
            "try:\n    cli.main()\nfinally:\n"
            "    print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
        )
        others = {
            n: v for n, v in ENVIRONMENT.items() if n[:4] != "GOMP" and n != "OMP_WAIT_POLICY"
        }
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, capture_output=True, text=True, env=others | given)
        assert done.stdout.splitlines()[-1] == f"{spins} False"

    @pytest.mark.parametrize(
        ("given", "allowed", "threads"),
        [({}, 3, "3"), ({}, None, "None"), ({"OMP_NUM_THREADS": "7"}, 3, "7")],
    )
    def test_no_more_threads_than_there_is_time_for(
        self, given: dict[str, str], allowed: int | None, threads: str
    ) -> None:
        """The variable is set before torch is loaded, unless the environment says otherwise."""
        code = (
            "import os, sys\nfrom charrnn import cli, limits\nsys.argv[1:] = ['--version']\n"
            f"limits.allowed_cores = lambda: {allowed}\ntry:\n    cli.main()\nfinally:\n"
            "    print(os.environ.get('OMP_NUM_THREADS'), 'torch' in sys.modules)"
        )
        others = {n: v for n, v in ENVIRONMENT.items() if n != "OMP_NUM_THREADS"}
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, capture_output=True, text=True, env=others | given)
        assert done.stdout.splitlines()[-1] == f"{threads} False"

    @pytest.mark.parametrize(
        "fewer",
        [
            {"OMP_THREAD_LIMIT": "1"},
            {"OMP_THREAD_LIMIT": "1", "MKL_NUM_THREADS": "2"},
            *(
                pytest.param(fewer, marks=pytest.mark.slow)
                for fewer in (
                    {"OMP_THREAD_LIMIT": "1", "MKL_DOMAIN_NUM_THREADS": "MKL_DOMAIN_ALL=2"},
                    {"OMP_DYNAMIC": "true"},
                    {"OMP_MAX_ACTIVE_LEVELS": "0"},
                )
            ),
        ],
    )
    def test_fewer_threads_than_torch_counts_on_change_no_score(
        self, cli: Cli, trained: Path, fewer: dict[str, str]
    ) -> None:
        words = ("evaluate", trained, "--part", "valid", "--json")
        environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "2", **fewer}
        done = subprocess.run(
            command(*words), capture_output=True, env=environment, timeout=PATIENCE
        )
        (row,) = json.loads(done.stdout)
        (right,) = json.loads(cli(*words).out)
        assert row["nats_per_char"] == pytest.approx(right["nats_per_char"], rel=1e-5)

    def test_freed_memory_is_kept(self) -> None:
        code = (
            "import sys\nfrom charrnn import cli\nsys.argv[1:] = ['--version']\n"
            "cli.keep_freed_memory = lambda: print('kept')\ncli.main()"
        )
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT)
        assert done.stdout == f"kept\ncharrnn {__version__}\n"

    def test_version(self, cli: Cli) -> None:
        assert cli("--version") == Result(0, f"charrnn {__version__}\n", "")


def test_on_windows_it_says_where_it_runs() -> None:
    """It does so before it imports modules that Windows lacks."""
    code = "import sys\nfrom charrnn.__main__ import main\nsys.platform = 'win32'\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = "charrnn: Windows lacks what it needs: use it in WSL (README.md)\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


@pytest.mark.parametrize(
    "words", [["-m", "charrnn"], ["-c", "from charrnn.__main__ import main; main()"]]
)
def test_ctrl_c_during_the_imports_ends_it_without_a_word(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "typer.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, env={**ENVIRONMENT, "PYTHONPATH": paths}
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


#: A charrnn that is interrupted while numpy is imported.
INTERRUPTED = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy._core.numerictypes":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from charrnn.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "words",
    [
        "train {prose} --steps 1",
        "compare {prose} --steps 1",
        "sample {trained} --length 5",
        "evaluate {trained} --part valid",
        "inspect {trained}",
    ],
)
def test_ctrl_c_while_numpy_is_imported_ends_the_command(
    trained: Path, prose: Path, empty_folder: Path, words: str
) -> None:
    """When torch imports numpy, it swallows all exceptions and goes on with half of it."""
    arguments = shlex.split(words.format(trained=trained, prose=prose))
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments], capture_output=True, env=ENVIRONMENT
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


class TestBadInput:
    """One line says what is wrong and what to do; the exit code is 1 or 2; nothing is written."""

    @pytest.fixture
    def texts(self, tmp_path: Path, trained: Path) -> dict[str, Path]:
        """Texts, most of them unusable in some way, and the trained run, by name."""
        folder = tmp_path / "texts"
        folder.mkdir()
        content = {
            "letter": b"a",
            "latin": "é".encode("latin-1") * 9,
            "prose": make_prose(300).encode(),
        }
        paths = {name: folder / name for name in (*content, "missing", "hollow")}
        for name, data in content.items():
            paths[name].write_bytes(data)
        paths["hollow"].mkdir()
        return {**paths, "trained": trained}

    @pytest.mark.parametrize(
        ("words", "code", "says"),
        [
            # The text.
            ("train {trained}", 1, "no text in {trained}: {trained}: left out (written by a"),
            ("train {prose} --steps 1e3", 2, "'--steps': not a whole number (see charrnn"),
            ("train {prose} --lr x", 2, "'--lr': not a number (see charrnn"),
            ("train {prose} --steps", 2, "(see charrnn train --help)"),
            ("train {prose} --steps 1 --encoding=", 2, "--encoding is empty"),
            ("compare {prose} --steps 1 --encoding=", 2, "--encoding is empty"),
            ("evaluate {trained} --text {prose} --per-char -", 2, "--per-char writes a file"),
            (
                "train {letter}",
                1,
                "{letter}: a text of length 1 leaves 0 to train on: give at least",
            ),
            ("train https://a.org/b.txt", 1, "https://a.org/b.txt is an address, not a file: down"),
            ("train https://a.org/b?c=d", 1, "is an address, not a file: download it first"),
            ("compare http://a.org/b.txt --steps 1", 1, "is an address, not a file: download"),
            ("train {prose} --valid {missing}", 1, "there is no file"),
            ("train {prose} --valid {letter}", 1, "at least 2 characters"),
            ("train {prose} --valid {prose} --valid-share 0.2", 2, "cannot be used together"),
            # Numbers.
            ("train {prose} --lr nan", 2, "--lr must be a number above 0, at most 1e38, not nan"),
            ("train {prose} --hidden 9999999", 2, "smaller --hidden"),
            ("train {prose} --loss-last 9999", 2, "--loss-last 9999"),
            ("train {prose} --clip-norm -1", 2, "above 0, at most 1e38, or 0 for none, not -1"),
            ("train {prose} --steps 1 --minutes 1", 2, "give one budget"),
            ("train {prose} --patience 2 --valid-share 0", 2, "nothing is held out"),
            ("train {prose} --validate-every 2 --valid-share 0", 2, "nothing is held out"),
            ("train {prose} --min-count 2 --encoding bytes", 2, "every byte is known"),
            ("train {prose} --cell mlp", 2, "'--cell': 'mlp' is not one of 'rnn', 'lstm'"),
            ("train {prose} --json --quiet", 2, "--json and --quiet cannot be used together"),
            # Words and combinations.
            ("train {prose} --device tpu", 2, "--device"),
            ("train {prose} --precision fp8", 2, "--precision"),
            ("train {prose} --bogus", 2, "--bogus"),
            ("trian {prose}", 2, "train"),
            ("train --resume", 2, "--resume needs --run"),
            (
                "train --resume --run {missing} --init-from {trained}",
                2,
                "--init-from: the run has weights of its own",
            ),
            ("train {prose} --steps 1 --run=", 2, "--run is empty"),
            ("compare {prose} --steps 1 --run=", 2, "--run is empty"),
            ("train {prose} --steps 1 --init-from=", 2, "CHECKPOINT is empty"),
            ("sample ''", 2, "CHECKPOINT is empty"),
            ("evaluate {prose} '' --part valid", 2, "CHECKPOINT is empty"),
            ("inspect '' --part valid", 2, "CHECKPOINT is empty"),
            ("train '' --steps 1", 1, "there is no file ''"),
            ("compare '' --steps 1", 1, "there is no file ''"),
            ("train {prose} --init-from {missing}", 1, "no such checkpoint"),
            ("train {prose} --init-from {prose}", 1, "{prose}: a text, not a checkpoint"),
            ("train {prose} --init-from {trained} --hidden 9", 2, "has 32: leave it out"),
            ("train {prose} --init-from {trained} --cell gru", 2, "has lstm"),
            ("train {prose} --init-from {trained} --min-count 3", 2, "--min-count"),
            ("train {prose} --init-from {trained} --encoding bytes", 2, "--encoding bytes"),
            # Sampling.
            ("sample", 2, "Missing argument"),
            ("sample {missing}", 1, "no such checkpoint"),
            ("sample {prose}", 1, "{prose}: a text, not a checkpoint: train on it, and name"),
            ("sample {trained} --temperature nan", 2, "--temperature"),
            ("sample {trained} --top-k 0", 2, "--top-k"),
            ("sample {trained} --top-p 0", 2, "--top-p"),
            ("sample {trained} --unknown ignore", 2, "--unknown"),
            ("sample {trained} --length 0 --json", 2, "--json"),
            # Scoring.
            ("evaluate", 2, "Missing"),
            ("evaluate {trained}", 2, "--text"),
            ("evaluate {trained} --text {latin} --part valid", 1, "the text that its run read"),
            ("evaluate {trained} {prose}", 2, "give a text: --text FILE, or --part valid"),
            ("inspect {trained} --text {letter}", 1, "a text of 1 character is too short to insp"),
            ("evaluate {trained} --part test", 2, "no test part"),
            ("evaluate {trained} --part valid --encoding utf-8", 2, "--encoding"),
            ("evaluate {trained} --part valid --by-position 0", 2, "--by-position"),
            ("evaluate {trained} --part valid --after=", 2, "--after"),
            ("evaluate {trained} {trained} --text {prose} --show", 2, "one checkpoint"),
            ("evaluate {trained} {trained} --text {prose} --per-char {missing}", 2, "one check"),
            ("evaluate {trained} --text {prose} --show --json", 2, "--json"),
            ("evaluate {trained} --text {prose} --per-char {hollow}", 1, "directory"),
            ("evaluate {trained} --text {letter}", 1, "at least 2 characters"),
            ("evaluate {trained} --text {latin}", 1, "--encoding"),
            ("evaluate {trained} --text {prose} --encoding bytes", 2, "--encoding bytes"),
            ("evaluate {trained} {missing} --text {prose}", 1, "no such checkpoint"),
        ],
    )
    def test_is_refused_in_one_line(
        self,
        cli: Cli,
        texts: dict[str, Path],
        empty_folder: Path,
        words: str,
        code: int,
        says: str,
    ) -> None:
        before = {path: path.read_bytes() for path in texts["trained"].iterdir()}
        result = cli(*(word.format(**texts) for word in shlex.split(words)))
        assert says.format(**texts) in one_line(result)
        assert result.code == code
        assert {path: path.read_bytes() for path in texts["trained"].iterdir()} == before

    def test_a_run_folder_named_is_not_left_behind_either(
        self, cli: Cli, texts: dict[str, Path], tmp_path: Path
    ) -> None:
        run = tmp_path / "new" / "run"
        one_line(cli("train", texts["letter"], "--run", run))
        assert not run.parent.exists()

    def test_standard_input_is_named_as_such(
        self, cli: Cli, trained: Path, empty_folder: Path
    ) -> None:
        line = one_line(cli("train", "-", stdin=b"abc\xff"))
        assert "standard input is not utf-8 text at byte 3" in line
        line = one_line(cli("evaluate", trained, "--text", "-", stdin=b"a"))
        assert "standard input: a text to score needs at least 2 characters" in line

    @pytest.mark.parametrize("name", ["evaluate", "inspect"])
    def test_a_checkpoint_is_looked_for_before_standard_input_is_read(
        self, cli: Cli, tmp_path: Path, name: str
    ) -> None:
        line = one_line(cli(name, tmp_path / "missing", "--text", "-", stdin=b""))
        assert "no such checkpoint" in line

    def test_a_path_cannot_steer_the_terminal(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "a\x1bb"
        shutil.copytree(trained, run)
        said = cli("train", "--run", run, "--resume").err
        scored = cli("evaluate", run, "--text", prose, "--after", "e", "--by-position", 9)
        said += scored.err
        said += cli("train", prose, "--run", tmp_path / "c\x1bd", *QUICK).err
        assert f"{tmp_path}/a\\x1bb: finished already" in said
        assert f"{tmp_path}/a\\x1bb: the model was trained on" in said
        assert f"run     {tmp_path}/c\\x1bd\n" in said
        assert "\x1b" not in scored.out + said
        assert scored.out.count(f"{tmp_path}/a\\x1bb") == 3, "table, --after, --by-position"
        as_json = json.loads(cli("evaluate", run, "--text", prose, "--json").out)
        assert [row["checkpoint"] for row in as_json] == [str(run)]

    def test_bf16_on_a_cpu_without_it(
        self, cli: Cli, texts: dict[str, Path], empty_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("charrnn.starting.multiplies_bf16", lambda device: False)
        result = cli("train", texts["prose"], "--precision", "bf16", "--device", "cpu")
        assert "--precision bf16 needs a CPU with AVX512-BF16 or a CUDA GPU" in one_line(result)
        assert result.code == 2

    def test_weights_of_fewer_bits_on_a_gpu(
        self, cli: Cli, texts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("charrnn.device.choose_device", lambda _: torch.device("meta"))
        result = cli("sample", texts["trained"], "--weights", "bf16")
        assert "--weights bf16 is for a CPU: leave it out on meta" in one_line(result)
        assert result.code == 2

    def test_a_gpu_that_is_not_there(
        self, cli: Cli, texts: dict[str, Path], empty_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for arguments in (("train", texts["prose"]), ("sample", texts["trained"])):
            result = cli(*arguments, "--device", "cuda")
            assert "--device cpu works" in one_line(result)
            assert result.code == 2

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("train", "prose", "--run", "loop"), "cannot make the run's folder: "),
            (("evaluate", "trained", "--part", "valid", "--per-char", "loop/a"), "cannot write"),
            (("evaluate", "trained", "--part", "valid", "--report", "loop/a.html"), "cannot save"),
        ],
    )
    def test_a_link_that_leads_to_itself(
        self,
        cli: Cli,
        texts: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        words: tuple[str, ...],
        said: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("loop").symlink_to("loop")
        result = cli(*(texts.get(word, word) for word in words))
        assert said in result.err.splitlines()[-1]
        assert result.code == 1

    @pytest.mark.parametrize("words", [("sample", "trained"), ("train", "prose", "--steps", 1)])
    def test_a_current_folder_that_was_removed(
        self,
        cli: Cli,
        texts: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        words: tuple[object, ...],
    ) -> None:
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        result = cli(*(texts.get(str(word), word) for word in words))
        assert "the current folder cannot be found: No such file or directory" in one_line(result)
        assert result.code == 1

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."),
            RuntimeError("std::bad_alloc"),
            torch.OutOfMemoryError("CUDA out of memory."),
            torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(...)`"),
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
            RuntimeError("MPS backend out of memory (MPS allocated: 7.64 GiB, other ...)"),
        ],
    )
    def test_memory_that_is_refused(
        self, cli: Cli, texts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        monkeypatch.setattr("charrnn.trained.load_model", mock.Mock(side_effect=error))
        result = cli("sample", texts["trained"])
        assert one_line(result) == "charrnn: out of memory: close other programs\n"
        assert result.code == 1

    def test_memory_that_is_refused_to_a_training(
        self, cli: Cli, texts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Once something is saved, the advice is to continue, not to start a smaller run."""
        run = tmp_path / "run"
        quick = ("--steps", 4, "--validate-every", 2, "--hidden", 9, "--bptt", 11)
        begin = ("train", texts["prose"], "--run", run, *quick)
        with monkeypatch.context() as patch:
            patch.setattr(training, "score", mock.Mock(side_effect=MemoryError))
            assert one_line(cli(*begin, "--quiet").without_notes) == (
                "charrnn: out of memory: give a smaller --hidden, --batch-size or --bptt\n"
            )
        go_on = f"charrnn train --run {shlex.quote(str(run))} --resume"
        more = "charrnn: out of memory: continue on a machine with more, or with another --device"
        once = mock.Mock(side_effect=[mock.DEFAULT, MemoryError], wraps=score)
        monkeypatch.setattr(training, "score", once)
        assert one_line(cli(*begin, "--quiet").without_notes) == (
            f"{more}; step 2 is saved whole: go on from it with: {go_on}\n"
        )
        monkeypatch.setattr("charrnn.resuming.resume", mock.Mock(side_effect=MemoryError))
        assert one_line(cli("train", "--run", run, "--resume")) == f"{more}\n"

    def test_a_thread_that_is_refused(
        self, cli: Cli, texts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused = mock.Mock(side_effect=RuntimeError("can't start new thread"))
        monkeypatch.setattr("threading.Thread.start", refused)
        result = cli("evaluate", texts["trained"], "--part", "valid")
        assert one_line(result) == (
            "charrnn: cannot start a thread: there are too many processes (ulimit -u shows the "
            "limit), or there is too little memory (ulimit -v)\n"
        )
        assert result.code == 1

    def test_a_python_without_a_module_of_its_own(
        self, cli: Cli, texts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where Python was compiled without the headers of xz."""
        error = ModuleNotFoundError("No module named '_lzma'", name="_lzma")
        monkeypatch.setattr("charrnn.trained.load_model", mock.Mock(side_effect=error))
        result = cli("sample", texts["trained"])
        assert one_line(result) == "charrnn: this Python was built without _lzma: use another one\n"
        assert result.code == 1

    @pytest.mark.parametrize("kind", [ImportError, OSError])
    def test_a_library_that_cannot_be_loaded(
        self,
        cli: Cli,
        texts: dict[str, Path],
        monkeypatch: pytest.MonkeyPatch,
        kind: type[Exception],
    ) -> None:
        error = kind("libtorch_cpu.so: failed to map segment from shared object")
        monkeypatch.setattr("charrnn.trained.load_model", mock.Mock(side_effect=error))
        result = cli("sample", texts["trained"])
        assert one_line(result) == (
            "charrnn: a library cannot be loaded: libtorch_cpu.so: failed to map segment from "
            "shared object: there is too little memory (ulimit -v shows the limit), or "
            "charrnn needs to be installed again\n"
        )
        assert result.code == 1

    def test_a_mistake_of_ours_is_one_line_too(
        self, cli: Cli, texts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        error = KeyError("weight\nmissing")
        monkeypatch.setattr("charrnn.trained.load_model", mock.Mock(side_effect=error))
        result = cli("sample", texts["trained"])
        assert "this is a fault in charrnn, KeyError" in one_line(result)
        assert result.code == 1
        monkeypatch.setenv("CHARRNN_TRACEBACK", "1")
        with pytest.raises(KeyError):
            cli("sample", texts["trained"])


class TestTrain:
    def test_prints_the_folder_on_stdout_and_talks_on_stderr(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        result = cli("train", prose, "--run", run, *QUICK)
        assert (result.code, result.out) == (0, f"{run}\n")
        names = {"best.safetensors", "last.safetensors", "metrics.jsonl", "lock"}
        assert names <= {path.name for path in run.iterdir()}
        assert "sample from it with" in result.err
        assert "\x1b" not in result.err

    def test_quiet_prints_notes_too(self, cli: Cli, tmp_path: Path) -> None:
        text, run = tmp_path / "text", tmp_path / "run"
        text.write_text(make_prose(999).replace("\n", "\r\n"), newline="")
        done = cli("train", text, "--run", run, "--quiet", *QUICK)
        lines = done.err.splitlines()
        assert done.out == f"{run}\n"
        assert all(line.startswith("note: ") for line in lines)
        assert any("line ends are CRLF" in line for line in lines)

    @needs_raw_names
    def test_a_path_comes_back_byte_for_byte(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        words = ("train", "--run", os.fsdecode(b"r\xff"), "--quiet")
        for more in ((prose, *QUICK), ("--resume",)):
            done = cli(*words, *more)
            assert done.without_notes == Result(0, "r\udcff\n", "")

    @pytest.mark.parametrize(
        "name",
        [
            pytest.param(b"caf\xe9's", marks=needs_raw_names),
            b"a\nb",
            pytest.param(b"\\ \xff0", marks=needs_raw_names),
            "é\u202e".encode(),
            b"-run",  # pasted as is, it would be an option
        ],
    )
    def test_an_odd_name_can_be_pasted_and_read(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
    ) -> None:
        monkeypatch.chdir(tmp_path)
        words = ("train", prose, "--run", os.fsdecode(name), *QUICK)
        (said,) = [line for line in cli(*words).err.splitlines() if "sample from it with" in line]
        line = said.removeprefix("sample from it with: charrnn sample")
        done = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, check=True)
        assert done.stdout == (b"./" if name.startswith(b"-") else b"") + name
        (tmp_path / os.fsdecode(name)).rename("else")
        assert os.fsencode(cli(*words, "--json").rows[0]["run"]) == name

    def test_json_lines(self, cli: Cli, prose: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        result = cli("train", prose, "--run", run, "--json", *QUICK)
        assert (result.code, result.err) == (0, "")
        kinds = [row["event"] for row in result.rows]
        assert kinds[:2] == ["started", "planned"]
        assert kinds[-1] == "finished"
        assert {"logged", "validated", "sampled", "saved"} <= set(kinds)
        started, finished = result.rows[0], result.rows[-1]
        assert started["run"] == str(run)
        assert started["model"]["hidden"] == 5
        assert (started["texts"], started["valid_texts"]) == ([str(prose)], [])
        assert started["fingerprint"] == hashlib.sha256(prose.read_bytes()).hexdigest()
        assert (started["step"], started["test_characters"]) == (0, 0)
        assert started["baselines"].keys() == {"uniform", "unigram", "bzip2"}
        assert finished["complete"] is True
        assert finished["best_nats_per_char"] > 0
        # What is logged is what is printed.
        shown = [row for row in result.rows if row["event"] in ("logged", "validated")]
        for row, logged in zip(shown, log_of(run), strict=True):
            assert logged.items() <= row.items()

    def test_takes_another_name_if_one_is_taken_meanwhile(
        self, cli: Cli, prose: Path, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By a command that was started at the same time."""
        create = RunFolder.create
        others: list[RunFolder] = []

        def create_late(path: Path, **how: Any) -> RunFolder:
            if not others:
                others.append(create(path))
            return create(path, **how)

        monkeypatch.setattr(RunFolder, "create", create_late)
        assert cli("train", prose, *QUICK).out == "checkpoints/prose-lstm-2\n"
        others[0].close()
        shutil.rmtree("checkpoints")
        Path("checkpoints").touch()
        assert "cannot make the run's folder" in one_line(cli("train", prose, *QUICK))
        Path("checkpoints").unlink()

    def test_takes_a_name_for_the_run_that_is_free(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert cli("train", prose, *QUICK).out == "checkpoints/prose-lstm\n"
        assert cli("train", prose, *QUICK).out == "checkpoints/prose-lstm-2\n"
        assert cli("train", prose, "--cell", "gru", *QUICK).out == "checkpoints/prose-gru\n"
        assert cli("train", "-", *QUICK, stdin=b"text " * 99).out == "checkpoints/stdin-lstm\n"
        folder = Path("my poems")
        folder.mkdir()
        names = [shutil.copy(prose, folder / f"{letter}.txt") for letter in "ab"]
        for texts in (names, [folder / "*.txt"], [folder]):  # matched by a shell, by us, no pattern
            assert cli("train", *texts, *QUICK).out == "checkpoints/my poems-lstm\n"
            shutil.rmtree("checkpoints/my poems-lstm")
        assert cli("train", names[0], *QUICK).out == "checkpoints/a-lstm\n"
        assert cli("train", names[1], prose, *QUICK).out == "checkpoints/b-lstm\n"
        for module in ("starting", "comparing"):
            monkeypatch.setattr(f"charrnn.{module}.embedded_corpus", lambda: [str(prose)])
        assert cli("train", *QUICK).out == "checkpoints/python-lstm\n"
        for words, name in (
            ((prose,), "prose-compare"),
            ((prose,), "prose-compare-2"),
            ((), "python-compare"),
        ):
            assert cli("compare", *words, "--cell", "rnn", *QUICK).code == 0
            assert Path("checkpoints", name, "comparison.json").exists()

    def test_joins_files_folders_and_patterns(self, cli: Cli, tmp_path: Path) -> None:
        folder = tmp_path / "many"
        folder.mkdir()
        for number in range(4):
            (folder / f"{number}.txt").write_text(make_prose(100, seed=number))
        (folder / "4.bin").write_bytes(b"\0" * 9)
        for names in ([folder], [f"{folder}/*.txt"], sorted(folder.glob("*.txt"))):
            result = cli("train", *names, "--run", tmp_path / "run", "--json", *QUICK)
            assert result.code == 0
            assert result.rows[0]["train_characters"] == 360
            assert result.rows[0]["valid_characters"] == 40
            notes = " ".join(result.rows[0]["notes"])
            assert ("4.bin" in notes) == (names == [folder])
            for path in (tmp_path / "run").iterdir():
                path.unlink()

    def test_reads_standard_input(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copies = tmp_path / "copies"
        copies.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(copies))
        result = cli(
            "train", "-", "--run", tmp_path / "run", "--json", *QUICK, stdin=prose.read_bytes()
        )
        assert result.code == 0
        assert result.rows[0]["train_characters"] == 5406
        assert "cannot be read again" in result.rows[0]["notes"][0]
        assert list(copies.iterdir()) == []
        # The text is gone, so --part valid is not advised.
        result = cli("evaluate", tmp_path / "run", "--text", prose)
        assert (
            "was trained on 5,406 of these 6,007 characters: another text tells more\n"
            in result.err
        )

    @pytest.mark.parametrize("waits", [True, False])
    def test_says_that_standard_input_is_not_read_where_a_text_waits_there(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
    ) -> None:
        monkeypatch.setattr("charrnn.starting.embedded_corpus", lambda: [str(prose)])
        for module in ("train", "compare"):
            monkeypatch.setattr(f"charrnn.{module}_command.waits_unread", lambda: waits)
        note = "note: standard input is not read: give - as TEXT to train on it\n"
        for texts in ((), (prose,), ("-",)):
            run = tmp_path / f"{len(texts)}{'-' in texts}"
            result = cli("train", *texts, "--run", run, *QUICK, stdin=prose.read_bytes())
            assert (note in result.err) == (waits and not texts)
        monkeypatch.setattr("charrnn.comparing.embedded_corpus", lambda: [str(prose)])
        compared = cli("compare", "--cell", "rnn", "--run", tmp_path / "compared", *QUICK)
        assert ("is not read: give the text as a file" in compared.err) == waits

    def test_looks_for_a_text_on_standard_input_and_takes_nothing(
        self, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def waits(stream: io.TextIOBase) -> bool:
            monkeypatch.setattr(sys, "stdin", stream)
            return waits_unread()

        with prose.open() as file:
            assert waits(file)
            file.readline()
            assert not waits(file), "as in the middle of a script"
        reader, writer = os.pipe()
        with os.fdopen(reader) as pipe:
            assert not waits(pipe), "as from a scheduler, which never writes"
            os.write(writer, b"text")
            assert waits(pipe)
            os.close(writer)
            assert pipe.read() == "text"
            assert not waits(pipe)
        (tmp_path / "empty").touch()
        for nothing in (tmp_path / "empty", Path(os.devnull)):
            with nothing.open() as file:
                assert not waits(file)
        assert not waits(io.StringIO("no file at all"))

    def test_says_how_the_text_is_called(self, prose: Path, cli: Cli, empty_folder: Path) -> None:
        """By its path from the current folder; of several texts, the first is named."""
        for number in (1, 2, 3):
            shutil.copy(prose, f"{number}.txt")
        for texts, called in (
            (["1.txt"], "1.txt: 5,4"),
            (["1.txt", "2.txt"], "1.txt and 1 name more: 10,8"),
            (["3.txt", "2.txt", prose], "3.txt and 2 names more: 16,2"),
            (["-"], "standard input: 5,4"),
        ):
            text = prose.read_bytes()
            result = cli("train", *texts, "--run", "run", *QUICK, stdin=text)
            assert result.err.startswith(f"text    {called}")
            shutil.rmtree("run")
        for number in (1, 2, 3):
            Path(f"{number}.txt").unlink()

    def test_says_what_it_validates_on_of_the_test_part(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        """The second text is the last 200 of 2,000, the test part the last 200 or 100."""
        texts = [tmp_path / name for name in ("one", "two")]
        texts[0].write_text(make_prose(1800, seed=2))
        texts[1].write_text(make_prose(200, seed=3))
        said = "of the 200 characters that --valid names are in the test part, too: they choose the"
        for share, note in ((0.1, f"note: 200 {said} checkpoint, "), (0.05, f"note: 100 {said}")):
            options = ("--valid", texts[1], "--test-share", share, "--run", tmp_path / f"{share}")
            assert note in cli("train", *texts, *options, *QUICK).err
        options = ("--valid", prose, "--test-share", 0.1, "--run", tmp_path / "none")
        assert "in the test part" not in cli("train", *texts, *options, *QUICK).err

    def test_says_that_what_validates_is_what_trains(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        result = cli("train", prose, "--valid", prose, "--run", tmp_path / "run", *QUICK)
        note = "note: what --valid names is trained on: nothing is held out\n"
        assert note in result.err
        result = cli("evaluate", tmp_path / "run", "--part", "valid")
        assert "was trained on these very characters: another text tells more\n" in result.err

    @pytest.mark.parametrize(
        ("encoding", "end", "ends", "advice"),
        [
            ("utf-8", "\r\n", "CRLF", r", with tr -d '\r' <FILE >NEW"),
            ("cp1252", "\r", "CR", r", with tr '\r' '\n' <FILE >NEW"),
            ("utf-16", "\r\n", "CRLF", ""),
            ("utf-8", "\n", None, ""),
            ("bytes", "\r\n", None, ""),
        ],
    )
    def test_says_how_lines_end(
        self, cli: Cli, tmp_path: Path, encoding: str, end: str, ends: str | None, advice: str
    ) -> None:
        text = tmp_path / "text"
        written = make_prose(900).replace("\n", end)
        text.write_bytes(written.encode("utf-8" if encoding == "bytes" else encoding))
        words = ("--encoding", encoding, "--run", tmp_path / "run", "--json", *QUICK)
        result = cli("train", text, *words)
        notes = [said for said in result.rows[0]["notes"] if "line ends" in said]
        said = rf"the line ends are {ends}, and \r counts as a character: make them LF{advice}"
        assert notes == ([said] if ends else [])

    def test_says_that_some_lines_end_otherwise(self, cli: Cli, tmp_path: Path) -> None:
        text, run = tmp_path / "text", tmp_path / "run"
        text.write_bytes(b"a\n" * 900 + b"a\r\n" * 1100)
        said = cli("train", text, "--run", run, *QUICK).err
        assert "note: 1,100 of 2,000 line ends are CRLF, " in said

    def test_says_what_is_unknown_in_what_is_held_out(self, cli: Cli, tmp_path: Path) -> None:
        text, run = tmp_path / "text", tmp_path / "run"
        text.write_text(make_prose(1800) + "\u20ac" * 3 + make_prose(187), encoding="utf-8")
        words = "the model does not know 3 of the 198 characters"
        assert (
            f"note: {words} to predict in what is held out, and each is charged as the unknown "
            "symbol and spelled out: '\u20ac' x 3\n"
            in cli("train", text, "--run", run, "--min-count", 2, *QUICK).err
        )
        seen = cli("inspect", run, "--part", "valid", "--only", "memory", "--characters", 199)
        assert f"{words} scored" in seen.err

    def test_says_that_what_is_held_out_is_another_kind_of_text(
        self, cli: Cli, tmp_path: Path
    ) -> None:
        text = tmp_path / "text"
        text.write_text(make_prose(5400) + "\u20ac\u20ad" * 300, encoding="utf-8")
        said = cli("train", text, "--run", tmp_path / "run", "--min-count", 2, *QUICK).err
        assert "; hold out text like that trained on\n" in said

    @pytest.mark.parametrize(
        ("words", "told"),
        [((), True), (("--valid", __file__), False), (("--valid-share", 0), False)],
    )
    def test_says_that_a_short_part_held_out_tells_little(
        self, cli: Cli, tmp_path: Path, words: tuple[object, ...], told: bool
    ) -> None:
        text = tmp_path / "text"
        text.write_text(make_prose(4989))
        said = cli("train", text, *words, "--run", tmp_path / "run", *QUICK).err
        little = "only 499 characters are held out, so which checkpoint is best is mostly chance"
        assert (f"note: {little}: hold out more, or none (--valid-share 0)\n" in said) is told

    def test_other_encodings_by_name(self, cli: Cli, tmp_path: Path) -> None:
        text = "红楼梦 第一回\r\n" * 40
        path = tmp_path / "novel.txt"
        path.write_bytes(text.encode("gb18030"))
        run = tmp_path / "run"
        assert cli("train", path, "--encoding", "gb18030", "--run", run, *QUICK).code == 0
        _, vocabulary, _ = load_model(run, torch.device("cpu"))
        assert vocabulary.characters == "".join(sorted(set(text)))
        result = cli("sample", run, "--prompt", "红楼", "--echo", "--length", 20)
        assert result.out.startswith("红楼")
        assert set(result.out) <= set(text)
        # The text to score is read as the training text was.
        assert cli("evaluate", run, "--text", path).code == 0

    def test_validates_on_another_text(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("charrnn.assembling.loops", lambda: True)
        other = tmp_path / "other.txt"
        other.write_text(make_prose(333, seed=2), encoding="utf-8-sig")
        result = cli("train", prose, "--valid", other, "--run", tmp_path / "run", "--json", *QUICK)
        assert result.rows[0]["notes"] == [f"{other}: read without its byte order mark"]
        assert result.rows[0]["train_characters"] == 6007
        assert result.rows[0]["valid_characters"] == 333

    def test_holds_out_a_test_part_that_nobody_reads(self, cli: Cli, tmp_path: Path) -> None:
        path = tmp_path / "text"
        path.write_text(make_prose(900) + "☃" * 100, encoding="utf-8")
        run = tmp_path / "run"
        result = cli(
            "train", path, "--test-share", 0.1, "--valid-share", 0.2, "--run", run, "--json", *QUICK
        )
        assert result.rows[0]["train_characters"] == 700
        assert result.rows[0]["valid_characters"] == 200
        assert result.rows[0]["test_characters"] == 100
        started = cli("train", "--run", run, "--resume", "--steps", 5, "--json").rows[0]
        assert (started["step"], started["test_characters"]) == (QUICK[1], 100)
        _, vocabulary, _ = load_model(run, torch.device("cpu"))
        assert "☃" not in vocabulary.characters

    def test_a_validation_text_may_move(self, cli: Cli, prose: Path, tmp_path: Path) -> None:
        held_out, run = tmp_path / "held_out.txt", tmp_path / "run"
        held_out.write_text(make_prose(300, seed=3))
        words = ("--run", run, *QUICK)
        assert cli("train", prose, "--valid", held_out, *words, "--test-share", 0.9).code == 0
        moved = held_out.rename(tmp_path / "moved.txt")
        going_on = ("train", "--run", run, "--resume", "--steps", 5)
        assert "there is no file" in one_line(cli(*going_on))
        assert "validation text" in one_line(cli(*going_on, "--valid", prose))
        assert cli(*going_on, "--valid", moved).code == 0
        assert cli(*going_on, "--steps", 6).code == 0

    def test_a_pattern_is_the_same_from_any_folder(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        odd = tmp_path / "[x]"
        odd.mkdir()
        shutil.copy(prose, odd / "a.txt")
        monkeypatch.chdir(odd)
        assert cli("train", "*.txt", "--run", tmp_path / "run", *QUICK).code == 0
        monkeypatch.chdir(tmp_path)
        assert cli("train", "--run", tmp_path / "run", "--resume", "--steps", 5).code == 0

    def test_a_run_in_its_own_text_can_be_gone_on_with(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copy(prose, tmp_path / "a.txt")
        monkeypatch.chdir(tmp_path)
        result = cli("train", ".", *QUICK)
        assert "left out (written by a run)" in result.err
        assert cli("train", "--run", result.out.strip(), "--resume", "--steps", 5).code == 0

    @pytest.mark.parametrize(
        ("verb", "texts", "stream", "named"),
        [
            ("train", (".",), "error", "."),
            ("train", ("a.txt", "--valid", "*.txt"), "output", "*.txt"),
            ("train", ("a.txt", "log.txt"), "output", "log.txt"),
            ("compare", ("a.txt", "."), "error", "."),
        ],
    )
    def test_output_that_would_become_text_is_refused(
        self, prose: Path, tmp_path: Path, verb: str, texts: tuple[str, ...], stream: str,
        named: str,
    ) -> None:  # fmt: skip
        """Its messages would change the text, and the run could not be gone on with."""
        shutil.copy(prose, tmp_path / "a.txt")
        with (tmp_path / "log.txt").open("wb") as log:
            to: Any = {"stdout" if stream == "output" else "stderr": log}
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | to
            words = command(verb, *texts, *QUICK)
            done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, **streams)
        said = (tmp_path / "log.txt").read_bytes() + (done.stderr or b"")
        assert (done.returncode, said.decode()) == (
            2,
            f"charrnn: standard {stream} goes into {named}, which is read as text: redirect it "
            "elsewhere\n",
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "log.txt"]

    def test_output_beside_the_text_is_not_refused(self, prose: Path, tmp_path: Path) -> None:
        (tmp_path / "texts").mkdir()
        shutil.copy(prose, tmp_path / "texts/a.txt")
        with (tmp_path / "log.txt").open("wb") as log:
            words = command("train", "texts", *QUICK)
            assert not subprocess.call(words, stderr=log, cwd=tmp_path, env=ENVIRONMENT)

    @pytest.mark.parametrize(
        ("texts", "run", "held"),
        [
            (("*.txt",), ".", "a.txt"),
            ((".",), "books", "books/b.txt"),
            (("books",), "books", "books/b.txt"),
            (("a.txt", "--valid", "books"), "books", "books/b.txt"),
        ],
    )
    def test_a_folder_that_holds_the_text_is_refused(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        texts: tuple[str, ...], run: str, held: str,
    ) -> None:  # fmt: skip
        """Once the folder is a run's, its text would be left out as written by a run."""
        monkeypatch.chdir(tmp_path)
        Path("books").mkdir()
        for name in ("a.txt", "books/b.txt"):
            Path(name).write_text(make_prose(300))
        assert one_line(cli("train", *texts, "--run", run, *QUICK)) == (
            f"charrnn: {run}: {held} is in it, and a run's folder is not read as text: choose "
            "another folder with --run\n"
        )
        assert sorted(map(str, Path().rglob("*"))) == ["a.txt", "books", "books/b.txt"]

    def test_a_folder_that_holds_what_a_model_of_bytes_reads_is_refused(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("scans").mkdir()
        Path("scans/a").write_bytes(bytes(range(256)) * 2)
        run = ("--run", "bytes", "--encoding", "bytes")
        assert cli("train", "scans", *run, *QUICK).code == 0
        line = one_line(cli("train", "scans", "--init-from", "bytes", "--run", "scans"))
        assert "scans: scans/a is in it" in line

    def test_a_text_that_is_named_itself_may_lie_in_the_run_s_folder(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("a.txt").write_text(make_prose(300))
        assert cli("train", "a.txt", "--run", ".", *QUICK).code == 0
        assert "holds a run already" in one_line(cli("train", "*.txt", "--run", ".", *QUICK))

    @pytest.mark.parametrize("name", ["a b.txt", "x" * 300])
    def test_the_run_that_is_likely_meant_is_named(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for stem in ("a b", "python"):
            for what in ("gru", "compare"):
                (tmp_path / "checkpoints" / f"{stem}-{what}").mkdir(parents=True)
        is_there = name == "a b.txt"
        for words, such_as in (
            (("train", name, "--cell", "gru"), "such as --run 'checkpoints/a b-gru'"),
            (("train", name), None),
            (("compare", name), "such as --run 'checkpoints/a b-compare'"),
        ):
            said = one_line(cli(*words, "--resume"))
            assert "--resume needs --run DIR, the folder of the " in said
            ends = f" to go on with, {such_as}" if such_as and is_there else " to go on with"
            assert said.endswith(ends + "\n")
        said = one_line(cli("train", "--resume", "--cell", "gru"))
        assert said.endswith(", such as --run checkpoints/python-gru\n")

    def test_a_folder_that_is_given_as_a_text_is_what_is_meant(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for what, mark in (("train", "metrics.jsonl"), ("compare", "comparison.json")):
            folder = tmp_path / "checkpoints" / f"of {what}"
            folder.mkdir(parents=True)
            (folder / mark).touch()
            said = one_line(cli(what, "--resume", f"checkpoints/of {what}"))
            assert said.endswith(f", such as --run 'checkpoints/of {what}'\n")

    @pytest.mark.parametrize(("words", "kept"), [((), 1), (("--keep", 0), 0), (("--keep", 3), 3)])
    def test_keeps_as_many_earlier_checkpoints_as_are_asked_for(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        words: tuple[object, ...], kept: int,
    ) -> None:  # fmt: skip
        monkeypatch.setattr("charrnn.training.SAVE_SHARE", 1e9)  # saves after every validation
        result = cli(
            "train", prose, "--run", tmp_path, "--steps", 20, "--validate-every", 4, *QUICK[2:],
            *words,
        )  # fmt: skip
        assert result.code == 0
        assert len([*tmp_path.glob("step-*")]) == kept

    def test_minutes_are_wall_clock(self, cli: Cli, prose: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        started = time.monotonic()
        result = cli("train", prose, "--run", run, "--minutes", 0.02, *QUICK[2:])
        took = time.monotonic() - started
        assert result.code == 0
        assert "planned" in result.err
        # A fifth of it passes before the plan; test_planning measures how exactly it is kept.
        assert 0.2 * 1.2 <= log_of(run)[-1]["seconds"] <= took

    def test_starts_from_a_checkpoint(self, cli: Cli, trained: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.txt"
        other.write_text(make_prose(980, seed=2) + "ÄÄÄÄÄÄÄÄÄ" + "b" * 11, encoding="utf-8")
        result = cli("train", other, "--init-from", trained, "--run", tmp_path / "run", *QUICK[:2])
        assert result.code == 0
        before, vocabulary, _ = load_model(trained, torch.device("cpu"))
        after, kept, _ = load_model(tmp_path / "run", torch.device("cpu"))
        assert kept == vocabulary
        # The shape is the same; dropout is chosen anew.
        dropped = {name: getattr(before.config, name) for name in ("dropout", "weight_drop")}
        assert replace(after.config, **dropped) == before.config
        # The first 900 characters are trained on; the umlauts are in the part held out.
        assert f"weights and vocabulary from {trained}: it knows 100.00 % of the " in result.err
        assert "characters, and lacks" not in result.err

    def test_says_when_no_update_made_the_model_better(
        self, cli: Cli, prose: Path, trained: Path, tmp_path: Path
    ) -> None:
        words = ("--init-from", trained, "--run", tmp_path / "run", "--lr", 9)
        result = cli("train", prose, *words, *QUICK[:2])
        assert result.code == 0
        said = "no update improved on the weights the run began with: try a lower --lr\n"
        best, after = result.err.splitlines(keepends=True)[-3:-1]
        assert (" at step 0; unigram " in best, after) == (True, said)

    def test_says_what_of_the_text_held_out_its_weights_know(
        self, cli: Cli, prose: Path, trained: Path, tmp_path: Path
    ) -> None:
        """The last 601 of 6,007 characters were held out when the weights were trained."""
        run, more = tmp_path / "run", tmp_path / "more"
        options = ("--init-from", trained, "--test-share", 0.1, "--run", run, "--lr", 9)
        result = cli("train", prose, *options, *QUICK[:2])
        assert (
            f"note: 601 of the 1,202 characters held out are what {trained} was trained on, and "
            "their loss flatters the model: hold out another text with --valid\n"
        ) in result.err
        said = "no update improved on the weights the run began with: they were trained on some of"
        assert said in result.err
        resumed = cli("train", "--run", run, "--resume", "--steps", 30)
        assert said in resumed.err
        # This run, and runs that start from it, still know what the weights were trained on before.
        other = tmp_path / "other"
        other.write_text(make_prose(900, seed=2))
        result = cli("train", other, "--init-from", run, "--run", more, *QUICK[:2])
        assert "characters held out" not in result.err
        began = "the model began with weights that were trained on"
        result = cli("evaluate", run, "--part", "valid")
        assert result.err == f"{run}: {began} these very characters: another text tells more\n"
        assert cli("evaluate", run, "--part", "test").err == ""
        result = cli("evaluate", more, "--text", prose)
        assert f"{more}: {began} 5,406 of these 6,007 characters: another" in result.err
        (learnt, _) = load(more / "best.safetensors").records("learnt_before", TextRecord)
        assert (learnt.texts, learnt.train) == ((), (0, 4805))

    @pytest.mark.parametrize("first_all", [True, False])
    def test_says_so_of_a_file_of_the_weights_text_and_of_a_text_of_which_they_know_a_file(
        self, cli: Cli, tmp_path: Path, first_all: bool
    ) -> None:
        folder = tmp_path / "library"
        folder.mkdir()
        for seed, name in enumerate(("keats", "shelley")):
            (folder / name).write_text(make_prose(1000 + seed, seed=seed))
        texts = [folder, folder / "keats"]
        before, after = texts if first_all else reversed(texts)
        run = tmp_path / "run"
        assert cli("train", before, "--run", run, *QUICK).code == 0
        options = ("--run", tmp_path / "next", "--valid-share", 0.6, *QUICK[:2])
        result = cli("train", after, "--init-from", run, *options)
        # Held out: the last 600 of 1,000, all known; or 800 to 2,001, known up to 900.
        number = "600 of the 600" if first_all else "100 of the 1,201"
        assert f"note: {number} characters held out are what {run} was trained on" in result.err

    def test_a_character_must_occur_often_enough(self, cli: Cli, tmp_path: Path) -> None:
        """One such character is enough, as there is also the unknown symbol."""
        text, words = tmp_path / "text", ("--run", tmp_path / "run", "--min-count", 200, *QUICK)
        text.write_text("ab" * 190)
        assert one_line(cli("train", text, *words)) == (
            "charrnn: no character occurs 200 times in the training part: give a smaller "
            "--min-count\n"
        )
        text.write_text("a" * 380)
        assert cli("train", text, *words).code == 0

    @pytest.mark.parametrize(("given", "masks"), [((), 2), (("--dropout-masks", "3"), 3)])
    def test_masks_of_dropout_are_those_given_or_by_rule(
        self, cli: Cli, prose: Path, tmp_path: Path, given: tuple[str, ...], masks: int
    ) -> None:
        result = cli("train", prose, "--dropout", 0.4, *given, "--run", tmp_path / "run", *QUICK)
        assert result.code == 0
        assert f"dropout 0.4 ({masks} masks)" in result.err
        _, _, kept = load_model(tmp_path / "run", torch.device("cpu"))
        assert kept.record("training", TrainConfig).dropout_masks == masks

    def test_the_folder_is_named_after_the_cell_it_starts_from(
        self, cli: Cli, prose: Path, empty_folder: Path
    ) -> None:
        first = cli("train", prose, "--cell", "gru", *QUICK[:4])
        assert first.out == "checkpoints/prose-gru\n"
        second = cli("train", prose, "--init-from", "checkpoints/prose-gru", *QUICK[:2])
        assert second.out == "checkpoints/prose-gru-2\n"
        shutil.rmtree(empty_folder / "checkpoints")

    @pytest.mark.parametrize(
        ("unknown", "said"),
        [
            (1, "99.88 % of the characters to train on, and lacks 'Ä' x 1\n"),
            (90, "90.00 % of the characters to train on, and lacks 'Ä' x 90\n"),
            (
                99,
                "89.00 % of the characters to train on, and lacks 'Ä' x 99; it cannot learn to "
                "write those: a run without --init-from can\n",
            ),
        ],
    )
    def test_says_what_share_of_the_text_a_checkpoint_knows(
        self, cli: Cli, trained: Path, tmp_path: Path, unknown: int, said: str
    ) -> None:
        other = tmp_path / "other.txt"
        other.write_text("Ä" * unknown + make_prose(1000 - unknown), encoding="latin-1")
        words = ("--init-from", trained, "--encoding", "latin-1", "--run", tmp_path / "run")
        result = cli("train", other, *words, *QUICK[:2])
        assert f"it knows {said}" in result.err

    def test_a_text_in_another_encoding_is_read_in_it_from_then_on(
        self, cli: Cli, trained: Path, tmp_path: Path
    ) -> None:
        """By evaluate, --resume and --init-from, not in the encoding of the run it started from."""
        text, run = tmp_path / "text", tmp_path / "run"
        text.write_bytes(make_prose(900).encode("utf-16"))
        words = ("--init-from", trained, "--encoding", "utf-16", "--run", run)
        started = cli("train", text, *words, "--steps", 3)
        assert started.code == 0, started.err
        (row,) = json.loads(cli("evaluate", run, "--text", text, "--json").out)
        assert (row["characters"], row["unknown"]) == (899, 0)
        again = cli("train", "--run", run, "--resume", "--encoding", "UTF-16", "--steps", 9)
        assert again.code == 0, again.err
        more = cli("train", text, "--init-from", run, "--run", tmp_path / "more", "--steps", 1)
        assert "it knows 100.00 % of the characters to train on\n" in more.err

    def test_bytes_follow_the_checkpoint_without_being_named(
        self, cli: Cli, of_bytes: Path, prose: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        assert cli("train", prose, "--init-from", of_bytes, "--run", run, *QUICK[:2]).code == 0
        assert load_model(run, torch.device("cpu"))[1].is_bytes


class TestSample:
    def test_text_alone_is_on_stdout(self, cli: Cli, trained: Path) -> None:
        result = cli("sample", trained, "--length", 120)
        assert (result.code, result.err) == (0, "")
        assert len(result.out) == 120

    def test_the_last_of_an_option_counts(self, cli: Cli, trained: Path) -> None:
        twice = ("--length", 40, "--seed", 3, "--length", 20, "--seed", 2)
        assert cli("sample", trained, *twice) == cli("sample", trained, *twice[4:])

    def test_echo_puts_the_prompt_before_the_new_characters(self, cli: Cli, trained: Path) -> None:
        plain = cli("sample", trained, "--prompt", "The ", "--length", 30).out
        assert cli("sample", trained, "--prompt", "The ", "--length", 30, "--echo").out == (
            "The " + plain
        )

    def test_a_prompt_from_standard_input(self, cli: Cli, trained: Path) -> None:
        piped = cli("sample", trained, "--prompt", "-", "--length", 30, stdin=b"The bird")
        assert piped == cli("sample", trained, "--prompt", "The bird", "--length", 30)
        broken = cli("sample", trained, "--prompt", "-", stdin=b"The \xff")
        assert "is not valid utf-8 at byte 4: convert it" in one_line(broken)
        marked = cli(
            "sample", trained, "--prompt", "-", "--length", 30, stdin=b"\xef\xbb\xbfThe bird"
        )
        assert marked == piped

    def test_a_standard_input_that_cannot_be_read_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        only_written = os.open(tmp_path / "written", os.O_WRONLY | os.O_CREAT)
        with os.fdopen(only_written) as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            with pytest.raises(UsageError, match="cannot read standard input: Bad file"):
                read_prompt("-", Vocabulary.from_counts({97: 5}, "utf-8"))

    def test_a_standard_input_left_non_blocking_is_read_to_its_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a program that had it before may leave it: reads do not wait for what is to come."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.write(writer, b"ab")

        def end() -> None:
            time.sleep(0.2)
            os.write(writer, b"ba")
            os.close(writer)

        late = threading.Thread(target=end)
        with os.fdopen(reader) as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            late.start()
            assert read_prompt("-", Vocabulary.from_counts({97: 5, 98: 5}, "utf-8")) == "abba"
        late.join()

    @pytest.mark.parametrize("weights", ["bf16", "int8"])
    def test_fewer_bits_a_weight_give_a_text_as_well(
        self, cli: Cli, trained: Path, weights: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[object] = []

        def noted(*arguments: Any) -> Any:
            made.extend(arguments[2:])
            return Stepper(*arguments)

        monkeypatch.setattr("charrnn.sampling.Stepper", noted)
        words = ("sample", trained, "--length", "40", "--weights", weights)
        first, again = cli(*words), cli(*words)
        assert made == [weights, weights]
        assert first.code == 0
        assert len(first.out) == 40
        assert first.out == again.out

    @pytest.mark.parametrize("weights", ["fp32", "int8"])
    def test_says_why_fewer_bits_were_no_faster(
        self, cli: Cli, trained: Path, weights: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only if the compiler was run and failed: a short sample does not run it."""
        monkeypatch.setenv("CC", "false")
        monkeypatch.setattr("charrnn.stepper._steps_in_numpy", lambda *_, **__: 9)
        monkeypatch.setattr(compiler, "_made", {})
        words = ("sample", trained, "--weights", weights, "--length")
        short, long = (cli(*words, length) for length in (5, 20))
        assert (short.code, short.err, long.code, len(long.out)) == (0, "", 0, 20)
        said = "note: --weights int8 was no faster here: false does not compile it\n"
        assert long.err == (said if weights == "int8" else "")

    @pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
    @pytest.mark.parametrize("multiplies", ["bf16", "int8", ""])
    def test_says_so_where_the_processor_does_not_multiply_fewer_bits(
        self,
        cli: Cli,
        trained: Path,
        weights: str,
        multiplies: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("charrnn.stepper._steps_in_numpy", lambda *_, **__: 9)
        if (made := steps()) is None:
            pytest.skip("no C compiler with OpenMP")
        for name in ("bf16", "int8"):
            can = getattr(made, f"multiplies_{name}") and name == multiplies
            monkeypatch.setattr(made, f"multiplies_{name}", can)
        done = cli("sample", trained, "--weights", weights, "--length", 20)
        said = (
            f"note: --weights {weights} was no faster here: there are no products in {weights} for "
            "this processor\n"
        )
        is_told = weights != "fp32" and not getattr(made, f"multiplies_{weights}")
        assert (done.code, done.err) == (0, said if is_told else "")

    def test_many_samples_have_a_heading_each(self, cli: Cli, trained: Path) -> None:
        result = cli("sample", trained, "--count", 3, "--length", 25)
        parts = result.out.split("--- sample ")
        assert [part[:9] for part in parts] == ["", *(f"{n} of 3 ---"[:9] for n in (1, 2, 3))]
        assert result == cli("sample", trained, "--count", 3, "--length", 25), "the seed says all"

    def test_json(self, cli: Cli, trained: Path) -> None:
        arguments = ("sample", trained, "--length", 25, "--seed", 5, "--prompt", "The ")
        rows = cli(*arguments, "--json", "--count", 2, "--echo").rows
        text = cli(*arguments, "--echo").out
        said = {
            "sample": 1, "seed": 5, "characters": 25, "stopped": False, "device": "cpu",
            "text": text,
        }  # fmt: skip
        assert rows[0] == said
        assert rows[1]["sample"] == 2
        assert rows[1]["text"] != text
        ended = cli(*arguments, "--json", "--count", 9, "--stop", text[20:22]).rows
        assert {row["stopped"] for row in ended} == {True, False}
        for row in ended:
            assert row["stopped"] == row["text"].endswith(text[20:22])
            assert row["stopped"] or row["characters"] == 25

    def test_stops(self, cli: Cli, trained: Path) -> None:
        """Also with --length 0, which sets no other end."""
        endless = cli("sample", trained, "--stop", "\n", "--length", 0)
        assert (endless.code, endless.out.count("\n"), endless.out[-1]) == (0, 1, "\n")

    def test_bytes_come_out_as_they_are(self, cli: Cli, of_bytes: Path) -> None:
        words = ("sample", of_bytes, "--length", 300)
        done = cli(*words)
        drawn = done.out.encode("utf-8", "surrogateescape")
        assert (done.code, len(drawn), done.err) == (0, 300, "")
        assert any(byte > 127 for byte in drawn)
        (row,) = cli(*words, "--json").rows
        assert row["text"] == done.out

    @pytest.mark.parametrize(
        ("encoding", "drawn", "seen"),
        [
            ("utf-8", "a\x1b[2J\r\n\tb\rc", "a\ufffd[2J\n\tb\ufffdc\n"),
            ("utf-8", "é\r\n", "é\n"),
            ("bytes", b"\xc3\xa9\x1b\r\n\xff\xc3", "é\ufffd\n\ufffd\ufffd\n"),
        ],
    )
    def test_a_terminal_gets_nothing_that_steers_it(
        self, monkeypatch: pytest.MonkeyPatch, encoding: str, drawn: str | bytes, seen: str
    ) -> None:
        codes = Counter(map(ord, drawn) if isinstance(drawn, str) else drawn)
        vocabulary = Vocabulary.from_counts(codes, encoding, 1)
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdout", screen)
        pieces = [(0, symbol) for symbol in vocabulary.encode(drawn).tolist()]
        print_as_made(vocabulary, [], pieces)
        assert screen.getvalue() == seen

    @pytest.mark.parametrize("failure", [NonFiniteError, MemoryError])
    @pytest.mark.parametrize(("drawn", "seen"), [("ab", "ab\n"), ("a\n", "a\n"), ("", "")])
    def test_a_failure_loses_nothing_and_leaves_the_message_a_line_of_its_own(
        self,
        monkeypatch: pytest.MonkeyPatch,
        drawn: str,
        seen: str,
        failure: type[Exception],
    ) -> None:
        vocabulary = Vocabulary.from_counts(Counter(map(ord, "ab\n")), "utf-8", 1)
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdout", screen)

        def pieces() -> Iterator[Piece]:
            yield from ((0, symbol) for symbol in vocabulary.encode(drawn).tolist())
            raise failure

        with pytest.raises(failure):
            print_as_made(vocabulary, [], pieces())
        assert screen.getvalue() == seen

    def test_what_could_not_be_printed_is_not_printed_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vocabulary = Vocabulary.from_counts(Counter(map(ord, "ab")), "utf-8", 1)
        screen, tried = io.StringIO(), []

        def write(text: str) -> int:
            if text:
                tried.append(text)
                raise OSError(errno.ENOSPC, "no space")
            return 0

        monkeypatch.setattr(screen, "write", write)
        monkeypatch.setattr(sys, "stdout", screen)
        with pytest.raises(OSError, match="no space"):
            print_as_made(vocabulary, [], [(0, 1), (0, 2)])
        assert tried == ["a"]

    def test_a_character_that_a_sample_ends_within_is_shown(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a terminal, where bytes are shown as the characters they make up."""
        vocabulary = Vocabulary.from_counts(Counter(b"a\xc3"), "bytes", 1)
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdout", screen)
        cut = vocabulary.encode(b"a\xc3").tolist()
        print_samples(vocabulary, [], [cut, cut])
        shown = screen.getvalue().splitlines()
        assert shown == ["--- sample 1 of 2 ---", "a\ufffd", "--- sample 2 of 2 ---", "a\ufffd"]

    def test_ctrl_c_leaves_the_prompt_a_line_of_its_own(self, trained: Path) -> None:
        terminal, end = pty.openpty()
        with subprocess.Popen(
            command("sample", trained, "--length", 0), stdout=end, env=ENVIRONMENT
        ) as process:
            os.close(end)
            seen = os.read(terminal, 100)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # Linux raises at the end of a pseudo-terminal
                while more := os.read(terminal, 4096):
                    seen += more
            assert process.wait(timeout=PATIENCE) == 130
        os.close(terminal)
        assert seen.endswith(b"\r\n")

    @pytest.mark.parametrize(
        ("hundredths", "expected"), [(1.001, [0, *[1] * 7, 0]), (0.4, [0, 1, 3, 3, 0])]
    )
    def test_no_character_waits_to_be_printed_for_longer_than_a_hundredth_of_a_second(
        self,
        cli: Cli,
        trained: Path,
        monkeypatch: pytest.MonkeyPatch,
        hundredths: float,
        expected: list[int],
    ) -> None:
        import charrnn.sample_view

        flushed: list[str] = []
        times = (n * hundredths / 100 for n in count(1))

        def watched(text: str, *, end: str, flush: bool) -> None:
            assert (end, flush) == ("", True)
            flushed.append(text)

        monkeypatch.setattr(charrnn.sample_view, "print", watched, raising=False)
        clock = mock.Mock(perf_counter=lambda: next(times))
        monkeypatch.setattr(charrnn.sample_view, "time", clock)
        cli("sample", trained, "--length", 7)
        assert [len(text) for text in flushed] == expected


class TestEvaluate:
    NAMES = (
        "checkpoint", "cell", "layers", "hidden", "parameters", "characters", "unknown",
        "nats_per_char", "bits_per_char", "bits_per_byte", "perplexity", "chars_per_second",
        "bytes", "exact", "device", "notes",
    )  # fmt: skip
    #: The last fields: which checkpoint and text the scores are for.
    ORIGIN = (
        "file", "trained_steps", "versions", "texts", "part", "encoding", "fingerprint",
    )  # fmt: skip

    def test_json_has_the_promised_names(self, cli: Cli, trained: Path, prose: Path) -> None:
        result = cli("evaluate", trained, trained / "last.safetensors", "--text", prose, "--json")
        assert (result.code, result.err.count("was trained on 5,406 of")) == (0, 1)
        rows = json.loads(result.out)
        assert [tuple(row) for row in rows] == [self.NAMES + self.ORIGIN] * 2
        row = rows[0]
        assert row["checkpoint"] == str(trained)
        assert (row["cell"], row["layers"], row["hidden"]) == ("lstm", 1, 32)
        assert (row["characters"], row["unknown"], row["device"]) == (6006, 0, "cpu")
        assert row["bits_per_char"] == pytest.approx(row["nats_per_char"] / math.log(2))
        assert row["bits_per_byte"] == pytest.approx(row["bits_per_char"]), "the text is ASCII"
        assert row["perplexity"] == pytest.approx(math.exp(row["nats_per_char"]))

    def test_json_says_what_it_is_of(self, cli: Cli, trained: Path, prose: Path) -> None:
        def origin(*words: object) -> list[Any]:
            (row,) = json.loads(cli("evaluate", trained, *words, "--json").out)
            names = ("bytes", "exact", *self.ORIGIN)
            return [row[name] for name in names]

        best = trained / "best.safetensors"
        of_file = [str(best), load(best).meta["progress"]["step"], load(best).versions]
        digest = hashlib.sha256(prose.read_bytes()).hexdigest()
        named = [*of_file, [str(prose)], None, "utf-8", digest]
        assert origin("--text", prose) == [6006, False, *named]
        for option in (["--exact"], ["--after", "the"]):
            assert origin("--text", prose, *option) == [6006, True, *named]
        assert origin("--part", "valid") == [600, False, *of_file, [], "valid", "utf-8", digest]

    @pytest.mark.parametrize("words", ["--text {folder}", "--part valid", "--part test"])
    def test_a_text_is_read_once_for_all_models(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
    ) -> None:
        folder, run = tmp_path / "texts", tmp_path / "run"
        folder.mkdir()
        (folder / "a.txt").write_text(make_prose(900))
        (folder / "b.bin").write_bytes(b"\0\1\2" * 9)
        assert cli("train", folder, "--run", run, "--test-share", 0.1, *QUICK).code == 0
        read: list[Path] = []

        def scan_file(path: Path, *rest: Any) -> Any:
            read.append(path)
            return _scan_file(path, *rest)

        monkeypatch.setattr("charrnn.corpus._scan_file", scan_file)
        models = (run, run / "last.safetensors")
        options = [word.format(folder=folder) for word in words.split()]
        result = cli("evaluate", *models, *options, "--baselines", "--json")
        assert result.code == 0
        assert result.err.count("b.bin") == 1
        assert read == [folder / "a.txt", folder / "b.bin"]
        first, second = (row["characters"] for row in json.loads(result.out))
        assert first == second == (899 if "--text" in options else 89)

    def test_a_part_of_the_text_that_the_model_was_trained_on(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        held_out = tmp_path / "valid"
        held_out.write_text(prose.read_text()[-601:], newline="")
        figures = [
            json.loads(cli("evaluate", trained, *options, "--json").out)[0]["nats_per_char"]
            for options in (("--part", "valid"), ("--text", held_out))
        ]
        assert figures[0] == figures[1]

    def test_parts_of_different_texts_are_not_put_side_by_side(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        cli("train", prose, "--run", other, "--test-share", 0.1, *QUICK)
        result = cli("evaluate", trained, other, "--part", "valid")
        assert result.code == 2
        assert f"the valid part of {other} is not that of {trained}" in one_line(result)
        cli("train", prose, "--run", tmp_path / "same", "--encoding", "bytes", *QUICK)
        same = cli("evaluate", trained, tmp_path / "same", "--part", "valid", "--json")
        assert [row["characters"] for row in json.loads(same.out)] == [600, 600]

    def test_says_what_was_trained_on(self, cli: Cli, trained: Path, prose: Path) -> None:
        result = cli("evaluate", trained, "--text", prose)
        assert result.err == (
            f"{trained}: the model was trained on 5,406 of these 6,007 characters: --part valid is "
            "what was held out\n"
        )
        assert cli("evaluate", trained, "--part", "train").err == ""
        (row,) = json.loads(cli("evaluate", trained, "--text", prose, "--json").out)
        (note,) = row["notes"]
        assert result.err == f"{trained}: {note}\n"

    def test_says_so_of_a_file_of_several(self, cli: Cli, tmp_path: Path) -> None:
        texts = [tmp_path / name for name in ("one", "two", "three")]
        for seed, path in enumerate(texts):
            path.write_text(make_prose(1300 + seed, seed=seed), encoding="utf-8")
        run = tmp_path / "run"
        options = ("--valid", texts[2], "--valid", texts[1])
        result = cli("train", *texts[:2], *options, "--run", run, *QUICK)
        note = (
            "note: 1,301 of the 2,603 characters that --valid names are trained on, too: "
            "validations "
        )
        assert note + "flatter the model\n" in result.err
        result = cli("evaluate", run, "--text", texts[1])
        assert f"{run}: the model was trained on these very characters" in result.err
        result = cli("evaluate", run, "--text", texts[2], "--text", texts[0])
        assert f"{run}: the model was trained on 1,300 of these 2,602 characters" in result.err

    def test_says_on_how_much_validations_chose_the_checkpoint(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If few updates are planned, validations score only the beginning."""
        monkeypatch.setattr("charrnn.planning.plan_validations", lambda *_: (2, 100))
        run = tmp_path / "run"
        assert cli("train", prose, "--run", run, *QUICK).code == 0
        result = cli("evaluate", run, "--part", "valid")
        assert "was chosen by its loss on 100 of these 601 characters" in result.err

    def test_says_what_chose_the_checkpoint(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        said = "was chosen by its loss on"
        result = cli("evaluate", trained, "--part", "valid")
        assert result.err == (
            f"{trained}: the model {said} these very characters, which flatters it: another "
            "text tells more\n"
        )
        assert cli("evaluate", trained / "last.safetensors", "--part", "valid").err == ""
        copy = Path(shutil.copy(trained / "best.safetensors", tmp_path / "mine.safetensors"))
        assert said in cli("evaluate", copy, "--part", "valid").err
        later = load(copy)
        later.meta["progress"]["best_step"] -= 1
        save(copy, later)
        assert cli("evaluate", copy, "--part", "valid").err == "", "a renamed last.safetensors"
        # In another encoding positions cannot be compared, so no number is given.
        result = cli("evaluate", trained, "--text", prose, "--encoding", "latin-1")
        assert "the model was trained on some of this text: --part valid is" in result.err
        text, held_out, run = (tmp_path / name for name in ("text", "held-out", "run"))
        text.write_text(make_prose(400))
        held_out.write_text(make_prose(200, seed=2))
        options = ("--valid", held_out, "--test-share", 0.1)
        assert cli("train", text, "--run", run, *options, *QUICK).code == 0
        result = cli("evaluate", run, "--text", held_out)
        assert f"{said} these very characters, which flatters it: --part test" in result.err
        assert said not in cli("evaluate", run, "--part", "test").err

    def test_a_text_that_moved_is_found_where_the_run_went_on_with_it(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        text, run, moved = tmp_path / "text", tmp_path / "run", tmp_path / "moved"
        text.write_bytes(prose.read_bytes())
        cli("train", text, "--run", run, *QUICK)
        whole = cli("evaluate", run, "--part", "valid", "--json")
        text.rename(moved)
        lost = one_line(cli("evaluate", run, "--part", "valid"))
        assert lost == (
            f"charrnn: {run}: the text that its run read: there is no file {text}: check its "
            "name; --text FILE says where it is now; without --part it names another text\n"
        )
        there = cli("evaluate", run, "--part", "valid", "--text", moved, "--baselines", "--json")
        assert (there.code, there.err) == (0, whole.err)
        found, scored = (json.loads(one.out)[0] for one in (there, whole))
        assert found["nats_per_char"] == scored["nats_per_char"]
        assert "unigram" in {one["name"] for one in found["baselines"]}
        other = tmp_path / "other"
        other.write_text(prose.read_text()[::-1])
        for words in (("evaluate",), ("inspect", "--only", "gates")):
            refused = cli(*words, run, "--part", "valid", "--text", other)
            assert refused.code == 1
            assert one_line(refused).startswith(
                f"charrnn: {run}: the text ({other}) is not the one its run was started on: "
            )
        lost = one_line(cli("train", "--run", run, "--resume"))
        assert lost == (
            f"charrnn: there is no file {text}: check its name; if the run's text has moved, "
            f"name it: charrnn train TEXT --run {shlex.quote(str(run))} --resume\n"
        )
        last = run / "last.safetensors"
        before = read_description(last).meta["training"]
        for options in ((), ("--lr", 0.5, "--steps", 3), ("--json", "--lr", 0.5, "--steps", 3)):
            again = cli("train", moved, "--run", run, "--resume", *options)
            assert again.code == 0
            assert ("finished already" in again.err) == ("--json" not in options)
        # Options with no effect on a finished run are not kept: they would apply if it got more.
        assert read_description(last).meta["training"] == before
        assert read_description(last).meta["progress"]["planned_steps"] == 3
        found = cli("evaluate", run, "--part", "valid", "--json")
        assert (found.code, found.err) == (0, whole.err)
        before, since = (json.loads(one.out)[0]["nats_per_char"] for one in (whole, found))
        assert before == since
        moved.rename(text)
        cli("train", "-", "--run", run, "--resume", stdin=prose.read_bytes())
        assert cli("evaluate", run, "--part", "valid").code == 0, "the recorded name still counts"

    def test_a_checkpoint_in_another_run_s_folder_keeps_its_own_text(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        other, run = tmp_path / "other", tmp_path / "run"
        other.write_text(prose.read_text()[::-1])
        assert cli("train", other, "--run", run, *QUICK).code == 0
        stray = shutil.copy(trained / "best.safetensors", run / "stray.safetensors")
        found = [cli("evaluate", path, "--part", "valid", "--json") for path in (trained, stray)]
        one, same = (json.loads(result.out)[0]["nats_per_char"] for result in found)
        assert one == same

    def test_a_text_that_was_piped_is_said_to_be_gone(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        assert cli("train", "-", "--run", run, *QUICK, stdin=prose.read_bytes()).code == 0
        assert one_line(cli("evaluate", run, "--part", "valid")) == (
            f"charrnn: {run}: its run read standard input, which is gone; --text FILE says where "
            "it is now; without --part it names another text\n"
        )
        again = ("evaluate", run, "--part", "valid", "--text", "-", "--baselines")
        found = cli(*again, stdin=prose.read_bytes())
        assert found.code == 0
        assert "unigram" in found.out

    @pytest.mark.parametrize("with_training", [False, True])
    def test_the_training_text_is_read_where_it_is_needed(
        self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_training: bool
    ) -> None:
        text, read = tmp_path / "text", []
        text.write_text(make_prose(200, seed=2))

        def counting(texts: tuple[str, ...], encoding: str) -> Corpus:
            read.append(texts)
            return scan(texts, encoding)

        monkeypatch.setattr("charrnn.subject.scan", counting)
        (subject,) = load_subjects(
            [trained], TextSource(texts=(str(text),)), torch.device("cpu"),
            with_training=with_training, tell=print,
        )  # fmt: skip
        assert len(read) == 1 + with_training
        assert (subject.training is not None) == with_training

    def test_a_validation_text_that_moved_is_not_taken_for_the_training_text(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        held_out, run, moved = tmp_path / "held-out", tmp_path / "run", tmp_path / "moved"
        held_out.write_text(make_prose(200, seed=2))
        assert cli("train", prose, "--valid", held_out, "--run", run, *QUICK).code == 0
        held_out.rename(moved)
        found = cli("evaluate", run, "--part", "valid", "--text", moved, "--baselines", "--json")
        assert "left out" not in found.err
        assert "unigram" in {one["name"] for one in json.loads(found.out)[0]["baselines"]}

    def test_only_a_name_after_those_of_a_text_is_said_to_be_of_a_pattern(
        self, cli: Cli, trained: Path, prose: Path
    ) -> None:
        hint = "in quotes"
        assert hint in one_line(cli("evaluate", trained, prose, "--text", prose))
        assert hint not in one_line(cli("evaluate", prose, "--text", prose))
        assert hint not in one_line(cli("evaluate", trained, prose, "--part", "valid"))

    def test_what_lies_beside_runs_is_left_out(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        """A pattern also matches a comparison's folder, a text and a compressed file."""
        for name in ("a run", "b-run", "c-compare/lstm-seed1"):
            shutil.copytree(trained, tmp_path / name)
        (tmp_path / "README.md").write_text("# Runs\n")
        (tmp_path / "z.pt").write_bytes(gzip.compress(b"z"))
        found = sorted(tmp_path.iterdir())
        for options in (("--part", "valid"), ("--text", prose)):
            result = cli("evaluate", *found, *options, "--json")
            assert result.code == 0
            runs = [Path(row["checkpoint"]).name for row in json.loads(result.out)]
            assert runs == ["a run", "b-run"]
            assert result.err.splitlines()[:3] == [
                f"{tmp_path / 'README.md'}: a text, not a checkpoint: left out",
                f"{tmp_path / 'c-compare'}: a folder without a checkpoint: left out",
                f"{tmp_path / 'z.pt'}: compressed by gzip: left out",
            ]
        none = cli("evaluate", *found[3:], "--part", "valid")
        assert "c-compare: a folder without a checkpoint: name a run's in it" in one_line(none)

    def test_what_else_a_run_s_folder_holds_is_left_out(self, cli: Cli, trained: Path) -> None:
        files = sorted(trained.iterdir())
        assert {"lock", "metrics.jsonl"} <= {path.name for path in files}
        found = cli("evaluate", *files, "--part", "valid", "--json")
        assert found.code == 0
        scored = sum(path.suffix == ".safetensors" for path in files)
        assert len(json.loads(found.out)) == scored
        assert f"{trained / 'lock'}: the file is empty: left out" in found.err

    def test_nothing_else_is_left_out(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        """Not a damaged checkpoint, nor a file elsewhere, which no pattern for runs would match."""
        run, other = (shutil.copytree(trained, tmp_path / name) for name in ("run", "other"))
        content = (other / "best.safetensors").read_bytes()
        damaged = content[:-1] + bytes([content[-1] ^ 1])
        for flaw, said in ((damaged, "damaged: its SHA-256"), (b"", "the file is empty")):
            (other / "best.safetensors").write_bytes(flaw)
            line = one_line(cli("evaluate", run, other, "--part", "valid"))
            assert f"{other / 'best.safetensors'}: {said}" in line
        missing = one_line(cli("evaluate", run, tmp_path / "no", "--part", "valid"))
        assert "no such checkpoint" in missing
        line = one_line(cli("evaluate", run, prose, "--part", "valid"))
        assert f"{prose}: a text, not a checkpoint: train on it" in line
        beside = [shutil.copy(prose, tmp_path / name) for name in ("a.txt", "b.txt")]
        line = one_line(cli("evaluate", run, "--text", *beside))
        assert line.endswith(
            "if a pattern after --text gave this name, put the pattern in quotes\n"
        )

    def test_a_device_that_is_no_cpu_is_named(
        self, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cpu = torch.device("cpu")
        monkeypatch.setattr("charrnn.device.choose_device", lambda _name: torch.device("mps"))
        monkeypatch.setattr("charrnn.subject.load_model", lambda path, _: load_model(path, cpu))
        words = ("evaluate", trained, "--text", trained / "metrics.jsonl")
        for options in ((), ("--json",)):
            result = cli(*words, *options)
            assert result.code == 0
            assert result.err.endswith("\nscoring on mps\n")

    def test_sampling_and_looking_name_such_a_device_too(
        self, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cpu = torch.device("cpu")
        monkeypatch.setattr("charrnn.device.choose_device", lambda _name: torch.device("mps"))
        for module in ("trained", "subject"):
            name = f"charrnn.{module}.load_model"
            monkeypatch.setattr(name, lambda path, _: load_model(path, cpu))
        result = cli("sample", trained, "--length", 3, "--json")
        assert (result.code, result.err) == (0, "sampling on mps\n")
        assert json.loads(result.out)["device"] == "mps"
        words = ("inspect", trained, "--part", "valid", "--only", "clipping")
        result = cli(*words, "--json")
        assert (result.code, json.loads(result.out)["device"]) == (0, "mps")
        assert "inspecting on mps\n" in result.err
        assert "inspecting on mps\n" in cli(*words).err

    def test_in_depth_adds_names_and_changes_none(self, cli: Cli, trained: Path) -> None:
        plain = json.loads(cli("evaluate", trained, "--part", "valid", "--json").out)[0]
        options = ("--baselines", "--dynamic", "--by-position", 7, "--after", "the ")
        result = cli("evaluate", trained, "--part", "valid", *options, "--json")
        (row,) = json.loads(result.out)
        assert result.err.count("\n") == 1
        assert tuple(row) == (
            *self.NAMES, "dynamic", "nats_by_position", "stretches", "after", "baselines",
            *self.ORIGIN,
        )  # fmt: skip
        assert row.keys() == documented_fields("`evaluate`: a list")
        measured = set(self.NAMES) - {"chars_per_second"}
        assert {name: row[name] for name in measured} == {name: plain[name] for name in measured}
        assert tuple(row["dynamic"]) == self.NAMES[-9:-4]
        assert (len(row["nats_by_position"]), row["stretches"]) == (7, 600 // 7)
        for baseline in row["baselines"]:  # the text is ASCII
            assert baseline["bits_per_byte"] == pytest.approx(baseline["bits_per_char"])
            assert baseline["perplexity"] == pytest.approx(2 ** baseline["bits_per_char"])
        assert row["after"]["text"] == "the "
        assert row["after"]["characters"] > 0
        shown = cli("evaluate", trained, "--part", "valid", "--after", "the ").out
        assert f"{trained}: after 'the ' " in shown
        names = [baseline["name"] for baseline in row["baselines"]]
        assert names[:2] == ["uniform", "unigram"]
        assert names[2].endswith("-gram")
        assert names[3:] == ["gzip", "bzip2", "xz"]

    def test_baselines_without_the_training_text(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        text, run = tmp_path / "text", tmp_path / "run"
        text.write_text(prose.read_text())
        cli("train", text, "--run", run, *QUICK)
        text.write_text(make_prose(99))
        result = cli("evaluate", run, "--text", prose, "--baselines", "--json")
        said = (
            "the model has no unigram and n-gram beside it, which learn from its training part: "
            f"the text ({text}) is not the one its run was started on: "
        )
        assert f"held out\n{run}: {said}" in result.err
        assert result.err.endswith("...: bring the old text back\n")
        (row,) = json.loads(result.out)
        assert row["notes"][-1].startswith(said)
        names = [baseline["name"] for baseline in row["baselines"]]
        assert names == ["uniform", "gzip", "bzip2", "xz"]

    def test_a_text_that_moved_is_found_for_the_baselines_of_its_test_part(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        """The run validates on another text, but --text names that one only with --part valid."""
        text, moved, run = tmp_path / "text", tmp_path / "moved", tmp_path / "run"
        text.write_text(prose.read_text())
        cli("train", text, "--valid", prose, "--test-share", 0.1, "--run", run, *QUICK)
        text.rename(moved)
        for part in ("test", "train"):
            words = ("--part", part, "--text", moved, "--baselines", "--json")
            found = cli("evaluate", run, *words)
            names = [baseline["name"] for baseline in json.loads(found.out)[0]["baselines"]]
            assert "unigram" in names, found.err
        found = cli("evaluate", run, "--part", "valid", "--text", prose, "--baselines")
        assert f"there is no file {text}" in found.err

    def test_models_that_read_other_files_of_a_folder_are_not_ranked(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        folder, of_bytes = tmp_path / "folder", tmp_path / "bytes"
        folder.mkdir()
        (folder / "a").write_text(prose.read_text())
        (folder / "b").write_bytes(b"\xe9t\xe9 " * 20)
        cli("train", prose, "--encoding", "bytes", "--run", of_bytes, *QUICK)
        for models in ((trained, of_bytes), (of_bytes, trained)):
            done = cli("evaluate", *models, "--text", folder)
            assert done.code == 2
            assert (
                f"charrnn: {folder}/b is text for {of_bytes} but not for {trained}, which reads "
                "another encoding: score them one by one, or name files that both can read\n"
            ) in done.err
            assert cli("evaluate", *models, "--text", folder / "a").code == 0

    @needs_full
    def test_a_file_of_prices_is_whole_where_the_text_cannot_be_shown(
        self, trained: Path, tmp_path: Path
    ) -> None:
        prices = tmp_path / "prices"
        words = ("evaluate", trained, "--part", "valid", "--show", "--per-char", prices)
        code, said = on_a_full_disk(*words)
        assert code == 1
        assert said.endswith("charrnn: cannot write the output: No space left on device\n")
        assert len(prices.read_text(encoding="utf-8").splitlines()) == 600

    @pytest.mark.parametrize("option", ["--per-char", "--report"])
    def test_a_file_is_written_though_the_reader_of_the_text_leaves(
        self, trained: Path, tmp_path: Path, option: str
    ) -> None:
        """As when a user quits a pager; without a file to write, that ends the command."""
        file = tmp_path / "of-scores.html"
        code, _ = run_unread("evaluate", trained, "--part", "valid", "--show", option, file)
        assert (code, file.exists()) == (0, True)

    def test_a_file_of_prices_that_fails_at_its_end_costs_no_scores(
        self, cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.fsync", refusing(errno.ENOSPC))
        prices = tmp_path / "prices"
        done = cli("evaluate", trained, "--part", "valid", "--json", "--per-char", prices)
        said = f"charrnn: {prices}: cannot write the prices: No space left on device; free some "
        assert (done.code, said in done.err, prices.exists()) == (1, True, False)
        assert json.loads(done.out)[0]["characters"] == 600

    def test_a_file_of_prices_is_refused_before_anything_is_measured(
        self, cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("charrnn.watching.price_baselines", lambda *_: pytest.fail("it was"))
        words = ("--part", "valid", "--baselines", "--per-char", tmp_path / "missing" / "x")
        done = cli("evaluate", trained, *words)
        assert done.code == 1
        assert done.err.endswith("missing/x: cannot write the prices: No such file or directory\n")

    @pytest.mark.parametrize("options", [(), ("--dynamic",)])
    def test_the_price_of_each_character_adds_up(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path, options: tuple[str, ...]
    ) -> None:
        file = tmp_path / "prices.jsonl"
        result = cli(
            "evaluate", trained, "--text", prose, "--per-char", file, *options, "--json"
        )  # fmt: skip
        (row,) = json.loads(result.out)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert "".join(line["character"] for line in lines) == prose.read_text()[1:]
        assert [line["position"] for line in lines] == list(range(1, 6007))
        mean = sum(line["nats"] for line in lines) / 6006
        assert mean == pytest.approx(row.get("dynamic", row)["nats_per_char"], abs=1e-5)

    @pytest.mark.parametrize("options", [(), ("--exact",), ("--after", "the")])
    def test_says_how_far_it_is(
        self, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
    ) -> None:
        monkeypatch.setattr("charrnn.stdio.Meter.PLAIN", 0.0)
        words = ("evaluate", trained, "--part", "valid", "--dynamic", *options)
        for more in ((), ("--json",)):
            said = cli(*words, *more).err
            for what in ("scored", "scored by dynamic evaluation"):
                assert f"600 of 600 characters {what}, 0 s to go: {trained}\n" in said
        assert "characters scored" not in cli(*words, "--show").err

    def test_says_how_far_the_rest_is(
        self, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("charrnn.stdio.Meter.PLAIN", 0.0)
        words = ("evaluate", trained, trained / "last.safetensors", "--part", "valid")
        said = cli(*words, "--baselines", "--by-position", 7).err.splitlines()
        priced = ["scored by the n-gram model", *(f"compressed by {name}" for name in COMPRESSORS)]
        for what in priced:
            told = [f"600 of 600 characters {what}, 0 s to go: {trained}"]
            assert [line for line in said if what in line] == told, "both have these baselines"
        assert f"595 of 600 characters scored by position, 0 s to go: {trained}" in said

    @pytest.mark.parametrize(
        ("target", "options"),
        [
            ("text", ""),
            ("alias", ""),
            ("run/best.safetensors", ""),
            ("run/last.safetensors", ""),
            ("run/metrics.jsonl", ""),
            ("learnt", "--baselines"),
        ],
    )
    def test_what_is_read_is_not_written_over(
        self, cli: Cli, tmp_path: Path, target: str, options: str
    ) -> None:
        text, run, learnt = (tmp_path / name for name in ("text", "run", "learnt"))
        text.write_text(make_prose(300))
        (tmp_path / "alias").symlink_to(text)
        learnt.write_text(make_prose(302))
        assert cli("train", learnt, "--valid", text, "--run", run, *QUICK).code == 0
        before = (tmp_path / target).read_bytes()
        for named in (("--text", text), ("--part", "valid")):
            words = ("--per-char", tmp_path / target, *options.split())
            result = cli("evaluate", run, *named, *words)
            assert f"--per-char {tmp_path / target} would overwrite " in one_line(result)
            assert result.code == 2
            assert (tmp_path / target).read_bytes() == before
        for _ in range(2):
            beside = ("--part", "valid", "--per-char", run / "prices.jsonl")
            assert cli("evaluate", run, *beside).code == 0

    def test_the_plan_of_a_run_s_comparison_is_not_written_over(
        self, cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, plan = tmp_path / "lstm-seed1", tmp_path / "comparison.json"
        shutil.copytree(trained, run)
        plan.write_text("{}")
        (run / "link").symlink_to(run)
        monkeypatch.chdir(run)
        for path in (run, ".", run / "link"):
            result = cli("evaluate", path, "--part", "valid", "--per-char", plan)
            said = f"charrnn: --per-char {plan} would overwrite the comparison's plan: give "
            assert one_line(result).startswith(said)
            assert plan.read_text() == "{}"

    @pytest.mark.parametrize("target", ["learnt", "held", "alias"])
    def test_what_the_run_read_is_not_written_over(
        self, cli: Cli, tmp_path: Path, target: str
    ) -> None:
        """Even though another text is scored."""
        learnt, held, text = (tmp_path / name for name in ("learnt", "held", "text"))
        for number, path in enumerate((learnt, held, text)):
            path.write_text(make_prose(300 + number))
        (tmp_path / "alias").symlink_to(learnt)
        run = tmp_path / "run"
        assert cli("train", learnt, "--valid", held, "--run", run, *QUICK).code == 0
        before = (tmp_path / target).read_bytes()
        result = cli("evaluate", run, "--text", text, "--per-char", tmp_path / target)
        assert f"--per-char {tmp_path / target} would change {tmp_path}/" in one_line(result)
        assert result.code == 2
        assert (tmp_path / target).read_bytes() == before

    def test_shows_the_text(self, cli: Cli, trained: Path, tmp_path: Path) -> None:
        text = tmp_path / "text"
        text.write_text("The grey stone \x1b[2J sings.\n")
        result = cli("evaluate", trained, "--text", text, "--show")
        assert result.code == 0
        assert result.err.splitlines() == [
            f"{trained}: the model does not know 4 of the 26 characters scored, and each is "
            "charged as the unknown symbol and spelled out: '\\x1b' x 1, '2' x 1, 'J' x 1, '[' x 1",
            "the text is shown without colours here: FORCE_COLOR=1 keeps them, --per-char FILE "
            "writes each character's loss",
        ]
        assert result.out.startswith("The grey stone \ufffd[2J sings.")
        assert "\x1b" not in result.out, "a pipe gets no colours"

    def test_the_first_character_has_no_price(
        self, cli: Cli, trained: Path, tmp_path: Path
    ) -> None:
        text = tmp_path / "text"
        for strange in ("☃", "☃☃"):
            text.write_text(strange + "The grey stone", encoding="utf-8")
            result = cli("evaluate", trained, "--text", text, "--json")
            unknown = json.loads(result.out)[0]["unknown"]
            assert unknown == len(strange) - 1
            assert result.err.count(f"does not know {unknown} of the 15 characters") == unknown

    def test_a_note_on_several_models_is_said_once(
        self, cli: Cli, trained: Path, of_bytes: Path, tmp_path: Path
    ) -> None:
        text = tmp_path / "text"
        text.write_text("The grey stone sings 22.\n")
        last = trained / "last.safetensors"
        result = cli("evaluate", trained, of_bytes, last, "--text", text)
        assert result.err == (
            f"{trained}, {last}: each model does not know 2 of the 24 characters scored, and each "
            "is charged as the unknown symbol and spelled out: '2' x 2\n"
        )

    def test_the_table_has_every_figure(self, cli: Cli, trained: Path) -> None:
        models = (trained, trained / "last.safetensors")
        result = cli("evaluate", *models, "--part", "valid")
        assert (result.code, result.err.count("\n")) == (0, 1)
        lines = result.out.splitlines()
        assert len(lines) == 3, "nothing is wrapped in a pipe"
        assert lines[0].split() == [
            "checkpoint", "cell", "parameters", "characters", "unknown", "nats/char",
            "bits/char", "bits/byte", "perplexity", "chars/s",
        ]  # fmt: skip
        assert lines[1].removeprefix(str(trained)).split()[:2] == ["lstm", "1x32"]

    def test_exact_and_default_agree(
        self, cli: Cli, trained: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("charrnn.evaluation.SHORTEST_LANE", 300)  # the default has 20 lanes
        monkeypatch.setattr("charrnn.evaluation.WARM_UP", 9)  # too short to forget all
        results = [
            json.loads(cli("evaluate", trained, "--text", prose, "--json", *options).out)[0]
            for options in ((), ("--exact",))
        ]
        by_lanes, exact = (result["nats_per_char"] for result in results)
        assert 0 < abs(by_lanes - exact) < 1e-3

    def test_an_encoding_is_for_the_models_of_characters(
        self, cli: Cli, trained: Path, of_bytes: Path, tmp_path: Path
    ) -> None:
        text = tmp_path / "text"
        text.write_text("the grey stöne sings", encoding="latin-1")
        models = (of_bytes, trained)
        assert "--encoding" in one_line(cli("evaluate", *models, "--text", text))
        result = cli("evaluate", *models, "--text", text, "--encoding", "latin-1", "--json")
        assert [row["unknown"] for row in json.loads(result.out)] == [0, 1]
        for words in (("latin-1", of_bytes, of_bytes), ("bytes", *models)):
            refused = cli("evaluate", *words[1:], "--text", text, "--encoding", words[0])
            assert "leave it out" in one_line(refused)

    def test_bytes_that_are_no_utf_8_can_be_followed(
        self, cli: Cli, tmp_path: Path, of_bytes: Path
    ) -> None:
        text = tmp_path / "text"
        text.write_bytes(b"a\xffb\xffc")
        result = cli("evaluate", of_bytes, "--text", text, "--after", "\udcff", "--json")
        assert json.loads(result.out)[0]["after"]["characters"] == 2

    def test_a_page_of_a_single_character(self, cli: Cli, tmp_path: Path, of_bytes: Path) -> None:
        text, page = tmp_path / "text", tmp_path / "page.html"
        text.write_text("é", encoding="utf-8")
        assert cli("evaluate", of_bytes, "--text", text, "--report", page).code == 0
        assert "bits for 1 character, " in page.read_text(encoding="utf-8")

    def test_models_of_other_symbols_have_other_baselines(
        self, cli: Cli, prose: Path, trained: Path, of_bytes: Path
    ) -> None:
        result = cli("evaluate", trained, of_bytes, "--text", prose, "--baselines")
        said = [line for line in result.out.splitlines() if line.startswith("uniform (")]
        assert len(said) == 4
        assert f"uniform ({of_bytes}): 256 symbols" in said

    def test_a_note_does_not_name_where_standard_input_is_kept(
        self, cli: Cli, trained: Path
    ) -> None:
        for name in ("evaluate", "inspect"):
            text = b"\xef\xbb\xbf" + make_prose(400).encode()
            result = cli(name, trained, "--text", "-", stdin=text)
            assert "standard input: read without its byte order mark" in result.err


@pytest.mark.slow
def test_where_the_locale_is_ascii(cli: Cli, tmp_path: Path) -> None:
    """Texts are still utf-8 and paths still bytes, whether typed, piped or in files."""
    name, text = "flüsse.txt".encode(), "Ein Fluß fließt — kalt.\n" * 60
    (tmp_path / os.fsdecode(name)).write_bytes(text.encode())
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}

    def run(*words: object, stdin: str = "") -> tuple[bytes, str]:
        done = subprocess.run(
            command(*words), input=stdin.encode(), capture_output=True, cwd=tmp_path, check=True,
            env=ENVIRONMENT | ascii_only,
        )  # fmt: skip
        return done.stdout, done.stderr.decode("ascii")

    path, said = run("train", os.fsdecode(name), *QUICK)
    assert path == b"checkpoints/" + name.removesuffix(b".txt") + b"-lstm\n"
    assert said.startswith("text    fl\\udcc3\\udcbcsse.txt: 1,296 characters to train on")
    go_on = said.splitlines()[-1].removeprefix("sample from it with: charrnn sample ")
    assert subprocess.run(["bash", "-c", f"echo {go_on}"], capture_output=True).stdout == path
    words = ("sample", tmp_path / os.fsdecode(path.rstrip()), "--prompt", "-", "--echo")
    whole = cli(*words, stdin="Fluß".encode()).out
    assert {"ß", "—"} <= set(whole.removeprefix("Fluß"))
    assert run(*words, stdin="Fluß")[0] == whole.encode()
    assert run(*words[:2], "--prompt", "Fluß", "--echo")[0] == whole.encode()
    assert run(*words[:2], "--stop", "ß")[0].endswith("ß".encode())
    scored, _ = run("evaluate", words[1], "--part", "train", "--after", "ß", "--json")
    assert json.loads(scored)[0]["after"]["text"] == "ß"
    assert json.loads(scored)[0]["after"]["characters"] > 0


def waiting_in(pipe: int) -> int:
    """Return the number of unread bytes in a pipe."""
    (held,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(held)


class TestPipes:
    """Real processes and real pipes."""

    def test_an_endless_sample_ends_quietly_with_its_reader(self, trained: Path) -> None:
        with subprocess.Popen(
            command("sample", trained, "--length", 0),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            first = process.stdout.read(300)
            process.stdout.close()
            assert len(first) == 300
            assert process.wait(timeout=PATIENCE) == 0
            assert process.stderr.read() == b""

    @pytest.mark.parametrize(
        "words", [("evaluate", "--show"), ("inspect", "--only", "memory", "--characters", 500)]
    )
    def test_a_table_ends_quietly_without_its_reader(
        self, trained: Path, words: tuple[object, ...]
    ) -> None:
        name, *options = words
        code, said = run_unread(name, trained, "--part", "train", *options)
        assert said in ("", "looking at 500 characters: memory\n")
        assert code == 0

    @pytest.mark.parametrize("talk", [[], ["--json"]])
    def test_a_training_whose_reader_leaves_is_saved(
        self, cli: Cli, prose: Path, tmp_path: Path, talk: list[str]
    ) -> None:
        run = tmp_path / "run"
        # Each validation prints a line; without one, the next line comes after ten seconds.
        often = ("--validate-every", 20)
        arguments = ("train", "-", "--minutes", 5, *often, *QUICK[2:], "--run", run, *talk)
        with subprocess.Popen(
            command(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Without --json the lines are on stderr, and its reader leaves.
            stderr=subprocess.PIPE if talk else subprocess.STDOUT,
            env=ENVIRONMENT,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(prose.read_bytes())
            process.stdin.close()
            first = read_until(process, process.stdout, b"")
            assert first.startswith(b'{"event": "started"' if talk else b"text ")
            read_until(process, process.stdout, b"step ", b'{"event": "logged"')
            process.stdout.close()
            assert process.wait(timeout=PATIENCE) == 128 + signal.SIGPIPE, "the run is not finished"
            if process.stderr:
                go_on = f"charrnn train TEXT --run {shlex.quote(str(run))} --resume"
                said = f"nobody reads the output any more; go on with: {go_on}\n"
                assert process.stderr.read().decode() == said
        assert cli("sample", run, "--length", 5).code == 0

    @pytest.mark.parametrize(
        ("words", "code"),
        [
            (("inspect", "trained", "--part", "train", "--only", "step"), 0),
            # Its notes may go unread, but its first run stops if nobody watches.
            (("compare", "prose", "--minutes", 5, "--hidden", 5, "--cell", "rnn"), 141),
        ],
    )
    def test_a_command_whose_talk_nobody_reads_does_its_work(
        self, trained: Path, prose: Path, tmp_path: Path, words: tuple[object, ...], code: int
    ) -> None:
        named = {"trained": trained, "prose": prose}
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            command(*(named.get(str(word), word) for word in words)),
            stdout=subprocess.PIPE, stderr=writer, cwd=tmp_path, env=ENVIRONMENT,
        )  # fmt: skip
        os.close(writer)
        assert done.returncode == code
        assert bool(done.stdout) == (code == 0)

    def test_closed_streams_are_empty_and_swallow(self, trained: Path) -> None:
        arguments = shlex.join(command("sample", trained, "--prompt", "-", "--length", "5"))
        done = subprocess.run(
            f"{arguments} <&- >&-", shell=True, stderr=subprocess.PIPE, env=ENVIRONMENT
        )
        assert (done.returncode, done.stderr) == (0, b"")

    @needs_full
    def test_output_that_cannot_be_written_is_one_line(self, trained: Path) -> None:
        said = "charrnn: cannot write the output: No space left on device\n"
        assert on_a_full_disk("sample", trained, "--length", 5) == (1, said)
        assert on_a_full_disk("train", "--help") == (1, said)

    @needs_full
    def test_a_failure_after_output_that_cannot_be_written_is_one_line(
        self, trained: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "text").write_text("The river runs.")
        words = ("evaluate", trained, "--text", tmp_path / "text", "--per-char", "/dev/full")
        said = "charrnn: /dev/full: cannot write the prices: No space left on device; free some "
        assert on_a_full_disk(*words) == (1, f"{said}space\n")

    def test_help_that_nobody_reads_is_no_failure(self) -> None:
        assert run_unread("train", "--help") == (0, "")

    @pytest.mark.skipif(not hasattr(fcntl, "F_GETPIPE_SZ"), reason="no pipe tells its size")
    def test_a_reader_that_does_not_read_holds_up_no_end(self, trained: Path) -> None:
        """As less may not: unread output is lost without a word."""
        with subprocess.Popen(
            command("sample", trained, "--length", 0), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, pipesize=4096, env=ENVIRONMENT,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.read(1)
            pipe, end = process.stdout.fileno(), time.monotonic() + PATIENCE
            size, before = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ), 0
            # Until the next characters do not fit any more, which are written together.
            while (now := waiting_in(pipe)) < size / 2 or now > before:
                assert time.monotonic() < end, "waited in vain for a pipe that takes no more"
                before = now
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=PATIENCE) == 130
            assert process.stderr.read() == b""

    @needs_full
    def test_a_training_outlives_a_full_disk_under_its_talk(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        with Path("/dev/full").open("w") as full:
            for arguments, code, out in (
                (("train", prose, "--run", run, *QUICK), 0, f"{run}\n"),
                (("train", prose, "--run", run, *QUICK), 1, ""),  # the folder holds a run already
                (("train", "--steps", "many"), 2, ""),
            ):
                done = subprocess.run(
                    command(*arguments), stdout=subprocess.PIPE, stderr=full, env=ENVIRONMENT
                )
                assert (done.returncode, done.stdout.decode()) == (code, out)
        assert cli("sample", run, "--length", 5).code == 0

    @needs_full
    def test_what_a_disk_takes_is_written_as_it_was(self, tmp_path: Path) -> None:
        """Also after the disk was full for a while."""
        with (tmp_path / "log").open("w", encoding="ascii", errors="backslashreplace") as log:
            stream = lossy(log)
            print("a line, \N{SNOWMAN}", file=stream)
            kept = os.dup(log.fileno())
            with Path("/dev/full").open("w") as full:
                os.dup2(full.fileno(), log.fileno())
                print("lost", file=stream)
            os.dup2(kept, log.fileno())
            os.close(kept)
            print("and another", file=stream)
        assert (tmp_path / "log").read_text() == "a line, \\u2603\nand another\n"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (name, option)
        for name, known in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
        if name in ("train", "compare")
        for option in known.params
        if option.name not in NOT_OF_THE_RUN
    ],
)
def test_every_option_of_a_training_reaches_what_it_is_trained_by(
    command: str, option: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def stop(choices: recipe.Choices) -> None:
        told.update({**choices.budget, **choices.model, **choices.training})
        raise UsageError("this is enough")

    class Text(TextChoices):
        def __post_init__(self) -> None:
            told.update(vars(self))

    class Planned(Plan):
        def __post_init__(self) -> None:
            told.update(vars(self))
            raise UsageError("this is enough")

    monkeypatch.setattr(recipe, "refuse_nonsense", stop)
    monkeypatch.setattr("charrnn.train_command.TextChoices", Text)
    monkeypatch.setattr("charrnn.comparison.Plan", Planned)
    named = {"optimiser": "sgd", "precision": "bf16", "match": "hidden", "encoding": "auto"}
    value = named.get(option.name, 2)
    words = (option.opts[-1],) if option.is_flag else (option.opts[-1], value)
    assert "this is enough" in cli(command, *words).err
    assert told[option.name] == (True if option.is_flag else value)
