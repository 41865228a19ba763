"""What two texts are compared by, from the closest form to the loosest.

What a model is scored by is none of these: `measure.pclue` follows a public script to the letter.
"""

from __future__ import annotations

import re
import unicodedata

BESIDE_LETTERS = re.compile(r"[\W_]+")


def without_space(text: str) -> str:
    """A text without white space (`str.split` takes the same characters for it as `\\s`, and is faster)."""
    return "".join(text.split())


def folded(text: str) -> str:
    """A text without differences of case and width: NFKC, lower case."""
    return unicodedata.normalize("NFKC", text).lower()


def compact(text: str) -> str:
    """A text without white space, case and width. What remains says something in a short text: 3+5 is not 3-5."""
    return without_space(folded(text))


def letters(text: str) -> str:
    """The letters and digits of a text, lower case: pages set the same prose in other marks."""
    return BESIDE_LETTERS.sub("", text).lower()
