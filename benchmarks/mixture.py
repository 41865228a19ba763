"""Building a mixture against `datasets.map` with the same template, on the same rows and cores.

python benchmarks/mixture.py DATA MODEL [MODEL ...]      prints the table and writes benchmarks/results/mixture.md

DATA is the folder of alpaca_zh_demo.json, alpaca_en_demo.json and pCLUE_train_9.json; of MODEL the tokenizer and its
chat template are read. Each way is a process of its own and starts from one file of `messages`; what is measured begins
after its imports. The peers are `datasets.map`, nothing cached: row by row as TRL 1.16 prepares a conversation (the
template twice, prompt and whole), in the one process that it takes by default and in two; and in batches as
Chinese-LLaMA-Alpaca does (prompts and replies apart), in two. Ours is measured with near-duplicates looked for, which
no peer does, and without. No way drops a row: the default similarity of 0.8 would drop some of the copies that make the
file large, so 0.9999 is searched for, the same work.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from table import machine, write_table

ROUNDS, COPIES, LIMIT = 3, 8, 1024
FILES = ("alpaca_zh_demo.json", "alpaca_en_demo.json", "pCLUE_train_9.json")
BY_ROW, BY_ROW_IN_TWO, BATCHED = (
    "map, row by row",
    "map, row by row, 2 processes",
    "map, batched, 2 processes",
)
WAYS = (BY_ROW, BY_ROW_IN_TWO, BATCHED, "ours, near-duplicates too", "ours, exact duplicates")


def write_rows(data: Path, file: Path) -> int:
    """Every conversation COPIES times as `messages`; copies are numbered, and half of their sentences are others' own."""
    from zhllama.conversation.read import read_conversations

    talks = [row.messages for name in FILES for row in read_conversations(data / name).rows]
    cut = re.compile(r"[^。！？.!?\n]+[。！？.!?\n]*")
    sentences = [part for talk in talks for message in talk for part in cut.findall(message["content"])]
    drawn = random.Random(0)

    def varied(text: str, number: int) -> str:
        parts = (part if drawn.random() < 0.5 else drawn.choice(sentences) for part in cut.findall(text))
        return f"{number}. {''.join(parts)}"

    with file.open("w", encoding="utf-8") as stream:
        for copy in range(COPIES):
            for place, talk in enumerate(talks):
                number = copy * len(talks) + place
                messages = [
                    m | {"content": varied(m["content"], number) if copy else m["content"]} for m in talk
                ]
                stream.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return COPIES * len(talks)


def peer(tokenizer: Any, file: str, folder: str, way: str) -> None:
    """Ids and the mask of the reply by `datasets.map`."""
    import datasets

    datasets.disable_progress_bars()

    def by_row(row):  # type: ignore[no-untyped-def]
        prompt = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template(row["messages"])["input_ids"]
        mask = [0] * len(prompt) + [1] * (len(whole) - len(prompt))
        return {"input_ids": whole, "completion_mask": mask}

    def by_batch(rows):  # type: ignore[no-untyped-def]
        talks = rows["messages"]
        prompts = tokenizer.apply_chat_template(
            [talk[:-1] for talk in talks], tokenize=False, add_generation_prompt=True
        )
        asked = tokenizer(prompts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        replies = [talk[-1]["content"] + tokenizer.eos_token for talk in talks]
        answered = tokenizer(replies, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        pairs = list(zip(asked, answered, strict=True))
        return {
            "input_ids": [(prompt + reply)[:LIMIT] for prompt, reply in pairs],
            "labels": [([-100] * len(prompt) + reply)[:LIMIT] for prompt, reply in pairs],
        }

    raw = datasets.load_dataset("json", data_files=file, cache_dir=folder, split="train")
    raw.map(
        by_batch if way == BATCHED else by_row,
        batched=way == BATCHED,
        num_proc=None if way == BY_ROW else 2,
        remove_columns="messages",
        load_from_cache_file=False,
    )


def child(way: str, model: str, file: str, folder: str) -> None:
    """Build once; prints seconds, and seconds of CPU of this process and its children."""
    import datasets  # noqa: F401
    from transformers import AutoTokenizer

    from zhllama.conversation.mixture import build_mixture
    from zhllama.conversation.settings import InstructionSource, MixtureSettings

    tokenizer = AutoTokenizer.from_pretrained(model)
    before, begun = os.times(), time.perf_counter()
    if way.startswith("map"):
        peer(tokenizer, file, folder, way)
    else:
        similarity = 0.9999 if way.endswith("too") else 1
        mixture = build_mixture(
            [InstructionSource(file)], MixtureSettings(similarity=similarity), tokenizer, LIMIT
        )
        assert mixture.table[0]["rows"] > 0.99 * mixture.table[0]["read"], (
            mixture.table
        )  # or less work is measured
    seconds, after = time.perf_counter() - begun, os.times()
    print(json.dumps([seconds, sum(after[:4]) - sum(before[:4])]))


def measure(model: str, file: str, count: int) -> list[list[object]]:
    taken: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for number in range(ROUNDS):
        for way, found in taken.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "child", way, model, file, folder]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(said.splitlines()[-1]))
            print(Path(model).name, number, way, *(f"{value:.1f}" for value in found[-1]), flush=True)
    medians = {
        way: [statistics.median(column) for column in zip(*found, strict=True)]
        for way, found in taken.items()
    }
    rows: list[list[object]] = []
    for way, (seconds, used) in medians.items():
        peers = [medians[name] for name in (BY_ROW, BY_ROW_IN_TWO, BATCHED)]
        ratios = [f"{of[0] / seconds:.1f}" for of in peers]
        rows.append(
            [
                Path(model).name, way, f"{count / seconds:,.0f}", *ratios,
                f"{count / used:,.0f}", f"{peers[0][1] / used:.1f}", f"{peers[2][1] / used:.1f}",
            ]
        )  # fmt: skip
    return rows


def main(data: str, models: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        count = write_rows(Path(data), file)
        table = [row for model in models for row in measure(model, str(file), count)]
        size = file.stat().st_size / 1e6
    header = [
        "tokenizer", "way", "rows/s", "by row", "by row in two", "batched", "rows per CPU second", "by row", "batched",
    ]  # fmt: skip
    note = (
        f"{machine()}. {count:,} rows of alpaca_zh, alpaca_en and pCLUE ({size:.0f} MB, each {COPIES} times, numbered "
        "and with half of their sentences exchanged); from the file to ids and mask, imports left out; medians of "
        f"{ROUNDS} rounds, the ways taking turns. The columns after each rate are its ratio to the peers; those of CPU "
        "seconds are the steadier ones."
    )
    write_table("mixture", header, table, note)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        main(sys.argv[1], sys.argv[2:])
