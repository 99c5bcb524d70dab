"""What the page holds that a comparison, an evaluation or an inspection leaves behind.

Tables, figures as inline SVG, samples and coloured text. The numbers are those of the
records that the terminal's tables are made of. The HTML is that of ``page``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn import page
from charrnn.assessment import Assessment
from charrnn.comparison import Comparison, RunResult
from charrnn.display import counted, cut_word
from charrnn.figures import (
    Dots,
    Line,
    Rule,
    dot_chart,
    line_chart,
    saturation_chart,
)
from charrnn.gradients import Truncation
from charrnn.inspection import (
    NEARLY_CLOSED,
    NEARLY_OPEN,
    Activation,
    GradientFlow,
    Inspection,
)
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
from charrnn.page import Origin
from charrnn.portrait import SAMPLE, Portrait, Row
from charrnn.properties import PROPERTIES
from charrnn.score_view import (
    SURPRISE,
    after_says,
    assessment_lines,
    baseline_rows,
    baselines_say,
    characters_say,
    comparison_lines,
    comparison_says,
    perplexity_figure,
    position_lines,
    surprise,
)

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
    plan = comparison.plan
    cells = [cell.cell.upper() for cell in comparison.cells]
    says = list(comparison_says(comparison))
    ranked = sorted(comparison.cells, key=lambda cell: cell.nats_per_char)
    part = "test part" if plan.test_share else "validation part"
    best = ranked[0]
    lead = (
        f"{best.cell.upper()} predicts the {part} best: {best.nats_per_char:.4f} nats per "
        f"character, {best.nats_per_char / math.log(2):.4f} bits."
    )
    if comparison.differences:
        first = comparison.differences[0]
        lead += f" It is {first.nats:.4f} nats ahead of {first.worse.upper()}, "
        lead += (
            "more than chance makes likely."
            if first.supported
            else "which may be chance."
            if plan.seeds > 1
            else "from one seed each."
        )
    runs = [
        (
            result.cell.upper() if result.seed == plan.seed else "",
            plan.cells.index(result.cell),
            log,
        )
        for result, log in logs
    ]
    chosen = "first run" if best.best.valid_nats_per_char is None else "best run by validation"
    seen = f"Each cell's {chosen}, on the {part}."
    sections = [
        page.section(
            "Result",
            page.figure(
                [(f"Loss on the {part}", _result_chart(comparison))],
                f"Nats per character on the {best.best.characters:,} predictions of the {part}; "
                "further left is better. "
                + (
                    f"The bar is the mean over {plan.seeds} seeds, hollow marks are single seeds."
                    if plan.seeds > 1
                    else "One seed each: the spread that chance makes is not known."
                ),
            ),
            page.table(comparison_lines(comparison), words=2),
            page.bullets(says),
        ),
        _curves(
            runs,
            "Seeds of one cell share a style; the first is named. " if plan.seeds > 1 else "",
        ),
        *_inside(portraits, seen),
        _samples(portraits),
        _excerpts(portraits, f"The beginning of the {part}"),
    ]
    text = ", ".join(plan.texts) or "Python's own sources"
    name = Path(plan.texts[0]).name if len(plan.texts) == 1 else "the same texts"
    name = name if plan.texts else text
    return page.document("compare", f"{page.listed(cells)} on {name}", lead, text, sections, origin)


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
    # Bits per byte compare whatever the symbols are: one model's may be bytes.
    best, name = min(
        zip(assessments, (p.label for p in portraits), strict=True),
        key=lambda pair: pair[0].scores.bits_per_byte,
    )
    scores = best.scores
    per_character = "" if best.of_bytes else f"{scores.bits_per_char:.4f} per character, "
    lead = (
        f"{name}{' needs the fewest bits' if len(assessments) > 1 else ''}: "
        f"{scores.bits_per_byte:.4f} bits per byte, {per_character}"
        f"perplexity {perplexity_figure(scores.perplexity)}."
    )
    beside = baseline_rows(assessments, [portrait.label for portrait in portraits])
    cheaper = min(beside, key=lambda row: row.bits_per_byte, default=None)
    if cheaper is not None and cheaper.bits_per_byte < scores.bits_per_byte:
        short = cheaper.baseline.name if cheaper.baseline.of_text else cheaper.name
        lead += f" Without a network, {short} needs fewer: "
        lead += f"{cheaper.bits_per_byte:.4f} bits per byte."
    units = ["byte" if one.of_bytes else "character" for one in assessments]
    differ = len({one.scores.characters for one in assessments}) > 1
    unit = "byte" if differ or "byte" in units else "character"
    runs = _own_runs(portraits)
    by_unit = {of: [run for run in runs if units[run[1]] == of] for of in units}
    sections = [
        page.section(
            "Scores",
            page.figure(
                [(f"Bits per {unit}", _score_chart(assessments, portraits, unit))],
                "What it takes to write the text down once the model is known, in bits per "
                f"{unit}; further left is better."
                + (" Per byte, since not all models count the same characters." if differ else ""),
            ),
            page.table(assessment_lines(assessments), words=2),
            page.bullets([*characters_say(assessments), *baselines_say(assessments)]),
            page.bullets(after_says(one) for one in assessments if one.after),
        ),
        *(_positions(assessments, portraits, units, of) for of in dict.fromkeys(units)),
        *(
            _curves(drawn, _other_texts([portraits[style] for _, style, _ in drawn]), of)
            for of, drawn in by_unit.items()
        ),
        _samples(portraits),
        _excerpts(portraits, "The beginning of the text"),
    ]
    names = page.listed([portrait.label for portrait in portraits])
    return page.document("evaluate", f"Scores of {names}", lead, text, sections, origin)


def inspection_page(inspection: Inspection, portrait: Portrait, text: str, origin: Origin) -> str:
    """Return the page of an inspection.

    Args:
        inspection: what was measured.
        portrait: of the model.
        text: what was looked at, in words.
        origin: how the page comes about.
    """
    shape = portrait.shape
    kind = f"{shape.cell.upper()} {shape.layers} x {shape.hidden}"
    lead = f"{kind}, looked into on {inspection.characters:,} characters."
    if inspection.gradient_flow:
        last = portrait.shape.layers
        reaches = inspection.gradient_flow[0].reaches
        reach = next(r for r in reaches if r.layer == last and r.state == "h")
        lag, farthest = reach.under_1_percent_at, len(reach.relative) - 1
        after = f"beyond {farthest:,}" if lag is None else f"after {lag:,}"
        of_layer = f" of layer {last}" if last > 1 else ""
        lead += f" Along its state h{of_layer} the gradient falls under 1 % {after} characters."
    if inspection.memory is not None:
        lead += f" As context, {enough_says(inspection.memory)}."
    sections = [
        *_inside([portrait], ""),
        _curves(_own_runs([portrait]), ""),
        _samples([portrait]),
        _excerpts([portrait], "The beginning of what was looked at"),
    ]
    return page.document("inspect", f"Inside {portrait.label}", lead, text, sections, origin)


def _own_runs(portraits: Sequence[Portrait]) -> list[tuple[str, int, Sequence[Row]]]:
    """Return the runs that models come from; one that several come from only once."""
    runs: list[tuple[str, int, Sequence[Row]]] = []
    for style, portrait in enumerate(portraits):
        if portrait.log not in [log for _, _, log in runs]:
            runs.append((portrait.label, style, portrait.log))
    return runs


def _other_texts(portraits: Sequence[Portrait]) -> str:
    """Say so if the losses of models' trainings are not on one text."""
    if len({portrait.validated_on for portrait in portraits if portrait.log}) < 2:
        return ""
    return "Not all runs' losses are on the same text: compare shapes, not heights. "


