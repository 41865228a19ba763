"""Memory per GPU of a training run, from its settings alone.

What is how sure:
- Parameters and their states are counted, not estimated: weights, masters, gradients, Adam's two averages, and what
  each ZeRO stage divides, as the installed DeepSpeed holds them.
- Activations are traced: one layer of the installed transformers on fake tensors (`trace.py`), times the layers.
- The loss's buffers follow `loss.py` line by line.
- ZeRO-3's gathered weights are an upper bound, from its rule of what it keeps for reuse.
- Runtime overhead (CUDA context, NCCL, fragmentation) is an assumption, and the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zhllama.config import UserError
from zhllama.device import product_dtype
from zhllama.model.adapter import Body, Embeddings, LoraSettings
from zhllama.model.fast.loss import ROWS, chunk_size
from zhllama.plan.sharding import Zero
from zhllama.plan.trace import Traced, trace

SHAPES = Path(__file__).parent / "shapes.json"
GIB = 2**30
ADAM = 8  # bytes of Adam's two float32 averages
PARTS = (
    "frozen weights",
    "trained weights",
    "master copies",
    "optimiser state",
    "gradients",
    "activations kept",
    "one layer at work",
    "loss",
    "buckets",
    "gathered weights",
    "runtime overhead",
)


@dataclass(frozen=True)
class Job:
    """A model and what a recipe decides about its training."""

    config: Any
    """transformers config; its vocab_size counts all rows."""
    new_rows: int = 0
    embeddings: Embeddings = "new"
    body: Body = "lora"
    lora: LoraSettings = field(default_factory=LoraSettings)
    bf16: bool = True
    checkpointing: bool = False
    batch: int = 1
    block: int = 1024
    accumulation: int = 1
    gpus: int = 1
    zero: Zero = field(default_factory=Zero)
    cpu: bool = False
    """Train on CPU, whose kernels copy operands of another dtype."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of a frozen weight, and of a multiplication's operands."""
        return 2 if self.bf16 else 4

    @property
    def trained_bytes(self) -> int:
        """Bytes of a trained weight: DeepSpeed casts it and keeps a master copy, without DeepSpeed it is float32."""
        return self.weight_bytes if self.zero.stage else 4


@dataclass(frozen=True)
class Counts:
    """Parameters by part; tied ends count once."""

    adapters: int
    body: int
    input_rows: int
    output_rows: int
    total: int
    """All parameters, frozen ones and adapters included."""
    layers: Traced

    @property
    def trained(self) -> int:
        """All that trains."""
        return self.adapters + self.body + self.input_rows + self.output_rows


def known_shape(name: str, new_rows: int = 0) -> dict[str, Any]:
    """The content of a well-known model's `config.json`, with new rows behind its own; raises UserError."""
    known = json.loads(SHAPES.read_text(encoding="utf-8"))
    if name not in known:
        raise UserError(f"--shape {name}: not a known shape; there are {', '.join(known)}, or give --model")
    return {**known[name], "vocab_size": known[name]["vocab_size"] + new_rows}


def shape_config(values: Mapping[str, Any], rows: int | None = None) -> Any:
    """A transformers config from the content of a `config.json`, with another number of rows if given.

    Raises:
        UserError: a model type that transformers does not know.
    """
    from transformers import AutoConfig

    settings = {name: value for name, value in values.items() if name != "model_type"}
    kind = values.get("model_type", "llama")
    try:
        config = AutoConfig.for_model(kind, **settings)
    except ValueError as problem:
        raise UserError(f"config.json: transformers knows no model type {kind!r}") from problem
    if rows is not None:
        config.vocab_size = rows
    return config


def count(job: Job) -> Counts:
    """Count parameters by tracing one layer of the model."""
    config = job.config
    whole, half = torch.float32, torch.bfloat16 if job.bf16 else torch.float32
    trained = half if job.zero.stage else whole
    layer = trace(
        config,
        job.body,
        job.lora,
        job.batch,
        job.block,
        half,
        trained,
        trained if job.embeddings == "all" else half,
        job.checkpointing,
        "cpu" if job.cpu else "cuda",
    )
    rows = {"new": job.new_rows, "all": config.vocab_size, "none": 0}[job.embeddings] * config.hidden_size
    tied = bool(config.tie_word_embeddings)
    norm = layer.norm if job.body == "full" else 0
    adapters = layer.adapters * config.num_hidden_layers
    body = (layer.trained - layer.adapters) * config.num_hidden_layers + norm
    ends = config.vocab_size * config.hidden_size * (1 if tied else 2)
    total = (layer.frozen + layer.trained) * config.num_hidden_layers + layer.norm + ends
    return Counts(adapters, body, rows, 0 if tied else rows, total, layer)


