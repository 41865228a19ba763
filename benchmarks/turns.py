"""Ways of training measured together: all are loaded, and take turns step by step.

So a machine that is slow for a while is slow for each of them, and ratios of single rounds mean something.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def take_turns() -> None:
    """Every step of any Trainer waits for a line of input; what it took is printed."""
    from transformers.trainer_callback import CallbackHandler

    begin, end = CallbackHandler.on_step_begin, CallbackHandler.on_step_end
    begun = 0.0

    def on_step_begin(*given: Any) -> Any:
        nonlocal begun
        control = begin(*given)
        print("\nREADY", flush=True)
        sys.stdin.readline()
        begun = time.perf_counter()
        return control

    def on_step_end(*given: Any) -> Any:
        print(f"\nSTEP {time.perf_counter() - begun}", flush=True)
        return end(*given)

    CallbackHandler.on_step_begin, CallbackHandler.on_step_end = on_step_begin, on_step_end


def done(result: Any) -> None:
    """What a way found, for `Run.result`."""
    print(f"\nDONE {json.dumps(result)}", flush=True)


class Run:
    """A process of a way of training, which trains a step when it is told to.

    Attributes:
        steps: seconds of each step.
        result: what the process gave to `done` at its end.
    """

    def __init__(self, command: list[str], errors: Path) -> None:
        self.errors = errors
        with self.errors.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, "WANDB_MODE": "off"},
            )  # fmt: skip
        self.steps: list[float] = []
        self.result: Any = None
        self.wait()

    def wait(self) -> None:
        """Until it is ready for another step, or has ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("STEP "):
                self.steps.append(float(line.split()[1]))
            elif line.startswith("DONE "):
                self.result = json.loads(line.removeprefix("DONE "))
            elif line == "READY\n":
                return
        if self.process.wait() or self.result is None:
            raise SystemExit(self.errors.read_text(encoding="utf-8")[-3000:])

    def step(self) -> None:
        """Let it train one, if any is left."""
        assert self.process.stdin is not None
        if self.result is not None:
            return
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.wait()
