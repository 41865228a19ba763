"""Which characters count as Chinese."""

import pytest

from zhllama.corpus.han import HAN, HAN_RANGES, count_han


@pytest.mark.parametrize("code", [edge for pair in HAN_RANGES for edge in pair] + [0x2B820, 0x30000])
def test_characters_of_every_extension_are_chinese(code: int) -> None:
    assert count_han(f"a{chr(code)}，{chr(code) * 2}") == 3


@pytest.mark.parametrize("text", ["，。（）", "のカㄅ", "한국", "１Ａa1", "⺀⿰", "\U0001f600"])
def test_marks_and_other_scripts_are_not(text: str) -> None:
    assert count_han(text) == 0
    assert not HAN.search(text)
