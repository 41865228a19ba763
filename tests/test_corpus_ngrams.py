"""Sequences of characters and full-width forms, all at once."""

import random
import unicodedata

import pytest

from zhllama.corpus.ngrams import distinct_ngrams, narrow, ngram_hashes


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 13])
def test_distinct_sequences_are_those_of_a_set(size: int) -> None:
    text = "".join(random.Random(size).choices("中文aB1\U00020000", k=3000))
    assert distinct_ngrams(text, size) == len({text[at : at + size] for at in range(len(text) - size + 1)})


def test_hashes_of_grams_depend_on_their_characters_alone() -> None:
    first, second = ngram_hashes("甲乙丙丁戊己", 5), ngram_hashes("子乙丙丁戊己庚", 5)
    assert len(first) == 2
    assert first[1] == second[1]
    assert first[0] != second[0]
    assert len(ngram_hashes("甲乙丙丁", 5)) == len(ngram_hashes("", 5)) == 0


def test_a_text_shorter_than_a_sequence_has_none() -> None:
    assert distinct_ngrams("中文", 3) == distinct_ngrams("", 1) == 0


def test_full_width_ascii_is_narrow_and_nothing_else_changes() -> None:
    wide = "".join(map(chr, range(0xFF01, 0xFF5F))) + "\u3000"
    assert narrow(wide) == unicodedata.normalize("NFKC", wide)
    other = "中文，。—…①ｱ\U00020000\ud800\udc00".replace("，", "")
    assert narrow(other) == other
