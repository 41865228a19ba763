"""The one reader of rows: JSON, JSONL, CSV, TSV, Parquet, Arrow and what `datasets` knows, packed or not."""

from __future__ import annotations

import csv
import json
import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from zhllama.config import UserError
from zhllama.decode import (
    ADVICE,
    GUESSED,
    LONGEST_DOCUMENT,
    Damaged,
    begins_with,
    detect_encoding,
    extension_of,
    read_lines,
    read_text,
)
from zhllama.tables import DAMAGED, Progress, Unread, is_named, is_saved, is_table, read_records

Shape = TypeVar("Shape")
Rows = Iterator[tuple[int, Any]]
DELIMITERS = {".csv": ",", ".tsv": "\t"}
CELL_LINES = 1000  # the most lines of a cell that a spreadsheet wrote
HALF = "half a character"  # an emoji cut in two, as JSON can spell it and UTF-8 cannot
SPACE = re.compile(r"\s*")
BETWEEN = re.compile(r"\s*(,?)\s*")
# NaN and Infinity are no JSON: a field that holds one (pandas writes them) holds nothing.
DECODER = json.JSONDecoder(parse_constant=lambda name: None)
csv.field_size_limit(LONGEST_DOCUMENT)  # a cell may be a whole document


def can_read(path: Path) -> bool:
    """Whether there is a file, or what stands for one: a name on the hub, a directory that `datasets` saved."""
    return path.is_file() or is_named(path) or is_saved(path)


def read_rows(
    path: Path,
    encoding: str = "guess",
    progress: Progress = None,
    *,
    lists: bool = True,
    halves: bool = False,
) -> Rows:
    """Every row with the line that it begins on (in a table its number), from 1; `Unread` where it cannot be read.

    A row is a line of JSONL, an item of a JSON list, a whole .json that is neither, the cells of a line of .csv or
    .tsv as a list, a record of a table as a dict. Null stands for NaN.

    Args:
        encoding: of text, as Python names it, or guess.
        progress: told now and then how many bytes of the file have been read.
        lists: a text that begins with [ is one list; without it every line is a row.
        halves: a row of JSON with half a character in it is given as it is.

    Raises:
        UserError: a file that cannot be opened, unpacked or decoded; a list that is not JSON; no whole table.
    """
    if is_table(path):
        return enumerate(read_records(path, None, progress), 1)
    kind = extension_of(path)
    rows = _of_text(path, kind, encoding, progress, lists)
    return rows if halves or kind in DELIMITERS else map(_without_halves, rows)


def _of_text(path: Path, kind: str, encoding: str, progress: Progress, lists: bool) -> Rows:
    advice = ADVICE
    if encoding == "guess":
        encoding, advice = detect_encoding(path), GUESSED
    if lists and kind not in DELIMITERS and begins_with(path, encoding, "[", advice=advice):
        yield from _listed(path, *read_text(path, encoding, progress, advice=advice))
        return
    lines = enumerate(read_lines(path, encoding, progress, mend=True, advice=advice), 1)
    if kind in DELIMITERS:
        yield from _cells(lines, DELIMITERS[kind])
    elif lists and kind == ".json":
        yield from _document(lines)
    else:
        for number, line in lines:
            if line.strip():
                yield number, parse_line(line)


def parse_line(line: str) -> Any:
    """What a line of JSON holds, or `Unread`."""
    if isinstance(line, Damaged):
        return Unread(line, DAMAGED)
    try:
        return DECODER.decode(line)
    except (RecursionError, ValueError) as problem:
        column = problem.pos + 1 if isinstance(problem, json.JSONDecodeError) else 0
        return Unread(line, _reason(problem), column)


def _reason(problem: RecursionError | ValueError) -> str:
    if isinstance(problem, RecursionError):
        return "not JSON (nested too deep)"
    # Not a JSONDecodeError: a number of thousands of digits.
    return f"not JSON ({problem.msg if isinstance(problem, json.JSONDecodeError) else str(problem)[:80]})"


def is_whole(value: Any) -> bool:
    """Whether there is no half of a character in a text or in what JSON holds."""
    if isinstance(value, str):
        try:
            value.encode("utf-16-le")  # the encoding that says it fastest
        except UnicodeEncodeError:
            return False
        return True
    if isinstance(value, dict):
        return all(map(is_whole, value)) and all(map(is_whole, value.values()))
    return not isinstance(value, list) or all(map(is_whole, value))


def _without_halves(numbered: tuple[int, Any]) -> tuple[int, Any]:
    number, row = numbered
    try:
        return numbered if isinstance(row, Unread) or is_whole(row) else (number, Unread(repr(row), HALF))
    except RecursionError as problem:
        return number, Unread("", _reason(problem))


def named(rows: Rows, names: Sequence[str] | None = None) -> Rows:
    """Cells of .csv or .tsv as dicts by name, without those of no name; by default the first row names them."""
    for number, row in rows:
        if isinstance(row, Unread):
            yield number, row
        elif names is None:
            names = [cell.strip() for cell in row]
        elif len(row) != len(names):
            yield number, Unread("\t".join(row), f"{len(row)} cells, not {len(names)}")
        else:
            record = dict(zip(names, row, strict=True))
            record.pop("", None)
            yield number, record


