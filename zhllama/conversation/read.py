"""Instruction files, row by row, with the line that each row begins on."""

from __future__ import annotations

import json
import re
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from zhllama.config import UserError
from zhllama.conversation.formats import LOOKED_AT, Message, RowError, detect, read_row
from zhllama.corpus.han import count_han

SHOWN = 5  # line numbers kept of each reason
LANGUAGES = {"english": "english", "en": "english", "chinese": "chinese", "zh": "chinese"}
SPACE = re.compile(r"\s*")
BETWEEN = re.compile(r"\s*(,?)\s*")


class Row(NamedTuple):
    """A conversation, the line that it begins on, and its type of task."""

    line: int
    messages: list[Message]
    task: str


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


def read_conversations(file: Path, name: str = "detect") -> FileRows:
    """The good rows of a file, and the reasons for which the others are left out.

    Raises:
        UserError: not UTF-8, not JSON, no known format, a table of something else, or not one good row.
    """
    found = list(read_rows(file))
    if not found:
        raise UserError(f"{file}: not one good row: the file is empty")
    if name == "detect":
        name = detect([row for _, row in found[:LOOKED_AT]], file)
    read = FileRows(name, [], Dropped())
    for line, row in found:
        try:
            read.rows.append(Row(line, *read_row(row, name)))
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


def read_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """The line and the content of each row: of a JSON list, of JSONL, or of a .tsv of translation pairs.

    A line of JSONL that is no JSON comes as the text that it is.

    Raises:
        UserError: not UTF-8, a .csv, or a list that is not JSON.
    """
    if file.suffix == ".csv":
        raise UserError(
            f"{file}: a table and not an instruction file (ChatDoctor's is what its instructions were made from); "
            "give JSON, JSONL, or translation pairs as .tsv"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UserError(f"{file}: not UTF-8 at byte {problem.start}; convert it with iconv") from problem
    if file.suffix == ".tsv":
        yield from _pairs(text, file)
    elif text.lstrip().startswith("["):
        try:
            yield from _listed(text)
        except json.JSONDecodeError as problem:
            raise UserError(f"{file} line {problem.lineno}: not JSON ({problem.msg})") from problem
    else:
        for line, content in enumerate(text.split("\n"), 1):
            if content.strip():
                yield line, _json(content)


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return line  # counted by the caller as no object


def _listed(text: str) -> Iterator[tuple[int, Any]]:
    """The items of a JSON list and the line that each begins on."""
    decoder = json.JSONDecoder()
    at = _skip(text, text.index("[") + 1)
    line, counted = 1, 0
    while text[at : at + 1] != "]":
        line += text.count("\n", counted, at)
        counted = at
        item, end = decoder.raw_decode(text, at)
        yield line, item
        between = BETWEEN.match(text, end)
        assert between is not None
        at = between.end()
        if not between[1] and text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    if rest := text[at + 1 :].strip():
        raise json.JSONDecodeError("Extra data", text, text.index(rest[0], at + 1))


def _skip(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    assert found is not None
    return found.end()


def _pairs(text: str, file: Path) -> Iterator[tuple[int, Any]]:
    """Rows of `english` and `chinese`; the first line may name the columns, else the one with more Chinese is it.

    A line of another number of columns comes as the text that it is.
    """
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    names = [LANGUAGES.get(name.strip().lower(), "") for name in lines[0][1].split("\t")] if lines else []
    if {"english", "chinese"} <= set(names):
        del lines[0]
    else:
        names = _guessed([line.split("\t") for _, line in lines[:LOOKED_AT]], file) if lines else []
    for number, line in lines:
        cells = line.split("\t")
        fits = len(cells) == len(names)
        yield number, {name: cell for name, cell in zip(names, cells, strict=True) if name} if fits else line


def _guessed(rows: list[list[str]], file: Path) -> list[str]:
    """Which of two columns is which language."""
    pairs = [row for row in rows if len(row) == 2]
    if not pairs:
        raise UserError(f"{file}: no line of two columns between tabs; name more in a first line")
    chinese = [sum(count_han(pair[column]) for pair in pairs) for column in (0, 1)]
    return ["chinese", "english"] if chinese[0] > chinese[1] else ["english", "chinese"]
