"""Compiled C, called with tensors."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from charrnn.compute.compiler import (
    Build,
    NotCompiledError,
    find_compiler,
    take,
    why_no_compiler,
)
from charrnn.wording import shown


class Library:
    """A compiled file.

    Args:
        library: the compiled library.

    Attributes:
        FILE: the name of the C file, in this package.
        LONGS: the file's own functions that return something, a long.
        flaw: why it was compiled for any processor rather than for this one; None: it was not.
    """

    FILE: ClassVar[str]
    LONGS: ClassVar[Sequence[str]]

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.flaw: str | None = None
        for name in self.LONGS:
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


_L = TypeVar("_L", bound=Library)

#: The libraries asked for in this process, or why there is none.
_made: dict[type[Library], Library | str] = {}


def compiled(kind: type[_L]) -> _L | None:
    """Return a library, compiled when it is first asked for; None if it cannot be compiled."""
    made = compiled_or_why(kind)
    return None if isinstance(made, str) else made


def compiled_or_why(kind: type[_L]) -> _L | str:
    """Return what ``compiled`` does, or why there is none, such as "none is found here"."""
    if kind not in _made:
        if build := take(kind.FILE):
            _made[kind] = _load(kind, build)
        elif compiler := find_compiler():
            _made[kind] = compile_library(kind, compiler)
        else:
            _made[kind] = why_no_compiler()
    made = _made[kind]
    assert isinstance(made, (kind, str))
    return made


def compile_library(kind: type[_L], compiler: Sequence[str], machine: str = "native") -> _L | str:
    """Compile and load a library; return it, or why that failed.

    Args:
        kind: which library.
        compiler: a command that takes gcc's options.
        machine: the value of ``-march``.
    """
    return _load(kind, Build(kind.FILE, compiler, machine))


def _load(kind: type[_L], build: Build) -> _L | str:
    """Load what a build makes; return the library, or why there is none."""
    try:
        code = build.library()
        with tempfile.TemporaryDirectory(prefix="charrnn-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "library.so"
            path.write_bytes(code)
            made = kind(ctypes.CDLL(str(path)))
    except NotCompiledError as error:
        return str(error)
    except (OSError, AttributeError) as error:  # e.g. the folder is mounted noexec
        compiler = build.compiler
        return f"what {compiler} made cannot be loaded: {shown(error)}; TMPDIR names its folder"
    made.flaw = build.flaw
    return made
