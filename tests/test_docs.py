from __future__ import annotations

import doctest
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from math import log2
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest
import typer

from charrnn import recipe
from charrnn.analysis.inspection import Inspection
from charrnn.cli import app
from charrnn.config import CellName, ModelConfig, TrainConfig
from charrnn.inference.baselines import MOST_COMPRESSED
from charrnn.inference.evaluation import SHORTEST_BLOCK
from charrnn.inference.ranking import FEWEST_BLOCKS
from charrnn.network import optimiser
from charrnn.runs.comparison import RunResult
from charrnn.runs.planning import LEAST_TIMED
from charrnn.runs.schedule import LEAST_SCORED, Schedule
from charrnn.storage.reading import MOST_FILES
from tests.conftest import GOLDEN_DATA, ROOT, Cli, documented_fields, make_prose, write
from tests.promises import PROMISES

LISTED = (
    subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if shutil.which("git")
    else []
)
#: Every page; outside a git checkout, those in the usual places.
PAGES = [ROOT / name for name in LISTED] or [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]

PARAMETERS: dict[str, list[Any]] = {
    name: command.params
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
}
COMMANDS = {
    name: {option for parameter in parameters for option in parameter.opts}
    for name, parameters in PARAMETERS.items()
}


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


@pytest.fixture(scope="module")
def cli_docs() -> ModuleType:
    loader = SourceFileLoader("cli_docs", str(ROOT / "scripts" / "cli-docs"))
    spec = spec_from_loader("cli_docs", loader)
    assert spec is not None
    module = module_from_spec(spec)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = written
    return module


def test_the_page_of_the_command_line_is_what_help_says(cli_docs: ModuleType) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    expected = cli_docs.generate(page)
    for options in COMMANDS.values():
        assert {option for option in options if option.startswith("--")} <= options_in(page)
    assert options_in(page) == options_in(expected), "run .venv/bin/python scripts/cli-docs"
    if f"typer {typer.__version__}" not in page:
        pytest.skip("options compared only: another typer may lay the same page out otherwise")
    assert page == expected, "run .venv/bin/python scripts/cli-docs"


@pytest.mark.parametrize("name", PARAMETERS)
def test_an_option_says_if_not_only_the_last_one_counts(name: str) -> None:
    for parameter in PARAMETERS[name]:
        if parameter.opts[0].startswith("--"):
            says = re.search("may be given several times|give it once for each", parameter.help)
            assert (parameter.multiple, parameter.nargs) == (bool(says), 1), parameter.opts


def test_the_table_of_promises_has_those_that_are_measured() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (R\d+) \|", page, re.M) == list(PROMISES)


def fields_in(kind: Any) -> set[str]:
    """Return the names of a dataclass's fields, and of the fields of dataclasses in them."""
    hints = get_type_hints(kind) if is_dataclass(kind) else {}
    inner = [*hints.values(), *get_args(kind)]
    return set(hints).union(*map(fields_in, inner))


