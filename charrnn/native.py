"""The time-step loops of ``recurrence.c``, compiled for the machine that they run on.

The first loop that a process runs on a CPU compiles the file (a quarter to half a second) into
a folder that is removed again once the code is loaded: so it always suits the processor, and
nothing is left behind that could suit another. Where there is no C compiler with OpenMP,
``loops`` gives None, ``why_none`` says why, and the callers have other ways.

The environment variable CC names the compiler, as for make; ``CHARRNN_NATIVE=0`` asks for
none.

Axis letters: T time, B lanes, D different inputs, H hidden, G gates, apart (GH) or stacked as rows
(G); K a product's inner axis, N its columns.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor

from charrnn.wording import shown

__all__ = ["Loops", "compile_loops", "find_compiler", "loops", "why_none"]

_OPTIONS = ["-x", "c", "-std=gnu11", "-O3", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared"]
"""C++ compilers are told that it is C: they would compile it as C++, under other names. OpenMP's
threads are torch's own: gcc's library is the one that torch has loaded. Nothing here wants a trap
on an overflow; if something did, gcc could not compute a vector of exponentials with AVX2."""

_WIDE = "-mprefer-vector-width=512"
"""Vectors as wide as the processor's; gcc takes half of it, others do not know the option."""

_COMPILE_SECONDS = 60

_LEAST_LANES = 4
"""Fewest lanes that are worth a thread: as many sums as keep a core's multipliers busy."""

_FUNCTIONS = [f"{cell}_{way}" for cell in ("rnn", "lstm", "gru") for way in ("forward", "backward")]


