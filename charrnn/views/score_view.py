"""Print scores as tables and coloured text in a terminal; write prices to a file.

A character's price is its negative log-likelihood.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Self

from rich.console import RenderableType
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from charrnn.command_words import command_line
from charrnn.disk import becoming, followed, refusals
from charrnn.errors import RunFolderError
from charrnn.inference.assessment import Assessment
from charrnn.inference.evaluation import Prices
from charrnn.runs.comparison import Comparison
from charrnn.text.corpus import Part
from charrnn.text.decoding import BYTES
from charrnn.views import score_words
from charrnn.views.surprise import PricedText, surprise, surprise_mark, surprise_ranges
from charrnn.views.terminal import Output, fitted, print_words
from charrnn.wording import printable, shown

#: How each level of ``surprise`` looks.
STYLES = ("dim", "", "magenta", "bold red", "bold white on red")


def print_table(lines: Sequence[Sequence[str]], word_columns: int) -> None:
    """Print a table on stdout without cutting anything off; see ``fitted``."""
    Output.wide().print(fitted(lines, word_columns))


def print_assessments(assessments: Sequence[Assessment]) -> None:
    """Print the scores of models and baselines, and the loss by position."""
    assessments = [replace(one, checkpoint=shown(one.checkpoint)) for one in assessments]
    print_table(score_words.assessment_lines(assessments), word_columns=2)
    for line in score_words.assessments_say(assessments):
        print_words(line)
    for one in assessments:
        if one.by_position is not None:
            print()
            over = score_words.stretches_say(one.by_position)
            print_words(f"{one.checkpoint}: {one.unit}s of context since the zero state, {over}")
            print_table(score_words.position_lines(one.by_position), word_columns=0)


def print_comparison(comparison: Comparison) -> None:
    """Print a comparison's results: a row per cell, then which differences are supported."""
    print_table(score_words.comparison_lines(comparison), word_columns=2)
    print()
    for line in score_words.comparison_says(comparison):
        print_words(line)
    best = Path(comparison.best_cell.best.run)
    print_words(f"Sample from the best with: {command_line(['charrnn', 'sample', best])}")