# Scores ----------------------------------------------------------------------------------


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


def _score_chart(
    assessments: Sequence[Assessment], portraits: Sequence[Portrait], unit: str
) -> str:
    """Return the chart of what models and baselines cost.

    Args:
        assessments: of the models.
        portraits: of the same.
        unit: "character" or "byte": what the bits are counted per.
    """
    rows: list[tuple[str, float, int]] = []
    for style, (one, portrait) in enumerate(zip(assessments, portraits, strict=True)):
        for scores, more in ((one.scores, ""), (one.dynamic, ", dynamic")):
            if scores is not None:
                bits = scores.bits_per_byte if unit == "byte" else scores.bits_per_char
                rows.append((portrait.label + more, bits, style))
    drawn = set()
    for row in baseline_rows(assessments, [portrait.label for portrait in portraits]):
        # By the byte a compressor's price is the same for all.
        once = unit == "byte" and row.baseline.of_text
        name = row.baseline.name if once else row.name
        if not (once and name in drawn):
            bits = row.bits_per_byte if unit == "byte" else row.baseline.bits_per_char
            rows.append((name, bits, PLAIN))
            drawn.add(name)
    return dot_chart(
        "scores",
        f"Bits per {unit} of each model and baseline",
        [name for name, _, _ in rows],
        [Dots("bits", [bits for _, bits, _ in rows], [style for _, _, style in rows])],
        x_label=f"bits per {unit}",
        form=".4f",
    )


