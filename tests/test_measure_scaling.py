"""The data-scaling series on a toy model: rows, scores by task, resumed, and every refusal."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import zhllama.measure.scaling
from zhllama.artifact import read_record
from zhllama.cli import main
from zhllama.config import UserError
from zhllama.conversation.encode import encode
from zhllama.conversation.formats import Message
from zhllama.measure.scaling import ALL, ScaleDataConfig, read_questions

QUESTIONS = [
    {"question": "天空是什么颜色？", "std_answer": "蓝色。", "class": "open qa"},
    {"question": "一加一等于几？", "std_answer": "等于二。", "class": "math"},
    {"question": "二加二等于几？", "std_answer": "等于四。", "class": "math"},
    {"question": "写一首诗。", "std_answer": "", "class": "generation"},  # nothing to measure against
    {"question": "读完这篇文章。" * 60, "std_answer": "读完了。", "class": "math"},  # longer than a block
]


def write(file: Path, rows: list[dict[str, str]]) -> Path:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
    return file


@pytest.fixture
def series(tmp_path: Path, extended_models: dict[str, Path], toy: list[str]) -> Callable[..., Path]:
    """`zhllama scale-data` on 4 and 8 rows; (*flags) to its directory."""
    rows = [{"instruction": f"第{number}题", "output": f"答案是{number}。"} for number in range(9)]
    rows.append({"instruction": QUESTIONS[0]["question"], "output": "红色。"})
    recipe = tmp_path / "recipe.yaml"
    pairs = dict(zip(toy[::2], toy[1::2], strict=True))
    train = {
        flag.removeprefix("--train."): value for flag, value in pairs.items() if flag.startswith("--train.")
    }
    lines = [f"  {name.replace('-', '_')}: {value}" for name, value in train.items()]
    recipe.write_text("\n".join(["block_size: 128", "lora: {rank: 4, alpha: 8}", "train:", *lines]) + "\n")
    data = json.dumps([{"file": str(write(tmp_path / "rows.jsonl", rows))}])
    paths = ["--model", str(extended_models["bytelevel"]), "--data", data, "--recipe", str(recipe)]
    paths += ["--evaluation", str(write(tmp_path / "questions.jsonl", QUESTIONS))]
    settings = ["--block-size", "256", "--answered", "1", "--max-new-tokens", "4"]
    settings += ["--flags", "train.max_steps=2", "--flags", "progress.endings=0"]

    def run(rows: str = "[8, 4]", *flags: object) -> Path:
        output = ["--rows", rows, "--output", str(tmp_path / "out")]
        main(["scale-data", *paths, *settings, *output, *map(str, flags)])
        return tmp_path / "out"

    return run


def bits_per_character(directory: Path, rows: list[dict[str, str]]) -> float:
    """Plain transformers, one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    nats, characters = 0.0, 0
    for row in rows:
        messages: list[Message] = [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["std_answer"]},
        ]
        ids, learnt = encode(messages, tokenizer)
        with torch.no_grad():
            spread = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nats -= sum(float(spread[at - 1, ids[at]]) for at in range(len(ids)) if learnt[at])
        characters += len(row["std_answer"])
    return nats / math.log(2) / characters


def test_a_series_is_scored_by_task(
    series: Callable[..., Path],
    extended_models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = series()
    report = json.loads((output / "report" / "report.json").read_text(encoding="utf-8"))
    for name in ("bits per character", "ROUGE-L"):
        assert report[name]["header"] == ["task", "0 rows", "4 rows", "8 rows"]
        tasks = {row[0]: row[1:] for row in report[name]["rows"]}
        assert list(tasks) == ["math", "open qa", ALL]
        assert tasks[ALL] == pytest.approx(
            [sum(pair) / 2 for pair in zip(tasks["math"], tasks["open qa"], strict=True)]
        )
    found = {row[0]: row[1] for row in report["bits per character"]["rows"]}
    base = extended_models["bytelevel"]
    assert found["open qa"] == pytest.approx(bits_per_character(base, QUESTIONS[:1]), rel=1e-4)
    assert found["math"] == pytest.approx(bits_per_character(base, QUESTIONS[1:3]), rel=1e-4)
    assert (output / "report" / "report.html").read_text(encoding="utf-8").count("<svg") == 2
    said = capsys.readouterr().out
    assert "left out 1 (occurs in an evaluation file: line" in said
    assert "math: left out 1 questions of 3 (longer than block_size 256)" in said
    small, large = ((output / f"rows-{n}.jsonl").read_text(encoding="utf-8").splitlines() for n in (4, 8))
    assert (len(small), large[:4]) == (4, small)

    # A series that was cut short goes on: finished runs stay as they are.
    for file in (output / "report").iterdir():
        file.unlink()
    (output / "report").rmdir()
    monkeypatch.setattr(zhllama.measure.scaling, "sft", None)  # called, it would be a TypeError
    series()
    assert json.loads((output / "report" / "report.json").read_text(encoding="utf-8")) == report
    assert read_record(output / "report")["result"]["rows"] == [4, 8]


def test_answers_are_left_out_where_none_are_asked_for(series: Callable[..., Path]) -> None:
    report = json.loads((series("[2]", "--answered", 0) / "report" / "report.json").read_text())
    assert report["ROUGE-L"]["rows"] == []
    assert report["bits per character"]["header"] == ["task", "0 rows", "2 rows"]


def refusal(what: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        what()
    return str(refused.value)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"rows": []}, "rows []: give different numbers of rows, each at least 1"),
        ({"rows": [0, 2]}, "rows [0, 2]: give different numbers of rows, each at least 1"),
        ({"rows": [2, 2]}, "rows [2, 2]: give different numbers of rows, each at least 1"),
        ({"questions": -1}, "questions and answered: they must be at least 0"),
    ],
)
def test_settings_that_show_nothing(settings: dict[str, Any], line: str) -> None:
    assert refusal(lambda: ScaleDataConfig("m", [], "e", "o", **settings)) == line


def test_more_rows_than_there_are(
    series: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        series("[4, 10]")
    assert stop.value.code == 2
    assert "rows 10: the data has only 9; ask for fewer, or give more data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_category_of_long_questions_is_refused_before_anything_is_trained(
    series: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        series("[4, 8]", "--block-size", 20)
    assert stop.value.code == 2
    assert (
        "' fits into block_size 20; raise it, or take that class out of the file" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"question": "a"}, " line 1: it needs question, std_answer and class, as text"),
        (
            {"question": "a", "std_answer": None, "class": "b"},
            " line 1: it needs question, std_answer and class, as text",
        ),
        ({"question": "a", "std_answer": " ", "class": "b"}, ": no row with a reference answer"),
    ],
)
def test_questions_of_another_shape(tmp_path: Path, row: Any, line: str) -> None:
    file = write(tmp_path / "bad.jsonl", [row])
    assert refusal(lambda: read_questions(file)) == f"evaluation {file}{line}"


def test_belles_own_questions(shared_data: Path) -> None:
    questions = read_questions(shared_data / "belle_eval_set.json")
    assert len(questions) == 631
    assert len({task for task, _ in questions}) >= 7
    assert "closed qa" in {task for task, _ in questions}  # written with a no-break space
