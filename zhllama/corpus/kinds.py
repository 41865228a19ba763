"""Kinds of text (books, web, forums, encyclopedia, code): the folder of a raw corpus that a document comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from zhllama.config import UserError
from zhllama.corpus.read import Corpus, list_files
from zhllama.rows import read_rows

OTHER = "other"


def kind_of(source: str) -> str:
    """The first folder of the file that a document came from; `other` for a file that lies in none."""
    folder, inside, _ = source.partition("/")
    return folder if inside else OTHER


def read_kinds(corpora: Sequence[Corpus], kinds: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The documents of these kinds in corpora that `clean` wrote, each with its kind's place among them."""
    places = {kind: place for place, kind in enumerate(kinds)}
    return ((places[kind], text) for kind, text in _documents(corpora) if kind in places)


def count_kinds(corpora: Sequence[Corpus]) -> Counter[str]:
    """How many documents of each kind there are, as `clean` has counted them.

    Raises:
        UserError: a corpus that `clean` did not write, which does not say where its documents are from, or a row that
            does not.
    """
    counts: Counter[str] = Counter()
    for corpus in corpora:
        found = corpus.result.get("kinds")
        if not found:
            raise UserError(f"--shares: {corpus} does not say of what kind its documents are; clean it first")
        counts.update(found)
    return counts


def _documents(corpora: Sequence[Corpus]) -> Iterator[tuple[str, str]]:
    for file in (file for corpus in corpora for file in list_files(corpus)):
        for number, row in read_rows(file, "utf-8", lists=False, halves=True):
            if not (
                isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("source", "text"))
            ):
                raise UserError(f"{file} line {number}: not as clean writes it; clean the text again")
            yield kind_of(row["source"]), row["text"]
