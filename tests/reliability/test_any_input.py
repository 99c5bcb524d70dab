"""R12: any text or argument gives a result or one plain line."""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import charrnn.inference.sampling
from charrnn.cli import app
from charrnn.runs.run import _Standing
from tests.conftest import Result, give_memory, make_prose, run_cli, run_process, slowly
from tests.reliability.conftest import Promise

TINY = ["--hidden", 3, "--embedding", 3, "--batch-size", 2, "--bptt", 5]


def flaw(result: Result) -> str | None:
    """Return what was wrong with how a command ended, if anything."""
    if result.code not in (0, 1, 2):
        return f"exit code {result.code}"
    for word in ("Traceback", "Warning", "fault in charrnn"):
        if word in result.err:
            return word
    if result.code and result.out and not result.out.startswith('{"event":'):
        return "a failure prints no product"
    lines = result.err.splitlines()
    if result.code and not (lines and lines[-1].startswith("charrnn: ") and len(lines[-1]) < 700):
        return "a failure ends in one plain line"
    if not result.err.replace("\n", "").isprintable():
        return "what cannot be printed was printed"
    return None


@pytest.fixture(autouse=True)
def soon_over(folder: Path, short_samples: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop every training after three updates and every sample after twenty characters."""
    is_over = vars(_Standing)["is_over"].fget
    soon = property(lambda run: run.progress.step >= 3 or is_over(run))
    monkeypatch.setattr(_Standing, "is_over", soon)
    real_sample = charrnn.inference.sampling.sample
    monkeypatch.setattr(
        charrnn.inference.sampling, "sample", lambda *args: itertools.islice(real_sample(*args), 20)
    )
    give_memory(monkeypatch, 16_000)  # the same on every machine
    (folder / "here").mkdir(exist_ok=True)
    monkeypatch.chdir(folder / "here")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that the examples use in turn for their texts and runs."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def examples(count: int) -> settings:
    """Draw examples without shrinking or checking how long one takes."""
    return settings(
        max_examples=count,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


# Texts ---------------------------------------------------------------------------

ENCODINGS = ("utf-8", "bytes", "latin-1", "utf-16", "utf-16-le", "shift_jis", "gb18030", "utf-7")

SPECIAL = {
    "empty": b"",
    "one character": b"a",
    "two characters": b"ab",
    "one character of three bytes": "中".encode(),
    "a mark of UTF-8 and nothing else": b"\xef\xbb\xbf",
    "a mark of UTF-16 and nothing else": b"\xff\xfe",
    "a mark and text": "\ufeffthe cat".encode(),
    "UTF-16": "the cat sat".encode("utf-16"),
    "invalid UTF-8": b"the c\xe9t sat on the m\xe4t",
    "UTF-8 cut off": "the 中".encode()[:-1],
    "a surrogate in UTF-8": b"abc\xed\xa0\x80def",
    "overlong UTF-8": b"abc\xc0\x80def",
    "beyond Unicode": b"abc\xf4\x90\x80\x80def",
    "NUL": b"the\0cat",
    "NUL only": bytes(40),
    "lone CR": b"the\rcat\rsat",
    "CRLF": b"the\r\ncat\r\n",
    "line breaks only": b"\n" * 50,
    "one character, often": b"a" * 500,
    "each character once": bytes(range(32, 127)),
    "all bytes": bytes(range(256)) * 2,
    "escapes of a terminal": b"\x1b[2J\x1b[31mred\x07\x9b1m" * 9,
    "line separators": "a\u2028b\u2029c\x85d\x0be\x0cf".encode() * 5,
    "right to left and combining": ("\u202eabc\u0301\u0301\u0301 \u05d0" * 9).encode(),
    "private, unassigned, the last": "\ue000\U000e0fff\U0010ffff\ufffe".encode() * 9,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈".encode() * 9,
    "markup": b"[bold]the[/bold] [link=x]cat[/] :smile: " * 9,
    "one very long line": b"x" * 70_000,
    "100,000 distinct characters": "".join(map(chr, range(0x20000, 0x20000 + 100_000))).encode(),
}

texts = st.one_of(
    st.sampled_from(sorted(SPECIAL.values(), key=len)[:-1]),
    st.binary(max_size=120),
    st.binary(min_size=20, max_size=3000),
    st.builds(
        lambda text, encoding: text.encode(encoding, "surrogatepass"),
        st.text(max_size=300),
        st.sampled_from(["utf-8", "utf-16", "utf-32"]),
    ),
    st.builds(
        lambda text, encoding: text.encode(encoding, "ignore"),
        st.text(min_size=10, max_size=300),
        st.sampled_from(["latin-1", "gb18030", "shift_jis", "cp1252", "utf-7"]),
    ),
    st.builds(bytes.__mul__, st.binary(min_size=1, max_size=9), st.integers(1, 400)),
)  # fmt: skip


def tried(folder: Path, text: bytes, encoding: str, codes: Counter[int]) -> str | None:
    """Train, sample and score with a text; return what went wrong, if anything."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    file = folder / "text"
    file.write_bytes(text)
    trained = run_cli(
        "train", file, "--run", folder / "run", "--steps", 3, *TINY, "--encoding", encoding
    )
    codes[trained.code] += 1
    results = [trained]
    if trained.code == 0:
        results.append(run_cli("sample", folder / "run", "--length", 9, "--temperature", 2))
        if len(text) < 100_000:
            results.append(run_cli("evaluate", folder / "run", "--text", file, "--json"))
        if any(result.code for result in results):
            return f"trained, but: {results}"
    elif (folder / "run").exists():
        return "a failure left a run's folder"
    return next((f"{what}: {r}" for r in results if (what := flaw(r))), None)


@pytest.mark.parametrize("name", [*list(SPECIAL)[:-1], *slowly(list(SPECIAL)[-1])])
def test_special_texts(folder: Path, name: str) -> None:
    for encoding in ("utf-8", "bytes"):
        assert tried(folder, SPECIAL[name], encoding, Counter()) is None


def random_texts(folder: Path, count: int, codes: Counter[int]) -> None:
    @examples(count)
    @given(text=texts, encoding=st.sampled_from(ENCODINGS + ("utf-8",) * 8))
    def check(text: bytes, encoding: str) -> None:
        assert tried(folder, text, encoding, codes) is None

    check()


def test_some_texts(folder: Path) -> None:
    codes: Counter[int] = Counter()
    random_texts(folder, 40, codes)
    assert codes.keys() == {0, 1}


@pytest.mark.slow
def test_texts(folder: Path, promise: Promise) -> None:
    codes: Counter[int] = Counter()
    try:
        random_texts(folder, 2000, codes)
    finally:
        what = f"byte strings trained on: {codes[0]:,} exit 0, {codes[1]:,} exit 1 with one line"
        promise("R12", what, f"{codes.total():,} of 2,000")
    assert codes.total() >= 2000
    assert codes[0] > 300 and codes[1] > 300


# Options -------------------------------------------------------------------------

ODD_NUMBERS = st.sampled_from([
    "0", "-0", "1", "2", "3", "5", "7", "-1", "0.5", "0.1", "0.999999", "1.0", "-0.5", "1e-3",
    "1e-320", "1e308", "-1e308", "1e38", "1e39", "nan", "-nan", "inf", "-inf", "Infinity",
    "2147483647", "2147483648", "9223372036854775807", "9223372036854775808", "1" + "0" * 30,
    "1" + "0" * 400, "-" + "9" * 40, "", " ", "x", "0x10", "1_0", "１", "1,5", "--", "None", "true",
])  # fmt: skip
NUMBERS = st.one_of(st.sampled_from(["1", "2", "3", "0.1", "0.5"]), ODD_NUMBERS)
WORDS = st.one_of(
    st.sampled_from(
        ["", "-", "x", "\x1b[2J", "[bold]", "a\nb", "中", "\udcff", "no/such", "*", "~"]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9),
)
#: Names of files to write, all in the current folder.
FILES = st.sampled_from(
    ["", "-", "x", ".", "..", "no/such.html", "x.html", "\x1b[2J.html", "a\nb.htm", "\udcff.html"]
)

TRAIN: dict[str, Any] = {
    **dict.fromkeys(
        [
            "--layers", "--hidden", "--embedding", "--dropout", "--weight-drop", "--batch-size",
            "--bptt", "--loss-last", "--lr", "--weight-decay", "--clip-norm", "--clip-value",
            "--minutes", "--epochs", "--steps", "--valid-share", "--test-share", "--patience",
            "--validate-every", "--min-count", "--seed", "--keep", "--scale-norm",
            "--loss-temperature",
        ],
        NUMBERS,
    ),
    **dict.fromkeys(
        ["--cell", "--encoding", "--device", "--precision", "--valid", "--optimiser"], WORDS
    ),
    "--init-from": WORDS,
    "--dropout-masks": NUMBERS,
}  # fmt: skip
SAMPLE: dict[str, Any] = {
    **dict.fromkeys(
        ["--length", "--temperature", "--top-k", "--top-p", "--count", "--seed"], NUMBERS
    ),
    **dict.fromkeys(["--prompt", "--stop", "--unknown", "--device", "--weights"], WORDS),
}
EVALUATE: dict[str, Any] = {
    **dict.fromkeys(["--text", "--encoding", "--device", "--part", "--after"], WORDS),
    "--by-position": NUMBERS,
    **dict.fromkeys(["--per-char", "--report"], FILES),
}
INSPECT: dict[str, Any] = {
    **dict.fromkeys(["--text", "--encoding", "--device", "--part", "--unit", "--only"], WORDS),
    **dict.fromkeys(
        ["--characters", "--spectral-radius", "--seed", "--bptt", "--loss-last"], NUMBERS
    ),
    "--report": FILES,
}
COMPARE: dict[str, Any] = {
    **{o: values for o, values in TRAIN.items() if o in (
        "--cell", "--layers", "--hidden", "--dropout", "--batch-size", "--bptt", "--encoding",
        "--valid-share", "--test-share", "--min-count", "--seed", "--minutes", "--epochs",
        "--steps", "--embedding", "--precision", "--device", "--lr", "--weight-decay",
        "--clip-norm", "--optimiser", "--weight-drop", "--dropout-masks", "--loss-temperature",
        "--valid",
    )},
    "--seeds": st.sampled_from(["0", "-1", "1", "nan", "x", "1" + "0" * 30]),
    "--match": WORDS,
    "--report": FILES,
}  # fmt: skip

OPTIONS = {
    "train": TRAIN, "sample": SAMPLE, "evaluate": EVALUATE, "inspect": INSPECT, "compare": COMPARE,
}  # fmt: skip
#: Flags that a command line may end with.
FLAGS: dict[str, list[str]] = {
    "train": ["--json", "--reset-state"],
    "sample": ["--echo", "--json"],
    "evaluate": ["--exact", "--baselines", "--dynamic", "--show", "--json"],
    "inspect": ["--json"],
    "compare": ["--json"],
}
#: Options that are not drawn: ``words_of`` adds --run and --quiet; ``train --resume`` is drawn
#: apart, with a copy of ``model``; there is no comparison to resume.
FIXED: dict[str, set[str]] = {
    "train": {"--run", "--resume", "--quiet"}, "compare": {"--run", "--resume", "--quiet"},
}  # fmt: skip


#: Words in place of a text, a checkpoint or a run's folder: none of them is a folder of texts.
PLACES = st.one_of(
    WORDS.filter(lambda word: word not in ("*", "-", "~", "..") and "/" not in word),
    st.sampled_from(["prose", "no/such", "/dev/null", "/dev/full", "/proc/self/mem", "x" * 300]),
)


def option_sets(options: dict[str, Any], most: int) -> Any:
    """Return sets of options, each with a value; an option may come twice."""
    pairs = [st.tuples(st.just(name), values) for name, values in options.items()]
    return st.lists(st.one_of(pairs), min_size=1, max_size=most)


def lines(name: str, most: int, flags: list[str]) -> Any:
    """Return command lines: a name, options, and at most one flag."""
    ends: list[list[str]] = [[], *([flag] for flag in flags)]
    return st.tuples(st.just(name), option_sets(OPTIONS[name], most), st.sampled_from(ends))


commands = st.one_of(
    lines("train", 5, FLAGS["train"]),
    lines("train", 2, ["--resume"]),
    lines("sample", 4, FLAGS["sample"]),
    lines("evaluate", 2, FLAGS["evaluate"]),
    lines("inspect", 2, FLAGS["inspect"]),
    lines("compare", 2, FLAGS["compare"]),
)


def test_every_option_is_tried() -> None:
    tried = {name: {*OPTIONS[name], *FLAGS[name], *FIXED.get(name, ())} for name in OPTIONS}
    assert tried == {
        name: {flag for param in known.params for flag in param.opts if flag.startswith("--")}
        for name, known in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    }


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """The folder of a run; its text lies beside it."""
    (folder / "prose").write_text(make_prose(400))
    words = ["train", folder / "prose", "--run", folder / "model", "--steps", 3, "--quiet", *TINY]
    assert run_cli(*words).code == 0
    return folder / "model"


def words_of(command: tuple[str, list[tuple[str, str]], list[str]], folder: Path) -> list[object]:
    """Return a complete command line; what is not under test is small and valid."""
    name, pairs, flags = command
    options = [word for pair in pairs for word in pair]
    if name == "sample":
        return [name, folder / "model", *options, *flags]
    if name in ("evaluate", "inspect"):
        text = [] if {"--text", "--part"} & set(options) else ["--text", folder / "prose"]
        return [name, folder / "model", *text, *options, *flags]
    budget = {"--minutes", "--epochs", "--steps"} & set(options)
    sizes = [] if "--resume" in flags else list(TINY)
    if name == "compare":
        sizes += ["--cell", "gru", "--match", "hidden"]
    fixed = ["--run", folder / "run", *([] if budget else ["--steps", 3]), *sizes]
    quiet = [] if "--json" in flags else ["--quiet"]  # not both at once
    return [name, folder / "prose", *fixed, *options, *flags, *quiet]


def random_options(folder: Path, count: int, codes: Counter[int]) -> None:
    @examples(count)
    @given(command=commands)
    def check(command: tuple[str, list[tuple[str, str]], list[str]]) -> None:
        shutil.rmtree(folder / "run", ignore_errors=True)
        for file in Path().iterdir():
            file.unlink()
        if "--resume" in command[2]:
            shutil.copytree(folder / "model", folder / "run")
        result = run_cli(*words_of(command, folder), stdin=b"the cold bird")
        codes[result.code] += 1
        assert flaw(result) is None, result

    check()


@pytest.mark.usefixtures("model")
def test_some_options(folder: Path) -> None:
    codes: Counter[int] = Counter()
    random_options(folder, 60, codes)
    assert codes.keys() == {0, 1, 2}


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_options(folder: Path, promise: Promise) -> None:
    codes: Counter[int] = Counter()
    try:
        random_options(folder, 1000, codes)
    finally:
        counted = ", ".join(f"{codes[code]:,} exit {code}" for code in sorted(codes))
        promise("R12", f"option sets: {counted}", f"{codes.total():,} of 1,000")
    assert codes.total() >= 1000
    assert min(codes[0], codes[1], codes[2]) > 30


@pytest.mark.parametrize("count", [40, *slowly(400)], ids=["some", "many"])
@pytest.mark.usefixtures("model")
def test_names(folder: Path, count: int, promise: Promise) -> None:
    """Any word as a text, a checkpoint or a run's folder, beside valid ones."""
    codes: Counter[int] = Counter()

    @examples(count)
    @given(name=st.sampled_from(sorted(OPTIONS)), word=PLACES, where=st.booleans())
    def check(name: str, word: str, where: bool) -> None:
        shutil.rmtree(folder / "run", ignore_errors=True)
        for file in Path().iterdir():
            if file.is_dir():
                shutil.rmtree(file)
            else:
                file.unlink()
        command = words_of((name, [], []), folder)
        if where and "--run" in command:
            command[command.index("--run") + 1] = word
        else:
            command[1] = word
        result = run_cli(*command, stdin=b"the cold bird")
        codes[result.code] += 1
        assert flaw(result) is None, (command, result)

    check()
    if count > 99:
        counted = ", ".join(f"{codes[code]:,} exit {code}" for code in sorted(codes))
        promise("R12", f"names: {counted}", f"{codes.total():,} of {count}")
    assert codes[0] and codes[1] + codes[2] > count / 4


HUGE = ("1e39", "1" + "0" * 30, "1" + "0" * 400, "2147483647", "100000000")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", *slowly(*HUGE)])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name in ("train", "compare")
        for option, values in OPTIONS[name].items()
        if values is NUMBERS
    ],
)
@pytest.mark.usefixtures("model")
def test_each_option_alone(folder: Path, name: str, option: str, value: str) -> None:
    shutil.rmtree(folder / "run", ignore_errors=True)
    result = run_cli(*words_of((name, [(option, value)], []), folder))
    assert flaw(result) is None, result
    if value in ("-1", "nan", "inf"):
        assert result.code == 2, "no option accepts it"
    if result.code and "is not finite" not in result.err:
        assert option in result.err, "the message names the option"


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_real_processes(folder: Path, promise: Promise) -> None:
    """Try a few such texts and options in real processes, with real streams and exit codes."""
    rng = random.Random(3)
    values = ["0", "-1", "nan", "1e308", "1" + "0" * 30, "x", "", "2"]
    good = 0
    for number in range(30):
        shutil.rmtree(folder / "run", ignore_errors=True)
        if number % 3 == 0:
            (folder / "text").write_bytes(rng.choice(list(SPECIAL.values())[:-1]))
            words: list[object] = ["train", folder / "text", "--run", folder / "run", *TINY]
            words += ["--steps", 2, "--encoding", rng.choice(ENCODINGS)]
        else:
            name = ("train", "sample")[number % 2]
            pool = TRAIN if name == "train" else SAMPLE
            left_out = ("--minutes", "--epochs", "--steps", "--length", "--count")
            option = rng.choice([o for o in pool if o not in left_out])
            words = words_of((name, [(option, rng.choice(values))], []), folder)
        result = run_process(*words, stdin=b"the cold bird")
        good += flaw(result) is None
    promise("R12", "the same with real processes", f"{good} of 30")
    assert good == 30
