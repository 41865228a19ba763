"""The SentencePiece process: what it is given, its progress, how it fails."""

import os
from pathlib import Path

import pytest

from zhllama.config import UserError
from zhllama.tokenizer import trainer
from zhllama.tokenizer.trainer import train_pieces

COUNTS = {f"{chr(0x4E00 + i)}{chr(0x5E00 + i % 90)}": 500 - i for i in range(400)}
CHARACTERS = sorted({character for run in COUNTS for character in run})


def train(folder: Path, counts: dict[str, int] = COUNTS, **changes: object) -> list[str]:
    settings = {"merges": 300, "longest": 8, "threads": 1} | changes
    proto = train_pieces(counts, CHARACTERS, folder=folder, **settings)  # type: ignore[arg-type]
    return [piece.piece for piece in proto.pieces if piece.type == 1]


def test_counts_decide_the_order(tmp_path: Path) -> None:
    pieces = train(tmp_path)
    assert pieces[:3] == list(COUNTS)[:3]
    assert set(CHARACTERS) <= set(pieces)
    assert len(pieces) == 300 + len(CHARACTERS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", [b"a b,c", "中文，模型".encode(), "中文".encode("gbk"), b"--input=x", b"a'b\"c\nd"], ids=ascii
)
def test_no_name_of_a_folder_is_taken_apart(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    assert train(folder) == train(tmp_path)


def test_progress_is_told(tmp_path: Path) -> None:
    seen: list[int] = []
    train(tmp_path, progress=seen.append)
    assert seen == sorted(seen)
    assert 100 <= seen[-1] <= 300


def test_no_run_is_skipped_silently(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="left out 1 runs"):
        train(tmp_path, COUNTS | {"中" * 2000: 1})


def test_a_failing_trainer_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"SentencePiece stopped \(.*"):
        train(tmp_path, merges=-10_000)


def test_a_killed_trainer_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "PROGRAM", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(UserError, match="out of memory"):
        train(tmp_path)
    monkeypatch.setattr(trainer, "PROGRAM", "raise SystemExit(3)")
    with pytest.raises(UserError, match="exit code 3"):
        train(tmp_path)
