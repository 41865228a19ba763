"""`deepspeed pretrain/run.py`: continued pretraining on packed blocks."""

from __future__ import annotations

from dataclasses import dataclass

from zhllama import artifact
from zhllama.model.directory import ModelDirectory
from zhllama.pack.blocks import TokensDirectory
from zhllama.terminal import say
from zhllama.train.run import begin_run, train
from zhllama.train.settings import TrainingSettings


@dataclass(kw_only=True)
class PretrainConfig(TrainingSettings):
    """Continue pretraining a model on packed blocks: LoRA on the layers, new embedding rows as they are."""

    tokens: str
    """Tokens directory that pack wrote with that model's tokenizer."""
    freeze_new_rows: bool = False
    """Allow --embeddings none on an extended model, whose new rows then stay as initialised."""
    attend_across_documents: bool = False
    """Let attention and positions run on from one document of a block into the next."""


def pretrain(config: PretrainConfig) -> None:
    """Train, then save the adapter (LoRA and new rows), metrics and loss curve.

    Raises:
        UserError: tokens packed with another tokenizer or longer than the model's positions, unknown new rows, a
            save that does not reopen.
    """
    base = ModelDirectory.open(config.model)
    tokens = TokensDirectory.open(config.tokens)
    # Ids of another tokenizer train without any error, on nonsense.
    artifact.check_same(
        f"--tokens {tokens}",
        tokens.tokenizer,
        f"the tokenizer of --model {base}",
        base.tokenizer.fingerprint,
        f"run zhllama pack --model {base} again",
    )
    blocks = tokens.blocks(config.attend_across_documents)
    base.check_block_size(blocks.ids.shape[1])
    with begin_run(config, "pretrain", base, {"tokens": tokens}, config.freeze_new_rows) as run:
        outcome = train(run, blocks)
        run.result.update(outcome)
    say(
        f"{config.output}: {outcome['steps']} steps, {outcome['tokens']:,} tokens, mean loss {outcome['mean_loss']:.3f}"
    )
