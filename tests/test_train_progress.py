"""What a run shows of itself: answers, exact losses by source, whether answers end, and every refusal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from zhllama.artifact import read_record
from zhllama.cli import main
from zhllama.config import UserError
from zhllama.conversation.mixture import build_mixture
from zhllama.conversation.settings import InstructionSource, MixtureSettings
from zhllama.model.adapter import LoraSettings, Parts
from zhllama.model.directory import ModelDirectory
from zhllama.model.trainable import load_trainable
from zhllama.pack.conversations import pack_conversations
from zhllama.talk.chat import ChatConfig, Speaker
from zhllama.train.callbacks import StepCallback
from zhllama.train.metrics import read_metrics
from zhllama.train.progress import ProgressSettings, speaking, token_loss

PROMPTS = ["天空是什么颜色？", "第3个问题：海是什么颜色？"]


def write(file: Path, colour: str) -> Path:
    rows = [
        {"instruction": f"第{number}个问题：{thing}边的{file.stem}是什么颜色？", "output": f"{colour}。"}
        for number, thing in enumerate("天海湖河水山云花草木石土")
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
    return file


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / "天空.jsonl", "蓝色"), write(tmp_path / "草地.jsonl", "绿色而且很软")]


@pytest.fixture
def tune(extended_models: dict[str, Path], toy: list[str], files: list[Path]) -> Callable[..., list[Any]]:
    """`zhllama sft` on two sources, looking every two of five steps; (output, *flags) to its looks."""
    data = json.dumps([{"file": str(file)} for file in files])
    settings = ["--block-size", "128", "--train.max-steps", "5", "--train.learning-rate", "1e-2"]
    settings += ["--train.per-device-train-batch-size", "2", "--train.save-steps", "2"]
    looks = ["--progress.every", "2", "--progress.prompts", json.dumps(PROMPTS, ensure_ascii=False)]
    looks += ["--progress.held-out", "2", "--progress.endings", "3", "--progress.max-new-tokens", "6"]
    paths = ["--model", str(extended_models["bytelevel"]), "--data", data]

    def run(output: Path, *flags: object) -> list[Any]:
        main(["sft", *paths, *settings, *looks, *toy, "--output", str(output), *map(str, flags)])
        text = (output / "progress.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    return run


def test_prompts_are_answered_before_between_and_after(
    tmp_path: Path, tune: Callable[..., list[Any]]
) -> None:
    looks = tune(tmp_path / "r")
    assert [look["step"] for look in looks] == [0, 2, 4, 5]
    for look in looks:
        assert [answer["prompt"] for answer in look["answers"]] == PROMPTS
        assert {answer["ended"] for answer in look["answers"]} <= {"eos", "length"}
    page = (tmp_path / "r" / "progress.html").read_text(encoding="utf-8")
    assert [f"step {step}" in page for step in (0, 2, 4, 5)] == [True] * 4
    assert all(prompt in page for prompt in PROMPTS)


def test_the_first_answers_are_those_of_the_model_itself(
    tmp_path: Path, tune: Callable[..., list[Any]], extended_models: dict[str, Path]
) -> None:
    first = tune(tmp_path / "r", "--train.max-steps", 1)[0]["answers"]
    config = ChatConfig(str(extended_models["bytelevel"]), max_new_tokens=6, repetition_penalty=1.0)
    speaker = Speaker(ModelDirectory.open(extended_models["bytelevel"]), None, config)
    for answer in first:
        text, ended = speaker.answer([{"role": "user", "content": answer["prompt"]}])
        assert (answer["answer"], answer["ended"]) == (text, "eos" if ended else "length")


def test_losses_by_source_stand_in_metrics_tensorboard_and_record(
    tmp_path: Path, tune: Callable[..., list[Any]]
) -> None:
    looks = tune(tmp_path / "r", "--train.report-to", "tensorboard")
    by_step = {look["step"]: look["held_out"] for look in looks}
    assert set(by_step[0]) == {"天空", "草地"}
    assert by_step[5]["天空"] < by_step[0]["天空"]
    lines = read_metrics(tmp_path / "r" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert {line["step"]: line["held_out"] for line in lines if "held_out" in line} == {
        2: by_step[2],
        4: by_step[4],
        5: by_step[5],
    }
    assert read_record(tmp_path / "r")["result"]["held_out"] == by_step[5]
    [folder] = {file.parent for file in (tmp_path / "r" / "logs").rglob("events*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    told = {event.step: event.value for event in events.Scalars("eval/草地_loss")}
    assert told == {step: pytest.approx(losses["草地"]) for step, losses in by_step.items()}


def test_a_loss_by_source_is_that_of_plain_transformers_row_by_row(
    files: list[Path], extended_models: dict[str, Path], kind: str
) -> None:
    directory = extended_models[kind]
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    mixture = build_mixture(
        [InstructionSource(str(file)) for file in files], MixtureSettings(), tokenizer, 128
    )
    samples = mixture.samples
    model = load_trainable(
        ModelDirectory.open(directory), Parts("new", LoraSettings(rank=4, alpha=8)), torch.float32
    )
    with speaking(model):
        found = token_loss(model, pack_conversations(samples, 128, tokenizer.eos_token_id))
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    nats, tokens = 0.0, 0
    for ids, learnt in samples:
        with torch.no_grad():
            spread = plain(torch.tensor([ids])).logits[0].log_softmax(-1)
        nats -= sum(float(spread[at - 1, ids[at]]) for at in range(1, len(ids)) if learnt[at])
        tokens += sum(learnt)
    assert found == pytest.approx(nats / tokens, abs=1e-5)


def test_looking_changes_nothing_that_is_trained(tmp_path: Path, tune: Callable[..., list[Any]]) -> None:
    tune(tmp_path / "often", "--progress.every", 1)
    tune(tmp_path / "seldom", "--progress.every", 0)
    often, seldom = (
        [line | {"seconds": 0, "held_out": 0} for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("often", "seldom")
    )
    assert often == seldom


def test_a_resumed_run_has_the_looks_of_a_whole_one(
    tmp_path: Path, tune: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(tmp_path / "whole")
    log = StepCallback.on_log

    def press(self: StepCallback, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        log(self, args, state, control, logs=logs, **rest)
        if state.global_step == 4 and "loss" in logs:  # after the look, before the checkpoint
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StepCallback, "on_log", press)
        with pytest.raises(SystemExit):
            tune(tmp_path / "broken")
    assert tune(tmp_path / "broken") == whole
    results = [read_record(tmp_path / name)["result"] for name in ("whole", "broken")]
    assert results[0]["held_out"] == results[1]["held_out"]
    assert results[0]["endings"] == results[1]["endings"]


LEARN = ["--train.max-steps", 60, "--embeddings", "all", "--body", "full"]
ALONE = ["--progress.held-out", 0, "--progress.every", 0]


def test_a_model_that_stops_is_no_warning(
    tmp_path: Path, tune: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    tune(tmp_path / "r", *LEARN, *ALONE, "--progress.max-new-tokens", 30)
    endings = read_record(tmp_path / "r")["result"]["endings"]
    assert endings == {"asked": 3, "ended": 3, "limit": 30, "rows": "training"}
    said = capsys.readouterr()
    assert "3 of 3 answers to training prompts ended within 30 tokens" in said.out
    assert "warning" not in said.err


def test_a_model_that_does_not_stop_is_told(
    tmp_path: Path, tune: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    tune(tmp_path / "r", *LEARN, "--progress.every", 0, "--progress.max-new-tokens", 2)
    endings = read_record(tmp_path / "r")["result"]["endings"]
    assert endings == {"asked": 3, "ended": 0, "limit": 2, "rows": "held-out"}
    line = "0 of 3 answers to held-out prompts ended within 2 tokens: the model has not learnt to stop"
    assert f"zhllama: warning: {line}" in capsys.readouterr().err
    page = (tmp_path / "r" / "progress.html").read_text(encoding="utf-8")
    assert "0 of 3 answers to held-out prompts ended" in page


def test_prompts_are_read_from_a_file_too(tmp_path: Path, tune: Callable[..., list[Any]]) -> None:
    file = tmp_path / "more.jsonl"
    file.write_text('{"instruction": "草是什么颜色？"}\n', encoding="utf-8")
    looks = tune(tmp_path / "r", "--progress.prompts-file", file, "--train.max-steps", 1)
    assert [answer["prompt"] for answer in looks[0]["answers"]] == [*PROMPTS, "草是什么颜色？"]


def test_without_anything_to_show_nothing_is_written(tmp_path: Path, tune: Callable[..., list[Any]]) -> None:
    nothing = [
        "--progress.every",
        0,
        "--progress.prompts",
        "[]",
        "--progress.held-out",
        0,
        "--progress.endings",
        0,
    ]
    with pytest.raises(FileNotFoundError):
        tune(tmp_path / "r", *nothing, "--train.max-steps", 1)
    result = read_record(tmp_path / "r")["result"]
    assert not {"held_out", "endings"} & set(result)
    assert not (tmp_path / "r" / "progress.html").exists()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"every": -1}, "progress.every -1: it must be at least 0"),
        ({"held_out": -1}, "progress.held_out -1: it must be at least 0"),
        ({"endings": -1}, "progress.endings -1: it must be at least 0"),
        ({"max_new_tokens": 0}, "progress.max_new_tokens 0: it must be at least 1"),
        (
            {"every": 9},
            "progress.every 9: there is nothing to look at; give progress.prompts or progress.held_out",
        ),
    ],
)
def test_settings_that_show_nothing(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as refused:
        ProgressSettings(**settings)
    assert str(refused.value) == line


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--progress.prompts-file", "none.jsonl"], "progress.prompts_file none.jsonl: no such file"),
        (["--progress.prompts", json.dumps(["长" * 600])], "the model 512 positions; shorten it"),
        (["--progress.held-out", 7], "has 12 different rows, and at most half may be kept from training"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_training(
    tmp_path: Path,
    tune: Callable[..., list[Any]],
    flags: list[Any],
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        tune(tmp_path / "r", *flags)
    assert stop.value.code == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
