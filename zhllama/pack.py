"""`zhllama pack`: documents (or conversations) to fixed-size blocks of tokens that trainers memory-map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from zhllama import artifact
from zhllama.config import UserError
from zhllama.corpus.read import read_documents
from zhllama.model.weights import check_block_size
from zhllama.terminal import say, track
from zhllama.tokenizer.load import Loaded, load

BATCH = 1000  # documents tokenised at a time
IGNORED = -100  # PyTorch's label for "no loss here"


@dataclass
class PackConfig:
    """Tokenise a corpus and cut it into blocks; every document ends with EOS, newlines survive."""

    corpus: str
    """Corpus directory or file."""
    model: str
    """Model directory whose tokenizer to use; the blocks fit only that tokenizer."""
    output: str
    """New tokens directory."""
    block_size: int = 1024
    """Tokens per block."""
    replay: str | None = None
    """Corpus directory or file of text the base already knows (English), against forgetting."""
    replay_share: float = 0.1
    """Share of all blocks taken from --replay, spread evenly; used only with it."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot work."""
        if self.block_size < 8:
            raise UserError(f"block_size {self.block_size}: it must be at least 8")
        if not 0 <= self.replay_share < 1:
            raise UserError(f"replay_share {self.replay_share}: it must be at least 0 and below 1")


@dataclass
class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks of tokens and the documents in them.

    Attributes:
        ids: (blocks, size), uint16 or uint32.
        lengths: (segments,) int32, the documents' (or cut parts') lengths, block after block.
        offsets: (blocks + 1,) int64, where each block's lengths start.
        loss: (blocks, size) bool, which tokens are learnt; None means all.
    """

    ids: NDArray[Any]
    lengths: NDArray[Any]
    offsets: NDArray[Any]
    loss: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids`, `position_ids` (restarting per document) and `labels`, each (size,) int64."""
        ids = torch.from_numpy(self.ids[index].astype(np.int64))
        lengths = self.lengths[self.offsets[index] : self.offsets[index + 1]]
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))
        # A document's first token follows nothing that it may see.
        learnt = positions != 0
        if self.loss is not None:
            learnt &= torch.from_numpy(np.array(self.loss[index]))
        return {"input_ids": ids, "position_ids": positions, "labels": torch.where(learnt, ids, IGNORED)}

    def save(self, directory: Path) -> None:
        """Write one `.npy` file per array."""
        for name in ("ids", "lengths", "offsets", "loss"):
            if getattr(self, name) is not None:
                np.save(directory / f"{name}.npy", getattr(self, name))

    @classmethod
    def open(cls, directory: Path) -> Blocks:
        """Memory-map what `save` wrote."""
        ids, lengths, offsets = (
            np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("ids", "lengths", "offsets")
        )
        loss = directory / "loss.npy"
        return cls(ids, lengths, offsets, np.load(loss, mmap_mode="r") if loss.is_file() else None)


def pack(config: PackConfig) -> None:
    """Write a tokens directory; deterministic for the same text, tokenizer and settings.

    Raises:
        UserError: no text, a block larger than the model's positions, less text than one block, no EOS token.
    """
    corpus = artifact.require(config.corpus, "corpus", "--corpus")
    model = artifact.require(config.model, "model", "--model")
    inputs = {"corpus": corpus, "model": model}
    if config.replay is not None:
        inputs["replay"] = artifact.require(config.replay, "corpus", "--replay")
    check_block_size(config.block_size, model)
    tokenizer = load(model, "--model")
    with artifact.create(config.output, "tokens", "pack", config, inputs) as run:
        blocks = main = pack_documents(read_documents(corpus), tokenizer, config.block_size, "--corpus")
        if config.replay is not None:
            replay = pack_documents(
                read_documents(inputs["replay"]), tokenizer, config.block_size, "--replay"
            )
            blocks = interleave(main, replay, config.replay_share)
        blocks.save(run.path)
        run.result = {
            "tokenizer": artifact.tokenizer_fingerprint(model),
            "block_size": config.block_size,
            "blocks": len(blocks),
            "tokens": len(blocks) * config.block_size,
            "documents": int(np.count_nonzero(blocks.ids == tokenizer.eos_id())),
            "replay_blocks": len(blocks) - len(main),
        }
    say(
        f"{run.path}: {len(blocks):,} blocks of {config.block_size} tokens"
        + (f", {len(blocks) - len(main):,} of them replay" if config.replay else "")
    )


