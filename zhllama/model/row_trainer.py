"""A base whose new rows train alone, from one start after another: what `probe-init` repeats."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from zhllama.config import UserError
from zhllama.device import default_device, default_dtype
from zhllama.model import bits
from zhllama.model.adapter import Parts
from zhllama.model.bits import Batch
from zhllama.model.directory import INPUT_KEY, OUTPUT_KEY, ModelDirectory
from zhllama.model.resize import InitSettings, first_new_row, initial_rows, sub_tokens
from zhllama.model.trainable import LossHead, NewRowsEmbedding, TrainableModel, load_trainable
from zhllama.tokenizer.load import Loaded

WARM_UP = 0.1  # share of the steps in which the learning rate rises; then it falls to 0


@dataclass
class Text:
    """A text in batches, and its bytes."""

    batches: list[Batch]
    size: int

    @classmethod
    def of(cls, documents: list[str], tokenizer: Loaded, block_size: int) -> Text:
        """Whole documents, cut into windows of at most `block_size` tokens."""
        cut = bits.windows(documents, tokenizer, block_size)
        return cls(bits.batches(cut), sum(len(document.encode()) for document in documents))


class RowTrainer:
    """A base with room for new rows at both ends; they alone train, and are set anew for every run."""

    def __init__(self, source: ModelDirectory, new: Loaded) -> None:
        self.tied = source.tied
        self.first, count = first_new_row(source, new), int(new.opened.result["rows"])
        self.parts = sub_tokens(source.tokenizer, new, self.first, count)
        self.model = load_trainable(source, Parts(), default_dtype(), default_device())
        self.old, self.rows = [], []
        for key in (INPUT_KEY,) if self.tied else (INPUT_KEY, OUTPUT_KEY):
            # In the checkpoint's dtype, as resize-embeddings reads it.
            with source.tensor(key) as tensor:
                self.old.append(torch.as_tensor(tensor[: self.first]))
            device = next(self.model.parameters()).device
            self.rows.append(nn.Parameter(torch.zeros(len(self.parts), self.old[-1].shape[1], device=device)))

    def make_room(self) -> None:
        """Grow both ends of the model; until then it is the base."""
        model = self.model.base
        old = [
            nn.Parameter(rows.to(self.rows[0].device, model.dtype), requires_grad=False) for rows in self.old
        ]
        model.set_input_embeddings(NewRowsEmbedding(old[0], self.rows[0], self.first))
        model.lm_head = LossHead(old[-1], self.rows[-1], self.first)
        self.model = TrainableModel(model, len(self.parts))

    def start(self, init: InitSettings, seed: int) -> None:
        """Set the new rows to what resize-embeddings would write."""
        for output, (old, rows) in enumerate(zip(self.old, self.rows, strict=True)):
            # In place: the model holds these very parameters.
            rows.data.copy_(initial_rows(old, self.parts, init, seed, bool(output)))

    def bits_per_byte(self, text: Text) -> float:
        """Of one text under the model as it stands."""
        return sum(bits.total_nats(self.model, batch) for batch in text.batches) / math.log(2) / text.size

    def train(
        self,
        training: list[Batch],
        held_out: Text,
        rate: float,
        measure_every: int,
        advance: Callable[[], None],
    ) -> dict[int, float]:
        """One step of AdamW a batch; held-out bits per byte by step, before the first one too.

        Raises:
            UserError: a loss that is no number.
        """
        # No decay, as in pretraining: it would shrink the rows that a batch does not hold.
        optimizer = torch.optim.AdamW(self.rows, lr=rate, weight_decay=0.0)
        curve = {0: self.bits_per_byte(held_out)}
        for step, batch in enumerate(training, 1):
            for group in optimizer.param_groups:
                group["lr"] = rate * share_of_rate(step, len(training))
            with bits.precision(self.model):
                loss = bits.loss_of(self.model, batch, None)
            loss.backward()  # type: ignore[no-untyped-call]
            # As pretrain: rows that start badly have large gradients at first.
            nn.utils.clip_grad_norm_(self.rows, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % measure_every == 0 or step == len(training):
                curve[step] = self.bits_per_byte(held_out)
                # Rows that are no numbers stay so, and the next look finds them.
                if not math.isfinite(curve[step]):
                    raise UserError(f"learning_rate {rate}: the loss is no number at step {step}; lower it")
            advance()
        return curve


def share_of_rate(step: int, steps: int) -> float:
    """How much of the learning rate a step (from 1) gets: up to the whole in the warm-up, then down towards 0."""
    warm = max(1, round(WARM_UP * steps))
    # The last step still has a rate above 0.
    return step / warm if step <= warm else (steps - step + 1) / (steps - warm + 1)
