"""The pages of --report: their structure, read without a browser, and how a browser shows them."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import signal
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from charrnn.activity import Activation, GateUse, Pace, Unit, UnitFound, activation
from charrnn.assessment import After, Assessment
from charrnn.baselines import Baseline
from charrnn.checkpoint import load, save
from charrnn.comparing import RunScored, compare
from charrnn.comparison import CellResult, Comparison, Plan, RunFailure
from charrnn.config import InspectConfig, ModelConfig, TrainConfig
from charrnn.corpus import scan
from charrnn.equations import Quantity, Step
from charrnn.errors import NonFiniteError, UsageError
from charrnn.evaluation import PositionScores, Prices, Scores, prices
from charrnn.figures import (
    Dots,
    Line,
    Rule,
    dot_chart,
    line_chart,
    number,
    saturation_chart,
)
from charrnn.flow import GradientFlow, Reach, gradient_flow, initial_model
from charrnn.gradients import Cut, Truncation, Window
from charrnn.inside import inside_sections
from charrnn.inspection import Inspection
from charrnn.machine import machine, processor, worker
from charrnn.memory import Memory
from charrnn.metrics import read_metrics
from charrnn.model import CharModel
from charrnn.norms import Clipping, Period
from charrnn.page import STYLE, Origin, origin
from charrnn.portrait import (
    SAMPLE,
    Portrait,
    labels,
    portray,
    portray_comparison,
    portray_inspected,
    portray_subjects,
    read_history,
)
from charrnn.reading import recorded_part
from charrnn.report import assessment_page, comparison_page, inspection_page
from charrnn.sampling import Piece
from charrnn.stretch import read_stretch
from charrnn.surprise import surprise
from charrnn.trained import load_model
from charrnn.vocabulary import Vocabulary
from tests.conftest import Cli, make_part, make_prose, run_cli, run_unread
from tests.small import make_model, make_result, make_stretch

ORIGIN = Origin("charrnn compare a --report b.html", "a machine", "2026-01-02 03:04 UTC", "9.9")
SHAPE = ModelConfig(cell="lstm", vocabulary=9, layers=1, hidden=3, embedding=2)
#: What would break a page if it were put there as it is.
HOSTILE = "<script>alert(1)</script>&amp;\x1b[2J\x00 \"'><img src=http://x.example/y>\ud800\n]]>"


# Reading a page --------------------------------------------------------------------------


class Page(HTMLParser):
    """What is in a page, by kind; fails on tags that are not closed in order."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert self.open == []
        # As browsers do.
        self.texts["pre"] = [text.removeprefix("\n") for text in self.texts.get("pre", [])]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def check(text: str) -> Page:
    """Return a page in which all holds that holds for every one."""
    page = Page(text)
    ids = page.values("id")
    assert len(ids) == len(set(ids)), "an id stands for one element"
    figures = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(figures) == page.tags["svg"]
    for figure in figures:
        # The parts of HTML that a figure uses are XML too.
        tree = ET.fromstring(figure)
        assert tree.get("role") == "img"
        title, about = (tree.find(name) for name in ("title", "desc"))
        assert title is not None
        assert about is not None
        assert tree.get("aria-labelledby") == f"{title.get('id')} {about.get('id')}"
        assert title.text
        assert about.text
        assert tree.findall(".//text"), "text is text, not paths"
        assert "nan" not in re.sub(r">[^<]*<", "", figure).lower()
        assert not re.search("#[0-9a-fA-F]{6}", re.sub(r'(href="|url\()#[^")]*', "", figure))
    # Nothing leads, or is loaded from, outside.
    assert not set(page.values("src") + page.values("srcset") + page.values("action"))
    links = page.values("href") + page.values("xlink:href")
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert all(link.startswith("#") for link in links)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
    assert "@import" not in text
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    for tag in ("script", "iframe", "object", "embed", "img", "link", "base", "form"):
        assert page.tags[tag] == 0
    assert not re.search(r"url\((?!#)", text)
    for reference in page.values("aria-labelledby"):
        assert set(reference.split()) <= set(ids)
    # A name is for what has a role, a stop of the tab key for what scrolls; what is read out
    # as a place to go to is a section.
    assert set(page.values("role")) == {"img", "group"}
    for tag in re.findall(r"<pre[^>]*>", text):
        assert re.fullmatch(r'<pre( class="coloured")? role="group" dir="auto" aria-label=.*', tag)
    stops = re.findall(r"<[^>]*tabindex[^>]*>", text)
    assert len(stops) == page.tags["table"]
    assert all(stop.startswith('<div class="scroll"') for stop in stops)
    assert page.tags["h1"] == 1
    assert all(page.texts["th"])
    assert not re.search(r"<td>[-+]?[\d.,]+( %)?<", text), "numbers stand below each other"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    return page


# Records of no real model ----------------------------------------------------------------


def flow(weights: Any = "trained", **changes: Any) -> GradientFlow:
    relative = tuple(0.5**k for k in range(9))
    reaches = tuple(Reach(1, state, 1.0, relative, relative, 2, 7, 2, 7) for state in "hc")
    made = GradientFlow(weights, None, ((1.0, 1.1),), (None,), 5, reaches)
    return replace(made, **changes)


def inspection(**changes: Any) -> Inspection:
    excess = tuple(2.0**-k for k in range(12))
    made = Inspection(
        characters=1234,
        step=None,
        gradient_flow=(flow(), flow("initial")),
        memory=Memory(1.5, excess, (0.01,) * 12, 30, 0.01, 7, 16),
        pace=(Pace(1, "c", (0.75, math.nan), 0.75, "forget", 0.2, 0.125),),
        gates=(GateUse(1, "forget", (0.9, 0.4, 0.0), (0.0, 0.5, 1.0), 100),),
        units=(
            UnitFound("inside quotes", Unit(1, 3, "c"), 0.7, 0.6, 0.25),
            UnitFound("digit", Unit(1, 1, "h"), -0.4, -0.3, 0.05),
        ),
        activation=Activation(Unit(1, 3, "c"), "a<b\r\n\tc", (0.5, -1.0, 0.0, 0.1, 0.9, -0.2, 1)),
        clipping=Clipping(
            1.0,
            None,
            None,
            20,
            3.0,
            0.5,
            (Period(1, 10, 1, 2, 3, 1.0), Period(11, 20, 0.5, 0.6, 1, 0.0)),
        ),
        cuts=(Cut("trained", 0.5, 0.0, 0.1, 12.5), Cut("initial", 0.5, 0.0, 0.1, math.nan)),
        truncation=(),
    )
    return replace(made, **changes)


def log(rows: int = 4, validations: int = 2) -> tuple[dict[str, float], ...]:
    updates = [
        {
            "step": n,
            "characters": 100.0 * n,
            "seconds": 0.5 * n,
            "train_nats_per_char": 3 - 0.1 * n,
            "gradient_norm": 1.0,
            "clipped_share": 0.5,
        }
        for n in range(1, rows + 1)
    ]
    held_out = [
        {
            "step": n,
            "characters": 100.0 * n,
            "seconds": 0.5 * n,
            "valid_nats_per_char": 3.1 - 0.1 * n,
        }
        for n in range(1, validations + 1)
    ]
    return (*updates, *held_out)


def portrait(label: str = "LSTM", **changes: Any) -> Portrait:
    made = Portrait(
        label=label,
        shape=SHAPE,
        log=log(),
        sample="and the\nbird",
        excerpt=(("a", 0.0), ("b", 3.0), ("\n", 9.0), ("c", 0.1)),
        inspection=inspection(),
    )
    return replace(made, **changes)


def comparison(
    seeds: int = 2, cells: tuple[Any, ...] = ("lstm", "gru"), apart: float = 0.1
) -> Comparison:
    plan = Plan(texts=("/texts/poem.txt",), cells=cells, seeds=seeds, steps=20)
    results = [
        make_result(cell, seed, 2.0 + apart * cells.index(cell) + 0.01 * seed)
        for seed in range(1, seeds + 1)
        for cell in cells
    ]
    return Comparison.of(plan, results)


def compare_page(made: Comparison, portraits: list[Portrait] | None = None) -> str:
    portraits = portraits or [portrait(cell.cell.upper()) for cell in made.cells]
    logs = [(run, log()) for cell in made.cells for run in cell.runs]
    return comparison_page(made, portraits, logs, ORIGIN)


def assessment(name: str = "runs/one", **changes: Any) -> Assessment:
    scores = Scores(nats=1500.0, characters=1000, unknown=1, bytes=1100, seconds=2.0)
    made = Assessment(checkpoint=name, shape=SHAPE, parameters=1234, scores=scores)
    return replace(made, **changes)


# Pages -----------------------------------------------------------------------------------


