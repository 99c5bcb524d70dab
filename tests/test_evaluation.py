from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from charrnn.compute import recurrence
from charrnn.config import CellName, EvaluateConfig
from charrnn.inference import evaluation
from charrnn.inference.assessment import assess
from charrnn.inference.baselines import Baseline
from charrnn.inference.evaluation import (
    Interrupted,
    Prices,
    Scores,
    prices,
    score,
    score_by_position,
    total,
)
from charrnn.network.model import CharModel, Hidden
from charrnn.storage.trained import load_model
from charrnn.text.scanning import scan
from charrnn.text.vocabulary import UNKNOWN, Vocabulary
from charrnn.views.score_words import assessments_say
from tests.conftest import UNICODE, make_framed_part, make_prose, make_text
from tests.small import make_dropping_model, vocabulary_of

KNOWN = "abcdefgh \n紅樓夢é"
VOCABULARY = vocabulary_of(KNOWN)

make_model = partial(make_dropping_model, vocabulary=VOCABULARY.size)


def naive_nats(model: CharModel, text: str, vocabulary: Vocabulary) -> list[float]:
    """Return the price of every character but the first, by the definition."""
    model.eval()
    hidden = model.initial_hidden(1)
    prices = []
    with torch.no_grad():
        for character, following in pairwise(text):
            x_TB = torch.tensor([[int(vocabulary.encode(character)[0])]])
            logits_TBV, hidden = model(x_TB, hidden)
            p_V = torch.softmax(logits_TBV[0, 0], dim=0).tolist()
            if following in vocabulary.characters:
                prices.append(-math.log(p_V[1 + vocabulary.characters.index(following)]))
            else:
                outside = UNICODE - len(vocabulary.characters)
                prices.append(-math.log(p_V[UNKNOWN] / outside))
    model.train()
    return prices


