"""The cells against a loop over time steps written out here, and against torch.nn."""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.compute import kernels, recurrence
from charrnn.compute.autograd import has_loop
from charrnn.compute.kernels import dropout
from charrnn.config import CELL_NAMES, CellName
from charrnn.network import cells
from charrnn.network.cells import CELLS, Cell, State, allow_tensor_cores
from tests.conftest import loops_for

T, B, E, H = 7, 3, 5, 4

each_cell = pytest.mark.parametrize("name", CELL_NAMES)
#: Each time step has inputs of its own, or all share this many.
own_or_shared = pytest.mark.parametrize("shared", [None, 6], ids=["own", "shared"])


def naive(
    cell: Cell,
    x: Tensor,
    state: State,
    which_TB: Tensor | None = None,
    weight_recurrent: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Run a cell by its printed equations, one time step after another."""
    x_TBE = x if which_TB is None else x[which_TB]
    W, b = cell.weight_input, cell.bias
    U = cell.weight_recurrent if weight_recurrent is None else weight_recurrent
    h, out = state[0], []
    for x_BE in x_TBE:
        gates = zip(
            (x_BE @ W.T + b).chunk(cell.gates, 1), (h @ U.T).chunk(cell.gates, 1), strict=True
        )
        if len(state) == 2:
            i, f, g, o = (wx + uh for wx, uh in gates)
            c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            state = (h, c)
        elif cell.gates == 3:
            (wx_r, uh_r), (wx_z, uh_z), (wx_n, uh_n) = gates
            r, z = (wx_r + uh_r).sigmoid(), (wx_z + uh_z).sigmoid()
            n = (wx_n + r * (uh_n + cell.get_parameter("bias_recurrent"))).tanh()
            h = (1 - z) * n + z * h
            state = (h,)
        else:
            ((wx, uh),) = gates
            h = (wx + uh).tanh()
            state = (h,)
        out.append(h)
    return torch.stack(out), state


def make_cell(
    name: CellName,
    inputs: int = E,
    hidden: int = H,
    dtype: torch.dtype = torch.float64,
    weight_drop: float = 0.0,
) -> Cell:
    """Return a cell whose biases are not zero."""
    cell = copy.deepcopy(_made(name, inputs, hidden, dtype))
    cell.weight_drop = weight_drop
    return cell


@lru_cache(maxsize=1)  # it takes long to make wide matrices orthogonal
def _made(name: CellName, inputs: int, hidden: int, dtype: torch.dtype) -> Cell:
    torch.manual_seed(11)
    cell = CELLS[name](inputs, hidden, 0.0).to(dtype)
    with torch.no_grad():
        for parameter in cell.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return cell


def make_inputs(cell: Cell, steps: int = T, lanes: int = B) -> tuple[Tensor, State]:
    """Return inputs and a state that require gradients, in the cell's type."""
    torch.manual_seed(5)
    like = cell.bias
    x_TBE = torch.randn(steps, lanes, cell.inputs, dtype=like.dtype, requires_grad=True)
    state = (
        torch.randn(lanes, cell.hidden, dtype=like.dtype, requires_grad=True) for _ in cell.states
    )
    return x_TBE, tuple(state)


def make_shared(
    cell: Cell, shared: int | None, steps: int = T, lanes: int = B
) -> tuple[Tensor, State, Tensor | None]:
    """Return inputs, a state, and which of the inputs each time step reads.

    Of shared inputs, some are read several times, and the last one never.
    """
    x, state = make_inputs(cell, steps, lanes)
    if shared is None:
        return x, state, None
    x_DE = torch.randn(shared, cell.inputs, dtype=x.dtype, requires_grad=True)
    return x_DE, state, torch.randint(shared - 1, (steps, lanes))


def loss_of(*tensors: Tensor) -> Tensor:
    """Return a loss in which every entry of the tensors has its own weight."""
    torch.manual_seed(6)
    losses = [(t * torch.randn(t.shape, dtype=torch.float64).to(t)).sum() for t in tensors]
    return torch.stack(losses).sum()


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare by name; the tolerance is relative to each tensor's largest value."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        error = (actual[name].double() - value.double()).abs().max() / value.abs().max()
        assert error <= tolerance, f"{name}: {error}"


def results(run: tuple[Tensor, State], cell: Cell, x: Tensor, state: State) -> dict[str, Tensor]:
    """Return the outputs, the final state and all gradients of a loss on both, by name."""
    out, after = run
    assert all(s.untyped_storage().nbytes() == s.nbytes for s in after), "a state keeps its window"
    names = ["x", *cell.states, *dict(cell.named_parameters())]
    wanted = [x, *state, *cell.parameters()]
    gradients = torch.autograd.grad(loss_of(out, *after), wanted)
    finals = {f"{name} after": t for name, t in zip(cell.states, after, strict=True)}
    return {"out": out, **finals, **dict(zip(names, gradients, strict=True))}


@each_cell
@own_or_shared
@pytest.mark.parametrize("steps", [1, 2, T])
@pytest.mark.parametrize("lanes", [1, B])
def test_equals_the_naive_loop(name: CellName, steps: int, lanes: int, shared: int | None) -> None:
    cell = make_cell(name)
    x, state, which = make_shared(cell, shared, steps, lanes)
    ours = results(cell(x, state, which), cell, x, state)
    slow = results(naive(cell, x, state, which), cell, x, state)
    assert_same(ours, slow, 1e-12)


@each_cell
@own_or_shared
def test_torch_s_operators_equal_the_naive_loop(
    name: CellName, shared: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other devices than a CPU use torch's operators; here the CPU does too."""
    monkeypatch.setattr(cells, "has_loop", lambda *_: False)
    cell = make_cell(name)
    x, state, which = make_shared(cell, shared)
    ours = results(cell(x, state, which), cell, x, state)
    slow = results(naive(cell, x, state, which), cell, x, state)
    assert_same(ours, slow, 1e-12)


#: What runs the loops: numpy with products by oneDNN or torch, or C compiled for a processor
#: (the last for this one, without AMX's tiles).
ENGINES = [
    "onednn", "torch", "native", "x86-64-v2", "x86-64-v3", "x86-64-v4", "native without tiles",
]  # fmt: skip


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the loops as the parameter says; the LSTM's compiled ones in all types but float64."""
    name: str = request.param
    if name in ("onednn", "torch"):
        monkeypatch.setattr(recurrence, "loops", lambda: None)
        monkeypatch.setattr(kernels, "_HAS_ONEDNN", name == "onednn" and kernels._HAS_ONEDNN)
        monkeypatch.setattr(kernels, "mkl_is_fast", lambda: False)
        return
    compiled = loops_for(name.split()[0], tiles=name != "native without tiles")
    monkeypatch.setattr(recurrence, "loops", lambda: compiled)
    monkeypatch.setattr(
        cells, "has_loop", lambda cell, dtype: cell != "lstm" or dtype != torch.float64
    )


#: Float64, and float32 in the compiled loops; needs ``usefixtures("engine")``.
each_type = pytest.mark.parametrize(
    ("dtype", "engine"),
    [(torch.float64, "onednn"), (torch.float32, "native")],
    indirect=["engine"],
)
#: How much the same arithmetic may differ in another order.
ROUNDING = {torch.float64: 1e-12, torch.float32: 3e-6}


#: Steps, lanes, inputs, units, for compiled products: lanes for each number of rows that one takes
#: at once, and widths below and above that from which weights are read backwards in turns.
SHAPES = [(T, B, E, H), (3, 23, 5, 33), (2, 34, 5, 7), (1, 3, 5, 37), (3, 2, 5, 733)]


@lru_cache(maxsize=1)  # all engines are compared with it in turn
def exact(
    name: CellName, steps: int, lanes: int, inputs: int, hidden: int, shared: int | None
) -> dict[str, Tensor]:
    """Return the results of the naive loop in float64, from weights and inputs in float32."""
    cell = make_cell(name, inputs, hidden, torch.float32)
    x, state, which = make_shared(cell, shared, steps, lanes)
    cell.double()
    x, state = x.detach().double().requires_grad_(), double(state)
    return results(naive(cell, x, state, which), cell, x, state)


# More widths below and above the size from which the recurrent weights are packed.
@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@each_cell
@own_or_shared
@pytest.mark.parametrize(
    ("steps", "lanes", "inputs", "hidden"), [*SHAPES, (9, 1, 33, 113), (9, 5, 3, 193)]
)
@pytest.mark.usefixtures("engine")
def test_float32_equals_the_naive_loop(
    name: CellName, steps: int, lanes: int, inputs: int, hidden: int, shared: int | None
) -> None:
    cell = make_cell(name, inputs, hidden, torch.float32)
    x, state, which = make_shared(cell, shared, steps, lanes)
    ours = results(cell(x, state, which), cell, x, state)
    assert_same(ours, exact(name, steps, lanes, inputs, hidden, shared), 3e-6)


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@each_cell
@own_or_shared
@pytest.mark.parametrize(
    ("steps", "lanes", "inputs", "hidden"), [*SHAPES, (9, 5, 33, 113), (40, 16, 65, 128)]
)
@pytest.mark.usefixtures("engine")
def test_bfloat16_is_near_the_naive_loop(
    name: CellName, steps: int, lanes: int, inputs: int, hidden: int, shared: int | None
) -> None:
    """Products have 8 bits and random errors, so the gradient keeps its direction."""
    cell = make_cell(name, inputs, hidden, torch.float32)
    x, state, which = make_shared(cell, shared, steps, lanes)
    ours = results(cell(x.bfloat16(), state, which), cell, x, state)
    slow = exact(name, steps, lanes, inputs, hidden, shared)
    for key, value in slow.items():
        cosine = F.cosine_similarity(ours[key].double().flatten(), value.flatten(), 0)
        assert cosine > 0.9997, key
    assert_same(ours, slow, 0.06)


def double(state: State) -> State:
    return tuple(s.detach().double().requires_grad_() for s in state)


@each_cell
def test_equals_torch_nn(name: CellName) -> None:
    theirs = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[name](E, H, dtype=torch.float64)
    cell = make_cell(name)
    x, state = make_inputs(cell)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(cell.weight_input)
        theirs.weight_hh_l0.copy_(cell.weight_recurrent)
        theirs.bias_ih_l0.copy_(cell.bias)
        theirs.bias_hh_l0.zero_()
        if name == "gru":
            theirs.bias_hh_l0[2 * H :] = cell.get_parameter("bias_recurrent")
    before = [s[None] for s in state]
    their_out, their_after = theirs(x, before if len(before) > 1 else before[0])
    after = [a[0] for a in (their_after if len(before) > 1 else (their_after,))]
    wanted = [x, *state, theirs.weight_ih_l0, theirs.weight_hh_l0, theirs.bias_ih_l0]
    names = ["x", *cell.states, "weight_input", "weight_recurrent", "bias"]
    gradients = torch.autograd.grad(
        loss_of(their_out, *after), [*wanted, theirs.bias_hh_l0], materialize_grads=True
    )
    expected = dict(zip(names, gradients, strict=False))
    expected |= {f"{state} after": a for state, a in zip(cell.states, after, strict=True)}
    if name == "gru":
        expected["bias_recurrent"] = gradients[-1][2 * H :]
    assert_same(results(cell(x, state), cell, x, state), {"out": their_out, **expected}, 1e-12)


@each_cell
@each_type
@pytest.mark.usefixtures("engine")
def test_only_what_wants_a_gradient_gets_one(name: CellName, dtype: torch.dtype) -> None:
    cell = make_cell(name, dtype=dtype)
    x, state = make_inputs(cell)
    out, _ = cell(x.detach(), cell.initial_state(B))
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in cell.parameters())
    cell.requires_grad_(False)
    out, _ = cell(x, state)
    out.sum().backward()
    assert x.grad is not None
    assert all(s.grad is not None for s in state)


@pytest.mark.parametrize(
    ("name", "dtype", "engine"),
    [
        ("rnn", torch.float64, "torch"),
        ("gru", torch.float64, "torch"),
        *((name, torch.float32, "native") for name in CELL_NAMES),
    ],
    indirect=["engine"],
)
@pytest.mark.usefixtures("engine")
def test_a_second_derivative_is_refused(name: CellName, dtype: torch.dtype) -> None:
    cell = make_cell(name, dtype=dtype)
    x, state = make_inputs(cell)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(cell(x, state)[0].sum(), x, create_graph=True)


@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@pytest.mark.usefixtures("engine")
def test_a_graph_that_is_kept_gives_its_gradient_again(name: CellName, dtype: torch.dtype) -> None:
    cell = make_cell(name, E, 33, torch.float32)
    x, state = make_inputs(cell)
    out, after = cell(x.to(dtype), state)
    wanted = [x, *state, *cell.parameters()]
    loss = loss_of(out, *after)
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    again = torch.autograd.grad(loss, wanted)
    assert all(map(torch.equal, first, again))


@each_cell
def test_inputs_may_lie_in_memory_in_any_order(name: CellName) -> None:
    cell = make_cell(name, 33, 113, torch.float32)
    x, state = make_inputs(cell, 9)
    x_BTE = x.detach().transpose(0, 1).contiguous().requires_grad_()
    straight = results(cell(x, state), cell, x, state)
    turned = results(cell(x_BTE.transpose(0, 1), state), cell, x_BTE, state)
    turned["x"] = turned["x"].transpose(0, 1)
    assert_same(turned, straight, 1e-6)


@each_cell
@own_or_shared
@pytest.mark.parametrize("shape", [(1, H), (B + 1, H), (B, H - 1), (B, H + 1)], ids=str)
def test_a_state_of_other_lanes_or_units_is_refused(
    name: CellName, shape: tuple[int, int], shared: int | None
) -> None:
    """Nothing below looks at its shape: C would read and write beyond the tensors' ends."""
    cell = make_cell(name, dtype=torch.float32)
    x, state, which = make_shared(cell, shared)
    wrong = (*state[:-1], torch.zeros(shape))
    said = re.escape(f"the state must be [lanes, units] = [{B}, {H}], not {list(shape)}")
    with pytest.raises(ValueError, match=said):
        cell(x, wrong, which)


@each_cell
def test_a_state_of_another_cell_is_refused(name: CellName) -> None:
    """C would follow a null pointer."""
    cell = make_cell(name, dtype=torch.float32)
    x, state = make_inputs(cell)
    for wrong in (state[:-1], (*state, state[0])):
        said = f"the state must be {len(state)} tensors, not {len(wrong)}"
        with pytest.raises(ValueError, match=said):
            cell(x, wrong)


@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_equals_training_and_keeps_nothing(
    name: CellName,
    dtype: torch.dtype,
    mode: type[torch.no_grad | torch.inference_mode],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = mock.Mock(wraps=recurrence._room_to_keep)
    monkeypatch.setattr(recurrence, "_room_to_keep", room)
    cell = make_cell(name, E, 113, torch.promote_types(dtype, torch.float32))
    x, state = make_inputs(cell, 9)
    x = x.to(dtype)
    out, after = cell(x, state)
    if dtype != torch.float64 and has_loop(name, dtype) and recurrence.loops() is not None:
        assert [keep for (_, _, keep), _ in room.call_args_list] == [True]
    room.reset_mock()
    with mode():
        bare_out, bare_after = cell(x, state)
    assert not any(keep for (_, _, keep), _ in room.call_args_list)
    assert out.grad_fn is not None
    # Where C does not run an LSTM, torch does, in training by another kernel.
    tolerance = 0.0 if name != "lstm" or recurrence.loops() is not None else 1e-6
    if dtype == torch.bfloat16 and not has_loop(name, dtype):
        tolerance = 2**-7
    for bare, trained in zip((bare_out, *bare_after), (out, *after), strict=True):
        assert bare.grad_fn is None
        torch.testing.assert_close(bare, trained.detach(), rtol=0, atol=tolerance)


@each_cell
@each_type
@pytest.mark.usefixtures("engine")
def test_numbers_that_are_none_pass_through_without_a_word(
    name: CellName, dtype: torch.dtype
) -> None:
    cell = make_cell(name, dtype=dtype)
    x, state = make_inputs(cell)
    broken = x.detach().clone()
    broken[2, 0], broken[3, 1] = torch.inf, torch.nan
    out, _ = cell(broken.requires_grad_(), state)
    out.sum().backward()
    assert out[3:, 1].isnan().all()
    torch.testing.assert_close(out[:, 2], cell(x, state)[0][:, 2], rtol=0, atol=ROUNDING[dtype])


@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("threads")
def test_same_inputs_give_the_same_bits(name: CellName, dtype: torch.dtype) -> None:
    torch.set_num_threads(2)
    cell = make_cell(name, 66, 128, torch.float32)
    x, state = make_inputs(cell, 16, 8)
    first = results(cell(x.to(dtype), state), cell, x, state)
    for _ in range(3):
        again = results(cell(x.to(dtype), state), cell, x, state)
        assert all(torch.equal(first[key], again[key]) for key in first)


@each_cell
def test_the_state_keeps_its_type_beside_narrow_inputs(name: CellName) -> None:
    cell = make_cell(name, dtype=torch.float32)
    x, state = make_inputs(cell)
    out, after = cell(x.bfloat16(), state)
    assert out.dtype == torch.bfloat16
    assert all(a.dtype == torch.float32 for a in after)
    torch.testing.assert_close(out.float(), cell(x, state)[0], rtol=0, atol=0.03)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in cell.parameters())


@each_cell
@each_type
@pytest.mark.usefixtures("engine")
def test_weight_drop_drops_recurrent_weights_once_a_call(
    name: CellName, dtype: torch.dtype
) -> None:
    cell = make_cell(name, dtype=dtype, weight_drop=0.4)
    x, state = make_inputs(cell)
    torch.manual_seed(3)
    out, after = cell(x, state)
    torch.manual_seed(3)
    dropped = dropout(cell.weight_recurrent, 0.4)
    kept = dropped != 0
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(dropped[kept], cell.weight_recurrent[kept] / 0.6, rtol=1e-4, atol=0)
    slow = results(naive(cell, x, state, weight_recurrent=dropped), cell, x, state)
    assert_same(results((out, after), cell, x, state), slow, ROUNDING[dtype])
    torch.manual_seed(3)
    assert torch.equal(cell(x, state)[0], out)
    assert not torch.equal(cell(x, state)[0], out)


@each_cell
@each_type
@pytest.mark.usefixtures("engine")
def test_weight_drop_is_for_training_only(name: CellName, dtype: torch.dtype) -> None:
    cell = make_cell(name, dtype=dtype, weight_drop=0.4)
    x, state = make_inputs(cell)
    generator = torch.get_rng_state()
    out, _ = cell.eval()(x, state)
    assert torch.equal(torch.get_rng_state(), generator)
    torch.testing.assert_close(out, naive(cell, x, state)[0], rtol=0, atol=ROUNDING[dtype])
    out.sum().backward()  # inspection differentiates in evaluation mode
    cell.weight_drop = 0.0
    cell.train()(x, state)
    assert torch.equal(torch.get_rng_state(), generator)


@each_cell
def test_new_weights(name: CellName) -> None:
    torch.manual_seed(1)
    cell = CELLS[name](400, 12)
    for block in cell.weight_recurrent.chunk(cell.gates):
        torch.testing.assert_close(block @ block.T, torch.eye(12), rtol=0, atol=1e-5)
    assert cell.weight_input.std().item() == pytest.approx(400**-0.5, rel=0.05)
    bias = torch.zeros(cell.gates, 12)
    if name != "rnn":
        bias[1] = 1  # the forget gate, or the update gate
    assert torch.equal(cell.bias, bias.flatten())
    if name == "gru":
        assert torch.equal(cell.get_parameter("bias_recurrent"), torch.zeros(12))


@pytest.fixture
def cuda() -> torch.device:
    return torch.device("cuda")


@pytest.mark.parametrize(
    ("dtype", "allowed"), [(torch.float32, False), (torch.bfloat16, True), (torch.float64, True)]
)
def test_tensor_cores_are_for_what_is_not_float32(dtype: torch.dtype, allowed: bool) -> None:
    """Without them cuDNN uses plain multiply-adds in bf16; with them it rounds float32 to TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=not allowed):
        allow_tensor_cores(dtype)
        assert torch.backends.cudnn.allow_tf32 is allowed


@pytest.mark.gpu
@each_cell
@pytest.mark.parametrize(
    ("steps", "inputs", "hidden"),
    [(T, E, H), (9, 33, 113), (9, 64, 128), (9, 64, 160), (9, 64, 384), (9, 65, 640)],
)
def test_gpu_equals_the_naive_loop(
    name: CellName, steps: int, inputs: int, hidden: int, cuda: torch.device
) -> None:
    """torch chooses cuDNN's algorithm by the width, and separately for each pass."""
    cell = make_cell(name, inputs, hidden, torch.float32)
    x, state = make_inputs(cell, steps)
    slow = results(naive(cell, x, state), cell, x, state)
    cell.to(cuda)
    x = x.detach().to(cuda).requires_grad_()
    state = tuple(s.detach().to(cuda).requires_grad_() for s in state)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        out, after = cell(x, state)
        ours = results((out.cpu(), tuple(a.cpu() for a in after)), cell, x, state)
    assert_same({key: t.cpu() for key, t in ours.items()}, slow, 1e-4)


@pytest.mark.gpu
@each_cell
@pytest.mark.parametrize(("inputs", "hidden"), [(33, 113), (64, 128), (65, 640)])
def test_gpu_bfloat16(name: CellName, inputs: int, hidden: int, cuda: torch.device) -> None:
    cell = make_cell(name, inputs, hidden, torch.float32)
    x, state = make_inputs(cell, 9)
    expected, _ = cell(x, state)
    cell.to(cuda)
    out, after = cell(x.to(cuda).bfloat16(), tuple(s.to(cuda) for s in state))
    assert out.dtype == torch.bfloat16
    assert all(a.dtype == torch.float32 for a in after)
    torch.testing.assert_close(out.float().cpu(), expected, rtol=0, atol=0.05)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in cell.parameters())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("dtype", "least"), [(torch.float32, 0.99999), (torch.bfloat16, 0.999)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize(
    ("name", "hidden"), [("rnn", 768), ("lstm", 1536), ("gru", 1024), ("lstm", 1024)]
)
def test_gradients_at_a_gpu_s_default_widths_keep_their_direction(
    name: CellName, hidden: int, dtype: torch.dtype, least: float, device: str
) -> None:
    assert_direction(name, hidden, dtype, least, device)


def assert_direction(
    name: CellName, hidden: int, dtype: torch.dtype, least: float, device: str
) -> None:
    """The loop in float64 has the direction, which rounding turns only slightly."""
    cell, x, state, slow = directed(name, hidden)
    cell = copy.deepcopy(cell).to(device, torch.float32)
    x = x.detach().to(device, dtype).requires_grad_()
    state = tuple(s.detach().to(device, torch.float32).requires_grad_() for s in state)
    ours = results(cell(x, state), cell, x, state)
    for key, value in slow.items():
        cosine = F.cosine_similarity(ours[key].double().cpu().flatten(), value.flatten(), dim=0)
        assert cosine > least, key


@lru_cache(maxsize=1)  # all types are compared with it in turn
def directed(name: CellName, hidden: int) -> tuple[Cell, Tensor, State, dict[str, Tensor]]:
    """Return a wide cell in float64, inputs, a state and the naive loop's results."""
    cell = make_cell(name, 72, hidden)
    x, state = make_inputs(cell, 9, 16)
    return cell, x, state, results(naive(cell, x, state), cell, x, state)


def test_torch_s_lstm_keeps_the_gradient_s_direction_without_c(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """oneDNN's does not from 1,024 units on, in bf16 in AMX's tiles."""
    monkeypatch.setattr(cells, "has_loop", lambda *_: False)
    assert_direction("lstm", 1024, torch.bfloat16, 0.999, "cpu")


@pytest.mark.gpu
@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_step_can_be_captured(name: CellName, dtype: torch.dtype, cuda: torch.device) -> None:
    cell = make_cell(name, 64, 128, torch.float32).to(cuda)
    x = torch.randn(9, B, 64, device=cuda)
    state = cell.initial_state(B)

    def step() -> list[Tensor]:
        out, after = cell(x.to(dtype), state)
        loss = out.float().square().mean() + sum(a.square().mean() for a in after)
        # Keeping the autograd graph would tie the weights to the capture's stream.
        return [out.detach(), *torch.autograd.grad(loss, list(cell.parameters()))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # CUDA graphs need a warm-up off the default stream
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(torch.randn_like(x))
    graph.replay()
    for replayed, eager in zip(captured, step(), strict=True):
        torch.testing.assert_close(replayed, eager, rtol=1e-2, atol=1e-3)
