"""Files that a command writes besides what it prints: ``--report``, the page, above all.

That it can be written is made sure of before anything is measured. torch, and what draws,
are imported when the page is made.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from charrnn.errors import CorpusError, UsageError
from charrnn.files import embedded_corpus, find_files, takes_in
from charrnn.outcome import refused
from charrnn.stdio import say
from charrnn.wording import shown

if TYPE_CHECKING:
    import torch

    from charrnn.comparison import Plan
    from charrnn.page import Origin


def check_report(path: Path) -> None:
    """Refuse a page that cannot be made, or not be written there.

    Raises:
        UsageError: it is not named .html, or matplotlib is missing.
        RunFolderError: no file can be written there.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--report writes a page: give FILE.html, not {str(path)!r}")
    if find_spec("matplotlib") is None:
        raise UsageError(
            "--report draws with matplotlib, which is not installed: pip install '.[report]' in "
            "charrnn's folder, or pip install matplotlib"
        )

    from charrnn.disk import check_replaceable, followed

    check_replaceable(followed(path))


def refuse_overwriting(
    flag: str, path: Path | None, sources: Mapping[Path, str], texts: Sequence[str] = ()
) -> None:
    """Refuse to write a result over what would be lost by it, or into a text that is read.

    Args:
        flag: the option that names the result.
        path: of the result, if there is to be one.
        sources: what must stay, each file with what it is.
        texts: files, folders and patterns that are read: a run's text is to stay the same.

    Raises:
        UsageError: the result would take the place of one of the files or of what is printed, or
            change a text, or may be read with it later.
    """
    if path is None:
        return
    if path.exists() and not path.is_file():  # a pipe, say, which keeps nothing
        return
    if path.exists() and os.path.samestat(path.stat(), os.fstat(1)):
        raise UsageError(f"{flag} {shown(path)} is where the results go: give another file")
    for source, what in sources.items():
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"{flag} {shown(path)} would overwrite {what}: give another file")
    if (text := takes_in(texts, path)) is not None:
        would = "would change" if path.exists() else "may become part of"
        raise UsageError(
            f"{flag} {shown(path)} {would} {shown(text)}, which is or was read as text: give a "
            "file elsewhere"
        )


def refuse_report_in_text(report: Path, plan: Plan, folder: Path) -> None:
    """Refuse a report that would take the place of a comparison's text, or become part of it.

    Args:
        report: where it goes.
        plan: the comparison's.
        folder: the comparison's, which is not read as text.

    Raises:
        UsageError: as of ``refuse_overwriting``.
    """
    from charrnn.disk import followed

    found: list[Path] = []
    for names in (plan.texts or embedded_corpus(), plan.valid) if report.exists() else ():
        with suppress(CorpusError):  # a text that has moved is not there to be replaced
            found += find_files(names).files
    read = dict.fromkeys(found, "what is read")
    # A file that is there has been found.
    is_own = {followed(report).parent, followed(report.parent)} == {followed(folder)}
    texts = () if is_own or found else (*plan.texts, *plan.valid)
    refuse_overwriting("--report", report, read, texts)


def origin_of_page(device: torch.device, runs: Sequence[Path] = ()) -> Origin:
    """Return how the page of this command comes about.

    Args:
        device: where the models computed.
        runs: folders of a comparison's runs, which were trained by any processor.
    """
    from charrnn.page import origin
    from charrnn.trained import trained_by

    by = [trained_by(run) for run in runs] if device.type == "cpu" else []
    return origin(["charrnn", *sys.argv[1:]], device, [one for one in by if one is not None])


def show_and_report(
    show: Callable[[], None],
    report: Path | None,
    make: Callable[[], str],
    failure: Exception | None = None,
) -> None:
    """Print results and write a page of them; none of the two is lost with the other.

    Args:
        show: prints the results.
        report: where the page goes; None: there is none.
        make: makes the page.
        failure: of what came before, which is not to cost the results either.

    Raises:
        Exception: the failure; the results are printed and the page is written. (If the page
            cannot be, the failure is said and the page's own raised.)
        OSError: the results cannot be printed; the page is written.
        RunFolderError: the page cannot be written; the results are printed.
    """
    try:
        show()
        sys.stdout.flush()
    except OSError as error:
        failure = failure or error
    if report is not None:
        from charrnn.disk import followed, write_text

        # Where matplotlib keeps its caches is none of the user's concern.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        # A notebook names a backend of its own, without which matplotlib would not start here.
        os.environ.pop("MPLBACKEND", None)
        try:
            # What a link leads to is replaced, not the link.
            write_text(followed(report), make())
        except BaseException:  # a signal, too: whatever comes of it, the failure is not told then
            if failure is not None and not isinstance(failure, BrokenPipeError):
                said = refused(failure) if isinstance(failure, OSError) else failure
                say(f"charrnn: {said}")
            raise
        say(f"report: {shown(report)}")
    if failure is not None:
        raise failure
