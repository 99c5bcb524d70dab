"""Claims 5 and 6: vanishing and exploding gradients, and clipping."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, takewhile
from typing import Any

from charrnn.views.figures import Line, line_chart
from charrnn.wording import joined
from lesson.lab import Answer, Lab
from lesson.recurrence import inspect
from lesson.section import Figure, Judgement, Section, Table, judged, percent

#: The lag of claim 5, and the shares of the gradient below and above which it counts as vanished
#: and as exploded there: 0.9^20 is 0.12, and 1.1^20 is 6.7.
LAG, VANISHED, EXPLODED = 20, 0.2, 5.0
#: The largest distance from 1 at which a radius counts as 1.
NEAR = 0.05
#: Factor within which the product of radius and slope must predict the share left.
CLOSE = 2.0
#: The range of shares of the gradient, and the last lag, that the figures show.
FAINTEST, LOUDEST, LAGS = 1e-6, 1e4, 100
#: Nats above the best training from which on a training counts as gone wrong.
WRONG = 0.5
#: Window and lanes of claim 6. Without a recurrence, windows of one character in ``WINDOW * LANES``
#: lanes read as many characters per update.
WINDOW, LANES = 64, 32
#: How the trainings of claim 6 differ, besides their rates.
CUT = ("clipped to norm 1", "not clipped")
RECURRENCE = (f"window of {WINDOW}", "no recurrence")

#: Rate, one of ``CUT`` and one of ``RECURRENCE``.
Training = tuple[float, str, str]


@dataclass(frozen=True)
class Course:
    """How a training went."""

    log: Sequence[Mapping[str, Any]]
    """Its rows about updates."""
    end: float
    """Training loss of the last row; infinity if a number that was not finite stopped it."""


def flow(lab: Lab, cell: str) -> str:
    """Return the command that measures a cell's flow, memory and pace; the RNN's by radius, too."""
    scaled = " ".join(f"--spectral-radius {radius:g}" for radius in lab.size.radii)
    return (
        f"{inspect(lab, cell)} --only flow --only memory --only pace"
        f"{' ' + scaled if cell == 'rnn' else ''} --device cpu --json"
    )


def radii(lab: Lab) -> Section:
    """Measure the gradient back through recurrent matrices of several spectral radii."""
    command = flow(lab, "rnn")
    flows = lab.json(command)["gradient_flow"]
    ((trained_radius,),) = flows[0]["spectral_radii"]
    left = {
        (found["weights"], found["scaled_to"], reach["state"]): shares_left(reach, "relative")
        for found in flows
        for reach in found["reaches"]
    }
    linear, initial, scaled = (
        {radius: left[weights, radius, state][LAG] for radius in lab.size.radii}
        for weights, state in (("initial", "linear"), ("initial", "h"), ("trained", "h"))
    )
    trained = left["trained", None, "h"][LAG]
    slopes = {(found["weights"], found["scaled_to"]): found["tanh_slopes"][0] for found in flows}
    products = {r: (r * slopes["initial", r]) ** LAG for r in lab.size.radii}
    rows = [
        [
            f"{r:g}",
            *map(_share, (r**LAG, linear[r])),
            f"{slopes['initial', r]:.3f}",
            *map(_share, (products[r], initial[r], scaled[r])),
        ]
        for r in lab.size.radii
    ]
    rows.append([f"{trained_radius:.2f}, as trained", *[""] * 5, _share(trained)])
    return Section(
        title="Vanishing and exploding",
        claim="With a recurrent weight below 1 gradients vanish, above 1 they explode, within 20 "
        "steps already; it must lie near 1.",
        why=f"""
