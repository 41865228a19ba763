"""Prefix tuning and LLaMA-Adapter: what plain peft opens, packing, checkpointing, where they start."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_model_trainable import blocks_of
from torch import Tensor

from zhllama.config import UserError
from zhllama.model.adapter import (
    Method,
    Parts,
    gathered_state,
    load_adapter,
    part_of,
    save_adapter,
    saved_parts,
)
from zhllama.model.directory import ModelDirectory
from zhllama.model.prompt_tuning import AdaptionSettings, PrefixSettings, check_adaption
from zhllama.model.trainable import TrainableModel, check_parts, load_trainable

METHODS: dict[str, Method] = {
    "prefix": PrefixSettings(length=5),
    "adaption": AdaptionSettings(length=4, layers=2),
    "adaption on top": AdaptionSettings(length=4, layers=1),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def taught(directory: Path, method: Method, dtype: torch.dtype = torch.float32) -> TrainableModel:
    """A model after three optimiser steps on its prompts."""
    torch.manual_seed(0)
    model = load_trainable(ModelDirectory.open(directory), Parts("none", method), dtype)
    optimiser = torch.optim.AdamW(model.trainable().values(), lr=0.1)
    for step in range(3):
        model(**blocks_of(model, [20, 30], step))["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


def logits(model: TrainableModel, ids: Tensor) -> Tensor:
    """(1, length, rows), which training itself never forms."""
    positions = torch.arange(ids.shape[1])[None]
    return model.hidden(ids, positions) @ model.base.lm_head.weight.T


def save(model: TrainableModel, path: Path, base: Path, method: Method) -> Path:
    save_adapter(
        path, gathered_state(model.trainable(), keep=True), method, ModelDirectory.open(base), model.config, 0
    )
    return path


@every_method
def test_only_prompts_train(extended_models: dict[str, Path], kind: str, method: Method) -> None:
    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts("none", method), torch.bfloat16)
    assert set(map(part_of, model.trainable())) == {"prompts"}
    expected = 1 if isinstance(method, PrefixSettings) else 2 * method.layers
    assert len(model.trainable()) == expected
    assert {parameter.dtype for parameter in model.trainable().values()} == {torch.float32}


@every_method
def test_plain_peft_opens_the_adapter_with_the_same_logits(
    tmp_path: Path, extended_models: dict[str, Path], kind: str, method: Method
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = taught(extended_models[kind], method)
    save(model, tmp_path, extended_models[kind], method)
    base = AutoModelForCausalLM.from_pretrained(str(extended_models[kind]))
    ids = blocks_of(model, [40], 9)["input_ids"]
    with torch.no_grad():
        before = base(ids).logits
        ours = logits(model, ids)
        theirs = PeftModel.from_pretrained(base, str(tmp_path)).eval()(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (ours - before).abs().max() > 0.001


@every_method
def test_what_was_saved_loads_again(
    tmp_path: Path, extended_models: dict[str, Path], kind: str, method: Method
) -> None:
    model = taught(extended_models[kind], method)
    save(model, tmp_path, extended_models[kind], method)
    assert saved_parts(tmp_path) == Parts("none", method)
    fresh = load_trainable(ModelDirectory.open(extended_models[kind]), Parts("none", method), torch.float32)
    load_adapter(fresh.trainable(), tmp_path)
    batch = blocks_of(model, [30, 20], 4)
    assert torch.equal(fresh.eval()(**batch)["loss"], model(**batch)["loss"])


@every_method
@pytest.mark.parametrize("training", [False, True])
def test_documents_of_a_block_see_the_prompt_and_not_each_other(
    extended_models: dict[str, Path], kind: str, method: Method, training: bool
) -> None:
    model = taught(extended_models[kind], method).train(training)
    lengths = [7, 1, 22, 34]
    packed = blocks_of(model, lengths)
    apart = []
    for part in packed["input_ids"].split(lengths, dim=1):
        alone = {"input_ids": part, "position_ids": torch.arange(part.shape[1])[None]}
        labels = torch.where(alone["position_ids"] > 0, part, -100)
        apart.append(model(**alone, labels=labels, num_items_in_batch=1)["loss"])
    torch.testing.assert_close(model(**packed, num_items_in_batch=1)["loss"], torch.stack(apart).sum())


@every_method
def test_rows_of_a_batch_share_the_prompt_alone(
    extended_models: dict[str, Path], kind: str, method: Method
) -> None:
    model = taught(extended_models[kind], method)
    rows = [blocks_of(model, lengths, seed) for seed, lengths in enumerate(([30, 20], [50]))]
    batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    apart = torch.stack([model(**row, num_items_in_batch=1)["loss"] for row in rows])
    torch.testing.assert_close(model(**batch, num_items_in_batch=1)["loss"], apart.sum())


@every_method
def test_checkpointing_activations_changes_no_gradient(
    extended_models: dict[str, Path], kind: str, method: Method
) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor | None]:
        model = taught(extended_models[kind], method).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**blocks_of(model, [25, 15]))["loss"].backward()
        return {name: parameter.grad for name, parameter in model.trainable().items()}

    found = gradients(True)
    assert all(gradient is not None and gradient.any() for gradient in found.values())
    torch.testing.assert_close(found, gradients(False))


@every_method
def test_a_prompt_on_bfloat16_is_close_to_float32(
    tmp_path: Path, extended_models: dict[str, Path], kind: str, method: Method
) -> None:
    whole = taught(extended_models[kind], method)
    save(whole, tmp_path, extended_models[kind], method)
    half = load_trainable(
        ModelDirectory.open(extended_models[kind]), Parts("none", method), torch.bfloat16
    ).eval()
    load_adapter(half.trainable(), tmp_path)
    batch = blocks_of(whole, [30, 20], 4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = half(**batch)["loss"]
    torch.testing.assert_close(loss.float(), whole(**batch)["loss"], atol=0.03, rtol=0)


def test_a_prefix_starts_as_the_text_that_it_is_given(extended_models: dict[str, Path], kind: str) -> None:
    from transformers import AutoModelForCausalLM

    model = load_trainable(
        ModelDirectory.open(extended_models[kind]), Parts("none", PrefixSettings(length=6)), torch.float32
    ).eval()
    ids = blocks_of(model, [40], 3)["input_ids"]
    model.base.prefix.start_from(model.base.get_decoder(), ids[0, :6])
    plain = AutoModelForCausalLM.from_pretrained(str(extended_models[kind]))
    with torch.no_grad():
        torch.testing.assert_close(logits(model, ids[:, 6:]), plain(ids).logits[:, 6:], rtol=1e-4, atol=1e-5)


def test_an_adaption_prompt_starts_without_effect(extended_models: dict[str, Path], kind: str) -> None:
    model = load_trainable(
        ModelDirectory.open(extended_models[kind]), Parts("none", AdaptionSettings()), torch.float32
    )
    plain = load_trainable(ModelDirectory.open(extended_models[kind]), Parts(), torch.float32)
    batch = blocks_of(model, [30, 20])
    torch.testing.assert_close(model(**batch)["loss"], plain(**batch)["loss"])


@every_method
def test_a_prompt_learns(taught_models: dict[str, Path], kind: str, method: Method) -> None:
    torch.manual_seed(0)
    model = load_trainable(ModelDirectory.open(taught_models[kind]), Parts("none", method), torch.float32)
    batch = blocks_of(model, [20, 30])
    optimiser = torch.optim.AdamW(model.trainable().values(), lr=0.05)
    losses = []
    for _ in range(20):
        loss = model(**batch)["loss"]
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrefixSettings(0), "prefix.length 0: it must be at least 1"),
        (lambda: AdaptionSettings(0), "adaption.length 0: it must be at least 1"),
        (lambda: AdaptionSettings(layers=-1), "adaption.layers -1: it must be at least 0"),
    ],
)
def test_prompts_that_would_do_nothing(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "layers", "message"),
    [
        (
            {"model_type": "qwen2"},
            0,
            "body adaption: peft has adaption prompts for llama and mistral models, .* qwen2",
        ),
        ({"head_dim": 16}, 0, "the heads of .* are together 64 wide and its states 32"),
        ({}, 3, "adaption.layers 3: .* has 2 layers"),
    ],
)
def test_models_that_adaption_prompts_do_not_fit(
    tmp_path: Path, model_dirs: dict[str, Path], change: dict[str, Any], layers: int, message: str
) -> None:
    shutil.copytree(model_dirs["sentencepiece"], tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        check_adaption(ModelDirectory.open(tmp_path / "m"), AdaptionSettings(layers=layers))


@pytest.mark.parametrize("body", ["prefix", "adaption"])
def test_embedding_rows_beside_a_prompt(extended_models: dict[str, Path], body: str) -> None:
    method = {"prefix": PrefixSettings(), "adaption": AdaptionSettings()}[body]
    with pytest.raises(UserError, match=f"body {body}: peft saves it without embedding rows"):
        base = ModelDirectory.open(extended_models["bytelevel"])
        check_parts(base, Parts("new", method), allow_frozen=True)
