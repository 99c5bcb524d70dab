"""What a message needs: any text as a terminal or a shell can take it, numbers in words."""

from __future__ import annotations

import os
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

#: Categories of characters that a terminal acts on, or that no output can encode.
STEERING = frozenset({"Cc", "Cs", "Zl", "Zp"})
#: Embeddings, overrides and isolates of direction, and annotations.
REORDERING = frozenset(
    map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x2070), *range(0xFFF9, 0xFFFC)))
)
#: Letters that are drawn onto the one before, as marks are, or not at all: the vowels, finals and
#: fillers of Korean that is spelled out, and Braille's blank.
UNSEEN = frozenset(
    map(chr, (*range(0x115F, 0x1200), *range(0xD7B0, 0xD800), 0x2800, 0x3164, 0xFFA0))
)
#: Classes of direction of the letters that run from right to left, and of their numerals.
RIGHT_TO_LEFT = frozenset({"R", "AL", "AN"})


def joined(words: Sequence[str], last: str) -> str:
    """Return words as a sentence has them.

    >>> joined(["a", "b", "c"], "or")
    'a, b or c'
    """
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def shown(name: object) -> str:
    """Return a path, or what else somebody has named, fit for one line of a message."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))


def printable(text: str) -> str:
    r"""Return text that cannot steer a terminal: what controls it is shown as U+FFFD.

    So is what turns the direction of all that follows. Line feeds, tabs, spaces of every width
    and the joiners that many scripts are written with stay; a carriage return before a line
    feed says nothing more and goes.

    >>> printable("a\x1b[2Jb\r\n")
    'a\ufffd[2Jb\n'
    """
    return "".join(
        c if c in "\n\t" or c.isprintable() or not _steers(c) else "\N{REPLACEMENT CHARACTER}"
        for c in text.replace("\r\n", "\n")
    )


def quoted(character: str) -> str:
    r"""Return a character between quotes, fit for a list of them.

    As an escape, besides what ``repr`` has as one: a mark, or what else would be drawn onto the
    quote or not at all, and a letter from right to left, which would turn the list around.

    >>> print(quoted("é"), quoted("\u0301"), quoted("\u1161"), quoted("\u05d0"))
    'é' '\u0301' '\u1161' '\u05d0'
    """
    if is_drawn_onto(character) or unicodedata.bidirectional(character) in RIGHT_TO_LEFT:
        return f"'{character.encode('unicode_escape').decode()}'"
    return repr(character)


def is_drawn_onto(character: str) -> bool:
    """Whether a character is drawn onto the one before, as marks are, or not at all."""
    return character in UNSEEN or unicodedata.category(character).startswith("M")


def _steers(character: str) -> bool:
    return unicodedata.category(character) in STEERING or character in REORDERING


def flag(field: str) -> str:
    """Return what sets a field of an option's name on the command line.

    >>> flag("clip_norm")
    '--clip-norm'
    """
    return "--" + field.replace("_", "-")


def command_line(words: Iterable[str | Path]) -> str:
    r"""Return the line that runs a command; what cannot be shown is as bash reads it.

    A path that begins with a dash is given so that it is no option.

    >>> print(command_line(["charrnn", "sample", "my run", "caf\udce9", Path("-run")]))
    charrnn sample 'my run' $'caf\xe9' ./-run
    """
    return " ".join(map(_pasted, words))


def _pasted(word: str | Path) -> str:
    """Return a word as a shell reads it."""
    plain = str(word)
    if isinstance(word, Path) and plain.startswith("-"):
        plain = f"./{plain}"
    return shlex.quote(plain) if plain.isprintable() else f"$'{''.join(map(_escaped, plain))}'"


def _escaped(character: str) -> str:
    """Return a character as it stands between $' and '."""
    if character in "\\'":
        return "\\" + character
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def reason(error: OSError) -> str:
    """Return in words why the operating system refused."""
    return error.strerror or type(error).__name__


def counted(number: float, noun: str) -> str:
    """Return how many there are of something.

    >>> counted(1, "lane"), counted(5326.0, "epoch"), counted(0.5, "minute")
    ('1 lane', '5,326 epochs', '0.5 minutes')
    """
    # Floats above this do not hold every whole number.
    is_whole = number == int(number) and abs(number) < 2**53
    figure = f"{int(number):,}" if is_whole or isinstance(number, int) else f"{number:,.10g}"
    return f"{figure} {noun}{'' if number == 1 else 's'}"


def significant(value: float, digits: int) -> str:
    """Return a number to so many significant digits, as exact as those above and below it.

    >>> significant(0.2, 2), significant(54.2, 3), significant(1234.5, 3), significant(999.7, 3)
    ('0.20', '54.2', '1,234', '1,000')
    """
    if 10**digits <= abs(float(f"{value:.{digits}g}")) < 1e9:
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".removesuffix(".")


def duration(seconds: float) -> str:
    """Return a duration as 8 s, 3:05 or 2:03:05.

    >>> duration(185)
    '3:05'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def cut_word(scale_norm: float | None) -> str:
    """Return what happens to a gradient that is made smaller, by the norm all are scaled to."""
    return "clipped" if scale_norm is None else "scaled down"
