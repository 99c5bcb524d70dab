"""What a text has in place of a character that it lacks."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from charrnn.text.corpus import Part
from charrnn.text.decoding import Codes
from charrnn.text.lookalikes import in_two_forms, remarks
from charrnn.text.scanning import scan
from charrnn.text.vocabulary import listed


@pytest.mark.parametrize(
    ("lacking", "known", "said"),
    [
        ("'", "’", "'’' U+2019"),
        ('"', "“”", "'“' U+201C and '”' U+201D"),
        ("-", "–", "'–' U+2013"),
        ("\xa0", " ", "' ' U+0020"),
        ("\u3000", " ", "' ' U+0020"),
        ("2", "２", "'２' U+FF12"),
        ("2", "\u0662", r"'\u0662'"),  # an Arabic digit, which would reverse what is around it
        (",", "，", "'，' U+FF0C"),
        ("\u06cc", "\u064a", r"'\u064a'"),  # the yeh of Persian and of Arabic
        ("\u212b", "\xc5", "'Å' U+00C5"),  # the sign of the ångström
        ("…", "a.", "its parts, '.', '.' and '.'"),
        ("ﬁ", "fi", "its parts, 'f' and 'i'"),
        ("№", "No", "its parts, 'N' and 'o'"),
        ("\r", "\n", "other line ends"),
    ],
)
def test_look_alikes_are_named_by_their_code_points(lacking: str, known: str, said: str) -> None:
    assert remarks(lacking, known) == {lacking: f"the training text has {said}"}


@pytest.mark.parametrize("word", ["é", "ấ", "한", "が", "й"])
def test_the_normal_form_is_named(word: str) -> None:
    """Each is one character in NFC and several in NFD, and looks the same."""
    composed, decomposed = (unicodedata.normalize(form, word) for form in ("NFC", "NFD"))
    (said,) = remarks(composed, decomposed).values()
    assert said.startswith("the training text has it as ")
    assert said.endswith(": normal form NFD")
    lacking = decomposed if word == "한" else decomposed[1:]
    ((first, said),) = remarks(lacking, composed + decomposed[0] * (word != "한")).items()
    assert first == lacking[0]
    assert said == f"the training text has it within '{composed}': normal form NFC"


def test_a_normal_form_is_named_once() -> None:
    composed = dict.fromkeys("éèê", 1)
    decomposed = unicodedata.normalize("NFD", "éèê")
    assert listed(composed, decomposed) == (
        r"'é' x 1 (the training text has it as 'e' and '\u0301': normal form NFD), "
        "'è' x 1, 'ê' x 1"
    )
    assert listed(dict.fromkeys(decomposed[1::2], 1), "eéèê") == (
        r"'\u0301' x 1 (the training text has it within 'é': normal form NFC), "
        r"'\u0300' x 1, '\u0302' x 1"
    )


def test_nothing_is_said_of_other_characters() -> None:
    """Another case or script is no look-alike; nor is an accent that no known letter has.

    A text of a single line has no line ends, so no others either.
    """
    assert remarks("Iß漢\u0302\u200d\r", "iıабé e") == {}


def test_the_parts_of_a_whole_sentence_are_not_listed() -> None:
    """Unicode has Arabic phrases of up to 18 letters as one character."""
    phrase = "\ufdfa"
    assert len(parts := unicodedata.normalize("NFKD", phrase)) == 18
    assert remarks(phrase, parts) == {}


def test_a_byte_that_is_not_utf_8() -> None:
    """As it arrives from a command line, and is named by a surrogate."""
    assert remarks("\udce9\udcff", "a") == {"\udce9": "a byte that is not utf-8"}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """Counts how often a text is read again."""
    codes, read = Part.codes, mock.Mock()

    def watched(part: Part) -> Iterator[Codes]:
        read()
        return codes(part, block_bytes=5)

    monkeypatch.setattr(Part, "codes", watched)
    return read


def two_forms(folder: Path, text: str) -> dict[str, int]:
    path = folder / "text"
    path.write_text(text, encoding="utf-8", newline="")
    return in_two_forms(scan([str(path)]))


@pytest.mark.parametrize(
    ("whole", "apart"),
    [
        ("é", "e\u0301"),
        ("ấ", "\xe2\u0301"),  # Vietnamese, as typed on Windows
        ("が", "か\u3099"),
        ("가", "\u1100\u1161"),
        ("각", "가\u11a8"),
        ("й", "и\u0306"),
        ("\u0929", "\u0928\u093c"),  # Hindi
        ("\u0622", "\u0627\u0653"),  # Arabic
    ],
)
def test_a_letter_in_two_forms_is_found(tmp_path: Path, whole: str, apart: str) -> None:
    base = apart[0]
    text = f"{whole} and {base}, " * 9 + f"{apart} " * 4
    assert two_forms(tmp_path, text) == {apart: 4}


def test_of_many_letters_in_two_forms_the_commonest_is_first(
    tmp_path: Path, reads: mock.Mock
) -> None:
    """Wherever a block ends."""
    assert two_forms(tmp_path, "éàñ ean " * 9 + "a\u0300e\u0301 e\u0301" * 9) == {
        "e\u0301": 18, "a\u0300": 9,
    }  # fmt: skip
    assert reads.call_count == 1


@pytest.mark.parametrize(
    "text",
    [
        "été, e, a" * 9,
        unicodedata.normalize("NFD", "Tiếng Việt có dấu, été") * 9,
        "हिन्दी में क़लम, मात्रा और नुक़्ता" * 9,
        "שָׁלוֹם עֲלֵיכֶם" * 9,
        "السَّلامُ عَلَيْكُم آ" * 9,
        "한국어, ハングルとがぎ" * 9,
        "สวัสดี ครับ ผู้" * 9,
    ],
)
def test_marks_that_have_no_rival_are_not_read_for(
    tmp_path: Path, reads: mock.Mock, text: str
) -> None:
    assert two_forms(tmp_path, text) == {}
    assert reads.call_count == 0


@pytest.mark.parametrize(
    ("text", "is_read"),
    [
        ("ñ and n, ɔ\u0303 and ɛ\u0303, " * 9, True),  # the mark is on other letters only
        ("é and e, " * 999 + "e\u0301", False),  # a slip
        ("é and e" + "e\u0301" * 999, False),
        ("বাংলা ভালো, বোন, ছেলে" * 9, True),  # Bengali: marks that could be one, too
    ],
)
def test_letters_that_have_one_form_are_left_alone(
    tmp_path: Path, reads: mock.Mock, text: str, is_read: bool
) -> None:
    assert two_forms(tmp_path, text) == {}
    assert reads.call_count == is_read
