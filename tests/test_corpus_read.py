import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet as parquet
import pytest

from zhllama import decode, extras
from zhllama.config import UserError
from zhllama.corpus import read
from zhllama.corpus.read import Layout, list_files, read_documents, read_file, says_encoding


def texts(path: Path, layout: Layout | None = None) -> list[str]:
    return [passage.text for passage in read_file(path, layout or Layout())]


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zst(path: Path, content: bytes) -> Path:
    with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(content)
    return path


def test_text_is_split_at_blank_lines_and_keeps_its_newlines(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "\ufeff\n甲一\n甲二\n \u3000\n\n乙一\r\n乙二\r\n\r\n丙")
    assert list(read_documents(path)) == ["甲一\n甲二", "乙一\n乙二", "丙"]
    assert [passage.line for passage in read_file(path, Layout())] == [2, 6, 9]


def test_text_without_blank_lines_is_one_document(tmp_path: Path) -> None:
    assert list(read_documents(put(tmp_path / "a.txt", "甲\n  乙\n丙\n"))) == ["甲\n  乙\n丙"]
    assert list(read_documents(put(tmp_path / "b.txt", "\n甲\n乙\n\n\n"))) == ["甲\n乙"]


def test_text_too_large_for_one_document_is_split_at_every_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "LONGEST_DOCUMENT", 20)
    assert (
        list(read_documents(put(tmp_path / "a.txt", "一行十个字一行十个字\n" * 5)))
        == ["一行十个字一行十个字"] * 5
    )


@pytest.mark.parametrize(
    ("documents", "expected"),
    [("file", ["甲\n乙\n\n丙"]), ("line", ["甲", "乙", "丙"]), ("blank-line", ["甲\n乙", "丙"])],
)
def test_the_layout_decides_what_a_document_is(
    tmp_path: Path, documents: read.Split, expected: list[str]
) -> None:
    assert texts(put(tmp_path / "a.txt", "甲\n乙\n\n丙\n"), Layout(documents=documents)) == expected


def test_lines_and_characters_cut_by_the_edge_of_a_chunk_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "CHUNK", 7)
    lines = [f"第{number}行，长短不一{'啊' * (number % 5)}" for number in range(50)]
    for encoding in ("utf-8", "gb18030", "utf-16"):
        path = put(tmp_path / "a.txt", "\r\n".join(lines).encode(encoding))
        assert texts(path, Layout(encoding, "line")) == lines


def test_json_lines_keep_newlines_and_line_separators(tmp_path: Path) -> None:
    rows = ["甲\n乙\u2028丙", "丁"]
    content = "\n".join(json.dumps({"text": row}, ensure_ascii=False) for row in rows).replace(
        "\n", "\n\n", 1
    )
    assert list(read_documents(put(tmp_path / "a.jsonl", content))) == rows


def test_parquet_gzip_and_zstandard(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": ["甲\n乙", "丙"], "n": [1, 2]}), tmp_path / "a.parquet")
    content = b'{"text": "\\u7532\\n\\u4e59"}\n{"text": "\\u4e19"}\n'
    for path in (
        tmp_path / "a.parquet",
        put(tmp_path / "a.jsonl.gz", gzip.compress(content)),
        put(tmp_path / "b.txt.gz", gzip.compress("甲\n乙\n\n丙".encode())),
        zst(tmp_path / "a.jsonl.zst", content),
    ):
        assert list(read_documents(path)) == ["甲\n乙", "丙"], path


def test_progress_ends_at_the_size_of_the_file(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": ["甲"]}), tmp_path / "a.parquet")
    for path in (tmp_path / "a.parquet", put(tmp_path / "b.txt.gz", gzip.compress(b"text\n" * 1000))):
        told: list[int] = []
        list(read_file(path, Layout(), told.append))
        assert told[-1] == path.stat().st_size


def test_a_folder_is_read_in_order_without_what_is_no_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b/2.txt", "b/10.txt", "a.txt", ".hidden/c.txt"):
        put(tmp_path / name, name)
    put(tmp_path / "README.rst", "no")
    assert list(read_documents(tmp_path)) == ["a.txt", "b/10.txt", "b/2.txt"]
    assert "left out 1 files of other kinds (README.rst)" in capsys.readouterr().err


def test_a_corpus_directory_is_its_documents_only(tmp_path: Path) -> None:
    put(tmp_path / "documents-00000-00000.jsonl", '{"text": "甲"}')
    put(tmp_path / "notes.txt", "乙")
    put(tmp_path / "run.json", json.dumps({"kind": "corpus", "command": "clean", "result": {}}))
    assert list(read_documents(tmp_path)) == ["甲"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"kind": "corpus", "command": "clean"}, "did not finish"),
        ({"kind": "model", "command": "resize-embeddings", "result": {}}, "a corpus directory is needed"),
    ],
)
def test_an_unfinished_or_other_directory_is_refused(tmp_path: Path, record: object, message: str) -> None:
    put(tmp_path / "run.json", json.dumps(record))
    with pytest.raises(UserError, match=message):
        list_files(tmp_path)


