"""Curves of tokenizer-report: what added pieces gain, what a vocabulary covers, and where each curve turns."""

from __future__ import annotations

import json
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from zhllama.corpus.han import HAN
from zhllama.tokenizer.bytelevel import tokenizer_of
from zhllama.tokenizer.load import Loaded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Each point of a growth curve encodes all of them again.
CURVE_CHARACTERS = 300_000
Curve = tuple[list[float], list[float]]


def draw_curves(loaded: dict[str, Loaded], lines: list[str]) -> dict[str, dict[str, Curve]]:
    """Curves by name of tokenizer: density over the pieces added to the first, share over the pieces used."""
    chinese: list[str] = []
    left = CURVE_CHARACTERS
    for line in filter(HAN.search, lines):
        chinese.append(line)
        left -= len(line)
        if left <= 0:
            break
    if not chinese:
        return {}
    first, *others = loaded
    base = loaded[first].fast.get_vocab_size()
    # Only there do ids behind the base's mean added pieces, the best ranked first.
    extended = [name for name in others if _extends(loaded[name].fast, loaded[first].fast)]
    return {
        "growth": {name: growth(loaded[name].fast, base, chinese) for name in extended},
        "coverage": {name: coverage(tokenizer.fast, chinese) for name, tokenizer in loaded.items()},
    }


def _extends(fast: Tokenizer, base: Tokenizer) -> bool:
    """Whether a tokenizer is a BPE with more ids than the base, and the base's to begin with."""
    size = base.get_vocab_size()
    same = all(base.id_to_token(index) == fast.id_to_token(index) for index in range(size))
    return same and fast.get_vocab_size() > size and type(fast.model).__name__ == "BPE"


def coverage(fast: Tokenizer, lines: list[str], points: int = 200) -> tuple[list[float], list[float]]:
    """How many of the most frequent tokens make which share of a text."""
    counts: Counter[int] = Counter()
    for encoding in fast.encode_batch_fast(lines, add_special_tokens=False):
        counts.update(encoding.ids)
    total = max(counts.total(), 1)
    # Counts are sorted, so the curve is concave and has one knee.
    reached = list(accumulate(count for _, count in counts.most_common()))
    step = max(len(reached) // points, 1)
    # The last one too, where the curve is 1.
    places = sorted({*range(0, len(reached), step), len(reached) - 1})
    return [place + 1.0 for place in places if reached], [
        reached[place] / total for place in places if reached
    ]


def growth(fast: Tokenizer, first: int, lines: list[str], points: int = 8) -> tuple[list[float], list[float]]:
    """Characters per token of the same vocabulary with fewer of the pieces behind the `first`."""
    state = json.loads(fast.to_str())
    added = {token["id"] for token in state["added_tokens"]}
    vocabulary: dict[str, int] = state["model"]["vocab"]
    new = sorted(index for index in vocabulary.values() if index >= first and index not in added)
    # Marks behind the base's ids, and a template that may name them, have no place in a smaller vocabulary.
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < first]
    state["post_processor"] = None
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in state["model"]["merges"]]
    sizes = sorted({len(new) * point // points for point in range(points + 1)})
    densities = []
    for size in sizes:
        # Ids go by rank, and a piece is made of earlier ones: the first so many are a vocabulary by
        # themselves.
        kept = set(new[:size])
        pieces = {piece: index for piece, index in vocabulary.items() if index < first or index in kept}
        pairs = [
            pair for pair in merges if pair[0] in pieces and pair[1] in pieces and "".join(pair) in pieces
        ]
        smaller = {**state, "model": {**state["model"], "vocab": pieces, "merges": pairs}}
        encodings = tokenizer_of(smaller).encode_batch_fast(lines, add_special_tokens=False)
        tokens = sum(len(encoding.ids) for encoding in encodings)
        densities.append(sum(map(len, lines)) / max(tokens, 1))
    return [float(size) for size in sizes], densities


def knee(x: list[float], y: list[float]) -> tuple[float, float] | None:
    """Where a rising curve turns: the point farthest above the line between its ends (Kneedle, Satopää 2011)."""
    if len(x) < 3 or x[-1] == x[0] or y[-1] == y[0]:
        return None
    # Both axes from 0 to 1: the point must not depend on their units.
    heights = [
        (above - y[0]) / (y[-1] - y[0]) - (along - x[0]) / (x[-1] - x[0])
        for along, above in zip(x, y, strict=True)
    ]
    place = max(range(len(x)), key=heights.__getitem__)
    return x[place], y[place]


def with_knees(figure: Figure | None, curves: dict[str, Curve]) -> Figure | None:
    """The figure, where there is one, with a ring and a number at the knee of each curve."""
    if figure is None:
        return None
    axes = figure.axes[0]
    for curve in curves.values():
        if found := knee(*curve):
            axes.plot(*found, "o", markersize=9, markerfacecolor="none", color="#222222")
            axes.annotate(f"{found[0]:,.0f}", found, textcoords="offset points", xytext=(8, -12), fontsize=9)
    return figure
