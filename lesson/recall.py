"""Claims 4 and 7: what is learned from a text that needs memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Literal

from charrnn.views.figures import Dots, dot_chart
from charrnn.wording import joined
from lesson.lab import FULL, Answer, Lab
from lesson.section import Figure, Judgement, Section, Table, judged, percent

#: Nats per key when guessing one of eight.
CHANCE = math.log(8)
#: Shares of that below which a key counts as learned, and above which as not learned at all.
LEARNT, NOTHING = 0.1, 0.9
#: Of claim 7: the window, which shows a whole line, and the cells.
WINDOW = 48
CELLS = ("rnn", "lstm")


#: Window -> nats of the key, one per seed.
Prices = Mapping[int, Sequence[float]]


def _text(lab: Lab) -> str:
    """Return the file of the recall text."""
    return f"corpora/recall-{lab.size.distance}.txt"


def _write(lab: Lab) -> str:
    """Return the command that writes the recall text."""
    return f"python corpora/recall.py --distance {lab.size.distance} > {_text(lab)}"


def _train(lab: Lab, cell: str) -> str:
    """Return the beginning of a command that trains on the recall text.

    So small a model is trained faster by one thread than by two, so two are trained side by side.
    """
    return (
        f"OMP_NUM_THREADS=1 charrnn train {_text(lab)} --cell {cell} --hidden "
        f"{lab.size.recall_hidden} --steps "
        f"{lab.size.recall_steps} --valid-share 0.05 --device cpu --precision fp32 --quiet"
    )


def _score(*runs: str) -> str:
    """Return the command that prices the key for some runs, named as a shell expands them."""
    listed = " ".join(f"checkpoints/lesson/{run}" for run in runs)
    return f"charrnn evaluate {listed} --part valid --after = --device cpu --json"


def _braces(names: Iterable[object]) -> str:
    """Return names in braces for bash, which takes braces around a single name literally."""
    listed = ",".join(map(str, names))
    return f"{{{listed}}}" if "," in listed else listed


def _prices(lab: Lab, score: str) -> list[float]:
    """Return the nats of the key for each run that a command scores, in its order."""
    return [row["after"]["nats_per_char"] for row in lab.json(score)]


def beyond(lab: Lab) -> Section:
    """Train on a text that needs memory, with windows below and above the distance it needs."""
    lengths, seeds = lab.size.recall_windows, lab.size.seeds
    commands = write, loop, score = _beyond_commands(lab)
    lab.do(write)
    lab.do(loop, partial(_all_trained, 2 * len(lengths) * len(seeds)))
    prices = iter(_prices(lab, score))
    # In the order in which bash expands the names; the seed changes fastest.
    carried, reset = ({n: [next(prices) for _ in seeds] for n in lengths} for _ in range(2))
    first = (lab.folder / _text(lab)).read_text(encoding="utf-8").partition("\n")[0]
    return Section(
        title="Beyond the window",
        claim="Truncation keeps the model from learning what lies further back than the window.",
        why=f"""
