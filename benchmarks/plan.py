"""Predicted against measured peak memory of training on CPU: does `zhllama plan` count what a process holds?

python benchmarks/plan.py        prints the table and writes benchmarks/results/plan.md

Each configuration trains in a process of its own, through the project's own Trainer, on random weights and blocks. Its
peak resident memory (VmHWM) is counted from after the imports, and reset after loading.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from table import machine, write_table

STEPS = 3
GPUS = 8
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
# name -> shape, new rows, and what a recipe says
CASES: dict[str, dict[str, Any]] = {
    "12 x 576, LoRA and new rows, float32": {
        "shape": {"hidden": 576, "layers": 12, "heads": 9, "kv": 3, "inner": 1536, "rows": 55_296, "tied": False},
        "new": 6_144, "embeddings": "new", "rank": 16, "bf16": False, "checkpointing": False, "batch": 2, "block": 256,
        "accumulation": 1,
    },
    "10 x 640, LoRA and new rows, float32, gradient checkpointing, two micro-batches": {
        "shape": {"hidden": 640, "layers": 10, "heads": 10, "kv": 10, "inner": 1728, "rows": 32_000, "tied": False},
        "new": 6_000, "embeddings": "new", "rank": 32, "bf16": False, "checkpointing": True, "batch": 2, "block": 384,
        "accumulation": 2,
    },
    "8 x 512, LoRA and all rows, tied, bfloat16": {
        "shape": {"hidden": 512, "layers": 8, "heads": 8, "kv": 4, "inner": 1408, "rows": 64_000, "tied": True},
        "new": 0, "embeddings": "all", "rank": 8, "bf16": True, "checkpointing": False, "batch": 4, "block": 256,
        "accumulation": 1,
    },
}  # fmt: skip
# What a process needs to train anything at all: threads, kernels, the optimiser's code. Measured, not predicted.
SMALLEST: dict[str, Any] = {
    "shape": {"hidden": 64, "layers": 1, "heads": 2, "kv": 2, "inner": 128, "rows": 512, "tied": False},
    "new": 64, "embeddings": "new", "rank": 4, "bf16": False, "checkpointing": False, "batch": 1, "block": 64,
    "accumulation": 1,
}  # fmt: skip


def model_config(shape: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": shape["hidden"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv"],
        "intermediate_size": shape["inner"],
        "vocab_size": shape["rows"],
        "tie_word_embeddings": shape["tied"],
    }


def recipe_of(case: dict[str, Any], directory: Path) -> Any:
    from transformers import TrainingArguments

    from zhllama.model.adapter import LoraSettings
    from zhllama.train.pretrain import PretrainConfig

    arguments = TrainingArguments(
        output_dir=str(directory / "out"), use_cpu=True, bf16=case["bf16"], max_steps=STEPS, report_to=[],
        per_device_train_batch_size=case["batch"], gradient_accumulation_steps=case["accumulation"],
        gradient_checkpointing=case["checkpointing"], save_strategy="no", logging_steps=1, dataloader_pin_memory=False,
    )  # fmt: skip
    lora = LoraSettings(rank=case["rank"], alpha=2 * case["rank"], dropout=0.05)
    paths = {"model": str(directory), "tokens": "-", "output": arguments.output_dir}
    return PretrainConfig(**paths, embeddings=case["embeddings"], lora=lora, train=arguments)


def predict(case: dict[str, Any]) -> tuple[str, float]:
    """The moment of a step that needs most, and its bytes."""
    from zhllama.plan.job import Job, shape_config
    from zhllama.plan.memory import memory
    from zhllama.plan.trace import trace

    config = shape_config(model_config(case["shape"]), case["shape"]["rows"])
    job = Job(recipe_of(case, Path("-")), config, case["new"], case["block"], device="cpu")
    sizes = {moment: sum(parts.values()) for moment, parts in memory(job, trace(job)).items()}
    worst = max(sizes, key=lambda moment: sizes[moment])
    return worst, sizes[worst]


def resident(field: str) -> int:
    """Bytes of VmRSS or VmHWM."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def make_model(case: dict[str, Any], directory: Path) -> None:
    from transformers import AutoModelForCausalLM

    from zhllama.plan.job import shape_config

    config = shape_config(model_config(case["shape"]), case["shape"]["rows"])
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    rows = case["shape"]["rows"]
    result = {"rows": rows, "first_new": rows - case["new"]}
    record = {"command": "resize-embeddings", "kind": "model", "result": result}
    (directory / "run.json").write_text(json.dumps(record))


