"""What tokenizer-report measures: density, drift, reach, rare pieces, agreement between runtimes, speed, cost."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, normalizers

from zhllama.corpus.han import HAN
from zhllama.tokenizer import llamacpp, write
from zhllama.tokenizer.alphabet import CJK_RUN, is_cjk
from zhllama.tokenizer.check import outside_cjk
from zhllama.tokenizer.load import Loaded
from zhllama.tokenizer.token_sizes import token_bytes

JIEBA_CHARACTERS = 200_000  # jieba cuts about 0.3 million characters a second
AGREEMENT_LINES = 2000
SAME_BASE = 0.9  # share of equal ids from which drift means something
MOSTLY_CHINESE = 0.5
LANGUAGES = ("Chinese", "mixed", "other")
MODEL_WIDTH = 4096  # LLaMA-7B's, where no model says its own


@dataclass
class Measured:
    """One tokenizer on all texts; dictionaries are keyed by the texts' names, or by kind of line."""

    characters_per_token: dict[str, float | None] = field(default_factory=dict)
    bytes_per_token: dict[str, float | None] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    language_characters_per_token: dict[str, float | None] = field(default_factory=dict)
    """By kind of line: mostly Chinese, some Chinese, none."""
    language_bytes_per_token: dict[str, float | None] = field(default_factory=dict)
    vocabulary: int = 0
    embedding_megabytes: float = 0.0
    """In bf16, with the output rows where a model's are its own."""
    rare: int = 0
    """Pieces that occur too seldom on all texts for their rows to be trained by them."""
    rare_share: float = 0.0
    unreachable: int = 0
    """Pieces that are whole Chinese characters and never what their own text is encoded as."""
    drift: float | None = None
    """Share of the lines without CJK that the first tokenizer cuts differently."""
    drift_by_text: dict[str, float | None] = field(default_factory=dict)
    disagreements: dict[str, int | None] = field(default_factory=dict)
    """Runtime -> lines to which it gives other ids than `tokenizers`; None where it cannot read this tokenizer."""
    megabytes_per_second: float = 0.0
    tokens_per_word: float | None = None
    """Tokens per jieba word of Chinese."""


@dataclass(frozen=True)
class Texts:
    """The user's texts, and what of them every tokenizer is measured on."""

    lines: dict[str, list[str]]
    words: tuple[list[str], int]
    """Lines with Chinese, and how many jieba words their CJK runs are."""
    rare: int
    """A piece seen less often counts as rare."""

    def all(self) -> list[str]:
        """The lines of all texts."""
        return [line for lines in self.lines.values() for line in lines]


def measure(loaded: Loaded, first: Tokenizer, texts: Texts, width: tuple[int, int]) -> Measured:
    """One tokenizer's numbers.

    Args:
        first: the one that drift is measured against.
        width: numbers in a row of the embedding, and how many embeddings the model has (2 where untied).
    """
    fast = loaded.fast
    result = Measured()
    counts: Counter[int] = Counter()
    kinds = {kind: [0, 0, 0] for kind in LANGUAGES}  # characters, bytes, tokens
    seconds, size = 0.0, 0
    for name, lines in texts.lines.items():
        begun = time.perf_counter()
        encodings = fast.encode_batch_fast(lines, add_special_tokens=False)
        # Encoding alone; the counting below is not the tokenizer's time.
        seconds += time.perf_counter() - begun
        sums = [0, 0, 0]
        for line, encoding in zip(lines, encodings, strict=True):
            counts.update(encoding.ids)
            found = (len(line), len(line.encode()), len(encoding.ids))
            for totals in (sums, kinds[language(line)]):
                totals[:] = [total + more for total, more in zip(totals, found, strict=True)]
        result.tokens[name] = sums[2]
        result.characters_per_token[name] = _ratio(sums[0], sums[2])
        result.bytes_per_token[name] = _ratio(sums[1], sums[2])
        result.drift_by_text[name] = drift(fast, first, lines)
        size += sums[1]
    for kind, (characters, bytes_, tokens) in kinds.items():
        result.language_characters_per_token[kind] = _ratio(characters, tokens)
        result.language_bytes_per_token[kind] = _ratio(bytes_, tokens)
    result.vocabulary = fast.get_vocab_size(with_added_tokens=True)
    result.embedding_megabytes = result.vocabulary * width[0] * width[1] * 2 / 1e6
    # Those that stand for text: special and padding rows are not there to be seen in it.
    pieces = token_bytes(fast).nonzero()[0].tolist()
    result.rare = sum(counts[index] < texts.rare for index in pieces)
    result.rare_share = result.rare / max(len(pieces), 1)
    result.unreachable = len(unreachable(loaded))
    result.drift = drift(fast, first, texts.all())
    result.disagreements = disagreements(loaded, _spread(texts.all(), AGREEMENT_LINES))
    result.megabytes_per_second = size / 1e6 / max(seconds, 1e-9)
    lines, cut = texts.words
    if cut:
        # With offsets, which `encode_batch_fast` lacks. Words are counted in CJK runs, so tokens there alone.
        encoded = zip(lines, fast.encode_batch(lines, add_special_tokens=False), strict=True)
        inside = sum(len(encoding.ids) - len(outside_cjk(line, encoding)) for line, encoding in encoded)
        result.tokens_per_word = inside / cut
    return result


