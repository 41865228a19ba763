"""The only place that builds a transformers Trainer: blocks in, adapter and checkpoints out."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from zhllama import artifact
from zhllama.config import UserError
from zhllama.model.trainable import (
    ADAPTER_WEIGHTS,
    LoraSettings,
    TrainableModel,
    load_adapter,
    save_adapter,
)
from zhllama.pack import IGNORED, Blocks
from zhllama.page import line_plot
from zhllama.terminal import console, progress_bar, say

METRICS = "metrics.jsonl"
MEASURED_STEPS = 4  # a time budget is turned into steps after this many; the first two only warm up


def machine_defaults() -> dict[str, Any]:
    """Defaults of TrainingArguments that only the machine can tell, and ours where the field's differ."""
    cuda = torch.cuda.is_available()
    return {
        "train.bf16": torch.cuda.is_bf16_supported() if cuda else cpu_prefers_bf16(),
        "train.use_cpu": not cuda,
        "train.report_to": ["tensorboard"],
        "train.logging_steps": 1,
        "train.dataloader_pin_memory": cuda,
        "train.save_total_limit": 2,
    }


def cpu_prefers_bf16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32.

    With AMX it does, and AMD's avx512_bf16 does too. Intel's avx512_bf16 alone does not: on Sapphire Rapids
    without AMX a bfloat16 matrix product takes 1.9 times as long as in float32 (benchmarks/precision.py).
    """
    capabilities = torch.cpu.get_capabilities()
    intel = "Intel" in str(capabilities.get("cpu_name", ""))
    return bool(capabilities.get("amx_bf16") or (capabilities.get("avx512_bf16") and not intel))


def check_arguments(train: Any) -> None:
    """Refuse what TrainingArguments would fail on late, and make one process a world of one for DeepSpeed.

    Raises:
        UserError: no such DeepSpeed file, no length of training, a limit that cannot be.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if isinstance(train.deepspeed, str):
        if not Path(train.deepspeed).is_file():
            raise UserError(f"train.deepspeed {train.deepspeed}: no such file")
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29511")
    if train.max_steps <= 0 and train.num_train_epochs <= 0:
        raise UserError("train.max_steps or train.num_train_epochs: one of them must be above 0")


