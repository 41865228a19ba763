"""merge-tokenizer: a base and Chinese pieces -> a tokenizer directory that keeps the base's tokens."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from zhllama.artifact import create, write_json
from zhllama.config import UserError
from zhllama.terminal import print_table, say, warn
from zhllama.tokenizer import check, llamacpp, write
from zhllama.tokenizer.admit import Admitted, SentencePieceVocabulary, admit
from zhllama.tokenizer.bytelevel import ByteLevelVocabulary, extend, tokenizer_of
from zhllama.tokenizer.load import Loaded, load, read_proto, require_bpe
from zhllama.tokenizer.pieces import PieceList, read_pieces
from zhllama.tokenizer.template import MARKS, WRITE_BOS, Template, check_marks, reply_end, shipped

# Chinese-LLaMA's 49,953 pieces and a pad are 2 x 24,977 rows, which four ranks cannot share.
ROWS_MULTIPLE = 64  # rows that tensor parallelism and tensor cores divide evenly


@dataclass
class MergeTokenizerConfig:
    """Merge Chinese pieces into a base tokenizer; what the base does to other text stays as it is."""

    base: str
    """Model or tokenizer directory, or a SentencePiece .model file."""
    chinese: str
    """Directory of train-tokenizer, any SentencePiece .model, or a word list (UTF-8, one a line)."""
    output: str
    """Tokenizer directory to write."""
    policy: Literal["lossless", "union"] = "lossless"
    """lossless gives the guarantees; union appends every piece with score 0, as Chinese-LLaMA did."""
    special: list[str] = field(default_factory=list)
    """Special tokens to add, besides the pad and the template's marks (repeatable)."""
    template: Template = "keep"
    """Chat template; keep takes the base's own, or alpaca_zh where it has none."""
    pad: str = "<pad>"
    """Pad token, added unless the base has one that is neither its EOS nor its unknown token."""


@dataclass(frozen=True)
class Specials:
    """The special tokens of the merged tokenizer: what is new, and who plays which role."""

    new: list[str]
    settings: dict[str, Any]
    template: str


