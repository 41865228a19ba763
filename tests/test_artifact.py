"""Directories: finished or not, what a fingerprint covers, and every refusal."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file

from zhllama import artifact
from zhllama.artifact import (
    check_same,
    create,
    fingerprint,
    read_record,
    write_json,
)
from zhllama.config import UserError
from zhllama.corpus.read import Corpus
from zhllama.model.directory import ModelDirectory
from zhllama.tokenizer.load import TokenizerDirectory


@dataclass
class Settings:
    """What a command was given."""

    size: int = 3
    """A number."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("甲", encoding="utf-8")
    (folder / "deep" / "b.txt").write_text("乙", encoding="utf-8")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def make(output: Path, source: Path, kind: str = "corpus", resume: bool = False, **inputs: Path) -> None:
    """A whole run: writes one file."""
    with create(output, kind, "clean", Settings(), {"corpus": source, **inputs}, resume) as run:
        (run.path / "out.txt").write_text("丙", encoding="utf-8")
        run.result = {"documents": 1}


def stop(output: Path, source: Path, problem: BaseException, resume: bool = False) -> None:
    """A run that ends in the middle."""
    with (
        pytest.raises(type(problem)),
        create(output, "corpus", "clean", Settings(), {"corpus": source}, resume) as run,
    ):
        (run.path / "half.txt").write_text("丁", encoding="utf-8")
        raise problem


def refusal(what: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        what()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_finished_directory_says_how_it_was_made(tmp_path: Path, source: Path) -> None:
    make(tmp_path / "out", source)
    record = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert {key: record[key] for key in ("command", "kind", "settings", "inputs", "result")} == {
        "command": "clean",
        "kind": "corpus",
        "settings": {"size": 3},
        "inputs": {"corpus": {"path": str(source), "fingerprint": fingerprint(source)}},
        "result": {"documents": 1, "fingerprint": fingerprint(tmp_path / "out")},
    }
    assert record["seconds"] >= 0
    assert record["started"][:2] == "20"
    assert record["versions"]["torch"].startswith("2.")
    assert set(record["versions"]) == set(artifact.VERSIONED)


def test_a_package_that_is_not_installed_has_no_version(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "VERSIONED", ("no-such-package",))
    make(tmp_path / "out", source)
    assert read_record(tmp_path / "out")["versions"] == {"no-such-package": None}


def test_the_result_comes_last(tmp_path: Path, source: Path) -> None:
    with create(tmp_path / "out", "corpus", "clean", Settings(), {"corpus": source}) as run:
        run.result = {"documents": 1}
        assert "result" not in read_record(run.path)
    record = read_record(tmp_path / "out")
    assert list(record)[-1] == "result"


def test_a_run_leaves_its_inputs_as_they_were(tmp_path: Path, source: Path) -> None:
    before = content(source)
    make(tmp_path / "out", source)
    stop(tmp_path / "stopped", source, KeyboardInterrupt())
    stop(tmp_path / "refused", source, UserError("no"))
    assert content(source) == before


def test_a_users_mistake_removes_what_was_begun(tmp_path: Path, source: Path) -> None:
    stop(tmp_path / "deep" / "out", source, UserError("no"))
    assert not (tmp_path / "deep" / "out").exists()


def test_a_users_mistake_keeps_checkpoints(tmp_path: Path, source: Path) -> None:
    with (
        pytest.raises(UserError),
        create(tmp_path / "out", "run", "sft", Settings(), {"model": source}) as run,
    ):
        (run.path / "checkpoint-10").mkdir()
        raise UserError("no")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["checkpoint-10", "run.json"]
    assert "result" not in read_record(tmp_path / "out")


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), OSError("disk full")])
def test_an_interrupt_leaves_an_unfinished_directory(
    tmp_path: Path, source: Path, problem: BaseException
) -> None:
    output = tmp_path / "out"
    stop(output, source, problem)
    assert sorted(content(output)) == ["half.txt", "run.json"]
    assert "result" not in read_record(output)
    assert refusal(lambda: Corpus.open(output, "--corpus").path) == (
        f"--corpus {output}: its clean run did not finish; run that command again"
    )


def test_the_next_call_starts_an_unfinished_directory_again(tmp_path: Path, source: Path) -> None:
    stop(tmp_path / "out", source, KeyboardInterrupt())
    make(tmp_path / "out", source)
    assert sorted(content(tmp_path / "out")) == ["out.txt", "run.json"]


def test_the_next_call_continues_an_unfinished_directory(tmp_path: Path, source: Path) -> None:
    stop(tmp_path / "out", source, KeyboardInterrupt(), resume=True)
    make(tmp_path / "out", source, resume=True)
    assert sorted(content(tmp_path / "out")) == ["half.txt", "out.txt", "run.json"]
    assert read_record(tmp_path / "out")["result"]["documents"] == 1


