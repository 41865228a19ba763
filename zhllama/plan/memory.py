"""Memory per GPU: states are counted as DeepSpeed holds them, activations traced, the loss is its largest buffers."""

from __future__ import annotations

import torch

from zhllama.device import product_dtype
from zhllama.model.fast.loss import chunk_size
from zhllama.plan.job import Job
from zhllama.plan.trace import Traced

REUSE = GROUP = 10**9  # elements: DeepSpeed's stage3_max_reuse_distance and sub_group_size, by default


def memory(job: Job, traced: Traced) -> dict[str, dict[str, float]]:
    """Bytes per GPU by part, at each moment of a step that may need most.

    For full training with bf16 they are DeepSpeed's own 2 + (2 + 4 + 4 + 8) / GPUs a parameter under ZeRO-2. Under
    ZeRO-3 its estimators leave out the 2 of reduced gradients, and count float32 gradients whole that come by groups.
    """
    zero, depth, ends = job.sharding, job.config.num_hidden_layers, 1 if job.config.tie_word_embeddings else 2
    size, share = job.trained_dtype.itemsize, traced.trained / (job.gpus if zero.stage else 1)
    whole = 0.0 if zero.weights_on_cpu else 1 / (job.gpus if zero.stage == 3 else 1)
    square, outputs = job.config.hidden_size**2, job.config.hidden_size * job.config.vocab_size
    buckets = square if zero.buckets is None else zero.buckets
    buckets += traced.rows * zero.optimizer_on_cpu  # the largest gradient, on its way to RAM
    if zero.stage == 3 and (job.gpus > 1 or zero.weights_on_cpu):
        # At most: a gathered module, the next, and half of what lies within REUSE of the turn to the backward pass.
        buckets += min(traced.total, max(traced.matrices, outputs) + square + REUSE // 2)
    always = {
        "frozen weights": job.dtype.itemsize * (traced.total - traced.trained) * whole,
        "trained weights": size * traced.trained * whole,
        "optimiser state": 0.0 if zero.optimizer_on_cpu else (12 if zero.stage else 8) * share,
        # To reduce gradients; without DeepSpeed, DistributedDataParallel copies all of them.
        "communication": float(size * (buckets if zero.stage else traced.trained * (job.gpus > 1))),
    }
    # Of gradients, what is held between micro-batches: all of them, or this rank's share from ZeRO-2 on.
    late = 0.0 if zero.optimizer_on_cpu else size * traced.trained / (job.gpus if zero.stage > 1 else 1)
    early = late if job.recipe.train.gradient_accumulation_steps > 1 or zero.stage == 3 else 0.0
    copied = 4 * (min(share, GROUP) if zero.stage == 3 else share) if size < 4 and late else 0.0
    rows, others = size * traced.rows, (depth - 1) * traced.layer_kept
    outside, beside = traced.kept - depth * traced.layer_kept, 2 if ends == 1 else bool(early)
    # A layer's own gradients are in its peak; those of the input rows come last, beside the output's if they are tied.
    own = (traced.trained - ends * traced.rows) / depth + (ends - 1) * traced.rows
    moments = {
        "loss": (traced.kept, _loss(job, traced.rows), early),
        "backward, last layer": (traced.peak + others, 0.0, early + rows),
        "backward, first layer": (traced.peak, 0.0, early or late * (1 - own / max(1, traced.trained))),
        "backward, embedding": (outside, 0.0, late + rows * beside),
        "optimiser's step": (0.0, 0.0, late + copied),
    }
    return {at: always | {"activations": a, "loss": b, "gradients": c} for at, (a, b, c) in moments.items()}


def _loss(job: Job, rows: int) -> float:
    """Bytes that `linear_cross_entropy` holds in its forward pass, which forms the gradients."""
    hidden, narrow, trained = job.config.hidden_size, job.dtype.itemsize, job.trained_dtype.itemsize
    tokens = job.recipe.train.per_device_train_batch_size * (job.block - 1)
    # Of a chunk the logits in float32, and in bfloat16 if that is what is multiplied; its states four times. Of all
    # tokens the states and their gradient; the rows' gradient in float32.
    logits = job.config.vocab_size * (6 if product_dtype(job.dtype, job.device) == torch.bfloat16 else 4)
    chunk = chunk_size(tokens, job.config.vocab_size) * (logits + 16 * hidden)
    cast = narrow * rows if narrow < 4 else 0  # the rows before, or their gradient after
    working = chunk + cast if trained != narrow else max(chunk, cast)
    return float(tokens * hidden * (trained + narrow) + 4 * rows + working)


def host_memory(job: Job, traced: Traced) -> float:
    """Bytes of RAM per GPU that offloading takes: masters, float32 gradients, Adam's averages, staged weights."""
    weights = job.dtype.itemsize * traced.total if job.sharding.weights_on_cpu else 0
    trained = (4 + 4 + 8 + job.dtype.itemsize) * traced.trained if job.sharding.optimizer_on_cpu else 0
    return (weights + trained) / job.gpus
