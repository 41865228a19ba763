"""The lines of text files: unpacked, decoded, in bounded memory."""

from __future__ import annotations

import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from zhllama.config import UserError
from zhllama.extras import require_extra

# Characters: a .txt without blank lines beyond this is a list of lines; no single line or document is that long.
LONGEST_DOCUMENT = 1 << 26
CHUNK = 1 << 20
PACKED = (".gz", ".zst", ".xz")
BYTE_ORDER_MARKS = {  # the mark of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# The first bytes of the common characters in each set of two-byte characters, those with fewer characters first.
COMMON = {
    "gb18030": (0xB0, 0xD7),
    "big5": (0xA4, 0xC6),
    "cp950": (0xA4, 0xC6),
    "big5hkscs": (0xA4, 0xC6),
}
ADVICE = "if it is GBK, run clean with --encoding gb18030, or convert it: iconv -f GB18030 -t UTF-8"
GUESSED = "convert it with iconv"
MARKED = "zhllama-marked"  # how codecs handles errors: by LOST
LOST = "\udcff"  # what stands for bytes that are no text until their line is known; no text holds it
REPLACEMENT = "\ufffd"


class Damaged(str):
    """A line with bytes that are no text, each read as U+FFFD."""


def read_lines(
    path: Path,
    encoding: str,
    progress: Callable[[int], None] | None = None,
    *,
    mend: bool = False,
    advice: str = ADVICE,
) -> Iterator[str]:
    """The lines of a text without their ends (\\n or \\r\\n); only \\n separates, as in JSONL.

    Args:
        encoding: as Python names it, or guess.
        progress: told now and then how many bytes of the file (as it lies on disk) have been read.
        mend: a few bytes that are no text make their lines `Damaged`; without it they are an error.
        advice: what the error says to do about a file that is not UTF-8.

    Raises:
        UserError: a file that cannot be opened, unpacked or decoded, or an endless line.
    """
    held: list[str] = []
    number, size = 1, 0
    damaged = False
    for text in _decoded(path, encoding, progress, mend, advice):
        damaged = damaged or isinstance(text, Damaged)
        head, *rest = text.split("\n")
        held.append(head)
        if rest:
            lines = ["".join(held), *rest[:-1]]
            yield from map(_mended, lines) if damaged else (line.removesuffix("\r") for line in lines)
            held = [rest[-1]]
            number, size = number + len(rest), 0
            damaged = isinstance(text, Damaged)
        size += len(held[-1])
        if size > LONGEST_DOCUMENT:
            raise UserError(
                f"{path} line {number}: longer than {LONGEST_DOCUMENT:,} characters; break it into lines or delete it"
            )
    if last := _mended("".join(held)):
        yield last


def read_text(
    path: Path, encoding: str, progress: Callable[[int], None] | None = None, *, advice: str = ADVICE
) -> tuple[str, list[int]]:
    """A whole text as `read_lines` mends it, but for the ends of lines, and the numbers of its `Damaged` lines.

    Raises:
        UserError: a file that cannot be opened, unpacked or decoded.
    """
    pieces = list(_decoded(path, encoding, progress, True, advice))
    text = "".join(pieces)
    if not any(isinstance(piece, Damaged) for piece in pieces):
        return text, []
    damaged = [number for number, line in enumerate(text.split("\n"), 1) if LOST in line]
    return text.replace(LOST, REPLACEMENT), damaged


def begins_with(path: Path, encoding: str, character: str, *, advice: str = ADVICE) -> bool:
    """Whether this is a text's first character that is not white space; UserError as `read_lines` has it."""
    for text in _decoded(path, encoding, None, True, advice):
        if seen := text.lstrip()[:1]:
            return seen == character
    return False


def extension_of(path: Path) -> str:
    """The extension that says what a file holds, in lower case, whatever it is packed with."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def detect_encoding(path: Path) -> str:
    """utf-8, utf-16, utf-32, gb18030, big5, cp950 or big5hkscs, by the first megabyte of what a file unpacks to.

    Between GB18030 and Big5 decides which reading has more of its characters in its set's first, common plane; a few
    damaged bytes do not count. utf-8 where nothing fits.
    """
    head = next(_chunks(path, None))
    for mark, name in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return name
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
        return "utf-8"
    except UnicodeDecodeError:
        lost, coded = _lost(head.decode("utf-8", "replace"))
        if 10 * lost <= coded:  # of text in other sets hardly a character is one in UTF-8
            return "utf-8"
    likely = {name: text for name in COMMON if (text := _with_few_lost(head, name)) is not None}
    return max(likely, key=lambda name: _common_share(likely[name], name), default="utf-8")


def _lost(text: str) -> tuple[int, int]:
    """How many places of a text were none, and how many other characters are beyond ASCII."""
    lost = text.count(REPLACEMENT)
    return lost, len(text) - len(text.encode("ascii", "ignore")) - lost


def _with_few_lost(head: bytes, encoding: str) -> str | None:
    """The text without what is none, where that is little."""
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    lost, coded = _lost(text)
    return text.replace(REPLACEMENT, "") if 100 * lost <= coded else None


def _common_share(text: str, encoding: str) -> float:
    """The share of a text's characters beyond ASCII that are in the common plane of their set."""
    first, last = COMMON[encoding]
    coded = [character.encode(encoding) for character in text if not character.isascii()]
    return sum(len(c) == 2 and first <= c[0] <= last for c in coded) / max(len(coded), 1)


def _mended(line: str) -> str:
    whole = line.removesuffix("\r")
    return Damaged(whole.replace(LOST, REPLACEMENT)) if LOST in whole else whole


def _decoded(
    path: Path, encoding: str, progress: Callable[[int], None] | None, mend: bool, advice: str
) -> Iterator[str]:
    """The text piece by piece; `Damaged` ones hold `LOST`."""
    if encoding == "guess":
        encoding, advice = detect_encoding(path), GUESSED
    decoder = codecs.getincrementaldecoder(encoding)()
    wide = encoding.startswith(("utf-16", "utf-32"))  # these have zeros
    offset = seen = lost = 0
    for data in _chunks(path, progress):
        begin = decoder.getstate()
        text, fault = _strict(decoder, data, wide)
        if fault and mend:
            decoder.setstate(begin)
            text = _marked(decoder, data, wide)
            lost += text.count(LOST)
            fault = None if _is_little(text, lost, seen) else fault
        if fault:
            raise UserError(_complaint(path, encoding, offset + fault.place, fault.zero, advice))
        seen += len(text)
        yield text if offset else type(text)(text.removeprefix("\ufeff"))
        offset += len(data)


class _Fault(NamedTuple):
    """Where in a piece of a file there is no text, and whether it is a zero that says so."""

    place: int
    zero: bool


def _strict(decoder: codecs.IncrementalDecoder, data: bytes, wide: bool) -> tuple[str, _Fault | None]:
    cut = len(decoder.getstate()[0])  # bytes of a character cut by the piece's edge
    zero = -1 if wide else data.find(0)
    try:
        text = decoder.decode(data, final=not data)
    except UnicodeError as problem:  # UTF-16 without its mark says no place
        place = problem.start - cut if isinstance(problem, UnicodeDecodeError) else 0
        return "", _Fault(zero, True) if 0 <= zero < place else _Fault(place, False)
    return text, _Fault(zero, True) if zero >= 0 else None


def _marked(decoder: codecs.IncrementalDecoder, data: bytes, wide: bool) -> str:
    """The text with `LOST` where there is none; all of it where not even its first character is known."""
    decoder.errors = MARKED
    try:
        text = decoder.decode(data, final=not data)
    except UnicodeError:
        return LOST * len(data)
    finally:
        decoder.errors = "strict"
    return Damaged(text if wide else text.replace("\0", LOST))


codecs.register_error(MARKED, lambda problem: (LOST, problem.end))  # type: ignore[attr-defined]


def _is_little(text: str, lost: int, seen: int) -> bool:
    """Whether damage is so rare that the encoding is right all the same: that of a wrong one is everywhere."""
    here = text.count(LOST)
    coded = len(text) - len(text.encode("ascii", "ignore")) - here
    return 10 * here <= coded or 100 * lost <= seen + len(text)


def _complaint(path: Path, encoding: str, byte: int, zero: bool, advice: str) -> str:
    if zero:
        return f"{path}: binary, not text (zero at byte {byte:,}); take it away"
    where = f"{path}: not {encoding.upper()} at byte {byte:,}"
    if path.suffix in PACKED:
        where += " of what it unpacks to"
    return (
        f"{where}; {advice if codecs.lookup(encoding).name == 'utf-8' else 'give clean another --encoding'}"
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
        require_extra(str(path), "clean", "pyarrow")
        from pyarrow import CompressedInputStream  # type: ignore[import-untyped]

        return CompressedInputStream(raw, "zstd")
    return raw
