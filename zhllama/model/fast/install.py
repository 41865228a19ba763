"""What differs between CPU and CUDA, chosen in one place."""

from __future__ import annotations

from typing import Any

from zhllama.model.fast.attention import share_keys
from zhllama.model.fast.heap import trim_before
from zhllama.model.fast.recompute import recompute_activations


def install(model: Any, kind: str) -> None:
    """Exchange what transformers and peft do for what trains leaner, wherever the weights lie now.

    Args:
        model: a causal language model of transformers, with peft's adapters where it has any.
        kind: of the device that it will run on, cpu or cuda.
    """
    recompute_activations(model, kind)
    if kind == "cpu":
        share_keys(model)
        trim_before([model.get_output_embeddings()])
