"""The guarantees of a merged tokenizer, tried on the written files as every runtime reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Encoding, Tokenizer, normalizers

from zhllama.config import UserError
from zhllama.tokenizer import llamacpp, write
from zhllama.tokenizer.alphabet import is_cjk, unspell
from zhllama.tokenizer.fuzz import mixed_texts, plain_texts
from zhllama.tokenizer.load import Loaded, load, read_proto

# Of each kind. All gates together take 8 s for 20,000 pieces (benchmarks/results/tokenizer.md).
TEXTS = 2000


def run(directory: Path, base: Loaded, keys: Sequence[str], strict: bool) -> dict[str, int]:
    """Check a written tokenizer directory against its base; `keys` are the added pieces in id order.

    Returns:
        Counts of what was tried and, where not `strict`, of what failed.

    Raises:
        UserError: the first failure, when `strict`.
    """
    fast = Tokenizer.from_file(str(directory / "tokenizer.json"))
    # A base's tokenizer.json may order merges by id, as transformers' own conversion does: the tokens to keep
    # are those that its .model gives.
    original = base.fast if base.proto is None else write.sentencepiece_tokenizer(base.proto)
    # A byte-level key may be the beginning of a character: without a text there is nothing to reach it by.
    texts = [key if base.proto is not None else unspell(key).decode(errors="ignore") for key in keys]
    whole = [
        (key, text)
        for key, text in zip(keys, texts, strict=True)
        if base.proto is not None or _spelt(key, text)
    ]
    plain = plain_texts(TEXTS)
    # Made of the very pieces that were added.
    mixed = mixed_texts([text for _, text in whole], TEXTS)
    # Iterators: a strict check ends at the first complaint, and nothing behind that is computed.
    found = {
        "base": base_changes(fast, directory, base),
        "unreachable": unreachable(fast, whole),
        "changed": changed_plain(original, fast, plain),
        "mixed_changed": changed_mixed(original, fast, mixed),
        "undecodable": undecodable(fast, plain + mixed),
        "disagree": iter(()),
    }
    if base.proto is not None:
        processor = unprefixed(directory / "tokenizer.model")
        found["unreachable_sentencepiece"] = unreachable_sentencepiece(processor, fast, whole)
        found["disagree"] = disagreements(directory / "tokenizer.model", fast, plain + mixed)
    if strict and llamacpp.is_available() and llamacpp.knows(base):
        found["llamacpp"] = llamacpp_differences(directory, fast, whole, plain + mixed)
    if strict:
        # A few: AutoTokenizer loads the same file into the same library, and only what it changes on the way
        # can differ.
        found["transformers"] = transformers_differences(directory, fast, plain[:200] + mixed[:200])
    counts = {"pieces": len(whole), "texts": len(plain), "mixed": len(mixed)}
    for name, complaints in found.items():
        for complaint in complaints:
            if strict:
                raise UserError(f"the merged tokenizer breaks a guarantee: {complaint}; nothing was kept")
            counts[name] = counts.get(name, 0) + 1
        counts.setdefault(name, 0)
    return counts


def base_changes(fast: Tokenizer, directory: Path, base: Loaded) -> Iterator[str]:
    """Base ids that mean something else now, in `tokenizer.json` or `tokenizer.model`."""
    for token, index in base.fast.get_vocab(with_added_tokens=True).items():
        if fast.id_to_token(index) != token:
            yield f"id {index} was {token!r} and is {fast.id_to_token(index)!r}"
    if base.proto is not None:
        written = read_proto(directory / "tokenizer.model", "--output")
        for index, piece in enumerate(base.proto.pieces):
            if written.pieces[index] != piece:
                yield f"piece {index} ({piece.piece!r}) changed in tokenizer.model"


def unreachable(fast: Tokenizer, whole: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Added pieces that `tokenizers` does not give for their own text."""
    # A copy, because the checks behind this one need the normaliser.
    bare = Tokenizer.from_str(fast.to_str())
    if _is_sentencepiece(fast):
        bare.normalizer = normalizers.Replace(" ", write.SPACE)  # no space in front of the piece
    encodings = bare.encode_batch_fast([text for _, text in whole], add_special_tokens=False)
    for (key, text), encoding in zip(whole, encodings, strict=True):
        if encoding.ids != [fast.token_to_id(key)]:
            yield f"{text!r} is encoded as {tokens_of(fast, encoding.ids)}"


