"""Draw the losses during trainings for a page.

Axis letter: N points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.views import page
from charrnn.views.figures import Line, line_chart, model_style, padded
from charrnn.views.portrait import Portrait, Row, shortened

#: Most points in a training curve; more rows of a log than these are averaged in groups.
POINTS = 150
#: Most validations in a curve; of more than these all but the first and the last are averaged.
VALIDATIONS = 150
#: The texts on which a training's losses are measured.
HELD_OUT, TRAINED_ON = "the validation text", "the training text"
#: How a loss on the latter differs from one on the former.
LEARNING = "taken before each update, with dropout and loss temperature if there are any"
#: What is said of several trainings' losses.
COMPARE = "Losses compare only where runs validate on the same characters."
#: The losses set the scale only after this share of a training; before it, they fall steeply.
SCALE_FROM = 0.1
#: Ratio of the largest loss to the smallest above which the axis of losses is logarithmic.
LOG_FROM = 5


class LoggedRun(NamedTuple):
    """A training whose losses are drawn."""

    label: str
    """Of the runs that share it, only the first with a curve is named."""
    style: int
    """The index of its model, or cell, in the page."""
    log: Sequence[Row]


class _Curve(NamedTuple):
    """A training's losses, as N points of characters, seconds and nats."""

    label: str
    style: int
    on: str
    """The text of the main line's loss."""
    main_N3: NDArray[np.float64]
    thin_N3: NDArray[np.float64]
    """The line that accompanies it; may be empty."""


def own_runs(portraits: Sequence[Portrait]) -> list[LoggedRun]:
    """Return the runs that models come from, each once."""
    runs: list[LoggedRun] = []
    for style, portrait in enumerate(portraits):
        if portrait.log not in [run.log for run in runs]:
            runs.append(LoggedRun(portrait.label, style, portrait.log))
    return runs


def learning_section(runs: Sequence[LoggedRun], more: str, unit: str) -> str:
    """Return the section on the loss during training; an empty string if no log has a loss.

    Args:
        runs: the trainings.
        more: a sentence on what is drawn, with a space after it.
        unit: the symbols that all of the models predict: "character" or "byte".
    """
    curves: list[_Curve] = []
    for curve in filter(None, map(_curve, runs)):
        is_named = any(curve.label == other.label for other in curves)
        curves.append(curve._replace(label="") if is_named else curve)
    ends = [
        f"{curve.label} at {curve.main_N3[-1, 2]:.4f} "
        f"({'validation' if curve.on == HELD_OUT else 'training'})"
        for curve in curves
        if curve.label
    ]
    if not ends:
        return ""
    drawn = [points_N3 for curve in curves for points_N3 in (curve.main_N3, curve.thin_N3)]
    drawn = [points_N3 for points_N3 in drawn if len(points_N3)]
    y_all = np.concatenate([points_N3[:, 2] for points_N3 in drawn])
    low, top = float(y_all.min()), max(map(_settled_most, drawn))
    is_log = 0 < LOG_FROM * low < top
    y_range = padded(np.array([low, top]), log=is_log, pad=0.06)
    on = " or ".join(dict.fromkeys(curve.on for curve in curves))
    has_thin = any(len(curve.thin_N3) for curve in curves)
    thin = f"; thin lines: on {TRAINED_ON}" if has_thin else ""
    has_trained_on = has_thin or any(curve.on == TRAINED_ON for curve in curves)
    unlike = f"Loss on {TRAINED_ON} is {LEARNING}. " if has_trained_on else ""
    validates = any(curve.on == HELD_OUT for curve in curves)
    compare = f"{COMPARE} " if len(curves) > 1 and validates else ""
    is_cut = y_all.max() > y_range[1]
    cut = f" What lies above {y_range[1]:.2f}, at the start, is cut off." if is_cut else ""
    return page.section(
        "Learning" + per(unit),
        page.figure(
            _curve_charts(curves, unit, y_range, is_log),
            f"Marked lines: loss on {on}{thin}. {unlike}{more}{compare}"
            f"Nats per {unit} where the named lines end: {', '.join(ends)}.{cut}",
        ),
    )


def _curve_charts(
    curves: Sequence[_Curve], unit: str, y_range: tuple[float, float], is_log: bool
) -> list[tuple[str, str]]:
    """Return the charts of the losses against characters read and against time."""
    short = shortened(curve.label for curve in curves)
    curves = [curve._replace(label=short[curve.label]) for curve in curves]
    axes = ((f"{unit}s", f"{unit}s read"), ("seconds", "seconds of training"))
    return [
        (
            f"Against {name}",
            line_chart(
                f"curves-{unit}-{name}",
                f"Loss during training, against {name}",
                [line for curve in curves for line in _curve_lines(curve, axis)],
                x_label=x_label,
                y_label=f"nats per {unit}" + (", logarithmic" if is_log else ""),
                y_log=is_log,
                y_range=y_range,
            ),
        )
        for axis, (name, x_label) in enumerate(axes)
    ]


def _curve(run: LoggedRun) -> _Curve | None:
    """Return a run's losses: those of validations with the training's beside, or these alone."""
    style = model_style(run.style)
    trained = _thinned(_losses(run.log, "train_nats_per_char"), POINTS)
    validated = _losses(run.log, "valid_nats_per_char")
    if len(validated):
        if len(validated) > VALIDATIONS:  # the first and the last are read off as they are
            between = _thinned(validated[1:-1], VALIDATIONS - 2)
            validated = np.concatenate([validated[:1], between, validated[-1:]])
        # A single point makes no line, and would look like one of the main line's.
        thin = trained if len(trained) > 1 else trained[:0]
        return _Curve(run.label, style, HELD_OUT, validated, thin)
    if len(trained):
        return _Curve(run.label, style, TRAINED_ON, trained, trained[:0])
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


def _thinned(points_N3: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Return the points, or if there are too many, the means of ``most`` groups in order."""
    if len(points_N3) <= most:
        return points_N3
    return np.array([group.mean(axis=0) for group in np.array_split(points_N3, most)])


def _settled_most(points_N3: NDArray[np.float64]) -> float:
    """Return the largest loss after a training's beginning."""
    characters_N = points_N3[:, 0]
    return float(points_N3[characters_N >= SCALE_FROM * characters_N[-1], 2].max())


def _curve_lines(curve: _Curve, axis: int) -> Iterator[Line]:
    """Yield a training's lines against characters (0) or seconds (1)."""
    for label, points_N3 in (("", curve.thin_N3), (curve.label, curve.main_N3)):
        x, y, is_thin = points_N3[:, axis], points_N3[:, 2], points_N3 is curve.thin_N3
        # Dashed, as without hues nothing else says whose it is.
        yield Line(label, x.tolist(), y.tolist(), curve.style, faint=is_thin, dashed=is_thin)


def per(unit: str) -> str:
    """Return the ending of a section's title if its models predict bytes."""
    return " per byte" if unit == "byte" else ""
