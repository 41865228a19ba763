"""`zhllama plan`: what a recipe needs on a model and a GPU, before anything loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from zhllama import artifact
from zhllama.config import UserError, parse
from zhllama.model.directory import ModelDirectory
from zhllama.pack.blocks import TokensDirectory
from zhllama.page import stacked_plot, write_image
from zhllama.plan.cost import Gpu, find_gpu, flops_per_token, hours
from zhllama.plan.memory import GIB, PARTS, Counts, Job, count, host_memory, known_shape, memory, shape_config
from zhllama.plan.sharding import Zero, read_zero, with_stage
from zhllama.recipes.find import find_file
from zhllama.terminal import print_table, say
from zhllama.train.pretrain import PretrainConfig
from zhllama.train.sft import SftConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SFT_ONLY = {"data", "block_size"}
Stage = PretrainConfig | SftConfig


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
    gpu: list[str] = field(default_factory=list)
    """rtx4090, a40, a100-40, a100-80, h100-80, h200-141, cpu, or NAME=MEMORY,TFLOPS,PRICE; repeatable."""
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
        for stage in self.zero:
            if stage not in (0, 1, 2, 3):
                raise UserError(f"--zero {stage}: there are stages 0, 1, 2 and 3")


@dataclass
class Planned:
    """One model at one ZeRO stage."""

    name: str
    job: Job
    counts: Counts
    moment: str
    parts: dict[str, float]

    @property
    def peak(self) -> float:
        """Bytes per GPU."""
        return sum(self.parts.values())


def plan(config: PlanConfig) -> None:
    """Print memory, parameters, time and money for each shape and ZeRO stage; write a report where asked.

    Raises:
        UserError: an unknown shape, GPU or setting of the recipe, new rows that are not given, no such tokens.
    """
    stage, own_zero = read_recipes(config.recipe)
    kinds = [find_gpu(name) for name in config.gpu or ["rtx4090", "a40", "a100-80", "h100-80", "h200-141"]]
    tokens, block = _tokens(config, stage)
    plans = []
    for name, values, new_rows in _shapes(config):
        for zero in _stages(config, own_zero):
            job = job_of(stage, shape_config(values, config.rows), new_rows, block, config.gpus, zero)
            job = replace(job, cpu=[kind.name for kind in kinds] == ["cpu"])
            counts = count(job)
            moment, parts = memory(job, counts, config.overhead * GIB)
            plans.append(
                Planned(f"{name} ZeRO-{zero.stage}" if zero.stage else name, job, counts, moment, parts)
            )
    tokens = _all_tokens(tokens, stage, plans[0].job)
    costs = [_cost(planned, kinds, tokens, config.utilisation) for planned in plans]
    show(plans, costs, tokens, config.utilisation)
    if config.output:
        inputs = {"model": config.model} if config.model else {}
        with artifact.create(config.output, "report", "plan", config, inputs) as run:
            report = {"tokens": tokens, "plans": [_report(p, c) for p, c in zip(plans, costs, strict=True)]}
            artifact.write_json(run.path / "report.json", report)
            write_image(plot(plans, kinds), run.path / "plan.png")
            run.result = {"plans": len(plans)}
        say(f"{config.output}: report.json, plan.png")


def read_recipes(files: Sequence[str]) -> tuple[Stage, Zero]:
    """Parse recipes as `pretrain` or `sft` would, without what only a run needs, nor DeepSpeed started.

    Raises:
        UserError: whatever the command would refuse in them.
    """
    deepspeed, keys = None, set[str]()
    files = [str(find_file(file)) for file in files]
    arguments = [part for file in files for part in ("--config", file)]
    unset = [
        "--train.deepspeed=null",
        "--train.use_cpu=true",
        "--train.report_to=none",
        "--model=-",
        "--output=-",
    ]
    for file in files:
        content = _content(file)
        keys |= set(content)
        train = content.get("train") or {}
        deepspeed = train.get("deepspeed", content.get("train.deepspeed", deepspeed))
    stage: Stage
    if keys & SFT_ONLY:
        stage = parse("sft", SftConfig, [*arguments, *unset, *([] if "data" in keys else ["--data=[]"])])
    else:
        stage = parse("pretrain", PretrainConfig, [*arguments, *unset, "--tokens=-"])
    return stage, read_zero(Path(deepspeed)) if deepspeed else Zero()


def _content(file: str) -> dict[str, Any]:
    """A recipe's mapping, or an empty one: parse says what is wrong with it."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def job_of(stage: Stage, shape: Any, new_rows: int, block: int, gpus: int, zero: Zero) -> Job:
    """What a recipe makes of a model; raises UserError where new rows train and there are none."""
    if stage.body in ("prefix", "adaption") or stage.quantise:
        raise UserError(
            f"body {stage.body}, quantise {str(stage.quantise).lower()}: plan counts neither prompts nor weights of "
            "4 bits; plan --body lora without quantise, which takes more"
        )
    if stage.embeddings == "new" and not new_rows:
        raise UserError(
            "embeddings new: say how many rows are new with --new-rows, or plan a resized --model"
        )
    return Job(
        config=shape,
        new_rows=new_rows,
        embeddings=stage.embeddings,
        body=stage.body,
        lora=stage.lora,
        bf16=bool(stage.train.bf16),
        checkpointing=bool(stage.train.gradient_checkpointing),
        batch=stage.train.per_device_train_batch_size,
        block=block,
        accumulation=stage.train.gradient_accumulation_steps,
        gpus=gpus,
        zero=zero,
    )


