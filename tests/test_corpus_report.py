"""The report page of a corpus."""

import json
import re

import pytest

from zhllama.corpus.clean import CleanConfig, clean

SENTENCES = [
    f"据本报记者第{number}号报道，各地反响热烈，详情见第{number % 7 + 1}版。" for number in range(60)
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report on two kinds: 60 documents, a copy and an empty one; a short one in none."""
    path = tmp_path_factory.mktemp("report")
    for kind, texts in (("web", [*SENTENCES[:40], SENTENCES[0], "１２３" * 20]), ("books", SENTENCES[40:])):
        (path / "raw" / kind).mkdir(parents=True)
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (path / "raw" / kind / "a.jsonl").write_text(rows, encoding="utf-8")
    (path / "raw" / "short.txt").write_text("太短", encoding="utf-8")
    clean(CleanConfig(str(path / "raw"), str(path / "out"), workers=1, near_duplicates=False))
    return (path / "out" / "report.html").read_text(encoding="utf-8")


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    table = page.split(f"<h2>{heading}</h2>")[1].split("</table>")[0]
    return [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in table.split("<tr>")[2:]]


def test_documents_and_characters_of_each_step(page: str) -> None:
    kept = sum(map(len, SENTENCES))
    read, copy = kept + len(SENTENCES[0]) + 62, kept + len(SENTENCES[0])
    assert rows(page, "Step by step") == [
        ["read", "63", "100.00%", f"{read:,}", "100.00%"],
        ["rules", "61", "96.83%", f"{copy:,}", f"{copy / read:.2%}"],
        ["without duplicates", "60", "95.24%", f"{kept:,}", f"{kept / read:.2%}"],
    ]


def test_kinds_and_sources_have_their_share(page: str) -> None:
    web, books = sum(map(len, SENTENCES[:40])), sum(map(len, SENTENCES[40:]))
    assert rows(page, "Kinds and sources") == [
        [
            "web",
            "42",
            "40",
            f"{web + len(SENTENCES[0]) + 60:,}",
            f"{web:,}",
            f"{web / (web + len(SENTENCES[0]) + 60):.2%}",
            f"{web / (web + books):.2%}",
        ],
        ["books", "20", "20", f"{books:,}", f"{books:,}", "100.00%", f"{books / (web + books):.2%}"],
        ["other", "1", "0", "2", "0", "0.00%", "0.00%"],
    ]
    assert "<td>books/a.jsonl</td>" in page


def test_frequent_sequences_and_qualities_are_shown(page: str) -> None:
    first, *_ = rows(page, "Frequent sequences of Chinese characters")
    assert first[0] == first[2]
    assert len(first[0]) == 2
    assert first[0] in SENTENCES[0]
    assert page.count("<svg") == 4
    for title in ("Chinese per document", "Symbols per document", "Repetition per document"):
        assert title in page
