from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from charrnn.compute.recurrence import loops
from charrnn.config import CellName, ModelConfig
from charrnn.network.model import CharModel, Hidden, detach, outline
from tests.small import make_model, needs_bf16

V, E, H = 11, 5, 7


def make(
    cell: CellName, layers: int = 2, dropout: float = 0.0, weight_drop: float = 0.0
) -> CharModel:
    return make_model(cell, layers, H, E, V, dropout, weight_drop).train()


def text(times: int, lanes: int) -> Tensor:
    return torch.randint(V, (times, lanes), generator=torch.Generator().manual_seed(times))


def one_by_one(model: CharModel, x_TB: Tensor) -> tuple[Tensor, Hidden]:
    """Run the model by the definition, one character and one layer at a time."""
    hidden = list(model.initial_hidden(x_TB.shape[1]))
    logits = []
    for x_B in x_TB:
        out_BH = model.embedding.weight[x_B]
        for layer, cell in enumerate(model.layers()):
            out_1BH, hidden[layer] = cell(out_BH[None], hidden[layer])
            out_BH = out_1BH[0]
            assert torch.equal(out_BH, hidden[layer][0])
        logits.append(out_BH @ model.head.weight.T + model.head.bias)
    return torch.stack(logits), tuple(hidden)


def assert_same(a: tuple[Tensor, Hidden], b: tuple[Tensor, Hidden]) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_on_a_cpu_the_lowest_layer_gets_each_symbol_once(cell: CellName) -> None:
    model, x_TB = make(cell), text(9, 3)
    given: list[tuple[Tensor, Hidden, Tensor | None]] = []
    for layer in model.layers():
        layer.register_forward_pre_hook(lambda _, arguments: given.append(arguments))
    model(x_TB)
    (x_DE, _, which_TB), (x_TBH, _, which_above) = given
    assert which_TB is not None and which_above is None
    assert len(x_DE) == len(set(x_TB.flatten().tolist())) < x_TB.numel()
    assert torch.equal(x_DE[which_TB], model.embedding(x_TB))
    assert x_TBH.shape == (9, 3, H)


@pytest.mark.parametrize("times", [1, 2, 9, 40])
def test_the_same_weights_serve_any_length(cell: CellName, times: int) -> None:
    model = make(cell)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x_TB = text(times, 3)
    logits_TBV, hidden = model(x_TB)
    assert logits_TBV.shape == (times, 3, V)
    assert len(hidden) == 2
    assert_same((logits_TBV, hidden), one_by_one(model, x_TB))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_no_output_depends_on_a_later_character(cell: CellName) -> None:
    model = make(cell)
    x_TB = text(13, 2)
    logits_TBV, _ = model(x_TB)
    for time in range(13):
        changed_TB = x_TB.clone()
        changed_TB[time, 1] = (x_TB[time, 1] + 1) % V
        other_TBV, _ = model(changed_TB)
        torch.testing.assert_close(other_TBV[:time], logits_TBV[:time], rtol=0, atol=1e-14)
        # Another lane does not depend on the character; all later outputs of this one do.
        torch.testing.assert_close(other_TBV[:, 0], logits_TBV[:, 0], rtol=0, atol=1e-14)
        assert (other_TBV[time:, 1] != logits_TBV[time:, 1]).any(dim=1).all()


def test_no_gradient_flows_back_from_an_earlier_output(cell: CellName) -> None:
    model = make(cell)
    # Every time step reads another symbol, so each embedding's gradient is that of one step.
    logits_TBV, _ = model(torch.arange(V)[:, None])
    for time in range(V):
        (grad_VE,) = torch.autograd.grad(
            logits_TBV[time].sum(), model.embedding.weight, retain_graph=True
        )
        reached = grad_VE.abs().amax(dim=1) > 0
        assert reached.tolist() == [at <= time for at in range(V)]


@pytest.mark.parametrize("cuts", [(1,), (12,), (4, 5, 11), tuple(range(1, 13))])
def test_chunks_with_carried_state_equal_one_pass(cell: CellName, cuts: tuple[int, ...]) -> None:
    model = make(cell)
    x_TB = text(13, 3)
    hidden = None
    pieces = []
    for start, stop in itertools.pairwise((0, *cuts, 13)):
        logits_TBV, hidden = model(x_TB[start:stop], hidden)
        pieces.append(logits_TBV)
    assert hidden is not None
    assert_same((torch.cat(pieces), hidden), model(x_TB))


def test_each_lane_is_a_text_of_its_own(cell: CellName) -> None:
    model = make(cell)
    x_TB = text(9, 4)
    logits_TBV, hidden = model(x_TB)
    for lane in range(4):
        alone_TBV, own = model(x_TB[:, lane : lane + 1])
        beside = tuple(tuple(part_BH[lane : lane + 1] for part_BH in state) for state in hidden)
        assert_same((logits_TBV[:, lane : lane + 1], beside), (alone_TBV, own))