class TestScore:
    def test_equals_the_definition(self, tmp_path: Path, cell: CellName) -> None:
        text = make_text(331)
        scores = score(make_model(cell), make_framed_part(tmp_path, text), VOCABULARY, window=17)
        prices = naive_nats(make_model(cell), text, VOCABULARY)
        assert scores.characters == len(prices) == 330
        assert scores.nats == pytest.approx(sum(prices), rel=1e-12)
        assert scores.nats_per_char == pytest.approx(sum(prices) / 330, rel=1e-12)
        assert scores.unknown == sum(c not in KNOWN for c in text[1:])
        assert scores.unknown > 0
        assert scores.bytes == len(text[1:].encode())

    def test_units_follow_from_nats_characters_and_bytes(self) -> None:
        scores = Scores(nats=200 * math.log(2), characters=100, unknown=0, bytes=250, seconds=0.5)
        assert scores.nats_per_char == pytest.approx(2 * math.log(2))
        assert scores.bits_per_char == pytest.approx(2)
        assert scores.bits_per_byte == pytest.approx(0.8)
        assert scores.perplexity == pytest.approx(4)
        assert scores.chars_per_second == pytest.approx(200)

    def test_characters_without_a_byte_of_their_own_cost_infinitely_many_bits_a_byte(
        self, tmp_path: Path
    ) -> None:
        """Big5-HKSCS has pairs of characters that are written as one."""
        path = tmp_path / "text"
        path.write_bytes(b"\x88\x62")
        pair = scan([str(path)], "big5hkscs")
        assert pair.characters == 2
        part = pair.part(0, 2)
        scores = score(make_model("rnn"), part, VOCABULARY)
        assert (scores.characters, scores.bytes, scores.bits_per_byte) == (1, 0, math.inf)
        baseline = Baseline("one", 1.0, "")
        assert baseline.bits_per_byte(scores) == math.inf

    def test_a_score_beyond_all_numbers_is_infinite(self) -> None:
        assert (
            Scores(nats=1e6, characters=10, unknown=0, bytes=10, seconds=1).perplexity == math.inf
        )

    @pytest.mark.parametrize("length", [2, 3, 11, 40])
    def test_counts_every_prediction_in_any_number_of_lanes(
        self, tmp_path: Path, length: int
    ) -> None:
        text = make_text(length)
        part = make_framed_part(tmp_path, text)
        # With no weights in the head, p does not depend on the past: whatever the lanes,
        # the sum shows how often each character was counted.
        model = make_model()
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.copy_(torch.arange(len(KNOWN) + 1).double().sqrt())
        expected = sum(naive_nats(model, text, VOCABULARY))
        for lanes in range(1, length + 3):
            for window in (1, 3, 100):
                scores = score(model, part, VOCABULARY, lanes=lanes, window=window)
                assert scores.nats == pytest.approx(expected, rel=1e-12)
                assert scores.characters == length - 1
                assert scores.unknown == sum(c not in KNOWN for c in text[1:])

    @pytest.mark.parametrize("lanes", [1, 2, 5])
    def test_the_price_of_each_block_is_that_of_its_characters(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int
    ) -> None:
        monkeypatch.setattr(evaluation, "MOST_BLOCKS", 3)
        monkeypatch.setattr(evaluation, "SHORTEST_BLOCK", 30)
        text = make_text(102)
        part, model = make_framed_part(tmp_path, text), make_model()
        with torch.no_grad():
            model.head.weight.zero_()  # p does not depend on the past, nor on the lanes
            model.head.bias.copy_(torch.arange(len(KNOWN) + 1).double().sqrt())
        nats = naive_nats(model, text, VOCABULARY)
        assert len(nats) == 101
        blocks = [sum(nats[start:stop]) for start, stop in ((0, 34), (34, 68), (68, 101))]
        scores = score(model, part, VOCABULARY, lanes=lanes, window=7)
        assert scores.nats_N == pytest.approx(blocks, rel=1e-12)
        assert scores.unknown > 0
        one_by_one = total(prices(model.eval(), part, VOCABULARY, window=7), part)
        assert one_by_one.nats_N == pytest.approx(blocks, rel=1e-12)
        monkeypatch.setattr(evaluation, "SHORTEST_BLOCK", 60)
        alone = score(model, part, VOCABULARY, lanes=lanes)
        assert alone.nats_N == pytest.approx([sum(nats)], rel=1e-12)

    @pytest.mark.parametrize("window", [1, 16, 1000])
    def test_two_short_lanes_are_exact(self, tmp_path: Path, window: int) -> None:
        # The second lane's warm-up reaches back to the text's first character.
        part = make_framed_part(tmp_path, make_text(401))
        exact = score(make_model(), part, VOCABULARY, lanes=1)
        scores = score(make_model(), part, VOCABULARY, lanes=2, window=window)
        assert scores.nats == pytest.approx(exact.nats, rel=1e-9)

    def test_lanes_are_no_more_than_the_device_has_use_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluation, "SHORTEST_LANE", 20)
        monkeypatch.setitem(evaluation.MOST_LANES, "cpu", 3)
        model, part = make_model(), make_framed_part(tmp_path, make_text(401))
        found = score(model, part, VOCABULARY)
        assert found.nats == score(model, part, VOCABULARY, lanes=3).nats

    @pytest.mark.parametrize("lanes", [2, 7, 16])
    def test_lanes_of_a_trained_model_are_within_a_thousandth_of_a_nat(
        self, tmp_path: Path, trained: Path, lanes: int
    ) -> None:
        path = tmp_path / "text"
        path.write_text(make_prose(6007, seed=2))
        corpus = scan([str(path)])
        model, words, _ = load_model(trained, torch.device("cpu"))
        exact = score(model, corpus.part(0, 6007), words, lanes=1)
        scores = score(model, corpus.part(0, 6007), words, lanes=lanes)
        assert exact.nats_per_char < 2, "the model has learned enough for its state to matter"
        assert scores.nats_per_char == pytest.approx(exact.nats_per_char, abs=0.001)

    def test_an_unknown_character_costs_its_symbol_and_its_spelling(self, tmp_path: Path) -> None:
        model = make_model()
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.zero_()
            model.head.bias[UNKNOWN] = math.log(len(KNOWN))  # as likely as all the others together
        scores = score(model, make_framed_part(tmp_path, "a☃☃b"), VOCABULARY)
        spelling = math.log(1_114_112 - 2_048 - len(KNOWN))
        symbol, known = math.log(2), math.log(2 * len(KNOWN))
        assert scores.nats == pytest.approx(2 * (symbol + spelling) + known, rel=1e-12)
        assert scores.unknown == 2

    def test_bytes_know_everything(self, tmp_path: Path) -> None:
        path = tmp_path / "noise"
        data = bytes(9) + random.Random(1).randbytes(88)
        path.write_bytes(data)
        part = scan([str(path)], "bytes").part(0, 97)
        model = make_model(vocabulary=256)
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.zero_()
        scores = score(model, part, Vocabulary.of_bytes())
        assert (scores.characters, scores.bytes, scores.unknown) == (96, 96, 0)
        assert scores.bits_per_char == pytest.approx(8)
        assert scores.bits_per_byte == pytest.approx(8)
        priced = list(prices(model.float().eval(), part, Vocabulary.of_bytes()))
        assert [one.nats_T.dtype for one in priced] == [np.float64]
        assert [one.unknown for one in priced] == [0]

    def test_stops_between_windows_when_asked(self, tmp_path: Path) -> None:
        part = make_framed_part(tmp_path, make_text(50))
        model = make_model()
        asked: list[None] = []

        def stop_at_the_third() -> bool:
            asked.append(None)
            return len(asked) == 3

        with pytest.raises(Interrupted):
            score(model, part, VOCABULARY, window=7, should_stop=stop_at_the_third)
        assert len(asked) == 3
        assert model.training


