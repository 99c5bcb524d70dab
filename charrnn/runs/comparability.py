"""Whether a comparison can begin or go on: refuses what would not compare, or is another's.

What is refused says what to do instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from charrnn import recipe
from charrnn.command_words import comparison_command
from charrnn.compute.device import multiplies_bf16
from charrnn.compute.machine import worker
from charrnn.compute.processor import processor
from charrnn.config import ModelConfig
from charrnn.errors import RunFolderError, UsageError
from charrnn.layout import BEST, LOCK, PLAN, RESULT
from charrnn.runs.comparison import RunResult
from charrnn.runs.comparison_folder import going_on
from charrnn.runs.comparison_plan import Plan
from charrnn.storage.reading import refuse_another_text, refuse_text_within
from charrnn.storage.runfolder import checkpoints_in, has_state
from charrnn.text.corpus import Part
from charrnn.wording import joined, shown


def refuse_taken(folder: Path, plan: Plan, begun: Plan | None) -> None:
    """Refuse to begin a comparison, or a run of it, where there is another's work already."""
    if begun is None:
        refuse_used(folder)
        refuse_text_within(plan.text(), folder, "a comparison")
        known, instead = 0, "choose another folder with --run"
    else:
        known, instead = begun.seeds, "move it elsewhere"
    added = [one for one in plan.runs() if one[0] >= plan.seed + known]
    for path in (folder / plan.run_name(seed, cell) for seed, cell in added):
        if (path / RESULT).exists() or checkpoints_in(path):
            raise RunFolderError(
                f"{shown(path)}: holds a run already, that does not belong to this comparison: "
                f"{instead}"
            )


def refuse_used(folder: Path) -> None:
    """Refuse to begin a comparison where there is one already, or a run."""
    if folder.is_file():
        raise RunFolderError(f"{shown(folder)}: is a file: choose a folder with --run")
    if has_state(folder):
        holds = f"a run already: continue it with: {going_on(folder)}; or choose"
    elif (folder / LOCK).exists():
        holds = "a run that has saved nothing yet, or was killed before it did: choose"
    elif (folder / PLAN).exists():
        go_on = comparison_command(folder)
        holds = f"a comparison already: continue it with: {go_on}; or choose"
    elif checkpoints_in(folder):  # sample, for one, would take it for the comparison's
        holds = f"{BEST} of a run: choose"
    else:
        return
    raise RunFolderError(f"{shown(folder)}: holds {holds} another folder with --run")


def refuse_other_texts(plan: Plan, train: Part, valid: Part | None) -> None:
    """Refuse texts other than those that a comparison began with."""
    refuse = partial(
        refuse_another_text,
        of="this comparison",
        instead=", or compare anew in another folder with --run",
    )
    refuse(train.corpus, plan.fingerprint, plan.texts)
    if plan.valid and valid is not None:
        refuse(valid.corpus, plan.valid_fingerprint, plan.valid, "the validation text")


def refuse_another_machine(plan: Plan, device: torch.device) -> None:
    """Refuse to train the other runs of a comparison on another device, or without its bf16."""
    if plan.precision == "bf16" and not multiplies_bf16(device):
        raise UsageError(
            "the comparison began in bf16, which this device has no instructions for: go on with "
            "it where there are, or compare anew in another folder with --run"
        )
    if plan.device is not None and device.type != plan.device:
        raise UsageError(
            f"--device {device.type}: the comparison began on {plan.device}, and runs on two "
            "devices do not compare: leave it out, or compare anew in another folder with --run"
        )


def unequal_minutes(plan: Plan, done: Sequence[RunResult], device: torch.device) -> list[str]:
    """Return a note if other processors, threads or GPUs trained the finished runs of minutes."""
    if plan.minutes is None or plan.device not in ("cpu", "cuda"):
        return []
    here = worker(processor(), torch.get_num_threads())
    if device.type == "cuda":
        here = torch.cuda.get_device_name(device)
    by = dict.fromkeys(result.trained_by for result in done)
    others = [shown(one) for one in by if one is not None and one != here]
    if not others:
        return []
    return [
        f"finished runs were trained by {joined(others, 'and')}, and the others are by {here}: "
        "equal minutes are not equal work: go on where they were, or compare anew in another "
        "folder with --run"
    ]


def refuse_another_shape(
    path: Path, layers: int, hidden: int, parameters: int, shape: ModelConfig
) -> None:
    """Refuse to go on if the recipe now gives other sizes than a run has."""
    wanted = (shape.layers, shape.hidden, recipe.parameter_count(shape))
    if (layers, hidden, parameters) != wanted:
        raise UsageError(
            f"{shown(path)} has {layers} x {hidden} units and {parameters:,} parameters, and now "
            f"it would be {wanted[0]} x {wanted[1]} and {wanted[2]:,}: the defaults have changed "
            "since: go on with the version of charrnn that began it, or compare anew in another "
            "folder with --run"
        )
