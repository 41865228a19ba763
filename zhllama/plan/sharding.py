"""What of a DeepSpeed configuration decides memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zhllama.config import UserError
from zhllama.recipes.find import find_file


@dataclass(frozen=True)
class Zero:
    """What of DeepSpeed decides memory; stage 0 is plain data parallelism without DeepSpeed."""

    stage: int = 0
    optimizer_on_cpu: bool = False
    weights_on_cpu: bool = False
    bucket: int = 0
    """Elements of the reduce bucket; 0: `auto`, hidden size squared."""
    overlap: bool = False
    prefetch: int = 0
    """Elements that ZeRO-3 fetches ahead; 0: `auto`, 0.9 x hidden size squared."""
    reuse: int = 1_000_000_000
    """ZeRO-3 keeps weights gathered that are used again within so many elements."""
    group: int = 1_000_000_000
    """Elements of a rank's share that ZeRO-3 updates at a time."""


def read_zero(file: Path) -> Zero:
    """The stage, offloading and buckets of a DeepSpeed file; `auto` as transformers fills it in.

    Raises:
        UserError: no such file, or not JSON.
    """
    try:
        content = json.loads(find_file(file).read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        raise UserError(
            f"train.deepspeed {file}: no such file; DeepSpeed's own are in ds_configs/"
        ) from problem
    except ValueError as problem:
        raise UserError(f"train.deepspeed {file}: not JSON ({problem})") from problem
    settings: dict[str, Any] = content.get("zero_optimization", {})

    def number(name: str, default: int) -> int:
        value = settings.get(name, default)
        return 0 if value == "auto" else int(value)

    def on_cpu(name: str) -> bool:
        return str((settings.get(name) or {}).get("device", "none")) != "none"

    return Zero(
        stage=int(settings.get("stage", 0)),
        optimizer_on_cpu=on_cpu("offload_optimizer"),
        weights_on_cpu=on_cpu("offload_param"),
        bucket=number("reduce_bucket_size", 500_000_000),
        overlap=bool(settings.get("overlap_comm", False)),
        prefetch=number("stage3_prefetch_bucket_size", 50_000_000),
        reuse=number("stage3_max_reuse_distance", 1_000_000_000),
        group=number("sub_group_size", 1_000_000_000),
    )


def with_stage(zero: Zero, stage: int) -> Zero:
    """The same buckets at another stage, with only the offloading that it knows."""
    return replace(
        zero,
        stage=stage,
        optimizer_on_cpu=zero.optimizer_on_cpu and stage > 0,
        weights_on_cpu=zero.weights_on_cpu and stage == 3,
    )
