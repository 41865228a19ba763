"""Matrix products in bfloat16 and float32 on this CPU: which one should training compute in by default?

python benchmarks/precision.py        prints the table and writes benchmarks/results/precision.md
"""

from __future__ import annotations

import statistics
import time

import torch
from table import machine, write_table

from zhllama.device import prefers_bf16

# (tokens, in, out) of the widest layer and the head: SmolLM2-135M with 67k rows, Llama-2-7B.
SHAPES = {
    "135M mlp": (1024, 576, 1536),
    "135M head": (256, 576, 67_200),
    "7B attention": (512, 4096, 4096),
    "7B mlp": (512, 4096, 11_008),
}
ROUNDS = 9


def seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    begun = time.perf_counter()
    left @ right.T
    return time.perf_counter() - begun


def main() -> None:
    rows = []
    for name, (tokens, inner, outer) in SHAPES.items():
        pairs = {
            dtype: (torch.randn(tokens, inner).to(dtype), torch.randn(outer, inner).to(dtype))
            for dtype in (torch.float32, torch.bfloat16)
        }
        times: dict[torch.dtype, list[float]] = {dtype: [] for dtype in pairs}
        for _ in range(ROUNDS):  # interleaved: the machine is shared
            for dtype, pair in pairs.items():
                times[dtype].append(seconds(*pair))
        rate = {
            dtype: 2e-9 * tokens * inner * outer / statistics.median(taken) for dtype, taken in times.items()
        }
        single, half = rate[torch.float32], rate[torch.bfloat16]
        rows.append([name, f"{single:.0f}", f"{half:.0f}", f"{half / single:.2f}"])
    capabilities = torch.cpu.get_capabilities()
    told = {key: capabilities.get(key) for key in ("cpu_name", "avx512_bf16", "amx_bf16")}
    write_table(
        "precision",
        ["product", "float32 GFLOP/s", "bfloat16 GFLOP/s", "bfloat16 / float32"],
        rows,
        f"{machine()}; torch reports {told}; zhllama's default here: "
        f"{'bfloat16' if prefers_bf16() else 'float32'}. Medians of {ROUNDS} interleaved rounds.",
    )


if __name__ == "__main__":
    main()
