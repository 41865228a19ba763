"""The alphabet of added pieces: which characters, and which beginnings of their bytes, are Chinese only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from zhllama.corpus.han import HAN_RANGES, class_of

# Han with all its extensions, kana, bopomofo, CJK and full-width punctuation. The dashes, dots and curly
# quotes that Chinese shares with English (— … “ ” ·) are left out: such a piece would change English tokens.
CJK_RANGES = (
    (0x2E80, 0x2FFF),  # radicals, ideographic description
    (0x3000, 0x312F),  # punctuation, kana, bopomofo
    (0x31A0, 0x31FF),  # bopomofo extended, strokes, kana extensions
    (0xFE30, 0xFE4F),  # vertical forms
    (0xFF00, 0xFFEF),  # full-width and half-width forms
    *HAN_RANGES,
)
# What words are made of; the rest of the alphabet are marks, that is punctuation and symbols.
LETTER_RANGES = (
    (0x3005, 0x3007),  # 々〆〇
    (0x3021, 0x3029),  # Suzhou numerals
    (0x3038, 0x303B),
    (0x3040, 0x30FF),  # kana
    (0x3105, 0x312F),  # bopomofo
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0xFF10, 0xFF19),  # full-width digits, which SentencePiece keeps single, and Latin; half-width kana
    (0xFF21, 0xFF3A),
    (0xFF41, 0xFF5A),
    (0xFF66, 0xFFDC),
    *HAN_RANGES,
)


def _without(ranges: Iterable[tuple[int, int]], others: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    kept = list(ranges)
    for low, high in others:
        # What is left of a range on both sides of the hole; a part that ends before it begins is none.
        parts = [((first, min(last, low - 1)), (max(first, high + 1), last)) for first, last in kept]
        kept = [part for pair in parts for part in dict.fromkeys(pair) if part[0] <= part[1]]
    return kept


CJK_CLASS = class_of(CJK_RANGES)
LETTER_CLASS = class_of(LETTER_RANGES)
MARK_CLASS = class_of(_without(CJK_RANGES, LETTER_RANGES))
CJK_RUN = re.compile(f"[{CJK_CLASS}]+")


def is_cjk(text: str) -> bool:
    """Whether `text` is not empty and every character of it is in the alphabet."""
    return CJK_RUN.fullmatch(text) is not None


def only_cjk_continues(raw: bytes) -> bool:
    """Whether `raw` begins one UTF-8 character, is shorter than it, and every character it begins is CJK."""
    # The lead byte of UTF-8 says how many bytes its character has; 0xC0 and 0xC1 lead none.
    length = 4 if raw[0] >= 0xF0 else 3 if raw[0] >= 0xE0 else 2 if raw[0] >= 0xC2 else 1
    if len(raw) >= length or any(not 0x80 <= byte <= 0xBF for byte in raw[1:]):
        return False
    # The bits of the character's number: the lead byte's behind its mark, six of each byte that goes on.
    value = raw[0] & (0xFF >> (length + 1))
    for byte in raw[1:]:
        value = value << 6 | byte & 0x3F
    missing = 6 * (length - len(raw))
    # All numbers that begin with these bits; ranges that only meet in them do not hold them whole.
    first, last = value << missing, (value + 1 << missing) - 1
    return any(low <= first and last <= high for low, high in CJK_RANGES)


def is_chinese(raw: bytes) -> bool:
    """Whether a token's bytes are Chinese: they hold a CJK character, or only a part of what is most likely one."""
    text = raw.decode(errors="ignore")
    if text or not raw:
        return CJK_RUN.search(text) is not None
    # Alone, a byte that goes on is most likely a Chinese character's; E3 to E9 lead U+3000 to U+9FFF.
    return 0x80 <= raw[0] <= 0xBF or 0xE3 <= raw[0] <= 0xE9


@cache
def byte_letters() -> dict[int, str]:
    """GPT-2's spelling of the 256 bytes: the letter that stands for each in a byte-level vocabulary."""
    # Printable bytes spell themselves, the others are letters from U+0100 on: no key holds a space or a
    # control.
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain}
    return letters | {byte: chr(0x100 + place) for place, byte in enumerate(others)}


@cache
def letter_bytes() -> dict[str, int]:
    """The inverse of `byte_letters`."""
    return {letter: byte for byte, letter in byte_letters().items()}


def spell(text: str) -> str:
    """A text as a byte-level vocabulary spells it."""
    return spell_bytes(text.encode())


def spell_bytes(raw: bytes) -> str:
    """Bytes as a byte-level vocabulary spells them."""
    letters = byte_letters()
    return "".join(letters[byte] for byte in raw)


def unspell(key: str) -> bytes:
    """The bytes that a byte-level vocabulary key stands for."""
    values = letter_bytes()
    return bytes(values[letter] for letter in key)
