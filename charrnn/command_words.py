"""The command lines in messages, in a form that a shell can take."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


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
        texts: the texts that it must name; "TEXT" stands for one that is not known, and "-" for
            standard input.

    >>> resume_command(Path("runs/a"), texts=["-b.txt", "-"])
    'charrnn train ./-b.txt - --run runs/a --resume'
    """
    named = [Path(name) if name.startswith("-") and name != "-" else name for name in texts]
    return command_line(["charrnn", "train", *named, "--run", folder, "--resume", *options])


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
