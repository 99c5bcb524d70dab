from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charrnn.errors import CorpusError
from charrnn.recipe import fit_lanes
from charrnn.text import stream
from charrnn.text.corpus import Part
from charrnn.text.scanning import scan
from charrnn.text.stream import Batch, Lanes, Reader
from charrnn.text.vocabulary import REPLACEMENT, Vocabulary
from tests.conftest import make_framed_part, make_text, open_files
from tests.small import vocabulary_of


def make_part(folder: Path, text: str, files: int = 3) -> tuple[Part, Vocabulary]:
    """Return a framed part, and the vocabulary of all its files."""
    part = make_framed_part(folder, text, files)
    return part, Vocabulary.from_counts(part.corpus.counts, "utf-8", 1)


@pytest.fixture(autouse=True)
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let readers refill often, in the middle of characters."""
    monkeypatch.setattr(stream, "_READ_BYTES", 37)


class TestReader:
    def test_reads_on_in_pieces_of_any_size(self, tmp_path: Path) -> None:
        text = make_text(1003)
        part, vocabulary = make_part(tmp_path, text)
        chance = random.Random(7)
        for start in (0, 1, 500, 1002, 1003):
            reader = Reader(part, vocabulary, start)
            position = start
            while position < len(text):
                assert reader.position == position
                count = chance.choice((0, 1, 3, 50, 200))
                ids = reader.read(count)
                assert vocabulary.decode(ids) == text[position : position + count]
                position += len(ids)
            assert len(reader.read(5)) == 0
            assert reader.position == len(text)

    def test_keeps_the_type_of_the_ids(self, tmp_path: Path) -> None:
        # Some blocks are only ASCII, though the vocabulary has more than 256 symbols.
        text = "abcdefgh" * 10 + "".join(map(chr, range(0x4E00, 0x4F00)))
        part, vocabulary = make_part(tmp_path, text)
        reader = Reader(part, vocabulary)
        assert [reader.read(n).dtype.itemsize for n in (0, 3, 100, 1000, 1)] == [2] * 5

    def test_holds_no_open_file(self, tmp_path: Path) -> None:
        part, vocabulary = make_part(tmp_path, make_text(1003))
        before = open_files()
        readers = [Reader(part, vocabulary, start) for start in range(0, 1000, 10)]
        for reader in readers:
            reader.read(3)
        assert open_files() == before

    @pytest.mark.parametrize("alphabet", ["abcdefgh", "abcdefg樓"])
    def test_holds_one_small_block(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alphabet: str
    ) -> None:
        monkeypatch.setattr(stream, "_READ_BYTES", 1 << 15)
        part, vocabulary = make_part(tmp_path, make_text(300_000, alphabet), files=1)
        tracemalloc.start()
        try:
            readers = [Reader(part, vocabulary, 2000 * lane) for lane in range(50)]
            for reader in readers:
                reader.read(1)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The ids, and a few kilobytes for decoder and generator, but not the decoded text.
        assert held / len(readers) < (1 << 15) + 8000


def lanes_of(batches: Sequence[Batch], stride: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return what each lane reads and predicts in a pass: its windows joined, overlaps once."""
    lanes = batches[0].x_TB.shape[1]
    x_ids: list[list[int]] = [[] for _ in range(lanes)]
    y_ids: list[list[int]] = [[] for _ in range(lanes)]
    for index, batch in enumerate(batches):
        for lane in range(lanes):
            x, y = batch.x_TB[:, lane].tolist(), batch.y_TB[:, lane].tolist()
            at = index * stride
            assert x_ids[lane][at:] == x[: len(x_ids[lane]) - at]
            x_ids[lane][at:], y_ids[lane][at:] = x, y
    return x_ids, y_ids


