"""Fetch a classic text, checked by SHA-256: ``python corpora/fetch.py NAME``.

Needs nothing but Python. An interrupted download stays in the same folder as ``NAME.txt.part``
and is resumed the next time; only a complete text of the right size and SHA-256 becomes
``NAME.txt``.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import shlex
import ssl
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

_READ_BYTES = 1 << 16
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Text:
    """A text on the web with known content."""

    name: str
    about: str
    address: str
    size: int
    """In bytes."""
    sha256: str


TEXTS = (
    Text(
        name="tinyshakespeare",
        about="Shakespeare, 40,000 lines from the plays (Karpathy 2015), ASCII",
        address="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        size=1_115_394,
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    Text(
        name="warpeace",
        about="War and Peace, as in Karpathy, Johnson, Fei-Fei 2015, utf-8 with CRLF lines",
        address="https://cs.stanford.edu/people/karpathy/char-rnn/warpeace_input.txt",
        size=3_258_246,
        sha256="fb66ba999dafe24017cdd59e04c56d385a9c8466993d374fd4c6f08b2142985e",
    ),
    Text(
        name="hongloumeng",
        about="Dream of the Red Chamber (Cao Xueqin), Chinese, utf-8",
        address="https://raw.githubusercontent.com/tennessine/corpus/c5ce96aca36c6a3cb4da5f0ff7d2d5fa30c32aea/%E7%BA%A2%E6%A5%BC%E6%A2%A6.txt",
        size=2_522_985,
        sha256="5eca888fb54188d644df70fa555dd3c9cbdd3a8d7b3034fb59f7a81e16f05dc7",
    ),
)


class FetchError(Exception):
    """A text could not be fetched; ``str(error)`` is one line saying why and what to do."""


def fetch(text: Text, folder: Path) -> Path:
    """Download a text into a folder and return its path.

    A text that is already there is not fetched again; an interrupted download is resumed.

    Raises:
        FetchError: no network, no such page, a body of the wrong size or content, a
            folder that cannot be written, or another file under the text's name.
    """
    goal = folder / f"{text.name}.txt"
    part = folder / f"{text.name}.txt.part"
    try:
        if goal.exists():
            if not _is_right(goal, text):
                raise FetchError(f"{goal} is there but another text: move it away")
            return goal
        folder.mkdir(parents=True, exist_ok=True)
        resumed = part.exists()
        _download(text, part)
        if part.stat().st_size < text.size:
            raise FetchError(f"the download of {text.name} broke off: run it again to go on")
        if not _is_right(part, text):
            part.unlink()
            if resumed:
                raise FetchError(
                    f"what there was of {text.name} was another text, and is removed: run it again"
                )
            raise FetchError(
                f"{text.address} no longer holds the text that is meant "
                f"(wrong size or SHA-256): find {text.name} elsewhere"
            )
        part.replace(goal)
    except OSError as error:
        raise FetchError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    return goal


def _download(text: Text, part: Path) -> None:
    """Append to ``part`` what it lacks, as far as the connection lasts.

    Write at most one byte more than the text has: enough to detect a wrong body.

    Raises:
        FetchError: the server cannot be reached, or does not have the text.
    """
    done = part.stat().st_size if part.exists() else 0
    if done >= text.size:
        return
    headers = {"User-Agent": "charrnn-fetch"} | ({"Range": f"bytes={done}-"} if done else {})
    request = urllib.request.Request(text.address, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and done:
            part.unlink()  # the file on the server is shorter than the text
            raise FetchError(
                f"{text.address} no longer holds the text that is meant (it ends after {done:,} "
                f"bytes): find {text.name} elsewhere"
            ) from None
        raise FetchError(f"{text.address} answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLCertVerificationError):
            version = ".".join(map(str, sys.version_info[:2]))
            by_hand = ["curl", "-L", "-o", str(part.with_suffix("")), text.address]
            raise FetchError(
                f"this Python finds no certificate that vouches for {text.address}: on macOS run "
                f"'/Applications/Python {version}/Install Certificates.command', or fetch the text "
                f"with {shlex.join(by_hand)}"
            ) from None
        raise FetchError(
            f"cannot reach {text.address} ({reason}): check the network and run it again"
        ) from None
    with response:
        continues = response.status == http.HTTPStatus.PARTIAL_CONTENT
        with part.open("ab" if continues else "wb") as file:
            while file.tell() <= text.size:
                try:
                    data = response.read(min(_READ_BYTES, text.size + 1 - file.tell()))
                except (OSError, http.client.HTTPException):
                    return  # keep what came; its size shows that more is missing
                if not data:
                    return
                file.write(data)


def _is_right(path: Path, text: Text) -> bool:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return path.stat().st_size == text.size and digest == text.sha256


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="fetch.py", description="Fetch a classic text to train on, checked by SHA-256."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("name", nargs="?", choices=[text.name for text in TEXTS], metavar="NAME")
    what.add_argument("--list", action="store_true", help="show the texts and exit")
    parser.add_argument(
        "--to", type=Path, default=Path(__file__).parent, metavar="DIR", help="default: my folder"
    )
    options = parser.parse_args(arguments)
    if options.list:
        for text in TEXTS:
            print(f"{text.name:16} {text.size / 1e6:5.1f} MB  {text.about}")
        return 0
    (text,) = (text for text in TEXTS if text.name == options.name)
    print(f"fetching {text.name}, {text.size:,} bytes, from {text.address}", file=sys.stderr)
    try:
        print(fetch(text, options.to))
    except FetchError as error:
        print(f"fetch.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fetch.py: stopped; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
