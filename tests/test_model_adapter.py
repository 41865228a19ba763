"""Adapters on disk: plain peft opens them, and they load again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_model_trainable import LORA, blocks_of, logits, taught

from zhllama.config import UserError
from zhllama.model.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Embeddings,
    LoraSettings,
    Parts,
    gathered_state,
    load_adapter,
    part_of,
    save_adapter,
    saved_parts,
)
from zhllama.model.directory import ModelDirectory
from zhllama.model.trainable import TrainableModel, load_trainable

CHOICES: dict[str, tuple[Embeddings, LoraSettings | None]] = {
    "new rows": ("new", LORA),
    "all rows": ("all", LORA),
    "no rows": ("none", LORA),
    "only new rows": ("new", None),
    "only all rows": ("all", None),
    "rslora": ("new", LoraSettings(rank=4, alpha=8, rslora=True)),
    "dora": ("new", LoraSettings(rank=4, alpha=8, dora=True)),
}


def save(model: TrainableModel, path: Path, base: Path, lora: LoraSettings | None = LORA) -> None:
    state = gathered_state(model.trainable(), keep=True)
    save_adapter(path, state, lora, ModelDirectory.open(base), model.config, model.new_row_count)


@pytest.mark.parametrize("choice", CHOICES)
def test_plain_peft_opens_the_adapter_with_the_same_logits(
    tmp_path: Path, extended_models: dict[str, Path], kind: str, choice: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    embeddings, lora = CHOICES[choice]
    model = taught(extended_models[kind], embeddings, lora)
    save(model, tmp_path, extended_models[kind], lora)
    base = AutoModelForCausalLM.from_pretrained(str(extended_models[kind]))
    ids = blocks_of(model, [40], 9)["input_ids"]
    with torch.no_grad():
        before = base(ids).logits
        theirs = PeftModel.from_pretrained(base, str(tmp_path)).eval()(ids).logits
        ours = logits(model, ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (ours - before).abs().max() > 0.01


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("choice", CHOICES)
def test_what_was_saved_loads_again(
    tmp_path: Path, extended_models: dict[str, Path], kind: str, choice: str, full: bool
) -> None:
    embeddings, lora = CHOICES[choice]
    lora = None if full else lora
    model = taught(extended_models[kind], embeddings, lora, full)
    save(model, tmp_path, extended_models[kind], lora)
    in_order = lora and replace(lora, targets=sorted(lora.targets))
    assert saved_parts(tmp_path) == Parts(embeddings, in_order, full)
    assert (tmp_path / ADAPTER_CONFIG).is_file() is not full
    fresh = load_trainable(
        ModelDirectory.open(extended_models[kind]), Parts(embeddings, lora, full=full), torch.float32
    )
    load_adapter(fresh.trainable(), tmp_path)
    for name, parameter in model.trainable().items():
        assert torch.equal(parameter, fresh.trainable()[name])
    batch = blocks_of(model, [30, 20], 4)
    assert torch.equal(fresh.eval()(**batch)["loss"], model(**batch)["loss"])


def test_saved_tensors_are_float32_and_settings_are_kept(
    tmp_path: Path, extended_models: dict[str, Path], kind: str
) -> None:
    lora = LoraSettings(rank=2, alpha=6, dropout=0.25, targets=["v_proj", "q_proj"])
    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts("new", lora), torch.bfloat16)
    save(model, tmp_path, extended_models[kind], lora)
    assert {tensor.dtype for tensor in load_file(tmp_path / ADAPTER_WEIGHTS).values()} == {torch.float32}
    read = saved_parts(tmp_path).method
    assert read == LoraSettings(rank=2, alpha=6, dropout=0.25, targets=["q_proj", "v_proj"])
    content = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    assert content["base_model_name_or_path"] == str(extended_models[kind])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": 0}, "lora.rank 0: it must be at least 1"), ({"targets": []}, "lora.targets: name at least")],
)
def test_lora_that_would_not_train(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoraSettings(**settings)


def test_adapter_of_another_shape(tmp_path: Path, extended_models: dict[str, Path], kind: str) -> None:
    save(
        load_trainable(ModelDirectory.open(extended_models[kind]), Parts("new", LORA), torch.float32),
        tmp_path,
        extended_models[kind],
    )
    other = load_trainable(
        ModelDirectory.open(extended_models[kind]), Parts("new", LoraSettings(rank=8)), torch.float32
    )
    with pytest.raises(UserError, match=r"the adapter has no tensor .*lora_A.weight of shape \(8, 32\)"):
        load_adapter(other.trainable(), tmp_path)


def test_parts_of_a_model_are_told_by_their_keys(extended_models: dict[str, Path], kind: str) -> None:
    def parts(embeddings: Embeddings, lora: LoraSettings | None, full: bool = False) -> set[str]:
        model = load_trainable(
            ModelDirectory.open(extended_models[kind]), Parts(embeddings, lora, full=full), torch.float32
        )
        return set(map(part_of, model.trainable()))

    assert parts("new", LORA) == {"LoRA", "new rows"}
    assert parts("all", None) == {"embeddings"}
    assert parts("none", None, full=True) == {"layers"}


def test_the_scale_of_rslora() -> None:
    assert LoraSettings(rank=16, alpha=32).scale == 2
    assert LoraSettings(rank=16, alpha=32, rslora=True).scale == 8
