"""Instruction files: JSON, JSONL and TSV by line, and which of their rows are left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from zhllama.config import UserError
from zhllama.conversation.read import SHOWN, Dropped, in_words, read_conversations, read_rows

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


def test_lines_of_jsonl_are_counted_from_one_with_empty_ones(tmp_path: Path) -> None:
    file = put(tmp_path, [ALPACA, "", "no json", ALPACA])
    assert list(read_rows(file)) == [(1, ALPACA), (3, "no json"), (4, ALPACA)]


def test_rows_of_a_list_are_found_by_the_line_that_they_begin_on(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text("\n" + json.dumps([ALPACA, 3, EMPTY], indent=1) + "\n", encoding="utf-8")
    assert list(read_rows(file)) == [(3, ALPACA), (8, 3), (9, EMPTY)]


def test_a_list_on_one_line_is_read(tmp_path: Path) -> None:
    assert list(read_rows(put(tmp_path, [[ALPACA, ALPACA]]))) == [(1, ALPACA), (1, ALPACA)]


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
    read = list(read_rows(put(tmp_path, [*names, *lines], "pairs.tsv")))
    assert [row for _, row in read] == [
        {"english": english, "chinese": chinese} for english, chinese in pairs
    ]
    assert read[0][0] == 1 + len(names)


def test_the_column_of_rare_characters_is_the_chinese_one(tmp_path: Path) -> None:
    file = put(tmp_path, ["\u3400\U00020000\tFirst of extensions A and B"], "pairs.tsv")
    assert [row["chinese"] for _, row in read_rows(file)] == ["\u3400\U00020000"]


def test_other_columns_of_a_tsv_are_passed_over_and_torn_lines_dropped(tmp_path: Path) -> None:
    file = put(tmp_path, ["id\tenglish\tchinese", "7\tYes.\t是。", "8\tNo."], "pairs.tsv")
    assert list(read_rows(file)) == [(2, {"english": "Yes.", "chinese": "是。"}), (3, "8\tNo.")]
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
    assert refusal(file, "messages") == (
        f"{file}: not one good row as messages: 1 (missing or mistyped field: line 1)"
    )


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([], "not one good row: the file is empty"),
        (["plain text", "more"], "not one good row: no row is a JSON object"),
        (
            [EMPTY, {**EMPTY, "output": "\n"}, {**EMPTY, "instruction": 1}],
            "not one good row as alpaca: 2 (empty reply: lines 1, 2), 1 (missing or mistyped field: line 3)",
        ),
    ],
)
def test_a_file_without_a_good_row_is_refused(tmp_path: Path, rows: list[Any], what: str) -> None:
    file = put(tmp_path, rows)
    assert refusal(file) == f"{file}: {what}"


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(json.dumps(ALPACA, ensure_ascii=False).encode("gbk"))
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
    assert "a table and not an instruction file" in refusal(put(tmp_path, ["a,b"], "rows.csv"))
