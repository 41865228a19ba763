"""What happens beside the steps of a run: its progress line, its time budget, its mistakes, its looks at itself."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from zhllama.config import UserError
from zhllama.device import matmul_peak
from zhllama.model.trainable import TrainableModel
from zhllama.terminal import console, progress_bar, say
from zhllama.train.journal import Journal
from zhllama.train.metrics import METRICS, read_metrics
from zhllama.train.progress import Progress

OVERFLOWS = 20  # skipped steps in a row; a loss scale that starts too high settles in fewer


@dataclass
class RunCounts:
    """What the Trainer and its callbacks both count and change."""

    tokens: int = 0
    """Learnt by all ranks, before a resume too."""
    planned_steps: int = 0
    """Over which the schedule runs; a time budget moves it."""


# Functions instead of the Trainer, which imports this module.
@dataclass(frozen=True)
class Readings:
    """What the callbacks ask of a run; the functions are for all ranks to call."""

    counts: RunCounts
    flops_per_step: Callable[[], float]
    """Floating-point operations of one optimiser step on all ranks."""
    changes: Callable[[], dict[str, float]]
    """Norms of the change of each part since the base."""
    step_was_skipped: Callable[[], bool]
    """Whether the last step's gradients overflowed float16."""


class StepCallback(TrainerCallback):
    """Progress with time left, `metrics.jsonl`, the end of a time budget, and the end of a run that goes wrong."""

    def __init__(self, readings: Readings, max_minutes: float | None) -> None:
        self.readings, self.max_minutes = readings, max_minutes
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
        # Both clocks, of the whole and of the speed, run on from later.
        self.begun += seconds
        self.warm += seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        """Continue `metrics.jsonl` after the step that training resumes at."""
        self.begun, self.start_step = time.monotonic(), state.global_step
        # A warm-up's first step has a rate of 0 and moves nothing.
        self.first_look = self.start_step + 1 + (lr_scheduler.get_last_lr()[0] == 0)
        if not state.is_world_process_zero:
            return
        self.file = Path(args.output_dir) / METRICS
        # What came after the checkpoint comes again.
        kept = [line for line in read_metrics(self.file) if line["step"] <= state.global_step]
        if kept:
            self.before, self.readings.counts.tokens = kept[-1]["seconds"], kept[-1]["tokens"]
            self.characters = kept[-1]["characters"]
        # Replaced in one step: a kill while writing would lose what hours have measured.
        part = self.file.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        part.replace(self.file)
        peak = matmul_peak(torch.bfloat16 if args.bf16 else torch.float32, args.device) * args.world_size
        self.ideal = self.readings.flops_per_step() / peak
        self.bar.start()
        self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step, note="")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at what moved, count overflows, plan the steps of a time budget; all ranks alike."""
        self.skipped = self.skipped + 1 if self.readings.step_was_skipped() else 0
        if self.skipped >= OVERFLOWS:
            raise UserError(
                f"step {state.global_step}: gradients overflow float16 {OVERFLOWS} steps in a row; "
                "use --train.bf16 true, or lower train.learning_rate"
            )
        if self.max_minutes is not None:
            self._plan_steps(args, state, control)
        # A step that overflowed has moved nothing: the look waits for the next one.
        if state.global_step == self.first_look:
            self.first_look += self.skipped > 0
        look = state.global_step == self.first_look
        if look or control.should_save:
            changes = self.readings.changes()
            if look:
                self._look(state, changes)
            if not self.start_step or control.should_save:  # a resumed run's lines are those of a whole one
                self.changes = changes

    def _look(self, state: Any, changes: dict[str, float]) -> None:
        """Say what the first step has moved; LoRA must have, or without it anything."""
        # LoRA's product moves in the first step, with B; of the rows none may occur in it.
        if not changes.get("LoRA", max(changes.values())):
            raise UserError(f"step {state.global_step} moved nothing; raise train.learning_rate")
        norms = ", ".join(f"{part} {norm:.3g}" for part, norm in changes.items())
        if state.is_world_process_zero:
            say(f"norm of the change after step {state.global_step}: {norms}")

    def _plan_steps(self, args: Any, state: Any, control: Any) -> None:
        """Plan the steps that are left from the speed so far; all ranks take the first one's."""
        assert self.max_minutes is not None
        now, done = time.monotonic(), state.global_step - self.start_step
        # The first step compiles and warms up: neither budget nor speed counts it. Steps are only ever taken
        # away, as `limit` is what the recipe asks for.
        if done == 1:
            self.warm, self.limit = now, state.max_steps
            return
        left = max(0.0, self.max_minutes * 60 - self.before - (now - self.warm))
        planned = state.global_step + int(left * (done - 1) / (now - self.warm))
        # Clocks differ, and a rank that stopped a step before the others would leave them waiting for it.
        steps = torch.tensor(min(planned, self.limit), device=args.device)
        if args.world_size > 1:
            torch.distributed.broadcast(steps, 0)
        state.max_steps = self.readings.counts.planned_steps = int(steps)
        # The Trainer's own callback stands first and has compared this step with the plan before.
        control.should_training_stop |= state.global_step >= state.max_steps

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """One line per logged step."""
        # Looks, and the Trainer's last line of all, have no loss of a step.
        if not logs or "loss" not in logs:
            return
        norm = logs.get("grad_norm")
        # Logged before it is saved: no checkpoint holds such a step. float16's scaler skips it itself.
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
        # Rates of tokens and characters are the whole run's, the share of the peak is this launch's.
        note = (
            f"loss {line['loss']:.3f}  {line['bits_per_byte']:.3f} bits/byte  "
            f"{logs['tokens'] / seconds:,.0f} tokens/s  {self.characters / seconds:,.0f} characters/s  "
            f"{self.ideal * done / (seconds - self.before):.0%} of the matmul peak"
        )
        self.bar.update(self.task, completed=state.global_step, total=state.max_steps, note=note)
        # A log file gets about ten lines instead of a bar.
        if not console.is_terminal and (state.global_step % max(1, state.max_steps // 10) == 0):
            rest = (seconds - self.before) / done * (state.max_steps - state.global_step)
            say(f"step {state.global_step}/{state.max_steps}  {note}  {rest / 60:.1f} min left")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the terminal clean."""
        self.bar.stop()


class LookCallback(TrainerCallback):
    """Looks on the first rank alone, but for ZeRO-3, where no rank has a model without the others."""

    def __init__(
        self,
        progress: Progress,
        model: TrainableModel,
        output: Path,
        clock: StepCallback,
        log: Callable[[dict[str, float]], None],
    ) -> None:
        self.progress, self.model, self.clock, self.log = progress, model, clock, log
        self.journal = Journal(output)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget the looks after the step that training resumes at; look before the first step."""
        self.journal.go_on(state.global_step, write=state.is_world_process_zero)
        if state.global_step == 0:
            self._look(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look every so many steps, and after the last one in time for its line in `metrics.jsonl`."""
        every = self.progress.settings.every
        # A time budget has been looked at: StepCallback stands before this one.
        last = control.should_training_stop or state.global_step >= state.max_steps
        if last or (every and state.global_step % every == 0):
            self._look(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look where the last step did not, see whether answers end, and write the page."""
        self._look(state, control)
        if self._takes_part(state):
            self.progress.check_endings(self.model)
        if state.is_world_process_zero:
            self.progress.result |= self.journal.last_losses()
            if self.journal.lines or self.progress.result:
                self.journal.page(self.progress.result)

    def _takes_part(self, state: Any) -> bool:
        # The other ranks wait at their next collective; under ZeRO-3 each layer is made whole by all of them.
        return bool(state.is_world_process_zero or is_deepspeed_zero3_enabled())

    def _look(self, state: Any, control: Any) -> None:
        if not self._takes_part(state) or self.journal.has(state.global_step):
            return
        begun = time.monotonic()
        found = self.progress.look(self.model)
        if not found:
            return
        self.journal.add(state.global_step, found, write=state.is_world_process_zero)
        losses = found.get("held_out", {})
        if losses:
            # The look before the first step has no line of its own.
            self.clock.held_out = losses if state.global_step else {}
            wanted = control.should_log  # which `log` takes back, and the step's own line would be missing
            # TensorBoard and its like show what begins with eval_ as a group of its own.
            self.log({f"eval_{name}_loss": loss for name, loss in losses.items()})
            control.should_log = wanted
        # Looks count neither in the speed of training nor in its budget.
        self.clock.pause(time.monotonic() - begun)
