"""What a run of `clean` survives: kill -9, a full disk, any number of workers."""

import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from zhllama.config import UserError
from zhllama.corpus.clean import CleanConfig, clean

Run = Callable[..., dict[str, bytes]]
NOBODY = 65534
WORDS = re.findall(
    "..",
    "记者今天北京经济发展工作人民建设国家社会群众企业市场改革农民技术教育科学文化历史河流山区道路桥梁学校医院工厂商店粮食水果天气春天冬季"
    "城市乡村干部代表会议报告计划生产质量价格收入环境保护森林草原海洋船舶火车飞机电视广播报纸图书音乐电影体育比赛球队冠军老师学生孩子母亲",
)
PARAGRAPH = "长江是亚洲第一长河，发源于青藏高原，流经十一个省市，最后在上海注入东海，全长六千三百公里。"
STAGES = (
    "read/completions/00001",
    "near-pairs/completions/00003",
    "lines/completions/00000",
    "write/completions/00000",
)


def written(output: Path) -> dict[str, bytes]:
    """All that a run leaves for others, the times in run.json and the logs left out."""
    files = {file.name: file.read_bytes() for file in output.iterdir() if file.is_file()}
    return {**files, "run.json": json.dumps(json.loads(files["run.json"])["result"]).encode()}


def sentence(number: int) -> str:
    """Chinese that no other number has a like of, with a telephone number."""
    words = random.Random(number).sample(WORDS, 30)
    return f"{''.join(words[:15])}，\n{''.join(words[15:])}，电话1380013{number:04d}。"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents for every pass: copies, template lines, paragraphs seen before, phone numbers, evaluation text."""
    folder = tmp_path_factory.mktemp("executor")
    (folder / "in").mkdir()
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "a.txt").write_text(sentence(7), encoding="utf-8")
    for part in range(4):
        texts = [sentence(number) for number in range(part * 20, part * 20 + 30)]
        texts += [f"{sentence(part * 100 + 900)}\n{PARAGRAPH}", f"重复{sentence(part)}"]
        texts = [f"{text}\n版权所有翻印必究请勿转载" for text in texts]
        (folder / "in" / f"{part}.txt").write_text("\n\n".join(texts), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def settings(corpus: Path) -> dict[str, object]:
    return {
        "corpus": str(corpus / "in"),
        "decontaminate": str(corpus / "evaluation"),
        "boilerplate": 5,
        "paragraphs": True,
        "shard_megabytes": 0.002,
    }


@pytest.fixture(scope="module")
def run(settings: dict[str, object]) -> Run:
    def run(output: Path, **more: object) -> dict[str, bytes]:
        clean(CleanConfig(**{**settings, "output": str(output), "workers": 1, **more}))  # type: ignore[arg-type]
        return written(output)

    return run


@pytest.fixture(scope="module")
def expected(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return run(tmp_path_factory.mktemp("expected") / "out")


@pytest.fixture
def background(tmp_path: Path, settings: dict[str, object]) -> Iterator[subprocess.Popen[bytes]]:
    """The same run with two workers in a process of its own, into `out`."""
    flags = [
        word
        for name, value in settings.items()
        for word in (f"--{name.replace('_', '-')}", str(value).lower() if value is True else str(value))
    ]
    # a shell's background job ignores Ctrl-C, and so would what it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words = ["clean", *flags, "--output", str(tmp_path / "out"), "--workers", "2"]
    with subprocess.Popen([sys.executable, "-m", "zhllama", *words], stderr=subprocess.PIPE) as process:
        yield process
        process.kill()


def wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    while not file.exists():
        assert process.poll() is None, "it finished before it could be killed"
        time.sleep(0.002)


def test_every_pass_has_something_to_do(expected: dict[str, bytes]) -> None:
    result = json.loads(expected["run.json"])
    assert set(result["dropped"]) == {"duplicate", "near duplicate", "in an evaluation file"}
    assert set(result["removed"]) == {"boilerplate lines", "repeated paragraphs"}
    assert result["personal"]["mobile"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_nothing(
    tmp_path: Path, run: Run, expected: dict[str, bytes], workers: int
) -> None:
    assert run(tmp_path / "out", workers=workers) == expected


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_goes_on_to_the_same_bytes_and_leaves_no_process(
    tmp_path: Path,
    run: Run,
    expected: dict[str, bytes],
    background: subprocess.Popen[bytes],
    stage: str,
) -> None:
    wait_for(tmp_path / "out" / "logs" / stage, background)
    children = psutil.Process(background.pid).children(recursive=True)
    background.kill()
    assert not psutil.wait_procs(children, timeout=20)[1]
    assert run(tmp_path / "out", workers=2) == expected


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_in_one_line_and_it_goes_on(
    tmp_path: Path, run: Run, expected: dict[str, bytes], background: subprocess.Popen[bytes]
) -> None:
    wait_for(tmp_path / "out" / "logs" / "read" / "logs" / "task_00001.log", background)
    while background.poll() is None:
        for child in psutil.Process(background.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # the run ends the others itself
                if child.ppid() != background.pid:
                    child.kill()
    assert background.stderr
    lines = background.stderr.read().decode().splitlines()
    assert background.returncode == 2
    assert len(lines) == 1
    assert "a worker process was killed (signal 9)" in lines[0]
    assert run(tmp_path / "out") == expected


@pytest.mark.slow
def test_ctrl_c_ends_the_run_and_its_workers_in_one_line(
    tmp_path: Path, run: Run, expected: dict[str, bytes], background: subprocess.Popen[bytes]
) -> None:
    wait_for(tmp_path / "out" / "logs" / "read" / "logs" / "task_00001.log", background)
    children = psutil.Process(background.pid).children(recursive=True)
    for process in (*children, psutil.Process(background.pid)):  # as a terminal does
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGINT)
    _, said = background.communicate(timeout=120)
    assert background.returncode == 130
    assert said.decode().strip() == (
        "zhllama clean: interrupted; inputs are untouched, the output is marked unfinished"
    )
    assert not psutil.wait_procs(children, timeout=20)[1]
    assert run(tmp_path / "out", workers=2) == expected


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_stops_in_one_line_and_the_run_goes_on_with_room(
    tmp_path: Path, run: Run, expected: dict[str, bytes], workers: int
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (3000, 12_000):  # bytes of a file: the same OSError from the same calls as a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            with pytest.raises(UserError, match=r"out: it cannot be written \(File too large\); make room"):
                run(tmp_path / "out", workers=workers)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "result" not in json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert run(tmp_path / "out") == expected


@pytest.mark.slow
def test_an_error_of_ours_in_a_worker_is_not_passed_in_silence(tmp_path: Path, run: Run) -> None:
    (tmp_path / "score.py").write_text("def score(text):\n    raise KeyError(text)\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"a task failed; its log says why: .*read/logs/task_0000\d.log"):
        run(tmp_path / "out", workers=2, score=f"{tmp_path}/score.py:score")


def test_a_file_that_may_not_be_read_stops_the_run_or_is_named_and_left_out(
    run: Run, expected: dict[str, bytes]
) -> None:
    me = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        (folder / "in" / "a.txt").write_text(sentence(1), encoding="utf-8")
        (folder / "in" / "b.txt").write_text(sentence(2), encoding="utf-8")
        (folder / "in" / "b.txt").chmod(0)
        if me == 0:
            os.chown(folder, NOBODY, -1)
            os.chown(folder / "in", NOBODY, -1)
            os.seteuid(NOBODY)  # root reads everything
        try:
            with pytest.raises(UserError, match=r"b.txt: it cannot be opened \(Permission denied\)"):
                run(folder / "out", corpus=str(folder / "in"), boilerplate=0, decontaminate="")
            files = run(
                folder / "out", corpus=str(folder / "in"), boilerplate=0, broken="skip", decontaminate=""
            )
            with pytest.raises(UserError, match=r"b.txt: it cannot be read \(Permission denied\)"):
                run(folder / "file", corpus=str(folder / "in" / "b.txt"), decontaminate="")
            (folder / "in" / "closed").mkdir(0)
            with pytest.raises(UserError, match=r"in/closed: this folder cannot be opened \(Permission"):
                run(folder / "out", corpus=str(folder / "in"), decontaminate="")
        finally:
            os.seteuid(me)
    result = json.loads(files["run.json"])
    assert (result["documents"], result["skipped"]) == (1, {"files": 1})
    assert "b.txt: it cannot be opened" in files["report.html"].decode()