def held_rows(job: Job) -> int:
    """Parameters held beside those that replace them: under ZeRO-3 the new rows are a copy of each end's last ones."""
    if job.embeddings != "new" or job.zero.stage != 3:
        return 0
    return job.new_rows * int(job.config.hidden_size) * (1 if job.config.tie_word_embeddings else 2)


def states(trained: int, frozen: int, job: Job) -> dict[str, float]:
    """Bytes per GPU of weights, masters, gradients at the optimiser's step, and Adam's averages.

    DeepSpeed's own estimators count the same 2 + (2 + 4 + 4 + 8) / GPUs bytes a parameter for ZeRO-2 in bf16. For
    ZeRO-3 they leave out the 2 of reduced gradients, and count float32 gradients whole that are made by groups.
    """
    zero, share = job.zero, job.gpus if job.zero.stage else 1
    weights = job.gpus if zero.stage == 3 else 1
    if not zero.stage:
        step = 4.0 * trained
    else:  # the reduced gradients and their float32 copy; ZeRO-1 keeps all of the former
        reduced = job.weight_bytes * trained / (1 if zero.stage == 1 else share)
        group = min(trained / share, zero.group if zero.stage == 3 else trained)
        step = 0.0 if zero.optimizer_on_cpu else reduced + (4 * group if job.bf16 else 0)
    return {
        "frozen weights": 0.0 if zero.weights_on_cpu else job.weight_bytes * frozen / weights,
        "trained weights": 0.0 if zero.weights_on_cpu else job.trained_bytes * trained / weights,
        "master copies": 0.0 if not zero.stage or zero.optimizer_on_cpu else 4 * trained / share,
        "optimiser state": 0.0 if zero.optimizer_on_cpu else ADAM * trained / share,
        "gradients": step,
    }


def memory(job: Job, counts: Counts, overhead: float = 0.0) -> tuple[str, dict[str, float]]:
    """The moment of a step that needs most, and its bytes per GPU by part; their sum is the peak."""
    moments = {
        name: {**dict.fromkeys(PARTS, 0.0), **parts, "runtime overhead": overhead}
        for name, parts in _moments(job, counts).items()
    }
    worst = max(moments, key=lambda name: sum(moments[name].values()))
    return worst, moments[worst]


def _moments(job: Job, counts: Counts) -> dict[str, dict[str, float]]:
    config, layers, zero = job.config, counts.layers, job.zero
    trained, depth = counts.trained, config.num_hidden_layers
    always = states(trained, counts.total - trained + held_rows(job), job)
    at_step = always.pop("gradients")
    always |= _buffers(job, counts)
    tokens, wide = job.batch * job.block, layers.final.output
    # The embedding's output, ids, positions, labels, the block-diagonal mask (bool), sines and cosines.
    head_width = layers.attention / config.num_attention_heads
    entry = tokens * (config.hidden_size * wide + 3 * 8 + job.block + 2 * head_width * wide)
    kept, rows = layers.layer.kept, max(counts.input_rows, counts.output_rows)
    before = at_step if not zero.stage else _held_gradients(job, trained)
    before = before if job.accumulation > 1 or zero.stage == 3 else 0.0
    forward, backward = _loss(job, rows, wide)
    # What reaches the first layer of the backward pass has the gradient of the output rows behind it.
    top = before + (0.0 if before and zero.stage < 2 else job.trained_bytes * (counts.output_rows or rows))
    all_gradients = (at_step if not zero.stage else _held_gradients(job, trained)) + (
        _unreduced(job, counts) if zero.stage > 1 else 0.0
    )
    last = rows * job.trained_bytes if config.tie_word_embeddings else 0  # two ends' gradients, added up
    through = layers.layer.peak + tokens * config.hidden_size * wide
    return {
        "loss": always
        | {
            "activations kept": entry + depth * kept + layers.final.kept,
            "loss": forward,
            "gradients": before,
        },
        "backward of the loss": always
        | {
            "activations kept": entry + depth * kept + layers.final.peak,
            "loss": backward,
            "gradients": before,
        },
        "backward, last layer": always
        | {"activations kept": entry + (depth - 1) * kept, "one layer at work": through, "gradients": top},
        "backward, first layer": always
        | {"activations kept": entry, "one layer at work": through, "gradients": all_gradients},
        "backward of the embedding": always | {"activations kept": entry, "gradients": all_gradients + last},
        "optimiser's step": always | {"gradients": at_step},
    }


