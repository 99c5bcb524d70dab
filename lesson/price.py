"""Claims 10 and 11: what the cells cost, and what they are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self

from charrnn.figures import Dots, dot_chart
from lesson.lab import Lab
from lesson.recurrence import compare, compare_steps, untouched
from lesson.section import Figure, Judgement, Section, Table, judged, percent

#: How many times as long a cell must take to be dearer: clocks differ by less.
DEARER = 1.05
#: Share of the multiply-adds below which a model's time tells little about its recurrence.
MOST = 0.5
#: The most that "half" may be, and from which share on nothing is saved.
HALF, NOT_LESS = 0.6, 0.95

Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Loss:
    """What one cell scores, over all seeds."""

    nats: float
    """Nats per character, mean."""
    ahead_of: Sequence[str] = ()
    """Cells whose mean is above it by more than chance makes, as ``compare`` judges that."""
    by_seed: Sequence[float] = ()

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Return it from the row that ``compare --json`` gives of a cell."""
        seeds = tuple(run["nats_per_char"] for run in row["runs"])
        return cls(row["nats_per_char"], tuple(row["ahead_of"]), seeds)

    @property
    def words(self) -> str:
        """The mean, with the least and the most of the seeds."""
        return f"{self.nats:.3f} ({min(self.by_seed):.3f} to {max(self.by_seed):.3f})"


@dataclass(frozen=True)
class Costs:
    """What one cell costs and scores."""

    parameters: float
    """Of the recurrence alone, at equal width."""
    multiply_adds: float
    """Of the recurrence for one character, at equal width."""
    microseconds: float
    """Of training a character, whole model, at equal width, by the mean speed."""
    by_steps: Loss
    """With equal parameters after equal steps."""
    seconds: float
    """Of these steps, mean."""
    by_time: Loss
    """With equal parameters after equal time."""
    share: float
    """Of the whole model's multiply-adds, at equal width, those of the recurrence."""


def commands(lab: Lab) -> list[str]:
    """Return the three comparisons: equal steps, equal time, equal width."""
    size = lab.size
    return [
        compare_steps(lab),
        compare(lab, "minutes", f"--minutes {size.minutes:g}"),
        compare(lab, "width", f"--match hidden --steps {size.width_steps}"),
    ]


def costs(steps: Rows, minutes: Rows, width: Rows) -> dict[str, Costs]:
    """Return what each cell costs, by name.

    Embedding and head are the same at equal width, and a cell has 1, 3 or 4 blocks of
    weights: the differences of the models' sizes give the block, and so the recurrence.

    Args:
        steps: by cell, the row that ``compare --json`` gives at equal steps.
        minutes: the same at equal time.
        width: the same at equal width.
    """
    found = {}
    for cell in steps:
        alone = {}
        for name in ("parameters", "multiply_adds"):
            block = (width["lstm"][name] - width["rnn"][name]) / 3
            alone[name] = width[cell][name] - width["rnn"][name] + block
        found[cell] = Costs(
            **alone,
            microseconds=1e6 / width[cell]["train_chars_per_second"],
            by_steps=Loss.of(steps[cell]),
            seconds=steps[cell]["seconds"],
            by_time=Loss.of(minutes[cell]),
            share=alone["multiply_adds"] / width[cell]["multiply_adds"],
        )
    return found


def _measured(lab: Lab) -> tuple[Rows, Rows, Rows]:
    steps, minutes, width = (
        {row["cell"]: row for row in lab.json(command)} for command in commands(lab)
    )
    return steps, minutes, width


def lstm(lab: Lab) -> Section:
    """Compare the cells at equal width, equal parameters and equal time."""
    steps, minutes, width = _measured(lab)
    found = costs(steps, minutes, width)
    by_width = Table(
        [f"at {lab.size.hidden} units", "parameters of the recurrence", "multiply-adds per "
         "character, by its equations", "share of the model's", "µs per character, training",
         "µs per character, scoring"],
        [
            [
                cell.upper(),
                f"{one.parameters:,.0f}",
                f"{one.multiply_adds:,.0f}",
                percent(one.share),
                _times(one.microseconds, width[cell]["runs"]),
                f"{1e6 / width[cell]['chars_per_second']:.1f}",
            ]
            for cell, one in found.items()
        ],
    )  # fmt: skip
    by_loss = Table(
        ["equal parameters", "units", "parameters", "nats/char, equal steps", "its seconds",
         f"nats/char, {lab.size.minutes:g} min each", "its characters"],
        [
            [
                cell.upper(),
                f"{steps[cell]['hidden']}",
                f"{steps[cell]['parameters']:,}",
                one.by_steps.words,
                f"{one.seconds:.1f}",
                one.by_time.words,
                f"{fmean(run['trained_characters'] for run in minutes[cell]['runs']):,.0f}",
            ]
            for cell, one in found.items()
        ],
    )  # fmt: skip
    return Section(
        title="The price of the LSTM",
        claim="The LSTM's only drawback is its price.",
        why=f"""
An LSTM has four blocks of weights where a plain RNN has one: four times the parameters and
products at equal width. But width is a choice: here all cells also get as many parameters as
the LSTM, and then as many steps, or as many minutes. Losses and times are means over the seeds,
with the least and the most in brackets. Losses are on the end of the text, on which
{untouched(lab)}. A cell is ahead of another where `compare` finds the difference to be more than
chance makes (`ahead_of`); where neither is, they are too close to tell. Times are of the machine
named above, the cells in turns, and they are noisy: those less than {percent(DEARER - 1)} apart are
too close to tell. The speed of one training is the median of those in its log. Where the loops are
compiled, as is said there, all cells run through this project's; where they are in numpy, the LSTM
runs through torch's fused operator, which is then part of the price. Times are of the whole model:
embedding and head are in them.
""",
        commands=commands(lab),
        tables=[by_width, by_loss],
        figures=[_loss_figure(found), _price_figure(found, lab.size.hidden)],
        rule=f"three parts. A price: at equal width the LSTM takes at least {DEARER:g} times as "
        "long per character as any other. Its only drawback, two parts: with equal parameters its "
        "loss is ahead of every other cell's by more than chance, after equal steps, and after "
        "equal time. What is too close to tell does not count as so. All: holds; some: in part; "
        "not tested if all three are too close to tell.",
        judgement=judge_lstm(found),
    )


