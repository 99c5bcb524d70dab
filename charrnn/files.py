"""Names become files: those of a command line, and what every Python has.

And how a run's own files are called, by which its folder is known.
"""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
import stat
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from charrnn.errors import CorpusError
from charrnn.wording import reason, shown

#: Held by the process that trains.
LOCK = "lock"
#: A run's log.
LOG = "metrics.jsonl"
#: What a finished run of a comparison came to.
RESULT = "result.json"
#: What a comparison is of.
PLAN = "comparison.json"
#: Files by which a folder is known that a run, or a comparison, writes into while its own text
#: is read: with them a text would be another at every start.
OF_RUNS = ({LOCK, LOG}, {PLAN})
#: How an address on the web begins, also where it has been made a path.
ADDRESS = re.compile(r"(^|/)(https?|ftp):/")
#: What makes a name a pattern.
WILDCARDS = re.compile(r"\[[^]]*\]?|[*?]")
#: Files or folders that a note names.
NAMED = 5


class Found(NamedTuple):
    """The files that some names on a command line stand for."""

    files: tuple[Path, ...]
    explicit: frozenset[Path]
    """Those named themselves, not found in a folder or by a pattern: they must be text."""
    notes: tuple[str, ...]


def find_files(texts: Sequence[str]) -> Found:
    """Return the files that ``texts`` name, in order, each once.

    A name is a file; a folder, which stands for all regular files below it, sorted by
    path, those whose name or folder begins with a dot left out; or a pattern (``*``,
    ``?``, ``[...]``, ``**``), which stands for the files it matches, sorted.

    Raises:
        CorpusError: a name stands for no file, or is neither a file nor a folder.
    """
    found: dict[tuple[int, int], _File] = {}  # by device and inode: links name the same text
    explicit: set[Path] = set()
    notes: list[str] = []
    repeated: list[Path] = []
    for text in texts:
        new, itself = _files_of(text, notes)
        for file in new:
            first = found.setdefault((file.status.st_dev, file.status.st_ino), file)
            if first is not file:
                repeated.append(file.path)
            if itself:
                explicit.add(first.path)
    if repeated:
        notes.append(several(list(dict.fromkeys(repeated)), "named more than once and read once"))
    return Found(
        files=tuple(file.path for file in found.values()),
        explicit=frozenset(explicit),
        notes=tuple(notes),
    )


class _File(NamedTuple):
    """A regular file and its status."""

    path: Path
    status: os.stat_result


def _files_of(name: str, notes: list[str]) -> tuple[list[_File], bool]:
    """Return the files that a name stands for, and whether it is a file's own."""
    try:
        status = os.stat(name)  # noqa: PTH116 - Path("") would be the current folder
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if ADDRESS.search(name):
            raise CorpusError(
                f"{shown(name)} is an address, not a file: download it first, for example with "
                "curl -LO"
            ) from None
        if not glob.has_magic(name) or "\0" in name:
            raise cannot_read(name, error) from None
        matches = sorted(_expand(name))
        left_out: list[str] = []
        if files := _regular_files(_outside_runs(name, matches, left_out), left_out):
            notes += left_out
            return files, False
        why = "; ".join(left_out) or "check its spelling"
        raise CorpusError(f"no file matches the pattern {shown(name)}: {why}") from None
    if stat.S_ISDIR(status.st_mode):
        return _files_below(name, notes), False
    if stat.S_ISREG(status.st_mode):
        return [_File(Path(name), status)], True
    raise CorpusError(
        f"{shown(name)} is neither a file nor a folder: to read a pipe, pipe it into -"
    )


