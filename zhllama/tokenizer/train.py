"""train-tokenizer: a corpus -> the Chinese pieces that a merge into a base makes exactly `size` new ones."""

from __future__ import annotations

import io
import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from zhllama.artifact import create, require, write_json
from zhllama.config import UserError
from zhllama.corpus.read import read_documents
from zhllama.terminal import console, print_table, say, track
from zhllama.tokenizer import write
from zhllama.tokenizer.admit import NORMAL, Admitted, SentencePieceVocabulary, admit
from zhllama.tokenizer.alphabet import CJK_RUN, HAN
from zhllama.tokenizer.load import CHINESE_MODEL, Loaded, load, require_bpe
from zhllama.tokenizer.merge import extend_base

# SentencePiece silently drops longer lines (4,192 bytes by default), so nothing longer is handed to it.
LONGEST_SENTENCE = 4096
SENTENCE_END = re.compile(r"(?<=[。！？])")
HELD_OUT_SHARE, HELD_OUT_CHARACTERS = 0.05, 500_000


@dataclass
class TrainTokenizerConfig:
    """Train Chinese pieces on a corpus, to be merged into a base tokenizer."""

    corpus: str
    """Corpus directory, or a .txt, .jsonl or .parquet file (.gz and .zst too)."""
    output: str
    """Directory to write chinese_sp.model to."""
    base: str | None = None
    """Tokenizer the pieces will be merged into; size then counts what the merge adds."""
    size: int = 18000
    """Pieces to add, those that only lead to others included."""
    character_min_count: int = 3
    """Characters seen less often get no piece; the base's byte tokens spell them."""
    max_piece_length: int = 8
    """Longest piece, in characters."""
    sample_megabytes: int = 512
    """Text kept in memory; of a larger corpus, documents are drawn at random."""
    seed: int = 0
    """Decides which documents are drawn."""
    threads: int = 0
    """Threads of the SentencePiece trainer; 0 takes all cores."""

    def __post_init__(self) -> None:
        lowest = {
            "size": 1,
            "character_min_count": 1,
            "max_piece_length": 2,
            "sample_megabytes": 1,
            "threads": 0,
        }
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}")


@dataclass(frozen=True)
class Sample:
    """What is trained on and what the result is measured on."""

    lines: list[str]
    held_out: list[str]
    documents: int
    kept: int


def train_tokenizer(config: TrainTokenizerConfig) -> None:
    """Train pieces, keep the ones a merge into the base admits, and write them as a SentencePiece BPE model.

    Raises:
        UserError: no corpus, none of it Chinese, an unsuitable base, or more pieces than the text supports.
    """
    base = load(config.base, "--base") if config.base else None
    if base is not None:
        require_bpe(base, "--base")
    corpus = require(config.corpus, "corpus", "--corpus")
    inputs = {"corpus": corpus} | ({"base": base.file} if base is not None else {})
    with create(config.output, "tokenizer", "train-tokenizer", config, inputs) as artifact:
        begun = time.monotonic()
        sample = draw_sample(read_documents(corpus), config)
        characters = frequent_characters(sample.lines, config)
        say(f"training on {sum(map(len, sample.lines)):,} characters of {sample.kept:,} documents")
        sentences = list(chinese_sentences(sample.lines, set(characters)))
        with console.status("SentencePiece is training"):
            trained = train_pieces(sentences, characters, base, config)
        candidates = [piece.piece for piece in trained.pieces if piece.type == NORMAL]
        merges = [piece for piece in candidates if len(piece) > 1]
        admitted, fast = _admit(base, characters + merges, config.size)
        if len(admitted.keys) < config.size:
            raise UserError(
                f"--size {config.size}: this corpus supports {len(admitted.keys)} new pieces; "
                "lower --size or --character-min-count, or bring more text"
            )
        model = chinese_model(trained, admitted.texts).SerializeToString()
        (artifact.path / CHINESE_MODEL).write_bytes(model)
        artifact.result |= {
            "size": len(admitted.keys),
            "pieces": len(admitted.texts),
            "characters": admitted.characters,
            "merges": admitted.merges,
            "intermediates": admitted.intermediates,
            "skipped_bytes": skipped_bytes(sentences),
            **measure(base, fast, model, sample.held_out),
        }
        corpus_counts = {"documents": sample.documents, "sampled": sample.kept, "sentences": len(sentences)}
        refused = {reason: len(pieces) for reason, pieces in admitted.refused.items()}
        seconds = round(time.monotonic() - begun, 1)
        write_json(
            artifact.path / "report.json",
            artifact.result
            | corpus_counts
            | {"candidates": len(candidates), "refused": refused, "seconds": seconds},
        )
    _print_summary(config, artifact.result)


def draw_sample(documents: Iterable[str], config: TrainTokenizerConfig) -> Sample:
    """Lines of documents drawn in bounded memory, the last of them held out.

    Every document gets a number from the seed; when memory is full, those above a falling threshold go.
    """
    limit = config.sample_megabytes * 1_000_000
    source = random.Random(config.seed)
    threshold, size, count = 1.0, 0, 0
    kept: list[tuple[float, str]] = []
    for document in track(documents, "reading the corpus"):
        count += 1
        ticket = source.random()
        if ticket >= threshold or not document:
            continue
        kept.append((ticket, document))
        size += len(document.encode(errors="replace"))
        while size > limit and len(kept) > 1:
            threshold *= 0.8
            kept = [entry for entry in kept if entry[0] < threshold] or kept[:1]
            size = sum(len(document.encode(errors="replace")) for _, document in kept)
    lines = [line for _, document in kept for line in document.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"--corpus {config.corpus}: no text in it")
    if not any(HAN.search(line) for line in lines):
        raise UserError(f"--corpus {config.corpus}: no Chinese characters in it; a Chinese corpus is needed")
    return Sample(*_hold_out(lines), documents=count, kept=len(kept))


