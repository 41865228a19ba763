"""Curves whose shape is known in advance, and their knees."""

import pytest

from zhllama.page import line_plot
from zhllama.tokenizer.curves import coverage, draw_curves, growth, knee, with_knees
from zhllama.tokenizer.load import Loaded, load


def test_coverage_rises_to_everything(bytelevel_base: object) -> None:
    x, y = coverage(load(str(bytelevel_base)).fast, ["aaab"])
    assert x[0] == 1
    assert y[-1] == 1
    assert y == sorted(y)


def test_growth_begins_at_the_base_and_ends_at_the_whole(
    merged: tuple[Loaded, Loaded], chinese_text: str
) -> None:
    base, new = merged
    lines = chinese_text[:3000].splitlines()
    x, y = growth(new.fast, base.fast.get_vocab_size(), lines, points=4)
    assert x == [0, 375, 750, 1125, 1500]

    def density(loaded: Loaded) -> float:
        encodings = loaded.fast.encode_batch_fast(lines, add_special_tokens=False)
        return sum(map(len, lines)) / sum(len(encoding.ids) for encoding in encodings)

    assert (y[0], y[-1]) == (pytest.approx(density(base)), pytest.approx(density(new)))
    assert y == sorted(y)


def test_only_extensions_of_the_first_grow(merged: tuple[Loaded, Loaded], mistral_model: object) -> None:
    base, new = merged
    found = draw_curves({"base": base, "new": new, "again": base}, ["中国人民", "plain"])
    assert set(found["growth"]) == {"new"}
    assert set(found["coverage"]) == {"base", "new", "again"}
    assert draw_curves({"base": base}, ["plain"]) == {}


def test_knee_is_where_a_curve_turns() -> None:
    assert knee([0, 1, 2, 10], [0, 8, 9, 10]) == (1, 8)
    assert knee([0, 1], [0, 1]) is None
    assert knee([0, 1, 2], [5, 5, 5]) is None
    assert knee([3, 3, 3], [1, 2, 3]) is None


def test_knees_are_marked() -> None:
    curves = {"a": ([0.0, 1.0, 2.0, 10.0], [0.0, 8.0, 9.0, 10.0]), "flat": ([0.0, 1.0], [1.0, 1.0])}
    axes = with_knees(line_plot(curves, "x", "y", "title"), curves).axes[0]
    assert [text.get_text() for text in axes.texts] == ["1"]