def pack_documents(documents: Iterable[str], tokenizer: Loaded, size: int, flag: str) -> Blocks:
    """Concatenate documents, EOS after each, and cut every `size` tokens; the unfilled last block is dropped.

    Raises:
        UserError: less text than one block, said of the setting `flag`.
    """
    dtype = np.uint16 if tokenizer.fast.get_vocab_size() <= 1 << 16 else np.uint32
    stream: list[NDArray[Any]] = []
    ends: list[int] = []
    total = 0
    for ids in track(encode_documents(documents, tokenizer), f"packing {flag.removeprefix('--')}"):
        stream.append(np.asarray(ids, dtype=dtype))
        total += len(ids)
        ends.append(total)
    count = total // size
    if count == 0:
        raise UserError(
            f"{flag}: only {total:,} tokens of text, less than one block; lower --block-size {size}"
        )
    flat = np.concatenate(stream)[: count * size]
    # A segment ends where a document does and where a block does.
    cuts = np.union1d(np.asarray(ends), np.arange(1, count + 1) * size)
    cuts = cuts[cuts <= count * size]
    lengths = np.diff(cuts, prepend=0).astype(np.int32)
    offsets = np.searchsorted(cuts, np.arange(count + 1) * size, side="right").astype(np.int64)
    offsets[0] = 0
    return Blocks(flat.reshape(count, size), lengths, offsets)


def encode_documents(documents: Iterable[str], tokenizer: Loaded) -> Iterator[list[int]]:
    """Ids of each document with the tokenizer's own BOS rule and EOS at the end.

    A special token's name inside the text stays text: `</s>` in a web page must not end a document.
    """
    fast = tokenizer.fast
    eos = tokenizer.eos_id()
    before = fast.encode_special_tokens
    fast.encode_special_tokens = True
    try:
        stream = iter(documents)
        while batch := list(islice(stream, BATCH)):
            for encoding in fast.encode_batch_fast(batch):
                yield [*encoding.ids, eos]
    finally:
        fast.encode_special_tokens = before


def interleave(main: Blocks, replay: Blocks, share: float) -> Blocks:
    """All of `main` with replay blocks spread evenly, as many as make `share` of the whole or as there are."""
    wanted = min(round(len(main) * share / (1 - share)), len(replay))
    order = np.argsort(
        np.concatenate([np.arange(len(main)) / len(main), (np.arange(wanted) + 0.5) / max(wanted, 1)]),
        kind="stable",
    )
    ids = np.concatenate([main.ids, replay.ids[:wanted]])[order]
    segments = [
        blocks.lengths[blocks.offsets[i] : blocks.offsets[i + 1]]
        for blocks, count in ((main, len(main)), (replay, wanted))
        for i in range(count)
    ]
    return Blocks(ids, *_ragged([segments[i] for i in order]))


def pack_conversations(samples: Sequence[tuple[list[int], list[bool]]], size: int, padding: int) -> Blocks:
    """Best-fit packing of whole samples (ids, which of them are learnt) into blocks; none is cut or truncated.

    The gap at a block's end is padding without loss, a segment of its own.
    """
    order = sorted(range(len(samples)), key=lambda i: (-len(samples[i][0]), i))
    bins: list[list[int]] = []
    room: dict[int, list[int]] = {}  # free tokens -> blocks with that much
    for index in order:
        need = len(samples[index][0])
        fit = next((free for free in range(need, size + 1) if room.get(free)), None)
        if fit is None:
            bins.append([index])
            place, fit = len(bins) - 1, size
        else:
            place = room[fit].pop()
            bins[place].append(index)
        room.setdefault(fit - need, []).append(place)
    ids = np.full((len(bins), size), padding, dtype=np.uint32)
    loss = np.zeros((len(bins), size), dtype=bool)
    segments = []
    for block, members in enumerate(bins):
        at = 0
        for index in members:
            tokens, learnt = samples[index]
            ids[block, at : at + len(tokens)] = tokens
            loss[block, at : at + len(tokens)] = learnt
            at += len(tokens)
        gap = [size - at] if at < size else []
        segments.append(np.asarray([len(samples[index][0]) for index in members] + gap, dtype=np.int32))
    return Blocks(ids, *_ragged(segments), loss=loss)


def _ragged(segments: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Arrays of lengths as one array and its offsets."""
    offsets = np.zeros(len(segments) + 1, dtype=np.int64)
    np.cumsum([len(lengths) for lengths in segments], out=offsets[1:])
    return np.concatenate(segments), offsets
