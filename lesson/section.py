"""What a section of the lesson is made of, and how it is written down."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "CLAIMS",
    "Figure",
    "Judgement",
    "Section",
    "Table",
    "Verdict",
    "broken",
    "filled",
    "judged",
    "markdown",
    "percent",
]

#: Of the page's lines.
WIDTH = 96

Verdict = Literal["holds", "holds in part", "does not hold", "is not tested"]

#: What an introductory lecture says, in order.
CLAIMS = (
    "A recurrent network takes input of any length, because one set of weights serves every step; "
    "separate weights for each of 1,000 steps would be 1,000 times as many.",
    "A step is nothing but a linear map and a nonlinearity, tanh in the original.",
    "Backpropagation through all time steps is hardly feasible, so a window is used: of 108 steps "
    "only the loss of the last 10, say. The gradient is not exact, but there is no choice.",
    "Truncation keeps the model from learning what lies further back than the window.",
    "With a recurrent weight below 1 gradients vanish, above 1 they explode, within 20 steps "
    "already; it must lie near 1.",
    "A large gradient is easy to mend: cut its size, keep its direction.",
    "A vanishing gradient cannot be mended by scaling it up, since nobody knows how far: the "
    "architecture has to change.",
    "The LSTM adds a memory line. Gates decide what to keep (forget), what to write (input times "
    "tanh) and what to show (output).",
    "The memory changes slowly and its gradient does not pass through the recurrent weights, so "
    "gradients reach far back.",
    "The LSTM's only drawback is its price.",
    "The GRU is a simpler LSTM at half the price.",
)

TITLES = (
    "Any length", "One step", "A window", "Beyond the window", "Vanishing and exploding",
    "Clipping", "Scaling up", "The memory line", "Gradients along the memory",
    "The price of the LSTM", "The GRU",
)  # fmt: skip


@dataclass(frozen=True)
class Judgement:
    """What the numbers say of a claim."""

    verdict: Verdict
    says: tuple[str, ...]
    """Sentences."""


def judged(parts: Iterable[bool], *says: str) -> Judgement:
    """Return that a claim holds if all of its parts do, in part if some do.

    Without any part, as where nothing happened that the claim is about, it is not tested.
    """
    kept = list(parts)
    verdict: Verdict = "does not hold" if kept else "is not tested"
    if any(kept):
        verdict = "holds" if all(kept) else "holds in part"
    return Judgement(verdict, tuple(sentence for sentence in says if sentence))


def percent(share: float) -> str:
    """Return a share as it stands in a sentence: 12 %, 3.4 %, 0.05 %."""
    value = 100 * share
    if 0 < value < 1e-3:
        return "< 0.001 %"
    return f"{value:.0f} %" if value >= 10 or not value else f"{value:.2g} %"


@dataclass(frozen=True)
class Table:
    """A table: its head, and its rows; what is no number stands to the left."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    """The first columns that hold words."""


@dataclass(frozen=True)
class Figure:
    """A figure as a file of its own."""

    name: str
    title: str
    svg: str


@dataclass(frozen=True)
class Section:
    """All that the page says of one claim."""

    number: int
    """From 1 to 11."""
    why: str
    """What a student should know first, in Markdown."""
    commands: Sequence[str]
    tables: Sequence[Table]
    rule: str
    """How the verdict follows from the numbers."""
    judgement: Judgement
    figures: Sequence[Figure] = ()

    @property
    def claim(self) -> str:
        """The claim."""
        return CLAIMS[self.number - 1]

    @property
    def title(self) -> str:
        """The section's heading."""
        return f"{self.number}. {TITLES[self.number - 1]}"

    @property
    def anchor(self) -> str:
        """The heading's anchor, as GitHub makes it."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")

    def markdown(self, figures: str, first: Mapping[str, int]) -> str:
        """Return the section in Markdown.

        Args:
            figures: the folder of the figures, seen from the page.
            first: by command, the number of the section that prints it first.
        """
        shown = [f"![{figure.title}]({figures}/{figure.name}.svg)\n" for figure in self.figures]
        verdict = self.judgement.verdict
        return "\n".join(
            [
                f"## {self.title}\n",
                textwrap.indent(filled(self.claim), "> ") + "\n",
                f"{filled(self.why)}\n",
                "```sh\n"
                + "\n".join(self._shown(command, first[command]) for command in self.commands)
                + "\n```\n",
                *map(markdown, self.tables),
                *shown,
                filled(f"**The claim {verdict}.** {' '.join(self.judgement.says)}") + "\n",
                filled(f"*The rule: {self.rule}*") + "\n",
            ]
        )

    def _shown(self, command: str, first: int) -> str:
        """Return a command on lines; a comment if an earlier section has it.

        Typed twice, one that trains ends with an error: its run's folder is there.
        """
        if first == self.number:
            return broken(command)
        return textwrap.indent(broken(f"as in claim {first}: {command}", WIDTH - 2), "# ")


def filled(text: str) -> str:
    """Return a paragraph on lines of equal width; code stays on one line."""
    # A line that began with a formula's + would begin a list.
    kept = re.sub(r"`[^`]*`", lambda code: re.sub(r"\s+", "\0", code[0]), text.strip())
    kept = re.sub(r"(?<=\d) %", "\0%", kept)
    lines = textwrap.fill(kept, WIDTH, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    aligned = ["---" if n < table.words else "---:" for n in range(len(table.head))]
    lines = [table.head, aligned, *table.rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def broken(command: str, width: int = WIDTH) -> str:
    """Return a command on lines that end in a backslash, none wider than that if it can be."""
    return "\n".join(_broken(line, width) for line in command.splitlines())


def _broken(command: str, width: int) -> str:
    if len(command) <= width:
        return command
    indent = re.sub(r"\S.*", "", command)
    # Before options, checkpoints and pipes only: not within what a shell has to read as one.
    first, *pieces = re.split(r" (?=--[a-z]|\| )|(?<!--run) (?=checkpoints/)", command.strip())
    lines = [indent + first]
    for piece in pieces:
        if len(lines[-1]) + 1 + len(piece) > width - 2:
            lines.append(f"{indent}    {piece}")
        else:
            lines[-1] += f" {piece}"
    return " \\\n".join(lines)
