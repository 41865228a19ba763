"""`zhllama export`: a model directory to hand out, in a chosen dtype."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Literal

import torch

from zhllama import artifact
from zhllama.model.directory import ModelDirectory
from zhllama.model.weights import copy_tokenizer, rewrite, write_config
from zhllama.terminal import say


@dataclass
class ExportConfig:
    """Write a model as a plain Hugging Face directory to hand out, in a chosen dtype."""

    model: str
    """Model directory, for example what merge-adapter wrote."""
    output: str
    """New model directory to write."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """The precision to write weights in; serving in 16 bits is the field's habit."""


def export(config: ExportConfig) -> None:
    """Convert shard by shard; config, generation settings, tokenizer and chat template come along.

    Raises:
        UserError: no model there, or weights other than safetensors.
    """
    source = ModelDirectory.open(config.model)
    source.check_plain()
    dtype: torch.dtype = getattr(torch, config.dtype)
    with artifact.create(config.output, "model", "export", config, {"model": source}) as run:
        rewrite(
            source,
            run.path,
            # Whole numbers stay whole: buffers such as positions have no precision to choose.
            lambda _, tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor,
            "exporting",
        )
        write_config(source, run.path, config.dtype)
        if (source.path / "generation_config.json").is_file():
            shutil.copyfile(source.path / "generation_config.json", run.path / "generation_config.json")
        copy_tokenizer(source.path, run.path)
        run.result = {"dtype": config.dtype, "base": source.fingerprint}
    say(f"{run.path}: {config.dtype} weights, tokenizer and chat template")
