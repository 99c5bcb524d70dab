"""R6: a damaged checkpoint is named as damaged, never used."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from charrnn.errors import CheckpointError
from charrnn.storage.checkpoint import Checkpoint, load, save
from tests.reliability.conftest import Promise

META = {"step": 1200, "vocabulary": "\n !abc\u00e9\u4e2d", "valid": 1.4375, "model": {"layers": 2}}


def small() -> Checkpoint:
    """Return a checkpoint with a tensor of each kind of shape; its file has about 1 kB."""
    return Checkpoint(
        {
            "model.weight": torch.arange(15, dtype=torch.float32).reshape(3, 5),
            "model.bias": torch.arange(3, dtype=torch.bfloat16),
            "optimiser.step": torch.tensor(7, dtype=torch.int64),
            "hidden.0.h": torch.linspace(-1, 1, 14, dtype=torch.float64).reshape(2, 7),
            "generator.cpu": torch.arange(11, dtype=torch.uint8),
        },
        META,
    )


def large() -> Checkpoint:
    """Return a checkpoint of 100 kB, nearly all of it weights."""
    weights = torch.linspace(-1, 1, 25_000)
    return Checkpoint({"model.weight": weights}, META)


def is_one_plain_line(message: str) -> bool:
    return message.isprintable() and 20 < len(message) < 400


def refused(path: Path) -> bool:
    """Return whether a file is refused properly; other kinds of exception propagate."""
    try:
        load(path)
    except CheckpointError as error:
        return is_one_plain_line(str(error).replace(str(path), "run/last.safetensors"))
    return False


def flip(path: Path, bit: int) -> None:
    fd = os.open(path, os.O_RDWR)
    byte = os.pread(fd, 1, bit // 8)[0] ^ 1 << bit % 8
    os.pwrite(fd, bytes([byte]), bit // 8)
    os.close(fd)


def put(path: Path, content: bytes) -> None:
    """Overwrite a file in place: if it were emptied first, ext4 would wait for the disk."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def refused_flips(path: Path, bits: range | list[int]) -> int:
    count = 0
    for bit in bits:
        flip(path, bit)
        count += refused(path)
        flip(path, bit)
    load(path)
    return count


@pytest.mark.parametrize("make", [small, large])
def test_some_bit_flips(tmp_path: Path, make: Callable[[], Checkpoint]) -> None:
    path = tmp_path / "a.safetensors"
    save(path, make())
    bits = random.Random(2).sample(range(path.stat().st_size * 8), 300)
    assert refused_flips(path, bits) == 300


@pytest.mark.slow
def test_every_bit_flip_of_a_small_file(tmp_path: Path, promise: Promise) -> None:
    path = tmp_path / "a.safetensors"
    save(path, small())
    bits = range(path.stat().st_size * 8)
    count = refused_flips(path, bits)
    promise("R6", "bits of a small file flipped one by one", f"{count:,} of {len(bits):,} refused")
    assert count == len(bits)


@pytest.mark.slow
def test_bit_flips(tmp_path: Path, promise: Promise) -> None:
    path = tmp_path / "a.safetensors"
    save(path, large())
    bits = random.Random(2).sample(range(path.stat().st_size * 8), 10_000)
    count = refused_flips(path, bits)
    promise("R6", "random bits of a 100 kB file flipped", f"{count:,} of 10,000 refused")
    assert count == 10_000


def test_every_length_of_a_cut_file(tmp_path: Path, promise: Promise) -> None:
    path = tmp_path / "a.safetensors"
    save(path, small())
    whole = path.read_bytes()
    count = 0
    for length in range(len(whole)):
        put(path, whole[:length])
        count += refused(path)
    promise("R6", "lengths to which a small file was cut", f"{count:,} of {len(whole):,} refused")
    assert count == len(whole)


@pytest.mark.parametrize("more", [b"\0", b" ", b"}", bytes(4096)])
def test_a_longer_file(tmp_path: Path, more: bytes) -> None:
    path = tmp_path / "a.safetensors"
    save(path, small())
    with path.open("ab") as file:
        file.write(more)
    assert refused(path)


def test_zeroed_and_swapped_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, large())
    whole = path.read_bytes()
    for start in range(0, len(whole) - 8192, 4096):
        first, second = whole[start : start + 4096], whole[start + 4096 : start + 8192]
        put(path, whole[:start] + bytes(4096) + whole[start + 4096 :])
        assert refused(path)
        put(path, whole[:start] + second + first + whole[start + 8192 :])
        assert refused(path)


# Headers that lie, signed with a matching SHA-256 ----------------------------


