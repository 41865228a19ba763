"""The passes of `clean` over a corpus: read, find duplicates, write; a pass that was done is not done again."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from zhllama.corpus.cluster import Chain, RayExecutor
from zhllama.corpus.convert import Forms
from zhllama.corpus.detectors import Detectors
from zhllama.corpus.lines import FindLines, RemoveLines, Repeats, SignLines
from zhllama.corpus.privacy import Privacy
from zhllama.corpus.read import Broken, Layout
from zhllama.corpus.rules import Limits
from zhllama.corpus.settings import Slurm, Where
from zhllama.tables import is_named
from zhllama.terminal import progress_bar

# datatrove's default is 5, and each read is a call to the system.
LINES = 1000  # signatures that datatrove reads ahead of each task


@dataclass(frozen=True)
class Passes:
    """What the passes do, where, and with how many processes."""

    layout: Layout
    broken: Broken
    forms: Forms
    limits: Limits
    detectors: Detectors
    privacy: Privacy
    deduplicate: bool
    near: bool
    repeats: Repeats
    decontaminate: Path | None
    where: Where
    slurm: Slurm
    workers: int
    shard_bytes: int
    most: int | None = None  # documents of a file


def run_passes(plan: Passes, output: Path, files: list[Path], source: Path) -> Chain | None:
    """Write the documents of `output` and, into `output/.work`, what `DocumentTally.total` sums up; or give the jobs."""
    from datatrove.pipeline.dedup.exact_dedup import ExactFindDedups
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets

    from zhllama.corpus import contamination, duplicates, measure, minhash
    from zhllama.corpus import near_duplicates as near
    from zhllama.corpus import pipeline as blocks

    output = output.resolve()  # tasks elsewhere have a working directory of their own
    work = output / ".work"
    folder = str(work)
    tasks = _bundle(files, source, work, plan.shard_bytes)
    chain = Chain(plan.slurm, output, plan.workers) if plan.where == "slurm" else None
    # The same passes either way: run now, or noted as jobs that wait for each other.
    launch = chain.add if chain else partial(_run_now, plan, output)
    show = _silent if chain else _progress

    def run(stage: str, pipeline: list[Any], tasks: int = tasks) -> None:
        launch(stage, pipeline, tasks)

    # Judged before it is compared: a document that is dropped must not stand for its copies.
    first = [
        blocks.ReadBundle(folder, plan.layout, plan.broken, plan.most),
        measure.Measure(folder, "before"),
        blocks.Judge(folder, plan.forms, plan.limits, plan.detectors, plan.privacy),
        blocks.WriteDocuments(str(work / "kept"), "${rank}.jsonl"),
    ]
    if plan.decontaminate:
        contamination.write_index(plan.decontaminate, work)
        # Before the writer, whose lines are what documents are numbered by.
        first.insert(3, blocks.Decontaminate(folder))
    if plan.deduplicate:
        first.append(duplicates.SignSame(folder))
    if plan.near:
        # The last: it signs all of a task at once, and passes nothing on.
        first.append(near.SignNear(folder))
    with show("reading and filtering (KB)", sum(map(_size, files)), work / "progress-read"):
        run("read", first)
    if plan.deduplicate:
        # One task: it merges the sorted signatures of all, in memory that does not grow with them.
        run("same", [ExactFindDedups(str(work / "signatures"), str(work / "duplicates"), duplicates.SAME)], 1)
    if plan.near:
        pairs = str(work / "near-pairs")
        find = MinhashDedupBuckets(
            str(work / "near-signatures"), pairs, config=near.NEAR, lines_to_buffer=LINES
        )
        # datatrove wants a task for each band.
        run("near-pairs", [find], minhash.DOCUMENTS.bands)
        run("near", [near.ChooseBest(folder)], 1)
    kept = sum(map(_size, (work / "kept").glob("*")))
    # Behind the duplicates: copies of one page would make boilerplate of its text.
    if plan.repeats:
        lines = [
            blocks.ReadKept(folder, "lines"),
            duplicates.DropDuplicates(folder, count=False),
            SignLines(folder, plan.repeats),
        ]
        with show("comparing lines (KB)", kept, work / "progress-lines"):
            run("lines", lines)
        run("lines-found", [FindLines(folder, plan.repeats)], 1)
    last = [
        blocks.ReadKept(folder, "write"),
        duplicates.DropDuplicates(folder, count=True),
        # In every run: without a list it lets all pass.
        RemoveLines(folder, plan.repeats, plan.limits.min_characters),
        measure.Measure(folder, "after"),
        blocks.WriteDocuments(str(output), "documents-${rank}.jsonl", plan.shard_bytes),
    ]
    with show("writing (KB)", kept, work / "progress-write"):
        run("write", last)
    return chain


def _run_now(plan: Passes, output: Path, stage: str, pipeline: list[Any], tasks: int) -> None:
    """Run a pass to its end, on this machine or on a Ray cluster."""
    from zhllama.corpus.executor import Executor, logged

    most = plan.workers or (tasks if plan.where == "ray" else len(os.sched_getaffinity(0)))
    executor = RayExecutor if plan.where == "ray" else Executor
    with logged(output / "logs" / f"{stage}.log"):
        executor(pipeline, tasks, min(most, tasks), str(output / "logs" / stage)).run()


def _bundle(files: list[Path], source: Path, work: Path, size: int) -> int:
    """Write the files of each task, neighbours up to `size` bytes together; return the number of tasks."""
    from zhllama.corpus.duplicates import LAST_RANK

    root = source if source.is_dir() else source.parent
    # Two neighbouring bundles hold more than `size` together, so half as many as there are ranks are safe.
    size = max(size, sum(map(_size, files)) // (LAST_RANK // 2))
    bundles: list[list[tuple[str, str]]] = []
    filled = 0
    for file in files:
        if not bundles or filled + _size(file) > size:
            # A file is not split: one larger than a bundle is a task by itself.
            bundles.append([])
            filled = 0
        filled += _size(file)
        path = file if is_named(file) else file.resolve()
        # What documents are called must be UTF-8; names out of a Windows archive may not be.
        name = file.relative_to(root).as_posix().encode(errors="backslashreplace").decode()
        bundles[-1].append((str(path), name))
    (work / "bundles").mkdir(parents=True, exist_ok=True)
    for rank, bundle in enumerate(bundles):
        (work / "bundles" / f"{rank:05d}.json").write_text(json.dumps(bundle), encoding="utf-8")
    return len(bundles)


@contextlib.contextmanager
def _progress(what: str, total: int, folder: Path) -> Iterator[None]:
    """A bar fed from the files in which the tasks note how many bytes they have read."""
    done = threading.Event()
    with progress_bar() as bar:
        task = bar.add_task(what, total=total // 1000, note="")

        def poll() -> None:
            while not done.wait(0.3):
                # A task writes its file anew each time, so it may be empty at this moment.
                read = sum(int(file.read_text() or 0) for file in folder.glob("*"))
                bar.update(task, completed=read // 1000)

        watcher = threading.Thread(target=poll, daemon=True)
        watcher.start()
        try:
            yield
            bar.update(task, completed=total // 1000)
        finally:
            done.set()
            watcher.join()


@contextlib.contextmanager
def _silent(what: str, total: int, folder: Path) -> Iterator[None]:
    """No bar where jobs are only written down."""
    yield


def _size(file: Path) -> int:
    return 0 if is_named(file) else file.stat().st_size
