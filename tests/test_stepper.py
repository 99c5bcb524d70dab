"""The step of one character against the model's own forward."""

import copy
import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from charrnn import kernels, stepper
from charrnn.config import CELL_NAMES, CellName, ModelConfig, WeightsName
from charrnn.model import CharModel, Hidden
from charrnn.stepper import Stepper


def make_model(cell: CellName, layers: int, hidden: int = 7) -> CharModel:
    torch.manual_seed(3)
    shape = ModelConfig(cell=cell, vocabulary=11, layers=layers, hidden=hidden, embedding=5)
    model = CharModel(shape).eval()
    for bias in (parameter for name, parameter in model.named_parameters() if "bias" in name):
        torch.nn.init.normal_(bias)
    return model


@torch.inference_mode()
def forward(model: CharModel, lanes: int) -> tuple[torch.Tensor, Hidden, torch.Tensor]:
    """Return a text [T, B], the state before it, and the logits of the model's forward."""
    text_TB = torch.randint(0, 11, (9, lanes), generator=torch.Generator().manual_seed(4))
    _, hidden = model(text_TB[:3])
    logits_TBV, _ = model(text_TB[3:], hidden)
    return text_TB[3:], hidden, logits_TBV


def steps(predictor: Stepper, text_TB: torch.Tensor) -> NDArray[np.float32]:
    return np.stack([predictor.step(symbols_B.numpy()) for symbols_B in text_TB])


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_steps_give_the_logits_of_one_forward(cell: CellName, layers: int, lanes: int) -> None:
    model = make_model(cell, layers)
    text_TB, hidden, expected_TBV = forward(model, lanes)
    got_TBV = steps(Stepper(model, hidden), text_TB)
    np.testing.assert_allclose(got_TBV, expected_TBV.numpy(), atol=2e-6)


