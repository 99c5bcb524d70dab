"""Claims 8 and 9: what gates do, what memory holds, how far gradients reach along it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self, TypeVar

import numpy as np

from charrnn.analysis.activity import ALWAYS, KEPT_OVER, NEARLY_CLOSED, NEARLY_OPEN
from charrnn.views.figures import Line, Rule, in_colour_of, line_chart
from charrnn.wording import counted, joined
from lesson.gradients import flow, shares_left
from lesson.lab import Lab
from lesson.recurrence import inspect
from lesson.section import Figure, Judgement, Section, Table, judged, percent

T = TypeVar("T")

#: Share of characters up to which a gate counts as hardly ever open, or hardly ever closed.
IDLE = 0.01
#: Properties that may last longer than a word.
LASTING = ("inside quotes", "inside brackets", "position in line", "indentation")
#: Correlation from which on a unit counts as following a property.
FOLLOWS = 0.5
#: A property lasts long after this many characters. A verdict needs at least OFTEN characters after
#: that, in at least SPELLS spells: fewer spells would be one case seen often.
LONG, OFTEN, SPELLS = 20, 50, 10
#: Characters that the figure shows.
SHOWN = 240
#: The lags at which the table shows how much of a gradient is left.
NEARER, LAG = 10, 50
#: A state's reach is the lag at which less than this share is left, as ``inspect`` finds it; and
#: the ratio from which on one reach counts as farther than another.
REST, FARTHER = 0.01, 2.0
#: The cells whose h is compared with the LSTM's c.
BESIDE = {"rnn": "the plain RNN's h", "lstm": "its own h"}
#: The gates by which alone a gradient is followed, too, and the state that each keeps.
KEPT = {"forget": "c", "update": "h"}
#: Lag-1 autocorrelation above which a unit changes slowly: at 0.9 the root mean square change per
#: step is 0.45 standard deviations, at 0.5 a whole one.
SLOW = 0.9
#: Shares of units above which they count as "some", and as "most".
SOME, MOST = 0.05, 0.5
#: Ratio of mean to median above which few units make up the mean.
FEW = 10.0
#: Ratio of the contexts needed from which on the LSTM counts as using its reach.
USED = 1.5


@dataclass(frozen=True)
class Held:
    """How well one unit's memory follows a property of the text."""

    unit: str
    property_name: str
    correlation: float
    """Correlation of its c with the property."""
    over: int
    """Number of characters that it is over, the last of the text."""
    late: float
    """The same over the characters where the property has lasted for more than ``LONG``."""
    late_over: int
    """Number of characters where it has."""
    spells: int
    """Number of spells that these characters belong to."""

    @property
    def follows(self) -> bool | None:
        """Whether it follows the property for long, too; None if there is too little to tell by."""
        if abs(self.correlation) < FOLLOWS:
            return False
        if self.late_over < OFTEN or self.spells < SPELLS:
            return None
        return self.late * math.copysign(1, self.correlation) >= FOLLOWS


@dataclass(frozen=True)
class Gate:
    """How the units use one gate."""

    opened: float
    """Share of characters at which it is open, mean over the units."""
    closed: float
    """The same for closed."""
    both: int
    """Units whose gate is open at more than ``IDLE`` of the characters, and closed at as many."""
    units: int

    @classmethod
    def of(cls, opened: Sequence[float], closed: Sequence[float]) -> Self:
        """Return the gate from each unit's shares of characters."""
        both = sum(min(pair) > IDLE for pair in zip(opened, closed, strict=True))
        return cls(fmean(opened), fmean(closed), both, len(opened))

    @property
    def is_used(self) -> bool:
        """Whether most units both open and close it."""
        return self.both > self.units / 2


