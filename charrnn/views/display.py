"""Show a training's events as a live terminal, plain lines or JSON lines.

Progress goes to stderr; JSON lines are results and go to stdout. Sampled text
is never read as markup.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.constrain import Constrain
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.segment import SegmentLines
from rich.table import Table
from rich.text import Text

from charrnn.command_words import flag
from charrnn.compute.device import in_words
from charrnn.errors import CorpusError, RunFolderError
from charrnn.inference.baselines import MOST_COMPRESSED
from charrnn.nats import in_bits
from charrnn.runs.events import (
    Event,
    Finished,
    Logged,
    Paused,
    Planned,
    Sampled,
    Spiked,
    Uncaptured,
    Validated,
    Validating,
)
from charrnn.runs.run import Run
from charrnn.runs.training import SHOWN_TEMPERATURE
from charrnn.storage.metrics import read_log
from charrnn.text.vocabulary import MANY_UNKNOWN
from charrnn.views.run_words import (
    LABEL,
    best_line,
    bits,
    both_units,
    come_to,
    introduction,
    regularisers,
    sample_line,
    why_ended,
)
from charrnn.views.terminal import Output, in_rows, print_words, say_on, to_json
from charrnn.wording import counted, cut_word, duration, shown

#: Rows of a sample that the live display shows.
SAMPLE_ROWS = 7
#: Layouts of the live figures, as the widths of their columns; the first that fits is used.
GRIDS = ((12, 14, 15, 14), (17, 14), (0,))
#: A new plan is told if it differs from the one told last by at least this share.
NEWS = 0.2
#: Seconds between the plain lines of a log.
PLAIN_EVERY = 10.0


class Display:
    """The base of the displays, which show one run after another; this one shows nothing."""

    _known: frozenset[str] = frozenset()
    _planned: int | None = None
    """Updates of the plan that was told last."""

    def start(self, run: Run, title: str = "") -> None:
        """Describe a run, without what was already said about the one before.

        Args:
            run: the run that begins or goes on.
            title: its title among several.
        """

    def show(self, event: Event) -> None:
        """Show one event."""

    def away(self) -> AbstractContextManager[None]:
        """Leave the terminal to others during a ``with`` block."""
        return nullcontext()

    def close(self) -> None:
        """Restore the terminal."""

    def _is_news(self, event: Event) -> bool:
        """Whether to tell an event: a new plan only if it differs much from the one told last."""
        if not isinstance(event, Planned):
            return True
        last = self._planned or event.before
        if event.before and last and abs(event.total_steps / last - 1) < NEWS:
            return False
        self._planned = event.total_steps
        return True

    def _new(self, run: Run) -> list[str]:
        """Return the lines that describe a run, without those shared with the one before."""
        self._planned = None
        lines = [*_portrayed(run)]
        # Only the run before counts: a line that was replaced and comes back is news again.
        before, self._known = self._known, frozenset(lines)
        return [line for line in lines if line not in before]


def open_display(*, as_json: bool, quiet: bool) -> Display:
    """Return the display that fits the options and the terminal.

    Args:
        as_json: JSON lines on stdout.
        quiet: show only notes, and the command that continues a stopped run.
    """
    if as_json:
        return _JsonLines()
    if quiet:
        return _Notes()
    console = Output(stderr=True)
    if console.is_screen:
        return _LiveTerminal(console)
    return _PlainLines()


def _portrayed(run: Run) -> Iterable[str]:
    """Yield the lines that describe a run."""
    summary = run.summary
    # A resumed run starts with the plan it has.
    is_planned = run.resumed or run.config.minutes is None
    yield from introduction(summary, in_words(run.device), is_planned=is_planned)
    (mark, nats), *others = run.baselines.items()
    rest = (f", {word} {nats:.3f} ({in_bits(nats):.3f})" for word, nats in others)
    is_cut = run.valid is not None and run.valid.predicted.characters > MOST_COMPRESSED
    first = f" of the first {MOST_COMPRESSED:,} held out" if is_cut else ""
    price = f"{mark} {nats:.3f} nats a {summary.unit} ({bits(nats)})"
    yield f"to beat {price}{''.join(rest)}{first}"
    yield f"run     {shown(run.folder.path)}"
    yield from (f"note: {note}" for note in run.notes)
    if run.resumed:
        progress = run.progress
        yield f"resumed at step {progress.step:,}, after {duration(progress.seconds)} of training"


def _ending(event: Finished, run: Run) -> Iterable[str]:
    summary = run.summary
    progress = summary.progress
    yield f"{why_ended(event.reason, run.config.patience)} after {come_to(summary)}"
    marks: dict[str, float] = {}
    if progress.best_nats is not None and run.valid is not None:
        with suppress(CorpusError):  # the text has changed since: show the loss alone
            marks = run.marks()
    guessed = marks.pop("uniform", math.inf)
    if (best := best_line(summary, marks)) is not None:
        assert progress.best_nats is not None
        yield best
        why = f": {_why_worse(run, event)}" if run.owner is None else ""
        if progress.best_step == 0 and event.complete:
            why = f"try {_tamer(run)}"
            if run.validates_on_learnt:
                why = "they were trained on some of what is held out"
            yield f"no update improved on the weights the run began with: {why}"
        elif progress.best_nats > guessed:
            yield f"that is worse than guessing every symbol with equal chance{why}"
        elif progress.best_nats > marks.get("unigram", math.inf):
            yield f"that is worse than knowing only how frequent each symbol is{why}"
    if run.owner is not None:
        return  # the owner says what is next
    if event.complete:
        yield sample_line(run.folder.path)
    else:
        yield f"go on with: {run.command()}"


def _why_worse(run: Run, event: Finished) -> str:
    """Return why a run may be worse than a baseline, or what may help."""
    if run.unknown_share > MANY_UNKNOWN:
        instead = "hold out text like the training text"
        if run.vocabulary.unknown_share(run.train.counts) > MANY_UNKNOWN:
            instead = "give a smaller --min-count"
            if run.config.init_from is not None:
                instead = "leave --init-from out, as that model does not know them"
        return (
            f"{100 * run.unknown_share:.0f} % of the characters held out are unknown, which is "
            f"what costs so much: {instead}"
        )
    if not event.complete:
        return "it is not finished yet"
    if run.progress.spike_step is not None:  # it may be improving since, but had to begin again
        return f"the loss jumped: try {_tamer(run)}"
    if run.progress.validations_since_best == 0:  # it was still getting better
        return f"it was still improving: give more {flag(run.config.budget)}, or another --lr"
    return "the text is too short, or nothing in it repeats"


def _place(row: Mapping[str, Any], *, is_aligned: bool = False) -> str:
    """Return a run's step, epoch and time, perhaps padded so that such lines align."""
    figures = (f"{row['step']:,}", f"{row['epoch']:.2f}", duration(row["seconds"]))
    step, epoch, took = map(str.rjust, figures, (7, 6, 7)) if is_aligned else figures
    return f"step {step}  epoch {epoch}  {took}"


