from __future__ import annotations

import pytest

from charrnn.analysis.properties import PROPERTIES

#: A property, a text, and the property's value at each character, one digit each.
CASES = [
    ("inside quotes", 'a "bc" d', "00111000"),
    ("inside quotes", "“a” «b»c", "11001100"),
    ("inside quotes", "„a“ „b” “c” 「d」", "110011001100110"),
    ("inside quotes", "„a\n\n“b", "111011"),
    ("inside quotes", "»a« x »b«", "110000110"),
    ("inside quotes", "”a” x ”b”", "110000110"),
    ("inside quotes", "»a» x »b»", "110000110"),
    ("inside quotes", '„a" x “b” y', "11000011000"),
    ("inside quotes", "『a』「b」", "110110"),
    ("inside quotes", "”a” x ”b”\n\n”c” “z", "11000011000110000"),
    ("inside quotes", '“a" b "c” d', "11000011000"),
    ("inside quotes", "„a\n\nb” c „d” e", "11100000011000"),
    ("inside quotes", "a» b\n\n«c»\n\n«d»", "00000011000110"),
    ("inside quotes", "a« b\n»c«\n»d«", "000001100110"),
    ("inside quotes", 'a "b\nc\n\nd "', "00111110001"),
    ("inside quotes", '"b\r\nc\r\n\r\nd', "1111111100"),
    # Three straight marks count as one, and no empty line closes it.
    ("inside quotes", '"""A.\n\n Bc.\n """\n x = 1\n', "111111111111100000000000"),
    ("inside quotes", 'a("""b "c" """)', "001111111110000"),
    ("inside quotes", 'r"""b\n""" + r"""c"""', "01111100000001111000"),
    # The characters around them show more than their number whether they open or close.
    ("inside quotes", '"""A."""\n"""\n\n"""B', "111110000111111111"),
    # A text may begin inside: the first three that clearly open or close show it.
    ("inside quotes", 'a\n\nb."""\nc "d"', "11111000000110"),
    ("inside quotes", 'a\n\n"""\nb\n"""C.\n"""', "111000000111111000"),
    ("inside quotes", 'a\n"""\nb\n"""\n"""C.\n"""', "001111110000111111000"),
    # They do not show it where they close a quotation that one mark opened. Inside curly
    # marks they do not count, nor does a mark in single quotes.
    ("inside quotes", 'a "b ""c""" d', "0011101100000"),
    ("inside quotes", '“a """ b” c', "11111111000"),
    ("inside quotes", "a == '\"':\n b", "000000000000"),
    ("inside quotes", "'a'\"'\"'b'", "000110000"),
    # Doubled marks are those of a CSV table, with a field that begins with a quoted word.
    ("inside quotes", '1,"""A"" b, c.",2', "00101101111111000"),
    ("inside quotes", '"""B "" c."""', "1111111111000"),
    # An empty line closes what nothing else does.
    ("inside quotes", 'a\n"""B\n\nc', "001111100"),
    ("inside brackets", "f(a[1]) )(", "0111110001"),
    ("inside brackets", "{\n\nx", "1100"),
    ("inside brackets", "{\r\n\r\nx", "111100"),
    ("position in line", "ab\n\ncde", "1200123"),
    ("indentation", "  a b\n\tc\nd", "1222201100"),
    ("inside a word", "a_1 é-", "111010"),
    ("inside a word", "हिन्दी।", "1111110"),
    ("inside a word", "❤\ufe0f a\u0301", "00011"),
    ("position in word", "ab, cde\nf", "120012301"),
    ("position in word", "e\u0301t\u0301 a", "123401"),
    ("capitalised word", "Ab cD EF", "11000011"),
    ("capitalised word", "E\u0301t a", "11100"),
    ("capitalised word", "❤\ufe0fE", "001"),
    ("upper case", "aBÉ1", "0110"),
    ("digit", "a1 2", "0101"),
]


@pytest.mark.parametrize(("name", "text", "values"), CASES)
def test_values(name: str, text: str, values: str) -> None:
    assert PROPERTIES[name](text) == [float(value) for value in values]


def test_each_property_is_tested() -> None:
    assert {name for name, _, _ in CASES} == PROPERTIES.keys()


@pytest.mark.parametrize("name", PROPERTIES)
def test_one_value_a_character(name: str) -> None:
    assert PROPERTIES[name]("") == []
    assert len(PROPERTIES[name]('( "Aé\U0001f600\r\n\n\x00 1)')) == 13
