"""The formats of instruction files: how each is told, and how its rows become messages."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
        read: its messages; RowError where it has none.
        task: type of its rows where neither the row nor the recipe says one.
    """

    is_told: Callable[[dict[str, Any]], bool]
    read: Callable[[dict[str, Any]], list[Message]]
    task: str


def is_absent(value: Any) -> bool:
    """Whether a field says nothing: null, or the NaN that pandas writes into an empty cell."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(row: Mapping[str, Any], key: str) -> str:
    """A field that a row must have, as it stands; RowError names it where it is absent or no text."""
    value = row.get(key)
    if is_absent(value):
        raise RowError(f"no {key}")
    if not isinstance(value, str):
        raise RowError(f"{key} is no text")
    return value


def optional_text(row: Mapping[str, Any], key: str) -> str:
    """A field that a row may leave out: nothing where it is absent; RowError where it is no text."""
    return "" if is_absent(row.get(key)) else text_of(row, key)


def joined(*parts: str) -> str:
    """The parts of a request that say something, each on a line of its own."""
    return "\n".join(part for part in parts if part.strip())


def from_alpaca(row: dict[str, Any]) -> list[Message]:
    """`instruction`, `input`, `output` (Stanford Alpaca, ChatDoctor); the input follows on a new line.

    LLaMA-Factory's `system` and `history` (a list of pairs) come before it.
    """
    request = joined(optional_text(row, "instruction"), optional_text(row, "input"))
    if not request and is_absent(row.get("instruction")):
        raise RowError("no instruction")
    return [*_system(row), *_history(row), *_turn(request, text_of(row, "output"))]


def from_pclue(row: dict[str, Any]) -> list[Message]:
    """pCLUE: `input` and `target`; `type` is the task, and the choices stand in the input already."""
    return _turn(text_of(row, "input"), text_of(row, "target"))


def from_translation(row: dict[str, Any]) -> list[Message]:
    """`english`, `chinese`: one request, its direction and wording fixed by the pair itself."""
    english, chinese = text_of(row, "english"), text_of(row, "chinese")
    if not re.search("[a-zA-Z]", english):
        raise RowError("no English in the English")
    if not HAN.search(chinese):
        raise RowError("no Chinese in the Chinese")
    return _turn(*translation_request(english.strip(), chinese.strip()))


def from_belle_text(row: dict[str, Any]) -> list[Message]:
    """BELLE's first releases: turns as `Human:` and `Assistant:` in one text, the last reply a field of its own."""
    text = joined(optional_text(row, "instruction"), optional_text(row, "input"))
    parts = TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        raise RowError("no Human: at its beginning")
    turns = [(role, content.strip()) for role, content in zip(parts[1::2], parts[2::2], strict=True)]
    if turns[-1] == ("Assistant", ""):
        del turns[-1]
    reply = text_of(row, "output" if "output" in row else "target")
    names = {"Human": "user", "Assistant": "assistant"}
    messages = [{"role": names[role], "content": content} for role, content in turns]
    return [*messages, {"role": "assistant", "content": reply}]


def from_conversations(row: dict[str, Any]) -> list[Message]:
    """ShareGPT and BELLE `conversations`: a list of `from` and `value`, or of `role` and `content`; a `system` beside
    it comes first."""
    return [*_system(row), *_messages(row, "conversations")]


def from_messages(row: dict[str, Any]) -> list[Message]:
    """OpenAI `messages`: a list of `role` and `content`."""
    messages = _messages(row, "messages")
    weights = [message.get("weight") for message in row["messages"]]
    if any(not is_absent(weight) and weight != 1 for weight in weights):
        raise RowError("a message of weight 0")  # what is learnt is a setting of the mixture
    return messages


def _system(row: dict[str, Any]) -> list[Message]:
    content = optional_text(row, "system")
    return [{"role": "system", "content": content}] if content.strip() else []


def _history(row: dict[str, Any]) -> list[Message]:
    """LLaMA-Factory's earlier turns: a list of [request, reply]."""
    pairs = row.get("history")
    if is_absent(pairs):
        return []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise RowError("history is no list of pairs")
    turns = [dict(zip(("request", "reply"), pair, strict=True)) for pair in pairs]
    return [message for one in turns for message in _turn(text_of(one, "request"), text_of(one, "reply"))]


def _messages(row: dict[str, Any], key: str) -> list[Message]:
    """Turns under either pair of names; a system message that says nothing is left out."""
    turns = row.get(key)
    if is_absent(turns):
        raise RowError(f"no {key}")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError(f"{key} is no list of messages")
    messages: list[Message] = []
    for turn in turns:
        name = text_of(turn, "from" if "from" in turn and "role" not in turn else "role")
        if name not in ROLES:
            raise RowError("unknown role")  # tool calls, say
        key = "value" if "value" in turn and "content" not in turn else "content"
        if ROLES[name] == "system" and is_absent(turn.get(key)):
            continue
        messages.append({"role": ROLES[name], "content": text_of(turn, key)})
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
    """A row's messages as they stand, and its type of task.

    Raises:
        RowError: a field that is absent or of another type, named.
    """
    if not isinstance(row, dict):
        raise RowError("not a JSON object")
    if name == "alpaca" and _is_belle_text(row):
        raise RowError("Human: and Assistant: in a file of alpaca")
    messages = FORMATS[name].read(row)
    task = row["type"] if name == "pclue" and isinstance(row["type"], str) else FORMATS[name].task
    return messages, task


def _turn(asked: str, answered: str) -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
