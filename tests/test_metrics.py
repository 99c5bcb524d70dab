"""A run's log: rows are appended, rewound and read again; a failure leaves only whole lines."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from charrnn.layout import LOG
from charrnn.storage.metrics import Log, read_log
from tests.conftest import open_files, refusing, said


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path)
    yield log
    log.close()


def rows(log: Log) -> list[object]:
    return [json.loads(line) for line in log.path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_lines_in_order(log: Log, tmp_path: Path) -> None:
    log.append({"step": 1, "train_nats_per_char": 2.5, "sample": "a\n\u4e2d\udcff"})
    log.append({"step": 2})
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == (
        '{"step":1,"train_nats_per_char":2.5,"sample":"a\\n\u4e2d\\udcff"}\n{"step":2}\n'
    )
    again = Log(tmp_path)
    again.append({"step": 3})
    again.close()
    assert rows(log)[1:] == [{"step": 2}, {"step": 3}]
    log.clear()
    log.append({"step": 4})
    assert rows(log) == [{"step": 4}]


def test_a_row_has_no_nan(log: Log) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append({"loss": float("inf")})
    assert rows(log) == []


def test_a_last_line_that_was_cut_off_is_not_read(tmp_path: Path) -> None:
    """It may be a line that is just being written, so the user is not asked to remove it."""
    for cut in (b"", b'{"st', b'{"step":2}', b"\0\0"):
        (tmp_path / LOG).write_bytes(b'{"step":1,"characters":9}\n' + cut)
        assert read_log(tmp_path) == ({"step": 1, "characters": 9},)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b'{"step":1}\n', b'{"step":1}\n'),
        (b'{"step":1}\n{"st', b'{"step":1}\n'),
        (b'{"st', b""),
        (b'{"step":1}\n' + b"\0" * 200_000, b'{"step":1}\n'),
    ],
)
def test_a_last_line_that_was_cut_off_is_removed(
    tmp_path: Path, before: bytes, after: bytes
) -> None:
    path = tmp_path / LOG
    path.write_bytes(before)
    log = Log(tmp_path)
    assert path.read_bytes() == after
    log.append({"step": 2})
    log.close()
    assert path.read_bytes() == after + b'{"step":2}\n'


def test_opening_a_long_log_reads_only_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = b'{"step":1}\n'
    (tmp_path / LOG).write_bytes(100_000 * line + b'{"st')
    read: list[int] = []

    def pread(fd: int, length: int, offset: int, pread: Any = os.pread) -> bytes:
        read.append(length)
        content: bytes = pread(fd, length, offset)
        return content

    monkeypatch.setattr(os, "pread", pread)
    Log(tmp_path).close()
    assert (tmp_path / LOG).stat().st_size == 100_000 * len(line)
    assert 0 < sum(read) < 100_000


def test_rows_share_the_names_of_their_values(tmp_path: Path) -> None:
    """A log of many rows would otherwise take several times the memory."""
    (tmp_path / LOG).write_bytes(b'{"step":1}\n{"step":2}\n')
    one, two = (next(iter(row)) for row in read_log(tmp_path))
    assert one is two


def test_rewinding_drops_later_rows_and_what_is_no_row(log: Log, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        log.append({"step": step})
    with log.path.open("ab") as file:
        file.write(b'not JSON\n\0\0\n[]\n{"step":2,"valid":1}\n{"step":5}\n')
        file.write(b'{}\n{"note":"no step"}\n{"step":true}\n{"step":-1}\n')
    log.rewind(2, validated=True)
    kept = [{"step": 1}, {"step": 2}, {"step": 2, "valid": 1}]
    assert [*read_log(tmp_path)] == kept
    log.append({"step": 3})
    assert rows(log) == [*kept, {"step": 3}]
    assert list(tmp_path.iterdir()) == [log.path]


@pytest.mark.parametrize(("logged", "validated"), [(True, False), (False, True)])
def test_rewinding_to_before_a_row_of_the_same_step_drops_that_alone(
    log: Log, logged: bool, validated: bool
) -> None:
    before: list[dict[str, Any]] = [{"step": 1, "valid_nats_per_char": 2.5}, {"step": 1}]
    updates, validation = {"step": 2}, {"step": 2, "valid_nats_per_char": 2.25}
    for row in (*before, updates, validation):
        log.append(row)
    log.rewind(2, logged=logged, validated=validated)
    assert rows(log) == before + [updates] * logged + [validation] * validated


def test_a_rewind_that_fails_leaves_the_log(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append({"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refusing(errno.ENOSPC))
        line = said(lambda: log.rewind(0, validated=True))
    assert line == f"{log.path}: cannot save: No space left on device; free some space"
    log.append({"step": 2})
    assert rows(log) == [{"step": 1}, {"step": 2}]
    assert list(tmp_path.iterdir()) == [log.path]


def test_a_rewind_leaves_no_file_open(log: Log) -> None:
    before = open_files()
    log.rewind(1)
    assert open_files() == before


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / LOG).mkdir()
    assert said(lambda: Log(tmp_path)) == f"{tmp_path / LOG}: cannot write: Is a directory"


#: A valid row on updates.
SOUND = b'{"step": 1, "gradient_norm": 2, "largest_gradient_norm": 2, "clipped_share": 0}'


@pytest.mark.parametrize(
    "line",
    [
        b"{", b"[]", b"{}", b'{"step": "1"}', b'{"step": 1, "gradient_norm": 2}', b"\xff",
        b'{"step": 1, "gradient_norm": null, "largest_gradient_norm": 2, "clipped_share": 0}',
        b'{"step": 2, "gradient_norm": NaN, "largest_gradient_norm": 2, "clipped_share": 0}',
        b'{"step": 2, "gradient_norm": -1, "largest_gradient_norm": 2, "clipped_share": 0}',
        b'{"step": 2, "gradient_norm": 2, "largest_gradient_norm": 2, "clipped_share": -1}',
        b'{"step": 2, "gradient_norm": 2, "clipped_share": 0}',
        b'{"step": -1}', b'{"step": NaN}', b'{"step": 2, "characters": -1}',
        b'{"step": 2, "valid_nats_per_char": 1e39}',
        pytest.param(b'{"step": 1' + b"0" * 400 + b"}", id="beyond floats"),
        pytest.param(SOUND, id="as many updates as before"),
        pytest.param(b"[" * 100_000, id="nested"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_row_of_a_log(tmp_path: Path, line: bytes) -> None:
    run = tmp_path / "two\nlines"
    run.mkdir()
    (run / LOG).write_bytes(SOUND + b"\n" + line + b"\n")
    assert said(lambda: read_log(run)) == (
        f"{tmp_path}/two\\nlines/{LOG}: line 2 is not a row of a run's log: remove the line"
    )


def test_a_log_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / LOG
    path.mkdir()
    assert said(lambda: read_log(tmp_path)) == f"{path}: cannot read: Is a directory"


def test_without_a_log_there_are_no_rows(tmp_path: Path) -> None:
    assert read_log(tmp_path) == ()


def test_a_log_that_never_ends_is_not_read(tmp_path: Path) -> None:
    pipe, device = tmp_path / "pipe", tmp_path / "device"
    for run in (pipe, device):
        run.mkdir()
    os.mkfifo(pipe / LOG)
    (device / LOG).symlink_to("/dev/zero")
    for run in (pipe, device):
        assert said(lambda: read_log(run)) == f"{run / LOG}: cannot read: not a regular file"  # noqa: B023
