"""Print a model's measurements as tables, small plots and coloured text in a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from charrnn.analysis.activity import (
    ALWAYS,
    NEARLY_CLOSED,
    NEARLY_OPEN,
    Activation,
    GateUse,
    UnitFound,
)
from charrnn.analysis.equations import Step
from charrnn.analysis.flow import GradientFlow
from charrnn.analysis.gradients import Truncation
from charrnn.analysis.inspection import Inspection
from charrnn.analysis.memory import Memory
from charrnn.analysis.norms import Clipping
from charrnn.config import CellName
from charrnn.views import inspection_words as words
from charrnn.views.terminal import Output, columns_of, fits, fitted, plain_table, print_words
from charrnn.wording import significant

BLOCKS = " ▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉"
BAR = 24
#: Most lags above 0 in a plot of the gradient flow: of 256, the powers of 2. A terminal of 80
#: columns seldom has room for more beside the table.
PLOT = 9
#: Below this share of the gradient at lag 0 the plot shows nothing.
FAINTEST = 1e-3
#: If a gradient grows, a full column stands for its largest value, within these limits: at least
#: the first, so that 1 is less than full; at most the second, as exploding gradients are unbounded.
FULL_FROM, LOUDEST = 2.7, 1e3


def print_inspection(inspection: Inspection) -> None:
    """Print all measurements on stdout."""
    console, wide = Output(), Output.wide()
    for title, said, shown in _sections(inspection):
        console.print(Text(title, style="bold underline"))
        print_words(said)
        (console if isinstance(shown, Text) else wide).print(shown)
        console.print()


def _sections(inspection: Inspection) -> Iterator[tuple[str, str, RenderableType]]:
    """Yield title, explanation and picture of each measurement."""
    if inspection.step is not None:
        yield "The step", words.step_says(inspection.step, inspection.cell), _step(inspection.step)
    if flows := inspection.gradient_flow:
        yield _gradient_flow(flows, inspection.cell)
    if inspection.memory is not None:
        yield "Memory", words.memory_says(inspection.memory), _memory(inspection.memory)
    if inspection.pace:
        said = _said(words.pace_found(inspection.pace), words.pace_says(inspection.pace))
        yield "Pace", said, fitted(words.pace_lines(inspection.pace), 1)
    if inspection.gates:
        yield _gates(inspection.gates)
    if inspection.units:
        found = [words.units_found(inspection.units), words.units_say(inspection.units)]
        if inspection.activation is None:
            unit = inspection.units[0].unit
            found.append(f"--unit colours the text by a unit, as in --unit {unit}.")
        yield "Units", _said(*found), _units(inspection.units)
    if inspection.activation is not None:
        yield _activation(inspection.activation.last())
    if inspection.clipping is not None:
        clipping = inspection.clipping
        said = f"{words.clipping_says(clipping)} {words.NORMS_SAY}"
        yield "Clipping", said, _clipping(clipping)
    if inspection.cuts:
        said = _said(words.cuts_found(inspection.cuts), words.CUTS_SAY)
        yield "A cut gradient", said, fitted(words.cut_lines(inspection.cuts), 1, names=2)
    if truncations := inspection.truncation:
        said = _said(words.truncation_found(truncations), words.truncation_says(truncations))
        yield "Truncation", said, _truncation(truncations)


def _said(*sentences: str) -> str:
    """Return what there is to say as one paragraph."""
    return " ".join(filter(None, sentences))


def _plotted(
    lines: Sequence[Sequence[str]],
    plot: str,
    pictures: Sequence[str],
    word_columns: int = 1,
    names: int = 1,
) -> tuple[RenderableType, bool]:
    """Return a table with a plot as its last column, if there is room for it, and whether it is.

    Args:
        lines: the head and the rows.
        plot: the plot's name in the head.
        pictures: one per row.
        word_columns: how many leading columns hold words.
        names: how many leading columns tell the rows apart.
    """
    plotted = zip(lines, (plot, *pictures), strict=True)
    table = plain_table([[*line, picture] for line, picture in plotted], word_columns)
    table.columns[-1].justify = "left"
    return (table, True) if fits(table) else (fitted(lines, word_columns, names), False)


def _bar(share: float) -> str:
    """Return a bar that fills a share of the full width."""
    whole, part = divmod(round(min(1.0, max(0.0, share)) * BAR * 8), 8)
    return "█" * whole + EIGHTHS[part].strip()


def _columns(shares: Sequence[float]) -> str:
    """Return one column per share of the full height; it is empty only for a share of 0."""
    return "".join(BLOCKS[math.ceil(min(1.0, max(0.0, share)) * 8)] for share in shares)


def _step(step: Step) -> RenderableType:
    """Return the table of the step, with fewer units on a narrow terminal."""
    lines = words.step_lines(step)
    while len(lines[0]) > 4 and not fits(plain_table(lines, 3)):
        lines = [line[:-1] for line in lines]
    if not fits(plain_table(lines, 3)):  # then its parts name their rows by layer and line alone
        short = {"by the model": "model", "next character": "next"}
        lines = [
            [layer, f"{line} {short.get(equation, '')}".strip(), equation, *units]
            for layer, line, equation, *units in lines
        ]
    return fitted(lines, 3, names=2)


def _gradient_flow(
    flows: Sequence[GradientFlow], cell: CellName
) -> tuple[str, str, RenderableType]:
    """Return title, explanation and picture of the gradient flow."""
    reaches = [reach for flow in flows for reach in flow.rows]
    farthest = reaches[0].farthest
    lags = sorted({0, *np.geomspace(1, farthest, PLOT).round().astype(int).tolist()})
    drawn = [[reach.median[k] for k in lags] for reach in reaches]
    most = max((left for shares in drawn for left in shares if left > 0), default=1.0)
    full = min(LOUDEST, max(FULL_FROM, most)) if most > 1 else 1.0

    def columns(shares: Sequence[float]) -> str:
        height = math.log10(full / FAINTEST)
        return _columns(
            [math.log10(left / FAINTEST) / height if left > 0 else 0 for left in shares]
        )

    lines = words.gradient_flow_lines(flows)
    table, is_plotted = _plotted(lines, "", list(map(columns, drawn)), names=3)
    plot = ""
    if is_plotted:
        says = "1"
        if full > 1:
            more = " or more" if most > full else ""
            says = f"{significant(full, 2)}{more}, {columns([1])} is 1"
        plot = (
            f"Plot: k = 0, then 1 to {farthest}, both axes logarithmic; a full column is {says}, "
            f"an empty one less than {FAINTEST:g}."
        )
    is_linear = any(reach.state == "linear" for reach in reaches)
    said = _said(
        words.flow_found(flows),
        "What is left of the gradient of one character's loss k characters earlier (medians of "
        f"{flows[0].places} places), along each layer's states.",
        words.BACK[cell],
        plot,
        words.columns_say(flows),
        f"Linear: {words.LINEAR_SAYS}" if is_linear else "",
    )
    return "Gradient flow", said, table


def _memory(memory: Memory) -> RenderableType:
    # At least what counts as nothing: rounding errors must not fill a bar.
    most = max(memory.tolerance, *memory.excess_nats)
    pictures = [_bar(memory.excess_nats[k] / most) for k in words.contexts(memory)]
    return _plotted(words.memory_lines(memory), "more", pictures, word_columns=0)[0]


def _gates(gates: Sequence[GateUse]) -> tuple[str, str, RenderableType]:
    """Return title, explanation and picture of the gates."""
    pictures = []
    for use in gates:
        counts = [
            np.histogram(share_H, 10, (0, 1))[0] for share_H in (use.open_share, use.closed_share)
        ]
        pictures.append(" | ".join(_columns((count / count.max()).tolist()) for count in counts))
    table, is_plotted = _plotted(words.gate_lines(gates), "units by open | closed", pictures)
    plots = " Plots: how many units have which share, from 0 to 1." if is_plotted else ""
    return (
        "Gates",
        f"{words.gates_found(gates)} In the table: share of characters at which a gate is open "
        f"(above {NEARLY_OPEN}) and closed (below {NEARLY_CLOSED}), mean over the units. Always: "
        f"how many units have it open, or closed, at more than {100 * ALWAYS:.0f} % of "
        f"characters. {words.gates_say(gates)}{plots}",
        table,
    )


def _units(units: Sequence[UnitFound]) -> RenderableType:
    pictures = [_bar(abs(found.correlation)) for found in units]
    return _plotted(words.unit_lines(units), "", pictures, word_columns=3, names=2)[0]


def _activation(shown: Activation) -> tuple[str, str, RenderableType]:
    """Return title, explanation and picture of a unit's state along the text."""
    console = Output()
    lowest, highest = words.activation_ends(shown)
    if console.has_colours:
        low, high = "blue", "red"
        picture: RenderableType = _coloured(shown)
    else:
        low, high = BLOCKS[1], BLOCKS[-1]
        picture = _underlined(shown, console.width)
    ends = f"from {lowest} ({low}) to {highest} ({high})"
    return (
        f"Unit {shown.unit}",
        f"Its state after each of the last {len(shown.text):,} characters, {ends}.",
        picture,
    )


