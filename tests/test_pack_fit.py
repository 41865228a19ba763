"""fit: best fit decreasing, documents over blocks, and the bound on padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhllama.pack.fit import Fitted, best_fit, fit_documents, spans

SIZES = st.integers(8, 40)


def one_by_one(lengths: list[int], size: int) -> list[int]:
    """Best fit decreasing as the textbook has it: how full each block is, sorted."""
    blocks: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [block for block in blocks if size - sum(block) >= length]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            blocks.append([length])
    return sorted(map(sum, blocks))


def tokens_of(fitted: Fitted) -> list[list[int]]:
    """Which tokens of the source each block holds, piece after piece."""
    return [
        spans(fitted.starts[first:last], fitted.lengths[first:last]).tolist()
        for first, last in zip(fitted.offsets[:-1], fitted.offsets[1:], strict=True)
    ]


@given(st.lists(st.integers(1, 40), max_size=60), SIZES)
def test_best_fit_is_that_of_the_textbook(lengths: list[int], size: int) -> None:
    lengths = [min(length, size) for length in lengths]
    places = best_fit(np.asarray(lengths, dtype=np.int64), size)
    assert sorted(np.bincount(places, lengths).tolist()) == one_by_one(lengths, size)


def test_best_fit_prefers_the_fullest_block_with_room() -> None:
    assert best_fit(np.asarray([6, 5, 4, 3]), 10).tolist() == [0, 1, 0, 1]
    assert best_fit(np.asarray([9, 2, 8, 1, 1, 1]), 10).tolist() == [0, 1, 1, 0, 2, 2]


def test_a_million_items_go_by_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 1025, 1_000_000)
    places = best_fit(lengths, 1024)
    used = np.bincount(places, lengths)
    assert used.max() <= 1024
    assert len(used) <= 1.002 * lengths.sum() / 1024


def test_long_documents_fill_blocks_and_their_rests_share_one() -> None:
    fitted = fit_documents(np.asarray([21, 3, 12]), 9)
    assert tokens_of(fitted)[:3] == [[*range(9)], [*range(9, 18)], [*range(24, 33)]]
    assert tokens_of(fitted)[3] == [*range(18, 21), *range(21, 24), *range(33, 36)]
    assert fitted.lengths.tolist() == [9, 9, 9, 3, 3, 3]


def test_documents_are_cut_where_they_fit_badly() -> None:
    fitted = fit_documents(np.full(20, 6), 10)  # whole, they would leave 4 of 10
    assert len(fitted) == 12
    assert fitted.lengths.sum() == 120
    assert fitted.lengths.tolist().count(6) == 12  # of the blocks that stay
    assert sorted(set(fitted.lengths.tolist())) == [2, 4, 6]


def test_documents_that_fit_well_stay_whole() -> None:
    fitted = fit_documents(np.tile([61, 39, 50, 25, 25], 100), 100)
    assert sorted(fitted.lengths.tolist()) == sorted([61, 39, 50, 25, 25] * 100)
    assert len(fitted) == 200


@settings(max_examples=300)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=80), SIZES)
def test_every_token_is_in_one_block_and_padding_is_bounded(lengths: list[int], size: int) -> None:
    fitted = fit_documents(np.asarray(lengths), size)
    total = sum(lengths)
    held = tokens_of(fitted)
    assert sorted(token for block in held for token in block) == list(range(total))
    assert all(0 < len(block) <= size for block in held)
    padding = len(fitted) * size - total
    assert padding < size or padding <= 0.01 * len(fitted) * size
    edges = np.cumsum(lengths)
    first = np.searchsorted(edges, fitted.starts, side="right")
    last = np.searchsorted(edges, fitted.starts + fitted.lengths - 1, side="right")
    assert (first == last).all()  # no piece holds parts of two documents
    assert (fitted.lengths > 0).all()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), SIZES)
def test_short_documents_are_whole_unless_they_leave_too_much(lengths: list[int], size: int) -> None:
    lengths = [min(length, size) for length in lengths]
    total, blocks = sum(lengths), len(one_by_one(lengths, size))
    fitted = fit_documents(np.asarray(lengths), size)
    if blocks * size - total <= 0.01 * blocks * size or blocks == -(-total // size):
        assert sorted(fitted.lengths.tolist()) == sorted(lengths)
    else:
        assert len(fitted) < blocks


def test_padding_stays_under_one_percent_for_any_length_of_document() -> None:
    for length in range(1, 300):
        fitted = fit_documents(np.full(5000, length), 128)
        assert fitted.lengths.sum() == 5000 * length
        padding = len(fitted) * 128 - 5000 * length
        assert padding <= 0.01 * len(fitted) * 128 or padding < 128


@pytest.mark.parametrize(
    ("starts", "lengths", "expected"),
    [([5, 0, 9], [2, 0, 3], [5, 6, 9, 10, 11]), ([], [], [])],
)
def test_spans(starts: list[int], lengths: list[int], expected: list[int]) -> None:
    found = spans(np.asarray(starts, dtype=np.int64), np.asarray(lengths, dtype=np.int32))
    assert (found.tolist(), found.dtype) == (expected, np.int64)