@dataclass(frozen=True)
class Slowness:
    """How slowly a state changes."""

    units: Sequence[float]
    """Lag-1 autocorrelation of each unit that varies."""
    kept_mean: float | None = None
    """Mean product of the state's gate over ``KEPT_OVER`` characters; None without a gate."""
    kept_median: float | None = None

    def quantile(self, share: float) -> float:
        """Return the value that this share of the units is below; NaN if none varies."""
        return float(np.quantile(self.units, share)) if self.units else math.nan

    @property
    def slow(self) -> int:
        """The number of units that change slowly."""
        return sum(one > SLOW for one in self.units)

    @property
    def slow_share(self) -> float:
        """Their share of the units that vary."""
        return self.slow / max(1, len(self.units))


@dataclass(frozen=True)
class Horizon:
    """The lag from which on less than 1 % of a state's gradient is left."""

    lag: int | None
    """None if the gradient at lag 0 is zero."""
    farthest: int = 256
    """The farthest lag measured; a ``lag`` one larger stands for any beyond it."""

    @classmethod
    def of(cls, reach: Mapping[str, Any], by: str) -> Self:
        """Return the horizon from one of ``inspect``'s reaches, and the lag's name in it."""
        farthest = len(reach["relative"]) - 1
        beyond = farthest + 1 if reach["size"] else None
        return cls(beyond if reach[by] is None else reach[by], farthest)

    @property
    def words(self) -> str:
        """It in words."""
        if self.lag is None:
            return "no gradient"
        return f"{self.lag}" if self.lag <= self.farthest else f"> {self.farthest}"

    def farther(self, other: Horizon) -> bool | None:
        """Return whether it is clearly farther than another; None if that was not measured."""
        if self.lag is None or other.lag is None:
            return None
        return _as_many(self.lag, FARTHER, other.lag, self.farthest)

    def just_farther(self, other: Horizon) -> str:
        """Return a note in brackets if it is only just farther: one lag would undo that."""
        if self.lag is None or other.lag is None or self.lag > self.farthest:
            return ""
        return f" (just {FARTHER:g} times)" if self.lag < FARTHER * (other.lag + 1) else ""


@dataclass(frozen=True)
class Context:
    """Characters of context from which on a model's loss is as good as with all of them."""

    needed: int | None
    """None if more than were tried."""
    between: tuple[int | None, int | None]
    """The fewest and the most that one standard error of the loss allows."""
    tried: int

    @classmethod
    def of(cls, memory: Mapping[str, Any]) -> Self:
        """Return the context needed, from what ``inspect`` answers about a model's memory."""
        low, high = memory["needed_between"]
        return cls(memory["needed"], (low, high), len(memory["excess_nats"]) - 1)

    @property
    def words(self) -> str:
        """It in words."""
        one, low, high = (
            f"> {self.tried}" if needed is None else f"{needed}"
            for needed in (self.needed, *self.between)
        )
        return one if low == high else f"{one} ({low} to {high})"

    def more(self, other: Context) -> bool | None:
        """Return whether it is clearly more than another; None if that is not known.

        It is known only if the answer is the same throughout both ranges of ``between``.
        """
        low, high, other_low, other_high = (
            self.tried + 1 if needed is None else needed
            for needed in (*self.between, *other.between)
        )
        if not high:
            return False
        if low and _as_many(low, USED, other_high, self.tried):
            return True
        return False if _as_many(high, USED, other_low, self.tried) is False else None


def _as_many(one: int, times: float, other: int, farthest: int) -> bool | None:
    """Return whether one number of characters is at least ``times`` another.

    Args:
        one: the first number; ``farthest + 1`` stands for any number beyond ``farthest``.
        times: at least 1.
        other: the second number, like ``one``.
        farthest: the largest number that was measured.

    Returns:
        None if ``one`` is beyond ``farthest`` and might be any number of times as large.
    """
    if one <= farthest:
        return one >= times * other
    return True if other <= farthest and one >= times * other else None