def _coloured(shown: Activation) -> Text:
    """Return the text on red where the unit is positive, on blue where it is negative."""
    text = Text()
    for character, share in zip(shown.text, shown.shares, strict=True):
        faded = round(255 * (1 - abs(share)))
        red, green, blue = (255, faded, faded) if share > 0 else (faded, faded, 255)
        # Not a terminal's own black and white, which may be greys. Either way the contrast is at
        # least 4.5, as at this share both have 4.6.
        ink = "#ffffff" if share < -0.626 else "#000000"
        text.append(words.mark(character), style=f"{ink} on rgb({red},{green},{blue})")
        text.append("\n" if character == "\n" else "")
    return text


def _underlined(shown: Activation, width: int) -> Group:
    """Return every line of the text with columns below it, for a terminal without colours."""
    rows = [["", ""]]
    for character, share in zip(shown.text, shown.shares, strict=True):
        letter = words.mark(character).replace("\t", " ")
        height = 0.125 + 0.875 * (1 + share) / 2
        taken = sum(map(columns_of, letter))
        if len(rows[-1][1]) + taken > width:
            rows.append(["", ""])
        rows[-1][0] += letter
        rows[-1][1] += _columns([height]) * taken
        if character == "\n":
            rows.append(["", ""])
    return Group(*(Text(line) for row in rows if row[0] for line in row))


def _clipping(clipping: Clipping) -> RenderableType:
    most = max(period.median for period in clipping.periods)
    pictures = [_bar(period.median / most if most else 0.0) for period in clipping.periods]
    return _plotted(words.clipping_lines(clipping), "median", pictures)[0]


def _truncation(truncations: Sequence[Truncation]) -> RenderableType:
    angles = [w.angle for t in truncations for w in (*t.windows, t.full)]
    pictures = [_bar(angle / 90 if math.isfinite(angle) else 0.0) for angle in angles]
    return _plotted(words.truncation_lines(truncations), "angle", pictures, names=3)[0]
