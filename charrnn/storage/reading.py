"""The text that a run reads: how it is divided, recorded and found again."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from charrnn.config import PartName, Record, TextChoices
from charrnn.errors import CheckpointError, CorpusError, RunFolderError, UsageError
from charrnn.layout import LAST
from charrnn.storage.checkpoint import MAX_HEADER, Checkpoint, read_description
from charrnn.text.corpus import DIGEST, Corpus, Part, Split, exact, split
from charrnn.text.decoding import BYTES, is_own_name, text_encoding
from charrnn.text.files import EMBEDDED, absolute_names, embedded_corpus, text_within
from charrnn.text.not_text import Nameable
from charrnn.text.scanning import scan
from charrnn.text.vocabulary import Vocabulary
from charrnn.wording import shown

#: The most files that a run records one by one, so that the header stays small.
MOST_FILES = 1000
#: The most texts of earlier training that a run records, so that the header stays small.
MOST_TEXTS = 20
#: Returns the corpus for names of texts and an encoding.
Scan = Callable[[tuple[str, ...], str], Corpus]


@dataclass(frozen=True)
class TextRecord(Record):
    """Which text a run reads and how it is divided, so that a resumed run reads the same."""

    texts: tuple[str, ...]
    """Absolute paths, or "-"; none: the embedded corpus."""
    encoding: str
    fingerprint: str
    characters: int
    train: tuple[int, int]
    """The part's first character, and the one after its last; the same for those below."""
    valid: tuple[int, int] | None
    test: tuple[int, int] | None
    valid_texts: tuple[str, ...]
    """Absolute paths of separate texts to validate on, if any."""
    valid_fingerprint: str | None
    files: tuple[str, ...] = ()
    """Digests of the text's files, if there are more than one and at most ``MOST_FILES``."""
    file_starts: tuple[int, ...] = ()
    """Characters of the text before each of these files."""

    def __post_init__(self) -> None:
        if len(self.files) != len(self.file_starts):
            raise ValueError("'files' and 'file_starts' differ in length")
        if not is_own_name(self.encoding):
            raise ValueError("'encoding' is not a codec's own name")
        for name in ("train", "valid", "test"):
            start, stop = getattr(self, name) or (0, 2)
            if stop - start < 2:  # as ``split`` and ``refuse_too_short`` ensure
                raise ValueError(f"{name!r} has fewer than 2 characters")

    @property
    def was_typed(self) -> bool:
        """Whether it was standard input, which cannot be read again."""
        return "-" in self.texts

    @property
    def to_name(self) -> tuple[str, ...]:
        """The texts that a command to go on has to name: TEXT, if it was standard input."""
        return ("TEXT",) if self.was_typed else ()

    @classmethod
    def of(cls, text: TextChoices, train: Part, valid: Part | None, test: Part | None) -> Self:
        """Return the record of a text as ``divide`` has divided it.

        Args:
            text: what the user chose.
            train: the training part.
            valid: the validation part, of this text or of another.
            test: the test part.
        """
        corpus = train.corpus
        files = corpus.files if 1 < len(corpus.files) <= MOST_FILES else ()
        return cls(
            texts=absolute_names(text.texts),
            encoding=corpus.encoding,
            fingerprint=corpus.fingerprint,
            characters=corpus.characters,
            train=(train.start, train.stop),
            valid=(valid.start, valid.stop) if valid else None,
            test=(test.start, test.stop) if test else None,
            valid_texts=absolute_names(text.valid),
            valid_fingerprint=valid.corpus.fingerprint if valid and text.valid else None,
            files=tuple(file.digest for file in files),
            file_starts=tuple(file.start for file in files),
        )

    def length(self, part: PartName) -> int:
        """Return the number of characters of a part; 0 if there is none."""
        start, stop = getattr(self, part) or (0, 0)
        return int(stop - start)

    def shared(self, part: Part, fingerprint: str, borders: tuple[int, int]) -> int | None:
        """Return how many characters of a part lie in a stretch of one of the run's texts.

        Args:
            part: a part of any text.
            fingerprint: that of the run's text, or of the one that it validates on.
            borders: the stretch in that text: its first character, and the one after its last.

        Returns:
            The number of characters. None: they share text but were read in different encodings,
            so positions cannot be compared.
        """
        shared = 0
        for place, start, length in self._in_common(part.corpus, fingerprint):
            first, last = max(part.start, place), min(part.stop, place + length)
            if first < last and part.corpus.encoding != self.encoding:
                return None
            moved = start - place
            shared += max(0, min(last, borders[1] - moved) - max(first, borders[0] - moved))
        return shared

    def _in_common(self, corpus: Corpus, fingerprint: str) -> Iterator[tuple[int, int, int]]:
        """Yield what a corpus shares with a text of the run: its place in each, and its length.

        It is the whole text, or whole files; of equal files in the run's text, the first.
        """
        if corpus.fingerprint == fingerprint:
            yield 0, 0, corpus.characters
            return
        starts = {fingerprint[:DIGEST]: 0}
        if self.files and fingerprint == self.fingerprint:
            starts = dict(reversed([*zip(self.files, self.file_starts, strict=True)]))
        for file in corpus.files:
            if (start := starts.get(file.digest)) is not None:
                yield file.start, start, file.characters


