"""Put a model's measurements into the rows and sentences that a terminal and a page show."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from charrnn.analysis.activity import ALWAYS, KEPT_OVER, Activation, GateUse, Pace, UnitFound
from charrnn.analysis.equations import SHOWN, Step
from charrnn.analysis.flow import GradientFlow, Reach
from charrnn.analysis.gradients import Cut, Truncation
from charrnn.analysis.memory import Memory
from charrnn.analysis.norms import Clipping
from charrnn.analysis.properties import PROPERTIES
from charrnn.config import CellName
from charrnn.wording import counted, cut_word, is_drawn_onto, joined, printable, quoted, significant

CUTS_SAY = (
    "How far a gradient turns when cut to a share of its norm: scaled as a whole, as --clip-norm "
    "does, or with every entry cut to one limit, as --clip-value does."
)
ZERO_SAYS = (
    "A reset leaves the zero state, from which training reads only at the beginning of an epoch, "
    "so for small k the figures include more than the lack of context."
)
NORMS_SAY = (
    "10 % (a tenth of the norms are below it) and median are of the norms in the log, each a mean "
    "over up to 10 updates; largest is of a single update."
)
COSTS_SAY = (
    "At k = 0 the bias of the head alone predicts. More: nats above those with the state carried "
    "on; ±: one standard error. How many characters are enough is read off a fit to these figures "
    "that never rises with k, as single ones scatter."
)
LINEAR_SAYS = "through the recurrent matrix alone, as if tanh had a slope of 1 everywhere."
SLOPE_SAYS = (
    "Slope: root mean square of 1 - h². The initial recurrent matrix is orthogonal but for a "
    "factor, so within a layer each step back leaves about radius x slope."
)
#: How a gradient comes back through each cell.
BACK: dict[CellName, str] = {
    "rnn": "In a plain RNN each step back multiplies a gradient by the slopes of tanh, 1 - h², and "
    "by the recurrent matrix, transposed.",
    "lstm": "In an LSTM the direct path back along c multiplies a gradient by the forget gate at "
    "each step (forget: by this path alone); every other path, and every one from h, passes a "
    "matrix of weights. Each state's gradient is relative to its own size at k = 0, so c and h "
    "compare only roughly.",
    "gru": "In a GRU the direct path back along h multiplies a gradient by the update gate at each "
    "step (update: by this path alone); every other path passes a matrix of weights.",
}
#: What the letters in the equations of ``charrnn.analysis.equations`` stand for.
LETTERS: dict[CellName, str] = {
    "rnn": "h: the state before the step; h': after it; W, U: weights of the input and of the "
    "state; b: bias",
    "lstm": "h, c: state and memory before the step; h', c': after it; i, f, o: input, forget and "
    "output gate; g: candidate; W, U: weights of the input and of the state; b: biases; "
    "σ: logistic function; ∘: product unit by unit",
    "gru": "h: the state before the step; h': after it; r, z: reset and update gate; n: candidate; "
    "W, U: weights of the input and of the state; b, d: biases; σ: logistic function; ∘: product "
    "unit by unit",
}
#: What the gates of ``charrnn.network.cells`` do when they are open. One that keeps a state (the
#: cell's ``keepers``) says so.
OPEN = {
    "input": "input writes to c",
    "forget": "forget keeps c",
    "output": "output shows c in h",
    "reset": "reset lets h into the candidate",
    "update": "update keeps h",
}
#: How many standard errors below the full context's a loss must be to be reported as lower.
SURE = 4


def step_says(step: Step, cell: CellName) -> str:
    """Say what is computed, and how closely it agrees with the model."""
    below = ", or h' of the layer below" if any(q.layer > 1 for q in step.quantities) else ""
    return (
        f"Over {step.characters:,} characters from the zero state, the equations and the model "
        f"differ by at most {step.logits_difference:.1e} in a logit, and by "
        f"{step.state_difference:.1e} in a unit at the end. Nats per character: "
        f"{step.written_nats:.6f} by the equations, {step.model_nats:.6f} by the model. Below, one "
        "step, computed by its equations from the checkpoint's weights in float64; it reads "
        f"{quoted(step.read)}. e: the character's embedding{below}; {LETTERS[cell]}; V, v: the "
        "head's weights and bias. In brackets: a layer's first units; for the logits y and the "
        "probabilities p, the likeliest next characters."
    )


def step_lines(step: Step) -> list[list[str]]:
    """Return the table of the step: its head, and a row per equation, the model's values below."""
    lines = [["layer", "line", "equation", *(f"[{n + 1}]" for n in range(SHOWN))]]
    for quantity in step.quantities:
        if quantity.name == "y":
            named = [*map(quoted, step.likeliest), *[""] * (SHOWN - len(step.likeliest))]
            lines.append([str(quantity.layer), "", "next character", *named])
        shown = [(f"= {quantity.equation}", quantity.units)]
        if quantity.model is not None:
            shown.append(("by the model", quantity.model))
        for words, values in shown:
            numbers = [f"{value:+z.5f}" for value in values]
            numbers += [""] * (SHOWN - len(numbers))
            lines.append([str(quantity.layer), quantity.name, words, *numbers])
    return lines


