"""mixture: shares, epochs, order, and what is written."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhllama.pack import mixture
from zhllama.pack.blocks import Blocks
from zhllama.pack.encode import Encoded
from zhllama.pack.fit import fit_documents
from zhllama.pack.mixture import FittedCorpus, blocks_per_source, choose_replay, interleave, write_blocks


def source_of(file: Path, lengths: list[int], size: int, first: int) -> FittedCorpus:
    """Documents of these lengths; each token is `first` and its place in the source."""
    (first + np.arange(sum(lengths))).astype(np.uint16).tofile(file)
    encoded = Encoded(file, np.dtype(np.uint16), np.asarray(lengths, dtype=np.int64))
    return FittedCorpus(file.name, encoded, fit_documents(encoded.lengths, size))


@pytest.mark.parametrize(
    ("available", "weights", "epochs", "counts"),
    [
        ([70, 30], [], 1, [70, 30]),
        ([100, 100], [1, 1], 4, [100, 100]),
        ([100, 100], [3, 1], 4, [300, 100]),  # the second lasts longer and is read once
        ([100, 100], [3, 1], 1, [100, 33]),
        ([1000, 10], [1, 1], 4, [40, 40]),  # the second is read four times, and no more
        ([1000, 500], [0.6, 0.4], 4, [1000, 667]),
        ([1000, 1], [1000, 1], 1, [1000, 1]),
    ],
)
def test_counts_follow_the_weights(
    available: list[int], weights: list[float], epochs: float, counts: list[int]
) -> None:
    assert blocks_per_source(available, weights, epochs) == counts


@given(
    st.lists(st.tuples(st.integers(50, 5000), st.floats(0.1, 10)), min_size=1, max_size=5), st.floats(1, 8)
)
def test_shares_are_exact_and_nothing_is_repeated_without_need(
    sources: list[tuple[int, float]], epochs: float
) -> None:
    available, weights = [size for size, _ in sources], [weight for _, weight in sources]
    counts = blocks_per_source(available, weights, epochs)
    read = [count / size for count, size in zip(counts, available, strict=True)]
    assert max(read) <= epochs + 1 / min(available)
    assert min(read) <= 1 + 1 / min(available)
    for count, weight in zip(counts, weights, strict=True):
        assert count == pytest.approx(sum(counts) * weight / sum(weights), abs=len(counts))


@pytest.mark.parametrize(
    ("share", "epochs", "count"), [(0.25, 1, 10), (0.1, 1, 3), (0.5, 1, 20), (0.5, 4, 30), (0.0, 4, 0)]
)
def test_replay_makes_its_share_as_far_as_it_goes(share: float, epochs: float, count: int) -> None:
    assert choose_replay(30, 20, share, epochs) == count


@pytest.mark.parametrize("counts", [[30, 10], [30, 30, 3], [5, 40], [12, 0]])
def test_every_source_is_spread_evenly(counts: list[int]) -> None:
    source, block = interleave(counts, [20] * len(counts))
    for number, count in enumerate(counts):
        places = np.flatnonzero(source == number)
        assert len(places) == count
        if count:
            assert np.diff([-1, *places, sum(counts)]).max() <= 1.5 * sum(counts) / count + 1
        read = np.bincount(block[places], minlength=20)
        assert read.max() - read.min() <= 1  # nothing a second time before all of it once


def test_blocks_are_not_in_the_order_of_their_documents_lengths() -> None:
    _, block = interleave([1000], [1000])
    assert sorted(block.tolist()) == list(range(1000))
    assert abs(np.corrcoef(block, np.arange(1000))[0, 1]) < 0.1
    again = interleave([2000], [1000])[1]
    assert again[:1000].tolist() == block.tolist() != again[1000:].tolist()


@pytest.mark.parametrize("at_once", [1, 40, 1 << 22])
def test_written_blocks_hold_the_pieces_and_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(mixture, "AT_ONCE", at_once)
    size = 16
    sources = [
        source_of(tmp_path / "a", [5, 40, 11, 3, 9], size, 100),
        source_of(tmp_path / "b", [30, 7, 2], size, 1000),
        source_of(tmp_path / "c", [17], size, 2000),
    ]
    available = [len(source.fitted) for source in sources]
    counts = [available[0], 2 * available[1], 0]
    tokens = write_blocks(tmp_path, sources, counts, size, padding=7)
    assert tokens.tolist() == [68, 78, 0]
    blocks = Blocks.open(tmp_path)
    assert isinstance(blocks.ids, np.memmap)
    assert (blocks.ids.dtype, blocks.ids.shape) == (np.uint16, (sum(counts), size))
    assert (blocks.lengths.dtype, blocks.offsets.dtype) == (np.int32, np.int64)
    seen: list[int] = []
    edges = np.cumsum([0, *sources[0].encoded.lengths])
    for block in range(len(blocks)):
        at = 0
        for length in blocks.lengths[blocks.offsets[block] : blocks.offsets[block + 1]]:
            piece = blocks.ids[block, at : at + length].tolist()
            assert piece == list(range(piece[0], piece[0] + length))
            if piece[0] < 1000:
                first, last = np.searchsorted(edges, [piece[0] - 100, piece[-1] - 100], side="right")
                assert first == last
            seen += piece
            at += length
        assert set(blocks.ids[block, at:].tolist()) <= {7}
    assert sorted(seen) == sorted([*range(100, 168), *range(1000, 1039), *range(1000, 1039)])
