"""Cross-entropy from hidden states that never holds the full logits (tokens x vocabulary)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Tokens per chunk: 256 x 128k rows x 4 bytes = 131 MB, the largest buffer the loss ever holds.
CHUNK = 256


def linear_cross_entropy(hidden: Tensor, weight: Tensor, new_rows: Tensor | None, labels: Tensor) -> Tensor:
    """Sum of next-token negative log-likelihoods of `hidden @ weight.T`, chunk by chunk.

    The gradient is formed in the forward pass while a chunk's logits exist, so backward only scales it: the
    logits are computed once and never stored. Equal to `F.cross_entropy(..., reduction="sum")` in float32.

    Args:
        hidden: (tokens, hidden), any float dtype.
        weight: (rows, hidden); a gradient is formed only if it requires one.
        new_rows: (n, hidden) trained rows standing in for the last n of `weight`, or None.
        labels: (tokens,) int64, every one a valid row (mask before calling).

    Returns:
        A float32 scalar, in nats.
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, new_rows, labels)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, new_rows: Tensor | None, labels: Tensor) -> Tensor:
        train_hidden, train_weight, train_new, _ = ctx.needs_input_grad
        # Autocast is off inside a custom Function: matrices take the hidden states' dtype by hand.
        dtype = (
            torch.get_autocast_dtype(hidden.device.type)
            if torch.is_autocast_enabled(hidden.device.type)
            else hidden.dtype
        )
        parts = [weight.detach().to(dtype)]
        if new_rows is not None:
            parts = [parts[0][: weight.shape[0] - new_rows.shape[0]], new_rows.detach().to(dtype)]
        trained = [train_weight] if new_rows is None else [False, train_new]
        rows = hidden.detach().to(dtype)
        grad_hidden = torch.empty_like(rows) if train_hidden else None
        grads = [
            torch.zeros(part.shape, dtype=torch.float32, device=part.device) if train else None
            for part, train in zip(parts, trained, strict=True)
        ]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, rows.shape[0], CHUNK):
                piece = rows[start : start + CHUNK]
                target = labels[start : start + CHUNK, None]
                logits = torch.cat([F.linear(piece, part) for part in parts], dim=1).float()
                normaliser = torch.logsumexp(logits, dim=1, keepdim=True)
                total += (normaliser - logits.gather(1, target)).sum()
                if grad_hidden is None and not any(trained):
                    continue
                # d loss / d logits = softmax - one_hot, written over the logits.
                slope = logits.sub_(normaliser).exp_()
                slope.scatter_add_(1, target, torch.full_like(target, -1, dtype=slope.dtype))
                slopes = torch.split(slope.to(dtype), [part.shape[0] for part in parts], dim=1)
                if grad_hidden is not None:
                    grad_hidden[start : start + CHUNK] = sum(
                        (one @ part for one, part in zip(slopes, parts, strict=True)),
                        torch.zeros((), dtype=dtype),
                    )
                for grad, one in zip(grads, slopes, strict=True):
                    if grad is not None:
                        grad += (one.T @ piece).float()
        ctx.save_for_backward(grad_hidden, *grads)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if new_rows is None else new_rows.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, *grads = ctx.saved_tensors
        hidden_dtype, weight_dtype, new_dtype = ctx.dtypes
        scale = outer[0]

        def scaled(grad: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
            return None if grad is None else (grad * scale).to(dtype)

        if new_dtype is None:
            return scaled(grad_hidden, hidden_dtype), scaled(grads[0], weight_dtype), None, None
        return scaled(grad_hidden, hidden_dtype), None, scaled(grads[1], new_dtype), None
