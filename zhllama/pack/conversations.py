"""Conversations, never cut, to blocks in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zhllama.pack.blocks import Blocks
from zhllama.pack.fit import best_fit


def pack_conversations(samples: Sequence[tuple[Any, Any]], size: int, padding: int) -> Blocks:
    """Best-fit packing of whole samples (ids, which of them are learnt) into blocks; none is cut or truncated.

    What is left of a block's end is padding without loss.
    """
    lengths = np.asarray([len(ids) for ids, _ in samples], dtype=np.int32)
    places = best_fit(lengths, size)
    order = np.argsort(places, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(places))])
    # uint32 holds the ids of any vocabulary; unlike a corpus, conversations are in memory anyway.
    ids = np.full((len(offsets) - 1, size), padding, dtype=np.uint32)
    loss = np.zeros(ids.shape, dtype=bool)
    for block, members in enumerate(np.split(order, offsets[1:-1])):
        at = 0
        for index in members.tolist():
            tokens, learnt = samples[index]
            ids[block, at : at + len(tokens)] = tokens
            loss[block, at : at + len(tokens)] = learnt
            at += len(tokens)
    return Blocks(ids, lengths[order], offsets, loss)
