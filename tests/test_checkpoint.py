"""The checkpoint file: what goes in comes out, other readers open it, errors are one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from charrnn import __version__
from charrnn.config import CellName
from charrnn.errors import CheckpointError, RunFolderError
from charrnn.storage import checkpoint
from charrnn.storage.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    NoCheckpointError,
    find,
    load,
    read_description,
    save,
)
from charrnn.storage.trained import load_model
from tests.conftest import GOLDEN_DATA, ROOT, refusing
from tests.small import make_state

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)

shapes = st.lists(st.integers(0, 4), max_size=4)
names = st.from_regex(r"(model|hidden|optimiser)\.[a-z_.0-9-]{1,20}", fullmatch=True)
meta_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    # Two lone surrogates in a row would come back as the character that they encode together.
    | st.text(st.characters(exclude_categories=["Cs"]) | st.just("\udc80")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)  # fmt: skip


def same(left: Checkpoint, right: Checkpoint) -> bool:
    """Return whether two checkpoints are the same, to the last bit of every tensor."""
    return (
        left.meta == right.meta
        and left.versions == right.versions
        and left.tensors.keys() == right.tensors.keys()
        and all(
            tensor.dtype == right.tensors[name].dtype
            and tensor.shape == right.tensors[name].shape
            and tensor.numpy(force=True).tobytes()
            == right.tensors[name].numpy(force=True).tobytes()
            if tensor.dtype != torch.bfloat16
            else torch.equal(tensor.view(torch.int16), right.tensors[name].view(torch.int16))
            for name, tensor in left.tensors.items()
        )
    )


def a_tensor(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, [*shape], generator=generator)
    return (bits * 3 - 1).to(dtype) if dtype != torch.bool else bits.bool()


@settings(max_examples=100)
@given(
    st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes), max_size=5),
    st.dictionaries(st.text(max_size=9), meta_values, max_size=4),
)
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory,
    entries: dict[str, tuple[torch.dtype, list[int]]],
    meta: dict[str, Any],
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.safetensors"
    tensors = {
        name: a_tensor(dtype, shape, seed)
        for seed, (name, (dtype, shape)) in enumerate(entries.items())
    }
    written = Checkpoint(tensors, meta)
    save(path, written)
    read = load(path)
    assert same(read, written)
    assert read.path == path
    assert read_description(path).meta == meta
    content = path.read_bytes()
    save(path, read)
    assert path.read_bytes() == content


def test_every_bit_of_a_float_survives(tmp_path: Path) -> None:
    """NaN payloads, minus zero and denormals are bits like any other."""
    bits = torch.tensor([0x7FC01234, -0x80000000, 1, -1, 0x7F800000], dtype=torch.int32)
    save(tmp_path / "a", Checkpoint({"model.odd": bits.view(torch.float32)}, {}))
    assert torch.equal(load(tmp_path / "a").tensors["model.odd"].view(torch.int32), bits)


def test_views_and_parameters_are_stored_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    weight = torch.nn.Parameter(base.clone())
    tensors = {"model.t": base.t(), "model.part": base[1:3, ::2], "model.weight": weight}
    save(tmp_path / "a", Checkpoint(tensors, {}))
    read = load(tmp_path / "a").tensors
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert not any(tensor.requires_grad for tensor in read.values())
    assert all(tensor.is_contiguous() for tensor in read.values())


def test_safetensors_reads_our_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        f"model.{dtype}".replace("torch.", ""): a_tensor(dtype, [3, 2], 1) for dtype in DTYPES
    }
    tensors["model.scalar"] = torch.tensor(2.5)
    tensors["model.empty"] = torch.zeros(0, 3)
    save(path, Checkpoint(tensors, {"vocabulary": '\n "\\\u4e2d'}))
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["charrnn"]
    info = json.loads(metadata["charrnn"])
    assert info["meta"] == {"vocabulary": '\n "\\\u4e2d'}
    assert info["format"] == checkpoint.FORMAT == 1
    assert info["charrnn"] == __version__
    assert info["torch"] == torch.__version__


def test_the_documentation_s_torch_nn_predicts_what_the_model_does(cell: CellName) -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in page.split("```python\n")[1:]:
        exec(block.split("```")[0], names)
    path = GOLDEN_DATA / f"format-1-{cell}.safetensors"
    model, vocabulary, _ = load_model(path, torch.device("cpu"))
    assert all(layer.bias.abs().min() > 0 for layer in model.layers())
    ids_TB = torch.randint(vocabulary.size, (9, 3), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected_TBV, _ = model(ids_TB)
        embedding, recurrence, head = names["in_torch"](path)
        out_TBH, state = recurrence(embedding(ids_TB[:5]))
        rest_TBH, _ = recurrence(embedding(ids_TB[5:]), state)
        logits_TBV = head(torch.cat([out_TBH, rest_TBH]))
    torch.testing.assert_close(logits_TBV, expected_TBV)


def test_the_reader_in_the_documentation_reads_our_files(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    path = tmp_path / "a.safetensors"
    tensors = {
        "model.head.bias": torch.tensor([0.5, -1.0]),
        "generator.cpu": torch.tensor([7, 8, 9], dtype=torch.uint8),
    }
    meta = {"step": 3, "vocabulary": "a\u00e9\n"}
    save(path, Checkpoint(tensors, meta, {"charrnn": "0.1.0", "torch": "2.13.0+cpu"}))
    assert names["read"](path) == (
        {
            "model.head.bias": ("F32", [2], bytes.fromhex("0000003f 000080bf")),
            "generator.cpu": ("U8", [3], b"\7\x08\x09"),
        },
        meta,
    )
    # The page shows this very file.
    content = path.read_bytes()
    assert len(content) == 371
    shown = "".join(line.removeprefix("    ") for line in page.splitlines() if line[:4] == "    ")
    header = content[8 : 8 + int.from_bytes(content[:8], "little")].decode()
    assert header.rstrip() in shown
    path.write_bytes(content[:-1] + b"\x0a")
    with pytest.raises(ValueError, match="is damaged"):
        names["read"](path)
    # Things in the metadata that look like the checksum must not be taken for it.
    meta = {"sha256": "0" * 64, "inner": {"sha256": "0" * 64}, "text": '\\"sha256\\":\\"'}
    save(path, Checkpoint(tensors, meta))
    assert names["read"](path)[1] == load(path).meta == meta


def test_tensors_start_at_multiples_of_their_width(tmp_path: Path) -> None:
    tensors = {f"model.{k}": a_tensor(dtype, [3], k) for k, dtype in enumerate(reversed(DTYPES))}
    save(tmp_path / "a", Checkpoint(tensors, {}))
    content = (tmp_path / "a").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert (8 + length) % 8 == 0
    header = json.loads(content[8 : 8 + length])
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0


def test_a_load_is_of_its_own_memory(tmp_path: Path) -> None:
    save(tmp_path / "a", Checkpoint({"model.weight": torch.zeros(5), "model.b": torch.ones(3)}, {}))
    first = load(tmp_path / "a")
    first.tensors["model.weight"].fill_(7)
    assert torch.equal(first.tensors["model.b"], torch.ones(3))
    assert torch.equal(load(tmp_path / "a").tensors["model.weight"], torch.zeros(5))


# What a caller may not store -----------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "meta", "match"),
    [
        ({"": torch.zeros(1)}, {}, "cannot be a tensor's name"),
        ({'a"b': torch.zeros(1)}, {}, "cannot be a tensor's name"),
        ({"__metadata__ ": torch.zeros(1)}, {}, "cannot be a tensor's name"),
        ({"model.z": torch.zeros(1, dtype=torch.complex64)}, {}, r"'model\.z' cannot be stored"),
        ({"model.z": torch.zeros([1] * 9)}, {}, r"'model\.z' cannot be stored"),
        ({}, {"loss": float("nan")}, "not JSON compliant"),
        ({}, {"vocabulary": "x" * 9_000_000}, "the header takes"),
    ],
)
def test_what_has_no_place_in_the_format(
    tmp_path: Path, tensors: dict[str, torch.Tensor], meta: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        save(tmp_path / "a", Checkpoint(tensors, meta))
    assert list(tmp_path.iterdir()) == []


# Fields ---------------------------------------------------------------------------


def test_require_returns_the_field() -> None:
    state = Checkpoint({}, {"step": 3, "model": {"layers": 2}, "done": True})
    assert state.require("step", int) == 3
    assert state.require("model", dict) == {"layers": 2}
    assert state.require("done", bool) is True


@pytest.mark.parametrize(
    ("field", "kind", "match"),
    [
        ("position", int, r"^a\.safetensors: the checkpoint lacks the field 'position'$"),
        ("done", int, r"field 'done' must be of type int, not bool$"),
        ("step", str, r"field 'step' must be of type str, not int$"),
        ("text", int, r"field 'text' must be of type int, not str$"),
    ],
)
def test_require_names_file_and_field(field: str, kind: type, match: str) -> None:
    meta = {"done": True, "step": 3, "text": "tale"}
    with pytest.raises(CheckpointError, match=match):
        Checkpoint({}, meta, path=Path("a.safetensors")).require(field, kind)


# One line for each mistake ----------------------------------------------------------


def message(path: Path) -> str:
    """Return the error message of ``load`` for a file, without the path it starts with."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    return text.removeprefix(f"{path}: ")


