"""Trims of the heap before the loss."""

import ctypes
from pathlib import Path

import pytest
import torch
from test_model_trainable import LORA, blocks_of

from zhllama.model import trainable
from zhllama.model.adapter import Parts
from zhllama.model.directory import ModelDirectory
from zhllama.model.fast import heap
from zhllama.model.trainable import load_trainable


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_pass_trims_before_its_loss_and_with_checkpointing_between_layers(
    extended_models: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    trims: list[int] = []
    monkeypatch.setattr(heap, "_malloc_trim", lambda: trims.append)
    monkeypatch.setattr(trainable, "LAYERS", 1)
    model = load_trainable(
        ModelDirectory.open(extended_models[kind]), Parts("new", LORA), torch.float32
    ).train()
    layers = 0
    if checkpointing:
        model.activation_checkpointing_enable()
        layers = len(model.base.get_decoder().layers)
    with torch.no_grad():
        model(**blocks_of(model, [20]))
    assert len(trims) == 1 + layers
    model(**blocks_of(model, [20]))["loss"].backward()
    assert len(trims) == 2 * (1 + layers) + layers


def test_a_trim_gives_memory_back() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    trim = heap._malloc_trim()
    if trim is None:
        pytest.skip("no malloc_trim in this C library")
    trim(0)
    blocks = [ctypes.create_string_buffer(64_000) for _ in range(2000)]
    kept = blocks[-1]  # above the holes, so that the heap cannot shrink from its end
    del blocks
    before = resident()
    trim(0)
    assert before - resident() > 50e6
    assert len(kept) == 64_000


def test_no_trims_where_there_is_no_such_function(
    extended_models: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts("new", LORA), torch.float32)
    assert not model.base.get_output_embeddings()._forward_pre_hooks
