"""Gradient flow, against finite differences and what can be computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from charrnn.analysis import flow as module
from charrnn.analysis.flow import gradient_flow, initial_model, with_spectral_radius
from charrnn.analysis.unrolled import unroll_model
from charrnn.config import CellName
from charrnn.errors import UsageError
from charrnn.network.cells import GRU, LSTM, Cell, State
from charrnn.network.model import CharModel
from tests.small import make_model, make_stretch, zero_


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


@torch.no_grad()
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


def test_equals_finite_differences(cell: CellName, monkeypatch: pytest.MonkeyPatch) -> None:
    model, stretch = make_model(cell), make_stretch(40)
    farthest, warm_up, eps = 6, 7, 1e-5
    monkeypatch.setattr(module, "WARM_UP", warm_up)
    monkeypatch.setattr(module, "PLACES_AT_ONCE", 2)
    flow = gradient_flow(model, stretch, farthest=farthest, places=3)
    assert flow.places == 3
    assert (flow.weights, flow.scaled_to) == ("trained", None)
    states = (*model.layers()[0].states, *(("linear",) if cell == "rnn" else ()))
    assert [(r.layer, r.state) for r in flow.reaches] == [
        (layer, state) for layer in (1, 2) for state in states
    ]
    for reach in flow.reaches:
        if reach.state == "linear":
            continue
        sizes: list[list[float]] = []
        for k in (0, 1, farthest):
            norms = []
            for t in (farthest + warm_up, 25, len(stretch) - 2):  # evenly spaced: 13, 25, 38
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
            sizes.append(norms)
            assert reach.size * reach.relative[k] == pytest.approx(np.mean(norms), rel=1e-6)
            shares = [size / first for size, first in zip(norms, sizes[0], strict=True)]
            assert reach.median[k] == pytest.approx(np.median(shares), rel=1e-6)
        assert reach.relative[0] == 1
        assert len(reach.relative) == farthest + 1


@pytest.mark.parametrize("radius", [0.5, 1.0, 1.5])
def test_of_a_linear_recurrence_is_a_power_of_its_radius(radius: float) -> None:
    """Every lecture claims this; it is true where tanh is linear, as at h = 0."""
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


def test_linear_is_the_gradient_through_the_matrix_alone() -> None:
    model, stretch = make_model("rnn"), make_stretch(40)
    flow = gradient_flow(model, stretch, farthest=4, places=1)
    warm_up = 10
    first = 4 + warm_up  # the position of the only place
    ids = stretch.ids[first - 4 - warm_up : first + 2].tolist()
    for reach in (r for r in flow.reaches if r.state == "linear"):
        slope = []
        for unit in range(3):
            up, down = (Nudge(len(ids) - 2, reach.layer - 1, "h", unit, by) for by in (1e-5, -1e-5))
            slope.append((last_loss(model, ids, up) - last_loss(model, ids, down)) / 2e-5)
        g_H = np.array(slope)
        matrix_HH = model.layers()[reach.layer - 1].weight_recurrent.detach().numpy()
        for k in range(5):
            norm = np.linalg.norm(np.linalg.matrix_power(matrix_HH.T, k) @ g_H)
            assert reach.size * reach.relative[k] == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "state", "gate"), [("lstm", "c", "forget"), ("gru", "h", "update")]
)
def test_without_recurrent_weights_all_of_a_gradient_takes_the_direct_path(
    name: CellName, state: str, gate: str
) -> None:
    """The gates, which read the text, differ from step to step and from unit to unit."""
    model, stretch = make_model(name, layers=1), make_stretch(60)
    mixed = gradient_flow(model, stretch, farthest=5, places=4)
    with torch.no_grad():
        model.layers()[0].weight_recurrent.zero_()
    alone = gradient_flow(model, stretch, farthest=5, places=4)
    for flow, is_all in ((mixed, False), (alone, True)):
        (total,) = (reach for reach in flow.reaches if reach.state == state)
        (direct,) = flow.direct
        assert (direct.layer, direct.state, direct.size) == (1, gate, total.size)
        assert (direct.relative == pytest.approx(total.relative)) is is_all
        assert (direct.median == pytest.approx(total.median)) is is_all


def test_the_rows_are_layer_by_layer(cell: CellName) -> None:
    of_layer = {"rnn": ["h", "linear"], "lstm": ["h", "c", "forget"], "gru": ["h", "update"]}[cell]
    flow = gradient_flow(make_model(cell), make_stretch(60), farthest=2, places=2)
    expected = [(layer, name) for layer in (1, 2) for name in of_layer]
    assert [(reach.layer, reach.state) for reach in flow.rows] == expected


def test_along_a_memory_is_a_power_of_the_forget_gate() -> None:
    model = zero_(make_model("lstm", layers=1))
    with torch.no_grad():
        model.layers()[0].bias[3:6] = 2.0
    _, along_c = gradient_flow(model, make_stretch(120), farthest=20).reaches
    forget = 1 / (1 + math.exp(-2))
    assert along_c.state == "c"
    assert along_c.relative == pytest.approx([forget**k for k in range(21)])


def test_lags_at_which_it_halves_and_falls_under_1_percent() -> None:
    """The gradient must stay below from that lag on: one that comes back is not gone."""
    sizes = [4.0, 1.9, 2.0, 1.9, 0.039, 0.041, 0.039, 0.03]
    reach = module._reach(1, "h", np.array(sizes)[:, None])
    assert (reach.layer, reach.size) == (1, 4.0)
    assert (reach.halves_at, reach.under_1_percent_at) == (3, 6)
    back = module._reach(1, "h", np.array([*sizes, 3.0])[:, None])
    assert (back.halves_at, back.under_1_percent_at) == (None, None)
    reach = module._reach(1, "h", np.array([[1.0], [3.0]]))
    assert (reach.halves_at, reach.under_1_percent_at) == (None, None)
    # One place of three dominates the mean.
    reach = module._reach(
        1, "h", np.array([[1.0] * 3, [0.1, 0.2, 2.0], [0.0, 0.0, 0.1], [0.0] * 3])
    )
    assert (reach.halves_at, reach.under_1_percent_at) == (2, 3)
    assert (reach.median_halves_at, reach.median_under_1_percent_at) == (1, 2)


def test_one_place_makes_a_mean_but_no_median() -> None:
    """A place without a gradient has no share and is left out of the median."""
    reach = module._reach(1, "h", np.array([[2.0, 1.0, 1.0, 1.0, 0.0], [1.0, 0.1, 8.9, 0.0, 0.0]]))
    assert (reach.size, reach.relative[1]) == pytest.approx((1.0, 2.0))
    assert reach.median == pytest.approx((1.0, 0.3))
    nothing = module._reach(1, "h", np.zeros((3, 2)))
    assert all(map(math.isnan, nothing.median))
    assert (nothing.halves_at, nothing.median_under_1_percent_at) == (None, None)
    exploded = module._reach(1, "h", np.array([[1e-300], [1e300]]))
    assert (exploded.relative[1], exploded.median[1]) == (math.inf, math.inf)


def test_the_slope_of_a_tanh_is_that_of_the_states_on_the_way() -> None:
    """With a constant state, however many places are followed at once."""
    model = zero_(make_model("rnn"))
    with torch.no_grad():
        model.layers()[1].bias[:] = torch.tensor([0.0, 0.5, 1.0])
    slopes = [1 - math.tanh(a) ** 2 for a in (0.0, 0.5, 1.0)]
    flow = gradient_flow(model, make_stretch(300), farthest=4, places=40)
    assert flow.tanh_slopes == pytest.approx((1.0, math.hypot(*slopes) / math.sqrt(3)))
    other = gradient_flow(make_model("gru"), make_stretch(100), farthest=3, places=3)
    assert other.tanh_slopes == (None, None)


def test_the_slope_of_a_tanh_is_the_mean_over_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """With changing states, and places followed in groups of two and one."""
    model, stretch = make_model("rnn").requires_grad_(False), make_stretch(40)
    monkeypatch.setattr(module, "WARM_UP", 7)
    monkeypatch.setattr(module, "PLACES_AT_ONCE", 2)
    found = gradient_flow(model, stretch, farthest=4, places=3).tanh_slopes
    squares: list[list[Tensor]] = [[], []]
    for t in (11, 24, 38):
        ids_T1 = torch.from_numpy(stretch.ids[t - 11 : t + 1])[:, None]
        layers = unroll_model(model, ids_T1, model.initial_hidden(1))
        for layer, of_layer in zip(layers, squares, strict=True):
            of_layer += [(1 - h_BH**2) ** 2 for h_BH in layer.states["h"][-5:]]
    assert found == pytest.approx([float(torch.cat(s).mean().sqrt()) for s in squares])


def test_a_short_text_is_followed_back_by_a_quarter() -> None:
    flow = gradient_flow(make_model("rnn"), make_stretch(23))
    assert {len(reach.relative) for reach in flow.reaches} == {5 + 1}
    assert flow.places == len(range(5 + 5, 23 - 1))


@pytest.mark.parametrize("learning", [True, False])
def test_no_weight_gets_a_gradient_or_needs_one(learning: bool) -> None:
    model = make_model("gru").requires_grad_(learning)
    gradient_flow(model, make_stretch(100), farthest=3, places=3)
    assert all(weight.grad is None for weight in model.parameters())


def test_scaling_leaves_the_model_alone() -> None:
    model = make_model("gru")
    before = [w.clone() for w in model.parameters()]
    scaled = with_spectral_radius(model, 0.7)
    for cell in scaled.layers():
        for block_HH in cell.weight_recurrent.detach().chunk(3):
            assert torch.linalg.eigvals(block_HH).abs().max() == pytest.approx(0.7)
    for weight, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight, was)


def test_a_matrix_without_a_radius_is_not_scaled() -> None:
    with pytest.raises(UsageError, match=r"^--spectral-radius 0\.7: a recurrent matrix has a radi"):
        with_spectral_radius(zero_(make_model("gru")), 0.7)


def test_initial_model_is_where_training_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_model("lstm").config
    state = torch.get_rng_state()
    seeded: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "manual_seed_all", seeded.append)
        model = initial_model(config, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert not seeded
    assert not model.training
    torch.manual_seed(3)
    for one, other in zip(model.parameters(), CharModel(config).parameters(), strict=True):
        assert torch.equal(one, other)