def parts(path: Path) -> tuple[bytes, bytes]:
    """Return a checkpoint file's header and data."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length], content[8 + length :]


def signed(header: bytes, data: bytes) -> bytes:
    """Return a file with this header and the SHA-256 that matches its contents."""
    key = rb"\"sha256\":\""
    start = header.rfind(key) + len(key)
    zeroed = header[:start] + b"0" * 64 + header[start + 64 :]
    head = len(zeroed).to_bytes(8, "little") + zeroed
    digest = hashlib.sha256(head + data).hexdigest().encode()
    return head[: 8 + start] + digest + head[8 + start + 64 :] + data


def test_signing_as_the_format_says_gives_a_valid_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, small())
    assert signed(*parts(path)) == path.read_bytes()


WRONG: list[Any] = [
    None, True, -1, 1.5, "F8_E4M3", "f32", "", [], {}, [None], [-1, 5], [1.0], [True, 3], ["3"],
    [2**63], [2**31, 2**31, 2**31], [0, 2**62], [10**4000], [[3, 5]], [[[[]]]], [1] * 9, 2**64,
]  # fmt: skip


def lie(header: dict[str, Any], rng: random.Random) -> bytes:
    """Return a header in which one thing about the tensors is wrong."""
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.sample(names, 2)
    entry = header[name]
    key = rng.choice(["dtype", "shape", "data_offsets"])
    text = None
    match rng.randrange(11):
        case 0:  # a value of a wrong type or kind
            entry[key] = rng.choice([wrong for wrong in WRONG if wrong != entry[key]])
        case 1:
            del entry[key]
        case 2:
            entry[rng.choice(["Dtype", "strides", "data", ""])] = rng.choice(WRONG)
        case 3:  # overlapping, or with a hole
            by = rng.choice([-8, -1, 1, 8, 2**40])
            entry["data_offsets"] = [offset + by for offset in entry["data_offsets"]]
        case 4:  # another tensor's place
            entry["data_offsets"] = header[other]["data_offsets"]
        case 5:
            entry["shape"] = [*entry["shape"], rng.choice([0, 2, 3, 2**33])]
        case 6:
            widths = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1}
            width = widths[entry["dtype"]]
            entry["dtype"] = rng.choice([d for d, bytes_ in widths.items() if bytes_ != width])
        case 7:
            del header[name]
        case 8:
            header["extra"] = {"dtype": "U8", "shape": [1], "data_offsets": [2**20, 2**20 + 1]}
        case 9:  # the same key twice, in the header or in a tensor's entry
            text = json.dumps(header)
            if rng.random() < 0.5:
                text = text[:-1] + f', "{name}": {json.dumps(entry)}}}'
            else:
                text = text.replace('"dtype": ', '"dtype": "U8", "dtype": ', 1)
        case 10:
            header[rng.choice(["", "a b", "\x1b[2J", "n\n", "x" * 201, '"', "\\"])] = header.pop(
                name
            )
    return (text or json.dumps(header)).encode()


def test_headers_that_lie(tmp_path: Path, promise: Promise) -> None:
    path = tmp_path / "a.safetensors"
    save(path, small())
    header, data = parts(path)
    rng = random.Random(3)
    count = 0
    for _ in range(2_000):
        put(path, signed(lie(json.loads(header), rng), data))
        count += refused(path)
    promise("R6", "signed headers that lie about a tensor", f"{count:,} of 2,000 refused")
    assert count == 2_000


def mutated(header: bytes, rng: random.Random) -> bytes:
    """Return a header with some bytes changed, removed, doubled or moved."""
    while True:
        text = bytearray(header)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            start = rng.randrange(len(text))
            stop = start + rng.choice([1, 1, 2, 7, 40])
            match rng.randrange(5):
                case 0:
                    text[start] = rng.randrange(256)
                case 1:
                    del text[start:stop]
                case 2:
                    text[start:start] = text[start:stop]
                case 3:
                    text[start:start] = rng.choice([b"[", b"{", b"\0", b"NaN", b"1e999", b"\xff"])
                case 4:
                    place = rng.randrange(len(text))
                    text[start:stop], text[place:place] = b"", text[start:stop]
        if text != header:
            return bytes(text)


def mutate(path: Path, count: int, make: Callable[[bytes, bytes], bytes]) -> tuple[int, int]:
    """Load ``count`` mutations; return (refused, loaded with its tensors untouched)."""
    save(path, small())
    header, data = parts(path)
    rng = random.Random(4)
    refusals = harmless = 0
    for _ in range(count):
        put(path, make(mutated(header, rng), data))
        if refused(path):
            refusals += 1
        else:
            held = (
                t.flatten().view(torch.uint8).numpy().tobytes() for t in load(path).tensors.values()
            )
            harmless += b"".join(held) == data
    return refusals, harmless


def unsigned(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def test_some_header_mutations(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert mutate(path, 300, unsigned) == (300, 0)
    assert sum(mutate(path, 300, signed)) == 300


@pytest.mark.slow
def test_header_mutations(tmp_path: Path, promise: Promise) -> None:
    refusals, _ = mutate(tmp_path / "a.safetensors", 10_000, unsigned)
    promise("R6", "header mutations", f"{refusals:,} of 10,000 refused")
    assert refusals == 10_000


@pytest.mark.slow
def test_signed_header_mutations(tmp_path: Path, promise: Promise) -> None:
    """A signed change to the metadata's text alone makes another valid checkpoint: no refusal."""
    refusals, harmless = mutate(tmp_path / "a.safetensors", 10_000, signed)
    what = f"signed header mutations refused, the rest ({harmless:,}) are whole checkpoints"
    promise("R6", what, f"{refusals:,} of 10,000")
    assert refusals + harmless == 10_000
    assert refusals > 5_000
