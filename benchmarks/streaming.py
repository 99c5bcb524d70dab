"""How fast text becomes ids and batches, and in how much memory, on one core.

    python -m benchmarks.streaming --corpora DIR [--big FILE] [--quick] [--json FILE]

Files are in the page cache. Every figure is for one thread and includes opening, reading,
checking and decoding the file. Beside them stand two limits: what only reads the bytes, and
what also hashes them by SHA-256 (a scan hashes all but the first file twice). With ``--big``,
everything that ``train`` does before its first update is timed in a process of its own; the
time and the process's peak memory are compared with those for the first 50 MB of the file.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import in_turns, results_file, write_results
from charrnn.compute.machine import machine
from charrnn.config import TextChoices
from charrnn.recipe import Choices
from charrnn.runs.starting import start
from charrnn.storage.runfolder import RunFolder
from charrnn.text.corpus import Part
from charrnn.text.files import embedded_corpus
from charrnn.text.scanning import scan
from charrnn.text.stream import Lanes
from charrnn.text.vocabulary import Vocabulary

_LANES = (16, 64)
_BPTT = 128
_SMALL_BYTES = 50_000_000


@dataclass(frozen=True)
class Row:
    """One measurement."""

    text: str
    what: str
    value: float
    unit: str
    target: float | None = None
    """The required value, so that no training waits for its text: a minimum speed, or a
    maximum number of seconds."""


def encode_all(part: Part, vocabulary: Vocabulary) -> int:
    """Turn a whole part into ids and return their number."""
    return sum(len(vocabulary.encode_codes(codes)) for codes in part.codes())


def read_all(part: Part) -> int:
    """Only read a whole part's bytes, and return their number: a limit of ``encode_all``."""
    return sum(map(len, part.encoded()))


def hash_all(part: Part) -> str:
    """Read a whole part's bytes and return their SHA-256: a limit of ``scan``."""
    hasher = hashlib.sha256()
    for data in part.encoded():
        hasher.update(data)
    return hasher.hexdigest()


def measure_text(name: str, texts: Sequence[str], rounds: int, batches: int) -> list[Row]:
    corpus = scan(texts)
    part = corpus.whole
    vocabulary = Vocabulary.from_counts(corpus.counts, corpus.encoding)
    views = [Lanes(part, vocabulary, lanes, _BPTT) for lanes in _LANES]

    def supply(view: Lanes) -> int:
        return sum(batch.characters for batch in islice(view.batches(), batches))

    seconds = in_turns(
        [
            lambda: scan(texts),
            lambda: encode_all(part, vocabulary),
            lambda: read_all(part),
            lambda: hash_all(part),
            *(partial(supply, view) for view in views),
        ],
        rounds,
    )
    megabytes = part.encoded_size() / 1e6
    is_ascii = part.encoded_size() < 1.1 * part.characters  # or nearly
    rows = [
        Row(name, "scan", megabytes / seconds[0], "MB/s"),
        Row(name, "text to ids", megabytes / seconds[1], "MB/s", 200 if is_ascii else 100),
        Row(name, "limit: read", megabytes / seconds[2], "MB/s"),
        Row(name, "limit: read and hashed", megabytes / seconds[3], "MB/s"),
    ]
    for view, elapsed in zip(views, seconds[4:], strict=True):
        rate = supply(view) / elapsed / 1e6
        rows.append(Row(name, f"batches of {view.batch_size} lanes x {_BPTT}", rate, "M char/s", 5))
    return rows


def measure_big(big: Path, batches: int) -> list[Row]:
    """Compare a big file with its first 50 MB, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder, "small.txt")
        with big.open("rb") as source:
            head = source.read(_SMALL_BYTES)
            while source.read(_SMALL_BYTES):
                pass  # brings the rest into the page cache, too
        # Up to the end of a line, so that no character is split.
        small.write_bytes(head[: head.rfind(b"\n") + 1])
        rows = []
        for path in (small, big):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                first, peak, beyond = process.submit(first_batch, path, batches).result()
            name = f"{path.stat().st_size / 1e6:,.0f} MB"
            rows += [
                Row(name, "first batch after", first, "s", 15),
                Row(name, "peak memory", peak, "MiB"),
                Row(name, "beyond torch's own", beyond, "MiB"),
            ]
        return rows


def first_batch(path: Path, batches: int) -> tuple[float, float, float]:
    """Do what ``train`` does before its first update, then read some more batches.

    Returns:
        The seconds to the first batch, and this process's peak memory in MiB: in total, and
        above what it had before.
    """
    torch.set_num_threads(1)
    before = memory("VmRSS")
    started = time.perf_counter()
    choices = Choices(training={"batch_size": max(_LANES), "bptt": _BPTT})
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(Path(folder, "run")) as held:
        text = TextChoices(texts=(str(path),))
        run = start(choices, text, folder=held, device=torch.device("cpu"))
        stream = run.lanes.batches()
        next(stream)
        seconds = time.perf_counter() - started
        for _ in range(batches):
            next(stream)
    peak = memory("VmHWM")
    return seconds, peak, peak - before


def memory(field: str) -> float:
    """Return a field of ``/proc/self/status``, in MiB.

    Its peak is this process's own; getrusage's includes that of the parent process.
    """
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s*(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def show(rows: Sequence[Row]) -> None:
    table = Table(title="Text to ids and batches, one core", caption=machine())
    for column in ("text", "what", "measured", "unit", "target"):
        table.add_column(column, justify="right" if column in ("measured", "target") else "left")
    for row in rows:
        digits = 2 if row.value < 10 else 0
        target = "" if row.target is None else f"{row.target:g}"
        table.add_row(row.text, row.what, f"{row.value:,.{digits}f}", row.unit, target)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streaming",
        description="Measure how fast text becomes ids and batches, and in how much memory.",
    )
    parser.add_argument("--corpora", type=Path, required=True, help="folder of texts, *.txt")
    parser.add_argument("--big", type=Path, help="a file of a gigabyte or so, in utf-8")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=results_file, help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds, batches = (5, 100) if options.quick else (25, 400)
    rows = []
    for path in sorted(options.corpora.glob("*.txt")):
        rows += measure_text(path.stem, [str(path)], rounds, batches)
    rows += measure_text("Python's library", embedded_corpus(), rounds, batches)
    if options.big:
        rows += measure_big(options.big, batches)
    show(rows)
    if options.json:
        write_results(options.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
