"""Claim 3: what a truncation window does to the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from charrnn.views.figures import Line, Rule, line_chart
from lesson.lab import Lab
from lesson.recurrence import inspect
from lesson.section import Figure, Judgement, Section, Table, judged

#: The window of the claim, and how many of its last losses count.
T, LAST = 108, 10
#: A rival window, and how many of its losses count: each sees at least as far back as the
#: claim's.
RIVAL, RIVAL_LAST = 2 * T - LAST, T
#: The assumed memory of a laptop, in bytes.
LAPTOP = 16e9
#: Angle in degrees above which a gradient counts as not exact, and two angles as different.
EXACT = 1.0


def window(lab: Lab) -> Section:
    """Compare gradients truncated at several windows with the full one."""
    looking = f"{inspect(lab, 'lstm')} --only truncation --device cpu"
    lengths = " ".join(f"--bptt {length}" for length in lab.size.windows)
    commands = [
        f"{looking} {lengths} --json",
        f"{looking} --bptt {T} --loss-last {LAST} --json",
        f"{looking} --bptt {RIVAL} --loss-last {RIVAL_LAST} --json",
    ]
    every, last, other = (lab.json(command)["truncation"] for command in commands)
    trained, initial = every
    (of_last,), (rival,) = last[0]["windows"], other[0]["windows"]
    full = trained["full"]
    windows = [*trained["windows"], of_last, rival]
    # Bytes kept for the backward pass per prediction, times all characters of the text.
    longest = max(trained["windows"], key=lambda one: one["bptt"])
    whole = longest["bytes"] / (longest["bptt"] * trained["lanes"]) * lab.characters
    predictions, before = _counted(full)
    counted_last, counted_rival = (_counted(one[0]["full"]) for one in (last, other))
    so = "The text is too short for more, so the first of any longer windows cuts nothing off"
    if before >= longest["bptt"]:
        so = "So at every prediction the full gradient reaches further back than any window"
    rows = [
        [
            f"{one['bptt']:,}" + (" (all)" if one is full else ""),
            "all" if one["loss_last"] is None else f"last {one['loss_last']:,}",
            f"{one['angle']:.1f}°",
            f"{one['size']:.3f}",
            f"{1e6 * one['seconds_per_character']:.1f}",
            f"{one['bytes'] / 1e6:.2f}",
        ]
        for one in [*windows, full]
    ]
    chart = line_chart(
        "window",
        "Angle between the gradient by windows and the full gradient, by the window's length",
        [
            Line(name, lab.size.windows, [window["angle"] for window in found["windows"]], style)
            for style, (name, found) in enumerate((("trained", trained), ("initial", initial)))
        ]
        + [
            Line(f"last {one['loss_last']} of {one['bptt']}", [one["bptt"]], [one["angle"]], style)
            for style, one in enumerate((of_last, rival), 2)
        ],
        x_label="window, characters",
        y_label="angle to the full gradient, degrees",
        x_log=True,
        y_range=(-2.0, max(92.0, trained["between_halves"] + 4)),
        rules=[Rule("between two halves of the text", trained["between_halves"])],
    )  # fmt: skip
    return Section(
        title="A window",
        claim="Backpropagation through all time steps is hardly feasible, so a window is used: of "
        "108 steps only the loss of the last 10, say. The gradient is not exact, but there is no "
        "choice.",
        why=f"""