Every line of the recall text is a key, noise, `=`, and the key again: `{first}`. The second key
comes {lab.size.distance} characters after the first and cannot be guessed from anything else, so it
costs ln 8 = {CHANCE:.2f} nats where it is not remembered and nothing where it is. `--after =`
scores that place alone. In a window shorter than {lab.size.distance} no gradient ever connects the
two keys. What can connect them is the state, which training carries from window to window as a
number without a gradient. `--reset-state` takes that away, too, but only in training: all models
are scored with the state carried on from the beginning of the text. All runs take the same number
of steps and read the same number of characters. Two of them run side by side, on a thread each: for
models so small one thread is faster than two. The distance was chosen so that windows differ: in
trials of {FULL.recall_steps:,} steps every window, even a shorter one, learned the key at a
distance of 12, and hardly any did at 24. So the verdict is for this distance and this number of
steps. What a single run learns in them is partly chance: it changes with the seed, and with the
number of threads, since numbers are then added up in another order. So the medians over the seeds
are judged.
""",
        commands=commands,
        tables=[
            Table(
                ["state", "window", *(f"seed {n}" for n in seeds), "median, nats for the key"],
                [
                    [state, f"{n:,}", *(f"{price:.3f}" for price in (*by_seed, median(by_seed)))]
                    for state, found in (("carried", carried), ("reset", reset))
                    for n, by_seed in found.items()
                ],
            )
        ],
        figures=[_beyond_figure(lab.size.distance, carried, reset)],
        rule="two parts, by the medians over the seeds, with the state carried. No window "
        f"shorter than the distance learns the key: none brings it below {percent(LEARNT)} of "
        f"ln 8. None learns anything of it: none brings it below {percent(NOTHING)}. Both: holds; "
        f"the first alone: in part. Not tested if no window of any length brings it below "
        f"{percent(LEARNT)}, or if a shorter one brings it below {percent(NOTHING)} with the state "
        "reset: it cannot learn the key that way, so something else must give it away.",
        judgement=judge_beyond(lab.size.distance, carried, reset),
    )


def _all_trained(runs: int, answer: Answer) -> None:
    """Check that all runs finished, each of which printed its folder.

    Raises:
        LessonError: one did not.
    """
    if len(answer.out.splitlines()) != runs:
        raise answer.ended_early()


def _beyond_commands(lab: Lab) -> tuple[str, str, str]:
    lengths, seeds = lab.size.recall_windows, lab.size.seeds
    train = (
        f"{_train(lab, 'lstm')} --bptt $T --batch-size $(({lab.size.recall_lanes} / T)) "
        "--seed $SEED"
    )
    loop = "\n".join(
        [
            f"for SEED in {' '.join(map(str, seeds))}; do",
            f"  for T in {' '.join(map(str, lengths))}; do",
            f"    {train} --run checkpoints/lesson/carried-$T-$SEED &",
            f"    {train} --reset-state --run checkpoints/lesson/reset-$T-$SEED &",
            "    wait",
            "  done",
            "done",
        ]
    )
    score = _score(f"{{carried,reset}}-{_braces(lengths)}-{_braces(seeds)}")
    return _write(lab), loop, score


def _beyond_figure(distance: int, carried: Prices, reset: Prices) -> Figure:
    chart = dot_chart(
        "beyond",
        f"Price of the key {distance} characters back, by the window it was learned with",
        [f"window {n}" for n in carried],
        [
            Dots(name, [*map(median, found.values())], style, [*found.values()])
            for style, (name, found) in enumerate(
                (("state carried", carried), ("state reset", reset))
            )
        ],
        x_label="nats for the key; bar: median",
        x_range=(-0.08, 1.15 * max(CHANCE, *chain(*carried.values(), *reset.values()))),
    )
    title = "Price of the key by the window it was learned with; bar: median, hollow: single seeds"
    return Figure("beyond", title, chart)


def judge_beyond(distance: int, carried: Prices, reset: Prices) -> Judgement:
    """Judge claim 4.

    Args:
        distance: characters from the key to its repetition.
        carried: window -> nats of the key by seed, trained with the state carried on.
        reset: the same, trained with every window starting from the zero state.
    """

    def best(prices: Prices, *, shorter: bool) -> tuple[float, int]:
        return min((median(p), n) for n, p in prices.items() if (n < distance) == shorter)

    (price, window), (price_reset, window_reset) = (
        best(prices, shorter=True) for prices in (carried, reset)
    )
    (longer, enough), (longer_reset, enough_reset) = (
        best(prices, shorter=False) for prices in (carried, reset)
    )
    learnt, nothing = LEARNT * CHANCE, NOTHING * CHANCE
    if price_reset < nothing:
        return judged(
            [],
            f"Even with the state reset a window of {window_reset} brings the key to "
            f"{price_reset:.2f} of {CHANCE:.2f} nats: something else gives it away, so nothing is "
            "shown about truncation.",
        )
    if (least := min(price, longer, longer_reset)) >= learnt:
        return judged(
            [],
            f"By the medians no window learned the key in these steps: it costs {least:.2f} nats "
            f"at best, and {CHANCE:.2f} by chance. So nothing is shown about the shorter ones.",
        )
    return judged(
        [price >= learnt, price >= nothing],
        f"With the state reset no window shorter than {distance} learns it: the best of them "
        f"leaves the key at {price_reset:.2f} nats ({CHANCE:.2f} is chance), the best of the "
        f"others, {enough_reset}, at {longer_reset:.2f}.",
        f"With the state carried no shorter window learns it either (at best {price:.2f} nats)."
        if price >= nothing
        else f"With the state carried a window of {window} brings the key to {price:.2f} nats "
        f"({longer:.2f} with {enough}). No gradient reaches the key, but traces of it are in the "
        "state that comes in, and the window learns to read and to preserve them."
        + _harder(price, longer),
    )


def _harder(price: float, longer: float) -> str:
    """Say what truncation does, given the best price of the shorter windows and of the longer."""
    if longer >= price:
        return ""
    if price < LEARNT * CHANCE:
        return " Truncation makes it harder, not impossible."
    return " No shorter window learns the whole key, but truncation does not withhold all of it."


@dataclass(frozen=True)
class Training:
    """One kind of training in claim 7, for all seeds."""

    how: Literal["plain", "scaled"]
    """Whether the gradients are scaled."""
    cell: str
    rate: float

    @property
    def name(self) -> str:
        """The training in words."""
        words = {"plain": "as it is", "scaled": "scaled to norm 1"}
        return f"{self.cell.upper()}, {words[self.how]}, rate {self.rate:g}"

    def run(self, seed: object) -> str:
        """Return the run's name for a seed, or for an expression that the shell expands."""
        rate = f"{self.rate:g}" if self.how == "plain" else ""
        return "-".join(filter(None, [self.how, self.cell, rate, f"{seed}"]))


