"""Which document goes into which block: best fit, after Ding et al. 2024 (arXiv 2404.10830)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_PADDING = 0.01  # of all tokens in blocks; beyond that documents are cut to fill the holes


@dataclass(frozen=True)
class Fitted:
    """Where the tokens of each block come from.

    Attributes:
        starts: (pieces,) int64, where a piece of a document begins among the ids of all documents.
        lengths: (pieces,) int32, how many tokens it has.
        offsets: (blocks + 1,) int64, where each block's pieces start.
    """

    starts: NDArray[Any]
    lengths: NDArray[Any]
    offsets: NDArray[Any]

    def __len__(self) -> int:
        return len(self.offsets) - 1


def fit_documents(lengths: NDArray[Any], size: int) -> Fitted:
    """Blocks of `size` for documents of these lengths, which lie one after the other.

    A document longer than a block fills whole blocks; its rest and the shorter documents go whole where they fit
    best. Where that would leave more than 1% of all tokens as padding, the emptiest blocks are dissolved and their
    documents cut to fill the holes of the others. So padding is at most 1%, or less than one block.
    """
    begins = np.cumsum(lengths) - lengths
    whole, rest = np.divmod(lengths, size)
    # A document of `whole` blocks and a rest gives block k the tokens from begins + k x size on.
    full = np.repeat(begins, whole) + size * spans(np.zeros_like(whole), whole)
    short = np.flatnonzero(rest)
    starts, lengths_of_short = (begins + whole * size)[short], rest[short]
    blocks = best_fit(lengths_of_short, size)
    total = int(lengths.sum())
    # As many blocks as hold all tokens at 1% of padding, but never fewer than hold them at all.
    allowed = max(-(-total // size), int(total / (1 - MOST_PADDING) / size)) - len(full)
    if len(short) and blocks.max() >= allowed:
        starts, lengths_of_short, blocks = _dissolve(starts, lengths_of_short, blocks, size, allowed)
    # Stable: documents of a block keep their order.
    order = np.argsort(blocks, kind="stable")
    pieces = np.concatenate([np.ones(len(full), dtype=np.int64), np.bincount(blocks)])
    # Full blocks come first, a piece each; then the others, whose pieces `order` has put side by side.
    return Fitted(
        np.concatenate([full, starts[order]]),
        np.concatenate([np.full(len(full), size), lengths_of_short[order]]).astype(np.int32),
        np.concatenate([[0], np.cumsum(pieces)]),
    )


def best_fit(lengths: NDArray[Any], size: int) -> NDArray[Any]:
    """The block of each item by best fit decreasing: longest first, each into the fullest block with room for it.

    Items are (items,) of 1 to `size` tokens, the blocks (items,) int64 from 0.
    """
    result = np.empty(len(lengths), dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    # Negated, because unique sorts upwards and the longest come first.
    different, first, counts = np.unique(-lengths[order], return_index=True, return_counts=True)
    room: dict[int, list[int]] = {}  # free tokens -> blocks with that much
    rooms = 0  # bit n: there are blocks with n free tokens
    count = 0
    for length, at, end in zip((-different).tolist(), first.tolist(), (first + counts).tolist(), strict=True):
        # As many at once as the blocks with the same room take: millions of items are few lengths.
        while at < end:
            # Bit n of the shifted number: some block has length + n tokens free. Its lowest set bit is the
            # best fit; x & -x keeps that bit alone.
            fitting = rooms >> length
            free = length + (fitting & -fitting).bit_length() - 1 if fitting else size
            # One block is filled as far as it goes before the next: with less room it is the better fit.
            each = min(free // length, end - at)
            wanted = (end - at) // each
            if fitting:
                # From the end, where a list loses items without moving the others.
                chosen = room[free][-wanted:]
                del room[free][-wanted:]
                if not room[free]:
                    rooms ^= 1 << free
            else:
                chosen = list(range(count, count + wanted))
                count += wanted
            placed = len(chosen) * each
            result[order[at : at + placed]] = np.repeat(chosen, each)
            at += placed
            # Full blocks stand at bit 0, which a shift by any length drops.
            left = free - each * length
            room.setdefault(left, []).extend(chosen)
            rooms |= 1 << left
    return result


def spans(starts: NDArray[Any], lengths: NDArray[Any]) -> NDArray[Any]:
    """The ranges of these starts and lengths as one array of int64, one after the other."""
    ends = np.cumsum(lengths, dtype=np.int64)
    # Numbers from 0 up, each span moved from where it lies in them to its start.
    result: NDArray[Any] = np.repeat(starts - (ends - lengths), lengths)
    result += np.arange(len(result))
    return result


def _dissolve(
    starts: NDArray[Any], lengths: NDArray[Any], blocks: NDArray[Any], size: int, allowed: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Pieces and their blocks, of which only `allowed` stay: the fullest.

    What the others held is laid end to end along the holes of those, largest first, and cut where a hole ends.
    """
    used = np.bincount(blocks, weights=lengths).astype(np.int64)
    fullest = np.argsort(-used, kind="stable")
    # rank turns the blocks' numbers into places by fullness, the inverse of `fullest`.
    rank = np.empty_like(fullest)
    rank[fullest] = np.arange(len(fullest))
    blocks = rank[blocks]
    stays = blocks < allowed
    loose, loose_starts = lengths[~stays], starts[~stays]
    ends = np.cumsum(loose)
    # Both end to end: loose documents as one line, holes as another. A piece ends where either ends.
    hole_ends = np.cumsum((size - used[fullest[:allowed]])[::-1])
    cuts = np.union1d(ends, hole_ends[hole_ends < ends[-1]])
    begins = np.concatenate([[0], cuts[:-1]])
    # Which document a piece is of, and which hole it goes into.
    piece = np.searchsorted(ends, begins, side="right")
    hole = np.searchsorted(hole_ends, begins, side="right")
    return (
        np.concatenate([starts[stays], loose_starts[piece] + begins - (ends - loose)[piece]]),
        np.concatenate([lengths[stays], cuts - begins]),
        np.concatenate([blocks[stays], allowed - 1 - hole]),
    )
