"""Decontamination: what must not be learnt because a model is measured on it, for corpora and for conversations.

A text is contaminated where it holds a piece of an evaluation text. Both look pieces up in the index below; what a
piece is differs. Of documents, 13 letters in a row: a paragraph of a test gives it away. Of conversations a question
as a whole (`conversation.evaluation`), since instructions share their wording: of one half of 705 rows of pCLUE, 240
share 13 letters in a row with the other half, where 4 ask the same. For the same reason every text of a file counts
for documents, and for conversations its questions alone: short answers stand in rows of any kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zhllama.config import UserError
from zhllama.corpus.compare import letters
from zhllama.corpus.ngrams import ngram_hashes
from zhllama.decode import PACKED, extension_of, read_lines
from zhllama.rows import read_rows
from zhllama.tables import TABLES, Unread

OVERLAP = 13
REASON = "in an evaluation file"
BITS = 20  # of a hash that a first look takes
SHIFT = np.uint64(64 - BITS)
TEXTS = (".txt", ".json", ".jsonl", ".csv", ".tsv")


@dataclass(frozen=True)
class EvaluationIndex:
    """The sequences of `size` characters of evaluation texts.

    Attributes:
        hashes: (sequences,) uint64, each once, sorted.
        numbers: (sequences,) uint32, the number of the first text that has each.
    """

    size: int
    hashes: NDArray[np.uint64]
    numbers: NDArray[np.uint32]

    @classmethod
    def of(cls, size: int, texts: Iterable[tuple[int, str]]) -> EvaluationIndex:
        """The index of numbered texts, in the form in which they are compared; 12 bytes a character of them."""
        hashes = [np.empty(0, dtype=np.uint64)]
        numbers = [np.empty(0, dtype=np.uint32)]
        for number, text in texts:
            hashes.append(ngram_hashes(text, size))
            numbers.append(np.full(len(hashes[-1]), number, dtype=np.uint32))
        distinct, first = np.unique(np.concatenate(hashes), return_index=True)
        return cls(size, distinct, np.concatenate(numbers)[first])

    def save(self, folder: Path) -> None:
        """Write `evaluation-hashes.npy` and `evaluation-numbers.npy`."""
        np.save(folder / "evaluation-hashes.npy", self.hashes)
        np.save(folder / "evaluation-numbers.npy", self.numbers)

    @classmethod
    def open(cls, size: int, folder: Path) -> EvaluationIndex:
        """What `save` wrote, mapped: one copy for all processes."""
        arrays = (np.load(folder / f"evaluation-{name}.npy", mmap_mode="r") for name in ("hashes", "numbers"))
        return cls(size, *arrays)

    def find(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Where in a text of the same form known sequences begin, and the number of each."""
        mine = ngram_hashes(text, self.size)
        likely = np.flatnonzero(self.beginnings[mine >> SHIFT])
        places = np.searchsorted(self.hashes, mine[likely])
        same = self.hashes[np.minimum(places, len(self.hashes) - 1)] == mine[likely]
        return likely[same], self.numbers[places[same]]

    @cached_property
    def beginnings(self) -> NDArray[np.bool_]:
        """(2^20,) whether any hash begins with these bits: a first look, several times as fast as a search."""
        table = np.zeros(1 << BITS, dtype=np.bool_)
        table[self.hashes >> SHIFT] = True
        return table


def write_index(folder: Path, work: Path) -> None:
    """Write the hashes of all 13-character sequences of a folder's files, sorted, and the file of each.

    Every text in .json, .jsonl and tables, line of .txt and cell of .csv and .tsv counts on its own, by its letters and
    digits; shorter ones cannot be told from chance and are left out. Memory is 12 bytes a character of the files.

    Raises:
        UserError: no such folder, no file of a kind we read or no text of 13 letters in it, a file that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"--decontaminate {folder}: no such folder")
    kinds = (*TEXTS, *TABLES)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and extension_of(file) in kinds]
    texts = ((number, letters(text)) for number, file in enumerate(files) for text in _texts(file))
    index = EvaluationIndex.of(OVERLAP, texts)
    if not len(index.hashes):
        raise UserError(
            f"--decontaminate {folder}: no text of {OVERLAP} letters in {' '.join(TEXTS)} files inside, "
            f"{' '.join(PACKED)} too, nor in {' '.join(TABLES)}"
        )
    index.save(work)
    names = [file.relative_to(folder).as_posix() for file in files]
    (work / "evaluation-files.json").write_text(json.dumps(names), encoding="utf-8")


def _texts(file: Path) -> Iterator[str]:
    if extension_of(file) == ".txt":
        yield from read_lines(file, "guess")
        return
    for number, row in read_rows(file, lists=extension_of(file) == ".json"):
        if isinstance(row, Unread):
            raise UserError(
                f"--decontaminate: {file} cannot be read (line {number}: {row.reason}); mend or delete it"
            )
        yield from _strings(row)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
