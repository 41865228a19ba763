"""The lines of text files: unpacked, decoded, in bounded memory."""

from __future__ import annotations

import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from zhllama.config import UserError

# Characters: a .txt without blank lines beyond this is a list of lines; no single line or document is that long.
LONGEST_DOCUMENT = 1 << 26
CHUNK = 1 << 20
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def read_lines(path: Path, encoding: str, progress: Callable[[int], None] | None) -> Iterator[str]:
    """The lines of a text without their ends (\\n or \\r\\n); only \\n separates, as in JSONL."""
    held: list[str] = []
    number, size = 1, 0
    for text in _decoded(path, encoding, progress):
        head, *rest = text.split("\n")
        held.append(head)
        if rest:
            yield "".join(held).removesuffix("\r")
            yield from (line.removesuffix("\r") for line in rest[:-1])
            held = [rest[-1]]
            number, size = number + len(rest), 0
        size += len(held[-1])
        if size > LONGEST_DOCUMENT:
            raise UserError(
                f"{path} line {number}: longer than {LONGEST_DOCUMENT:,} characters; break it into lines or delete it"
            )
    if last := "".join(held).removesuffix("\r"):
        yield last


def detect_encoding(path: Path) -> str:
    """utf-8, utf-16, gb18030 or big5, by the first megabyte of what a file unpacks to; utf-8 where nothing fits.

    Between GB18030 and Big5 decides which reading has more of its characters in its set's first, common plane.
    """
    head = next(_chunks(path, None))
    if head[:2] in MARKS:
        return MARKS[head[:2]]
    shares: dict[str, float] = {}
    for name, first, last in (("utf-8", 0, 0), ("gb18030", 0xB0, 0xD7), ("big5", 0xA4, 0xC6)):
        try:
            text = codecs.getincrementaldecoder(name)().decode(head)
        except UnicodeDecodeError:
            continue
        if name == "utf-8":
            return name
        coded = [character.encode(name) for character in text if not character.isascii()]
        shares[name] = sum(len(c) == 2 and first <= c[0] <= last for c in coded) / max(len(coded), 1)
    return max(shares, key=lambda name: shares[name], default="utf-8")


def _decoded(path: Path, encoding: str, progress: Callable[[int], None] | None) -> Iterator[str]:
    if encoding == "guess":
        encoding = detect_encoding(path)
    decoder = codecs.getincrementaldecoder(encoding)()
    offset = 0
    for data in _chunks(path, progress):
        if b"\0" in data and not encoding.startswith(("utf-16", "utf-32")):
            raise UserError(
                f"{path}: binary, not text (zero at byte {offset + data.index(0):,}); take it away"
            )
        before = len(decoder.getstate()[0])  # bytes of a character cut by the chunk's edge
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeError as problem:  # UTF-16 without its mark says no place
            start = problem.start if isinstance(problem, UnicodeDecodeError) else 0
            raise UserError(_not_encoded(path, encoding, offset - before + start)) from problem
        yield text if offset else text.removeprefix("\ufeff")
        offset += len(data)


def _not_encoded(path: Path, encoding: str, byte: int) -> str:
    where = f"{path}: not {encoding.upper()} at byte {byte:,}"
    if path.suffix in (".gz", ".zst", ".xz"):
        where += " of what it unpacks to"
    if codecs.lookup(encoding).name != "utf-8":
        return f"{where}; give clean another --encoding"
    return (
        f"{where}; if it is GBK, run clean with --encoding gb18030, or convert it: iconv -f GB18030 -t UTF-8"
    )


def _chunks(path: Path, progress: Callable[[int], None] | None) -> Iterator[bytes]:
    """The unpacked bytes of a file, piece by piece, then one empty piece that marks the end."""
    try:
        raw = path.open("rb")
    except OSError as problem:
        raise UserError(f"{path}: it cannot be opened ({problem.strerror})") from problem
    with raw:
        unpacked = _unpacked(path, raw)
        while True:
            try:
                data = unpacked.read(CHUNK)
            except (EOFError, OSError, zlib.error, lzma.LZMAError) as problem:
                raise UserError(
                    f"{path}: broken or cut short ({str(problem)[:80]}); copy or download it again"
                ) from problem
            if progress:
                progress(raw.tell())
            yield data
            if not data:
                return


def _unpacked(path: Path, raw: IO[bytes]) -> Any:
    if path.suffix.lower() == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if path.suffix.lower() == ".xz":
        return lzma.LZMAFile(raw)
    if path.suffix.lower() == ".zst":
        from pyarrow import CompressedInputStream  # type: ignore[import-untyped]

        return CompressedInputStream(raw, "zstd")
    return raw
