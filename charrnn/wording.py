"""Helpers for messages: text made safe for a terminal or a shell, and numbers in words."""

from __future__ import annotations

import os
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

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


def flag(field: str) -> str:
    """Return the command-line flag that sets a field.

    >>> flag("clip_norm")
    '--clip-norm'
    """
    return "--" + field.replace("_", "-")


def command_line(words: Iterable[str | Path]) -> str:
    r"""Return a command to paste into a shell; unprintable words are in bash's $'...' form.

    A path that begins with a dash gets a ``./``, so that it is not taken for an option.

    >>> print(command_line(["charrnn", "sample", "my run", "caf\udce9", Path("-run")]))
    charrnn sample 'my run' $'caf\xe9' ./-run
    """
    return " ".join(map(_pasted, words))


def options_again(fields: Mapping[str, object], but: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the words of a command line that set fields.

    Args:
        fields: field -> value; None: it is not set.
        but: words that are there already: flags among them are left out.

    >>> options_again({"minutes": 3.0, "steps": None, "lr": 0.5}, but=("--lr", "0.1"))
    ('--minutes', '3')
    """
    words: list[str] = []
    for name, value in fields.items():
        if value is not None and flag(name) not in but:
            short = f"{value:g}" if isinstance(value, float) else str(value)
            # All digits of a number that has many.
            is_rounded = isinstance(value, float) and float(short) != value
            words += [flag(name), repr(value) if is_rounded else short]
    return tuple(words)


def validating_on(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the words of a command line that name texts to validate on."""
    return tuple(word for name in texts for word in ("--valid", name))


def resume_command(folder: Path, *options: str, texts: Sequence[str] = ()) -> str:
    """Return the command line that resumes the run in a folder.

    Args:
        folder: the run's.
        options: to append.
        texts: the texts that it must name; "TEXT" stands for one that is not known.
    """
    return command_line(["charrnn", "train", *texts, "--run", folder, "--resume", *options])


def comparison_command(folder: Path, *options: str | Path) -> str:
    """Return the command line that goes on with a folder's comparison, ``options`` appended."""
    return command_line(["charrnn", "compare", "--run", folder, "--resume", *options])


def _pasted(word: str | Path) -> str:
    """Return a word quoted for the shell."""
    plain = str(word)
    if isinstance(word, Path) and plain.startswith("-"):
        plain = f"./{plain}"
    return shlex.quote(plain) if plain.isprintable() else f"$'{''.join(map(_escaped, plain))}'"


def _escaped(character: str) -> str:
    """Return a character as it is written between $' and '."""
    if character in "\\'":
        return "\\" + character
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


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
