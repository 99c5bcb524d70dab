"""The mistakes a user can make: one message and one exit code each.

::

    CharrnnError            1   something outside the program is not as it must be
    ├── UsageError          2   an option that makes no sense
    ├── CorpusError         1   a text that cannot be read, decoded, or is too small
    ├── VocabularyError     1   characters that the model does not know
    ├── CheckpointError     1   a file that is not a whole checkpoint of ours
    ├── RunFolderError      1   a run's folder that is taken, locked, full or not writable
    └── NonFiniteError      1   a loss or gradient that is no number any more

Every message is one line: what is wrong, where, and what to do. The command
line prints it after ``charrnn: `` and leaves with the exit code; whoever calls
the library catches ``CharrnnError``. A programmer's mistake is an ``assert``
or a plain ``ValueError``, never one of these.

Beside them is what a message needs: any text as a terminal or a shell can take it.
"""

from __future__ import annotations

import os
import shlex
import unicodedata
from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "CharrnnError",
    "CheckpointError",
    "CorpusError",
    "NonFiniteError",
    "RunFolderError",
    "UsageError",
    "VocabularyError",
    "command_line",
    "printable",
    "reason",
    "shown",
]


#: Categories of characters that a terminal acts on, or that no output can encode.
STEERING = frozenset({"Cc", "Cs", "Zl", "Zp"})
#: Embeddings, overrides and isolates of direction, and annotations.
REORDERING = frozenset(
    map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x2070), *range(0xFFF9, 0xFFFC)))
)


class CharrnnError(Exception):
    """A mistake that the user can mend; ``str(error)`` is the one line to show."""

    exit_code: ClassVar[int] = 1


class UsageError(CharrnnError):
    """An option, or a combination of options, that makes no sense."""

    exit_code: ClassVar[int] = 2


class CorpusError(CharrnnError):
    """A text that cannot be found, read or decoded, that changed, or is too small."""


class VocabularyError(CharrnnError):
    """Characters that the model's vocabulary does not have."""


class CheckpointError(CharrnnError):
    """A file that is not a whole, unharmed checkpoint of a format we know."""


class RunFolderError(CharrnnError):
    """A run's folder that another process holds, or that cannot be written."""


class NonFiniteError(CharrnnError):
    """A loss, gradient or weight that is NaN or infinite."""


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


def _steers(character: str) -> bool:
    return unicodedata.category(character) in STEERING or character in REORDERING


def command_line(words: Iterable[str]) -> str:
    r"""Return the line that runs a command; what cannot be shown is as bash reads it.

    >>> print(command_line(["charrnn", "sample", "my run", "caf\udce9"]))
    charrnn sample 'my run' $'caf\xe9'
    """
    return " ".join(
        shlex.quote(word) if word.isprintable() else f"$'{''.join(map(_escaped, word))}'"
        for word in words
    )


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
