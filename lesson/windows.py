"""Claims 3 and 4: what a window does to the gradient, and to what is learnt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from charrnn.figures import Line, Rule, line_chart, standalone
from lesson.lab import Lab
from lesson.recurrence import run_of
from lesson.section import Figure, Judgement, Section, Table, judged, percent

__all__ = [
    "CHANCE",
    "LEARNT",
    "beyond",
    "judge_beyond",
    "judge_window",
    "recall_text",
    "recall_training",
    "window",
]

#: The window of the claim, and how many of its losses count.
T, LAST = 108, 10
#: What the memory of a laptop is taken to be, in bytes.
LAPTOP = 16e9
#: Degrees from which on a gradient is not the exact one.
EXACT = 1.0
#: Nats of a key that nobody remembers: one of eight.
CHANCE = math.log(8)
#: Shares of that below which a key counts as learnt, and above which as not learnt at all.
LEARNT, NOTHING = 0.1, 0.9


def window(lab: Lab) -> Section:
    """Hold the gradient by windows against the full one."""
    inspect = (
        f"charrnn inspect {run_of('lstm')} --part valid --characters {lab.size.inspected} --only "
        "truncation --device cpu"
    )
    lengths = " ".join(f"--bptt {length}" for length in lab.size.windows)
    commands = [f"{inspect} {lengths} --json", f"{inspect} --bptt {T} --loss-last {LAST} --json"]
    every, last = (lab.json(command)["truncation"] for command in commands)
    trained, initial = every
    (of_last,) = last[0]["windows"]
    full = trained["full"]
    windows = [*trained["windows"], of_last]
    # What a character of a lane keeps for the backward pass, times all characters.
    whole = full["bytes"] / (full["bptt"] * trained["lanes"]) * lab.characters
    rows = [
        [
            f"{one['bptt']:,}" + (" (all)" if one is full else ""),
            "all" if one["loss_last"] is None or one is full else f"last {one['loss_last']}",
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
        + [Line(f"last {LAST} of {T}", [T], [of_last["angle"]], 2)],
        x_label="window, characters",
        y_label="angle to the full gradient, degrees",
        x_log=True,
        y_range=(-2.0, max(92.0, trained["between_halves"] + 4)),
        rules=[Rule("another piece of the text", trained["between_halves"])],
    )  # fmt: skip
    return Section(
        number=3,
        why=f"""
The loss at `t` depends on the weights through every earlier step: `dL_t/dW` is a sum over all
`k` of the way back from `h_t` to `h_{{t-k}}`. Backpropagation through time adds it up exactly
but has to keep every step's state until the backward pass. Truncation cuts the sum off at the
window's edge, where the state comes in as a constant. Angles are between that gradient and the
full one through all {full["bptt"]:,} steps of {trained["lanes"]} pieces of text, for the
trained LSTM. Two full gradients of different pieces are {trained["between_halves"]:.0f}° apart:
what another sample of the text changes anyhow.
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
            Figure("3-window", "Angle to the full gradient against the window", standalone(chart))
        ],
        rule="three parts. All steps at once are hardly feasible: over the whole text they keep "
        f"more than {LAPTOP / 1e9:.0f} GB. Not exact: the gradient of {T} steps, last {LAST} "
        f"counted, is more than {EXACT:g}° off. No choice: no window measured is nearer to the "
        "full gradient and takes less time per prediction (all steps at once, from which the "
        "angles are measured, do not count). All three: holds; some: in part.",
        judgement=judge_window(of_last, trained["windows"], full, whole),
    )  # fmt: skip


