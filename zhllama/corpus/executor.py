"""Runs datatrove pipelines task by task: quiet on the terminal, resumable, and dead when their parent is."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from multiprocessing import connection
from pathlib import Path

import multiprocess  # type: ignore[import-untyped]
from datatrove.executor import LocalPipelineExecutor
from multiprocess import forkserver, resource_tracker

# Imported once by the process that workers fork from, not by each worker of each pass.
PRELOAD = ["zhllama.corpus.stages", "zhllama.corpus.near"]


class Executor(LocalPipelineExecutor):  # type: ignore[misc]
    """datatrove's local executor without its manager process, which would outlive a killed run.

    Silent: its workers log to files only and leave Ctrl-C to their parent. A task that was done is not done again.
    """

    def run(self) -> None:
        """Run all tasks; workers are born with Ctrl-C blocked, so that none of them prints a traceback."""
        ranks = self.get_incomplete_ranks(range(self.tasks))
        if self.workers == 1 or not ranks:
            for rank in ranks:
                deepcopy(self)._run_for_rank(rank)  # blocks keep state; each task starts with its own
            return
        resource_tracker.ensure_running()  # unblocks the signal, so it comes first
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.set_forkserver_preload(PRELOAD)
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with multiprocess.get_context("forkserver").Pool(min(self.workers, len(ranks))) as pool:
            for _ in pool.imap_unordered(partial(_run_task, self), ranks):
                pass


def _run_task(executor: Executor, rank: int) -> None:
    """Run one task in a worker."""
    if sys.stderr.name != os.devnull:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (for the life of the worker)
        threading.Thread(target=_follow, args=(multiprocess.parent_process().sentinel,), daemon=True).start()
    executor._run_for_rank(rank, 1)


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send what datatrove and tqdm say on standard error to a file; the terminal is for people.

    To be entered after a progress bar, which redirects standard error to the terminal above the bar.
    """
    from datatrove.utils.logging import logger, setup_default_logger

    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        setup_default_logger()
        try:
            yield
        finally:
            logger.remove()


def _follow(sentinel: int) -> None:
    """End this worker when its parent is gone, or a killed run would go on writing into the next one."""
    connection.wait([sentinel])
    os._exit(1)
