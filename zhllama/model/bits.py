"""Bits per byte of text under a model: what commands compare across vocabularies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zhllama.config import UserError, split_pair
from zhllama.corpus.read import Corpus, read_documents
from zhllama.model.fast.loss import IGNORED
from zhllama.model.trainable import TrainableModel
from zhllama.terminal import track
from zhllama.tokenizer.load import Loaded

BATCH_TOKENS = 2048  # per forward pass; the loss is chunked, so this bounds the body's activations

Batch = dict[str, Tensor]


def text_files(values: list[str]) -> dict[str, Path]:
    """What `--text name=FILE ...` names; raises UserError for no such file, and for a name given twice."""
    names = [value.partition("=")[0] for value in values]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--text {name}=...: given twice; give each file a name of its own")
    return dict(split_pair(value, "--text") for value in values)


def passages() -> dict[str, Path]:
    """Two short texts of general prose that come with the package, by name: Chinese and English."""
    folder = Path(str(files("zhllama.model").joinpath("passages")))
    return {name: folder / f"{name}.txt" for name in ("chinese", "english")}


def measure(
    model: TrainableModel, tokenizer: Loaded, file: Path, block_size: int, max_bytes: int
) -> dict[str, float]:
    """Bits per byte and per character, nats per token, characters per token and bytes of one file's documents."""
    documents = read_front(file, max_bytes)
    cut = windows(documents, tokenizer, block_size)
    nats = sum(total_nats(model, batch) for batch in track(batches(cut), f"evaluating {file.name}"))
    tokens = sum(len(window) - 1 for window in cut)
    # Of the text, not of its tokens: the denominator must be the same for every vocabulary.
    size = sum(len(document.encode()) for document in documents)
    characters = sum(map(len, documents))
    return {
        "bits per byte": nats / math.log(2) / size,
        "bits per character": nats / math.log(2) / characters,
        "loss per token": nats / tokens,
        "characters per token": characters / tokens,
        "bytes": size,
    }


def read_front(source: Path | Corpus, max_bytes: int) -> list[str]:
    """Whole documents from the front of a file or corpus until `max_bytes` bytes; 0 reads all."""
    documents: list[str] = []
    size = 0
    for document in read_documents(source):
        if max_bytes and size >= max_bytes:
            break
        documents.append(document)
        size += len(document.encode())
    return documents


def windows(documents: Iterable[str], tokenizer: Loaded, size: int) -> list[list[int]]:
    """Ids of at most `size` tokens at a time, each document from its start id on, so that every token is predicted."""
    cut: list[list[int]] = []
    start = tokenizer.start_id()
    for document in documents:
        ids = [start, *tokenizer.encode_text(document)]
        # Windows overlap by one token, so that each window's first prediction has a context.
        cut.extend(ids[at : at + size] for at in range(0, len(ids) - 1, size - 1))
    return cut


def batches(cut: list[list[int]], tokens: int = BATCH_TOKENS) -> list[Batch]:
    """Windows of like length side by side, at most `tokens` a batch with the padding, and at least one window."""
    groups: list[list[list[int]]] = []
    for window in sorted(cut, key=len, reverse=True):
        # Sorted, so the first window of a group is its longest, to which the others are padded.
        if not groups or (len(groups[-1]) + 1) * len(groups[-1][0]) > tokens:
            groups.append([])
        groups[-1].append(window)
    return [batch(group) for group in groups]


def batch(cut: list[list[int]]) -> Batch:
    """Inputs of `TrainableModel`, a window a row; what pads a row comes after it, unseen and without loss."""
    rows = [torch.tensor(window) for window in cut]
    ids = pad_sequence(rows, batch_first=True)
    # Running on over the padding: positions that restart would make transformers build a mask, and causal
    # attention needs none against what comes after.
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    return {
        "input_ids": ids,
        "position_ids": positions,
        "labels": pad_sequence(rows, batch_first=True, padding_value=IGNORED),
    }


def total_nats(model: TrainableModel, one: Batch) -> float:
    """The summed negative log-likelihood of a batch, without gradients."""
    model.eval()
    with torch.no_grad(), precision(model):
        # Divided by one: the sum.
        return float(loss_of(model, one, 1))


def loss_of(model: TrainableModel, one: Batch, tokens: int | None) -> Tensor:
    """The loss of a batch divided by `tokens` (default: those it predicts), computed on the model's device."""
    device = next(model.parameters()).device
    moved = {key: value.to(device) for key, value in one.items()}
    loss: Tensor = model(**moved, num_items_in_batch=tokens)["loss"]
    return loss


def precision(model: TrainableModel) -> AbstractContextManager[None]:
    """Autocast where the weights are held in bfloat16; otherwise products in the weights' own type."""
    dtype = model.base.dtype
    device = next(model.parameters()).device
    # As training computes: weights that trained are float32 among frozen ones in bfloat16.
    return torch.autocast(device.type, dtype=dtype, enabled=dtype == torch.bfloat16)
