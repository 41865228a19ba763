"""Near-duplicates of documents: our MinHash signatures for datatrove's stages, and which copy stays.

datatrove sorts and merges the signatures as files, band by band, so memory does not grow with the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.hashing import HashConfig
from numpy.typing import NDArray

from zhllama.corpus.compare import letters
from zhllama.corpus.minhash import DOCUMENTS, GRAM, sign
from zhllama.corpus.tally import DocumentTally

# What datatrove has to know to read our files: how many bands, rows and bits.
NEAR = MinhashConfig(
    GRAM, DOCUMENTS.bands, DOCUMENTS.rows, DOCUMENTS.seed, hash_config=HashConfig(precision=32)
)


class SignNear(PipelineStep):  # type: ignore[misc]
    """datatrove's first MinHash stage over character grams, in its file format, a task at a time.

    Leaves `near-signatures/bucket_BBB/RANK.minhash.sig`, sorted, and `near-lengths/RANK`: letters of each document.
    """

    type = "🫂 - DEDUP"
    name = "zhllama MinHash signatures"

    def __init__(self, work: str) -> None:
        super().__init__()
        self.work = work

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> None:
        """Memory is that of one task's signatures, 448 bytes a document."""
        lengths: list[int] = []
        numbers: list[int] = []

        def compared() -> Iterator[str]:
            for number, document in enumerate(data):
                text = letters(document.text)
                lengths.append(len(text))
                # A shorter text has no sequence; exact deduplication compares it.
                if len(text) >= GRAM:
                    numbers.append(number)
                    yield text

        signed = sign(compared(), DOCUMENTS)
        table = signed.reshape(len(numbers), DOCUMENTS.bands, DOCUMENTS.rows)
        for bucket in range(DOCUMENTS.bands):
            # datatrove's record: the rows of the band, then the document's number, all little-endian uint32.
            records = np.column_stack([table[:, bucket], np.array(numbers, dtype="<u4")]).astype("<u4")
            folder = Path(self.work) / "near-signatures" / f"bucket_{bucket:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            # Sorted by the first column, then the next: datatrove merges the files and stops at one out of
            # order.
            (folder / f"{rank:05d}.minhash.sig").write_bytes(records[np.lexsort(records.T[::-1])].data)
        folder = Path(self.work) / "near-lengths"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{rank:05d}").write_bytes(np.array(lengths, dtype="<u4").data)


class ChooseBest(PipelineStep):  # type: ignore[misc]
    """Of each cluster of near-duplicates the document with the most letters stays, of equals the earliest.

    Reads the pairs that datatrove's second stage found; leaves `near/RANK` with the numbers of those to drop.
    """

    type = "🫂 - DEDUP"
    name = "zhllama choose the best copy"

    def __init__(self, work: str) -> None:
        super().__init__()
        self.work = work

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """One task for all pairs; memory grows with the duplicates, not with the corpus."""
        work, tally = Path(self.work), DocumentTally()
        files = sorted((work / "near-pairs").glob("*.dups"))
        nodes = np.empty(0, dtype=np.uint64)
        # Band by band: most pairs are found in several, and only their documents are kept.
        for file in files:
            nodes = np.union1d(nodes, _pairs(file))
        roots = _components(len(nodes), [np.searchsorted(nodes, _pairs(file)) for file in files])
        ranks, numbers = nodes >> np.uint64(32), (nodes & np.uint64(2**32 - 1)).astype(np.int64)
        lengths = np.zeros(len(nodes), dtype=np.int64)
        # Lengths of one task at a time, mapped: of a corpus of millions only those of duplicates are read.
        for part in np.unique(ranks):
            held = np.memmap(work / "near-lengths" / f"{part:05d}", dtype=np.uint32, mode="r")
            lengths[ranks == part] = held[numbers[ranks == part]]
        # By cluster, most letters first, then by place in the input. Exact copies have equal letters, so the
        # one that exact deduplication keeps is never dropped for another of them.
        order = np.lexsort((nodes, -lengths, roots))
        best = np.ones(len(nodes), dtype=bool)
        # The first row of each cluster.
        best[1:] = roots[order][1:] != roots[order][:-1]
        dropped = np.sort(nodes[order[~best]])
        (work / "near").mkdir(exist_ok=True)
        for part in np.unique(dropped >> np.uint64(32)):
            chosen = dropped[dropped >> np.uint64(32) == part].astype(np.uint32)
            (work / "near" / f"{part:05d}").write_bytes(chosen.data)
        sizes, counts = np.unique(np.bincount(roots)[np.unique(roots)], return_counts=True)
        tally.clusters.update(dict(zip(map(str, sizes.tolist()), counts.tolist(), strict=True)))
        tally.save(self.work, "near", rank)


def _pairs(file: Path) -> NDArray[np.uint64]:
    """(pairs, 2) documents as rank * 2^32 + number in its task."""
    pairs = np.fromfile(file, dtype="<u4").reshape(-1, 2, 2).astype(np.uint64)
    return (pairs[:, :, 0] << np.uint64(32)) | pairs[:, :, 1]


def _components(count: int, edges: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """For each of `count` nodes the least node that edges connect it with."""
    roots = np.arange(count)
    joined = np.concatenate([np.empty((0, 2), dtype=np.int64), *edges])
    while True:
        ends = roots[joined]
        open_ends = ends[ends[:, 0] != ends[:, 1]]
        if not len(open_ends):
            return roots
        # Not `roots[...] = `: several edges may hang the same root, and the least must win.
        np.minimum.at(roots, open_ends.max(axis=1), open_ends.min(axis=1))
        # Every node straight to its root, or the next round would walk long chains.
        while (roots != roots[roots]).any():
            roots = roots[roots]
