"""Everything that ``evaluate`` measures of a checkpoint on a text, in one record."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from charrnn.compute.device import DTYPES
from charrnn.config import EvaluateConfig, ModelConfig, PrecisionName
from charrnn.errors import NonFiniteError
from charrnn.inference.baselines import Baseline, uniform_nats
from charrnn.inference.dynamic import dynamic_prices
from charrnn.inference.evaluation import (
    PositionScores,
    Prices,
    Scores,
    prices,
    run_once,
    score,
    score_by_position,
    total,
)
from charrnn.nats import perplexity
from charrnn.network.model import CharModel
from charrnn.text.corpus import Part
from charrnn.text.decoding import BYTES
from charrnn.text.lookalikes import with_remarks
from charrnn.text.vocabulary import Vocabulary
from charrnn.wording import quoted, shown


@dataclass(frozen=True)
class After:
    """The price of the characters that follow a given text, wherever it occurs."""

    text: str
    characters: int
    nats_per_char: float
    """Mean over them; NaN where the text never occurs."""
    lacks: str = ""
    """Where it never occurs: its characters that the scored text lacks, in words."""


@dataclass(frozen=True)
class OfRun:
    """What tells apart the runs of models on one text."""

    seed: int
    setting: str
    """The same for runs that were given the same but for the seed."""
    step: int
    """Updates done when the model was saved."""
    is_unfinished: bool
    """Whether the run is known to have something left to do."""


@dataclass(frozen=True)
class Assessment:
    """What a checkpoint's model scores on a text."""

    checkpoint: str
    shape: ModelConfig
    parameters: int
    scores: Scores
    dynamic: Scores | None = None
    """Scores by dynamic evaluation."""
    by_position: PositionScores | None = None
    after: After | None = None
    """From dynamic evaluation, if that was done."""
    baselines: tuple[Baseline, ...] = ()
    """On the same text, with the model's vocabulary and training part."""
    of_bytes: bool = False
    """Whether the model reads bytes; each then counts as a character here."""
    device: str = "cpu"
    """The kind of device used for scoring."""
    exact: bool = False
    """Whether one lane, from start to end, was asked for, as by ``--exact``."""
    precision: PrecisionName = "fp32"
    """Of the products that ``scores`` come from."""
    facts: tuple[str, ...] = ()
    """What a user must know about the model to judge its scores: "was trained on ..."."""
    run: OfRun | None = None
    """Of the model's run; None: unknown."""
    uniform_nats: float = math.inf
    """What guessing every symbol with equal chance costs on the same text, in nats per character;
    infinite: not computed."""

    @property
    def unit(self) -> str:
        """What the model reads one at a time."""
        return "byte" if self.of_bytes else "character"

    @property
    def is_worse_than_guessing(self) -> bool:
        """Whether the scores are above ``uniform_nats``."""
        return self.scores.nats_per_char > self.uniform_nats

    @property
    def ranked(self) -> Scores:
        """The scores that models are ranked by: of dynamic evaluation, if that was done."""
        return self.dynamic or self.scores

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object; what was not measured is left out."""
        row: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "cell": self.shape.cell,
            "layers": self.shape.layers,
            "hidden": self.shape.hidden,
            "parameters": self.parameters,
            "characters": self.scores.characters,
            "unknown": self.scores.unknown,
            **_figures(self.scores),
            "uniform_nats": self.uniform_nats if math.isfinite(self.uniform_nats) else None,
            "bytes": self.scores.bytes,
            "exact": self.exact,
            "precision": self.precision,
            "device": self.device,
            "seed": self.run and self.run.seed,
            "setting": self.run and self.run.setting,
            "notes": [f"the model {fact}" for fact in self.facts],
        }
        if self.dynamic:
            row["dynamic"] = _figures(self.dynamic)
        if self.by_position:
            row["nats_by_position"] = self.by_position.nats_T.tolist()
            row["stretches"] = self.by_position.stretches
        if self.after:
            priced = self.after.characters > 0
            row["after"] = {
                "text": self.after.text,
                "characters": self.after.characters,
                "nats_per_char": self.after.nats_per_char if priced else None,
            }
        if self.baselines:
            row["baselines"] = [
                {
                    "name": baseline.name,
                    "nats_per_char": baseline.nats_per_char,
                    "bits_per_char": baseline.bits_per_char,
                    "bits_per_byte": baseline.bits_per_byte(self.scores),
                    "perplexity": perplexity(baseline.nats_per_char),
                    "about": baseline.about,
                }
                for baseline in self.baselines
            ]
        return row


def refuse_non_finite(assessments: Iterable[Assessment]) -> None:
    """Refuse scores that are not finite: the weights, though finite, are too large to compute with.

    Raises:
        NonFiniteError: names the first such checkpoint.
    """
    for assessment in assessments:
        scored = [assessment.scores, assessment.ranked]
        if not all(math.isfinite(scores.nats) for scores in scored):
            raise NonFiniteError(
                f"{shown(assessment.checkpoint)}: its loss is not finite: train anew with a lower "
                "--lr"
            )


def _figures(scores: Scores) -> dict[str, float]:
    return {
        "nats_per_char": scores.nats_per_char,
        "bits_per_char": scores.bits_per_char,
        "bits_per_byte": scores.bits_per_byte,
        "perplexity": scores.perplexity,
        "chars_per_second": scores.chars_per_second,
    }


def assess(
    checkpoint: str,
    model: CharModel,
    vocabulary: Vocabulary,
    part: Part,
    config: EvaluateConfig,
    *,
    baselines: Iterable[Baseline] = (),
    facts: Iterable[str] = (),
    run: OfRun | None = None,
    precision: PrecisionName = "fp32",
    watchers: Iterable[Callable[[Prices], None]] = (),
    tell: Callable[[str, int], None] = lambda what, done: None,
) -> Assessment:
    """Measure a model on a text; the model is not changed.

    Args:
        checkpoint: its name, for the record.
        model: in evaluation mode.
        vocabulary: the model's.
        part: the text; at least 2 characters.
        config: what to measure. The characters after ``config.after`` are priced by dynamic
            evaluation if that is asked for; otherwise exactly, and then so is the whole text.
        baselines: of the same text, for the record.
        facts: what a user must know about the model, for the record.
        run: what is to be known of its run, for the record.
        precision: of the products, where several lanes are scored; everything else is in float32.
        watchers: each is called with the price of every character in order, from dynamic
            evaluation if that is asked for; otherwise the text is then scored exactly.
        tell: called from time to time with what is being done, and to how many characters so far.

    Raises:
        CorpusError: the text changed while it was read.
    """
    following = None if config.after is None else _Following(config.after, part)
    watching: list[Callable[[Prices], None]] = [*watchers]
    if following is not None:
        watching.append(following)
    run_once(model)
    scored, learnt = (partial(tell, what) for what in ("scored", "scored by dynamic evaluation"))
    in_order = bool(watching) and not config.dynamic
    is_exact = in_order or config.exact
    precision = "fp32" if is_exact else precision
    if in_order:
        scores = total(prices(model, part, vocabulary), part, [*watching, _telling(scored)])
    else:
        lanes = 1 if config.exact else None
        dtype = DTYPES[precision]
        scores = score(model, part, vocabulary, lanes=lanes, dtype=dtype, tell=scored)
    adapted = None
    if config.dynamic:
        stretches = dynamic_prices(model, part, vocabulary)
        adapted = total(stretches, part, [*watching, _telling(learnt)])
    by_position = None
    if config.by_position:
        told = partial(tell, "scored by position")
        by_position = score_by_position(model, part, vocabulary, config.by_position, told)
    return Assessment(
        checkpoint=checkpoint,
        shape=model.config,
        parameters=model.parameter_count(),
        scores=scores,
        dynamic=adapted,
        by_position=by_position,
        after=following.result() if following else None,
        baselines=tuple(baselines),
        of_bytes=vocabulary.is_bytes,
        device=model.device.type,
        exact=is_exact,
        precision=precision,
        facts=tuple(facts),
        run=run,
        uniform_nats=uniform_nats(part.predicted.counts, vocabulary),
    )


def _telling(tell: Callable[[int], None]) -> Callable[[Prices], None]:
    """Return a watcher that reports how many characters have been priced."""
    return lambda stretch: tell(stretch.position + len(stretch.nats_T) - 1)


class _Following:
    """Adds up the prices of the characters that follow a text."""

    def __init__(self, text: str, part: Part) -> None:
        # On a command line, bytes that are not UTF-8 arrive as lone surrogates.
        encoded = text.encode("utf-8", "surrogateescape")
        symbols = encoded if part.corpus.encoding == BYTES else map(ord, text)
        self._text, self._part, self._wanted = text, part, list(symbols)
        self._codes = part.each_code()
        self._read = deque([next(self._codes)], maxlen=len(self._wanted))
        self._number, self._nats = 0, 0.0

    def __call__(self, stretch: Prices) -> None:
        """Take the prices of a stretch; stretches must come in order."""
        for nats in stretch.nats_T.tolist():
            if list(self._read) == self._wanted:
                self._number += 1
                self._nats += nats
            self._read.append(next(self._codes))

    def result(self) -> After:
        if self._number:
            return After(self._text, self._number, self._nats / self._number)
        return After(self._text, 0, math.nan, self._lacking())

    def _lacking(self) -> str:
        if self._part.corpus.encoding == BYTES:
            return ""
        known = "".join(map(chr, self._part.counts))
        lacking = {one: quoted(one) for one in self._text if one not in known}
        return with_remarks(lacking, known, "the text")
