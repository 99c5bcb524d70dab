"""The head's product and the loss against torch's own; the loops are tested with the cells."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from charrnn.compute import kernels, recurrence
from charrnn.compute.kernels import dropout, linear, mean_cross_entropy

T, B, K, N = 5, 3, 7, 11
#: Error allowed in a sum of a few products, by the type of the arithmetic.
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}
DTYPES = pytest.mark.parametrize("dtype", CLOSE, ids=str)


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute with and without compiled C, which has no float64."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "passes", lambda like: None)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


class TestLinear:
    @pytest.fixture(params=["GenuineIntel", None], autouse=True)
    def maker(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
        """The processor's maker, which decides whose product it is."""
        maker: str | None = request.param
        monkeypatch.setattr(kernels, "vendor", lambda: maker)
        return maker

    @pytest.fixture(params=[True, False], ids=["compiled", "no compiler"], autouse=True)
    def compiled(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
        if not request.param:
            monkeypatch.setattr(recurrence, "loops", lambda: None)
        return recurrence.loops() is not None

    def test_is_mkl_s_on_intel_s_processors_and_onednn_s_on_others(
        self, maker: str | None, compiled: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = mock.Mock(wraps=kernels._ONEDNN._linear_pointwise)
        monkeypatch.setattr(kernels._ONEDNN, "_linear_pointwise", ours)
        for dtype in (torch.float32, torch.bfloat16):
            weight_NK = random(N, K).requires_grad_()
            linear(random(T, B, K, dtype=dtype), weight_NK, random(N)).sum().backward()
        takes_bf16 = kernels._onednn_takes_bf16()
        # In float32 the output, and the weights' gradient where C does not make it.
        wide = 0 if maker else 1 if compiled else 2
        assert ours.call_count == takes_bf16 + wide

    @DTYPES
    @pytest.mark.parametrize("rows", [(T, B), (T,)], ids=str)
    def test_agrees_with_torch_in_value_and_gradients(
        self, rows: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        of_weights = torch.float64 if dtype == torch.float64 else torch.float32
        x = random(*rows, K, dtype=dtype).requires_grad_()
        weight_NK = random(N, K, dtype=of_weights, seed=2).requires_grad_()
        bias_N = random(N, dtype=of_weights, seed=3).requires_grad_()
        d_out = random(*rows, N, dtype=dtype, seed=4)
        tensors = (x, weight_NK, bias_N)

        out = linear(*tensors)
        gradients = torch.autograd.grad(out, tensors, d_out)

        exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
        expected_out = F.linear(*exact)
        expected = torch.autograd.grad(expected_out, exact, d_out.double())
        assert out.dtype == dtype
        for got, tensor in zip(gradients, tensors, strict=True):
            assert got.dtype == tensor.dtype
        for got, wanted in zip((out, *gradients), (expected_out, *expected), strict=True):
            scale = float(wanted.detach().abs().max())
            torch.testing.assert_close(got.double(), wanted, atol=CLOSE[dtype] * scale, rtol=0)
        # The bias's gradient is a sum without further rounding.
        torch.testing.assert_close(gradients[2].double(), expected[2], rtol=0, atol=1e-5)

    def test_inputs_may_need_no_gradient(self) -> None:
        weight_NK, bias_N = random(N, K).requires_grad_(), random(N).requires_grad_()
        out_TBN = linear(random(T, B, K), weight_NK, bias_N)
        out_TBN.sum().backward()
        assert bias_N.grad is not None
        assert bias_N.grad.tolist() == [T * B] * N


@pytest.mark.usefixtures("way")
class TestMeanCrossEntropy:
    @DTYPES
    @pytest.mark.parametrize("block", [1, 2 * N, 1 << 17])
    def test_agrees_with_torch_in_value_and_gradient(
        self, dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kernels, "_BLOCK_LOGITS", block)
        logits_NV = (4 * random(T * B, N, dtype=dtype)).requires_grad_()
        targets_N = torch.arange(T * B) % N
        exact_NV = logits_NV.detach().double().requires_grad_()
        wanted = F.cross_entropy(exact_NV, targets_N)
        (wanted_NV,) = torch.autograd.grad(3 * wanted, exact_NV)

        loss = mean_cross_entropy(logits_NV, targets_N)
        (got_NV,) = torch.autograd.grad(3 * loss, logits_NV)

        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        # The loss of bf16 logits is computed from exactly these numbers, with no more rounding.
        assert float(loss.detach()) == pytest.approx(
            float(wanted.detach()), abs=min(1e-5, CLOSE[dtype])
        )
        assert got_NV.dtype == dtype
        torch.testing.assert_close(got_NV.double(), wanted_NV, atol=CLOSE[dtype] / 10, rtol=0.01)

    def test_improbable_targets_have_a_finite_price(self) -> None:
        logits_NV = torch.tensor([[0.0, 300.0, -300.0]], requires_grad=True)
        loss = mean_cross_entropy(logits_NV * 1, torch.tensor([2]))
        assert float(loss.detach()) == 600

    def test_keeps_the_logits_where_no_gradient_is_wanted(self) -> None:
        logits_NV = random(T * B, N)
        before_NV = logits_NV.clone()
        mean_cross_entropy(logits_NV, torch.zeros(T * B, dtype=torch.long))
        assert torch.equal(logits_NV, before_NV)

    def test_needs_no_second_tensor_of_their_size(self) -> None:
        logits_NV = random(T * B, N).requires_grad_() * 1
        kept: list[int] = []

        def note(tensor: Tensor) -> Tensor:
            kept.append(tensor.untyped_storage().data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            mean_cross_entropy(logits_NV, torch.zeros(T * B, dtype=torch.long))
        assert kept == [logits_NV.untyped_storage().data_ptr()]


@pytest.mark.usefixtures("way")
class TestDropout:
    @DTYPES
    @pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.999999])
    @pytest.mark.parametrize("masks", [1, 2, 3, 7])
    def test_drops_by_the_bits_of_splitmix64_seeded_by_torch(
        self, dtype: torch.dtype, share: float, masks: int
    ) -> None:
        x_TBK = random(T, B, K, dtype=dtype)
        torch.manual_seed(5)
        got_MTBK = dropout(x_TBK, share, masks)

        torch.manual_seed(5)
        seed = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
        draws = [splitmix64(seed, n) for n in range(27)]
        levels = [2**15 + as_int16(draw >> 16 * part) for draw in draws for part in range(4)]
        dropped = min(round(share * 2**16), 2**16 - 1)
        wanted = [
            x * 2**16 / (2**16 - dropped) if (level + shift) % 2**16 >= dropped else 0.0
            for shift in (mask * 2**16 // masks for mask in range(masks))
            for x, level in zip(x_TBK.flatten().tolist(), levels[: T * B * K], strict=True)
        ]
        assert got_MTBK.dtype == dtype
        assert got_MTBK.shape == (masks * T, B, K)
        torch.testing.assert_close(
            got_MTBK.flatten().double(), torch.tensor(wanted, dtype=torch.float64),
            rtol=min(0.01, CLOSE[dtype]), atol=0,
        )  # fmt: skip

    def test_drops_the_share_and_leaves_the_expectation(self) -> None:
        torch.manual_seed(5)
        out = dropout(torch.ones(100_003), 0.4)
        assert out.mean().item() == pytest.approx(1, abs=0.01)
        assert (out == 0).double().mean().item() == pytest.approx(0.4, abs=0.01)

    @pytest.mark.parametrize(("masks", "share"), [(2, 0.4), (3, 0.5), (4, 0.1), (5, 0.9)])
    def test_masks_take_turns_at_an_entry(self, masks: int, share: float) -> None:
        torch.manual_seed(5)
        zeros_MN = (dropout(torch.ones(10_007), share, masks) == 0).view(masks, -1)
        for zeros_N in zeros_MN:
            assert zeros_N.double().mean().item() == pytest.approx(share, abs=0.02)
        often_N = zeros_MN.sum(0)
        wanted = {math.floor(masks * share), math.ceil(masks * share)}
        assert {*often_N.tolist()} == wanted
        # A mask drops each entry independently: two neighbours only as often as by chance.
        both = (zeros_MN[:, 1:] & zeros_MN[:, :-1]).double().mean().item()
        assert both == pytest.approx(share**2, abs=0.02)

    @pytest.mark.parametrize("masks", [1, 3])
    def test_elsewhere_masks_are_torch_s_own(
        self, masks: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drop, seen = F.dropout, []

        def noted(x: Tensor, share: float) -> Tensor:
            seen.append((*x.shape, share))
            return drop(x, share)

        monkeypatch.setattr("charrnn.compute.kernels.F.dropout", noted)
        out = dropout(torch.empty(T, B, K, device="meta"), 0.4, masks)
        assert out.shape == (masks * T, B, K)
        assert seen == [(masks, T, B, K, 0.4)], "a draw for each entry of each mask"

    @pytest.mark.parametrize("masks", [1, 3])
    def test_the_gradient_is_dropped_alike(self, masks: int) -> None:
        x_TBK = random(T, B, K).requires_grad_()
        d_MTBK = random(masks * T, B, K, seed=2)
        out_MTBK = dropout(x_TBK, 0.4, masks)
        (dx_TBK,) = torch.autograd.grad(out_MTBK, x_TBK, d_MTBK)
        factors = (out_MTBK.view(masks, T, B, K) / x_TBK).detach()
        wanted_TBK = (d_MTBK.view(masks, T, B, K) * factors).sum(0)
        torch.testing.assert_close(dx_TBK, wanted_TBK)


def splitmix64(seed: int, n: int) -> int:
    """Return number n of the generator, as in java.util.SplittableRandom."""
    x = (seed + (n + 1) * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_splitmix64_gives_the_known_numbers() -> None:
    """Those of the reference implementation, https://prng.di.unimi.it/splitmix64.c."""
    assert [splitmix64(1234567, n) for n in range(3)] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423,
    ]  # fmt: skip


def as_int16(number: int) -> int:
    """Return the lowest 16 bits of a number as two's complement."""
    return (number + 2**15) % 2**16 - 2**15


def test_a_cpu_whose_onednn_takes_no_bf16_has_torch_s_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On such a CPU oneDNN does not even accept a matrix in bf16."""
    refuses = mock.Mock(side_effect=RuntimeError("bf16 path needs avx_ne_convert or avx512bw"))
    monkeypatch.setattr(kernels, "_onednn_takes_bf16", lambda: False)
    monkeypatch.setattr(kernels._ONEDNN, "_reorder_linear_weight", refuses, raising=False)
    weight_NK = random(512, 64, dtype=torch.bfloat16)
    x_BK = random(B, 64, dtype=torch.bfloat16, seed=2)
    out_BN = kernels.step_product(weight_NK, 1000, B)(x_BK)
    assert out_BN.dtype == torch.bfloat16
    expected = x_BK.double() @ weight_NK.double().t()
    torch.testing.assert_close(out_BN.double(), expected, rtol=0.02, atol=0.2)


def test_there_is_no_second_derivative() -> None:
    x_TBK = random(T, B, K).requires_grad_()
    out_TBN = linear(x_TBK, random(N, K), random(N))
    dropped_TBK = dropout(x_TBK, 0.5)
    loss = mean_cross_entropy((x_TBK * 1).flatten(0, 1), torch.zeros(T * B, dtype=torch.long))
    for result in (out_TBN.sum(), dropped_TBK.sum(), loss):
        with pytest.raises(RuntimeError, match="second derivative"):
            torch.autograd.grad(result, x_TBK, create_graph=True)
