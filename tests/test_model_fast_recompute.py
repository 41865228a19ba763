"""Lean layers give the numbers of the plain ones, and keep less."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_model_trainable import LORA, blocks_of
from torch import Tensor

from zhllama.model.adapter import LoraSettings, Parts
from zhllama.model.directory import ModelDirectory
from zhllama.model.fast import install
from zhllama.model.trainable import TrainableModel, load_trainable

Load = Callable[..., TrainableModel]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Load:
    """`load_trainable` without lean layers."""

    def load(*arguments: Any, **named: Any) -> TrainableModel:
        with monkeypatch.context() as patch:
            patch.setattr(install, "recompute_activations", lambda model, kind: None)
            return load_trainable(*arguments, **named)

    return load


def stirred(model: TrainableModel) -> TrainableModel:
    """The model with B moved from zero, so that every gradient is there."""
    generator = torch.Generator().manual_seed(3)
    for key, parameter in model.trainable().items():
        if "lora_" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def gradients(model: TrainableModel, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**blocks_of(model, [20, 30]))["loss"]
    loss.backward()
    grads = {
        key: parameter.grad for key, parameter in model.trainable().items() if parameter.grad is not None
    }
    assert len(grads) == len(model.trainable())
    return loss.detach(), grads


@pytest.mark.parametrize("embeddings", ["new", "all", "none"])
@pytest.mark.parametrize("full", [False, True])
def test_loss_and_gradients_are_the_plain_ones(
    extended_models: dict[str, Path], kind: str, plain: Load, embeddings: Any, full: bool
) -> None:
    parts = Parts(embeddings, None if full else LORA, full=full)
    choice = (ModelDirectory.open(extended_models[kind]), parts, torch.float32)
    ours, theirs = (gradients(stirred(load(*choice))) for load in (load_trainable, plain))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=0)
    for key, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][key], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_bfloat16_is_as_close_to_float32_as_the_plain_one(
    extended_models: dict[str, Path], kind: str, plain: Load, full: bool
) -> None:
    parts = Parts("new", None if full else LORA, full=full)

    def found(load: Load, dtype: torch.dtype) -> dict[str, Tensor]:
        model = stirred(load(ModelDirectory.open(extended_models[kind]), parts, dtype))
        return gradients(model, dtype == torch.bfloat16)[1]

    exact = found(load_trainable, torch.float32)
    errors = []
    for load in (load_trainable, plain):
        half = found(load, torch.bfloat16)
        assert {gradient.dtype for gradient in half.values()} == {torch.float32}
        differences = [(half[key] - exact[key]).norm() / exact[key].norm() for key in exact]
        errors.append(float(torch.stack(differences).mean()))
    assert errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize(
    ("lora", "lean"),
    [(LORA, True), (LoraSettings(rank=4, dropout=0.1), False), (LoraSettings(rank=4, dora=True), False)],
)
def test_what_has_more_to_it_is_left_to_peft(
    extended_models: dict[str, Path], kind: str, lora: LoraSettings, lean: bool
) -> None:
    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts("new", lora), torch.float32)
    layer = model.base.get_decoder().layers[0].self_attn.q_proj
    assert ("forward" in vars(layer)) == lean


def test_less_is_kept(extended_models: dict[str, Path], kind: str, plain: Load) -> None:
    def kept(load: Load) -> int:
        model = load(ModelDirectory.open(extended_models[kind]), Parts("new", LORA), torch.float32)
        sizes: dict[int, int] = {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            batch = blocks_of(model, [200])
            del batch["labels"]
            model.base.get_decoder()(**batch, use_cache=False).last_hidden_state.sum().backward()
        return sum(sizes.values())

    assert kept(load_trainable) < 0.9 * kept(plain)
