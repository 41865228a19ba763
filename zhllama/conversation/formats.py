"""The formats of instruction files: how each is told, and how its rows become messages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zhllama.config import UserError
from zhllama.conversation.translation import translation_request
from zhllama.corpus.han import HAN

Message = dict[str, str]
FormatName = Literal[
    "detect", "alpaca", "pclue", "translation", "belle", "belle-text", "sharegpt", "messages"
]
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
# As BELLE's first releases mark turns; "Human" and "Assistant" in mid-line are words.
TURN = re.compile(r"^\s*(Human|Assistant)\s*[:：]", re.MULTILINE)
LOOKED_AT = 100  # rows from which the format of a file is told


class RowError(ValueError):
    """A row that cannot be learnt from; its message is the reason that is counted."""


@dataclass(frozen=True)
class Format:
    """One layout of rows.

    Attributes:
        is_told: whether a row has this layout.
        read: its messages; RowError, KeyError or TypeError where it has none.
        task: type of its rows where neither the row nor the recipe says one.
    """

    is_told: Callable[[dict[str, Any]], bool]
    read: Callable[[dict[str, Any]], list[Message]]
    task: str


def from_alpaca(row: dict[str, Any]) -> list[Message]:
    """`instruction`, `input`, `output` (Stanford Alpaca, ChatDoctor); the input follows on a new line.

    LLaMA-Factory's `system` and `history` (a list of pairs) come before it.
    """
    request = row["instruction"] + (f"\n{row['input']}" if row.get("input") else "")
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    before = [message for asked, answered in row.get("history") or [] for message in _turn(asked, answered)]
    return [*system, *before, *_turn(request, row["output"])]


def from_pclue(row: dict[str, Any]) -> list[Message]:
    """pCLUE: `input` and `target`; `type` is the task, and the choices stand in the input already."""
    return _turn(row["input"], row["target"])


def from_translation(row: dict[str, Any]) -> list[Message]:
    """`english`, `chinese`: one request, its direction and wording fixed by the pair itself."""
    english, chinese = row["english"], row["chinese"]
    if not re.search("[a-zA-Z]", english):
        raise RowError("no English in the English")
    if not HAN.search(chinese):
        raise RowError("no Chinese in the Chinese")
    return _turn(*translation_request(english.strip(), chinese.strip()))


def from_belle_text(row: dict[str, Any]) -> list[Message]:
    """BELLE's first releases: turns as `Human:` and `Assistant:` in one text, the last reply a field of its own."""
    text = f"{row.get('instruction') or ''}\n{row.get('input') or ''}"
    parts = TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        raise RowError("no Human: at its beginning")
    turns = [(role, content.strip()) for role, content in zip(parts[1::2], parts[2::2], strict=True)]
    if turns[-1] == ("Assistant", ""):
        del turns[-1]
    reply = row["output"] if "output" in row else row["target"]
    names = {"Human": "user", "Assistant": "assistant"}
    messages = [{"role": names[role], "content": content} for role, content in turns]
    return [*messages, {"role": "assistant", "content": reply}]


def from_conversations(row: dict[str, Any]) -> list[Message]:
    """ShareGPT and BELLE `conversations`: a list of `from` and `value`; a `system` beside it comes first."""
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return [*system, *({"role": _role(m["from"]), "content": m["value"]} for m in row["conversations"])]


def from_messages(row: dict[str, Any]) -> list[Message]:
    """OpenAI `messages`: a list of `role` and `content`."""
    messages = [{"role": _role(m["role"]), "content": m["content"]} for m in row["messages"]]
    if any(message.get("weight") not in (None, 1) for message in row["messages"]):
        raise RowError("a message of weight 0")  # what is learnt is a setting of the mixture
    return messages


def _is_belle(row: dict[str, Any]) -> bool:
    """Whether replies come `from` an assistant: those of ShareGPT come from gpt."""
    turns = row.get("conversations")
    return isinstance(turns, list) and any(
        isinstance(turn, dict) and turn.get("from") == "assistant" for turn in turns
    )


def _is_belle_text(row: dict[str, Any]) -> bool:
    asked = row.get("instruction") or row.get("input")
    answered = "output" in row or "target" in row
    return answered and isinstance(asked, str) and bool(re.match(r"\s*Human\s*[:：]", asked))


# The first that is told wins.
FORMATS: dict[str, Format] = {
    "messages": Format(lambda row: "messages" in row, from_messages, "conversation"),
    "belle": Format(_is_belle, from_conversations, "conversation"),
    "sharegpt": Format(lambda row: "conversations" in row, from_conversations, "conversation"),
    "belle-text": Format(_is_belle_text, from_belle_text, "conversation"),
    "alpaca": Format(lambda row: {"instruction", "output"} <= row.keys(), from_alpaca, "instruction"),
    "pclue": Format(lambda row: {"input", "target", "type"} <= row.keys(), from_pclue, "pclue"),
    "translation": Format(lambda row: {"english", "chinese"} <= row.keys(), from_translation, "translation"),
}


def is_told(row: dict[str, Any]) -> bool:
    """Whether a row has the layout of one of the formats."""
    return any(one.is_told(row) for one in FORMATS.values())


def detect(rows: Sequence[Any], file: object) -> str:
    """The format that most of a file's first rows have.

    Raises:
        UserError: none of them has a known one.
    """
    told: Counter[str] = Counter()
    objects = [row for row in rows[:LOOKED_AT] if isinstance(row, dict)]
    for row in objects:
        name = next((name for name, one in FORMATS.items() if one.is_told(row)), None)
        if name:
            told[name] += 1
    if told:
        return told.most_common(1)[0][0]
    if not objects:
        raise UserError(f"{file}: not one good row: no row is a JSON object")
    raise UserError(f"{file}: no known format in keys {sorted(objects[0])}; known are {', '.join(FORMATS)}")


def read_row(row: Any, name: str) -> tuple[list[Message], str]:
    """A row's messages, ready to be learnt, and its type of task.

    Raises:
        RowError: why it cannot be learnt from.
    """
    if not isinstance(row, dict):
        raise RowError("not a JSON object")
    if name == "alpaca" and _is_belle_text(row):
        raise RowError("Human: and Assistant: in a file of alpaca")
    try:
        messages = FORMATS[name].read(row)
    except (KeyError, TypeError, AttributeError) as problem:
        raise RowError("missing or mistyped field") from problem
    except RowError:
        raise
    except ValueError as problem:  # history that is no list of pairs
        raise RowError("missing or mistyped field") from problem
    _check(messages)
    task = row["type"] if name == "pclue" and isinstance(row["type"], str) else FORMATS[name].task
    return messages, task


def _check(messages: list[Message]) -> None:
    """Raise RowError unless a conversation can be learnt from."""
    if not all(isinstance(message["content"], str) for message in messages):
        raise RowError("missing or mistyped field")
    turns = [message["role"] for message in messages]
    if turns[:1] == ["system"]:
        del turns[0]
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise RowError("turns do not alternate")
    for message in messages:
        if not message["content"].strip() and message["role"] != "system":
            raise RowError("empty reply" if message["role"] == "assistant" else "empty request")
        if not message["content"].isascii() and re.search("[\ud800-\udfff]", message["content"]):
            raise RowError("half a character")  # an emoji cut in two, as JSON can spell it and UTF-8 cannot


def _turn(asked: str, answered: str) -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _role(name: str) -> str:
    if name not in ROLES:
        raise RowError("unknown role")  # tool calls, say
    return ROLES[name]
