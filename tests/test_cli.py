from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import typer

from charrnn import __version__, recipe
from charrnn.cli import app
from charrnn.commands.options import fields_given
from charrnn.commands.stdio import lossy
from charrnn.config import InspectConfig, SampleConfig, TextChoices
from charrnn.errors import UsageError
from charrnn.inference.evaluation import score
from charrnn.runs import training
from charrnn.runs.comparison_plan import Plan
from tests.conftest import (
    ENVIRONMENT,
    PATIENCE,
    QUICK,
    ROOT,
    SIZES,
    Cli,
    Result,
    command,
    make_prose,
    needs_full,
    on_a_full_disk,
    one_line,
    read_until,
    run_code,
    run_unread,
    slowly,
)

#: A name that no file system takes.
LONG = "x" * 256
COMMANDS = tuple(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
#: Options of ``train`` and ``compare`` that say where and how to run, not what to train, or that
#: are turned into something else.
NOT_OF_THE_RUN = {
    "texts", "cell", "valid", "run", "resume", "init_from", "keep", "device", "report", "as_json",
    "quiet",
}  # fmt: skip


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
        ("variable", "given", "allowed", "value"),
        [
            # Waiting threads spin for a while.
            ("GOMP_SPINCOUNT", {}, 3, "4000"),
            ("GOMP_SPINCOUNT", {"GOMP_SPINCOUNT": "7"}, 3, "7"),
            ("GOMP_SPINCOUNT", {"OMP_WAIT_POLICY": "active"}, 3, "None"),
            # There are no more threads than there is time for.
            ("OMP_NUM_THREADS", {}, 3, "3"),
            ("OMP_NUM_THREADS", {}, None, "None"),
            ("OMP_NUM_THREADS", {"OMP_NUM_THREADS": "7"}, 3, "7"),
        ],
    )
    def test_how_threads_wait_and_how_many_there_are(
        self, variable: str, given: dict[str, str], allowed: int | None, value: str
    ) -> None:
        """The variable is set before torch is loaded, unless the environment says otherwise."""
        done = run_code(
            "import os, sys\nfrom charrnn import cli, limits\nsys.argv[1:] = ['--version']\n"
            f"limits.allowed_cores = lambda: {allowed}\ntry:\n    cli.main()\nfinally:\n"
            f"    print(os.environ.get('{variable}'), 'torch' in sys.modules)",
            environment={n: v for n, v in ENVIRONMENT.items() if n[:4] not in ("GOMP", "OMP_")}
            | given,
        )
        assert done.out.splitlines()[-1] == f"{value} False"

    @pytest.mark.parametrize(
        "fewer",
        [
            {"OMP_THREAD_LIMIT": "1"},
            {"OMP_THREAD_LIMIT": "1", "MKL_NUM_THREADS": "2"},
            *slowly(
                {"OMP_THREAD_LIMIT": "1", "MKL_DOMAIN_NUM_THREADS": "MKL_DOMAIN_ALL=2"},
                {"OMP_DYNAMIC": "true"},
                {"OMP_MAX_ACTIVE_LEVELS": "0"},
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
        done = run_code(
            "import sys\nfrom charrnn import cli\nsys.argv[1:] = ['--version']\n"
            "cli.keep_freed_memory = lambda: print('kept')\ncli.main()"
        )
        assert done == Result(0, f"kept\ncharrnn {__version__}\n", "")

    def test_version(self, cli: Cli) -> None:
        assert cli("--version") == Result(0, f"charrnn {__version__}\n", "")


def test_on_windows_it_says_where_it_runs() -> None:
    """It does so before it imports modules that Windows lacks."""
    done = run_code("import sys\nfrom charrnn.__main__ import main\nsys.platform = 'win32'\nmain()")
    said = "charrnn: Windows lacks what it needs: use it in WSL (README.md)\n"
    assert done == Result(1, "", said)


def test_in_a_notebook_s_own_process_it_says_how_to_call_it() -> None:
    """There %run leaves no file as stdout, and whatever is changed outlives the command."""
    done = run_code(
        "import io, signal, sys\nfrom charrnn.__main__ import main\n"
        "before = signal.getsignal(signal.SIGINT), sys.stderr\nsys.stdout = io.StringIO()\n"
        "try:\n    main()\nfinally:\n"
        "    assert (signal.getsignal(signal.SIGINT), sys.stderr) == before"
    )
    said = "charrnn: it needs a process of its own: in a notebook write !charrnn, not %run\n"
    assert done == Result(1, "", said)


def test_a_debugger_may_have_wrapped_stdout() -> None:
    done = run_code(
        "import sys\nfrom charrnn.__main__ import main\n"
        "class Wrapped:\n    __getattr__ = lambda self, name: getattr(sys.__stdout__, name)\n"
        "sys.stdout = Wrapped()\nmain()",
        "--help",
    )
    assert done.code == 0
    assert done.out.startswith("Usage: charrnn ")


@pytest.mark.parametrize(
    "words", [["-m", "charrnn"], ["-c", "from charrnn.__main__ import main; main()"]]
)
def test_ctrl_c_during_the_imports_ends_it_without_a_word(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "typer.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, env={**ENVIRONMENT, "PYTHONPATH": paths}
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


#: A charrnn that is interrupted while numpy is imported.
INTERRUPTED = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name in ("numpy._core.numerictypes", "numpy.core.numerictypes"):  # 2, and 1
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from charrnn.__main__ import main
main()
"""


def test_ctrl_c_after_the_last_line_changes_nothing() -> None:
    """Python would end with exit code 0 and a traceback from what a library does at exit."""
    done = run_code(
        "import atexit, os, signal, sys; from charrnn import cli; sys.argv[1:] = ['--version'];"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT)); cli.main()"
    )
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("charrnn ")


@pytest.mark.parametrize(
    "words",
    [
        "train {prose} --steps 1",
        *slowly(
            "compare {prose} --steps 1",
            "sample {trained} --length 5",
            "evaluate {trained} --part valid",
            "inspect {trained}",
        ),
    ],
)
def test_ctrl_c_while_numpy_is_imported_ends_the_command(
    trained: Path, prose: Path, empty_folder: Path, words: str
) -> None:
    """When torch imports numpy, it swallows all exceptions and goes on with half of it."""
    arguments = shlex.split(words.format(trained=trained, prose=prose))
    assert run_code(INTERRUPTED, *arguments) == Result(130, "", "")


class TestBadInput:
    """One line says what is wrong and what to do; the exit code is 1 or 2; nothing is written."""

    @pytest.fixture
    def texts(self, tmp_path: Path, trained: Path) -> dict[str, Path]:
        """Texts, most of them unusable in some way, and the trained run, by name."""
        folder = tmp_path / "texts"
        folder.mkdir()
        content = {
            "letter": b"a",
            "nothing": b"",
            "latin": "é".encode("latin-1") * 9,
            "prose": make_prose(300).encode(),
        }
        paths = {name: folder / name for name in (*content, "missing", "hollow")}
        for name, data in content.items():
            paths[name].write_bytes(data)
        paths["hollow"].mkdir()
        return {**paths, "trained": trained}

    @pytest.fixture
    def stopped_by(
        self, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[Exception], str]:
        """Return a function that returns what a command says that an error stops."""

        def say(error: Exception) -> str:
            loading = mock.Mock(side_effect=error)
            monkeypatch.setattr("charrnn.storage.trained.load_model", loading)
            result = cli("sample", trained)
            assert result.code == 1
            return one_line(result)

        return say

    @pytest.mark.parametrize(
        ("words", "code", "says"),
        [
            # The text.
            ("train {trained}", 1, "no text in {trained}: {trained}: left out (written by a"),
            ("train {prose} --steps 1e3", 2, "'--steps': not a whole number (see charrnn"),
            ("train {prose} --lr x", 2, "'--lr': not a number (see charrnn"),
            ("train {prose} --steps", 2, "requires an argument (see charrnn train --help)"),
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
            ("train {prose} --bogus", 2, "No such option: --bogus (see charrnn train --help)"),
            ("train {prose} -rnn_size 9", 2, "option: -rnn_size: use --hidden (see charrnn"),
            ("train {prose} --batch_size=9", 2, "option: --batch_size: use --batch-size (see"),
            ("train --data {prose}", 2, "option: --data: use charrnn train TEXT (see"),
            ("evaluate {trained} --data {prose}", 2, "option: --data: use --text (see"),
            ("sample {trained} -length 9", 2, "option: -length: use --length (see"),
            ("train {prose} -hidden_size 9", 2, "option: -hidden_size: use --hidden (see"),
            ("sample {trained} --start a", 2, "option: --start: use --prompt (see"),
            ("sample {trained} --prompt -start --bogus", 2, "option: --bogus (see charrnn"),
            ("train --bogus -- --data", 2, "option: --bogus (see charrnn train --help)"),
            ("sample --out_dir=a", 2, "option: --out_dir: use charrnn sample CHECKPOINT (see"),
            ("train -help", 2, "option: -help: use --help (see charrnn train --help)"),
            ("trian {prose}", 2, "'trian'. Did you mean 'train'?"),
            ("generate", 2, "'generate': there are train, sample, evaluate, compare and inspect ("),
            ("train --resume", 2, "--resume needs --run"),
            (f"train {{prose}} --run {LONG}", 1, f"{LONG}: cannot read the run's folder: File na"),
            (f"train --run {LONG} --resume", 1, f"{LONG}: cannot read the run's folder: File na"),
            (f"compare {{prose}} --steps 1 --run {LONG}", 1, f"{LONG}: File name too long"),
            (f"compare --run {LONG} --resume", 1, f"{LONG}: File name too long"),
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
            ("train {prose} --init-from {trained} --encoding bytes", 2, "name the encoding that"),
            # Sampling.
            ("sample", 2, "Missing argument"),
            ("sample {missing}", 1, "no such checkpoint"),
            ("sample {prose}", 1, "{prose}: a text, not a checkpoint: train on it, and name"),
            ("sample {trained} --temperature nan", 2, "--temperature"),
            ("sample {trained} --top-k 0", 2, "--top-k"),
            ("sample {trained} --top-p 0", 2, "--top-p"),
            ("sample {trained} --unknown ignore", 2, "--unknown"),
            ("sample {trained} --length 0 --json", 2, "--json"),
            ("sample {trained} --length 0 --stop . --json", 2, "--length 0 may never end"),
            # Scoring.
            ("evaluate", 2, "Missing"),
            ("evaluate {trained}", 2, "--text"),
            ("evaluate {trained} --text {latin} --part valid", 1, "the text that its run read"),
            ("evaluate {trained} {prose}", 2, "give a text: --text {prose}, or --part valid"),
            ("evaluate {trained} {trained}", 2, "give a text: --text FILE, or --part valid"),
            ("evaluate {prose}", 2, "give a text: --text FILE, or --part valid"),
            ("evaluate {trained} {nothing}", 2, "give a text: --text FILE, or --part valid"),
            ("evaluate {trained} {nothing} --part valid", 1, "{nothing}: the file is empty"),
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
            ("evaluate {trained} --text {prose} --encoding bytes", 2, "name the encoding that"),
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

    def test_an_encoding_is_advised_only_where_one_can_be_named(
        self, cli: Cli, texts: dict[str, Path]
    ) -> None:
        run, latin = texts["trained"], texts["latin"]
        for words in (
            ("evaluate", run, "--text", latin),
            ("inspect", run, "--text", latin),
            ("train", latin, "--init-from", run, "--steps", 1),
        ):
            line = one_line(cli(*words))
            assert line.endswith("name its --encoding (cp1252, gb18030, shift_jis, utf-16, ...)\n")
            assert "name its --encoding" not in cli(*words, "--encoding", "latin-1").err
            line = one_line(cli(*words, "--encoding", "utf-9"))
            assert line.endswith("Python knows: use utf-8 or another one's name\n")
        line = one_line(cli("train", latin, "--encoding", "utf-9"))
        assert line.endswith("Python knows: use utf-8, another one's name, or bytes\n")
        line = one_line(cli("evaluate", run, "--text", latin, "--part", "valid"))
        assert line.endswith("(invalid continuation byte): bring the old text back\n")
        line = one_line(cli("train", latin, "--run", run, "--resume"))
        assert "bring the old text back; if the run's text has moved, name it: charrnn" in line
        assert "--encoding" not in line

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
        monkeypatch.setattr("charrnn.runs.starting.multiplies_bf16", lambda device: False)
        result = cli("train", texts["prose"], "--precision", "bf16", "--device", "cpu")
        assert "--precision bf16 needs a CPU with AVX512-BF16 or a CUDA GPU" in one_line(result)
        assert result.code == 2

    @pytest.mark.parametrize("precision", [[], ["--precision", "fp32"]])
    def test_a_gpu_whose_cudnn_is_too_old_for_bf16(
        self,
        cli: Cli,
        texts: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        precision: list[str],
    ) -> None:
        monkeypatch.setattr("charrnn.runs.starting.multiplies_bf16", lambda device: True)
        monkeypatch.setattr("charrnn.runs.starting.recurs_in_bf16", lambda device: False)
        said = cli("train", texts["prose"], "--run", tmp_path / "run", *QUICK, *precision).err
        assert ("a cuDNN without bf16 recurrences" in said) == (not precision)

    def test_weights_of_fewer_bits_on_a_gpu(
        self, cli: Cli, texts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("charrnn.compute.device.choose_device", lambda _: torch.device("meta"))
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
            (("train", "prose", "--run", "loop"), "cannot read the run's folder: "),
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
        ],
    )
    def test_memory_that_is_refused(
        self, stopped_by: Callable[[Exception], str], error: Exception
    ) -> None:
        assert stopped_by(error) == "charrnn: out of memory: close other programs\n"

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory."),
            torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(...)`"),
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
            RuntimeError("MPS backend out of memory (MPS allocated: 7.64 GiB, other ...)"),
        ],
    )
    def test_memory_that_a_gpu_refuses(
        self, stopped_by: Callable[[Exception], str], error: Exception
    ) -> None:
        assert stopped_by(error) == (
            "charrnn: out of memory: close other programs, or give --device cpu\n"
        )

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
            masked = (*begin, "--dropout-masks=3", "--quiet")
            assert one_line(cli(*masked).without_notes) == (
                "charrnn: out of memory: give a smaller --hidden, --batch-size, --bptt or "
                "--dropout-masks\n"
            )
            kept = f"--init-from={texts['trained']}"
            begin_with = (*begin[:4], "--steps", 4, "--validate-every", 2, kept, "--quiet")
            assert one_line(cli(*begin_with).without_notes) == (
                "charrnn: out of memory: give a smaller --batch-size or --bptt\n"
            )
        go_on = f"charrnn train --run {shlex.quote(str(run))} --resume"
        more = "charrnn: out of memory: continue on a machine with more, or with another --device"
        once = mock.Mock(side_effect=[mock.DEFAULT, MemoryError], wraps=score)
        monkeypatch.setattr(training, "score", once)
        assert one_line(cli(*begin, "--quiet").without_notes) == (
            f"{more}; step 2 is saved whole: go on from it with: {go_on}\n"
        )
        monkeypatch.setattr("charrnn.runs.resuming.resume", mock.Mock(side_effect=MemoryError))
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
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def test_a_python_without_a_module_of_its_own(
        self, stopped_by: Callable[[Exception], str]
    ) -> None:
        """As where Python was compiled without the headers of xz."""
        error = ModuleNotFoundError("No module named '_lzma'", name="_lzma")
        said = "charrnn: this Python was built without _lzma: use another one\n"
        assert stopped_by(error) == said

    @pytest.mark.parametrize("kind", [ImportError, OSError])
    def test_a_library_that_cannot_be_loaded(
        self, stopped_by: Callable[[Exception], str], kind: type[Exception]
    ) -> None:
        error = kind("libtorch_cpu.so: failed to map segment from shared object")
        assert stopped_by(error) == (
            "charrnn: a library cannot be loaded: libtorch_cpu.so: failed to map segment from "
            "shared object: there is too little memory (ulimit -v shows the limit), or "
            "charrnn needs to be installed again\n"
        )

    def test_a_mistake_of_ours_is_one_line_too(
        self, stopped_by: Callable[[Exception], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        error = KeyError("weight\nmissing")
        assert "this is a fault in charrnn, KeyError" in stopped_by(error)
        monkeypatch.setenv("CHARRNN_TRACEBACK", "1")
        with pytest.raises(KeyError):
            stopped_by(error)


@pytest.mark.parametrize("option", [["sample", "r", "--prompt"], ["train"], ["inspect"]])
def test_a_word_that_the_locale_cannot_write(cli: Cli, option: list[str]) -> None:
    """As a C1 control character in a locale of EUC, here stood for by a lone surrogate."""
    result = cli(*option, "caf\ud800")
    assert (result.code, result.out, result.err) == (
        2,
        "",
        r"charrnn: caf\ud800 cannot be written in this locale's encoding, utf-8: set LC_ALL to one "
        "of utf-8, such as C.UTF-8\n",
    )


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
        arguments = ("train", "-", "--minutes", 5, *often, *SIZES, "--run", run, *talk)
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

    def test_talk_that_goes_nowhere_is_no_matter(self, prose: Path, tmp_path: Path) -> None:
        """``2<`` in place of ``2>`` opens for reading only; ``2>&-`` closes."""
        for number, nowhere in enumerate(("2</dev/null", "2>&-")):
            arguments = shlex.join(command("train", prose, "--run", tmp_path / f"{number}", *QUICK))
            done = subprocess.run(
                f"{arguments} {nowhere}", shell=True, stdout=subprocess.PIPE, env=ENVIRONMENT
            )
            assert (done.returncode, done.stdout.decode()) == (0, f"{tmp_path / str(number)}\n")

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
    monkeypatch.setattr("charrnn.commands.train.TextChoices", Text)
    monkeypatch.setattr("charrnn.runs.comparison_plan.Plan", Planned)
    named = {"optimiser": "sgd", "precision": "bf16", "match": "hidden", "encoding": "auto"}
    value = named.get(option.name, 2)
    words = (option.opts[-1],) if option.is_flag else (option.opts[-1], value)
    assert "this is enough" in cli(command, *words).err
    assert told[option.name] == (True if option.is_flag else value)


def test_every_option_of_a_draw_is_a_setting_of_it() -> None:
    """``fields_given`` passes by what neither of the two knows."""
    known = typer.main.get_command(app).commands["sample"]  # type: ignore[attr-defined]
    others = {"checkpoint", "prompt", "unknown", "echo", "device", "as_json"}
    options = {option.name for option in known.params} - others
    assert options == {field.name for field in fields(SampleConfig)}


def test_what_may_be_given_several_times_is_a_tuple() -> None:
    context: Any = SimpleNamespace(params={"bptt": [3, 7], "seed": 0, "part": "valid"})
    assert fields_given(context, InspectConfig, but=()) == {"bptt": (3, 7), "seed": 0}
