"""Scores become tables and coloured text in a terminal."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.segment import Segment, Segments
from rich.text import Text

from charrnn import recipe
from charrnn.assessment import After, Assessment
from charrnn.baselines import Baseline
from charrnn.comparison import TOLERANCE, Comparison, Plan
from charrnn.corpus import Part
from charrnn.decoding import BYTES
from charrnn.errors import CharrnnError
from charrnn.evaluation import PositionScores, PricedText, Prices, Scores, perplexity
from charrnn.terminal import Output, plain_table, print_words
from charrnn.wording import counted, flag, printable, reason, shown

__all__ = [
    "BaselineRow",
    "PerCharacter",
    "SurpriseText",
    "assessment_lines",
    "assessments_say",
    "baseline_rows",
    "comparison_lines",
    "comparison_says",
    "perplexity_figure",
    "position_lines",
    "print_assessments",
    "print_comparison",
    "scored_part",
    "stretches_say",
    "surprise",
    "surprise_mark",
    "surprise_ranges",
]

#: Bits from which on a character is more surprising than below, and how each level looks.
SURPRISE = (0.5, 2.0, 4.0, 8.0)
STYLES = ("dim", "", "yellow", "bold red", "bold white on red")

COLUMNS = (
    "checkpoint", "cell", "parameters", "characters", "unknown",
    "nats/char", "bits/char", "bits/byte", "perplexity", "chars/s",
)  # fmt: skip


def print_table(lines: Sequence[Sequence[str]], words: int) -> None:
    """Print a table on stdout; nothing in it is ever cut off.

    A line is a row, or a column where a terminal is too narrow for that.

    Args:
        lines: the head and the rows.
        words: the first columns that hold words; the others hold numbers.
    """
    turned = list(zip(*lines, strict=True))
    tables = [plain_table(lines, words), plain_table(turned, 1)]
    wide = Output.wide()
    fitting = [t for t in tables if wide.measure(t).maximum <= Output().width]
    wide.print(fitting[0] if sys.stdout.isatty() and fitting else tables[0])


def print_assessments(assessments: Sequence[Assessment]) -> None:
    """Print scores, beside them those of the baselines, and the scores by position."""
    print_table(assessment_lines(assessments), words=2)
    for line in assessments_say(assessments):
        print_words(line)
    for one in assessments:
        if one.by_position is not None:
            print()
            over = stretches_say(one.by_position)
            print_words(
                f"{shown(one.checkpoint)}: characters of context since a state of zero, {over}"
            )
            print_table(position_lines(one.by_position), words=0)


def stretches_say(scores: PositionScores) -> str:
    """Say what the price at each position is a mean of."""
    return f"means of {scores.windows:,} stretches" if scores.windows > 1 else "one stretch"


def assessment_lines(assessments: Sequence[Assessment]) -> list[Sequence[str]]:
    """Return the table of scores and baselines: its head and its rows."""
    lines: list[Sequence[str]] = [COLUMNS]
    for one in assessments:
        shape = one.shape
        head = (
            shown(one.checkpoint),
            f"{shape.cell} {shape.layers}x{shape.hidden}",
            f"{one.parameters:,}",
            f"{one.scores.characters:,}",
            f"{one.scores.unknown:,}",
        )
        lines.append([*head, *_figures(one.scores)])
        if one.dynamic:
            lines.append(["  dynamic evaluation", *head[1:], *_figures(one.dynamic)])
    lines += [_baseline_line(row) for row in baseline_rows(assessments)]
    return lines


def assessments_say(assessments: Sequence[Assessment]) -> Iterator[str]:
    """Yield what the table rests on, and what follows a given text."""
    if len({one.scores.characters for one in assessments}) > 1:
        of_bytes = dict.fromkeys(shown(one.checkpoint) for one in assessments if one.of_bytes)
        yield (
            f"{', '.join(of_bytes)}: a character is a byte; compare with the others by bits/byte"
            if of_bytes
            else "not all models count the same characters; compare them by bits/byte"
        )
    yield from _baselines_say(assessments)
    yield from (_after_says(shown(one.checkpoint), one.after) for one in assessments if one.after)


def _after_says(checkpoint: str, after: After) -> str:
    if not after.characters:
        return f"{checkpoint}: {after.text!r} is followed by nothing"
    return (
        f"{checkpoint}: after {after.text!r} {after.nats_per_char:.4f} nats per character "
        f"({after.characters:,} of them)"
    )


@dataclass(frozen=True)
class BaselineRow:
    """A baseline as a table or figure shows it."""

    name: str
    """With a model's, if there are others of the kind."""
    baseline: Baseline
    scores: Scores
    """Of a model, on the same characters."""
    same: tuple[str, ...]
    """The other models that it is the baseline of, where a name is given."""

    @property
    def bits_per_byte(self) -> float:
        """The price in bits per byte."""
        return self.baseline.bits_per_byte(self.scores)