def _positions(
    assessments: Sequence[Assessment],
    portraits: Sequence[Portrait],
    units: Sequence[str],
    unit: str,
) -> str:
    """Return the section on the loss by position; nothing where it was not asked for.

    Args:
        assessments: of the models.
        portraits: of the same.
        units: what each of them predicts one by one.
        unit: "character" or "byte": only the models that predict those are shown.
    """
    measured = [
        (style, portrait, one.by_position)
        for style, (one, portrait) in enumerate(zip(assessments, portraits, strict=True))
        if one.by_position is not None and units[style] == unit
    ]
    if not measured:
        return ""
    lines = [
        Line(portrait.label, *_grouped(scores.nats_T), style)
        for style, portrait, scores in measured
    ]
    chart = line_chart(
        f"positions-{unit}",
        "Loss by position after a reset of the state",
        lines,
        x_label=f"{unit}s of context",
        y_label=f"nats per {unit}",
        x_log=True,
    )
    windows = sorted({scores.windows for _, _, scores in measured})
    return page.section(
        "Loss by position" + _per(unit),
        page.figure(
            [("Loss against context", chart)],
            f"What a {unit} costs with so many {unit}s read since a state of zero; means of "
            f"{' or '.join(f'{number:,}' for number in windows)} stretches of text.",
        ),
        '<div class="tables">\n',
        *(
            page.table(position_lines(scores), words=0, title=portrait.label)
            for _, portrait, scores in measured
        ),
        "</div>\n",
    )


def _per(unit: str) -> str:
    """Return what sets a section on models of bytes apart from that on those of characters."""
    return " per byte" if unit == "byte" else ""


def _curves(
    runs: Sequence[tuple[str, int, Sequence[Row]]], more: str, unit: str = "character"
) -> str:
    """Return the section on the loss during training; nothing where no log says it."""
    lines: dict[str, list[Line]] = {f"{unit}s": [], "seconds": []}
    ends, tops, all_y = [], [], []
    marked: dict[str, None] = {}
    thin = ""
    for label, style, log in runs:
        trained = _usable(log, "train_nats_per_char")
        validated = _usable(log, "valid_nats_per_char")
        main = validated or trained
        if not main:
            continue
        marked[HELD_OUT if validated else LEARNT] = None
        if validated and trained:
            thin = f"; thin lines: on {LEARNT}"
        if label:
            word = "validation" if validated else "training"
            ends.append(f"{label} {main[-1][2]:.4f} ({word})")
        for number, name in enumerate(lines):
            if validated and trained:
                x, y = _thinned([row[number] for row in trained], [row[2] for row in trained])
                lines[name].append(Line("", x, y, style, faint=True))
            x, y = [row[number] for row in main], [row[2] for row in main]
            lines[name].append(Line(label, x, y, style))
        all_y += [row[2] for row in (*trained, *validated)]
        tops += [row[2] for row in main if row[0] >= SCALE_FROM * main[-1][0]]
    if not ends:
        return ""
    top, low = max(tops), min(all_y)
    room = 0.06 * (top - low) or 0.1
    charts = [
        (
            f"Against {name}",
            line_chart(
                f"curves-{unit}-{name}",
                f"Loss during training, against {name}",
                drawn,
                x_label=x_label,
                y_label=f"nats per {unit}",
                y_range=(low - room, top + room),
            ),
        )
        for (name, drawn), x_label in zip(
            lines.items(), (f"{unit}s read", "seconds of training"), strict=True
        )
    ]
    cut = (
        f" What lies above {top + room:.2f}, at the start, is cut off." if max(all_y) > top else ""
    )
    return page.section(
        "Learning" + _per(unit),
        page.figure(
            charts,
            f"Marked lines: loss on {' or '.join(marked)}{thin}. {more}"
            f"Nats per {unit} where the named lines end: {', '.join(ends)}.{cut}",
        ),
    )


