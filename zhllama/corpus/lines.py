"""Lines that documents share: boilerplate is taken out everywhere, a repeated paragraph everywhere but at first.

Counted over the documents that are left after deduplication, exactly, by 64-bit hashes, in memory that does not
grow with the corpus: each task leaves its hashes sorted, and they are merged part by part.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from zhllama.corpus.compare import letters, without_space
from zhllama.corpus.han import count_han
from zhllama.corpus.privacy import redact
from zhllama.corpus.tally import EXAMPLE_CHARACTERS, EXAMPLES, DocumentTally

DIGIT = re.compile(r"\d+")
# What stands behind such a label is another on each page: names, titles.
LABEL = re.compile(
    r"[\W\d_年月日时分]*"
    r"((?:责任|执行|本文|本期|网络)?编辑|责编|编审|校对|(?:文章|稿件|信息|新闻|消息|内容|图片)?来源|稿源"
    r"|[上下前后]一[篇条页章]|(?:相关|推荐|延伸|更多)(?:阅读|新闻|链接|文章|报道)|原标题|(?:本文|原文)(?:链接|地址|网址)"
    r"|(?:录入|审核|发布)[者人员]?)\s*[:：]"
)
# Shorter lines are headings and single words that many documents share by right; a labelled line longer than
# this is a sentence; a paragraph is more than a phrase.
TEMPLATE_LETTERS, LABELLED_LETTERS, PARAGRAPH_LETTERS = 6, 60, 30
TEMPLATE, PARAGRAPH = 0, 1  # the lowest bit of a hash
NAMES = {TEMPLATE: "boilerplate lines", PARAGRAPH: "repeated paragraphs"}
# A line in one task: its hash, the first document that has it and how many have it.
SEEN = np.dtype([("hash", "<u8"), ("first", "<u4"), ("documents", "<u4")])
# A line to remove in one task: its hash, and the document that keeps it.
REMOVED = np.dtype([("hash", "<u8"), ("keeper", "<u4")])
NOBODY = 2**32 - 1
PART = 1 << 20  # lines merged at once


@dataclass(frozen=True)
class Repeats:
    """What to remove: boilerplate in more than so many documents (0: none), paragraphs seen before."""

    boilerplate: int = 0
    paragraphs: bool = False

    def __bool__(self) -> bool:
        return self.boilerplate > 0 or self.paragraphs

    def hashes(self, line: str) -> list[int]:
        """The hashes under which a line is counted, none for most lines.

        Boilerplate is a line of 6 letters or more, a third of them Chinese (a line of a program hardly is); digits are
        not compared, for dates and page numbers. Of a line of 60 letters or fewer that begins with a label of web
        pages (责任编辑： 来源： 上一篇：) only the label is. A paragraph is a line of 30 letters or more.
        """
        import xxhash

        compared = letters(line)
        found = []
        fixed = DIGIT.sub("", compared) if self.boilerplate else ""
        label = LABEL.match(line) if fixed and len(compared) <= LABELLED_LETTERS else None
        if label:
            # The lowest bit tells the kinds apart, so the same words count as a label and as a paragraph on
            # their own.
            found.append(xxhash.xxh3_64_intdigest(label[1]) & ~1 | TEMPLATE)
        elif len(fixed) >= TEMPLATE_LETTERS and 3 * count_han(fixed) >= len(fixed):
            found.append(xxhash.xxh3_64_intdigest(fixed) & ~1 | TEMPLATE)
        if self.paragraphs and len(compared) >= PARAGRAPH_LETTERS:
            found.append(xxhash.xxh3_64_intdigest(compared) & ~1 | PARAGRAPH)
        return found


class SignLines(PipelineStep):  # type: ignore[misc]
    """Leave `lines/RANK`: the lines of a task, sorted by hash."""

    type = "🫂 - DEDUP"
    name = "zhllama sign lines"

    def __init__(self, work: str, repeats: Repeats) -> None:
        super().__init__()
        self.work, self.repeats = work, repeats

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> None:
        """Memory is that of one task's hashes."""
        hashes: list[NDArray[np.uint64]] = []
        numbers: list[NDArray[np.uint32]] = []
        for document in data:
            # A set: a line counts once in each document that has it.
            lines = {value for line in document.text.split("\n") for value in self.repeats.hashes(line)}
            hashes.append(np.array(sorted(lines), dtype=np.uint64))
            numbers.append(np.full(len(lines), document.metadata["number"], dtype=np.uint32))
        joined = np.concatenate([np.empty(0, dtype=np.uint64), *hashes])
        # Hashes stand in the order of documents, so the first place of one is its first document.
        distinct, first, counts = np.unique(joined, return_index=True, return_counts=True)
        seen = np.empty(len(distinct), dtype=SEEN)
        seen["hash"], seen["documents"] = distinct, counts
        seen["first"] = np.concatenate([np.empty(0, dtype=np.uint32), *numbers])[first]
        folder = Path(self.work) / "lines"
        folder.mkdir(exist_ok=True)
        # A kill may leave a part of it: the task was not marked as done, and writes it again.
        (folder / f"{rank:05d}").write_bytes(seen.data)


