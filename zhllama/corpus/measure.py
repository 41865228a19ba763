"""What a corpus consists of, before and after: lengths, qualities, sources, kinds, frequent sequences of characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from zhllama.corpus.compare import without_space
from zhllama.corpus.han import HAN, count_han
from zhllama.corpus.kinds import kind_of
from zhllama.corpus.ngrams import ngram_hashes
from zhllama.corpus.rules import NOT_LETTER, repetition, share
from zhllama.corpus.tally import DocumentTally

Moment = Literal["before", "after"]
QUALITIES = ("Chinese", "symbols", "repetition")
BINS = 10  # of a quality, each a tenth
GRAMS = (2, 3, 4, 5)
# Sorting the sequences takes their memory several times over, for each worker.
SAMPLE = 1 << 18  # characters of a task whose sequences are counted
SNIPPET = 2000  # at most so many of a document
MOST = 300  # sequences of each length that a task reports


class Measure(PipelineStep):  # type: ignore[misc]
    """Count what passes by: `tally.seen` at this moment of the pipeline; and, after, what `run.json` says."""

    type = "📊 - STATS"
    name = "zhllama measure"

    def __init__(self, work: str, moment: Moment) -> None:
        super().__init__()
        self.work, self.moment = work, moment

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield every document unchanged; memory is that of a sample."""
        tally, sample = DocumentTally(), TextSample(self._halvings(rank))
        seen: dict[str, Counter[str]] = {
            name: Counter()
            for name in ("lengths", "documents", "characters", "source characters", *QUALITIES, "grams")
        }
        for document in data:
            text = document.text
            kind = kind_of(document.metadata["source"])
            # Powers of two: lengths go from a title to a book.
            seen["lengths"][str(len(text).bit_length())] += 1
            seen["documents"][kind] += 1
            seen["characters"][kind] += len(text)
            seen["source characters"][document.metadata["source"]] += len(text)
            for name, value in _qualities(text):
                # 1.0 belongs to the last tenth.
                seen[name][str(min(int(BINS * value), BINS - 1))] += 1
            sample.add(document.id, text)
            if self.moment == "after":
                tally.counts["documents"] += 1
                tally.counts["characters"] += len(text)
                tally.counts["bytes"] += len(text.encode())
                tally.counts["han"] += count_han(text)
            yield document
        tally.counts[f"{self.moment} sampled"] = sum(count_han(text) for text in sample.texts())
        tally.counts[f"{self.moment} halvings"] = sample.halvings
        for size in GRAMS:
            seen["grams"].update(frequent(sample.texts(), size))
        tally.seen = {f"{self.moment} {name}": counter for name, counter in seen.items()}
        tally.save(self.work, f"measure-{self.moment}", rank)

    def _halvings(self, rank: int) -> int:
        """How thin the sample was before: after, the same documents are counted, as far as they are left."""
        if self.moment == "before":
            return 0
        return int(DocumentTally.read(self.work, "measure-before", rank)["counts"]["before halvings"])


class TextSample:
    """Beginnings of documents drawn by their ids, at most `SAMPLE` characters: all, half of them, a quarter, ..."""

    def __init__(self, halvings: int = 0) -> None:
        self.drawn: list[tuple[int, str]] = []
        self.characters = 0
        self.halvings = halvings

    def add(self, identifier: str, text: str) -> None:
        """Take a document, or pass it over; the same one whatever came before it, as long as there is room."""
        import xxhash

        # By a hash of its id: the same documents are drawn before and after, so both counts compare.
        number = xxhash.xxh3_64_intdigest(identifier)
        # A sample of half holds the numbers whose first bit is 0, one of a quarter those whose first two bits
        # are.
        if number >> (64 - self.halvings):
            return
        self.drawn.append((number, text[:SNIPPET]))
        self.characters += len(self.drawn[-1][1])
        while self.characters > SAMPLE and len(self.drawn) > 1:
            self.halvings += 1
            self.drawn = [(number, text) for number, text in self.drawn if not number >> (64 - self.halvings)]
            self.characters = sum(len(text) for _, text in self.drawn)

    def texts(self) -> list[str]:
        """What was drawn."""
        return [text for _, text in self.drawn]


def frequent(texts: list[str], size: int) -> dict[str, int]:
    """The most frequent sequences of `size` Chinese characters, none across punctuation, and their counts."""
    runs = "\n".join(run for text in texts for run in HAN.findall(text))
    _, first, counts = np.unique(ngram_hashes(runs, size), return_index=True, return_counts=True)
    found: dict[str, int] = {}
    # The most frequent first, of equals the earlier one: the same list on every machine.
    for place in np.lexsort((first, -counts)).tolist():
        gram = runs[first[place] : first[place] + size]
        # A sequence across two runs stands nowhere in the text.
        if "\n" not in gram:
            found[gram] = int(counts[place])
        if len(found) == MOST:
            break
    return found


def _qualities(text: str) -> Iterator[tuple[str, float]]:
    """The shares that rules judge by, of the characters without white space, from 0 to 1."""
    characters = without_space(text)
    if characters:
        letters = NOT_LETTER.sub("", characters)
        yield "Chinese", share(HAN, letters)
        yield "symbols", 1 - len(letters) / len(characters)
        yield "repetition", repetition(characters)
