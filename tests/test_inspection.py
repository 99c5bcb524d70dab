"""The measurements against slow readable twins, and against weights planted by hand."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text
from torch import Tensor

from charrnn import flow
from charrnn import inspection as module
from charrnn.activity import Unit, activation, gate_use, pace, units
from charrnn.cells import GRU, LSTM, Cell, State
from charrnn.checkpoint import load, save
from charrnn.config import CELL_NAMES, CellName, InspectConfig, ModelConfig
from charrnn.corpus import scan
from charrnn.errors import CorpusError, UsageError
from charrnn.flow import gradient_flow, initial_model, with_spectral_radius
from charrnn.inspection_view import enough_says, memory_lines, print_inspection
from charrnn.memory import Memory, _never_rising, memory
from charrnn.model import CharModel
from charrnn.properties import PROPERTIES
from charrnn.trained import load_model
from charrnn.unrolled import GATES, LANES, Stretch, observe, read_stretch, unroll_model
from charrnn.vocabulary import UNKNOWN, Vocabulary
from tests.conftest import Cli, Result, make_prose

ALPHABET = "abcd ()\n"
each_cell = pytest.mark.parametrize("cell", CELL_NAMES)


def vocabulary() -> Vocabulary:
    return Vocabulary.from_counts(dict.fromkeys(map(ord, ALPHABET), 1), "utf-8", 1)


def stretch_of(text: str) -> Stretch:
    return Stretch(text, vocabulary().encode(text).astype(np.int64))


def make_stretch(length: int, alphabet: str = ALPHABET, seed: int = 5) -> Stretch:
    return stretch_of("".join(random.Random(seed).choices(alphabet, k=length)))


def make_model(cell: CellName, layers: int = 2, hidden: int = 3) -> CharModel:
    """Return a model in float64 whose weights are large and whose biases are no zeros."""
    torch.manual_seed(7)
    config = ModelConfig(
        cell=cell, vocabulary=len(ALPHABET) + 1, layers=layers, hidden=hidden, embedding=4,
        dropout=0.5, weight_drop=0.5,
    )  # fmt: skip
    model = CharModel(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5).add_(torch.randn_like(weight) / 4)
    return model


def zero_(model: CharModel) -> CharModel:
    """Set every weight of the recurrence to zero."""
    with torch.no_grad():
        for cell in model.layers():
            for weight in cell.parameters():
                weight.zero_()
    return model


# The recurrence -------------------------------------------------------------------


@each_cell
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_unrolled_model_is_the_model(cell: CellName, layers: int) -> None:
    model = make_model(cell, layers)
    x_TB = torch.randint(0, len(ALPHABET), (7, 5))
    hidden = tuple(
        tuple(torch.randn(5, 3, dtype=torch.float64) for _ in c.states) for c in model.layers()
    )
    unrolled = unroll_model(model, x_TB, hidden)
    for t in range(7):
        expected_1BV, hidden = model(x_TB[t : t + 1], hidden)
        logits_BV = model.head(unrolled[-1].states["h"][t])
        torch.testing.assert_close(logits_BV, expected_1BV[0])
        for layer, state in zip(unrolled, hidden, strict=True):
            for steps, part_BH in zip(layer.states.values(), state, strict=True):
                torch.testing.assert_close(steps[t], part_BH)
    assert len(unrolled) == layers
    for layer, c in zip(unrolled, model.layers(), strict=True):
        assert tuple(layer.gates) == GATES[type(c)]
        assert all(len(steps) == 7 for steps in layer.gates.values())


# Gradient flow ----------------------------------------------------------------------


@dataclass(frozen=True)
class Nudge:
    """A change of one number of the state, at one character."""

    at: int
    layer: int
    state: str
    unit: int
    by: float


def nudged_step(cell: Cell, x_E: Tensor, state: State, nudge: Nudge | None) -> State:
    """Do one step by the printed equations, one lane; change h after it, or c within it."""
    h, H = state[0], cell.hidden
    change = torch.zeros(H, dtype=h.dtype)
    if nudge:
        change[nudge.unit] = nudge.by
    wx, uh = cell.weight_input @ x_E + cell.bias, cell.weight_recurrent @ h
    if isinstance(cell, LSTM):
        a = wx + uh
        i, f = a[:H].sigmoid(), a[H : 2 * H].sigmoid()
        g, o = a[2 * H : 3 * H].tanh(), a[3 * H :].sigmoid()
        c = f * state[1] + i * g + (change if nudge and nudge.state == "c" else 0)
        after: State = (o * c.tanh(), c)
    elif isinstance(cell, GRU):
        r, z = (wx + uh)[:H].sigmoid(), (wx + uh)[H : 2 * H].sigmoid()
        n = (wx[2 * H :] + r * (uh[2 * H :] + cell.bias_recurrent)).tanh()
        after = ((1 - z) * n + z * h,)
    else:
        after = ((wx + uh).tanh(),)
    if nudge and nudge.state == "h":
        after = (after[0] + change, *after[1:])
    return after


def last_loss(model: CharModel, ids: Sequence[int], nudge: Nudge) -> float:
    """Return -ln p of the last symbol, having read all before it from the zero state."""
    hidden = [tuple(s[0] for s in cell.initial_state(1)) for cell in model.layers()]
    for t, symbol in enumerate(ids[:-1]):
        out = model.embedding.weight[symbol]
        for layer, cell in enumerate(model.layers()):
            here = (t, layer) == (nudge.at, nudge.layer)
            hidden[layer] = nudged_step(cell, out, hidden[layer], nudge if here else None)
            out = hidden[layer][0]
    return -float(torch.log_softmax(model.head(out), dim=0)[ids[-1]])


class TestGradientFlow:
    @each_cell
    @torch.no_grad()
    def test_equals_finite_differences(self, cell: CellName) -> None:
        model, stretch = make_model(cell), make_stretch(40)
        farthest, warm_up, eps = 6, 10, 1e-5
        flow = gradient_flow(model, stretch, farthest=farthest, places=2)
        assert flow.places == 2
        assert (flow.weights, flow.scaled_to) == ("trained", None)
        states = (*model.layers()[0].states, *(("linear",) if cell == "rnn" else ()))
        assert [(r.layer, r.state) for r in flow.reaches] == [
            (layer, state) for layer in (1, 2) for state in states
        ]
        for reach in flow.reaches:
            if reach.state == "linear":
                continue
            for k in (0, 1, farthest):
                norms = []
                for t in (farthest + warm_up, len(stretch) - 2):
                    ids = stretch.ids[t - farthest - warm_up : t + 2].tolist()
                    at = len(ids) - 2 - k
                    slopes = []
                    for unit in range(3):
                        up, down = (
                            Nudge(at, reach.layer - 1, reach.state, unit, by) for by in (eps, -eps)
                        )
                        change = last_loss(model, ids, up) - last_loss(model, ids, down)
                        slopes.append(change / (2 * eps))
                    norms.append(math.hypot(*slopes))
                assert reach.size * reach.relative[k] == pytest.approx(sum(norms) / 2, rel=1e-6)
            assert reach.relative[0] == 1
            assert len(reach.relative) == farthest + 1

    @pytest.mark.parametrize("radius", [0.5, 1.0, 1.5])
    def test_of_a_linear_recurrence_is_a_power_of_its_radius(self, radius: float) -> None:
        """Claim of every lecture; true where tanh is not bent, as at h = 0."""
        model = zero_(make_model("rnn", layers=1))
        with torch.no_grad():
            model.layers()[0].weight_recurrent.copy_(3 * torch.eye(3))
        flow = gradient_flow(model, make_stretch(120), scaled_to=radius, farthest=20)
        reach, linear = flow.reaches
        assert reach.relative == pytest.approx([radius**k for k in range(21)])
        assert linear.relative == pytest.approx(reach.relative)
        assert flow.spectral_radii[0] == pytest.approx((radius,))
        assert flow.scaled_to == radius
        assert reach.halves_at == (2 if radius == 0.5 else None)
        assert reach.under_1_percent_at == (7 if radius == 0.5 else None)

    def test_linear_is_the_gradient_through_the_matrix_alone(self) -> None:
        model, stretch = make_model("rnn"), make_stretch(40)
        flow = gradient_flow(model, stretch, farthest=4, places=1)
        t, warm_up = len(stretch) - 2, 10
        first = 4 + warm_up  # of the one place
        ids = stretch.ids[first - 4 - warm_up : first + 2].tolist()
        assert t > first
        for reach in (r for r in flow.reaches if r.state == "linear"):
            slope = []
            for unit in range(3):
                up, down = (
                    Nudge(len(ids) - 2, reach.layer - 1, "h", unit, by) for by in (1e-5, -1e-5)
                )
                with torch.no_grad():
                    slope.append((last_loss(model, ids, up) - last_loss(model, ids, down)) / 2e-5)
            g_H = np.array(slope)
            matrix_HH = model.layers()[reach.layer - 1].weight_recurrent.detach().numpy()
            for k in range(5):
                norm = np.linalg.norm(np.linalg.matrix_power(matrix_HH.T, k) @ g_H)
                assert reach.size * reach.relative[k] == pytest.approx(norm, rel=1e-6)

    def test_along_a_memory_is_a_power_of_the_forget_gate(self) -> None:
        model = zero_(make_model("lstm", layers=1))
        with torch.no_grad():
            model.layers()[0].bias[3:6] = 2.0
        _, along_c = gradient_flow(model, make_stretch(120), farthest=20).reaches
        forget = 1 / (1 + math.exp(-2))
        assert along_c.state == "c"
        assert along_c.relative == pytest.approx([forget**k for k in range(21)])

    def test_lags_at_which_it_halves_and_falls_under_1_percent(self) -> None:
        reach = flow._reach(0, "h", np.array([4.0, 3.0, 1.9, 0.03, 0.5]))
        assert (reach.layer, reach.size) == (1, 4.0)
        assert (reach.halves_at, reach.under_1_percent_at) == (2, 3)
        reach = flow._reach(0, "h", np.array([1.0, 3.0]))
        assert (reach.halves_at, reach.under_1_percent_at) == (None, None)

    def test_needs_no_weight_that_requires_a_gradient(self) -> None:
        model = make_model("gru").requires_grad_(False)
        gradient_flow(model, make_stretch(100), farthest=3, places=3)
        assert all(weight.grad is None for weight in model.parameters())

    def test_scaling_leaves_the_model_alone(self) -> None:
        model = make_model("gru")
        before = [w.clone() for w in model.parameters()]
        scaled = with_spectral_radius(model, 0.7)
        for cell in scaled.layers():
            for block_HH in cell.weight_recurrent.detach().chunk(3):
                assert torch.linalg.eigvals(block_HH).abs().max() == pytest.approx(0.7)
        for weight, was in zip(model.parameters(), before, strict=True):
            assert torch.equal(weight, was)

    def test_initial_model_is_where_training_begins(self) -> None:
        config = make_model("lstm").config
        state = torch.get_rng_state()
        model = initial_model(config, 3)
        assert torch.equal(torch.get_rng_state(), state)
        assert not model.training
        torch.manual_seed(3)
        for one, other in zip(model.parameters(), CharModel(config).parameters(), strict=True):
            assert torch.equal(one, other)


# Memory ---------------------------------------------------------------------------


def price(model: CharModel, context: Sequence[int], symbol: int) -> float:
    """Return -ln p of a symbol, having read the context from the zero state."""
    logits_V = model.head.bias
    if len(context):
        logits_V = model(torch.tensor(context)[:, None])[0][-1, 0]
    return -float(torch.log_softmax(logits_V, dim=0)[symbol])


class TestMemory:
    @each_cell
    @torch.no_grad()
    def test_equals_a_loop_over_resets(
        self, cell: CellName, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("charrnn.memory.LOGITS", 300)
        model, stretch = make_model(cell), make_stretch(101, ALPHABET + "é")
        ids = stretch.ids.tolist()
        found = memory(model, stretch, vocabulary(), farthest=9, resets=7, bptt=4)
        starts = np.linspace(9, 91, 7).astype(int).tolist()
        for k in range(10):
            excess = [
                price(model, ids[s : s + k], ids[s + k]) - price(model, ids[: s + k], ids[s + k])
                for s in starts
            ]
            assert found.excess_nats[k] == pytest.approx(np.mean(excess), abs=1e-12)
            error = np.std(excess, ddof=1) / math.sqrt(7)
            assert found.standard_error[k] == pytest.approx(error, abs=1e-12)
        assert len(found.excess_nats) == len(found.standard_error) == 10
        full = [price(model, ids[:t], ids[t]) for t in range(9, 101)]
        full = [
            p + vocabulary().unknown_nats * (i == UNKNOWN)
            for p, i in zip(full, ids[9:], strict=True)
        ]
        assert found.full_nats == pytest.approx(np.mean(full))
        assert found.nats(3) == found.full_nats + found.excess_nats[3]
        assert (found.windows, found.bptt) == (7, 4)

    def test_of_a_model_that_needs_one_character(self) -> None:
        """It knows that b follows a and a follows b, and has no recurrence."""
        model = zero_(make_model("rnn", layers=1))
        a, b = (int(vocabulary().encode(c)[0]) for c in "ab")
        with torch.no_grad():
            for weight in (model.embedding.weight, model.head.weight, model.head.bias):
                weight.zero_()
            model.embedding.weight[a, 0], model.embedding.weight[b, 0] = 1, -1
            model.layers()[0].weight_input[0, 0] = 9
            model.head.weight[b, 0], model.head.weight[a, 0] = 9, -9
        found = memory(model, stretch_of("ab" * 60), vocabulary())
        assert found.needed == 1
        assert found.excess_nats[0] == pytest.approx(math.log(9), abs=0.01)
        assert found.excess_nats[1:] == pytest.approx([0.0] * (len(found.excess_nats) - 1))
        assert found.full_nats == pytest.approx(0.0, abs=0.01)

    @pytest.mark.parametrize(
        ("excess", "said"),
        [
            ((0.5, 0.1, 0.004), "2 characters are enough"),
            ((0.5, 0.004, -0.01), "1 character is enough"),
            (
                (-0.3, -0.9, 0.0),
                "0 characters are enough (with 1 character the loss is 0.9000 nats lower than with "
                "all before)",
            ),
        ],
    )
    def test_says_where_less_is_better(self, excess: tuple[float, ...], said: str) -> None:
        needed = int(said[0])
        found = Memory(1.5, excess, (0.0,) * 3, 30, tolerance=0.01, needed=needed, bptt=None)
        assert enough_says(found) == said

    def test_not_enough(self) -> None:
        found = memory(make_model("rnn"), make_stretch(120), vocabulary(), tolerance=-9.0)
        assert found.needed is None

    @pytest.mark.parametrize(("bptt", "farthest"), [(None, 256), (100, 256), (200, 400)])
    def test_looks_beyond_the_window_of_the_training(self, bptt: int | None, farthest: int) -> None:
        model = make_model("rnn", layers=1)
        found = memory(model, make_stretch(1700), vocabulary(), bptt=bptt, resets=2)
        assert len(found.excess_nats) == farthest + 1

    @given(st.lists(st.integers(-9, 9), min_size=1, max_size=12))
    def test_fit_never_rises(self, values: list[int]) -> None:
        """Against the min-max formula of isotonic regression."""
        n = len(values)
        expected = [
            min(max(np.mean(values[a : b + 1]) for b in range(i, n)) for a in range(i + 1))
            for i in range(n)
        ]
        assert _never_rising(np.array(values, float)) == pytest.approx(expected)


# Gates ----------------------------------------------------------------------------


class TestGates:
    @pytest.mark.parametrize("cell", ["lstm", "gru"])
    def test_shares_are_those_of_planted_gates(self, cell: CellName) -> None:
        """Unit 1's gates are open, unit 2's closed, unit 3's follow the character."""
        model = zero_(make_model(cell))
        names = GATES[type(model.layers()[0])]
        blocks = {"input": 0, "forget": 1, "output": 3, "reset": 0, "update": 1}
        symbol = {c: int(vocabulary().encode(c)[0]) for c in "ab"}
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

    def test_a_plain_rnn_has_none(self) -> None:
        assert gate_use(make_model("rnn"), make_stretch(100)) == ()