@pytest.mark.parametrize(
    ("kind", "begin", "end"),
    [
        (Inspection, "\n`inspect` with a text: ", "\n## "),
        # `compare` has the fields of `evaluate`, too.
        (RunResult, "\n`evaluate`: ", "\n`inspect` without a text: "),
    ],
)
def test_every_field_of_the_json_is_named(kind: type, begin: str, end: str) -> None:
    """Those within other fields, too; each where that command's JSON is described."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").partition("## JSON")[2]
    described = page.partition(begin)[2].partition(end)[0]
    assert fields_in(kind) <= set(re.findall(r"\w+", described))


def test_the_table_of_inspect_s_json_is_what_it_has() -> None:
    """Except for what the introduction names, as ``to_dict`` puts it first."""
    measured = {field.name for field in fields(Inspection)} - {"cell", "characters"}
    assert measured == documented_fields("`inspect` with a text: one object")


def test_fields_of_a_training_are_options_or_in_the_table() -> None:
    recorded = {field.name for kind in (ModelConfig, TrainConfig) for field in fields(kind)}
    options = {option.removeprefix("--").replace("-", "_") for option in COMMANDS["train"]}
    assert recorded - options == documented_fields("`model` and `training`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_shown_have_the_options_they_show(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    names = "|".join(COMMANDS)
    for name, rest in re.findall(rf"charrnn ({names})\b([^\n`|;#&)]*)", text):
        for option in options_in(rest):
            assert option in COMMANDS[name] | {"--help"}, f"charrnn {name} {option}"


def test_an_option_of_another_program_is_answered_as_in_the_table(cli: Cli) -> None:
    page = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
    table = page.partition("\n## Option by option\n")[2].partition("\n## ")[0]
    ours: dict[str, set[str]] = {}
    for _, *theirs, here, _ in (line.split("|") for line in re.findall(r"^\|.*`.*", table, re.M)):
        if not here.startswith((" none", " by rule", " `charrnn", " the name of")):
            for name in re.findall(r"`-*([a-z]\w+)", " ".join(theirs)):
                ours.setdefault(name, set()).update(options_in(here))
    assert {"rnn_size", "n_embd", "start", "init_from"} <= ours.keys()
    for name, here in ours.items():
        said = "".join(cli(command, "text", f"-{name}").err for command in ("train", "sample"))
        assert here & set(re.findall(rf"option: -{name}: use (--[a-z-]+)", said)), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_to_copy_has_a_comment_behind_it(page: Path) -> None:
    """In zsh, the shell of macOS, a typed # starts no comment: the rest are arguments."""
    for block in re.findall(r"^ *```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.M | re.S):
        for line in block.splitlines():
            assert "#" not in line.split()[1:], line


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)", page.read_text(encoding="utf-8")):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_that_are_named_exist(page: Path) -> None:
    folders = r"(?<![\w/.-])(?:tests|scripts|benchmarks|charrnn)/[\w./-]*\w"
    for name in re.findall(folders, page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nobody_is_sent_to_the_package_of_somebody_else(page: Path) -> None:
    """The ``charrnn`` on PyPI is a different package."""
    for line in page.read_text(encoding="utf-8").splitlines():
        found = re.search(r"pip install ([^`]*)", line)
        if found:
            assert "charrnn" not in shlex.split(found[1].replace("'", "")), line


@pytest.mark.parametrize(
    "name", ["command_words", "text.vocabulary", "views.score_words", "wording"]
)
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"charrnn.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_the_page_of_defaults_has_the_rules_numbers() -> None:
    page = " ".join((ROOT / "docs" / "defaults.md").read_text(encoding="utf-8").split())

    def chosen(cell: CellName, device: str = "cpu", **options: Any) -> tuple[Any, Any]:
        choices = recipe.Choices(cell=cell, budget={"steps": 10})
        return recipe.choose(choices, vocabulary=65, characters=10**6, device=device, **options)

    def widths(device: str, **options: Any) -> str:
        return " | ".join(str(chosen(cell, device, **options)[0].hidden) for cell in cells)

    def growing(cell: CellName) -> str:
        millions = [f"{least / 1e6:g}" for least in recipe.RULES[cell].wider_from]
        if cell == "lstm":
            last = f"{recipe.FP32_LAST / 1e6:g}"
            millions[0] += f" (fp32, below {recipe.FP32_PASSES} passes: {last} instead)"
        return ", ".join(millions)

    def decay(cell: CellName, low: str, high: int) -> str:
        before = recipe.weight_decay(cell, int(low.removeprefix("p = ")), 1)
        return f"{before} up to {low}, rising to {recipe.weight_decay(cell, high, 1)} at {high}"

    cells: tuple[CellName, ...] = ("lstm", "gru", "rnn")
    (lstm, lstm_trained), (_, rnn_trained) = chosen("lstm"), chosen("rnn")
    on_gpu, trained_on_gpu = chosen("lstm", "cuda", bf16=True)
    masks, masks_on_gpu = lstm_trained.dropout_masks, trained_on_gpu.dropout_masks
    assert lstm.layers == on_gpu.layers
    assert replace(trained_on_gpu, dropout_masks=masks, precision="fp32") == lstm_trained
    assert chosen("gru")[1] == lstm_trained
    assert rnn_trained.lr_adam == lstm_trained.lr_adam
    many = {cell: rules.many_symbols for cell, rules in recipe.RULES.items()}
    assert many["gru"] == many["lstm"] == recipe.RARE_SYMBOLS
    for line in (
        f"| `--minutes` | {recipe.DEFAULT_MINUTES:g} |",
        f"(CUDA in bf16: the next multiple of {recipe.GPU_MULTIPLE}, not measured)",
        f"fewer than {recipe.GPU_LANES[1][0]} times with these, 32 x 64, fewer than "
        f"{recipe.GPU_LANES[0][0]} times 64 x 64 (with",
        f"| `--layers` | {lstm.layers} |",
        f"LSTM and GRU {lstm_trained.batch_size} x {lstm_trained.bptt}, "
        f"RNN {rnn_trained.batch_size} x {rnn_trained.bptt};",
        f"Both are expected to read {recipe.GUESSED_SPEED['mps']:,} / "
        f"(1 + symbols / {recipe.HALVED_BY['mps']:,}) characters a second.",
        f"| units in fp32 | {widths('cpu')} |",
        f"| units in bf16 | {widths('cpu', bf16=True)} |",
        f"characters read | {growing('lstm')} | {growing('gru')} | {growing('rnn')} |",
        f"| units | {widths('cuda', bf16=True)} |",
        f"| units past {recipe.GPU_WIDER_FROM / 1e6:g} million characters read | "
        f"{' | '.join(str(recipe.RULES[cell].gpu_units[1]) for cell in cells)} |",
        f"{recipe.GUESSED_SPEED['cpu']:,} / (1 + symbols / {recipe.HALVED_BY['cpu']:,}) "
        "characters a second on a CPU, "
        f"{recipe.GUESSED_SPEED['cuda']:,} / (1 + symbols / {recipe.HALVED_BY['cuda']:,}) on CUDA "
        "in bf16.",
        f"more than {recipe.MOST_WEIGHTS['cpu']:g} weights for a character of the text "
        f"(CUDA in bf16: {recipe.MOST_WEIGHTS['cuda']:g})",
        f"| LSTM, GRU | {lstm_trained.lr} | {lstm_trained.lr_adam} |",
        f"| RNN | {rnn_trained.lr} | {rnn_trained.lr_adam} |",
        f"From {recipe.RARE_SYMBOLS} symbols on AdamW's is three times that",
        f"(p, below, from {recipe.BY_HEART} on)",
        f"rate, {recipe.ONE_RATE['adamw']['lr']}; with `sgd` it is "
        f"{recipe.ONE_RATE['sgd']['lr']:g}.",
        f"in bands of at most {optimiser.BAND} rows",
        f"{recipe.MOST_WARMUP_STEPS} steps of warm-up",
        f"a cosine down to {100 * Schedule.FLOOR:g} %.",
        f"| LSTM: {decay('lstm', 'p = 16', 32)}; GRU: {decay('gru', 'p = 8', 16)} "
        f"| {decay('rnn', 'p = 2', 4)}; {decay('rnn', '16', 32)} |",
        f"from {many['lstm']} symbols on (RNN: {many['rnn']:,})",
        f"With `--optimiser adamw` it is {recipe.ONE_RATE['adamw']['weight_decay']}, "
        f"with `sgd` {recipe.ONE_RATE['sgd']['weight_decay']:g}.",
        f"p = (passes over the training part, at most {recipe.MOST_PASSES}) x weights in the",
        f"none up to p = {recipe.LEAST_PRESSURE}; then 0.06 log2(p);",
        f"{masks} on a CPU, but 1 where p is below {recipe.BY_HEART} and",
        f"On CUDA as many as {masks_on_gpu}, as long as",
        f"then 1 / (1 + {(recipe.FLATTEST - 1) / log2(recipe.FLATTEST_FROM):g} log2(p)), "
        f"from p = {recipe.FLATTEST_FROM} on {recipe.loss_temperature(65, recipe.FLATTEST_FROM)}. "
        f"From {recipe.RARE_SYMBOLS} symbols on 1.",
        f"{LEAST_SCORED:,} characters at least, in few minutes {LEAST_TIMED:,}.",
        f"Nesterov's momentum, {optimiser.MOMENTUM}.",
        f"betas of {optimiser.BETAS[0]} and {optimiser.BETAS[1]} and",
    ):
        assert line in page, line


@pytest.mark.parametrize("characters", [99_999, 250_000, 1_000_000])
@pytest.mark.parametrize("p", [1, 5, 6, 15, 31, 33, 66, 97, 240, 10_000])
def test_the_page_of_defaults_has_the_formulas_of_dropout(p: int, characters: int) -> None:
    page = " ".join((ROOT / "docs" / "defaults.md").read_text(encoding="utf-8").split())
    unchanged = "none up to p = 5; then 0.06 log2(p); from p = 32 on 0.1 log2(p / 4), at most"
    assert f"{unchanged} 0.3 + 0.3 s |" in page
    assert "| 0.18 log2(p / 32), from 0 to 0.48 s |" in page
    s = min(1.0, (100_000 / characters) ** 0.6)
    assert "s is 1 up to 100,000 characters to train on, then (100,000 / characters)^0.6" in page
    assert f"is {0.4**0.6:.2f} for a quarter of a million and {0.1**0.6:.2f} for a million" in page
    assert "0.08 log2(p / 16), from 0 to 0.5" in page
    dropout = 0.06 * log2(p) if p < 32 else min(0.3 + 0.3 * s, 0.1 * log2(p / 4))
    dropout = dropout if p > 5 else 0.0
    dropped = min(0.48 * s, max(0.0, 0.18 * log2(p / 32)))
    for cell in ("lstm", "gru"):
        found = recipe.dropout_and_weight_drop(cell, p, characters)
        assert found == (round(dropout, 2), round(dropped, 2))
    alone = min(0.5, max(0.0, 0.08 * log2(p / 16)))
    assert recipe.dropout_and_weight_drop("rnn", p, characters) == (0.0, round(alone, 2))


@pytest.mark.parametrize(
    ("page", "line"),
    [
        ("docs/cli.md", f"fewer than {FEWEST_BLOCKS * SHORTEST_BLOCK:,} characters are scored"),
        ("README.md", f"(its first {MOST_COMPRESSED:,} characters)"),
        ("docs/cli.md", f"(bzip2: of its first {MOST_COMPRESSED:,} characters)"),
        ("docs/reliability.md", f"if it is 2 to {MOST_FILES:,} files"),
    ],
)
def test_the_pages_have_the_limits_of_the_program(page: str, line: str) -> None:
    assert line in " ".join((ROOT / page).read_text(encoding="utf-8").split())


def test_every_variable_that_is_asked_for_is_documented() -> None:
    code = [path.read_text(encoding="utf-8") for path in (ROOT / "charrnn").rglob("*.py")]
    lines = [line for source in code for line in source.splitlines() if "environ" in line]
    asked = set(re.findall(r'"([A-Z][A-Z_]+)"', "\n".join(lines)))
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    table = page.partition("\n## Environment\n")[2].partition("\n## ")[0]
    # For notebooks, for the compiler, for matplotlib, and what terminals set.
    of_others = {"JPY_PARENT_PID", "MPLBACKEND", "MATPLOTLIBRC", "LC_ALL", "COLUMNS", "LINES"}
    assert "CC" in asked
    assert asked - of_others <= set(re.findall(r"[A-Z][A-Z_]+", table))


def test_the_fields_of_samples_and_prices_are_documented(
    cli: Cli, trained: Path, prose: Path, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    prices = tmp_path / "prices"
    assert cli("evaluate", trained, "--text", prose, "--per-char", prices).code == 0
    priced = json.loads(prices.read_text(encoding="utf-8").splitlines()[0])
    (drawn,) = cli("sample", trained, "--json", "--length", 1).rows
    for start, row in (("`sample`", drawn), ("`evaluate --per-char FILE`", priced)):
        paragraph = page.partition(f"\n\n{start}: one object")[2].partition("\n\n")[0]
        assert row.keys() <= set(re.findall(r"\w+", paragraph)), start


def test_the_readme_s_python_does_what_it_says(
    cli: Cli, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    sampled, likely, scored = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    golden = str(GOLDEN_DATA / "format-1-lstm.safetensors")
    shown = "checkpoints/poems-lstm"
    assert shown in sampled
    letters = write(tmp_path / "letters.txt", make_prose(500))
    assert "letters.txt" in scored
    exec(sampled.replace(shown, golden) + likely + scored.replace("letters.txt", letters), {})
    printed = capsys.readouterr().out
    text, likeliest, figures = printed[:200], *printed[201:].splitlines()
    assert re.fullmatch(r"\[('.+', ){4}'.+'\] tensor\(\[(0\.\d+, ){4}0\.\d+\]\)", likeliest)
    (row,) = json.loads(cli("evaluate", golden, "--text", letters, "--json").out)
    names = ("nats_per_char", "bits_per_char", "perplexity")
    assert [float(figure) for figure in figures.split()] == [row[name] for name in names]
    options = ["--prompt", "The sea", "--length", "200", "--temperature", "0.7"]
    assert cli("sample", golden, *options).out == text


@pytest.mark.slow
def test_the_chances_of_false_verdicts_are_what_their_script_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    (command,) = (block for block in blocks if "charrnn.chance" in block)
    program, option, script = shlex.split(command)
    assert (program, option) == ("python", "-c")
    exec(script, {})
    alike, table, equal, unequal, twice, four_times = (
        round(100 * float(share)) for share in capsys.readouterr().out.split()
    )
    text = " ".join(page.split())
    assert f"a difference in {alike} of 100 comparisons if the cells spread alike" in text
    assert f"and in {table} with the spreads of the example" in text
    assert f"({max(equal, unequal)} in 100 with three seeds)" in text
    assert f"to {twice} in 100 with 3 seeds and then 5, to {four_times} with 3, 5, 7 and 9" in text
