"""Kinds of text (books, web, forums, encyclopedia, code): the folder of a raw corpus that a document comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from zhllama.artifact import read_record
from zhllama.config import UserError
from zhllama.corpus.read import list_files
from zhllama.rows import read_rows

OTHER = "other"


def kind_of(source: str) -> str:
    """The first folder of the file that a document came from; `other` for a file that lies in none."""
    folder, inside, _ = source.partition("/")
    return folder if inside else OTHER


def read_kind(corpora: Sequence[Path], kind: str) -> Iterator[str]:
    """The documents of one kind in corpora that `clean` wrote."""
    return (text for found, text in _documents(corpora) if found == kind)


def count_kinds(corpora: Sequence[Path]) -> Counter[str]:
    """How many documents of each kind there are.

    Raises:
        UserError: a corpus that `clean` did not write, which does not say where its documents are from, or a row that
            does not.
    """
    if strange := [path for path in corpora if not read_record(path)]:
        raise UserError(f"--shares: {strange[0]} does not say of what kind its documents are; clean it first")
    return Counter(kind for kind, _ in _documents(corpora))


def _documents(corpora: Sequence[Path]) -> Iterator[tuple[str, str]]:
    for file in (file for corpus in corpora for file in list_files(corpus)):
        for number, row in read_rows(file, "utf-8", lists=False, halves=True):
            if not (
                isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("source", "text"))
            ):
                raise UserError(f"{file} line {number}: not as clean writes it; clean the text again")
            yield kind_of(row["source"]), row["text"]
