"""Steps of one character against the model's own forward."""

import copy
import ctypes
import math
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, get_args
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from charrnn.compute import library
from charrnn.compute.products import ways_to_share
from charrnn.compute.steps import Layer, Steps, _Task
from charrnn.config import CellName, ModelConfig, SampleConfig, WeightsName
from charrnn.inference.sampling import _draw, next_probabilities, unwarned
from charrnn.inference.stepper import CompiledStepper, NumpyStepper
from charrnn.network.model import CharModel, Hidden
from tests.conftest import compiler_of, skip_without, slowly


def make_model(cell: CellName, layers: int, hidden: int = 7, symbols: int = 11) -> CharModel:
    torch.manual_seed(3)
    shape = ModelConfig(cell=cell, vocabulary=symbols, layers=layers, hidden=hidden, embedding=5)
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


def steps(predictor: NumpyStepper | CompiledStepper, text_TB: torch.Tensor) -> NDArray[np.float32]:
    return np.stack([predictor.step(symbols_B.numpy()) for symbols_B in text_TB])


def flat(hidden: Hidden) -> list[torch.Tensor]:
    return [part for state in hidden for part in state]


def assert_equal(hidden: Hidden, other: Hidden) -> None:
    assert all(torch.equal(*pair) for pair in zip(flat(hidden), flat(other), strict=True))


#: What makes the steps: numpy, or C compiled for a processor (the last for this one, without
#: AMX's tiles).
ENGINES = ["numpy", "native", "x86-64-v2", "x86-64-v3", "x86-64-v4", "native without tiles"]
COMPILED = ENGINES[1:]
#: The same for tests that take long.
COMPILED_SLOWLY = [COMPILED[0], *slowly(*COMPILED[1:])]


@cache
def steps_for(engine: str) -> Steps:
    """Return the compiled step, or skip the test if it cannot be compiled or run here."""
    machine = engine.split()[0]
    skip_without(machine)
    made = library.compile_library(Steps, compiler_of(tiles="without" not in engine), machine)
    assert isinstance(made, Steps), made
    return made


def make_stepper(
    engine: str, model: CharModel, hidden: Hidden, weights: WeightsName = "fp32"
) -> NumpyStepper | CompiledStepper:
    if engine == "numpy":
        return NumpyStepper(model, hidden, weights)
    return CompiledStepper(steps_for(engine), model, hidden, weights)


def drawing(engine: str, lanes: int, symbols: int) -> Callable[..., NDArray[np.int64]]:
    """Return C's draw for so many texts, by logits, points and how to draw."""
    model = make_model("rnn", 1, hidden=1, symbols=symbols)
    in_c = CompiledStepper(steps_for(engine), model, model.initial_hidden(lanes), "fp32").in_c

    def draw(
        logits_BV: NDArray[np.float32], points_B: NDArray[np.float64], **options: Any
    ) -> NDArray[np.int64]:
        in_c.set_draws(SampleConfig(**options), -1)
        return in_c.draw(logits_BV, points_B)

    return draw


def declared(struct: str) -> list[tuple[str, str]]:
    """Return the type, "*" for a pointer, and the name of each field of a struct in C."""
    source = files("charrnn.compute").joinpath("step.c").read_text(encoding="utf-8")
    (members,) = re.findall(rf"^typedef struct \{{\n([^}}]*)^\}} {struct};$", source, re.M)
    lines = re.sub(r"/\*.*?\*/", "", members, flags=re.S).split(";")[:-1]
    fields = [re.fullmatch(r"\s*(?:const )?(\w+) (.*)", line, re.S) for line in lines]
    return [
        ("*" if name.startswith("*") else field[1], name.strip("*"))
        for field in fields
        if field
        for name in field[2].split(", ")
    ]


def test_c_reads_a_layer_s_fields_in_the_order_in_which_python_writes_them() -> None:
    """Another order would be read as it is: a bias as a state, and written to."""
    ours = [re.sub(r"_[A-Z]+$", "", name) for name in Layer._fields]
    assert declared("layer") == [("*", name) for name in ours], "each is a pointer"


