"""The settings of a run: frozen dataclasses that refuse impossible values with a UsageError.

Nothing here imports torch, so ``charrnn --help`` and a wrong option are answered
at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from types import UnionType
from typing import Any, Literal, NamedTuple, Self, Union, get_args, get_origin, get_type_hints

from charrnn.command_words import flag
from charrnn.errors import UsageError
from charrnn.wording import joined

CellName = Literal["rnn", "lstm", "gru"]
WeightsName = Literal["fp32", "bf16", "int8"]
CELL_NAMES: tuple[CellName, ...] = get_args(CellName)
#: Blocks stacked in a cell's weight matrices: its gates, and the candidate state they act on.
CELL_GATES: dict[CellName, int] = {"rnn": 1, "lstm": 4, "gru": 3}
#: As many biases per unit; a GRU has a second one where the reset gate acts on U h.
CELL_BIASES: dict[CellName, int] = {"rnn": 1, "lstm": 4, "gru": 4}

OptimiserName = Literal["muon", "adamw", "sgd"]
PartName = Literal["valid", "test", "train"]
DeviceName = Literal["cpu", "cuda", "mps"]
PrecisionName = Literal["fp32", "bf16"]
MatchName = Literal["parameters", "hidden"]
UnknownName = Literal["error", "replace", "skip"]
WeightsOrigin = Literal["trained", "initial"]
"""Where the weights of an inspected model come from."""

#: The kinds of budget, as fields of ``TrainConfig``; a run has exactly one.
BUDGETS = ("minutes", "epochs", "steps")
#: A row of a run's log summarises the updates up to each multiple of this, and to the end.
LOG_EVERY = 10

#: Beyond this, numbers may overflow the 32-bit floats that training computes with.
_LARGEST = 1e38
#: The most symbols or units that a model can have.
LARGEST_SIZE = (1 << 31) - 1
#: The most layers: a checkpoint's header has room for ten times as many.
MOST_LAYERS = 1000


class _Rule(NamedTuple):
    """A condition on a number, which NaN never meets."""

    words: str
    """The condition, as a message words it."""
    holds: Callable[[float], bool]


_POSITIVE = _Rule("a number above 0, at most 1e38", lambda number: 0 < number <= _LARGEST)
# A limit of 0 has become None by now (recipe.choose).
_LIMIT = _Rule("a number above 0, at most 1e38, or 0 for none", _POSITIVE.holds)
_NOT_NEGATIVE = _Rule("a number from 0 to 1e38", lambda number: 0 <= number <= _LARGEST)
_COUNT = _Rule("a whole number from 1 to 2^63 - 1", lambda number: 0 < number < 1 << 63)
_SIZE = _Rule("a whole number from 1 to 2^31 - 1", lambda number: 0 < number <= LARGEST_SIZE)
_LAYERS = _Rule(
    f"a whole number from 1 to {MOST_LAYERS:,}", lambda number: 0 < number <= MOST_LAYERS
)
_WHOLE = _Rule("a whole number from 0 to 2^63 - 1", lambda number: 0 <= number < 1 << 63)
_SHARE = _Rule("a number from 0 up to but not including 1", lambda number: 0 <= number < 1)
_PROBABILITY = _Rule("a number above 0, at most 1", lambda number: 0 < number <= 1)


def _check(config: Any, rules: dict[str, _Rule], flags: dict[str, str] | None = None) -> None:
    """Raise UsageError for the first field that breaks its rule; None is always allowed.

    Types are not checked: the command line or ``Record.from_dict`` has done so.
    """
    for name, rule in rules.items():
        value = getattr(config, name)
        if value is not None and not rule.holds(value):
            called = (flags or {}).get(name, flag(name))
            raise UsageError(f"{called} must be {rule.words}, not {value!r}")


class Record:
    """A dataclass that a checkpoint stores as a JSON object."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the record whose fields are ``values``.

        A field with a default may be missing: an older version may have written the values.

        Raises:
            ValueError: a field is missing, unknown or of the wrong type, or has an impossible value
                in a record that no option sets; the message names it.
            UsageError: a field that an option sets has an impossible value.
        """
        kinds = get_type_hints(cls)
        for name, value in values.items():
            if name not in kinds:
                raise ValueError(f"{name!r} is unknown")
            if not _fits(value, kinds[name]):
                raise ValueError(f"{name!r} cannot be {ascii(value)[:60]}")
        for field in fields(cls):  # type: ignore[arg-type]
            if field.name not in values and field.default is MISSING:
                raise ValueError(f"{field.name!r} is missing")
        return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]


def _fits(value: object, kind: Any) -> bool:
    """Whether a JSON value fits a type: a list fits a tuple, an int fits a float."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is None:
        # JSON can spell 1e999 and integers of any length, which nothing computes with.
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            return False
        return type(value) is kind or (kind is float and type(value) is int)
    if origin is Literal:
        return value in parts
    if origin in (UnionType, Union):  # X | None, which is a Union if X is a Literal
        return any(_fits(value, part) for part in parts)
    if origin is dict:  # with strings as keys, as JSON has it
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    # What remains is tuple[X, ...] or tuple[X, X].
    if not isinstance(value, list) or (parts[-1] is not ... and len(value) != len(parts)):
        return False
    return all(_fits(item, parts[0]) for item in value)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Record):
    """The shape of a model: all that its weights need, besides the vocabulary itself."""

    cell: CellName
    """The recurrence: rnn, lstm or gru."""
    vocabulary: int
    """V, the number of symbols, including the unknown symbol."""
    layers: int
    """L, the number of stacked cells; layer l reads the output of layer l - 1."""
    hidden: int
    """H, the width of every layer's hidden state."""
    embedding: int
    """E, the width of a character's embedding."""
    dropout: float = 0.0
    """Share of units dropped in training, after every layer."""
    weight_drop: float = 0.0
    """Share of recurrent weights dropped in training (DropConnect on the hidden-to-hidden
    matrix: Merity, Keskar, Socher 2018). Drawn once per window, or once for each of its
    two parts where only its last characters count."""

    def __post_init__(self) -> None:
        sizes = dict.fromkeys(("vocabulary", "hidden", "embedding"), _SIZE) | {"layers": _LAYERS}
        _check(self, sizes | {"dropout": _SHARE, "weight_drop": _SHARE})


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Record):
    """How a model is trained. Exactly one of minutes, epochs and steps is the budget."""

    batch_size: int
    """B, lanes: places in the text that are read side by side."""
    bptt: int
    """T, characters per window: how far back a gradient flows."""
    loss_last: int | None = None
    """Count the loss only on the last N characters of each window, and advance by N."""
    reset_state: bool = False
    """Start every window from the zero state, instead of carrying the state over."""
    optimiser: OptimiserName = "muon"
    """Update rule: Muon for the recurrence's matrices and AdamW for the rest, or one for all."""
    lr: float
    """Peak learning rate of the recurrence's matrices."""
    lr_adam: float
    """Peak learning rate of everything else (embedding, head, biases)."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the recurrence's matrices, as a share of ``lr``."""
    decay_embedding: bool = False
    """Whether embedding and head decay as well, as fast as the recurrence's matrices."""
    clip_norm: float | None = 1.0
    """Scale the gradient of all weights together down to this norm; None: never."""
    clip_value: float | None = None
    """Clip each gradient entry to [-v, v] instead, which changes the direction."""
    scale_norm: float | None = None
    """Scale the gradient of all weights together to this norm instead, up or down."""
    warmup_steps: int
    """Steps over which the learning rate rises linearly."""
    minutes: float | None = None
    """Budget: wall-clock minutes of training, validation and saving together."""
    epochs: float | None = None
    """Budget: passes over the training part."""
    steps: int | None = None
    """Budget: updates."""
    patience: int | None = None
    """Stop after this many validations in a row without a new best; None: never."""
    validate_every: int | None = None
    """Steps between validations; None: planned from the budget."""
    dropout_by_plan: bool = False
    """Whether dropout and weight drop follow from the planned number of passes over the text,
    and so change with the budget."""
    decay_by_plan: bool = False
    """The same for weight decay."""
    temperature_by_plan: bool = False
    """The same for the loss temperature."""
    dropout_masks: int = 1
    """Dropout masks before the head; an update's loss is the mean over them."""
    loss_temperature: float = 1.0
    """Divides the logits in the training loss, and nowhere else; below 1 the trained model is
    less confident."""
    init_from: str | None = None
    """The checkpoint whose weights training starts from; None: new weights."""
    init_sha256: str | None = None
    """The SHA-256 that this checkpoint has of itself: another may take its place."""
    seed: int = 1
    """Seed of weights, dropout and the samples shown."""
    precision: PrecisionName = "fp32"
    """Arithmetic of the matrix products; weights and sums stay in fp32. Muon orthogonalises in bf16
    wherever the hardware supports it."""

    def __post_init__(self) -> None:
        counts = ("batch_size", "bptt", "loss_last", "steps", "patience", "validate_every")
        positive = (
            "lr", "lr_adam", "clip_value", "scale_norm", "minutes", "epochs", "loss_temperature",
        )  # fmt: skip
        rules = dict.fromkeys(counts, _COUNT) | dict.fromkeys(positive, _POSITIVE)
        rules |= {"clip_norm": _LIMIT, "weight_decay": _NOT_NEGATIVE}
        rules |= {"warmup_steps": _WHOLE, "seed": _WHOLE, "dropout_masks": _SIZE}
        _check(self, rules, {"lr_adam": "--lr"})
        if self.loss_last is not None and self.loss_last > self.bptt:
            raise UsageError(
                f"--loss-last {self.loss_last} is longer than the window: "
                f"give at most --bptt {self.bptt}"
            )
        limits = ("clip_norm", "clip_value", "scale_norm")
        named = [flag(name) for name in limits if getattr(self, name) is not None]
        if len(named) > 1:
            raise UsageError(f"{' and '.join(named)} cannot be used together: give one")
        budgets = [name for name in BUDGETS if getattr(self, name)]
        if len(budgets) != 1:
            given = " and ".join(f"--{name}" for name in budgets) or "none"
            raise UsageError(f"give one budget, --minutes, --epochs or --steps, not {given}")

    @property
    def budget(self) -> str:
        """The field that is the budget: minutes, epochs or steps."""
        return next(name for name in BUDGETS if getattr(self, name))