ADVICE = "; take another copy"


def plain(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def inside(**fields: object) -> bytes:
    """Return the contents of a checkpoint file with these fields of its metadata replaced."""
    info = {"charrnn": "1", "format": 1, "meta": {}, "sha256": "a" * 64, "torch": "2"}
    info = {key: value for key, value in {**info, **fields}.items() if value != "absent"}
    return plain({"__metadata__": {"charrnn": json.dumps(info)}})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"a\x02c", "not a checkpoint, or its beginning is damaged"),
        (b"\x01" * 40, "not a checkpoint, or its beginning is damaged"),
        (b"abc", "a text, not a checkpoint: train on it, and name the run's folder"),
        (
            "Können\n".encode("latin-1"),
            "a text, not a checkpoint: train on it, and name the run's folder",
        ),
        (
            (900).to_bytes(8, "little") + b'{"a":1}',
            "damaged: a header of 900 bytes in a file of 15 bytes is impossible",
        ),
        (
            (14).to_bytes(8, "little") + b'{"a":1,"b":2}',
            "damaged: a header of 14 bytes in a file of 21 bytes is impossible",
        ),
        (plain(b"{nothing}"), "damaged: its header is not JSON"),
        (plain(b'{"a":"\xff"}'), "damaged: its header is not JSON"),
        (plain(b'{"a":NaN,"b":1}'), "damaged: its header holds NaN, which is not JSON"),
        (plain(b'{"a":-Infinity}'), "damaged: its header holds -Infinity, which is not JSON"),
        (plain(b'{"a":1,"a":1}'), "damaged: its header has the same key twice"),
        (plain(b'{"a":' + b"[" * 99_999), "damaged: its header is nested too deeply"),
        (plain(b'{"a":' + b"1" * 9_999 + b"}"), "damaged: its header is not JSON"),
        (
            plain({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"\0"),
            "a safetensors file, but not a checkpoint of charrnn: no 'charrnn' metadata",
        ),
        (
            plain({"__metadata__": {"charrnn": "{}", "format": "pt"}}),
            "damaged: 'charrnn' must be a string and the only metadata",
        ),
        (plain({"__metadata__": {"charrnn": "{"}}), "damaged: its metadata is not JSON"),
        (
            inside(torch="absent"),
            "damaged: its metadata must have the fields charrnn, format, meta, sha256, torch",
        ),
        (inside(format=True), "damaged: its field 'format' must be of type int"),
        (inside(meta=[]), "damaged: its field 'meta' must be of type dict"),
        (inside(sha256="A" * 64), "damaged: its field 'sha256' must be 64 hexadecimal digits"),
        (
            inside(torch="a" * 64),
            "damaged: the digits of its field 'sha256' must occur once",
        ),
        (inside(), "damaged: its SHA-256 does not match its contents"),
        (inside(format=2), "damaged: its SHA-256 does not match its contents"),
    ],
)
def test_what_is_said_of_a_file(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    foreign = "a text" in said or "of charrnn" in said
    assert message(path) == said + ("" if foreign else ADVICE)


def test_names_what_lies_whole_beside_a_damaged_one(tmp_path: Path) -> None:
    last = tmp_path / "last.safetensors"
    for name in ("last", "step-00000003", "model"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    assert message(last) == "the file is empty; take another copy"
    for name in ("best.safetensors", "step-00000007.safetensors", "notes.txt"):
        save(tmp_path / name, make_state(1))
    beside = "best.safetensors, step-00000007.safetensors"
    assert message(last) == f"the file is empty; take another copy, or one of {beside}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "F8_E4M3"}, "tensor 'model.weight' has an unknown dtype 'F8_E4M3'"),
        ({"dtype": ["F32"]}, "tensor 'model.weight' has an unknown dtype ['F32']"),
        ({"shape": [3, -1]}, "tensor 'model.weight' has an impossible shape [3, -1]"),
        ({"shape": 3}, "tensor 'model.weight' has an impossible shape 3"),
        ({"shape": [2**62, 0]}, f"tensor 'model.weight' has an impossible shape [{2**62}, 0]"),
        ({"shape": [[3]]}, "tensor 'model.weight' has an impossible shape (nested)"),
        ({"data_offsets": [0]}, "tensor 'model.weight' has impossible data_offsets [0]"),
        (
            {"data_offsets": [0, 12.0]},
            "tensor 'model.weight' has impossible data_offsets [0, 12.0]",
        ),
        (
            {"shape": [4]},
            "tensor 'model.weight' has data_offsets that do not fit its shape and dtype",
        ),
        ({"extra": 1}, "tensor 'model.weight' must have dtype, shape and data_offsets"),
        ({"data_offsets": [4, 16]}, "tensor 'model.weight' starts at 4, not 0"),
        (
            {"shape": [2], "data_offsets": [0, 8]},
            "its tensors take 8 bytes, the file has 12 for them",
        ),
    ],
)
def test_what_is_said_of_a_tensor(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "a.safetensors"
    info = {"charrnn": "1", "format": 1, "meta": {}, "sha256": "a" * 64, "torch": "2"}
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12], **change}
    header = {"__metadata__": {"charrnn": json.dumps(info)}, "model.weight": entry}
    path.write_bytes(plain(header, bytes(12)))
    assert message(path) == f"damaged: {said}{ADVICE}"


