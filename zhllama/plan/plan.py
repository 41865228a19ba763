"""`zhllama plan`: what a recipe needs on a model and a GPU, before anything loads."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from zhllama import artifact
from zhllama.config import UserError
from zhllama.model.directory import ModelDirectory
from zhllama.model.operations import operations
from zhllama.pack.blocks import TokensDirectory
from zhllama.page import stacked_plot, write_image
from zhllama.plan.job import SHAPES, Job, read_recipes, read_sharding, shape_config
from zhllama.plan.memory import host_memory, memory
from zhllama.plan.trace import Traced, trace
from zhllama.terminal import print_table, say
from zhllama.train.settings import TrainingSettings

GIB = 2**30
MEMORY = "GiB per GPU"


class Gpu(NamedTuple):
    """GiB of memory, dense bf16 TFLOP/s of the data sheet, and US dollars an hour, as rented in 2025."""

    memory: float
    tflops: float
    price: float


GPUS = {
    "rtx4090": Gpu(24, 165, 0.4),
    "a40": Gpu(48, 150, 0.4),
    "a100-40": Gpu(40, 312, 1.2),
    "a100-80": Gpu(80, 312, 1.7),
    "h100-80": Gpu(80, 989, 2.5),
    "h200-141": Gpu(141, 989, 3.5),
    "cpu": Gpu(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 0.1, 0.1),
}


@dataclass
class PlanConfig:
    """Memory per GPU, operations, hours and money of a recipe, from its settings and a model's shape alone."""

    recipe: list[str] = field(default_factory=list)
    """Pretraining or tuning recipe; repeatable, later ones win. Without one: their defaults."""
    model: str | None = None
    """Model directory; only its config.json and run.json are read."""
    shape: list[str] = field(default_factory=list)
    """Instead of a model: 7b, 13b, 33b, 65b, llama3-8b, ...; repeatable."""
    rows: int | None = None
    """Rows of the embeddings after resizing; the model's own, or the shape's and the new rows."""
    new_rows: int | None = None
    """How many of them are new; by the model's own record, or what --rows has more than the shape."""
    block_size: int | None = None
    """Tokens per block; those of --tokens, the recipe's, or 1024."""
    tokens: str = "1e9"
    """How many tokens to train on, or a tokens directory."""
    gpu: list[str] = field(default_factory=lambda: ["rtx4090", "a40", "a100-80", "h100-80", "h200-141"])
    """rtx4090, a40, a100-40, a100-80, h100-80, h200-141, cpu, or NAME=GIB,TFLOPS,DOLLARS an hour; repeatable."""
    gpus: int = 8
    """How many of them work together."""
    zero: list[int] = field(default_factory=list)
    """ZeRO stages, 0 is without DeepSpeed; repeatable. Otherwise the recipe's."""
    offload: Literal["none", "optimizer", "all"] | None = None
    """What of the state lies in RAM: nothing, the optimiser's, or (ZeRO-3) weights too. Otherwise the recipe's."""
    utilisation: float = 0.4
    """Share of a GPU's bf16 peak that training reaches, recomputation counted: an assumption."""
    overhead: float = 2.0
    """GiB per GPU for CUDA, NCCL and fragmentation: an assumption."""
    output: str | None = None
    """Directory for report.json and plan.png."""

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if bool(self.model) == bool(self.shape):
            raise UserError("--model or --shape: give one of them, for example --shape 7b")
        if self.gpus < 1:
            raise UserError(f"--gpus {self.gpus}: it must be at least 1")
        if not 0 < self.utilisation <= 1:
            raise UserError(f"--utilisation {self.utilisation}: it must be above 0 and at most 1")
        if set(self.zero) - {0, 1, 2, 3}:
            raise UserError(f"--zero {self.zero[-1]}: there are stages 0, 1, 2 and 3")


def plan(config: PlanConfig) -> None:
    """Print memory, parameters, operations, hours and dollars for each shape and ZeRO stage; write a report if asked.

    Raises UserError: an unknown shape, GPU or setting of a recipe, new rows that are not given, no such tokens.
    """
    recipe, deepspeed = read_recipes(config.recipe)
    tokens, block = _tokens(config, recipe)
    gpus = dict(map(find_gpu, config.gpu))
    device = "cpu" if [*gpus] == ["cpu"] else "cuda"
    estimates = {}
    for name, (model, new_rows) in _models(config, recipe).items():
        for one in read_sharding(deepspeed, config.zero, config.offload):
            job = Job(recipe, model, new_rows, block, config.gpus, one, device)
            estimates[f"{name} ZeRO-{one.stage}" if one.stage else name] = estimate(job, gpus, tokens, config)
    columns = [*estimates.values()]
    tables = {t: {row: [c[t][row] for c in columns] for row in rows} for t, rows in columns[0].items()}
    train = recipe.train
    say(
        f"{tokens:.3g} tokens, {config.gpus} GPUs x {train.per_device_train_batch_size} blocks of {block}, embeddings "
        f"{recipe.embeddings}, body {recipe.body}, bf16 {train.bf16}, checkpointing {train.gradient_checkpointing}"
    )
    for title, rows in tables.items():
        print_table(title, ["", *estimates], [[row, *values] for row, values in rows.items()])
    say("prices and utilisation are assumptions (--gpu, --utilisation); hours leave communication out")
    if config.output:
        inputs = {"model": config.model} if config.model else {}
        with artifact.create(config.output, "report", "plan", config, inputs) as run:
            artifact.write_json(run.path / "report.json", {"tokens": tokens, "plans": estimates})
            limits = {name: gpu.memory for name, gpu in gpus.items()}
            figure = stacked_plot([*estimates], tables[MEMORY], limits, "GiB", "Memory per GPU at its peak")
            write_image(figure, run.path / "plan.png")
            run.result = {"plans": len(estimates)}
        say(f"{config.output}: report.json, plan.png")


