"""C files of this package, compiled for the machine that they run on.

A file is compiled by each process that needs it (a second at most), in a folder that is removed at
once: so the code always suits the processor, and no stale library is left behind. A command begins
(``compiling``) before it imports torch, which takes as long; so where there are two cores, hardly
anybody waits. Without a C compiler that has OpenMP, callers use numpy or torch instead.

The environment variable CC names the compiler, as for make; ``CHARRNN_NATIVE=0`` turns
compiling off.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from threading import Lock

from charrnn.compute.processor import cpu_facts
from charrnn.limits import allowed_cores, cores
from charrnn.wording import shown

#: What training on a CPU calls, in the order in which it does, and what scoring and sampling call.
TRAINING, SCORING, SAMPLING = ("recurrence.c", "passes.c"), ("recurrence.c",), ("step.c",)

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


class NotCompiledError(Exception):
    """A file could not be compiled; the message says why."""


class Build:
    """A C file's way to a library.

    Args:
        file: the file's name, in this package.
        compiler: a command that takes gcc's options.
        machine: the value of ``-march``; left out if the compiler does not know it.

    Attributes:
        flaw: why it was compiled for any processor rather than for this one; None: it was not.
    """

    def __init__(self, file: str, compiler: Sequence[str], machine: str = "native") -> None:
        self.flaw: str | None = None
        self.compiler = shown(shlex.join(compiler))
        self._file, self._command, self._machine = file, compiler, machine
        self._child: subprocess.Popen[bytes] | None = None
        self._is_over = False
        self._starting = Lock()
        self._begun: Future[bytes] | None = None

    def begin(self, thread: Executor) -> None:
        """Compile the file in another thread."""
        self._begun = thread.submit(self._make)

    def library(self) -> bytes:
        """Return the library, as soon as it is made.

        Raises:
            NotCompiledError: the file cannot be compiled, or ``end`` was called.
        """
        return self._make() if self._begun is None else self._begun.result()

    def end(self) -> None:
        """End the compiler and the processes that it has started, if it runs."""
        with self._starting:
            self._is_over = True
        if self._child is not None and self._child.poll() is None:
            # OSError: it has just ended by itself (macOS then says EPERM rather than ESRCH).
            with suppress(OSError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()  # after a Ctrl-C Popen itself would not

    def _make(self) -> bytes:
        try:
            with tempfile.TemporaryDirectory(
                prefix="charrnn-", ignore_cleanup_errors=True
            ) as folder:
                return self._made_in(Path(folder))
        except subprocess.TimeoutExpired:
            raise NotCompiledError(f"{self.compiler} took more than {_COMPILE_SECONDS} s") from None
        except OSError as error:  # no such compiler, or the disk is full
            raise NotCompiledError(f"{self.compiler} cannot be used: {shown(error)}") from error

    def _made_in(self, folder: Path) -> bytes:
        march = f"-march={self._machine}"
        attempts = [[march, _WIDE], [march], []]
        if self._machine == "native" and _hides_sve():
            attempts = [[]]
        # Copies: a compiler cannot read files inside a zipped package.
        for source in (self._file, *_HEADERS):
            (folder / source).write_bytes((files("charrnn.compute") / source).read_bytes())
        library = folder / "library.so"
        fixed = [*self._command, *_OPTIONS, str(folder / self._file), "-o", str(library)]
        refusals: list[str] = []
        for wishes in attempts:
            complaint = self._complaint([*fixed, *wishes], folder)
            if complaint is None:
                break
            refusals.append(f": {shown(complaint)}" if complaint else "")
        else:
            raise NotCompiledError(f"{self.compiler} does not compile it{refusals[-1]}")
        if not wishes:
            self.flaw = "this processor has SVE2 without SVE, which gcc may not expect"
            if refusals:
                self.flaw = f"{self.compiler} does not compile for this processor{refusals[-1]}"
        return library.read_bytes()

    def _complaint(self, command: Sequence[str], folder: Path) -> str | None:
        """Run a command silently, with its temporary files in a folder.

        A Ctrl-C that is meant for us does not reach it. An exception while we wait for it ends it.

        Returns:
            None if it succeeds, else the line that seems to say why not; "" if there is none.
        """
        # Not a pipe: a process that the compiler leaves running, such as a cache, would hold it
        # open.
        said = folder / "said"
        with said.open("wb") as errors:
            with self._starting:
                if self._is_over:
                    raise NotCompiledError("it was ended")
                self._child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env={
                        # Where there is none: gcc looks for its linker along it.
                        "PATH": os.defpath,
                        **os.environ,
                        "TMPDIR": str(folder),
                        "LC_ALL": "C",
                    },
                    start_new_session=True,
                )
            try:
                if self._child.wait(_COMPILE_SECONDS) == 0:
                    return None
            except BaseException:
                self.end()
                raise
        lines = said.read_text("utf-8", errors="replace").splitlines()
        # This says only that the linker failed, which has said why.
        lines = [line for line in lines if not line.startswith("collect2: error: ld returned")]
        telling = ("error:", "Error:", "cannot", "ld: ")
        return next((line for line in lines if any(word in line for word in telling)), "")


#: The files that are being compiled ahead, and those that were asked for in this process.
_ahead: dict[str, Build] = {}
_taken: set[str] = set()


@contextmanager
def compiling(names: Sequence[str], device: str) -> Iterator[Callable[[], None]]:
    """Compile files in the background, one after the other, until the block ends.

    Not at the same time: torch, which is imported meanwhile, would have to share its core. For the
    same reason nothing is begun where there is only one.

    Args:
        names: the files, in the order in which they are needed; each is compiled once in a process.
        device: where the user wants to compute; on a GPU nothing that is compiled is called.

    Yields:
        What ends it at once, for a process that will not get to the block's end.
    """
    compiler = find_compiler() if device in ("auto", "cpu") and _has_second_core() else []
    builds = {name: Build(name, compiler) for name in names if compiler and name not in _taken}
    thread = ThreadPoolExecutor(max_workers=1)

    def end() -> None:
        thread.shutdown(wait=False, cancel_futures=True)
        for build in builds.values():
            build.end()
        thread.shutdown()

    try:
        for build in builds.values():
            build.begin(thread)
        _ahead.update(builds)
        yield end
    finally:
        for name in builds:
            _ahead.pop(name, None)
        end()


def take(name: str) -> Build | None:
    """Return the build of a file that was begun ahead; None: there is none.

    ``compiling`` does not compile it again.
    """
    _taken.add(name)
    return _ahead.pop(name, None)


def _has_second_core() -> bool:
    return (allowed_cores() or cores()) > 1


def _hides_sve(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this is a virtual machine that has SVE2 but not the SVE that it builds on.

    Some on Apple's M4 say so; gcc before 14 then uses SVE, which the processor refuses.
    """
    features = cpu_facts(cpuinfo).get("Features", "").split()
    return "sve2" in features and "sve" not in features
