"""`zhllama clean` killed with kill -9 at random moments, and on disks too small: the same bytes as undisturbed?

python benchmarks/restart.py      prints the table and writes benchmarks/results/restart.md

Every pass is on. Half of the kills hit the command, half one of its workers; a run that was killed is started again
at once, and killed again, until one gets through. What it wrote is compared with what undisturbed runs with 1, 2 and 4
workers wrote: every file but the logs, and of run.json the result. Disks of several sizes (tmpfs, for which one has to
be root) are filled, enlarged, and the command is run again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from table import machine, write_table

KILLS = 20
DISKS = ("16k", "300k", "1500k", "2500k", "3500k", "4500k")
FILES, ARTICLES = 12, 60  # of each file
COMPANY = "本报讯 版权所有，未经书面授权不得转载。"


def write_corpus(folder: Path) -> list[str]:
    """People's Daily with copies, quotations, template lines and phone numbers; gives the flags to clean it."""
    from zhllama.demo.material import news

    source, articles = random.Random(6), [text for text in news() if len(text) > 100]
    (folder / "in").mkdir()
    for number in range(FILES):
        texts = articles[number * ARTICLES : (number + 1) * ARTICLES]
        texts += [source.choice(articles[: FILES * ARTICLES])[5:] for _ in range(ARTICLES // 4)]
        quoted = articles[-20:]
        texts = [
            f"{text}\n{quoted[n % 20]}\n{COMPANY}\n联系电话13800138{n:03d}" for n, text in enumerate(texts)
        ]
        rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (folder / "in" / f"{number:02d}.jsonl").write_text(rows, encoding="utf-8")
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "test.txt").write_text("\n".join(articles[:20]), encoding="utf-8")
    return [
        *("clean", "--corpus", str(folder / "in"), "--decontaminate", str(folder / "evaluation")),
        *("--boilerplate", "5", "--paragraphs", "--chinese", "simplified", "--width", "half"),
        *("--shard-megabytes", "0.02"),
    ]


def written(output: Path) -> dict[str, bytes]:
    files = {file.name: file.read_bytes() for file in output.iterdir() if file.is_file()}
    result = json.loads(files.pop("run.json"))["result"]
    return {**files, "result": json.dumps(result).encode()}


def started(flags: list[str], output: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "zhllama", *flags, "--output", str(output), "--workers", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen[bytes]) -> None:
    _, problem = process.communicate()
    if process.returncode:
        raise SystemExit(problem.decode()[-500:])


def is_done(output: Path) -> bool:
    """Whether a run has written its result, which it does last."""
    record = output / "run.json"
    return record.is_file() and "result" in json.loads(record.read_text(encoding="utf-8"))


def stage_of(output: Path) -> str:
    """The pass that a run is in, by the logs that it has begun."""
    if (output / ".done").exists():
        return "finish"
    logs = sorted((output / "logs").glob("*.log"), key=lambda file: file.stat().st_mtime_ns)
    return logs[-1].stem if logs else "begin"


def kill(process: subprocess.Popen[bytes], source: random.Random) -> str:
    """Kill the command or one of its workers; say which."""
    workers = [
        child for child in psutil.Process(process.pid).children(recursive=True) if child.ppid() != process.pid
    ]
    if workers and source.random() < 0.5:
        try:
            source.choice(workers).kill()
        except psutil.NoSuchProcess:
            return ""
        _, problem = process.communicate(timeout=120)
        if process.returncode == 0:
            return ""  # the worker had done its task
        if process.returncode != 2 or b"a worker process was killed (signal 9)" not in problem:
            raise SystemExit(f"exit code {process.returncode}: {problem.decode()[-500:]}")
        return "worker"
    process.kill()
    process.communicate()
    return "command"


def fill(flags: list[str], disk: Path, expected: dict[str, bytes]) -> list[list[str]]:
    """What a run says on a disk of each size, and whether with room it goes on to the same bytes."""
    rows = []
    disk.mkdir()
    for size in DISKS:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
        try:
            process = started(flags, disk / "out", 2)
            _, said = process.communicate()
            stage = stage_of(disk / "out")
            lines = said.decode().replace(str(disk), "DISK").splitlines()
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            finished(started(flags, disk / "out", 2))
            same = written(disk / "out") == expected
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        rows.append([size, stage, str(process.returncode), " / ".join(lines), "yes" if same else "NO"])
    return rows


def main() -> None:
    source, kills = random.Random(time.time_ns()), []
    compared = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = write_corpus(folder)
        for workers in (1, 2, 4):
            finished(started(flags, folder / str(workers), workers))
        expected = written(folder / "1")
        for workers in (2, 4):
            if written(folder / str(workers)) != expected:
                raise SystemExit(f"{workers} workers write other bytes than 1")
        begun = time.monotonic()
        finished(started(flags, folder / "timed", 2))
        seconds = time.monotonic() - begun
        while len(kills) < KILLS:
            process = started(flags, folder / "out", 2)
            try:
                process.wait(source.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                stage = stage_of(folder / "out")
                victim = kill(process, source)
                if victim and not is_done(folder / "out"):
                    kills.append((stage, victim))
                    continue
            if process.returncode != -signal.SIGKILL:  # or it was killed while it ended, its work done
                finished(process)
            if written(folder / "out") != expected:
                raise SystemExit(f"other bytes after {kills}")
            compared += 1
            shutil.rmtree(folder / "out")
        finished(started(flags, folder / "out", 2))
        if written(folder / "out") != expected:
            raise SystemExit(f"other bytes after {kills}")
        compared += 1
        disks = fill(flags, folder / "disk", expected) if os.geteuid() == 0 else []
        result = json.loads(expected["result"])
    counts = Counter(kills)
    rows = [
        [stage, counts[stage, "command"], counts[stage, "worker"]]
        for stage in dict.fromkeys(stage for stage, _ in sorted(kills))
    ]
    write_table(
        "restart",
        ["pass", "the command killed", "a worker killed"],
        rows,
        f"{KILLS} times kill -9 at a random moment of {seconds:.0f} seconds, 2 workers; {compared} outputs came out of "
        "it, each byte for byte that of the undisturbed run, which is the same for 1, 2 and 4 workers: documents, report "
        f"and result. {result['documents']:,} of {result['read']:,} documents of {FILES} files kept; on were "
        "near-duplicates, decontamination, boilerplate, paragraphs, privacy, simplified characters and half width. A "
        f"killed worker ends the run in one line with exit code 2. {machine()}, shared with other work.",
    )
    if disks:
        write_table(
            "restart",
            ["disk", "full in pass", "exit code", "standard error", "with room: the same bytes"],
            disks,
            "The same command on a tmpfs of each size; then the disk is enlarged and the command run again.",
            append=True,
        )


if __name__ == "__main__":
    main()