@pytest.mark.parametrize(
    ("length", "batch_size", "bptt", "loss_last"),
    [
        (1003, 7, 13, None),
        (1003, 1, 13, None),
        (1003, 3, 334, None),  # one window a lane
        (1003, 3, 999, None),  # a window longer than the lane
        (1001, 4, 25, None),  # nothing left over at all
        (1003, 5, 1, None),
        (1003, 334, 5, None),  # more windows than a lane has
        (2, 1, 1, None),
        (1003, 7, 13, 5),
        (1003, 7, 13, 1),
        (1003, 3, 108, 10),
        (1003, 3, 13, 13),
        (1003, 3, 999, 10),
        (1003, 3, 334, 334),
        (1003, 3, 5, 9),
    ],
)
class TestLanes:
    @pytest.fixture
    def text(self, length: int) -> str:
        return make_text(length)

    @pytest.fixture
    def view(
        self, tmp_path: Path, text: str, batch_size: int, bptt: int, loss_last: int | None
    ) -> tuple[Lanes, Vocabulary]:
        part, vocabulary = make_part(tmp_path, text)
        return Lanes(part, vocabulary, batch_size, bptt, loss_last), vocabulary

    def test_every_character_of_every_lane_in_order_over_two_passes(
        self, view: tuple[Lanes, Vocabulary], text: str, batch_size: int
    ) -> None:
        lanes, vocabulary = view
        length = (len(text) - 1) // batch_size
        batches = list(islice(lanes.batches(), 2 * lanes.steps_per_epoch))
        assert len(text) - 1 - length * batch_size < batch_size  # what is never read
        for number in range(2):
            a_pass = batches[number * lanes.steps_per_epoch :][: lanes.steps_per_epoch]
            assert [batch.begins_epoch for batch in a_pass] == [i == 0 for i in range(len(a_pass))]
            x_ids, y_ids = lanes_of(a_pass, lanes.stride)
            for lane in range(batch_size):
                start = lane * length
                assert vocabulary.decode(x_ids[lane]) == text[start : start + length]
                assert vocabulary.decode(y_ids[lane]) == text[start + 1 : start + length + 1]

    def test_each_prediction_counts_once(
        self, view: tuple[Lanes, Vocabulary], text: str, batch_size: int
    ) -> None:
        lanes, _ = view
        length = (len(text) - 1) // batch_size
        warmup = lanes.bptt - lanes.stride
        counted: list[int] = []
        for index, batch in enumerate(islice(lanes.batches(), lanes.steps_per_epoch)):
            time_steps = len(batch.x_TB)
            losses, rest = divmod(batch.characters, batch_size)
            assert rest == 0
            assert 1 <= losses <= lanes.stride
            stop = index * lanes.stride + time_steps
            counted += range(stop - losses, stop)
        assert counted == list(range(warmup, length))

    def test_shapes(self, view: tuple[Lanes, Vocabulary], batch_size: int, bptt: int) -> None:
        lanes, _ = view
        assert lanes.batch_size == batch_size
        assert lanes.bptt <= bptt
        *full, last = islice(lanes.batches(), lanes.steps_per_epoch)
        for batch in full:
            assert batch.x_TB.shape == batch.y_TB.shape == (lanes.bptt, batch_size)
            assert batch.characters == lanes.stride * batch_size
        assert last.x_TB.shape == last.y_TB.shape
        assert len(last.x_TB) <= lanes.bptt
        for tensor in (last.x_TB, last.y_TB):
            assert tensor.dtype == torch.int64
            assert tensor.is_contiguous()

    def test_any_step_continues(self, view: tuple[Lanes, Vocabulary]) -> None:
        lanes, _ = view
        total = 2 * lanes.steps_per_epoch + 2
        straight = list(islice(lanes.batches(), total))
        steps = sorted({0, 1, 2, total // 3, lanes.steps_per_epoch, lanes.steps_per_epoch + 1})
        for step in steps:
            for here, there in zip(straight[step:], lanes.batches(step), strict=False):
                assert torch.equal(here.x_TB, there.x_TB)
                assert torch.equal(here.y_TB, there.y_TB)
                assert vars(here) == vars(there) | {"x_TB": here.x_TB, "y_TB": here.y_TB}

    def test_position_is_where_the_step_begins(
        self, view: tuple[Lanes, Vocabulary], text: str
    ) -> None:
        lanes, vocabulary = view
        for step, batch in enumerate(islice(lanes.batches(), lanes.steps_per_epoch + 2)):
            epoch, batch_index, offset = lanes.position(step)
            assert epoch * lanes.steps_per_epoch + batch_index == step
            assert (batch_index == 0) == batch.begins_epoch
            seen = vocabulary.decode(batch.x_TB[:, 0])
            assert text[offset : offset + len(seen)] == seen


class TestLanesOtherwise:
    def test_batches_share_no_memory(self, tmp_path: Path) -> None:
        part, vocabulary = make_part(tmp_path, make_text(1003))
        batches = Lanes(part, vocabulary, 3, 11).batches()
        first = next(batches)
        kept_TB = first.x_TB.clone()
        next(batches)
        assert torch.equal(first.x_TB, kept_TB)

    def test_too_short_for_its_lanes(self, tmp_path: Path) -> None:
        part, vocabulary = make_part(tmp_path, "abc")
        with pytest.raises(ValueError, match="3 lanes"):
            Lanes(part, vocabulary, 3, 5)

    def test_bytes(self, tmp_path: Path) -> None:
        content = bytes(range(256)) * 4
        (tmp_path / "file").write_bytes(content)
        corpus = scan([str(tmp_path / "file")], "bytes")
        lanes = Lanes(corpus.part(0, len(content)), Vocabulary.of_bytes(), 1, 100)
        batches = list(islice(lanes.batches(), lanes.steps_per_epoch))
        assert bytes(torch.cat([batch.y_TB for batch in batches]).flatten().tolist()) == content[1:]

    def test_held_back_characters_take_turns_as_the_unknown_symbol(self, tmp_path: Path) -> None:
        singles = "vwxyz"  # each occurs once; v, x and z have even ranks
        text = list(make_text(1003, "abcdefghij \n"))
        for place, single in enumerate(singles):
            text.insert(149 * place + 70, single)
        part, vocabulary = make_part(tmp_path, "".join(text))
        held_back = vocabulary.encode(singles)
        lanes = Lanes(part, vocabulary, 3, 13, 5, held_back)
        straight = list(islice(lanes.batches(), 3 * lanes.steps_per_epoch))
        as_it_is = Lanes(part, vocabulary, 3, 13, 5).batches()
        for step, (batch, plain) in enumerate(zip(straight, as_it_is, strict=False)):
            for ids, plain_ids in ((batch.x_TB, plain.x_TB), (batch.y_TB, plain.y_TB)):
                expected = vocabulary.decode(plain_ids.flatten())
                for single in ("vxz", "wy", "vxz")[step // lanes.steps_per_epoch]:
                    expected = expected.replace(single, REPLACEMENT)
                assert vocabulary.decode(ids.flatten()) == expected
        # The vocabulary has them, so no spelling is charged, even if they are read as unknown.
        assert all(batch.unknown == 0 for batch in straight)
        for step in (1, lanes.steps_per_epoch - 1, lanes.steps_per_epoch + 30):
            assert torch.equal(next(lanes.batches(step)).x_TB, straight[step].x_TB)

    def test_counts_what_the_vocabulary_lacks_where_the_loss_counts(self, tmp_path: Path) -> None:
        text = make_text(1003, "abcdefghij \n")
        part, _ = make_part(tmp_path, text)
        vocabulary = vocabulary_of("bcdefghij \n")
        lanes = Lanes(part, vocabulary, 3, 13, 5)
        read, length = 13 - 5, 1002 // 3  # the first window's first predictions do not count
        lacked = [text[lane * length + 1 :][:length][read:].count("a") for lane in range(3)]
        batches = list(islice(lanes.batches(), lanes.steps_per_epoch))
        assert sum(batch.unknown for batch in batches) == sum(lacked) > 50
        assert all(batch.unknown <= batch.characters for batch in batches)

    def test_a_text_that_changes_stops_the_stream(self, tmp_path: Path) -> None:
        part, vocabulary = make_part(tmp_path, make_text(1003), files=1)
        batches = Lanes(part, vocabulary, 3, 11).batches()
        next(batches)
        with (tmp_path / "0.txt").open("ab") as file:
            file.write(b"more")
        with pytest.raises(CorpusError, match=r"0\.txt grew"):
            list(islice(batches, 100))


class TestFitLanes:
    @pytest.mark.parametrize(
        ("characters", "fitted"),
        [
            (100_000, (64, 128)),
            (64 * 128 + 1, (64, 128)),
            (64 * 128, (63, 128)),
            (1000, (7, 128)),
            (129, (1, 128)),
            (128, (1, 127)),
            (2, (1, 1)),
        ],
    )
    def test_lanes_shrink_before_the_window(self, characters: int, fitted: tuple[int, int]) -> None:
        lanes, window, _, sentence = fit_lanes(characters, 64, 128)
        assert (lanes, window) == fitted
        if fitted == (64, 128):
            assert sentence is None
        else:
            assert sentence is not None
            assert f"{characters:,} characters" in sentence
            assert ("lanes" in sentence) == (lanes < 64)
            assert ("window" in sentence) == (window < 128)

    @given(st.integers(2, 5000), st.integers(1, 100), st.integers(1, 200))
    def test_always_fits(self, characters: int, batch_size: int, bptt: int) -> None:
        lanes, window, counted, sentence = fit_lanes(characters, batch_size, bptt, bptt - bptt // 3)
        assert counted == min(bptt - bptt // 3, window)
        assert 1 <= lanes <= batch_size
        assert 1 <= window <= bptt
        assert lanes * window <= characters - 1
        assert (sentence is None) == ((lanes, window) == (batch_size, bptt))
