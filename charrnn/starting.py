"""A run put together.

``start`` makes a new one from the user's choices, ``resume`` makes the one that a
folder holds, exactly as it was; ``training.train`` then drives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from charrnn import native, recipe
from charrnn.baselines import compressed_nats, uniform_nats, unigram_nats
from charrnn.checkpoint import BEST, Checkpoint, find, load
from charrnn.config import BUDGETS, CELL_GATES, CellName, ModelConfig, TextChoices, TrainConfig
from charrnn.corpus import Part, scan
from charrnn.decoding import BYTES
from charrnn.device import choose_device, multiplies_bf16
from charrnn.errors import CheckpointError, CorpusError, UsageError, VocabularyError
from charrnn.files import embedded_corpus
from charrnn.loops import suits_lstm
from charrnn.machine import memory_bytes, processor
from charrnn.model import CharModel
from charrnn.optimiser import OPTIMISERS
from charrnn.reading import (
    TextRecord,
    absolute_names,
    divide,
    readable,
    refuse_another_text,
    refuse_other_symbols,
    refuse_too_many_names,
    refuse_too_short,
)
from charrnn.run import Progress, Run
from charrnn.runfolder import RunFolder
from charrnn.stream import Lanes, fit_lanes
from charrnn.trained import described, prefixed, with_weights
from charrnn.update import Update
from charrnn.vocabulary import Vocabulary, listed
from charrnn.wording import command_line, counted, shown

__all__ = ["resume", "start"]

#: What the weights of a checkpoint settle of a model, beside its cell.
SHAPE = ("vocabulary", "layers", "hidden", "embedding")
#: Characters of the held-out text that bzip2 compresses, for the mark to beat: a block of its
#: own, a tenth of a second.
MOST_COMPRESSED = 900_000


def start(
    choices: recipe.Choices,
    text: TextChoices,
    *,
    folder: RunFolder,
    device: torch.device,
    init_from: Path | None = None,
    spooled: Path | None = None,
) -> Run:
    """Put a new run together.

    Args:
        choices: of the model and its training; the rules give the rest.
        text: what to read.
        folder: the run's, new and locked.
        device: where to compute.
        init_from: take weights and vocabulary from this checkpoint.
        spooled: where standard input was put, for the text "-".

    Raises:
        CharrnnError: a choice, the text, the checkpoint or the folder is not usable.
    """
    origin = None if init_from is None else _Origin.of(init_from, choices, text)
    encoding = "utf-8" if text.encoding is None else text.encoding
    if origin is not None:
        encoding = origin.vocabulary.encoding if text.encoding is None else text.encoding
        settled = origin.shape | recipe.given(choices.model)
        choices = replace(choices, cell=origin.cell, model=settled)
    corpus = scan(readable(text.texts, spooled) or embedded_corpus(), encoding)
    train, valid, test = divide(corpus, text)
    refuse_too_short(train, text)
    record = TextRecord.of(text, train, valid, test)
    refuse_too_many_names(record)
    if valid is None:
        _refuse_validations(choices.training)
    counts = train.counts()
    notes = [*corpus.notes, *(valid.corpus.notes if valid and text.valid else ())]
    if spooled is not None:
        notes = [note.replace(str(spooled), "standard input") for note in notes]
        notes.append("standard input cannot be read again: to resume, give the text as a file")
    if valid and text.valid:
        notes += _trained_on(valid, record)
    if origin is None:
        vocabulary = _new_vocabulary(counts, corpus.encoding, text.min_count)
    else:
        vocabulary = origin.vocabulary
        notes.append(_coverage(counts, vocabulary, origin.path))
    held_out = valid.counts() if valid is not None else {}
    notes += _unknown(held_out, vocabulary)
    shape, config, said = _choose(choices, vocabulary, train, device)
    torch.manual_seed(config.seed)
    model = CharModel(shape) if origin is None else with_weights(shape, origin.weights, origin.path)
    return _assemble(
        model.to(device),
        vocabulary=vocabulary,
        config=config,
        train=train,
        train_counts=counts,
        lanes=_lanes(train, counts, vocabulary, config),
        valid=valid,
        held_out=held_out,
        progress=Progress(),
        folder=folder,
        text=record,
        notes=notes + said,
    )


@dataclass(frozen=True)
class _Origin:
    """The checkpoint that a run starts from."""

    path: Path
    cell: CellName
    shape: dict[str, Any]
    """What its weights settle, and no more: what is dropped follows from text and budget."""
    vocabulary: Vocabulary
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, path: Path, choices: recipe.Choices, text: TextChoices) -> Self:
        """Load it, and refuse choices that its weights or vocabulary have made already."""
        checkpoint = load(find(path))
        config, vocabulary = described(checkpoint, path)
        shape = {name: getattr(config, name) for name in SHAPE}
        settled = {"cell": config.cell, **shape}
        for name, value in recipe.given({"cell": choices.cell, **choices.model}).items():
            if settled.get(name, value) != value:
                raise UsageError(
                    f"--{name} {value}: the checkpoint of --init-from has {settled[name]}"
                )
        if text.min_count is not None:
            raise UsageError(
                "--min-count and --init-from exclude each other: its vocabulary is kept"
            )
        if text.encoding is not None:
            refuse_other_symbols(text.encoding, vocabulary, "the checkpoint of --init-from")
        return cls(path, config.cell, shape, vocabulary, prefixed(checkpoint.tensors, "model."))


def _new_vocabulary(counts: Mapping[int, int], encoding: str, min_count: int | None) -> Vocabulary:
    """Return the vocabulary of the training part."""
    if encoding == BYTES and min_count is not None:
        raise UsageError("--min-count and --encoding bytes exclude each other: bytes are known")
    vocabulary = Vocabulary.from_counts(counts, encoding, min_count)
    if vocabulary.size < 2:
        raise VocabularyError(
            f"no character occurs {vocabulary.min_count} times in the training part: "
            "give a smaller --min-count"
        )
    return vocabulary


def _coverage(counts: Mapping[int, int], vocabulary: Vocabulary, path: Path) -> str:
    """Say how much of a text the vocabulary of another one knows."""
    unknown = vocabulary.unknown_among(counts)
    total = sum(counts.values())
    known = 1 - sum(unknown.values()) / total
    lacks = f", and lacks {listed(unknown)}" if unknown else ""
    return (
        f"weights and vocabulary from {shown(path)}: it knows {100 * known:.2f} % "
        f"of the text's characters{lacks}"
    )


def _trained_on(valid: Part, record: TextRecord) -> list[str]:
    """Say how much of a text of its own to validate on is trained on, if any."""
    shared = record.shared(valid, record.fingerprint, record.train)
    if not shared:
        return []
    if shared == valid.characters:
        return ["what --valid names is trained on: nothing is held out"]
    return [
        f"{shared:,} of the {counted(valid.characters, 'character')} that --valid names are "
        "trained on, too: validations flatter the model"
    ]


def _unknown(held_out: Mapping[int, int], vocabulary: Vocabulary) -> list[str]:
    """Say how much of what is held out the vocabulary does not know, if any."""
    unknown = vocabulary.unknown_among(held_out)
    if not unknown:
        return []
    return [
        f"{sum(unknown.values()):,} of the {counted(sum(held_out.values()), 'character')} held out "
        f"are unknown, and each costs what it takes to spell it out: {listed(unknown)}"
    ]


def _choose(
    choices: recipe.Choices, vocabulary: Vocabulary, train: Part, device: torch.device
) -> tuple[ModelConfig, TrainConfig, list[str]]:
    """Return a new run's numbers as text and device allow them; say what had to shrink."""
    shape, config = recipe.choose(
        choices,
        vocabulary=vocabulary.size,
        characters=train.characters,
        device=device.type,
        bf16=multiplies_bf16(device),
    )
    if config.precision == "bf16" and not multiplies_bf16(device):
        raise UsageError(
            "--precision bf16 needs a CPU with AVX512-BF16 or a CUDA GPU from capability 8.0 on: "
            "leave it out"
        )
    lanes, window, said = fit_lanes(train.characters, config.batch_size, config.bptt)
    loss_last = min(config.loss_last, window) if config.loss_last else None
    config = replace(config, batch_size=lanes, bptt=window, loss_last=loss_last)
    _refuse_too_large(shape, config, device)
    return shape, config, [said] if said else []