def test_what_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        read_documents(tmp_path / "missing.txt")
    with pytest.raises(UserError, match="unsupported extension"):
        read_documents(put(tmp_path / "a.doc", "x"))
    with pytest.raises(UserError, match="no file to read inside"):
        read_documents(tmp_path)


REFUSED = {
    "empty.txt": (b" \n\n", "no document inside"),
    "empty.jsonl": (b'{"text": " "}\n', "no document inside"),
    "gbk.txt": ("中文".encode("gb18030"), r"not UTF-8 at byte 0;.*--encoding gb18030.*iconv"),
    "late.txt": ("好\n".encode() * 300_000 + b"\xff", "not UTF-8 at byte 1,200,000"),
    "cut.txt": ("好好".encode()[:-1], "not UTF-8 at byte 3"),
    "late.txt.gz": (gzip.compress(b"ok\n\xff"), "not UTF-8 at byte 3 of what it unpacks to"),
    "half.txt.gz": (gzip.compress(bytes(range(65, 91)) * 999)[:-9], "broken or cut short"),
    "no.txt.gz": (b"plain text", "broken or cut short"),
    "no.txt.zst": (b"plain text", "broken or cut short"),
    "a.jsonl": (b'{"text": "a"}\n{"text": "b"\n', r"a.jsonl line 2: not JSON \(.*column"),
    "b.jsonl": (b'\n{"content": "a"}\n', "b.jsonl line 2: no text under key 'text', only 'content'.*--key"),
    "c.jsonl": (b'["a"]\n', "c.jsonl line 1: .* only a list"),
    "d.jsonl": (b'{"text": null}\n', "d.jsonl line 1: no text under key"),
    "a.parquet": (b"PAR1 no", "not a whole Parquet file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        list(read_documents(put(tmp_path / name, content)))
    assert name in str(caught.value)


def test_a_wrong_encoding_that_was_chosen_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not GB18030 at byte 4; give clean another --encoding"):
        texts(put(tmp_path / "a.txt", "中文".encode("gb18030") + b"\xff\xff"), Layout("gb18030"))


def test_utf_16_without_its_mark_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.txt: not UTF-16 at byte 0; give clean another --encoding"):
        texts(put(tmp_path / "a.txt", "中文".encode()), Layout("utf-16"))


def test_a_cut_zstandard_file_is_refused(tmp_path: Path) -> None:
    whole = zst(tmp_path / "a.txt.zst", "".join(f"{n * 7919}行\n" for n in range(50_000)).encode())
    with pytest.raises(UserError, match="broken or cut short"):
        list(read_documents(put(whole, whole.read_bytes()[:-20])))


def test_parquet_without_the_column_or_with_other_values_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"content": ["甲"]}), path)
    with pytest.raises(UserError, match=r"a.parquet: no column 'text', only 'content'"):
        list(read_documents(path))
    parquet.write_table(pyarrow.table({"text": ["甲", None]}), path)
    with pytest.raises(UserError, match=r"a.parquet row 2: column 'text' holds None"):
        list(read_documents(path))


ROWS = [{"text": text, "n": 1} for text in ("甲\n乙", "丙")]


def saved(path: Path, **how: int) -> Path:
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(path, **how)  # type: ignore[arg-type]
    return path


