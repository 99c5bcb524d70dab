"""Why a text lacks a character that it seems to have: look-alikes and Unicode's normal forms.

A character may look the same as another (’ and '), or be written as one code point or as several
(é, or e and an accent), and a keyboard, a file name or a word processor chooses for the user. A
text of several sources may have both.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from charrnn.text.corpus import Corpus
from charrnn.wording import is_drawn_onto, joined, quoted

#: Characters that are typed for each other, beyond those that Unicode calls compatible: quotes,
#: dashes, full stops, commas, and the letters yeh and kaf of Arabic and of Persian.
_TYPED_FOR_EACH_OTHER = (
    "'`\u2018\u2019\u201b\u02bc\u2032",
    '"\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033',
    "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212",
    ".\u3002",
    ",\u3001\u060c",
    "?\u061f",
    "\u064a\u0649\u06cc",
    "\u0643\u06a9",
)
_TYPED_FOR = {one: group[0] for group in _TYPED_FOR_EACH_OTHER for one in group}

#: How many look-alikes, or parts of a ligature or an abbreviation, a remark names.
_SHOWN = 3
#: Initial, medial and final letters of Korean, which are joined into syllables.
_JAMO = frozenset(map(chr, range(0x1100, 0x1200)))
#: Of letters in two forms the rarer one is worth a word from this share of the other on.
WORTH_A_WORD = 0.01
#: The kind of the one remark that is not about what the text has.
_BYTE = "byte"


def remarks(lacking: Iterable[str], known: str, text: str = "the training text") -> dict[str, str]:
    r"""Return what a text has in place of characters that it lacks, where it has something.

    >>> for remark in remarks("'é", "e\u0301’").values():
    ...     print(remark)
    the training text has '’' U+2019
    the training text has it as 'e' and '\u0301': normal form NFD

    Args:
        lacking: the characters that it lacks.
        known: those that it has.
        text: what the remark calls it.

    Returns:
        The character -> the remark. One on a normal form, on line ends or on bytes is made once,
        with the first character that it is true of.
    """
    alike: dict[str, list[str]] = {}
    for one in known:
        alike.setdefault(_plainest(one), []).append(one)
    found: dict[str, str] = {}
    made: set[str] = set()
    for one in lacking:
        kind, words = _remark(one, known, alike)
        if words and kind not in made:
            found[one] = words if kind == _BYTE else f"{text} has {words}"
            if kind:
                made.add(kind)
    return found


def with_remarks(lacking: Mapping[str, str], known: str, text: str = "the training text") -> str:
    r"""Return a list of characters that a text lacks, in words, with the remarks on them.

    >>> print(with_remarks({"'": "2 x '", "Z": "1 x Z"}, "’"))
    2 x ' (the training text has '’' U+2019), 1 x Z

    Args:
        lacking: each character -> how it is named in the list.
        known: as for ``remarks``.
        text: as for ``remarks``.
    """
    found = remarks(lacking, known, text)
    return ", ".join(
        name + (f" ({found[one]})" if one in found else "") for one, name in lacking.items()
    )


def _remark(character: str, known: str, alike: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """Return a remark's kind, "" if each character needs its own, and what the text has, or ""."""
    if "\udc80" <= character <= "\udcff":
        return _BYTE, "a byte that is not utf-8"
    if character == "\r" and "\n" in known:
        return "line ends", "other line ends"
    if same := alike.get(_plainest(character)):
        return "", joined([_named(one) for one in same[:_SHOWN]], "and")
    for form in ("NFD", "NFKD"):
        parts = unicodedata.normalize(form, character)
        if len(parts) > 1 and set(parts) <= set(known):
            words = joined([*map(quoted, parts)], "and")
            if form == "NFD":
                return form, f"it as {words}: normal form NFD"
            # A text with an N and an o need not have No in the place of №.
            return ("", f"its parts, {words}") if len(parts) <= _SHOWN else ("", "")
    if is_drawn_onto(character) or character in _JAMO:
        for one in known:
            parts = unicodedata.normalize("NFD", one)
            if parts != one == unicodedata.normalize("NFC", one) and character in parts:
                return "NFC", f"it within {quoted(one)}: normal form NFC"
    return "", ""


def _plainest(character: str) -> str:
    """Return the same for characters that look alike, or that are the same digit."""
    plain = unicodedata.normalize("NFKC", _TYPED_FOR.get(character, character))
    plain = _TYPED_FOR.get(plain, plain)
    digit = unicodedata.decimal(plain, None) if len(plain) == 1 else None
    return plain if digit is None else str(digit)


def _named(character: str) -> str:
    """Return a character with its code point, as it may look like another."""
    name = quoted(character)
    return name if "\\" in name else f"{name} U+{ord(character):04X}"


def in_two_forms(text: Corpus) -> dict[str, int]:
    """Return letters of two characters, such as e with U+0301, that a text has as one, too.

    A model learns each form apart. Only a text in which both forms may be common is read for this:
    its counts tell that, but not which letters its marks are on. They may be on letters that have
    no other form, as most are in Hindi, or all of the text may be in normal form NFD.

    Returns:
        The two characters -> how often they occur, the most frequent first. The one character is
        their normal form NFC.

    Raises:
        CorpusError: the text changed since it was scanned.
    """
    pairs: dict[int, str] = {}
    whole = 0
    for code, count in text.counts.items():
        apart = unicodedata.normalize("NFD", chr(code))
        mark = apart[-1]
        two = unicodedata.normalize("NFC", apart[:-1]) + mark
        is_its_form = len(two) == 2 and unicodedata.normalize("NFC", two) == chr(code)
        if is_its_form and all(ord(one) in text.counts for one in two):
            pairs[_pair(*map(ord, two))] = two
            whole += count
    marks = {ord(two[1]) for two in pairs.values()}

    def are_both_common(apart: int) -> bool:
        return min(whole, apart) > WORTH_A_WORD * max(whole, apart)

    if not are_both_common(sum(text.counts[mark] for mark in marks)):
        return {}
    found: Counter[str] = Counter()
    last = 0
    for codes in text.whole.codes():
        at = np.flatnonzero(np.isin(codes, [*marks]))
        bases = np.concatenate([[last], codes[:-1]])[at]
        read, times = np.unique(_pair(bases, codes[at].astype(np.int64)), return_counts=True)
        for pair, count in zip(read.tolist(), times.tolist(), strict=True):
            if pair in pairs:
                found[pairs[pair]] += count
        last = int(codes[-1])
    return dict(found.most_common()) if are_both_common(found.total()) else {}


def _pair(base: Any, mark: Any) -> Any:
    """Return one number for two code points, or an array of them for two arrays."""
    return base * 0x110000 + mark
