from __future__ import annotations

import errno
import os
import random
import sysconfig
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from charrnn.errors import CorpusError
from charrnn.layout import PLAN
from charrnn.text import files
from charrnn.text.files import (
    absolute_names,
    embedded_corpus,
    find_files,
    name_of,
    several,
    takes_in,
    text_within,
)
from charrnn.text.scanning import scan
from tests.conftest import assert_one_line, text_of, write


@pytest.mark.parametrize(
    ("names", "called"),
    [
        (["-"], "stdin"),
        (["x.txt"], "x"),
        (["books/x.txt"], "x"),
        (["books/x.txt", "books/y.txt"], "books"),
        (["books/x.txt", "y.txt"], "x"),
        (["books"], "books"),
        (["books/*.txt"], "books"),
        (["books/*/*.txt"], "books"),
        (["books/**/*.txt"], "books"),
        (["books/*/x.txt"], "books"),
        (["books/ch[0-9].txt"], "ch"),
        (["books/2024-*.txt"], "2024"),
        (["books[12]/x.txt"], "here"),
        (["*"], "here"),
        (["x[1].txt"], "x[1]"),
        (["missing"], "missing"),
        ([".notes"], "notes"),
        (["."], "here"),
        (["books/.."], "here"),
        (["v1.5"], "v1.5"),
        ([f"{'é' * 120}.txt"], "é" * 100),
        ([f"{'é' * 99}x.txt"], "é" * 99 + "x"),
        ([f"x{'é' * 120}.txt"], "x" + "é" * 99),
        (["\udce9.txt"], "\udce9"),
    ],
)
def test_what_texts_are_called(
    names: list[str], called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never by wildcards, which a shell would expand again, unless a file has such a name."""
    (tmp_path / "here" / "books").mkdir(parents=True)
    (tmp_path / "here" / "v1.5").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("x[1].txt").touch()
    assert name_of(names) == called


@pytest.mark.parametrize(
    ("text", "path", "taken"),
    [
        ("src", "src/new", True),
        ("src", "src/sub/new", True),
        ("src", "new", False),
        ("src", "srcs/new", False),
        ("src", "src/.new", True),
        ("src", "src/.hidden/new", True),
        ("src", "src/run/new", False),
        ("src", "src/run/deep/new", False),
        (".", "new", True),
        ("src/*", "src/new", True),
        ("src/o*", "src/new", False),
        ("src/o*", "src/other", True),
        ("src/**", "src/run/new", False),
        ("src/**", "src/sub/new", True),
        ("src/*", "src/sub/new", False),
        ("src/**/o*", "src/other", True),
        ("src/**/o*", "src/sub/other", True),
        ("src/*/o*", "src/other", False),
        ("src/*/o*", "src/sub/other", True),
        ("sub/../src", "src/new", True),
        ("src", "src/../new", False),
        ("link", "src/new", True),
        ("l*/n*", "link/new", True),
        ("src", "link/new", True),
        ("[s]rc/*", "src/new", True),
        ("src/old", "src/new", False),
        ("-", "new", False),
        ("", "new", False),
        ("src/old", "src/old", True),
        ("src", "src/old", True),
        ("src/o*", "src/old", True),
        ("link/old", "src/old", True),
        ("src/.x*", "src/.xy", True),
        ("src/.*/new", "src/.hidden/new", True),
        ("src/**/.n*", "src/sub/.new", True),
        ("src/**", "src/.hidden/new", True),
        ("src", "src/way/new", True),
        ("src/**", "src/way/new", True),
        ("src/*/n*", "src/way/new", True),
        ("src", "page", True),
        ("p*", "page", True),
        ("src", "src/away", True),
    ],
)
def test_what_takes_a_file_for_text(
    text: str, path: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that ``find_files`` would find once it exists, and also hidden or deeper files.

    ``page`` and ``away`` are links to new files.
    """
    monkeypatch.chdir(tmp_path)
    for old in ("src/old", "src/sub/old", "src/run/lock", "src/run/metrics.jsonl", "srcs/old"):
        write(Path(old), "old")
    Path("sub").mkdir()
    for link, to in (("link", "src"), ("src/way", "../sub"), ("page", "src/linked")):
        Path(link).symlink_to(to)
    Path("src/away").symlink_to("../far")
    assert takes_in([text], Path(path)) == (text if taken else None)
    if text not in ("-", ""):
        write(Path(path), "new")
        read = [os.path.realpath(file) for file in find_files([text]).files]
        assert taken or os.path.realpath(path) not in read


@pytest.mark.parametrize("name", ["a\0b", "a\0*", "a\ud800", "\ud800/*"])
def test_a_name_that_no_file_can_have_takes_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint from another machine may have recorded one; its other names still count."""
    monkeypatch.chdir(tmp_path)
    write(Path("src/old"), "old")
    for path in (Path("src/old"), Path("src/new")):
        assert takes_in([name], path) is None
        assert takes_in([name, "src"], path) == "src"


def test_a_folder_s_name_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets in the current folder's name, which the user has not typed, match themselves."""
    (tmp_path / "novel [draft]").mkdir()
    monkeypatch.chdir(tmp_path / "novel [draft]")
    assert takes_in(["*.txt"], Path("new.txt")) == "*.txt"
    assert takes_in(["*.txt"], Path("new.html")) is None
    assert name_of(["*.txt"]) == "novel [draft]"


@pytest.mark.parametrize(
    ("texts", "folder", "found"),
    [
        (["*.txt"], ".", "a.txt"),
        (["."], ".", "a.txt"),
        (["."], "books", "books/b.txt"),
        (["*/plot.*"], "books", "books/plot.png"),
        (["link/*"], "books", "link/b.txt"),
        (["**/b*"], "books", "books/b.txt"),
        (["books"], ".", None),
        (["books/*"], ".", None),
        (["a.txt", "books/b.txt"], ".", None),
        (["*.txt"], "books", None),
        (["."], "new", None),
    ],
)
def test_what_a_run_in_a_folder_would_leave_out(
    texts: list[str],
    folder: str,
    found: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``find_files`` leaves that text out once the folder is a run's."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "books/b.txt"):
        write(Path(name), "text")
    Path("link").symlink_to("books")
    write(Path("books/an empty.txt"), "")
    write(Path("books/plot.png"), "\x89PNG\0")
    assert text_within(texts, Path(folder)) == (found and Path(found))
    before = find_files(texts).files
    if folder != "new":
        write(Path(folder, PLAN), "{}")
        try:
            left = find_files(texts).files
        except CorpusError:
            left = ()
        assert (before != left) == bool(found)


def test_what_may_not_be_looked_at_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only ``find_files`` refuses it, not the naming of a run or the placing of a page before."""
    stat = os.stat

    def stat_(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if "/closed/" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return stat(path, *args, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "stat", stat_)
    for name in ("./closed/x.txt", "./closed/x*.txt"):
        assert name_of([name]) == "x"
        assert takes_in([name], Path("new")) is None
        assert takes_in([name], Path("./closed/new")) is None
        absolute_names([name])
    with pytest.raises(CorpusError, match=r"x\.txt may not be read: check its permissions"):
        find_files(["./closed/x.txt"])


class TestFindFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "folder"
        for name in ("b.txt", "a/z.txt", "a/y.py", "a.txt", ".hidden", ".git/config", "c/.h/x"):
            write(folder / name, name)
        (folder / "empty").mkdir()
        (folder / "dangling").symlink_to(folder / "nowhere")
        os.mkfifo(folder / "pipe")
        return folder

    def names(self, folder: Path, *texts: str) -> list[str]:
        return [str(path.relative_to(folder)) for path in find_files(texts).files]

    def test_folder_is_searched_in_order_without_hidden_files(self, folder: Path) -> None:
        assert self.names(folder, str(folder)) == ["a/y.py", "a/z.txt", "a.txt", "b.txt"]

    def test_a_linked_folder_is_left_out_with_a_note(self, folder: Path) -> None:
        write(folder.parent / "beside/z.txt", "z")
        for link in ("a/link", ".link"):
            (folder / link).symlink_to(folder.parent / "beside")
        assert self.names(folder, str(folder)) == ["a/y.py", "a/z.txt", "a.txt", "b.txt"]
        note = f"{folder / 'a/link'}: left out (a link; to read it too, name it)"
        assert find_files([str(folder)]).notes == (note,)
        found = find_files([str(folder), str(folder / "a/link")])
        assert found.files[-1] == folder / "a/link/z.txt"

    def test_folders_of_runs_are_left_out(self, folder: Path) -> None:
        for name in (
            "run/lock",
            "run/metrics.jsonl",
            "runs/comparison.json",
            "runs/deep/result.txt",
        ):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("of no text")
        found = find_files([str(folder)])
        assert not any("of no text" in path.read_text() for path in found.files)
        assert f"2 folders, {folder / 'run'}, {folder / 'runs'}: left out" in found.notes[-1]

    @pytest.mark.parametrize(
        ("number", "said"),
        [
            (1, "f0: gone"),
            (2, "2 files, f0, f1: gone"),
            (5, "5 files, f0, f1, f2, f3, f4: gone"),
            (7, "7 files, f0, f1, f2, f3, f4 and 2 more: gone"),
        ],
    )
    def test_a_note_names_the_first_few(self, number: int, said: str) -> None:
        assert several([Path(f"f{n}") for n in range(number)], "gone") == said

    def test_a_pattern_leaves_them_out_too(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(folder / "run/lock", "held")
        write(folder / "run/metrics.jsonl", "rows")
        write(folder / "run/deep/z.txt", "of no text")
        monkeypatch.chdir(folder)
        for pattern in (f"{folder}/**/*", "**/*", "*/**"):
            found = find_files([pattern])
            assert not any("run" in path.parts for path in found.files)
            assert Path(folder / "a/z.txt").samefile(
                next(path for path in found.files if path.name == "z.txt")
            )
            (note,) = found.notes
            assert note.endswith("run: left out (written by a run)")
        (only,) = find_files(["run/deep/*.txt"]).files
        assert only == Path("run/deep/z.txt"), "the pattern names a folder below the run's"
        with pytest.raises(
            CorpusError, match=r"the pattern run/\*: run: left out \(written by a run"
        ):
            find_files(["run/*"])

    def test_what_surrounds_a_folder_is_looked_up_once_for_all_files_in_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(30):
            write(tmp_path / f"deep/er/{number}.txt", "text")
        looked_up = mock.Mock(wraps=files._folders)
        monkeypatch.setattr(files, "_folders", looked_up)
        assert len(find_files([f"{tmp_path}/**/*.txt"]).files) == 30
        assert text_within([str(tmp_path)], tmp_path.parent) is None
        assert looked_up.call_count == 2

    def test_patterns(self, folder: Path) -> None:
        assert self.names(folder, f"{folder}/*.txt") == ["a.txt", "b.txt"]
        assert self.names(folder, f"{folder}/**/*.txt") == ["a/z.txt", "a.txt", "b.txt"]
        assert self.names(folder, f"{folder}/[b-z].???") == ["b.txt"]
        assert find_files([f"{folder}/*.txt"]).explicit == frozenset()

    @pytest.mark.parametrize(
        ("pattern", "found"),
        [
            ("**/*.txt", "a/z.txt a.txt b.txt beside/z.txt"),
            ("**/z.*", "a/z.txt beside/z.txt"),
            ("a/**/z*", "a/again/beside/z.txt a/z.txt"),
            ("**/a/**/y*", "a/y.py"),
            ("*/**", "a/y.py a/z.txt beside/z.txt loop/a.txt loop/b.txt"),
        ],
    )
    def test_a_pattern_goes_through_links_but_not_in_circles(
        self, folder: Path, pattern: str, found: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each folder is looked into once, by its shortest path."""
        for link in ("a/up", "a/again", "loop"):
            (folder / link).symlink_to(folder)
        write(folder.parent / "beside/z.txt", "z")
        (folder / "beside").symlink_to(folder.parent / "beside")
        monkeypatch.chdir(folder)
        files, _, notes = find_files([pattern])
        assert ([*map(str, files)], notes) == (found.split(), ())

    def test_a_name_that_looks_like_a_pattern(self, folder: Path) -> None:
        name = write(folder / "[ab].txt", "literal")
        found = find_files([name])
        assert found.files == (Path(name),)
        assert found.explicit == {Path(name)}

    def test_order_of_the_names_and_each_file_once(self, folder: Path) -> None:
        named = [str(folder / "b.txt"), str(folder), str(folder / "a.txt")]
        found = find_files(named)
        assert [path.name for path in found.files] == ["b.txt", "y.py", "z.txt", "a.txt"]
        (note,) = found.notes
        assert "2 files" in note
        assert "b.txt" in note

    def test_link_to_a_file_named_too_is_read_once(self, folder: Path) -> None:
        (folder / "link").symlink_to(folder / "b.txt")
        found = find_files([str(folder / "b.txt"), str(folder / "link")])
        assert found.files == (folder / "b.txt",)

    def test_a_file_of_a_folder_that_is_named_too_must_be_text(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "b.txt").write_bytes(b"\xff")
        monkeypatch.chdir(folder)
        with pytest.raises(CorpusError, match=r"b\.txt is not utf-8 text"):
            scan([str(folder), "b.txt"])

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("missing.txt", ("there is no file", "missing.txt")),
            ("*.zip", ("no file matches", "*.zip")),
            ("em[p]ty", ("no file matches",)),
            ("pipe", ("neither a file nor a folder", "pipe")),
            ("new\nline\udcff", ("there is no file", r"new\nline\udcff")),
            ("nul\0", ("nul",)),
            ("nul\0*", ("nul",)),
            ("\ud800/*", (r"\ud800/*",)),
            ("x" * 300, ("x" * 300,)),
            ("b.txt/x", ("cannot read",)),
        ],
    )
    def test_names_of_nothing(self, folder: Path, name: str, words: tuple[str, ...]) -> None:
        with pytest.raises(CorpusError) as error:
            find_files([f"{folder}/{name}"])
        assert_one_line(error, *words)

    def test_empty_name_is_not_the_current_folder(self) -> None:
        with pytest.raises(CorpusError) as error:
            find_files([""])
        assert_one_line(error, "there is no file ''")

    def test_no_name_at_all(self) -> None:
        with pytest.raises(CorpusError) as error:
            scan([])
        assert_one_line(error, "no text")


