"""A text's characters with their prices, as a reader sees them, and how surprising each is."""

from __future__ import annotations

import codecs
import itertools
import math
import unicodedata
from collections.abc import Iterable, Iterator

from charrnn.inference.evaluation import Prices
from charrnn.text.corpus import Part
from charrnn.text.decoding import BYTES
from charrnn.wording import REORDERING, UNSEEN

#: Where the levels of surprise above 0 begin, in bits.
SURPRISE = (0.5, 2.0, 4.0, 8.0)
#: Unicode categories of the marks that take no column of their own, and of what is invisible.
NO_PLACE = frozenset({"Mn", "Me", "Cf"})


class PricedText:
    """Pairs the characters of a text with their prices.

    Bytes are decoded as UTF-8, and each character costs what all of its bytes cost. A carriage
    return is shown by its symbol; before a line feed it is left out, and the line feed takes
    over its price.

    Args:
        part: the scored text; it is read as its characters are asked for.

    Raises:
        CorpusError: the text changed while it was read; raised with the characters, not at once.
    """

    def __init__(self, part: Part) -> None:
        # Each code with the one after it.
        self._codes = itertools.pairwise(itertools.chain(part.each_code(), [None]))
        self._decoder = None
        if part.corpus.encoding == BYTES:
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = 0.0

    def first(self) -> Iterator[tuple[str, float]]:
        """Yield what comes before the first price; call this once, at the start."""
        return self._characters([0.0])

    def priced(self, stretch: Prices) -> Iterator[tuple[str, float]]:
        """Yield a stretch's characters with their prices; stretches must come in order."""
        return self._characters(stretch.nats_T.tolist())

    def _characters(self, costs: Iterable[float]) -> Iterator[tuple[str, float]]:
        for nats in costs:
            code, following = next(self._codes)
            assert code is not None
            self._pending += nats
            if self._decoder is None:
                character = chr(code)
            else:
                # Empty while a character's bytes are incomplete; more than one character after an
                # invalid byte. At the end, what there is of a character that was cut off.
                character = self._decoder.decode(bytes([code]), final=following is None)
            if following == ord("\n"):
                character = character.removesuffix("\r")
            if character:
                yield character.replace("\r", "␍"), self._pending
                self._pending = 0.0


def surprise(nats: float) -> int:
    """Return how surprising a price is: 0, or how many of the bounds in ``SURPRISE`` it reaches."""
    return sum(nats >= bits * math.log(2) for bits in SURPRISE)


def surprise_ranges() -> list[str]:
    """Return the range in bits of each level of ``surprise``, in words."""
    between = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(SURPRISE)]
    return [f"below {SURPRISE[0]:g}", *between, f"{SURPRISE[-1]:g} and above"]


def surprise_mark(character: str, nats: float) -> str:
    """Return a sign that shows the colour of a costly character without space of its own, or "".

    That is a line feed, a mark or a Korean letter drawn onto the character before, or an invisible
    one, such as the joiner of emoji. Cheap ones need no sign, so that a text with many marks stays
    readable.
    """
    if surprise(nats) < 2:
        return ""
    if character == "\n":
        return "↵"
    if len(character) != 1 or character in REORDERING:  # which is shown as �, in its colour
        return ""
    has_no_place = unicodedata.category(character) in NO_PLACE or character in UNSEEN
    return "◌" if has_no_place else ""
