"""What extending the vocabulary brings at equal training time, against three controls.

python benchmarks/controls.py [MINUTES] [FOLDER]     10 minutes for each arm; FOLDER is that of a finished `make demo`

SmolLM2-135M on People's Daily and reviews; every arm trains for as long on the same machine, and its checkpoints are
measured on held-out news and English. Table and plot go to results/controls.md and results/controls.png.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from table import RESULTS, machine, write_table

from zhllama.device import default_dtype
from zhllama.evaluate import measure
from zhllama.metrics import read_metrics
from zhllama.model.adapter import adapter_parts, load_adapter
from zhllama.model.trainable import load_trainable
from zhllama.page import line_plot
from zhllama.tokenizer.load import load

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
POINTS = 6
BYTES = 40_000


def command(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "zhllama", *map(str, words)], check=True, cwd=ROOT)


def held_out(directory: Path, adapter: Path | None, texts: Path) -> list[float]:
    """Bits per byte of news and of English."""
    dtype = default_dtype()
    if adapter is None:
        model = load_trainable(directory, "none", None, dtype)
    else:
        embeddings, lora, full = adapter_parts(adapter)
        model = load_trainable(directory, embeddings, lora, dtype, full=full)
        load_adapter(model.trainable(), adapter)
    tokenizer = load(directory)
    return [
        measure(model, tokenizer, texts / f"{name}.jsonl", 256, BYTES)["bits per byte"]
        for name in ("news", "english")
    ]


def arm(name: str, minutes: float, demo: Path, folder: Path) -> list[list[float]]:
    """Minutes, tokens, and bits per byte of news and English, at the start and at each checkpoint."""
    how, flags = ARMS[name]
    model, tokens = (demo / "base", demo / "tokens-base") if how is None else (folder / how, demo / "tokens")
    if not model.is_dir():
        command("resize-embeddings", "--model", demo / "base", "--tokenizer", demo / "tokenizer", "--output", model,
                "--init.input", how, "--measure", "false")  # fmt: skip
    output = folder / name.replace(" ", "-").replace("'", "").replace(":", "")
    speed = folder / f"{output.name}-speed"
    common = ["--model", model, "--tokens", tokens, *RECIPE, *flags]
    command("pretrain", *common, "--output", speed, "--train.max-steps", 12, "--train.save-strategy", "no")
    times = [line["seconds"] for line in read_metrics(speed / "metrics.jsonl")]
    steps = int(minutes * 60 / ((times[-1] - times[3]) / 8))
    command(
        "pretrain",
        *common,
        "--output",
        output,
        "--max-minutes",
        minutes,
        "--train.save-steps",
        max(1, steps // POINTS),
    )
    lines = {line["step"]: line for line in read_metrics(output / "metrics.jsonl")}
    points = [[0.0, 0.0, *held_out(model, None, demo / "held-out")]]
    for checkpoint in sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name[11:])):
        line = lines[int(checkpoint.name[11:])]
        points.append([line["seconds"] / 60, line["tokens"], *held_out(model, checkpoint, demo / "held-out")])
        print(name, points[-1], flush=True)
    return points


def main(minutes: float, demo: Path) -> None:
    torch.set_num_threads(2)
    folder = demo.parent / f"controls-{minutes:g}"
    folder.mkdir(exist_ok=True)
    curves: dict[str, list[list[float]]] = {}
    for name in ARMS:
        kept = folder / f"{list(ARMS).index(name)}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(arm(name, minutes, demo, folder)), encoding="utf-8")
        curves[name] = json.loads(kept.read_text(encoding="utf-8"))
    rows = [
        [name, f"{at:.1f}", f"{tokens:,.0f}", f"{news:.3f}", f"{english:.3f}"]
        for name, points in curves.items()
        for at, tokens, news, english in points
    ]
    note = (
        f"{machine()}. SmolLM2-135M, {minutes:g} minutes of training for each arm (1 process, 2 x 256 tokens a step, "
        "schedule over the whole time), the first "
        f"{BYTES:,} bytes of held-out news and of the Python reference. Chinese-LLaMA's recipe: random rows, "
        "embedding and output matrix trained in full, one rate of 2e-4, LoRA rank 8; trained by our trainer."
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