class TestEmbeddedCorpus:
    def test_is_the_standard_library(self) -> None:
        names = embedded_corpus()
        assert names == sorted(names, key=lambda name: Path(name).parts)
        modules = {Path(name).name for name in names}
        assert {"argparse.py", "heapq.py", "decimal.py"} <= modules
        library = sysconfig.get_path("stdlib")
        parts = {part for name in names for part in Path(name).relative_to(library).parts}
        assert not parts & {"test", "site-packages"}

    def test_can_be_read_from_anywhere(self) -> None:
        corpus = scan(embedded_corpus())
        assert corpus.characters > 8_000_000
        assert corpus.notes == ()
        chance = random.Random(3)
        # A stretch over the border of two files, against their own text.
        for file in chance.sample(corpus.files[1:], 20):
            part = corpus.part(file.start - 1, file.stop)
            assert text_of(part)[1:] == file.path.read_bytes().decode()

    def test_a_file_with_two_names_is_one(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("charrnn.text.files.sysconfig.get_path", lambda _name: str(tmp_path))
        (tmp_path / "b.py").write_text("import this\n")
        (tmp_path / "c.py").symlink_to("b.py")
        (tmp_path / "d.py").write_text("import that\n")
        assert [Path(name).name for name in embedded_corpus()] == ["b.py", "d.py"]

    def test_python_without_sources(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("charrnn.text.files.sysconfig.get_path", lambda _name: str(tmp_path))
        with pytest.raises(CorpusError) as error:
            embedded_corpus()
        assert_one_line(error, "no sources", str(tmp_path))
