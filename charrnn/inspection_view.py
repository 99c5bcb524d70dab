"""Measurements of a model become tables, small plots and coloured text in a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from charrnn.display import printable
from charrnn.gradients import Cut, Truncation
from charrnn.inspection import (
    NEARLY_CLOSED,
    NEARLY_OPEN,
    Activation,
    Clipping,
    GateUse,
    GradientFlow,
    Inspection,
    Memory,
    UnitFound,
)
from charrnn.properties import PROPERTIES

__all__ = ["print_inspection"]

BLOCKS = " ▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉"
BAR = 24
#: Lags that are plotted.
PLOT = 20
#: Below this share of the gradient at lag 0 the plot shows nothing.
FAINTEST = 1e-3
#: Share of the text from which on a gate counts as always open or closed.
ALWAYS = 0.9


def print_inspection(inspection: Inspection) -> None:
    """Print all measurements on stdout."""
    console = Console(highlight=False)
    for title, said, shown in _sections(inspection, console):
        console.print(Text(title, style="bold underline"))
        console.print(Text(said))
        console.print(shown)
        console.print()


def _sections(
    inspection: Inspection, console: Console
) -> Iterator[tuple[str, str, RenderableType]]:
    """Yield title, explanation and picture of each measurement."""
    if flows := inspection.gradient_flow:
        linear = any(reach.state == "linear" for reach in flows[0].reaches)
        yield (
            "Gradient flow",
            "What is left of the gradient of one character's loss, k characters before it "
            f"(means of {flows[0].places} places), along each layer's states. Plot: k from 0 to "
            f"{len(flows[0].reaches[0].relative) - 1}, both axes logarithmic, down to "
            f"{FAINTEST:g}. Radius: the recurrent matrices' spectral radius"
            + (", * scaled to it." if any(flow.scaled_to for flow in flows) else ".")
            + (" Linear: through the matrix alone, without tanh." if linear else ""),
            _gradient_flow(flows),
        )
    if inspection.memory is not None:
        yield "Memory", _memory_says(inspection.memory), _memory(inspection.memory)
    if inspection.gates:
        yield (
            "Gates",
            f"Share of characters at which gates are open (above {NEARLY_OPEN}) and closed "
            f"(below {NEARLY_CLOSED}), mean of the units; units for which that is so at "
            f"{100 * ALWAYS:.0f} % of characters; units by their share, from 0 to 1.",
            _gates(inspection.gates),
        )
    if inspection.units:
        found = {unit.property for unit in inspection.units}
        missing = [name for name in PROPERTIES if name not in found]
        yield (
            "Units",
            "The unit whose state follows each property best: found on the first half of the "
            "text, held to account on the second."
            + (f" Not in both halves: {', '.join(missing)}." if missing else ""),
            _units(inspection.units),
        )
    if inspection.activation is not None:
        shown = inspection.activation
        largest = max(map(abs, shown.values))
        if console.color_system is not None:
            low, high = "blue", "red"
            picture: RenderableType = _coloured(shown, largest)
        else:
            low, high = BLOCKS[1], BLOCKS[-1]
            picture = _underlined(shown, largest, console.width)
        yield (
            f"Unit {shown.unit}",
            f"Its state after each character, from {-largest:.3g} ({low}) to {largest:.3g} "
            f"({high}).",
            picture,
        )
    if inspection.clipping is not None:
        yield (
            "Clipping",
            _clipping_says(inspection.clipping),
            _clipping(inspection.clipping),
        )
    if inspection.cuts:
        yield (
            "A cut gradient",
            "How far a gradient turns that is cut down to a share of its norm: scaled as a whole, "
            "or every entry cut to the same limit.",
            _cuts(inspection.cuts),
        )
    if truncations := inspection.truncation:
        yield "Truncation", _truncation_says(truncations[0]), _truncation(truncations)


def _table(*columns: str, plot: str | None = None) -> Table:
    """Return an empty table: the first column of words, then numbers, then a plot."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    if plot is not None:
        table.add_column(plot, no_wrap=True)
    return table


