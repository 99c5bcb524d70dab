"""Draw figures as SVG for a page.

matplotlib (the extra ``report``) draws them; then they are adapted to HTML: colours become the
page's CSS variables, so that a figure follows light and dark mode, text stays text, and every
figure carries a title and a description for readers who cannot see it. Equal numbers give equal
bytes.

Styles differ in colour and marker, most of them in dash, too.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from rich.cells import cell_len

from charrnn.wording import counted

#: Placeholder colours that matplotlib draws with; ``VARIABLES`` maps them to the page's variables.
INK, MUTED, GRID, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
SERIES = ("#0a0b10", "#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14", "#0a0b15")
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
} | {colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)}
SANS = '--sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;'
#: The variables in light and in dark mode; colours after Okabe and Ito, made darker on white and
#: lighter on black for contrast.
LIGHT = (
    "--paper: #ffffff; --ink: #16191c; --muted: #5a626a; --grid: #e1e4e8; "
    "--series-0: #b64a00; --series-1: #005fa3; --series-2: #00754f; "
    "--series-3: #a3417c; --series-4: #6a5a00; --series-5: #4b4f55;"
)
DARK = (
    "--paper: #121518; --ink: #e8eaec; --muted: #9ba5ae; --grid: #30373e; "
    "--series-0: #ff9a4d; --series-1: #62b5f0; --series-2: #3ecf9d; "
    "--series-3: #eb9ac9; --series-4: #e2cf4a; --series-5: #b4bac1;"
)
DASHES: tuple[Any, ...] = (
    "solid",
    (0, (5, 1.6)),
    (0, (1.2, 1.4)),
    (0, (7, 1.5, 1.2, 1.5)),
    (0, (3, 3)),
    (0, (7, 1.5, 1.2, 1.5, 1.2, 1.5)),
)
#: Outlines the letters of a label among the lines in the paper's colour.
ON_PAPER = "stroke: var(--paper); stroke-width: 3; paint-order: stroke"
MARKERS = ("o", "s", "^", "D", "v", "P")
#: How many colours there are; a style after the last has the first's and another's dash and marker.
#: Where each colour has had each marker with its dash, all begin again with another dash.
STYLES = len(SERIES)
#: The last of them, grey, is for what is not a model; see ``model_style``.
PLAIN = STYLES - 1

#: Opacity of faint lines: each colour keeps a contrast of 3 with the paper, light or dark.
FAINT = 0.75

#: A chart's size and margins in inches, and its font sizes in points (72 to the inch).
WIDTH, HEIGHT = 5.0, 3.2
LEFT, TOP, BOTTOM = 0.6, 0.36, 0.54
TEXT, SMALL = 11.0, 10.0
#: Width of an average character of the small text, and height of a line of it, in inches.
LETTER, LEADING = 0.084, 1.25 * SMALL / 72

#: Changes to matplotlib's built-in defaults; the user's own configuration is ignored.
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": SMALL,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "path.simplify": False,
}


SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
#: Smallest number to write in a unit, the unit, and its letter: thousands, millions and so on.
UNITS = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))


@dataclass(frozen=True)
class Line:
    """Points that belong together, in order of x."""

    label: str
    """Written beside its end; empty: none."""
    x: Sequence[float]
    y: Sequence[float]
    style: int
    """Number of its colour, dash and marker, from 0."""
    faint: bool = False
    """Whether it only accompanies another line: thin and without markers."""
    dashed: bool = False
    """Whether it is dashed like its style although it is faint."""
    band: tuple[Sequence[float], Sequence[float]] | None = None
    """Lower and upper ends of the shaded band around it."""


@dataclass(frozen=True)
class Rule:
    """A horizontal line at a level to compare with."""

    label: str
    y: float


@dataclass(frozen=True)
class Dots:
    """A series with one value per row."""

    label: str
    values: Sequence[float | None]
    """None where a row has none."""
    style: int | Sequence[int]
    """One style for all values, or one for each."""
    around: Sequence[Sequence[float]] = ()
    """For each row the single values whose mean its value is, drawn as hollow marks."""


def model_style(place: int) -> int:
    """Return the style of a model by its place among many: never grey, each a look of its own."""
    again, colour = divmod(place, PLAIN)
    return STYLES * again + colour


def in_colour_of(other: int, number: int) -> int:
    """Return a style in the colour of another, with the dash and marker of a number.

    These differ for 36 numbers. The first 6 have those of the styles of these numbers.
    """
    colour = other % STYLES
    more, marker = divmod(number, STYLES)
    return colour + STYLES * ((marker - colour) % STYLES + STYLES * more)


def number(value: float) -> str:
    """Return a number for an axis, with 4 digits (0.01, 20k, 1.5M), or one if tiny (3·10⁻⁴)."""
    value = float(f"{value:.4g}")
    for least, unit, letter in UNITS:
        if abs(value) >= least:
            return f"{value / unit:.4g}{letter}"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:,.4g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    power = "10" + str(int(exponent)).translate(SUPERSCRIPT)
    return power if mantissa == "1" else f"{mantissa}·{power}"


def spaced(length: int) -> list[int]:
    """Return whole numbers from 1 to below a length, evenly spaced on a logarithmic axis."""
    return sorted(set(np.geomspace(1, max(1, length - 1), 60).round().astype(int).tolist()))


def line_chart(
    name: str,
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    x_log: bool = False,
    y_log: bool = False,
    y_floor: bool = False,
    y_range: tuple[float, float] | None = None,
    rules: Sequence[Rule] = (),
    y_percent: bool = False,
) -> str:
    """Return a chart of lines, each labelled beside its end.

    Points that are not finite, or not above zero on a logarithmic axis, are left out. On a
    logarithmic y axis, the ends of bands that are not above zero are drawn at the bottom.

    Args:
        name: the figure's id in its page: lower-case letters, digits and hyphens.
        title: what it shows, in words.
        lines: at least one with a point that can be drawn.
        x_label: the quantity on the x axis, with its unit.
        y_label: the quantity on the y axis, with its unit.
        x_log: whether the x axis is logarithmic.
        y_log: whether the y axis is logarithmic.
        y_floor: whether to draw points below the axis, also those that are not above zero, at the
            bottom; give ``y_range``.
        y_range: limits of the y axis; None: all lines and bands.
        rules: levels to compare with; those in the range are drawn.
        y_percent: whether to show shares as percentages.
    """
    drawn = [_drawable(line, x_log=x_log, y_log=y_log and not y_floor) for line in lines]
    drawn = [line for line in drawn if len(line.x)]
    assert drawn, "nothing to draw"
    named = [line for line in drawn if line.label]
    says = [_line_says(line, y_percent) for line in named or drawn[:1]]
    # As high as it takes to read all labels.
    height = max(HEIGHT, TOP + BOTTOM + LEADING * (len(named) - 1) / 0.96)
    with _figure(name, WIDTH, height) as figure:
        right = 0.12 + (0.42 + LETTER * max(cell_len(line.label) for line in named) if named else 0)
        axes = _axes(figure, LEFT, right, y_label)
        if x_log:
            axes.set_xscale("log")
        if y_log:
            axes.set_yscale("log")
        x_all = np.concatenate([line.x for line in drawn])
        axes.set_xlim(*padded(x_all, log=x_log, pad=0.02))
        y_all = np.concatenate([end for line in drawn for end in (line.y, *(line.band or ()))])
        y_all = y_all[np.isfinite(y_all) & ((y_all > 0) | (not y_log))]
        axes.set_ylim(*(y_range or padded(y_all, log=y_log, pad=0.06)))
        low, high = axes.get_ylim()
        if y_log:
            drawn = [_floored(line, low, low if y_floor else 0) for line in drawn]
        for line in drawn:
            _draw_line(axes, line)
        _ticks(axes.xaxis, axes.get_xlim(), log=x_log)
        _ticks(axes.yaxis, axes.get_ylim(), log=y_log, percent=y_percent)
        axes.set_xlabel(x_label, fontsize=TEXT, labelpad=4)
        rules = [rule for rule in rules if low <= rule.y <= high]
        for rule in rules:
            _draw_rule(axes, rule, drawn)
        _label_ends(axes, [line for line in drawn if line.label])
        about = [
            f"Lines of {y_label} against {x_label}.",
            *says,
            *(f"A line marks {rule.label}." for rule in rules),
        ]
        return _svg(figure, name, title, " ".join(about))


def _line_says(line: Line, percent: bool) -> str:
    """Say where a line and its band begin and end; of a labelled faint line say only its name."""
    if line.label and line.faint:
        return f"{line.label}: a faint line beside."

    def written(y: float) -> str:
        return f"{100 * y:.3g} %" if percent else f"{y:.4g}"

    first, last = (
        written(line.y[end])
        + (
            f" (band {written(line.band[0][end])} to {written(line.band[1][end])})"
            if line.band
            else ""
        )
        for end in (0, -1)
    )
    name = f"{line.label}: " if line.label else "From "
    return f"{name}{first} at {number(line.x[0])} to {last} at {number(line.x[-1])}."


def dot_chart(
    name: str,
    title: str,
    rows: Sequence[str],
    series: Sequence[Dots],
    *,
    x_label: str,
    form: str = ".3f",
    x_range: tuple[float, float] | None = None,
) -> str:
    """Return a chart with a row per name and a dot per value.

    A single series has its values written at the right; several get a legend above.

    Args:
        name: the figure's id in its page.
        title: what it shows, in words.
        rows: the names of the rows.
        series: at least one, with at least one value.
        x_label: the quantity on the x axis, with its unit.
        form: the format of a value.
        x_range: limits of the x axis; None: everything.
    """
    several = len(series) > 1
    top = TOP if several else 0.08
    row = max(0.28, 0.11 * len(series) + 0.06)
    height = top + BOTTOM + row * len(rows) + 0.1
    with _figure(name, WIDTH, height) as figure:
        left = 0.2 + LETTER * max(map(cell_len, rows))
        axes = _axes(figure, left, 0.15 if several else 0.75, top=top)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        ends = 0.056 * (len(series) - 1) / row
        shift = np.linspace(-ends, ends, len(series))
        for dots, off in zip(series, shift.tolist(), strict=True):
            styles = [dots.style] * len(rows) if isinstance(dots.style, int) else dots.style
            for place, (value, style) in enumerate(zip(dots.values, styles, strict=True)):
                singles = dots.around[place] if dots.around else ()
                _draw_dots(axes, place + off, value, singles, style)
                if not several and value is not None:
                    axes.annotate(
                        f"{value:{form}}", (1, place), xycoords=("axes fraction", "data"),
                        xytext=(6, 0), textcoords="offset points", va="center", color=INK,
                        annotation_clip=False,
                    )  # fmt: skip
        every = [value for dots in series for value in dots.values if value is not None]
        every += [value for dots in series for singles in dots.around for value in singles]
        every = [value for value in every if math.isfinite(value)] or [0.0]
        axes.set_xlim(*(x_range or padded(np.array(every), log=False, pad=0.06)))
        axes.set_ylim(len(rows) - 0.4, -0.6)
        _put_ticks(axes.yaxis, range(len(rows)), rows)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _ticks(axes.xaxis, axes.get_xlim())
        axes.set_xlabel(x_label, fontsize=TEXT, labelpad=4)
        if several:
            _name_series(axes, series)
        about = [f"Dots of {x_label}.", *_rows_say(rows, series, form)]
        return _svg(figure, name, title, " ".join(about))


def _rows_say(rows: Sequence[str], series: Sequence[Dots], form: str) -> Iterator[str]:
    """Yield the values of each row that has any."""
    for place, row in enumerate(rows):
        values = [
            (f"{dots.label} " if len(series) > 1 else "")
            + f"{value:{form}}"
            + (f" (of {', '.join(f'{one:{form}}' for one in singles)})" if singles else "")
            for dots in series
            for singles in [dots.around[place] if dots.around else ()]
            if (value := dots.values[place]) is not None
        ]
        if values:
            yield f"{row}: {', '.join(values)}."


def saturation_chart(
    name: str, title: str, closed: Sequence[float], opened: Sequence[float], style: int
) -> str:
    """Return a chart of how often each unit's gate is nearly closed and nearly open.

    A dot is at the unit's two shares of the text, rounded to 0.02; units at the same place share
    a dot, its area proportional to their number. After Karpathy, Johnson, Fei-Fei (2015),
    figure 3.
    """
    side = 2.5
    with _figure(name, side, side) as figure:
        axes = _axes(figure, 0.55, 0.26, "open")
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        units_N2 = np.round(np.array([closed, opened]).T * 50).astype(int)
        places, counts = np.unique(units_N2, axis=0, return_counts=True)
        area_of_one = 12.0 * min(1.0, 22.0 / counts.max())
        axes.plot([0, 1], [1, 0], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        for count in sorted({*counts.tolist()}, reverse=True):  # smaller dots on larger ones
            x, y = places[counts == count].T / 50
            axes.plot(
                x, y, linestyle="none", color=SERIES[style % STYLES], marker="o",
                markersize=math.sqrt(area_of_one * count), markeredgecolor=PAPER,
                markeredgewidth=0.5, clip_on=False, zorder=3,
            )  # fmt: skip
        for limit, axis in ((axes.set_xlim, axes.xaxis), (axes.set_ylim, axes.yaxis)):
            limit(-0.02, 1.02)
            _put_ticks(axis, (0, 0.5, 1), ("0 %", "50 %", "100 %"))
        axes.set_xlabel("closed", fontsize=TEXT, labelpad=3)
        about = (
            f"Dots of {counted(len(closed), 'unit')} by the share of the text at which a unit's "
            "gate is nearly closed (to the right) and nearly open (upwards); means "
            f"{100 * np.mean(closed):.1f} % closed, {100 * np.mean(opened):.1f} % open."
        )
        return _svg(figure, name, title, about)


# Pieces of a chart ---------------------------------------------------------------------


def _drawable(line: Line, *, x_log: bool, y_log: bool) -> Line:
    """Return a line with only the points that can be drawn."""
    x, y = np.array(line.x, dtype=np.float64), np.array(line.y, dtype=np.float64)
    usable = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not x_log)) & ((y > 0) | (not y_log))
    band = None
    if line.band is not None:
        low, high = (np.array(end, dtype=np.float64)[usable] for end in line.band)
        band = low.tolist(), high.tolist()
    return replace(line, x=x[usable].tolist(), y=y[usable].tolist(), band=band)


def _floored(line: Line, bottom: float, least: float) -> Line:
    """Return a line whose values up to ``least`` are moved to the bottom of a logarithmic axis."""

    def above(values: Sequence[float]) -> list[float]:
        return [bottom if y <= least else y for y in values]

    band = line.band and (above(line.band[0]), above(line.band[1]))
    return replace(line, y=above(line.y), band=band)


@contextmanager
def _figure(name: str, width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure, with settings that depend only on its name."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS | {"svg.hashsalt": name})
        yield Figure(figsize=(width, height), facecolor="none")


def _axes(figure: Figure, left: float, right: float, y_label: str = "", top: float = TOP) -> Axes:
    """Return axes with margins in inches and the y axis's label above them."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / width, BOTTOM / height, 1 - (left + right) / width, 1 - (BOTTOM + top) / height),
        facecolor="none",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=3, pad=3)
    if y_label:
        figure.text(0.05 / width, 1 - 0.04 / height, y_label, fontsize=TEXT, color=INK, va="top")
    return axes


