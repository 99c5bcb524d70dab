"""Print sampled symbols as text: unchanged in a pipe, made harmless on a terminal."""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import Iterable, Sequence

from charrnn.config import SampleConfig
from charrnn.inference.sampling import Drawn
from charrnn.text.vocabulary import Vocabulary
from charrnn.wording import printable

#: Seconds that a character may wait to be printed along with later ones: printing takes as long as
#: drawing several. A reader sees no wait.
TOGETHER = 0.01


def print_as_made(vocabulary: Vocabulary, start: Sequence[int], steps: Iterable[Drawn]) -> None:
    """Print a sample while it is drawn.

    Args:
        vocabulary: the model's.
        start: symbols to print before the sample.
        steps: what each time step draws of one sample.
    """
    writer = _Writer(vocabulary)
    writer.write(start)
    waiting: list[int] = []
    due = 0.0
    try:
        for _, symbols in steps:
            waiting += symbols
            if (now := time.perf_counter()) >= due:
                writer.write(waiting)
                waiting, due = [], now + TOGETHER
    except OSError:  # of the printing
        raise
    except Exception:  # of the drawing
        writer.end(waiting)  # the error's message gets a line of its own
        raise
    writer.end(waiting)


def print_samples(
    vocabulary: Vocabulary, start: Sequence[int], samples: Sequence[Sequence[int]]
) -> None:
    """Print samples one below the other, each after ``start`` and with its number above."""
    for number, symbols in enumerate(samples, start=1):
        print(f"--- sample {number} of {len(samples)} ---")
        writer = _Writer(vocabulary)
        writer.write([*start, *symbols])
        writer.show_rest()
        print()


def print_as_json(
    vocabulary: Vocabulary,
    start: Sequence[int],
    samples: Sequence[Sequence[int]],
    config: SampleConfig,
    stop: Sequence[int] | None,
    device: str,
) -> None:
    """Print samples as lines of JSON, with the seed, weights and device of each.

    Bytes that are not utf-8 become surrogates, so that none is lost.

    Args:
        vocabulary: the model's.
        start: symbols to print before each sample.
        samples: the symbols of each.
        config: how they were drawn.
        stop: the symbols that end a sample before its full length, if any do.
        device: where they were drawn: "cpu", "cuda" or "mps".
    """
    # Imported here, as a sample printed while it is drawn need not wait for it.
    from charrnn.views.terminal import to_json

    for number, symbols in enumerate(samples, start=1):
        drawn = [*start, *symbols]
        text = (
            vocabulary.decode_bytes(drawn).decode("utf-8", "surrogateescape")
            if vocabulary.is_bytes
            else vocabulary.decode(drawn)
        )
        row = {
            "sample": number,
            "seed": config.seed,
            "characters": len(symbols),
            "stopped": stop is not None and [*symbols[-len(stop) :]] == [*stop],
            "device": device,
            "weights": config.weights,
            "text": text,
        }
        print(to_json(row))


class _Writer:
    """Writes symbols to stdout at once: unchanged to a pipe, made harmless on a terminal.

    A pipe gets the bytes of a model of bytes; a terminal gets them decoded as utf-8.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # a carriage return, which is not shown before a line feed
        self._last = ""

    def write(self, symbols: Sequence[int]) -> None:
        vocabulary = self.vocabulary
        if sys.stdout.isatty():
            self._show(
                self._decoder.decode(vocabulary.decode_bytes(symbols))
                if vocabulary.is_bytes
                else vocabulary.decode(symbols)
            )
        elif vocabulary.is_bytes:
            sys.stdout.flush()
            sys.stdout.buffer.write(vocabulary.decode_bytes(symbols))
            sys.stdout.buffer.flush()
        else:
            print(vocabulary.decode(symbols), end="", flush=True)

    def show_rest(self) -> None:
        """Show the bytes of an incomplete character on a terminal."""
        if sys.stdout.isatty():
            self._show(self._decoder.decode(b"", final=True))

    def end(self, symbols: Sequence[int]) -> None:
        """Write the last symbols. On a terminal end the line, if one is begun."""
        self.write(symbols)
        self.show_rest()
        if sys.stdout.isatty() and self._last not in ("", "\n"):
            print()

    def _show(self, text: str) -> None:
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        text = printable(text.removesuffix("\r"))
        self._last = text[-1:] or self._last
        print(text, end="", flush=True)
