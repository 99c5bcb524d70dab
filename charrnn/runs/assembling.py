"""What new and resumed runs have in common: putting the parts of a run together.

What can never work is refused here, before anything is written.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from charrnn import recipe
from charrnn.command_words import flag
from charrnn.compute.device import DTYPES
from charrnn.compute.products import why_none
from charrnn.compute.recurrence import Loops, loops
from charrnn.config import CELL_GATES, ModelConfig, TrainConfig
from charrnn.errors import UsageError
from charrnn.inference.baselines import marks, uniform_nats
from charrnn.limits import memory_bytes
from charrnn.network.cells import CELLS
from charrnn.network.model import CharModel
from charrnn.network.optimiser import OPTIMISERS
from charrnn.network.update import Update
from charrnn.runs.run import Progress, Run
from charrnn.storage.reading import TextRecord
from charrnn.storage.runfolder import RunFolder
from charrnn.text.corpus import Part
from charrnn.text.stream import Lanes
from charrnn.text.vocabulary import Vocabulary


def lanes_of(train: Part, vocabulary: Vocabulary, config: TrainConfig) -> Lanes:
    """Return a training part as lanes of ids.

    Raises:
        ValueError: the part has fewer predictions than lanes.
    """
    held_back = vocabulary.held_back(train.counts)
    return Lanes(train, vocabulary, config.batch_size, config.bptt, config.loss_last, held_back)


def assemble(
    model: CharModel,
    *,
    vocabulary: Vocabulary,
    config: TrainConfig,
    train: Part,
    lanes: Lanes,
    valid: Part | None,
    progress: Progress,
    folder: RunFolder,
    text: TextRecord,
    learnt_before: tuple[TextRecord, ...],
    notes: list[str],
) -> Run:
    """Put a run together, and plan its updates unless the budget is in minutes.

    Most arguments are the fields of ``Run`` of the same name; the model is on its device and in
    training mode, and the folder is locked.

    Raises:
        CorpusError: the validation text changed since it was scanned.
    """
    model.compute_dtype = DTYPES[config.precision]
    optimiser = OPTIMISERS[config.optimiser](
        model, weight_decay=config.weight_decay, decay_embedding=config.decay_embedding
    )
    config = _with_planned_steps(config, lanes, progress)
    return Run(
        model=model,
        vocabulary=vocabulary,
        config=config,
        train=train,
        valid=valid,
        lanes=lanes,
        update=Update(model, optimiser, config),
        progress=progress,
        folder=folder,
        text=text,
        learnt_before=learnt_before,
        baselines={"uniform": uniform_nats({}, vocabulary)}
        if valid is None
        else marks(train, valid.predicted, vocabulary),
        notes=[*notes, *_slow_loops(model)],
        unknown_share=vocabulary.unknown_share({} if valid is None else valid.predicted.counts),
    )


def steps_of(config: TrainConfig, lanes: Lanes) -> int | None:
    """Return the updates of a budget in steps or epochs; None: it is in minutes."""
    if config.epochs is None:
        return config.steps
    # A checkpoint holds integers of 64 bits.
    return max(1, round(min(2.0**62, config.epochs * lanes.steps_per_epoch)))


def _with_planned_steps(config: TrainConfig, lanes: Lanes, progress: Progress) -> TrainConfig:
    """Plan the updates unless the budget is in minutes; return the config with its warm-up."""
    if progress.planned_steps is None:
        progress.planned_steps = steps_of(config, lanes)
    if progress.step > 0 or progress.planned_steps is None:
        return config
    return replace(config, warmup_steps=recipe.warmup_steps(progress.planned_steps))


def _slow_loops(model: CharModel) -> list[str]:
    """Return the note that training would be faster with a better C compiler, if it would be."""
    # Unmeasured on macOS, where gcc's threads would be a second pool beside torch's.
    if model.device.type != "cpu" or platform.system() == "Darwin":
        return []
    if made := loops():  # this compiles them, which takes a while
        return [f"training is slower than it could be: {made.flaw}"] if made.flaw else []
    faster = "training is faster with a C compiler that has OpenMP, such as gcc"
    return [f"{faster}: {why_none(Loops)}"]


def refuse_validations(training: Mapping[str, Any]) -> None:
    """Refuse options that count validations where nothing is held out.

    Raises:
        UsageError: such a field of ``TrainConfig`` is given.
    """
    for name in ("patience", "validate_every"):
        if training.get(name) is not None:
            raise UsageError(
                f"{flag(name)} counts on validations, and nothing is held out for them: leave it "
                "out, or hold out a part (--valid-share)"
            )


def refuse_too_large(
    shape: ModelConfig,
    config: TrainConfig,
    device: torch.device,
    instead: str,
    *,
    is_planned: bool = False,
) -> None:
    """Refuse a run that can never fit in memory, before the system kills the process for trying.

    The estimate counts what the backward pass of one window needs, the counted outputs and logits
    under each dropout mask, and every weight with its gradient, its moments, if the optimiser has
    any, and the work space of its update; a layer's objects take 50 kB.

    An LSTM (G = 4) on a CPU in bf16, without dropout, takes 20 bytes for each weight of its
    matrices and B (4 T L (G + 2) H + 2 T V) bytes for a window. ``scripts/demo`` (B 16, T 128,
    L 1, H 512, V 158, 1,478,020 such weights): 29.6 MB + 25.8 MB = 55 MB, besides torch's own.
    Until its minutes are planned, the rules may still add dropout: then two masks count, 60 MB.

    Args:
        shape: of the model.
        config: of its training.
        device: where it is to be trained.
        instead: the advice that ends the message.
        is_planned: whether the dropout is final, set by a plan that will be kept.

    Raises:
        UsageError: the run needs more than the device's memory, or the machine's.
    """
    gates, size = CELL_GATES[shape.cell], 4
    weights = recipe.matrix_weights(shape)
    # Without gates the backward pass needs only the states, which are the next layer's inputs.
    kept = 1 if not CELLS[shape.cell].gate_names and shape.dropout == 0 else gates + 2
    states = config.bptt * shape.layers * kept * shape.hidden
    counted = config.loss_last or config.bptt
    # The rules may still add dropout where there is none yet.
    may_be = config.dropout_by_plan and not is_planned and recipe.RULES[shape.cell].drops_units
    is_dropped = shape.dropout > 0 or may_be
    masks = config.dropout_masks if is_dropped else 0
    dropped = counted * masks * shape.hidden  # the outputs after each mask
    logits = counted * max(1, masks) * shape.vocabulary
    if device.type == "cpu":
        # The logits become their own gradient in place, in the precision of the products.
        window = size * states + (2 if config.precision == "bf16" else 4) * (dropped + logits)
    else:
        window = size * (states + 2 * (dropped + logits))  # also each mask, and each gradient
    if device.type == "cuda":
        window *= 2  # the captured update keeps its memory; a pass's last window takes its own
    copies = OPTIMISERS[config.optimiser].copies
    needed = size * copies * weights + config.batch_size * window + 50_000 * shape.layers
    if device.type == "cuda":
        _, there = torch.cuda.mem_get_info(device)
    else:
        there = memory_bytes()
    if needed > there:
        raise UsageError(
            f"training needs about {needed / 1e9:,.1f} GB of memory, more than the "
            f"{there / 1e9:,.1f} GB available: {instead}"
        )
