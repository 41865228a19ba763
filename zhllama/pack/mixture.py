"""Several sources of blocks as one: how much of each, in which order, written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zhllama.pack.encode import Encoded
from zhllama.pack.fit import Fitted, spans

# So that a batch of blocks takes 8 MB of ids in uint16, whatever their size.
AT_ONCE = 1 << 22  # tokens gathered at a time
# Fixed: the same text, tokenizer and settings give the same bytes.
SEED = 0


@dataclass(frozen=True)
class FittedCorpus:
    """A corpus as ids, fitted into blocks."""

    name: str
    encoded: Encoded
    fitted: Fitted


def blocks_per_source(available: Sequence[int], weights: Sequence[float], max_epochs: float) -> list[int]:
    """How many blocks of each source make a mixture with these weights, some of them several times over.

    The source that lasts longest at its weight is read once, the others are repeated to keep up; where one would
    be read more than `max_epochs` times, the mixture is that much shorter. Without weights each is read once.
    """
    if not weights:
        return list(available)
    shares = [weight / sum(weights) for weight in weights]
    lasting = [count / share for count, share in zip(available, shares, strict=True)]
    # `lasting`: blocks of a mixture in which the source, at its share, is read just once.
    size = min(max(lasting), min(lasting) * max_epochs)
    return [max(1, round(size * share)) for share in shares]


def choose_replay(main: int, available: int, share: float, max_epochs: float) -> int:
    """How many blocks of replay make `share` of the whole beside `main`, or as many as `max_epochs` give."""
    # r of the whole are replay where r = share x (main + r), so r = main x share / (1 - share).
    return int(min(round(main * share / (1 - share)), available * max_epochs))


def interleave(counts: Sequence[int], available: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(blocks,) which source each block of the mixture comes from, and which block of it that is.

    Each source is spread evenly from the first block to the last, its own blocks in a drawn order.
    """
    drawn = np.random.default_rng(SEED)
    blocks = []
    for count, size in zip(counts, available, strict=True):
        # Fitting has sorted blocks by the lengths of their documents. Each pass has an order of its own.
        passes = [drawn.permutation(size) for _ in range(-(-count // size))]
        blocks.append(np.concatenate([np.empty(0, dtype=np.int64), *passes])[:count])
    # Block k of n stands at (k + 1/2) / n of the way: merging the sources' places spreads each evenly.
    places = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    order = np.argsort(places, kind="stable")
    return np.repeat(np.arange(len(counts)), counts)[order], np.concatenate(blocks)[order]


def write_blocks(
    directory: Path, sources: Sequence[FittedCorpus], counts: Sequence[int], size: int, padding: int
) -> NDArray[Any]:
    """Write `ids.npy`, `lengths.npy` and `offsets.npy` for `Blocks.open`; returns tokens of each source, int64."""
    source, block = interleave(counts, [len(one.fitted) for one in sources])
    pieces = np.empty(len(source), dtype=np.int64)
    for number, one in enumerate(sources):
        mine = source == number
        pieces[mine] = np.diff(one.fitted.offsets)[block[mine]]
    offsets = np.concatenate([[0], np.cumsum(pieces)])
    lengths = np.empty(offsets[-1], dtype=np.int32)
    tokens = np.zeros(len(sources), dtype=np.int64)
    dtype = sources[0].encoded.dtype
    step = max(1, AT_ONCE // size)
    with (directory / "ids.npy").open("wb") as stream:
        # numpy's header first, for rows that come later: the whole is never in memory.
        header = {"descr": dtype.str, "fortran_order": False, "shape": (len(source), size)}
        np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[no-untyped-call]
        for first in range(0, len(source), step):
            ids = np.full((min(step, len(source) - first), size), padding, dtype=dtype)
            for number, one in enumerate(sources):
                rows = np.flatnonzero(source[first : first + step] == number)
                chosen, of_rows = block[first + rows], pieces[first + rows]
                # Pieces of these blocks among those of the source, and below among all of the mixture.
                wanted = spans(one.fitted.offsets[chosen], of_rows)
                lengths[spans(offsets[first + rows], of_rows)] = one.fitted.lengths[wanted]
                tokens[number] += _gather(ids, rows, of_rows, one, wanted)
            ids.tofile(stream)
    np.save(directory / "lengths.npy", lengths)
    np.save(directory / "offsets.npy", offsets)
    return tokens


def _gather(
    ids: NDArray[Any], rows: NDArray[Any], of_rows: NDArray[Any], source: FittedCorpus, wanted: NDArray[Any]
) -> int:
    """Fill rows of `ids` with their pieces, left to right; how many tokens that were."""
    lengths = source.fitted.lengths[wanted]
    used = np.bincount(np.repeat(np.arange(len(rows)), of_rows), lengths, len(rows))
    filled = np.zeros(ids.shape, dtype=bool)
    filled[rows] = np.arange(ids.shape[1]) < used[:, None]
    # A fresh map each time: pages of the last one do not add up.
    ids[filled] = source.encoded.ids()[spans(source.fitted.starts[wanted], lengths)]
    return int(lengths.sum())