def _inches(axes: Axes) -> tuple[float, float]:
    """Return the width and height of axes, without their margins."""
    return axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi


def _line_look(line: Line) -> dict[str, Any]:
    """Return the look of a line, as options for matplotlib."""
    look = _look(line.style)
    if not line.faint:
        return look
    dash = {"linestyle": look["linestyle"]} if line.dashed else {}
    return {"color": look["color"], "linewidth": 0.9, "alpha": FAINT} | dash


def _look(style: int) -> dict[str, Any]:
    """Return the look of a style's lines and markers, as options for matplotlib."""
    again, colour = divmod(style, STYLES)
    more, again = divmod(again, STYLES)
    marker = (colour + again) % STYLES
    return {
        "color": SERIES[colour],
        "linewidth": 1.7,
        "linestyle": DASHES[(marker + more) % STYLES],
        "marker": MARKERS[marker],
        "markersize": 4.2,
        "markeredgewidth": 0,
    }


def _draw_line(axes: Axes, line: Line) -> None:
    look = _line_look(line)
    if line.band is not None:
        axes.fill_between(line.x, *line.band, color=look["color"], alpha=0.16, linewidth=0)
    axes.plot(line.x, line.y, markevery=_marked(axes, line.x), **look)


def _draw_dots(
    axes: Axes, y: float, value: float | None, singles: Sequence[float], style: int
) -> None:
    """Draw one row of a series: a dot, or hollow marks and a bar at their mean."""
    look = _look(style)
    colour, marker = look["color"], look["marker"]
    if singles:
        axes.plot(
            singles, [y] * len(singles), linestyle="none", marker=marker, markersize=6,
            markerfacecolor="none", markeredgecolor=colour, alpha=0.8,
        )  # fmt: skip
        marker = "|"
    if value is not None:
        axes.plot(
            [value], [y], linestyle="none", color=colour, marker=marker,
            markersize=16 if singles else 7, markeredgewidth=2.4 if singles else 0,
        )  # fmt: skip


