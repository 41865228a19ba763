"""Layers that keep less for the backward pass and copy less on the way: the same numbers as transformers' and peft's.

A norm keeps its input instead of four stages of it, a gated MLP its two inputs instead of three, and LoRA adds its
product into the base's instead of making three tensors more; in bfloat16 it also spares a copy of its input in float32
and back for each adapter. What a norm or a gate made for LoRA is made again in the backward pass: no matrix product,
and a third of what a layer would keep.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhllama.device import product_dtype


def recompute_activations(model: nn.Module, kind: str) -> None:
    """Exchange the forward passes of the layers that are of the known form; any other stays as it is.

    Products are those of a `kind` of device, cpu or cuda.

    A LoRA layer is, unless it has dropout, a bias or DoRA's magnitudes, or ZeRO-3 holds its weights: its hooks gather
    them where peft's own forward pass runs.
    """
    from peft.tuners.lora import Linear as LoraLayer

    # By form, not by class: each family of transformers has a norm and a gated MLP class of its own.
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = MethodType(_norm, module)
        elif hasattr(module, "gate_proj") and "SiLU" in type(getattr(module, "act_fn", None)).__name__:
            module.forward = MethodType(_gated_mlp, module)
        elif isinstance(module, LoraLayer) and _is_plain(module):
            module.forward = partial(_lora, module, kind)


def _is_plain(layer: Any) -> bool:
    # `type(...) is`: the 4-bit layers of bitsandbytes are nn.Linear too, and a LoRA layer may hold other
    # adapters. `lora_variant` is where peft notes DoRA and its like.
    parts = [layer.base_layer, *layer.lora_A.values(), *layer.lora_B.values()]
    return (
        list(layer.lora_A) == ["default"]
        and not layer.lora_variant
        and isinstance(layer.lora_dropout["default"], nn.Identity)
        and all(type(part) is nn.Linear and part.bias is None for part in parts)
        and not any(hasattr(part.weight, "ds_id") for part in parts)
    )


# The attribute of a norm's or gate's result that says how to make it again: a `_Maker` and its tensors. LoRA
# keeps these, which the norm or gate keeps anyway, instead of the result. Whatever stands between (a dropout,
# a cast) gives a tensor without the attribute, and LoRA keeps its input then.
MADE_BY = "made_by"


class _Maker:
    """Makes a result again for the LoRA layers that share it: once, and keeps it while one of them still wants it."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.users = 0
        self.made: Tensor | None = None

    # q_proj, k_proj and v_proj share one norm's result, gate_proj and up_proj another's: the backward pass
    # reaches the sharers one after another, so a result lives from the first to the last of them.
    def __call__(self, *kept: Tensor) -> Tensor:
        made = self.function(*kept) if self.made is None else self.made
        self.users -= 1
        self.made = made if self.users > 0 else None
        return made


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    normed: Tensor = _Norm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
    made_by = (_Maker(partial(_normed, epsilon=self.variance_epsilon)), (hidden_states, self.weight))
    setattr(normed, MADE_BY, made_by)
    return normed


def _gated_mlp(self: Any, x: Tensor) -> Tensor:
    gate, up = self.gate_proj(x), self.up_proj(x)
    gated: Tensor = _Gate.apply(gate, up)  # type: ignore[no-untyped-call]
    setattr(gated, MADE_BY, (_Maker(_gated), (gate, up)))
    product: Tensor = self.down_proj(gated)
    return product


def _lora(self: Any, kind: str, x: Tensor) -> Tensor:
    parts = (self.base_layer.weight, self.lora_A["default"].weight, self.lora_B["default"].weight)
    scale, made_by = self.scaling["default"], getattr(x, MADE_BY, None)
    result: Tensor = _Lora.apply(x, *parts, scale, made_by, kind)  # type: ignore[no-untyped-call]
    return result


# As LlamaRMSNorm: rounded before the weight comes in, or bfloat16 would differ in its last bit.
def _normed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    return weight * (wide * _scale(wide, epsilon)).to(x.dtype)


def _scale(wide: Tensor, epsilon: float) -> Tensor:
    return torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(epsilon))


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate).mul_(up)


# y = w n, n = r x, r = (mean(x^2) + epsilon)^(-1/2), over d numbers. From dr/dx_j = -r^3 x_j / d follows,
# with the gradient of n as u = w dL/dy:
#   dL/dx = r (u - n mean(u n))
#   dL/dw = sum over tokens of n dL/dy
# r and n are made again from x, the one thing kept.
class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return _normed(x, weight, epsilon)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wide = x.float()
        scale = _scale(wide, ctx.epsilon)
        normed = wide * scale
        inner = (outer[0] * weight).float()
        of_weight = (outer[0].float() * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        share = (inner * normed).mean(-1, keepdim=True)
        of_x = inner.sub_(normed.mul_(share)).mul_(scale)
        return of_x.to(x.dtype), None if of_weight is None else of_weight.to(weight.dtype), None


# y = silu(gate) up: dL/d gate = silu'(gate) up dL/dy, dL/d up = silu(gate) dL/dy. Its silu is made again.
class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(outer[0] * up, gate), F.silu(gate).mul_(outer[0])


# y = x W^T + s (x A^T) B^T with W frozen. With g = dL/dy, narrow = x A^T of (tokens, rank) and inside = g B:
#   dL/dB = s g^T narrow
#   dL/dA = s inside^T x
#   dL/dx = g W + s inside A
# Kept are narrow and x, or instead of x what its norm or gate can make it from.
class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, down: Tensor, up: Tensor, scale: float, made_by: Any, as_on: str
    ) -> Tensor:
        kind = x.device.type
        # Autocast would make copies again for the backward pass: matrices are cast by hand.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            rows = x.flatten(0, -2).to(dtype)
            factors = product_dtype(dtype, as_on)
            wide = rows.to(factors)
            narrow = wide @ down.to(factors).T
            result = wide @ weight.to(factors).T
            result.addmm_(narrow, up.to(factors).T, alpha=scale)
        ctx.make, kept = made_by or (None, (rows,))
        # A frozen adapter, as in a model that is only measured, has no backward pass.
        if ctx.make is not None and ctx.needs_input_grad[2]:
            ctx.make.users += 1
        ctx.save_for_backward(narrow.to(dtype), weight, down, up, *kept)
        ctx.scale, ctx.shape, ctx.dtype, ctx.factors = scale, x.shape, x.dtype, factors
        return result.to(dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        narrow, weight, down, up, *kept = ctx.saved_tensors
        with torch.autocast(narrow.device.type, enabled=False):
            rows = ctx.make(*kept).flatten(0, -2).to(narrow.dtype) if ctx.make else kept[0]
            outside = outer[0].flatten(0, -2).to(ctx.factors)
            inside = outside @ up.to(ctx.factors)
            of_up = (outside.T @ narrow.to(ctx.factors)).float() * ctx.scale
            of_down = (inside.T @ rows.to(ctx.factors)).float() * ctx.scale
            of_x = None
            if ctx.needs_input_grad[0]:
                of_x = outside @ weight.to(ctx.factors)
                of_x.addmm_(inside, down.to(ctx.factors), alpha=ctx.scale)
                of_x = of_x.view(ctx.shape).to(ctx.dtype)
        return of_x, None, of_down.to(down.dtype), of_up.to(up.dtype), None, None, None