def baseline_rows(
    assessments: Sequence[Assessment], names: Sequence[str] | None = None
) -> list[BaselineRow]:
    """Return the baselines of models, each once; its name tells whose it is unless it is all's.

    Args:
        assessments: of the models.
        names: the models'; None: the checkpoints'.
    """
    of: dict[tuple[Baseline, int, int], list[int]] = {}
    beside = [place for place, one in enumerate(assessments) if one.baselines]
    for place in beside:
        scores = assessments[place].scores
        for baseline in assessments[place].baselines:
            of.setdefault((baseline, scores.characters, scores.bytes), []).append(place)
    rows = []
    for (baseline, _, _), places in of.items():
        first, name = assessments[places[0]], baseline.name
        same: list[str] = []
        if len(places) < len(beside):
            if baseline.of_text:
                name += f", per {'byte' if first.of_bytes else 'character'}"
            else:
                called = [names[p] if names else shown(assessments[p].checkpoint) for p in places]
                owner, *same = dict.fromkeys(called)
                name += f" ({owner})"
        rows.append(BaselineRow(name, baseline, first.scores, tuple(same)))
    return rows


def _baselines_say(assessments: Sequence[Assessment]) -> list[str]:
    """Return what each baseline is, and of which models."""
    lines = []
    for row in baseline_rows(assessments):
        name = row.baseline.name if row.baseline.of_text else row.name
        same = f"; the same for {', '.join(row.same)}" if row.same else ""
        lines.append(f"{name}: {row.baseline.about}{same}")
    return list(dict.fromkeys(lines))


def _figures(scores: Scores) -> list[str]:
    return [
        f"{scores.nats_per_char:.4f}",
        f"{scores.bits_per_char:.4f}",
        f"{scores.bits_per_byte:.4f}",
        perplexity_figure(scores.perplexity),
        f"{scores.chars_per_second:,.0f}",
    ]


def perplexity_figure(perplexity: float) -> str:
    """Return a perplexity for a reader: one of many millions needs no decimals.

    >>> perplexity_figure(4.0511), perplexity_figure(151636722.849), perplexity_figure(1.5e144)
    ('4.051', '151,636,723', '1.500e+144')
    """
    if perplexity >= 1e12:
        return f"{perplexity:.3e}"
    return f"{perplexity:.3f}" if perplexity < 10_000 else f"{perplexity:,.0f}"


def _baseline_line(row: BaselineRow) -> list[str]:
    """Return a baseline's row, on the characters that a model was scored on."""
    baseline = row.baseline
    return [
        row.name,
        *[""] * 2,
        f"{row.scores.characters:,}",
        "",
        f"{baseline.nats_per_char:.4f}",
        f"{baseline.bits_per_char:.4f}",
        f"{row.bits_per_byte:.4f}",
        perplexity_figure(perplexity(baseline.nats_per_char)),
        "",
    ]


def position_lines(scores: PositionScores) -> list[list[str]]:
    """Return the table of the price at 1, 2, 4, ... characters after a reset of the state."""
    nats_T = scores.nats_T
    places = [2**k for k in range(len(nats_T).bit_length()) if 2**k <= len(nats_T)]
    if places[-1] != len(nats_T):
        places.append(len(nats_T))
    lines = [["from", "to", "nats/char", "bits/char"]]
    for first, last in itertools.pairwise([0, *places]):
        nats = float(nats_T[first:last].mean())
        lines.append([f"{first + 1:,}", f"{last:,}", f"{nats:.4f}", f"{nats / math.log(2):.4f}"])
    return lines


