"""What texts are compared by: their letters, and hashes of all sequences of so many of them, at once."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

NOT_LETTER = re.compile(r"[\W_]+")
FNV = np.uint64(0x100000001B3)
MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))  # MurmurHash3's finaliser


def letters(text: str) -> str:
    """What two texts are compared by: letters and digits, lower case."""
    return NOT_LETTER.sub("", text).lower()


def gram_hashes(text: str, size: int) -> NDArray[np.uint64]:
    """64-bit hashes of all sequences of `size` characters of a text; none where it is shorter."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    count = max(len(codes) - size + 1, 0)
    hashes = np.full(count, 0xCBF29CE484222325, dtype=np.uint64)
    for place in range(size):
        hashes ^= codes[place : place + count]
        hashes *= FNV
    for factor in MIX:
        hashes ^= hashes >> np.uint64(33)
        hashes *= factor
    return hashes ^ (hashes >> np.uint64(33))
