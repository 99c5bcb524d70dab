"""Turn names into files: those on a command line, and the embedded corpus."""

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
from charrnn.layout import OF_RUNS
from charrnn.wording import reason, shown

#: The beginning of a web address, also after its conversion to a path.
ADDRESS = re.compile(r"(^|/)(https?|ftp):/")
#: The wildcards of a pattern.
WILDCARDS = re.compile(r"\[[^]]*\]?|[*?]")
#: Most bytes of a name made from texts.
LONGEST_NAME = 200
#: How many files or folders a note lists by name.
NAMED = 5


class Found(NamedTuple):
    """The files that some names on a command line stand for."""

    files: tuple[Path, ...]
    explicit: frozenset[Path]
    """Those named directly, not found in a folder or by a pattern: they must be text."""
    notes: tuple[str, ...]


def find_files(texts: Sequence[str]) -> Found:
    """Return the files that ``texts`` name, in order, each once.

    A name is a file; a folder, which stands for all regular files below it, sorted by
    path; or a pattern (``*``, ``?``, ``[...]``, ``**``), which stands for the files it
    matches, sorted. Both leave out the folders of runs, and hidden files and folders
    unless the pattern names them.

    Raises:
        CorpusError: a name stands for no file, or is neither a file nor a folder.
    """
    found: dict[tuple[int, int], _File] = {}  # by device and inode, so that links count as one file
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
    """Return the files that a name stands for, and whether it names a file directly."""
    try:
        status = os.stat(name)  # noqa: PTH116 - Path("") would be the current folder
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        if ADDRESS.search(name):
            raise CorpusError(
                f"{shown(name)} is an address, not a file: download it first, for example with "
                "curl -LO"
            ) from None
        if not glob.has_magic(name) or isinstance(error, ValueError):
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
        f"{shown(name)} is neither a file nor a folder: save its text as a file first (train's "
        "TEXT, and --text, may also be a pipe, as -)"
    )


def _expand(pattern: str) -> list[Path]:
    """Return a pattern's matches; hidden files and folders only where it names them."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return [Path(name) for name in glob.glob(pattern)]  # noqa: PTH207 - Path's has hidden ones
    at = parts.index("**")
    roots = _expand(str(Path(*parts[:at]))) if at else [Path()]
    within = [Path(glob.escape(str(folder))) for folder in _folders_below(roots)]
    rest = parts[at + 1 :] or ("*",)
    return list(dict.fromkeys(p for folder in within for p in _expand(str(folder.joinpath(*rest)))))


def _folders_below(folders: list[Path]) -> Iterator[Path]:
    """Yield folders and all but the hidden folders below them, following links.

    Each once, by its shortest path: a link may lead back up, or to a folder seen already.
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
    """Return the regular files below a folder, sorted by path.

    Without hidden ones and, with a note, those of runs and of linked folders: a link may lead
    anywhere.
    """
    closed: list[Path] = []
    runs: list[Path] = []
    linked: list[Path] = []
    paths: list[Path] = []
    for parent, folders, names in os.walk(
        folder, onerror=lambda e: closed.append(Path(e.filename))
    ):
        if _is_of_run(names):
            runs.append(Path(parent))
            folders[:] = names[:] = []
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked += [path for name in folders if (path := Path(parent, name)).is_symlink()]
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    if closed:
        notes.append(several(closed, "left out (may not be read)", noun="folder"))
    if linked:
        what = "left out (a link; to read it too, name it)"
        notes.append(several(sorted(linked), what, noun="folder"))
    _note_runs(runs, notes)
    return _regular_files(sorted(paths), notes)


def _outside_runs(pattern: str, matches: list[Path], notes: list[str]) -> list[Path]:
    """Return a pattern's matches, without those in a run's folder at or below its fixed part."""
    fixed = _fixed(Path(pattern))
    is_run = cache(_is_run)

    @cache  # a folder may have many matches
    def run_around(folder: Path) -> Path | None:
        # The note names the outermost, which includes the others.
        return next((one for one in reversed(_folders(fixed, folder)) if is_run(one)), None)

    runs: set[Path] = set()
    outside = []
    for match in matches:
        if (run := run_around(match.parent)) is not None:
            runs.add(run)
        else:
            outside.append(match)
    _note_runs(runs, notes)
    return outside


def _fixed(pattern: Path) -> Path:
    """Return a pattern's leading parts without wildcards: the folder it looks in."""
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _folders(fixed: Path, innermost: Path) -> list[Path]:
    """Return a folder and those around it, up to ``fixed``; none if it is not in there."""
    around = [innermost, *innermost.parents]
    return around[: around.index(fixed) + 1] if fixed in around else []


def text_within(texts: Sequence[str], folder: Path) -> Path | None:
    """Return a file that would be left out if a run wrote to ``folder``; None: no file would.

    Args:
        texts: as for ``find_files``.
        folder: the future folder of a run or a comparison.

    Raises:
        CorpusError: as for ``find_files``.
    """
    if not folder.is_dir():
        return None
    is_it = cache(folder.samefile)

    @cache  # a folder may have many files
    def is_within(fixed: Path, innermost: Path) -> bool:
        return any(map(is_it, _folders(fixed, innermost)))

    for name in texts:
        fixed, _ = _looked_in(name)
        for path, status in _files_of(name, [])[0]:
            # Leaving out an empty file changes nothing.
            if status.st_size > 0 and is_within(fixed, path.parent):
                return path
    return None


