"""Sampling: draw new characters one at a time from a model's predictions.

Every sample has its own random stream, which depends only on the seed and the sample's
number. So the same seed gives the same text, and a sample is the same alone as among others, unless
a probability that is rounded differently changes a draw: with fewer bits, more samples or threads
or without a compiler, steps may be rounded otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn.compute.products import why_none
from charrnn.compute.steps import MOST_STEPS, BoundSteps, Steps, steps
from charrnn.config import PrecisionName, SampleConfig, UnknownName, WeightsName
from charrnn.errors import NonFiniteError, VocabularyError
from charrnn.inference.stepper import CompiledStepper, NumpyStepper
from charrnn.network.model import CharModel, Hidden, take_lanes
from charrnn.text.vocabulary import UNKNOWN, Ids, Vocabulary, listed

#: Characters of a long prompt given to the model at a time. Where steps are compiled, a prompt that
#: is no longer is read in steps: the loops that read faster would have to be compiled, too, which
#: takes about as long.
PROMPT_WINDOW = 1024
#: Up to this length numpy's steps read a prompt. They are slower.
SHORT_PROMPT = 64
#: Characters of each of several samples drawn at a time, and random numbers from a stream.
DRAWS = MOST_STEPS
#: Multiply-adds made at a time, at most: Ctrl-C waits for them, a fraction of a second.
AT_A_TIME = 10**10
#: Probabilities computed at a time, about: all those of 1,000 samples of 57,000 symbols would take
#: half a gigabyte, several times over.
AT_ONCE = 1 << 20


Drawn = tuple[list[int], list[int]]
"""One more character of each sample that has not ended: the samples' numbers, from 0, and the
characters' ids."""


def prepare_prompt(
    prompt: str | bytes, vocabulary: Vocabulary, unknown: UnknownName
) -> tuple[Ids, str | None]:
    """Turn a prompt into ids, with unknown characters handled as the user chose.

    Args:
        prompt: the text to continue; may be empty.
        vocabulary: the model's.
        unknown: "error", "replace" (by the unknown symbol) or "skip".

    Returns:
        The ids, and a message for the user if characters were replaced or skipped.

    Raises:
        VocabularyError: the prompt has unknown characters and ``unknown`` is "error".
    """
    ids = vocabulary.encode(prompt)
    missing = vocabulary.unknown_in(prompt)
    if not missing:
        return ids, None
    shown = listed(missing, vocabulary.characters)
    if unknown == "error":
        least = vocabulary.min_count
        # Not in its own text: after --init-from the vocabulary is of another.
        few = f", which occur fewer than {least} times in the text of its vocabulary"
        seen = few if least > 1 else ""
        raise VocabularyError(
            f"the model does not know these characters of the prompt{seen}: {shown}; "
            "use --unknown replace or --unknown skip"
        )
    if unknown == "skip":
        return ids[ids != UNKNOWN], f"skipped characters that the model does not know: {shown}"
    return ids, f"replaced characters that the model does not know: {shown}"


def encode_stop(vocabulary: Vocabulary, stop: str | None) -> list[int] | None:
    """Return the ids of the text that ends a sample.

    Raises:
        VocabularyError: the model can never produce it.
    """
    if stop is None:
        return None
    missing = vocabulary.unknown_in(stop)
    if missing:
        raise VocabularyError(
            f"--stop {stop!r} can never be produced: the model does not know "
            + listed(missing, vocabulary.characters)
            + ": leave --stop out, or stop at characters that it knows"
        )
    ids: list[int] = vocabulary.encode(stop).tolist()
    return ids


def weights_for(precision: PrecisionName) -> WeightsName:
    """Return what a CPU samples with from a model trained in this precision.

    Training in bf16 rounded the weights in every product, too, so sampling loses nothing by it.
    """
    return "bf16" if precision == "bf16" and why_none(Steps, "bf16") is None else "fp32"