def _expand(pattern: str) -> list[Path]:
    """Return what a pattern matches, without hidden files and folders that it does not name."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return [Path(name) for name in glob.glob(pattern)]  # noqa: PTH207 - Path's has hidden ones
    at = parts.index("**")
    roots = _expand(str(Path(*parts[:at]))) if at else [Path()]
    within = [Path(glob.escape(str(folder))) for folder in _folders_below(roots)]
    rest = parts[at + 1 :] or ("*",)
    return list(dict.fromkeys(p for folder in within for p in _expand(str(folder.joinpath(*rest)))))


def _folders_below(folders: list[Path]) -> Iterator[Path]:
    """Yield folders and those below them but hidden ones, through links, each once.

    By its shortest path: a link may lead back up, or to what is here anyway.
    """
    seen: set[tuple[int, int]] = set()
    while folders:
        below = []
        for folder in folders:
            with suppress(OSError):
                status = folder.stat()
                if (status.st_dev, status.st_ino) in seen or not stat.S_ISDIR(status.st_mode):
                    continue
                seen.add((status.st_dev, status.st_ino))
                yield folder
                below += [path for path in folder.iterdir() if not path.name.startswith(".")]
        folders = sorted(below)


def _files_below(folder: str, notes: list[str]) -> list[_File]:
    """Return the regular files below a folder, sorted by path, without hidden ones and runs'."""
    closed: list[Path] = []
    runs: list[Path] = []
    paths: list[Path] = []
    for parent, folders, names in os.walk(
        folder, onerror=lambda e: closed.append(Path(e.filename))
    ):
        if _is_of_run(names):
            runs.append(Path(parent))
            folders[:] = names[:] = []
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    if closed:
        notes.append(several(closed, "left out (may not be read)", noun="folder"))
    _note_runs(runs, notes)
    return _regular_files(sorted(paths), notes)


def _outside_runs(pattern: str, matches: list[Path], notes: list[str]) -> list[Path]:
    """Return a pattern's matches that are in no run's folder, at or below its fixed part."""
    fixed = _fixed(Path(pattern))
    is_run = cache(_is_run)
    runs: set[Path] = set()
    outside = []
    for match in matches:
        # The outermost names them all.
        if own := [folder for folder in _folders(fixed, match) if is_run(folder)]:
            runs.add(own[-1])
        else:
            outside.append(match)
    _note_runs(runs, notes)
    return outside


def _fixed(pattern: Path) -> Path:
    """Return what a pattern begins with that is none: the folder it looks in."""
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _folders(fixed: Path, path: Path) -> list[Path]:
    """Return the folders that a path is in at or below a folder, innermost first."""
    return [folder for folder in path.parents if folder == fixed or fixed in folder.parents]


def text_within(texts: Sequence[str], folder: Path) -> Path | None:
    """Return a file that would be left out were a folder a run's; None: none would.

    Args:
        texts: as for ``find_files``.
        folder: to become that of a run or a comparison.

    Raises:
        CorpusError: as of ``find_files``.
    """
    if not folder.is_dir():
        return None
    is_it = cache(folder.samefile)
    for name in texts:
        fixed, _ = _looked_in(name)
        for path, status in _files_of(name, [])[0]:
            # What is empty changes nothing by being left out.
            if status.st_size > 0 and any(map(is_it, _folders(fixed, path))):
                return path
    return None


def takes_in(texts: Sequence[str], path: Path) -> str | None:
    """Return the first of ``texts`` that a file may change by being written; None: none.

    Args:
        texts: as for ``find_files``.
        path: the file's, whether there is one already or not.
    """
    there = path.stat() if path.exists() else None
    for name in filter(None, texts):
        with suppress(CorpusError, ValueError):  # ValueError: no file can be called so here
            if there is None:
                is_in_it = _may_find(name, path)
            else:  # by whatever name, or through a link
                files = _files_of(name, [])[0]
                is_in_it = any(os.path.samestat(there, file.status) for file in files)
            if is_in_it:
                return name
    return None


def _may_find(name: str, new: Path) -> bool:
    """Whether a name may stand for a new file, too.

    That is any below the folder it looks in, if it is called as a pattern says, and is in no run's
    folder.
    """
    fixed, pattern = _looked_in(name)
    # Links count as they are written, and as they lead.
    folders = {Path(follow(fixed)) for follow in (os.path.abspath, os.path.realpath)}
    places = {Path(follow(new)) for follow in (os.path.abspath, os.path.realpath)}
    places.add(Path(os.path.realpath(new.parent), new.name))
    return any(
        folder in place.parents
        and _may_match(place.relative_to(folder).parts, pattern)
        and not any(map(_is_run, _folders(folder, place)))
        for folder in folders
        for place in places
    )


