from __future__ import annotations

import bz2
import gzip
import lzma
import math
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from charrnn.inference import baselines as module
from charrnn.inference.baselines import (
    COMPRESSORS,
    DISCOUNT,
    KneserNey,
    baselines,
    choose_order,
    compressed_nats,
    ngram,
    uniform_nats,
    unigram_nats,
)
from charrnn.text.vocabulary import Vocabulary
from tests.conftest import UNICODE, make_part, make_prose
from tests.small import vocabulary_of


def make_ids(length: int, size: int, seed: int = 1) -> np.ndarray:
    """Return symbols that often follow from the one before; the last one never occurs."""
    chance = random.Random(seed)
    ids = [0]
    while len(ids) < length:
        ids.append(
            (3 * ids[-1] + 1) % (size - 1) if chance.random() < 0.6 else chance.randrange(size - 1)
        )
    return np.array(ids, np.uint8)


class NaiveKneserNey:
    """The formulas in ``KneserNey``'s docstring, with dictionaries, one probability at a time."""

    def __init__(self, text: list[int], size: int, order: int) -> None:
        self.size, self.order = size, order
        self.occurs: dict[int, Counter[tuple[int, ...]]] = {}
        self.left: dict[int, Counter[tuple[int, ...]]] = {}
        for n in range(1, order + 1):
            grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
            self.occurs[n] = Counter(grams)
            longer = {tuple(text[i : i + n + 1]) for i in range(len(text) - n)}
            self.left[n] = Counter(gram[1:] for gram in longer)

    def p(self, symbol: int, before: tuple[int, ...]) -> float:
        """Return p(symbol | before), using the last ``order`` - 1 symbols of ``before``."""
        return self._p(symbol, before[max(0, len(before) - self.order + 1) :])

    def _p(self, symbol: int, before: tuple[int, ...] | None) -> float:
        if before is None:
            return 1 / self.size
        n = len(before) + 1
        counts = self.occurs[n] if n == self.order else self.left[n]
        shorter = self._p(symbol, before[1:] if before else None)
        total = sum(counts[(*before, c)] for c in range(self.size))
        if total == 0:
            return shorter
        discounts = self.discounts(counts)
        count = counts[(*before, symbol)]
        taken = sum(discounts[min(3, counts[(*before, c)])] for c in range(self.size))
        return (count - discounts[min(3, count)] + taken * shorter) / total

    @staticmethod
    def discounts(counts: Counter[tuple[int, ...]]) -> list[float]:
        number: dict[int, int] = defaultdict(int, Counter(counts.values()))
        if number[1] and number[2] and number[3]:
            y = number[1] / (number[1] + 2 * number[2])
            found = [r - (r + 1) * y * number[r + 1] / number[r] for r in (1, 2, 3)]
            if min(found) > 0:
                return [0, *found]
        return [0, DISCOUNT, DISCOUNT, DISCOUNT]


