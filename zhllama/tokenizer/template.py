"""Chat templates: those that ship, and what any template must keep to before a model is tuned with it.

A template is Jinja as transformers stores it with the tokenizer, so that `transformers chat`, `transformers serve` and
vLLM render the text that was trained on. An Alpaca `input` has no place of its own in chat messages: it follows the
instruction in the user's message, and where the line `### Input:` stands between them (`### 输入：` in Chinese), the
Alpaca templates write the preface of the form with input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Literal

from zhllama.config import UserError

Template = Literal[
    "keep",
    "alpaca",
    "alpaca_zh",
    "alpaca_zh_short",
    "chinese_alpaca",
    "alpaca2",
    "llama2",
    "chatml",
    "llama3",
]
# template -> its marks; the last one ends a turn and becomes the EOS
MARKS = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}
WRITE_BOS = ("alpaca2", "llama2", "llama3")  # those that do not work without a BOS token
# Stands in no shipped template, so what follows it is what ends a reply.
REPLY = "一二三"
TALK = [{"role": role, "content": REPLY} for role in ("user", "assistant") * 2]
# Written like <|im_end|>, it is meant as one token; [INST], say, is plain text to Llama-2.
LIKE_A_MARK = re.compile(r"<\|[^|<>\s]+\|>")


def shipped(name: str) -> str:
    """The text of a template that ships with the package."""
    return files("zhllama.tokenizer").joinpath("templates", f"{name}.jinja").read_text(encoding="utf-8")


def render(
    template: str, messages: list[dict[str, str]], roles: Mapping[str, str | None], prompt: bool = False
) -> str:
    """A conversation as transformers renders it; `prompt` adds what comes before the next reply.

    Args:
        roles: `bos_token`, `eos_token` and the like, as `tokenizer_config.json` names them.

    Raises:
        jinja2.TemplateError: no such template language, or a conversation that the template refuses.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    named = {"bos_token": None, "eos_token": None, **roles}
    texts: Any = render_jinja_template(
        conversations=[messages], chat_template=template, add_generation_prompt=prompt, **named
    )
    return str(texts[0][0])


def reply_end(template: str, roles: Mapping[str, str | None], tokens: set[str]) -> str | None:
    """The special token that a template writes straight after a reply, which is what should end one; None without.

    Args:
        tokens: the special tokens of the vocabulary.
    """
    from jinja2 import TemplateError

    try:
        # The last reply's: some templates join earlier turns in another way.
        after = render(template, TALK, roles).rpartition(REPLY)[2].lstrip()
    except TemplateError:
        return None
    # The longest: one token's name may begin another's.
    return max((token for token in tokens if after.startswith(token)), key=len, default=None)


def check_marks(template: str, roles: Mapping[str, str | None], tokens: set[str], where: str) -> None:
    """Refuse a template that writes marks which the vocabulary has not: nothing after the merge can add them.

    A template that refuses the plain conversation tried here is left to whoever uses it.

    Args:
        tokens: every special token of the vocabulary.
        where: what the message begins with.

    Raises:
        UserError: names the mark.
    """
    from jinja2 import TemplateError

    try:
        # With a prompt too, where templates open the reply.
        text = render(template, TALK, roles) + render(template, TALK[:1], roles, prompt=True)
    except TemplateError:
        return
    for mark in LIKE_A_MARK.findall(text):
        if mark not in tokens:
            raise UserError(
                f"{where}: the chat template writes {mark}, which is no special token of the vocabulary; give "
                f"merge-tokenizer --special '{mark}', or another --template"
            )
