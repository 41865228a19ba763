"""What a vocabulary is trained on: lines drawn in bounded memory, counted as runs of Chinese letters."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy
from tokenizers import Tokenizer

from zhllama.config import UserError
from zhllama.corpus.han import HAN
from zhllama.terminal import track
from zhllama.tokenizer.alphabet import CJK_RUN, LETTER_CLASS, MARK_CLASS

HELD_OUT_SHARE, HELD_OUT_CHARACTERS = 0.02, 500_000
# SentencePiece leaves out longer lines (4,192 bytes by default), so nothing longer is handed to it.
LONGEST_RUN = 1000  # characters, of at most 4 bytes
# These lean on the word after them. A mark that ends a sentence, a clause or a prompt stands alone: what follows
# it is often written by somebody else, who does not know that both would have been one token.
LEANING = "，、；（《〈「『【〔"
_LETTERS = f"[{LETTER_CLASS}]{{1,{LONGEST_RUN}}}"
_MARKS = f"[{MARK_CLASS}]{{1,{LONGEST_RUN}}}"
APART = re.compile(f"{_LETTERS}|{_MARKS}")
# Runs of letters, with the mark that leans on them; marks up to one that leans (as few as that takes, `?`);
# and other marks.
LEAN = re.compile(f"[{LEANING}]?{_LETTERS}|{_MARKS}?(?=[{LEANING}][{LETTER_CLASS}])|{_MARKS}")


@dataclass(frozen=True)
class CorpusSample:
    """The text of one corpus, or of all of them where they have no weights."""

    name: str
    lines: list[str]
    held_out: list[str]
    documents: int
    kept: int
    weight: float = 1.0
    """What a run of it counts beside one of the other corpora, at least 1."""


def draw_samples(
    corpora: Mapping[str, Iterable[str]], weights: Sequence[float], megabytes: int, seed: int
) -> list[CorpusSample]:
    """One sample of all corpora; or, with weights, one of each, whose counts then have those proportions.

    Raises:
        UserError: a corpus without text, or no Chinese in any of them.
    """
    if not weights:
        name, everything = ", ".join(corpora), chain.from_iterable(corpora.values())
        samples = [draw_sample(name, everything, megabytes * 1_000_000, seed)]
    else:
        shares = [weight / sum(weights) for weight in weights]
        samples = [
            draw_sample(name, documents, int(megabytes * 1_000_000 * share), seed)
            for (name, documents), share in zip(corpora.items(), shares, strict=True)
        ]
        # By what was drawn, since a small corpus does not fill its share of the memory.
        sizes = [sum(map(len, sample.lines)) for sample in samples]
        wanted = [share / max(size, 1) for share, size in zip(shares, sizes, strict=True)]
        samples = [
            # At least 1: no run is rounded away.
            replace(sample, weight=want / min(wanted))
            for sample, want in zip(samples, wanted, strict=True)
        ]
    if not any(HAN.search(line) for sample in samples for line in sample.lines):
        raise UserError(
            f"--corpus {', '.join(corpora)}: no Chinese characters in it; a Chinese corpus is needed"
        )
    return samples


def draw_sample(name: str, documents: Iterable[str], limit: int, seed: int) -> CorpusSample:
    """Lines of documents drawn in `limit` bytes of UTF-8, the last of them held out.

    Every document gets a number from the seed; when memory is full, those above a falling threshold go.
    """
    source = random.Random(seed)
    threshold, size, count = 1.0, 0, 0
    kept: list[tuple[float, str]] = []
    for document in track(documents, "reading the corpus"):
        count += 1
        # Drawn for each, kept or not: a document's number depends on its place alone, not on what memory
        # held.
        ticket = source.random()
        if ticket >= threshold or not document:
            continue
        kept.append((ticket, document))
        size += len(document.encode(errors="replace"))
        while size > limit and len(kept) > 1:
            # A fifth at a time: sizes are seldom summed anew, and memory stays nearly full.
            threshold *= 0.8
            kept = [entry for entry in kept if entry[0] < threshold] or kept[:1]
            size = sum(len(document.encode(errors="replace")) for _, document in kept)
    lines = [line for _, document in kept for line in document.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"--corpus {name}: no text in it")
    return CorpusSample(name, *_hold_out(lines), documents=count, kept=len(kept))


def frequent_characters(samples: Sequence[CorpusSample], least: int) -> list[str]:
    """CJK characters seen at least so often, most frequent first."""
    counts = numpy.zeros(0x110000, dtype=numpy.int64)
    step = 10_000
    for sample in samples:
        for at in range(0, len(sample.lines), step):
            # As UTF-32, in which numpy sees a number a character; in parts, for it takes four bytes of each.
            text = "".join(sample.lines[at : at + step])
            codes = numpy.frombuffer(text.encode("utf-32-le", errors="replace"), dtype="<u4")
            found = numpy.bincount(codes)
            counts[: len(found)] += found
    frequent = [chr(code) for code in (counts >= least).nonzero()[0].tolist()]
    chinese = [character for character in frequent if CJK_RUN.match(character)]
    return sorted(chinese, key=lambda character: (-int(counts[ord(character)]), character))


def count_runs(samples: Sequence[CorpusSample], characters: Iterable[str], lean: bool) -> Counter[str]:
    """How often each run of the given characters occurs, in proportion to the samples' weights.

    Letters and marks make runs of their own; with `lean`, a mark of `LEANING` begins the run of letters after it.
    """
    pattern = LEAN if lean else APART
    counts: Counter[str] = Counter()
    for sample in samples:
        found: Counter[str] = Counter()
        for line in track(sample.lines, "counting runs"):
            found.update(pattern.findall(line))
        if sample.weight != 1:
            found = Counter({run: round(count * sample.weight) for run, count in found.items()})
        counts = counts + found if counts else found
    allowed = set(characters)
    for run in [run for run in counts if not allowed.issuperset(run)]:
        count = counts.pop(run)
        # Cut at what is too rare to be a piece: no merge could cross it.
        for part in "".join(c if c in allowed else "\n" for c in run).split("\n"):
            if part:
                counts[part] += count
    return counts


def thin(counts: Counter[str], most: int, seed: int) -> Counter[str]:
    """At most about so many of the runs, with the same sums of counts on average (threshold sampling).

    A run that occurs less often than a threshold is kept in proportion to its count, and then counts as often as
    the threshold: the count of a pair of characters stays what it was, give or take a few of its rarest runs.
    """
    if len(counts) <= most:
        return counts
    found = numpy.fromiter(counts.values(), dtype=numpy.int64, count=len(counts))
    threshold = 2
    # The share of a run that is kept, summed, is how many runs are.
    while numpy.minimum(found / threshold, 1).sum() > most:
        threshold += 1
    source = random.Random(seed)
    return Counter(
        {
            run: max(n, threshold)
            for run, n in counts.items()
            if n >= threshold or source.random() * threshold < n
        }
    )


def cut_at_words(counts: Counter[str], words: Iterable[str]) -> Counter[str]:
    """The runs cut where jieba, taught `words`, sees the end of a word."""
    import jieba

    jieba.setLogLevel("WARNING")
    # One of its own: jieba's shared one would go on knowing the words in later calls.
    cutter = jieba.Tokenizer()
    for word in words:
        cutter.add_word(word)
    result: Counter[str] = Counter()
    for run, count in track(list(counts.items()), "cutting at words"):
        for word in cutter.cut(run):
            result[word] += count
    return result


def cut_like_base(counts: Counter[str], fast: Tokenizer) -> Counter[str]:
    """The runs cut where a byte-level base's pre-tokenizer cuts them: no token of it can cross that."""
    result: Counter[str] = Counter()
    for run, count in track(list(counts.items()), "cutting like the base"):
        for _, (begin, end) in fast.pre_tokenizer.pre_tokenize_str(run):
            result[run[begin:end]] += count
    return result


def cuts_marks_off(fast: Tokenizer) -> bool:
    """Whether a byte-level base's pre-tokenizer parts a mark from the word behind it, as GPT-2's does."""
    return len(fast.pre_tokenizer.pre_tokenize_str("，中")) > 1


def _hold_out(lines: list[str]) -> tuple[list[str], list[str]]:
    """Lines to train on, and the last ones to measure on; a single line is cut."""
    wanted = min(int(sum(map(len, lines)) * HELD_OUT_SHARE), HELD_OUT_CHARACTERS)
    last = lines[-1]
    if len(lines) == 1 or len(last) > 2 * wanted:
        cut = len(last) - wanted
        return [*lines[:-1], last[:cut]], [last[cut:]]
    at = len(lines)
    while wanted > 0 and at > 1:
        at -= 1
        wanted -= len(lines[at])
    return lines[:at], lines[at:]