class FindLines(PipelineStep):  # type: ignore[misc]
    """Merge what the tasks have seen; leave `lines-removed/RANK`: the lines to remove in each."""

    type = "🫂 - DEDUP"
    name = "zhllama find repeated lines"

    def __init__(self, work: str, repeats: Repeats) -> None:
        super().__init__()
        self.work, self.repeats = work, repeats

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """One task, in parts of the hashes' range."""
        work = Path(self.work)
        shutil.rmtree(work / "lines-removed", ignore_errors=True)  # a part of it, after a kill
        (work / "lines-removed").mkdir()
        files = [file for file in sorted((work / "lines").iterdir()) if file.stat().st_size]
        # Mapped, not read: of each only one part is in memory at a time.
        tables = [np.memmap(file, dtype=SEEN, mode="r") for file in files]
        parts = 1 + sum(map(len, tables)) // PART
        # As uint64: numpy makes float64 of Python integers on both sides of 2^63, and so of the whole table.
        edges = [np.uint64(number * 2**64 // parts) for number in range(1, parts)]
        cuts = [[0, *np.searchsorted(table["hash"], edges).tolist(), len(table)] for table in tables]
        for part in range(parts):
            pieces = [table[cut[part] : cut[part + 1]] for table, cut in zip(tables, cuts, strict=True)]
            if pieces:
                self._merge(pieces, [work / "lines-removed" / file.name for file in files])

    def _merge(self, pieces: list[NDArray[np.void]], outputs: list[Path]) -> None:
        table = np.concatenate(pieces)
        which = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
        # By hash, then by task (lexsort takes its last key first): the first row of a hash is the earliest
        # task's.
        order = np.lexsort((which, table["hash"]))
        table, which = table[order], which[order]
        _, starts, groups = np.unique(table["hash"], return_index=True, return_inverse=True)
        # In how many documents of all tasks.
        totals = np.bincount(groups, weights=table["documents"]) if len(table) else np.empty(0)
        template = (table["hash"] & np.uint64(1)) == TEMPLATE
        removed = totals[groups] > np.where(template, self.repeats.boilerplate, 1)
        listed = np.empty(len(table), dtype=REMOVED)
        # A paragraph stays in one document, the first of the first task; boilerplate stays in none.
        listed["hash"], listed["keeper"] = table["hash"], NOBODY
        owners = starts[~template[starts]]
        listed["keeper"][owners] = table["first"][owners]
        for number, output in enumerate(outputs):
            # Parts come in the order of hashes, one behind the other.
            with output.open("ab") as file:
                file.write(listed[removed & (which == number)].data)


class RemoveLines(PipelineStep):  # type: ignore[misc]
    """Take the listed lines out; a document that is then too short is dropped."""

    type = "🔻 - FILTER"
    name = "zhllama remove lines"

    def __init__(self, work: str, repeats: Repeats, min_characters: int) -> None:
        super().__init__()
        self.work, self.repeats, self.min_characters = work, repeats, min_characters

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield what is left; counts lines and shows the first of each kind."""
        tally = DocumentTally()
        path = Path(self.work) / "lines-removed" / f"{rank:05d}"
        table = np.fromfile(path, dtype=REMOVED) if path.is_file() else np.empty(0, dtype=REMOVED)
        keepers = dict(zip(table["hash"].tolist(), table["keeper"].tolist(), strict=True))
        for document in data:
            left = list(self._left(document, keepers, tally))
            # A text has one line more than line ends: fewer are left, so some went.
            if len(left) <= document.text.count("\n"):
                # What stood between lines that went may be empty lines only.
                text = "\n".join(left).strip("\n")
                if len(without_space(text)) < max(self.min_characters, 1):
                    tally.drop("only repeated lines", document)
                    continue
                document.text = text
            yield document
        tally.save(self.work, "lines", rank)

    def _left(self, document: Document, keepers: dict[int, int], tally: DocumentTally) -> Iterator[str]:
        number = document.metadata["number"]
        for line in document.text.split("\n"):
            # A line that is listed nowhere counts as kept by the document itself.
            hits = [value for value in self.repeats.hashes(line) if keepers.get(value, number) != number]
            if not hits:
                yield line
                continue
            name = NAMES[hits[0] & 1]
            tally.removed[name] += 1
            shown = tally.examples.setdefault(name, [])
            if len(shown) < EXAMPLES:
                shown.append([document.id, redact(line)[0][:EXAMPLE_CHARACTERS]])
