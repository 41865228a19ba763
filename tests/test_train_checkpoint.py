"""Checkpoints: the one to go on from, what of it fits, and saves that are not whole."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from zhllama.config import UserError
from zhllama.model.adapter import ADAPTER_WEIGHTS, LoraSettings, Parts
from zhllama.model.directory import ModelDirectory
from zhllama.model.trainable import TrainableModel, load_trainable
from zhllama.train.checkpoint import (
    SEAL,
    check_saved,
    check_space,
    last_checkpoint,
    optimizer_fits,
    remove_others,
)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_the_last_is_the_highest_step(tmp_path: Path) -> None:
    for step in (900, 1000, 50):
        touch(tmp_path / f"checkpoint-{step}", SEAL)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1000"


def test_a_save_that_was_interrupted_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path / "checkpoint-5", SEAL)
    touch(tmp_path / "checkpoint-10", "adapter_model.safetensors", "optimizer.pt", "trainer_state.json")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    assert last_checkpoint(touch(tmp_path, "run.json")) is None


@pytest.mark.parametrize(
    ("limit", "left"), [(None, [5, 50, 100]), (2, [50, 100]), (1, [100]), (0, [5, 50, 100])]
)
def test_old_and_broken_checkpoints_are_removed(tmp_path: Path, limit: int | None, left: list[int]) -> None:
    for step in (100, 5, 50):
        touch(tmp_path / f"checkpoint-{step}", "optimizer.pt", SEAL)
    touch(tmp_path / "checkpoint-60", "optimizer.pt")
    remove_others(tmp_path, limit)
    assert sorted(int(folder.name[11:]) for folder in tmp_path.iterdir()) == left


def test_a_full_disk_is_told_before_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=16e9))
    check_space(tmp_path, 10**9)
    with pytest.raises(UserError, match=r"16.0 GB free, and a checkpoint may take 17.6 GB; make room"):
        check_space(tmp_path, 11 * 10**8)


@pytest.mark.parametrize(("ranks", "fits"), [(1, False), (2, True), (4, False)])
def test_deepspeed_state_fits_its_number_of_ranks(tmp_path: Path, ranks: int, fits: bool) -> None:
    names = [f"global_step3/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]
    touch(tmp_path, "global_step3/mp_rank_00_model_states.pt", *names)
    assert optimizer_fits(tmp_path, deepspeed=True, ranks=ranks) == fits
    assert not optimizer_fits(tmp_path, deepspeed=False, ranks=ranks)


def test_zero3_state_does_not_fit_zero2(tmp_path: Path) -> None:
    touch(tmp_path, "global_step3/zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert optimizer_fits(tmp_path, deepspeed=True, ranks=1)
    touch(tmp_path, "global_step3/zero_pp_rank_0_mp_rank_00_model_states.pt")
    assert not optimizer_fits(tmp_path, deepspeed=True, ranks=1)


def test_state_without_deepspeed_fits_any_number_of_ranks(tmp_path: Path) -> None:
    touch(tmp_path, "optimizer.pt")
    assert optimizer_fits(tmp_path, deepspeed=False, ranks=8)
    assert not optimizer_fits(tmp_path, deepspeed=True, ranks=1)


@pytest.fixture
def saved(tmp_path: Path, run_dirs: dict[str, Path], kind: str) -> Path:
    """A copy of a finished run's adapter."""
    shutil.copyfile(run_dirs[kind] / ADAPTER_WEIGHTS, tmp_path / ADAPTER_WEIGHTS)
    return tmp_path


@pytest.fixture
def model(extended_models: dict[str, Path], kind: str) -> TrainableModel:
    return load_trainable(
        ModelDirectory.open(extended_models[kind]), Parts("new", LoraSettings(rank=4)), torch.float32
    )


def spoil(folder: Path, part: str, tensor: torch.Tensor | None) -> None:
    """Replace or leave out the adapter's first tensor whose name has `part` in it."""
    state = load_file(folder / ADAPTER_WEIGHTS)
    key = next(key for key in state if part in key)
    old = state.pop(key)
    if tensor is not None:
        state[key] = tensor.expand(old.shape).clone() if tensor.numel() == 1 else tensor
    save_file(state, folder / ADAPTER_WEIGHTS)


def test_a_good_save_passes(
    saved: Path, model: TrainableModel, extended_models: dict[str, Path], kind: str
) -> None:
    check_saved(saved, model, ModelDirectory.open(extended_models[kind]), moved=True)


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "trainable_tokens"])
@pytest.mark.parametrize(
    "tensor", [None, torch.zeros(0, 4), torch.tensor(float("nan")), torch.tensor(float("inf"))]
)
def test_a_tensor_is_missing_empty_or_not_finite(
    saved: Path,
    model: TrainableModel,
    extended_models: dict[str, Path],
    kind: str,
    part: str,
    tensor: torch.Tensor | None,
) -> None:
    spoil(saved, part, tensor)
    with pytest.raises(UserError, match=rf"{part}.* is missing, empty or not finite; the save went wrong"):
        check_saved(saved, model, ModelDirectory.open(extended_models[kind]), moved=False)


def test_lora_that_never_moved(
    saved: Path, model: TrainableModel, extended_models: dict[str, Path], kind: str
) -> None:
    spoil(saved, "lora_B", torch.zeros(()))
    check_saved(saved, model, ModelDirectory.open(extended_models[kind]), moved=False)
    with pytest.raises(UserError, match=r"lora_B.weight never moved from zero; training had no effect"):
        check_saved(saved, model, ModelDirectory.open(extended_models[kind]), moved=True)


@pytest.mark.parametrize("place", [0, -1])
def test_new_rows_that_never_moved(
    saved: Path, model: TrainableModel, extended_models: dict[str, Path], kind: str, place: int
) -> None:
    stored = load_file(extended_models[kind] / "model.safetensors")
    key = [key for key in ("model.embed_tokens.weight", "lm_head.weight") if key in stored][place]
    end = key.removesuffix(".weight")
    spoil(saved, f"{end}.token_adapter", stored[key][-model.new_row_count :])
    check_saved(saved, model, ModelDirectory.open(extended_models[kind]), moved=False)
    with pytest.raises(UserError, match=rf"the new rows of {key} never moved; training had no effect"):
        check_saved(saved, model, ModelDirectory.open(extended_models[kind]), moved=True)
