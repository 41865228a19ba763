"""Processes that work for this one, started by a fork of it or from a clean process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from zhllama.config import UserError
from zhllama.stop import StoppedError
from zhllama.workers import WorkerPool

STARTS = pytest.mark.parametrize("preload", [None, ["zhllama.config"]], ids=["fork", "forkserver"])


def pool(preload: Sequence[str] | None, kill: bool = False) -> WorkerPool:
    return WorkerPool(
        2, time.sleep, (0,), preload=preload, kill=kill, name="a worker", remedy="run the same command again"
    )


def refuse(line: str) -> None:
    raise UserError(line)


def mask(_: float) -> set[int]:
    return set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))


def write(file: Path, after: float) -> None:
    time.sleep(after)
    file.touch()


@STARTS
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_a_killed_worker_is_told_in_one_line(preload: Sequence[str] | None, number: int) -> None:
    with pytest.raises(StoppedError) as stopped, pool(preload) as workers:
        sleeping = workers.submit(time.sleep, 60)
        os.kill(workers.submit(os.getpid).result(), number)
        sleeping.result()
    assert str(stopped.value) == (
        f"a worker was killed (signal {number:d}), most likely for its memory; run the same command again"
    )
    assert not any(process.is_alive() for process in workers.workers)


@STARTS
def test_what_the_work_raises_is_raised_here(preload: Sequence[str] | None) -> None:
    with pytest.raises(UserError, match=r"a\.txt: mend it"), pool(preload) as workers:
        workers.submit(refuse, "a.txt: mend it").result()
    assert not any(process.is_alive() for process in workers.workers)


@STARTS
def test_ctrl_c_does_not_reach_workers(preload: Sequence[str] | None) -> None:
    with pool(preload) as workers:
        assert all(signal.SIGINT in workers.submit(mask, 0.1).result() for _ in range(3))
    assert signal.SIGINT not in mask(0)


@STARTS
def test_work_that_is_begun_ends_or_is_killed(preload: Sequence[str] | None, tmp_path: Path) -> None:
    for kill in (False, True):
        with pytest.raises(KeyboardInterrupt), pool(preload, kill) as workers:
            for number in range(20):
                workers.submit(write, tmp_path / f"{kill}-{number}", 0.5)
            while not (tmp_path / f"{kill}-0").exists():
                time.sleep(0.01)
            raise KeyboardInterrupt
        assert not any(process.is_alive() for process in workers.workers)
    assert 2 <= len(list(tmp_path.glob("False-*"))) <= 8
    assert len(list(tmp_path.glob("True-*"))) <= 2


@STARTS
def test_workers_end_with_a_killed_parent(preload: Sequence[str] | None) -> None:
    program = f"""
import time
from zhllama.workers import WorkerPool
if __name__ == "__main__":
    with WorkerPool(2, time.sleep, (0,), preload={preload}, name="", remedy="") as workers:
        for _ in range(2):
            workers.submit(time.sleep, 60)
        workers.submit(time.sleep, 60)
        print("working", flush=True)
        time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"working\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.kill()
    assert not psutil.wait_procs(children, timeout=20)[1]
