"""Which characters are Chinese: one answer for corpora, tokenizers and conversations."""

from __future__ import annotations

import re
from collections.abc import Iterable

HAN_RANGES = (
    (0x3400, 0x4DBF),  # extension A
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),  # compatibility ideographs
    (0x20000, 0x3FFFF),  # extensions B and later: two planes of nothing else
)


def class_of(ranges: Iterable[tuple[int, int]]) -> str:
    """Ranges of characters as the inside of a regular expression's brackets."""
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


HAN_CLASS = class_of(HAN_RANGES)
# In runs: a few long matches are found sooner than many short ones.
HAN = re.compile(f"[{HAN_CLASS}]+")


def count_han(text: str) -> int:
    """How many characters of a text are Chinese."""
    return sum(map(len, HAN.findall(text)))