def _have_slopes(flows: Iterable[GradientFlow]) -> bool:
    """Whether any of these models has a slope of tanh to show; only a plain RNN has."""
    return any(slope is not None for flow in flows for slope in flow.tanh_slopes)


def flow_found(flows: Sequence[GradientFlow]) -> str:
    """Say how far back a gradient reaches with the first weights, if they are not scaled.

    Empty if they are, or if there is no gradient.
    """
    flow = flows[0]
    reaches = [reach for reach in flow.reaches if reach.size > 0 and reach.state != "linear"]
    if flow.scaled_to is not None or not reaches:
        return ""
    ends = [reach.median_under_1_percent_at for reach in reaches]
    last = None if None in ends else max(end for end in ends if end is not None)
    left = (
        f"more than 1 % of a gradient is left even {reaches[0].farthest} characters back"
        if last is None
        else f"less than 1 % of a gradient is left from {last} characters back on"
    )
    along = [f"{reach.state} {reach.layer}" for reach in reaches]
    farthest = [name for name, end in zip(along, ends, strict=True) if end == last]
    where = ", where it reaches farthest" if len(farthest) < len(along) else ""
    return f"With {flow.weights} weights {left} along {joined(farthest, 'and')}{where}."


def columns_say(flows: Sequence[GradientFlow]) -> str:
    """Explain the radius, the slope and the lags in the table of the gradient flow."""
    scaled = "; * scaled to it" if any(flow.scaled_to for flow in flows) else ""
    slope = f" {SLOPE_SAYS}" if _have_slopes(flows) else ""
    return (
        "Radius: the recurrent matrices' spectral radius (largest absolute eigenvalue), smallest "
        f"to largest{scaled}.{slope} Half at, 1 % at: the lag k from which on less than that is "
        "left, in the median over the places; in brackets the lag for their mean, where it "
        "differs (a few places can dominate a mean)."
    )


def gradient_flow_lines(flows: Sequence[GradientFlow]) -> list[list[str]]:
    """Return the table of the gradient flow: its head, and a row per state."""
    farthest = flows[0].reaches[0].farthest
    lags = [k for k in (1, 10) if k <= farthest]
    with_slopes = _have_slopes(flows)
    head = ["weights", "radius", "along", *(["slope"] if with_slopes else []), "half at", "1 % at"]
    lines = [head + [f"k = {k}" for k in lags]]

    def named(median: int | None, mean: int | None) -> str:
        one, other = (f"> {farthest}" if lag is None else str(lag) for lag in (median, mean))
        return one if one == other else f"{one} ({other})"

    for flow in flows:
        for reach in flow.rows:
            radii = flow.spectral_radii[reach.layer - 1]
            measured = [
                named(reach.median_halves_at, reach.halves_at),
                named(reach.median_under_1_percent_at, reach.under_1_percent_at),
                *("" if math.isnan(m := reach.median[k]) else significant(m, 2) for k in lags),
            ]
            lines.append(
                [
                    flow.weights,
                    _range(min(radii), max(radii)) + ("" if flow.scaled_to is None else " *"),
                    f"{reach.state} {reach.layer}",
                    *([_slope(flow, reach)] if with_slopes else []),
                    *(measured if reach.size else ["no gradient", "", *[""] * len(lags)]),
                ]
            )
    return lines


