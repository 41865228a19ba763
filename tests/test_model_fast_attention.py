"""Attention in groups gives the numbers of attention over copies, and keeps no copies."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_model_trainable import LORA, blocks_of
from torch import Tensor

from zhllama.model import trainable
from zhllama.model.adapter import Parts
from zhllama.model.directory import ModelDirectory
from zhllama.model.fast import install
from zhllama.model.trainable import TrainableModel, load_trainable

LENGTHS = [20, 30]


@pytest.fixture
def grouped(extended_models: dict[str, Path], kind: str) -> Path:
    return extended_models[kind]


def kept(model: TrainableModel) -> tuple[Tensor, int]:
    """The loss of packed documents, and the bytes of different tensors kept for the backward pass."""
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**blocks_of(model, LENGTHS))["loss"]
    return loss.detach(), sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def test_the_loss_is_the_same_to_the_bit_and_copies_are_gone(
    grouped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, shared = kept(load_trainable(ModelDirectory.open(grouped), Parts("new", LORA), torch.float32))
    monkeypatch.setattr(install, "share_keys", lambda model: None)
    plain = load_trainable(ModelDirectory.open(grouped), Parts("new", LORA), torch.float32)
    theirs, copied = kept(plain)
    assert torch.equal(ours, theirs)
    config = plain.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    assert heads > groups
    width = config.hidden_size // heads
    copies = config.num_hidden_layers * 2 * heads * width * sum(LENGTHS) * 4
    assert copied - shared >= copies * (1 - groups / heads)


def test_answers_are_those_of_transformers(grouped: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.arange(40, 60).view(2, 10)
    seen = torch.ones_like(ids)
    seen[0, :4] = 0  # padded on the left
    ours = load_trainable(ModelDirectory.open(grouped), Parts("new", LORA), torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(grouped, dtype=torch.float32)
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "attention_mask": seen}
    assert torch.equal(ours.base.generate(ids, **settings), plain.generate(ids, **settings))


def test_what_will_run_on_cuda_keeps_transformers_own(grouped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights load on the CPU all the same; kernels there take no groups beside a mask."""
    monkeypatch.setattr(trainable, "default_device", lambda: "cuda")
    model = load_trainable(ModelDirectory.open(grouped), Parts("new", LORA), torch.float32)
    assert model.base.device.type == "cpu"
    assert model.base.config._attn_implementation == "sdpa"
    assert not model.base.get_output_embeddings()._forward_pre_hooks
    on_cpu = load_trainable(ModelDirectory.open(grouped), Parts("new", LORA), torch.float32, "cpu")
    assert on_cpu.base.config._attn_implementation != "sdpa"
