"""One decoder layer run on fake tensors: its parameters, what autograd keeps of it, and its peak, without a byte of it.

Fake tensors (torch's FakeTensorMode) have shapes, dtypes and lifetimes but no memory, so a layer of 65B is traced on a
laptop. Nothing is fitted: the layer is the installed transformers' own, with peft's adapters, under the same autocast,
scaled dot-product attention and checkpointing as in training.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zhllama.model.adapter import Body, LoraSettings, lora_config
from zhllama.model.fast.install import install


@dataclass(frozen=True)
class Span:
    """Bytes of a module's forward and backward pass, above its weights and its input."""

    kept: int
    """Alive between forward and backward: what autograd saved, and the output."""
    peak: int
    """Most alive at any moment of both passes, gradients of its own weights included."""
    output: int
    """Bytes per element of the output."""


@dataclass(frozen=True)
class Traced:
    """Counts (parameters) and spans (bytes) of one layer and of the final norm."""

    matrices: int
    """Parameters of the layer's linear layers."""
    frozen: int
    """Parameters of the layer that do not train."""
    adapters: int
    """Trained parameters that are LoRA's, DoRA's magnitudes included."""
    trained: int
    """Trained parameters of the layer: the adapters, or all of it."""
    largest: int
    """Parameters of the largest trained tensor."""
    norm: int
    """Parameters of the norm behind the last layer."""
    attention: int
    """Width of all heads together."""
    layer: Span
    final: Span


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that operators make, until they are freed; what was there before costs nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            self._meet(tensor, counted=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._meet(tensor, counted=True)
        return result

    def _meet(self, tensor: Any, counted: bool) -> None:
        if not isinstance(tensor, Tensor) or tensor.untyped_storage()._cdata in self._known:
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes() if counted else 0
        self._known.add(storage._cdata)
        weakref.finalize(storage, self._free, storage._cdata, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def trace(
    config: Any,
    body: Body,
    lora: LoraSettings | None,
    batch: int,
    block: int,
    weights: torch.dtype,
    trained: torch.dtype,
    stream: torch.dtype,
    checkpointing: bool,
    kind: str,
) -> Traced:
    """Trace one layer of the model that a transformers config describes.

    Args:
        batch, block: sequences and tokens of one pass.
        weights, trained: what frozen and trained weights are held in; autocast to `weights` where they differ.
        stream: what the embedding gives, hence the residual stream.
        checkpointing: run the layer as training does with gradient checkpointing.
        kind: of the device that it is planned for, cpu or cuda.
    """
    config = copy.deepcopy(config)
    config.num_hidden_layers = 1
    config.use_cache = False
    model = _model(config, body, lora, kind)
    with FakeTensorMode():
        _materialise(model, weights, trained)
        decoder = model.get_decoder()
        layer = decoder.layers[0].train()
        if checkpointing:  # the state of random numbers is a real tensor, which fake ones do not mix with
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=_CHECKPOINTING)
        states = torch.empty(batch, block, config.hidden_size, dtype=stream, requires_grad=True)
        positions = torch.zeros(batch, block, dtype=torch.long)
        context = {
            "attention_mask": torch.ones(batch, 1, block, block, dtype=torch.bool),
            "position_ids": positions,
            "position_embeddings": decoder.rotary_emb(states, positions),
        }
        mixed = torch.autocast("cpu", weights) if weights != trained else nullcontext()
        span = _span(lambda: layer(states, **context), mixed)
        final = _span(lambda: decoder.norm(states), nullcontext())
    return Traced(
        matrices=sum(m.weight.numel() for n, m in layer.named_modules() if _is_matrix(n, m)),
        frozen=sum(p.numel() for p in layer.parameters() if not p.requires_grad),
        adapters=sum(p.numel() for n, p in layer.named_parameters() if "lora_" in n),
        trained=sum(p.numel() for p in layer.parameters() if p.requires_grad),
        largest=max((p.numel() for p in layer.parameters() if p.requires_grad), default=0),
        norm=sum(p.numel() for p in decoder.norm.parameters()),
        attention=config.num_attention_heads * layer.self_attn.head_dim,
        layer=span,
        final=final,
    )


_CHECKPOINTING = {"use_reentrant": False, "preserve_rng_state": False}


def _is_matrix(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and "lora_" not in name


def _model(config: Any, body: Body, lora: LoraSettings | None, kind: str) -> Any:
    """The model on the meta device with what trains of its layer marked, as `load_trainable` does."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        if body == "lora" and lora is not None:
            from peft import inject_adapter_in_model

            model = inject_adapter_in_model(lora_config(lora), model, low_cpu_mem_usage=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers." in name and (body == "full" or "lora_" in name))
    install(model, kind)
    return model


def _materialise(model: nn.Module, weights: torch.dtype, trained: torch.dtype) -> None:
    """Replace meta tensors by fake ones, which know a device and so take autocast and its attention kernels."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                dtype = trained if parameter.requires_grad else weights
                data = torch.empty(parameter.shape, dtype=dtype)
                module._parameters[name] = nn.Parameter(data, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _span(run: Callable[[], Tensor], mixed: Any) -> Span:
    with LiveBytes() as bytes_:
        with mixed:
            output = run()
        gc.collect()
        kept = bytes_.live
        torch.autograd.backward(output, torch.empty_like(output))
        return Span(kept, bytes_.peak, output.element_size())
