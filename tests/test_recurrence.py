"""The compiled loops; test_cells compares their values."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Hashable
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from charrnn.compute import compiler, products, recurrence
from charrnn.compute.autograd import has_loop, run_window
from charrnn.compute.device import multiplies_bf16
from charrnn.compute.library import compile_library
from charrnn.compute.trials import Fastest
from charrnn.config import CELL_GATES, CellName
from tests.conftest import compiler_of, compiles, loops_for, needs_compiler, slowly

T, B, H = 9, 23, 37


def test_c_numbers_its_cells_as_python_does() -> None:
    """A number without a recurrence would run the last one, on memory that is too small for it."""
    header = files("charrnn.compute").joinpath("products.h").read_text(encoding="utf-8")
    (names,) = re.findall(r"^enum \{ (RNN.*) \};$", header, re.M)
    assert tuple(names.lower().split(", ")) == products.IN_C


def run(
    cell: CellName, dtype: torch.dtype, shared: bool = False, lanes: int = B, hidden: int = H
) -> list[Tensor]:
    """Return outputs, final state and the gradients of inputs and states.

    Not the weights' gradient: oneDNN computes it, and may sum in another order.
    """
    torch.manual_seed(3)
    weight_GH = torch.randn(CELL_GATES[cell] * hidden, hidden) / 4
    bias_H = torch.randn(hidden) if cell == "gru" else None
    state = torch.randn(2 if cell == "lstm" else 1, lanes, hidden).unbind()
    rows = (5,) if shared else (T, lanes)
    inputs = torch.randn(*rows, CELL_GATES[cell] * hidden)
    which = torch.randint(5, (T, lanes)) if shared else None
    wanted = [t.requires_grad_() for t in (inputs, *state)]
    out, after = run_window(cell, inputs.to(dtype), state, weight_GH, bias_H, which)
    loss = out.float().square().sum() + sum(a.sum() for a in after)
    return [out, *after, *torch.autograd.grad(loss, wanted)]


each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@needs_compiler
@each_dtype
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize(("lanes", "hidden"), [(B, H), (2, 733)])
@pytest.mark.usefixtures("threads")
def test_threads_change_no_bit(
    cell: CellName,
    dtype: torch.dtype,
    shared: bool,
    lanes: int,
    hidden: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether they share out the lanes or the units, of few weights or of many."""
    monkeypatch.setattr("charrnn.compute.products._LEAST_BYTES", 1)
    monkeypatch.setattr("charrnn.compute.trials._TRIAL", 1e-9)
    monkeypatch.setattr(recurrence.loops(), "_fastest", {})
    results = []
    for number in (1, 2, 3, 5):  # 23, 11, 7 and 4 lanes per thread, or one more
        torch.set_num_threads(number)
        # Two ways at most, each of which is tried by the first calls.
        results += [run(cell, dtype, shared, lanes, hidden) for _ in range(2)]
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize("machine", ["native", "x86-64-v2", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [(37, 71), (5, 3), (64, 192)],
    ids=["edges", "less than a tile", "whole tiles"],
)
@pytest.mark.usefixtures("threads")
def test_a_weight_gradient_is_the_product_on_any_number_of_threads(
    machine: str, outputs: int, inputs: int
) -> None:
    """A core's cache holds 256 rows at a time; here are 3, 256 and 603."""
    library = loops_for(machine)
    torch.manual_seed(5)
    for steps, lanes in ((1, 3), (64, 4), (201, 3)):
        d_TBN, x_TBK = torch.randn(steps, lanes, outputs), torch.randn(steps, lanes, inputs)
        slow = torch.einsum("tbn,tbk->nk", d_TBN.double(), x_TBK.double())
        for number in (1, 2, 3, 5):
            torch.set_num_threads(number)
            ours = library.weight_gradient(d_TBN, x_TBK)
            torch.testing.assert_close(ours.double(), slow, rtol=0, atol=1e-4)
            if number == 1:
                alone = ours
            assert torch.equal(ours, alone)


@needs_compiler
def test_each_cell_has_its_own_fastest_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of an LSTM say nothing about a GRU of the same width."""
    fastest: dict[Hashable, Fastest] = {}
    monkeypatch.setattr(recurrence.loops(), "_fastest", fastest)
    for cell in CELL_GATES:
        run(cell, torch.float32)
    assert len(fastest) == 2 * len(CELL_GATES)


@needs_compiler
def test_each_number_of_threads_has_its_own_fastest_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A way of more threads than there are now would write beyond its room."""
    monkeypatch.setattr("charrnn.compute.products._LEAST_BYTES", 1)
    fastest: dict[Hashable, Fastest] = {}
    monkeypatch.setattr(recurrence.loops(), "_fastest", fastest)
    for there in (2, 1):
        monkeypatch.setattr(torch, "get_num_threads", partial(int, there))
        run("lstm", torch.float32)
    assert len(fastest) == 2 * 2


@needs_compiler
@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(2, 1), (2, 0)]),
        (3, [(3, 1), (3, 0)]),
        (7, [(5, 1), (7, 0)]),  # 23 lanes are enough for five threads
    ],
)
def test_c_is_told_how_many_threads_there_are(
    cell: CellName, there: int, expected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.compute.products._LEAST_BYTES", 1)
    monkeypatch.setattr("charrnn.compute.trials._TRIAL", 1e-9)
    compiled = recurrence.loops()
    assert compiled is not None
    library = Mock(wraps=compiled._library)
    monkeypatch.setattr(compiled, "_library", library)
    monkeypatch.setattr(compiled, "_fastest", {})
    monkeypatch.setattr(torch, "get_num_threads", lambda: there)
    results = [run(cell, torch.float32) for _ in expected]
    calls = [
        (name, *(size.value for size in call[:2]))
        for name, call, _ in library.mock_calls
        if name in ("forward", "backward")
    ]
    assert calls == [(name, *way) for way in expected for name in ("forward", "backward")]
    # There is one, whatever C is told (tests/conftest.py): it then does the work of all.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = run(cell, torch.float32)
    for others in results:
        assert all(torch.equal(a, b) for a, b in zip(alone, others, strict=True))


@needs_compiler
def test_an_lstm_runs_here_where_there_is_a_loop_for_its_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert has_loop("lstm", torch.float32)
    assert not has_loop("lstm", torch.float64)
    assert has_loop("lstm", torch.bfloat16) == multiplies_bf16(torch.device("cpu"))
    monkeypatch.setattr(recurrence, "loops", lambda: None)
    assert not has_loop("lstm", torch.float32)
    assert not has_loop("lstm", torch.bfloat16)


@needs_compiler
@pytest.mark.parametrize("tiles", [True, False])
def test_narrow_products_are_of_factors_rounded_to_the_nearest(tiles: bool) -> None:
    compiled = compile_library(recurrence.Loops, compiler_of(tiles=tiles))
    assert isinstance(compiled, recurrence.Loops)
    if not compiled.multiplies_bf16:
        pytest.skip("the processor has no products in bf16")

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.bfloat16().double()

    torch.manual_seed(3)
    weight_HH, x_BH, states_TBH = torch.randn(H, H) / 8, torch.randn(B, H), torch.randn(2, B, H)
    states_TBH[0, 0, :2] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8])  # ties to even: down, up
    states_TBH[0, 5, 7] = torch.nan
    compiled.forward("rnn", weight_HH, x_BH[None].bfloat16(), None, states_TBH)
    expected_BH = (rounded(states_TBH[0]) @ rounded(weight_HH).T + rounded(x_BH)).tanh()
    assert expected_BH[5].isnan().all()
    close = partial(torch.testing.assert_close, rtol=0, equal_nan=True)
    close(states_TBH[1].double(), expected_BH, atol=1e-6)
    d_out_TBH, dh_BH = torch.randn(1, B, H).bfloat16(), torch.randn(B, H)
    (d_BH,), _ = compiled.backward("rnn", weight_HH, states_TBH, None, None, d_out_TBH, dh_BH)
    close(dh_BH.double(), rounded(d_BH) @ rounded(weight_HH), atol=1e-5)