def gates(lab: Lab) -> Section:
    """Count open and closed gates, and look for a unit whose memory holds a property."""
    looking = f"{inspect(lab, 'lstm')} --device cpu"
    first = f"{looking} --only gates --only units --json"
    found = lab.json(first)
    commands, tried = [first], []
    for one in memories(found["units"]):
        name = f"{one['unit']['layer']}.{one['unit']['unit']}"
        commands.append(f"{looking} --only units --unit {name}c --json")
        shown = lab.json(commands[-1])["activation"]
        c_T = np.array(shown["values"])
        property_T = np.array(shown["properties"][one["property"]])
        tried.append((hold(name, one["property"], c_T, property_T), c_T, property_T))
    held = [one for one, _, _ in tried]
    drawn = [_memory_figure(*one) for one in tried if one[0] is _shown(held)]
    use = {one["gate"]: Gate.of(one["open_share"], one["closed_share"]) for one in found["gates"]}
    always = {
        one["gate"]: sum(share > ALWAYS for share in one["open_share"]) for one in found["gates"]
    }
    return Section(
        title="The memory line",
        claim="The LSTM adds a memory line. Gates decide what to keep (forget), what to write "
        "(input times tanh) and what to show (output).",
        why=f"""
`c_t = f_t ∘ c_{{t-1}} + i_t ∘ g_t` and `h_t = o_t ∘ tanh(c_t)`: the forget gate `f` decides
how much of the memory `c` is kept, the input gate `i` how much of the candidate `g = tanh(...)` is
written, the output gate `o` how much is shown. The forget gate came with Gers, Schmidhuber and
Cummins (2000); the LSTM of Hochreiter and Schmidhuber (1997) keeps all of `c`. A gate is a
logistic function of the character and the state, so it lies between 0 and 1; open means above
{NEARLY_OPEN:g}, closed below {NEARLY_CLOSED:g} (Karpathy, Johnson and Fei-Fei 2015). Every unit
is correlated with properties of the text that a reader sees. For each property, the best h and the
best c are chosen on the first half of the {found["characters"]:,} characters; the correlations in
the table are those on the second half. Of the properties that last ({joined(LASTING, "or")}) and
vary, the best c's are judged, on the second half too (read in one piece; for the table above in
lanes, so last digits may differ): a property lasts long after {LONG} characters without a break,
and a spell is one such time. Units are written layer.unit: 1.5c is the memory c of unit 5 in layer
1, 1.5 its state h.
""",
        commands=commands,
        tables=[
            Table(
                [
                    "gate",
                    "open, mean over the units",
                    "closed",
                    f"units open at over {percent(ALWAYS)} of characters",
                    f"units open at over {percent(IDLE)} and closed at over {percent(IDLE)}",
                ],
                [
                    [
                        gate,
                        percent(one.opened),
                        percent(one.closed),
                        f"{always[gate]:,}",
                        f"{one.both:,} of {one.units:,}",
                    ]
                    for gate, one in use.items()
                ],
            ),
            Table(
                ["property", "best h", "correlation, second half", "best c",
                 "correlation, second half"],
                _unit_rows(found["units"]),
            ),
            *_held_tables(held),
        ],
        figures=drawn,
        rule="two parts. The gates are used both ways: each is open at more than "
        f"{percent(IDLE)} of characters and closed at more than {percent(IDLE)}, for more than "
        "half of its units. The memory of one of the units judged holds its property: (a) c and "
        f"the property correlate by at least {FOLLOWS:g} in size; (b) the same is so, with the "
        "same sign, over only those characters at which the property has lasted for more than "
        f"{LONG} characters without a break. There must be at least {OFTEN} of these, in at least "
        f"{SPELLS} spells; otherwise that memory is not judged. A property that is only on or off "
        "has one value at all of these characters; those at which it is off are then added, since "
        "otherwise it would not vary. Both parts: holds; one: in part.",
        judgement=judge_gates(use, held),
    )  # fmt: skip