The loss at `t` depends on the weights through every earlier step: `dL_t/dW` is a sum over all
`k`, the steps back from `h_t` to `h_{{t-k}}`. Backpropagation through time adds it up exactly,
but has to keep every step's state until the backward pass. Truncation cuts the sum off at the
window's edge, where the state comes in as a constant. The angles are between the truncated gradient
and the full one through all {full["bptt"]:,} steps of {trained["lanes"]} pieces of text, for the
trained LSTM; the figure also has those for the same LSTM before its training ("initial"). The
gradient of the head, which passes through no step, is left out. In each piece {predictions:,}
predictions count, beginning {before:,} characters after its start. {so}. (With the last {LAST} of
{T}, {counted_last[0]:,} predictions count, beginning {counted_last[1]:,} after the start; with the
last {RIVAL_LAST} of {RIVAL}, {counted_rival[0]:,}, beginning {counted_rival[1]:,} after it. Each
gradient is compared with the full one of the same predictions.) The time of the full gradient is
that of these predictions alone, without the characters before them. The full gradients of the two
halves of these pieces are {trained["between_halves"]:.0f}° apart (the dotted line of the figure):
that much changes anyway with another sample of half this size, and some
{_of_whole(trained["between_halves"]):.0f}° with one as large, if the pieces are independent of each
other. With the last {LAST} of {T}, every
prediction has at least {T - LAST} characters of its window before it, and
{_per_prediction(of_last)} steps are computed for each. With the last {RIVAL_LAST} of {RIVAL} it has
as many before it, for {_per_prediction(rival)} steps. The {_size(whole)} below are without
recomputing states in the backward pass (checkpointing), which saves memory and costs time.
""",
        commands=commands,
        tables=[
            Table(
                ["window", "loss on", "angle", "size, share of full", "µs per prediction",
                 "MB kept"],
                rows,
                words=0,
            )
        ],
        figures=[
            Figure("window", "Angle to the full gradient against the window", chart)
        ],
        rule="three parts. All steps at once are hardly feasible: over the whole text they keep "
        f"more than {LAPTOP / 1e9:.0f} GB. Not exact: the gradient of {T} steps with the last "
        f"{LAST} counted is more than {EXACT:g}° off. No choice: no window measured takes less "
        f"time per prediction and comes as near to its full gradient, within {EXACT:g}° (all steps "
        "at once, which the angles are measured from, do not count). All three: holds; some: in "
        "part.",
        judgement=judge_window(of_last, trained["windows"], rival, whole),
    )  # fmt: skip


def judge_window(
    of_last: Mapping[str, Any],
    windows: Sequence[Mapping[str, Any]],
    rival: Mapping[str, Any],
    whole: float,
) -> Judgement:
    """Judge claim 3.

    Args:
        of_last: the window of the claim, as ``inspect`` answers.
        windows: others, with the loss on all of their characters.
        rival: a longer window, with a larger share of its losses counting.
        whole: bytes that backpropagation through the whole text at once would keep.
    """
    cheaper = [
        one
        for one in (*windows, rival)
        if one["seconds_per_character"] < of_last["seconds_per_character"]
    ]
    nearest = min(cheaper, key=lambda one: one["angle"], default=None)
    better = nearest is not None and nearest["angle"] < of_last["angle"] + EXACT
    choice = "No window measured is as near to it and cheaper."
    if nearest is not None:
        ratio = of_last["seconds_per_character"] / nearest["seconds_per_character"]
        last = nearest["loss_last"]
        choice = (
            f"{'But there is a choice: a' if better else f'{choice} A'} window of "
            f"{nearest['bptt']:,} with the loss on "
            f"{'all of its characters' if last is None else f'its last {last:,}'} is "
            f"{nearest['angle']:.1f}° off and takes 1/{ratio:.1f} of the time per prediction "
            f"(steps for each: {_per_prediction(nearest)} instead of {_per_prediction(of_last)}); "
            f"it keeps {nearest['bytes'] / of_last['bytes']:.1f} times as much."
        )
    return judged(
        [whole > LAPTOP, of_last["angle"] > EXACT, not better],
        f"All time steps of this text at once would keep {_size(whole)} for the backward "
        f"pass, {'more' if whole > LAPTOP else 'no more'} than the {LAPTOP / 1e9:.0f} GB assumed "
        "of a laptop.",
        f"The gradient of the last {of_last['loss_last']} of {of_last['bptt']} has "
        f"{of_last['size']:.2f} of the full one's size and is {of_last['angle']:.1f}° off its "
        "direction: " + ("not exact." if of_last["angle"] > EXACT else "as good as exact."),
        choice,
    )


def _counted(full: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many predictions of a piece count in the loss, and how many characters precede."""
    predictions = full["loss_last"] or full["bptt"]
    return predictions, full["bptt"] - predictions


def _per_prediction(window: Mapping[str, Any]) -> str:
    """Return how many steps are computed per prediction that counts in the loss."""
    return f"{window['bptt'] / (window['loss_last'] or window['bptt']):.3g}"


def _of_whole(halves: float) -> float:
    """Return the angle in degrees of gradients of samples twice as large as those ``halves`` apart.

    A gradient is the mean plus independent noise, whose square halves as the sample doubles: the
    cosine r becomes 2 r / (1 + r). Noise alone is at 90 degrees at any size.
    """
    r = max(0.0, math.cos(math.radians(halves)))
    return math.degrees(math.acos(2 * r / (1 + r)))


def _size(memory: float) -> str:
    """Return bytes in words."""
    return f"{memory / 1e9:,.0f} GB" if memory >= 1e10 else f"{memory / 1e6:,.0f} MB"
