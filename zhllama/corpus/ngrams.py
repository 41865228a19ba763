"""The characters of a text as numbers, and its sequences of so many of them: their hashes, and how many differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# FNV-1a's prime is 2^40 + 0x1B3: a last character reaches few of the bits, hence the finaliser.
FNV = np.uint64(0x100000001B3)
MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))  # MurmurHash3's finaliser
BASE = 0x9E3779B97F4A7C15
# Full-width ASCII and the ideographic space as ASCII, everything else as it is.
NARROW = np.arange(0x110000, dtype="<u4")
NARROW[0xFF01:0xFF5F] -= np.uint32(0xFEE0)
NARROW[0x3000] = 0x20


def code_points(text: str) -> NDArray[np.uint32]:
    """The characters of a text as numbers."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def narrow(text: str) -> str:
    """A text with full-width ASCII as ASCII, each character in its place; five times as fast as `str.translate`."""
    if text.isascii():
        return text
    # The table's own type is UTF-32's, so its bytes are the text.
    return NARROW[code_points(text)].tobytes().decode("utf-32-le", "surrogatepass")


def ngram_hashes(text: str, size: int) -> NDArray[np.uint64]:
    """64-bit hashes of all sequences of `size` characters of a text; none where it is shorter."""
    codes = code_points(text).astype(np.uint64)
    count = max(len(codes) - size + 1, 0)
    # FNV-1a's offset. A character a step, for all places at once: numpy's loop, not Python's.
    hashes = np.full(count, 0xCBF29CE484222325, dtype=np.uint64)
    for place in range(size):
        hashes ^= codes[place : place + count]
        hashes *= FNV
    for factor in MIX:
        hashes ^= hashes >> np.uint64(33)
        hashes *= factor
    return hashes ^ (hashes >> np.uint64(33))


def distinct_ngrams(text: str, size: int) -> int:
    """How many different sequences of `size` characters a text has, by polynomial hashes modulo 2^64."""
    codes = code_points(text).astype(np.uint64)
    if len(codes) < size:
        return 0
    # A sequence's hash from those of its halves: 3 rounds for 10 characters instead of 9.
    hashes, length = codes, 1
    for bit in f"{size:b}"[1:]:  # twice as long, and one more where the bit is set
        hashes = hashes[:-length] * np.uint64(pow(BASE, length, 2**64)) + hashes[length:]
        length *= 2
        if bit == "1":
            hashes = hashes[:-1] * np.uint64(BASE) + codes[length:]
            length += 1
    hashes = np.sort(hashes)
    return 1 + int(np.count_nonzero(hashes[1:] != hashes[:-1]))
