"""What a run has trained, on disk: peft's layout for LoRA and embedding rows, plain weights for the rest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from zhllama.config import UserError
from zhllama.model.directory import INPUT_KEY, OUTPUT_KEY, ModelDirectory
from zhllama.model.prompt_tuning import (
    ADAPTION_KEY,
    PREFIX_KEY,
    AdaptionSettings,
    PrefixSettings,
    prompt_config,
)

Embeddings = Literal["new", "all", "none"]
Body = Literal["lora", "full", "prefix", "adaption", "none"]
Part = Literal["LoRA", "prompts", "new rows", "embeddings", "layers"]

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."  # peft's name for the wrapped model
ENDS = (f"{PREFIX}{INPUT_KEY}", f"{PREFIX}{OUTPUT_KEY}")
ROWS_KEY = "token_adapter.trainable_tokens_delta"  # peft's name for rows given by trainable_token_indices


@dataclass
class LoraSettings:
    """Low-rank adaptation of the linear layers (Hu et al., arXiv 2106.09685)."""

    # Rank, scale and targets are those of Chinese-LLaMA-2's pretraining.
    rank: int = 64
    """The rank of LoRA's two matrices, A and B."""
    alpha: int = 128
    """LoRA's update, B @ A, is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on LoRA's input while training."""
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """The linear layers that get LoRA, by their names."""
    rslora: bool = False
    """Scale the update by alpha / sqrt(rank) instead, which keeps high ranks learning (rsLoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Train each output's norm beside its direction (DoRA, arXiv 2402.09353); slower by about a half."""

    def __post_init__(self) -> None:
        """Refuse what peft would accept and then not train."""
        if self.rank < 1:
            raise UserError(f"lora.rank {self.rank}: it must be at least 1")
        if not self.targets:
            raise UserError(
                "lora.targets: name at least one linear layer, or train without LoRA: --body none"
            )

    @property
    def scale(self) -> float:
        """What B @ A is multiplied by."""
        return float(self.alpha / (self.rank**0.5 if self.rslora else self.rank))


Method = LoraSettings | PrefixSettings | AdaptionSettings  # what may be added to a model whose weights stay


@dataclass(frozen=True)
class Parts:
    """What of a model trains, or what a run has trained of it."""

    embeddings: Embeddings = "none"
    method: Method | None = None
    """What is added to the layers, whose own weights then stay."""
    full: bool = False
    """The layers' own weights train."""
    quantise: bool = False
    """The frozen layers are held in 4 bits."""

    @property
    def body(self) -> Body:
        """The setting of this name that asks for these parts."""
        if self.full:
            return "full"
        bodies: dict[type, Body] = {
            LoraSettings: "lora",
            PrefixSettings: "prefix",
            AdaptionSettings: "adaption",
        }
        return bodies.get(type(self.method), "none")


def lora_config(lora: LoraSettings | None) -> Any:
    """peft's settings; without LoRA they only carry embedding rows."""
    from peft import LoraConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES

    if lora is None:
        return LoraConfig(target_modules=DUMMY_TARGET_MODULES, task_type="CAUSAL_LM")
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
    )


def adapter_key(name: str) -> str:
    """peft's key of a trainable parameter named as in the base model."""
    # peft names an adapter `default` in the names of parameters, and leaves that out of saved keys.
    name = name.removeprefix("base.").replace(".default.", ".")
    if name.endswith(PREFIX_KEY):
        return PREFIX_KEY
    return PREFIX + name.replace("new_rows", ROWS_KEY)


