"""The architecture described in docs/architecture.md, checked against the source."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from itertools import groupby
from typing import get_args

import pytest

from charrnn import config
from tests.conftest import GOLDEN_DATA, ROOT, run_code

PACKAGE = ROOT / "charrnn"

#: The modules by their names below ``charrnn``, as ``text.corpus``.
SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem != "__init__"
}
MODULES = [name for name in SOURCES if not name.startswith("__")]
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def rooms(page: str) -> list[str]:
    """Return the modules in the order of the page's tables, below headings that name a folder."""
    found, folder = [], ""
    for heading, module in re.findall(r"^### `([\w./]+)`|^\| `(\w+)\.py` \|", page, re.M):
        if module:
            found.append(f"{folder}{module}")
        else:
            folder = "" if heading.startswith("charrnn/") else heading.replace("/", ".")
    return found


#: Data flows from top to bottom.
ROOMS = rooms((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def inside(*folders: str) -> set[str]:
    return {name for name in ROOMS if name.partition(".")[0] in folders}


#: The modules that know of the command line and the process.
EDGE = inside("commands", "cli") - {"commands.stopping"}

#: The modules that may write to a terminal; ``stopping`` shows its cursor again.
PRINTING = inside("commands", "cli") | {
    "views.display",
    "views.terminal",
    "views.score_view",
    "views.sample_view",
    "views.inspection_view",
}

#: Third-party package -> the modules that may import it.
OUTSIDE = {
    "numpy": set(ROOMS),
    "torch": set(ROOMS),
    "rich": inside("views", "commands", "cli"),
    "matplotlib": {"views.figures"},
    "typer": EDGE,
}


def is_package(name: str) -> bool:
    return (ROOT / name.replace(".", "/") / "__init__.py").is_file()


def imports(name: str) -> set[str]:
    """Return the full names of the modules that a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            if is_package(node.module):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found - {"charrnn.__version__"}


def ours(name: str) -> set[str]:
    prefix = "charrnn."
    return {other.removeprefix(prefix) for other in imports(name) if other.startswith(prefix)}


def names_used(name: str) -> set[str]:
    """Return what a module mentions: bare names, and attributes as ``owner.attribute``."""
    used: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Name):
            used.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.add(f"{node.value.id}.{node.attr}")
    return used


#: Tables with an entry for each name of a kind: module, table, kind.
TABLES = [
    (module, node.target.id, kind)
    for module, tree in TREES.items()
    for node in tree.body
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    for kind in re.findall(r"^dict\[(\w+Name),", ast.unparse(node.annotation))
]


@pytest.mark.parametrize(("module", "table", "kind"), TABLES)
def test_a_table_by_name_has_every_name(module: str, table: str, kind: str) -> None:
    """A type checker does not see a name that is missing, and a run might only in its middle."""
    entries = getattr(importlib.import_module(f"charrnn.{module}"), table)
    assert tuple(entries) == get_args(getattr(config, kind))


def test_contributing_names_the_tables_and_files_of_what_it_says_to_add() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", page))
    assert {table for _, table, _ in TABLES} <= named
    for path in re.findall(r"`((?:charrnn|tests)/[\w/.]+)`", page):
        assert (ROOT / path).exists(), path


def test_every_module_is_in_the_table_and_every_row_is_a_module() -> None:
    assert sorted(ROOMS) == sorted(MODULES), "give it a row in docs/architecture.md"


def test_a_folder_is_a_layer() -> None:
    """It is in one place of the page, so its modules import from no later folder."""
    places = [folder for folder, _ in groupby(name.rpartition(".")[0] for name in ROOMS)]
    assert len(places) == len(set(places)) + 1, "only what is in no folder is in two places"
    assert (places[0], places[-1]) == ("", "")


@pytest.mark.parametrize(
    "folder", sorted({name.partition(".")[0] for name in MODULES if "." in name})
)
def test_a_folder_loads_nothing(folder: str) -> None:
    """Else help, and a module that needs no torch, would wait for its neighbours."""
    (only,) = ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8")).body
    assert isinstance(only, ast.Expr), "its docstring"


@pytest.mark.parametrize("name", MODULES)
def test_data_goes_one_way(name: str) -> None:
    """Every import points upwards in the table, so there are no cycles."""
    below = {other for other in ours(name) if ROOMS.index(other) >= ROOMS.index(name)}
    assert not below


@pytest.mark.parametrize("name", MODULES)
def test_imports_from_outside_are_few(name: str) -> None:
    roots = {module.partition(".")[0] for module in imports(name)}
    outside = roots - set(sys.stdlib_module_names) - {"charrnn", "__future__"}
    for package in outside:
        assert name in OUTSIDE[package], package
    assert name == "compute.compiler" or "subprocess" not in roots


@pytest.mark.parametrize("name", MODULES)
def test_only_the_edge_prints_and_reads_the_world(name: str) -> None:
    used = names_used(name)
    if name not in PRINTING:
        assert not used & {"print", "input", "sys.stdout", "sys.stderr", "sys.stdin"}
    if name not in EDGE:
        assert not used & {"sys.argv", "sys.exit", "os.getenv", "exit", "quit"}
        assert name in {"compute.compiler", "views.terminal"} or "os.environ" not in used
        assert not ours(name) & {"cli", "commands.outcome", "commands.stopping"}
        assert not imports(name) & {"argparse"}
    if name not in EDGE | {"commands.stopping"}:
        # The compiler is stopped by a signal.
        assert name == "compute.compiler" or "signal" not in imports(name)
        assert "os._exit" not in used


@pytest.mark.parametrize("name", MODULES)
def test_float64_is_asked_of_the_host(name: str) -> None:
    """Apple's GPUs have no float64, and there is none here to test on."""
    asked = [
        node.lineno
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Attribute)
        and node.attr in {"double", "float64"}
        and not ast.unparse(node.value).endswith((".cpu()", "np"))
    ]
    # Allowed so many times: on the host, after checking the device, or as the name of a type.
    right = {
        "compute.kernels": 2,
        "compute.passes": 1,
        "inference.evaluation": 1,
        "storage.checkpoint": 1,
    }
    assert len(asked) == right.get(name, 0), asked


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(TREES[name])


@pytest.mark.parametrize("name", MODULES)
def test_a_module_keeps_what_begins_with_an_underscore(name: str) -> None:
    taken: set[str] = set()
    whole: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "charrnn":
            names = {alias.asname or alias.name: alias.name for alias in node.names}
            taken |= {*names.values()}
            whole |= names.keys() if is_package(str(node.module)) else set()
    owners = (used.rpartition(".") for used in names_used(name))
    taken |= {attribute for owner, _, attribute in owners if owner in whole}
    assert not {one for one in taken - {"__version__"} if one.startswith("_")}


def loaded_by(*commands: list[str]) -> tuple[list[int], set[str]]:
    """Run commands in one process; return their exit codes and the modules loaded at the end."""
    program = (
        "import json, sys; from charrnn.cli import run_command; "
        "codes = [run_command(words) for words in json.loads(sys.argv[1])]; "
        "sys.stderr.write(json.dumps([codes, sorted(sys.modules)]))"
    )
    done = run_code(program, json.dumps(commands))
    assert done.code == 0, done.err
    codes, modules = json.loads(done.err.splitlines()[-1])
    return codes, set(modules)


def test_help_and_wrong_options_do_not_wait_for_torch() -> None:
    helps = ("", "--help", "--version", "train --help", "sample --help", "evaluate --help")
    wrong = (
        "train text --lr nan", "sample run --top-p 2", "train text --bogus",
        "compare text --cell elman", "compare text --seeds 0", "compare text --lr nan",
    )  # fmt: skip
    codes, modules = loaded_by(*(words.split() for words in helps + wrong))
    assert codes == [0] * len(helps) + [2] * len(wrong)
    assert not {"torch", "numpy", "rich.live"} & modules


def test_reading_a_checkpoint_does_not_wait_for_the_compiler_of_torch() -> None:
    """Importing it takes four times as long as all else from torch to the first character."""
    checkpoint = GOLDEN_DATA / "format-1-lstm.safetensors"
    codes, modules = loaded_by(["sample", str(checkpoint), "--length", "3"])
    assert codes == [0]
    assert "torch" in modules
    assert "torch._dynamo" not in modules
