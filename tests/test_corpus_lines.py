import json
from pathlib import Path

import pytest

from zhllama.corpus import lines
from zhllama.corpus.clean import CleanConfig, clean
from zhllama.corpus.lines import Repeats
from zhllama.corpus.read import read_documents
from zhllama.demo.material import news

FOOTER = "版权所有，未经本网站授权禁止转载"
STAMP = "发布时间：2023-01-{:02d} 阅读次数：{}"


def run(
    tmp_path: Path, name: str, texts: list[str], **settings: object
) -> tuple[list[str], dict[str, dict[str, int]]]:
    corpus, output = tmp_path / "in", tmp_path / name
    corpus.mkdir(exist_ok=True)
    for part in range(3):
        rows = texts[part * len(texts) // 3 : (part + 1) * len(texts) // 3]
        content = "".join(json.dumps({"text": text}) + "\n" for text in rows)
        (corpus / f"{part}.jsonl").write_text(content, encoding="utf-8")
    settings = {"shard_megabytes": 0.001, "near_duplicates": False, "workers": 1, **settings}
    clean(CleanConfig(str(corpus), str(output), **settings))  # type: ignore[arg-type]
    return list(read_documents(output)), json.loads((output / "run.json").read_text())["result"]


@pytest.fixture(scope="module")
def articles() -> list[str]:
    return [text for text in news()[:200] if 150 < len(text) < 600][:45]


def test_boilerplate_goes_and_all_else_stays(tmp_path: Path, articles: list[str]) -> None:
    plain, result = run(tmp_path, "plain", articles, boilerplate=20)
    assert result["removed"] == {}
    pages = [f"{STAMP.format(n % 28 + 1, n * 37)}\n{text}\n{FOOTER}" for n, text in enumerate(articles)]
    documents, result = run(
        tmp_path, "pages", [*pages, f"{STAMP.format(1, 2)}\n{FOOTER}\n短"], boilerplate=20
    )
    assert documents == plain
    assert result["removed"] == {"boilerplate lines": 2 * len(articles) + 2}
    assert result["dropped"]["only repeated lines"] == 1
    assert FOOTER in (tmp_path / "pages" / "report.html").read_text(encoding="utf-8")


def test_a_line_in_no_more_documents_than_that_stays(tmp_path: Path, articles: list[str]) -> None:
    pages = [f"{text}\n{FOOTER}" if n < 20 else text for n, text in enumerate(articles)]
    documents, _ = run(tmp_path, "out", pages, boilerplate=20)
    assert sum(FOOTER in document for document in documents) == 20


def test_a_paragraph_stays_in_the_first_document_only(tmp_path: Path, articles: list[str]) -> None:
    paragraph = max(articles[0].split("\n"), key=len)
    texts = [articles[0], *(f"{text}\n{paragraph}" for text in articles[1:])]
    documents, result = run(tmp_path, "out", texts, paragraphs=True)
    assert documents == articles
    assert result["removed"] == {"repeated paragraphs": len(articles) - 1}
    documents, result = run(tmp_path, "off", texts)
    assert (documents, result["removed"]) == (texts, {})


def test_merging_in_parts_changes_nothing(
    tmp_path: Path, articles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = [f"{text}\n{FOOTER}\n{articles[0]}" for text in articles]
    settings = {"boilerplate": 20, "paragraphs": True}
    whole, _ = run(tmp_path, "whole", pages, **settings)
    monkeypatch.setattr(lines, "PART", 7)
    assert run(tmp_path, "parts", pages, **settings)[0] == whole


def test_what_is_compared() -> None:
    both = Repeats(1, True)
    assert not both.hashes("return None  # nothing found")
    assert not both.hashes("“好的，好。”")
    assert Repeats(1).hashes("Copyright © 2024 燕赵在线 版权所有")
    assert Repeats(1).hashes("共12页，返回网站首页") == Repeats(1).hashes("共34页  返回网站首页")
    assert Repeats(0, True).hashes("一二三四五六七八九十" * 3 + "1") != Repeats(0, True).hashes(
        "一二三四五六七八九十" * 3 + "2"
    )
    assert len(both.hashes("一二三四五六七八九十" * 3)) == 2
    assert not Repeats()


def test_of_a_labelled_line_the_label_is_compared() -> None:
    only = Repeats(1)
    assert only.hashes("责任编辑：张三") == only.hashes("（责任编辑：欧阳修远）") != []
    assert only.hashes("2023年1月2日 来源: 新华社") == only.hashes("来源：某某晚报 点击：12") != []
    assert only.hashes("上一篇：节日港口生产忙") != only.hashes("下一篇：节日港口生产忙")
    assert only.hashes("编辑部：今天我们开会讨论") != only.hashes("编辑部：明天大家出去采访")
    long = "来源：" + "黄河发源于青藏高原的巴颜喀拉山脉，" * 5
    assert only.hashes(long + "向东流") != only.hashes(long + "入大海")


def test_lines_with_another_name_on_each_page_go(tmp_path: Path, articles: list[str]) -> None:
    pages = [f"{text}\n【编辑：王{chr(0x5000 + n)}】" for n, text in enumerate(articles)]
    documents, result = run(tmp_path, "labels", pages, boilerplate=20)
    assert documents == run(tmp_path, "plain", articles, boilerplate=20)[0]
    assert result["removed"] == {"boilerplate lines": len(articles)}