def resume(
    folder: RunFolder,
    *,
    device: torch.device | None,
    changes: Mapping[str, Any],
    texts: Sequence[str] = (),
    valid_texts: Sequence[str] = (),
    spooled: Path | None = None,
    keep: int | None = None,
) -> Run:
    """Put the run in a folder together again, exactly as its last checkpoint has it.

    Args:
        folder: the run's, locked.
        device: where to compute; None: where the run computed before.
        changes: fields of TrainConfig to change: a budget, lr, patience.
        texts: where the text lies now, if it has moved.
        valid_texts: where the text to validate on lies now, if it is another and has moved.
        spooled: where standard input was put, for the text "-".
        keep: how many earlier checkpoints to keep; None: as many as before.

    Raises:
        CheckpointError: no checkpoint of the folder is whole, or a field is off.
        CorpusError: the text is not the one that the run was started on.
        UsageError: a change makes no sense.
    """
    checkpoint, notes = folder.load_last()
    path = checkpoint.path or folder.path
    shape, vocabulary = described(checkpoint, path)
    config = checkpoint.record("training", TrainConfig)
    progress = checkpoint.record("progress", Progress)
    record = checkpoint.record("text", TextRecord)
    kept = max(0, checkpoint.require("keep", int))
    saved_choices = (config, record, kept, checkpoint.require("device", str))
    folder.keep = kept if keep is None else keep
    record = _where_it_lies_now(record, folder, texts, valid_texts)
    device = device or choose_device(checkpoint.require("device", str))
    notes += _other_machine(checkpoint, device)
    if record.valid is None:
        _refuse_validations(changes)
    config, said = _changed(config, progress, changes)
    notes += said
    if config.precision == "bf16" and not multiplies_bf16(device):
        config = replace(config, precision="fp32")
        notes.append("precision fp32 (was bf16, which this device has no instructions for)")
    try:
        train, valid = _read_again(record, spooled, folder)
        counts = train.counts()
        lanes = _lanes(train, counts, vocabulary, config)
    except ValueError as error:
        raise CheckpointError(f"{shown(path)}: the field 'text' is not usable: {error}") from error
    run = _assemble(
        with_weights(shape, prefixed(checkpoint.tensors, "model."), path).to(device),
        vocabulary=vocabulary,
        config=config,
        train=train,
        train_counts=counts,
        lanes=lanes,
        valid=valid,
        held_out=valid.counts() if valid is not None else {},
        progress=progress,
        folder=folder,
        text=record,
        notes=notes,
    )
    if not run.is_over:
        elsewhere = "go on where there is more, or with another --device"
        _refuse_too_large(shape, config, device, elsewhere)
    try:
        run.restore(checkpoint.tensors)
    except ValueError as error:
        raise CheckpointError(
            f"{shown(path)}: the training state is not usable: {error}"
        ) from error
    # Rows of this very step may have been logged after the checkpoint was written.
    folder.rewind_log(
        progress.step,
        logged=progress.row_updates == 0,
        validated=progress.validated_step == progress.step,
    )
    # Before the changes: the plan is another now where the budget is.
    saved = checkpoint.record("progress", Progress)
    run.resumed, run.saved, run.saved_choices = True, saved, saved_choices
    run.better = _better(folder, progress)
    if run.better is not None:
        run.notes.append(
            f"{BEST} has {run.better.best_nats:.4f} nats, of step "
            f"{run.better.best_step:,}: it stays until a validation is better"
        )
    return run


