"""The demo's steps: real commands, each with one output directory, skipped where that is finished."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from zhllama.artifact import read_record
from zhllama.config import UserError
from zhllama.device import free_port
from zhllama.recipes.find import SHIPPED, find_file
from zhllama.terminal import say

RANKS = 2


@dataclass(frozen=True)
class Budget:
    """How much of everything: minutes of training, pieces, bytes of held-out text, tokens of an answer."""

    pretrain_minutes: float
    sft_minutes: float
    pieces: int
    held_out_bytes: int
    answer_tokens: int
    block_size: int


FULL = Budget(
    pretrain_minutes=5.5,
    sft_minutes=1.5,
    pieces=24_000,  # three times fewer tokens for Chinese news
    held_out_bytes=10_000,
    answer_tokens=60,
    block_size=256,
)
FAST = Budget(
    pretrain_minutes=0.08,
    sft_minutes=0.05,
    pieces=6_000,
    held_out_bytes=1_200,
    answer_tokens=12,
    block_size=256,
)


@dataclass(frozen=True)
class Step:
    """One command and the directory it writes; `seconds` is what it took on the machine of benchmarks/results."""

    number: int
    title: str
    arguments: tuple[str, ...]
    output: Path
    seconds: float
    launched: bool = False

    def command(self) -> list[str]:
        """The process to start: `zhllama ...`, or the deepspeed launcher with two ranks on CPU."""
        scripts = Path(sys.executable).parent
        if not self.launched:
            return [str(scripts / "zhllama"), *self.arguments, "--output", str(self.output)]
        script, *arguments = self.arguments
        # A free port: the default one may be another run's on the same machine.
        launcher = [str(scripts / "deepspeed"), "--log_level", "warning", "--master_port", str(free_port())]
        if os.environ.get("DS_ACCELERATOR") == "cpu":
            launcher += ["--num_accelerators", str(RANKS)]
        return [*launcher, str(find_file(script)), *arguments, "--output", str(self.output)]


@dataclass
class Watch:
    """Peak memory of a process and all its children, sampled: resident bytes, shared pages once per process."""

    peak: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def sample(self, process: psutil.Process) -> None:
        """Look every half second until told to stop."""
        # A peak shorter than that may be missed.
        while not self.stop.wait(0.5):
            total = 0
            for one in (process, *process.children(recursive=True)):
                try:
                    total += one.memory_info().rss
                # It ended between being listed and being asked.
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)


def demo_steps(home: Path, budget: Budget) -> list[Step]:
    """Every step of the data-flow table in order, the control arm and the measurements among them."""
    block = str(budget.block_size)
    minutes = budget.pretrain_minutes
    pretrain = ("pretrain/run.py", "--config", "pretrain/tiny.yaml", "--max-minutes", str(minutes))
    texts = [
        f"--text={name}={home / 'held-out' / name}.jsonl"
        for name in ("news", "reviews", "english", "packages")
    ]
    measure = (*texts, "--max-bytes", str(budget.held_out_bytes))
    questions = str(find_file("sft/demo_questions.jsonl"))
    answer = ("--input", questions, "--max-new-tokens", str(budget.answer_tokens))
    sft_data = f'[{{"file": "{find_file("sft/demo_instructions.jsonl")}"}}]'
    at = {name: str(home / name) for name in OUTPUTS}
    # By the rates of the machine of benchmarks/results: 450 bytes measured or 6 tokens answered a second.
    evaluate, answers = budget.held_out_bytes / 450, 5 + budget.answer_tokens / 6  # seconds

    def step(
        number: int, title: str, output: str, seconds: float, *arguments: str, launched: bool = False
    ) -> Step:
        return Step(number, title, arguments, home / output, seconds, launched)

    return [
        step(1, "clean the Chinese text", "corpus-zh", 4, "clean", "--corpus", str(home / "raw" / "chinese")),
        step(1, "clean the English text", "corpus-en", 2, "clean", "--corpus", str(home / "raw" / "english")),
        step(2, "train a Chinese tokenizer", "chinese", 9, "train-tokenizer", "--corpus", at["corpus-zh"],
             "--base", at["base"], "--size", str(budget.pieces)),
        step(3, "merge it into the base's", "tokenizer", 8, "merge-tokenizer", "--base", at["base"],
             "--chinese", at["chinese"]),
        step(3, "compare the tokenizers", "tokenizer-report", 18, "tokenizer-report", "--tokenizer", at["base"],
             "--tokenizer", at["tokenizer"], *texts),
        step(4, "grow the embeddings", "model", 4, "resize-embeddings", "--model", at["base"],
             "--tokenizer", at["tokenizer"], "--measure", "false"),  # step 10 does, on more text
        step(5, "pack for the grown model", "tokens", 4, "pack", "--corpus", at["corpus-zh"],
             "--replay", at["corpus-en"], "--model", at["model"], "--block-size", block),
        step(5, "pack for the base (control arm)", "tokens-base", 4, "pack", "--corpus", at["corpus-zh"],
             "--replay", at["corpus-en"], "--model", at["base"], "--block-size", block),
        step(6, "pretrain, vocabulary extended", "pretrain", 60 * minutes + 18, *pretrain, "--model", at["model"],
             "--tokens", at["tokens"], launched=True),
        step(6, "pretrain, base vocabulary (control arm)", "pretrain-base", 60 * minutes + 18, *pretrain,
             "--model", at["base"], "--tokens", at["tokens-base"], "--embeddings", "none", launched=True),
        step(7, "merge the adapter", "merged", 7, "merge-adapter", "--adapter", at["pretrain"]),
        step(8, "tune on instructions", "sft", 60 * budget.sft_minutes + 13, "sft", "--config", "sft/tiny.yaml",
             "--model", at["merged"], "--data", sft_data, "--max-minutes", str(budget.sft_minutes)),
        step(9, "merge the adapter", "final", 7, "merge-adapter", "--adapter", at["sft"]),
        step(10, "measure the base", "measured-base", 7 + 1.5 * evaluate, "evaluate", "--model", at["base"], *measure),
        step(10, "measure after resizing", "measured-resized", 7 + evaluate, "evaluate", "--model", at["model"],
             *measure),
        step(10, "measure after pretraining", "measured-pretrained", 7 + evaluate, "evaluate",
             "--adapter", at["pretrain"], *measure),
        step(10, "measure after merging", "measured-merged", 7 + evaluate, "evaluate", "--model", at["merged"],
             *measure),
        step(10, "measure after SFT", "measured-final", 7 + evaluate, "evaluate", "--model", at["final"], *measure),
        step(10, "measure the control arm", "measured-control", 7 + 1.5 * evaluate, "evaluate",
             "--adapter", at["pretrain-base"], *measure),
        step(10, "answers of the base", "answers-base", answers, "chat", "--model", at["base"], *answer),
        step(10, "answers of the final model", "answers-final", answers, "chat", "--model", at["final"],
             *answer),
        step(10, "export the final model", "export", 2, "export", "--model", at["final"]),
    ]  # fmt: skip


OUTPUTS = (
    "base",
    "corpus-zh",
    "corpus-en",
    "chinese",
    "tokenizer",
    "model",
    "tokens",
    "tokens-base",
    "pretrain",
    "pretrain-base",
    "merged",
    "sft",
    "final",
)


def run_steps(steps: list[Step], log: Path) -> dict[str, tuple[float, float]]:
    """Run what is not finished; output directory -> (seconds, peak GB), for what ran now.

    Raises:
        UserError: a step failed; its own message stands above, and running again goes on from there.
    """
    measured: dict[str, tuple[float, float]] = {}
    begun = time.monotonic()
    # Finished is what its own record says, so that a killed demo goes on.
    todo = [step for step in steps if "result" not in read_record(step.output)]
    for place, step in enumerate(todo):
        spent = time.monotonic() - begun
        planned = sum(one.seconds for one in todo[:place])
        # How this machine compares with the one the estimates come from, once a minute of evidence is there.
        pace = spent / planned if planned > 60 else 1.0
        left = pace * sum(one.seconds for one in todo[place:])
        say(f"\n[{step.number}/10] {step.title}  ({_clock(spent)} so far, about {_clock(left)} left)")
        say("$ " + " ".join(_short(part) for part in step.command()))
        measured[step.output.name] = _run(step, log)
    return measured


def _run(step: Step, log: Path) -> tuple[float, float]:
    start = time.monotonic()
    watch = Watch()
    with subprocess.Popen(step.command()) as process:
        sampler = threading.Thread(target=watch.sample, args=(psutil.Process(process.pid),), daemon=True)
        sampler.start()
        try:
            code = process.wait()
        finally:
            watch.stop.set()
    # Only the record says whether a directory is whole.
    if code or "result" not in read_record(step.output):
        raise UserError(
            f"step {step.number} ({step.title}) failed with exit code {code}; run the demo again to go on"
        )
    seconds, peak = time.monotonic() - start, watch.peak / 1e9
    note(log, step.output.name, seconds, peak)
    return seconds, peak


def note(log: Path, name: str, seconds: float, peak: float) -> None:
    """Add what a step took, in seconds and GB, to the log that the report reads."""
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"{name}\t{seconds:.1f}\t{peak:.2f}\n")


def _short(part: str) -> str:
    """A word of a command line as a person would type it: scripts by name, paths from here."""
    if Path(part).parent == Path(sys.executable).parent:
        return Path(part).name
    return part.replace(f"{Path.cwd()}/", "").replace(f"{SHIPPED}/", "")


def _clock(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"
