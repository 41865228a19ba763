"""Runs a command and watches what it and its children hold in memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil


def watched(command: list[str], size: Callable[[Any], int]) -> tuple[float, float]:
    """Seconds, and the peak in megabytes of `size` of each process's memory_info, summed; looks 20 times a second.

    `command` goes to this Python; a failure ends the benchmark with the last of what the command said.
    """
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        root = psutil.Process(process.pid)
        while not done.wait(0.05):
            try:
                sizes = [size(p.memory_info()) for p in (root, *root.children(recursive=True))]
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
    return seconds, peak / 1e6
