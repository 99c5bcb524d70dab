from __future__ import annotations

import doctest
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from charrnn import recipe
from charrnn.cli import app
from charrnn.config import CellName

ROOT = Path(__file__).parent.parent
LISTED = (
    subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if shutil.which("git")
    else []
)
#: Every page; outside a checkout, those of the usual places.
PAGES = [ROOT / name for name in LISTED] or [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]

COMMANDS = {
    name: {option for parameter in command.params for option in parameter.opts}
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
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
    expected = cli_docs.generate()
    for options in COMMANDS.values():
        assert {option for option in options if option.startswith("--")} <= options_in(page)
    if f"typer {typer.__version__}" in page:  # another one may lay the same out otherwise
        assert page == expected, "run .venv/bin/python scripts/cli-docs"
    else:
        assert options_in(page) == options_in(expected), "run .venv/bin/python scripts/cli-docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_shown_have_the_options_they_show(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    names = "|".join(COMMANDS)
    for name, rest in re.findall(rf"charrnn ({names})\b([^\n`|;#&)]*)", text):
        for option in options_in(rest):
            assert option in COMMANDS[name] | {"--help"}, f"charrnn {name} {option}"


def anchors(page: Path) -> set[str]:
    """Return what GitHub calls a page's headings in addresses."""
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
def test_nobody_is_sent_to_the_package_of_somebody_else(page: Path) -> None:
    """PyPI's ``charrnn`` is not this one."""
    for line in page.read_text(encoding="utf-8").splitlines():
        found = re.search(r"pip install ([^`]*)", line)
        if found:
            assert "charrnn" not in shlex.split(found[1].replace("'", "")), line


@pytest.mark.parametrize("name", ["score_words", "vocabulary", "wording"])
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"charrnn.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_the_page_of_defaults_has_the_rules_numbers() -> None:
    page = " ".join((ROOT / "docs" / "defaults.md").read_text(encoding="utf-8").split())

    def chosen(cell: CellName, device: str = "cpu", **options: Any) -> tuple[Any, Any]:
        choices = recipe.Choices(cell=cell, **options)
        return recipe.choose(choices, vocabulary=65, characters=10**6, device=device)

    few: dict[str, Any] = {"budget": {"steps": 10}}
    (lstm, lstm_trained), (rnn, rnn_trained) = chosen("lstm", **few), chosen("rnn", **few)
    gru, _ = chosen("gru", **few)
    (on_gpu, trained_on_gpu), (rnn_on_gpu, _) = (chosen(c, "cuda", **few) for c in ("lstm", "rnn"))
    assert lstm.hidden == gru.hidden
    masks, masks_on_gpu = lstm_trained.dropout_masks, trained_on_gpu.dropout_masks
    assert replace(trained_on_gpu, dropout_masks=masks) == lstm_trained
    assert recipe.GPU_UNITS["lstm"] == recipe.GPU_UNITS["gru"]
    wider = [f"{least / 1e6:g}" for least in recipe.WIDER_FROM["lstm"]]
    assert recipe.WIDER_FROM["lstm"][1:] == recipe.WIDER_FROM["gru"][1:]
    for line in (
        f"| `--minutes` | {recipe.DEFAULT_MINUTES:g} |",
        f"| `--layers` | {lstm.layers} | {on_gpu.layers} |",
        f"LSTM and GRU {lstm.hidden}, RNN {rnn.hidden};",
        f"for each of {', '.join(wider[:-1])} and {wider[-1]} million characters that the run is "
        f"expected to read, {recipe.GUESSED_SPEED['cpu']:,} / "
        f"(1 + symbols / {recipe.HALVED_BY['cpu']:,}) a second",
        f"(GRU: {recipe.WIDER_FROM['gru'][0] / 1e6:g} instead of {wider[0]}; "
        f"RNN: {128 * len(recipe.WIDER_FROM['rnn'])} from "
        f"{recipe.WIDER_FROM['rnn'][0] / 1e6:g} on)",
        f"{recipe.MOST_WEIGHTS['cpu']:g} weights for a character",
        f"LSTM and GRU {on_gpu.hidden}, {recipe.GPU_UNITS['lstm'][1]} from "
        f"{recipe.GPU_WIDER_FROM / 1e6:g} million characters on, "
        f"{recipe.GUESSED_SPEED['cuda']:,} / (1 + symbols / {recipe.HALVED_BY['cuda']:,}) a "
        f"second; RNN {rnn_on_gpu.hidden}; of these at most what gives it "
        f"{recipe.MOST_WEIGHTS['cuda']:g} |",
        f"LSTM and GRU {lstm_trained.batch_size} x {lstm_trained.bptt}, "
        f"RNN {rnn_trained.batch_size} x {rnn_trained.bptt};",
        f"Muon {lstm_trained.lr} (RNN {rnn_trained.lr}), AdamW {lstm_trained.lr_adam};",
        f"from {recipe.RARE_SYMBOLS} symbols on AdamW three times that",
        f"(p below from {recipe.BY_HEART} on)",
        f"`--optimiser adamw` {recipe.ONE_RATE['adamw']['lr']}, "
        f"`sgd` {recipe.ONE_RATE['sgd']['lr']:g} |",
        f"| `--weight-decay` | {lstm_trained.weight_decay} (sgd: 0)",
        f"from {recipe.MANY_SYMBOLS['lstm']} symbols on (RNN: {recipe.MANY_SYMBOLS['rnn']:,})",
        f"none up to p = {recipe.LEAST_PRESSURE}, then",
        f"| `--dropout-masks` | {masks}; 1 where",
        f"and p, above, is below {recipe.BY_HEART} | {masks_on_gpu}, and fewer",
        f"a cosine down to {100 * recipe.Schedule.FLOOR:g} % |",
    ):
        assert line in page, line


def test_the_readme_s_python_does_what_it_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    golden = ROOT / "tests" / "data" / "format-1-lstm.safetensors"
    shown = "checkpoints/poems-lstm"
    assert shown in program
    done = subprocess.run(
        [sys.executable, "-c", program.replace(shown, str(golden))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(r"\[('.+', ){4}'.+'\] tensor\(\[(0\.\d+, ){4}0\.\d+\]\)\n", done.stdout)
