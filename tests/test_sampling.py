from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace
from itertools import islice
from typing import Any, get_args
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from charrnn.compute.steps import BoundSteps, Steps, steps
from charrnn.config import CellName, ModelConfig, SampleConfig, WeightsName
from charrnn.errors import NonFiniteError, VocabularyError
from charrnn.inference import sampling
from charrnn.inference.sampling import (
    _draw,
    collect,
    next_probabilities,
    prepare_prompt,
    sample,
    unwarned,
)
from charrnn.inference.stepper import CompiledStepper, NumpyStepper
from charrnn.network.model import CharModel
from charrnn.text.vocabulary import UNKNOWN, Vocabulary
from tests.conftest import needs_compiler
from tests.small import vocabulary_of

KNOWN = "\nabcdefg樓"
VOCABULARY = vocabulary_of(KNOWN)
V = VOCABULARY.size


def make_model(cell: CellName = "lstm", size: int = V) -> CharModel:
    torch.manual_seed(3)
    config = ModelConfig(
        cell=cell, vocabulary=size, layers=2, hidden=6, embedding=4, dropout=0.5, weight_drop=0.5
    )
    model = CharModel(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)  # each character of the past matters
        model.head.bias[UNKNOWN] = 50.0  # the likeliest by far, were it allowed
    return model


def texts(
    model: CharModel, words: Vocabulary, prompt: str, config: SampleConfig, most: int = 999
) -> list[str]:
    """Return what each sample says."""
    steps = islice(sample(model, words, words.encode(prompt), config), most)
    return [words.decode(symbols) for symbols in collect(config.count, steps)]


def move_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put models on a device that is a CPU under another name."""

    class Elsewhere(str):
        type = "elsewhere"

    monkeypatch.setattr(torch.nn.Parameter, "device", Elsewhere("cpu"), raising=False)


def naive_probabilities(logits: list[float], config: SampleConfig) -> list[float]:
    """Return the probabilities by the definitions, with plain lists."""
    symbols = sorted(range(len(logits)), key=lambda symbol: (-logits[symbol], symbol))
    if config.temperature == 0:
        return [float(symbol == symbols[0]) for symbol in range(len(logits))]
    p = [math.exp(logit / config.temperature) for logit in logits]
    if config.top_k is not None:
        symbols = symbols[: config.top_k]
    if config.top_p is not None:
        total, nucleus = 0.0, []
        for symbol in symbols:
            nucleus.append(symbol)
            total += p[symbol] / sum(p[s] for s in symbols)
            if total >= config.top_p:
                break
        symbols = nucleus
    kept = [p[symbol] if symbol in symbols else 0.0 for symbol in range(len(p))]
    return [value / sum(kept) for value in kept]


LOGITS = st.lists(st.floats(-9, 9).map(lambda x: round(x, 3)), min_size=2, max_size=9, unique=True)


class TestProbabilities:
    @settings(max_examples=300)
    @given(
        logits=LOGITS,
        temperature=st.sampled_from([0, 0.3, 1.0, 1.7, 5.0]),
        top_k=st.none() | st.integers(1, 12),
        top_p=st.none() | st.sampled_from([0.013, 0.37, 0.71, 0.93, 0.999, 1.0]),
    )
    def test_equal_the_definitions(
        self, logits: list[float], temperature: float, top_k: int | None, top_p: float | None
    ) -> None:
        config = SampleConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        expected = naive_probabilities(logits, config)
        other = list(reversed(logits))
        p_BV = next_probabilities(np.array([logits, other], np.float64), config)
        # With top_p 1, rounding may keep or drop a symbol of negligible probability.
        np.testing.assert_allclose(p_BV[0], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            p_BV[1], naive_probabilities(other, config), rtol=1e-9, atol=1e-12
        )

    @pytest.mark.parametrize(
        "options", [{"top_k": 10}, {"top_k": 50}, {"top_p": 0.2}, {"top_p": 0.9}]
    )
    def test_the_lower_ids_of_equals_are_kept(self, options: dict[str, Any]) -> None:
        """65 symbols, because even an unstable sort keeps the order of equals in a short list."""
        logits = np.random.default_rng(1).choice([1.0, 2.0], 65).tolist()
        config = SampleConfig(**options)
        p_BV = next_probabilities(np.array([logits]), config)
        np.testing.assert_allclose(p_BV[0], naive_probabilities(logits, config))

    def test_the_nucleus_is_the_smallest_that_reaches_p(self) -> None:
        logits_BV = np.log([[0.5, 0.3, 0.15, 0.05]])
        for top_p, size in ((0.4, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1.0, 4)):
            p_BV = next_probabilities(logits_BV, SampleConfig(top_p=top_p))
            assert np.count_nonzero(p_BV) == size, top_p

    @pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-3, 1.0, 1e38])
    def test_any_temperature_gives_probabilities(self, temperature: float) -> None:
        logits_BV = np.array([[-np.inf, 3.0, -1e4, 2.999]], np.float32)
        p_BV = next_probabilities(logits_BV, SampleConfig(temperature=temperature))
        assert np.isfinite(p_BV).all()
        assert p_BV.sum() == pytest.approx(1)
        assert p_BV[0, 0] == 0

    @pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.1}])
    def test_the_likeliest_stay_so_at_any_temperature(self, options: dict[str, Any]) -> None:
        logits_BV = np.array([[-np.inf, 1.0, 9.0, 5.0]], np.float32)
        p_BV = next_probabilities(logits_BV, SampleConfig(temperature=1e20, **options))
        assert p_BV.tolist() == [[0, 0, 1, 0]]

    @pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.9}])
    def test_what_is_not_finite_gives_no_probability(self, options: dict[str, Any]) -> None:
        no, inf = np.nan, np.inf
        logits_BV = np.array([[3, no, 2], [no, 3, 1], [1, 0, inf], [-inf, -inf, -inf], [1, 2, 3]])
        with unwarned():
            p_BV = next_probabilities(logits_BV, SampleConfig(**options))
        assert [np.isnan(p_V).all() for p_V in p_BV] == [True] * 4 + [False]

    def test_what_must_not_be_drawn_has_no_share(self) -> None:
        logits_BV = np.array([[-np.inf, 1.0, 1.0]])
        for config in (SampleConfig(top_p=0.99), SampleConfig(top_k=3), SampleConfig()):
            assert next_probabilities(logits_BV, config).tolist() == [[0, 0.5, 0.5]]


@pytest.fixture(params=["numpy", "C"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What makes all steps of a sample, and draws after each (C: where it can be compiled)."""
    if request.param == "numpy":
        monkeypatch.setattr(sampling, "steps", lambda: None)
    engine: str = request.param
    return engine


