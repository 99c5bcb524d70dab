from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from functools import cache, partial
from unittest import mock

import numpy as np
import pytest
from matplotlib.axes import Axes

from charrnn.views.figures import (
    DARK,
    LIGHT,
    STYLES,
    Dots,
    Line,
    Rule,
    dot_chart,
    in_colour_of,
    line_chart,
    model_style,
    number,
    saturation_chart,
)
from tests.pages import contrast


class TestFigures:
    def test_lines_differ_in_colour_dash_and_marker(self) -> None:
        lines = [Line(name, (1, 2, 3), (n, n + 1, n), n) for n, name in enumerate("abcd")]
        svg = line_chart("x", "T", lines, x_label="k", y_label="v")
        styles = re.findall(r'style="(fill: none;[^"]*stroke: var\(--series-\d\)[^"]*)"', svg)
        assert len(set(styles)) == 4
        assert len({re.sub("--series-.", "", style) for style in styles}) == 4, "in grey too"
        for line in lines:
            assert f">{line.label}</text>" in svg

    def test_a_faint_line_may_have_its_styles_dash(self) -> None:
        """Relative to its width, which is smaller."""

        def dashes(*, faint: bool = False, dashed: bool = False) -> list[float]:
            line = Line("", (1, 2), (1, 2), 1, faint=faint, dashed=dashed)
            svg = line_chart("x", "T", [line], x_label="k", y_label="v")
            found = re.findall(r"dasharray: ([\d.,]+)[^\"]*--series-1", svg)
            return [float(length) for each in found for length in each.split(",")]

        assert dashes(faint=True) == []
        assert dashes(faint=True, dashed=True) == pytest.approx(
            [length * 0.9 / 1.7 for length in dashes()]
        )
        assert len(dashes()) == 2

    def test_models_of_one_colour_differ_in_dash_and_marker(self) -> None:
        places = [0, 5, 10, 1, 6]
        lines = [Line(str(n), (1, 2), (n, n), model_style(n)) for n in places]
        svg = line_chart("x", "T", lines, x_label="k", y_label="v")
        path = r'<path d="M [^"]*L [^"]*" clip-path[^>]*style="([^"]*series[^"]*)"'
        drawn = re.findall(path, svg)
        colours = [re.findall(r"--series-(\d)", style)[0] for style in drawn]
        assert colours == ["0", "0", "0", "1", "1"]
        dashes = [re.findall(r"dasharray: ([^;]*)", style) for style in drawn]
        assert dashes[0] != dashes[1] != dashes[2] != dashes[0]
        assert dashes[3] != dashes[4]
        assert dashes[1] == dashes[3], "the next colour's"

    @staticmethod
    @cache
    def drawn(style: int) -> str:
        """The figure of a line in a style, without its colour."""
        line = Line("", (1, 2), (1, 2), style)
        svg = line_chart("x", "T", [line], x_label="k", y_label="v")
        svg = re.sub("x-m[0-9a-f]+", "marker", svg)  # the marker's id depends on its colour
        (colour,) = {*re.findall("--series-(.)", svg)}
        assert colour == str(style % STYLES)
        return re.sub("--series-.", "", svg)

    @pytest.mark.parametrize("other", [0, 3, 7, 40])
    def test_a_colour_has_as_many_looks_as_layers_may_need(self, other: int) -> None:
        """The same ones in each colour, the first of them those of the first styles."""
        styles = [in_colour_of(other, number) for number in range(36)]
        assert {style % STYLES for style in styles} == {other % STYLES}
        looks = [self.drawn(style) for style in styles]
        assert len({*looks}) == 36
        assert looks == [self.drawn(in_colour_of(4, number)) for number in range(36)]
        assert looks[:6] == [self.drawn(number) for number in range(6)]

    def test_many_models_have_a_look_each(self) -> None:
        styles = [model_style(place) for place in range(180)]
        assert len({(style % STYLES, self.drawn(style)) for style in styles}) == 180

    @pytest.mark.parametrize("scheme", [LIGHT, DARK])
    def test_faint_lines_can_be_seen(self, scheme: str) -> None:
        line = Line("", (1, 2), (1, 2), 0, faint=True)
        svg = line_chart("x", "T", [line], x_label="k", y_label="v")
        (share,) = map(float, re.findall(r"--series-0\); stroke-opacity: ([\d.]+)", svg))
        names = dict(re.findall(r"--([\w-]+): #(\w+)", scheme))
        paper = bytes.fromhex(names["paper"])
        for n in range(6):
            ink = bytes.fromhex(names[f"series-{n}"])
            mixed = [round(share * c + (1 - share) * p) for c, p in zip(ink, paper, strict=True)]
            assert contrast(bytes(mixed).hex(), [*paper]) >= 3

    @pytest.mark.parametrize("count", [2, 3, 5, 8])
    def test_dots_of_one_row_are_apart(self, count: int) -> None:
        series = [Dots(str(n), (1.0, 1.0), n) for n in range(count)]
        svg = dot_chart("x", "T", ["a", "b"], series, x_label="v")
        heights = sorted(float(y) for y in re.findall(r'<use [^>]*y="([\d.]+)"[^>]*series', svg))
        dots = heights[count:]  # those before are the legend's
        assert len(dots) == 2 * count
        assert min(np.diff(dots)) > 7, "more than a dot is high"

    def test_a_level_out_of_range_is_neither_drawn_nor_named(self) -> None:
        rules = [Rule("near", 2.5), Rule("far", 9.0)]
        svg = line_chart("x", "T", [Line("l", (1, 2), (2, 3), 0)], x_label="k", y_label="v",
                         rules=rules)  # fmt: skip
        assert "A line marks near." in svg
        assert ">near</text>" in svg
        assert "far" not in svg

    @pytest.mark.parametrize("y_log", [False, True])
    def test_a_band_is_shown_whole_with_the_levels_that_it_crosses(self, y_log: bool) -> None:
        """Ends that no axis can show are ignored."""
        band = ((0.0, 0.5, math.nan), (0.7, math.inf, 9.0))
        svg = line_chart(
            "x", "T", [Line("l", (1, 2, 3), (0.6, 0.6, 0.6), 0, band=band)], x_label="k",
            y_label="v", y_log=y_log, rules=[Rule("near", 8.0), Rule("far", 90.0)],
        )  # fmt: skip
        assert "A line marks near." in svg
        assert "far" not in svg

    @pytest.mark.parametrize("y_range", [(0.1, 1.0), None])
    def test_a_band_that_goes_to_nothing_reaches_the_bottom_of_a_logarithmic_axis(
        self, y_range: tuple[float, float] | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The axis is not extended for it."""
        band = mock.Mock()
        monkeypatch.setattr("matplotlib.axes.Axes.fill_between", band)
        line = Line("l", (1, 2, 3), (0.6,) * 3, 0, band=((-0.1, 0.5, 0.0), (0.7,) * 3))
        line_chart("x", "T", [line], x_label="k", y_label="v", y_log=True, y_range=y_range)
        bottom = 0.1 if y_range else pytest.approx(0.49, abs=0.005)
        assert list(band.call_args.args[1]) == [bottom, 0.5, bottom]

    def test_a_line_that_goes_to_nothing_can_be_told_from_one_that_stays(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is at the bottom of a logarithmic axis, and described with its true values."""
        drawn = mock.Mock(wraps=Axes.plot)
        monkeypatch.setattr(Axes, "plot", lambda *given, **how: drawn(*given, **how))
        band = ((0.4, -0.2, -0.1, -0.3), (0.6, 0.05, 0.1, -0.1))
        line = Line("l", (1, 2, 3, 4), (0.5, 0.01, 0.3, -0.2), 0, band=band)
        chart = partial(line_chart, "x", "T", [line], x_label="k", y_label="v", y_log=True)
        svg = chart(y_range=(0.1, 1.0), y_floor=True)
        assert list(drawn.call_args.args[2]) == [0.5, 0.1, 0.3, 0.1]
        assert "l: 0.5 (band 0.4 to 0.6) at 1 to -0.2 (band -0.3 to -0.1) at 4." in svg
        assert ">l</text>" in svg
        chart()
        assert list(drawn.call_args.args[2]) == [0.5, 0.01, 0.3]

    @pytest.mark.parametrize(
        ("low", "high", "ticks"),
        [
            (8e-6, 1e4, "10⁻⁴ 0.01 1 100 10k"),
            (2.1, 19.9, "4 6 8 10"),
            (0.9, 256, "1 10 100"),
            (1.5, 9.5, "2 4 6 8"),
            (2.1, 2.9, "2.2 2.4 2.6 2.8"),
            (0.107, 0.29, "0.15 0.20 0.25"),
            (7.9, 16.1, "8 10 12 14 16"),
            (1.01, 4.05, "2 3 4"),
            (0.051, 0.35, "0.06 0.08 0.1 0.2"),
            (5.1, 49.0, "6 8 10 20 40"),
        ],
    )
    def test_a_logarithmic_axis_keeps_its_one(self, low: float, high: float, ticks: str) -> None:
        svg = line_chart("x", "T", [Line("", (1, 2), (low, high), 0)], x_label="k", y_label="v",
                         y_log=True, y_range=(low, high))  # fmt: skip
        names = re.findall(r"text-anchor: end; [^>]*>([^<]*)</text>", svg)
        assert names == ticks.split()

    @pytest.mark.parametrize(
        ("heights", "place"),
        [
            ([(0.2, 0.2, 0.2)], "right above"),
            ([(0.2, 0.53, 0.53)], "right below"),
            ([(0.2, 0.53, 0.53), (0.2, 0.47, 0.47)], "left above"),
            ([(0.53, 0.53, 0.53), (0.2, 0.47, 0.47)], "left below"),
            ([(0.53, 0.53, 0.53), (0.47, 0.47, 0.47)], "right above"),
        ],
    )
    def test_a_level_is_named_where_no_line_passes(
        self, heights: list[tuple[float, ...]], place: str
    ) -> None:
        """Where lines are everywhere, the label interrupts them."""
        lines = [Line("", (1, 2, 3), y, style) for style, y in enumerate(heights)]
        svg = line_chart("x", "T", lines, x_label="k", y_label="v", y_range=(0, 1),
                         rules=[Rule("half", 0.5)])  # fmt: skip
        (found,) = re.findall(r'<text style="([^"]*)" x="([\d.]+)" y="([\d.]+)"[^>]*>half<', svg)
        (level,) = re.findall(r'd="M [\d.]+ ([\d.]+) [^"]*"[^>]* 1\.8,1\.8;', svg)
        side = "left" if float(found[1]) < 100 else "right"
        assert f"{side} {'above' if float(found[2]) < float(level) else 'below'}" == place
        assert found[0].endswith("stroke: var(--paper); stroke-width: 3; paint-order: stroke")

    @pytest.mark.parametrize("end", [0.0, 0.5, 1.0])
    def test_labels_at_the_ends_do_not_overlap(self, end: float) -> None:
        lines = [Line(f"line {n}", (1, 2, 3), (0.0, 1.0, end + 1e-6 * n), n) for n in range(6)]
        svg = line_chart("x", "T", lines, x_label="k", y_label="v", rules=[Rule("r", 1.0)])
        (axis,) = re.findall(r'y="([\d.]+)"[^>]*>k<', svg)
        heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>line \d<', svg))
        assert len(heights) == 6
        assert min(np.diff(heights)) > 10
        assert 0 < heights[0] < heights[-1] < float(axis) - 15

    def test_labels_at_the_top_stay_in_the_figure_whatever_is_at_the_bottom(self) -> None:
        """Labels of lines that end at one height keep the lines' order."""
        lines = [Line(f"line {n}", (1, 2), (0.5, min(1, n)), n) for n in range(5)]
        svg = line_chart("x", "T", lines, x_label="k", y_label="v", y_range=(0, 1))
        heights = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>line \d<', svg)]
        (name,) = re.findall(r'y="([\d.]+)"[^>]*>v<', svg)
        assert heights == sorted(heights, reverse=True)
        assert min(-np.diff(heights)) > 10
        assert heights[-1] > float(name) + 10

    def test_labels_of_lines_that_leave_the_axes_keep_the_lines_order(self) -> None:
        lines = [Line(f"line {n}", (1, 2), (0.5, end), n) for n, end in enumerate((-3, -1, -2, 2))]
        svg = line_chart("x", "T", lines, x_label="k", y_label="v", y_range=(0, 1))
        heights = {n: float(y) for y, n in re.findall(r'y="([\d.]+)"[^>]*>line (\d)<', svg)}
        assert sorted(heights, key=lambda n: heights[n]) == ["3", "1", "2", "0"]

    @pytest.mark.parametrize("number", [13, 14, 50])
    def test_labels_can_be_read_however_many_there_are(self, number: int) -> None:
        lines = [Line(f"line {n}", (1, 2), (0.5, 0.5), n) for n in range(number)]
        svg = line_chart("x", "T", lines, x_label="k", y_label="v", y_range=(0, 1))
        heights = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>line \d+<', svg)]
        (axis,) = re.findall(r'y="([\d.]+)"[^>]*>k<', svg)
        assert len(heights) == number
        assert min(np.diff(sorted(heights))) > 12
        assert 0 < min(heights) < max(heights) < float(axis) - 15

    def test_a_line_is_named_as_it_is_drawn(self) -> None:
        """A line that only accompanies others is thin and has no marker."""
        line = Line("l", range(30), range(30), 1, faint=True)
        svg = line_chart("x", "T", [line], x_label="k", y_label="v")
        drawn = re.findall(r'style="([^"]*var\(--series-1\)[^"]*)"', svg)
        assert len(drawn) == 2
        assert drawn[0] == drawn[1]
        assert "stroke-width: 0.9" in drawn[0]

    @pytest.mark.parametrize(
        "label", ["'DejaVu Sans'", "#0a0b10", ' id="a"', 'xlink:href="#a"', "url(#a", "a>b<c"]
    )
    def test_a_label_stays_as_it_is(self, label: str) -> None:
        svg = dot_chart("x", "T", [label, "b"], [Dots("s", (1.0, 2.0), 0)], x_label="v")
        assert label in [text.text for text in ET.fromstring(svg).iter("text")]

    @pytest.mark.parametrize("x_log", [False, True])
    @pytest.mark.parametrize("y_log", [False, True])
    @pytest.mark.parametrize("y", [(1.0,), (2.0, 2.0), (1e-9, 1e9), (-1.0, 0.0, 3.0)])
    def test_any_finite_numbers_can_be_drawn(
        self, x_log: bool, y_log: bool, y: tuple[float, ...]
    ) -> None:
        x = tuple(range(1, len(y) + 1))
        svg = line_chart(
            "x", "T", [Line("l", x, y, 9, band=(y, y))], x_label="k", y_label="v", x_log=x_log,
            y_log=y_log,
        )  # fmt: skip
        ET.fromstring(svg)
        assert "nan" not in svg

    @pytest.mark.parametrize("spread", [2e-7, 1e-5, 2e-4, 0.0021, 0.3, 25.0, 4e3, 7e6])
    def test_ticks_are_even_and_none_is_written_as_another(self, spread: float) -> None:
        low = 1.6461
        dots = Dots("s", (low, low + spread), 0)
        svg = dot_chart("x", "T", ["a", "b"], [dots], x_label="v", form=".9f")
        names = re.findall(r">([\d.,]+[kM]?)</text>", svg)
        ticks = [name for name in names if name not in (f"{low:.9f}", f"{low + spread:.9f}")]
        assert 2 <= len(ticks) <= 9
        values = [float(name.strip("kM").replace(",", "")) for name in ticks]
        gaps = np.diff(values)
        assert min(gaps) > 0
        assert np.allclose(gaps, gaps[0], rtol=1e-3)

    def test_wide_letters_have_their_room_and_no_warning(self) -> None:
        values = [Dots("s", (1.0, 2.0), 0)]
        lefts = []
        for name in ("x" * 9, "红楼梦" * 3, "x" * 18):
            svg = dot_chart("x", "T", [name, "b"], values, x_label="v")
            assert f">{name}</text>" in svg
            lefts.append(float(re.findall(r'<use [^>]*x="([\d.]+)"', svg)[0]))
        assert lefts[0] < lefts[1] == lefts[2]

    def test_dots_carry_their_values(self) -> None:
        one = dot_chart("x", "T", ["a", "b"], [Dots("s", (1.0, None), 0)], x_label="v")
        assert ">1.000</text>" in one
        for broken in (math.inf, math.nan):
            svg = dot_chart("x", "T", ["a", "b"], [Dots("s", (1.0, broken), 0)], x_label="v")
            assert f">{broken:.3f}</text>" in svg
            dot_chart("x", "T", ["a"], [Dots("s", (broken,), 0)], x_label="v")
        two = [Dots("s", (1.0, 2.0), 0), Dots("t", (None, 3.0), 1)]
        assert "b: s 2.000, t 3.000." in dot_chart("x", "T", ["a", "b"], two, x_label="v")

    def test_units_at_one_place_are_one_larger_dot(self) -> None:
        many = saturation_chart("x", "T", [0.5] * 900, [0.25] * 900, 0)
        assert len(many) < 10_000
        assert "900 units" in many
        assert "50.0 % closed, 25.0 % open" in many
        assert "Dots of 1 unit by the share" in saturation_chart("x", "T", [0.5], [0.25], 0)

    def test_dots_of_units_are_opaque_with_an_edge_the_largest_below(self) -> None:
        """So that single ones are as dark as their colour, and those side by side are apart."""
        svg = saturation_chart("x", "T", [0.1, 0.2, 0.2, 0.2, 0.3, 0.3], [0.5] * 6, 2)
        dots = re.findall(r'<use [^>]*x="([\d.]+)"[^>]*style="(fill: var\(--series-2\)[^"]*)"', svg)
        assert {look for _, look in dots} == {
            "fill: var(--series-2); stroke: var(--paper); stroke-width: 0.5"
        }
        places = [float(x) for x, _ in dots]
        assert places == [places[0], max(places), min(places)], "those of three units, two and one"

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0, "0"), (0.01, "0.01"), (1234, "1,234"), (20000, "20k"), (1.5e6, "1.5M"),
         (3e9, "3G"), (1e-5, "10⁻⁵"), (3e-4, "3·10⁻⁴"), (9999.6, "10k"), (999_999, "1M")],
    )  # fmt: skip
    def test_numbers_are_short(self, value: float, text: str) -> None:
        assert number(value) == text
