"""Admit pieces into a vocabulary so that each is reachable and every runtime agrees about it.

Both SentencePiece and a merge list with every split of every new piece merge *any two neighbours whose
concatenation is a piece*, best rank first, leftmost first among equals. A string whose current encoding
has two tokens therefore becomes reachable by giving it the next rank; later pieces cannot take that away.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from zhllama.tokenizer.alphabet import is_cjk

NEVER = float("inf")
NORMAL = 1  # sentencepiece_model.proto: ModelProto.SentencePiece.Type
# float32, the type of SentencePiece scores, tells integers apart down to here; LLaMA's -1e9 lies below.
LOWEST_RANKED_SCORE = -float(2**23)


class Vocabulary(Protocol):
    """What `admit` needs to know of a base; keys are vocabulary spellings, texts are plain strings."""

    pieces: set[str]
    """Keys that are pieces; `admit` adds to them."""
    ranks: dict[str, float]
    """Keys formed by any two neighbours, lower first; `admit` adds to them."""
    next_rank: float
    """Worse than every rank that can meet a Chinese character."""

    def split(self, texts: Sequence[str]) -> list[list[str]]:
        """The base's tokens of each text, alone; an empty list where a text cannot be a single token."""
        ...

    def allowed(self, key: str) -> bool:
        """Whether a piece spelled `key` leaves every text without CJK alone."""
        ...

    def text(self, key: str) -> str | None:
        """The text of a piece, or None where it is only the beginning of a character's bytes."""
        ...


