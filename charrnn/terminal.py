"""What commands write with: consoles and tables that change no text, rows that fit, JSON."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal, Self

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from charrnn.wording import printable


class Output(Console):
    """A console that adds no colours of its own, and whose reader may leave.

    Like every other writer it raises BrokenPipeError then; Rich would end the program itself,
    with exit code 1.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, **options)
        # Rich would take 80 columns of any terminal that calls itself dumb.
        if self.is_dumb_terminal and "width" not in options:
            self.size = shutil.get_terminal_size()

    @classmethod
    def wide(cls) -> Self:
        """Return one that cuts nothing off: what is too wide for a terminal, that breaks."""
        # Without a height Rich would take 80 columns here, too.
        return cls(width=10_000, height=100)

    @property
    def is_screen(self) -> bool:
        """Whether it is a terminal that can be drawn on in place.

        Rich's ``is_terminal`` is so for a file, too, where FORCE_COLOR asks for colours.
        """
        return self.is_interactive and self.file.isatty() and not _is_notebook()

    @property
    def is_in_foreground(self) -> bool:
        """Whether a terminal is this process's to draw on: a shell may have it, after & or bg."""
        try:
            return os.tcgetpgrp(self.file.fileno()) == os.getpgrp()
        except OSError:  # one that controls no process
            return True

    @property
    def has_colours(self) -> bool:
        """Whether colours are shown; under NO_COLOR Rich has a colour system all the same."""
        return self.color_system is not None and not self.no_color

    def on_broken_pipe(self) -> None:
        """Pass the error on, for the command line to answer."""
        raise  # it is called where the error is handled


def _is_notebook() -> bool:
    """Whether a notebook's cell shows the terminal: it appends what should take another's place."""
    return "JPY_PARENT_PID" in os.environ or "inline" in os.environ.get("MPLBACKEND", "")


def plain_table(lines: Sequence[Sequence[str]], words: int) -> Table:
    """Return a table of text that is not markup; nothing in it is broken into lines.

    Args:
        lines: the head and the rows.
        words: the first columns that hold words; the others hold numbers.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, name in enumerate(lines[0]):
        side: Literal["left", "right"] = "left" if number < words else "right"
        table.add_column(Text(name), justify=side, no_wrap=True)
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    return table


def fits(table: Table) -> bool:
    """Whether a table is not too wide for stdout; a pipe takes all."""
    console = Output()
    return not console.file.isatty() or Output.wide().measure(table).maximum <= console.width


def say_on(console: Console, line: str, hang: int = 0) -> None:
    """Say a line, broken between words; what is to be copied is the terminal's to break.

    Args:
        console: where.
        line: what.
        hang: columns that are left free before all rows but the first.
    """
    longest = max(map(cell_len, line.split()), default=0)
    if "charrnn " in line or longest > console.width - hang:  # a command, a path
        console.print(Text(line), soft_wrap=True)
        return
    first = Text(line).wrap(console, console.width)[0].plain
    console.print(Text(first))
    if rest := line[len(first) :].strip():
        console.print(Padding(Text(rest), (0, 0, 0, hang)))


def print_words(line: str, hang: int = 0, *, stderr: bool = False) -> None:
    """Print a sentence; a terminal gets it as ``say_on`` does, a pipe as it is.

    Args:
        line: the sentence.
        hang: as for ``say_on``.
        stderr: there, not on stdout.
    """
    console = Output(stderr=stderr)
    if console.file.isatty():
        say_on(console, line, hang)
    else:
        console.print(Text(line), soft_wrap=True)


def in_rows(text: str, width: int) -> list[str]:
    """Break text into rows that no terminal draws wider, between words where it can be."""
    rows = []
    for line in printable(text).expandtabs().split("\n"):
        row, taken = "", 0
        for word in re.split(r"(?<=\s)(?=\S)", line):
            if row and taken + sum(map(_most_columns, word.rstrip())) > width:
                rows.append(row)
                row, taken = "", 0
            for character in word:
                columns = _most_columns(character)
                if taken + columns > width:
                    if character.isspace():
                        continue
                    rows.append(row)
                    row, taken = "", 0
                row += character
                taken += columns
        rows.append(row)
    return rows


def columns_of(character: str) -> int:
    """Return the columns that terminals draw a character in: Rich gives none to a spacing mark."""
    return max(cell_len(character), int(unicodedata.category(character) == "Mc"))


def _most_columns(character: str) -> int:
    """Return the most columns that a terminal may draw a character in.

    Not all of them let an emoji that is joined to another, or a vowel of Korean spelled out, take
    no column of its own.
    """
    if character == "\N{VARIATION SELECTOR-16}":  # may widen the character before it
        return 1
    takes_one = unicodedata.category(character) not in ("Mn", "Me")
    return max(columns_of(character), int(takes_one))


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON for stdout, whatever that can take.

    A NaN or an infinity becomes null: JSON has neither. Characters are written as they
    are where stdout is utf-8, and escaped elsewhere; so are the surrogates that stand for bytes
    of a file's name or of a sample that are not utf-8.
    """
    is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=not is_utf8)
    return text.encode("utf-8", "backslashreplace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
