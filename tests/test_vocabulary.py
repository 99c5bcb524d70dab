from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charrnn.text.vocabulary import UNKNOWN, Vocabulary, listed
from tests.small import vocabulary_of

CHARACTERS = st.characters(exclude_categories=["Cs"])


def look_up(vocabulary: Vocabulary, text: str) -> list[int]:
    """Encode by a dict look-up for each character, the slow equivalent of ``encode``."""
    ids = {character: i for i, character in enumerate(vocabulary.characters, start=1)}
    return [ids.get(character, UNKNOWN) for character in text]


class TestFromCounts:
    def test_sorted_after_the_unknown_symbol(self) -> None:
        vocabulary = vocabulary_of("banana\n樓")
        assert vocabulary.characters == "\nabn樓"
        assert vocabulary.size == 6
        assert not vocabulary.is_bytes
        assert vocabulary.encode("\nabn樓x").tolist() == [1, 2, 3, 4, 5, UNKNOWN]

    def test_rare_characters_become_unknown(self) -> None:
        vocabulary = vocabulary_of("aaabbc", min_count=2)
        assert vocabulary.characters == "ab"
        assert vocabulary_of("aaabbc", min_count=3).characters == "a"
        assert vocabulary_of("abc", min_count=2).size == 1

    @pytest.mark.parametrize(
        ("common", "once", "min_count"),
        [(999, 1, 2), (998, 1, 1), (1998, 2, 2), (1997, 2, 1), (5, 0, 2), (0, 3, 1)],
    )
    def test_rule_for_characters_seen_once(self, common: int, once: int, min_count: int) -> None:
        vocabulary = vocabulary_of("x" * common + "abc"[:once], min_count=None)
        assert vocabulary.min_count == min_count
        assert ("a" in vocabulary.characters) == (min_count == 1 and once > 0)

    def test_bytes(self) -> None:
        vocabulary = Vocabulary.from_counts({65: 1}, "bytes")
        assert vocabulary == Vocabulary.of_bytes()
        assert vocabulary.size == 256
        assert vocabulary.is_bytes
        assert vocabulary.unknown_nats == 0.0

    @pytest.mark.parametrize(
        ("text", "min_count", "held_back"),
        [
            ("aabb" * 10 + "zyx", 1, "xyz"),
            ("aabb" * 10, 1, ""),  # none to hold back
            ("aabb" * 10 + "zyx", 2, ""),  # they are unknown already
            ("aabb" * 7 + "zyx", 1, "xyz"),  # 3 of 31 ...
            ("aabb" * 6 + "zyx", 1, ""),  # ... and 3 of 27, more than a tenth
        ],
    )
    def test_held_back_is_what_was_seen_once(
        self, text: str, min_count: int, held_back: str
    ) -> None:
        vocabulary = vocabulary_of(text, min_count)
        ids = vocabulary.held_back(Counter(map(ord, text)))
        assert vocabulary.decode(ids) == held_back

    def test_nothing_is_held_back_where_some_is_unknown(self) -> None:
        # A vocabulary that comes from another text, by --init-from.
        counts = Counter(map(ord, "aabb" * 10 + "zyx"))
        assert len(vocabulary_of("abxyz").held_back(counts)) == 3
        assert len(vocabulary_of("abxy").held_back(counts)) == 0

    def test_no_byte_is_held_back(self) -> None:
        assert len(Vocabulary.of_bytes().held_back(Counter(b"aabb" * 10 + b"z"))) == 0

    def test_unknown_nats_are_the_code_points_outside(self) -> None:
        outside = sum(not 0xD800 <= code < 0xE000 for code in range(0x110000)) - 3
        assert vocabulary_of("abc").unknown_nats == math.log(outside)


class TestEncode:
    @given(known=st.text(CHARACTERS), text=st.text(CHARACTERS))
    def test_is_a_look_up(self, known: str, text: str) -> None:
        vocabulary = vocabulary_of(known)
        text += known[::2]
        assert vocabulary.encode(text).tolist() == look_up(vocabulary, text)

    @given(known=st.text(st.characters(max_codepoint=255)), codes=st.binary())
    def test_of_codes_in_bytes_is_that_of_wider_codes(self, known: str, codes: bytes) -> None:
        vocabulary = vocabulary_of(known)
        narrow = np.frombuffer(codes, np.uint8)
        ids = vocabulary.encode_codes(narrow)
        assert ids.dtype == vocabulary.dtype
        assert ids.tolist() == vocabulary.encode_codes(narrow.astype(np.uint32)).tolist()

    def test_all_256_of_latin_1(self) -> None:
        latin = "".join(map(chr, range(256)))
        vocabulary = vocabulary_of(latin)
        assert vocabulary.size == 257
        ids = vocabulary.encode_codes(np.arange(256, dtype=np.uint8))
        assert ids.tolist() == list(range(1, 257))
        assert vocabulary.decode(ids) == latin

    @pytest.mark.parametrize(
        ("size", "dtype"),
        [
            (1, np.uint8),
            (256, np.uint8),
            (257, np.uint16),
            (1 << 16, np.uint16),
            ((1 << 16) + 1, np.uint32),
        ],
    )
    def test_smallest_type_that_holds_every_id(self, size: int, dtype: type) -> None:
        # From plane 1 on, clear of the surrogates.
        vocabulary = Vocabulary("".join(map(chr, range(0x10000, 0x10000 + size - 1))), "utf-8", 1)
        assert vocabulary.size == size
        ids = vocabulary.encode(vocabulary.characters[-2:] + "a")
        assert ids.dtype == dtype
        assert ids.tolist() == [*range(max(1, size - 2), size), UNKNOWN]
        narrow = vocabulary.encode_codes(np.frombuffer(b"ab", np.uint8))
        assert narrow.dtype == dtype
        assert narrow.tolist() == [UNKNOWN, UNKNOWN]

    def test_bytes_of_strings_and_of_bytes(self) -> None:
        vocabulary = Vocabulary.of_bytes()
        assert vocabulary.encode("é\0").tolist() == [0xC3, 0xA9, 0]
        assert vocabulary.encode(b"\xff\0").tolist() == [0xFF, 0]
        # A command line's byte that is not utf-8 reaches the program as a lone surrogate.
        assert vocabulary.encode("\udcff").tolist() == [0xFF]

    def test_lone_surrogate_is_unknown(self) -> None:
        assert vocabulary_of("ab").encode("a\udcffb").tolist() == [1, UNKNOWN, 2]