@needs_compiler
def test_what_c_would_misread_is_refused() -> None:
    x, state, weight = torch.randn(B, T, H), torch.zeros(B, H), torch.randn(H, H)
    with pytest.raises(TypeError, match="contiguous"):
        run_window("rnn", x.transpose(0, 1), [state], weight)
    compiled = recurrence.loops()
    assert compiled is not None
    with pytest.raises(TypeError, match="float32"):
        compiled.forward("rnn", weight, x.double(), None, torch.zeros(B + 1, T, H))
    with pytest.raises(TypeError, match="on a CPU"):
        compiled.forward("rnn", weight, x.to("meta"), None, torch.zeros(B + 1, T, H))
    with pytest.raises(TypeError, match="evenly spaced"):
        compiled.sum_rows(torch.zeros(T, 2 * B, H)[:, :B])
    with pytest.raises(TypeError, match="weights for C must be float32"):
        compiled.forward("rnn", weight.double(), x, None, torch.zeros(B + 1, T, H))


@needs_compiler
def test_the_gradient_of_nothing_is_nothing() -> None:
    compiled = recurrence.loops()
    assert compiled is not None
    assert not compiled.weight_gradient(torch.zeros(0, 3, 7), torch.zeros(0, 3, 5)).any()


@needs_compiler
def test_the_default_type_of_the_process_does_not_matter() -> None:
    x, state, weight = torch.randn(T, B, H), torch.zeros(B, H), torch.randn(H, H)
    expected, _ = run_window("rnn", x, [state], weight)
    torch.set_default_dtype(torch.bfloat16)
    try:
        out, _ = run_window("rnn", x, [state], weight)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(out, expected)


