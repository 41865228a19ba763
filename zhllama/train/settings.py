"""What the stages of training have in common: one dataclass, which pretrain and sft inherit."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations

from zhllama.config import UserError
from zhllama.device import free_port, prefers_bf16
from zhllama.model.adapter import Body, Embeddings, LoraSettings, Method, Parts
from zhllama.model.prompt_tuning import AdaptionSettings, PrefixSettings
from zhllama.recipes.find import find_file


def training_defaults() -> dict[str, Any]:
    """Defaults of TrainingArguments where the machine decides, and where the field's habit is not transformers'."""
    cuda = torch.cuda.is_available()
    return {
        "train.bf16": prefers_bf16(),
        # Without CUDA the Trainer takes a Mac's MPS, which lacks the float64 that losses are counted in.
        "train.use_cpu": not cuda,
        # Pinned memory serves copies to CUDA, and warns where there is none.
        "train.dataloader_pin_memory": cuda,
        # LoRA's usual rate; full training takes a tenth of it.
        "train.learning_rate": 2e-4,
        "train.lr_scheduler_type": "cosine",
        "train.warmup_steps": 0.05,
        "train.num_train_epochs": 1.0,
        "train.report_to": ["tensorboard"],
        # A line a step in metrics.jsonl costs nothing.
        "train.logging_steps": 1,
        "train.save_total_limit": 2,
    }


def check_arguments(train: Any) -> None:
    """Refuse what TrainingArguments would fail on late; find a shipped DeepSpeed file; make one process a world of one.

    Raises:
        UserError: no such DeepSpeed file or no compiler for its CPU op, a service whose package is missing, no length
            or rate of training, an evaluation that has nothing to evaluate.
    """
    if not torch.cuda.is_available():
        # DeepSpeed looks for its accelerator once, when it is first asked for one.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    services = [train.report_to] if isinstance(train.report_to, str) else train.report_to
    for service in set(services) - {"all", "none", *get_available_reporting_integrations()}:
        raise UserError(f"train.report_to {service}: its package is not installed; run pip install {service}")
    if isinstance(train.deepspeed, str):
        train.deepspeed = str(find_file(train.deepspeed))  # and what was found goes into run.json
        if not Path(train.deepspeed).is_file():
            raise UserError(f"train.deepspeed {train.deepspeed}: no such file")
        if os.environ.get("DS_ACCELERATOR") == "cpu" and not shutil.which(os.environ.get("CXX", "c++")):
            raise UserError(
                "train.deepspeed: on CPU DeepSpeed compiles an op on its first start, and there is no C++ compiler; "
                "install g++, or set --train.deepspeed null"
            )
        # What a launcher sets. Without them DeepSpeed asks MPI.
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(free_port()))
    if train.max_steps <= 0 and train.num_train_epochs <= 0:
        raise UserError("train.max_steps or train.num_train_epochs: one of them must be above 0")
    if train.learning_rate <= 0:
        raise UserError(f"train.learning_rate {train.learning_rate}: it must be above 0")
    if train.neftune_noise_alpha is not None and train.neftune_noise_alpha <= 0:
        raise UserError(f"train.neftune_noise_alpha {train.neftune_noise_alpha}: it must be above 0, or null")
    # Text as a recipe gives it, or the enum that a parser makes of it.
    if str(train.eval_strategy) not in ("no", "IntervalStrategy.NO"):
        raise UserError(
            f"train.eval_strategy {train.eval_strategy}: runs do not evaluate; use zhllama evaluate"
        )


@dataclass(kw_only=True)
class TrainingSettings:
    """The settings of every stage: what is read and written, what trains, for how long."""

    model: str
    """Model directory that resize-embeddings wrote (or any model, with --embeddings none or all)."""
    output: str
    """Run directory; an unfinished one is continued from its last checkpoint."""
    embeddings: Embeddings = "new"
    """Train these embedding rows: the new ones, all, or none."""
    body: Body = "lora"
    """Train this of the layers: LoRA, all their parameters (full), or nothing; or instead a prompt beside them: a
    prefix, or LLaMA-Adapter's (adaption)."""
    embedding_learning_rate: float | None = None
    """The learning rate of the embedding rows; train.learning_rate by default."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    prefix: PrefixSettings = field(default_factory=PrefixSettings)
    adaption: AdaptionSettings = field(default_factory=AdaptionSettings)
    adapter: str | None = None
    """Run directory of an earlier run on the same model, whose adapter goes on training; it must not be merged."""
    quantise: bool = False
    """Hold the frozen layers in 4 bits (QLoRA, arXiv 2305.14314); needs CUDA and bitsandbytes."""
    max_minutes: float | None = None
    """Stop after this many minutes of training; the schedule follows the speed of the steps."""
    train: TrainingArguments
    """Any field of transformers.TrainingArguments."""

    def parts(self) -> Parts:
        """What of the model trains."""
        methods: dict[str, Method] = {"lora": self.lora, "prefix": self.prefix, "adaption": self.adaption}
        return Parts(self.embeddings, methods.get(self.body), self.body == "full", self.quantise)

    defaults = staticmethod(training_defaults)

    @staticmethod
    def check(values: Any) -> None:
        """Refuse what training would fail on late; `values` are the settings by name, not built yet."""
        check_arguments(values.train)