class PerCharacter:
    """Writes the price of every character as a line of JSON, in a ``with`` block.

    The file appears complete at the end of the block, or stays as it was if the block fails.

    ``position`` counts from the text's first character, which is 0 and has no price; a model
    of bytes writes ``byte`` instead of ``character``. A price that is not finite is null.

    Args:
        part: the text that is scored.
        path: the file to write; a pipe or a device gets the lines as they come.
        called: called with the path of the temporary file that is written first.

    Raises:
        CorpusError: the text changed while it was read; calls raise this, too.
        RunFolderError: the file cannot be written; the block's end raises this, too, also for
            what a call could not write.
    """

    def __init__(
        self, part: Part, path: Path, called: Callable[[Path], object] = lambda temporary: None
    ) -> None:
        self._codes = part.each_code()
        next(self._codes)
        self._path = path
        self._bytes = part.corpus.encoding == BYTES
        self._refused: RunFolderError | None = None
        self._open = ExitStack()
        with self._naming_the_file():
            self._stream = self._open.enter_context(_written(path, called))

    def __call__(self, stretch: Prices) -> None:
        """Write a stretch's lines; stretches must come in order."""
        rows = []
        for position, nats in enumerate(stretch.nats_T.tolist(), start=stretch.position):
            code = next(self._codes)
            what = {"byte": code} if self._bytes else {"character": chr(code)}
            price = round(nats, 6) if math.isfinite(nats) else None  # JSON has no NaN or infinity
            row = {"position": position, **what, "nats": price}
            rows.append(json.dumps(row, ensure_ascii=False) + "\n")
        if self._refused is None:
            try:
                with self._naming_the_file():
                    self._stream.write("".join(rows).encode())
            except RunFolderError as error:  # the scores need not be lost with the file
                self._refused = error
                with suppress(OSError):  # at once: what was written may fill the disk
                    self._open.__exit__(RunFolderError, error, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        """Give the file its name, or drop it if the block failed."""
        if self._refused is not None:
            if kind is None:
                raise self._refused
            return
        if kind is not None:
            with suppress(OSError):  # the block's own failure is what counts
                self._open.__exit__(kind, *error)
            return
        with self._naming_the_file():
            self._open.close()

    def _naming_the_file(self) -> AbstractContextManager[None]:
        # An error without a file's name would be reported as one of stdout.
        return refusals(self._path, "cannot write the prices")


@contextmanager
def _written(path: Path, called: Callable[[Path], object]) -> Iterator[BinaryIO]:
    """Yield a stream whose bytes become the file all at once; a pipe or a device gets them now."""
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            yield stream
        return
    # Replace a link's target, not the link.
    with becoming(followed(path), called) as stream:
        yield stream


class SurpriseText:
    """Prints a text on stdout, coloured by what each character costs.

    Bytes are shown as the utf-8 characters they make up, each at the total price of its
    bytes. Characters that could control the terminal are replaced. If there are colours, an
    expensive line feed, tab or accent gets a mark beside it, as none can show a colour itself;
    an expensive space has it as its background. What was given and not predicted has none.

    Args:
        part: the text that is scored.
        alone: whether the scores serve nothing else, so that a failure to print ends the scoring.

    Raises:
        CorpusError: the text changed while it was read; calls raise this, too.
        OSError: it cannot be printed, and is alone; calls and the end raise this, too.
    """

    def __init__(self, part: Part, *, alone: bool = True) -> None:
        self._text = PricedText(part)
        self._console = Output(soft_wrap=True)
        self._alone = alone
        self.refused: OSError | None = None
        """The error that ended the printing, if any."""
        self._print(self._text.first(), is_given=True)

    def __call__(self, stretch: Prices) -> None:
        """Print a stretch; stretches must come in order."""
        self._print(self._text.priced(stretch))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # After a signal nothing waits for the reader. If the block failed, its own error counts,
        # not one of printing the end.
        if kind is None or issubclass(kind, Exception):
            with nullcontext() if kind is None else suppress(OSError):
                self.close()

    def close(self) -> None:
        """Print the end: the legend of the colours, or on stderr how to get colours."""
        if not self._console.has_colours:
            self._write("\n")
            why, keeps = "here", "FORCE_COLOR=1 keeps them, "
            if self._console.no_color:
                why, keeps = "because of NO_COLOR", ""
            elif self._console.is_dumb_terminal:
                why, keeps = "because TERM is dumb", ""
            with suppress(OSError):  # stderr need not have a reader
                print_words(
                    f"the text is shown without colours {why}: {keeps}--per-char FILE writes each "
                    "character's loss",
                    stderr=True,
                )
            return
        ranges = map(Text, surprise_ranges(), STYLES)
        legend = Text("\n\nbits: ") + Text("  ").join(ranges)
        self._write(legend, end="\n\n")

    def _print(self, priced: Iterable[tuple[str, float]], *, is_given: bool = False) -> None:
        # Segments, as a Text would turn tabs into spaces.
        segments: list[Segment] = []
        for character, cost in priced:
            level, marked = surprise(cost), ""
            style = Style.null() if is_given else self._console.get_style(STYLES[level])
            if self._console.has_colours:
                marked = surprise_mark(character, cost)
                if level >= 2 and character == "\t":  # a terminal moves over it without painting
                    marked = "→"
                elif level >= 2 and character != "\n" and character.isspace():
                    style += Style(reverse=style.bgcolor is None)  # it has no ink to colour
            text, feed, _ = printable(marked + character).partition("\n")
            segments.append(Segment(text, style))
            if feed:  # a coloured line feed would colour the rest of the row
                segments.append(Segment.line())
        self._write(Segments(Segment.simplify(segments)), end="")

    def _write(self, what: RenderableType, end: str = "\n") -> None:
        if self.refused:
            return
        try:
            self._console.print(what, end=end)
        except OSError as error:
            if self._alone:
                raise
            self.refused = error
