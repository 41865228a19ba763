"""Texts for checking tokenizers: deterministic, full of what breaks them (spaces, digits, code, emoji)."""

from __future__ import annotations

import random
from collections.abc import Sequence

_WORDS = (
    "the of and to in is tokenizer people government 2023 1998 3.14 don't I'm e-mail naïve café Zürich weiß "
    "Привет мир Ελληνικά שלום مرحبا नमस्ते สวัสดี 안녕하세요 ㄱㄴ Việt x=1; def f(a,b): return[a+b] i++ a!=b "
    "<div class='x'> </div> {\"k\": null} #include https://a.b/c?d=e&f user@host $PATH %s \\n // TODO: == => "
    "— – … “quoted” ‘single’ · • × ÷ € £ ° № ™ ½ ² α β ∑ √ ≤ → ■ ● ★ "
    "😀 👍🏽 👨‍👩‍👧 🇨🇳 ❤️ ✔️ \ufe0f \u200b \u00a0 e\u0301 \u2028 \ufffd 𝒳 𐍈 \u0301 \u0308\u0323 \u20e3"
)
# At spaces alone: `split()` would also cut at U+00A0 and U+2028, which are to be tried.
WORDS = _WORDS.split(" ")
# LLaMA's pieces of two spaces and more share one score, -1e9: the only ties among its pieces.
SPACES = (" ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", " \n ", "\r\n", " " * 7, " " * 19)
# Characters that few vocabularies have: Han extensions, compatibility forms, wide space, kana, bopomofo.
RARE = "𠮷𫝀𪚥㐂豈　〇々ヶーㄅㄆﾊ！（）％Ａ１～︰\u3099\u302a"
# Words that begin and end alike, run together: occurrences of one piece compete for a token.
BORDERED = ("是不是", "是不是不是", "二十二十二", "常常常", "人人为人", "国中国中国", "一一得一一")
COMMON = (
    "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后"
)


def plain_texts(count: int, seed: int = 0) -> list[str]:
    """Texts without any CJK character, about 80 characters each."""
    source = random.Random(seed)
    return ["".join(_plain_parts(source, source.randint(1, 16))) for _ in range(count)]


def mixed_texts(pieces: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """Texts of the given Chinese pieces, halves of them, other characters and plain parts, run together."""
    source = random.Random(seed + 1)
    return ["".join(_mixed_parts(source, pieces, source.randint(1, 24))) for _ in range(count)]


def _plain_parts(source: random.Random, count: int) -> list[str]:
    parts = [source.choice(SPACES)] if source.random() < 0.1 else []
    for _ in range(count):
        parts.append(source.choice(WORDS))
        if source.random() < 0.8:
            parts.append(source.choice(SPACES))
    return parts


def _mixed_parts(source: random.Random, pieces: Sequence[str], count: int) -> list[str]:
    parts = []
    for _ in range(count):
        kind = source.random()
        if pieces and kind < 0.6:
            piece = source.choice(pieces)
            # Halves bring rests that old and new pieces compete for; twice the same lets a piece overlap
            # itself.
            cut = source.randrange(len(piece))
            parts.append(source.choice((piece, piece, piece[cut:], piece[:cut], piece * 2)))
        elif kind < 0.65:
            parts.append(source.choice(BORDERED))
        elif kind < 0.75:
            parts.append("".join(source.choices(COMMON, k=source.randint(1, 6))))
        elif kind < 0.85:
            parts.append(source.choice(RARE))
        else:
            parts += _plain_parts(source, 1)
    return parts