def most_learnt(part: Part, texts: Sequence[TextRecord]) -> int | None:
    """Return the most characters that a part shares with the training part of any one text.

    None if that is unknown for one of the texts, as in ``TextRecord.shared``.
    """
    shared = [one.shared(part, one.fingerprint, one.train) for one in texts]
    known = [number for number in shared if number is not None]
    return max(known, default=0) if len(known) == len(shared) else None


def to_remember(texts: Sequence[TextRecord]) -> tuple[TextRecord, ...]:
    """Return records of earlier training texts as a checkpoint keeps them: unique, no names."""
    nameless = (replace(one, texts=(), valid_texts=()) for one in texts)
    return tuple(dict.fromkeys(nameless))[:MOST_TEXTS]


def learnt_before(checkpoint: Checkpoint) -> tuple[TextRecord, ...]:
    """Return the texts that a run's initial weights had been trained on, without names.

    The latest first; none if the run began with random weights, or in older checkpoints.

    Raises:
        CheckpointError: the field is not usable.
    """
    if "learnt_before" not in checkpoint.meta:
        return ()
    return checkpoint.records("learnt_before", TextRecord)


def readable(texts: Sequence[str], spooled: Path | None) -> list[str]:
    """Return the names to read, with ``spooled``, the copy of standard input, in place of "-"."""
    return [str(spooled) if name == "-" and spooled else name for name in texts]


def refuse_text_within(text: TextChoices, folder: Path, what: str) -> None:
    """Refuse a run's folder that contains text to be read: ``find_files`` would leave it out.

    Args:
        text: the text to be read.
        folder: the future folder of the run or comparison.
        what: which of the two, for the message.

    Raises:
        RunFolderError: it contains a file, not empty, that a folder or pattern in ``text`` finds.
    """
    names = [name for name in (*text.texts, *text.valid) if name != "-"]
    with suppress(CorpusError):  # a missing text is refused when it is read
        if (found := text_within(names, folder)) is not None:
            raise RunFolderError(
                f"{shown(folder)}: {shown(found)} is in it, and {what}'s folder is not read as "
                "text: choose another folder with --run"
            )


def divide(corpus: Corpus, text: TextChoices, nameable: Nameable) -> Split:
    """Return the parts to train, validate (perhaps on another text) and test on.

    Args:
        corpus: the text.
        text: what the user chose.
        nameable: as for ``scan``.

    Raises:
        CorpusError: the validation text cannot be read, or is too short.
    """
    if not text.valid:
        return split(corpus, text.valid_share, text.test_share)
    train, _, test = split(corpus, 0.0, text.test_share)
    valid_corpus = scan(text.valid, corpus.encoding, nameable)
    if valid_corpus.characters < 2:
        raise CorpusError(
            f"{shown(text.valid[0])}: a text to validate on needs at least 2 characters"
        )
    return Split(train, valid_corpus.whole, test)


def refuse_too_short(train: Part, text: TextChoices) -> None:
    """Refuse a text that leaves fewer than 2 characters to train on.

    Raises:
        CorpusError: it is too short; the message says how long it must be.
    """
    if train.characters >= 2:
        return
    shares = (0.0 if text.valid else text.valid_share, text.test_share)
    # ``split`` computes borders exactly and rounds down.
    least = math.ceil(2 / (1 - sum(map(exact, shares))))
    raise CorpusError(
        f"{_files(train.corpus)}: a text of length {train.corpus.characters} leaves "
        f"{train.characters} to train on: give at least {least} characters"
    )


def refuse_too_many_names(record: TextRecord) -> None:
    """Refuse more names than a checkpoint can hold, before training what could not be saved.

    Raises:
        UsageError: there are too many names.
    """
    names = [*record.texts, *record.valid_texts]
    # The record is JSON within the header's JSON.
    written = json.dumps(json.dumps(names, ensure_ascii=False), ensure_ascii=False)
    if len(written.encode("utf-8", "backslashreplace")) > MAX_HEADER // 2:
        raise UsageError(
            f"{len(names):,} names of texts are more than a checkpoint can hold: name their "
            "folder, or give a pattern in quotes"
        )