def test_c_reads_a_task_s_fields_as_python_writes_them() -> None:
    types = {"*": ctypes.c_void_p, "long": ctypes.c_long, "double": ctypes.c_double}
    types["int64_t"] = ctypes.c_int64  # the same as c_long where that has 64 bits
    assert [(name, types[kind]) for kind, name in declared("task")] == [*_Task._fields_]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("lanes", [1, 4, 19])
@pytest.mark.parametrize(("layers", "hidden", "symbols"), [(1, 7, 11), (3, 7, 11), (2, 45, 77)])
def test_steps_give_the_logits_of_one_forward(
    cell: CellName, layers: int, hidden: int, symbols: int, lanes: int, engine: str
) -> None:
    model = make_model(cell, layers, hidden, symbols)
    text_TB, state, expected_TBV = forward(model, lanes)
    before = copy.deepcopy(state)
    stepper = make_stepper(engine, model, state)
    got_TBV = steps(stepper, text_TB)
    np.testing.assert_allclose(got_TBV, expected_TBV.numpy(), atol=3e-6)
    assert_equal(state, before)
    with torch.inference_mode():
        _, after = model(text_TB, state)
    for ours, right in zip(flat(stepper.hidden()), flat(after), strict=True):
        torch.testing.assert_close(ours, right, rtol=0, atol=2e-6)


@pytest.mark.parametrize("engine", COMPILED_SLOWLY)
@pytest.mark.parametrize("weights", get_args(WeightsName))
def test_the_order_in_which_weights_are_read_changes_no_bit(
    cell: CellName, weights: WeightsName, engine: str
) -> None:
    """If there are many, every second step reads them backwards, and makes U's products first."""
    model = make_model(cell, layers=2, hidden=733)
    text_TB, state, _ = forward(model, 3)
    whole = make_stepper(engine, model, state, weights)
    for symbols_B in text_TB:
        first = make_stepper(engine, model, whole.hidden(), weights)
        np.testing.assert_array_equal(whole.step(symbols_B.numpy()), first.step(symbols_B.numpy()))
        assert_equal(whole.hidden(), first.hidden())


@pytest.mark.parametrize("engine", COMPILED)
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 0.03, 0.7, 1.0, 2.9, 1e38])
@pytest.mark.parametrize(("lanes", "symbols"), [(1, 11), (700, 37), (13, 500)])
def test_c_draws_as_numpy_does(lanes: int, symbols: int, temperature: float, engine: str) -> None:
    chance = np.random.default_rng(5)
    logits_BV = chance.normal(0, 5, (lanes, symbols)).astype(np.float32)
    logits_BV[:, [0, -1]] = -np.inf
    points_B = chance.random(lanes)
    points_B[1::9], points_B[2::9] = 0, np.nextafter(1, 0)
    draw = drawing(engine, lanes, symbols)
    drawn_B = draw(logits_BV, points_B, temperature=temperature)
    assert drawn_B.dtype == np.int64

    p_BV = next_probabilities(logits_BV, SampleConfig(temperature=temperature))
    until_BV = p_BV.cumsum(axis=1)
    rows = np.arange(lanes)
    after_B = until_BV[rows, drawn_B]
    assert (after_B - p_BV[rows, drawn_B] <= points_B + 1e-6).all()
    assert (points_B < after_B + 1e-6).all()
    assert not np.isin(drawn_B, [0, symbols - 1]).any()
    # At the outermost points numpy also draws what is less likely than e^-87.
    inner_B = (points_B > 0) & (points_B < 1 - 1e-9)
    assert (drawn_B == _draw(p_BV, points_B))[inner_B].mean() >= 0.99
    assert np.array_equal(draw(logits_BV, points_B, temperature=temperature), drawn_B)


