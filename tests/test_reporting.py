"""A page beside the printed results: losing one must not lose the other."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from charrnn.commands.reporting import refuse_overwriting, show_and_report
from charrnn.commands.stopping import Stopped
from charrnn.disk import check_replaceable
from charrnn.errors import RunFolderError, UsageError
from tests.conftest import ENVIRONMENT, ROOT, refusing


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text("old", encoding="utf-8")
    return path


def test_results_are_printed_and_then_the_page_is_written(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_and_report(lambda: print("results"), page, lambda: "new \u00e9")
    assert page.read_text(encoding="utf-8") == "new \u00e9"
    assert capsys.readouterr() == ("results\n", f"report: {page}\n")


def test_no_page_is_made_where_none_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    show_and_report(lambda: print("results"), None, lambda: pytest.fail("made a page"))
    assert capsys.readouterr() == ("results\n", "")


def test_a_page_that_cannot_be_made_costs_no_results(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unmade = mock.Mock(side_effect=RunFolderError("no log"))
    with pytest.raises(RunFolderError, match="no log"):
        show_and_report(lambda: print("results"), page, unmade)
    assert capsys.readouterr().out == "results\n"
    assert page.read_text(encoding="utf-8") == "old"


def test_results_that_nobody_reads_cost_no_page(page: Path) -> None:
    with pytest.raises(BrokenPipeError):
        show_and_report(mock.Mock(side_effect=BrokenPipeError), page, lambda: "new")
    assert page.read_text(encoding="utf-8") == "new"


def test_a_page_whose_name_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot save: File name too long"):
        check_replaceable(tmp_path / ("long" * 99))


def test_what_failed_before_costs_neither(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def show() -> None:
        print("results")
        raise BrokenPipeError

    with pytest.raises(RunFolderError, match="no prices"):
        show_and_report(show, page, lambda: "new", RunFolderError("no prices"))
    assert capsys.readouterr().out == "results\n"
    assert page.read_text(encoding="utf-8") == "new"


def test_the_backend_of_a_notebook_is_not_asked_for(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "of_another_environment")

    def make() -> str:
        # matplotlib may be imported here already; a new process reads the environment.
        subprocess.run([sys.executable, "-c", "import matplotlib"], check=True)
        return "drawn"

    show_and_report(lambda: None, page, make)
    assert page.read_text(encoding="utf-8") == "drawn"


@pytest.mark.parametrize("where", ["config", "."])
def test_settings_that_matplotlib_cannot_read(tmp_path: Path, where: str) -> None:
    """Only those in the current folder keep it from drawing: it reads them before any others."""
    folder = tmp_path / where
    folder.mkdir(exist_ok=True)
    (folder / "matplotlibrc").write_bytes("# Größe\nfigure.dpi: 99\n".encode("latin-1"))
    code = (
        "from pathlib import Path; from charrnn.commands.reporting import *\n"
        "from charrnn.errors import UsageError\n"
        "def make(): import matplotlib; return 'new'\n"
        "try: check_report(Path('page.html'))\n"
        "except UsageError as error: print(error)\n"
        "else: show_and_report(lambda: print('shown'), Path('page.html'), make)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path / "config")},
        capture_output=True,
        text=True,
        check=True,
    )
    if where == "config":
        assert done.stdout == "shown\n"
        assert (tmp_path / "page.html").read_text(encoding="utf-8") == "new"
    else:
        assert done.stdout.splitlines() == [
            "--report draws with matplotlib, which cannot read the file matplotlibrc in this "
            "folder: make it utf-8, or work in another folder"
        ]
        assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "ends", [RunFolderError("no log"), MemoryError("no log"), Stopped("no log")]
)
def test_a_page_that_fails_hides_no_failure_before_it(
    page: Path, capsys: pytest.CaptureFixture[str], ends: BaseException
) -> None:
    """Whatever ends the page."""
    make = mock.Mock(side_effect=ends)
    with pytest.raises(type(ends), match="no log"):
        show_and_report(lambda: None, page, make, RunFolderError("no prices"))
    assert capsys.readouterr().err == "charrnn: no prices\n"
    with pytest.raises(type(ends), match="no log"):
        show_and_report(refusing(errno.ENOSPC), page, make)
    said = "charrnn: cannot write the output: No space left on device\n"
    assert capsys.readouterr().err == said
    with pytest.raises(type(ends), match="no log"):
        show_and_report(lambda: None, page, make, BrokenPipeError())
    assert capsys.readouterr().err == "", "a reader who has left is no failure"


def test_the_results_themselves_are_not_written_over(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, page.open() as output:
        found = os.fstat(output.fileno())
        patch.setattr(os, "fstat", mock.Mock(return_value=found))
        with pytest.raises(UsageError, match=r"^--report .* is where the results go: give another"):
            refuse_overwriting("--report", page, {}, [])


def test_a_text_that_a_link_leads_to_is_not_written_over(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    other = tmp_path / "other.txt"
    other.write_text("text")
    (texts / "a.txt").symlink_to(other)
    for names in ([str(texts)], [f"{texts}/*.txt"], [str(texts / "a.txt")]):
        with pytest.raises(UsageError, match="would change"):
            refuse_overwriting("--per-char", other, {}, names)
    refuse_overwriting("--per-char", other, {}, [str(tmp_path / "gone")])


def test_a_pipe_among_texts_may_be_written_to(tmp_path: Path) -> None:
    """A pipe is not read as text."""
    (tmp_path / "a.txt").write_text("text")
    os.mkfifo(tmp_path / "prices")
    refuse_overwriting("--per-char", tmp_path / "prices", {}, [str(tmp_path)])
