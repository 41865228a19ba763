"""Byte-level BPE bases (Llama-3, SmolLM2, Qwen): their vocabulary, and `tokenizer.json` with pieces added."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from zhllama.tokenizer.alphabet import is_cjk, only_cjk_continues, spell, unspell


class ByteLevelVocabulary:
    """New pieces on top of a byte-level BPE tokenizer.

    A base token is formed only by the pairs in the base's own merge list, a new one by any two neighbours,
    because `extend` emits every split of it: tiktoken encodes so, and `ignore_merges` (Llama-3) needs it.
    """

    def __init__(self, fast: Tokenizer) -> None:
        self._fast = fast
        self.pieces = set(fast.get_vocab(with_added_tokens=False))
        # The base applies its own merges, in `split`: only new pieces are ranked here.
        self.ranks: dict[str, float] = {}
        self.next_rank = 0.0

    def split(self, texts: Sequence[str]) -> list[list[str]]:
        """The base's tokens of each text; an empty list where pre-tokenizer or normaliser change it."""
        pre_tokenizer = self._fast.pre_tokenizer
        found = []
        for text, encoding in zip(
            texts, self._fast.encode_batch(list(texts), add_special_tokens=False), strict=True
        ):
            whole = spell(text)
            words = [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]
            tokens = encoding.tokens
            # A pre-tokenizer that cuts the text, or a normaliser that changes it, leaves it no single token.
            found.append(tokens if words == [whole] and "".join(tokens) == whole else [])
        return found

    def allowed(self, key: str) -> bool:
        """Whole CJK characters, or the beginning of one that no other character shares."""
        raw = unspell(key)
        text = self.text(key)
        return only_cjk_continues(raw) if text is None else is_cjk(text)

    def text(self, key: str) -> str | None:
        """The text, where the bytes are whole characters."""
        try:
            return unspell(key).decode()
        except UnicodeDecodeError:
            return None


def extend(state: dict[str, Any], keys: Sequence[str], specials: Sequence[str]) -> dict[str, Any]:
    """A byte-level `tokenizer.json` with new pieces, then new special tokens, after all its ids."""
    model = state["model"]
    # tokenizers numbers an added token that the vocabulary lacks (Llama-3's are) anew, after the last piece.
    vocabulary: dict[str, int] = model["vocab"] | {
        token["content"]: token["id"] for token in state["added_tokens"]
    }
    # Behind all ids, those of added tokens too: rows of the base's embedding never move.
    last = max(vocabulary.values())
    vocabulary |= {key: last + 1 + place for place, key in enumerate(keys)}
    # In rank order, and every split of each: whichever two neighbours text brings forth are merged.
    pairs = [
        (key[:cut], key[cut:])
        for key in keys
        for cut in range(1, len(key))
        if key[:cut] in vocabulary and key[cut:] in vocabulary
    ]
    joined = bool(model["merges"]) and isinstance(
        model["merges"][0], str
    )  # tokenizers before 0.20 wrote "a b"
    # Behind the base's merges, so that no pair of the base's loses its turn to a new one.
    merges = model["merges"] + [f"{a} {b}" if joined else [a, b] for a, b in pairs]
    first = last + 1 + len(keys)
    added = [special_token(token, first + place) for place, token in enumerate(specials)]
    return {
        **state,
        "added_tokens": [*state["added_tokens"], *added],
        "model": {**model, "vocab": vocabulary, "merges": merges},
    }


def tokenizer_of(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer that the content of a `tokenizer.json` describes."""
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))


def special_token(content: str, index: int) -> dict[str, Any]:
    """An entry of `added_tokens`: matched as it stands, skipped when decoding for people."""
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
