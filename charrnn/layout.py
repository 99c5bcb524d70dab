"""Where runs are, and the names of the files in their folders."""

from __future__ import annotations

import re
from pathlib import Path

#: The folder of the runs that are given none.
RUNS = Path("checkpoints")

#: In a run's folder: the best by validation loss, and the newest, with the complete state.
BEST, LAST = "best.safetensors", "last.safetensors"
#: Lock file, held by the process that trains.
LOCK = "lock"
#: A run's log.
LOG = "metrics.jsonl"
#: The result of a finished run of a comparison.
RESULT = "result.json"
#: What a comparison compares, in its own folder.
PLAN = "comparison.json"
#: Files that are no checkpoints in the folders of runs and comparisons; the lock may be empty.
BESIDE = frozenset({LOCK, LOG, PLAN, RESULT})
#: A folder with all files of one of these sets is a run's or a comparison's. It is not read as
#: text: what runs write there would make the text a different one at every start.
OF_RUNS = ({LOCK, LOG}, {PLAN})

_GENERATION = re.compile(r"step-(\d{8,})\.safetensors")


def generation(step: int) -> str:
    """Return the name of an earlier checkpoint, by its number of updates."""
    return f"step-{step:08d}.safetensors"


def step_of_generation(name: str) -> int | None:
    """Return the number of updates in the name of an earlier checkpoint; None if it is none."""
    found = _GENERATION.fullmatch(name)
    return int(found[1]) if found else None