def scaling(lab: Lab) -> Section:
    """Scale every gradient to one norm, and see if a plain RNN then learns what an LSTM learns."""
    size = lab.size
    trainings = [Training("plain", cell, rate) for cell in CELLS for rate in size.plain_rates]
    trainings += [Training("scaled", cell, size.scaled_rate) for cell in CELLS]
    write, loop = commands = _scaling_commands(lab)
    lab.do(write)
    trained = partial(_trained, [one.run(seed) for one in trainings for seed in size.seeds])
    ended = trained(lab.do(loop, trained))
    at_end = {one: [seed for seed in size.seeds if one.run(seed) in ended] for one in trainings}
    score = _score(*(one.run(_braces(seeds)) for one, seeds in at_end.items() if seeds))
    commands.append(score)
    found = iter(_prices(lab, score))
    prices = {
        one: [next(found) if seed in at_end[one] else math.inf for seed in size.seeds]
        for one in trainings
    }
    medians = {one: median(by_seed) for one, by_seed in prices.items()}

    def best(how: str, cell: str) -> float:
        return min(medians[one] for one in trainings if (one.how, one.cell) == (how, cell))

    return Section(
        title="Scaling up",
        claim="A vanishing gradient cannot be mended by scaling it up, since nobody knows how far: "
        "the architecture has to change.",
        why=f"""
If only a millionth of the gradient comes back from `k` steps ago, one could multiply it. But the
gradient of a weight is a sum over all lags, and scaling multiplies every term by the same factor:
near lags drown far ones as before. Such is the lectures' argument, in our words. `--scale-norm 1`
gives every gradient the norm 1. So the factor differs from step to step, and every step has the
same length, which is the rate (apart from the schedule). The rate of {size.scaled_rate:g} was found
by trial, as one at which both cells learned; others are not shown. For comparison both cells are
trained with their gradients as they are, not clipped either, at {_rates(size.plain_rates)}. Here a
rate is one factor for all steps (apart from the schedule). All use plain descent, because Adam and
Muon rescale gradients themselves and would hide the difference. The task is that of claim 4, with a
window of {WINDOW} that shows it whole; this says nothing about longer distances.
""",
        commands=commands,
        tables=[
            Table(
                ["gradient", *(f"seed {seed}" for seed in size.seeds), "median, nats for the key"],
                [[one.name, *map(_price, (*prices[one], medians[one]))] for one in trainings],
            )
        ],
        figures=[_scaling_figure(size.distance, prices, medians)],
        rule="two parts, by the medians over the seeds, with the gradients as they are at the best "
        "of their rates. Scaling does not mend it: "
        f"the RNN with scaled gradients leaves the key above {percent(LEARNT)} of ln 8. The "
        "architecture does: the LSTM with its gradients as they are brings it below that. Both: "
        "holds; one: in part. Not tested if no training brings it below that, or if the RNN does "
        "with its gradients as they are. A training that stops because a number is not finite "
        "counts as the worst of all.",
        judgement=judge_scaling(
            best("plain", "rnn"),
            best("plain", "lstm"),
            best("scaled", "rnn"),
            best("scaled", "lstm"),
            size.distance,
            size.scaled_rate,
        ),
    )


def _rates(rates: Sequence[float]) -> str:
    """Say at which rates unscaled gradients are trained, and how the rates were chosen."""
    most = "the one at which the LSTM learned most in trials"
    if len(rates) == 1:
        return f"a rate of {rates[0]:g}, {most}"
    listed = joined([f"{rate:g}" for rate in rates], "and")
    return f"rates of {listed}, a factor of {rates[1] / rates[0]:g} apart; among them is {most}"