class Loops:
    """The functions of ``recurrence.c``, on tensors.

    All tensors are float32 (``which_TB`` int64), contiguous and on a CPU; sizes, and what
    ``which_TB`` names, are the caller's word. What is said to be returned is allocated here.
    ``narrow`` asks for recurrent products in bf16, which are in float32 where the processor has
    none.

    Args:
        library: compiled.
        tiles: whether products in bf16 may use AMX's tiles.

    Attributes:
        multiplies_bf16: whether the processor has products in bf16, tiles or not.
    """

    def __init__(self, library: ctypes.CDLL, *, tiles: bool = True) -> None:
        self._library = library
        for name in ("prepare", *_FUNCTIONS):
            getattr(library, name).restype = None
        for name in ("panel_width", "narrow_depth"):
            getattr(library, name).restype = ctypes.c_long
        library.prepare(ctypes.c_long(tiles))
        self._width: int = library.panel_width()
        self._depth: int = library.narrow_depth()
        self.multiplies_bf16 = self._depth > 0

    def rnn_forward(
        self,
        narrow: bool,
        weight_HH: Tensor,
        projected: Tensor,
        which_TB: Tensor | None,
        states_TBH: Tensor,
    ) -> None:
        """Fill in the states after the first, [T + 1, B, H].

        Args:
            narrow: see the class.
            weight_HH: U.
            projected: W x + b of every time step, [T, B, H], or of D different x, [D, H].
            which_TB: Which of these each time step reads; None: its own.
            states_TBH: Room for all states, the first one given.
        """
        tensors = (projected, which_TB, states_TBH)
        self._run("rnn_forward", narrow, weight_HH.t(), states_TBH, *tensors)

    def rnn_backward(
        self,
        narrow: bool,
        weight_HH: Tensor,
        states_TBH: Tensor,
        d_out_TBH: Tensor,
        dh_BH: Tensor,
    ) -> Tensor:
        """Return the gradient before each tanh, [T, B, H].

        Args:
            narrow: see the class.
            weight_HH: U.
            states_TBH: All states, [T + 1, B, H].
            d_out_TBH: The gradient of the outputs.
            dh_BH: The gradient of the last state; becomes that of the first.
        """
        d_TBH = torch.empty_like(d_out_TBH)
        tensors = (states_TBH, d_out_TBH, dh_BH, d_TBH)
        self._run("rnn_backward", narrow, weight_HH, states_TBH, *tensors)
        return d_TBH

    def lstm_forward(
        self,
        narrow: bool,
        weight_GH: Tensor,
        projected: Tensor,
        which_TB: Tensor | None,
        states_TBH: Tensor,
        cells_TBH: Tensor,
        keep: bool,
    ) -> Tensor:
        """Fill in the states and cells after the first, [T + 1, B, H].

        Args:
            narrow: see the class.
            weight_GH: U, [4H, H].
            projected: W x + b of every time step, [T, B, 4H], or of D different x, [D, 4H].
            which_TB: See ``rnn_forward``.
            states_TBH: Room for all states, the first one given.
            cells_TBH: So of all cells.
            keep: Whether a backward loop will follow.

        Returns:
            i, f, g, o and tanh(c), [T, B, 5, H]; without ``keep`` of some step, [1, B, 5, H].
        """
        kept_TBGH = _room_to_keep(states_TBH, 5, keep)
        tensors = (projected, which_TB, states_TBH, cells_TBH, keep, kept_TBGH)
        self._run("lstm_forward", narrow, weight_GH.t(), states_TBH, *tensors)
        return kept_TBGH

    def lstm_backward(
        self,
        narrow: bool,
        weight_GH: Tensor,
        cells_TBH: Tensor,
        kept_TBGH: Tensor,
        d_out_TBH: Tensor,
        dh_BH: Tensor,
        dc_BH: Tensor,
    ) -> Tensor:
        """Return the gradients of i, f, g and o before their functions, [T, B, 4H].

        Args:
            narrow: see the class.
            weight_GH: U.
            cells_TBH: All cells, [T + 1, B, H].
            kept_TBGH: What the forward loop kept.
            d_out_TBH: The gradient of the outputs.
            dh_BH: The gradient of the last state; becomes that of the first.
            dc_BH: The gradient of the last cell; becomes that of the first.
        """
        d_TBG = d_out_TBH.new_empty(*d_out_TBH.shape[:2], len(weight_GH))
        tensors = (cells_TBH, kept_TBGH, d_out_TBH, dh_BH, dc_BH, d_TBG)
        self._run("lstm_backward", narrow, weight_GH, cells_TBH, *tensors)
        return d_TBG

    def gru_forward(
        self,
        narrow: bool,
        weight_GH: Tensor,
        projected: Tensor,
        which_TB: Tensor | None,
        bias_H: Tensor,
        states_TBH: Tensor,
        keep: bool,
    ) -> Tensor:
        """Fill in the states after the first, [T + 1, B, H].

        Args:
            narrow: see the class.
            weight_GH: U, [3H, H].
            projected: W x + b of every time step, [T, B, 3H], or of D different x, [D, 3H].
            which_TB: See ``rnn_forward``.
            bias_H: The candidate's second bias.
            states_TBH: Room for all states, the first one given.
            keep: Whether a backward loop will follow.

        Returns:
            r, z, m and n, [T, B, 4, H], where ``n = tanh(W x + b + r * m)`` and
            ``m = U h + bias``; without ``keep`` of some step, [1, B, 4, H].
        """
        kept_TBGH = _room_to_keep(states_TBH, 4, keep)
        tensors = (projected, which_TB, bias_H, states_TBH, keep, kept_TBGH)
        self._run("gru_forward", narrow, weight_GH.t(), states_TBH, *tensors)
        return kept_TBGH

    def gru_backward(
        self,
        narrow: bool,
        weight_GH: Tensor,
        states_TBH: Tensor,
        kept_TBGH: Tensor,
        d_out_TBH: Tensor,
        dh_BH: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of r and z before their sigmas and of m, [T, B, 3H]; and of n.

        Args:
            narrow: see the class.
            weight_GH: U.
            states_TBH: All states, [T + 1, B, H].
            kept_TBGH: What the forward loop kept.
            d_out_TBH: The gradient of the outputs.
            dh_BH: The gradient of the last state; becomes that of the first.
        """
        d_n_TBH = torch.empty_like(d_out_TBH)
        d_TBG = d_n_TBH.new_empty(*d_n_TBH.shape[:2], len(weight_GH))
        tensors = (states_TBH, kept_TBGH, d_out_TBH, dh_BH, d_TBG, d_n_TBH)
        self._run("gru_backward", narrow, weight_GH, states_TBH, *tensors)
        return d_TBG, d_n_TBH

    def _run(
        self,
        name: str,
        narrow: bool,
        weight_KN: Tensor,
        states_TBH: Tensor,
        *rest: Tensor | bool | None,
    ) -> None:
        """Call a function for as many steps, lanes and units as the states have."""
        states, lanes, hidden = states_TBH.shape
        threads = max(1, min(torch.get_num_threads(), lanes // _LEAST_LANES))
        narrow = narrow and self.multiplies_bf16
        panels = self._panels(weight_KN, narrow)
        # The library's room_of: sums, and what is multiplied in bf16.
        room = states_TBH.new_empty(lanes * (panels.shape[0] * self._width + panels.shape[1] * 2))
        # C would read another layout or type as other numbers, or beyond its end.
        tensors = [tensor for tensor in (*rest, room) if isinstance(tensor, Tensor)]
        types = {tensor.dtype for tensor in (weight_KN, *tensors)}
        assert all(tensor.is_contiguous() for tensor in tensors), "they must be contiguous"
        assert types <= {torch.float32, torch.int64}, f"they must be float32: {types}"
        function: Callable[..., None] = getattr(self._library, name)
        sizes = (threads, narrow, states - 1, lanes, hidden)
        function(*map(_argument, (*sizes, panels, *rest, room)))

    def _panels(self, weight_KN: Tensor, narrow: bool) -> Tensor:
        """Return a matrix as ``recurrence.c`` has it, filled up with zeros.

        [panels, K, width] in float32, [panels, K / 2, width, 2] in bf16.
        """
        width, pair = self._width, 2 if narrow else 1
        inner, columns = weight_KN.shape
        more_rows = -inner % self._depth if narrow else 0
        more_columns = -columns % width
        if more_rows or more_columns:
            weight_KN = torch.nn.functional.pad(weight_KN, (0, more_columns, 0, more_rows))
        if narrow:
            weight_KN = weight_KN.bfloat16()
        split = weight_KN.reshape(-1, pair, (columns + more_columns) // width, width)
        return split.permute(2, 0, 3, 1).contiguous()


def _room_to_keep(states_TBH: Tensor, gates: int, keep: bool) -> Tensor:
    states, lanes, hidden = states_TBH.shape
    return states_TBH.new_empty(states - 1 if keep else 1, lanes, gates, hidden)


def _argument(value: Tensor | int | None) -> ctypes.c_void_p | ctypes.c_long:
    """Return what C gets of a tensor, its address, or of none, or of a number."""
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return ctypes.c_long(value)


def loops() -> Loops | None:
    """Return the compiled loops, or None where there is no compiler for them."""
    compiled = _compiled()
    return compiled if isinstance(compiled, Loops) else None


def why_none() -> str | None:
    """Return why there are no compiled loops, as "none is found here"; None if there are."""
    compiled = _compiled()
    return None if isinstance(compiled, Loops) else compiled


@cache
def _compiled() -> Loops | str:
    if compiler := find_compiler():
        return compile_loops(compiler)
    if os.environ.get("CHARRNN_NATIVE") == "0":
        return "CHARRNN_NATIVE=0 asks for none"
    return "CC names none" if os.environ.get("CC") else "none is found here"


def find_compiler() -> list[str]:
    """Return the command that compiles C here, or an empty list."""
    if os.environ.get("CHARRNN_NATIVE") == "0":
        return []
    if os.environ.get("CC"):
        try:
            return shlex.split(os.environ["CC"])
        except ValueError:  # a quote that is never closed names no compiler
            return []
    found = (shutil.which(name) for name in ("gcc", "cc"))
    return [path for path in found if path][:1]


def compile_loops(
    compiler: list[str], machine: str = "native", *, tiles: bool = True
) -> Loops | str:
    """Return the loops as a compiler makes them, or why it does not.

    Args:
        compiler: a command that takes gcc's options.
        machine: its ``-march``; left out where the compiler does not know it.
        tiles: see ``Loops``.
    """
    name, march = shown(shlex.join(compiler)), f"-march={machine}"
    try:
        with (
            as_file(files("charrnn") / "recurrence.c") as source,
            tempfile.TemporaryDirectory(prefix="charrnn-", ignore_cleanup_errors=True) as folder,
        ):
            library = Path(folder) / "recurrence.so"
            fixed = [*compiler, *_OPTIONS, str(source), "-o", str(library)]
            for wishes in ([march, _WIDE], [march], []):
                complaint = _complaint([*fixed, *wishes], Path(folder))
                if complaint is None:
                    break
            else:
                return f"{name} does not compile it" + (
                    f": {shown(complaint)}" if complaint else ""
                )
            try:
                return Loops(ctypes.CDLL(str(library)), tiles=tiles)
            except OSError as error:  # of a folder from which nothing may be run, say
                return f"what {name} made cannot be loaded: {shown(error)}; TMPDIR names its folder"
    except subprocess.TimeoutExpired:
        return f"{name} took more than {_COMPILE_SECONDS} s"
    except OSError as error:  # no such compiler, or no room
        return f"{name} cannot be used: {shown(error)}"


def _complaint(command: list[str], folder: Path) -> str | None:
    """Run a command without a word, its temporary files in a folder.

    A Ctrl-C that is meant for us does not reach it; whatever ends the waiting ends it, and
    the processes that it has started.

    Returns:
        None if it succeeds, else the line in which it says why not, as far as that can be told.
    """
    # Not a pipe: what a compiler leaves running, such as a cache, would hold that open.
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
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()  # Popen would not, after a Ctrl-C
            raise
    lines = said.read_text("utf-8", errors="replace").splitlines()
    return next((line for line in lines if "error:" in line or "cannot" in line), "")
