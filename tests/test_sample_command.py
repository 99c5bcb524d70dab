"""``charrnn sample`` from the command line."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import get_args
from unittest import mock

import pytest

from charrnn.commands.stdio import read_prompt
from charrnn.compute import library
from charrnn.compute.steps import steps
from charrnn.config import WeightsName
from charrnn.errors import NonFiniteError, UsageError
from charrnn.inference import sampling
from charrnn.inference.sampling import Drawn
from charrnn.storage.checkpoint import load, save
from charrnn.text.vocabulary import Vocabulary
from charrnn.views.sample_view import print_as_made, print_samples
from tests.conftest import ENVIRONMENT, PATIENCE, Cli, command, one_line
from tests.small import vocabulary_of


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

    @pytest.mark.parametrize("prefix", ["", "FILE:"])
    def test_a_file_s_name_is_a_prompt_like_any_other(
        self, cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        words = ("sample", trained, "--length", 30, "--unknown", "skip", "--prompt", f"{prefix}the")
        before = cli(*words)
        Path("the").write_text("The bird")
        after = cli(*words)
        assert after.out == before.out
        said = (
            "note: the prompt is the name of a file, not its text: for its text give --prompt - "
            "<the"
        )
        assert after.err == f"{said}\n{before.err}"
        assert cli(*words[:-2], "--prompt", "the bird").err == ""

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
                read_prompt("-", vocabulary_of("a"))

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
            assert read_prompt("-", vocabulary_of("ab")) == "abba"
        late.join()

    @pytest.mark.parametrize("weights", ["bf16", "int8"])
    def test_fewer_bits_a_weight_give_a_text_as_well(
        self, cli: Cli, trained: Path, weights: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make = mock.Mock(wraps=sampling._stepper)
        monkeypatch.setattr(sampling, "_stepper", make)
        words = ("sample", trained, "--length", "40", "--weights", weights)
        first, again = cli(*words), cli(*words)
        assert [call.args[2] for call in make.call_args_list] == [weights] * 2
        assert first.code == 0
        assert len(first.out) == 40
        assert first.out == again.out

    @pytest.mark.parametrize("weights", ["auto", *get_args(WeightsName)])
    @pytest.mark.parametrize("can", [True, False], ids=["in C", "not in C"])
    def test_weights_are_in_the_precision_of_the_training_where_c_multiplies_it(
        self,
        cli: Cli,
        trained: Path,
        tmp_path: Path,
        weights: str,
        can: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        best = load(trained / "best.safetensors")
        best.meta["training"]["precision"] = "bf16"
        save(tmp_path / "narrow.safetensors", best)
        make = mock.Mock(wraps=sampling._stepper)
        monkeypatch.setattr(sampling, "_stepper", make)
        monkeypatch.setattr(sampling, "why_none", lambda *_: None if can else "none are found here")
        monkeypatch.setattr("charrnn.storage.trained.recurs_in_bf16", lambda _: True)
        for model, by_rule in [(trained, "fp32"), (tmp_path / "narrow.safetensors", "bf16")]:
            make.reset_mock()
            words = ("sample", model, "--length", 7, "--json", "--weights", weights)
            (row,) = cli(*words).rows
            chosen = (by_rule if can else "fp32") if weights == "auto" else weights
            assert row["weights"] == make.call_args.args[2] == chosen

    @pytest.mark.parametrize("weights", ["fp32", "int8"])
    def test_says_why_fewer_bits_are_no_faster(
        self, cli: Cli, trained: Path, weights: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CC", "false")
        monkeypatch.setattr(library, "_made", {})
        done = cli("sample", trained, "--weights", weights, "--length", 20)
        said = "note: --weights int8 is no faster here: false does not compile it\n"
        assert (done.code, len(done.out)) == (0, 20)
        assert done.err == (said if weights == "int8" else "")

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
        if (made := steps()) is None:
            pytest.skip("no C compiler with OpenMP")
        for name in ("bf16", "int8"):
            can = getattr(made, f"multiplies_{name}") and name == multiplies
            monkeypatch.setattr(made, f"multiplies_{name}", can)
        done = cli("sample", trained, "--weights", weights, "--length", 20)
        said = (
            f"note: --weights {weights} is no faster here: there are no products in {weights} for "
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
            "weights": "fp32", "text": text,
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
    @pytest.mark.parametrize("together", [0.0, 1e9], ids=["one by one", "together"])
    def test_a_terminal_gets_nothing_that_steers_it(
        self,
        monkeypatch: pytest.MonkeyPatch,
        encoding: str,
        drawn: str | bytes,
        seen: str,
        together: float,
    ) -> None:
        monkeypatch.setattr("charrnn.views.sample_view.TOGETHER", together)
        codes = Counter(map(ord, drawn) if isinstance(drawn, str) else drawn)
        vocabulary = Vocabulary.from_counts(codes, encoding, 1)
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdout", screen)
        steps = [([0], [symbol]) for symbol in vocabulary.encode(drawn).tolist()]
        print_as_made(vocabulary, [], steps)
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
        vocabulary = vocabulary_of("ab\n")
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdout", screen)

        def steps() -> Iterator[Drawn]:
            yield from (([0], [symbol]) for symbol in vocabulary.encode(drawn).tolist())
            raise failure

        with pytest.raises(failure):
            print_as_made(vocabulary, [], steps())
        assert screen.getvalue() == seen

    def test_what_could_not_be_printed_is_not_printed_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vocabulary = vocabulary_of("ab")
        screen, tried = io.StringIO(), []

        def write(text: str) -> int:
            if text:
                tried.append(text)
                raise OSError(errno.ENOSPC, "no space")
            return 0

        monkeypatch.setattr(screen, "write", write)
        monkeypatch.setattr(sys, "stdout", screen)
        with pytest.raises(OSError, match="no space"):
            print_as_made(vocabulary, [], [([0], [1]), ([0], [2])])
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
        import charrnn.views.sample_view

        flushed: list[str] = []
        times = (n * hundredths / 100 for n in count(1))

        def watched(text: str, *, end: str, flush: bool) -> None:
            assert (end, flush) == ("", True)
            flushed.append(text)

        monkeypatch.setattr(charrnn.views.sample_view, "print", watched, raising=False)
        clock = mock.Mock(perf_counter=lambda: next(times))
        monkeypatch.setattr(charrnn.views.sample_view, "time", clock)
        cli("sample", trained, "--length", 7)
        assert [len(text) for text in flushed] == expected
