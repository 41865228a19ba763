"""How many rows of each source make a mixture, and which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def rows_per_source(
    available: Sequence[int],
    samples: Sequence[int],
    weights: Sequence[float],
    max_repeats: Sequence[float],
) -> list[int]:
    """Rows of each source: as many as its samples say, its share by weight, or all of it once.

    Of sources with weights the one that lasts longest is read once and the others repeat to keep up; where one would
    repeat more than it may, all of them are that much shorter. No source gives more than its repeats allow.
    """
    total = sum(weights)
    size = 0.0
    if total:
        lasting = [
            (count * total / weight, count * total / weight * most)
            for count, weight, most in zip(available, weights, max_repeats, strict=True)
            if weight
        ]
        # Rows of all together when each has been read once, and when one has repeated all it may.
        size = min(max(once for once, _ in lasting), min(most for _, most in lasting))
    counts = []
    for count, wanted, weight, most in zip(available, samples, weights, max_repeats, strict=True):
        chosen = wanted or (round(size * weight / total) if weight else count)
        # At least one row: no file that was named is left out without a word.
        counts.append(min(max(chosen, 1), int(count * most)) if count else 0)
    return counts


def even_out(of_tasks: dict[str, int], temperature: float) -> dict[str, float]:
    """By how much each task's rows are to be multiplied so that their shares go as rows ** (1 / temperature).

    The number of all rows stays: what tasks with many lose, those with few gain (T5, Raffel et al. 2020).
    """
    powers = {task: count ** (1 / temperature) for task, count in of_tasks.items()}
    scale = sum(of_tasks.values()) / sum(powers.values())
    return {task: powers[task] * scale / count for task, count in of_tasks.items()}


def draw_rows(
    tasks: Sequence[Sequence[str]], counts: Sequence[int], max_repeats: Sequence[float], temperature: float
) -> list[NDArray[Any]]:
    """(rows,) int64 for each source: which of its rows, given in a drawn order by their tasks, one after the other."""
    # np.resize repeats from the beginning: every row once more before any a third time.
    drawn = [np.resize(np.arange(len(of)), count) for of, count in zip(tasks, counts, strict=True)]
    if temperature == 1:
        return drawn
    names = [np.asarray(of, dtype=object) for of in tasks]
    of_tasks: dict[str, int] = {}
    for of, rows in zip(names, drawn, strict=True):
        for task in of[rows].tolist():
            of_tasks[task] = of_tasks.get(task, 0) + 1
    factors = even_out(of_tasks, temperature)
    result = []
    for of, rows, most in zip(names, drawn, max_repeats, strict=True):
        groups = [np.empty(0, dtype=np.int64)]
        # Not a set, whose order of texts changes from run to run.
        for task in dict.fromkeys(of[rows].tolist()):
            group = np.flatnonzero(of == task)
            count = int((of[rows] == task).sum())
            # Again from the first of the task, which is its drawn order.
            groups.append(np.resize(group, min(max(1, round(count * factors[task])), int(len(group) * most))))
        result.append(np.concatenate(groups))
    return result
