from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from rich.style import Style
from rich.text import Text

from charrnn.commands.stopping import Stopped
from charrnn.config import CellName, ModelConfig
from charrnn.errors import CharrnnError, NonFiniteError
from charrnn.inference.assessment import (
    After,
    Assessment,
    OfRun,
    refuse_non_finite,
)
from charrnn.inference.baselines import Baseline
from charrnn.inference.evaluation import PositionScores, Prices, Scores
from charrnn.inference.ranking import differences, to_list
from charrnn.runs.comparison import CellResult, Comparison, RunFailure
from charrnn.runs.comparison_plan import Plan
from charrnn.views.score_view import STYLES, PerCharacter, SurpriseText, print_assessments
from charrnn.views.score_words import COLUMNS, assessments_say, comparison_lines, comparison_says
from charrnn.views.surprise import PricedText
from tests.conftest import make_part, needs_full
from tests.pages import contrast
from tests.small import make_result

ONE = Assessment(
    checkpoint="runs/[red]",
    shape=ModelConfig(cell="gru", vocabulary=9, layers=2, hidden=7, embedding=3),
    parameters=12_345,
    scores=Scores(nats=10_183.5, characters=6789, unknown=1, bytes=7000, seconds=707.2),
)


def of_blocks(**blocks: tuple[float, ...]) -> list[Assessment]:
    """Return an assessment of each name, with these nats by block of 100 characters in all."""
    return [
        replace(ONE, checkpoint=name, scores=Scores(sum(nats), 100, 0, 100, 1.0, nats))
        for name, nats in blocks.items()
    ]


def of_seeds(**nats: float) -> list[Assessment]:
    """Return assessments on six blocks; a name is a letter for the setting, then the seed."""
    models = of_blocks(**{name: (in_all / 6,) * 6 for name, in_all in nats.items()})
    return [
        replace(one, run=OfRun(int(one.checkpoint[1]), one.checkpoint[0], 20, False))
        for one in models
    ]


