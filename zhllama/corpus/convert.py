"""Optional conversions of a text: traditional to simplified Chinese, full-width letters and digits to half width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from zhllama.corpus.rules import normalise

Chinese = Literal["keep", "simplified"]
Width = Literal["keep", "half"]
# Letters and digits only: Chinese punctuation has full width by right.
HALF = {code + 0xFEE0: code for code in range(0x21, 0x7F) if chr(code).isalnum()}


@dataclass(frozen=True)
class Forms:
    """Which forms of characters a corpus is written in."""

    chinese: Chinese = "keep"
    width: Width = "keep"

    def normaliser(self) -> Callable[[str], str]:
        """`rules.normalise` with these conversions; opencc's dictionaries (t2s, phrases too) are loaded here."""
        if self == Forms():
            return normalise
        simplified: Callable[[str], str] = str
        if self.chinese == "simplified":
            from opencc import OpenCC

            # By phrases: 乾 stays in 乾隆 and becomes 干 in 乾淨, which a table of characters cannot know.
            simplified = OpenCC("t2s").convert
        table = HALF if self.width == "half" else {}
        # Again behind it: half width could make a literal special token.
        return lambda text: normalise(simplified(normalise(text)).translate(table))
