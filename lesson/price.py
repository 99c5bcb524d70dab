"""Claims 10 and 11: what the cells cost, and what loss they reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self

from charrnn.views.figures import Dots, dot_chart
from lesson.lab import Lab
from lesson.recurrence import compare, compare_steps, untouched
from lesson.section import Figure, Judgement, Section, Table, judged, percent

#: Ratio of mean times from which on a cell counts as dearer, if it takes longer with every seed
#: besides: clocks differ by less.
DEARER = 1.05
#: The recurrence's share of the multiply-adds below which a model's time tells little about it.
MOST = 0.5
#: The largest ratio that still counts as half.
HALF = 0.6

Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Loss:
    """One cell's loss over all seeds."""

    nats: float
    """Mean nats per character."""
    ahead_of: Sequence[str] = ()
    """Cells whose mean loss is higher by more than chance explains, as ``compare`` judges."""
    by_seed: Sequence[float] = ()

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Return the loss from a cell's row of ``compare --json``."""
        seeds = tuple(run["nats_per_char"] for run in row["runs"])
        return cls(row["nats_per_char"], tuple(row["ahead_of"]), seeds)

    @property
    def words(self) -> str:
        """The mean, with the least and the most of the seeds."""
        return f"{self.nats:.3f} ({min(self.by_seed):.3f} to {max(self.by_seed):.3f})"


@dataclass(frozen=True)
class Time:
    """One cell's time over all seeds."""

    mean: float
    by_seed: Sequence[float]

    def is_longer(self, other: Time) -> bool:
        """Return whether it is clearly longer, in the mean and with every seed."""
        return self.mean >= DEARER * other.mean and min(self.by_seed) > max(other.by_seed)

    @property
    def words(self) -> str:
        """The mean, with the least and the most of the seeds."""
        return f"{self.mean:.1f} ({min(self.by_seed):.1f} to {max(self.by_seed):.1f})"


