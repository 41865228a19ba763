"""What trains: LoRA on the body and the new embedding rows as their own parameter.

The old rows are a frozen matrix that no optimiser ever sees, so they stay bit-identical. Saved adapters have
peft's layout (`trainable_token_indices` for the new rows): plain `PeftModel.from_pretrained` opens them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhllama.artifact import read_record
from zhllama.config import UserError
from zhllama.model.loss import linear_cross_entropy
from zhllama.model.weights import find_tensor, load_model

Embeddings = Literal["new", "all", "none"]
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # peft's name for the wrapped model
ROWS_KEY = "token_adapter.trainable_tokens_delta"  # peft's name for rows given by trainable_token_indices


@dataclass
class LoraSettings:
    """Low-rank adaptation of the linear layers (Hu et al., arXiv 2106.09685)."""

    rank: int = 64
    """Rank of A and B."""
    alpha: int = 128
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout before A."""
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Names of the linear layers that get an adapter."""

    def __post_init__(self) -> None:
        """Refuse what peft would accept and then not train."""
        if self.rank < 1:
            raise UserError(f"lora.rank {self.rank}: it must be at least 1")
        if not self.targets:
            raise UserError("lora.targets: name at least one linear layer")


class NewRowsEmbedding(nn.Module):
    """Embedding whose ids from `rows - n` on are looked up in a trained matrix of n rows."""

    def __init__(self, weight: nn.Parameter, new_rows: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.new_rows = new_rows
        self.first_new = weight_rows(weight) - new_rows.shape[0]

    def forward(self, ids: Tensor) -> Tensor:
        """(..., length) ids to (..., length, hidden)."""
        old = F.embedding(ids, self.weight)
        new = F.embedding((ids - self.first_new).clamp(min=0), self.new_rows).to(old.dtype)
        return torch.where((ids >= self.first_new)[..., None], new, old)


class LossHead(nn.Module):
    """The output matrix, asked for a loss instead of logits."""

    new_rows: nn.Parameter | None

    def __init__(self, weight: nn.Parameter, new_rows: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.register_parameter("new_rows", new_rows)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """(tokens, hidden) and (tokens,) to the summed negative log-likelihood in nats."""
        return linear_cross_entropy(hidden, self.weight, self.new_rows, labels)


class TrainableModel(nn.Module):
    """A causal language model that returns a loss, of which only LoRA and embedding rows train."""

    def __init__(self, base: Any, new_rows: int) -> None:
        super().__init__()
        self.base = base
        self.config = base.config
        self.new_row_count = new_rows

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Loss over labels other than -100, shifted by one, divided by `num_items_in_batch` (default: its own).

        Positions that restart at 0 inside a row separate documents: without an attention mask, transformers
        then builds the block-diagonal causal mask. All inputs are (batch, length) int64.
        """
        hidden = self.base.get_decoder()(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        target = labels[:, 1:]
        wanted = target != -100
        loss = self.base.lm_head(hidden[:, :-1][wanted], target[wanted])
        return {
            "loss": loss / (wanted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        }

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by peft's key, tied ones once."""
        return {
            adapter_key(name): parameter
            for name, parameter in self.base.named_parameters()
            if parameter.requires_grad
        }

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Trainer's switch, handed to the decoder; frozen embeddings must let gradients through."""
        self.base.activation_checkpointing_enable(**settings)
        self.base.enable_input_require_grads()


def load_trainable(
    directory: Path,
    embeddings: Embeddings,
    lora: LoraSettings | None,
    dtype: torch.dtype,
    device: str | None = None,
) -> TrainableModel:
    """Load a model directory with everything frozen but the named parts, which are float32.

    `check_embeddings` says beforehand whether the choice makes sense; `lora=None` adds no adapter.

    Raises:
        UserError: a LoRA target that the model does not have.
    """
    base = load_model(directory, dtype)
    base.requires_grad_(False)
    base.config.use_cache = False
    count = new_row_count(directory) if embeddings == "new" else 0
    _install_rows(base, directory, count)
    if embeddings == "all":
        base.get_input_embeddings().weight.requires_grad_(True)
        base.lm_head.weight.requires_grad_(True)
    if lora is not None:
        from peft import inject_adapter_in_model

        _check_targets(base, lora)
        base = inject_adapter_in_model(_lora_config(lora), base)
    for name, parameter in base.named_parameters():
        rows = embeddings == "all" and name.endswith(("embed_tokens.weight", "lm_head.weight"))
        parameter.requires_grad_("lora_" in name or name.endswith("new_rows") or rows)
        if parameter.requires_grad and parameter.numel():
            parameter.data = parameter.data.float()
    model = TrainableModel(base, count)
    return model.to(device) if device else model


def new_row_count(directory: Path) -> int:
    """How many rows `resize-embeddings` added to this model, by its own record; 0 for a foreign directory."""
    result = read_record(directory).get("result", {})
    return int(result.get("rows", 0)) - int(result.get("first_new", 0))


def check_embeddings(directory: Path, embeddings: Embeddings, allow_frozen: bool) -> None:
    """Refuse choices that waste a run: training rows that do not exist, or freezing new ones unawares."""
    count = new_row_count(directory)
    if embeddings == "new" and not count:
        raise UserError(
            f"embeddings new: {directory} has no rows added by resize-embeddings; use --embeddings none or all"
        )
    if embeddings == "none" and count and not allow_frozen:
        raise UserError(
            f"embeddings none: the {count:,} new rows of {directory} would stay frozen; use --embeddings new"
        )


def adapter_key(name: str) -> str:
    """peft's key of a trainable parameter named as in the base model."""
    name = name.removeprefix("base.").replace(".default.", ".")
    return PREFIX + name.replace("new_rows", ROWS_KEY)


def save_adapter(
    path: Path, state: dict[str, Tensor], lora: LoraSettings, base: Path, config: Any, new_rows: int
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` in peft's layout (float32 tensors)."""
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    peft_config = _lora_config(lora)
    peft_config.base_model_name_or_path = str(base)
    peft_config.inference_mode = True
    if new_rows:
        indices = list(range(config.vocab_size - new_rows, config.vocab_size))
        tied = config.tie_word_embeddings
        peft_config.trainable_token_indices = (
            indices if tied else {"embed_tokens": indices, "lm_head": indices}
        )
    elif any(key.endswith("embed_tokens.weight") for key in state):
        peft_config.modules_to_save = ["embed_tokens", "lm_head"]
        state.setdefault(f"{PREFIX}lm_head.weight", state[f"{PREFIX}model.embed_tokens.weight"])
    tensors = {key: value.detach().float().cpu().clone().contiguous() for key, value in state.items()}
    save_file(tensors, path / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    peft_config.save_pretrained(str(path))


def load_adapter(model: TrainableModel, path: Path) -> None:
    """Copy a saved adapter's tensors into the trainable parameters; raises UserError where they do not fit."""
    from safetensors.torch import load_file

    state = load_file(path / ADAPTER_WEIGHTS)
    trainable = model.trainable()
    with gathered(trainable.values(), write=True):
        for key, parameter in trainable.items():
            if key not in state or state[key].shape != parameter.shape:
                raise UserError(f"{path}: the adapter has no tensor {key} of shape {tuple(parameter.shape)}")
            parameter.data.copy_(state[key])


def gathered(parameters: Iterable[nn.Parameter], write: bool = False) -> AbstractContextManager[Any]:
    """A context in which what ZeRO-3 holds in parts is whole; with `write`, the first rank's changes are kept."""
    parted = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not parted:
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
        parted, modifier_rank=0 if write else None
    )
    return context


def adapter_settings(path: Path) -> tuple[LoraSettings, dict[str, Any]]:
    """LoRA settings and the whole `adapter_config.json` of a saved adapter."""
    content = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    lora = LoraSettings(
        content["r"], content["lora_alpha"], content["lora_dropout"], sorted(content["target_modules"])
    )
    return lora, content


def weight_rows(weight: Tensor) -> int:
    """Rows of a matrix, also while ZeRO-3 holds it in parts."""
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def _install_rows(base: Any, directory: Path, count: int) -> None:
    """Replace the output layer by `LossHead` and, for count > 0, give both ends a matrix of new rows."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    tied = bool(base.config.tie_word_embeddings)
    output_rows = None
    if count:
        input_rows = nn.Parameter(last_rows(directory, "model.embed_tokens.weight", count))
        output_rows = input_rows if tied else nn.Parameter(last_rows(directory, "lm_head.weight", count))
        base.set_input_embeddings(NewRowsEmbedding(embedding.weight, input_rows))
    base.lm_head = LossHead(embedding.weight if tied else head.weight, output_rows)


def last_rows(directory: Path, key: str, count: int) -> Tensor:
    """The last rows of a tensor, read from disk: under ZeRO-3 no rank holds the whole matrix."""
    with find_tensor(directory, key) as tensor:
        return torch.as_tensor(tensor[-count:]).float()


def _check_targets(base: Any, lora: LoraSettings) -> None:
    """peft passes over a target that matches nothing as long as another one does."""
    known = {name.rpartition(".")[2] for name, layer in base.named_modules() if isinstance(layer, nn.Linear)}
    for target in lora.targets:
        if target not in known:
            raise UserError(
                f"lora.targets {target}: no such linear layer; there are {', '.join(sorted(known))}"
            )


def _lora_config(lora: LoraSettings) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
