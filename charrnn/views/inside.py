"""Build a page's sections on what was measured inside models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from charrnn.analysis.activity import (
    ALWAYS,
    NEARLY_CLOSED,
    NEARLY_OPEN,
    Activation,
    GateUse,
    UnitFound,
)
from charrnn.analysis.flow import GradientFlow
from charrnn.analysis.gradients import Truncation
from charrnn.analysis.memory import Memory
from charrnn.analysis.norms import Clipping
from charrnn.analysis.properties import PROPERTIES
from charrnn.views import inspection_words as words
from charrnn.views import page
from charrnn.views.figures import (
    Dots,
    Line,
    Rule,
    dot_chart,
    in_colour_of,
    line_chart,
    saturation_chart,
    spaced,
)
from charrnn.views.portrait import Portrait
from charrnn.wording import cut_word

#: Below this share of the gradient at lag 0 the figures show nothing.
FAINTEST = 1e-5
#: Nor above this: exploding gradients are unbounded.
LOUDEST = 1e4
#: Shades of the colours that show a unit's state, on each side of zero.
SHADES = 5
#: On a page of one model, the style whose colour each state has: h has the model's. On a page of
#: several, a colour is a model's, whatever the state. ``ALONE`` is that of a gate, and of a
#: gradient through one factor alone: such a gate, or "linear".
STATES, ALONE = {"h": 0, "c": 1}, 2


T = TypeVar("T")


class _Model(NamedTuple):
    """An inspected model, as its section shows it."""

    name: str
    """Its name in figures and tables; empty if it is the page's only model."""
    style: int
    portrait: Portrait


#: One kind of measurement, with the models that have it.
Measured = Sequence[tuple[_Model, T]]


def inside_sections(portraits: Sequence[Portrait], seen: str) -> Iterator[str]:
    """Yield the sections on what the recurrences do.

    Args:
        portraits: of one model or several; those that were not inspected are left out.
        seen: a sentence that says which models were inspected, and on what.
    """
    looked = [
        (_Model(portrait.label if len(portraits) > 1 else "", style, portrait), found)
        for style, portrait in enumerate(portraits)
        if (found := portrait.inspection) is not None
    ]
    alone = looked[0][1] if len(looked) == 1 else None
    if alone is not None and (step := alone.step):
        yield page.section(
            "The step",
            page.note(words.step_says(step, alone.cell)),
            page.table(words.step_lines(step), word_columns=3),
        )
    if flows := [(model, found.gradient_flow) for model, found in looked if found.gradient_flow]:
        yield _flow_section(flows, seen)
    if memories := [(model, found.memory) for model, found in looked if found.memory]:
        yield _memory_section(memories, seen)
    if paces := [(model, found.pace) for model, found in looked if found.pace]:
        said = words.pace_says(pace for _, of_model in paces for pace in of_model)
        yield page.section(
            "Pace",
            _findings(words.pace_found, paces),
            page.note(f"{said} {seen}"),
            _tables(words.pace_lines, paces),
        )
    if gates := [(model, found.gates) for model, found in looked if found.gates]:
        yield _gate_section(gates, seen)
    units = [(model, found.units) for model, found in looked if found.units]
    activations = [found.activation.last() for _, found in looked if found.activation]
    if units or activations:
        following = _following(units, seen) if units else ""
        yield page.section("Units", following, *map(_activation, activations))
    if histories := [(model, found.clipping) for model, found in looked if found.clipping]:
        yield _clipping_section(histories)
    if cuts := [(model, found.cuts) for model, found in looked if found.cuts]:
        yield page.section(
            "A cut gradient",
            _findings(words.cuts_found, cuts),
            page.note(f"{words.CUTS_SAY} {seen}"),
            _tables(words.cut_lines, cuts, heads=2),
        )
    if alone is not None and alone.truncation:
        yield _truncation_section(alone.truncation)


def _findings(found: Callable[[T], str], measured: Measured[T]) -> str:
    """Return what was found in each model, in a sentence, as bullets."""
    said = [(model.name, sentence) for model, value in measured if (sentence := found(value))]
    # After a name and a colon.
    return page.bullets(f"{name}: {s[0].lower()}{s[1:]}" if name else s for name, s in said)


def _tables(
    lines: Callable[[T], Sequence[Sequence[str]]],
    measured: Measured[T],
    word_columns: int = 1,
    heads: int | None = None,
) -> str:
    """Return one table per model."""
    titled = [(model.name, lines(value)) for model, value in measured]
    return page.tables(titled, word_columns, heads)


def _beside(figure: str, tables: str, measured: Measured[T]) -> str:
    """Return a figure and its tables, side by side if there is one table."""
    return page.beside(figure, tables) if len(measured) == 1 else figure + tables