class TestGuesses:
    def test_uniform_is_the_logarithm_of_the_symbols(self) -> None:
        assert uniform_nats({97: 3}, Vocabulary.of_bytes()) == pytest.approx(8 * math.log(2))
        words = vocabulary_of("ab")
        assert uniform_nats({}, words) == pytest.approx(math.log(3))
        assert uniform_nats({97: 3, 98: 1}, words) == pytest.approx(math.log(3))

    def test_uniform_spells_unknown_characters_out(self) -> None:
        words = vocabulary_of("ab")
        nats = math.log(3) + 0.25 * words.unknown_nats
        assert uniform_nats({97: 3, 120: 1}, words) == pytest.approx(nats)

    @pytest.mark.parametrize(
        ("text", "said"),
        [("abba", "3 symbols"), ("abxa", "3 symbols, and unknown characters spelled out")],
    )
    def test_uniform_says_what_it_counts(self, tmp_path: Path, text: str, said: str) -> None:
        words = vocabulary_of("ab")
        uniform, *_ = baselines(make_part(tmp_path, text), words, None)
        assert (uniform.name, uniform.about) == ("uniform", said)

    def test_unigram_equals_the_computation_by_hand(self) -> None:
        # Symbols: unknown (for z, seen once), a, b. Smoothed counts: 2, 6, 4 of 12.
        train = {ord("a"): 5, ord("b"): 3, ord("z"): 1}
        words = Vocabulary.from_counts(train, "utf-8", 2)
        held_out = {ord("a"): 2, ord("y"): 1, ord("z"): 1}
        expected = (2 * math.log(12 / 6) + 2 * (math.log(12 / 2) + math.log(UNICODE - 2))) / 4
        assert unigram_nats(train, held_out, words) == pytest.approx(expected, rel=1e-12)

    def test_half_of_those_seen_once_count_as_unknown(self) -> None:
        """A network reads them so in every second pass, where nothing else is unknown."""
        # A tenth of 40 characters is seen once: v, x, y and z, of which v and y are read so.
        train = {ord("a"): 20, ord("b"): 16, **dict.fromkeys(map(ord, "vxyz"), 1)}
        words = Vocabulary.from_counts(train, "utf-8")
        assert words.characters == "abvxyz"
        # Smoothed counts: unknown 3, a 21, b 17, v 1, x 2, y 1, z 2 of 47.
        expected = (
            math.log(47 / 3) + math.log(UNICODE - 6) + math.log(47 / 1) + math.log(47 / 2)
        ) / 3
        scored = dict.fromkeys(map(ord, "qvx"), 1)
        assert unigram_nats(train, scored, words) == pytest.approx(expected, rel=1e-12)

    def test_unigram_of_bytes(self) -> None:
        train = {0: 3, 255: 1}
        expected = (math.log(260 / 4) + 2 * math.log(260 / 1)) / 3
        value = unigram_nats(train, {0: 1, 7: 2}, Vocabulary.of_bytes())
        assert value == pytest.approx(expected, rel=1e-12)