def _scaling_commands(lab: Lab) -> list[str]:
    rates = [f"{rate:g}" for rate in lab.size.plain_rates]
    train = (
        f"{_train(lab, '$CELL')} --bptt {WINDOW} --batch-size {lab.size.recall_lanes // WINDOW} "
        "--optimiser sgd --seed $SEED"
    )
    loop = "\n".join(
        [
            f"for SEED in {' '.join(map(str, lab.size.seeds))}; do",
            f"  for LR in {' '.join(rates)}; do",
            f"    for CELL in {' '.join(CELLS)}; do",
            f"      {train} --clip-norm 0 --lr $LR --run "
            "checkpoints/lesson/plain-$CELL-$LR-$SEED &",
            "    done",
            "    wait",
            "  done",
            f"  for CELL in {' '.join(CELLS)}; do",
            f"    {train} --lr {lab.size.scaled_rate:g} --scale-norm 1 --run "
            "checkpoints/lesson/scaled-$CELL-$SEED &",
            "  done",
            "  wait",
            "done",
        ]
    )
    return [_write(lab), loop]


def _trained(runs: Sequence[str], answer: Answer) -> set[str]:
    """Return the runs that finished, each of which printed its folder.

    Raises:
        LessonError: none finished, or one failed for another reason than a number that was not
            finite.
    """
    ended = {Path(line).name for line in answer.out.splitlines()}
    if not ended or len(ended) + answer.not_finite != len(runs):
        raise answer.ended_early()
    return ended


def _price(nats: float) -> str:
    return f"{nats:.3f}" if math.isfinite(nats) else "stopped: not finite"


def _nats(nats: float) -> str:
    return f"{nats:.2f} nats" if math.isfinite(nats) else "no finite loss"


def _scaling_figure(
    distance: int, prices: Mapping[Training, Sequence[float]], medians: Mapping[Training, float]
) -> Figure:
    chart = dot_chart(
        "scaling",
        f"Price of the key {distance} characters back, by cell and gradient",
        [training.name for training in prices],
        [
            Dots(
                "median",
                [one if math.isfinite(one) else None for one in medians.values()],
                [CELLS.index(training.cell) for training in prices],
                [[*filter(math.isfinite, by_seed)] for by_seed in prices.values()],
            )
        ],
        x_label="nats for the key; bar: median",
        form=".2f",
        x_range=(-0.08, 1.15 * max(CHANCE, *filter(math.isfinite, chain(*prices.values())))),
    )
    title = "Price of the key by cell and gradient; bar: median, hollow: single seeds"
    return Figure("scaling", title, chart)


def judge_scaling(
    rnn: float, lstm: float, scaled_rnn: float, scaled_lstm: float, distance: int, rate: float
) -> Judgement:
    """Judge claim 7 by the nats of the key.

    Args:
        rnn: nats with a plain RNN and unscaled gradients, at the best rate.
        lstm: the same with an LSTM.
        scaled_rnn: nats with a plain RNN and gradients scaled to one norm.
        scaled_lstm: the same with an LSTM.
        distance: characters for which the key has to be remembered.
        rate: the rate of the trainings with scaled gradients.
    """
    limit = LEARNT * CHANCE
    least = min(rnn, lstm, scaled_rnn, scaled_lstm)
    if least >= limit:
        return judged(
            [],
            f"By the medians no training learned the key in these steps: {_nats(least)} at best, "
            f"and {CHANCE:.2f} by chance. So nothing is shown about what it takes.",
        )
    if rnn < limit:
        return judged(
            [],
            f"There is nothing to mend: the plain RNN remembers {distance} characters with its "
            f"gradients as they are (the key costs {rnn:.3f} nats; {_nats(scaled_rnn)} scaled).",
        )
    return judged(
        [scaled_rnn >= limit, lstm < limit],
        f"Scaling does not teach the plain RNN to remember {distance} characters: the key costs "
        f"{_nats(scaled_rnn)}, and {CHANCE:.2f} by chance ({_nats(rnn)} unscaled)."
        if scaled_rnn >= limit
        else "Scaling does mend it here: with every gradient scaled to one norm the plain RNN "
        f"remembers {distance} characters (the key costs {scaled_rnn:.3f} nats; {_nats(rnn)} "
        "unscaled, at the best rate). Every step then has the same length, the rate. One rate, "
        f"{rate:g}, did for all steps (apart from the schedule), and nobody had to know how much "
        "larger the far terms should be. No rate tried does the same for gradients as they are, "
        "where it is one factor for all steps (apart from the schedule).",
        f"The LSTM learns it with its gradients as they are, at the best rate ({lstm:.3f} nats)."
        if lstm < limit
        else "And the architecture alone does not: with its gradients as they are the LSTM stays "
        f"at {_nats(lstm)} at the best rate"
        + (
            f", and with scaled ones it reaches {scaled_lstm:.3f}."
            if scaled_lstm < limit
            else f", with scaled ones at {_nats(scaled_lstm)}."
        ),
        "Here the optimiser decided, not the cell."
        if max(scaled_rnn, scaled_lstm) < limit <= lstm
        else "",
    )
