"""train-tokenizer: corpora -> the Chinese pieces that a merge into a base makes exactly `size` new ones."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer

from zhllama.artifact import Artifact, create, numbered, write_json
from zhllama.config import UserError
from zhllama.corpus.read import Corpus, check_weights, read_documents
from zhllama.terminal import print_table, say, warn
from zhllama.tokenizer import write
from zhllama.tokenizer.admit import NORMAL, Admitted, Vocabulary, admit
from zhllama.tokenizer.alphabet import is_cjk
from zhllama.tokenizer.load import CHINESE_MODEL, Loaded, load, require_bpe
from zhllama.tokenizer.merge import build, vocabulary_of
from zhllama.tokenizer.pieces import read_words
from zhllama.tokenizer.sample import (
    CorpusSample,
    count_runs,
    cut_at_words,
    cut_like_base,
    cuts_marks_off,
    draw_samples,
    frequent_characters,
    thin,
)
from zhllama.tokenizer.trainer import train_pieces

MOST_RUNS = 2_000_000  # the trainer needs 1.2 kB for each


@dataclass
class TrainTokenizerConfig:
    """Train Chinese pieces on text, to be merged into a base tokenizer."""

    corpus: list[str]
    """Corpus directory, or what clean reads: a file, a folder, what `datasets` saved, hf:NAME[:SPLIT] (repeatable)."""
    output: str
    """Directory to write chinese_sp.model to."""
    base: str | None = None
    """Tokenizer the pieces will be merged into; size then counts what the merge adds."""
    size: int = 18000
    """Pieces to add, those that only lead to others included."""
    weight: list[float] = field(default_factory=list)
    """Share of each corpus in what is counted, in the order of the corpora (repeatable); by size without it."""
    words: list[str] = field(default_factory=list)
    """Word list (UTF-8, one a line; a jieba dictionary will do) that must be among the pieces (repeatable)."""
    segment: bool = False
    """Cut the text into words with jieba first: no piece crosses a word, and a text needs 9% more tokens."""
    lean_marks: bool = True
    """Let ，、；（ and their like begin a piece, as in ，我们 (only where the base's pre-tokenizer does)."""
    character_min_count: int = 2
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
        check_weights(self.corpus, self.weight)


def train_tokenizer(config: TrainTokenizerConfig) -> None:
    """Train pieces, keep the ones a merge into the base admits, and write them as a SentencePiece BPE model.

    Raises:
        UserError: no corpus, none of it Chinese, an unsuitable base, or more pieces than the text supports.
    """
    base = load(config.base, "--base") if config.base else None
    if base is not None:
        require_bpe(base, "--base")
    # All that is named is looked at before any of it is read to its end.
    corpora = {path: Corpus.open(path) for path in config.corpus}
    words, dropped = read_words(config.words, "--words")
    inputs = numbered("corpus", list(corpora.values())) | numbered("words", config.words)
    if base is not None:
        inputs["base"] = base.file
    with create(config.output, "tokenizer", "train-tokenizer", config, inputs) as artifact:
        begun = time.monotonic()
        documents = {name: read_documents(corpus) for name, corpus in corpora.items()}
        samples = draw_samples(documents, config.weight, config.sample_megabytes, config.seed)
        result = _train(artifact, config, base, samples, words)
        result["words"] |= {"dropped": dropped}
        result["seconds"] = round(time.monotonic() - begun, 1)
        write_json(artifact.path / "report.json", artifact.result | result)
    _print_summary(config, artifact.result | result)


def _train(
    artifact: Artifact,
    config: TrainTokenizerConfig,
    base: Loaded | None,
    samples: list[CorpusSample],
    words: list[str],
) -> dict[str, Any]:
    """Write the model and fill the artifact's result; what only the report wants."""
    characters = frequent_characters(samples, config.character_min_count)
    if not characters:
        raise UserError(
            f"--corpus {config.corpus[0]}: no character occurs {config.character_min_count} times; "
            "lower --character-min-count or bring more text"
        )
    say(
        f"training on {sum(len(line) for sample in samples for line in sample.lines):,} characters "
        f"of {sum(sample.kept for sample in samples):,} documents"
    )
    bytelevel = base is not None and base.kind == "bytelevel"
    # Where the base cuts behind marks, a piece across that cut could never be reached.
    lean = config.lean_marks and not (base is not None and bytelevel and cuts_marks_off(base.fast))
    counts = count_runs(samples, characters, lean)
    held_out = {sample.name: sample.held_out for sample in samples}
    summary = [
        {name: getattr(sample, name) for name in ("name", "documents", "kept", "weight")}
        for sample in samples
    ]
    samples.clear()  # the trainer needs the memory
    runs = len(counts)
    # First, so that both cuts below have no more to do than the trainer.
    counts = thin(counts, MOST_RUNS, config.seed)
    if base is not None and bytelevel:
        counts = cut_like_base(counts, base.fast)
    if config.segment:
        counts = cut_at_words(counts, words)
    known = vocabulary_of(base)
    in_base = sum(is_cjk(known.text(key) or "") for key in known.pieces)
    # More than are asked for: the base has some merges already, and others are refused by the border rule.
    wanted = config.size + config.size // 4 + 200 + in_base
    trained = train_pieces(counts, characters, wanted, config.max_piece_length, config.threads, artifact.path)
    # Characters are chosen already, by their own counts.
    merges = [piece.piece for piece in trained.pieces if piece.type == NORMAL and len(piece.piece) > 1]
    admitted, missing = choose(base, characters, merges, words, config.size)
    model = chinese_model(trained, admitted.texts).SerializeToString()
    (artifact.path / CHINESE_MODEL).write_bytes(model)
    # Measured as it will be used: in the base, where its own Chinese pieces take part.
    fast = None if base is None else build(base, admitted.keys, [])[0]
    artifact.result |= {
        "size": len(admitted.keys),
        "pieces": len(admitted.texts),
        "characters": admitted.characters,
        "merges": admitted.merges,
        "intermediates": admitted.intermediates,
        "skipped_bytes": 0,  # the trainer's log says so, or it is an error
        **measure(base, fast, model, held_out),
    }
    return {
        "corpora": summary,
        "runs": {"distinct": runs, "trained on": len(counts)},
        "candidates": len(characters) + len(merges),
        "words": {"asked": len(words), "missing": missing},
        "refused": {reason: len(pieces) for reason, pieces in admitted.refused.items()},
    }


def choose(
    base: Loaded | None, characters: list[str], merges: list[str], words: list[str], size: int
) -> tuple[Admitted, list[str]]:
    """Exactly `size` new pieces: the characters, the words that must be among them, and as many merges as fit.

    Characters take at most half, the most frequent first, unless there are too few merges for the rest. The words
    come last, where their ranks take nothing from the merges; what they need is set aside for them.

    Returns:
        The pieces, and the words that no vocabulary beside this base can have.

    Raises:
        UserError: fewer candidates than `size`, or more words.
    """
    few = most_frequent(base, characters, size // 2)
    # A merge needs each of its characters as a piece, or runtimes would disagree about it.
    spelt = [merge for merge in merges if set(few).issuperset(merge)]
    admitted, vocabulary = _fill(base, few, spelt, words, size)
    if len(admitted.keys) < size and len(few) < len(characters):
        admitted, vocabulary = _fill(base, characters, merges, words, size)
    if len(admitted.keys) < size:
        raise UserError(
            f"--size {size}: this corpus supports {len(admitted.keys)} new pieces; "
            "lower --size or --character-min-count, or bring more text"
        )
    texts = {vocabulary.text(key) for key in vocabulary.pieces} if words else set()
    missing = [word for word in words if word not in texts]
    if missing:
        warn(f"--words: {len(missing)} cannot be pieces beside the others ({'、'.join(missing[:5])})")
    return admitted, missing


def _fill(
    base: Loaded | None, characters: list[str], merges: list[str], words: list[str], size: int
) -> tuple[Admitted, Vocabulary]:
    """At most `size` pieces, the words among them, and the vocabulary with them."""
    # A word needs its characters, however rare they are in the corpus.
    characters = list(dict.fromkeys(characters + [c for word in words for c in word]))
    reserve = len(words)
    while True:
        vocabulary = vocabulary_of(base)
        admitted = admit(characters + merges, vocabulary, max(size - reserve, 0))
        # Behind the merges and without a limit; what is too much is set aside in the next round.
        if words:
            admitted.add(admit(words, vocabulary, None))
        excess = len(admitted.keys) - size
        if excess <= 0:
            break
        if reserve >= size:
            raise UserError(
                f"--size {size}: the --words alone need {len(admitted.keys)} pieces; raise --size"
            )
        # What words need beside themselves, characters and steps, shows only when they are in.
        reserve += excess
    if words and excess:
        # Set aside, and not needed after all.
        admitted.add(admit(merges, vocabulary, -excess))
    return admitted, vocabulary


def most_frequent(base: Loaded | None, characters: list[str], budget: int) -> list[str]:
    """The first of the characters that `budget` new pieces make single tokens, and those that need none."""
    admitted = admit(characters, vocabulary_of(base), budget)
    # What is refused takes none of the budget: the base has it, or it may not be a piece.
    kept = set(admitted.texts).union(*admitted.refused.values())
    return [character for character in characters if character in kept]


def chinese_model(trained: Any, texts: list[str]) -> Any:
    """The trained model with `texts` as its pieces, after its control and byte pieces."""
    proto = type(trained)()
    proto.CopyFrom(trained)
    del proto.pieces[:]
    # At the lowest ids, where SentencePiece puts them too.
    proto.pieces.extend(piece for piece in trained.pieces if piece.type != NORMAL)
    proto.trainer_spec.ClearField("input")  # paths of temporary files
    proto.trainer_spec.ClearField("model_prefix")
    write.append_pieces(proto, texts, -1.0)
    return proto


def measure(
    base: Loaded | None, fast: Tokenizer | None, model: bytes, held_out: dict[str, list[str]]
) -> dict[str, Any]:
    """Characters per token of held-out lines: the base, the base with the pieces; or the pieces alone."""
    lines = [line for lines in held_out.values() for line in lines]
    result: dict[str, Any] = {"held_out_characters": sum(map(len, lines))}
    if base is None or fast is None:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        result["characters_per_token"] = _ratio(lines, processor.encode(lines))
        return result
    for name, tokenizer in (("characters_per_token_base", base.fast), ("characters_per_token", fast)):
        result[name] = _measure(tokenizer, lines)
    result["characters_per_token_by_corpus"] = {name: _measure(fast, own) for name, own in held_out.items()}
    return result


def _measure(fast: Tokenizer, lines: list[str]) -> float | None:
    encodings = fast.encode_batch_fast(lines, add_special_tokens=False)
    return _ratio(lines, [encoding.ids for encoding in encodings])


def _ratio(lines: list[str], encoded: list[list[int]]) -> float | None:
    tokens = sum(map(len, encoded))
    return round(sum(map(len, lines)) / tokens, 4) if tokens else None


def _print_summary(config: TrainTokenizerConfig, result: dict[str, Any]) -> None:
    rows: list[tuple[str, object]] = [
        ("pieces a merge adds", result["size"]),
        ("characters", result["characters"]),
        ("words and parts of words", result["merges"]),
        ("must-have words among them", result["words"]["asked"] - len(result["words"]["missing"])),
        ("bytes skipped", result["skipped_bytes"]),
        ("characters per token, base", result.get("characters_per_token_base")),
        ("characters per token, with them", result["characters_per_token"]),
    ]
    print_table(f"Chinese pieces: {Path(config.output) / CHINESE_MODEL}", ["", ""], rows)
    base = config.base or "BASE"
    say(f"next: zhllama merge-tokenizer --base {base} --chinese {config.output} --output DIR")
