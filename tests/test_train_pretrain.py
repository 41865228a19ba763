"""pretrain: what it refuses before anything is trained or written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zhllama.artifact import fingerprint, read_record
from zhllama.cli import main
from zhllama.model.run_directory import SEAL, RunDirectory


@pytest.fixture
def inputs(extended_models: dict[str, Path], token_dirs: dict[str, Path], kind: str) -> dict[str, Path]:
    return {"model": extended_models[kind], "tokens": token_dirs[kind]}


def refused(inputs: dict[str, Path], output: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line that the command ends with, exit code 2."""
    paths = [word for name, path in inputs.items() for word in (f"--{name}", str(path))]
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", *paths, "--output", str(output), "--train.use-cpu", "true", *flags])
    assert stop.value.code == 2
    problem = capsys.readouterr().err
    assert problem.startswith("zhllama pretrain: error: ")
    assert problem.count("\n") == 1
    return problem


def rewrite_record(folder: Path, **changes: object) -> None:
    """Change a copy's run.json; None takes a field out."""
    record = json.loads((folder / "run.json").read_text()) | changes
    kept = {key: value for key, value in record.items() if value is not None}
    (folder / "run.json").write_text(json.dumps(kept))


def test_tokens_of_another_tokenizer(
    tmp_path: Path,
    inputs: dict[str, Path],
    token_dirs: dict[str, Path],
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = token_dirs["bytelevel" if kind == "sentencepiece" else "sentencepiece"]
    problem = refused(inputs | {"tokens": other}, tmp_path / "r", capsys)
    assert f"--tokens {other} (" in problem
    assert f"does not match the tokenizer of --model {inputs['model']}" in problem
    assert f"run zhllama pack --model {inputs['model']} again" in problem
    assert not (tmp_path / "r").exists()


def test_new_rows_of_a_model_without_any(
    tmp_path: Path, inputs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = shutil.copytree(inputs["model"], tmp_path / "model")
    (foreign / "run.json").unlink()
    problem = refused(inputs | {"model": foreign}, tmp_path / "r", capsys)
    assert f"embeddings new: {foreign} has no rows added by resize-embeddings" in problem
    assert not (tmp_path / "r").exists()


def test_frozen_new_rows(tmp_path: Path, inputs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    problem = refused(inputs, tmp_path / "r", capsys, "--embeddings", "none")
    assert "would stay frozen; use --embeddings new" in problem
    assert not (tmp_path / "r").exists()


def test_blocks_above_the_models_positions(
    tmp_path: Path, inputs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    short = shutil.copytree(inputs["model"], tmp_path / "model")
    settings = json.loads((short / "config.json").read_text()) | {"max_position_embeddings": 32}
    (short / "config.json").write_text(json.dumps(settings))
    problem = refused(inputs | {"model": short}, tmp_path / "r", capsys)
    assert f"block_size 64: {short} has 32 positions; use at most that" in problem


@pytest.mark.parametrize("flag", ["model", "tokens"])
def test_missing_input(
    tmp_path: Path, inputs: dict[str, Path], capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    problem = refused(inputs | {flag: tmp_path / "none"}, tmp_path / "r", capsys)
    assert f"--{flag} {tmp_path / 'none'}: no such file or directory" in problem


@pytest.mark.parametrize("flag", ["model", "tokens"])
def test_unfinished_input(
    tmp_path: Path, inputs: dict[str, Path], capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    begun = shutil.copytree(inputs[flag], tmp_path / "begun")
    rewrite_record(begun, result=None)
    command = {"model": "resize-embeddings", "tokens": "pack"}[flag]
    problem = refused(inputs | {flag: begun}, tmp_path / "r", capsys)
    assert f"--{flag} {begun}: its {command} run did not finish; run that command again" in problem


def test_directories_in_the_wrong_place(
    tmp_path: Path, inputs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    problem = refused(inputs | {"tokens": inputs["model"]}, tmp_path / "r", capsys)
    assert (
        "this is a model directory (made by resize-embeddings), and a tokens directory is needed" in problem
    )


def test_tokens_from_elsewhere(
    tmp_path: Path, inputs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = shutil.copytree(inputs["tokens"], tmp_path / "tokens")
    (foreign / "run.json").unlink()
    problem = refused(inputs | {"tokens": foreign}, tmp_path / "r", capsys)
    assert f"--tokens {foreign}: not made by zhllama pack; run that first" in problem


def test_a_finished_run_is_not_written_again(
    inputs: dict[str, Path], run_dirs: dict[str, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fingerprint(run_dirs[kind] / "adapter_model.safetensors")
    problem = refused(inputs, run_dirs[kind], capsys)
    assert f"--output {run_dirs[kind]}: already holds a run of pretrain; choose another directory" in problem
    assert fingerprint(run_dirs[kind] / "adapter_model.safetensors") == before


def test_an_unfinished_run_goes_on_only_with_its_inputs(
    tmp_path: Path,
    inputs: dict[str, Path],
    run_dirs: dict[str, Path],
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun = shutil.copytree(run_dirs[kind], tmp_path / "r")
    changed = json.loads((begun / "run.json").read_text())["inputs"]
    changed["tokens"]["fingerprint"] = "0" * 64
    rewrite_record(begun, result=None, inputs=changed)
    problem = refused(inputs, begun, capsys)
    assert "give the same inputs, or choose another directory" in problem
    assert (begun / "checkpoint-12").is_dir()


def test_an_output_of_someone_else(
    tmp_path: Path, inputs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    problem = refused(inputs, tmp_path, capsys)
    assert "not empty, and not written by zhllama; choose another directory" in problem
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_output_dir_of_the_training_arguments(
    tmp_path: Path, inputs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    problem = refused(inputs, tmp_path / "r", capsys, "--train.output-dir", "elsewhere")
    assert "train.output_dir is --output: set that instead" in problem


CHOICES = {
    "rslora": ["--lora.rslora", "true"],
    "dora": ["--lora.dora", "true"],
    "embeddings only": ["--body", "none"],
    "layers and new rows": ["--body", "full"],
    "everything": ["--body", "full", "--embeddings", "all"],
}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_trains_resumes_and_merges_into_what_it_measures(
    tmp_path: Path,
    run: Callable[..., None],
    extended_models: dict[str, Path],
    corpus_file: Path,
    kind: str,
    choice: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # bfloat16, where a processor prefers it, rounds merged weights and the adapter beside them differently.
    monkeypatch.setattr("zhllama.measure.evaluate.default_dtype", lambda: torch.float32)
    flags = [
        *CHOICES[choice],
        "--train.max-steps",
        6,
        "--train.save-steps",
        3,
    ]
    run(tmp_path / "run", *flags)
    begun = shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(begun / "checkpoint-6")
    rewrite_record(begun, result=None)
    run(begun, *flags)
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "run", begun))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    main(["merge-adapter", "--adapter", str(tmp_path / "run"), "--output", str(tmp_path / "merged")])
    for name, source in (
        ("base", extended_models[kind]),
        ("adapter", tmp_path / "run"),
        ("model", tmp_path / "merged"),
    ):
        flag = "--adapter" if name == "adapter" else "--model"
        main(["evaluate", flag, str(source), "--text", f"t={corpus_file}", "--output", str(tmp_path / name),
              "--block-size", "64", "--max-bytes", "2000"])  # fmt: skip
    bits = {name: read_record(tmp_path / name)["result"]["t"] for name in ("base", "adapter", "model")}
    assert bits["model"] == pytest.approx(bits["adapter"], abs=2e-5)
    assert bits["model"] != pytest.approx(bits["base"], abs=4e-5)


def test_a_chosen_checkpoint_merges_and_knows_its_base(
    tmp_path: Path,
    run: Callable[..., None],
    extended_models: dict[str, Path],
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(tmp_path / "run", "--train.max-steps", 4, "--train.save-steps", 2)
    rewrite_record(tmp_path / "run", result=None)  # as a run that was stopped leaves it
    early = tmp_path / "run" / "checkpoint-2"
    main(["merge-adapter", "--adapter", str(early), "--output", str(tmp_path / "merged")])
    rows = load_file(early / "adapter_model.safetensors")[
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    ]
    merged = load_file(tmp_path / "merged" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(merged[-len(rows) :], rows.to(merged.dtype))
    inputs = read_record(tmp_path / "merged")["inputs"]
    assert (inputs["adapter"]["path"], inputs["model"]["path"]) == (str(early), str(extended_models[kind]))
    late = tmp_path / "run" / "checkpoint-4"
    assert RunDirectory.open(late).fingerprint != RunDirectory.open(early).fingerprint
    (late / SEAL).unlink()
    with pytest.raises(SystemExit) as stop:
        main(["merge-adapter", "--adapter", str(late), "--output", str(tmp_path / "again")])
    assert stop.value.code == 2
    assert f"--adapter {late}: it was cut short while it was written" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
