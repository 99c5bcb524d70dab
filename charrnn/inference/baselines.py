"""What a text costs without a recurrent network: guesses, an n-gram model, compressors.

All prices are nats per character over the same predictions that a model is scored on, so
that one table can hold both. The guesses and the n-gram model know the training text; a
compressor knows only what it has read of the scored text itself.
"""

from __future__ import annotations

import bz2
import lzma
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from charrnn.inference.evaluation import Scores
from charrnn.nats import in_bits
from charrnn.text.corpus import Part
from charrnn.text.stream import Reader
from charrnn.text.vocabulary import UNKNOWN, Ids, Vocabulary

#: The n-gram model counts at most this many characters, the last ones of the training
#: part: its tables take up to 200 bytes per character.
MOST_COUNTED = 2_000_000
#: The longest n-grams tried: on a repetitive text, ever longer ones predict better.
MOST_ORDER = 16
#: Orders in a row without gain that end the search for the best one. What is needed may lie a few
#: characters back, with nothing of use between.
IN_VAIN = 3
#: Characters of the held-out text that bzip2 compresses as a mark for training to beat: one
#: bzip2 block of ASCII, a tenth of a second.
MOST_COMPRESSED = 900_000
#: Characters of the scored text priced at a time.
BLOCK = 1 << 18

#: The discount where the text has too few rare n-grams to estimate one.
DISCOUNT = 0.75


def uniform_nats(scored: Mapping[int, int], vocabulary: Vocabulary) -> float:
    """Return the nats per character of guessing every symbol with equal probability.

    Args:
        scored: code point -> occurrences in the scored text.
        vocabulary: determines which characters are unknown, and what spelling them out costs.
    """
    return math.log(vocabulary.size) + vocabulary.unknown_nats * vocabulary.unknown_share(scored)


def unigram_nats(
    train: Mapping[int, int], scored: Mapping[int, int], vocabulary: Vocabulary
) -> float:
    """Return the nats per character of predicting by the training part's character frequencies.

    Frequencies are smoothed by adding one to every symbol's count (Laplace). Characters are
    counted as a network reads them in its first pass (``Vocabulary.read_as``).

    Args:
        train: code point -> occurrences in the training part.
        scored: code point -> occurrences in the scored text.
        vocabulary: determines which characters are unknown.
    """
    read_as_V = vocabulary.read_as(vocabulary.held_back(train), 0)
    counts_V = np.bincount(read_as_V, _symbol_counts(train, vocabulary), vocabulary.size) + 1.0
    price_V = -np.log(counts_V / counts_V.sum())
    price_V[UNKNOWN] += vocabulary.unknown_nats  # 0 for bytes
    occurrences_V = _symbol_counts(scored, vocabulary)
    return float((occurrences_V * price_V).sum() / occurrences_V.sum())


def _symbol_counts(counts: Mapping[int, int], vocabulary: Vocabulary) -> NDArray[np.float64]:
    codes = np.fromiter(counts.keys(), dtype=np.uint32, count=len(counts))
    ids = vocabulary.encode_codes(codes)
    weights = np.fromiter(counts.values(), dtype=np.float64, count=len(counts))
    return np.bincount(ids, weights=weights, minlength=vocabulary.size).astype(np.float64)


# Compressors ---------------------------------------------------------------------


#: Name -> factory of a compressor from the standard library, at its strongest: ``gzip -9``
#: (Lempel-Ziv 1977 and Huffman codes, 32 KiB back; the 16 adds its header), ``bzip2 -9``
#: (Burrows-Wheeler transform of 900 kB blocks), ``xz -9e`` (Lempel-Ziv with Markov chains, 64 MiB).
COMPRESSORS: dict[str, Callable[[], zlib._Compress | bz2.BZ2Compressor | lzma.LZMACompressor]] = {
    "gzip": lambda: zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS),
    "bzip2": lambda: bz2.BZ2Compressor(9),
    "xz": lambda: lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME),
}


def compressed_nats(
    part: Part, name: str, tell: Callable[[int], None] = lambda done: None
) -> float:
    """Return the size of a text compressed on its own, in nats per character.

    The text's bytes are compressed as its files hold them, as if in a file of their own:
    the compressor's header and its learning of the text are part of the price.

    Args:
        part: the text.
        name: one of ``COMPRESSORS``.
        tell: called from time to time with about the number of characters compressed so far.

    Raises:
        CorpusError: the text changed since it was scanned.
    """
    compressor = COMPRESSORS[name]()
    size, read, whole = 0, 0, part.encoded_size()
    for block in part.encoded():
        size += len(compressor.compress(block))
        read += len(block)
        tell(math.ceil(part.characters * read / whole))
    size += len(compressor.flush())
    return 8 * size * math.log(2) / part.characters


