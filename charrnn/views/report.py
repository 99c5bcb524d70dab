"""Build the report of a comparison, an evaluation or an inspection as a page.

It holds tables, figures as inline SVG, samples and coloured text. The numbers come from the
same records as the terminal's tables; ``page`` makes the HTML.

Axis letter: T positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from charrnn.analysis.flow import Reach
from charrnn.config import InspectConfig
from charrnn.inference.assessment import Assessment
from charrnn.inference.evaluation import Scores
from charrnn.inference.ranking import settings
from charrnn.nats import in_bits
from charrnn.runs.comparison import Comparison, RunResult
from charrnn.runs.subject import fact_lines
from charrnn.text.files import EMBEDDED
from charrnn.views import page
from charrnn.views import score_words as words
from charrnn.views.curves import LoggedRun, learning_section, own_runs, per
from charrnn.views.figures import (
    PLAIN,
    STYLES,
    Dots,
    Line,
    dot_chart,
    line_chart,
    model_style,
    spaced,
)
from charrnn.views.inside import inside_sections
from charrnn.views.inspection_words import enough_says
from charrnn.views.page import Origin
from charrnn.views.portrait import SAMPLE, Portrait, Row, shortened
from charrnn.views.run_words import trained_how
from charrnn.views.surprise import surprise, surprise_mark, surprise_ranges
from charrnn.wording import counted, joined

#: The most checkpoints that the title of a page names.
MOST_NAMED = 5
#: How many of an excerpt's costliest characters are named, each after so many characters before it.
COSTLIEST, BEFORE = 5, 12

# The three pages -------------------------------------------------------------------------


def comparison_page(
    comparison: Comparison,
    portraits: Sequence[Portrait],
    logs: Sequence[tuple[RunResult, Sequence[Row]]],
    origin: Origin,
) -> str:
    """Return the page of a comparison.

    Args:
        comparison: the results.
        portraits: of each cell's best run, in the order of the comparison's cells.
        logs: each run's result and its log.
        origin: how the page was made.
    """
    plan, part = comparison.plan, words.scored_part(comparison.plan)
    unit, in_bytes = _unit(portraits)
    styles = {cell.cell: style for style, cell in enumerate(comparison.cells)}
    runs = [LoggedRun(run.cell.upper(), styles[run.cell], log) for run, log in logs]
    chosen = "best run by validation" if comparison.is_validated else "first run"
    sections = [
        _result_section(comparison, portraits, unit),
        learning_section(
            runs,
            "Seeds of one cell share a line style; the first is named. " if plan.seeds > 1 else "",
            unit,
        ),
        *inside_sections(portraits, f"Each cell's {chosen}, on {_looked_at(portraits, part)}."),
        _samples(portraits),
        _excerpts(portraits, f"The beginning of the {part}"),
    ]
    text = ", ".join(Path(name).name for name in plan.texts) or EMBEDDED
    name = text if len(plan.texts) < 2 else "several texts"
    if plan.valid:
        text += ", validated on " + ", ".join(Path(name).name for name in plan.valid)
    title = f"{joined([cell.cell.upper() for cell in comparison.cells], 'and')} on {name}"
    lead = _comparison_lead(comparison, unit) + in_bytes
    return page.document("compare", title, lead, text, sections, origin)


def _unit(portraits: Sequence[Portrait]) -> tuple[str, str]:
    """Return the symbols that the models predict, and a sentence to add if they are bytes."""
    if all(portrait.run.of_bytes for portrait in portraits):
        return "byte", " The text is read as bytes: in figures and tables a character is a byte."
    return "character", ""


def _looked_at(portraits: Sequence[Portrait], part: str) -> str:
    """Say how much of a part was inspected: of a long one only its end."""
    seen = [one.inspection.characters for one in portraits if one.inspection is not None]
    if seen and seen[0] == InspectConfig().characters:
        return f"the last {seen[0]:,} characters of the {part}"
    return f"the {part}"


def _comparison_lead(comparison: Comparison, unit: str) -> str:
    best = comparison.best_cell
    lead = (
        f"{best.cell.upper()} predicts the {words.scored_part(comparison.plan)}"
        f"{' best' if len(comparison.cells) > 1 else ''}: "
        f"{best.nats_per_char:.4f} nats per {unit}, "
        f"{in_bits(best.nats_per_char):.4f} bits."
    )
    if comparison.differences:
        first = comparison.differences[0]
        if comparison.plan.seeds == 1:
            chance = "with one seed each"
        else:
            chance = "more than chance makes likely" if first.supported else "which may be chance"
        lead += f" It is {words.ahead(first.nats)} nats ahead of {first.worse.upper()}, {chance}."
    if worse := sum(run.is_worse_than_guessing for cell in comparison.cells for run in cell.runs):
        lead += f" Worse than guessing: {counted(worse, 'run')}."
    if comparison.failures:
        lead += f" Left out: {counted(len(comparison.failures), 'run')} whose loss was not finite."
    return lead


def assessment_page(
    assessments: Sequence[Assessment],
    portraits: Sequence[Portrait],
    text: str,
    origin: Origin,
) -> str:
    """Return the page of an evaluation.

    Args:
        assessments: the models' scores.
        portraits: of the same models, in the same order.
        text: what was scored, in words.
        origin: how the page was made.
    """
    labels = [portrait.label for portrait in portraits]
    assessments = [
        replace(one, checkpoint=label) for one, label in zip(assessments, labels, strict=True)
    ]
    units = [portrait.run.unit for portrait in portraits]
    differ = len({one.scores.characters for one in assessments}) > 1
    unit = "byte" if differ or "byte" in units else "character"
    runs, looks, shared = own_runs(portraits), *_looks(assessments)
    by_unit = {of: [run for run in runs if units[run.style] == of] for of in units}
    sections = [
        page.section(
            "Scores",
            page.figure(
                [(f"Bits per {unit}", _score_chart(assessments, looks, unit))],
                "What it takes to write the text down once the model is known, in bits per "
                f"{unit}; further left is better."
                + (" Per byte, since not all models count the same characters." if differ else "")
                + (" In all figures seeds of the same settings share a colour." if shared else ""),
            ),
            page.table(words.assessment_lines(assessments), word_columns=2),
            page.bullets(fact_lines(labels, [one.facts for one in assessments])),
            page.bullets(words.assessments_say(assessments)),
            _training(portraits),
        ),
        *(_positions(assessments, looks, units, of) for of in by_unit),
        *(
            learning_section([run._replace(style=looks[run.style]) for run in drawn], "", of)
            for of, drawn in by_unit.items()
        ),
        _samples(portraits),
        _excerpts(portraits, "The beginning of the text"),
    ]
    named = joined(labels, "and") if len(labels) <= MOST_NAMED else f"{len(labels)} checkpoints"
    lead = _assessment_lead(assessments)
    return page.document("evaluate", f"Scores of {named}", lead, text, sections, origin)


def _looks(assessments: Sequence[Assessment]) -> tuple[list[int], bool]:
    """Return each model's number for ``model_style``, and whether seeds share a colour.

    They do where that leaves each model a look of its own.
    """
    groups = [[model.checkpoint for model in setting.models] for setting in settings(assessments)]
    of_seeds = {name for group in groups for name in group}
    names = dict.fromkeys(one.checkpoint for one in assessments)
    groups += [[name] for name in names if name not in of_seeds]
    places = {name: place for place, name in enumerate(names)}
    groups.sort(key=lambda group: min(places[name] for name in group))
    if not of_seeds or len(groups) > PLAIN or max(map(len, groups)) > STYLES:
        return [*range(len(assessments))], False
    look = {
        n: PLAIN * seed + colour for colour, of in enumerate(groups) for seed, n in enumerate(of)
    }
    return [look[one.checkpoint] for one in assessments], True


def _assessment_lead(assessments: Sequence[Assessment]) -> str:
    # Bits per byte are comparable even if only some of the models predict bytes.
    rows = _scored(assessments)
    _, scores, place = min(rows, key=lambda row: row[1].bits_per_byte)
    best = assessments[place]
    per_character = "" if best.of_bytes else f"{scores.bits_per_char:.4f} per character, "
    how = " by dynamic evaluation" if scores is best.dynamic else ""
    # Words first: a number directly after a right-to-left name would be displayed before it.
    lead = (
        f"{best.checkpoint}{how} needs {'the fewest bits: ' if len(rows) > 1 else ''}"
        f"{scores.bits_per_byte:.4f} bits per byte, {per_character}"
        f"perplexity {words.perplexity_figure(scores.perplexity)}."
    )
    beside = words.baseline_rows(assessments)
    cheapest = min(beside, key=lambda row: row.bits_per_byte, default=None)
    lead += words.best_over_seeds(assessments)
    if cheapest is not None and cheapest.bits_per_byte < scores.bits_per_byte:
        name = cheapest.baseline.name if cheapest.baseline.of_text else cheapest.name
        bits = f"{cheapest.bits_per_byte:.4f} bits per byte"
        lead += f" Without a network, {name} needs fewer: {bits}."
    return lead


def _scored(assessments: Sequence[Assessment]) -> list[tuple[str, Scores, int]]:
    """Return name, scores and model index of every scoring, those by dynamic evaluation too."""
    return [
        (one.checkpoint + more, scores, place)
        for place, one in enumerate(assessments)
        for scores, more in ((one.scores, ""), (one.dynamic, ", dynamic"))
        if scores is not None
    ]


def inspection_page(portrait: Portrait, text: str, origin: Origin) -> str:
    """Return the page of an inspection.

    Args:
        portrait: of the inspected model.
        text: what it was inspected on, in words.
        origin: how the page was made.
    """
    unit, in_bytes = _unit([portrait])
    sections = [
        *inside_sections([portrait], ""),
        page.section("Training", _training([portrait])),
        learning_section(own_runs([portrait]), "", unit),
        _samples([portrait]),
        _excerpts([portrait], "The beginning of the inspected text"),
    ]
    title, lead = f"Inside {portrait.label}", _inspection_lead(portrait) + in_bytes
    return page.document("inspect", title, lead, text, sections, origin)


def _training(portraits: Sequence[Portrait]) -> str:
    """Return how each model was trained, and once what all have in common."""
    common, own = trained_how([one.run for one in portraits])
    says = [f"{one.label}: {how}" for one, how in zip(portraits, own, strict=True)]
    return page.bullets([f"Common to all: {common}", *says] if common else says)


def _inspection_lead(portrait: Portrait) -> str:
    shape, inspection = portrait.run.shape, portrait.inspection
    assert inspection is not None
    lead = (
        f"{shape.cell.upper()} {shape.layers} x {shape.hidden}, inspected on "
        f"{inspection.characters:,} characters."
    )
    if inspection.gradient_flow:
        last = shape.layers
        of_layer = f" of layer {last}" if last > 1 else ""
        along = {"h": f"its state h{of_layer}", "c": "its memory c"}
        reaches = [
            r for r in inspection.gradient_flow[0].reaches if r.layer == last and r.state in along
        ]
        if all(r.size for r in reaches):
            falls = [f"{_falls(r)} along {along[r.state]}" for r in reaches]
            lead += f" The gradient {joined(falls, 'and')}."
    if inspection.memory is not None:
        lead += f" As context, {enough_says(inspection.memory)}."
    return lead


def _falls(reach: Reach) -> str:
    """Say after how many characters a gradient stays under 1 %, if it does."""
    lag, by_mean = reach.median_under_1_percent_at, reach.under_1_percent_at
    mean = ""
    if lag != by_mean:
        mean = f" (the mean after {by_mean:,})" if by_mean is not None else " (the mean does not)"
    if lag is None:
        within = counted(reach.farthest, "character")
        return f"does not stay under 1 % in the median within {within}{mean}"
    return f"stays under 1 % in the median after {counted(lag, 'character')}{mean}"


# Scores ----------------------------------------------------------------------------------


def _result_section(comparison: Comparison, portraits: Sequence[Portrait], unit: str) -> str:
    part, seeds = words.scored_part(comparison.plan), comparison.plan.seeds
    predictions = counted(comparison.cells[0].best.characters, "prediction")
    spread = (
        f"The bar is the mean over {words.seeds_meant(comparison)}, hollow marks are single seeds."
        if seeds > 1
        else "With one seed each, how much of a difference is chance is not known."
    )
    return page.section(
        "Result",
        page.figure(
            [(f"Loss on the {part}", _result_chart(comparison, unit))],
            f"Nats per {unit} on the {predictions} of the {part}; further left is better. {spread}",
        ),
        page.table(words.comparison_lines(comparison), word_columns=2),
        page.bullets(words.comparison_says(comparison)),
        _training(portraits),
    )


def _result_chart(comparison: Comparison, unit: str) -> str:
    cells = comparison.cells
    several = comparison.plan.seeds > 1
    singles = [[run.nats_per_char for run in cell.runs] for cell in cells] if several else ()
    means = [cell.nats_per_char for cell in cells]
    dots = Dots("mean", means, style=range(len(cells)), around=singles)
    return dot_chart(
        "result",
        "Loss of each cell",
        [cell.cell.upper() for cell in cells],
        [dots],
        x_label=f"nats per {unit}",
        form=".4f",
    )


def _score_chart(assessments: Sequence[Assessment], looks: Sequence[int], unit: str) -> str:
    """Return the chart of the bits that models and baselines need.

    Args:
        assessments: of the models.
        looks: their numbers for ``model_style``.
        unit: "character" or "byte": what the bits are counted per.
    """
    by_byte, short = unit == "byte", shortened(one.checkpoint for one in assessments)
    assessments = [replace(one, checkpoint=short[one.checkpoint]) for one in assessments]
    rows = [
        (name, scores.bits_per_byte if by_byte else scores.bits_per_char, model_style(looks[place]))
        for name, scores, place in _scored(assessments)
    ]
    beside: dict[str, float] = {}
    for row in words.baseline_rows(assessments):
        # Per byte, a compressor needs the same bits whichever the model.
        name = row.baseline.name if by_byte and row.baseline.of_text else row.name
        beside.setdefault(name, row.bits_per_byte if by_byte else row.baseline.bits_per_char)
    rows += [(name, bits, PLAIN) for name, bits in beside.items()]
    names, values, styles = zip(*rows, strict=True)
    return dot_chart(
        "scores",
        f"Bits per {unit} of each model and baseline",
        names,
        [Dots("bits", values, styles)],
        x_label=f"bits per {unit}",
        form=".4f",
    )


def _positions(
    assessments: Sequence[Assessment],
    looks: Sequence[int],
    units: Sequence[str],
    unit: str,
) -> str:
    """Return the section on the loss by position; an empty string if it was not asked for.

    Args:
        assessments: of the models.
        looks: their numbers for ``model_style``.
        units: the symbols that each of them predicts.
        unit: "character" or "byte": only the models that predict those are shown.
    """
    measured = [
        (look, one.checkpoint, one.by_position)
        for one, look, its in zip(assessments, looks, units, strict=True)
        if one.by_position is not None and its == unit
    ]
    if not measured:
        return ""
    short = shortened(one.checkpoint for one in assessments)
    chart = line_chart(
        f"positions-{unit}",
        "Loss by position after a reset of the state",
        [
            Line(short[label], *_grouped(scores.nats_T), model_style(look))
            for look, label, scores in measured
        ],
        x_label=f"{unit}s of context",
        y_label=f"nats per {unit}",
        x_log=True,
    )
    stretches = dict.fromkeys(words.stretches_say(scores) for _, _, scores in measured)
    return page.section(
        "Loss by position" + per(unit),
        page.figure(
            [("Loss against context", chart)],
            f"What a {unit} costs, by the {unit}s read since the zero state; "
            f"{' or '.join(stretches)} of text.",
        ),
        page.tables(
            [(label, words.position_lines(scores)) for _, label, scores in measured],
            word_columns=0,
        ),
    )


def _grouped(nats_T: NDArray[np.float64]) -> tuple[list[int], list[float]]:
    """Return positions, from 1, and mean losses of groups equally wide on a logarithmic axis."""
    edges = list(itertools.pairwise(spaced(len(nats_T) + 2)))
    middles = [round(math.sqrt(first * (after - 1))) for first, after in edges]
    return middles, [float(nats_T[first - 1 : after - 1].mean()) for first, after in edges]


# Texts -----------------------------------------------------------------------------------


def _samples(portraits: Sequence[Portrait]) -> str:
    units = dict.fromkeys(f"{portrait.run.unit}s" for portrait in portraits)
    how = f"--length {SAMPLE.length} --temperature {SAMPLE.temperature:g} --seed {SAMPLE.seed}"
    return page.section(
        "Samples",
        page.texts(
            (one.label, page.plain(one.sample, f"Sample of {one.label}")) for one in portraits
        ),
        page.note(
            f"What each model writes by itself, {SAMPLE.length} {' or '.join(units)} from an empty "
            f"prompt, all from the same random numbers (charrnn sample RUN {how})."
            if len(portraits) > 1
            else f"What the model writes by itself (charrnn sample RUN {how})."
        ),
    )


def _excerpts(portraits: Sequence[Portrait], what: str) -> str:
    ranges = [(f"bits-{level}", bits) for level, bits in enumerate(surprise_ranges())]
    return page.section(
        "Surprise",
        page.legend(ranges, "What each character costs, in bits: "),
        page.texts((one.label, _excerpt(one)) for one in portraits),
        page.note(
            f"{what}, read from the zero state, so that the first characters are hard for every "
            "model. Grey characters were foreseen; marked ones took the model by surprise."
        ),
    )


def _excerpt(portrait: Portrait) -> str:
    """Return an excerpt coloured by each character's loss, and its total in bits."""
    pieces = [
        (surprise_mark(c, nats) + c, f"bits-{surprise(nats)}") for c, nats in portrait.excerpt
    ]
    # A text's first byte is given, so a character made of that byte alone costs nothing.
    (given, first), *_ = portrait.excerpt
    priced = len(portrait.excerpt)
    if first == 0:
        pieces[0], priced = (given, ""), priced - 1
    bits = in_bits(sum(nats for _, nats in portrait.excerpt))
    return page.coloured(pieces, f"Text as {portrait.label} sees it") + page.note(
        f"{bits:,.0f} bits for {counted(priced, 'character')}, {bits / max(1, priced):.2f} each."
        + _most_surprising(portrait.excerpt)
    )


def _most_surprising(excerpt: Sequence[tuple[str, float]]) -> str:
    """Name the costliest characters, for who does not see colours; empty if none is costly."""
    costly = [n for n, (_, nats) in enumerate(excerpt) if surprise(nats) >= 2]
    costly = sorted(costly, key=lambda n: -excerpt[n][1])[:COSTLIEST]
    # "at" also because a number directly after right-to-left text would be displayed before it.
    said = [
        f"{''.join(c for c, _ in excerpt[max(0, n - BEFORE) : n + 1])!r} at "
        f"{in_bits(excerpt[n][1]):.1f} bits"
        for n in costly
    ]
    return f" Most surprising is the last character of {joined(said, 'and')}." if said else ""
