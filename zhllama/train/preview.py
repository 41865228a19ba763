"""What an sft recipe would learn from, without training: `sft --dry-run`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zhllama.conversation.mixture import Mixture
from zhllama.page import Page, bar_plot

EXAMPLES = 3  # rows shown of each source
PERCENTILES = (5, 25, 50, 75, 95)


def write_preview(directory: Path, mixture: Mixture, tokenizer: Any) -> dict[str, Any]:
    """Write `report.html` (table, plots, examples, what was left out) and `examples.jsonl`; returns the run's result."""
    examples = choose_examples(mixture, tokenizer)
    lines = [json.dumps(example, ensure_ascii=False) + "\n" for example in examples]
    # A file's name may hold bytes that are no UTF-8.
    (directory / "examples.jsonl").write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    write_report(directory / "report.html", mixture, examples)
    tokens = sum(one["tokens"] for one in mixture.table)
    return {"rows": len(mixture.samples), "tokens": tokens, "mixture": mixture.table}


def choose_examples(mixture: Mixture, tokenizer: Any) -> list[dict[str, str]]:
    """The first rows of each source: file, the text before the first learnt token, and the text from there on."""
    examples = []
    for number, one in enumerate(mixture.table):
        for row in np.flatnonzero(mixture.origin == number)[:EXAMPLES].tolist():
            ids, learnt = mixture.samples[row]
            start = learnt.index(True)
            prompt, reply = tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:])
            examples.append({"file": one["file"], "prompt": prompt, "reply": reply})
    return examples


def write_report(path: Path, mixture: Mixture, examples: Sequence[dict[str, str]]) -> None:
    """One page: the table, shares and lengths as plots, types of task, what was left out, examples."""
    page = Page("Mixture of instructions")
    table = mixture.table
    keys = ("file", "format", "read", "rows", "repeats", "tokens", "mean_tokens", "share")
    page.table([key.replace("_", " ") for key in keys], [[one[key] for key in keys] for one in table])
    names = [Path(one["file"]).stem for one in table]
    rows = sum(one["rows"] for one in table)
    # Both, as a source of long rows weighs more in the loss than its number of rows says.
    shares = {
        "rows": [100 * one["rows"] / rows for one in table],
        "tokens": [100 * one["share"] for one in table],
    }
    page.figure(bar_plot(names, shares, "% of the mixture", "Shares of the sources"))
    page.figure(bar_plot(names, _lengths(mixture), "tokens", "Lengths of rows: percentiles"))
    page.heading("Types of task")
    tasks: dict[str, int] = {}
    for one in table:
        for task, count in one["tasks"].items():
            tasks[task] = tasks.get(task, 0) + count
    page.table(
        ["task", "rows", "share"], [[task, count, f"{count / rows:.1%}"] for task, count in tasks.items()]
    )
    page.heading("Left out and shortened")
    page.paragraph("Lines are the first of each reason, as the file counts them.", note=True)
    found = [
        [one["file"], what, reason, of["rows"], ", ".join(map(str, of["lines"]))]
        for one in table
        for what in ("dropped", "shortened")
        for reason, of in one[what].items()
    ]
    page.table(["file", "", "reason", "rows", "lines"], found, text=True)
    page.heading("Examples")
    page.paragraph("As the model sees them; what is learnt begins with the reply.", note=True)
    page.table(
        ["file", "prompt", "reply"],
        [[one["file"], one["prompt"], one["reply"]] for one in examples],
        text=True,
    )
    page.write(path)


def _lengths(mixture: Mixture) -> dict[str, list[float | None]]:
    """For each percentile the lengths of every source; None where a source gives no row."""
    lengths = mixture.samples.lengths()
    of_each = [lengths[mixture.origin == number] for number in range(len(mixture.table))]
    return {
        f"{percent}%": [float(np.percentile(of, percent)) if len(of) else None for of in of_each]
        for percent in PERCENTILES
    }
