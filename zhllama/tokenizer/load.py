"""Read any tokenizer: a model or tokenizer directory, a SentencePiece `.model`, a `tokenizer.json`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, normalizers

from zhllama.artifact import Opened, fingerprint
from zhllama.config import UserError
from zhllama.tokenizer import write
from zhllama.tokenizer.alphabet import spell_bytes, unspell
from zhllama.tokenizer.hub import HubDirectory

BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
CHINESE_MODEL = "chinese_sp.model"
PARALLEL = "TOKENIZERS_PARALLELISM"


class TokenizerDirectory(HubDirectory):
    """What merge-tokenizer wrote, a model directory for its tokenizer, or one file of either."""

    kind = "tokenizer"


@dataclass(frozen=True)
class Loaded:
    """A tokenizer and what its directory says about it."""

    kind: Literal["sentencepiece", "bytelevel"]
    fast: Tokenizer
    """Encodes; from `tokenizer.json`, or built from the `.model` where there is none."""
    proto: Any | None
    """sentencepiece ModelProto, with the directory's added tokens appended; None without a `.model`."""
    settings: dict[str, Any]
    """Content of `tokenizer_config.json`."""
    bos: str | None
    eos: str | None
    pad: str | None
    unk: str | None
    chat_template: str | None
    opened: Opened
    """What the flag named, its `run.json` too."""
    file: Path
    """The file that decides the ids."""

    @property
    def directory(self) -> Path:
        """Where the tokenizer lies."""
        return self.file.parent

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the file that decides the ids; a model and the tokenizer it holds agree in it."""
        return fingerprint(self.file)

    def piece_bytes(self, index: int) -> bytes:
        """The text that an id of the vocabulary stands for, in UTF-8; empty for an id without a token."""
        token = self.fast.id_to_token(index)
        if token is None:
            return b""
        if self.kind == "bytelevel":
            return unspell(token)
        if BYTE_PIECE.fullmatch(token):
            return bytes([int(token[3:-1], 16)])
        return token.replace(write.SPACE, " ").encode()

    def inner_encoder(self) -> Callable[[bytes], list[int]]:
        """A function from UTF-8 bytes to ids as they stand inside a sentence: no BOS, no dummy prefix.

        Bytes that are no whole characters (leading-byte pieces) become one id a byte.
        """
        inner = Tokenizer.from_str(self.fast.to_str())
        if self.kind == "sentencepiece":
            # Without the step that puts a space in front.
            inner.normalizer = normalizers.Replace(" ", write.SPACE)

        def encode(raw: bytes) -> list[int]:
            try:
                return list(inner.encode(raw.decode(), add_special_tokens=False).ids)
            except UnicodeDecodeError:
                # Only byte-level vocabularies have beginnings of characters, and one letter for each byte.
                return [self.id_of(letter) for letter in spell_bytes(raw)]

        return encode

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text alone: no BOS, and the names of special tokens are text like any other."""
        # A switch of the whole tokenizer, which others encode with: it is set back at once.
        self.fast.encode_special_tokens = True
        ids = list(self.fast.encode(text, add_special_tokens=False).ids)
        self.fast.encode_special_tokens = False
        return ids

    def roles(self) -> dict[str, str | None]:
        """The special tokens as chat templates name them."""
        return {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad, "unk_token": self.unk}

    def special_tokens(self) -> set[str]:
        """Every token that is found in text as a whole, before the text is split."""
        return {token.content for token in self.fast.get_added_tokens_decoder().values() if token.special}

    def start_id(self) -> int:
        """What a document begins with when every token of it is to be predicted: BOS where added, else EOS."""
        # Of no text there is only what the post-processor adds.
        added = self.fast.encode("").ids
        return added[0] if added else self.eos_id()

    def eos_id(self) -> int:
        """The id that ends a document; raises UserError where the tokenizer has none."""
        if self.eos is None:
            raise UserError(f"{self.directory}: the tokenizer has no EOS token, so no document could end")
        return self.id_of(self.eos)

    def id_of(self, token: str) -> int:
        """The id of a token that the vocabulary has."""
        index = self.fast.token_to_id(token)
        assert index is not None, token
        return index


def load(path: str | Path, flag: str = "--tokenizer") -> Loaded:
    """Load a tokenizer without transformers and without changing how it encodes.

    Raises:
        UserError: nothing there, no tokenizer inside, or a broken file.
    """
    return load_opened(TokenizerDirectory.open(path, flag))


def load_opened(opened: Opened) -> Loaded:
    """Load the tokenizer of a directory or file that is looked up already; raises UserError as `load` does."""
    source, flag = opened.path, opened.flag
    directory = source if source.is_dir() else source.parent
    json_file = source if source.suffix == ".json" else directory / "tokenizer.json"
    model_file = source if source.suffix == ".model" else directory / "tokenizer.model"
    # A .model named by itself is read alone: what lies beside it may be another tokenizer's.
    bare = source.suffix == ".model"
    settings = {} if bare else write.read_json(directory / "tokenizer_config.json")
    # tokenizer.json goes first, for it is what everybody loads; the .model adds scores and kinds of pieces.
    if json_file.is_file() and not bare:
        fast, kind = _read_fast(json_file, flag)
        proto = read_proto(model_file, flag) if kind == "sentencepiece" and model_file.is_file() else None
        if proto is not None:
            added = fast.get_added_tokens_decoder()
            write.append_specials(
                proto, {index: (token.content, token.special) for index, token in added.items()}
            )
        file = json_file
    elif model_file.is_file():
        kind, file = "sentencepiece", model_file
        proto = read_proto(model_file, flag)
        if not bare:
            # Where transformers' slow tokenizers keep what was added to a model.
            added_ids = write.read_json(directory / "added_tokens.json")
            write.append_specials(proto, {index: (content, True) for content, index in added_ids.items()})
        fast = write.sentencepiece_tokenizer(
            proto, settings.get("add_bos_token", True), settings.get("add_eos_token", False)
        )
    else:
        raise UserError(f"{flag} {source}: {_what_is_missing(source)}")
    roles = {role: _role(role, settings, directory, bare, proto) for role in ("bos", "eos", "pad", "unk")}
    template = None if bare else _chat_template(directory, settings)
    return Loaded(kind, fast, proto, settings, **roles, chat_template=template, opened=opened, file=file)


