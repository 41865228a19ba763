"""Kinds of text: what the documents of a clean corpus say of themselves."""

import json
from pathlib import Path

import pytest

from zhllama.config import UserError
from zhllama.corpus.kinds import count_kinds, kind_of, read_kind


def corpus(folder: Path, *lines: str) -> Path:
    (folder / "run.json").write_text(json.dumps({"kind": "corpus", "command": "clean", "result": {}}))
    (folder / "documents-00000-00000.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_documents_are_of_the_kind_of_their_folder(tmp_path: Path) -> None:
    rows = [{"text": "甲", "source": "books/a.txt"}, {"text": "乙", "source": "b.txt"}]
    path = corpus(tmp_path, *map(json.dumps, rows))
    assert count_kinds([path]) == {"books": 1, "other": 1}
    assert list(read_kind([path], "books")) == ["甲"]
    assert kind_of("web/a/b.txt") == "web"


@pytest.mark.parametrize(
    "line", ['{"text": "甲"}', '{"text": "甲", "source": 1}', '"text source"', "{", "NaN"]
)
def test_a_row_that_clean_did_not_write_is_named(tmp_path: Path, line: str) -> None:
    path = corpus(tmp_path, '{"text": "甲", "source": "a"}', line)
    with pytest.raises(UserError, match=r"00000.jsonl line 2: not as clean writes it; clean the text again"):
        count_kinds([path])


def test_a_corpus_that_clean_did_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not say of what kind its documents are; clean it first"):
        count_kinds([tmp_path])
