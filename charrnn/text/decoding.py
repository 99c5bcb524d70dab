"""Turn bytes into code points: encodings, byte order marks, decoders with a saveable state."""

from __future__ import annotations

import codecs
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.errors import UsageError
from charrnn.wording import shown

#: Code points of consecutive characters: uint8 where all are ASCII (or plain bytes), else uint32.
Codes = NDArray[np.unsignedinteger[Any]]

#: The "encoding" that reads a file's bytes as they are, as 256 symbols.
BYTES = "bytes"

#: A decoder's state: the bytes of an incomplete character, and a codec-specific number.
State = tuple[bytes, int]

#: Byte order marks by the codec's own name. They tell how to decode, and are not text.
_BYTE_ORDER_MARKS: dict[str, tuple[bytes, ...]] = {
    "utf-8": (codecs.BOM_UTF8,),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-16-le": (codecs.BOM_UTF16_LE,),
    "utf-16-be": (codecs.BOM_UTF16_BE,),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-32-le": (codecs.BOM_UTF32_LE,),
    "utf-32-be": (codecs.BOM_UTF32_BE,),
    "gb18030": ("\ufeff".encode("gb18030"),),
}

#: A text that every encoding of plain text gives back when it is decoded byte by byte.
_PROBE = 100 * "a" + "\n"


def text_encoding(name: str, *, or_bytes: bool = True) -> str:
    """Return the codec's own name for an encoding, or ``bytes``.

    ``utf-8-sig`` becomes ``utf-8``: byte order marks are never text here.

    Args:
        name: the encoding, as the user names it.
        or_bytes: whether bytes can be advised in place of an unknown one.

    Raises:
        UsageError: Python has no such codec, or it is not one for plain text
            (``hex``, ``rot13``, ``punycode``, ...).
    """
    if not name:
        raise UsageError("--encoding is empty: name one, or leave it out for utf-8")
    if name.lower() == BYTES:
        return BYTES
    try:
        codec = codecs.lookup(name)
        _PROBE.encode(name)  # a LookupError for codecs that do not map text to bytes
        decoder = codecs.getincrementaldecoder(name)()
        decoded = [decoder.decode(bytes([byte])) for byte in _PROBE.encode(name)]
        if "".join(decoded) + decoder.decode(b"", True) != _PROBE:
            raise LookupError
    except (LookupError, ValueError):  # ValueError: UnicodeError, or a NUL in the name
        instead = (
            "utf-8, another one's name, or bytes" if or_bytes else "utf-8 or another one's name"
        )
        raise UsageError(
            f"--encoding {shown(name)} is not a text encoding that Python knows: use {instead}"
        ) from None
    return "utf-8" if codec.name == "utf-8-sig" else codec.name


def is_own_name(encoding: str) -> bool:
    """Whether a name is the one that ``text_encoding`` returns for its encoding."""
    try:
        return text_encoding(encoding) == encoding
    except UsageError:
        return False


def byte_order_mark(head: bytes, encoding: str) -> bytes:
    """Return the byte order mark at the beginning of a file; empty if it has none."""
    marks = _BYTE_ORDER_MARKS.get(encoding, ())
    return next((mark for mark in marks if head.startswith(mark)), b"")


class Decoder:
    """An incremental decoder from bytes to code points, whose state can be saved.

    Args:
        encoding: as ``text_encoding`` returns it.
        state: the state to continue from; None: the beginning of a file.
    """

    def __init__(self, encoding: str, state: State | None = None) -> None:
        self._is_utf8 = encoding == "utf-8"
        self._incremental: codecs.IncrementalDecoder | None = None
        if encoding != BYTES:
            self._incremental = codecs.getincrementaldecoder(encoding)()
            if state is not None:  # an initial state may differ from (b"", 0): utf-16's does
                self._incremental.setstate(state)

    def state(self) -> State:
        """Return the state from which a new decoder can continue."""
        return (b"", 0) if self._incremental is None else self._incremental.getstate()

    def decode(self, data: bytes, *, final: bool) -> Codes:
        """Return the code points that ``data`` completes; ``final``: no data follows.

        Raises:
            UnicodeError: the bytes are not text in the encoding.
        """
        if self._incremental is None:
            return np.frombuffer(data, np.uint8)
        # ASCII bytes are code points already, unless they follow an incomplete character.
        if self._is_utf8 and data.isascii() and not self._incremental.getstate()[0]:
            return np.frombuffer(data, np.uint8)
        text = self._incremental.decode(data, final)
        if text.isascii():
            return np.frombuffer(text.encode("ascii"), np.uint8)
        return np.frombuffer(text.encode("utf-32-le"), np.dtype("<u4"))
