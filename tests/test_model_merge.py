"""merge-adapter: the same model as peft's, a complete directory, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import zhllama.model.merge
from zhllama.artifact import fingerprint, read_record
from zhllama.cli import main
from zhllama.model.weights import INPUT_KEY, OUTPUT_KEY, shards


def tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    return {name: tensor for file in shards(directory) for name, tensor in load_file(file).items()}


def merge(adapter: Path, output: Path, *flags: object) -> None:
    main(["merge-adapter", "--adapter", str(adapter), "--output", str(output), *map(str, flags)])


def by_peft(base: Path, adapter: Path) -> dict[str, Tensor]:
    """The parameters as peft folds them."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(str(base)), str(adapter))
    merged = dict(model.merge_and_unload().named_parameters())
    if OUTPUT_KEY not in tensors(base) and OUTPUT_KEY in merged:  # peft unties what it saved twice
        assert torch.equal(merged.pop(OUTPUT_KEY), merged[INPUT_KEY])
    return merged


@pytest.fixture
def trained(
    tmp_path: Path,
    extended_models: dict[str, Path],
    token_dirs: dict[str, Path],
    toy: list[str],
    kind: str,
) -> Callable[..., Path]:
    """A quick run on any base, with any choice of embeddings."""

    def run(embeddings: str, base: Path | None = None) -> Path:
        model, output = base or extended_models[kind], tmp_path / f"run-{embeddings}"
        inputs = ["--model", str(model), "--tokens", str(token_dirs[kind]), "--output", str(output)]
        quick = ["--train.max-steps", "2", "--train.learning-rate", "1e-2", "--freeze-new-rows", "true"]
        main(["pretrain", *inputs, *quick, "--embeddings", embeddings, *toy])
        return output

    return run


@pytest.mark.parametrize("embeddings", ["new", "all", "none"])
def test_the_weights_are_those_that_peft_merges(
    tmp_path: Path,
    trained: Callable[..., Path],
    extended_models: dict[str, Path],
    kind: str,
    embeddings: str,
) -> None:
    run = trained(embeddings)
    merge(run, tmp_path / "m")
    ours, theirs = tensors(tmp_path / "m"), by_peft(extended_models[kind], run)
    assert ours.keys() == theirs.keys() == tensors(extended_models[kind]).keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name].data, rtol=1e-5, atol=1e-6)


def test_old_rows_stay_bit_identical_and_the_rest_moves(
    tmp_path: Path, run_dirs: dict[str, Path], extended_models: dict[str, Path], kind: str
) -> None:
    merge(run_dirs[kind], tmp_path / "m")
    before, after = tensors(extended_models[kind]), tensors(tmp_path / "m")
    first = read_record(extended_models[kind])["result"]["first_new"]
    for name in before:
        if name in (INPUT_KEY, OUTPUT_KEY):
            assert torch.equal(before[name][:first], after[name][:first])
            assert not torch.equal(before[name][first:], after[name][first:])
        else:
            assert torch.equal(before[name], after[name]) == ("norm" in name)


def test_the_directory_is_complete(
    tmp_path: Path, run_dirs: dict[str, Path], extended_models: dict[str, Path], kind: str
) -> None:
    merge(run_dirs[kind], tmp_path / "m")
    copied = {file.name for file in extended_models[kind].iterdir()} - {"run.json", "model.safetensors"}
    assert {"generation_config.json", "chat_template.jinja", "tokenizer.json"} < copied
    for name in copied:
        assert (tmp_path / "m" / name).read_bytes() == (extended_models[kind] / name).read_bytes()
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(loading.values())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id


def test_the_record_keeps_the_new_rows_and_names_the_base(
    tmp_path: Path, run_dirs: dict[str, Path], extended_models: dict[str, Path], kind: str
) -> None:
    merge(run_dirs[kind], tmp_path / "m")
    base, merged = (read_record(path)["result"] for path in (extended_models[kind], tmp_path / "m"))
    assert (merged["first_new"], merged["rows"]) == (base["first_new"], base["rows"])
    assert merged["base"] == fingerprint(extended_models[kind])
    assert merged["fingerprint"] != base["fingerprint"]
    assert 0 <= merged["difference"] < 1e-5


def test_the_inputs_are_untouched(
    tmp_path: Path, run_dirs: dict[str, Path], extended_models: dict[str, Path], kind: str
) -> None:
    paths = [path for folder in (run_dirs[kind], extended_models[kind]) for path in folder.iterdir()]
    before = {path: fingerprint(path) for path in paths if path.is_file()}
    merge(run_dirs[kind], tmp_path / "m")
    assert {path: fingerprint(path) for path in before} == before


def test_shards_are_merged_one_by_one(
    tmp_path: Path, trained: Callable[..., Path], extended_models: dict[str, Path], kind: str
) -> None:
    base = shutil.copytree(extended_models[kind], tmp_path / "base")
    (base / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(str(extended_models[kind]))
    model.save_pretrained(base, max_shard_size="60KB")
    rename(base)
    run = trained("new", base)
    merge(run, tmp_path / "m")
    ours, theirs = tensors(tmp_path / "m"), by_peft(base, run)
    assert [file.name for file in shards(tmp_path / "m")] == [file.name for file in shards(base)]
    assert len(shards(base)) > 2
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name].data, rtol=1e-5, atol=1e-6)


