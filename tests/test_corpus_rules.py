import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhllama.corpus import rules
from zhllama.corpus.rules import Limits, judge, normalise, repetition

NEWS = "新华社北京电，国务院侨务办公室主任今天通过新闻媒介，向海外同胞致以新年的祝贺。"


def test_normalising_keeps_newlines_tabs_and_full_width() -> None:
    assert normalise("\u3000\u3000甲，\n\n\t乙１２３！") == "\u3000\u3000甲，\n\n\t乙１２３！"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("甲\r\n乙\r丙\u2028丁\x85戊", "甲\n乙\n丙\n丁\n戊"),
        ("甲\x00乙\x07丙\x7f\ufeff\u200b", "甲乙丙"),
        ("甲\ue000\uf8ff\U000f1234乙\ud800", "甲乙"),
        ("\n\n甲 \t\n乙\u3000\n\n", "甲\n乙"),
        ("cafe\u0301", "caf\u00e9"),
        ("家\u200d人", "家\u200d人"),
    ],
)
def test_normalising(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("完</s>", "完</ s>"),
        ("<s>始<unk><pad>", "< s>始< unk>< pad>"),
        ("<|im_end|><|begin_of_text|>", "<| im_end|><| begin_of_text|>"),
        ("<｜end▁of▁sentence｜>", "<｜ end▁of▁sentence｜>"),
        ("[INST]问[/INST][PAD]", "[ INST]问[/ INST][ PAD]"),
        ("a<b, <strong>c</strong>, x[i] <|a b|> 表|列|", "a<b, <strong>c</strong>, x[i] <|a b|> 表|列|"),
    ],
)
def test_literal_special_tokens_are_broken_up(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text(st.sampled_from("甲a1 \n\r\t\u3000\u0301<>/|s[INST]\x00\u2028\ue000e"), max_size=60))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (NEWS, None),
        (NEWS + "他说 </ s> 是什么？\n" + "The rest is English, which is welcome too.", None),
        (" \n\u3000", "empty"),
        ("房间不错，下次还来。", "too short"),
        (NEWS + "锟斤拷", "garbled"),
        (NEWS + "\ufffd", "garbled"),
        ("１１９４·１０ １２００·９５ １２５０·０１ 上证指数", "mostly symbols"),
        ("不错" * 30, "repetitive"),
        ("好" * 20, "repetitive"),
    ],
)
def test_each_reason(text: str, reason: str | None) -> None:
    assert judge(text, Limits()) == reason


def test_too_little_chinese_counts_letters_only() -> None:
    limits = Limits(min_chinese=0.5)
    assert judge("This sentence is about 北京 and little else.", limits) == "too little Chinese"
    assert judge(NEWS + "，1998-01-01，（ＷＴＯ）。", limits) is None


def test_repetition_is_the_share_of_sequences_seen_before() -> None:
    assert repetition("") == repetition("一二三四五六七八九十") == 0
    assert repetition("一二三四五六七八九十" * 2) == pytest.approx(1 / 11)


def test_repetition_of_a_long_text_is_counted_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "WINDOW", 20)
    text = "一二三四五六七八九十" * 6 + "甲乙丙丁戊己庚辛壬癸子丑寅卯"
    assert repetition(text) == pytest.approx(1 - (10 + 10 + 19 + 5) / 65)
