"""What each id of a vocabulary stands for: bytes, characters, Chinese or not."""

from __future__ import annotations

import numpy
import numpy.typing
from tokenizers import Tokenizer

from zhllama.tokenizer import write
from zhllama.tokenizer.alphabet import is_chinese
from zhllama.tokenizer.load import BYTE_PIECE, Loaded


def token_bytes(fast: Tokenizer, rows: int | None = None) -> numpy.typing.NDArray[numpy.int32]:
    """UTF-8 bytes of text that each id stands for.

    Returns:
        int32 array of `rows` (default: one per id); special and added tokens, unknown and padding rows are 0,
        a byte token 1, SentencePiece's `▁` one byte (a space).
    """
    vocabulary = fast.get_vocab(with_added_tokens=True)
    count = max(vocabulary.values()) + 1
    assert rows is None or rows >= count, f"{count} tokens need as many rows, not {rows}"
    sizes = numpy.zeros(rows or count, dtype=numpy.int32)
    # They are no text of the corpus, so bits per byte do not count them.
    silent = set(fast.get_added_tokens_decoder())
    bytelevel = "ByteLevel" in repr(fast.decoder)
    # It stands for any text, so for no number of bytes.
    unknown = getattr(fast.model, "unk_token", None)
    for token, index in vocabulary.items():
        if index in silent or token == unknown:
            continue
        if bytelevel:
            # A byte-level vocabulary spells each byte with one letter.
            sizes[index] = len(token)
        else:
            sizes[index] = 1 if BYTE_PIECE.fullmatch(token) else len(token.replace(write.SPACE, " ").encode())
    return sizes


def token_counts(loaded: Loaded, rows: int) -> numpy.typing.NDArray[numpy.int32]:
    """What each id stands for: (rows, 3) int32 of UTF-8 bytes, characters begun, and 1 where they are Chinese."""
    counts = numpy.zeros((rows, 3), dtype=numpy.int32)
    counts[:, 0] = token_bytes(loaded.fast, rows)
    for index in counts[:, 0].nonzero()[0].tolist():
        raw = loaded.piece_bytes(index)
        # Every byte but those that go on begins a character, so a character cut into tokens counts once.
        counts[index, 1:] = sum(not 0x80 <= byte <= 0xBF for byte in raw), is_chinese(raw)
    return counts