def _marked(axes: Axes, x: Sequence[float]) -> list[int]:
    """Return the indices of the points that get a marker: about ten, evenly along the axis."""
    if len(x) <= 12:
        return list(range(len(x)))
    along = np.log(x) if axes.get_xscale() == "log" else np.array(x)
    wanted = np.linspace(along[0], along[-1], 10)
    return sorted(set(np.abs(along[None] - wanted[:, None]).argmin(axis=1).tolist()))


def _draw_rule(axes: Axes, rule: Rule, lines: Sequence[Line]) -> None:
    """Draw a level, labelled at the end and side where the fewest lines pass."""
    axes.axhline(rule.y, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    paths = [axes.transData.transform_path(Path(np.array([line.x, line.y]).T)) for line in lines]
    width, height = np.array([LETTER * cell_len(rule.label), SMALL / 72]) * axes.figure.dpi
    y = axes.transData.transform((axes.get_xlim()[0], rule.y))[1]

    def crossings(place: tuple[str, str]) -> int:
        x0 = axes.bbox.x1 - width if place[0] == "right" else axes.bbox.x0
        y0 = y if place[1] == "bottom" else y - height
        box = Bbox.from_bounds(x0, y0, width, height)
        return sum(path.intersects_bbox(box, filled=False) for path in paths)

    side, edge = min(itertools.product(("right", "left"), ("bottom", "top")), key=crossings)
    axes.annotate(
        rule.label, (1 if side == "right" else 0, rule.y), xycoords=("axes fraction", "data"),
        xytext=(-2 if side == "right" else 4, 2 if edge == "bottom" else -2),
        textcoords="offset points", fontsize=SMALL, color=MUTED, va=edge, ha=side,
    )  # fmt: skip


def _label_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Write each line's label to the right of the axes, at the height at which it ends."""
    if not lines:
        return
    ends = axes.transData.transform([(line.x[-1], line.y[-1]) for line in lines])
    heights = axes.transAxes.inverted().transform(ends)[:, 1].tolist()
    width, height = _inches(axes)
    gap = LEADING / height
    for line, y in zip(lines, _spread(heights, gap), strict=True):
        axes.add_line(
            Line2D(
                np.array([0.08, 0.21, 0.34]) / width + 1, [y] * 3, markevery=[1],
                transform=axes.transAxes, clip_on=False,
                **_line_look(line),
            )
        )  # fmt: skip
        axes.text(
            1 + 0.4 / width, y, line.label, transform=axes.transAxes, color=INK,
            fontsize=SMALL, va="center", ha="left",
        )  # fmt: skip


def _spread(ends: Sequence[float], gap: float) -> list[float]:
    """Return heights near the ends, in their order, at least a gap apart; there must be room.

    Ends outside the axes keep their order, too.
    """
    order = sorted(range(len(ends)), key=lambda n: ends[n])
    placed = [min(max(ends[n], 0.02), 0.98) for n in order]
    highest = placed[-1]
    for n in range(1, len(placed)):
        placed[n] = max(placed[n], placed[n - 1] + gap)
    # Move all down by half of what the top one was pushed up, but the lowest not below the axes.
    pushed = placed[-1] - highest
    down = min(max(pushed / 2, placed[-1] - 0.98), placed[0] - 0.02)
    placed = [y - down for y in placed] if pushed > 0 else placed
    # Move down those that are still too high, by themselves.
    top = 0.98
    for n in reversed(range(len(placed))):
        placed[n] = min(placed[n], top)
        top = placed[n] - gap
    result = [0.0] * len(ends)
    for n, y in zip(order, placed, strict=True):
        result[n] = y
    return result


def _name_series(axes: Axes, series: Sequence[Dots]) -> None:
    """Draw a legend above the axes: each series' marker, then its name."""
    width, height = _inches(axes)
    x, y = 0.0, 1 + 0.18 / height
    for dots in series:
        assert isinstance(dots.style, int), "one of several series has one style"
        look = _look(dots.style) | {"linestyle": "none", "markersize": 7}
        axes.add_line(Line2D([x / width], [y], transform=axes.transAxes, clip_on=False, **look))
        axes.text(
            (x + 0.1) / width, y, dots.label, transform=axes.transAxes, color=INK, va="center"
        )
        x += 0.35 + LETTER * cell_len(dots.label)


def padded(values: NDArray[np.float64], *, log: bool, pad: float) -> tuple[float, float]:
    """Return an axis's limits around values, which differ even for a single value."""
    low, high = float(values.min()), float(values.max())
    if log:
        low, high = math.log(low), math.log(high)
    room = (high - low) * pad or (math.log(2) if log else abs(high) * 0.05 or 1.0)
    low, high = low - room, high + room
    return (math.exp(low), math.exp(high)) if log else (low, high)


def _ticks(
    axis: Axis, limits: tuple[float, float], *, log: bool = False, percent: bool = False
) -> None:
    # Over a narrow range, a logarithmic axis is almost linear.
    if log and limits[1] >= 4 * limits[0]:
        ticks = _log_ticks(*limits)
        _put_ticks(axis, ticks, list(map(number, ticks)))
    elif percent:
        quarters = [0.0, 0.25, 0.5, 0.75, 1.0]
        _put_ticks(axis, quarters, [f"{100 * share:g} %" for share in quarters])
    else:
        _even_ticks(axis, *limits)


def _even_ticks(axis: Axis, low: float, high: float) -> None:
    """Put some round numbers at an axis, all in the same unit and with the same decimals."""
    found = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
    step = found[1] - found[0]
    # Without rounding errors, but distinct however close they are.
    ticks = [round(tick / step) * step for tick in found if low <= tick <= high]
    largest = max(map(abs, ticks), default=0.0)
    unit, letter = next(((u, name) for least, u, name in UNITS if largest >= least), (1.0, ""))
    decimals = max(0, -math.floor(math.log10(step / unit) + 1e-9))
    names = [f"{tick / unit:,.{decimals}f}{letter if tick else ''}" for tick in ticks]
    _put_ticks(axis, ticks, [name.replace("-", "\N{MINUS SIGN}") for name in names])


def _put_ticks(axis: Axis, ticks: Sequence[float], names: Sequence[str]) -> None:
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FixedFormatter(list(names)))


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten within limits at least 4 times apart; finer steps if they are too few.

    If they are too many, some are dropped, but not 1, or the power nearest to it.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 2, 4, 6, 8), tuple(range(1, 10))):
        found = [(m * 10.0**p, m, p) for p in powers for m in steps]
        found = [place for place in found if low <= place[0] <= high]
        if len(found) >= 3:
            break
    every = math.ceil(len(found) / 7)
    kept = min(range(len(found)), key=lambda n: (found[n][1] > 1, abs(found[n][2])))
    return [tick for tick, _, _ in found[kept % every :: every]]


