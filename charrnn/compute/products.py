"""What the C files that include ``products.h`` have in common: matrices in panels, and threads.

Axis letters: K a product's inner axis, N its columns.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from charrnn.compute.library import Library, compiled_or_why
from charrnn.config import CellName, WeightsName

IN_C: tuple[CellName, ...] = ("rnn", "lstm", "gru")
"""The cells that C computes, in the order of the enum in ``products.h``: there a cell is its number
here."""
_LEAST_LANES = 4
"""Fewest lanes that are worth a thread: with fewer sums a core's multipliers are not busy."""

_LEAST_BYTES = 1 << 19
"""Fewest bytes of matrices for each of the threads that share out the units."""

_WORDS = {
    torch.bfloat16: (torch.uint16, torch.int16, torch.int32),
    torch.int8: (torch.uint8, torch.int8, torch.int16),
}
"""Types that are multiplied in pairs: the unsigned and the signed integer of the same size, and the
word that holds a pair."""


class Multiplier(Library):
    """A compiled file that includes ``products.h``.

    Args:
        library: the compiled library.

    Attributes:
        multiplies_bf16: whether the library has bf16 products on this processor, tiles or not.
        multiplies_int8: the same for int8.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(library)
        for name in ("panel_width", "narrow_depth", "byte_depth"):
            getattr(library, name).restype = ctypes.c_long
        library.prepare()
        self._width: int = library.panel_width()
        self._depths: dict[torch.dtype, int] = {
            torch.float32: 1,
            torch.bfloat16: library.narrow_depth(),
            torch.int8: library.byte_depth(),
        }
        self.multiplies_bf16 = self._depths[torch.bfloat16] > 0
        self.multiplies_int8 = self._depths[torch.int8] > 0

    def _panels(self, weight_KN: Tensor) -> Tensor:
        """Return a matrix in the panels of ``products.h``, padded with zeros, in its own type.

        The shape is [panels, K, width] in float32, [panels, K / 2, width * 2] in bf16 and int8.
        """
        dtype = weight_KN.dtype
        depth = self._depths[dtype]
        is_turned = weight_KN.stride(0) == 1  # its columns are contiguous
        inner, columns = weight_KN.shape
        more_rows, more_columns = -inner % depth, -columns % self._width
        if (more_rows or more_columns) and is_turned:
            weight_KN = torch.nn.functional.pad(weight_KN.t(), (0, more_rows, 0, more_columns)).t()
        elif more_rows or more_columns:
            weight_KN = torch.nn.functional.pad(weight_KN, (0, more_columns, 0, more_rows))

        def split(rows_KN: Tensor) -> Tensor:
            panels = (columns + more_columns) // self._width
            return rows_KN.reshape(-1, panels, self._width).transpose(0, 1)

        if dtype not in _WORDS:
            return split(weight_KN).contiguous()
        # Two rows as one row of words: torch copies that far faster than an axis of length two.
        unsigned, signed, word = _WORDS[dtype]
        if is_turned:
            return split(weight_KN.t().contiguous().view(word).t()).contiguous().view(dtype)
        low, high = split(weight_KN.view(unsigned)[::2]), split(weight_KN.view(signed)[1::2])
        packed = low.to(word, memory_format=torch.contiguous_format)
        return packed.add_(high, alpha=1 << torch.iinfo(signed).bits).view(dtype)


def ways_to_share(lanes: int, nbytes: int, most: int) -> list[tuple[int, bool]]:
    """Return how threads can share out a step: how many, and whether each has its own lanes.

    Threads with their own lanes need not wait for each other. If they share out the units
    instead, each multiplies a part of the matrices by all lanes. That part may fit its core's
    cache, so on a quiet machine it can be several times as fast; on a busy one it is slower. The
    result is the same.

    Args:
        lanes: how many there are.
        nbytes: the size of all matrices.
        most: how many threads there are.
    """
    by_lanes = max(1, min(most, lanes // _LEAST_LANES))
    ways = [(by_lanes, True)]
    by_units = min(most, nbytes // _LEAST_BYTES)
    while by_units >= max(2, by_lanes):
        ways.append((by_units, False))
        by_units //= 2
    return ways


def why_none(kind: type[Multiplier], weights: WeightsName = "fp32") -> str | None:
    """Return why there are no compiled products with such weights, such as "none is found here".

    None if there are.
    """
    made = compiled_or_why(kind)
    if isinstance(made, str):
        return made
    multiplies = {"fp32": True, "bf16": made.multiplies_bf16, "int8": made.multiplies_int8}
    if multiplies[weights]:
        return None
    return f"there are no products in {weights} for this processor"
