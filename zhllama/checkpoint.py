"""Checkpoints of a run: which one to go on from, what of it fits this launch, and whether a save is whole."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME

from zhllama.config import UserError
from zhllama.model.trainable import ADAPTER_WEIGHTS, TrainableModel, adapter_key, last_rows


def last_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint of a run directory; one whose last file an interrupt kept from being written is none."""
    whole = [folder for folder in output.glob("checkpoint-*") if (folder / TRAINER_STATE_NAME).is_file()]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def optimizer_fits(checkpoint: Path, deepspeed: bool, ranks: int) -> bool:
    """Whether the optimiser's state can be loaded: DeepSpeed's is cut for a number of ranks and a ZeRO stage."""
    if not deepspeed:
        return bool((checkpoint / OPTIMIZER_NAME).is_file())
    parts = len(list(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt")))
    zero3 = any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt"))
    return parts == ranks and zero3 == bool(is_deepspeed_zero3_enabled())


def check_saved(folder: Path, model: TrainableModel, base: Path, moved: bool) -> None:
    """Re-open a saved adapter: every trainable tensor is there, whole and finite.

    Args:
        moved: also that LoRA's B is no longer zero and that the new rows are not those of `base`.

    Raises:
        UserError: a bad save, which must not pass for a finished run.
    """
    from safetensors.torch import load_file

    file = folder / ADAPTER_WEIGHTS
    state = load_file(file)
    for key in model.trainable():
        tensor = state.get(key)
        if tensor is None or tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{file}: {key} is missing, empty or not finite; the save went wrong")
        if moved and "lora_B" in key and not bool(tensor.any()):
            raise UserError(f"{file}: {key} never moved from zero; training had no effect")
    for key in ("model.embed_tokens.weight", "lm_head.weight") if moved and model.new_row_count else ():
        rows = state.get(adapter_key(key.replace("weight", "new_rows")))
        if rows is not None and torch.equal(rows, last_rows(base, key, len(rows))):
            raise UserError(f"{file}: the new rows of {key} never moved; training had no effect")
