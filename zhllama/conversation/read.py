"""Instruction files, row by row, with the line that each row begins on."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from zhllama.config import UserError
from zhllama.conversation.formats import LOOKED_AT, Message, RowError, detect, is_told, read_row
from zhllama.conversation.turns import Turns, even_turns
from zhllama.corpus.han import count_han
from zhllama.decode import extension_of
from zhllama.rows import DELIMITERS, Rows, named, read_rows
from zhllama.tables import DAMAGED, Unread

SHOWN = 5  # line numbers kept of each reason
LANGUAGES = {"english": "english", "en": "english", "chinese": "chinese", "zh": "chinese"}


class Row(NamedTuple):
    """A conversation, the line that it begins on, its type of task, and what was done to make its turns alternate."""

    line: int
    messages: list[Message]
    task: str
    mended: list[str] = []  # noqa: RUF012 - of a NamedTuple, which nobody changes


@dataclass
class Dropped:
    """How many rows were left out for each reason, and the first lines of them."""

    counts: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[int]] = field(default_factory=dict)

    def add(self, reason: str, line: int) -> None:
        """Count one row."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        lines = self.lines.setdefault(reason, [])
        insort(lines, line)
        del lines[SHOWN:]

    def total(self) -> int:
        """Rows of all reasons."""
        return sum(self.counts.values())

    def found(self) -> dict[str, dict[str, Any]]:
        """Rows and first lines by reason, the most frequent first."""
        most = sorted(self.counts, key=lambda reason: -self.counts[reason])
        return {reason: {"rows": self.counts[reason], "lines": self.lines[reason]} for reason in most}


@dataclass
class FileRows:
    """What an instruction file holds: the name of its format, the good rows in order, the others counted."""

    format: str
    rows: list[Row]
    dropped: Dropped


def read_conversations(file: Path, name: str = "detect", turns: Turns = "mend") -> FileRows:
    """The good rows of a file, and the reasons for which the others are left out.

    Args:
        name: of the format of its rows.
        turns: what becomes of conversations whose turns do not alternate.

    Raises:
        UserError: a file that cannot be read, no known format, a table of something else, or not one good row.
    """
    found = list(read_instructions(file, halves=True))  # `even_turns` sees whether a message holds one
    if not found:
        raise UserError(f"{file}: not one good row: the file is empty")
    if name == "detect":
        name = detect([row for _, row in found[:LOOKED_AT]], file)
    read = FileRows(name, [], Dropped())
    for line, row in found:
        if isinstance(row, Unread):
            read.dropped.add(DAMAGED if row.reason == DAMAGED else "not a JSON object", line)
            continue
        try:
            messages, task = read_row(row, name)
            messages, mended = even_turns(messages, turns)
            read.rows.append(Row(line, messages, task, mended))
        except RowError as problem:
            read.dropped.add(str(problem), line)
    if not read.rows:
        raise UserError(f"{file}: not one good row as {name}: {in_words(read.dropped.found())}")
    return read


def in_words(found: dict[str, dict[str, Any]]) -> str:
    """What `Dropped.found` gives as a phrase."""
    parts = []
    for reason, of in found.items():
        lines = ", ".join(map(str, of["lines"])) + (", ..." if of["rows"] > len(of["lines"]) else "")
        parts.append(f"{of['rows']:,} ({reason}: line{'s' * (of['rows'] > 1)} {lines})")
    return ", ".join(parts)


def read_instructions(
    file: Path, *, lists: bool = True, halves: bool = False, columns: Sequence[str] = ()
) -> Rows:
    """The rows of a file as `read_rows` has them, those of .csv and .tsv as dicts.

    The first row of these names the columns: those of a format, of translation pairs, or one of `columns` (in lower
    case); a .tsv without such a row is translation pairs, the column with more Chinese is the Chinese one.

    Raises:
        UserError: a file that cannot be read, or a table of something else.
    """
    kind = extension_of(file)
    rows = read_rows(file, lists=lists, halves=halves)
    if kind not in DELIMITERS:
        yield from rows
        return
    ahead = list(islice(rows, LOOKED_AT))
    cells = [row for _, row in ahead if not isinstance(row, Unread)]
    if not cells:
        yield from ahead
        return
    names = _columns(cells[0], columns)
    if names:
        ahead = [numbered for numbered in ahead if numbered[1] is not cells[0]]
    elif kind == ".tsv":
        names = _guessed(cells, file)
    else:
        raise UserError(
            f"{file}: no known format in columns {', '.join(cells[0])}: a table and not an instruction "
            "file (ChatDoctor's is what its instructions were made from); give JSON, JSONL, or translation pairs as .tsv"
        )
    yield from named(chain(ahead, rows), names)


def _columns(cells: list[str], others: Sequence[str]) -> list[str]:
    """The names that a table's first row gives its columns, empty for one to pass over; none where it is no such row."""
    names = [cell.strip() for cell in cells]
    languages = [LANGUAGES.get(name.lower(), "") for name in names]
    if {"english", "chinese"} <= set(languages):
        return languages
    if is_told(dict.fromkeys(names, "")):
        return names
    lower = [name.lower() for name in names]
    return lower if set(lower) & set(others) else []


def _guessed(rows: list[list[str]], file: Path) -> list[str]:
    """Which of two columns is which language."""
    pairs = [row for row in rows if len(row) == 2]
    if not pairs:
        raise UserError(f"{file}: no line of two columns between tabs; name more in a first line")
    chinese = [sum(count_han(pair[column]) for pair in pairs) for column in (0, 1)]
    return ["chinese", "english"] if chinese[0] > chinese[1] else ["english", "chinese"]