def _where_it_lies_now(
    record: TextRecord, folder: RunFolder, texts: Sequence[str], valid_texts: Sequence[str]
) -> TextRecord:
    """Return the record with the names that the user gives for texts that have moved."""
    if texts:
        record = replace(record, texts=absolute_names(texts))
    elif "-" in record.texts:
        raise UsageError(
            "this run read standard input, which cannot be read again: give the same text as a "
            f"file, charrnn train FILE --run {command_line([str(folder.path)])} --resume"
        )
    if valid_texts:
        if not record.valid_texts:
            raise UsageError("--valid: this run has no separate text to validate on: leave it out")
        record = replace(record, valid_texts=absolute_names(valid_texts))
    return record


def _read_again(
    record: TextRecord, spooled: Path | None, folder: RunFolder
) -> tuple[Part, Part | None]:
    """Return what a run trains on and what it validates on.

    Raises:
        CorpusError: a text cannot be read, or is not the one that the run was started on.
        ValueError: a text has no such part.
    """
    try:
        corpus = scan(readable(record.texts, spooled) or embedded_corpus(), record.encoding)
    except CorpusError as error:
        resumed = command_line(["charrnn", "train", "TEXT", "--run", str(folder.path), "--resume"])
        raise CorpusError(f"{error}; where the run's text has moved, name it: {resumed}") from error
    refuse_another_text(corpus, record.fingerprint, "the text")
    valid_corpus = corpus
    if record.valid_texts:
        valid_corpus = scan(record.valid_texts, record.encoding)
        refuse_another_text(valid_corpus, record.valid_fingerprint, "the validation text")
    valid = valid_corpus.part(*record.valid) if record.valid else None
    return corpus.part(*record.train), valid