def marks(
    train: Part, scored: Part, vocabulary: Vocabulary, *, in_full: bool = False
) -> dict[str, float]:
    """Return what a training has to beat, by name: uniform, unigram and bzip2.

    Args:
        train: the training part.
        scored: the characters that the model predicts; bzip2 gets at most its first
            ``MOST_COMPRESSED``.
        vocabulary: of the model.
        in_full: leave bzip2 out if it would not get all of them.

    Raises:
        CorpusError: the text changed since it was scanned.
    """
    found = {
        "uniform": uniform_nats(scored.counts, vocabulary),
        "unigram": unigram_nats(train.counts, scored.counts, vocabulary),
    }
    if not in_full or scored.characters <= MOST_COMPRESSED:
        found["bzip2"] = compressed_nats(scored.first(MOST_COMPRESSED), "bzip2")
    return found


# The n-gram model ----------------------------------------------------------------


class KneserNey:
    """An interpolated n-gram model with modified Kneser-Ney smoothing.

    With h the n - 1 characters before c, h' all of them but the first, and a(h c) the
    occurrences of c after h::

        p(c | h) = max(0, a(h c) - D(a(h c))) / a(h)  +  g(h) p(c | h')

    D takes one of three discounts (for counts of 1, of 2, and above), estimated from
    the counts of counts, and g(h) is the share that they took from h. Below the highest
    order, a(h c) is not the number of occurrences of h c but the number of different
    characters it occurs after; below single characters there is the uniform guess. After an
    h that never occurred p(c | h) is p(c | h'). Chen and Goodman 1999, "An empirical study of
    smoothing techniques for language modeling", section 3.

    Args:
        ids: the training text.
        size: V.
        order: the largest n to begin with; 0: none yet (see ``lengthen``).
    """

    def __init__(self, ids: Ids, size: int, order: int) -> None:
        self._text = ids.astype(np.int64)
        self._size = size
        self._orders: list[_Order] = []
        # For every place, the number of the n-gram that starts there. There is one 0-gram.
        self._number_at = np.zeros(len(ids) + 1, np.int64)
        for _ in range(order):
            self.lengthen()

    def lengthen(self) -> None:
        """Raise the order by one, up to the length of the text."""
        n = len(self._orders) + 1
        if n > len(self._text):
            return
        keys, first, longer_at, counts = np.unique(
            self._number_at[:-1] * self._size + self._text[n - 1 :],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        contexts = 1
        if self._orders:
            # Each n-gram is one more character before the (n-1)-gram that it ends with.
            below = self._orders[-1]
            contexts = len(below)
            below.count(np.bincount(self._number_at[1:][first], minlength=contexts))
        self._orders.append(_Order(keys, counts, self._size, contexts))
        self._number_at = longer_at

    def prices(self, ids: Ids) -> NDArray[np.float64]:
        """Return -ln p of every character of a text, given those before it.

        Args:
            ids: the text; a character with fewer than n - 1 before it is predicted from those.
        """
        text = ids.astype(np.int64)
        p = np.full(len(text), 1 / self._size)
        number_at = np.zeros(len(text) + 1, np.int64)
        for n, grams in enumerate(self._orders[: len(text)], start=1):
            context_at = number_at[:-1]
            number_at = grams.find(context_at, text[n - 1 :])
            p[n - 1 :] = grams.interpolate(context_at, number_at, p[n - 1 :])
        prices: NDArray[np.float64] = -np.log(p)
        return prices


class _Order:
    """The n-grams of one length, with their counts and discounts.

    Args:
        keys: number of the context * V + last character, ascending; an n-gram's index
            here is its number.
        counts: how often each n-gram occurs.
        size: V.
        contexts: number of different (n-1)-grams.
    """

    def __init__(
        self, keys: NDArray[np.int64], counts: NDArray[np.int64], size: int, contexts: int
    ) -> None:
        self._keys, self._size, self._contexts = keys, size, contexts
        self.count(counts)

    def __len__(self) -> int:
        return len(self._keys)

    def count(self, counts: NDArray[np.int64]) -> None:
        """Take other counts instead, such as after how many characters each n-gram occurs."""
        context_of = self._keys // self._size
        self._counts = counts.astype(np.int32)
        self._discounts = _discounts(counts)
        taken = self._discounts[self._counts.clip(max=3)]
        #: a(h) and g(h) a(h), by the number of h.
        self._total = np.bincount(context_of, counts, self._contexts)
        self._taken = np.bincount(context_of, taken, self._contexts)

    def find(self, contexts: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of n-grams, by their contexts' and last characters'; -1: none."""
        keys = contexts * self._size + last
        places = np.searchsorted(self._keys, keys).clip(max=len(self) - 1)
        return np.where((contexts >= 0) & (self._keys[places] == keys), places, -1)

    def interpolate(
        self,
        contexts: NDArray[np.int64],
        numbers: NDArray[np.int64],
        lower: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return p(c | h) from p(c | h'); the number -1 stands for what never occurred."""
        counts = np.where(numbers >= 0, self._counts[numbers], 0)
        total = np.where(contexts >= 0, self._total[contexts], 0.0)
        kept = counts - self._discounts[counts.clip(max=3)]
        p: NDArray[np.float64] = (kept + self._taken[contexts] * lower) / np.maximum(total, 1.0)
        return np.where(total > 0, p, lower)


def _discounts(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the discounts for counts of 0, 1, 2 and above: D1, D2, D3+ of Chen and Goodman."""
    n1, n2, n3, n4 = (float(np.count_nonzero(counts == r)) for r in (1, 2, 3, 4))
    if n1 and n2 and n3:
        y = n1 / (n1 + 2 * n2)
        discounts = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        if np.all(discounts[1:] > 0):
            return discounts
    return np.array([0, DISCOUNT, DISCOUNT, DISCOUNT])


# All of them -----------------------------------------------------------------------


@dataclass(frozen=True)
class Baseline:
    """The price of a text under something simpler than a network."""

    name: str
    nats_per_char: float
    about: str
    """What it knows, in words for a table."""
    of_text: bool = False
    """Whether it knows only the scored text: no model's vocabulary, no training part."""

    @property
    def bits_per_char(self) -> float:
        """The price in bits per character."""
        return in_bits(self.nats_per_char)

    def bits_per_byte(self, scores: Scores) -> float:
        """Return the price in bits per byte of the text that these scores belong to."""
        return self.bits_per_char * scores.characters / scores.bytes if scores.bytes else math.inf


def baselines(
    scored: Part,
    vocabulary: Vocabulary,
    train: Part | None,
    tell: Callable[[str, int], None] = lambda what, done: None,
) -> Iterator[Baseline]:
    """Yield every baseline's price of a text: guesses, the n-gram model, compressors.

    Args:
        scored: the text; as for a model, its first character is not predicted.
        vocabulary: that of the models to compare with.
        train: their training part; None leaves out the baselines that learn from it.
        tell: called from time to time with what is being done, and to how many characters so far.

    Raises:
        CorpusError: a text changed since it was scanned.
    """
    counts = scored.predicted.counts
    nats = uniform_nats(counts, vocabulary)
    spelled = ", and unknown characters spelled out" if vocabulary.unknown_among(counts) else ""
    yield Baseline("uniform", nats, f"{vocabulary.size:,} symbols{spelled}")
    if train is not None:
        nats = unigram_nats(train.counts, counts, vocabulary)
        yield Baseline("unigram", nats, "counts of the training part")
        yield ngram(scored, vocabulary, train, partial(tell, "scored by the n-gram model"))
    for name in COMPRESSORS:
        nats = compressed_nats(scored.predicted, name, partial(tell, f"compressed by {name}"))
        yield Baseline(name, nats, "the scored text alone", True)


def ngram(
    scored: Part,
    vocabulary: Vocabulary,
    train: Part,
    tell: Callable[[int], None] = lambda done: None,
) -> Baseline:
    """Return the price of a text under an n-gram model of the training part.

    The order, at most ``MOST_ORDER``, is the one with which the rest of the training part
    predicts its last tenth best; the scored text has no influence on it. Characters are counted
    as a network reads them in its first pass (``Vocabulary.read_as``).

    Args:
        scored: the text; its first character is not predicted.
        vocabulary: the vocabulary whose symbols are counted.
        train: the training part; its last ``MOST_COUNTED`` characters are counted.
        tell: called from time to time with the number of characters scored so far.

    Raises:
        CorpusError: a text changed since it was scanned.
    """
    counted = min(train.characters, MOST_COUNTED)
    read_as_V = vocabulary.read_as(vocabulary.held_back(train.counts), 0)
    ids = read_as_V[Reader(train, vocabulary, train.characters - counted).read(counted)]
    order = choose_order(ids, vocabulary.size)
    model = KneserNey(ids, vocabulary.size, order)
    reader = Reader(scored, vocabulary)
    nats, before = 0.0, reader.read(1)
    while len(block := reader.read(BLOCK)):
        text = np.concatenate([before, block])
        nats += float(model.prices(text)[len(before) :].sum())
        nats += int(vocabulary.is_unknown(block).sum()) * vocabulary.unknown_nats
        tell(reader.position - 1)
        before = text[max(0, len(text) - order + 1) :]
    last = "" if counted == train.characters else f"last {counted:,} characters of the "
    end = "; no longer n-grams are tried" if order == MOST_ORDER else ""
    return Baseline(
        f"{order}-gram", nats / (scored.characters - 1), f"Kneser-Ney, {last}training part{end}"
    )


def choose_order(ids: Ids, size: int) -> int:
    """Return the order with which the first nine tenths predict the last tenth best.

    Orders are tried from 1 to ``MOST_ORDER``, until ``IN_VAIN`` in a row are no better than the
    best.
    """
    cut = len(ids) - len(ids) // 10
    model = KneserNey(ids[:cut], size, 0)
    best, least = 1, math.inf
    for order in range(1, min(MOST_ORDER, cut) + 1):
        model.lengthen()
        nats = float(model.prices(ids[cut:]).sum())
        if nats < least:
            best, least = order, nats
        elif order - best >= IN_VAIN:
            break
    return best
