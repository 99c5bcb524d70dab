from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from charrnn import optimiser as module
from charrnn.config import CellName, OptimiserName
from charrnn.model import CharModel
from charrnn.optimiser import OPTIMISERS, POLAR_EXPRESS, MuonAdamW, SoapAdamW, orthogonalise
from tests.small import make_model

Array = npt.NDArray[np.float64]


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
    for result_RC, matrix_RC in zip(orthogonalise(matrices_NRC), matrices_NRC, strict=True):
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
    singular_R = torch.linalg.svdvals(orthogonalise((u_RR * values_R)[None])[0])
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

    def seen(matrices_NRC: Tensor, *rest: Any) -> Tensor:
        computed.add(matrices_NRC.dtype)
        return orthogonalise(matrices_NRC, *rest)

    monkeypatch.setattr(module, "multiplies_bf16", lambda _device: able)
    monkeypatch.setattr(module, "orthogonalise", seen)
    model = make("gru").float()
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    MuonAdamW(model).step()
    assert computed == {torch.bfloat16 if able else torch.float32}


def test_orthogonalise_does_not_care_for_scale_and_takes_zero() -> None:
    matrices_NRC = random(2, 4, 6)
    scaled = orthogonalise(matrices_NRC * 1e-3)
    torch.testing.assert_close(scaled, orthogonalise(matrices_NRC), rtol=1e-3, atol=1e-4)
    assert not orthogonalise(torch.zeros(2, 4, 6)).any()


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
            size = lr * math.sqrt(both.shape[1] / 7)
            for name, moves in zip(names, (slice(-7), slice(-7, None)), strict=True):
                expected[name] -= torch.cat(
                    [
                        size * by_singular_values(band)[:, moves]
                        for band in torch.split(both, heights)
                    ]
                )
        for group in adam.param_groups:
            group["lr"] = lr_adam
        adam.step()
        optimiser.set_rates(lr, lr_adam)
        optimiser.step()
    for name, weight in model.named_parameters():
        twin = expected[name] if is_matrix(name) else adam_weights[name]
        # The step count is a float32, so the bias correction is accurate to 1e-6.
        torch.testing.assert_close(weight, twin, rtol=1e-5, atol=1e-7, msg=name)


class SoapByHand:
    """SOAP of one side for one layer, an entry at a time; its basis turns in every third update."""

    def __init__(self, rows: int, columns: int) -> None:
        self.updates = 0
        self.covariance = np.zeros((columns, columns))
        self.basis = np.eye(columns)
        self.mean = np.zeros((rows, columns))
        self.square = np.zeros((rows, columns))

    def move(self, grad: Array, gates: int) -> Array:
        """Return how an update moves [W U] at a rate of 1."""
        rows, columns = grad.shape
        if self.updates % 2 == 0:
            for i, j in product(range(columns), repeat=2):
                now = sum(grad[row, i] * grad[row, j] for row in range(rows))
                self.covariance[i, j] += 0.05 * (now - self.covariance[i, j])
        if self.updates % 3 == 0:
            _, basis = np.linalg.eigh(self.covariance)
            mean, square = self.mean.copy(), self.square.copy()
            for row, j in product(range(rows), range(columns)):
                # The cosine between each vector of the old basis and the new vector j.
                cosines = [self.basis[:, i] @ basis[:, j] for i in range(columns)]
                self.mean[row, j] = sum(m * c for m, c in zip(mean[row], cosines, strict=True))
                self.square[row, j] = sum(
                    s * c**2 for s, c in zip(square[row], cosines, strict=True)
                )
            self.basis = basis
        self.updates += 1
        move = np.zeros_like(grad)
        for row, j in product(range(rows), range(columns)):
            turned = grad[row] @ self.basis[:, j]
            self.mean[row, j] += 0.05 * (turned - self.mean[row, j])
            self.square[row, j] += 0.05 * (turned**2 - self.square[row, j])
            ahead = 0.05 * turned + 0.95 * self.mean[row, j]
            move[row] += self.basis[:, j] * ahead / (math.sqrt(self.square[row, j]) + 1e-12)
        for gate in np.split(move, gates):  # views
            gate *= math.sqrt(len(gate)) / math.sqrt((gate**2).sum())
        scaled: Array = move * math.sqrt(columns / (rows / gates))
        return scaled


