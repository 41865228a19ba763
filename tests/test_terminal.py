"""What people see: tables that no terminal breaks, progress, warnings, and silent ranks."""

import io
import os
import subprocess
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from zhllama import terminal
from zhllama.terminal import cell_text, print_table, progress_bar, say, track, warn

HEADER = ["text", "bits per byte", "bits per character", "loss per token", "characters per token", "bytes"]
ROWS = [
    ["held-out/chinese.jsonl", 1.23456, 3.4, 2.3, 1.78, 123456],
    ["held-out/english.jsonl", 1.1, 3.4, 2.3, None, 1234567],
]
TABLE = """\
Measured
                         bits              loss
                          per   bits per    per  characters
text                     byte  character  token   per token      bytes
──────────────────────────────────────────────────────────────────────
held-out/chinese.jsonl  1.235      3.400  2.300       1.780    123,456
held-out/english.jsonl  1.100      3.400  2.300           -  1,234,567
"""


def shown(monkeypatch: pytest.MonkeyPatch, width: int = 80, is_terminal: bool = True) -> io.StringIO:
    """What a terminal of so many columns (or a pipe) gets from now on, without colours."""
    stream = io.StringIO()
    options = {"highlight": False, "emoji": False, "soft_wrap": True}
    screen = Console(file=stream, width=width, force_terminal=is_terminal, color_system=None, **options)
    monkeypatch.setattr(terminal, "console", screen)
    return stream


def test_a_table_fits_80_columns_by_breaking_headers_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch)
    print_table("Measured", HEADER, ROWS)
    assert stream.getvalue() == TABLE
    assert max(map(len, TABLE.splitlines())) <= 80


def test_rows_become_lists_where_the_table_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch, width=69)
    print_table("Measured", HEADER[:3], [row[:3] for row in ROWS])
    stream.seek(stream.truncate(0))
    print_table("Measured", HEADER, ROWS)
    assert stream.getvalue() == (
        "Measured\n"
        "held-out/chinese.jsonl\n"
        "  bits per byte             1.235\n"
        "  bits per character        3.400\n"
        "  loss per token            2.300\n"
        "  characters per token      1.780\n"
        "  bytes                   123,456\n"
        "held-out/english.jsonl\n"
        "  bits per byte             1.100\n"
        "  bits per character        3.400\n"
        "  loss per token            2.300\n"
        "  characters per token          -\n"
        "  bytes                 1,234,567\n"
    )


def test_one_long_column_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch, width=10)
    print_table("Files", ["file"], [["/a/very/long/path"]])
    assert stream.getvalue() == "Files\n/a/very/long/path\n"


def test_a_pipe_gets_the_table_at_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch, width=20, is_terminal=False)
    print_table("Measured", HEADER, ROWS)
    assert stream.getvalue() == TABLE


def test_chinese_takes_two_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch)
    print_table("词表", ["来源", "字数"], [["人民日报", 12], ["a", "中"]])
    lines = stream.getvalue().splitlines()
    assert lines == ["词表", "来源      字数", "──────────────", "人民日报    12", "a           中"]
    assert {cell_len(line) for line in lines[1:]} == {14}


def test_a_chinese_header_breaks_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch)
    print_table("词表", ["人民日报 语料", "每字节 比特"], [["a", 1.5]])
    assert stream.getvalue().splitlines()[1:] == [
        "人民日报  每字节",
        "语料        比特",
        "────────────────",
        "a          1.500",
    ]


def test_brackets_and_colons_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch)
    print_table("[bold]title", ["[a]", ":b:"], [["[MASK]", ":smile:"]])
    say("[/b] :fire: [x](y)")
    assert stream.getvalue() == (
        "[bold]title\n[a]         :b:\n───────────────\n[MASK]  :smile:\n[/b] :fire: [x](y)\n"
    )


def test_a_table_without_rows_is_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch)
    print_table("Nothing", ["a", "b c"], [])
    assert stream.getvalue() == "Nothing\n   b\na  c\n────\n"


def test_a_long_message_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch, width=20)
    say("word " * 20)
    assert stream.getvalue() == "word " * 20 + "\n"


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (False, "no"),
        (1.23456, "1.235"),
        (-0.5, "-0.500"),
        (1234567, "1,234,567"),
        ("1234567", "1234567"),
        ("", ""),
    ],
)
def test_values_are_shown_alike_everywhere(cell: object, text: str) -> None:
    assert cell_text(cell) == text


def test_a_warning_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    warn("careful")
    assert capsys.readouterr() == ("", "zhllama: warning: careful\n")


def test_tracking_yields_every_item_and_shows_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch)
    assert list(track([3, 1, 2], "packing [x]")) == [3, 1, 2]
    last = stream.getvalue().splitlines()[-2]
    assert "packing [x]" in last
    assert "3/3" in last
    assert "left 0:00:00" in last


def test_a_stream_of_unknown_length_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch)
    assert list(track(iter("ab"), "reading")) == ["a", "b"]
    assert "2/?" in stream.getvalue().splitlines()[-2]


def test_a_total_that_is_given_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch)
    assert list(track(iter("ab"), "reading", total=8)) == ["a", "b"]
    assert "2/8" in stream.getvalue().splitlines()[-2]


def test_a_note_stands_behind_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch, width=120)
    with progress_bar() as bar:
        bar.update(bar.add_task("training", total=2, note=""), note="loss [1.0]")
    assert "loss [1.0]" in stream.getvalue()


def test_a_narrow_terminal_cuts_the_note_only(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch)
    with progress_bar() as bar:
        task = bar.add_task("training", total=1234, note="")
        bar.update(task, completed=600, note="loss 3.456  1.234 bits/byte  1,234 tokens/s")
    last = stream.getvalue().splitlines()[-2]
    assert "600/1234 0:00:00 left -:--:-- loss 3.456  1.234 bits/b…" in last


def test_progress_is_silent_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = shown(monkeypatch, is_terminal=False)
    assert list(track([1], "packing")) == [1]
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("rank", "out", "err"), [("0", "hello\n", "zhllama: warning: hm\n"), ("1", "", "")])
def test_only_the_first_rank_talks(rank: str, out: str, err: str) -> None:
    code = "from zhllama.terminal import say, warn; say('hello'); warn('hm')"
    environment = {**os.environ, "RANK": rank}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, out, err)