class TestPrices:
    @pytest.mark.parametrize("window", [1, 17, 1000])
    def test_equal_the_definition(self, tmp_path: Path, window: int) -> None:
        text = make_text(101)
        part = make_framed_part(tmp_path, text)
        stretches = list(prices(make_model().eval(), part, VOCABULARY, window=window))
        found = [float(nats) for stretch in stretches for nats in stretch.nats_T]
        assert found == pytest.approx(naive_nats(make_model(), text, VOCABULARY), rel=1e-12)
        assert [stretch.position for stretch in stretches] == list(range(1, 101, window))
        assert sum(stretch.unknown for stretch in stretches) == sum(
            c not in KNOWN for c in text[1:]
        )

    def test_who_watches_takes_none_of_their_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        monkeypatch.setattr("charrnn.inference.evaluation.time.perf_counter", lambda: now[0])

        def priced() -> Iterator[Prices]:
            for position in (1, 3):
                now[0] += 1
                yield Prices(position, np.array([0.5, 0.25]), 0)
            now[0] += 3

        def watch(stretch: Prices) -> None:
            now[0] += 100
            seen.append(stretch.position)

        seen: list[int] = []
        added = total(priced(), make_framed_part(tmp_path, make_text(5)), [watch, watch])
        assert (added.nats, added.seconds, seen) == (1.5, 5, [1, 1, 3, 3])


class TestAfter:
    @pytest.mark.parametrize("wanted", ["a", "ab", "樓", "aa", "☃"])
    def test_equals_the_definition(self, tmp_path: Path, wanted: str) -> None:
        text = make_text(701, "aab樓☃")
        known = VOCABULARY
        nats = naive_nats(make_model(), text, known)
        at = [n for n in range(len(wanted), len(text)) if text[n - len(wanted) : n] == wanted]
        assert len(at) > 30
        part = make_framed_part(tmp_path, text)
        found = assess("run", make_model().eval(), known, part, EvaluateConfig(after=wanted))
        assert found.after is not None
        assert (found.after.text, found.after.characters) == (wanted, len(at))
        assert found.after.nats_per_char == pytest.approx(sum(nats[n - 1] for n in at) / len(at))
        assert found.scores.nats == pytest.approx(sum(nats))
        assert found.to_dict()["after"]["characters"] == len(at)

    def test_bytes_are_looked_for_as_utf_8(self, tmp_path: Path) -> None:
        path = tmp_path / "text"
        path.write_bytes("a樓b".encode() * 20)
        corpus = scan([str(path)], "bytes")
        known = Vocabulary.from_counts(corpus.part(0, corpus.characters).counts, "bytes", 1)
        model = make_model(vocabulary=known.size).eval()
        found = assess(
            "run", model, known, corpus.part(0, corpus.characters), EvaluateConfig(after="樓")
        )
        assert found.after is not None
        assert found.after.characters == 20
        assert found.of_bytes

    def test_a_text_that_never_occurs_has_no_price(self, tmp_path: Path) -> None:
        part = make_framed_part(tmp_path, make_text(101))
        found = assess("run", make_model().eval(), VOCABULARY, part, EvaluateConfig(after="zz"))
        assert found.to_dict()["after"] == {"text": "zz", "characters": 0, "nats_per_char": None}
        *_, said = assessments_say([found])
        assert said == "run: 'zz' does not occur: the text lacks 'z'"
        wanted = EvaluateConfig(after="".join(map(chr, part.first(1).counts)) * 50)
        found = assess("run", make_model().eval(), VOCABULARY, part, wanted)
        *_, said = assessments_say([found])
        assert said == f"run: {wanted.after!r} does not occur, or only at the end"

    def test_a_text_that_never_can_occur_is_explained(self, tmp_path: Path) -> None:
        """It looks the same, but is in another Unicode normal form."""
        path = tmp_path / "text"
        path.write_text("né " * 20, encoding="utf-8")
        corpus = scan([str(path)])
        known = Vocabulary.from_counts(corpus.counts, "utf-8", 1)
        model = make_model(vocabulary=known.size).eval()
        found = assess("run", model, known, corpus.whole, EvaluateConfig(after="e\u0301"))
        *_, said = assessments_say([found])
        assert said.endswith(
            r" does not occur: the text lacks 'e', '\u0301' (the text has it within 'é': "
            "normal form NFC)"
        )