def _better(folder: RunFolder, progress: Progress) -> Progress | None:
    """Return the state at a run's best checkpoint where that is better than it knows."""
    try:
        best = folder.best().record("progress", Progress)
    except CheckpointError:
        return None
    is_comparable = best.validate_characters == progress.validate_characters
    return best if is_comparable and best.is_better_than(progress) else None


def _lanes(
    train: Part, counts: Mapping[int, int], vocabulary: Vocabulary, config: TrainConfig
) -> Lanes:
    held_back = vocabulary.held_back(counts)
    return Lanes(train, vocabulary, config.batch_size, config.bptt, config.loss_last, held_back)


def _assemble(
    model: CharModel,
    *,
    vocabulary: Vocabulary,
    config: TrainConfig,
    train: Part,
    train_counts: Mapping[int, int],
    lanes: Lanes,
    valid: Part | None,
    held_out: Mapping[int, int],
    progress: Progress,
    folder: RunFolder,
    text: TextRecord,
    notes: list[str],
) -> Run:
    """Do what a new run and one that goes on have in common."""
    model.train()
    model.compute_dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
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
        baselines=_baselines(train_counts, valid, held_out, vocabulary),
        notes=[*notes, *_slow_loops(model)],
    )


def _with_planned_steps(config: TrainConfig, lanes: Lanes, progress: Progress) -> TrainConfig:
    """Plan the updates of a budget that is not in minutes; return the config with its warm-up."""
    if progress.planned_steps is None:
        if config.steps is not None:
            progress.planned_steps = config.steps
        elif config.epochs is not None:
            # A checkpoint holds whole numbers of 64 bits.
            steps = min(2.0**62, config.epochs * lanes.chunks_per_pass)
            progress.planned_steps = max(1, round(steps))
    if progress.step > 0 or progress.planned_steps is None:
        return config
    return replace(config, warmup_steps=recipe.warmup_steps(progress.planned_steps))


def _baselines(
    train_counts: Mapping[int, int],
    valid: Part | None,
    held_out: Mapping[int, int],
    vocabulary: Vocabulary,
) -> dict[str, float]:
    """Return what the held-out text costs without a network, nats per character."""
    baselines = {"uniform": uniform_nats(held_out, vocabulary)}
    if valid is not None:
        baselines["unigram"] = unigram_nats(train_counts, held_out, vocabulary)
        baselines["bzip2"] = compressed_nats(valid.first(MOST_COMPRESSED), "bzip2")
    return baselines


