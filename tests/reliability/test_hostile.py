"""R7: a hostile file runs nothing, and takes no more memory than its size warrants."""

from __future__ import annotations

import ast
import builtins
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import resource
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import charrnn
from charrnn.errors import CheckpointError
from charrnn.storage.checkpoint import Checkpoint, find, load, read_description, save
from charrnn.storage.runfolder import RunFolder
from tests.reliability.conftest import Promise
from tests.reliability.processes import finish, fork
from tests.reliability.test_damage import is_one_plain_line, parts, signed


class Bomb:
    """An object that makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def pickles(marker: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (what it is, bytes) for files that run code when they are unpickled."""
    bomb = Bomb(marker)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield f"pickle protocol {protocol}", pickle.dumps(bomb, protocol)
        yield f"pickled state {protocol}", pickle.dumps({"model": bomb, "step": 3}, protocol)
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save({"model": bomb}, file, _use_new_zipfile_serialization=zipped)
        yield f"torch.save, zip {zipped}", file.getvalue()
    objects = np.array([bomb], dtype=object)
    file = io.BytesIO()
    np.save(file, objects, allow_pickle=True)
    yield "npy", file.getvalue()
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, objects=objects)
    yield "npz", file.getvalue()
    code = f"import os; os.mkdir({str(marker)!r})\n"
    yield "Python source", code.encode()
    yield "shell script", f"#!/bin/sh\nmkdir {marker}\n".encode()
    for compress in (gzip.compress, bz2.compress, lzma.compress):
        yield compress.__module__, compress(pickle.dumps(bomb))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        entry = tarfile.TarInfo("../../data.pkl")
        content = pickle.dumps(bomb)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    yield "tar", file.getvalue()


@cache
def zip_bombs() -> list[tuple[str, bytes]]:
    """Return archives that are a thousand times larger once unpacked."""
    zeros = bytes(64 * 2**20)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("archive/data.pkl", "archive/data/0", "archive/version"):
            archive.writestr(name, zeros)
    return [("zip bomb", file.getvalue()), ("gzip bomb", gzip.compress(zeros))]


def refused_everywhere(path: Path) -> bool:
    """Return whether every way to read a checkpoint refuses a file in one plain line."""
    messages = []
    for read in (load, read_description):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        messages.append(str(caught.value))
    return all(is_one_plain_line(message.replace(str(path), "run/a.pt")) for message in messages)


def test_files_that_run_code_elsewhere(tmp_path: Path, promise: Promise) -> None:
    marker = tmp_path / "it ran"
    hostile = [*pickles(marker), *zip_bombs()]
    count = 0
    for _, content in hostile:
        for name in ("last.safetensors", "best.pt", "checkpoint"):
            (tmp_path / name).write_bytes(content)
            count += refused_everywhere(tmp_path / name)
    total = 3 * len(hostile)
    promise("R7", "pickles, archives, bombs, scripts under 3 names", f"{count} of {total} refused")
    assert count == total
    assert not marker.exists()

    # Unpickling does make the marker, so nothing was unpickled above.
    pickle.loads(hostile[0][1])
    assert marker.exists()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("torch.save, zip True", "a PyTorch pickle"),
        ("torch.save, zip False", "a PyTorch pickle"),
        ("pickle protocol 2", "a Python pickle"),
        ("pickle protocol 5", "a Python pickle"),
        ("zip bomb", "a PyTorch pickle"),
        ("npz", "a zip archive"),
        ("npy", "a NumPy array"),
        ("gzip", "compressed by gzip"),
        ("bz2", "compressed by bzip2"),
        ("lzma", "compressed by xz"),
        ("tar", "a tar archive"),
        ("Python source", "a text, not a checkpoint"),
    ],
)
def test_the_line_says_what_the_file_is(tmp_path: Path, what: str, said: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(dict([*pickles(tmp_path / "x"), *zip_bombs()])[what])
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {said}")
    is_text = "a text" in said
    assert ("charrnn reads only its own safetensors checkpoints" in str(caught.value)) != is_text


def test_a_hostile_last_checkpoint_is_passed_over(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        for step in (1, 2):
            folder.save_last(Checkpoint({}, {"step": step}))
    marker = tmp_path / "it ran"
    (tmp_path / "run" / "last.safetensors").write_bytes(pickle.dumps(Bomb(marker)))
    with RunFolder.open_existing(tmp_path / "run") as folder:
        checkpoint, notes = folder.load_last()
    assert checkpoint.meta["step"] == 1
    assert len(notes) == 1 and "pickle" in notes[0]
    assert not marker.exists()


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "best.safetensors")
    assert refused_everywhere(find(tmp_path))


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", "/dev/null", "/"])
def test_a_device_or_folder_is_refused(path: str) -> None:
    assert refused_everywhere(Path(path))


def test_bytes_that_no_bool_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, Checkpoint({"model.mask": torch.tensor([True, False, True])}, {}))
    header, data = parts(path)
    path.write_bytes(signed(header, b"\1\0\2"))
    assert data == b"\1\0\1"
    with pytest.raises(CheckpointError, match=r"'model\.mask' is BOOL with a byte other than"):
        load(path)