def test_a_header_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for length, said in (
        (8_388_608, "no 'charrnn' metadata"),
        (8_388_609, "a header of 8388609 bytes in a file of 8388617 bytes is impossible"),
    ):
        path.write_bytes(plain(b'{"a":0' + b" " * (length - 7) + b"}"))
        for read in (load, read_description):
            with pytest.raises(CheckpointError, match=said):
                read(path)


def test_a_description_of_tensors_that_do_not_fit_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, Checkpoint({"model.weight": torch.zeros(3)}, {}))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="its tensors take 12 bytes, the file has 13"):
        read_description(path)


def test_a_tensor_of_an_impossible_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    info = {"charrnn": "1", "format": 1, "meta": {}, "sha256": "a" * 64, "torch": "2"}
    path.write_bytes(plain({"__metadata__": {"charrnn": json.dumps(info)}, "\x1b[2J\n": {}}))
    assert message(path) == r"damaged: tensor '\x1b[2J\n' has an impossible name" + ADVICE


def test_a_file_of_safetensors_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    assert message(path) == (
        "a safetensors file, but not a checkpoint of charrnn: no 'charrnn' metadata"
    )


def test_a_newer_format_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    save(path, Checkpoint({"model.weight": torch.zeros(3)}, {}, {"charrnn": "9.9", "torch": "3"}))
    monkeypatch.undo()
    for read in (load, read_description):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert not isinstance(caught.value, DamagedCheckpointError)
        assert str(caught.value) == (
            f"{path}: written by charrnn '9.9' in format 2, and charrnn {__version__} reads "
            "format 1 only: use the version that wrote it"
        )


