"""What a run needs around its Trainer: its directory, and the model with its trainable parts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments, set_seed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from zhllama import artifact
from zhllama.config import UserError
from zhllama.device import remove_shared_file
from zhllama.model.adapter import Parts, parameter_count, part_of
from zhllama.model.directory import ModelDirectory
from zhllama.model.run_directory import RunDirectory
from zhllama.model.trainable import TrainableModel, check_parts, load_trainable
from zhllama.pack.blocks import Blocks
from zhllama.terminal import say
from zhllama.train.choice import check_choice, set_start
from zhllama.train.progress import Progress
from zhllama.train.settings import TrainingSettings
from zhllama.train.trainer import BlockTrainer, is_first_rank


@dataclass(frozen=True)
class Run:
    """One run of a stage: what was asked, on which model, what trains of it, and what its record will say.

    Attributes:
        start: an earlier run, whose adapter goes on.
    """

    settings: TrainingSettings
    base: ModelDirectory
    parts: Parts
    start: RunDirectory | None
    result: dict[str, Any] = field(default_factory=dict)


@contextmanager
def begin_run(
    settings: TrainingSettings,
    command: str,
    base: ModelDirectory,
    inputs: Mapping[str, artifact.Input],
    allow_frozen: bool,
) -> Iterator[Run]:
    """Check what is to train, and make the run directory as `artifact.create` does, on the first rank.

    Args:
        inputs: what is read besides the model and an earlier run.
        allow_frozen: new rows may stay as they are.

    Raises:
        UserError: parts that the model has not or that would train nothing, no finished run behind --adapter, an
            output that is not this run's.
    """
    parts = settings.parts()
    check_parts(base, parts, allow_frozen)
    # Opened here, before anything is written: what is wrong with it costs no run.
    start = None if settings.adapter is None else RunDirectory.open(settings.adapter)
    inputs = {"model": base, **inputs, **({} if start is None else {"adapter": start})}
    run = Run(settings, base, parts, start)
    with threads_at_rest():
        # The others refuse what it refuses: they would bury its one line under errors of their own.
        if not is_first_rank():
            artifact.check_resumable(settings.output, command, inputs)
            yield run
            return
        with artifact.create(settings.output, "run", command, settings, inputs, resume=True) as made:
            yield run
            made.result = run.result


@contextmanager
def threads_at_rest() -> Iterator[None]:
    """Give gloo's threads a moment at the end."""
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            # One that still lets go of a tensor while Python ends aborts the process: one exit in fifty.
            # Destroying the groups would not end those threads: DeepSpeed keeps references to two of them.
            time.sleep(0.2)


def train(run: Run, blocks: Blocks, progress: Progress | None = None) -> dict[str, Any]:
    """Load the model, train it on the blocks, save and re-open the adapter; returns steps, tokens and mean loss.

    Raises:
        UserError: what `check_choice` refuses, a rate or a budget that is not above 0, no such LoRA target, a save that
            does not reopen.
    """
    settings, base, parts, start = run.settings, run.base, run.parts, run.start
    for name in ("embedding_learning_rate", "max_minutes"):
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise UserError(f"{name} {value}: it must be above 0")
    check_choice(parts, base, start, blocks.ids.shape[1], is_deepspeed_zero3_enabled())
    # LoRA's A and prompts are drawn while the model loads, before the Trainer sets its seed.
    set_seed(settings.train.seed)
    if settings.train.deepspeed:
        import deepspeed

        # Before the model: ZeRO-3 shares weights out while they load. On CPU nothing else does it in time.
        deepspeed.init_distributed()
        # Over connections that stand already: a rank that is gone breaks them here, where the groups that
        # DeepSpeed makes next would wait for it for half an hour.
        torch.distributed.barrier()
        remove_shared_file(torch.distributed.get_rank())
    model = load_trainable(base, parts, compute_dtype(settings.train), kind=settings.train.device.type)
    set_start(model, parts, start, blocks[0]["input_ids"])
    say(describe(model))
    return BlockTrainer(model, settings, base, start, blocks, progress).run()


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