def _bar(share: float) -> str:
    """Return a bar of a share of the full width."""
    whole, part = divmod(round(min(1.0, max(0.0, share)) * BAR * 8), 8)
    return "█" * whole + EIGHTHS[part].strip()


def _columns(shares: Sequence[float]) -> str:
    """Return one column a share of the full height; nothing only where there is nothing."""
    return "".join(BLOCKS[math.ceil(min(1.0, max(0.0, share)) * 8)] for share in shares)


def _gradient_flow(flows: Sequence[GradientFlow]) -> Table:
    farthest = len(flows[0].reaches[0].relative) - 1
    lags = [k for k in (1, 10) if k <= farthest]
    columns = ["weights", "radius", "along", "half at", "1 % at"] + [f"k = {k}" for k in lags]
    table = _table(*columns, plot="")
    plotted = sorted({0, *np.geomspace(1, farthest, PLOT).round().astype(int).tolist()})
    for flow in flows:
        for reach in flow.reaches:
            radii = flow.spectral_radii[reach.layer - 1]
            heights = [
                1 - math.log(left) / math.log(FAINTEST) if (left := reach.relative[k]) > 0 else 0
                for k in plotted
            ]
            table.add_row(
                flow.weights,
                _range(min(radii), max(radii)) + ("" if flow.scaled_to is None else " *"),
                f"{reach.state} {reach.layer}",
                *(
                    f"> {farthest}" if lag is None else str(lag)
                    for lag in (reach.halves_at, reach.under_1_percent_at)
                ),
                *(f"{reach.relative[k]:.2g}" for k in lags),
                _columns(heights),
            )
    return table


def _range(low: float, high: float) -> str:
    ends = (f"{low:.2f}", f"{high:.2f}")
    return "-".join(dict.fromkeys(ends))


def _memory_says(memory: Memory) -> str:
    enough = f"more than {len(memory.excess_nats) - 1:,} characters are needed"
    if memory.needed is not None:
        enough = f"{memory.needed:,} characters are enough"
    window = "" if memory.bptt is None else f"; the window of the training was {memory.bptt:,}"
    return (
        f"Loss with the state reset k characters before the one that is scored "
        f"({memory.windows:,} resets), against {memory.full_nats:.4f} nats per character with "
        f"the state carried on. To come within {memory.tolerance:g} nats of that, {enough}{window}."
    )


def _memory(memory: Memory) -> Table:
    farthest = len(memory.excess_nats) - 1
    powers = [1 << n for n in range(farthest.bit_length())]
    table = _table("k", "nats/char", "more", "±", plot="more")
    most = max(memory.excess_nats)
    for k in sorted({0, *powers, farthest}):
        table.add_row(
            f"{k:,}",
            f"{memory.nats(k):.4f}",
            f"{memory.excess_nats[k]:+.4f}",
            f"{memory.standard_error[k]:.4f}",
            _bar(memory.excess_nats[k] / most if most > 0 else 0.0),
        )
    return table


def _gates(gates: Sequence[GateUse]) -> Table:
    table = _table("gate", "open", "units", "closed", "units", plot="units by open | closed")
    for use in gates:
        open_U, closed_U = np.array(use.open_share), np.array(use.closed_share)
        histograms = [np.histogram(share_U, 10, (0, 1))[0] for share_U in (open_U, closed_U)]
        table.add_row(
            f"{use.gate} {use.layer}",
            *(
                text
                for share_U in (open_U, closed_U)
                for text in (f"{100 * share_U.mean():.1f} %", f"{(share_U > ALWAYS).sum():,}")
            ),
            " | ".join(_columns((counts / counts.max()).tolist()) for counts in histograms),
        )
    return table


def _units(units: Sequence[UnitFound]) -> Table:
    table = _table("property", "mean", "unit", "found", "correlation", plot="")
    for found in units:
        table.add_row(
            found.property,
            f"{found.mean:.3g}",
            str(found.unit),
            f"{found.found:+.3f}",
            f"{found.correlation:+.3f}",
            _bar(abs(found.correlation)),
        )
    return table


