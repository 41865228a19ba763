"""Whether the machine and the model allow what a run is to train, and where that starts."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from zhllama.config import UserError
from zhllama.model.adapter import LoraSettings, Parts, load_adapter
from zhllama.model.directory import ModelDirectory
from zhllama.model.prompt_tuning import AdaptionSettings, PrefixSettings, check_adaption
from zhllama.model.run_directory import RunDirectory
from zhllama.model.trainable import TrainableModel


def check_choice(
    parts: Parts, base: ModelDirectory, start: RunDirectory | None, block: int, zero3: bool
) -> None:
    """Refuse, before anything loads, what this model or this machine cannot train.

    Args:
        start: an earlier run, whose adapter is to go on.
        block: tokens of a block.
        zero3: whether DeepSpeed shares the weights out.

    Raises:
        UserError: names the setting, and what to set instead.
    """
    if isinstance(parts.method, AdaptionSettings):
        check_adaption(base, parts.method)
    if isinstance(parts.method, PrefixSettings):
        length = parts.method.length
        # It starts from the first tokens of a block.
        if length > block or length + block > base.positions:
            raise UserError(
                f"prefix.length {length}: blocks have {block} tokens and {base} {base.positions} positions; a prefix "
                "may be no longer than a block, and both together no longer than the positions"
            )
        if zero3:
            raise UserError("body prefix: it starts from the whole model; use ZeRO-2, or --body lora")
    if parts.quantise:
        _check_quantise(parts, zero3)
    if start is not None:
        start.check_base(base)
        held, given = _flags(start.parts, base.depth), _flags(parts, base.depth)
        if held != given:
            other = " ".join(f"{flag} {value}" for flag, value in held.items() if given.get(flag) != value)
            raise UserError(f"--adapter {start}: it was trained with other settings; give {other}")


def _check_quantise(parts: Parts, zero3: bool) -> None:
    if parts.body != "lora" or parts.embeddings == "all":
        raise UserError(
            f"quantise: weights of 4 bits stay frozen; body {parts.body} with embeddings {parts.embeddings} "
            "does not; use --body lora, and --embeddings new or none"
        )
    if not torch.cuda.is_available():
        raise UserError("quantise: it needs a CUDA device, and there is none; leave it out to train LoRA")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("quantise: bitsandbytes is not installed; pip install bitsandbytes")
    if zero3:
        raise UserError("quantise: ZeRO-3 cannot share out weights of 4 bits; use ZeRO-2")


def _flags(parts: Parts, depth: int) -> dict[str, str]:
    """The flags that make tensors of these shapes and scale."""
    # Not dropout: it shapes no tensor, so it may be another one now.
    flags: dict[str, str] = {"--embeddings": parts.embeddings, "--body": parts.body}
    method = parts.method
    if isinstance(method, LoraSettings):
        flags |= {f"--lora.{name}": str(getattr(method, name)) for name in ("rank", "alpha")}
        flags |= {f"--lora.{name}": str(getattr(method, name)).lower() for name in ("rslora", "dora")}
        flags["--lora.targets"] = f"[{','.join(sorted(method.targets))}]"
    elif method is not None:
        flags[f"--{parts.body}.length"] = str(method.length)
    if isinstance(method, AdaptionSettings):
        flags["--adaption.layers"] = str(method.layers or depth)
    return flags


def set_start(model: TrainableModel, parts: Parts, start: RunDirectory | None, ids: Any) -> None:
    """Set what trains to where the run starts: at an earlier run's adapter, or a prefix at its first tokens.

    Args:
        ids: (length,) int64, the first tokens of the training data.
    """
    if start is not None:
        load_adapter(model.trainable(), start.path)
    elif isinstance(parts.method, PrefixSettings):
        model.base.prefix.start_from(model.base.get_decoder(), ids[: parts.method.length])
    # No base holds where prompts began, and how far they move is told.
    model.remember_prompts()
