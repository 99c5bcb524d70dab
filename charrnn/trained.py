"""A checkpoint as a trained model: weights, vocabulary, and the text that its run read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from charrnn.checkpoint import Checkpoint, find, load, read_meta
from charrnn.config import ModelConfig, Record
from charrnn.corpus import BYTES, Corpus, Part, embedded_corpus, scan, text_encoding
from charrnn.errors import CheckpointError, CorpusError, UsageError, shown
from charrnn.model import CharModel, outline
from charrnn.vocabulary import Vocabulary

__all__ = [
    "PartName",
    "TextRecord",
    "described",
    "load_model",
    "prefixed",
    "record_of",
    "recorded_part",
    "refuse_other_symbols",
    "with_weights",
]

R = TypeVar("R", bound=Record)

PartName = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class TextRecord(Record):
    """Which text a run reads and how it is divided, so that a resumed run reads the same."""

    texts: tuple[str, ...]
    """Absolute paths, or "-"; none: the embedded corpus."""
    encoding: str
    fingerprint: str
    characters: int
    train: tuple[int, int]
    """The part's first character, and the one after its last; so are those below."""
    valid: tuple[int, int] | None
    test: tuple[int, int] | None
    valid_texts: tuple[str, ...]
    """Absolute paths of the texts to validate on, if they are others."""
    valid_fingerprint: str | None


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
    shape, vocabulary = described(checkpoint, file)
    model = with_weights(shape, prefixed(checkpoint.tensors, "model."), file)
    return model.to(device).eval(), vocabulary, checkpoint.meta


def recorded_part(
    meta: dict[str, Any],
    name: PartName,
    path: Path,
    read: Callable[[tuple[str, ...], str], Corpus] = scan,
) -> Part:
    """Return a part of the text that a checkpoint's run reads.

    Args:
        meta: the checkpoint's description, from ``load_model``.
        name: which part.
        path: the checkpoint, for messages.
        read: returns the corpus of some names in an encoding.

    Raises:
        CheckpointError: the description is not usable.
        CorpusError: the text is gone or changed, or was standard input; the message names the
            checkpoint.
        UsageError: the run has no such part.
    """
    record = record_of(Checkpoint({}, meta, path=path), "text", TextRecord)
    borders = {"train": record.train, "valid": record.valid, "test": record.test}[name]
    if borders is None:
        raise UsageError(f"{shown(path)}: its run held out no {name} part")
    record = _where_it_lies(record, path)
    names, fingerprint = record.texts, record.fingerprint
    if name == "valid" and record.valid_texts:
        names, fingerprint = record.valid_texts, record.valid_fingerprint or ""
    if "-" in names:
        raise CorpusError(f"{shown(path)}: its run read standard input, which is gone")
    try:
        corpus = read(tuple(names or embedded_corpus()), record.encoding)
    except CorpusError as error:
        raise CorpusError(f"{shown(path)}: the text that its run read: {error}") from error
    if corpus.fingerprint != fingerprint:
        raise CorpusError(f"{shown(path)}: the text that its run read has changed since")
    try:
        return corpus.part(*borders)
    except ValueError as error:
        raise CheckpointError(f"{shown(path)}: the field 'text' is not usable: {error}") from error


def _where_it_lies(record: TextRecord, path: Path) -> TextRecord:
    """Return the record with the names that the run's text had last: it may have moved."""
    with suppress(CheckpointError):
        last = Checkpoint({}, read_meta(find(path).parent / "last.safetensors"))
        newest = record_of(last, "text", TextRecord)
        moved = replace(record, texts=newest.texts, valid_texts=newest.valid_texts)
        if "-" not in newest.texts and moved == newest:
            return newest
    return record


def refuse_other_symbols(encoding: str, vocabulary: Vocabulary, who: str) -> None:
    """Refuse bytes for a model of characters, and characters for a model of bytes.

    Args:
        encoding: of the text, as the user names it.
        vocabulary: the model's.
        who: the model, for the message.

    Raises:
        UsageError: they do not fit.
    """
    if (text_encoding(encoding) == BYTES) != vocabulary.is_bytes:
        reads = "bytes" if vocabulary.is_bytes else "characters"
        raise UsageError(f"--encoding {encoding}: {who} reads {reads}: leave it out")


def described(checkpoint: Checkpoint, path: Path) -> tuple[ModelConfig, Vocabulary]:
    """Return the shape of a checkpoint's model, and its vocabulary.

    Raises:
        CheckpointError: one is missing or of another form, or they do not fit.
    """
    shape = record_of(checkpoint, "model", ModelConfig)
    try:
        vocabulary = Vocabulary.from_json(checkpoint.require("vocabulary", dict))
    except ValueError as error:
        raise CheckpointError(f"{shown(path)}: the field {error}") from error
    if vocabulary.size < 2:
        raise CheckpointError(f"{shown(path)}: the field 'vocabulary' has no characters")
    if shape.vocabulary != vocabulary.size:
        raise CheckpointError(
            f"{shown(path)}: the field 'vocabulary' has {vocabulary.size} symbols, the model "
            f"{shape.vocabulary}"
        )
    return shape, vocabulary


def record_of(checkpoint: Checkpoint, name: str, kind: type[R]) -> R:
    """Return a field of a checkpoint's description as a record.

    Raises:
        CheckpointError: it is missing or of another form; the message names the field.
    """
    try:
        return kind.from_dict(checkpoint.require(name, dict))
    except (ValueError, UsageError) as error:
        where = f"{shown(checkpoint.path)}: " if checkpoint.path else ""
        raise CheckpointError(f"{where}the field {name!r} is not usable: {error}") from error


def with_weights(shape: ModelConfig, weights: dict[str, Tensor], path: Path) -> CharModel:
    """Return a model with the weights of a file, whose size bounds the memory it takes.

    Raises:
        CheckpointError: a weight is missing, unknown, or of another shape than the model's.
    """
    layers = len({name.split(".")[1] for name in weights if name.startswith("cells.")})
    if shape.layers != layers:
        raise CheckpointError(
            f"{shown(path)}: the field 'model' has {shape.layers} layers, the weights {layers}"
        )
    try:
        model = outline(shape)
    except RuntimeError as error:
        raise CheckpointError(f"{shown(path)}: the field 'model' is impossible: {error}") from error
    wanted = model.state_dict()
    for name in sorted(wanted.keys() ^ weights.keys()):
        what = "missing" if name in wanted else "unknown"
        raise CheckpointError(f"{shown(path)}: the weight model.{name} is {what}")
    for name, weight in weights.items():
        if weight.shape != wanted[name].shape or weight.dtype != wanted[name].dtype:
            raise CheckpointError(
                f"{shown(path)}: the weight model.{name} is {weight.dtype} {list(weight.shape)}, "
                f"the model needs {wanted[name].dtype} {list(wanted[name].shape)}"
            )
    model.load_state_dict(weights, assign=True)
    return model


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin so, by the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
