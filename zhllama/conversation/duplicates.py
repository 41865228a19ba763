"""Rows that say the same: exactly, or nearly by MinHash and then by count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zhllama.corpus.minhash import CONVERSATIONS, GRAM, propose_pairs, sign

# Four standard deviations: of 64 hashes that agree with a chance of 0.8 it is 0.05.
SLACK = 0.2  # by which an estimate of 64 hashes may fall short of the similarity that is then counted
# Signatures of both sides are gathered for so many pairs: 33 MB.
PAIRS_AT_ONCE = 1 << 16


def mark_repeated(texts: Sequence[str]) -> NDArray[Any]:
    """(texts,) bool, which are the same as an earlier one."""
    seen: set[str] = set()
    result = np.zeros(len(texts), dtype=bool)
    for place, text in enumerate(texts):
        result[place] = text in seen
        seen.add(text)
    return result


def mark_near_copies(texts: Sequence[str], similarity: float, of: int | None = None) -> NDArray[Any]:
    """(texts,) bool, which have an earlier text whose 5-grams overlap theirs (Jaccard) by at least `similarity`.

    With `of`, only the first so many texts count as earlier ones, and only the others are looked at. MinHash with
    bands proposes pairs and their 5-grams are then counted, so nothing is found that is not there, and nearly all.
    """
    found = np.zeros(len(texts), dtype=bool)
    if len(texts) < 2:
        return found
    signed = sign(texts, CONVERSATIONS)
    for pairs in propose_pairs(signed, CONVERSATIONS):
        if of is not None:
            pairs = pairs[(pairs[:, 0] < of) & (pairs[:, 1] >= of)]
        # One earlier copy is enough, so pairs of later bands have less and less to count.
        pairs = pairs[~found[pairs[:, 1]]]
        for first in range(0, len(pairs), PAIRS_AT_ONCE):
            some = pairs[first : first + PAIRS_AT_ONCE]
            estimates = (signed[some[:, 0]] == signed[some[:, 1]]).mean(axis=1)
            for earlier, later in some[estimates >= similarity - SLACK].tolist():
                # By count, since an estimate may be wrong either way.
                found[later] = found[later] or jaccard(texts[earlier], texts[later]) >= similarity
    return found


def jaccard(left: str, right: str) -> float:
    """Shared 5-grams of two texts by all of them; a shorter text is a gram of its own."""
    first, second = _grams(left), _grams(right)
    # Never by 0: even an empty text has one gram, itself.
    return len(first & second) / len(first | second)


def _grams(text: str) -> set[str]:
    return {text[at : at + GRAM] for at in range(max(1, len(text) - GRAM + 1))}
