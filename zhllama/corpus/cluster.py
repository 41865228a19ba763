"""The passes of `clean` on a cluster: Ray, or Slurm. Corpus and output lie on a folder that all machines share.

Ray: a remote function for each task. datatrove's own executor starts a placement group, an actor and a pool for each,
and goes on past errors with a line in its log. Slurm: datatrove's executor, an array job for each pass, which waits
for the pass before.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor

from zhllama.config import UserError
from zhllama.corpus.settings import Slurm
from zhllama.stop import StoppedError


class RayExecutor(LocalPipelineExecutor):  # type: ignore[misc]
    """Runs each task wherever the cluster has a free core; a task that was done is not done again.

    Ray starts the tasks of a machine that it lost again, three times.
    """

    def run(self) -> None:
        """Run all tasks on the cluster that this machine belongs to, or on this machine where it belongs to none."""
        ray = _ray()
        ranks = iter(self.get_incomplete_ranks(range(self.tasks)))
        # Put once into the cluster's store: as an argument it would be pickled again for each task.
        attempt, executor = ray.remote(_attempt), ray.put(self)
        running: list[Any] = []
        try:
            while True:
                # No more than `workers` at a time: Ray itself would start as many as the cluster has cores.
                more = islice(ranks, self.workers - len(running))
                running += [attempt.remote(executor, rank) for rank in more]
                if not running:
                    return
                done, running = ray.wait(running)
                if problem := _told(ray, done[0]):
                    raise problem
        finally:
            for task in running:  # or they would go on writing into what is being removed
                ray.cancel(task, force=True)
            ray.wait(running, num_returns=len(running)) if running else None


def _ray() -> Any:
    import ray

    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or a cluster of its own reports itself
        ray.init(log_to_driver=False)
    return ray


def _told(ray: Any, task: Any) -> Exception | None:
    """What a task gave back.

    Raises:
        StoppedError: the cluster lost it.
    """
    try:
        problem: Exception | None = ray.get(task)
    except ray.exceptions.RayTaskError:  # an error of ours
        raise
    except ray.exceptions.RayError as lost:
        raise StoppedError(
            f"the Ray cluster lost a task four times ({type(lost).__name__}), most likely for its memory; run the same "
            "command with fewer --workers, it goes on where it stopped"
        ) from lost
    return problem


def _attempt(executor: RayExecutor, rank: int) -> Exception | None:
    """Run one task; give back what the user should know."""
    output = Path(executor.logging_dir.path).parents[1]
    # A folder of that name on the machine's own disk would take the output where nobody looks for it.
    if not (output / "run.json").is_file():
        return UserError(
            f"--output {output}: the machine {socket.gethostname()} does not see it; choose a folder that the whole "
            "cluster shares"
        )
    try:
        # Local rank 1: of any but rank 0 datatrove shows only errors.
        executor._run_for_rank(rank, 1)
    # Given back, because Ray wraps what is raised; any other error is ours, and its traceback is wanted.
    except (UserError, OSError) as problem:
        return problem
    return None


class SlurmExecutor(SlurmPipelineExecutor):  # type: ignore[misc]
    """datatrove's executor without its job that adds up what we count ourselves."""

    def launch_merge_stats(self) -> None:
        """Launch nothing."""


@dataclass
class Chain:
    """Array jobs of Slurm, one for each pass; each waits for the one before and is cancelled where that fails."""

    slurm: Slurm
    output: Path
    workers: int
    last: SlurmExecutor | None = None

    def add(self, stage: str, pipeline: list[Any], tasks: int) -> None:
        """Add a pass; nothing is launched yet."""
        self.last = SlurmExecutor(
            pipeline,
            tasks,
            self.slurm.time,
            self.slurm.partition,
            mem_per_cpu_gb=self.slurm.memory,
            # datatrove's word for no limit is -1.
            workers=self.workers or -1,
            job_name=f"zhllama-{stage}",
            # datatrove's default, "normal", is a name that not every cluster has.
            qos="",
            # A job runs datatrove's launch_pickled_pipeline, which lies beside this Python.
            env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',
            # Or jobs behind one that failed wait in the queue for ever.
            sbatch_args={"kill-on-invalid-dep": "yes"},
            depends=self.last,
            logging_dir=str(self.output / "logs" / stage),
        )

    def submit(self, finish: Callable[[], None]) -> list[str]:
        """Launch what is left to do, then a job of `finish`; return the numbers of the jobs.

        Raises:
            UserError: jobs of an earlier command still wait or run, or Slurm refuses one.
        """
        from zhllama.corpus.executor import logged

        noted = self.output / "logs" / "slurm.json"
        _refuse_running(noted)
        self.add("finish", [_Finish(finish)], 1)
        # Listed first: launching cuts a pass's link to the one before (datatrove pickles it with all it
        # holds).
        chain: list[SlurmExecutor] = []
        link = self.last
        while link:
            chain.insert(0, link)
            link = link.depends
        try:
            with logged(self.output / "logs" / "slurm.log"):
                for link in chain:
                    link.launch_job()
        except subprocess.CalledProcessError as problem:
            raise UserError(
                "sbatch refused a job, its own message stands above; look at --slurm.partition, --slurm.time and "
                "--slurm.memory"
            ) from problem
        # -1: all tasks of that pass are done, nothing was launched.
        jobs = [str(link.job_id) for link in chain if link.job_id != -1]
        noted.write_text(json.dumps(jobs), encoding="utf-8")
        return jobs


@dataclass
class _Finish:
    """The last job: what the command itself does after the passes elsewhere."""

    finish: Callable[[], None]

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        self.finish()


def require_slurm(slurm: Slurm) -> None:
    """Raise UserError where jobs cannot be submitted."""
    if not slurm.partition:
        raise UserError("--executor slurm: give --slurm.partition too; sinfo lists them")
    if not shutil.which("sbatch"):
        raise UserError("--executor slurm: there is no sbatch here; run it on a login node of the cluster")


def _refuse_running(noted: Path) -> None:
    if not noted.is_file():
        return
    jobs = ",".join(json.loads(noted.read_text(encoding="utf-8")))
    # squeue fails for jobs that it has forgotten: those are over.
    listed = subprocess.run(["squeue", "--noheader", f"--jobs={jobs}"], capture_output=True, check=False)
    if listed.stdout.strip():
        raise UserError(f"jobs {jobs} of this run still wait or run; wait for them, or scancel them first")
