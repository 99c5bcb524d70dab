"""What is in the source distribution and in the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD = "from setuptools import build_meta as made; made.build_sdist('.'); made.build_wheel('.')"


def tracked() -> list[str]:
    """Return the names of the project's files; none outside a git checkout of its own."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        return []
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()]


def test_the_source_is_the_whole_project_and_the_wheel_the_whole_package(tmp_path: Path) -> None:
    """And neither has what runs and tools leave behind."""
    pytest.importorskip("setuptools", "77")
    if not (names := tracked()):
        pytest.skip("no git checkout")
    left = ["tests/__pycache__/a.pyc", "checkpoints/a/best.safetensors", "corpora/a.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run([sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, check=True)
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        files = {m.name.partition("/")[2]: m.mode for m in archive.getmembers() if m.isfile()}
    generated = {"PKG-INFO", "setup.cfg"}
    assert {name for name in files if ".egg-info/" not in name} - generated == {*names}
    assert files["scripts/venv"] & 0o111, "it can be run"
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive_of_wheel:
        packed = {n for n in archive_of_wheel.namelist() if ".dist-info/" not in n}
    assert packed == {name for name in names if name.startswith("charrnn/")}
