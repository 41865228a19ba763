"""Reading, judging and writing as datatrove blocks.

Tasks are bundles of input files that depend on the input alone, never on the number of workers, and all that
a task leaves is named by its rank: that is why the result is the same bytes whoever computed it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter

from zhllama.config import UserError
from zhllama.corpus import contamination
from zhllama.corpus.compare import letters
from zhllama.corpus.convert import Forms
from zhllama.corpus.detectors import Detectors
from zhllama.corpus.duplicates import LAST_RANK
from zhllama.corpus.invisible import without_invisible
from zhllama.corpus.privacy import Privacy, redact
from zhllama.corpus.read import Broken, Layout, read_file, says_encoding
from zhllama.corpus.rules import Limits, judge
from zhllama.corpus.tally import DocumentTally, Meter
from zhllama.decode import detect_encoding
from zhllama.rows import read_rows

GLUED_LINES = 1000  # a guessed document of more lines is worth a word of warning


class ReadBundle(PipelineStep):  # type: ignore[misc]
    """The documents of one bundle of files, as `work/bundles/RANK.json` lists them: path and name of each.

    With `most`, only so many of each file.
    """

    type = "📖 - READER"
    name = "zhllama files"

    def __init__(self, work: str, layout: Layout, broken: Broken, most: int | None) -> None:
        super().__init__()
        self.work, self.layout, self.broken, self.most = work, layout, broken, most

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield documents with an id `NAME:LINE`."""
        bundle = json.loads((Path(self.work) / "bundles" / f"{rank:05d}.json").read_text(encoding="utf-8"))
        tally, meter = DocumentTally(), Meter(self.work, "read", rank)
        for path, name in bundle:
            try:
                # datatrove keeps the highest priority, from 1 to 65,535: earlier tasks have a higher one.
                yield from self._documents(Path(path), name, tally, meter, LAST_RANK - rank + 1)
            except UserError as problem:
                # Otherwise what was read of the file before stays.
                if self.broken == "stop":
                    raise
                tally.skip("files", str(problem))
            meter.next_file()
        tally.save(self.work, "read", rank)

    def _documents(
        self, path: Path, name: str, tally: DocumentTally, meter: Meter, priority: int
    ) -> Iterator[Document]:
        splits: list[str] = []
        skip = partial(tally.skip, "rows") if self.broken == "skip" else None
        layout = self.layout
        if layout.encoding == "guess" and not says_encoding(path):
            # Guessed for each file, since folders mix GBK and UTF-8.
            layout = replace(layout, encoding=detect_encoding(path))
            tally.encodings[layout.encoding] += 1
        # `splits` is filled while passages are read: a guess is known with the first of them.
        passages = read_file(path, layout, meter, splits.append, skip, halves=True)
        for line, text in islice(passages, self.most):
            tally.counts["read"] += 1
            if splits and text.count("\n") >= GLUED_LINES:
                tally.glued[f"{name}:{line}"] = text.count("\n") + 1
            yield Document(text, f"{name}:{line}", metadata={"source": name, "priority": priority})
        tally.guessed.update(splits)


class ReadKept(PipelineStep):  # type: ignore[misc]
    """The documents that the rules kept of one bundle, in the same order."""

    type = "📖 - READER"
    name = "zhllama kept documents"

    def __init__(self, work: str, stage: str) -> None:
        super().__init__()
        self.work, self.stage = work, stage

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield nothing where the rules kept nothing."""
        path = Path(self.work) / "kept" / f"{rank:05d}.jsonl"
        if not path.is_file():
            return
        meter = Meter(self.work, self.stage, rank)
        for _, row in read_rows(path, "utf-8", meter, lists=False, halves=True):
            yield Document(row["text"], row["id"], metadata={"source": row["source"]})


class Judge(PipelineStep):  # type: ignore[misc]
    """Normalise each document, keep it or drop it with a reason, and take personal data out of what is kept."""

    type = "🔻 - FILTER"
    name = "zhllama rules"

    def __init__(
        self, work: str, forms: Forms, limits: Limits, detectors: Detectors, privacy: Privacy
    ) -> None:
        super().__init__()
        self.work, self.forms, self.limits = work, forms, limits
        self.detectors, self.privacy = detectors, privacy

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield what is kept; examples of what is dropped show the text as it was before."""
        tally = DocumentTally()
        normalise = self.forms.normaliser()
        detected = self.detectors.rules(tally)
        for document in data:
            # Counted before anything goes: what is dropped lost them too.
            tally.counts["replacement characters"] += document.text.count("\ufffd")
            gone = len(document.text) - len(without_invisible(document.text))
            tally.counts["invisible characters"] += gone
            text = normalise(document.text)
            # The cheap rules first: language and words are looked at in what those keep.
            reason = judge(text, self.limits) or detected(text)
            # Last of all, since only what is kept is written, and checks of numbers take time.
            if not reason and self.privacy != "keep":
                text, kinds = redact(text)
                tally.personal.update(kinds)
                reason = "personal data" if kinds and self.privacy == "drop" else None
            if reason:
                tally.drop(reason, document)
            else:
                document.text = text
                tally.counts["documents judged"] += 1
                tally.counts["characters judged"] += len(text)
                yield document
        tally.save(self.work, "judge", rank)


class Decontaminate(PipelineStep):  # type: ignore[misc]
    """Drop documents that share 13 characters in a row with an evaluation file; count by file, show the shared ones."""

    type = "🔻 - FILTER"
    name = "zhllama decontamination"

    def __init__(self, work: str) -> None:
        super().__init__()
        self.work = Path(work)

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield what shares nothing; the index is mapped, one copy for all workers."""
        index = contamination.EvaluationIndex.open(contamination.OVERLAP, self.work)
        names = json.loads((self.work / "evaluation-files.json").read_text(encoding="utf-8"))
        tally = DocumentTally()
        for document in data:
            compared = letters(document.text)
            places, numbers = index.find(compared)
            if not len(places):
                yield document
                continue
            # Once for each file, however often it shares something.
            for number in np.unique(numbers).tolist():
                tally.contaminated[names[number]] += 1
            shared = compared[places[0] : places[0] + index.size]
            tally.drop(contamination.REASON, document, note=f"shares {shared}: ")
        tally.save(str(self.work), "decontaminate", rank)


class WriteDocuments(DiskWriter):  # type: ignore[misc]
    """JSON lines `{"text", "id", "source"}`; files of at most `max_file_size` bytes (and one document)."""

    name = "zhllama JSONL"

    def __init__(self, folder: str, filename: str, max_file_size: int = -1) -> None:
        # datatrove counts the size of files only where they are binary.
        super().__init__(folder, filename, compression=None, mode="wb", max_file_size=max_file_size)
        self.names: dict[int | str, str] = {}  # datatrove fills in a template for each document, twice

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        return {"text": document.text, "id": document.id, "source": document.metadata["source"]}

    def _get_output_filename(self, document: Document, rank: int | str = 0, **kwargs: Any) -> str:
        return self.names.setdefault(rank, str(super()._get_output_filename(document, rank)))

    def _write(self, document: dict[str, Any], file_handler: IO[bytes], filename: str) -> None:
        file_handler.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")

    def _get_filename_with_file_id(self, filename: str) -> str:
        # datatrove puts the number first; last, the order of names is the order of documents
        return filename.replace(".jsonl", f"-{self.file_id_counter[filename]:05d}.jsonl")