@pytest.mark.parametrize("engine", COMPILED)
@pytest.mark.parametrize("symbols", [11, 37, 500])
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 0, "top_k": 3, "top_p": 0.5},
        {"temperature": 0.7, "top_k": 1},
        {"temperature": 1.3, "top_k": 7},
        {"top_k": 490},
        {"top_k": 1 << 62},
        {"top_p": 1e-300},
        {"temperature": 0.8, "top_p": 0.31},
        {"temperature": 1e38, "top_p": 0.62},
        {"temperature": 1e-300, "top_p": 0.91},
        {"top_p": 0.999},
        {"top_p": 1.0},
        {"temperature": 2.3, "top_k": 9, "top_p": 0.83},
    ],
)
def test_c_keeps_the_likeliest_as_numpy_does(
    symbols: int, alike: bool, options: dict[str, Any], engine: str
) -> None:
    """Of equal ones those with lower ids; the outermost points show the outermost that are kept."""
    chance, lanes = np.random.default_rng(6), 60
    logits_BV = chance.normal(0, 3, (lanes, symbols)).astype(np.float32)
    if alike:
        logits_BV = logits_BV.round()  # to -0.0, too, which equals 0.0
    logits_BV[:, [0, -1]] = -np.inf
    p_BV = next_probabilities(logits_BV, SampleConfig(**options))
    draw = drawing(engine, lanes, symbols)
    first_B = draw(logits_BV, np.zeros(lanes), **options)
    last_B = draw(logits_BV, np.full(lanes, np.nextafter(1, 0)), **options)
    kept = [np.flatnonzero(p_V > 1e-30) for p_V in p_BV]
    assert first_B.tolist() == [ids[0] for ids in kept]
    assert last_B.tolist() == [ids[-1] for ids in kept]
    for points_B in chance.random((9, lanes)):
        drawn_B = draw(logits_BV, points_B, **options)
        assert (drawn_B == _draw(p_BV, points_B)).mean() >= 0.98
        assert (p_BV[np.arange(lanes), drawn_B] > 0).all()


