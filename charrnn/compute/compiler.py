"""C files, compiled for the machine that they run on and called with tensors.

A file is compiled when a process first needs it (about half a second), into a folder that is
removed once the code is loaded: so the code always suits the processor, and no stale library
is left behind. Without a C compiler that has OpenMP, callers use
numpy or torch instead.

The environment variable CC names the compiler, as for make; ``CHARRNN_NATIVE=0`` turns
compiling off.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from charrnn.compute.processor import cpu_facts
from charrnn.wording import shown

_OPTIONS = [
    "-x", "c", "-std=gnu11", "-O3", "-fno-trapping-math", "-fno-math-errno", "-fopenmp", "-fPIC",
    "-shared",
]  # fmt: skip
"""``-x c``: a C++ compiler would otherwise compile C++ and mangle the names. ``-fopenmp``: on Linux
the threads are torch's own, because torch has loaded gcc's OpenMP; clang's would be a second
one, so ``common.h`` refuses clang. ``-fno-trapping-math``: nothing here needs floating-point
traps, and with them gcc cannot vectorise the exponentials for AVX2. ``-fno-math-errno``: nor does
anything read ``errno``, and to set it gcc takes roots one by one. Neither changes a result."""

_WIDE = "-mprefer-vector-width=512"
"""Full-width vectors: gcc would use half the width. Other compilers do not know the option."""

_COMPILE_SECONDS = 60

_HEADERS = ("common.h", "products.h")


class Library:
    """A compiled file.

    Args:
        library: the compiled library.

    Attributes:
        FILE: the name of the C file, in this package.
        FUNCTIONS: the file's own functions that return nothing.
        SIZES: those that return a long.
        flaw: why it was compiled for any processor rather than for this one; None: it was not.
    """

    FILE: ClassVar[str]
    FUNCTIONS: ClassVar[Sequence[str]]
    SIZES: ClassVar[Sequence[str]] = ()

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.flaw: str | None = None
        for name in self.FUNCTIONS:
            getattr(library, name).restype = None
        for name in self.SIZES:
            getattr(library, name).restype = ctypes.c_long


def argument(value: Tensor | int | None) -> ctypes.c_void_p | ctypes.c_long:
    """Return a value as an argument for C: a tensor's address, a null pointer, or a number."""
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return ctypes.c_long(value)


def refuse_misreadable(
    *values: Tensor | int | None, dtypes: Sequence[torch.dtype] = (torch.float32, torch.int64)
) -> None:
    """Refuse tensors that C would misread, or read beyond their end.

    Args:
        values: arguments for C; the tensors among them must be contiguous and on a CPU.
        dtypes: the types that a tensor may have.

    Raises:
        TypeError: a tensor is not contiguous, or elsewhere, or has another type.
    """
    for tensor in values:
        if not isinstance(tensor, Tensor):
            continue
        if not tensor.is_cpu:
            raise TypeError(f"tensors for C must be on a CPU, not on {tensor.device}")
        if not tensor.is_contiguous():
            raise TypeError("tensors for C must be contiguous")
        if tensor.dtype not in dtypes:
            raise TypeError(f"tensors for C must be {dtypes[0]}, not {tensor.dtype}")


def why_no_compiler() -> str:
    """Return why ``find_compiler`` finds none, such as "none is found here"."""
    if os.environ.get("CHARRNN_NATIVE") == "0":
        return "CHARRNN_NATIVE=0 asks for none"
    if os.environ.get("CC"):
        return "CC names none"
    return "none is found here"


def find_compiler() -> list[str]:
    """Return the command that compiles C here, or an empty list."""
    if os.environ.get("CHARRNN_NATIVE") == "0":
        return []
    if os.environ.get("CC"):
        try:
            return shlex.split(os.environ["CC"])
        except ValueError:  # an unclosed quote
            return []
    # On macOS gcc and cc are Apple's clang, without OpenMP, or offer to install it. The real gcc
    # has its version in its name there, as Homebrew installs it.
    is_macos = sys.platform == "darwin"
    names = [f"gcc-{version}" for version in range(40, 10, -1)] if is_macos else ["gcc", "cc"]
    found = map(shutil.which, names)
    return [path for path in found if path][:1]


_L = TypeVar("_L", bound=Library)

