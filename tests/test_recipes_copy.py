"""`zhllama recipes`: the shipped files as files of one's own."""

from pathlib import Path

import pytest

from zhllama.cli import main
from zhllama.recipes.find import FOLDERS

ROOT = Path(__file__).resolve().parents[1]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for name in FOLDERS
        for file in (folder / name).iterdir()
        if file.is_file()
    }


def test_the_copy_is_the_roots_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes", "--output", str(tmp_path / "r")])
    assert files(tmp_path / "r") == files(ROOT)
    assert not any(path.is_symlink() or path.name == "__pycache__" for path in (tmp_path / "r").rglob("*"))
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == sorted(FOLDERS)
    assert capsys.readouterr().out.count(str(tmp_path / "r")) == 1


def test_an_empty_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["recipes", "--output", "."])
    assert files(tmp_path) == files(ROOT)


def test_what_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").write_text("mine")
    for output, why in (
        (tmp_path, "not empty; choose another directory"),
        (tmp_path / "notes", "a file is in the way; choose another directory"),
        (tmp_path / "notes" / "in", "it cannot be made (Not a directory)"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["recipes", "--output", str(output)])
        assert stopped.value.code == 2
        assert capsys.readouterr() == ("", f"zhllama recipes: error: --output {output}: {why}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
