"""A model's parameters, and what autograd keeps of its layers, from two layers and one run on fake tensors.

Fake tensors have shapes, dtypes and lifetimes but no memory: 65B is traced on a laptop, and nothing is fitted.
"""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zhllama.model.adapter import lora_config
from zhllama.model.fast.install import install
from zhllama.plan.job import Job


class Traced(NamedTuple):
    """Numbers of parameters, and bytes of activations."""

    total: int  # all parameters, frozen ones and adapters included; tied ends once
    trained: int
    rows: int  # trained ones of an end
    matrices: int  # of a layer: its linear layers', frozen or not
    adapters: int  # of a layer: LoRA's, DoRA's magnitudes included
    kept: int  # bytes alive between forward and backward pass
    layer_kept: int
    peak: int  # most bytes at any moment if there were one layer, gradients of its weights included


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that operators have made and nobody has freed, and most of them at any moment."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = (
            {t.untyped_storage()._cdata: t.untyped_storage() for t in tree_leaves(tree) if torch.is_tensor(t)}
            for tree in ((args, kwargs), result)
        )
        for key in made.keys() - given.keys():  # neither a view nor written in place
            self.sizes[key] = made[key].nbytes()
            weakref.finalize(made[key], self.sizes.pop, key)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result


def trace(job: Job) -> Traced:
    """Count and trace two layers and one of a job's model; the others are like the second."""
    model, config, depth = _model(job), job.config, job.config.num_hidden_layers
    with FakeTensorMode(allow_non_fake_inputs=True):
        # Unlike meta tensors, fake ones know a device and so take autocast and its attention kernels.
        decoder = model.to_empty(device="cpu").get_decoder().train()
        two, _ = _run(decoder, job)
        decoder.layers = decoder.layers[:1]
        one, peak = _run(decoder, job)
    layer, norm = dict(decoder.layers.named_parameters()), sum(p.numel() for p in decoder.norm.parameters())
    trained = sum(p.numel() for p in layer.values() if p.requires_grad)
    width, ends = config.hidden_size, 1 if config.tie_word_embeddings else 2
    rows = {"new": job.new_rows, "all": config.vocab_size, "none": 0}[job.recipe.embeddings] * width
    return Traced(
        total=depth * sum(p.numel() for p in layer.values()) + norm + ends * config.vocab_size * width,
        trained=depth * trained + ends * rows + (norm if job.recipe.body == "full" else 0),
        rows=rows,
        matrices=sum(p.numel() for name, p in layer.items() if p.dim() == 2 and "lora_" not in name),
        adapters=sum(p.numel() for name, p in layer.items() if "lora_" in name),
        kept=one + (depth - 1) * (two - one),
        layer_kept=two - one,
        peak=peak,
    )


def _model(job: Job) -> Any:
    """Two layers on the meta device with what trains of them marked, as `load_trainable` does."""
    from peft import inject_adapter_in_model
    from transformers import AutoModelForCausalLM

    config, body = copy.deepcopy(job.config), job.recipe.body
    config.num_hidden_layers, config.use_cache = 2, False
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        if body == "lora":
            model = inject_adapter_in_model(lora_config(job.recipe.lora), model, low_cpu_mem_usage=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers." in name and (body == "full" or "lora_" in name))
        parameter.data = parameter.data.to(job.trained_dtype if parameter.requires_grad else job.dtype)
    install(model, job.device)
    if job.recipe.train.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model


def _run(decoder: Any, job: Job) -> tuple[int, int]:
    """Bytes kept between forward and backward pass, and most bytes at any moment."""
    size = (job.recipe.train.per_device_train_batch_size, job.block)
    stream = job.trained_dtype if job.recipe.embeddings == "all" else job.dtype
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=job.dtype != job.trained_dtype):
            output = decoder(
                inputs_embeds=torch.empty(*size, job.config.hidden_size, dtype=stream, requires_grad=True),
                attention_mask=torch.ones(size[0], 1, size[1], size[1], dtype=torch.bool),
                position_ids=torch.zeros(size, dtype=torch.long),
            ).last_hidden_state
            gc.collect()
            kept = sum(live.sizes.values())  # with autocast's copies of weights: they last until the loss
            output = output.sum()  # the states themselves are gone, as behind the loss
        output.backward()
    return kept, live.peak