One step back multiplies the gradient by `Uᵀ diag(1 - h²)`. Leave the tanh out, and `k` steps
are `Uᵀ` to the power `k`. Its size is governed by the spectral radius `ρ`, the largest absolute
eigenvalue of `U`. For the initial `U`, a scaled orthogonal matrix, it is exactly `ρᵏ` at every
`k`. For a trained `U`, which is not normal, it grows like `ρᵏ` only for large `k`. That is the
textbook's picture, measured here as "without tanh". "With tanh" is the gradient of the network
as it is: the mean over {flows[0]["places"]} places of |dL_t/dh_{{t-k}}| as a share of its size at
lag 0. The recurrent matrices of the initial and of the trained weights are scaled to each radius.
`s` is the root mean square of tanh' = 1 - h² along the way: if neither the matrix nor the gradient
favoured a direction, a step would leave `ρ s`. Before training, a unit's input `W e` has a mean
square of 1, because the embeddings have one of 1: far enough from 0 for tanh to bend.
""",
        commands=[command],
        tables=[
            Table(
                ["spectral radius ρ", f"ρ^{LAG}", "initial, without tanh", "s of the initial",
                 f"(ρ s)^{LAG}", "initial, with tanh", "trained, with tanh"],
                rows,
            )
        ],
        figures=[
            _radii_figure(lab.size.radii, left, trained_radius, "linear", "without tanh"),
            _radii_figure(lab.size.radii, left, trained_radius, "h", "with tanh"),
        ],
        rule="three parts, about what is left of the gradient with tanh at lag "
        f"{LAG}. Below 1 it vanishes: less than {percent(VANISHED)} is left at every radius below "
        f"1. Above 1 it explodes: it is more than {EXPLODED:g} times as large, at every radius "
        "above 1. At 1 it is between the two. Each part must hold with initial and with trained "
        "weights; one is left out where there is no gradient to begin with. All: holds; some: in "
        "part.",
        judgement=judge_radii(
            initial,
            scaled,
            trained_radius,
            trained,
            products,
            slopes["trained", None],
        ),
    )  # fmt: skip


def _radii_figure(
    radii: Sequence[float],
    left: Mapping[tuple[str, float | None, str], Sequence[float]],
    trained: float,
    state: str,
    how: str,
) -> Figure:
    """Return one state's figure: the initial network at several radii, and the trained one.

    Args:
        radii: spectral radii of the initial weights.
        left: weights, radius and state -> share of the gradient left at each lag.
        trained: radius of the unscaled trained weights.
        state: the state whose gradient is shown.
        how: how the gradient passes it, in words.
    """
    lines = [
        _line(f"initial, radius {radius:g}", left["initial", radius, state], style)
        for style, radius in enumerate(radii)
    ]
    lines.append(_line(f"trained, radius {trained:.2f}", left["trained", None, state], len(radii)))
    chart = line_chart(
        f"radii-{state}",
        f"Gradient against lag by spectral radius, {how}",
        sorted((line for line in lines if not math.isnan(line.y[0])), key=_height),
        x_label=f"lag k, characters; {how}",
        y_label="share of the gradient at lag 0",
        y_log=True,
        y_range=(FAINTEST, LOUDEST),
    )
    title = f"Gradient against lag {how}: the initial network at each radius, and the trained one"
    return Figure(how.replace(" ", "-"), title, chart)


def shares_left(reach: Mapping[str, Any], by: str) -> list[float]:
    """Return the share of a state's gradient that is left at each lag.

    JSON has null for a share that is not finite: infinity, as it is too large for a float, or NaN
    if the gradient at lag 0 is zero.

    Args:
        reach: the state's reach, as ``inspect`` answers.
        by: which average over the places: ``"relative"`` (mean) or ``"median"``.
    """
    none = math.inf if reach["size"] else math.nan
    return [none if share is None else share for share in reach[by]]


def _share(value: float) -> str:
    if math.isnan(value):
        return "no gradient"
    return "overflow" if math.isinf(value) else f"{value:.2g}"


def _line(label: str, left: Sequence[float], style: int) -> Line:
    """Return a gradient's line by lag, up to where it leaves the figure: there it is at the edge.

    (Outside it, labels would be stacked by how far the last point happens to lie beyond the edge.)
    """
    inside = [*takewhile(lambda share: FAINTEST <= share <= LOUDEST, left[: LAGS + 1])]
    shown = [min(max(share, FAINTEST), LOUDEST) for share in left[: min(len(inside), LAGS) + 1]]
    return Line(label, range(len(shown)), shown, style)


def _height(line: Line) -> float:
    """Return how high a line lies; a sort key.

    A line that has left the figure counts as staying at that edge. So the labels of lines that
    leave at the same edge are stacked in the right order.
    """
    return sum(map(math.log, [*line.y, *[line.y[-1]] * (LAGS + 1 - len(line.y))]))


def _as_told(radius: float, left: float) -> bool | None:
    """Return whether a radius behaves as claimed; None if there was no gradient to tell by."""
    if math.isnan(left):
        return None
    if radius < 1:
        return left < VANISHED
    return left > EXPLODED if radius > 1 else VANISHED <= left <= EXPLODED


def _sign(radius: float) -> int:
    """Return on which side of 1 a radius is: -1, 0 or 1."""
    return (radius > 1) - (radius < 1)


def judge_radii(
    initial: Mapping[float, float],
    scaled: Mapping[float, float],
    radius: float,
    left: float,
    products: Mapping[float, float],
    slope: float,
) -> Judgement:
    """Judge claim 5.

    Args:
        initial: spectral radius -> share of the gradient left at the lag, initial weights.
        scaled: the same for the trained weights scaled to the radius.
        radius: spectral radius of the unscaled trained weights.
        left: share of the gradient left with these.
        products: radius -> share that radius and tanh's slope predict, initial weights.
        slope: root mean square of tanh's slope with the unscaled trained weights.
    """
    parts: dict[int, list[bool | None]] = {}
    for found in (initial, scaled):
        for r, share in found.items():
            parts.setdefault(_sign(r), []).append(_as_told(r, share))
    fate = "is still there"
    if left < VANISHED:
        fate = "has vanished"
    elif left > EXPLODED:
        fate = "has exploded"
    about = 1.0 if abs(radius - 1) <= NEAR else radius
    told = _as_told(about, left)
    known = {r: share for r, share in initial.items() if not math.isnan(share)}
    wrong = [r for r, share in known.items() if not _close(products[r], share)]
    product = (radius * slope) ** LAG
    return judged(
        [all(behave) for behave in parts.values() if None not in behave],
        _radii_told("initial", initial),
        _radii_told("trained", scaled),
        _certain(initial),
        f"The trained network ended at a radius of {radius:.2f}, and at lag {LAG} its gradient "
        f"{fate} ({_share(left)} is left)" + ("." if told else ": the radius alone does not tell.")
        if told is not None
        else "",
        _decides(known, {r: products[r] for r in known}, wrong) if known else "",
        f"For the trained network s is {slope:.3f}, (ρ s)^{LAG} is {_share(product)}, and "
        f"{_share(left)} is left"
        + (
            f", so there it tells{'' if wrong else ' as well'}."
            if _close(product, left)
            else ": its matrix is not orthogonal, so a step need not stretch anything by ρ, and "
            "what a character's loss needs of the state may favour some directions."
        )
        if told is not None
        else "",
    )


def _certain(initial: Mapping[float, float]) -> str:
    """Say that below 1 the gradient almost had to vanish, if it did and arithmetic shows it.

    Args:
        initial: spectral radius of the initial weights, whose matrix is orthogonal but for a
            factor -> share of the gradient that is left.
    """
    below = {radius: left for radius, left in initial.items() if radius < 1}
    nearest = max(below, default=1.0)
    if nearest**LAG >= VANISHED or not all(left < VANISHED for left in below.values()):
        return ""
    return (
        "That it vanishes below 1 with initial weights is almost certain by arithmetic: "
        f"{nearest:g}^{LAG} is {_share(nearest**LAG)}, even without tanh."
    )


def _close(one: float, other: float) -> bool:
    return other / CLOSE <= one <= other * CLOSE


def _decides(
    left: Mapping[float, float], products: Mapping[float, float], wrong: Sequence[float]
) -> str:
    """Say whether radius and tanh's slope together predict what is left, and where they do not."""
    beside = ", ".join(f"{_share(products[r])} at {r:g}" for r in wrong or left)
    if wrong:
        return (
            f"Radius and the slope of tanh together, (ρ s)^{LAG}, do not tell what is left with "
            f"initial weights: {beside}."
        )
    alone = all(_close(r**LAG, share) for r, share in left.items())
    above = [f"{r:g}" for r, product in products.items() if product > 1]
    where = "above 1 at every radius tried"
    if len(above) < len(products):
        where = (
            f"above 1 only at {' and '.join(above)}" if above else "below 1 at every radius tried"
        )
    return (
        f"Radius and the slope of tanh together, (ρ s)^{LAG}, tell what is left with initial "
        f"weights, within a factor of {CLOSE:g} ({beside}): there ρ s"
        f"{'' if alone else ', not ρ,'} decides, and it was {where}."
    )


