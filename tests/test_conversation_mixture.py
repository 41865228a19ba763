"""Sources to one mixture: what is left out, drawn and counted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer

from zhllama.config import UserError
from zhllama.conversation.encode import encode
from zhllama.conversation.formats import Message
from zhllama.conversation.mixture import Mixture, build_mixture, print_mixture
from zhllama.conversation.settings import InstructionSource, MixtureSettings

THINGS = "天海湖河水山云花草木石土金银铜铁"
ROWS = [{"instruction": f"{thing}是什么颜色？", "output": f"{thing}是{thing}色。"} for thing in THINGS]
EXACT = MixtureSettings(similarity=1)


@pytest.fixture(scope="module")
def chatml(bytelevel_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(bytelevel_model_dir)


def put(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> str:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


def ask(request: str, reply: str) -> list[Message]:
    return [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]


def expected(rows: list[dict[str, str]], tokenizer: Any) -> list[tuple[list[int], list[bool]]]:
    return [encode(ask(row["instruction"], row["output"]), tokenizer) for row in rows]


def refusal(*arguments: Any) -> str:
    with pytest.raises(UserError) as refused:
        build_mixture(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def counts(mixture: Mixture) -> list[int]:
    return [one["rows"] for one in mixture.table]


def test_all_rows_are_taken_once_and_counted(tmp_path: Path, chatml: Any) -> None:
    one, two = (
        put(tmp_path, [*ROWS[:3], {"instruction": "问", "output": ""}], "1"),
        put(tmp_path, ROWS[3:8], "2"),
    )
    mixture = build_mixture([InstructionSource(one), InstructionSource(two)], EXACT, chatml, 512)
    first, second = expected(ROWS[:3], chatml), expected(ROWS[3:8], chatml)
    assert sorted(map(mixture.samples.__getitem__, range(3))) == sorted(first)
    assert sorted(map(mixture.samples.__getitem__, range(3, 8))) == sorted(second)
    assert mixture.origin.tolist() == [0] * 3 + [1] * 5
    tokens = [sum(len(ids) for ids, _ in some) for some in (first, second)]
    assert mixture.table[0] == {
        "file": one,
        "format": "alpaca",
        "tasks": {"instruction": 3},
        "read": 4,
        "rows": 3,
        "repeats": 1.0,
        "tokens": tokens[0],
        "share": round(tokens[0] / sum(tokens), 4),
        "mean_tokens": round(tokens[0] / 3, 1),
        "dropped": {"empty reply": {"rows": 1, "lines": [4]}},
        "shortened": {},
    }
    assert mixture.samples.lengths().tolist() == [len(ids) for ids, _ in mixture.samples]


def test_samples_are_drawn_without_repeats_while_there_are_rows(tmp_path: Path, chatml: Any) -> None:
    mixture = build_mixture([InstructionSource(put(tmp_path, ROWS), samples=5)], EXACT, chatml, 512)
    drawn = [tuple(ids) for ids, _ in mixture.samples]
    assert len(set(drawn)) == len(drawn) == 5
    assert drawn != [tuple(ids) for ids, _ in expected(ROWS[:5], chatml)]


def test_fewer_samples_are_the_first_of_more(tmp_path: Path, chatml: Any) -> None:
    file = put(tmp_path, ROWS)
    few, many = (
        list(build_mixture([InstructionSource(file, samples=count)], EXACT, chatml, 512).samples)
        for count in (4, 9)
    )
    assert many[:4] == few


def test_more_samples_than_rows_repeat_them_evenly_up_to_the_bound(
    tmp_path: Path, chatml: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = put(tmp_path, ROWS[:3])
    mixture = build_mixture([InstructionSource(file, samples=7)], EXACT, chatml, 512)
    assert sorted(np.bincount(mixture.samples.order).tolist()) == [2, 2, 3]
    assert mixture.table[0]["repeats"] == 2.33
    assert capsys.readouterr().out == ""
    assert counts(build_mixture([InstructionSource(file, samples=7, max_repeats=2)], EXACT, chatml, 512)) == [
        6
    ]
    assert capsys.readouterr().out == f"{file}: 6 of 7 samples, as max_repeats 2 allows\n"


def test_weights_share_the_rows(tmp_path: Path, chatml: Any) -> None:
    one, two = put(tmp_path, ROWS[:4], "1"), put(tmp_path, ROWS[4:12], "2")
    mixture = build_mixture(
        [InstructionSource(one, weight=3), InstructionSource(two, weight=2)], EXACT, chatml, 512
    )
    assert counts(mixture) == [12, 8]


def test_tokens_of_a_source_are_bounded(tmp_path: Path, chatml: Any) -> None:
    file = put(tmp_path, ROWS)
    (whole,) = build_mixture([InstructionSource(file)], EXACT, chatml, 512).table
    (part,) = build_mixture(
        [InstructionSource(file, max_tokens=whole["tokens"] // 3)], EXACT, chatml, 512
    ).table
    assert whole["tokens"] / 3 - 100 < part["tokens"] <= whole["tokens"] / 3
    assert "max_tokens is below every conversation" in refusal(
        [InstructionSource(file, max_tokens=3)], EXACT, chatml, 512
    )


def test_temperature_evens_tasks_out(tmp_path: Path, chatml: Any) -> None:
    one, two = put(tmp_path, ROWS[:4], "1"), put(tmp_path, ROWS[4:], "2")
    sources = [InstructionSource(one, task="few"), InstructionSource(two, task="many")]
    mixture = build_mixture(sources, MixtureSettings(temperature=1e9, similarity=1), chatml, 512)
    assert counts(mixture) == [8, 8]
    assert [one["tasks"] for one in mixture.table] == [{"few": 8}, {"many": 8}]


def test_duplicates_across_sources_are_kept_in_the_first(tmp_path: Path, chatml: Any) -> None:
    spaced = {"instruction": ROWS[1]["instruction"] + " ", "output": ROWS[1]["output"]}
    one, two = put(tmp_path, ROWS[:3], "1"), put(tmp_path, [ROWS[5], spaced, ROWS[0], ROWS[5]], "2")
    mixture = build_mixture([InstructionSource(one), InstructionSource(two)], EXACT, chatml, 512)
    assert counts(mixture) == [3, 1]
    assert mixture.table[1]["dropped"] == {"the same as an earlier row": {"rows": 3, "lines": [2, 3, 4]}}


def test_near_duplicates_are_left_out_unless_told_otherwise(tmp_path: Path, chatml: Any) -> None:
    long = "请详细说明为什么天空在晴朗的白天看起来是蓝色的，而在傍晚却常常变成红色，并举出生活中的例子。"
    rows = [{"instruction": long, "output": "因为散射。"}, {"instruction": long[1:], "output": "因为散射。"}]
    file = put(tmp_path, rows)
    (near,) = build_mixture([InstructionSource(file)], MixtureSettings(), chatml, 512).table
    assert near["dropped"] == {"nearly an earlier row": {"rows": 1, "lines": [2]}}
    assert counts(build_mixture([InstructionSource(file)], EXACT, chatml, 512)) == [2]


def test_evaluation_texts_are_left_out(tmp_path: Path, chatml: Any) -> None:
    evaluation = put(tmp_path, [{"question": ROWS[2]["instruction"]}], "e")
    settings = MixtureSettings(evaluation=[evaluation])
    (one,) = build_mixture([InstructionSource(put(tmp_path, ROWS))], settings, chatml, 512).table
    assert one["dropped"]["occurs in an evaluation file"] == {"rows": 1, "lines": [3]}


def test_long_rows_are_shortened_or_dropped(tmp_path: Path, chatml: Any) -> None:
    file = put(tmp_path, [*ROWS, {"instruction": "长" * 60, "output": "短。"}])
    (kept,) = build_mixture([InstructionSource(file)], EXACT, chatml, 160).table
    assert kept["shortened"] == {"shortened in the middle of its request": {"rows": 1, "lines": [17]}}
    drop = MixtureSettings(similarity=1, too_long="drop")
    (dropped,) = build_mixture([InstructionSource(file)], drop, chatml, 160).table
    assert dropped["dropped"] == {"longer than block_size 160": {"rows": 1, "lines": [17]}}
    assert (kept["rows"], dropped["rows"]) == (17, 16)


def test_only_last_replies_are_learnt_where_asked(tmp_path: Path, chatml: Any) -> None:
    file = put(tmp_path, [{"messages": [*ask("一", "二"), *ask("三", "四")]}])
    every, last = (
        sum(build_mixture([InstructionSource(file)], MixtureSettings(learn=learn), chatml, 512).samples[0][1])
        for learn in ("every", "last")
    )
    assert 0 < last < every


def test_the_same_settings_give_the_same_mixture_and_another_seed_another(
    tmp_path: Path, chatml: Any
) -> None:
    sources = [InstructionSource(put(tmp_path, ROWS), samples=10)]
    first, again, other = (
        list(build_mixture(sources, MixtureSettings(similarity=1, seed=seed), chatml, 512).samples)
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_forced_format_is_used(tmp_path: Path, chatml: Any) -> None:
    file = put(tmp_path, [{**ROWS[0], "input": "甲", "target": "乙", "type": "nli"}])
    (one,) = build_mixture([InstructionSource(file, format="pclue")], EXACT, chatml, 512).table
    assert (one["format"], one["tasks"]) == ("pclue", {"nli": 1})


def test_the_table_and_what_is_left_out_are_said(
    tmp_path: Path, chatml: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = put(
        tmp_path, [ROWS[0], {"instruction": "问", "output": ""}, {"instruction": "长" * 60, "output": "短。"}]
    )
    print_mixture(build_mixture([InstructionSource(file)], EXACT, chatml, 160))
    said = capsys.readouterr().out
    assert "repeats" in said
    assert f"{file}: left out 1 (empty reply: line 2)\n" in said
    assert f"{file}: kept 1 (shortened in the middle of its request: line 3)\n" in said


def test_a_mixture_of_which_nothing_is_left_says_why(tmp_path: Path, chatml: Any) -> None:
    one, two = (
        put(tmp_path, [ROWS[0], {"instruction": "问", "output": ""}], "1"),
        put(tmp_path, ROWS[1:2], "2"),
    )
    assert refusal([InstructionSource(one), InstructionSource(two)], EXACT, chatml, 4) == (
        f"data: nothing left to learn from: {one}: 1 (empty reply: line 2), 1 (longer than block_size 4: line 1); "
        f"{two}: 1 (longer than block_size 4: line 1)"
    )


def test_a_mixture_of_no_file_is_refused(chatml: Any) -> None:
    assert refusal([], EXACT, chatml, 512) == "data: name at least one instruction file"


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"samples": -1}, "samples -1 is below 0"),
        ({"weight": -0.5}, "weight -0.5 is below 0"),
        ({"max_tokens": -1}, "max_tokens -1 is below 0"),
        ({"samples": 1, "weight": 1}, "samples and weight: give one of them"),
        ({"max_repeats": 0.5}, "max_repeats 0.5 is below 1"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(
    tmp_path: Path, settings: dict[str, Any], what: str
) -> None:
    file = put(tmp_path, ROWS)
    with pytest.raises(UserError) as refused:
        InstructionSource(file, **settings).checked()
    assert str(refused.value) == f"data {file}: {what}"


def test_sources_that_datasets_saved_or_streams_are_files_like_others(tmp_path: Path, chatml: Any) -> None:
    datasets.disable_progress_bars()
    (tmp_path / "name").mkdir()  # stands for one of a hub
    plain = put(tmp_path / "name", ROWS[:4], "train.jsonl")
    datasets.Dataset.from_list(ROWS[4:9]).save_to_disk(tmp_path / "saved")
    given = [f"hf:{tmp_path}/name", str(tmp_path / "saved")]
    mixture = build_mixture([InstructionSource(file) for file in given], EXACT, chatml, 512)
    files = [plain, put(tmp_path, ROWS[4:9])]
    same = build_mixture([InstructionSource(file) for file in files], EXACT, chatml, 512)
    assert [one["file"] for one in mixture.table] == given
    assert list(mixture.samples) == list(same.samples)


def test_a_source_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        InstructionSource(f"{tmp_path}/none").checked()
    assert str(refused.value) == f"data: no such file: {tmp_path}/none"


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [("temperature", 0, "it must be above 0"), ("similarity", 1.5, "it must be above 0 and at most 1")],
)
def test_settings_out_of_range_are_refused(name: str, value: float, what: str) -> None:
    with pytest.raises(UserError) as refused:
        MixtureSettings(**{name: value})  # type: ignore[arg-type]
    assert str(refused.value) == f"mixture.{name} {value}: {what}"


def test_real_files_make_a_mixture(shared_data: Path, chatml: Any) -> None:
    names = ("alpaca_zh_demo.json", "alpaca_en_demo.json", "pCLUE_train_9.json")
    sources = [InstructionSource(str(shared_data / name), samples=50) for name in names]
    mixture = build_mixture(sources, MixtureSettings(), chatml, 1024)
    assert counts(mixture) == [50] * 3
    assert sum(mixture.table[2]["tasks"].values()) == 50
    assert {"nli", "classify"} <= mixture.table[2]["tasks"].keys()


def test_mended_turns_are_learnt_and_told(
    tmp_path: Path, chatml: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [("user", "在吗？"), ("user", "怎么退货？"), ("assistant", "点退货。"), ("user", "好。")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    file = put(tmp_path, [row, {"messages": row["messages"][1:3]}])
    mixture = build_mixture([InstructionSource(file)], EXACT, chatml, 512)
    (one,) = mixture.table
    assert one["shortened"] == {
        "two turns of one speaker joined": {"rows": 1, "lines": [1]},
        "a last request without a reply left out": {"rows": 1, "lines": [1]},
    }
    texts = sorted(chatml.decode(ids) for ids, _ in mixture.samples)
    assert any("在吗？\n怎么退货？" in text and "好。" not in text for text in texts)
    (strict,) = build_mixture([InstructionSource(file)], replace(EXACT, turns="drop"), chatml, 512).table
    assert strict["dropped"] == {"turns do not alternate": {"rows": 1, "lines": [1]}}
