"""The command line: an app of five commands, each in a module of its own.

They import torch inside their functions, so that help and messages about wrong options appear at
once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from charrnn import __version__
from charrnn.commands import compare, evaluate, inspect, sample, train
from charrnn.commands.options import grouped
from charrnn.commands.outcome import outcome
from charrnn.commands.stdio import lossy
from charrnn.errors import CharrnnError
from charrnn.limits import keep_freed_memory, openmp
from charrnn.wording import reason

app = typer.Typer(
    name="charrnn",
    help="""Train a character RNN, LSTM or GRU on any text; sample from it, score text with it.

    \b
    charrnn train poems.txt --minutes 5
    charrnn sample checkpoints/poems-lstm
    """,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; every failure is one line on stderr and an exit code."""
    os.environ.update(openmp(os.environ))
    keep_freed_memory()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Closed by the caller. /dev/null reads as empty and drops what is written, and no file
            # that is opened later takes its number.
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, mode, closefd=False))
    sys.stderr = lossy(sys.stderr)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as ``__main__`` has left it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run_command(sys.argv[1:])
    # All is done and printed. Ctrl-C would interrupt what libraries do at exit, with a traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(code))
    sys.exit(code)


def run_command(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    return outcome(app, arguments)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"charrnn {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=_show_version,
            is_eager=True,  # before a missing command is reported
        ),
    ] = False,
) -> None:
    """Take the options before a command, and check that the current folder exists."""
    try:
        Path.cwd()
    except OSError as error:  # neither torch's libraries nor relative paths would be found
        raise CharrnnError(
            f"the current folder cannot be found: {reason(error)}: change to one that exists"
        ) from error


app.command(cls=grouped(train.GROUPS))(train.train)
app.command(cls=grouped(sample.GROUPS))(sample.sample)
app.command(cls=grouped(evaluate.GROUPS))(evaluate.evaluate)
app.command(cls=grouped(compare.GROUPS))(compare.compare)
app.command(
    cls=grouped(inspect.GROUPS),
    short_help="Say what a run is; measure gradient flow, memory, gates and units.",
)(inspect.inspect)
