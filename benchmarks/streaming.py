"""How fast text becomes ids and chunks, and in how much memory, on one core.

    python -m benchmarks.streaming --corpora DIR [--big FILE] [--quick] [--json FILE]

Files are in the page cache and every figure is of one thread, from the file: opening,
reading, checking and decoding are in it. With ``--big``, the time to the first chunk and
the peak memory of a process of its own are set against those on 50 MB of the same file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import in_turns, results_file, write_results
from charrnn.corpus import Part, scan
from charrnn.files import embedded_corpus
from charrnn.machine import machine
from charrnn.stream import Lanes
from charrnn.vocabulary import Vocabulary

_LANES = (16, 64)
_BPTT = 128
_SMALL_BYTES = 50_000_000

#: Run in a process of its own: what ``train`` does up to its first update, and then some
#: chunks. Peak memory comes from the kernel's own record, because getrusage's includes the
#: process that started this one.
_FIRST_CHUNK = """
import re, sys, time
from pathlib import Path
import torch
from charrnn.baselines import compressed_nats
from charrnn.corpus import scan, split
from charrnn.starting import MOST_COMPRESSED
from charrnn.stream import Lanes
from charrnn.vocabulary import Vocabulary

def memory(field):
    return int(re.search(field + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

name, chunks = sys.argv[1], int(sys.argv[2])
before = memory("VmRSS")
start = time.perf_counter()
train, valid, _ = split(scan([name]))
vocabulary = Vocabulary.from_counts(train.counts(), "utf-8")
valid.counts()
stop = min(valid.stop, valid.start + MOST_COMPRESSED)
compressed_nats(valid.corpus.part(valid.start, stop), "bzip2")
stream = Lanes(train, vocabulary, 64, 128).chunks()
next(stream)
first = time.perf_counter() - start
for _ in range(chunks):
    next(stream)
print(first, before, memory("VmHWM"))
"""


@dataclass(frozen=True)
class Row:
    """One figure."""

    text: str
    what: str
    value: float
    unit: str
    target: float | None = None
    """What docs/performance.md asks for: fast enough that no training waits for its text; of
    seconds, the most."""


def encode_all(part: Part, vocabulary: Vocabulary) -> int:
    """Turn a whole part into ids and return how many."""
    return sum(len(vocabulary.encode_codes(codes)) for codes in part.codes())


def measure_text(name: str, texts: Sequence[str], rounds: int, chunks: int) -> list[Row]:
    corpus = scan(texts)
    part = corpus.whole
    vocabulary = Vocabulary.from_counts(corpus.counts, corpus.encoding)
    views = [Lanes(part, vocabulary, lanes, _BPTT) for lanes in _LANES]

    def supply(view: Lanes) -> int:
        return sum(chunk.characters for chunk in islice(view.chunks(), chunks))

    seconds = in_turns(
        [
            lambda: scan(texts),
            lambda: encode_all(part, vocabulary),
            *(partial(supply, view) for view in views),
        ],
        rounds,
    )
    megabytes = part.bytes / 1e6
    is_ascii = part.bytes < 1.1 * part.characters  # or as good as
    rows = [
        Row(name, "scan", megabytes / seconds[0], "MB/s"),
        Row(name, "text to ids", megabytes / seconds[1], "MB/s", 200 if is_ascii else 100),
    ]
    for view, elapsed in zip(views, seconds[2:], strict=True):
        rate = supply(view) / elapsed / 1e6
        rows.append(Row(name, f"chunks of {view.lanes} lanes x {_BPTT}", rate, "M char/s", 5))
    return rows


def measure_big(big: Path, chunks: int) -> list[Row]:
    """Compare a big file with its first 50 MB, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder, "small.txt")
        with big.open("rb") as source:
            head = source.read(_SMALL_BYTES)
        # Up to a line's end, so that no character is cut in two.
        small.write_bytes(head[: head.rfind(b"\n") + 1])
        rows = []
        for path in (small, big):
            command = [sys.executable, "-c", _FIRST_CHUNK, str(path), str(chunks)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            first, before, peak = map(float, output.split())
            name = f"{path.stat().st_size / 1e6:,.0f} MB"
            rows += [
                Row(name, "first chunk after", first, "s", 15),
                Row(name, "peak memory", peak / 1024, "MiB"),
                Row(name, "beyond torch's own", (peak - before) / 1024, "MiB"),
            ]
        return rows


def show(rows: Sequence[Row]) -> None:
    table = Table(title="Text to ids and chunks, one core", caption=machine())
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
        description="Measure how fast text becomes ids and chunks, and in how much memory.",
    )
    parser.add_argument("--corpora", type=Path, required=True, help="folder of texts, *.txt")
    parser.add_argument("--big", type=Path, help="a file of a gigabyte or so, in utf-8")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=results_file, help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds, chunks = (5, 100) if options.quick else (25, 400)
    rows = []
    for path in sorted(options.corpora.glob("*.txt")):
        rows += measure_text(path.stem, [str(path)], rounds, chunks)
    rows += measure_text("Python's library", embedded_corpus(), rounds, chunks)
    if options.big:
        rows += measure_big(options.big, chunks)
    show(rows)
    if options.json:
        write_results(options.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