def judge_window(
    of_last: Mapping[str, Any],
    windows: Sequence[Mapping[str, Any]],
    full: Mapping[str, Any],
    whole: float,
) -> Judgement:
    """Judge claim 3.

    Args:
        of_last: the window of the claim, as ``inspect`` answers.
        windows: others, with the loss on all of their characters.
        full: that of all time steps at once, from which the angles are measured.
        whole: bytes that all time steps of the text at once would keep.
    """
    cheaper = [
        one for one in windows if one["seconds_per_character"] < of_last["seconds_per_character"]
    ]
    nearest = min(cheaper, key=lambda one: one["angle"], default=None)
    better = nearest is not None and nearest["angle"] < of_last["angle"]
    choice = "No window measured is both nearer to it and cheaper."
    if nearest is not None:
        ratio = of_last["seconds_per_character"] / nearest["seconds_per_character"]
        choice = (
            f"{'But there is a choice: a' if better else f'{choice} A'} window of "
            f"{nearest['bptt']:,} with the loss on all of its characters is "
            f"{nearest['angle']:.1f}° off and takes 1/{ratio:.1f} of the time per prediction, "
            "because no step is computed for nothing; it keeps "
            f"{nearest['bytes'] / of_last['bytes']:.1f} times as much."
        )
    return judged(
        [whole > LAPTOP, of_last["angle"] > EXACT, not better],
        f"All time steps of this text at once would keep {whole / 1e9:,.0f} GB for the backward "
        f"pass, {'more' if whole > LAPTOP else 'no more'} than a laptop has.",
        _growth([*windows, full]),
        f"The gradient of the last {of_last['loss_last']} of {of_last['bptt']} has "
        f"{of_last['size']:.2f} of the full one's size and is {of_last['angle']:.1f}° off it: "
        + ("not exact." if of_last["angle"] > EXACT else "a direction as good as exact."),
        choice,
    )


