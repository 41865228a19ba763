"""Planned memory and operations: parameters of real models, bytes of tensors, DeepSpeed's and a paper's figures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from transformers import TrainingArguments

from zhllama.model.adapter import Embeddings, LoraSettings, Parts
from zhllama.model.directory import ModelDirectory
from zhllama.model.fast import install
from zhllama.model.operations import flops_of
from zhllama.model.trainable import TrainableModel, load_trainable
from zhllama.plan.job import SHAPES, Job, Sharding, shape_config
from zhllama.plan.memory import host_memory, memory
from zhllama.plan.plan import flops_per_token
from zhllama.plan.trace import LiveBytes, Traced, trace
from zhllama.train.settings import TrainingSettings

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
LORA = LoraSettings(rank=4, alpha=8)
BATCH, BLOCK = 2, 300
FIXED = ("frozen weights", "trained weights", "optimiser state")


def recipe_of(
    embeddings: Embeddings = "new", body: Any = "lora", lora: LoraSettings = LORA, **arguments: Any
) -> TrainingSettings:
    train = TrainingArguments(output_dir="-", use_cpu=True, report_to=[], **arguments)
    return TrainingSettings(model="-", output="-", embeddings=embeddings, body=body, lora=lora, train=train)


def job_for(
    directory: Path,
    embeddings: Embeddings = "new",
    body: Any = "lora",
    lora: LoraSettings = LORA,
    checkpointing: bool = False,
    bf16: bool = False,
) -> Job:
    """A job of two blocks of 300 tokens on CPU, without DeepSpeed."""
    model = ModelDirectory.open(directory)
    arguments = {"gradient_checkpointing": checkpointing, "bf16": bf16, "per_device_train_batch_size": BATCH}
    recipe = recipe_of(embeddings, body, lora, **arguments)
    config = shape_config(model.config, model.config["vocab_size"])
    return Job(recipe, config, model.new_rows if embeddings == "new" else 0, BLOCK, device="cpu")


def job_of(
    shape: str,
    rows: int | None = None,
    new_rows: int = 0,
    recipe: TrainingSettings | None = None,
    **more: Any,
) -> Job:
    """A job of a known shape: all parameters of it in bfloat16, if no recipe is given."""
    config = shape_config(SHAPES[shape], rows or SHAPES[shape]["vocab_size"] + new_rows)
    recipe = recipe or recipe_of("all", "full", bf16=True, per_device_train_batch_size=1)
    return Job(recipe, config, new_rows, **{"block": 128, **more})


def states(job: Job, traced: Traced) -> dict[str, float]:
    """Weights, optimiser state and gradients at the optimiser's step."""
    parts = memory(job, traced)["optimiser's step"]
    return {part: parts[part] for part in (*FIXED, "gradients")}


@pytest.mark.parametrize("embeddings", ["new", "all", "none"])
def test_counts_are_those_of_the_real_model(
    extended_models: dict[str, Path], kind: str, embeddings: Embeddings
) -> None:
    job = job_for(extended_models[kind], embeddings)
    traced = trace(job)
    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts(embeddings, LORA), torch.float32)
    sizes = {name: parameter.numel() for name, parameter in model.trainable().items()}
    assert traced.trained == sum(sizes.values())
    adapters = sum(size for name, size in sizes.items() if "lora_" in name)
    assert traced.adapters * job.config.num_hidden_layers == adapters
    assert traced.total == sum(p.numel() for p in model.parameters())


def test_full_body_and_dora_counts(extended_models: dict[str, Path], kind: str) -> None:
    directory = extended_models[kind]
    model = load_trainable(ModelDirectory.open(directory), Parts(), torch.float32)
    ends = sum(p.numel() for name, p in model.named_parameters() if "embed" in name or "lm_head" in name)
    whole = sum(p.numel() for p in model.parameters())
    full = trace(job_for(directory, "all", "full"))
    assert (full.trained, full.total, full.adapters) == (whole, whole, 0)
    assert trace(job_for(directory, "none", "full")).trained == whole - ends
    assert trace(job_for(directory, "none", "none")).trained == 0
    plain, dora = (
        trace(job_for(directory, "none", lora=replace(LORA, dora=dora))).trained for dora in (False, True)
    )
    widths = [m.out_features for n, m in model.base.named_modules() if n.rpartition(".")[2] in ALL]
    assert dora - plain == sum(widths)


