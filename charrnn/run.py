"""A training run put together: text, vocabulary, model, optimiser, lanes and folder.

``start`` makes a new one from the user's choices, ``resume`` makes the one that a
folder holds, exactly as it was; ``training.train`` then drives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charrnn import recipe
from charrnn.checkpoint import Checkpoint, find, load
from charrnn.config import ModelConfig, TextChoices, TrainConfig
from charrnn.corpus import Corpus, Part, embedded_corpus, scan, split
from charrnn.errors import CharrnnError, CheckpointError, CorpusError, UsageError
from charrnn.evaluation import uniform_nats, unigram_nats
from charrnn.model import CharModel
from charrnn.optimiser import MuonAdamW
from charrnn.runfolder import RunFolder
from charrnn.stream import Lanes, fit_lanes
from charrnn.update import Update
from charrnn.vocabulary import Vocabulary

__all__ = [
    "Progress",
    "Run",
    "choose_device",
    "load_model",
    "resume",
    "start",
]


@dataclass
class Progress:
    """How far a run has come: all of a run's state that is no tensor."""

    step: int = 0
    """Updates done."""
    characters: int = 0
    """Predictions trained on."""
    seconds: float = 0.0
    """Wall-clock time of training, validation and saving, all sittings together."""
    planned_steps: int | None = None
    """Updates of the whole run; None until a budget in minutes has been planned."""
    validate_every: int | None = None
    validate_characters: int | None = None
    validated_step: int | None = None
    """Step of the latest validation."""
    best_nats: float | None = None
    """Lowest validation loss so far, nats per character."""
    best_step: int | None = None
    validations_since_best: int = 0
    clipped_steps: int = 0
    smooth_loss: float | None = None
    """Running mean of the training loss, nats per character."""
    spike_step: int | None = None
    """Step of the loss spike that was told."""
    sums: dict[str, float] = field(
        default_factory=lambda: {"loss": 0.0, "characters": 0, "norm": 0.0, "clipped": 0}
    )
    """Of the updates since the last row of the log."""


@dataclass
class Run:
    """Everything that training needs, ready to go on at ``progress.step``."""

    model: CharModel
    vocabulary: Vocabulary
    config: TrainConfig
    train: Part
    valid: Part | None
    lanes: Lanes
    update: Update
    progress: Progress
    folder: RunFolder
    text_meta: dict[str, Any]
    """The text's identity, kept in every checkpoint."""
    baselines: dict[str, float]
    """Nats per character of guesses that learn nothing: uniform, unigram."""
    notes: list[str]
    """What the user should know, a sentence each."""
    resumed: bool = False

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.head.weight.device

    def schedule(self) -> recipe.Schedule:
        """Return the learning rate's schedule as planned by now."""
        return recipe.Schedule(self.config.warmup_steps, self.progress.planned_steps)

    def save(self) -> Path:
        """Write the complete state as the run's last checkpoint; return its path.

        Raises:
            RunFolderError: the file could not be written; the earlier ones stay.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, tensor in self.update.optimiser.state().items():
            tensors[f"optimiser.{name}"] = tensor
        for layer, (cell, state) in enumerate(
            zip(self.model.layers(), self.update.hidden, strict=True)
        ):
            for name, part_BH in zip(cell.states, state, strict=True):
                tensors[f"hidden.{layer}.{name}"] = part_BH
        tensors["generator.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["generator.cuda"] = torch.cuda.get_rng_state(self.device)
        return self.folder.save_last(self._checkpoint(tensors), self.progress.step)

    def save_best(self) -> Path:
        """Write the weights alone as the run's best checkpoint; return its path."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        return self.folder.save_best(self._checkpoint(tensors))

    def _checkpoint(self, tensors: Mapping[str, Tensor]) -> Checkpoint:
        meta = {
            "model": self.model.config.to_dict(),
            "vocabulary": self.vocabulary.to_json(),
            "training": self.config.to_dict(),
            "text": self.text_meta,
            "progress": asdict(self.progress),
            "baselines": self.baselines,
        }
        return Checkpoint({name: tensor.detach().cpu() for name, tensor in tensors.items()}, meta)