#: Down to tiny numbers, where a formula that subtracts two larger ones has lost all digits.
SIZES = torch.logspace(-37, 4, 100_001)
BOTH_SIGNS = torch.cat([SIZES, -SIZES, torch.linspace(-12, 12, 100_001), torch.tensor([-1e30])])


@needs_compiler
def test_tanh_is_within_3e_7_of_its_value_everywhere() -> None:
    """Computed by an RNN whose recurrent weights are 0."""
    x = BOTH_SIGNS
    out, _ = run_window("rnn", x[None, :, None], [torch.zeros(len(x), 1)], torch.zeros(1, 1))
    torch.testing.assert_close(out[0, :, 0].double(), x.double().tanh(), rtol=3e-7, atol=0)
    assert (out.abs() <= 1).all()
    assert torch.equal(out[0, x.abs() > 10, 0], x[x.abs() > 10].sign())


@needs_compiler
def test_sigmoid_is_within_4e_7_of_its_value_everywhere() -> None:
    """Computed by a GRU with candidate 0 and state 1: its next state is the update gate."""
    x = BOTH_SIGNS
    inputs = x[None, :, None] * torch.tensor([0.0, 1.0, 0.0])
    state = [torch.ones(len(x), 1)]
    out, _ = run_window("gru", inputs, state, torch.zeros(3, 1), torch.zeros(1))
    exact = x.clamp(min=-87).double().sigmoid()
    torch.testing.assert_close(out[0, :, 0].double(), exact, rtol=4e-7, atol=0)
    assert (out <= 1).all()
    assert (out[0, x > 20] == 1).all()


@needs_compiler
@pytest.mark.parametrize("options", [["-fopenmp"], *slowly([])])
@pytest.mark.parametrize("machine", ["native", "x86-64-v2", *slowly("x86-64-v3", "x86-64-v4")])
@pytest.mark.parametrize("file", ["passes.c", "recurrence.c", "step.c"])
def test_the_compiler_has_nothing_to_say(
    file: str, options: list[str], machine: str, tmp_path: Path
) -> None:
    if machine.startswith("x86") and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("another processor")
    if not compiles(f"-march={machine}"):
        pytest.skip("a compiler that does not know it")
    strict = ["-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    # The compiler finds the header beside the file.
    with as_file(files("charrnn.compute") / file) as source:
        command = [*compiler.find_compiler(), *strict, *options, f"-march={machine}", "-c"]
        subprocess.run([*command, str(source), "-o", str(tmp_path / "out.o")], check=True)


#: From gcc's header before 11.5, 12.4 and 13.3: it declares only 8 of the 64 bytes as read.
OLD_TILES = r"""
#include <immintrin.h>
#define _tile_loadconfig(at) __asm__ volatile("ldtilecfg %0" : : "m"(*(const void *const *)(at)))
#include "products.h"
#if defined(TILES)
void probe(void) { configure_tiles(ROWS); }
#endif
"""


@pytest.mark.skipif(
    platform.system() != "Linux" or not compiles("-march=sapphirerapids"),
    reason="no compiler for AMX",
)
def test_an_older_gcc_writes_the_whole_configuration_of_tiles(tmp_path: Path) -> None:
    (tmp_path / "old.c").write_text(OLD_TILES)

    def compiled(rows: int) -> str:
        with as_file(files("charrnn.compute") / "products.h") as header:
            options = ["-std=gnu11", "-O3", "-march=sapphirerapids", f"-I{header.parent}", "-S"]
            command = [*compiler.find_compiler(), *options, f"-DROWS={rows}", "old.c", "-o", "-"]
            done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, check=True)
        return done.stdout.decode()

    if "ldtilecfg" not in compiled(7):
        pytest.skip("a compiler that spells AMX otherwise")
    assert compiled(7) != compiled(9), "the number of rows is written nowhere"
