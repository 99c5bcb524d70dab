"""Consoles and tables that leave text unchanged, text wrapped to a width, and JSON for stdout."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self, TextIO

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from charrnn.wording import REORDERING, printable

#: Characters that steer a terminal, or end a line for some readers, and that JSON may have as they
#: are.
_TO_ESCAPE = re.compile(f"[\x7f-\x9f\u2028\u2029{''.join(sorted(REORDERING))}]")
#: What COLUMNS and LINES may be. Rich would also try ², which is a digit, yet no number for int().
_SIZE = re.compile(r"\d{1,5}")


class Output(Console):
    """A console without automatic highlighting that lets BrokenPipeError through.

    Rich's own console would end the program at a closed pipe, with exit code 1.
    """

    def __init__(self, **options: Any) -> None:
        environ = dict(os.environ)
        size = _size_of(sys.stderr if options.get("stderr") else sys.stdout)
        for name in ("COLUMNS", "LINES"):
            # An exported COLUMNS may be that of another window: the panel could not be erased.
            if size is not None or not _SIZE.fullmatch(environ.get(name, "")):
                environ.pop(name, None)
        super().__init__(highlight=False, _environ=environ, **options)
        # Rich assumes 80 columns for a terminal whose TERM is dumb, and takes COLUMNS=0, which
        # some programs set where they know no width, for one that has room for nothing.
        if (self.is_dumb_terminal or self.width < 1) and "width" not in options:
            self.size = size or shutil.get_terminal_size()

    @classmethod
    def wide(cls) -> Self:
        """Return a console that cuts nothing off; the terminal wraps what is too wide for it."""
        # Without a height Rich would assume 80 columns here, too.
        return cls(width=10_000, height=100)

    @property
    def is_screen(self) -> bool:
        """Whether this is a terminal whose lines can be redrawn in place.

        Rich's ``is_terminal`` is also true for a file if FORCE_COLOR is set.
        """
        return self.is_interactive and self.file.isatty() and not _is_kept()

    @property
    def is_in_foreground(self) -> bool:
        """Whether this process is in the terminal's foreground; after & or bg the shell is."""
        try:
            return os.tcgetpgrp(self.file.fileno()) == os.getpgrp()
        except OSError:  # not this process's controlling terminal
            return True

    @property
    def has_colours(self) -> bool:
        """Whether colours are shown; Rich has a colour system even under NO_COLOR."""
        return self.color_system is not None and not self.no_color

    def on_broken_pipe(self) -> None:
        """Re-raise the error, for the command line to handle."""
        raise  # Rich calls this in its except block


def _size_of(stream: TextIO) -> os.terminal_size | None:
    """Return a terminal's own size; None where a stream is none, or does not know its width."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):  # no terminal, or closed
        return None
    return size if size.columns else None


def _is_kept() -> bool:
    """Whether a notebook's cell or a CI's log shows the output, and would keep every redrawing."""
    is_notebook = "JPY_PARENT_PID" in os.environ or "inline" in os.environ.get("MPLBACKEND", "")
    return is_notebook or bool(os.environ.get("CI"))


def plain_table(lines: Sequence[Sequence[str]], word_columns: int) -> Table:
    """Return a table of plain text, not Rich markup, whose cells are never wrapped.

    Args:
        lines: the head and the rows.
        word_columns: how many leading columns hold words; the others hold numbers.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, name in enumerate(lines[0]):
        side: Literal["left", "right"] = "left" if number < word_columns else "right"
        table.add_column(Text(name), justify=side, no_wrap=True)
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    return table


def fits(table: Table) -> bool:
    """Whether a table is narrow enough for stdout; a pipe takes any width."""
    console = Output()
    return not console.file.isatty() or Output.wide().measure(table).maximum <= console.width


def fitted(lines: Sequence[Sequence[str]], word_columns: int, names: int = 1) -> RenderableType:
    """Return a table for stdout that the terminal need not cut; see ``plain_table``.

    If a terminal is too narrow for it, the table is transposed; if that is too wide as well, it
    is split into tables of as many columns as fit. Only a column that is too wide alone is wrapped.

    Args:
        lines: the head and the rows.
        word_columns: how many leading columns hold words; the others hold numbers.
        names: how many leading columns tell the rows apart; each part of a split table has them.
    """
    columns = list(zip(*lines, strict=True))
    for table in (plain_table(lines, word_columns), plain_table(columns, 1)):
        if fits(table):
            return table
    blocks = _blocks(columns, word_columns, names)
    _, *parts = (part for block in blocks for part in ("", block))
    return Group(*parts)


def _blocks(columns: Sequence[Sequence[str]], word_columns: int, names: int) -> Iterator[Table]:
    """Yield tables of as many columns as fit, each with the first ones again."""
    first, rest = columns[:names], columns[names:]
    of_first, of_rest = min(word_columns, names), max(0, word_columns - names)
    while rest:
        count, word_columns = 1, of_first + of_rest
        for more in range(2, len(rest) + 1):
            if not fits(_table([*first, *rest[:more]], word_columns)):
                break
            count = more
        yield _table([*first, *rest[:count]], word_columns)
        rest, of_rest = rest[count:], max(0, of_rest - count)


def _table(columns: Sequence[Sequence[str]], word_columns: int) -> Table:
    return plain_table(list(zip(*columns, strict=True)), word_columns)


def say_on(console: Console, line: str, hang: int = 0) -> None:
    """Print a line wrapped between words; commands and long paths are printed unwrapped.

    Args:
        console: where to print.
        line: the text.
        hang: indentation of all rows but the first, in columns.
    """
    longest = max(map(cell_len, line.split()), default=0)
    if "charrnn " in line or longest > console.width - hang:  # a command, or a long path
        console.print(Text(line), soft_wrap=True)
        return
    first = Text(line).wrap(console, console.width)[0].plain
    rest = Text(line[len(first) :].strip())
    console.print(Text(first.rstrip()))
    # Without spaces at the end of a row, which would be wrapped if the window became narrower.
    for row in rest.wrap(console, console.width - hang) if rest else ():
        console.print(Text(" " * hang + row.plain.rstrip()))


def print_words(line: str, hang: int = 0, *, stderr: bool = False) -> None:
    """Print a sentence: as ``say_on`` does on a terminal, unchanged elsewhere.

    Args:
        line: the sentence.
        hang: as for ``say_on``.
        stderr: print on stderr instead of stdout.
    """
    console = Output(stderr=stderr)
    if console.file.isatty():
        say_on(console, line, hang)
    else:
        console.print(Text(line), soft_wrap=True)


def in_rows(text: str, width: int) -> list[str]:
    """Wrap text into rows that fit a width on any terminal, between words if possible."""
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
    """Return how many columns a character takes; Rich wrongly counts none for a spacing mark."""
    return max(cell_len(character), int(unicodedata.category(character) == "Mc"))


def _most_columns(character: str) -> int:
    """Return the most columns that any terminal gives a character.

    Some terminals give joined emoji, and Korean vowels written as separate jamo, columns of
    their own.
    """
    if character == "\N{VARIATION SELECTOR-16}":  # may widen the character before it
        return 1
    takes_one = unicodedata.category(character) not in ("Mn", "Me")
    return max(columns_of(character), int(takes_one))


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON that stdout's encoding can represent.

    NaN and infinity become null, as JSON has neither. Non-ASCII characters are escaped unless
    stdout is utf-8. Always escaped are surrogates, which stand for bytes of a file name or a sample
    that are not utf-8, and what could steer a terminal or be taken for the end of a line.
    """
    is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=not is_utf8)
    text = _TO_ESCAPE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.encode("utf-8", "backslashreplace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