def _slow_loops(model: CharModel) -> list[str]:
    """Return what is said where the machine could train faster, had it a compiler."""
    on_cpu = model.head.weight.device.type == "cpu"
    looped = model.config.cell != "lstm" or suits_lstm(model.compute_dtype, shared=True)
    # Asking compiles, which takes its time.
    why = native.why_none() if on_cpu and looped else None
    if why is None:
        return []
    return [f"training is faster with a C compiler that has OpenMP, such as gcc: {why}"]


def _refuse_validations(training: Mapping[str, Any]) -> None:
    """Refuse what counts validations where nothing is held out."""
    for name, flag in (("patience", "--patience"), ("validate_every", "--validate-every")):
        if training.get(name) is not None:
            raise UsageError(
                f"{flag} counts on validations, and nothing is held out for them: leave it out, or "
                "hold out a part (--valid-share)"
            )


def _changed(
    config: TrainConfig, progress: Progress, changes: Mapping[str, Any]
) -> tuple[TrainConfig, list[str]]:
    """Apply the changes that a resumed run may have; say what they mean."""
    values, notes = {**config.to_dict(), **changes}, []
    if "lr" in changes:
        values["lr_adam"] = changes["lr"] * config.lr_adam / config.lr
        notes.append(f"--lr {changes['lr']:g} (was {config.lr:g}) from step {progress.step:,} on")
    given = [name for name in BUDGETS if name in changes]
    if given:
        values |= {name: changes.get(name) for name in BUDGETS}
    new = TrainConfig(**values)
    if any(getattr(new, name) != getattr(config, name) for name in BUDGETS):
        progress.planned_steps = progress.planned_at_step = progress.validate_every = None
        if new.minutes is not None and progress.seconds >= 60 * new.minutes:
            progress.planned_steps = progress.step
        (old,) = (f"--{name} {value:g}" for name in BUDGETS if (value := getattr(config, name)))
        notes.append(
            f"the schedule is planned anew for --{given[0]} {changes[given[0]]:g}, what was done "
            f"before included (it was {old}): the learning rate follows the new plan from step "
            f"{progress.step:,} on"
        )
    return new, notes


def _other_machine(checkpoint: Checkpoint, device: torch.device) -> list[str]:
    """Return why a resumed run may differ in the last bits from one that never stopped."""
    then_and_now = (
        ("device", checkpoint.require("device", str), device.type),
        ("threads", checkpoint.require("threads", int), torch.get_num_threads()),
        ("torch", checkpoint.versions["torch"], str(torch.__version__)),
        ("processor", checkpoint.meta.get("processor", processor()), processor()),
    )
    changes = [f"{what} {now} (was {then})" for what, then, now in then_and_now if then != now]
    if not changes:
        return []
    return [f"{', '.join(changes)}: results may differ in the last bits"]


def _refuse_too_large(
    shape: ModelConfig,
    config: TrainConfig,
    device: torch.device,
    instead: str = "give a smaller --hidden, --embedding, --layers, --batch-size or --bptt",
) -> None:
    """Refuse what can never fit, before the system kills the process for trying.

    The estimate counts what is kept for the backward pass of one window, the logits of what
    counts, and every weight with its gradient, its moments and the work space of its update;
    50 kB are a layer's objects.
    """
    gates, size = CELL_GATES[shape.cell], 4
    weights = recipe.matrix_weights(shape)
    states = config.bptt * shape.layers * (gates + 2) * shape.hidden
    logits = (config.loss_last or config.bptt) * shape.vocabulary
    if device.type == "cpu":
        # They become their own gradient where they lie, in the precision of products.
        window = size * states + (2 if config.precision == "bf16" else 4) * logits
    else:
        window = size * (states + 2 * logits)
    if device.type == "cuda":
        window *= 2  # the captured update keeps its memory while a pass's last window takes its own
    needed = size * 5 * weights + config.batch_size * window + 50_000 * shape.layers
    if device.type == "cuda":
        _, there = torch.cuda.mem_get_info(device)
    else:
        there = memory_bytes()
    if needed > there:
        raise UsageError(
            f"training needs about {needed / 1e9:,.0f} GB of memory, and there are "
            f"{there / 1e9:,.0f}: {instead}"
        )