# Pace -----------------------------------------------------------------------------


class TestPace:
    @each_cell
    def test_it_is_numpy_s_correlation_of_each_lane_with_itself(self, cell: CellName) -> None:
        """Of the model read in one piece, lane by lane, over several blocks."""
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
    opening, closing = (int(vocabulary().encode(c)[0]) for c in "()")
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


class TestUnits:
    def test_a_planted_unit_is_found(self) -> None:
        model = make_model("lstm", layers=1, hidden=9)
        plant_bracket_unit_(model, unit=6)
        chance = random.Random(3)
        pieces = ["".join(chance.choices("abcd ", k=chance.randint(1, 20))) for _ in range(200)]
        text = "".join(f"({piece})" if n % 2 else piece for n, piece in enumerate(pieces))
        found = {f.property: f for f in units(model, stretch_of(text))}
        brackets = found["inside brackets"]
        assert (brackets.unit.layer, brackets.unit.unit) == (1, 7)
        assert brackets.found > 0.99
        assert brackets.correlation > 0.99
        assert 0.3 < brackets.mean < 0.7
        assert all(abs(f.correlation) < 0.9 for f in found.values() if f is not brackets)
        sizes = [abs(f.correlation) for f in found.values()]
        assert sizes == sorted(sizes, reverse=True)

    @each_cell
    @torch.no_grad()
    def test_equals_correlation_by_the_definition(self, cell: CellName) -> None:
        """The state is read here as a single lane from the start: what was warmed forgets."""
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
        assert {f.property for f in findings} >= {"inside brackets", "position in line"}
        for f in findings:
            value_T = np.array(PROPERTIES[f.property](stretch.text))
            first, second = (
                [np.corrcoef(state_TU[half, u], value_T[half])[0, 1] for u in range(len(names))]
                for half in halves
            )
            best = int(np.argmax(np.abs(first)))
            assert Unit(*names[best]) == f.unit
            assert f.found == pytest.approx(first[best], abs=1e-4)
            assert f.correlation == pytest.approx(second[best], abs=1e-4)

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
        assert Unit.parse(name, model) == Unit(*unit)
        assert Unit.parse(str(Unit(*unit)), model) == Unit(*unit)

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("", "layer.unit"), ("x", "layer.unit"), ("1.2.3", "layer.unit"), ("-1", "layer.unit"),
            ("0", "1.1 to 2.3"), ("4", "1.1 to 2.3"), ("3.1", "1.1 to 2.3"), ("1c", "memory c"),
        ],
    )  # fmt: skip
    def test_names_of_no_unit(self, name: str, says: str) -> None:
        with pytest.raises(UsageError, match=says):
            Unit.parse(name, make_model("gru"))

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


