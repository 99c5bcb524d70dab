from __future__ import annotations

import math
import re

import pytest

from charrnn.page import STYLE
from charrnn.report import assessment_page
from charrnn.surprise import surprise
from tests.pages import ORIGIN, assessment, contrast, portrait


@pytest.mark.parametrize("scheme", [0, 1])
def test_coloured_text_can_be_read(scheme: int) -> None:
    """On each colour that a text has behind it, in light and in dark."""

    def value(name: str) -> str:
        return str(re.findall(rf"--{name}: ([^;]+);", STYLE)[scheme])

    raised = [*bytes.fromhex(value("raised").removeprefix("#"))]
    shades = re.findall(r"background: rgb\(var\(--(\w+)\) / ([.\d]+)\)", STYLE)
    assert len(shades) == 2 + 2 * 5
    for name, share in shades:
        mixed = [
            round(float(share) * int(colour) + (1 - float(share)) * paper)
            for colour, paper in zip(value(name).split(), raised, strict=True)
        ]
        assert contrast(value("ink"), mixed) >= 4.5, (name, share)
    assert contrast(value("muted"), raised) >= 4.5
    assert contrast(value("loud"), [*bytes.fromhex(value("on-loud")[1:])]) >= 4.5


def test_an_accent_that_surprises_shows_its_colour() -> None:
    excerpt = (("a", 0.0), ("\u0301", 3.0), ("e", 0.0), ("\u0301", 0.1), ("\ufffd\u0301", 9.0))
    text = assessment_page([assessment()], [portrait(excerpt=excerpt)], "poem", ORIGIN)
    assert '<span class="bits-3">◌\u0301</span>' in text
    assert text.count("◌") == 1


def test_surprise_counts_the_levels_in_bits() -> None:
    assert [surprise(bits * math.log(2)) for bits in (0.1, 1, 3, 5, 100)] == [0, 1, 2, 3, 4]