def _loss_figure(found: Mapping[str, Costs]) -> Figure:
    title = "Loss of the cells at equal parameters"
    chart = dot_chart(
        "loss",
        title,
        [cell.upper() for cell in found],
        [
            Dots(
                name,
                [loss.nats for loss in losses],
                style,
                [loss.by_seed for loss in losses],
            )
            for style, (name, losses) in enumerate(
                (
                    ("equal steps", [one.by_steps for one in found.values()]),
                    ("equal time", [one.by_time for one in found.values()]),
                )
            )
        ],
        x_label="held-out loss, nats per character; bar: mean",
    )
    return Figure("loss", f"{title}; bar: mean, hollow: single seeds", chart)


def _price_figure(found: Mapping[str, Costs], hidden: int) -> Figure:
    title = "Time of the cells at equal width"
    times = [one.microseconds for one in found.values()]
    chart = dot_chart(
        "price",
        title,
        [cell.upper() for cell in found],
        [Dots("training", times, 0)],
        x_label=f"training, µs per character, {hidden} units",
        form=".1f",
        x_range=(0.0, 1.15 * max(times)),
    )
    return Figure("price", title, chart)


def judge_lstm(found: Mapping[str, Costs]) -> Judgement:
    """Judge claim 10.

    Args:
        found: by cell, its costs and losses.
    """
    own = found["lstm"]
    others = [cell for cell in found if cell != "lstm"]
    next_to = max(others, key=lambda cell: found[cell].microseconds)
    dearest = own.microseconds >= DEARER * found[next_to].microseconds
    outdone = found[next_to].microseconds >= DEARER * own.microseconds
    by_steps, after_steps = _ahead({cell: one.by_steps for cell, one in found.items()})
    by_time, after_time = _ahead({cell: one.by_time for cell, one in found.items()})
    times = ", ".join(f"{cell.upper()} {one.microseconds:.1f}" for cell, one in found.items())
    clock = "the LSTM takes longest."
    if outdone:
        clock = f"the {next_to.upper()} takes longer, whatever the LSTM has more by count."
    elif not dearest:
        clock = f"the LSTM's time and the {next_to.upper()}'s differ by too little to tell."
    parts = [dearest if dearest or outdone else None, by_steps, by_time]
    is_tested = any(part is not None for part in parts)
    return judged(
        [part is True for part in parts if is_tested],
        f"At equal width a character takes, in µs: {times}; {clock}",
        _of_the_head(own),
        f"With equal parameters the losses after equal steps are {after_steps}. After equal time "
        f"they are {after_time}.",
        _equal_steps(found),
    )


def _ahead(losses: Mapping[str, Loss]) -> tuple[bool | None, str]:
    """Return whether the LSTM's loss is ahead of all others', and how they lie, in words.

    None: none is ahead of it, but it is too close to one to tell.
    """
    others = [cell for cell in losses if cell != "lstm"]
    ahead = [cell for cell in others if "lstm" in losses[cell].ahead_of]
    behind = [cell for cell in others if cell in losses["lstm"].ahead_of]
    close = [cell for cell in others if cell not in (*ahead, *behind)]
    says = [
        f"the {cells} {verb}"
        for cells, verb in (
            (_named(ahead), f"{'are' if len(ahead) > 1 else 'is'} ahead of the LSTM"),
            ("LSTM" * bool(behind), f"is ahead of the {_named(behind)}"),
            ("LSTM" * bool(close), f"is too close to the {_named(close)} to tell"),
        )
        if cells
    ]
    nats = ", ".join(f"{cell.upper()} {loss.nats:.3f}" for cell, loss in losses.items())
    return (False if ahead else None if close else True), f"{nats}: {'; '.join(says)}"


