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
from zhllama.model.directory import INPUT_KEY, OUTPUT_KEY, ModelDirectory


def tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    return {
        name: tensor
        for file in ModelDirectory.open(directory).shards
        for name, tensor in load_file(file).items()
    }


def merge(adapter: Path, output: Path, *flags: object) -> None:
    main(["merge-adapter", "--adapter", str(adapter), "--output", str(output), *map(str, flags)])


def then(*runs: Path) -> list[object]:
    """Flags of the adapters after the first."""
    return [word for run in runs for word in ("--adapter", run)]


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
        model = base or extended_models[kind]
        output = tmp_path / f"run-{embeddings}{'-' + base.name if base else ''}"
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
    assert [file.name for file in ModelDirectory.open(tmp_path / "m").shards] == [
        file.name for file in ModelDirectory.open(base).shards
    ]
    assert len(ModelDirectory.open(base).shards) > 2
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


def in_half(model: Path, copy: Path) -> Path:
    """A copy in bfloat16, where folding twice rounds twice."""
    shutil.copytree(model, copy)
    halves = {name: tensor.bfloat16() for name, tensor in tensors(copy).items()}
    save_file(halves, copy / "model.safetensors", metadata={"format": "pt"})
    rename(copy)
    return copy


@pytest.mark.parametrize("first", ["new", "all"])
def test_a_chain_is_bit_for_bit_what_one_command_after_another_gives(
    tmp_path: Path, trained: Callable[..., Path], extended_models: dict[str, Path], kind: str, first: str
) -> None:
    base = in_half(extended_models[kind], tmp_path / "base")
    runs = [trained(first, base)]
    for place, embeddings in enumerate(("new", "none"), start=1):
        merge(runs[-1], tmp_path / f"m{place}")
        runs.append(trained(embeddings, tmp_path / f"m{place}"))
    merge(runs[2], tmp_path / "m3")
    merge(runs[0], tmp_path / "chain", *then(*runs[1:]))
    one, other = tensors(tmp_path / "m3"), tensors(tmp_path / "chain")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert fingerprint(tmp_path / "m3") == fingerprint(tmp_path / "chain")
    record = read_record(tmp_path / "chain")
    assert list(record["inputs"]) == ["adapter", "adapter2", "adapter3", "model"]
    assert [record["inputs"][name]["path"] for name in record["inputs"]] == [*map(str, runs), str(base)]
    assert record["result"]["base"] == fingerprint(base)
    assert 0 <= record["result"]["difference"] < 0.02


def test_a_run_on_what_a_chain_made_follows_that_chain(
    tmp_path: Path, trained: Callable[..., Path], extended_models: dict[str, Path], kind: str
) -> None:
    first = trained("new")
    merge(first, tmp_path / "m1")
    second = trained("new", tmp_path / "m1")
    merge(first, tmp_path / "m2", *then(second))
    third = trained("none", tmp_path / "m2")
    for folder in ("m1", "m2"):  # their records suffice
        (tmp_path / folder / "model.safetensors").unlink()
    merge(first, tmp_path / "chain", *then(second, third))
    assert read_record(tmp_path / "chain")["result"]["difference"] < 1e-5


def test_adapters_of_one_base_add_up_and_the_last_rows_are_kept(
    tmp_path: Path,
    trained: Callable[..., Path],
    extended_models: dict[str, Path],
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = extended_models[kind]
    runs = [trained("all"), trained("new")]
    capsys.readouterr()
    merge(runs[0], tmp_path / "m", *then(runs[1]))
    warning = capsys.readouterr().err
    assert f"{runs[1]} was trained without the adapters before it: LoRA adds up" in warning
    for run in runs:
        merge(run, tmp_path / f"alone-{run.name}")
    both, one, other = (tensors(tmp_path / name) for name in ("m", *(f"alone-{run.name}" for run in runs)))
    before = tensors(base)
    first = read_record(base)["result"]["first_new"]
    for name in both:
        if name in (INPUT_KEY, OUTPUT_KEY):
            assert torch.equal(both[name][:first], one[name][:first])
            assert torch.equal(both[name][first:], other[name][first:])
        else:
            expected = one[name] + other[name] - before[name]
            torch.testing.assert_close(both[name], expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def pair(tmp_path: Path, trained: Callable[..., Path]) -> tuple[Path, Path]:
    """A run, and one on the model `m1` that it was merged to."""
    first = trained("new")
    merge(first, tmp_path / "m1", "--verify", "false")
    return first, trained("none", tmp_path / "m1")


def test_adapters_out_of_order(
    tmp_path: Path, pair: tuple[Path, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = pair
    problem = refused(capsys, second, tmp_path / "m", *then(first))
    assert f"--adapter {first}: it was trained on " in problem
    assert f"which is neither {tmp_path / 'm1'} nor, by its run.json, {second} merged into that" in problem
    assert "give the runs in the order of training" in problem
    assert not (tmp_path / "m").exists()


def test_a_run_on_a_model_of_another_run(
    tmp_path: Path,
    pair: tuple[Path, Path],
    trained: Callable[..., Path],
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = trained("all")
    problem = refused(capsys, other, tmp_path / "m", *then(pair[1]))
    assert f"--adapter {pair[1]}: it was trained on {tmp_path / 'm1'}, which is neither " in problem
    problem = refused(capsys, pair[0], tmp_path / "m", *then(other, pair[1]))  # one too many between them
    assert f"nor, by its run.json, {pair[0]} and {other} merged into that" in problem


@pytest.mark.parametrize("change", ["gone", "other weights", "no merge"])
def test_a_model_between_that_no_longer_vouches(
    tmp_path: Path, pair: tuple[Path, Path], kind: str, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    between = tmp_path / "m1"
    record = read_record(between)
    if change == "gone":
        shutil.rmtree(between)
    elif change == "other weights":
        record["result"]["fingerprint"] = "0" * 64
    else:
        record["command"] = "resize-embeddings"
    if change != "gone":
        (between / "run.json").write_text(json.dumps(record))
    problem = refused(capsys, pair[0], tmp_path / "m", *then(pair[1]))
    assert f"--adapter {pair[1]}: it was trained on {between}, which is neither " in problem


def test_a_run_given_twice(
    tmp_path: Path, run_dirs: dict[str, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = refused(capsys, run_dirs[kind], tmp_path / "m", *then(run_dirs[kind]))
    assert f"--adapter {run_dirs[kind]}: given twice; give each run once" in problem


def test_no_adapter_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["merge-adapter", "--adapter", "[]", "--output", str(tmp_path / "m")])
    assert stop.value.code == 2
    (tmp_path / "m.yaml").write_text("adapter: []\n")
    with pytest.raises(SystemExit) as stop:
        main(["merge-adapter", "--config", str(tmp_path / "m.yaml"), "--output", str(tmp_path / "m")])
    assert stop.value.code == 2
    assert "--adapter: give at least one run directory" in capsys.readouterr().err
