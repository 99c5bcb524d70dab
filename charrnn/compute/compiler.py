"""C files, compiled for the machine that they run on and called with tensors.

A file is compiled when a process first needs it (about half a second), into a folder that is
removed once the code is loaded: so the code always suits the processor, and no stale library
is left behind. Without a C compiler that has OpenMP, callers use
numpy or torch instead.

The environment variable CC names the compiler, as for make; ``CHARRNN_NATIVE=0`` turns
compiling off.

Axis letters: K a product's inner axis, N its columns.
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

from charrnn.config import WeightsName
from charrnn.wording import shown

LEAST_LANES = 4
"""Fewest lanes that are worth a thread: with fewer sums a core's multipliers are not busy."""

_LEAST_BYTES = 1 << 19
"""Fewest bytes of matrices for each of the threads that share out the units."""

_OPTIONS = ["-x", "c", "-std=gnu11", "-O3", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared"]
"""``-x c``: a C++ compiler would otherwise compile C++ and mangle the names. ``-fopenmp``: on Linux
the threads are torch's own, because torch has loaded gcc's OpenMP; clang's would be a second
one, so ``common.h`` refuses clang. ``-fno-trapping-math``: nothing here needs floating-point
traps, and with them gcc cannot vectorise the exponentials for AVX2."""

_WIDE = "-mprefer-vector-width=512"
"""Full-width vectors: gcc would use half the width. Other compilers do not know the option."""

_COMPILE_SECONDS = 60

_HEADERS = ("common.h", "products.h")

_WORDS = {
    torch.bfloat16: (torch.uint16, torch.int16, torch.int32),
    torch.int8: (torch.uint8, torch.int8, torch.int16),
}
"""Types that are multiplied in pairs: the unsigned and the signed integer of the same size, and the
word that holds a pair."""


class Library:
    """A compiled file.

    Args:
        library: the compiled library.

    Attributes:
        FILE: the name of the C file, in this package.
        FUNCTIONS: the file's own functions that return nothing.
        SIZES: those that return a long.
    """

    FILE: ClassVar[str]
    FUNCTIONS: ClassVar[Sequence[str]]
    SIZES: ClassVar[Sequence[str]] = ()

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name in self.FUNCTIONS:
            getattr(library, name).restype = None
        for name in self.SIZES:
            getattr(library, name).restype = ctypes.c_long


class Multiplier(Library):
    """A compiled file that includes ``products.h``.

    Args:
        library: the compiled library.
        tiles: whether products in bf16 may use AMX's tiles.

    Attributes:
        multiplies_bf16: whether the library has bf16 products on this processor, tiles or not.
        multiplies_int8: the same for int8.
    """

    def __init__(self, library: ctypes.CDLL, *, tiles: bool = True) -> None:
        super().__init__(library)
        library.prepare.restype = None
        for name in ("panel_width", "narrow_depth", "byte_depth"):
            getattr(library, name).restype = ctypes.c_long
        library.prepare(ctypes.c_long(tiles))
        self._width: int = library.panel_width()
        self._depths: dict[torch.dtype, int] = {
            torch.float32: 1,
            torch.bfloat16: library.narrow_depth(),
            torch.int8: library.byte_depth(),
        }
        self.multiplies_bf16 = self._depths[torch.bfloat16] > 0
        self.multiplies_int8 = self._depths[torch.int8] > 0

    def _panels(self, weight_KN: Tensor) -> Tensor:
        """Return a matrix in the panels of ``products.h``, padded with zeros, in its own type.

        The shape is [panels, K, width] in float32, [panels, K / 2, width * 2] in bf16 and int8.
        """
        dtype = weight_KN.dtype
        depth = self._depths[dtype]
        is_turned = weight_KN.stride(0) == 1  # its columns are contiguous
        inner, columns = weight_KN.shape
        more_rows, more_columns = -inner % depth, -columns % self._width
        if (more_rows or more_columns) and is_turned:
            weight_KN = torch.nn.functional.pad(weight_KN.t(), (0, more_rows, 0, more_columns)).t()
        elif more_rows or more_columns:
            weight_KN = torch.nn.functional.pad(weight_KN, (0, more_columns, 0, more_rows))

        def split(rows_KN: Tensor) -> Tensor:
            panels = (columns + more_columns) // self._width
            return rows_KN.reshape(-1, panels, self._width).transpose(0, 1)

        if dtype not in _WORDS:
            return split(weight_KN).contiguous()
        # Two rows as one row of words: torch copies that far faster than an axis of length two.
        unsigned, signed, word = _WORDS[dtype]
        if is_turned:
            return split(weight_KN.t().contiguous().view(word).t()).contiguous().view(dtype)
        low, high = split(weight_KN.view(unsigned)[::2]), split(weight_KN.view(signed)[1::2])
        packed = low.to(word, memory_format=torch.contiguous_format)
        return packed.add_(high, alpha=1 << torch.iinfo(signed).bits).view(dtype)


def argument(value: Tensor | int | None) -> ctypes.c_void_p | ctypes.c_long:
    """Return a value as an argument for C: a tensor's address, a null pointer, or a number."""
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return ctypes.c_long(value)


def ways_to_share(lanes: int, nbytes: int, most: int) -> list[tuple[int, bool]]:
    """Return how threads can share out a step: how many, and whether each has its own lanes.

    Threads with their own lanes need not wait for each other. If they share out the units
    instead, each multiplies a part of the matrices by all lanes. That part may fit its core's
    cache, so on a quiet machine it can be several times as fast; on a busy one it is slower. The
    result is the same.

    Args:
        lanes: how many there are.
        nbytes: the size of all matrices.
        most: how many threads there are.
    """
    by_lanes = max(1, min(most, lanes // LEAST_LANES))
    ways = [(by_lanes, True)]
    by_units = min(most, nbytes // _LEAST_BYTES)
    while by_units >= max(2, by_lanes):
        ways.append((by_units, False))
        by_units //= 2
    return ways


def refuse_misreadable(
    *values: Tensor | int | None, dtypes: Sequence[torch.dtype] = (torch.float32, torch.int64)
) -> None:
    """Refuse tensors that C would misread, or read beyond their end.

    Args:
        values: arguments for C; the tensors among them must be contiguous.
        dtypes: the types that a tensor may have.

    Raises:
        AssertionError: a tensor is not contiguous, or has another type.
    """
    tensors = [value for value in values if isinstance(value, Tensor)]
    types = {tensor.dtype for tensor in tensors}
    assert all(tensor.is_contiguous() for tensor in tensors), "they must be contiguous"
    assert types <= {*dtypes}, f"they must be {dtypes[0]}: {types}"


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
    made = _made[kind]
    return made if isinstance(made, kind) else None


def why_none(kind: type[Multiplier], weights: WeightsName = "fp32") -> str | None:
    """Return why ``compiled`` gave no products with such weights, such as "none is found here".

    None if it gave them, or was not called: finding out would mean waiting for a compiler.
    """
    made = _made.get(kind)
    if not isinstance(made, Multiplier):
        assert not isinstance(made, Library)
        return made
    multiplies = {"fp32": True, "bf16": made.multiplies_bf16, "int8": made.multiplies_int8}
    if multiplies[weights]:
        return None
    return f"there are no products in {weights} for this processor"


def compile_library(
    kind: type[_L], compiler: list[str], machine: str = "native", **options: bool
) -> _L | str:
    """Compile and load a library; return it, or why that failed.

    Args:
        kind: which library.
        compiler: a command that takes gcc's options.
        machine: the value of ``-march``; left out if the compiler does not know it.
        options: of the library's class.
    """
    name, march = shown(shlex.join(compiler)), f"-march={machine}"
    try:
        with tempfile.TemporaryDirectory(prefix="charrnn-", ignore_cleanup_errors=True) as name_of:
            folder = Path(name_of)
            # Copies: a compiler cannot read files inside a zipped package.
            for source in (kind.FILE, *_HEADERS):
                (folder / source).write_bytes((files(__package__) / source).read_bytes())
            library = folder / "library.so"
            fixed = [*compiler, *_OPTIONS, str(folder / kind.FILE), "-o", str(library)]
            for wishes in ([march, _WIDE], [march], []):
                complaint = _complaint([*fixed, *wishes], folder)
                if complaint is None:
                    break
            else:
                return f"{name} does not compile it" + (
                    f": {shown(complaint)}" if complaint else ""
                )
            try:
                return kind(ctypes.CDLL(str(library)), **options)
            except (OSError, AttributeError) as error:  # e.g. the folder is mounted noexec
                return f"what {name} made cannot be loaded: {shown(error)}; TMPDIR names its folder"
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
            env={**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"},
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
    return next((line for line in lines if "error:" in line or "cannot" in line), "")