def _slope(flow: GradientFlow, reach: Reach) -> str:
    slope = 1.0 if reach.state == "linear" else flow.tanh_slopes[reach.layer - 1]
    return "" if slope is None else f"{slope:.2f}"


def _range(low: float, high: float) -> str:
    ends = (f"{low:.2f}", f"{high:.2f}")
    return "-".join(dict.fromkeys(ends))


def memory_says(memory: Memory) -> str:
    """Say how much context is enough."""
    enough = enough_says(memory)
    return (
        f"{enough[0].upper()}{enough[1:]} to come within {memory.tolerance:g} nats of the loss "
        f"with the state carried on, {memory.full_nats:.4f} nats per character; training read "
        f"windows of {memory.bptt:,}"
        + (
            ", each begun from the zero state, as after a reset."
            if memory.reset_state
            else f". {ZERO_SAYS}"
        )
        + f" Loss with the state reset k characters before the one that is scored "
        f"({memory.windows:,} resets). {COSTS_SAY}"
    )


def enough_says(memory: Memory) -> str:
    """Say how many characters of context are enough, and whether fewer do better than all."""
    between = _between(memory)
    if memory.needed is None:
        return f"more than {memory.longest:,} characters{between} are needed"
    are = "is" if memory.needed == 1 else "are"
    enough = f"{counted(memory.needed, 'character')}{between} {are} enough"
    least = min(memory.excess_nats)
    at = memory.excess_nats.index(least)
    # One of hundreds of noisy figures is lowest by chance.
    if -least <= max(memory.tolerance, SURE * memory.standard_error[at]):
        return enough
    best = counted(at, "character")
    return f"{enough} (with {best} the loss is {-least:.4f} nats lower than with the full context)"


def _between(memory: Memory) -> str:
    """Return in brackets the range of the context that is enough; empty if it is one number."""
    low, high = (
        f"more than {memory.longest:,}" if characters is None else f"{characters:,}"
        for characters in memory.needed_between
    )
    return "" if low == high else f" ({low} to {high} within one standard error)"


def memory_lines(memory: Memory) -> list[list[str]]:
    """Return the table of the memory: its head, and rows for contexts of 0, 1, 2, 4, ..."""
    rows = [
        [
            f"{k:,}",
            f"{memory.nats(k):.4f}",
            f"{memory.excess_nats[k]:+z.4f}",
            f"{memory.standard_error[k]:.4f}",
        ]
        for k in contexts(memory)
    ]
    return [["k", "nats/char", "more", "±"], *rows]


def activation_ends(shown: Activation) -> tuple[str, str]:
    """Return the ends of the scale on which a unit's states are coloured."""
    return f"{-shown.largest:z.3g}", f"{shown.largest:.3g}"


def contexts(memory: Memory) -> list[int]:
    """Return the lengths of context in the memory's table."""
    farthest = memory.longest
    return sorted({0, *(1 << n for n in range(farthest.bit_length())), farthest})


def pace_found(paces: Sequence[Pace]) -> str:
    """Say which state changes most slowly and which fastest; empty if none differ as shown."""
    varying = sorted((one for one in paces if math.isfinite(one.mean)), key=lambda one: one.mean)
    if len({f"{one.mean:+z.3f}" for one in varying}) < 2:
        return ""
    fastest, slowest = (
        f"{one.state} {one.layer} (correlation {one.mean:+z.3f})"
        for one in (varying[0], varying[-1])
    )
    return f"From one character to the next {slowest} changes least, {fastest} most."


def pace_says(paces: Iterable[Pace]) -> str:
    """Say what the table of the pace shows, of one model's states or of several's."""
    said = (
        "Correlation of each unit's state with its value one character earlier (autocorrelation at "
        "lag 1): near 1 it changes slowly, near 0 a value tells little of the next one. Mean, "
        "lowest and highest over the units."
    )
    keepers = dict.fromkeys(f"the {pace.gate} gate for {pace.state}" for pace in paces if pace.gate)
    if keepers:
        said += (
            f" Kept: the share of a state that its gate ({', '.join(keepers)}) keeps over "
            f"{KEPT_OVER} characters, the product of the gate's values: mean and median."
        )
    return said


