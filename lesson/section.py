"""The parts of a section of the lesson, and how they become Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from charrnn.views.figures import DARK, LIGHT, SANS

#: Width of the page's lines, in characters.
WIDTH = 96

Verdict = Literal["holds", "holds in part", "does not hold", "is not tested"]


@dataclass(frozen=True)
class Judgement:
    """What the numbers say about a claim."""

    verdict: Verdict
    says: tuple[str, ...]
    """Sentences that explain the verdict."""


def judged(parts: Iterable[bool], *says: str) -> Judgement:
    """Return a judgement: a claim holds if all of its parts do, in part if some do.

    Without any parts, because nothing happened that the claim is about, it is not tested.
    """
    kept = list(parts)
    verdict: Verdict = "does not hold" if kept else "is not tested"
    if any(kept):
        verdict = "holds" if all(kept) else "holds in part"
    return Judgement(verdict, tuple(sentence for sentence in says if sentence))


def percent(share: float) -> str:
    """Return a share as a sentence shows it: 12 %, 3.4 %, 0.05 %."""
    value = 100 * share
    if 0 < value < 1e-3:
        return "< 0.001 %"
    return f"{value:.0f} %" if value >= 10 or not value else f"{value:.2g} %"


@dataclass(frozen=True)
class Table:
    """A table: its head and its rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    """How many of the first columns hold words; they are aligned left, numbers right."""


@dataclass(frozen=True)
class Figure:
    """A figure, in a file of its own."""

    name: str
    title: str
    """The caption, and the text for readers who cannot see the figure; no full stop."""
    chart: str
    """SVG, as it would be embedded in an HTML page."""

    def file(self, number: int) -> str:
        """Return the name of its file, given the number of its section."""
        return f"{number}-{self.name}.svg"

    def standalone(self) -> str:
        """Return the SVG of its file, on a background that follows light and dark mode."""
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
    """Everything that the page says about one claim."""

    title: str
    claim: str
    """What introductory lectures say, in our words."""
    why: str
    """What a student should know first, in Markdown."""
    commands: Sequence[str]
    tables: Sequence[Table]
    rule: str
    """The rule by which the verdict follows from the numbers."""
    judgement: Judgement
    figures: Sequence[Figure] = ()

    def heading(self, number: int) -> str:
        """Return the heading, given the section's number on the page, from 1."""
        return f"{number}. {self.title}"

    def anchor(self, number: int) -> str:
        """Return the heading's anchor, as GitHub makes it."""
        return re.sub(r"[^\w\- ]", "", self.heading(number).lower()).replace(" ", "-")

    def markdown(self, number: int, figures: str, first: Mapping[str, int]) -> str:
        """Return the section in Markdown.

        Args:
            number: the section's number on the page, from 1.
            figures: the folder of the figures, relative to the page.
            first: command -> number of the first section that has it.
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
    """Return a section's command, as a comment if an earlier section already has it.

    A training command typed twice would fail, because its run's folder exists.
    """
    if first == number:
        return broken(command)
    return textwrap.indent(broken(f"as in claim {first}: {command}", WIDTH - 2), "# ")


def filled(text: str) -> str:
    """Return a paragraph wrapped to the page's width; code stays on one line."""
    # Code is not wrapped: a line that starts with a formula's + would start a list.
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
    """Return a command broken into lines with backslashes, each within the width if possible."""
    return "\n".join(_broken(line, width) for line in command.splitlines())


def _broken(command: str, width: int) -> str:
    if len(command) <= width:
        return command
    indent = re.sub(r"\S.*", "", command)
    # Break only before options, checkpoints and pipes, never inside one word of the shell.
    first, *pieces = re.split(r" (?=--[a-z]|\| )|(?<!--run) (?=checkpoints/)", command.strip())
    lines = [indent + first]
    for piece in pieces:
        if len(lines[-1]) + 1 + len(piece) > width - 2:
            lines.append(f"{indent}    {piece}")
        else:
            lines[-1] += f" {piece}"
    return " \\\n".join(lines)
