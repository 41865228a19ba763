"""`pack` against `datasets.map` and grouping, on the same text and cores; and what it costs in memory and padding.

python benchmarks/pack.py MODEL [MODEL ...]      prints the tables and writes benchmarks/results/pack.md

MODEL is a model directory; of it config.json and the tokenizer are read. The peer does what Chinese-LLaMA-Alpaca's
pretraining script does: `load_dataset("text")`, `map` of the fast tokenizer, `map(group_texts)`, two processes,
nothing cached. Each measurement is a process of its own, start included; the two ways take turns on two cores.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import sys
import tempfile
from pathlib import Path

from table import machine, write_table
from watch import watched

ROUNDS, BLOCK, COPIES = 3, 512, 8
PADDING_SIZES = (512, 1024, 2048, 4096)


def varied_news(copies: int) -> list[str]:
    """People's Daily so many times over; in the copies half of the sentences are drawn from elsewhere."""
    from zhllama.demo.material import news

    articles = news()
    cut = re.compile("[^。！？]+[。！？]?")
    sentences = [sentence for article in articles for sentence in cut.findall(article)]
    source = random.Random(0)
    texts = list(articles)
    for _ in range(copies - 1):
        for article in articles:
            lines = [
                "".join(s if source.random() < 0.5 else source.choice(sentences) for s in cut.findall(line))
                for line in article.split("\n")
            ]
            texts.append("\n".join(line.replace("\n", "") for line in lines))
    return texts


def peer(model: str, text: str, folder: str) -> None:
    """Tokenise and group as Chinese-LLaMA-Alpaca does."""
    from itertools import chain

    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model)

    def tokenize(examples):  # type: ignore[no-untyped-def]
        return tokenizer(examples["text"])

    def group_texts(examples):  # type: ignore[no-untyped-def]
        joined = {key: list(chain(*examples[key])) for key in examples}
        total = len(joined["input_ids"])
        if total >= BLOCK:
            total = total // BLOCK * BLOCK
        result = {key: [ids[at : at + BLOCK] for at in range(0, total, BLOCK)] for key, ids in joined.items()}
        result["labels"] = result["input_ids"].copy()
        return result

    settings = {"batched": True, "num_proc": 2, "load_from_cache_file": False}
    raw = datasets.load_dataset("text", data_files=text, cache_dir=folder)
    tokens = raw.map(tokenize, remove_columns="text", **settings)
    tokens.map(group_texts, **settings)


def measured(command: list[str]) -> tuple[float, float, float]:
    """Seconds, seconds of CPU and peak megabytes that no file stands behind, of a process and its children."""
    before = os.times()
    seconds, peak, _ = watched(command, lambda memory: memory.rss - memory.shared)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used, peak


def speed(models: list[str], folder: Path) -> list[list[object]]:
    texts = varied_news(COPIES)
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (folder / "news.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "news.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    size = sum(len(text.encode()) for text in texts) / 1e6
    table: list[list[object]] = []
    for model in models:
        taken: dict[str, list[tuple[float, float, float]]] = {"datasets.map": [], "pack": []}
        for number in range(ROUNDS):
            for way, found in taken.items():
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    flags = [
                        "--corpus",
                        str(folder / "news.jsonl"),
                        "--block-size",
                        str(BLOCK),
                        "--threads",
                        "2",
                    ]
                    ours = ["-m", "zhllama", "pack", "--model", model, *flags, "--output", f"{place}/tokens"]
                    theirs = [__file__, "peer", model, str(folder / "news.txt"), place]
                    found.append(measured(ours if way == "pack" else theirs))
                    print(Path(model).name, number, way, *(f"{value:.1f}" for value in found[-1]), flush=True)
        medians = {
            way: [statistics.median(column) for column in zip(*found, strict=True)]
            for way, found in taken.items()
        }
        plain = medians["datasets.map"]
        for way, (seconds, used, peak) in medians.items():
            table.append(
                [
                    f"{Path(model).name}, {size:.0f} MB",
                    way,
                    f"{size / seconds:.2f}",
                    f"{plain[0] / seconds:.1f}",
                    f"{size / used:.2f}",
                    f"{plain[1] / used:.1f}",
                    f"{peak:.0f}",
                ]
            )  # fmt: skip
    return table


def padding(model: str) -> list[list[object]]:
    """What best fit wastes, and how many short documents each way cuts, on each article once."""
    import numpy as np

    from zhllama.demo.material import news
    from zhllama.pack.encode import encode_documents
    from zhllama.pack.fit import best_fit, fit_documents
    from zhllama.tokenizer.load import load

    texts = list(dict.fromkeys(news()))
    lengths = np.asarray([n for _, sizes in encode_documents(texts, load(model), 2) for n in sizes])
    rows: list[list[object]] = []
    for size in PADDING_SIZES:
        fitted = fit_documents(lengths, size)
        rest = lengths % size
        alone = best_fit(rest[rest > 0], size).max() + 1 + int((lengths // size).sum())
        total = int(lengths.sum())
        ends = np.cumsum(lengths)
        cut = ((ends - lengths) // size != (ends - 1) // size)[lengths <= size].sum()
        pieces = int((lengths // size + (rest > 0)).sum())
        rows.append(
            [
                size,
                f"{len(lengths):,}",
                f"{int((lengths <= size).sum()):,}",
                f"{int(cut):,}",
                f"{len(fitted.lengths) - pieces:,}",
                f"{1 - total / (alone * size):.2%}",
                f"{1 - total / (len(fitted) * size):.2%}",
            ]
        )
    return rows


def main(models: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        table = speed(models, Path(name))
    header = ["tokenizer, text", "way", "MB/s", "ratio", "MB per CPU second", "ratio", "peak MB"]
    note = (
        f"{machine()}. People's Daily, {COPIES} times with half of the sentences of the copies exchanged; "
        f"blocks of {BLOCK}; whole processes, start and imports included; medians of {ROUNDS} rounds, the two taking "
        "turns. Peak is memory that no file stands behind, of all processes together."
    )
    write_table("pack", header, table, note)
    header = [
        "block",
        "documents",
        "not longer",
        "of them cut by concatenating",
        "cuts of ours",
        "padding if none is cut",
        "padding",
    ]
    note = f"Each article of People's Daily once, the tokenizer of {Path(models[0]).name}."
    write_table("pack", header, padding(models[0]), note, append=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peer"]:
        peer(*sys.argv[2:])
    else:
        main(sys.argv[1:])
