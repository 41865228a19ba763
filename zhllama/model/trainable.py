"""What trains: LoRA on the layers, or all of them, or a prompt, and the new embedding rows as their own parameter.

The old rows are a frozen matrix that no optimiser ever sees, so they stay bit-identical. Saved adapters have
peft's layout (`trainable_token_indices` for the new rows): plain `PeftModel.from_pretrained` opens them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhllama.config import UserError
from zhllama.device import default_device
from zhllama.model.adapter import LoraSettings, Parts, adapter_key, lora_config, part_of
from zhllama.model.directory import INPUT_KEY, OUTPUT_KEY, ModelDirectory
from zhllama.model.fast.heap import LAYERS, trim_before
from zhllama.model.fast.install import install
from zhllama.model.fast.loss import IGNORED, linear_cross_entropy
from zhllama.model.prompt_tuning import AdaptionSettings, PrefixSettings, install_adaption, install_prefix
from zhllama.model.weights import load_model


# A parameter of their own, not a mask over the gradient of the whole matrix: weight decay would move the old
# rows all the same, and AdamW hold two averages of each.
class NewRowsEmbedding(nn.Module):
    """Embedding whose ids from `first_new` on are looked up in a trained matrix of their own."""

    def __init__(self, weight: nn.Parameter, new_rows: nn.Parameter, first_new: int) -> None:
        super().__init__()
        self.weight = weight
        self.new_rows = new_rows
        self.first_new = first_new

    def forward(self, ids: Tensor) -> Tensor:
        """(..., length) ids to (..., length, hidden)."""
        # Each id is looked up in both, clamped into range; `where` gives the wrong one no gradient.
        old = F.embedding(ids.clamp(max=self.first_new - 1), self.weight)
        new = F.embedding((ids - self.first_new).clamp(min=0), self.new_rows).to(old.dtype)
        return torch.where((ids >= self.first_new)[..., None], new, old)


class LossHead(nn.Module):
    """The output matrix, asked for a loss; for logits only where a reply is generated."""

    new_rows: nn.Parameter | None

    def __init__(self, weight: nn.Parameter, new_rows: nn.Parameter | None, first_new: int | None) -> None:
        super().__init__()
        self.weight = weight
        self.first_new = first_new
        self.register_parameter("new_rows", new_rows)

    def forward(self, hidden: Tensor, labels: Tensor | None = None, nats: Tensor | None = None) -> Tensor:
        """(tokens, hidden) and (tokens,) to the summed negative log-likelihood in nats; `nats` gets each token's.

        Without labels, (..., hidden) to logits of (..., rows).
        """
        # The slice is for ZeRO-3, which keeps the new rows in the frozen matrix too. Where the matrix itself trains
        # there is none: autograd would make the gradient of a slice a second matrix.
        weight = self.weight if self.first_new is None else self.weight[: self.first_new]
        if labels is None:
            logits = F.linear(hidden, weight.to(hidden.dtype))
            if self.new_rows is None:
                return logits
            return torch.cat([logits, F.linear(hidden, self.new_rows.to(hidden.dtype))], dim=-1)
        return linear_cross_entropy(hidden, weight, self.new_rows, labels, nats)


# Not a PeftModel, whose forward pass makes the logits of every token; the Trainer takes any module.
class TrainableModel(nn.Module):
    """A causal language model that returns a loss, and of which only the chosen parts train."""

    def __init__(self, base: Any, new_rows: int) -> None:
        super().__init__()
        self.on_loss: Callable[[Tensor, Tensor], None] | None = None
        """Told the labels of each forward pass and their losses in nats, both (tokens,)."""
        self.base = base
        self.config = base.config
        self.new_row_count = new_rows
        self.start: dict[str, Tensor] = {}
        """Where prompts began, by their keys: no base has them."""
        self.noise: float | None = None
        """NEFTune's alpha: uniform noise on the embeddings while training (arXiv 2310.05914)."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Loss over labels other than -100, shifted by one, divided by `num_items_in_batch` (default: its own).

        Positions that restart at 0 inside a row separate documents. All inputs are (batch, length) int64.
        """
        hidden = self.hidden(input_ids, position_ids)
        target = labels[:, 1:]
        # Only states that predict a label reach the output matrix: in tuning, prompts cost no logits.
        wanted = target != IGNORED
        labels = target[wanted]
        nats = None if self.on_loss is None else torch.empty_like(labels, dtype=torch.float32)
        loss = self.base.lm_head(hidden[:, :-1][wanted], labels, nats)
        if self.on_loss is not None and nats is not None:
            self.on_loss(labels, nats)
        return {
            "loss": loss / (wanted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        }

    def hidden(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """The decoder's last states, (batch, length, hidden), behind the prefix where one trains."""
        inputs = {"input_ids": input_ids}
        if self.noise and self.training:
            embedded = self.base.get_input_embeddings()(input_ids)
            inputs = {"inputs_embeds": embedded + noise_like(embedded, position_ids, self.noise)}
        # Given no mask and no cache, transformers builds a block-diagonal causal mask where positions
        # restart. A prefix needs one with more columns.
        mask, prefix = None, getattr(self.base, "prefix", None)
        if prefix is not None:
            prefix()
            mask = prefix.mask(position_ids)
            # The prefix takes the first positions of every document, as peft counts them.
            position_ids = position_ids + prefix.length
        states: Tensor = self.base.get_decoder()(
            **inputs, attention_mask=mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        return states

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by peft's key, tied ones once."""
        return {
            adapter_key(name): parameter
            for name, parameter in self.base.named_parameters()
            if parameter.requires_grad
        }

    def remember_prompts(self) -> None:
        """Keep where prompts are now as their start."""
        prompts = {key: value for key, value in self.trainable().items() if part_of(key) == "prompts"}
        self.start = {key: value.detach().clone() for key, value in prompts.items()}

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Trainer's switch, handed to the decoder; frozen embeddings must let gradients through."""
        self.base.activation_checkpointing_enable(**settings)
        self.base.enable_input_require_grads()
        if self.base.device.type == "cpu":
            # A layer's own hooks do not see that it runs again in the backward pass.
            trim_before(layer.input_layernorm for layer in self.base.get_decoder().layers[::LAYERS])


def noise_like(embedded: Tensor, positions: Tensor, alpha: float) -> Tensor:
    """NEFTune's noise: uniform up to alpha / sqrt(length x hidden), by the length of each document of a block.

    Args:
        embedded: (batch, length, hidden).
        positions: (batch, length), restarting at each document.
    """
    begins = positions.diff(dim=1, prepend=positions[:, :1] - 2) != 1  # each row begins one
    # A number for each document of the batch, at each of its tokens; then that document's length.
    document = begins.flatten().cumsum(0) - 1
    lengths = torch.bincount(document)[document].view_as(positions)
    most = alpha / (lengths * embedded.shape[-1]).to(embedded.dtype).sqrt()
    return torch.empty_like(embedded).uniform_(-1, 1) * most[..., None]


def load_trainable(
    source: ModelDirectory,
    parts: Parts,
    dtype: torch.dtype,
    device: str | None = None,
    kind: str | None = None,
) -> TrainableModel:
    """Load a model with everything frozen but the named parts, which are float32.

    `check_parts` says beforehand whether the choice makes sense. `parts.full` trains all of the layers and the final
    norm, `parts.quantise` holds the frozen layers in 4 bits (NF4, arXiv 2305.14314).

    Args:
        device: where to put it; without one it stays on the CPU, for a Trainer to place.
        kind: of the device that it will run on, cpu or cuda; by default that of `device`, or this machine's.

    Raises:
        UserError: a LoRA target that the model does not have.
    """
    # Ends before LoRA, so that it finds no linear layer there; lean layers after it, as they replace its own.
    base, method = load_model(source, dtype, parts.quantise), parts.method
    base.requires_grad_(False)
    base.config.use_cache = False
    count = source.new_rows if parts.embeddings == "new" else 0
    _install_rows(base, source, count)
    if isinstance(method, LoraSettings):
        from peft import inject_adapter_in_model

        _check_targets(base, method)
        base = inject_adapter_in_model(lora_config(method), base)
    elif isinstance(method, PrefixSettings):
        install_prefix(base, method)
    elif isinstance(method, AdaptionSettings):
        install_adaption(base, method)
    for name, parameter in base.named_parameters():
        # The whole matrices; new rows have parameters of their own.
        at_the_ends = name.endswith(("embed_tokens.weight", "lm_head.weight"))
        chosen = parts.embeddings == "all" if at_the_ends else parts.full
        added = part_of(adapter_key(name)) in ("LoRA", "new rows", "prompts")
        parameter.requires_grad_(added or chosen)
        # Float32, because in bfloat16 a step below 1/512 of a weight is rounded away. A parameter that ZeRO-3
        # has parted is empty here, and DeepSpeed keeps a float32 master of it.
        if parameter.requires_grad and parameter.numel():
            parameter.data = parameter.data.float()
    # Not the device of the weights: until training begins, they lie on the CPU.
    install(base, kind or torch.device(device or default_device()).type)
    model = TrainableModel(base, count)
    # Without one the Trainer, or ZeRO-3, gives each part its place.
    return model.to(device) if device else model


def check_parts(source: ModelDirectory, parts: Parts, allow_frozen: bool) -> None:
    """Refuse choices that waste a run: rows that do not exist, new ones frozen unawares, nothing that trains."""
    embeddings, body, count = parts.embeddings, parts.body, source.new_rows
    if embeddings != "none" and body in ("prefix", "adaption"):
        raise UserError(
            f"body {body}: peft saves it without embedding rows, so they cannot train beside it; "
            "use --embeddings none, or --body lora"
        )
    if embeddings == "none" and body == "none":
        raise UserError("body none and embeddings none: nothing would train; choose another for one of them")
    if embeddings == "new" and not count:
        raise UserError(
            f"embeddings new: {source} has no rows added by resize-embeddings; use --embeddings none or all"
        )
    if embeddings == "none" and count and not allow_frozen:
        raise UserError(
            f"embeddings none: the {count:,} new rows of {source} would stay frozen; use --embeddings new"
        )


def _install_rows(base: Any, source: ModelDirectory, count: int) -> None:
    """Replace the output layer by `LossHead` and, for count > 0, give both ends a matrix of new rows."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    tied = bool(base.config.tie_word_embeddings)
    if not count:
        base.lm_head = LossHead(embedding.weight if tied else head.weight, None, None)
        return
    first = base.config.vocab_size - count
    old = _without_last(embedding.weight, first, source, INPUT_KEY)
    input_rows = nn.Parameter(last_rows(source, INPUT_KEY, count))
    base.set_input_embeddings(NewRowsEmbedding(old, input_rows, first))
    # One parameter at both ends: its gradients add up, and the optimiser meets it once.
    if tied:
        base.lm_head = LossHead(old, input_rows, first)
    else:
        output_rows = nn.Parameter(last_rows(source, OUTPUT_KEY, count))
        base.lm_head = LossHead(_without_last(head.weight, first, source, OUTPUT_KEY), output_rows, first)


def _without_last(weight: nn.Parameter, first: int, source: ModelDirectory, key: str) -> nn.Parameter:
    """The rows before `first`, so that new ones are not held twice; all of them where ZeRO-3 has parted them."""
    if hasattr(weight, "ds_id"):
        return weight
    # A matrix in the file's own dtype is mapped, not read: a view of it holds nothing, a copy would hold the
    # rest. One that was cast on loading is in memory whole, and only a copy lets go of its other rows.
    with source.tensor(key) as stored:
        mapped = stored[:1].dtype == weight.dtype
    rows = weight.detach()[:first]
    return nn.Parameter(rows if mapped else rows.clone(), requires_grad=False)


def last_rows(source: ModelDirectory, key: str, count: int) -> Tensor:
    """The last rows of a tensor, read from disk: under ZeRO-3 no rank holds the whole matrix."""
    with source.tensor(key) as tensor:
        # And as stored: the loaded matrix is rounded to the precision of training.
        return torch.as_tensor(tensor[-count:]).float()


def _check_targets(base: Any, lora: LoraSettings) -> None:
    """peft passes over a target that matches nothing as long as another one does."""
    known = {name.rpartition(".")[2] for name, layer in base.named_modules() if isinstance(layer, nn.Linear)}
    for target in lora.targets:
        if target not in known:
            raise UserError(
                f"lora.targets {target}: no such linear layer; there are {', '.join(sorted(known))}"
            )