def parse_rows(file: Path, flag: str, form: Callable[[Any], Shape], needed: str) -> list[Shape]:
    """What `form` makes of each row; a KeyError, TypeError, IndexError or ValueError of it means a row of another shape.

    The first row of .csv and .tsv names the columns.

    Raises:
        UserError: no such file, no row inside, one that cannot be read, or of another shape than `needed` says.
    """
    if not can_read(file):
        raise UserError(f"{flag} {file}: no such file")
    try:
        read = list(named(read_rows(file)) if extension_of(file) in DELIMITERS else read_rows(file))
    except UserError as problem:
        raise UserError(f"{flag} {problem}") from problem
    shaped: list[Shape] = []
    for number, row in read:
        where = f"{flag} {file} {'row' if is_table(file) else 'line'} {number}"
        if isinstance(row, Unread):
            raise UserError(f"{where}: {row.reason}")
        try:
            shaped.append(form(row))
        except (KeyError, TypeError, IndexError, ValueError) as problem:
            raise UserError(f"{where}: {needed}") from problem
    if not shaped:
        raise UserError(f"{flag} {file}: no row inside")
    return shaped


def read_written(file: Path, trim: bool = False) -> list[Any]:
    """The rows of JSONL that a command of ours wrote line by line; none without a file, nor one that a kill cut short.

    With `trim` what was cut short goes from the file too, so that the next line does not follow on it.
    """
    if not file.is_file():
        return []
    whole, newline, cut = file.read_bytes().rpartition(b"\n")
    if cut and trim:
        with file.open("r+b") as stream:
            stream.truncate(len(whole + newline))
    return [json.loads(line) for line in whole.split(b"\n")] if newline else []


def _cells(lines: Iterator[tuple[int, str]], delimiter: str) -> Rows:
    """The cells of each line, or of several where a spreadsheet's quotes hold a line break.

    Quotes that are not a spreadsheet's (around a whole cell, doubled inside) are part of the text: many a .tsv has none.
    """
    ahead: deque[tuple[int, str]] = deque()
    opening = f'{delimiter}"'
    while numbered := ahead.popleft() if ahead else next(lines, None):
        number, line = numbered
        if '"' not in line and type(line) is str:
            if line.strip():
                yield number, line.split(delimiter)
        elif isinstance(line, Damaged):
            yield number, Unread(line, DAMAGED)
        elif line[0] != '"' and opening not in line:
            yield number, line.split(delimiter)
        else:
            row = [numbered]
            quotes = line.count('"')
            while quotes % 2 and len(row) < CELL_LINES:
                following = ahead.popleft() if ahead else next(lines, None)
                if following is None:
                    break
                row.append(following)
                quotes += following[1].count('"')
            cells = None if quotes % 2 else _unquoted([text for _, text in row], delimiter)
            if cells is None:
                ahead.extendleft(reversed(row[1:]))
            yield number, line.split(delimiter) if cells is None else cells


def _unquoted(lines: list[str], delimiter: str) -> Any:
    """The cells of one row in a spreadsheet's quotes; None where they are others."""
    try:
        rows = list(csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    if any(isinstance(line, Damaged) for line in lines):
        return Unread("\n".join(lines), DAMAGED)
    return rows[0] if len(rows) == 1 else None


def _listed(path: Path, text: str, damaged: list[int]) -> Rows:
    """The items of a JSON list and the line that each begins on."""
    line, counted = 1, 0
    at = _skip(text, text.index("[") + 1)
    try:
        while text[at : at + 1] != "]":
            line += text.count("\n", counted, at)
            counted = at
            item, end = DECODER.raw_decode(text, at)
            if damaged and _touches(damaged, line, line + text.count("\n", at, end)):
                yield line, Unread(text[at:end], DAMAGED)
            else:
                yield line, item
            between = BETWEEN.match(text, end)
            assert between is not None
            at = between.end()
            if not between[1] and text[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        if rest := text[at + 1 :].strip():
            raise json.JSONDecodeError("Extra data", text, text.index(rest[0], at + 1))
    except json.JSONDecodeError as problem:
        raise UserError(f"{path} line {problem.lineno}: not JSON ({problem.msg})") from problem
    except (RecursionError, ValueError) as problem:
        raise UserError(f"{path} line {line}: {_reason(problem)}") from problem


def _touches(damaged: list[int], first: int, last: int) -> bool:
    return bisect_left(damaged, first) < bisect_right(damaged, last)


def _skip(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    assert found is not None
    return found.end()


def _document(lines: Iterator[tuple[int, str]]) -> Rows:
    """The lines of a .json, each a row; or all of them as one where the first is no JSON and the whole is."""
    filled: Iterator[tuple[int, str]] = (numbered for numbered in lines if numbered[1].strip())
    first = next(filled, None)
    if first is None:
        return
    row = parse_line(first[1])
    if isinstance(row, Unread):
        numbered = [first, *filled]
        whole = parse_line("\n".join(line for _, line in numbered))
        damaged = any(isinstance(line, Damaged) for _, line in numbered)
        if not (damaged or isinstance(whole, Unread)):
            yield first[0], whole
            return
        filled = iter(numbered[1:])
    yield first[0], row
    yield from ((number, parse_line(line)) for number, line in filled)


def batches(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Neighbouring texts together, each time as soon as they hold that many characters; none is cut."""
    batch: list[str] = []
    length = 0
    for text in texts:
        batch.append(text)
        length += len(text)
        if length >= characters:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch
