"""Rows that say the same: exactly, or nearly by MinHash of character 5-grams (Broder 1997)."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zhllama.corpus.grams import gram_hashes

GRAM = 5
BANDS, ROWS = 16, 4  # at a similarity of 0.8 one pair in 5,000 is missed
SLACK = 0.2  # by which an estimate of 64 hashes may fall short of the similarity that is then counted
AT_ONCE = 1 << 16  # characters hashed at a time: they stay in the cache
PAIRS_AT_ONCE = 1 << 16


def plain(text: str) -> str:
    """What counts when texts are compared: no white space, no case, one width of letters and digits."""
    return "".join(unicodedata.normalize("NFKC", text).lower().split())


def repeats(texts: Sequence[str]) -> NDArray[Any]:
    """(texts,) bool, which are the same as an earlier one."""
    seen: set[str] = set()
    result = np.zeros(len(texts), dtype=bool)
    for place, text in enumerate(texts):
        result[place] = text in seen
        seen.add(text)
    return result


def near_copies(texts: Sequence[str], similarity: float, of: int | None = None) -> NDArray[Any]:
    """(texts,) bool, which have an earlier text whose 5-grams overlap theirs (Jaccard) by at least `similarity`.

    With `of`, only the first so many texts count as earlier ones, and only the others are looked at. MinHash with
    bands proposes pairs and their 5-grams are then counted, so nothing is found that is not there, and nearly all.
    """
    found = np.zeros(len(texts), dtype=bool)
    if len(texts) < 2:
        return found
    signatures = np.concatenate(list(_signatures(texts)))
    for pairs in _proposed(signatures):
        if of is not None:
            pairs = pairs[(pairs[:, 0] < of) & (pairs[:, 1] >= of)]
        pairs = pairs[~found[pairs[:, 1]]]
        for first in range(0, len(pairs), PAIRS_AT_ONCE):
            some = pairs[first : first + PAIRS_AT_ONCE]
            estimates = (signatures[some[:, 0]] == signatures[some[:, 1]]).mean(axis=1)
            for earlier, later in some[estimates >= similarity - SLACK].tolist():
                found[later] = found[later] or jaccard(texts[earlier], texts[later]) >= similarity
    return found


def jaccard(left: str, right: str) -> float:
    """Shared 5-grams of two texts by all of them; a shorter text is a gram of its own."""
    first, second = _grams(left), _grams(right)
    return len(first & second) / len(first | second)


def windows(texts: Sequence[str], width: int) -> NDArray[Any]:
    """(characters,) uint32, a hash of the `width` characters that begin at each one of all texts.

    Between texts stand `width` zeros, which windows at their ends run into.
    """
    gap = "\0" * width
    return (gram_hashes(gap.join(texts) + gap, width) >> np.uint64(32)).astype(np.uint32)


def _grams(text: str) -> set[str]:
    return {text[at : at + GRAM] for at in range(max(1, len(text) - GRAM + 1))}


def _signatures(texts: Sequence[str]) -> Iterator[NDArray[Any]]:
    """(some texts, BANDS x ROWS) uint32 at a time."""
    drawn = np.random.default_rng(0)
    factors, terms = drawn.integers(1 << 32, size=(2, BANDS * ROWS), dtype=np.uint32)
    factors |= np.uint32(1)
    for some in _by_size(texts):
        hashes = windows(some, GRAM)
        lengths = np.asarray([len(text) for text in some])
        starts = np.cumsum(lengths + GRAM) - lengths - GRAM
        # A short text's windows run into the zeros behind it; of a longer one only whole ones count.
        ends = starts + np.maximum(lengths - GRAM + 1, 1)
        edges = np.stack([starts, ends], axis=1).ravel()
        result = np.empty((len(some), BANDS * ROWS), dtype=np.uint32)
        for place, (factor, term) in enumerate(zip(factors, terms, strict=True)):
            result[:, place] = np.minimum.reduceat(hashes * factor + term, edges)[::2]
        yield result


def _by_size(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _proposed(signatures: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """(pairs, 2) of texts that agree in a band: each with the first such text and with the one before it."""
    mixed = np.uint64(0x9E3779B97F4A7C15)
    for band in range(BANDS):
        key = np.zeros(len(signatures), dtype=np.uint64)
        for column in signatures[:, band * ROWS : (band + 1) * ROWS].T:
            key = (key ^ column) * mixed
            key ^= key >> np.uint64(29)
        order = np.argsort(key, kind="stable")
        new = np.concatenate([[True], key[order][1:] != key[order][:-1]])
        firsts = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
        later = np.flatnonzero(~new)
        yield np.stack([firsts[later], order[later]], axis=1)
        yield np.stack([order[later - 1], order[later]], axis=1)
