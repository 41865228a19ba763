"""Whether pieces that begin with a mark (`lean_marks`) cost a model anything. Part of tokenizer.py.

A small LLaMA is trained from nothing on the first half of People's Daily, once with each tokenizer, on the same
text in the same order, and judged in bits per byte on the second half. Pieces that neither half uses have no row.
"""

from __future__ import annotations

import math
import statistics
import time
from itertools import accumulate, chain
from pathlib import Path

import numpy
import torch
from table import machine, write_table
from transformers import LlamaConfig, LlamaForCausalLM

from zhllama.tokenizer.load import load

SHAPE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
BLOCK, BATCH, EPOCHS, RATE = 256, 8, 2, 1e-3
SEEDS = (0, 1)
JUDGED = 300_000  # characters of the second half


def blocks(ids: list[list[int]], numbers: numpy.ndarray) -> torch.Tensor:
    flat = numbers[numpy.fromiter(chain.from_iterable(ids), dtype=numpy.int64)]
    return torch.from_numpy(flat[: len(flat) // BLOCK * BLOCK].reshape(-1, BLOCK))


def train(tokens: torch.Tensor, rows: int, seed: int) -> tuple[LlamaForCausalLM, float]:
    """A model after `EPOCHS` epochs, and the seconds they took."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=rows, tie_word_embeddings=True, max_position_embeddings=BLOCK, **SHAPE)
    model = LlamaForCausalLM(config)
    total = EPOCHS * len(tokens) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total, pct_start=0.1)
    begun = time.perf_counter()
    order = torch.cat([torch.randperm(len(tokens)) for _ in range(EPOCHS)])
    for step in range(total):
        batch = tokens[order[step * BATCH : (step + 1) * BATCH]]
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, time.perf_counter() - begun


@torch.no_grad()
def total_bits(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    losses = [model(batch, labels=batch).loss.item() * batch.numel() for batch in tokens.split(BATCH)]
    return sum(losses) / math.log(2)


def run(merged: dict[str, Path], training: list[str], held_out: list[str]) -> None:
    """Train and judge with each of the merged tokenizers; keys are the table's names."""
    rows = []
    training = [line + "\n" for line in training]
    ends = list(accumulate(map(len, held_out)))
    judged = [line + "\n" for line, end in zip(held_out, ends, strict=True) if end < JUDGED]
    for name, directory in merged.items():
        fast = load(directory).fast
        ids = [
            [encoding.ids for encoding in fast.encode_batch_fast(lines, add_special_tokens=False)]
            for lines in (training, judged)
        ]
        used = numpy.unique(numpy.fromiter(chain.from_iterable(chain(*ids)), dtype=numpy.int64))
        numbers = numpy.zeros(used.max() + 1, dtype=numpy.int64)
        numbers[used] = numpy.arange(len(used))
        tokens, tests = (blocks(part, numbers) for part in ids)
        # The last, incomplete block is left out of the tests; its bytes are, in proportion, left out too.
        size_in_bytes = sum(len(line.encode()) for line in judged) * tests.numel() / sum(map(len, ids[1]))
        found = []
        for seed in SEEDS:
            model, seconds = train(tokens, len(used), seed)
            found.append((total_bits(model, tests) / size_in_bytes, seconds))
        bits, times = zip(*found, strict=True)
        rows.append([name, f"{len(used):,}", f"{tokens.numel():,}", " / ".join(f"{value:.4f}" for value in bits),
                     f"{statistics.mean(bits):.4f}", f"{statistics.mean(times):.0f}"])  # fmt: skip
    header = [
        "tokenizer",
        "rows in use",
        "training tokens",
        "held-out bits per byte, by seed",
        "mean",
        "seconds",
    ]
    note = (
        f"{machine()}. A LLaMA of {SHAPE['num_hidden_layers']} layers x {SHAPE['hidden_size']} from nothing, "
        f"{EPOCHS} epochs over the first half of People's Daily, blocks of {BLOCK}, judged on the second half: the same "
        "text for each tokenizer, so the denser one takes fewer steps and less time."
    )
    write_table("tokenizer", header, rows, note, append=True)