def _growth(windows: Sequence[Mapping[str, Any]]) -> str:
    """Say how memory and time grow from a window in the middle to the longest."""
    short, long = windows[len(windows) // 2], windows[-1]
    if short is long:
        return ""
    memory, seconds = (long[name] / short[name] for name in ("bytes", "seconds_per_character"))
    return (
        f"From a window of {short['bptt']:,} to one of {long['bptt']:,} a backward pass keeps "
        f"{memory:.1f} times as much and takes {seconds:.1f} times the time per prediction."
    )


def recall_text(lab: Lab) -> tuple[str, str]:
    """Return the file of the recall text, and the command that writes it."""
    file = f"corpora/recall-{lab.size.distance}.txt"
    return file, f"python corpora/recall.py --distance {lab.size.distance} > {file}"


def recall_training(lab: Lab, cell: str) -> str:
    """Return the beginning of a command that trains on the recall text."""
    file, _ = recall_text(lab)
    return (
        f"charrnn train {file} --cell {cell} --hidden {lab.size.recall_hidden} --steps "
        f"{lab.size.recall_steps} --valid-share 0.05 --device cpu --precision fp32 --quiet"
    )


def beyond(lab: Lab) -> Section:
    """Train on a text that asks for a memory, with windows around what it asks for."""
    file, write = recall_text(lab)
    lengths = lab.size.recall_windows
    listed = ",".join(map(str, lengths))
    train = f"{recall_training(lab, 'lstm')} --bptt $T"
    train += f" --batch-size $(({lab.size.recall_lanes} / T))"
    loop = "\n".join(
        [
            f"for T in {' '.join(map(str, lengths))}; do",
            f"  {train} --run checkpoints/lesson/carried-$T",
            f"  {train} --reset-state --run checkpoints/lesson/reset-$T",
            "done",
        ]
    )  # fmt: skip
    score = (
        f"charrnn evaluate checkpoints/lesson/{{carried,reset}}-{{{listed}}} --part valid --after "
        "= --device cpu --json"
    )
    lab.do(write)
    lab.do(loop)
    priced = [row["after"]["nats_per_char"] for row in lab.json(score)]
    carried = dict(zip(lengths, priced[: len(lengths)], strict=True))
    reset = dict(zip(lengths, priced[len(lengths) :], strict=True))
    chart = line_chart(
        "beyond",
        f"Price of the key {lab.size.distance} characters back, by the window it was learnt with",
        [
            Line("state carried", list(carried), list(carried.values()), 0),
            Line("state reset", list(reset), list(reset.values()), 1),
        ],
        x_label=f"window, characters; the key is {lab.size.distance} back",
        y_label="nats for the key",
        x_log=True,
        y_range=(-0.08, 1.15 * max(CHANCE, *priced)),
        rules=[Rule("not remembered: ln 8", CHANCE)],
    )
    first = (lab.folder / file).read_text(encoding="utf-8").partition("\n")[0]
    return Section(
        number=4,
        why=f"""
Every line of the recall text is a key, noise, `=`, and the key again: `{first}`. The second key
is {lab.size.distance} characters after the first and cannot be guessed otherwise, so it costs
ln 8 = {CHANCE:.2f} nats where it is not remembered and nothing where it is. `--after =` prices
that place alone. The gradient of a window shorter than {lab.size.distance} never connects the
two. What can connect them is the state, which training carries from window to window as a
number without a gradient; `--reset-state` takes that away too. All runs have the same number of
steps and read as many characters.
""",
        commands=[write, loop, score],
        tables=[
            Table(
                ["window", "state carried: nats for the key", "state reset: nats for the key"],
                [[f"{n:,}", f"{carried[n]:.3f}", f"{reset[n]:.3f}"] for n in lengths],
                words=0,
            )
        ],
        figures=[Figure("4-beyond", "Price of the key against the window", standalone(chart))],
        rule="holds if no window shorter than the distance brings the key below "
        f"{percent(NOTHING)} of ln 8, neither with the state carried nor with it reset, while some "
        f"window at least as long brings it below {percent(LEARNT)}; in part if only some of this "
        "is so; not tested if the shorter ones do not and no longer one does. With the state reset "
        "a shorter window can never learn it: those runs show that nothing else gives "
        "the key away, and the verdict turns on the others.",
        judgement=judge_beyond(lab.size.distance, carried, reset),
    )


def _unexplained(distance: int, carried: Mapping[int, float]) -> str:
    """Say that a shorter window does better than longer ones that are too short as well."""
    short = {n: price for n, price in sorted(carried.items()) if n < distance}
    best = min(short, key=lambda n: short[n])
    longer = [str(n) for n, p in short.items() if n > best and p > short[best] + LEARNT * CHANCE]
    if not longer:
        return ""
    return f" That {best} does better than {' and '.join(longer)} is seen here and not explained."


def judge_beyond(
    distance: int, carried: Mapping[int, float], reset: Mapping[int, float]
) -> Judgement:
    """Judge claim 4.

    Args:
        distance: characters from the key to its repetition.
        carried: window -> nats of the key, trained with the state carried on.
        reset: the same, trained with every window from the zero state.
    """

    def best(prices: Mapping[int, float], *, shorter: bool) -> tuple[float, int]:
        return min((p, n) for n, p in prices.items() if (n < distance) == shorter)

    (price, window), (price_reset, window_reset) = (
        best(prices, shorter=True) for prices in (carried, reset)
    )
    (longer, enough), (longer_reset, enough_reset) = (
        best(prices, shorter=False) for prices in (carried, reset)
    )
    learns = min(longer, longer_reset) < LEARNT * CHANCE
    kept, kept_reset = price > NOTHING * CHANCE, price_reset > NOTHING * CHANCE
    if kept and kept_reset and not learns:
        return judged(
            [],
            "No window learnt the key in these steps: it costs "
            f"{min(*carried.values(), *reset.values()):.2f} nats at best, and {CHANCE:.2f} by "
            "chance. So nothing is shown about the shorter ones.",
        )
    return judged(
        [kept, kept_reset, learns],
        f"With the state reset no window shorter than {distance} learns it: the best leaves the "
        f"key at {price_reset:.2f} of {CHANCE:.2f} nats; the best of the others, {enough_reset}, "
        f"at {longer_reset:.2f}."
        if kept_reset
        else f"Even with the state reset a window of {window_reset} brings the key to "
        f"{price_reset:.2f} of {CHANCE:.2f} nats.",
        f"With the state carried no shorter window learns it{' either' if kept_reset else ''} (at "
        f"best {price:.2f} nats)."
        if kept
        else f"With the state carried a window of {window} brings the key to {price:.2f} nats "
        f"({longer:.2f} with {enough}). No gradient reaches the key, but traces of it are in the "
        "state that comes in, and the window learns to read and to preserve them."
        + (" Truncation makes it harder, not impossible." if longer < price else "")
        + _unexplained(distance, carried),
        "" if learns else f"No window of {distance} or more brings it below {percent(LEARNT)}.",
    )