def pace_lines(paces: Sequence[Pace]) -> list[list[str]]:
    """Return the table of the pace: its head, and a row per layer and state."""
    are_kept = any(pace.gate is not None for pace in paces)  # a plain RNN has no gates
    lines = [["state", "mean", "lowest", "highest", *(["kept", "median"] if are_kept else [])]]
    for one in paces:
        varying = [value for value in one.autocorrelation if math.isfinite(value)]
        numbers = (one.mean, min(varying), max(varying)) if varying else ()
        lags = [f"{value:+z.3f}" for value in numbers] or ["constant", "", ""]
        kept = [_kept(share) for share in (one.kept_mean, one.kept_median)]
        lines.append([f"{one.state} {one.layer}", *lags, *(kept if are_kept else [])])
    return lines


def _kept(share: float | None) -> str:
    if share is None or math.isnan(share):
        return ""
    return "< 0.001 %" if 0 < share < 1e-5 else f"{100 * share:.3g} %"


def gate_lines(gates: Sequence[GateUse]) -> list[list[str]]:
    """Return the table of the gates: its head, and a row per layer and gate."""
    lines = [["gate", "open", "always", "closed", "always"]]
    for use in gates:
        shares = (np.array(use.open_share), np.array(use.closed_share))
        lines.append(
            [
                f"{use.gate} {use.layer}",
                *(
                    text
                    for share_H in shares
                    for text in (f"{100 * share_H.mean():.1f} %", f"{(share_H > ALWAYS).sum():,}")
                ),
            ]
        )
    return lines


def gates_found(gates: Sequence[GateUse]) -> str:
    """Say which gate is open most often, and which is closed most often."""

    def most(mean: Callable[[GateUse], float]) -> str:
        use = max(gates, key=mean)
        share = mean(use)
        return f"{use.gate} {use.layer}, at {100 * share:.1f} % of characters" if share else "none"

    opened = most(lambda use: float(np.mean(use.open_share)))
    closed = most(lambda use: float(np.mean(use.closed_share)))
    return f"Most often open: {opened}. Most often closed: {closed}."


def gates_say(gates: Sequence[GateUse]) -> str:
    """Say what each of these gates does when it is open."""
    return f"What an open gate does: {', '.join(dict.fromkeys(OPEN[use.gate] for use in gates))}."


def units_found(units: Sequence[UnitFound]) -> str:
    """Say which unit follows its property best."""
    best = max(units, key=lambda found: abs(found.correlation))
    return (
        f"The closest match: unit {best.unit} and {best.property}, with a correlation of "
        f"{best.correlation:+z.3f}."
    )


def units_say(units: Sequence[UnitFound]) -> str:
    """Say how the units were found, and which properties could not be measured."""
    missing = [name for name in PROPERTIES if name not in {found.property for found in units}]
    return (
        "The unit whose state follows each property best (in an LSTM one for h and one for c), "
        "chosen by its correlation on the first half of the text and judged by its correlation on "
        "the second. Mean: the property's."
        + (
            f" Not measured, because constant throughout a half: {', '.join(missing)}."
            if missing
            else ""
        )
    )


def unit_lines(units: Sequence[UnitFound]) -> list[list[str]]:
    """Return the table of the units: its head, and a row per property and state."""
    rows = [
        [
            found.property,
            found.unit.state,
            str(found.unit),
            significant(found.mean, 3),
            f"{found.found:+z.3f}",
            f"{found.correlation:+z.3f}",
        ]
        for found in units
    ]
    return [["property", "state", "unit", "mean", "first", "second"], *rows]


def mark(character: str) -> str:
    """Return a visible form of a character, so that the state at it can be shown."""
    # Joiners and variation selectors are invisible themselves.
    if unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f":
        return "\N{REPLACEMENT CHARACTER}"
    if is_drawn_onto(character):
        return "◌" + character
    return {"\n": "↵", "\r": "␍"}.get(character) or printable(character)


def clipping_says(clipping: Clipping) -> str:
    """Say how large the norms were and what was clipped."""
    share = f"{100 * clipping.clipped_share:.1f} % of updates"
    done = "Nothing was clipped"
    if clipping.clip_norm is not None:
        done = f"Clipped to a norm of {clipping.clip_norm:g}: {share}"
    elif clipping.clip_value is not None:
        done = f"Entries clipped to {clipping.clip_value:g}: {share}"
    elif clipping.scale_norm is not None:
        done = f"Every gradient was scaled to a norm of {clipping.scale_norm:g}, down in {share}"
    first = clipping.periods[0].first_step
    since = f" from step {first:,} on, where the log begins" if first > 1 else ""
    return (
        f"Norms of the gradient over {counted(clipping.steps, 'update')}{since}, the largest "
        f"{significant(clipping.largest, 3)}. {done}."
    )


