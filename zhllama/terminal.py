"""What people see while a command runs: progress with time left, tables, one-line messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeVar

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

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
    # Widths are ours: rich would break values where it breaks headers, and cut what is wider than the screen. A
    # header may be wrapped between words, so it asks for no more than its longest one.
    words = [max(name.split(), key=cell_len, default="") for name in header]
    widths = [max(map(cell_len, column)) for column in zip(words, *cells, strict=True)]
    width = sum(widths) + GAP * (len(widths) - 1)
    if console.is_terminal and width > console.width:
        _print_lists(header, cells)
        return
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for name, size in zip(header, widths, strict=True):
        align: Literal["left", "right"] = "right" if table.columns else "left"
        # The space behind a wide word counts as a column too much to rich: cropped, it is gone; "…" it would be else.
        table.add_column(Text(name), width=size, justify=align, vertical="bottom", overflow="crop")
    for row in cells:
        table.add_row(*map(Text, row))
    _print_whole(table, width)


def _print_lists(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Each row's first cell as a heading, the others below it, a line each."""
    values = [cell for row in rows for cell in row[1:]]
    widths = [max(map(cell_len, texts), default=0) for texts in (header[1:], values)]
    for first, *others in rows:
        console.print(first, markup=False)
        table = Table.grid(
            Column(width=widths[0]), Column(width=widths[1], justify="right"), padding=(0, GAP)
        )
        for pair in zip(header[1:], others, strict=True):
            table.add_row(*map(Text, pair))
        _print_whole(Padding(table, (0, 0, 0, GAP)), GAP + sum(widths) + GAP)


def _print_whole(what: Table | Padding, width: int) -> None:
    """Print in so many columns, whatever the screen's are, without spaces at the ends of lines."""
    for line in console.render_lines(what, console.options.update(width=width)):
        console.print("".join(segment.text for segment in line).rstrip(), markup=False)


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
