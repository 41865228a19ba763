"""Overlap of characters, against the textbook's table and by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from zhllama.measure.overlap import common_share, longest_common, rouge_l


def table(left: str, right: str) -> int:
    """The textbook's way."""
    row = [0] * (len(right) + 1)
    for a in left:
        before = row
        row = [0]
        for at, b in enumerate(right):
            row.append(before[at] + 1 if a == b else max(before[at + 1], row[at]))
    return row[-1]


@given(some.text("天地人abc", max_size=90), some.text("天地人abc", max_size=90))
def test_the_longest_common_subsequence_is_the_tables(left: str, right: str) -> None:
    assert longest_common(left, right) == longest_common(right, left) == table(left, right)


@pytest.mark.parametrize(
    ("left", "right", "share"),
    [("天空是蓝色", "天是蓝的", 6 / 9), ("", "", 0.0), ("是", "", 0.0), ("同文", "同文", 1.0)],
)
def test_the_share_in_common(left: str, right: str, share: float) -> None:
    assert common_share(left, right) == share


def test_rouge_l_leaves_white_space_out() -> None:
    assert rouge_l("北 京 ", "北京\n") == 1.0
    assert rouge_l("人人为我", "我为人人") == 2 * 2 / 8
