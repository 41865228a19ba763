"""Runs that train prompts, start from an earlier adapter, or add noise: resumed, saved, used, refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_model_trainable import blocks_of
from test_train_trainer import assert_same_adapter, interrupt, told

from zhllama.artifact import read_record
from zhllama.cli import main
from zhllama.config import UserError
from zhllama.model.adapter import LoraSettings, Parts
from zhllama.model.directory import ModelDirectory
from zhllama.model.prompt_tuning import PrefixSettings
from zhllama.model.trainable import load_trainable, noise_like
from zhllama.train import choice as begin
from zhllama.train.choice import check_choice

Run = Any  # (output, *flags) -> None
FROZEN = ["--embeddings", "none", "--freeze-new-rows", "true"]
BODIES = {
    "prefix": ["--body", "prefix", "--prefix.length", 6, *FROZEN],
    "adaption": ["--body", "adaption", "--adaption.length", 4, *FROZEN],
    "dora": ["--lora.dora", "true"],
    "noise": ["--train.neftune-noise-alpha", 5],
}
PROMPTS = ["prefix", "adaption"]


def refused(capsys: pytest.CaptureFixture[str], start: Any) -> str:
    """The one line that a command ends with, exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        start()
    assert stop.value.code == 2
    problem = capsys.readouterr().err
    assert problem.count("\n") == 1
    return problem


@pytest.mark.parametrize("body", BODIES)
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solo: Run, body: str
) -> None:
    flags = BODIES[body]
    solo(tmp_path / "whole", *flags)
    interrupt(monkeypatch, 5, lambda: solo(tmp_path / "broken", *flags))
    solo(tmp_path / "broken", *flags)
    assert told(tmp_path / "broken") == told(tmp_path / "whole")
    assert_same_adapter(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize("body", PROMPTS)
def test_a_prompt_s_change_is_told(tmp_path: Path, solo: Run, body: str) -> None:
    solo(tmp_path / "r", *BODIES[body])
    lines = told(tmp_path / "r")
    changes = [line["norm_of_change"] for line in lines if "norm_of_change" in line]
    assert changes[-1]["prompts"] > changes[0]["prompts"] > 0
    assert changes[-1]["old rows"] == 0


@pytest.mark.parametrize("body", PROMPTS)
def test_a_prompt_is_evaluated_and_not_merged(
    tmp_path: Path, solo: Run, chinese_text: str, capsys: pytest.CaptureFixture[str], body: str
) -> None:
    solo(tmp_path / "r", *BODIES[body], "--train.learning-rate", "3e-2")
    (tmp_path / "news.txt").write_text(chinese_text[:2000])
    base = read_record(tmp_path / "r")["inputs"]["model"]["path"]
    text = ["--text", f"news={tmp_path / 'news.txt'}", "--block-size", "64"]
    main(["evaluate", "--adapter", str(tmp_path / "r"), *text, "--output", str(tmp_path / "with")])
    main(["evaluate", "--model", base, *text, "--output", str(tmp_path / "without")])
    learnt, before = (read_record(tmp_path / name)["result"]["news"] for name in ("with", "without"))
    assert learnt < before
    merge = ["merge-adapter", "--adapter", str(tmp_path / "r"), "--output", str(tmp_path / "m")]
    problem = refused(capsys, lambda: main(merge))
    assert (
        f"--adapter {tmp_path / 'r'}: a trained prompt ({body}) changes no weights and cannot be merged"
        in problem
    )
    assert "zhllama evaluate --adapter" in problem
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("body", PROMPTS)
def test_a_prompt_that_never_moved_is_refused(
    tmp_path: Path, solo: Run, capsys: pytest.CaptureFixture[str], body: str
) -> None:
    # The only step is a warm-up's first, at a rate of 0.
    flags = [*BODIES[body], "--train.max-steps", 1, "--train.warmup-steps", 1, "--train.save-strategy", "no"]
    assert "never moved; training had no effect" in refused(capsys, lambda: solo(tmp_path / "r", *flags))


def test_checkpoints_in_bfloat16_with_checkpointing_train_a_prefix(tmp_path: Path, solo: Run) -> None:
    flags = [*BODIES["prefix"], "--train.bf16", "true", "--train.activation-checkpointing", "true"]
    solo(tmp_path / "half", *flags)
    solo(tmp_path / "full", *BODIES["prefix"])
    for half, full in zip(told(tmp_path / "half"), told(tmp_path / "full"), strict=True):
        assert half["loss"] == pytest.approx(full["loss"], abs=0.03)


@pytest.mark.parametrize("body", ["lora", "dora", "full", *PROMPTS])
def test_an_adapter_goes_on_training(tmp_path: Path, solo: Run, body: str) -> None:
    flags = [*BODIES.get(body, ["--body", body]), "--train.learning-rate", 3e-2]
    solo(tmp_path / "one", *flags)
    solo(tmp_path / "two", *flags, "--adapter", tmp_path / "one")
    one, two = told(tmp_path / "one"), told(tmp_path / "two")
    assert two[0]["loss"] < one[0]["loss"]  # the same batch
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[key], after[key]) for key in before)
    assert set(read_record(tmp_path / "two")["inputs"]) == {"model", "tokens", "adapter"}


