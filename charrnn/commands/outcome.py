"""Turn whatever ends a command into one line on stderr and an exit code.

The codes are those of ``charrnn.errors``, 2 for an invalid command line, and 128 + n after
signal n.
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

from charrnn.commands.elsewhere import meant
from charrnn.commands.stdio import say
from charrnn.commands.stopping import Stopped
from charrnn.errors import CharrnnError, UsageError
from charrnn.wording import reason, shown

#: What typer says -> what charrnn's other messages say.
WORDS = {
    "Value error, ": "",
    "Input should be a valid integer, unable to parse string as an integer": "not a whole number",
    "Input should be a valid number, unable to parse string as a number": "not a number",
}


def outcome(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line, print the reason for a failure on stderr, and return the exit code.

    Args:
        app: the commands.
        arguments: the words after the program's name; if there are none, help is shown.
    """
    result: object = None
    try:
        # A character that the terminal cannot show must not end a sample. If the locale is ASCII,
        # a file gets utf-8, which includes ASCII, so that nothing is lost.
        is_ascii = codecs.lookup(sys.stdout.encoding or "utf-8").name == "ascii"
        encoding = "utf-8" if is_ascii and not sys.stdout.isatty() else None
        sys.stdout.reconfigure(encoding=encoding, errors="replace")  # type: ignore[union-attr]
        _refuse_unencodable(arguments)
        command = typer.main.get_command(app)
        # Not app(): that would handle a closed pipe itself, with exit code 1.
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
        message = meant(error, arguments) or error.format_message()
        for words, ours in WORDS.items():
            message = message.replace(words, ours)
        return _fail(f"{message.removesuffix('.')} (see {path} --help)", 2)
    except (Stopped, KeyboardInterrupt, typer.Abort) as stopped:
        number = int(stopped.args[0]) if isinstance(stopped, Stopped) else signal.SIGINT
        if number == signal.SIGINT and sys.stdout.isatty():
            print(flush=True)  # after the ^C that the terminal has written
        _forget_output()  # a reader that does not read would delay the exit
        return 128 + number
    except BrokenPipeError:
        _forget_output()  # the reader has seen enough
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name in sys.stdlib_module_names:
            message = f"this Python was built without {error.name}: use another one"
        elif isinstance(error, ImportError) or error.errno is None:  # ctypes sets no errno
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


def _refuse_unencodable(arguments: Sequence[str]) -> None:
    """Refuse words that Python cannot turn back into the bytes that the shell has passed.

    It reads them by the C library and writes them by its own codec, which may know fewer
    characters: C1 control characters in EUC, for example, where a terminal sends utf-8. No file
    of such a name can be opened.
    """
    for word in arguments:
        try:
            os.fsencode(word)
        except UnicodeEncodeError:
            raise UsageError(
                f"{shown(word)} cannot be written in this locale's encoding, "
                f"{sys.getfilesystemencoding()}: set LC_ALL to one of utf-8, such as C.UTF-8"
            ) from None


def refused(error: OSError) -> str:
    """Return what the system refused, and why.

    Errors of reading and saving name their file; one without a name is about the output.
    """
    return f"{shown(error.filename or 'cannot write the output')}: {reason(error)}"


def _forget_output() -> None:
    """Send the rest of the output to /dev/null: Python would complain about it at the exit."""
    with suppress(io.UnsupportedOperation):  # a caller's stream in memory
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
    """Return a message with the error's notes, which say what of a training is saved."""
    return "; ".join([message, *getattr(error, "__notes__", ())])


def _remedy(error: Exception, arguments: Sequence[str]) -> str:
    """Return what helps a command that ran out of memory."""
    if not {"train", "compare"} & set(arguments[:1]):
        elsewhere = ", or give --device cpu" if _ran_out_on_a_gpu(error) else ""
        return f"close other programs{elsewhere}"
    # A resumed run keeps its sizes.
    if "--resume" in arguments or hasattr(error, "__notes__"):
        return "continue on a machine with more, or with another --device"
    if any(word.partition("=")[0] == "--init-from" for word in arguments):  # nor do weights
        return "give a smaller --batch-size or --bptt"
    if any(word.partition("=")[0] == "--dropout-masks" for word in arguments):
        return "give a smaller --hidden, --batch-size, --bptt or --dropout-masks"
    return "give a smaller --hidden, --batch-size or --bptt"


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out: in Python, on a GPU, or in torch on the CPU."""
    refusals = ("can't allocate memory", "std::bad_alloc", "Storage size calculation overflowed")
    return (
        isinstance(error, MemoryError)
        or _ran_out_on_a_gpu(error)
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in refusals))
    )


def _ran_out_on_a_gpu(error: Exception) -> bool:
    # By name and text: torch may not be imported yet, and only its own CUDA allocator raises a
    # special class; with CUDA itself, its libraries and MPS only the message tells.
    refusals = (
        "CUDA error: out of memory",
        "STATUS_ALLOC_FAILED",  # cuBLAS and others of CUDA's libraries
        "DEVICE_ALLOCATION_FAILED",  # cuDNN since 9.0
        "backend out of memory",  # MPS
    )
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in refusals)
    )
