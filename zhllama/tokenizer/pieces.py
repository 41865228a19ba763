"""Where pieces come from: a directory of train-tokenizer, anybody's SentencePiece `.model`, a word list."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zhllama.config import UserError
from zhllama.tokenizer import write
from zhllama.tokenizer.admit import NORMAL
from zhllama.tokenizer.load import CHINESE_MODEL, TokenizerDirectory, read_proto


@dataclass(frozen=True)
class PieceList:
    """Candidates for pieces, in order."""

    file: Path
    pieces: list[str]
    """Each once, without the space mark in front."""
    dropped: dict[str, int]
    """Reason -> how many candidates were dropped for it."""
    normaliser: str | None = None
    """Name of the normaliser that a model applies to text before its pieces are looked up, if it has one."""


def read_pieces(path: str | Path, flag: str = "--chinese") -> PieceList:
    """The pieces behind a flag.

    Raises:
        UserError: nothing there, a directory without pieces, a broken model, a word list that is not UTF-8.
    """
    file = TokenizerDirectory.open(path, flag).path
    if file.is_dir():
        if not (file / CHINESE_MODEL).is_file():
            raise UserError(f"{flag} {path}: no {CHINESE_MODEL} inside; run zhllama train-tokenizer first")
        file /= CHINESE_MODEL
    if file.suffix == ".model":
        proto = read_proto(file, flag)
        spec = proto.normalizer_spec
        # Without the space mark, which is no CJK: a piece with it could only be refused.
        words = (piece.piece.lstrip(write.SPACE) for piece in proto.pieces if piece.type == NORMAL)
        return PieceList(file, *_clean(words), spec.name if spec.precompiled_charsmap else None)
    try:
        # Editors on Windows begin a file with a mark that would be part of its first word.
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UserError(
            f"{flag} {path}: not UTF-8 at byte {problem.start:,}; if it is GBK, convert it: iconv -f GB18030 -t UTF-8"
        ) from problem
    # A jieba dictionary has frequency and tag behind the word.
    # Not `splitlines`, which also cuts at form feeds and the like: such an entry is dropped, and counted.
    entries = [] if not text else text.removesuffix("\n").split("\n")
    lines = (line.strip("\r ").split(" ")[0].split("\t")[0] for line in entries)
    return PieceList(file, *_clean(lines))


def read_words(paths: list[str], flag: str) -> tuple[list[str], dict[str, int]]:
    """The words of several lists, each once, and how many entries were dropped for which reason."""
    sources = [read_pieces(path, flag) for path in paths]
    words, dropped = _clean(word for source in sources for word in source.pieces)
    counts = sum((Counter(source.dropped) for source in sources), Counter(dropped))
    return words, dict(counts)


def _clean(words: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    dropped: Counter[str] = Counter()
    kept: dict[str, None] = {}
    for word in words:
        if not word.strip():
            dropped["empty"] += 1
        # Invisible: such a word looks like another that it is not.
        elif any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in word):
            dropped["control characters"] += 1
        elif word in kept:
            dropped["given twice"] += 1
        else:
            kept[word] = None
    return list(kept), dict(dropped)
