"""What happens to one document: normalise its text, then rules that keep it or drop it with a reason.

All rules count characters. Rules for English (words between spaces, stop words) say nothing about Chinese.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from zhllama.corpus.compare import without_space
from zhllama.corpus.han import HAN, HAN_CLASS, count_han
from zhllama.corpus.invisible import without_invisible
from zhllama.corpus.ngrams import distinct_ngrams

# What no text wants: controls but \n and \t, surrogates, private use, non-characters.
STRIPPED = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff"
    "\U000f0000-\U0010ffff]"
)
# What `str.splitlines` takes for line ends and STRIPPED leaves: \n is the only one from here on.
LINE_END = re.compile("[\r\x0b\x0c\x85\u2028\u2029]")
# `</s>` in a web page must not end a document: a tokenizer would read it as the mark itself.
SPECIAL = re.compile(
    r"(?P<open></?)(?=(?:s|unk|pad|bos|eos|mask)>)"
    r"|(?P<bar><[|｜])(?=[^\s<>|｜]{1,40}[|｜]>)"
    r"|(?P<square>\[/?)(?=(?:INST|PAD)\])"
)
NOT_LETTER = re.compile(r"[\W\d_]+")
# What UTF-8 and GBK make of each other's bytes once a converter has put replacement characters in between.
GARBLED = re.compile("\ufffd|锟斤拷|烫烫烫|屯屯屯")
# What Latin-1 makes of both. Patterns for what is rare begin with one set of characters: `re` then skips to it.
LATIN = "\u00aa-\u00b6\u00b8-\u00ff"
# Four in a row are GBK's bytes; one from ä to é (E4 to E9, where UTF-8 begins a Chinese character) before a
# byte that goes on is UTF-8's.
LATIN_GARBLED = re.compile(f"[{LATIN}](?:[{LATIN}]{{3,}}|(?<=[ä-é])[\u0080-\u00bf])")
# Of a text's Chinese characters; prose has 94% and more, what a wrong decoding makes of it 64% and less.
LEAST_COMMON = 0.7
# Arrows, boxes, stars, emoji; not the operators of mathematics.
ORNAMENTS = "\u203b\u2190-\u21ff\u2300-\u2bff\u3013\ufe0f\U0001f000-\U0001faff"
ORNAMENT = re.compile(f"[{ORNAMENTS}][{ORNAMENTS}]*")
# Words that sentences are built with and names are not, simplified and traditional.
FUNCTION = re.compile("[的了是在不和有也就都与與及以而之其这這我你他她它们們着著把被将將从從于於對对]+")
SENTENCE_END = re.compile(rf"[。！？；…]|(?<=[{HAN_CLASS}])[.!?;]")
# Chinese characters: too few for their kinds to say anything, too few for a list, too many without an end.
FEW, LISTED, LONGEST_SENTENCE = 20, 50, 150
# Gopher's longest sequence, in characters; a window is what is compared at once.
GRAM = 10
WINDOW = 1 << 20


@dataclass(frozen=True)
class Limits:
    """When a document is dropped; shares are of its characters without white space, from 0 to 1."""

    min_characters: int = 20
    max_repetition: float = 0.5
    max_symbols: float = 0.5
    min_chinese: float = 0.0
    max_ornaments: float = 0.2
    min_function_words: float = 0.08


def normalise(text: str) -> str:
    """A text in Unicode NFC with `\\n` line ends, without controls, private-use and invisible characters.

    White space at line ends and around the text goes; the indentation of its first line stays. Characters
    keep their width (no NFKC), so Chinese punctuation survives. Literal special tokens (`<s>` `</s>` `<unk>`
    `<pad>` `<bos>` `<eos>` `<mask>`, `<|anything|>`, `[INST]` `[PAD]`) get one space after their opening,
    `</ s>`, so that no tokenizer takes them for the token. Normalising twice changes nothing.
    """
    text = without_invisible(STRIPPED.sub("", LINE_END.sub("\n", text.replace("\r\n", "\n"))))
    # Behind the stripping: a mark between a letter and its accent would keep them apart.
    text = unicodedata.normalize("NFC", text)
    # Line by line, not with a pattern: those take quadratic time over long runs of spaces.
    text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
    # Most texts have neither, and looking for one character is fast.
    return SPECIAL.sub(r"\g<0> ", text) if "<" in text or "[" in text else text


def too_short(text: str, limits: Limits) -> str | None:
    """Drop a text of fewer than `min_characters`."""
    return "too short" if len(text) < limits.min_characters else None


def garbled(text: str, limits: Limits) -> str | None:
    """Drop a text decoded wrongly: more than one character in a hundred shows it, or its Chinese is of rare ones."""
    # One in a hundred: a text may quote 锟斤拷, or lose a character now and then.
    if share(GARBLED, text) + share(LATIN_GARBLED, text) > 0.01:
        return "garbled"
    if 200 * text.count("的") >= len(text):  # most texts, seen quickly
        return None
    chinese = count_han(text)
    rare = chinese >= FEW and covered(common(), text) < LEAST_COMMON * chinese
    return "garbled" if rare else None


def symbols(text: str, limits: Limits) -> str | None:
    """Drop a text that is mostly digits, punctuation and symbols: tables, rulers, prices, scores."""
    return "mostly symbols" if share(NOT_LETTER, text) > limits.max_symbols else None


def foreign(text: str, limits: Limits) -> str | None:
    """Drop a text with less than `min_chinese` Chinese characters (punctuation counts on neither side)."""
    if not limits.min_chinese:
        return None
    # Of the letters: an article is no less Chinese for its digits and marks.
    return "too little Chinese" if share(HAN, NOT_LETTER.sub("", text)) < limits.min_chinese else None


def ornamented(text: str, limits: Limits) -> str | None:
    """Drop a text with more than `max_ornaments` of stars, boxes, arrows and emoji: adverts, pictures of symbols."""
    return "ornaments" if share(ORNAMENT, text) > limits.max_ornaments else None


def listing(text: str, limits: Limits) -> str | None:
    """Drop 50 Chinese characters or more with hardly a sentence: menus, lists of links, strings of key phrases.

    Hardly a sentence: fewer ends of one than one in 150 characters, and of Chinese characters less than
    `min_function_words` are function words. Gopher's stop words (Rae et al. 2021, table A1) for Chinese; verse and talk
    without punctuation have function words enough.
    """
    if LONGEST_SENTENCE * text.count("。") >= len(text):  # most texts, seen quickly
        return None
    chinese = count_han(text)
    if chinese < LISTED or LONGEST_SENTENCE * len(SENTENCE_END.findall(text)) >= chinese:
        return None
    return "no sentences" if covered(FUNCTION, text) < limits.min_function_words * chinese else None


def repetitive(text: str, limits: Limits) -> str | None:
    """Drop a text that says the same again and again."""
    return "repetitive" if repetition(text) > limits.max_repetition else None


RULES: tuple[Callable[[str, Limits], str | None], ...] = (
    too_short,
    garbled,
    symbols,
    ornamented,
    foreign,
    repetitive,
    listing,
)


def judge(text: str, limits: Limits) -> str | None:
    """The reason of the first rule that drops a text, or None to keep it."""
    characters = without_space(text)
    if not characters:
        return "empty"
    return next((reason for rule in RULES if (reason := rule(characters, limits))), None)


def covered(what: re.Pattern[str], text: str) -> int:
    """How many characters of a text a pattern covers."""
    return sum(map(len, what.findall(text)))


def share(what: re.Pattern[str], text: str) -> float:
    """How much of a text a pattern covers, from 0 to 1."""
    return covered(what, text) / max(len(text), 1)


@lru_cache(maxsize=1)
def common() -> re.Pattern[str]:
    """Runs of common characters: the first level of GB 2312 (3,755) or of Big5 (5,401)."""
    found: set[str] = set()
    for encoding, first, last in (("gb2312", 0xB0, 0xD7), ("big5", 0xA4, 0xC6)):
        for lead in range(first, last + 1):
            cells = b"".join(bytes((lead, trail)) for trail in (*range(0x40, 0x7F), *range(0xA1, 0xFF)))
            # "ignore" leaves the ASCII trail of a pair that a table lacks; the filter below takes it out.
            found.update(cells.decode(encoding, "ignore"))
    return re.compile(f"[{''.join(sorted(character for character in found if HAN.match(character)))}]+")


@lru_cache(maxsize=1)
def repetition(text: str) -> float:
    """The share of a text's 10-character sequences that have occurred before in it, from 0 to 1.

    The character form of the duplicate n-gram rule of Gopher (Rae et al. 2021, arXiv:2112.11446, table A1).
    The last answer is kept: what is measured is judged next.
    """
    count = len(text) - GRAM + 1
    if count < 2:
        return 0.0
    # In windows, for bounded memory: what repeats more than a million characters later is not seen.
    distinct = sum(
        # Windows overlap by nine characters: each sequence begins in exactly one.
        distinct_ngrams(text[start : start + WINDOW + GRAM - 1], GRAM)
        for start in range(0, count, WINDOW)
    )
    return 1 - distinct / count
