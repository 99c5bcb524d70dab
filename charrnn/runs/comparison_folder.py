"""A comparison's folder: its plan, the results in it, and which command goes on with it.

It holds ``comparison.json`` with the plan, and a run's folder for every cell and seed, with the
run's ``result.json`` once it is finished. ``comparing`` does the runs and writes both files.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from charrnn.command_words import comparison_command, resume_command, validating_on
from charrnn.config import Record
from charrnn.disk import exists, followed, opened, refusals
from charrnn.errors import RunFolderError, UsageError
from charrnn.layout import PLAN, RESULT
from charrnn.runs.comparison import RunResult
from charrnn.runs.comparison_plan import Plan
from charrnn.text.files import absolute_names
from charrnn.wording import reason, shown

R = TypeVar("R", bound=Record)

#: A plan's fields that name texts -> how a command line names them.
TEXTS = {"texts": "TEXT", "valid": "--valid TEXT"}


def open_plan(folder: Path) -> Plan:
    """Return the plan of the comparison in a folder.

    Raises:
        RunFolderError: it is not a folder, or holds no plan or one that is not usable.
    """
    if folder.is_file():
        raise RunFolderError(f"{shown(folder)}: is a file: name a comparison's folder")
    anew = ": put an earlier copy back, or compare anew in another folder with --run"
    plan = _read(folder / PLAN, Plan, anew)
    if plan is None:
        from charrnn.storage.runfolder import has_state  # only now: it imports torch

        instead = "leave --resume out to start one"
        if has_state(folder):
            instead = f"it holds a run: continue it with: {going_on(folder)}"
        raise RunFolderError(f"{shown(folder)}: holds no comparison to resume: {instead}")
    return plan


def take_up(
    folder: Path, seeds: int | None, texts: Sequence[str], valid: Sequence[str]
) -> tuple[Plan, Plan, list[str | Path]]:
    """Return the plan by which a comparison goes on.

    Args:
        folder: the comparison's.
        seeds: runs of each cell; None: as many as before.
        texts: where its text is now; none: where it was.
        valid: the same for the text to validate on.

    Returns:
        The plan from now on; the plan in the folder; the words on a command line that turn the
        latter into the former.

    Raises:
        RunFolderError: as in ``open_plan``.
        UsageError: the plan allows no such change.
    """
    begun = open_plan(folder)
    plan = begun if seeds is None else begun.extended(seeds)
    plan = plan.moved(absolute_names(texts), absolute_names(valid))
    words: list[str | Path] = []
    if plan.texts != begun.texts:
        words += map(Path, texts)  # as paths, so that a leading dash does not make an option
    if plan.valid != begun.valid:
        words += validating_on(valid)
    if seeds is not None:
        words += ["--seeds", str(plan.seeds)]
    return plan, begun, words


def refuse_comparison(run: Path) -> None:
    """Refuse to train in the folder of a comparison, or of one of its runs.

    Raises:
        RunFolderError: it is such a folder, or lies in that of a comparison whose plan is not
            usable; or it cannot be read.
    """
    run = followed(run)
    with refusals(run, "cannot read the run's folder"):
        is_comparison = exists(run / PLAN)
    if is_comparison:
        raise RunFolderError(
            f"{shown(run)}: holds a comparison: continue it with: "
            f"{comparison_command(run)}; or choose another folder with --run"
        )
    if (comparison := comparison_of(run)) is not None:
        raise RunFolderError(
            f"{shown(run)}: is a run of a comparison, whose runs have one budget: go on with them "
            f"with: {comparison_command(comparison)}; or start from its weights with "
            "--init-from, in another folder"
        )


def comparison_of(run: Path) -> Path | None:
    """Return the folder of the comparison that the run in a folder belongs to; None if to none.

    Raises:
        RunFolderError: it lies in the folder of a comparison whose plan is not usable.
    """
    run = followed(run)
    if not (run.parent / PLAN).exists():
        return None
    plan = open_plan(run.parent)
    return run.parent if run.name in {plan.run_name(*one) for one in plan.runs()} else None


def going_on(run: Path, texts: Sequence[str] | None = None) -> str:
    """Return the command that goes on with the run in a folder, or with its comparison.

    Args:
        run: the folder.
        texts: as in ``resume_command``; None: looked up in the folder.

    Raises:
        RunFolderError: as in ``comparison_of``.
    """
    if (comparison := comparison_of(run)) is not None:
        return comparison_command(comparison)
    if texts is None:
        from charrnn.storage.runfolder import texts_to_name  # only now: it imports torch

        texts = texts_to_name(run)
    return resume_command(run, texts=texts)


def name_moved(plan: Plan, command: str, named: Collection[str] = ()) -> str:
    """Return advice for when a comparison's text cannot be read; "" for the embedded corpus.

    Args:
        plan: the comparison's.
        command: the command line that goes on with it.
        named: fields of ``TEXTS`` whose texts that already names.
    """
    words = [word for name, word in TEXTS.items() if getattr(plan, name) and name not in named]
    if not words:
        return ""
    return f"; if the text has moved, name it: {command} {' '.join(words)}"


def read_results(folder: Path, plan: Plan) -> list[RunResult | None]:
    """Return the result of each run of a comparison, in order; None where it is not finished.

    Raises:
        RunFolderError: one of them is not usable.
    """
    return [read_result(folder / plan.run_name(*one)) for one in plan.runs()]


def read_result(path: Path) -> RunResult | None:
    """Return the result of a finished run; None for one that is not finished.

    Its ``run`` is the folder where it was found, which may have moved since it was written.

    Raises:
        RunFolderError: the file is not usable.
    """
    result = _read(path / RESULT, RunResult, ": remove it to score the run again")
    return None if result is None else replace(result, run=str(path))


def _read(file: Path, kind: type[R], advice: str) -> R | None:
    """Return the record in a JSON file; None if there is no such file.

    Args:
        file: its path.
        kind: what it holds.
        advice: what to do if it holds something else.

    Raises:
        RunFolderError: it is not usable.
    """
    try:
        with opened(file) as stream:
            values = json.loads(stream.read().decode())
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        return kind.from_dict(values)
    except FileNotFoundError:
        return None
    except OSError as error:  # what it holds may be whole
        raise RunFolderError(f"{shown(file)}: not usable: {reason(error)}") from error
    except (ValueError, RecursionError, UsageError) as error:
        raise RunFolderError(f"{shown(file)}: not usable: {error}{advice}") from error
