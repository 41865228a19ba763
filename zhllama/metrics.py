"""What a run tells while it trains: a progress line with time left, `metrics.jsonl`, and `loss.png` at the end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from zhllama.page import line_plot
from zhllama.terminal import console, progress_bar, say

if TYPE_CHECKING:
    from zhllama.training import BlockTrainer

METRICS = "metrics.jsonl"


class StepCallback(TrainerCallback):
    """Progress with time left, `metrics.jsonl`, and the end of a time budget."""

    def __init__(self, trainer: BlockTrainer, max_minutes: float | None) -> None:
        self.trainer, self.max_minutes = trainer, max_minutes
        self.bar = progress_bar()
        self.begun = time.monotonic()
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
        """Under a time budget, plan the steps that are left from the speed so far; all ranks take the first one's.

        The first step compiles and warms up: neither budget nor speed counts it.
        """
        if self.max_minutes is None:
            return
        now, done = time.monotonic(), state.global_step - self.start_step
        if done == 1:
            self.warm, self.limit = now, state.max_steps
            return
        left = max(0.0, self.max_minutes * 60 - self.before - (now - self.warm))
        planned = state.global_step + int(left * (done - 1) / (now - self.warm))
        steps = torch.tensor(min(planned, self.limit), device=args.device)
        if args.world_size > 1:
            torch.distributed.broadcast(steps, 0)
        state.max_steps = self.trainer.planned_steps = int(steps)
        control.should_training_stop |= state.global_step >= state.max_steps

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
