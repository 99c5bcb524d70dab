"""A training or a comparison driven to its end, and shown, unless something stops it.

That is a signal, or a reader of the output who leaves: both end it at a step's edge, saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from charrnn.comparing import Note, RunFailed, RunScored, RunStarted, compare
from charrnn.comparison import Comparison, Plan, RunFailure, RunResult
from charrnn.display import Display, open_display
from charrnn.errors import NonFiniteError
from charrnn.outcome import unread_unfinished
from charrnn.run import Run
from charrnn.stdio import print_path, say
from charrnn.stopping import StopSignals
from charrnn.training import Event, Finished, train
from charrnn.wording import shown

__all__ = ["watch_comparison", "watch_run"]


class _Reader:
    """Whoever reads what displays show: once one has left, there is a reason to stop."""

    def __init__(self, stop: StopSignals, display: Display) -> None:
        self._stop = stop
        self.display = display
        self.left: OSError | None = None
        """What the first line that nobody read, or no terminal took, was refused with."""

    def show(self, event: Event) -> None:
        with self._noting_that_one_left():
            self.display.show(event)

    def reason_to_stop(self) -> str | None:
        if self._stop.pause_is_due:
            with self._noting_that_one_left(), self.display.away():
                self._stop.pause()
        return "a closed output" if self.left else self._stop.reason()

    @contextmanager
    def _noting_that_one_left(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.left = self.left or error


def watch_run(run: Run, stop: StopSignals, *, as_json: bool, quiet: bool) -> int:
    """Train a run to its end, showing it.

    Args:
        run: new or resumed.
        stop: signals, which are only noted once the training has begun.
        as_json: show it as JSON lines; else its folder is printed at the end.
        quiet: show nothing else.

    Returns:
        The exit code.

    Raises:
        Stopped: the run was stopped, and saved, because nobody reads the output any more.
        OSError: its output cannot be written; what was trained is saved.
        CharrnnError: as ``charrnn.training.train``.
    """
    with closing(open_display(as_json=as_json, quiet=quiet)) as display:
        reader = _Reader(stop, display)
        stop.defer_pauses()
        with unread_unfinished():
            display.start(run)
        stop.defer()
        for event in train(run, reader.reason_to_stop):
            reader.show(event)
            if isinstance(event, Finished) and not event.complete:
                if stop.received:
                    return 128 + stop.received
                assert reader.left is not None
                if isinstance(reader.left, BrokenPipeError):
                    say(f"nobody reads the output any more; go on with: {run.command()}")
                with unread_unfinished():
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
    new: bool,
    device: torch.device,
    command: str,
    quiet: bool,
) -> Comparison | None:
    """Do a comparison's runs, showing them.

    Args:
        folder: the comparison's.
        plan: what is compared.
        stop: signals, which are only noted once a run has begun.
        new: whether the folder must be a new one.
        device: where to compute.
        command: what goes on with it, for the locks and messages of its runs.
        quiet: show nothing but notes.

    Returns:
        What came out; None if a signal stopped it.

    Raises:
        Stopped: it was stopped, and saved, because nobody reads the output any more.
        OSError: its output cannot be written; what was trained is saved.
        CharrnnError: as ``charrnn.comparing.compare``; NonFiniteError: nothing came out of
            any run.
    """
    results: list[RunResult] = []
    failures: list[RunFailure] = []
    reader = _Reader(stop, Display())
    try:
        for event in compare(
            folder,
            plan,
            new=new,
            device=device,
            command=command,
            should_stop=reader.reason_to_stop,
        ):
            if isinstance(event, Note):
                say(f"note: {event.text}")
            elif isinstance(event, RunStarted):
                stop.defer()
                stop.defer_pauses()
                reader.display = open_display(as_json=False, quiet=quiet)
                if not quiet:
                    number = f"{event.number} of {event.total}"
                    say(f"--- run {number}: {shown(event.run.folder.path)}")
                with unread_unfinished():
                    reader.display.start(event.run)
            elif isinstance(event, RunScored):
                reader.display.close()
                results.append(event.result)
            elif isinstance(event, RunFailed):
                reader.display.close()
                failures.append(failed := event.failure)
                say(f"{failed.cell}, seed {failed.seed}, is left out: {failed.reason}")
            else:
                reader.show(event)
    finally:
        reader.display.close()
    if reader.left:
        with unread_unfinished():
            raise reader.left
    if stop.received:
        return None
    if not results:
        raise NonFiniteError(
            "no run came to its end: each met a loss that is not finite; compare anew "
            "with a lower --lr"
        )
    return Comparison.of(plan, results, failures)
