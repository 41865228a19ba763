"""Instruction files: JSON, JSONL and TSV by line, and which of their rows are left out."""

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from zhllama.config import UserError
from zhllama.conversation.read import SHOWN, Dropped, in_words, read_conversations, read_instructions
from zhllama.tables import Unread

ALPACA = {"instruction": "翻译", "input": "hello", "output": "你好"}
EMPTY = {**ALPACA, "output": ""}


def put(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def refusal(file: Path, name: str = "detect") -> str:
    with pytest.raises(UserError) as refused:
        read_conversations(file, name)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_an_empty_list_has_no_rows(tmp_path: Path) -> None:
    file = put(tmp_path, ["[ ]"])
    assert refusal(file) == f"{file}: not one good row: the file is empty"


def test_windows_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join([json.dumps(ALPACA)] * 2).encode("utf-8") + b"\r\n")
    read = read_conversations(file)
    assert (read.format, [row.line for row in read.rows], read.dropped.total()) == ("alpaca", [1, 3], 0)


@pytest.mark.parametrize("names", [["english\tchinese"], ["zh\ten"], []])
@pytest.mark.parametrize("swapped", [False, True])
def test_columns_of_a_tsv_are_told(tmp_path: Path, names: list[str], swapped: bool) -> None:
    chinese_first = names == ["zh\ten"] or (not names and swapped)
    pairs = [("Good day.", "你好。"), ("Yes, sir.", "是的。")]
    lines = ["\t".join(pair[::-1] if chinese_first else pair) for pair in pairs]
    read = list(read_instructions(put(tmp_path, [*names, *lines], "pairs.tsv")))
    assert [row for _, row in read] == [
        {"english": english, "chinese": chinese} for english, chinese in pairs
    ]
    assert read[0][0] == 1 + len(names)


def test_the_column_of_rare_characters_is_the_chinese_one(tmp_path: Path) -> None:
    file = put(tmp_path, ["\u3400\U00020000\tFirst of extensions A and B"], "pairs.tsv")
    assert [row["chinese"] for _, row in read_instructions(file)] == ["\u3400\U00020000"]


def test_other_columns_of_a_tsv_are_passed_over_and_torn_lines_dropped(tmp_path: Path) -> None:
    file = put(tmp_path, ["id\tenglish\tchinese", "7\tYes.\t是。", "8\tNo."], "pairs.tsv")
    torn = Unread("8\tNo.", "2 cells, not 3")
    assert list(read_instructions(file)) == [(2, {"english": "Yes.", "chinese": "是。"}), (3, torn)]
    read = read_conversations(file)
    assert (read.format, len(read.rows)) == ("translation", 1)
    assert read.dropped.found() == {"not a JSON object": {"rows": 1, "lines": [3]}}


def test_a_tsv_without_two_columns_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path, ["a\tb\tc", "d"], "pairs.tsv")
    assert refusal(file) == f"{file}: no line of two columns between tabs; name more in a first line"


def test_dropped_rows_are_counted_with_their_first_lines(tmp_path: Path) -> None:
    file = put(tmp_path, [ALPACA, *[EMPTY] * 7, '{"instruction": "cut sh'])
    read = read_conversations(file)
    assert len(read.rows) == 1
    assert read.dropped.found() == {
        "empty reply": {"rows": 7, "lines": [2, 3, 4, 5, 6]},
        "not a JSON object": {"rows": 1, "lines": [9]},
    }
    said = "7 (empty reply: lines 2, 3, 4, 5, 6, ...), 1 (not a JSON object: line 9)"
    assert in_words(read.dropped.found()) == said


def test_the_first_lines_are_kept_in_whatever_order_they_come() -> None:
    dropped = Dropped()
    for line in reversed(range(1, 20)):
        dropped.add("why", line)
    assert dropped.lines["why"] == list(range(1, SHOWN + 1))


def test_a_format_can_be_forced(tmp_path: Path) -> None:
    file = put(tmp_path, [{**ALPACA, "target": "t", "type": "x"}])
    assert read_conversations(file).format == "alpaca"
    assert read_conversations(file, "pclue").rows[0].messages[0]["content"] == "hello"
    assert refusal(file, "messages") == (f"{file}: not one good row as messages: 1 (no messages: line 1)")


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([], "not one good row: the file is empty"),
        (["plain text", "more"], "not one good row: no row is a JSON object"),
        (
            [EMPTY, {**EMPTY, "output": "\n"}, {**EMPTY, "instruction": 1}],
            "not one good row as alpaca: 2 (empty reply: lines 1, 2), 1 (instruction is no text: line 3)",
        ),
    ],
)
def test_a_file_without_a_good_row_is_refused(tmp_path: Path, rows: list[Any], what: str) -> None:
    file = put(tmp_path, rows)
    assert refusal(file) == f"{file}: {what}"


def spreadsheet(rows: list[list[str]], dialect: str) -> str:
    content = io.StringIO()
    csv.writer(content, dialect).writerows(rows)
    return content.getvalue()


