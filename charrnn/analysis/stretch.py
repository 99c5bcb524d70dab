"""The text that ``inspect`` looks at, its windows, and the state before a window.

Axis letters: T time, B lanes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.analysis.properties import PROPERTIES
from charrnn.errors import CorpusError
from charrnn.network.model import CharModel, Hidden
from charrnn.text.corpus import Part
from charrnn.text.vocabulary import Vocabulary
from charrnn.wording import counted

#: Fewest characters that ``inspect`` accepts.
LEAST_CHARACTERS = 100


@dataclass(frozen=True)
class Stretch:
    """The text that is looked at."""

    text: str
    """One character per symbol; a byte that is not ASCII becomes U+FFFD."""
    ids: NDArray[np.int64]
    """The model's symbols for it, [T]."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def properties(self) -> dict[str, NDArray[np.float32]]:
        """What a reader sees at each character, by the names shown to the user."""
        return {
            name: np.array(measure(self.text), np.float32) for name, measure in PROPERTIES.items()
        }


def read_stretch(part: Part, vocabulary: Vocabulary) -> Stretch:
    """Read a part of a text as a whole.

    Raises:
        CorpusError: it has fewer than ``LEAST_CHARACTERS`` characters, or has changed.
    """
    if part.characters < LEAST_CHARACTERS:
        raise CorpusError(
            f"a text of {counted(part.characters, 'character')} is too short to inspect: give a "
            f"text, and --characters, of at least {LEAST_CHARACTERS}"
        )
    codes = np.concatenate([block.astype(np.uint32) for block in part.codes()])
    if vocabulary.is_bytes:
        text = codes.astype(np.uint8).tobytes().decode("ascii", "replace")
        return Stretch(text, codes.astype(np.int64))
    text = codes.astype("<u4").tobytes().decode("utf-32-le")
    return Stretch(text, vocabulary.encode_codes(codes).astype(np.int64))


def windows_at(
    ids: NDArray[np.int64], starts_B: NDArray[np.int64], length: int, model: CharModel
) -> Tensor:
    """Return the symbols [length, B] of windows with these starts, on the model's device."""
    ids_TB = ids[starts_B[None] + np.arange(length)[:, None]]
    return torch.from_numpy(ids_TB).to(model.device)


@torch.no_grad()
def warmed(model: CharModel, ids_TB: Tensor) -> Hidden:
    """Return the state after reading symbols, possibly none, from the zero state."""
    hidden = model.initial_hidden(ids_TB.shape[1])
    return model.read(ids_TB, hidden)[1] if len(ids_TB) else hidden