@pytest.mark.parametrize(("cell", "hidden"), [("rnn", 367), ("lstm", 190), ("gru", 211)])
@pytest.mark.parametrize("maker", ["GenuineIntel", None])
def test_a_lane_s_products_are_right_whoever_makes_them(
    cell: CellName, hidden: int, maker: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(cell, 2, hidden)
    assert all(layer.weight_recurrent.numel() in stepper._FOR_MKL for layer in model.layers())
    by_torch = Mock(wraps=torch.mv)
    monkeypatch.setattr(stepper, "vendor", lambda: maker)
    monkeypatch.setattr(torch, "mv", by_torch)
    text_TB, state, expected_TBV = forward(model, 1)
    got_TBV = steps(Stepper(model, state), text_TB)
    np.testing.assert_allclose(got_TBV, expected_TBV.numpy(), atol=1e-5)
    assert by_torch.called == (maker is not None)
    sizes = {call.args[0].numel() for call in by_torch.call_args_list}
    assert sizes <= set(stepper._FOR_MKL), "numpy is faster with others"


@pytest.mark.parametrize("rows", [7, 20, 21, 42])
def test_a_product_in_pieces_is_the_product(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenBLAS leaves each of them to one thread."""
    monkeypatch.setattr(stepper, "_SHARED", 63)
    monkeypatch.setattr(stepper, "_ALONE", 126)
    weight_NK = torch.randn(rows, 3, generator=torch.Generator().manual_seed(5))
    x_BK = np.array([[0.5, -2, 3]], np.float32)
    pieces = stepper._pieces(weight_NK.numel())
    assert pieces == {7: 1, 20: 1, 21: 2, 42: 3}[rows]
    assert all(piece_NK.numel() < 63 for piece_NK in weight_NK.chunk(pieces))
    product = stepper._product(weight_NK, 1, "fp32")
    np.testing.assert_allclose(product(x_BK), x_BK @ weight_NK.numpy().T, rtol=1e-6)
    monkeypatch.setattr(stepper, "_ALONE", 125)
    assert stepper._pieces(42 * 3) == 1


@pytest.mark.parametrize("cell", CELL_NAMES)
def test_wide_layers_of_many_lanes_have_packed_products(
    cell: CellName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepper, "vendor", lambda: "GenuineIntel")
    packed = Mock(wraps=kernels._ONEDNN._reorder_linear_weight)
    monkeypatch.setattr(kernels._ONEDNN, "_reorder_linear_weight", packed)
    model = make_model(cell, 2, hidden=190)
    text_TB, hidden, expected_TBV = forward(model, 5)
    got_TBV = steps(Stepper(model, hidden), text_TB)
    assert packed.called == kernels._HAS_ONEDNN
    np.testing.assert_allclose(got_TBV, expected_TBV.numpy(), atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(7, 5), (33, 45), (64, 96)])
def test_a_product_of_8_bits_has_whole_blocks(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would read beyond the end of others, which shows in no result but by chance."""
    product = Mock(wraps=torch.ops.aten._weight_int8pack_mm)
    monkeypatch.setattr(torch.ops.aten, "_weight_int8pack_mm", product)
    weight_NK = torch.ones(rows, columns)
    stepper._product(weight_NK, 1, "int8")(np.ones((1, columns), np.float32))
    (x_BK, whole_NK, scale_N), _ = product.call_args
    blocks = [32 * math.ceil(size / 32) for size in (rows, columns)]
    assert [*whole_NK.shape] == [len(scale_N), x_BK.shape[1]] == blocks


def rounded(weight_NK: torch.Tensor, weights: WeightsName) -> torch.Tensor:
    """Return a matrix as it is after it was written in fewer bits."""
    if weights == "bf16":
        return weight_NK.bfloat16().float()
    rows = []
    for row_K in weight_NK:
        scale = (row_K.abs().max() / 127).bfloat16().float()
        rows.append(scale * (row_K / scale).round().clamp(-127, 127))
    return torch.stack(rows)


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("weights", ["bf16", "int8"])
@pytest.mark.parametrize(("rows", "columns"), [(7, 5), (33, 45), (64, 96)])
def test_a_product_reads_the_rounded_weights(
    rows: int, columns: int, weights: WeightsName, lanes: int
) -> None:
    """One weight a time: what is multiplied by 1 comes out as it was written."""
    weight_NK = torch.randn(rows, columns, generator=torch.Generator().manual_seed(5))
    weight_NK[:, 2] = 100  # beside it, what is below 100 / 127 / 2 is nothing in 8 bits
    weight_NK[:, 3] = 0.3
    product = stepper._product(weight_NK, lanes, weights)
    expected_NK = rounded(weight_NK, weights)
    if weights == "int8":
        assert not expected_NK[:, 3].any()
    for column in range(columns):
        x_BK = np.zeros((lanes, columns), np.float32)
        x_BK[-1, column] = 1
        out_BN = product(x_BK)
        assert not out_BN[:-1].any()
        # The sums of 8-bit weights leave torch in bf16.
        tolerance = 2**-8 if weights == "int8" else 0
        np.testing.assert_allclose(out_BN[-1], expected_NK[:, column], rtol=tolerance, atol=0)


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("weights", ["bf16", "int8"])
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_smaller_weights_are_the_rounded_ones(
    cell: CellName, weights: WeightsName, lanes: int
) -> None:
    model = make_model(cell, 2)
    text_TB, hidden, exact_TBV = forward(model, lanes)
    other = copy.deepcopy(model)
    with torch.no_grad():
        # The lowest input product is a table, in full precision.
        lowest, upper = other.layers()
        for weight in (
            lowest.weight_recurrent,
            upper.weight_input,
            upper.weight_recurrent,
            other.head.weight,
        ):
            weight.copy_(rounded(weight, weights))
        expected_TBV = other(text_TB, hidden)[0].numpy()

    got_TBV = steps(Stepper(model, hidden, weights), text_TB)

    # States are rounded to bf16, 8 bits of them, before they are multiplied.
    np.testing.assert_allclose(got_TBV, expected_TBV, atol=0.03)
    assert np.abs(got_TBV - exact_TBV.numpy()).max() > 1e-4, "something was rounded"