def choose_device(name: str) -> torch.device:
    """Return the device to compute on; "auto" takes a GPU where there is one.

    Raises:
        UsageError: the device does not exist here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name not in available:
        raise UsageError(f"--device must be auto, cpu, cuda or mps, not {name!r}")
    if not available[name]:
        raise UsageError(f"--device {name}: there is no such device here; --device cpu works")
    return torch.device(name)


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
    names = [str(spooled) if name == "-" else name for name in text.texts]
    corpus = scan(names or embedded_corpus(), text.encoding)
    train, valid, test, valid_corpus = _divide(corpus, text)
    counts = train.counts()
    notes = list(corpus.notes)
    if spooled is not None:
        notes.append("standard input cannot be read again: to resume, give the text as a file")
    given_model, vocabulary, weights = choices.model, None, None
    if init_from is not None:
        loaded = load(find(init_from))
        model_config, vocabulary = _described(loaded, init_from)
        _refuse_other_shape(choices, model_config)
        weights = _prefixed(loaded.tensors, "model.")
        given_model = {**model_config.to_dict(), **recipe.given(choices.model)}
        choices = replace(choices, cell=model_config.cell, model=given_model)
        notes.append(_coverage(counts, vocabulary, init_from))
    if vocabulary is None:
        vocabulary = (
            Vocabulary.of_bytes()
            if text.encoding == "bytes"
            else Vocabulary.from_counts(counts, text.encoding, text.min_count)
        )
    shape, config = recipe.choose(
        choices, vocabulary=vocabulary.size, characters=train.characters, device=device.type
    )
    if device.type == "cpu" and config.precision == "bf16":
        raise UsageError("--precision bf16 needs a GPU; leave it out")
    lanes, window, said = fit_lanes(train.characters, config.batch_size, config.bptt)
    if said:
        notes.append(said)
    loss_last = min(config.loss_last, window) if config.loss_last else None
    config = replace(config, batch_size=lanes, bptt=window, loss_last=loss_last)

    torch.manual_seed(config.seed)
    model = CharModel(shape)
    if weights is not None:
        model.load_state_dict(weights)
    text_meta = {
        "texts": [str(Path(name).absolute()) if name != "-" else name for name in text.texts],
        "encoding": text.encoding,
        "fingerprint": corpus.fingerprint,
        "characters": corpus.characters,
        "train": [train.start, train.stop],
        "valid": [valid.start, valid.stop] if valid else None,
        "test": [test.start, test.stop] if test else None,
        "valid_texts": [str(Path(name).absolute()) for name in text.valid],
        "valid_fingerprint": valid_corpus.fingerprint if valid_corpus else None,
    }
    baselines = {"uniform": uniform_nats(vocabulary)}
    if valid is not None:
        baselines["unigram"] = unigram_nats(counts, valid.counts(), vocabulary)
    return _assemble(
        model.to(device), vocabulary, config, train, valid, Progress(), folder, text_meta,
        baselines, notes,
    )  # fmt: skip


def resume(
    folder: RunFolder,
    *,
    device: torch.device,
    changes: Mapping[str, Any],
    texts: Sequence[str] = (),
) -> Run:
    """Put the run in a folder together again, exactly as its last checkpoint has it.

    Args:
        folder: the run's, locked.
        device: where to compute.
        changes: fields of TrainConfig to change: a budget, lr, patience.
        texts: where the text lies now, if it has moved.

    Raises:
        CheckpointError: no checkpoint of the folder is whole, or a field is off.
        CorpusError: the text is not the one that the run was started on.
        UsageError: a change makes no sense.
    """
    checkpoint, notes = folder.load_last()
    meta, path = checkpoint.meta, folder.path
    shape, vocabulary = _described(checkpoint, path)
    try:
        config = TrainConfig.from_dict(meta["training"])
        progress = Progress(**meta["progress"])
        text_meta: dict[str, Any] = meta["text"]
        baselines: dict[str, float] = meta["baselines"]
        recorded, encoding = text_meta["texts"], text_meta["encoding"]
        train_span, valid_span = text_meta["train"], text_meta["valid"]
    except (KeyError, TypeError, CharrnnError) as error:
        raise CheckpointError(
            f"{path}: the checkpoint's description is not usable: {error}"
        ) from error
    if "-" in recorded and not texts:
        raise UsageError(
            "this run read standard input, which cannot be read again: "
            "give the same text as a file to resume"
        )
    config, replanned = _changed(config, progress, changes)
    notes += replanned

    corpus = scan(list(texts) or recorded or embedded_corpus(), encoding)
    _same_text(corpus, text_meta, "fingerprint", "the text")
    train = corpus.part(*train_span)
    valid = corpus.part(*valid_span) if valid_span else None
    if text_meta["valid_texts"]:
        valid_corpus = scan(text_meta["valid_texts"], encoding)
        _same_text(valid_corpus, text_meta, "valid_fingerprint", "the validation text")
        valid = valid_corpus.part(0, valid_corpus.characters)

    model = CharModel(shape)
    _load_weights(model, _prefixed(checkpoint.tensors, "model."), path)
    run = _assemble(
        model.to(device), vocabulary, config, train, valid, progress, folder, text_meta,
        baselines, notes,
    )  # fmt: skip
    try:
        run.update.optimiser.load_state(_prefixed(checkpoint.tensors, "optimiser."))
        for layer, (cell, state) in enumerate(zip(model.layers(), run.update.hidden, strict=True)):
            for name, part_BH in zip(cell.states, state, strict=True):
                part_BH.copy_(checkpoint.tensors[f"hidden.{layer}.{name}"])
        torch.set_rng_state(checkpoint.tensors["generator.cpu"])
        if device.type == "cuda" and "generator.cuda" in checkpoint.tensors:
            torch.cuda.set_rng_state(checkpoint.tensors["generator.cuda"], device)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: the training state is not usable: {error}") from error
    folder.rewind_log(progress.step)
    run.resumed = True
    return run


def load_model(path: Path, device: torch.device) -> tuple[CharModel, Vocabulary, dict[str, Any]]:
    """Load a checkpoint's model for use: weights, vocabulary and the rest of its description.

    Args:
        path: a checkpoint, or a run's folder (its best one is taken).
        device: where to compute.

    Raises:
        CheckpointError: the file is not a whole checkpoint.
    """
    file = find(path)
    checkpoint = load(file)
    shape, vocabulary = _described(checkpoint, file)
    model = CharModel(shape)
    _load_weights(model, _prefixed(checkpoint.tensors, "model."), file)
    return model.to(device).eval(), vocabulary, checkpoint.meta


def _assemble(
    model: CharModel,
    vocabulary: Vocabulary,
    config: TrainConfig,
    train: Part,
    valid: Part | None,
    progress: Progress,
    folder: RunFolder,
    text_meta: dict[str, Any],
    baselines: dict[str, float],
    notes: list[str],
) -> Run:
    model.compute_dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model.train()
    optimiser = MuonAdamW(model, weight_decay=config.weight_decay)
    lanes = Lanes(train, vocabulary, config.batch_size, config.bptt, config.loss_last)
    if progress.planned_steps is None:
        if config.steps is not None:
            progress.planned_steps = config.steps
        elif config.epochs is not None:
            progress.planned_steps = max(1, round(config.epochs * lanes.chunks_per_pass))
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
        text_meta=text_meta,
        baselines=baselines,
        notes=notes,
    )


def _divide(
    corpus: Corpus, text: TextChoices
) -> tuple[Part, Part | None, Part | None, Corpus | None]:
    if not text.valid:
        train, valid, test = split(corpus, text.valid_share, text.test_share)
        return train, valid, test, None
    train, _, test = split(corpus, 0.0, text.test_share)
    valid_corpus = scan(text.valid, text.encoding)
    if valid_corpus.characters < 2:
        raise CorpusError(f"{text.valid[0]}: a text to validate on needs at least 2 characters")
    return train, valid_corpus.part(0, valid_corpus.characters), test, valid_corpus


def _changed(
    config: TrainConfig, progress: Progress, changes: Mapping[str, Any]
) -> tuple[TrainConfig, list[str]]:
    """Apply the changes that a resumed run may have; say what they mean."""
    budget = {name: changes[name] for name in ("minutes", "epochs", "steps") if name in changes}
    values = {**config.to_dict(), **changes}
    if "lr" in changes:
        values["lr_adam"] = changes["lr"] * config.lr_adam / config.lr
    if not budget:
        return TrainConfig(**values), []
    for name in ("minutes", "epochs", "steps"):
        values[name] = budget.get(name)
    new = TrainConfig(**values)
    old = [f"{name} {getattr(config, name)}" for name in budget if getattr(config, name)]
    if new == config:
        return config, []
    was = progress.planned_steps
    progress.planned_steps = progress.validate_every = progress.validate_characters = None
    given = ", ".join(f"--{name} {value}" for name, value in budget.items())
    return new, [
        f"schedule re-planned for {given} (was {', '.join(old) or f'{was} steps'}): "
        f"the learning rate follows the new plan from step {progress.step} on"
    ]


def _described(checkpoint: Checkpoint, path: Path) -> tuple[ModelConfig, Vocabulary]:
    try:
        shape = ModelConfig.from_dict(checkpoint.meta["model"])
        vocabulary = Vocabulary.from_json(checkpoint.meta["vocabulary"])
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise CheckpointError(f"{path}: the model's description is not usable: {error}") from error
    if shape.vocabulary != vocabulary.size:
        raise CheckpointError(
            f"{path}: the model has {shape.vocabulary} symbols, its vocabulary {vocabulary.size}"
        )
    return shape, vocabulary


def _load_weights(model: CharModel, weights: dict[str, Tensor], path: Path) -> None:
    for name, own in model.state_dict().items():
        if name not in weights:
            raise CheckpointError(f"{path}: the weight model.{name} is missing")
        if weights[name].shape != own.shape or weights[name].dtype != own.dtype:
            raise CheckpointError(
                f"{path}: the weight model.{name} is {list(weights[name].shape)}, "
                f"the model needs {list(own.shape)}"
            )
    model.load_state_dict({name: weights[name] for name in model.state_dict()})


def _prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _refuse_other_shape(choices: recipe.Choices, config: ModelConfig) -> None:
    for name, value in choices.model.items():
        if value is not None and name in ("layers", "hidden", "embedding"):
            have = getattr(config, name)
            if have != value:
                raise UsageError(f"--{name} {value}: the checkpoint of --init-from has {have}")


def _coverage(counts: Mapping[int, int], vocabulary: Vocabulary, path: Path) -> str:
    total = sum(counts.values())
    known = total
    if vocabulary.has_unknown:
        missing = vocabulary.unknown_in("".join(map(chr, counts)))
        known -= sum(counts[ord(char)] for char in missing)
    return (
        f"weights and vocabulary from {path}: it knows {100 * known / total:.2f} % "
        f"of the text's characters"
    )


def _same_text(corpus: Corpus, text_meta: Mapping[str, Any], name: str, what: str) -> None:
    if corpus.fingerprint == text_meta[name]:
        return
    shown = corpus.files[0].path if len(corpus.files) == 1 else f"{len(corpus.files)} files"
    raise CorpusError(
        f"{what} ({shown}) is not the one this run was started on: {corpus.characters:,} "
        f"characters, SHA-256 {corpus.fingerprint[:12]}…, expected {text_meta[name][:12]}…; "
        "bring the old text back, or start a new run with --init-from"
    )
