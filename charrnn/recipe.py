"""The defaults: chosen by rule from the text's size, its symbols, the device and the budget.

No rule looks at the content of the text. The measurements behind each number, and what
was tried and rejected, are in docs/diary.md.

In all rules ``vocabulary`` is V, ``characters`` the size of the training part, ``read`` the number
of characters that the whole run reads, ``characters_per_step`` the number whose loss counts in an
update, and ``pressed`` the run's ``pressure``; ``device`` is "cpu", "cuda" or "mps", and
``precision`` is that of its matrix products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from charrnn.config import (
    CELL_BIASES,
    CELL_GATES,
    CellName,
    ModelConfig,
    OptimiserName,
    TrainConfig,
)

#: Characters per second that training is expected to read, until its speed is measured; "cuda" is
#: a GPU in bf16 (``_sized_as``).
GUESSED_SPEED = {"cpu": 60_000, "mps": 100_000, "cuda": 300_000}
#: Vocabulary size at which the logits cost as much as everything else, which halves this speed:
#: measured on a CPU, guessed elsewhere.
HALVED_BY = {"cpu": 2_000, "mps": 2_000, "cuda": 12_000}
#: Weights of a model that trains at this speed: on a CPU an LSTM 1 x 384, on a GPU one of 1,024.
GUESSED_WEIGHTS = {"cpu": 720_000, "mps": 720_000, "cuda": 4_600_000}
#: The budget if none is given.
DEFAULT_MINUTES = 3.0
#: The cell if none is given; a comparison's other cells are matched to it.
DEFAULT_CELL: CellName = "lstm"


class CellRules(NamedTuple):
    """What the rules know of a cell."""

    lanes: int
    window: int
    """B and T."""
    lr: float
    """Muon's rate."""
    narrowest: int
    """Least units on a CPU in float32; in bf16 128 more."""
    wider_from: tuple[int, ...]
    """Characters that a run is expected to read: beyond each of these numbers, 128 more units
    are the better use of a CPU's time. A number given twice adds 256 at once."""
    waits_in_fp32: bool
    """Whether it needs to read more before it is widened in float32 (``FP32_PASSES``)."""
    gpu_units: tuple[int, int]
    """Widths on a GPU that multiplies bf16, which waits more than it computes: in a short run, and
    in one that is expected to read more than ``GPU_WIDER_FROM`` characters."""
    many_symbols: int
    """Vocabulary size from which most symbols are so rare that embedding and head learn the
    surroundings of each by heart, unless they decay."""
    drops_units: bool
    """Whether dropping units can gain more than it costs; else only weights are dropped."""
    decay: tuple[tuple[float, float], ...]
    """Pairs (most, over): weight decay is multiplied by the largest ``min(most, pressed / over)``
    of them, if that is above 1."""


RULES: dict[CellName, CellRules] = {
    "rnn": CellRules(
        lanes=32, window=64, lr=0.014,
        narrowest=384, wider_from=(6_000_000, 6_000_000), waits_in_fp32=False,
        gpu_units=(768, 768), many_symbols=2000, drops_units=False, decay=((2, 2), (4, 8)),
    ),
    "lstm": CellRules(
        lanes=16, window=128, lr=0.028,
        narrowest=256, wider_from=(6_000_000, 15_000_000, 25_000_000, 35_000_000, 50_000_000),
        waits_in_fp32=True,
        gpu_units=(1024, 1536), many_symbols=500, drops_units=True, decay=((2, 16),),
    ),
    "gru": CellRules(
        lanes=16, window=128, lr=0.028,
        narrowest=256, wider_from=(4_000_000, 25_000_000, 35_000_000, 50_000_000, 70_000_000),
        waits_in_fp32=False,
        gpu_units=(1024, 1536), many_symbols=500, drops_units=True, decay=((2, 8),),
    ),
}  # fmt: skip

