"""Chunked linear cross-entropy against the plain one and torch's own chunked one: memory and time of loss and gradients.

python benchmarks/loss.py        prints the table and writes benchmarks/results/loss.md

Each measurement is a process of its own, so that its peak resident memory is its own; the ways take turns.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from table import machine, write_table

from pretrain import memory

ROUNDS = 3
# (name, tokens, hidden, base rows, new rows)
CASES = [("135M", 1024, 576, 49_152, 18_048), ("7B", 1024, 4096, 32_000, 18_048)]
WAYS = {
    "ours": "ours, nats of each token beside",
    "plain": "F.linear, F.cross_entropy",
    "torch-sum": "F.linear_cross_entropy, sum, chunks of our size",
    "torch-each": "F.linear_cross_entropy, nats of each token, chunks of our size",
    "torch-auto": "F.linear_cross_entropy, sum, chunks of its own size",
}
SLOW = ("torch-auto", "7B")  # minutes each


def measure(way: str, precision: str, tokens: int, hidden: int, rows: int, new: int) -> None:
    import torch
    import torch.nn.functional as F

    from zhllama.model.fast.loss import chunk_size, linear_cross_entropy

    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    states = torch.randn(tokens, hidden).to(dtype).requires_grad_()
    weight = (torch.randn(rows + new, hidden) * 0.05).to(dtype)
    fresh = weight[rows:].float().requires_grad_()
    labels = torch.randint(0, rows + new, (tokens,))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
    before = memory("VmRSS")
    begun = time.perf_counter()
    if way == "ours":
        loss = linear_cross_entropy(states, weight[:rows], fresh, labels, torch.empty(tokens))
    else:
        whole = torch.cat([weight[:rows], fresh.to(dtype)])
        if way == "plain":
            loss = F.cross_entropy(F.linear(states, whole), labels, reduction="sum")
        else:
            size = None if way == "torch-auto" else chunk_size(tokens, rows + new)
            chunked = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=size)
            reduction = "none" if way == "torch-each" else "sum"
            loss = F.linear_cross_entropy(states, whole, labels, reduction=reduction, options=chunked).sum()
    loss.backward()
    seconds = time.perf_counter() - begun
    print(seconds, memory("VmHWM") - before, float(loss.detach()))


def main() -> None:
    import torch

    rows: list[list[object]] = []
    for precision in ("fp32", "bf16"):
        for name, *sizes in CASES:
            taken: dict[str, list[list[float]]] = {way: [] for way in WAYS if (way, name) != SLOW}
            for _ in range(ROUNDS):
                for way, found in taken.items():
                    command = [sys.executable, __file__, way, precision, *map(str, sizes)]
                    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    found.append([float(part) for part in out.split()])
                    print(precision, name, way, *found[-1], flush=True)
            case = f"{name}, {sizes[0]} tokens, {sizes[2] + sizes[3]:,} rows, {precision}"
            rows += [[case, *row] for row in compared(taken)]
    processor = torch.cpu.get_capabilities().get("cpu_name", "CPU")
    header = ["case", "way", "peak MB", "of ours", "seconds", "of ours", "loss differs from ours by"]
    write_table(
        "loss",
        header,
        rows,
        f"{machine()}, {processor}, {torch.get_num_threads()} threads, a machine shared with others. "
        f"Peak resident memory added by loss and gradients (hidden states, new rows); medians of {ROUNDS} "
        "rounds, the ways taking turns, of a ratio the median of the rounds' own. torch's own wants one matrix, so the "
        "old rows and the new ones are joined for it, and gives a gradient of all of its rows; of bfloat16 states its "
        "loss is bfloat16 too. `python benchmarks/loss.py`.",
    )


def compared(taken: dict[str, list[list[float]]]) -> list[list[object]]:
    rows: list[list[object]] = []
    for way, found in taken.items():
        seconds, peak, loss = (statistics.median(column) for column in zip(*found, strict=True))
        slower = statistics.median(one[0] / our[0] for one, our in zip(found, taken["ours"], strict=True))
        more = statistics.median(one[1] / our[1] for one, our in zip(found, taken["ours"], strict=True))
        apart = abs(loss / taken["ours"][0][2] - 1)
        rows.append(
            [WAYS[way], f"{peak:.0f}", f"{more:.1f}", f"{seconds:.2f}", f"{slower:.2f}", f"{apart:.1e}"]
        )
    return rows


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
