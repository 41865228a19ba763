"""Cross-entropy from hidden states that never holds the full logits (tokens x vocabulary).

torch 2.13 has one too (F.linear_cross_entropy). It takes one matrix, so the frozen rows and the new ones would be copied
together at each step, and forms the gradient of all of them: 3 to 5 times the memory of this one, and 1.2 to 5 times the
time where it gives the sum alone (benchmarks/results/loss.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zhllama.device import product_dtype

IGNORED = -100  # PyTorch's label for "no loss here"
# Of a chunk's logits in float32, the largest buffer the loss ever holds: 568 tokens for 55,296 rows. Smaller
# chunks make products that are slower: 256 tokens took 1.3 times as long.
CHUNK_BYTES = 120 * 2**20
# Rows per product of a gradient, so that none is as large as the gradient itself; rows converted at once.
ROWS = 4096


def chunk_size(tokens: int, rows: int) -> int:
    """Tokens per chunk: as few chunks as `CHUNK_BYTES` allows, all of about the same size."""
    chunks = -(-tokens // max(1, CHUNK_BYTES // (4 * rows)))
    return -(-tokens // max(1, chunks))


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, new_rows: Tensor | None, labels: Tensor, nats: Tensor | None = None
) -> Tensor:
    """Sum of next-token negative log-likelihoods of `hidden @ [weight; new_rows].T`, chunk by chunk.

    The gradient is formed in the forward pass while a chunk's logits exist, so backward only scales it: the
    logits are computed once and never stored. Equal to `F.cross_entropy(..., reduction="sum")` in float32.

    Args:
        hidden: (tokens, hidden), any float dtype.
        weight: (rows, hidden); a gradient is formed only if it requires one.
        new_rows: (n, hidden) trained rows that stand below those of `weight`, or None.
        labels: (tokens,) int64, every one a valid row (mask before calling).
        nats: (tokens,) float32, filled with each token's loss where given.

    Returns:
        A float32 scalar, in nats.
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, new_rows, labels, nats)  # type: ignore[no-untyped-call]
    return loss


# For one token with hidden state h, target t and logits z = W h, the loss is log(sum of exp(z_v)) - z_t. With
# m = max z, e_v = exp(z_v - m), which cannot overflow, and S = sum of e_v:
#   loss       = log S + m - z_t
#   d loss/d h = (e / S) W - W_t          a product, less the target's own row
#   d loss/d W = (e / S) h^T, of which row t loses h
# e is written over z in one buffer of (chunk, vocabulary). Dividing by S is left to (chunk, hidden) matrices,
# which are far smaller. The loss is a sum, so backward only multiplies both gradients by one number.
class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        new_rows: Tensor | None,
        labels: Tensor,
        nats: Tensor | None,
    ) -> Tensor:
        train_hidden, train_weight, train_new, *_ = ctx.needs_input_grad
        # Autocast is off inside a custom Function: matrices take the hidden states' dtype by hand.
        dtype = (
            torch.get_autocast_dtype(hidden.device.type)
            if torch.is_autocast_enabled(hidden.device.type)
            else hidden.dtype
        )
        factors = product_dtype(dtype, hidden.device.type)
        # Never concatenated: that would copy all rows in every step.
        parts = [weight.detach().to(dtype)]
        if new_rows is not None:
            parts.append(new_rows.detach().to(dtype))
        # Old rows beside new ones get no gradient, whatever they ask for: so they stay bit-identical.
        trained = [train_weight] if new_rows is None else [False, train_new]
        rows = hidden.detach().to(dtype)
        grad_hidden = torch.empty_like(rows) if train_hidden else None
        make = torch.empty if len(rows) else torch.zeros  # the first chunk writes them whole
        # Float32 whatever the matrices are: sums over chunks in bfloat16 would swallow small terms.
        grads = [
            make(part.shape, dtype=torch.float32, device=part.device) if train else None
            for part, train in zip(parts, trained, strict=True)
        ]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        width = sum(map(len, parts))
        chunk = chunk_size(len(rows), width)
        buffer = torch.empty(chunk, width, dtype=torch.float32, device=hidden.device)
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(rows), max(1, chunk)):
                piece, target = rows[start : start + chunk].to(factors), labels[start : start + chunk]
                logits = buffer[: len(piece)]
                slices = torch.split(logits, [len(part) for part in parts], dim=1)
                for part, view in zip(parts, slices, strict=True):
                    for cut, some in _factors(part, factors):
                        # `out` spares a second matrix of logits, and takes one dtype only.
                        if factors == view.dtype:
                            torch.mm(piece, some.T, out=view[:, cut])
                        else:
                            view[:, cut] = piece @ some.T
                # Read before the exponentials overwrite it.
                wanted = logits.gather(1, target[:, None])
                highest = logits.amax(1, keepdim=True)
                spread = logits.sub_(highest).exp_().sum(1, keepdim=True)
                each = (spread.log() + highest - wanted)[:, 0]
                total += each.sum()
                if nats is not None:
                    nats[start : start + chunk] = each
                if grad_hidden is None and not any(trained):
                    continue
                shares = [view.to(factors) for view in slices]
                if grad_hidden is not None:
                    mixed = sum(
                        (share[:, cut] @ some).float()
                        for share, part in zip(shares, parts, strict=True)
                        for cut, some in _factors(part, factors)
                    )
                    grad_hidden[start : start + chunk] = mixed / spread - _rows(parts, target)
                scaled = (piece / spread).to(factors)
                first = 0  # the id of a part's first row
                for grad, share, part in zip(grads, shares, parts, strict=True):
                    if grad is not None:
                        for top in range(0, len(part), ROWS):
                            of_rows, some = grad[top : top + ROWS], share[:, top : top + ROWS].T
                            # addmm_ takes one dtype only; a beta of 0 ignores what torch.empty left.
                            if some.dtype == grad.dtype:
                                of_rows.addmm_(some, scaled, beta=min(start, 1))
                            else:
                                of_rows.copy_(some @ scaled + of_rows if start else some @ scaled)
                        own = (target >= first) & (target < first + len(part))
                        # Not by indexing: a target that occurs twice in the chunk must lose both states.
                        grad.index_add_(0, target[own] - first, piece[own].float(), alpha=-1)
                    first += len(part)
        ctx.save_for_backward(grad_hidden, *grads)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if new_rows is None else new_rows.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, *grads = ctx.saved_tensors
        hidden_dtype, weight_dtype, new_dtype = ctx.dtypes

        def scaled(grad: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
            # In place, detached: autograd takes it as `.grad` uncopied, and a second backward is refused.
            return None if grad is None else grad.mul_(outer[0]).detach().to(dtype)

        # One gradient for each argument of forward; labels and nats have none.
        if new_dtype is None:
            return scaled(grad_hidden, hidden_dtype), scaled(grads[0], weight_dtype), None, None, None
        return scaled(grad_hidden, hidden_dtype), None, scaled(grads[1], new_dtype), None, None


def _factors(part: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """A matrix in the precision of products: as it is, or some rows of it at a time."""
    size = max(1, len(part)) if part.dtype == dtype else ROWS
    for top in range(0, len(part), size):
        yield slice(top, top + size), part[top : top + size].to(dtype)


def _rows(parts: list[Tensor], ids: Tensor) -> Tensor:
    """Rows of matrices that stand one below the other, (len(ids), hidden) float32."""
    first, found = 0, torch.zeros(len(ids), parts[0].shape[1], device=ids.device)
    for part in parts:
        own = (ids >= first) & (ids < first + len(part))
        found[own] = part[ids[own] - first].float()
        first += len(part)
    return found