def measure(case: dict[str, Any], directory: Path) -> None:
    """Train in this process and print the peak above the imports."""
    import numpy as np
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from zhllama.model.directory import ModelDirectory
    from zhllama.model.trainable import load_trainable
    from zhllama.pack.blocks import Blocks
    from zhllama.train.run import compute_dtype
    from zhllama.train.trainer import BlockTrainer

    config = recipe_of(case, directory)
    (directory / "out").mkdir()
    letters = pre_tokenizers.ByteLevel.alphabet()
    fast = Tokenizer(models.BPE({letter: place for place, letter in enumerate(sorted(letters))}, []))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    fast.save(str(directory / "tokenizer.json"))
    rows, count = case["shape"]["rows"], STEPS * case["batch"] * case["accumulation"]
    ids = np.random.default_rng(0).integers(0, rows, (count, case["block"])).astype(np.uint16)
    half = case["block"] // 2
    blocks = Blocks(ids, np.full(2 * count, half, dtype=np.int32), np.arange(0, 2 * count + 1, 2))
    import peft  # noqa: F401 - what training imports is no part of the plan

    bare = resident("VmRSS")
    base = ModelDirectory.open(directory)
    model = load_trainable(base, config.parts(), compute_dtype(config.train))
    trainer = BlockTrainer(model, config, base, None, blocks)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of loading is not that of training
    trainer.train()
    print(resident("VmHWM") - bare)


def run(name: str, settings: dict[str, str]) -> int:
    """Peak bytes of one configuration in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(case_of(name), Path(folder))
        command = [sys.executable, __file__, name, folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | settings)
    return int(done.stdout.splitlines()[-1])


def case_of(name: str) -> dict[str, Any]:
    return CASES.get(name, SMALLEST)


def main() -> None:
    rows = []
    overhead = statistics.median(run("smallest", RETURNING) for _ in range(3))
    for name, case in CASES.items():
        moment, size = predict(case)
        found = [run(name, settings) for settings in (RETURNING, {})]
        predicted = size + overhead
        rows.append(
            [
                name,
                f"{case['batch']} x {case['block']}",
                moment,
                f"{predicted / 2**20:.0f}",
                f"{found[0] / 2**20:.0f}",
                f"{predicted / found[0] - 1:+.1%}",
                f"{found[1] / 2**20:.0f}",
            ]
        )
    header = ["layers x width", "tokens", "peak expected at", "predicted MB", "measured MB", "difference"]
    write_table(
        "plan",
        [*header, "measured MB, malloc's defaults"],
        rows,
        f"{machine()}. Peak resident memory (VmHWM) of {STEPS} steps of the project's own Trainer above the same "
        "process after its imports (MB of 2^20 bytes), each in a process of its own. Predicted is what tensors hold, "
        f"and {overhead / 2**20:.0f} MB that training one layer of 64 took beyond its imports. "
        "Measured with an allocator that gives freed blocks back at once (MALLOC_MMAP_THRESHOLD_=65536); by default "
        "glibc keeps blocks below 32 MB between our trims, which the last column shows and no plan foresees.",
    )


def compare() -> None:
    """States of full-parameter training against DeepSpeed's own estimators, on 8 GPUs in bfloat16."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
    from transformers import TrainingArguments

    from zhllama.plan.job import SHAPES, Job, Sharding, shape_config
    from zhllama.plan.memory import memory
    from zhllama.plan.trace import trace
    from zhllama.train.settings import TrainingSettings

    arguments = TrainingArguments(output_dir="-", use_cpu=True, bf16=True, report_to=[])
    recipe = TrainingSettings(model="-", output="-", embeddings="all", body="full", train=arguments)
    rows = []
    for name in ("7b", "13b", "65b"):
        config = shape_config(SHAPES[name], SHAPES[name]["vocab_size"])
        traced = trace(Job(recipe, config, block=128, gpus=GPUS, sharding=Sharding(2)))
        total = traced.trained
        second = estimate_zero2_model_states_mem_needs(total, GPUS, cpu_offload=False)[1]
        _, third, layer = estimate_zero3_model_states_mem_needs(total, 0, GPUS, cpu_offload=False)
        ours = []
        for stage in (2, 3):
            parts = memory(Job(recipe, config, gpus=GPUS, sharding=Sharding(stage)), traced)[
                "optimiser's step"
            ]
            ours.append(sum(parts.values()) - parts["communication"])
        sizes = (ours[0], second, ours[1], third - layer)
        rows.append([name, f"{total:,}", *(f"{size / 2**30:.1f}" for size in sizes)])
    write_table(
        "plan",
        [
            "full parameters",
            "count",
            "ZeRO-2, ours",
            "ZeRO-2, DeepSpeed",
            "ZeRO-3, ours",
            "ZeRO-3, DeepSpeed",
        ],
        rows,
        f"GiB of model states per GPU, {GPUS} GPUs, against estimate_zero2/3_model_states_mem_needs of the installed "
        "DeepSpeed (its gathered layer, which we count apart, left out). For ZeRO-3 it counts no reduced bfloat16 "
        "gradients (2 bytes a parameter, which the optimiser keeps in a flat buffer), and float32 gradients of a "
        "rank's whole share, which are made for a billion elements at a time.",
        append=True,
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(case_of(sys.argv[1]), Path(sys.argv[2]))
    else:
        main()
        compare()
