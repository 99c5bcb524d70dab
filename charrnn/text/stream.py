"""Cut ids into lanes of consecutive windows, with a position that can be saved.

This is the batching of stateful truncated backpropagation through time (Williams and Peng
1990): a part of a text is cut into B contiguous lanes, read side by side in windows of T
characters. Window k of a lane begins where window k - 1 ended, so the hidden state is
carried over. A position is one number, the step: nothing else is needed to resume.

Axes: T time, B lanes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from charrnn.text.corpus import Part
from charrnn.text.vocabulary import Ids, Vocabulary

#: Bytes that a Reader reads from its file at a time, and about the size of the ids it holds.
#: Times the lanes, this is the memory of a stream: 2 MB for 64 lanes with one-byte ids.
_READ_BYTES = 1 << 15


class Reader:
    """One lane: the ids of consecutive characters of a part, from any position.

    Holds one block of ids and no open file, whatever the length of the text.

    Attributes:
        position: the character of the part that ``read`` returns next.
    """

    def __init__(self, part: Part, vocabulary: Vocabulary, start: int = 0) -> None:
        self.position = start
        self._vocabulary = vocabulary
        self._blocks = part.codes(start, block_bytes=_READ_BYTES)
        self._ids: Ids = np.empty(0, vocabulary.dtype)
        self._next = 0  # index in the block of the first id not yet returned

    def read(self, count: int) -> Ids:
        """Return the next ``count`` ids; fewer at the part's end, and none after it.

        The array may share memory with the Reader's block and must not be written to.

        Raises:
            CorpusError: a file is gone, unreadable, or changed since the scan.
        """
        pieces = [self._ids[self._next : self._next + count]]
        self._next += len(pieces[0])
        missing = count - len(pieces[0])
        while missing and (codes := next(self._blocks, None)) is not None:
            self._ids = self._vocabulary.encode_codes(codes)
            pieces.append(self._ids[:missing])
            self._next = len(pieces[-1])
            missing -= self._next
        self.position += count - missing
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class Windows(NamedTuple):
    """How a part is cut into lanes and windows."""

    length: int
    """Predictions per lane."""
    bptt: int
    """T, at most ``length``."""
    stride: int
    """Characters from one window of a lane to the next."""
    steps_per_epoch: int
    """Windows per lane."""

    @classmethod
    def of(cls, characters: int, batch_size: int, bptt: int, loss_last: int | None) -> Self:
        """Return the windows of a part with so many characters; other arguments as in ``Lanes``.

        Raises:
            ValueError: there are fewer predictions than lanes; ``recipe.fit_lanes`` gives values
                that fit.
        """
        length = (characters - 1) // batch_size
        if length < 1:
            raise ValueError(f"{characters} characters are too few for {batch_size} lanes")
        bptt = min(bptt, length)
        stride = bptt if loss_last is None else min(loss_last, bptt)
        # Rounded up: the rest of a lane makes a short last window.
        return cls(length, bptt, stride, -(-(length - (bptt - stride)) // stride))


@dataclass(frozen=True)
class Batch:
    """One window of every lane."""

    x_TB: Tensor
    """The characters read, int64."""
    y_TB: Tensor
    """The character after each of them, to be predicted, int64."""
    begins_epoch: bool
    """Whether a pass begins here: the hidden state must be zero."""
    counted: int
    """Time steps whose loss counts: the last ones of the window."""
    unknown: int
    """How many predictions that count are of a character that the vocabulary lacks. Those of
    characters held back are not: the vocabulary has them, whatever they are read as."""

    @property
    def characters(self) -> int:
        """Predictions whose loss counts, over all lanes."""
        return self.counted * self.x_TB.shape[1]


class Lanes:
    """A part of a text as B lanes of consecutive windows, pass after pass without end.

    A part of n characters has n - 1 predictions. Each lane makes (n - 1) // B consecutive
    ones; the target of its last one is the next lane's first character. Fewer than B are
    left over at the part's end. The last batch of a pass may be shorter than the others.

    With ``loss_last`` N below T, windows overlap: each begins N characters after the one
    before. Its first T - N predictions only build up the hidden state; the loss counts the
    last N. So the state to carry over is the one after N time steps.

    Characters in ``held_back`` are read as the unknown symbol in every second pass
    (``Vocabulary.read_as``).

    Attributes:
        batch_size: B.
        bptt: T, at most the length of a lane.
        stride: characters from one window of a lane to the next: N, or T without ``loss_last``.
        steps_per_epoch: steps of one pass over the part.

    Raises:
        ValueError: as for ``Windows.of``.
    """

    def __init__(
        self,
        part: Part,
        vocabulary: Vocabulary,
        batch_size: int,
        bptt: int,
        loss_last: int | None = None,
        held_back: Ids | None = None,
    ) -> None:
        self.batch_size = batch_size
        self._length, self.bptt, self.stride, self.steps_per_epoch = Windows.of(
            part.characters, batch_size, bptt, loss_last
        )
        self._part = part
        self._vocabulary = vocabulary
        self._held_back = np.empty(0, vocabulary.dtype) if held_back is None else held_back

    @property
    def characters_per_step(self) -> int:
        """Predictions per step whose loss counts; there may be fewer at a pass's end."""
        return self.batch_size * self.stride

    def position(self, step: int) -> tuple[int, int, int]:
        """Return where a step begins: the pass, the batch in it, lane 0's character of the part.

        The other lanes' characters follow at distances of (n - 1) // B.
        """
        epoch, batch_index = divmod(step, self.steps_per_epoch)
        return epoch, batch_index, batch_index * self.stride

    def batches(self, step: int = 0) -> Iterator[Batch]:
        """Yield the batches from a step on, without end.

        It seeks to the step instead of reading up to it.

        Raises:
            CorpusError: a file is gone, unreadable, or changed since the scan.
        """
        epoch, first_batch, _ = self.position(step)
        while True:
            yield from self._batches_of_epoch(epoch, first_batch)
            epoch, first_batch = epoch + 1, 0

    def _batches_of_epoch(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        start = first_batch * self.stride
        readers = [
            Reader(self._part, self._vocabulary, lane * self._length + start)
            for lane in range(self.batch_size)
        ]
        context = self.bptt - self.stride
        read_as_V = self._vocabulary.read_as(self._held_back, epoch)
        # What a window shares with the one before, and a character that was a target there.
        kept_BT = np.stack([reader.read(context + 1) for reader in readers])
        for batch_index in range(first_batch, self.steps_per_epoch):
            new = min(self.stride, self._length - context - batch_index * self.stride)
            new_BT = np.stack([reader.read(new) for reader in readers])
            ids_BT = np.concatenate([kept_BT, new_BT], axis=1)
            kept_BT = ids_BT[:, -context - 1 :]
            # A new array every time: the caller may still be copying the last one.
            ids_TB = torch.from_numpy(read_as_V.take(ids_BT.T))
            yield Batch(
                x_TB=ids_TB[:-1],
                y_TB=ids_TB[1:],
                begins_epoch=batch_index == 0,
                counted=new,
                unknown=int(self._vocabulary.is_unknown(new_BT).sum()),
            )