def _unit_rows(units: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return a row per property: its best h and its best c, each with its correlation."""
    rows: dict[str, dict[str, list[str]]] = {}
    for one in units:
        layer, unit, state = (one["unit"][name] for name in ("layer", "unit", "state"))
        cells = [f"{layer}.{unit}{state.replace('h', '')}", f"{one['correlation']:+.3f}"]
        rows.setdefault(one["property"], {})[state] = cells
    return [[name, *of_state["h"], *of_state["c"]] for name, of_state in rows.items()]


def memories(units: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the best c of each property that lasts.

    Args:
        units: the unit that follows best on the first half, for each property and state, as
            ``inspect --only units`` answers.
    """
    return [one for one in units if one["unit"]["state"] == "c" and one["property"] in LASTING]


def _shown(held: Sequence[Held]) -> Held | None:
    """Return the memory to draw: the closest for long of those that hold their property.

    If none does, of those judged; if none is, of all.
    """
    following = [one for one in held if one.follows]
    judged_ones = [one for one in held if one.follows is not None]
    return max(following or judged_ones or held, key=lambda one: abs(one.late), default=None)


def _held_tables(held: Sequence[Held]) -> list[Table]:
    """Return the table of the memories judged; none if there are none."""
    head = ["property", "c", "correlation", f"after {LONG} characters", "characters", "spells",
            "holds it"]  # fmt: skip
    answers = {True: "yes", False: "no", None: "not judged"}
    rows = [
        [
            one.property_name,
            f"{one.unit}c",
            f"{one.correlation:+.2f}",
            f"{one.late:+.2f}",
            f"{one.late_over:,}",
            f"{one.spells:,}",
            answers[one.follows],
        ]
        for one in held
    ]
    return [Table(head, rows)] if rows else []


def _memory_figure(held: Held, c_T: np.ndarray, property_T: np.ndarray) -> Figure:
    """Return the figure of a unit's memory along a text, with the property that it follows."""
    start = _start(property_T)
    x = range(start, min(start + SHOWN, len(c_T)))
    # Scaled to the unit's range, so that both can be read in one figure.
    turned = held.correlation < 0
    drawn = property_T[x] * (-1 if turned else 1)
    drawn = c_T[x].min() + (drawn - drawn.min()) * (np.ptp(c_T[x]) / max(1.0, np.ptp(drawn)))
    chart = line_chart(
        "memory",
        f"The memory of unit {held.unit} along the text, and the property {held.property_name}",
        [
            Line(f"c of unit {held.unit}", x, c_T[x].tolist(), 0),
            Line(held.property_name, x, drawn.tolist(), 1, faint=True),
        ],
        x_label=f"characters, of the last {len(c_T):,}",
        y_label="c; the property stretched to its range" + (", upside down" if turned else ""),
    )
    title = f"The memory of unit {held.unit} along the text"
    return Figure("memory", title, chart)


def _correlation(x_T: np.ndarray, y_T: np.ndarray) -> float:
    """Return Pearson's correlation; 0 if either does not vary."""
    if not len(x_T) or not x_T.std() or not y_T.std():
        return 0.0
    return float(np.corrcoef(x_T, y_T)[0, 1])


def hold(unit: str, name: str, c_T: np.ndarray, property_T: np.ndarray) -> Held:
    """Return how well a unit's memory follows a property, everywhere and after it has lasted long.

    Following a lasting property is not enough: a unit may rise at the start of every line and
    count no further.
    """
    age_T = _ages(property_T)
    late_T = age_T > LONG
    # An on/off property does not vary there, so the characters without it are added.
    varies = late_T.any() and np.ptp(property_T[late_T]) > 0
    chosen_T = late_T if varies else late_T | (property_T == 0)
    return Held(
        unit=unit,
        property_name=name,
        correlation=_correlation(c_T, property_T),
        over=len(c_T),
        late=_correlation(c_T[chosen_T], property_T[chosen_T]),
        late_over=int(late_T.sum()),
        spells=int((age_T == LONG + 1).sum()),
    )


def _ages(property_T: np.ndarray) -> np.ndarray:
    """Return, at each character, for how many in a row a property has been above zero."""
    ages, age = [], 0
    for value in property_T:
        age = age + 1 if value > 0 else 0
        ages.append(age)
    return np.array(ages)


def _start(property_T: np.ndarray) -> int:
    """Return where to start the figure so that the property changes in it as often as possible."""
    changes_T = np.concatenate([[0], np.cumsum(np.diff(property_T) != 0)])
    last = max(1, len(property_T) - SHOWN)
    return int(np.argmax([changes_T[min(t + SHOWN, len(changes_T) - 1)] - changes_T[t]
                          for t in range(last)]))  # fmt: skip


def judge_gates(use: Mapping[str, Gate], held: Sequence[Held]) -> Judgement:
    """Judge claim 8.

    Args:
        use: gate -> how it is used.
        held: how each of the memories to be judged follows its property.
    """
    idle = [
        f"{one.units - one.both:,} of the {gate} gate's {one.units:,}"
        for gate, one in use.items()
        if not one.is_used
    ]
    forget = use["forget"]
    return judged(
        [not idle, any(one.follows for one in held)],
        f"On average over its units, the forget gate is open at {percent(forget.opened)} of "
        f"characters and closed at {percent(forget.closed)}. "
        + (
            "Most units of every gate use it both ways."
            if not idle
            else f"Units that hardly ever open a gate or hardly ever close it: {', '.join(idle)}."
        ),
        _held_told(held),
    )


def _held_told(held: Sequence[Held]) -> str:
    """Say whether one of the memories judged holds its property."""
    if not held:
        return "No property that lasts varies in both halves of the text: no memory is judged."
    one = _shown(held)
    assert one is not None
    told = (
        f"over the last {one.over:,} characters c correlates with it by {one.correlation:+.2f}, "
        f"and at the {one.late_over:,} of them (in {counted(one.spells, 'spell')}) at which it has "
        f"lasted for more than {LONG} by {one.late:+.2f}"
    )
    of_one = f'unit {one.unit} with "{one.property_name}": {told}.'
    judged_units = f"{counted(len(held), 'unit')} judged"
    if one.follows:
        number = sum(other.follows is True for other in held)
        return f"The memory of {number:,} of {judged_units} holds its property, as {of_one}"
    if all(other.follows is None for other in held):
        return (
            f"Whether a memory holds a property is not tested: no property lasts long at {OFTEN} "
            f"characters in {SPELLS} spells. The closest is {of_one}"
        )
    tested = counted(sum(other.follows is not None for other in held), "unit")
    return f"The memory of none of {tested} judged holds its property. The closest is {of_one}"


def along(lab: Lab) -> Section:
    """Compare how far gradients reach along the states of the three cells."""
    commands = {cell: flow(lab, cell) for cell in ("rnn", "lstm", "gru")}
    found = {cell: lab.json(command) for cell, command in commands.items()}
    flows = {
        (model["weights"], cell, reach["state"]): reach
        for cell, one in found.items()
        for model in one["gradient_flow"]
        for reach in model["reaches"]
        if model["scaled_to"] is None and reach["state"] != "linear"
    }
    flows |= {
        ("trained", cell, reach["state"]): reach
        for cell, one in found.items()
        for model in one["gradient_flow"]
        for reach in model["direct"]
        if (model["weights"], model["scaled_to"]) == ("trained", None)
    }
    medians = {key: shares_left(reach, "median") for key, reach in flows.items()}
    reaches, by_mean = (
        {key: Horizon.of(reach, by) for key, reach in flows.items()}
        for by in ("median_under_1_percent_at", "under_1_percent_at")
    )
    contexts = {cell: Context.of(one["memory"]) for cell, one in found.items()}
    paces = {
        (cell, pace["state"]): Slowness(
            [unit for unit in pace["autocorrelation"] if unit is not None],
            pace["kept_mean"],
            pace["kept_median"],
        )
        for cell, one in found.items()
        for pace in one["pace"]
    }
    places = found["lstm"]["gradient_flow"][0]["places"]
    tolerance = found["lstm"]["memory"]["tolerance"]
    return Section(
        title="Gradients along the memory",
        claim="The memory changes slowly and its gradient does not pass through the recurrent "
        "weights, so gradients reach far back.",
        why=f"""
Along the memory line alone, `dc_t/dc_{{t-k}}` is the product of `k` forget gates: no matrix and no
tanh. Each factor is near 1 while its gate is open, but their product is not: gates at
{NEARLY_OPEN:g} leave {percent(NEARLY_OPEN**NEARER)} after {NEARER} characters and
{percent(NEARLY_OPEN**LAG)} after {LAG}. Along the `h` of a plain RNN or an LSTM a gradient has to
pass the matrix at every step; a GRU's `h` also has the term `z ∘ h`, which passes no matrix. The
shares are of total derivatives, so they include all other paths back (from an LSTM's h into c, and
on along that); "alone" is the gradient at lag 0 times the values of the state's gate at the `k`
steps, unit by unit: the path that passes no matrix. Each is relative to its own size at lag 0, so
those of c and h compare only roughly. The lag from which on less than {percent(REST)} is left, in
the median over {places} places of the text, is called a state's reach here; beside it stands the
lag for the mean, which a few places can dominate. {percent(REST)} is a convention, not a limit to
what can be learned. What the model uses is "context needed": how many characters after a reset of
the state its loss comes within {tolerance:g} nats of that with the state carried on; in brackets,
what one standard error of the loss allows. It includes what it takes to leave the zero state, which
training hardly sees. How slowly a unit changes is told by its correlation `r` with its own value
one character earlier: a step changes it by `√(2 (1 - r))` standard deviations, root mean square. It
is slow if `r` is above {SLOW:g}, which makes that {_change(SLOW):.2f}. "Kept" is the product of
{KEPT_OVER} successive values of the state's gate, forget or update: mean and median over units and
characters.
""",
        commands=list(commands.values()),
        tables=[_reach_table(reaches, by_mean, medians, contexts), _pace_table(paces)],
        figures=[_along_figure(_trained(medians))],
        rule="for the trained models. Slowly, two parts: some units of the LSTM's c, more than "
        f"{percent(SOME)}, change slowly, and a larger share than of the plain RNN's h; most of "
        f"them do, more than {percent(MOST)}. Far: the LSTM's c reaches at least {FARTHER:g} times "
        "as far as the plain RNN's h and as its own h, by the medians over the places; where there "
        "is no gradient, or what was measured ends too early to tell, that is not decided, and the "
        f"part does not hold. Used: the LSTM needs at least {USED:g} times as much context as the "
        "plain RNN, even where one standard error makes it need the fewest characters and the "
        "plain RNN the most. If it does only the other way round, or if too little was tried to "
        "tell, this part does not count. All parts: holds; some: in part.",
        judgement=judge_along(_trained(reaches), contexts, paces),
    )


def _trained(by_model: Mapping[tuple[str, str, str], T]) -> dict[tuple[str, str], T]:
    """Return the values for the trained models, by cell and state."""
    return {
        (cell, state): one
        for (weights, cell, state), one in by_model.items()
        if weights == "trained"
    }


def _named(cell: str, state: str) -> str:
    """Return what a state is called, or a gate by which alone a state is followed."""
    if state in KEPT:
        return f"{cell.upper()} {KEPT[state]}, {state} gates alone"
    return f"{cell.upper()} {state}"


def _reach_table(
    reaches: Mapping[tuple[str, str, str], Horizon],
    by_mean: Mapping[tuple[str, str, str], Horizon],
    medians: Mapping[tuple[str, str, str], Sequence[float]],
    contexts: Mapping[str, Context],
) -> Table:
    """Return the table of what is left of each gradient, and of the context each cell needs."""
    rows = [
        [
            _named(cell, state),
            weights,
            reach.words,
            by_mean[weights, cell, state].words,
            *(
                "" if math.isnan(share) else percent(share)
                for share in (medians[weights, cell, state][lag] for lag in (NEARER, LAG))
            ),
            contexts[cell].words if weights == "trained" and state not in KEPT else "",
        ]
        for (weights, cell, state), reach in reaches.items()
    ]
    head = [
        "state", "weights", "under 1 % from lag, median", "by the mean",
        f"left at lag {NEARER}, median", f"left at lag {LAG}, median", "context needed",
    ]  # fmt: skip
    return Table(head, rows, words=2)


def _pace_table(paces: Mapping[tuple[str, str], Slowness]) -> Table:
    head = [
        "state, trained", "correlation with its value a character earlier: 10 % of units below",
        "median unit", "90 % below", "slow units", f"kept over {KEPT_OVER} characters, mean",
        "median",
    ]  # fmt: skip
    rows = [
        [
            f"{cell.upper()} {state}",
            *(f"{pace.quantile(share):+.3f}" for share in (0.1, 0.5, 0.9)),
            f"{pace.slow} of {len(pace.units)}",
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
    styles = {key: style for style, key in enumerate(trained)}
    for cell, state in trained:
        if state in KEPT:
            own = styles[cell, KEPT[state]]
            styles[cell, state] = in_colour_of(own, styles[cell, state])
    chart = line_chart(
        "along",
        title,
        [
            Line(
                # In the colour of the state; a longer name would leave no room for the lines.
                f"{state} gates" if state in KEPT else _named(cell, state),
                range(1, len(shares)),
                shares[1:],
                styles[cell, state],
            )
            for (cell, state), shares in trained.items()
            if not math.isnan(shares[0])
        ],
        x_label="lag k, characters",
        y_label="share of the gradient at lag 0, trained, median",
        x_log=True,
        y_log=True,
        y_range=(1e-5, 4.0),
        rules=[Rule(percent(REST), REST)],
    )
    return Figure("along", title, chart)


def _change(correlation: float) -> float:
    """Return a unit's root mean square change per step, in its standard deviations."""
    return math.sqrt(2 * (1 - correlation))


def judge_along(
    reaches: Mapping[tuple[str, str], Horizon],
    contexts: Mapping[str, Context],
    paces: Mapping[tuple[str, str], Slowness],
) -> Judgement:
    """Judge claim 9.

    Args:
        reaches: cell, state or gate -> how far the gradient reaches, trained weights.
        contexts: cell -> context needed.
        paces: cell, state -> how slowly the state changes, trained weights.
    """
    c, pace = reaches["lstm", "c"], paces["lstm", "c"]
    some = pace.slow_share > max(SOME, paces["rnn", "h"].slow_share)
    most = pace.slow_share > MOST
    farther = {cell: c.farther(reaches[cell, "h"]) for cell in BESIDE}
    used = contexts["lstm"].more(contexts["rnn"])
    needs = ", ".join(f"{cell.upper()} {contexts[cell].words}" for cell in ("lstm", "rnn", "gru"))
    how = f"needs at least {USED:g} times as much as the plain RNN"
    if not used:
        how = f"does not need {USED:g} times as much as the plain RNN"
    return judged(
        [some, most, all(farther.values())] + ([] if used is None else [used]),
        *_pace_told(paces, some=some, most=most),
        _far_told(reaches, farther),
        _h_told(reaches),
        f"Context needed, in characters: {needs}; "
        + (
            f"whether the LSTM needs {USED:g} times as much as the plain RNN is not known."
            if used is None
            else f"the LSTM {how}."
        ),
        _gru_told(reaches, paces["gru", "h"]),
    )


def _pace_told(
    paces: Mapping[tuple[str, str], Slowness], *, some: bool, most: bool
) -> Iterator[str]:
    """Say how many units change slowly, and how much of the memory is kept."""
    pace = paces["lstm", "c"]
    how = "most units do" if most else "some units do, most do not"
    if not some:
        how = "hardly any does"
        if pace.slow_share > SOME:
            share = "most" if most else "some"
            how = f"{share} units do, no larger a share than of the plain RNN's h"
    others = ", ".join(
        f"{one.slow} of {len(one.units)} of the {'plain ' if cell == 'rnn' else ''}{cell.upper()}'s"
        f" {state}"
        for (cell, state), one in paces.items()
        if (cell, state) != ("lstm", "c")
    )
    yield (
        f"Of the LSTM's c {pace.slow} of {len(pace.units)} units change slowly: {how}. For "
        f"comparison: {others}."
    )
    if pace.units:
        yield (
            "The median unit of c correlates with its value a character earlier by "
            f"{pace.quantile(0.5):+.2f}: a step changes it by {_change(pace.quantile(0.5)):.2f} "
            "standard deviations."
        )
    if pace.kept_mean is not None and pace.kept_median is not None:
        few = pace.kept_mean > FEW * pace.kept_median
        yield (
            f"Over {KEPT_OVER} characters the forget gates keep {percent(pace.kept_mean)} of it in "
            f"the mean, {percent(pace.kept_median)} in the median"
            + (": a few keep much, most next to nothing." if few else ".")
        )


def _far_told(
    reaches: Mapping[tuple[str, str], Horizon], farther: Mapping[str, bool | None]
) -> str:
    """Say how far gradients reach along the LSTM's memory, compared with h."""
    c = reaches["lstm", "c"]
    names: dict[str, list[str]] = {}
    for cell, one in farther.items():
        just = c.just_farther(reaches[cell, "h"])
        told = f"at least {FARTHER:g} times as far as along {{}}{just}"
        if one is False:
            told = f"not {FARTHER:g} times as far as along {{}}"
        elif one is None:
            told = f"whether {FARTHER:g} times as far as along {{}} is not decided"
        names.setdefault(told, []).append(BESIDE[cell])
    verdicts = [told.format(" and ".join(along)) for told, along in names.items()]
    alone, plain = reaches["lstm", "forget"], reaches["rnn", "h"]
    compared = ""
    if (as_far := alone.farther(plain)) is not None:
        how = "at least" if as_far else "not"
        compared = f": {how} {FARTHER:g} times as far as along {BESIDE['rnn']}"
    return (
        f"Along the LSTM's c less than {percent(REST)} of the gradient is left in the median from "
        f"lag {c.words} on, along its own h from {reaches['lstm', 'h'].words}, along the plain "
        f"RNN's h from {reaches['rnn', 'h'].words}: {'; '.join(verdicts)}. By its forget gates "
        f"alone, from lag {alone.words} on{compared}."
    )


def _h_told(reaches: Mapping[tuple[str, str], Horizon]) -> str:
    """Say that the memory line does not help h, if it does not."""
    if reaches["lstm", "h"].farther(reaches["rnn", "h"]) is not False:
        return ""
    return (
        "Along h, which all cells have, the LSTM's gradient does not clearly reach farther than "
        "the plain RNN's."
    )


def _gru_told(reaches: Mapping[tuple[str, str], Horizon], pace: Slowness) -> str:
    """Say that a memory line is not needed, if the GRU's h reaches as far as the LSTM's c."""
    gru, c = reaches["gru", "h"], reaches["lstm", "c"]
    if not gru.farther(reaches["rnn", "h"]) or c.farther(gru) is not False:
        return ""
    than = f"the LSTM's c does not reach {FARTHER:g} times as far"
    if gru.farther(c):
        than = f"at least {FARTHER:g} times as far as along the LSTM's c{gru.just_farther(c)}"
    kept = ""
    if pace.kept_mean is not None and pace.kept_median is not None:
        kept = (
            f" (they keep {percent(pace.kept_mean)} of h over {KEPT_OVER} characters in the mean, "
            f"{percent(pace.kept_median)} in the median)"
        )
    return (
        "The GRU has no memory beside its state, and along its h less than "
        f"{percent(REST)} is left from lag {gru.words} on: {than}. So a memory line is not needed "
        "to reach that far. By its update gates alone less than "
        f"{percent(REST)} is left from lag {reaches['gru', 'update'].words} on{kept}."
    )