def frequent_characters(lines: list[str], config: TrainTokenizerConfig) -> list[str]:
    """CJK characters seen often enough, most frequent first."""
    counts: Counter[str] = Counter()
    for line in lines:
        for run in CJK_RUN.findall(line):
            counts.update(run)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [character for character, count in ordered if count >= config.character_min_count]


def chinese_sentences(lines: list[str], characters: set[str]) -> Iterator[str]:
    """Runs of the given characters, cut at 。！？ and wherever they are longer than the trainer takes."""
    step = LONGEST_SENTENCE // 4  # a UTF-8 character has at most 4 bytes
    for line in track(lines, "cutting sentences"):
        for run in CJK_RUN.findall(line):
            text = run if characters.issuperset(run) else "".join(c if c in characters else " " for c in run)
            # Not str.split(): the ideographic space is a character like any other.
            for part in filter(None, text.split(" ")):
                for sentence in SENTENCE_END.split(part):
                    yield from (sentence[at : at + step] for at in range(0, len(sentence), step))


def skipped_bytes(sentences: list[str]) -> int:
    """Bytes of what the trainer would drop for its length: 0, because `chinese_sentences` cuts it."""
    sizes = (len(sentence.encode()) for sentence in sentences)
    return sum(size for size in sizes if size > LONGEST_SENTENCE)


def train_pieces(
    sentences: list[str], characters: list[str], base: Loaded | None, config: TrainTokenizerConfig
) -> Any:
    """A SentencePiece BPE ModelProto with every given character and more merges than will be needed."""
    if not sentences:
        raise UserError(
            f"--corpus {config.corpus}: no character occurs {config.character_min_count} times; "
            "lower --character-min-count or bring more text"
        )
    known = 0 if base is None else sum(1 for token in base.fast.get_vocab() if not token.isascii())
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=writer,
        model_type="bpe",
        vocab_size=259
        + len(characters)
        + min(config.size + config.size // 4 + 200 + known, 4 * config.size + 1000),
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        max_sentencepiece_length=config.max_piece_length,
        max_sentence_length=LONGEST_SENTENCE,
        num_threads=config.threads or _cores(),
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(writer.getvalue())
    return proto


def chinese_model(trained: Any, texts: list[str]) -> Any:
    """The trained model with `texts` as its pieces, after its control and byte pieces."""
    proto = type(trained)()
    proto.CopyFrom(trained)
    del proto.pieces[:]
    proto.pieces.extend(piece for piece in trained.pieces if piece.type != NORMAL)
    write.append_pieces(proto, texts, -1.0)
    return proto


def measure(base: Loaded | None, fast: Tokenizer | None, model: bytes, held_out: list[str]) -> dict[str, Any]:
    """Characters per token of held-out lines: the base, the base with the pieces; or the pieces alone."""
    characters = sum(map(len, held_out))
    result: dict[str, Any] = {"held_out_characters": characters}
    if base is None or fast is None:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        return result | {"characters_per_token": _ratio(characters, processor.encode(held_out))}
    for name, tokenizer in (("characters_per_token_base", base.fast), ("characters_per_token", fast)):
        encodings = tokenizer.encode_batch_fast(held_out, add_special_tokens=False)
        result[name] = _ratio(characters, [encoding.ids for encoding in encodings])
    return result


def _admit(base: Loaded | None, candidates: list[str], size: int) -> tuple[Admitted, Tokenizer | None]:
    if base is None:
        return admit(candidates, SentencePieceVocabulary(None), size), None
    admitted, fast, _ = extend_base(base, candidates, [], size)
    return admitted, fast


def _hold_out(lines: list[str]) -> tuple[list[str], list[str]]:
    """Lines to train on, and the last ones to measure on; a single line is cut."""
    wanted = min(int(sum(map(len, lines)) * HELD_OUT_SHARE), HELD_OUT_CHARACTERS)
    last = lines[-1]
    if len(lines) == 1 or len(last) > 2 * wanted:
        cut = len(last) - wanted
        return [*lines[:-1], last[:cut]], [last[cut:]]
    at = len(lines)
    while wanted > 0 and at > 1:
        at -= 1
        wanted -= len(lines[at])
    return lines[:at], lines[at:]


def _ratio(characters: int, encoded: list[list[int]]) -> float | None:
    tokens = sum(map(len, encoded))
    return round(characters / tokens, 4) if tokens else None


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))


def _print_summary(config: TrainTokenizerConfig, result: dict[str, Any]) -> None:
    rows: list[tuple[str, object]] = [
        ("pieces a merge adds", result["size"]),
        ("characters", result["characters"]),
        ("words and parts of words", result["merges"]),
        ("bytes skipped", result["skipped_bytes"]),
        ("characters per token, base", result.get("characters_per_token_base")),
        ("characters per token, with them", result["characters_per_token"]),
    ]
    print_table(f"Chinese pieces: {Path(config.output) / CHINESE_MODEL}", ["", ""], rows)
    base = config.base or "BASE"
    say(f"next: zhllama merge-tokenizer --base {base} --chinese {config.output} --output DIR")