def test_a_continued_run_is_resumed_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solo: Run
) -> None:
    solo(tmp_path / "one")
    flags = ["--adapter", tmp_path / "one"]
    solo(tmp_path / "whole", *flags)
    interrupt(monkeypatch, 5, lambda: solo(tmp_path / "broken", *flags))
    solo(tmp_path / "broken", *flags)
    assert told(tmp_path / "broken") == told(tmp_path / "whole")
    assert_same_adapter(tmp_path / "broken", tmp_path / "whole")


def test_a_continued_adapter_is_merged_into_the_first_base_alone(
    tmp_path: Path, solo: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    solo(tmp_path / "one")
    solo(tmp_path / "two", "--adapter", tmp_path / "one")
    main(["merge-adapter", "--adapter", str(tmp_path / "two"), "--output", str(tmp_path / "m")])
    assert read_record(tmp_path / "m")["result"]["difference"] < 1e-4
    both = ["merge-adapter", "--adapter", str(tmp_path / "one"), "--adapter", str(tmp_path / "two")]
    problem = refused(capsys, lambda: main([*both, "--output", str(tmp_path / "n")]))
    assert f"--adapter {tmp_path / 'two'}: it continues {tmp_path / 'one'} and holds what that has" in problem


def test_an_adapter_that_did_not_go_on_is_refused(
    tmp_path: Path, solo: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    solo(tmp_path / "one")
    flags = ["--train.max-steps", 1, "--train.warmup-steps", 1, "--train.save-strategy", "no"]
    problem = refused(capsys, lambda: solo(tmp_path / "two", "--adapter", tmp_path / "one", *flags))
    assert f"is still that of {tmp_path / 'one'}; training had no effect" in problem


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--lora.rank", 8, "--lora.alpha", 3], "give --lora.rank 4 --lora.alpha 128"),
        (["--lora.rslora", "true"], "give --lora.rslora false"),
        (["--lora.targets", "[q_proj]"], "give --lora.targets [down_proj,gate_proj,k_proj,o_proj,q_proj"),
        (["--embeddings", "all"], "give --embeddings new"),
        (BODIES["prefix"], "give --embeddings new --body lora --lora.rank 4"),
    ],
)
def test_an_adapter_of_other_settings_names_the_flags_to_give(
    tmp_path: Path,
    solo: Run,
    run_dirs: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    flags: list[Any],
    told: str,
) -> None:
    earlier = run_dirs["bytelevel"]
    problem = refused(capsys, lambda: solo(tmp_path / "r", "--adapter", earlier, *flags))
    assert f"--adapter {earlier}: it was trained with other settings; {told}" in problem
    assert not (tmp_path / "r").exists()


