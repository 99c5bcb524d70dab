"""Claims 8 and 9: what gates do, what a memory holds, how far a gradient reaches along it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from charrnn.activity import KEPT_OVER, NEARLY_CLOSED, NEARLY_OPEN
from charrnn.figures import Line, Rule, line_chart, standalone
from charrnn.properties import PROPERTIES
from lesson.gradients import flow, shares_left
from lesson.lab import Lab
from lesson.recurrence import run_of
from lesson.section import Figure, Judgement, Section, Table, judged, percent

__all__ = ["Held", "Pace", "along", "best_found", "gates", "judge_along", "judge_gates"]

#: Share of characters up to which a gate is hardly ever open, or closed.
IDLE = 0.01
#: Share of characters above which a unit's gate counts as open throughout.
ALWAYS = 0.9
#: Properties that last longer than a word.
LASTING = ("inside quotes", "inside brackets", "position in line", "indentation")
#: Correlation from which on a unit follows a property.
FOLLOWS = 0.5
#: Characters for which a property must go on somewhere.
LONG = 20
#: Characters of the figure.
SHOWN = 240
#: The lag at which the states' gradients are compared, and one before it that is shown.
LAG, NEARER = 50, 10
#: What must be left there of the memory's gradient for it to reach far back, and how many times
#: as much along h as along the plain RNN's.
FLOOR, FARTHER = 0.01, 10.0
#: Correlation with itself a character before above which a state changes slowly: at 0.5 a step
#: changes it by as much as it differs from its mean.
SLOW = 0.5
#: How many times as much context must be needed for that to be used.
USED = 1.5


@dataclass(frozen=True)
class Held:
    """How one unit's memory follows a property of the text."""

    unit: str
    property: str
    correlation: float
    """Of its c with the property."""
    over: int
    """Characters, the last of the text, that it is of."""
    lasts: int
    """Characters for which the property goes on without a break, at the longest."""


@dataclass(frozen=True)
class Pace:
    """How slowly a state changes."""

    correlation: float
    """With itself one character before, mean of the units; NaN if none varies."""
    kept_mean: float | None = None
    """Of the product of the gate on its way over ten characters; None without such a gate."""
    kept_median: float | None = None


def gates(lab: Lab) -> Section:
    """Count open and closed gates, and look for a unit that holds a property."""
    inspect = (
        f"charrnn inspect {run_of('lstm')} --part valid --characters {lab.size.inspected} --device "
        "cpu"
    )
    first = f"{inspect} --only gates --only units --json"
    found = lab.json(first)
    best = best_found(found["units"])
    layer, number = best["unit"]["layer"], best["unit"]["unit"]
    name = f"{layer}.{number}"
    second = f"{inspect} --only units --unit {name}c --json"
    shown = lab.json(second)["activation"]
    c_T = np.array(shown["values"])
    property_T = np.array(PROPERTIES[best["property"]](shown["text"]))
    held = Held(
        unit=name,
        property=best["property"],
        correlation=_correlation(c_T, property_T),
        over=len(c_T),
        lasts=_longest(property_T),
    )
    use = {
        one["gate"]: (float(np.mean(one["open_share"])), float(np.mean(one["closed_share"])))
        for one in found["gates"]
    }
    always = {
        one["gate"]: sum(share > ALWAYS for share in one["open_share"]) for one in found["gates"]
    }
    return Section(
        title="The memory line",
        claim="The LSTM adds a memory line. Gates decide what to keep (forget), what to write "
        "(input times tanh) and what to show (output).",
        why=f"""
`c_t = f_t ∘ c_{{t-1}} + i_t ∘ g_t` and `h_t = o_t ∘ tanh(c_t)`: the forget gate `f` decides
what of the memory `c` is kept, the input gate `i` what of the candidate `g = tanh(...)` is
written, the output gate `o` what is shown. The forget gate came with Gers, Schmidhuber and
Cummins (2000); the LSTM of Hochreiter and Schmidhuber (1997) keeps all of `c`. A gate is a
logistic function of the character and the state, so between 0 and 1; open means above
{NEARLY_OPEN:g}, closed below {NEARLY_CLOSED:g} (Karpathy, Johnson and Fei-Fei 2015). Every unit
is correlated with properties that a reader sees; the best for each of them, and of those for
lasting ones the one to judge, is chosen on the first half of the {found["characters"]:,}
characters, and the second half gives the correlation in the table.
Units are written layer.unit: {name}c is the memory c of unit {number} in layer {layer}, {name}
its state h.
""",
        commands=[first, second],
        tables=[
            Table(
                ["gate", "open", "closed", f"units open at over {percent(ALWAYS)} of characters"],
                [
                    [gate, percent(opened), percent(closed), f"{always[gate]:,}"]
                    for gate, (opened, closed) in use.items()
                ],
            ),
            Table(
                ["property", "unit", "correlation, second half"],
                [
                    [
                        one["property"],
                        f"{one['unit']['layer']}.{one['unit']['unit']}"
                        + ("c" if one["unit"]["state"] == "c" else ""),
                        f"{one['correlation']:+.3f}",
                    ]
                    for one in found["units"]
                ],
                words=2,
            ),
        ],
        figures=[_memory_figure(held, c_T, property_T)],
        rule=f"two parts. Each gate is used both ways: open at more than {percent(IDLE)} of "
        f"characters and closed at more than {percent(IDLE)}, in the mean of the units. A unit's "
        "memory holds a visible "
        f"property: its c correlates with one by at least {FOLLOWS:g} in size, over the last "
        f"{held.over:,} characters, and that property goes on for at least {LONG} characters "
        "somewhere. Both: holds; one: in part.",
        judgement=judge_gates(use, held),
    )


