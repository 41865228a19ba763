"""Kinds of text (books, web, forums, encyclopedia, code): the folder of a raw corpus that a document comes from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from zhllama.config import UserError
from zhllama.corpus.read import Corpus, list_files

OTHER = "other"


def kind_of(source: str) -> str:
    """The first folder of the file that a document came from; `other` for a file that lies in none."""
    folder, inside, _ = source.partition("/")
    return folder if inside else OTHER


def read_kind(corpora: Sequence[Corpus], kind: str) -> Iterator[str]:
    """The documents of one kind in corpora that `clean` wrote."""
    return (text for found, text in _documents(corpora) if found == kind)


def count_kinds(corpora: Sequence[Corpus]) -> Counter[str]:
    """How many documents of each kind there are.

    Raises:
        UserError: a corpus that `clean` did not write, which does not say where its documents are from.
    """
    if strange := [corpus for corpus in corpora if not corpus.record]:
        raise UserError(f"--shares: {strange[0]} does not say of what kind its documents are; clean it first")
    return Counter(kind for kind, _ in _documents(corpora))


def _documents(corpora: Sequence[Corpus]) -> Iterator[tuple[str, str]]:
    for file in (file for corpus in corpora for file in list_files(corpus.path)):
        with file.open("rb") as lines:
            for row in map(json.loads, lines):
                yield kind_of(row["source"]), row["text"]
