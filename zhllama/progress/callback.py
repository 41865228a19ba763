"""When a run looks at itself: before the first step, every so many, and after the last."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from zhllama.metrics import StepCallback
from zhllama.progress.journal import Journal
from zhllama.progress.look import Progress

if TYPE_CHECKING:
    from zhllama.trainer import BlockTrainer


class LookCallback(TrainerCallback):
    """Looks on the first rank alone, but for ZeRO-3, where no rank has a model without the others.

    The time of a look counts neither in the speed of training nor in its budget.
    """

    def __init__(self, trainer: BlockTrainer, progress: Progress, clock: StepCallback) -> None:
        self.trainer, self.progress, self.clock = trainer, progress, clock
        self.journal = Journal(Path(trainer.args.output_dir))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget the looks after the step that training resumes at; look before the first step."""
        self.journal.go_on(state.global_step, write=state.is_world_process_zero)
        if state.global_step == 0:
            self._look(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look every so many steps, and after the last one in time for its line in `metrics.jsonl`."""
        every = self.progress.settings.every
        last = control.should_training_stop or state.global_step >= state.max_steps
        if last or (every and state.global_step % every == 0):
            self._look(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look where the last step did not, see whether answers end, and write the page."""
        self._look(state, control)
        if self._takes_part(state):
            self.progress.check_endings(self.trainer.model)
        if state.is_world_process_zero:
            self.progress.result |= self.journal.last_losses()
            if self.journal.lines or self.progress.result:
                self.journal.page(self.progress.result)

    def _takes_part(self, state: Any) -> bool:
        return bool(state.is_world_process_zero or is_deepspeed_zero3_enabled())

    def _look(self, state: Any, control: Any) -> None:
        if not self._takes_part(state) or self.journal.has(state.global_step):
            return
        begun = time.monotonic()
        found = self.progress.look(self.trainer.model)
        if not found:
            return
        self.journal.add(state.global_step, found, write=state.is_world_process_zero)
        losses = found.get("held_out", {})
        if losses:
            self.clock.held_out = losses if state.global_step else {}
            wanted = control.should_log  # which `log` takes back, and the step's own line would be missing
            self.trainer.log({f"eval_{name}_loss": loss for name, loss in losses.items()})
            control.should_log = wanted
        self.clock.pause(time.monotonic() - begun)