def parameter_count(parameter: Tensor) -> int:
    """How many numbers a parameter has, also while ZeRO-3 holds it in parts."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def gathered_state(parameters: Mapping[str, nn.Parameter], keep: bool) -> dict[str, Tensor]:
    """Float32 copies on the CPU, empty without `keep`; under ZeRO-3 every rank must call it."""
    state: dict[str, Tensor] = {}
    # Made whole one at a time: all together would not fit the GPUs that ZeRO-3 is for.
    for key, parameter in parameters.items():
        with gathered([parameter]):
            if keep:
                state[key] = parameter.detach().float().cpu().clone().contiguous()
    return state


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


def save_adapter(
    path: Path,
    state: dict[str, Tensor],
    method: Method | None,
    base: ModelDirectory,
    config: Any,
    new_rows: int,
) -> None:
    """Write what `gathered_state` gave; `adapter_config.json` makes it peft's, except where layers trained in full."""
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    if not holds_layers(state):
        if isinstance(method, PrefixSettings | AdaptionSettings):
            peft_config = prompt_config(method, config)
        else:
            peft_config = lora_config(method)
        peft_config.base_model_name_or_path = str(base)
        peft_config.inference_mode = True
        if new_rows:
            indices = list(range(config.vocab_size - new_rows, config.vocab_size))
            # A list is of the input embedding, to which peft ties the output; two matrices are named.
            peft_config.trainable_token_indices = (
                indices if config.tie_word_embeddings else {"embed_tokens": indices, "lm_head": indices}
            )
        elif ENDS[0] in state:
            # peft unties what it saves in full, and would keep the base's output without a copy.
            peft_config.modules_to_save = ["embed_tokens", "lm_head"]
            state = {ENDS[1]: state[ENDS[0]].clone()} | state
        peft_config.save_pretrained(str(path))
    save_file(state, path / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def load_adapter(parameters: Mapping[str, nn.Parameter], path: Path) -> None:
    """Copy saved tensors into the trainable parameters; raises UserError where they do not fit."""
    from safetensors.torch import load_file

    state = load_file(path / ADAPTER_WEIGHTS)
    for key, parameter in parameters.items():
        # Every rank reads the file; on leaving, ZeRO-3 shares out the first one's copy.
        with gathered([parameter], write=True):
            if key not in state or state[key].shape != parameter.shape:
                raise UserError(f"{path}: the adapter has no tensor {key} of shape {tuple(parameter.shape)}")
            parameter.data.copy_(state[key])


def saved_parts(path: Path) -> Parts:
    """Which parts a directory with a saved adapter holds, and the settings of what it adds."""
    from safetensors import safe_open

    with safe_open(path / ADAPTER_WEIGHTS, "pt") as stored:
        keys = set(stored.keys())
    embeddings: Embeddings = "new" if any(ROWS_KEY in key for key in keys) else "none"
    # Only a matrix that trained in full has the plain key.
    if ENDS[0] in keys:
        embeddings = "all"
    if holds_layers(keys):
        return Parts(embeddings, full=True)
    content = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if content["peft_type"] == "PREFIX_TUNING":
        return Parts(embeddings, PrefixSettings(content["num_virtual_tokens"]))
    if content["peft_type"] == "ADAPTION_PROMPT":
        return Parts(embeddings, AdaptionSettings(content["adapter_len"], content["adapter_layers"]))
    if isinstance(content["target_modules"], str):  # peft's word for no module at all
        return Parts(embeddings)
    lora = LoraSettings(
        content["r"],
        content["lora_alpha"],
        content["lora_dropout"],
        sorted(content["target_modules"]),
        content["use_rslora"],
        content["use_dora"],
    )
    return Parts(embeddings, lora)


def part_of(key: str) -> Part:
    """Which part of a model a trained tensor belongs to, by its key."""
    if "lora_" in key:
        return "LoRA"
    if ADAPTION_KEY in key or key == PREFIX_KEY:
        return "prompts"
    if ROWS_KEY in key:
        return "new rows"
    return "embeddings" if key in ENDS else "layers"


def holds_layers(keys: Iterable[str]) -> bool:
    """Whether layers trained in full are among the saved tensors."""
    return any(part_of(key) == "layers" for key in keys)