def _usable(log: Sequence[Row], name: str) -> list[tuple[float, float, float]]:
    """Return characters, seconds and loss of the rows that have this loss."""
    names = ("characters", "seconds", name)
    rows = [tuple(row.get(n) for n in names) for row in log]
    return [
        (float(a), float(b), float(c))
        for a, b, c in rows
        if isinstance(a, int | float)
        and isinstance(b, int | float)
        and isinstance(c, int | float)
        and math.isfinite(c)
    ]


def _thinned(x: Iterable[float], y: Iterable[float]) -> tuple[list[float], list[float]]:
    """Return means of consecutive groups of points where there are too many."""
    x_N, y_N = np.array(list(x), dtype=np.float64), np.array(list(y), dtype=np.float64)
    groups = np.array_split(np.arange(len(x_N)), min(POINTS, len(x_N)))
    return [float(x_N[g].mean()) for g in groups], [float(y_N[g].mean()) for g in groups]


def _grouped(nats_T: NDArray[np.float64]) -> tuple[list[int], list[float]]:
    """Return positions from 1 on and their means, in groups equally wide on a logarithmic axis."""
    edges = list(itertools.pairwise(_spaced(len(nats_T) + 2)))
    middles = [round(math.sqrt(first * (after - 1))) for first, after in edges]
    return middles, [float(nats_T[first - 1 : after - 1].mean()) for first, after in edges]


# Inside the models -----------------------------------------------------------------------

#: Models that were looked into, each with the number of its style.
Looked = Sequence[tuple[int, Portrait, Inspection]]


def _inside(portraits: Sequence[Portrait], seen: str) -> Iterator[str]:
    """Yield the sections on what the recurrences do.

    Args:
        portraits: of one model or several; those that were not looked into are left out.
        seen: a sentence on which models, and on what.
    """
    looked = [(style, p, p.inspection) for style, p in enumerate(portraits) if p.inspection]
    if len(looked) == 1 and (step := looked[0][2].step):
        yield page.section(
            "The step", page.note(step_says(step)), page.table(step_lines(step), words=3)
        )
    if flows := [one for one in looked if one[2].gradient_flow]:
        yield _flow_section(flows, seen)
    if memories := [one for one in looked if one[2].memory]:
        yield _memory_section(memories, seen)
    if any(inspection.pace for _, _, inspection in looked):
        yield page.section(
            "Pace", page.note(f"{PACE_SAYS} {seen}"), _each(looked, pace_lines, "pace")
        )
    if any(inspection.gates for _, _, inspection in looked):
        yield _gate_section(looked, seen)
    if units := [one for one in looked if one[2].units or one[2].activation]:
        yield _unit_section(units, seen)
    if histories := [one for one in looked if one[2].clipping]:
        yield _clipping_section(histories)
    if any(inspection.cuts for _, _, inspection in looked):
        yield page.section(
            "A cut gradient", page.note(f"{CUTS_SAY} {seen}"), _each(looked, cut_lines, "cuts")
        )
    if len(looked) == 1 and (truncations := looked[0][2].truncation):
        yield _truncation_section(truncations)


