import random
import re
import time
from pathlib import Path

import pytest

from zhllama.config import UserError
from zhllama.corpus.compare import folded
from zhllama.corpus.words import Words, read_words


def found(words: list[str], text: str) -> list[str]:
    return list(Words(map(folded, words)).find(folded(text)))


def test_the_longest_word_is_found_at_each_place() -> None:
    words = ["博彩", "博彩网", "六合彩", "a.b"]
    assert found(words, "博彩网和六合彩，博彩，axb，a.b") == [
        "博彩网",
        "六合彩",
        "博彩",
        "a.b",
    ]


def test_latin_words_are_whole_and_case_and_width_do_not_count() -> None:
    assert found(["vpn", "卖vip"], "VPN ＶＰＮ vpns 用VPN上网 卖VIP号 卖vips") == [
        "vpn",
        "vpn",
        "vpn",
        "卖vip",
    ]


def test_words_inside_and_across_others_are_as_one_by_one() -> None:
    source = random.Random(1)
    for _ in range(500):
        words = ["".join(source.choices("ab1中文 ", k=source.randint(1, 5))) for _ in range(6)]
        text = "".join(source.choices("ab1中文 ", k=40))
        expected, place = [], 0
        while place < len(text):
            whole = [
                word
                for word in words
                if text.startswith(word, place)
                and not re.search("[ab1]{2}", text[max(place - 1, 0) : place + 1] if place else "")
                and not re.search("[ab1]{2}", text[place + len(word) - 1 : place + len(word) + 1])
            ]
            expected += [max(whole, key=len)] if whole else []
            place += len(expected[-1]) if whole else 1
        assert list(Words(words).find(text)) == expected


def test_time_does_not_grow_with_the_list(chinese_text: str) -> None:
    def seconds(count: int) -> float:
        search = Words(chinese_text[n * 3 : n * 3 + 9] + "〇" for n in range(count))
        begun = time.process_time()
        assert not list(search.find(chinese_text))
        return time.process_time() - begun

    assert seconds(10_000) < 20 * seconds(100) + 0.1


def test_a_file_of_words(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("# 词表\n博彩\n\n 六合彩 \n", encoding="utf-8")
    assert list(read_words(tmp_path / "a.txt").find("博彩六合彩#")) == ["博彩", "六合彩"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be opened"),
        (b"\xb2\xa9\xb2\xca", "not UTF-8 at byte 0"),
        (b"# a\n\n", "no word inside"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_words(tmp_path / "a.txt")
