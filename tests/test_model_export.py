"""Handing out a model: the weights in a chosen dtype, everything else as it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from zhllama import artifact
from zhllama.config import UserError
from zhllama.model.directory import INDEX, SINGLE, ModelDirectory
from zhllama.model.export import ExportConfig, export

Dtype = Literal["bfloat16", "float16", "float32"]
DTYPES = get_args(get_type_hints(ExportConfig)["dtype"])


@pytest.fixture(params=["sentencepiece", "bytelevel"])
def model(request: pytest.FixtureRequest) -> Path:
    directory: Path = request.getfixturevalue(f"{request.param}_model_dir")
    return directory


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def exported(model: Path, folder: Path, dtype: Dtype = "bfloat16") -> Path:
    export(ExportConfig(str(model), str(folder / "export"), dtype))
    return folder / "export"


def refusal(what: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        what()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def edit_config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**read(file), **changes}), encoding="utf-8")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_weight_is_the_sources_in_the_dtype(model: Path, tmp_path: Path, dtype: Dtype) -> None:
    before = load_file(model / SINGLE)
    after = load_file(exported(model, tmp_path, dtype) / SINGLE)
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.to(getattr(torch, dtype))), name
        assert after[name].dtype == getattr(torch, dtype)


def test_float32_stays_bit_for_bit(model: Path, tmp_path: Path) -> None:
    before, after = load_file(model / SINGLE), load_file(exported(model, tmp_path, "float32") / SINGLE)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers_opens_it_and_predicts_the_same(model: Path, tmp_path: Path, dtype: Dtype) -> None:
    output = exported(model, tmp_path, dtype)
    tokenizer = AutoTokenizer.from_pretrained(output)
    ids = tokenizer("中国的首都是北京。", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(output, dtype="auto")(ids).logits
        wanted = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))(ids).logits
    assert logits.dtype == getattr(torch, dtype)
    assert torch.equal(logits, wanted)


def test_the_config_changes_in_the_dtype_only(model: Path, tmp_path: Path) -> None:
    output = exported(model, tmp_path, "float16")
    assert read(output / "config.json") == {
        **read(model / "config.json"),
        "dtype": "float16",
        "torch_dtype": "float16",
    }


def test_both_names_of_the_dtype_say_what_was_written(tmp_path: Path, bytelevel_model_dir: Path) -> None:
    model = shutil.copytree(bytelevel_model_dir, tmp_path / "model")
    edit_config(model, torch_dtype="float32")
    config = read(exported(model, tmp_path) / "config.json")
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"


def test_tokenizer_template_and_generation_settings_come_along(model: Path, tmp_path: Path) -> None:
    before, after = content(model), content(exported(model, tmp_path))
    changed = {"config.json", SINGLE}
    assert {name: data for name, data in after.items() if name not in changed | {"run.json"}} == {
        name: data for name, data in before.items() if name not in changed
    }
    assert {"chat_template.jinja", "generation_config.json", "tokenizer.json"} <= set(after)


def test_a_model_without_generation_settings_is_exported(tmp_path: Path, bytelevel_model_dir: Path) -> None:
    model = shutil.copytree(bytelevel_model_dir, tmp_path / "model")
    (model / "generation_config.json").unlink()
    assert not (exported(model, tmp_path) / "generation_config.json").exists()


def test_the_source_stays_as_it_was(model: Path, tmp_path: Path) -> None:
    before = content(model)
    exported(model, tmp_path)
    assert content(model) == before


def test_the_record_names_the_base(model: Path, tmp_path: Path) -> None:
    record = artifact.read_record(exported(model, tmp_path))
    assert (record["command"], record["kind"]) == ("export", "model")
    assert record["inputs"]["model"] == {"path": str(model), "fingerprint": artifact.fingerprint(model)}
    assert record["result"]["dtype"] == "bfloat16"
    assert record["result"]["base"] == artifact.fingerprint(model)


def test_an_export_can_be_exported(bytelevel_model_dir: Path, tmp_path: Path) -> None:
    half = exported(bytelevel_model_dir, tmp_path)
    export(ExportConfig(str(half), str(tmp_path / "again"), "bfloat16"))
    assert (tmp_path / "again" / SINGLE).read_bytes() == (half / SINGLE).read_bytes()


def test_shards_stay_shards(tmp_path: Path, sentencepiece_model_dir: Path) -> None:
    model = shutil.copytree(sentencepiece_model_dir, tmp_path / "model")
    weights = load_file(model / SINGLE)
    (model / SINGLE).unlink()
    names = sorted(weights)
    placed = {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, model / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, file)
    (model / INDEX).write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}), encoding="utf-8"
    )
    output = exported(model, tmp_path)
    elements = sum(tensor.numel() for tensor in weights.values())
    assert read(output / INDEX) == {
        "metadata": {"total_size": 2 * elements, "total_parameters": elements},
        "weight_map": placed,
    }
    for file in set(placed.values()):
        assert list(load_file(output / file)) == list(load_file(model / file))
    loaded = AutoModelForCausalLM.from_pretrained(output).state_dict()
    assert all(torch.equal(loaded[name], weights[name].bfloat16()) for name in names)


def test_whole_numbers_stay_whole(tmp_path: Path, bytelevel_model_dir: Path) -> None:
    model = shutil.copytree(bytelevel_model_dir, tmp_path / "model")
    steps = torch.tensor([2**24 + 1])
    weights = {**load_file(model / SINGLE), "steps": steps}
    save_file(weights, model / SINGLE, metadata={"format": "pt"})
    assert torch.equal(load_file(exported(model, tmp_path) / SINGLE)["steps"], steps)


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("config.json", "no config.json inside; a Hugging Face model directory is needed"),
        (SINGLE, "no model.safetensors inside (only safetensors weights are read)"),
    ],
)
def test_a_directory_that_is_no_model_is_refused_and_nothing_left(
    tmp_path: Path, bytelevel_model_dir: Path, missing: str, line: str
) -> None:
    model = shutil.copytree(bytelevel_model_dir, tmp_path / "model")
    (model / missing).unlink()
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    assert refusal(lambda: exported(model, tmp_path)) == f"--model {model}: {line}"
    assert not (tmp_path / "export").exists()


def test_a_directory_of_another_kind_is_refused(tmp_path: Path, bytelevel_model_dir: Path) -> None:
    with artifact.create(tmp_path / "tokens", "tokens", "pack", ExportConfig("a", "b"), {}):
        pass
    assert refusal(lambda: exported(tmp_path / "tokens", tmp_path)) == (
        f"--model {tmp_path}/tokens: this is a tokens directory (made by pack), "
        "and a model directory is needed"
    )


def test_a_finished_export_is_not_written_again(bytelevel_model_dir: Path, tmp_path: Path) -> None:
    before = content(exported(bytelevel_model_dir, tmp_path))
    assert refusal(lambda: exported(bytelevel_model_dir, tmp_path, "float16")) == (
        f"--output {tmp_path}/export: already holds a run of export; choose another directory or delete this one"
    )
    assert content(tmp_path / "export") == before


def test_an_interrupted_export_is_made_again(
    bytelevel_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("zhllama.model.export.copy_tokenizer", interrupt)
        exported(bytelevel_model_dir, tmp_path)
    unfinished = f"--model {tmp_path}/export: its export run did not finish; run that command again"
    assert refusal(lambda: ModelDirectory.open(tmp_path / "export", "--model").path) == unfinished
    assert (exported(bytelevel_model_dir, tmp_path) / "tokenizer.json").is_file()
