"""Rows kept from training, and rows to ask about."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zhllama.config import UserError
from zhllama.conversation.encode import EncodedConversation

# Samples, of perhaps millions: enough to find short replies among.
LOOKED_AT = 4096


def hold_out(
    samples: Sequence[EncodedConversation], sources: Sequence[tuple[str, int]], rows: int, seed: int
) -> tuple[list[int], dict[str, list[EncodedConversation]]]:
    """The numbers of the samples left to train on, and `rows` samples of each source, drawn by seed.

    A row held out trains nowhere: its copies in any source are left out as well.

    Args:
        sources: file and number of samples of each source, in the order that `samples` has them.

    Raises:
        UserError: fewer than twice as many different rows in a source.
    """
    held: dict[str, list[EncodedConversation]] = {}
    taken: set[tuple[int, ...]] = set()
    at = 0
    for file, count in sources if rows else ():
        name, number = Path(file).stem, 1
        while name in held:
            number += 1
            name = f"{Path(file).stem}-{number}"
        # Drawn by name, not by place: a source that is added leaves the rows of the others as they were.
        different = _different(samples, range(at, at + count), 2 * rows, f"{seed} {name}")
        at += count
        if len(different) < 2 * rows:
            raise UserError(
                f"progress.held_out {rows}: {file} has {len(different)} different rows, and at most half may be kept "
                "from training"
            )
        held[name] = different[:rows]
        # By ids, so that copies go too, whatever file they stand in.
        taken |= {tuple(sample.ids) for sample in held[name]}
    return [row for row, (ids, _) in enumerate(samples) if not taken or tuple(ids) not in taken], held


def draw_short(
    samples: Sequence[EncodedConversation], count: int, most: int, seed: int
) -> list[EncodedConversation]:
    """Different samples by seed, whose first reply has at most `most` tokens; the shortest where few are so short."""
    different = _different(samples, range(len(samples)), LOOKED_AT, f"{seed}")
    short = [sample for sample in different if _first_reply(sample) <= most]
    return (short if len(short) >= count else sorted(different, key=_first_reply))[:count]


def _different(
    samples: Sequence[EncodedConversation], rows: range, most: int, seed: str
) -> list[EncodedConversation]:
    """At most so many samples of these rows, in drawn order, no two the same."""
    found: dict[tuple[int, ...], EncodedConversation] = {}
    for row in random.Random(seed).sample(rows, len(rows)):
        sample = samples[row]
        found.setdefault(tuple(sample.ids), sample)
        if len(found) == most:
            break
    return list(found.values())


def first_prompt(sample: tuple[Any, Any]) -> list[int]:
    """The ids before a conversation's first reply."""
    ids, learnt = sample
    return list(ids[: learnt.index(True)])


def _first_reply(sample: EncodedConversation) -> int:
    flags = sample.learnt[sample.learnt.index(True) :]
    return flags.index(False) if False in flags else len(flags)
