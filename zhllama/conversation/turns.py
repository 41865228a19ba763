"""Turns as they can be learnt: request and reply by turns, each saying something."""

from __future__ import annotations

import re
from typing import Literal

from zhllama.conversation.formats import Message, RowError

Turns = Literal["mend", "drop"]
UNEVEN = "turns do not alternate"
JOINED = "two turns of one speaker joined"
UNASKED = "a first reply that nobody asked for left out"
UNANSWERED = "a last request without a reply left out"
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can spell it, UTF-8 cannot hold it


def even_turns(messages: list[Message], how: Turns) -> tuple[list[Message], list[str]]:
    """A conversation whose turns alternate, from a request to a reply, and what was done for that.

    With `mend`, two turns of one speaker become one, and a reply before the first request or a request behind the last
    reply is left out; with `drop`, such a conversation is refused.

    Raises:
        RowError: why it cannot be learnt from.
    """
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    for message in messages:
        if not message["content"].isascii() and HALF.search(message["content"]):
            raise RowError("half a character")
    if any(message["role"] == "system" for message in turns):
        raise RowError(UNEVEN)
    done: list[str] = []
    if turns and turns[0]["role"] == "assistant":
        turns, done = turns[1:], [UNASKED]
    mended: list[Message] = []
    for turn in turns:
        if mended and mended[-1]["role"] == turn["role"]:
            mended[-1] = {**turn, "content": "\n".join((mended[-1]["content"], turn["content"]))}
            done.append(JOINED)
        else:
            mended.append(turn)
    if mended and mended[-1]["role"] == "user" and len(mended) > 1:
        mended.pop()
        done.append(UNANSWERED)
    if (done and how == "drop") or len(mended) < 2:
        raise RowError(UNEVEN)
    for message in mended:
        if not message["content"].strip():
            raise RowError("empty reply" if message["role"] == "assistant" else "empty request")
    return [*system, *mended], list(dict.fromkeys(done))
