"""A user's list of words, found in a text in the same time however long the list is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from zhllama.config import UserError
from zhllama.corpus.compare import folded
from zhllama.decode import read_lines


def read_words(path: Path) -> Words:
    """The words of a UTF-8 file with one word a line; empty lines and lines that begin with # are left out.

    Raises:
        UserError: no such file, not UTF-8, no word inside.
    """
    try:
        lines = "\n".join(read_lines(path, "utf-8", advice="convert it with iconv")).splitlines()
    except UserError as problem:
        raise UserError(f"--words {problem}") from problem
    # Folded like the texts they are looked for in.
    words = [folded(line.strip()) for line in lines if line.strip() and not line.startswith("#")]
    if not words:
        raise UserError(f"--words {path}: no word inside; write one a line")
    return Words(words)


class Words:
    """Words as an automaton (Aho and Corasick 1975): the time to find them hardly grows with their number."""

    def __init__(self, words: Iterable[str]) -> None:
        import ahocorasick

        self.automaton = ahocorasick.Automaton(ahocorasick.STORE_LENGTH)
        for word in words:
            self.automaton.add_word(word)
        self.automaton.make_automaton()

    def find(self, text: str) -> Iterator[str]:
        """The longest word at each place of a `folded` text; a-z0-9 at its ends stands at a word's edge."""
        longest: dict[int, int] = {}
        for last, length in self.automaton.iter(text):
            begin, end = last + 1 - length, last + 1
            # Chinese words have no edges, Latin ones have: "win" is not to be found in "window".
            if _edge(text, begin) and _edge(text, end):
                longest[begin] = end  # ends come in order, so of one beginning the last is the longest
        place = 0
        for begin in sorted(longest):
            # Words that overlap count once, from the left.
            if begin >= place:
                place = longest[begin]
                yield text[begin:place]


def _edge(text: str, place: int) -> bool:
    """Whether no Latin word goes on from before this place to behind it."""
    return not (0 < place < len(text) and _latin(text[place - 1]) and _latin(text[place]))


def _latin(character: str) -> bool:
    return character.isascii() and character.isalnum()