def _flow_section(flows: Measured[tuple[GradientFlow, ...]], seen: str) -> str:
    first = flows[0][1][0]
    every = [flow for _, of_model in flows for flow in of_model]
    cells = [model.portrait.run.shape.cell for model, _ in flows]
    said = [sentences for cell, sentences in words.BACK.items() if cell in cells]
    if len(flows) > 1 and any(flow.direct for flow in every):
        said.append("The paths by a gate alone are in the tables.")
    if any(reach.state == "linear" for flow in every for reach in flow.reaches):
        where = " (in the table)" if len(flows) > 1 else ""
        said.append(f"Linear{where}: {words.LINEAR_SAYS}")
    said.append(words.columns_say(every))
    return page.section(
        "Gradient flow",
        _findings(words.flow_found, flows),
        page.figure(
            _flow_charts(flows),
            "What is left of the gradient of one character's loss k characters earlier, as a "
            "share of its size at the character itself; k from 1 to "
            f"{first.reaches[0].farthest}, medians of {first.places} places, both axes "
            "logarithmic. The gradient vanishes along a line that keeps falling, and explodes "
            f"along one that keeps rising, which is not drawn above {LOUDEST:,.0f}; what is too "
            "small for the axis, or zero, is at the bottom. Over the first few characters a "
            "line may rise because more paths lead back, through other layers or an LSTM's c. "
            f"{seen}",
        ),
        page.bullets(said),
        _tables(words.gradient_flow_lines, flows, heads=3),
    )


def _flow_charts(flows: Measured[tuple[GradientFlow, ...]]) -> list[tuple[str, str]]:
    """Return one chart per kind of weights, with all models in it."""
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
                y_floor=True,
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
        for number, reach in enumerate(flow.reaches if several else flow.rows):
            label = f"{reach.state} {reach.layer}"
            style = in_colour_of(STATES.get(reach.state, ALONE), number)
            if several:
                # Of several models only the layer next to the head is drawn; and "linear", which
                # only a plain RNN has, is left to the table, as the direct paths of others are.
                if reach.layer < model.portrait.run.shape.layers or reach.state == "linear":
                    continue
                label = f"{model.name} {reach.state}"
                style = model.style
                if reach.state != "h":
                    style = in_colour_of(model.style, next(memories))
            lags = spaced(len(reach.median))
            lines.append(Line(label, lags, [reach.median[k] for k in lags], style))
    return lines


def _weights(flow: GradientFlow) -> str:
    name = flow.weights.capitalize()
    return name if flow.scaled_to is None else f"{name}, radius {flow.scaled_to:g}"


def _memory_section(memories: Measured[Memory], seen: str) -> str:
    chart, tolerance = _memory_chart(memories), memories[0][1].tolerance
    # For a single model the bullet says this.
    said = ""
    if len(memories) > 1:
        zero = "" if memories[0][1].reset_state else f" {words.ZERO_SAYS}"
        said = f"{zero} {words.COSTS_SAY}"
    figure = page.figure(
        [("Cost of forgetting", chart)] if chart else [],
        "Extra nats per character when the state was reset k characters before, compared with a "
        "state carried on; resets that cost less than the axis shows are at "
        "the bottom. "
        f"Below {tolerance:g} more context counts as useless. Bands: one standard error.{said} "
        f"{seen}",
    )
    says = (
        f"{model.name}: {memory.full_nats:.4f} nats with the state carried on, over the "
        f"characters that have at least {memory.longest:,} before them; "
        f"{words.enough_says(memory)}."
        if model.name
        else words.memory_says(memory)
        for model, memory in memories
    )
    tables = _tables(words.memory_lines, memories, word_columns=0)
    return page.section("Memory", page.bullets(says), _beside(figure, tables, memories))


def _memory_chart(memories: Measured[Memory]) -> str:
    """Return the chart of the memory; an empty string if no reset costs anything."""
    lines = []
    for model, memory in memories:
        lags = spaced(len(memory.excess_nats))
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
        "Extra loss after a reset of the state, by characters since",
        lines,
        x_label="k, characters since the reset",
        y_label="extra nats per character",
        x_log=True,
        y_log=True,
        y_floor=True,
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
                model.style if model.name else ALONE,
            ),
        )
        for model, uses in gates
        for use in uses
    ]
    return page.section(
        "Gates",
        _findings(words.gates_found, gates),
        page.figure(
            panels,
            "One dot per unit, larger where several coincide. To the right: the share of "
            f"characters at which its gate is nearly closed (below {NEARLY_CLOSED}); upwards: "
            f"nearly open (above {NEARLY_OPEN}). A gate on the dashed line is never in between. "
            f"{words.gates_say([use for _, uses in gates for use in uses])} {seen} In the table: "
            "the mean shares; always: how many units have the gate nearly open, or nearly closed, "
            f"at more than {100 * ALWAYS:.0f} % of characters.",
            small=True,
        ),
        _tables(words.gate_lines, gates),
    )