def _radii_told(weights: str, left: Mapping[float, float]) -> str:
    """Say which radii behave as claimed, given the share of the gradient left at each."""
    good = [f"{r:g}" for r, share in left.items() if _as_told(r, share)]
    bad = [
        f"{r:g} ({_share(share)} left)" for r, share in left.items() if _as_told(r, share) is False
    ]
    if not good and not bad:
        return f"With {weights} weights there is no gradient to follow."
    if not good:
        return f"With {weights} weights no radius behaves as claimed: {', '.join(bad)}."
    but = f", but not {', '.join(bad)}" if bad else ""
    return f"With {weights} weights a radius of {' or '.join(good)} behaves as claimed{but}."


def clipping(lab: Lab) -> Section:
    """Train at high rates with and without clipping, and measure how clipping turns gradients."""
    size = lab.size
    loop, look = commands = _clipping_commands(lab)
    trainings = [
        (rate, cut, recurrence)
        for rate in size.clip_rates
        for cut in CUT
        for recurrence in RECURRENCE
    ]
    read = partial(_courses, trainings)
    courses = read(lab.do(loop, read))
    ends = {training: course.end for training, course in courses.items()}
    cuts = [cut for cut in lab.json(look)["cuts"] if cut["weights"] == "trained"]
    return Section(
        title="Clipping",
        claim="A large gradient is easy to mend: cut its size, keep its direction.",
        why="""
A step of plain gradient descent, `w ← w - η g`, throws the weights far away if it is too large,
be it because of the rate `η` or because of the gradient. A recurrence can make a gradient large by
itself: where many steps back each enlarge it, the loss is as steep as a cliff (Pascanu, Mikolov and
Bengio 2013). To tell the two apart, every training is repeated without a recurrence: with windows
of one character that start from the zero state, and as many characters per update. Clipping by norm
replaces `g` by `g min(1, c / |g|)`, which is shorter and has the same direction; that the cosine is
1 is arithmetic. Clipping by value cuts every entry separately, which turns the gradient. All runs
train a plain RNN by plain descent on the same text, with one seed; with another seed, training may
go wrong at other rates.
(The default optimiser, Muon, normalises a running mean of the gradients, not each gradient. The
mean keeps 95 % of itself at each step, so a gradient 100 times as large as the others outweighs
them for about 30 steps.)
""",
        commands=commands,
        tables=[
            Table(
                ["rate", "training", "recurrence", "steps",
                 "largest gradient norm of an update", "updates clipped",
                 "training loss at the end"],
                [_training_row(training, course) for training, course in courses.items()],
                words=3,
            ),
            Table(
                ["gradient cut to", "cosine, cut by norm", "cosine, cut by value"],
                [
                    [
                        percent(cut["share"]),
                        f"{_cosine(cut['by_norm']):.6f}",
                        f"{_cosine(cut['by_value']):.3f}",
                    ]
                    for cut in cuts
                ],
                words=0,
            ),
        ],
        figures=[_clipping_figure(courses)],
        rule="a training has gone wrong if it stops because a number is not finite, or ends, by "
        f"its training loss, more than {WRONG:g} nats above the best training; those without a "
        "recurrence are compared among themselves. The trainings with a recurrence decide: holds "
        "if at every rate at which training goes wrong without clipping it does not with clipping; "
        "in part if at some of these rates; not tested if there is no such rate.",
        judgement=judge_clipping(
            *(
                {rate: (ends[rate, CUT[0], recurrence], ends[rate, CUT[1], recurrence])
                 for rate in size.clip_rates}
                for recurrence in RECURRENCE
            )
        ),
    )  # fmt: skip


