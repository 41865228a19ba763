"""What a run measures while it trains: bits per byte by kind of token, `metrics.jsonl`, and `loss.png` at the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zhllama.page import line_plot, write_image
from zhllama.rows import read_written
from zhllama.tokenizer.load import Loaded
from zhllama.tokenizer.token_sizes import token_counts

METRICS = "metrics.jsonl"


class LossTally:
    """Losses, tokens, bytes and characters of what was trained on since the last look, Chinese and other apart."""

    def __init__(self, tokenizer: Loaded, rows: int, device: torch.device) -> None:
        self.counts = torch.from_numpy(token_counts(tokenizer, rows)).long().to(device)
        # (other or Chinese; nats, tokens, bytes, characters). A float32 stops counting at 2^24.
        self.totals = torch.zeros(2, 4, dtype=torch.float64, device=device)

    def add(self, labels: Tensor, nats: Tensor) -> None:
        """Labels, (tokens,) int64, and the loss of each."""
        counts = self.counts[labels]
        # (tokens, 4), each token's own, added to the row of its kind.
        values = torch.stack(
            [nats.double(), torch.ones_like(nats).double(), *counts[:, :2].T.double()], dim=1
        )
        self.totals.index_add_(0, counts[:, 2], values)

    def take(self, ranks: int) -> dict[str, float]:
        """Bits per byte of all, of Chinese and of other tokens, and characters; every rank must ask, for all of them."""
        if ranks > 1:
            torch.distributed.all_reduce(self.totals)
        other, chinese = self.totals.tolist()
        self.totals.zero_()
        both = [sum(pair) for pair in zip(other, chinese, strict=True)]
        found = {"bits_per_byte": both, "bits_per_byte_chinese": chinese, "bits_per_byte_other": other}
        bits = {name: row[0] / math.log(2) / row[2] for name, row in found.items() if row[2]}
        return {**bits, "characters": both[3]}


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; none where there is no file, and not the last where a kill cut it short."""
    return read_written(file)


def plot_loss(output: Path) -> None:
    """Write `loss.png`, bits per byte over tokens, beside `metrics.jsonl`."""
    lines = read_metrics(output / METRICS)
    curves = {}
    for name, key in (("all", ""), ("Chinese", "_chinese"), ("other", "_other")):
        with_it = [line for line in lines if f"bits_per_byte{key}" in line]
        tokens, bits = ([line[k] for line in with_it] for k in ("tokens", f"bits_per_byte{key}"))
        if with_it:
            curves[name] = (tokens, bits)
    write_image(line_plot(curves, "tokens", "bits per byte", output.name), output / "loss.png")