#: An LSTM in float32 starts 128 units narrower. In a run of fewer passes than this it waits for the
#: next threshold, and after the last one for this: on mostly new text, more updates of a narrow
#: model teach more.
FP32_PASSES, FP32_LAST = 4, 70_000_000
#: Expected characters beyond which a GPU's width is the second one.
GPU_WIDER_FROM = 40_000_000
#: On such a GPU the embedding is a multiple of this, and so are the widths that ``compare`` chooses
#: to match another model: tensor cores are fastest on rows of whole 16 bytes.
GPU_MULTIPLE = 8
#: Lanes and window of a budget in minutes on such a GPU, below so many expected passes; above, the
#: cell's own. More lanes take hardly more time there, and a time step costs the same whatever the
#: window: so shorter windows make more updates. Reading more teaches more if the text is mostly
#: new, but not if it is read often (docs/diary.md).
GPU_LANES = ((3, (64, 64)), (8, (32, 64)))
#: Most recurrent weights per character of the text, in a model wider than the narrowest.
MOST_WEIGHTS = {"cpu": 4.6, "mps": 4.6, "cuda": 10.0}
#: From this vocabulary size on, the rate of embedding and head is tripled, so that rare symbols are
#: learned in few passes ...
RARE_SYMBOLS = 500
#: ... unless there are enough passes to learn the text by heart: from this pressure on.
BY_HEART = 40
#: Passes beyond these count no more in ``pressure``: how much dropout a text needs that is read
#: more often depends only on how many weights there are for a character (docs/diary.md).
MOST_PASSES = 24
#: Up to this pressure dropout gains too little for the time it takes.
LEAST_PRESSURE = 5
#: Most dropout and weight drop, on a text of up to so many characters to train on. On a longer one
#: the weight drop, and the dropout beyond that of a run without any, fall with this power of the
#: length: it is harder to learn by heart, however large the model (docs/diary.md).
MOST_DROPOUT, MOST_WEIGHT_DROP = 0.6, 0.48
SHORT_TEXT, LENGTH_POWER = 100_000, 0.6
#: Most dropout masks per update. On a CPU the second takes a twentieth to a thirteenth of an
#: update's time, and further ones gain no more than theirs is worth. A GPU waits more than it
#: computes, so it gets four.
MOST_MASKS = {"cpu": 2, "mps": 2, "cuda": 4}
#: Each mask but the first repeats the head's products. Together these may cost at most this share
#: of the recurrence's; but where a text is learned by heart, a second mask is worth any time.
MASKS_COST = 1 / 3
#: Largest ratio of the logits in the training loss to those in use, and the pressure at which it is
#: reached; at a pressure of 1 or less they are the same.
FLATTEST, FLATTEST_FROM = 1.1, 4
#: Most steps of warm-up; a short run warms up for a tenth of its steps.
MOST_WARMUP_STEPS = 50
#: AdamW's rate, for the weights that are not Muon's.
LR_ADAM = 8.4e-3
#: Decay of the recurrence's matrices, as a share of the rate, in a run of few passes.
WEIGHT_DECAY = 0.1
#: More than that is for texts of up to so many characters. On a longer one it falls in proportion,
#: so that weights are forgotten within as many passes (Wang and Aitchison 2024, arXiv:2405.13698).
DECAY_TEXT = 1_000_000
#: Defaults of the optimisers with one rate for all weights, in place of Muon's, which has two. SGD
#: gets no decay: it is a share of the rate, and SGD's rate is 200 times AdamW's.
ONE_RATE: dict[OptimiserName, dict[str, float]] = {
    "muon": {},
    "adamw": {"lr": 5e-3, "lr_adam": 5e-3, "weight_decay": WEIGHT_DECAY},
    "sgd": {"lr": 1.0, "lr_adam": 1.0, "weight_decay": 0.0},
}


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user chose; None leaves a number to the rules."""

    cell: CellName | None = None
    budget: dict[str, float | int] = field(default_factory=dict)
    """At most one of minutes, epochs, steps."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of ModelConfig, except the cell."""
    training: dict[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig."""


def choose(
    choices: Choices, *, vocabulary: int, characters: int, device: str, bf16: bool = False
) -> tuple[ModelConfig, TrainConfig]:
    """Return the complete configuration of a run.

    Args:
        choices: what the user gave.
        vocabulary: V.
        characters: of the training part.
        device: "cpu", "cuda" or "mps".
        bf16: whether the device is good at recurrences in bf16 (``device.recurs_in_bf16``).

    Raises:
        UsageError: a choice makes no sense.
    """
    cell = choices.cell or DEFAULT_CELL
    rules = RULES[cell]
    budget = choices.budget or {"minutes": DEFAULT_MINUTES}
    chosen, chosen_model = given(choices.training), given(choices.model)
    precision = chosen.get("precision", "bf16" if bf16 else "fp32")
    is_gpu = _sized_as(device, precision) == "cuda"

    # What the run is expected to read with the cell's own lanes.
    lanes = {"batch_size": rules.lanes, "bptt": rules.window}
    per_step = _characters_per_step(characters, lanes | chosen)
    read = _characters_read(budget, per_step, vocabulary, characters, device, precision)
    passes = read / characters

    # From that the width, ...
    multiple = GPU_MULTIPLE if is_gpu else 1
    widest = math.ceil(vocabulary / multiple) * multiple
    hidden = _hidden(cell, device, precision, widest, read, characters)
    sizes: dict[str, Any] = {"layers": 1, "hidden": hidden, "embedding": min(widest, hidden)}
    model = ModelConfig(**{"cell": cell, "vocabulary": vocabulary, **sizes, **chosen_model})

    # ... and the lanes on a GPU. A time step takes as long with more of them, so as many times
    # more is read.
    if is_gpu and "minutes" in budget:
        more, shorter = _lanes_on_gpu(passes, rules)
        lanes["batch_size"] = more
        if not {"batch_size", "loss_last"} & chosen.keys():
            lanes["bptt"] = shorter
        per_step = _characters_per_step(characters, lanes | chosen)
        faster = min(max(1, chosen.get("batch_size", more)), characters) / rules.lanes
        read, passes = faster * read, faster * passes

    # What keeps a model of this size from learning by heart what is read so often.
    pressed = pressure(passes, matrix_weights(model), characters)
    held = regularisers(cell, vocabulary, pressed, characters)
    drops = {"dropout": held.dropout, "weight_drop": held.weight_drop}
    model = replace(model, **(drops | chosen_model))

    # Muon's numbers, or those of an optimiser with one rate.
    rates = {"lr": rules.lr, "lr_adam": LR_ADAM, "weight_decay": held.weight_decay}
    if vocabulary >= RARE_SYMBOLS and pressed < BY_HEART:
        rates["lr_adam"] *= 3
    one_rate = ONE_RATE.get(chosen.get("optimiser", "muon"), {})  # TrainConfig refuses another
    rates |= one_rate

    if "lr" in chosen:
        # One flag scales both rates: their ratio is the recipe's.
        chosen["lr_adam"] = chosen["lr"] * rates["lr_adam"] / rates["lr"]
    if {"clip_value", "scale_norm"} & chosen.keys():
        chosen.setdefault("clip_norm", None)
    if chosen.get("clip_norm") == 0:
        chosen["clip_norm"] = None
    by_rule: dict[str, Any] = {
        "precision": precision,
        "decay_embedding": vocabulary >= rules.many_symbols,
        "loss_temperature": held.loss_temperature,
        "dropout_masks": dropout_masks(model, device, pressed),
        "warmup_steps": warmup_steps(read / per_step),
        "dropout_by_plan": not {"dropout", "weight_drop"} & chosen_model.keys(),
        "decay_by_plan": "weight_decay" not in chosen and not one_rate,
        "temperature_by_plan": "loss_temperature" not in chosen,
    }
    return model, TrainConfig(**{**lanes, **rates, **by_rule, **budget, **chosen})


def fit_lanes(
    characters: int, batch_size: int, bptt: int, loss_last: int | None = None
) -> tuple[int, int, int | None, str | None]:
    """Return the lanes and the window that a text is long enough for.

    The lanes become fewer until each is as long as the window; a text that is too short for one
    such lane gets a shorter window.

    Args:
        characters: n >= 2, of the part to be read.
        batch_size: B, the lanes wanted.
        bptt: T, the window wanted.
        loss_last: how many characters of a window are to count; None: all.

    Returns:
        The lanes, the window, how much of it counts, and a sentence that says which of the first
        two had to shrink, or None.
    """
    predictions = characters - 1
    lanes = min(batch_size, max(1, predictions // bptt))
    window = min(bptt, predictions)
    changes = [
        f"{thing} {now:,} instead of {wished:,}"
        for thing, now, wished in (("lanes", lanes, batch_size), ("window", window, bptt))
        if now < wished
    ]
    few = f"only {characters:,} characters to train on"
    said = f"{few}: {', '.join(changes)}" if changes else None
    return lanes, window, None if loss_last is None else min(loss_last, window), said


def refuse_nonsense(choices: Choices) -> None:
    """Refuse numbers that make no sense for any text, before reading one or importing torch.

    Raises:
        UsageError: for the first such number.
    """
    choose(choices, vocabulary=2, characters=2, device="cpu")


def warmup_steps(updates: float) -> int:
    """Return the steps of warm-up in a run of this many updates.

    ``choose`` passes an estimate where only the run itself will know the number.
    """
    return math.ceil(max(1, min(MOST_WARMUP_STEPS, updates / 10)))


def pressure(passes: float, parameters: int, characters: int) -> float:
    """Return how hard a run presses a text into a model: parameters per character, times passes.

    A small model that reads a text a few times cannot learn it by heart; a large one that
    reads it twenty times does, unless it is regularised.

    Args:
        passes: over the training part, in the whole run; ``MOST_PASSES`` of them count.
        parameters: the weights in the model's matrices (``matrix_weights``).
        characters: of the training part.
    """
    return min(passes, MOST_PASSES) * parameters / characters


class Regularisers(NamedTuple):
    """What keeps a model from learning its text by heart."""

    dropout: float
    weight_drop: float
    weight_decay: float
    loss_temperature: float


def regularisers(cell: CellName, vocabulary: int, pressed: float, characters: int) -> Regularisers:
    """Return the regularisers that the rules give a run on so many characters to train on."""
    return Regularisers(
        *dropout_and_weight_drop(cell, pressed, characters),
        weight_decay(cell, pressed, characters),
        loss_temperature(vocabulary, pressed),
    )


def dropout_and_weight_drop(cell: CellName, pressed: float, characters: int) -> tuple[float, float]:
    """Return the dropout and the weight drop of a run on so many characters to train on.

    Where a text is not learned by heart, dropout only slows training down. Where it is read some
    ten times, dropping units works better than dropping weights, which comes in later: from a
    pressure of 32 on. A plain RNN is slower to learn by heart, and dropping its units costs more
    than it gains: only its weights are dropped (docs/diary.md).
    """
    pressed = max(1.0, pressed)
    if not RULES[cell].drops_units:
        return 0.0, round(min(0.5, max(0.0, 0.08 * math.log2(pressed / 16))), 2)
    if pressed <= LEAST_PRESSURE:
        return 0.0, 0.0
    dropout = max(0.06 * math.log2(pressed), 0.1 * math.log2(pressed / 4))
    weight_drop = max(0.0, 0.18 * math.log2(pressed / 32))
    share = min(1.0, SHORT_TEXT / characters) ** LENGTH_POWER
    dropout = min(dropout, 0.3 + share * (MOST_DROPOUT - 0.3))  # 0.3 without weight drop
    weight_drop = min(weight_drop, share * MOST_WEIGHT_DROP)
    return round(dropout, 2), round(weight_drop, 2)


def dropout_masks(shape: ModelConfig, device: str, pressed: float) -> int:
    """Return the number of dropout masks in an update.

    The mean of several losses is less noisy than one, and each mask takes at most the head's
    time: little, unless the vocabulary is large.
    """
    recurrence = _recurrent_weights(shape.cell, shape.layers, shape.hidden, shape.embedding)
    affordable = int(MASKS_COST * recurrence / (shape.vocabulary * shape.hidden))
    return min(MOST_MASKS[device], 1 + max(affordable, pressed >= BY_HEART))


def weight_decay(cell: CellName, pressed: float, characters: int) -> float:
    """Return Muon's weight decay in a run on so many characters to train on.

    It doubles where a text is read some twenty times (a GRU: ten), unless the text is long. In a
    plain RNN, whose rate is half the others' and whose units are never dropped, it doubles sooner,
    and in the end quadruples (docs/diary.md).
    """
    times = max(min(most, pressed / over) for most, over in RULES[cell].decay)
    times *= min(1.0, DECAY_TEXT / characters)
    return round(WEIGHT_DECAY * max(1.0, times), 2)


def loss_temperature(vocabulary: int, pressed: float) -> float:
    """Return the divisor of the logits in the training loss.

    A model that has read its text several times is overconfident: on unseen text, flatter
    predictions are better, most of all if that text is unlike the training text (docs/diary.md).
    So it is trained at a lower temperature than it is used at. Not so with a large vocabulary: the
    model is not overconfident about rare symbols.
    """
    if vocabulary >= RARE_SYMBOLS:
        return 1.0
    share = min(1.0, math.log2(max(1.0, pressed)) / math.log2(FLATTEST_FROM))
    return round(1 / (1 + (FLATTEST - 1) * share), 2)


def matrix_weights(shape: ModelConfig) -> int:
    """Return the weights in a model's matrices, which are nearly all of its parameters."""
    recurrence = _recurrent_weights(shape.cell, shape.layers, shape.hidden, shape.embedding)
    return recurrence + shape.vocabulary * (shape.embedding + shape.hidden)


def parameter_count(shape: ModelConfig) -> int:
    """Return a model's parameter count without building it: it may be too large to build."""
    biases = shape.layers * CELL_BIASES[shape.cell] * shape.hidden + shape.vocabulary
    return matrix_weights(shape) + biases


def _recurrent_weights(cell: CellName, layers: int, hidden: int, embedding: int) -> int:
    """Return the weights in the matrices of all recurrent layers."""
    return CELL_GATES[cell] * hidden * (embedding + hidden + (layers - 1) * 2 * hidden)


def _characters_read(
    budget: dict[str, float | int],
    characters_per_step: int,
    vocabulary: int,
    characters: int,
    device: str,
    precision: str,
) -> float:
    """Return the characters that a budget reads; an estimate if it is in minutes."""
    if "epochs" in budget:
        return float(budget["epochs"] * characters)
    if "steps" in budget:
        return float(min(budget["steps"] * characters_per_step, 10**15))
    return float(budget["minutes"] * 60 * guessed_speed(vocabulary, device, precision))


def guessed_speed(vocabulary: int, device: str, precision: str, weights: int = 0) -> float:
    """Return the characters per second that training is expected to read, before it is measured.

    ``weights`` is the model's ``matrix_weights``, if there is a model: a large one is slower.
    """
    device = _sized_as(device, precision)
    share = min(1.0, GUESSED_WEIGHTS[device] / max(1, weights))
    return share * GUESSED_SPEED[device] / (1 + vocabulary / HALVED_BY[device])


def _sized_as(device: str, precision: str) -> str:
    """Return the device whose speed and width to assume for a device in a precision.

    A CUDA GPU in float32 counts as an Apple GPU: GPUs without bf16, or with a cuDNN before 9.13,
    train that way, and the numbers of "cuda" are those of a fast GPU in bf16.
    """
    return "mps" if device == "cuda" and precision == "fp32" else device


def given(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that the user gave: those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def _characters_per_step(characters: int, training: dict[str, Any]) -> int:
    """Return the predictions of an update, once lanes and window fit a text.

    Impossible values are refused only when the configs are built, so zeros do not fail here.
    """
    lanes, window, counted, _ = fit_lanes(
        characters, training["batch_size"], max(1, training["bptt"]), training.get("loss_last")
    )
    return max(1, lanes * (counted or window))


def _lanes_on_gpu(passes: float, rules: CellRules) -> tuple[int, int]:
    """Return lanes and window of a cell on a GPU that is to read the text so often in minutes."""
    for most, more in GPU_LANES:
        if passes < most and more[0] > rules.lanes:
            return more
    return rules.lanes, rules.window


def _hidden(
    cell: CellName, device: str, precision: str, embedding: int, read: float, characters: int
) -> int:
    """Return the units of a model's only layer.

    Its embedding is ``embedding`` wide, but no wider than the layer.
    """
    rules = RULES[cell]
    narrowest = rules.narrowest
    if precision == "bf16":
        narrowest += 128
    device = _sized_as(device, precision)
    if device == "cuda":
        short, long = rules.gpu_units
        width = long if read > GPU_WIDER_FROM else short
    else:
        thresholds = [*rules.wider_from]
        if rules.waits_in_fp32 and precision == "fp32" and read < FP32_PASSES * characters:
            thresholds = [*thresholds[1:], FP32_LAST]
        width = narrowest + 128 * sum(read > least for least in thresholds)
    most = MOST_WEIGHTS[device] * characters
    while width > narrowest and _recurrent_weights(cell, 1, width, min(embedding, width)) > most:
        width -= 128
    return width