@pytest.mark.parametrize("embedding", [4, 7])
def test_soap_equals_the_definition(
    cell: CellName, embedding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TURN", 3)
    model, other = make(cell, embedding), make(cell, embedding)
    optimiser = SoapAdamW(model, weight_decay=0.3)
    rest = MuonAdamW(other)  # of which only AdamW's part is looked at
    gates = model.layers()[0].gates
    layers = ("cells.0", "cells.1")
    columns = {"cells.0": embedding + 7, "cells.1": 7 + 7}
    by_hand = {layer: SoapByHand(7 * gates, columns[layer]) for layer in layers}
    state = {name: tensor.clone() for name, tensor in optimiser.state().items()}
    for layer, one in by_hand.items():
        # Not of zero rank: where it has no extent, any basis is as good as another.
        wide = random(3 * columns[layer], columns[layer], seed=len(layer))
        state[f"covariance.{layer}.weight_recurrent"] = wide.mT @ wide
        one.covariance += (wide.mT @ wide).numpy()
    optimiser.load_state(state)
    named = dict(model.named_parameters())
    expected = {name: weight.detach().numpy().copy() for name, weight in named.items()}
    for update in range(1, 8):
        lr, lr_adam = 0.03 / update, 0.007 * update
        set_gradients(model, update)
        set_gradients(other, update)
        for layer in layers:
            names = (f"{layer}.weight_input", f"{layer}.weight_recurrent")
            grads = [named[name].grad for name in names]
            both = np.concatenate([grad.numpy() for grad in grads if grad is not None], axis=1)
            move = by_hand[layer].move(both, gates)
            for name, part in zip(names, (move[:, :-7], move[:, -7:]), strict=True):
                expected[name] = (1 - 0.3 * lr) * expected[name] - lr * part
        for rule in (optimiser, rest):
            rule.set_rates(lr, lr_adam)
            rule.step()
    for name, weight in other.named_parameters():
        twin = torch.from_numpy(expected[name]) if is_matrix(name) else weight
        torch.testing.assert_close(named[name], twin, rtol=1e-6, atol=1e-8, msg=name)


def test_soap_takes_any_gradient() -> None:
    """None at all moves nothing; one whose square is too large moves nothing for a while."""
    model = make("gru").float()
    optimiser = SoapAdamW(model)
    optimiser.set_rates(0.1, 0.1)
    before = [weight.detach().clone() for weight in model.parameters()]
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimiser.step()
    for weight, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight, old)
    for factor in (1e30, *[1.0] * 2 * module.TURN):
        for index, weight in enumerate(model.parameters()):
            weight.grad = factor * random(*weight.shape, seed=index).float()
        optimiser.step()
        assert all(weight.isfinite().all() for weight in model.parameters())
    for name, tensor in optimiser.state().items():
        assert tensor.isfinite().all() or name.startswith(("square", "mean")), name


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


def test_soap_in_bf16_is_soap_but_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: dict[bool, Tensor] = {}
    for able in (True, False):
        monkeypatch.setattr(module, "multiplies_bf16", lambda _device, able=able: able)
        model = make("lstm").float()
        optimiser = SoapAdamW(model)
        optimiser.set_rates(1.0, 1.0)
        weight = model.layers()[1].weight_recurrent
        before = weight.detach().clone()
        for index, one in enumerate(model.parameters()):
            one.grad = random(*one.shape, seed=index).float()
        optimiser.step()
        moved[able] = weight.detach() - before
    difference = (moved[True] - moved[False]).norm() / moved[False].norm()
    assert 0 < difference < 0.1


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