@dataclass(frozen=True)
class Costs:
    """What one cell costs, and the losses it reaches."""

    parameters: float
    """Of the recurrence alone, at equal width."""
    multiply_adds: float
    """Of the recurrence for one character, at equal width."""
    microseconds: Time
    """Of training the whole model, per character, at equal width; its mean is by the mean speed."""
    by_steps: Loss
    """At equal parameters and steps."""
    seconds: Time
    """Time that these steps took."""
    by_time: Loss
    """At equal parameters and time."""
    share: float
    """The recurrence's share of the model's multiply-adds, at equal width."""


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

    At equal width all models have the same embedding and head, and a cell has 1, 3 or 4 equal
    blocks of weights. So a block is a third of the difference between LSTM and RNN.

    Args:
        steps: cell -> its row of ``compare --json`` at equal steps.
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
            microseconds=Time(
                1e6 / width[cell]["train_chars_per_second"],
                [1e6 / run["train_chars_per_second"] for run in width[cell]["runs"]],
            ),
            by_steps=Loss.of(steps[cell]),
            seconds=Time(steps[cell]["seconds"], [run["seconds"] for run in steps[cell]["runs"]]),
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
                one.microseconds.words,
                f"{1e6 / width[cell]['chars_per_second']:.1f}",
            ]
            for cell, one in found.items()
        ],
    )  # fmt: skip
    by_loss = Table(
        ["equal parameters", "units", "parameters", "nats/char, equal steps",
         "seconds they took", f"nats/char, {lab.size.minutes:g} min each", "characters read"],
        [
            [
                cell.upper(),
                f"{steps[cell]['hidden']}",
                f"{steps[cell]['parameters']:,}",
                one.by_steps.words,
                one.seconds.words,
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
with the lowest and the highest in brackets. Losses are on the end of the text, on which
{untouched(lab)}. A cell is ahead of another where `compare` finds a difference larger than chance
makes (`ahead_of`); where neither is ahead, they are too close to tell. Times are of the machine
named above, with the cells taking turns, and they are noisy: two cells are too close to tell if
their means are less than {percent(DEARER - 1)} apart, or if one seed of the slower cell took no
longer than one of the faster. The speed of one training is the median of those in its log. Where
the loops are compiled, as is said there, all cells run through this project's; where they are in
numpy, the LSTM runs through torch's fused operator, which is then part of the price. Times are of
the whole model, with embedding and head.
""",
        commands=commands(lab),
        tables=[by_width, by_loss],
        figures=[_loss_figure(found), _price_figure(found, lab.size.hidden)],
        rule=f"three parts. A price: at equal width the LSTM takes at least {DEARER:g} times as "
        "long per character as the slowest other cell, and longer with each seed than that cell "
        "with any. Its only drawback, two parts: with equal parameters its loss is ahead of every "
        "other cell's by more than chance, after equal steps and after equal time. A part that is "
        "too close to tell does not hold. All parts: holds; some: in part; not tested if all three "
        "are too close to tell.",
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
        [Dots("training", [time.mean for time in times], 0)],
        x_label=f"training, µs per character, {hidden} units",
        form=".1f",
        x_range=(0.0, 1.15 * max(time.mean for time in times)),
    )
    return Figure("price", title, chart)


def judge_lstm(found: Mapping[str, Costs]) -> Judgement:
    """Judge claim 10.

    Args:
        found: cell -> its costs and losses.
    """
    own = found["lstm"]
    others = [cell for cell in found if cell != "lstm"]
    next_to = max(others, key=lambda cell: found[cell].microseconds.mean)
    dearest = own.microseconds.is_longer(found[next_to].microseconds)
    outdone = found[next_to].microseconds.is_longer(own.microseconds)
    by_steps, after_steps = _ahead({cell: one.by_steps for cell, one in found.items()})
    by_time, after_time = _ahead({cell: one.by_time for cell, one in found.items()})
    times = ", ".join(f"{cell.upper()} {one.microseconds.mean:.1f}" for cell, one in found.items())
    clock = "the LSTM takes longest."
    if outdone:
        clock = f"the {next_to.upper()} takes longer, although the LSTM has more to compute."
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
    """Return whether the LSTM's loss is ahead of all others', and the order in words.

    False if another cell is ahead of it; None if none is, but one is too close to tell.
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
    """Say which cells the LSTM takes longer than when all have equal parameters."""
    own = found["lstm"].seconds
    faster = [cell for cell in found if cell != "lstm" and own.is_longer(found[cell].seconds)]
    times = ", ".join(f"{cell.upper()} {one.seconds.mean:.1f}" for cell, one in found.items())
    how = f"took longer than the {_named(faster)}" if faster else "did not clearly take longer"
    return f"The equal steps with equal parameters took, in s: {times}; the LSTM {how}."


def _of_the_head(one: Costs) -> str:
    """Say that most of the time is not the recurrence's, if so; the LSTM's share is the largest."""
    if one.share >= MOST:
        return ""
    return (
        f"But only {percent(one.share)} of the LSTM's multiply-adds are its recurrence's, and an "
        "even smaller share of the other cells'. The rest is the head's: with many symbols in the "
        "vocabulary it is most of the work, and the same for all, so the times tell little about "
        "the cells."
    )


def gru(lab: Lab) -> Section:
    """Compare the GRU's price and loss with the LSTM's."""
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
                ("µs per character in training, equal width", one.microseconds.mean,
                 other.microseconds.mean),
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
The GRU has no memory beside its state, and one gate fewer: `z` both forgets and writes,
`h_t = (1 - z) ∘ n + z ∘ h_{t-1}`. Three blocks of weights instead of four make three quarters of
the parameters and products, not half, before any time is measured.
""",
        commands=commands(lab),
        tables=[table],
        rule="two parts, by the time of a character at equal width. Cheaper: the LSTM takes at "
        f"least {DEARER:g} times as long as the GRU, and longer with each seed than the GRU with "
        f"any. Half the price: besides, the GRU takes at most {HALF:g} times as long as the LSTM. "
        "Both: holds; cheaper alone: in part. By count, which is how much simpler it is, it is "
        "three quarters, whatever is measured. The losses, which count for nothing here, are told "
        "apart as in claim 10.",
        judgement=judge_gru(one, other),
    )


def judge_gru(one: Costs, other: Costs) -> Judgement:
    """Judge claim 11.

    Args:
        one: the GRU.
        other: the LSTM.
    """
    count = one.parameters / other.parameters
    clock = one.microseconds.mean / other.microseconds.mean
    cheaper = other.microseconds.is_longer(one.microseconds)
    return judged(
        [cheaper, cheaper and clock <= HALF],
        f"By count the GRU's recurrence is {count:.2f} of the LSTM's: simpler, but not by half.",
        f"By the clock of this machine a character takes {clock:.2f} of the LSTM's time: "
        + _of_half(clock, cheaper=cheaper, dearer=one.microseconds.is_longer(other.microseconds)),
        _of_the_head(other),
        f"With equal parameters its loss is {_beside(one.by_steps, other.by_steps)} after equal "
        f"steps and {_beside(one.by_time, other.by_time)} after equal time.",
    )


def _of_half(clock: float, *, cheaper: bool, dearer: bool) -> str:
    """Say whether it is half the price, given the GRU's time as a share of the LSTM's."""
    if cheaper:
        return (
            "about half the price, or less." if clock <= HALF
            else "cheaper, but not half the price."
        )  # fmt: skip
    if dearer:
        return (
            "dearer, because the loops it runs through cost more than the products they save; so "
            "not half the price either."
        )
    return "too close to tell whether it is cheaper, and so not half the price."


def _beside(one: Loss, other: Loss) -> str:
    """Return how the GRU's loss compares with the LSTM's, in words."""
    more = one.nats - other.nats
    told = "ahead" if "lstm" in one.ahead_of else "behind" if "gru" in other.ahead_of else ""
    where = f"{abs(more):.3f} nats {'above' if more > 0 else 'below'} the LSTM's"
    return f"{where} ({f'{told} by more than chance' if told else 'too close to tell'})"
