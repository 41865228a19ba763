"""The one reader of rows: what a row is in every container, and how each fault of bytes, JSON and cells is told."""

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhllama import rows as rows_module
from zhllama.config import UserError
from zhllama.rows import can_read, is_whole, named, parse_rows, read_rows, read_written
from zhllama.tables import DAMAGED, Unread

ROWS: list[Any] = [{"问": "一", "n": 1}, {"问": "二\n行", "n": None}, ["三"], "四", 5]
DEEP = "[" * 100_000 + "]" * 100_000


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(rows: list[Any], **how: Any) -> str:
    return "".join(json.dumps(row, **how) + "\n" for row in rows)


def refusal(what: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        what()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def zstandard(content: bytes) -> bytes:
    packed: bytes = pyarrow.compress(content, "zstd", asbytes=True)
    return packed


@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard)]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.any"])
def test_lines_in_every_packing_and_encoding(
    tmp_path: Path, name: str, encoding: str, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    content = lines(ROWS, ensure_ascii=False).replace("\n", "\r\n").encode(encoding)
    path = put(tmp_path / (name + suffix), pack(content))
    assert list(read_rows(path)) == list(enumerate(ROWS, 1))


def test_lines_are_counted_with_empty_ones(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"a": 1}\n\nno json\n{"a": 2}')
    found = [(1, {"a": 1}), (3, Unread("no json", "not JSON (Expecting value)", 1)), (4, {"a": 2})]
    assert list(read_rows(path)) == found


def test_items_of_a_list_are_found_by_the_line_that_they_begin_on(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", "\n" + json.dumps([{"a": 1}, 3, {"b": [1, 2]}], indent=1) + "\n")
    assert list(read_rows(path)) == [(3, {"a": 1}), (6, 3), (7, {"b": [1, 2]})]


def test_a_list_on_one_line_is_read_and_by_line_it_is_one_row(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", "[1, 2]\n")
    assert list(read_rows(path)) == [(1, 1), (1, 2)]
    assert list(read_rows(path, lists=False)) == [(1, [1, 2])]


def test_a_json_over_several_lines_is_one_row(tmp_path: Path) -> None:
    whole = {"version": 1, "data": [{"question": "问"}]}
    assert list(read_rows(put(tmp_path / "a.json", "\n" + json.dumps(whole, indent=1)))) == [(2, whole)]


def test_a_json_that_is_none_as_a_whole_is_read_by_line(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", '{"a": \n{"a": 2}\n')
    assert list(read_rows(path)) == [(1, Unread('{"a": ', "not JSON (Expecting value)", 7)), (2, {"a": 2})]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_no_rows(tmp_path: Path, name: str, content: str) -> None:
    assert list(read_rows(put(tmp_path / name, content))) == []


def test_nan_and_infinity_are_nothing(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"a": NaN, "b": [Infinity, -Infinity, 1.5]}')
    assert list(read_rows(path)) == [(1, {"a": None, "b": [None, None, 1.5]})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (DEEP.encode(), "not JSON (nested too deep)"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON (Exceeds the limit"),
        (b'{"a": "\\ud83d"}', "half a character"),
        (b'{"\\uD83D": 1}', "half a character"),
        (b'[["\\ude00"]]', "half a character"),
        (b'{"a": "\xff"}', DAMAGED),
        (b'{"a": "\xe4\xb8"}', DAMAGED),
        (b'{"a": "\0"}', DAMAGED),
        (b'{"a": "\t"}', "not JSON (Invalid control character at)"),
        (b"{'a': 1}", "not JSON (Expecting property name"),
    ],
)
def test_a_fault_costs_its_row(tmp_path: Path, line: bytes, reason: str) -> None:
    good = '{"a": "' + "好" * 200 + '"}'
    path = put(tmp_path / "a.jsonl", b"\n".join((good.encode(), line, good.encode())))
    before, (number, fault), after = read_rows(path, lists=False)
    assert (before, after) == ((1, json.loads(good)), (3, json.loads(good)))
    assert number == 2
    assert isinstance(fault, Unread)
    assert fault.reason.startswith(reason)


def test_half_a_character_is_given_where_it_is_asked_for(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"a": "\\ud83d", "b": "\\ud83d\\ude00"}')
    assert list(read_rows(path, halves=True)) == [(1, {"a": "\ud83d", "b": "😀"})]


def test_whole_characters() -> None:
    assert is_whole({"a": ["😀", None, 1.5]})
    assert not is_whole({"a": [{"b": "\ude00"}]})


def test_too_deep_to_be_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(value: Any) -> bool:
        raise RecursionError

    monkeypatch.setattr(rows_module, "is_whole", look)
    assert list(read_rows(put(tmp_path / "a.jsonl", "1"))) == [(1, Unread("", "not JSON (nested too deep)"))]


def test_damage_in_a_list_costs_the_items_on_its_lines(tmp_path: Path) -> None:
    content = json.dumps([{"a": "好" * 50, "b": n} for n in range(9)], ensure_ascii=False, indent=1)
    path = put(tmp_path / "a.json", content.encode().replace(b'"b": 4', b'"\xff": 4'))
    found = dict(read_rows(path))
    assert [line for line, row in found.items() if isinstance(row, Unread)] == [18]
    assert found[18].reason == DAMAGED
    assert [row["b"] for row in found.values() if isinstance(row, dict)] == [0, 1, 2, 3, 5, 6, 7, 8]


def test_a_damaged_json_over_several_lines_is_read_by_line(tmp_path: Path) -> None:
    content = json.dumps({"a": "好" * 50}, ensure_ascii=False, indent=1).encode() + b"\xff"
    assert {row.reason for _, row in read_rows(put(tmp_path / "a.json", content))} == {
        "not JSON (Expecting property name enclosed in double quotes)",
        "not JSON (Extra data)",
        DAMAGED,
    }


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('[\n{"a": 1},\n{"a": ]', "line 3: not JSON (Expecting value)"),
        ('\n[{"a": 1}\n{"a": 2}]', "line 3: not JSON (Expecting ',' delimiter)"),
        ('[{"a": 1}]\n[2]', "line 2: not JSON (Extra data)"),
        ('[1,\n"' + "a", "line 2: not JSON (Unterminated string starting at)"),
        ("[1,\n" + DEEP, "line 2: not JSON (nested too deep)"),
        ("[1,\n" + "9" * 5000, "line 2: not JSON (Exceeds the limit"),
        ("[1,\n", "line 2: not JSON (Expecting value)"),
    ],
)
def test_a_list_that_is_not_json_is_refused(tmp_path: Path, content: str, what: str) -> None:
    path = put(tmp_path / "a.json", content)
    assert refusal(lambda: list(read_rows(path))).startswith(f"{path} {what}")


def cells(tmp_path: Path, content: str | bytes, name: str = "a.tsv") -> list[tuple[int, Any]]:
    return list(read_rows(put(tmp_path / name, content)))


def test_a_spreadsheets_quotes_are_read(tmp_path: Path) -> None:
    content = [
        "english\tchinese",
        '"He said ""hello"", then left."\t他走了。',
        '"Line one\nline two"\t"第一行\r\n第二行"',
        '好\t"a\tb"',
    ]
    assert cells(tmp_path, "\r\n".join(content)) == [
        (1, ["english", "chinese"]),
        (2, ['He said "hello", then left.', "他走了。"]),
        (3, ["Line one\nline two", "第一行\n第二行"]),
        (6, ["好", "a\tb"]),
    ]


def test_quotes_that_are_no_spreadsheets_are_text(tmp_path: Path) -> None:
    raw = ['"Go," he said.\t“走吧。”', 'a 12" pipe\t管', '"Open\t开', "b\tc", 'd"\t"e', 'f\t"g" h']
    assert cells(tmp_path, "\n".join(raw)) == [
        (number, line.split("\t")) for number, line in enumerate(raw, 1)
    ]


def test_a_quote_that_nothing_closes_costs_no_other_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "CELL_LINES", 3)
    raw = ['"a\tb', *[f"{n}\tc" for n in range(9)]]
    assert [row for _, row in cells(tmp_path, "\n".join(raw))] == [line.split("\t") for line in raw]


def test_commas_separate_a_csv_and_the_longest_cell_is_read(tmp_path: Path) -> None:
    long = "长" * 200_000
    assert cells(tmp_path, f'a,"b,c"\n"{long}",\n', "a.csv") == [(1, ["a", "b,c"]), (2, [long, ""])]


def test_damage_costs_the_cells_of_its_line_or_of_its_lines(tmp_path: Path) -> None:
    good = "好" * 100
    content = f'{good}\t1\n坏?\t2\n"{good}\n?"\t3\n{good}\t4\n'.encode().replace(b"?", b"\xff")
    found = cells(tmp_path, content)
    assert [(line, row.reason if isinstance(row, Unread) else row[1]) for line, row in found] == [
        (1, "1"),
        (2, DAMAGED),
        (3, DAMAGED),
        (5, "4"),
    ]


def test_cells_are_named_by_the_first_row_or_by_the_caller(tmp_path: Path) -> None:
    content = " a ,b,\n1,2,3\n4,5\n"
    found = list(named(read_rows(put(tmp_path / "a.csv", content))))
    assert found == [(2, {"a": "1", "b": "2"}), (3, Unread("4\t5", "2 cells, not 3"))]
    assert next(named(read_rows(tmp_path / "a.csv"), ["x", "", "y"])) == (1, {"x": " a ", "y": ""})


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=6) | st.sampled_from(
    ['"', '""', 'a"b', '"a"', "\n", "a\nb", "\t", ","]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(FIELD, min_size=2, max_size=3), min_size=1, max_size=6))
