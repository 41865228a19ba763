"""`zhllama demo`: prepare, run every step, print one table, write one page."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from zhllama import artifact
from zhllama.demo import material
from zhllama.demo.report import write_report
from zhllama.demo.steps import FAST, FULL, demo_steps, note, run_steps
from zhllama.terminal import say


@dataclass
class DemoConfig:
    """Run the whole pipeline on SmolLM2-135M, People's Daily and reviews; run again, it goes on where it stopped."""

    output: str = "build/demo"
    """Folder for everything (about 2.5 GB); --fast adds -fast to its name."""
    fast: bool = False
    """Take less training, fewer pieces and less held-out text: under 4 minutes instead of 25."""


def demo(config: DemoConfig) -> None:
    """Steps 1 to 10 of the data-flow table through the real commands, and an unextended control arm.

    Raises:
        UserError: a missing package, a step that failed.
    """
    import torch

    if not torch.cuda.is_available():
        # For the steps, which are processes of their own.
        os.environ["DS_ACCELERATOR"] = "cpu"
    begun = time.monotonic()
    budget = FAST if config.fast else FULL
    home = Path(config.output + ("-fast" if config.fast else "")).resolve()
    home.mkdir(parents=True, exist_ok=True)
    log = home / "steps.tsv"
    if not (home / "held-out" / "packages.jsonl").is_file():
        material.write_texts(home / "raw", home / "held-out")
    if "result" not in artifact.read_record(home / "base"):
        say("unpacking SmolLM2-135M-Instruct from its GGUF")
        with artifact.create(home / "base", "model", "demo", config, {}) as run:
            material.write_base(run.path)
        # Linux counts in kilobytes. This step alone runs in the demo's own process.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        note(log, "base", time.monotonic() - begun, peak)
    run_steps(demo_steps(home, budget), log)
    write_report(home, log, time.monotonic() - begun)