def is_first_rank() -> bool:
    """Whether this process writes and talks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def run_directory(config: Any, command: str, inputs: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """The run directory as `artifact.create` makes it, on the first rank; yields the dict of its result."""
    if not is_first_rank():
        yield {}
        return
    with artifact.create(config.output, "run", command, config, inputs, resume=True) as run:
        yield run.result


class BlockTrainer(Trainer):
    """Trainer over packed blocks that reports bits per byte and saves only what trains, in peft's layout."""

    def __init__(
        self,
        model: TrainableModel,
        args: TrainingArguments,
        blocks: Blocks,
        token_bytes: Tensor,
        base: Path,
        lora: LoraSettings,
        max_minutes: float | None = None,
    ) -> None:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(Path(args.output_dir) / "logs")
        super().__init__(model=model, args=args, train_dataset=blocks)
        self.model_accepts_loss_kwargs = True  # forward divides by num_items_in_batch itself
        self.token_bytes, self.base_directory, self.lora = token_bytes, base, lora
        self.max_minutes = max_minutes
        self.planned_steps = 0
        self.seen = torch.zeros(
            2, dtype=torch.float64
        )  # tokens with a label and their bytes, since the last log
        self.total_tokens = 0
        for quiet in (PrinterCallback, ProgressCallback):
            self.remove_callback(quiet)
        self.add_callback(StepCallback(self))

    def run(self) -> dict[str, Any]:
        """Train to the end, from the last checkpoint where there is one, and save adapter and plots."""
        checkpoint = get_last_checkpoint(self.args.output_dir)
        if checkpoint:
            say(f"resuming from {checkpoint}")
        outcome = self.train(resume_from_checkpoint=checkpoint)
        self.save_model(self.args.output_dir)
        if is_first_rank():
            plot_loss(Path(self.args.output_dir))
        return {"steps": outcome.global_step, "tokens": self.total_tokens, "mean_loss": outcome.training_loss}

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

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Under a time budget: warm-up and cosine over `planned_steps`, which is set once speed is known."""
        if self.max_minutes is None:
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
        """Write the adapter; under ZeRO-3 every rank takes part in gathering it."""
        parameters = self.model.trainable()
        parted = [p for p in parameters.values() if hasattr(p, "ds_id")]
        gathered = nullcontext()
        if parted:
            import deepspeed

            gathered = deepspeed.zero.GatheredParameters(parted)
        with gathered:
            if self.args.should_save:
                save_adapter(
                    Path(output_dir or self.args.output_dir),
                    dict(parameters),
                    self.lora,
                    self.base_directory,
                    self.model.config,
                    self.model.new_row_count,
                )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # Trainer leaves the frozen base out only for a PeftModel, which this is not.
        self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        if not self.is_deepspeed_enabled or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # Trainer would load strictly and miss the frozen parameters that were never saved.
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        loaded, _ = self.model_wrapped.load_checkpoint(resume_from_checkpoint, load_module_strict=False)
        if loaded is None:
            raise UserError(
                f"{resume_from_checkpoint}: no DeepSpeed state for this number of ranks; delete it"
            )
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_adapter(self.model, Path(resume_from_checkpoint))


class StepCallback(TrainerCallback):
    """Progress with time left, `metrics.jsonl`, and the end of a time budget."""

    def __init__(self, trainer: BlockTrainer) -> None:
        self.trainer = trainer
        self.bar = progress_bar()
        self.begun = self.measured = time.monotonic()
        self.before = 0.0
        self.start_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Continue `metrics.jsonl` after the step that training resumes at."""
        self.begun, self.start_step = time.monotonic(), state.global_step
        if not state.is_world_process_zero:
            return
        self.file = Path(args.output_dir) / METRICS
        kept = [line for line in read_metrics(self.file) if line["step"] <= state.global_step]
        self.before = kept[-1]["seconds"] if kept else 0.0
        self.trainer.total_tokens = kept[-1]["tokens"] if kept else 0
        self.file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self.bar.start()
        self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step, note="")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Turn minutes into steps once a step's time is known; all ranks take the first one's answer."""
        done = state.global_step - self.start_step
        if self.trainer.max_minutes is None:
            return
        if done == MEASURED_STEPS // 2:
            self.measured = time.monotonic()
        if done == MEASURED_STEPS:
            now = time.monotonic()
            per_step = (now - self.measured) / (MEASURED_STEPS - MEASURED_STEPS // 2)
            left = max(0.0, self.trainer.max_minutes * 60 - self.before - (now - self.begun))
            steps = torch.tensor(state.global_step + max(1, int(left / per_step)), device=args.device)
            if args.world_size > 1:
                torch.distributed.broadcast(steps, 0)
            state.max_steps = self.trainer.planned_steps = min(int(steps), state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """One line per logged step."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        seconds = self.before + time.monotonic() - self.begun
        line = {
            "step": state.global_step,
            "loss": logs["loss"],
            "bits_per_byte": round(logs["bits_per_byte"], 5),
            "tokens": logs["tokens"],
            "seconds": round(seconds, 2),
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
        }
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        note = f"loss {line['loss']:.3f}  {line['bits_per_byte']:.3f} bits/byte  {logs['tokens'] / seconds:,.0f} tokens/s"
        self.bar.update(self.task, completed=state.global_step, total=state.max_steps, note=note)
        if not console.is_terminal and (state.global_step % max(1, state.max_steps // 10) == 0):
            rest = (
                (seconds - self.before)
                / (state.global_step - self.start_step)
                * (state.max_steps - state.global_step)
            )
            say(f"step {state.global_step}/{state.max_steps}  {note}  {rest / 60:.1f} min left")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the terminal clean."""
        self.bar.stop()


def describe(model: TrainableModel) -> str:
    """One line that says what trains and how much of the whole it is."""
    sizes: dict[str, int] = {}
    for key, parameter in model.trainable().items():
        part = "LoRA" if "lora_" in key else "new rows" if "trainable_tokens" in key else "embeddings"
        sizes[part] = sizes.get(part, 0) + int(getattr(parameter, "ds_numel", parameter.numel()))
    whole = sum(int(getattr(p, "ds_numel", p.numel())) for p in model.parameters())
    return f"training {', '.join(f'{part} {size:,}' for part, size in sizes.items())} of {whole:,} parameters"


def finish(model: TrainableModel, output: Path) -> None:
    """Re-open the saved adapter: every trainable tensor is there, whole, finite, and LoRA has moved.

    Raises:
        UserError: a bad save, which must not pass for a finished run.
    """
    from safetensors.torch import load_file

    state = load_file(output / ADAPTER_WEIGHTS)
    for key in model.trainable():
        tensor = state.get(key)
        if tensor is None or tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{output / ADAPTER_WEIGHTS}: {key} is missing, empty or not finite; the save went wrong"
            )
        if "lora_B" in key and not bool(tensor.any()):
            raise UserError(
                f"{output / ADAPTER_WEIGHTS}: {key} never moved from zero; training had no effect"
            )


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; none where there is no file."""
    return (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    )


def plot_loss(output: Path) -> None:
    """Write `loss.png`, bits per byte over tokens, beside `metrics.jsonl`."""
    lines = read_metrics(output / METRICS)
    curve = ([line["tokens"] for line in lines], [line["bits_per_byte"] for line in lines])
    line_plot({"training": curve}, "tokens", "bits per byte", output.name).savefig(
        output / "loss.png", dpi=120
    )
