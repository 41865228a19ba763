"""Duplicates: the same, nearly the same, and not the same."""

import random

import numpy as np
import pytest

from zhllama.conversation.duplicates import jaccard, mark_near_copies, mark_repeated


def changed(text: str, count: int, seed: int) -> str:
    """The text with so many of its characters replaced."""
    drawn = random.Random(seed)
    characters = list(text)
    for at in drawn.sample(range(len(text)), count):
        characters[at] = drawn.choice("甲乙丙丁戊己庚辛")
    return "".join(characters)


@pytest.fixture(scope="module")
def articles(chinese_text: str) -> list[str]:
    text = chinese_text.replace("\n", "")
    return [text[at : at + 200] for at in range(0, 40_000, 200)]


def test_the_first_of_equal_texts_stays() -> None:
    assert mark_repeated(["a", "b", "a", "a", "c", "b"]).tolist() == [False, False, True, True, False, True]


def test_overlap_is_that_of_the_sets_of_grams() -> None:
    assert jaccard("abcdef", "abcdef") == 1
    assert jaccard("abcdef", "abcdex") == 1 / 3
    assert jaccard("abc", "abd") == 0
    assert jaccard("abc", "abc") == 1


def test_near_copies_are_found(articles: list[str]) -> None:
    copies = [changed(article, 3, seed) for seed, article in enumerate(articles)]
    assert all(jaccard(*pair) > 0.8 for pair in zip(articles, copies, strict=True))
    found = mark_near_copies([*articles, *copies], 0.8)
    assert not found[: len(articles)].any()
    assert found[len(articles) :].mean() >= 0.99


def test_nothing_below_the_similarity_is_found(articles: list[str]) -> None:
    texts = [*articles, *(changed(article, seed % 30, seed) for seed, article in enumerate(articles))]
    found = mark_near_copies(texts, 0.7)
    for place, of_all in enumerate(found.tolist()):
        assert of_all <= any(jaccard(texts[earlier], texts[place]) >= 0.7 for earlier in range(place))
    assert 20 < found.sum() < 180


def test_a_shared_beginning_makes_no_copies(articles: list[str]) -> None:
    asked = "请根据下面的描述回答医学问题，并给出详细的建议和理由。"
    assert not mark_near_copies([asked + article for article in articles], 0.8).any()


def test_copies_are_the_same_whatever_comes_behind_them(articles: list[str]) -> None:
    texts = [*articles[:50], *(changed(article, 2, 0) for article in articles[:50])]
    alone = mark_near_copies(texts, 0.8)
    assert np.array_equal(alone, mark_near_copies([*texts, *articles[50:]], 0.8)[:100])


def test_only_copies_of_the_first_count_where_asked(articles: list[str]) -> None:
    texts = [*articles[:20], changed(articles[3], 2, 0), articles[30], articles[30]]
    assert np.flatnonzero(mark_near_copies(texts, 0.8, of=20)).tolist() == [20]
    assert np.flatnonzero(mark_near_copies(texts, 0.8)).tolist() == [20, 22]


@pytest.mark.parametrize("texts", [[], ["one"], ["ab", "cd"], ["好", "坏", "中"]])
def test_few_or_short_texts_have_no_copies(texts: list[str]) -> None:
    assert mark_near_copies(texts, 0.8).tolist() == [False] * len(texts)


def test_short_texts_that_are_equal_are_copies() -> None:
    assert mark_near_copies(["好", "坏", "好"], 0.8).tolist() == [False, False, True]
