"""Prompts: files of conversations that wait for an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zhllama.config import UserError
from zhllama.conversation.formats import Message, RowError, from_alpaca, from_messages, text_of
from zhllama.rows import parse_rows


def encode_prompt(messages: list[Message], tokenizer: Any, positions: int) -> list[int]:
    """Ids of a conversation that waits for an answer, by the tokenizer's chat template.

    Raises:
        UserError: a conversation that fills the model's positions, or that the chat template refuses.
    """
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as problem:  # some know no system role
        raise UserError(f"the chat template refuses the conversation: {problem}") from problem
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) >= positions:
        raise UserError(
            f"the conversation has {len(ids)} tokens and the model {positions} positions; shorten it"
        )
    return ids


def read_prompts(file: Path, flag: str) -> list[list[Message]]:
    """Conversations that wait for an answer, from rows of `messages`, of `instruction` and `input`, or of pCLUE's `input`
    alone.

    Raises:
        UserError: no such file, no prompt inside, or a row that cannot be read or has another shape.
    """
    needed = "give instruction (and input) as text, input alone, or messages of role and content that end with the user's"
    return parse_rows(file, flag, _prompt, needed)


def _prompt(row: dict[str, Any]) -> list[Message]:
    """A row's messages; a RowError (a ValueError) or TypeError where it has none that can be answered."""
    if not isinstance(row, dict):
        raise RowError("not a JSON object")
    if "messages" in row:
        messages = from_messages(row)
    elif "instruction" in row:
        messages = from_alpaca({**row, "output": ""})[:-1]
    else:  # pCLUE
        messages = [{"role": "user", "content": text_of(row, "input")}]
    if not messages or messages[-1]["role"] != "user":
        raise RowError("no request at its end")
    return messages
