import json
from pathlib import Path

import pytest

from zhllama.config import UserError
from zhllama.corpus.clean import CleanConfig, clean
from zhllama.corpus.detectors import load_score
from zhllama.corpus.read import read_documents
from zhllama.demo.material import news

RUSSIAN = "Сегодня правительство объявило о новых правилах охраны окружающей среды."


def run(tmp_path: Path, texts: list[str], **settings: object) -> tuple[list[str], dict[str, dict[str, int]]]:
    corpus, output = tmp_path / "in.jsonl", tmp_path / "out"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    clean(CleanConfig(str(corpus), str(output), workers=1, near_duplicates=False, **settings))  # type: ignore[arg-type]
    return list(read_documents(output)), json.loads((output / "run.json").read_text())["result"]


def test_another_language_is_dropped_and_counted_unless_any_is_kept(tmp_path: Path) -> None:
    articles = [text for text in news()[:40] if len(text) > 100]
    documents, result = run(tmp_path, [*articles, RUSSIAN])
    assert result["languages"]["zh"] == len(documents)
    assert (result["dropped"]["another language"], result["languages"]["ru"]) == (1, 1)
    assert "<td>ru</td>" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    (tmp_path / "more").mkdir()
    documents, result = run(tmp_path / "more", [*articles, RUSSIAN], languages="any")
    assert RUSSIAN in documents
    assert result["languages"] == {}


def test_listed_words_drop_a_document_beyond_their_limit(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("国务院\n", encoding="utf-8")
    once = "国务院昨天公布了今年的经济发展计划，各地反响热烈。"
    never, twice = "气象台提醒市民注意降温，各地气温将下降十度以上。", once + "国务院还说了别的。"
    words = str(tmp_path / "words.txt")
    documents, result = run(tmp_path, [once, never, twice], words=words, max_words=1)
    assert documents == [once, never]
    assert result["dropped"] == {"listed words": 1}


def test_a_function_of_the_user_scores(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def long(text):\n    return len(text) / 100\n", encoding="utf-8")
    short, long = "气象台提醒市民注意降温，各地气温将下降十度以上。", next(t for t in news() if len(t) > 200)
    documents, result = run(tmp_path, [short, long], score=f"{tmp_path}/mine.py:long", min_score=1)
    assert documents == [long]
    assert result["dropped"] == {"low score": 1}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("mine.py", "write it as FILE.py:FUNCTION"),
        ("none.py:f", "write it as FILE.py:FUNCTION"),
        ("mine.py:g", "no function 'g' inside"),
        ("wrong.py:f", "does not run"),
    ],
)
def test_a_score_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("f = len\n", encoding="utf-8")
    Path("wrong.py").write_text("def f(:\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_score(place)
