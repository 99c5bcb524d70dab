from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import pytest

from charrnn.analysis.activity import Activation, GateUse, Pace, Unit, UnitFound
from charrnn.analysis.equations import Quantity, Step
from charrnn.analysis.flow import Reach
from charrnn.analysis.gradients import Cut, Truncation, Window
from charrnn.analysis.inspection import Inspection
from charrnn.analysis.memory import Memory
from charrnn.analysis.norms import Clipping, Period
from charrnn.config import CELL_NAMES, CellName
from charrnn.views.figures import STYLES, Dots, Line, Rule, in_colour_of
from charrnn.views.inside import inside_sections
from charrnn.views.inspection_words import BACK, COSTS_SAY, NORMS_SAY, ZERO_SAYS
from tests.pages import RUN, SHAPE, flow, inspection, portrait


class TestChartsOfTheInside:
    """What the charts are given; test_figures.py tests how they draw it."""

    @pytest.fixture(autouse=True)
    def charts(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, mock._Call]:
        """The calls of the drawing functions, by the chart's name; nothing is drawn."""
        found: dict[str, mock._Call] = {}

        def keep(name: str, *given: Any, **how: Any) -> str:
            found[name] = mock.call(*given, **how)
            return "drawn"

        for kind in ("line_chart", "dot_chart", "saturation_chart"):
            monkeypatch.setattr(f"charrnn.views.inside.{kind}", keep)
        return found

    def show(self, *seen: Inspection | None, layers: int = 1) -> str:
        drawn = []
        for n, one in enumerate(seen):
            shape = replace(SHAPE, cell=one.cell if one else "gru", layers=layers)
            drawn.append(portrait(f"m{n}", inspection=one, run=replace(RUN, shape=shape)))
        return "".join(inside_sections(drawn, "Seen."))

    def test_one_layer_of_each_model_is_drawn_beside_others(
        self, charts: dict[str, mock._Call]
    ) -> None:
        """It is the last one, without a plain RNN's "linear"; a model alone is drawn whole."""

        def flows(cell: CellName, *states: tuple[int, str]) -> Inspection:
            reaches = (
                Reach(layer, state, 1.0, (), (1.0, share, share / 2), 1, None, 1, None)
                for share, (layer, state) in zip((0.5, 0.4, 0.3, 0.2), states, strict=True)
            )
            made = flow(reaches=tuple(reaches), spectral_radii=((1.0,), (1.1,)))
            return inspection(cell=cell, gradient_flow=(made,))

        lstm = flows("lstm", (1, "h"), (1, "c"), (2, "h"), (2, "c"))
        plain = flows("rnn", (1, "h"), (1, "linear"), (2, "h"), (2, "linear"))
        roughly = "so c and h compare only roughly."
        assert [roughly in self.show(one, layers=2) for one in (lstm, plain)] == [True, False]
        linear = "Linear (in the table): through the recurrent matrix alone"
        page = self.show(lstm, None, plain, lstm, layers=2)
        assert linear in page
        assert [page.count(BACK[cell].partition(":")[0]) for cell in CELL_NAMES] == [1, 1, 0]
        assert [(line.label, line.x, line.y, line.style) for line in charts["flow-0"].args[1]] == [
            ("m0 h", [1, 2], [0.3, 0.15], 0),
            ("m0 c", [1, 2], [0.2, 0.1], in_colour_of(0, 4)),
            ("m2 h", [1, 2], [0.3, 0.15], 2),
            ("m3 h", [1, 2], [0.3, 0.15], 3),
            ("m3 c", [1, 2], [0.2, 0.1], in_colour_of(3, 5)),
        ]
        assert linear in self.show(lstm, plain, layers=2)
        assert [line.label for line in charts["flow-0"].args[1]] == ["m0 h", "m0 c", "m1 h"]
        assert "<li>Linear" not in self.show(lstm, lstm, layers=2)
        assert "<li>Linear: through" in self.show(plain, layers=2)
        assert [(line.label, line.y, line.style) for line in charts["flow-0"].args[1]] == [
            ("h 1", [0.5, 0.25], 0),
            ("linear 1", [0.4, 0.2], in_colour_of(2, 1)),
            ("h 2", [0.3, 0.15], in_colour_of(0, 2)),
            ("linear 2", [0.2, 0.1], in_colour_of(2, 3)),
        ]

    def test_the_direct_path_is_drawn_of_a_model_alone(self, charts: dict[str, mock._Call]) -> None:
        """The table has it anyway."""
        relative = tuple(0.5**k for k in range(9))
        direct = (Reach(1, "forget", 1.0, relative, relative, 2, 7, 2, 7),)
        seen = inspection(gradient_flow=(flow(direct=direct),), gates=())
        labels = []
        for models in (1, 2):
            page = self.show(*[seen] * models)
            assert page.count(">forget 1<") == models
            assert ("by a gate alone are in the tables" in page) == (models > 1)
            labels.append([line.label for line in charts["flow-0"].args[1]])
        assert labels == [["h 1", "c 1", "forget 1"], ["m0 h", "m0 c", "m1 h", "m1 c"]]

    def test_a_colour_is_a_model_or_the_only_ones_state(
        self, charts: dict[str, mock._Call]
    ) -> None:
        """In all figures of a page; dashes and markers tell the rest apart."""
        reaches = tuple(replace(flow().reaches[n], layer=k) for k in (1, 2) for n in (0, 1))
        window = Window(3, None, 50.0, 1.0, 1e-6, 10_000)
        cuts = tuple(Truncation(w, 8, 512, window, 30.0, (window,)) for w in ("trained", "initial"))
        flows = flow(reaches=reaches, spectral_radii=((1.0,), (1.1,)), tanh_slopes=(None, None))
        one = inspection(gradient_flow=(flows,), truncation=cuts)

        def colours(name: str) -> dict[str, int]:
            return {drawn.label: drawn.style % STYLES for drawn in charts[name].args[-1]}

        self.show(one, layers=2)
        assert colours("flow-0") == {"h 1": 0, "c 1": 1, "h 2": 0, "c 2": 1}
        assert colours("units") == {"h": 0, "c": 1}
        assert colours("memory") == {"": 0}
        assert colours("truncation") == {"trained": 0, "initial": 0}
        for name in ("flow-0", "truncation"):
            looks = {sum(divmod(drawn.style, STYLES)) for drawn in charts[name].args[-1]}
            assert len(looks) == len(charts[name].args[-1])
        self.show(one, one, layers=2)
        both = {"m0 h": 0, "m0 c": 0, "m1 h": 1, "m1 c": 1}
        assert colours("flow-0") == colours("units") == both
        assert colours("memory") == {"m0": 0, "m1": 1}

    def test_a_gate_has_one_colour(self, charts: dict[str, mock._Call]) -> None:
        """That of the gradient through it alone, on a page of one model; else the model's."""
        reach = Reach(1, "forget", 1.0, (), (1.0, 0.5), 1, None, 1, None)
        seen = inspection(gradient_flow=(flow(direct=(reach,)),))
        self.show(seen)
        *_, along_forget = charts["flow-0"].args[1]
        assert along_forget.label == "forget 1"
        assert charts["gate-0-forget-1"].args[-1] % STYLES == along_forget.style % STYLES == 2
        self.show(seen, seen)
        assert [charts[f"gate-{n}-forget-1"].args[-1] for n in (0, 1)] == [0, 1]

    def test_no_two_layers_look_alike(self, charts: dict[str, mock._Call]) -> None:
        reaches = tuple(
            Reach(layer, state, 1.0, (), (1.0, 0.5), 1, None, 1, None)
            for layer in range(1, 13)
            for state in "hc"
        )
        one = flow(reaches=reaches, spectral_radii=((1.0,),) * 12, tanh_slopes=(None,) * 12)
        self.show(inspection(gradient_flow=(one,)), layers=12)
        assert len({line.style for line in charts["flow-0"].args[1]}) == 24

    @pytest.mark.parametrize(
        ("shares", "low", "high"),
        [
            ((0.5, 0.02), 0.02, 1.0),
            ((0.5, 0.02, 9e-6), 0.02, 1.0),
            ((0.5, 0.0), 0.5, 1.0),
            ((7.0, 2e-5), 2e-5, 7.0),
            ((7.0, 1e5, math.inf), 0.9, 1e4),
            ((math.nan, 3.0), 0.9, 3.0),
        ],
    )
    def test_all_charts_of_the_gradient_have_the_scale_that_shows_it(
        self, charts: dict[str, mock._Call], shares: tuple[float, ...], low: float, high: float
    ) -> None:
        """There is room to spare, but none above the limit; values next to zero do not count."""
        reach = Reach(1, "h", 1.0, (), (1.0, *shares), 1, None, 1, None)
        most = replace(reach, median=(1.0, *[0.9 for _ in shares]))
        flows = flow(reaches=(reach,)), flow("initial", reaches=(most,))
        self.show(inspection(gradient_flow=flows))
        first, second = charts["flow-0"].kwargs, charts["flow-1"].kwargs
        assert first == second
        assert first["y_floor"], "a gradient of 0 is drawn"
        bottom, top = first["y_range"]
        assert low / 1.5 < bottom < low
        assert top == high == 1e4 or high < top < 1.5 * high
        assert {rule.label: rule.y for rule in first["rules"]} == {"half": 0.5, "1 %": 0.01}

    def test_what_is_shown_on_a_logarithmic_axis(self, charts: dict[str, mock._Call]) -> None:
        """Shares and lengths are; correlations have the whole linear scale."""
        full = Window(64, None, 10.0, 1.0, 1e-6, 10_000)
        self.show(inspection(truncation=(Truncation("trained", 8, 512, full, 3.0, (full,)),)))
        found = {
            name: tuple(call.kwargs.get(axis, False) for axis in ("x_log", "y_log"))
            for name, call in charts.items()
        }
        assert {name for name, logs in found.items() if logs == (True, True)} == {
            "flow-0", "flow-1", "memory"
        }  # fmt: skip
        assert (found["norms"], found["truncation"]) == ((False, True), (True, False))
        assert charts["units"].kwargs["x_range"] == (0, 1)

    def test_one_model_has_its_table_beside_the_figure(self) -> None:
        beside = '<div class="beside">\n<figure>'
        assert self.show(inspection()).count(beside) == 2, "for memory and units"
        assert self.show(inspection(), inspection()).count(beside) == 0

    def test_no_gradient_and_nothing_to_forget_have_no_charts(
        self, charts: dict[str, mock._Call]
    ) -> None:
        memory = Memory(1.5, (0.9, 0.0, 0.0), (0.0,) * 3, 30, 0.01, 1, (1, 1), 16)
        for nothing in (0.0, math.nan):
            none = Reach(1, "h", 1.0, (), (1.0, nothing, nothing), 1, 1, 1, 1)
            seen = inspection(gradient_flow=(flow(reaches=(none,)),), memory=memory)
            assert self.show(seen).count("nothing to draw") == 2
        assert charts.keys() & {"flow-0", "memory"} == set()

    def test_a_band_is_one_standard_error_each_way(self, charts: dict[str, mock._Call]) -> None:
        memory = Memory(1.5, (0.9, 0.5, 0.25), (0.4, 0.2, 0.1), 30, 0.01, 2, (2, 2), 16)
        says = self.show(None, inspection(memory=memory))
        said = "<li>m1: 1.5000 nats with the state carried on, over the characters that have at "
        assert f"{said}least 2 before them; 2 characters are enough" in says
        (line,) = charts["memory"].args[1]
        assert (line.label, line.x, line.y, line.style) == ("m1", [1, 2], [0.5, 0.25], 1)
        assert line.band == (pytest.approx([0.3, 0.15]), pytest.approx([0.7, 0.35]))
        assert charts["memory"].kwargs["y_floor"]
        assert (
            "a state carried on; resets that cost less than the axis shows are at the bottom."
            in says
        )
        low, high = charts["memory"].kwargs["y_range"]
        assert 0 < low < 0.01
        assert 0.5 < high < 1
        assert charts["memory"].kwargs["rules"] == (Rule("0.01 nats", 0.01),)
        alone = self.show(inspection(memory=replace(memory, excess_nats=(0.9, 1e-6, 0.0))))
        assert "<li>2 characters are enough to come within 0.01 nats of the loss with" in alone
        assert 0.01 < charts["memory"].kwargs["y_range"][1] < 0.1, "the tolerance can be seen"

    def test_what_leaving_the_zero_state_costs_is_said_once(self) -> None:
        memory = Memory(1.5, (0.9, 0.5, 0.25), (0.4, 0.2, 0.1), 30, 0.01, 2, (2, 2), 16)
        for models in (1, 2):
            says = self.show(*[inspection(memory=memory)] * models)
            assert says.count(ZERO_SAYS) == says.count(COSTS_SAY) == 1
            reset = inspection(memory=replace(memory, reset_state=True))
            assert ZERO_SAYS not in self.show(*[reset] * models)

    def test_sections_begin_with_what_was_found(self) -> None:
        """In each model, by name if there are several."""
        full = Window(64, None, 0.0, 1.0, 1e-6, 10_000)
        seen = inspection(
            gradient_flow=(flow(),),
            pace=tuple(Pace(n, "h", (n / 4,), n / 4, None, None, None) for n in (1, 2)),
            gates=(GateUse(2, "update", (0.75, 0.5), (0.25, 0.125), 100),),
            units=(UnitFound("digit", Unit(1, 3, "h"), 0.5, 0.25, 1.0),),
            cuts=(Cut("trained", 0.1, 1.25, 0.5, 12.5),),
            truncation=(Truncation("trained", 8, 9, full, 3.0, (replace(full, angle=20.0),)),),
        )
        alone, several = self.show(seen), self.show(seen, seen)
        begin = {
            "Gradient flow": "With trained weights ",
            "Pace": "From one character to the next h 2 (correlation +0.500) changes least",
            "Gates": "Most often open: update 2, at 62.5 %",
            "Units": "The closest match: unit 1.3 and digit",
            "A cut gradient": "Cut by norm a gradient turned by 1.2°",
            "Truncation": "With trained weights the gradient is turned",
        }
        for title, said in begin.items():
            assert f'{title}</h2>\n<ul class="says">\n<li>{said}' in alone
            if title != "Truncation":
                named = f"{said[0].lower()}{said[1:]}"
                for model in ("m0", "m1"):
                    assert f"<li>{model}: {named}" in several

    def test_gates_are_those_of_their_model(self, charts: dict[str, mock._Call]) -> None:
        use = GateUse(2, "update", (0.75, 0.5), (0.25, 0.125), 100)
        says = self.show(None, inspection(gates=(use,)), inspection(gates=(use,)))
        assert "<h3>m2 update 2</h3>" in says
        assert "at more than 90 % of characters" in says
        assert "What an open gate does: update keeps h." in says
        about = "m2: update gate of layer 2"
        assert charts["gate-2-update-2"].args == (about, (0.25, 0.125), (0.75, 0.5), 2)

    def test_units_stand_in_order_of_the_best_of_any_model(
        self, charts: dict[str, mock._Call]
    ) -> None:
        names = {"i": "indentation", "u": "upper case", "d": "digit"}

        def units(state: str = "h", **found: float) -> tuple[UnitFound, ...]:
            of_unit = partial(UnitFound, unit=Unit(1, 1, state), found=0.1, mean=0.5)
            return tuple(of_unit(names[name], correlation=held) for name, held in found.items())

        gru, lstm = units(i=0.2, u=0.1, d=-0.3), units("c", i=-0.8) + units(i=0.1, u=-0.7)
        self.show(inspection(units=gru), inspection(units=lstm))
        rows, series = charts["units"].args[1:]
        assert rows == ["indentation", "upper case", "digit"]
        assert series == [
            Dots("m0 h", [0.2, 0.1, 0.3], 0),
            Dots("m1 h", [0.1, 0.7, None], 1),
            Dots("m1 c", [0.8, None, None], in_colour_of(1, 2)),
        ]
        self.show(inspection(units=lstm))
        _, series = charts["units"].args[1:]
        assert [(dots.label, dots.style) for dots in series] == [("h", 0), ("c", 1)]

    def test_a_chosen_unit_and_those_that_follow_the_text_need_not_each_other(self) -> None:
        unit = Activation(Unit(1, 2, "c"), "ab\nc", (0.0, 0.25, -0.5, 0.1))
        says = self.show(inspection(units=(), activation=unit))
        assert "<h3>Unit 1.2c along the text</h3>" in says
        assert "<h3>Units that follow the text</h3>" in self.show(inspection(activation=None))
        assert 'a<span class="up-2">b</span><span class="down-5">↵\n</span><span class="up-1">' in (
            says
        )
        accent = self.show(inspection(activation=replace(unit, text="ae\u0301b")))
        assert '<span class="down-5">◌\u0301</span>' in accent
        for name, value in (("down-5", "-0.5"), ("", "0"), ("up-5", "0.5")):
            assert f'"{name} swatch">{value}<' in says
        assert 'class="up' not in self.show(
            inspection(activation=replace(unit, values=(0.0,) * 4))
        ).replace('class="up-5 swatch"', "")

    def test_norms_are_drawn_over_the_middle_of_their_periods(
        self, charts: dict[str, mock._Call]
    ) -> None:
        periods = (Period(1, 10, 1, 2, 3, 0.0), Period(11, 30, 0.5, 0.6, 1, 0.25))
        history = Clipping(1.5, None, None, 30, 3.0, 0.5, periods)
        none = replace(history, periods=(Period(1, 30, 0.0, 0.0, 0.0, 0.0),))
        says = self.show(inspection(clipping=none), inspection(clipping=history))
        assert "<li>m1: Norms of the gradient over 30 updates" in says
        assert says.count(NORMS_SAY) == 1
        lines = charts["norms"].args[1]
        assert lines[1] == Line("m1", [5.5, 20.5], (2, 0.6), 1, band=((1, 0.5), (3, 1)))
        assert charts["norms"].kwargs["rules"] == (Rule("clipped above 1.5", 1.5),)
        assert charts["clipped"].args[1][1] == Line("m1", [5.5, 20.5], [0.0, 0.25], 1)
        low, high = charts["clipped"].kwargs["y_range"]
        assert low < 0 < 1 < high
        scaled = inspection(clipping=replace(history, clip_norm=None, scale_norm=0.75))
        assert "<li>Norms of the gradient over 30 updates" in self.show(scaled)
        assert charts["norms"].kwargs["rules"] == (Rule("scaled to 0.75", 0.75),)

    def test_angles_are_drawn_over_their_windows(self, charts: dict[str, mock._Call]) -> None:
        full = Window(64, None, 0.0, 1.0, 1e-6, 10_000)
        windows = tuple(replace(full, bptt=n, angle=angle) for n, angle in ((7, 20.0), (3, 50.0)))
        trained = Truncation("trained", 8, 512, full, 30.0, windows)
        lost = replace(windows[1], angle=math.nan)
        initial = replace(trained, weights="initial", windows=(windows[0], lost))
        self.show(inspection(truncation=(trained, initial)))
        first, second = charts["truncation"].args[1]
        assert first == Line("trained", [3, 7], [50.0, 20.0], 0)
        assert (second.label, second.y[1], second.style) == ("initial", 20.0, in_colour_of(0, 1))
        low, high = charts["truncation"].kwargs["y_range"]
        assert low == 0
        assert 50 < high < 60
        self.show(inspection(truncation=(replace(trained, windows=(replace(lost, angle=0.0),)),)))
        assert charts["truncation"].kwargs["y_range"][1] > 0
        charts.clear()
        shown = self.show(inspection(truncation=(replace(trained, windows=(lost,)),)))
        assert "<li></li>" not in shown
        assert "truncation" not in charts

    def test_a_step_and_windows_are_shown_of_one_model_only(self) -> None:
        quantity = Quantity(1, "y", "V h' + v", (1.5, 2.5), None)
        full = Window(64, None, 0.0, 1.0, 1e-6, 10_000)
        seen = inspection(
            step=Step("a", (quantity,), ("e",), 256, 1e-7, 2e-6, 1.25, 1.25),
            truncation=(Truncation("trained", 8, 512, full, 30.0, (full,)),),
        )
        for title in ("The step", "Truncation"):
            assert f"{title}</h2>" in self.show(None, seen)
            assert f"{title}</h2>" not in self.show(seen, seen)
