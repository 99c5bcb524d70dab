"""Turn files into text: one pass over every file, by blocks.

It decodes the blocks, counts characters by code point, hashes the bytes, and
notes where each block begins: the index by which ``corpus`` reads a text from
any of its characters.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from charrnn.disk import opened
from charrnn.errors import CorpusError
from charrnn.text.corpus import (
    BLOCK_BYTES,
    DIGEST,
    Block,
    Corpus,
    Identity,
    TextFile,
    add_counts,
    by_code_point,
)
from charrnn.text.decoding import BYTES, Decoder, byte_order_mark, text_encoding
from charrnn.text.files import NotTextError, cannot_read, find_files, several
from charrnn.text.not_text import Nameable, packed, undecodable, with_nul, with_swapped_mark
from charrnn.wording import shown

#: Bytes at a file's beginning that tell what kind of file it is.
_HEAD = 8


def scan(
    texts: Sequence[str],
    encoding: str = "utf-8",
    nameable: Nameable = "any",
    *,
    block_bytes: int = BLOCK_BYTES,
) -> Corpus:
    """Read every file once and return the corpus.

    Files named directly must be text in this encoding; in folders and among the
    matches of a pattern, those that are not are left out, and a note says so.

    Args:
        texts: files, folders and patterns, as ``find_files`` takes them.
        encoding: any text encoding that Python knows, or ``bytes``.
        nameable: which encodings the user may name, for the advice on a file in another.
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
            file, file_counts = _scan_file(
                path, encoding, characters, hashers, block_bytes, nameable
            )
        except NotTextError as error:
            if path in found.explicit:
                raise
            skipped[path] = error
            continue
        hasher = hashers[0]
        counts = add_counts(counts, file_counts)
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
        counts=by_code_point(counts),
    )


def _scan_file(
    path: Path,
    encoding: str,
    start: int,
    hashers: list[hashlib._Hash],
    block_bytes: int,
    nameable: Nameable,
) -> tuple[TextFile, NDArray[np.int64]]:
    """Read one file for ``scan``; return it with its counts by code point.

    All hashers get its bytes; the last one gets only these.
    """
    decoder = Decoder(encoding)
    counts = np.zeros(0, np.int64)
    blocks: list[Block] = []
    characters = 0
    last = "\n"
    try:
        with opened(path) as stream:
            identity = Identity.of(os.fstat(stream.fileno()))
            head = stream.read(_HEAD)
            if head and identity.size == 0:
                raise NotTextError(
                    f"{shown(path)} has no known size, like all files in /proc: name a copy",
                    "of no known size",
                )
            mark = byte_order_mark(head, encoding)
            if refusal := with_swapped_mark(path, encoding, head, nameable):
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
                blocks.append(Block(characters, offset, state))
                # No further than its size at the start: a file that grows might never end.
                if not (data := stream.read(min(block_bytes, identity.size - offset))):
                    break
                final = offset + len(data) == identity.size
                try:
                    codes = decoder.decode(data, final=final)
                except UnicodeError as error:
                    raise undecodable(
                        path, encoding, error, data=data, state=state, offset=offset,
                        size=identity.size, head=head, nameable=nameable,
                    ) from None  # fmt: skip
                if len(blocks) == 1 and encoding != BYTES and not codes.all():
                    raise with_nul(path, encoding, codes, head, nameable)
                for hasher in hashers:
                    hasher.update(data)
                counts = add_counts(counts, np.bincount(codes))
                characters += len(codes)
                if len(codes):
                    last = chr(codes[-1])
                offset += len(data)
            unchanged = Identity.of(os.fstat(stream.fileno())) == identity
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
