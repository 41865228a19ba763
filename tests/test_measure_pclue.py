"""pCLUE's scores: cases by hand, its own script's rules, and every refusal."""

import json
from pathlib import Path
from typing import Any

import pytest

from zhllama.artifact import read_record
from zhllama.cli import main
from zhllama.measure.pclue import normalize, scores


def write(file: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


# type, target, answer; what each scores stands beside it
ROWS: list[tuple[str, Any, str]] = [
    ("classify", "相同", "相同"),  # 1
    ("classify", "相同", "不同"),  # 0
    ("anaphora_resolution", "是的", "是的"),  # 1, and counts with classify
    ("anaphora_resolution", "不是", "不是的"),  # 0
    ("nli", "Yes", " yes "),  # 1
    ("nli", "也许", "不是"),  # 0
    ("nli", "也许", "也许"),  # 1
    ("mrc", "施明振", "施明振"),  # 1, 1
    ("mrc", "猛兽没吃那个人", "没吃人"),  # 0, 2 x 3 / 10
    ("generate", ["手机", "分期"], "手机，分期"),  # 1: a list is joined by commas
    ("generate", "花呗要多少钱", "花呗多少"),  # 2 x 4 / 10
]


def flags(folder: Path, *more: object) -> list[str]:
    references = write(folder / "pclue.jsonl", [{"input": "?", "type": t, "target": x} for t, x, _ in ROWS])
    predictions = write(folder / "predictions.jsonl", [{"target": answer} for *_, answer in ROWS])
    paths = ["--predictions", predictions, "--references", references, "--output", folder / "out"]
    return ["score-pclue", *map(str, [*paths, *more])]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    problem = capsys.readouterr().err
    assert problem.count("\n") == 1
    return problem.removeprefix("zhllama score-pclue: error: ").rstrip()


def test_the_scores_are_those_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(flags(tmp_path))
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    found = {(row["group"], row["measure"]): (row["rows"], row["score"]) for row in report}
    assert found == {
        ("classify", "accuracy"): (4, 0.5),
        ("nli", "accuracy"): (3, pytest.approx(2 / 3)),
        ("mrc", "exact match"): (2, 0.5),
        ("mrc", "F1"): (2, pytest.approx((1 + 0.6) / 2)),
        ("generate", "ROUGE-L"): (2, pytest.approx((1 + 0.8) / 2)),
        ("all", "mean"): (11, pytest.approx((0.5 + 2 / 3 + (0.5 + 0.8) / 2 + 0.9) / 4)),
    }
    assert read_record(tmp_path / "out")["result"]["all mean"] == found["all", "mean"][1]
    assert "<svg" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "exact match" in capsys.readouterr().out


def test_answers_of_chat_are_read_from_their_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flags(tmp_path)
    answers = tmp_path / "answers"
    answers.mkdir()
    rows = [{"messages": [{"role": "assistant", "content": answer}], "ended": "eos"} for *_, answer in ROWS]
    write(answers / "answers.jsonl", rows)
    main(arguments)
    main([*arguments, "--predictions", str(answers), "--output", str(tmp_path / "other")])
    one, other = (read_record(tmp_path / name)["result"] for name in ("out", "other"))
    assert one | {"fingerprint": ""} == other | {"fingerprint": ""}


def test_a_group_without_rows_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references = write(
        tmp_path / "some.jsonl", [{"type": "nli", "target": "是"}, {"type": "nli", "target": "否"}]
    )
    predictions = write(tmp_path / "given.jsonl", [{"target": "是"}, {"target": "是"}])
    main(flags(tmp_path, "--references", references, "--predictions", predictions))
    assert read_record(tmp_path / "out")["result"]["all mean"] == 0.5
    assert (
        "no row of classify, generate, mrc: the score is the mean of the other groups"
        in capsys.readouterr().out
    )


def test_right_answers_to_real_rows_score_one(shared_data: Path) -> None:
    lines = (shared_data / "pCLUE_train_9.json").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    groups = {"anaphora_resolution": "classify"}
    wanted = [(row["target"], groups.get(row["type"], row["type"])) for row in rows]
    found = scores(wanted, [row["target"] for row in rows])
    assert [row[3] for row in found] == [1.0] * 6


@pytest.mark.parametrize(
    ("text", "same"), [("A，b", "a,b"), (" 是  的\n", "是 的"), ("Ａ", "ａ")], ids=["comma", "spaces", "case"]
)
def test_what_makes_no_difference(text: str, same: str) -> None:
    assert normalize(text) == same


def test_a_missing_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = write(tmp_path / "short.jsonl", [{"target": "是"}])
    problem = refused(capsys, flags(tmp_path, "--predictions", short))
    assert problem == (
        f"--predictions {short}: 1 answers to 11 rows of {tmp_path / 'pclue.jsonl'}; give one answer a row, in the "
        "same order"
    )
    assert not (tmp_path / "out").exists()


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = refused(capsys, flags(tmp_path, "--predictions", tmp_path / "none"))
    assert problem == f"--predictions {tmp_path / 'none'}: no such file"


@pytest.mark.parametrize(
    ("flag", "rows", "line"),
    [
        ("--predictions", [{"answer": "a"}], " line 1: it needs a target or messages"),
        ("--predictions", [{"target": "a"}, {"target": 3}], " line 2: it needs a target or messages"),
        ("--predictions", [{"messages": []}], " line 1: it needs a target or messages"),
        ("--predictions", ["plain"], " line 1: not JSON (Expecting value)"),
        ("--predictions", [""], ": no row inside"),
        (
            "--references",
            [{"target": "a", "type": "poem"}],
            " line 1: it needs a type (classify, anaphora_resolution, nli, generate, mrc) and a target",
        ),
    ],
)
def test_rows_of_another_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, rows: list[Any], line: str
) -> None:
    file = write(tmp_path / "bad.jsonl", rows)
    assert refused(capsys, flags(tmp_path, flag, file)) == f"{flag} {file}{line}"


def test_a_file_in_no_encoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b'{"target": "\xff"}')
    problem = refused(capsys, flags(tmp_path, "--predictions", file))
    assert problem == f"--predictions {file}: not UTF-8 at byte 12; convert it with iconv"