def merge_tokenizer(config: MergeTokenizerConfig) -> None:
    """Merge, write, and check what was written; nothing is left behind when a guarantee fails.

    Raises:
        UserError: an unsuitable base or piece list, or a guarantee that fails (names the piece or text).
    """
    base = load(config.base, "--base")
    require_bpe(base, "--base")
    # A byte-level vocabulary has merges and no scores, so nothing to be 0.
    if config.policy == "union" and base.kind == "bytelevel":
        raise UserError("--policy union: only for SentencePiece bases; use lossless for byte-level ones")
    source = read_pieces(config.chinese)
    specials = plan_specials(config, base)
    inputs = {"base": base.file, "chinese": source.file}
    with create(config.output, "tokenizer", "merge-tokenizer", config, inputs) as artifact:
        if config.policy == "union":
            keys, (fast, proto) = _union(base, source.file, specials.new)
            # The published script takes all as they are.
            source = replace(source, dropped={}, normaliser=None)
            admitted = Admitted(keys=keys, texts=keys)
        else:
            admitted, fast, proto = extend_base(base, source.pieces, specials.new)
            if not admitted.keys:
                raise UserError(f"--chinese {config.chinese}: no piece to add: {_reasons(admitted, source)}")
        # Checked as files, inside `create`: a guarantee that fails here leaves no directory behind.
        write.write_directory(artifact.path, fast, proto, specials.settings, specials.template)
        say(f"checking {len(admitted.keys):,} new pieces in the written files")
        measured = check.run(artifact.path, base, admitted.keys, strict=config.policy == "lossless")
        total = fast.get_vocab_size(with_added_tokens=True)
        artifact.result |= {
            "kind": base.kind,
            "base_vocabulary": base.fast.get_vocab_size(with_added_tokens=True),
            "vocabulary": total,
            "added": len(admitted.keys),
            "specials": specials.new,
            # Rounded up; nothing is ever encoded as the rows behind the vocabulary.
            "rows": -(-total // ROWS_MULTIPLE) * ROWS_MULTIPLE,
            "first_new": fast.token_to_id((admitted.keys + specials.new)[0]),
            # resize-embeddings refuses a model that has another tokenizer than this base.
            "base_tokenizer_fingerprint": base.fingerprint,
        }
        write_json(artifact.path / "report.json", _report(artifact.result, admitted, source, measured))
    if source.normaliser:
        warn(
            f"--chinese {config.chinese}: trained on normalised text ({source.normaliser}), so it has no piece for "
            "full-width forms such as ，（！; a vocabulary of train-tokenizer has"
        )
    if config.policy == "union":
        warn(
            f"--policy union: {measured['unreachable']:,} pieces can never be produced, "
            f"{measured['changed']} of {measured['texts']} texts without Chinese change their tokens, "
            f"SentencePiece and tokenizers disagree on {measured['disagree']} of {measured['mixed']} others"
        )
    _print_summary(config, artifact.result, admitted, source, measured)


def extend_base(
    base: Loaded, pieces: list[str], specials: list[str], budget: int | None = None
) -> tuple[Admitted, Tokenizer, Any | None]:
    """Admit `pieces` into a base; the tokenizer with them (and its ModelProto) is built in memory."""
    admitted = admit(pieces, vocabulary_of(base), budget)
    return admitted, *build(base, admitted.keys, specials)


def vocabulary_of(base: Loaded | None) -> SentencePieceVocabulary | ByteLevelVocabulary:
    """What `admit` adds to: the pieces of a base, or none at all."""
    if base is not None and base.kind == "bytelevel":
        return ByteLevelVocabulary(base.fast)
    return SentencePieceVocabulary(base.proto if base else None)


def build(base: Loaded, keys: list[str], specials: list[str]) -> tuple[Tokenizer, Any | None]:
    """The base's tokenizer (and ModelProto) with admitted keys, then special tokens, behind its own."""
    if base.kind == "bytelevel":
        return tokenizer_of(extend(json.loads(base.fast.to_str()), keys, specials)), None
    proto: Any = copy.deepcopy(base.proto)
    # Scores are ranks with the sign turned, below every base piece that a text with Chinese can bring forth.
    write.append_pieces(proto, keys, -SentencePieceVocabulary(base.proto).next_rank)
    return _with_specials(base, proto, specials), proto


def plan_specials(config: MergeTokenizerConfig, base: Loaded) -> Specials:
    """Which special tokens to add, and the settings and template that name them."""
    known = set(base.fast.get_vocab(with_added_tokens=True))
    marks = MARKS.get(config.template, [])
    # The EOS is what ends a reply of this template: training learns it, and generation stops at it.
    eos = marks[-1] if marks else _kept_end(config, base)
    if config.template in WRITE_BOS and not base.bos:
        raise UserError(
            f"--template {config.template}: it begins with a BOS token, which --base {config.base} has not"
        )
    if config.template != "chatml" and not eos and not base.chat_template:
        raise UserError(
            f"--base {config.base}: it names no EOS token; add eos_token to its tokenizer_config.json"
        )
    wanted = [*marks, *config.special]
    # With EOS for a pad, trainers that mask padding mask the end of every reply too: the model never stops.
    pad = base.pad if base.pad not in (None, eos, base.eos, base.unk) else None
    if config.policy == "lossless" and pad is None:
        pad = config.pad
        if pad in (eos, base.eos, base.unk):
            raise UserError(
                f"--pad {pad}: it is the EOS or unknown token, which padding would hide; choose another"
            )
        # Now or never: after the merge nothing changes the vocabulary.
        wanted.append(pad)
    if blank := [token for token in wanted if not token.strip()]:
        raise UserError(f"--special {blank[0]!r}: a special token needs a visible character")
    roles = {"bos": base.bos, "eos": eos, "pad": pad, "unk": base.unk}
    settings: dict[str, Any] = {
        # transformers' class for LLaMA drops a leading space, and this one reads tokenizer.json as it stands.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": token for role, token in roles.items() if token},
        # True would take the space before a mark away, and text would not come back from its ids.
        "clean_up_tokenization_spaces": False,
        **{key: base.settings[key] for key in ("model_max_length", "padding_side") if key in base.settings},
    }
    template = _template(config, base)
    tokens = base.special_tokens() | set(wanted)
    named = {key: value for key, value in settings.items() if key.endswith("_token")}
    # Before anything is written: what is missing here cannot be added later.
    check_marks(template, named, tokens, f"--template {config.template}")
    # A mark that the base has keeps its id and its trained row.
    new = [token for token in dict.fromkeys(wanted) if token not in known]
    return Specials(new, settings, template)


def _template(config: MergeTokenizerConfig, base: Loaded) -> str:
    if config.template == "keep" and base.chat_template:
        return base.chat_template
    return shipped("alpaca_zh" if config.template == "keep" else config.template)


def _kept_end(config: MergeTokenizerConfig, base: Loaded) -> str | None:
    """The EOS under the base's own template: what that writes after a reply (Qwen's base models name another)."""
    if config.template != "keep" or not base.chat_template:
        return base.eos
    return (
        reply_end(base.chat_template, base.roles(), base.special_tokens() | set(config.special)) or base.eos
    )


def _with_specials(base: Loaded, proto: Any, specials: list[str]) -> Tokenizer:
    # Control pieces: SentencePiece gives their ids for no text, only to whoever asks by name.
    first = len(proto.pieces)
    write.append_specials(proto, {first + place: (token, True) for place, token in enumerate(specials)})
    settings = base.settings
    return write.sentencepiece_tokenizer(
        proto, settings.get("add_bos_token", True), settings.get("add_eos_token", False)
    )


def _union(base: Loaded, source: Path, specials: list[str]) -> tuple[list[str], tuple[Tokenizer, Any]]:
    """The published script: every piece that the base lacks, in order, with score 0."""
    if source.suffix != ".model":
        raise UserError(f"--chinese {source}: --policy union merges two SentencePiece models; give a .model")
    proto: Any = copy.deepcopy(base.proto)
    known = {piece.piece for piece in proto.pieces}
    keys = [piece.piece for piece in read_proto(source, "--chinese").pieces if piece.piece not in known]
    for key in keys:
        # Equal, and above every score of LLaMA's own: so pieces cut each other, and English words, apart.
        proto.pieces.add(piece=key, score=0.0)
    return keys, (_with_specials(base, proto, specials), proto)


def _reasons(admitted: Admitted, source: PieceList) -> str:
    refused = {reason: len(pieces) for reason, pieces in admitted.refused.items()}
    counts = [f"{count:,} {reason}" for reason, count in (refused | source.dropped).items()]
    return ", ".join(counts) or "the list is empty"


def _report(
    result: dict[str, Any], admitted: Admitted, source: PieceList, measured: dict[str, int]
) -> dict[str, Any]:
    return {
        **result,
        "characters": admitted.characters,
        "merges": admitted.merges,
        "intermediates": admitted.intermediates,
        "refused": {
            reason: {"count": len(pieces), "examples": pieces[:20]}
            for reason, pieces in admitted.refused.items()
        },
        "dropped": source.dropped,
        "normaliser": source.normaliser,
        "checked": measured,
    }


def _print_summary(
    config: MergeTokenizerConfig,
    result: dict[str, Any],
    admitted: Admitted,
    source: PieceList,
    measured: dict[str, int],
) -> None:
    rows: list[tuple[str, object]] = [
        ("base vocabulary", result["base_vocabulary"]),
        ("pieces added", result["added"]),
        ("of them on the way to others", admitted.intermediates),
        ("special tokens added", " ".join(result["specials"]) or "none"),
        ("vocabulary", result["vocabulary"]),
        ("embedding rows", result["rows"]),
    ]
    rows += [(f"not added: {reason}", len(pieces)) for reason, pieces in admitted.refused.items()]
    rows += [(f"not added: {reason}", count) for reason, count in source.dropped.items()]
    if config.policy == "lossless":
        tried = f"{measured['texts'] + measured['mixed']:,} texts and every piece"
        rows += [("tried in tokenizers and transformers", tried)]
        rows += [("tried in SentencePiece", tried)] if "unreachable_sentencepiece" in measured else []
        wheels = " and ".join(llamacpp.WHEELS)
        without = "no such pre-tokenizer" if llamacpp.is_available() else f"{wheels} are not installed"
        rows += [("tried in llama.cpp", tried if "llamacpp" in measured else without)]
    print_table(f"merged tokenizer: {config.output}", ["", "count"], rows)
    say(f"next: zhllama resize-embeddings --model MODEL --tokenizer {config.output} --output DIR")