#: The libraries asked for in this process, or why there is none.
_made: dict[type[Library], Library | str] = {}


def compiled(kind: type[_L]) -> _L | None:
    """Return a library, compiled when it is first asked for; None if it cannot be compiled."""
    if kind not in _made:
        compiler = find_compiler()
        _made[kind] = compile_library(kind, compiler) if compiler else why_no_compiler()
    made = asked_for(kind)
    return made if isinstance(made, kind) else None


def asked_for(kind: type[_L]) -> _L | str | None:
    """Return the library that ``compiled`` gave, or why there is none; None: it was not called."""
    made = _made.get(kind)
    return made if made is None or isinstance(made, (kind, str)) else None


def compile_library(kind: type[_L], compiler: list[str], machine: str = "native") -> _L | str:
    """Compile and load a library; return it, or why that failed.

    Args:
        kind: which library.
        compiler: a command that takes gcc's options.
        machine: the value of ``-march``; left out if the compiler does not know it.
    """
    name, march = shown(shlex.join(compiler)), f"-march={machine}"
    attempts = [[march, _WIDE], [march], []]
    if machine == "native" and _hides_sve():
        attempts = [[]]
    try:
        with tempfile.TemporaryDirectory(prefix="charrnn-", ignore_cleanup_errors=True) as name_of:
            folder = Path(name_of)
            # Copies: a compiler cannot read files inside a zipped package.
            for source in (kind.FILE, *_HEADERS):
                (folder / source).write_bytes((files("charrnn.compute") / source).read_bytes())
            library = folder / "library.so"
            fixed = [*compiler, *_OPTIONS, str(folder / kind.FILE), "-o", str(library)]
            refusals: list[str] = []
            for wishes in attempts:
                complaint = _complaint([*fixed, *wishes], folder)
                if complaint is None:
                    break
                refusals.append(f": {shown(complaint)}" if complaint else "")
            else:
                return f"{name} does not compile it{refusals[-1]}"
            try:
                made = kind(ctypes.CDLL(str(library)))
            except (OSError, AttributeError) as error:  # e.g. the folder is mounted noexec
                return f"what {name} made cannot be loaded: {shown(error)}; TMPDIR names its folder"
            if not wishes:
                made.flaw = "this processor has SVE2 without SVE, which gcc may not expect"
                if refusals:
                    made.flaw = f"{name} does not compile for this processor{refusals[-1]}"
            return made
    except subprocess.TimeoutExpired:
        return f"{name} took more than {_COMPILE_SECONDS} s"
    except OSError as error:  # no such compiler, or the disk is full
        return f"{name} cannot be used: {shown(error)}"


def _complaint(command: list[str], folder: Path) -> str | None:
    """Run a command silently, with its temporary files in a folder.

    A Ctrl-C that is meant for us does not reach it. An exception while we wait for it kills it
    and the processes that it has started.

    Returns:
        None if it succeeds, else the line that seems to say why not; "" if there is none.
    """
    # Not a pipe: a process that the compiler leaves running, such as a cache, would hold it open.
    said = folder / "said"
    with (
        said.open("wb") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={
                "PATH": os.defpath,  # where there is none: gcc looks for its linker along it
                **os.environ,
                "TMPDIR": str(folder),
                "LC_ALL": "C",
            },
            start_new_session=True,
        ) as child,
    ):
        try:
            if child.wait(_COMPILE_SECONDS) == 0:
                return None
        except BaseException:
            # OSError: it has just ended by itself (macOS then says EPERM rather than ESRCH).
            with suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()  # after a Ctrl-C Popen itself would not
            raise
    lines = said.read_text("utf-8", errors="replace").splitlines()
    # This says only that the linker failed, which has said why.
    lines = [line for line in lines if not line.startswith("collect2: error: ld returned")]
    telling = ("error:", "Error:", "cannot", "ld: ")
    return next((line for line in lines if any(word in line for word in telling)), "")


def _hides_sve(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this is a virtual machine that has SVE2 but not the SVE that it builds on.

    Some on Apple's M4 say so; gcc before 14 then uses SVE, which the processor refuses.
    """
    features = cpu_facts(cpuinfo).get("Features", "").split()
    return "sve2" in features and "sve" not in features
