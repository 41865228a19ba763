"""Trained prompts instead of trained weights: prefix tuning, and LLaMA-Adapter's adaption prompts.

Both are saved in peft's layout. Packing changes neither: an adaption prompt has a softmax of its own, and keys and
values of a prefix are seen by every document of a block, as each would see them alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhllama.config import UserError
from zhllama.model.directory import ModelDirectory

PREFIX_KEY = "prompt_embeddings"  # peft's name for the saved prefix
ADAPTION_KEY = "adaption_"  # and what its adaption prompts and their gates begin with
ADAPTED = ("llama", "mistral")  # model types whose attention peft's adaption prompts know


@dataclass
class PrefixSettings:
    """Keys and values before every conversation, trained for each layer (Li & Liang, arXiv 2101.00190)."""

    length: int = 30
    """How many positions the prefix takes; keys and values start as those of the training data's first tokens."""

    def __post_init__(self) -> None:
        """Refuse an empty prefix."""
        if self.length < 1:
            raise UserError(f"prefix.length {self.length}: it must be at least 1")


@dataclass
class AdaptionSettings:
    """LLaMA-Adapter: prompts attended to beside the text, behind a gate that starts at 0 (arXiv 2303.16199)."""

    # LLaMA-Adapter's own length; it prompts the top 30 of 32 layers.
    length: int = 10
    """How many vectors the adaption prompt of a layer has."""
    layers: int = 0
    """How many layers have an adaption prompt, counted from the top; 0 takes all."""

    def __post_init__(self) -> None:
        """Refuse prompts that do nothing."""
        if self.length < 1:
            raise UserError(f"adaption.length {self.length}: it must be at least 1")
        if self.layers < 0:
            raise UserError(f"adaption.layers {self.layers}: it must be at least 0, which takes all")


def check_adaption(model: ModelDirectory, settings: AdaptionSettings) -> None:
    """Raise UserError for a model that peft's adaption prompts do not fit."""
    config, kind = model.config, model.config.get("model_type")
    if kind not in ADAPTED:
        raise UserError(
            f"body adaption: peft has adaption prompts for {' and '.join(ADAPTED)} models, {model} is {kind}; "
            "use --body lora"
        )
    # peft takes hidden size / width of k_proj for the query heads of a group; that holds only where the heads
    # are together as wide as the states.
    width = int(config.get("head_dim") or 0) * int(config["num_attention_heads"])
    if width not in (0, config["hidden_size"]):
        raise UserError(
            f"body adaption: the heads of {model} are together {width} wide and its states "
            f"{config['hidden_size']}, which peft's adaption prompts do not know; use --body lora"
        )
    if settings.layers > model.depth:
        raise UserError(f"adaption.layers {settings.layers}: {model} has {model.depth} layers")