FIGURES = (
    "gru 2x7", "12,345", "6,789", "1", "1.5000", "2.1640", "2.0988", "4.482", "10",
)  # fmt: skip


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that makes stdout pass for a terminal with this many columns."""

    def on_terminal(columns: int) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    return on_terminal


def test_a_model_that_guesses_worse_than_by_chance_is_named() -> None:
    assert list(assessments_say([ONE, replace(ONE, uniform_nats=1.6)])) == []
    said = "runs/[red]: worse than guessing (1.400 nats)"
    assert list(assessments_say([replace(ONE, uniform_nats=1.4)])) == [said]
    strange = replace(ONE, scores=replace(ONE.scores, unknown=3000), uniform_nats=1.4)
    why = "44 % of these characters are unknown, which is what costs so much"
    assert list(assessments_say([strange])) == [f"{said}; {why}"]


class TestTable:
    def test_a_pipe_gets_a_line_a_checkpoint_whatever_its_length(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        name = "runs/[red]" + "x" * 300
        long = Assessment(name, ONE.shape, ONE.parameters, ONE.scores)
        print_assessments([long, long])
        captured = capsys.readouterr()
        assert captured.err == ""
        lines = captured.out.splitlines()
        assert len(lines) == 3
        assert lines[0].split() == [
            "checkpoint", "cell", "parameters", "characters", "unknown", "nats/char",
            "bits/char", "bits/byte", "perplexity", "chars/s",
        ]  # fmt: skip
        assert lines[1].split() == [name, *" ".join(FIGURES).split()]

    @pytest.mark.parametrize(("width", "height"), [(200, 3), (60, 10)])
    def test_a_terminal_gets_the_table_that_fits(
        self,
        capsys: pytest.CaptureFixture[str],
        on_terminal: Callable[[int], None],
        width: int,
        height: int,
    ) -> None:
        on_terminal(width)
        print_assessments([ONE, ONE])
        plain = Text.from_ansi(capsys.readouterr().out).plain
        lines = [line.rstrip() for line in plain.splitlines()]
        assert len(lines) == height
        if width == 60:
            assert max(map(len, lines)) <= 60
            names = ("cell", "parameters", "characters", "unknown", "nats/char", "bits/char")
            for line, name, figure in zip(lines[1:], names, FIGURES, strict=False):
                assert line.startswith(name)
                assert line.count(figure) == 2

    @pytest.mark.parametrize("width", [30, 45])
    def test_a_terminal_too_narrow_for_both_gets_a_few_columns_at_a_time(
        self, capsys: pytest.CaptureFixture[str], on_terminal: Callable[[int], None], width: int
    ) -> None:
        on_terminal(width)
        print_assessments([replace(ONE, checkpoint="one"), *[replace(ONE, checkpoint="b")] * 4])
        plain = Text.from_ansi(capsys.readouterr().out).plain
        lines = [line.rstrip() for line in plain.splitlines()]
        assert max(map(len, lines)) <= width
        blocks = [lines[n : n + 6] for n in range(0, len(lines), 7)]
        assert lines[6::7] == [""] * (len(blocks) - 1)
        names = [block[0].split() for block in blocks]
        assert {name[0] for name in names} == {"checkpoint"}
        assert [word for name in names for word in name[1:]] == [*COLUMNS[1:]]
        for block in blocks:
            assert [line.split()[0] for line in block[1:]] == ["one", "b", "b", "b", "b"]
        figures = [figure for block in blocks for figure in block[1].split()[1:]]
        assert figures == " ".join(FIGURES).split()

    def test_numbers_alone_are_to_the_right_in_every_block(
        self, capsys: pytest.CaptureFixture[str], on_terminal: Callable[[int], None]
    ) -> None:
        on_terminal(16)
        positions = PositionScores(np.linspace(4, 1, 99), stretches=7)
        print_assessments([replace(ONE, by_position=positions)])
        plain = Text.from_ansi(capsys.readouterr().out).plain
        _, *blocks = plain.split("from")
        assert len(blocks) > 1
        for block in blocks:
            rows = block.splitlines()[1:8]
            assert [row[:4].rstrip() for row in rows] == ["   1", "   2", "   3", "   5", "   9",
                                                         "  17", "  33"]  # fmt: skip

    def test_a_terminal_breaks_sentences_between_words(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        on_terminal: Callable[[int], None],
    ) -> None:
        said = "what it knows, told at some length, with [red] and :smile: as they are"
        follows = f"{ONE.checkpoint}: after 'words' a character costs 1.5000 nats (mean of 6,789)"
        after = After("words", 6789, 1.5)
        one = replace(ONE, baselines=(Baseline("uniform", 2.0, said),), after=after)
        print_assessments([one])
        assert f"\nuniform: {said}\n" in capsys.readouterr().out, "a pipe gets one line"
        monkeypatch.setenv("FORCE_COLOR", "1")
        print_assessments([one])
        assert f"\nuniform: {said}\n" in capsys.readouterr().out, "a pipe in colours, too"
        monkeypatch.delenv("FORCE_COLOR")
        on_terminal(40)
        print_assessments([one])
        lines = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
        first = next(n for n, line in enumerate(lines) if line.startswith("uniform: what"))
        assert max(map(len, lines[first:])) <= 40
        assert " ".join(line.rstrip() for line in lines[first:]) == f"uniform: {said} {follows}"

    def test_baselines_and_dynamic_evaluation_stand_in_the_same_table(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        beside = (Baseline("uniform", math.log(9), "9 symbols"), Baseline("xz", 2.0, "alone"))
        dynamic = Scores(nats=6789.0, characters=6789, unknown=1, bytes=7000, seconds=1)
        one = Assessment(
            "run", ONE.shape, ONE.parameters, ONE.scores, dynamic=dynamic, baselines=beside,
            after=After("a", 5, 1.5),
        )  # fmt: skip
        print_assessments([one, one])
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines[2][:2] == ["dynamic", "evaluation"]
        assert lines[2][-5:] == ["1.0000", "1.4427", "1.3992", "2.718", "6,789"]
        assert lines[5] == ["uniform", "6,789", "2.1972", "3.1699", "3.0744", "9.000"]
        assert lines[6] == ["xz", "6,789", "2.0000", "2.8854", "2.7984", "7.389"], "and only once"
        assert lines[7:9] == [["uniform:", "9", "symbols"], ["xz:", "alone"]]
        after = "run: after 'a' a character costs 1.5000 nats by dynamic evaluation (mean of 5)"
        assert lines[9:] == [after.split()] * 2, "the prices are those of dynamic evaluation"

    def test_baselines_tell_whose_they_are_where_models_differ(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        xz = Baseline("xz", 2.0, "alone", of_text=True)
        of = Baseline("uniform", 3.0, "9 symbols"), Baseline("3-gram", 2.5, "training part"), xz
        other = replace(of[0]), Baseline("3-gram", 2.5, "last part"), replace(xz)
        three = [
            replace(ONE, checkpoint=name, baselines=beside)
            for name, beside in (("a", of), ("b", of), ("c", other))
        ]
        print_assessments(three)
        names = [line[:10].rstrip() for line in capsys.readouterr().out.splitlines()]
        assert names[4:8] == ["uniform", "3-gram (a)", "xz", "3-gram (c)"]
        said = [
            "uniform: 9 symbols", "3-gram (a): training part; the same for b",
            "xz: alone", "3-gram (c): last part",
        ]  # fmt: skip
        assert list(assessments_say(three)) == said
        print_assessments(three[:2])
        assert "3-gram  " in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("nats", "abouts", "said"),
        [
            ((2.5, 2.6, 2.7), ("counts",) * 3, ["unigram: counts"]),
            (
                (2.5, 2.5, 2.7),
                ("counts",) * 3,
                ["unigram (a): counts; the same for b", "unigram (c): counts"],
            ),
            (
                (2.5, 2.6, 2.7),
                ("counts", "counts", "others"),
                ["unigram (a): counts", "unigram (b): counts", "unigram (c): others"],
            ),
        ],
    )
    def test_what_is_told_of_all_of_a_kind_is_told_once(
        self, nats: tuple[float, ...], abouts: tuple[str, ...], said: list[str]
    ) -> None:
        """Their prices differ with the training part, but their descriptions may be the same."""
        uniform = Baseline("uniform", 3.0, "9 symbols")
        three = [
            replace(ONE, checkpoint=name, baselines=(uniform, Baseline("unigram", price, about)))
            for name, price, about in zip("abc", nats, abouts, strict=True)
        ]
        assert list(assessments_say(three)) == ["uniform: 9 symbols", *said]

    def test_models_of_one_text_are_told_apart_by_its_blocks(self) -> None:
        """Margins: 3.5341 standard errors, Student's t with 5 degrees of freedom at 0.05 / 3."""
        four = of_blocks(
            late=(120.0, 90.0, 140.0, 110.0, 100.0, 70.0),
            close=(112.0, 86.0, 131.0, 110.5, 92.0, 66.5),
            best=(110.0, 85.0, 130.0, 104.0, 91.0, 68.0),
            burst=(math.inf,) * 6,
        )
        said = list(assessments_say(four))
        assert said[:2] == [
            "best is 0.1000 \N{PLUS-MINUS SIGN} 0.2285 nats ahead of close: may be chance",
            "best is 0.4200 \N{PLUS-MINUS SIGN} 0.2792 nats ahead of late: supported",
        ]
        assert "over 6 blocks of this text (paired t tests, which hold for all pairs tog" in said[2]
        assert len(said) == 3
        rows = to_list(four)
        assert [len(row["differences"]) for row in rows] == [0, 0, 2, 0]
        assert rows[2]["differences"][1] == {
            "better": "best", "worse": "late", "nats": pytest.approx(0.42),
            "margin": pytest.approx(0.279172, rel=1e-5), "supported": True,
        }  # fmt: skip
        # Two alone need no correction: 2.5706 standard errors.
        (pair,) = differences(four[1:3])
        assert pair.margin == pytest.approx(0.166196, rel=1e-5)
        assert not pair.supported
        assert "(paired t test)" in list(assessments_say(four[1:3]))[1]

    def test_few_of_the_equally_good_are_told_apart(self) -> None:
        """Some pair in 5 % of cases, also if the best of six is picked afterwards."""
        drawn = np.random.default_rng(1).normal(100, 1, (400, 6, 16))
        told = 0
        for six in drawn.tolist():
            named = {str(number): tuple(nats) for number, nats in enumerate(six)}
            told += any(pair.supported for pair in differences(of_blocks(**named)))
        assert 2 <= told <= 0.07 * 400

    def test_a_model_named_twice_is_compared_once(self) -> None:
        best, other = of_blocks(best=(9.0, 8.0) * 3, other=(10.0, 9.5) * 3)
        three = [best, best, other]
        assert [pair.worse for pair in differences(three)] == ["other"]
        assert [len(row["differences"]) for row in to_list(three)] == [1, 0, 0]

    def test_means_over_seeds_take_the_place_of_single_models(self) -> None:
        """Student's t at 0.05 is 2.776 for 4 degrees of freedom, and 3.073 for 3.2."""
        nine = of_seeds(a1=150, a2=152, a3=154, b7=160, b8=162, b9=164, c1=170, c2=176, c3=176)
        said = list(assessments_say(nine[::-1]))
        assert said[:6] == [
            "a*: mean of 3 seeds 1.5200 nats (2.1929 bits), standard deviation 0.0200 (0.0289)",
            "b*: mean of 3 seeds 1.6200 nats (2.3372 bits), standard deviation 0.0200 (0.0289)",
            "c*: mean of 3 seeds 1.7400 nats (2.5103 bits), standard deviation 0.0346 (0.0500)",
            "a* is 0.1000 \N{PLUS-MINUS SIGN} 0.0453 nats ahead of b*: supported",
            "a* is 0.2200 \N{PLUS-MINUS SIGN} 0.0710 nats ahead of c*: supported",
            "b* is 0.1200 \N{PLUS-MINUS SIGN} 0.0710 nats ahead of c*: supported",
        ]
        assert "leaves out 0, and an F test finds that the settings differ (Welch's te" in said[6]
        assert len(said) == 7
        # A single run of another setting is compared by the text's blocks, with all the others.
        assert sum("blocks of this text" in line for line in assessments_say(nine[:4])) == 1
        # Two checkpoints of one run do not tell what another seed would change.
        twice = [nine[0], replace(nine[0], checkpoint="a1-last")]
        assert not any("mean of" in line for line in assessments_say(twice))

    def test_means_of_many_settings_are_told_apart_together(self) -> None:
        """Student's t at 0.05 / 6 is 4.851 for 4 degrees of freedom; only the best is compared."""
        losses = {f"{name}{seed}": 150 + 10 * n + 2 * seed for n, name in enumerate("abcd")
                  for seed in (1, 2, 3)}  # fmt: skip
        said = list(assessments_say(of_seeds(**losses)))
        assert said[4:7] == [
            f"a* is 0.{n}000 \N{PLUS-MINUS SIGN} 0.0792 nats ahead of {name}*: supported"
            for n, name in ((1, "b"), (2, "c"), (3, "d"))
        ]
        assert "0 (Welch's tests; the intervals hold for all pairs together, if" in said[7]
        assert len(said) == 8
        rows = to_list(of_seeds(**losses))
        found = [row["over_seeds"] and len(row["over_seeds"]["differences"]) for row in rows]
        assert found == [3, None, None, 2, None, None, 1, None, None, 0, None, None]

    def test_who_is_in_no_mean_is_said(self) -> None:
        models = of_seeds(a1=150, a2=152, a3=154, b1=160, b2=162)
        assert models[0].run is not None
        stopped = replace(models[2], run=OfRun(3, "a", 10, True))
        copy = replace(models[1], checkpoint="copy")
        early = replace(models[0], run=replace(models[0].run, step=10))
        said = list(assessments_say([early, models[1], stopped, copy]))
        assert said[:3] == [
            "a1 and a2: mean of 2 seeds 1.5100 nats (2.1785 bits), standard deviation 0.0141 "
            "(0.0204), after 10 to 20 steps",
            "a3: in no mean over seeds, as the run is not finished",
            "copy: in no mean, as another here has the seed",
        ]
        assert "blocks of this text" in said[-1]
        # Without dropout the seed of a run from given weights changes nothing.
        same = of_seeds(a1=150, a2=150, a3=150, b1=160, b2=162)
        *said, first, second, how = assessments_say(same)
        apart = (first, second)
        assert said == [
            "a*: 1.5000 nats (2.1640 bits) from each of 3 seeds, which changed nothing",
            "b*: mean of 2 seeds 1.6100 nats (2.3227 bits), standard deviation 0.0141 (0.0204)",
        ]
        assert [line.partition(" nats")[0] for line in apart] == [
            "a1 is 0.1000 \N{PLUS-MINUS SIGN} 0.0000",
            "a1 is 0.1200 \N{PLUS-MINUS SIGN} 0.0000",
        ]
        assert "blocks of this text" in how
        # A loss that is not finite is no copy of another; alone, nobody misses a mean.
        burst = of_seeds(a1=150, a2=152, a3=math.inf)
        assert not any("another here" in line for line in assessments_say(burst))
        assert not any("no mean" in line for line in assessments_say([stopped, same[3]]))
        pair = of_seeds(a1=150, a2=152, b1=160, b2=162)
        assert list(assessments_say(pair))[-1].startswith(
            "Two seeds show little: take more. \N{PLUS-MINUS SIGN} gives a difference's"
        )

    def test_dynamic_evaluation_ranks_where_it_was_asked_for(self) -> None:
        one, two = of_blocks(one=(9.0, 8.0) * 3, two=(10.0, 9.5) * 3)
        learnt, more = (again.scores for again in of_blocks(a=(7.0, 6.0) * 3, b=(5.0, 4.5) * 3))
        both = [replace(one, dynamic=learnt), replace(two, dynamic=more)]
        (pair,) = differences(both)
        assert pair.better == "two"
        assert pair.nats == pytest.approx(1.75 * 6 / 100)
        assert "of this text, by dynamic evaluation (" in list(assessments_say(both))[1]

    def test_no_difference_is_judged_on_few_blocks_or_other_characters(self) -> None:
        few = of_blocks(one=(30.0, 20.0, 30.0, 20.0, 30.0), two=(20.0, 30.0, 20.0, 30.0, 40.0))
        assert list(assessments_say(few)) == []
        one, two, of_bytes = of_blocks(one=(9.0,) * 6, two=(8.0,) * 6, of_bytes=(7.0,) * 6)
        scores = replace(of_bytes.scores, characters=130, bytes=130)
        of_bytes = replace(of_bytes, scores=scores, of_bytes=True)
        assert differences([of_bytes, one]) == []
        assert [pair.better for pair in differences([of_bytes, one, two])] == ["two"]

    def test_a_byte_counts_as_a_character_and_that_is_said(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        of_bytes = Scores(nats=10_183.5, characters=7000, unknown=0, bytes=7000, seconds=1)
        xz, fewer = (Baseline("xz", nats, "alone", of_text=True) for nats in (2.0, 1.9))
        two = [
            replace(ONE, baselines=(xz,)),
            replace(ONE, checkpoint="b", scores=of_bytes, of_bytes=True, baselines=(fewer,)),
        ]
        print_assessments(two)
        lines = capsys.readouterr().out.splitlines()
        assert lines[3].startswith("xz, per character ")
        assert lines[4].startswith("xz, per byte ")
        assert lines[5:] == [
            "b: a character is a byte; compare with the others by bits/byte", "xz: alone",
        ]  # fmt: skip
        print_assessments(two[1:])
        assert "is a byte" not in capsys.readouterr().out

    def test_what_a_byte_costs_is_not_said_of_a_character(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        positions = PositionScores(nats_T=np.array([2.0]), stretches=3)
        print_assessments(
            [replace(ONE, of_bytes=True, by_position=positions, after=After("a", 5, 1.5))]
        )
        out = capsys.readouterr().out
        assert f"{ONE.checkpoint}: after 'a' a byte costs 1.5000 nats (mean of 5)\n" in out
        assert f"{ONE.checkpoint}: bytes of context since the zero state, " in out

    def test_positions_are_averaged_between_powers_of_two(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        nats_T = np.concatenate([[4.0, 3.0, 2.0, 1.0], np.tile([0.5, 0.7], 550)])
        positions = PositionScores(nats_T, stretches=1234)
        one = Assessment("run", ONE.shape, 1, ONE.scores, by_position=positions)
        print_assessments([one])
        out = capsys.readouterr().out
        assert "means of 1,234 stretches" in out
        lines = [line.split()[:4] for line in out.splitlines()[-12:]]
        assert lines[:4] == [
            ["1", "1", "4.0000", "5.7708"],
            ["2", "2", "3.0000", "4.3281"],
            ["3", "4", "1.5000", "2.1640"],
            ["5", "8", "0.6000", "0.8656"],
        ]
        assert lines[-2:] == [
            ["513", "1,024", "0.6000", "0.8656"], ["1,025", "1,104", "0.6000", "0.8656"],
        ]  # fmt: skip


class TestComparison:
    def made(
        self,
        cells: tuple[CellName, ...],
        seeds: int,
        more: int = 0,
        /,
        unknown: int = 0,
        **planned: Any,
    ) -> Comparison:
        plan = Plan(texts=(), cells=cells, seeds=seeds, **planned)
        results = [
            make_result(
                cell, seed, 2.0 + place + 0.01 * seed, valid_nats_per_char=2.0,
                parameters=900 + place * more, unknown=unknown,
            )
            for place, cell in enumerate(cells)
            for seed in range(seeds)
        ]  # fmt: skip
        return Comparison.of(plan, results)

    def says(self, *made: Any, **planned: Any) -> list[str]:
        return list(comparison_says(self.made(*made, **planned)))

    def test_a_pair_is_held_against_what_chance_makes(self) -> None:
        *_, pair, least = self.says(("lstm", "gru"), 3, steps=20)
        # Both spreads are 0.01; Student's t for 4 degrees of freedom is 2.776.
        assert pair == "lstm is 1.0000 ± 0.0227 nats ahead of gru: supported"
        assert least.startswith("± gives a difference's 95 % confidence interval over the seeds.")
        assert "leaves out 0 (Welch's tests;" in least
        assert "Seeds vary weights and dropout, not the text" in least

    def test_a_difference_within_the_spread_may_be_chance(self) -> None:
        made = self.made(("lstm", "gru"), 3, steps=20)
        runs = [
            replace(run, nats_per_char=2 + 0.1 * run.seed + (0.01 if run.cell == "gru" else 0))
            for cell in made.cells
            for run in cell.runs
        ]
        *_, pair, _ = comparison_says(Comparison.of(made.plan, runs))
        assert pair == "lstm is 0.0100 ± 0.2267 nats ahead of gru: may be chance"

    def test_three_cells_are_first_tested_together(self) -> None:
        *_, last = self.says(("rnn", "lstm", "gru"), 3, steps=20)
        assert "leaves out 0, and an F test finds that the cells differ (Welch's tests;" in last

    def test_where_validation_ranks_a_pair_the_other_way_it_is_said(self) -> None:
        made = self.made(("lstm", "gru"), 3, steps=20)
        runs = [
            replace(run, valid_nats_per_char=2.5 if run.cell == "lstm" else 2.25)
            for cell in made.cells
            for run in cell.runs
        ]
        *_, pair, _ = comparison_says(Comparison.of(made.plan, runs))
        assert pair == (
            "lstm is 1.0000 ± 0.0227 nats ahead of gru: supported; on the validation part it is "
            "0.2500 behind"
        )
        # Where nothing is tested apart, or nothing validated, there is nothing to set beside it.
        alone = Comparison.of(replace(made.plan, test_share=0.0), runs)
        runs = [replace(run, valid_nats_per_char=None) for run in runs]
        for other in (alone, Comparison.of(made.plan, runs)):
            *_, pair, _ = comparison_says(other)
            assert pair.endswith(": supported")

    def test_one_seed_says_how_to_have_more(self) -> None:
        made = self.made(("lstm", "gru"), 1, steps=20)
        runs = [replace(cell.runs[0], run=f"a b/{cell.cell}-seed1") for cell in made.cells]
        *_, last = comparison_says(Comparison.of(made.plan, runs))
        assert last.endswith(": charrnn compare --run 'a b' --resume --seeds 3")

    @pytest.mark.parametrize(
        ("more", "said"), [(4, ";"), (63, " as nearly as widths allow, up to 14.0 % apart;")]
    )
    def test_what_could_not_be_matched_is_not_said_to_be(self, more: int, said: str) -> None:
        first, *_ = self.says(("rnn", "lstm", "gru"), 1, more, steps=20)
        assert first.startswith(f"Matched by parameters{said} 20 steps a run")
        first, *_ = self.says(("rnn", "lstm", "gru"), 1, more, steps=20, match="hidden")
        assert first.startswith("Matched by width; 20 steps a run"), "parameters may differ"

    @pytest.mark.parametrize(
        ("unknown", "said"),
        [(1, "1 of these characters is"), (1093, "1,093 of these characters are")],
    )
    def test_what_the_vocabulary_lacks_is_said(self, unknown: int, said: str) -> None:
        made = self.made(("lstm", "gru"), 2, unknown=unknown, steps=20)
        charged = "each is charged as the unknown symbol and spelled out."
        assert f"{said} not in the vocabulary; {charged}" in list(comparison_says(made))
        assert [row["unknown"] for row in made.to_list()] == [unknown] * 2
        assert not any("unknown" in line for line in self.says(("lstm", "gru"), 2, steps=20))

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (
                {"lr": 0.02},
                "--lr 0.02; the rate of the other weights keeps each cell's ratio to it",
            ),
            ({"lr": 0.02, "optimiser": "adamw"}, "--optimiser adamw --lr 0.02"),
            ({"clip_norm": 0.0, "dropout": 0.5}, "--clip-norm 0 --dropout 0.5"),
        ],
    )
    def test_what_every_run_was_given_is_said(self, given: dict[str, Any], said: str) -> None:
        _, line, *_ = self.says(("rnn", "gru"), 2, steps=20, **given)
        assert line == f"Every run was given {said}."

    def test_one_cell_has_no_ratio_to_keep(self) -> None:
        _, line = self.says(("gru",), 2, steps=20, lr=0.02)
        assert line == "Every run was given --lr 0.02."

    def test_a_model_that_came_to_nothing_has_its_row(self) -> None:
        """Its perplexity is beyond the largest float."""
        (cell,) = self.made(("lstm",), 1, steps=20).cells
        lost = CellResult((replace(cell.runs[0], nats_per_char=1e9, valid_nats_per_char=1e9),))
        assert lost.to_dict()["perplexity"] == math.inf
        made = Comparison(self.made(("lstm",), 1, steps=20).plan, (lost,))
        head, row = comparison_lines(made)
        assert row[head.index("perplexity")] == "inf"

    def test_a_training_that_went_wrong_is_named(self) -> None:
        made = self.made(("lstm", "gru"), 2, steps=20)  # the losses are 2, 2.01; 3 and 3.01
        assert not any("guessing" in line for line in comparison_says(made))
        runs = [replace(run, uniform_nats=3.005) for cell in made.cells for run in cell.runs]
        lines = list(comparison_says(Comparison.of(made.plan, runs)))
        (line,) = [line for line in lines if "guessing" in line]
        worse = "gru, seed 1: worse than guessing (3.005 nats); "
        assert line.startswith(f"{worse}nothing was learned")
        runs = [replace(run, unknown=700) for run in runs]  # of 999 characters
        lines = list(comparison_says(Comparison.of(made.plan, runs)))
        (line,) = [line for line in lines if "guessing" in line]
        assert line.startswith(f"{worse}70 % of these characters are unknown, which is what costs")
        runs = [replace(run, uniform_nats=1.0) for run in runs]
        lines = list(comparison_says(Comparison.of(made.plan, runs)))
        of_cells = [line for line in lines if "guessing" in line]
        assert [line.split(":")[0] for line in of_cells] == [
            "lstm, seeds 0 and 1", "gru, seeds 0 and 1",
        ]  # fmt: skip

    def test_what_is_left_of_a_cell_is_said(self) -> None:
        made = self.made(("rnn", "lstm", "gru"), 3, steps=20)
        gone = [RunFailure("rnn", seed, "") for seed in range(3)]
        gone += [RunFailure("gru", seed, "") for seed in (0, 2)]
        failed = {(one.cell, one.seed) for one in gone}
        results = [
            run for cell in made.cells for run in cell.runs if (run.cell, run.seed) not in failed
        ]
        rest = Comparison.of(made.plan, results, gone)
        why = "left out: a loss was not finite; a lower --lr may help."
        *_, of_rnn, of_gru, last = comparison_says(rest)
        assert of_rnn == f"rnn is {why}"
        others = "Its figures come from 1 seed only, which flatters it."
        assert of_gru == f"gru, seeds 0 and 2, is {why} {others}"
        assert last == (
            "Only one run of gru is left, which has no spread: no difference from it is supported."
        )
        head, _, row = comparison_lines(rest)
        assert (row[0], row[head.index("spread")]) == ("gru", "-")

    def test_a_row_by_hand(self) -> None:
        made = self.made(("lstm",), 2, steps=20)
        large: dict[str, Any] = {
            "parameters": 1900,
            "multiply_adds": 1567,
            "steps": 2000,
            "clipped_steps": 1234,
        }
        runs = [replace(run, **large) for run in made.cells[0].runs]
        made = Comparison.of(made.plan, runs)
        assert comparison_lines(made)[1] == [
            "lstm", "1 x 3", "2.0050", "0.0071", "2.8926", "7.426", "2.0000", "7.389",
            "1,900", "1,567", "1000.0", "7", "2,000", "1,234",
        ]  # fmt: skip
        row = made.to_list()[0]
        times = (row["seconds"], row["chars_per_second"], row["train_chars_per_second"])
        assert times == (7, 5000, 1000)

    @pytest.mark.parametrize(
        ("took", "said"),
        [
            ((4.9, 0.35), ", of which validations and the work after each took 5 to 70 %"),
            ((0.7, 0.7), ", of which validations and the work after each took 10 %"),
            ((0.0, 0.0), ""),  # nothing is held out to validate
        ],
    )
    def test_what_validations_took_of_equal_time_is_said(
        self, took: tuple[float, ...], said: str
    ) -> None:
        plan = Plan(texts=(), cells=("lstm", "gru"), minutes=1.0)
        results = [
            make_result(cell, validation_seconds=seconds)
            for cell, seconds in zip(plan.cells, took, strict=True)
        ]
        made = Comparison.of(plan, results)
        line = f"Equal time{said}: a faster cell does more steps."
        assert line in list(comparison_says(made))
        assert [row["validation_seconds"] for row in made.to_list()] == [*took]

    @pytest.mark.parametrize("seeds", [1, 3])
    def test_one_cell_is_held_against_nothing(self, seeds: int) -> None:
        (line,) = self.says(("lstm",), seeds, steps=20)
        assert line.startswith("20 steps a run, ")

    def test_a_difference_is_never_nothing(self) -> None:
        made = self.made(("lstm", "gru"), 2, steps=20)
        runs = [
            replace(run, nats_per_char=run.nats_per_char / 1e5)
            for cell in made.cells
            for run in cell.runs
        ]
        lines = list(comparison_says(Comparison.of(made.plan, runs)))
        assert "lstm is 1.0e-05 ± 3.0e-07 nats ahead of gru: supported" in lines

    def test_a_mean_is_of_the_seeds_that_are_left(self) -> None:
        made = self.made(("lstm", "gru"), 3, steps=20)
        runs = [run for cell in made.cells for run in cell.runs][:-1]
        failed = [RunFailure("gru", 2, "it went wrong")]
        first, *_ = comparison_says(Comparison.of(made.plan, runs, failed))
        assert "mean of up to 3 seeds" in first

    def test_what_was_chosen_where_it_is_scored_is_flattered(self) -> None:
        first, *_ = self.says(("lstm", "gru"), 2, steps=20, test_share=0.0)
        assert "of the validation part, which flatters it, as it was chosen there; µs" in first
        first, *_ = self.says(("lstm", "gru"), 2, steps=20)
        assert "mean of 2 seeds; the best checkpoint by validation, on the 999 pred" in first
        assert "flatters" not in first

    @pytest.mark.parametrize(
        ("budget", "said"),
        [
            ({"steps": 1_234_567}, "1,234,567 steps"),
            ({"minutes": 1.0}, "1 minute"),
            ({"epochs": 0.5}, "0.5 epochs"),
        ],
    )
    def test_the_budget_is_counted(self, budget: dict[str, float], said: str) -> None:
        first, *_ = self.says(("lstm", "gru"), 1, **budget)
        assert first.startswith(f"Matched by parameters; {said} a run, one seed; ")
        assert first.endswith("; multiply-adds: per character.")

    def test_the_spread_is_said_to_be_of_the_seeds(self) -> None:
        first, *_ = self.says(("lstm", "gru"), 2, steps=20)
        assert first.endswith("; spread: standard deviation over the seeds.")

    def test_a_byte_that_counts_as_a_character_is_said_to(self) -> None:
        first, *_ = self.says(("lstm", "gru"), 2, steps=20, encoding="Bytes")
        assert first.endswith("over the seeds; a character is a byte.")
        first, *_ = self.says(("lstm", "gru"), 2, steps=20, encoding="latin-1")
        assert "byte" not in first

    def test_one_prediction_is_one(self) -> None:
        (cell,) = self.made(("lstm",), 1, steps=20).cells
        one = CellResult((replace(cell.runs[0], characters=1),))
        made = Comparison(self.made(("lstm",), 1, steps=20).plan, (one,))
        assert "on the 1 prediction of the test part; " in next(comparison_says(made))


def test_scores_that_are_no_numbers_are_refused() -> None:
    """Those of dynamic evaluation, too, where the gradient may be too large."""
    refuse_non_finite([ONE, replace(ONE, dynamic=ONE.scores)])
    for lost in (math.inf, math.nan):
        scores = replace(ONE.scores, nats=lost)
        for one in (replace(ONE, scores=scores), replace(ONE, dynamic=scores)):
            with pytest.raises(NonFiniteError, match="its loss is not finite"):
                refuse_non_finite([ONE, one])


class TestPerCharacter:
    def test_writes_a_line_a_character(self, tmp_path: Path) -> None:
        file = tmp_path / "prices"
        file.write_text("of before")
        with PerCharacter(make_part(tmp_path, "xé\n☃".encode()), file) as write:
            write(Prices(1, np.array([0.5, 1.25]), 0))
            assert file.read_text() == "of before", "it is replaced only when complete"
            write(Prices(3, np.array([14.0]), 1))
        assert [json.loads(line) for line in file.read_text("utf-8").splitlines()] == [
            {"position": 1, "character": "é", "nats": 0.5},
            {"position": 2, "character": "\n", "nats": 1.25},
            {"position": 3, "character": "☃", "nats": 14.0},
        ]

    def test_a_price_that_is_no_number_is_null(self, tmp_path: Path) -> None:
        file = tmp_path / "prices"
        with PerCharacter(make_part(tmp_path, b"abc"), file) as write:
            write(Prices(1, np.array([np.nan, np.inf]), 0))
        lines = file.read_text().splitlines()
        assert lines == [
            '{"position": 1, "character": "b", "nats": null}',
            '{"position": 2, "character": "c", "nats": null}',
        ]

    def test_bytes_are_numbers(self, tmp_path: Path) -> None:
        file = tmp_path / "prices"
        with PerCharacter(make_part(tmp_path, b"\x00\xff\x00", "bytes"), file) as write:
            write(Prices(1, np.array([0.5, 1.25]), 0))
        assert [json.loads(line)["byte"] for line in file.read_text().splitlines()] == [255, 0]

    @needs_full
    @pytest.mark.parametrize("stretches", [1, 999])
    def test_a_full_disk_is_named(self, tmp_path: Path, stretches: int) -> None:
        """It may be noticed at the end or before."""
        part = make_part(tmp_path, b"ab" * 999)
        with (
            pytest.raises(CharrnnError, match="/dev/full: cannot write the prices: No space"),
            PerCharacter(part, Path("/dev/full")) as write,
        ):
            for position in range(1, stretches + 1):
                write(Prices(position, np.array([0.5]), 0))

    @pytest.mark.parametrize("failure", [KeyboardInterrupt(), BrokenPipeError("stdout")])
    @pytest.mark.parametrize("before", ["of before", None])
    def test_a_failure_leaves_what_was_there(
        self, tmp_path: Path, before: str | None, failure: BaseException
    ) -> None:
        """The failure is passed on unchanged: a pipe that broke elsewhere is not this file's."""
        file = tmp_path / "folder" / "prices"
        file.parent.mkdir()
        if before is not None:
            file.write_text(before)
        with (
            pytest.raises(type(failure)) as caught,
            PerCharacter(make_part(tmp_path, b"abc"), file) as write,
        ):
            write(Prices(1, np.array([0.5]), 0))
            raise failure
        assert caught.value is failure
        left = [path.read_text() for path in file.parent.iterdir()]
        assert left == ([] if before is None else [before])

    def test_what_a_link_leads_to_is_replaced(self, tmp_path: Path) -> None:
        file, link = tmp_path / "prices", tmp_path / "link"
        file.write_text("of before")
        link.symlink_to(file)
        with PerCharacter(make_part(tmp_path, b"ab"), link) as write:
            write(Prices(1, np.array([0.5]), 0))
        assert link.is_symlink()
        assert json.loads(file.read_text())["character"] == "b"

    def test_a_link_that_leads_to_itself_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("link")
        with PerCharacter(make_part(tmp_path, b"ab"), tmp_path / "link") as write:
            write(Prices(1, np.array([0.5]), 0))
        assert json.loads((tmp_path / "link").read_text())["character"] == "b"

    def test_a_reader_who_leaves_is_named(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        with (
            pytest.raises(CharrnnError, match="pipe: cannot write the prices: Broken pipe"),
            PerCharacter(make_part(tmp_path, b"ab"), pipe) as write,
        ):
            os.close(reader)
            write(Prices(1, np.array([0.5]), 0))


class TestSurpriseText:
    @pytest.fixture(autouse=True)
    def colours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")

    @pytest.fixture
    def shown(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        """Return a function that returns what is shown of a text whose characters cost this."""

        def show(text: str | bytes, nats: Sequence[float], encoding: str = "utf-8") -> str:
            SurpriseText(make_part(tmp_path, text, encoding))(Prices(1, np.array(nats), 0))
            return capsys.readouterr().out

        return show

    def spans(self, out: str) -> list[tuple[str, str]]:
        """Return the pieces of a coloured output, each with its style."""
        text = Text.from_ansi(out)
        plain = text.plain
        return [(plain[span.start : span.end], str(span.style)) for span in text.spans]

    def test_colours_by_price(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        bit = math.log(2)
        show = SurpriseText(make_part(tmp_path, b"abcdef"))
        show(Prices(1, np.array([0.1, 1.0, 3.0]) * bit, 0))
        show(Prices(4, np.array([5.0, 9.0]) * bit, 0))
        out = capsys.readouterr().out
        assert Text.from_ansi(out).plain == "abcdef"
        assert self.spans(out) == [
            ("b", "dim"),
            ("d", "color(5)"),
            ("e", "bold color(1)"),
            ("f", "bold color(7) on color(1)"),
        ]
        assert out.startswith("a\x1b"), "it was given, not foreseen"
        show.close()
        assert "0.5 to 2" in Text.from_ansi(capsys.readouterr().out).plain

    def test_what_ends_it_counts_before_that_nobody_reads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C ends the reader, too."""
        show = SurpriseText(make_part(tmp_path, b"abc"))
        unread = Mock(side_effect=BrokenPipeError)
        monkeypatch.setattr(show, "close", unread)
        with pytest.raises(Stopped), show:
            raise Stopped(2)
        assert not unread.called, "it would wait for a reader that does not read"
        with pytest.raises(NonFiniteError), show:
            raise NonFiniteError("nan")
        with pytest.raises(BrokenPipeError), show:
            pass

    def test_says_how_to_have_colours_where_there_are_none(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("FORCE_COLOR")
        show = SurpriseText(make_part(tmp_path, b"abc"))
        show(Prices(1, np.array([0.1, 9.0]), 0))
        show.close()
        out, err = capsys.readouterr()
        assert out.rstrip() == "abc"
        assert "FORCE_COLOR=1" in err

    def test_nothing_steers_the_terminal(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("FORCE_COLOR")
        text = "[red]\x1b[2J\r\n\x9b\n"
        show = SurpriseText(make_part(tmp_path, text.encode()))
        nats = np.zeros(len(text) - 1)
        nats[-1] = 3.0
        show(Prices(1, nats, 0))
        assert capsys.readouterr().out == "[red]\ufffd[2J\n\ufffd\n"
        show.close()
        assert capsys.readouterr().out == "\n\n", "without colours there is no legend"

    def test_no_color_says_nothing_of_colours(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        show = SurpriseText(make_part(tmp_path, b"a\nb"))
        show(Prices(1, np.array([3.0, 9.0]), 0))
        show.close()
        # Not Text.from_ansi: that of Rich 13.8 drops the last line break.
        assert re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out) == "a\nb\n\n"

    def test_bytes_that_end_within_a_character_are_all_shown(
        self, shown: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("FORCE_COLOR")
        assert shown(b"caf\xc3", [1.0, 1.0, 9.0], "bytes") == "caf\ufffd"

    def test_a_pipe_gets_the_text_as_it_is(
        self, shown: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("FORCE_COLOR")
        text = "if a:\n\tb = '\u7d05'  \n\n" + "long " * 100
        assert shown(text, [3.0] * (len(text) - 1)) == text

    def test_a_line_feed_that_costs_much_is_marked(self, shown: Callable[..., str]) -> None:
        out = shown("a\n\tb", [3.0, 1.0, 1.0])
        assert Text.from_ansi(out).plain == "a\u21b5\n\tb"
        assert ("\u21b5", "bold color(1)") in self.spans(out)

    def test_the_colour_of_a_space_is_seen(
        self, shown: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its ink draws nothing, and terminals do not paint what a tab moves over."""
        text, nats = "a \u00a0\t b \n", [3.0, 2.0, 3.0, 9.0, 2.0, 0.5, 3.0]
        out = shown(text, nats)
        assert out.endswith("\n"), "which from_ansi leaves out before Rich 15"
        assert Text.from_ansi(out).plain.removesuffix("\n") == "a \u00a0→\t b ↵"
        assert self.spans(out) == [
            (" ", "bold reverse color(1)"),
            ("\u00a0", "reverse color(5)"),
            ("→\t", "bold color(1)"),
            (" ", "bold color(7) on color(1)"),
            ("b", "color(5)"),
            ("↵", "bold color(1)"),
        ]
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b[7m" not in shown(text, nats)

    def test_an_accent_s_colour_is_seen(
        self, shown: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An accent with a colour gets a base of its own; a mark that takes a column needs none."""
        text, nats = "e\u0301e\u0301की", [3.0, 0.0, 1.0, 0.0, 3.0]
        out = shown(text, nats)
        assert Text.from_ansi(out).plain == "e◌\u0301e\u0301की"
        assert ("◌\u0301", "bold color(1)") in self.spans(out)
        monkeypatch.delenv("FORCE_COLOR")
        assert shown(text, nats) == text

    def test_bytes_become_characters_with_the_price_of_all(self, shown: Callable[..., str]) -> None:
        out = shown("aéb".encode(), [1.0, 2.0, 0.0], "bytes")
        assert self.spans(out) == [("é", "bold color(1)"), ("b", "dim")]

    def test_no_colour_reaches_over_the_end_of_a_line(self, shown: Callable[..., str]) -> None:
        """An invalid byte is recognised only by the line feed after it, and shown with that."""
        out = shown(b"a\xc3\nb", [0.0, 9.0, 0.0], "bytes")
        assert Text.from_ansi(out).plain == "a\ufffd\nb"
        assert re.search("\ufffd\x1b\\[0m\n", out)

    @pytest.mark.parametrize("encoding", ["utf-8", "bytes"])
    def test_a_carriage_return_before_a_line_feed_is_part_of_its_price(
        self, tmp_path: Path, shown: Callable[..., str], encoding: str
    ) -> None:
        """The carriage return decides that the line ends."""
        text = PricedText(make_part(tmp_path, b"a\r\nb", encoding))
        assert list(text.first()) == [("a", 0.0)]
        assert list(text.priced(Prices(1, np.array([9.0, 0.5, 2.0]), 0))) == [("\n", 9.5), ("b", 2)]
        out = shown(b"a\r\nb", [9.0, 0.0, 0.0], encoding)
        assert "↵" in [text for text, _ in self.spans(out)]

    def test_a_carriage_return_by_itself_is_shown(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also at the end of a stretch, and at the end of the text."""
        monkeypatch.delenv("FORCE_COLOR")
        for encoding in ("utf-8", "bytes"):
            show = SurpriseText(make_part(tmp_path, b"a\rb\r\nc\r", encoding))
            show(Prices(1, np.zeros(3), 0))
            show(Prices(4, np.zeros(3), 0))
            assert capsys.readouterr().out == "a␍b\nc␍"


def test_colours_can_be_read_on_a_light_and_on_a_dark_terminal() -> None:
    """The colours are those of xterm."""
    xterm = {"red": "cd0000", "magenta": "cd00cd", "yellow": "cdcd00"}
    inks = [style.color for style in map(Style.parse, STYLES) if not style.bgcolor]
    for ink in filter(None, inks):
        assert min(contrast(xterm[ink.name], [paper] * 3) for paper in (0, 255)) > 3
