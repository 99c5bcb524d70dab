"""The parts of messages: text made safe for a terminal, and numbers in words."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

#: Unicode categories of characters that control a terminal, or cannot be encoded.
STEERING = frozenset({"Cc", "Cs", "Zl", "Zp"})
#: Bidirectional embeddings, overrides and isolates, and interlinear annotations.
REORDERING = frozenset(
    map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x2070), *range(0xFFF9, 0xFFFC)))
)
#: Characters that are not marks, yet combine with the one before or are invisible: conjoining
#: Korean vowels and finals, Korean fillers, and the Braille blank.
UNSEEN = frozenset(
    map(chr, (*range(0x115F, 0x1200), *range(0xD7B0, 0xD800), 0x2800, 0x3164, 0xFFA0))
)
#: Bidirectional classes of right-to-left letters and numerals.
RIGHT_TO_LEFT = frozenset({"R", "AL", "AN"})


def joined(words: Sequence[str], last: str) -> str:
    """Return words as a list within a sentence, with ``last`` before the final one.

    >>> joined(["a", "b", "c"], "or")
    'a, b or c'
    """
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def shown(name: object) -> str:
    """Return a path, or another name from the user, fit for a one-line message."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))


def printable(text: str) -> str:
    r"""Return text that cannot control a terminal: control characters become U+FFFD.

    So do characters that change the direction of the text after them. Line feeds, tabs, spaces
    of every width and the joiners that many scripts need stay; a carriage return before a line
    feed is dropped.

    >>> printable("a\x1b[2Jb\r\n")
    'a\ufffd[2Jb\n'
    """
    return "".join(
        c if c in "\n\t" or c.isprintable() or not _steers(c) else "\N{REPLACEMENT CHARACTER}"
        for c in text.replace("\r\n", "\n")
    )


def quoted(character: str) -> str:
    r"""Return a character in quotes, fit for a list of them.

    Besides what ``repr`` escapes, marks and other characters that would be drawn onto the quote
    or not at all are escaped, and right-to-left letters, which would reverse the list.

    >>> print(quoted("é"), quoted("\u0301"), quoted("\u1161"), quoted("\u05d0"))
    'é' '\u0301' '\u1161' '\u05d0'
    """
    if is_drawn_onto(character) or unicodedata.bidirectional(character) in RIGHT_TO_LEFT:
        return f"'{character.encode('unicode_escape').decode()}'"
    return repr(character)


def is_drawn_onto(character: str) -> bool:
    """Whether a character combines with the one before, as a mark does, or is invisible."""
    return character in UNSEEN or unicodedata.category(character).startswith("M")


def _steers(character: str) -> bool:
    return unicodedata.category(character) in STEERING or character in REORDERING


def reason(error: OSError) -> str:
    """Return the operating system's reason for an error, in words."""
    return error.strerror or type(error).__name__


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, in the plural where needed.

    >>> counted(1, "lane"), counted(5326.0, "epoch"), counted(0.5, "minute")
    ('1 lane', '5,326 epochs', '0.5 minutes')
    """
    # Above 2**53, floats cannot represent every whole number.
    is_whole = number == int(number) and abs(number) < 2**53
    figure = f"{int(number):,}" if is_whole or isinstance(number, int) else f"{number:,.10g}"
    return f"{figure} {noun}{'' if number == 1 else 's'}"


def significant(value: float, digits: int) -> str:
    """Return a number to ``digits`` significant digits, but with all those before the point.

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
    """Return the word for shrinking a gradient, given the norm that all are scaled to, if any."""
    return "clipped" if scale_norm is None else "scaled down"