class TestComparisonPage:
    def test_it_holds_what_the_terminal_says_and_more(self) -> None:
        text = compare_page(comparison())
        page = check(text)
        assert page.texts["h1"] == ["LSTM and GRU on poem.txt"]
        assert page.texts["h2"] == [
            "Result", "Learning", "Gradient flow", "Memory", "Pace", "Gates", "Units", "Clipping",
            "A cut gradient", "Samples", "Surprise", "How this was made",
        ]  # fmt: skip
        # One of the result, two of curves, of flow and of clipping, memory, two gates, units.
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
        assert "lstm is 0.1000 nats ahead of gru: supported" in said
        assert ORIGIN.command in page.texts["code"]
        assert ORIGIN.machine in said
        assert ORIGIN.made in said
        assert f"--length {SAMPLE.length} " in said
        assert page.texts["pre"].count("and the\nbird") == 2

    def test_runs_worse_than_guessing_are_told_at_the_top(self) -> None:
        made = comparison()
        assert "guessing" not in check(compare_page(made)).texts["p"][1]
        # Only the better of both cells is below this.
        runs = [replace(run, uniform_nats=2.05) for cell in made.cells for run in cell.runs]
        lead = check(compare_page(Comparison.of(made.plan, runs))).texts["p"][1]
        assert lead.endswith(" Worse than guessing: 2 runs.")

    @pytest.mark.parametrize(
        ("seeds", "apart", "said"),
        [
            (1, 0.1, "0.1000 nats ahead of GRU, from one seed each."),
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
        [((), "Python's own sources"), (("a/b", "a/c"), "several texts"), (("a/b",), "b")],
    )
    def test_the_title_names_what_was_read(self, texts: tuple[str, ...], said: str) -> None:
        made = comparison()
        page = check(self.bare(replace(made, plan=replace(made.plan, texts=texts))))
        assert page.texts["h1"] == [f"LSTM and GRU on {said}"]
        assert (", ".join(Path(text).name for text in texts) or said) in page.texts["dd"]

    def bare(self, made: Comparison) -> str:
        """Return a page without figures of what was learnt and looked into."""
        drawn = [portrait(cell.cell.upper(), inspection=None) for cell in made.cells]
        return comparison_page(made, drawn, [(run, ()) for run in made.cells[0].runs], ORIGIN)

    @pytest.mark.parametrize("seeds", [1, 2])
    def test_every_seed_is_drawn_in_its_cells_style(
        self, seeds: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        curves, losses = mock.Mock(return_value=""), mock.Mock(return_value="")
        monkeypatch.setattr("charrnn.curves.line_chart", curves)
        monkeypatch.setattr("charrnn.report.dot_chart", losses)
        text = compare_page(comparison(seeds), [portrait(inspection=None)] * 2)
        more = [""] * (seeds - 1)
        main = [line for line in curves.call_args.args[2] if not line.faint]
        assert [line.label for line in main] == ["LSTM", *more, "GRU", *more]
        assert [line.style for line in main] == [0] * seeds + [1] * seeds
        one_style = "Seeds of one cell share a style; the first is named. Nats per character"
        assert (one_style in text) == (seeds > 1)
        _, _, names, (dots,) = losses.call_args.args
        assert (names, list(dots.style)) == (["LSTM", "GRU"], [0, 1])
        assert dots.values == pytest.approx([2.015, 2.115] if seeds > 1 else [2.01, 2.11])
        if seeds == 1:
            assert not dots.around
        else:
            assert dots.around == [
                pytest.approx([2.01, 2.02]),
                pytest.approx([2.11, 2.12]),
            ]

    def test_one_seed_and_one_cell_are_enough(self) -> None:
        page = check(compare_page(comparison(seeds=1)))
        assert "the spread that chance makes is not known" in page.texts["figcaption"][0]
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
        """In the page of an inspection, too."""
        drawn = portrait("LSTM", of_bytes=True)
        for text in (
            compare_page(comparison(), [drawn, portrait("GRU", of_bytes=True)]),
            inspection_page(drawn, "poem", ORIGIN),
        ):
            page = check(text)
            assert "Learning per byte" in page.texts["h2"]
            assert "Against bytes" in page.texts["h3"]
            assert "in figures and tables a character is one." in page.texts["p"][1]
        assert "bytes" not in compare_page(comparison())

    def test_a_cell_is_named_though_its_first_log_is_gone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, curves = comparison(3), mock.Mock(return_value="")
        monkeypatch.setattr("charrnn.curves.line_chart", curves)
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
        text = assessment_page(
            [of_bytes, of_text], [portrait("bytes"), portrait("text")], "poem", ORIGIN
        )
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
            "runs/b: a character is a byte; compare with the others by bits/byte"
        )
        alone = check(assessment_page([of_bytes], [portrait("bytes")], "poem", ORIGIN))
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
        drawn = [portrait("bytes"), portrait("text", log=log(5))]
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
        assert page.texts["figcaption"][1].endswith(f"since a state of zero; {said} of text.")

    @pytest.mark.parametrize("length", [1, 2, 10, 1000])
    def test_the_first_positions_are_drawn_each(
        self, length: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the loss is steep; the others in groups, all of them."""
        drawn: list[Line] = []

        def chart(name: str, title: str, lines: list[Line], **_: object) -> str:
            drawn.extend(lines if name == "positions-character" else ())
            return ""

        monkeypatch.setattr("charrnn.report.line_chart", chart)
        nats_T = 5 - np.log(np.arange(1, length + 1))
        one = assessment(by_position=PositionScores(nats_T, 7))
        assessment_page([one], [portrait()], "poem", ORIGIN)
        (line,) = drawn
        assert list(line.x[:5]) == [1, 2, 3, 4, 5][:length]
        assert list(line.y[:5]) == pytest.approx(nats_T[:5])
        assert list(line.x) == sorted(set(line.x))
        assert line.x[-1] > 0.9 * length
        assert len(line.x) <= 60
        # A group's mean is near what is measured at its middle.
        assert line.y == pytest.approx([nats_T[int(x) - 1] for x in line.x], abs=0.05)

    def test_baselines_are_grey_and_a_model_keeps_its_style(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chart = mock.Mock(return_value="")
        monkeypatch.setattr("charrnn.report.dot_chart", chart)
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


@pytest.mark.parametrize("scheme", [0, 1])
def test_coloured_text_can_be_read(scheme: int) -> None:
    """On each colour that a text has behind it, in light and in dark."""

    def value(name: str) -> str:
        return str(re.findall(rf"--{name}: ([^;]+);", STYLE)[scheme])

    raised = [*bytes.fromhex(value("raised").removeprefix("#"))]
    shades = re.findall(r"background: rgb\(var\(--(\w+)\) / ([.\d]+)\)", STYLE)
    assert len(shades) == 2 + 2 * 5
    for name, share in shades:
        mixed = [
            round(float(share) * int(colour) + (1 - float(share)) * paper)
            for colour, paper in zip(value(name).split(), raised, strict=True)
        ]
        assert contrast(value("ink"), mixed) >= 4.5, (name, share)
    assert contrast(value("muted"), raised) >= 4.5
    assert contrast(value("loud"), [*bytes.fromhex(value("on-loud")[1:])]) >= 4.5


@pytest.mark.parametrize(
    ("of_bytes", "said"),
    [
        ((False, False), "600 characters from"),
        ((True, True), "600 bytes from"),
        ((True, False), "600 bytes or characters from"),
    ],
)
def test_samples_are_as_long_as_their_models_count(of_bytes: tuple[bool, ...], said: str) -> None:
    drawn = [portrait(str(n), of_bytes=one, log=()) for n, one in enumerate(of_bytes)]
    models = [assessment(of_bytes=one) for one in of_bytes]
    page = check(assessment_page(models, drawn, "poem", ORIGIN))
    assert any(f"What each model writes by itself, {said} an" in text for text in page.texts["p"])


class TestInspectionPage:
    def test_scaling_is_not_called_clipping(self) -> None:
        history = Clipping(None, None, 0.5, 20, 3.0, 0.75, (Period(1, 20, 1, 2, 3, 0.75),))
        page = check(inspection_page(portrait(inspection=inspection(clipping=history)), "", ORIGIN))
        assert "Share of updates scaled down" in page.texts["h3"]
        assert "scaled down" in page.texts["th"]
        assert "clipped" not in "".join(page.texts["th"])

    def test_no_gradient_has_no_chart_of_its_norms(self) -> None:
        """A model that is sure of a text, of one character repeated say, has none on it."""
        history = Clipping(1.0, None, None, 20, 0.0, 0.0, (Period(1, 20, 0, 0, 0, 0.0),))
        page = check(inspection_page(portrait(inspection=inspection(clipping=history)), "", ORIGIN))
        assert "Gradient norms" not in page.texts["h3"]
        said = "There is nothing to draw: no number is above zero. Gradient norms during training"
        assert any(text.startswith(said) for text in page.texts["p"])

    def test_where_nothing_was_clipped_its_share_has_no_chart(self) -> None:
        """Of several models all lines would be one."""
        history = Clipping(1.0, None, None, 20, 0.3, 0.0, (Period(1, 20, 0.1, 0.2, 0.3, 0.0),))
        page = check(inspection_page(portrait(inspection=inspection(clipping=history)), "", ORIGIN))
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
        assert "The beginning of what was looked at, read from a state" in page.texts["p"][-1]
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
        shape = replace(SHAPE, cell="gru", layers=2)
        drawn = portrait(shape=shape, inspection=seen, log=())
        page = check(inspection_page(drawn, "poem", ORIGIN))
        assert page.texts["p"][1] == (
            f"GRU 2 x 3, looked into on 1,234 characters. The gradient {said} "
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
        page = check(inspection_page(portrait(inspection=seen), "poem", ORIGIN))
        assert page.texts["h2"][0] == "The step"
        assert any("it reads '\\n'" in text and "2.0e-06" in text for text in page.texts["p"])
        assert page.texts["td"][:4] == ["h'", "= tanh(a)", "+0.50000", "-0.25000"]
        assert page.texts["td"][6:10] == ["h'", "by the model", "+0.50000", "-0.25000"]
        assert page.texts["td"][13:17] == ["next character", "'e'", "'\\n'", ""]

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
            "Gradient flow", "Memory", "Pace", "Samples", "Surprise", "How this was made",
        ]  # fmt: skip

    def test_numbers_that_are_none_are_not_drawn(self) -> None:
        nan = tuple([math.nan] * 9)
        zero = tuple([1.0] + [0.0] * 8)
        reaches = (
            Reach(1, "h", 0.0, nan, nan, None, None, None, None),
            Reach(1, "c", 1.0, zero, zero, 1, 1, 1, 1),
        )
        memory = Memory(1.5, (0.1, -0.2, -0.1), (0.0,) * 3, 30, 0.01, None, 16)
        seen = inspection(gradient_flow=(flow(reaches=reaches), flow("initial")), memory=memory)
        text = inspection_page(portrait(inspection=seen), "poem", ORIGIN)
        assert ">Trained</h3>" not in text
        assert ">Initial</h3>" in text
        assert "nothing to draw" in text
        check(text)

    def test_scaled_weights_have_a_figure_of_their_own(self) -> None:
        flows = (flow(), flow("initial"), flow(scaled_to=1.5), flow("initial", scaled_to=1.5))
        seen = inspection(gradient_flow=flows)
        page = check(inspection_page(portrait(inspection=seen), "poem", ORIGIN))
        assert "Trained, radius 1.5" in page.texts["h3"]


class TestChartsOfTheInside:
    """What charts are given: what they make of it is tested below."""

    @pytest.fixture(autouse=True)
    def charts(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, mock._Call]:
        """Calls of what draws, by the chart's name; nothing is drawn."""
        found: dict[str, mock._Call] = {}

        def keep(name: str, *given: Any, **how: Any) -> str:
            found[name] = mock.call(*given, **how)
            return "drawn"

        for kind in ("line_chart", "dot_chart", "saturation_chart"):
            monkeypatch.setattr(f"charrnn.inside.{kind}", keep)
        return found

    def show(self, *seen: Inspection | None, layers: int = 1) -> str:
        shape = replace(SHAPE, layers=layers)
        drawn = [portrait(f"m{n}", inspection=one, shape=shape) for n, one in enumerate(seen)]
        return "".join(inside_sections(drawn, "Seen."))

    def test_one_layer_of_each_model_is_drawn_beside_others(
        self, charts: dict[str, mock._Call]
    ) -> None:
        """The one next to the head, without the picture of a plain RNN only; alone, all are."""

        def flows(*states: tuple[int, str]) -> Inspection:
            reaches = (
                Reach(layer, state, 1.0, (1.0, share, share / 2), (), 1, None, 1, None)
                for share, (layer, state) in zip((0.5, 0.4, 0.3, 0.2), states, strict=True)
            )
            made = flow(reaches=tuple(reaches), spectral_radii=((1.0,), (1.1,)))
            return inspection(gradient_flow=(made,))

        lstm = flows((1, "h"), (1, "c"), (2, "h"), (2, "c"))
        plain = flows((1, "h"), (1, "linear"), (2, "h"), (2, "linear"))
        roughly = "so that c and h compare only roughly."
        assert [roughly in self.show(one, layers=2) for one in (lstm, plain)] == [True, False]
        linear = "Linear (in the table): through the recurrent matrix alone"
        assert linear in self.show(lstm, None, plain, lstm, layers=2)
        assert [(line.label, line.x, line.y, line.style) for line in charts["flow-0"].args[1]] == [
            ("m0 h", [1, 2], [0.3, 0.15], 0),
            ("m0 c", [1, 2], [0.2, 0.1], 4),
            ("m2 h", [1, 2], [0.3, 0.15], 2),
            ("m3 h", [1, 2], [0.3, 0.15], 3),
            ("m3 c", [1, 2], [0.2, 0.1], 5),
        ]
        assert linear in self.show(lstm, plain, layers=2)
        assert [line.label for line in charts["flow-0"].args[1]] == ["m0 h", "m0 c", "m1 h"]
        assert " Linear" not in self.show(lstm, lstm, layers=2)
        assert " Linear: through" in self.show(plain, layers=2)
        assert [(line.label, line.y, line.style) for line in charts["flow-0"].args[1]] == [
            ("h 1", [0.5, 0.25], 0),
            ("linear 1", [0.4, 0.2], 1),
            ("h 2", [0.3, 0.15], 2),
            ("linear 2", [0.2, 0.1], 3),
        ]

    @pytest.mark.parametrize(
        ("shares", "low", "high"),
        [
            ((0.5, 0.02), 0.02, 1.0),
            ((0.5, 0.02, 9e-6), 0.02, 1.0),
            ((0.5, 0.0), 0.5, 1.0),
            ((7.0, 2e-5), 2e-5, 7.0),
            ((7.0, 1e5, math.inf), 0.9, 1e4),
            ((math.nan, 3.0), 0.9, 3.0),
        ],
    )
    def test_all_charts_of_the_gradient_have_the_scale_that_shows_it(
        self, charts: dict[str, mock._Call], shares: tuple[float, ...], low: float, high: float
    ) -> None:
        """Room to spare, but not above what is said to be drawn; what is next to none is not."""
        reach = Reach(1, "h", 1.0, (1.0, *shares), (), 1, None, 1, None)
        most = replace(reach, relative=(1.0, *[0.9 for _ in shares]))
        flows = flow(reaches=(reach,)), flow("initial", reaches=(most,))
        self.show(inspection(gradient_flow=flows))
        first, second = charts["flow-0"].kwargs, charts["flow-1"].kwargs
        assert first == second
        bottom, top = first["y_range"]
        assert low / 1.5 < bottom < low
        assert top == high == 1e4 or high < top < 1.5 * high
        assert {rule.label: rule.y for rule in first["rules"]} == {"half": 0.5, "1 %": 0.01}

    def test_what_is_shown_on_a_logarithmic_axis(self, charts: dict[str, mock._Call]) -> None:
        """Shares and lengths; correlations have the whole scale."""
        full = Window(64, None, 10.0, 1.0, 1e-6, 10_000)
        self.show(inspection(truncation=(Truncation("trained", 8, 512, full, 3.0, (full,)),)))
        found = {
            name: tuple(call.kwargs.get(axis, False) for axis in ("x_log", "y_log"))
            for name, call in charts.items()
        }
        assert {name for name, logs in found.items() if logs == (True, True)} == {
            "flow-0", "flow-1", "memory"
        }  # fmt: skip
        assert (found["norms"], found["truncation"]) == ((False, True), (True, False))
        assert charts["units"].kwargs["x_range"] == (0, 1)

    def test_one_model_has_its_table_beside_the_figure(self) -> None:
        beside = '<div class="beside">\n<figure>'
        assert self.show(inspection()).count(beside) == 2, "of memory and units"
        assert self.show(inspection(), inspection()).count(beside) == 0

    def test_no_gradient_and_nothing_to_forget_have_no_charts(
        self, charts: dict[str, mock._Call]
    ) -> None:
        memory = Memory(1.5, (0.9, 0.0, 0.0), (0.0,) * 3, 30, 0.01, 1, 16)
        for nothing in (0.0, math.nan):
            none = Reach(1, "h", 1.0, (1.0, nothing, nothing), (), 1, 1, 1, 1)
            seen = inspection(gradient_flow=(flow(reaches=(none,)),), memory=memory)
            assert self.show(seen).count("nothing to draw") == 2
        assert charts.keys() & {"flow-0", "memory"} == set()

    def test_a_band_is_one_standard_error_each_way(self, charts: dict[str, mock._Call]) -> None:
        memory = Memory(1.5, (0.9, 0.5, 0.25), (0.4, 0.2, 0.1), 30, 0.01, 2, 16)
        says = self.show(None, inspection(memory=memory))
        said = "<li>m1: 1.5000 nats with the state carried on, over the characters that have "
        assert f"{said}2 before them; 2 characters are enough" in says
        (line,) = charts["memory"].args[1]
        assert (line.label, line.x, line.y, line.style) == ("m1", [1, 2], [0.5, 0.25], 1)
        assert line.band == (pytest.approx([0.3, 0.15]), pytest.approx([0.7, 0.35]))
        assert charts["memory"].kwargs["y_floor"]
        assert "one carried on; at the bottom those that cost nothing." in says
        low, high = charts["memory"].kwargs["y_range"]
        assert 0 < low < 0.01
        assert 0.5 < high < 1
        assert charts["memory"].kwargs["rules"] == (Rule("0.01 nats", 0.01),)
        alone = self.show(inspection(memory=replace(memory, excess_nats=(0.9, 1e-6, 0.0))))
        assert "<li>Loss with the state reset" in alone
        assert 0.01 < charts["memory"].kwargs["y_range"][1] < 0.1, "the tolerance can be seen"

    def test_gates_are_those_of_their_model(self, charts: dict[str, mock._Call]) -> None:
        use = GateUse(2, "update", (0.75, 0.5), (0.25, 0.125), 100)
        says = self.show(None, inspection(gates=(use,)), inspection(gates=(use,)))
        assert "<h3>m2 update 2</h3>" in says
        assert "at more than 90 % of characters" in says
        about = "m2: update gate of layer 2"
        assert charts["gate-2-update-2"].args == (about, (0.25, 0.125), (0.75, 0.5), 2)

    def test_units_stand_in_order_of_the_best_of_any_model(
        self, charts: dict[str, mock._Call]
    ) -> None:
        def units(**found: float) -> Inspection:
            of_unit = partial(UnitFound, unit=Unit(1, 1, "h"), found=0.1, mean=0.5)
            names = (("indentation", "i"), ("upper case", "u"), ("digit", "d"))
            rows = (of_unit(long, correlation=found[name]) for long, name in names if name in found)
            return inspection(units=tuple(rows))

        self.show(units(i=0.2, u=0.1, d=-0.3), units(i=0.1, u=-0.7))
        rows, series = charts["units"].args[1:]
        assert rows == ["upper case", "digit", "indentation"]
        assert series == [
            Dots("m0", [0.1, 0.3, 0.2], 0),
            Dots("m1", [0.7, None, 0.1], 1),
        ]

    def test_a_chosen_unit_and_those_that_follow_the_text_need_not_each_other(self) -> None:
        unit = Activation(Unit(1, 2, "c"), "ab\nc", (0.0, 0.25, -0.5, 0.1))
        says = self.show(inspection(units=(), activation=unit))
        assert "<h3>Unit 1.2c along the text</h3>" in says
        assert "<h3>Units that follow the text</h3>" in self.show(inspection(activation=None))
        assert 'a<span class="up-2">b</span><span class="down-5">↵\n</span><span class="up-1">' in (
            says
        )
        accent = self.show(inspection(activation=replace(unit, text="ae\u0301b")))
        assert '<span class="down-5">◌\u0301</span>' in accent
        for name, value in (("down-5", "-0.5"), ("", "0"), ("up-5", "0.5")):
            assert f'"{name} swatch">{value}<' in says
        assert 'class="up' not in self.show(
            inspection(activation=replace(unit, values=(0.0,) * 4))
        ).replace('class="up-5 swatch"', "")

    def test_norms_are_drawn_over_the_middle_of_their_periods(
        self, charts: dict[str, mock._Call]
    ) -> None:
        periods = (Period(1, 10, 1, 2, 3, 0.0), Period(11, 30, 0.5, 0.6, 1, 0.25))
        history = Clipping(1.5, None, None, 30, 3.0, 0.5, periods)
        none = replace(history, periods=(Period(1, 30, 0.0, 0.0, 0.0, 0.0),))
        says = self.show(inspection(clipping=none), inspection(clipping=history))
        assert "<li>m1: Norms of the gradient over 30 updates" in says
        lines = charts["norms"].args[1]
        assert lines[1] == Line("m1", [5.5, 20.5], (2, 0.6), 1, band=((1, 0.5), (3, 1)))
        assert charts["norms"].kwargs["rules"] == (Rule("clipped above 1.5", 1.5),)
        assert charts["clipped"].args[1][1] == Line("m1", [5.5, 20.5], [0.0, 0.25], 1)
        low, high = charts["clipped"].kwargs["y_range"]
        assert low < 0 < 1 < high
        scaled = inspection(clipping=replace(history, clip_norm=None, scale_norm=0.75))
        assert "<li>Norms of the gradient over 30 updates" in self.show(scaled)
        assert charts["norms"].kwargs["rules"] == (Rule("scaled to 0.75", 0.75),)

    def test_angles_are_drawn_over_their_windows(self, charts: dict[str, mock._Call]) -> None:
        full = Window(64, None, 0.0, 1.0, 1e-6, 10_000)
        windows = tuple(replace(full, bptt=n, angle=angle) for n, angle in ((7, 20.0), (3, 50.0)))
        trained = Truncation("trained", 8, 512, full, 30.0, windows)
        lost = replace(windows[1], angle=math.nan)
        initial = replace(trained, weights="initial", windows=(windows[0], lost))
        self.show(inspection(truncation=(trained, initial)))
        first, second = charts["truncation"].args[1]
        assert first == Line("trained", [3, 7], [50.0, 20.0], 0)
        assert (second.label, second.y[1], second.style) == ("initial", 20.0, 1)
        low, high = charts["truncation"].kwargs["y_range"]
        assert low == 0
        assert 50 < high < 60
        self.show(inspection(truncation=(replace(trained, windows=(replace(lost, angle=0.0),)),)))
        assert charts["truncation"].kwargs["y_range"][1] > 0
        charts.clear()
        self.show(inspection(truncation=(replace(trained, windows=(lost,)),)))
        assert "truncation" not in charts

    def test_a_step_and_windows_are_shown_of_one_model_only(self) -> None:
        quantity = Quantity(1, "y", "V h' + v", (1.5, 2.5), None)
        full = Window(64, None, 0.0, 1.0, 1e-6, 10_000)
        seen = inspection(
            step=Step("a", (quantity,), ("e",), 256, 1e-7, 2e-6, 1.25, 1.25),
            truncation=(Truncation("trained", 8, 512, full, 30.0, (full,)),),
        )
        for title in ("The step", "Truncation"):
            assert f"{title}</h2>" in self.show(None, seen)
            assert f"{title}</h2>" not in self.show(seen, seen)


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


@pytest.mark.parametrize(
    "rows",
    [
        log(1, 1),
        log(3, 1),
        log(0, 1),
        log(3, 0),
        log(1000, 3),
        log(1000, 0),
        ({"step": 1, "train_nats_per_char": "x"}, *log(1, 0)),
        ({"step": 1, "characters": 1, "seconds": 1, "train_nats_per_char": math.inf}, *log(2, 0)),
    ],
)
def test_a_log_of_any_length_makes_curves(rows: Any) -> None:
    text = assessment_page([assessment()], [portrait(log=rows)], "poem", ORIGIN)
    assert "Learning" in check(text).texts["h2"]
    assert all(len(svg) < 20_000 for svg in re.findall(r"<svg .*?</svg>", text, re.DOTALL))


@pytest.mark.parametrize(
    ("logs", "said", "unlike"),
    [
        ([log(3, 1)], "what is held out to validate; thin lines: on the text being learnt.", True),
        ([log(0, 1)], "what is held out to validate.", False),
        ([log(1, 1)], "what is held out to validate.", False),
        ([log(3, 0)], "the text being learnt.", True),
        (
            [log(3, 0), log(5, 1)],
            "the text being learnt or what is held out to validate; "
            "thin lines: on the text being learnt.",
            True,
        ),
    ],
)
def test_the_curves_are_said_to_be_what_was_drawn(logs: list[Any], said: str, unlike: bool) -> None:
    """Where there is a loss of training, that it is not measured as the other is."""
    drawn = [portrait(str(n), log=rows, inspection=None) for n, rows in enumerate(logs)]
    page = check(assessment_page([assessment() for _ in logs], drawn, "poem", ORIGIN))
    if unlike:
        said += (
            " Loss on the text being learnt is taken before each update, with dropout and loss "
            "temperature if there are any."
        )
    assert page.texts["figcaption"][1].startswith(f"Marked lines: loss on {said} Nats per")


@pytest.mark.parametrize(("first", "said"), [(2.95, False), (3.05, True)])
def test_what_is_cut_off_is_said_and_nothing_else(
    first: float, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale goes from 2.0 to 2.9, with 0.054 to spare: the first row is of the beginning."""
    logs = [
        [
            {"step": n, "characters": 100.0 * n, "seconds": 50.0 + n, "valid_nats_per_char": nats}
            for n, nats in course
        ]
        for course in (((1, first), (20, 2.9), (30, 2.5)), ((1, 2.7), (30, 2.0)))
    ]
    drawn = [portrait(str(n), log=rows, inspection=None) for n, rows in enumerate(logs)]
    chart = mock.Mock(wraps=line_chart)
    monkeypatch.setattr("charrnn.curves.line_chart", chart)
    page = check(assessment_page([assessment() for _ in logs], drawn, "poem", ORIGIN))
    for call in chart.call_args_list:
        assert call.kwargs["y_range"] == pytest.approx((2.0 - 0.054, 2.9 + 0.054))
    assert ("What lies above 2.95, at" in page.texts["figcaption"][1]) == said


def test_the_scale_has_room_for_the_training_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single validation, at the end: its loss alone would be a scale of nothing."""
    rows = [
        {"step": n, "characters": 100.0 * n, "seconds": 50.0 + n, "train_nats_per_char": nats}
        for n, nats in ((1, 3.5), (10, 3.0), (20, 2.5), (30, 1.8))
    ]
    rows.append({"characters": 3000.0, "seconds": 80.0, "valid_nats_per_char": 1.9})
    chart = mock.Mock(wraps=line_chart)
    monkeypatch.setattr("charrnn.curves.line_chart", chart)
    page = check(
        assessment_page(
            [assessment()], [portrait("one", log=rows, inspection=None)], "poem", ORIGIN
        )
    )
    assert chart.call_args.kwargs["y_range"] == pytest.approx((1.8 - 0.072, 3.0 + 0.072))
    assert "What lies above 3.07, at" in page.texts["figcaption"][1]


@pytest.mark.parametrize(("worst", "log"), [(9.9, False), (10.1, True), (43.0, True)])
def test_a_loss_that_leaps_leaves_the_others_apart(
    worst: float, log: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"step": n, "characters": 100.0 * n, "seconds": 50.0 + n, "train_nats_per_char": nats}
        for n, nats in ((1, 99.0), (10, worst), (20, 3.1), (30, 2.0))
    ]
    chart = mock.Mock(wraps=line_chart)
    monkeypatch.setattr("charrnn.curves.line_chart", chart)
    page = check(
        assessment_page(
            [assessment()], [portrait("one", log=rows, inspection=None)], "poem", ORIGIN
        )
    )
    for call in chart.call_args_list:
        assert call.kwargs["y_log"] == log
        label = "nats per character" + ", logarithmic" * log
        assert call.kwargs["y_label"] == label
        assert label in page.texts["text"]
        low, high = call.kwargs["y_range"]
        assert 0.7 < low / 2 < 1 < high / worst < 1.3
        if log:
            assert high / worst == pytest.approx(2 / low), "as much room at both ends"
    assert f"What lies above {high:.2f}, at the start" in page.texts["figcaption"][1]


def test_a_run_is_drawn_by_all_its_validations_and_a_thinned_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seven updates become three points: the means of three, of two and of two."""
    chart = mock.Mock(return_value="")
    monkeypatch.setattr("charrnn.curves.line_chart", chart)
    monkeypatch.setattr("charrnn.curves.POINTS", 3)
    assessment_page([assessment()], [portrait("one", log=log(7, 4))], "poem", ORIGIN)
    for call, name, scale in zip(
        chart.call_args_list, ("character-characters", "character-seconds"), (100, 0.5), strict=True
    ):
        assert call.args[0] == f"curves-{name}"
        thin, main = call.args[2]
        assert (thin.label, thin.faint, main.label, main.faint) == ("", True, "one", False)
        assert thin.x == pytest.approx([2 * scale, 4.5 * scale, 6.5 * scale])
        assert thin.y == pytest.approx([2.8, 2.55, 2.35])
        assert main.x == pytest.approx([scale, 2 * scale, 3 * scale, 4 * scale])
        assert main.y == pytest.approx([3.0, 2.9, 2.8, 2.7])


def test_curves_on_different_texts_are_said_to_be_that() -> None:
    def caption(*texts: str) -> str:
        drawn = [
            portrait(str(n), log=log(n + 3), validated_on=frozenset([on]))
            for n, on in enumerate(texts)
        ]
        page = check(assessment_page([assessment() for _ in texts], drawn, "poem", ORIGIN))
        return page.texts["figcaption"][1]

    said = "Not all runs' losses are on the same characters: compare shapes, not heights. Nats per"
    assert said in caption("one", "another")
    assert said not in caption("one", "one")
    one, two, both = (frozenset(on) for on in ([1], [2], [1, 2]))
    for lstm, gru, differ in ((one, one, False), (one, two, True), (both, both, True)):
        cells = [portrait("LSTM", validated_on=lstm), portrait("GRU", validated_on=gru)]
        page = check(compare_page(comparison(), cells))
        assert (said in page.texts["figcaption"][1]) is differ


def test_no_model_has_the_grey_of_what_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each has one style in all figures."""
    scores, positions, curves = (mock.Mock(return_value="") for _ in range(3))
    monkeypatch.setattr("charrnn.report.dot_chart", scores)
    monkeypatch.setattr("charrnn.report.line_chart", positions)
    monkeypatch.setattr("charrnn.curves.line_chart", curves)
    drawn = [portrait(str(n), inspection=None, log=log(3 + n)) for n in range(7)]
    by_position = PositionScores(np.linspace(3, 2, 10), 7)
    one = assessment(baselines=(Baseline("xz", 2.0, ""),), by_position=by_position)
    assessment_page([one for _ in drawn], drawn, "poem", ORIGIN)
    (dots,) = scores.call_args.args[3]
    assert list(dots.style) == [0, 1, 2, 3, 4, 0, 1, 5]
    for chart, times in ((positions, 1), (curves, 2)):
        found = [line.style for line in chart.call_args.args[2]]
        assert found == [n % 5 for n in range(7) for _ in range(times)]


def test_a_comparison_looks_into_each_model_by_its_own_seed_and_window(
    prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the end of the text, where it is long enough."""
    cpu = torch.device("cpu")
    plan = Plan(
        texts=(str(prose),), cells=("gru",), steps=3, seed=4, hidden=5, batch_size=3, bptt=11
    )
    events = compare(tmp_path, plan, new=True, device=cpu)
    results = [event.result for event in events if isinstance(event, RunScored)]
    made = Comparison.of(plan, results)
    ((drawn,), ((run, rows),)) = portray_comparison(made)
    assert (drawn.label, run, drawn.log) == ("GRU", results[0], rows)
    assert [row["step"] for row in rows if "gradient_norm" in row] == [3]
    assert drawn.inspection is not None
    assert drawn.inspection.memory is not None
    assert drawn.inspection.memory.bptt == 11
    expected = gradient_flow(initial_model(drawn.shape, 4), make_stretch(100)).spectral_radii
    assert drawn.inspection.gradient_flow[1].spectral_radii == expected
    assert drawn.inspection.gates
    assert drawn.inspection.units
    assert drawn.inspection.clipping is not None
    assert drawn.validated_on == {(scan([str(prose)]).fingerprint, (4805, 5406))}
    unasked = drawn.inspection.step, drawn.inspection.cuts, drawn.inspection.truncation
    assert unasked == (None, (), ())
    part = scan([str(prose)], "utf-8").whole
    monkeypatch.setattr("charrnn.portrait.SAMPLE", replace(SAMPLE, length=3))
    for long_enough in (False, True):
        end = part.first(99 + long_enough)
        monkeypatch.setattr("charrnn.portrait.recorded_part", mock.Mock(return_value=end))
        ((short,), _) = portray_comparison(made)
        assert (short.inspection is not None) == long_enough


def test_a_comparison_looks_into_each_cell_s_best_run_on_the_end_of_what_is_compared(
    prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(
        texts=(str(prose),), cells=("gru",), seeds=2, steps=1, hidden=5, batch_size=3, bptt=11
    )
    events = compare(tmp_path, plan, new=True, device=torch.device("cpu"))
    first, second = (event.result for event in events if isinstance(event, RunScored))
    better = replace(second, valid_nats_per_char=(first.valid_nats_per_char or 0.0) - 1)
    monkeypatch.setattr("charrnn.portrait.SAMPLE", replace(SAMPLE, length=3))
    monkeypatch.setattr("charrnn.portrait.InspectConfig", partial(InspectConfig, characters=150))
    loaded, recorded = mock.Mock(wraps=load_model), mock.Mock(wraps=recorded_part)
    inspected = mock.Mock(return_value=None)
    monkeypatch.setattr("charrnn.portrait.load_model", loaded)
    monkeypatch.setattr("charrnn.portrait.recorded_part", recorded)
    monkeypatch.setattr("charrnn.portrait.inspect", inspected)
    portray_comparison(Comparison.of(plan, [first, better]))
    assert loaded.call_args.args[0] == tmp_path / "gru-seed2"
    assert recorded.call_args.args[1] == "test"
    assert inspected.call_args.args[1].text == prose.read_text()[-150:]


def test_a_portrait_shows_the_beginning_of_a_text_and_the_log(
    prose: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.portrait.SAMPLE", replace(SAMPLE, length=3))
    model, vocabulary, _ = load_model(trained, torch.device("cpu"))
    part = scan([str(prose)], "utf-8").part(7, 3007)
    windows = prices(model, part, vocabulary, window=47)
    with mock.patch("charrnn.portrait.prices", return_value=windows):
        drawn = portray("x", trained, model, vocabulary, part, validated_on=frozenset(["a"]))
    assert next(windows).position == 800, "no more is read than shown"
    assert drawn.validated_on == {"a"}
    assert [character for character, _ in drawn.excerpt] == [*prose.read_text()[7:807]]
    nats = next(prices(model, part, vocabulary)).nats_T
    assert [price for _, price in drawn.excerpt][:9] == [0.0, *nats[:8]]
    assert (drawn.label, drawn.shape) == ("x", model.config)
    assert list(drawn.log) == list(read_metrics(trained / "metrics.jsonl"))
    assert not drawn.of_bytes
    moved = shutil.copy(trained / "best.safetensors", tmp_path)
    assert portray("x", Path(moved), model, vocabulary, part.first(9)).log == ()


def test_a_portrait_of_a_model_of_bytes_shows_what_its_text_is_made_of(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Carriage returns too, where no line feed follows."""
    monkeypatch.setattr("charrnn.portrait.SAMPLE", replace(SAMPLE, length=3))
    part = make_part(tmp_path, "é\rb\r\nc\r".encode(), "bytes")
    model = make_model("gru", layers=1, vocabulary=256)
    drawn = portray("x", trained, model, Vocabulary.of_bytes(), part, inspection())
    assert drawn.of_bytes
    assert [character for character, _ in drawn.excerpt] == [*"é␍b\nc␍"]
    assert "é␍b↵\nc␍" in check(inspection_page(drawn, "", ORIGIN)).texts["pre"]


def test_a_sample_is_drawn_on_the_cpu_as_by_its_command(
    prose: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another device rounds otherwise, and draws another text; here "meta" stands for one."""
    model, vocabulary, _ = load_model(trained, torch.device("cpu"))
    part, places = scan([str(prose)], "utf-8").part(0, 9), []

    def drawn(model: CharModel, *_: object) -> list[Piece]:
        places.append(model.head.weight.device.type)
        return []

    monkeypatch.setattr("charrnn.portrait.sample", drawn)
    monkeypatch.setattr("charrnn.portrait.prices", lambda *_: [Prices(1, np.zeros(8), 0)])
    monkeypatch.setattr(CharModel, "cpu", lambda model: model.to_empty(device="cpu"))
    for device in ("cpu", "meta"):
        portray("x", trained, model.to(device), vocabulary, part)
        assert model.head.weight.device.type == device, "it stays where it is"
    assert places == ["cpu", "cpu"]


def test_a_portrait_without_a_sample_names_the_checkpoint(prose: Path, trained: Path) -> None:
    """What a sample comes upon need not be in the text."""
    model, vocabulary, _ = load_model(trained, torch.device("cpu"))
    part = scan([str(prose)], "utf-8").part(0, 9)
    for weight in model.state_dict().values():
        weight.copy_(weight.sign() * 3e38)
    named = re.escape(str(trained)) + ": the model's predictions are not finite: "
    with (
        mock.patch("charrnn.portrait.prices", return_value=[Prices(1, np.zeros(8), 0)]),
        pytest.raises(NonFiniteError, match=named),
    ):
        portray("x", trained, model, vocabulary, part)


def test_a_portrait_has_the_unit_that_was_asked_for_or_the_first_found(
    prose: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.portrait.SAMPLE", replace(SAMPLE, length=3))
    model, vocabulary, _ = load_model(trained, torch.device("cpu"))
    subject: Any = SimpleNamespace(path=trained, model=model, vocabulary=vocabulary)
    part = scan([str(prose)], "utf-8").whole.first(200)
    stretch = read_stretch(part, vocabulary)

    def shown(seen: Inspection) -> Activation | None:
        drawn = portray_inspected(subject, part, stretch, seen)
        assert drawn.label == "trained"
        assert drawn.inspection is not None
        return drawn.inspection.activation

    found = shown(inspection(activation=None))
    assert found == activation(model, stretch, Unit(1, 3, "c"))
    assert shown(inspection()) == inspection().activation
    assert shown(inspection(activation=None, units=())) is None


def test_runs_compare_where_they_validate_on_the_same_or_learn_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = mock.Mock()
    monkeypatch.setattr("charrnn.portrait.portray", drawn)
    monkeypatch.setattr("charrnn.portrait.validated_on", lambda checkpoint: checkpoint)

    def subject(text: str, train: tuple[int, int], checkpoint: object = None) -> Any:
        trained_on = SimpleNamespace(fingerprint=text, train=train, valid=None)
        return mock.Mock(path=Path(text), trained_on=trained_on, checkpoint=checkpoint)

    portray_subjects(
        [
            subject("a", (0, 5)), subject("a", (0, 5)), subject("a", (0, 6)), subject("b", (0, 5)),
            subject("a", (0, 5), "held out"), subject("b", (0, 6), "held out"),
        ]
    )  # fmt: skip
    first, second, *others = (call.kwargs["validated_on"] for call in drawn.call_args_list)
    assert first == second
    assert first not in others
    assert others[0] != others[1] != others[2] == others[3]
    named = [call.args[0] for call in drawn.call_args_list]
    assert named == ["a", "a 2", "a 3", "b", "a 4", "b 2"]


def test_the_history_says_what_cut_the_gradient(trained: Path) -> None:
    _, _, checkpoint = load_model(trained, torch.device("cpu"))
    plain = replace(checkpoint.record("training", TrainConfig), clip_norm=None)
    for cuts in ((0.5, None, None), (None, 0.5, None), (None, None, 0.5)):
        norm, value, scale = cuts
        training = replace(plain, clip_norm=norm, clip_value=value, scale_norm=scale)
        history = read_history(trained, training)
        assert history is not None
        assert (history.clip_norm, history.clip_value, history.scale_norm) == cuts


def test_labels_are_short_and_all_different(tmp_path: Path) -> None:
    for name in ("a/run", "b/run", "run-with-a-very-long-name-of-40-letters"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/run/last.safetensors").touch()
    paths = [tmp_path / "a/run", tmp_path / "b/run", tmp_path / "a/run/last.safetensors"]
    assert labels(paths) == ["run", "run 2", "run/last"]
    assert labels([tmp_path / "a/run/.."]) == ["a"]
    (long,) = labels([tmp_path / "run-with-a-very-long-name-of-40-letters"])
    assert long == "run-with…0-letters"
    assert labels([Path("红楼梦-lstm")]) == ["红楼梦-lstm"]
    assert labels([Path("红楼梦与石头记之名-lstm")]) == ["红楼梦与…之名-lstm"], "as wide as those"
    assert labels([Path("abcdefghijklmnopqr")]) == ["abcdefghijklmnopqr"]
    assert labels([Path("a\nb\tc")]) == ["a b c"]


def test_an_accent_that_surprises_shows_its_colour() -> None:
    excerpt = (("a", 0.0), ("\u0301", 3.0), ("e", 0.0), ("\u0301", 0.1), ("\ufffd\u0301", 9.0))
    text = assessment_page([assessment()], [portrait(excerpt=excerpt)], "poem", ORIGIN)
    assert '<span class="bits-3">◌\u0301</span>' in text
    assert text.count("◌") == 1


def test_surprise_counts_the_levels_in_bits() -> None:
    assert [surprise(bits * math.log(2)) for bits in (0.1, 1, 3, 5, 100)] == [0, 1, 2, 3, 4]


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


# Figures ---------------------------------------------------------------------------------


class TestFigures:
    def test_lines_differ_in_colour_dash_and_marker(self) -> None:
        lines = [Line(name, (1, 2, 3), (n, n + 1, n), n) for n, name in enumerate("abcd")]
        svg = line_chart("x", "T", lines, x_label="k", y_label="v")
        styles = re.findall(r'style="(fill: none;[^"]*stroke: var\(--series-\d\)[^"]*)"', svg)
        assert len(set(styles)) == 4
        assert len({re.sub("--series-.", "", style) for style in styles}) == 4, "in grey too"
        for line in lines:
            assert f">{line.label}</text>" in svg

    def test_a_level_out_of_range_is_neither_drawn_nor_named(self) -> None:
        rules = [Rule("near", 2.5), Rule("far", 9.0)]
        svg = line_chart("x", "T", [Line("l", (1, 2), (2, 3), 0)], x_label="k", y_label="v",
                         rules=rules)  # fmt: skip
        assert "A line marks near." in svg
        assert ">near</text>" in svg
        assert "far" not in svg

    @pytest.mark.parametrize("y_log", [False, True])
    def test_a_band_is_shown_whole_with_the_levels_that_it_crosses(self, y_log: bool) -> None:
        """An end that no axis can show is passed over."""
        band = ((0.0, 0.5, math.nan), (0.7, math.inf, 9.0))
        svg = line_chart(
            "x", "T", [Line("l", (1, 2, 3), (0.6, 0.6, 0.6), 0, band=band)], x_label="k",
            y_label="v", y_log=y_log, rules=[Rule("near", 8.0), Rule("far", 90.0)],
        )  # fmt: skip
        assert "A line marks near." in svg
        assert "far" not in svg

    @pytest.mark.parametrize("y_range", [(0.1, 1.0), None])
    def test_a_band_that_goes_to_nothing_reaches_the_bottom_of_a_logarithmic_axis(
        self, y_range: tuple[float, float] | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The axis is no longer for it."""
        band = mock.Mock()
        monkeypatch.setattr("matplotlib.axes.Axes.fill_between", band)
        line = Line("l", (1, 2, 3), (0.6,) * 3, 0, band=((-0.1, 0.5, 0.0), (0.7,) * 3))
        line_chart("x", "T", [line], x_label="k", y_label="v", y_log=True, y_range=y_range)
        bottom = 0.1 if y_range else pytest.approx(0.49, abs=0.005)
        assert list(band.call_args.args[1]) == [bottom, 0.5, bottom]

    def test_a_line_that_goes_to_nothing_can_be_told_from_one_that_stays(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At the bottom of a logarithmic axis, and in words as it is."""
        drawn = mock.Mock(wraps=Axes.plot)
        monkeypatch.setattr(Axes, "plot", lambda *given, **how: drawn(*given, **how))
        band = ((0.4, -0.2, -0.1, -0.3), (0.6, 0.05, 0.1, -0.1))
        line = Line("l", (1, 2, 3, 4), (0.5, -0.1, 0.3, -0.2), 0, band=band)
        chart = partial(line_chart, "x", "T", [line], x_label="k", y_label="v", y_log=True)
        svg = chart(y_range=(0.1, 1.0), y_floor=True)
        assert list(drawn.call_args.args[2]) == [0.5, 0.1, 0.3, 0.1]
        assert "l: 0.5 (band 0.4 to 0.6) at 1 to -0.2 (band -0.3 to -0.1) at 4." in svg
        assert ">l</text>" in svg
        chart()
        assert list(drawn.call_args.args[2]) == [0.5, 0.3]

    @pytest.mark.parametrize(
        ("low", "high", "ticks"),
        [
            (8e-6, 1e4, "10⁻⁴ 0.01 1 100 10k"),
            (2.1, 19.9, "4 6 8 10"),
            (0.9, 256, "1 10 100"),
            (1.5, 9.5, "2 4 6 8"),
            (2.1, 2.9, "2.2 2.4 2.6 2.8"),
            (0.107, 0.29, "0.15 0.20 0.25"),
            (7.9, 16.1, "8 10 12 14 16"),
            (1.01, 4.05, "2 3 4"),
        ],
    )
    def test_a_logarithmic_axis_keeps_its_one(self, low: float, high: float, ticks: str) -> None:
        svg = line_chart("x", "T", [Line("", (1, 2), (low, high), 0)], x_label="k", y_label="v",
                         y_log=True, y_range=(low, high))  # fmt: skip
        names = re.findall(r"text-anchor: end; [^>]*>([^<]*)</text>", svg)
        assert names == ticks.split()

    @pytest.mark.parametrize(
        ("heights", "place"),
        [
            ([(0.2, 0.2, 0.2)], "right above"),
            ([(0.2, 0.53, 0.53)], "right below"),
            ([(0.2, 0.53, 0.53), (0.2, 0.47, 0.47)], "left above"),
            ([(0.53, 0.53, 0.53), (0.2, 0.47, 0.47)], "left below"),
            ([(0.53, 0.53, 0.53), (0.47, 0.47, 0.47)], "right above"),
        ],
    )
    def test_a_level_is_named_where_no_line_passes(
        self, heights: list[tuple[float, ...]], place: str
    ) -> None:
        """Where lines are everywhere, they are interrupted."""
        lines = [Line("", (1, 2, 3), y, style) for style, y in enumerate(heights)]
        svg = line_chart("x", "T", lines, x_label="k", y_label="v", y_range=(0, 1),
                         rules=[Rule("half", 0.5)])  # fmt: skip
        (found,) = re.findall(r'<text style="([^"]*)" x="([\d.]+)" y="([\d.]+)"[^>]*>half<', svg)
        (level,) = re.findall(r'd="M [\d.]+ ([\d.]+) [^"]*"[^>]* 1\.8,1\.8;', svg)
        side = "left" if float(found[1]) < 100 else "right"
        assert f"{side} {'above' if float(found[2]) < float(level) else 'below'}" == place
        assert found[0].endswith("stroke: var(--paper); stroke-width: 3; paint-order: stroke")

    @pytest.mark.parametrize("end", [0.0, 0.5, 1.0])
    def test_labels_at_the_ends_do_not_overlap(self, end: float) -> None:
        lines = [Line(f"line {n}", (1, 2, 3), (0.0, 1.0, end + 1e-6 * n), n) for n in range(6)]
        svg = line_chart("x", "T", lines, x_label="k", y_label="v", rules=[Rule("r", 1.0)])
        (axis,) = re.findall(r'y="([\d.]+)"[^>]*>k<', svg)
        heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>line \d<', svg))
        assert len(heights) == 6
        assert min(np.diff(heights)) > 10
        assert 0 < heights[0] < heights[-1] < float(axis) - 15

    def test_labels_at_the_top_stay_in_the_figure_whatever_is_at_the_bottom(self) -> None:
        """In the lines' order, where several end at one height."""
        lines = [Line(f"line {n}", (1, 2), (0.5, min(1, n)), n) for n in range(5)]
        svg = line_chart("x", "T", lines, x_label="k", y_label="v", y_range=(0, 1))
        heights = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>line \d<', svg)]
        (name,) = re.findall(r'y="([\d.]+)"[^>]*>v<', svg)
        assert heights == sorted(heights, reverse=True)
        assert min(-np.diff(heights)) > 10
        assert heights[-1] > float(name) + 10

    def test_labels_stay_in_the_figure_however_many_there_are(self) -> None:
        lines = [Line(f"line {n}", (1, 2), (0.5, 0.5), n) for n in range(25)]
        svg = line_chart("x", "T", lines, x_label="k", y_label="v", y_range=(0, 1))
        heights = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>line \d+<', svg)]
        (axis,) = re.findall(r'y="([\d.]+)"[^>]*>k<', svg)
        assert len(set(heights)) == 25
        assert 0 < min(heights) < max(heights) < float(axis) - 15

    def test_a_line_is_named_as_it_is_drawn(self) -> None:
        """One that only accompanies others without a marker, and thin."""
        line = Line("l", range(30), range(30), 1, faint=True)
        svg = line_chart("x", "T", [line], x_label="k", y_label="v")
        drawn = re.findall(r'style="([^"]*var\(--series-1\)[^"]*)"', svg)
        assert len(drawn) == 2
        assert drawn[0] == drawn[1]
        assert "stroke-width: 0.9" in drawn[0]

    @pytest.mark.parametrize(
        "label", ["'DejaVu Sans'", "#0a0b10", ' id="a"', 'xlink:href="#a"', "url(#a", "a>b<c"]
    )
    def test_a_label_stays_as_it_is(self, label: str) -> None:
        svg = dot_chart("x", "T", [label, "b"], [Dots("s", (1.0, 2.0), 0)], x_label="v")
        assert label in [text.text for text in ET.fromstring(svg).iter("text")]

    @pytest.mark.parametrize("x_log", [False, True])
    @pytest.mark.parametrize("y_log", [False, True])
    @pytest.mark.parametrize("y", [(1.0,), (2.0, 2.0), (1e-9, 1e9), (-1.0, 0.0, 3.0)])
    def test_any_finite_numbers_can_be_drawn(
        self, x_log: bool, y_log: bool, y: tuple[float, ...]
    ) -> None:
        x = tuple(range(1, len(y) + 1))
        svg = line_chart(
            "x", "T", [Line("l", x, y, 9, band=(y, y))], x_label="k", y_label="v", x_log=x_log,
            y_log=y_log,
        )  # fmt: skip
        ET.fromstring(svg)
        assert "nan" not in svg

    @pytest.mark.parametrize("spread", [2e-7, 1e-5, 2e-4, 0.0021, 0.3, 25.0, 4e3, 7e6])
    def test_ticks_are_even_and_none_is_written_as_another(self, spread: float) -> None:
        low = 1.6461
        dots = Dots("s", (low, low + spread), 0)
        svg = dot_chart("x", "T", ["a", "b"], [dots], x_label="v", form=".9f")
        names = re.findall(r">([\d.,]+[kM]?)</text>", svg)
        ticks = [name for name in names if name not in (f"{low:.9f}", f"{low + spread:.9f}")]
        assert 2 <= len(ticks) <= 9
        values = [float(name.strip("kM").replace(",", "")) for name in ticks]
        gaps = np.diff(values)
        assert min(gaps) > 0
        assert np.allclose(gaps, gaps[0], rtol=1e-3)

    def test_wide_letters_have_their_room_and_no_warning(self) -> None:
        values = [Dots("s", (1.0, 2.0), 0)]
        lefts = []
        for name in ("x" * 9, "红楼梦" * 3, "x" * 18):
            svg = dot_chart("x", "T", [name, "b"], values, x_label="v")
            assert f">{name}</text>" in svg
            lefts.append(float(re.findall(r'<use [^>]*x="([\d.]+)"', svg)[0]))
        assert lefts[0] < lefts[1] == lefts[2]

    def test_dots_carry_their_values(self) -> None:
        one = dot_chart("x", "T", ["a", "b"], [Dots("s", (1.0, None), 0)], x_label="v")
        assert ">1.000</text>" in one
        for broken in (math.inf, math.nan):
            svg = dot_chart("x", "T", ["a", "b"], [Dots("s", (1.0, broken), 0)], x_label="v")
            assert f">{broken:.3f}</text>" in svg
            dot_chart("x", "T", ["a"], [Dots("s", (broken,), 0)], x_label="v")
        two = [Dots("s", (1.0, 2.0), 0), Dots("t", (None, 3.0), 1)]
        assert "b: s 2.000, t 3.000." in dot_chart("x", "T", ["a", "b"], two, x_label="v")

    def test_units_at_one_place_are_one_larger_dot(self) -> None:
        many = saturation_chart("x", "T", [0.5] * 900, [0.25] * 900, 0)
        assert len(many) < 10_000
        assert "900 units" in many
        assert "50.0 % closed, 25.0 % open" in many
        assert "Dots of 1 unit by the share" in saturation_chart("x", "T", [0.5], [0.25], 0)

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0, "0"), (0.01, "0.01"), (1234, "1,234"), (20000, "20k"), (1.5e6, "1.5M"),
         (3e9, "3G"), (1e-5, "10⁻⁵"), (3e-4, "3·10⁻⁴"), (9999.6, "10k"), (999_999, "1M")],
    )  # fmt: skip
    def test_numbers_are_short(self, value: float, text: str) -> None:
        assert number(value) == text


# The command line ------------------------------------------------------------------------


@dataclass(frozen=True)
class Pages:
    """One page of each command, of small models."""

    compare: Path
    evaluate: Path
    inspect: Path
    folder: Path
    """Of the comparison."""


@pytest.fixture(scope="module")
def pages(prose: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Pages:
    folder = tmp_path_factory.mktemp("pages")
    made = Pages(
        compare=folder / "compare.html",
        evaluate=folder / "evaluate.html",
        inspect=folder / "inspect.html",
        folder=folder / "run",
    )
    for arguments in (
        ("compare", prose, "--steps", 30, "--hidden", 12, "--batch-size", 4, "--bptt", 16,
         "--seeds", 2, "--cell", "rnn", "--cell", "lstm", "--run", made.folder, "--quiet",
         "--report", made.compare),
        ("evaluate", trained, "--part", "valid", "--baselines", "--by-position", 32,
         "--report", made.evaluate),
        ("inspect", trained, "--part", "train", "--characters", 3000, "--report", made.inspect),
    ):  # fmt: skip
        done = run_cli(*arguments)
        assert done.code == 0, done.err
        assert done.err.endswith(f"report: {arguments[-1]}\n")
    return made


NAMES = ("compare", "evaluate", "inspect")


@pytest.mark.parametrize("name", NAMES)
def test_every_command_makes_a_sound_page(pages: Pages, name: str) -> None:
    path: Path = getattr(pages, name)
    text = path.read_text(encoding="utf-8")
    page = check(text)
    assert f"charrnn {name} " in page.texts["code"][0]
    assert path.stat().st_size < 1_000_000
    assert {"Learning", "Samples", "Surprise"} <= set(page.texts["h2"])


def test_a_sample_in_the_page_is_what_sample_writes(cli: Cli, pages: Pages, trained: Path) -> None:
    (shown,) = re.findall(
        r'aria-label="Sample of trained">\n(.*?)</pre>', pages.inspect.read_text("utf-8"), re.DOTALL
    )
    written = cli("sample", trained, "--length", 600, "--temperature", 0.8, "--seed", 1)
    assert shown == written.out


def test_prices_in_the_page_are_those_of_per_char(
    cli: Cli, pages: Pages, trained: Path, tmp_path: Path
) -> None:
    prices = tmp_path / "prices.jsonl"
    cli("evaluate", trained, "--part", "valid", "--per-char", prices)
    rows = [json.loads(line) for line in prices.read_text(encoding="utf-8").splitlines()]
    bits = sum(row["nats"] for row in rows) / math.log(2)
    said = f"{bits:,.0f} bits for {len(rows):,} characters, {bits / len(rows):.2f} each."
    assert said in pages.evaluate.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["evaluate", "inspect"])
def test_a_page_of_standard_input(cli: Cli, trained: Path, tmp_path: Path, name: str) -> None:
    page, text = tmp_path / "page.html", make_prose(300)
    done = cli(name, trained, "--text", "-", "--report", page, stdin=text.encode())
    assert done.code == 0, done.err
    read = " ".join(check(page.read_text(encoding="utf-8")).texts["pre"])
    assert text.splitlines()[0] in read
    assert text.splitlines()[-1] in read


def test_a_finished_comparison_makes_its_page_without_training(
    cli: Cli, pages: Pages, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in pages.folder.rglob("*")}
    again = tmp_path / "again.html"
    done = cli("compare", "--run", pages.folder, "--resume", "--quiet", "--report", again)
    assert done.code == 0
    assert {path: path.stat().st_mtime_ns for path in pages.folder.rglob("*")} == before

    def body(path: Path) -> str:
        return path.read_text(encoding="utf-8").partition('<section id="how-this-was-made"')[0]

    assert body(again) == body(pages.compare)


def test_a_comparison_that_was_moved_makes_its_page(cli: Cli, pages: Pages, tmp_path: Path) -> None:
    moved = shutil.copytree(pages.folder, tmp_path / "moved")
    report = tmp_path / "again.html"
    assert cli("compare", "--run", moved, "--resume", "--quiet", "--report", report).code == 0


def test_a_comparison_whose_checkpoint_is_not_described_names_it(
    cli: Cli, pages: Pages, tmp_path: Path
) -> None:
    moved = shutil.copytree(pages.folder, tmp_path / "moved")
    for path in moved.glob("rnn-*/best.safetensors"):
        checkpoint = load(path)
        save(path, replace(checkpoint, meta={**checkpoint.meta, "training": {}}))
    done = cli("compare", "--run", moved, "--resume", "--quiet", "--report", tmp_path / "a.html")
    assert done.code == 1
    assert "the field 'training' is not usable: 'batch_size' is missing\n" in done.err


@pytest.fixture
def huge(trained: Path, tmp_path: Path) -> Path:
    """Return a model whose weights are finite, as any checkpoint's; what comes of them is not."""
    checkpoint, folder = load(trained / "best.safetensors"), tmp_path / "huge"
    large = {weight: tensor.sign() * 3e38 for weight, tensor in checkpoint.tensors.items()}
    folder.mkdir()
    save(folder / "best.safetensors", replace(checkpoint, tensors=large))
    return folder


def test_scores_that_are_no_numbers_are_shown_and_refused(
    cli: Cli, prose: Path, trained: Path, huge: Path
) -> None:
    done = cli("evaluate", trained, huge, "--text", prose, "--json", "--device", "cpu")
    assert done.code == 1
    good, bad = (row["nats_per_char"] for row in json.loads(done.out))
    assert 0 < good < 10
    assert bad is None
    assert f"charrnn: {huge}: its loss is not finite: train anew with a lower --lr\n" in done.err


@pytest.mark.parametrize("name", ["evaluate", "inspect"])
def test_weights_too_large_to_compute_with_are_named(
    cli: Cli, prose: Path, huge: Path, tmp_path: Path, name: str
) -> None:
    page = tmp_path / "p.html"
    done = cli(name, huge, "--text", prose, "--report", page, "--device", "cpu")
    assert (done.code, page.exists()) == (1, False)
    assert done.out, "the tables are printed"
    assert (
        f"{huge}: its loss is not finite, so a page cannot show it: " in done.err.splitlines()[-1]
    )


def test_a_stopped_comparison_leaves_the_old_page_and_the_way_on(
    cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("charrnn.display.Display.show", stop)
    report = tmp_path / "page.html"
    report.write_text("old", encoding="utf-8")
    done = cli(
        "compare", prose, "--steps", 30, "--hidden", 12, "--run", tmp_path / "run", "--quiet",
        "--report", report,
    )  # fmt: skip
    assert done.code == 130
    assert f"--run {tmp_path / 'run'} --resume --report {report}" in done.err
    assert report.read_text(encoding="utf-8") == "old"


def test_a_signal_while_the_page_is_made_loses_nothing_but_the_page(
    cli: Cli, pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("charrnn.portrait.portray_comparison", stop)
    report = tmp_path / "page.html"
    done = cli("compare", "--run", pages.folder, "--resume", "--quiet", "--report", report)
    assert done.code == 128 + signal.SIGTERM
    assert "nats/char" in done.out, "the table is there before"
    way_on = f"charrnn compare --run {pages.folder} --resume --report {report}"
    assert f"all runs are done, but there is no report yet; go on with: {way_on}\n" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_who_leaves_does_not_take_the_page_along(
    pages: Pages, trained: Path, tmp_path: Path, name: str
) -> None:
    """A real process and a real pipe."""
    report = tmp_path / "page.html"
    words: dict[str, tuple[object, ...]] = {
        "compare": ("--run", pages.folder, "--resume"),
        "evaluate": (trained, "--part", "valid"),
        "inspect": (trained, "--part", "valid", "--only", "memory"),
    }
    code, said = run_unread(name, *words[name], "--report", report, timeout=60)
    assert code == 0
    assert said.endswith(f"report: {report}\n")
    check(report.read_text(encoding="utf-8"))


class TestWhereThePageGoes:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("page.txt", "give FILE.html"),
            ("none/page.html", "cannot save"),
            ("is.html", "not a regular file"),
        ],
    )
    @pytest.mark.parametrize("command", NAMES)
    def test_it_is_looked_at_before_anything_else(
        self, cli: Cli, tmp_path: Path, command: str, name: str, words: str
    ) -> None:
        (tmp_path / "is.html").mkdir()
        arguments = ["no-text"] if command == "compare" else ["no-run", "--part", "valid"]
        done = cli(command, *arguments, "--report", tmp_path / name)
        assert done.code in (1, 2)
        assert words in done.err
        assert len(done.err.splitlines()) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["is.html"]

    def test_without_matplotlib_it_says_what_to_install(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        done = cli("inspect", "run", "--part", "valid", "--report", tmp_path / "page.html")
        assert done.code == 2
        assert "pip install '.[report]'" in done.err

    def test_a_page_replaces_the_file_that_a_link_names(
        self, cli: Cli, trained: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "real.html").write_text("old", encoding="utf-8")
        (tmp_path / "link.html").symlink_to("real.html")
        done = cli("evaluate", trained, "--part", "valid", "--report", tmp_path / "link.html")
        assert done.code == 0
        assert (tmp_path / "link.html").is_symlink()
        check((tmp_path / "real.html").read_text(encoding="utf-8"))

    @pytest.mark.parametrize("command", NAMES)
    def test_it_never_replaces_the_text(
        self, cli: Cli, trained: Path, tmp_path: Path, command: str
    ) -> None:
        text = tmp_path / "text.html"
        text.write_text(make_prose(300), encoding="utf-8")
        words = [text, "--run", tmp_path / "run"] if command == "compare" else [
            trained, "--text", text
        ]  # fmt: skip
        done = cli(command, *words, "--report", text)
        assert done.code == 2
        assert done.err == (
            f"charrnn: --report {text} would overwrite what is read: give another file\n"
        )
        assert text.read_text(encoding="utf-8") == make_prose(300)

    @pytest.mark.parametrize("command", ["compare", "evaluate", "inspect"])
    def test_it_never_joins_the_text(
        self, cli: Cli, trained: Path, tmp_path: Path, command: str
    ) -> None:
        """In a folder that is read it would make another text of it."""
        folder = tmp_path / "texts"
        folder.mkdir()
        (folder / "text").write_text(make_prose(300), encoding="utf-8")
        words = [folder, "--run", tmp_path / "run"] if command == "compare" else [
            trained, "--text", folder
        ]  # fmt: skip
        for option in ("--report", "--per-char")[: 1 + (command == "evaluate")]:
            done = cli(command, *words, option, folder / "page.html")
            assert (done.code, done.out) == (2, "")
            assert done.err == (
                f"charrnn: {option} {folder}/page.html would change {folder}, which is or was "
                "read as text: give a file elsewhere\n"
            )
        assert [path.name for path in folder.iterdir()] == ["text"]

    @pytest.mark.parametrize("name", [".", "*.html"])
    @pytest.mark.parametrize("resume", [False, True])
    def test_nor_does_that_of_a_comparison_where_the_text_is_found(
        self, cli: Cli, tmp_path: Path, name: str, resume: bool
    ) -> None:
        """In a folder or by a pattern, and in one that goes on."""
        (tmp_path / "texts").mkdir()
        text, run = tmp_path / "texts" / "text.html", tmp_path / "run"
        text.write_text(make_prose(300), encoding="utf-8")
        if resume:
            run.mkdir()
            plan = Plan(texts=(f"{text.parent}/{name}",), steps=1)
            (run / "comparison.json").write_text(json.dumps(plan.to_dict()))
        words = ("--resume",) if resume else (text.parent / name, "--steps", 1)
        done = cli("compare", *words, "--run", run, "--report", text)
        assert (done.code, done.out) == (2, "")
        assert f"--report {text} would overwrite what is read" in done.err
        assert text.read_text(encoding="utf-8") == make_prose(300)
        assert not [path for path in run.glob("*") if path.is_dir()], "no run was begun"

    @pytest.mark.parametrize(
        ("report", "begins"),
        [
            ("out/page.html", True),
            ("page.html", False),
            ("link.html", False),
            ("out/link.html", False),
            ("texts/page.html", False),
        ],
    )
    def test_that_of_a_comparison_may_lie_in_its_folder(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: str,
        begins: bool,
    ) -> None:  # fmt: skip
        """Which is not read; but no link may lead into it, or out of it, from what is."""

        def watch(*_: object, **__: object) -> None:
            raise UsageError("it has begun")

        monkeypatch.setattr("charrnn.watching.watch_comparison", watch)
        monkeypatch.chdir(tmp_path)
        for folder in ("out", "texts"):
            Path(folder).mkdir()
        Path("texts/text").write_text(make_prose(300), encoding="utf-8")
        Path("link.html").symlink_to("out/linked.html")
        Path("out/link.html").symlink_to("../linked.html")
        done = cli("compare", ".", "--run", "out", "--steps", 1, "--report", report, "--quiet")
        would = f"--report {report} would change {tmp_path}, which is or was read as text: give"
        assert ("it has begun" if begins else would) in done.err

    @pytest.mark.parametrize("name", ["page.html", "link.html"])
    def test_it_is_not_where_the_prices_go(
        self, cli: Cli, trained: Path, tmp_path: Path, name: str
    ) -> None:
        page = tmp_path / "page.html"
        (tmp_path / "link.html").symlink_to(page)
        words = ("--per-char", tmp_path / name, "--report", page)
        done = cli("evaluate", trained, "--part", "valid", *words)
        assert (done.code, done.out) == (2, "")
        assert done.err == (
            f"charrnn: --report and --per-char both write {page}: give another file\n"
        )
        assert not page.exists()


# In a browser ----------------------------------------------------------------------------

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
in_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver"
)

Show = Callable[..., None]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    assert CHROMIUM is not None
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.get("about:blank")  # away from the page it begins with, which has requests of its own
    yield driver
    driver.quit()


def show(
    browser: webdriver.Chrome, path: Path, *, width: int = 1400, scheme: str = "light",
    media: str = "screen",
) -> None:  # fmt: skip
    """Open a page in a window of this width."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())


def messages(browser: webdriver.Chrome, kind: str) -> list[str]:
    """Return what the browser has logged since it was asked last."""
    return [row["message"] for row in browser.get_log(kind)]  # type: ignore[no-untyped-call]


def colours(browser: webdriver.Chrome) -> list[list[int]]:
    """Return the computed colours of the page's paper, its text and a figure's text."""
    found = browser.execute_script(
        """const style = getComputedStyle;
        return [style(document.body).backgroundColor, style(document.body).color,
          style(document.querySelector('svg text')).fill]"""
    )
    return [[int(part) for part in re.findall(r"\d+", colour)[:3]] for colour in found]


@in_browser
@pytest.mark.parametrize("name", NAMES)
class TestInABrowser:
    def test_nothing_leaves_the_page_and_nothing_fails(
        self, browser: webdriver.Chrome, pages: Pages, name: str
    ) -> None:
        path: Path = getattr(pages, name)
        messages(browser, "performance")
        show(browser, path)
        events = [json.loads(row)["message"] for row in messages(browser, "performance")]
        asked = {
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        }
        assert asked == {path.as_uri()}
        assert messages(browser, "browser") == []

    def test_figures_and_tables_are_there(
        self, browser: webdriver.Chrome, pages: Pages, name: str
    ) -> None:
        show(browser, getattr(pages, name))
        sizes = browser.execute_script(
            """return [...document.querySelectorAll('svg, table, pre')].map(e => {
              const box = e.getBoundingClientRect();
              return [e.tagName, box.width, box.height]; })"""
        )
        kinds = Counter(kind.lower() for kind, _, _ in sizes)
        least = {"compare": (11, 10, 4), "evaluate": (4, 2, 2), "inspect": (10, 5, 3)}[name]
        for kind, count in zip(("svg", "table", "pre"), least, strict=True):
            assert kinds[kind] >= count
        assert all(width > 100 and height > 40 for _, width, height in sizes)
        # What is drawn and written stays within its figure.
        outside = browser.execute_script(
            """return [...document.querySelectorAll('svg')].flatMap(svg => {
              const box = svg.getBoundingClientRect();
              return [...svg.querySelectorAll('text')].filter(t => {
                const b = t.getBoundingClientRect();
                return b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1
                  || b.bottom > box.bottom + 1; }).map(t => t.textContent); })"""
        )
        assert outside == []
        for text in ("nats per character", "k, characters back")[: 2 if name != "evaluate" else 1]:
            assert text in browser.find_element("tag name", "main").text

    @pytest.mark.parametrize("width", [320, 360, 768, 1400])
    def test_it_fits_any_width(
        self, browser: webdriver.Chrome, pages: Pages, name: str, width: int
    ) -> None:
        show(browser, getattr(pages, name), width=width)
        over, boxes = browser.execute_script(
            """return [document.documentElement.scrollWidth - document.documentElement.clientWidth,
              [...document.querySelectorAll('.scroll, pre, svg, p, h1')].map(
                e => e.getBoundingClientRect().right)]"""
        )
        assert over == 0
        assert max(boxes) <= width

    def test_it_follows_light_and_dark(
        self, browser: webdriver.Chrome, pages: Pages, name: str
    ) -> None:
        for scheme in ("light", "dark"):
            show(browser, getattr(pages, name), scheme=scheme)
            paper, ink, figure = colours(browser)
            assert figure == ink
            assert (sum(paper) > 700, sum(ink) < 150) == (scheme == "light",) * 2
            contrasts = browser.execute_script(
                """const value = n => getComputedStyle(document.body).getPropertyValue(n);
                return ['--ink', '--muted', '--series-0', '--series-1', '--series-2', '--series-3',
                  '--series-4', '--series-5'].map(value)"""
            )
            for colour in contrasts:
                assert contrast(colour, paper) >= 4.5, colour

    def test_print_is_black_on_white_and_whole(
        self, browser: webdriver.Chrome, pages: Pages, name: str
    ) -> None:
        show(browser, getattr(pages, name), scheme="dark", media="print", width=720)
        paper, ink, figure = colours(browser)
        assert paper == [255, 255, 255]
        assert sum(ink) < 150
        assert figure == ink
        assert browser.execute_script(
            "return [...document.querySelectorAll('.scroll')].every("
            "e => e.scrollWidth <= document.documentElement.clientWidth)"
        )
        printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
        assert printed.startswith(b"%PDF")


def contrast(colour: str, other: list[int]) -> float:
    """Return the contrast ratio of two colours (WCAG 2, 1.4.3)."""

    def luminance(parts: list[int]) -> float:
        linear = [
            c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
            for c in (part / 255 for part in parts)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    digits = colour.strip().removeprefix("#")
    ends = sorted(luminance(c) for c in ([*bytes.fromhex(digits)], other))
    return (ends[1] + 0.05) / (ends[0] + 0.05)
