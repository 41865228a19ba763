"""A gigabyte of Chinese: time and memory of train-tokenizer and merge-tokenizer. Part of tokenizer.py.

The text is made of the words of People's Daily by a bigram model, so that its clauses are new ones: a repeated
text would flatter a trainer that counts runs of letters.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy
from table import machine, write_table
from watch import watched

from zhllama.demo.material import tagged_news

WORDS_A_LINE, LINES_A_DOCUMENT = 50, 8
LINES_AT_ONCE = 40_000


def synthesise(path: Path, megabytes: int, seed: int = 0) -> None:
    """Write a text of about so many megabytes, documents apart by blank lines."""
    words = [word.rpartition("/")[0] for word in tagged_news().split()]
    names, codes = numpy.unique(numpy.array(words, dtype=object), return_inverse=True)
    order = numpy.argsort(codes[:-1], kind="stable")
    followers = codes[1:][order]
    starts = numpy.searchsorted(codes[:-1][order], numpy.arange(len(names)))
    degrees = numpy.maximum(numpy.bincount(codes[:-1], minlength=len(names)), 1)
    source = numpy.random.default_rng(seed)
    size = 0
    with path.open("wb") as stream:
        while size < megabytes * 1_000_000:
            state = codes[source.integers(0, len(codes), LINES_AT_ONCE)]
            columns = []
            for _ in range(WORDS_A_LINE):
                columns.append(names[state])
                places = starts[state] + (source.random(LINES_AT_ONCE) * degrees[state]).astype(numpy.int64)
                state = followers[numpy.minimum(places, len(followers) - 1)]
            lines = ["".join(line) for line in numpy.stack(columns, axis=1).tolist()]
            documents = (
                "\n".join(lines[at : at + LINES_A_DOCUMENT]) for at in range(0, len(lines), LINES_A_DOCUMENT)
            )
            size += stream.write(("\n\n".join(documents) + "\n\n").encode())


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds and peak megabytes (resident, all processes together) of a zhllama command."""
    return watched(["-m", "zhllama", *command], lambda memory: memory.rss)[:2]


def run(base: Path, megabytes: int = 1000) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthesise(folder / "text.txt", megabytes)
        size = (folder / "text.txt").stat().st_size / 1e6
        train = ["train-tokenizer", "--corpus", str(folder / "text.txt"), "--base", str(base)]
        merge = ["merge-tokenizer", "--base", str(base), "--chinese", str(folder / "chinese")]
        rows = [
            [step, f"{size:.0f} MB", f"{seconds:.0f}", f"{peak:.0f}", limit]
            for step, command, limit in (
                ("train", [*train, "--size", "20000", "--output", str(folder / "chinese")], ""),
                ("merge, all gates", [*merge, "--output", str(folder / "merged")], "60 s"),
            )
            for seconds, peak in [measured(command)]
        ]
    both = sum(int(row[2]) for row in rows)
    rows.append(["both", rows[0][1], str(both), max((row[3] for row in rows), key=int), "600 s, 4,000 MB"])
    note = (
        f"{machine()}. Text made from the words of People's Daily by a bigram model; LLaMA, 20,000 pieces, defaults "
        "otherwise. Peak is resident memory of all processes together."
    )
    write_table("tokenizer", ["step", "text", "seconds", "peak MB", "limit"], rows, note, append=True)
