"""Which device is used, and what it can do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from charrnn.compute import device
from charrnn.compute.device import choose_device, is_here, multiplies_bf16, recurs_in_bf16
from charrnn.errors import UsageError
from tests.conftest import ENVIRONMENT, Cli


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="auto, cpu, cuda or mps"):
        choose_device("tpu")
    if not torch.backends.mps.is_available():
        with pytest.raises(UsageError, match="there is no such device here"):
            choose_device("mps")


def test_the_tests_and_their_processes_see_no_gpu() -> None:
    """Many rely on ``--device auto`` being the CPU; only tests run with ``-m gpu`` see a GPU."""
    assert choose_device("auto") == torch.device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ENVIRONMENT["CUDA_VISIBLE_DEVICES"] == ""


def test_no_driver_is_woken_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked"))
    assert choose_device("cpu") == torch.device("cpu")


@pytest.fixture
def ones(monkeypatch: pytest.MonkeyPatch) -> Iterator[mock.Mock]:
    """A mock of ``torch.ones``, where torch sees a GPU that was not tried yet."""
    device._cuda_refusal.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        made = mock.Mock()
        patch.setattr(torch, "ones", made)
        yield made
    device._cuda_refusal.cache_clear()


def test_a_gpu_that_computes_is_taken(ones: mock.Mock) -> None:
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    ones.assert_called_once_with(1, device="cuda")


@pytest.mark.parametrize("at_once", [True, False])
def test_a_gpu_that_torch_cannot_compute_on_is_none(ones: mock.Mock, at_once: bool) -> None:
    failing = ones if at_once else ones.return_value.add_.return_value.item
    failing.side_effect = torch.AcceleratorError("CUDA error: no kernel image is available\nTry")
    assert not is_here("cuda")
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(
        UsageError, match="compute: CUDA error: no kernel image is available; --dev"
    ):
        choose_device("cuda")
    assert failing.call_count == 1, "it is tried once"


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_that_is_full_is_not_passed_over(ones: mock.Mock, name: str) -> None:
    """A run begun on the CPU instead would keep a CPU's width for good."""
    ones.side_effect = torch.AcceleratorError("CUDA error: out of memory")
    with pytest.raises(
        UsageError, match=r"^the GPU cannot compute: CUDA error: out of memory; --d"
    ):
        choose_device(name)


def test_a_run_of_the_cpu_goes_on_where_the_gpu_is_full(
    cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", prose, "--hidden", 5, "--run")
    assert cli(*words, tmp_path / "run", "--device", "cpu", "--steps", 1).code == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "_cuda_refusal", lambda: "CUDA error: out of memory")
    assert "the GPU cannot compute" in cli(*words, tmp_path / "new", "--steps", 1).err
    again = cli("train", "--run", tmp_path / "run", "--resume", "--steps", 2)
    assert (again.code, again.out) == (0, f"{tmp_path / 'run'}\n"), again.err


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_only_a_gpu_with_the_instructions_multiplies_bf16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or capability >= (8, 0)

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert multiplies_bf16(torch.device("cuda")) == (capability >= (8, 0))
    assert not multiplies_bf16(torch.device("mps"))


@pytest.mark.parametrize(
    ("version", "good"),
    [(91002, False), (91300, True), (None, False), (RuntimeError("SM < 7.5"), False)],
)
def test_a_gpu_recurs_in_bf16_with_a_cudnn_that_does(
    monkeypatch: pytest.MonkeyPatch, version: int | Exception | None, good: bool
) -> None:
    """With older ones torch's own LSTM runs, which rounds the cell state at every step."""
    monkeypatch.setattr(torch.backends.cudnn, "version", mock.Mock(side_effect=[version]))
    monkeypatch.setattr(device, "multiplies_bf16", lambda _device: True)
    assert recurs_in_bf16(torch.device("cuda")) is good


@pytest.mark.parametrize("able", [True, False])
def test_a_cpu_recurs_in_bf16_if_it_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: pytest.fail("asked"))
    monkeypatch.setattr(device, "multiplies_bf16", lambda _device: able)
    assert recurs_in_bf16(torch.device("cpu")) is able
    monkeypatch.setattr(device, "multiplies_bf16", lambda _device: False)
    assert not recurs_in_bf16(torch.device("cuda"))
