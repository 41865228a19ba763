"""Replies side by side: padding changes nothing, batches leave no reply less room than it has alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from zhllama.model.adapter import LoraSettings, Parts
from zhllama.model.directory import ModelDirectory
from zhllama.model.trainable import load_trainable
from zhllama.talk.generate import batches, generate

PROMPTS = [[5, 9, 200, 31, 7], [12], [40, 41, 42]]


@pytest.fixture
def plain(model_dirs: dict[str, Path], kind: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_dirs[kind], dtype=torch.float32).eval()


def one_by_one(model: Any, prompt: list[int], steps: int) -> list[int]:
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_padding_changes_no_reply(plain: Any) -> None:
    replies = generate(plain, PROMPTS, [], 6)
    assert [reply.ids for reply in replies] == [one_by_one(plain, prompt, 6) for prompt in PROMPTS]
    assert not any(reply.ended for reply in replies)


def test_each_reply_stops_at_its_own_end(plain: Any) -> None:
    whole = [one_by_one(plain, prompt, 6) for prompt in PROMPTS]
    ends = [whole[0][2], whole[1][4]]
    for reply, ids in zip(generate(plain, PROMPTS, ends, 6), whole, strict=True):
        stops = [at for at, token in enumerate(ids) if token in ends]
        assert reply.ended == bool(stops)
        assert reply.ids == ids[: stops[0] if stops else None]


def test_a_penalty_on_repeats_does_not_know_the_padding(plain: Any) -> None:
    held = {"repetition_penalty": 5.0}
    alone = [generate(plain, [prompt], [0], 6, **held)[0] for prompt in PROMPTS]
    assert generate(plain, PROMPTS, [0], 6, **held) == alone


@pytest.mark.parametrize("embeddings", ["none", "new", "all"])
def test_a_model_in_training_replies_as_the_plain_one(
    extended_models: dict[str, Path], kind: str, embeddings: Any
) -> None:
    directory = extended_models[kind]
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    training = load_trainable(
        ModelDirectory.open(directory), Parts(embeddings, LoraSettings(rank=4, alpha=8)), torch.float32
    ).eval()
    assert generate(training.base, PROMPTS, [], 6) == generate(plain, PROMPTS, [], 6)


def test_prompts_of_like_room_go_together() -> None:
    prompts = [[0] * length for length in (5, 98, 7, 3, 97, 9)]
    assert list(batches(prompts, 3, 10, 100)) == [[1], [4], [5, 2, 0], [3]]
