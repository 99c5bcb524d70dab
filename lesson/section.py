"""What a section of the lesson is made of, and how it is written down."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from charrnn.figures import DARK, LIGHT, SANS

#: Of the page's lines.
WIDTH = 96

Verdict = Literal["holds", "holds in part", "does not hold", "is not tested"]


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
    """A figure, which gets a file of its own."""

    name: str
    title: str
    """Below it on the page, and in its place for who does not see it; no full stop."""
    chart: str
    """SVG, as a page has it."""

    def file(self, number: int) -> str:
        """Return what its file is called, in the section of that number."""
        return f"{number}-{self.name}.svg"

    def standalone(self) -> str:
        """Return what its file holds: the chart on paper that follows light and dark."""
        found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', self.chart)
        assert found, "a figure's box begins at 0 0"
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{1.5 * float(found[1]):g}" '
            f'height="{1.5 * float(found[2]):g}"'
        )
        paper = (
            f"<style>:root {{ {SANS} {LIGHT} }} @media screen and (prefers-color-scheme: dark) "
            f"{{ :root {{ {DARK} }} }} svg * {{ stroke-linejoin: round }}</style>\n"
            '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
        )
        return self.chart.replace("<svg", head, 1).replace("</desc>", f"</desc>\n{paper}", 1)


@dataclass(frozen=True)
class Section:
    """All that the page says of one claim."""

    title: str
    claim: str
    """What introductory lectures say, in our words."""
    why: str
    """What a student should know first, in Markdown."""
    commands: Sequence[str]
    tables: Sequence[Table]
    rule: str
    """How the verdict follows from the numbers."""
    judgement: Judgement
    figures: Sequence[Figure] = ()

    def heading(self, number: int) -> str:
        """Return the section's heading, by its place on the page from 1 on."""
        return f"{number}. {self.title}"

    def anchor(self, number: int) -> str:
        """Return the heading's anchor, as GitHub makes it."""
        return re.sub(r"[^\w\- ]", "", self.heading(number).lower()).replace(" ", "-")

    def markdown(self, number: int, figures: str, first: Mapping[str, int]) -> str:
        """Return the section in Markdown.

        Args:
            number: its place on the page, from 1 on.
            figures: the folder of the figures, seen from the page.
            first: by command, the number of the section that prints it first.
        """
        shown = [
            f"![{one.title}]({figures}/{one.file(number)})\n\n{filled(f'*{one.title}.*')}\n"
            for one in self.figures
        ]
        verdict = self.judgement.verdict
        return "\n".join(
            [
                f"## {self.heading(number)}\n",
                textwrap.indent(filled(self.claim), "> ") + "\n",
                f"{filled(self.why)}\n",
                "```sh\n"
                + "\n".join(_shown(command, number, first[command]) for command in self.commands)
                + "\n```\n",
                *map(markdown, self.tables),
                *shown,
                filled(f"**The claim {verdict}.** {' '.join(self.judgement.says)}") + "\n",
                filled(f"*The rule: {self.rule}*") + "\n",
            ]
        )


def _shown(command: str, number: int, first: int) -> str:
    """Return a section's command on lines; a comment if an earlier section has it.

    Typed twice, one that trains ends with an error: its run's folder is there.
    """
    if first == number:
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
