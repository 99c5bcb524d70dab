from __future__ import annotations

import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from charrnn.compute.machine import machine
from charrnn.compute.processor import processor, vendor
from charrnn.wording import counted


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (
            "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\n"
            "processor\t: 1\ncpu family\t: 25\nmodel\t\t: 18\nmodel name\t: another\n",
            "AMD EPYC (family 25, model 17)",
        ),
        ("model name\t: a name\n", "a name"),
        ("model name\t: caf\udce9\n", "caf\ufffd"),
        ("processor\t: 0\nBogoMIPS\t: 2100.00\n", platform.machine()),
        (
            "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\n"
            "CPU part\t: 0xd0c\nCPU revision\t: 1\n\nprocessor\t: 1\nCPU part\t: 0xd40\n",
            f"{platform.machine()} (implementer 0x41, part 0xd0c)",
        ),
    ],
)
def test_the_processor_s_name(tmp_path: Path, cpuinfo: str, name: str) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo, errors="surrogateescape")
    assert processor(path) == name


@pytest.mark.parametrize("knows", [True, False])
def test_on_macos_the_system_is_asked(
    tmp_path: Path, knows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(name: bytes, value: Any, *_: object) -> int:
        if knows:
            assert name == b"machdep.cpu.brand_string"
            value.value = b"Apple M2"
        return 0 if knows else -1

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(sysctlbyname=ask))
    assert processor(tmp_path / "none") == ("Apple M2" if knows else platform.machine())


def test_the_processor_s_maker(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\n\nvendor_id\t: another\n")
    assert vendor(path) == "GenuineIntel"


def test_where_nothing_describes_it(tmp_path: Path) -> None:
    assert processor(tmp_path / "none") == platform.machine()
    assert vendor(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Mock(flaw=None), "loops compiled"),
        (Mock(flaw="no such instruction"), "loops compiled for any processor"),
        (None, "loops not compiled"),
    ],
)
def test_the_machine_is_one_line_of_all_that_figures_depend_on(
    made: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.compute.machine.loops", lambda: made)
    line = machine()
    threads = counted(torch.get_num_threads(), "thread")
    assert line.startswith(f"{processor()}, ")
    assert line.endswith(f"torch {torch.__version__} with {threads}, {said}")
    assert "\n" not in line