def print_comparison(comparison: Comparison) -> None:
    """Print what came out of a comparison: a row a cell, then what the spread supports."""
    print_table(comparison_lines(comparison), words=2)
    print()
    for line in comparison_says(comparison):
        print_words(line)


def comparison_lines(comparison: Comparison) -> list[list[str]]:
    """Return a comparison's table: its head, and a row a cell."""
    several = comparison.plan.seeds > 1
    lines = [[
        "cell", "layers x width", "parameters", "multiply-adds", "us/char", "seconds", "steps",
        "clipped", "valid nats", "valid ppl", "nats/char", *(["spread"] if several else []),
        "bits/char", "perplexity",
    ]]  # fmt: skip
    for cell in comparison.cells:
        one, row = cell.best, cell.to_dict()
        valid = row["valid_nats_per_char"]
        lines.append(
            [
                cell.cell,
                f"{one.layers} x {one.hidden}",
                f"{one.parameters:,}",
                f"{one.multiply_adds:,}",
                f"{1e6 / row['train_chars_per_second']:.1f}",
                f"{row['seconds']:.0f}",
                f"{row['steps']:,.0f}",
                f"{row['clipped_steps']:,.0f}",
                "-" if valid is None else f"{valid:.4f}",
                "-" if valid is None else perplexity_figure(perplexity(valid)),
                f"{row['nats_per_char']:.4f}",
                *([f"{row['spread']:.4f}"] if several else []),
                f"{row['bits_per_char']:.4f}",
                perplexity_figure(row["perplexity"]),
            ]
        )
    return lines


def scored_part(plan: Plan) -> str:
    """Return the name of the part of the text that models are compared on."""
    return {"test": "test part", "valid": "validation part"}[plan.compared_on]


def comparison_says(comparison: Comparison) -> Iterator[str]:
    """Yield what the table rests on, and which differences are more than chance."""
    plan, unknown = comparison.plan, comparison.cells[0].best.unknown
    yield _compared_how(comparison)
    yield from _given_to_all(plan)
    if unknown:
        yield (
            f"{unknown:,} of these characters {'is' if unknown == 1 else 'are'} unknown "
            "to the vocabulary, charged with their spelling."
        )
    if len(comparison.cells) < 2:
        return
    if plan.minutes is not None:
        yield "Equal time: a cell that computes faster does more steps."
    least = comparison.least_difference
    if least is None:
        yield "One seed has no spread: --resume --seeds 3 shows what is more than chance."
        return
    for pair in comparison.differences:
        verdict = "supported" if pair.supported else "may be chance"
        yield f"{pair.better} is {pair.nats:.4f} nats ahead of {pair.worse}: {verdict}"
    yield (
        f"Supported is a difference above {least:.4f} nats: 95 % for one pair, Student's t, the "
        "spread over the seeds pooled over the cells."
    )


def _compared_how(comparison: Comparison) -> str:
    """Say what the models have in common, and where and when they were scored."""
    plan, one = comparison.plan, comparison.cells[0].best
    (budget,) = (
        counted(value, name)
        for name in ("minute", "epoch", "step")
        if (value := getattr(plan, f"{name}s")) is not None
    )
    parameters = [cell.best.parameters for cell in comparison.cells]
    apart = max(parameters) / min(parameters) - 1
    matched = "parameters" if plan.match == "parameters" else "width"
    if plan.match == "parameters" and apart > TOLERANCE:
        matched += f" as nearly as widths allow, up to {apart:.1%} apart"
    matched = f"Matched by {matched}; " if len(parameters) > 1 else ""
    seeds = f"mean of {plan.seeds} seeds" if plan.seeds > 1 else "one seed"
    chosen = (
        "last checkpoint" if one.valid_nats_per_char is None else "best checkpoint by validation"
    )
    flattered = "" if plan.compared_on == "test" else ", which flatters it: it was chosen there"
    return (
        f"{matched}{budget} a run, {seeds}; the {chosen}, on the {one.characters:,} predictions of "
        f"the {scored_part(plan)}{flattered}; us/char: training, microseconds."
    )