def _named(cells: Sequence[str]) -> str:
    return " and the ".join(cell.upper() for cell in cells)


def _equal_steps(found: Mapping[str, Costs]) -> str:
    """Say whether the LSTM has a price in time where all cells have as many parameters."""
    own = found["lstm"].seconds
    least = min(one.seconds for cell, one in found.items() if cell != "lstm")
    times = ", ".join(f"{cell.upper()} {one.seconds:.1f}" for cell, one in found.items())
    pays = "pays there, too" if own >= DEARER * least else "pays nothing there that the clock tells"
    return f"The equal steps with equal parameters took, in s: {times}; the LSTM {pays}."


def _times(mean: float, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the µs that a character takes in training, with the least and the most."""
    each = [1e6 / run["train_chars_per_second"] for run in runs]
    return f"{mean:.1f} ({min(each):.1f} to {max(each):.1f})"


def _of_the_head(one: Costs) -> str:
    """Say that a model's time is mostly not its recurrence's, if so; the LSTM's has the most."""
    if one.share >= MOST:
        return ""
    return (
        f"But only {percent(one.share)} of the LSTM's multiply-adds are its recurrence's, of the "
        "other cells' fewer still; the rest is the head's, which with many symbols in the "
        "vocabulary is most of the work and the same for all: the times tell little about the "
        "cells."
    )


def gru(lab: Lab) -> Section:
    """Hold the GRU's price and loss against the LSTM's."""
    found = costs(*_measured(lab))
    one, other = found["gru"], found["lstm"]
    table = Table(
        ["GRU against LSTM", "GRU", "LSTM", "ratio"],
        [
            [name, f"{a:,.0f}" if a > 1000 else f"{a:.1f}", f"{b:,.0f}" if b > 1000 else f"{b:.1f}",
             f"{a / b:.3f}"]
            for name, a, b in (
                ("parameters of the recurrence, equal width", one.parameters, other.parameters),
                ("multiply-adds of the recurrence, equal width", one.multiply_adds,
                 other.multiply_adds),
                ("µs per character in training, equal width", one.microseconds,
                 other.microseconds),
            )
        ]
        + [
            [name, f"{a:.3f}", f"{b:.3f}", f"{a / b:.3f}"]
            for name, a, b in (
                ("nats/char, equal parameters and steps", one.by_steps.nats, other.by_steps.nats),
                ("nats/char, equal parameters and time", one.by_time.nats, other.by_time.nats),
            )
        ],
    )  # fmt: skip
    return Section(
        title="The GRU",
        claim="The GRU is a simpler LSTM at half the price.",
        why="""
The GRU has no memory beside its state and one gate less: `z` both forgets and writes,
`h_t = (1 - z) ∘ n + z ∘ h_{t-1}`. Three blocks of weights instead of four are three quarters of
the parameters and products, not a half, before any clock is looked at.
""",
        commands=commands(lab),
        tables=[table],
        rule="two parts, by the clock at equal width. Cheaper: a character takes the GRU less than "
        f"{NOT_LESS:g} times the LSTM's time; up to {DEARER:g} times is too close to tell. Half "
        f"the price: at most {HALF:g} times. Both: holds; cheaper alone: in part. By count, which "
        "is how much simpler it is, it is three quarters, whatever is measured. The losses, which "
        "count for nothing here, are told apart as in claim 10.",
        judgement=judge_gru(one, other),
    )


def judge_gru(one: Costs, other: Costs) -> Judgement:
    """Judge claim 11.

    Args:
        one: the GRU.
        other: the LSTM.
    """
    count = one.parameters / other.parameters
    clock = one.microseconds / other.microseconds
    return judged(
        [clock < NOT_LESS, clock <= HALF],
        f"By count the GRU's recurrence is {count:.2f} of the LSTM's: simpler, but not by half.",
        f"By the clock of this machine a character takes {clock:.2f} of the LSTM's time: "
        + _of_half(clock),
        _of_the_head(other),
        f"With equal parameters its loss is {_beside(one.by_steps, other.by_steps)} after equal "
        f"steps and {_beside(one.by_time, other.by_time)} after equal time.",
    )


def _of_half(clock: float) -> str:
    """Say what is left of half the price, by the share of the LSTM's time."""
    if clock <= HALF:
        return "about half the price, or less."
    if clock < NOT_LESS:
        return "cheaper, but half the price does not hold."
    if clock <= DEARER:
        return "too close to tell whether cheaper, and half the price does not hold."
    return (
        "dearer, for the loops it runs through cost more than the products they save; half the "
        "price does not hold."
    )


def _beside(one: Loss, other: Loss) -> str:
    """Return how the GRU's loss lies beside the LSTM's."""
    more = one.nats - other.nats
    told = "ahead" if "lstm" in one.ahead_of else "behind" if "gru" in other.ahead_of else ""
    where = f"{abs(more):.3f} nats {'above' if more > 0 else 'below'} the LSTM's"
    return f"{where} ({f'{told} by more than chance' if told else 'too close to tell'})"
