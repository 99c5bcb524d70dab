"""The contents of the pages of --report, made from records."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from unittest import mock

import matplotlib
import numpy as np
import pytest
import torch

from charrnn.analysis.activity import Activation, Unit
from charrnn.analysis.equations import Quantity, Step
from charrnn.analysis.flow import Reach
from charrnn.analysis.gradients import Truncation, Window
from charrnn.analysis.memory import Memory
from charrnn.analysis.norms import Clipping, Period
from charrnn.compute.machine import machine, worker
from charrnn.compute.processor import processor
from charrnn.inference.assessment import After, OfRun
from charrnn.inference.baselines import Baseline
from charrnn.inference.evaluation import PositionScores, Scores
from charrnn.runs.comparison import CellResult, Comparison, RunFailure
from charrnn.runs.run import Change
from charrnn.views.figures import Line
from charrnn.views.page import Origin, origin
from charrnn.views.portrait import SAMPLE, labels
from charrnn.views.report import assessment_page, comparison_page, inspection_page
from tests.pages import (
    BYTES_RUN,
    HOSTILE,
    ORIGIN,
    RUN,
    SHAPE,
    Page,
    assessment,
    check,
    compare_page,
    comparison,
    flow,
    inspection,
    log,
    portrait,
)
from tests.small import make_result


class TestComparisonPage:
    def test_it_holds_what_the_terminal_says_and_more(self) -> None:
        text = compare_page(comparison())
        page = check(text)
        assert page.texts["h1"] == ["LSTM and GRU on poem.txt"]
        assert page.texts["h2"] == [
            "Result", "Learning", "Gradient flow", "Memory", "Pace", "Gates", "Units", "Clipping",
            "A cut gradient", "Samples", "Surprise", "How this was made",
        ]  # fmt: skip
        # Figures: result 1, curves 2, flow 2, memory 1, gates 2, units 1, clipping 2.
        assert page.tags["svg"] == page.tags["desc"] == 1 + 2 + 2 + 1 + 2 + 1 + 2
        said = " ".join(page.texts["desc"])
        assert "LSTM: 2.0150 (of 2.0100, 2.0200). GRU: 2.1150 (of 2.1100, 2.1200)." in said
        assert re.search(r"LSTM: 0\.5 \(band 0\.\d+ to 0\.\d+\) at 1 to ", said), "the memory"
        words = " ".join(page.texts["body"]).split()
        said = " ".join(words)
        assert (
            "LSTM predicts the test part best: 2.0150 nats per character, 2.9070 bits. "
            "It is 0.1000 nats ahead of GRU" in said
        )
        assert re.search(r"lstm is 0\.1000 ± 0\.0\d+ nats ahead of gru: supported", said)
        assert ORIGIN.command in page.texts["code"]
        assert ORIGIN.machine in said
        assert ORIGIN.made in said
        assert f"--length {SAMPLE.length} " in said
        assert page.texts["pre"].count("and the\nbird") == 2

    def test_runs_worse_than_guessing_are_told_at_the_top(self) -> None:
        made = comparison()
        assert "guessing" not in check(compare_page(made)).texts["p"][1]
        # Only the better cell is below this.
        runs = [replace(run, uniform_nats=2.05) for cell in made.cells for run in cell.runs]
        lead = check(compare_page(Comparison.of(made.plan, runs))).texts["p"][1]
        assert lead.endswith(" Worse than guessing: 2 runs.")

    @pytest.mark.parametrize(
        ("seeds", "apart", "said"),
        [
            (1, 0.1, "0.1000 nats ahead of GRU, with one seed each."),
            (3, 0.1, "0.1000 nats ahead of GRU, more than chance makes likely."),
            (3, 0.005, "0.0050 nats ahead of GRU, which may be chance."),
        ],
    )
    def test_how_far_ahead_the_best_is_stands_at_the_top(
        self, seeds: int, apart: float, said: str
    ) -> None:
        lead = check(self.bare(comparison(seeds, apart=apart))).texts["p"][1]
        assert lead.endswith(f" bits. It is {said}")

    def test_what_is_left_out_is_told_at_the_top(self) -> None:
        made = comparison(3)
        runs = [run for cell in made.cells for run in cell.runs if run.seed == 1]
        gone = [RunFailure(cell.cell, seed, "") for cell in made.cells for seed in (2, 3)]
        lead = check(self.bare(Comparison.of(made.plan, runs, gone))).texts["p"][1]
        assert lead.endswith(" Left out: 4 runs whose loss was not finite.")

    @pytest.mark.parametrize(
        ("texts", "said"),
        [((), "Python's own library"), (("a/b", "a/c"), "several texts"), (("a/b",), "b")],
    )
    def test_the_title_names_what_was_read(self, texts: tuple[str, ...], said: str) -> None:
        made = comparison()
        page = check(self.bare(replace(made, plan=replace(made.plan, texts=texts))))
        assert page.texts["h1"] == [f"LSTM and GRU on {said}"]
        assert (", ".join(Path(text).name for text in texts) or said) in page.texts["dd"]

    def bare(self, made: Comparison) -> str:
        """Return a page without curves and inspections."""
        drawn = [portrait(cell.cell.upper(), inspection=None) for cell in made.cells]
        return comparison_page(made, drawn, [(run, ()) for run in made.cells[0].runs], ORIGIN)

    @pytest.mark.parametrize("seeds", [1, 2])
    def test_every_seed_is_drawn_in_its_cells_style(
        self, seeds: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        curves, losses = mock.Mock(return_value=""), mock.Mock(return_value="")
        monkeypatch.setattr("charrnn.views.curves.line_chart", curves)
        monkeypatch.setattr("charrnn.views.report.dot_chart", losses)
        text = compare_page(comparison(seeds), [portrait(inspection=None)] * 2)
        more = [""] * (seeds - 1)
        main = [line for line in curves.call_args.args[2] if not line.faint]
        assert [line.label for line in main] == ["LSTM", *more, "GRU", *more]
        assert [line.style for line in main] == [0] * seeds + [1] * seeds
        one_style = "Seeds of one cell share a line style; the first is named. Losses compare only"
        assert (one_style in text) == (seeds > 1)
        _, _, names, (dots,) = losses.call_args.args
        assert (names, list(dots.style)) == (["LSTM", "GRU"], [0, 1])
        assert dots.values == pytest.approx([2.015, 2.115] if seeds > 1 else [2.01, 2.11])
        if seeds == 1:
            assert not dots.around
        else:
            assert dots.around == [pytest.approx([2.01, 2.02]), pytest.approx([2.11, 2.12])]

    def test_one_seed_and_one_cell_are_enough(self) -> None:
        page = check(compare_page(comparison(seeds=1)))
        assert "how much of a difference is chance is not known" in page.texts["figcaption"][0]
        alone = check(compare_page(comparison(seeds=1, cells=("lstm",))))
        assert alone.texts["h1"] == ["LSTM on poem.txt"]
        assert alone.texts["p"][1] == (
            "LSTM predicts the test part: 2.0100 nats per character, 2.8998 bits."
        )

    def test_one_prediction_is_one(self) -> None:
        made = comparison(seeds=1)
        runs = [replace(cell.runs[0], characters=1) for cell in made.cells]
        page = check(self.bare(Comparison.of(made.plan, runs)))
        assert "on the 1 prediction of the test part" in page.texts["figcaption"][0]

    def test_models_of_bytes_are_said_to_be_that(self) -> None:
        """On the page of an inspection, too."""
        drawn = portrait("LSTM", run=BYTES_RUN)
        for text in (
            compare_page(comparison(), [drawn, portrait("GRU", run=BYTES_RUN)]),
            inspection_page(drawn, "poem", ORIGIN),
        ):
            page = check(text)
            assert "Learning per byte" in page.texts["h2"]
            assert "Against bytes" in page.texts["h3"]
            assert "in figures and tables a character is a byte." in page.texts["p"][1]
        assert "bytes" not in compare_page(comparison())

    def test_a_cell_is_named_though_its_first_log_is_gone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, curves = comparison(3), mock.Mock(return_value="")
        monkeypatch.setattr("charrnn.views.curves.line_chart", curves)
        logs = [(run, log() if run.seed > 1 else ()) for cell in made.cells for run in cell.runs]
        page = check(comparison_page(made, [portrait(inspection=None)], logs, ORIGIN))
        main = [line for line in curves.call_args.args[2] if not line.faint]
        assert [line.label for line in main] == ["LSTM", "", "GRU", ""]
        assert "LSTM at 2.9000 (validation), GRU at 2.9000" in page.texts["figcaption"][1]

    def test_models_that_were_not_looked_into_have_their_other_sections(self) -> None:
        bare = portrait(inspection=None, log=())
        made = comparison()
        text = comparison_page(
            made, [bare, bare], [(make_result(), ()), (make_result("gru"), ())], ORIGIN
        )
        page = check(text)
        assert page.texts["h2"] == ["Result", "Samples", "Surprise", "How this was made"]

    def test_the_only_model_with_a_measurement_is_named(self) -> None:
        lost = portrait("LSTM", inspection=inspection(clipping=None))
        page = check(compare_page(comparison(), [lost, portrait("GRU")]))
        assert any(said.startswith("GRU: Norms of the gradient") for said in page.texts["li"])

    def test_without_a_test_part_it_says_validation(self) -> None:
        made = comparison()
        made = replace(made, plan=replace(made.plan, test_share=0.0))
        assert "Loss on the validation part" in check(compare_page(made)).texts["h3"]

    def test_where_nothing_was_validated_nothing_is_best_by_it(self) -> None:
        def said(made: Comparison) -> str:
            return " ".join(check(compare_page(made)).texts["body"][0].split())

        made = comparison()
        seen = said(made)
        assert "the best checkpoint by validation, on the 999 predictions" in seen
        assert "Each cell's best run by validation, on the test part." in seen
        long = replace(inspection(), characters=20_000)
        page = comparison_page(made, [portrait("LSTM", inspection=long)], [], ORIGIN)
        assert (
            "Each cell's best run by validation, on the last 20,000 characters of the test part."
        ) in " ".join(check(page).texts["body"][0].split())
        blind = replace(
            made,
            cells=tuple(
                CellResult(tuple(replace(run, valid_nats_per_char=None) for run in cell.runs))
                for cell in made.cells
            ),
        )
        unseen = said(blind)
        assert "by validation" not in unseen
        assert "the last checkpoint, on the 999 predictions of the test part" in unseen
        assert "Each cell's first run, on the test part." in unseen


class TestAssessmentPage:
    @pytest.mark.parametrize(
        ("number", "named"), [(5, "one, one, one, one and one"), (6, "6 checkpoints")]
    )
    def test_a_title_does_not_name_very_many(self, number: int, named: str) -> None:
        many = [assessment()] * number, [portrait("one")] * number
        assert check(assessment_page(*many, "poem", ORIGIN)).texts["h1"] == [f"Scores of {named}"]

    def test_says_how_each_model_was_trained(self) -> None:
        """On the page of an inspection, too."""
        bare = replace(RUN, config=replace(RUN.config, optimiser="muon", clip_norm=None, seed=3))
        two = [portrait("one"), portrait("two", run=bare)]
        far = "for 20 steps; this checkpoint after 10 steps, 180 characters, 5 s"
        page = check(inspection_page(two[0], "poem", ORIGIN))
        assert f"one: trained with SGD 0.5, clip norm 1, seed 1, {far}" in page.texts["li"]
        changed = replace(RUN, changes=(Change(1200, "--lr 1", "--lr 0.5"),))
        page = check(inspection_page(portrait("one", run=changed), "poem", ORIGIN))
        (how,) = (text for text in page.texts["li"] if ": trained with " in text)
        assert ", for 20 steps, --lr 0.5 from step 1,200 on (was --lr 1); this " in how
        less = replace(bare, config=replace(bare.config, minutes=3.0, steps=None))
        both = [two[0], portrait("two", run=less)]
        page = check(assessment_page([assessment()] * 2, both, "poem", ORIGIN))
        said = [text for text in page.texts["li"] if ": trained with " in text]
        assert said == [
            f"one: trained with SGD 0.5, clip norm 1, seed 1, {far}",
            "two: trained with Muon 0.5 and AdamW 0.5, no clipping, seed 3, for 3 minutes; "
            + far.partition("; ")[2],
        ]

    def test_says_once_how_all_models_were_trained(self) -> None:
        """Whatever it is; each model's own words are what it does not share with all others."""
        said = {}
        for number, seeds in enumerate(((1, 2), (1, 1))):
            runs = [replace(RUN, config=replace(RUN.config, seed=seed)) for seed in seeds]
            runs[1] = replace(runs[1], progress=replace(RUN.progress, step=20))
            two = [portrait(name, run=run) for name, run in zip("ab", runs, strict=True)]
            page = check(assessment_page([assessment()] * 2, two, "poem", ORIGIN))
            said[number] = [text for text in page.texts["li"] if "SGD" in text or "after" in text]
        assert said == {
            0: [
                "Common to all: SGD 0.5, clip norm 1, for 20 steps",
                "a: seed 1; this checkpoint after 10 steps, 180 characters, 5 s",
                "b: seed 2; this checkpoint after 20 steps, 180 characters, 5 s",
            ],
            1: [
                "Common to all: SGD 0.5, clip norm 1, seed 1, for 20 steps",
                "a: this checkpoint after 10 steps, 180 characters, 5 s",
                "b: this checkpoint after 20 steps, 180 characters, 5 s",
            ],
        }

    def test_a_long_name_is_cut_in_figures_alone(self) -> None:
        by_position = PositionScores(np.linspace(3, 2, 10), 7)
        name = "shakespeare-lstm-hidden-512-layers-3"
        text = assessment_page(
            [assessment(by_position=by_position)], [portrait(name)], "poem", ORIGIN
        )
        page = check(text)
        assert page.texts["h1"] == [f"Scores of {name}"]
        assert page.texts["p"][1].startswith(name)
        assert page.texts["h3"].count(name) == 2, "above its sample and its excerpt"
        assert [t for t in page.texts["text"] if "shakes" in t] == ["shakespeare…512-layers-3"] * 4

    def test_all_that_was_asked_for_is_there(self) -> None:
        by_position = PositionScores(np.linspace(3, 2, 10), 7)
        faster = Scores(nats=1400.0, characters=1000, unknown=1, bytes=1100, seconds=2.0)
        beside = (Baseline("xz", 2.0, "alone"),)
        first = assessment(dynamic=faster, by_position=by_position, baselines=beside)
        second = assessment("runs/two", by_position=by_position, baselines=beside)
        text = assessment_page(
            [first, second], [portrait("one"), portrait("two", log=log(5))], "poem", ORIGIN
        )
        page = check(text)
        assert page.texts["h1"] == ["Scores of one and two"]
        assert page.texts["h2"][:3] == ["Scores", "Loss by position", "Learning"]
        about = page.texts["desc"][0]
        for row in ("one: 2.1640", "one, dynamic: 2.0198", "two: 2.1640", "xz: 2.8854"):
            assert row in about
        assert "xz: alone" in page.texts["li"][0]
        assert page.texts["p"][1] == (
            "one by dynamic evaluation needs the fewest bits: 1.8362 bits per byte, 2.0198 per "
            "character, perplexity 4.055."
        )

    def test_models_of_bytes_and_of_characters_compare_by_the_byte(self) -> None:
        scores = Scores(nats=1800.0, characters=3000, unknown=0, bytes=3000, seconds=2.0)
        beside = (Baseline("uniform", 1.0, ""), Baseline("xz", 0.4, "", of_text=True))
        of_bytes = assessment("runs/b", scores=scores, baselines=beside, of_bytes=True)
        scores = Scores(nats=1500.0, characters=1000, unknown=1, bytes=3000, seconds=2.0)
        beside = (Baseline("uniform", 1.5, ""), Baseline("xz", 1.2, "", of_text=True))
        of_text = assessment("runs/t", scores=scores, baselines=beside)
        bytes_drawn = portrait("bytes", run=BYTES_RUN)
        text = assessment_page([of_bytes, of_text], [bytes_drawn, portrait("text")], "poem", ORIGIN)
        page = check(text)
        assert page.texts["p"][1] == (
            "text needs the fewest bits: 0.7213 bits per byte, 2.1640 per character, "
            "perplexity 4.482. Without a network, xz needs fewer: 0.5771 bits per byte."
        )
        about = page.texts["desc"][0]
        for row in ("bytes: 0.8656", "text: 0.7213", "(bytes): 1.4427", "(text): 0.7213"):
            assert row in about
        assert about.count("xz: 0.5771") == about.count("xz") == 1
        assert page.texts["li"][0] == (
            "bytes: a character is a byte; compare with the others by bits/byte"
        )
        alone = check(assessment_page([of_bytes], [bytes_drawn], "poem", ORIGIN))
        assert alone.texts["p"][1].startswith("bytes needs 0.8656 bits per byte, perplexity 1.822.")
        why = " Per byte, since not all models count the same characters."
        fewer = assessment("runs/f", scores=replace(scores, characters=999))
        two = check(
            assessment_page([of_text, fewer], [portrait("text"), portrait("f")], "poem", ORIGIN)
        )
        for one, is_said in ((page, True), (alone, False), (two, True)):
            assert one.texts["h3"][0] == "Bits per byte"
            assert (why in one.texts["figcaption"][0]) == is_said

    def test_no_figure_has_nats_per_byte_beside_those_per_character(self) -> None:
        by_position = PositionScores(np.linspace(3, 2, 10), 7)
        scores = Scores(nats=1800.0, characters=3000, unknown=0, bytes=3000, seconds=2.0)
        of_bytes = assessment("bytes", scores=scores, by_position=by_position, of_bytes=True)
        scores = Scores(nats=1500.0, characters=1000, unknown=1, bytes=3000, seconds=2.0)
        of_text = assessment("text", scores=scores, by_position=by_position)
        drawn = [portrait("bytes", run=BYTES_RUN), portrait("text", log=log(5))]
        page = check(assessment_page([of_bytes, of_text], drawn, "poem", ORIGIN))
        assert page.texts["h2"][1:5] == [
            "Loss by position per byte", "Loss by position",
            "Learning per byte", "Learning",
        ]  # fmt: skip
        by_the_byte = (True, False, True, True, False, False)
        for about, is_byte in zip(page.texts["desc"][1:], by_the_byte, strict=True):
            unit = "byte" if is_byte else "character"
            assert about.startswith(f"Lines of nats per {unit} against")
            assert ("bytes: " in about, "text: " in about) == (is_byte, not is_byte)
        alone = check(assessment_page([of_bytes], drawn[:1], "poem", ORIGIN))
        assert alone.texts["h2"][1:3] == ["Loss by position per byte", "Learning per byte"]

    @pytest.mark.parametrize("names", [("אחד",), ("אחד", "שתיים")])
    def test_no_number_comes_right_after_words_from_right_to_left(
        self, names: tuple[str, ...]
    ) -> None:
        models = [assessment(f"runs/{name}", after=After("אור", 5, 1.5)) for name in names]
        drawn = [portrait(name, log=log(5)) for name in names]
        page = check(assessment_page(models, drawn, "poem", ORIGIN))
        said = [text for tag in ("p", "li", "figcaption") for text in page.texts[tag]]
        assert sum("אחד" in text for text in said) >= 3
        assert sum("אור" in text for text in said) == len(names)
        assert [text for text in said if re.search(r"[א-ת]\W*\d", text)] == []

    @pytest.mark.parametrize(("nats", "said"), [(1.4, True), (1.6, False)])
    def test_says_where_no_network_is_needed(self, nats: float, said: bool) -> None:
        one = assessment(baselines=(Baseline("7-gram", nats, ""), Baseline("xz", 2.0, "")))
        page = check(assessment_page([one], [portrait()], "poem", ORIGIN))
        lead = page.texts["p"][1]
        assert ("Without a network, 7-gram needs fewer: 1.8362 bits per byte" in lead) == said
        assert "xz" not in lead

    def test_the_baseline_that_needs_least_is_said_to_be_whose_it_is(self) -> None:
        two = [
            assessment(f"runs/{name}", baselines=(Baseline("7-gram", nats, ""),))
            for name, nats in (("a", 1.4), ("b", 1.3))
        ]
        page = check(assessment_page(two, [portrait("one"), portrait("two")], "poem", ORIGIN))
        lead = page.texts["p"][1]
        assert lead.endswith("Without a network, 7-gram (two) needs fewer: 1.7050 bits per byte.")
        assert page.texts["h3"][0] == "Bits per character"

    @pytest.mark.parametrize(
        ("stretches", "said"), [(1, "one stretch"), (7, "means of 7 stretches")]
    )
    def test_positions_are_said_to_be_of_what_they_are(self, stretches: int, said: str) -> None:
        one = assessment(by_position=PositionScores(np.array([3.0, 2.0]), stretches))
        page = check(assessment_page([one], [portrait()], "poem", ORIGIN))
        assert page.texts["figcaption"][1].endswith(f"since the zero state; {said} of text.")

    @pytest.mark.parametrize("length", [1, 2, 10, 1000])
    def test_the_first_positions_are_drawn_each(
        self, length: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The loss is steep there; all later positions are drawn in groups."""
        drawn: list[Line] = []

        def chart(name: str, title: str, lines: list[Line], **_: object) -> str:
            drawn.extend(lines if name == "positions-character" else ())
            return ""

        monkeypatch.setattr("charrnn.views.report.line_chart", chart)
        nats_T = 5 - np.log(np.arange(1, length + 1))
        one = assessment(by_position=PositionScores(nats_T, 7))
        assessment_page([one], [portrait()], "poem", ORIGIN)
        (line,) = drawn
        assert list(line.x[:5]) == [1, 2, 3, 4, 5][:length]
        assert list(line.y[:5]) == pytest.approx(nats_T[:5])
        assert list(line.x) == sorted(set(line.x))
        assert line.x[-1] > 0.9 * length
        assert len(line.x) <= 60
        # A group's mean is near the value at its middle.
        assert line.y == pytest.approx([nats_T[int(x) - 1] for x in line.x], abs=0.05)

    def test_baselines_are_grey_and_a_model_keeps_its_style(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chart = mock.Mock(return_value="")
        monkeypatch.setattr("charrnn.views.report.dot_chart", chart)
        faster = Scores(nats=1400.0, characters=1000, unknown=1, bytes=1100, seconds=2.0)
        beside = (Baseline("xz", 2.0, "alone"),)
        two = [
            assessment(baselines=beside),
            assessment("runs/two", dynamic=faster, baselines=beside),
        ]
        assessment_page(two, [portrait("one"), portrait("two")], "poem", ORIGIN)
        _, _, names, (dots,) = chart.call_args.args
        assert list(names) == ["one", "two", "two, dynamic", "xz"]
        assert list(dots.style) == [0, 1, 1, 5]

    def test_the_log_of_one_run_is_drawn_once(self) -> None:
        text = assessment_page(
            [assessment(), assessment()], [portrait("one"), portrait("two")], "poem", ORIGIN
        )
        (curves,) = re.findall(r'<section id="learning".*?</section>', text, re.DOTALL)
        assert "one at 2.9000 (validation)" in curves
        assert ">two<" not in curves

    def test_what_a_model_was_trained_on_is_below_its_scores(self) -> None:
        facts = ("was trained on 3 of these 4 characters", "does not know <1>")
        text = assessment_page([assessment(facts=facts)], [portrait("one")], "poem", ORIGIN)
        assert "one: the model was trained on 3 of these 4 characters" in check(text).texts["li"]
        assert "one: the model does not know <1>" in check(text).texts["li"]

    @pytest.mark.parametrize(("of_bytes", "unit"), [(False, "character"), (True, "byte")])
    def test_the_lead_names_the_best_mean_over_seeds(self, of_bytes: bool, unit: str) -> None:
        four = [
            assessment(
                name,
                scores=Scores(nats=nats, characters=1000, unknown=1, bytes=1100, seconds=2.0),
                run=OfRun(int(name[1]), name[0], 5, False),
                of_bytes=of_bytes,
            )
            for name, nats in (("a1", 1400.0), ("a2", 1900.0), ("b1", 1500.0), ("b2", 1600.0))
        ]
        page = check(
            assessment_page(
                four, [portrait(name) for name in ("a1", "a2", "b1", "b2")], "poem", ORIGIN
            )
        )
        lead = page.texts["p"][1]
        assert lead.startswith("a1 needs the fewest bits: ")
        bits = 1.55 / math.log(2)
        said = f"In the mean over seeds b* is ahead: {bits:.4f} bits per {unit}."
        assert lead.endswith(said)

    def test_what_holds_for_several_models_is_said_once(self) -> None:
        two = [
            assessment(facts=("does not know <1>",)),
            assessment("runs/b", facts=("does not know <1>",)),
        ]
        page = check(assessment_page(two, [portrait("one"), portrait("two")], "poem", ORIGIN))
        assert page.texts["li"][0] == "one, two: each model does not know <1>"
        assert sum("does not know" in line for line in page.texts["li"]) == 1


@pytest.mark.parametrize(
    ("of_bytes", "said"),
    [
        ((False, False), "600 characters from"),
        ((True, True), "600 bytes from"),
        ((True, False), "600 bytes or characters from"),
    ],
)
def test_samples_are_as_long_as_their_models_count(of_bytes: tuple[bool, ...], said: str) -> None:
    runs = [BYTES_RUN if one else RUN for one in of_bytes]
    drawn = [portrait(str(n), run=run, log=()) for n, run in enumerate(runs)]
    models = [assessment(of_bytes=one) for one in of_bytes]
    page = check(assessment_page(models, drawn, "poem", ORIGIN))
    assert any(f"What each model writes by itself, {said} an" in text for text in page.texts["p"])


class TestInspectionPage:
    def page_of(self, history: Clipping) -> Page:
        """Return the page of a model whose gradients were clipped like this."""
        return check(inspection_page(portrait(inspection=inspection(clipping=history)), "", ORIGIN))

    def test_scaling_is_not_called_clipping(self) -> None:
        history = Clipping(None, None, 0.5, 20, 3.0, 0.75, (Period(1, 20, 1, 2, 3, 0.75),))
        page = self.page_of(history)
        assert "Share of updates scaled down" in page.texts["h3"]
        assert "scaled down" in page.texts["th"]
        assert "clipped" not in "".join(page.texts["th"])

    def test_no_gradient_has_no_chart_of_its_norms(self) -> None:
        """A model that is sure of its text, say one repeated character, has no gradient."""
        history = Clipping(1.0, None, None, 20, 0.0, 0.0, (Period(1, 20, 0, 0, 0, 0.0),))
        page = self.page_of(history)
        assert "Gradient norms" not in page.texts["h3"]
        said = "There is nothing to draw: no number is above zero. Gradient norms during training"
        assert any(text.startswith(said) for text in page.texts["p"])

    def test_where_nothing_was_clipped_its_share_has_no_chart(self) -> None:
        """The lines of several models would coincide."""
        history = Clipping(1.0, None, None, 20, 0.3, 0.0, (Period(1, 20, 0.1, 0.2, 0.3, 0.0),))
        page = self.page_of(history)
        assert "Gradient norms" in page.texts["h3"]
        assert "Share of updates clipped" not in page.texts["h3"]

    def test_all_measurements_are_there(self) -> None:
        text = inspection_page(portrait(), "poem", ORIGIN)
        page = check(text)
        assert page.texts["h2"][:6] == [
            "Gradient flow", "Memory", "Pace", "Gates", "Units", "Clipping",
        ]  # fmt: skip
        assert (
            "The gradient stays under 1 % in the median after 7 characters along its state h and "
            "stays under 1 % in the median after 7 characters along its memory c."
            in page.texts["p"][1]
        )
        assert "Unit 1.3c along the text" in page.texts["h3"]
        assert "The beginning of the inspected text, read from the zero" in page.texts["p"][-1]
        assert "a<b␍↵\n\tc" in page.texts["pre"]

    @pytest.mark.parametrize(
        ("median", "mean", "said"),
        [
            (1234, 1234, "stays under 1 % in the median after 1,234 characters"),
            (
                1234,
                1459,
                "stays under 1 % in the median after 1,234 characters (the mean after 1,459)",
            ),
            (1, None, "stays under 1 % in the median after 1 character (the mean does not)"),
            (
                None,
                459,
                "does not stay under 1 % in the median within 1,500 characters (the mean "
                "after 459)",
            ),
            (None, None, "does not stay under 1 % in the median within 1,500 characters"),
        ],
    )
    def test_of_several_layers_the_last_is_told_at_the_top(
        self, median: int | None, mean: int | None, said: str
    ) -> None:
        relative = (1.0,) * 1501
        reaches = tuple(
            Reach(layer, "h", 1.0, relative, relative, 70, by_mean, 60, by_median)
            for layer, by_median, by_mean in ((1, 7, 8), (2, median, mean))
        )
        seen = inspection(
            gradient_flow=(flow(reaches=reaches, spectral_radii=((1.0,), (1.1,))),), memory=None,
            pace=(), gates=(), units=(), activation=None, clipping=None, cuts=(),
        )  # fmt: skip
        run = replace(RUN, shape=replace(SHAPE, cell="gru", layers=2))
        drawn = portrait(run=run, inspection=seen, log=())
        page = check(inspection_page(drawn, "poem", ORIGIN))
        assert page.texts["p"][1] == (
            f"GRU 2 x 3, inspected on 1,234 characters. The gradient {said} "
            "along its state h of layer 2."
        )

    def test_signs_and_shares_are_not_swapped(self) -> None:
        unit = Activation(Unit(1, 3, "c"), "abc", (1.0, -1.0, 0.0))
        text = inspection_page(portrait(inspection=inspection(activation=unit)), "poem", ORIGIN)
        assert 'class="up-5">a<' in text
        assert 'class="down-5">b<' in text
        abouts = " ".join(check(text).texts["desc"])
        assert "means 50.0 % closed, 43.3 % open." in abouts
        assert "updates clipped against step. From 100 % at 5.5 to 0 % at 15.5." in abouts

    def test_the_step_is_written_out(self) -> None:
        quantities = (
            Quantity(1, "h'", "tanh(a)", (0.5, -0.25), (0.5, -0.25)),
            Quantity(1, "y", "V h' + v", (1.5, 2.5), None),
        )
        seen = inspection(step=Step("\n", quantities, ("e", "\n"), 256, 1e-7, 2e-6, 1.25, 1.25))
        text = inspection_page(portrait(inspection=seen), "poem", ORIGIN)
        page = check(text)
        assert page.texts["h2"][0] == "The step"
        assert any("it reads '\\n'" in text and "2.0e-06" in text for text in page.texts["p"])
        rows = [
            [unescape(cell) for cell in re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row)]
            for row in re.findall("<tr>.*?</tr>", text)
        ]
        assert rows[1][1:5] == ["h'", "= tanh(a)", "+0.50000", "-0.25000"]
        assert rows[2][1:5] == ["h'", "by the model", "+0.50000", "-0.25000"]
        assert rows[3][2:6] == ["next character", "'e'", "'\\n'", ""]

    def test_what_tells_rows_apart_is_their_head(self) -> None:
        full = Window(64, None, 0.0, 1.0, 1e-6, 10_000)
        quantities = (Quantity(1, "h'", "tanh(a)", (0.5,), None),)
        seen = inspection(
            step=Step("a", quantities, ("a",), 256, 1e-7, 2e-6, 1.25, 1.25),
            truncation=(Truncation("trained", 8, 512, full, 30.0, (full,)),),
        )
        text = inspection_page(portrait(inspection=seen), "poem", ORIGIN)
        tables = re.findall("<tbody>.*?</tbody>", text, re.DOTALL)
        heads = [
            re.findall('<th scope="row".*?>(.*?)</th>', table.split("</tr>")[0]) for table in tables
        ]
        assert heads == [
            ["1", "h&#x27;", "= tanh(a)"], ["trained", "1.00-1.10", "h 1"], ["0"], ["c 1"],
            ["forget 1"], ["inside quotes", "c", "1.3c"], ["1 - 10"], ["trained", "50 %"],
            ["trained", "64 (all)", "all"],
        ]  # fmt: skip

    def test_what_was_not_measured_has_no_section(self) -> None:
        full = Window(64, None, 0.0, 1.0, 1e-6, 10_000)
        windows = tuple(Window(n, None, 90.0 / n, 1 - 1 / n, 1e-6, 100 * n) for n in (1, 2, 4))
        truncation = Truncation("trained", 8, 512, full, 30.0, windows)
        seen = inspection(
            gradient_flow=(), memory=None, pace=(), gates=(), units=(), activation=None,
            clipping=None, cuts=(), truncation=(truncation,),
        )  # fmt: skip
        page = check(inspection_page(portrait(inspection=seen, log=()), "poem", ORIGIN))
        assert page.texts["h2"][0] == "Truncation"
        assert page.tags["svg"] == 1
        assert "trained: 90 at 1 to 22.5 at 4." in page.texts["desc"][0]
        lost = replace(truncation, windows=(replace(windows[0], angle=math.nan),))
        drawn = portrait(inspection=replace(seen, truncation=(lost,)))
        page = check(inspection_page(drawn, "poem", ORIGIN))
        said = "There is nothing to draw: there is no gradient. The gradient of 512 predictions"
        assert any(text.startswith(said) for text in page.texts["p"])

    def test_a_plain_rnn_has_no_gates_and_a_lost_log_no_clipping(self) -> None:
        seen = inspection(gates=(), clipping=None, units=(), activation=None, cuts=())
        page = check(inspection_page(portrait(inspection=seen, log=()), "poem", ORIGIN))
        assert page.texts["h2"] == [
            "Gradient flow", "Memory", "Pace", "Training", "Samples", "Surprise",
            "How this was made",
        ]  # fmt: skip

    def test_numbers_that_are_none_are_not_drawn(self) -> None:
        nan = tuple([math.nan] * 9)
        zero = tuple([1.0] + [0.0] * 8)
        reaches = (
            Reach(1, "h", 0.0, nan, nan, None, None, None, None),
            Reach(1, "c", 1.0, zero, zero, 1, 1, 1, 1),
        )
        memory = Memory(1.5, (0.1, -0.2, -0.1), (0.0,) * 3, 30, 0.01, None, (None, None), 16)
        seen = inspection(gradient_flow=(flow(reaches=reaches), flow("initial")), memory=memory)
        text = inspection_page(portrait(inspection=seen), "poem", ORIGIN)
        assert ">Trained</h3>" not in text
        assert ">Initial</h3>" in text
        assert "nothing to draw" in text
        check(text)

    def test_a_gradient_that_becomes_nothing_is_drawn_to_the_farthest_lag(self) -> None:
        gone = tuple([1.0, 0.5, 0.1] + [0.0] * 998)
        reach = Reach(1, "h", 1.0, gone, gone, 2, 3, 2, 3)
        seen = inspection(gradient_flow=(flow(reaches=(reach,)),))
        text = inspection_page(portrait(inspection=seen), "poem", ORIGIN)
        assert "h 1: 0.5 at 1 to 0 at 1,000." in " ".join(check(text).texts["desc"])

    def test_scaled_weights_have_a_figure_of_their_own(self) -> None:
        flows = (flow(), flow("initial"), flow(scaled_to=1.5), flow("initial", scaled_to=1.5))
        seen = inspection(gradient_flow=flows)
        page = check(inspection_page(portrait(inspection=seen), "poem", ORIGIN))
        assert "Trained, radius 1.5" in page.texts["h3"]


def test_what_a_text_holds_cannot_become_part_of_the_page() -> None:
    (label,) = labels([Path(HOSTILE)])
    hostile = portrait(
        label,
        sample=HOSTILE,
        excerpt=tuple((character, 1.0) for character in HOSTILE),
        inspection=inspection(
            activation=Activation(Unit(1, 1, "h"), HOSTILE, (0.5,) * len(HOSTILE))
        ),
    )
    plan = replace(comparison().plan, texts=(f"/x/{HOSTILE}",))
    made = replace(comparison(), plan=plan)
    evil = Origin(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    baseline = Baseline("<b>&", 2.0, HOSTILE)
    for text in (
        comparison_page(made, [hostile, portrait()], [(make_result(), log())], evil),
        assessment_page([assessment(HOSTILE, baselines=(baseline,))], [hostile], HOSTILE, evil),
        inspection_page(hostile, HOSTILE, evil),
    ):
        page = check(text)
        text.encode("utf-8")
        assert "<script>alert(1)</script>&amp;" in "".join(page.texts["pre"])


def test_equal_records_give_equal_bytes() -> None:
    assert compare_page(comparison()) == compare_page(comparison())


def test_no_model_has_the_grey_of_what_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model has one style in all figures."""
    scores, positions, curves = (mock.Mock(return_value="") for _ in range(3))
    monkeypatch.setattr("charrnn.views.report.dot_chart", scores)
    monkeypatch.setattr("charrnn.views.report.line_chart", positions)
    monkeypatch.setattr("charrnn.views.curves.line_chart", curves)
    drawn = [portrait(str(n), inspection=None, log=log(3 + n)) for n in range(7)]
    by_position = PositionScores(np.linspace(3, 2, 10), 7)
    one = assessment(baselines=(Baseline("xz", 2.0, ""),), by_position=by_position)
    assessment_page([one for _ in drawn], drawn, "poem", ORIGIN)
    (dots,) = scores.call_args.args[3]
    assert list(dots.style) == [0, 1, 2, 3, 4, 6, 7, 5]
    for chart, times in ((positions, 1), (curves, 2)):
        found = [line.style for line in chart.call_args.args[2]]
        assert found == [n for n in (0, 1, 2, 3, 4, 6, 7) for _ in range(times)]


@pytest.mark.parametrize(
    ("names", "styles", "shared"),
    [
        (("a1", "b1", "a2", "c1", "b2", "a3"), [0, 1, 6, 2, 7, 12], True),
        (("a1", "b1", "c1"), [0, 1, 2], False),
        (("a1", "b1", "a1", "a2"), [0, 1, 0, 6], True),
        (("a1", "a2", "b1", "c1", "d1", "e1", "f1"), [0, 1, 2, 3, 4, 6, 7], False),
        (tuple(f"a{seed}" for seed in range(7)), [0, 1, 2, 3, 4, 6, 7], False),
    ],
)
def test_seeds_share_a_colour_where_each_has_a_look(
    names: Sequence[str], styles: Sequence[int], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The letter is the settings, the digit the seed: up to 5 colours, each with 6 dashes."""
    scores, positions, curves = (mock.Mock(return_value="") for _ in range(3))
    monkeypatch.setattr("charrnn.views.report.dot_chart", scores)
    monkeypatch.setattr("charrnn.views.report.line_chart", positions)
    monkeypatch.setattr("charrnn.views.curves.line_chart", curves)
    by_position = PositionScores(np.linspace(3, 2, 10), 7)
    found = [
        assessment(name, by_position=by_position, run=OfRun(int(name[1]), name[0], 5, False))
        for name in names
    ]
    drawn = [portrait(name, inspection=None, log=log(3 + n)) for n, name in enumerate(names)]
    text = assessment_page(found, drawn, "poem", ORIGIN)
    (dots,) = scores.call_args.args[3]
    assert list(dots.style) == styles
    assert [line.style for line in positions.call_args.args[2]] == styles
    assert [line.style for line in curves.call_args.args[2] if not line.faint] == styles
    assert ("seeds of the same settings share a colour" in text) == shared


def test_the_origin_names_program_and_machine() -> None:
    made = origin(["charrnn", "compare", "a b"], torch.device("cpu"))
    assert made.command == "charrnn compare 'a b'"
    assert made.machine == f"cpu: {machine()}, matplotlib {matplotlib.__version__}"
    assert made.made.endswith(" UTC")


def test_the_origin_of_what_was_trained_by_another_processor() -> None:
    here = worker(processor(), torch.get_num_threads())
    words, cpu = ["charrnn"], torch.device("cpu")
    made = [origin(words, cpu, by).machine for by in ((), (here, here), (here, "X", "X"), ("X",))]
    plain = f"{machine()}, matplotlib {matplotlib.__version__}"
    assert made == [
        f"cpu: {plain}",
        f"cpu: {plain}",
        f"cpu: {here} and X; this page was made on {plain}",
        f"cpu: X; this page was made on {plain}",
    ]


def test_the_origin_of_what_was_trained_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = origin(["charrnn"], torch.device("cuda"))
    here = f"{machine()}, matplotlib {matplotlib.__version__}"
    assert made.machine == f"cuda of another machine; this page was made on {here}"