def live_bytes(model: TrainableModel, job: Job) -> LiveBytes:
    """Bytes of tensors made while a real model runs forward and backward."""
    ids = torch.randint(0, job.config.vocab_size, (BATCH, job.block))
    positions = torch.arange(job.block // 2).repeat(BATCH, 2)
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=job.dtype == torch.bfloat16):
            loss = model(ids, positions, ids)["loss"]
        loss.backward()
    return live


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("embeddings", "body", "bf16"), [("new", "lora", False), ("all", "lora", False), ("new", "full", True)]
)
def test_peak_is_that_of_the_real_models_tensors(
    extended_models: dict[str, Path],
    kind: str,
    embeddings: Embeddings,
    body: str,
    bf16: bool,
    checkpointing: bool,
) -> None:
    job = job_for(extended_models[kind], embeddings, body, checkpointing=checkpointing, bf16=bf16)
    full = body == "full"
    parts = Parts(embeddings, None if full else LORA, full=full)
    model = load_trainable(ModelDirectory.open(extended_models[kind]), parts, job.dtype).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    moments = [
        sum(size for part, size in sizes.items() if part not in FIXED)
        for sizes in memory(job, trace(job)).values()
    ]
    assert live_bytes(model, job).peak == pytest.approx(max(moments), rel=0.05)


def test_shards_divide_what_each_stage_divides() -> None:
    traced = Traced(8800, 800, *[0] * 6)
    expected = {  # frozen, trained, masters and Adam, gradients at the step: bytes of one of eight ranks
        0: (16000, 3200, 6400, 3200),
        1: (16000, 1600, 1200, 1600 + 400),
        2: (16000, 1600, 1200, 200 + 400),
        3: (2000, 200, 1200, 200 + 400),
    }
    for stage, sizes in expected.items():
        assert tuple(states(job_of("7b", gpus=8, sharding=Sharding(stage)), traced).values()) == sizes


def test_offloading_moves_states_to_ram() -> None:
    traced = Traced(8800, 800, *[0] * 6)
    all_of_it = job_of("7b", gpus=8, sharding=Sharding(3, True, True))
    assert set(states(all_of_it, traced).values()) == {0.0}
    assert host_memory(all_of_it, traced) == 18 * 100 + 2 * 1100
    half = job_of("7b", gpus=8, sharding=Sharding(2, True))
    assert tuple(states(half, traced).values()) == (16000, 1600, 0, 0)
    assert host_memory(half, traced) == 18 * 100
    assert host_memory(job_of("7b", gpus=8, sharding=Sharding(3)), traced) == 0