# The text -------------------------------------------------------------------------


class TestStretch:
    def test_text_and_symbols(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("(é☃) " * 50, encoding="utf-8")
        corpus = scan([str(tmp_path / "text")])
        stretch = read_stretch(corpus.part(3, 250), vocabulary())
        assert stretch.text == ("(é☃) " * 50)[3:]
        assert len(stretch) == 247
        assert stretch.ids.tolist() == vocabulary().encode(stretch.text).tolist()

    def test_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_bytes("aé".encode() * 50)
        corpus = scan([str(tmp_path / "data")], "bytes")
        stretch = read_stretch(corpus.part(0, 150), Vocabulary.of_bytes())
        assert stretch.text == "a\ufffd\ufffd" * 50
        assert stretch.ids.tolist() == list("aé".encode() * 50)

    def test_too_short(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("a" * 99)
        corpus = scan([str(tmp_path / "text")])
        with pytest.raises(CorpusError, match=r"^99 characters .* at least 100$"):
            read_stretch(corpus.part(0, 99), vocabulary())

    @each_cell
    def test_the_shortest_is_enough(self, cell: CellName) -> None:
        config, unit = InspectConfig(spectral_radius=(0.9,)), Unit(1, 3, "h")
        found = module.inspect(make_model(cell), make_stretch(100), vocabulary(), config, unit=unit)
        assert found.characters == 100
        assert [(f.weights, f.scaled_to) for f in found.gradient_flow] == [
            ("trained", None), ("initial", None), ("trained", 0.9), ("initial", 0.9),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        "chosen", [{"bptt": (3, 63)}, {"loss_last": 63}, {"bptt": (63,), "loss_last": 2}]
    )
    def test_a_window_too_long_is_refused_before_anything_is_measured(
        self, chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def measured(*_: object, **__: object) -> None:
            pytest.fail("it was measured")

        for name in ("write_out", "gradient_flow", "memory", "pace", "gate_use", "units", "cuts"):
            monkeypatch.setattr(module, name, measured)
        with pytest.raises(UsageError, match="lanes of 62 characters"):
            module.inspect(
                make_model("rnn"), make_stretch(500), vocabulary(), InspectConfig(**chosen)
            )


# In a terminal --------------------------------------------------------------------


def without_sentences(lines: Sequence[str]) -> list[str]:
    """Return what a pipe gets but the sentences below the titles, each whole on a line."""
    titles = {
        "The step", "Gradient flow", "Memory", "Pace", "Gates", "Units", "Clipping",
        "A cut gradient", "Truncation",
    }  # fmt: skip
    said = {n + 1 for n, line in enumerate(lines) if line in titles or line.startswith("Unit ")}
    assert all(lines[n].endswith(".") for n in said)
    return [line for n, line in enumerate(lines) if n not in said]


@each_cell
def test_any_measurement_can_be_shown(
    cell: CellName, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that predicts worse the more it has read, whose gradient is zero, too."""
    monkeypatch.setenv("COLUMNS", "80")
    model = zero_(make_model(cell))
    with torch.no_grad():
        model.head.weight.zero_()
    stretch = make_stretch(150, ALPHABET + "\r\t\f\x1b紅e\u0301")
    config, unit = InspectConfig(spectral_radius=(math.pi,), bptt=(3,)), Unit(2, 1, "h")
    for shown in (model, make_model(cell)):
        monkeypatch.setattr(flow, "with_spectral_radius", lambda model, _: model)
        print_inspection(module.inspect(shown, stretch, vocabulary(), config, unit=unit))
        out = capsys.readouterr().out
        assert ("\nGates\n" in out) == (cell != "rnn")
        assert ("no gradient" in out) == (shown is model)
        assert "\x1b" not in out
        assert "…" not in out
        lines = out.split("\n")
        after_the_step = lines[lines.index("Gradient flow") :]
        assert all(cell_len(line) <= 80 for line in without_sentences(after_the_step))
        first = lines.index("Unit 2.1") + 2
        lines = lines[: lines.index("A cut gradient")]
        text = "".join(lines[first::2]).replace("↵", "\n").replace("␍", "\r")
        expected = stretch.text[-112:].replace("\t", " ")
        assert text == re.sub("[\f\x1b]", "\N{REPLACEMENT CHARACTER}", expected)
        marks = zip(lines[first:-3:2], lines[first + 1 :: 2], strict=False)
        assert all(cell_len(mark) == len(columns) for mark, columns in marks)


@each_cell
def test_a_narrow_terminal_gets_fewer_units_of_the_step(
    cell: CellName, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stretch = make_model(cell, hidden=4), make_stretch(150)
    found = module.inspect(model, stretch, vocabulary(), InspectConfig(only=("step",)))

    def shown() -> str:
        print_inspection(found)
        return re.sub("\x1b[^m]*m", "", capsys.readouterr().out)

    monkeypatch.setenv("COLUMNS", "64")
    in_a_pipe = shown()
    assert "[4]" in in_a_pipe
    monkeypatch.setenv("FORCE_COLOR", "1")
    for name in ("dumb", "xterm"):
        monkeypatch.setenv("TERM", name)
        assert shown() == in_a_pipe
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    on_a_terminal = shown()
    assert "[1]" in on_a_terminal
    assert "[4]" not in on_a_terminal
    for out in (in_a_pipe, on_a_terminal):
        assert "…" not in out
    assert max(map(cell_len, on_a_terminal.splitlines())) <= 64


# The command ----------------------------------------------------------------------


@pytest.fixture
def lone(trained: Path, tmp_path: Path) -> Path:
    """The trained model's checkpoint, away from its run's folder."""
    path = tmp_path / "lone.safetensors"
    path.write_bytes((trained / "best.safetensors").read_bytes())
    return path


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for name, value in (("FORCE_COLOR", "1"), ("COLORTERM", "truecolor"), ("TERM", "xterm")):
            patch.setenv(name, value)
        patch.delenv("NO_COLOR", raising=False)
        yield


class TestCommand:
    def test_json(self, cli: Cli, trained: Path, prose: Path) -> None:
        result = cli(
            "inspect", trained, "--text", prose, "--characters", 500, "--unit", "1.5c",
            "--spectral-radius", 0.5, "--spectral-radius", 2, "--json",
        )  # fmt: skip
        assert (result.code, result.err) == (0, "")
        found = json.loads(result.out)
        model, _, checkpoint = load_model(trained, torch.device("cpu"))
        assert list(found) == [
            "checkpoint", "cell", "layers", "hidden", "parameters", "characters",
            "step", "gradient_flow", "memory", "pace", "gates", "units", "activation", "clipping",
            "cuts", "truncation",
        ]  # fmt: skip
        assert found["truncation"] == []
        assert (found["cell"], found["hidden"], found["characters"]) == ("lstm", 32, 500)
        assert found["parameters"] == model.parameter_count()
        assert [flow["scaled_to"] for flow in found["gradient_flow"]] == [
            None, None, 0.5, 0.5, 2.0, 2.0,
        ]  # fmt: skip
        # New recurrent matrices are orthogonal: if these are the run's, its seed was used.
        assert found["gradient_flow"][1]["spectral_radii"][0] == pytest.approx([1.0] * 4)
        assert found["memory"]["bptt"] == checkpoint.meta["training"]["bptt"] == 32
        excess = found["memory"]["excess_nats"]
        assert excess[0] > 0.5 > 0.1 > abs(excess[-1])
        assert [gate["gate"] for gate in found["gates"]] == ["input", "forget", "output"]
        assert all(len(gate["open_share"]) == 32 for gate in found["gates"])
        assert found["units"]
        assert found["activation"]["unit"] == {"layer": 1, "unit": 5, "state": "c"}
        assert found["activation"]["text"] == prose.read_text()[-375:]
        assert len(found["activation"]["values"]) == 375
        assert found["clipping"]["steps"] == 150
        assert [cut["weights"] for cut in found["cuts"]] == ["trained"] * 3 + ["initial"] * 3

    def test_only(self, cli: Cli, trained: Path, prose: Path) -> None:
        words = ("inspect", trained, "--text", prose, "--characters", 500)
        empty: dict[str, Any] = {
            "step": None, "gradient_flow": [], "memory": None, "pace": [], "gates": [], "units": [],
            "activation": None, "clipping": None, "cuts": [], "truncation": [],
        }  # fmt: skip
        for names, keys in (
            (["step"], {"step"}),
            (["flow"], {"gradient_flow"}),
            (["memory"], {"memory"}),
            (["pace"], {"pace"}),
            (["gates", "units"], {"gates", "units"}),
            (["clipping"], {"clipping", "cuts"}),
            (["truncation"], {"truncation"}),
        ):
            result = cli(*words, *(w for n in names for w in ("--only", n)), "--json")
            assert (result.code, result.err) == (0, "")
            found = json.loads(result.out)
            assert {key for key, value in empty.items() if found[key] != value} == keys

    def test_truncation(self, cli: Cli, trained: Path, prose: Path) -> None:
        words = ("inspect", trained, "--text", prose, "--bptt", 20, "--bptt", 9, "--loss-last", 5)
        found = json.loads(cli(*words, "--characters", 500, "--json").out)
        assert found["memory"]
        for truncation in found["truncation"]:
            assert [(w["bptt"], w["loss_last"]) for w in truncation["windows"]] == [
                (20, 5), (9, 5),
            ]  # fmt: skip
            assert truncation["full"]["bptt"] == 499 // 8
        out = cli(*words, "--only", "truncation", "--characters", 500).out
        assert out.startswith("Truncation\n")
        assert re.search(r"trained +20 +last 5 +[\d.]+° ", out)
        assert re.search(r"initial +62 \(all\) +last 47 +0.0° ", out)

    def test_nothing_more_has_no_sign_of_less(self) -> None:
        one = Memory(2.0, (1.0, -1e-9), (0.1, 0.0), 9, tolerance=0.01, needed=1, bptt=None)
        assert [line[2] for line in memory_lines(one)] == ["more", "+1.0000", "+0.0000"]

    def test_tables(self, cli: Cli, trained: Path, prose: Path) -> None:
        result = cli("inspect", trained, "--text", prose, "--characters", 300, "--unit", 7)
        assert (result.code, result.err) == (0, "looking at 300 characters ...\n")
        for title in (
            "The step",
            "Gradient flow",
            "Memory",
            "Gates",
            "Units",
            "Unit 1.7",
            "Clipping",
        ):
            assert f"\n{title}\n" in "\n" + result.out
        assert "\x1b" not in result.out
        lines = without_sentences(result.out.splitlines())
        assert all(len(line) <= 100 for line in lines)
        last = prose.read_text().splitlines()[-1]
        assert f"\n{last}\n" in result.out

    def test_colours(
        self, cli: Cli, trained: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with terminal(monkeypatch):
            result = cli("inspect", trained, "--text", prose, "--characters", 100, "--unit", 7)
        assert result.code == 0
        assert "(blue)" in result.out
        assert re.search(r"\x1b\[3[07];48;2;\d+;\d+;\d+m", result.out)

    def test_without_colours_a_unit_has_columns(
        self, cli: Cli, trained: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ("inspect", trained, "--text", prose, "--characters", 100, "--unit", 7)
        in_a_pipe = cli(*words)
        assert "(▁) to" in in_a_pipe.out
        with terminal(monkeypatch):
            monkeypatch.setenv("NO_COLOR", "1")
            in_colour = Text.from_ansi(cli(*words).out).plain
        assert in_colour.rstrip() == in_a_pipe.out.rstrip()

    def test_a_plain_rnn_has_no_gates(self, cli: Cli, prose: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        words = ("--cell", "rnn", "--steps", 3, "--hidden", 5, "--batch-size", 2, "--bptt", 9)
        cli("train", prose, "--run", run, *words)
        result = cli("inspect", run, "--part", "valid", "--only", "gates")
        assert (result.code, result.out) == (0, "")
        assert f"{run}: a plain RNN has no gates, so nothing is said on them\n" in result.err

    def test_standard_input(self, cli: Cli, trained: Path) -> None:
        text = make_prose(150, seed=9).encode()
        result = cli("inspect", trained, "--text", "-", "--json", stdin=text)
        assert (result.code, result.err) == (0, "")
        assert json.loads(result.out)["characters"] == 150

    def test_a_checkpoint_without_a_log(self, cli: Cli, lone: Path, prose: Path) -> None:
        result = cli("inspect", lone, "--text", prose, "--characters", 100, "--json")
        assert result.code == 0
        assert "nothing is said on the norms of its training" in result.err
        found = json.loads(result.out)
        assert found["clipping"] is None
        assert found["cuts"], "for which no log is needed"

    def test_says_what_was_trained_on(self, cli: Cli, trained: Path, prose: Path) -> None:
        result = cli("inspect", trained, "--text", prose, "--characters", 700, "--json")
        assert "trained on 99 of these 700 characters: --part valid" in result.err

    def test_part_of_the_run_s_own_text(self, cli: Cli, trained: Path, prose: Path) -> None:
        result = cli("inspect", trained, "--part", "valid", "--unit", 1, "--json")
        assert (result.code, result.err) == (0, "")
        found = json.loads(result.out)
        assert found["characters"] == 6007 - 5406
        assert prose.read_text().endswith(found["activation"]["text"])
        result = cli(
            "inspect", trained, "--part", "train", "--characters", 200, "--json", "--unit", 1
        )
        assert (result.code, result.err) == (0, "")
        assert prose.read_text()[:5406].endswith(json.loads(result.out)["activation"]["text"])

    @pytest.mark.parametrize(
        ("words", "code", "says"),
        [
            ("--part valid", 2, "--text and --part exclude each other"),
            ("--unit 33", 2, "1.1 to 1.32"),
            ("--unit best", 2, "--unit must be"),
            ("--characters 0", 2, "--characters"),
            ("--characters 99", 1, "at least 100"),
            ("--seed -1", 2, "--seed"),
            ("--spectral-radius 0", 2, "--spectral-radius must be a"),
            ("--spectral-radius inf", 2, "--spectral-radius"),
            ("--encoding bytes", 2, "--encoding bytes"),
            ("--text missing", 1, "there is no file"),
            ("--only everything", 2, "--only must be one of step, flow"),
            ("--only memory --spectral-radius 1", 2, "add --only flow"),
            ("--only flow --bptt 3", 2, "add --only truncation"),
            ("--only step --only units --seed 7", 2, "--seed is about what --only leaves out"),
            ("--bptt 0", 2, "--bptt must be"),
            ("--bptt 3 --loss-last 4", 2, "longer than the window"),
            ("--characters 500 --bptt 63", 2, "it takes a text, and --characters, of 505"),
            ("--characters 100 --loss-last 99", 2, "--loss-last 99 fits into no window"),
        ],
    )
    def test_bad_input(
        self, cli: Cli, trained: Path, prose: Path, words: str, code: int, says: str
    ) -> None:
        text = () if "--text" in words else ("--text", prose)
        result = cli("inspect", trained, *text, *words.split(), "--json")
        assert result.code == code
        assert result.out == ""
        assert says in result.err
        assert result.err.startswith("charrnn: ")
        assert result.err.count("\n") == 1

    @pytest.mark.parametrize("name", ["training", "text"])
    def test_a_checkpoint_that_does_not_say_how_it_was_trained(
        self, cli: Cli, lone: Path, prose: Path, name: str
    ) -> None:
        checkpoint = load(lone)
        save(lone, replace(checkpoint, meta={**checkpoint.meta, name: {"step": 1}}))
        says = f"charrnn: {lone}: the field '{name}' is not usable: 'step' is unknown\n"
        assert cli("inspect", lone, "--text", prose) == Result(1, "", says)

    def test_damaged_log(self, cli: Cli, lone: Path, prose: Path) -> None:
        (lone.parent / "metrics.jsonl").write_text("no row\n")
        result = cli("inspect", lone, "--text", prose)
        log = lone.parent / "metrics.jsonl"
        says = f"charrnn: {log}: line 1 is no row of a run's log: remove the line\n"
        assert result == Result(1, "", says)