def clipping_lines(clipping: Clipping) -> list[list[str]]:
    """Return the table of the clipping: its head, and a row per period."""
    rows = [
        [
            f"{period.first_step:,} - {period.last_step:,}",
            *(significant(norm, 3) for norm in (period.low, period.median, period.largest)),
            f"{100 * period.clipped_share:.1f} %",
        ]
        for period in clipping.periods
    ]
    return [["steps", "10 %", "median", "largest", cut_word(clipping.scale_norm)], *rows]


def cuts_found(cuts: Sequence[Cut]) -> str:
    """Say how far a cut gradient turned at most; empty if there is no gradient."""
    turned = [(cut.by_norm, cut.by_value) for cut in cuts if math.isfinite(cut.by_norm)]
    if not turned:
        return ""
    by_norm, by_value = map(max, zip(*turned, strict=True))
    return f"Cut by norm a gradient turned by {by_norm:.1f}°, by value by up to {by_value:.1f}°."


def cut_lines(cuts: Sequence[Cut]) -> list[list[str]]:
    """Return the table of cut gradients: its head, and a row per share."""
    rows = [
        [cut.weights, f"{100 * cut.share:.0f} %", _turned(cut.by_norm), _turned(cut.by_value)]
        for cut in cuts
    ]
    return [["weights", "cut to", "by norm", "by value"], *rows]


def _turned(degrees: float) -> str:
    return f"{degrees:.1f}°" if math.isfinite(degrees) else "no gradient"


def truncation_found(truncations: Sequence[Truncation]) -> str:
    """Say how far the shortest and the longest window turn a gradient; empty if there is none.

    Of a model with trained weights, if one was measured.
    """
    of = max(truncations, key=lambda one: one.weights == "trained")
    windows = sorted(
        (one for one in of.windows if math.isfinite(one.angle)),
        key=lambda one: one.bptt,
    )
    turned = [f"windows of {one.bptt:,} by {one.angle:.0f}°" for one in windows]
    if not turned:
        return ""
    which = ", ".join(dict.fromkeys((turned[0], turned[-1])))
    return f"With {of.weights} weights the gradient is turned from the full one: {which}."


def truncation_says(truncations: Sequence[Truncation]) -> str:
    """Say which windows are compared, and how noisy the full gradient itself is."""
    truncation = truncations[0]
    halves = [
        f"{one.between_halves:.0f}° ({one.weights})"
        for one in truncations
        if math.isfinite(one.between_halves)
    ]
    last = truncation.full.loss_last
    of_each = "all" if last is None else f"the last {last:,} of each"
    timed = "" if last is None else " (of the full one without the steps before these predictions)"
    apart = " For comparison, the full gradients of the two halves of the lanes are "
    return (
        f"The gradient of {truncation.characters:,} predictions, {of_each} of {truncation.lanes} "
        "lanes, computed window by window, compared with the full gradient through all "
        f"{truncation.full.bptt:,} time steps at once: the angle between the two, the size as a "
        f"share of the full one's, the time per prediction{timed}, and the memory kept for the "
        "backward pass." + (f"{apart}{joined(halves, 'and')} apart." if halves else "")
    )


def truncation_lines(truncations: Sequence[Truncation]) -> list[list[str]]:
    """Return the table of the truncation: its head, and a row per window."""
    rows = [
        [
            truncation.weights,
            f"{window.bptt:,}" + (" (all)" if window is truncation.full else ""),
            "all" if window.loss_last is None else f"last {window.loss_last:,}",
            _turned(window.angle),
            f"{window.size:.3f}" if math.isfinite(window.size) else "",
            f"{1e6 * window.seconds_per_character:.1f}",
            f"{window.bytes / 1e6:.2f}",
        ]
        for truncation in truncations
        for window in (*truncation.windows, truncation.full)
    ]
    return [["weights", "window", "loss on", "angle", "size", "µs/char", "MB"], *rows]
