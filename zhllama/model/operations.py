"""Floating-point operations of a training step."""

from __future__ import annotations

from typing import Any

from torch import nn

from zhllama.model.adapter import parameter_count
from zhllama.model.trainable import TrainableModel


def flops_of(model: TrainableModel, block: int) -> float:
    """Floating-point operations per token of a model that trains, in blocks of so many tokens, nothing recomputed."""
    sizes = {True: 0, False: 0}
    # All layers are alike. Only linear layers count: theirs are nearly all operations.
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
    # Heads need not be together as wide as the states, and older configs do not say how wide they are.
    width = config.num_attention_heads * (config.head_dim or config.hidden_size // config.num_attention_heads)
    forward = 2.0 * depth * (frozen + trained)
    return {
        "forward": forward,
        "backward": forward + 2.0 * depth * trained,
        # Scores and mixture are a product each of 2 x block x width; backward takes two for each.
        "attention": depth * 3 * 4.0 * block * width,
        # Logits and the gradient of the states are 2 each; rows that train have a gradient of their own.
        "head and loss": 4.0 * config.vocab_size * config.hidden_size + 2.0 * rows,
    }
