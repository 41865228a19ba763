"""What a run adds to a model, what it starts from, and whether the machine and the model allow it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Protocol

import torch

from zhllama import artifact
from zhllama.config import UserError
from zhllama.model.adapter import (
    Body,
    Embeddings,
    LoraSettings,
    Method,
    adapter_parts,
    finished_run,
    load_adapter,
)
from zhllama.model.merge import check_base
from zhllama.model.prompt_tuning import AdaptionSettings, PrefixSettings, check_adaption
from zhllama.model.trainable import TrainableModel
from zhllama.model.weights import read_config


class Choice(Protocol):
    """The settings of pretrain and sft that say what trains, and from where."""

    embeddings: Embeddings
    body: Body
    lora: LoraSettings
    prefix: PrefixSettings
    adaption: AdaptionSettings
    adapter: str | None
    quantise: bool


def method_of(choice: Choice) -> Method | None:
    """The settings of what is added to the model, None where its own weights train."""
    methods: dict[str, Method] = {
        "lora": choice.lora,
        "prefix": choice.prefix,
        "adaption": choice.adaption,
    }
    return methods.get(choice.body)


def check_choice(choice: Choice, directory: Path, block: int, zero3: bool) -> None:
    """Refuse, before anything loads, what this model or this machine cannot train.

    Args:
        block: tokens of a block.
        zero3: whether DeepSpeed shares the weights out.

    Raises:
        UserError: names the setting, and what to set instead.
    """
    if choice.body == "adaption":
        check_adaption(directory, choice.adaption)
    if choice.body == "prefix":
        length, positions = choice.prefix.length, int(read_config(directory)["max_position_embeddings"])
        if length > block or length + block > positions:
            raise UserError(
                f"prefix.length {length}: blocks have {block} tokens and {directory} {positions} positions; a prefix "
                "may be no longer than a block, and both together no longer than the positions"
            )
        if zero3:
            raise UserError("body prefix: it starts from the whole model; use ZeRO-2, or --body lora")
    if choice.quantise:
        _check_quantise(choice, zero3)
    if choice.adapter is not None:
        _check_adapter(choice, Path(choice.adapter), directory)


def _check_quantise(choice: Choice, zero3: bool) -> None:
    if choice.body != "lora" or choice.embeddings == "all":
        raise UserError(
            f"quantise: weights of 4 bits stay frozen; body {choice.body} with embeddings {choice.embeddings} "
            "does not; use --body lora, and --embeddings new or none"
        )
    if not torch.cuda.is_available():
        raise UserError("quantise: it needs a CUDA device, and there is none; leave it out to train LoRA")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("quantise: bitsandbytes is not installed; pip install bitsandbytes")
    if zero3:
        raise UserError("quantise: ZeRO-3 cannot share out weights of 4 bits; use ZeRO-2")


def _check_adapter(choice: Choice, run: Path, directory: Path) -> None:
    """Raise UserError unless the run was trained on this base, with the same parts."""
    run = finished_run(str(run))
    check_base(run, artifact.read_record(run), directory)
    embeddings, method, full = adapter_parts(run)
    depth = int(read_config(directory)["num_hidden_layers"])
    held = _flags(embeddings, "full" if full else _body(method), method, depth)
    given = _flags(choice.embeddings, choice.body, method_of(choice), depth)
    if held != given:
        other = " ".join(f"{flag} {value}" for flag, value in held.items() if given.get(flag) != value)
        raise UserError(f"--adapter {run}: it was trained with other settings; give {other}")


def _body(method: Method | None) -> Body:
    if method is None:
        return "none"
    return {LoraSettings: "lora", PrefixSettings: "prefix", AdaptionSettings: "adaption"}[type(method)]  # type: ignore[return-value]


def _flags(embeddings: Embeddings, body: Body, method: Method | None, depth: int) -> dict[str, str]:
    """The flags that make tensors of these shapes and scale."""
    flags: dict[str, str] = {"--embeddings": embeddings, "--body": body}
    if isinstance(method, LoraSettings):
        flags |= {f"--lora.{name}": str(getattr(method, name)) for name in ("rank", "alpha")}
        flags |= {f"--lora.{name}": str(getattr(method, name)).lower() for name in ("rslora", "dora")}
        flags["--lora.targets"] = f"[{','.join(sorted(method.targets))}]"
    elif method is not None:
        flags[f"--{body}.length"] = str(method.length)
    if isinstance(method, AdaptionSettings):
        flags["--adaption.layers"] = str(method.layers or depth)
    return flags


def start_of(choice: Choice) -> dict[str, Path]:
    """The run that training starts from, as an input of the new one."""
    return {} if choice.adapter is None else {"adapter": finished_run(choice.adapter)}


def set_start(model: TrainableModel, choice: Choice, ids: Any) -> None:
    """Set what trains to where the run starts: at an earlier run's adapter, or a prefix at its first tokens.

    Args:
        ids: (length,) int64, the first tokens of the training data.
    """
    if choice.adapter is not None:
        load_adapter(model.trainable(), Path(choice.adapter))
    elif choice.body == "prefix":
        model.base.prefix.start_from(model.base.get_decoder(), ids[: choice.prefix.length])
    model.remember_prompts()
