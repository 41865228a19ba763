"""Chunked linear cross-entropy against the plain one: peak memory and time of loss and gradients.

python benchmarks/loss.py        prints the table and writes benchmarks/results/loss.md

Each measurement is a process of its own, so that its peak resident memory is its own; the two ways take turns.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

from table import machine, write_table

ROUNDS = 5
# (name, tokens, hidden, base rows, new rows)
CASES = [("135M", 1024, 576, 49_152, 18_048), ("7B", 1024, 4096, 32_000, 18_048)]


def measure(way: str, tokens: int, hidden: int, rows: int, new: int) -> None:
    import torch
    import torch.nn.functional as F

    from zhllama.model.fast.loss import linear_cross_entropy

    torch.manual_seed(0)
    states = torch.randn(tokens, hidden, requires_grad=True)
    weight = torch.randn(rows + new, hidden) * 0.05
    fresh = weight[rows:].clone().requires_grad_()
    labels = torch.randint(0, rows + new, (tokens,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    if way == "plain":
        logits = F.linear(states, torch.cat([weight[:rows], fresh]))
        loss = F.cross_entropy(logits, labels, reduction="sum")
    else:
        loss = linear_cross_entropy(states, weight[:rows], fresh, labels)
    loss.backward()
    seconds = time.perf_counter() - begun
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(seconds, peak, float(loss.detach()))


def main() -> None:
    rows = []
    for name, *sizes in CASES:
        taken: dict[str, list[list[float]]] = {"plain": [], "chunked": []}
        for _ in range(ROUNDS):
            for way, found in taken.items():
                command = [sys.executable, __file__, way, *map(str, sizes)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found.append([float(part) for part in out.split()])
        (time_plain, peak_plain, loss_plain), (time_ours, peak_ours, loss_ours) = (
            [statistics.median(column) for column in zip(*found, strict=True)] for found in taken.values()
        )
        rows.append(
            [
                f"{name}, {sizes[0]} tokens, {sizes[2] + sizes[3]:,} rows",
                f"{peak_plain:.0f}",
                f"{peak_ours:.0f}",
                f"{peak_plain / peak_ours:.1f}",
                f"{time_plain:.2f}",
                f"{time_ours:.2f}",
                f"{time_plain / time_ours:.2f}",
                f"{abs(loss_plain - loss_ours) / loss_plain:.1e}",
            ]
        )
    header = [
        "case",
        "plain MB",
        "ours MB",
        "ratio",
        "plain s",
        "ours s",
        "ratio",
        "relative difference of the loss",
    ]
    write_table(
        "loss",
        header,
        rows,
        f"{machine()}. Peak resident memory added by loss and gradients (hidden states, new rows), float32; "
        f"medians of {ROUNDS} rounds, the two taking turns. Plain is F.linear and F.cross_entropy.",
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        main()
