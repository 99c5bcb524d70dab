from __future__ import annotations

import bz2
import codecs
import encodings.aliases
import errno
import gzip
import hashlib
import io
import lzma
import os
import random
import re
import stat
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.errors import CorpusError, UsageError
from charrnn.text.corpus import Corpus, TextFile, split
from charrnn.text.decoding import text_encoding
from charrnn.text.not_text import Nameable
from charrnn.text.scanning import scan
from tests.conftest import assert_one_line, text_of, write

# Characters of one to four bytes in utf-8, CRLF, lone CR, a combining mark, plane 16.
MIXED = "plain\r\nnaïve — 紅樓夢\n\U0001f600 e\u0301 \U0010fffd\rß" * 3
# Several scripts: iso2022_jp switches between them by escape sequences.
JAPANESE = "abcひらがなカタカナ漢字 and ASCII\n吾輩は猫である。\r\n" * 3

TEXTS = [
    ("utf-8", MIXED),
    ("utf-16", MIXED),
    ("utf-16-le", MIXED),
    ("utf-16-be", MIXED),
    ("utf-32", MIXED),
    ("utf-7", MIXED),
    ("latin-1", "naïve café\r\n£100\xff" * 5),
    ("cp1252", "“naïve” — €5\n" * 5),
    ("gb18030", MIXED),
    ("gbk", "紅樓夢 abc\n賈寶玉" * 5),
    ("hz", "abc 红楼梦 def\n" * 5),
    ("shift_jis", JAPANESE),
    ("euc_jp", JAPANESE),
    ("iso2022_jp", JAPANESE),
    ("iso2022_jp_2", JAPANESE),
    ("cp037", "EBCDIC text\n" * 5),
    ("big5hkscs", "a\u00ca\u0304" * 15),  # two bytes that only together are two characters
]
IDS = [encoding for encoding, _ in TEXTS]


