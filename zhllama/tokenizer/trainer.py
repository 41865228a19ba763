"""SentencePiece's BPE trainer in a process of its own, with a progress bar and counted runs for input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from sentencepiece import sentencepiece_model_pb2

from zhllama.config import UserError
from zhllama.terminal import progress_bar

LONGEST_SENTENCE = 4192  # bytes; SentencePiece's own default
PROGRAM = """
import json, sys, sentencepiece
sentencepiece.SentencePieceTrainer.train(**json.load(sys.stdin))
"""
MERGED = re.compile(r"Merged: .*\bmerges=(\d+)|Added: .*\bsize=(\d+)")  # since 0.2.3, and before
SKIPPED = re.compile(r"Skipped (\d+) too long sentences")


def train_pieces(
    counts: Mapping[str, int],
    characters: list[str],
    merges: int,
    longest: int,
    threads: int,
    folder: Path,
    progress: Callable[[int], None] | None = None,
) -> Any:
    """A SentencePiece BPE ModelProto: control and byte pieces, `merges` merges or as many as there are, characters.

    A process of its own can be watched (it logs every hundredth merge), gives its memory back, and when the
    system kills it for using too much, the cause can be told.

    Args:
        counts: run of characters -> how often it occurs; a run longer than 4,192 bytes is refused.
        longest: the most characters of a piece.
        folder: where the temporary files go.
        progress: told now and then how many merges there are.

    Raises:
        UserError: the trainer fails, or leaves out a run.
    """
    source, model = folder / "runs.tsv", folder / "trained.model"
    with source.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{run}\t{count}\n" for run, count in counts.items())
    settings = {
        # In the folder, so that names are ours: SentencePiece takes a comma for the next file's begin, and UTF-8 only.
        "input": source.name,
        # Each distinct run once, with its count: a repeated corpus costs no more than its runs.
        "input_format": "tsv",
        "model_prefix": model.stem,
        "model_type": "bpe",
        # 256 bytes, and unknown, BOS, EOS.
        "vocab_size": 259 + len(characters) + merges,
        # A small corpus has fewer merges than asked for; whoever needs more says so.
        "hard_vocab_limit": False,
        "byte_fallback": True,
        "character_coverage": 1.0,
        # SentencePiece's default, NFKC, would turn ，（！ into ASCII and leave Chinese text no pieces for
        # them.
        "normalization_rule_name": "identity",
        # A run stands inside a sentence: a space in front of it would become part of pieces.
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "split_by_unicode_script": False,  # the runs are split already
        "split_digits": True,
        "max_sentencepiece_length": longest,
        "max_sentence_length": LONGEST_SENTENCE,
        "num_threads": threads or len(os.sched_getaffinity(0)),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdin is not None and process.stderr is not None
    # By a pipe, not as arguments: nothing has to be quoted.
    process.stdin.write(json.dumps(settings))
    process.stdin.close()
    last, skipped = _watch(process.stderr, merges, progress)
    if code := process.wait():
        raise UserError(f"SentencePiece stopped ({_cause(code, last)})")
    if skipped:
        raise UserError(f"SentencePiece left out {skipped} runs of text for their length; please report this")
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    for file in (source, model, model.with_suffix(".vocab")):
        file.unlink()
    return proto


def _watch(log: IO[str], merges: int, progress: Callable[[int], None] | None) -> tuple[str, int]:
    """Follow the trainer's log with a progress bar; its last line, and how many runs it left out."""
    last: deque[str] = deque(maxlen=1)
    skipped = 0
    with progress_bar() as bar:
        task = bar.add_task("SentencePiece is counting", total=None, note="")
        for line in log:
            if line.strip():
                last.append(line.strip())
            if match := MERGED.search(line):
                done = min(int(match.group(1) or match.group(2)), merges)
                bar.update(task, description="SentencePiece is merging", total=merges, completed=done)
                if progress:
                    progress(done)
            elif match := SKIPPED.search(line):
                skipped += int(match.group(1))
    return "".join(last), skipped


def _cause(code: int, last: str) -> str:
    if code == -9:
        return "killed: out of memory? lower --sample-megabytes"
    return last or f"exit code {code}"
