"""Build and write tokenizers: a SentencePiece model as `tokenizer.json`, a tokenizer directory's files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors

from zhllama.artifact import write_json
from zhllama.tokenizer.admit import NORMAL

UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5  # sentencepiece_model.proto, beside NORMAL
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
SPACE = "▁"


def sentencepiece_tokenizer(proto: Any, bos: bool = True, eos: bool = False) -> Tokenizer:
    """A tokenizer that gives the ids of a SentencePiece model, with BOS in front unless `bos` is False.

    For BPE models with unique scores it agrees with SentencePiece on every text (but for the names of control
    tokens, which it matches); transformers' own conversion orders merges by id and does not.
    """
    is_unigram = proto.trainer_spec.model_type == UNIGRAM
    tokenizer = Tokenizer(_unigram(proto) if is_unigram else _bpe(proto))
    spec = proto.normalizer_spec
    steps: list[Any] = (
        [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    )
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    # In SentencePiece's order: characters, white space, the space in front, and last ▁ for every space.
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    # One space, that which was put in front: the text's own stay.
    strip = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    marked = {UNKNOWN: True, CONTROL: True, USER_DEFINED: False}
    for piece in proto.pieces:
        if piece.type in marked:
            # Not normalised: matched in the text as it stands, where no space is ▁ yet.
            tokenizer.add_tokens([AddedToken(piece.piece, special=marked[piece.type], normalized=False)])
    _add_template(
        tokenizer, special_piece(proto, "bos") if bos else None, special_piece(proto, "eos") if eos else None
    )
    return tokenizer


def special_piece(proto: Any, role: str) -> str | None:
    """The piece that a SentencePiece model uses as bos, eos, pad or unk."""
    index = getattr(proto.trainer_spec, f"{role}_id")
    return proto.pieces[index].piece if 0 <= index < len(proto.pieces) else None


def append_pieces(proto: Any, pieces: Sequence[str], first_score: float) -> None:
    """Append pieces with unique, strictly decreasing scores."""
    # float32, the type of scores, holds these whole numbers exactly; of equal ones SentencePiece takes the
    # leftmost, and `tokenizers` the first of its list.
    for place, text in enumerate(pieces):
        proto.pieces.add(piece=text, score=first_score - place, type=NORMAL)
    proto.trainer_spec.vocab_size = len(proto.pieces)


def append_specials(proto: Any, tokens: Mapping[int, tuple[str, bool]]) -> None:
    """Append added tokens (id -> content, special) to a model; ids between them become control pieces."""
    # A ModelProto has no ids but places, so a gap has to be filled.
    for index in range(len(proto.pieces), max(tokens, default=-1) + 1):
        content, special = tokens.get(index, (f"<gap_{index}>", True))
        proto.pieces.add(piece=content, score=0.0, type=CONTROL if special else USER_DEFINED)
    proto.trainer_spec.vocab_size = len(proto.pieces)


def write_directory(
    directory: Path, fast: Tokenizer, proto: Any | None, settings: Mapping[str, Any], template: str
) -> None:
    """Write `tokenizer.json`, `tokenizer.model` (SentencePiece only), the settings and the chat template."""
    fast.save(str(directory / "tokenizer.json"))
    if proto is not None:
        (directory / "tokenizer.model").write_bytes(proto.SerializeToString())
    write_json(directory / "tokenizer_config.json", dict(settings))
    roles = {name: value for name, value in settings.items() if name.endswith("_token")}
    write_json(directory / "special_tokens_map.json", roles)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def _bpe(proto: Any) -> models.BPE:
    """Merges in score order: every split of every piece, because SentencePiece merges any two neighbours."""
    scores = {
        piece.piece: piece.score for piece in proto.pieces if piece.type in (NORMAL, USER_DEFINED, UNUSED)
    }
    # `tokenizers` refuses merges of what is no piece; SentencePiece would make them of such characters, which
    # is why `admit` makes every character of a piece one first.
    merges = [
        (-score, -cut, text[:cut], text[cut:])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    # Among equal scores (LLaMA's runs of spaces) SentencePiece extends the leftmost symbol: long left first.
    merges.sort(key=lambda merge: merge[:2])
    return models.BPE(
        vocab={piece.piece: index for index, piece in enumerate(proto.pieces)},
        merges=[(left, right) for _, _, left, right in merges],
        unk_token=special_piece(proto, "unk"),
        # As SentencePiece does: unknown characters side by side are one token.
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _unigram(proto: Any) -> models.Unigram:
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    return models.Unigram(vocabulary, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback)


def _add_template(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> None:
    before, after = [f"{bos}:0"] if bos else [], [f"{eos}:0"] if eos else []
    if before or after:
        second = [part.replace(":0", ":1") for part in (*before, "$B:1", *after)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A:0", *after],
            pair=[*before, "$A:0", *after, *second],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (bos, eos) if token],
        )


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, or an empty dict where there is none."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