def _tokens(config: PlanConfig, stage: Stage) -> tuple[float, int]:
    """How many tokens an epoch has, and the size of a block."""
    block = stage.block_size if isinstance(stage, SftConfig) else 1024
    try:
        return float(config.tokens), config.block_size or block
    except ValueError:
        ids = TokensDirectory.open(config.tokens).blocks().ids
        return float(ids.size), config.block_size or ids.shape[1]


def _all_tokens(tokens: float, stage: Stage, job: Job) -> float:
    """Tokens of the whole run: its steps where the recipe says how many, else its epochs."""
    train = stage.train
    if train.max_steps > 0:
        return float(train.max_steps * job.batch * job.block * job.accumulation * job.gpus)
    return tokens * float(train.num_train_epochs)


def _shapes(config: PlanConfig) -> list[tuple[str, dict[str, Any], int]]:
    """Name, content of config.json with its final rows, and number of new rows of each model."""
    if config.model:
        model = ModelDirectory.open(config.model)
        new = model.new_rows if config.new_rows is None else config.new_rows
        return [(model.path.name, model.config, new)]
    found = []
    for name in config.shape:
        own = known_shape(name)["vocab_size"]
        new = max(0, (config.rows or own) - own) if config.new_rows is None else config.new_rows
        found.append((name, known_shape(name, new), new))
    return found


def _stages(config: PlanConfig, zero: Zero) -> list[Zero]:
    if config.offload is not None:
        zero = replace(
            zero, optimizer_on_cpu=config.offload != "none", weights_on_cpu=config.offload == "all"
        )
    return [with_stage(zero, stage) for stage in config.zero or [zero.stage]]


def _cost(planned: Planned, kinds: list[Gpu], tokens: float, utilisation: float) -> dict[str, Any]:
    """Operations per token, and for each kind whether it fits, hours and dollars."""
    parts = flops_per_token(planned.job, planned.counts)
    kinds_: dict[str, Any] = {}
    for kind in kinds:
        taken = hours(sum(parts.values()) * tokens, kind, planned.job.gpus, utilisation)
        kinds_[kind.name] = {
            "memory_gib": kind.memory,
            "fits": planned.peak <= kind.memory * GIB,
            "hours": taken,
            "dollars": taken * planned.job.gpus * kind.price,
        }
    return {"flops_per_token": parts, "kinds": kinds_}


def show(
    plans: Sequence[Planned], costs: Sequence[dict[str, Any]], tokens: float, utilisation: float
) -> None:
    """Three tables: memory per GPU by part, parameters and operations, time and money."""
    job, names = plans[0].job, [p.name for p in plans]
    say(
        f"{job.gpus} GPUs x {job.batch} blocks of {job.block} x accumulation {job.accumulation}, "
        f"{'bf16' if job.bf16 else 'float32'}, activation checkpointing {'on' if job.checkpointing else 'off'}, "
        f"embeddings {job.embeddings}, body {f'LoRA rank {job.lora.rank}' if job.body == 'lora' else job.body}"
    )
    rows: list[list[object]] = [[part, *(p.parts[part] / GIB for p in plans)] for part in PARTS]
    rows = [row for row in rows if any(row[1:])]
    rows.append(["sum", *(p.peak / GIB for p in plans)])
    rows.append(["at its peak in", *(p.moment for p in plans)])
    if any(host_memory(p.job, p.counts) for p in plans):
        rows.append(["RAM per GPU, offloaded", *(host_memory(p.job, p.counts) / GIB for p in plans)])
    print_table("Memory per GPU, GiB", ["", *names], rows)
    counted: list[list[object]] = [
        *([part, *(_parameters(p.counts)[part] for p in plans)] for part in _parameters(plans[0].counts)),
        *(
            [f"GFLOP per token, {part}", *(cost["flops_per_token"][part] / 1e9 for cost in costs)]
            for part in costs[0]["flops_per_token"]
        ),
    ]
    print_table("Parameters and operations", ["", *names], counted)
    priced = [
        [p.name, kind, *(found["memory_gib"], p.peak / GIB, found["fits"], found["hours"], found["dollars"])]
        for p, cost in zip(plans, costs, strict=True)
        for kind, found in cost["kinds"].items()
    ]
    header = ["model", "GPU", "GiB", "needed", "fits", "hours", "dollars"]
    print_table(f"{tokens:.3g} tokens at {utilisation:.0%} of the peak (an assumption)", header, priced)
    say(
        "prices are assumptions too (--gpu NAME=MEMORY,TFLOPS,PRICE sets yours); hours leave communication out"
    )


def _parameters(counts: Counts) -> dict[str, int]:
    return {
        "LoRA": counts.adapters,
        "body": counts.body,
        "embedding rows": counts.input_rows + counts.output_rows,
        "trained": counts.trained,
        "all": counts.total,
    }


def _report(planned: Planned, cost: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": planned.name,
        "peak_bytes": planned.peak,
        "moment": planned.moment,
        "memory_bytes": planned.parts,
        "host_bytes": host_memory(planned.job, planned.counts),
        "parameters": _parameters(planned.counts),
        **cost,
    }


def plot(plans: Sequence[Planned], kinds: Sequence[Gpu]) -> Figure | None:
    """Memory per GPU by part, a bar for each plan, and a line for each kind of GPU."""
    parts = {part: [p.parts[part] / GIB for p in plans] for part in PARTS}
    series = {part: values for part, values in parts.items() if any(values)}
    limits = {kind.name: kind.memory for kind in kinds}
    return stacked_plot([p.name for p in plans], series, limits, "GiB", "Memory per GPU at a step's peak")