def test_an_unreadable_disk_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save(path, Checkpoint({}, {}))
    monkeypatch.setattr(checkpoint, "_read_into", refusing(errno.EIO))
    with pytest.raises(DamagedCheckpointError, match="damaged: Input/output error; take another"):
        load(path)


def test_a_path_that_is_not_printable_is_escaped(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "a\n\x1b[31m")
    assert str(caught.value).startswith(rf"{tmp_path}/a\n\x1b[31m: cannot read")


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert message(path) == "cannot read the checkpoint: No such file or directory"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    monkeypatch.setattr(os, "open", refusing(errno.EACCES))  # root, too, can run this test
    assert message(path) == "cannot read the checkpoint: Permission denied"
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert not isinstance(caught.value, DamagedCheckpointError), "it would be passed over"


# Finding -----------------------------------------------------------------------------


def test_find_takes_a_file_or_a_folder(tmp_path: Path) -> None:
    for name in ("best.safetensors", "last.safetensors", "other"):
        (tmp_path / name).touch()
    assert find(tmp_path) == tmp_path / "best.safetensors"
    assert find(tmp_path / "other") == tmp_path / "other"
    (tmp_path / "best.safetensors").unlink()
    assert find(tmp_path) == tmp_path / "last.safetensors", "a run without validation"


