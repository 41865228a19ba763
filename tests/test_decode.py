import gzip
import lzma
import tracemalloc
from encodings.aliases import aliases
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhllama import decode
from zhllama.config import UserError
from zhllama.corpus.clean import CleanConfig
from zhllama.decode import Damaged, begins_with, detect_encoding, extension_of, read_lines, read_text

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


def test_marks_and_the_rarer_characters_of_big5_decide(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for name, text in (
        ("utf-32", SIMPLE),
        ("cp950", TRADITIONAL + "裏"),
        ("big5hkscs", TRADITIONAL + "嘅咗"),
    ):
        path.write_bytes(text.encode(name))
        assert detect_encoding(path) == name
        assert list(read_lines(path, "guess")) == [text]


@pytest.mark.parametrize("name", ["utf-8", "gb18030", "big5"])
def test_a_damaged_byte_does_not_decide(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes((TRADITIONAL * 9).encode(name) + b"\xff\n" + TRADITIONAL.encode(name))
    assert detect_encoding(path) == name
    damaged, whole = read_lines(path, "guess", mend=True)
    assert (type(damaged), type(whole)) == (Damaged, str)
    assert (damaged, whole) == (TRADITIONAL * 9 + "\ufffd", TRADITIONAL)
    assert read_text(path, "guess") == (f"{damaged}\n{whole}", [1])


def test_text_of_nothing_but_lost_characters_is_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufffd" * 9, encoding="utf-8")
    assert detect_encoding(tmp_path / "a.txt") == "utf-8"


def test_damage_at_the_edges_of_pieces_costs_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "CHUNK", 100)
    path = tmp_path / "a.txt"
    for name in ("utf-8", "gb18030", "utf-16"):
        lines = [f"{number}{SIMPLE}" for number in range(99)]
        content = "\r\n".join(lines).encode(name)
        for place in range(1000, 1100, 2):
            path.write_bytes(content[:place] + b"\xff\xdf" + content[place + 2 :])
            found = list(read_lines(path, name, mend=True))
            hurt = [number for number, line in enumerate(found) if isinstance(line, Damaged)]
            assert 1 <= len(hurt) <= 2, (name, place)
            assert sum(line in lines for line in found) >= len(lines) - 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "\n".join([SIMPLE] * 9).encode("gb18030"),
            "not UTF-8 at byte 0; if it is GBK, run clean with --encoding",
        ),
        (b"ok\n" * 30 + b"\0" * 9, r"binary, not text \(zero at byte 90\)"),
        (b"\xff\xfe" + "ok\n".encode("utf-16-le"), "not UTF-8 at byte 0"),
    ],
)
def test_damage_everywhere_is_another_encoding(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    for mend in (True, False):
        with pytest.raises(UserError, match=message):
            list(read_lines(path, "utf-8", mend=mend))


def test_zeros_here_and_there_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text\n" * 30 + b"\0\n")
    assert list(read_lines(path, "utf-8", mend=True))[-1] == "\ufffd"


def test_utf_16_without_its_mark_is_not_mended(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(("text\n" * 999).encode("utf-16-be"))
    with pytest.raises(UserError, match="not UTF-16 at byte 0"):
        list(read_lines(path, "utf-16", mend=True))


def test_the_first_character_is_looked_for_in_what_is_packed(tmp_path: Path) -> None:
    path = tmp_path / "a.json.xz"
    path.write_bytes(lzma.compress(b"\xef\xbb\xbf\n\n [1]"))
    assert extension_of(path) == ".json"
    assert begins_with(path, "utf-8", "[")
    assert not begins_with(path, "utf-8", "{")
    path.write_bytes(lzma.compress(b" \n"))
    assert not begins_with(path, "utf-8", "[")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(set(aliases.values()))), st.binary(max_size=40), st.booleans())
def test_every_codec_gives_lines_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, encoding: str, content: bytes, mend: bool
) -> None:
    path = tmp_path_factory.mktemp("codecs") / "a.txt"
    path.write_bytes(content)
    try:
        CleanConfig(str(path), "out", encoding=encoding)
        assert all(isinstance(line, str) for line in read_lines(path, encoding, mend=mend))
    except UserError as problem:
        assert "\n" not in str(problem)


@pytest.mark.parametrize("encoding", ["undefined", "base64", "no such"])
def test_a_codec_that_reads_no_text_is_refused(encoding: str) -> None:
    with pytest.raises(UserError, match=f"encoding {encoding}: unknown; try utf-8"):
        CleanConfig("in", "out", encoding=encoding)