@pytest.mark.parametrize("engine", COMPILED_SLOWLY)
@pytest.mark.parametrize("lanes", [1, 3, 23, 70])
def test_next_symbols_are_what_steps_and_draws_give(
    cell: CellName, lanes: int, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However threads share out a step; one symbol is never drawn, and after a 0 C waits."""
    monkeypatch.setattr("charrnn.compute.products._LEAST_BYTES", 1)
    monkeypatch.setattr("charrnn.compute.trials._TRIAL", 1e-9)
    symbols, never, chance = 133, 129, np.random.default_rng(7)
    model = make_model(cell, 2, hidden=37, symbols=symbols)
    with torch.no_grad():
        model.head.bias[never] = 100  # nothing else would be drawn
    _, hidden, _ = forward(model, lanes)
    read_B = chance.integers(0, symbols, lanes)
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        many, one = (CompiledStepper(steps_for(engine), model, hidden, "fp32") for _ in range(2))
        many.in_c.set_draws(SampleConfig(temperature=0.8), never)
        one.in_c.set_draws(SampleConfig(temperature=0.8), -1)
        many.in_c.read_next(read_B)
        symbols_B, seen = read_B, []
        for steps in (1, 2, 5, 64, 64):
            points_SB = chance.random((steps, lanes))
            drawn_SB = many.in_c.next(points_SB)
            assert 1 <= len(drawn_SB) <= steps
            assert (drawn_SB[:-1] > 0).all()
            assert len(drawn_SB) == steps or 0 in drawn_SB[-1]
            for points_B, drawn_B in zip(points_SB, drawn_SB, strict=False):
                logits_BV = one.step(symbols_B)
                logits_BV[:, never] = -np.inf
                assert drawn_B.tolist() == one.in_c.draw(logits_BV, points_B).tolist()
                symbols_B = drawn_B.copy()
            np.testing.assert_array_equal(many.in_c.logits_BV, logits_BV)
            seen += drawn_SB.flatten().tolist()
        assert_equal(many.hidden(), one.hidden())
        assert never not in seen
        assert len({*seen}) > 9


@pytest.mark.parametrize("engine", COMPILED)
def test_c_draws_rare_symbols_as_often_as_they_are(engine: str) -> None:
    """e^x is computed as that, not as 1 + (e^x - 1)."""
    logits_BV = np.zeros((40, 3), np.float32)
    logits_BV[:, 0] = np.linspace(-86, -20, 40)
    p_B = np.exp(logits_BV[:, 0].astype(np.float64)) / 2
    draw = drawing(engine, 40, 3)
    assert (draw(logits_BV, p_B * 0.999) == 0).all()
    assert (draw(logits_BV, p_B * 1.001) == 1).all()


@pytest.mark.parametrize("engine", COMPILED)
@pytest.mark.parametrize(
    "options", [{"temperature": 0.5}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.9}]
)
def test_c_draws_symbol_0_where_no_prediction_is_finite(
    options: dict[str, Any], engine: str
) -> None:
    logits_BV = np.zeros((5, 3), np.float32)
    logits_BV[0, 1] = np.nan
    logits_BV[1, 2] = np.nan
    logits_BV[2, 1] = np.inf
    logits_BV[3] = -np.inf
    logits_BV[4, 2] = 1
    drawn_B = drawing(engine, 5, 3)(logits_BV, np.full(5, 0.9), **options)
    assert drawn_B.tolist() == [0, 0, 0, 0, 2]


@pytest.mark.parametrize("engine", COMPILED_SLOWLY)
@pytest.mark.parametrize("weights", get_args(WeightsName))
@pytest.mark.parametrize(("lanes", "width"), [(1, 37), (4, 37), (23, 37), (1, 733)])
def test_threads_change_no_bit(
    cell: CellName,
    lanes: int,
    width: int,
    weights: WeightsName,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether threads share out the lanes or, with few lanes, the units, or take turns."""
    monkeypatch.setattr("charrnn.compute.products._LEAST_BYTES", 1)
    monkeypatch.setattr("charrnn.compute.trials._TRIAL", 1e-9)
    model = make_model(cell, 2, hidden=width, symbols=77)
    text_TB, hidden, _ = forward(model, lanes)
    results = []
    for number in (1, 2, 3, 5, 7):
        # torch itself must keep its number of threads: it computes the table.
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        results.append(steps(make_stepper(engine, model, hidden, weights), text_TB))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize(
    ("lanes", "kilobytes", "most", "expected"),
    [
        (1, 1023, 8, [(1, True)]),
        (1, 1024, 8, [(1, True), (2, False)]),
        (1, 3000, 8, [(1, True), (5, False), (2, False)]),
        (1, 50_000, 8, [(1, True), (8, False), (4, False), (2, False)]),
        (7, 50_000, 1, [(1, True)]),
        (7, 50_000, 2, [(1, True), (2, False)]),
        (8, 50_000, 2, [(2, True), (2, False)]),
        (64, 50_000, 2, [(2, True), (2, False)]),
        (64, 1023, 2, [(2, True)]),
        (15, 50_000, 8, [(3, True), (8, False), (4, False)]),
        (32, 50_000, 8, [(8, True), (8, False)]),
    ],
)
def test_threads_share_the_lanes_or_the_units(
    lanes: int, kilobytes: int, most: int, expected: list[tuple[int, bool]]
) -> None:
    assert ways_to_share(lanes, kilobytes << 10, most) == expected


def test_more_lanes_never_have_fewer_threads() -> None:
    for megabytes in (0, 1, 5, 17, 50):
        for most in (1, 2, 3, 8, 64):
            numbers = [
                max(threads for threads, _ in ways_to_share(lanes, megabytes << 20, most))
                for lanes in range(1, 300)
            ]
            assert numbers == sorted(numbers)


@pytest.mark.parametrize(("lanes", "expected"), [(1, {(1, 1), (3, 0)}), (23, {(3, 1), (3, 0)})])
def test_c_is_told_how_many_threads_there_are(
    lanes: int, expected: set[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.compute.trials._TRIAL", 1e-9)
    monkeypatch.setattr("charrnn.compute.products._LEAST_BYTES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    made = steps_for("native")
    library = Mock(wraps=made._library)
    monkeypatch.setattr(made, "_library", library)
    model = make_model("lstm", 2)
    stepper = CompiledStepper(made, model, model.initial_hidden(lanes), "fp32")
    for _ in range(4):
        stepper.step(np.zeros(lanes, int))
    for function in (library.step_room, library.step):
        told = {tuple(size.value for size in call.args[:2]) for call in function.call_args_list}
        assert told == expected


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("weights", get_args(WeightsName))
def test_a_broken_lane_is_seen_and_stays_alone(
    cell: CellName, weights: WeightsName, engine: str
) -> None:
    model = make_model(cell, 2)
    text_TB, hidden, _ = forward(model, 5)
    expected_TBV = steps(make_stepper(engine, model, hidden, weights), text_TB)
    hidden = copy.deepcopy(hidden)
    with torch.inference_mode():
        hidden[0][0][3, 2] = torch.nan
    got_TBV = steps(make_stepper(engine, model, hidden, weights), text_TB)
    assert np.isnan(got_TBV[:, 3]).all()
    others = [0, 1, 2, 4]
    np.testing.assert_allclose(got_TBV[:, others], expected_TBV[:, others], atol=1e-6)


def test_what_c_would_misread_is_refused() -> None:
    model = make_model("gru", 2)
    hidden = model.initial_hidden(2)
    transposed = ((torch.zeros(7, 2).t(),), hidden[1])
    wrong = ((torch.zeros(2, 7, dtype=torch.float64),), hidden[1])
    narrow = ((torch.zeros(2, 7, dtype=torch.bfloat16),), hidden[1])
    for state, said in ((transposed, "contiguous"), (wrong, "float32"), (narrow, "float32")):
        for weights in get_args(WeightsName):
            with pytest.raises(TypeError, match=said):
                make_stepper("native", model, state, weights)


@pytest.mark.parametrize("machine", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_bytes_are_multiplied_where_there_are_instructions_for_it(machine: str) -> None:
    assert steps_for(machine).multiplies_int8 == (machine != "x86-64-v2")


@pytest.mark.parametrize("engine", COMPILED)
def test_sums_of_wide_rows_of_bytes_do_not_overflow(engine: str) -> None:
    """The worst case, with the largest weights and states: wide rows get smaller integers."""
    width = 2500
    model = CharModel(ModelConfig(cell="rnn", vocabulary=3, layers=1, hidden=width, embedding=2))
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        _, expected_TBV = (
            model(torch.zeros(1, 1, dtype=torch.int64)),
            torch.full((1, 1, 3), width + 1.0),
        )
    hidden = ((torch.ones(1, width),),)
    got_BV = make_stepper(engine, model, hidden, "int8").step(np.zeros(1, np.int64))
    np.testing.assert_allclose(got_BV, expected_TBV[0].numpy(), rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("weights", get_args(WeightsName))
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_weights_that_are_no_numbers_are_seen(
    bad: float, weights: WeightsName, engine: str
) -> None:
    model = make_model("lstm", 2)
    with torch.no_grad():
        model.layers()[1].weight_input[3, 2] = bad
        model.layers()[1].weight_input[3, 4] = -bad
    text_TB, hidden, _ = forward(make_model("lstm", 2), 3)
    with unwarned():
        got_TBV = steps(make_stepper(engine, model, hidden, weights), text_TB)
    assert not np.isfinite(got_TBV).all()


def rounded(weight_NK: torch.Tensor, weights: WeightsName) -> torch.Tensor:
    """Return a matrix rounded to fewer bits."""
    if weights == "bf16":
        return weight_NK.bfloat16().float()
    rows = []
    for row_K in weight_NK:
        scale = row_K.abs().max() / 127
        rows.append(scale * (row_K / scale).round())
    return torch.stack(rows)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("lanes", [1, 4, 19])
@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_smaller_weights_are_the_rounded_ones(
    cell: CellName, weights: WeightsName, lanes: int, engine: str
) -> None:
    model = make_model(cell, 2, hidden=45)
    text_TB, hidden, exact_TBV = forward(model, lanes)
    other = copy.deepcopy(model)
    with torch.no_grad():
        # The lowest layer's input product is a table, in full precision.
        lowest, upper = other.layers()
        for weight in (
            lowest.weight_recurrent,
            upper.weight_input,
            upper.weight_recurrent,
            other.head.weight,
        ):
            weight.copy_(rounded(weight, weights))
        expected_TBV = other(text_TB, hidden)[0].numpy()

    got_TBV = steps(make_stepper(engine, model, hidden, weights), text_TB)

    atol = 3e-6
    if engine != "numpy" and getattr(steps_for(engine), f"multiplies_{weights}"):
        # States are rounded before they are multiplied: to bf16's 8 bits, or to 15 bits.
        atol = 0.05 if weights == "bf16" else 1e-3
    np.testing.assert_allclose(got_TBV, expected_TBV, atol=atol)
    assert np.abs(got_TBV - exact_TBV.numpy()).max() > 1e-4, "something was rounded"