def language(line: str) -> str:
    """Which of `LANGUAGES` a line is: mostly CJK, with some, or without."""
    share = chinese_share([line])
    return LANGUAGES[0] if share > MOSTLY_CHINESE else LANGUAGES[1] if share > 0 else LANGUAGES[2]


def chinese_share(lines: list[str]) -> float:
    """Share of the characters, spaces left out, that are CJK."""
    text = "".join("".join(line.split()) for line in lines)
    return sum(map(len, CJK_RUN.findall(text))) / max(len(text), 1)


def chinese_words(lines: list[str]) -> tuple[list[str], int]:
    """Lines with Chinese, up to what jieba cuts quickly, and how many jieba words their CJK runs are."""
    import jieba

    # Or it tells on the terminal where its dictionary and cache lie.
    jieba.setLogLevel("WARNING")
    taken: list[str] = []
    words, left = 0, JIEBA_CHARACTERS
    for line in filter(HAN.search, lines):
        if left <= 0:
            break
        taken.append(line)
        # Run by run, for jieba counts marks and Latin words as words too.
        words += sum(len(jieba.lcut(run)) for run in CJK_RUN.findall(line))
        left -= len(line)
    return taken, words


def unreachable(loaded: Loaded) -> list[str]:
    """Chinese pieces that no text brings forth: inside a sentence, their own text is encoded as something else."""
    fast = Tokenizer.from_str(loaded.fast.to_str())
    if loaded.kind == "sentencepiece":
        steps: list[Any] = [normalizers.Replace(" ", write.SPACE)]
        spec = loaded.proto.normalizer_spec if loaded.proto is not None else None
        # A vocabulary trained on NFKC text is judged by the text that it sees.
        if spec is not None and spec.precompiled_charsmap:
            steps.insert(0, normalizers.Precompiled(spec.precompiled_charsmap))
        fast.normalizer = normalizers.Sequence(steps)
    added = fast.get_added_tokens_decoder()
    texts: dict[int, str] = {}
    # An added token is found as a whole, whatever its merges would give.
    for index in set(fast.get_vocab().values()) - set(added):
        try:
            text = loaded.piece_bytes(index).decode()
        # The beginning of a character, or a token that no bytes spell.
        except (UnicodeDecodeError, KeyError):
            continue
        # ▁中国 is Chinese too; it stands for a space and two characters.
        if is_cjk(text.lstrip(" ")):
            texts[index] = text
    encodings = fast.encode_batch_fast(list(texts.values()), add_special_tokens=False)
    return [
        text
        for (index, text), encoding in zip(texts.items(), encodings, strict=True)
        if encoding.ids != [index]
    ]


def disagreements(loaded: Loaded, lines: list[str]) -> dict[str, int | None]:
    """Runtime -> how many of the lines it encodes unlike `tokenizers`, or None where it cannot be asked."""
    ours = [encoding.ids for encoding in loaded.fast.encode_batch_fast(lines, add_special_tokens=False)]
    found: dict[str, int | None] = {"SentencePiece": None, "transformers": None, "llama.cpp": None}

    def count(theirs: list[list[int]]) -> int:
        return sum(left != right for left, right in zip(ours, theirs, strict=True))

    if loaded.proto is not None:
        model = loaded.proto.SerializeToString()
        found["SentencePiece"] = count(sentencepiece.SentencePieceProcessor(model_proto=model).encode(lines))
    # Without a tokenizer.json transformers converts the .model by its own rules: no file that both read.
    if (loaded.directory / "tokenizer_config.json").is_file() and loaded.file.name == "tokenizer.json":
        from transformers import AutoTokenizer

        theirs: Any = AutoTokenizer.from_pretrained(loaded.directory)
        found["transformers"] = count(theirs(lines, add_special_tokens=False)["input_ids"])
    if llamacpp.is_available() and llamacpp.knows(loaded):
        with llamacpp.opened(loaded) as runtime:
            found["llama.cpp"] = count(runtime.encode(lines))
    return found


def drift(fast: Tokenizer, first: Tokenizer, lines: list[str]) -> float | None:
    """Share of the lines without CJK whose tokens differ; None without such lines, or with other base ids."""
    ids = range(first.get_vocab_size())
    # A tokenizer of another family cuts everything its own way, which is no drift.
    if sum(first.id_to_token(index) == fast.id_to_token(index) for index in ids) < SAME_BASE * len(ids):
        return None
    # In other lines new pieces are meant to change tokens.
    plain = [line for line in lines if not CJK_RUN.search(line)]
    before = first.encode_batch_fast(plain, add_special_tokens=False)
    after = fast.encode_batch_fast(plain, add_special_tokens=False)
    changed = sum(left.ids != right.ids for left, right in zip(before, after, strict=True))
    return changed / len(plain) if plain else None


def _ratio(amount: int, tokens: int) -> float | None:
    return amount / tokens if tokens else None


def _spread(lines: list[str], most: int) -> list[str]:
    """At most so many of the lines, from all over."""
    return lines[:: -(-len(lines) // most)] if len(lines) > most else lines
