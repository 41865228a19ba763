"""Rows that say the same: exactly, or nearly by MinHash of character 5-grams (Broder 1997)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zhllama.corpus.ngrams import permutations, signatures

GRAM = 5
BANDS, ROWS = 16, 4  # at a similarity of 0.8 one pair in 5,000 is missed
SLACK = 0.2  # by which an estimate of 64 hashes may fall short of the similarity that is then counted
PAIRS_AT_ONCE = 1 << 16


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
    signed = signatures(texts, GRAM, permutations(BANDS * ROWS, 0))
    for pairs in _proposed(signed):
        if of is not None:
            pairs = pairs[(pairs[:, 0] < of) & (pairs[:, 1] >= of)]
        pairs = pairs[~found[pairs[:, 1]]]
        for first in range(0, len(pairs), PAIRS_AT_ONCE):
            some = pairs[first : first + PAIRS_AT_ONCE]
            estimates = (signed[some[:, 0]] == signed[some[:, 1]]).mean(axis=1)
            for earlier, later in some[estimates >= similarity - SLACK].tolist():
                found[later] = found[later] or jaccard(texts[earlier], texts[later]) >= similarity
    return found


def jaccard(left: str, right: str) -> float:
    """Shared 5-grams of two texts by all of them; a shorter text is a gram of its own."""
    first, second = _grams(left), _grams(right)
    return len(first & second) / len(first | second)


def _grams(text: str) -> set[str]:
    return {text[at : at + GRAM] for at in range(max(1, len(text) - GRAM + 1))}


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
