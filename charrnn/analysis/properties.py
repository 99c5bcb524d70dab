"""What a reader sees at each character of a text: quotes, brackets, columns, words.

Each property is a function from a text to one number per character: its value once that
character has been read, so the character that opens a quotation is inside it and the one
that closes it is not. Karpathy, Johnson and Fei-Fei (2015) found units of an LSTM that
follow such properties. A carriage return does not make an empty line any less empty.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping

#: After three opening marks: they are not the start of a CSV field that begins with a quoted word,
#: where marks are doubled.
_NO_FIELD = r'(?![^"\n]*[\w.!?]""(?!"))'
#: One token: three straight marks, which open if a letter follows and close if a letter or full
#: stop comes before; a mark in single quotes, which is only mentioned; or one character. Before
#: three opening marks there may be the letters of a string's prefix.
_READ = re.compile(
    r'''(?P<closes>(?<=[\w.!?])(?<!\b[bfru])(?<!\b[bfr]{2})"""(?!\w))'''
    rf'''|(?P<opens>(?:(?<![\w.!?])|(?<=\b[bfru])|(?<=\b[bfr]{{2}}))"""(?=\w){_NO_FIELD})'''
    rf'''|(?P<either>"""{_NO_FIELD})|(?<!")'"'(?!")|.''',
    re.DOTALL | re.IGNORECASE,
)
_THREE = '"""'


def inside_quotes(text: str) -> list[float]:
    """1 inside double quotation marks or 「」; an empty line closes any that are still open.

    «a» is »a« in German and Danish books, and “a” is ”a” in Swedish and Finnish ones: the mark that
    comes first in most paragraphs is the one that opens.

    Three straight marks in a row count as one, as in Python: only three more close them, even
    across empty lines, and the text may begin inside. They do not count inside curly or angular
    ones.
    """
    # Writers and programs mix straight marks with curly ones.
    closed_by = {'"': '"”', "„": '“”"', "“": '”"', "「": "」", "『": "』"}
    paragraphs = re.split(r"\n\r?\n", text)
    if len(paragraphs) == 1:
        paragraphs = text.splitlines()
    for one, other in ("«»", "“”"):
        firsts = Counter(found[0] for p in paragraphs if (found := re.search(one + "|" + other, p)))
        if firsts[other] <= firsts[one] or (one == "“" and "„" in text):
            closed_by.setdefault(one, other)
        else:
            closed_by.pop(one, None)
            closed_by[other] = one + other
    return _quoted(text, closed_by, "")


def _quoted(text: str, closed_by: Mapping[str, str], closing: str) -> list[float]:
    """Return the values, if the text begins where one of the marks in ``closing`` would close.

    With no such mark it begins outside, unless the first three straight marks that clearly open or
    close show that it begins inside three.
    """
    values: list[float] = []
    straight, before, is_told = closed_by['"'], "", bool(closing)
    last_three = text.rfind(_THREE)
    for found in _READ.finditer(text):
        mark, kind = found[0], found.lastgroup
        if mark == _THREE and closing in ("", _THREE, straight):
            opens = kind == "opens" or (kind == "either" and not closing)
            if kind != "either" and not is_told:
                is_told = True
                if closing == (_THREE if opens else ""):
                    return _quoted(text, closed_by, _THREE)
            if opens and not closing and found.start() == last_three:
                closing = straight  # nothing closes them: an empty line does, at the latest
            else:
                closing = _THREE if opens else ""
        elif closing != _THREE:
            if mark in closing or mark == before == "\n":
                closing = ""
            elif not closing:
                closing = closed_by.get(mark, "")
        values += [float(bool(closing))] * len(mark)
        if mark != "\r":
            before = mark
    return values


def inside_brackets(text: str) -> list[float]:
    """1 inside round, square or curly brackets; an empty line closes all of them."""
    values, depth, before = [], 0, ""
    for character in text:
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth = max(0, depth - 1)
        elif character == before == "\n":
            depth = 0
        values.append(float(depth > 0))
        if character != "\r":
            before = character
    return values


def position_in_line(text: str) -> list[float]:
    """Number of characters read so far in the line; 0 at the line feed before it."""
    values, position = [], 0
    for character in text:
        position = 0 if character == "\n" else position + 1
        values.append(float(position))
    return values


def indentation(text: str) -> list[float]:
    """Number of spaces and tabs at the start of the line, as far as it has been read."""
    values, indent, at_start = [], 0, True
    for character in text:
        if character == "\n":
            indent, at_start = 0, True
        elif at_start and character in " \t":
            indent += 1
        else:
            at_start = False
        values.append(float(indent))
    return values


def inside_word(text: str) -> list[float]:
    """1 at letters with their marks, digits and underscores, 0 between words."""
    values, inside = [], False
    for character in text:
        # A combining mark belongs to the character before it: many scripts write vowels this way.
        if not unicodedata.category(character).startswith("M"):
            inside = character.isalnum() or character == "_"
        values.append(float(inside))
    return values


def position_in_word(text: str) -> list[float]:
    """Number of characters read so far in the word; 0 between words."""
    values, position = [], 0
    for inside in inside_word(text):
        position = position + 1 if inside else 0
        values.append(float(position))
    return values


def capitalised_word(text: str) -> list[float]:
    """1 inside a word that began with an upper-case letter."""
    values, before, capital = [], 0.0, False
    for character, inside in zip(text, inside_word(text), strict=True):
        if inside and not before:
            capital = character.isupper()
        values.append(inside * capital)
        before = inside
    return values


def upper_case(text: str) -> list[float]:
    """1 at upper-case letters."""
    return [float(character.isupper()) for character in text]


def digit(text: str) -> list[float]:
    """1 at digits."""
    return [float(character.isdigit()) for character in text]


PROPERTIES: dict[str, Callable[[str], list[float]]] = {
    "inside quotes": inside_quotes,
    "inside brackets": inside_brackets,
    "position in line": position_in_line,
    "indentation": indentation,
    "inside a word": inside_word,
    "position in word": position_in_word,
    "capitalised word": capitalised_word,
    "upper case": upper_case,
    "digit": digit,
}
"""The properties, by the names shown to the user."""