def test_buckets_are_those_that_each_stage_fills() -> None:
    traced = Traced(10**8, 800, rows=50, matrices=10**6, adapters=0, kept=0, layer_kept=0, peak=0)
    square = 4096**2
    expected = [
        (1, Sharding(), 0),
        (8, Sharding(), 4 * 800),  # DistributedDataParallel's
        (8, Sharding(2), 2 * square),
        (8, Sharding(2, buckets=1000), 2 * 1000),
        (8, Sharding(2, True, buckets=1000), 2 * (1000 + 50)),
        (1, Sharding(3), 2 * square),
        (8, Sharding(3, buckets=0), 2 * 10**8),  # a small model is gathered whole
        (1, Sharding(3, True, True, buckets=0), 2 * (10**8 + 50)),
    ]
    for gpus, sharding, size in expected:
        found = memory(job_of("7b", gpus=gpus, sharding=sharding), traced)["loss"]["communication"]
        assert found == size, sharding
    large = traced._replace(total=10**11)
    gathered = memory(job_of("7b", gpus=8, sharding=Sharding(3, buckets=0)), large)["loss"]["communication"]
    assert gathered == 2 * (10**9 // 2 + 32_000 * 4096 + square)


@pytest.mark.parametrize("shape", ["7b", "13b", "65b"])
@pytest.mark.parametrize("gpus", [8, 16])
def test_states_are_those_of_deepspeeds_estimators(shape: str, gpus: int) -> None:
    second, third = (job_of(shape, gpus=gpus, sharding=Sharding(stage)) for stage in (2, 3))
    traced = trace(second)
    assert traced.total == traced.trained
    theirs = estimate_zero2_model_states_mem_needs(traced.total, gpus, cpu_offload=False)[1]
    assert sum(states(second, traced).values()) == pytest.approx(theirs, rel=1e-6)
    _, whole, layer = estimate_zero3_model_states_mem_needs(traced.total, 10**6, gpus, cpu_offload=False)
    share = traced.total / gpus
    # They leave out the reduced gradients, and make float32 gradients of the whole share, not of a billion at a time.
    expected = whole - layer + 2 * share - 4 * max(0, share - 10**9)
    assert sum(states(third, traced).values()) == pytest.approx(expected, rel=1e-6)


# Chinese-LLaMA (arXiv 2304.08177): trained share of all parameters in percent, adapters among them. Its second stage
# comes out with LoRA on attention, its instruction tuning with LoRA on all seven layers and a pad row more.
@pytest.mark.parametrize(
    ("shape", "rows", "targets", "published"),
    [("7b", 49_953, ATTENTION, 6.06), ("7b", 49_954, ALL, 6.22)],
)
def test_trained_share_is_the_papers(shape: str, rows: int, targets: list[str], published: float) -> None:
    traced = trace(job_of(shape, rows, recipe=recipe_of("all", lora=LoraSettings(rank=8, targets=targets))))
    assert round(100 * traced.trained / traced.total, 2) == published


def test_first_stage_of_the_paper_trains_one_end() -> None:
    traced = trace(job_of("7b", 49_953, recipe=recipe_of("all", "none")))
    assert round(100 * traced.rows / traced.total, 2) == 2.97


@pytest.mark.parametrize(
    ("shape", "total"),
    [("7b", 6_738_415_616), ("13b", 13_015_864_320), ("llama3-8b", 8_030_261_248), ("65b", 65_285_660_672)],
)
def test_known_shapes_have_their_published_size(shape: str, total: int) -> None:
    assert trace(job_of(shape, recipe=recipe_of("none", "none"))).total == total


def test_checkpointing_trades_activations_for_operations() -> None:
    plain, frugal = (
        job_of("7b", new_rows=18_048, block=1024, recipe=recipe_of(
            lora=LoraSettings(), bf16=True, per_device_train_batch_size=4, gradient_checkpointing=checkpointing
        ))
        for checkpointing in (False, True)
    )  # fmt: skip
    before, after = (
        max(parts["activations"] for parts in memory(job, trace(job)).values()) for job in (plain, frugal)
    )
    assert after < before / 6.5
    cheap, dear = (flops_per_token(job, trace(job)) for job in (plain, frugal))
    assert cheap["recomputation"] == 0 < dear["recomputation"] == dear["forward"] + dear["attention"] / 3
    assert {**dear, "recomputation": 0} == cheap


@pytest.mark.parametrize("body", ["lora", "full"])
def test_operations_are_those_of_the_products(extended_models: dict[str, Path], kind: str, body: Any) -> None:
    job = job_for(extended_models[kind], "none", body)
    traced, depth = trace(job), job.config.num_hidden_layers
    parts = flops_per_token(job, traced)
    matrices, adapters = traced.matrices * depth, traced.adapters * depth
    head = job.config.vocab_size * job.config.hidden_size
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
    job = job_for(directory, embeddings, "full" if full else "lora")
    assert flops_of(model, BLOCK) == sum(flops_per_token(job, trace(job)).values())


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
    parts = flops_per_token(job, trace(job))
    expected = (parts["forward"] + parts["attention"] / 3) * BATCH * BLOCK
    rotary = job.block * job.config.head_dim  # angles by a product, once for each sequence
    assert counter.get_total_flops() == pytest.approx(expected, rel=rotary / expected * BATCH + 1e-9)
