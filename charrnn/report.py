"""What the page holds that a comparison, an evaluation or an inspection leaves behind.

Tables, figures as inline SVG, samples and coloured text. The numbers are those of the
records that the terminal's tables are made of. The HTML is that of ``page``.

Axis letters: T positions, N points of a curve.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from charrnn import page
from charrnn.activity import NEARLY_CLOSED, NEARLY_OPEN, Activation, GateUse, UnitFound
from charrnn.assessment import Assessment
from charrnn.comparison import Comparison, RunResult
from charrnn.figures import (
    Dots,
    Line,
    Rule,
    dot_chart,
    line_chart,
    saturation_chart,
)
from charrnn.flow import GradientFlow
from charrnn.gradients import Clipping, Truncation
from charrnn.inspection import Inspection
from charrnn.inspection_view import (
    ALWAYS,
    CUTS_SAY,
    PACE_SAYS,
    clipping_lines,
    clipping_says,
    cut_lines,
    enough_says,
    gate_lines,
    gradient_flow_lines,
    mark,
    memory_lines,
    memory_says,
    pace_lines,
    radius_says,
    step_lines,
    step_says,
    truncation_lines,
    truncation_says,
    unit_lines,
    units_say,
)
from charrnn.memory import Memory
from charrnn.page import Origin
from charrnn.portrait import SAMPLE, Portrait, Row
from charrnn.properties import PROPERTIES
from charrnn.score_view import (
    assessment_lines,
    assessments_say,
    baseline_rows,
    comparison_lines,
    comparison_says,
    perplexity_figure,
    position_lines,
    scored_part,
    stretches_say,
    surprise,
    surprise_mark,
    surprise_ranges,
)
from charrnn.wording import counted, cut_word

__all__ = ["assessment_page", "comparison_page", "inspection_page"]

#: The grey style: of what is no model.
PLAIN = 5
#: Points of a training curve; more rows than these are averaged in groups.
POINTS = 150
#: What the lines of a training are the loss on.
HELD_OUT, LEARNT = "what is held out to validate", "the text being learnt"
#: Share of a training from which on its losses set the scale: what is before is a cliff.
SCALE_FROM = 0.1
#: Below this share of the gradient at lag 0 the figures show nothing.
FAINTEST = 1e-5
#: Nor above this: a matrix that stretches soon leaves every scale.
LOUDEST = 1e4
#: Steps of the colours that show a unit's state, each way from zero.
SHADES = 5


# The three pages -------------------------------------------------------------------------


def comparison_page(
    comparison: Comparison,
    portraits: Sequence[Portrait],
    logs: Sequence[tuple[RunResult, Sequence[Row]]],
    origin: Origin,
) -> str:
    """Return the page of a comparison.

    Args:
        comparison: what came out.
        portraits: of each cell's best run, in the order of the comparison's cells.
        logs: of every run.
        origin: how the page comes about.
    """
    plan, part = comparison.plan, scored_part(comparison.plan)
    runs = [
        _Run(run.cell.upper() if run.seed == plan.seed else "", plan.cells.index(run.cell), log)
        for run, log in logs
    ]
    validated = comparison.cells[0].best.valid_nats_per_char is not None
    chosen = "best run by validation" if validated else "first run"
    sections = [
        _result_section(comparison),
        _curves(
            runs,
            "Seeds of one cell share a style; the first is named. " if plan.seeds > 1 else "",
        ),
        *_inside(portraits, f"Each cell's {chosen}, on the {part}."),
        _samples(portraits),
        _excerpts(portraits, f"The beginning of the {part}"),
    ]
    text = ", ".join(plan.texts) or "Python's own sources"
    name = {0: text, 1: Path(text).name}.get(len(plan.texts), "the same texts")
    title = f"{page.listed([cell.cell.upper() for cell in comparison.cells])} on {name}"
    return page.document("compare", title, _comparison_lead(comparison), text, sections, origin)


def _comparison_lead(comparison: Comparison) -> str:
    best = min(comparison.cells, key=lambda cell: cell.nats_per_char)
    lead = (
        f"{best.cell.upper()} predicts the {scored_part(comparison.plan)} best: "
        f"{best.nats_per_char:.4f} nats per character, "
        f"{best.nats_per_char / math.log(2):.4f} bits."
    )
    if not comparison.differences:
        return lead
    first = comparison.differences[0]
    if comparison.plan.seeds == 1:
        chance = "from one seed each"
    else:
        chance = "more than chance makes likely" if first.supported else "which may be chance"
    return f"{lead} It is {first.nats:.4f} nats ahead of {first.worse.upper()}, {chance}."


def assessment_page(
    assessments: Sequence[Assessment],
    portraits: Sequence[Portrait],
    text: str,
    origin: Origin,
) -> str:
    """Return the page of an evaluation.

    Args:
        assessments: what was measured.
        portraits: of the same models, in the same order.
        text: what was scored, in words.
        origin: how the page comes about.
    """
    labels = [portrait.label for portrait in portraits]
    units = ["byte" if one.of_bytes else "character" for one in assessments]
    differ = len({one.scores.characters for one in assessments}) > 1
    unit = "byte" if differ or "byte" in units else "character"
    runs = _own_runs(portraits)
    by_unit = {of: [run for run in runs if units[run.style] == of] for of in units}
    sections = [
        page.section(
            "Scores",
            page.figure(
                [(f"Bits per {unit}", _score_chart(assessments, labels, unit))],
                "What it takes to write the text down once the model is known, in bits per "
                f"{unit}; further left is better."
                + (" Per byte, since not all models count the same characters." if differ else ""),
            ),
            page.table(assessment_lines(assessments), words=2),
            page.bullets(assessments_say(assessments)),
        ),
        *(_positions(assessments, labels, units, of) for of in by_unit),
        *(
            _curves(drawn, _other_texts([portraits[run.style] for run in drawn]), of)
            for of, drawn in by_unit.items()
        ),
        _samples(portraits),
        _excerpts(portraits, "The beginning of the text"),
    ]
    title, lead = f"Scores of {page.listed(labels)}", _assessment_lead(assessments, labels)
    return page.document("evaluate", title, lead, text, sections, origin)


def _assessment_lead(assessments: Sequence[Assessment], labels: Sequence[str]) -> str:
    # Bits per byte compare whatever the symbols are: one model's may be bytes.
    best, label = min(
        zip(assessments, labels, strict=True), key=lambda pair: pair[0].scores.bits_per_byte
    )
    scores = best.scores
    per_character = "" if best.of_bytes else f"{scores.bits_per_char:.4f} per character, "
    lead = (
        f"{label}{' needs the fewest bits' if len(assessments) > 1 else ''}: "
        f"{scores.bits_per_byte:.4f} bits per byte, {per_character}"
        f"perplexity {perplexity_figure(scores.perplexity)}."
    )
    beside = baseline_rows(assessments, labels)
    cheapest = min(beside, key=lambda row: row.bits_per_byte, default=None)
    if cheapest is None or cheapest.bits_per_byte >= scores.bits_per_byte:
        return lead
    name = cheapest.baseline.name if cheapest.baseline.of_text else cheapest.name
    return (
        f"{lead} Without a network, {name} needs fewer: {cheapest.bits_per_byte:.4f} bits per byte."
    )


def inspection_page(inspection: Inspection, portrait: Portrait, text: str, origin: Origin) -> str:
    """Return the page of an inspection.

    Args:
        inspection: what was measured.
        portrait: of the model.
        text: what was looked at, in words.
        origin: how the page comes about.
    """
    sections = [
        *_inside([portrait], ""),
        _curves(_own_runs([portrait]), ""),
        _samples([portrait]),
        _excerpts([portrait], "The beginning of what was looked at"),
    ]
    title, lead = f"Inside {portrait.label}", _inspection_lead(inspection, portrait)
    return page.document("inspect", title, lead, text, sections, origin)


def _inspection_lead(inspection: Inspection, portrait: Portrait) -> str:
    shape = portrait.shape
    lead = (
        f"{shape.cell.upper()} {shape.layers} x {shape.hidden}, looked into on "
        f"{inspection.characters:,} characters."
    )
    if inspection.gradient_flow:
        last, reaches = shape.layers, inspection.gradient_flow[0].reaches
        reach = next(r for r in reaches if r.layer == last and r.state == "h")
        lag, farthest = reach.under_1_percent_at, reach.farthest
        after = f"beyond {farthest:,}" if lag is None else f"after {lag:,}"
        of_layer = f" of layer {last}" if last > 1 else ""
        lead += f" Along its state h{of_layer} the gradient falls under 1 % {after} characters."
    if inspection.memory is not None:
        lead += f" As context, {enough_says(inspection.memory)}."
    return lead


# Scores ----------------------------------------------------------------------------------


def _result_section(comparison: Comparison) -> str:
    part, seeds = scored_part(comparison.plan), comparison.plan.seeds
    spread = (
        f"The bar is the mean over {seeds} seeds, hollow marks are single seeds."
        if seeds > 1
        else "One seed each: the spread that chance makes is not known."
    )
    return page.section(
        "Result",
        page.figure(
            [(f"Loss on the {part}", _result_chart(comparison))],
            f"Nats per character on the {comparison.cells[0].best.characters:,} predictions of the "
            f"{part}; further left is better. {spread}",
        ),
        page.table(comparison_lines(comparison), words=2),
        page.bullets(comparison_says(comparison)),
    )


def _result_chart(comparison: Comparison) -> str:
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
        x_label="nats per character",
        form=".4f",
    )


def _score_chart(assessments: Sequence[Assessment], labels: Sequence[str], unit: str) -> str:
    """Return the chart of what models and baselines cost.

    Args:
        assessments: of the models.
        labels: the models' names.
        unit: "character" or "byte": what the bits are counted per.
    """
    by_byte = unit == "byte"
    rows: list[tuple[str, float, int]] = []
    for style, (one, label) in enumerate(zip(assessments, labels, strict=True)):
        for scores, more in ((one.scores, ""), (one.dynamic, ", dynamic")):
            if scores is not None:
                bits = scores.bits_per_byte if by_byte else scores.bits_per_char
                rows.append((label + more, bits, style))
    drawn = set()
    for row in baseline_rows(assessments, labels):
        # By the byte a compressor's price is the same for all.
        once = by_byte and row.baseline.of_text
        name = row.baseline.name if once else row.name
        if not (once and name in drawn):
            bits = row.bits_per_byte if by_byte else row.baseline.bits_per_char
            rows.append((name, bits, PLAIN))
            drawn.add(name)
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
    assessments: Sequence[Assessment], labels: Sequence[str], units: Sequence[str], unit: str
) -> str:
    """Return the section on the loss by position; nothing where it was not asked for.

    Args:
        assessments: of the models.
        labels: the models' names.
        units: what each of them predicts one by one.
        unit: "character" or "byte": only the models that predict those are shown.
    """
    measured = [
        (style, label, one.by_position)
        for style, (one, label) in enumerate(zip(assessments, labels, strict=True))
        if one.by_position is not None and units[style] == unit
    ]
    if not measured:
        return ""
    chart = line_chart(
        f"positions-{unit}",
        "Loss by position after a reset of the state",
        [Line(label, *_grouped(scores.nats_T), style) for style, label, scores in measured],
        x_label=f"{unit}s of context",
        y_label=f"nats per {unit}",
        x_log=True,
    )
    stretches = dict.fromkeys(stretches_say(scores) for _, _, scores in measured)
    return page.section(
        "Loss by position" + _per(unit),
        page.figure(
            [("Loss against context", chart)],
            f"What a {unit} costs with so many {unit}s read since a state of zero; "
            f"{' or '.join(stretches)} of text.",
        ),
        page.tables([(label, position_lines(scores)) for _, label, scores in measured], words=0),
    )


def _grouped(nats_T: NDArray[np.float64]) -> tuple[list[int], list[float]]:
    """Return positions from 1 on and their means, in groups equally wide on a logarithmic axis."""
    edges = list(itertools.pairwise(_spaced(len(nats_T) + 2)))
    middles = [round(math.sqrt(first * (after - 1))) for first, after in edges]
    return middles, [float(nats_T[first - 1 : after - 1].mean()) for first, after in edges]


def _spaced(length: int) -> list[int]:
    """Return numbers from 1 below a length, evenly along a logarithmic axis."""
    return sorted(set(np.geomspace(1, max(1, length - 1), 60).round().astype(int).tolist()))


def _per(unit: str) -> str:
    """Return what sets a section on models of bytes apart from that on those of characters."""
    return " per byte" if unit == "byte" else ""


# Training --------------------------------------------------------------------------------


class _Run(NamedTuple):
    """A training whose losses are drawn."""

    label: str
    """Empty: it is not named."""
    style: int
    log: Sequence[Row]


class _Curve(NamedTuple):
    """A training's losses; N points of characters, seconds and nats."""

    label: str
    style: int
    on: str
    """What the main line is the loss on."""
    main_N3: NDArray[np.float64]
    thin_N3: NDArray[np.float64]
    """What accompanies it; may be empty."""