class Prefix(nn.Module):
    """A trained prefix, and the cache that attention layers take it from."""

    def __init__(self, length: int, config: Any) -> None:
        super().__init__()
        self.length, self.depth = length, int(config.num_hidden_layers)
        self.heads, self.width = kv_shape(config)
        size = self.depth * 2 * self.heads * self.width
        # Under peft's name, so that the parameter's key is that of its file.
        self.register_parameter(PREFIX_KEY, nn.Parameter(torch.empty(length, size).normal_()))
        # By layer; empty means that there is no prefix, and layers are left alone.
        self.states: list[tuple[Tensor, Tensor]] = []

    def forward(self) -> None:
        """Cut the parameter into keys and values, (heads, length, width) each, for the layers to find."""
        rows = F.embedding(torch.arange(self.length, device=self.weight.device), self.weight)
        # peft's order: layer after layer, each its keys and then its values.
        parts = rows.view(self.length, self.depth * 2, self.heads, self.width).permute(1, 2, 0, 3)
        # (layers x 2, heads, length, width): every other one is a layer's keys.
        self.states = [(parts[at], parts[at + 1]) for at in range(0, 2 * self.depth, 2)]

    @property
    def weight(self) -> nn.Parameter:
        """(length, layers x 2 x heads x width), as peft saves it."""
        found = getattr(self, PREFIX_KEY)
        assert isinstance(found, nn.Parameter)
        return found

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, (batch, heads, length, width), behind those of the prefix."""
        # Nothing is kept: a layer that runs again, as activation checkpointing makes it, must find the same.
        before = (state.to(key.dtype).expand(len(key), -1, -1, -1) for state in self.states[layer])
        first, second = before
        return torch.cat([first, key], dim=2), torch.cat([second, value], dim=2)

    def mask(self, positions: Tensor) -> Tensor:
        """What sees what, (batch, 1, length, prefix + length): the prefix, and the document's own past."""
        # Documents by transformers' own rule: positions that go on by one stay in theirs. It hands a mask of
        # four dimensions to the layers as it is.
        documents = (positions.diff(dim=1, prepend=positions[:, :1] - 1) != 1).cumsum(1)
        causal = torch.ones(2 * positions.shape[1:], dtype=torch.bool, device=positions.device).tril()
        # (batch, length, length): a token sees those of its own document up to itself.
        seen = (documents[:, :, None] == documents[:, None, :]) & causal
        return F.pad(seen, (self.length, 0), value=True)[:, None]

    @torch.no_grad()
    def start_from(self, decoder: Any, ids: Tensor) -> None:
        """Begin as the keys and values that a decoder, without the prefix, makes of `ids`, (length,)."""
        # `states` is still empty, so the layers find the decoder's own cache.
        cache = decoder(input_ids=ids[None], use_cache=True).past_key_values
        # Cached keys are rotated already, by the positions 0 to length - 1 of a prefix.
        states = [state[0].transpose(0, 1) for layer in cache.layers for state in (layer.keys, layer.values)]
        # (length, layers x 2, heads, width), flattened behind the length.
        self.weight.copy_(torch.stack(states, dim=1).reshape(self.length, -1))


def kv_shape(config: Any) -> tuple[int, int]:
    """How many heads the keys and values of a layer have, and how wide each is."""
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return int(getattr(config, "num_key_value_heads", None) or heads), width


def install_prefix(model: Any, settings: PrefixSettings) -> None:
    """Give a causal language model a prefix that its attention layers find in the place of a cache."""
    prefix = Prefix(settings.length, model.config)

    def offer(module: nn.Module, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return inputs, named | ({"past_key_values": prefix} if prefix.states else {})

    # At the attention, not at the decoder: activation checkpointing takes a cache away from a layer.
    for layer in model.get_decoder().layers:
        layer.self_attn.register_forward_pre_hook(offer, with_kwargs=True)
    model.prefix = prefix


def install_adaption(model: Any, settings: AdaptionSettings) -> None:
    """Wrap the attention of the top layers by peft's, which adds an adaption prompt to it."""
    from peft.tuners.adaption_prompt import AdaptedAttention

    layers = model.get_decoder().layers
    # For 0 this is layers[0:], all of them.
    for layer in layers[-settings.layers :]:
        layer.self_attn = AdaptedAttention(model.config.model_type, settings.length, layer.self_attn)


def prompt_config(settings: PrefixSettings | AdaptionSettings, config: Any) -> Any:
    """peft's settings of a trained prompt on a model of this config."""
    from peft import AdaptionPromptConfig, PrefixTuningConfig

    if isinstance(settings, AdaptionSettings):
        return AdaptionPromptConfig(
            target_modules="self_attn",
            adapter_len=settings.length,
            adapter_layers=settings.layers or config.num_hidden_layers,
            task_type="CAUSAL_LM",
        )
    heads, width = kv_shape(config)
    return PrefixTuningConfig(
        num_virtual_tokens=settings.length,
        num_layers=config.num_hidden_layers,
        token_dim=heads * width,
        num_attention_heads=heads,
        num_transformer_submodules=1,
        task_type="CAUSAL_LM",
    )
