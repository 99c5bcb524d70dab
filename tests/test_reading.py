"""Which part of which text a run reads."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from charrnn.config import TextChoices
from charrnn.errors import CheckpointError, CorpusError
from charrnn.storage.checkpoint import Checkpoint
from charrnn.storage.reading import (
    TextRecord,
    learnt_before,
    most_learnt,
    recorded_part,
    refuse_too_short,
    to_remember,
)
from charrnn.text.corpus import Part, split
from charrnn.text.scanning import scan
from tests.conftest import write


@pytest.mark.parametrize(
    ("valid_share", "test_share"), [(0.1, 0.0), (0.1, 0.2), (0.3, 0.4), (0.0, 0.9)]
)
@pytest.mark.parametrize("own", [True, False])
def test_the_least_length_that_is_said_is_the_least(
    tmp_path: Path, valid_share: float, test_share: float, own: bool
) -> None:
    """Also with a separate text to validate on, when nothing is held out for that."""
    valid = () if own else ("other",)
    text = TextChoices(texts=("x",), valid=valid, valid_share=valid_share, test_share=test_share)

    def trained_on(length: int) -> Part:
        corpus = scan([write(tmp_path / "text", "a" * length)])
        return split(corpus, valid_share if own else 0.0, test_share).train

    least = next(n for n in range(1, 99) if trained_on(n).characters >= 2)
    refuse_too_short(trained_on(least), text)
    with pytest.raises(CorpusError, match=rf"give at least {least} characters"):
        refuse_too_short(trained_on(least - 1), text)


#: The files of a text: two are equal, and the last one is not ASCII.
FILES = {"a": "first ", "b": "second, longer ", "c": "first ", "d": "ein grö\u00dferes"}


def recorded(folder: Path, names: str) -> TextRecord:
    corpus = scan([write(folder / name, FILES[name]) for name in names])
    record = TextRecord.of(TextChoices(texts=tuple(names)), *split(corpus, 0.0))
    assert record.files == (tuple(f.digest for f in corpus.files) if len(names) > 1 else ())
    return record


def naively_shared(
    names: str, within: tuple[int, int], trained_on: str, borders: tuple[int, int]
) -> int:
    """Find the characters one by one in the run's text, and count those between the borders."""

    def places(text: str) -> list[tuple[str, int]]:
        return [(FILES[name], n) for name in text for n in range(len(FILES[name]))]

    trained = places(trained_on)
    if names == trained_on:
        return len({*range(*within)} & {*range(*borders)})
    wanted = places(names)[slice(*within)]
    found = [trained.index(place) for place in wanted if place in trained]
    return sum(borders[0] <= place < borders[1] for place in found)


@pytest.mark.parametrize("trained_on", ["abcd", "dba", "b"])
@pytest.mark.parametrize("names", ["abcd", "cab", "bd", "d"])
def test_files_that_are_in_both_texts_are_found_wherever_they_lie(
    tmp_path: Path, trained_on: str, names: str
) -> None:
    (tmp_path / "other").mkdir()
    record = recorded(tmp_path, trained_on)
    corpus = scan([write(tmp_path / "other" / name, FILES[name]) for name in names])
    seen = set()
    for start, stop in itertools.combinations(range(0, corpus.characters + 1, 5), 2):
        for borders in itertools.combinations(range(0, record.characters + 1, 7), 2):
            shared = record.shared(corpus.part(start, stop), record.fingerprint, borders)
            assert shared == naively_shared(names, (start, stop), trained_on, borders)
            seen.add(shared)
    assert len(seen) > 1 or not set(names) & set(trained_on)


def test_in_another_encoding_nobody_can_say_which_characters_are_shared(tmp_path: Path) -> None:
    record = recorded(tmp_path, "abd")
    corpus = scan([str(tmp_path / "d"), write(tmp_path / "e", "new")], "latin-1")
    in_common = corpus.part(0, 2)
    assert record.shared(in_common, record.fingerprint, (0, 5)) is None
    new = corpus.part(corpus.characters - 3, corpus.characters)
    assert record.shared(new, record.fingerprint, (0, 5)) == 0


def test_a_run_remembers_no_more_files_than_fit_into_a_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.storage.reading.MOST_FILES", 2)
    corpus = scan([write(tmp_path / name, FILES[name]) for name in "abd"])
    record = TextRecord.of(TextChoices(texts=("x",)), *split(corpus, 0.0))
    assert (record.files, record.file_starts) == ((), ())
    assert record.shared(corpus.part(2, 9), corpus.fingerprint, (3, 99)) == 6
    assert record.shared(scan([str(tmp_path / "a")]).whole, corpus.fingerprint, (0, 99)) == 0


@pytest.mark.parametrize(
    ("name", "value", "flaw"),
    [
        *(("encoding", one, "is not a codec's own name") for one in ("hex", "no", "UTF8", "")),
        *((part, [1, 2], "has fewer than 2 characters") for part in ("train", "valid", "test")),
    ],
)
def test_a_damaged_record_is_the_checkpoints(
    tmp_path: Path, name: str, value: object, flaw: str
) -> None:
    """An option that nobody gave, or a text that is all right, is not blamed."""
    # As JSON returns it, with lists for tuples.
    record = json.loads(json.dumps(recorded(tmp_path, "a").to_dict()))
    checkpoint = Checkpoint({}, {"text": record | {name: value}}, path=Path("x"))
    with pytest.raises(CheckpointError, match=f"^x: the field 'text' .*: '{name}' {flaw}$"):
        recorded_part(checkpoint, "train")


def test_of_several_texts_that_one_counts_of_which_most_was_learnt(tmp_path: Path) -> None:
    first, second = (recorded(tmp_path, names) for names in ("ab", "b"))
    part = scan([write(tmp_path / "again", FILES["b"])]).whole
    first = replace(first, train=(0, len(FILES["a"]) + 4))
    assert most_learnt(part, [first]) == 4
    assert most_learnt(part, [first, second]) == most_learnt(part, [second]) == part.characters
    assert most_learnt(part, []) == 0
    latin = scan([str(tmp_path / "again")], "latin-1").whole
    assert most_learnt(latin, [second, replace(second, encoding="iso8859-1")]) is None


def test_of_the_texts_before_a_run_the_latest_are_remembered_once_and_without_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.storage.reading.MOST_TEXTS", 2)
    texts = [recorded(tmp_path, names) for names in ("d", "ab", "d", "b")]
    kept = to_remember([texts[0], replace(texts[0], texts=("elsewhere",)), *texts[1:]])
    assert kept == tuple(replace(one, texts=()) for one in texts[:2])
    meta = json.loads(json.dumps({"learnt_before": [one.to_dict() for one in kept]}))
    assert learnt_before(Checkpoint({}, meta)) == kept
    assert learnt_before(Checkpoint({}, {})) == ()


@pytest.mark.parametrize(
    ("value", "flaw"),
    [
        ({}, "field 'learnt_before' must be of type list, not dict"),
        (["a text"], "field 'learnt_before' is not usable: 'a text' is no object"),
        ([{"texts": []}], "field 'learnt_before' is not usable: 'encoding' is missing"),
    ],
)
def test_damaged_texts_before_a_run_are_the_checkpoints(value: object, flaw: str) -> None:
    with pytest.raises(CheckpointError, match=f"^x: the .*{flaw}$"):
        learnt_before(Checkpoint({}, {"learnt_before": value}, path=Path("x")))