def _own_runs(portraits: Sequence[Portrait]) -> list[_Run]:
    """Return the runs that models come from; one that several come from only once."""
    runs: list[_Run] = []
    for style, portrait in enumerate(portraits):
        if portrait.log not in [run.log for run in runs]:
            runs.append(_Run(portrait.label, style, portrait.log))
    return runs


def _other_texts(portraits: Sequence[Portrait]) -> str:
    """Say so if the losses of models' trainings are not on one text."""
    if len({portrait.validated_on for portrait in portraits if portrait.log}) < 2:
        return ""
    return "Not all runs' losses are on the same text: compare shapes, not heights. "


def _curves(runs: Sequence[_Run], more: str, unit: str = "character") -> str:
    """Return the section on the loss during training; nothing where no log says it.

    Args:
        runs: the trainings.
        more: a sentence on what is drawn, with a space after it.
        unit: "character" or "byte": what all of the models predict one by one.
    """
    curves = [curve for run in runs if (curve := _curve(run)) is not None]
    ends = [
        f"{curve.label} {curve.main_N3[-1, 2]:.4f} "
        f"({'validation' if curve.on == HELD_OUT else 'training'})"
        for curve in curves
        if curve.label
    ]
    if not ends:
        return ""
    y_all = np.concatenate(
        [points_N3[:, 2] for curve in curves for points_N3 in (curve.main_N3, curve.thin_N3)]
    )
    low, top = float(y_all.min()), max(_settled_most(curve.main_N3) for curve in curves)
    room = 0.06 * (top - low) or 0.1
    on = " or ".join(dict.fromkeys(curve.on for curve in curves))
    thin = f"; thin lines: on {LEARNT}" if any(len(curve.thin_N3) for curve in curves) else ""
    is_cut = y_all.max() > top + room
    cut = f" What lies above {top + room:.2f}, at the start, is cut off." if is_cut else ""
    return page.section(
        "Learning" + _per(unit),
        page.figure(
            _curve_charts(curves, unit, (low - room, top + room)),
            f"Marked lines: loss on {on}{thin}. {more}"
            f"Nats per {unit} where the named lines end: {', '.join(ends)}.{cut}",
        ),
    )


