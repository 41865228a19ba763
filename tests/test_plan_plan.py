"""`zhllama plan`: what it refuses, prints and writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from zhllama.cli import main
from zhllama.config import UserError
from zhllama.plan.plan import GPUS, PlanConfig, find_gpu

SMALL = ["--shape", "smollm2-135m", "--block-size", "64", "--overhead", "0"]


def planned(folder: Path, *words: str) -> dict[str, Any]:
    """What report.json says."""
    main(["plan", *words, "--output", str(folder / "plan")])
    report: dict[str, Any] = json.loads((folder / "plan" / "report.json").read_text())
    return report


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        main(["plan", *words])
    return capsys.readouterr().err


def test_known_and_given_kinds_of_gpu() -> None:
    assert find_gpu("a100-80") == ("a100-80", GPUS["a100-80"])
    assert find_gpu("mine=80,10,0") == ("mine", (80, 10, 0))
    assert find_gpu("cpu")[1].memory > 0


@pytest.mark.parametrize(
    "text", ["a1000", "mine=80", "mine=80,x,1", "mine=0,1,1", "mine=1,0,1", "mine=1,1,-1"]
)
def test_an_unknown_gpu(text: str) -> None:
    with pytest.raises(UserError, match=f"--gpu {text}: neither rtx4090, a40,.* nor NAME=GIB,TFLOPS,DOLLARS"):
        find_gpu(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--model or --shape: give one of them"),
        ({"shape": ["7b"], "model": "m"}, "--model or --shape: give one of them"),
        ({"shape": ["7b"], "gpus": 0}, "--gpus 0: it must be at least 1"),
        ({"shape": ["7b"], "utilisation": 1.5}, r"--utilisation 1.5: it must be above 0 and at most 1"),
        ({"shape": ["7b"], "zero": [2, 4]}, "--zero 4: there are stages 0, 1, 2 and 3"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PlanConfig(**settings)


def test_an_unknown_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--shape 8b: none of smollm2-135m, " in refusal(capsys, "--shape=8b")


def test_new_rows_that_are_not_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert "embeddings new: say how many with --new-rows" in refusal(capsys, "--shape", "smollm2-135m")


def test_the_command_prints_and_writes_a_plan(
    tmp_path: Path, extended_models: dict[str, Path], token_dirs: dict[str, Path], kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model, tokens = extended_models[kind], token_dirs[kind]
    words = ["--model", str(model), "--tokens", str(tokens), "--gpus", "2", "--zero", "2", "--zero", "3"]
    report = planned(tmp_path, *words, "--gpu", "small=1,10,1", "--gpu", "cpu")
    shown = capsys.readouterr().out
    assert "GiB per GPU" in shown
    assert "2 GPUs x 8 blocks of 64" in shown  # the tokens' own block size, transformers' own batch
    assert list(report["plans"]) == [f"{model.name} ZeRO-2", f"{model.name} ZeRO-3"]
    second, third = report["plans"].values()
    assert sum(second["GiB per GPU"].values()) == second["peak"]["GiB per GPU"] > 2  # the overhead alone
    assert second["fits"] == {"small": False, "cpu": True}
    assert second["dollars"]["small"] == pytest.approx(2 * second["hours"]["small"])
    flops = sum(second["GFLOP per token"].values()) * 1e9 * report["tokens"]
    assert second["hours"]["small"] == pytest.approx(flops / (2 * 0.4 * 10e12) / 3600)
    for part in ("frozen weights", "trained weights"):
        assert third["GiB per GPU"][part] == second["GiB per GPU"][part] / 2 > 0
    assert (tmp_path / "plan" / "plan.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "trained"),
    [
        (["--rows", "50000"], 848),
        (["--new-rows", "848"], 848),
        (["--rows", "50000", "--new-rows", "100"], 100),
    ],
)
def test_rows_of_a_shape_say_how_many_are_new(tmp_path: Path, words: list[str], trained: int) -> None:
    (tmp_path / "r.yaml").write_text("body: none")
    report = planned(tmp_path, *SMALL, *words, "--recipe", str(tmp_path / "r.yaml"))
    sizes = report["plans"]["smollm2-135m"]["parameters"]
    assert sizes["trained"] == trained * 576
    assert sizes["all"] == 134_515_008 + 848 * 576


@pytest.mark.parametrize(
    ("recipe", "tokens"),
    [
        ("train: {num_train_epochs: 3}", 3 * 1000),
        (
            "train: {max_steps: 5, gradient_accumulation_steps: 2, per_device_train_batch_size: 3}",
            5 * 2 * 3 * 4 * 64,
        ),
    ],
)
def test_epochs_or_steps_say_how_many_tokens(tmp_path: Path, recipe: str, tokens: int) -> None:
    (tmp_path / "r.yaml").write_text(f"embeddings: none\n{recipe}\n")
    words = ["--recipe", str(tmp_path / "r.yaml"), "--tokens", "1000", "--gpus", "4", "--gpu", "a40"]
    assert planned(tmp_path, *SMALL, *words)["tokens"] == tokens


def test_offloading_is_shown_as_ram(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("embeddings: none\n")
    words = ["--recipe", str(tmp_path / "r.yaml"), "--zero", "2", "--offload", "optimizer", "--gpus", "1"]
    plan = planned(tmp_path, *SMALL, *words)["plans"]["smollm2-135m ZeRO-2"]
    assert plan["GiB per GPU"]["optimiser state"] == 0
    assert plan["peak"]["GiB of RAM per GPU"] * 2**30 >= 18 * plan["parameters"]["trained"]


def test_a_prompt_is_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text("embeddings: none\nbody: prefix\n")
    assert "neither prompts nor weights of 4 bits" in refusal(
        capsys, *SMALL, "--recipe", str(tmp_path / "r.yaml")
    )
