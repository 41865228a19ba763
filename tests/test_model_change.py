"""Norms of change, against the same numbers from whole tensors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_model_trainable import LORA, taught

from zhllama.model.adapter import Embeddings, Parts
from zhllama.model.change import norms_of_change
from zhllama.model.directory import ModelDirectory
from zhllama.model.trainable import load_trainable

ENDS = ("model.embed_tokens.weight", "lm_head.weight")


def stacked(differences: list[torch.Tensor]) -> float:
    return float(torch.cat([difference.flatten() for difference in differences]).norm())


@pytest.mark.parametrize("embeddings", ["new", "all"])
def test_rows_and_lora(extended_models: dict[str, Path], kind: str, embeddings: Embeddings) -> None:
    directory = extended_models[kind]
    model = taught(directory, embeddings)
    found = norms_of_change(model, ModelDirectory.open(directory), LORA.scale)
    stored, new = load_file(directory / "model.safetensors"), ModelDirectory.open(directory).new_rows
    old_rows, new_rows = [], []
    for key in filter(stored.__contains__, ENDS):
        before, name = stored[key], f"base_model.model.{key}"
        rows = name.replace("weight", "token_adapter.trainable_tokens_delta")
        after = model.trainable().get(name, model.trainable().get(rows))
        assert after is not None
        new_rows.append(after.detach()[-new:] - before[-new:])
        old_rows.append(after.detach()[:-new] - before[:-new] if embeddings == "all" else torch.zeros(1))
    trained = {key: tensor.detach() for key, tensor in model.trainable().items()}
    products = [
        LORA.scale * trained[key.replace("lora_A", "lora_B")] @ trained[key]
        for key in trained
        if "lora_A" in key
    ]
    expected = {"old rows": stacked(old_rows), "new rows": stacked(new_rows), "LoRA": stacked(products)}
    assert found == pytest.approx(expected, rel=1e-4)
    assert (found["old rows"] > 0) == (embeddings == "all")


def test_layers(extended_models: dict[str, Path], kind: str) -> None:
    directory = extended_models[kind]
    model = taught(directory, "none", None, full=True)
    stored = load_file(directory / "model.safetensors")
    differences = [
        parameter.detach() - stored[name]
        for name, parameter in model.base.named_parameters()
        if parameter.requires_grad
    ]
    expected = {"old rows": 0.0, "layers": stacked(differences)}
    assert norms_of_change(model, ModelDirectory.open(directory), 0.0) == pytest.approx(expected, rel=1e-4)
    assert len(differences) == 2 * 9 + 1


def test_a_damaged_frozen_row_is_seen(extended_models: dict[str, Path], kind: str) -> None:
    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts("new", LORA), torch.float32)
    model.base.lm_head.weight.data[7, 0] += 0.5
    found = norms_of_change(model, ModelDirectory.open(extended_models[kind]), LORA.scale)
    assert found == {"old rows": pytest.approx(0.5), "new rows": 0.0, "LoRA": 0.0}