def hub(path: Path) -> Path:
    """A name for which a local folder stands."""
    put(path / "train.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    return Path(f"hf:{path}")


def test_tables_and_lists_are_read_where_they_are_given(tmp_path: Path) -> None:
    for path in (
        put(tmp_path / "a.json", json.dumps(ROWS, indent=1)),
        put(tmp_path / "a.csv", 'n,text\r\n1,"甲\n乙"\r\n1,丙\r\n'),
        put(tmp_path / "a.tsv.gz", gzip.compress('text\tn\n"甲\n乙"\t1\n丙\t1\n'.encode())),
        saved(tmp_path / "saved"),
        saved(tmp_path / "shards", num_shards=2),
        tmp_path / "saved" / "data-00000-of-00001.arrow",
        hub(tmp_path / "hub"),
    ):
        assert list(read_documents(path)) == ["甲\n乙", "丙"], path


def test_of_a_folder_only_what_is_text_by_its_name_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("package.json", "links.csv", "words.tsv", "notes.txt"):
        put(tmp_path / name, name)
    assert list(read_documents(tmp_path)) == ["notes.txt"]
    assert "left out 3 files of other kinds (links.csv, package.json, words.tsv)" in capsys.readouterr().err


def test_a_saved_dataset_in_a_folder_is_what_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "a.txt", "一")
    put(tmp_path / "c.txt", "二")
    path = saved(tmp_path / "b", num_shards=2)
    put(path / "cache-0123456789abcdef.arrow", "computed")
    assert list(read_documents(tmp_path)) == ["一", "甲\n乙", "丙", "二"]
    assert capsys.readouterr().err == ""


def test_a_name_on_a_hub_is_one_file_with_its_commit_and_split(tmp_path: Path) -> None:
    name = hub(tmp_path / "hub")
    (file,) = list_files(name)
    assert str(file).startswith(f"{name}@")
    assert str(file).endswith(":train")
    assert says_encoding(file)
    assert [passage.line for passage in read_file(file, Layout())] == [1, 2]


def test_half_a_character_is_refused_or_given(tmp_path: Path) -> None:
    path = put(
        tmp_path / "a.jsonl", '{"text": "\\ud83d", "other": "\\ud83d"}\n{"text": "甲", "other": "\\ud83d"}\n'
    )
    with pytest.raises(UserError, match=r"a.jsonl line 1: half a character in it; run clean, which"):
        list(read_documents(path))
    assert [passage.text for passage in read_file(path, Layout(), halves=True)] == ["\ud83d", "甲"]
    told: list[str] = []
    assert [passage.line for passage in read_file(path, Layout(), broken=told.append)] == [2]
    assert len(told) == 1


GOOD = '{"text": "' + "好" * 99 + '"}\n'
BROKEN_ROWS: dict[str, tuple[bytes, str]] = {
    "bytes.jsonl": (
        (GOOD + "?\n" + GOOD).encode().replace(b"?", b'{"text": "\xff"}'),
        "line 2: bytes that are no text",
    ),
    "deep.jsonl": ((GOOD + "[" * 99_999 + "\n" + GOOD).encode(), r"line 2: not JSON \(nested too deep\)"),
    "digits.jsonl": ((GOOD + "9" * 9_999 + "\n" + GOOD).encode(), r"line 2: not JSON \(Exceeds the limit"),
    "nan.jsonl": (
        (GOOD + '{"text": NaN}\n' + GOOD).encode(),
        "line 2: no text under key 'text', only 'text'",
    ),
    "cells.csv": (b"text,n\na,1\nb\nc,2\n", "line 3: 1 cells, not 2; mend or delete it"),
}


@pytest.mark.parametrize("name", BROKEN_ROWS)
def test_a_broken_row_stops_or_is_left_out(tmp_path: Path, name: str) -> None:
    content, message = BROKEN_ROWS[name]
    path = put(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        list(read_documents(path))
    told: list[str] = []
    assert len(list(read_file(path, Layout(), broken=told.append))) == 2
    assert len(told) == 1
    assert name in told[0]


def test_a_broken_row_of_a_table_stops_or_is_left_out(tmp_path: Path) -> None:
    values = pyarrow.array(["好".encode(), b"\xff\xfe"])
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, values.buffers())
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": text}), path)
    with pytest.raises(UserError, match="row 2: column 'text' holds bytes that are no text; mend the file"):
        list(read_documents(path))
    told: list[str] = []
    assert [passage.text for passage in read_file(path, Layout(), broken=told.append)] == ["好"]
    assert len(told) == 1


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("a.parquet", "pyarrow"),
        ("a.jsonl.zst", "pyarrow"),
        ("a.HTML", "trafilatura"),
        ("a.htm.gz", "trafilatura"),
        ("a.epub", "lxml"),
        ("a.docx", "lxml"),
    ],
)
def test_a_bare_install_refuses_files_that_it_cannot_read(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda name: False)
    file = put(tmp_path / "in" / name, b"")
    line = f"{file} needs the extra [clean]: pip install 'zhllama[clean]' (not installed: {package})"
    for source in (file, file.parent):
        with pytest.raises(UserError) as refused:
            list_files(source)
        assert str(refused.value) == line


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.md.xz", "a.html.txt"])
def test_a_bare_install_reads_text(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda name: False)
    file = put(tmp_path / name, b"")
    assert list_files(file) == [file]
