"""Invisible characters: gone where they say nothing, kept where emoji and scripts need them."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhllama.artifact import read_record
from zhllama.cli import main
from zhllama.corpus.invisible import without_invisible
from zhllama.corpus.privacy import redact
from zhllama.corpus.rules import normalise

# Of each kind: soft hyphen, joiners, marks of direction, fillers, word joiner, selectors, tags, anchors of ruby text.
KINDS = (
    "\u00ad\u034f\u061c\u115f\u180e\u200b\u200c\u200d\u200e\u202d\u2060\u2066\u3164\ufe0f\ufeff\ufff9"
    "\U000e0041\U000e0101"
)
WELL_PLACED = [
    "👨\u200d👩\u200d👧",
    "❤\ufe0f\u200d🔥",
    "🏴\U000e0067\U000e0062\U000e007f",
    "1\ufe0f\u20e3",
    "葛\U000e0100",
    "می\u200cخواهم",
    "क्\u200dष",
    "ᠠ\u180b",
    "✈\ufe0e",
]


@pytest.mark.parametrize("mark", KINDS, ids=lambda mark: f"{ord(mark):04x}")
def test_a_mark_inside_a_number_or_a_word_is_gone(mark: str) -> None:
    assert without_invisible(f"拨139{mark}1234{mark}5678找lao{mark}wang{mark}") == "拨13912345678找laowang"


@pytest.mark.parametrize("text", WELL_PLACED, ids=ascii)
def test_what_belongs_stays(text: str) -> None:
    assert without_invisible(f"看{text}吧") == f"看{text}吧"


def test_every_format_character_between_chinese_is_gone() -> None:
    """But for those of Arabic, Syriac, Kaithi and hieroglyphs, which people see."""
    marks = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Cf"]
    left = [mark for mark in marks if len(without_invisible(f"甲{mark}乙")) > 2]
    assert all(
        unicodedata.name(mark).split()[0] in ("ARABIC", "SYRIAC", "KAITHI", "EGYPTIAN") for mark in left
    )


@given(st.text(st.sampled_from("中a1#，👨🔥❤🏴\u0645\u20e3" + KINDS), max_size=12))
def test_twice_is_as_once_and_nothing_visible_goes(text: str) -> None:
    once = without_invisible(text)
    assert without_invisible(once) == once
    seen = [character for character in text if character not in KINDS]
    assert [character for character in once if character not in KINDS] == seen
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize("mark", KINDS, ids=lambda mark: f"{ord(mark):04x}")
def test_a_long_run_of_marks_takes_one_pass(mark: str) -> None:
    """One by one, 300,000 of them would take hours."""
    assert without_invisible("甲乙a" + mark * 300_000 + "b") == "甲乙ab"


def test_numbers_and_mail_with_marks_inside_are_found_and_marks_are_counted(tmp_path: Path) -> None:
    texts = [
        "联系人的电话是\u202d13912345678\u202c，请在工作时间拨打，周末没有人接听，谢谢大家的理解。",
        "联系人的号码写作139\u200e1234\u200e5678，请在工作的时候拨打，放假的日子没有人接听，谢谢大家。",
        "老王的邮箱是lao\u00adwang@exam\u00adple.com，有事情可以写信给他，他一般在三天之内就会回信。",
    ]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    main(["clean", "--corpus", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out")])
    result = read_record(tmp_path / "out")["result"]
    assert result["personal"] == {"mobile": 2, "mail": 1}
    assert result["invisible_characters"] == 6
    assert all(redact(normalise(text))[1] for text in texts)