def best_found(units: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return which unit follows its property best on the first half, of a lasting one if any.

    The second half, which the correlation is told of, has no say in it.

    Args:
        units: by property the one that follows it best, as ``inspect --only units`` answers.
    """
    lasting = [one for one in units if one["property"] in LASTING]
    return max(lasting or units, key=lambda one: abs(one["found"]))


def _memory_figure(held: Held, c_T: np.ndarray, property_T: np.ndarray) -> Figure:
    """Return the figure of a unit's memory along a text, beside the property that it follows."""
    start = _start(property_T)
    x = range(start, min(start + SHOWN, len(c_T)))
    drawn = property_T[x]
    # On the scale of the unit, so that both can be read in one figure.
    drawn = c_T.min() + (drawn - drawn.min()) * (np.ptp(c_T) / max(1.0, np.ptp(drawn)))
    chart = line_chart(
        "memory",
        f"The memory of unit {held.unit} along the text, and the property {held.property}",
        [
            Line(f"c of unit {held.unit}", x, c_T[x].tolist(), 0),
            Line(held.property, x, drawn.tolist(), 1, faint=True),
        ],
        x_label="characters of the text",
        y_label="c; the property to the same scale",
    )
    title = f"The memory of unit {held.unit} along the text"
    return Figure("memory", title, standalone(chart))


def _correlation(x_T: np.ndarray, y_T: np.ndarray) -> float:
    """Return Pearson's correlation; 0 where one of both does not vary."""
    if not x_T.std() or not y_T.std():
        return 0.0
    return float(np.corrcoef(x_T, y_T)[0, 1])


def _longest(property_T: np.ndarray) -> int:
    """Return the longest stretch over which a property is above zero."""
    longest = length = 0
    for value in property_T:
        length = length + 1 if value > 0 else 0
        longest = max(longest, length)
    return longest


def _start(property_T: np.ndarray) -> int:
    """Return where to begin a figure, so that the property changes in it as often as it can."""
    changes_T = np.concatenate([[0], np.cumsum(np.diff(property_T) != 0)])
    last = max(1, len(property_T) - SHOWN)
    return int(np.argmax([changes_T[min(t + SHOWN, len(changes_T) - 1)] - changes_T[t]
                          for t in range(last)]))  # fmt: skip


def judge_gates(use: Mapping[str, tuple[float, float]], held: Held) -> Judgement:
    """Judge claim 8.

    Args:
        use: gate -> shares of characters at which it is open and closed, mean of the units.
        held: the best unit found.
    """
    idle = [gate for gate, shares in use.items() if min(shares) <= IDLE]
    follows = abs(held.correlation) >= FOLLOWS and held.lasts >= LONG
    forget_open, forget_closed = use["forget"]
    return judged(
        [not idle, follows],
        f"The forget gate is open at {percent(forget_open)} of characters and closed at "
        f"{percent(forget_closed)}"
        + (
            ", and the other gates are used both ways too."
            if not idle
            else f"; hardly ever both open and closed: {', '.join(idle)}."
        ),
        f"The memory of unit {held.unit} follows the property \"{held.property}\" with a "
        f"correlation of {held.correlation:+.2f} over the last {held.over:,} characters, and that "
        f"goes on for up to {held.lasts} of them."
        if follows
        else f"No lasting property was found in a unit: the best, {held.unit} with "
        f"\"{held.property}\", has a correlation of {held.correlation:+.2f} over the last "
        f"{held.over:,} characters, and the property goes on for up to {held.lasts} of them.",
    )  # fmt: skip


def along(lab: Lab) -> Section:
    """Compare how far gradients reach along the states of the three cells."""
    commands = {cell: flow(lab, cell) for cell in ("rnn", "lstm", "gru")}
    found = {cell: lab.json(command) for cell, command in commands.items()}
    left = {
        (model["weights"], cell, reach["state"]): shares_left(reach)
        for cell, one in found.items()
        for model in one["gradient_flow"]
        for reach in model["reaches"]
        if model["scaled_to"] is None and reach["state"] != "linear"
    }
    needed = {cell: one["memory"]["needed"] for cell, one in found.items()}
    paces = {
        (cell, pace["state"]): Pace(
            math.nan if pace["mean"] is None else pace["mean"],
            pace["kept_mean"],
            pace["kept_median"],
        )
        for cell, one in found.items()
        for pace in one["pace"]
    }
    trained = {
        (cell, state): shares
        for (weights, cell, state), shares in left.items()
        if weights == "trained"
    }
    return Section(
        title="Gradients along the memory",
        claim="The memory changes slowly and its gradient does not pass through the recurrent "
        "weights, so gradients reach far back.",
        why=f"""
Along the memory line alone, `dc_t/dc_{{t-k}}` is the product of `k` forget gates: no matrix and
no tanh, and near 1 as long as they are open. The gradient of `h` has to pass the matrix at
every step. The shares are of total derivatives, so all other ways back are in them as well.
Where they fall under 1 % and stay there is as far as a window can teach directly; what the
model then uses is "context needed": the characters after a reset of the state from which on its
loss is within 0.01 nats. How slowly a state changes is its correlation with itself one
character before, mean of the units: at {SLOW:g} a step changes it by as much as it differs from
its mean. "Kept" is the product of {KEPT_OVER} values in a row of the gate on its way, forget or
update: mean and median over units and characters.
""",
        commands=list(commands.values()),
        tables=[_reach_table(left, needed), _pace_table(paces)],
        figures=[_along_figure(trained)],
        rule="three parts, for the trained models. Slowly: the LSTM's c correlates with itself a "
        f"character before by more than {SLOW:g}, and by more than the plain RNN's h. Far: at lag "
        f"{LAG} at least {percent(FLOOR)} of the gradient is left along the LSTM's c, and along "
        f"its h, which all cells have, at least {FARTHER:g} times as much as along the plain "
        f"RNN's. Used: the LSTM needs at least {USED:g} times as much context; left out if both "
        "need more than was tried. All: holds; some: in part.",
        judgement=judge_along(
            {key: shares[LAG] for key, shares in trained.items()},
            needed,
            {cell: _under(trained[cell, "h"]) for cell in needed},
            paces,
        ),
    )


def _reach_table(
    left: Mapping[tuple[str, str, str], Sequence[float]], needed: Mapping[str, int | None]
) -> Table:
    """Return what is left of gradients, by weights, cell and state, and each cell's context."""
    rows = []
    for (weights, cell, state), shares in left.items():
        under = _under(shares)
        rows.append(
            [
                f"{cell.upper()} {state}",
                weights,
                f"> {len(shares) - 1}" if under is None else f"{under}",
                percent(shares[NEARER]),
                percent(shares[LAG]),
                _context(needed[cell]) if weights == "trained" else "",
            ]
        )
    head = [
        "state", "weights", "1 % at lag", f"left at lag {NEARER}", f"left at lag {LAG}",
        "context needed",
    ]  # fmt: skip
    return Table(head, rows, words=2)


def _pace_table(paces: Mapping[tuple[str, str], Pace]) -> Table:
    head = [
        "state, trained", "correlation with itself a character before",
        f"kept over {KEPT_OVER} characters, mean", "median",
    ]  # fmt: skip
    rows = [
        [
            f"{cell.upper()} {state}",
            f"{pace.correlation:+.3f}",
            *(
                "" if share is None else percent(share)
                for share in (pace.kept_mean, pace.kept_median)
            ),
        ]
        for (cell, state), pace in paces.items()
    ]
    return Table(head, rows)


def _along_figure(trained: Mapping[tuple[str, str], Sequence[float]]) -> Figure:
    title = "Gradient against lag along the states of trained cells"
    chart = line_chart(
        "along",
        title,
        [
            Line(f"{cell.upper()} {state}", range(1, len(shares)), shares[1:], style)
            for style, ((cell, state), shares) in enumerate(trained.items())
        ],
        x_label="lag k, characters",
        y_label="share of the gradient at lag 0, trained",
        x_log=True,
        y_log=True,
        y_range=(1e-5, 4.0),
        rules=[Rule("1 %", 0.01)],
    )
    return Figure("along", title, standalone(chart))


def _under(shares: Sequence[float]) -> int | None:
    """Return the lag from which on less than 1 % is left; None: none of those measured."""
    lag = 1 + max(k for k, share in enumerate(shares) if share >= 0.01)
    return lag if lag < len(shares) else None


def _context(needed: int | None) -> str:
    return "more than tried" if needed is None else f"{needed:,}"


def judge_along(
    left: Mapping[tuple[str, str], float],
    needed: Mapping[str, int | None],
    under: Mapping[str, int | None],
    paces: Mapping[tuple[str, str], Pace],
) -> Judgement:
    """Judge claim 9.

    Args:
        left: cell, state -> share of the gradient left at lag ``LAG``, trained.
        needed: cell -> characters of context from which on its loss is that of all; None: more
            than were tried.
        under: cell -> lag from which on less than 1 % is left along its h, trained; None: none
            of those measured.
        paces: cell, state -> how slowly it changes, trained.
    """
    rnn, lstm, gru = (left[cell, "h"] for cell in ("rnn", "lstm", "gru"))
    c = left["lstm", "c"]
    pace, other = paces["lstm", "c"], paces["rnn", "h"]
    slow = pace.correlation > SLOW and pace.correlation > other.correlation
    reaches, farther = c >= FLOOR, lstm > 0 and lstm >= FARTHER * rnn
    least, most = needed["rnn"], needed["lstm"]
    used = least is not None and (most is None or (most > 0 and most >= USED * least))
    others = ", ".join(
        f"the {'plain ' if cell == 'rnn' else ''}{cell.upper()}'s {state} {one.correlation:+.2f}"
        for (cell, state), one in paces.items()
        if (cell, state) != ("lstm", "c")
    )
    how = "changes slowly" if slow else "does not change slowly"
    if pace.correlation > SLOW and not slow:
        how = "changes slowly, but no more so than the plain RNN's h"
    own, plain = under["lstm"], under["rnn"]
    return judged(
        [slow, reaches and farther] + ([] if least is most is None else [used]),
        f"The LSTM's c {how}: it correlates with itself a character before by "
        f"{pace.correlation:+.2f}; {others}.",
        f"Its forget gates keep {percent(pace.kept_mean)} of it over {KEPT_OVER} characters in the "
        f"mean, {percent(pace.kept_median)} in the median."
        if pace.kept_mean is not None and pace.kept_median is not None
        else "",
        f"At lag {LAG}, {percent(c)} of the gradient is left along the LSTM's c"
        + ("." if reaches else f", under {percent(FLOOR)}: so far it does not reach."),
        f"Along its h {percent(lstm)} is left, and along the plain RNN's {percent(rnn)}"
        + ("." if farther else f": not {FARTHER:g} times as much."),
        f"But the LSTM's h is under 1 % from lag {own} on, the plain RNN's "
        + (f"from lag {plain} on." if plain is not None else "at no lag that was measured.")
        if own is not None and (plain is None or own <= plain)
        else "",
        f"Context that is needed, in characters: LSTM {_context(most)}, RNN {_context(least)}"
        + (
            ": not compared."
            if least is most is None
            else "."
            if used
            else f": not {USED:g} times as much."
        ),
        f"The GRU has no memory beside its state, and keeps {percent(gru)} along h: more than the "
        f"LSTM along its h{', and along its c too' if gru > c else ''}. So it takes no memory line "
        "to reach that far: an update gate does for h what the forget gate does for c. Each share "
        "is of a size at lag 0 of its own, so that those of c and h compare only roughly."
        if gru > lstm and gru >= FLOOR
        else "",
    )
