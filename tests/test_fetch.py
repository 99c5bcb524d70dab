from __future__ import annotations

import hashlib
import re
import ssl
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar
from unittest import mock

import pytest

from corpora import fetch as fetch_module
from corpora.fetch import TEXTS, FetchError, Text, fetch, main
from tests.conftest import names

CONTENT = bytes(range(256)) * 700  # more than two reads


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT in the way that the path names, and records the requested ranges."""

    ranges: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        way = self.path.strip("/")
        asked = self.headers["Range"]
        self.ranges.append(asked)
        if way == "missing":
            self.send_error(404)
            return
        start = 0
        if asked and way != "no-ranges":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        body = {"wrong": CONTENT[::-1], "longer": CONTENT + b"more", "shorter": CONTENT[:-1]}.get(
            way, CONTENT
        )[start:]
        if start and not body:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        # "shorter" ends like a whole answer; "breaks" like a lost connection.
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 3] if way == "breaks" else body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.ranges.clear()


def text_at(address: str) -> Text:
    return Text("sample", "a sample", address, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_whole_text_gets_its_name(server: str, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    path = fetch(text_at(f"{server}/whole"), folder)
    assert path == folder / "sample.txt"
    assert path.read_bytes() == CONTENT
    assert names(folder) == ["sample.txt"]


def test_is_fetched_once(server: str, tmp_path: Path) -> None:
    for _ in range(2):
        fetch(text_at(f"{server}/whole"), tmp_path)
    assert len(Handler.ranges) == 1


def test_another_file_of_that_name_is_left_alone(server: str, tmp_path: Path) -> None:
    (tmp_path / "sample.txt").write_text("mine")
    with pytest.raises(FetchError, match="move it away"):
        fetch(text_at(f"{server}/whole"), tmp_path)
    assert (tmp_path / "sample.txt").read_text() == "mine"
    assert Handler.ranges == []


def test_goes_on_where_it_broke_off(server: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="run it again to go on"):
        fetch(text_at(f"{server}/breaks"), tmp_path)
    third = len(CONTENT) // 3
    assert (tmp_path / "sample.txt.part").read_bytes() == CONTENT[:third]
    assert fetch(text_at(f"{server}/whole"), tmp_path).read_bytes() == CONTENT
    assert Handler.ranges == [None, f"bytes={third}-"]
    assert names(tmp_path) == ["sample.txt"]


def test_starts_again_where_the_server_cannot_go_on(server: str, tmp_path: Path) -> None:
    (tmp_path / "sample.txt.part").write_bytes(CONTENT[:100])
    assert fetch(text_at(f"{server}/no-ranges"), tmp_path).read_bytes() == CONTENT


def test_complete_part_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "sample.txt.part").write_bytes(CONTENT)
    assert fetch(text_at("http://127.0.0.1:1/"), tmp_path).read_bytes() == CONTENT


def test_part_of_another_text_is_thrown_away(server: str, tmp_path: Path) -> None:
    (tmp_path / "sample.txt.part").write_bytes(b"x" * 100)
    with pytest.raises(FetchError, match="was another text, and is removed: run it again"):
        fetch(text_at(f"{server}/whole"), tmp_path)
    assert fetch(text_at(f"{server}/whole"), tmp_path).read_bytes() == CONTENT


def test_a_text_that_ends_too_soon_is_not_asked_for_for_ever(server: str, tmp_path: Path) -> None:
    for words in ("run it again", f"ends after {len(CONTENT) - 1:,} bytes", "run it again"):
        with pytest.raises(FetchError, match=words):
            fetch(text_at(f"{server}/shorter"), tmp_path)


@pytest.mark.parametrize(
    ("way", "words", "left"),
    [
        ("wrong", "SHA-256", []),
        ("longer", "wrong size", []),
        ("shorter", "broke off", ["sample.txt.part"]),
        ("missing", "answers 404", []),
    ],
)
def test_what_is_not_the_text_does_not_get_its_name(
    server: str, tmp_path: Path, way: str, words: str, left: list[str]
) -> None:
    with pytest.raises(FetchError, match=words) as error:
        fetch(text_at(f"{server}/{way}"), tmp_path)
    assert str(error.value).isprintable()
    assert names(tmp_path) == left


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="check the network") as error:
        fetch(text_at("http://127.0.0.1:1/"), tmp_path)
    assert str(error.value).isprintable()
    assert names(tmp_path) == []


def test_without_certificates_the_network_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with python.org's Python on a Mac."""
    error = urllib.error.URLError(ssl.SSLCertVerificationError(1, "certificate verify failed"))
    monkeypatch.setattr("urllib.request.urlopen", mock.Mock(side_effect=error))
    text, folder = text_at("https://127.0.0.1/text"), tmp_path / "my texts"
    with pytest.raises(FetchError, match=r"/Install Certificates\.command'") as caught:
        fetch(text, folder)
    assert str(caught.value).endswith(f"curl -L -o '{folder}/sample.txt' https://127.0.0.1/text")
    assert "network" not in str(caught.value)


def test_folder_that_is_a_file(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="cannot write"):
        fetch(text_at(f"{server}/whole"), tmp_path / "file" / "folder")


def test_table_is_well_formed() -> None:
    assert len({text.name for text in TEXTS}) == len(TEXTS)
    for text in TEXTS:
        assert re.fullmatch("[0-9a-f]{64}", text.sha256)
        assert text.address.startswith("https://")
        assert text.address.isascii()


class TestMain:
    def test_fetches(
        self,
        server: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(fetch_module, "TEXTS", (text_at(f"{server}/whole"),))
        assert main(["sample", "--to", str(tmp_path)]) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'sample.txt'}\n"

    def test_fails_in_one_line(
        self,
        server: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(fetch_module, "TEXTS", (text_at(f"{server}/missing"),))
        assert main(["sample", "--to", str(tmp_path)]) == 1
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.splitlines()[1].startswith("fetch.py: http://127.0.0.1")
        assert len(output.err.splitlines()) == 2

    def test_runs_as_a_script(self) -> None:
        script = [sys.executable, str(fetch_module.__file__)]
        listed = subprocess.run([*script, "--list"], capture_output=True, text=True, check=True)
        assert [line.split()[0] for line in listed.stdout.splitlines()] == [t.name for t in TEXTS]
        assert subprocess.run([*script, "nothing"], capture_output=True).returncode == 2
        assert subprocess.run(script, capture_output=True).returncode == 2
