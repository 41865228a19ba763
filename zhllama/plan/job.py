"""What is planned: a recipe on a model's shape, sharded over some GPUs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from zhllama.config import UserError, parse, read_recipe
from zhllama.recipes.find import find_file
from zhllama.train.pretrain import PretrainConfig
from zhllama.train.settings import TrainingSettings
from zhllama.train.sft import SftConfig

SHAPES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "shapes.json").read_text())


@dataclass(frozen=True)
class Sharding:
    """What the ranks divide and offload (ZeRO, arXiv 1910.02054); stage 0 is data parallelism without DeepSpeed."""

    stage: int = 0
    optimizer_on_cpu: bool = False
    weights_on_cpu: bool = False
    buckets: int | None = (
        None  # elements of one, or of two where they overlap; None is `auto`, hidden size squared
    )


@dataclass(frozen=True)
class Job:
    """One training run."""

    recipe: TrainingSettings
    config: Any  # of transformers; its vocab_size counts all rows
    new_rows: int = 0
    block: int = 1024
    gpus: int = 1
    sharding: Sharding = Sharding()
    device: str = "cuda"  # or cpu, whose kernels differ

    @property
    def dtype(self) -> torch.dtype:
        """Of frozen weights, and of a multiplication's operands."""
        return torch.bfloat16 if self.recipe.train.bf16 else torch.float32

    @property
    def trained_dtype(self) -> torch.dtype:
        """Of trained weights: DeepSpeed casts them and keeps a master copy, without it they are float32."""
        return self.dtype if self.sharding.stage else torch.float32


def read_recipes(files: list[str]) -> tuple[TrainingSettings, str | None]:
    """Recipes as `pretrain` or `sft` parse them (and refuse them) but for what only a run needs; their DeepSpeed file."""
    given: dict[str, Any] = {}
    for file in files:
        content = read_recipe(str(find_file(file)))
        train = content.get("train")
        nested = content | (train if isinstance(train, dict) else {})
        given |= {name.removeprefix("train."): value for name, value in nested.items()}
    arguments = ["--model=-", "--output=-", *(f"--config={file}" for file in files)]
    arguments += [f"--train.{setting}" for setting in ("deepspeed=null", "use_cpu=true", "report_to=none")]
    if given.keys() & ({f.name for f in fields(SftConfig)} - {f.name for f in fields(PretrainConfig)}):
        return parse("sft", SftConfig, [*arguments, "--data=[]"]), given.get("deepspeed")
    return parse("pretrain", PretrainConfig, [*arguments, "--tokens=-"]), given.get("deepspeed")


def read_sharding(file: str | None, stages: Sequence[int], offload: str | None) -> list[Sharding]:
    """What a DeepSpeed file says, or these stages and offloading instead of its own; raises UserError: no such JSON."""
    settings: dict[str, Any] = {"reduce_bucket_size": "auto"}
    try:
        if file:
            settings = json.loads(find_file(file).read_text(encoding="utf-8")).get("zero_optimization", {})
    except (OSError, ValueError) as problem:
        raise UserError(f"train.deepspeed {file}: no JSON there ({problem}); see ds_configs/") from problem
    offloads = [settings.get(f"offload_{part}") or {} for part in ("optimizer", "param")]
    optimizer, weights = (one.get("device", "none") != "none" for one in offloads)
    if offload:
        optimizer, weights = offload != "none", offload == "all"
    bucket = settings.get("reduce_bucket_size", 500_000_000)  # DeepSpeed's default
    buckets = None if bucket == "auto" else int(bucket) * (2 if settings.get("overlap_comm") else 1)
    return [
        Sharding(stage, optimizer and stage > 0, weights and stage == 3, buckets)
        for stage in stages or [settings.get("stage", 0)]
    ]


def shape_config(values: dict[str, Any], rows: int) -> Any:
    """A transformers config from the content of a `config.json`, with so many rows; raises UserError: unknown type."""
    kind = values.get("model_type", "llama")
    if kind not in CONFIG_MAPPING:
        raise UserError(f"config.json: transformers knows no model type {kind!r}")
    return CONFIG_MAPPING[kind].from_dict({**values, "vocab_size": rows})