def test_what_a_spreadsheet_writes_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, written: list[list[str]]
) -> None:
    content = io.StringIO()
    csv.writer(content, "excel", quoting=csv.QUOTE_ALL).writerows(written)
    path = put(tmp_path_factory.mktemp("csv") / "a.csv", content.getvalue())
    assert [row for _, row in read_rows(path, "utf-8")] == written


VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=())),  # halves of characters too
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(VALUE, max_size=5),
    st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.tsv", "a.txt", "a.jsonl.gz", "a.parquet", "a.arrow"]),
    st.sampled_from(["utf-8", "utf-16", "gb18030", "big5", "latin-1", "utf-7"]),
    st.binary(max_size=4),
    st.integers(0, 200),
    st.booleans(),
)
def test_no_file_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[Any],
    name: str,
    encoding: str,
    noise: bytes,
    place: int,
    lists: bool,
) -> None:
    """Whatever is in a file: rows that JSON can spell and UTF-8 can hold, unread ones with a reason, or one line."""
    content = lines(values, ensure_ascii=bool(place % 2)).encode(encoding, "replace")
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(content[:place] + noise + content[place:])
    try:
        found = list(read_rows(path, lists=lists))
    except UserError as problem:
        assert str(path) in str(problem)
        assert "\n" not in str(problem)
        return
    assert [number for number, _ in found] == sorted(number for number, _ in found)
    for _, row in found:
        if isinstance(row, Unread):
            assert row.reason
        else:
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["utf-8", "gb18030", "big5", "utf-16"]),
    st.lists(st.tuples(st.integers(0, 1 << 30), st.binary(min_size=1, max_size=2)), min_size=1, max_size=3),
)
def test_damage_costs_rows_and_never_the_file(
    tmp_path_factory: pytest.TempPathFactory, encoding: str, damage: list[tuple[int, bytes]]
) -> None:
    rows = [{"n": n, "text": "這是一個句子，說的是北京的天氣。" * 8} for n in range(40)]
    content = bytearray(lines(rows, ensure_ascii=False).encode(encoding))
    for place, noise in damage:
        at = 4 + place % (len(content) - 6)  # the first bytes are a mark
        at -= at % 2 if encoding == "utf-16" else 0
        noise = noise * 2 if encoding == "utf-16" and len(noise) == 1 else noise
        content[at : at + len(noise)] = noise
    path = put(tmp_path_factory.mktemp("damage") / "a.jsonl", bytes(content))
    good = [row for _, row in read_rows(path) if row in rows]
    assert len(good) >= len(rows) - 2 * len(damage)


