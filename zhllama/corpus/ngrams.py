"""Sequences of so many characters of a text: hashes of them all, how many differ, and MinHash (Broder 1997)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

FNV = np.uint64(0x100000001B3)
MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))  # MurmurHash3's finaliser
BASE = 0x9E3779B97F4A7C15
AT_ONCE = 1 << 16  # characters signed at a time: their hashes stay in the processor's cache
Permutations = tuple[NDArray[np.uint32], NDArray[np.uint32]]
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
    return NARROW[code_points(text)].tobytes().decode("utf-32-le", "surrogatepass")


def ngram_hashes(text: str, size: int) -> NDArray[np.uint64]:
    """64-bit hashes of all sequences of `size` characters of a text; none where it is shorter."""
    codes = code_points(text).astype(np.uint64)
    count = max(len(codes) - size + 1, 0)
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
    hashes, length = codes, 1
    for bit in f"{size:b}"[1:]:  # twice as long, and one more where the bit is set
        hashes = hashes[:-length] * np.uint64(pow(BASE, length, 2**64)) + hashes[length:]
        length *= 2
        if bit == "1":
            hashes = hashes[:-1] * np.uint64(BASE) + codes[length:]
            length += 1
    hashes = np.sort(hashes)
    return 1 + int(np.count_nonzero(hashes[1:] != hashes[:-1]))


def windows(texts: Iterable[str], size: int) -> NDArray[np.uint32]:
    """(characters,) hashes of the `size` characters that begin at each one of all texts.

    Between texts stand `size` zeros, which windows at their ends run into.
    """
    gap = "\0" * size
    return (ngram_hashes(gap.join(texts) + gap, size) >> np.uint64(32)).astype(np.uint32)


def permutations(count: int, seed: int) -> Permutations:
    """Factors and terms, (count,) each, of permutations x -> ax + b modulo 2^32."""
    source = np.random.RandomState(seed)
    factors, terms = (source.randint(0, 2**32, size=count, dtype=np.uint32) for _ in range(2))
    return factors | np.uint32(1), terms


def signatures(texts: Iterable[str], size: int, permuted_by: Permutations) -> NDArray[np.uint32]:
    """(texts, permutations), the least of each permutation of a text's `size`-gram hashes.

    A text shorter than that is one gram, with zeros behind it.
    """
    found = [np.empty((0, len(permuted_by[0])), dtype=np.uint32)]
    for some in _by_length(texts):
        hashes = windows(some, size)
        lengths = np.array([len(text) for text in some])
        starts = np.cumsum(lengths + size) - lengths - size
        edges = np.stack([starts, starts + np.maximum(lengths - size + 1, 1)], axis=1).ravel()
        least = [np.minimum.reduceat(hashes * a + b, edges)[::2] for a, b in zip(*permuted_by, strict=True)]
        found.append(np.stack(least, axis=1))
    return np.concatenate(found)


def _by_length(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    length = 0
    for text in texts:
        batch.append(text)
        length += len(text)
        if length >= AT_ONCE:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch
