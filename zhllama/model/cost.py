"""Operations, hours and money of a training run; what GPUs reach and cost are assumptions, and settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from torch import nn

from zhllama.config import UserError
from zhllama.model.adapter import parameter_count
from zhllama.model.plan import GIB, Counts, Job
from zhllama.model.trainable import TrainableModel


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


def flops_of(model: TrainableModel, block: int) -> float:
    """Floating-point operations per token of a model that trains, in blocks of so many tokens, nothing recomputed."""
    sizes = {True: 0, False: 0}
    for module in model.base.get_decoder().layers[0].modules():
        if isinstance(module, nn.Linear):
            sizes[module.weight.requires_grad] += parameter_count(module.weight)
    head = model.base.lm_head
    rows = head.weight if head.new_rows is None else head.new_rows
    trained_rows = parameter_count(rows) if rows.requires_grad else 0
    return sum(operations(model.config, block, sizes[False], sizes[True], trained_rows).values())


def operations(config: Any, block: int, frozen: int, trained: int, rows: int) -> dict[str, float]:
    """Operations per token by part, multiply and add as two.

    A frozen matrix costs its product forward and the gradient of its input, 4 per parameter; a trained one the
    gradient of itself too, 6. Attention covers whole blocks, as the kernels do under a mask. Norms, activations,
    dropout, DoRA's norms of weights and what attention kernels compute twice are left out.

    Args:
        frozen, trained: parameters of one layer's matrices, adapters among them.
        rows: trained parameters of the output matrix.
    """
    depth = config.num_hidden_layers
    width = config.num_attention_heads * (config.head_dim or config.hidden_size // config.num_attention_heads)
    forward = 2.0 * depth * (frozen + trained)
    return {
        "forward": forward,
        "backward": forward + 2.0 * depth * trained,
        "attention": depth * 3 * 4.0 * block * width,
        "head and loss": 4.0 * config.vocab_size * config.hidden_size + 2.0 * rows,
    }


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