def test_an_adapter_of_another_base(
    tmp_path: Path, solo: Run, run_dirs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    problem = refused(capsys, lambda: solo(tmp_path / "r", "--adapter", run_dirs["sentencepiece"]))
    assert f"the base of --adapter {run_dirs['sentencepiece']}" in problem


def test_an_adapter_that_is_none(tmp_path: Path, solo: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    problem = refused(capsys, lambda: solo(tmp_path / "r", "--adapter", tmp_path / "empty"))
    assert f"--adapter {tmp_path / 'empty'}: no finished adapter inside" in problem


def test_a_prefix_longer_than_blocks_or_positions(model_dirs: dict[str, Path]) -> None:
    base = ModelDirectory.open(model_dirs["bytelevel"])
    for length, block in ((65, 64), (30, 500)):
        long = Parts("none", PrefixSettings(length))
        with pytest.raises(
            UserError, match=rf"prefix.length {length}: blocks have {block} tokens and .* 512 pos"
        ):
            check_choice(long, base, None, block, zero3=False)
    check_choice(Parts("none", PrefixSettings()), base, None, 482, zero3=False)


def test_a_prefix_under_zero3(model_dirs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="body prefix: it starts from the whole model; use ZeRO-2"):
        base = ModelDirectory.open(model_dirs["bytelevel"])
        check_choice(Parts("none", PrefixSettings()), base, None, 64, zero3=True)


def test_four_bits_without_cuda_are_refused_before_anything_loads(
    tmp_path: Path, solo: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("zhllama.train.run.load_trainable", None)
    problem = refused(capsys, lambda: solo(tmp_path / "r", "--quantise", "true"))
    assert problem == (
        "zhllama pretrain: error: quantise: it needs a CUDA device, and there is none; leave it out to train LoRA\n"
    )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("parts", "zero3", "message"),
    [
        (
            Parts(full=True, quantise=True),
            False,
            "quantise: weights of 4 bits stay frozen; body full with embeddings none",
        ),
        (
            Parts("all", LoraSettings(), quantise=True),
            False,
            "quantise: weights of 4 bits stay frozen; body lora with embeddings all",
        ),
        (
            Parts("none", LoraSettings(), quantise=True),
            False,
            "quantise: bitsandbytes is not installed; pip install bitsandbytes",
        ),
        (
            Parts("none", LoraSettings(), quantise=True),
            True,
            "quantise: ZeRO-3 cannot share out weights of 4 bits",
        ),
    ],
)
def test_four_bits_where_they_cannot_be(
    model_dirs: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    parts: Parts,
    zero3: bool,
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(begin.importlib.util, "find_spec", lambda name: object() if zero3 else None)
    with pytest.raises(UserError, match=message):
        check_choice(parts, ModelDirectory.open(model_dirs["bytelevel"]), None, 64, zero3)


def test_a_quantised_base_trains_lora_and_new_rows(extended_models: dict[str, Path]) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = load_trainable(
        ModelDirectory.open(extended_models["bytelevel"]),
        Parts("new", LoraSettings(rank=4), quantise=True),
        torch.float32,
    )
    layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14
    optimiser = torch.optim.AdamW(model.trainable().values(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = model(**blocks_of(model, [20, 30]))["loss"]
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_a_run_on_four_bits_is_saved_and_merged_into_the_whole_base(
    tmp_path: Path, solo: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(begin, "_check_quantise", lambda *_: None)  # this machine may have no CUDA
    solo(tmp_path / "r", "--quantise", "true")
    lines = told(tmp_path / "r")
    assert lines[-1]["loss"] < lines[0]["loss"]
    main(["merge-adapter", "--adapter", str(tmp_path / "r"), "--output", str(tmp_path / "m")])


def test_noise_is_uniform_and_scaled_by_each_document_s_length() -> None:
    torch.manual_seed(0)
    positions = torch.cat([torch.arange(4), torch.arange(12), torch.arange(16)]).view(2, 16)
    embedded = torch.zeros(2, 16, 4096)
    noise = noise_like(embedded, positions, alpha=5.0)
    for part, length in ((noise[0, :4], 4), (noise[0, 4:], 12), (noise[1], 16)):
        most = 5.0 / (length * 4096) ** 0.5
        assert 0.99 * most < part.abs().max() <= most
        assert part.std() == pytest.approx(most / 3**0.5, rel=0.02)


@pytest.mark.parametrize("embeddings", ["new", "all", "none"])
def test_noise_is_added_in_training_alone(
    extended_models: dict[str, Path], kind: str, embeddings: Any
) -> None:
    model = load_trainable(
        ModelDirectory.open(extended_models[kind]), Parts(embeddings, LoraSettings(rank=4)), torch.float32
    )
    batch = blocks_of(model, [20, 30])
    plain = model.train()(**batch)["loss"].item()
    model.noise = 5.0
    assert model.train()(**batch)["loss"].item() != plain
    assert model.eval()(**batch)["loss"].item() == plain


def test_noise_changes_training_and_not_the_adapter_s_form(tmp_path: Path, solo: Run) -> None:
    solo(tmp_path / "plain")
    solo(tmp_path / "noisy", *BODIES["noise"])
    plain, noisy = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "noisy"))
    assert plain.keys() == noisy.keys()
    assert told(tmp_path / "plain")[0]["loss"] != told(tmp_path / "noisy")[0]["loss"]


def test_noise_of_no_size(tmp_path: Path, solo: Run, capsys: pytest.CaptureFixture[str]) -> None:
    problem = refused(capsys, lambda: solo(tmp_path / "r", "--train.neftune-noise-alpha", 0))
    assert "train.neftune_noise_alpha 0.0: it must be above 0, or null" in problem


@pytest.mark.parametrize("flag", ["body: prefix", "body: adaption", "quantise: true"])
def test_plan_counts_no_prompts_and_no_four_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    (tmp_path / "r.yaml").write_text(f"{flag}\nembeddings: none\n")
    words = ["plan", "--recipe", str(tmp_path / "r.yaml"), "--shape", "7b", "--output", str(tmp_path / "p")]
    assert "plan counts neither prompts nor weights of 4 bits" in refused(capsys, lambda: main(words))