def _each(
    looked: Looked, lines: Callable[[Any], list[list[str]]], measured: str, words: int = 1
) -> str:
    """Return a table a model, of one of its measurements; none where that is empty."""
    shown = "".join(
        page.table(lines(value), words, portrait.label if len(looked) > 1 else "")
        for _, portrait, inspection in looked
        if (value := getattr(inspection, measured))
    )
    return f'<div class="tables">\n{shown}</div>\n'


def _beside(looked: Looked, figure: str, tables: str) -> str:
    """Return a figure and its tables, side by side if there is one and room."""
    if len(looked) > 1:
        return figure + tables
    return f'<div class="beside">\n{figure}{tables}</div>\n'


def _flow_section(looked: Looked, seen: str) -> str:
    flows = [flow for _, _, inspection in looked for flow in inspection.gradient_flow]
    flow = flows[0]
    linear = ""
    if any(reach.state == "linear" for _, _, i in looked for reach in i.gradient_flow[0].reaches):
        linear = " Linear"
        linear += " (in the table)" if len(looked) > 1 else ""
        linear += ": through the recurrent matrix alone, as if tanh were a straight line."
    return page.section(
        "Gradient flow",
        page.figure(
            _flow_charts(looked),
            "What is left of the gradient of one character's loss, k characters before it, as a "
            "share of what it is at the character itself; k from 1 to "
            f"{len(flow.reaches[0].relative) - 1}, means of {flow.places} places, both axes "
            "logarithmic. The gradient vanishes along a line that goes on falling, and explodes "
            f"along one that goes on rising, which is not drawn above {LOUDEST:,.0f}; in the first "
            "few characters a line may rise because more ways lead back, through other layers or "
            f"an LSTM's c.{linear} {radius_says(flows)} {seen}",
        ),
        _each(looked, gradient_flow_lines, "gradient_flow"),
    )


def _memory_section(looked: Looked, seen: str) -> str:
    memories = [(portrait.label, i.memory) for _, portrait, i in looked if i.memory]
    tolerance = memories[0][1].tolerance
    chart = _memory_chart(looked)
    figure = page.figure(
        [("Cost of forgetting", chart)] if chart else [],
        "Nats per character that a state costs which was reset k characters before, more than "
        f"one carried on. Below {tolerance:g} more context counts as useless. Bands: one standard "
        f"error. {seen}",
    )
    if len(looked) > 1:
        says = [
            f"{label}: {memory.full_nats:.4f} nats with the state carried on; "
            f"{enough_says(memory)}."
            for label, memory in memories
        ]
    else:
        says = [memory_says(memory) for _, memory in memories]
    return page.section(
        "Memory",
        page.bullets(says),
        _beside(looked, figure, _each(looked, memory_lines, "memory", words=0)),
    )


def _gate_section(looked: Looked, seen: str) -> str:
    panels = []
    for style, portrait, inspection in looked:
        for use in inspection.gates:
            title = f"{portrait.label + ' ' if len(looked) > 1 else ''}{use.gate} {use.layer}"
            chart = saturation_chart(
                f"gate-{style}-{use.gate}-{use.layer}",
                f"{portrait.label}: {use.gate} gate of layer {use.layer}",
                use.closed_share,
                use.open_share,
                style,
            )
            panels.append((title, chart))
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
        _each(looked, gate_lines, "gates"),
    )


def _unit_section(looked: Looked, seen: str) -> str:
    found = [one for one in looked if one[2].units]
    figure = page.figure(
        [("Units that follow the text", _unit_chart(found))] if found else [],
        f"{units_say(looked[0][2].units)} Shown is the size of the correlation. {seen}",
    )
    return page.section(
        "Units",
        _beside(looked, figure, _each(looked, unit_lines, "units")) if found else "",
        *(_activation(i.activation) for _, _, i in looked if i.activation is not None),
    )