def takes_in(texts: Sequence[str], path: Path) -> str | None:
    """Return the first of ``texts`` that may change when a file is written; None: none.

    Args:
        texts: as for ``find_files``.
        path: the file to be written, which may exist already.
    """
    if path.exists():
        return reads(texts, path.stat())
    for name in filter(None, texts):
        with suppress(ValueError):  # no file can have such a name
            if _may_find(name, path):
                return name
    return None


def reads(texts: Sequence[str], there: os.stat_result) -> str | None:
    """Return the first of ``texts`` that stands for a file; None: none.

    Args:
        texts: as for ``find_files``.
        there: the file's status. Files are compared by inode: names and links may differ.
    """
    for name in filter(None, texts):
        with suppress(CorpusError, ValueError):  # ValueError: no file can have such a name
            if any(os.path.samestat(there, file.status) for file in _files_of(name, [])[0]):
                return name
    return None


def _may_find(name: str, new: Path) -> bool:
    """Whether a name may also stand for a new file.

    It may if the file is below the folder the name looks in, matches its pattern (with ** in it,
    the last part), and is in no run's folder.
    """
    fixed, pattern = _looked_in(name)
    # Paths are compared both as written and with links resolved.
    folders = {Path(follow(fixed)) for follow in (os.path.abspath, os.path.realpath)}
    places = {Path(follow(new)) for follow in (os.path.abspath, os.path.realpath)}
    places.add(Path(os.path.realpath(new.parent), new.name))
    return any(
        folder in place.parents
        and _may_match(place.relative_to(folder).parts, pattern)
        and not any(map(_is_run, _folders(folder, place.parent)))
        for folder in folders
        for place in places
    )


def _may_match(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a pattern matches, part by part; with ** in it, whether its last part does."""
    if "**" in pattern:
        parts, pattern = parts[-1:], pattern[-1:]
    return len(parts) == len(pattern) and all(map(fnmatch.fnmatchcase, parts, pattern))


def _looked_in(name: str) -> tuple[Path, tuple[str, ...]]:
    """Return where a name's files are looked for (a folder, or the file), and their pattern.

    The pattern is what follows the fixed folder; for a file or a folder it matches anything.
    """
    path = Path(name)
    if not glob.has_magic(name) or os.path.exists(name):  # noqa: PTH110 - which never raises
        return path, ("**", "*")
    fixed = _fixed(path)
    return fixed, path.parts[len(fixed.parts) :]


def _is_of_run(names: Iterable[str]) -> bool:
    """Whether a folder with these files is a run's or a comparison's."""
    there = set(names)
    return any(marks <= there for marks in OF_RUNS)


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's or a comparison's; an unreadable one is not."""
    try:
        return _is_of_run(entry.name for entry in folder.iterdir())
    except OSError:
        return False


def _note_runs(runs: Iterable[Path], notes: list[str]) -> None:
    if found := sorted(runs):
        notes.append(several(found, "left out (written by a run)", noun="folder"))


def _regular_files(paths: list[Path], notes: list[str]) -> list[_File]:
    """Return the paths that are regular files, or links to one."""
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
    """Return absolute names of texts: files, folders and patterns; "-" stays."""

    def absolute(name: str) -> str:
        path = Path(name)
        if name in ("", "-") or path.is_absolute():
            return name  # an empty name is refused later, by ``find_files``
        # Wildcards in the current folder's name must not become part of the pattern.
        is_there = os.path.exists(path)  # noqa: PTH110 - which never raises
        folder = Path.cwd() if is_there else Path(glob.escape(str(Path.cwd())))
        return str(folder / path)

    return tuple(map(absolute, texts))


#: What users are told of the embedded corpus.
EMBEDDED = "Python's own library"


def embedded_corpus() -> list[str]:
    """Return the files of the embedded corpus, a text that every machine with Python has.

    They are the ``.py`` files of the interpreter's standard library in sorted
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
    """A file that cannot be read as text; it is left out unless it was named directly."""

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        #: Why the file could not be read at all; None: it is not text.
        self.reason = reason


def cannot_read(path: str | Path, error: OSError | ValueError) -> NotTextError:
    """Return the error for a file that the system does not let us read."""
    if isinstance(error, FileNotFoundError):
        return NotTextError(f"there is no file {shown(path) or repr('')}: check its name", "gone")
    if isinstance(error, PermissionError):
        return NotTextError(
            f"{shown(path)} may not be read: check its permissions", "may not be read"
        )
    said = reason(error) if isinstance(error, OSError) else str(error)
    return NotTextError(f"cannot read {shown(path)}: {said}", f"cannot be read: {said}")


def several(paths: list[Path], what: str, noun: str = "file") -> str:
    """Return a note that ``what`` holds for one or several paths."""
    if len(paths) == 1:
        return f"{shown(paths[0])}: {what}"
    names = ", ".join(map(shown, paths[:NAMED]))
    more = f" and {len(paths) - NAMED:,} more" if len(paths) > NAMED else ""
    return f"{len(paths):,} {noun}s, {names}{more}: {what}"


def name_of(texts: Sequence[str]) -> str:
    """Return a name for texts: a file's, their common folder's, or a pattern's fixed part.

    It leaves room for more: file systems take names of up to 255 bytes.
    """
    if texts[0] == "-":
        return "stdin"
    paths = [Path(os.path.abspath(name)) for name in texts]  # noqa: PTH100 - without ..
    stem, folder = paths[0].stem.lstrip("."), paths[0].parent
    # Not by methods of paths, which may raise: errors are better reported where texts are read.
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
    if len(encoded := os.fsencode(stem)) > LONGEST_NAME:
        stem = encoded[:LONGEST_NAME].decode(errors="ignore")
    return stem or "text"