def rename(base: Path) -> None:
    """Let a changed copy's record say what it holds now."""
    record = read_record(base)
    del record["result"]["fingerprint"]
    (base / "run.json").write_text(json.dumps(record))


def test_bfloat16_is_folded_in_float32_and_cast_back(
    tmp_path: Path, trained: Callable[..., Path], extended_models: dict[str, Path], kind: str
) -> None:
    base = shutil.copytree(extended_models[kind], tmp_path / "base")
    halves = {name: tensor.bfloat16() for name, tensor in tensors(base).items()}
    save_file(halves, base / "model.safetensors", metadata={"format": "pt"})
    rename(base)
    run = trained("new", base)
    merge(run, tmp_path / "m")
    merged = tensors(tmp_path / "m")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    name = "model.layers.1.mlp.down_proj"
    state = load_file(run / "adapter_model.safetensors")
    down, up = (state[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    scale = 128 / 4  # alpha's default over the toy rank
    expected = halves[f"{name}.weight"].float() + scale * (up @ down)
    assert torch.equal(merged[f"{name}.weight"], expected.bfloat16())


def test_a_base_that_has_moved_is_given_by_model(
    tmp_path: Path, run_dirs: dict[str, Path], extended_models: dict[str, Path], kind: str
) -> None:
    moved = shutil.copytree(extended_models[kind], tmp_path / "moved")
    merge(run_dirs[kind], tmp_path / "m", "--model", moved)
    assert read_record(tmp_path / "m")["inputs"]["model"]["path"] == str(moved)


def test_without_verifying_nothing_is_compared(
    tmp_path: Path, run_dirs: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zhllama.model.merge, "_difference", None)  # would fail if called
    merge(run_dirs[kind], tmp_path / "m", "--verify", "false")
    assert read_record(tmp_path / "m")["result"]["difference"] is None


def refused(capsys: pytest.CaptureFixture[str], adapter: Path, output: Path, *flags: object) -> str:
    with pytest.raises(SystemExit) as stop:
        merge(adapter, output, *flags)
    assert stop.value.code == 2
    problem = capsys.readouterr().err
    assert problem.startswith("zhllama merge-adapter: error: ")
    assert problem.count("\n") == 1
    return problem


def test_adapter_of_another_base(
    tmp_path: Path,
    run_dirs: dict[str, Path],
    model_dirs: dict[str, Path],
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    problem = refused(capsys, run_dirs[kind], tmp_path / "m", "--model", model_dirs[kind])
    assert f"the base of --adapter {run_dirs[kind]} (" in problem
    assert f"does not match --model {model_dirs[kind]} (" in problem
    assert "give the model it was trained on (" in problem
    assert not (tmp_path / "m").exists()


def test_a_base_that_has_changed_since(
    tmp_path: Path,
    run_dirs: dict[str, Path],
    extended_models: dict[str, Path],
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = shutil.copytree(extended_models[kind], tmp_path / "changed")
    save_file({"model.norm.weight": torch.ones(32)}, changed / "model.safetensors")
    rename(changed)
    assert "does not match --model" in refused(capsys, run_dirs[kind], tmp_path / "m", "--model", changed)


def test_a_base_that_is_gone(
    tmp_path: Path, run_dirs: dict[str, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(run_dirs[kind], tmp_path / "run")
    record = read_record(run)
    record["inputs"]["model"]["path"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(record))
    problem = refused(capsys, run, tmp_path / "m")
    assert f"--model {tmp_path / 'gone'}: no such file or directory" in problem


def test_an_unfinished_run(
    tmp_path: Path, run_dirs: dict[str, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(run_dirs[kind], tmp_path / "run")
    record = read_record(run)
    del record["result"]
    (run / "run.json").write_text(json.dumps(record))
    problem = refused(capsys, run, tmp_path / "m")
    assert f"--adapter {run}: its pretrain run did not finish; run that command again" in problem


@pytest.mark.parametrize("gone", ["adapter_model.safetensors", "run.json"])
def test_a_directory_without_an_adapter(
    tmp_path: Path, run_dirs: dict[str, Path], kind: str, capsys: pytest.CaptureFixture[str], gone: str
) -> None:
    run = shutil.copytree(run_dirs[kind], tmp_path / "run")
    (run / gone).unlink()
    problem = refused(capsys, run, tmp_path / "m")
    assert f"--adapter {run}: no finished adapter inside; give the --output of pretrain or sft" in problem


def test_merged_weights_that_predict_something_else(
    tmp_path: Path,
    run_dirs: dict[str, Path],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fold = zhllama.model.merge.fold

    def wrong(*paths: Path) -> Callable[[str, Tensor], Tensor]:
        change: Any = fold(*paths)
        return lambda name, tensor: change(name, tensor) + (0.05 if "down_proj" in name else 0.0)

    monkeypatch.setattr(zhllama.model.merge, "fold", wrong)
    problem = refused(capsys, run_dirs[kind], tmp_path / "m")
    assert "merged and unmerged predictions differ by 0." in problem
    assert "nothing written" in problem
    assert not (tmp_path / "m").exists()


def test_an_output_that_holds_a_model(
    tmp_path: Path, run_dirs: dict[str, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    merge(run_dirs[kind], tmp_path / "m")
    assert "already holds a run of merge-adapter" in refused(capsys, run_dirs[kind], tmp_path / "m")