class TestDecoding:
    @pytest.mark.parametrize(("encoding", "text"), TEXTS, ids=IDS)
    @pytest.mark.parametrize("block_bytes", [1, 2, 3, 5, 17, 1 << 18])
    def test_blocks_give_what_decoding_at_once_gives(
        self, tmp_path: Path, encoding: str, text: str, block_bytes: int
    ) -> None:
        name = write(tmp_path / "text", text, encoding)
        corpus = scan([name], encoding, block_bytes=block_bytes)
        assert corpus.characters == len(text)
        assert corpus.counts == Counter(map(ord, text))
        assert text_of(corpus.whole) == text
        for start in range(0, len(text), 7):
            assert text_of(corpus.whole, start, block_bytes=3) == text[start:]

    @settings(max_examples=150)
    @given(
        text=st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"])),
        encoding=st.sampled_from(["utf-8", "utf-16", "utf-32", "utf-7", "gb18030"]),
        block_bytes=st.integers(1, 9),
        read_bytes=st.integers(1, 9),
        data=st.data(),
    )
    def test_any_text_in_any_blocks(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        text: str,
        encoding: str,
        block_bytes: int,
        read_bytes: int,
        data: st.DataObject,
    ) -> None:
        text += "."
        name = write(tmp_path_factory.getbasetemp() / "any-text", text, encoding)
        corpus = scan([name], encoding, block_bytes=block_bytes)
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, len(text)))
        part = corpus.part(start, stop)
        assert text_of(part, block_bytes=read_bytes) == text[start:stop]
        assert part.counts == Counter(map(ord, text[start:stop]))
        if encoding == "utf-8":
            assert part.encoded_size() == len(text[start:stop].encode())

    @settings(max_examples=100)
    @given(content=st.binary(min_size=1), block_bytes=st.integers(1, 9))
    def test_bytes_take_anything(
        self, tmp_path_factory: pytest.TempPathFactory, content: bytes, block_bytes: int
    ) -> None:
        name = write(tmp_path_factory.getbasetemp() / "any-bytes", content)
        corpus = scan([name], "bytes", block_bytes=block_bytes)
        codes = list(corpus.whole.codes(block_bytes=4))
        assert all(block.dtype == np.uint8 for block in codes)
        assert b"".join(block.tobytes() for block in codes) == content
        assert corpus.counts == Counter(content)
        assert corpus.whole.encoded_size() == corpus.characters == len(content)

    @settings(max_examples=300)
    @given(content=st.binary(), block_bytes=st.integers(1, 9))
    def test_any_bytes_give_a_text_or_one_line(
        self, tmp_path_factory: pytest.TempPathFactory, content: bytes, block_bytes: int
    ) -> None:
        name = write(tmp_path_factory.getbasetemp() / "any-content", content)
        try:
            expected = content.removeprefix(codecs.BOM_UTF8).decode()
        except UnicodeDecodeError:
            expected = ""
        try:
            corpus = scan([name], block_bytes=block_bytes)
        except CorpusError as error:
            assert str(error).isprintable()
            assert not expected or "\0" in expected
        else:
            assert text_of(corpus.whole) == expected

    @pytest.mark.parametrize("block_bytes", [1, 3, 5, 1 << 18])
    def test_the_end_of_a_file_ends_a_character(self, tmp_path: Path, block_bytes: int) -> None:
        # In utf-7 the base64 ends at "-", at any byte outside base64 or, here, with the file.
        name = write(tmp_path / "text", b"na+AO8-ve+AN8")
        corpus = scan([name], "utf-7", block_bytes=block_bytes)
        assert text_of(corpus.whole) == "naïveß"
        assert text_of(corpus.whole, 2, block_bytes=3) == "ïveß"

    @pytest.mark.parametrize(("encoding", "mark"), [("utf-8", 3), ("bytes", 0)])
    def test_one_byte_each_needs_no_reading_up_to_the_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, mark: int
    ) -> None:
        name = write(tmp_path / "text", codecs.BOM_UTF8 + b"abcdefg\n" * 20)
        corpus = scan([name], encoding, block_bytes=64)
        offsets: list[int] = []
        read = TextFile.read

        def watched(file: TextFile, offset: int, count: int) -> bytes:
            offsets.append(offset)
            return read(file, offset, count)

        monkeypatch.setattr(TextFile, "read", watched)
        next(corpus.whole.codes(77))
        assert offsets == [mark + 77]

    def test_blocks_of_ascii_are_uint8_and_others_uint32(self, tmp_path: Path) -> None:
        name = write(tmp_path / "text", "abc" * 4 + "紅樓" * 4 + "abc" * 4)
        types = [codes.dtype for codes in scan([name]).whole.codes(block_bytes=12)]
        assert types == [np.uint8, np.uint32, np.uint32, np.uint8]

    @pytest.mark.parametrize(
        ("encoding", "mark"),
        [
            ("utf-8", codecs.BOM_UTF8),
            ("utf-8-sig", codecs.BOM_UTF8),
            ("utf-16", codecs.BOM_UTF16_LE),
            ("utf-16", codecs.BOM_UTF16_BE),
            ("utf-16-le", codecs.BOM_UTF16_LE),
            ("utf-16-be", codecs.BOM_UTF16_BE),
            ("utf-32", codecs.BOM_UTF32_BE),
            ("utf-32-le", codecs.BOM_UTF32_LE),
            ("gb18030", b"\x84\x31\x95\x33"),
        ],
    )
    @pytest.mark.parametrize("block_bytes", [1, 4, 100])
    def test_byte_order_mark_is_left_out_and_told(
        self, tmp_path: Path, encoding: str, mark: bytes, block_bytes: int
    ) -> None:
        # The codec that writes no mark itself, in the byte order that the mark announces.
        big = mark in (codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
        plain = {"utf-16": "utf-16-be" if big else "utf-16-le", "utf-32": "utf-32-be"}
        codec = plain.get(encoding, encoding.removesuffix("-sig"))
        content = MIXED.encode(codec)
        name = write(tmp_path / "text", mark + content)
        corpus = scan([name], encoding, block_bytes=block_bytes)
        assert text_of(corpus.whole) == MIXED
        assert text_of(corpus.whole, 11) == MIXED[11:]
        assert corpus.whole.encoded_size() == len(content)
        assert corpus.part(0, 2).encoded_size() == len(MIXED[:2].encode(codec))
        (note,) = corpus.notes
        assert "byte order mark" in note

    def test_utf_7_may_end_without_its_last_sign(self, tmp_path: Path) -> None:
        corpus = scan([write(tmp_path / "text", b"na+AO8A3w")], "utf-7")
        assert text_of(corpus.whole) == "na\u00ef\u00df"
        for cut in range(1, 4):
            parts = corpus.part(0, cut), corpus.part(cut, 4)
            assert sum(part.encoded_size() for part in parts) == 9
        with pytest.raises(CorpusError, match="is not utf-7 text"):
            scan([write(tmp_path / "lone", b"x+2AAAYQ")], "utf-7")

    def test_a_text_whose_counts_do_not_add_up_any_more_has_changed(self, tmp_path: Path) -> None:
        """Nothing else shows it: the size and the times are the same."""
        path = tmp_path / "text"
        corpus = scan([write(path, b"ab" * 2000)])
        times = path.stat()
        path.write_bytes(b"ab" * 1996 + b"Z" * 8)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(CorpusError, match="changed"):
            _ = corpus.part(0, 3600).counts

    def test_where_files_meet_a_mark_is_none_of_the_text_s(self, tmp_path: Path) -> None:
        """Files joined beforehand are another text, with a mark in it."""
        mark = codecs.BOM_UTF8
        apart = scan([write(tmp_path / "a", mark + b"ab"), write(tmp_path / "b", mark + b"cd")])
        whole = scan([write(tmp_path / "whole", mark + b"ab" + mark + b"cd")])
        assert (text_of(apart.whole), text_of(whole.whole)) == ("abcd", "ab\ufeffcd")
        assert apart.fingerprint != whole.fingerprint
        first = scan([write(tmp_path / "c", mark + b"ab"), write(tmp_path / "d", b"cd")])
        same = scan([write(tmp_path / "e", mark + b"abcd")])
        assert first.fingerprint == same.fingerprint

    @pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
    def test_an_empty_file_before_the_text_is_nothing(self, tmp_path: Path, mark: bytes) -> None:
        empty = [write(tmp_path / name, "") for name in ("a", "b")]
        text = [write(tmp_path / "c", mark + b"ab"), write(tmp_path / "d", mark + b"cd")]
        alone, after = scan(text), scan([*empty, *text])
        assert after.fingerprint == alone.fingerprint
        assert [file.digest for file in after.files[2:]] == [file.digest for file in alone.files]

    def test_a_file_that_does_not_tell_its_size_is_not_called_empty(self, tmp_path: Path) -> None:
        file = Path("/proc/version")
        if not file.exists():
            pytest.skip("no /proc")
        with pytest.raises(CorpusError) as error:
            scan([str(file)])
        assert_one_line(error, "/proc/version has no known size", "name a copy")
        write(tmp_path / "text", "abc")
        (tmp_path / "version").symlink_to(file)
        assert scan([str(tmp_path)]).notes == (f"{tmp_path}/version: left out (of no known size)",)

    def test_a_nul_beyond_the_first_block_is_a_character(self, tmp_path: Path) -> None:
        text = "abcdefg\n\0hij"
        corpus = scan([write(tmp_path / "text", text)], block_bytes=8)
        assert text_of(corpus.whole) == text

    def test_mark_is_text_only_within(self, tmp_path: Path) -> None:
        text = "a\ufeffb"
        corpus = scan([write(tmp_path / "text", text)])
        assert text_of(corpus.whole) == text
        assert corpus.notes == ()


class Short(io.FileIO):
    """A file whose reads return at most 5 bytes, however many are asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(5 if size is None or size < 0 else min(size, 5))


def test_a_file_that_gives_less_than_asked_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write(tmp_path / "text", MIXED)
    whole = scan([name])
    monkeypatch.setattr("charrnn.disk.io", SimpleNamespace(FileIO=Short))
    corpus = scan([name])
    assert corpus.fingerprint == whole.fingerprint
    for found in (corpus, whole):
        assert text_of(found.part(7, 70)) == MIXED[7:70]
        assert b"".join(found.part(7, 70).encoded()) == MIXED[7:70].encode()


class TestEncodingNames:
    @pytest.mark.parametrize(
        ("name", "own"),
        [
            ("UTF8", "utf-8"),
            ("utf-8-sig", "utf-8"),
            ("Latin-1", "iso8859-1"),
            ("BYTES", "bytes"),
            ("ascii", "ascii"),
            ("sjis", "shift_jis"),
            ("utf-16", "utf-16"),
        ],
    )
    def test_becomes_the_codecs_own(self, name: str, own: str) -> None:
        assert text_encoding(name) == own

    def test_a_codecs_own_name_is_its_own(self) -> None:
        kept = 0
        for name in sorted(set(encodings.aliases.aliases.values())):
            try:
                own = text_encoding(name)
            except UsageError:
                continue
            assert text_encoding(own) == own
            kept += 1
        assert kept > 80

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "klingon",
            "utf\0-8",
            "hex",
            "rot13",
            "base64",
            "idna",
            "punycode",
            "undefined",
            "\udcff",
        ],
    )
    def test_what_is_no_text_encoding_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageError) as error:
            scan([write(tmp_path / "text", "abc")], name)
        assert_one_line(error, "--encoding", "utf-8")


@pytest.mark.parametrize(
    ("before", "damaged"), [("sch\u00f6n " * 10, True), ("sch\u00f6n " * 9, False), ("", False)]
)
def test_one_damaged_byte_of_a_text_in_utf_8(tmp_path: Path, before: str, damaged: bool) -> None:
    """After ten characters beyond ASCII that are valid utf-8, the text is called damaged.

    Fewer may be another encoding's that happen to look like utf-8.
    """
    path = tmp_path / "a text"
    path.write_bytes(100 * b"ab " + before.encode() + b"\x96 end")
    with pytest.raises(CorpusError) as error:
        scan([str(path)])
    at = f"a text is not utf-8 text at byte {300 + len(before.encode()):,} (invalid start byte): "
    advice = "name its --encoding (cp1252, gb18030, shift_jis, utf-16, ...) or use --encoding bytes"
    if damaged:
        drop = "iconv -c -f utf-8 -t utf-8 <FILE >NEW"
        advice = (
            f"up to there it is, so it may be damaged, and {drop} drops such bytes; else {advice}"
        )
    assert str(error.value).endswith(at + advice)


class TestManyFiles:
    def files(self, tmp_path: Path) -> tuple[list[str], str]:
        pieces = [MIXED[:20], "", "紅", MIXED, "a", ""]
        names = [write(tmp_path / f"{i}.txt", piece) for i, piece in enumerate(pieces)]
        return names, "".join(pieces)

    @pytest.mark.parametrize("block_bytes", [1, 4, 100])
    def test_are_joined_in_order_with_nothing_between(
        self, tmp_path: Path, block_bytes: int
    ) -> None:
        names, text = self.files(tmp_path)
        corpus = scan(names, block_bytes=block_bytes)
        assert len(corpus.files) == len(names)
        assert corpus.characters == len(text)
        assert corpus.whole.encoded_size() == len(text.encode())
        for start in range(len(text) + 1):
            assert text_of(corpus.whole, start, block_bytes=5) == text[start:]

    def test_stretches_over_borders(self, tmp_path: Path) -> None:
        names, text = self.files(tmp_path)
        corpus = scan(names, block_bytes=4)
        chance = random.Random(5)
        for _ in range(100):
            start, stop = sorted(chance.choices(range(len(text) + 1), k=2))
            part = corpus.part(start, stop)
            assert text_of(part) == text[start:stop]
            assert part.characters == stop - start
            assert text_of(part.first(4)) == text[start:stop][:4]
            assert text_of(part.last(4)) == text[start:stop][-4:]
            if part.characters:
                assert text_of(part.predicted) == text[start + 1 : stop]
            assert part.encoded_size() == len(text[start:stop].encode())
            assert b"".join(part.encoded(block_bytes=3)) == text[start:stop].encode()
            assert part.counts == Counter(map(ord, text[start:stop]))

    def test_fingerprint_is_the_hash_of_the_content(self, tmp_path: Path) -> None:
        names, text = self.files(tmp_path)
        expected = hashlib.sha256(text.encode()).hexdigest()
        assert scan(names, block_bytes=3).fingerprint == expected
        assert scan([write(tmp_path / "joined", text)]).fingerprint == expected
        marked = codecs.BOM_UTF8 + b"abc"
        corpus = scan([write(tmp_path / "marked", marked)])
        assert corpus.fingerprint == hashlib.sha256(marked).hexdigest()

    def test_escape_sequence_across_parts(self, tmp_path: Path) -> None:
        # In a stateful encoding an escape sequence counts with the character that follows it,
        # and one at the end with the last character.
        content = "ab漢字cd漢".encode("iso2022_jp")
        corpus = scan([write(tmp_path / "text", content)], "iso2022_jp", block_bytes=3)
        sizes = [corpus.part(i, i + 1).encoded_size() for i in range(7)]
        assert sizes == [1, 1, 3 + 2, 2, 3 + 1, 1, 3 + 2 + 3]
        assert sum(sizes) == len(content)
        for i in range(7):
            encoded = b"".join(corpus.part(i, 7).encoded(block_bytes=2))
            assert encoded == content[sum(sizes[:i]) :]

    @pytest.mark.parametrize(("encoding", "text"), TEXTS, ids=IDS)
    def test_bytes_of_parts_add_up(self, tmp_path: Path, encoding: str, text: str) -> None:
        corpus = scan([write(tmp_path / "text", text, encoding)], encoding, block_bytes=11)
        for cut in range(len(text) + 1):
            left, right = corpus.part(0, cut), corpus.part(cut, len(text))
            assert left.encoded_size() + right.encoded_size() == corpus.whole.encoded_size()

    def test_the_same_stretch_in_another_encoding(self, tmp_path: Path) -> None:
        name = write(tmp_path / "text", "aé漢" * 4)
        other = write(tmp_path / "other", "aé漢" * 5)
        characters, as_bytes, longer = scan([name]), scan([name], "bytes"), scan([other])
        part = characters.part(3, 6)
        assert part.is_same_as(characters.part(3, 6))
        assert part.is_same_as(as_bytes.part(6, 12))
        assert as_bytes.part(6, 12).is_same_as(part)
        for unlike in (
            characters.part(3, 7),
            as_bytes.part(3, 6),
            as_bytes.part(6, 13),
            longer.part(3, 6),
        ):
            assert not part.is_same_as(unlike)

    def test_no_such_stretch(self, tmp_path: Path) -> None:
        corpus = scan([write(tmp_path / "text", "abc")])
        for start, stop in ((-1, 2), (2, 1), (0, 4)):
            with pytest.raises(ValueError, match="no stretch"):
                corpus.part(start, stop)


class TestSplit:
    @pytest.mark.parametrize(
        ("size", "valid_share", "test_share", "borders"),
        [
            (1000, 0.1, 0.1, (800, 900)),
            (1000, 0.1, 0.2, (700, 800)),  # 1 - 0.1 - 0.2 = 0.7000000000000001 in binary
            (1000, 0.3, 0.4, (300, 600)),
            (1000, 0.07, 0.0, (930, 1000)),
            (1000, 0.0, 0.0, (1000, 1000)),
            (1000, 0.0, 0.25, (750, 750)),
            (1000, 1e-3, 2e-3, (997, 998)),
            # As in the literature: tinyshakespeare and enwik8.
            (1_115_394, 0.1, 0.0, (1_003_854, 1_115_394)),
            (100_000_000, 0.05, 0.05, (90_000_000, 95_000_000)),
        ],
    )
    def test_borders(
        self, size: int, valid_share: float, test_share: float, borders: tuple[int, int]
    ) -> None:
        """Splitting does not read the text."""
        train, valid, test = split(Corpus((), "bytes", size, "", (), {}), valid_share, test_share)
        assert (train.start, train.stop) == (0, borders[0])
        for part, start, stop in ((valid, *borders), (test, borders[1], size)):
            if stop - start < 2:
                assert part is None
            else:
                assert part is not None
                assert (part.start, part.stop) == (start, stop)

    def test_is_of_characters_not_bytes(self, tmp_path: Path) -> None:
        corpus = scan([write(tmp_path / "text", "紅" * 50 + "a" * 50)])
        train, valid, _ = split(corpus, 0.5)
        assert valid is not None
        assert train.counts == {ord("紅"): 50}
        assert valid.counts == {ord("a"): 50}
        assert (train.encoded_size(), valid.encoded_size()) == (150, 50)


class TestUnreadable:
    """Patched system calls refuse, not permissions, because tests often run as root."""

    def close(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stated = Path.stat

        def open_(name: str, flags: int) -> int:
            if Path(name).name == "closed.txt":
                raise PermissionError(13, "Permission denied", name)
            return os.open(name, flags)

        def stat_(path: Path, **options: Any) -> os.stat_result:
            if path.parent.name == "no-entry":
                raise PermissionError(13, "Permission denied", str(path))
            return stated(path, **options)

        monkeypatch.setattr("charrnn.disk.without_waiting", open_)
        monkeypatch.setattr(Path, "stat", stat_)

    def test_is_an_error_by_name_and_a_note_in_a_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = write(tmp_path / "closed.txt", "abc")
        write(tmp_path / "no-entry" / "x", "abc")
        write(tmp_path / "open.txt", "xyz")
        self.close(monkeypatch)
        with pytest.raises(CorpusError) as error:
            scan([name])
        assert_one_line(error, "closed.txt may not be read", "permissions")
        corpus = scan([str(tmp_path)])
        assert text_of(corpus.whole) == "xyz"
        assert len(corpus.notes) == 2
        assert all(note.endswith(": left out (may not be read)") for note in corpus.notes)

    def test_each_file_that_is_left_out_has_its_own_reason(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "a.bin", "a\0b")
        refused = {"b": errno.ENOENT, "c": errno.EACCES, "d": errno.EIO}
        for name in (*refused, "open.txt"):
            write(tmp_path / name, "xyz")

        def open_(name: str, flags: int) -> int:
            if number := refused.get(Path(name).name):
                raise OSError(number, os.strerror(number), name)
            return os.open(name, flags)

        monkeypatch.setattr("charrnn.disk.without_waiting", open_)
        assert scan([str(tmp_path)]).notes == tuple(
            f"{tmp_path / name}: left out ({why})"
            for name, why in (
                ("a.bin", "not utf-8 text"),
                ("b", "gone"),
                ("c", "may not be read"),
                ("d", "cannot be read: Input/output error"),
            )
        )


class TestRefused:
    @pytest.mark.parametrize(
        ("content", "encoding", "words"),
        [
            (b"", "utf-8", ("no text in", "empty")),
            (codecs.BOM_UTF8, "utf-8", ("no text in", "empty")),
            (b"", "bytes", ("no text in", "empty")),
            (b"ELF\0\1\2", "utf-8", ("binary, with a NUL after 3 char", "--encoding bytes")),
            ("abc".encode("utf-16-le"), "utf-8", ("binary", "utf-16-le or utf-16-be")),
            (
                "abc".encode("utf-16-le"),
                "utf-16",
                ("not utf-16 text", "(no byte order mark)", "utf-16-le or utf-16-be"),
            ),
            ("abc".encode("utf-32-be"), "utf-32", ("no byte order mark", "utf-32-be")),
            (
                b"abc\xe9def",
                "utf-8",
                ("not utf-8", "at byte 3 (inv", "name its --encoding", "bytes"),
            ),
            (b"x" * 1234 + b"\xff", "utf-8", ("at byte 1,234 (inv",)),
            (b"a\r\nb\n\xff\n", "utf-8", ("at byte 5, in line 3 (invalid start byte): name",)),
            (b"a\nb\xff", "shift_jis", ("not shift_jis text at byte 3, in line 2",)),
            ("\ud800\n".encode("utf-16", "surrogatepass"), "utf-16", ("at byte 2 (", "name its")),
            (b"\x89PNG\r\n\x1a\n\0", "utf-8", ("at byte 0 (inv", "binary, with NULs: use --enc")),
            ("é\nö".encode("utf-16-le"), "utf-8", ("byte 0", "NULs", "utf-16-le or utf-16-be")),
            (b"\xff\xfe\0\xd8a\0", "utf-16", ("not utf-16 text at byte 2", "name its --encoding")),
            ("naïve".encode("utf-16"), "utf-8", ("at byte 0", "--encoding utf-16")),
            ("naïve".encode("utf-32"), "utf-8", ("at byte 0", "--encoding utf-32")),
            ("naïve".encode("utf-32"), "utf-16", ("with a NUL after", "use --encoding utf-32")),
            ("\U0001d800".encode("utf-32"), "utf-16", ("not utf-16", "use --encoding utf-32")),
            (b"\xff\xfe\xd8\0\0a", "utf-16-be", ("not utf-16-be", "use --encoding utf-16")),
            ("naïve".encode("utf-16"), "utf-16-be", ("not utf-16-be text: its first bytes", "16")),
            (b"\xfe\xff\0a\0b", "utf-16-le", ("not utf-16-le text: its first bytes", "16")),
            ("紅".encode()[:2], "utf-8", ("middle of a character of utf-8, at byte 0",)),
            (b"x" * 1234 + b"\xe7", "utf-8", ("middle of a character of utf-8, at byte 1,234",)),
            ("ab紅樓".encode()[:-1], "utf-8", ("at byte 5", "its last 2 bytes; else name its")),
            (b"caf\xe9", "utf-8", ("at byte 3: if it was cut, drop its last 1 byte; else name",)),
            ("a漢".encode("shift_jis")[:-1], "shift_jis", ("at byte 1", "its last 1 byte")),
            (b"caf\xe9\xff", "utf-8", ("not utf-8", "at byte 3")),
            ("ab".encode("utf-16") + b"c", "utf-16", ("at byte 6", "name its --encoding")),
            (
                gzip.compress(b"abc", mtime=0),
                "utf-8",
                ("is compressed by gzip: unpack", "gzip -dc"),
            ),
            (bz2.compress(b"abc"), "utf-8", ("is compressed by bzip2: unpack", "bzip2 -dc")),
            (lzma.compress(b"abc"), "cp1252", ("is compressed by xz: unpack", "xz -dc")),
            (b"\x28\xb5\x2f\xfd\x04", "utf-8", ("is compressed by zstd: unpack", "zstd -dc")),
            (b"PK\3\4\x14\0\0\0\xff", "utf-8", ("is a zip archive, as .docx",)),
            (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "utf-8", ("is a PDF: make text of it", "pdftotext")),
            (b"caf\xe9", "ascii", ("not ascii", "at byte 3")),
            ("ab漢".encode("shift_jis") + b"\xfd\xfd", "shift_jis", ("at byte 4",)),
            ("ab漢".encode("gb18030") + b"\xff\xff", "gb18030", ("at byte 4",)),
            (b"\x1b$B\x30", "iso2022_jp", ("middle of a character of iso2022_jp", "at byte")),
            (b"a\\ud800b", "unicode_escape", ("not unicode-escape",)),
        ],
    )
    @pytest.mark.parametrize("block_bytes", [1, 3, 1 << 18])
    def test_in_one_line(
        self,
        tmp_path: Path,
        content: bytes,
        encoding: str,
        words: tuple[str, ...],
        block_bytes: int,
    ) -> None:
        name = write(tmp_path / "file.txt", content)
        if b"\0" in content and encoding in ("utf-8", "cp1252", "utf-16"):
            block_bytes = 1 << 18  # only the first block is searched for NUL
        with pytest.raises(CorpusError) as error:
            scan([name], encoding, block_bytes=block_bytes)
        assert_one_line(error, *words, "file.txt")

    @pytest.mark.parametrize(
        ("content", "encoding"),
        [
            (b"abc\xe9def", "utf-8"),
            (b"abc\xe9", "utf-8"),
            (b"ELF\0\1\2", "utf-8"),
            (b"\x89PNG\r\n\x1a\n\0", "utf-8"),
            ("é".encode() * 10 + b"\xffa", "utf-8"),
            ("abc".encode("utf-16-le"), "utf-16"),
            ("abc".encode("utf-16"), "utf-16-be"),
        ],
    )
    def test_with_advice_that_the_user_can_follow(
        self, tmp_path: Path, content: bytes, encoding: str
    ) -> None:
        """A model of characters takes no bytes; a text that was read before only its encoding."""
        name = write(tmp_path / "file.txt", content)
        said = {}
        for nameable in get_args(Nameable):
            with pytest.raises(CorpusError) as error:
                scan([name], encoding, nameable)
            said[nameable] = str(error.value)
        assert "--encoding" in said["any"] and "--encoding" in said["characters"]
        as_bytes = re.compile("(--encoding|or) bytes")
        assert bool(as_bytes.search(said["any"])) == (encoding != "utf-16-be")
        assert not as_bytes.search(said["characters"])
        assert said["none"].endswith(": bring the old text back")

    def test_what_begins_as_a_packed_file_may_be_text(self, tmp_path: Path) -> None:
        name = write(tmp_path / "file.txt", "BZh%PDF-1.7")
        assert text_of((corpus := scan([name])).whole) == "BZh%PDF-1.7"
        assert corpus.notes == ()

    def test_packed_files_are_bytes_with_a_note(self, tmp_path: Path) -> None:
        names = [write(tmp_path / name, gzip.compress(b"abc")) for name in ("a", "b")]
        names.append(write(tmp_path / "c", "abc"))
        (note,) = scan(names, "bytes").notes
        assert note == f"2 files, {names[0]}, {names[1]}: compressed by gzip, and read as it is"

    def test_empty_file_among_others_does_no_harm(self, tmp_path: Path) -> None:
        names = [write(tmp_path / "empty", ""), write(tmp_path / "full", "abc")]
        corpus = scan(names)
        assert text_of(corpus.whole) == "abc"
        assert corpus.notes == ()

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "bytes"])
    def test_files_that_run_into_the_next_are_named(self, tmp_path: Path, encoding: str) -> None:
        texts = ("roses are red", "", "a line\n", "a page\f", "a\r", "violets", "are blue", "")
        codec = "utf-8" if encoding == "bytes" else encoding
        names = [write(tmp_path / str(n), text, codec) for n, text in enumerate(texts)]
        notes = scan(names, encoding, block_bytes=4).notes
        said = [note for note in notes if "line break" in note]
        run_on = (
            f"2 files, {names[0]}, {names[5]}: no line break at its end, so it runs into the next"
        )
        assert said == ([run_on] if encoding != "bytes" else [])
        assert not any("line break" in note for note in scan(names[:1], encoding).notes)

    def test_in_a_folder_left_out_with_a_note(self, tmp_path: Path) -> None:
        write(tmp_path / "a.txt", "abc")
        write(tmp_path / "b.png", b"\x89PNG\0\0")
        write(tmp_path / "c.txt", "naïve".encode("latin-1"))
        write(tmp_path / "d.txt", "déf")
        for texts in ([str(tmp_path)], [f"{tmp_path}/*"]):
            corpus = scan(texts)
            assert text_of(corpus.whole) == "abcdéf"
            assert corpus.counts == Counter(map(ord, "abcdéf"))
            assert corpus.fingerprint == hashlib.sha256("abcdéf".encode()).hexdigest()
            note, unended = corpus.notes
            assert "2 files" in note
            assert "b.png" in note
            assert unended.startswith(f"{tmp_path / 'a.txt'}: no line break at its end")
        with pytest.raises(CorpusError, match="not utf-8"):
            scan([str(tmp_path), str(tmp_path / "b.png")])

    @pytest.mark.parametrize(("number", "said"), [(3, "a, b, c: it"), (4, "a, b, c, ...: it")])
    def test_the_first_few_names_without_text_are_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        names = [write(Path(name), "") for name in "abcd"[:number]]
        with pytest.raises(CorpusError, match=f"^no text in {said} is empty$"):
            scan(names)

    def test_folder_without_text(self, tmp_path: Path) -> None:
        with pytest.raises(CorpusError) as error:
            scan([str(tmp_path)])
        assert_one_line(error, "no text in", str(tmp_path), "it is empty, hidden files aside")
        write(tmp_path / "b.png", b"\x89PNG\0\0")
        with pytest.raises(CorpusError) as error:
            scan([str(tmp_path)])
        assert_one_line(error, "no text in", "can be read as utf-8 text; ", "b.png")


class TestChangedSinceTheScan:
    def change(self, path: Path, how: str) -> str:
        """Change a file; return the words that the message must contain."""
        content = path.read_bytes()
        if how == "shrunk":
            path.write_bytes(content[:-5])
        elif how == "grown":
            path.write_bytes(content + b"more")
        elif how == "replaced":
            other = path.with_name("other")
            other.write_bytes(content[::-1])
            status = path.stat()
            os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
            other.replace(path)
        elif how == "written":
            path.write_bytes(content[::-1])
            os.utime(path, ns=(1, 1))
        elif how == "gone":
            path.unlink()
        elif how == "a pipe":  # which without care would wait for a writer
            path.unlink()
            os.mkfifo(path)
        return {
            "shrunk": "shrank from 4,000 to 3,995 bytes",
            "grown": "grew from 4,000 to 4,004 bytes",
            "replaced": "was replaced",
            "written": "was written to",
            "gone": "can no longer be read (No such file or directory): put it back",
            "a pipe": "can no longer be read (not a regular file): put it back",
        }[how]

    @pytest.mark.parametrize("how", ["shrunk", "grown", "replaced", "written", "gone", "a pipe"])
    def test_is_noticed_at_the_next_block(self, tmp_path: Path, how: str) -> None:
        first, second = tmp_path / "first.txt", tmp_path / "second.txt"
        names = [write(first, "x" * 500), write(second, "abcdefg\n" * 500)]
        corpus = scan(names)
        blocks = corpus.whole.codes(block_bytes=1000)
        assert [len(next(blocks)) for _ in range(3)] == [500, 1000, 1000]
        word = self.change(second, how)
        with pytest.raises(CorpusError) as error:
            next(blocks)
        assert_one_line(error, "second.txt", word)

    @pytest.mark.parametrize("how", ["touched", "replaced by its copy"])
    def test_is_none_where_the_bytes_are_the_same(self, tmp_path: Path, how: str) -> None:
        path = tmp_path / "text"
        corpus = scan([write(path, "abcdefg\n" * 500)])
        blocks = corpus.whole.codes(block_bytes=1000)
        first = next(blocks)
        if how == "touched":
            os.utime(path, ns=(1, 1))
        else:
            other = write(tmp_path / "other", "abcdefg\n" * 500)
            Path(other).replace(path)
        assert sum(map(len, blocks)) == 4000 - len(first)
        # And what is written to it afterwards is still noticed.
        path.write_bytes(b"x" * 4000)
        os.utime(path, ns=(2, 2))
        with pytest.raises(CorpusError) as error:
            list(corpus.whole.codes())
        assert_one_line(error, "text was written to since it was scanned")

    @pytest.mark.parametrize("content", [b"\xff" * 4000, "紅".encode() * 1333 + b"x"])
    def test_even_if_no_time_tells(self, tmp_path: Path, content: bytes) -> None:
        # Same size, same file, and the old time, as a coarse clock would show.
        path = tmp_path / "text"
        corpus = scan([write(path, "abcdefg\n" * 500)])
        middle = corpus.part(7, 3999)
        status = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        for read in (lambda: list(corpus.whole.codes(block_bytes=1000)), middle.encoded_size):
            with pytest.raises(CorpusError) as error:
                read()
            assert_one_line(error, "text changed since it was scanned: leave a text alone")

    def test_while_it_is_scanned(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "growing.txt"
        name = write(path, "abc" * 100)
        bincount = np.bincount

        def grow(codes: Any) -> Any:
            with path.open("ab") as stream:
                stream.write(b"more")
            return bincount(codes)

        monkeypatch.setattr("charrnn.text.corpus.np.bincount", grow)
        with pytest.raises(CorpusError) as error:
            scan([name])
        assert_one_line(error, "growing.txt changed while it was read")

    def test_while_it_is_known_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "text"
        corpus = scan([write(path, "abcdefg\n" * 500)])
        os.utime(path, ns=(1, 1))
        file_digest = hashlib.file_digest

        def written_after(stream: Any, name: str) -> Any:
            digest = file_digest(stream, name)
            path.write_bytes(b"x" * 4000)
            return digest

        monkeypatch.setattr(hashlib, "file_digest", written_after)
        with pytest.raises(CorpusError) as error:
            list(corpus.whole.codes())
        assert_one_line(error, "text was written to since it was scanned")

    def test_a_file_that_ends_before_its_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name, fstat = write(tmp_path / "text", "abc"), os.fstat

        def larger(fd: int) -> os.stat_result:
            status = list(fstat(fd))
            status[stat.ST_SIZE] += 1
            return os.stat_result(status)

        monkeypatch.setattr(os, "fstat", larger)
        with pytest.raises(CorpusError) as error:
            scan([name])
        assert_one_line(error, "text changed while it was read")


def test_a_part_elsewhere_in_the_text_is_not_the_same_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("abcdefghij" * 3)
    text, data = scan([str(path)]), scan([str(path)], "bytes")
    assert text.part(5, 15).is_same_as(data.part(5, 15))
    assert not text.part(5, 15).is_same_as(data.part(6, 16))
