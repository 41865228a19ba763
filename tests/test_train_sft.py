"""sft: the mixture, what is learnt, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

import zhllama.train.sft
from zhllama.artifact import fingerprint, read_record
from zhllama.cli import main
from zhllama.pack.blocks import Blocks
from zhllama.tokenizer.template import shipped
from zhllama.train.metrics import read_metrics

Rows = list[dict[str, Any]]
QUESTIONS: Rows = [
    {"instruction": f"第{number}个问题：{thing}是什么颜色？", "input": "", "output": "蓝色。"}
    for number, thing in enumerate("天海湖河水山云花草木石土")
]


def write_rows(file: Path, rows: Rows) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def sources(*files: Path) -> str:
    return json.dumps([{"file": str(file)} for file in files])


@pytest.fixture
def bare(tmp_path: Path, extended_models: dict[str, Path], toy: list[str], kind: str) -> list[str]:
    """A quick run, but for the data."""
    paths = ["--model", str(extended_models[kind]), "--output", str(tmp_path / "r")]
    settings = ["--block-size", "128", "--train.max-steps", "4", "--train.learning-rate", "1e-2"]
    return ["sft", *paths, *settings, *toy]


@pytest.fixture
def flags(tmp_path: Path, bare: list[str]) -> list[str]:
    """A quick run on twelve questions."""
    return [*bare, "--data", sources(write_rows(tmp_path / "questions.jsonl", QUESTIONS))]


def refused(capsys: pytest.CaptureFixture[str], flags: list[str], *more: object) -> str:
    """The one line that the command ends with, exit code 2, nothing written."""
    with pytest.raises(SystemExit) as stop:
        main([*flags, *map(str, more)])
    assert stop.value.code == 2
    problem = capsys.readouterr().err
    assert problem.startswith("zhllama sft: error: ")
    assert problem.count("\n") == 1
    return problem


def test_the_commit_of_a_dataset_on_a_hub_is_recorded(tmp_path: Path, bare: list[str]) -> None:
    (tmp_path / "name").mkdir()  # stands for one
    write_rows(tmp_path / "name" / "train.jsonl", QUESTIONS)
    name = f"hf:{tmp_path}/name:train"
    main([*bare, "--data", json.dumps([{"file": name}])])
    record = read_record(tmp_path / "r")
    assert record["inputs"]["data0"] == {"path": name, "fingerprint": fingerprint(name)}
    assert record["result"]["mixture"][0]["rows"] == len(QUESTIONS)


def test_the_loss_falls_and_the_adapter_is_lora_alone(tmp_path: Path, flags: list[str]) -> None:
    main([*flags, "--train.max-steps", "12"])
    losses = [line["loss"] for line in read_metrics(tmp_path / "r" / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.2
    adapter = load_file(tmp_path / "r" / "adapter_model.safetensors")
    assert len(adapter) == 28
    assert all("lora_" in key for key in adapter)


def test_what_is_evaluated_is_not_learnt(tmp_path: Path, flags: list[str]) -> None:
    file = write_rows(tmp_path / "evaluation.jsonl", [{"question": QUESTIONS[3]["instruction"]}])
    main([*flags, "--mixture.evaluation", f'["{file}"]'])
    record = read_record(tmp_path / "r")
    found = {"occurs in an evaluation file": {"rows": 1, "lines": [4]}}
    assert record["result"]["mixture"][0]["dropped"] == found
    assert "evaluation0" in record["inputs"]


def test_new_rows_train_where_asked(tmp_path: Path, flags: list[str]) -> None:
    main([*flags, "--embeddings", "new"])
    assert any("trainable_tokens" in key for key in load_file(tmp_path / "r" / "adapter_model.safetensors"))


def test_the_mixture_is_recorded(tmp_path: Path, flags: list[str]) -> None:
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]
    other = write_rows(tmp_path / "chat.jsonl", [{"messages": messages}, {"messages": messages[:1]}])
    main([*flags, "--data", sources(other)])  # repeated, it adds to the mixture
    mixture = read_record(tmp_path / "r")["result"]["mixture"]
    assert [(row["format"], row["rows"], row["dropped"]) for row in mixture] == [
        ("alpaca", 12, {}),
        ("messages", 1, {"turns do not alternate": {"rows": 1, "lines": [2]}}),
    ]
    assert {"data0", "data1", "model"} == set(read_record(tmp_path / "r")["inputs"])


def test_only_replies_and_their_eos_are_learnt(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, extended_models: dict[str, Path], kind: str
) -> None:
    seen: list[Blocks] = []

    def look(run: Any, blocks: Blocks, _: Any) -> dict[str, Any]:
        seen.append(blocks)
        return {"steps": 0, "tokens": 0, "mean_loss": 0.0}

    monkeypatch.setattr(zhllama.train.sft, "train", look)
    main(flags)
    tokenizer = AutoTokenizer.from_pretrained(str(extended_models[kind]))
    learnt = [
        token
        for blocks in seen
        for i in range(len(blocks))
        for token in blocks[i]["labels"].tolist()
        if token != -100
    ]
    assert learnt.count(tokenizer.eos_token_id) == 12
    text = tokenizer.decode(learnt, skip_special_tokens=True)
    assert text.replace(" ", "").replace("\n", "") == "蓝色。" * 12


def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zhllama.train.callbacks import StepCallback

    flags = [*flags, "--train.save-steps", "2"]
    main([*flags, "--output", str(tmp_path / "whole")])
    log = StepCallback.on_log

    def press(self: StepCallback, args: Any, state: Any, control: Any, **rest: Any) -> None:
        log(self, args, state, control, **rest)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StepCallback, "on_log", press)
        with pytest.raises(SystemExit) as stop:
            main(flags)
    assert stop.value.code == 130
    main(flags)
    whole, broken = (
        [line | {"seconds": 0} for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "r")
    )
    assert broken == whole


def test_a_template_whose_marks_are_no_tokens(
    tmp_path: Path,
    extended_models: dict[str, Path],
    flags: list[str],
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    model = shutil.copytree(extended_models[kind], tmp_path / "m")
    (model / "chat_template.jinja").write_text(shipped("llama3"))
    problem = refused(capsys, flags, "--model", model)
    assert (
        f"--model {model}: the chat template writes <|start_header_id|>, which is no special token" in problem
    )


def test_the_adapter_of_pretraining_goes_on(
    tmp_path: Path, flags: list[str], run_dirs: dict[str, Path], kind: str
) -> None:
    main([*flags, "--adapter", str(run_dirs[kind]), "--embeddings", "new", "--lora.alpha", "128"])
    before, after = (load_file(run / "adapter_model.safetensors") for run in (run_dirs[kind], tmp_path / "r"))
    assert before.keys() == after.keys()
    main(["merge-adapter", "--adapter", str(tmp_path / "r"), "--output", str(tmp_path / "m")])
    assert read_record(tmp_path / "m")["result"]["difference"] < 1e-4


@pytest.mark.parametrize("body", ["prefix", "adaption"])
def test_a_prompt_is_tuned_on_conversations(tmp_path: Path, flags: list[str], body: str) -> None:
    main([*flags, "--body", body, "--train.neftune-noise-alpha", "5"])
    assert read_record(tmp_path / "r")["result"]["steps"] == 4


def test_a_prefix_does_not_answer_while_it_trains(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["--progress.prompts", '["问"]', "--body", "prefix"]
    assert "a prefix cannot answer while it trains" in refused(capsys, flags, *prompts)
    main([*flags, "--body", "prefix", "--prefix.length", "4"])
    assert "whether answers end was not looked at" in " ".join(capsys.readouterr().out.split())
    assert "endings" not in read_record(tmp_path / "r")["result"]


def test_a_model_without_template(
    tmp_path: Path,
    flags: list[str],
    extended_models: dict[str, Path],
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = shutil.copytree(extended_models[kind], tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    problem = refused(capsys, flags, "--model", model)
    assert f"--model {model}: no chat template inside; run merge-tokenizer --template NAME first" in problem


def test_a_missing_file(tmp_path: Path, bare: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    problem = refused(capsys, bare, "--data", sources(tmp_path / "none.jsonl"))
    assert f"data: no such file: {tmp_path / 'none.jsonl'}" in problem


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "not one good row"),
        ([{"question": "a"}], "no known format in keys ['question']"),
        ([{"instruction": "a", "output": ""}], "not one good row"),
        ([{"instruction": "a", "output": "很" * 300}], "longer than block_size 128"),
    ],
)
def test_data_that_teaches_nothing(
    tmp_path: Path, bare: list[str], capsys: pytest.CaptureFixture[str], rows: Rows, message: str
) -> None:
    data = sources(write_rows(tmp_path / "bad.jsonl", rows))
    assert message in refused(capsys, bare, "--data", data)
    assert not (tmp_path / "r").exists()


def test_blocks_above_the_models_positions(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "block_size 513: " in (problem := refused(capsys, flags, "--block-size", 513))
    assert "has 512 positions; use at most that" in problem


def test_new_rows_of_a_model_without_any(
    flags: list[str], model_dirs: dict[str, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = refused(capsys, flags, "--model", model_dirs[kind], "--embeddings", "new")
    assert "has no rows added by resize-embeddings; use --embeddings none or all" in problem


def test_a_finished_output(
    flags: list[str], run_dirs: dict[str, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = refused(capsys, flags, "--output", run_dirs[kind])
    assert "already holds a run of pretrain; choose another directory" in problem


def test_an_unfinished_run_of_another_command(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "run.json").write_text('{"command": "pretrain", "kind": "run", "inputs": {}}')
    assert "holds an unfinished run of pretrain" in refused(capsys, flags)


def test_no_deepspeed_file(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "train.deepspeed z.json: no such file" in refused(capsys, flags, "--train.deepspeed", "z.json")