def test_find_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such .* folder: check its name$"):
        find(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="a folder without a checkpoint: is it a run's"):
        find(tmp_path)


def test_a_folder_of_runs_names_one(tmp_path: Path) -> None:
    for name in ("two", "one"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"name the folder of a run in it, such as .*/one$"):
        find(tmp_path)
    (tmp_path / "comparison.json").touch()
    go_on = f"continue it with: charrnn compare --run {tmp_path} --resume"
    with pytest.raises(CheckpointError, match=f"a comparison: name the .*/one, or {go_on}$"):
        find(tmp_path)
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(tmp_path / "two")
    with pytest.raises(CheckpointError, match=f"a comparison: {go_on}$"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "comparison.json", "lock"])
def test_a_file_beside_a_checkpoint_is_not_called_a_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    if name != "comparison.json":  # elsewhere it may be anybody's
        with pytest.raises(NoCheckpointError, match="a text, not a checkpoint"):
            load(tmp_path / name)
    (tmp_path / "last.safetensors").touch()
    said = f"{tmp_path / name}: a file beside checkpoints, but none: name its folder, {tmp_path}"
    with pytest.raises(NoCheckpointError, match=f"^{said}$"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("poems-lstm", "checkpoints/poems-lstm"),
        ("poem-lstm", "checkpoints/poems-lstm"),
        ("checkpoints/poems-ltsm", "checkpoints/poems-lstm"),
        ("elsewhere/pomes-gru", "elsewhere/poems-gru"),
        ("poems-gru", "checkpoints/poems-lstm"),
        ("letters", None),
    ],
)
def test_the_nearest_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, near: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("checkpoints/poems-lstm", "elsewhere/poems-gru", "checkpoints/letter"):
        Path(folder).mkdir(parents=True)
    for file in ("checkpoints/poems-lstm/best", "elsewhere/poems-gru/last"):
        Path(f"{file}.safetensors").touch()
    with pytest.raises(CheckpointError) as caught:
        find(Path(name))
    advice = f"did you mean {near}?" if near else "check its name"
    assert str(caught.value) == f"{name}: no such checkpoint or run's folder: {advice}"


