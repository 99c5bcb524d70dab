"""A text in files: read from any of its characters, cut into parts.

A corpus may be larger than memory, so nothing here ever holds a whole text.
``scanning.scan`` has noted where blocks of the files begin in bytes and in
characters, with the decoder's state there. With that index, a ``Part`` can
start at any character by reading from the block before it.

Text is read with ``read``, never mapped: a mapping of a file that shrinks
kills the process. Every read compares the file with what the scan saw.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.disk import opened
from charrnn.errors import CorpusError
from charrnn.text.decoding import BYTES, Codes, Decoder, State
from charrnn.wording import reason, shown

#: Bytes between two entries of the seek index, and the size of the scan's reads. Smaller makes
#: seeking cheaper and the index longer: 1.3 GB has 10,000 entries. Larger blocks are no faster, and
#: their temporary arrays fragment the heap: the scan of 1.3 GB of C left it 10 MB larger with
#: 1 << 17, 17 MB with 1 << 18, 55 MB with 1 << 20.
BLOCK_BYTES = 1 << 17
#: Hexadecimal digits of a file's digest.
DIGEST = 16


class Block(NamedTuple):
    """Where decoding can begin: one entry of a file's seek index."""

    characters: int
    """Characters of the file before this entry."""
    offset: int
    """Byte offset in the file at which to continue reading."""
    state: State
    """The decoder's state there; its first item holds the bytes of an incomplete character."""