def unreachable_sentencepiece(
    processor: Any, fast: Tokenizer, whole: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """Added pieces that SentencePiece does not give for their own text."""
    for (key, text), ids in zip(whole, processor.encode([text for _, text in whole]), strict=True):
        if ids != [fast.token_to_id(key)]:
            yield f"SentencePiece encodes {text!r} as {processor.id_to_piece(ids)}"


def changed_plain(original: Tokenizer, fast: Tokenizer, texts: list[str]) -> Iterator[str]:
    """Texts without CJK whose tokens are not the base's."""
    before = original.encode_batch_fast(texts, add_special_tokens=False)
    after = fast.encode_batch_fast(texts, add_special_tokens=False)
    for text, left, right in zip(texts, before, after, strict=True):
        if left.ids != right.ids:
            was, now = tokens_of(original, left.ids), tokens_of(fast, right.ids)
            yield f"{text!r}, without Chinese, was {was} and is {now}"


def changed_mixed(original: Tokenizer, fast: Tokenizer, texts: list[str]) -> Iterator[str]:
    """Mixed texts whose tokens outside the Chinese are not the base's."""
    # Not `encode_batch_fast`: its offsets are all 0.
    before = original.encode_batch(texts, add_special_tokens=False)
    after = fast.encode_batch(texts, add_special_tokens=False)
    for text, left, right in zip(texts, before, after, strict=True):
        if outside_cjk(text, left) != outside_cjk(text, right):
            yield f"in {text!r} tokens outside the Chinese change"


def outside_cjk(text: str, encoding: Encoding) -> list[tuple[int, int, int]]:
    """(id, start, end) of the tokens that touch a character that is not CJK; offsets count characters."""
    spans = zip(encoding.ids, encoding.offsets, strict=True)
    return [(index, *span) for index, span in spans if not is_cjk(text[span[0] : span[1]])]


def undecodable(fast: Tokenizer, texts: list[str]) -> Iterator[str]:
    """Texts that do not come back from their ids."""
    change: Callable[[str], str] = str
    if not _is_sentencepiece(fast) and fast.normalizer is not None:
        # Qwen's has NFC: what comes back then is the text in that form.
        change = fast.normalizer.normalize_str
    encodings = fast.encode_batch_fast(texts, add_special_tokens=False)
    decoded = fast.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
    for text, back in zip(texts, decoded, strict=True):
        if back != change(text):
            yield f"{text!r} is decoded as {back!r}"


def disagreements(model: Path, fast: Tokenizer, texts: list[str]) -> Iterator[str]:
    """Texts to which SentencePiece and `tokenizers` give different ids."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    encodings = fast.encode_batch_fast(texts, add_special_tokens=False)
    for text, encoding, ids in zip(texts, encodings, processor.encode(texts), strict=True):
        if encoding.ids != ids:
            ours = tokens_of(fast, encoding.ids)
            yield f"{text!r}: SentencePiece {processor.id_to_piece(ids)}, tokenizers {ours}"


def llamacpp_differences(
    directory: Path, fast: Tokenizer, whole: Sequence[tuple[str, str]], texts: list[str]
) -> Iterator[str]:
    """Added pieces that llama.cpp does not give for their own text, and texts to which it gives other ids."""
    written = load(directory / "tokenizer.json")  # its run.json has no result yet
    # Without the space in front, as a piece stands inside a sentence.
    with llamacpp.opened(written, prefix=False) as runtime:
        for (key, text), ids in zip(whole, runtime.encode([text for _, text in whole]), strict=True):
            if ids != [fast.token_to_id(key)]:
                yield f"llama.cpp encodes {text!r} as {tokens_of(fast, ids)}"
    with llamacpp.opened(written) as runtime:
        encodings = fast.encode_batch_fast(texts, add_special_tokens=False)
        for text, encoding, ids in zip(texts, encodings, runtime.encode(texts), strict=True):
            if encoding.ids != ids:
                yield f"{text!r} is {encoding.ids} to tokenizers, {ids} to llama.cpp"


def transformers_differences(directory: Path, fast: Tokenizer, texts: list[str]) -> Iterator[str]:
    """Texts to which `AutoTokenizer` gives different ids, with BOS and without."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    for special in (False, True):
        ours = fast.encode_batch_fast(texts, add_special_tokens=special)
        for text, encoding, ids in zip(
            texts, ours, tokenizer(texts, add_special_tokens=special)["input_ids"], strict=True
        ):
            if encoding.ids != ids:
                yield f"{text!r} is {encoding.ids} to tokenizers, {ids} to transformers"


def tokens_of(fast: Tokenizer, ids: Sequence[int]) -> list[str | None]:
    """The names of ids; `encode_batch_fast` gives none."""
    return [fast.id_to_token(index) for index in ids]


def unprefixed(model: Path) -> Any:
    """A SentencePiece processor that puts no space in front."""
    proto = read_proto(model, "--output")
    proto.normalizer_spec.add_dummy_prefix = False
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def _is_sentencepiece(fast: Tokenizer) -> bool:
    return "ByteFallback" in repr(fast.decoder)


def _spelt(key: str, text: str) -> bool:
    """Whether a byte-level key is whole characters: the beginning of one has no text of its own."""
    return len(text.encode()) == len(key)
