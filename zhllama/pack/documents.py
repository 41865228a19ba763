"""`zhllama pack`: corpora to fixed-size blocks of tokens that trainers memory-map."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zhllama import artifact
from zhllama.config import UserError
from zhllama.corpus.kinds import count_kinds, read_kinds
from zhllama.corpus.read import Corpus, check_weights, read_documents
from zhllama.model.directory import ModelDirectory
from zhllama.pack.encode import Encoded, encode_to_file, encode_to_files
from zhllama.pack.fit import fit_documents
from zhllama.pack.mixture import FittedCorpus, blocks_per_source, choose_replay, write_blocks
from zhllama.terminal import print_table, say, track, warn
from zhllama.tokenizer.load import Loaded

HEADER = ["source", "documents", "tokens", "padding", "share", "epochs"]


@dataclass
class PackConfig:
    """Tokenise corpora and pack them into blocks; every document ends with EOS, newlines survive."""

    corpus: list[str]
    """Corpus directory, or what clean reads: a file, a folder, what `datasets` saved, hf:NAME[:SPLIT]; repeatable."""
    model: str
    """Model directory whose tokenizer to use; the blocks fit only that tokenizer."""
    output: str
    """New tokens directory to write."""
    block_size: int = 1024
    """Tokens per block; longer documents are cut, shorter ones only where padding would exceed 1%."""
    weight: list[float] = field(default_factory=list)
    """Share of each corpus among the corpora, in their order; repeatable. Without shares all of each is packed once."""
    shares: dict[str, float] = field(default_factory=dict)
    """Share of each kind of document, such as {books: 0.3, web: 0.7}, in place of weights; a kind is the folder of the
    raw corpus that `clean` found a document in (`other`: in none). Kinds not named are left out."""
    replay: str | None = None
    """Corpus, as --corpus, of text the base already knows (English), against forgetting."""
    replay_share: float = 0.1
    """Share of all blocks taken from --replay, spread evenly; used only with it."""
    # Up to four times read, text is worth nearly as much as new text (Muennighoff et al., arXiv 2305.16264).
    max_epochs: float = 4.0
    """How often a corpus or the replay may be repeated to reach its share."""
    threads: int = 0
    """How many threads tokenise; 0 takes all cores."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot work."""
        if self.block_size < 8:
            raise UserError(f"block_size {self.block_size}: it must be at least 8")
        if not 0 <= self.replay_share < 1:
            raise UserError(f"replay_share {self.replay_share}: it must be at least 0 and below 1")
        if not 1 <= self.max_epochs < float("inf"):
            raise UserError(f"max_epochs {self.max_epochs}: it must be at least 1")
        if self.threads < 0:
            raise UserError(f"threads {self.threads}: it must be at least 0")
        check_weights(self.corpus, self.weight)
        if self.shares and self.weight:
            raise UserError("shares and weight: give one of them; shares are by kind, weights by corpus")
        if wrong := [share for share in self.shares.values() if not 0 < share < float("inf")]:
            raise UserError(f"shares {wrong[0]}: it must be more than 0")


