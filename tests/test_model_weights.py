"""Safetensors checkpoints: which files, single tensors, rewriting shard by shard."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from zhllama.config import UserError
from zhllama.model.directory import INDEX, INPUT_KEY, ModelDirectory
from zhllama.model.weights import copy_tokenizer, rewrite


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory, sentencepiece_model_dir: Path) -> Path:
    """The untied tiny LLaMA in several files."""
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("sharded")
    model = AutoModelForCausalLM.from_pretrained(str(sentencepiece_model_dir))
    model.save_pretrained(directory, max_shard_size="150KB")
    return directory


def tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    return {
        name: tensor
        for file in ModelDirectory.open(directory).shards
        for name, tensor in load_file(file).items()
    }


def test_one_file_and_shards_hold_the_same(sharded: Path, sentencepiece_model_dir: Path) -> None:
    assert [file.name for file in ModelDirectory.open(sentencepiece_model_dir).shards] == [
        "model.safetensors"
    ]
    names = [file.name for file in ModelDirectory.open(sharded).shards]
    assert len(names) > 2
    assert names == sorted(file.name for file in sharded.glob("*.safetensors"))
    whole, parts = tensors(sentencepiece_model_dir), tensors(sharded)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_rows_of_a_tensor_in_any_shard(sharded: Path) -> None:
    for name, tensor in tensors(sharded).items():
        with ModelDirectory.open(sharded).tensor(name) as part:
            assert part.get_shape() == list(tensor.shape)
            assert torch.equal(part[-3:], tensor[-3:])


def test_rewriting_passes_every_tensor_and_keeps_the_files(tmp_path: Path, sharded: Path) -> None:
    seen: list[str] = []

    def double(name: str, tensor: Tensor) -> Tensor:
        seen.append(name)
        return tensor.repeat(2, 1) if name == INPUT_KEY else tensor.half()

    rewrite(ModelDirectory.open(sharded), tmp_path, double, "doubling")
    before, after = tensors(sharded), tensors(tmp_path)
    assert sorted(seen) == sorted(before)
    assert after[INPUT_KEY].shape[0] == 2 * before[INPUT_KEY].shape[0]
    assert {tensor.dtype for name, tensor in after.items() if name != INPUT_KEY} == {torch.float16}
    old, new = (json.loads((directory / INDEX).read_text()) for directory in (sharded, tmp_path))
    assert new["weight_map"] == old["weight_map"]
    assert new["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in after.values())
    with safe_open(ModelDirectory.open(tmp_path).shards[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers wants it


def test_one_tensor_is_written_before_the_next_is_read(tmp_path: Path, sharded: Path) -> None:
    alive: list[weakref.ref[Tensor]] = []

    def watch(_: str, tensor: Tensor) -> Tensor:
        assert not any(before() is not None for before in alive)
        fresh = tensor.clone()
        alive.extend((weakref.ref(tensor), weakref.ref(fresh)))
        return fresh

    rewrite(ModelDirectory.open(sharded), tmp_path, watch, "watching")
    assert len(alive) == 2 * len(tensors(sharded))


def test_any_shape_and_dtype_is_written_as_the_library_writes_it(tmp_path: Path) -> None:
    whole = {
        "a.scalar": torch.tensor(3.5),
        "b.empty": torch.zeros(0, 4),
        "c.odd": torch.randn(3).bfloat16(),
        "d.ids": torch.arange(5),
        "e.mask": torch.tensor([True, False, True]),
        "f.字": torch.randn(2, 3, 4).half(),
        "g.strided": torch.randn(6, 4).double(),
        "h.eighth": torch.randn(4, 4).to(torch.float8_e4m3fn),
    }
    source, target = tmp_path / "s", tmp_path / "t"
    source.mkdir()
    target.mkdir()
    save_file(whole, source / "model.safetensors", metadata={"format": "pt"})
    rewrite(
        ModelDirectory.open(source),
        target,
        lambda name, tensor: tensor[::2] if "strided" in name else tensor,
        "copying",
    )
    copied = load_file(target / "model.safetensors")
    assert copied.keys() == whole.keys()
    for name, tensor in (whole | {"g.strided": whole["g.strided"][::2]}).items():
        assert (copied[name].dtype, copied[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(copied[name].double(), tensor.double())
    header = int.from_bytes((target / "model.safetensors").read_bytes()[:8], "little")
    assert header % 8 == 0  # as aligned as the library's own


def test_tokenizer_files_come_along(tmp_path: Path, bytelevel_model_dir: Path) -> None:
    copy_tokenizer(bytelevel_model_dir, tmp_path)
    copied = {file.name for file in tmp_path.iterdir()}
    expected = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
    assert copied == expected
    for name in copied:
        assert (tmp_path / name).read_bytes() == (bytelevel_model_dir / name).read_bytes()


def test_no_safetensors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model .*: no model.safetensors inside \(only safetensors"):
        _ = ModelDirectory.open(tmp_path).shards


def test_a_shard_is_missing(tmp_path: Path, sharded: Path) -> None:
    for file in sharded.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    gone = ModelDirectory.open(tmp_path).shards[1]
    gone.unlink()
    with pytest.raises(UserError, match=f"no {gone.name} inside"):
        _ = ModelDirectory.open(tmp_path).shards


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--base .*: no config.json inside"):
        _ = ModelDirectory.open(tmp_path, "--base").config


def test_no_such_tensor(sharded: Path) -> None:
    with (
        pytest.raises(UserError, match=r"no tensor transformer.wte.weight; a LLaMA-family checkpoint"),
        ModelDirectory.open(sharded).tensor("transformer.wte.weight"),
    ):
        raise AssertionError("found")


def test_a_config_without_positions(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"no max_position_embeddings in its config\.json; a LLaMA-family model"
    ):
        ModelDirectory.open(tmp_path).check_block_size(8)