def read_proto(path: Path, flag: str) -> Any:
    """A SentencePiece ModelProto; raises UserError for a file that is none, or is cut short."""
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as problem:
        raise UserError(f"{flag} {path}: not a SentencePiece model, or cut short; copy it again") from problem
    # Protobuf takes many a wrong or half a file for a message: one without these is no model.
    if not proto.pieces or not proto.HasField("trainer_spec") or not proto.HasField("normalizer_spec"):
        raise UserError(
            f"{flag} {path}: not a SentencePiece model, or cut short (no pieces or settings inside)"
        )
    return proto


def require_bpe(loaded: Loaded, flag: str) -> None:
    """Raise UserError unless pieces can be merged into `loaded`: byte-level or SentencePiece BPE."""
    where = f"{flag} {loaded.file}"
    model = type(loaded.fast.model).__name__
    if loaded.kind == "bytelevel" and model == "BPE":
        return
    proto = loaded.proto
    # Scores and kinds of pieces stand in the .model alone: without it no rank is known to be the lowest.
    if proto is None and model == "BPE":
        raise UserError(
            f"{where}: a SentencePiece BPE, but no tokenizer.model lies next to it; copy the model's there"
        )
    # TrainerSpec.ModelType; 2 is BPE.
    kind = {1: "unigram", 3: "word", 4: "character"}.get(proto.trainer_spec.model_type) if proto else model
    if kind or model != "BPE":
        raise UserError(
            f"{where}: a {kind or model} vocabulary; only BPE bases (LLaMA and its kin) can be extended"
        )
    assert proto is not None
    spec = proto.normalizer_spec
    # A piece is admitted as it is written: where the normaliser changes its text, it could never be reached.
    if spec.precompiled_charsmap or spec.remove_extra_whitespaces:
        raise UserError(f"{where}: its normaliser changes text ({spec.name}); a base with identity is needed")
    if not proto.trainer_spec.byte_fallback:
        raise UserError(
            f"{where}: it has no byte pieces, so not every text can be encoded; choose a base that has"
        )
    # Some bases ship two files that disagree. Extending one would silently give up how the other reads text.
    for index, piece in enumerate(proto.pieces):
        token = loaded.fast.id_to_token(index)
        if token != piece.piece:
            raise UserError(
                f"{where}: tokenizer.json and tokenizer.model disagree: "
                f"id {index} is {token!r} and {piece.piece!r}"
            )
    if loaded.fast.get_vocab_size() != len(proto.pieces):
        raise UserError(
            f"{where}: tokenizer.json and tokenizer.model disagree: "
            f"{loaded.fast.get_vocab_size()} and {len(proto.pieces)} tokens"
        )


def _read_fast(path: Path, flag: str) -> tuple[Tokenizer, Literal["sentencepiece", "bytelevel"]]:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        state = json.loads(text)
    except json.JSONDecodeError as problem:
        raise UserError(f"{flag} {path}: not valid JSON ({problem}); copy it again") from problem
    if not isinstance(state, dict) or "model" not in state:
        raise UserError(f"{flag} {path}: not a tokenizer.json (no model inside)")
    # SentencePiece's conversions name no ByteLevel step, neither where text is split nor where it is decoded.
    parts = json.dumps([state.get("pre_tokenizer"), state.get("decoder")])
    return Tokenizer.from_str(text), "bytelevel" if '"ByteLevel"' in parts else "sentencepiece"


def _what_is_missing(source: Path) -> str:
    if source.is_dir() and (source / CHINESE_MODEL).is_file():
        return f"only {CHINESE_MODEL} inside; merge it into a base with zhllama merge-tokenizer first"
    if source.is_dir():
        return "no tokenizer.json or tokenizer.model inside"
    return "give a directory, a SentencePiece .model or a tokenizer.json"


def _role(role: str, settings: dict[str, Any], directory: Path, bare: bool, proto: Any | None) -> str | None:
    name = f"{role}_token"
    value = settings.get(name)
    if value is None and not bare:
        # Older transformers named them there, or as an object with the text inside.
        value = write.read_json(directory / "special_tokens_map.json").get(name)
    if isinstance(value, dict):
        value = value.get("content")
    # Only where no settings speak: those that name no pad token mean that there is none.
    if value is None and proto is not None and not settings:
        value = write.special_piece(proto, role)
    return value


def _chat_template(directory: Path, settings: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    # The file wins over the settings, as in transformers.
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


@contextmanager
def own_threads() -> Iterator[None]:
    """No threads of the tokenizers library's own until the end: ours, a batch each, are faster."""
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = "false"
    try:
        yield
    finally:
        os.environ.pop(PARALLEL)
        if before is not None:
            os.environ[PARALLEL] = before
