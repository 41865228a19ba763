"""Freed memory goes back to the machine while a model trains on CPU.

glibc's heap keeps what is freed, and its holes seldom fit the next aligned tensor: measured on 12 layers x 576, a run
held 300 MB more than was alive at its peak, in the loss. glibc's own settings are read before Python begins, and give no
more: MALLOC_TRIM_THRESHOLD_ costs an eighth to a quarter of the speed, MALLOC_MMAP_THRESHOLD_ helps in bfloat16 alone
(benchmarks/results/switches.md).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from typing import Any

# Between two trims. Those between layers spared 40 MB of 1,390 more and cost a tenth of the speed, as every
# page comes back empty: they are for activation checkpointing, which asks for memory first.
LAYERS = 3


def trim_before(modules: Iterable[Any]) -> None:
    """Hook a trim before the forward pass of modules; none where the C library has no `malloc_trim` (only glibc has)."""
    trim = _malloc_trim()
    if trim is None:
        return

    def before(*_: object) -> None:
        trim(0)

    for module in modules:
        module.register_forward_pre_hook(before)


def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    # None is the running process, with the C library that it was linked to.
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