def _curve_charts(
    curves: Sequence[_Curve], unit: str, y_range: tuple[float, float]
) -> list[tuple[str, str]]:
    """Return the losses against what was read, and against time."""
    axes = ((f"{unit}s", f"{unit}s read"), ("seconds", "seconds of training"))
    return [
        (
            f"Against {name}",
            line_chart(
                f"curves-{unit}-{name}",
                f"Loss during training, against {name}",
                [line for curve in curves for line in _curve_lines(curve, axis)],
                x_label=x_label,
                y_label=f"nats per {unit}",
                y_range=y_range,
            ),
        )
        for axis, (name, x_label) in enumerate(axes)
    ]


def _curve(run: _Run) -> _Curve | None:
    """Return a run's losses: on what is held out, with the others beside, or those alone."""
    trained = _thinned(_losses(run.log, "train_nats_per_char"))
    validated = _losses(run.log, "valid_nats_per_char")
    if len(validated):
        return _Curve(run.label, run.style, HELD_OUT, validated, trained)
    if len(trained):
        return _Curve(run.label, run.style, LEARNT, trained, trained[:0])
    return None


def _losses(log: Sequence[Row], name: str) -> NDArray[np.float64]:
    """Return characters, seconds and loss [N, 3] of the rows that have this loss."""
    rows = [[row.get(n) for n in ("characters", "seconds", name)] for row in log]
    usable = [
        row
        for row in rows
        if all(isinstance(value, int | float) and math.isfinite(value) for value in row)
    ]
    return np.array(usable, dtype=np.float64).reshape(-1, 3)


