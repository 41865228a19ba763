"""`deepspeed pretrain/run.py`: continued pretraining on packed blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from zhllama import artifact
from zhllama.config import UserError
from zhllama.model.adapter import Body, Embeddings, LoraSettings
from zhllama.model.prompt_tuning import AdaptionSettings, PrefixSettings
from zhllama.model.trainable import check_parts
from zhllama.model.weights import check_block_size
from zhllama.pack.blocks import Blocks
from zhllama.terminal import say
from zhllama.train.choice import start_of
from zhllama.train.run import check_arguments, run_directory, train, training_defaults


@dataclass
class PretrainConfig:
    """Continue pretraining a model on packed blocks: LoRA on the layers, new embedding rows as they are."""

    model: str
    """Model directory that resize-embeddings wrote (or any model, with --embeddings none or all)."""
    tokens: str
    """Tokens directory that pack wrote with that model's tokenizer."""
    output: str
    """Run directory; an unfinished one is continued from its last checkpoint."""
    embeddings: Embeddings = "new"
    """Which embedding rows train: the new ones, all, or none."""
    freeze_new_rows: bool = False
    """Allow --embeddings none on an extended model, whose new rows then stay as initialised."""
    body: Body = "lora"
    """What of the layers trains: LoRA, all their parameters (full), or nothing; or a prompt beside them instead: a
    prefix, or LLaMA-Adapter's (adaption)."""
    embedding_learning_rate: float | None = None
    """Learning rate of the embedding rows; train.learning_rate by default."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    prefix: PrefixSettings = field(default_factory=PrefixSettings)
    adaption: AdaptionSettings = field(default_factory=AdaptionSettings)
    adapter: str | None = None
    """Run directory of an earlier run on the same model, whose adapter goes on training; it must not be merged."""
    quantise: bool = False
    """Hold the frozen layers in 4 bits (QLoRA, arXiv 2305.14314); needs CUDA and bitsandbytes."""
    attend_across_documents: bool = False
    """Let attention and positions run on from one document of a block into the next."""
    max_minutes: float | None = None
    """Stop after this many minutes of training; the schedule follows the speed of the steps."""
    train: TrainingArguments = field(kw_only=True)
    """Any field of transformers.TrainingArguments."""

    defaults = staticmethod(training_defaults)
    check = staticmethod(check_arguments)


def pretrain(config: PretrainConfig) -> None:
    """Train, then save the adapter (LoRA and new rows), metrics and loss curve.

    Raises:
        UserError: tokens packed with another tokenizer or longer than the model's positions, unknown new rows, a
            save that does not reopen.
    """
    model_dir = artifact.require(config.model, "model", "--model")
    tokens_dir = artifact.require(config.tokens, "tokens", "--tokens")
    artifact.check_same(
        f"--tokens {tokens_dir}",
        packed_tokenizer(tokens_dir),
        f"the tokenizer of --model {model_dir}",
        artifact.tokenizer_fingerprint(model_dir),
        f"run zhllama pack --model {model_dir} again",
    )
    check_parts(model_dir, config.embeddings, config.body, config.freeze_new_rows)
    blocks = Blocks.open(tokens_dir, config.attend_across_documents)
    check_block_size(blocks.ids.shape[1], model_dir)
    inputs = {"model": model_dir, "tokens": tokens_dir, **start_of(config)}
    with run_directory(config, "pretrain", inputs) as result:
        outcome = train(config, model_dir, blocks)
        result.update(outcome)
    say(
        f"{config.output}: {outcome['steps']} steps, {outcome['tokens']:,} tokens, mean loss {outcome['mean_loss']:.3f}"
    )


def packed_tokenizer(tokens_dir: Path) -> str:
    """The fingerprint of the tokenizer that a tokens directory was packed with."""
    result: dict[str, Any] = artifact.read_record(tokens_dir).get("result", {})
    if "tokenizer" not in result:
        raise UserError(f"--tokens {tokens_dir}: not made by zhllama pack; run that first")
    return str(result["tokenizer"])
