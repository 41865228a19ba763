"""Prompts: files of conversations that wait for an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zhllama.config import UserError
from zhllama.conversation import Message, from_alpaca, from_messages


def read_prompts(file: Path, flag: str) -> list[list[Message]]:
    """Conversations that wait for an answer, from JSONL rows of `messages`, of `instruction` and `input`, or of
    pCLUE's `input` alone.

    Raises:
        UserError: no such file, no prompt inside, not UTF-8, or a row of another shape.
    """
    if not file.is_file():
        raise UserError(f"{flag} {file}: no such file")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as problem:
        raise UserError(
            f"{flag} {file}: not UTF-8 at byte {problem.start}; convert it with iconv"
        ) from problem
    prompts: list[list[Message]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompts.append(_prompt(json.loads(line)))
        except json.JSONDecodeError as problem:
            raise UserError(f"{flag} {file} line {number}: not JSON ({problem.msg})") from problem
        except (KeyError, TypeError) as problem:
            raise UserError(
                f"{flag} {file} line {number}: give instruction (and input) as text, "
                "or messages of role and content that end with the user's"
            ) from problem
    if not prompts:
        raise UserError(f"{flag} {file}: no prompt inside")
    return prompts


def _prompt(row: dict[str, Any]) -> list[Message]:
    """A row's messages; a KeyError or TypeError where it has none that can be answered."""
    if "messages" in row:
        messages = from_messages(row)
    elif "instruction" in row:
        messages = from_alpaca({**row, "output": ""})[:1]
    else:  # pCLUE
        messages = [{"role": "user", "content": row["input"]}]
    if not all(isinstance(message["content"], str) for message in messages) or not messages:
        raise TypeError
    if messages[-1]["role"] != "user":
        raise KeyError
    return messages
