"""What people see while a command runs: progress with time left, tables, one-line messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.cells import cell_len
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
from rich.table import Column

Item = TypeVar("Item")
# With several ranks only the first talks; a pipe gets plain lines that no width cuts.
QUIET = os.environ.get("RANK", "0") != "0"
# Text as it stands: markup would swallow [MASK], and emoji would make a picture of :fire:.
console = Console(quiet=QUIET, highlight=False, emoji=False, soft_wrap=True)
GAP = 2  # columns of space between those of a table


def progress_bar() -> Progress:
    """A rich progress display: what, how far, elapsed, time left; silent where no terminal looks on."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        # What a narrow terminal cuts is the note, never the time left.
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
        console=console,
        expand=True,
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
    cells = [[cell_text(cell) for cell in row] for row in rows]
    console.print(title, markup=False, style="bold")
    # A header may be wrapped between words, so it asks for no more than its longest word.
    columns = zip(*([max(name.split(), key=cell_len, default="") for name in header], *cells), strict=True)
    widths = [max(map(cell_len, column)) for column in columns]
    total = sum(widths) + GAP * (len(widths) - 1)
    # No value is cut and no word broken: in too narrow a terminal each row is a list of its own.
    if console.is_terminal and total > console.width:
        _print_rows(header, cells)
        return
    wrapped = [_wrap(name, width) for name, width in zip(header, widths, strict=True)]
    height = max(map(len, wrapped))
    # Short headers stand at the bottom, above their columns.
    for line in zip(*([""] * (height - len(lines)) + lines for lines in wrapped), strict=True):
        console.print(_aligned(line, widths), markup=False)
    console.print("─" * total, markup=False)
    for row in cells:
        console.print(_aligned(row, widths), markup=False)


def _print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Each row's first cell as a heading, the others below it, a line each."""
    values = [cell for row in rows for cell in row[1:]]
    widths = [max(map(cell_len, texts), default=0) for texts in (header[1:], values)]
    for first, *others in rows:
        console.print(first, markup=False)
        for pair in zip(header[1:], others, strict=True):
            console.print(" " * GAP + _aligned(pair, widths), markup=False)


def _wrap(text: str, width: int) -> list[str]:
    """Lines of whole words, each of at most `width` columns where no word is longer."""
    lines: list[str] = [""]
    for word in text.split():
        if lines[-1] and cell_len(lines[-1]) + 1 + cell_len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One line: the first cell left, the others right; Chinese characters take two columns."""
    spaces = [" " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
    others = [" " * GAP + space + cell for cell, space in zip(cells[1:], spaces[1:], strict=True)]
    return "".join([cells[0], spaces[0], *others]).rstrip()


def cell_text(cell: object) -> str:
    """How a table shows a value: floats to three decimals, integers with thousands, nothing as a dash."""
    if cell is None:
        return "-"
    # Before int, which a bool is too.
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.3f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