class Identity(NamedTuple):
    """What shows that a file is still the one that was scanned."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Return the identity of a file, from what the system says of it."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class TextFile:
    """One file of a corpus, as the scan found it."""

    path: Path
    start: int
    """Characters of the corpus before this file."""
    characters: int
    size: int
    """Bytes on disk."""
    mark: int
    """Bytes of the byte order mark at its beginning, which are not text."""
    digest: str
    """The first ``DIGEST`` hexadecimal digits of its bytes' SHA-256: the same for the same text,
    whatever the file is called and wherever it lies."""
    ends_line: bool
    """Whether its last character is a line break, or there is none."""
    blocks: tuple[Block, ...] = field(repr=False)
    """The seek index; the last entry is the file's end."""
    identity: Identity = field(repr=False, compare=False)
    """As the scan found it, or as it was when its bytes were last found to be the same."""

    @property
    def stop(self) -> int:
        """Characters of the corpus up to the end of this file."""
        return self.start + self.characters

    def read(self, offset: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``offset``; fewer only at the file's end.

        The file is opened anew each time: that costs some 10 microseconds, keeps a run
        with thousands of lanes from running out of file handles, and makes the check see
        a file that was replaced under its name. One that was only touched, or replaced by a
        copy, is recognised by its bytes.

        Raises:
            CorpusError: the file is gone, unreadable, or changed since the scan.
        """
        try:
            data, found = self._read(offset, count)
            if found != self.identity:
                self._know_again()
                data, found = self._read(offset, count)
        except OSError as error:
            raise CorpusError(
                f"{shown(self.path)} can no longer be read ({reason(error)}): put it back as it was"
            ) from None
        if found != self.identity:
            raise self._changed_to(found)
        return data

    def _read(self, offset: int, count: int) -> tuple[bytes, Identity]:
        """Return bytes of the file now at this path, and its identity."""
        with opened(self.path) as stream:
            stream.seek(offset)
            data = stream.read(count)
            # One call may return less, for example from a network file system.
            while len(data) < count and (more := stream.read(count - len(data))):
                data += more
            return data, Identity.of(os.fstat(stream.fileno()))

    def _know_again(self) -> None:
        """Accept the file now at this path as this one if it has the same bytes."""
        with opened(self.path) as stream:
            found = Identity.of(os.fstat(stream.fileno()))
            if found.size != self.size:
                return
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:DIGEST]
            if digest == self.digest:
                # Harmless on a frozen object: the text is the same, only the file differs.
                object.__setattr__(self, "identity", found)

    def _changed_to(self, found: Identity) -> CorpusError:
        """Return the error for a file that is no longer as it was scanned."""
        then = self.identity
        if found.size != self.size:
            verb = "shrank" if found.size < self.size else "grew"
            change = f"{verb} from {self.size:,} to {found.size:,} bytes"
        elif (found.device, found.inode) != (then.device, then.inode):
            change = "was replaced by another file"
        else:
            change = "was written to"
        return self.changed(change)

    def changed(self, change: str = "changed") -> CorpusError:
        """Return the error for a file that is no longer as it was scanned.

        Args:
            change: what happened to it; "changed" where only its bytes show it, which can happen
                only on a file system without exact modification times.
        """
        return CorpusError(
            f"{shown(self.path)} {change} since it was scanned: "
            "leave a text alone while it is in use"
        )

    def is_one_byte_each(self, number: int) -> bool:
        """Whether the characters from index entry ``number`` to the next take one byte each."""
        block, end = self.blocks[number], self.blocks[number + 1]
        return end.offset - block.offset == end.characters - block.characters and not block.state[0]

    def byte_of(self, characters: int, encoding: str) -> int:
        """Return the byte offset at which the first ``characters`` characters end.

        In a stateful encoding, an escape sequence belongs to the character after it.

        Raises:
            CorpusError: the file is gone, unreadable, or changed since the scan.
        """
        if characters == 0:
            return self.mark
        if characters == self.characters:
            return self.size
        # The last entry with fewer characters before it, so that at least one comes from its block.
        number = bisect_left(self.blocks, characters, key=lambda block: block.characters) - 1
        block, end = self.blocks[number], self.blocks[number + 1]
        data = self.read(block.offset, end.offset - block.offset)

        def characters_in(length: int) -> int:
            decoder, final = Decoder(encoding, block.state), block.offset + length == self.size
            try:
                return block.characters + len(decoder.decode(data[:length], final=final))
            except UnicodeError:
                raise self.changed() from None

        length = bisect_left(range(len(data) + 1), characters, key=characters_in)
        if length > len(data):
            raise self.changed()
        return block.offset + length


@dataclass(frozen=True)
class Corpus:
    """Files, scanned once and joined in order with nothing between them."""

    files: tuple[TextFile, ...] = field(repr=False)
    encoding: str
    """A codec's own name (``utf-8``, ``iso8859-1``, ...) or ``bytes``."""
    characters: int
    fingerprint: str
    """SHA-256, in hexadecimal, of the files' bytes one after another: what ``cat FILES |
    sha256sum`` prints, unless a later file begins with a byte order mark. Names and dates do not
    matter."""
    notes: tuple[str, ...]
    """Notes for the user: files left out, byte order marks, files that run into the next."""
    counts: Mapping[int, int] = field(repr=False, compare=False)
    """Code point -> occurrences in the whole text."""

    def part(self, start: int, stop: int) -> Part:
        """Return the characters from ``start`` up to but not including ``stop``.

        Raises:
            ValueError: there are no such characters.
        """
        return Part(self, start, stop)

    @property
    def whole(self) -> Part:
        """All characters."""
        return Part(self, 0, self.characters)


@dataclass(frozen=True)
class Part:
    """A contiguous stretch of a corpus, from character ``start`` to before ``stop``.

    Raises:
        ValueError: the corpus has no such stretch.
    """

    corpus: Corpus
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= self.corpus.characters:
            raise ValueError(
                f"no stretch {self.start}:{self.stop} in {self.corpus.characters} characters"
            )

    @property
    def characters(self) -> int:
        """Length in characters."""
        return self.stop - self.start

    @cached_property
    def predicted(self) -> Part:
        """All characters but the first, which nothing predicts."""
        return Part(self.corpus, self.start + 1, self.stop)

    def first(self, characters: int) -> Part:
        """Return the beginning, at most ``characters`` long."""
        return Part(self.corpus, self.start, min(self.stop, self.start + characters))

    def last(self, characters: int) -> Part:
        """Return the end, at most ``characters`` long."""
        return Part(self.corpus, max(self.start, self.stop - characters), self.stop)

    def encoded_size(self) -> int:
        """Return the number of bytes that the characters take in the files.

        Reads the files at both ends of the part; errors as in ``codes``.
        """
        return sum(stop - start for _, start, stop in self._stretches())

    def encoded(self, *, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
        """Yield the bytes that the characters take in the files; errors as in ``codes``.

        Encoding the characters again could give other bytes, or fail: many encodings have
        several byte sequences for one text, and Python cannot encode every character that it
        decodes.
        """
        for file, start, stop in self._stretches():
            for offset in range(start, stop, block_bytes):
                yield file.read(offset, min(block_bytes, stop - offset))

    def _stretches(self) -> Iterator[tuple[TextFile, int, int]]:
        """Yield each file of the part, with its first byte's offset and the one after its last."""
        encoding = self.corpus.encoding
        for file in self.corpus.files:
            start, stop = max(self.start, file.start), min(self.stop, file.stop)
            if start < stop:
                first = file.byte_of(start - file.start, encoding)
                yield file, first, file.byte_of(stop - file.start, encoding)

    def is_same_as(self, other: Part) -> bool:
        """Whether both are the same bytes of the same text, even if read in different encodings.

        Errors as in ``codes``.
        """
        if self.corpus.fingerprint != other.corpus.fingerprint:
            return False
        if self.corpus.encoding == other.corpus.encoding:
            return (self.start, self.stop) == (other.start, other.stop)

        def in_bytes(part: Part) -> tuple[int, int]:
            return part.corpus.part(0, part.start).encoded_size(), part.encoded_size()

        return in_bytes(self) == in_bytes(other)

    def codes(
        self, start: int = 0, *, block_bytes: int = BLOCK_BYTES
    ) -> Generator[Codes, None, None]:
        """Yield the code points of the part, in order, block by block.

        Args:
            start: character of the part to begin at; of what lies before it, less than
                one block of the seek index is read.
            block_bytes: bytes read at a time.

        Yields:
            One-dimensional, never empty arrays. uint8 where a block is ASCII, and always
            under the encoding ``bytes``; uint32 otherwise.

        Raises:
            CorpusError: a file is gone, unreadable, or changed since the scan.
        """
        position = self.start + start
        files = self.corpus.files
        first = bisect_right(files, position, key=lambda file: file.start) - 1
        for number in range(first, len(files)):
            file = files[number]
            stop = min(self.stop, file.stop)
            if position < stop:
                cursor = _Cursor(file, self.corpus.encoding, position)
                while cursor.position < stop:
                    # Not through a variable: a suspended generator should not keep a block alive.
                    yield cursor.read(block_bytes, stop)
                position = stop
            if position == self.stop:
                return

    def each_code(self) -> Iterator[int]:
        """Yield the code points of the part one by one; errors as in ``codes``."""
        for block in self.codes():
            yield from block.tolist()

    @cached_property
    def counts(self) -> Mapping[int, int]:
        """Code point -> occurrences; read when first asked for.

        Reads the smaller of the part and the rest of the corpus; the rest's counts are
        subtracted from the whole's. Errors as in ``codes``.
        """
        if 2 * self.characters <= self.corpus.characters:
            return by_code_point(_count(self))
        rest = np.zeros(0, np.int64)
        for start, stop in ((0, self.start), (self.stop, self.corpus.characters)):
            rest = add_counts(rest, _count(Part(self.corpus, start, stop)))
        counts = dict(self.corpus.counts)
        for code, count in by_code_point(rest).items():
            counts[code] = counts.get(code, 0) - count
            if counts[code] < 0:  # a file changed; which one is unknown
                raise self.corpus.files[-1].changed()
        return {code: count for code, count in counts.items() if count}


class Split(NamedTuple):
    """The parts of a corpus, in the order of the text."""

    train: Part
    valid: Part | None
    test: Part | None


def exact(share: float) -> Fraction:
    """Return a share as an exact decimal fraction: in floats 1 - 0.1 - 0.2 is not 0.7."""
    return Fraction(repr(float(share)))


def split(corpus: Corpus, valid_share: float = 0.1, test_share: float = 0.0) -> Split:
    """Cut a corpus into a training part, a validation part and a test part, in this order.

    The borders are computed exactly from the decimal shares and rounded down: of 1,115,394
    characters, 0.1 leaves 1,003,854 for training. A held-out part of fewer than two
    characters has nothing to predict and is None.

    Args:
        corpus: the corpus to cut.
        valid_share: share of its characters for validation, as ``TextChoices`` allows it.
        test_share: share for the test part.
    """
    valid, test = exact(valid_share), exact(test_share)
    total = corpus.characters
    train_stop = int(total * (1 - valid - test))
    valid_stop = int(total * (1 - test))

    def held_out(start: int, stop: int) -> Part | None:
        return corpus.part(start, stop) if stop - start >= 2 else None

    return Split(
        corpus.part(0, train_stop), held_out(train_stop, valid_stop), held_out(valid_stop, total)
    )


class _Cursor:
    """Reads one file forwards from any of its characters.

    Attributes:
        position: the next character, counted from the corpus's beginning.
    """

    def __init__(self, file: TextFile, encoding: str, position: int) -> None:
        self.position = position
        self._file = file
        character = position - file.start
        number = bisect_right(file.blocks, character, key=lambda block: block.characters) - 1
        block = file.blocks[number]
        self._decoder = Decoder(encoding, block.state)
        self._offset = block.offset
        self._skip = character - block.characters  # characters from the entry to the position
        if encoding in ("utf-8", BYTES) and file.is_one_byte_each(number):
            self._offset += self._skip
            self._skip = 0

    def read(self, count: int, stop: int) -> Codes:
        """Return the next code points, from about ``count`` bytes, and none from ``stop`` on."""
        while True:
            data = self._file.read(self._offset, count)
            self._offset += len(data)
            try:
                codes = self._decoder.decode(data, final=self._offset >= self._file.size)
            except UnicodeError:
                raise self._file.changed() from None
            if not data:
                raise self._file.changed()
            if len(codes) > self._skip:
                codes = codes[self._skip : self._skip + stop - self.position]
                self.position += len(codes)
                self._skip = 0
                return codes
            self._skip -= len(codes)


def _count(part: Part) -> NDArray[np.int64]:
    """Return occurrences by code point, read from the files."""
    counts = np.zeros(0, np.int64)
    for codes in part.codes():
        counts = add_counts(counts, np.bincount(codes))
    return counts


def add_counts(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of two arrays of counts, made in the longer one.

    A new array for every block would be a megabyte once a text has had an emoji.
    """
    short, long = sorted((a, b), key=len)
    long[: len(short)] += short
    return long


def by_code_point(counts: NDArray[np.int64]) -> dict[int, int]:
    """Return code point -> occurrences, for those that occur."""
    return {int(code): int(counts[code]) for code in np.flatnonzero(counts)}