def _given_to_all(plan: Plan) -> Iterator[str]:
    """Yield what no rule chose, if there is anything."""
    rules = ("optimiser", "lr", "weight_decay", "clip_norm", "dropout", "weight_drop")
    given = recipe.given({name: getattr(plan, name) for name in rules})
    if given:
        words = (
            f"{flag(name)} {value if isinstance(value, str) else f'{value:g}'}"
            for name, value in given.items()
        )
        own = (
            "; the rate of the other weights keeps each cell's ratio to it"
            if plan.lr is not None and plan.optimiser in (None, "muon") and len(plan.cells) > 1
            else ""
        )
        yield f"Every run was given {' '.join(words)}{own}."


class PerCharacter:
    """Writes the price of every character as a line of JSON.

    ``position`` counts from the text's first character, which has 0 and no price; a model
    of bytes has ``byte`` in place of ``character``.

    Args:
        part: the text that is scored.
        path: the file to write.

    Raises:
        CharrnnError: the file cannot be written; so do calls and ``close``.
    """

    def __init__(self, part: Part, path: Path) -> None:
        self._codes = part.each_code()
        next(self._codes)
        self._path = path
        self._bytes = part.corpus.encoding == BYTES
        with self._naming_the_file():
            self._stream = path.open("w", encoding="utf-8")

    def __call__(self, stretch: Prices) -> None:
        """Write a stretch's lines; stretches must come in order."""
        rows = []
        for position, nats in enumerate(stretch.nats_T.tolist(), start=stretch.position):
            code = next(self._codes)
            what = {"byte": code} if self._bytes else {"character": chr(code)}
            row = {"position": position, **what, "nats": round(nats, 6)}
            rows.append(json.dumps(row, ensure_ascii=False) + "\n")
        with self._naming_the_file():
            self._stream.writelines(rows)

    def close(self) -> None:
        """Write what is left, and close the file."""
        with self._naming_the_file():
            self._stream.close()

    @contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        # An error that names no file would be taken for one of stdout.
        try:
            yield
        except OSError as error:
            raise CharrnnError(
                f"{shown(self._path)}: cannot write the prices: {reason(error)}"
            ) from error


class SurpriseText:
    """Prints a text on stdout, coloured by what each character costs.

    Bytes are shown as the utf-8 characters they make up, each at the price of all of its
    bytes. What could steer the terminal is replaced. Where there are colours, a line feed
    that costs much is marked, as it shows none itself.

    Args:
        part: the text that is scored.
    """

    def __init__(self, part: Part) -> None:
        self._text = PricedText(part)
        self._console = Output(soft_wrap=True)
        self._print(self._text.first())

    def __call__(self, stretch: Prices) -> None:
        """Print a stretch; stretches must come in order."""
        self._print(self._text.priced(stretch))

    def close(self) -> None:
        """Print what the colours mean, where there are some."""
        if not self._console.has_colours:
            self._console.print("\n")
            return
        ranges = map(Text, surprise_ranges(), STYLES)
        legend = Text("\n\nbits: ") + Text("  ").join(ranges)
        self._console.print(legend, end="\n\n")

    def _print(self, priced: Iterable[tuple[str, float]]) -> None:
        # Segments, for a Text would turn tabs into spaces.
        segments: list[Segment] = []
        for character, cost in priced:
            style = self._console.get_style(STYLES[surprise(cost)])
            if character == "\n":
                if self._console.has_colours:
                    segments.append(Segment(surprise_mark(character, cost), style))
                segments.append(Segment.line())
            else:
                # A carriage return is half of a line's end: alone it would be a replacement.
                segments.append(Segment(printable(character.replace("\r", "")), style))
        self._console.print(Segments(Segment.simplify(segments)), end="")


def surprise(nats: float) -> int:
    """Return how surprising a price is: 0, or how many of ``SURPRISE`` it reaches."""
    return sum(nats >= bits * math.log(2) for bits in SURPRISE)


def surprise_ranges() -> list[str]:
    """Return the bits of each level of ``surprise``, in words."""
    between = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(SURPRISE)]
    return [f"below {SURPRISE[0]:g}", *between, f"{SURPRISE[-1]:g} and above"]


def surprise_mark(character: str, nats: float) -> str:
    """Return what shows the colour of a line feed that costs much; it has nothing itself."""
    return "↵" if character == "\n" and surprise(nats) > 1 else ""
