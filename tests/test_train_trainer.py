"""Training in process: the loss, its units, batches, resuming, budgets, runs that go wrong."""

import math
import shutil
import signal
import subprocess
import sys
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tokenizers import Tokenizer

import zhllama.train.checkpoint
import zhllama.train.metrics
import zhllama.train.trainer
from zhllama.artifact import read_record
from zhllama.config import UserError
from zhllama.model.trainable import TrainableModel
from zhllama.pack.blocks import Blocks
from zhllama.pack.documents import PackConfig, pack
from zhllama.train.callbacks import StepCallback
from zhllama.train.checkpoint import SEAL, checkpoints, last_checkpoint
from zhllama.train.metrics import read_metrics
from zhllama.train.trainer import BlockTrainer

Run = Any  # (output, *flags) -> None


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, start: Any) -> None:
    """Press Ctrl-C after a step is logged."""
    log = StepCallback.on_log

    def press(self: StepCallback, args: Any, state: Any, control: Any, **rest: Any) -> None:
        log(self, args, state, control, **rest)
        if state.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StepCallback, "on_log", press)
        with pytest.raises(SystemExit) as stop:
            start()
    assert stop.value.code == 130


def told(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the time."""
    lines = read_metrics(output / "metrics.jsonl")
    for line in lines:
        del line["seconds"]
    return lines


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_same_adapter(left: Path, right: Path) -> None:
    a, b = adapter(left), adapter(right)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_loss_falls_from_that_of_the_base(run_dirs: dict[str, Path], kind: str) -> None:
    losses = [line["loss"] for line in told(run_dirs[kind])]
    rows = {"sentencepiece": 2048, "bytelevel": 2112}[kind]
    assert abs(losses[0] - math.log(rows)) < 0.05
    assert sum(losses[-3:]) / 3 < losses[0] - 0.1


def test_bits_per_byte_of_a_whole_epoch_by_hand(
    tmp_path: Path, run: Run, extended_models: dict[str, Path], token_dirs: dict[str, Path], kind: str
) -> None:
    blocks = Blocks.open(token_dirs[kind])
    run(tmp_path / "r", "--train.max-steps", 1, "--train.per-device-train-batch-size", len(blocks))
    learnt = [blocks[i]["labels"][1:] for i in range(len(blocks))]
    ids = [int(token) for labels in learnt for token in labels if token != -100]
    if kind == "bytelevel":  # one character of a token's name is one byte
        fast = Tokenizer.from_file(str(extended_models[kind] / "tokenizer.json"))
        special = set(fast.get_added_tokens_decoder())
        size = sum(len(str(fast.id_to_token(token))) for token in ids if token not in special)
    else:
        model = sentencepiece.SentencePieceProcessor(
            model_file=str(extended_models[kind] / "tokenizer.model")
        )
        text = [token for token in ids if not model.is_control(token)]
        size = sum(
            1 if model.is_byte(token) else len(model.id_to_piece(token).replace("▁", " ").encode())
            for token in text
        )
    [line] = told(tmp_path / "r")
    assert line["tokens"] == len(ids)
    assert line["bits_per_byte"] == pytest.approx(line["loss"] * len(ids) / size / math.log(2), abs=1e-5)


def test_accumulating_gradients_equals_a_larger_batch(tmp_path: Path, run: Run) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run(one, "--train.per-device-train-batch-size", 4)
    run(two, "--train.per-device-train-batch-size", 2, "--train.gradient-accumulation-steps", 2)
    for a, b in zip(told(one), told(two), strict=True):
        norms = [line.pop("grad_norm") for line in (a, b)]
        assert norms[0] == pytest.approx(norms[1], rel=0.02)
        changes = [line.pop("norm_of_change", {}) for line in (a, b)]
        assert changes[0] == pytest.approx(changes[1], rel=0.02)
        assert a == pytest.approx(b, rel=1e-4)
    a, b = adapter(one), adapter(two)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-2, atol=1e-4)


def test_logging_less_often_averages(tmp_path: Path, solo: Run) -> None:
    solo(tmp_path / "each")
    solo(tmp_path / "fourth", "--train.logging-steps", 4)
    each, fourth = told(tmp_path / "each"), told(tmp_path / "fourth")
    assert [line["step"] for line in fourth] == [4, 8]
    for place, line in enumerate(fourth):
        part = each[4 * place : 4 * place + 4]
        assert line["loss"] == pytest.approx(sum(one["loss"] for one in part) / 4, rel=1e-5)
        assert line["tokens"] == part[-1]["tokens"]
        assert min(one["bits_per_byte"] for one in part) < line["bits_per_byte"]
        assert line["bits_per_byte"] < max(one["bits_per_byte"] for one in part)


def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    dropout = ["--lora.dropout", 0.2]  # so that the random numbers must be restored too
    run(tmp_path / "whole", *dropout)
    interrupt(monkeypatch, 8, lambda: run(tmp_path / "broken", *dropout))
    assert len(told(tmp_path / "broken")) == 8
    assert "result" not in read_record(tmp_path / "broken")
    run(tmp_path / "broken", *dropout)
    assert told(tmp_path / "broken") == told(tmp_path / "whole")
    assert_same_adapter(tmp_path / "broken", tmp_path / "whole")
    whole, broken = (read_record(tmp_path / name)["result"] for name in ("whole", "broken"))
    assert broken == whole


def test_resuming_in_a_later_epoch_goes_on_with_its_order(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    solo: Run,
    extended_models: dict[str, Path],
    corpus_file: Path,
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(corpus_file.read_text().splitlines(keepends=True)[:4]))
    pack(PackConfig([str(few)], str(extended_models["bytelevel"]), str(tmp_path / "t"), block_size=64))
    batch = -(-len(Blocks.open(tmp_path / "t")) // 3)  # three steps an epoch
    flags = ["--tokens", tmp_path / "t", "--train.per-device-train-batch-size", batch]
    solo(tmp_path / "whole", *flags, "--train.save-steps", 4)
    interrupt(monkeypatch, 5, lambda: solo(tmp_path / "broken", *flags, "--train.save-steps", 4))
    solo(tmp_path / "broken", *flags, "--train.save-steps", 4)
    assert told(tmp_path / "broken") == told(tmp_path / "whole")


def test_interrupted_before_a_checkpoint_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solo: Run
) -> None:
    solo(tmp_path / "whole")
    interrupt(monkeypatch, 2, lambda: solo(tmp_path / "broken"))
    solo(tmp_path / "broken")
    assert told(tmp_path / "broken") == told(tmp_path / "whole")


def test_a_checkpoint_cut_short_is_not_resumed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solo: Run
) -> None:
    solo(tmp_path / "whole")
    interrupt(monkeypatch, 5, lambda: solo(tmp_path / "broken"))
    cut = shutil.copytree(tmp_path / "broken" / "checkpoint-3", tmp_path / "broken" / "checkpoint-5")
    (cut / SEAL).unlink()
    solo(tmp_path / "broken")
    assert told(tmp_path / "broken") == told(tmp_path / "whole")


def test_without_the_optimizer_s_state_weights_and_schedule_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solo: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    solo(tmp_path / "whole")
    interrupt(monkeypatch, 5, lambda: solo(tmp_path / "broken"))
    (tmp_path / "broken" / "checkpoint-3" / "optimizer.pt").unlink()
    capsys.readouterr()
    solo(tmp_path / "broken")
    assert "the optimiser's averages start afresh" in capsys.readouterr().out
    whole, broken = told(tmp_path / "whole"), told(tmp_path / "broken")
    assert broken[3]["loss"] == whole[3]["loss"]  # the weights
    assert broken[4]["loss"] != whole[4]["loss"]  # the averages
    for name in ("step", "tokens", "learning_rate"):
        assert [line[name] for line in broken] == [line[name] for line in whole]


def test_a_refusal_late_in_a_run_keeps_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solo: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    check = zhllama.train.trainer.check_saved

    def refuse(folder: Path, *rest: Any, **more: Any) -> None:
        check(folder, *rest, **more)
        if folder.name == "checkpoint-6":
            raise UserError("the save went wrong")

    with monkeypatch.context() as patch:
        patch.setattr(zhllama.train.trainer, "check_saved", refuse)
        with pytest.raises(SystemExit) as stop:
            solo(tmp_path / "r")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "zhllama pretrain: error: the save went wrong\n"
    solo(tmp_path / "r")
    assert "resuming from" in capsys.readouterr().out
    assert read_record(tmp_path / "r")["result"]["steps"] == 8


def test_an_unmoved_adapter_is_refused(tmp_path: Path, solo: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        # The only step is a warm-up's first, at a rate of 0.
        solo(tmp_path / "r", "--train.max-steps", 1, "--train.warmup-steps", 1, "--train.save-strategy", "no")
    assert stop.value.code == 2
    assert "never moved from zero; training had no effect" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


class Clock:
    """Half a second a look: a step looks twice, when it ends and when it is logged."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.5
        return self.now


def test_a_budget_of_minutes_plans_the_steps_and_the_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solo: Run
) -> None:
    monkeypatch.setattr(zhllama.train.callbacks, "time", SimpleNamespace(monotonic=Clock().monotonic))
    solo(tmp_path / "r", "--train.max-steps", 100, "--max-minutes", 0.5)
    lines = told(tmp_path / "r")
    assert len(lines) == 31  # thirty seconds after the first step, which is not counted
    rates = [line["learning_rate"] for line in lines]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 0.01 * 3e-3