def _validation(event: Validated, *, is_aligned: bool = False) -> str:
    place, valid = _place(event.row, is_aligned=is_aligned), event.row["valid_nats_per_char"]
    return f"{place}  valid {both_units(valid)}{'  best' if event.best else ''}"


def _figures(event: Logged, run: Run) -> tuple[str, ...]:
    """Return the rate, the gradient's norm, how much is clipped, the speed and the time to go."""
    row = event.row
    lr = row["learning_rate"]
    rate = f"{lr:,.0f}" if 99.5 <= lr < 1e9 else f"{lr:.2g}"
    clipped = "not clipped"
    if _bounded(run):
        clipped = f"{cut_word(run.config.scale_norm)} {100 * row['clipped_share']:.0f} %"
    speed = row.get("chars_per_second")  # absent if nothing was left to do after a resume
    return (
        f"lr {rate}",
        f"gradient {row['gradient_norm']:.2f}",
        clipped,
        f"{'-' if speed is None else f'{speed:,.0f}'} chars/s",
        f"{duration(event.eta)} to go",
    )


def _tamer(run: Run) -> str:
    """Return the options that make updates smaller."""
    return "a lower --lr" if _bounded(run) else "a lower --lr or --clip-norm 1"


def _bounded(run: Run) -> bool:
    """Whether gradients are clipped or scaled."""
    config = run.config
    return bool(config.clip_norm or config.clip_value or config.scale_norm)


class _Notes(Display):
    """Shows only a run's notes, and the command that continues it if it is stopped."""

    def start(self, run: Run, title: str = "") -> None:
        self.run = run
        for line in self._new(run):
            if line.startswith("note: "):
                self._say(line)

    def show(self, event: Event) -> None:
        if isinstance(event, Uncaptured):
            self._say(f"note: {_uncaptured(event)}")
        elif isinstance(event, Finished) and not event.complete and self.run.owner is None:
            self._say(f"go on with: {self.run.command()}")

    def _say(self, line: str) -> None:
        # Other displays let this error end the training, as their reader has left; under --quiet
        # stderr may be closed on purpose.
        with suppress(OSError):
            print_words(line, stderr=True)