class TestListed:
    def test_no_character_changes_the_list_around_it(self) -> None:
        """Combining marks of three kinds, right-to-left letters, an Arabic digit, a joiner."""
        strange = "\u0301\u0903\u20dd\u05d0\u0628\u0661\u200d"
        said = listed(dict.fromkeys(strange, 1))
        assert said.isascii()
        assert said.startswith(r"'\u0301' x 1, '\u0903' x 1, ")
        assert listed({"é": 2, "樓": 1}) == "'é' x 2, '樓' x 1"

    def test_no_character_is_named_by_what_nobody_sees(self) -> None:
        """A Korean vowel and final consonant as single jamo, Hangul's filler, Braille's blank."""
        assert listed(dict.fromkeys("\u1161\u11ab\u3164\u2800", 1)).isascii()
        assert listed({"한": 1, "\u1112": 1}) == "'한' x 1, '\u1112' x 1"

    def test_a_carriage_return_is_about_line_ends(self) -> None:
        assert listed({"\r": 1234, "a": 1}, "\n") == (
            r"'\r' x 1,234 (the training text has other line ends), 'a' x 1"
        )


class TestUnknownIn:
    def test_lists_them_with_counts(self) -> None:
        vocabulary = vocabulary_of("abc")
        unknown = vocabulary.unknown_in("axbyyxy樓\udcff")
        assert list(unknown.items()) == [("y", 3), ("x", 2), ("樓", 1), ("\udcff", 1)]
        assert vocabulary.unknown_in("cab" * 5) == {}

    def test_bytes_know_all(self) -> None:
        assert Vocabulary.of_bytes().unknown_in("紅樓") == {}
        assert Vocabulary.of_bytes().unknown_in(b"\0\xff") == {}


class TestDecode:
    @given(text=st.text(CHARACTERS))
    def test_undoes_encode(self, text: str) -> None:
        vocabulary = vocabulary_of(text)
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        assert vocabulary.decode(ids.tolist()) == text
        assert vocabulary.decode(torch.tensor(ids.tolist(), dtype=torch.int64)) == text

    def test_unknown_is_the_replacement_character(self) -> None:
        vocabulary = vocabulary_of("ab")
        assert vocabulary.decode([1, UNKNOWN, 2]) == "a\ufffdb"

    def test_bytes(self) -> None:
        vocabulary = Vocabulary.of_bytes()
        assert vocabulary.decode([0xC3, 0xA9, 0xFF]) == "é\ufffd"
        assert vocabulary.decode_bytes([0xC3, 0xA9, 0xFF]) == b"\xc3\xa9\xff"

    def test_no_such_id(self) -> None:
        with pytest.raises(IndexError):
            vocabulary_of("ab").decode([3])


class TestJson:
    @pytest.mark.parametrize(
        "vocabulary",
        [
            vocabulary_of("banana\n\0樓\U0001f600", 1),
            vocabulary_of("aab", 2),
            Vocabulary.of_bytes(),
        ],
    )
    def test_there_and_back(self, vocabulary: Vocabulary) -> None:
        again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
        assert again == vocabulary
        assert hash(again) == hash(vocabulary)
        assert again.encode("ban樓").tolist() == vocabulary.encode("ban樓").tolist()

    def test_differs(self) -> None:
        assert vocabulary_of("ab") != vocabulary_of("abc")
        assert vocabulary_of("aabb", 1) != vocabulary_of("aabb", 2)
        assert vocabulary_of("ab") != Vocabulary("ab", "iso8859-1", 1)
        assert vocabulary_of("ab") != "ab"

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"characters": "ba"}, "characters"),
            ({"characters": "aa"}, "characters"),
            ({"characters": ["a"]}, "characters"),
            ({"characters": "a\ud800"}, "characters"),
            ({"characters": None}, "characters"),
            ({"encoding": "klingon"}, "encoding"),
            ({"encoding": "hex"}, "encoding"),
            ({"encoding": "UTF8"}, "encoding"),
            ({"encoding": "bytes"}, "characters"),
            ({"encoding": 8}, "encoding"),
            ({"min_count": 0}, "min_count"),
            ({"min_count": True}, "min_count"),
            ({"min_count": 1.0}, "min_count"),
            ({"extra": 1}, "extra"),
        ],
    )
    def test_what_is_wrong_is_named(self, change: dict[str, Any], field: str) -> None:
        with pytest.raises(ValueError, match=f"vocabulary.{field}"):
            Vocabulary.from_json(vocabulary_of("ab").to_json() | change)

    @pytest.mark.parametrize("field", ["characters", "encoding", "min_count"])
    def test_what_is_missing_is_named(self, field: str) -> None:
        value = vocabulary_of("ab").to_json()
        del value[field]
        with pytest.raises(ValueError, match=f"vocabulary.{field} is missing"):
            Vocabulary.from_json(value)
