"""Decontamination: documents that share 13 characters in a row with evaluation files do not get into a corpus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from zhllama.config import UserError
from zhllama.corpus.ngrams import letters, ngram_hashes
from zhllama.corpus.tally import DocumentTally
from zhllama.decode import PACKED, extension_of, read_lines
from zhllama.rows import read_rows
from zhllama.tables import TABLES, Unread

OVERLAP = 13
REASON = "in an evaluation file"
TEXTS = (".txt", ".json", ".jsonl", ".csv", ".tsv")


def write_index(folder: Path, work: Path) -> None:
    """Write the hashes of all 13-character sequences of a folder's files, sorted, and the file of each.

    Every text in .json, .jsonl and tables, line of .txt and cell of .csv and .tsv counts on its own, by its letters and
    digits; shorter ones cannot be told from chance and are left out. Memory is 12 bytes a character of the files.

    Raises:
        UserError: no such folder, no file of a kind we read or no text of 13 letters in it, a file that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"--decontaminate {folder}: no such folder")
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and extension_of(file) in (*TEXTS, *TABLES)
    ]
    hashes = [np.empty(0, dtype=np.uint64)]
    sources = [np.empty(0, dtype=np.uint32)]
    for number, file in enumerate(files):
        for text in _texts(file):
            hashes.append(ngram_hashes(letters(text), OVERLAP))
            sources.append(np.full(len(hashes[-1]), number, dtype=np.uint32))
    distinct, first = np.unique(np.concatenate(hashes), return_index=True)
    if not len(distinct):
        raise UserError(
            f"--decontaminate {folder}: no text of {OVERLAP} letters in {' '.join(TEXTS)} files inside, "
            f"{' '.join(PACKED)} too, nor in {' '.join(TABLES)}"
        )
    np.save(work / "evaluation-hashes.npy", distinct)
    np.save(work / "evaluation-files.npy", np.concatenate(sources)[first])
    names = [file.relative_to(folder).as_posix() for file in files]
    (work / "evaluation-files.json").write_text(json.dumps(names), encoding="utf-8")


class Decontaminate(PipelineStep):  # type: ignore[misc]
    """Drop documents that share 13 characters in a row with an evaluation file; count by file, show the shared ones."""

    type = "🔻 - FILTER"
    name = "zhllama decontamination"

    def __init__(self, work: str) -> None:
        super().__init__()
        self.work = Path(work)

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield what shares nothing; the index is mapped, one copy for all workers."""
        hashes = np.load(self.work / "evaluation-hashes.npy", mmap_mode="r")
        files = np.load(self.work / "evaluation-files.npy", mmap_mode="r")
        names = json.loads((self.work / "evaluation-files.json").read_text(encoding="utf-8"))
        tally = DocumentTally()
        for document in data:
            compared = letters(document.text)
            mine = ngram_hashes(compared, OVERLAP)
            places = np.minimum(np.searchsorted(hashes, mine), len(hashes) - 1)
            hits = np.flatnonzero(hashes[places] == mine)
            if not len(hits):
                yield document
                continue
            for number in np.unique(files[places[hits]]).tolist():
                tally.contaminated[names[number]] += 1
            begin = int(hits[0])
            tally.drop(REASON, document, note=f"shares {compared[begin : begin + OVERLAP]}: ")
        tally.save(str(self.work), "decontaminate", rank)


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
