"""Made-up contents for report pages, and checks of a page's structure without a browser."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from charrnn.analysis.activity import Activation, GateUse, Pace, Unit, UnitFound
from charrnn.analysis.flow import GradientFlow, Reach
from charrnn.analysis.gradients import Cut
from charrnn.analysis.inspection import Inspection
from charrnn.analysis.memory import Memory
from charrnn.analysis.norms import Clipping, Period
from charrnn.config import ModelConfig, TrainConfig
from charrnn.inference.assessment import Assessment
from charrnn.inference.evaluation import Scores
from charrnn.runs.comparison import Comparison
from charrnn.runs.comparison_plan import Plan
from charrnn.runs.run import Progress, RunSummary
from charrnn.storage.reading import TextRecord
from charrnn.views.page import Origin
from charrnn.views.portrait import Portrait
from charrnn.views.report import comparison_page
from tests.small import make_result

ORIGIN = Origin("charrnn compare a --report b.html", "a machine", "2026-01-02 03:04 UTC", "9.9")


SHAPE = ModelConfig(cell="lstm", vocabulary=9, layers=1, hidden=3, embedding=2)


RUN = RunSummary(
    shape=SHAPE,
    parameters=1234,
    of_bytes=False,
    config=TrainConfig(
        batch_size=2, bptt=9, optimiser="sgd", lr=0.5, lr_adam=0.5, warmup_steps=0, steps=20
    ),
    text=TextRecord((), "utf-8", "f", 90, (0, 80), None, None, (), None),
    files=1,
    changes=(),
    progress=Progress(step=10, characters=180, seconds=5.0, planned_steps=20),
)  # fmt: skip


#: The same of a model of bytes.
BYTES_RUN = replace(RUN, of_bytes=True)


#: Text that would break a page if it were not escaped.
HOSTILE = "<script>alert(1)</script>&amp;\x1b[2J\x00 \"'><img src=http://x.example/y>\ud800\n]]>"


class Page(HTMLParser):
    """A parsed page's tags, attributes and texts; fails on tags not closed in order."""

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
        # As browsers do: drop the first newline of a pre.
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
    """Return the parsed page, after checking what must hold for every page."""
    page = Page(text)
    ids = page.values("id")
    assert len(ids) == len(set(ids)), "ids are unique"
    figures = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(figures) == page.tags["svg"]
    for figure in figures:
        # The HTML within a figure is also valid XML.
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
    # There are no links to the outside, and nothing is loaded from there.
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
    # Only elements with a role have a name, and only those that scroll are tab stops; none is a
    # landmark, as sections are landmarks anyway.
    assert set(page.values("role")) == {"img", "group"}
    for tag in re.findall(r"<pre[^>]*>", text):
        kind = 'role="group" dir="auto" lang="" translate="no"'
        assert re.fullmatch(rf'<pre( class="coloured")? {kind} aria-label=.*', tag)
    stops = re.findall(r"<[^>]*tabindex[^>]*>", text)
    assert len(stops) == page.tags["table"]
    assert all(stop.startswith('<div class="scroll"') for stop in stops)
    assert page.tags["h1"] == 1
    assert all(page.texts["th"])
    assert not re.search(r"<td>[-+]?[\d.,]+( %)?<", text), "numbers are aligned"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    return page


def flow(weights: Any = "trained", **changes: Any) -> GradientFlow:
    """Return a gradient flow in one layer that halves with each lag."""
    relative = tuple(0.5**k for k in range(9))
    reaches = tuple(Reach(1, state, 1.0, relative, relative, 2, 7, 2, 7) for state in "hc")
    made = GradientFlow(weights, None, ((1.0, 1.1),), (None,), 5, reaches)
    return replace(made, **changes)


def inspection(**changes: Any) -> Inspection:
    """Return an inspection with every measurement but the step and the truncation."""
    excess = tuple(2.0**-k for k in range(12))
    made = Inspection(
        cell="lstm",
        characters=1234,
        step=None,
        gradient_flow=(flow(), flow("initial")),
        memory=Memory(1.5, excess, (0.01,) * 12, 30, 0.01, 7, (6, 8), 16),
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
    """Return a log with so many rows on updates, then so many on validations."""
    updates = [
        {
            "step": n,
            "characters": 100.0 * n,
            "seconds": 0.5 * n,
            "train_nats_per_char": 3 - 0.1 * n,
            "gradient_norm": 1.0,
            "largest_gradient_norm": 1.0,
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
    """Return a portrait of ``RUN``, inspected."""
    made = Portrait(
        label=label,
        log=log(),
        run=RUN,
        sample="and the\nbird",
        excerpt=(("a", 0.0), ("b", 3.0), ("\n", 9.0), ("c", 0.1)),
        inspection=inspection(),
    )
    return replace(made, **changes)


def comparison(
    seeds: int = 2, cells: tuple[Any, ...] = ("lstm", "gru"), apart: float = 0.1
) -> Comparison:
    """Return a comparison in which each cell is ``apart`` nats behind the one before it."""
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
