"""What of a mixture occurs in evaluation files."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from zhllama.config import UserError
from zhllama.conversation.evaluation import mark_contaminated, read_questions
from zhllama.conversation.formats import Message

LONG = "请简要介绍一下中国古代的四大发明以及它们对世界的影响。"


def put(folder: Path, rows: list[Any], name: str = "evaluation.jsonl") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def ask(request: str, reply: str = "好的。") -> list[Message]:
    return [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]


def refusal(file: Path) -> str:
    with pytest.raises(UserError) as refused:
        read_questions(file)
    return str(refused.value)


@pytest.mark.parametrize(
    ("row", "questions"),
    [
        ({"instruction": "问 一", "input": "Ａ", "output": "答"}, ["问一a"]),
        ({"instruction": "问", "input": "二"}, ["问二"]),
        ({"question": "问", "std_answer": "答", "class": "qa"}, ["问"]),
        ({"input": "问", "target": "答", "type": "nli"}, ["问"]),
        ({"input": "问", "type": "nli"}, ["问"]),
        ({"english": "Good day.", "chinese": "你好。"}, ["goodday.", "你好。"]),
        ({"messages": [*ask("一"), *ask("二")]}, ["一", "二"]),
        ({"prompt": "问"}, ["问"]),
    ],
)
def test_the_questions_of_each_format(tmp_path: Path, row: dict[str, Any], questions: list[str]) -> None:
    assert read_questions(put(tmp_path, [row, row])) == questions


def test_lines_of_text_are_questions(tmp_path: Path) -> None:
    assert read_questions(put(tmp_path, ["问 一", "", "问二"], "e.txt")) == ["问一", "问二"]


def test_rows_without_a_reply_beside_rows_with_one_are_passed_over(tmp_path: Path) -> None:
    rows = [
        {"instruction": "一", "output": "答"},
        {"instruction": "二", "output": None},
        {"instruction": 3},
        4,
    ]
    assert read_questions(put(tmp_path, rows)) == ["一", "二"]


def test_tables_of_questions_are_read_by_their_first_row(tmp_path: Path) -> None:
    file = put(
        tmp_path, ["id,Question,A,B,Answer", '1,"问 一，\n两行",甲,乙,A', "2,问二,甲,乙,B"], "exam.csv"
    )
    assert read_questions(file) == ["问一,两行", "问二"]
    (tmp_path / "exam.tsv.gz").write_bytes(gzip.compress("Prompt\tAnswer\n问一\t答\n".encode("gbk")))
    assert read_questions(tmp_path / "exam.tsv.gz") == ["问一"]
    pyarrow.parquet.write_table(pyarrow.table({"question": ["问一"]}), tmp_path / "exam.parquet")
    assert read_questions(tmp_path / "exam.parquet") == ["问一"]


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    assert "no known format in columns a, b" in refusal(put(tmp_path, ["a,b", "1,2"], "a.csv"))


def test_a_line_of_text_may_begin_with_a_bracket(tmp_path: Path) -> None:
    assert read_questions(put(tmp_path, ["[填空] 问一", "[1]"], "e.txt")) == ["[填空]问一"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"question": "\\ud83d"}', "half a character"),
        (b'{"question": "\xff"}', "bytes that are no text"),
    ],
)
def test_a_question_that_cannot_be_read_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    file = put(tmp_path, [{"question": LONG}] * 9)
    file.write_bytes(file.read_bytes() + line)
    assert refusal(file) == f"mixture.evaluation {file} line 10: {reason}; mend or delete it"


def test_a_missing_evaluation_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"mixture.evaluation: no such file: {tmp_path}/none"


def test_an_evaluation_file_without_a_question_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path, [{"answer": "x"}])
    assert refusal(file).startswith(f"mixture.evaluation {file}: no question in it; known are")


@pytest.mark.parametrize(
    ("request_", "found"),
    [
        ("你好吗", True),
        ("你 好\n吗", True),
        ("你好吗？请问", False),
        (LONG, True),
        ("题目：" + LONG + "要详细。", True),
        (LONG.replace("简要", "简单"), True),
        ("请介绍四大菜系。", False),
    ],
)
def test_a_request_that_is_nearly_is_or_holds_a_question(request_: str, found: bool) -> None:
    questions = ["你好吗", LONG[:-1]]
    assert mark_contaminated(questions, [ask(request_)], 0.7).tolist() == [found]


def test_a_reply_that_holds_a_question_counts_and_an_equal_short_one_does_not() -> None:
    rows = [ask("甲", f"例如：{LONG}"), ask("乙", "你好吗")]
    assert mark_contaminated(["你好吗", LONG], rows, 0.8).tolist() == [True, False]


def test_any_turn_counts() -> None:
    assert mark_contaminated(["你好吗"], [[*ask("甲"), *ask("你好吗")]], 0.8).tolist() == [True]


def test_only_the_same_counts_where_nothing_else_is_asked_for() -> None:
    near = LONG.replace("简要", "简单")
    assert mark_contaminated([LONG], [ask(near), ask(LONG)], 1).tolist() == [False, True]
    assert mark_contaminated([LONG], [ask(near), ask(LONG)], 0.6).tolist() == [True, True]


def test_rows_alike_are_no_questions() -> None:
    assert not mark_contaminated(["另一个问题是什么"], [ask(LONG), ask(LONG)], 0.8).any()


def test_real_questions_are_found(shared_data: Path) -> None:
    questions = read_questions(shared_data / "belle_eval_set.json")
    assert len(questions) > 900
    rows = [
        json.loads(line)["question"] for line in (shared_data / "belle_eval_set.json").open(encoding="utf-8")
    ]
    assert mark_contaminated(questions, [ask(row) for row in rows[:100]], 0.8).all()


@pytest.mark.parametrize(("length", "found"), [(9, False), (10, True), (12, True)])
def test_a_question_is_looked_for_in_a_text_from_ten_characters_on(length: int, found: bool) -> None:
    question = LONG[:length]
    row = ask("甲", f"例如{question}，等等，还有很多。")
    assert mark_contaminated([question, question[:10] + "别的问题"], [row], 1).tolist() == [found]


def test_rows_that_share_the_wording_of_a_question_are_none() -> None:
    wording = "请根据下面的描述回答问题，并给出详细的建议和理由："
    assert not mark_contaminated(
        [wording + "牙疼怎么办？"], [ask(wording + "北京有哪些好吃的小吃？")], 1
    ).any()
