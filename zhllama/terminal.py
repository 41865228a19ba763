"""What people see while a command runs: progress with time left, tables, one-line messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

Item = TypeVar("Item")
# With several ranks only the first talks; a pipe gets plain lines that no width cuts.
QUIET = os.environ.get("RANK", "0") != "0"
console = Console(quiet=QUIET, highlight=False, soft_wrap=True)


def progress_bar() -> Progress:
    """A rich progress display: what, how far, elapsed, time left; silent where no terminal looks on."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with a progress bar; `total` is taken from `len(items)` where that is known."""
    if total is None and isinstance(items, Sequence):
        total = len(items)
    with progress_bar() as bar:
        task = bar.add_task(what, total=total, note="")
        for item in items:
            yield item
            bar.advance(task)


def say(message: str) -> None:
    """One line on the terminal (first rank only)."""
    console.print(message, markup=False)


def warn(message: str) -> None:
    """One line on standard error, marked as a warning."""
    if not QUIET:
        print(f"zhllama: warning: {message}", file=sys.stderr, flush=True)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table: first column left, the others right; floats to three decimals."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for position, name in enumerate(header):
        table.add_column(name, justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*(cell_text(cell) for cell in row))
    console.print(table, soft_wrap=False)


def cell_text(cell: object) -> str:
    """How a table shows a value: floats to three decimals, integers with thousands, nothing as a dash."""
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.3f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
