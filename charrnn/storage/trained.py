"""Turn a checkpoint into a trained model: weights and vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from charrnn.compute.device import recurs_in_bf16
from charrnn.compute.machine import worker
from charrnn.config import ModelConfig, PrecisionName, TrainConfig
from charrnn.errors import CheckpointError
from charrnn.layout import BEST, LAST
from charrnn.network.model import CharModel, outline
from charrnn.storage.checkpoint import Checkpoint, find, load, read_description
from charrnn.text.vocabulary import Vocabulary
from charrnn.wording import shown


def load_model(
    path: Path | str, device: torch.device | str
) -> tuple[CharModel, Vocabulary, Checkpoint]:
    """Load a checkpoint's model, vocabulary, and the checkpoint itself without its tensors.

    Args:
        path: a checkpoint, or a run's folder (its best one is taken).
        device: where to compute, as torch names it.

    Raises:
        CheckpointError: the file is not an intact checkpoint.
    """
    path = Path(path)
    checkpoint = load(find(path))
    model, vocabulary = trained_model(checkpoint)
    return model.to(device).eval(), vocabulary, replace(checkpoint, tensors={}, path=path)


def shape_of(path: Path) -> ModelConfig:
    """Return the shape of a checkpoint's model, reading the header only.

    Args:
        path: a checkpoint, or a run's folder (its best one is taken).

    Raises:
        CheckpointError: as for ``load_model``, as far as the header shows it.
    """
    return read_description(find(path)).record("model", ModelConfig)


def chosen_in(run: Path, *, validated: bool) -> Path:
    """Return the checkpoint that a training chose, which may be gone.

    Args:
        run: the run's folder.
        validated: whether there was a validation, which chose the best one; else it is the last.
    """
    return run / (BEST if validated else LAST)


def trained_by(run: Path) -> str | None:
    """Return what last trained the run in a folder: a processor with its threads, or a GPU.

    Apple's GPU goes by its processor.

    None if its last checkpoint is missing, damaged, or too old to say.
    """
    with suppress(CheckpointError):
        last = read_description(run / LAST)
        if last.require("device", str) == "cuda":
            return last.require("gpu", str)
        if last.require("device", str) == "mps":
            return f"{last.require('processor', str)}, mps"
        return worker(last.require("processor", str), last.require("threads", int))
    return None


def trained_in(checkpoint: Checkpoint, device: torch.device) -> PrecisionName:
    """Return the precision of a model's training, where the device multiplies that, else fp32."""
    with suppress(CheckpointError):  # it does not say how it was trained
        config = checkpoint.record("training", TrainConfig)
        return config.precision if recurs_in_bf16(device) else "fp32"
    return "fp32"


def trained_model(checkpoint: Checkpoint) -> tuple[CharModel, Vocabulary]:
    """Return a loaded checkpoint's model, in training mode on the CPU, and its vocabulary.

    The weights are the checkpoint's own tensors.

    Raises:
        CheckpointError: shape, vocabulary or a weight is missing, malformed, or does not fit the
            others.
    """
    path = checkpoint.path
    assert path is not None, "it was loaded from there"
    shape = checkpoint.record("model", ModelConfig)
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
    return _with_weights(shape, prefixed(checkpoint.tensors, "model."), path), vocabulary


def _with_weights(shape: ModelConfig, weights: dict[str, Tensor], path: Path) -> CharModel:
    """Return a model with a file's weights; the file's size, not ``shape``, bounds its memory.

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
    """Return the tensors whose names begin with ``prefix``, which is removed from the names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