def _clipping_section(looked: Looked) -> str:
    several = len(looked) > 1
    return page.section(
        "Clipping",
        page.figure(
            _clipping_charts(looked),
            "Gradient norms during training, in periods of about equal length. Lines: medians; "
            "bands: 10 to 90 % of the norms in the log.",
        ),
        page.bullets(
            (f"{portrait.label}: " if several else "") + clipping_says(inspection.clipping)
            for _, portrait, inspection in looked
            if inspection.clipping is not None
        ),
        _each(looked, clipping_lines, "clipping"),
    )


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
    drawable = any(math.isfinite(angle) for line in lines for angle in line.y)
    chart = (
        line_chart(
            "truncation",
            "Angle between the gradient by windows and the full one",
            lines,
            x_label="characters a window",
            y_label="degrees from the full gradient",
            x_log=True,
            y_range=(0, 1.1 * max(a for line in lines for a in line.y if math.isfinite(a)) + 1),
        )
        if drawable
        else ""
    )
    return page.section(
        "Truncation",
        page.figure(
            [("Direction of a truncated gradient", chart)] if chart else [],
            truncation_says(truncations[0]),
        ),
        f'<div class="tables">\n{page.table(truncation_lines(truncations), words=1)}</div>\n',
    )


def _flow_charts(looked: Looked) -> list[tuple[str, str]]:
    """Return a chart for each kind of weights: all models in one."""
    several = len(looked) > 1
    charts = []
    for number, flow in enumerate(looked[0][2].gradient_flow):
        lines = []
        memories = itertools.count(max(style for style, _, _ in looked) + 1)
        for style, portrait, inspection in looked:
            for n, reach in enumerate(inspection.gradient_flow[number].reaches):
                if several:
                    # One layer speaks for a model among others, that next to the head; and
                    # what is a picture only of one cell stays in its table.
                    if reach.layer < portrait.shape.layers or reach.state == "linear":
                        continue
                    label = f"{portrait.label} {reach.state}"
                    chosen = style if reach.state == "h" else next(memories)
                else:
                    label, chosen = f"{reach.state} {reach.layer}", n
                lags = _spaced(len(reach.relative))
                lines.append(Line(label, lags, [reach.relative[k] for k in lags], chosen))
        charts.append((_weights(flow), lines))
    lowest = min(
        (y for _, lines in charts for line in lines for y in line.y if y > FAINTEST), default=0.1
    )
    highest = max(
        (y for _, lines in charts for line in lines for y in line.y if math.isfinite(y)),
        default=1.0,
    )
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


def _weights(flow: GradientFlow) -> str:
    name = {"trained": "Trained", "initial": "Untrained"}[flow.weights]
    return name if flow.scaled_to is None else f"{name}, radius {flow.scaled_to:g}"


def _spaced(length: int) -> list[int]:
    """Return numbers from 1 below a length, evenly along a logarithmic axis."""
    return sorted(set(np.geomspace(1, max(1, length - 1), 60).round().astype(int).tolist()))


def _memory_chart(looked: Looked) -> str:
    """Return the chart of the memory; nothing where no reset costs anything."""
    lines = []
    for style, portrait, inspection in looked:
        memory = inspection.memory
        assert memory is not None
        at = _spaced(len(memory.excess_nats))
        more, error = memory.excess_nats, memory.standard_error
        band = [more[k] - error[k] for k in at], [more[k] + error[k] for k in at]
        label = portrait.label if len(looked) > 1 else ""
        lines.append(Line(label, at, [more[k] for k in at], style, band=band))
        tolerance = memory.tolerance
    highest = max(y for line in lines for y in line.y)
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


