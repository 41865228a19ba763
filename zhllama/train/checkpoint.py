"""Checkpoints of a run: which one to go on from, what of it fits this launch, and whether a save is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer import OPTIMIZER_NAME

from zhllama.config import UserError
from zhllama.model.adapter import ADAPTER_WEIGHTS, adapter_key
from zhllama.model.directory import INPUT_KEY, OUTPUT_KEY, ModelDirectory
from zhllama.model.run_directory import SEAL, RunDirectory
from zhllama.model.trainable import TrainableModel, last_rows
from zhllama.model.weights import read_tensor

# Of each trained parameter: the adapter, Adam's two averages, DeepSpeed's master copy.
STATE_BYTES = 4 + 8 + 4


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as whole, when nothing is left to be written."""
    (checkpoint / SEAL).touch()


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was sealed: a kill before that leaves files cut short, or missing."""
    return (checkpoint / SEAL).is_file()


def checkpoints(output: Path) -> list[Path]:
    """The whole checkpoints of a run directory, oldest step first."""
    # By the number: as text, checkpoint-100 comes before checkpoint-20.
    return sorted(filter(is_whole, output.glob("checkpoint-*")), key=_step)


def last_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint of a run directory."""
    return next(reversed(checkpoints(output)), None)


def remove_others(output: Path, limit: int | None) -> None:
    """Delete the checkpoints that a kill cut short, and of the whole ones all but the newest `limit`."""
    whole = checkpoints(output)
    kept = whole if limit is None or limit <= 0 else whole[-limit:]
    for folder in output.glob("checkpoint-*"):
        if folder not in kept:
            (folder / SEAL).unlink(missing_ok=True)  # first, or a kill would leave half a folder sealed
            shutil.rmtree(folder)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def check_space(output: Path, parameters: int) -> None:
    """Raise UserError unless the disk has room for one more checkpoint of so many trained parameters."""
    # Before each save: a disk that is full in the middle of one leaves files cut short.
    needed, free = parameters * STATE_BYTES, shutil.disk_usage(output).free
    if free < needed:
        raise UserError(
            f"--output {output}: {free / 1e9:.1f} GB free, and a checkpoint may take {needed / 1e9:.1f} GB; "
            "make room and start again, the run goes on from its last checkpoint"
        )


def optimizer_fits(checkpoint: Path, deepspeed: bool, ranks: int) -> bool:
    """Whether the optimiser's state can be loaded: DeepSpeed's is cut for a number of ranks and a ZeRO stage."""
    # Without DeepSpeed every rank has the whole state, and any number of ranks can go on from it.
    if not deepspeed:
        return bool((checkpoint / OPTIMIZER_NAME).is_file())
    # DeepSpeed writes [bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt for each rank R. Model states have the
    # same beginning under ZeRO-3 alone; otherwise they are one file, mp_rank_00_model_states.pt.
    parts = len(list(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt")))
    zero3 = any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt"))
    return parts == ranks and zero3 == bool(is_deepspeed_zero3_enabled())


def check_saved(
    folder: Path, model: TrainableModel, base: ModelDirectory, moved: bool, start: RunDirectory | None = None
) -> None:
    """Re-open a saved adapter: every trainable tensor is there, whole and finite.

    Args:
        moved: also that LoRA's B is no longer zero, and that new rows and prompts are not where they began.
        start: the run whose adapter training began from, which then must have moved as well.

    Raises:
        UserError: a bad save, which must not pass for a finished run.
    """
    from safetensors.torch import load_file

    file = folder / ADAPTER_WEIGHTS
    state = load_file(file)
    for key in model.trainable():
        tensor = state.get(key)
        # Ungathered, a parameter that ZeRO-3 has parted is saved empty.
        if tensor is None or tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{file}: {key} is missing, empty or not finite; the save went wrong")
        if moved and "lora_B" in key and not bool(tensor.any()):
            raise UserError(f"{file}: {key} never moved from zero; training had no effect")
        first = model.start.get(key)  # behind its gate of zero a prompt itself waits a step longer
        if moved and first is not None and "adaption_prompt" not in key and torch.equal(tensor, first.cpu()):
            raise UserError(f"{file}: {key} never moved; training had no effect")
        if moved and start and torch.equal(tensor, read_tensor(start.weights, key)):
            raise UserError(f"{file}: {key} is still that of {start}; training had no effect")
    for key in (INPUT_KEY, OUTPUT_KEY) if moved and model.new_row_count else ():
        rows = state.get(adapter_key(key.replace("weight", "new_rows")))
        if rows is not None and torch.equal(rows, last_rows(base, key, len(rows))):
            raise UserError(f"{file}: the new rows of {key} never moved; training had no effect")
