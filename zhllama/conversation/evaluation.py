"""The questions of evaluation files, and the conversations that hold one: `corpus.contamination` for instructions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zhllama.config import UserError
from zhllama.conversation.duplicates import mark_near_copies
from zhllama.conversation.formats import FORMATS, Message, RowError, detect, joined
from zhllama.conversation.read import read_instructions
from zhllama.corpus.compare import compact
from zhllama.corpus.contamination import EvaluationIndex
from zhllama.decode import extension_of
from zhllama.rows import HALF
from zhllama.tables import DAMAGED, Unread

# Characters of a question from which on it is looked for inside of longer texts. A whole question needs fewer than a
# piece of a document: 27 of 1,000 of BELLE's have 10 to 12, and not one of 7,890 articles and reviews holds any.
WHOLE = 10
QUESTION_KEYS = ("question", "prompt", "instruction", "input", "text")


def read_questions(file: Path) -> list[str]:
    """The texts of an evaluation file that a mixture must not hold, as `compact` has them.

    Of instruction files these are the requests, of translation pairs both sides; else `question`, `prompt`,
    `instruction` with `input`, `input` or `text` of a row; of a .txt each line.

    Raises:
        UserError: no such file, a row that cannot be read, or no question in it.
    """
    if not file.is_file():
        raise UserError(f"mixture.evaluation: no such file: {file}")
    rows = list(_rows(file))
    name = None
    if any(isinstance(row, dict) for row in rows):
        name = _format(rows, file)
    texts = [text for row in rows for text in _questions(row, name)]
    questions = list(dict.fromkeys(filter(None, map(compact, texts))))
    if not questions:
        raise UserError(
            f"mixture.evaluation {file}: no question in it; known are instruction files, rows with one of "
            f"{', '.join(QUESTION_KEYS)}, and lines of .txt"
        )
    return questions


def _rows(file: Path) -> Iterator[Any]:
    """Rows of JSON and tables; lines that are none as the text that they are."""
    lists = extension_of(file) != ".txt"
    for line, row in read_instructions(file, lists=lists, columns=QUESTION_KEYS):
        if not isinstance(row, Unread):
            yield row
        elif row.reason in (DAMAGED, HALF):
            raise UserError(f"mixture.evaluation {file} line {line}: {row.reason}; mend or delete it")
        else:
            yield row.text


def mark_contaminated(
    questions: Sequence[str], conversations: Sequence[list[Message]], similarity: float
) -> NDArray[Any]:
    """(conversations,) bool: a request is or nearly is a question, or the text contains one of 10 characters or more.

    Near is as `mark_near_copies` has it, 1 leaves only the same.
    """
    asked = [
        (place, compact(message["content"]))
        for place, messages in enumerate(conversations)
        for message in messages
        if message["role"] == "user"
    ]
    known = set(questions)
    found = _mark_containing(
        questions, [compact("".join(m["content"] for m in messages)) for messages in conversations]
    )
    for place, text in asked:
        found[place] |= text in known
    if similarity < 1:
        near = mark_near_copies([*questions, *(text for _, text in asked)], similarity, of=len(questions))
        for request in np.flatnonzero(near[len(questions) :]).tolist():
            found[asked[request][0]] = True
    return found


def _mark_containing(questions: Sequence[str], texts: Sequence[str]) -> NDArray[Any]:
    """(texts,) bool, which hold one of the questions that are long enough to look for: found by how they begin."""
    beginnings: dict[str, list[str]] = {}
    for question in questions:
        if len(question) >= WHOLE:
            beginnings.setdefault(question[:WHOLE], []).append(question)
    index, groups = EvaluationIndex.of(WHOLE, enumerate(beginnings)), list(beginnings.values())
    found = np.zeros(len(texts), dtype=bool)
    for place, text in enumerate(texts):
        _, numbers = index.find(text)
        found[place] = any(
            question in text for number in set(numbers.tolist()) for question in groups[number]
        )
    return found


def _format(rows: Sequence[Any], file: Path) -> str | None:
    """The format of instructions that a file has, None where it has another."""
    try:
        return detect(rows, file)
    except UserError:
        return None


def _questions(row: Any, name: str | None) -> list[str]:
    if isinstance(row, str):
        return [row]
    if not isinstance(row, dict):
        return []
    if name == "translation":
        return [side for side in (row.get("english"), row.get("chinese")) if isinstance(side, str)]
    if name is not None:
        try:
            messages = FORMATS[name].read(row)
        except RowError:  # a question needs no answer to be one
            messages = []
        if asked := [message["content"] for message in messages if message["role"] == "user"]:
            return asked
    if isinstance(row.get("instruction"), str):
        parts = [row.get(key) for key in ("instruction", "input")]
        return [joined(*(part for part in parts if isinstance(part, str)))]
    return [value for key in QUESTION_KEYS if isinstance(value := row.get(key), str)][:1]
