import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhllama.corpus import rules
from zhllama.corpus.compare import without_space
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
        ("👨\u200d👩", "👨\u200d👩"),
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


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("utf-8", "gb18030"),
        ("utf-8", "latin-1"),
        ("utf-8", "cp1252"),
        ("gb18030", "latin-1"),
        ("gb18030", "big5"),
    ],
)
def test_a_text_decoded_wrongly_is_garbled(sent: str, read: str) -> None:
    text = normalise((NEWS * 3).encode(sent).decode(read, "ignore"))
    assert judge(text, Limits(max_repetition=1)) == "garbled"


@pytest.mark.parametrize(
    "text",
    [
        "新華社北京電，國務院僑務辦公室主任今天通過新聞媒介，向海外同胞緻以新年的祝賀，並問候臺灣各界。",
        "旅鼠、鼬鼠、鼯鼠与麝鼩分布甚广，鼹鼠栖于穴，獾与貉居于林，貂鼬捕之。",
        "Le café où Noël déçut l'élève: «Où êtes-vous né?» çà et là, naïveté, créée à l'opéra.",
        "目录······１　前言······２　结语······５　附录。",
    ],
)
def test_rare_words_and_other_letters_are_not_garbled(text: str) -> None:
    assert rules.garbled(without_space(text), Limits()) is None


def test_a_text_of_stars_and_emoji_is_ornaments() -> None:
    advert = "★★★全场五折起★★★\n🔥🔥🔥正品保证货到付款🔥\n限时抢购仅此一天错过再等"
    assert judge(advert, Limits()) == "ornaments"
    assert judge(advert, Limits(max_ornaments=0.5)) is None
    assert judge(NEWS + "★🎉", Limits()) is None


MENU = (
    "首页 新闻 国内 国际 军事 财经 股票 基金 体育 娱乐 明星 电影 音乐 科技 数码 手机 家电 汽车 房产 家居 教育 高考 "
    "留学 健康 育儿 女性 时尚"
)
LINKS = "首钢结构调整初见成效\n节日港口生产忙\n治疗乳腺癌有新药\n京郊电信扶贫\n公安部呼吁采取有力措施\n" * 2
PHRASES = "，".join(
    place + "注塑机批发" for place in ("北京", "上海", "天津", "重庆", "广州", "深圳", "南京", "苏州")
)
VERSE = (
    "归来的雁阵飞过渭水\n陕北的蒲公英就开放了\n挣扎着开放在\n窑洞向阳的墙角\n在秦皇战车碾过的大道旁\n"
    "像一支苦调歌谣\n像一盏黄晕的灯光"
)
TALK = "房间很干净服务也不错就是离地铁站有点远下次来还会住在这里前台的小姑娘很热情帮我们把行李都拿上去了推荐大家来住"


@pytest.mark.parametrize("text", [MENU, LINKS, PHRASES])
def test_a_list_has_no_sentences(text: str) -> None:
    limits = Limits(max_repetition=1)
    assert judge(text, limits) == "no sentences"
    assert judge(text, Limits(max_repetition=1, min_function_words=0)) is None
    assert judge(text[:50], limits) is None


@pytest.mark.parametrize(
    "text", [VERSE, TALK, "import re\n\nfor line in text.splitlines():\n    print(line)"]
)
def test_what_has_no_punctuation_is_not_yet_a_list(text: str) -> None:
    assert judge(text, Limits()) is None


def test_one_end_of_a_sentence_makes_no_list() -> None:
    names = (
        "新华社福州电政协福建省委员会选举游德馨为省政协主席，刘金美、王良、陈荣春、林逸、金能筹、陈增光、周厚稳、"
        "周畅、王耀华、李祖可为省政协副主席"
    )
    assert judge(names, Limits()) == "no sentences"
    assert judge(names + "。", Limits()) is None
    assert judge(names + ".", Limits()) is None
    assert judge(names + "\U00020000.", Limits()) is None  # an end behind a character of extension B
    assert judge(names + "a.", Limits()) == "no sentences"


def test_common_characters_are_the_first_levels_of_both_standards() -> None:
    assert rules.covered(rules.common(), "一的國国啊") == 5
    assert rules.covered(rules.common(), "龘靐，a1") == 0
