"""Write files besides what a command prints, above all the page of ``--report``.

Whether it can be written is checked before anything is measured. torch and the drawing code
are imported only when the page is made.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from charrnn.commands.outcome import refused
from charrnn.commands.stdio import say
from charrnn.disk import check_replaceable, followed, write_text
from charrnn.errors import CorpusError, UsageError
from charrnn.text.files import embedded_corpus, find_files, reads, takes_in
from charrnn.wording import shown

if TYPE_CHECKING:
    import torch

    from charrnn.runs.comparison_plan import Plan
    from charrnn.views.page import Origin


def check_report(path: Path) -> None:
    """Refuse a page that cannot be made, or cannot be written to this path.

    Raises:
        UsageError: it is not named .html or .htm, or matplotlib is missing or cannot start.
        RunFolderError: no file can be written there.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--report writes a page: give FILE.html, not {str(path)!r}")
    if find_spec("matplotlib") is None:
        raise UsageError(
            "--report draws with matplotlib, which is not installed: pip install '.[report]' in "
            "charrnn's folder, or pip install matplotlib"
        )
    with suppress(OSError):
        try:
            # matplotlib reads it first of all, and cannot start if it is not utf-8.
            Path("matplotlibrc").read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UsageError(
                "--report draws with matplotlib, which cannot read the file matplotlibrc in this "
                "folder: make it utf-8, or work in another folder"
            ) from None
    check_replaceable(followed(path))


def refuse_overwriting(
    flag: str, path: Path | None, sources: Mapping[Path, str], texts: Sequence[str]
) -> None:
    """Refuse to write a result over a file that must stay, or into a text that is read.

    Args:
        flag: the option that names the result.
        path: of the result, if there is to be one.
        sources: the files that must stay, each with a description.
        texts: files, folders and patterns that are read, as a run's text must stay the same.

    Raises:
        UsageError: the result would replace one of the files or what is printed, or change a
            text, or may be read with it later.
    """
    if path is None:
        return
    if path.exists() and not path.is_file():  # a pipe, say, which keeps nothing
        return
    if path.exists() and os.path.samestat(path.stat(), os.fstat(1)):
        raise UsageError(f"{flag} {shown(path)} is where the results go: give another file")
    for source, what in sources.items() if path.exists() else ():
        if source.exists() and path.samefile(source):
            raise UsageError(f"{flag} {shown(path)} would overwrite {what}: give another file")
    if (text := takes_in(texts, path)) is not None:
        would = "would change" if path.exists() else "may become part of"
        raise UsageError(
            f"{flag} {shown(path)} {would} {shown(text)}, which is or was read as text: give a "
            "file elsewhere"
        )


def refuse_output_in_text(texts: Sequence[str]) -> None:
    """Refuse a training whose own output is redirected into the text that it reads.

    Args:
        texts: files, folders and patterns that are to be read.

    Raises:
        UsageError: standard output or error is one of their files.
    """
    for number, name in ((1, "standard output"), (2, "standard error")):
        try:
            status = os.fstat(number)
        except OSError:  # it is closed
            continue
        if stat.S_ISREG(status.st_mode) and (text := reads(texts, status)) is not None:
            raise UsageError(
                f"{name} goes into {shown(text)}, which is read as text: redirect it elsewhere"
            )


def refuse_report_in_text(report: Path, plan: Plan, folder: Path) -> None:
    """Refuse a report that would replace a comparison's text, or become part of it.

    Args:
        report: where it goes.
        plan: the comparison's.
        folder: the comparison's, which is not read as text.

    Raises:
        UsageError: as ``refuse_overwriting``.
    """
    found: list[Path] = []
    for names in (plan.texts or embedded_corpus(), plan.valid) if report.exists() else ():
        with suppress(CorpusError):  # a text that has moved cannot be replaced
            found += find_files(names).files
    read = dict.fromkeys(found, "what is read")
    # A report that exists and is a text is among the files found; and the comparison's own folder
    # is not read, so a report there becomes part of no text.
    is_own = {followed(report).parent, followed(report.parent)} == {followed(folder)}
    texts = () if is_own or found else (*plan.texts, *plan.valid)
    refuse_overwriting("--report", report, read, texts)


def origin_of_page(device: torch.device, trained_by: Sequence[str] = ()) -> Origin:
    """Return how this command's page is made.

    Args:
        device: where the models computed.
        trained_by: what trained a comparison's runs, as in ``RunResult``.
    """
    from charrnn.views.page import origin

    return origin(["charrnn", *sys.argv[1:]], device, trained_by if device.type == "cpu" else ())


def show_and_report(
    show: Callable[[], None],
    report: Path | None,
    make: Callable[[], str],
    failure: Exception | None = None,
) -> None:
    """Print results and write a page of them; if one fails, the other is still done.

    Args:
        show: prints the results.
        report: where the page goes; None: there is none.
        make: makes the page.
        failure: an earlier error, to be raised only after the results are out.

    Raises:
        Exception: ``failure``; the results are printed and the page is written. (If the page
            cannot be written, ``failure`` is printed and the page's error raised.)
        OSError: the results cannot be printed; the page is written.
        RunFolderError: the page cannot be written; the results are printed.
    """
    try:
        show()
        sys.stdout.flush()
    except OSError as error:
        failure = failure or error
    if report is not None:
        try:
            _prepare_matplotlib()
            # Replace a link's target, not the link.
            write_text(followed(report), make())
        except BaseException:  # a signal, too: the failure would not be reported otherwise
            if failure is not None and not isinstance(failure, BrokenPipeError):
                said = refused(failure) if isinstance(failure, OSError) else failure
                say(f"charrnn: {said}")
            raise
        say(f"report: {shown(report)}")
    if failure is not None:
        raise failure


def _prepare_matplotlib() -> None:
    """Let matplotlib start without the user's own settings, which the figures do not follow."""
    # Keep its messages about its caches from the user.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # A notebook sets a backend of its own; matplotlib cannot start if that is not installed.
    os.environ.pop("MPLBACKEND", None)
    os.environ["MATPLOTLIBRC"] = os.devnull
