"""Which language a text is in: by pycld2, with traditional and simplified Chinese told apart, and code by its marks."""

from __future__ import annotations

import re
import unicodedata

from zhllama.corpus.han import count_han
from zhllama.corpus.ngrams import narrow

HEAD = 20_000  # characters looked at
KANA = re.compile(r"[\u3041-\u30ff\uff66-\uff9d]")
NEITHER = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]|[\U0001fffe-\U0001ffff]"
)
# A line of a program: it ends in a mark that prose does not end in, or begins with a word of a language.
CODE_LINE = re.compile(
    r"\s*(?:.*[;{}\[(\\]\s*$|.*\)\s*:\s*$|[})\]]|#include|(?:import|from|def|class|return|if|for|while|else|elif|try|"
    r"except|var|let|const|func|fn|public|private|static|package|using|end)\b.*[=(:{.;]|[\w.]+\s*[-+*|]?=\s*\S)"
)
# Half, for comments and texts in programs read like prose; three, for a line or two of prose may look so.
CODE_SHARE, CODE_LINES = 0.5, 3


def shares(text: str) -> dict[str, float]:
    """Language (ISO 639-1, `zh-Hant`, or `code`) -> share of the text, the largest first; what is not sure is left out.

    Looks at the first 20,000 characters. Chinese quoted beside a little kana is not taken for Japanese.
    """
    import pycld2

    if is_code(head := text[:HEAD]):
        return {"code": 1.0}
    # pycld2 refuses control characters, and does not know full-width letters; NFKC is slow where there are any.
    plain = NEITHER.sub(" ", unicodedata.normalize("NFKC", narrow(head)))
    try:
        _, _, found = pycld2.detect(plain, isPlainText=True)
    except pycld2.error:  # what else it holds to be no text
        return {}
    # "un" is the share that it does not know.
    known = {code: percent / 100 for _, code, percent, _ in found if code != "un"}
    # Japanese has kana in every sentence; less of it than a tenth of the Chinese is a name or a quotation.
    if "ja" in known and 10 * len(KANA.findall(plain)) < count_han(plain):
        known["zh"] = known.get("zh", 0) + known.pop("ja")
    return dict(sorted(known.items(), key=lambda item: -item[1]))


def is_code(text: str) -> bool:
    """Whether half of at least 3 lines with text look like lines of a program."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < CODE_LINES:
        return False
    return sum(bool(CODE_LINE.match(line)) for line in lines) >= CODE_SHARE * len(lines)


def unwanted(found: dict[str, float], keep: frozenset[str], least: float) -> bool:
    """Whether the languages to keep have less than the `least` share of what is known of a text."""
    wanted = sum(share for code, share in found.items() if code in keep)
    # Of what is known, not of all: tables and names, which no language claims, count on neither side.
    return wanted < least * sum(found.values())
