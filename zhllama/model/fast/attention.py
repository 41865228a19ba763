"""Grouped-query attention on CPU without copies of keys and values: torch's kernel there takes groups beside a mask.

transformers repeats keys and values for every head of a group wherever there is a mask, as for packed blocks, because
kernels on CUDA may not take groups then; the copies are kept for the backward pass. Its own switch against that,
TRANSFORMERS_SDPA_FORCE_GQA, is of the whole process: replies would take groups too, a query at a time, where that is up
to 9 times as slow (benchmarks/results/switches.md).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

NAME = "zhllama_groups"  # in transformers' registry of attention functions


def share_keys(model: Any) -> None:
    """Let a model on CPU whose attention is torch's own attend in groups; the same numbers, to the bit."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
    ) -> tuple[Tensor, None]:
        if attention_mask is None or query.shape[2] != key.shape[2]:  # while it generates, there is a cache
            seen, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
            return seen, None
        seen = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attention_mask,
            dropout_p=given.get("dropout", 0.0),
            scale=given["scaling"],
            enable_gqa=True,
        )
        # (batch, heads, length, width) to (batch, length, heads, width), as transformers' own gives it.
        return seen.transpose(1, 2).contiguous(), None

    if model.config._attn_implementation == "sdpa":
        ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
        # Without one of the same name there is no mask at all, and documents of a block see each other.
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
