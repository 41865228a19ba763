"""The memory plan: parameters as in real models, bytes as tensors hold them, DeepSpeed's and the paper's figures."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from zhllama.cli import main
from zhllama.config import UserError
from zhllama.model.adapter import Embeddings, LoraSettings, Parts
from zhllama.model.directory import ModelDirectory
from zhllama.model.fast import install
from zhllama.model.operations import flops_of
from zhllama.model.trainable import TrainableModel, load_trainable
from zhllama.plan.cost import GPUS, find_gpu, flops_per_token, hours
from zhllama.plan.memory import Job, _moments, count, held_rows, known_shape, memory, shape_config, states
from zhllama.plan.plan import PlanConfig, read_recipes
from zhllama.plan.sharding import Zero, read_zero, with_stage
from zhllama.plan.trace import LiveBytes

ROOT = Path(__file__).parents[1]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
LORA = LoraSettings(rank=4, alpha=8)
BATCH, BLOCK = 2, 300


def job_for(directory: Path, embeddings: Embeddings = "new", **changes: Any) -> Job:
    new = ModelDirectory.open(directory).new_rows if embeddings == "new" else 0
    config = shape_config(ModelDirectory.open(directory).config)
    base = Job(config, new, embeddings, lora=LORA, bf16=False, batch=BATCH, block=BLOCK, cpu=True)
    return replace(base, **changes)


@pytest.mark.parametrize("embeddings", ["new", "all", "none"])
def test_counts_are_those_of_the_real_model(
    extended_models: dict[str, Path], kind: str, embeddings: Embeddings
) -> None:
    job = job_for(extended_models[kind], embeddings)
    counts = count(job)
    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts(embeddings, LORA), torch.float32)
    trainable = {name: parameter.numel() for name, parameter in model.trainable().items()}
    assert counts.trained == sum(trainable.values())
    assert counts.adapters == sum(size for name, size in trainable.items() if "lora_" in name)
    assert counts.total + held_rows(job) == sum(p.numel() for p in model.parameters())


def test_full_body_and_dora_counts(extended_models: dict[str, Path], kind: str) -> None:
    directory = extended_models[kind]
    model = load_trainable(ModelDirectory.open(directory), Parts(), torch.float32)
    ends = sum(p.numel() for name, p in model.named_parameters() if "embed" in name or "lm_head" in name)
    whole = sum(p.numel() for p in model.parameters())
    full = count(job_for(directory, "all", body="full"))
    assert (full.trained, full.total, full.adapters) == (whole, whole, 0)
    assert count(job_for(directory, "none", body="full")).trained == whole - ends
    assert count(job_for(directory, "none", body="none")).trained == 0
    plain, dora = (
        count(job_for(directory, "none", lora=replace(LORA, dora=dora))).adapters for dora in (False, True)
    )
    widths = [m.out_features for n, m in model.base.named_modules() if n.rpartition(".")[2] in ALL]
    assert dora - plain == sum(widths)


def live_bytes(model: TrainableModel, job: Job) -> LiveBytes:
    """Bytes of tensors made while a real model runs forward and backward."""
    ids = torch.randint(0, job.config.vocab_size, (job.batch, job.block))
    positions = torch.arange(job.block // 2).repeat(job.batch, 2)
    with LiveBytes() as live:
        model(ids, positions, ids)["loss"].backward()
    return live


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("embeddings", ["new", "all"])
def test_peak_is_that_of_the_real_models_tensors(
    extended_models: dict[str, Path], kind: str, embeddings: Embeddings, checkpointing: bool
) -> None:
    job = job_for(extended_models[kind], embeddings, checkpointing=checkpointing)
    model = load_trainable(
        ModelDirectory.open(extended_models[kind]), Parts(embeddings, LORA), torch.float32
    ).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    counts = count(job)
    fixed = ("frozen weights", "trained weights", "optimiser state")
    moments = {
        name: sum(size for part, size in parts.items() if part not in fixed)
        for name, parts in _moments(job, counts).items()
    }
    assert live_bytes(model, job).peak == pytest.approx(max(moments.values()), rel=0.05)


def test_shards_divide_what_each_stage_divides() -> None:
    job = Job(shape_config(known_shape("7b")), gpus=8)
    trained, frozen = 800, 8000
    expected = {  # frozen, trained, masters, Adam, gradients at the step: bytes of one of eight ranks
        0: (16000, 3200, 0, 6400, 3200),
        1: (16000, 1600, 400, 800, 1600 + 400),
        2: (16000, 1600, 400, 800, 200 + 400),
        3: (2000, 200, 400, 800, 200 + 400),
    }
    for stage, sizes in expected.items():
        assert tuple(states(trained, frozen, replace(job, zero=Zero(stage))).values()) == sizes


def test_offloading_moves_states_to_ram() -> None:
    job = Job(shape_config(known_shape("7b")), gpus=8, zero=Zero(3, True, True))
    assert set(states(800, 8000, job).values()) == {0.0}
    half = states(800, 8000, replace(job, zero=with_stage(job.zero, 2)))
    assert half == {
        "frozen weights": 16000, "trained weights": 1600, "master copies": 0, "optimiser state": 0, "gradients": 0
    }  # fmt: skip


@pytest.mark.parametrize("shape", ["7b", "13b", "65b"])
@pytest.mark.parametrize("gpus", [8, 16])
def test_states_are_those_of_deepspeeds_estimators(shape: str, gpus: int) -> None:
    config = shape_config(known_shape(shape))
    job = Job(config, embeddings="all", body="full", gpus=gpus, block=128, zero=Zero(2))
    total = count(job).total
    theirs = estimate_zero2_model_states_mem_needs(total, gpus, cpu_offload=False)[1]
    assert sum(states(total, 0, job).values()) == pytest.approx(theirs, rel=1e-6)
    _, third, layer = estimate_zero3_model_states_mem_needs(total, 10**6, gpus, cpu_offload=False)
    ours = sum(states(total, 0, replace(job, zero=Zero(3))).values())
    share = total / gpus
    # They leave out the reduced gradients, and make float32 gradients of the whole share, not of a billion at a time.
    assert ours == pytest.approx(third - layer + 2 * share - 4 * max(0, share - 10**9), rel=1e-6)


# Chinese-LLaMA (arXiv 2304.08177): trained share of all parameters in percent, adapters among them. Its second stage
# comes out with LoRA on attention, its instruction tuning with LoRA on all seven layers and a pad row more.
@pytest.mark.parametrize(
    ("shape", "rows", "targets", "published"),
    [("7b", 49_953, ATTENTION, 6.06), ("7b", 49_954, ALL, 6.22)],
)
def test_trained_share_is_the_papers(shape: str, rows: int, targets: list[str], published: float) -> None:
    config = shape_config(known_shape(shape), rows)
    counts = count(Job(config, embeddings="all", lora=LoraSettings(rank=8, targets=targets), block=128))
    assert round(100 * counts.trained / counts.total, 2) == published


def test_first_stage_of_the_paper_trains_one_end() -> None:
    counts = count(Job(shape_config(known_shape("7b"), 49_953), embeddings="all", body="none", block=128))
    assert round(100 * counts.input_rows / counts.total, 2) == 2.97


@pytest.mark.parametrize(
    ("shape", "total"),
    [("7b", 6_738_415_616), ("13b", 13_015_864_320), ("llama3-8b", 8_030_261_248), ("65b", 65_285_660_672)],
)
def test_known_shapes_have_their_published_size(shape: str, total: int) -> None:
    assert (
        count(Job(shape_config(known_shape(shape)), embeddings="none", body="none", block=128)).total == total
    )


def test_checkpointing_trades_activations_for_operations() -> None:
    plain = Job(shape_config(known_shape("7b")), 18_048, batch=4, block=1024)
    frugal = replace(plain, checkpointing=True)
    (_, before), (_, after) = (memory(job, count(job)) for job in (plain, frugal))
    assert after["activations kept"] + after["one layer at work"] < before["activations kept"] / 6.5
    cheap, dear = (flops_per_token(job, count(job)) for job in (plain, frugal))
    assert cheap["recomputation"] == 0 < dear["recomputation"] == dear["forward"] + dear["attention"] / 3
    assert {**dear, "recomputation": 0} == cheap


@pytest.mark.parametrize("body", ["lora", "full"])
def test_operations_are_those_of_the_products(extended_models: dict[str, Path], kind: str, body: Any) -> None:
    job = job_for(extended_models[kind], "none", body=body)
    parts, counts = flops_per_token(job, count(job)), count(job)
    matrices = counts.layers.matrices * job.config.num_hidden_layers
    adapters, head = counts.adapters, job.config.vocab_size * job.config.hidden_size
    assert parts["forward"] == 2 * (matrices + adapters)
    assert parts["backward"] == 2 * (matrices + adapters) + 2 * (adapters if body == "lora" else matrices)
    assert parts["head and loss"] == 4 * head


@pytest.mark.parametrize(("embeddings", "full"), [("new", False), ("all", False), ("none", True)])
def test_operations_of_a_model_are_those_planned(
    extended_models: dict[str, Path], kind: str, embeddings: Embeddings, full: bool
) -> None:
    directory = extended_models[kind]
    model = load_trainable(
        ModelDirectory.open(directory), Parts(embeddings, None if full else LORA, full=full), torch.float32
    )
    job = job_for(directory, embeddings, body="full" if full else "lora")
    assert flops_of(model, BLOCK) == sum(flops_per_token(job, count(job)).values())


def test_operations_forward_are_those_that_torch_counts(
    extended_models: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    job = job_for(extended_models[kind], "none")
    # Products added in place are not counted.
    monkeypatch.setattr(install, "recompute_activations", lambda model, kind: None)
    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts("none", LORA), torch.float32)
    model.base.set_attn_implementation("eager")  # its products are counted, those of the fused kernel are not
    ids = torch.zeros(BATCH, BLOCK, dtype=torch.long)
    positions = torch.arange(BLOCK).repeat(BATCH, 1)
    with FlopCounterMode(display=False) as counter:
        model.base.get_decoder()(input_ids=ids, position_ids=positions, use_cache=False)
    parts = flops_per_token(job, count(job))
    expected = (parts["forward"] + parts["attention"] / 3) * BATCH * BLOCK
    rotary = job.block * job.config.head_dim  # angles by a product, once for each sequence
    assert counter.get_total_flops() == pytest.approx(expected, rel=rotary / expected * BATCH + 1e-9)


def test_hours_and_kinds() -> None:
    assert hours(3600e12, find_gpu("mine=80,10,2"), 2, 0.5) == pytest.approx(0.1)
    assert find_gpu("a100-80") is GPUS["a100-80"]
    assert find_gpu("cpu").memory > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a1000", "--gpu a1000: not a known kind; there are rtx4090, a40"),
        ("mine=80", "--gpu mine=80: write it as NAME=MEMORY,TFLOPS,PRICE"),
        ("mine=80,x,1", "write it as NAME=MEMORY,TFLOPS,PRICE"),
        ("mine=0,1,1", "memory and TFLOP/s must be above 0"),
    ],
)
def test_an_unknown_gpu(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_gpu(text)


def test_an_unknown_shape_or_model_type() -> None:
    with pytest.raises(
        UserError, match=r"--shape 8b: not a known shape; there are smollm2-135m, .*llama3-8b"
    ):
        known_shape("8b")
    with pytest.raises(UserError, match="transformers knows no model type 'lama'"):
        shape_config({"model_type": "lama"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--model or --shape: give one of them"),
        ({"shape": ["7b"], "model": "m"}, "--model or --shape: give one of them"),
        ({"shape": ["7b"], "gpus": 0}, "--gpus 0: it must be at least 1"),
        ({"shape": ["7b"], "utilisation": 1.5}, r"--utilisation 1.5: it must be above 0 and at most 1"),
        ({"shape": ["7b"], "zero": [4]}, "--zero 4: there are stages 0, 1, 2 and 3"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PlanConfig(**settings)


RECIPES = sorted([*ROOT.glob("pretrain/*.yaml"), *ROOT.glob("sft/*.yaml")])


# scale-data's own recipes name one of these.
@pytest.mark.parametrize("file", [file for file in RECIPES if not file.stem.startswith("scaling")], ids=str)
def test_every_recipe_can_be_planned(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    stage, zero = read_recipes([str(file)])
    assert stage.lora.rank > 0
    written = re.search(r"deepspeed: ds_configs/zero(\d)", file.read_text(encoding="utf-8"))
    assert zero.stage == (int(written[1]) if written else 0)
    assert zero.bucket == 0  # auto


def test_later_recipes_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    mine = tmp_path / "mine.yaml"
    mine.write_text("lora: {rank: 7}\ntrain: {deepspeed: ds_configs/zero3_offload.json}\n")
    stage, zero = read_recipes(["pretrain/llama2-7b.yaml", str(mine)])
    assert (stage.lora.rank, stage.lora.alpha, stage.train.gradient_checkpointing) == (7, 128, True)
    assert (zero.stage, zero.optimizer_on_cpu, zero.weights_on_cpu) == (3, True, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lora: {rnak: 8}", "unknown setting 'lora.rnak': did you mean 'lora.rank'"),
        ("train: {deepspeed: nowhere.json}", "train.deepspeed nowhere.json: no such file"),
        ("- 1", "not a recipe"),
    ],
)
def test_a_recipe_that_the_command_would_refuse(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_recipes([str(tmp_path / "r.yaml")])


def test_a_deepspeed_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{")
    with pytest.raises(UserError, match=r"train.deepspeed .*ds.json: not JSON"):
        read_zero(tmp_path / "ds.json")


def test_new_rows_that_are_not_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--shape", "smollm2-135m"])
    assert "embeddings new: say how many rows are new with --new-rows" in capsys.readouterr().err


def test_the_command_prints_and_writes_a_plan(
    tmp_path: Path, extended_models: dict[str, Path], token_dirs: dict[str, Path], kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model, tokens = extended_models[kind], token_dirs[kind]
    given = ["--model", str(model), "--tokens", str(tokens), "--output", str(tmp_path / "plan")]
    main(
        ["plan", *given, "--gpus", "2", "--zero", "2", "--zero", "3", "--gpu", "small=1,10,1", "--gpu", "cpu"]
    )
    shown = capsys.readouterr().out
    assert "Memory per GPU, GiB" in shown
    assert "x 8 blocks of 64 x" in shown  # the tokens' own block size, transformers' own batch
    report = json.loads((tmp_path / "plan" / "report.json").read_text())
    second, third = report["plans"]
    assert second["name"] == f"{model.name} ZeRO-2"
    assert sum(second["memory_bytes"].values()) == second["peak_bytes"] > 2 * 2**30  # the overhead alone
    assert second["kinds"]["small"]["fits"] is False
    assert second["kinds"]["small"]["dollars"] == pytest.approx(2 * second["kinds"]["small"]["hours"])
    # Halved; and under ZeRO-3 the new rows are held twice.
    frozen = [plan["memory_bytes"]["frozen weights"] for plan in (second, third)]
    assert (2 * frozen[1] - frozen[0]) / second["parameters"]["embedding rows"] in (2, 4)
    assert (tmp_path / "plan" / "plan.png").stat().st_size > 10_000


def test_rows_of_a_shape_say_how_many_are_new(tmp_path: Path) -> None:
    main(["plan", "--shape", "smollm2-135m", "--rows", "50000", "--block-size=64", f"--output={tmp_path}/o"])
    plan = json.loads((tmp_path / "o" / "report.json").read_text())["plans"][0]
    assert plan["parameters"]["embedding rows"] == (50_000 - 49_152) * 576