class _JsonLines(Display):
    """Prints one JSON object per line on stdout; its ``event`` names the kind."""

    def start(self, run: Run, title: str = "") -> None:
        self.run = run
        self._print(
            "started",
            run=str(run.folder.path),
            device=run.device.type,
            parameters=run.model.parameter_count(),
            train_characters=run.train.characters,
            valid_characters=run.valid.characters if run.valid else 0,
            test_characters=run.text.length("test"),
            texts=run.text.texts,
            valid_texts=run.text.valid_texts,
            fingerprint=run.text.fingerprint,
            step=run.progress.step,
            model=run.model.config.to_dict(),
            training=run.config.to_dict(),
            baselines=run.baselines,
            notes=run.notes,
        )

    def show(self, event: Event) -> None:
        if isinstance(event, Logged):
            self._print("logged", **event.row, planned_steps=event.planned_steps)
        elif isinstance(event, Validated):
            self._print("validated", **event.row, best=event.best)
        elif isinstance(event, Finished):
            progress = self.run.summary.progress
            self._print(
                "finished",
                reason=event.reason,
                complete=event.complete,
                step=progress.step,
                characters=progress.characters,
                seconds=progress.seconds,
                best_nats_per_char=progress.best_nats,
                best_step=progress.best_step,
                go_on=None if event.complete else self.run.command(),
            )
        elif not isinstance(event, Validating):
            fields = {name: str(v) if name == "path" else v for name, v in asdict(event).items()}
            self._print(type(event).__name__.lower(), **fields)

    def _print(self, event: str, **fields: Any) -> None:
        print(to_json({"event": event, **fields}), flush=True)


class _PlainLines(Display):
    """Prints a line now and then, for logs and pipes."""

    def start(self, run: Run, title: str = "") -> None:
        self.run = run
        self.told = -math.inf
        for line in filter(None, [title, *self._new(run)]):
            self._print(line)

    def show(self, event: Event) -> None:
        if isinstance(event, Logged):
            now = time.monotonic()
            if now - self.told >= PLAIN_EVERY:
                self.told = now
                self._print(self._progress(event))
        elif isinstance(event, Validated):
            self._print(_validation(event))
        elif self._is_news(event):
            for line in _plain(event, self.run):
                self._print(line)

    def _progress(self, event: Logged) -> str:
        train = f"train {both_units(event.row['train_nats_per_char'])}"
        return "  ".join([_place(event.row), train, *_figures(event, self.run)])

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _plain(event: Event, run: Run) -> Iterable[str]:
    """Yield the lines that live and plain displays share."""
    if isinstance(event, Planned):
        minutes, held, to_go = run.config.minutes, "", ""
        # The introduction of a new run of steps or epochs has named these already.
        if event.before is None and (run.resumed or minutes is not None):
            held = ", ".join(regularisers(run.summary, by_plan=True))
        if minutes is not None:
            to_go = f"; {duration(max(0.0, minutes * 60 - run.progress.seconds))} to go"
        # With another budget, a resumed run's plan differs from the one in its introduction.
        if to_go or held:
            planned = "planned" if event.before is None else "the speed has changed: planned again,"
            yield (
                f"{planned} {counted(event.total_steps, 'step')}, "
                f"{event.total_steps / run.lanes.steps_per_epoch:.2f} epochs"
                f"{to_go}{f'; {held}' if held else ''}"
            )
        scored = event.validate_characters
        if event.before is not None or run.valid is None or scored is None:
            return
        if scored < run.valid.characters:
            first = counted(scored, run.summary.unit)
            yield f"validations score the first {first} held out, to save time"
    elif isinstance(event, Spiked):
        advice = f"; {_tamer(run)} makes that rarer" if run.owner is None else ""
        guessing = f"worse than guessing ({run.baselines['uniform']:.3f})"
        yield (
            f"the loss jumped to {event.after:.3f} nats at step {event.step:,}, "
            + (guessing if event.before is None else f"from a mean of {event.before:.3f}")
            + advice
        )
    elif isinstance(event, Paused):
        stopped = f"the process was stopped for {duration(event.seconds)}"
        yield f"{stopped}, which does not count towards the run's time"
    elif isinstance(event, Uncaptured):
        yield _uncaptured(event)
    elif isinstance(event, Finished):
        yield from _ending(event, run)


def _uncaptured(event: Uncaptured) -> str:
    return f"the update cannot be captured in a CUDA graph, so it is slower: {event.reason}"


def _last_validation(run: Run) -> float | None:
    """Return the loss of a resumed run's last validation in nats per character, by its log."""
    losses: list[float] = []
    with suppress(RunFolderError):  # a training need not end because this is not known
        values = [row.get("valid_nats_per_char") for row in read_log(run.folder.path)]
        losses = [value for value in values if isinstance(value, float)]
    return losses[-1] if losses else None


