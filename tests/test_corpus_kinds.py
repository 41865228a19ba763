"""Kinds of text: what the documents of a clean corpus say of themselves."""

import json
from pathlib import Path

import pytest

from zhllama.config import UserError
from zhllama.corpus.kinds import count_kinds, kind_of, read_kinds
from zhllama.corpus.read import Corpus


def corpus(folder: Path, *lines: str) -> Corpus:
    record = {"kind": "corpus", "command": "clean", "result": {"kinds": {"books": 1, "other": 1}}}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "documents-00000-00000.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return Corpus.open(folder)


def test_documents_are_of_the_kind_of_their_folder(tmp_path: Path) -> None:
    rows = [{"text": "甲", "source": "books/a.txt"}, {"text": "乙", "source": "b.txt"}]
    found = corpus(tmp_path, *map(json.dumps, rows))
    assert count_kinds([found, found]) == {"books": 2, "other": 2}
    assert list(read_kinds([found], ["other"])) == [(0, "乙")]
    assert list(read_kinds([found], ["other", "books"])) == [(1, "甲"), (0, "乙")]
    assert kind_of("web/a/b.txt") == "web"


@pytest.mark.parametrize(
    "line", ['{"text": "甲"}', '{"text": "甲", "source": 1}', '"text source"', "{", "NaN"]
)
def test_a_row_that_clean_did_not_write_is_named(tmp_path: Path, line: str) -> None:
    found = corpus(tmp_path, '{"text": "甲", "source": "a"}', line)
    with pytest.raises(UserError, match=r"00000.jsonl line 2: not as clean writes it; clean the text again"):
        list(read_kinds([found], ["other"]))


@pytest.mark.parametrize("source", ["", "hf:org/name"])
def test_a_corpus_that_clean_did_not_write_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(UserError, match="does not say of what kind its documents are; clean it first"):
        count_kinds([Corpus.open(source or tmp_path)])
