"""The activity of states, gates and units, against planted ones and the definitions."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from charrnn.analysis.activity import KEPT_OVER, Unit, activation, gate_use, pace, units
from charrnn.analysis.properties import PROPERTIES
from charrnn.analysis.unrolled import LANES, observe
from charrnn.config import CellName
from charrnn.errors import UsageError
from charrnn.network.model import CharModel
from tests.small import VOCABULARY, make_model, make_stretch, stretch_of, zero_


class TestGates:
    @pytest.mark.parametrize("cell", ["lstm", "gru"])
    def test_shares_are_those_of_planted_gates(self, cell: CellName) -> None:
        """Unit 1's gates are open, unit 2's closed, unit 3's follow the character."""
        model = zero_(make_model(cell))
        names = model.layers()[0].gate_names
        blocks = {"input": 0, "forget": 1, "output": 3, "reset": 0, "update": 1}
        symbol = {c: int(VOCABULARY.encode(c)[0]) for c in "ab"}
        with torch.no_grad():
            model.embedding.weight.zero_()
            model.embedding.weight[symbol["a"], 0] = 1.0
            model.embedding.weight[symbol["b"], 0] = -1.0
            for name in names:
                first = 3 * blocks[name]
                model.layers()[0].bias[first : first + 3] = torch.tensor([5.0, -5.0, 0.0])
                model.layers()[0].weight_input[first + 2, 0] = 5.0
        stretch = make_stretch(123)
        warm_up = 123 // 4
        seen = stretch.text[warm_up : warm_up + (123 - warm_up) // LANES * LANES]
        uses = gate_use(model, stretch)
        assert [(use.layer, use.gate) for use in uses] == [(n, g) for n in (1, 2) for g in names]
        for use in uses:
            assert use.characters == len(seen)
            opened = (1.0, 0.0, seen.count("a") / len(seen)) if use.layer == 1 else (0.0,) * 3
            closed = (0.0, 1.0, seen.count("b") / len(seen)) if use.layer == 1 else (0.0,) * 3
            assert use.open_share == pytest.approx(opened)
            assert use.closed_share == pytest.approx(closed)

    @pytest.mark.parametrize(
        ("cell", "planted"),
        [
            ("lstm", {"input": 5.0, "forget": 0.0, "cell": 0.0, "output": -5.0}),
            ("gru", {"reset": 5.0, "update": -5.0, "new": 0.0}),
        ],
    )
    def test_a_gate_goes_by_its_own_name(self, cell: CellName, planted: dict[str, float]) -> None:
        """The planted biases are in the order of the blocks."""
        model = zero_(make_model(cell, layers=1))
        with torch.no_grad():
            model.layers()[0].bias[:] = torch.tensor([*planted.values()]).repeat_interleave(3)
        for use in gate_use(model, make_stretch(100)):
            bias = planted[use.gate]
            assert use.open_share == (float(bias > 0),) * 3
            assert use.closed_share == (float(bias < 0),) * 3

    def test_a_plain_rnn_has_none(self) -> None:
        assert gate_use(make_model("rnn"), make_stretch(100)) == ()


# Pace -----------------------------------------------------------------------------


class TestPace:
    def test_it_is_numpy_s_correlation_of_each_lane_with_itself(self, cell: CellName) -> None:
        """Over several blocks joined together; the two values are always of the same lane."""
        model, stretch = make_model(cell), make_stretch(2200)
        observed = [layers for _, layers in observe(model, stretch)]
        assert len(observed) > 1
        found = pace(model, stretch)
        assert [(one.layer, one.state) for one in found] == [
            (n, name) for n, of in enumerate(model.layers(), 1) for name in of.states
        ]
        for one in found:
            state_TBH = torch.cat(
                [torch.stack(layers[one.layer - 1].states[one.state]) for layers in observed]
            ).detach().numpy()  # fmt: skip
            expected = [
                np.corrcoef(state_TBH[:-1, :, u].ravel(), state_TBH[1:, :, u].ravel())[0, 1]
                for u in range(3)
            ]
            assert one.autocorrelation == pytest.approx(expected)
            assert one.mean == pytest.approx(np.mean(expected))

    def test_kept_is_the_product_of_planted_gates(self) -> None:
        """Unit 1's forget gate is at 0.9, unit 2's at 0.5, unit 3's nearly shut."""
        model = zero_(make_model("lstm", layers=1))
        with torch.no_grad():
            model.layers()[0].bias[3:6] = torch.tensor([math.log(9), 0.0, -50.0])
        h, c = pace(model, make_stretch(1000))
        assert (h.gate, h.kept_mean, h.kept_median) == (None, None, None)
        assert c.gate == "forget"
        assert c.kept_mean == pytest.approx((0.9**10 + 0.5**10) / 3)
        assert c.kept_median == pytest.approx(0.5**10)
        assert all(map(math.isnan, (*c.autocorrelation, c.mean)))

    def test_kept_is_the_product_of_ten_values_in_a_row(self) -> None:
        """By the definition, over several blocks, for each lane and unit separately."""
        model, stretch = make_model("lstm", layers=1), make_stretch(2200)
        products = []
        for _, (layer,) in observe(model, stretch):
            gate_TBH = torch.stack(layer.gates["forget"]).detach().numpy()
            whole = len(gate_TBH) // KEPT_OVER * KEPT_OVER
            products += [
                gate_TBH[first : first + KEPT_OVER].prod(axis=0).ravel()
                for first in range(0, whole, KEPT_OVER)
            ]
        _, c = pace(model, stretch)
        assert c.kept_mean == pytest.approx(np.concatenate(products).mean())
        assert c.kept_median == pytest.approx(np.median(np.concatenate(products)))

    def test_the_update_gate_keeps_a_gru_s_state(self) -> None:
        model = zero_(make_model("gru", layers=1))
        with torch.no_grad():
            model.layers()[0].bias[3:6] = math.log(9)
        (h,) = pace(model, make_stretch(1000))
        assert h.gate == "update"
        assert h.kept_mean == pytest.approx(0.9**10)

    def test_a_text_too_short_for_ten_characters_in_a_row(self) -> None:
        (h, c) = pace(make_model("lstm", layers=1), make_stretch(100))
        assert (c.kept_mean, c.kept_median) == (None, None)
        assert len(h.autocorrelation) == 3


# Units ----------------------------------------------------------------------------


def plant_bracket_unit_(model: CharModel, unit: int) -> None:
    """Make a unit (from 0) of an LSTM's first layer remember whether a bracket is open.

    At a bracket it forgets and writes +1 or -1; elsewhere it keeps what it has.
    """
    cell = model.layers()[0]
    i, f, g, o = (unit + block * cell.hidden for block in range(4))
    opening, closing = (int(VOCABULARY.encode(c)[0]) for c in "()")
    with torch.no_grad():
        model.embedding.weight[:, :2] = 0
        model.embedding.weight[opening, 0] = 1.0
        model.embedding.weight[closing, 1] = 1.0
        for row in (i, f, g, o):
            cell.weight_input[row] = 0
            cell.weight_recurrent[row] = 0
        cell.bias[[i, f, g, o]] = torch.tensor([-10.0, 10.0, 0.0, 10.0]).double()
        cell.weight_input[i, :2] = 20.0
        cell.weight_input[f, :2] = -20.0
        cell.weight_input[g, :2] = torch.tensor([5.0, -5.0]).double()


def plant_counting_unit_(model: CharModel, unit: int) -> None:
    """Make a unit (from 0) of an LSTM's first layer count: add 0.05 at each character.

    At a line feed it forgets and writes nothing.
    """
    cell = model.layers()[0]
    i, f, g, o = (unit + block * cell.hidden for block in range(4))
    with torch.no_grad():
        model.embedding.weight[:, 0] = 0
        model.embedding.weight[int(VOCABULARY.encode("\n")[0]), 0] = 1.0
        for row in (i, f, g, o):
            cell.weight_input[row] = 0
            cell.weight_recurrent[row] = 0
        cell.bias[[i, f, g, o]] = torch.tensor([10.0, 10.0, 0.05, 10.0]).double()
        cell.weight_input[[i, f], 0] = -20.0


class TestUnits:
    def test_a_planted_counter_is_found(self) -> None:
        model = make_model("lstm", layers=1, hidden=9)
        plant_counting_unit_(model, unit=6)
        chance = random.Random(3)
        lines = ("".join(chance.choices("abcd ", k=chance.randint(0, 20))) for _ in range(300))
        first, *_ = units(model, stretch_of("\n".join(lines)))
        assert first.property == "position in line"
        assert (first.unit.layer, first.unit.unit, first.unit.state) == (1, 7, "c")
        assert first.correlation > 0.99

    def test_a_planted_unit_is_found(self) -> None:
        model = make_model("lstm", layers=1, hidden=9)
        plant_bracket_unit_(model, unit=6)
        chance = random.Random(3)
        pieces = ["".join(chance.choices("abcd ", k=chance.randint(1, 20))) for _ in range(200)]
        text = "".join(f"({piece})" if n % 2 else piece for n, piece in enumerate(pieces))
        first, second, *others = units(model, stretch_of(text))
        for brackets in (first, second):
            assert brackets.property == "inside brackets"
            assert (brackets.unit.layer, brackets.unit.unit) == (1, 7)
            assert brackets.found > 0.99
            assert brackets.correlation > 0.99
            assert 0.3 < brackets.mean < 0.7
        assert all(abs(f.correlation) < 0.9 for f in others)

    def test_a_property_s_states_stand_together_the_best_first(self) -> None:
        found = units(make_model("lstm"), make_stretch(300))
        pairs = [*zip(found[::2], found[1::2], strict=True)]
        for one, other in pairs:
            assert one.property == other.property
            assert {one.unit.state, other.unit.state} == {"h", "c"}
            assert abs(one.correlation) >= abs(other.correlation)
        sizes = [abs(one.correlation) for one, _ in pairs]
        assert sizes == sorted(sizes, reverse=True)

    @torch.no_grad()
    def test_equals_correlation_by_the_definition(self, cell: CellName) -> None:
        """Here a single lane reads the text from its start, without a warm-up."""
        model, stretch = make_model(cell, hidden=5), make_stretch(1203)
        with torch.no_grad():  # forget fast, so that a warmed lane is as good as the whole past
            for c in model.layers():
                c.weight_recurrent.mul_(0.2)
        hidden, rows = model.initial_hidden(1), []
        for symbol in stretch.ids.tolist():
            _, hidden = model(torch.tensor([[symbol]]), hidden)
            rows.append(torch.cat([part[0] for state in hidden for part in state]).numpy())
        state_TU = np.array(rows)
        names = [
            (layer, u, s) for layer in (1, 2) for s in model.layers()[0].states for u in range(1, 6)
        ]
        length = (1203 - 256) // LANES
        halves = [slice(256 + n * 4 * length, 256 + (n + 1) * 4 * length) for n in (0, 1)]
        findings = units(model, stretch)
        states = [*model.layers()[0].states]
        found = {(f.property, f.unit.state) for f in findings}
        assert len(found) == len(findings)
        assert found >= {
            (name, s) for name in ("inside brackets", "position in line") for s in states
        }
        for f in findings:
            value_T = np.array(PROPERTIES[f.property](stretch.text))
            first, second = (
                [np.corrcoef(state_TU[half, u], value_T[half])[0, 1] for u in range(len(names))]
                for half in halves
            )
            of_state = [u for u, (*_, s) in enumerate(names) if s == f.unit.state]
            best = max(of_state, key=lambda u: abs(first[u]))
            assert Unit(*names[best]) == f.unit
            assert f.found == pytest.approx(first[best], abs=1e-4)
            assert f.correlation == pytest.approx(second[best], abs=1e-4)
            assert f.mean == pytest.approx(np.mean([value_T[half] for half in halves]))

    def test_a_property_that_does_not_vary_is_left_out(self) -> None:
        found = units(make_model("gru"), make_stretch(300))
        assert {f.property for f in found} == {
            "inside brackets", "position in line", "indentation", "inside a word",
            "position in word",
        }  # fmt: skip

    def test_a_unit_that_does_not_vary_follows_nothing(self) -> None:
        found = units(zero_(make_model("rnn")), make_stretch(300))
        assert [f.correlation for f in found] == [0.0] * len(found)

    @pytest.mark.parametrize(
        ("name", "unit"),
        [("3", (1, 3, "h")), ("2.1", (2, 1, "h")), ("1.2c", (1, 2, "c")), ("2.3h", (2, 3, "h"))],
    )
    def test_names(self, name: str, unit: tuple[int, int, str]) -> None:
        model = make_model("lstm")
        assert Unit.parse(name, model.config) == Unit(*unit)
        assert Unit.parse(str(Unit(*unit)), model.config) == Unit(*unit)

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("", "layer.unit"), ("x", "layer.unit"), ("1.2.3", "layer.unit"), ("-1", "layer.unit"),
            ("0", "1.1 to 2.3"), ("4", "1.1 to 2.3"), ("3.1", "1.1 to 2.3"), ("1c", "memory c"),
        ],
    )  # fmt: skip
    def test_names_of_no_unit(self, name: str, says: str) -> None:
        with pytest.raises(UsageError, match=says):
            Unit.parse(name, make_model("gru").config)

    @torch.no_grad()
    def test_activation_is_the_state_at_each_character(self) -> None:
        model, stretch = make_model("lstm"), make_stretch(120)
        shown = activation(model, stretch, Unit(2, 3, "c"), 70)
        assert shown.text == stretch.text[-70:]
        hidden, values = model.initial_hidden(1), []
        for symbol in stretch.ids.tolist():
            _, hidden = model(torch.tensor([[symbol]]), hidden)
            values.append(float(hidden[1][1][0, 2]))
        assert shown.values == pytest.approx(values[-70:])
        for name, measure in PROPERTIES.items():
            assert shown.properties[name] == tuple(measure(stretch.text)[-70:])
            assert {type(value) for value in shown.properties[name]} == {float}

    def test_properties_of_a_long_text_take_four_bytes_a_character(self) -> None:
        stretch = make_stretch(120)
        taken = sum(value_T.nbytes for value_T in stretch.properties.values())
        assert taken == 4 * 120 * len(PROPERTIES)
