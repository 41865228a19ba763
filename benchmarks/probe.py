"""Which start of new rows is best after 50 steps: `probe-init` on SmolLM2-135M and People's Daily.

python benchmarks/probe.py [SEED ...]        seed 0 without a word; writes benchmarks/results/probe.md

Needs the packages of `make demo`. Repeated paragraphs of the text are removed before anything is trained.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from table import machine, write_table

from zhllama.demo.material import news, write_base
from zhllama.model.probe import ProbeConfig, probe_init
from zhllama.tokenizer.merge import MergeTokenizerConfig, merge_tokenizer
from zhllama.tokenizer.train import TrainTokenizerConfig, train_tokenizer

BUILD = Path(__file__).resolve().parents[1] / "build"
BASE, WORK = BUILD / "smollm2", BUILD / "probe"
PIECES, STEPS, BLOCK, BATCH, HELD_OUT = 17_953, 50, 128, 2, 5_000


def prepare() -> tuple[Path, Path]:
    """The text and a tokenizer trained on it and merged into the base's."""
    if not BASE.is_dir():
        BASE.mkdir(parents=True)
        write_base(BASE)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    corpus, chinese, tokenizer = WORK / "news.txt", WORK / "chinese", WORK / "tokenizer"
    corpus.write_text("\n\n".join(dict.fromkeys(news())), encoding="utf-8")
    train_tokenizer(TrainTokenizerConfig([str(corpus)], str(chinese), base=str(BASE), size=PIECES, threads=1))
    merge_tokenizer(MergeTokenizerConfig(str(BASE), str(chinese), str(tokenizer)))
    return corpus, tokenizer


def main(seeds: list[int]) -> None:
    corpus, tokenizer = prepare()
    rows = []
    for seed in seeds:
        output = WORK / f"seed-{seed}"
        begun = time.perf_counter()
        settings = {
            "steps": STEPS,
            "block_size": BLOCK,
            "batch_size": BATCH,
            "held_out_bytes": HELD_OUT,
            "measure_every": 25,
        }
        probe_init(ProbeConfig(str(BASE), str(tokenizer), str(corpus), str(output), **settings, seed=seed))
        seconds = time.perf_counter() - begun
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
        for place, run in enumerate(report["runs"], 1):
            values = [
                run["curve"]["0"],
                run["curve"]["25"],
                run["final"],
                run["english"],
            ]
            rows.append([seed, place, run["input"], *(f"{value:.3f}" for value in values), ""])
        base = report["base"]
        rows.append([seed, "", "base, as it is", f"{base['bits per byte']:.3f}", "", "",
                     f"{base['english']:.3f}", f"{seconds:.0f}"])  # fmt: skip
    write_table(
        "probe",
        [
            "seed",
            "rank",
            "rows start as",
            "step 0",
            "step 25",
            f"step {STEPS}",
            "English after",
            "seconds, all",
        ],
        rows,
        f"{machine()}. Bits per byte of {HELD_OUT:,} held-out bytes; SmolLM2-135M-Instruct (tied) with {PIECES:,} pieces "
        f"of People's Daily; {STEPS} steps of {BATCH} x {BLOCK} tokens, only the new rows train.",
    )


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [0])
