"""The only place that builds a transformers Trainer: blocks in, adapter and checkpoints out."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from zhllama import artifact
from zhllama.checkpoint import check_saved, last_checkpoint, optimizer_fits
from zhllama.config import UserError
from zhllama.device import prefers_bf16
from zhllama.metrics import METRICS, StepCallback, plot_loss, read_metrics
from zhllama.model.trainable import (
    Embeddings,
    LoraSettings,
    TrainableModel,
    gathered,
    load_adapter,
    load_trainable,
    save_adapter,
)
from zhllama.pack import IGNORED, Blocks
from zhllama.terminal import say
from zhllama.tokenizer.load import load, token_bytes


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
    """Refuse what TrainingArguments would fail on late, and make one process a world of one for DeepSpeed.

    Raises:
        UserError: no such DeepSpeed file or no compiler for its CPU op, no length or rate of training, an evaluation
            that has nothing to evaluate.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if isinstance(train.deepspeed, str):
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
    if str(train.eval_strategy) not in ("no", "IntervalStrategy.NO"):
        raise UserError(
            f"train.eval_strategy {train.eval_strategy}: runs do not evaluate; use zhllama evaluate"
        )


def is_first_rank() -> bool:
    """Whether this process writes and talks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def run_directory(config: Any, command: str, inputs: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """The run directory as `artifact.create` makes it, on the first rank; yields the dict of its result.

    The others refuse what it refuses: left alone they would bury its one line under errors of their own.
    """
    if not is_first_rank():
        artifact.check_resumable(config.output, command, inputs)
        yield {}
        return
    with artifact.create(config.output, "run", command, config, inputs, resume=True) as run:
        yield run.result


class Stage(Protocol):
    """What the settings of pretrain and sft share."""

    output: str
    embeddings: Embeddings
    embedding_learning_rate: float | None
    lora: LoraSettings
    max_minutes: float | None
    train: TrainingArguments


def train(stage: Stage, model_dir: Path, blocks: Blocks) -> dict[str, Any]:
    """Load the model, train it on the blocks, save and re-open the adapter; returns steps, tokens and mean loss.

    Raises:
        UserError: a rate or a budget that is not above 0, no such LoRA target, a save that does not reopen.
    """
    for name in ("embedding_learning_rate", "max_minutes"):
        value = getattr(stage, name)
        if value is not None and value <= 0:
            raise UserError(f"{name} {value}: it must be above 0")
    set_seed(stage.train.seed)
    if stage.train.deepspeed:
        import deepspeed

        # Before the model: ZeRO-3 shares its weights out while they load. On CPU nothing else would do it in time.
        deepspeed.init_distributed()
        # Over connections that stand already: a rank that is gone breaks them here, where the groups that DeepSpeed
        # makes next would wait for it for half an hour.
        torch.distributed.barrier()
    model = load_trainable(model_dir, stage.embeddings, stage.lora, compute_dtype(stage.train))
    say(describe(model))
    sizes = torch.from_numpy(token_bytes(load(model_dir, "--model").fast, model.config.vocab_size)).long()
    return BlockTrainer(model, stage, blocks, sizes, model_dir).run()


def compute_dtype(arguments: TrainingArguments) -> torch.dtype:
    """What the frozen weights are held in: the precision that training computes in."""
    return torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32


class BlockTrainer(Trainer):
    """Trainer over packed blocks that reports bits per byte and saves only what trains, in peft's layout."""

    optimizer: Any

    def __init__(
        self, model: TrainableModel, stage: Stage, blocks: Blocks, token_bytes: Tensor, base: Path
    ) -> None:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(Path(stage.output) / "logs")
        super().__init__(model=model, args=stage.train, train_dataset=blocks)
        self.model_accepts_loss_kwargs = True  # forward divides by num_items_in_batch itself
        self.stage, self.token_bytes, self.base_directory = stage, token_bytes, base
        self.planned_steps = 0
        # Tokens with a label and their bytes, since the last log.
        self.seen = torch.zeros(2, dtype=torch.float64)
        self.total_tokens = 0
        for quiet in (PrinterCallback, ProgressCallback):
            self.remove_callback(quiet)
        self.add_callback(StepCallback(self, stage.max_minutes))

    def run(self) -> dict[str, Any]:
        """Train to the end, from the last checkpoint where there is one, and save adapter and plots."""
        output = Path(self.args.output_dir)
        checkpoint = last_checkpoint(output)
        if checkpoint:
            say(f"resuming from {checkpoint}")
        outcome = self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        self.save_model()
        if is_first_rank():
            check_saved(output, self.model, self.base_directory, moved=True)
            plot_loss(output)
        losses = [line["loss"] for line in read_metrics(output / METRICS)]  # those before a resume included
        mean = fmean(losses) if losses else outcome.training_loss
        return {"steps": outcome.global_step, "tokens": self.total_tokens, "mean_loss": mean}

    # Trainer's own hooks from here on.

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        labels = [batch["labels"][..., 1:] for batch in batch_samples]
        learnt = [batch[batch != IGNORED] for batch in labels]
        counts = torch.tensor(
            [sum(ids.numel() for ids in learnt), sum(int(self.token_bytes[ids].sum()) for ids in learnt)],
            device=device,
        )
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts.unsqueeze(0)).sum(0)
        self.seen += counts.cpu()
        self.total_tokens += int(counts[0])
        return counts[0].clamp(min=1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add bits per byte and tokens to the Trainer's own line."""
        if "loss" in logs:
            tokens, size = self.seen.tolist()
            logs["bits_per_byte"] = logs["loss"] * tokens / max(size, 1) / math.log(2)
            logs["tokens"] = self.total_tokens
            self.seen.zero_()
        super().log(logs, start_time)

    def create_optimizer(self, model: Any = None) -> Any:
        """Two groups of parameters: LoRA, and embedding rows at their own learning rate without weight decay."""
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            lora: list[torch.nn.Parameter] = []
            rows: list[torch.nn.Parameter] = []
            for key, parameter in self.model.trainable().items():
                (lora if "lora_" in key else rows).append(parameter)
            groups: list[dict[str, Any]] = [{"params": lora, "weight_decay": self.args.weight_decay}]
            rate = self.stage.embedding_learning_rate
            rate = self.args.learning_rate if rate is None else rate
            groups.append({"params": rows, "weight_decay": 0.0, "lr": rate})
            self.optimizer = kind([group for group in groups if group["params"]], **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Under a time budget: warm-up and cosine over `planned_steps`, kept up to date by StepCallback."""
        if self.stage.max_minutes is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.planned_steps = num_training_steps

        def factor(step: int) -> float:
            warm = self.args.get_warmup_steps(self.planned_steps)
            if step < warm:
                return float((step + 1) / (warm + 1))
            return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - warm) / max(1, self.planned_steps - warm)))

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter and, for a checkpoint, re-open it; under ZeRO-3 every rank takes part in gathering."""
        parameters = self.model.trainable()
        folder = Path(output_dir or self.args.output_dir)
        with gathered(parameters.values()):
            if self.args.should_save:
                config, count = self.model.config, self.model.new_row_count
                save_adapter(folder, dict(parameters), self.stage.lora, self.base_directory, config, count)
        if self.args.should_save and _internal_call:
            # The first step of a warm-up has a learning rate of zero.
            moved = self.state.global_step > self.args.get_warmup_steps(self.state.max_steps)
            check_saved(folder, self.model, self.base_directory, moved)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # Trainer leaves the frozen base out only for a PeftModel, which this is not.
        self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        if not self.is_deepspeed_enabled or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        fits = optimizer_fits(Path(resume_from_checkpoint), True, self.args.world_size)
        if not fits:
            load_adapter(self.model, Path(resume_from_checkpoint))
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if fits:
            # Trainer would load strictly and miss the frozen parameters that were never saved.
            self.model_wrapped.load_checkpoint(resume_from_checkpoint, load_module_strict=False)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        folder = Path(checkpoint or "")
        if checkpoint is None or optimizer_fits(folder, self.is_deepspeed_enabled, self.args.world_size):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        say(
            f"{checkpoint}: saved by another number of ranks, another ZeRO stage, or without DeepSpeed. Weights, step "
            "and schedule go on, the optimiser's averages start afresh; keep ranks x batch x accumulation the same, "
            "or data repeats or is skipped"
        )
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_adapter(self.model, Path(resume_from_checkpoint))


def describe(model: TrainableModel) -> str:
    """One line that says what trains and how much of the whole it is."""
    sizes: dict[str, int] = {}
    for key, parameter in model.trainable().items():
        part = "LoRA" if "lora_" in key else "new rows" if "trainable_tokens" in key else "embeddings"
        sizes[part] = sizes.get(part, 0) + int(getattr(parameter, "ds_numel", parameter.numel()))
    whole = sum(int(getattr(p, "ds_numel", p.numel())) for p in model.parameters())
    return f"training {', '.join(f'{part} {size:,}' for part, size in sizes.items())} of {whole:,} parameters"
