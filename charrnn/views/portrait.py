"""What a page shows of a model beside its scores: its training, a sample, a text it reads.

One record per model.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size

from charrnn.analysis.activity import activation
from charrnn.analysis.inspection import Inspection, inspect
from charrnn.analysis.norms import clipping
from charrnn.analysis.stretch import LEAST_CHARACTERS, Stretch, read_stretch
from charrnn.config import InspectConfig, SampleConfig, TrainConfig
from charrnn.errors import NonFiniteError
from charrnn.inference.evaluation import prices
from charrnn.inference.sampling import collect, sample, unwarned, weights_for
from charrnn.network.model import CharModel
from charrnn.runs.comparing import training_anew
from charrnn.runs.comparison import Comparison, RunResult
from charrnn.runs.run import RunSummary
from charrnn.runs.status import summary_of
from charrnn.runs.subject import Subject
from charrnn.storage.checkpoint import Checkpoint
from charrnn.storage.metrics import read_log
from charrnn.storage.reading import recorded_part
from charrnn.storage.trained import chosen_in, load_model, trained_in
from charrnn.text.corpus import Part
from charrnn.text.scanning import scan
from charrnn.text.vocabulary import Vocabulary
from charrnn.views.surprise import PricedText
from charrnn.wording import printable, shown

#: A row of ``metrics.jsonl``.
Row = Mapping[str, Any]

#: How every model's sample is drawn, from an empty prompt.
SAMPLE = SampleConfig(length=600, temperature=0.8, seed=1)
#: Number of characters shown with their prices.
EXCERPT = 800
#: Widest label in a figure, in columns of a terminal: a Chinese character takes two.
LABEL = 24


@dataclass(frozen=True)
class Portrait:
    """What a page shows of one model."""

    label: str
    """Different from other checkpoints' on the page; figures write its ``shortened`` form."""
    log: Sequence[Row]
    """Of its training; empty where there is no log (any more)."""
    run: RunSummary
    """Its training, with what the model is and reads."""
    sample: str
    """As ``charrnn sample`` draws it with ``SAMPLE`` on the CPU, whatever the model's device."""
    excerpt: Sequence[tuple[str, float]]
    """The first characters of a text, each with its price in nats; the very first character costs
    0, or what its second and later bytes cost."""
    inspection: Inspection | None = None
    """None if the model was not inspected, or the text is too short for that."""


def portray(
    label: str,
    checkpoint: Checkpoint,
    model: CharModel,
    vocabulary: Vocabulary,
    part: Part,
    inspection: Inspection | None = None,
) -> Portrait:
    """Make a model's portrait.

    Args:
        label: different from other checkpoints' on the page.
        checkpoint: the model's.
        model: in evaluation mode.
        vocabulary: the model's.
        part: the text whose beginning is priced; at least 2 characters.
        inspection: the model's, if any.

    Raises:
        CheckpointError: the checkpoint does not say how it was trained.
        CorpusError: the text changed while it was read.
        NonFiniteError: a price or a prediction is not finite: the weights are too large to
            compute with.
        RunFolderError: the log cannot be read, or one of its lines is not a row.
    """
    assert checkpoint.path is not None
    name, text = shown(checkpoint.path), PricedText(part)
    excerpt = list(text.first())
    for stretch in prices(model, part, vocabulary):
        excerpt += text.priced(stretch)
        if len(excerpt) >= EXCERPT:
            break
    if not all(math.isfinite(nats) for _, nats in excerpt):
        raise NonFiniteError(
            f"{name}: its loss is not finite, so a page cannot show it: train anew with a lower "
            "--lr"
        )
    drawing = model
    if model.device.type != "cpu":
        drawing = copy.deepcopy(model).cpu()
    config = replace(SAMPLE, weights=weights_for(trained_in(checkpoint, drawing.device)))
    try:
        with unwarned():
            (symbols,) = collect(1, sample(drawing, vocabulary, None, config))
    except NonFiniteError as error:
        raise NonFiniteError(f"{name}: {error}") from error
    return Portrait(
        label=label,
        log=read_log(checkpoint.folder),
        run=summary_of(checkpoint, model, vocabulary),
        sample=vocabulary.decode(symbols),
        excerpt=tuple(excerpt[:EXCERPT]),
        inspection=inspection,
    )


def labels(checkpoints: Sequence[Path]) -> list[str]:
    """Return a name for each checkpoint; only what is named twice has the same one.

    A run's folder is called by its name, a file by its folder's name and its own; if several have
    the same name, each by the name of the folder around it, too.
    """
    paths = [*map(Path, map(os.path.abspath, checkpoints))]
    names: dict[Path, tuple[str, str]] = {}
    for path in paths:
        words = [*path.parent.parts[1:], path.stem] if path.is_file() else [*path.parts[1:]]
        least = 2 if path.is_file() else 1
        names[path] = ("/".join(words[-least:]), "/".join(words[-least - 1 :]))
    found: list[str] = []
    for called, longer in names.values():
        is_ambiguous = len({other for short, other in names.values() if short == called}) > 1
        name = longer if is_ambiguous else called
        found.append(printable(name).replace("\n", " ").replace("\t", " "))
    of = dict(zip(names, _numbered(found), strict=True))
    return [of[path] for path in paths]


