"""The step of one character against the model's own forward."""

import numpy as np
import pytest
import torch

from charrnn.config import CELL_NAMES, CellName, ModelConfig
from charrnn.model import CharModel
from charrnn.stepper import Stepper


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_steps_give_the_logits_of_one_forward(cell: CellName, layers: int) -> None:
    torch.manual_seed(3)
    shape = ModelConfig(cell=cell, vocabulary=11, layers=layers, hidden=7, embedding=5)
    model = CharModel(shape).eval()
    for bias in (parameter for name, parameter in model.named_parameters() if "bias" in name):
        torch.nn.init.normal_(bias)
    text_TB = torch.randint(0, 11, (9, 4))
    with torch.inference_mode():
        _, hidden = model(text_TB[:3])
        expected_TBV, _ = model(text_TB[3:], hidden)

    stepper = Stepper(model, hidden)
    got_TBV = np.stack([stepper.step(symbols_B.numpy()) for symbols_B in text_TB[3:]])

    np.testing.assert_allclose(got_TBV, expected_TBV.numpy(), atol=2e-6)
