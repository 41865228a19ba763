"""Fixed prompts answered while a run trains, loss by source, and whether its answers end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zhllama.config import UserError
from zhllama.conversation.formats import Message
from zhllama.conversation.mixture import Mixture
from zhllama.conversation.prompts import encode_prompt, read_prompts
from zhllama.model.directory import ModelDirectory
from zhllama.model.fast.loss import IGNORED
from zhllama.model.trainable import TrainableModel
from zhllama.pack.blocks import Blocks
from zhllama.pack.conversations import pack_conversations
from zhllama.talk.generate import Reply, batches, end_ids, generate, room
from zhllama.terminal import say, warn
from zhllama.train.held_out import draw_short, first_prompt, hold_out

TOGETHER = 8  # prompts answered at a time


@dataclass
class ProgressSettings:
    """What a run shows of itself."""

    every: int = 0
    """Steps from one look at the run to the next, besides those before the first step and after the last; 0 for none."""
    prompts: list[str] = field(default_factory=list)
    """Prompts to answer at every look; `progress.html` shows the answers side by side."""
    prompts_file: str | None = None
    """A file of more prompts to answer at every look, as `chat --input` reads it."""
    held_out: int = 0
    """Rows of each source to keep from training, to measure the loss by source at every look."""
    endings: int = 8
    """Prompts of the data to answer after training, to see whether the model ends its answers; 0 for none."""
    max_new_tokens: int = 128
    """The longest answer at a look, in tokens."""

    def __post_init__(self) -> None:
        """Refuse what shows nothing."""
        for name in ("every", "held_out", "endings"):
            if getattr(self, name) < 0:
                raise UserError(f"progress.{name} {getattr(self, name)}: it must be at least 0")
        if self.max_new_tokens < 1:
            raise UserError(f"progress.max_new_tokens {self.max_new_tokens}: it must be at least 1")
        if self.every and not (self.prompts or self.prompts_file or self.held_out):
            raise UserError(
                f"progress.every {self.every}: there is nothing to look at; give progress.prompts or progress.held_out"
            )


class Progress:
    """The looks of one run: what is asked and measured, and what was found.

    Attributes:
        training: the samples that are left to train on.
        result: what the run's record takes: the last held-out losses, and how many answers ended.

    Raises:
        UserError: a file of prompts that cannot be read, a prompt too long for the model, a source with too few rows.
    """

    def __init__(
        self,
        settings: ProgressSettings,
        mixture: Mixture,
        base: ModelDirectory,
        block_size: int,
        seed: int,
    ) -> None:
        self.settings, self.tokenizer, self.positions = settings, base.chat_tokenizer, base.positions
        self.messages: list[list[Message]] = [
            [{"role": "user", "content": prompt}] for prompt in settings.prompts
        ]
        if settings.prompts_file is not None:
            self.messages += read_prompts(Path(settings.prompts_file), "progress.prompts_file")
        # Now, so that a prompt too long is refused before hours of training.
        self.prompts = [encode_prompt(messages, self.tokenizer, self.positions) for messages in self.messages]
        sources = [(source["file"], source["rows"]) for source in mixture.table]
        kept, held = hold_out(mixture.samples, sources, settings.held_out, seed)
        self.training = mixture.samples.select(kept)
        pad = self.tokenizer.eos_token_id
        self.held = {name: pack_conversations(rows, block_size, pad) for name, rows in held.items()}
        # Of training prompts a model may know the replies by heart.
        asked = [row for rows in held.values() for row in rows] or mixture.samples
        # An answer twice as long as the reply that it has learnt from has not learnt to stop.
        self.asked = draw_short(asked, settings.endings, settings.max_new_tokens // 2, seed)
        self.of_training = not held
        self.result: dict[str, Any] = {}

    def look(self, model: TrainableModel) -> dict[str, Any]:
        """Held-out loss per reply token by source, and the answers to the prompts."""
        with speaking(model):
            found: dict[str, Any] = {}
            if self.held:
                found["held_out"] = {name: token_loss(model, rows) for name, rows in self.held.items()}
            if self.prompts:
                replies = self.reply(model, self.prompts)
                found["answers"] = [
                    {
                        "prompt": messages[-1]["content"],
                        "answer": self.tokenizer.decode(reply.ids, skip_special_tokens=True).strip(),
                        "ended": "eos" if reply.ended else "length",
                    }
                    for messages, reply in zip(self.messages, replies, strict=True)
                ]
            return found

    def check_endings(self, model: TrainableModel) -> None:
        """Answer prompts of the data, and warn where the model has not learnt to end its answers."""
        if not self.asked:
            return
        if getattr(model.base, "prefix", None) is not None:
            say("whether answers end was not looked at: a prefix answers in zhllama chat --adapter only")
            return
        limit = self.settings.max_new_tokens
        with speaking(model):
            ended = sum(reply.ended for reply in self.reply(model, [first_prompt(row) for row in self.asked]))
        kind = "training" if self.of_training else "held-out"
        count = len(self.asked)
        self.result["endings"] = {"asked": count, "ended": ended, "limit": limit, "rows": kind}
        line = f"{ended} of {count} answers to {kind} prompts ended within {limit} tokens"
        # A few may ramble, or need more than the limit; half must stop.
        if 2 * ended >= count:
            say(line)
        else:
            warn(
                f"{line}: the model has not learnt to stop, and will talk on; train longer, or at a higher "
                "train.learning_rate"
            )

    def reply(self, model: TrainableModel, prompts: list[list[int]]) -> list[Reply]:
        """The likeliest replies, in the order of the prompts."""
        limit, ends = self.settings.max_new_tokens, end_ids(model.base, self.tokenizer)
        replies: dict[int, Reply] = {}
        for places in batches(prompts, TOGETHER, limit, self.positions):
            chosen = [prompts[place] for place in places]
            most = room(chosen[0], limit, self.positions)
            replies |= zip(places, generate(model.base, chosen, ends, most), strict=True)
        return [replies[place] for place in range(len(prompts))]


def token_loss(model: TrainableModel, blocks: Blocks) -> float:
    """The mean loss of the reply tokens of packed conversations, in nats."""
    nats, tokens = 0.0, 0
    for index in range(len(blocks)):
        batch = {key: value[None].to(model.base.device) for key, value in blocks[index].items()}
        tokens += int((batch["labels"][:, 1:] != IGNORED).sum())
        with torch.no_grad():
            nats += float(model(**batch, num_items_in_batch=1)["loss"])
    return nats / tokens


@contextmanager
def speaking(model: TrainableModel) -> Iterator[None]:
    """Without dropout, and in the precision of training."""
    # on_loss would count what is found as trained on.
    told, model.on_loss = model.on_loss, None
    was_training = model.training
    model.eval()
    dtype = model.base.dtype
    try:
        # What trains is float32, and the frozen weights beside it may not be.
        with torch.autocast(model.base.device.type, dtype=dtype, enabled=dtype != torch.float32):
            yield
    finally:
        model.train(was_training)
        model.on_loss = told