def test_the_shape_of_rows_is_asked_for_and_told(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "a,b\n1,2\n3,4\n")
    assert parse_rows(path, "--flag", lambda row: row["b"], "it needs b") == ["2", "4"]
    assert refusal(lambda: parse_rows(path, "--flag", lambda row: row["c"], "it needs c")) == (
        f"--flag {path} line 2: it needs c"
    )


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": "\\ud83d"}', " line 2: half a character"),
        ("a.jsonl", '{"a": "好好好好好好好好好好"}\n'.encode() + b'{"a": "\xff"}', f" line 2: {DAMAGED}"),
        ("a.csv", b"a,b\n1", " line 2: 1 cells, not 2"),
        ("a.csv", b"a,b\n", ": no row inside"),
        ("a.jsonl", b"\xff\xff\xff", ": not UTF-8 at byte 0; convert it with iconv"),
        ("a.jsonl", b'{"a": 1}\n' + b"\0" * 99, ": binary, not text (zero at byte 9); take it away"),
        ("a.parquet", b"PAR1", ": not a whole Parquet file"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_flag(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    path = put(tmp_path / name, content)
    said = refusal(lambda: parse_rows(path, "--flag", lambda row: row["a"], "it needs a"))
    assert said.startswith(f"--flag {path}{what}")


def test_a_missing_file(tmp_path: Path) -> None:
    assert not can_read(tmp_path / "none")
    said = refusal(lambda: parse_rows(tmp_path / "none", "--flag", str, ""))
    assert said == f"--flag {tmp_path / 'none'}: no such file"


def test_what_we_wrote_is_read_without_what_a_kill_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert read_written(path) == []
    path.write_bytes('{"a": "好"}\n{"a": "好'.encode()[:-1])  # in mid-character
    assert read_written(path) == [{"a": "好"}]
    assert read_written(path, trim=True) == [{"a": "好"}]
    assert path.read_text(encoding="utf-8") == '{"a": "好"}\n'
    path.write_bytes(b'{"a"')
    assert read_written(path, trim=True) == []
    assert path.read_bytes() == b""
