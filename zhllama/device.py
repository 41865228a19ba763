"""What this machine computes with: the accelerator and the precision that suits it."""

from __future__ import annotations

import functools
import os
import socket
import time
from pathlib import Path

import torch


def default_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the best of a few square matrix products in this process."""
    # Large enough to reach the peak, small enough to take some milliseconds.
    size = 8192 if device.type == "cuda" else 768
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        begun = time.perf_counter()
        (left @ right).sum().item()  # waits for the product
        # The best, not the mean: whatever else the machine does makes a product slower, never faster.
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


@functools.cache
def prefers_bf16() -> bool:
    """Whether this machine multiplies bfloat16 faster than float32."""
    # GPUs since Ampere do.
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    # CPUs with AMX do, and AMD's avx512_bf16 does too. Intel's avx512_bf16 alone does not: on Sapphire Rapids
    # without AMX bfloat16 products reach 0.57 to 0.77 of float32's speed (benchmarks/results/precision.md).
    capabilities = torch.cpu.get_capabilities()
    intel = "Intel" in str(capabilities.get("cpu_name", ""))
    return bool(capabilities.get("amx_bf16") or (capabilities.get("avx512_bf16") and not intel))


def product_dtype(dtype: torch.dtype, kind: str) -> torch.dtype:
    """The precision to multiply matrices of `dtype` in: float32 for bfloat16 where a CPU is slower at it, else their own.

    They stay stored as they are; what is converted for a product is no more than the product writes.
    """
    return torch.float32 if kind == "cpu" and dtype == torch.bfloat16 and not prefers_bf16() else dtype


def default_dtype() -> torch.dtype:
    """What weights are held and multiplied in where nothing else is asked for."""
    return torch.bfloat16 if prefers_bf16() else torch.float32


def remove_shared_file(rank: int) -> None:
    """Unlink the memory by which this rank meets the others on CPU, once all ranks have opened it."""
    # DeepSpeed never does, and 69 MB of RAM a rank would stay taken. What is open stays usable until the last
    # of them ends, killed or not. The name that deepspeed/ops/csrc/cpu/comm/shm.cpp gives it.
    name = f"{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{rank}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{name}").unlink(missing_ok=True)


def free_port() -> int:
    """A port of this machine that nothing listens on now, for ranks to meet at: a fixed one may be another run's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