def _unit_chart(looked: Looked) -> str:
    found = [{unit.property: unit for unit in inspection.units} for _, _, inspection in looked]
    rows = [name for name in PROPERTIES if any(name in units for units in found)]
    rows.sort(
        key=lambda name: -max(abs(units[name].correlation) for units in found if name in units)
    )
    series = [
        Dots(
            portrait.label,
            [abs(units[name].correlation) if name in units else None for name in rows],
            style,
        )
        for (style, portrait, _), units in zip(looked, found, strict=True)
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


def _clipping_charts(looked: Looked) -> list[tuple[str, str]]:
    norms, shares, rules = [], [], []
    for style, portrait, inspection in looked:
        history = inspection.clipping
        assert history is not None
        steps = [(p.first_step + p.last_step) / 2 for p in history.periods]
        label = portrait.label if len(looked) > 1 else ""
        low, middle, high = zip(*((p.low, p.median, p.high) for p in history.periods), strict=True)
        norms.append(Line(label, steps, middle, style, band=(low, high)))
        shares.append(Line(label, steps, [p.clipped_share for p in history.periods], style))
        if history.clip_norm is not None:
            rules.append(Rule(f"clipped above {history.clip_norm:g}", history.clip_norm))
        if history.scale_norm is not None:
            rules.append(Rule(f"scaled to {history.scale_norm:g}", history.scale_norm))
    cut = cut_word(history.scale_norm)  # for all: a comparison scales none
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


def _activation(shown: Activation) -> str:
    """Return a text coloured by a unit's state."""
    largest = max(map(abs, shown.values))

    def shade(value: float) -> int:
        return round(SHADES * value / largest) if largest else 0

    states = [
        (mark(character) + ("\n" if character == "\n" else ""), shade(value))
        for character, value in zip(shown.text, shown.values, strict=True)
    ]
    return (
        f"<h3>Unit {page.safe(str(shown.unit))} along the text</h3>\n"
        + page.coloured(
            states, lambda n: f"{'up' if n > 0 else 'down'}-{abs(n)}" if n else "", "Coloured text"
        )
        + page.legend(
            (
                (f"down-{SHADES}", f"{-largest:.2g}"),
                ("", "0"),
                (f"up-{SHADES}", f"{largest:.2g}"),
            ),
            "State of the unit after each character: ",
        )
    )


# Texts -----------------------------------------------------------------------------------


def _samples(portraits: Sequence[Portrait]) -> str:
    how = f"--length {SAMPLE.length} --temperature {SAMPLE.temperature:g} --seed {SAMPLE.seed}"
    blocks = "".join(
        f'<div class="text"><h3>{page.safe(portrait.label)}</h3>\n'
        f"{page.preformatted(page.safe(portrait.sample), f'Sample of {portrait.label}')}</div>\n"
        for portrait in portraits
    )
    return page.section(
        "Samples",
        f'<div class="texts">\n{blocks}</div>\n',
        page.note(
            f"What each model writes by itself: {SAMPLE.length} characters from an empty prompt, "
            f"all from the same random numbers (charrnn sample RUN {how})."
            if len(portraits) > 1
            else f"What the model writes by itself (charrnn sample RUN {how})."
        ),
    )


def _excerpts(portraits: Sequence[Portrait], what: str) -> str:
    blocks = []
    for portrait in portraits:
        levels = [
            (("↵" if c == "\n" and surprise(nats) > 1 else "") + c, surprise(nats))
            for c, nats in portrait.excerpt
        ]
        # The first byte of a text is given; what it is the whole of has no price.
        priced = [nats for _, nats in portrait.excerpt[portrait.excerpt[0][1] == 0 :]]
        bits = sum(priced) / math.log(2)
        blocks.append(
            f'<div class="text"><h3>{page.safe(portrait.label)}</h3>\n'
            + page.coloured(levels, lambda n: f"bits-{n}", f"Text as {portrait.label} sees it")
            + page.note(
                f"{bits:,.0f} bits for {counted(len(priced), 'character')}, "
                f"{bits / max(1, len(priced)):.2f} each."
            )
            + "</div>\n"
        )
    edges = [least for least, _ in SURPRISE]
    ranges = [
        ("bits-0", f"below {edges[0]:g}"),
        *(
            (f"bits-{n}", f"{low:g} to {high:g}")
            for n, (low, high) in enumerate(itertools.pairwise(edges), start=1)
        ),
        (f"bits-{len(edges)}", f"{edges[-1]:g} and above"),
    ]
    return page.section(
        "Surprise",
        page.legend(ranges, "What each character costs, in bits: "),
        f'<div class="texts">\n{"".join(blocks)}</div>\n',
        page.note(
            f"{what}, read from a state of zero, so that the first characters are hard for every "
            "model. Grey characters were foreseen; marked ones took the model by surprise."
        ),
    )
