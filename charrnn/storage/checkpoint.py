"""The checkpoint file: tensors and one JSON object, checked to the last bit.

A checkpoint is a safetensors file (https://github.com/huggingface/safetensors),
so that any safetensors reader opens it, with three additions: its metadata has
the single key ``charrnn``, whose value is canonical JSON; a SHA-256 in that JSON
covers every bit of the file; and equal contents give equal bytes.
``docs/reliability.md`` describes it byte by byte.

Files are read by our own strict reader: nothing in them is executed, nothing is
memory-mapped, and no length in them is trusted before the file's size confirms it.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import io
import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor

from charrnn import __version__
from charrnn.command_words import comparison_command
from charrnn.config import Record
from charrnn.disk import exists, replacing, without_waiting
from charrnn.errors import CheckpointError, UsageError
from charrnn.layout import BESIDE, BEST, LAST, PLAN, RUNS
from charrnn.text.not_text import COMPRESSED, ZIP
from charrnn.wording import reason, shown

#: The format number that this version writes, and the only one it reads.
FORMAT = 1

#: Longest header that is read or written, in bytes. A vocabulary of all of
#: Unicode takes 4.5 MB; parsed JSON may need some 30 times the memory of its text.
MAX_HEADER = 8 * 2**20

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

#: Names have no quotes or backslashes, so they need no escapes in JSON.
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NO_DIGEST = "0" * 64
_MAX_AXES = 8

#: First bytes of files that people mistake for a checkpoint.
_KINDS = (
    (ZIP, "a zip archive, perhaps a PyTorch pickle"),
    (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", "a PyTorch pickle"),
    *((magic, f"compressed by {name}") for name, magic in COMPRESSED.items()),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF model"),
)

T = TypeVar("T")
R = TypeVar("R", bound=Record)

assert sys.byteorder == "little", "tensors are copied to and from the file as they are"


class DamagedCheckpointError(CheckpointError):
    """The file's bytes are not a checkpoint as charrnn wrote it.

    It was cut off, altered, or is another kind of file. An intact file that
    cannot be used for another reason (a newer format, no read permission)
    is a plain ``CheckpointError``.
    """

    def __init__(self, path: Path, flaw: str, advice: str = "") -> None:
        super().__init__(f"{shown(path)}: {flaw}{advice}")
        self.path = path
        self.flaw = flaw


class NoCheckpointError(DamagedCheckpointError):
    """Never a charrnn checkpoint: another kind of file, or a folder without a checkpoint."""


class _Flaw(Exception):  # noqa: N818 - never leaves this module
    """What is wrong with a file's bytes; becomes a DamagedCheckpointError."""


class _Foreign(_Flaw):
    """The file never was a charrnn checkpoint, so another copy would not help."""

    def __init__(self, flaw: str, advice: str = "") -> None:
        super().__init__(flaw)
        self.advice = advice


