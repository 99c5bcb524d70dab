"""Sampled symbols become text: as they are in a pipe, harmless on a terminal."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable, Sequence

from charrnn.errors import CharrnnError
from charrnn.sampling import Piece
from charrnn.vocabulary import Vocabulary
from charrnn.wording import printable


def print_as_made(vocabulary: Vocabulary, start: Sequence[int], pieces: Iterable[Piece]) -> None:
    """Print a sample, each character as soon as it is drawn.

    Args:
        vocabulary: the model's.
        start: symbols to print before the sample.
        pieces: of one sample.
    """
    writer = _Writer(vocabulary)
    writer.write(start)
    try:
        for piece in pieces:
            writer.write([piece.symbol])
    except CharrnnError:
        writer.end()  # what is said of it has a line of its own
        raise
    writer.end()


def collect(count: int, pieces: Iterable[Piece]) -> list[list[int]]:
    """Return the symbols of each of ``count`` samples that were made side by side."""
    samples: list[list[int]] = [[] for _ in range(count)]
    for piece in pieces:
        samples[piece.sample].append(piece.symbol)
    return samples


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
    seed: int,
    stop: Sequence[int] | None,
    device: str,
) -> None:
    """Print samples as lines of JSON, with what each was drawn by.

    Bytes that are no utf-8 are surrogates in it, so that none is lost.

    Args:
        vocabulary: the model's.
        start: symbols to print before each sample.
        samples: the symbols of each.
        seed: they were drawn with.
        stop: the symbols that a sample which did not end by its length ends with.
        device: they were drawn on: "cpu", "cuda" or "mps".
    """
    # A text that streams does not wait for what only a display needs.
    from charrnn.terminal import to_json

    for number, symbols in enumerate(samples, start=1):
        drawn = [*start, *symbols]
        text = (
            vocabulary.decode_bytes(drawn).decode("utf-8", "surrogateescape")
            if vocabulary.is_bytes
            else vocabulary.decode(drawn)
        )
        row = {
            "sample": number,
            "seed": seed,
            "characters": len(symbols),
            "stopped": stop is not None and [*symbols[-len(stop) :]] == [*stop],
            "device": device,
            "text": text,
        }
        print(to_json(row))


class _Writer:
    """Writes symbols to stdout at once: a pipe gets them as they are, a terminal what is harmless.

    Bytes stay bytes in a pipe, and are utf-8 to a terminal.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # a carriage return: before a line feed it is not shown
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
        """Show a terminal the bytes that still wait for others of their character."""
        if sys.stdout.isatty():
            self._show(self._decoder.decode(b"", final=True))

    def end(self) -> None:
        """End a terminal's line, if one is begun."""
        self.show_rest()
        if sys.stdout.isatty() and self._last not in ("", "\n"):
            print()

    def _show(self, text: str) -> None:
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        text = printable(text.removesuffix("\r"))
        self._last = text[-1:] or self._last
        print(text, end="", flush=True)
