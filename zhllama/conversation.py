"""Conversations: instruction files to messages, messages to token ids and a loss mask."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zhllama.config import UserError
from zhllama.terminal import say, track

Message = dict[str, str]
Sample = tuple[list[int], list[bool]]
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass
class Source:
    """One instruction file of a mixture."""

    file: str
    """JSON (a list) or JSONL."""
    samples: int = 0
    """Take this many rows from the front, repeating the file where it has fewer; 0 takes all once."""

    def checked(self) -> Path:
        """The file's path; raises UserError where there is none."""
        if not Path(self.file).is_file():
            raise UserError(f"data: no such file: {self.file}")
        if self.samples < 0:
            raise UserError(f"data {self.file}: samples {self.samples} is below 0")
        return Path(self.file)


def from_alpaca(row: dict[str, Any]) -> list[Message]:
    """`instruction`, `input`, `output` (Stanford Alpaca); the input follows the instruction on a new line."""
    request = row["instruction"] + (f"\n{row['input']}" if row.get("input") else "")
    return [{"role": "user", "content": request}, {"role": "assistant", "content": row["output"]}]


def from_messages(row: dict[str, Any]) -> list[Message]:
    """OpenAI `messages`: a list of `role` and `content`."""
    return [{"role": ROLES[m["role"]], "content": m["content"]} for m in row["messages"]]


def from_conversations(row: dict[str, Any]) -> list[Message]:
    """ShareGPT and BELLE `conversations`: a list of `from` and `value`."""
    return [{"role": ROLES[m["from"]], "content": m["value"]} for m in row["conversations"]]


# format -> (keys that tell it, reader); the first whose keys are all there wins.
FORMATS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], list[Message]]]] = {
    "messages": (("messages",), from_messages),
    "conversations": (("conversations",), from_conversations),
    "alpaca": (("instruction", "output"), from_alpaca),
}


def read_conversations(file: Path) -> tuple[str, list[list[Message]], Counter[str]]:
    """The format, the good conversations in order, and the reasons for which rows were dropped.

    Raises:
        UserError: not UTF-8, not JSON, no known format, or not one good row.
    """
    name: str | None = None
    good: list[list[Message]] = []
    dropped: Counter[str] = Counter()
    for row in _rows(file):
        if not isinstance(row, dict):
            dropped["not a JSON object"] += 1
            continue
        if name is None:
            name = next((key for key, (keys, _) in FORMATS.items() if all(k in row for k in keys)), None)
        if name is None:
            raise UserError(f"{file}: no known format in keys {sorted(row)}; known are {', '.join(FORMATS)}")
        try:
            messages = FORMATS[name][1](row)
        except (KeyError, TypeError):
            dropped["missing or mistyped field"] += 1
            continue
        reason = _fault(messages)
        if reason:
            dropped[reason] += 1
        else:
            good.append(messages)
    if name is None or not good:
        raise UserError(f"{file}: not one good row: {_reasons(dropped) or 'the file is empty'}")
    return name, good, dropped