def test_a_mistake_while_continuing_keeps_what_there_is(tmp_path: Path, source: Path) -> None:
    stop(tmp_path / "out", source, KeyboardInterrupt(), resume=True)
    stop(tmp_path / "out", source, UserError("no"), resume=True)
    assert sorted(content(tmp_path / "out")) == ["half.txt", "run.json"]


def test_an_unfinished_run_goes_on_only_with_its_inputs(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out"
    stop(output, source, KeyboardInterrupt(), resume=True)
    before = content(output)
    then = fingerprint(source)[:12]
    (source / "a.txt").write_text("改", encoding="utf-8")
    assert refusal(lambda: make(output, source, resume=True)) == (
        f"--output {output}, begun with --corpus {source} ({then}) does not match {source} "
        f"({fingerprint(source)[:12]}): give the same inputs, or choose another directory"
    )
    assert content(output) == before


def test_an_unfinished_run_gets_no_further_input(tmp_path: Path, source: Path) -> None:
    output, more = tmp_path / "out", source / "a.txt"
    stop(output, source, KeyboardInterrupt(), resume=True)
    assert refusal(lambda: make(output, source, resume=True, data1=more)).startswith(
        f"--output {output}, begun with --data1 nothing (nothing) does not match {more} ("
    )


def test_an_unfinished_run_loses_no_input(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out"
    stop(output, source, KeyboardInterrupt(), resume=True)

    def continue_without() -> None:
        with create(output, "corpus", "clean", Settings(), {}, resume=True):
            raise AssertionError

    assert refusal(continue_without).startswith(f"--output {output}, begun with --corpus {source} (")


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_directory_is_not_written_again(tmp_path: Path, source: Path, resume: bool) -> None:
    output = tmp_path / "out"
    make(output, source)
    before = content(output)
    assert refusal(lambda: make(output, source, resume=resume)) == (
        f"--output {output}: already holds a run of clean; choose another directory or delete this one"
    )
    assert content(output) == before


def test_another_commands_unfinished_directory_is_not_written(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out"
    stop(output, source, KeyboardInterrupt())

    def pack() -> None:
        with create(output, "tokens", "pack", Settings(), {}):
            raise AssertionError

    assert refusal(pack) == (
        f"--output {output}: holds an unfinished run of clean; choose another directory or delete this one"
    )
    assert sorted(content(output)) == ["half.txt", "run.json"]


@pytest.mark.parametrize("record", [None, '{"wandb": 1}', "[]"])
def test_files_of_others_are_not_written_over(tmp_path: Path, source: Path, record: str | None) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("keep", encoding="utf-8")
    if record is not None:
        (output / "run.json").write_text(record, encoding="utf-8")
    before = content(output)
    assert refusal(lambda: make(output, source)) == (
        f"--output {output}: not empty, and not written by zhllama; choose another directory"
    )
    assert content(output) == before


def test_an_empty_directory_is_taken(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", source)
    assert read_record(tmp_path / "out")["result"]["documents"] == 1


def test_a_file_in_the_way_is_refused(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out"
    output.write_text("keep", encoding="utf-8")
    assert refusal(lambda: make(output, source)) == (
        f"--output {output}: a file is in the way; choose another directory"
    )


def test_a_directory_that_cannot_be_made_is_refused(source: Path) -> None:
    output = source / "a.txt" / "out"
    assert refusal(lambda: make(output, source / "deep")) == (
        f"--output {output}: it cannot be made (Not a directory)"
    )


@pytest.mark.parametrize("below", ["out", "deep/out"])
def test_an_output_inside_an_input_is_refused(source: Path, below: str) -> None:
    before = content(source)
    output = source / below
    assert refusal(lambda: make(output, source)) == (
        f"--output {output}: lies inside --corpus {source}; choose a directory elsewhere"
    )
    assert content(source) == before


def test_a_finished_directory_of_the_kind_is_returned(tmp_path: Path, source: Path) -> None:
    make(tmp_path / "out", source)
    assert Corpus.open(str(tmp_path / "out"), "--corpus").path == tmp_path / "out"


def test_a_foreign_directory_or_file_is_returned(source: Path) -> None:
    assert ModelDirectory.open(source, "--model").path == source
    assert Corpus.open(source / "a.txt", "--corpus").path == source / "a.txt"


def test_a_model_directory_has_a_tokenizer_inside(tmp_path: Path, source: Path) -> None:
    make(tmp_path / "out", source, kind="model")
    assert TokenizerDirectory.open(tmp_path / "out", "--tokenizer").path == tmp_path / "out"


def test_a_directory_of_another_kind_is_refused(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out"
    make(output, source)
    assert refusal(lambda: ModelDirectory.open(output, "--model").path) == (
        f"--model {output}: this is a corpus directory (made by clean), and a model directory is needed"
    )


@pytest.mark.parametrize("name", ["none", "/none/such", "./none", "../none", "a/b/c"])
def test_what_is_not_there_is_refused_without_asking_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)  # called, it would be a TypeError
    assert (
        refusal(lambda: ModelDirectory.open(name, "--model").path)
        == f"--model {name}: no such file or directory"
    )


@pytest.mark.parametrize(
    "problem", [LocalEntryNotFoundError("x"), HFValidationError("x"), ConnectionError("x")]
)
def test_a_hub_that_has_no_answer_is_named(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(name: str, **_: object) -> str:
        raise problem

    monkeypatch.setattr("huggingface_hub.snapshot_download", ask)
    assert refusal(lambda: ModelDirectory.open("org/name", "--model").path) == (
        f"--model org/name: no such directory here, and the hub gave none ({type(problem).__name__})"
    )


def test_a_hub_name_becomes_its_snapshot(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def ask(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(source)

    monkeypatch.setattr("huggingface_hub.snapshot_download", ask)
    assert ModelDirectory.open("org/name-1.0", "--model").path == source
    assert asked["name"] == "org/name-1.0"
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked["patterns"])  # type: ignore[attr-defined]


def test_a_damaged_record_is_refused(source: Path) -> None:
    (source / "run.json").write_text('{"command": "cle', encoding="utf-8")
    assert refusal(lambda: read_record(source)).startswith(f"{source / 'run.json'}: damaged (Unterminated")


def test_a_directory_without_a_record_has_an_empty_one(source: Path) -> None:
    assert read_record(source) == {}


def test_different_fingerprints_name_both_sides_and_the_remedy() -> None:
    check_same("A", "1" * 64, "B", "1" * 64, "do C")
    assert refusal(lambda: check_same("A", "1" * 64, "B", "2" * 64, "do C")) == (
        "A (111111111111) does not match B (222222222222): do C"
    )


def test_a_files_fingerprint_is_its_sha256(source: Path) -> None:
    assert fingerprint(source / "a.txt") == sha256("甲".encode()).hexdigest()


def test_a_directorys_fingerprint_is_of_names_and_bytes(tmp_path: Path, source: Path) -> None:
    same = shutil.copytree(source, tmp_path / "same")
    assert fingerprint(same) == fingerprint(source)
    (same / "a.txt").rename(same / "c.txt")
    assert fingerprint(same) != fingerprint(source)
    (same / "c.txt").rename(same / "a.txt")
    (same / "deep" / "b.txt").write_text("丙", encoding="utf-8")
    assert fingerprint(same) != fingerprint(source)


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "report.json",
        "report.html",
        "loss.png",
        "README.md",
        "metrics.jsonl",
        "checkpoint-10/model.safetensors",
        "logs/events",
        ".cache/x",
    ],
)
def test_reports_and_checkpoints_are_no_content(source: Path, name: str) -> None:
    before = fingerprint(source)
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_text("[]", encoding="utf-8")
    assert fingerprint(source) == before


@pytest.mark.parametrize("name", ["logs-1998.txt", "report.txt", "checkpoint-notes.jsonl", "deep/c.jsonl"])
def test_documents_are_content_whatever_their_name(source: Path, name: str) -> None:
    before = fingerprint(source)
    (source / name).write_text("新", encoding="utf-8")
    assert fingerprint(source) != before


def test_the_record_of_a_finished_directory_holds_its_fingerprint(tmp_path: Path, source: Path) -> None:
    make(tmp_path / "out", source)
    recorded = read_record(tmp_path / "out")["result"]["fingerprint"]
    (tmp_path / "out" / "run.json").unlink()
    assert fingerprint(tmp_path / "out") == recorded


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    write_json(file, {"a": "甲"})
    assert file.read_text(encoding="utf-8") == '{\n "a": "甲"\n}\n'
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert file.read_text(encoding="utf-8") == '{\n "a": "甲"\n}\n'
    assert list(tmp_path.iterdir()) == [file]


def test_json_cut_short_does_not_reach_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.json"
    write_json(file, {"a": 1})
    written = Path.write_text

    def cut_short(path: Path, text: str, **options: str) -> int:
        written(path, text[:3], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", cut_short)
    with pytest.raises(KeyboardInterrupt):
        write_json(file, {"a": 2})
    assert json.loads(file.read_text(encoding="utf-8")) == {"a": 1}


def test_weights_can_be_read_by_whom_the_umask_lets(tmp_path: Path, source: Path) -> None:
    for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
        output = tmp_path / f"{umask}"
        before = os.umask(umask)
        try:
            with create(output, "model", "merge-adapter", Settings(), {"corpus": source}) as run:
                save_file({"a": torch.zeros(2)}, run.path / "model.safetensors")
        finally:
            os.umask(before)
        assert (output / "model.safetensors").stat().st_mode & 0o777 == mode
