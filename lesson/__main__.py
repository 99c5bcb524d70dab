"""Makes the page: ``scripts/lesson``, or ``python -m lesson``."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from charrnn import __version__
from charrnn.compute.machine import machine
from charrnn.wording import counted
from lesson import gradients, memory, price, recall, recurrence, windows
from lesson.lab import FULL, QUICK, ROOT, Lab, LessonError
from lesson.section import Section, Table, filled, markdown

#: One function per claim, in the order of the page.
SECTIONS: tuple[Callable[[Lab], Section], ...] = (
    recurrence.length,
    recurrence.step,
    windows.window,
    recall.beyond,
    gradients.radii,
    gradients.clipping,
    recall.scaling,
    memory.gates,
    memory.along,
    price.lstm,
    price.gru,
)


def page(lab: Lab, sections: Sequence[Section], command: str, figures: str, folder: Path) -> str:
    """Return the page in Markdown.

    Args:
        lab: the lab that the sections were made in.
        sections: all of them, in order.
        command: the command that makes the page.
        figures: the folder of the figures, relative to the page.
        folder: the page's folder; inside the project, the page links to other pages.
    """

    def linked(words: str, name: str, anchor: str = "") -> str:
        if not folder.absolute().is_relative_to(ROOT):
            return f"{words} (the project's {name})"
        return f"[{words}]({os.path.relpath(ROOT / name, folder)}{anchor})"

    readme = linked("how to read them", "README.md", "#how-to-read-the-loss")
    read = "Python's own standard library" if lab.text is None else f"`{lab.text.name}`"
    verdicts = Table(
        ["", "claim", "verdict"],
        [
            [f"[{n}](#{section.anchor(n)})", section.claim, section.judgement.verdict]
            for n, section in enumerate(sections, 1)
        ],
        words=3,
    )
    made = (
        ""
        if lab.size is not QUICK
        else (
            "**A tiny lesson, to see that everything works: models of so few units and steps show "
            "nothing, and the verdicts on them mean nothing.** "
        )
    )
    made += (
        f"Made by `{command}`, not by hand. Text: {read}, {lab.characters:,} characters. "
        f"Machine: {machine()}, charrnn {__version__}, matplotlib {version('matplotlib')}. All "
        f"commands together took {counted(math.ceil(lab.seconds / 60), 'minute')}. On the same "
        "machine, with the same text, versions, number of threads and C compiler, losses after a "
        "number of steps, angles and shares come out the same again. Times, and the losses after "
        "equal time in claims 10 and 11, do not."
    )
    own = "" if lab.text is None else f" and the text in `corpora/{lab.name}`"
    how = (
        "The commands can be typed into bash as they stand, in this order, in the project's folder "
        f"with its environment active (`. .venv/bin/activate`){own}; without `--json` they print "
        f"tables. Losses are in nats per character: {readme}. What each option does: "
        f"{linked('the command line', 'docs/cli.md')}."
    )
    claims = (
        "Eleven claims as introductory lectures make them, in our words. For each: the commands, "
        "what they measured, and whether the claim holds. The verdicts follow from the numbers by "
        "the rules printed in the sections, and so do the sentences about them. "
        + _seeds(lab)
        + " Claims 4 and 7 have a text of their own, and the others one; another may rank the "
        "cells otherwise: "
        + linked("an example", "docs/differences.md", "#texts-rank-the-cells-differently")
        + "."
    )
    first: dict[str, int] = {}
    told = []
    for n, section in enumerate(sections, 1):
        for one in section.commands:
            first.setdefault(one, n)
        told.append(section.markdown(n, figures, first))
    return f"""\
# A lesson on recurrent networks, measured

{filled(claims)}

{markdown(verdicts)}
{filled(made)}

{filled(how)}

{chr(10).join(told).rstrip()}
"""


def _seeds(lab: Lab) -> str:
    """Say which claims rest on several seeds, and what the others rest on."""
    recall, cells = len(lab.size.seeds), lab.size.cell_seeds
    several = f"Claims 4, 7, 10 and 11 rest on {counted(recall, 'seed')}"
    if recall != cells:
        several = (
            f"Claims 4 and 7 rest on {counted(recall, 'seed')}, claims 10 and 11 on "
            f"{counted(cells, 'seed')}"
        )
    return (
        f"{several}; the others on one training of each model, and another might give other "
        "numbers."
    )


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/lesson",
        description="Measures eleven claims about recurrent networks and writes a page on them.",
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="default: Python's own library")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny one, to see that all works: a minute or two"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="where lesson.md goes, and lesson/ with its figures (default: docs; to be given with "
        "--text or --quick)",
    )  # fmt: skip
    parser.add_argument(
        "--work", type=Path, metavar="DIR",
        help="keep models and answers here; what is there already is not done again",
    )  # fmt: skip
    chosen = parser.parse_args()
    if chosen.text is not None and not chosen.text.is_file():
        what = "is no file" if chosen.text.exists() else "there is no such file"
        parser.error(f"--text {chosen.text}: {what}")
    if chosen.out is None and (chosen.text is not None or chosen.quick):
        parser.error("--out is missing: only the whole lesson on Python's own library goes to docs")
    out = chosen.out or ROOT / "docs"
    command = "scripts/lesson"
    command += f" --text {shlex.quote(chosen.text.name)}" if chosen.text else ""
    command += " --quick" if chosen.quick else ""
    command += f" --out {shlex.quote(out.name or '.')}" if chosen.out else ""
    started = time.monotonic()

    def say(doing: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {doing}", file=sys.stderr, flush=True)

    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = chosen.work or Path(temporary)
            lab = Lab(folder.absolute(), chosen.text, QUICK if chosen.quick else FULL, say)
            for place in (out, out / "lesson"):
                _make_writable(place)
            sections = [make(lab) for make in SECTIONS]
            text = page(lab, sections, command, "lesson", out)
        for n, section in enumerate(sections, 1):
            for figure in section.figures:
                (out / "lesson" / figure.file(n)).write_text(figure.standalone(), encoding="utf-8")
        written = out / "lesson.md"
        written.write_text(text, encoding="utf-8")
    except (LessonError, OSError) as error:
        print(f"scripts/lesson: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/lesson: stopped", file=sys.stderr)
        return 130
    print(written)
    return 0


def _make_writable(folder: Path) -> None:
    """Make a folder and check that it is writable before the long work begins.

    Raises:
        OSError: it is not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


if __name__ == "__main__":
    sys.exit(main())
