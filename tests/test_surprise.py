from __future__ import annotations

import math

import pytest

from charrnn.views.report import assessment_page
from charrnn.views.surprise import surprise, surprise_mark
from tests.pages import ORIGIN, assessment, check, portrait


def test_an_accent_that_surprises_shows_its_colour() -> None:
    excerpt = (("a", 0.0), ("\u0301", 3.0), ("e", 0.0), ("\u0301", 0.1), ("\ufffd\u0301", 9.0))
    text = assessment_page([assessment()], [portrait(excerpt=excerpt)], "poem", ORIGIN)
    assert '<span class="bits-3">◌\u0301</span>' in text
    assert text.count("◌") == 1


@pytest.mark.parametrize(
    "unseen", ["\u0301", "\u200d", "\xad", "\ufeff", "\ufe0f", "\u1161", "\u11ab"]
)
def test_what_nobody_sees_gets_a_sign_if_it_is_costly(unseen: str) -> None:
    """A mark, a joiner, a soft hyphen, a variation selector, Korean vowels and finals."""
    assert [surprise_mark(unseen, nats) for nats in (0.1, 3.0)] == ["", "◌"]


@pytest.mark.parametrize("seen", ["a", " ", "\u0903", "\u202e", "ᄒ", "한", "\ufffd\u0301"])
def test_what_has_a_place_of_its_own_gets_none(seen: str) -> None:
    assert surprise_mark(seen, 9.0) == ""


def test_what_was_given_is_not_coloured_as_if_foreseen() -> None:
    for nats, said in ((0.0, '>\na<span class="bits-0">b'), (0.1, '>\n<span class="bits-0">ab')):
        drawn = portrait(excerpt=(("a", nats), ("b", 0.1)))
        assert said in assessment_page([assessment()], [drawn], "poem", ORIGIN)


def test_the_costliest_characters_are_named() -> None:
    """After what is before them, for readers who do not see the colours."""
    text = "the <cat>\nsat on the mat"
    costs = {4: 9.0, 9: 3.0, 10: 0.5, 14: 1.5, 18: 4.0, 19: 2.5, 20: 2.0, 22: 1.4}
    excerpt = tuple((c, costs.get(n, 0.1)) for n, c in enumerate(text))
    said = check(assessment_page([assessment()], [portrait(excerpt=excerpt)], "poem", ORIGIN))
    assert (
        " Most surprising is the last character of 'the <' at 13.0 bits, 'at>\\nsat on th' at 5.8 "
        "bits, 'the <cat>\\n' at 4.3 bits, 't>\\nsat on the' at 3.6 bits and '>\\nsat on the ' at "
        "2.9 bits."
    ) in "".join(said.texts["p"])
    plain = portrait(excerpt=(("a", 0.0), ("b", 1.0)))
    assert "Most surprising" not in assessment_page([assessment()], [plain], "poem", ORIGIN)


def test_surprise_counts_the_levels_in_bits() -> None:
    assert [surprise(bits * math.log(2)) for bits in (0.1, 1, 3, 5, 100)] == [0, 1, 2, 3, 4]
