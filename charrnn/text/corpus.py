"""Turn files into text: the scan by blocks, the split, the fingerprint.

A corpus may be larger than memory, so nothing here ever holds a whole text.
``scan`` reads every file once, by blocks: it decodes them, counts characters
by code point, hashes the bytes, and notes where each block begins in bytes
and in characters, with the decoder's state there. With that index, a
``Part`` can start at any character by reading from the block before it.

Text is read with ``read``, never mapped: a mapping of a file that shrinks
kills the process. Every later read compares the file with what the scan saw.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.errors import CorpusError
from charrnn.text.decoding import BYTES, Codes, Decoder, State, byte_order_mark, text_encoding
from charrnn.text.files import NotTextError, cannot_read, find_files, several
from charrnn.text.not_text import packed, undecodable, with_nul, with_swapped_mark
from charrnn.wording import reason, shown

#: Bytes between two entries of the seek index, and the size of the scan's reads. Smaller makes
#: seeking cheaper and the index longer: 1.3 GB has 10,000 entries. Larger blocks are no faster, and
#: their temporary arrays fragment the heap: the scan of 1.3 GB of C left it 10 MB larger with
#: 1 << 17, 17 MB with 1 << 18, 55 MB with 1 << 20.
BLOCK_BYTES = 1 << 17
#: Bytes at a file's beginning that tell what kind of file it is.
_HEAD = 8
#: Hexadecimal digits of a file's digest.
DIGEST = 16


class _Block(NamedTuple):
    """Where decoding can begin: one entry of a file's seek index."""

    characters: int
    """Characters of the file before this entry."""
    offset: int
    """Byte offset in the file at which to continue reading."""
    state: State
    """The decoder's state there; its first item holds the bytes of an incomplete character."""


class _Identity(NamedTuple):
    """What shows that a file is still the one that was scanned."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Identity:
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
    blocks: tuple[_Block, ...] = field(repr=False)
    """The seek index; the last entry is the file's end."""
    identity: _Identity = field(repr=False, compare=False)
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

    def _read(self, offset: int, count: int) -> tuple[bytes, _Identity]:
        """Return bytes of the file now at this path, and its identity."""
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(offset)
            data = stream.read(count)
            # One call may return less, for example from a network file system.
            while len(data) < count and (more := stream.read(count - len(data))):
                data += more
            return data, _Identity.of(os.fstat(stream.fileno()))

    def _know_again(self) -> None:
        """Accept the file now at this path as this one if it has the same bytes."""
        with self.path.open("rb", buffering=0) as stream:
            found = _Identity.of(os.fstat(stream.fileno()))
            if found.size != self.size:
                return
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:DIGEST]
            if digest == self.digest:
                # Harmless on a frozen object: the text is the same, only the file differs.
                object.__setattr__(self, "identity", found)

    def _changed_to(self, found: _Identity) -> CorpusError:
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
            return _as_dict(_count(self))
        rest = np.zeros(0, np.int64)
        for start, stop in ((0, self.start), (self.stop, self.corpus.characters)):
            rest = _add(rest, _count(Part(self.corpus, start, stop)))
        counts = dict(self.corpus.counts)
        for code, count in _as_dict(rest).items():
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


def scan(
    texts: Sequence[str],
    encoding: str = "utf-8",
    *,
    block_bytes: int = BLOCK_BYTES,
) -> Corpus:
    """Read every file once and return the corpus.

    Files named directly must be text in this encoding; in folders and among the
    matches of a pattern, those that are not are left out, and a note says so.

    Args:
        texts: files, folders and patterns, as ``find_files`` takes them.
        encoding: any text encoding that Python knows, or ``bytes``.
        block_bytes: bytes read at a time and between two entries of the seek index.

    Raises:
        CorpusError: a file is missing, unreadable, binary, wrongly encoded, or changes
            while it is read; or there is no text at all.
        UsageError: there is no such encoding.
    """
    encoding = text_encoding(encoding)
    found = find_files(texts)
    hasher = hashlib.sha256()
    counts = np.zeros(0, np.int64)
    files: list[TextFile] = []
    skipped: dict[Path, NotTextError] = {}
    characters = 0
    for path in found.files:
        # Copies, because the hashes and counts of a file that is not text are thrown away. For
        # the first file that is not empty, its own hash and the corpus's are the same.
        is_later = any(file.size for file in files)
        hashers = [hasher.copy(), *([hashlib.sha256()] if is_later else [])]
        try:
            file, file_counts = _scan_file(path, encoding, characters, hashers, block_bytes)
        except NotTextError as error:
            if path in found.explicit:
                raise
            skipped[path] = error
            continue
        hasher = hashers[0]
        counts = _add(counts, file_counts)
        characters += file.characters
        files.append(file)

    if characters == 0:
        raise _no_text(texts, encoding, list(skipped.values()), found.notes)
    return Corpus(
        files=tuple(files),
        encoding=encoding,
        characters=characters,
        fingerprint=hasher.hexdigest(),
        notes=(*found.notes, *_notes(files, skipped, encoding)),
        counts=_as_dict(counts),
    )