def pack(config: PackConfig) -> None:
    """Write a tokens directory; deterministic for the same text, tokenizer and settings.

    Raises:
        UserError: no text, a block larger than the model's positions, less text than one block, no EOS token.
    """
    corpora = [Corpus.open(path) for path in config.corpus]
    model = ModelDirectory.open(config.model)
    inputs: dict[str, artifact.Input] = {"model": model, **artifact.numbered("corpus", corpora)}
    replay = None if config.replay is None else Corpus.open(config.replay, "--replay")
    if replay is not None:
        inputs["replay"] = replay
    model.check_block_size(config.block_size)
    tokenizer = model.tokenizer
    with artifact.create(config.output, "tokens", "pack", config, inputs) as run:
        weights = list(config.shares.values()) or config.weight
        # Ids wait for the mixture in hidden files beside the result, which fingerprints pass over.
        if config.shares:
            sources = _tokenise_kinds(config, corpora, run.path, tokenizer)
        else:
            sources = [
                _tokenise(config, corpus, run.path / f".source-{number}", tokenizer)
                for number, corpus in enumerate(corpora)
            ]
        if replay is not None:
            sources.append(_tokenise(config, replay, run.path / ".source-replay", tokenizer))
        available = [len(source.fitted) for source in sources]
        main = blocks_per_source(available[: len(sources) - (replay is not None)], weights, config.max_epochs)
        replayed = _replay_count(config, sum(main), available[-1]) if replay is not None else 0
        counts = [*main, replayed] if replay is not None else main
        # Any id would do: padding has no label, and nothing sees it.
        padding = tokenizer.eos_id() if tokenizer.pad is None else tokenizer.id_of(tokenizer.pad)
        tokens = write_blocks(run.path, sources, counts, config.block_size, padding).tolist()
        for source in sources:
            source.encoded.file.unlink()
        table = [
            _row(source, count, used, sum(counts), config.block_size)
            for source, count, used in zip(sources, counts, tokens, strict=True)
        ]
        run.result = {
            "tokenizer": tokenizer.fingerprint,
            "block_size": config.block_size,
            "blocks": sum(counts),
            "tokens": sum(tokens),
            "padding": 1 - sum(tokens) / (sum(counts) * config.block_size),
            "documents": sum(row["documents"] for row in table),
            "replay_blocks": replayed,
            "sources": table,
        }
    shown = [row | {name: f"{row[name]:.2%}" for name in ("padding", "share")} for row in table]
    print_table("Mixture", HEADER, [[row[name] for name in HEADER] for row in shown])
    say(
        f"{run.path}: {sum(counts):,} blocks of {config.block_size} tokens, "
        f"{run.result['padding']:.2%} of them padding" + (f"; {replayed:,} blocks replay" if replayed else "")
    )


def _tokenise(config: PackConfig, corpus: Corpus, file: Path, tokenizer: Loaded) -> FittedCorpus:
    documents = track(read_documents(corpus), f"tokenising {corpus.path.name}")
    encoded = encode_to_file(documents, tokenizer, file, _threads(config))
    return _fitted(config, corpus.flag, str(corpus), encoded)


def _tokenise_kinds(
    config: PackConfig, corpora: list[Corpus], folder: Path, tokenizer: Loaded
) -> list[FittedCorpus]:
    """The kinds that have a share; UserError where the corpora hold none of one."""
    found = count_kinds(corpora)
    for kind in config.shares:
        if kind not in found:
            raise UserError(
                f"--shares {kind}: the corpora hold no document of this kind, only {', '.join(sorted(found))}"
            )
    for kind in sorted(set(found) - set(config.shares)):
        warn(f"left out {found[kind]:,} documents of the kind {kind}, which has no share")
    files = [folder / f".source-{number}" for number in range(len(config.shares))]
    documents = track(read_kinds(corpora, list(config.shares)), "tokenising all kinds")
    encoded = encode_to_files(documents, tokenizer, files, _threads(config))
    return [
        _fitted(config, f"--shares {kind}", kind, one)
        for kind, one in zip(config.shares, encoded, strict=True)
    ]


def _threads(config: PackConfig) -> int:
    # What this process may use: a container or Slurm gives fewer cores than the machine has.
    return config.threads or len(os.sched_getaffinity(0))


def _fitted(config: PackConfig, flag: str, name: str, encoded: Encoded) -> FittedCorpus:
    """One source fitted into blocks; UserError for less text than one block."""
    total = int(encoded.lengths.sum())
    if total < config.block_size:
        raise UserError(
            f"{flag}: only {total:,} tokens of text, less than one block; lower --block-size {config.block_size}"
        )
    return FittedCorpus(name, encoded, fit_documents(encoded.lengths, config.block_size))


def _replay_count(config: PackConfig, main: int, available: int) -> int:
    """Blocks of replay, with a warning where they fall short of their share."""
    count = choose_replay(main, available, config.replay_share, config.max_epochs)
    # What the share asks for, whatever the epochs.
    wanted = choose_replay(main, main, config.replay_share, float("inf"))
    if count < wanted:
        warn(
            f"--replay {config.replay}: {config.max_epochs:g} times over it makes {count / (main + count):.1%} "
            f"of the blocks, not {config.replay_share:.1%}"
        )
    return count


def _row(source: FittedCorpus, count: int, tokens: int, blocks: int, size: int) -> dict[str, Any]:
    """What the table says of one source; documents are those of one pass, tokens and shares the mixture's."""
    return {
        "source": source.name,
        "documents": len(source.encoded.lengths),
        "tokens": tokens,
        "padding": 1 - tokens / (count * size) if count else 0.0,
        "share": count / blocks,
        "epochs": count / len(source.fitted),
    }