def _clipping_commands(lab: Lab) -> list[str]:
    size = lab.size
    train = (
        f"charrnn train{lab.words} --cell rnn --hidden {size.clip_hidden} --optimiser sgd --lr $LR "
        f"--clip-norm $NORM --steps {size.clip_steps} --valid-share {lab.valid_share} --device cpu "
        "--precision fp32"
    )
    loop = "\n".join(
        [
            f"for LR in {' '.join(f'{rate:g}' for rate in size.clip_rates)}; do",
            "  for NORM in 1 0; do",
            f"    {train} --bptt {WINDOW} --batch-size {LANES} --run "
            "checkpoints/lesson/clip-$NORM-rate-$LR --json || true",
            f"    {train} --bptt 1 --batch-size {WINDOW * LANES} --reset-state --run "
            "checkpoints/lesson/alone-$NORM-rate-$LR --json || true",
            "  done",
            "done",
        ]
    )
    return [loop, f"{inspect(lab, 'rnn')} --only clipping --device cpu --json"]


def _training_row(training: Training, course: Course) -> list[str]:
    rate, cut, recurrence = training
    log = course.log
    loss = f"{course.end:.3f}" if math.isfinite(course.end) else "stopped: not finite"
    if not log:
        return [f"{rate:g}", cut, recurrence, "none logged", "", "", loss]
    return [
        f"{rate:g}",
        cut,
        recurrence,
        f"{log[-1]['step']:,}",
        f"{max(row['largest_gradient_norm'] for row in log):.3g}",
        percent(_clipped(log)),
        loss,
    ]


