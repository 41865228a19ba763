import errno
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from zhllama import artifact
from zhllama.config import UserError
from zhllama.corpus.read import Corpus
from zhllama.stop import StoppedError, remove, stopped_when_full


@dataclass
class Settings:
    seed: int = 1


def test_a_full_disk_is_one_line_and_other_errors_pass(tmp_path: Path) -> None:
    message = r"--output .*: it cannot be written \(No space left on device\)"
    with pytest.raises(StoppedError, match=message), stopped_when_full(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), stopped_when_full(tmp_path):
        (tmp_path / "missing").read_bytes()


@pytest.mark.parametrize("problem", [StoppedError("killed"), OSError(errno.EDQUOT, "Disk quota exceeded")])
def test_what_was_done_stays_unfinished(tmp_path: Path, problem: Exception) -> None:
    with (
        pytest.raises(StoppedError),
        artifact.create(tmp_path / "out", "corpus", "clean", Settings(), {}) as made,
    ):
        (made.path / "part").write_text("done", encoding="utf-8")
        raise problem
    assert (tmp_path / "out" / "part").is_file()
    assert "result" not in json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))


def test_what_is_left_to_others_stays_unfinished(tmp_path: Path) -> None:
    with artifact.create(tmp_path / "out", "corpus", "clean", Settings(), {}) as made:
        made.left_to_others = True
    with pytest.raises(UserError, match="did not finish"):
        Corpus.open(tmp_path / "out")


def test_a_directory_goes_in_one_step_and_what_a_kill_left_of_another_goes_too(tmp_path: Path) -> None:
    for name in ("out", ".out.removed"):
        (tmp_path / name / "folder").mkdir(parents=True)
    remove(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
