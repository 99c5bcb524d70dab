from __future__ import annotations

import errno
import fcntl
import io
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from charrnn import recipe
from charrnn.config import TextChoices
from charrnn.inference.baselines import compressed_nats, unigram_nats
from charrnn.inference.evaluation import Scores
from charrnn.runs.events import (
    Event,
    Finished,
    Logged,
    Paused,
    Planned,
    Sampled,
    Saved,
    Spiked,
    Uncaptured,
    Validated,
    Validating,
)
from charrnn.runs.run import Run
from charrnn.runs.starting import start
from charrnn.storage.runfolder import RunFolder
from charrnn.text.scanning import scan
from charrnn.text.vocabulary import Vocabulary
from charrnn.views.display import Display, _LiveTerminal, open_display
from charrnn.views.terminal import Output, in_rows, say_on, to_json
from charrnn.wording import duration, printable
from tests.conftest import ENVIRONMENT, ROOT, refusing

POSITION = {"step": 1200, "epoch": 2.5, "characters": 61_200, "seconds": 185.0}
LOGGED = Logged(
    POSITION
    | {
        "train_nats_per_char": 2 * math.log(2),
        "learning_rate": 0.0123,
        "gradient_norm": 0.456,
        "clipped_share": 0.3,
        "chars_per_second": 12_345.6,
    },
    planned_steps=5000,
    eta=3725.0,
)
PLANNED = Planned(5000, 100, 50)
SCORES = Scores(nats=300 * math.log(2), characters=100, unknown=0, bytes=100, seconds=1)
VALIDATED = Validated(POSITION | {"valid_nats_per_char": 3 * math.log(2)}, scores=SCORES, best=True)
SAMPLED = Sampled("To be \x1b[2Jor [bold]not[/bold] to be")
EVENTS: tuple[Event, ...] = (
    PLANNED,
    LOGGED,
    Validating(),
    VALIDATED,
    SAMPLED,
    Saved(Path("run/last.safetensors"), 1200),
    Spiked(1200, 1.234, 3.456),
    Finished("done", complete=True),
)

Said = Callable[..., str]


@pytest.fixture
def run(prose: Path, tmp_path: Path) -> Iterator[Run]:
    with RunFolder.create(tmp_path / "my run") as folder:
        run = start(
            recipe.Choices(
                # Weights enough to learn the text by heart.
                budget={"minutes": 60},
                model={"hidden": 120},
                training={"loss_last": 3, "bptt": 9},
            ),
            TextChoices(texts=(str(prose),)),
            folder=folder,
            device=torch.device("cpu"),
        )
        run.notes.clear()  # for example the one about a missing compiler
        run.progress.step, run.progress.characters = 1200, 61_200
        run.progress.best_nats, run.progress.best_step = 3 * math.log(2), 1100
        yield run


def show_all(display: Display, run: Run) -> None:
    display.start(run)
    for event in EVENTS:
        display.show(event)
    display.close()


@pytest.fixture
def said(run: Run, capsys: pytest.CaptureFixture[str]) -> Said:
    """Return what gives the plain display's words on stderr: on an event, or before any."""

    def say(event: Event | None = None) -> str:
        capsys.readouterr()
        display = open_display(as_json=False, quiet=False)
        display.start(run)
        if event is not None:
            capsys.readouterr()
            display.show(event)
        return capsys.readouterr().err

    return say