def test_a_budget_longer_than_the_run_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solo: Run
) -> None:
    monkeypatch.setattr(zhllama.train.callbacks, "time", SimpleNamespace(monotonic=Clock().monotonic))
    solo(tmp_path / "r", "--max-minutes", 0.5)
    assert read_record(tmp_path / "r")["result"]["steps"] == 8


def test_a_budget_used_up_before_a_resume_stops_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solo: Run
) -> None:
    monkeypatch.setattr(zhllama.train.callbacks, "time", SimpleNamespace(monotonic=Clock().monotonic))
    flags = ["--train.max-steps", 100, "--max-minutes", 0.05, "--train.save-steps", 2]
    interrupt(monkeypatch, 3, lambda: solo(tmp_path / "r", *flags))
    solo(tmp_path / "r", *flags)
    assert 3 <= len(told(tmp_path / "r")) <= 5


@pytest.mark.parametrize(("rate", "expected"), [("1e-4", 1e-4), (None, 3e-3)])
def test_rows_have_a_group_and_a_rate_of_their_own(
    tmp_path: Path, run: Run, kind: str, rate: str | None, expected: float
) -> None:
    flags = ["--train.weight-decay", 0.1, "--train.lr-scheduler-type", "constant", "--train.max-steps", 2]
    run(tmp_path / "r", *flags, *(["--embedding-learning-rate", rate] if rate else []))
    state = torch.load(tmp_path / "r" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    lora, rows = state["param_groups"]
    assert (lora["lr"], lora["weight_decay"], len(lora["params"])) == (3e-3, 0.1, 28)
    assert (rows["lr"], rows["weight_decay"]) == (expected, 0.0)
    assert len(rows["params"]) == {"sentencepiece": 2, "bytelevel": 1}[kind]


@pytest.mark.parametrize(("choice", "groups"), [("all", 2), ("none", 1)])
def test_other_choices_of_embeddings_train(tmp_path: Path, run: Run, choice: str, groups: int) -> None:
    freeze = ["--freeze-new-rows", "true"] if choice == "none" else []
    run(tmp_path / "r", "--embeddings", choice, "--train.max-steps", 2, *freeze)
    state = torch.load(tmp_path / "r" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert len(state["param_groups"]) == groups
    assert not any("trainable_tokens" in key for key in adapter(tmp_path / "r"))
    assert ("base_model.model.lm_head.weight" in adapter(tmp_path / "r")) == (choice == "all")


def test_checkpointing_activations_gives_the_same_losses(tmp_path: Path, solo: Run) -> None:
    solo(tmp_path / "plain")
    solo(tmp_path / "lean", "--train.activation-checkpointing", "true")
    assert told(tmp_path / "lean") == told(tmp_path / "plain")


def test_bfloat16_trains_close_to_float32(tmp_path: Path, solo: Run) -> None:
    solo(tmp_path / "full")
    solo(tmp_path / "half", "--train.bf16", "true")
    for full, half in zip(told(tmp_path / "full"), told(tmp_path / "half"), strict=True):
        assert half["loss"] == pytest.approx(full["loss"], abs=0.03)
        assert half["loss"] != full["loss"]


def test_what_trains_is_said(tmp_path: Path, solo: Run, capsys: pytest.CaptureFixture[str]) -> None:
    solo(tmp_path / "r", "--train.max-steps", 1)
    sizes = {key: tensor.numel() for key, tensor in adapter(tmp_path / "r").items()}
    lora = sum(size for key, size in sizes.items() if "lora_" in key)
    rows = sum(sizes.values()) - lora
    assert f"training new rows {rows:,}, LoRA {lora:,} of " in capsys.readouterr().out


def test_a_finished_run_has_its_adapter_its_curve_and_the_last_two_checkpoints(
    run_dirs: dict[str, Path], kind: str
) -> None:
    names = {file.name for file in run_dirs[kind].iterdir()}
    expected = {"adapter_config.json", "adapter_model.safetensors", "loss.png", "metrics.jsonl", "run.json"}
    assert names == expected | {"checkpoint-10", "checkpoint-12"}
    result = read_record(run_dirs[kind])["result"]
    lines = told(run_dirs[kind])
    assert (result["steps"], result["tokens"]) == (12, lines[-1]["tokens"])
    assert result["mean_loss"] == pytest.approx(sum(line["loss"] for line in lines) / 12)


def test_the_norm_of_the_change_is_told_after_the_first_step_and_at_each_save(
    run_dirs: dict[str, Path], kind: str
) -> None:
    lines = {line["step"]: line for line in told(run_dirs[kind])}
    changes = {step: line["norm_of_change"] for step, line in lines.items() if "norm_of_change" in line}
    assert list(changes) == [1, 5, 10, 12]
    for name in ("new rows", "LoRA"):
        norms = [change[name] for change in changes.values()]
        assert norms == sorted(norms)
        assert norms[0] > 0
    assert all(change["old rows"] == 0 for change in changes.values())


def refused(start: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a run ends with, exit code 2."""
    with pytest.raises(SystemExit) as stop:
        start()
    assert stop.value.code == 2
    problem = capsys.readouterr().err
    assert problem.count("\n") == 1
    return problem


def test_a_step_that_moves_nothing(tmp_path: Path, solo: Run, capsys: pytest.CaptureFixture[str]) -> None:
    problem = refused(lambda: solo(tmp_path / "r", "--train.learning-rate", "1e-60"), capsys)
    assert "step 1 moved nothing; raise train.learning_rate" in problem


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solo: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = TrainableModel.forward
    calls: list[dict[str, torch.Tensor]] = []

    @wraps(forward)
    def poisoned(self: TrainableModel, **batch: Any) -> dict[str, torch.Tensor]:
        calls.append(batch)
        return {"loss": forward(self, **batch)["loss"] * (math.nan if len(calls) == 5 else 1)}

    with monkeypatch.context() as patch:
        patch.setattr(TrainableModel, "forward", poisoned)
        problem = refused(lambda: solo(tmp_path / "r"), capsys)
    file = tmp_path / "r" / "bad-batch-rank0.safetensors"
    assert f"step 5: the loss is not a finite number; the batch is in {file}; lower train.learn" in problem
    kept = load_file(file)
    assert torch.equal(kept["input_ids"], calls[-1]["input_ids"])
    assert kept.keys() == {"input_ids", "position_ids", "labels"}
    assert [line["step"] for line in told(tmp_path / "r")] == [1, 2, 3, 4]
    solo(tmp_path / "r")
    solo(tmp_path / "whole")
    assert told(tmp_path / "r") == told(tmp_path / "whole")


def test_a_gradient_that_is_no_number_stops_the_run_before_its_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solo: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    norm = BlockTrainer._get_grad_norm

    def endless(self: BlockTrainer, *rest: Any, **more: Any) -> Any:
        return math.inf if self.state.global_step == 5 else norm(self, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(BlockTrainer, "_get_grad_norm", endless)
        problem = refused(lambda: solo(tmp_path / "r"), capsys)
    assert "step 6: the gradient's norm is inf; lower train.learning_rate" in problem
    assert last_checkpoint(tmp_path / "r") == tmp_path / "r" / "checkpoint-3"


def test_float16_that_overflows_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solo: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda self: True))
    problem = refused(lambda: solo(tmp_path / "r", "--train.max-steps", 40), capsys)
    assert "step 20: gradients overflow float16 20 steps in a row; use --train.bf16 true" in problem


def test_a_full_disk_stops_a_run_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solo: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zhllama.train.checkpoint, "STATE_BYTES", 10**12)
    problem = refused(lambda: solo(tmp_path / "r"), capsys)
    assert "GB free, and a checkpoint may take" in problem
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


KILLED = """
import os, signal, sys
import torch, zhllama.train.trainer
from zhllama.train.checkpoint import remove_others, seal
from zhllama.cli import main

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def half(state, file, *_, **__):
    with open(file, "wb") as stream:
        stream.write(b"half")
    die()

calls = 0
def counted(*given, **named):
    global calls
    calls += 1
    return deadly(*given, **named) if calls == number else original(*given, **named)

point = sys.argv.pop(1)
# All in the second checkpoint: torch.save writes three files for each, remove_others also runs at the start.
owner, name, number, deadly = {
    "in the optimiser's file": (torch, "save", 4, half),
    "before the seal": (zhllama.train.trainer, "seal", 2, die),
    "before old ones go": (zhllama.train.trainer, "remove_others", 3, die),
}[point]
original = getattr(owner, name)
setattr(owner, name, counted)
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", ["in the optimiser's file", "before the seal", "before old ones go"])
def test_killed_in_the_middle_of_a_save(tmp_path: Path, solo: Run, words: list[str], point: str) -> None:
    flags = [*words, "--train.save-total-limit", "1", "--output", str(tmp_path / "r")]
    command = [sys.executable, "-c", KILLED, point, "pretrain", *flags]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert last_checkpoint(tmp_path / "r") is not None
    solo(tmp_path / "r", "--train.save-total-limit", 1)
    solo(tmp_path / "whole", "--train.save-total-limit", 1)
    assert told(tmp_path / "r") == told(tmp_path / "whole")
    assert [folder.name for folder in checkpoints(tmp_path / "r")] == ["checkpoint-8"]