class TestKneserNey:
    @pytest.mark.parametrize(
        ("length", "order"), [(900, 1), (900, 2), (900, 3), (900, 5), (4, 3), (4, 4)]
    )
    def test_equals_the_naive_twin(self, length: int, order: int) -> None:
        size = 7
        train, text = make_ids(length, size), make_ids(60, size, seed=2)
        text[20:24] = train[:4]
        text[17] = size - 1  # never occurs in the training text
        naive = NaiveKneserNey(train.tolist(), size, order)
        expected = [
            -math.log(naive.p(symbol, tuple(text[:i].tolist())))
            for i, symbol in enumerate(text.tolist())
        ]
        prices = KneserNey(train, size, order).prices(text)
        assert prices == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("before", [[], [0], [4, 1], [6, 6, 6], [1, 4, 5, 2], [6, 1, 4]])
    @pytest.mark.parametrize("length", [1, 2, 5, 900])
    def test_probabilities_sum_to_one(self, before: list[int], length: int) -> None:
        size, order = 7, 4
        model = KneserNey(make_ids(length, size), size, order)
        total = sum(
            math.exp(-model.prices(np.array([*before, symbol], np.uint8))[-1])
            for symbol in range(size)
        )
        assert total == pytest.approx(1, rel=1e-12)

    def test_equals_the_computation_by_hand(self) -> None:
        # "abab" over {a, b, c}: bigrams ab 2, ba 1; too few for estimates, so D is 3/4.
        a, b, c = 0, 1, 2
        model = KneserNey(np.array([a, b, a, b], np.uint8), 3, 2)
        d = DISCOUNT
        # Single characters: a follows one character (b), b follows one (a).
        p_a = p_b = (1 - d) / 2 + (2 * d / 2) / 3
        p_c = (2 * d / 2) / 3
        prices = model.prices(np.array([a, b, b, c], np.uint8))
        expected = [
            p_a,
            (2 - d) / 2 + d / 2 * p_b,  # after a: ab 2 of 2
            0 / 1 + d / 1 * p_b,  # after b: ba 1 of 1
            0 / 1 + d / 1 * p_c,
        ]
        assert prices == pytest.approx([-math.log(p) for p in expected], rel=1e-12)

    def test_the_order_is_that_of_the_text(self) -> None:
        # The next character depends on the two before it together, not on one alone.
        chance = random.Random(5)
        ids = [0, 1]
        for _ in range(20_000):
            ids.append((ids[-1] + 2 * ids[-2] + (chance.random() < 0.3)) % 5)
        assert choose_order(np.array(ids, np.uint8), 5) == 3

    def test_orders_of_no_use_lie_between(self) -> None:
        """Each character is the one five places back, or chance."""
        chance = random.Random(5)
        ids = [chance.randrange(3) for _ in range(5)]
        for _ in range(20_000):
            ids.append(ids[-5] if chance.random() < 0.9 else chance.randrange(3))
        best = choose_order(np.array(ids, np.uint8), 3)
        cut = len(ids) - len(ids) // 10
        losses = {
            order: KneserNey(np.array(ids[:cut]), 3, order).prices(np.array(ids[cut:])).sum()
            for order in range(1, 12)
        }
        assert losses[2] >= losses[1], "there a search would end that takes the first minimum"
        assert best == min(losses, key=losses.__getitem__) == 6

    @pytest.mark.parametrize(
        ("losses", "order"), [([5, 6, 6, 6, 4], 1), ([5, 6, 6, 4, 6, 6, 6, 3], 4)]
    )
    def test_three_orders_in_vain_end_the_search(
        self, losses: list[float], order: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried = iter(losses)
        monkeypatch.setattr(KneserNey, "prices", lambda self, ids: np.array([next(tried)]))
        assert choose_order(np.zeros(100, np.uint8), 2) == order

    def test_noise_is_of_order_one(self) -> None:
        noise = np.random.default_rng(1).integers(0, 9, 5000).astype(np.uint8)
        assert choose_order(noise, 9) == 1


class TestNGram:
    def test_half_of_those_seen_once_count_as_unknown(self, tmp_path: Path) -> None:
        text = make_prose(400) + "vxyz" + make_prose(400, seed=2)
        train = make_part(tmp_path, text, name="train")
        words = Vocabulary.from_counts(train.counts, "utf-8")
        once = [character for character, count in Counter(text).items() if count == 1]
        assert len(once) > 2 and {*once} <= {*words.characters}
        as_read = text
        for character in sorted(once)[::2]:
            as_read = as_read.replace(character, "\N{SNOWMAN}")
        scored = make_part(tmp_path, make_prose(99, seed=3) + "q\N{SNOWMAN}e", name="scored")
        found = ngram(scored, words, train)
        order = int(found.name.removesuffix("-gram"))
        ids = words.encode(make_prose(99, seed=3) + "q\N{SNOWMAN}e")
        model = KneserNey(words.encode(as_read), words.size, order)
        unknown = int((ids == 0).sum())
        assert unknown > 0
        nats = model.prices(ids)[1:].sum() + unknown * words.unknown_nats
        assert found.nats_per_char == pytest.approx(nats / (len(ids) - 1))

    def test_blocks_and_the_whole_agree(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train = make_part(tmp_path, make_prose(4001), name="train")
        scored = make_part(tmp_path, make_prose(403, seed=2) + "\N{SNOWMAN}e", name="scored")
        words = Vocabulary.from_counts(train.counts, "utf-8")
        whole = ngram(scored, words, train)
        monkeypatch.setattr(module, "BLOCK", 17)
        assert ngram(scored, words, train).nats_per_char == pytest.approx(whole.nats_per_char)
        order = int(whole.name.removesuffix("-gram"))
        assert order > 2
        model = KneserNey(words.encode(make_prose(4001)), words.size, order)
        text = make_prose(403, seed=2) + "\N{SNOWMAN}e"
        nats = model.prices(words.encode(text))[1:].sum() + words.unknown_nats
        assert whole.nats_per_char == pytest.approx(nats / 404)
        assert whole.about == "Kneser-Ney, training part"

    def test_counts_the_end_of_a_long_training_part(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = make_prose(3000)
        train, scored = make_part(tmp_path, text), make_part(tmp_path, text[:99], name="scored")
        words = Vocabulary.from_counts(train.counts, "utf-8")
        monkeypatch.setattr(module, "MOST_COUNTED", 1200)
        end = train.corpus.part(1800, 3000)
        found, expected = ngram(scored, words, train), ngram(scored, words, end)
        assert found.nats_per_char == expected.nats_per_char
        assert found.about == "Kneser-Ney, last 1,200 characters of the training part"

    def test_says_where_the_longest_that_are_tried_are_the_best(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = make_prose(100)
        train, scored = make_part(tmp_path, text * 20), make_part(tmp_path, text, name="scored")
        words = Vocabulary.from_counts(train.counts, "utf-8")
        monkeypatch.setattr(module, "MOST_ORDER", 99)
        free = ngram(scored, words, train)
        assert int(free.name.removesuffix("-gram")) > 10, "what repeats needs a long context"
        assert free.about == "Kneser-Ney, training part"
        monkeypatch.setattr(module, "MOST_ORDER", 3)
        bound = ngram(scored, words, train)
        assert bound.name == "3-gram"
        assert bound.about == "Kneser-Ney, training part; no longer n-grams are tried"


class TestCompressors:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "latin-1"])
    def test_equal_the_standard_library_on_the_bytes(self, tmp_path: Path, encoding: str) -> None:
        text = make_prose(5001) + "é" * 9
        part = make_part(tmp_path, text, encoding)
        data = text.encode(encoding)
        sizes = {
            "gzip": len(gzip.compress(data, 9, mtime=0)),
            "bzip2": len(bz2.compress(data)),
            "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        }
        assert sizes.keys() == COMPRESSORS.keys()
        for name, size in sizes.items():
            bits = compressed_nats(part, name) / math.log(2)
            assert bits == pytest.approx(8 * size / len(text), rel=1e-12)

    def test_bytes_that_python_reads_and_cannot_write(self, tmp_path: Path) -> None:
        whole = make_part(tmp_path, b"ab\x8f\xd4\xda" * 99, "euc_jisx0213")
        part = whole.corpus.part(2, 297)
        bits = compressed_nats(part, "bzip2") / math.log(2)
        size = len(bz2.compress(b"\x8f\xd4\xda" + b"ab\x8f\xd4\xda" * 98))
        assert bits == pytest.approx(8 * size / 295, rel=1e-12)

    def test_noise_does_not_shrink_and_zeros_do(self, tmp_path: Path) -> None:
        for name, data in (("noise", random.Random(1).randbytes(9000)), ("zeros", bytes(9000))):
            part = make_part(tmp_path, data, "bytes", name)
            for compressor in COMPRESSORS:
                bits = compressed_nats(part, compressor) / math.log(2)
                assert 8 < bits < 8.6 if name == "noise" else bits < 0.2


class TestBaselines:
    def test_all_price_the_predictions_alone(self, tmp_path: Path) -> None:
        train = make_part(tmp_path, make_prose(4001), name="train")
        scored = make_part(tmp_path, "é" + make_prose(999, seed=2), name="scored")
        words = Vocabulary.from_counts(train.counts, "utf-8")
        found = {baseline.name: baseline for baseline in baselines(scored, words, train)}
        n, *_ = (name for name in found if name.endswith("gram") and name != "unigram")
        assert list(found) == ["uniform", "unigram", n, "gzip", "bzip2", "xz"]
        assert [one.name for one in found.values() if one.of_text] == ["gzip", "bzip2", "xz"]
        predicted = scored.corpus.part(1, 1000)
        assert found["xz"].nats_per_char == compressed_nats(predicted, "xz")
        expected = unigram_nats(train.counts, predicted.counts, words)
        assert found["unigram"].nats_per_char == expected
        order = ("uniform", "unigram", n)
        prices = [found[name].nats_per_char for name in order]
        assert prices == sorted(prices, reverse=True), "who knows more pays less"

    def test_without_a_training_part_nothing_is_learnt_from_it(self, tmp_path: Path) -> None:
        scored = make_part(tmp_path, make_prose(99))
        words = Vocabulary.of_bytes()
        names = [baseline.name for baseline in baselines(scored, words, None)]
        assert names == ["uniform", "gzip", "bzip2", "xz"]