def _scan_file(
    path: Path,
    encoding: str,
    start: int,
    hashers: list[hashlib._Hash],
    block_bytes: int,
) -> tuple[TextFile, NDArray[np.int64]]:
    """Read one file for ``scan``; return it with its counts by code point.

    All hashers get its bytes; the last one gets only these.
    """
    decoder = Decoder(encoding)
    counts = np.zeros(0, np.int64)
    blocks: list[_Block] = []
    characters = 0
    last = "\n"
    try:
        with path.open("rb", buffering=0) as stream:
            identity = _Identity.of(os.fstat(stream.fileno()))
            head = stream.read(_HEAD)
            if head and identity.size == 0:
                raise NotTextError(
                    f"{shown(path)} has no known size, like all files in /proc: name a copy",
                    "of no known size",
                )
            mark = byte_order_mark(head, encoding)
            if refusal := with_swapped_mark(path, encoding, head):
                raise refusal
            decoder.decode(mark, final=False)  # the state remembers the byte order
            hashers[-1].update(mark)
            if mark and len(hashers) > 1:
                # A mark between files is dropped, but within a file it is text: files joined
                # beforehand are a different text and must have a different hash.
                hashers[0].update(hashlib.sha256(mark).digest())
            offset = stream.seek(len(mark))
            while True:
                state = decoder.state()
                blocks.append(_Block(characters, offset, state))
                # No further than its size at the start: a file that grows might never end.
                if not (data := stream.read(min(block_bytes, identity.size - offset))):
                    break
                final = offset + len(data) == identity.size
                try:
                    codes = decoder.decode(data, final=final)
                except UnicodeError as error:
                    raise undecodable(
                        path, encoding, error, data=data, state=state, offset=offset,
                        size=identity.size, head=head,
                    ) from None  # fmt: skip
                if len(blocks) == 1 and encoding != BYTES and not codes.all():
                    raise with_nul(path, encoding, codes, head)
                for hasher in hashers:
                    hasher.update(data)
                counts = _add(counts, np.bincount(codes))
                characters += len(codes)
                if len(codes):
                    last = chr(codes[-1])
                offset += len(data)
            unchanged = _Identity.of(os.fstat(stream.fileno())) == identity
    except OSError as error:
        raise cannot_read(path, error) from None
    if not unchanged or offset != identity.size:
        raise CorpusError(
            f"{shown(path)} changed while it was read: wait until nothing writes to it"
        )
    file = TextFile(
        path=path,
        start=start,
        characters=characters,
        size=identity.size,
        mark=len(mark),
        digest=hashers[-1].hexdigest()[:DIGEST],
        ends_line=last.splitlines() == [""],
        blocks=tuple(blocks),
        identity=identity,
    )
    return file, counts


def _no_text(
    texts: Sequence[str], encoding: str, why_not: list[NotTextError], notes: Sequence[str]
) -> CorpusError:
    """Return the error for texts without any character, with why files were skipped."""
    names = ", ".join(map(shown, texts[:3])) + ", ..." * (len(texts) > 3)
    has_folders = any(map(os.path.isdir, texts))
    why = "; ".join(notes) or "it is empty" + ", hidden files aside" * has_folders
    if why_not:
        text = encoding if encoding == BYTES else f"{encoding} text"
        why = f"none of its files can be read as {text}; {why_not[0]}"
    return CorpusError(f"no text in {names}: {why}")


def _notes(
    files: list[TextFile], skipped: Mapping[Path, NotTextError], encoding: str
) -> Iterator[str]:
    """Yield notes for the user on the files that were read and those that were left out."""
    left_out: dict[str, list[Path]] = {}
    for path, error in skipped.items():
        left_out.setdefault(error.reason or f"not {encoding} text", []).append(path)
    for why, paths in left_out.items():
        yield several(paths, f"left out ({why})")
    if encoding == BYTES:
        yield from _as_they_are(files)
    if marked := [file.path for file in files if file.mark]:
        yield several(marked, "read without its byte order mark")
    *before, _ = (file for file in files if file.characters)
    unended = [file.path for file in before if not file.ends_line]
    if unended and encoding != BYTES:
        yield several(unended, "no line break at its end, so it runs into the next")


def _as_they_are(files: list[TextFile]) -> Iterator[str]:
    """Yield notes on packed files, whose packed bytes are learned instead of their text."""
    found: dict[str, list[Path]] = {}
    for file in files:
        if said := packed(file.read(0, _HEAD)):
            found.setdefault(said[0], []).append(file.path)
    for what, paths in found.items():
        yield several(paths, f"{what}, and read as it is")


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
        counts = _add(counts, np.bincount(codes))
    return counts


def _add(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of two arrays of counts, made in the longer one.

    A new array for every block would be a megabyte once a text has had an emoji.
    """
    short, long = sorted((a, b), key=len)
    long[: len(short)] += short
    return long


def _as_dict(counts: NDArray[np.int64]) -> dict[int, int]:
    return {int(code): int(counts[code]) for code in np.flatnonzero(counts)}
