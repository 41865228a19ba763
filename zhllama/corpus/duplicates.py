"""Duplicates of whole documents as datatrove blocks: signed while they are read, dropped when they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig, ExactDedupSignature

from zhllama.corpus.compare import without_space
from zhllama.corpus.tally import DocumentTally

LAST_RANK = 65534  # datatrove's exact deduplication ranks tasks in 16 bits
# Reason -> the files in which it lists, by their place among the kept ones, the documents of a task to drop.
# The first that lists a document is its reason: an exact copy is not counted as a near one too.
LISTS = {"duplicate": "duplicates/00000/{:05d}.c4_dup", "near duplicate": "near/{:05d}"}


def text_without_space(document: Document) -> str:
    """What two documents must share to count as the same."""
    return without_space(document.text)


def priority(document: Document) -> int:
    """Of equal documents the earliest is kept: that of the highest priority, then the first in its task."""
    return int(document.metadata["priority"])


# By a hash of 64 bits, datatrove's default: among 100 million texts one mistake has a chance of 0.03%.
SAME = ExactDedupConfig(text_without_space, priority)


class SignSame(ExactDedupSignature):  # type: ignore[misc]
    """datatrove's first stage of exact deduplication, with the documents passed on to the next block."""

    def __init__(self, work: str) -> None:
        super().__init__(f"{work}/signatures", SAME)

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield every document unchanged."""
        signatures: list[tuple[int, int, int]] = []
        for number, document in enumerate(data):
            # Numbers are places among the kept documents of a task, as every later pass counts them.
            signatures += self.get_hashes(document, number)
            yield document
        self.save_hashes(rank, signatures)


class DropDuplicates(PipelineStep):  # type: ignore[misc]
    """Leave out the documents that the passes before have listed; the last pass counts them."""

    type = "🔻 - FILTER"
    name = "zhllama duplicates"

    def __init__(self, work: str, count: bool) -> None:
        super().__init__()
        self.work, self.count = work, count

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield what is listed nowhere, each with its number among the kept documents of its task."""
        tally = DocumentTally()
        listed = _listed(Path(self.work), rank)
        for number, document in enumerate(data):
            if reason := listed.get(number):
                tally.drop(reason, document)
            else:
                document.metadata["number"] = number
                yield document
        # Two passes drop by the same lists, and each document is to be counted once.
        if self.count:
            tally.save(self.work, "unique", rank)


def _listed(work: Path, rank: int) -> Mapping[int, str]:
    """Number of each document of a task that is to be dropped -> the first reason."""
    listed: dict[int, str] = {}
    for reason, place in LISTS.items():
        path = work / place.format(rank)
        if path.is_file():
            for number in np.fromfile(path, dtype="<u4").tolist():
                listed.setdefault(number, reason)
    return listed