class TestPlain:
    @pytest.fixture
    def lines(self, run: Run, capsys: pytest.CaptureFixture[str]) -> list[str]:
        show_all(open_display(as_json=False, quiet=False), run)
        captured = capsys.readouterr()
        assert captured.out == "", "messages go to stderr"
        assert "\x1b" not in captured.err
        return captured.err.splitlines()

    def test_says_each_derived_number_once(self, run: Run, lines: list[str]) -> None:
        introduction = "\n".join(lines[:7])
        for words in (
            "prose.txt: 5,406 characters to train on, 601 held out to validate",
            "LSTM 1 x 120",
            f"{run.model.parameter_count():,} parameters",
            f"{run.vocabulary.size} symbols",
            f"{run.config.batch_size} lanes, windows of 9 (loss on the last 3)",
            f"{run.lanes.steps_per_epoch:,} steps an epoch",
            f"cpu (1 thread), {run.config.precision}; 60 minutes",
            f"uniform {run.baselines['uniform']:.3f}",
            f"unigram {run.baselines['unigram']:.3f}",
            f"bzip2 {run.baselines['bzip2']:.3f}",
            "my run",
        ):
            assert introduction.count(words) == 1, words

    def test_says_what_a_budget_of_steps_is_in_epochs(self, run: Run, said: Said) -> None:
        run.config = replace(run.config, minutes=None, steps=1)
        run.progress.planned_steps = 3 * run.lanes.steps_per_epoch // 2
        epochs = run.progress.planned_steps / run.lanes.steps_per_epoch
        assert f"; {run.progress.planned_steps} steps = {epochs:.2f} epochs\n" in said()

    def test_says_how_much_of_a_long_text_bzip2_takes(
        self, run: Run, said: Said, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("charrnn.views.display.MOST_COMPRESSED", 599)
        bits = run.baselines["bzip2"] / math.log(2)
        assert f" ({bits:.3f}) of the first 599 held out\n" in said()

    def test_a_model_of_bytes_reads_bytes(
        self, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run.vocabulary = Vocabulary.from_counts({0: 1}, "bytes", 1)
        run.progress.characters, run.progress.validate_characters = 1234, 60
        display = open_display(as_json=False, quiet=False)
        display.start(run)
        display.show(PLANNED)
        display.show(Finished("done", complete=True))
        told = capsys.readouterr().err
        for words in (
            ": 5,406 bytes to train on",
            " nats a byte (",
            " steps, 1,234 bytes, ",
            " the first 60 bytes held out",
        ):
            assert words in told
        assert "character" not in told

    def test_has_a_line_for_what_matters(self, run: Run, lines: list[str]) -> None:
        assert lines[7:] == [
            f"planned 5,000 steps, {5000 / run.lanes.steps_per_epoch:.2f} epochs; "
            "1:00:00 to go; dropout 0.6 (2 masks), weight drop 0.48, "
            "weight decay 0.2, loss temperature 0.91",
            "validations score the first 50 characters held out, to save time",
            "step 1,200  epoch 2.50  3:05  train 1.3863 nats (2.000 bits)  lr 0.012  "
            "gradient 0.46  clipped 30 %  12,346 chars/s  1:02:05 to go",
            "step 1,200  epoch 2.50  3:05  valid 2.0794 nats (3.000 bits)  best",
            "the loss jumped to 3.456 nats at step 1,200, from a mean of 1.234; a lower --lr "
            "makes that rarer",
            "done after 1,200 steps, 61,200 characters, 0 s",
            "best validation 2.0794 nats (3.000 bits) at step 1,100; "
            f"unigram {run.baselines['unigram']:.3f} nats, bzip2 {run.baselines['bzip2']:.3f} nats",
            f"sample from it with: charrnn sample '{run.folder.path}'",
        ]

    def test_a_plan_made_again_says_so(
        self, run: Run, capsys: pytest.CaptureFixture[str], said: Said
    ) -> None:
        (line,) = said(Planned(9000, 100, 50, before=7000)).splitlines()
        assert line.startswith("the speed has changed: planned again, 9,000 steps, ")
        # On a busy machine that happens again and again: small changes are no news.
        assert said(Planned(9000, 100, 50, before=8000)) == ""
        assert said(Planned(7000, 100, 50, before=9000)) != ""
        # They are news once they have added up.
        display = open_display(as_json=False, quiet=False)
        display.start(run)
        capsys.readouterr()
        told = []
        for steps, before in ((9000, None), (7700, 9000), (6600, 7700), (6500, 6600)):
            display.show(Planned(steps, 100, 50, before=before))
            told.append(capsys.readouterr().err != "")
        assert told == [True, False, True, False]

    def test_a_plan_says_how_much_of_the_minutes_is_left(self, run: Run, said: Said) -> None:
        run.progress.seconds = 60 * 12.5
        assert "epochs; 47:30 to go; " in said(PLANNED)
        run.progress.seconds = 60 * 61
        assert "epochs; 0 s to go; " in said(PLANNED)

    def test_a_plan_of_steps_says_what_follows_it(self, run: Run, said: Said) -> None:
        """Only for a resumed run, whose introduction shows the old values."""
        passes = f"{100 / run.lanes.steps_per_epoch:.2f}"
        run.config = replace(run.config, minutes=None, steps=100)
        held = "dropout 0.6 (2 masks), weight drop 0.48, weight decay 0.2, loss temperature 0.91"
        for run.resumed in (False, True):
            assert f", {held}, seed 1\n" in said()
            assert (said(Planned(100, 10, 601)) != "") == run.resumed
        (line,) = said(Planned(100, 10, 601)).splitlines()
        assert line == (
            f"planned 100 steps, {passes} epochs; dropout 0.6 (2 masks), weight drop 0.48, "
            "weight decay 0.2, loss temperature 0.91"
        )
        assert said(Planned(100, 10, 601, before=50)) == ""
        run.config = replace(
            run.config, dropout_by_plan=False, decay_by_plan=False, temperature_by_plan=False
        )
        assert said(Planned(100, 10, 601)) == ""

    def test_says_how_long_it_was_stopped(self, run: Run, said: Said) -> None:
        line = said(Paused(20.25))
        counts = "which does not count towards the run's time"
        assert line == f"the process was stopped for 20 s, {counts}\n"

    def test_a_gpu_is_named_to_programs_as_to_users(
        self, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without its number: only the first is used."""
        monkeypatch.setattr(Run, "device", torch.device("cuda:0"))
        open_display(as_json=True, quiet=False).start(run)
        assert json.loads(capsys.readouterr().out)["device"] == "cuda"

    def test_a_device_without_a_name_goes_by_its_kind(
        self, run: Run, said: Said, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Run, "device", torch.device("mps"))
        assert f"\ndevice  mps, {run.config.precision}; 60 minutes\n" in said()

    @pytest.mark.parametrize(
        ("scored", "of"),
        [
            (None, ""),
            (601, ""),
            (60, ", of the first 60 characters held out"),
        ],
    )
    def test_says_what_the_best_loss_is_of_and_what_it_is_held_against(
        self, run: Run, said: Said, scored: int | None, of: str
    ) -> None:
        run.progress.validate_characters = scored
        _, best, _ = said(Finished("done", complete=True)).splitlines()
        assert run.valid is not None
        predicted = run.valid.first(scored or 601).predicted
        unigram = unigram_nats(run.train.counts, predicted.counts, run.vocabulary)
        bzip2 = compressed_nats(predicted, "bzip2")
        marks = f"; unigram {unigram:.3f} nats, bzip2 {bzip2:.3f} nats"
        assert best == f"best validation 2.0794 nats (3.000 bits) at step 1,100{of}{marks}"

    def test_holds_the_best_loss_against_no_compressor_of_other_characters(
        self, run: Run, said: Said, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("charrnn.inference.baselines.MOST_COMPRESSED", 599)
        _, best, _ = said(Finished("done", complete=True)).splitlines()
        assert best.endswith(f" at step 1,100; unigram {run.baselines['unigram']:.3f} nats")
        run.progress.validate_characters = 600
        _, best, _ = said(Finished("done", complete=True)).splitlines()
        assert ", bzip2 " in best

    def test_holds_the_best_loss_against_nothing_once_the_text_has_changed(
        self, run: Run, prose: Path, tmp_path: Path, said: Said
    ) -> None:
        text = tmp_path / "text"
        text.write_bytes(prose.read_bytes())
        run.valid = scan([str(text)], "utf-8").whole
        text.write_text("another", encoding="utf-8")
        for run.progress.best_nats in (3 * math.log(2), 1e6):
            _, best, _ = said(Finished("done", complete=True)).splitlines()
            assert best.endswith(" at step 1,100")

    def test_holds_the_best_loss_against_guesses_of_the_same_characters(
        self, run: Run, said: Said
    ) -> None:
        run.progress.validate_characters = 60
        marks, end = run.marks(), Finished("done", complete=True)
        assert marks["unigram"] != pytest.approx(run.baselines["unigram"], abs=1e-3)
        worse = "that is worse than knowing only how frequent each symbol is"
        for more, is_worse in ((-1e-4, False), (1e-4, True)):
            run.progress.best_nats = marks["unigram"] + more
            assert (worse in said(end)) == is_worse
        run.progress.best_nats = marks["uniform"] + 1e-4
        alike = "that is worse than guessing every symbol with equal chance"
        assert alike in said(end)

    def test_says_that_none_is_held_out(self, run: Run, said: Said) -> None:
        run.valid, run.text = None, replace(run.text, valid=None)
        first = said().splitlines()[0]
        assert first.endswith("5,406 characters to train on, none held out")

    def test_says_what_is_kept_to_test(self, run: Run, said: Said) -> None:
        run.text = replace(run.text, test=(5000, 6007))
        first = said().splitlines()[0]
        assert first.endswith("601 held out to validate, 1,007 to test")

    @pytest.mark.parametrize("decay_embedding", [False, True])
    def test_says_what_decays(self, run: Run, said: Said, decay_embedding: bool) -> None:
        config = replace(
            run.config, weight_decay=0.3, decay_embedding=decay_embedding, loss_temperature=1.0,
            temperature_by_plan=False,
        )  # fmt: skip
        too = " (embedding and head too)" if decay_embedding else ""
        run.config = replace(config, decay_by_plan=False)
        assert f", weight decay 0.3{too}, seed 1\n" in said()
        assert "weight decay" not in said(PLANNED)
        run.config, run.resumed = config, True
        assert f", weight decay 0.3{too}, seed 1\n" in said()
        run.resumed = False
        assert "weight decay" not in said()
        assert f", weight decay 0.3{too}\n" in said(PLANNED)

    def test_says_what_divides_the_logits(self, run: Run, said: Said) -> None:
        config = replace(run.config, loss_temperature=0.75)
        for by_plan, resumed in ((False, False), (True, False), (True, True)):
            run.config, run.resumed = replace(config, temperature_by_plan=by_plan), resumed
            started = said()
            assert (", loss temperature 0.75, seed 1\n" in started) == (resumed or not by_plan)
            planned = said(PLANNED)
            assert (", loss temperature 0.75\n" in planned) == by_plan

    def test_gives_no_advice_where_a_run_is_one_of_several(
        self, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run.owner = "charrnn compare --run all --resume"
        display = open_display(as_json=False, quiet=False)
        display.start(run)
        for complete in (True, False):
            display.show(Finished("a reason", complete=complete))
        display.show(Spiked(1200, 1.234, 3.456))
        text = capsys.readouterr().err
        assert text.count("after 1,200 steps") == 2
        assert "charrnn" not in text
        assert text.endswith("the loss jumped to 3.456 nats at step 1,200, from a mean of 1.234\n")

    def test_says_what_keeps_updates_small(self, run: Run, said: Said) -> None:
        run.progress.best_nats = run.baselines["uniform"] + 0.1
        worse = "that is worse than guessing every symbol with equal chance: "
        spike, end = Spiked(1200, 1.234, 3.456), Finished("done", complete=True)
        improving = "it was still improving: give more --minutes, or another --lr\n"
        assert f"{worse}{improving}" in said(end)
        stop = Finished("stopped by Ctrl-C", complete=False)
        assert f"{worse}it is not finished yet\n" in said(stop)
        for since, run.progress.spike_step in ((0, 100), (1, 100)):
            run.progress.validations_since_best = since
            assert f"{worse}the loss jumped: try a lower --lr\n" in said(end)
        run.config = replace(run.config, clip_norm=None)
        lower = "the loss jumped: try a lower --lr or --clip-norm 1\n"
        assert f"{worse}{lower}" in said(end)
        run.progress.spike_step = None
        assert "; a lower --lr or --clip-norm 1 makes that rarer\n" in said(spike)
        run.progress.validations_since_best = 1
        short = "with equal chance: the text is too short, or nothing in it repeats\n"
        assert short in said(end)
        run.owner = "charrnn compare --run all --resume"
        assert "worse than guessing every symbol with equal chance\n" in said(end)
        run.progress.best_nats = run.baselines["unigram"] + 0.1
        assert run.progress.best_nats < run.baselines["uniform"]
        worse = "that is worse than knowing only how frequent each symbol is"
        assert f"{worse}\n" in said(end)
        run.owner = None
        assert f"{worse}: the text is too short, or" in said(end)
        run.progress.validations_since_best = 0
        assert f"{worse}: {improving}" in said(end)
        run.progress.best_nats = run.baselines["unigram"]
        assert "worse" not in said(end)

    @pytest.mark.parametrize("since_best", [0, 1])
    def test_says_that_unknown_characters_are_what_costs(
        self, run: Run, said: Said, since_best: int
    ) -> None:
        assert run.unknown_share == 0
        run.progress.best_nats = run.baselines["uniform"] + 0.1
        run.progress.validations_since_best = since_best
        words = "chance: 76 % of the characters held out are unknown, which is what costs so much: "
        for share, is_cause in ((0.764, True), (0.09, False)):
            run.unknown_share = share
            assert (words in said(Finished("done", complete=True))) == is_cause
        run.unknown_share = 0.764
        like = "hold out text like the training text\n"
        assert like in said(Finished("done", complete=True))
        # The vocabulary of another model lacks those of the training text, too.
        run.train.__dict__["counts"] = dict.fromkeys(range(0x4E00, 0x4F00), 99)
        rare = "what costs so much: give a smaller --min-count\n"
        assert rare in said(Finished("done", complete=True))
        run.config = replace(run.config, init_from="/elsewhere")
        kept = "what costs so much: leave --init-from out, as that model does not know them\n"
        assert kept in said(Finished("done", complete=True))

    @pytest.mark.parametrize("live", [False, True])
    def test_scaling_is_not_called_clipping(
        self, run: Run, capsys: pytest.CaptureFixture[str], said: Said, live: bool
    ) -> None:
        run.config = replace(run.config, clip_norm=None, scale_norm=0.5)
        if live:
            panel = _LiveTerminal(Output(stderr=True, force_terminal=True, width=100))
            panel.start(run)
            panel.show(LOGGED)
            panel.close()
            shown = capsys.readouterr().err
        else:
            shown = said(LOGGED)
        assert "scaled down 30 %" in shown
        assert "clipped" not in shown

    def test_what_nothing_bounds_is_not_called_clipped_at_0_percent(
        self, run: Run, said: Said
    ) -> None:
        run.config = replace(run.config, clip_norm=None, clip_value=None, scale_norm=None)
        assert "  not clipped  " in said(LOGGED)

    def test_a_row_without_a_speed_has_none(self, said: Said) -> None:
        row = {name: value for name, value in LOGGED.row.items() if name != "chars_per_second"}
        assert "  - chars/s  " in said(replace(LOGGED, row=row))

    def test_lines_of_progress_come_now_and_then(
        self, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = [100.0]
        monkeypatch.setattr("charrnn.views.display.time.monotonic", lambda: clock[0])
        display = open_display(as_json=False, quiet=False)
        display.start(run)
        capsys.readouterr()
        for _ in range(31):
            display.show(LOGGED)
            clock[0] += 1
        assert capsys.readouterr().err.count("train") == 4

    def test_says_why_an_update_is_not_captured(self, said: Said) -> None:
        assert said(Uncaptured("out of memory")) == (
            "the update cannot be captured in a CUDA graph, so it is slower: out of memory\n"
        )

    def test_a_stopped_run_says_how_to_go_on(self, run: Run, said: Said) -> None:
        run.progress.best_step = 0
        text = said(Finished("SIGINT", complete=False))
        assert "no update made" not in text
        lines = text.splitlines()
        assert lines[0].startswith("stopped by Ctrl-C and saved after 1,200 steps")
        assert lines[-1] == f"go on with: {run.command()}"
        assert "--resume" in lines[-1]

    def test_a_resumed_run_says_where_it_is(self, run: Run, said: Said) -> None:
        run.resumed = True
        run.progress.seconds = 61
        run.notes.append("what the user should know")
        lines = said().splitlines()
        assert lines[-2:] == [
            "note: what the user should know",
            "resumed at step 1,200, after 1:01 of training",
        ]


class TestJson:
    @pytest.mark.parametrize(("encoding", "text"), [("utf-8", "é"), ("latin-1", "\\u00e9")])
    def test_any_stdout_can_take_it(
        self, encoding: str, text: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
        value = {"text": "é\udcff", "numbers": (1.5, math.inf, math.nan)}
        assert to_json(value) == f'{{"text": "{text}\\udcff", "numbers": [1.5, null, null]}}'

    def test_it_steers_no_terminal_and_each_object_is_a_line(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
        text = "".join(map(chr, {*range(0xD800), *range(0xE000, 0x10000)}))
        written = to_json(text)
        assert json.loads(written) == text
        assert printable(written) == written
        assert len(written.splitlines()) == 1

    def test_every_event_is_an_object_of_its_own(
        self, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        show_all(open_display(as_json=True, quiet=False), run)
        captured = capsys.readouterr()
        assert captured.err == ""
        rows = [json.loads(line) for line in captured.out.splitlines()]
        assert [row.pop("event") for row in rows] == [
            "started", "planned", "logged", "validated", "sampled", "saved", "spiked", "finished",
        ]  # fmt: skip
        assert rows[0]["parameters"] == run.model.parameter_count()
        assert rows[0]["training"] == run.config.to_dict()
        assert rows[1] == {
            "total_steps": 5000, "validate_every": 100, "validate_characters": 50, "before": None,
            "dropout": 0.0, "weight_drop": 0.0, "weight_decay": 0.0, "loss_temperature": 1.0,
        }  # fmt: skip
        assert rows[2] == LOGGED.row | {"planned_steps": 5000}
        assert rows[3] == VALIDATED.row | {"best": True}
        assert rows[4] == {"text": SAMPLED.text}
        assert rows[5] == {"path": "run/last.safetensors", "step": 1200}
        assert rows[7]["reason"] == "done"
        assert rows[7]["go_on"] is None
        assert rows[7]["best_step"] == 1100

    def test_the_page_has_the_fields_of_every_event(
        self, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
        table = page.partition("| event | fields |")[2].partition("\n\n")[0]
        promised = {
            event: re.findall(r"\w+", fields.partition(", and a row")[0])
            for event, fields in re.findall(r"^\| (\w+) \| (.*?) \|", table, re.MULTILINE)
        }
        display = open_display(as_json=True, quiet=False)
        display.start(run)
        for event in (*EVENTS, Paused(5.0), Uncaptured("")):
            display.show(event)
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        of_the_log = LOGGED.row.keys() | VALIDATED.row.keys()
        for row in rows:
            its_log = of_the_log if row["event"] in ("logged", "validated") else set()
            assert row.keys() - its_log - {"event"} == set(promised.pop(row["event"]))
        assert not promised


def test_quiet_says_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    show_all(open_display(as_json=False, quiet=True), run)
    assert capsys.readouterr() == ("", "")


def test_quiet_says_notes_once_and_how_to_go_on(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.notes.append("what the user should know")
    display = open_display(as_json=False, quiet=True)
    for title in ("--- run 1 of 2", "--- run 2 of 2"):
        display.start(run, title)
    assert capsys.readouterr() == ("", "note: what the user should know\n")
    display.show(Uncaptured("out of memory"))
    assert capsys.readouterr().err.startswith("note: the update cannot be captured in a CUDA graph")
    stopped = Finished("SIGINT", complete=False)
    display.show(stopped)
    assert capsys.readouterr() == ("", f"go on with: {run.command()}\n")
    run.owner = "charrnn compare --run all --resume"
    display.show(stopped)
    assert capsys.readouterr() == ("", ""), "the owner says how to go on"


def test_who_wants_quiet_may_have_closed_stderr(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed stderr must not be taken for a reader who has left, which ends a training."""
    monkeypatch.setattr(sys.stderr, "write", refusing(errno.EPIPE))
    run.notes.append("what the user should know")
    display = open_display(as_json=False, quiet=True)
    display.start(run)
    display.show(Finished("SIGINT", complete=False))


class TestLive:
    @pytest.fixture
    def screen(self) -> io.StringIO:
        return io.StringIO()

    @pytest.fixture
    def display(self, screen: io.StringIO) -> Iterator[_LiveTerminal]:
        console = Output(file=screen, force_terminal=True, width=80, height=40)
        display = _LiveTerminal(console)
        yield display
        display.close()

    def picture(self, display: _LiveTerminal) -> str:
        """Return the panel that is drawn now, without colours."""
        file = io.StringIO()
        Console(file=file, width=display.console.width, height=40, highlight=False).print(
            display._picture()
        )
        return file.getvalue()

    def sample(self, display: _LiveTerminal) -> list[str]:
        """Return the lines of the sample that is drawn now."""
        lines = [line.rstrip() for line in self.picture(display).splitlines()]
        head = next(
            number for number, line in enumerate(lines) if line.startswith("sample at step ")
        )
        assert ", --temperature 0.8 ─" in lines[head]
        assert set(lines[-1]) == {"─"}
        return lines[head + 1 : -1]

    def test_is_chosen_on_a_terminal_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
        assert not isinstance(open_display(as_json=False, quiet=False), _LiveTerminal)
        monkeypatch.setenv("FORCE_COLOR", "1")
        assert not isinstance(open_display(as_json=False, quiet=False), _LiveTerminal), "a log"
        monkeypatch.delenv("FORCE_COLOR")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        assert isinstance(open_display(as_json=False, quiet=False), _LiveTerminal)
        assert not isinstance(open_display(as_json=True, quiet=False), _LiveTerminal)
        assert not isinstance(open_display(as_json=False, quiet=True), _LiveTerminal)
        monkeypatch.setenv("TERM", "dumb")
        assert not isinstance(open_display(as_json=False, quiet=False), _LiveTerminal)

    @pytest.mark.parametrize(
        ("name", "value", "is_live"),
        [
            ("JPY_PARENT_PID", "77", False),
            ("MPLBACKEND", "module://matplotlib_inline.backend_inline", False),
            ("MPLBACKEND", "agg", True),
            ("CI", "true", False),
            ("CI", "", True),
        ],
    )
    def test_is_not_chosen_in_a_notebook_or_a_ci(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str, is_live: bool
    ) -> None:
        """Their output may be a terminal, but appends what should be drawn in place."""
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        monkeypatch.setenv(name, value)
        assert isinstance(open_display(as_json=False, quiet=False), _LiveTerminal) == is_live

    def test_a_window_s_own_width_goes_before_an_exported_one(self) -> None:
        """The panel could not be erased if it were drawn wider."""
        terminal, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 50, 0, 0))
        code = "from charrnn.views.terminal import Output; print(Output(stderr=True).width)"
        for stream, width in ((end, "50\n"), (subprocess.DEVNULL, "120\n")):
            done = subprocess.run(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=ENVIRONMENT | {"COLUMNS": "120"},
                text=True,
                check=True,
            )
            assert done.stdout == width
        os.close(end)
        os.close(terminal)

    @pytest.mark.parametrize("columns", [40, 100])
    def test_a_dumb_terminal_has_its_own_width(
        self, monkeypatch: pytest.MonkeyPatch, columns: int
    ) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setenv("COLUMNS", str(columns))
        assert Output().width == columns
        assert Output.wide().width > 1000

    @pytest.mark.parametrize("is_terminal", [False, True])
    def test_columns_that_are_not_known_leave_room_for_text(
        self, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
    ) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
        monkeypatch.setenv("COLUMNS", "0")
        assert Output().width > 0

    @pytest.mark.parametrize("name", ["COLUMNS", "LINES"])
    @pytest.mark.parametrize("value", ["²", "①", "9" * 5000, "wide", ""])
    def test_a_size_that_is_no_number_is_none(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        """Python counts ² as a digit, and converts no more than 4,300 of them."""
        monkeypatch.delenv(name, raising=False)
        size = Output().size
        monkeypatch.setenv(name, value)
        assert Output().size == size
        monkeypatch.setenv(name, "٤٢")
        assert 42 in Output().size

    @pytest.mark.parametrize("width", [80, 40])
    def test_draws_every_figure(self, screen: io.StringIO, run: Run, width: int) -> None:
        display = _LiveTerminal(Output(file=screen, force_terminal=True, width=width, height=40))
        display.start(run)
        assert "first steps" in self.picture(display)
        for event in EVENTS[:-1]:
            display.show(event)
        drawn = self.picture(display)
        display.close()
        for words in (
            "step 1,200", "epoch 2.50", "12,346 chars/s", "1:02:05 to go", "lr 0.012",
            "gradient 0.46", "clipped 30 %", "train 1.3863 nats (2.000 bits)",
            "valid 2.0794 nats (3.000 bits)", "To be",
        ):  # fmt: skip
            assert words in drawn
        # Leave room for two ^C that the terminal echoes: they must not wrap to a new line.
        assert max(map(len, drawn.splitlines())) <= width - 4

    def test_a_resumed_run_has_its_last_validation(self, display: _LiveTerminal, run: Run) -> None:
        for nats in (9.9, math.log(2)):
            run.folder.log(POSITION | {"valid_nats_per_char": nats})
        display.start(run)
        display.show(LOGGED)
        assert "valid 0.6931 nats (1.000 bits)" in self.picture(display)
        display.show(VALIDATED)
        assert "valid 2.0794 nats (3.000 bits)" in self.picture(display)

    @pytest.mark.parametrize("line", ["", "{", '{"step": 1, "valid_nats_per_char": "x"}'])
    def test_or_none_where_its_log_has_none(
        self, display: _LiveTerminal, run: Run, line: str
    ) -> None:
        (run.folder.path / "metrics.jsonl").write_text(line + "\n")
        display.start(run)
        display.show(LOGGED)
        assert "valid -" in self.picture(display)

    def test_says_while_it_validates(self, display: _LiveTerminal, run: Run) -> None:
        display.start(run)
        display.show(Validating())
        assert "validating ..." in self.picture(display)
        assert "first steps" not in self.picture(display)
        for event in (VALIDATED, LOGGED):
            display.show(event)
            assert "validating ..." not in self.picture(display)
        display.show(Validating())
        assert "validating ..." in self.picture(display)

    @pytest.mark.parametrize("width", [70, 80, 40])
    def test_figures_stay_where_they_are(self, screen: io.StringIO, run: Run, width: int) -> None:
        display = _LiveTerminal(Output(file=screen, force_terminal=True, width=width, height=40))
        display.start(run)
        display.show(VALIDATED)
        drawn = []
        for step, loss, rate in ((90, 9.9, 0.01), (123_456, 0.5, 1.2e-5)):
            row = {"step": step, "train_nats_per_char": loss, "learning_rate": rate}
            row |= {"chars_per_second": 0.3 * step, "gradient_norm": loss, "epoch": loss}
            display.show(replace(LOGGED, row=LOGGED.row | row, eta=step / 9))
            drawn.append(self.picture(display))
        display.close()
        for words in ("epoch", "gradient", "clipped", "valid"):
            places = [
                line.index(words) for text in drawn for line in text.splitlines() if words in line
            ]
            assert len(places) == 2
            assert places[0] == places[1], words
        assert "…" not in drawn[1]

    def test_a_sample_is_no_markup_and_cannot_steer_the_terminal(
        self, display: _LiveTerminal, run: Run
    ) -> None:
        display.start(run)
        display.show(SAMPLED)
        drawn = self.picture(display)
        assert "To be \N{REPLACEMENT CHARACTER}[2Jor [bold]not[/bold] to be" in drawn

    @pytest.mark.parametrize(
        "text",
        [
            "की था। लड़की ने पानी में " * 9,
            "👩\u200d🌾👨\u200d👩\u200d👧❤\ufe0f " * 9,
            "甄士隐梦幻" * 40,
            "a\tb " * 50,
        ],
    )
    def test_no_terminal_draws_a_sample_wider_than_the_screen(
        self, display: _LiveTerminal, run: Run, text: str
    ) -> None:
        display.start(run)
        display.show(Sampled(text))
        drawn = self.picture(display).splitlines()
        for line in drawn:
            wide = sum(unicodedata.east_asian_width(character) == "W" for character in line)
            marks = sum(unicodedata.category(character) == "Mn" for character in line)
            assert len(line) + wide - marks <= 80 - 4
        shown = "".join(self.sample(display)).replace(" ", "")
        assert shown
        assert text.expandtabs().replace(" ", "").startswith(shown)

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    def test_nor_one_whose_encoding_lacks_its_characters(self, run: Run, encoding: str) -> None:
        file = io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace", write_through=True)
        console = Output(file=file, force_terminal=True, color_system=None, width=80, height=40)
        display = _LiveTerminal(console)
        display.start(run)
        display.show(Sampled("甄士隐梦幻 café " * 20))
        file.buffer.seek(0)
        file.buffer.truncate()
        display.console.print(display._picture())
        display.close()
        drawn = file.buffer.getvalue().decode(encoding).splitlines()
        assert "?????" in "".join(drawn)
        assert max(map(len, drawn)) <= 80 - 4
        assert not any("\\u" in line for line in drawn)

    def test_a_sample_is_broken_between_words(self, display: _LiveTerminal, run: Run) -> None:
        display.start(run)
        display.show(Sampled("abcdefg hijkl " * 16 + "\n\nend"))
        full = " ".join(["abcdefg hijkl"] * 5)
        assert self.sample(display) == [full, full, full, "abcdefg hijkl", "", "end"]

    @pytest.mark.parametrize(
        ("height", "lines", "rows"), [(24, 13, 7), (12, 11, 5), (8, 7, 1), (7, 4, 0), (4, 3, 0)]
    )
    def test_draws_no_more_than_can_be_taken_back(
        self, screen: io.StringIO, run: Run, height: int, lines: int, rows: int
    ) -> None:
        console = Output(file=screen, force_terminal=True, width=80, height=height)
        display = _LiveTerminal(console)
        display.start(run)
        display.show(LOGGED)
        display.show(Sampled("\n".join("x" * 20)))
        drawn = [line.rstrip() for line in self.picture(display).splitlines()]
        display.close()
        assert len(drawn) == lines < height
        assert drawn.count("x") == rows

    def test_bar_goes_by_time_until_there_is_a_plan(
        self, display: _LiveTerminal, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shares: list[float] = []
        monkeypatch.setattr(
            "charrnn.views.display.ProgressBar",
            lambda total, completed: shares.append(completed / total) or "",  # type: ignore[func-returns-value]
        )
        display.start(run)
        run.progress.seconds = 900
        display._picture()
        run.progress.planned_steps = 4800
        display._picture()
        assert shares[-2:] == [0.25, 0.25]

    def test_what_is_said_stays_and_the_rest_goes(
        self, display: _LiveTerminal, run: Run, screen: io.StringIO
    ) -> None:
        show_all(display, run)
        text = screen.getvalue()
        for words in ("5,406", "valid 2.0794 nats", "planned 5,000", "done after"):
            assert words in text
        assert text.endswith("charrnn sample '" + str(run.folder.path) + "'\n")
        assert text.rindex("sample") > text.rindex("\x1b[?25h"), "the cursor is shown again"
        assert display.live is None

    def test_lines_are_broken_between_words_and_what_is_copied_is_not(
        self, screen: io.StringIO, run: Run
    ) -> None:
        console = Output(file=screen, force_terminal=True, width=40)
        broken = "note: " + "the text is read without its byte order mark " * 3
        say_on(console, broken.strip())
        lines = screen.getvalue().splitlines()
        assert max(map(len, lines)) <= 40
        assert " ".join(line.strip() for line in lines) == broken.strip()
        paths = ("run     /" + folder * 9 for folder in ("folder/", "文件/"))
        for kept in (f"go on with: {run.command()}", *paths):
            screen.truncate(0)
            say_on(console, kept)
            assert kept + "\n" in screen.getvalue()

    def test_the_introduction_hangs_beside_its_labels(
        self, display: _LiveTerminal, run: Run, screen: io.StringIO
    ) -> None:
        run.text = replace(run.text, texts=("a name.txt", *"bc"))
        display.console = Output(file=screen, force_terminal=True, width=46, height=40)
        display.start(run)
        display.close()
        lines = screen.getvalue().partition("\x1b")[0].splitlines()
        heads = [line[:8].strip() for line in lines if line[:8].strip()]
        assert heads == ["text", "model", "data", "update", "device", "to beat", "run"]
        assert len(lines) > len(heads)
        assert max(len(line.rstrip()) for line in lines if not line.startswith("run")) <= 46
        text = " ".join(" ".join(line.split()) for line in lines)
        assert "text a name.txt and 2 names more: 5,406 characters to train on, 601 held" in text

    def test_leaves_the_terminal_to_others(
        self,
        display: _LiveTerminal,
        run: Run,
        screen: io.StringIO,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        display.start(run)
        with display.away():
            assert display.live is None
        assert display.live is not None
        in_foreground = False
        monkeypatch.setattr(Output, "is_in_foreground", property(lambda _: in_foreground))
        before = screen.getvalue()
        display.show(LOGGED)
        assert display.live is None, "a shell has the terminal, after bg"
        assert screen.getvalue() == before + "\x1b[?25h", "nothing goes, the cursor is shown"
        in_foreground = True
        display.show(LOGGED)
        assert display.live is not None
        display.close()
        with display.away():
            pass
        assert display.live is None, "its run is over"

    def test_a_terminal_that_takes_nothing_is_left_once(
        self, display: _LiveTerminal, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A closed terminal refuses what would restore it."""
        display.start(run)
        live = display.live
        assert live is not None
        with monkeypatch.context() as patch:
            patch.setattr(live, "stop", refusing(errno.EIO))
            with pytest.raises(OSError, match="Input/output error"):
                display.close()
            display.close()
        live.stop()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (185, "3:05"), (7385, "2:03:05")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


#: Persian, Devanagari, a soft hyphen, a direction mark: joiners belong to the spelling.
JOINED = "می\u200cروم \u0915\u094d\u200d co\u00adop \u200f"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("a\r\nb\rc", "a\nb\N{REPLACEMENT CHARACTER}c"),
        ("\x00\x07\x08\x1b\x7f\x9b", "\N{REPLACEMENT CHARACTER}" * 6),
        ("\u202eabc\u2066\u2028", "\ufffdabc\ufffd\ufffd"),
        (JOINED, JOINED),
        ("\U0001f469\u200d\U0001f33e \ue000", "\U0001f469\u200d\U0001f33e \ue000"),
        ("紅樓夢\u3000é\u00a0\U0001f600", "紅樓夢\u3000é\u00a0\U0001f600"),
        ("[red]", "[red]"),
    ],
)
def test_printable_neutralises_what_steers_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_row_is_as_wide_as_there_is_room_for() -> None:
    assert in_rows("abcdefgh", 4) == ["abcd", "efgh"]
