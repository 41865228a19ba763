"""The only place that builds a transformers Trainer: blocks in, adapter and checkpoints out."""

from __future__ import annotations

import math
import os
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from zhllama.config import UserError
from zhllama.model.adapter import (
    LoraSettings,
    gathered_state,
    load_adapter,
    parameter_count,
    part_of,
    save_adapter,
)
from zhllama.model.change import norms_of_change
from zhllama.model.directory import ModelDirectory
from zhllama.model.fast.loss import IGNORED
from zhllama.model.operations import flops_of
from zhllama.model.run_directory import RunDirectory
from zhllama.model.trainable import TrainableModel
from zhllama.pack.blocks import Blocks
from zhllama.terminal import say
from zhllama.train.callbacks import LookCallback, Readings, RunCounts, StepCallback
from zhllama.train.checkpoint import (
    check_saved,
    check_space,
    last_checkpoint,
    optimizer_fits,
    remove_others,
    seal,
)
from zhllama.train.metrics import METRICS, LossTally, plot_loss, read_metrics
from zhllama.train.progress import Progress
from zhllama.train.settings import TrainingSettings


def is_first_rank() -> bool:
    """Whether this process writes and talks."""
    return os.environ.get("RANK", "0") == "0"


class BlockTrainer(Trainer):
    """Trainer over packed blocks that reports bits per byte and saves only what trains, in peft's layout."""

    optimizer: Any

    def __init__(
        self,
        model: TrainableModel,
        settings: TrainingSettings,
        base: ModelDirectory,
        start: RunDirectory | None,
        blocks: Blocks,
        progress: Progress | None = None,
    ) -> None:
        # transformers 5 takes this folder from the environment alone.
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(Path(settings.output) / "logs")
        super().__init__(model=model, args=settings.train, train_dataset=blocks)
        self.model_accepts_loss_kwargs = True  # forward divides by num_items_in_batch itself
        self.settings, self.method, self.base, self.start = settings, settings.parts().method, base, start
        # The Trainer's own hook would scale the noise by the length of a block, not of a document in it.
        model.noise, self.neftune_noise_alpha = settings.train.neftune_noise_alpha, None
        self.counts = RunCounts()
        self.tally = LossTally(base.tokenizer, model.config.vocab_size, self.args.device)
        model.on_loss = self.tally.add
        # StepCallback's line has what theirs lack: bits per byte, the time left of a budget.
        for quiet in (PrinterCallback, ProgressCallback):
            self.remove_callback(quiet)
        readings = Readings(self.counts, self.flops_per_step, self.changes, self.step_was_skipped)
        clock = StepCallback(readings, settings.max_minutes)
        # Before the looks, which ask whether it has ended the run.
        self.add_callback(clock)
        if progress is not None:
            self.add_callback(LookCallback(progress, model, Path(settings.output), clock, self.log))

    def run(self) -> dict[str, Any]:
        """Train to the end, from the last checkpoint where there is one, and save adapter and plots."""
        output = Path(self.args.output_dir)
        checkpoint = last_checkpoint(output)
        if checkpoint:
            say(f"resuming from {checkpoint}")
        self._wait()  # all ranks have looked
        if is_first_rank():
            remove_others(output, limit=None)
            self._check_space()
        outcome = self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        # A budget may end a run after its last checkpoint.
        self.save_model()
        if is_first_rank():
            check_saved(output, self.model, self.base, True, self.start)
            plot_loss(output)
        losses = [line["loss"] for line in read_metrics(output / METRICS)]  # those before a resume included
        mean = fmean(losses) if losses else outcome.training_loss
        return {"steps": outcome.global_step, "tokens": self.counts.tokens, "mean_loss": mean}

    # Trainer's own hooks from here on.

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        # Of all micro-batches and ranks of a step, so that each token weighs the same. The Trainer then
        # multiplies the loss by the number of ranks, over which gradients are averaged.
        learnt = sum(int((batch["labels"][..., 1:] != IGNORED).sum()) for batch in batch_samples)
        count = torch.tensor(learnt, device=device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(count)
        self.counts.tokens += int(count)
        return count.clamp(min=1)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's, but a loss that is no number ends the run before it reaches the weights."""
        # The Trainer itself would log the average of the losses before, and go on.
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # All ranks stop, or none: the others would wait for one that is gone.
        here = torch.isfinite(loss.detach()).logical_not()
        anywhere = here.to(torch.int32)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(anywhere)
        if anywhere:
            raise UserError(self._keep_batch(inputs, bool(here)))
        return loss

    def _keep_batch(self, inputs: dict[str, Any], mine: bool) -> str:
        """Save a batch whose loss is no number beside the run; the message for the user."""
        from safetensors.torch import save_file

        output = Path(self.args.output_dir)
        if mine:
            batch = {key: value.contiguous() for key, value in inputs.items() if isinstance(value, Tensor)}
            save_file(batch, output / f"bad-batch-rank{self.args.process_index}.safetensors")
        self._wait()
        files = ", ".join(str(file) for file in sorted(output.glob("bad-batch-rank*.safetensors")))
        return (
            f"step {self.state.global_step + 1}: the loss is not a finite number; the batch is in {files}; lower "
            "train.learning_rate, or use bf16 for fp16, and start again: the run goes on from its last checkpoint"
        )

    def _wait(self) -> None:
        """Until every rank is here."""
        if self.args.world_size > 1:
            torch.distributed.barrier()

    def _check_space(self) -> None:
        count = sum(map(parameter_count, self.model.trainable().values()))
        check_space(Path(self.args.output_dir), count)

    def flops_per_step(self) -> float:
        """Floating-point operations of one optimiser step on all ranks, nothing recomputed."""
        block = int(self.train_dataset.ids.shape[1])
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return float(flops_of(self.model, block) * block * batch)

    def changes(self) -> dict[str, float]:
        """Norms of the change of each part since the base; under ZeRO-3 for all ranks to call."""
        scale = self.method.scale if isinstance(self.method, LoraSettings) else 0.0
        return norms_of_change(self.model, self.base, scale)

    def step_was_skipped(self) -> bool:
        """Whether the last step's gradients overflowed float16."""
        return bool(self.accelerator.optimizer_step_was_skipped)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add bits per byte and tokens to the Trainer's own line."""
        # A look's line has none: it comes from the first rank alone, and counting takes all ranks.
        if "loss" in logs:
            logs |= self.tally.take(self.args.world_size)
            logs["tokens"] = self.counts.tokens
        super().log(logs, start_time)

    def create_optimizer(self, model: Any = None) -> Any:
        """Groups of parameters: matrices with weight decay, vectors without, embedding rows at their own rate."""
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rate = self.settings.embedding_learning_rate
            rate = self.args.learning_rate if rate is None else rate
            # AdamW decays rows that a batch does not hold, at a gradient of 0: rare ones would fade.
            groups: dict[str, dict[str, Any]] = {
                "matrices": {"params": [], "weight_decay": self.args.weight_decay},
                "vectors": {"params": [], "weight_decay": 0.0},
                "rows": {"params": [], "weight_decay": 0.0, "lr": rate},
            }
            for key, parameter in self.model.trainable().items():
                # ZeRO-3 leaves the parameter itself empty.
                shape = getattr(parameter, "ds_shape", parameter.shape)
                kind_of = "matrices" if len(shape) > 1 else "vectors"
                groups["rows" if part_of(key) in ("new rows", "embeddings") else kind_of]["params"].append(
                    parameter
                )
            self.optimizer = kind([group for group in groups.values() if group["params"]], **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Under a time budget: warm-up and cosine over `planned_steps`, kept up to date by StepCallback."""
        if self.settings.max_minutes is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.counts.planned_steps = num_training_steps

        def factor(step: int) -> float:
            warm = self.args.get_warmup_steps(self.counts.planned_steps)
            # Never 0, unlike transformers': a budget may hold few steps.
            if step < warm:
                return float((step + 1) / (warm + 1))
            return 0.5 + 0.5 * math.cos(
                math.pi * min(1.0, (step - warm) / max(1, self.counts.planned_steps - warm))
            )

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter and, for a checkpoint, re-open it."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save and _internal_call:
            self._check_space()
        # On every rank: ZeRO-3 makes a parameter whole by all of them.
        state = gathered_state(self.model.trainable(), self.args.should_save)
        if self.args.should_save:
            config, count = self.model.config, self.model.new_row_count
            save_adapter(folder, state, self.method, self.base, config, count)
        if self.args.should_save and _internal_call:
            # The first step of a warm-up has a learning rate of zero.
            moved = self.state.global_step > self.args.get_warmup_steps(self.state.max_steps)
            check_saved(folder, self.model, self.base, moved, self.start)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's, sealed when every rank has written, and old ones deleted only then."""
        # The Trainer would delete old ones before the new one is sealed: a kill in between would leave none.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        self._wait()
        if self.args.should_save:
            output = Path(self.args.output_dir)
            seal(output / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            remove_others(output, limit)

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
        # Now, as DeepSpeed copies parameters into its float32 masters when it starts.
        if not fits:
            load_adapter(self.model.trainable(), Path(resume_from_checkpoint))
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
        # A schedule sets rates in its next step only.
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    # The Trainer's would look for the files of a whole model.
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_adapter(self.model.trainable(), Path(resume_from_checkpoint))
