import gzip
from pathlib import Path

import pytest

from zhllama import decode
from zhllama.config import UserError
from zhllama.corpus.pages import markdown, web_page, whole
from zhllama.corpus.read import Layout, read_file
from zhllama.demo.material import news


def page(text: str) -> str:
    body = "".join(f"<p>{line}</p>" for line in text.split("\n"))
    return (
        "<html><head><title>标题</title><script>var x = '脚本';</script></head><body>"
        "<nav><a href='/'>网站首页</a> <a href='/n'>新闻频道</a></nav>"
        f"<article>{body}</article><footer>版权所有 未经授权禁止转载</footer></body></html>"
    )


@pytest.fixture(scope="module")
def article() -> str:
    return next(text for text in news() if 500 < len(text) < 1500)


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_the_text_of_a_web_page_is_read_without_menu_and_footer(
    tmp_path: Path, article: str, encoding: str
) -> None:
    (tmp_path / "a.html.gz").write_bytes(gzip.compress(page(article).encode(encoding)))
    (line, text), *more = read_file(tmp_path / "a.html.gz", Layout(encoding="guess"))
    assert (line, more) == (1, [])
    for paragraph in article.split("\n"):
        assert paragraph in text
    for other in ("网站首页", "版权所有", "脚本"):
        assert other not in text


def test_a_page_without_text_is_empty() -> None:
    assert web_page("") == web_page("<html><body></body></html>") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\ntitle: 甲\n---\n# 乙\n\n---\n丙", "# 乙\n\n---\n丙"),
        ("+++\ntitle = '甲'\n+++\n乙", "乙"),
        ("# 甲\n\n---\n乙\n---\n", "# 甲\n\n---\n乙\n---\n"),
        ("---\n没有结尾\n", "---\n没有结尾\n"),
    ],
)
def test_markdown_loses_its_front_matter_only(text: str, expected: str) -> None:
    assert markdown(text) == expected


def test_a_markdown_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\na: b\n---\n# 甲\n\n乙\n", encoding="utf-8")
    assert [text for _, text in read_file(tmp_path / "a.md", Layout())] == ["# 甲\n\n乙"]


def test_a_page_beyond_the_longest_document_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "LONGEST_DOCUMENT", 5)
    with pytest.raises(UserError, match=r"a.html: longer than 5 characters"):
        whole(Path("a.html"), iter(["一二三", "四五六"]))