def next_probabilities(
    logits_BV: NDArray[np.floating], config: SampleConfig
) -> NDArray[np.float64]:
    """Turn logits into the probabilities that characters are drawn with.

    Temperature is applied first, then top-k, then top-p (the nucleus) to what is left.
    Of equal logits at the edge of top-k or top-p, those with lower ids are kept.

    Args:
        logits_BV: -inf where a symbol must not be drawn.
        config: temperature, top_k, top_p.

    Returns:
        probabilities_BV in float64; every row sums to 1.

        A row with a NaN or +inf, or with nothing above -inf, gives NaNs.
    """
    logits_BV = logits_BV.astype(np.float64)
    largest_B1 = logits_BV.max(axis=1, keepdims=True)
    if config.temperature == 0:
        likeliest_BV = np.zeros_like(logits_BV)
        np.put_along_axis(likeliest_BV, logits_BV.argmax(axis=1, keepdims=True), 1.0, axis=1)
        likeliest_BV += largest_B1 - largest_B1  # NaN where it is not finite
        return likeliest_BV
    p_BV: NDArray[np.float64] = logits_BV - largest_B1
    if config.temperature != 1:
        # The maximum was subtracted first, so a tiny temperature can only overflow to
        # minus infinity, which is right.
        with np.errstate(over="ignore"):
            p_BV /= config.temperature
    np.exp(p_BV, out=p_BV)
    p_BV /= p_BV.sum(axis=1, keepdims=True)
    if config.top_k is not None or config.top_p is not None:
        # Not by p: a high temperature can round the p of unequal logits to the same number.
        order_BV = np.argsort(-logits_BV, axis=1, kind="stable")
        sorted_BV = np.take_along_axis(p_BV, order_BV, axis=1)
        if config.top_k is not None:
            sorted_BV[:, config.top_k :] = 0
            sorted_BV /= sorted_BV.sum(axis=1, keepdims=True)
        if config.top_p is not None:
            before_BV = np.cumsum(sorted_BV, axis=1) - sorted_BV
            sorted_BV[before_BV >= config.top_p] = 0
            sorted_BV /= sorted_BV.sum(axis=1, keepdims=True)
        np.put_along_axis(p_BV, order_BV, sorted_BV, axis=1)
    return p_BV


