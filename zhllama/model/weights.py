"""Safetensors checkpoints, one file or sharded, read and written tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zhllama.config import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
INPUT_KEY = "model.embed_tokens.weight"
OUTPUT_KEY = "lm_head.weight"


def shards(directory: Path, flag: str = "--model") -> list[Path]:
    """The weight files of a model directory in order; raises UserError where there are none or one is missing."""
    if (directory / INDEX).is_file():
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        files = [directory / name for name in sorted(set(index["weight_map"].values()))]
    else:
        files = [directory / SINGLE]
    for file in files:
        if not file.is_file():
            raise UserError(f"{flag} {directory}: no {file.name} inside (only safetensors weights are read)")
    return files


def read_config(directory: Path, flag: str = "--model") -> dict[str, Any]:
    """A model directory's `config.json`; raises UserError where it is missing."""
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(
            f"{flag} {directory}: no config.json inside; a Hugging Face model directory is needed"
        )
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def check_block_size(block_size: int, model: Path) -> None:
    """Raise UserError when a block is longer than the model's positions."""
    positions = int(read_config(model)["max_position_embeddings"])
    if block_size > positions:
        raise UserError(f"block_size {block_size}: {model} has {positions} positions; use at most that")


@contextmanager
def find_tensor(directory: Path, key: str) -> Iterator[Any]:
    """A slice object of one tensor (`tensor[a:b]` reads only those rows)."""
    from safetensors import safe_open

    for shard in shards(directory):
        with safe_open(shard, framework="pt") as file:
            if key in file.keys():  # noqa: SIM118 - not a dict
                yield file.get_slice(key)
                return
    raise UserError(f"{directory}: no tensor {key}; a LLaMA-family checkpoint is needed")


def load_model(directory: Path, dtype: torch.dtype) -> Any:
    """A causal language model as transformers loads it: from safetensors only, and without its remarks."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return AutoModelForCausalLM.from_pretrained(str(directory), dtype=dtype, use_safetensors=True)


def rewrite(source: Path, target: Path, change: Callable[[str, Tensor], Tensor], what: str) -> None:
    """Copy a checkpoint shard by shard, each tensor passed through `change(name, tensor)`.

    Peak memory is one shard (plus what `change` holds).
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    from zhllama.terminal import track

    for shard in track(shards(source), what):
        with safe_open(shard, framework="pt") as file:
            tensors = {name: change(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, target / shard.name, metadata={"format": "pt"})
        del tensors
    if (source / INDEX).is_file():
        _write_index(source, target)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy every tokenizer file of a directory, the chat template included."""
    names = (
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    )
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _write_index(source: Path, target: Path) -> None:
    from safetensors import safe_open

    index = json.loads((source / INDEX).read_text(encoding="utf-8"))
    size = 0
    for shard in shards(source):
        with safe_open(target / shard.name, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                size += tensor.numel() * tensor.element_size()
    index["metadata"] = {**index.get("metadata", {}), "total_size": size}
    (target / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