def test_one_lane_is_scored_where_the_score_is_to_be_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "SHORTEST_LANE", 100)
    model, part = make_model().eval(), make_framed_part(tmp_path, make_text(401))
    nats = [score(model, part, VOCABULARY, lanes=lanes).nats for lanes in (1, 4)]
    found = [
        assess("run", model, VOCABULARY, part, EvaluateConfig(exact=exact))
        for exact in (True, False)
    ]
    assert [one.scores.nats for one in found] == nats
    assert nats[0] != nats[1]
    assert not any(one.of_bytes for one in found)


@pytest.mark.parametrize("after", [None, "a"])
def test_no_clock_counts_the_compilation_of_the_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str | None
) -> None:
    happened: list[str] = []
    loops, clock = recurrence.loops, time.perf_counter
    monkeypatch.setattr(recurrence, "loops", lambda: happened.append("loops") or loops())  # type: ignore[func-returns-value]
    monkeypatch.setattr(time, "perf_counter", lambda: happened.append("clock") or clock())  # type: ignore[func-returns-value]
    model = make_model("gru").float().eval()
    part = make_framed_part(tmp_path, make_text(50))
    assess("run", model, VOCABULARY, part, EvaluateConfig(after=after))
    assert "loops" in happened[: happened.index("clock")]


def test_the_type_of_a_score_is_asked_for_and_not_the_model_s(tmp_path: Path) -> None:
    part = make_framed_part(tmp_path, make_text(401))
    model = make_model().float()
    exact, narrow = (
        score(model, part, VOCABULARY, dtype=dtype).nats
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert exact != narrow == pytest.approx(exact, rel=0.01)
    for own in (torch.bfloat16, torch.float32):
        model.compute_dtype = own
        assert score(model, part, VOCABULARY).nats == exact
        assert score(model, part, VOCABULARY, dtype=torch.bfloat16).nats == narrow
        assert model.compute_dtype == own


@pytest.mark.parametrize("how", [{}, {"exact": True}, {"after": "a"}])
def test_what_is_scored_exactly_is_in_float32(tmp_path: Path, how: dict[str, Any]) -> None:
    part, model = make_framed_part(tmp_path, make_text(401)), make_model().float().eval()
    found = assess("run", model, VOCABULARY, part, EvaluateConfig(**how), precision="bf16")
    assert found.precision == ("fp32" if how else "bf16")
    dtype = torch.float32 if how else torch.bfloat16
    expected = score(model, part, VOCABULARY, dtype=dtype, lanes=1 if how else None).nats
    assert found.scores.nats == pytest.approx(expected, rel=1e-6)


class TestByPosition:
    @pytest.mark.parametrize(("window", "most"), [(3, 1), (128, 20), (5, 1 << 22)])
    @pytest.mark.parametrize("length", [1, 7, 99, 100, 250])
    def test_equals_the_definition(
        self, tmp_path: Path, length: int, window: int, most: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluation, "WINDOW", window)
        monkeypatch.setattr(evaluation, "MOST_PREDICTIONS", most)
        text = make_text(101)
        scores = score_by_position(
            make_model().eval(), make_framed_part(tmp_path, text), VOCABULARY, length
        )
        used = min(length, 100)
        stretches = [text[start : start + used + 1] for start in range(0, 101 - used, used)]
        expected = [0.0] * used
        for stretch in stretches:
            for position, nats in enumerate(naive_nats(make_model(), stretch, VOCABULARY)):
                expected[position] += nats / len(stretches)
        assert scores.stretches == len(stretches) == 100 // used
        assert scores.nats_T.tolist() == pytest.approx(expected, rel=1e-12)

    def test_logits_are_no_more_than_the_memory_has_room_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        part, model = make_framed_part(tmp_path, make_text(101)), make_model().eval()
        whole = score_by_position(model, part, VOCABULARY, 25)
        unbound = score(model, part, VOCABULARY, lanes=5)
        sizes: list[int] = []
        forward = model.forward

        def watched(x_TB: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
            logits_TBV, after = forward(x_TB, hidden)
            sizes.append(logits_TBV.numel())
            return logits_TBV, after

        monkeypatch.setattr(model, "forward", watched)
        most = 32 * 3 * VOCABULARY.size
        monkeypatch.setitem(evaluation.MOST_LOGITS, "cpu", most)
        pieces = score_by_position(model, part, VOCABULARY, 25)
        assert max(sizes) <= most
        assert pieces.nats_T.tolist() == pytest.approx(whole.nats_T.tolist(), rel=1e-12)
        for room, times in ((most, 19), (1, 1)):  # one time step at least
            monkeypatch.setitem(evaluation.MOST_LOGITS, "cpu", room)
            sizes.clear()
            again = score(model, part, VOCABULARY, lanes=5)
            assert max(sizes) == 5 * times * VOCABULARY.size
            assert again.nats == pytest.approx(unbound.nats, rel=1e-12)
