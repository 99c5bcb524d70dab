"""R13: unknown characters in a prompt or a scored text are explained."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from charrnn.storage.checkpoint import load
from charrnn.text.vocabulary import Vocabulary
from tests.conftest import UNICODE, Result, run_cli
from tests.reliability.conftest import Promise

LIST = "'é' x 3, 'Z' x 2, '中' x 1"
PROMPT = "thé 中at Zé Zé"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the letters of one sentence."""
    folder = tmp_path_factory.mktemp("unknown")
    (folder / "text").write_text("the cat sat on the mat.\n" * 30)
    result = run_cli(
        "train", folder / "text", "--run", folder / "run", "--steps", 20, "--hidden", 8,
        "--batch-size", 4, "--bptt", 16, "--quiet",
    )  # fmt: skip
    assert result.code == 0
    return folder / "run"


def sample(run: Path, *options: object, stdin: bytes = b"") -> Result:
    return run_cli("sample", run, "--length", 5, "--temperature", 0, *options, stdin=stdin)


def test_a_prompt_is_refused_with_a_list(run: Path, promise: Promise) -> None:
    said = (
        "the model does not know these characters of the prompt, which occur fewer than 2 times in "
        f"the text of its vocabulary: {LIST}; "
    )
    for result in (
        sample(run, "--prompt", PROMPT),
        sample(run, "--prompt", PROMPT, "--unknown", "error", "--json"),
        sample(run, "--prompt", "-", stdin=PROMPT.encode()),
    ):
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith(f"charrnn: {said}") and result.err.count("\n") == 1
        assert "--unknown replace" in result.err and "--unknown skip" in result.err
    promise("R13", "--unknown error: refused, characters listed with counts", LIST)


def test_skipped(run: Path, promise: Promise) -> None:
    result = sample(run, "--prompt", PROMPT, "--unknown", "skip")
    assert result.code == 0
    assert result.err == f"skipped characters that the model does not know: {LIST}\n"
    assert result.out == sample(run, "--prompt", "th at  ").out
    promise("R13", "--unknown skip: equals the prompt without them", "equal")


def test_replaced(run: Path, promise: Promise) -> None:
    result = sample(run, "--prompt", PROMPT, "--unknown", "replace", "--echo")
    assert result.code == 0
    assert result.err == f"replaced characters that the model does not know: {LIST}\n"
    assert result.out.startswith("th\ufffd \ufffdat \ufffd\ufffd \ufffd\ufffd")
    other = sample(run, "--prompt", "thß ßat ßß ßß", "--unknown", "replace", "--echo")
    assert other.out == result.out
    promise("R13", "--unknown replace: by the unknown symbol, which one does not matter", "equal")


@pytest.mark.parametrize("policy", ["error", "skip", "replace"])
def test_known_characters_are_no_matter(run: Path, policy: str) -> None:
    result = sample(run, "--prompt", "the mat", "--unknown", policy)
    assert (result.code, result.err) == (0, "")


def test_many_are_counted(run: Path) -> None:
    prompt = "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))
    result = sample(run, "--prompt", prompt)
    assert result.code == 1
    assert result.err.count(" x 1") == 8 and " and 992 more; " in result.err


def test_a_stop_that_can_never_come(run: Path) -> None:
    result = sample(run, "--stop", "né")
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert "'né' can never be produced: the model does not know 'é'" in result.err


def test_what_looks_the_same_is_explained(run: Path, promise: Promise) -> None:
    """A no-break space, which word processors and web pages put in the place of a space."""
    remark = r"'\xa0' x 1 (the training text has ' ' U+0020)"
    for option in ("--prompt", "--stop"):
        result = sample(run, option, "the\xa0mat")
        assert (result.code, result.err.count("\n")) == (1, 1)
        assert remark in result.err
    promise("R13", "a look-alike of a known character: named with it", remark)


def test_a_scored_text(run: Path, tmp_path: Path, promise: Promise) -> None:
    text = tmp_path / "text"
    text.write_text(PROMPT, encoding="utf-8")
    result = run_cli("evaluate", run, "--text", text, "--json")
    assert result.code == 0
    assert result.err == (
        f"{run}: the model does not know 6 of the 12 characters scored, and each is charged as "
        f"the unknown symbol and spelled out: {LIST}\n"
    )
    (row,) = json.loads(result.out)
    assert (row["unknown"], row["characters"]) == (6, 12)
    # Each costs ln(number of code points that the model does not know), and a little more.
    vocabulary = Vocabulary.from_json(load(run / "best.safetensors").meta["vocabulary"])
    assert vocabulary.unknown_nats == math.log(UNICODE - (vocabulary.size - 1))
    assert row["nats_per_char"] * 12 > 6 * vocabulary.unknown_nats
    figure = f"{row['unknown']} of {row['characters']} characters"
    promise("R13", "a scored text: listed with counts, and charged", figure)


def test_a_text_to_go_on_training_with(run: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(PROMPT * 9, encoding="utf-8")
    result = run_cli("train", text, "--init-from", run, "--run", tmp_path / "run", "--steps", 1)
    assert result.code == 0
    assert "it knows 54.28 % of the characters to train on, and lacks 'é' x 24, " in result.err


def test_bytes_have_no_unknown(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"the cat sat. " * 40)
    run = tmp_path / "run"
    result = run_cli(
        "train", text, "--encoding", "bytes", "--run", run, "--steps", 3, "--hidden", 4, "--quiet"
    )
    assert result.code == 0
    result = sample(run, "--prompt", PROMPT, "--echo")
    assert result.code == 0 and result.err == ""
