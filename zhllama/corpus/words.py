"""A user's list of words, found in a text in the same time however long the list is."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from zhllama.config import UserError
from zhllama.decode import read_lines

Branches = dict[str, "Branches"]
END = ""  # a word may end here


def read_words(path: Path) -> Words:
    """The words of a UTF-8 file with one word a line; empty lines and lines that begin with # are left out.

    Raises:
        UserError: no such file, not UTF-8, no word inside.
    """
    try:
        lines = "\n".join(read_lines(path, "utf-8", advice="convert it with iconv")).splitlines()
    except UserError as problem:
        raise UserError(f"--words {problem}") from problem
    words = [plain(line.strip()) for line in lines if line.strip() and not line.startswith("#")]
    if not words:
        raise UserError(f"--words {path}: no word inside; write one a line")
    return Words(words)


def plain(text: str) -> str:
    """A text as words are compared in it: NFKC, lower case."""
    return unicodedata.normalize("NFKC", text).lower()


class Words:
    """Words as a tree of their characters: the time to find them does not grow with their number."""

    def __init__(self, words: Iterable[str]) -> None:
        self.tree: Branches = {}
        for word in words:
            branch = self.tree
            for character in word:
                branch = branch.setdefault(character, {})
            branch[END] = {}

    def find(self, text: str) -> Iterator[str]:
        """The longest word at each place of a plain text; a-z0-9 at its ends stands at a word's edge."""
        place = 0
        while place < len(text):
            end = self._end(text, place) if text[place] in self.tree else 0
            if end:
                yield text[place:end]
            place = end or place + 1

    def _end(self, text: str, begin: int) -> int:
        """Where the longest word from here ends; 0: there is none."""
        if not _edge(text, begin):
            return 0
        branch, end = self.tree, 0
        for place in range(begin, len(text)):
            following = branch.get(text[place])
            if following is None:
                break
            branch = following
            if END in branch and _edge(text, place + 1):
                end = place + 1
        return end


def _edge(text: str, place: int) -> bool:
    """Whether no Latin word goes on from before this place to behind it."""
    return not (0 < place < len(text) and _latin(text[place - 1]) and _latin(text[place]))


def _latin(character: str) -> bool:
    return character.isascii() and character.isalnum()
