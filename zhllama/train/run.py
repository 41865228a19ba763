"""What a run needs before its Trainer: defaults, checks of the settings, the model with its trainable parts."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.integration_utils import get_available_reporting_integrations

from zhllama import artifact
from zhllama.config import UserError
from zhllama.device import prefers_bf16, remove_shared_file
from zhllama.model.adapter import parameter_count, part_of
from zhllama.model.trainable import TrainableModel, load_trainable
from zhllama.pack.blocks import Blocks
from zhllama.recipes.find import find_file
from zhllama.terminal import say
from zhllama.tokenizer.load import load
from zhllama.train.choice import check_choice, method_of, set_start
from zhllama.train.progress import Progress
from zhllama.train.trainer import BlockTrainer, Stage, is_first_rank


def training_defaults() -> dict[str, Any]:
    """Defaults of TrainingArguments where the machine decides, and where the field's habit is not transformers'."""
    cuda = torch.cuda.is_available()
    return {
        "train.bf16": prefers_bf16(),
        "train.use_cpu": not cuda,
        "train.dataloader_pin_memory": cuda,
        "train.learning_rate": 2e-4,
        "train.lr_scheduler_type": "cosine",
        "train.warmup_steps": 0.05,
        "train.num_train_epochs": 1.0,
        "train.report_to": ["tensorboard"],
        "train.logging_steps": 1,
        "train.save_total_limit": 2,
    }


def check_arguments(train: Any) -> None:
    """Refuse what TrainingArguments would fail on late; find a shipped DeepSpeed file; make one process a world of one.

    Raises:
        UserError: no such DeepSpeed file or no compiler for its CPU op, a service whose package is missing, no length
            or rate of training, an evaluation that has nothing to evaluate.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    services = [train.report_to] if isinstance(train.report_to, str) else train.report_to
    for service in set(services) - {"all", "none", *get_available_reporting_integrations()}:
        raise UserError(f"train.report_to {service}: its package is not installed; run pip install {service}")
    if isinstance(train.deepspeed, str):
        train.deepspeed = str(find_file(train.deepspeed))  # and what was found goes into run.json
        if not Path(train.deepspeed).is_file():
            raise UserError(f"train.deepspeed {train.deepspeed}: no such file")
        if os.environ.get("DS_ACCELERATOR") == "cpu" and not shutil.which(os.environ.get("CXX", "c++")):
            raise UserError(
                "train.deepspeed: on CPU DeepSpeed compiles an op on its first start, and there is no C++ compiler; "
                "install g++, or set --train.deepspeed null"
            )
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29511")
    if train.max_steps <= 0 and train.num_train_epochs <= 0:
        raise UserError("train.max_steps or train.num_train_epochs: one of them must be above 0")
    if train.learning_rate <= 0:
        raise UserError(f"train.learning_rate {train.learning_rate}: it must be above 0")
    if train.neftune_noise_alpha is not None and train.neftune_noise_alpha <= 0:
        raise UserError(f"train.neftune_noise_alpha {train.neftune_noise_alpha}: it must be above 0, or null")
    if str(train.eval_strategy) not in ("no", "IntervalStrategy.NO"):
        raise UserError(
            f"train.eval_strategy {train.eval_strategy}: runs do not evaluate; use zhllama evaluate"
        )


@contextmanager
def run_directory(config: Any, command: str, inputs: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """The run directory as `artifact.create` makes it, on the first rank; yields the dict of its result.

    The others refuse what it refuses: left alone they would bury its one line under errors of their own.
    """
    with threads_at_rest():
        if not is_first_rank():
            artifact.check_resumable(config.output, command, inputs)
            yield {}
            return
        with artifact.create(config.output, "run", command, config, inputs, resume=True) as run:
            yield run.result


@contextmanager
def threads_at_rest() -> Iterator[None]:
    """Give gloo's threads a moment at the end: one that still lets go of a tensor while Python ends aborts the process.

    Destroying the groups would not end those threads: DeepSpeed keeps references to two of them.
    """
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            time.sleep(0.2)


def train(stage: Stage, model_dir: Path, blocks: Blocks, progress: Progress | None = None) -> dict[str, Any]:
    """Load the model, train it on the blocks, save and re-open the adapter; returns steps, tokens and mean loss.

    Raises:
        UserError: what `check_choice` refuses, a rate or a budget that is not above 0, no such LoRA target, a save that
            does not reopen.
    """
    for name in ("embedding_learning_rate", "max_minutes"):
        value = getattr(stage, name)
        if value is not None and value <= 0:
            raise UserError(f"{name} {value}: it must be above 0")
    check_choice(stage, model_dir, blocks.ids.shape[1], is_deepspeed_zero3_enabled())
    set_seed(stage.train.seed)
    if stage.train.deepspeed:
        import deepspeed

        # Before the model: ZeRO-3 shares its weights out while they load. On CPU nothing else would do it in time.
        deepspeed.init_distributed()
        # Over connections that stand already: a rank that is gone breaks them here, where the groups that DeepSpeed
        # makes next would wait for it for half an hour.
        torch.distributed.barrier()
        remove_shared_file(torch.distributed.get_rank())
    method, full = method_of(stage), stage.body == "full"
    dtype = compute_dtype(stage.train)
    model = load_trainable(model_dir, stage.embeddings, method, dtype, full=full, quantise=stage.quantise)
    set_start(model, stage, blocks[0]["input_ids"])
    say(describe(model))
    return BlockTrainer(model, stage, method, blocks, load(model_dir, "--model"), model_dir, progress).run()


def compute_dtype(arguments: TrainingArguments) -> torch.dtype:
    """What the frozen weights are held in: the precision that training computes in."""
    return torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32


def describe(model: TrainableModel) -> str:
    """One line that says what trains and how much of the whole it is."""
    sizes: dict[str, int] = {}
    for key, parameter in model.trainable().items():
        part = part_of(key)
        sizes[part] = sizes.get(part, 0) + parameter_count(parameter)
    whole = sum(map(parameter_count, model.parameters()))
    return f"training {', '.join(f'{part} {size:,}' for part, size in sizes.items())} of {whole:,} parameters"