def _clipped(log: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of updates clipped; each row covers the updates since the row before."""
    steps = [0, *(row["step"] for row in log)]
    updates = [after - before for before, after in pairwise(steps)]
    return statistics.fmean([row["clipped_share"] for row in log], updates)


def _clipping_figure(courses: Mapping[Training, Course]) -> Figure:
    """Return the figure of the trainings with a recurrence."""
    drawn = [(rate, cut, course.log) for (rate, cut, recurrence), course in courses.items()
             if recurrence == RECURRENCE[0]]  # fmt: skip
    chart = line_chart(
        "clipping",
        "Training loss with and without clipping, by rate",
        [
            Line(
                f"rate {rate:g}, {cut.removesuffix(' to norm 1')}",
                [row["step"] for row in log],
                [row["train_nats_per_char"] for row in log],
                style,
            )
            for style, (rate, cut, log) in enumerate(drawn)
        ],
        x_label="step",
        y_label="training loss, nats per character",
        y_log=True,
    )
    title = f"Training loss with clipping to norm 1 and without, windows of {WINDOW}"
    return Figure("clipping", title, chart)


def _courses(trainings: Sequence[Training], answer: Answer) -> dict[Training, Course]:
    """Return how each training went, from the output of one ``train --json`` after another.

    Raises:
        LessonError: one ended early for another reason than a number that was not finite.
    """
    told: list[list[Mapping[str, Any]]] = []
    # Not splitlines: a sample may contain other line boundaries.
    for event in map(json.loads, filter(None, answer.out.split("\n"))):
        if event["event"] == "started":
            told.append([])
        told[-1].append(event)
    courses = [_course(events) for events in told]
    whole = sum(math.isfinite(course.end) for course in courses)
    if whole + answer.not_finite != len(trainings):
        raise answer.ended_early()
    return dict(zip(trainings, courses, strict=True))


def _course(events: Sequence[Mapping[str, Any]]) -> Course:
    log = [event for event in events if event["event"] == "logged"]
    whole = events[-1]["event"] == "finished" and events[-1]["complete"]
    return Course(log, log[-1]["train_nats_per_char"] if whole else math.inf)


def _cosine(degrees: float | None) -> float:
    return math.nan if degrees is None else math.cos(math.radians(degrees))


def judge_clipping(
    ends: Mapping[float, tuple[float, float]], alone: Mapping[float, tuple[float, float]]
) -> Judgement:
    """Judge claim 6.

    Args:
        ends: rate -> final training loss with clipping and without, in nats per character;
            infinity if training stopped early.
        alone: the same without a recurrence.
    """
    wrong, wrong_alone = _wrong(ends), _wrong(alone)
    mended = [rate for rate, (clipped, not_clipped) in wrong.items() if not_clipped and not clipped]
    lost = [rate for rate, both in wrong.items() if all(both)]
    fine = [rate for rate, (_, not_clipped) in wrong.items() if not not_clipped]

    def at(rates: Sequence[float]) -> str:
        listed = joined([f"{rate:g}" for rate in rates], "and")
        return f"{'rates' if len(rates) > 1 else 'a rate'} of {listed}"

    def end(value: float) -> str:
        return f"at {value:.3f} nats" if math.isfinite(value) else "in an overflow"

    def both(rates: Sequence[float], of: Mapping[float, tuple[float, float]] = ends) -> str:
        which = {rate: f"with {rate:g} " if len(rates) > 1 else "" for rate in rates}
        return "; ".join(
            f"{which[rate]}it ends {end(of[rate][0])} with clipping and {end(of[rate][1])} without"
            for rate in rates
        )

    tested = [*mended, *lost]
    too_large = [rate for rate in tested if wrong_alone[rate][1]]
    recurrent = [rate for rate in tested if not any(wrong_alone[rate])]
    return judged(
        [rate in mended for rate in tested],
        f"At {at(mended)} clipping decides: {both(mended)}." if mended else "",
        f"At {at(lost)} training goes wrong with clipping, too: {both(lost)}." if lost else "",
        f"At {at(fine)} training does not go wrong without clipping: {both(fine)}." if fine else "",
        "" if tested else "So there was nothing to mend.",
        f"At {at(recurrent)} it is the recurrence that does the harm: without one, training does "
        f"not go wrong there ({both(recurrent, alone)})."
        if recurrent
        else "",
        f"At {at(too_large)} the step is too large whatever the network: without a recurrence it "
        f"goes wrong, too ({both(too_large, alone)}). That shows what clipping does, but not a "
        "recurrence's cliff."
        if too_large
        else "",
    )


def _wrong(ends: Mapping[float, tuple[float, float]]) -> dict[float, tuple[bool, bool]]:
    """Return for each rate whether training goes wrong with clipping and without."""
    best = min(end for pair in ends.values() for end in pair)

    def wrong(end: float) -> bool:
        return not math.isfinite(end) or end > best + WRONG

    return {rate: (wrong(one), wrong(other)) for rate, (one, other) in ends.items()}