def _may_match(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a pattern matches, part by part; with ** in it, whether its last part does."""
    if "**" in pattern:
        parts, pattern = parts[-1:], pattern[-1:]
    return len(parts) == len(pattern) and all(map(fnmatch.fnmatchcase, parts, pattern))


def _looked_in(name: str) -> tuple[Path, tuple[str, ...]]:
    """Return the folder where a name's files are looked for, or the file, and how they are called.

    The latter is what a pattern has below that folder; a file or a folder has any.
    """
    path = Path(name)
    if not glob.has_magic(name) or os.path.exists(name):  # noqa: PTH110 - which never raises
        return path, ("**", "*")
    fixed = _fixed(path)
    return fixed, path.parts[len(fixed.parts) :]


def _is_of_run(names: Iterable[str]) -> bool:
    """Whether these are the names in a folder of a run or a comparison."""
    there = set(names)
    return any(marks <= there for marks in OF_RUNS)


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's or a comparison's; one that may not be read is none."""
    try:
        return _is_of_run(entry.name for entry in folder.iterdir())
    except OSError:
        return False


def _note_runs(runs: Iterable[Path], notes: list[str]) -> None:
    if found := sorted(runs):
        notes.append(several(found, "left out (written by a run)", noun="folder"))


def _regular_files(paths: list[Path], notes: list[str]) -> list[_File]:
    """Return those of some paths that are regular files, or links to one."""
    files: list[_File] = []
    closed: list[Path] = []
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:  # a link to nowhere
            continue
        except OSError:
            closed.append(path)
            continue
        if stat.S_ISREG(status.st_mode):
            files.append(_File(path, status))
    if closed:
        notes.append(several(closed, "left out (may not be read)"))
    return files


def absolute_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the names of texts as they hold from any folder: files, folders, patterns, "-"."""

    def absolute(name: str) -> str:
        path = Path(name)
        if name in ("", "-") or path.is_absolute():
            return name  # an empty name is refused where files are found
        # In front of a pattern the current folder's name must not be read as one.
        is_there = os.path.exists(path)  # noqa: PTH110 - which never raises
        folder = Path.cwd() if is_there else Path(glob.escape(str(Path.cwd())))
        return str(folder / path)

    return tuple(map(absolute, texts))


def embedded_corpus() -> list[str]:
    """Return the files of the text that every machine with Python has.

    They are the ``.py`` files of the interpreter's own standard library in sorted
    order, without its tests and without installed packages: about 12 MB.

    Raises:
        CorpusError: this Python came without its sources.
    """
    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    paths: list[Path] = []
    for parent, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in left_out]
        paths += [Path(parent, name) for name in names if name.endswith(".py")]
    if not paths:
        raise CorpusError(f"this Python has no sources in {shown(library)}: name a text to use")
    once: dict[Path, str] = {}
    for path in sorted(paths):
        once.setdefault(path.resolve(), str(path))  # Debian has a file with two names
    return list(once.values())


class NotTextError(CorpusError):
    """A file that cannot be read as text: left out where it was not named itself."""

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        #: Why the file could not be read at all; None: it is not text.
        self.reason = reason


def cannot_read(path: str | Path, error: OSError | ValueError) -> NotTextError:
    """Return what is said of a file that the system does not let us read."""
    if isinstance(error, FileNotFoundError):
        return NotTextError(f"there is no file {shown(path) or repr('')}: check its name", "gone")
    if isinstance(error, PermissionError):
        return NotTextError(
            f"{shown(path)} may not be read: check its permissions", "may not be read"
        )
    said = reason(error) if isinstance(error, OSError) else str(error)
    return NotTextError(f"cannot read {shown(path)}: {said}", f"cannot be read: {said}")


def several(paths: list[Path], what: str, noun: str = "file") -> str:
    """Return a note that something holds for one or several paths."""
    if len(paths) == 1:
        return f"{shown(paths[0])}: {what}"
    names = ", ".join(map(shown, paths[:NAMED]))
    more = f" and {len(paths) - NAMED:,} more" if len(paths) > NAMED else ""
    return f"{len(paths):,} {noun}s, {names}{more}: {what}"


def name_of(texts: Sequence[str]) -> str:
    """Return what texts are called: a file, the folder of all, or what is fixed of a pattern."""
    if texts[0] == "-":
        return "stdin"
    paths = [Path(os.path.abspath(name)) for name in texts]  # noqa: PTH100 - without ..
    stem, folder = paths[0].stem.lstrip("."), paths[0].parent
    # Not by methods of paths, which raise what is better said where the text is looked at.
    if os.path.isdir(paths[0]):  # noqa: PTH112
        stem = paths[0].name.lstrip(".")
    elif not os.path.exists(paths[0]):  # noqa: PTH110
        above = Path(texts[0]).parent
        fixed = _fixed(above)
        stem = WILDCARDS.sub("", stem).strip("-_. ") if fixed == above else ""
        folder = Path(os.path.abspath(fixed))  # noqa: PTH100
    are_all_there = len(paths) > 1 and {path.parent for path in paths} == {folder}
    if not stem or (are_all_there and folder != Path.cwd()):
        stem = folder.name
    return stem or "text"
