"""The steps of `clean` as datatrove blocks, and the executor that runs them.

Tasks are bundles of input files that depend on the input alone, never on the number of workers, and all that
a task leaves is named by its rank: that is why the result is the same bytes whoever computed it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import multiprocess  # type: ignore[import-untyped]
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter
from multiprocess import forkserver, resource_tracker

from zhllama.corpus.privacy import Privacy, redact
from zhllama.corpus.read import Layout, read_file
from zhllama.corpus.rules import HAN, SPACE, Limits, judge, normalise
from zhllama.corpus.tally import Meter, Tally

GLUED_LINES = 1000  # a guessed document of more lines is worth a word of warning
LAST_RANK = 65534  # datatrove's exact deduplication ranks tasks in 16 bits


class ReadBundle(PipelineStep):  # type: ignore[misc]
    """The documents of one bundle of files, as `work/bundles/RANK.json` lists them: path and name of each."""

    type = "📖 - READER"
    name = "zhllama files"

    def __init__(self, work: str, layout: Layout) -> None:
        super().__init__()
        self.work, self.layout = work, layout

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield documents with an id `NAME:LINE`."""
        bundle = json.loads((Path(self.work) / "bundles" / f"{rank:05d}.json").read_text(encoding="utf-8"))
        tally, meter = Tally(), Meter(self.work, "read", rank)
        for path, name in bundle:
            splits: list[str] = []
            for line, text in read_file(Path(path), self.layout, meter, splits.append):
                tally.counts["read"] += 1
                if splits and text.count("\n") >= GLUED_LINES:
                    tally.glued[f"{name}:{line}"] = text.count("\n") + 1
                yield Document(
                    text, f"{name}:{line}", metadata={"source": name, "priority": LAST_RANK - rank + 1}
                )
            tally.guessed.update(splits)
            meter.next_file()
        tally.save(self.work, "read", rank)


class ReadKept(PipelineStep):  # type: ignore[misc]
    """The documents that the rules kept of one bundle, in the same order."""

    type = "📖 - READER"
    name = "zhllama kept documents"

    def __init__(self, work: str) -> None:
        super().__init__()
        self.work = work

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield nothing where the rules kept nothing."""
        path = Path(self.work) / "kept" / f"{rank:05d}.jsonl"
        if not path.is_file():
            return
        meter = Meter(self.work, "write", rank)
        with path.open("rb") as lines:
            for line in lines:
                row = json.loads(line)
                meter(lines.tell())
                yield Document(row["text"], row["id"], metadata={"source": row["source"]})


class Judge(PipelineStep):  # type: ignore[misc]
    """Normalise each document, keep it or drop it with a reason, and take personal data out of what is kept."""

    type = "🔻 - FILTER"
    name = "zhllama rules"

    def __init__(self, work: str, limits: Limits, privacy: Privacy) -> None:
        super().__init__()
        self.work, self.limits, self.privacy = work, limits, privacy

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield what is kept; examples of what is dropped show the text as it was before."""
        tally = Tally()
        for document in data:
            tally.counts["replacement characters"] += document.text.count("\ufffd")
            text = normalise(document.text)
            reason = judge(text, self.limits)
            if not reason and self.privacy != "keep":
                text, kinds = redact(text)
                tally.personal.update(kinds)
                reason = "personal data" if kinds and self.privacy == "drop" else None
            if reason:
                tally.drop(reason, document)
            else:
                document.text = text
                yield document
        tally.save(self.work, "judge", rank)


class CountDuplicates:
    """What datatrove's deduplication calls a writer of dropped documents; it only counts them."""

    def __init__(self, work: str) -> None:
        self.work, self.tally, self.rank = work, Tally(), 0

    def __enter__(self) -> CountDuplicates:
        return self

    def __exit__(self, *_: object) -> None:
        self.tally.save(self.work, "unique", self.rank)

    def write(self, document: Document, rank: int) -> None:
        """Count one document whose text was kept before."""
        self.rank = rank
        self.tally.drop("duplicate", document)


class Measure(PipelineStep):  # type: ignore[misc]
    """Count documents, characters, bytes, Chinese characters and lengths of what is written."""

    type = "📊 - STATS"
    name = "zhllama measure"

    def __init__(self, work: str) -> None:
        super().__init__()
        self.work = work

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield every document unchanged."""
        tally = Tally()
        for document in data:
            text = document.text
            tally.counts["documents"] += 1
            tally.counts["characters"] += len(text)
            tally.counts["bytes"] += len(text.encode())
            tally.counts["han"] += len(HAN.findall(text))
            tally.lengths[str(len(text).bit_length())] += 1
            yield document
        tally.save(self.work, "measure", rank)


class WriteDocuments(DiskWriter):  # type: ignore[misc]
    """JSON lines `{"text", "id", "source"}`; files of at most `max_file_size` bytes (and one document)."""

    name = "zhllama JSONL"

    def __init__(self, folder: str, filename: str, max_file_size: int = -1) -> None:
        super().__init__(folder, filename, compression=None, mode="wb", max_file_size=max_file_size)

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        return {"text": document.text, "id": document.id, "source": document.metadata["source"]}

    def _write(self, document: dict[str, Any], file_handler: IO[bytes], filename: str) -> None:
        file_handler.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")

    def _get_filename_with_file_id(self, filename: str) -> str:
        # datatrove puts the number first; last, the order of names is the order of documents
        return filename.replace(".jsonl", f"-{self.file_id_counter[filename]:05d}.jsonl")


class Executor(LocalPipelineExecutor):  # type: ignore[misc]
    """datatrove's local executor, silent: its workers log to files only and leave Ctrl-C to their parent."""

    def run(self) -> Any:
        """Run all tasks; workers are born with Ctrl-C blocked, so that none of them prints a traceback."""
        if self.workers > 1:
            resource_tracker.ensure_running()  # unblocks the signal, so it comes first
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                forkserver.ensure_running()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return super().run()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        if multiprocess.parent_process() and sys.stderr.name != os.devnull:
            sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (for the life of the worker)
        return super()._run_for_rank(rank, local_rank, node_rank)


def text_without_space(document: Document) -> str:
    """What two documents must share to count as the same."""
    return SPACE.sub("", document.text)


def priority(document: Document) -> int:
    """Of equal documents the earliest is kept: that of the highest priority, then the first in its task."""
    return int(document.metadata["priority"])