def shortened(names: Iterable[str]) -> dict[str, str]:
    """Return a form of each name that a figure has room for, all different.

    The middle of a long name is left out; if that makes several alike, the beginning that all
    long ones share.
    """
    names = list(dict.fromkeys(names))
    short = [_cut(name) for name in names]
    if len(set(short)) < len(names):
        letters = zip(*(name for name in names if cell_len(name) > LABEL), strict=False)
        shared = len([*itertools.takewhile(lambda places: len(set(places)) == 1, letters)])
        short = [_cut(f"…{n[shared:]}") if cell_len(n) > LABEL else n for n in names]
    return dict(zip(names, _numbered(short), strict=True))


def _cut(name: str) -> str:
    """Return a name without its middle if it is too long for a figure."""
    if cell_len(name) <= LABEL:
        return name
    start = set_cell_size(name, LABEL // 2 - 1).rstrip()
    end = set_cell_size(name[::-1], LABEL // 2).rstrip()[::-1]
    return f"{start}…{end}"


def _numbered(names: Iterable[str]) -> list[str]:
    """Return names that are all different: those that occur again get a number."""
    found: list[str] = []
    for name in names:
        choices = itertools.chain([name], (f"{name} {number}" for number in itertools.count(2)))
        found.append(next(choice for choice in choices if choice not in found))
    return found


def portray_subjects(subjects: Sequence[Subject]) -> list[Portrait]:
    """Make the portraits of several models, each on its own text.

    Errors are those of ``portray``.
    """
    portraits: list[Portrait] = []
    logs: dict[Path, Sequence[Row]] = {}
    for label, subject in zip(labels([s.path for s in subjects]), subjects, strict=True):
        one = portray(label, subject.checkpoint, subject.model, subject.vocabulary, subject.part)
        # A run that is still training has more rows at every reading, and is one run nevertheless.
        log = logs.setdefault(subject.checkpoint.folder, one.log)
        portraits.append(replace(one, log=log))
    return portraits


def portray_inspected(
    subject: Subject, part: Part, stretch: Stretch, inspection: Inspection
) -> Portrait:
    """Make the portrait of an inspected model; errors are those of ``portray``.

    Args:
        subject: the model.
        part: the part of its text that was read.
        stretch: the same text as the model's symbols.
        inspection: its inspection; if no unit was named, the portrait shows the first one found.
    """
    if inspection.activation is None and inspection.units:
        coloured = activation(subject.model, stretch, inspection.units[0].unit)
        inspection = replace(inspection, activation=coloured)
    (label,) = labels([subject.path])
    return portray(label, subject.checkpoint, subject.model, subject.vocabulary, part, inspection)


def portray_comparison(
    comparison: Comparison,
) -> tuple[list[Portrait], list[tuple[RunResult, Sequence[Row]]]]:
    """Make the portrait of each cell's best run, inspected on what the cells are compared on.

    This runs on the CPU, where ``charrnn inspect`` and ``charrnn sample`` give the same by default.

    Args:
        comparison: its outcome.

    Returns:
        The portraits, in the order of the cells; every run with its log.

    Raises:
        CharrnnError: a checkpoint, a log or the text is no longer usable.
    """
    plan, portraits = comparison.plan, []
    scan_once = cache(partial(scan, nameable="none"))
    for cell in comparison.cells:
        run = Path(cell.best.run)
        scored = chosen_in(run, validated=cell.best.valid_nats_per_char is not None)
        with training_anew(run, scored):
            model, vocabulary, checkpoint = load_model(scored, "cpu")
        part = recorded_part(
            checkpoint, plan.compared_on, read=scan_once, moved=plan.compared_texts
        )
        inspection = _inspect_end(checkpoint, model, vocabulary, part)
        name = cell.cell.upper()
        portraits.append(portray(name, checkpoint, model, vocabulary, part, inspection))
    results = [result for cell in comparison.cells for result in cell.runs]
    return portraits, [(result, read_log(Path(result.run))) for result in results]


def _inspect_end(
    checkpoint: Checkpoint, model: CharModel, vocabulary: Vocabulary, part: Part
) -> Inspection | None:
    """Inspect a model on the end of a part; return None if the part is too short."""
    if part.characters < LEAST_CHARACTERS:
        return None
    config = InspectConfig(only=("flow", "memory", "gates", "units"))
    stretch = read_stretch(part.last(config.characters), vocabulary)
    training = checkpoint.record("training", TrainConfig)
    history = clipping(read_log(checkpoint.folder), training)
    return inspect(model, stretch, vocabulary, config, training, history=history)
