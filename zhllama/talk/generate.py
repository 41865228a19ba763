"""Replies of a model to prompts: side by side with left padding, each until an end token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch


@dataclass(frozen=True)
class Reply:
    """The ids of a reply, without the end token, and whether the model ended it itself."""

    ids: list[int]
    ended: bool


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every id that ends a reply: the tokenizer's EOS first, then those of `generation_config`."""
    named = model.generation_config.eos_token_id
    more = named if isinstance(named, list) else [named]
    # Llama-3's chat models end a turn with one token and a text with another.
    found = [tokenizer.eos_token_id, *more]
    return list(dict.fromkeys(end for end in found if end is not None))


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: list[int],
    limit: int,
    streamer: Any = None,
    **sampling: Any,
) -> list[Reply]:
    """Replies of at most `limit` tokens to prompts of ids, the likeliest tokens unless `sampling` says otherwise.

    Args:
        model: a causal language model of transformers; its device and dtype are used.
        sampling: `temperature` (0 takes the likeliest), `top_p`, `repetition_penalty`.
    """
    longest = max(map(len, prompts))
    # A row is padded with its own first token, which nothing attends to: pad may be EOS, and a penalty on
    # repeated tokens would then fall on ending the reply.
    rows = [[prompt[0]] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    seen = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    heat = sampling.pop("temperature", 0.0)
    if heat > 0:
        sampling |= {"temperature": heat}
    else:
        # None overrules generation_config.json, whose values would be warned about where nothing is sampled.
        sampling |= {"temperature": None, "top_p": None, "top_k": None}
    with torch.no_grad():
        output = model.generate(
            input_ids=torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(seen, device=model.device),
            max_new_tokens=limit,
            do_sample=heat > 0,
            eos_token_id=ends or None,
            # What follows a row's end is cut off below, so pad may be an end itself.
            pad_token_id=ends[0] if ends else 0,
            # Switched off in the config of a model that trains.
            use_cache=True,
            streamer=streamer,
            **sampling,
        )
    # Left padding: all replies begin in the same column.
    return [_until_end(row, ends) for row in output[:, longest:].tolist()]


def batches(prompts: Sequence[Sequence[int]], size: int, limit: int, positions: int) -> Iterator[list[int]]:
    """Places of prompts to answer side by side, at most `size`, of like length, longest first.

    Only prompts that leave room for equally long replies go together: a long one cuts no other's reply short.
    """
    # Longest first: a batch that does not fit into memory fails at once, not after hours.
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    for _, alike in groupby(order, key=lambda place: room(prompts[place], limit, positions)):
        places = list(alike)
        yield from (places[at : at + size] for at in range(0, len(places), size))


def room(prompt: Sequence[int], limit: int, positions: int) -> int:
    """How many tokens a reply may have: `limit`, or what the prompt leaves of the model's positions."""
    return min(limit, positions - len(prompt))


def _until_end(row: list[int], ends: list[int]) -> Reply:
    stop = next((at for at, token in enumerate(row) if token in ends), None)
    return Reply(row[:stop], stop is not None)