# Writing -------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save(path, Checkpoint({}, {"step": 1}))
    for call in ("write", "fsync", "replace"):
        monkeypatch.setattr(os, call, refusing(errno.EIO))
        with pytest.raises(RunFolderError) as caught:
            save(path, Checkpoint({}, {"step": 2}))
        monkeypatch.undo()
        assert str(caught.value) == f"{path}: cannot save: Input/output error"
        assert list(tmp_path.iterdir()) == [path]
        assert load(path).meta == {"step": 1}


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save(path, Checkpoint({}, {"step": 1}))
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(path, Checkpoint({}, {"step": 2}))
    assert list(tmp_path.iterdir()) == [path]
    assert load(path).meta == {"step": 1}


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system may write less than it was asked to."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:100])))
    state = Checkpoint({"model.weight": torch.arange(150)}, {})
    save(tmp_path / "a", state)
    assert same(load(tmp_path / "a"), state)


def refuse_folders(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Make every folder's fsync fail with this errno."""
    real = os.fsync

    def fsync(fd: int) -> None:
        (refusing(number) if stat.S_ISDIR(os.fstat(fd).st_mode) else real)(fd)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize(
    "name", ["EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF", "EACCES", "EROFS"]
)
def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_folders(monkeypatch, getattr(errno, name))
    save(tmp_path / "a", Checkpoint({}, {"step": 2}))
    assert load(tmp_path / "a").meta == {"step": 2}


def test_nor_one_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def open_(path: Any, flags: int, *rest: Any) -> int:
        return (refusing(errno.EACCES) if path == tmp_path else real)(path, flags, *rest)

    monkeypatch.setattr(os, "open", open_)
    save(tmp_path / "a", Checkpoint({}, {"step": 2}))
    assert load(tmp_path / "a").meta == {"step": 2}


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_name_that_does_not_reach_the_disk_is_a_failure(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_folders(monkeypatch, number)
    with pytest.raises(RunFolderError, match=os.strerror(number)):
        save(tmp_path / "a", Checkpoint({}, {"step": 2}))


@pytest.mark.parametrize("knows", [True, False])
def test_on_macos_the_drive_s_cache_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knows: bool
) -> None:
    """If the file system can do that; fsync alone does not do it there."""
    asked = []

    def fcntl(fd: int, what: int) -> None:
        asked.append((what, stat.S_ISDIR(os.fstat(fd).st_mode)))
        if not knows:
            refusing(errno.ENOTSUP)()

    monkeypatch.setattr("fcntl.F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr("fcntl.fcntl", fcntl)
    save(tmp_path / "a", Checkpoint({}, {"step": 2}))
    assert load(tmp_path / "a").meta == {"step": 2}
    assert asked == [(51, False), (51, True)]
    monkeypatch.setattr("fcntl.fcntl", refusing(errno.EIO))
    with pytest.raises(RunFolderError, match=os.strerror(errno.EIO)):
        save(tmp_path / "a", Checkpoint({}, {"step": 3}))
    assert load(tmp_path / "a").meta == {"step": 2}


@pytest.mark.parametrize(
    ("path", "said"),
    [("missing/a", "No such file or directory"), ("file/a", "Not a directory")],
)
def test_a_place_that_cannot_be_written(tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError) as caught:
        save(tmp_path / path, Checkpoint({}, {}))
    assert str(caught.value) == f"{tmp_path / path}: cannot save: {said}"