def _coloured(shown: Activation, largest: float) -> Text:
    """Return the text on red where the unit is positive, on blue where it is negative."""
    text = Text()
    for character, value in zip(shown.text, shown.values, strict=True):
        strength = abs(value) / largest if largest else 0.0
        faded = round(255 * (1 - strength))
        red, green, blue = (255, faded, faded) if value > 0 else (faded, faded, 255)
        ink = "white" if value < 0 and strength > 0.6 else "black"
        text.append(_mark(character), style=f"{ink} on rgb({red},{green},{blue})")
        text.append("\n" if character == "\n" else "")
    return text


def _underlined(shown: Activation, largest: float, width: int) -> Group:
    """Return every line of the text with columns below it, where there are no colours."""
    lines: list[Text] = []
    text, columns = "", ""
    for character, value in zip(shown.text, shown.values, strict=True):
        mark = _mark(character).replace("\t", " ")
        height = 0.125 + 0.875 * (1 + value / largest) / 2 if largest else 0.5
        if cell_len(text + mark) > width:
            lines += [Text(text), Text(columns)]
            text, columns = "", ""
        text += mark
        columns += _columns([height]) * cell_len(mark)
        if character == "\n":
            lines += [Text(text), Text(columns)]
            text, columns = "", ""
    return Group(*lines, Text(text), Text(columns))


def _mark(character: str) -> str:
    """Return what stands for a character, so that each one's state can be seen."""
    return {"\n": "↵", "\r": "␍"}.get(character) or printable(character)


def _clipping_says(clipping: Clipping) -> str:
    limit = "Nothing was clipped"
    if clipping.clip_norm is not None:
        limit = f"Clipped to a norm of {clipping.clip_norm:g}"
    elif clipping.clip_value is not None:
        limit = f"Entries clipped to {clipping.clip_value:g}"
    return (
        f"Norms of the gradient over {clipping.steps:,} updates, largest {clipping.largest:.3g} "
        f"(means of a few updates each, as logged). {limit}: "
        f"{100 * clipping.clipped_share:.1f} % of updates."
    )


def _clipping(clipping: Clipping) -> Table:
    table = _table("steps", "10 %", "median", "90 %", "clipped", plot="median")
    most = max(period.median for period in clipping.periods)
    for period in clipping.periods:
        table.add_row(
            f"{period.first_step:,} - {period.last_step:,}",
            *(f"{norm:.3g}" for norm in (period.low, period.median, period.high)),
            f"{100 * period.clipped_share:.1f} %",
            _bar(period.median / most if most else 0.0),
        )
    return table


def _cuts(cuts: Sequence[Cut]) -> Table:
    table = _table("weights", "cut to", "by norm", "by value")
    for cut in cuts:
        table.add_row(cut.weights, f"{cut.share:.0%}", _turned(cut.by_norm), _turned(cut.by_value))
    return table


def _turned(degrees: float) -> str:
    return f"{degrees:.1f}°" if math.isfinite(degrees) else "no gradient"


def _truncation_says(truncation: Truncation) -> str:
    return (
        f"The gradient of {truncation.characters:,} predictions in {truncation.lanes} lanes, "
        f"window by window, against that through all {truncation.full.bptt:,} time steps at once: "
        "the angle between both, the size as a share, time per prediction, and what is kept for "
        "the backward pass. For comparison, full gradients of one half of the lanes and of the "
        f"other are {truncation.between_halves:.0f}° apart."
    )


def _truncation(truncations: Sequence[Truncation]) -> Table:
    table = _table("weights", "window", "loss on", "angle", "size", "µs/char", "MB", plot="angle")
    for truncation in truncations:
        for window in (*truncation.windows, truncation.full):
            table.add_row(
                truncation.weights,
                f"{window.bptt:,}" + (" (all)" if window is truncation.full else ""),
                "all" if window.loss_last is None else f"last {window.loss_last:,}",
                _turned(window.angle),
                f"{window.size:.3f}",
                f"{1e6 * window.seconds_per_character:.1f}",
                f"{window.bytes / 1e6:.2f}",
                _bar(window.angle / 90 if math.isfinite(window.angle) else 0.0),
            )
    return table
