"""Rows kept from training, and rows to ask about."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from zhllama.config import UserError
from zhllama.conversation import Sample


def hold_out(
    samples: list[Sample], sources: Sequence[tuple[str, int]], rows: int, seed: int
) -> tuple[list[Sample], dict[str, list[Sample]]]:
    """The samples left to train on, and `rows` of each source, drawn by seed.

    A row held out trains nowhere: its copies in any source are left out as well.

    Args:
        sources: file and number of samples of each source, in the order that `samples` has them.

    Raises:
        UserError: fewer than twice as many different rows in a source.
    """
    if not rows:
        return samples, {}
    held: dict[str, list[Sample]] = {}
    taken: set[tuple[int, ...]] = set()
    at = 0
    for file, count in sources:
        different = list({tuple(ids): (ids, learnt) for ids, learnt in samples[at : at + count]}.values())
        at += count
        if len(different) < 2 * rows:
            raise UserError(
                f"progress.held_out {rows}: {file} has {len(different)} different rows, and at most half may be kept "
                "from training"
            )
        name, number = Path(file).stem, 1
        while name in held:
            number += 1
            name = f"{Path(file).stem}-{number}"
        held[name] = random.Random(f"{seed} {name}").sample(different, rows)
        taken |= {tuple(ids) for ids, _ in held[name]}
    return [sample for sample in samples if tuple(sample[0]) not in taken], held


def draw_short(samples: list[Sample], count: int, most: int, seed: int) -> list[Sample]:
    """Different samples by seed, whose first reply has at most `most` tokens; the shortest where few are so short."""
    different = list({tuple(first_prompt(sample)): sample for sample in samples}.values())
    short = [sample for sample in different if _first_reply(sample) <= most]
    if len(short) < count:
        return sorted(different, key=_first_reply)[:count]
    return random.Random(seed).sample(short, count)


def first_prompt(sample: Sample) -> list[int]:
    """The ids before a conversation's first reply."""
    ids, learnt = sample
    return ids[: learnt.index(True)]


def _first_reply(sample: Sample) -> int:
    flags = sample[1][sample[1].index(True) :]
    return flags.index(False) if False in flags else len(flags)