# From matplotlib's SVG to the page's ---------------------------------------------------


def _svg(figure: Figure, name: str, title: str, about: str) -> str:
    """Return a figure as an SVG element of a page."""
    assert re.fullmatch(r"[a-z0-9-]+", name), name
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # matplotlib measures text in a font that the page does not use.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(stream, format="svg", metadata=nothing, transparent=True)
    text = stream.getvalue()
    found = re.search(r'<svg [^>]*viewBox="([^"]+)"[^>]*>(.*)</svg>', text, re.DOTALL)
    assert found, "matplotlib's SVG has a viewBox"
    box, inside = found[1], found[2]
    inside = re.sub(r"<metadata>.*?</metadata>", "", inside, flags=re.DOTALL)
    # This style would apply to the whole page; page.py and the lesson have the same rules.
    inside = re.sub(r"<style .*?</style>", "", inside, flags=re.DOTALL)
    # Ids must be unique in the page, not only in a figure; those not referred to are dropped.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', inside))

    def fitted(tag: re.Match[str]) -> str:
        said = tag[0].replace("xlink:href=", "href=")
        said = re.sub(
            r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", said
        )
        said = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", said)
        if said.startswith("<text"):  # an outline keeps a label readable where it crosses a line
            said = said.replace(f"fill: {MUTED}", f"fill: {MUTED}; {ON_PAPER}")
        for colour, variable in VARIABLES.items():
            said = said.replace(colour, variable)
        return re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", said)

    # Change only tags: a label may read like an attribute.
    inside = re.sub(r"<[^>]*>", fitted, inside)
    return (
        f'<svg role="img" viewBox="{box}" aria-labelledby="{name}-title {name}-about">\n'
        f'<title id="{name}-title">{escape(title)}</title>\n'
        f'<desc id="{name}-about">{escape(about)}</desc>{inside}</svg>\n'
    )
