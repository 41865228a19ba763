"""Duplicates: the same, nearly the same, and not the same."""

import random

import numpy as np
import pytest

from zhllama.conversation.duplicates import overlap, plain, repeats, similar_pairs, windows


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


def test_white_space_case_and_width_do_not_count() -> None:
    assert plain(" Ａ b\n１，\u3000中") == "ab1,中"


def test_the_first_of_equal_texts_stays() -> None:
    assert repeats(["a", "b", "a", "a", "c", "b"]).tolist() == [False, False, True, True, False, True]


def test_overlap_is_that_of_the_sets_of_grams() -> None:
    assert overlap("abcdef", "abcdef") == 1
    assert overlap("abcdef", "abcdex") == 1 / 3
    assert overlap("abc", "abd") == 0
    assert overlap("abc", "abc") == 1


def test_near_copies_are_found_with_their_first(articles: list[str]) -> None:
    copies = [changed(article, 3, seed) for seed, article in enumerate(articles)]
    assert all(overlap(*pair) > 0.8 for pair in zip(articles, copies, strict=True))
    pairs = {tuple(pair) for pair in similar_pairs([*articles, *copies], 0.8).tolist()}
    wanted = {(at, len(articles) + at) for at in range(len(articles))}
    assert len(wanted & pairs) >= 0.99 * len(wanted)


def test_no_pair_below_the_similarity_is_given(articles: list[str]) -> None:
    texts = [*articles, *(changed(article, seed % 30, seed) for seed, article in enumerate(articles))]
    pairs = similar_pairs(texts, 0.7)
    assert len(pairs)
    assert all(a < b and overlap(texts[a], texts[b]) >= 0.7 for a, b in pairs.tolist())


def test_a_shared_beginning_makes_no_duplicates(articles: list[str]) -> None:
    asked = "请根据下面的描述回答医学问题，并给出详细的建议和理由。"
    assert len(similar_pairs([asked + article for article in articles], 0.8)) == 0


def test_pairs_are_the_same_whatever_comes_beside_them(articles: list[str]) -> None:
    texts = [*articles[:50], *(changed(article, 2, 0) for article in articles[:50])]
    alone = similar_pairs(texts, 0.8)
    beside = similar_pairs([*texts, *articles[50:]], 0.8)
    assert np.array_equal(alone, beside[beside.max(axis=1) < 100])


@pytest.mark.parametrize("texts", [[], ["one"], ["ab", "cd"], ["好", "坏", "中"]])
def test_few_or_short_texts_have_no_pairs(texts: list[str]) -> None:
    assert similar_pairs(texts, 0.8).shape == (0, 2)


def test_short_texts_that_are_equal_are_a_pair() -> None:
    assert similar_pairs(["好", "坏", "好"], 0.8).tolist() == [[0, 2]]


def test_windows_depend_on_their_characters_alone() -> None:
    first, second = windows(["xxabcdefghij"], 5), windows(["abcdefg", "yabcdefy"], 5)
    assert first[2] == second[0] == second[7 + 5 + 1]
    assert len({int(value) for value in first[:8]}) == 8
