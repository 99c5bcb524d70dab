"""``charrnn train`` from the command line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from charrnn.commands.stdio import waits_unread
from charrnn.config import TrainConfig
from charrnn.storage.checkpoint import load
from charrnn.storage.reading import TextRecord
from charrnn.storage.runfolder import RunFolder
from charrnn.storage.trained import load_model
from tests.conftest import (
    ENVIRONMENT,
    QUICK,
    SIZES,
    Cli,
    Result,
    command,
    log_of,
    make_prose,
    needs_raw_names,
    one_line,
)


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
            monkeypatch.setattr(f"charrnn.runs.{module}.embedded_corpus", lambda: [str(prose)])
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
        monkeypatch.setattr("charrnn.runs.starting.embedded_corpus", lambda: [str(prose)])
        for module in ("train", "compare"):
            monkeypatch.setattr(f"charrnn.commands.{module}.waits_unread", lambda: waits)
        note = "note: standard input is not read: give - as TEXT to train on it\n"
        for texts in ((), (prose,), ("-",)):
            run = tmp_path / f"{len(texts)}{'-' in texts}"
            result = cli("train", *texts, "--run", run, *QUICK, stdin=prose.read_bytes())
            assert (note in result.err) == (waits and not texts)
        monkeypatch.setattr("charrnn.runs.comparing.embedded_corpus", lambda: [str(prose)])
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

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "bytes"])
    def test_says_that_letters_are_in_two_forms(
        self, cli: Cli, tmp_path: Path, encoding: str
    ) -> None:
        text = tmp_path / "text"
        written = "été à côté\n" * 60 + "e\u0301te\u0301 a\u0300\n" * 40
        text.write_text(written, encoding="utf-8" if encoding == "bytes" else encoding)
        words = ("--encoding", encoding, "--run", tmp_path / "run", "--json", *QUICK)
        notes = [note for note in cli("train", text, *words).rows[0]["notes"] if "form" in note]
        said = (
            r"'é' is one character 180 times, and 80 times it is 'e' and '\u0301', and so is 1 "
            "other letter: the model learns each form apart; make all of the text normal form NFC"
        )
        advice = ", with uconv -x nfc <FILE >NEW" if encoding == "utf-8" else ""
        assert notes == [said + advice] * (encoding != "bytes")

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
        monkeypatch.setattr("charrnn.runs.assembling.loops", lambda: Mock(flaw=None))
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
        assert (started["step"], started["test_characters"]) == (3, 100)
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
        monkeypatch.setattr("charrnn.runs.training.SAVE_SHARE", 1e9)  # saves after every validation
        result = cli(
            "train", prose, "--run", tmp_path, "--steps", 20, "--validate-every", 4, *SIZES,
            *words,
        )  # fmt: skip
        assert result.code == 0
        assert len([*tmp_path.glob("step-*")]) == kept

    def test_minutes_are_wall_clock(self, cli: Cli, prose: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        started = time.monotonic()
        result = cli("train", prose, "--run", run, "--minutes", 0.02, *SIZES)
        took = time.monotonic() - started
        assert result.code == 0
        assert "planned" in result.err
        # A fifth of it passes before the plan; test_planning measures how exactly it is kept.
        assert 0.2 * 1.2 <= log_of(run)[-1]["seconds"] <= took

    def test_starts_from_a_checkpoint(self, cli: Cli, trained: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.txt"
        other.write_text(make_prose(980, seed=2) + "ÄÄÄÄÄÄÄÄÄ" + "b" * 11, encoding="utf-8")
        result = cli(
            "train", other, "--init-from", trained, "--run", tmp_path / "run", "--steps", 3
        )
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

    def test_says_what_may_be_smaller_beside_given_weights(
        self, cli: Cli, prose: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("charrnn.runs.assembling.memory_bytes", lambda: 1000)
        words = ("train", prose, "--run", tmp_path / "run", "--steps", 3)
        smaller = "available: give a smaller"
        assert one_line(cli(*words)).endswith(
            f"{smaller} --hidden, --embedding, --layers, --batch-size or --bptt\n"
        )
        masks = one_line(cli(*words, "--dropout", 0.1, "--dropout-masks", 3))
        assert masks.endswith(
            f"{smaller} --hidden, --embedding, --layers, --batch-size, --bptt or --dropout-masks\n"
        )
        beside = one_line(cli(*words, "--init-from", trained))
        assert beside.endswith(f"{smaller} --batch-size or --bptt\n")

    def test_masks_of_no_dropout_are_told(self, cli: Cli, prose: Path, tmp_path: Path) -> None:
        words = ("train", prose, *QUICK, "--dropout-masks", 3, "--dropout")
        note = "note: --dropout-masks has no effect: there is no dropout\n"
        for dropout, is_told in ((0, True), (0.1, False)):
            done = cli(*words, dropout, "--run", tmp_path / f"run{dropout}")
            assert (done.code, note in done.err) == (0, is_told)
        rnn = (
            "train",
            prose,
            "--cell",
            "rnn",
            "--dropout-masks",
            3,
            *QUICK,
            "--run",
            tmp_path / "rnn",
        )
        assert note in cli(*rnn).err

    def test_says_that_the_embedded_corpus_changes_with_python(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        library = Path(shutil.copy(prose, tmp_path / "library.py"))
        for module in ("runs.starting", "runs.resuming", "runs.comparing", "storage.reading"):
            monkeypatch.setattr(f"charrnn.{module}.embedded_corpus", lambda: [str(library)])
        run, compared = tmp_path / "run", tmp_path / "compared"
        assert cli("train", "--run", run, *QUICK).code == 0
        assert cli("compare", "--cell", "rnn", "--run", compared, *QUICK).code == 0
        library.write_text(make_prose(6007, seed=5), encoding="utf-8")
        for words, whose, so in (
            (("train", "--run", run, "--resume"), "this run was", ", or start anew"),
            (("evaluate", run, "--part", "valid"), "its run was", "; --text"),
            (("compare", "--run", compared, "--resume", "--seeds", 2), "this comparison", ", or"),
        ):
            said = one_line(cli(*words))
            assert f"Python's own library ({library}) is not the one {whose}" in said
            assert f": it changes with Python: use the version of then{so}" in said

    def test_says_when_no_update_made_the_model_better(
        self, cli: Cli, prose: Path, trained: Path, tmp_path: Path
    ) -> None:
        words = ("--init-from", trained, "--run", tmp_path / "run", "--lr", 9)
        result = cli("train", prose, *words, "--steps", 3)
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
        result = cli("train", prose, *options, "--steps", 3)
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
        result = cli("train", other, "--init-from", run, "--run", more, "--steps", 3)
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
        options = ("--run", tmp_path / "next", "--valid-share", 0.6, "--steps", 3)
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
        first = cli("train", prose, "--cell", "gru", "--steps", 3, "--hidden", 5)
        assert first.out == "checkpoints/prose-gru\n"
        second = cli("train", prose, "--init-from", "checkpoints/prose-gru", "--steps", 3)
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
        result = cli("train", other, *words, "--steps", 3)
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
        assert cli("train", prose, "--init-from", of_bytes, "--run", run, "--steps", 3).code == 0
        assert load_model(run, torch.device("cpu"))[1].is_bytes