def encode_mixture(
    sources: list[Source], tokenizer: Any, limit: int
) -> tuple[list[Sample], list[list[object]]]:
    """All samples of a mixture and a table of file, format, rows, dropped, tokens, share of tokens.

    Rows that cannot be learnt from are left out, and said to be, with the reason.

    Raises:
        UserError: no file, no EOS token, or not one conversation left (too long for `limit` tokens, say).
    """
    if not sources:
        raise UserError("data: name at least one instruction file")
    if tokenizer.eos_token is None:
        raise UserError("--model: its tokenizer has no EOS token, so no reply could end")
    special = re.compile(
        "|".join(re.escape(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special)
    )
    samples: list[Sample] = []
    table: list[list[object]] = []
    left_out: Counter[str] = Counter()
    for source in sources:
        file = source.checked()
        name, conversations, dropped = read_conversations(file)
        chosen = conversations[: source.samples or None]
        encoded = [
            _encode_row(messages, tokenizer, special, limit)
            for messages in track(chosen, f"encoding {file.name}")
        ]
        encoded = [encoded[row % len(encoded)] for row in range(source.samples or len(encoded))]
        kept = [sample for sample in encoded if not isinstance(sample, str)]
        dropped.update(reason for reason in encoded if isinstance(reason, str))
        left_out += dropped
        if dropped:
            say(f"{file}: left out {_reasons(dropped)}")
        samples += kept
        table.append([source.file, name, len(kept), dropped.total(), sum(len(ids) for ids, _ in kept)])
    total = sum(len(ids) for ids, _ in samples)
    if not samples:
        raise UserError(f"data: nothing left to learn from: {_reasons(left_out)}")
    return samples, [[*row, f"{100 * int(str(row[-1])) / total:.1f}%"] for row in table]


def encode(messages: list[Message], tokenizer: Any) -> Sample:
    """Token ids and which of them are learnt: each reply and its EOS, nothing else.

    The ids before a reply are exactly those that `chat` sends for the same history; what a template puts
    after a reply's EOS counts as part of the next prompt.

    Raises:
        UserError: a template whose prompt is not the beginning of the whole.
    """
    ids: list[int] = []
    learnt: list[bool] = []
    done = ""
    eos = tokenizer.eos_token
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(messages[:turn], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False)
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            raise UserError(
                "chat template: a prompt is not the beginning of the conversation; use another template"
            )
        reply = whole[len(prompt) :]
        reply = reply[: reply.rindex(eos) + len(eos)] if eos in reply else reply + eos
        for text, is_reply in ((prompt[len(done) :], False), (reply, True)):
            new = _continue(done, text, ids, tokenizer)
            ids += new
            learnt += [is_reply] * len(new)
            done += text
    return ids, learnt


def _encode_row(
    messages: list[Message], tokenizer: Any, special: re.Pattern[str], limit: int
) -> Sample | str:
    """A sample, or why there is none."""
    from jinja2 import TemplateError

    if any(special.search(message["content"]) for message in messages):
        return "the name of a special token in the text"  # `</s>` in a reply would teach to stop there
    try:
        sample = encode(messages, tokenizer)
    except TemplateError:  # some know no system role
        return "refused by the chat template"
    return sample if len(sample[0]) <= limit else f"longer than block_size {limit}"


def _continue(before: str, text: str, ids: list[int], tokenizer: Any) -> list[int]:
    """Ids of `text` as it stands after `before`; on its own where the seam would change the ids before it."""
    whole: list[int] = tokenizer(before + text, add_special_tokens=False)["input_ids"]
    if whole[: len(ids)] == ids:
        return whole[len(ids) :]
    alone: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return alone


def _fault(messages: list[Message]) -> str | None:
    """Why a conversation cannot be learnt from, or None."""
    if not all(isinstance(m["content"], str) for m in messages):
        return "missing or mistyped field"
    turns = [m["role"] for m in messages]
    if turns[:1] == ["system"]:
        del turns[0]
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        return "turns do not alternate"
    if not all(m["content"].strip() for m in messages if m["role"] == "assistant"):
        return "empty reply"
    if any("\ud800" <= character <= "\udfff" for m in messages for character in m["content"]):
        return "half a character"  # an emoji cut in two, as JSON can spell it and UTF-8 cannot
    return None


def _reasons(dropped: Counter[str]) -> str:
    return ", ".join(f"{count:,} ({reason})" for reason, count in dropped.most_common())


def _rows(file: Path) -> Iterator[Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UserError(f"{file}: not UTF-8 at byte {problem.start}; convert it with iconv") from problem
    try:
        if text.lstrip().startswith("["):
            yield from json.loads(text)
            return
    except json.JSONDecodeError as problem:
        raise UserError(f"{file} line {problem.lineno}: not JSON ({problem.msg})") from problem
    for line in filter(str.strip, text.split("\n")):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            yield line  # counted by the caller as no object