def refuse_another_text(
    corpus: Corpus,
    fingerprint: str | None,
    texts: Sequence[str],
    what: str = "the text",
    of: str = "this run",
    known: Collection[str] = (),
    instead: str = ", or start anew (train --init-from begins with its weights)",
    before: str = "",
) -> None:
    """Refuse a text other than the one that was read before.

    Args:
        corpus: the text.
        fingerprint: fingerprint of the text before.
        texts: the names of the text; none: it is the embedded corpus.
        what: what the message calls a text that has names.
        of: what the message calls the run that read the text before.
        known: digests of the files of the text before, as far as they are known.
        instead: the end of the message: what else to do.
        before: the beginning of the message.

    Raises:
        CorpusError: they differ.
    """
    if corpus.fingerprint == fingerprint:
        return
    back = "bring the old text back"
    if not texts:
        what, back = EMBEDDED, "it changes with Python: use the version of then"
    raise CorpusError(
        f"{before}{what} ({_files(corpus)}{_differing(corpus, known)}) is not the one {of} was "
        f"started on: {corpus.characters:,} characters, SHA-256 {corpus.fingerprint[:12]}..., not "
        f"{str(fingerprint)[:12]}...: {back}{instead}"
    )


def _differing(corpus: Corpus, known: Collection[str]) -> str:
    """Return which files differ from the text before, as far as digests tell; else ""."""
    if not known:
        return ""
    # Counted, because files may be equal: an extra copy is new, a missing one is gone.
    left = Counter(known)
    new: list[Path] = []
    for file in corpus.files:
        if left[file.digest]:
            left[file.digest] -= 1
        else:
            new.append(file.path)
    if new:
        more = f" and {len(new) - 1:,} more" if len(new) > 1 else ""
        return f", of which new or changed: {shown(new[0])}{more}"
    gone = left.total()
    return f", without {gone:,} of the files it had" if gone else ", in another order"


def _files(corpus: Corpus) -> str:
    """Return what a message calls the files of a text."""
    first, *others = corpus.files
    return f"{len(corpus.files)} files" if others else shown(first.path)


def recorded_part(
    checkpoint: Checkpoint, name: PartName, read: Scan = scan, moved: Sequence[str] = ()
) -> Part:
    """Return a part of the text that a checkpoint's run reads.

    Args:
        checkpoint: from ``load_model``.
        name: which part.
        read: reads the text.
        moved: the text's present names, if they are not those recorded.

    Raises:
        CheckpointError: the record of the text is not usable.
        CorpusError: the text is gone or changed, or was standard input; the message names the
            checkpoint.
        UsageError: the run has no such part.
    """
    path = checkpoint.path
    assert path is not None
    record = checkpoint.record("text", TextRecord)
    borders = {"train": record.train, "valid": record.valid, "test": record.test}[name]
    if borders is None:
        raise UsageError(f"{shown(path)}: its run held out no {name} part")
    record = _last_named(record, checkpoint.folder)
    names, fingerprint, known = record.texts, record.fingerprint, record.files
    what = "the text"
    if name == "valid" and record.valid_texts:
        names, fingerprint, known = record.valid_texts, record.valid_fingerprint or "", ()
        what = "the validation text"
    if "-" in names and not moved:
        raise CorpusError(f"{shown(path)}: its run read standard input, which is gone")
    texts = tuple(moved or names)
    try:
        corpus = read(texts or tuple(embedded_corpus()), record.encoding)
    except CorpusError as error:
        raise CorpusError(f"{shown(path)}: the text that its run read: {error}") from error
    refuse_another_text(
        corpus, fingerprint, texts, what, "its run", known, instead="", before=f"{shown(path)}: "
    )
    try:
        return corpus.part(*borders)
    except ValueError as error:
        raise CheckpointError(f"{shown(path)}: the field 'text' is not usable: {error}") from error


def _last_named(record: TextRecord, run: Path) -> TextRecord:
    """Return the record with the latest names of the run's text, which may have moved."""
    with suppress(CheckpointError):
        last = read_description(run / LAST)
        newest = last.record("text", TextRecord)
        moved = replace(record, texts=newest.texts, valid_texts=newest.valid_texts)
        if "-" not in newest.texts and moved == newest:
            return newest
    return record


def refuse_other_symbols(encoding: str, vocabulary: Vocabulary, who: str) -> None:
    """Refuse bytes for a model of characters, and characters for a model of bytes.

    Args:
        encoding: the text's encoding, as the user names it.
        vocabulary: the model's vocabulary.
        who: what the message calls the model.

    Raises:
        UsageError: they do not fit.
    """
    if (text_encoding(encoding, or_bytes=vocabulary.is_bytes) == BYTES) != vocabulary.is_bytes:
        reads, instead = "bytes", ""
        if not vocabulary.is_bytes:  # a text in another encoding may have advised bytes
            reads, instead = "characters", ", or name the encoding that the text has"
        raise UsageError(f"--encoding {encoding}: {who} reads {reads}: leave it out{instead}")
