"""How a command ends: whatever stops it becomes one line on stderr and an exit code.

The codes are those of ``charrnn.errors``, 2 for a command line that makes no sense, and
128 + n after signal n.
"""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import typer

from charrnn.errors import CharrnnError
from charrnn.stdio import say
from charrnn.stopping import Stopped
from charrnn.wording import reason, shown

#: What typer says, in the words of all other messages.
WORDS = {
    "Value error, ": "",
    "Input should be a valid integer, unable to parse string as an integer": "not a whole number",
    "Input should be a valid number, unable to parse string as a number": "not a number",
}


def outcome(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line; return the exit code, once the reason of a failure is on stderr.

    Args:
        app: the commands.
        arguments: the words after the program's name; none asks for help.
    """
    result: object = None
    try:
        # A character that the terminal cannot show must not end a sample. Where the locale is
        # ASCII a file gets utf-8, which says the same of ASCII, and loses nothing.
        is_ascii = codecs.lookup(sys.stdout.encoding or "utf-8").name == "ascii"
        encoding = "utf-8" if is_ascii and not sys.stdout.isatty() else None
        sys.stdout.reconfigure(encoding=encoding, errors="replace")  # type: ignore[union-attr]
        command = typer.main.get_command(app)
        # Not app(): that one answers a closed pipe itself, with exit code 1.
        try:
            with command.make_context("charrnn", [*arguments] or ["--help"]) as context:
                result = command.invoke(context)
        except typer.Exit as leaving:
            result = leaving.exit_code
        sys.stdout.flush()
    except CharrnnError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        names = getattr(command, "commands", {}).keys() & set(arguments[:1])
        path = " ".join(["charrnn", *names])
        message = error.format_message()
        for words, ours in WORDS.items():
            message = message.replace(words, ours)
        return _fail(f"{message} (see {path} --help)", 2)
    except (Stopped, KeyboardInterrupt, typer.Abort) as stopped:
        number = int(stopped.args[0]) if isinstance(stopped, Stopped) else signal.SIGINT
        if number == signal.SIGINT and sys.stdout.isatty():
            print(flush=True)  # after the ^C that the terminal has written
        _forget_output()  # a reader that does not read would hold up the end
        return 128 + number
    except BrokenPipeError:
        _forget_output()  # the reader has seen enough
    except (ImportError, OSError) as error:
        if isinstance(error, ImportError) or error.errno is None:  # ctypes gives no number
            message = (
                f"a library cannot be loaded: {error}: there is too little memory (ulimit -v shows "
                "the limit), or charrnn needs to be installed again"
            )
        else:
            message = refused(error)
        return _fail(_noted(message, error), 1)
    except Exception as error:
        if _is_out_of_memory(error):
            message = f"out of memory: {_remedy(error, arguments)}"
        elif isinstance(error, RuntimeError) and str(error) == "can't start new thread":
            message = (
                "cannot start a thread: there are too many processes (ulimit -u shows the limit), "
                "or there is too little memory (ulimit -v)"
            )
        elif os.environ.get("CHARRNN_TRACEBACK"):
            raise
        else:
            message = (
                f"this is a fault in charrnn, {type(error).__name__}: {error}; please report it "
                "where you got charrnn from, with the traceback: CHARRNN_TRACEBACK=1 in front of "
                "the command prints it"
            )
        return _fail(_noted(message, error), 1)
    return result if isinstance(result, int) else 0


def refused(error: OSError) -> str:
    """Return what the system refused, and why.

    Reading and saving name their file themselves; what has no name is the output.
    """
    return f"{shown(error.filename or 'cannot write the output')}: {reason(error)}"


def _forget_output() -> None:
    """Lead what is left of the output nowhere: Python would complain while it exits."""
    with suppress(io.UnsupportedOperation):  # a caller's own, which is in memory
        output = sys.stdout.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)


def _fail(message: str, code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        _forget_output()
    say("charrnn: " + " ".join(message.splitlines()))
    return code


def _noted(message: str, error: Exception) -> str:
    """Return a message with what the error's notes say besides: what of a training is saved."""
    return "; ".join([message, *getattr(error, "__notes__", ())])


def _remedy(error: Exception, arguments: Sequence[str]) -> str:
    """Return what helps a command that memory was refused to."""
    if not {"train", "compare"} & set(arguments[:1]):
        return "close other programs"
    # What goes on keeps its sizes.
    if "--resume" in arguments or hasattr(error, "__notes__"):
        return "continue on a machine with more, or with another --device"
    return "give a smaller --hidden, --batch-size or --bptt"


def _is_out_of_memory(error: Exception) -> bool:
    """Say whether memory was refused: by Python, by a GPU, or by torch on the CPU."""
    # By name and text: torch may not be imported yet, and has a class for it only where its own
    # allocator asks CUDA for memory; CUDA itself, its libraries, MPS and the CPU only say so.
    refusals = (
        "can't allocate memory",
        "std::bad_alloc",
        "Storage size calculation overflowed",
        "CUDA error: out of memory",
        "STATUS_ALLOC_FAILED",  # cuBLAS and others of CUDA's libraries
        "DEVICE_ALLOCATION_FAILED",  # cuDNN since 9.0
        "backend out of memory",  # MPS
    )
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in refusals))
    )
