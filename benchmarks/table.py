"""Where benchmarks put their tables: `results/NAME.md`, and the same on the terminal."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Cores, memory, accelerator and versions in one phrase, without names."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GB, {gpu}, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def write_table(
    name: str, header: Sequence[str], rows: Sequence[Sequence[object]], note: str, append: bool = False
) -> None:
    """Print a Markdown table and write it with a note on how it was measured; `append` adds to the file."""
    lines = [
        "| " + " | ".join(header) + " |",
        "| " + " | ".join("---" for _ in header) + " |",
        *("| " + " | ".join(map(str, row)) + " |" for row in rows),
    ]
    text = "\n".join([*lines, "", note, ""])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.md"
    before = file.read_text(encoding="utf-8") + "\n" if append and file.is_file() else ""
    file.write_text(before + text, encoding="utf-8")