#: Fields that the rules may choose anew with every budget -> the field that says whether they do.
BY_PLAN = {
    "dropout": "dropout_by_plan",
    "weight_drop": "dropout_by_plan",
    "weight_decay": "decay_by_plan",
    "loss_temperature": "temperature_by_plan",
}

#: Most samples made side by side; each has a state and a random stream in memory.
MOST_SAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How characters are drawn from a model."""

    length: int = 1000
    """New characters; 0: no end."""
    temperature: float = 1.0
    """Divides the logits; 0: always the likeliest character."""
    top_k: int | None = None
    """Draw from the k likeliest characters only."""
    top_p: float | None = None
    """Draw from the fewest characters whose probabilities reach p (Holtzman et al. 2020)."""
    stop: str | None = None
    """End once this text has been produced."""
    count: int = 1
    """Samples made side by side."""
    seed: int = 1
    """Seed of the draws: on the same machine, with as many threads, the same config and seed give
    the same text."""
    weights: WeightsName = "fp32"
    """Number format of the weights where a CPU generates character by character."""

    def __post_init__(self) -> None:
        rules = {
            "length": _WHOLE,
            "temperature": _NOT_NEGATIVE,
            "top_k": _COUNT,
            "top_p": _PROBABILITY,
            "count": _COUNT,
            "seed": _WHOLE,
        }
        _check(self, rules)
        if self.stop == "":
            raise UsageError("--stop must not be empty")
        if self.count > MOST_SAMPLES:
            raise UsageError(
                f"--count must be at most {MOST_SAMPLES:,}, not {self.count}: "
                "for more, sample again with another --seed"
            )
        if self.length == 0 and self.count > 1:
            raise UsageError("--length 0 may never end: give --count 1")


@dataclass(frozen=True, kw_only=True)
class TextChoices:
    """Which text a run reads and how it is divided."""

    texts: tuple[str, ...]
    """Files, folders, globs, or "-" for standard input; none: the embedded corpus."""
    encoding: str | None = None
    """A codec's name, or "bytes"; None: utf-8, or the encoding of the model to start from."""
    valid: tuple[str, ...] = ()
    """Texts to validate on, instead of the end of ``texts``."""
    valid_share: float = 0.1
    """Share of the characters held out for validation."""
    test_share: float = 0.0
    """Share at the very end that training never looks at."""
    min_count: int | None = None
    """Characters rarer than this become the unknown symbol; None: by rule."""

    def __post_init__(self) -> None:
        _check(self, {"valid_share": _SHARE, "test_share": _SHARE, "min_count": _COUNT})
        if not self.valid and self.valid_share + self.test_share >= 1:
            raise UsageError(
                f"--valid-share {self.valid_share} and --test-share {self.test_share} "
                "leave nothing to train on"
            )
        if "-" in self.valid:
            raise UsageError("--valid cannot be standard input: give a file")


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """The text to measure trained models on: a named one, or a part of their own."""

    texts: tuple[str, ...] = ()
    """Files, folders, globs, or "-" for standard input."""
    part: PartName | None = None
    """A part of the models' own text; ``texts`` say where that lies now, if it has moved."""
    encoding: str | None = None
    """Encoding of ``texts``: a codec's name, or "bytes"; None: as the models were trained."""

    def __post_init__(self) -> None:
        if not self.texts and self.part is None:
            raise UsageError("give a text: --text FILE, or --part valid for what was held out")
        if self.part is not None and self.encoding is not None:
            raise UsageError("--part and --encoding cannot be used together: the part has its own")

    def __str__(self) -> str:
        """Return what messages call the named texts."""
        return ", ".join("standard input" if name == "-" else name for name in self.texts)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How a text is scored, and what else is measured."""

    exact: bool = False
    """Score in one lane from start to end."""
    dynamic: bool = False
    """Also score by dynamic evaluation."""
    by_position: int | None = None
    """Also score by position after a reset of the state, up to this position."""
    after: str | None = None
    """Also price, separately, the characters that follow this text."""

    def __post_init__(self) -> None:
        _check(self, {"by_position": _COUNT})
        if self.after == "":
            raise UsageError("--after must not be empty")


#: What an inspection can measure. The last one is only on request: it repeats whole
#: backward passes to time them.
MEASUREMENTS = ("step", "flow", "memory", "pace", "gates", "units", "clipping", "truncation")


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What an inspection of a model measures."""

    only: tuple[str, ...] = ()
    """A subset of ``MEASUREMENTS``; none: all, truncation only with ``bptt`` or ``loss_last``."""
    characters: int = 20_000
    """How many characters are read, from the end of the text."""
    seed: int | None = None
    """Seed of the untrained weights to compare the trained ones with; None: the run's own."""
    spectral_radius: tuple[float, ...] = ()
    """Also measure the gradient flow with the recurrent matrices scaled to each of these."""
    bptt: tuple[int, ...] = ()
    """Windows whose gradient is compared with the full one; none: powers of 2."""
    loss_last: int | None = None
    """In each of these windows, count the loss only on the last N characters."""

    @property
    def measured(self) -> frozenset[str]:
        """The measurements to make, of ``MEASUREMENTS``."""
        if self.only:
            return frozenset(self.only)
        left_out = set() if self.bptt or self.loss_last else {"truncation"}
        return frozenset(MEASUREMENTS) - left_out

    def __post_init__(self) -> None:
        _check(self, {"characters": _COUNT, "seed": _WHOLE, "loss_last": _COUNT})
        for name in self.only:
            if name not in MEASUREMENTS:
                raise UsageError(f"--only must be one of {', '.join(MEASUREMENTS)}, not {name!r}")
        for window in self.bptt:
            if not _COUNT.holds(window):
                raise UsageError(f"--bptt must be {_COUNT.words}, not {window}")
            if self.loss_last is not None and self.loss_last > window:
                raise UsageError(
                    f"--loss-last {self.loss_last} is longer than the window --bptt {window}"
                )
        for name, given, about in (
            ("spectral_radius", self.spectral_radius, ["flow"]),
            ("bptt", self.bptt, ["truncation"]),
            ("loss_last", self.loss_last, ["truncation"]),
            ("seed", self.seed is not None, ["flow", "clipping", "truncation"]),
        ):
            if given and not self.measured.intersection(about):
                added = joined(about, "or")
                raise UsageError(
                    f"{flag(name)} only affects what --only leaves out: add --only {added}"
                )
        for radius in self.spectral_radius:
            if not _POSITIVE.holds(radius):
                raise UsageError(f"--spectral-radius must be {_POSITIVE.words}, not {radius}")
