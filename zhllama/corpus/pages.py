"""The text of web pages and Markdown files: one document each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from zhllama import decode
from zhllama.config import UserError

# YAML between --- or TOML between +++, before anything else.
# Only at the very top: --- between paragraphs is a rule that stays.
FRONT_MATTER = re.compile(r"\A\s*(-{3}|\+{3})[ \t]*\n(?:.*\n)*?\1[ \t]*(?:\n|\Z)")


def web_page(html: str) -> str:
    """The main text of a page and its comments by trafilatura: without menus, footers, scripts; "" where there is none.

    Tables and lists stay, one paragraph or item a line.
    """
    import trafilatura

    return trafilatura.extract(html) or "" if html.strip() else ""


def markdown(text: str) -> str:
    """Markdown as it is written, without the front matter before it."""
    return FRONT_MATTER.sub("", text, count=1)


def whole(path: Path, lines: Iterator[str]) -> str:
    """All lines of a file as one text.

    Raises:
        UserError: more than 64 million characters.
    """
    # Counted while it is read: the limit is there so that memory holds the whole.
    held: list[str] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size > decode.LONGEST_DOCUMENT:
            raise UserError(f"{path}: longer than {decode.LONGEST_DOCUMENT:,} characters; split or delete it")
    return "\n".join(held)
