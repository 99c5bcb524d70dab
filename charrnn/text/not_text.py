"""Why a file is not text: where decoding failed, what the file may be, and what to do."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

from charrnn.disk import opened
from charrnn.text.decoding import Codes, Decoder, State, byte_order_mark
from charrnn.text.files import NotTextError
from charrnn.wording import counted, shown

#: Bytes read at a time to count lines.
_BLOCK = 1 << 20
#: The first bytes of files that these programs have compressed.
COMPRESSED = {
    "gzip": b"\x1f\x8b",
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ\0",
    "zstd": b"\x28\xb5\x2f\xfd",
}
#: The first bytes of a zip archive.
ZIP = b"PK\3\4"
#: First bytes of files that hold a text in another form: what they are, and what to do first.
_PACKED = (
    *(
        (magic, f"compressed by {name}", f"unpack it first, with {name} -dc")
        for name, magic in COMPRESSED.items()
    ),
    (ZIP, "a zip archive, as .docx and .epub are", "take the text out of it first"),
    (b"%PDF-", "a PDF", "make text of it first, with pdftotext"),
)

Nameable = Literal["any", "characters", "none"]
"""Which encodings the user may name: any, any but bytes (for a model of characters), or none (for
a text that was read before)."""


def packed(head: bytes) -> tuple[str, str] | None:
    """Return what kind of packed file this is, and how to unpack it; None: it is not packed."""
    return next(((what, how) for magic, what, how in _PACKED if head.startswith(magic)), None)


def undecodable(
    path: Path,
    encoding: str,
    error: UnicodeError,
    *,
    data: bytes,
    state: State,
    offset: int,
    size: int,
    head: bytes,
    nameable: Nameable,
) -> NotTextError:
    """Return the error for a file that could not be decoded.

    Args:
        path: the file.
        encoding: the encoding it was read in.
        error: the decoder's error.
        data: the bytes that the decoder was given.
        state: the decoder's state before ``data``.
        offset: byte offset of ``data`` in the file.
        size: bytes of the file.
        head: the file's first bytes.
        nameable: which encodings the user may name.
    """
    if refusal := _refuse_packed(path, head):
        return refusal
    first = offset - len(state[0])
    if isinstance(error, UnicodeDecodeError) and _is_text_so_far(data, encoding, state):
        start = first + error.start
        flaw = f"ends in the middle of a character of {encoding}, at byte {start:,}"
        cut = f"if it was cut, drop its last {counted(size - start, 'byte')}; else "
        return _advised(path, flaw, cut + _otherwise(nameable), nameable)
    return _not_text(path, encoding, error, first, head, nameable)


def with_nul(
    path: Path, encoding: str, codes: Codes, head: bytes, nameable: Nameable
) -> NotTextError:
    """Return the error for a file that has a NUL among its first characters.

    Args:
        path: the file.
        encoding: the encoding it is read in.
        codes: its first characters.
        head: its first bytes.
        nameable: which encodings the user may name.
    """
    if refusal := _refuse_packed(path, head):
        return refusal
    before = counted(int(codes.argmin()), "character")
    advice = _by_its_mark(head, encoding) or _if_binary(nameable)
    return _advised(path, f"looks binary, with a NUL after {before}", advice, nameable)


def with_swapped_mark(
    path: Path, encoding: str, head: bytes, nameable: Nameable
) -> NotTextError | None:
    """Return the error for a file whose byte order mark tells of the other byte order; else None.

    Its bytes may well be characters in both.
    """
    if encoding.endswith(("-le", "-be")) and (said := _by_its_mark(head, encoding)):
        return _advised(path, f"is not {encoding} text", said, nameable)
    return None


def _advised(path: Path, flaw: str, advice: str, nameable: Nameable) -> NotTextError:
    """Return the error for a file; a text that was read before must be as it was, whatever it is.

    Its run cannot go on with another.
    """
    if nameable == "none":
        advice = "bring the old text back"
    return NotTextError(f"{shown(path)} {flaw}: {advice}")


def _otherwise(nameable: Nameable) -> str:
    """Return what to do about a text in an unknown encoding."""
    bytes_too = " or use --encoding bytes" if nameable == "any" else ""
    return f"name its --encoding (cp1252, gb18030, shift_jis, utf-16, ...){bytes_too}"


def _if_binary(nameable: Nameable) -> str:
    """Return what to do about a file that has NULs."""
    if nameable == "any":
        return "use --encoding bytes, or utf-16-le or utf-16-be if it is that"
    return "if it is text, name its --encoding (utf-16-le, utf-16-be, ...)"


def _refuse_packed(path: Path, head: bytes) -> NotTextError | None:
    """Return the error for a file that holds its text in another form; None: it is not one."""
    said = packed(head)
    return said and NotTextError(f"{shown(path)} is {said[0]}: {said[1]}")


def _is_text_so_far(data: bytes, encoding: str, state: State) -> bool:
    """Whether bytes are text, apart from an incomplete last character."""
    try:
        Decoder(encoding, state).decode(data, final=False)
    except UnicodeError:
        return False
    return True


def _not_text(
    path: Path, encoding: str, error: UnicodeError, offset: int, head: bytes, nameable: Nameable
) -> NotTextError:
    """Say where decoding failed; ``offset`` is that of the first byte the decoder was given."""
    where = why = ""
    is_binary = False
    if isinstance(error, UnicodeDecodeError):
        where, why = f" at byte {offset + error.start:,}", f" ({error.reason})"
        # Only the first block, as for files that can be decoded.
        is_binary = offset == 0 and b"\0" in error.object and _has_lines(encoding)
        if not is_binary:
            where += _in_line(path, offset + error.start, encoding)
    advice = _otherwise(nameable)
    if said := _by_its_mark(head, encoding):
        advice = said
    elif is_binary:
        advice = f"it looks binary, with NULs: {_if_binary(nameable)}"
    elif encoding == "utf-8" and isinstance(error, UnicodeDecodeError) and _has_utf_8(error):
        advice = (
            "up to there it is, so it may be damaged, and iconv -c -f utf-8 -t utf-8 <FILE >NEW "
            f"drops such bytes; else {advice}"
        )
    elif encoding in ("utf-16", "utf-32") and not byte_order_mark(head, encoding):
        why = " (no byte order mark)"
        or_bytes = ", or bytes" if nameable == "any" else ""
        advice = f"use --encoding {encoding}-le or {encoding}-be, or another one's name{or_bytes}"
    return _advised(path, f"is not {encoding} text{where}{why}", advice, nameable)


def _has_lines(encoding: str) -> bool:
    """Whether a line feed is the byte that it is in ASCII; in utf-16 and utf-32 it is not."""
    return "\n".encode(encoding) == b"\n"


def _in_line(path: Path, offset: int, encoding: str) -> str:
    """Return in which line a byte is, for an editor; "" in the first one, or if none can tell."""
    if not _has_lines(encoding):
        return ""
    line, left = 1, offset
    with suppress(OSError), opened(path) as stream:
        while left and (data := stream.read(min(left, _BLOCK))):
            line, left = line + data.count(b"\n"), left - len(data)
    return f", in line {line:,}" if line > 1 and not left else ""


def _has_utf_8(error: UnicodeDecodeError) -> bool:
    """Whether too many multi-byte characters precede the error to be there by chance.

    Text in another encoding may look like a few of them.
    """
    return sum(byte >= 0xC0 for byte in error.object[: error.start]) >= 10


def _by_its_mark(head: bytes, encoding: str) -> str | None:
    """Return what to do where the byte order mark is another encoding's; None: it is not."""
    for name in ("utf-32", "utf-16"):  # in this order: utf-32's mark begins with utf-16's
        if mark := byte_order_mark(head, name):
            is_another = mark != byte_order_mark(head, encoding)
            advice = f"its first bytes are a mark of {name}: use --encoding {name}"
            return advice if is_another else None
    return None
