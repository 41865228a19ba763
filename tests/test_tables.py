"""Tables: Parquet, Arrow, what `datasets` saved, and names of a hub, for which local folders stand here."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.parquet as parquet
import pytest

from zhllama import artifact, extras, tables
from zhllama.config import UserError
from zhllama.rows import can_read, read_rows
from zhllama.tables import (
    DAMAGED,
    Unread,
    fingerprint,
    is_named,
    is_saved,
    is_table,
    pinned,
    read_records,
    saved_files,
)

ROWS = [{"text": f"第{n}个文件", "n": n} for n in range(5)]
# Values of many types, which `datasets` keeps as JSON.
MIXED: list[dict[str, Any]] = [
    {
        "messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答", "weight": 1}],
        "m": 1,
    },
    {"messages": [{"role": "user", "content": "问"}], "m": "text"},
]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    tables._builder.cache_clear()
    datasets.disable_progress_bars()


def refusal(what: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        what()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def saved(path: Path, rows: list[dict[str, Any]] = ROWS, **how: Any) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(path, **how)
    return path


def folder(path: Path, **splits: list[dict[str, Any]]) -> Path:
    """What stands for a repository of the hub."""
    path.mkdir(exist_ok=True)
    for split, rows in splits.items():
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (path / f"{split}.jsonl").write_text(content, encoding="utf-8")
    return path


def hub(path: Path, split: str = "") -> Path:
    return Path(f"hf:{path}{split}")


def stream(path: Path) -> Path:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return path


def indexed(path: Path) -> Path:
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(ROWS), path)
    return path


def in_parquet(path: Path) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)
    return path


@pytest.mark.parametrize(
    "make",
    [
        lambda path: stream(path / "a.arrow"),
        lambda path: indexed(path / "a.ARROW"),
        lambda path: in_parquet(path / "a.parquet"),
        lambda path: saved(path / "saved"),
        lambda path: saved(path / "saved in [shards]", num_shards=3),
        lambda path: hub(folder(path / "hub", train=ROWS)),
    ],
)
def test_records_are_counted_from_one(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    assert is_table(path)
    assert can_read(path)
    assert list(read_rows(path)) == list(enumerate(ROWS, 1))
    assert list(read_records(path, "text")) == [row["text"] for row in ROWS]
    with pytest.raises(UserError, match=r"no column 'body', only 'text', 'n'; give clean another --key"):
        list(read_records(path, "body"))


@pytest.mark.parametrize(
    "make", [lambda path: stream(path / "a.arrow"), lambda path: in_parquet(path / "a.parquet")]
)
def test_progress_ends_at_the_size_of_the_file(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    told: list[int] = []
    list(read_records(path, progress=told.append))
    assert told[-1] == path.stat().st_size


@pytest.mark.parametrize("name", ["hub", "saved", "a.parquet"])
def test_values_of_many_types_are_what_they_were(tmp_path: Path, name: str) -> None:
    from datasets import load_dataset

    files = str(folder(tmp_path / "hub", train=MIXED) / "train.jsonl")
    path = hub(tmp_path / "hub")
    if name != "hub":
        whole = load_dataset("json", data_files=files, split="train", cache_dir=str(tmp_path / "c"))
        path = tmp_path / name
        whole.to_parquet(path) if name == "a.parquet" else whole.save_to_disk(path)
    assert list(read_rows(path)) == list(enumerate(MIXED, 1))


def test_nothing_stands_for_a_number_that_is_none(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"a": [1.5, float("nan")]}), tmp_path / "a.parquet")
    assert list(read_records(tmp_path / "a.parquet")) == [{"a": 1.5}, {"a": None}]


def test_what_python_cannot_hold_costs_its_row(tmp_path: Path) -> None:
    good, bad = "好".encode(), b"\xff\xfe"
    values = pyarrow.array([good, bad, good]).cast(pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 3, values.buffers())
    dates = pyarrow.array([0, 1, 9 * 10**14]).cast(pyarrow.timestamp("ms"))
    parquet.write_table(pyarrow.table({"text": text, "date": dates}), tmp_path / "a.parquet")
    first, second, third = read_records(tmp_path / "a.parquet")
    assert first["text"] == "好"
    assert second == Unread("", DAMAGED)
    assert isinstance(third, Unread)
    assert third.reason not in ("", DAMAGED)
    assert list(read_records(tmp_path / "a.parquet", "text")) == ["好", Unread("", DAMAGED), "好"]


def test_only_what_belongs_to_a_saved_dataset_is_read_and_counts(tmp_path: Path) -> None:
    path = saved(tmp_path / "saved", num_shards=2)
    before = artifact.fingerprint(path)
    datasets.load_from_disk(path).map(lambda row: {"n": row["n"] + 1})
    assert list(path.glob("cache-*.arrow"))
    assert saved_files(path) == sorted(path.glob("data-*.arrow"))
    assert artifact.fingerprint(path) == before
    saved(tmp_path / "other", ROWS[:-1], num_shards=2)
    assert artifact.fingerprint(tmp_path / "other") != before


def test_a_saved_dataset_is_found_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    assert saved_files(Path("saved")) == [Path("saved/data-00000-of-00001.arrow")]


def test_one_split_of_a_saved_dictionary(tmp_path: Path) -> None:
    split = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": split}).save_to_disk(tmp_path / "one")
    assert is_saved(tmp_path / "one")
    assert list(read_records(tmp_path / "one")) == ROWS
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "two")
    said = f"{tmp_path / 'two'}: a dataset of several splits (train, test); give the folder of one of them"
    assert refusal(lambda: list(read_rows(tmp_path / "two"))) == said
    assert list(read_records(tmp_path / "two" / "test")) == ROWS


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[", None])
def test_a_damaged_saved_dataset_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = saved(tmp_path / "saved", ROWS * 99)
    file = path / name
    file.write_bytes(file.read_bytes()[:-9000] if content is None else content)
    if (name, content) == ("dataset_info.json", b"{}"):  # the files say what they hold
        assert len(list(read_records(path))) == 5 * 99
    else:
        said = refusal(lambda: list(read_rows(path)))
        assert said.startswith(f"{path}: not a whole dataset as save_to_disk writes it (")


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"no arrow at all", None])
def test_a_damaged_arrow_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = stream(tmp_path / "a.arrow")
    path.write_bytes(path.read_bytes()[:-60] if content is None else content)
    assert refusal(lambda: list(read_rows(path))).startswith(f"{path}: not a whole Arrow file (")


def test_the_split_is_given_or_the_only_one_or_train(tmp_path: Path) -> None:
    path = folder(tmp_path / "hub", train=ROWS[:2], test=ROWS[2:])
    assert list(read_records(hub(path))) == ROWS[:2]
    assert list(read_records(hub(path, ":test"))) == ROWS[2:]
    assert (
        refusal(lambda: list(read_rows(hub(path, ":dev"))))
        == f"hf:{path}:dev: no split 'dev' in it, only train, test"
    )
    other = folder(tmp_path / "other", test=ROWS)
    assert list(read_records(hub(other))) == ROWS
    folder(tmp_path / "third", test=ROWS, validation=ROWS)
    said = refusal(lambda: list(read_rows(hub(tmp_path / "third"))))
    assert "several splits (" in said
    assert said.endswith(":validation") or said.endswith(":test")


def test_a_name_is_pinned_to_what_it_means_now(tmp_path: Path) -> None:
    path = folder(tmp_path / "hub", train=ROWS)
    name = hub(path)
    assert is_named(name)
    assert artifact.fingerprint(name) == artifact.fingerprint(str(name)) == fingerprint(name)
    assert pinned(name) == hub(path, f"@{fingerprint(name)}:train")
    assert list(read_records(pinned(name))) == ROWS
    before = fingerprint(name)
    folder(path, train=ROWS[:1])
    assert fingerprint(name) == before  # a process reads what its record names
    tables._builder.cache_clear()
    os.utime(path / "train.jsonl", (1, 1))
    assert fingerprint(name) != before


def test_the_commit_of_a_hub_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Builder:
        hash = "c0ffee"
        config = type("Config", (), {"data_files": {"train": []}})

    def load(name: str, revision: str | None) -> type[Builder]:
        asked.append((name, revision))
        return Builder

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    assert fingerprint("hf:org/name:train") == "c0ffee"
    assert pinned(Path("hf:org/name")) == Path("hf:org/name@c0ffee:train")
    fingerprint("hf:org/name@abc")
    assert asked == [("org/name", None), ("org/name", "abc")]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    said = refusal(lambda: list(read_rows(Path("hf:nobody/nothing"))))
    assert said.startswith("hf:nobody/nothing: the hub cannot be reached (ConnectionError: ")
    assert said.endswith("); try again with a network, or give files")


@pytest.mark.parametrize(
    "name", ["hf:", "hf:a/b/c", "hf:../nowhere", "hf:/nowhere", "hf::train", "hf:a b", "hf:a//b:c:d"]
)
def test_what_no_hub_can_have_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert refusal(lambda: list(read_rows(Path(name)))).startswith(f"{Path(name)}: ")


@pytest.mark.parametrize("rows", [b'{"text": 1}\n{"text": {"a": 1}}\n', b'{"text": \n', b"\xff", b"[" * 9999])
def test_a_stream_that_breaks_off_is_one_line(tmp_path: Path, rows: bytes) -> None:
    path = folder(tmp_path / "hub")
    (path / "train.jsonl").write_bytes('{"text": "好"}\n'.encode() * 9 + rows)
    try:
        found = list(read_rows(hub(path)))
    except UserError as problem:
        assert str(problem).startswith(f"hf:{path}: it cannot be streamed (")
        assert "\n" not in str(problem)
    else:
        assert len(found) == 11  # the library knows how to hold them


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("a.parquet", "pyarrow"),
        ("a.arrow", "datasets"),
        ("saved", "datasets"),
        ("hf:org/name", "datasets"),
        ("a.csv.zst", "pyarrow"),
    ],
)
def test_a_bare_install_says_what_is_missing(
    tmp_path: Path, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(name) if is_named(name) else tmp_path / name
    if name == "saved":
        saved(path)
    elif not is_named(name):
        path.write_bytes(b"")
    monkeypatch.setattr(extras, "is_installed", lambda name: False)
    line = f"{path} needs the extra [clean]: pip install 'zhllama[clean]' (not installed: {package})"
    assert refusal(lambda: list(read_rows(path))) == line


def test_an_unreachable_hub_ends_a_command_with_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zhllama", "clean", "--corpus", "hf:nobody/nothing", "--output", "out"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("zhllama clean: error: hf:nobody/nothing: the hub cannot be reached (")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