class SentencePieceVocabulary:
    """The pieces of a SentencePiece BPE model, or of none at all."""

    def __init__(self, proto: Any | None) -> None:
        normal = [] if proto is None else [piece for piece in proto.pieces if piece.type == NORMAL]
        self.pieces = {piece.piece for piece in normal}
        self.ranks = {piece.piece: -float(piece.score) for piece in normal}
        ranked = [piece.score for piece in normal if piece.score > LOWEST_RANKED_SCORE]
        self.next_rank = 1.0 - (min(ranked) // 1) if ranked else 0.0
        # With 中国 new and ▁中国 in the base, 中国 would swallow a space's token that it stands beside.
        self._affixes = {
            affix
            for text in self.pieces
            if not is_cjk(text)
            for cut in range(1, len(text))
            for affix in (text[:cut], text[cut:])
            if is_cjk(affix)
        }

    def split(self, texts: Sequence[str]) -> list[list[str]]:
        """BPE over the characters of each text."""
        return [encode(list(text), self.ranks) for text in texts]

    def allowed(self, key: str) -> bool:
        """Only CJK, and not part of a base piece that mixes CJK with something else."""
        return is_cjk(key) and key not in self._affixes

    def text(self, key: str) -> str | None:
        """The key itself."""
        return key


@dataclass
class Admitted:
    """What was admitted, in rank order, and what was not and why."""

    keys: list[str] = field(default_factory=list)
    """Vocabulary spellings in the order of their ranks and ids."""
    texts: list[str] = field(default_factory=list)
    """Whole pieces; admitting this list gives `keys` again."""
    characters: int = 0
    merges: int = 0
    intermediates: int = 0
    """How many of `keys` nobody asked for; they are steps on the way to others."""
    refused: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> candidates."""

    def add(self, later: Admitted) -> None:
        """Put what was admitted later, into the same vocabulary, behind this."""
        self.keys += later.keys
        self.texts += later.texts
        self.characters += later.characters
        self.merges += later.merges
        self.intermediates += later.intermediates
        for reason, texts in later.refused.items():
            self.refused.setdefault(reason, []).extend(texts)

    def refuse(self, text: str, reason: str) -> None:
        """Count a candidate that is not admitted."""
        self.refused.setdefault(reason, []).append(text)


def encode(symbols: list[str], ranks: Mapping[str, float]) -> list[str]:
    """BPE by concatenation: merge the best-ranked neighbours, leftmost among equals, until none is left."""
    while len(symbols) > 1:
        best, place = NEVER, -1
        for index in range(len(symbols) - 1):
            rank = ranks.get(symbols[index] + symbols[index + 1], NEVER)
            if rank < best:
                best, place = rank, index
        if place < 0:
            break
        symbols = [*symbols[:place], symbols[place] + symbols[place + 1], *symbols[place + 2 :]]
    return symbols


def self_overlaps(key: str) -> Iterator[tuple[str, str, str]]:
    """The border rule: triples of strings that must not all be pieces beside `key`.

    是不是 = 是不|是 = 是|不是: in 是不是不是 two occurrences compete for a token, SentencePiece forms the
    left one and a merge list the better-ranked split.
    """
    for size in range(1, len(key)):
        border = key[:size]
        # 常常 is harmless: it is the same pair by its prefix and by its suffix.
        if key.endswith(border) and 2 * size != len(key):
            yield border, key[:-size], key[size:]


def admit(texts: Iterable[str], vocabulary: Vocabulary, budget: int | None = None) -> Admitted:
    """Admit as many of `texts` as `budget` new pieces allow: characters first, then the rest in their order.

    `vocabulary` grows by what is admitted. Pieces that only lead to others count too.
    """
    result = Admitted()
    wanted = [text for text in dict.fromkeys(texts) if _is_candidate(text, result)]
    characters = dict.fromkeys(
        [t for t in wanted if len(t) == 1] + [c for t in wanted if len(t) > 1 for c in t]
    )
    admission = _Admission(vocabulary, result, budget)
    admission.admit_characters(list(characters), set(wanted))
    admission.admit_merges([text for text in wanted if len(text) > 1])
    return result


def _is_candidate(text: str, result: Admitted) -> bool:
    if not is_cjk(text):
        result.refuse(text, "not only CJK characters")
        return False
    return True


class _Admission:
    """The state of one `admit`: which candidates wait, on which neighbouring pairs."""

    def __init__(self, vocabulary: Vocabulary, result: Admitted, budget: int | None) -> None:
        self.vocabulary = vocabulary
        self.result = result
        self.left: float = NEVER if budget is None else budget
        self.whole: set[str] = set()  # characters that are one piece
        self.waiting: dict[int, list[str]] = {}
        self.ready: list[int] = []
        self.waiters: dict[str, set[int]] = {}  # a pair's concatenation -> who has that pair
        self.popular: list[tuple[int, str]] = []  # (-waiters, concatenation), stale entries allowed
        self.rivals: dict[str, list[tuple[str, str, str]]] = {}  # string -> triples it is in
        for key in vocabulary.ranks:
            self.watch(key)

    def add(self, key: str) -> None:
        """Give `key` the next rank."""
        self.vocabulary.pieces.add(key)
        self.vocabulary.ranks[key] = self.vocabulary.next_rank
        self.vocabulary.next_rank += 1
        self.result.keys.append(key)
        self.watch(key)
        # Steps that nobody asked for are counted too: each is a row of the embedding.
        self.left -= 1

    def watch(self, key: str) -> None:
        """Remember which later pieces would let occurrences of `key` compete."""
        for triple in self_overlaps(key):
            for part in triple:
                self.rivals.setdefault(part, []).append(triple)

    def objection(self, key: str) -> str | None:
        """Why `key` may not become a piece now, or None."""
        if not self.vocabulary.allowed(key):
            return "would change tokens of other text"
        present = self.vocabulary.pieces
        # Both ways: its own borders, and words for which it would be the last part that is missing.
        triples = [*self_overlaps(key), *self.rivals.get(key, ())]
        if any(all(part == key or part in present for part in triple) for triple in triples):
            return "overlaps itself or lets another do so (border rule)"
        return None

    def admit_characters(self, characters: list[str], wanted: set[str]) -> None:
        """Make each character one piece; where it is several byte tokens, by way of its leading bytes."""
        for character, symbols in zip(characters, self.vocabulary.split(characters), strict=True):
            symbols = encode(symbols, self.vocabulary.ranks)
            joined = "".join(symbols)
            # From the left: each step is then two tokens, the step before and the next symbol.
            steps = ["".join(symbols[:end]) for end in range(2, len(symbols) + 1)] or [joined]
            if joined in self.vocabulary.pieces and len(symbols) == 1:
                if character in wanted:
                    self.result.refuse(character, "in the base already")
            elif not symbols or any(map(self.objection, steps)):
                self.result.refuse(character, "would change tokens of other text")
            elif len(steps) <= self.left:
                for step in steps:
                    self.add(step)
                self.result.texts.append(character)
                self.result.characters += 1
                self.result.intermediates += len(steps) - (character in wanted)
            if joined in self.vocabulary.pieces and len(encode(symbols, self.vocabulary.ranks)) == 1:
                self.whole.add(character)

    def admit_merges(self, texts: list[str]) -> None:
        """Admit what has two tokens, in the given order; when nothing has, the pair that most wait for."""
        names = {}
        for index, (text, symbols) in enumerate(zip(texts, self.vocabulary.split(texts), strict=True)):
            if not symbols:
                self.result.refuse(text, "not one word to the base's pre-tokenizer")
            elif "".join(symbols) in self.vocabulary.pieces:
                self.result.refuse(text, "in the base already")
            elif self.whole.issuperset(text):
                names["".join(symbols)] = text
                self.waiting[index] = encode(symbols, self.vocabulary.ranks)
                self.register(index)
        while self.left > 0:
            asked = bool(self.ready)
            key = "".join(self.waiting.pop(heapq.heappop(self.ready))) if asked else self.most_wanted()
            if key is None:
                break
            if key in self.vocabulary.pieces:  # formed as a step to another
                self.result.intermediates -= 1
                continue
            if problem := self.objection(key):
                self.result.refuse(names[key], problem)
                continue
            self.add(key)
            self.result.merges += 1
            self.result.intermediates += not asked
            self.result.texts.append(str(self.vocabulary.text(key)))
            self.update(self.waiters.pop(key, set()))
        if self.left > 0:
            for symbols in self.waiting.values():
                self.result.refuse(names["".join(symbols)], "no way to reach it")

    def register(self, index: int) -> None:
        """Queue a candidate as ready, or under every pair of neighbours it has."""
        symbols = self.waiting[index]
        if len(symbols) <= 2:
            heapq.heappush(self.ready, index)
            return
        for left, right in pairwise(symbols):
            waiters = self.waiters.setdefault(left + right, set())
            waiters.add(index)
            heapq.heappush(self.popular, (-len(waiters), left + right))

    def update(self, indices: set[int]) -> None:
        """Encode again who had the pair that became a piece."""
        for index in sorted(indices):
            symbols = self.waiting[index]
            for left, right in pairwise(symbols):
                if left + right in self.waiters:
                    self.waiters[left + right].discard(index)
            self.waiting[index] = encode(symbols, self.vocabulary.ranks)
            self.register(index)

    def most_wanted(self) -> str | None:
        """The acceptable concatenation of neighbours that most candidates wait for."""
        later = []
        found = None
        while self.popular and found is None:
            count, key = heapq.heappop(self.popular)
            waiters = len(self.waiters.get(key, ()))
            # A stale entry goes back with its true count: counts change far more often than one is asked for.
            if waiters and waiters != -count:
                heapq.heappush(self.popular, (-waiters, key))
            elif waiters and not self.objection(key):
                if self._is_two_tokens(key):
                    found = key
                else:
                    later.append((count, key))
        for entry in later:
            heapq.heappush(self.popular, entry)
        return found

    def _is_two_tokens(self, key: str) -> bool:
        """Whether the key is a text that the base takes as one word, and two tokens now."""
        # Neighbours can share a character's bytes, or be apart to the pre-tokenizer with nothing else near.
        text = self.vocabulary.text(key)
        split = self.vocabulary.split([text])[0] if text else []
        return len(encode(split, self.vocabulary.ranks)) == 2
