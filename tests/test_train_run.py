"""What a run needs before its Trainer: its record, its defaults, settings that cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

from zhllama.artifact import read_record
from zhllama.config import UserError, parse
from zhllama.train.pretrain import PretrainConfig

Run = Any  # (output, *flags) -> None


def test_the_record_names_inputs_by_hash_and_settings(
    run_dirs: dict[str, Path], extended_models: dict[str, Path], token_dirs: dict[str, Path], kind: str
) -> None:
    record = read_record(run_dirs[kind])
    for name, folder in (("model", extended_models[kind]), ("tokens", token_dirs[kind])):
        assert record["inputs"][name] == {
            "path": str(folder),
            "fingerprint": read_record(folder)["result"]["fingerprint"],
        }
    assert record["settings"]["train"]["learning_rate"] == 3e-3
    assert record["settings"]["lora"]["rank"] == 4
    json.dumps(record)


def test_defaults_that_the_field_lacks(tmp_path: Path) -> None:
    flags = ["--model", "m", "--tokens", "t", "--output", str(tmp_path / "r"), "--train.use-cpu", "true"]
    train = parse("pretrain", PretrainConfig, flags).train
    assert train.report_to == ["tensorboard"]
    assert (train.logging_steps, train.save_total_limit) == (1, 2)
    assert (train.learning_rate, train.lr_scheduler_type, train.warmup_steps) == (2e-4, "cosine", 0.05)
    assert train.output_dir == str(tmp_path / "r")


@pytest.mark.parametrize("group", ["train", "lora"])
@pytest.mark.parametrize("value", ["3", "[]", "[1]", "text", "true", "null"])
def test_a_group_that_is_no_mapping_is_refused(tmp_path: Path, group: str, value: str) -> None:
    (tmp_path / "r.yaml").write_text(f"model: n\n{group}: {value}\n")
    flags = ["--model", "m", "--tokens", "t", "--output", str(tmp_path / "r")]
    with pytest.raises(UserError, match=rf"^{group} .*: a group; set --{group}.NAME$"):
        parse("pretrain", PretrainConfig, ["--config", str(tmp_path / "r.yaml"), *flags])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train.deepspeed", "none.json"], "train.deepspeed none.json: no such file"),
        (["--train.num-train-epochs", "0", "--train.max-steps", "-1"], "one of them must be above 0"),
        (["--train.learning_rate", "-0.5"], "train.learning_rate -0.5: it must be above 0"),
        (
            ["--train.eval_strategy", "steps"],
            "train.eval_strategy steps: runs do not evaluate; use zhllama evaluate",
        ),
        (
            ["--train.report_to", "nowhere"],
            "train.report_to nowhere: its package is not installed; run pip install",
        ),
        (["--embedding-learning-rate", "0"], "embedding_learning_rate 0.0: it must be above 0"),
        (["--max-minutes", "-1"], "max_minutes -1.0: it must be above 0"),
        (["--lora.targets", "[wq]"], "lora.targets wq: no such linear layer; there are down_proj"),
        (["--lora.rank", "0"], "lora.rank 0: it must be at least 1"),
    ],
)
def test_settings_that_cannot_be(
    tmp_path: Path, solo: Run, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        solo(tmp_path / "r", *flags)
    assert stop.value.code == 2
    problem = capsys.readouterr().err
    assert message in problem
    assert problem.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_deepspeed_on_cpu_needs_a_compiler(
    tmp_path: Path, solo: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit) as stop:
        solo(
            tmp_path / "r", "--train.deepspeed", str(Path(__file__).parents[1] / "ds_configs" / "zero2.json")
        )
    assert stop.value.code == 2
    assert "there is no C++ compiler; install g++" in capsys.readouterr().err