def sample(
    model: CharModel,
    vocabulary: Vocabulary,
    prompt: Ids | None,
    config: SampleConfig,
    *,
    compiled: bool = True,
) -> Iterator[Drawn]:
    """Draw new characters of several samples, one time step after another.

    Without a prompt (None, or empty) the model reads a line break first, or the first symbol
    of a vocabulary that has no line break. The state before that is zero. The unknown symbol
    is never drawn. Dropout is off while this generator runs.

    Args:
        model: the model that predicts.
        vocabulary: the model's.
        prompt: ids from ``prepare_prompt``.
        config: how to draw, how many, and where to stop.
        compiled: whether steps on a CPU may wait until they are compiled; a short sample takes less
            time than that without.

    Yields:
        What each time step draws.

    Raises:
        VocabularyError: ``config.stop`` can never be produced; raised with the first step.
        NonFiniteError: the model's predictions are not finite.
    """
    was_training = model.training
    stop = encode_stop(vocabulary, config.stop)
    tails: list[list[int]] = [[] for _ in range(config.count)]
    if prompt is None or len(prompt) == 0:
        prompt = _first_symbol(vocabulary)
    most = 1  # a single sample is shown as it is drawn, and a stop looked for after every character
    if config.count > 1 and stop is None:
        work = model.multiply_adds() + 10 * vocabulary.size  # a power takes as long as ten
        most = min(DRAWS, max(1, AT_A_TIME // (config.count * work)))
    model.eval()
    try:
        texts = _Texts(model, prompt, config, -1 if vocabulary.is_bytes else UNKNOWN, compiled)
        numbers = texts.numbers
        open_lanes, produced = [*range(config.count)], 0
        while True:
            rows = texts.draw(min(most, config.length - produced) if config.length else most)
            produced += len(rows)
            for drawn in rows:
                # NaN probabilities draw symbol 0, which is otherwise (almost) never drawn.
                if drawn is rows[-1] and 0 in drawn:
                    _refuse_non_finite(texts.logits_BV.max(axis=1)[open_lanes])
                if len(open_lanes) == len(numbers):
                    yield numbers, drawn
                else:
                    yield [numbers[n] for n in open_lanes], [drawn[n] for n in open_lanes]
            if stop is not None:
                for lane in open_lanes:
                    tail = [*tails[numbers[lane]], rows[-1][lane]]
                    tails[numbers[lane]] = tail[-len(stop) :]
                open_lanes = [lane for lane in open_lanes if tails[numbers[lane]] != stop]
            if not open_lanes or produced == config.length:
                break
            # Not whenever a sample ends: matrices are arranged for a fixed number of lanes.
            if 2 * len(open_lanes) <= len(numbers):
                texts.keep(open_lanes)
                numbers = texts.numbers
                open_lanes = [*range(len(numbers))]
    finally:
        model.train(was_training)


class _Texts:
    """Samples that grow side by side, one in each lane.

    Args:
        model: the model that predicts.
        prompt: what each sample continues; at least one symbol.
        config: how to draw, and how many samples.
        never: the symbol that is not drawn; -1: none.
        compiled: as ``sample``'s.

    Attributes:
        numbers: the number of each lane's sample, from 0.
        logits_BV: by which the latest characters were drawn.
    """

    def __init__(
        self, model: CharModel, prompt: Ids, config: SampleConfig, never: int, compiled: bool
    ) -> None:
        self.numbers = [*range(config.count)]
        self._model, self._config, self._compiled, self._never = model, config, compiled, never
        self._points = _points(config)
        self._points_SB = next(self._points)
        self._used = 0  # of these steps' points
        self._stepper, logits_V = _read(model, prompt, config, compiled)
        self._in_c = self._draw_in_c()
        self.logits_BV = logits_V[None].repeat(config.count, axis=0)
        self._drawn_SB: NDArray[np.int64] | None = None

    def draw(self, most: int) -> list[list[int]]:
        """Draw the next characters, up to so many of each sample, and return them by time steps.

        Only the last step may have drawn a 0.
        """
        if self._used == DRAWS:
            self._points_SB, self._used = next(self._points), 0
        points_SB = self._points_SB[self._used : self._used + most]
        if len(self.numbers) < self._config.count:
            points_SB = points_SB[:, self.numbers]
        if self._drawn_SB is None:
            drawn_SB = self._first(points_SB[0])[None]
        elif self._in_c is not None:
            drawn_SB = self._in_c.next(points_SB)
            self.logits_BV = self._in_c.logits_BV
        else:
            del self.logits_BV  # before the next ones are computed: they can take much memory
            self.logits_BV = self._stepper.step(self._drawn_SB[-1])
            drawn_SB = _drawn(self.logits_BV, points_SB[0], self._config, self._never)[None]
        rows: list[list[int]] = drawn_SB.tolist()
        self._drawn_SB = drawn_SB
        self._used += len(rows)
        return rows

    def keep(self, lanes: list[int]) -> None:
        """Go on with the samples of these lanes alone."""
        assert self._drawn_SB is not None, "nothing has been drawn yet"
        hidden = take_lanes(self._stepper.hidden(), lanes)
        self._drawn_SB = self._drawn_SB[:, lanes]
        self.numbers = [self.numbers[lane] for lane in lanes]
        del self._stepper, self._in_c  # free their matrices first: there may be no room for both
        self._stepper = _stepper(self._model, hidden, self._config.weights, self._compiled)
        self._in_c = self._draw_in_c()
        if self._in_c is not None:
            self._in_c.read_next(self._drawn_SB[-1])

    def _draw_in_c(self) -> BoundSteps | None:
        """Return the step in C, set to draw as is asked for, if there is one."""
        in_c = self._stepper.in_c
        if in_c is not None:
            in_c.set_draws(self._config, self._never)
        return in_c

    def _first(self, points_B: NDArray[np.float64]) -> NDArray[np.int64]:
        """Draw the characters that follow the prompt."""
        if self._in_c is None:
            return _drawn(self.logits_BV, points_B, self._config, self._never)
        drawn_B = self._in_c.draw(self.logits_BV, points_B)
        self.logits_BV = self._in_c.logits_BV
        return drawn_B


def collect(count: int, steps: Iterable[Drawn]) -> list[list[int]]:
    """Return the symbols of each of ``count`` samples that were made side by side."""
    samples: list[list[int]] = [[] for _ in range(count)]
    for numbers, symbols in steps:
        for number, symbol in zip(numbers, symbols, strict=True):
            samples[number].append(symbol)
    return samples


def unwarned() -> np.errstate:
    """Return a context without numpy's warnings, where numbers that are not finite are seen anyway.

    ``sample`` checks for them; its caller enters this context: entered in the generator, it would
    stay on between steps.
    """
    # divide: with Apple's Accelerate some versions of numpy report it in finite products, too.
    return np.errstate(divide="ignore", over="ignore", invalid="ignore")


def _refuse_non_finite(largest_B: NDArray[np.floating]) -> None:
    if not np.isfinite(largest_B).all():
        raise NonFiniteError(
            "the model's predictions are not finite: its weights are too large to compute with; "
            "train anew with a lower --lr"
        )


# Each function that computes turns gradients off for itself. Around the generator, they would
# stay off in its caller too, or be switched twice per step, which costs as much as a step.
@torch.inference_mode()
@unwarned()
def _read(
    model: CharModel, prompt: Ids, config: SampleConfig, compiled: bool
) -> tuple[Stepper, NDArray[np.float32]]:
    """Read a prompt; return what reads on from there, and logits_V for the next character."""
    hidden = model.initial_hidden(1)
    device = model.device
    most = SHORT_PROMPT if _compiled(model, compiled) is None else PROMPT_WINDOW
    if device.type == "cpu" and len(prompt) <= most:
        stepper = _stepper(model, hidden, config.weights, compiled)
        for symbol_B in prompt.astype(np.int64)[:, None]:
            logits_BV = stepper.step(symbol_B)
        logits_V = logits_BV[0]
        if config.count == 1:
            return stepper, logits_V
        hidden = stepper.hidden()
        del stepper
    else:
        for start in range(0, len(prompt), PROMPT_WINDOW):
            ids = prompt[start : start + PROMPT_WINDOW].astype(np.int64)
            out_TBH, hidden = model.read(torch.from_numpy(ids).to(device)[:, None], hidden)
        logits_TBV = model.predict(out_TBH[-1:])
        logits_V = logits_TBV[0, 0].float().cpu().numpy()
    hidden = take_lanes(hidden, [0] * config.count)
    return _stepper(model, hidden, config.weights, compiled), logits_V


def _stepper(model: CharModel, hidden: Hidden, weights: WeightsName, compiled: bool) -> Stepper:
    """Return what reads each sample's next character, from a state on."""
    if model.device.type != "cpu":
        return _ModelStepper(model, hidden)
    in_c = _compiled(model, compiled)
    if in_c is None:
        return NumpyStepper(model, hidden, weights)
    return CompiledStepper(in_c, model, hidden, weights)


def _compiled(model: CharModel, compiled: bool) -> Steps | None:
    """Return a step in C, if there is one for this model, and one may be waited for."""
    return steps() if compiled and model.device.type == "cpu" else None


class _ModelStepper:
    """``NumpyStepper`` for other devices than a CPU, by the model's own forward pass."""

    in_c = None

    def __init__(self, model: CharModel, hidden: Hidden) -> None:
        self._model, self._hidden = model, hidden

    @torch.inference_mode()
    def step(self, symbols_B: NDArray[np.integer]) -> NDArray[np.float32]:
        x_TB = torch.from_numpy(symbols_B)[None].to(self._model.device)
        logits_TBV, self._hidden = self._model(x_TB, self._hidden)
        logits_BV: NDArray[np.float32] = logits_TBV[0].float().cpu().numpy()
        return logits_BV

    def hidden(self) -> Hidden:
        return self._hidden


Stepper = NumpyStepper | CompiledStepper | _ModelStepper


def _points(config: SampleConfig) -> Iterator[NDArray[np.float64]]:
    """Yield random numbers points_SB of some steps, one in [0, 1) for each sample."""
    # Seed words have 32 bits: the higher bits of a larger seed make a word of their own.
    rest, seed = divmod(config.seed, 1 << 32)
    of_samples = ([seed, n, rest] for n in range(config.count))
    streams = [np.random.Generator(np.random.Philox(seed=words)) for words in of_samples]
    while True:
        yield np.stack([stream.random(DRAWS) for stream in streams], axis=1)


def _drawn(
    logits_BV: NDArray[np.floating],
    points_B: NDArray[np.float64],
    config: SampleConfig,
    never: int,
) -> NDArray[np.int64]:
    """Draw a symbol for each sample, for some samples at a time; ``never`` (-1: none) is closed."""
    lanes, vocabulary = logits_BV.shape
    if never >= 0:
        logits_BV[:, never] = -np.inf
    some = max(1, AT_ONCE // vocabulary)
    drawn = (
        _draw(next_probabilities(logits_BV[at : at + some], config), points_B[at : at + some])
        for at in range(0, lanes, some)
    )
    return np.concatenate([*drawn])


def _draw(p_BV: NDArray[np.float64], points_B: NDArray[np.float64]) -> NDArray[np.int64]:
    """Draw a symbol for each sample by inverting the cumulative distribution."""
    # A point is at most 1 - 2^-53: its product with the total is never rounded up to the total.
    cumulative_BV = p_BV.cumsum(axis=1)
    points_B1 = points_B[:, None] * cumulative_BV[:, -1:]
    symbols_B: NDArray[np.int64] = (cumulative_BV <= points_B1).sum(axis=1)
    return symbols_B


def _first_symbol(vocabulary: Vocabulary) -> Ids:
    newline = vocabulary.encode("\n")
    if newline[0] != UNKNOWN:
        return newline
    return np.array([1], dtype=np.int64)