def test_no_state_is_kept_between_calls(cell: CellName) -> None:
    model = make(cell)
    x_TB = text(9, 2)
    first, _ = model(x_TB)
    model(text(5, 2))
    again, _ = model(x_TB)
    assert torch.equal(first, again)
    for state in model.initial_hidden(2):
        for part_BH in state:
            assert part_BH.shape == (2, H)
            assert not part_BH.any()


def test_detach_keeps_values_and_cuts_gradients(cell: CellName) -> None:
    model = make(cell)
    _, hidden = model(text(5, 2))
    cut = detach(hidden)
    for state, state_cut in zip(hidden, cut, strict=True):
        for part_BH, part_cut_BH in zip(state, state_cut, strict=True):
            assert torch.equal(part_BH, part_cut_BH)
            assert part_BH.requires_grad
            assert not part_cut_BH.requires_grad


def test_dropout_acts_in_training_only_and_never_on_the_state(cell: CellName) -> None:
    model = make(cell, layers=1, dropout=0.5)
    x_TB = text(400, 1)
    model.eval()
    assert torch.equal(model(x_TB)[0], model(x_TB)[0])
    model.train()
    torch.manual_seed(7)
    first, hidden = model(x_TB)
    second, _ = model(x_TB)
    assert not torch.equal(first, second)
    torch.manual_seed(7)
    again, _ = model(x_TB)
    assert torch.equal(first, again), "dropout draws from torch's own generator"
    # Dropout on the state would leave zeros in it; only the outputs may have zeros.
    assert all(part_BH.all() for state in hidden for part_BH in state)


def test_dropout_is_between_layers_and_before_the_head(cell: CellName) -> None:
    """Not on embeddings: each symbol is looked up once, so the whole window would miss it."""
    x_TB = text(9, 3)
    for layers in (1, 2):
        model = make(cell, layers, dropout=0.5)
        (trained_TBH, _), _ = model.train().read(x_TB), model.eval()
        assert torch.equal(trained_TBH, model.read(x_TB)[0]) == (layers == 1)


@pytest.mark.parametrize("layers", [1, 3])
def test_parameters_and_products_are_counted(cell: CellName, layers: int) -> None:
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[cell]
    biases = gates * H + (H if cell == "gru" else 0)
    widths = [E, H, H][:layers]
    products = sum(gates * H * (width + H) for width in widths) + V * H
    model = make(cell, layers)
    assert model.parameter_count() == V * E + products + layers * biases + V
    assert model.multiply_adds() == products


def test_an_outline_has_the_shapes_and_takes_no_memory(cell: CellName) -> None:
    model = CharModel(make(cell, 3, weight_drop=0.3).config)
    outlined = outline(model.config)
    shapes, weights = outlined.state_dict(), model.state_dict()
    assert [*shapes] == [*weights]
    for name, weight in weights.items():
        assert (shapes[name].shape, shapes[name].dtype) == (weight.shape, weight.dtype)
        assert shapes[name].is_meta
    assert outlined.parameter_count() == model.parameter_count()


def test_new_weights_beside_the_cells(cell: CellName) -> None:
    torch.manual_seed(1)
    model = CharModel(ModelConfig(cell=cell, vocabulary=300, layers=1, hidden=64, embedding=50))
    assert not model.head.bias.any()
    assert model.embedding.weight.std().item() == pytest.approx(1, rel=0.05)
    # Uniform between -1 / sqrt(H) and 1 / sqrt(H).
    assert model.head.weight.std().item() == pytest.approx((64 * 3) ** -0.5, rel=0.05)


def test_products_can_be_in_bfloat16_with_weights_in_float32(cell: CellName) -> None:
    model = make(cell).float()
    x_TB = text(9, 2)
    exact_TBV, _ = model(x_TB)
    model.compute_dtype = torch.bfloat16
    logits_TBV, hidden = model(x_TB)
    assert logits_TBV.dtype == torch.bfloat16
    assert {part_BH.dtype for state in hidden for part_BH in state} == {torch.float32}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    torch.testing.assert_close(logits_TBV.float(), exact_TBV, rtol=0.05, atol=0.05)


@needs_bf16
def test_the_carried_state_is_not_rounded(cell: CellName) -> None:
    """What a gate adds or removes in one step is often too small for bf16's 8 bits."""
    if loops() is None:
        pytest.skip("torch's operators return it in bf16")
    model = make(cell, layers=1).float()
    model.compute_dtype = torch.bfloat16
    x_TB = torch.full((40, 3), 4)  # one symbol, so W x + b is the same for windows of any length
    _, whole = model(x_TB)
    _, carried = model(x_TB[:1])
    for step in range(1, len(x_TB)):
        _, carried = model(x_TB[step : step + 1], carried)
    torch.testing.assert_close(carried, whole, rtol=1e-5, atol=1e-6)
