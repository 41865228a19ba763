"""Signatures of texts, and the pairs that they propose."""

import random

import numpy as np
import pytest

from zhllama.corpus.compare import letters
from zhllama.corpus.minhash import (
    AT_ONCE,
    CONVERSATIONS,
    DOCUMENTS,
    GRAM,
    Banding,
    hash_sequences,
    permutations,
    propose_pairs,
    sign,
)
from zhllama.corpus.ngrams import ngram_hashes

BANDINGS = pytest.mark.parametrize("banding", [DOCUMENTS, CONVERSATIONS], ids=["documents", "conversations"])


def altered(text: str, share: float, seed: int) -> str:
    source = random.Random(seed)
    characters = list(text)
    for place in source.sample(range(len(characters)), max(1, round(share * len(characters)))):
        characters[place] = source.choice("的一是了我不人在他有这个上们来到时")
    return "".join(characters)


@pytest.fixture(scope="module")
def articles(chinese_text: str) -> list[str]:
    text = letters(chinese_text)
    return [text[at : at + 350] for at in range(0, 60 * 350, 350)]


def shared(left: str, right: str) -> float:
    grams = [set(ngram_hashes(text, GRAM).tolist()) for text in (left, right)]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def test_signatures_estimate_the_share_of_common_grams_without_bias(articles: list[str]) -> None:
    errors = []
    for number, text in enumerate(articles):
        pair = [text, altered(text, 0.03, number)]
        signed = sign(pair, DOCUMENTS)
        errors.append(np.mean(signed[0] == signed[1]) - shared(*pair))
    assert abs(np.mean(errors)) < 0.02  # the standard error of 60 estimates of 112 hashes is 0.006
    assert np.std(errors) < 0.06


@BANDINGS
def test_a_text_has_the_same_signature_whatever_stands_beside_it(banding: Banding) -> None:
    source = random.Random(1)
    lengths = [5, 9000, 6, AT_ONCE + 1, 40, 70]
    texts = ["".join(source.choices("天地玄黄宇宙洪荒日月盈昃辰宿列张", k=length)) for length in lengths]
    factors, terms = permutations(banding)
    for text, signed in zip(texts, sign(texts, banding), strict=True):
        hashes = (ngram_hashes(text, GRAM) >> np.uint64(32)).astype(np.uint32)
        assert (signed == (factors[:, None] * hashes + terms[:, None]).min(axis=1)).all()
    assert sign([], banding).shape == (0, banding.bands * banding.rows)


def test_hashes_depend_on_their_characters_alone() -> None:
    first, second = hash_sequences(["xxabcdefghij"]), hash_sequences(["abcdefg", "yabcdefy"])
    assert first[2] == second[0] == second[7 + GRAM + 1]
    assert len({int(value) for value in first[:8]}) == 8


@pytest.mark.parametrize(("banding", "change"), [(DOCUMENTS, 0.035), (CONVERSATIONS, 0.1)])
def test_pairs_are_proposed_as_often_as_the_banding_says(
    banding: Banding, change: float, articles: list[str]
) -> None:
    pairs = [(text, altered(text, change, seed)) for seed in range(4) for text in articles]
    expected = [1 - (1 - shared(*pair) ** banding.rows) ** banding.bands for pair in pairs]
    found = 0
    for first, second in pairs:
        found += any(len(some) for some in propose_pairs(sign([first, second], banding), banding))
    assert 0.3 < np.mean(expected) < 0.8
    assert found / len(pairs) == pytest.approx(np.mean(expected), abs=0.08)


def test_a_pair_is_the_first_that_agrees_and_the_one_before() -> None:
    signed = sign(["甲乙丙丁戊己", "子丑寅卯辰巳", "甲乙丙丁戊己", "甲乙丙丁戊己"], CONVERSATIONS)
    found = {tuple(pair) for some in propose_pairs(signed, CONVERSATIONS) for pair in some.tolist()}
    assert found == {(0, 2), (0, 3), (2, 3)}
