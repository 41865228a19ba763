import gzip
import lzma
import tracemalloc
from pathlib import Path

import pytest

from zhllama.config import UserError
from zhllama.corpus import decode
from zhllama.corpus.decode import detect_encoding, read_lines

SIMPLE = "新华社北京电，国务院今天公布了新的计划，各地反响热烈。"
TRADITIONAL = "新華社北京電，國務院今天公布了新的計劃，各地反響熱烈。"


@pytest.mark.parametrize("name", ["utf-8", "utf-16", "gb18030", "big5"])
@pytest.mark.parametrize("text", [SIMPLE, TRADITIONAL, "The first line is English.\n" * 9 + TRADITIONAL])
def test_the_encoding_is_detected(tmp_path: Path, name: str, text: str) -> None:
    if name == "big5":
        text = text.replace(SIMPLE, TRADITIONAL)
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(name))
    # Traditional characters in GB18030 lie outside its common plane, and are found all the same.
    assert detect_encoding(path) == name
    assert "\n".join(read_lines(path, "guess", None)) == text


def test_ascii_empty_and_undecodable_files_count_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in (b"", b"plain", b"\xff" * 9):
        path.write_bytes(content)
        assert detect_encoding(path) == "utf-8"


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_packed_files_are_detected_read_and_refused_when_cut(
    tmp_path: Path, suffix: str, pack: object
) -> None:
    path = tmp_path / f"a.txt{suffix}"
    packed = pack("".join(f"{SIMPLE}{n}\n" for n in range(9999)).encode("gb18030"))  # type: ignore[operator]
    path.write_bytes(packed)
    assert detect_encoding(path) == "gb18030"
    assert sum(1 for _ in read_lines(path, "guess", None)) == 9999
    path.write_bytes(packed[:-20])
    with pytest.raises(UserError, match="broken or cut short"):
        list(read_lines(path, "gb18030", None))
    path.write_bytes(b"plain text")
    with pytest.raises(UserError, match="broken or cut short"):
        list(read_lines(path, "utf-8", None))


def test_a_binary_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text\n" + bytes(range(256)))
    with pytest.raises(UserError, match=r"a.txt: binary, not text \(zero at byte 5\)"):
        list(read_lines(path, "utf-8", None))


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.txt: it cannot be opened"):
        list(read_lines(tmp_path / "a.txt", "utf-8", None))


def test_a_line_without_end_is_refused_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "LONGEST_DOCUMENT", 3_000_000)
    path = tmp_path / "a.txt"
    path.write_bytes(b"first\n" + b"a" * 60_000_000)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a.txt line 2: longer than 3,000,000 characters"):
        list(read_lines(path, "utf-8", None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000
