"""Blocks: positions, labels, and who sees whom."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from zhllama.model.directory import ModelDirectory
from zhllama.model.weights import load_model
from zhllama.pack.blocks import Blocks


def blocks_of(ids: list[list[int]], lengths: list[list[int]], across: bool = False) -> Blocks:
    offsets = np.concatenate([[0], np.cumsum([len(some) for some in lengths])])
    flat = np.asarray([length for some in lengths for length in some], dtype=np.int32)
    return Blocks(np.asarray(ids, dtype=np.uint16), flat, offsets, attend_across_documents=across)


def token_losses(model: torch.nn.Module, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(length - 1,) nats of each token but the first, as training runs the model: no mask, no cache."""
    logits = model(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0]
    return F.cross_entropy(logits[:-1].float(), ids[1:], reduction="none")


def test_positions_restart_with_documents_and_blocks() -> None:
    blocks = blocks_of([[5, 1, 6, 1, 7], [1, 5, 1, 0, 0]], [[2, 2, 1], [1, 2]])
    assert blocks[0]["input_ids"].tolist() == [5, 1, 6, 1, 7]
    assert blocks[0]["position_ids"].tolist() == [0, 1, 0, 1, 0]
    assert blocks[0]["labels"].tolist() == [-100, 1, -100, 1, -100]
    assert blocks[1]["position_ids"].tolist() == [0, 0, 1, 0, 1]
    assert blocks[1]["labels"].tolist() == [-100, -100, 1, -100, -100]


def test_across_documents_positions_run_on_and_first_tokens_are_learnt() -> None:
    blocks = blocks_of([[5, 1, 6, 1, 7], [1, 5, 1, 0, 0]], [[2, 2, 1], [1, 2]], across=True)
    assert blocks[0]["position_ids"].tolist() == blocks[1]["position_ids"].tolist() == [0, 1, 2, 3, 4]
    assert blocks[0]["labels"].tolist() == [-100, 1, 6, 1, 7]
    assert blocks[1]["labels"].tolist() == [-100, 5, 1, -100, -100]


def test_a_block_as_tensors(token_dirs: dict[str, Path], kind: str) -> None:
    block = Blocks.open(token_dirs[kind])[3]
    assert list(block) == ["input_ids", "position_ids", "labels"]
    assert {(tensor.shape, tensor.dtype) for tensor in block.values()} == {((64,), torch.int64)}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_losses_are_those_of_documents_alone_or_of_the_whole_block(
    token_dirs: dict[str, Path], extended_models: dict[str, Path], kind: str, attention: str
) -> None:
    model = load_model(ModelDirectory.open(extended_models[kind]), torch.float32).eval()
    model.set_attn_implementation(attention)
    for parameter in model.parameters():
        parameter.data *= 3  # attention of fresh weights hardly matters
    apart, across = Blocks.open(token_dirs[kind]), Blocks.open(token_dirs[kind], True)
    several = np.flatnonzero(np.diff(apart.offsets) > 1)[:8].tolist()
    assert len(several) == 8
    differences = []
    for index in several:
        lengths = apart.lengths[apart.offsets[index] : apart.offsets[index + 1]].tolist()
        lengths.append(64 - sum(lengths))
        with torch.no_grad():
            isolated, crossed = (
                token_losses(model, block["input_ids"], block["position_ids"])
                for block in (apart[index], across[index])
            )
            alone = [
                token_losses(model, ids, torch.arange(len(ids)))
                for ids in apart[index]["input_ids"].split(lengths)
                if len(ids)
            ]
            plain = token_losses(model, apart[index]["input_ids"], torch.arange(64))
        learnt = apart[index]["labels"][1:] != -100
        whole = torch.cat([F.pad(part, (1, 0)) for part in alone])[1:]
        torch.testing.assert_close(isolated[learnt], whole[learnt], atol=1e-5, rtol=0)
        torch.testing.assert_close(crossed, plain, atol=1e-5, rtol=0)
        later = slice(lengths[0], None)
        differences.append(float((isolated[later] - crossed[later])[learnt[later]].abs().max()))
    assert min(differences) > 1e-3
