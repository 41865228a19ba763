"""Which start of new rows is best after 50 steps: `probe-init` on SmolLM2-135M and People's Daily.

python benchmarks/probe.py [tied] [untied]        both without a word; writes benchmarks/results/probe.md

Needs the packages of `make demo`. Repeated paragraphs of the text are removed before anything is trained.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from safetensors.torch import load_file, save_file
from table import machine, write_table

from zhllama.artifact import write_json
from zhllama.demo.material import news, write_base
from zhllama.model.directory import INPUT_KEY, OUTPUT_KEY
from zhllama.model.probe import ProbeConfig, probe_init
from zhllama.model.resize import Initialisation
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


def untie() -> Path:
    """The base with its one matrix written twice, so that input and output rows can start apart."""
    directory = shutil.copytree(BASE, WORK / "untied")
    tensors = load_file(BASE / "model.safetensors")
    tensors[OUTPUT_KEY] = tensors[INPUT_KEY].clone()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    write_json(directory / "config.json", config | {"tie_word_embeddings": False})
    return directory


def rows_of(
    base: Path, tokenizer: Path, corpus: Path, output: Path, **choices: list[Initialisation]
) -> list[list[str]]:
    begun = time.perf_counter()
    config = ProbeConfig(str(base), str(tokenizer), str(corpus), str(output), steps=STEPS, block_size=BLOCK,
                         batch_size=BATCH, held_out_bytes=HELD_OUT, measure_every=25, **choices)  # fmt: skip
    probe_init(config)
    seconds = time.perf_counter() - begun
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    rows = []
    for run in report["runs"]:
        values = (run["curve"]["0"], run["curve"]["25"], run["final"], run["english"])
        rows.append(
            [" / ".join(filter(None, (run["input"], run["output"]))), *(f"{value:.3f}" for value in values)]
        )
    base_row = ["base, as it is", *(f"{report['base'][name]:.3f}" for name in ("bits per byte", "english"))]
    return [*rows, [*base_row[:2], "", "", base_row[2]], ["seconds, all", f"{seconds:.0f}", "", "", ""]]


def main(arms: list[str]) -> None:
    corpus, tokenizer = prepare()
    how = (
        f"Bits per byte of {HELD_OUT:,} held-out bytes; {PIECES:,} pieces of People's Daily; {STEPS} steps of "
        f"{BATCH} x {BLOCK} tokens at a rate of {ProbeConfig.learning_rate:g}, only the new rows train; one seed, on a "
        "busy machine."
    )
    header = ["rows start as", "step 0", "step 25", f"step {STEPS}", "English after"]
    if "tied" in arms:
        rows = rows_of(BASE, tokenizer, corpus, WORK / "tied-probe")
        write_table("probe", header, rows, f"{machine()}. SmolLM2-135M-Instruct, tied. {how}")
    if "untied" in arms:
        choices: dict[str, list[Initialisation]] = {
            name: ["mean", "length"] for name in ("init_input", "init_output")
        }
        rows = rows_of(untie(), tokenizer, corpus, WORK / "untied-probe", **choices)
        note = f"{machine()}. The same with its matrix written twice (input / output). {how}"
        write_table("probe", header, rows, note, append=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["tied", "untied"])
