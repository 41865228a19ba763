"""Formats of instruction files: each told by its rows, read exactly, and what is no conversation refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from zhllama.config import UserError
from zhllama.conversation.formats import FORMATS, Message, RowError, detect, read_row
from zhllama.conversation.read import read_instructions
from zhllama.conversation.turns import JOINED, UNANSWERED, UNASKED, even_turns

ALPACA = {"instruction": "翻译", "input": "hello", "output": "你好"}
OPENAI = {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "您好！"}]}
PCLUE = {"input": "对不对？\n答案：", "target": "对", "type": "nli", "answer_choices": ["对", "错"]}
PAIR = {"english": "Good morning.", "chinese": "早上好。"}
NAN = float("nan")
SYSTEM: Message = {"role": "system", "content": "简短"}


def ask(*turns: str) -> list[Message]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]


def said(row: Any, name: str | None = None) -> tuple[str, list[Message], str]:
    name = name or detect([row], "file")
    messages, task = read_row(row, name)
    return name, even_turns(messages, "drop")[0], task


def reason(row: Any, name: str) -> str:
    with pytest.raises(RowError) as dropped:
        even_turns(read_row(row, name)[0], "drop")
    return str(dropped.value)


@pytest.mark.parametrize(
    ("row", "name", "messages"),
    [
        (ALPACA, "alpaca", ask("翻译\nhello", "你好")),
        ({"instruction": "问", "input": "", "output": "答"}, "alpaca", ask("问", "答")),
        ({"instruction": "问", "output": "答"}, "alpaca", ask("问", "答")),
        (
            {"instruction": "三", "output": "四", "system": "简短", "history": [["一", "二"]]},
            "alpaca",
            [SYSTEM, *ask("一", "二", "三", "四")],
        ),
        (
            {"conversations": [{"from": "human", "value": "你好"}, {"from": "assistant", "value": "您好！"}]},
            "belle",
            ask("你好", "您好！"),
        ),
        (
            {"instruction": "Human:一\nAssistant: 二\nHuman:三\n三\nAssistant:", "input": "", "output": "四"},
            "belle-text",
            ask("一", "二", "三\n三", "四"),
        ),
        ({"input": "Human: 一\n\nAssistant: ", "target": "二"}, "belle-text", ask("一", "二")),
        (
            {
                "id": "x",
                "conversations": [
                    {"from": "system", "value": "简短"},
                    {"from": "human", "value": "一"},
                    {"from": "gpt", "value": "二"},
                ],
            },
            "sharegpt",
            [SYSTEM, *ask("一", "二")],
        ),
        (
            {
                "system": "简短",
                "conversations": [{"from": "human", "value": "一"}, {"from": "gpt", "value": "二"}],
            },
            "sharegpt",
            [SYSTEM, *ask("一", "二")],
        ),
        (OPENAI, "messages", ask("你好", "您好！")),
        (
            {"messages": [{"role": "developer", "content": "简短"}, *OPENAI["messages"]]},
            "messages",
            [SYSTEM, *ask("你好", "您好！")],
        ),
        (PCLUE, "pclue", ask("对不对？\n答案：", "对")),
    ],
)
def test_each_format_is_told_by_its_rows(row: dict[str, Any], name: str, messages: list[Message]) -> None:
    assert said(row)[:2] == (name, messages)


RARE = {"english": "biangbiang noodles", "chinese": "\U00030ede\U00030ede"}


@pytest.mark.parametrize("pair", [PAIR, RARE], ids=["common", "extension G"])
def test_a_translation_pair_is_told_and_asked_one_way(pair: dict[str, str]) -> None:
    name, messages, task = said(pair)
    assert (name, task) == ("translation", "translation")
    asked, answered = (message["content"] for message in messages)
    assert answered in pair.values()
    assert next(text for text in pair.values() if text != answered) in asked


@pytest.mark.parametrize(
    ("row", "task"),
    [(ALPACA, "instruction"), (OPENAI, "conversation"), (PCLUE, "nli"), ({**PCLUE, "type": None}, "pclue")],
)
def test_each_row_has_a_type_of_task(row: dict[str, Any], task: str) -> None:
    assert said(row)[2] == task


def test_most_rows_decide_the_format() -> None:
    assert detect([{"instruction": "x"}, OPENAI, ALPACA, ALPACA, "text"], "file") == "alpaca"


def test_unknown_keys_are_named() -> None:
    with pytest.raises(UserError) as refused:
        detect([{"b": 1, "a": 2}], "file")
    assert str(refused.value) == f"file: no known format in keys ['a', 'b']; known are {', '.join(FORMATS)}"


def test_rows_that_are_no_objects_have_no_format() -> None:
    with pytest.raises(UserError) as refused:
        detect(["a", 3], "file")
    assert str(refused.value) == "file: not one good row: no row is a JSON object"


@pytest.mark.parametrize(
    ("bad", "name", "why"),
    [
        ("text", "alpaca", "not a JSON object"),
        ([1, 2], "alpaca", "not a JSON object"),
        ({"instruction": "问"}, "alpaca", "no output"),
        ({"instruction": "问", "output": None}, "alpaca", "no output"),
        ({"instruction": "问", "output": NAN}, "alpaca", "no output"),
        ({"instruction": "问", "output": ["甲", "乙"]}, "alpaca", "output is no text"),
        ({"instruction": "问", "input": ["甲", "乙"], "output": "答"}, "alpaca", "input is no text"),
        ({"instruction": "问", "input": 3, "output": "答"}, "alpaca", "input is no text"),
        ({"instruction": "问", "output": "答", "system": {"a": 1}}, "alpaca", "system is no text"),
        ({"instruction": 3, "output": "答"}, "alpaca", "instruction is no text"),
        ({"instruction": "问", "output": "答", "history": ["abc"]}, "alpaca", "history is no list of pairs"),
        (OPENAI, "alpaca", "no instruction"),
        ({"instruction": "问", "output": " \n"}, "alpaca", "empty reply"),
        ({"instruction": " ", "output": "答"}, "alpaca", "empty request"),
        ({"instruction": "问", "output": "\ud83d"}, "alpaca", "half a character"),
        (
            {"instruction": "Human:一\nAssistant:", "output": "二"},
            "alpaca",
            "Human: and Assistant: in a file of alpaca",
        ),
        (ALPACA, "belle-text", "no Human: at its beginning"),
        ({"instruction": "说 Human:一", "output": "二"}, "belle-text", "no Human: at its beginning"),
        ({"instruction": "Human:一\nAssistant:二", "output": "三"}, "belle-text", "turns do not alternate"),
        ({"input": "问", "type": "nli"}, "pclue", "no target"),
        ({**PCLUE, "target": ""}, "pclue", "empty reply"),
        ({"english": "你好", "chinese": "你好"}, "translation", "no English in the English"),
        ({"english": "hi", "chinese": "hi"}, "translation", "no Chinese in the Chinese"),
        ({"english": "hi", "chinese": None}, "translation", "no chinese"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "unknown role"),
        (
            {"messages": [*ask("a"), {"role": "assistant", "content": "b", "weight": 0}]},
            "messages",
            "a message of weight 0",
        ),
        (
            {"messages": [*ask("a"), {"role": "assistant", "content": [1]}]},
            "messages",
            "content is no text",
        ),
    ],
)
def test_a_bad_row_says_why(bad: Any, name: str, why: str) -> None:
    assert reason(bad, name) == why


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (None, "no messages"),
        (NAN, "no messages"),
        *(
            (other, "messages is no list of messages")
            for other in (3, "text", {"role": "user"}, [["user", "x"]])
        ),
        ([{"content": "x"}], "no role"),
        ([{"role": "user"}], "no content"),
    ],
)
def test_messages_of_another_shape_are_refused(messages: Any, why: str) -> None:
    assert reason({"messages": messages}, "messages") == why


@pytest.mark.parametrize("nothing", [None, NAN, ""])
def test_what_says_nothing_leaves_no_trace(nothing: Any) -> None:
    row = {
        "instruction": "问",
        "input": nothing,
        "output": "答",
        "system": nothing,
        "history": nothing or None,
    }
    assert said(row, "alpaca")[1] == ask("问", "答")
    assert said({**row, "instruction": nothing, "input": "问"}, "alpaca")[1] == ask("问", "答")
    system = {"role": "system", "content": nothing or None}
    weighed = [{**message, "weight": nothing or None} for message in OPENAI["messages"]]
    assert said({"messages": [system, *weighed]}, "messages")[1] == OPENAI["messages"]


def test_conversations_name_their_turns_either_way() -> None:
    turns = [{"role": "user", "content": "一"}, {"from": "gpt", "value": "二"}]
    assert said({"conversations": turns})[1] == ask("一", "二")


@pytest.mark.parametrize(
    ("roles", "kept", "done"),
    [
        ("uua", ["字\n字", "字"], [JOINED]),
        ("uaa", ["字", "字\n字"], [JOINED]),
        ("aua", ["字", "字"], [UNASKED]),
        ("uau", ["字", "字"], [UNANSWERED]),
        ("auuau", ["字\n字", "字"], [UNASKED, JOINED, UNANSWERED]),
        ("suua", ["字", "字\n字", "字"], [JOINED]),
    ],
)
def test_uneven_turns_are_mended_and_told(roles: str, kept: list[str], done: list[str]) -> None:
    names = {"u": "user", "a": "assistant", "s": "system"}
    messages = [{"role": names[role], "content": "字"} for role in roles]
    mended, told = even_turns(messages, "mend")
    assert ([message["content"] for message in mended], told) == (kept, done)


@pytest.mark.parametrize("roles", ["u", "a", "s", "", "au", "uasua"])
def test_what_cannot_be_mended_is_refused(roles: str) -> None:
    names = {"u": "user", "a": "assistant", "s": "system"}
    with pytest.raises(RowError, match="turns do not alternate"):
        even_turns([{"role": names[role], "content": "字"} for role in roles], "mend")


@pytest.mark.parametrize(
    ("roles", "why"),
    [
        *((roles, None) for roles in ("ua", "sua", "uaua")),
        *(
            (roles, "turns do not alternate")
            for roles in ("uau", "au", "aua", "uuaa", "uasua", "ssua", "s", "")
        ),
        *((roles, "empty reply") for roles in ("uE", "uEua", "uauE")),
    ],
)
def test_turns_must_alternate_and_every_reply_say_something(roles: str, why: str | None) -> None:
    names = {"u": "user", "a": "assistant", "s": "system", "E": "assistant"}
    row = {"messages": [{"role": names[role], "content": " " if role == "E" else "字"} for role in roles]}
    if why is None:
        assert len(even_turns(read_row(row, "messages")[0], "drop")[0]) == len(roles)
    else:
        assert reason(row, "messages") == why


@pytest.mark.parametrize(
    ("file", "name", "rows"),
    [
        ("alpaca_zh_demo.json", "alpaca", 1000),
        ("alpaca_en_demo.json", "alpaca", 999),
        ("chatdoctor5k.json", "alpaca", 5452),
        ("pCLUE_train_9.json", "pclue", 705),
    ],
)
def test_real_files_are_read_whole(shared_data: Path, file: str, name: str, rows: int) -> None:
    found = [row for _, row in read_instructions(shared_data / file)]
    assert (detect(found, file), len(found)) == (name, rows)
    dropped: Counter[str] = Counter()
    for row in found:
        try:
            messages, task = read_row(row, name)
            even_turns(messages, "drop")
        except RowError as problem:
            dropped[str(problem)] += 1
        else:
            assert messages[-1]["content"] == (row["target"] if name == "pclue" else row["output"])
            assert task == row.get("type", "instruction")
    assert dropped.keys() <= {"empty reply"}
    assert dropped["empty reply"] == sum(not row.get("output", "x").strip() for row in found)


def test_real_files_of_other_formats_are_refused(shared_data: Path) -> None:
    seeds = [json.loads(line) for line in (shared_data / "belle_zh_seed_tasks.json").open(encoding="utf-8")]
    with pytest.raises(UserError, match="no known format in keys"):
        detect(seeds, "seeds")
