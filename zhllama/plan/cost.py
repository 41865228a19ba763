"""Operations, hours and money of a training run; what GPUs reach and cost are assumptions, and settings."""

from __future__ import annotations

import os
from dataclasses import dataclass

from zhllama.config import UserError
from zhllama.model.operations import operations
from zhllama.plan.memory import GIB, Counts, Job


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: memory in GiB, dense bf16 TFLOP/s of the data sheet, and a rental price."""

    name: str
    memory: float
    tflops: float
    price: float
    """US dollars an hour for one: an assumption, as rented by the hour in 2025; `NAME=MEMORY,TFLOPS,PRICE` sets yours."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("rtx4090", 24, 165, 0.4),
        Gpu("a40", 48, 150, 0.4),
        Gpu("a100-40", 40, 312, 1.2),
        Gpu("a100-80", 80, 312, 1.7),
        Gpu("h100-80", 80, 989, 2.5),
        Gpu("h200-141", 141, 989, 3.5),
    )
}


def flops_per_token(job: Job, counts: Counts) -> dict[str, float]:
    """Floating-point operations per token of a planned run, by part."""
    layers = counts.layers
    learnt = layers.matrices if job.body == "full" else layers.adapters
    frozen = layers.matrices + layers.adapters - learnt
    rows = counts.output_rows or (counts.input_rows if job.config.tie_word_embeddings else 0)
    parts = operations(job.config, job.block, frozen, learnt, rows)
    recomputed = parts["forward"] + parts["attention"] / 3 if job.checkpointing else 0.0
    return {**parts, "recomputation": recomputed}


def hours(flops: float, gpu: Gpu, gpus: int, utilisation: float) -> float:
    """Hours of a run of so many operations, recomputation among them."""
    return flops / (gpu.tflops * 1e12 * utilisation * gpus) / 3600


def find_gpu(text: str) -> Gpu:
    """A known kind by name, `cpu` (this machine's memory), or `NAME=MEMORY,TFLOPS,PRICE`; raises UserError."""
    name, equals, values = text.partition("=")
    if not equals and name == "cpu":
        memory_ = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        return Gpu("cpu", round(memory_, 1), 0.1, 0.1)
    if not equals:
        if name not in GPUS:
            raise UserError(
                f"--gpu {name}: not a known kind; there are {', '.join(GPUS)} and cpu, or write NAME=MEMORY,TFLOPS,PRICE"
            )
        return GPUS[name]
    try:
        gpu = Gpu(name, *map(float, values.split(",")))
    except (ValueError, TypeError) as problem:
        raise UserError(
            f"--gpu {text}: write it as NAME=MEMORY,TFLOPS,PRICE in GB, bf16 TFLOP/s and dollars an hour"
        ) from problem
    if min(gpu.memory, gpu.tflops) <= 0 or gpu.price < 0:
        raise UserError(f"--gpu {text}: memory and TFLOP/s must be above 0, the price at least 0")
    return gpu
