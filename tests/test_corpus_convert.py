import pytest

from zhllama.corpus.convert import Forms
from zhllama.corpus.rules import normalise


@pytest.mark.parametrize(
    ("forms", "expected"),
    [
        (Forms(), "國務院，瞭解乾隆年間，ＷＴＯ１２３（ａ）！"),
        (Forms(chinese="simplified"), "国务院，了解乾隆年间，ＷＴＯ１２３（ａ）！"),
        (Forms(width="half"), "國務院，瞭解乾隆年間，WTO123（a）！"),
        (Forms("simplified", "half"), "国务院，了解乾隆年间，WTO123（a）！"),
    ],
)
def test_each_form(forms: Forms, expected: str) -> None:
    assert forms.normaliser()("國務院，瞭解乾隆年間，ＷＴＯ１２３（ａ）！\r\n\x00") == expected


def test_half_width_makes_no_special_token() -> None:
    assert Forms(width="half").normaliser()("<ｓ>完</ｓ>") == "< s>完</ s>"


def test_simplified_text_and_what_a_file_may_hold_stay(chinese_text: str) -> None:
    convert = Forms(chinese="simplified").normaliser()
    assert convert("") == ""
    assert convert("甲\ud800乙\x00🙂") == "甲乙🙂"
    before = normalise(chinese_text[:20_000])
    changed = sum(a != b for a, b in zip(before, convert(before), strict=True))
    assert changed < len(before) / 1000
