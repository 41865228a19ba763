"""Runs a command and watches what it and its children hold in memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil


class Watched(NamedTuple):
    """Seconds by the clock, peak in megabytes, seconds of processor time."""

    seconds: float
    megabytes: float
    processor: float


def watched(command: list[str], size: Callable[[Any], int]) -> Watched:
    """What a command takes: the peak is of `size` of each process's memory_info, summed; looks 20 times a second.

    `command` goes to this Python; a failure ends the benchmark with the last of what the command said.
    """
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    processor: dict[int, float] = {}
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        root = psutil.Process(process.pid)
        while not done.wait(0.05):
            try:
                family = (root, *root.children(recursive=True))
                sizes = [size(p.memory_info()) for p in family]
                processor.update({p.pid: sum(p.cpu_times()[:2]) for p in family})
            except psutil.NoSuchProcess:
                continue
            peak = max(peak, sum(sizes))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, problem = process.communicate()
    seconds = time.perf_counter() - begun
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: {problem.decode()[-500:]}")
    return Watched(seconds, peak / 1e6, sum(processor.values()))