def _thinned(points_N3: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return means of consecutive groups of points where there are too many."""
    if len(points_N3) <= POINTS:
        return points_N3
    return np.array([group.mean(axis=0) for group in np.array_split(points_N3, POINTS)])


def _settled_most(points_N3: NDArray[np.float64]) -> float:
    """Return the largest loss after a training's beginning."""
    characters_N = points_N3[:, 0]
    return float(points_N3[characters_N >= SCALE_FROM * characters_N[-1], 2].max())


def _curve_lines(curve: _Curve, axis: int) -> Iterator[Line]:
    """Yield a training's lines against characters (0) or seconds (1)."""
    for label, points_N3 in (("", curve.thin_N3), (curve.label, curve.main_N3)):
        x, y = points_N3[:, axis].tolist(), points_N3[:, 2].tolist()
        yield Line(label, x, y, curve.style, faint=points_N3 is curve.thin_N3)


# Inside the models -----------------------------------------------------------------------

T = TypeVar("T")


class _Model(NamedTuple):
    """A model that was looked into, as its section shows it."""

    name: str
    """In figures and tables; empty where it is the page's only model."""
    style: int
    portrait: Portrait


#: One measurement of the models that have it.
Measured = Sequence[tuple[_Model, T]]


def _inside(portraits: Sequence[Portrait], seen: str) -> Iterator[str]:
    """Yield the sections on what the recurrences do.

    Args:
        portraits: of one model or several; those that were not looked into are left out.
        seen: a sentence on which models, and on what.
    """
    looked = [
        (_Model(portrait.label if len(portraits) > 1 else "", style, portrait), found)
        for style, portrait in enumerate(portraits)
        if (found := portrait.inspection) is not None
    ]
    alone = looked[0][1] if len(looked) == 1 else None
    if alone is not None and (step := alone.step):
        yield page.section(
            "The step", page.note(step_says(step)), page.table(step_lines(step), words=3)
        )
    if flows := [(model, found.gradient_flow) for model, found in looked if found.gradient_flow]:
        yield _flow_section(flows, seen)
    if memories := [(model, found.memory) for model, found in looked if found.memory]:
        yield _memory_section(memories, seen)
    if paces := [(model, found.pace) for model, found in looked if found.pace]:
        yield page.section("Pace", page.note(f"{PACE_SAYS} {seen}"), _tables(pace_lines, paces))
    if gates := [(model, found.gates) for model, found in looked if found.gates]:
        yield _gate_section(gates, seen)
    units = [(model, found.units) for model, found in looked if found.units]
    activations = [found.activation for _, found in looked if found.activation]
    if units or activations:
        following = _following(units, seen) if units else ""
        yield page.section("Units", following, *map(_activation, activations))
    if histories := [(model, found.clipping) for model, found in looked if found.clipping]:
        yield _clipping_section(histories)
    if cuts := [(model, found.cuts) for model, found in looked if found.cuts]:
        yield page.section(
            "A cut gradient", page.note(f"{CUTS_SAY} {seen}"), _tables(cut_lines, cuts)
        )
    if alone is not None and alone.truncation:
        yield _truncation_section(alone.truncation)


def _tables(
    lines: Callable[[T], Sequence[Sequence[str]]], measured: Measured[T], words: int = 1
) -> str:
    """Return a table a model."""
    return page.tables([(model.name, lines(value)) for model, value in measured], words)


def _beside(figure: str, tables: str, measured: Measured[T]) -> str:
    """Return a figure and its tables, side by side if there is one table."""
    return page.beside(figure, tables) if len(measured) == 1 else figure + tables


def _flow_section(flows: Measured[tuple[GradientFlow, ...]], seen: str) -> str:
    first = flows[0][1][0]
    linear = ""
    if any(reach.state == "linear" for _, (flow, *_) in flows for reach in flow.reaches):
        linear = " Linear"
        linear += " (in the table)" if len(flows) > 1 else ""
        linear += ": through the recurrent matrix alone, as if tanh were a straight line."
    radii = radius_says([flow for _, of_model in flows for flow in of_model])
    return page.section(
        "Gradient flow",
        page.figure(
            _flow_charts(flows),
            "What is left of the gradient of one character's loss, k characters before it, as a "
            "share of what it is at the character itself; k from 1 to "
            f"{first.reaches[0].farthest}, means of {first.places} places, both axes "
            "logarithmic. The gradient vanishes along a line that goes on falling, and explodes "
            f"along one that goes on rising, which is not drawn above {LOUDEST:,.0f}; in the first "
            "few characters a line may rise because more ways lead back, through other layers or "
            f"an LSTM's c.{linear} {radii} {seen}",
        ),
        _tables(gradient_flow_lines, flows),
    )


def _flow_charts(flows: Measured[tuple[GradientFlow, ...]]) -> list[tuple[str, str]]:
    """Return a chart for each kind of weights: all models in one."""
    charts = [
        (_weights(flow), _flow_lines([(model, of_model[number]) for model, of_model in flows]))
        for number, flow in enumerate(flows[0][1])
    ]
    every = [y for _, lines in charts for line in lines for y in line.y if math.isfinite(y)]
    lowest = min((y for y in every if y > FAINTEST), default=0.1)
    highest = max(every, default=1.0)
    return [
        (
            title,
            line_chart(
                f"flow-{number}",
                f"Gradient flow, {title.lower()}",
                lines,
                x_label="k, characters back",
                y_label="share of the gradient left",
                x_log=True,
                y_log=True,
                y_range=(lowest / 1.3, min(LOUDEST, max(1.2, 1.2 * highest))),
                rules=(Rule("half", 0.5), Rule("1 %", 0.01)),
            ),
        )
        for number, (title, lines) in enumerate(charts)
        if any(y > 0 for line in lines for y in line.y)
    ]


def _flow_lines(flows: Measured[GradientFlow]) -> list[Line]:
    """Return the lines of one kind of weights."""
    several = len(flows) > 1
    lines = []
    memories = itertools.count(max(model.style for model, _ in flows) + 1)
    for model, flow in flows:
        for number, reach in enumerate(flow.reaches):
            label, style = f"{reach.state} {reach.layer}", number
            if several:
                # One layer speaks for a model among others, that next to the head; and
                # what is a picture only of one cell stays in its table.
                if reach.layer < model.portrait.shape.layers or reach.state == "linear":
                    continue
                label = f"{model.name} {reach.state}"
                style = model.style if reach.state == "h" else next(memories)
            lags = _spaced(len(reach.relative))
            lines.append(Line(label, lags, [reach.relative[k] for k in lags], style))
    return lines


def _weights(flow: GradientFlow) -> str:
    name = {"trained": "Trained", "initial": "Untrained"}[flow.weights]
    return name if flow.scaled_to is None else f"{name}, radius {flow.scaled_to:g}"


def _memory_section(memories: Measured[Memory], seen: str) -> str:
    chart, tolerance = _memory_chart(memories), memories[0][1].tolerance
    figure = page.figure(
        [("Cost of forgetting", chart)] if chart else [],
        "Nats per character that a state costs which was reset k characters before, more than "
        f"one carried on. Below {tolerance:g} more context counts as useless. Bands: one standard "
        f"error. {seen}",
    )
    says = (
        f"{model.name}: {memory.full_nats:.4f} nats with the state carried on; "
        f"{enough_says(memory)}."
        if model.name
        else memory_says(memory)
        for model, memory in memories
    )
    tables = _tables(memory_lines, memories, words=0)
    return page.section("Memory", page.bullets(says), _beside(figure, tables, memories))


def _memory_chart(memories: Measured[Memory]) -> str:
    """Return the chart of the memory; nothing where no reset costs anything."""
    lines = []
    for model, memory in memories:
        lags = _spaced(len(memory.excess_nats))
        more, error = (
            np.array(values)[lags] for values in (memory.excess_nats, memory.standard_error)
        )
        band = (more - error).tolist(), (more + error).tolist()
        lines.append(Line(model.name, lags, more.tolist(), model.style, band=band))
    highest, tolerance = max(y for line in lines for y in line.y), memories[0][1].tolerance
    if highest <= 0:
        return ""
    return line_chart(
        "memory",
        "Loss that a reset of the state costs, by characters since",
        lines,
        x_label="k, characters since the reset",
        y_label="nats per character more",
        x_log=True,
        y_log=True,
        y_range=(tolerance / 5, max(2 * tolerance, 1.3 * highest)),
        rules=(Rule(f"{tolerance:g} nats", tolerance),),
    )


def _gate_section(gates: Measured[tuple[GateUse, ...]], seen: str) -> str:
    panels = [
        (
            f"{model.name} {use.gate} {use.layer}".strip(),
            saturation_chart(
                f"gate-{model.style}-{use.gate}-{use.layer}",
                f"{model.portrait.label}: {use.gate} gate of layer {use.layer}",
                use.closed_share,
                use.open_share,
                model.style,
            ),
        )
        for model, uses in gates
        for use in uses
    ]
    return page.section(
        "Gates",
        page.figure(
            panels,
            "A dot a unit, larger where several coincide: to the right the share of characters at "
            f"which its gate is nearly closed (below {NEARLY_CLOSED}), upwards nearly open (above "
            f"{NEARLY_OPEN}). On the dashed line a gate is never in between. {seen} In the table: "
            "the mean shares, and the units for which it is so at "
            f"{100 * ALWAYS:.0f} % of characters.",
            small=True,
        ),
        _tables(gate_lines, gates),
    )


def _following(units: Measured[tuple[UnitFound, ...]], seen: str) -> str:
    """Return the figure and tables of the units that follow the text."""
    figure = page.figure(
        [("Units that follow the text", _unit_chart(units))],
        f"{units_say(units[0][1])} Shown is the size of the correlation. {seen}",
    )
    return _beside(figure, _tables(unit_lines, units), units)


def _unit_chart(units: Measured[tuple[UnitFound, ...]]) -> str:
    sizes = [{unit.property: abs(unit.correlation) for unit in found} for _, found in units]
    rows = [name for name in PROPERTIES if any(name in of_model for of_model in sizes)]
    rows.sort(key=lambda name: -max(of_model.get(name, 0.0) for of_model in sizes))
    series = [
        Dots(model.portrait.label, [of_model.get(name) for name in rows], model.style)
        for (model, _), of_model in zip(units, sizes, strict=True)
    ]
    return dot_chart(
        "units",
        "How well the best unit follows each property of the text",
        rows,
        series,
        x_label="size of the correlation",
        x_range=(0, 1),
        form=".2f",
    )


def _activation(shown: Activation) -> str:
    """Return a text coloured by a unit's state."""
    largest = max(map(abs, shown.values))
    states = [
        (
            mark(character) + ("\n" if character == "\n" else ""),
            round(SHADES * value / largest) if largest else 0,
        )
        for character, value in zip(shown.text, shown.values, strict=True)
    ]

    def name(shade: int) -> str:
        return f"{'up' if shade > 0 else 'down'}-{abs(shade)}" if shade else ""

    ends = ((-SHADES, f"{-largest:.2g}"), (0, "0"), (SHADES, f"{largest:.2g}"))
    return (
        page.heading(f"Unit {shown.unit} along the text")
        + page.coloured(states, name, "Coloured text")
        + page.legend(
            [(name(shade), value) for shade, value in ends],
            "State of the unit after each character: ",
        )
    )


def _clipping_section(histories: Measured[Clipping]) -> str:
    return page.section(
        "Clipping",
        page.figure(
            _clipping_charts(histories),
            "Gradient norms during training, in periods of about equal length. Lines: medians; "
            "bands: 10 to 90 % of the norms in the log.",
        ),
        page.bullets(
            (f"{model.name}: " if model.name else "") + clipping_says(history)
            for model, history in histories
        ),
        _tables(clipping_lines, histories),
    )


def _clipping_charts(histories: Measured[Clipping]) -> list[tuple[str, str]]:
    norms, shares, rules = [], [], []
    for model, history in histories:
        steps = [(p.first_step + p.last_step) / 2 for p in history.periods]
        low, middle, high = zip(*((p.low, p.median, p.high) for p in history.periods), strict=True)
        norms.append(Line(model.name, steps, middle, model.style, band=(low, high)))
        clipped = [p.clipped_share for p in history.periods]
        shares.append(Line(model.name, steps, clipped, model.style))
        if history.clip_norm is not None:
            rules.append(Rule(f"clipped above {history.clip_norm:g}", history.clip_norm))
        if history.scale_norm is not None:
            rules.append(Rule(f"scaled to {history.scale_norm:g}", history.scale_norm))
    cut = cut_word(histories[0][1].scale_norm)  # the same for all: a comparison scales none
    return [
        ("Gradient norms", line_chart(
            "norms", "Norms of the gradient during training", norms, x_label="step",
            y_label="norm of the gradient", y_log=True, rules=tuple(dict.fromkeys(rules)),
        )),
        (f"Share of updates {cut}", line_chart(
            "clipped", f"Share of the updates whose gradient was {cut}", shares, x_label="step",
            y_label=f"updates {cut}", y_range=(-0.03, 1.03), y_percent=True,
        )),
    ]  # fmt: skip


def _truncation_section(truncations: Sequence[Truncation]) -> str:
    lines = [
        Line(
            truncation.weights,
            [window.bptt for window in truncation.windows],
            [window.angle for window in truncation.windows],
            style,
        )
        for style, truncation in enumerate(truncations)
    ]
    panels = []
    if angles := [angle for line in lines for angle in line.y if math.isfinite(angle)]:
        chart = line_chart(
            "truncation",
            "Angle between the gradient by windows and the full one",
            lines,
            x_label="characters a window",
            y_label="degrees from the full gradient",
            x_log=True,
            y_range=(0, 1.1 * max(angles) + 1),
        )
        panels.append(("Direction of a truncated gradient", chart))
    return page.section(
        "Truncation",
        page.figure(panels, truncation_says(truncations[0])),
        page.tables([("", truncation_lines(truncations))], words=1),
    )


# Texts -----------------------------------------------------------------------------------


def _samples(portraits: Sequence[Portrait]) -> str:
    how = f"--length {SAMPLE.length} --temperature {SAMPLE.temperature:g} --seed {SAMPLE.seed}"
    return page.section(
        "Samples",
        page.texts(
            (one.label, page.plain(one.sample, f"Sample of {one.label}")) for one in portraits
        ),
        page.note(
            f"What each model writes by itself: {SAMPLE.length} characters from an empty prompt, "
            f"all from the same random numbers (charrnn sample RUN {how})."
            if len(portraits) > 1
            else f"What the model writes by itself (charrnn sample RUN {how})."
        ),
    )


def _excerpts(portraits: Sequence[Portrait], what: str) -> str:
    ranges = [(f"bits-{level}", words) for level, words in enumerate(surprise_ranges())]
    return page.section(
        "Surprise",
        page.legend(ranges, "What each character costs, in bits: "),
        page.texts((one.label, _excerpt(one)) for one in portraits),
        page.note(
            f"{what}, read from a state of zero, so that the first characters are hard for every "
            "model. Grey characters were foreseen; marked ones took the model by surprise."
        ),
    )


def _excerpt(portrait: Portrait) -> str:
    """Return a text coloured by its prices, and what it costs."""
    pieces = [(surprise_mark(c, nats) + c, surprise(nats)) for c, nats in portrait.excerpt]
    # The first byte of a text is given; what it is the whole of has no price.
    (_, first), *_ = portrait.excerpt
    priced = len(portrait.excerpt) - (first == 0)
    bits = sum(nats for _, nats in portrait.excerpt) / math.log(2)
    return page.coloured(
        pieces, lambda level: f"bits-{level}", f"Text as {portrait.label} sees it"
    ) + page.note(
        f"{bits:,.0f} bits for {counted(priced, 'character')}, {bits / max(1, priced):.2f} each."
    )