class _LiveTerminal(Display):
    """A panel that is redrawn in place, below the lines printed so far."""

    def __init__(self, console: Output) -> None:
        self.console = console
        self.live: Live | None = None

    def start(self, run: Run, title: str = "") -> None:
        self.run = run
        self.logged: Logged | None = None
        self.valid = _last_validation(run)
        self.validating = False
        self.sample, self.sampled_at = "", 0
        for line in filter(None, [title, *self._new(run)]):
            say_on(self.console, line, hang=LABEL)
        self._draw()

    def show(self, event: Event) -> None:
        self._draw()
        self.validating = isinstance(event, Validating)
        if isinstance(event, Logged):
            self.logged = event
        elif isinstance(event, Validated):
            self.valid = event.row["valid_nats_per_char"]
            say_on(self.console, _validation(event, is_aligned=True))
        elif isinstance(event, Sampled):
            self.sample, self.sampled_at = event.text, self.run.progress.step
        if isinstance(event, Finished):
            self.close()
            if self.sample:
                self.console.print(Constrain(self._sample(SAMPLE_ROWS), self._width))
        if self._is_news(event):
            for line in _plain(event, self.run):
                say_on(self.console, line)

    @contextmanager
    def away(self) -> Iterator[None]:
        was_drawn = self.live is not None
        self.close()
        yield
        if was_drawn:
            self._draw()

    def close(self) -> None:
        if self.live is not None:
            # In the background the panel is not erased, as a shell may have written below it: if
            # this process runs in a wrapper, Ctrl-Z stops that at once, and its shell goes on.
            self.console.quiet = not self.console.is_in_foreground
            live, self.live = self.live, None  # if stopping fails, it is not tried again
            live.stop()
            self.console.quiet = False
            self.console.show_cursor()

    def _draw(self) -> None:
        """Start the panel at the cursor, or close it while in the background."""
        if not self.console.is_in_foreground:
            self.close()
        elif self.live is None:
            self.live = Live(
                get_renderable=self._picture,
                console=self.console,
                refresh_per_second=4,
                transient=True,
            )
            self.live.start()

    def _picture(self) -> SegmentLines:
        """Return the panel, cut to what can be erased again.

        That is what fits on the screen, less the line on which the cursor ends.
        """
        options = self.console.options.update(width=self._width)
        height = self.console.height - 1
        lines = self.console.render_lines(self._progress(), options, pad=False)
        rows = min(SAMPLE_ROWS, height - len(lines) - 2)
        if self.sample and rows > 0:
            lines += self.console.render_lines(self._sample(rows), options, pad=False)
        return SegmentLines(lines[:height], new_lines=True)

    def _progress(self) -> Group:
        progress = self.run.progress
        done, total = progress.seconds, (self.run.config.minutes or 0) * 60
        if progress.planned_steps is not None:
            done, total = progress.step, progress.planned_steps
        # A bar does not end its line by itself; Padding does.
        bar = Padding(ProgressBar(total=total, completed=done), 0)
        if self.logged is None:
            return Group(bar, Text("validating ..." if self.validating else "first steps ..."))
        row = self.logged.row
        train = f"train {both_units(row['train_nats_per_char'])}"
        valid = f"valid {'-' if self.valid is None else both_units(self.valid)}"
        *update, speed, to_go = _figures(self.logged, self.run)
        figures = [f"step {row['step']:,}", f"epoch {row['epoch']:.2f}", speed, to_go, *update]
        if self.validating:
            figures.append("validating ...")
        # Minimum widths keep a figure in place when the one to its left gets longer.
        widths = next(w for w in GRIDS if sum(w) + 3 * (len(w) - 1) <= self._width)
        grid = Table.grid(padding=(0, 3))
        for width in widths:
            grid.add_column(no_wrap=True, min_width=width)
        for first in range(0, len(figures), len(widths)):
            grid.add_row(*figures[first : first + len(widths)])
        losses = Text(f"{train:31}   {valid}" if len(widths) == 4 else f"{train}\n{valid}")
        return Group(bar, grid, losses)

    @property
    def _width(self) -> int:
        """Columns to draw on, with room left for two ^C that the terminal echoes.

        If an echo began a new line, the line above would not be erased.
        """
        return max(1, self.console.width - 4)

    def _sample(self, most: int) -> Group:
        """Return the sample between two rules.

        A frame around it would be torn, and exceed the screen, if the terminal draws a character
        wider than Rich counts it.
        """
        encoding = self.console.encoding
        # A character that the encoding lacks would be written as an escape, wider than counted.
        sample = self.sample.encode(encoding, "replace").decode(encoding)
        rows = in_rows(sample, self._width)[:most]
        line = "-" if self.console.options.ascii_only else "─"
        title = f"sample at step {self.sampled_at:,}, --temperature {SHOWN_TEMPERATURE:g}"
        head = Rule(title, characters=line, align="left", style="none")
        return Group(head, *map(Text, rows), Rule(characters=line, style="none"))
