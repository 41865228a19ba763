"""`python sft/run.py`: instruction tuning, which is pretraining with a loss mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zhllama.artifact import Input, create, read_record
from zhllama.config import UserError
from zhllama.conversation.mixture import Mixture, build_mixture, print_mixture
from zhllama.conversation.settings import InstructionSource, MixtureSettings
from zhllama.model.adapter import Embeddings, LoraSettings
from zhllama.model.directory import ModelDirectory
from zhllama.pack.conversations import pack_conversations
from zhllama.stop import remove
from zhllama.terminal import say
from zhllama.tokenizer.template import check_marks
from zhllama.train.preview import write_preview
from zhllama.train.progress import Progress, ProgressSettings
from zhllama.train.run import begin_run, train
from zhllama.train.settings import TrainingSettings, check_arguments


@dataclass(kw_only=True)
class SftConfig(TrainingSettings):
    """Tune a model on a mixture of instruction files; loss on the replies and their EOS only."""

    data: list[InstructionSource]
    """Instruction files: Alpaca, pCLUE, translation pairs, BELLE, ShareGPT, OpenAI messages."""
    block_size: int = 1024
    """Tokens per block; conversations are packed whole."""
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    embeddings: Embeddings = "none"
    """Train these embedding rows: the new ones, all, or none (pretraining has trained them)."""
    # Rank and alpha are alpaca-lora's: replies are less to learn than a language.
    lora: LoraSettings = field(default_factory=lambda: LoraSettings(rank=8, alpha=16))
    progress: ProgressSettings = field(default_factory=ProgressSettings)
    dry_run: bool = False
    """Train nothing: write what the run would learn from into OUTPUT-dry-run, which the next dry run replaces."""

    @staticmethod
    def check(values: Any) -> None:
        """Refuse what training would fail on late; a dry run starts nothing that training needs."""
        if values.dry_run:
            values.train.deepspeed, values.train.use_cpu = None, True
        else:
            check_arguments(values.train)


@dataclass(kw_only=True)
class MixConfig(SftConfig):
    """Preview the mixture of an sft recipe: the former name of `sft --dry-run`."""

    output: str
    """Report directory: report.html, examples.jsonl and the table in run.json."""
    dry_run: bool = True
    """Whether nothing is trained; this command never trains."""


def sft(config: SftConfig) -> None:
    """Encode and pack the mixture, train, save the adapter, metrics and loss curve.

    Raises:
        UserError: a file without one good row, no chat template, every conversation longer than a block, prompts for
            a prefix to answer.
    """
    base, inputs = _open_inputs(config)
    if config.dry_run:
        output = f"{config.output.rstrip('/')}-dry-run"
        # Only what a dry run has written makes room.
        if read_record(output).get("settings", {}).get("dry_run"):
            remove(Path(output))
        _preview(config, "sft", output, base, inputs)
        return
    base.check_block_size(config.block_size)
    if config.body == "prefix" and (config.progress.prompts or config.progress.prompts_file):
        raise UserError(
            "progress.prompts: a prefix cannot answer while it trains; leave them out and use zhllama chat --adapter"
        )
    with begin_run(config, "sft", base, inputs, allow_frozen=True) as run:
        # On every rank: the seed makes them the same, and nothing is sent around.
        mixture = _mixture(config, base)
        progress = Progress(config.progress, mixture, base, config.block_size, config.train.seed)
        tokenizer = base.chat_tokenizer
        # Any id would do: padding has no label, and nothing sees it.
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        blocks = pack_conversations(progress.training, config.block_size, padding)
        outcome = train(run, blocks, progress)
        run.result.update(outcome, mixture=mixture.table, blocks=len(blocks), **progress.result)
    say(
        f"{config.output}: {outcome['steps']} steps on {len(progress.training):,} conversations in {len(blocks):,} blocks"
    )


def mix(config: MixConfig) -> None:
    """`sft --dry-run` into the very directory that --output names, as this command did before."""
    _preview(config, "mix", config.output, *_open_inputs(config))


def _preview(
    config: SftConfig, command: str, output: str, base: ModelDirectory, inputs: dict[str, Input]
) -> None:
    with create(output, "report", command, config, {"model": base, **inputs}) as run:
        run.result = write_preview(run.path, _mixture(config, base), base.chat_tokenizer)
    say(f"{run.path}: {run.result['rows']:,} rows, {run.result['tokens']:,} tokens, report.html")


def _open_inputs(config: SftConfig) -> tuple[ModelDirectory, dict[str, Input]]:
    """The model, and every other input by its name.

    Raises:
        UserError: no such model or file, a source that contradicts itself, no chat template.
    """
    base = ModelDirectory.open(config.model)
    inputs: dict[str, Input] = {f"data{i}": source.checked() for i, source in enumerate(config.data)}
    inputs |= {f"evaluation{i}": Path(file) for i, file in enumerate(config.mixture.evaluation)}
    if base.tokenizer.chat_template is None:
        raise UserError(f"--model {base}: no chat template inside; run merge-tokenizer --template NAME first")
    marks = base.tokenizer.special_tokens()
    # A mark that is no token is learnt letter by letter, and nothing ends a reply.
    check_marks(base.tokenizer.chat_template, base.tokenizer.roles(), marks, f"--model {base}")
    return base, inputs


def _mixture(config: SftConfig, base: ModelDirectory) -> Mixture:
    """What the run learns from; its table on the terminal."""
    mixture = build_mixture(config.data, config.mixture, base.chat_tokenizer, config.block_size)
    print_mixture(mixture)
    return mixture