def _tokens(config: PlanConfig, recipe: TrainingSettings) -> tuple[float, int]:
    """Tokens of the whole run (its steps where the recipe says how many, else its epochs), and of a block."""
    try:
        tokens, block = float(config.tokens), getattr(recipe, "block_size", 1024)
    except ValueError:
        ids = TokensDirectory.open(config.tokens).blocks().ids
        tokens, block = float(ids.size), ids.shape[1]
    train, block = recipe.train, config.block_size or block
    step = train.per_device_train_batch_size * train.gradient_accumulation_steps * config.gpus * block
    return float(train.max_steps * step if train.max_steps > 0 else tokens * train.num_train_epochs), block


def _models(config: PlanConfig, recipe: TrainingSettings) -> dict[str, tuple[Any, int]]:
    """By name a transformers config with its final rows, and how many of them are new."""
    found = {}
    if config.model:
        model = ModelDirectory.open(config.model)
        new = model.new_rows if config.new_rows is None else config.new_rows
        found[model.path.name] = (shape_config(model.config, config.rows or model.config["vocab_size"]), new)
    for name in config.shape:
        if name not in SHAPES:
            raise UserError(f"--shape {name}: none of {', '.join(SHAPES)}; give another's --model")
        own = SHAPES[name]["vocab_size"]
        new = max(0, (config.rows or own) - own) if config.new_rows is None else config.new_rows
        found[name] = (shape_config(SHAPES[name], config.rows or own + new), new)
    if recipe.body in ("prefix", "adaption") or recipe.quantise:
        raise UserError("plan counts neither prompts nor weights of 4 bits: plan body lora, which takes more")
    if recipe.embeddings == "new" and not all(new for _, new in found.values()):
        raise UserError("embeddings new: say how many with --new-rows, or plan a resized --model")
    return found


def estimate(job: Job, gpus: dict[str, Gpu], tokens: float, config: PlanConfig) -> dict[str, dict[str, Any]]:
    """What is printed and written of one run, by table and row."""
    traced = trace(job)
    moment, parts = max(memory(job, traced).items(), key=lambda item: sum(item[1].values()))
    parts["runtime overhead"] = config.overhead * GIB
    peak, flops = sum(parts.values()) / GIB, flops_per_token(job, traced)
    speed = config.utilisation * 1e12 * 3600 * job.gpus
    hours = {name: sum(flops.values()) * tokens / (gpu.tflops * speed) for name, gpu in gpus.items()}
    return {
        MEMORY: {part: size / GIB for part, size in parts.items()},
        "peak": {"GiB per GPU": peak, "at": moment, "GiB of RAM per GPU": host_memory(job, traced) / GIB},
        "fits": {name: peak <= gpu.memory for name, gpu in gpus.items()},
        "parameters": {"trained": traced.trained, "all": traced.total},
        "GFLOP per token": {part: count / 1e9 for part, count in flops.items()},
        "hours": hours,
        "dollars": {name: hours[name] * job.gpus * gpu.price for name, gpu in gpus.items()},
    }


def find_gpu(text: str) -> tuple[str, Gpu]:
    """A kind's name and values, from its name or `NAME=GIB,TFLOPS,DOLLARS`; raises UserError."""
    name, equals, values = text.partition("=")
    try:
        gpu = Gpu(*map(float, values.split(","))) if equals else GPUS[name]
    except (ValueError, TypeError, KeyError):
        gpu = Gpu(0, 0, 0)
    if min(gpu.memory, gpu.tflops) <= 0 or gpu.price < 0:
        raise UserError(f"--gpu {text}: neither {', '.join(GPUS)} nor NAME=GIB,TFLOPS,DOLLARS above 0")
    return name, gpu


def flops_per_token(job: Job, traced: Traced) -> dict[str, float]:
    """Floating-point operations per token of a planned run, by part."""
    frozen, learnt = (0, traced.matrices) if job.recipe.body == "full" else (traced.matrices, traced.adapters)
    parts = operations(job.config, job.block, frozen, learnt, traced.rows)
    again = parts["forward"] + parts["attention"] / 3 if job.recipe.train.gradient_checkpointing else 0.0
    return {**parts, "recomputation": again}
