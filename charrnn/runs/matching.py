"""The shapes of a comparison's models: equally wide, or with equally many parameters.

The number of layers, the embedding, lanes, window and precision are equal in any case. Learning
rates, weight decay, dropout and its masks, weight drop and loss temperature follow each cell's
recipe where they are not given.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from functools import partial
from typing import Any

from charrnn import recipe
from charrnn.config import LARGEST_SIZE, CellName, ModelConfig
from charrnn.runs.comparison_plan import Plan

#: The cell whose recipe gives the numbers that all cells share.
REFERENCE = recipe.DEFAULT_CELL
#: Parameters count as matched if they differ by no more than this share.
TOLERANCE = 0.01


def matched_hidden(shape: ModelConfig, parameters: int, multiple: int = 1) -> int:
    """Return the width at which a model comes closest to a number of parameters.

    Args:
        shape: the model's, whose width does not matter.
        parameters: the number wanted.
        multiple: the width is a multiple of this.
    """

    def off(times: int) -> int:
        return recipe.parameter_count(replace(shape, hidden=times * multiple)) - parameters

    # Parameters grow with the width: bisect for where they pass the number wanted.
    high, most = 2, LARGEST_SIZE // multiple
    while off(high) < 0 and high < most:
        high = min(2 * high, most)
    at = bisect_left(range(high), 0, lo=2, key=off)
    return multiple * min((at - 1, at), key=lambda times: abs(off(times)))


def shapes(
    plan: Plan, *, vocabulary: int, characters: int, device: str, bf16: bool = False
) -> tuple[dict[CellName, ModelConfig], dict[str, Any], list[str]]:
    """Return every cell's shape, and the training numbers that all cells share.

    Args:
        plan: what is compared.
        vocabulary: V.
        characters: length of the training part.
        device: "cpu", "cuda" or "mps".
        bf16: whether the device is good at recurrences in bf16 (``device.recurs_in_bf16``).

    Returns:
        The shapes; lanes, window and precision; notes for the user, mainly on what could not be
        matched.
    """
    choose = partial(
        recipe.choose, vocabulary=vocabulary, characters=characters, device=device, bf16=bf16
    )
    reference, training = choose(plan.choices(REFERENCE))
    wished = recipe.parameter_count(reference)
    is_gpu = device == "cuda" and training.precision == "bf16"
    found: dict[CellName, ModelConfig] = {}
    notes = []
    for cell in plan.cells:
        shape, _ = choose(plan.choices(cell, **sizes(reference)))
        if plan.match == "parameters" and cell != REFERENCE:
            for multiple in (recipe.GPU_MULTIPLE, 1) if is_gpu else (1,):
                shape = replace(shape, hidden=matched_hidden(shape, wished, multiple))
                off = recipe.parameter_count(shape) / wished - 1
                if abs(off) <= TOLERANCE:
                    break
            else:
                notes.append(
                    f"{cell}: {100 * abs(off):.1f} % {'more' if off > 0 else 'fewer'} parameters "
                    f"than the {REFERENCE}; no width comes closer: give a larger --hidden"
                )
        found[cell] = shape
    if plan.hidden is not None and plan.match == "parameters" and REFERENCE not in found:
        widths = ", ".join(f"{cell} {shape.hidden}" for cell, shape in found.items())
        notes.append(
            f"--hidden {plan.hidden} is the {REFERENCE}'s, to whose parameters widths are matched: "
            f"{widths} units"
        )
    shared = {name: getattr(training, name) for name in ("batch_size", "bptt", "precision")}
    return found, shared, notes


def sizes(shape: ModelConfig) -> dict[str, int]:
    """Return the sizes of a shape that a run is given."""
    return {"layers": shape.layers, "hidden": shape.hidden, "embedding": shape.embedding}
