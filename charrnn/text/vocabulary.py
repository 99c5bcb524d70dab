"""Turn characters into ids and ids into characters.

A text vocabulary is one unknown symbol followed by the characters of the training part,
sorted by code point. The vocabulary of plain bytes is the 256 bytes; none is unknown.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from charrnn.text.decoding import BYTES, Codes, is_own_name
from charrnn.text.lookalikes import with_remarks
from charrnn.wording import quoted, shown

#: The id of the unknown symbol in every text vocabulary.
UNKNOWN = 0

#: How the unknown symbol is displayed.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

#: Characters seen only once become the unknown symbol, unless they make up more than this share
#: of the text.
_RARE_SHARE = 1 / 1000

#: A text with a larger share of characters seen only once is a toy to memorise, like "hello".
_TOY_SHARE = 1 / 10

#: How many characters a message lists.
LISTED = 8

#: Above this share, unknown characters are the main cause of a bad score.
MANY_UNKNOWN = 0.1

#: How many code points can be characters: all but the surrogates.
_UNICODE = 0x110000 - 0x800

#: Ids of consecutive characters: uint8, uint16 or uint32, the smallest that holds every id.
Ids = NDArray[np.integer[Any]]


def listed(unknown: Mapping[str, int], known: str = "") -> str:
    """Return the first ``LISTED`` characters with their counts, in words.

    >>> listed({"é": 3, "Z": 1})
    "'é' x 3, 'Z' x 1"

    Args:
        unknown: character -> how often it occurs.
        known: the characters of the training text, for what it has instead.
    """
    first = itertools.islice(unknown.items(), LISTED)
    names = {character: f"{quoted(character)} x {count:,}" for character, count in first}
    more = f" and {len(unknown) - LISTED:,} more" if len(unknown) > LISTED else ""
    return with_remarks(names, known) + more


class Vocabulary:
    """A fixed set of symbols, numbered from 0.

    Attributes:
        encoding: the text's encoding, or ``bytes``.
        min_count: how often a character must occur in the training part to get its own
            symbol; 1 for bytes.
        characters: the known characters, sorted by code point; character i has the id
            i + 1. Empty for bytes.
        dtype: dtype of the ids.

    Raises:
        ValueError: the characters are not in ascending order, each once.
    """

    def __init__(self, characters: str, encoding: str, min_count: int) -> None:
        codes = np.array([ord(character) for character in characters], np.uint32)
        if np.any(codes[1:] <= codes[:-1]):
            raise ValueError("characters are not in ascending order, each once")
        self.characters = characters
        self.encoding = encoding
        self.min_count = min_count
        self.dtype = np.min_scalar_type(self.size - 1)
        # Code point -> id. One entry beyond the largest known code: look-ups of larger
        # codes are clipped to that entry, which is the unknown symbol.
        self._id_of: Ids = np.zeros(int(codes[-1]) + 2 if len(codes) else 1, self.dtype)
        self._id_of[codes] = np.arange(1, len(codes) + 1)
        # The same for codes below 256, for bytes.translate, which is several times as fast.
        # Their ids fit into a byte, unless all 256 are known: then the last id is 256.
        low = self._id_of.take(np.arange(256), mode="clip")
        self._translation = low.astype(np.uint8).tobytes() if low.max() < 256 else None
        self._code_of = np.concatenate([[np.uint32(ord(REPLACEMENT))], codes]).astype("<u4")

    @classmethod
    def from_counts(
        cls, counts: Mapping[int, int], encoding: str, min_count: int | None = None
    ) -> Self:
        """Return the vocabulary of a training part.

        Args:
            counts: code point -> occurrences in the training part.
            encoding: the text's encoding; for ``bytes`` the counts do not matter.
            min_count: rarer characters become the unknown symbol, so that it is trained.
                None: 2, or 1 where characters seen only once make up more than 1 in 1000
                of the text, as in very short texts.
        """
        if encoding == BYTES:
            return cls.of_bytes()
        if min_count is None:
            once = sum(count == 1 for count in counts.values())
            min_count = 1 if once > _RARE_SHARE * sum(counts.values()) else 2
        kept = sorted(code for code, count in counts.items() if count >= min_count)
        return cls("".join(map(chr, kept)), encoding, min_count)

    @classmethod
    def of_bytes(cls) -> Self:
        """Return the vocabulary of the 256 bytes."""
        return cls("", BYTES, 1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.characters, self.encoding, self.min_count))

    @property
    def is_bytes(self) -> bool:
        """Whether the symbols are the 256 bytes; otherwise id 0 is the unknown symbol."""
        return self.encoding == BYTES

    def is_unknown(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Return a mask, in the shape of ``ids``, of the unknown symbol; for bytes all False."""
        unknown: NDArray[np.bool_] = (ids == UNKNOWN) & (not self.is_bytes)
        return unknown

    @property
    def size(self) -> int:
        """V, the number of symbols, including the unknown symbol."""
        return 256 if self.is_bytes else len(self.characters) + 1

    @property
    def unknown_nats(self) -> float:
        """Nats to say which unknown character it is, on top of the unknown symbol's own cost.

        The logarithm of the number of Unicode characters outside the vocabulary, which is
        the cost under a uniform distribution over them. It makes scores comparable between
        vocabularies. 0 for bytes.
        """
        return 0.0 if self.is_bytes else math.log(max(1, _UNICODE - len(self.characters)))

    def encode_codes(self, codes: Codes) -> Ids:
        """Return the ids of code points (for bytes, of bytes), one each."""
        if self.is_bytes:
            return codes
        if codes.dtype == np.uint8 and self._translation is not None:
            ids = np.frombuffer(codes.tobytes().translate(self._translation), np.uint8)
            return ids.astype(self.dtype, copy=False)
        return self._id_of.take(codes, mode="clip")

    def encode(self, text: str | bytes) -> Ids:
        """Return the ids of a short text; bytes only for a vocabulary of bytes."""
        return self.encode_codes(self._codes(text))

    def unknown_in(self, text: str | bytes) -> dict[str, int]:
        """Return the unknown characters of a text with their counts, most frequent first.

        Args:
            text: as for ``encode``.
        """
        return self.unknown_among(Counter(self._codes(text).tolist()))

    def unknown_among(self, counts: Mapping[int, int]) -> dict[str, int]:
        """Return the unknown characters among some, with their counts, most frequent first.

        Args:
            counts: code point -> occurrences in a text.
        """
        if self.is_bytes:
            return {}
        codes = np.fromiter(counts, np.uint32, len(counts))
        unknown = codes[self.encode_codes(codes) == UNKNOWN].tolist()
        return {chr(code): counts[code] for code in sorted(unknown, key=lambda c: -counts[c])}

    def unknown_share(self, counts: Mapping[int, int]) -> float:
        """Return the share of a text's characters that are unknown; 0 for an empty text.

        Args:
            counts: code point -> occurrences in the text.
        """
        return sum(self.unknown_among(counts).values()) / max(1, sum(counts.values()))

    def held_back(self, counts: Mapping[int, int]) -> Ids:
        """Return the ids of the characters to be read, at times, as the unknown symbol.

        If every character of the training part is in the vocabulary, the model never sees
        the unknown symbol and learns that it never occurs. Yet in new text, unseen characters
        make up about the share that those seen once make up here (Good 1953), so these stand
        in for them, half of them in each pass: they have to be learnt as themselves, too. The
        result is empty where the part has unknown characters anyway, or where those seen once
        make up more than a tenth of it or do not exist.

        Args:
            counts: code point -> occurrences in the training part.
        """
        codes = np.array([code for code, count in counts.items() if count == 1], np.uint32)
        toy = len(codes) > _TOY_SHARE * sum(counts.values())
        if toy or self.is_bytes or self.unknown_among(counts):
            codes = codes[:0]
        return np.sort(self.encode_codes(codes))

    def read_as(self, held_back: Ids, epoch: int) -> NDArray[np.int64]:
        """Return, for every id, the id that it is read as in a pass over the training part.

        Args:
            held_back: from ``held_back``: every second of these ids is read as the unknown symbol,
                the first, third ... in pass 0, the others in pass 1, and so on.
            epoch: which pass over the text, from 0.
        """
        read_as_V = np.arange(self.size, dtype=np.int64)
        read_as_V[held_back[epoch % 2 :: 2]] = UNKNOWN
        return read_as_V

    def _codes(self, text: str | bytes) -> Codes:
        if self.is_bytes:
            # surrogateescape keeps bytes on a command line that are not utf-8.
            data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
            return np.frombuffer(data, np.uint8)
        assert isinstance(text, str), "the model reads characters"
        return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of some ids; the unknown symbol becomes U+FFFD.

        Bytes are decoded as utf-8; what is not utf-8 becomes U+FFFD.
        """
        if self.is_bytes:
            return self.decode_bytes(ids).decode("utf-8", "replace")
        codes: Codes = self._code_of[np.asarray(ids, np.int64)]
        return codes.tobytes().decode("utf-32-le")

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """Return the bytes of some ids; for a vocabulary of bytes only."""
        assert self.is_bytes
        return np.asarray(ids, np.int64).astype(np.uint8).tobytes()

    def to_json(self) -> dict[str, Any]:
        """Return the vocabulary as JSON values for ``from_json``, fit for a checkpoint."""
        return {
            "encoding": self.encoding,
            "min_count": self.min_count,
            "characters": self.characters,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the vocabulary that ``to_json`` described.

        Raises:
            ValueError: a field is missing, unknown or invalid; the message names it.
        """
        fields = {"encoding": str, "min_count": int, "characters": str}
        for name in sorted(fields.keys() ^ value.keys()):
            raise ValueError(
                f"vocabulary.{shown(name)} is {'missing' if name in fields else 'unknown'}"
            )
        for name, kind in fields.items():
            if type(value[name]) is not kind:
                raise ValueError(f"vocabulary.{name} is not of type {kind.__name__}")
        encoding, characters = value["encoding"], value["characters"]
        if not is_own_name(encoding):
            raise ValueError("vocabulary.encoding is not a codec's own name")
        if value["min_count"] < 1:
            raise ValueError("vocabulary.min_count is less than 1")
        if encoding == BYTES and characters:
            raise ValueError("vocabulary.characters is not empty, for bytes")
        if any("\ud800" <= character <= "\udfff" for character in characters):
            raise ValueError("vocabulary.characters has surrogates")
        try:
            return cls(characters, encoding, value["min_count"])
        except ValueError as error:
            raise ValueError(f"vocabulary.{error}") from None
