from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = ROOT / "scripts"


@pytest.mark.parametrize("name", ["demo", "lesson", "test"])
def test_a_script_finds_its_own_project(tmp_path: Path, name: str) -> None:
    """A ``CDPATH`` in the environment sends a plain ``cd`` elsewhere, and makes it print."""
    elsewhere, project = tmp_path / "else where", tmp_path / "a project"
    for folder in (elsewhere, project):
        (folder / "scripts").mkdir(parents=True)
    script = shutil.copy(SCRIPTS / name, project / "scripts")
    venv = project / "scripts" / "venv"
    venv.write_text("#!/bin/sh\nexit 77\n", encoding="utf-8")
    venv.chmod(0o755)
    done = subprocess.run(
        [Path(script).relative_to(project)],
        cwd=project,
        env=os.environ | {"CDPATH": f"{elsewhere}:."},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 77, done.stderr


def test_the_demo_samples_the_run_that_it_trains(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    script = shutil.copy(SCRIPTS / "demo", tmp_path / "scripts")
    for path, does in (
        ("scripts/venv", "exit 0"),
        (".venv/bin/charrnn", 'printf "%s\\n" "$@" >>told\n[ "$1" != train ] || echo "a run"'),
    ):
        (tmp_path / path).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (tmp_path / path).chmod(0o755)
    subprocess.run([script, "1"], capture_output=True, check=True)
    told = (tmp_path / "told").read_text(encoding="utf-8").splitlines()
    assert told[:5] == ["train", "--minutes", "1", "sample", "a run"]


#: A fake Python: it makes environments with a copy of itself, and records pip's commands.
PYTHON = """#!/bin/sh
case "$*" in
*print*) cat "$HERE/version" ;;
-c*) exit 0 ;;
"-m pip --version") [ "$(cat "$HERE/version")" = "$(cat "$HERE/made")" ] ;;
"-m venv --clear .venv")
    mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$HERE/version" "$HERE/made"
    exit "$(cat "$HERE/fails")"
    ;;
"-m pip"*) echo "$*" >>"$HERE/installed" ;;
esac
"""


class TestVenv:
    """``scripts/venv`` with a fake Python."""

    here: Path
    project: Path

    @pytest.fixture(autouse=True)
    def folders(self, tmp_path: Path) -> None:
        self.here = tmp_path
        self.project = tmp_path / "a project"
        for folder in (tmp_path / "bin", self.project / "scripts"):
            folder.mkdir(parents=True)
        shutil.copy(SCRIPTS / "venv", self.project / "scripts")
        (self.project / "pyproject.toml").write_text("[project]")
        python = tmp_path / "bin" / "python3"
        python.write_text(PYTHON)
        python.chmod(0o755)
        self.say(version="3.12", fails="0")

    def say(self, **files: str) -> None:
        for name, text in files.items():
            (self.here / name).write_text(text)

    def run(self, extras: str = "dev") -> int:
        """Run the script and return its exit code; ``installs`` returns what it asked of pip."""
        path = f"{self.here / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [self.project / "scripts" / "venv", extras],
            env=os.environ | {"PATH": path, "HERE": str(self.here)},
            check=False,
        ).returncode

    def installs(self) -> list[str]:
        noted = self.here / "installed"
        return noted.read_text().splitlines() if noted.exists() else []

    def test_installs_once_for_a_pyproject(self) -> None:
        assert (self.run(), self.run()) == (0, 0)
        (line,) = self.installs()
        assert line.endswith("--editable .[dev]")
        (self.project / "pyproject.toml").write_text("[project] # another")
        assert (self.run(), len(self.installs())) == (0, 2)
        assert (self.run(), len(self.installs())) == (0, 2)
        assert (self.run(""), self.installs()[2][-12:]) == (0, "--editable .")

    def test_finds_a_newer_python_than_the_system_s(self) -> None:
        """By its versioned name, also that of a version yet to come."""
        (self.here / "bin" / "python3").rename(self.here / "bin" / "python3.29")
        (self.here / "bin" / "python3").symlink_to(shutil.which("false") or "")
        assert (self.run(), len(self.installs())) == (0, 1)

    def test_tells_that_python_has_become_another(self) -> None:
        """The new version looks for packages, and so for pip, elsewhere."""
        assert self.run() == 0
        self.say(version="3.13")
        assert (self.run(), len(self.installs())) == (1, 1)
        shutil.rmtree(self.project / ".venv")
        assert (self.run(), len(self.installs())) == (0, 2)

    def test_leaves_nothing_half_made(self) -> None:
        """Without python3-venv, Debian's Python fails like this after it has made bin/python."""
        self.say(fails="1")
        assert self.run() == 1
        assert not (self.project / ".venv").exists()
        self.say(fails="0")
        assert (self.run(), len(self.installs())) == (0, 1)
