"""How much of a text another one says, character by character: Chinese has no spaces to split at."""

from __future__ import annotations

from zhllama.corpus.compare import without_space


def longest_common(left: str, right: str) -> int:
    """The length of the longest common subsequence; a row of the table is one integer's bits (Hyyrö 2004)."""
    # Bit i of a character says that it stands at place i of `left`. Each zero bit of `row` is a character in
    # common; the carry of the addition moves it to the earliest place, for a whole row of the table at once.
    places: dict[str, int] = {}
    for at, character in enumerate(left):
        places[character] = places.get(character, 0) | 1 << at
    full = (1 << len(left)) - 1
    row = full
    for character in right:
        here = row & places.get(character, 0)
        row = (row + here | row - here) & full
    return len(left) - row.bit_count()


def common_share(left: str, right: str) -> float:
    """F1 of the longest common subsequence: 2 x its length by the sum of both lengths; 0 where both are empty."""
    both = len(left) + len(right)
    return 2 * longest_common(left, right) / both if both else 0.0


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L's F1 (Lin 2004) over characters, white space left out."""
    # The `rouge` package, told to take characters as words, differs: it counts each different character once.
    return common_share(without_space(reference), without_space(answer))
