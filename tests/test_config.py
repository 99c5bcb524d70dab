from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.config import ModelConfig, SampleConfig, TextChoices, TextSource, TrainConfig
from charrnn.errors import UsageError

MODEL: dict[str, Any] = {"cell": "gru", "vocabulary": 7, "layers": 2, "hidden": 5, "embedding": 3}
TRAINING: dict[str, Any] = {
    "batch_size": 3, "bptt": 11, "lr": 0.02, "lr_adam": 0.006, "warmup_steps": 5, "steps": 13,
}  # fmt: skip

NOT_COUNTS: tuple[int, ...] = (0, -1, 1 << 63)
NOT_POSITIVE: tuple[float, ...] = (0, -0.1, math.nan, math.inf, -math.inf, 10**400)
NOT_NEGATIVES: tuple[float, ...] = (-1e-9, math.nan, math.inf)
NOT_SHARES: tuple[float, ...] = (-0.1, 1.0, 1, 2, math.nan, math.inf)
NOT_SEEDS: tuple[int, ...] = (-1, 1 << 63)


def model(**changes: Any) -> ModelConfig:
    return ModelConfig(**{**MODEL, **changes})


def training(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**TRAINING, **changes})


def choices(**changes: Any) -> TextChoices:
    return TextChoices(texts=("a",), **changes)


def each(make: Callable[..., object], names: tuple[str, ...], values: tuple[Any, ...]) -> list[Any]:
    return [
        pytest.param(make, name, value, id=f"{name}={value}"[:40])
        for name in names
        for value in values
    ]


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        *each(model, ("vocabulary", "hidden", "embedding"), (*NOT_COUNTS, 1 << 31)),
        *each(model, ("layers",), (*NOT_COUNTS, 1001)),
        *each(model, ("dropout", "weight_drop"), NOT_SHARES),
        *each(training, ("batch_size", "bptt"), NOT_COUNTS),
        *each(training, ("dropout_masks",), (*NOT_COUNTS, 1 << 31)),
        *each(training, ("loss_last", "patience", "validate_every"), NOT_COUNTS),
        *each(training, ("lr", "loss_temperature"), NOT_POSITIVE),
        *each(training, ("clip_norm", "clip_value", "scale_norm"), NOT_POSITIVE),
        *each(training, ("weight_decay",), NOT_NEGATIVES),
        *each(training, ("seed",), NOT_SEEDS),
        *each(lambda **c: training(steps=None, **c), ("minutes", "epochs"), NOT_POSITIVE),
        *each(training, ("steps",), NOT_COUNTS),
        *each(SampleConfig, ("length",), NOT_SEEDS),
        *each(SampleConfig, ("temperature",), NOT_NEGATIVES),
        *each(SampleConfig, ("top_k", "count"), NOT_COUNTS),
        *each(SampleConfig, ("top_p",), (*NOT_POSITIVE, 1.0001)),
        *each(SampleConfig, ("seed",), NOT_SEEDS),
        *each(SampleConfig, ("stop",), ("",)),
        *each(choices, ("valid_share", "test_share"), NOT_SHARES),
        *each(choices, ("min_count",), NOT_COUNTS),
    ],
)
def test_an_impossible_number_is_refused_by_its_flag(
    make: Callable[..., object], name: str, value: Any
) -> None:
    with pytest.raises(UsageError) as refused:
        make(**{name: value})
    message = str(refused.value)
    assert "--" + name.replace("_", "-") in message
    assert "\n" not in message
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: training(loss_last=12), ("--loss-last 12", "--bptt 11")),
        (lambda: training(clip_norm=1.0, clip_value=0.5), ("--clip-norm", "--clip-value")),
        (lambda: training(clip_norm=1.0, scale_norm=0.5), ("--clip-norm", "--scale-norm")),
        (lambda: training(steps=None), ("--minutes", "--epochs", "--steps")),
        (lambda: training(minutes=1.0), ("not --minutes and --steps",)),
        (lambda: SampleConfig(length=0, count=2), ("--length 0", "--count")),
        (lambda: SampleConfig(length=0, count=2, stop="."), ("--length 0 may", "--count")),
        (lambda: SampleConfig(count=10_001), ("--count must be at most 10,000, not 10001",)),
        (lambda: TextChoices(texts=(), valid_share=0.5, test_share=0.5), ("leave nothing",)),
        (lambda: TextChoices(texts=("a",), valid=("-",)), ("--valid", "standard input")),
    ],
)
def test_options_that_exclude_each_other_are_named(
    make: Callable[[], object], words: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as refused:
        make()
    for word in words:
        assert word in str(refused.value)


def test_the_edges_are_allowed() -> None:
    model(dropout=0.0, weight_drop=0.999, layers=1, hidden=1, embedding=1, vocabulary=1)
    training(loss_last=11, weight_decay=0, warmup_steps=0, seed=(1 << 63) - 1, clip_norm=None)
    SampleConfig(length=0, temperature=0, top_p=1, top_k=1)
    SampleConfig(count=10_000)
    TextChoices(texts=(), valid_share=0, test_share=0)


def test_texts_are_called_by_their_names() -> None:
    assert str(TextSource(texts=("a", "-"))) == "a, standard input"


@pytest.mark.parametrize("config", [model(dropout=0.25), training(minutes=1.5, steps=None)])
def test_a_config_survives_json(config: ModelConfig | TrainConfig) -> None:
    assert type(config).from_dict(config.to_dict()) == config


def test_fields_that_do_not_fit_are_named() -> None:
    values = model().to_dict()
    with pytest.raises(ValueError, match="'zoneout' is unknown"):
        ModelConfig.from_dict({**values, "zoneout": 0.1})
    for name in ("hidden", "dropout", "cell"):
        for value in ("LSTM", True, None, 1 << 63, math.inf):
            with pytest.raises(ValueError, match=f"'{name}' cannot be "):
                ModelConfig.from_dict({**values, name: value})
    del values["hidden"]
    with pytest.raises(ValueError, match="'hidden' is missing"):
        ModelConfig.from_dict(values)


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just([])
)


def test_whatever_a_file_says_gives_a_config_or_a_plain_error() -> None:
    taken = 0

    @given(
        changes=st.dictionaries(
            st.sampled_from([*TrainConfig.__dataclass_fields__]),
            ANYTHING | st.integers(1, 11) | st.floats(0.01, 0.9),
            max_size=2,
        )
    )
    def check(changes: dict[str, Any]) -> None:
        nonlocal taken
        values = training().to_dict() | changes
        try:
            config = TrainConfig.from_dict(values)
        except (UsageError, ValueError):
            return
        assert config.to_dict() == values
        taken += bool(changes)

    check()
    assert taken > 5