def _versions() -> dict[str, str]:
    return {"charrnn": __version__, "torch": str(torch.__version__)}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All state to be saved: tensors by name, and everything else as JSON."""

    tensors: dict[str, Tensor]
    """``model.*``, ``optimiser.*``, ``hidden.*``, ``generator.*``; on the CPU once loaded."""
    meta: dict[str, Any]
    """JSON values, without NaN: model, vocabulary, training, text, progress and more."""
    versions: dict[str, str] = field(default_factory=_versions)
    """Versions of ``charrnn`` and ``torch`` when the checkpoint was made."""
    path: Path | None = None
    """Its name in messages: the file that it was loaded from, or, after ``trained.load_model``,
    the path that the user gave, perhaps a run's folder."""
    file: Path | None = None
    """The file that it was loaded from; None if it was not."""
    digest: str | None = None
    """The SHA-256 that the file has of itself, in hexadecimal."""

    @property
    def is_state(self) -> bool:
        """Whether it has all that a run can go on from, and not just weights."""
        return "step" in self.meta

    @property
    def folder(self) -> Path:
        """The folder that it was loaded from: its run's, unless the file was taken elsewhere."""
        assert self.file is not None
        return self.file.parent

    def require(self, name: str, kind: type[T]) -> T:
        """Return ``meta[name]``, which must be of type ``kind``.

        A bool does not count as a number.

        Raises:
            CheckpointError: the field is missing or of another type.
        """
        where = self._where()
        if name not in self.meta:
            raise CheckpointError(f"{where}the checkpoint lacks the field {name!r}")
        value = self.meta[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CheckpointError(
                f"{where}the checkpoint's field {name!r} must be of type {kind.__name__}, "
                f"not {type(value).__name__}"
            )
        return value

    def record(self, name: str, kind: type[R]) -> R:
        """Return ``meta[name]`` as a record.

        Raises:
            CheckpointError: the field is missing or malformed; the message names it.
        """
        return self._as_record(name, self.require(name, dict), kind)

    def records(self, name: str, kind: type[R]) -> tuple[R, ...]:
        """Return ``meta[name]``, a list, as records; errors as for ``record``."""
        return tuple(self._as_record(name, value, kind) for value in self.require(name, list))

    def _as_record(self, name: str, value: object, kind: type[R]) -> R:
        try:
            if not isinstance(value, dict):
                raise ValueError(f"{ascii(value)[:60]} is no object")
            return kind.from_dict(value)
        except (ValueError, UsageError) as error:
            # A later version may have added a field.
            version, why = self.versions["charrnn"], ""
            if version != __version__:
                why = f"; it was written by charrnn {_quoted(version)}, and this is {__version__}"
            raise CheckpointError(
                f"{self._where()}the field {name!r} is not usable: {error}{why}"
            ) from error

    def _where(self) -> str:
        """Return the beginning of a message: the file, if there is one."""
        return f"{shown(self.path)}: " if self.path is not None else ""


# Writing ---------------------------------------------------------------------


def write(file: BinaryIO, checkpoint: Checkpoint) -> None:
    """Write a checkpoint's bytes to an open file; equal contents give equal bytes.

    Raises:
        ValueError: a tensor's name or dtype, or something in ``meta``, has no place in the format.
    """
    head, tensors = _encode(checkpoint)
    for rest in (memoryview(head), *map(_memory, tensors)):
        while rest:  # past the file's buffer, from which tensors gain nothing
            rest = rest[os.write(file.fileno(), rest) :]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; when this returns, its bytes and its name are on disk.

    Raises:
        RunFolderError: disk full, no permission, no such folder; what was at ``path`` stays.
        ValueError: a tensor's name or dtype, or something in ``meta``, has no place in the format.
    """
    with replacing(path) as file:
        write(file, checkpoint)


def _encode(checkpoint: Checkpoint) -> tuple[bytes, list[Tensor]]:
    """Return the bytes before the data, and the tensors as they are stored: flat, in order."""
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        if not _TENSOR_NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a tensor's name")
        if tensor.dtype not in _DTYPE_NAMES or tensor.dim() > _MAX_AXES:
            raise ValueError(f"tensor {name!r} cannot be stored: {tensor.dtype}, {tensor.shape}")
        tensors[name] = tensor.detach().to("cpu").contiguous()
    # The widest elements first, so that every tensor starts at a multiple of its element size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    ordered = {name: tensors[name] for name in order}
    flat = [tensor.reshape(-1) for tensor in ordered.values()]
    # The hash is taken with zeros in place of its own digits.
    digest = hashlib.sha256(_head(checkpoint, ordered, _NO_DIGEST))
    for tensor in flat:
        digest.update(_memory(tensor))
    return _head(checkpoint, ordered, digest.hexdigest()), flat


def _head(checkpoint: Checkpoint, tensors: dict[str, Tensor], digest: str) -> bytes:
    """Return the bytes before the data, with ``digest``, a SHA-256 in hexadecimal."""
    info = {
        **checkpoint.versions,
        "format": FORMAT,
        "meta": checkpoint.meta,
        "sha256": digest,
    }
    header: dict[str, Any] = {"__metadata__": {"charrnn": _canonical(info)}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"the header takes {len(text)} bytes, more than {MAX_HEADER}")
    return len(text).to_bytes(8, "little") + text


def _canonical(value: Any) -> str:
    r"""Return the canonical JSON of a value: sorted keys, no spaces, characters unescaped.

    Lone surrogates, which Python uses for undecodable bytes in file names, are
    the exception: UTF-8 cannot encode them, so they become ``\udcxx``.
    """
    text = json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return text.encode("utf-8", "backslashreplace").decode()


def _memory(block: Tensor) -> memoryview:
    """Return the bytes of a contiguous one-dimensional CPU tensor, without a copy."""
    return block.view(torch.uint8).numpy().data


# Reading ---------------------------------------------------------------------


def find(path: Path) -> Path:
    """Return the checkpoint file at a path: the file itself, or one in a run's folder.

    In a run's folder it is the best by validation loss, or the last if there is no best.

    Raises:
        NoCheckpointError: it is a folder without one.
        CheckpointError: there is no such path, or it cannot be read.
    """
    try:
        if not exists(path):
            raise CheckpointError(
                f"{shown(path)}: no such checkpoint or run's folder: {_instead_of(path)}"
            )
        if not path.is_dir():
            return path
        for name in (BEST, LAST):
            if exists(path / name):
                return path / name
    except OSError as error:
        raise CheckpointError(f"{shown(path)}: cannot be read: {reason(error)}") from error
    runs = sorted({file.parent.name for name in (BEST, LAST) for file in path.glob(f"*/{name}")})
    hints = [f"name the folder of a run in it, such as {shown(path / runs[0])}"] if runs else []
    if exists(path / PLAN):
        hints.append(f"continue it with: {comparison_command(path)}")
        raise NoCheckpointError(path, "a comparison", f": {', or '.join(hints)}")
    hints = hints or ["is it a run's?"]
    raise NoCheckpointError(path, "a folder without a checkpoint", f": {hints[0]}")


def _instead_of(path: Path) -> str:
    """Return what to do about a missing path: the run with the most similar name, if any."""
    # Beside the path, and in the default folder of runs.
    folders = dict.fromkeys([path.parent, RUNS])
    runs = {
        file.parent.name: file.parent
        for folder in folders
        for name in (BEST, LAST)
        for file in folder.glob(f"*/{name}")
    }
    near = difflib.get_close_matches(path.name, runs, 1)
    return f"did you mean {shown(runs[near[0]])}?" if near else "check its name"


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and verify every bit of it.

    Nothing in the file is executed, and memory stays within a small multiple of its size.

    Raises:
        NoCheckpointError: it never was a checkpoint.
        DamagedCheckpointError: the bytes are not a checkpoint as charrnn wrote it.
        CheckpointError: the file cannot be read, or its format is not ``FORMAT``.
    """
    with _reading(path) as (file, size):
        head = _read_head(file, size)
        header, info = _parse_head(head)
        digest = hashlib.sha256(_without_digest(head, info))
        if info["format"] != FORMAT:
            _check_rest(file, digest, info["sha256"])
            raise _other_format(path, info)
        tensors = {}
        for name, dtype, shape in _read_entries(header, size - len(head)):
            flat = _empty(math.prod(shape), dtype)
            _read_into(file, _memory(flat))
            digest.update(_memory(flat))
            tensors[name] = flat.reshape(shape)
        _check_rest(file, digest, info["sha256"])
        for name, tensor in tensors.items():
            if tensor.dtype is torch.bool and (tensor.view(torch.uint8) > 1).any():
                raise _Flaw(
                    f"damaged: tensor {_quoted(name)} is BOOL with a byte other than 0 and 1"
                )
        return _checkpoint(path, info, tensors)


def read_description(path: Path) -> Checkpoint:
    """Return a checkpoint without its tensors, neither reading them nor checking the SHA-256.

    For a quick look at a run, such as the step it has reached.

    Raises:
        CheckpointError: as for ``load``, as far as the header shows it.
    """
    with _reading(path) as (file, size):
        head = _read_head(file, size)
        header, info = _parse_head(head)
        if info["format"] != FORMAT:
            raise _other_format(path, info)
        _read_entries(header, size - len(head))
        return _checkpoint(path, info, {})


def _checkpoint(path: Path, info: dict[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    """Return the checkpoint in a file; ``info`` is charrnn's own object in its header."""
    versions = {name: info[name] for name in _versions()}
    return Checkpoint(tensors, info["meta"], versions, path, path, info["sha256"])


def _other_format(path: Path, info: dict[str, Any]) -> CheckpointError:
    return CheckpointError(
        f"{shown(path)}: written by charrnn {_quoted(info['charrnn'])} in format "
        f"{_quoted(info['format'])}, and charrnn {__version__} reads format {FORMAT} only: "
        "use the version that wrote it"
    )


@contextmanager
def _reading(path: Path) -> Iterator[tuple[io.FileIO, int]]:
    """Yield an open file and its size in bytes; every failure becomes a one-line error."""
    try:
        with io.FileIO(path, "r", opener=without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{shown(path)}: not a regular file, so not a checkpoint")
            yield file, status.st_size
    except _Flaw as flaw:
        # Its frames hold what was parsed of the file, and from Python 3.13 on each other, too.
        flaw.__traceback__ = None
        if path.name in BESIDE and any(exists(path.parent / name) for name in (BEST, LAST, PLAN)):
            advice = f": name its folder, {shown(path.parent)}"
            raise NoCheckpointError(path, "a file beside checkpoints, but none", advice) from None
        if isinstance(flaw, _Foreign):
            raise NoCheckpointError(path, str(flaw), flaw.advice) from None
        raise DamagedCheckpointError(path, str(flaw), _advice(path)) from None
    except MemoryError:
        raise CheckpointError(f"{shown(path)}: not enough memory to load it") from None
    except OSError as error:
        why = reason(error)
        if error.errno == errno.EIO:
            raise DamagedCheckpointError(path, f"damaged: {why}", _advice(path)) from error
        raise CheckpointError(f"{shown(path)}: cannot read the checkpoint: {why}") from error


def _advice(damaged: Path) -> str:
    """Return advice on what to use instead of a damaged file."""
    others = sorted(file for file in damaged.parent.glob("*.safetensors") if file != damaged)
    beside = [shown(file.name) for file in others if _looks_whole(file)]
    return f"; take another copy{', or one of ' if beside else ''}{', '.join(beside)}"


def _looks_whole(path: Path) -> bool:
    """Whether a file is a checkpoint, as far as its header shows."""
    with suppress(_Flaw, OSError), io.FileIO(path, "r", opener=without_waiting) as file:
        size = os.fstat(file.fileno()).st_size
        head = _read_head(file, size)
        header, info = _parse_head(head)
        _read_entries(header, size - len(head))
        return bool(info["format"] == FORMAT)
    return False


def _read_head(file: io.FileIO, size: int) -> bytes:
    """Return the bytes before the data."""
    head = bytearray(min(size, 512))
    _read_into(file, memoryview(head))
    if not head:
        raise _Flaw("the file is empty")
    length = int.from_bytes(head[:8], "little")
    if size < 16 or length > size - 8 or length > MAX_HEADER or head[8:9] != b"{":
        if _begins_text(head):
            advice = ": train on it, and name the run's folder"
            raise _Foreign("a text, not a checkpoint", advice)
        if kind := _kind(head):
            raise _Foreign(kind, ", and charrnn reads only its own safetensors checkpoints")
        if head[8:9] != b"{":
            raise _Flaw("not a checkpoint, or its beginning is damaged")
        raise _Flaw(f"damaged: a header of {length} bytes in a file of {size} bytes is impossible")
    if 8 + length > len(head):
        rest = bytearray(8 + length - len(head))
        _read_into(file, memoryview(rest))
        head += rest
    else:
        file.seek(8 + length)
        del head[8 + length :]
    return bytes(head)


def _parse_head(head: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the safetensors header, and charrnn's own object in it."""
    header = _parse(head[8:], "header")
    if not isinstance(header, dict):
        raise _Flaw("damaged: its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or "charrnn" not in metadata:
        raise _Foreign("a safetensors file, but not a checkpoint of charrnn: no 'charrnn' metadata")
    if len(metadata) != 1 or not isinstance(metadata["charrnn"], str):
        raise _Flaw("damaged: 'charrnn' must be a string and the only metadata")
    info = _parse(metadata["charrnn"].encode("utf-8", "surrogatepass"), "metadata")
    kinds = {"charrnn": str, "format": int, "meta": dict, "sha256": str, "torch": str}
    if not isinstance(info, dict) or sorted(info) != sorted(kinds):
        raise _Flaw(f"damaged: its metadata must have the fields {', '.join(kinds)}")
    for name, kind_of_field in kinds.items():
        if type(info[name]) is not kind_of_field:
            raise _Flaw(f"damaged: its field {name!r} must be of type {kind_of_field.__name__}")
    return header, info


def _read_entries(header: dict[str, Any], data: int) -> list[tuple[str, torch.dtype, list[int]]]:
    """Return (name, dtype, shape) in the order of the data; together they fill it exactly."""
    spans = []
    for name, entry in header.items():
        where = f"damaged: tensor {_quoted(name)}"
        if not _TENSOR_NAME.fullmatch(name):
            raise _Flaw(f"{where} has an impossible name")
        if not isinstance(entry, dict) or sorted(entry) != ["data_offsets", "dtype", "shape"]:
            raise _Flaw(f"{where} must have dtype, shape and data_offsets")
        dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
            raise _Flaw(f"{where} has an unknown dtype {_quoted(dtype_name)}")
        if not _whole_numbers(shape) or len(shape) > _MAX_AXES:
            raise _Flaw(f"{where} has an impossible shape {_quoted(shape)}")
        if not _whole_numbers(offsets) or len(offsets) != 2:
            raise _Flaw(f"{where} has impossible data_offsets {_quoted(offsets)}")
        dtype = _DTYPES[dtype_name]
        begin, end = offsets
        # An axis of length 0 must not hide others that overflow torch's 64-bit strides.
        if math.prod(max(axis, 1) for axis in shape) * dtype.itemsize >= 2**62:
            raise _Flaw(f"{where} has an impossible shape {_quoted(shape)}")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise _Flaw(f"{where} has data_offsets that do not fit its shape and dtype")
        spans.append((begin, end, name, dtype, shape))
    spans.sort(key=lambda span: span[:3])
    expected = 0
    for begin, end, name, _, _ in spans:
        if begin != expected:
            raise _Flaw(
                f"damaged: tensor {_quoted(name)} starts at {_quoted(begin)}, not {expected}"
            )
        expected = end
    if expected != data:
        raise _Flaw(f"damaged: its tensors take {expected} bytes, the file has {data} for them")
    return [(name, dtype, shape) for _, _, name, dtype, shape in spans]


def _parse(text: bytes, what: str) -> Any:
    """Parse strict JSON: UTF-8, no duplicate keys, no NaN."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise _Flaw(f"damaged: its {what} has the same key twice")
        return values

    def constant(name: str) -> None:
        raise _Flaw(f"damaged: its {what} holds {name}, which is not JSON")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise _Flaw(f"damaged: its {what} is nested too deeply") from None
    except ValueError:  # broken JSON, broken UTF-8, an integer of thousands of digits
        raise _Flaw(f"damaged: its {what} is not JSON") from None


def _without_digest(head: bytes, info: dict[str, Any]) -> bytes:
    """Return the bytes before the data as they were hashed: with zeros for the digest's digits."""
    digest = info["sha256"]
    if not _DIGEST.fullmatch(digest):
        raise _Flaw("damaged: its field 'sha256' must be 64 hexadecimal digits")
    if head.count(digest.encode()) != 1:
        raise _Flaw("damaged: the digits of its field 'sha256' must occur once")
    return head.replace(digest.encode(), _NO_DIGEST.encode())


def _check_rest(file: io.FileIO, digest: hashlib._Hash, expected: str) -> None:
    """Hash the rest of the file, and compare the SHA-256 of the whole."""
    while block := file.read(2**20):
        digest.update(block)
    if digest.hexdigest() != expected:
        raise _Flaw("damaged: its SHA-256 does not match its contents")


def _empty(elements: int, dtype: torch.dtype) -> Tensor:
    try:
        return torch.empty(elements, dtype=dtype)
    except RuntimeError:  # raised by torch's CPU allocator when memory is full
        raise MemoryError from None


def _read_into(file: io.FileIO, buffer: memoryview) -> None:
    while buffer:
        count = file.readinto(buffer)
        if not count:
            raise _Flaw("damaged: the file was cut off while it was read")
        buffer = buffer[count:]


def _begins_text(head: bytearray) -> bool:
    """Whether bytes look like text: they have no control characters except white space.

    A checkpoint begins with its header's length, which ends in NULs.
    """
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)


def _kind(head: bytearray) -> str | None:
    """Return the well-known kind of file that these first bytes suggest, if any."""
    for magic, kind in _KINDS:
        if head.startswith(magic):
            return "a PyTorch pickle" if b"data.pkl" in head or b"/version" in head else kind
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "a Python pickle"
    if head[257:262] == b"ustar":
        return "a tar archive"
    return None


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _quoted(value: object) -> str:
    """Return a value from a file, shortened and escaped for a one-line message."""
    nested = isinstance(value, list) and any(isinstance(item, list | dict) for item in value)
    text = "(nested)" if nested or isinstance(value, dict) else ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
