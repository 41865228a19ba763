"""`python sft/run.py`: instruction tuning, which is pretraining with a loss mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, TrainingArguments

from zhllama import artifact
from zhllama.config import UserError
from zhllama.conversation.mixture import build_mixture, print_mixture
from zhllama.conversation.settings import InstructionSource, MixtureSettings
from zhllama.model.adapter import Body, Embeddings, LoraSettings
from zhllama.model.prompt_tuning import AdaptionSettings, PrefixSettings
from zhllama.model.trainable import check_parts
from zhllama.model.weights import check_block_size, read_config
from zhllama.pack.conversations import pack_conversations
from zhllama.terminal import say
from zhllama.tokenizer.load import load
from zhllama.tokenizer.template import check_marks
from zhllama.train.choice import start_of
from zhllama.train.progress import Progress, ProgressSettings
from zhllama.train.run import check_arguments, run_directory, train, training_defaults


@dataclass
class SftConfig:
    """Tune a model on a mixture of instruction files; loss on the replies and their EOS only."""

    model: str
    """Model directory, its chat template inside."""
    data: list[InstructionSource]
    """Instruction files: Alpaca, pCLUE, translation pairs, BELLE, ShareGPT, OpenAI messages."""
    output: str
    """Run directory; an unfinished one is continued from its last checkpoint."""
    block_size: int = 1024
    """Tokens per block; conversations are packed whole."""
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    embeddings: Embeddings = "none"
    """Which embedding rows train: the new ones, all, or none (pretraining has trained them)."""
    body: Body = "lora"
    """What of the layers trains: LoRA, all their parameters (full), or nothing; or a prompt beside them instead: a
    prefix, or LLaMA-Adapter's (adaption)."""
    embedding_learning_rate: float | None = None
    """Learning rate of the embedding rows; train.learning_rate by default."""
    lora: LoraSettings = field(default_factory=lambda: LoraSettings(rank=8, alpha=16))
    prefix: PrefixSettings = field(default_factory=PrefixSettings)
    adaption: AdaptionSettings = field(default_factory=AdaptionSettings)
    adapter: str | None = None
    """Run directory of an earlier run on the same model, whose adapter goes on training; it must not be merged."""
    quantise: bool = False
    """Hold the frozen layers in 4 bits (QLoRA, arXiv 2305.14314); needs CUDA and bitsandbytes."""
    max_minutes: float | None = None
    """Stop after this many minutes of training; the schedule follows the speed of the steps."""
    progress: ProgressSettings = field(default_factory=ProgressSettings)
    train: TrainingArguments = field(kw_only=True)
    """Any field of transformers.TrainingArguments."""

    defaults = staticmethod(training_defaults)
    check = staticmethod(check_arguments)


def sft(config: SftConfig) -> None:
    """Encode and pack the mixture, train, save the adapter, metrics and loss curve.

    Raises:
        UserError: a file without one good row, no chat template, every conversation longer than a block, prompts for
            a prefix to answer.
    """
    model_dir, inputs, tokenizer = open_inputs(config)
    check_block_size(config.block_size, model_dir)
    check_parts(model_dir, config.embeddings, config.body, allow_frozen=True)
    if config.body == "prefix" and (config.progress.prompts or config.progress.prompts_file):
        raise UserError(
            "progress.prompts: a prefix cannot answer while it trains; leave them out and use zhllama chat --adapter"
        )
    inputs |= start_of(config)
    with run_directory(config, "sft", inputs) as result:
        mixture = build_mixture(config.data, config.mixture, tokenizer, config.block_size)
        print_mixture(mixture)
        positions = int(read_config(model_dir)["max_position_embeddings"])
        progress = Progress(
            config.progress, mixture, tokenizer, positions, config.block_size, config.train.seed
        )
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        blocks = pack_conversations(progress.training, config.block_size, padding)
        outcome = train(config, model_dir, blocks, progress)
        result.update(outcome, mixture=mixture.table, blocks=len(blocks), **progress.result)
    say(
        f"{config.output}: {outcome['steps']} steps on {len(progress.training):,} conversations in {len(blocks):,} blocks"
    )


def open_inputs(config: SftConfig) -> tuple[Path, dict[str, Path], Any]:
    """The model directory, every input by its name, and the model's tokenizer.

    Raises:
        UserError: no such model or file, a source that contradicts itself, no chat template.
    """
    model_dir = artifact.require(config.model, "model", "--model")
    inputs = {"model": model_dir} | {f"data{i}": source.checked() for i, source in enumerate(config.data)}
    inputs |= {f"evaluation{i}": Path(file) for i, file in enumerate(config.mixture.evaluation)}
    tokenizer = AutoTokenizer.from_pretrained(str(model_dir))
    if tokenizer.chat_template is None:
        raise UserError(
            f"--model {model_dir}: no chat template inside; run merge-tokenizer --template NAME first"
        )
    loaded = load(model_dir, "--model")
    check_marks(tokenizer.chat_template, loaded.roles(), loaded.special_tokens(), f"--model {model_dir}")
    return model_dir, inputs, tokenizer
