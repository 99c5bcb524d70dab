"""The shape of the rules; the numbers they give are measured elsewhere and may change."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.config import CELL_GATES, CELL_NAMES, CellName, ModelConfig, TrainConfig
from charrnn.errors import UsageError
from charrnn.network.model import outline
from charrnn.recipe import (
    BY_HEART,
    GPU_WIDER_FROM,
    HALVED_BY,
    MOST_WEIGHTS,
    RARE_SYMBOLS,
    RULES,
    Choices,
    choose,
    dropout_and_weight_drop,
    guessed_speed,
    loss_temperature,
    matrix_weights,
    parameter_count,
    pressure,
    refuse_nonsense,
    weight_decay,
)

CELLS = st.sampled_from(CELL_NAMES)
DEVICES = st.sampled_from(["cpu", "cuda", "mps"])


def choose_for(
    device: str = "cpu",
    cell: CellName = "lstm",
    characters: int = 10_000,
    *,
    vocabulary: int = 50,
    bf16: bool = False,
    **choices: Any,
) -> tuple[ModelConfig, TrainConfig]:
    return choose(
        Choices(cell=cell, **choices),
        vocabulary=vocabulary,
        characters=characters,
        device=device,
        bf16=bf16,
    )


class TestChoose:
    @pytest.mark.parametrize(
        ("characters", "wished"),
        [
            (1_003_854, {"batch_size": 2048, "bptt": 1024}),
            (180_000, {"batch_size": 4096, "bptt": 128}),
        ],
    )
    def test_an_update_reads_no_more_than_there_is(
        self, characters: int, wished: dict[str, int]
    ) -> None:
        """Lanes that the text is too short for change nothing: a step is then a pass."""
        by_steps, _ = choose_for(characters=characters, budget={"steps": 20}, training=wished)
        by_passes, _ = choose_for(characters=characters, budget={"epochs": 20}, training=wished)
        assert by_steps == by_passes
        lanes = (characters - 1) // wished["bptt"]
        some = {"loss_last": 10, "bptt": wished["bptt"]}
        fits, wants = ({"batch_size": n, **some} for n in (lanes, 9 * lanes))
        same, other = (
            choose_for(characters=characters, budget={"steps": 200}, training=given)[0]
            for given in (fits, wants)
        )
        assert same == other

    @given(
        cell=CELLS,
        device=DEVICES,
        vocabulary=st.integers(2, 200_000),
        characters=st.integers(2, 10**11),
        bf16=st.booleans(),
    )
    def test_there_are_defaults_for_everything(
        self, cell: CellName, device: str, vocabulary: int, characters: int, bf16: bool
    ) -> None:
        def chosen() -> tuple[ModelConfig, TrainConfig]:
            return choose_for(device, cell, characters, vocabulary=vocabulary, bf16=bf16)

        model, training = chosen()
        assert (model.cell, model.vocabulary) == (cell, vocabulary)
        assert model.embedding <= vocabulary + 7 * (bf16 and device == "cuda")
        assert training.minutes is not None
        assert training.clip_norm is not None, "clipping by norm is the default"
        assert training.precision == ("bf16" if bf16 else "fp32")
        assert chosen() == (model, training)

    def test_a_cpu_that_multiplies_bf16_does(self, cell: CellName) -> None:
        def chosen(bf16: bool, **training: str) -> tuple[ModelConfig, TrainConfig]:
            return choose_for("cpu", cell, bf16=bf16, training=training)

        slow, fast = chosen(bf16=False), chosen(bf16=True)
        assert (slow[1].precision, fast[1].precision) == ("fp32", "bf16")
        assert fast[0].hidden > slow[0].hidden, "the time saved goes into the width"
        assert chosen(bf16=True, precision="fp32") == slow

    def test_so_does_a_gpu_and_one_that_does_not_trains_in_float32(self, cell: CellName) -> None:
        precisions = [choose_for("cuda", cell, bf16=bf16)[1].precision for bf16 in (False, True)]
        assert precisions == ["fp32", "bf16"]

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_what_the_user_gives_wins(self, device: str, cell: CellName) -> None:
        model = {"layers": 3, "hidden": 17, "embedding": 5, "dropout": 0.11, "weight_drop": 0.13}
        training = {
            "batch_size": 19, "bptt": 23, "loss_last": 7, "lr": 0.0123, "weight_decay": 0.029,
            "clip_norm": 0.31, "loss_temperature": 0.7, "validate_every": 37, "patience": 41,
            "seed": 43, "precision": "fp32",
        }  # fmt: skip
        chosen = choose_for(device, cell, budget={"epochs": 1.5}, model=model, training=training)
        assert {name: getattr(chosen[0], name) for name in model} == model
        assert {name: getattr(chosen[1], name) for name in training} == training
        assert chosen[1].epochs == 1.5
        assert chosen[1].minutes is None
        assert chosen[1].steps is None

    @given(cell=CELLS, device=DEVICES)
    def test_none_leaves_a_number_to_the_rules(self, cell: CellName, device: str) -> None:
        names = [
            [field.name for field in dataclasses.fields(c)] for c in (ModelConfig, TrainConfig)
        ]
        nothing = [dict.fromkeys(each) for each in names]
        chosen = choose_for(device, cell, model=nothing[0], training=nothing[1])
        assert chosen == choose_for(device, cell)

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_one_flag_moves_both_rates(self, device: str) -> None:
        _, before = choose_for(device)
        _, after = choose_for(device, training={"lr": 3 * before.lr})
        assert after.lr_adam == pytest.approx(3 * before.lr_adam)

    def test_clipping_by_value_takes_the_place_of_clipping_by_norm(self) -> None:
        _, training = choose_for(training={"clip_value": 0.5})
        assert (training.clip_norm, training.clip_value) == (None, 0.5)
        with pytest.raises(UsageError, match="cannot be used together"):
            choose_for(training={"clip_value": 0.5, "clip_norm": 1.0})

    def test_so_does_scaling_to_a_norm(self) -> None:
        _, training = choose_for(training={"scale_norm": 0.5})
        assert (training.clip_norm, training.scale_norm) == (None, 0.5)

    @pytest.mark.parametrize(("optimiser", "decay"), [("adamw", 0.1), ("sgd", 0.0)])
    def test_one_rule_for_all_weights_has_one_rate(self, optimiser: str, decay: float) -> None:
        for lr in (None, 0.3):
            _, training = choose_for(training={"optimiser": optimiser, "lr": lr})
            assert training.lr == training.lr_adam == (lr or training.lr)
            assert training.weight_decay == decay
        _, training = choose_for(training={"optimiser": optimiser, "weight_decay": 0.3})
        assert training.weight_decay == 0.3

    @given(cell=CELLS, device=DEVICES, vocabulary=st.integers(2, 200_000))
    def test_embedding_and_head_of_many_symbols_decay(
        self, cell: CellName, device: str, vocabulary: int
    ) -> None:
        _, training = choose_for(device, cell, 1_000_000, vocabulary=vocabulary)
        assert training.decay_embedding == (vocabulary >= RULES[cell].many_symbols)
        assert not (vocabulary <= 256 and training.decay_embedding), "there are few bytes"

    @given(cell=CELLS, vocabulary=st.integers(2, 20_000), steps=st.integers(1, 10**5))
    def test_rare_symbols_are_learned_faster_where_passes_are_few(
        self, cell: CellName, vocabulary: int, steps: int
    ) -> None:
        model, training = choose_for(
            "cpu", cell, 1_000_000, vocabulary=vocabulary, budget={"steps": steps}
        )
        passes = steps * training.batch_size * training.bptt / 1_000_000
        pressed = pressure(passes, matrix_weights(model), 1_000_000)
        faster = vocabulary >= RARE_SYMBOLS and pressed < BY_HEART
        _, usual = choose_for(cell=cell)
        assert training.lr_adam == pytest.approx((3 if faster else 1) * usual.lr_adam)

    def test_a_clip_norm_of_zero_turns_clipping_off(self) -> None:
        _, training = choose_for(training={"clip_norm": 0.0})
        assert (training.clip_norm, training.clip_value) == (None, None)

    def test_a_run_of_few_steps_warms_up_in_fewer(self) -> None:
        assert choose_for(budget={"steps": 30})[1].warmup_steps == 3
        assert choose_for(budget={"steps": 31})[1].warmup_steps == 4
        assert choose_for(budget={"steps": 1})[1].warmup_steps == 1
        assert 1 < choose_for(budget={"minutes": 0.05})[1].warmup_steps < 20
        # Lanes and windows shrink to fit a short text.
        short = choose_for(budget={"minutes": 0.05}, characters=900)[1].warmup_steps
        assert short > 2 * choose_for(budget={"minutes": 0.05})[1].warmup_steps
        usual = choose_for()[1].warmup_steps
        assert choose_for(budget={"steps": 2**63 - 1})[1].warmup_steps == usual > 3

    def test_a_gpu_in_bf16_reads_more_lanes_of_a_text_that_is_mostly_new(
        self, cell: CellName
    ) -> None:
        def chosen(characters: int, device: str = "cuda", **how: Any) -> tuple[int, int]:
            given: dict[str, Any] = {"budget": {"minutes": 2}, "bf16": True}
            trained = choose_for(device, cell, characters, **given | how)[1]
            return trained.batch_size, trained.bptt

        # 300,000 / (1 + 50 / 12,000) characters a second are expected.
        often, sometimes, more, seldom = 4_481_000, 4_482_000, 11_950_000, 11_951_000
        usual = chosen(often, "cpu")
        assert chosen(often) == usual == ((32, 64) if cell == "rnn" else (16, 128))
        assert chosen(sometimes) == chosen(more) == (32, 64)
        assert chosen(seldom) == (64, 64)
        assert chosen(seldom, bf16=False) == usual
        assert chosen(seldom, budget={"steps": 9}) == usual
        assert chosen(seldom, training={"batch_size": 9}) == (9, usual[1])
        assert chosen(seldom, training={"bptt": 9}) == (64, 9)
        assert chosen(seldom, training={"loss_last": 9}) == (64, usual[1])

    @pytest.mark.parametrize("characters", [10**6, 6 * 10**6, 20 * 10**6])
    def test_what_a_gpu_s_lanes_read_counts_whoever_chose_them(
        self, cell: CellName, characters: int
    ) -> None:
        """``compare`` gives each training what was chosen for all."""
        how: dict[str, Any] = {"budget": {"minutes": 3}, "bf16": True}
        model, training = choose_for("cuda", cell, characters, **how)
        given = {"batch_size": training.batch_size, "bptt": training.bptt}
        assert choose_for("cuda", cell, characters, training=given, **how) == (model, training)

    def test_they_are_taken_to_read_it_more_often(self) -> None:
        def dropout(characters: int) -> float:
            how: dict[str, Any] = {"budget": {"minutes": 20}, "model": {"hidden": 8192}}
            return choose_for("cuda", "lstm", characters, bf16=True, **how)[0].dropout

        # p, passes times weights per character, is above 5 for both.
        few, more = 119_600_000, 119_400_000
        assert dropout(few) == pytest.approx(dropout(more) + 0.06, abs=0.011)

    @pytest.mark.parametrize("symbols", [7, 256, 5000])
    def test_an_embedding_is_no_wider_than_the_layer(self, symbols: int) -> None:
        model, _ = choose_for(characters=10**5, vocabulary=symbols, budget={"steps": 3})
        assert model.embedding == min(symbols, model.hidden)

    @pytest.mark.parametrize(
        ("symbols", "expected"), [(2, 8), (64, 64), (65, 72), (379, 384), (382, 384), (385, 384)]
    )
    def test_rows_of_a_gpu_s_embedding_are_aligned_in_bf16(
        self, symbols: int, expected: int
    ) -> None:
        def embedding(device: str, bf16: bool) -> int:
            model, _ = choose_for(device, vocabulary=symbols, bf16=bf16, budget={"steps": 3})
            return model.embedding

        assert embedding("cuda", bf16=True) == expected
        assert embedding("cpu", bf16=True) == min(symbols, 384)
        assert embedding("cuda", bf16=False) == min(symbols, 256)

    @pytest.mark.parametrize("typed", ["0", "-3", "9" * 400], ids=["zero", "negative", "huge"])
    def test_nonsense_of_any_size_is_refused_by_name(self, typed: str, cell: CellName) -> None:
        wholes = {
            "budget": ["steps"],
            "model": ["layers", "hidden", "embedding"],
            "training": ["batch_size", "bptt", "loss_last"],
        }
        reals = {"budget": ["minutes", "epochs"], "training": ["lr"]}
        for number, groups in ((int(typed), wholes), (float(typed), reals)):
            for group, name in ((group, name) for group, names in groups.items() for name in names):
                chosen: dict[str, Any] = {"budget": {"steps": 5}, group: {name: number}}
                with pytest.raises(UsageError, match="--" + name.replace("_", "-")):
                    refuse_nonsense(Choices(cell=cell, **chosen))

    @pytest.mark.parametrize("name", ["minutes", "epochs", "steps"])
    def test_a_budget_stands_alone(self, name: str) -> None:
        _, training = choose_for(budget={name: 2})
        budgets = {n: getattr(training, n) for n in ("minutes", "epochs", "steps")}
        assert budgets == {"minutes": None, "epochs": None, "steps": None} | {name: 2}
        with pytest.raises(UsageError, match="give one budget"):
            choose_for(budget={"minutes": 1.0, "steps": 2, "epochs": 1.0})

    def test_an_epoch_is_as_many_steps_as_read_the_text(self, cell: CellName) -> None:
        def chosen(**budget: int) -> ModelConfig:
            return choose_for(cell=cell, characters=2048 * 1000, budget=budget)[0]

        assert chosen(epochs=300) == chosen(steps=300_000) != chosen(epochs=1)

    @pytest.mark.parametrize(
        ("flag", "choices", "by_plan"),
        [
            ("dropout_by_plan", {}, True),
            ("dropout_by_plan", {"model": {"dropout": 0.1}}, False),
            ("dropout_by_plan", {"model": {"weight_drop": 0.1}}, False),
            ("decay_by_plan", {}, True),
            ("decay_by_plan", {"training": {"optimiser": "muon"}}, True),
            ("decay_by_plan", {"training": {"weight_decay": 0.1}}, False),
            ("decay_by_plan", {"training": {"optimiser": "adamw"}}, False),
            ("decay_by_plan", {"training": {"optimiser": "sgd"}}, False),
            ("temperature_by_plan", {}, True),
            ("temperature_by_plan", {"training": {"optimiser": "sgd"}}, True),
            ("temperature_by_plan", {"training": {"loss_temperature": 1.0}}, False),
        ],
    )
    def test_what_the_rules_choose_goes_by_the_plan(
        self, flag: str, choices: dict[str, Any], by_plan: bool
    ) -> None:
        for budget in ("minutes", "epochs", "steps"):
            assert getattr(choose_for(budget={budget: 2}, **choices)[1], flag) == by_plan

    @given(
        cell=CELLS,
        device=DEVICES,
        vocabulary=st.integers(2, 200_000),
        characters=st.integers(10_000, 10**8),
    )
    def test_masks_of_dropout_are_several_where_they_pay(
        self, cell: CellName, device: str, vocabulary: int, characters: int
    ) -> None:
        model, training = choose_for(
            device, cell, characters, vocabulary=vocabulary, budget={"epochs": 3}
        )
        most = 4 if device == "cuda" else 2
        assert 1 <= training.dropout_masks <= most
        if pressure(3, matrix_weights(model), characters) >= BY_HEART:
            assert training.dropout_masks >= 2
            return
        again = model.vocabulary * model.hidden
        recurrence = matrix_weights(model) - model.vocabulary * (model.hidden + model.embedding)
        assert (training.dropout_masks - 1) * again <= recurrence / 3
        if training.dropout_masks < most:
            assert training.dropout_masks * again > recurrence / 3, "one more was affordable"
            assert vocabulary > 128 or cell == "rnn"

    @pytest.mark.parametrize(
        ("cell", "minutes"), [("rnn", (0.5, 1, 2)), ("lstm", (1, 2, 5)), ("gru", (0.5, 2, 10))]
    )
    def test_a_long_run_on_a_cpu_gets_a_wider_model(
        self, cell: CellName, minutes: tuple[float, float, float]
    ) -> None:
        def hidden(minutes: float, characters: int = 3_000_000) -> int:
            return choose_for("cpu", cell, characters, budget={"minutes": minutes})[0].hidden

        short, middle, long = minutes
        assert hidden(short) <= hidden(middle) < hidden(long)
        assert (hidden(short) < hidden(middle)) == (cell == "gru")
        widths = [hidden(m, 10**9) for m in range(1, 60)]
        assert widths == sorted(widths)
        assert hidden(1000, 10**9) == widths[-1], "the width has a limit"

    @pytest.mark.parametrize(
        ("cell", "characters", "first"),
        [
            ("lstm", 1_000_000, 6),
            ("lstm", 2_500_000, 10),
            ("lstm", 10**8, 15),
            ("gru", 10**8, 4),
            ("rnn", 10**8, 6),
        ],
    )
    def test_in_float32_a_text_read_often_gets_a_wider_lstm_earlier(
        self, cell: CellName, characters: int, first: int
    ) -> None:
        """Four passes over the second text are 10 million characters."""

        def hidden(read: float, precision: str = "fp32") -> int:
            training = {"batch_size": 10, "bptt": 100, "precision": precision}
            budget = {"steps": round(read / 1000)}
            return choose_for("cpu", cell, characters, budget=budget, training=training)[0].hidden

        more = 256 if cell == "rnn" else 128
        assert hidden(first * 1e6 + 1000) == hidden(first * 1e6 - 1000) + more
        is_lstm = cell == "lstm"  # in bf16 it is wider from six million on
        few_passes = is_lstm and 4 * characters > 26e6
        assert hidden(26e6) == hidden(26e6, "bf16") - (256 if few_passes else 128)
        wider = [hidden(6e6 + 1000, name) - hidden(6e6 - 1000, name) for name in ("fp32", "bf16")]
        early = 128 if first == 6 else 0
        assert wider == {"lstm": [early, 128], "gru": [0, 0], "rnn": [256, 256]}[cell]

    def test_a_long_run_on_a_gpu_gets_its_wider_model(self, cell: CellName) -> None:
        training = {"batch_size": 10, "bptt": 100}
        steps = GPU_WIDER_FROM // 1000
        widths = [
            choose_for("cuda", cell, 10**8, bf16=True, budget={"steps": n}, training=training)[
                0
            ].hidden
            for n in (steps, steps + 1)
        ]
        assert tuple(widths) == RULES[cell].gpu_units

    @given(
        cell=CELLS,
        minutes=st.floats(0.1, 1000),
        vocabulary=st.integers(2, 20_000),
        characters=st.integers(100, 10**10),
    )
    def test_in_float32_a_gpu_is_taken_for_a_slow_one(
        self, cell: CellName, minutes: float, vocabulary: int, characters: int
    ) -> None:
        nvidia, apple = (
            choose_for(device, cell, characters, vocabulary=vocabulary, budget={"minutes": minutes})
            for device in ("cuda", "mps")
        )
        # Except for the dropout masks: a CUDA GPU has more.
        assert nvidia[0] == apple[0]
        assert dataclasses.replace(nvidia[1], dropout_masks=1) == dataclasses.replace(
            apple[1], dropout_masks=1
        )
        speeds = [guessed_speed(vocabulary, "cuda", name, 10**6) for name in ("fp32", "bf16")]
        assert speeds[0] == guessed_speed(vocabulary, "mps", "fp32", 10**6) < speeds[1]

    @pytest.mark.parametrize("cell", ["lstm", "gru"])
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_a_short_text_gets_a_narrower_model_however_long_the_run(
        self, device: str, cell: CellName
    ) -> None:
        def hidden(characters: int, minutes: float = 60) -> int:
            budget, bf16 = {"minutes": minutes}, device == "cuda"
            return choose_for(device, cell, characters, bf16=bf16, budget=budget)[0].hidden

        texts = [10**k for k in range(2, 9)]
        widths = [hidden(characters) for characters in texts]
        assert widths == sorted(widths)
        assert widths[0] == hidden(100, minutes=0.1) < widths[-1]
        for characters, width in zip(texts, widths, strict=True):
            weights = CELL_GATES[cell] * width * (50 + width)
            assert width == widths[0] or weights <= MOST_WEIGHTS[device] * characters

    @pytest.mark.parametrize("symbols", [50, 5000])
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_a_text_that_is_long_enough_gets_the_wide_model(
        self, device: str, symbols: int
    ) -> None:
        def chosen(characters: int) -> ModelConfig:
            bf16, budget = device == "cuda", {"minutes": 60}
            return choose_for(
                device, "gru", characters, vocabulary=symbols, bf16=bf16, budget=budget
            )[0]

        wide = chosen(10**9)
        weights = CELL_GATES["gru"] * wide.hidden * (wide.embedding + wide.hidden)
        enough = math.ceil(weights / MOST_WEIGHTS[device])
        assert chosen(enough - 1).hidden < chosen(enough).hidden == wide.hidden

    def test_a_plain_rnn_is_wider_at_once_and_then_no_more(self) -> None:
        def hidden(characters: int, minutes: float) -> int:
            return choose_for("cpu", "rnn", characters, budget={"minutes": minutes})[0].hidden

        narrowest = hidden(1_000_000, minutes=1)
        assert hidden(1_000_000, minutes=2) == hidden(1_000_000, minutes=60) == narrowest + 256
        assert hidden(30_000, minutes=60) == narrowest, "the text is too short for it"

    def test_the_length_of_a_run_in_minutes_depends_on_the_symbols(self) -> None:
        few, many = (
            choose_for(characters=10**6, vocabulary=symbols, budget={"minutes": 5})[0].hidden
            for symbols in (50, 5000)
        )
        assert few > many, "logits take the time that width would"

    @pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
    def test_so_many_symbols_halve_the_speed(self, device: str) -> None:
        def warmup(minutes: float, symbols: int) -> int:
            bf16, budget = device == "cuda", {"minutes": minutes}
            chosen = choose_for(
                device, characters=10**6, vocabulary=symbols, bf16=bf16, budget=budget
            )
            return chosen[1].warmup_steps

        half = HALVED_BY[device]
        assert warmup(0.02, 2) == warmup(0.03, half // 2) == warmup(0.04, half) > 1

    def test_the_length_of_a_run_counts_in_characters(self) -> None:
        def hidden(**training: int) -> int:
            budget = {"steps": 16_000_000 // (16 * 128)}
            return choose_for("cpu", "lstm", 10**6, budget=budget, training=training)[0].hidden

        assert hidden() > hidden(batch_size=1)
        assert hidden() > hidden(bptt=9)
        assert hidden() > hidden(loss_last=9)


class TestRegularisation:
    def test_grows_with_passes_and_parameters_and_shrinks_with_the_text(
        self, cell: CellName
    ) -> None:
        drops = [dropout_and_weight_drop(cell, 3 * 2.0**k, 9999) for k in range(-9, 20)]
        assert drops[0] == (0, 0)
        assert all(a <= b for a, b in pairwise(drops))
        assert 0.4 <= drops[-1][1] <= 0.5
        for k, drop in enumerate(drops, -9):
            same = pressure(1, 300_000 * 2**10, 100_000 * 2 ** (10 - k))
            assert dropout_and_weight_drop(cell, same, 9999) == drop

    @pytest.mark.parametrize("name", ["lstm", "gru"])
    def test_a_long_text_is_never_dropped_as_much_as_a_short_one(self, name: CellName) -> None:
        for pressed in (1, 20, 32):
            long, short = (dropout_and_weight_drop(name, pressed, n) for n in (10**9, 9))
            assert long == short
        lengths = (9, 100_000, 200_000, 10**6, 10**12)
        most = [dropout_and_weight_drop(name, 1e6, n) for n in lengths]
        assert most[:2] == [(0.6, 0.48)] * 2
        assert most[2:] == [(0.5, 0.32), (0.38, 0.12), (0.3, 0.0)]

    def test_weights_decay_faster_where_a_text_is_learned_by_heart(self) -> None:
        pressures = (0.01, 8, 16, 24, 32, 1e6)
        of: dict[CellName, list[float]] = {
            cell: [weight_decay(cell, p, 10**6) for p in pressures] for cell in ("lstm", "gru")
        }
        assert of["lstm"] == [0.1, 0.1, 0.1, 0.15, 0.2, 0.2]
        assert of["gru"] == [0.1, 0.1, 0.2, 0.2, 0.2, 0.2]
        assert [weight_decay("rnn", p, 9) for p in (0.01, 2, 3, 4)] == [0.1, 0.1, 0.15, 0.2]
        assert [weight_decay("rnn", p, 9) for p in pressures[1:]] == [0.2, 0.2, 0.3, 0.4, 0.4]

        def decay(device: str = "cpu", characters: int = 50_000, **training: Any) -> float:
            budget = {"steps": 3000}
            return choose_for(device, "lstm", characters, budget=budget, training=training)[
                1
            ].weight_decay

        assert decay() == 0.2
        assert decay(characters=5_000_000) == 0.1
        assert decay("cuda") == 0.2
        assert decay(optimiser="adamw") == 0.1
        assert decay(weight_decay=0.3) == 0.3

    def test_weights_decay_no_faster_on_a_long_text(self) -> None:
        most_of: dict[CellName, float] = {"lstm": 0.2, "gru": 0.2, "rnn": 0.4}
        for cell, most in most_of.items():
            lengths = (9, 10**6, 1_600_000, 2 * 10**6, 8 * 10**6)
            decays = [weight_decay(cell, 40, n) for n in lengths]
            expected = [max(0.1, most / max(1, n / 10**6)) for n in lengths]
            assert decays == pytest.approx(expected, abs=0.0051)
            assert weight_decay(cell, 1, 10**9) == 0.1

    @given(
        cell=CELLS, layers=st.integers(1, 3), hidden=st.integers(1, 900), epochs=st.integers(1, 99)
    )
    def test_goes_by_the_sizes_that_the_user_gives(
        self, cell: CellName, layers: int, hidden: int, epochs: int
    ) -> None:
        sizes = {"layers": layers, "hidden": hidden, "embedding": 5}
        model, training = choose_for(cell=cell, budget={"epochs": epochs}, model=sizes)
        pressed = pressure(epochs, matrix_weights(model), 10_000)
        assert (model.dropout, model.weight_drop) == dropout_and_weight_drop(cell, pressed, 10_000)
        assert training.weight_decay == weight_decay(cell, pressed, 10_000)
        assert training.loss_temperature == loss_temperature(model.vocabulary, pressed)

    def test_logits_are_larger_in_the_loss_where_a_text_is_read_often(self) -> None:
        found = [loss_temperature(499, p) for p in (0, 0.5, 1, 2, 3, 4, 1e6)]
        assert found == [1.0, 1.0, 1.0, 0.95, 0.93, 0.91, 0.91]
        assert loss_temperature(500, 4) == 1.0
        assert choose_for(training={"loss_temperature": 1.3})[1].loss_temperature == 1.3

    def test_pressure_is_parameters_a_character_times_passes(self) -> None:
        assert pressure(2.5, 300_000, 100_000) == 7.5
        assert pressure(10, 300_000, 400_000) == 7.5
        assert pressure(24, 300_000, 400_000) == pressure(1e9, 300_000, 400_000) == 18

    @pytest.mark.parametrize("layers", [1, 2, 5])
    @pytest.mark.parametrize(("hidden", "embedding"), [(7, 5), (1, 9), (2, 1)])
    def test_weights_are_counted_as_the_model_has_them(
        self, cell: CellName, layers: int, hidden: int, embedding: int
    ) -> None:
        shape = ModelConfig(
            cell=cell, vocabulary=13, layers=layers, hidden=hidden, embedding=embedding
        )
        model = outline(shape)
        matrices = [weight for weight in model.parameters() if weight.dim() == 2]
        assert matrix_weights(shape) == sum(weight.numel() for weight in matrices)
        assert parameter_count(shape) == model.parameter_count()