def _following(units: Measured[tuple[UnitFound, ...]], seen: str) -> str:
    """Return the figure and tables of the units that follow the text."""
    figure = page.figure(
        [("Units that follow the text", _unit_chart(units))],
        f"{words.units_say(units[0][1])} The figure shows the size of the correlation on the "
        f"second half. {seen}",
    )
    found = _findings(words.units_found, units)
    return found + _beside(figure, _tables(words.unit_lines, units, word_columns=3), units)


def _unit_chart(units: Measured[tuple[UnitFound, ...]]) -> str:
    memories = itertools.count(max(model.style for model, _ in units) + 1)
    sizes: list[tuple[str, int, dict[str, float]]] = []
    for model, found in units:
        # h first, as everywhere; the findings are sorted by correlation.
        for state in sorted({one.unit.state for one in found}, reverse=True):
            style = model.style
            if state != "h":
                style = in_colour_of(model.style if model.name else STATES[state], next(memories))
            of_state = {one.property: abs(one.correlation) for one in found
                        if one.unit.state == state}  # fmt: skip
            sizes.append((f"{model.name} {state}".strip(), style, of_state))
    rows = [name for name in PROPERTIES if any(name in of_state for *_, of_state in sizes)]
    rows.sort(key=lambda name: -max(of_state.get(name, 0.0) for *_, of_state in sizes))
    series = [
        Dots(label, [of_state.get(name) for name in rows], style)
        for label, style, of_state in sizes
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
    lowest, highest = words.activation_ends(shown)

    def name(shade: int) -> str:
        return f"{'up' if shade > 0 else 'down'}-{abs(shade)}" if shade else ""

    states = [
        (words.mark(character) + ("\n" if character == "\n" else ""), name(round(SHADES * share)))
        for character, share in zip(shown.text, shown.shares, strict=True)
    ]
    ends = ((-SHADES, lowest), (0, "0"), (SHADES, highest))
    return (
        page.heading(f"Unit {shown.unit} along the text")
        + page.coloured(states, "Coloured text")
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
            f"bands: from the 10 % quantile to the largest. {words.NORMS_SAY}",
        ),
        page.bullets(
            (f"{model.name}: " if model.name else "") + words.clipping_says(history)
            for model, history in histories
        ),
        _tables(words.clipping_lines, histories),
    )


def _clipping_charts(histories: Measured[Clipping]) -> list[tuple[str, str]]:
    """Return the charts of norms and of clipped shares, unless all values are zero."""
    norms, shares, rules = [], [], []
    for model, history in histories:
        steps = [(p.first_step + p.last_step) / 2 for p in history.periods]
        ends = ((p.low, p.median, p.largest) for p in history.periods)
        low, middle, high = zip(*ends, strict=True)
        norms.append(Line(model.name, steps, middle, model.style, band=(low, high)))
        clipped = [p.clipped_share for p in history.periods]
        shares.append(Line(model.name, steps, clipped, model.style))
        if history.clip_norm is not None:
            rules.append(Rule(f"clipped above {history.clip_norm:g}", history.clip_norm))
        if history.scale_norm is not None:
            rules.append(Rule(f"scaled to {history.scale_norm:g}", history.scale_norm))
    cut = cut_word(histories[0][1].scale_norm)  # the same for all: a comparison scales none
    charts = []
    # A model that is certain of its text has no gradient.
    if any(norm > 0 for line in norms for norm in line.y):
        charts.append(("Gradient norms", line_chart(
            "norms", "Norms of the gradient during training", norms, x_label="step",
            y_label="norm of the gradient", y_log=True, rules=tuple(dict.fromkeys(rules)),
        )))  # fmt: skip
    # If nothing was clipped, all lines would coincide at zero.
    if any(share > 0 for line in shares for share in line.y):
        charts.append((f"Share of updates {cut}", line_chart(
            "clipped", f"Share of the updates whose gradient was {cut}", shares, x_label="step",
            y_label=f"updates {cut}", y_range=(-0.03, 1.03), y_percent=True,
        )))  # fmt: skip
    return charts


def _truncation_section(truncations: Sequence[Truncation]) -> str:
    lines = []
    for style, truncation in enumerate(truncations):  # of the page's only model
        # The user may give them in any order.
        windows = sorted(truncation.windows, key=lambda window: window.bptt)
        angles = [window.angle for window in windows]
        look = in_colour_of(STATES["h"], style)
        lines.append(Line(truncation.weights, [window.bptt for window in windows], angles, look))
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
        page.bullets(filter(None, [words.truncation_found(truncations)])),
        page.figure(panels, words.truncation_says(truncations), nothing="there is no gradient"),
        page.tables([("", words.truncation_lines(truncations))], word_columns=1, heads=3),
    )
