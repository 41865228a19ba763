"""Runs datatrove pipelines task by task: quiet on the terminal, and resumable."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor

from zhllama.config import UserError
from zhllama.workers import WorkerPool

# Imported once by the process that workers fork from, not by each worker of each pass.
PRELOAD = ["zhllama.corpus.pipeline", "zhllama.corpus.near_duplicates"]


class Executor(LocalPipelineExecutor):  # type: ignore[misc]
    """datatrove's local executor without its manager process, which would outlive a killed run.

    Silent: its workers log to files only. A task that was done is not done again.
    """

    def run(self) -> None:
        """Run all tasks; the first that fails ends all.

        Raises:
            UserError, OSError: as a task raised it.
            StoppedError: a worker was killed.
            RuntimeError: a task died of an error of ours.
        """
        # datatrove marks a task as done with an empty file, written last.
        ranks = self.get_incomplete_ranks(range(self.tasks))
        if self.workers == 1 or not ranks:
            for rank in ranks:
                deepcopy(self)._run_for_rank(rank)  # blocks keep state; each task starts with its own
            return
        pool = WorkerPool(
            min(self.workers, len(ranks)),
            _initialize_worker,
            (self,),
            preload=PRELOAD,
            # A task leaves files, and one that is begun again writes them anew: nothing is lost by a kill.
            kill=True,
            name="a worker process",
            remedy="run the same command with fewer --workers, it goes on where it stopped",
        )
        with pool:
            tasks = {pool.submit(_run_task, rank): rank for rank in ranks}
            for task in as_completed(tasks):
                problem = task.exception()
                if isinstance(problem, UserError | OSError | BrokenProcessPool):
                    raise problem
                if problem:
                    log = f"{self.logging_dir.path}/logs/task_{tasks[task]:05d}.log"
                    raise RuntimeError(f"a task failed; its log says why: {log}") from problem


_executor: Executor  # what a worker process runs tasks of


def _initialize_worker(executor: Executor) -> None:
    global _executor
    _executor = executor
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (for the life of the process)


def _run_task(rank: int) -> None:
    # Local rank 1: of any but rank 0 datatrove shows only errors on standard error.
    deepcopy(_executor)._run_for_rank(rank, 1)


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
