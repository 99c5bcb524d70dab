"""Run a training, a comparison, a scoring or an inspection to its end, and show it.

If a signal comes or the output's reader leaves, a training is saved and ends between steps.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from charrnn.commands.stdio import Meter, print_path, say
from charrnn.commands.stopping import Stopped, StopSignals
from charrnn.config import EvaluateConfig, InspectConfig, TrainConfig
from charrnn.errors import NonFiniteError, RunFolderError
from charrnn.inference.assessment import Assessment, assess
from charrnn.inference.baselines import Baseline
from charrnn.inference.baselines import baselines as price_baselines
from charrnn.inference.evaluation import Prices
from charrnn.runs.comparing import RunStarted, compare
from charrnn.runs.comparison import Comparison, RunFailure, RunResult
from charrnn.runs.comparison_plan import Plan
from charrnn.runs.events import Event, Finished
from charrnn.runs.run import Run
from charrnn.runs.subject import Subject
from charrnn.runs.training import train
from charrnn.storage.metrics import read_log
from charrnn.storage.trained import trained_in
from charrnn.text.corpus import Part
from charrnn.text.vocabulary import Vocabulary
from charrnn.views.display import Display, open_display
from charrnn.views.score_view import PerCharacter, SurpriseText
from charrnn.wording import counted, duration, shown

if TYPE_CHECKING:
    from charrnn.analysis.activity import Unit
    from charrnn.analysis.inspection import Inspection
    from charrnn.analysis.stretch import Stretch


class _Reader:
    """Notes whether a display still has a reader: once it has none, there is a reason to stop."""

    def __init__(self, stop: StopSignals, display: Display) -> None:
        self._stop = stop
        self.display = display
        self.left: OSError | None = None
        """The error of the first line that could not be written, if any."""

    def show(self, event: Event) -> None:
        with self._noting_that_one_left():
            self.display.show(event)

    def reason_to_stop(self) -> str | None:
        if self._stop.pause_is_due:
            with self._noting_that_one_left(), self.display.away():
                self._stop.pause()
        return "a closed output" if self.left else self._stop.reason()

    def close(self) -> None:
        with self._noting_that_one_left():
            self.display.close()

    @contextmanager
    def _noting_that_one_left(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.left = self.left or error


@contextmanager
def _unread_unfinished() -> Iterator[None]:
    """Treat a closed pipe as SIGPIPE, which ends other programs then: the work is unfinished.

    Raises:
        Stopped: instead of a BrokenPipeError.
    """
    try:
        yield
    except BrokenPipeError as error:
        raise Stopped(signal.SIGPIPE) from error


def watch_run(run: Run, stop: StopSignals, *, as_json: bool, quiet: bool) -> int:
    """Train a run to its end, showing it.

    Args:
        run: new or resumed.
        stop: signals, which are only noted once the training has begun.
        as_json: show it as JSON lines; otherwise its folder is printed at the end.
        quiet: show only notes, and the command that continues a stopped run.

    Returns:
        The exit code.

    Raises:
        Stopped: the run was stopped, and saved, because nobody reads the output any more.
        OSError: its output cannot be written; what was trained is saved.
        CharrnnError: as ``charrnn.runs.training.train``.
    """
    with closing(_Reader(stop, open_display(as_json=as_json, quiet=quiet))) as reader:
        stop.defer_pauses()
        with _unread_unfinished():
            reader.display.start(run)
        stop.defer()
        for event in train(run, reader.reason_to_stop):
            reader.show(event)
            if isinstance(event, Finished) and not event.complete:
                if stop.received:
                    return 128 + stop.received
                assert reader.left is not None
                nobody = isinstance(reader.left, BrokenPipeError)
                why = "nobody reads the output any more" if nobody else "the run is saved"
                say(f"{why}; go on with: {run.command()}")
                with _unread_unfinished():
                    raise reader.left
    if reader.left:
        raise reader.left
    if not as_json:
        print_path(run.folder.path)
    return 0


def watch_comparison(
    folder: Path,
    plan: Plan,
    stop: StopSignals,
    *,
    begun: Plan | None,
    device: torch.device,
    command: str,
    quiet: bool,
) -> Comparison | None:
    """Do a comparison's runs, showing them.

    Args:
        folder: the comparison's.
        plan: what is compared.
        stop: signals, which are only noted once a run has begun.
        begun: as for ``charrnn.runs.comparing.compare``.
        device: where to compute.
        command: the command that continues it, for the locks and messages of its runs.
        quiet: show nothing but notes.

    Returns:
        The results; None if a signal stopped it.

    Raises:
        Stopped: it was stopped, and saved, because nobody reads the output any more.
        OSError: its output cannot be written; what was trained is saved.
        CharrnnError: as ``charrnn.runs.comparing.compare``; NonFiniteError: no run was finished.
    """
    results: list[RunResult] = []
    failures: list[RunFailure] = []
    with closing(_Reader(stop, open_display(as_json=False, quiet=quiet))) as reader:
        for event in compare(
            folder,
            plan,
            begun=begun,
            device=device,
            command=command,
            should_stop=reader.reason_to_stop,
        ):
            if isinstance(event, str):
                say(f"note: {event}")
            elif isinstance(event, RunStarted):
                plan = event.plan
                stop.defer()
                stop.defer_pauses()
                if stop.received:  # since the run before; this one ends before its first update
                    reader.display = Display()
                    continue
                if begun is None and event.number == 1 and not quiet:
                    _say_how_long(plan)
                with _unread_unfinished():
                    title = f"--- run {event.number} of {event.total}"
                    reader.display.start(event.run, title)
            elif isinstance(event, RunResult):
                reader.close()
                results.append(event)
            elif isinstance(event, RunFailure):
                reader.close()
                failures.append(event)
                say(f"{event.cell}, seed {event.seed}, is left out: {event.reason}")
            else:
                reader.show(event)
    if stop.received:  # first: a Ctrl-C ends the reader, too
        return None
    if reader.left:
        with _unread_unfinished():
            raise reader.left
    if not results:
        raise NonFiniteError(
            "no run was finished: in each a loss was not finite; compare anew with a lower --lr"
        )
    return Comparison.of(plan, results, failures)


def _say_how_long(plan: Plan) -> None:
    """Say how long the runs of a comparison will take, if its budget is in minutes."""
    if plan.minutes is not None:
        runs = plan.seeds * len(plan.cells)
        say(
            f"{counted(runs, 'run')} of {counted(plan.minutes, 'minute')}: "
            f"{duration(60 * plan.minutes * runs)}, and what scoring takes"
        )


def watch_scoring(
    subjects: Iterable[tuple[Subject, Sequence[str]]],
    config: EvaluateConfig,
    stop: StopSignals,
    *,
    baselines: bool,
    show: bool,
    per_char: Path | None,
    with_page: bool,
) -> tuple[list[Assessment], OSError | RunFolderError | None]:
    """Score models one after another, showing the progress.

    Args:
        subjects: each model with its text, and what a user must know about it.
        config: how to score, and what else to measure.
        stop: removes an unfinished file of prices if a second signal ends the command.
        baselines: compute the baselines, too; once for all models that read a text alike.
        show: print the text, coloured by its prices; for a single model only.
        per_char: write the prices to this file; for a single model only.
        with_page: whether a page is made of the scores.

    Returns:
        The scores, and an error to be raised once all else is done: the complete prices could not
        be saved, or the text could not be shown to its end while there is a file to write.

    Raises:
        CorpusError: a text changed while it was read.
        OSError: the text cannot be shown, and no file is to be written.
        RunFolderError: the prices cannot be written.
    """
    failure: OSError | RunFolderError | None = None
    priced: dict[tuple[Part, Vocabulary, Part | None], tuple[Baseline, ...]] = {}
    assessments = []
    for subject, facts in subjects:
        part, vocabulary = subject.part, subject.vocabulary
        basis = (part, vocabulary, subject.training)
        try:
            # A text that is shown is closed last: the file of prices does not wait for its reader.
            with ExitStack() as last, ExitStack() as stack:
                # A text that is shown is its own progress display.
                meter = Meter(shown(subject.path), part.characters - 1, quiet=show)
                stack.enter_context(closing(meter))
                watchers: list[Callable[[Prices], None]] = []
                if per_char is not None:  # first, for it may be refused
                    prices = PerCharacter(part, per_char, stop.removed.append)
                    watchers.append(stack.enter_context(prices))
                if baselines and basis not in priced:
                    priced[basis] = tuple(price_baselines(*basis, meter))
                if show:
                    text = SurpriseText(part, alone=per_char is None and not with_page)
                    watchers.append(last.enter_context(text))
                assessments.append(
                    assess(
                        str(subject.path), subject.model, vocabulary, part, config,
                        baselines=priced.get(basis, ()), facts=facts, run=subject.of_run(),
                        precision=trained_in(subject.checkpoint, subject.model.device),
                        watchers=watchers, tell=meter,
                    )
                )  # fmt: skip
        except RunFolderError as error:
            if not assessments:
                raise
            failure = error
        if show:
            failure = failure or text.refused
    return assessments, failure


def watch_inspection(
    subject: Subject, config: InspectConfig, *, unit: Unit | None, is_named: bool
) -> tuple[Part, Stretch, Inspection]:
    """Inspect a model on the end of its text, saying what is being measured.

    Args:
        subject: the model and its text.
        config: what to measure, and on how much.
        unit: the unit whose activation is asked for.
        is_named: whether the text was named, not taken from the run; how much of it the model was
            trained on is said then, too.

    Returns:
        The part of the text, the same in memory, and the measurements.

    Raises:
        CharrnnError: the log is not usable, the text changed or is too short, or as
            ``charrnn.analysis.inspection.inspect``.
    """
    # Imported here, as a training need not wait for them.
    from charrnn.analysis.inspection import inspect
    from charrnn.analysis.norms import clipping
    from charrnn.analysis.stretch import read_stretch

    name, model, vocabulary = shown(subject.path), subject.model, subject.vocabulary
    training = subject.checkpoint.record("training", TrainConfig)
    history = None
    if "clipping" in config.measured:
        history = clipping(read_log(subject.checkpoint.folder), training)
        if history is None:
            say(
                f"{name}: its gradient norms are not shown, as there is no log (metrics.jsonl) "
                "beside it"
            )
    seen = subject.part.last(config.characters)
    stretch = read_stretch(seen, vocabulary)
    learnt = subject.learnt(seen) if is_named else None
    for fact in filter(None, (learnt, subject.unknown(seen))):
        say(f"{name}: the model {fact}")
    if "gates" in config.only and not model.layers()[0].gate_names:
        say(f"{name}: {model.config.cell.upper()} cells have no gates, so there are none to show")
    slow = "; truncation takes longest" if config.measured > {"truncation"} else ""
    say(f"looking at {len(stretch):,} characters{slow}:", end="")
    try:
        inspection = inspect(
            model, stretch, vocabulary, config, training, unit=unit, history=history,
            tell=lambda what: say(f" {what}", end=""),
        )  # fmt: skip
    finally:
        say("")
    return seen, stretch, inspection
