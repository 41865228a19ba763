import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhllama.corpus.clean import CleanConfig, clean
from zhllama.corpus.privacy import KINDS, find, redact
from zhllama.corpus.read import read_documents

FOUND = {
    "mail": ("写信到zhang.san@mail.example.com即可", "写信到[邮箱]即可"),
    "mail, full width": ("ｌｉ＠ｑｑ．ｃｏｍ", "[邮箱]"),
    "mail, hidden": ("wang(at)163.com", "[邮箱]"),
    "QQ": ("加QQ：123456789，", "加QQ：[QQ号]，"),
    "QQ group": ("Q群 1234567", "Q群 [QQ号]"),
    "WeChat": ("微信号：zhang_san", "微信号：[微信号]"),
    "WeChat, short": ("加vx abc12345", "加vx [微信号]"),
    "resident ID": ("身份证360426199101010071。", "身份证[身份证号]。"),
    "resident ID, parted": ("360426 19910101 0071", "[身份证号]"),
    "resident ID, old": ("身份证号码：360426910101007", "身份证号码：[身份证号]"),
    "credit code": ("代码91110000600037341L", "代码[信用代码]"),
    "bank card": ("6222 0212 3456 7890 128", "[银行卡号]"),
    "bank account": ("账号：020000100901213 1234", "账号：[银行卡号]"),
    "mobile": ("电话138 1234 5678转告", "电话[手机号]转告"),
    "mobile, full width": ("１３８１２３４５６７８", "[手机号]"),
    "mobile, country": ("+86-13812345678", "[手机号]"),
    "mobile, abroad": ("+44 7400 123456", "[手机号]"),
    "landline": ("（０１０）６５０９２９９３", "[电话]"),
    "landline, extension": ("021-58881234转805", "[电话]"),
    "landline, abroad": ("+44 20 7946 0958", "[电话]"),
    "mobile, dashes": ("139-5568-4601", "[手机号]"),
    "landline, in brackets": ("（010-65092993-805）", "（[电话]）"),
    "WeChat, slang": ("薇信zhangsan", "薇信[微信号]"),
    "landlines": ("电话：65091040，65092140。", "电话：[电话]，[电话]。"),
    "IP": ("从8.8.8.8访问", "从[IP地址]访问"),
    "IP 6": ("2001:4860:4860::8888", "[IP地址]"),
    "plate": ("驾驶京A·12345的", "驾驶[车牌]的"),
    "plate, electric": ("粤BD12345", "[车牌]"),
}
LEFT = [
    "360426199101010072",  # the check digit is wrong
    "360426199113010071",  # no such month
    "360426199102300071",  # no such day
    "91110000600037341M",
    "6222021234567890127",
    "13812345678901",
    "3.13812345678",
    "12012345678",
    "0000-12345678",
    "+999 123456789",
    "192.168.1.1 127.0.0.1",
    "2999:12:3",
    "版本 8.8.8.8",
    "1.2.3.4.5 256.1.1.1",
    "吉林１．８．０．１",
    "微信iphone版",
    "新A股1998年",
    "1998年1月1日12:30:45，3,141.59元，100%，第123456号",
    "std::vector<int> a[10]; @property",
    "皖Ａ座",
]


@pytest.mark.parametrize("name", FOUND)
def test_found_and_replaced(name: str) -> None:
    text, expected = FOUND[name]
    replaced, kinds = redact(text)
    assert replaced == expected
    assert set(kinds) == {
        {"bank account": "bank card", "landlines": "landline"}.get(name, re.split(",| g| 6", name)[0])
    }


@pytest.mark.parametrize("text", LEFT)
def test_what_only_looks_like_it_is_left(text: str) -> None:
    assert find(text) == []


def test_every_kind_has_a_case() -> None:
    found = {item.kind.name for text, _ in FOUND.values() for item in find(text)}
    assert found == {kind.name for kind in KINDS}


def test_news_keep_all_but_their_telephone_numbers(chinese_text: str) -> None:
    hits = [(item.kind.name, chinese_text[item.start : item.end]) for item in find(chinese_text)]
    assert {kind for kind, _ in hits} <= {"landline"}
    assert len(hits) <= 5


def test_items_far_into_a_text_and_side_by_side_are_found() -> None:
    text = "好" * 5000 + "13812345678、13912345678" + "好" * 5000 + "8.8.8.8"
    assert redact(text)[0] == "好" * 5000 + "[手机号]、[手机号]" + "好" * 5000 + "[IP地址]"


@given(st.lists(st.sampled_from([*(text for text, _ in FOUND.values()), *LEFT, "，", "电话", "QQ", "9"])))
def test_twice_changes_nothing(parts: list[str]) -> None:
    text = "好".join(parts)
    once, _ = redact(text)
    assert redact(once)[0] == once


def test_long_runs_take_linear_time() -> None:
    for run in ("1", "a", "1 ", "a.", "@", "京A", "+86 ", "a@"):
        find(run * (200_000 // len(run)))  # quadratic would take hours


def sample(seed: int) -> str:
    return "".join(random.Random(seed).choices("春夏秋冬风雨雪霜天地山河人口手足的了在是", k=60))


def run(tmp_path: Path, name: str, **settings: object) -> tuple[list[str], dict[str, object], str]:
    rows = [sample(1) + "手机13812345678，QQ：123456789", sample(2), sample(3) + "太短" * 400 + "13912345678"]
    rows += ["13712345678" + sample(4)[:3], "买" * 150 + "13612345678" * 3]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8"
    )
    output = tmp_path / name
    clean(CleanConfig(str(tmp_path / "a.jsonl"), str(output), workers=1, **settings))  # type: ignore[arg-type]
    result = json.loads((output / "run.json").read_text(encoding="utf-8"))["result"]
    return list(read_documents(output)), result, (output / "report.html").read_text(encoding="utf-8")


def test_cleaning_replaces_counts_and_never_prints(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    documents, result, page = run(tmp_path, "out")
    assert documents == [sample(1) + "手机[手机号]，QQ：[QQ号]", sample(2)]
    assert result["personal"] == {"mobile": 1, "QQ": 1}
    assert "personal data (replaced): 1 mobile, 1 QQ" in capfd.readouterr().out
    assert "<td>mobile</td><td>1</td>" in page
    assert not re.search(r"1\d{10}|123456789", page)


def test_cleaning_drops_or_keeps_and_still_prints_none(tmp_path: Path) -> None:
    documents, result, page = run(tmp_path, "dropped", privacy="drop")
    assert documents == [sample(2)]
    assert result["dropped"]["personal data"] == 1  # type: ignore[index]
    assert not re.search(r"1\d{10}|123456789", page)
    documents, result, page = run(tmp_path, "kept", privacy="keep")
    assert documents[0].endswith("QQ：123456789")
    assert result["personal"] == {}
    assert not re.search(r"1\d{10}|123456789", page)
