"""Worker processes: Ctrl-C is their parent's, they end with it, and one that the system kills ends the work in a line."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, TypeVar

from zhllama.stop import StoppedError

Result = TypeVar("Result")


class WorkerPool:
    """`concurrent.futures.ProcessPoolExecutor`, whose processes nobody else has to look after.

    Left by an exception, it takes back what no worker has begun; what is begun ends first, or is killed (`kill`).

    Args:
        count: how many processes.
        initializer: what each does first, with `initargs`; the work that is submitted finds there what it needs.
        preload: modules that a clean process imports once, for workers to fork from. Threads of this process, which
            a fork could catch with a lock held, then do no harm. None: fork from here, with `initargs` in memory.
        kill: for work of minutes whose results are small. A worker killed while it writes more than a pipe holds
            would leave the pool waiting for the rest of it.
        name: of a worker, in the message that one was killed.
        remedy: what to do then.

    Raises:
        StoppedError: the system killed a worker.
    """

    def __init__(
        self,
        count: int,
        initializer: Callable[..., None],
        initargs: tuple[Any, ...],
        *,
        preload: Sequence[str] | None = None,
        kill: bool = False,
        name: str,
        remedy: str,
    ) -> None:
        self.name, self.remedy, self.kill = name, remedy, kill
        if preload is not None:
            _start_forkserver(preload)
        # fork gives workers what is in memory for nothing, a server for forks is clean of threads.
        context = multiprocessing.get_context("fork" if preload is None else "forkserver")
        # Not the pool's: nobody's children but its own are to be killed.
        self.others = multiprocessing.active_children()
        self.workers: list[BaseProcess] = []
        # multiprocessing.Pool would wait for ever for the result of a worker that was killed.
        self.pool = ProcessPoolExecutor(count, context, _initialize, (initializer, initargs))

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Have a worker call a function; workers are born here, with Ctrl-C blocked, so none prints a traceback."""
        with _interrupts_blocked():
            future = self.pool.submit(function, *arguments)
        # The pool names its processes nowhere in public; those that were born since are its own.
        known = {*self.others, *self.workers}
        self.workers += [process for process in multiprocessing.active_children() if process not in known]
        return future

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        broken = isinstance(problem, BrokenProcessPool)
        if kind and self.kill and not broken:  # the workers of a broken pool are ended by it
            # SIGKILL cannot be held up by a library that has its own handler.
            for process in self.workers:
                process.kill()
        # It waits, so no process outlives the block.
        self.pool.shutdown(cancel_futures=True)
        if broken and (signals := self._signals()):
            raise StoppedError(
                f"{self.name} was killed (signal {signals[0]}), most likely for its memory; {self.remedy}"
            ) from problem

    def _signals(self) -> list[int]:
        """What killed workers, the pool's own SIGTERM for the rest of them last."""
        # Negative: the number of the signal. None, while it runs, is not looked at.
        codes = [process.exitcode or 0 for process in self.workers]
        return sorted((-code for code in codes if code < 0), key=lambda number: number == signal.SIGTERM)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes that begin meanwhile, and theirs, never see Ctrl-C; this one sees it behind."""
    # Whatever starts meanwhile inherits a mask; a handler of its own would come too late.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_forkserver(preload: Sequence[str]) -> None:
    resource_tracker.ensure_running()  # unblocks the signal, so it comes first
    with _interrupts_blocked():
        forkserver.set_forkserver_preload(list(preload))
        forkserver.ensure_running()


def _initialize(initializer: Callable[..., None], initargs: tuple[Any, ...]) -> None:
    # A thread, since the main one waits for work and cannot look.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    initializer(*initargs)


def _end_with_parent() -> None:
    """The pool's pipes alone would keep a worker waiting, or writing into what the next run writes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Readable once the parent is gone, however it went.
    connection.wait([parent.sentinel])
    # Not sys.exit, which ends only this thread.
    os._exit(1)
