from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


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
