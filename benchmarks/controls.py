"""What extending the vocabulary brings at equal training time, against three controls.

python benchmarks/controls.py [MINUTES] [FOLDER]     10 minutes for each arm; FOLDER is that of a finished `make demo`

SmolLM2-135M on People's Daily and reviews; every arm trains for as long on the same machine, and its checkpoints are
measured on held-out news and English. Table and plot go to results/controls.md and results/controls.png.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from table import RESULTS, machine, write_table

from zhllama.artifact import read_record
from zhllama.device import default_dtype
from zhllama.measure.evaluate import measure
from zhllama.model.adapter import Parts, load_adapter, saved_parts
from zhllama.model.directory import ModelDirectory
from zhllama.model.trainable import load_trainable
from zhllama.page import line_plot
from zhllama.tokenizer.load import load
from zhllama.train.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ["--config", str(ROOT / "pretrain" / "tiny.yaml"), "--train.deepspeed", "null", "--train.report_to", "none",
          "--train.per-device-train-batch-size", "2", "--train.save-total-limit", "1000"]  # fmt: skip
# name -> (initialisation of the rows, None for the base's own vocabulary; flags)
ARMS: dict[str, tuple[str | None, list[str]]] = {
    "extended: sub-token means": ("mean", []),
    "no extension": (None, ["--embeddings", "none"]),
    "extended: random rows": ("random", []),
    "Chinese-LLaMA's recipe": ("random", ["--embeddings", "all", "--embedding-learning-rate", "2e-4",
                                          "--train.learning-rate", "2e-4", "--lora.rank", "8", "--lora.alpha", "32"]),
}  # fmt: skip
POINTS = 5
TURNS, WARM = 2, 3
BYTES = 15_000


def command(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "zhllama", *map(str, words)], check=True, cwd=ROOT)


def held_out(directory: Path, adapter: Path | None, texts: Path) -> list[float]:
    """Bits per byte of news and of English."""
    parts = Parts() if adapter is None else saved_parts(adapter)
    model = load_trainable(ModelDirectory.open(directory), parts, default_dtype())
    if adapter is not None:
        load_adapter(model.trainable(), adapter)
    tokenizer = load(directory)
    return [
        measure(model, tokenizer, texts / f"{name}.jsonl", 256, BYTES)["bits per byte"]
        for name in ("news", "english")
    ]


def begin(name: str, demo: Path, folder: Path) -> tuple[Path, list[object]]:
    """The model that an arm starts from, and its flags."""
    how, flags = ARMS[name]
    model, tokens = (demo / "base", demo / "tokens-base") if how is None else (folder / how, demo / "tokens")
    if not model.is_dir():
        command("resize-embeddings", "--model", demo / "base", "--tokenizer", demo / "tokenizer", "--output", model,
                "--init.input", how, "--measure", "false")  # fmt: skip
    return model, ["--model", model, "--tokens", tokens, *RECIPE, *flags]


def speeds(demo: Path, folder: Path) -> dict[str, float]:
    """Seconds per step of each arm: medians over runs that take turns, so that a busy machine is busy for all.

    Arms that differ in the rows they start from alone do the same work, and share their runs.
    """
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    for turn in range(TURNS):
        for place, (name, seconds) in enumerate(found.items()):
            output = folder / f"speed-{place}-{turn}"
            command("pretrain", *begin(name, demo, folder)[1], "--output", output,
                    "--train.max-steps", WARM + 9, "--train.save-strategy", "no")  # fmt: skip
            times = [line["seconds"] for line in read_metrics(output / "metrics.jsonl")][WARM:]
            seconds += [after - before for before, after in itertools.pairwise(times)]

    def same_work(name: str, other: str) -> bool:
        (how, flags), (how_other, flags_other) = ARMS[name], ARMS[other]
        return (how is None) == (how_other is None) and flags == flags_other

    return {
        name: statistics.median(
            second for other, seconds in found.items() if same_work(name, other) for second in seconds
        )
        for name in ARMS
    }


def arm(name: str, minutes: float, second: float, demo: Path, folder: Path) -> list[list[float]]:
    """Minutes, tokens, and bits per byte of news and English, at the start and at each checkpoint."""
    model, flags = begin(name, demo, folder)
    output = folder / f"run-{list(ARMS).index(name)}"
    steps = int(60 * minutes / second)
    if "result" not in read_record(output):
        command("pretrain", *flags, "--output", output, "--train.max-steps", steps,
                "--train.save-steps", max(1, steps // POINTS))  # fmt: skip
    lines = {line["step"]: line for line in read_metrics(output / "metrics.jsonl")}
    points = [[0.0, 0.0, *held_out(model, None, demo / "held-out")]]
    for checkpoint in sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name[11:])):
        step = int(checkpoint.name[11:])
        points.append(
            [step * second / 60, lines[step]["tokens"], *held_out(model, checkpoint, demo / "held-out")]
        )
        print(name, points[-1], flush=True)
    return points


def pays(curves: dict[str, list[list[float]]]) -> str:
    """When the extended model's news are first, and stay, below those without extension."""
    ours, plain = (curves[name] for name in list(ARMS)[:2])
    times, bits = [point[0] for point in plain], [point[2] for point in plain]
    ahead = [point[2] < numpy.interp(point[0], times, bits) for point in ours]
    first = next((i for i in range(len(ours)) if all(ahead[i:])), None)
    if first is None:
        return (
            f"the extended model is not ahead of the one without extension within {ours[-1][0]:.1f} minutes"
        )
    return f"the extended model is ahead of the one without extension from minute {ours[first][0]:.1f} on"


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What an earlier, interrupted run has found, or made now and kept."""
    if not file.is_file():
        file.write_text(json.dumps(make()), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def main(minutes: float, demo: Path) -> None:
    torch.set_num_threads(2)
    folder = demo.parent / f"controls-{minutes:g}"
    folder.mkdir(exist_ok=True)
    second = kept(folder / "speeds.json", lambda: speeds(demo, folder))
    curves: dict[str, list[list[float]]] = {
        name: kept(folder / f"{place}.json", partial(arm, name, minutes, second[name], demo, folder))
        for place, name in enumerate(ARMS)
    }
    rows = [
        [name, f"{at:.1f}", f"{tokens:,.0f}", f"{news:.3f}", f"{english:.3f}"]
        for name, points in curves.items()
        for at, tokens, news, english in points
    ]
    each = ", ".join(f"{name} {seconds:.2f}" for name, seconds in second.items())
    note = (
        f"{machine()}. SmolLM2-135M, {minutes:g} minutes of training for each arm (1 process, 2 x 256 tokens a step, "
        f"schedule over the whole time; minutes are steps times the seconds of a step, medians of {TURNS} runs that "
        f"take turns: {each}), the first {BYTES:,} bytes of held-out news and of the Python reference. "
        "Chinese-LLaMA's recipe: random rows, embedding and output matrix trained in full, one rate of 2e-4, "
        f"LoRA rank 8; trained by our trainer. On news {pays(curves)}."
    )
    header = ["arm", "minutes", "tokens", "news, bits per byte", "English, bits per byte"]
    write_table("controls", header, rows, note)
    lines = {name: ([p[0] for p in points], [p[2] for p in points]) for name, points in curves.items()}
    figure = line_plot(
        lines, "minutes of training", "bits per byte, held-out news", "The same time for each arm"
    )
    figure.savefig(RESULTS / "controls.png", dpi=110)


if __name__ == "__main__":
    main(
        float(sys.argv[1]) if len(sys.argv) > 1 else 10,
        Path(sys.argv[2] if len(sys.argv) > 2 else ROOT / "build" / "demo"),
    )