ORDER = ["instruction", "input", "output"]
SECOND = {"instruction": "写\n两行", "input": "", "output": '“引号”和"quotes"'}
TABLE = [ORDER, *([row[key] for key in ORDER] for row in (ALPACA, SECOND))]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.csv", lambda file: file.write_text(spreadsheet(TABLE, "excel"), encoding="utf-8-sig")),
        ("rows.tsv", lambda file: file.write_text(spreadsheet(TABLE, "excel-tab"), encoding="utf-16")),
        (
            "rows.csv.gz",
            lambda file: file.write_bytes(gzip.compress(spreadsheet(TABLE, "excel").encode("gbk"))),
        ),
        ("rows.json.xz", lambda file: file.write_bytes(lzma.compress(json.dumps([ALPACA, SECOND]).encode()))),
        (
            "rows.parquet",
            lambda file: pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ALPACA, SECOND]), file),
        ),
        (
            "rows.arrow",
            lambda file: pyarrow.feather.write_feather(pyarrow.Table.from_pylist([ALPACA, SECOND]), file),
        ),
        ("rows", lambda file: datasets.Dataset.from_list([ALPACA, SECOND]).save_to_disk(file)),
    ],
)
def test_rows_in_every_container(tmp_path: Path, name: str, write: Callable[[Path], object]) -> None:
    datasets.disable_progress_bars()
    write(tmp_path / name)
    read = read_conversations(tmp_path / name)
    assert (read.format, read.dropped.total()) == ("alpaca", 0)
    assert [[m["content"] for m in row.messages] for row in read.rows] == [
        ["翻译\nhello", "你好"],
        [SECOND["instruction"], SECOND["output"]],
    ]


def test_rows_of_a_hub_and_lists_of_messages_in_a_table(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    weighted = [talk[0], {**talk[1], "weight": 1}]  # the table has weights for all, of which some are null
    file = put(tmp_path, [{"messages": talk}, {"messages": weighted}], "train.jsonl")
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"messages": weighted}, {"messages": talk}]), tmp_path / "a.parquet"
    )
    for path in (file, tmp_path / "a.parquet", Path(f"hf:{tmp_path / 'hub'}")):
        (tmp_path / "hub").mkdir(exist_ok=True)
        put(tmp_path / "hub", [{"messages": talk}] * 2, "train.jsonl")
        read = read_conversations(path)
        assert (read.format, read.dropped.total()) == ("messages", 0)
        assert [row.messages for row in read.rows] == [talk, talk]


def test_a_spreadsheets_translation_pairs_are_whole(tmp_path: Path) -> None:
    file = tmp_path / "excel.tsv"
    file.write_text(
        'english\tchinese\n"He said ""go"".\nThen left."\t"他说“走”。\n走了。"\nSky.\t天。\n',
        encoding="utf-8",
    )
    assert list(read_instructions(file)) == [
        (2, {"english": 'He said "go".\nThen left.', "chinese": "他说“走”。\n走了。"}),
        (5, {"english": "Sky.", "chinese": "天。"}),
    ]


def test_a_table_without_a_row_is_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "a.tsv"):
        assert refusal(put(tmp_path, [""], name)) == f"{tmp_path / name}: not one good row: the file is empty"


def test_damage_costs_its_rows_and_half_a_character_only_where_it_is_learnt(tmp_path: Path) -> None:
    file = put(tmp_path, [ALPACA] * 40)
    half = [{**ALPACA, "id": "\ud83d"}, {**ALPACA, "output": "\ud83d"}]
    content = [*file.read_bytes().splitlines(), *(json.dumps(row).encode() for row in half)]
    content[3] = content[3].replace("翻".encode(), b"\xff")
    file.write_bytes(b"\n".join(content))
    read = read_conversations(file)
    assert len(read.rows) == 40
    assert read.dropped.found() == {
        "bytes that are no text": {"rows": 1, "lines": [4]},
        "half a character": {"rows": 1, "lines": [42]},
    }


def test_nothing_is_learnt_of_nan(tmp_path: Path) -> None:
    file = put(
        tmp_path, ['[{"instruction": "写", "input": NaN, "output": "好", "system": NaN, "history": NaN}]']
    )
    assert read_conversations(file).rows[0].messages == [
        {"role": "user", "content": "写"},
        {"role": "assistant", "content": "好"},
    ]


@pytest.mark.parametrize("encoding", ["gbk", "big5", "utf-16"])
def test_encodings_of_the_chinese_world_are_read(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "rows.jsonl"
    row = {"instruction": "請問你是誰" if encoding == "big5" else "请问你是谁", "output": "你好"}
    file.write_bytes(json.dumps(row, ensure_ascii=False).encode(encoding))
    assert [message["content"] for message in read_conversations(file).rows[0].messages] == list(row.values())


def test_a_file_in_no_encoding_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    content = json.dumps(ALPACA, ensure_ascii=False).encode("gbk")
    file.write_bytes(content.replace("翻译".encode("gbk"), b"\xff\xff"))
    assert refusal(file) == f"{file}: not UTF-8 at byte 17; convert it with iconv"


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (["[", '{"a": 1},', '{"a": ]'], "line 3: not JSON (Expecting value)"),
        (['[{"a": 1}', '{"a": 2}]'], "line 2: not JSON (Expecting ',' delimiter)"),
        (['[{"a": 1}]', "[2]"], "line 2: not JSON (Extra data)"),
    ],
)
def test_a_list_that_is_not_json_is_refused(tmp_path: Path, lines: list[str], what: str) -> None:
    file = put(tmp_path, lines)
    assert refusal(file) == f"{file} {what}"


def test_a_table_of_diseases_is_no_instruction_file(shared_data: Path) -> None:
    assert refusal(shared_data / "chatdoctor_disease_database_mini.csv").endswith(
        "a table and not an instruction file (ChatDoctor's is what its instructions were made from); "
        "give JSON, JSONL, or translation pairs as .tsv"
    )


def test_a_csv_is_refused(tmp_path: Path) -> None:
    assert "no known format in columns a, b: a table" in refusal(put(tmp_path, ["a,b", "1,2"], "rows.csv"))
    assert "a table and not an instruction file" in refusal(put(tmp_path, ["a,b"], "rows.csv"))
