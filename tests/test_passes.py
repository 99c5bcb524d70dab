"""What an update does in compiled C, against the same in torch and numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from charrnn.compute import compiler, kernels, library
from charrnn.compute.kernels import dropout, mean_cross_entropy
from charrnn.compute.passes import Passes, passes
from charrnn.config import CellName, OptimiserName
from charrnn.network import optimiser
from charrnn.network.model import CharModel
from charrnn.network.optimiser import OPTIMISERS
from tests.conftest import needs_compiler, skip_without
from tests.small import make_model

pytestmark = needs_compiler

MACHINES = ["native", "x86-64-v2", "x86-64-v3", "x86-64-v4"]
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
#: How much the same arithmetic may differ: by a few roundings.
CLOSE = {torch.float32: 1e-6, torch.bfloat16: 2**-7}

_compiled: dict[str, Passes] = {}


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(4)


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the passes for a kind of processor, or skip the test if that is not possible."""
    name: str = request.param
    skip_without(name)
    if name not in _compiled:
        made = library.compile_library(Passes, compiler.find_compiler(), name)
        assert isinstance(made, Passes), made
        _compiled[name] = made
    monkeypatch.setitem(library._made, Passes, _compiled[name])


@contextmanager
def without_passes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "passes", lambda *_: None)
        patch.setattr(optimiser, "passes", lambda *_: None)
        yield


