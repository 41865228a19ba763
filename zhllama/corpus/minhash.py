"""MinHash (Broder 1997) over sequences of 5 characters: signatures, and pairs of texts that agree in a band of them.

Words would need a tokenizer, a slow one for Chinese, and one changed character changes the words around it.
Characters need none, and many texts are hashed at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from zhllama.corpus.ngrams import ngram_hashes
from zhllama.rows import batches

GRAM = 5
AT_ONCE = 1 << 16  # characters signed at a time: their hashes stay in the processor's cache


@dataclass(frozen=True)
class Banding:
    """Signatures of `bands` times `rows` hashes.

    Two texts that share s of their sequences (Jaccard) agree in all rows of a band with the chance
    1 - (1 - s ** rows) ** bands.
    """

    bands: int
    rows: int
    seed: int


# A pair of documents is believed as it is: of those that share 72% two thirds are found, 85% nearly all, 50% one in 20.
DOCUMENTS = Banding(bands=14, rows=8, seed=1)
# What two conversations share is counted afterwards, so pairs in vain cost time alone: at 80% one in 5,000 is missed.
CONVERSATIONS = Banding(bands=16, rows=4, seed=0)


@lru_cache
def permutations(banding: Banding) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Factors and terms, (bands * rows,) each, of permutations x -> ax + b modulo 2^32."""
    source = np.random.RandomState(banding.seed)
    count = banding.bands * banding.rows
    factors, terms = (source.randint(0, 2**32, size=count, dtype=np.uint32) for _ in range(2))
    # Only odd factors permute the numbers below 2^32; with an even one different sequences would meet.
    return factors | np.uint32(1), terms


def sign(texts: Iterable[str], banding: Banding) -> NDArray[np.uint32]:
    """(texts, bands * rows), the least hash of a text's sequences under each permutation.

    A text shorter than a sequence is one, with zeros behind it.
    """
    factors, terms = permutations(banding)
    found = [np.empty((0, len(factors)), dtype=np.uint32)]
    for some in batches(texts, AT_ONCE):
        hashes = hash_sequences(some)
        lengths = np.array([len(text) for text in some])
        starts = np.cumsum(lengths + GRAM) - lengths - GRAM
        # `reduceat` takes the least from each edge to the next: at even places a text's, at odd ones the
        # gap's, which go. The zeros behind the last text keep its end a valid edge.
        edges = np.stack([starts, starts + np.maximum(lengths - GRAM + 1, 1)], axis=1).ravel()
        least = [np.minimum.reduceat(hashes * a + b, edges)[::2] for a, b in zip(factors, terms, strict=True)]
        found.append(np.stack(least, axis=1))
    return np.concatenate(found)


def hash_sequences(texts: Iterable[str]) -> NDArray[np.uint32]:
    """(characters,) hashes of the sequences that begin at each character of all texts.

    Behind each text stand as many zeros as a sequence is long, which those at its end run into.
    """
    gap = "\0" * GRAM
    # 32 bits, the precision of datatrove's files; at 64 signatures would take twice the room.
    return (ngram_hashes(gap.join(texts) + gap, GRAM) >> np.uint64(32)).astype(np.uint32)


def propose_pairs(signatures: NDArray[np.uint32], banding: Banding) -> Iterator[NDArray[np.int64]]:
    """(pairs, 2), an earlier text and a later one that agrees with it in a band: the first such, and the one before it.

    In memory, for as many texts as that holds; those of a corpus go through datatrove's files instead.
    """
    # The golden ratio in 64 bits, as Fibonacci hashing multiplies by.
    mixed = np.uint64(0x9E3779B97F4A7C15)
    for band in range(banding.bands):
        # The rows of a band in one number: one sort, where columns would need one each.
        key = np.zeros(len(signatures), dtype=np.uint64)
        for column in signatures[:, band * banding.rows : (band + 1) * banding.rows].T:
            key = (key ^ column) * mixed
            key ^= key >> np.uint64(29)
        # Stable: of texts with the same key the earliest stays the first.
        order = np.argsort(key, kind="stable")
        new = np.concatenate([[True], key[order][1:] != key[order][:-1]])
        # For each place the last one before it, or itself, where a new key begins.
        firsts = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
        later = np.flatnonzero(~new)
        yield np.stack([firsts[later], order[later]], axis=1)
        # A text may be no copy of the first with its key, and yet be one of the text before it.
        yield np.stack([order[later - 1], order[later]], axis=1)
