"""Files of prompts: every shape of a row, and every refusal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from zhllama.config import UserError
from zhllama.conversation.formats import Message
from zhllama.conversation.prompts import read_prompts

QUESTION: list[Message] = [{"role": "user", "content": "中国的首都是哪里？"}]


def put(folder: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "prompts.jsonl"


def refusal(what: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        what()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"instruction": "问"}, [{"role": "user", "content": "问"}]),
        ({"instruction": "问", "input": "", "output": "答"}, [{"role": "user", "content": "问"}]),
        ({"instruction": "问", "input": "文"}, [{"role": "user", "content": "问\n文"}]),
        ({"input": "问", "target": "答", "type": "mrc"}, [{"role": "user", "content": "问"}]),
        ({"messages": QUESTION, "id": 3}, QUESTION),
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "human", "content": "问"}]},
            [{"role": "system", "content": "s"}, {"role": "user", "content": "问"}],
        ),
    ],
)
def test_rows_become_conversations(tmp_path: Path, row: Any, messages: list[Message]) -> None:
    assert read_prompts(put(tmp_path, "", row, "  ", row), "--input") == [messages, messages]


def test_a_windows_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"instruction": "a"}\r\n{"instruction": "b"}\r\n')
    assert [messages[0]["content"] for messages in read_prompts(file, "--input")] == ["a", "b"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a"},
        {"input": 3},
        {"instruction": 3},
        {"instruction": None},
        {"messages": []},
        {"messages": None},
        {"messages": "text"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [*QUESTION, {"role": "assistant", "content": "北京"}]},
        [1],
        '"instruction"',
        "3",
    ],
)
def test_a_row_of_another_shape_is_refused(tmp_path: Path, row: Any) -> None:
    file = put(tmp_path, {"instruction": "a"}, row)
    assert refusal(lambda: read_prompts(file, "--input")) == (
        f"--input {file} line 2: give instruction (and input) as text, input alone, "
        "or messages of role and content that end with the user's"
    )


def test_a_line_that_is_not_json_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path, {"instruction": "a"}, "plain text")
    assert (
        refusal(lambda: read_prompts(file, "--input")) == f"--input {file} line 2: not JSON (Expecting value)"
    )


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path, "")
    assert refusal(lambda: read_prompts(file, "--input")) == f"--input {file}: no row inside"


def test_lists_and_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "问"}] * 2, indent=1), encoding="utf-8")
    (tmp_path / "a.csv").write_text('instruction,input\n问,\n"问",\n', encoding="utf-16")
    pyarrow.parquet.write_table(pyarrow.table({"messages": [QUESTION] * 2}), tmp_path / "a.parquet")
    asked = [{"role": "user", "content": "问"}]
    for name, messages in (("a.json", asked), ("a.csv", asked), ("a.parquet", QUESTION)):
        assert read_prompts(tmp_path / name, "--input") == [messages, messages], name


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"instruction": "\\ud83d"}', "half a character"),
        (b'{"instruction": NaN}', "give instruction"),
        (b"[" * 99_999, "not JSON (nested too deep)"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    assert refusal(lambda: read_prompts(file, "--input")).startswith(f"--input {file} line 1: {what}")


def test_a_gbk_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes('{"instruction": "问"}'.encode("gbk"))
    assert read_prompts(file, "--input") == [[{"role": "user", "content": "问"}]]


def test_a_file_in_no_encoding_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"instruction": "\xff"}')
    assert (
        refusal(lambda: read_prompts(file, "--input"))
        == f"--input {file}: not UTF-8 at byte 17; convert it with iconv"
    )