def both(function: Callable[[], Tensor | list[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return what a function computes, paired with what it computes without the passes."""
    results = []
    for compiled in (True, False):
        torch.manual_seed(3)
        if compiled:
            assert passes(torch.zeros(1)) is not None
            result = function()
        else:
            with without_passes():
                result = function()
        results.append([result] if isinstance(result, Tensor) else result)
    return list(zip(*results, strict=True))


# Fewer entries than are worked on together, just as many, and more, of several threads.
@each_dtype
@pytest.mark.parametrize("shape", [(7,), (1024,), (5, 3, 97), (2, 40_000)], ids=str)
@pytest.mark.parametrize(("share", "masks"), [(0.3, 1), (0.17, 2), (0.9, 3), (0.00001, 5)])
@pytest.mark.usefixtures("machine")
def test_dropout(dtype: torch.dtype, shape: tuple[int, ...], share: float, masks: int) -> None:
    x = torch.randn(shape).to(dtype).requires_grad_()
    d_out = torch.randn(masks * shape[0], *shape[1:]).to(dtype)

    def dropped() -> list[Tensor]:
        out = dropout(x, share, masks)
        return [out, *torch.autograd.grad(out, x, d_out)]

    (ours, theirs), (our_d, their_d) = both(dropped)
    assert ours.dtype == our_d.dtype == dtype
    assert torch.equal(ours, theirs), "each entry is dropped or kept alike"
    torch.testing.assert_close(our_d, their_d, rtol=CLOSE[dtype], atol=CLOSE[dtype])


@each_dtype
@pytest.mark.usefixtures("machine")
def test_dropout_of_what_is_not_contiguous(dtype: torch.dtype) -> None:
    x = torch.randn(7, 5).to(dtype).t().requires_grad_()
    d_out = torch.randn(7, 10).to(dtype).t()

    def dropped() -> list[Tensor]:
        out = dropout(x, 0.3, 2)
        return [out, *torch.autograd.grad(out, x, d_out)]

    for ours, theirs in both(dropped):
        torch.testing.assert_close(ours, theirs, rtol=CLOSE[dtype], atol=CLOSE[dtype])


@each_dtype
@pytest.mark.usefixtures("machine")
def test_what_is_no_number_stays_so(dtype: torch.dtype) -> None:
    """Dropped or not: so an update that went wrong is seen."""
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0]).to(dtype).repeat(50)
    for ours, theirs in both(lambda: dropout(x, 0.5)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        assert ours[::4].isnan().all()


@pytest.mark.usefixtures("machine")
def test_a_number_that_is_none_stays_so_in_bf16() -> None:
    """All its bits are set, so rounding it like a number would give -0."""
    compiled = passes(torch.zeros(1))
    assert compiled is not None
    none = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    grads = none.repeat(12, 5), none.repeat(12, 3)
    means = torch.zeros(12, 5), torch.zeros(12, 3)
    bands_KRC = compiled.muon_gather(grads, means, 3, 0.95, 1.01, torch.bfloat16)
    assert bands_KRC.isnan().all()


@each_dtype
@pytest.mark.parametrize(("predictions", "symbols"), [(1, 1), (13, 7), (700, 66), (9, 3767)])
@pytest.mark.usefixtures("machine")
def test_cross_entropy(dtype: torch.dtype, predictions: int, symbols: int) -> None:
    numbers_NV = (4 * torch.randn(predictions, symbols)).to(dtype)
    targets_N = torch.randint(symbols, (predictions,))

    def priced() -> list[Tensor]:
        logits_NV = numbers_NV.clone().requires_grad_()
        loss = mean_cross_entropy(logits_NV * 1, targets_N)
        return [loss.detach(), *torch.autograd.grad(loss, logits_NV)]

    (ours, theirs), (our_d, their_d) = both(priced)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert our_d.dtype == dtype
    torch.testing.assert_close(our_d, their_d, rtol=4 * CLOSE[dtype], atol=1e-7)


@each_dtype
@pytest.mark.usefixtures("machine")
def test_a_certain_prediction_costs_nothing_however_large_its_logit(dtype: torch.dtype) -> None:
    logits_NV = torch.zeros(5, 67, dtype=dtype)
    logits_NV[:, 66] = 3e9
    logits_NV.requires_grad_()
    loss = mean_cross_entropy(logits_NV * 1, torch.full((5,), 66))
    (d_NV,) = torch.autograd.grad(loss, logits_NV)
    assert loss == 0
    assert d_NV.abs().max() < 1e-30


@each_dtype
@pytest.mark.usefixtures("machine")
def test_the_price_of_what_is_no_number_is_none(dtype: torch.dtype) -> None:
    for broken in (math.nan, math.inf):
        logits_NV = torch.zeros(5, 67, dtype=dtype)
        logits_NV[3, 66] = broken
        logits_NV.requires_grad_()
        loss = mean_cross_entropy(logits_NV * 1, torch.zeros(5, dtype=torch.int64))
        (d_NV,) = torch.autograd.grad(loss, logits_NV)
        assert loss.isnan()
        assert d_NV[3].isnan().any()
        assert d_NV[[0, 1, 2, 4]].isfinite().all()


def moved(
    name: OptimiserName, hidden: int, embedding: int, bf16: bool, cell: CellName = "lstm"
) -> list[Tensor]:
    """Return weights and state after some updates."""
    model = make_model(cell, hidden=hidden, embedding=embedding, vocabulary=9).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimiser, "multiplies_bf16", lambda device: bf16)
        rule = OPTIMISERS[name](model, weight_decay=0.3)
    for update in range(1, 4):
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=_seeded(update))
            weight.grad[0] *= 1e-6  # so small that AdamW's epsilon matters
        rule.set_rates(0.03 / update, 0.007 * update)
        rule.step()
    return [*(weight.detach() for weight in model.parameters()), *rule.state().values()]


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# One band; two, of which the second is padded; more entries than one thread takes.
@pytest.mark.parametrize(("hidden", "embedding"), [(7, 4), (53, 9), (200, 6)])
@pytest.mark.parametrize(("name", "of"), [("muon", "lstm"), ("muon", "rnn"), ("adamw", "lstm")])
@pytest.mark.usefixtures("machine")
def test_updates(
    name: OptimiserName, of: CellName, hidden: int, embedding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimiser, "BAND", 32 if hidden == 53 else 192)
    for ours, theirs in both(lambda: moved(name, hidden, embedding, bf16=False, cell=of)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)


@pytest.mark.usefixtures("machine")
def test_updates_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimiser, "BAND", 32)
    for ours, theirs in both(lambda: moved("muon", 53, 9, bf16=True)):
        # A row of a move has norm 1 / 0.6: three of them at rates of 0.03 and less.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.0033)


def test_a_band_of_zeros_moves_nothing() -> None:
    model = make_model("rnn", hidden=7, embedding=4, vocabulary=9).float()
    before = [weight.detach().clone() for weight in model.parameters()]
    rule = OPTIMISERS["muon"](model)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    rule.set_rates(0.1, 0.1)
    rule.step()
    for weight, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight, was)


@each_dtype
@pytest.mark.usefixtures("threads")
def test_threads_change_no_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charrnn.compute.passes._EACH", 1)
    x = torch.randn(3, 5001).to(dtype).requires_grad_()
    d_out = torch.randn(6, 5001).to(dtype)
    pair = torch.randn(4 * 53, 9), torch.randn(4 * 53, 53)
    compiled = passes(pair[0])
    assert compiled is not None
    results = []
    for number in (1, 2, 3, 5):
        torch.set_num_threads(number)
        torch.manual_seed(3)
        out = dropout(x, 0.3, 2)
        loss = mean_cross_entropy(x * 1, torch.arange(3))
        (w, u), means = [[each.clone() for each in pair] for _ in range(2)]
        bands_KRC = compiled.muon_gather(pair, means, 32, 0.95, 1.01, dtype)
        compiled.muon_move((w, u), pair, bands_KRC, 0.1)
        square = means[1].square()
        compiled.adam(pair[1], means[1], square, u, (0.9, 0.99), 0.5, 0.1)
        gradients = *torch.autograd.grad(out, x, d_out), *torch.autograd.grad(loss, x)
        results.append([out, loss, *gradients, bands_KRC, w, u, *means, square])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_what_c_would_misread_is_refused() -> None:
    compiled = passes(torch.zeros(1))
    assert compiled is not None
    one = torch.zeros(5, 7)
    with pytest.raises(TypeError, match="contiguous"):
        compiled.adam(one.t(), one, one, one, (0.9, 0.99), 1.0, 0.1)
    for other in (one.double(), one.bfloat16()):
        with pytest.raises(TypeError, match="float32"):
            compiled.adam(other, one, one, one, (0.9, 0.99), 1.0, 0.1)
    with pytest.raises(TypeError, match="on a CPU"):
        compiled.adam(one.to("meta"), one, one, one, (0.9, 0.99), 1.0, 0.1)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_model_in_bf16_learns_without_c(name: OptimiserName) -> None:
    """Its weights are not what C would read."""
    model = make_model("gru", 1).bfloat16()
    with without_passes():
        expected = [weight.clone() for weight in stepped(name, model)]
    model = make_model("gru", 1).bfloat16()
    for ours, slow in zip(stepped(name, model), expected, strict=True):
        assert torch.equal(ours, slow)


def stepped(name: OptimiserName, model: CharModel) -> list[Tensor]:
    """Return the weights after a step of an optimiser along gradients of 1."""
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    rule = OPTIMISERS[name](model)
    rule.set_rates(0.1, 0.1)
    rule.step()
    return list(model.parameters())


def test_nothing_is_dropped_of_nothing() -> None:
    assert dropout(torch.zeros(0, 3), 0.3, 2).shape == (0, 3)


def test_other_tensors_have_no_passes() -> None:
    assert passes(torch.zeros(1, dtype=torch.float64)) is None
    assert passes(torch.zeros(1, device="meta")) is None


def test_the_default_type_of_the_process_does_not_matter() -> None:
    def computed() -> list[Tensor]:
        torch.manual_seed(3)
        logits_NV = torch.randn(9, 7, dtype=torch.float32).requires_grad_()
        loss = mean_cross_entropy(logits_NV * 1, torch.arange(9) % 7)
        return [loss, *torch.autograd.grad(loss, logits_NV)]

    expected = computed()
    torch.set_default_dtype(torch.bfloat16)
    try:
        for ours, theirs in zip(computed(), expected, strict=True):
            assert torch.equal(ours, theirs)
    finally:
        torch.set_default_dtype(torch.float32)
