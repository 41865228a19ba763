"""What a run tells while it trains: a progress line with time left, `metrics.jsonl`, and `loss.png` at the end."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from zhllama.config import UserError
from zhllama.device import matmul_peak
from zhllama.page import line_plot
from zhllama.terminal import console, progress_bar, say
from zhllama.tokenizer.load import Loaded, token_counts

if TYPE_CHECKING:
    from zhllama.trainer import BlockTrainer

METRICS = "metrics.jsonl"
OVERFLOWS = 20  # skipped steps in a row; a loss scale that starts too high settles in fewer


class Tally:
    """Losses, tokens, bytes and characters of what was trained on since the last look, Chinese and other apart."""

    def __init__(self, tokenizer: Loaded, rows: int, device: torch.device) -> None:
        self.counts = torch.from_numpy(token_counts(tokenizer, rows)).long().to(device)
        self.totals = torch.zeros(2, 4, dtype=torch.float64, device=device)

    def add(self, labels: Tensor, nats: Tensor) -> None:
        """Labels, (tokens,) int64, and the loss of each."""
        counts = self.counts[labels]
        values = torch.stack(
            [nats.double(), torch.ones_like(nats).double(), *counts[:, :2].T.double()], dim=1
        )
        self.totals.index_add_(0, counts[:, 2], values)

    def take(self, ranks: int) -> dict[str, float]:
        """Bits per byte of all, of Chinese and of other tokens, and characters; every rank must ask, for all of them."""
        if ranks > 1:
            torch.distributed.all_reduce(self.totals)
        other, chinese = self.totals.tolist()
        self.totals.zero_()
        both = [sum(pair) for pair in zip(other, chinese, strict=True)]
        found = {"bits_per_byte": both, "bits_per_byte_chinese": chinese, "bits_per_byte_other": other}
        bits = {name: row[0] / math.log(2) / row[2] for name, row in found.items() if row[2]}
        return {**bits, "characters": both[3]}


class StepCallback(TrainerCallback):
    """Progress with time left, `metrics.jsonl`, the end of a time budget, and the end of a run that goes wrong."""

    def __init__(self, trainer: BlockTrainer, max_minutes: float | None) -> None:
        self.trainer, self.max_minutes = trainer, max_minutes
        self.bar = progress_bar()
        self.begun = self.warm = time.monotonic()
        self.before = 0.0
        self.start_step = 0
        self.characters = 0
        self.skipped = 0
        self.ideal = 0.0  # seconds of a step if it were nothing but matrix products
        self.changes: dict[str, float] = {}
        self.held_out: dict[str, float] = {}

    def pause(self, seconds: float) -> None:
        """Leave so many seconds out of the time of training."""
        self.begun += seconds
        self.warm += seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Continue `metrics.jsonl` after the step that training resumes at."""
        self.begun, self.start_step = time.monotonic(), state.global_step
        # A warm-up's first step has a rate of 0 and moves nothing.
        self.first_look = self.start_step + 1 + (self.trainer.lr_scheduler.get_last_lr()[0] == 0)
        if not state.is_world_process_zero:
            return
        self.file = Path(args.output_dir) / METRICS
        kept = [line for line in read_metrics(self.file) if line["step"] <= state.global_step]
        if kept:
            self.before, self.trainer.total_tokens = kept[-1]["seconds"], kept[-1]["tokens"]
            self.characters = kept[-1]["characters"]
        part = self.file.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        part.replace(self.file)
        peak = matmul_peak(torch.bfloat16 if args.bf16 else torch.float32, args.device) * args.world_size
        self.ideal = self.trainer.flops_per_step() / peak
        self.bar.start()
        self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step, note="")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at what moved, count overflows, plan the steps of a time budget; all ranks alike."""
        self.skipped = self.skipped + 1 if self.trainer.accelerator.optimizer_step_was_skipped else 0
        if self.skipped >= OVERFLOWS:
            raise UserError(
                f"step {state.global_step}: gradients overflow float16 {OVERFLOWS} steps in a row; "
                "use --train.bf16 true, or lower train.learning_rate"
            )
        if self.max_minutes is not None:
            self._plan(args, state, control)
        if state.global_step == self.first_look:
            self.first_look += self.skipped > 0
        look = state.global_step == self.first_look
        if look or control.should_save:
            changes = self.trainer.changes()
            if look:
                self._look(state, changes)
            if not self.start_step or control.should_save:  # a resumed run's lines are those of a whole one
                self.changes = changes

    def _look(self, state: Any, changes: dict[str, float]) -> None:
        """Say what the first step has moved; LoRA must have, or without it anything."""
        if not changes.get("LoRA", max(changes.values())):
            raise UserError(f"step {state.global_step} moved nothing; raise train.learning_rate")
        norms = ", ".join(f"{part} {norm:.3g}" for part, norm in changes.items())
        if state.is_world_process_zero:
            say(f"norm of the change after step {state.global_step}: {norms}")

    def _plan(self, args: Any, state: Any, control: Any) -> None:
        """Plan the steps that are left from the speed so far; all ranks take the first one's.

        The first step compiles and warms up: neither budget nor speed counts it.
        """
        assert self.max_minutes is not None
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
        if not logs or "loss" not in logs:
            return
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(norm) and not args.fp16:
            raise UserError(
                f"step {state.global_step}: the gradient's norm is {norm}; lower train.learning_rate and start again, "
                "the run goes on from its last checkpoint"
            )
        if not state.is_world_process_zero:
            return
        seconds = self.before + time.monotonic() - self.begun
        self.characters += int(logs["characters"])
        bits = {name: round(value, 5) for name, value in logs.items() if name.startswith("bits_per_byte")}
        line = {
            "step": state.global_step,
            "loss": logs["loss"],
            **bits,
            "tokens": logs["tokens"],
            "characters": self.characters,
            "seconds": round(seconds, 2),
            "learning_rate": logs["learning_rate"],
            "grad_norm": norm,
        }
        if self.changes:
            line["norm_of_change"], self.changes = self.changes, {}
        if self.held_out:
            line["held_out"], self.held_out = self.held_out, {}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        done = state.global_step - self.start_step
        note = (
            f"loss {line['loss']:.3f}  {line['bits_per_byte']:.3f} bits/byte  "
            f"{logs['tokens'] / seconds:,.0f} tokens/s  {self.characters / seconds:,.0f} characters/s  "
            f"{self.ideal * done / (seconds - self.before):.0%} of the matmul peak"
        )
        self.bar.update(self.task, completed=state.global_step, total=state.max_steps, note=note)
        if not console.is_terminal and (state.global_step % max(1, state.max_steps // 10) == 0):
            rest = (seconds - self.before) / done * (state.max_steps - state.global_step)
            say(f"step {state.global_step}/{state.max_steps}  {note}  {rest / 60:.1f} min left")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the terminal clean."""
        self.bar.stop()


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; none where there is no file, and not the last where a kill cut it short."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def plot_loss(output: Path) -> None:
    """Write `loss.png`, bits per byte over tokens, beside `metrics.jsonl`."""
    lines = read_metrics(output / METRICS)
    curves = {}
    for name, key in (("all", ""), ("Chinese", "_chinese"), ("other", "_other")):
        with_it = [line for line in lines if f"bits_per_byte{key}" in line]
        tokens, bits = ([line[k] for line in with_it] for k in ("tokens", f"bits_per_byte{key}"))
        if with_it:
            curves[name] = (tokens, bits)
    line_plot(curves, "tokens", "bits per byte", output.name).savefig(output / "loss.png", dpi=120)
