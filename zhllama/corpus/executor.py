"""Runs datatrove pipelines task by task: quiet on the terminal, resumable, and dead when their parent is."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import multiprocess  # type: ignore[import-untyped]
from datatrove.executor import LocalPipelineExecutor
from multiprocess import forkserver, resource_tracker

from zhllama.config import UserError
from zhllama.stop import StoppedError

# Imported once by the process that workers fork from, not by each worker of each pass.
PRELOAD = ["zhllama.corpus.pipeline", "zhllama.corpus.near_duplicates"]


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
        _run_tasks(self, ranks)


def _run_tasks(executor: Executor, ranks: list[int]) -> None:
    """A process for each task, so many at a time; the first that fails or dies ends all.

    Not a pool: that waits for ever for a worker that the kernel killed for its memory.
    """
    context = multiprocess.get_context("forkserver")
    waiting = iter(ranks)
    running: dict[Connection, Any] = {}
    try:
        while True:
            for rank in islice(waiting, executor.workers - len(running)):
                receiver, sender = context.Pipe(duplex=False)
                log = f"{executor.logging_dir.path}/logs/task_{rank:05d}.log"
                process = context.Process(
                    target=_run_task, name=log, args=(executor, rank, sender), daemon=True
                )
                process.start()
                sender.close()
                running[receiver] = process
            if not running:
                return
            for receiver in connection.wait(list(running)):
                _finish(running.pop(receiver), receiver)  # type: ignore[call-overload, arg-type]
    finally:
        for process in running.values():
            process.kill()
            process.join()


def _finish(process: Any, receiver: Connection) -> None:
    """Raise what a task raised.

    Raises:
        StoppedError: the process was killed.
        RuntimeError: it died of an error of ours.
    """
    try:
        problem = receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode > 0:
            raise RuntimeError(f"a task failed; its log says why: {process.name}") from None
        raise StoppedError(
            f"a worker process was killed (signal {-process.exitcode}), most likely for its memory; run the same "
            "command with fewer --workers, it goes on where it stopped"
        ) from None
    process.join()
    receiver.close()
    if problem:
        raise problem


def _run_task(executor: Executor, rank: int, sender: Connection) -> None:
    """Run one task in a process of its own; send None, or what the user should know."""
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (for the life of the process)
    threading.Thread(target=_follow, args=(multiprocess.parent_process().sentinel,), daemon=True).start()
    try:
        executor._run_for_rank(rank, 1)
        sender.send(None)
    except (UserError, OSError) as problem:
        sender.send(problem)


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