# Memory --------------------------------------------------------------------------


def peak_of_load(path: Path) -> int:
    """Return the peak bytes that a refused load takes, in a process of its own."""
    reader, writer = os.pipe()

    def work() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = status("VmRSS")
        assert refused_everywhere(path)
        os.write(writer, str(max(0, status("VmHWM") - before)).encode())

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    pid = fork(work)
    os.close(writer)
    answer = os.read(reader, 100)
    os.close(reader)
    assert finish(pid) == 0
    return int(answer)


def greedy(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield files whose numbers or nesting ask for far more memory than the files' size."""
    save(path, Checkpoint({"model.weight": torch.zeros(3)}, {}))
    header, data = parts(path)
    metadata = json.loads(header)["__metadata__"]
    huge = {"dtype": "F64", "shape": [2**57], "data_offsets": [0, 2**60]}
    text = json.dumps({"__metadata__": metadata, "model.weight": huge}).encode()
    yield "a tensor of 2^60 bytes", signed(text, data)
    many = {
        f"t{i}": {"dtype": "F64", "shape": [2**40, 0], "data_offsets": [0, 0]} for i in range(999)
    }
    text = json.dumps({"__metadata__": metadata, **many}).encode()
    yield "999 tensors of no bytes", signed(text, data)
    for size in (2**40, 2**63, 2**64 - 1):
        yield f"a header of {size} bytes", size.to_bytes(8, "little") + header + data
    for opening, fill, closing in (
        (b'{"a":[', b"[],", b"[]]}"),
        (b'{"a":', b'{"a":', b"1" + b"}" * 9),
    ):
        text = opening + fill * (7 * 2**20 // len(fill)) + closing
        yield "a header of 7 MiB", len(text).to_bytes(8, "little") + text
    inner = "[" * 100_000
    text = json.dumps({"__metadata__": {"charrnn": inner}}).encode()
    yield "100,000 brackets in the metadata", len(text).to_bytes(8, "little") + text
    text = b'{"a":' + b"9" * 2**20 + b"}"
    yield "an integer of a million digits", len(text).to_bytes(8, "little") + text
    yield from zip_bombs()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_memory_is_bounded_by_the_size_of_the_file(tmp_path: Path, promise: Promise) -> None:
    path = tmp_path / "a.safetensors"
    worst = (0.0, "")
    for what, content in greedy(path):
        path.write_bytes(content)
        peak = peak_of_load(path)
        worst = max(worst, (peak / (len(content) + 2**20), what))
    figure = f"{worst[0]:.0f} times"
    promise("R7", "memory at most, of 1 MiB and the size of a hostile file", figure)
    assert worst[0] < 30, worst


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds its address space")
def test_a_whole_checkpoint_larger_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, Checkpoint({"model.weight": torch.zeros(3)}, {}))
    header, _ = parts(path)
    size = 2**43
    text = header.replace(
        b'"shape":[3],"data_offsets":[0,12]',
        b'"shape":[%d],"data_offsets":[0,%d]' % (size // 4, size),
    )
    assert text != header
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    try:
        os.truncate(path, 8 + len(text) + size)
    except OSError:
        pytest.skip("the file system has no files of 8 TiB")

    def work() -> None:
        # Some systems grant any allocation, and kill the process that uses it.
        resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))
        with pytest.raises(CheckpointError, match="not enough memory to load it"):
            load(path)
        assert read_description(path).meta == {}

    assert finish(fork(work)) == 0


# The source ----------------------------------------------------------------------


def test_the_package_has_nothing_that_executes_data(promise: Promise) -> None:
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
    attributes = {("torch", "load"), ("torch", "save"), ("numpy", "load"), ("np", "load")}
    executing = {"eval", "exec", "compile", "__import__"} & set(dir(builtins))
    sources = sorted(Path(charrnn.__file__).parent.rglob("*.py"))
    found = []
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names):
                    bad = any(alias.name.split(".")[0] in modules for alias in names)
                case ast.ImportFrom(module=str(module), names=names):
                    bad = module.split(".")[0] in modules or any(
                        (module, alias.name) in attributes for alias in names
                    )
                case ast.Attribute(value=ast.Name(id=base), attr=attribute):
                    bad = (base, attribute) in attributes
                case ast.Name(id=name):
                    bad = name in executing
                case _:
                    bad = False
            if bad:
                found.append(f"{source.name}:{getattr(node, 'lineno', 0)}")
    what = "pickle, torch.load, eval( or exec( in the package's source"
    promise("R7", what, f"{len(found)} in {len(sources)} files")
    assert not found