def steps_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list in which each later step of a sample will record its number of lanes."""
    made: list[int] = []
    make = sampling._stepper

    def note(owner: object, name: str) -> None:
        step = getattr(owner, name)

        def noted_step(given: NDArray[Any]) -> Any:
            result = step(given)
            lanes = given.shape[-1]
            made.extend([lanes] * (1 if name == "step" else len(result)))
            return result

        monkeypatch.setattr(owner, name, noted_step)

    def noted(*of: Any) -> Any:
        stepper = make(*of)
        note(stepper, "step")
        if stepper.in_c is not None:
            note(stepper.in_c, "next")
        return stepper

    monkeypatch.setattr(sampling, "_stepper", noted)
    return made


class TestSample:
    @pytest.mark.parametrize(
        "options",
        [
            {"temperature": 0},
            {"temperature": 0.7},
            {"top_k": 3, "temperature": 1.3},
            {"top_p": 0.8},
            {"count": 3},
        ],
    )
    @pytest.mark.usefixtures("engine")
    def test_equals_the_definition(
        self, cell: CellName, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sampling, "DRAWS", 7)  # so that it draws several times
        model, words = make_model(cell), VOCABULARY
        config = SampleConfig(length=50, seed=11, **options)
        expected = []
        model.eval()
        for number in range(config.count):
            stream = np.random.Generator(np.random.Philox([11, number]))
            symbols = words.encode("abba").tolist()
            for _ in range(50):
                logits_TBV, _ = model(torch.tensor(symbols)[:, None])  # the whole text every time
                logits: NDArray[Any] = logits_TBV[-1].detach().double().numpy()
                logits[0, UNKNOWN] = -np.inf
                p_V = next_probabilities(logits, config)[0]
                point = stream.random()
                symbols.append(next(i for i in range(V) if p_V[: i + 1].sum() > point))
            expected.append(words.decode(symbols)[4:])
        model.train()
        assert len(set(expected)) == config.count
        assert texts(model, words, "abba", config) == expected

    def test_no_two_samples_have_the_same_points(self) -> None:
        """A seed of more than 32 bits does not repeat another sample's points of a smaller seed."""
        seeds = [1, 2, 3, 1 << 32, (1 << 32) + 1, 1 + (5 << 32), (1 << 63) - 1]
        drawn = [tuple(next(sampling._points(SampleConfig(seed=s, count=6)))[0]) for s in seeds]
        points = [point for of_seed in drawn for point in of_seed]
        assert len(set(points)) == 6 * len(seeds)
        stream = np.random.Generator(np.random.Philox([3, 5]))
        assert drawn[2][5] == stream.random(), "as before larger seeds were allowed"

    def test_frequencies_are_the_probabilities(self) -> None:
        model, words = make_model(), VOCABULARY
        with torch.no_grad():
            model.head.weight.zero_()  # the past does not matter
            model.head.bias.copy_(torch.arange(V) / 4)
        p_V = np.exp(np.arange(V) / 4)
        p_V[UNKNOWN] = 0
        p_V /= p_V.sum()
        (text,) = texts(model, words, "", SampleConfig(length=4000, seed=2), most=4000)
        counts_V = np.array([0] + [text.count(character) for character in KNOWN])
        assert np.abs(counts_V / 4000 - p_V).max() < 0.02

    def test_the_outermost_points_draw_symbols_that_can_be(self) -> None:
        p_BV = 0.01 + np.random.default_rng(3).random((5000, V))
        p_BV[:, [0, -2, -1]] = 0
        p_BV /= p_BV.sum(axis=1, keepdims=True)
        ends_B = p_BV.cumsum(axis=1)[:, -1]
        assert ends_B.min() < 1 < ends_B.max(), "rounded both ways"
        assert (_draw(p_BV, np.zeros(len(p_BV))) == 1).all()
        assert (_draw(p_BV, np.full(len(p_BV), np.nextafter(1, 0))) == V - 3).all()

    @pytest.mark.parametrize(
        "options", [{}, {"temperature": 0.3}, {"temperature": 0}, {"top_k": 3, "top_p": 0.8}]
    )
    @pytest.mark.usefixtures("engine")
    def test_many_samples_draw_as_some_at_a_time_do(
        self, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, config = make_model(), SampleConfig(length=9, count=8, **options)
        expected, widths = texts(model, VOCABULARY, "ab", config), []

        def watched(logits_BV: NDArray[np.floating], config: SampleConfig) -> NDArray[np.float64]:
            widths.append(len(logits_BV))
            return next_probabilities(logits_BV, config)

        monkeypatch.setattr(sampling, "next_probabilities", watched)
        monkeypatch.setattr(sampling, "AT_ONCE", 3 * V)
        assert texts(model, VOCABULARY, "ab", config) == expected
        assert widths[:3] in ([3, 3, 2], [])

    def test_temperature_0_takes_the_likeliest_whatever_the_seed(self) -> None:
        model, words = make_model(), VOCABULARY
        made = {
            texts(model, words, "a", SampleConfig(length=40, temperature=0, seed=seed))[0]
            for seed in (1, 2)
        }
        assert len(made) == 1

    def test_the_same_seed_gives_the_same_text(self) -> None:
        model, words = make_model(), VOCABULARY

        def draw(seed: int, count: int) -> list[str]:
            return texts(model, words, "ab", SampleConfig(length=60, seed=seed, count=count))

        assert draw(4, 3) == draw(4, 3)
        assert len(set(draw(4, 3))) == 3, "each sample has a stream of its own"
        assert draw(4, 3) == draw(4, 5)[:3]
        assert draw(4, 1)[0] == draw(4, 3)[0]
        assert draw(4, 1) != draw(5, 1)

    def test_neither_takes_nor_gives_randomness(self) -> None:
        model, words = make_model(), VOCABULARY
        assert model.training
        before = torch.get_rng_state()
        first = texts(model, words, "ab", SampleConfig(length=30))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(99)
        np.random.seed(99)
        assert texts(model, words, "ab", SampleConfig(length=30)) == first
        assert model.training, "the mode is put back"

    @pytest.mark.parametrize("length", [1, 2, 31])
    def test_length_counts_new_characters(self, length: int) -> None:
        config = SampleConfig(length=length, count=2)
        steps = [*sample(make_model(), VOCABULARY, np.array([1, 2, 3]), config)]
        assert [numbers for numbers, _ in steps] == [[0, 1]] * length
        assert [len(symbols) for _, symbols in steps] == [2] * length

    def test_length_0_never_ends(self) -> None:
        config = SampleConfig(length=0)
        (text,) = texts(make_model(), VOCABULARY, "", config, most=3000)
        assert len(text) == 3000

    def test_a_character_is_given_before_the_next_is_computed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = steps_made(monkeypatch)
        for index, _ in enumerate(
            sample(make_model(), VOCABULARY, np.array([1]), SampleConfig(length=5))
        ):
            if not index:
                steps.clear()  # those of the prompt
            assert len(steps) == index
        assert len(steps) == 4, "nothing is computed after the last"

    @needs_compiler
    @pytest.mark.parametrize(("most", "expected"), [(10**9, 64), (7, 7), (0, 1)])
    def test_several_samples_are_drawn_a_while_ahead(
        self, most: int, expected: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So long as a signal need not wait for too much."""
        model, asked, real = make_model(), [], BoundSteps.next
        work = model.multiply_adds() + 10 * VOCABULARY.size
        monkeypatch.setattr(sampling, "AT_A_TIME", most * 3 * work)

        def next_(in_c: BoundSteps, points_SB: NDArray[np.float64]) -> Any:
            asked.append(len(points_SB))
            return real(in_c, points_SB)

        monkeypatch.setattr(BoundSteps, "next", next_)
        whole = texts(model, VOCABULARY, "ab", SampleConfig(length=191, count=3))
        assert [len(text) for text in whole] == [191] * 3
        assert sum(asked) == 190, "the first follow the prompt"
        assert max(asked) == expected

    @pytest.mark.usefixtures("engine")
    def test_never_gives_the_unknown_symbol(self) -> None:
        for config in (
            SampleConfig(length=300, temperature=0),
            SampleConfig(length=300, temperature=50, count=2),
            SampleConfig(length=300, top_k=1),
            SampleConfig(length=300, top_p=0.5),
        ):
            for text in texts(make_model(), VOCABULARY, "a", config):
                assert set(text) <= set(KNOWN)

    @pytest.mark.parametrize("temperature", [0, 1])
    def test_weights_too_large_to_compute_with_are_refused(self, temperature: float) -> None:
        model = make_model()
        with torch.no_grad():
            model.head.weight.fill_(torch.inf)
        config = SampleConfig(length=5, temperature=temperature)
        with pytest.raises(NonFiniteError, match=r"predictions are not finite: .* lower --lr"):
            next(sample(model, VOCABULARY, np.array([1]), config))

    @pytest.mark.parametrize(("temperature", "count"), [(0, 1), (1, 1), (1, 3)])
    @pytest.mark.usefixtures("engine")
    def test_so_are_those_that_are_too_large_later(self, temperature: float, count: int) -> None:
        """The predictions after the prompt are finite, those after a later character are not."""
        model = make_model()
        config = SampleConfig(length=50, temperature=temperature, count=count)
        free = [symbols for _, symbols in sample(model, VOCABULARY, np.array([1]), config)]
        found = {symbol: step for step in range(48, -1, -1) for symbol in free[step]}
        late = max(found.keys() - {1}, key=lambda symbol: found[symbol])
        assert found[late] > 1
        with torch.no_grad():
            model.embedding.weight[late] = torch.nan
        drawn: list[list[int]] = []
        steps = sample(model, VOCABULARY, np.array([1]), config)
        with pytest.raises(NonFiniteError, match="predictions are not finite"):
            drawn.extend(symbols for _, symbols in steps)
        assert drawn == free[: found[late] + 1]

    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.usefixtures("engine")
    def test_where_only_the_unknown_symbol_could_follow_nothing_is_drawn(self, count: int) -> None:
        model = make_model()
        with torch.no_grad():
            model.head.bias[UNKNOWN + 1 :] = -torch.inf
        steps = sample(model, VOCABULARY, np.array([1]), SampleConfig(length=5, count=count))
        with unwarned(), pytest.raises(NonFiniteError, match="predictions are not finite"):
            next(steps)

    def test_what_would_follow_a_sample_that_is_complete_does_not_matter(self) -> None:
        model, words = make_model(), VOCABULARY
        config = SampleConfig(length=40, count=4, temperature=3, stop="a")
        ended = texts(model, words, "b", config)
        assert len({len(text) for text in ended}) > 1
        with torch.no_grad():
            model.embedding.weight[int(words.encode("a")[0])] = torch.nan
        assert texts(model, words, "b", config) == ended

    @pytest.mark.parametrize("stop", ["a", "ab", "\n", "樓"])
    def test_stops_after_the_stop_text_of_each_sample(self, stop: str) -> None:
        model, words = make_model(), VOCABULARY
        free = texts(model, words, stop, SampleConfig(length=400, count=4, temperature=3))
        config = SampleConfig(length=400, count=4, temperature=3, stop=stop)
        ended = texts(model, words, stop, config)
        for text, whole in zip(ended, free, strict=True):
            at = whole.find(stop)
            assert text == (whole if at < 0 else whole[: at + len(stop)])
        assert any(text.endswith(stop) for text in ended)
        assert len({len(text) for text in ended}) > 1

    @pytest.mark.parametrize("elsewhere", [False, True])
    @pytest.mark.usefixtures("engine")
    def test_where_half_of_the_samples_have_ended_the_others_go_on_alone(
        self, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, words = make_model(), VOCABULARY
        config = SampleConfig(length=400, count=7, temperature=3, stop="a", seed=2)
        whole = texts(model, words, "b", replace(config, stop=None))
        lengths = [len(text.partition("a")[0]) + 1 for text in whole]
        expected, lanes = [], config.count
        for step in range(1, max(lengths)):
            still = sum(length > step for length in lengths)
            lanes = still if 2 * still <= lanes else lanes
            expected.append(lanes)
        assert len({*expected}) > 2
        made = steps_made(monkeypatch)
        if elsewhere:
            move_elsewhere(monkeypatch)
        ended = texts(model, words, "b", config)
        assert ended == [text[:length] for text, length in zip(whole, lengths, strict=True)]
        # On a CPU the prompt is read in steps, of one lane.
        assert made == (expected if elsewhere else [1, *expected])

    def test_one_engine_makes_all_steps(self, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """C where there is any, but for a sample that must not wait for it."""
        for waits in (True, False):
            in_c = waits and engine == "C" and steps() is not None
            used = Mock(wraps=CompiledStepper if in_c else NumpyStepper)
            monkeypatch.setattr(sampling, "CompiledStepper", used if in_c else None)
            monkeypatch.setattr(sampling, "NumpyStepper", None if in_c else used)
            config = SampleConfig(length=20, count=2)
            assert [*sample(make_model(), VOCABULARY, np.array([1]), config, compiled=waits)]
            assert used.call_count == 2, "for the prompt, and for what follows it"

    @pytest.mark.parametrize(("count", "weights"), [(1, "fp32"), (1, "int8"), (2, "fp32")])
    @pytest.mark.usefixtures("engine")
    def test_the_steps_of_a_short_prompt_go_on_where_they_can(
        self, count: int, weights: WeightsName, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arranged = Mock(wraps=sampling._stepper)
        monkeypatch.setattr(sampling, "_stepper", arranged)
        model, words = make_model(), VOCABULARY
        config = SampleConfig(length=20, count=count, weights=weights)
        again = texts(model, words, "abba", config)
        assert arranged.call_count == count
        for name in ("PROMPT_WINDOW", "SHORT_PROMPT"):
            monkeypatch.setattr(sampling, name, 3)
        assert weights != "fp32" or texts(model, words, "abba", config) == again

    @pytest.mark.parametrize("count", [1, 3])
    def test_a_long_prompt_is_read_in_windows(
        self, cell: CellName, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, words = make_model(cell), VOCABULARY
        prompt = "abcdefg\n" * 5
        config = SampleConfig(length=20, count=count)
        by_characters = texts(model, words, prompt, config)
        for name in ("PROMPT_WINDOW", "SHORT_PROMPT"):
            monkeypatch.setattr(sampling, name, len(prompt) - 1)
        assert texts(model, words, prompt, config) == by_characters
        monkeypatch.setattr("charrnn.inference.sampling.PROMPT_WINDOW", 7)
        assert texts(model, words, prompt, config) == by_characters

    def test_what_runs_on_another_device_draws_the_same(
        self, cell: CellName, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There the model's own forward makes each step; in this test it runs on the CPU."""
        model, words = make_model(cell), VOCABULARY
        config = SampleConfig(length=20, count=3)
        expected = texts(model, words, "abba", config)
        move_elsewhere(monkeypatch)
        for name in ("NumpyStepper", "CompiledStepper"):
            monkeypatch.setattr(sampling, name, None)
        assert texts(model, words, "abba", config) == expected

    @pytest.mark.parametrize("waits", [True, False])
    @pytest.mark.parametrize("more", [0, 1])
    def test_a_short_prompt_needs_no_loops(
        self, cell: CellName, waits: bool, more: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """How short depends on the steps; a sample that must not wait asks for none in C."""
        asked: list[str] = []
        in_c = steps()

        def ask_steps() -> Steps | None:
            asked.append("steps")
            return in_c

        monkeypatch.setattr("charrnn.compute.recurrence.loops", lambda: asked.append("loops"))
        monkeypatch.setattr(sampling, "steps", ask_steps)
        model, words = make_model(cell), VOCABULARY
        most = sampling.PROMPT_WINDOW if waits and in_c else sampling.SHORT_PROMPT
        prompt = words.encode("a" * (most + more))
        config = SampleConfig(length=20)
        assert len([*sample(model, words, prompt, config, compiled=waits)]) == 20
        assert {*asked} == {*(["steps"] if waits else []), *(["loops"] if more else [])}

    @pytest.mark.parametrize("weights", get_args(WeightsName))
    @pytest.mark.usefixtures("engine")
    def test_a_longer_text_begins_with_a_shorter_one(self, weights: WeightsName) -> None:
        model, words = make_model(), VOCABULARY
        made = {}
        for length in (21, 22, 50, 0):
            config = SampleConfig(length=length, weights=weights)
            (made[length],) = texts(model, words, "abba", config, most=70)
        assert [len(text) for text in made.values()] == [21, 22, 50, 70]
        assert all(made[0].startswith(text) for text in made.values())

    @pytest.mark.parametrize("config", [SampleConfig(), SampleConfig(count=4, stop="a")])
    @pytest.mark.usefixtures("engine")
    def test_matrices_that_no_step_reads_any_more_are_let_go(
        self, config: SampleConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those made for the prompt, and those for more samples than are left."""
        made: list[weakref.ref[Any]] = []
        make = sampling._stepper

        def watched(*of: Any) -> Any:
            gc.collect()
            assert not any(one() is not None for one in made), "both would need room at once"
            stepper = make(*of)
            made.append(weakref.ref(stepper.in_c or stepper))
            return stepper

        monkeypatch.setattr(sampling, "_stepper", watched)
        replaced = config.count > 1
        config = replace(config, length=200, temperature=3)
        assert [*sample(make_model(), VOCABULARY, VOCABULARY.encode("b"), config)]
        assert (len(made) > 2) is replaced

    def test_no_prompt_is_a_line_break(self) -> None:
        words = vocabulary_of("\t" + KNOWN)
        model = make_model(size=words.size)
        config = SampleConfig(length=20)
        assert texts(model, words, "", config) == texts(model, words, "\n", config)

    def test_no_prompt_is_the_first_symbol_where_there_is_no_line_break(self) -> None:
        words = vocabulary_of("xy")
        model = make_model(size=3)
        config = SampleConfig(length=20)
        assert texts(model, words, "", config) == texts(model, words, "x", config)

    def test_bytes(self) -> None:
        model = make_model(size=256)
        steps = sample(model, Vocabulary.of_bytes(), np.array([0, 255]), SampleConfig(length=300))
        assert UNKNOWN in collect(1, steps)[0], "0 is a byte like any other"


class TestPrompt:
    def test_a_prompt_of_which_nothing_is_left_is_no_prompt(self) -> None:
        ids, _ = prepare_prompt("☃", VOCABULARY, "skip")
        model, words, config = make_model(), VOCABULARY, SampleConfig(length=9)
        (made,) = collect(1, sample(model, words, ids, config))
        assert words.decode(made) == texts(model, words, "", config)[0]

    @pytest.mark.parametrize(
        ("min_count", "seen"),
        [(1, ""), (2, ", which occur fewer than 2 times in the text of its vocabulary")],
    )
    def test_says_how_often_a_text_has_what_its_model_does_not_know(
        self, min_count: int, seen: str
    ) -> None:
        """A reader may have found the character in that text."""
        counts = {ord("a"): 9, ord("é"): 1}
        words = Vocabulary.from_counts(counts, "utf-8", min_count)
        with pytest.raises(VocabularyError, match=f"of the prompt{seen}: .*'☃' x 1"):
            prepare_prompt("aé☃", words, "error")
