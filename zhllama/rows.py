"""JSON lines that users bring: every row in one form, or one line that says which is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from zhllama.config import UserError

Row = TypeVar("Row")


def read_rows(file: Path, flag: str, form: Callable[[Any], Row], needed: str) -> list[Row]:
    """What `form` makes of each row; a KeyError, TypeError, IndexError or ValueError of it means a row of another shape.

    Raises:
        UserError: no such file, no row inside, not UTF-8, not JSON, or a row of another shape than `needed` says.
    """
    if not file.is_file():
        raise UserError(f"{flag} {file}: no such file")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as problem:
        raise UserError(
            f"{flag} {file}: not UTF-8 at byte {problem.start}; convert it with iconv"
        ) from problem
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(form(json.loads(line)))
        except json.JSONDecodeError as problem:
            raise UserError(f"{flag} {file} line {number}: not JSON ({problem.msg})") from problem
        except (KeyError, TypeError, IndexError, ValueError) as problem:
            raise UserError(f"{flag} {file} line {number}: {needed}") from problem
    if not rows:
        raise UserError(f"{flag} {file}: no row inside")
    return rows
