from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from charrnn.config import CellName, OptimiserName
from charrnn.network import optimiser as module
from charrnn.network.model import CharModel
from charrnn.network.optimiser import (
    OPTIMISERS,
    POLAR_EXPRESS,
    MuonAdamW,
    cautious,
    newton_schulz,
    orthogonalise,
)  # fmt: skip
from tests.small import make_model


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_singular_values(matrix_RC: Tensor) -> Tensor:
    """Orthogonalise by the definition: apply the quintics to each singular value."""
    u, s, v = torch.linalg.svd(matrix_RC, full_matrices=False)
    s = s / (1.01 * s.square().sum().sqrt() + 1e-12)
    for a, b, c in POLAR_EXPRESS:
        s = a * s + b * s**3 + c * s**5
    result: Tensor = u @ torch.diag(s) @ v
    return result


@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (9, 5), (1, 6), (6, 1)])
def test_orthogonalise_moves_the_singular_values_alone(shape: tuple[int, int]) -> None:
    matrices_NRC = random(3, *shape)
    for result_RC, matrix_RC in zip(
        orthogonalise(matrices_NRC, shape[0]), matrices_NRC, strict=True
    ):
        torch.testing.assert_close(result_RC, by_singular_values(matrix_RC), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "band", "heights"),
    [
        ((7, 9), 3, [3, 3, 1]),
        ((10, 7), 3, [3, 3, 3, 1]),
        ((8, 8), 4, [4, 4]),
        ((8, 11), 7, [4, 4]),
        ((5, 9), 1, [1] * 5),
        ((5, 9), 5, [5]),
        ((5, 9), 128, [5]),
        ((45, 60), 20, [15, 15, 15]),
        ((45, 60), 32, [32, 13]),
        ((50, 60), 20, [32, 18]),
        ((45, 60), 45, [45]),
    ],
)
def test_bands_are_orthogonalised_by_themselves(
    shape: tuple[int, int], band: int, heights: list[int]
) -> None:
    matrices_NRC = random(2, *shape)
    for result_RC, matrix_RC in zip(orthogonalise(matrices_NRC, band), matrices_NRC, strict=True):
        bands = [by_singular_values(rows) for rows in matrix_RC.split(heights)]
        torch.testing.assert_close(result_RC, torch.cat(bands), rtol=1e-8, atol=1e-9)


def test_small_singular_values_come_near_1() -> None:
    values_R = torch.logspace(-2.2, 0, 40, dtype=torch.float64)
    values_R /= values_R.norm()  # the smallest is above 0.001
    u_RR, _ = torch.linalg.qr(random(40, 40, seed=3))
    singular_R = torch.linalg.svdvals(orthogonalise((u_RR * values_R)[None], 40)[0])
    assert singular_R.min() > 0.13
    assert singular_R.max() < 1.87


def test_in_bf16_the_iteration_mends_its_rounding() -> None:
    matrices_NRC = random(2, 193, 257).bfloat16()
    for result_RC, matrix_RC in zip(
        orthogonalise(matrices_NRC, 192).double(), matrices_NRC.double(), strict=True
    ):
        for result, rows in zip(result_RC.split(112), matrix_RC.split(112), strict=True):
            exact = by_singular_values(rows)
            assert (result - exact).norm() < 0.05 * exact.norm()
            assert torch.linalg.svdvals(result).max() < 2


@pytest.mark.parametrize("able", [True, False])
def test_products_are_in_bf16_where_the_hardware_has_them(
    monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    computed: set[torch.dtype] = set()

    def seen(bands_KRC: Tensor) -> Tensor:
        computed.add(bands_KRC.dtype)
        return newton_schulz(bands_KRC)

    monkeypatch.setattr(module, "multiplies_bf16", lambda _device: able)
    monkeypatch.setattr(module, "newton_schulz", seen)
    model = make("gru").float()
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    MuonAdamW(model).step()
    assert computed == {torch.bfloat16 if able else torch.float32}


def test_orthogonalise_does_not_care_for_scale_and_takes_zero() -> None:
    matrices_NRC = random(2, 4, 6)
    scaled = orthogonalise(matrices_NRC * 1e-3, 4)
    torch.testing.assert_close(scaled, orthogonalise(matrices_NRC, 4), rtol=1e-3, atol=1e-4)
    assert not orthogonalise(torch.zeros(2, 4, 6), 4).any()


def test_moves_against_the_gradient_s_sign_are_left_out() -> None:
    moves = torch.tensor([1.0, -2, 3, 4, -5, 0])
    grads = torch.tensor([9.0, 9, 1e-9, 0, -9, 9])
    expected = torch.tensor([1, 0, 3, 0, -5, 0]) / 0.605
    torch.testing.assert_close(cautious(moves, grads), expected)


def make(cell: CellName, embedding: int = 4) -> CharModel:
    return make_model(cell, hidden=7, embedding=embedding, vocabulary=9)


def set_gradients(model: CharModel, seed: int) -> None:
    for index, weight in enumerate(model.parameters()):
        grad = random(*weight.shape, seed=100 * seed + index)
        grad[0] *= 1e-8  # so small that AdamW's epsilon matters
        weight.grad = grad


def is_matrix(name: str) -> bool:
    """Return whether Muon updates a weight: only the recurrent layers' matrices."""
    return name.endswith(("weight_input", "weight_recurrent"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.3},
        {"weight_decay": 0.3, "decay_embedding": True},
        {"BAND": 4},
    ],
)
@pytest.mark.parametrize("embedding", [4, 7])  # layers with matrices of two shapes, and of one
def test_several_updates_equal_the_definition(
    cell: CellName, options: dict[str, Any], embedding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(cell, embedding)
    if "BAND" in options:
        monkeypatch.setattr(module, "BAND", options["BAND"])
    optimiser = MuonAdamW(model, **{n: value for n, value in options.items() if n != "BAND"})
    expected = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    momenta = {name: torch.zeros_like(weight) for name, weight in expected.items()}
    adam_weights = {n: torch.nn.Parameter(w.clone()) for n, w in expected.items()}
    adam = torch.optim.AdamW(
        [weight for name, weight in adam_weights.items() if not is_matrix(name)],
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0,
    )
    gates = model.layers()[0].gates
    beta = 0.95
    for update in range(1, 5):
        lr, lr_adam = 0.03 / update, 0.007 * update
        set_gradients(model, update)
        nesterov: dict[str, Tensor] = {}
        for name, weight in model.named_parameters():
            grad = adam_weights[name].grad = weight.grad
            kept = 1 - lr * options.get("weight_decay", 0.0)
            if not is_matrix(name):
                if options.get("decay_embedding") and weight.dim() == 2:
                    adam_weights[name].data *= kept
                continue
            assert grad is not None
            momenta[name] = beta * momenta[name] + (1 - beta) * grad
            nesterov[name] = beta * momenta[name] + (1 - beta) * grad
            expected[name] *= kept
        # Each gate's [W U] is a matrix of its own with 7 rows: two bands if each has at most 4.
        heights = gates * ([4, 3] if "BAND" in options else [7])
        for layer in ("cells.0", "cells.1"):
            names = (f"{layer}.weight_input", f"{layer}.weight_recurrent")
            both = torch.cat([nesterov[name] for name in names], dim=1)
            moves = torch.cat([by_singular_values(band) for band in torch.split(both, heights)])
            grads = torch.cat([adam_weights[name].grad for name in names], dim=1)  # type: ignore[misc]
            moves *= lr * math.sqrt(both.shape[1] / 7)
            if cell != "rnn":
                moves[moves.sign() != grads.sign()] = 0
                moves /= 0.605
            expected[names[0]] -= moves[:, :-7]
            expected[names[1]] -= moves[:, -7:]
        for group in adam.param_groups:
            group["lr"] = lr_adam
        adam.step()
        optimiser.set_rates(lr, lr_adam)
        optimiser.step()
    for name, weight in model.named_parameters():
        twin = expected[name] if is_matrix(name) else adam_weights[name]
        # The step count is a float32, so the bias correction is accurate to 1e-6.
        torch.testing.assert_close(weight, twin, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize(("weight_decay", "everything"), [(0.0, True), (0.3, False), (0.3, True)])
def test_one_rule_for_all_weights_is_torch_s(
    name: OptimiserName, weight_decay: float, everything: bool
) -> None:
    model, other = make("lstm"), make("lstm")
    optimiser = OPTIMISERS[name](model, weight_decay=weight_decay, decay_embedding=everything)
    named = list(other.named_parameters())
    groups: list[dict[str, Any]] = [{"params": []}, {"params": []}, {"params": []}]
    for n, weight in named:
        kind = 0 if is_matrix(n) else 1 if everything and weight.dim() == 2 else 2
        groups[kind]["params"].append(weight)
    twin = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8)
    for update in range(1, 5):
        rates = (0.03 / update, 0.007 * update)
        set_gradients(model, update)
        set_gradients(other, update)
        decay = rates[0] * weight_decay  # the same for weights of either rate
        for group, rate, decayed in zip(
            twin.param_groups, (*rates, rates[1]), (decay, decay, 0.0), strict=True
        ):
            group["lr"], group["weight_decay"] = rate, decayed / rate
        if name == "adamw":
            twin.step()
        else:
            with torch.no_grad():
                for group in twin.param_groups:
                    for weight in group["params"]:
                        assert weight.grad is not None
                        weight.mul_(1 - group["lr"] * group["weight_decay"])
                        weight.sub_(group["lr"] * weight.grad)
        optimiser.set_rates(*rates)
        optimiser.step()
    for weight, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-7)


def test_a_state_that_does_not_fit_is_refused() -> None:
    optimiser = MuonAdamW(make("rnn"))
    state = {name: tensor.clone() for name, tensor in optimiser.state().items()}
    for change, words in (
        ({"momentum.extra": torch.zeros(2)}, "unknown optimiser state momentum.extra"),
        ({"updates": torch.zeros(3)}, r"^optimiser state updates is \[3\], the run needs \[\]$"),
    ):
        with pytest.raises(ValueError, match=words):
            optimiser.load_state({**state, **change})
    del state["updates"]
    with pytest.raises(ValueError, match="missing optimiser state updates"):
        optimiser.load_state(state)