def _loss(job: Job, trained_rows: int, wide: int) -> tuple[float, float]:
    """Bytes that `linear_cross_entropy` holds in its forward pass (which forms the gradients), and in its backward."""
    config, narrow = job.config, job.weight_bytes
    tokens = job.batch * (job.block - 1)
    chunk = chunk_size(tokens, config.vocab_size)
    hidden = tokens * config.hidden_size
    copies = narrow * trained_rows if job.trained_bytes != narrow else 0
    converted = job.cpu and narrow != 4 and product_dtype(torch.bfloat16, "cpu") == torch.float32
    in_float32 = converted or narrow == 4
    logits = chunk * config.vocab_size * (4 + (0 if in_float32 else narrow))
    # The states with a label and their gradient; the rows' gradient in float32. What is not multiplied in float32 makes
    # a product and a sum of it; what is may have some rows converted. A chunk's own gradient takes four of its size.
    labelled = hidden * (wide + narrow) + 16 * tokens
    product = 4 * ROWS * config.hidden_size * converted
    if not in_float32:
        product = min(ROWS * config.hidden_size, trained_rows) * (narrow + 4)
    product = max(product, 4 * 4 * chunk * config.hidden_size)
    forward = labelled + copies + logits + 4 * trained_rows + product
    backward = labelled + trained_rows * (4 + (narrow if job.trained_bytes != 4 else 0)) + 2 * hidden * wide
    return forward, backward


def _held_gradients(job: Job, trained: int) -> float:
    """Reduced gradients that DeepSpeed holds between micro-batches: all, or this rank's share from ZeRO-2 on."""
    if job.zero.optimizer_on_cpu:
        return 0.0
    return job.weight_bytes * trained / (1 if job.zero.stage == 1 else job.gpus)


def _unreduced(job: Job, counts: Counts) -> float:
    """The largest gradient, whole until it is reduced."""
    largest = max(counts.layers.largest, counts.input_rows, counts.output_rows)
    return float(job.weight_bytes * largest)


def _buffers(job: Job, counts: Counts) -> dict[str, float]:
    """Bytes of reduce buckets, of ZeRO-3's gathered weights, and of an offloaded optimiser's staging buffer."""
    zero, square = job.zero, job.config.hidden_size**2
    if not zero.stage:  # torch's DistributedDataParallel copies gradients into buckets
        return {"buckets": 4.0 * counts.trained if job.gpus > 1 else 0.0}
    buckets: float = job.weight_bytes * (zero.bucket or square) * (2 if zero.overlap else 1)
    if zero.optimizer_on_cpu:
        buckets += _unreduced(job, counts)
    if zero.stage < 3 or (job.gpus == 1 and not zero.weights_on_cpu):
        return {"buckets": buckets}
    # Around the turn from forward to backward what lies within `reuse` stays: half of it, both ways. Besides, the
    # module at work and what is fetched ahead.
    everything = counts.total + held_rows(job)
    module = max(counts.layers.matrices, job.config.vocab_size * job.config.hidden_size)
    gathered = min(everything, zero.reuse // 2 + module + (zero.prefetch or int(0.9 * square)))
    return {"buckets": buckets, "gathered weights": float(job.weight_bytes * gathered)}


def host_memory(job: Job, counts: Counts) -> float:
    """Bytes of RAM per GPU that offloading takes: masters, float32 gradients, Adam's averages, staged weights."""
    zero, frozen = job.zero, counts.total - counts.trained + held_rows(job)
    need = (4 + 4 + ADAM + job.weight_bytes) * counts.trained / job.gpus if zero.optimizer_on_cpu else 0.0
    return need + (job.weight_bytes * (counts.trained + frozen) / job.gpus if zero.weights_on_cpu else 0.0)
