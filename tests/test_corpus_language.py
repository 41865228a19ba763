import pytest

from zhllama.corpus.language import is_code, shares, unwanted
from zhllama.demo.material import news, reviews

SIMPLE = "国务院今天公布了关于经济发展与环境保护的新规定，各地反响热烈。"
TRADITIONAL = "國務院今天公佈了關於經濟發展與環境保護的新規定，各地反響熱烈。"
ENGLISH = "The committee met on Tuesday and agreed to publish the results of the survey next month."
RUSSIAN = "Сегодня правительство объявило о новых правилах охраны окружающей среды."
JAPANESE = "今日は東京で新しい環境規制が発表されました。とても大切なことです。"
CODE = "import os\ndef main(names):\n    n = 0\n    for name in names:\n        n += len(name)\n    return n"
KEEP = frozenset({"zh", "zh-Hant", "en", "code"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SIMPLE, "zh"),
        (TRADITIONAL, "zh-Hant"),
        (ENGLISH, "en"),
        ("Ｔｈｅ　ｃｏｍｍｉｔｔｅｅ　ｍｅｔ　ｏｎ　Ｔｕｅｓｄａｙ　ａｎｄ　ｗａｓ　ｇｌａｄ", "en"),
        (RUSSIAN, "ru"),
        (JAPANESE, "ja"),
        (SIMPLE + "の", "zh"),
        (CODE, "code"),
        ("１２３", None),
        (SIMPLE + "\x00\ufffe\U0001ffff\ud800", "zh"),
    ],
)
def test_the_main_language(text: str, expected: str | None) -> None:
    assert next(iter(shares(text)), None) == expected


def test_a_little_kana_among_characters_of_extension_b_is_not_japanese() -> None:
    rare = "".join(chr(0x20000 + 7 * number) for number in range(120))
    quoted = "経済産業省の発表によると日本の輸出は増加した"
    assert shares(rare[:60] + quoted + rare[60:]).keys() == {"zh-Hant", "zh"}


def test_prose_with_a_few_such_lines_is_no_code() -> None:
    assert not is_code(f"{SIMPLE}\n{SIMPLE}\n{SIMPLE}\nx = 1;")
    assert not is_code("x = 1")


def test_a_mixture_is_kept_by_the_share_of_what_is_wanted() -> None:
    assert not unwanted(shares(SIMPLE * 3 + RUSSIAN), KEEP, 0.5)
    assert unwanted(shares(SIMPLE + RUSSIAN * 3), KEEP, 0.5)
    assert not unwanted({}, KEEP, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("documents", [news, reviews])
def test_good_chinese_is_kept(documents: object) -> None:
    texts = documents()[::7]  # type: ignore[operator]
    lost = [text for text in texts if unwanted(shares(text), KEEP, 0.5)]
    assert sum(map(len, lost)) <= 0.001 * sum(map(len, texts))
